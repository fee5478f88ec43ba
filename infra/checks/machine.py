"""What one machine has to offer: packages, GPUs, shared memory, disk; and what it shows to its network."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

from infra.checks.diagnosis import Diagnosis, failed, ok, skipped, warning
from infra.provenance import code_revision
from infra.stack.processes import MARKER

COMPARED = ("torch", "ray", "optuna", "mlflow")
DASHBOARD_MODULES = ("aiohttp_cors", "prometheus_client", "opencensus")
TOOL_SECONDS, TORCH_SECONDS = 8, 60
BUSY_FRACTION = 0.1
LITTLE_DISK, SOME_DISK = 1e9, 5e9
RAY_FULL = 0.95  # Ray then refuses to write objects to the disk
LITTLE_SHARED, SOME_SHARED = 128e6, 2e9
SHARED = Path("/dev/shm")
RAY_NAMES = ("raylet", "gcs_server", "ray::", "ray/dashboard", "ray.util.client.server", "_private/runtime_env")
ASK_TORCH = """
import json, torch
print(json.dumps({"cuda": torch.version.cuda, "available": torch.cuda.is_available(),
                  "count": torch.cuda.device_count()}))
"""


def versions() -> dict[str, str]:
    """What must be the same on every node."""
    found = {"python": platform.python_version()}
    for name in COMPARED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    code = code_revision()
    found["agft"] = f"{code['revision'] or code['version']}{' with changes' if code['dirty'] else ''}"
    return found


def check_packages() -> list[Diagnosis]:
    """Versions, and the parts that pip leaves out unless they are asked for."""
    found = versions()
    shown = ", ".join(f"{name} {value[:12] if name == 'agft' else value}" for name, value in found.items())
    missing = [name for name in COMPARED if name not in found]
    if missing:
        return [failed("versions", f"not installed: {', '.join(missing)}", "pip install agft-study")]
    rows = [ok("versions", shown)]
    lacking = [name for name in DASHBOARD_MODULES if importlib.util.find_spec(name) is None]
    if importlib.util.find_spec("aiohttp_cors") is None:
        detail = f"cannot start: {', '.join(lacking)} missing; without it trials that are stopped early keep their GPUs"
        rows.append(failed("Ray dashboard", detail, "pip install 'ray[default]'"))
    else:
        rows.append(ok("Ray dashboard", "installed (ray[default])"))
    return rows


def check_gpus(wanted: float = 0.0, *, minimum_driver: Callable[[str], str]) -> list[Diagnosis]:
    """GPUs that are visible and free. `wanted`: by one worker of the study, 0 for none. `minimum_driver`: of a CUDA."""
    cards, problem = _cards()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not cards and not wanted:
        return [ok("GPUs", f"{problem}; studies without gpus_per_worker run on the CPU")]
    told = _torch()
    if not cards or not told.get("available"):
        cause = (
            problem or f"{len(cards)} GPUs, and torch cannot use them: {told.get('problem') or 'CUDA is not available'}"
        )
        if hidden is not None and not hidden.strip("-1 "):
            cause += " (CUDA_VISIBLE_DEVICES hides all)"
        remedy = "install a torch that is built with CUDA"
        if cuda := told.get("cuda"):
            here = ", ".join(sorted({card["driver"] for card in cards})) or "none"
            remedy = f"install NVIDIA driver {minimum_driver(cuda)} or newer, as CUDA {cuda} needs (here: {here})"
        remedy += ", give the container its GPUs (--gpus all), or set resources.gpus_per_worker: 0"
        row = f"the study asks for {wanted:g} GPU a worker: {cause}" if wanted else cause
        return [failed("GPUs", row, remedy) if wanted else warning("GPUs", row, remedy)]
    busy = [card for card in cards if card["used"] > BUSY_FRACTION * card["total"]]
    names = ", ".join(f"{card['name']} {card['total'] / 1024:.0f} GiB" for card in cards)
    if busy:
        which = ", ".join(f"GPU {card['index']} has {card['used'] / 1024:.1f} GiB in use" for card in busy)
        remedy = "end what uses them (nvidia-smi shows it), or hide them from Ray by CUDA_VISIBLE_DEVICES"
        return [warning("GPUs", f"{names}: {which}", remedy)]
    return [ok("GPUs", f"{names}: free, visible to torch")]


def gpus_here() -> int:
    """How many GPUs a process of this machine may use."""
    cards, visible = len(_cards()[0]), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return cards
    return min(cards, len([each for each in visible.split(",") if each.strip() not in ("", "-1")]))


def _cards() -> tuple[list[dict[str, Any]], str]:
    """(GPUs with memory in MiB, why there are none)."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return [], "no GPU (no nvidia-smi here)"
    query = ["--query-gpu=index,name,memory.total,memory.used,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run([tool, *query], capture_output=True, text=True, timeout=TOOL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return [], f"nvidia-smi does not answer within {TOOL_SECONDS} s: the driver hangs"
    if done.returncode != 0:
        return [], f"nvidia-smi: {' '.join((done.stdout + done.stderr).split())[:200]}"
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    try:
        return [{"index": row[0], "name": row[1], "total": float(row[2]), "used": float(row[3]), "driver": row[4]}
                for row in rows], "" if rows else "no GPU"  # fmt: skip
    except (ValueError, IndexError):
        return [], f"nvidia-smi: not understood: {done.stdout[:200]}"


def _torch() -> dict[str, Any]:
    """What torch says of CUDA, in a process of its own: a driver that hangs must not take us along."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", ASK_TORCH], capture_output=True, text=True, timeout=TORCH_SECONDS, check=False
        )
        return dict(json.loads(done.stdout))
    except subprocess.TimeoutExpired:
        return {"problem": f"no answer in {TORCH_SECONDS} s"}
    except ValueError:
        return {"problem": done.stderr.strip().splitlines()[-1][:200] if done.stderr.strip() else "no answer"}


def check_shared_memory() -> list[Diagnosis]:
    """Ray keeps its objects in shared memory."""
    if not SHARED.is_dir():
        return [skipped("shared memory", f"no {SHARED} on this system")]
    total = shutil.disk_usage(SHARED).total
    remedy = "start the container with --shm-size=8g (Docker, Compose), or an emptyDir with medium: Memory (Kubernetes)"
    text = f"{SHARED} has {_size(total)}"
    if total < LITTLE_SHARED:
        return [failed("shared memory", f"{text}: Ray's objects do not fit", remedy)]
    if total < SOME_SHARED:
        return [warning("shared memory", f"{text}: Ray falls back to slow files", remedy)]
    return [ok("shared memory", text)]


def check_disk(places: Iterable[tuple[str, Path]]) -> list[Diagnosis]:
    """Room at every `(name, folder)`; folders on one disk are one row."""
    disks: dict[int, tuple[list[str], Path]] = {}
    for name, folder in places:
        there = folder.expanduser().resolve()
        while not there.exists():
            there = there.parent
        disks.setdefault(there.stat().st_dev, ([], there))[0].append(f"{name} {folder}")
    rows = []
    for names, there in disks.values():
        usage = shutil.disk_usage(there)
        text = f"{_size(usage.free)} free of {_size(usage.total)} for {', '.join(names)}"
        remedy = "free space, or name a folder on another disk (AGFT_HOME, AGFT_CACHE, AGFT_PREPARED, TMPDIR)"
        if not os.access(there, os.W_OK):
            rows.append(
                failed("disk", f"{there} cannot be written, for {', '.join(names)}", "change its owner or rights")
            )
        elif usage.free < LITTLE_DISK:
            rows.append(failed("disk", f"no space: {text}", remedy))
        elif usage.free < SOME_DISK or usage.used > RAY_FULL * usage.total:
            rows.append(warning("disk", f"little space: {text}", remedy))
        else:
            rows.append(ok("disk", text))
    return rows


def temporary_folder() -> Path:
    """Where Ray and workers keep what is in flight."""
    return Path(tempfile.gettempdir())


def open_ports(marks: Iterable[str] = ()) -> dict[str, set[str]]:
    """`{program: addresses}` of ports that other machines can reach: Ray's, and of processes under `marks`."""
    wanted = set(marks)
    found: dict[str, set[str]] = {}
    for connection in psutil.net_connections(kind="tcp"):  # of those processes that we may look into
        if connection.status != psutil.CONN_LISTEN or connection.pid is None or not connection.laddr:
            continue
        host = connection.laddr.ip.removeprefix("::ffff:")
        if host.startswith("127.") or host == "::1":
            continue
        try:
            process = psutil.Process(connection.pid)
            line = " ".join(process.cmdline())
            mark = process.environ().get(MARKER, "")
        except (psutil.Error, OSError):
            continue  # gone meanwhile, or another user's
        name = next((part for part in RAY_NAMES if part in line), None) or (mark if mark in wanted else "")
        if name:
            program = name.strip(":").rpartition(":")[2].rpartition("/")[2]
            found.setdefault(program, set()).add(f"{host}:{connection.laddr.port}")
    return found


# In a home: what holds secrets.
PRIVATE = (
    "secrets.json", "ray_token", "metrics_token", "mlflow/basic_auth.ini", "seaweedfs/s3.json",
    "seaweedfs/security.toml", "seaweedfs/tls/key.pem",
)  # fmt: skip


def check_secret_files(home: Path, others: Iterable[Path] = ()) -> list[Diagnosis]:
    """Whether files with secrets, of the home and `others`, belong to us and are closed to everybody else."""
    rows, there = [], [path for path in (*(home / name for name in PRIVATE), *others) if path.is_file()]
    for path in there:
        found = path.stat()
        if found.st_uid not in (os.geteuid(), 0):
            cause, remedy = "belongs to another user, who can read and replace it", f"chown {os.geteuid()} {path}"
        elif open_to := stat.S_IMODE(found.st_mode) & 0o077:
            cause = f"has mode {stat.S_IMODE(found.st_mode):04o}: others may {_rights(open_to)} it"
            remedy = f"chmod 600 {path}, and make its secrets anew if others were here"
        else:
            continue
        rows.append(failed("secret files", f"{path} {cause}", remedy))
    return rows or [ok("secret files", f"{len(there)}, closed to everybody else")]


def _rights(mode: int) -> str:
    named = {0o044: "read", 0o022: "write", 0o011: "run"}
    return " and ".join(word for bits, word in named.items() if mode & bits)


def check_ports(marks: Iterable[str] = (), *, token: bool) -> list[Diagnosis]:
    """Which ports are open to the network; that matters most where Ray demands no token."""
    found = open_ports(marks)
    if not found:
        return [ok("ports", "what Ray and the embedded services listen on is on loopback")]
    shown = "; ".join(f"{name} {', '.join(sorted(each)[:3])}{' ...' if len(each) > 3 else ''}"
                      for name, each in sorted(found.items()))  # fmt: skip
    if not token and any(name not in ("seaweedfs", "mlflow", "postgres") for name in found):
        remedy = "whoever reaches them runs code here: start Ray with RAY_AUTH_MODE=token"
        return [failed("ports", f"open to the network, without a token: {shown}", remedy)]
    detail = f"open to the network, credentials demanded, not encrypted: {shown}"
    return [warning("ports", detail, "keep the network private (firewall, VPN)")]


def _size(amount: float) -> str:
    return f"{amount / 1e9:.1f} GB" if amount >= 1e9 else f"{amount / 1e6:.0f} MB"
