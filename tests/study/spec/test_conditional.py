"""Several methods in one study, and parameters that are searched only where they mean something."""

from __future__ import annotations

from collections import Counter
from typing import Any

import optuna
import pytest

from study.errors import StudyFileError
from study.search.proposals import first_proposals, given
from study.search.samplers import draw, sampler_for
from study.spec.checks import corners
from study.spec.config import StudyConfig, load_canonical
from study.spec.dimension import active, apply_params, grid, grid_size
from study.spec.files import parse_study
from study.spec.starts import warm_starts
from trainers.trial_config import TrialConfig

HEAD = """\
name: several
model: {arch: tiny-clip, pretrained: bundled}
data: {train: tiny-color-shapes, dev: [tiny-shapes], confirm: [tiny-colors], final: [tiny-letters]}
budget: {trials: 20}
method: {name: agft, clean_weight: 0.25}
"""
ALTERNATIVES = "alternatives: [{name: tecoa}, {name: fare, clean_weight: 0.5}]\n"
METHODS = (
    HEAD
    + ALTERNATIVES
    + """\
search:
  method.scale_ratio: {low: 0.2, high: 1.0}
  method.clean_weight: {low: 0.0, high: 0.9}
  train.optimizer.lr: {low: 1e-5, high: 1e-2, log: true}
"""
)
CHAIN = (
    HEAD
    + """\
search:
  train.optimizer.beta2: {low: 0.9, high: 0.99, when: {train.optimizer.name: adamw}}
  train.optimizer.name: {choices: [sgd, adamw]}
  train.trainable.blocks: {low: 1, high: 4, when: {train.trainable.part: [first_blocks, last_blocks]}}
  train.trainable.part: {choices: [all, first_blocks, last_blocks], when: {train.optimizer.name: sgd}}
"""
)


TECOA = "alternatives: [{name: tecoa}]\n"
START = "warm_starts: [{{method.name: {}, method.scale_ratio: 0.4}}]\n"


def study(text: str) -> StudyConfig:
    return parse_study(text, source="study.yaml")


def drawn(spec: StudyConfig, count: int) -> list[dict[str, Any]]:
    """Proposals, the first ones given."""
    return first_proposals(spec, count)


def problems_of(text: str) -> dict[str, str]:
    with pytest.raises(StudyFileError) as caught:
        study(text)
    return {f"{problem.line}:{problem.path}": problem.rule for problem in caught.value.problems}


# --- alternatives ------------------------------------------------------------------------------------------------


def test_a_trial_has_its_methods_block_and_is_searched_in_that_methods_fields_only():
    spec = study(METHODS + "sampler: {name: random}\n")
    fields = {"agft": {"scale_ratio", "clean_weight"}, "tecoa": set(), "fare": {"clean_weight"}}
    seen = Counter()
    for params in drawn(spec, 60):
        config = TrialConfig.model_validate(apply_params(spec.base(), params, spec.dimensions()))
        name = params["method.name"]
        seen[name] += 1
        own = {f"method.{field}" for field in fields[name]}
        assert set(params) == {"method.name", "train.optimizer.lr"} | own
        assert config.method.name == name
        assert all(getattr(config.method, path.partition(".")[2]) == params[path] for path in own)
        assert config.train.optimizer.lr == params["train.optimizer.lr"]
    assert min(seen[name] for name in fields) >= 10


def test_every_methods_own_values_go_first():
    spec = study(METHODS)
    assert drawn(spec, 3) == [
        {"method.name": "agft", "method.scale_ratio": 0.4, "method.clean_weight": 0.25, "train.optimizer.lr": 4e-4},
        {"method.name": "tecoa", "train.optimizer.lr": 4e-4},
        {"method.name": "fare", "method.clean_weight": 0.5, "train.optimizer.lr": 4e-4},
    ]


def test_a_study_with_alternatives_survives_its_canonical_form():
    spec = study(METHODS)
    assert load_canonical(spec.canonical()) == spec
    assert [method.name for method in spec.methods] == ["agft", "tecoa", "fare"]
    assert spec.method.name == "agft"


def test_presets_are_warm_starts_of_their_methods():
    spec = study(METHODS + "warm_starts: [fare-paper, agft-paper, {method.name: tecoa, train.optimizer.lr: 1e-4}]\n")
    starts = given(spec, spec.dimensions())
    assert [start.origin for start in starts] == ["fare-paper", "agft-paper", "warm start"]
    assert starts[0].values == {"method.name": "fare", "method.clean_weight": 0.5, "train.optimizer.lr": 1e-5}
    assert starts[1].values["method.scale_ratio"] == 0.4
    assert starts[1].values["train.optimizer.lr"] == 4e-4
    assert starts[2].values == {"method.name": "tecoa", "train.optimizer.lr": 1e-4}


def test_a_presets_value_outside_its_range_is_left_to_the_sampler():
    spec = study(HEAD + "search: {method.scale_ratio: {low: 0.5, high: 1.0}}\nwarm_starts: [agft-paper]\n")
    (start,) = warm_starts(spec, spec.dimensions())
    assert start.values == {}
    assert start.left_out == ("method.scale_ratio",)


def test_seeds_and_methods_make_one_grid():
    text = HEAD.replace("trials: 20", "trials: 9") + ALTERNATIVES
    spec = study(text + "search: {seed: {choices: [0, 1, 2]}}\nsampler: {name: grid}\n")
    points = drawn(spec, 9)
    assert [(p["method.name"], p["seed"]) for p in points] == [
        (name, seed) for name in ("agft", "tecoa", "fare") for seed in (0, 1, 2)
    ]
    configs = [apply_params(spec.base(), params, spec.dimensions()) for params in points]
    assert [(config["method"]["name"], config["seed"]) for config in configs[::4]] == [
        ("agft", 0),
        ("tecoa", 1),
        ("fare", 2),
    ]


@pytest.mark.parametrize(
    ("text", "place", "rule"),
    [
        (HEAD + "alternatives: [{name: tecoa}, {name: agft}]\n", "6:alternatives.1.name", "is there already"),
        (HEAD + "alternatives: [{name: tecao}]\n", "6:alternatives.0.name", "did you mean 'tecoa'"),
        (HEAD + "alternatives: [{name: fare, clean_wight: 1}]\n", "6:alternatives.0.clean_wight", "'clean_weight'"),
        (HEAD + TECOA + "search: {method.name: {choices: [tecoa]}}\n", "7:search.method.name", "leave it out"),
        (HEAD + TECOA + "search: {method.a: {low: 0, high: 1}}\n", "7:search.method.a", "agft or tecoa has"),
        (METHODS + "warm_starts: [tga-zsr-paper]\n", "11:warm_starts.0", "the study has agft, tecoa, fare"),
        (METHODS + "warm_starts: [agft-papr]\n", "11:warm_starts.0", "did you mean 'agft-paper'"),
        (METHODS + START.format("tecoa"), "11:warm_starts.0.method.scale_ratio", "is not searched for tecoa"),
        (METHODS + START.format("tga-zsr"), "11:warm_starts.0.method.name", "range ['agft', 'tecoa', 'fare']"),
    ],
)
def test_mistakes_about_methods_are_named(text, place, rule):
    found = problems_of(text)
    assert rule in found[place], found
    assert len(found) == 1


def test_an_alternative_that_the_architecture_excludes_is_named_at_its_own_block():
    text = HEAD.replace("arch: tiny-clip, pretrained: bundled", "arch: RN50-quickgelu, pretrained: openai")
    found = problems_of(text + "alternatives: [{name: tga-zsr}]\nsearch: {seed: {choices: [0, 1]}}\n")
    assert "needs the patch tokens of a ViT" in found["6:alternatives.0.name"]


# --- conditions --------------------------------------------------------------------------------------------------


def test_conditions_put_parents_first_and_hold_in_every_draw():
    spec = study(CHAIN + "sampler: {name: random}\n")
    assert [d.path for d in spec.dimensions()] == [
        "train.optimizer.name",
        "train.optimizer.beta2",
        "train.trainable.part",
        "train.trainable.blocks",
    ]
    kinds = Counter()
    for params in drawn(spec, 80):
        if params["train.optimizer.name"] == "adamw":
            assert set(params) == {"train.optimizer.name", "train.optimizer.beta2"}
        else:
            assert ("train.trainable.blocks" in params) == (params["train.trainable.part"] != "all")
        kinds[len(params)] += 1
    assert set(kinds) == {2, 3}


def test_values_of_what_does_not_exist_are_ignored():
    spec = study(CHAIN)
    params = {"train.optimizer.name": "adamw", "train.optimizer.beta2": 0.9, "train.trainable.blocks": 3}
    assert active(spec.dimensions(), params) == {"train.optimizer.name": "adamw", "train.optimizer.beta2": 0.9}
    config = apply_params(spec.base(), params, spec.dimensions())
    assert config["train"]["trainable"]["blocks"] == 4, "the default"


def test_a_grid_has_every_trial_once_whatever_does_not_exist_in_it():
    text = CHAIN.replace("{low: 0.9, high: 0.99,", "{choices: [0.9, 0.95],").replace(
        "{low: 1, high: 4,", "{choices: [1, 2],"
    )
    spec = study(text.replace("trials: 20", "trials: 7") + "sampler: {name: grid}\n")  # 2 + 1 + 2 * 2
    points = list(grid(spec.dimensions()))
    assert len(points) == grid_size(spec.dimensions(), most=100) == len({tuple(point.items()) for point in points}) == 7
    assert drawn(spec, 7) == points
    assert "the grid has 7 points" in problems_of(text + "sampler: {name: grid}\n")["4:budget.trials"]


def test_corners_are_looked_at_where_they_exist_and_nowhere_else():
    entry = "train.trainable.blocks: {low: 1, high: 24, when: {train.trainable.part: all}}"
    space = "search:\n  train.trainable.part: {choices: [all, last_blocks]}\n  "
    study(HEAD + space + entry + "\n")  # 24 blocks of 4 hurt nobody where all learn
    found = problems_of(HEAD + space + entry.replace("part: all", "part: last_blocks") + "\n")
    assert found == {"8:search.train.trainable.blocks": "tiny-clip has 4 blocks"}
    assert len(list(corners(study(CHAIN)))) == 2 + 1 + 2 * 2


@pytest.mark.parametrize(
    ("when", "rule"),
    [
        ("adamw", "must be {PATH: VALUE or [VALUES]}"),
        ("{}", "must be {PATH: VALUE or [VALUES]}"),
        ("{train.optimizer.nam: sgd}", "is not searched; did you mean 'train.optimizer.name'?"),
        ("{train.epochs: 3}", "'train.epochs' is not searched; searched choices: train.optimizer.name"),
        ("{train.optimizer.lr: 0.1}", "has a range"),
        ("{train.optimizer.name: adam}", "'adam' is no choice of train.optimizer.name; choices: sgd, adamw"),
        ("{train.optimizer.name: []}", "an empty list never holds"),
        ("{train.optimizer.name: [sgd, adamw]}", "names every choice of train.optimizer.name"),
        ("{train.optimizer.beta2: 0.9}", "cannot depend on itself"),
    ],
)
def test_what_is_wrong_with_a_condition_is_named_with_its_rule(when, rule):
    head, beta2, name = CHAIN[: CHAIN.index("  train.trainable.blocks")].rpartition("  train.optimizer.beta2")
    text = head + beta2 + name.replace("{train.optimizer.name: adamw}", when)
    text += "  train.optimizer.lr: {low: 1e-5, high: 1e-2}\n"
    found = problems_of(text)
    assert list(found) == ["7:search.train.optimizer.beta2"]
    assert rule in found["7:search.train.optimizer.beta2"]


def test_conditions_in_a_circle_and_conditions_that_exclude_each_other_are_found():
    circle = (
        HEAD
        + """\
search:
  train.optimizer.name: {choices: [sgd, adamw], when: {train.compile: true}}
  train.compile: {choices: [true, false], when: {attack.norm: l2}}
  attack.norm: {choices: [l2, linf], when: {train.optimizer.name: sgd}}
"""
    )
    (rule,) = problems_of(circle).values()
    assert "train.optimizer.name -> train.compile -> attack.norm -> train.optimizer.name" in rule
    never = CHAIN.replace("{train.trainable.part: [first", "{train.optimizer.name: adamw, train.trainable.part: [first")
    assert "can never hold" in problems_of(never)["9:search.train.trainable.blocks"]
    no_field = METHODS.replace("high: 1.0}", "high: 1.0, when: {method.name: tecoa}}")
    assert "can never hold" in problems_of(no_field)["8:search.method.scale_ratio"]


def test_a_condition_on_the_method_narrows_it_further():
    spec = study(METHODS.replace("high: 0.9}", "high: 0.9, when: {method.name: fare}}") + "sampler: {name: random}\n")
    found = drawn(spec, 30)
    assert {p["method.name"] for p in found if "method.clean_weight" in p} == {"fare"}
    assert {p["method.name"] for p in found if "method.scale_ratio" in p} == {"agft"}


# --- samplers in a conditional space -----------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_sampler_finds_the_better_method_and_its_best_value(sampler):
    """agft's value rises with its scale ratio up to 1, tecoa's is 0.5 and fare's 0.3 whatever is sampled."""
    spec = study(METHODS + f"sampler: {{name: {sampler}}}\nwarm_starts: []\nseed: 3\n")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    toy = optuna.create_study(direction="maximize")
    late = []
    for number in range(80):
        toy.sampler = sampler_for(spec, number)
        params = draw(toy.ask(), spec.dimensions())
        toy.tell(number, params.get("method.scale_ratio", {"tecoa": 0.5, "fare": 0.3}.get(params["method.name"], 0)))
        late.append(params)
    assert sum(params["method.name"] == "agft" for params in late[40:]) >= 24
    modelled = toy.sampler.infer_relative_search_space(toy, toy.trials[-1])
    assert ("method.scale_ratio" in modelled) == (sampler == "tpe"), "TPE models what occurs together"
    assert "train.optimizer.lr" in modelled
    ratios = [params["method.scale_ratio"] for params in late[40:] if params["method.name"] == "agft"]
    assert sum(ratios) / len(ratios) > (0.75 if sampler == "tpe" else 0.5)


@pytest.mark.parametrize("sampler", ["qmc", "cmaes"])
def test_what_a_sampler_cannot_model_is_still_drawn(sampler):
    spec = study(METHODS + f"sampler: {{name: {sampler}, startup_trials: 3}}\nwarm_starts: []\n")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    toy = optuna.create_study(direction="maximize")
    found = []
    for number in range(24):
        toy.sampler = sampler_for(spec, number)
        found.append(draw(toy.ask(), spec.dimensions()))
        toy.tell(number, found[-1]["train.optimizer.lr"])
    assert {params["method.name"] for params in found} == {"agft", "tecoa", "fare"}
    assert all(("method.scale_ratio" in params) == (params["method.name"] == "agft") for params in found)
