"""A few inputs of every kind that `tests/bench/fuzz.py` makes by the thousand: none is answered with a traceback."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[2] / "bench" / "fuzz.py"
COUNTS = {"study": 150, "checkpoints": 30, "commands": 30, "pictures": 30}


@pytest.mark.parametrize("kind", COUNTS)
def test_generated_inputs_are_accepted_or_refused_with_a_message(kind: str) -> None:
    others = [word for other in COUNTS if other != kind for word in (f"--{other}", "0")]
    command = [sys.executable, str(FUZZ), f"--{kind}", str(COUNTS[kind]), *others]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert re.search(rf"{COUNTS[kind]} inputs: .* 0 raised", done.stdout), done.stdout + done.stderr
