"""What trials hold and wait for, told to Ray's autoscaler, so that nodes come for those that wait.

A trial that waits for admission asks Ray for nothing, so an autoscaler would never hear of it. With `AGFT_AUTOSCALE=1`
in the head's environment, the admission actor tells it; on a cluster of fixed size, Ray would only warn about it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence

__all__ = ["VARIABLE", "keep_telling"]

VARIABLE = "AGFT_AUTOSCALE"
PERIOD_SECONDS = 5.0
log = logging.getLogger("agft")

Bundles = Sequence[Mapping[str, float]]


def keep_telling(demand: Callable[[], Bundles]) -> None:
    """Tell the autoscaler of `demand()` for as long as this process lives, whenever it has changed.

    What is told holds until something else is told, so the last change is always told, also that nothing is wanted.
    """
    if os.environ.get(VARIABLE) == "1":
        threading.Thread(target=_tell, args=(demand,), daemon=True, name="agft-scaling").start()


def _tell(demand: Callable[[], Bundles]) -> None:
    from ray.autoscaler.sdk import request_resources

    told: list[dict[str, float]] | None = None
    while True:
        wanted = sorted((dict(bundle) for bundle in demand()), key=str)
        if wanted != told:
            try:
                request_resources(bundles=wanted)
                told = wanted
            except Exception as error:  # a head that restarts; told again in a moment
                log.warning("the autoscaler was not told what trials need: %s", error)
        time.sleep(PERIOD_SECONDS)
