"""A comparison: its file, what it does next, and the passes that it counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from study.comparison.file import Comparison, load_comparison, parse_comparison
from study.comparison.record import UNMODIFIED, collect, result_path
from study.comparison.run import next_step
from study.errors import StudyFileError, UserError
from study.plan.cost import update_passes
from study.spec.config import StudyConfig
from study.spec.dimension import grid_size
from study.store.lease import owner_identity
from study.store.rows import Proposal
from study.store.store import StudyStore
from tests.support.epochs import commit, epoch_record, weights
from trainers.objectives import METHODS
from trainers.schema.records import Measurement
from trainers.schema.training import AttackConfig

RECIPE = Path(__file__).parents[3] / "study" / "recipes" / "compare.yaml"
FILE = """\
name: two
methods:
  agft: {method: {name: agft}, search: {method.scale_ratio: {low: 0.3, high: 1.2}}}
  sharp: {method: {name: agft, scale_ratio: 1.0}, attack: {steps: 3}}
search: {train.optimizer.lr: {low: 1e-4, high: 1e-3, log: true}}
seeds: [101, 102, 103]
model: {arch: tiny-clip, pretrained: bundled}
attack: {eps: 4/255}
data: {train: tiny-color-shapes, dev: [tiny-shapes], confirm: [tiny-colors], final: [tiny-letters]}
budget: {trials: 3}
"""


def problems_of(text: str) -> dict[str, str]:
    with pytest.raises(StudyFileError) as caught:
        parse_comparison(text, source="compare.yaml")
    return {f"{problem.line}:{problem.path}": problem.rule for problem in caught.value.problems}


def test_every_method_becomes_a_study_with_the_same_budget_and_its_own_space():
    comparison = parse_comparison(FILE, source="compare.yaml")
    agft, sharp = comparison.searches["agft"], comparison.searches["sharp"]
    assert (agft.name, sharp.name, comparison.reference) == ("two-agft", "two-sharp", "agft")
    assert set(agft.search) == {"train.optimizer.lr", "method.scale_ratio"}
    assert set(sharp.search) == {"train.optimizer.lr"}
    assert agft.budget == sharp.budget
    assert agft.scheduler.name == "none"
    assert (agft.attack.steps, sharp.attack.steps) == (2, 3)
    assert sharp.attack.eps == agft.attack.eps == pytest.approx(4 / 255)


def test_the_repetition_runs_the_chosen_configuration_with_every_fresh_seed():
    others = "alternatives: [{name: tecoa}]\nprior: {studies: [earlier]}\n"  # of the search only
    comparison = parse_comparison(FILE + others, source="compare.yaml")
    config = comparison.searches["sharp"].base()
    config["train"]["optimizer"]["lr"] = 0.00042
    study = comparison.repetition("sharp", config)
    assert study.name == "two-sharp-seeds"
    assert study.train.optimizer.lr == 0.00042
    assert (study.attack.steps, study.method.scale_ratio) == (3, 1.0)
    assert study.search == {"seed": {"choices": [101, 102, 103]}}
    assert study.budget.trials == grid_size(study.dimensions(), 100) == 3
    assert study.evaluate == comparison.searches["sharp"].evaluate
    assert study.goal == comparison.searches["sharp"].goal


MISTAKES = """\
name: Two
methods:
  agft: {method: {name: agft, scale_ratoi: 0.4}, search: {method.scale_ratio: {low: 1.3, high: 1.2}}}
  sharp: {method: {name: agft}, attack: {stepz: 3}, train: {epochs: 4}}
  tecao: {method: {name: tecao}}
search: {train.optimizer.lr: {low: 1e-4, high: 1e-3, log: true}, seed: {choices: [1, 2]}}
seeds: [0, 102, 102]
reference: plain
model: {arch: tiny-clip, pretrained: bundled}
data: {train: tiny-color-shapes, dev: [tiny-shape], confirm: [tiny-colors], final: [tiny-letters]}
budget: {trials: 3, hours: 2}
gaol: {}
"""


def test_every_mistake_is_reported_once_at_its_line_with_its_place_in_the_compare_file():
    found = problems_of(MISTAKES)
    assert {
        "1:name",
        "3:methods.agft.method.scale_ratoi",
        "3:methods.agft.search.method.scale_ratio",
        "4:methods.sharp.attack.stepz",
        "4:methods.sharp.train",
        "6:search.seed",
        "7:seeds.0",
        "7:seeds.2",
        "8:reference",
        "10:data.dev.0",
        "11:budget.hours",
        "12:gaol",
    } <= set(found)
    assert any(place.startswith("5:methods.tecao.method") for place in found)
    assert "did you mean 'goal'" in found["12:gaol"]
    assert "fresh" in found["7:seeds.0"]


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [("seeds: [101, 102, 103]", "seeds: [101]", "6:seeds"), ("budget: {trials: 3}", "budget: [", "11:YAML")],
)
def test_too_few_seeds_and_broken_yaml_are_refused(old, new, place):
    assert place in problems_of(FILE.replace(old, new))


@pytest.mark.parametrize(
    ("path", "entry"),
    [
        ("model.arch", "{choices: [tiny-clip, ViT-B-32-quickgelu]}"),
        ("model.pretrained", "{choices: [bundled, openai]}"),
        ("train.epochs", "{low: 1, high: 5}"),
        ("train.samples_per_epoch", "{choices: [64, 128]}"),
        ("train.batch_size", "{choices: [64, 128]}"),
        ("train.trainable.part", "{choices: [all, layer_norms]}"),
        ("train.trainable.blocks", "{low: 1, high: 4}"),
        ("seed", "{choices: [1, 2]}"),
    ],
)
def test_what_makes_budgets_or_models_unequal_is_not_searched(path, entry):
    own = FILE.replace("search: {method.scale_ratio", f"search: {{{path}: {entry}, method.scale_ratio")
    shared = FILE.replace("search: {train.optimizer.lr", f"search: {{{path}: {entry}, train.optimizer.lr")
    for text, place in ((own, f"3:methods.agft.search.{path}"), (shared, f"5:search.{path}")):
        assert "not searched" in problems_of(text)[place]
        with pytest.raises(StudyFileError) as caught:
            parse_comparison(text, source="compare.yaml")
        refused = [problem for problem in caught.value.problems if "not searched" in problem.rule]
        assert len(refused) == 1, "once, whether it is one method's or shared"
        assert refused[0].value


def test_a_label_that_names_anothers_repetitions_is_refused():
    found = problems_of(FILE.replace("  agft:", "  sharp-seeds:"))
    assert list(found) == ["3:methods.sharp-seeds"]
    assert "the repetitions" in found["3:methods.sharp-seeds"]


def test_one_method_is_no_comparison():
    assert "2:methods" in problems_of("\n".join(line for line in FILE.splitlines() if "sharp" not in line))


def test_the_recipe_gives_every_method_the_same_attack_and_holds_agfts_paper_form():
    comparison = load_comparison(RECIPE)
    assert len({study.attack for study in comparison.searches.values()}) == 1
    agft = comparison.searches["agft"]
    inside = {d.path: d for d in agft.dimensions()}
    for path, value in {"method.scale_ratio": 0.4, "method.logit_scale": 1.8, "method.feature_weight": 0}.items():
        assert inside[path].holds(value), path


WEIGHTED = ("clean_weight", "adversarial_weight", "attention_weight")
FORMS = [
    *({"name": name} for name in METHODS),
    {"name": "pmg-aft", "detach_clean": True},
    *(
        {"name": name, field: weight}
        for name, method in METHODS.items()
        for field in WEIGHTED
        for weight in (0, 0.5)
        if field in method.model_fields
    ),
]


@pytest.mark.parametrize("fields", FORMS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_passes_are_those_that_the_method_makes(fields):
    """Counted on the real objective: forwards of the student and the teacher, backwards to images or weights."""
    import torch

    from tests.support.small import image_set, small_clip
    from trainers.model.build import tokenizer_for
    from trainers.model.robust import RobustCLIP, class_embeddings
    from trainers.objectives import Batch, Context

    clip = small_clip()
    model, teacher = RobustCLIP(clip), RobustCLIP(clip).frozen_copy()
    data, index = image_set("x", 6), torch.arange(6)
    method, attack = METHODS[fields["name"]](**fields), AttackConfig(eps=8 / 255, steps=3)
    images = data.images.float() / 255
    with torch.no_grad():
        clean = teacher.embed(images)
    student, frozen = count_passes(model), count_passes(teacher)
    classes = class_embeddings(clip, data.prompts(), tokenizer_for(clip))
    batch = Batch(images, data.labels, index, clean if method.needs_clean_embeddings else None)
    context = Context(classes, 0, 0, 6, teacher if method.needs_teacher else None)
    method.loss(model, batch, attack, context=context).total.backward()
    found = update_passes(method.model_dump(), attack.model_dump())
    assert found["attack"] == 2 * attack.steps
    # A backward of the update goes to images' and weights' side alike and counts 2, one of the attack 1.
    updates = student["backward"] - attack.steps
    assert found["update"] == student["forward"] - attack.steps + 2 * updates
    assert found["teacher"] == frozen["forward"]


def count_passes(model: Any) -> dict[str, int]:
    """Counts of the encoder's forwards, and of the backwards through them, from now on."""
    seen = {"forward": 0, "backward": 0}

    def counting(encode: Any) -> Any:
        def call(images: Any) -> Any:
            seen["forward"] += 1
            found = encode(images)
            first = found if hasattr(found, "register_hook") else found[-1]
            if first.requires_grad:
                first.register_hook(lambda _: seen.update(backward=seen["backward"] + 1))
            return found

        return call

    model.embed, model.embed_tokens = counting(model.embed), counting(model.embed_tokens)
    return seen


def score(robust: float) -> dict[str, Any]:
    return {"clean_accuracy": 0.8, "robust_accuracy": robust, "correct": 40, "robust": int(50 * robust), "total": 50}


def finish(url: str, study: StudyConfig, robust: dict[int, float]) -> None:
    """Store a finished study whose trials reached these robust accuracies, as a driver would."""
    store = StudyStore(url, study.name)
    token = store.acquire(owner_identity())
    store.set_study(token, baseline=Measurement(clean_accuracy=0.9, robust_accuracy=0.1, datasets={}))
    for number, value in robust.items():
        params = (
            {"seed": study.search["seed"]["choices"][number]}
            if "seed" in study.search
            else {"train.optimizer.lr": 3e-4}
        )
        store.start_trial(token, Proposal(number, params), study.base() | {"trial": number})
        best = weights(f"s3://x/{study.name}/{number}", f"{study.name}-{number}".ljust(64, "0"))
        record = epoch_record(1, value, 0.8, images_per_second=300.0)
        commit(store, token, number, record, latest=best, best=best, device_seconds=60.0)
        store.finish_trial(token, number, "complete")
    store.release(token, "finished")


def measured(comparison: Comparison, folder: Path, label: str, seed: str, weights: Any) -> None:
    """Keep a measurement, as the command would."""
    path = result_path(comparison, folder, label, seed, weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"clean_accuracy": 0.8, "robust_accuracy": 0.3, "datasets": {"tiny-letters": {"4/255": score(0.3)}}}
    path.write_text(json.dumps({"result": result}))


def test_what_is_left_to_do_is_read_from_the_store_and_the_kept_measurements(tmp_path):
    url, folder = f"sqlite:///{tmp_path / 'studies.db'}", tmp_path / "compare"
    comparison = parse_comparison(FILE, source="compare.yaml")
    for study in comparison.searches.values():
        StudyStore(url, study.name).create(study)

    def step() -> Any:
        return next_step(comparison, url, folder)

    for label in ("agft", "sharp"):
        assert step().study == comparison.searches[label]
        finish(url, comparison.searches[label], {0: 0.30, 1: 0.35, 2: 0.20})
    for label in ("agft", "sharp"):
        assert step().study.name == f"two-{label}-seeds"
        finish(url, step().study, {0: 0.30, 1: 0.31, 2: 0.32})
    assert (step().label, step().weights) == (UNMODIFIED, {"": None})
    measured(comparison, folder, UNMODIFIED, "", None)
    for label in ("agft", "sharp"):
        assert step().label == label
        every = step().weights
        assert set(every) == {"101", "102", "103"}
        measured(comparison, folder, label, "102", every["102"])
        assert set(step().weights) == {"101", "103"}, "a kept measurement is not repeated"
        for seed in ("101", "103"):
            measured(comparison, folder, label, seed, every[seed])
    assert step() is None
    record = collect(comparison, url, folder)
    assert record["methods"]["sharp"]["chosen"]["trial"] == 1, "the best by the goal"
    assert [run["seed"] for run in record["methods"]["agft"]["runs"]] == [101, 102, 103]
    last = collect(comparison, url, folder)["methods"]["agft"]["runs"][-1]
    result_path(comparison, folder, "agft", "103", last["weights"]).unlink()
    measured(comparison, folder, "agft", "103", {"sha256": "another checkpoint"})
    assert set(step().weights) == {"103"}, "a measurement of other weights does not count"


def test_other_seeds_under_the_same_name_are_refused_before_anything_runs(tmp_path):
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    comparison = parse_comparison(FILE, source="compare.yaml")
    for study in comparison.searches.values():
        StudyStore(url, study.name).create(study)
        finish(url, study, {0: 0.30})
    finish(url, next_step(comparison, url, tmp_path).study, {0: 0.30, 1: 0.31, 2: 0.32})
    changed = parse_comparison(FILE.replace("103]", "104]"), source="compare.yaml")
    with pytest.raises(UserError, match="another specification"):
        next_step(changed, url, tmp_path)
