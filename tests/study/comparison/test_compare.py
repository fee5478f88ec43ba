"""A comparison: its file, its arithmetic, and what its report says about made-up records."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from study.comparison.file import Comparison, load_comparison, parse_comparison
from study.comparison.record import UNMODIFIED, collect, conclude, result_path
from study.comparison.report import attack_text, markdown, write_comparison
from study.comparison.run import next_step
from study.errors import StudyFileError, UserError
from study.plan.cost import update_passes
from study.spec.config import StudyConfig
from study.statistics import SeedDifference, seed_difference, spread, t_quantile
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
    comparison = parse_comparison(FILE, source="compare.yaml")
    config = comparison.searches["sharp"].base()
    config["train"]["optimizer"]["lr"] = 0.00042
    study = comparison.repetition("sharp", config)
    assert study.name == "two-sharp-seeds"
    assert study.train.optimizer.lr == 0.00042
    assert (study.attack.steps, study.method.scale_ratio) == (3, 1.0)
    assert study.search == {"seed": {"choices": [101, 102, 103]}}
    assert study.budget.trials == 3
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


# Two-sided 95 % points of Student's t, from printed tables.
@pytest.mark.parametrize(
    ("df", "value"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (10, 2.228), (30, 2.042), (500, 1.965)],
)
def test_t_quantiles_are_those_of_the_tables(df, value):
    assert t_quantile(df) == pytest.approx(value, abs=5e-4)


@pytest.mark.parametrize("p", [0.5, 0.9, 0.95, 0.99])
def test_t_quantiles_with_one_two_and_four_degrees_of_freedom_have_their_closed_forms(p):
    assert t_quantile(1, p) == pytest.approx(math.tan(math.pi / 2 * p), rel=1e-12)
    assert t_quantile(2, p) == pytest.approx(p * math.sqrt(2 / (1 - p * p)), rel=1e-12)
    root = math.sqrt(1 - p * p)
    cosine = math.cos(math.acos(root) / 3) / root
    assert t_quantile(4, p) == pytest.approx(2 * math.sqrt(cosine - 1), rel=1e-12)


def test_spread_is_the_sample_deviation():
    found = spread([0.1, 0.2, 0.3])
    assert (found.mean, found.deviation, found.n) == (pytest.approx(0.2), pytest.approx(0.1), 3)
    assert spread([0.5]).deviation is None


def test_a_paired_difference_uses_the_common_seeds_and_their_own_pairs():
    own, other = {1: 0.50, 2: 0.61, 3: 0.72, 9: 0.0}, {1: 0.40, 2: 0.50, 3: 0.60, 8: 1.0}
    found = seed_difference(own, other)
    # differences 0.10, 0.11, 0.12: mean 0.11, deviation 0.01, half width 4.303 * 0.01 / sqrt(3)
    assert found is not None
    assert (found.mean, found.n) == (pytest.approx(0.11), 3)
    assert found.high - found.mean == pytest.approx(4.30265 * 0.01 / math.sqrt(3), rel=1e-4)
    assert found.separated
    assert seed_difference({1: 0.5}, {2: 0.5}) is None
    assert not SeedDifference(0.1, -0.01, 0.2, 3).separated


def test_there_is_no_interval_without_a_spread_or_from_two_seeds():
    other = {1: 0.30, 2: 0.31, 3: 0.32, 4: 0.2}
    same = seed_difference({seed: value + 0.1 for seed, value in other.items()}, other)
    two = seed_difference({1: 0.50, 2: 0.61}, {1: 0.40, 2: 0.50})
    for found, mean in ((same, 0.1), (two, 0.105)):
        assert found is not None
        assert found.mean == pytest.approx(mean)
        assert (found.low, found.high, found.separated) == (None, None, False)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "2 x 1 eps, eps 1/255"),
        ({"eps": 4 / 255, "step_size": 1 / 255, "steps": 10, "momentum": 0.9}, "10 x 1/255, eps 4/255, momentum 0.9"),
        ({"norm": "l2", "eps": 0.5}, "2 x 1 eps, l2 eps 0.5"),
        ({"norm": "l2", "eps": 0.5, "step_size": 0.125, "restarts": 2}, "2 x 0.125, l2 eps 0.5, restarts 2"),
    ],
)
def test_an_attack_is_told_with_its_norm_and_in_its_units(fields, text):
    assert attack_text(AttackConfig(**fields).model_dump(mode="json")) == text


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


def made_up(robust: dict[str, list[float]]) -> dict[str, Any]:
    """A record with these robust accuracies by method and seed; clean accuracies 0.8."""

    def measured(value: float) -> dict[str, Any]:
        score = {
            "clean_accuracy": 0.8,
            "robust_accuracy": value,
            "correct": 80,
            "robust": int(100 * value),
            "total": 100,
        }
        return {"clean_accuracy": 0.8, "robust_accuracy": value, "datasets": {"tiny-letters": {"4/255": score}}}

    comparison = parse_comparison(FILE, source="compare.yaml")
    spec = comparison.searches["agft"]
    setting = spec.model_dump(
        mode="json", include={"model", "data", "train", "evaluate", "goal", "sampler", "scheduler", "resources", "seed"}
    )
    trial = {
        "trial": 0, "state": "complete", "failure": None, "best_epoch": 2, "feasible": True,
        "clean_accuracy": 0.9, "robust_accuracy": 0.3, "params": {"train.optimizer.lr": 3e-4},
        "device_seconds": 60.0, "images_per_second": 300.0,
    }  # fmt: skip
    return conclude(
        {
            "name": "two",
            "created_ms": 1_700_000_000_000,
            "reference": "agft",
            "seeds": [101, 102, 103],
            "setting": {**setting, "trials": 3},
            "unmodified": {"dev": measured(0.1), "final": measured(0.1)},
            "methods": {
                label: {
                    "method": "agft",
                    "study": f"two-{label}",
                    "attack": spec.attack.model_dump(mode="json"),
                    "passes": update_passes({"name": "agft"}, spec.attack.model_dump(mode="json")),
                    "search": {"space": spec.search, "trials": [trial] * 3, "device_seconds": 180.0},
                    "chosen": {**trial, "config": spec.base()},
                    "runs": [
                        {**trial, "seed": 101 + place, "weights": {"sha256": "0"}, "final": measured(value)}
                        for place, value in enumerate(values)
                    ],
                    "code": [{"revision": "a" * 40, "dirty": False}],
                }
                for label, values in robust.items()
            },
            "provenance": {"cpus": 2, "python": "3.11", "packages": {"torch": "2.14"}},
        }
    )


def test_the_report_says_what_the_seeds_separate_and_what_they_do_not():
    record = made_up({"agft": [0.30, 0.31, 0.32], "better": [0.40, 0.40, 0.43], "alike": [0.25, 0.36, 0.33]})
    text = markdown(record)
    assert re.search(r"better against agft: .*robust accuracy is 10.0 points higher", text)
    assert re.search(r"alike against agft: .*the seeds do not separate the robust accuracies", text)
    assert "| agft | 3 | 80.0 ± 0.0 | 31.0 ± 1.0 |" in text
    assert "| unmodified CLIP |  | 80.0 | 10.0 |" in text
    assert "Intervals shown: 2," in text, "not those of the clean accuracies, the same with every seed"


def test_the_report_says_why_there_is_no_interval():
    text = markdown(made_up({"agft": [0.30, 0.31, 0.32], "b": [0.40, 0.41, 0.42]}))
    assert "robust accuracy: no interval, the difference being +10.0 points with every one of 3 seeds" in text
    assert "points higher" not in text
    two = markdown(made_up({"agft": [0.30, 0.31], "b": [0.40, 0.42]}))
    assert "robust accuracy: no interval, 2 seeds in common being too few (in mean +10.5 points)" in two
    one = markdown(made_up({"agft": [0.30, 0.31], "b": [0.40]}))
    assert "robust accuracy: no interval, 1 seed in common being too few (+10.0 points)" in one
    assert "Intervals shown: 0," in two


def test_attacks_that_differ_in_their_norm_alone_are_not_the_same_attack():
    record = made_up({"agft": [0.30, 0.31, 0.32], "b": [0.40, 0.41, 0.42]})
    assert "did not train against the same attack" not in markdown(record)
    record["methods"]["b"]["attack"]["norm"] = "l2"
    assert "did not train against the same attack" in markdown(record)


def changed_form(name: str, searched: dict[str, Any], **fields: Any) -> str:
    """The report where `b` is this method, with these searched fields and these values in its chosen trial."""
    record = made_up({"agft": [0.30, 0.31, 0.32], "b": [0.40, 0.41, 0.42]})
    own = record["methods"]["b"]
    own["method"], own["search"]["space"] = name, searched
    own["chosen"]["config"]["method"] = METHODS[name](name=name, **fields).model_dump(mode="json")
    return markdown(record)


@pytest.mark.parametrize(
    ("searched", "fields", "text"),
    [
        ({"method.feature_weight": {"choices": [0, 20]}}, {"feature_weight": 20}, "searched, chosen 20"),
        ({"method.label_weight": {"low": 0, "high": 1}}, {}, "`label_weight` searched, chosen the paper's 0"),
        ({}, {"clean_weight": 0.5}, "`clean_weight` 0.5"),
        ({}, {"attack_on": "total", "label_weight": 1}, "`label_weight` 1; `attack_on` total"),
    ],
)
def test_agft_with_optional_terms_is_named_so(searched, fields, text):
    report = changed_form("agft", searched, **fields)
    first_lines = report.partition("## Result")[0]
    assert "**b is AGFT with our optional terms**" in first_lines
    assert text in first_lines
    assert "**agft is" not in first_lines
    assert "| b: AGFT with our optional terms | 3 |" in report


def test_the_papers_forms_are_not_remarked_on_whatever_their_hyperparameters():
    space = {"method.scale_ratio": {"low": 0.3, "high": 1.2}, "method.logit_scale": {"low": 10, "high": 200}}
    assert "**b is" not in changed_form("agft", space, scale_ratio=0.7, logit_scale=90)
    assert "**b is" not in changed_form("pmg-aft", {"method.clean_weight": {"low": 0, "high": 2}}, clean_weight=0.3)
    assert "**b is FARE with a term" in changed_form("fare", {"method.clean_weight": {"low": 0, "high": 0.8}})
    assert "| b | 3 |" in changed_form("agft", space, scale_ratio=0.7)


def test_who_searched_the_logit_scale_is_said_in_the_first_lines():
    scale = {"method.logit_scale": {"of_model": {"low": 0.5, "high": 2.0}}}
    first_lines = changed_form("tecoa", scale).partition("## Result")[0]
    assert "`method.logit_scale`: searched by b; held fixed by agft." in first_lines
    assert "searched by none; held fixed by agft; not a field of b." in changed_form("fare", {})


def test_whoever_is_ahead_is_reported_the_same_way():
    one, other = (
        {"agft": [0.30, 0.31, 0.32], "b": [0.40, 0.40, 0.43]},
        {"agft": [0.40, 0.40, 0.43], "b": [0.3, 0.31, 0.32]},
    )
    assert "robust accuracy is 10.0 points higher" in markdown(made_up(one))
    assert "robust accuracy is 10.0 points lower" in markdown(made_up(other))


def test_failed_and_infeasible_runs_are_told():
    record = made_up({"agft": [0.30, 0.31, 0.32], "b": [0.40, 0.41, 0.42]})
    changed = copy.deepcopy(record)
    changed["methods"]["b"]["runs"][0]["final"] = None
    changed["methods"]["b"]["runs"][1]["feasible"] = False
    changed["methods"]["b"]["chosen"] = {**changed["methods"]["b"]["chosen"], "feasible": False}
    text = markdown(conclude(changed))
    assert "seeds 101 failed" in text
    assert "1 of 3 runs are below a floor on the dev sets (seeds 102)" in text
    assert "No trial of b reached the floors" in text
    assert "| b | 2 |" in text


def test_the_report_is_written_with_its_figures_and_a_machine_readable_record(tmp_path):
    record = made_up({"agft": [0.30, 0.31, 0.32], "b": [0.40, 0.40, 0.43]})
    path = write_comparison(record, tmp_path)
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        assert (tmp_path / target).stat().st_size > 0, target
    assert json.loads((tmp_path / "comparison.json").read_text())["differences"]["b"]["robust_accuracy"]["separated"]


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
