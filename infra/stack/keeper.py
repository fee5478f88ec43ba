"""The process that keeps a home's services up: it starts again what has died or cannot recover, and bounds the logs.

Run as `python -m infra.stack.keeper HOME` by `stack.up`; it ends with `stack.down`, or when the home is gone. Looking
costs next to nothing; everything else is imported once something has died.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

from infra.errors import ServiceError, UserError, while_full
from infra.stack.processes import alive, bound_logs

LOOK_SECONDS = 2.0
REFUSED = "no space left on device"
ROOM_BYTES = 32 << 20
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 2.0, 60.0


def dead(home: Path) -> list[str]:
    """Services that were started and whose process is gone."""
    try:
        state = json.loads((home / "state.json").read_text())
        return [name for name, entry in state.items() if "pid" in entry and not alive((entry["pid"], entry["started"]))]
    except (OSError, ValueError, TypeError):
        return []  # being replaced, or nothing is known: `agft stack up` looks harder


class FullDisk:
    """SeaweedFS that met a full disk: the part of its index that did refuses every later write, with room or without,
    until the process is started again. Its log says so at each of them."""

    def __init__(self, home: Path) -> None:
        self.log, self.folder, self.met = home / "logs" / "seaweedfs.log", home / "seaweedfs", False
        self.read = self._size()  # what is older may be over

    def over(self) -> bool:
        """Whether it met one, and there is room again."""
        size = self._size()
        self.read = min(self.read, size)
        if size > self.read:
            with open(self.log, "rb") as log:
                log.seek(self.read)
                self.met = REFUSED.encode() in log.read(size - self.read) or self.met
            self.read = size
        return self.met and shutil.disk_usage(self.folder).free > ROOM_BYTES

    def forget(self) -> None:
        """The process is a new one."""
        self.met, self.read = False, self._size()

    def _size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0


def mend(home: Path, full: FullDisk) -> bool:
    """Start again what has died, or met a full disk that has room again; whether there was any."""
    gone = dead(home)
    if not gone and not full.over():
        return False
    _say(f"{', '.join(gone)} died; starting again" if gone else "seaweedfs met a full disk; starting it again")
    from infra.stack import stack

    if gone:
        stack.up(home)
    else:
        stack.renew(home, "seaweedfs")
        full.forget()
    _say("all run")
    return True


def main() -> int:
    """Look until the home is gone."""
    home = Path(sys.argv[1])
    pause, full = FIRST_PAUSE_SECONDS, FullDisk(home)
    while home.is_dir():
        try:
            if not mend(home, full):
                bound_logs(home / "logs")
            pause = FIRST_PAUSE_SECONDS
            time.sleep(LOOK_SECONDS)
        except (ServiceError, UserError, OSError) as error:
            _say(f"{error}\nagain in {pause:.0f} s")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
    return 0


def _say(text: str) -> None:
    with while_full():
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S %z')} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
