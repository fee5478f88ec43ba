"""What every sanity check must do."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from trainers.evaluation.sanity import Judged, NotApplicable, Subject
from trainers.testing.attacks import case

Check = Callable[[Subject], Any]


def _subject(*, original: bool = True) -> Subject:
    """A network that is right about all of 16 images, some of which are fooled, and itself as the unmodified model."""
    given = case(number=16)
    other = given.logits if original else None
    data = given.images, given.labels, given.index
    return Subject(given.logits, other, *data, given.num_classes, given.eps, given.norm, given.seed, 8)


def _answer(check: Check, subject: Subject) -> Any:
    """What it answers, or why it is not applicable."""
    try:
        return check(subject)
    except NotApplicable as reason:
        return str(reason)


def it_answers_with_a_number_and_a_sentence(check: Check) -> None:
    for original in (True, False):
        judged = _answer(check, _subject(original=original))
        if isinstance(judged, str):
            assert judged, "a check that is not applicable says why"
            continue
        assert isinstance(judged, Judged)
        assert isinstance(judged.failed, bool)
        assert all(math.isfinite(number) for number in (judged.value, judged.threshold))
        assert judged.message


def it_says_the_same_of_the_same_model_and_leaves_random_state_alone(check: Check) -> None:
    state = torch.random.get_rng_state()
    assert _answer(check, _subject()) == _answer(check, _subject())
    assert torch.equal(torch.random.get_rng_state(), state)


def check_contract(check: Check) -> dict[str, Callable[[], None]]:
    """The checks of the check by name."""
    checks = (it_answers_with_a_number_and_a_sentence, it_says_the_same_of_the_same_model_and_leaves_random_state_alone)
    return {each.__name__: partial(each, check) for each in checks}
