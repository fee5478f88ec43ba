"""The process that keeps a home's services up: it starts again what has died, and bounds the logs.

Run as `python -m infra.stack.keeper HOME` by `stack.up`; it ends with `stack.down`, or when the home is gone. Looking
costs next to nothing; everything else is imported once something has died.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from infra.errors import ServiceError, UserError
from infra.stack.processes import alive, bound_logs

LOOK_SECONDS = 2.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 2.0, 60.0


def dead(home: Path) -> list[str]:
    """Services that were started and whose process is gone."""
    try:
        state = json.loads((home / "state.json").read_text())
        return [name for name, entry in state.items() if "pid" in entry and not alive((entry["pid"], entry["started"]))]
    except (OSError, ValueError, TypeError):
        return []  # being replaced, or nothing is known: `agft stack up` looks harder


def main() -> int:
    """Look until the home is gone."""
    home = Path(sys.argv[1])
    pause = FIRST_PAUSE_SECONDS
    while home.is_dir():
        gone = dead(home)
        if not gone:
            pause = FIRST_PAUSE_SECONDS
            bound_logs(home / "logs")
            time.sleep(LOOK_SECONDS)
            continue
        _say(f"{', '.join(gone)} died; starting again")
        try:
            from infra.stack import stack

            stack.up(home)
            _say("all run")
        except (ServiceError, UserError) as error:
            _say(f"{error}\nagain in {pause:.0f} s")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
    return 0


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S %z')} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
