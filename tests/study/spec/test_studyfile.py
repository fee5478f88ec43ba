"""A study file is checked in one go: every mistake with line, path, value and rule, in a moment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from optuna.distributions import IntDistribution

from study.errors import StudyFileError, UserError
from study.plan.study import remarks
from study.search.proposals import first_proposals
from study.spec.config import StudyConfig, load_canonical
from study.spec.files import load_study, parse_study
from study.spec.promotion import parse_floor
from tests.support.study_files import minimal
from trainers.objectives import METHODS

FOLDER = Path(__file__).parents[3] / "study" / "recipes"
NO_STUDIES = ("compare", "suite")
RECIPES = [path for path in sorted(FOLDER.glob("*.yaml")) if not path.stem.startswith(NO_STUDIES)]
GOOD = minimal(search="\n  method.scale_ratio: {low: 0.2, high: 1.0}", budget="{trials: 3}")


def problems_of(text: str) -> dict[str, str]:
    with pytest.raises(StudyFileError) as caught:
        parse_study(text, source="study.yaml")
    return {f"{problem.line}:{problem.path}": problem.rule for problem in caught.value.problems}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_a_valid_study(path):
    assert load_study(path).budget.trials >= 1


def test_a_study_survives_its_canonical_form():
    spec = parse_study(GOOD, source="study.yaml")
    assert load_canonical(spec.canonical()) == spec
    assert load_canonical(spec.canonical()).spec_hash() == spec.spec_hash()


MODEL = "model: {arch: tiny-clip, pretrained: bundled}"


def with_model(arch: str, pretrained: str = "openai", method: str = "{name: agft}") -> str:
    text = GOOD.replace(MODEL, f"model: {{arch: {arch}, pretrained: {pretrained}}}")
    return text.replace("{name: agft}", method).replace(
        "  method.scale_ratio: {low: 0.2, high: 1.0}\n", "  seed: {low: 0, high: 9}\n"
    )


@pytest.mark.parametrize("arch", ["RN50-quickgelu", "ViT-B-16-SigLIP"])
def test_attention_maps_need_a_vit_with_a_class_token(arch):
    found = problems_of(with_model(arch, "s3://bucket/weights.safetensors", "{name: tga-zsr}"))
    assert f"needs the patch tokens of a ViT with a class token; {arch} has" in found["2:method.name"]
    assert (
        parse_study(with_model("ViT-B-32-quickgelu", "openai", "{name: tga-zsr}"), source="x").method.name == "tga-zsr"
    )


def searching(entry: str, more: str = "", arch: str = "tiny-clip", pretrained: str = "bundled") -> dict[str, str]:
    return problems_of(with_model(arch, pretrained).replace("seed: {low: 0, high: 9}", entry) + more)


def test_a_part_that_the_encoder_does_not_have_is_refused_also_among_searched_choices():
    part = "train.trainable.part: {choices: [all, visual_prompt]}"
    assert (
        "RN50-quickgelu has a ResNet"
        in searching(part, arch="RN50-quickgelu", pretrained="openai")["6:search.train.trainable.part"]
    )
    found = searching("seed: {low: 0, high: 9}", "train: {trainable: {part: last_blocks, blocks: 100}}\n")
    assert found == {"8:train.trainable.blocks": "tiny-clip has 4 blocks"}
    found = searching("seed: {low: 0, high: 9}", "train: {trainable: {part: visual_prompt}}\n")
    assert found == {
        "8:train.trainable": "the input of tiny-clip is 32 pixels wide; at most 16"
    } or "at most 16" in str(found)
    found = searching("train.trainable.blocks: {low: 1, high: 24}", "train: {trainable: {part: last_blocks}}\n")
    assert found == {"6:search.train.trainable.blocks": "tiny-clip has 4 blocks"}


def test_values_that_are_allowed_alone_are_refused_together():
    assert "is no length in the L-inf norm" in searching("attack.eps: {choices: [4/255, 4]}")["6:search.attack.eps"]
    found = searching("attack.norm: {choices: [l2, linf]}", "attack: {norm: l2, eps: 2}\n")
    assert "is no length in the L-inf norm" in found["8:attack.eps"]
    found = searching("model.arch: {choices: [tiny-clip, nonsense]}")
    assert found == {"6:search.model.arch": "no such architecture"}


def test_a_warmup_that_takes_the_whole_training_is_refused_with_the_number_of_updates():
    rule = searching("seed: {low: 0, high: 9}", "train: {warmup: {steps: 1000}}\n")["8:train.warmup"]
    assert "the training has 380 updates: the rate would never fall" in rule


def test_a_mapping_is_no_choice_and_a_place_is_no_fraction():
    entry = "method.logit_scale: {choices: [{of_model: 0.5}, {of_model: 1.0}]}"
    assert "is no choice; write {of_model: {choices: [...]}}" in searching(entry)["6:search.method.logit_scale"]
    text = with_model("ViT-B-32-quickgelu").replace(
        "seed: {low: 0, high: 9}", "model.pretrained: {choices: [a/b.pt, c/d.pt]}"
    )
    (dimension,) = parse_study(text, source="x", base=Path("/w")).dimensions()
    assert dimension.distribution.choices == ("/w/a/b.pt", "/w/c/d.pt")


def test_an_unknown_architecture_is_named_with_the_nearest():
    rule = problems_of(with_model("ViT-B-32-quickgel"))["3:model.arch"]
    assert "no such architecture; did you mean 'ViT-B-32-quickgelu'" in rule
    assert parse_study(with_model("my-own", "s3://bucket/weights.safetensors"), source="x").model.arch == "my-own"


def test_openais_weights_without_quickgelu_are_refused_with_the_right_name():
    assert "write ViT-B-32-quickgelu" in problems_of(with_model("ViT-B-32"))["3:model.arch"]
    assert "exists for tiny-clip only" in problems_of(with_model("ViT-B-32", "bundled"))["3:model.pretrained"]


@pytest.mark.parametrize(
    ("workers", "gpus", "rule"),
    [(2, 0.5, "2 workers need a GPU each"), (1, 2, "a worker uses one GPU"), (4, 1.5, "a worker uses one GPU")],
)
def test_workers_that_share_a_gpu_and_gpus_that_would_idle_are_refused(workers, gpus, rule):
    text = GOOD + f"resources: {{workers: {workers}, gpus_per_worker: {gpus}}}\n"
    [(place, said)] = problems_of(text).items()
    assert place.endswith(":resources.gpus_per_worker")
    assert rule in said


@pytest.mark.parametrize(("workers", "gpus"), [(1, 0), (2, 0), (1, 0.25), (1, 1), (8, 1)])
def test_a_part_of_a_gpu_is_for_one_worker_and_a_whole_one_for_each_of_several(workers, gpus):
    text = GOOD + f"resources: {{workers: {workers}, gpus_per_worker: {gpus}}}\n"
    assert parse_study(text, source="x").resources.gpus_per_worker == gpus


def test_estimates_are_for_the_search_alone():
    fast = "evaluate: {PART: {protocol: fast, attack: {name: pgd}}}"
    text = GOOD if "evaluate:" not in GOOD else "\n".join(x for x in GOOD.splitlines() if not x.startswith("evaluate:"))
    assert parse_study(f"{text}\n{fast.replace('PART', 'select')}\n", source="x").evaluate.select.protocol == "fast"
    [(place, said)] = problems_of(f"{text}\n{fast.replace('PART', 'final')}\n").items()
    assert "evaluate.final" in place
    assert "fast is for evaluate.select" in said


def test_what_may_be_searched_belongs_to_the_method():
    found = problems_of(GOOD.replace("{name: agft}", "{name: tecoa}"))
    rule = "no such field; did you mean 'method.logit_scale'? tecoa has logit_scale"
    assert found == {"6:search.method.scale_ratio": rule}
    found = problems_of(GOOD.replace("{name: agft}", "{name: agtf}"))
    assert found == {"2:method.name": f"no such method; did you mean 'agft'? known: {', '.join(METHODS)}"}
    found = problems_of(GOOD.replace("{name: agft}", "{scale_ratio: 0.4}"))
    assert found == {"2:method.name": f"is required; known: {', '.join(METHODS)}"}


def test_a_warmup_is_a_fraction_or_steps_in_the_file_and_in_the_search():
    assert parse_study(GOOD + "train: {warmup: {steps: 100}}\n", source="x").train.warmup.steps == 100
    (dimension,) = parse_study(
        GOOD.replace("method.scale_ratio: {low: 0.2, high: 1.0}", "train.warmup: {steps: {low: 10, high: 100}}"),
        source="x",
    ).dimensions()
    assert dimension.value(20) == {"steps": 20}
    assert isinstance(dimension.distribution, IntDistribution)
    assert "less than 1" in problems_of(GOOD + "train: {warmup: 3}\n")["8:train.warmup"]


FIVE_MISTAKES = """\
name: small
method: {name: agft, scale_ratoi: 0.4}
model: {arch: tiny-clip, pretrained: bundled}
attack: {eps: 4/0}
data: {train: tiny-color-shapes, dev: [tiny-shape], confirm: [tiny-colors], final: [tiny-letters]}
search:
  method.logit_scal: {of_model: {low: 0.5, high: 2}}
goal: {subject_to: {clean_accuracy: ">= 1.5"}}
budget: {trials: 3}
"""


def test_five_mistakes_are_five_messages_with_line_path_value_and_rule():
    found = problems_of(FIVE_MISTAKES)
    assert set(found) == {
        "2:method.scale_ratoi",
        "4:attack.eps",
        "5:data.dev.0",
        "7:search.method.logit_scal",
        "8:goal.subject_to.clean_accuracy",
    }
    assert "did you mean 'scale_ratio'" in found["2:method.scale_ratoi"]
    assert "fraction such as 4/255" in found["4:attack.eps"]
    assert "did you mean 'tiny-shapes'" in found["5:data.dev.0"]
    assert "did you mean 'method.logit_scale'" in found["7:search.method.logit_scal"]
    assert "never be reached" in found["8:goal.subject_to.clean_accuracy"]


def test_the_command_line_answers_five_mistakes_with_exit_2(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(FIVE_MISTAKES)
    command = [sys.executable, "-c", "from study.cli.main import main; main()", "validate", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 5
    assert "Traceback" not in done.stderr
    assert "'4/0'" in done.stderr


def test_the_schema_is_known_without_torch_or_ray():
    code = "import sys, study.spec.files, study.cli.main\n"
    code += "assert not {'torch', 'ray', 'mlflow', 'open_clip'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("entry", "rule"),
    [
        ("{low: 1.0, high: 0.2}", "low must be below high"),
        ("{low: 0.2}", "needs low and high"),
        ("{low: -1, high: 1}", "not allowed for this field"),
        ("{low: 0, high: 1, log: true}", "log range needs low > 0"),
        ("{low: 0.1, high: 1, logg: true}", "did you mean 'log'"),
        ("{choices: []}", "non-empty list"),
        ("0.4", "must be {low, high"),
        ("{of_eps: {low: 0.1, high: 1}}", "cannot be given by of_eps"),
    ],
)
def test_a_search_entry_that_its_field_forbids_is_named_with_its_rule(entry, rule):
    found = problems_of(GOOD.replace("{low: 0.2, high: 1.0}", entry))
    assert rule in found["6:search.method.scale_ratio"]


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("data.train", "same for every trial"),
        ("goal.metric", "same for every trial"),
        ("train.epoch", "'train.epochs'"),
    ],
)
def test_only_fields_of_a_trial_can_be_searched(path, rule):
    found = problems_of(GOOD.replace("method.scale_ratio", path))
    assert rule in found[f"6:search.{path}"]


def test_roles_must_not_share_a_dataset():
    found = problems_of(GOOD.replace("final: [tiny-letters]", "final: [tiny-shapes]"))
    assert "already has the role 'dev'" in found["4:data.final.0"]


def test_a_key_that_is_written_twice_is_found():
    assert "first on line 1" in problems_of(GOOD + "name: other\n")["8:name"]


def test_broken_yaml_and_a_missing_file_are_user_errors():
    assert next(iter(problems_of("name: [a\n"))).endswith("YAML")
    with pytest.raises(UserError, match="cannot be read"):
        load_study(Path("/nowhere/study.yaml"))


def test_a_warm_start_names_searched_paths_inside_their_ranges():
    found = problems_of(GOOD + "warm_starts: [{method.scale_ratio: 3}, {train.epochs: 2}]\n")
    assert "outside its range" in found["8:warm_starts.0.method.scale_ratio"]
    assert "is not searched" in found["8:warm_starts.1.train.epochs"]


@pytest.mark.parametrize(
    ("text", "clip", "number"),
    [(">= 0.55", 0.9, 0.55), (">= clip", 0.6, 0.6), (">= clip - 0.06", 0.66, 0.6), (">= clip * 0.5", 0.6, 0.3)],
)
def test_a_floor_is_a_number_or_relative_to_the_unmodified_model(text, clip, number):
    assert parse_floor(text).resolve(clip) == pytest.approx(number)


@pytest.mark.parametrize("text", ["0.5", ">= clip 0.1", ">= clop", "<= 0.5", ">= ", ">= 2"])
def test_what_is_no_floor_is_refused(text):
    with pytest.raises(ValueError, match=r"floor|reached"):
        parse_floor(text)


def test_defaults_are_the_papers():
    spec = StudyConfig.model_validate(yaml.safe_load(GOOD.replace("small", "defaults")))
    base = spec.base()
    assert base["method"]["scale_ratio"] == 0.4
    assert base["method"]["logit_scale"] == {"of_model": 1.8}
    assert base["attack"]["eps"] == pytest.approx(1 / 255)
    assert (base["attack"]["steps"], base["train"]["epochs"], base["train"]["batch_size"]) == (2, 10, 256)
    assert base["train"]["optimizer"] == {
        "name": "sgd",
        "lr": 4e-4,
        "momentum": 0.9,
        "beta2": 0.95,
        "weight_decay": 0.0,
    }


GRID = GOOD.replace("{low: 0.2, high: 1.0}", "{choices: [0.4, 0.7, 1.0]}") + "sampler: {name: grid}\n"


def test_a_grid_tries_every_combination_once():
    spec = parse_study(
        GRID.replace("search:", "search:\n  attack.steps: {choices: [1, 2]}").replace("3}", "6}"), source=""
    )
    points = first_proposals(spec, 6)
    assert [tuple(point.values()) for point in points] == [(s, r) for s in (1, 2) for r in (0.4, 0.7, 1.0)]


def test_a_grid_needs_choices_and_a_budget_of_its_size():
    assert "the grid has 3 points" in problems_of(GRID.replace("trials: 3", "trials: 4"))["7:budget.trials"]
    ranges = GRID.replace("{choices: [0.4, 0.7, 1.0]}", "{low: 0.2, high: 1.0}")
    assert "choices" in problems_of(ranges)["6:search.method.scale_ratio"]


FRONT = GOOD + "goal: {metrics: [clean_accuracy, robust_accuracy]}\n"


def test_several_metrics_stop_no_trial_early_and_say_so_when_asked_to():
    spec = parse_study(FRONT, source="x")
    assert (spec.scheduler.name, spec.goal.metric) == ("none", "clean_accuracy")
    assert load_canonical(spec.canonical()) == spec
    assert parse_study(GOOD, source="x").scheduler.name == "asha"
    found = problems_of(FRONT + "scheduler: {name: median, patience: 2}\nsampler: {name: cmaes}\n")
    assert "never enters the front of clean_accuracy, robust_accuracy; write none" in found["9:scheduler.name"]
    assert "full-length ones; leave it out" in found["9:scheduler.patience"]
    assert "write nsga2, gp or tpe" in found["10:sampler.name"]


@pytest.mark.parametrize(
    ("goal", "rule"),
    [
        ("{metrics: [clean_accuracy]}", "two or more different ones"),
        ("{metrics: [clean_accuracy, clean_accuracy]}", "two or more different ones"),
        ("{metric: robust_accuracy, metrics: [clean_accuracy, robust_accuracy]}", "not both"),
    ],
)
def test_a_goal_has_one_metric_or_several_different_ones(goal, rule):
    assert rule in problems_of(GOOD + f"goal: {goal}\n")["8:goal"]


def test_a_prior_study_is_another_one():
    assert "this study's own name" in problems_of(GOOD + "prior: {studies: [old, small]}\n")["8:prior.studies.1"]


@pytest.mark.parametrize(
    ("more", "remark"),
    [
        ("sampler: {name: tpe, population: 8}", "sampler.population: has no effect with tpe"),
        ("scheduler: {name: median, reduction_factor: 2}", "scheduler.reduction_factor: has no effect with median"),
        ("scheduler: {min_delta: 0.1}", "scheduler.min_delta: has no effect without scheduler.patience"),
        ("sampler: {name: nsga2}", "sampler.population: 16, so the 3 trials do not fill a second generation"),
        ("sampler: {name: cmaes}", "sampler.startup_trials: 10, so cmaes proposes none of the 3 trials"),
        (
            "sampler: {name: qmc}\ngoal: {subject_to: {clean_accuracy: '>= 0.5'}}",
            "goal.subject_to: qmc does not look at",
        ),
        ("train: {epochs: 1}", "scheduler.name: asha has no epoch of 1 to stop a trial at"),
        ("scheduler: {name: median}", "scheduler.min_trials: 4: no trial of 3 knows so many"),
        ("sampler: {name: grid}\nwarm_starts: [{}]", "warm_starts: has no effect with a grid"),
    ],
)
def test_what_has_no_effect_is_remarked(more, remark):
    text = GOOD.replace("{low: 0.2, high: 1.0}", "{choices: [0.4, 0.6, 0.8]}") if "grid" in more else GOOD
    assert any(line.startswith(remark) for line in remarks(parse_study(text + more + "\n", source="x")))


@pytest.mark.parametrize(
    ("gpus", "precision", "said"),
    [(1, "fp32", "leaves a GPU's tensor cores idle"), (0, "bf16", "on a CPU saves no time")],
)
def test_arithmetic_that_costs_time_for_nothing_is_remarked(gpus, precision, said):
    def of(name):
        text = GOOD + f"resources: {{gpus_per_worker: {gpus}}}\ntrain: {{precision: {name}}}\n"
        return remarks(parse_study(text, source="x"))

    assert any(line.startswith("train.precision: ") and said in line for line in of(precision))
    assert not any(line.startswith("train.precision") for line in of("auto"))


def test_a_plain_study_with_trials_enough_has_no_remarks():
    assert remarks(parse_study(GOOD.replace("trials: 3", "trials: 40"), source="x")) == []
