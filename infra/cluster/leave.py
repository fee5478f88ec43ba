"""Before a node is taken away: its trials keep a state and leave it. `python -m infra.cluster.leave SECONDS; ray stop`.

`ray stop` alone ends Ray's own processes first, and trials with them, in the middle of an epoch.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

import psutil


def workers() -> list[psutil.Process]:
    """The processes of this node that train, of any study."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "ray::RayTrainWorker" in " ".join(process.cmdline()[:1]):
                found.append(process)
    return found


def let_leave(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """SIGTERM to each, and so many seconds to go; those that are left."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(list(processes), timeout=seconds)
    return list(left)


if __name__ == "__main__":
    let_leave(workers(), float(sys.argv[1]))
