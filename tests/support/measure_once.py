"""`python tests/support/measure_once.py STUDY.yaml unmodified|confirm`: one measuring in a process that can be killed.

Every step is told, however short it was.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Measure the unmodified CLIP before a study, or as a promotion does on the confirm sets; prints the result."""
    from infra.cluster.cluster import connect, disconnect
    from study.evaluation import work
    from study.evaluation.executor import measure_unmodified
    from study.promotion.proof import Prover
    from study.spec.files import load_study

    work.PAUSE_SECONDS = 0.0
    spec, bucket = load_study(Path(sys.argv[1])), os.environ["AGFT_BUCKET"]

    def say(text: str) -> None:
        print(text, flush=True)

    connect(num_cpus=1)
    try:
        if sys.argv[2] == "unmodified":
            found = measure_unmodified(spec, bucket, say)
        else:
            prover = Prover(spec, bucket, say)
            found = prover.measure("confirm", {"clip": None})["clip"].result
            prover.close()
        print(json.dumps(found), flush=True)
    finally:
        disconnect()


if __name__ == "__main__":
    main()
