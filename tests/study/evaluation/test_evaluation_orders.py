"""What is said about orders that cannot be carried out: wrong suites, wrong models, sets that are not prepared."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from study.errors import StudyFileError, UserError
from study.evaluation.names import check_names, default_label
from study.spec.suite import load_suite, parse_suite

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
    "line 9: attacks.4.eps = ['300/255']: 1.17647 is no length in the L-inf norm",
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
        "import sys\nfrom study.cli.main import main\n"
        "try: main(['evaluate', *sys.argv[1:]])\n"
        "finally: assert not {'torch', 'ray', 'mlflow'} & set(sys.modules)"
    )
    for arguments, said in (
        (["tiny-clip", "--suite", str(file)], SAID[-1]),
        (["nowhere.safetensors", "ViT-B-23:openai", "--original", "nix"], "nearest: ViT-B-32"),
        (["tiny-clip", "--suite", "zero-shot-15"], "datasets are not prepared; run: agft data prepare caltech101 "),
    ):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = {"PATH": "/usr/bin", "AGFT_HOME": str(tmp_path / "home"), "AGFT_DATA": str(tmp_path / "data")}
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, env=environment
        )
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3  # of computing: others may, too
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
        ("/", "model"),
    ],
)
def test_a_model_is_called_by_the_part_of_its_name_that_says_something(named: str, label: str) -> None:
    assert default_label(named) == label


@pytest.mark.parametrize("named", [".", "./", "/"])
def test_a_folder_whose_path_ends_without_a_name_is_a_folder_like_others(named, tmp_path, monkeypatch) -> None:
    from study.evaluation.models import Gallery

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"^MODEL: {named}: .* is no open_clip export: open_clip_config.json is miss"):
        Gallery(tmp_path / "home", lambda _: None).subject(named)


def test_torch_is_not_needed_to_plan() -> None:
    code = "import sys; from study.cli.main import main\n"
    code += "sys.argv = ['agft', 'evaluate', 'tiny-clip', '--plan', '--json']\n"
    code += "try: main()\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"apgd-100"' in done.stdout


def test_the_recipe_is_a_suite_that_can_be_run() -> None:
    path = Path(__file__).parents[3] / "study" / "recipes" / "suite.yaml"
    assert [entry.label for entry in load_suite(str(path)).attacks] == ["pgd-20", "square-500"]
