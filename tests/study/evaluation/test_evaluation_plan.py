"""What an evaluation is cut into, what identifies it, and who computes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.errors import UserError
from study.evaluation.place import Folder, alone_in
from study.evaluation.pool import Hands, Job, best_job, hands_for
from study.evaluation.units import UNIT_IMAGES, Evaluation, cost, units
from study.spec.suite import capped, checked_sets
from trainers.evaluation.record import ModelFacts
from trainers.schema.suite import SUITES, Suite

SUITE = Suite.model_validate(
    {
        "name": "mine",
        "datasets": ["tiny-digits", "tiny-letters"],
        "attacks": [
            {"attack": {"name": "pgd"}, "eps": ["2/255", "4/255"]},
            {"attack": {"name": "apgd"}, "eps": ["4/255"], "samples": 600},
        ],
    }
)


def model(sha256: str = "a" * 64, label: str = "clip") -> ModelFacts:
    return ModelFacts(label=label, weights_sha256=sha256, arch="tiny-clip", logit_scale=30, image_size=32)


def evaluation(**changes: object) -> Evaluation:
    settings: dict[str, object] = {
        "model": model(), "original": None, "surrogate": None, "suite": SUITE, "device": "cpu"
    }  # fmt: skip
    return Evaluation(**{**settings, **changes})  # type: ignore[arg-type]


def test_units_cover_the_sample_once_and_are_of_one_size() -> None:
    pgd, apgd = SUITE.attacks
    whole = units("tiny-digits", pgd)
    assert [(unit.first, unit.images) for unit in whole] == [(0, UNIT_IMAGES), (UNIT_IMAGES, 800 - UNIT_IMAGES)]
    assert [unit.images for unit in units("tiny-digits", apgd)] == [512, 88]
    assert [unit.images for unit in units("tiny-digits", pgd, 1024)] == [512, 512]
    assert [unit.name for unit in whole] == ["tiny-digits/pgd-20/0000", "tiny-digits/pgd-20/0001"]


def test_a_units_cost_counts_every_pass_at_every_radius() -> None:
    pgd, _ = SUITE.attacks
    unit = units("tiny-digits", pgd)[1]
    assert cost(unit, 10) == unit.images * (1 + 2 * (21 + 2 * 20))


def test_a_folder_set_has_a_name_that_files_and_mlflow_take() -> None:
    (unit,) = units("folder:/data/my pets", SUITE.attacks[0], 3)
    assert unit.name.startswith("folder-data-my-pets-")
    assert set(unit.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-/")


def test_whatever_decides_a_verdict_makes_another_evaluation() -> None:
    suites = [SUITE.model_copy(update=change) for change in ({"seed": 1}, {"protocol": "paper"}, {"name": "other"})]
    others = [
        evaluation(model=model("b" * 64)), evaluation(original=model()), evaluation(surrogate=model()),
        evaluation(device="cuda"), evaluation(model=model(label="x")), evaluation(suite=capped(SUITE, 10)),
        *(evaluation(suite=suite) for suite in suites),
    ]  # fmt: skip
    assert len({each.digest for each in [evaluation(), *others]}) == 1 + len(others)
    assert evaluation().digest == evaluation().digest
    assert evaluation().name == f"clip-mine-{evaluation().digest[:8]}"


def test_a_cap_lowers_samples_and_never_raises_them() -> None:
    assert [entry.samples for entry in capped(SUITE, 700).attacks] == [700, 600]
    assert [entry.samples for entry in capped(SUITE, 50).attacks] == [50, 50]
    assert capped(SUITE, None) == SUITE


def test_sanity_is_checked_on_the_first_set_with_four_classes_unless_another_is_named() -> None:
    assert checked_sets("auto", SUITE) == ("tiny-digits",)
    assert checked_sets("auto", SUITES["zero-shot-15"][0]) == ("caltech101",)
    assert checked_sets("auto", SUITE.model_copy(update={"datasets": ("pcam", "stl10")})) == ("stl10",)
    assert checked_sets("all", SUITE) == SUITE.datasets
    assert checked_sets("none", SUITE) == ()
    assert checked_sets("tiny-letters", SUITE) == ("tiny-letters",)
    with pytest.raises(ValueError, match="--sanity: 'tiny-leters' is not known; did you mean 'tiny-letters'"):
        checked_sets("tiny-leters", SUITE)


def job(name: str, group: str, price: float = 1) -> Job:
    return Job(name, (group,), price, "measure", ())


def test_a_worker_goes_on_with_what_it_has_in_memory_then_takes_what_nobody_has() -> None:
    waiting = [job("a1", "a"), job("b1", "b", 5), job("b2", "b", 6), job("c1", "c", 9), job("c2", "c", 9)]
    assert best_job(waiting, ("b",), [("a",)]).name == "b2"
    assert best_job(waiting, ("x",), [("c",)]).name == "b2"
    assert best_job(waiting, None, [("a",), ("b",), ("c",)]).group == ("c",)


def test_workers_are_as_many_as_fit_and_as_there_is_work() -> None:
    def found(*nodes: dict[str, float], jobs: int = 99, **asked: float) -> Hands:
        return hands_for(nodes, jobs, **{"workers": None, "cpus": None, "gpus": None, **asked})  # type: ignore[arg-type]

    assert found({"CPU": 2}) == Hands(1, 2, 0)
    assert found({"CPU": 16}) == Hands(4, 4, 0)
    assert found({"CPU": 2}, workers=2) == Hands(2, 1, 0)
    assert found({"CPU": 16, "GPU": 2}) == Hands(2, 4, 1)
    assert found({"CPU": 16, "GPU": 2}, gpus=0) == Hands(4, 4, 0)
    assert found({"CPU": 16, "GPU": 2}, gpus=0.5, cpus=1) == Hands(4, 1, 0.5)
    assert found({"CPU": 16}, jobs=2) == Hands(2, 4, 0)
    assert found({"CPU": 2}, workers=3, cpus=0.5) == Hands(3, 0.5, 0)
    with pytest.raises(UserError, match=r"--workers: 3 of 1 CPU and 0 GPU each; .* 2 CPU .* room for 2"):
        found({"CPU": 2}, workers=3, cpus=1)
    with pytest.raises(UserError, match="room for 0"):
        found({"CPU": 2}, gpus=1)
    assert found({"CPU": 4}, {"CPU": 4, "GPU": 1}) == Hands(1, 4, 1)
    with pytest.raises(UserError, match=r"2 node\(s\) with 8 CPU .* room for 0"):
        found({"CPU": 4}, {"CPU": 4}, cpus=6)


def test_one_process_at_a_time_has_a_folder_and_the_other_is_told_which(tmp_path: Path) -> None:
    place = Folder(tmp_path / "evaluation")
    refusal = pytest.raises(UserError, match=r"evaluation.*: process \d+ on .* is evaluating into it")
    with alone_in(place), refusal, alone_in(place):
        pass
    with alone_in(place):
        pass
