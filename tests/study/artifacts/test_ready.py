"""What a study lacks on this machine is said by every command that would come to need it, before anything starts."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from infra.checks.diagnosis import Diagnosis, failed, ok
from study.artifacts.ready import silent_services, trials_here
from study.cli.main import main
from study.control.submit import check_places, refuse_lacking
from study.errors import UserError
from study.spec.files import load_study
from tests.support.small import small_clip
from tests.support.study_files import minimal
from trainers.model import bundled as tiny
from trainers.model.weights import save_weights


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AGFT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PATH", str(tmp_path))  # without nvidia-smi no GPU is seen
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def told(command: str, file: Path) -> tuple[int, str]:
    done = CliRunner().invoke(main, [command, str(file)])
    return done.exit_code, " ".join(done.output.split())


def test_wrong_weights_are_known_to_validate_plan_and_run(tmp_path: Path) -> None:
    save_weights(tmp_path / "other.safetensors", small_clip())
    torch.save({"visual.conv1.weight": torch.ones(2)}, tmp_path / "part.pt")
    (tmp_path / "page.bin").write_text("<html>")
    cases = {
        "none.safetensors": "no such file; put it there",
        "other.safetensors": "model.arch: /",
        "part.pt": "has the layout 'fare' of another code; make weights of it first",
        "page.bin": "a web page or XML",
        "local-dir:home": "no such file",
    }
    file = tmp_path / "study.yaml"
    for name, words in cases.items():
        file.write_text(minimal(model=f"{{arch: tiny-clip, pretrained: '{name}'}}"))
        for command in ("validate", "plan", "run"):
            code, text = told(command, file)
            assert (code, words in text) == (2, True), (command, name, text)
    file.write_text(minimal(model=f"{{arch: tiny-clip, pretrained: {tiny.weights_path()}}}"))
    assert told("validate", file)[0] == 0


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("ViT-B-32, pretrained: laion2b", "model.pretrained: open_clip does not know 'laion2b'; nearest: laion2b_"),
        ("ViT-B-32-quickgelu, pretrained: laion2b_s34b_b79k", "model.pretrained: open_clip does not know 'laion2b_s34"),
        ("ViT-H-14-quickgelu, pretrained: openai", "model.pretrained: open_clip does not know 'openai'; known: dfn5b"),
        ("ViT-B-32, pretrained: metaclip_400m", "use arch: ViT-B-32-quickgelu"),
        ("tiny-clip, pretrained: bundle", "nearest: bundled"),
    ],
)
def test_a_tag_that_the_architecture_has_not_is_known_to_validate_plan_and_run(
    model: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(minimal(model=f"{{arch: {model}}}"))
    for command in ("validate", "plan", "run"):
        code, text = told(command, file)
        assert (code, words in text) == (2, True), (command, text)
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # whatever the nodes of another cluster have
    assert told("validate", file)[0] == 2


def test_a_study_for_four_gpus_is_planned_but_not_run_where_there_are_none(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(minimal(resources="{workers: 4, gpus_per_worker: 1}"))
    for command, code in (("validate", 0), ("plan", 0), ("run", 2)):
        found, text = told(command, file)
        assert found == code, text
        assert "4 GPUs (4 workers), this machine has" in text
        assert "and 0 GPUs: 0 trials fit" in text
    assert trials_here(load_study(file))[0] == 0


def test_datasets_that_are_not_here_are_a_remark_of_validate_and_refused_by_run_and_plan_needs_folders_alone(
    tmp_path: Path,
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        minimal(data="{train: imagenet-train, dev: folder:pics, confirm: tiny-colors, final: tiny-letters}")
    )
    for command, code in (("validate", 0), ("plan", 2), ("run", 2)):
        found, text = told(command, file)
        assert found == code, text
        assert ("data.train: 'imagenet-train' is not prepared" in text) == (command != "plan")
        assert f"folder:{tmp_path}/pics" in text


def test_services_that_do_not_answer_are_notes_of_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        alive = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert silent_services({"AWS_ENDPOINT_URL": alive, "MLFLOW_TRACKING_URI": "sqlite:///x.db"}) == []
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        (found,) = silent_services({name: alive})
        assert found.startswith(f"{name}: 127.0.0.1:")
    assert "does not answer" in found
    monkeypatch.setenv("MLFLOW_TRACKING_URI", alive)
    (tmp_path / "study.yaml").write_text(minimal())
    assert "MLFLOW_TRACKING_URI: 127.0.0.1:" in told("plan", tmp_path / "study.yaml")[1]


def test_a_cluster_is_asked_for_files_of_this_machine_before_anything_is_stored(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(minimal(model="{arch: tiny-clip, pretrained: weights.safetensors}"))
    spec, said = load_study(tmp_path / "study.yaml"), list[str]()
    with pytest.raises(UserError, match=r"cannot be asked for /x/weights\.safetensors: .*127\.0\.0\.1"):
        check_places("http://127.0.0.1:1", spec, ["/x/weights.safetensors"], said.append)
    assert said == ["asking the cluster's nodes for /x/weights.safetensors ..."]


LACKS = failed("weights", "model.pretrained: /x/w.pt: no such file", "put it there")
PICTURES = failed("datasets", "data.train: 'folder:/x/pics': no such folder", "put it there")
HAS = ok("weights", "/x/w.pt: fits tiny-clip")


@pytest.mark.parametrize(
    ("rows", "lines"),
    [([replace(HAS, where="a"), replace(LACKS, where="b")], ["b: model.pretrained: /x/w.pt: no such file"]),
     ([replace(LACKS, where="a"), replace(LACKS, where="a"), replace(PICTURES, where="b")],
      ["a: model.pretrained: /x/w.pt: no such file", "b: data.train: 'folder:/x/pics': no such folder"]),
     ([LACKS], ["a node: model.pretrained: /x/w.pt: no such file"])],
    ids=["one of two nodes", "each something", "a node without a name"],
)  # fmt: skip
def test_nodes_without_a_file_are_named_with_what_they_lack_and_the_way_out(
    rows: list[Diagnosis], lines: list[str]
) -> None:
    with pytest.raises(UserError) as told:
        refuse_lacking(rows, ["/x/w.pt"])
    assert str(told.value).splitlines()[:-1] == lines
    assert "put them on a file system that all nodes share under this path, or into S3" in str(told.value)


def test_nodes_that_have_all_are_taken_and_those_that_do_not_answer_are_not() -> None:
    refuse_lacking([HAS, ok("datasets", "here")], ["/x/w.pt"])
    for rows, said in (([], "they do not answer"), ([failed("ray", "no agft", "install it")], "no agft; install it")):
        with pytest.raises(UserError, match=f"^the nodes cannot be asked for /x/w.pt: {said}$"):
            refuse_lacking(rows, ["/x/w.pt"])
