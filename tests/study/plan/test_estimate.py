"""What a plan says of costs before anything is measured: an estimate, that it is one, and when it gives way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from study.plan.cost import study_passes
from study.plan.estimate import DEVICES, SHARES, encoder_of, estimate, estimate_lines, memory_of
from study.plan.study import measured_cost
from study.spec.config import StudyConfig
from study.spec.files import parse_study
from study.store.rows import Proposal
from study.store.store import StudyStore
from tests.support.epochs import commit, epoch_record, weights
from tests.support.study_files import minimal_study

PAGE = Path(__file__).parents[3] / "docs" / "imagenet.md"
(RECIPE,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), flags=re.S)


def estimated(**more: Any) -> dict[str, Any]:
    spec = minimal_study(**more)
    return estimate(spec, study_passes(spec))


def test_the_page_of_the_imagenet_recipe_says_what_the_plan_says():
    spec = parse_study(RECIPE, source=str(PAGE))
    found = estimate(spec, study_passes(spec))
    for part in ("\n".join(estimate_lines(found)), "\n".join(found["notes"])):
        assert part in PAGE.read_text(), part
    assert all(len(line) <= 80 for line in estimate_lines(found))


def test_hours_are_passes_times_flops_at_a_share_of_the_peak_over_all_gpus():
    spec = parse_study(RECIPE, source=str(PAGE))
    passes = {"training": 1e9, "evaluations": 0, "promotion": 0}
    found = {row["device"]: row for row in estimate(spec, passes)["rows"]}
    flops = 1e9 * encoder_of(spec.model.arch).flops
    assert found["A100 80 GB"]["hours_per_trial"] == pytest.approx(flops / (312e12 * SHARES["fp16"] * 2) / 3600)
    assert set(found) == set(DEVICES)


def test_a_device_without_a_precision_says_so_and_auto_takes_what_there_is():
    gpus = {"workers": 1, "gpus_per_worker": 1}
    rows = {row["device"]: row for row in estimated(train={"epochs": 1, "precision": "bf16"}, resources=gpus)["rows"]}
    assert rows["T4"]["lack"] == "has no bf16"
    rows = {row["device"]: row for row in estimated(train={"epochs": 1, "precision": "auto"}, resources=gpus)["rows"]}
    assert (rows["T4"]["precision"], rows["L4"]["precision"]) == ("fp32", "bf16")


def test_a_study_without_gpus_is_estimated_for_this_cpu_and_an_unknown_model_is_said_to_be_unknown():
    found = estimated()
    (row,) = found["rows"]
    assert row["device"] == "this CPU"
    assert 0.001 < row["peak_tflops"] < 10
    assert "an estimate, nothing was measured" in estimate_lines(found)[0]
    assert estimate_lines({"unknown": "no such architecture"}) == ["  cost          not known: no such architecture"]


def test_an_evaluation_on_a_cpu_has_a_graph_of_its_own_which_small_batches_do_not_make_smaller():
    need = {}
    for batch in (1, 8, 64, 128):
        (row,) = estimated(train={"epochs": 1, "batch_size": batch})["rows"]
        need[batch] = row["memory"]
    assert need[1] == need[8] < need[64] < need[128]


def test_the_first_measured_epoch_replaces_the_estimate_and_a_full_trial_the_epoch(tmp_path, monkeypatch):
    monkeypatch.delenv("AGFT_STUDY_DB", raising=False)
    spec = minimal_study(train={"epochs": 10})
    assert measured_cost(spec, tmp_path) is None
    store = StudyStore(f"sqlite:///{tmp_path}/studies.db", "earlier")
    store.create(StudyConfig.model_validate({**spec.model_dump(mode="json"), "name": "earlier"}))
    token = store.acquire("a|1|0|m.b.1")
    store.start_trial(token, Proposal(0, {}), {})
    record = epoch_record(1, train_seconds=50.0, eval_seconds=10.0)
    commit(
        store, token, 0, record, latest=weights("s3://b/x", size=40_000_000), best=weights("s3://b/y", size=10_000_000)
    )
    found = measured_cost(spec, tmp_path)
    assert found is not None
    assert (found["full_trials"], found["epochs"], found["device_seconds_per_trial"]) == (0, 1, 600)
    assert found["bytes_per_trial"] == 50_000_000
    store.finish_trial(token, 0, "complete", device_seconds=700)
    found = measured_cost(spec, tmp_path)
    assert found is not None
    assert (found["full_trials"], found["device_seconds_per_trial"]) == (1, 700)


def memory_table() -> Iterator[str]:
    yield "| architecture | parameters | fp32 | half precision | images on 24 GB, half |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for arch in ("ViT-B-32", "ViT-B-16", "ViT-L-14", "RN50"):
        encoder, train = encoder_of(arch), minimal_study().train
        need = [memory_of(encoder, train, 256, precision) / 1e9 for precision in ("fp32", "bf16")]
        alone = memory_of(encoder, train, 0, "bf16")
        most = int((24e9 - alone) // (memory_of(encoder, train, 1, "bf16") - alone))
        cells = [f"{encoder.parameters / 1e6:.0f} M", *(f"{each:.3g}" for each in need), str(most)]
        yield f"| {arch} | {' | '.join(cells)} |"


@pytest.mark.slow
def test_the_page_has_the_memory_of_four_architectures():
    assert "\n".join(memory_table()) in PAGE.read_text()


@pytest.mark.slow
def test_what_a_backward_keeps_is_what_was_measured_within_an_eighth():
    """MB an image to the weights in fp32, as counted in a real backward on a CPU."""
    for arch, measured in (("ViT-B-32", 38), ("ViT-B-16", 148), ("ViT-L-14", 510)):
        assert encoder_of(arch).kept / 1e6 == pytest.approx(measured, rel=0.12)


@pytest.mark.slow
def test_what_does_not_fit_is_said_with_the_number_of_images_that_do():
    found = estimated(
        model={"arch": "ViT-L-14", "pretrained": "datacomp_xl_s13b_b90k"},
        train={"epochs": 1, "precision": "fp32"}, resources={"workers": 1, "gpus_per_worker": 1},
    )  # fmt: skip
    rows = {row["device"]: row for row in found["rows"]}
    assert re.fullmatch(r"does not fit: at most \d+ images at once", rows["L4"]["lack"])
    assert "too much" in "\n".join(estimate_lines(found))
