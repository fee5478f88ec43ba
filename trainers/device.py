"""Which device a task computes on, and whether it can. Imports torch only when it is asked."""

from __future__ import annotations

import errno
import os
import re
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.errors import UserError

if TYPE_CHECKING:
    import torch

MINIMUM_DRIVER = {"13": "580", "12": "525"}
"""NVIDIA's driver that torch's wheels need at least, by the major version of the CUDA that they bundle."""

DRIVER = Path("/proc/driver/nvidia/version")

# What allocators other than torch's own say, in plain RuntimeErrors: of cuBLAS's and cuDNN's workspaces and handles, of
# NCCL's buffers, of compiled kernels, of the CPU's memory; and torch's own in what a compiler has wrapped.
NO_MEMORY = re.compile(
    r"CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|CUDNN_STATUS_INTERNAL_ERROR_\w+_ALLOCATION_FAILED"
    r"|CUSOLVER_STATUS_ALLOC_FAILED|CUFFT_ALLOC_FAILED|CUDA (driver )?error: out of memory|CUDA out of memory"
    r"|Cuda failure.{0,20}out of memory|Triton Error \[CUDA\]: out of memory"
    r"|DefaultCPUAllocator: (not enough|can't allocate) memory|std::bad_alloc"
    r"|unable to mmap .*Cannot allocate memory"
)


def task_device(gpus: float | None = None) -> torch.device:
    """Where a task computes that was promised so many GPUs; None: nobody said, so a GPU if there is one.

    Raises `UserError` for a GPU that torch cannot use, also where nobody said and a driver is here: the CPU instead
    would be a hundred times slower, without a word. `CUDA_VISIBLE_DEVICES=` (empty) asks for the CPU.
    """
    import torch

    if gpus is None:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")
        gpus = 0 if hidden else float(torch.cuda.is_available() or driver_version() is not None)
    return usable(torch.device("cuda" if gpus else "cpu"), gpus)


def usable(device: torch.device, gpus: float = 1.0) -> torch.device:
    """The device itself, for this process as much of its memory as it has of the GPU.

    Raises `UserError` if it is a GPU that torch cannot use here, and says what is missing.
    """
    import torch

    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{socket.gethostname()}: {why_unusable(torch.version.cuda, driver_version())}")
    if 0 < gpus < 1:
        torch.cuda.set_per_process_memory_fraction(gpus, device)
    return device


def why_unusable(cuda: str | None, driver: str | None) -> str:
    """Why torch, built for `cuda` (None: for no GPU), cannot use a GPU that the machine's `driver` should give it."""
    if cuda is None:
        return "a GPU is needed, and torch here is built without CUDA"
    needed = minimum_driver(cuda)
    said = f"a GPU is needed, and torch (CUDA {cuda}) cannot use one"
    if driver is None:
        return f"{said}: there is no NVIDIA driver here; it needs {needed} or newer"
    if too_old(driver, cuda):
        return f"{said}: the NVIDIA driver is {driver}, and CUDA {cuda} needs {needed} or newer"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hint = "" if visible is None else f"; CUDA_VISIBLE_DEVICES is {visible!r}"
    return f"{said}: the driver ({driver}) is new enough, and shows no device{hint}"


def minimum_driver(cuda: str) -> str:
    """The oldest driver for a CUDA version, such as `580` for 13.0; of an unknown one, that of the newest known."""
    return MINIMUM_DRIVER.get(cuda.split(".")[0], max(MINIMUM_DRIVER.values()))


def too_old(driver: str, cuda: str) -> bool:
    """Is the driver older than this CUDA needs?"""
    return int(driver.split(".")[0]) < int(minimum_driver(cuda))


def driver_version() -> str | None:
    """The loaded NVIDIA driver's, such as `535.183.01`; None without one."""
    try:
        found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", DRIVER.read_text(errors="replace"))
    except OSError:
        return None
    return found[0] if found else None


def out_of_memory(error: BaseException) -> bool:
    """Did an allocation fail, torch's own or a library's?"""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if "torch" in sys.modules:  # where it is not imported, none of its errors is raised
        import torch

        if isinstance(error, torch.OutOfMemoryError):
            return True
    return isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None
