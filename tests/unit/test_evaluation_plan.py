"""What an evaluation is cut into, what identifies it, and what is said about orders that cannot be carried out."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from study.errors import StudyFileError, UserError
from study.evaluation_lock import alone_in
from study.evaluation_names import check_names, default_label
from study.evaluation_place import Folder
from study.evaluation_plan import UNIT_IMAGES, Evaluation, cost, units
from study.evaluation_pool import Hands, Job, best_job, hands_for
from study.evaluation_suite import capped, checked_sets, load_suite, parse_suite
from trainers.result import ModelFacts
from trainers.suite import SUITES, Suite

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


WRONG = """\
name: my suite
datasets: [tiny-digit, tiny-letters, tiny-letters, 3]
attack: []
attacks:
  - {attack: {name: pdg}, eps: [4/255]}
  - {attack: {name: pgd, step: 3}}
  - {attack: {name: cw}, norm: l2, sampels: 5}
  - {attack: {name: cw}, norm: l2}
  - {attack: {name: pgd}, eps: [300/255]}
protocol: strct
"""
SAID = (
    "line 1: name = 'my suite'",
    "line 2: datasets: 'tiny-letters' is there twice",
    "line 2: datasets.0: 'tiny-digit' is not known; did you mean 'tiny-digits'?",
    "line 2: datasets.3 = 3",
    "line 3: attack = []: no such field; did you mean 'attacks'?",
    "line 5: attacks.0.attack.name = 'pdg': no such attack; did you mean 'pgd'?",
    "line 6: attacks.1.attack.step = 3: no such field; did you mean 'steps'?",
    "line 7: attacks.2.sampels = 5: no such field; did you mean 'samples'?",
    "line 8: attacks.3.attack.name: 'cw' is defined in linf, not in l2",
    "line 9: attacks.4 = ",
    "line 10: protocol = 'strct'",
)


def test_every_mistake_of_a_suite_file_is_said_with_line_path_value_and_rule() -> None:
    with pytest.raises(StudyFileError) as raised:
        parse_suite(WRONG, source="mine.yaml")
    lines = str(raised.value).splitlines()
    assert len(lines) == len(SAID), "\n".join(lines)
    for said in SAID:
        assert any(line.startswith(f"mine.yaml: {said}") for line in lines), said


def test_rules_that_need_a_well_formed_file_are_said_with_their_lines_too() -> None:
    text = "name: a\ndatasets:\n  - tiny-digits\n  - pcam\nattacks:\n  - attack: {name: apgd-t}\nsource: [cifar10]\n"
    with pytest.raises(StudyFileError) as raised:
        parse_suite(text, source="s")
    assert "s: line 6: attacks.0.attack.name: 'apgd-t' needs at least 4 classes" in str(raised.value)
    assert "(dataset pcam)" in str(raised.value)
    assert "s: line 7: source: 'cifar10' is none of the datasets" in str(raised.value)


def test_a_suite_file_is_a_suite(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: a\ndatasets: [tiny-digits]\nattacks: [{attack: {name: pgd, steps: 3}, eps: [4/255, 1e-2]}]\n"
    )
    found = load_suite(str(path))
    assert found.attacks[0].eps == (4 / 255, 0.01)
    with pytest.raises(UserError, match="cannot be read"):
        load_suite("nowhere.yaml")
    with pytest.raises(ValueError, match=r"--suite .*'zero-shot' is not known; did you mean 'zero-shot-15'"):
        load_suite("zero-shot")


def test_a_wrong_order_is_answered_within_three_seconds_and_nothing_is_started(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(WRONG)
    code = (
        "import sys\nfrom study.cli import main\n"
        "try: main(['evaluate', *sys.argv[1:]])\n"
        "finally: assert not {'torch', 'ray', 'mlflow'} & set(sys.modules)"
    )
    for arguments, said in (
        (["tiny-clip", "--suite", str(file)], SAID[-1]),
        (["nowhere.safetensors", "ViT-B-23:openai", "--original", "nix"], "nearest: ViT-B-32"),
        (["tiny-clip", "--suite", "zero-shot-15"], "datasets are not prepared; run: agft data prepare caltech101 "),
    ):
        started = time.monotonic()
        environment = {"PATH": "/usr/bin", "AGFT_HOME": str(tmp_path / "home"), "AGFT_DATA": str(tmp_path / "data")}
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, env=environment
        )
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
        assert time.monotonic() - started < 3
    assert not (tmp_path / "home").exists()


def test_all_wrong_names_of_models_are_said_at_once() -> None:
    with pytest.raises(UserError) as raised:
        check_names(["nowhere.pt", "ViT-B-32", "models:/", "tiny-clip"], original="ViT-B-23:openai", surrogate="nix")
    lines = str(raised.value).splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["MODEL", "nowhere.pt"], ["MODEL", "ViT-B-32"], ["MODEL", "models:/"], ["--original", "ViT-B-23:openai"],
        ["--surrogate", "nix"],
    ]  # fmt: skip
    assert "which of its weights? Such as ViT-B-32:TAG" in lines[1]
    check_names(["tiny-clip", "models:/robust", "s3://b/k"], original="none")


@pytest.mark.parametrize(
    ("named", "label"),
    [
        ("tiny-clip", "tiny-clip"),
        ("tiny-clip:bundled", "tiny-clip"),
        ("ViT-B-32-quickgelu:openai", "ViT-B-32-quickgelu-openai"),
        ("runs/robust one.safetensors", "robust-one"),
        ("s3://agft/models/robust-clip/0001/", "robust-clip-0001"),
        ("s3://agft/studies/demo/trials/3/a000001/best.safetensors", "a000001-best"),
        ("models:/robust-clip/2", "robust-clip-2"),
        ("models:/robust-clip@previous", "robust-clip-previous"),
    ],
)
def test_a_model_is_called_by_the_part_of_its_name_that_says_something(named: str, label: str) -> None:
    assert default_label(named) == label


def job(name: str, group: str, price: float = 1) -> Job:
    return Job(name, (group,), price, "measure", ())


def test_a_worker_goes_on_with_what_it_has_in_memory_then_takes_what_nobody_has() -> None:
    waiting = [job("a1", "a"), job("b1", "b", 5), job("b2", "b", 6), job("c1", "c", 9), job("c2", "c", 9)]
    assert best_job(waiting, ("b",), [("a",)]).name == "b2"
    assert best_job(waiting, ("x",), [("c",)]).name == "b2"
    assert best_job(waiting, None, [("a",), ("b",), ("c",)]).group == ("c",)


def test_workers_are_as_many_as_fit_and_as_there_is_work() -> None:
    def found(total: dict[str, float], jobs: int = 99, **asked: float) -> Hands:
        return hands_for(total, jobs, **{"workers": None, "cpus": None, "gpus": None, **asked})  # type: ignore[arg-type]

    assert found({"CPU": 2}) == Hands(1, 2, 0)
    assert found({"CPU": 16}) == Hands(4, 4, 0)
    assert found({"CPU": 2}, workers=2) == Hands(2, 1, 0)
    assert found({"CPU": 16, "GPU": 2}) == Hands(2, 4, 1)
    assert found({"CPU": 16, "GPU": 2}, gpus=0) == Hands(4, 4, 0)
    assert found({"CPU": 16, "GPU": 2}, gpus=0.5, cpus=1) == Hands(4, 1, 0.5)
    assert found({"CPU": 16}, jobs=2) == Hands(2, 4, 0)
    assert found({"CPU": 2}, workers=3, cpus=0.5) == Hands(3, 0.5, 0)
    with pytest.raises(UserError, match=r"--workers: 3 of 1 CPU and 0 GPU each; the cluster has 2 CPU .* room for 2"):
        found({"CPU": 2}, workers=3, cpus=1)
    with pytest.raises(UserError, match="room for 0"):
        found({"CPU": 2}, gpus=1)


def test_one_process_at_a_time_has_a_folder_and_the_other_is_told_which(tmp_path: Path) -> None:
    place = Folder(tmp_path / "evaluation")
    refusal = pytest.raises(UserError, match=r"evaluation.*: process \d+ on .* is evaluating into it")
    with alone_in(place), refusal, alone_in(place):
        pass
    with alone_in(place):
        pass


def test_torch_is_not_needed_to_plan() -> None:
    code = "import sys; from study.cli import main; sys.argv = ['agft', 'evaluate', 'tiny-clip', '--plan', '--json']\n"
    code += "try: main()\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"apgd-100"' in done.stdout


def test_the_recipe_is_a_suite_that_can_be_run() -> None:
    path = Path(__file__).parents[2] / "study" / "recipes" / "suite.yaml"
    assert [entry.label for entry in load_suite(str(path)).attacks] == ["pgd-20", "square-500"]
