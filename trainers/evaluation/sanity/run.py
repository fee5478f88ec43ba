"""All checks on one model and one set of images."""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import Tensor

from trainers.attacks import LogitsFn, Norm
from trainers.evaluation.record import Finding
from trainers.evaluation.sanity.subject import NotApplicable, Subject
from trainers.schema.checks import CHECKS


def sanity_checks(
    *,
    logits: LogitsFn,
    original: LogitsFn | None,
    images: Tensor,
    labels: Tensor,
    index: Tensor,
    num_classes: int,
    eps: float,
    norm: Norm = "linf",
    seed: int = 0,
    batch: int = 200,
    only: Collection[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Finding, ...]:
    """One finding of every check, in the order of CHECKS; of those named in `only`, if it is given.

    For the arguments see `Subject`; call it in the arithmetic of the evaluation (`trainers.evaluation.scorer.exact`).
    All images are attacked in full; 200 are enough for the thresholds to mean what docs/sanity.md says. `progress` is
    told each check's name, how many are done, and how many there are. The cost is that of `passes`.
    """
    if not eps > 0:
        raise ValueError(f"eps {eps}: sanity checks are of an attack, whose radius is greater than 0")
    subject = Subject(logits, original, images, labels, index, num_classes, eps, norm, seed, batch)
    found = []
    wanted = {name: check for name, check in CHECKS.items() if only is None or name in only}
    for done, (name, check) in enumerate(wanted.items()):
        if progress is not None:
            progress(name, done, len(wanted))
        try:
            failed, value, threshold, message = check(subject)
        except NotApplicable as reason:
            found.append(Finding(name=name, outcome="not applicable", message=str(reason), anchor=name))
            continue
        outcome = "failed" if failed else "passed"
        found.append(
            Finding(name=name, outcome=outcome, value=value, threshold=threshold, message=message, anchor=name)
        )
    return tuple(found)
