"""`agft import`, `export`, `interpolate` as a person runs them, and weights at addresses of the real embedded S3."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import torch
from click.testing import CliRunner, Result

from infra import storage
from infra.errors import ChecksumMismatch
from study.artifacts.sources import fetch_weights, use_s3_weights
from study.cli.main import main
from study.cli.weights import show_measured
from tests.support.official import agft_file, base_weights, openai_vit, tecoa_file, toy_architectures, toy_clip
from tests.support.small import small_clip, small_sets
from trainers.arithmetic import exact_math
from trainers.errors import MissingWeights, UserError
from trainers.model.interpolation import interpolate
from trainers.model.pretrained import load_clip
from trainers.model.robust import RobustCLIP
from trainers.model.weights import export_open_clip, hash_weights, load_weights, read_metadata, save_weights
from trainers.schema.training import ModelConfig

VIT = "toy-vit-quickgelu"


@pytest.fixture(autouse=True, scope="module")
def architectures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with toy_architectures(tmp_path_factory.mktemp("configs")):
        yield


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service_environment: object) -> Path:
    monkeypatch.setenv("AGFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


def agft(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def done(*arguments: object) -> Result:
    result = agft(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: object) -> str:
    """The one message of a command that ends with 2, without a traceback."""
    result = agft(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if not line.endswith(" ...")]
    assert len(lines) == 1, lines
    return lines[0]


def test_an_official_file_imported_and_exported_is_the_same_model_in_plain_open_clip(tmp_path: Path) -> None:
    encoder, ours = openai_vit(), tmp_path / "ours.safetensors"
    path, base = agft_file(tmp_path / "official.pth", encoder), base_weights(tmp_path, VIT)
    output = done("import", path, "--arch", VIT, "--base", base, "--out", ours).stdout
    assert "layout     agft (recognised)" in output
    assert f"{{arch: {VIT}, pretrained: {ours}}}" in output
    done("export", ours, tmp_path / "plain")
    plain = open_clip.create_model(f"local-dir:{tmp_path / 'plain'}", require_pretrained=True).eval()
    clip, images = load_clip(ModelConfig(arch=VIT, pretrained=str(ours))), torch.rand(3, 3, 32, 32)
    tokens = torch.randint(1, 99, (4, 8))
    with torch.no_grad(), exact_math():
        pixels = RobustCLIP(clip)._normalised(images)
        assert torch.equal(plain.encode_image(pixels), clip.encode_image(pixels))
        assert torch.equal(plain.encode_text(tokens), clip.encode_text(tokens))
        assert plain.logit_scale == clip.logit_scale
    done("export", ours, tmp_path / "back.pth", "--layout", "agft")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["modules"]["clip.visual"]
    assert {name: value.tolist() for name, value in back.items()} == {n: v.tolist() for n, v in encoder.items()}


def test_mistakes_are_one_message_and_exit_code_2(tmp_path: Path) -> None:
    path, base = tecoa_file(tmp_path / "t.pth.tar", openai_vit()), base_weights(tmp_path, VIT)
    out = tmp_path / "out.safetensors"
    assert "use --arch toy-vit-quickgelu" in refused("import", path, "--arch", "toy-vit", "--out", out)
    assert refused("import", path, "--arch", VIT, "--out", out).startswith("--base: OpenAI has no")
    wrong = refused("import", path, "--arch", VIT, "--base", tmp_path / "none.pt", "--out", out)
    assert wrong.startswith("--base: no such checkpoint")
    assert "a weights file ends in" in refused(
        "import", path, "--arch", VIT, "--base", base, "--out", tmp_path / "o.pt"
    )
    assert not out.exists()
    out.touch()
    assert "exists already" in refused("import", path, "--arch", VIT, "--base", base, "--out", out)
    assert "`agft import` makes one" in refused("export", path, tmp_path / "plain")
    assert "no such file" in refused("export", tmp_path / "none.safetensors", tmp_path / "plain")
    for option, value in (("--alphas", "a,b"), ("--alphas", "0.5,1.5"), ("--eps", "nought"), ("--on", "tiny-shape")):
        assert refused("interpolate", base, "--out", tmp_path / "mix", option, value).startswith(option)


LENGTH = "is no length in the L-inf norm: pixels are in [0, 1]"


@pytest.mark.parametrize(
    "command",
    [["interpolate", "x.safetensors", "--out", "mix", "--on", "tiny-shapes"], ["retrieve", "x", "--on", "flickr30k"]],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize(
    ("eps", "rule"),
    [("4", f"4 {LENGTH}, so write 4/255 or so; 4 of 255 grey levels is 4/255"), ("300/255", f"1.17647 {LENGTH}"),
     ("1/255,8", f"8 {LENGTH}"), ("-1/255", "greater than or equal to 0"), ("4/0", "neither a number nor a fraction"),
     ("nan", "neither a number nor a fraction"), ("true", "neither a number nor"), ("1/255,1/255", "a radius twice")],
)  # fmt: skip
def test_a_radius_that_is_none_is_refused_wherever_one_is_given(command: list[str], eps: str, rule: str) -> None:
    found = refused(*command, "--eps", eps)
    assert found.startswith(f"--eps: {eps!r}: ")
    assert rule in found


@pytest.mark.parametrize("folder", ["/", ".", "..", "./empty", "empty/"])
@pytest.mark.parametrize(
    "command", [["interpolate", "{}", "--out", "mix"], ["export", "{}", "out"]], ids=lambda c: c[0]
)
def test_a_folder_without_weights_is_one_message_whatever_it_is_called(
    command: list[str], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here/empty").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    told = refused(*(each.format(folder) for each in command))
    assert told.endswith(" is no open_clip export: open_clip_config.json is missing"), told


def test_a_remark_and_a_warning_go_to_standard_error(tmp_path: Path) -> None:
    path, base = tecoa_file(tmp_path / "t.pth.tar", openai_vit()), base_weights(tmp_path, VIT)
    result = done("import", path, "--arch", VIT, "--base", base, "--out", tmp_path / "o.safetensors")
    assert "--layout pmg-aft" in result.stderr
    assert "as far from" in result.stderr  # random weights have nothing to do with the base
    assert "as far from" not in result.stdout


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A small CLIP, and robust weights that say they were trained from it."""
    base = save_weights(tmp_path / "base.safetensors", small_clip())
    robust = small_clip()
    with torch.no_grad():
        for value in robust.visual.parameters():
            value += 0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    config = {"model": {"arch": "small-clip", "pretrained": str(base)}}
    with small_sets():
        yield base, save_weights(tmp_path / "robust.safetensors", robust, config=config)


def test_interpolated_files_carry_their_alpha_and_both_ends(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, robust = pair
    done("interpolate", robust, "--alphas", "0,0.3,1", "--out", tmp_path / "mix")
    files = {alpha: tmp_path / "mix" / f"alpha-{alpha:g}.safetensors" for alpha in (0, 0.3, 1)}
    near, far = load_weights(base), load_weights(robust)
    for alpha, path in files.items():
        assert hash_weights(load_weights(path)) == hash_weights(interpolate(near, far, alpha))
        kept = read_metadata(path)["extra"]["interpolation"]
        assert kept["alpha"] == alpha
        assert kept["base"] == {"from": str(base), "model_sha256": hash_weights(near)}
        assert kept["robust"]["sha256"] == storage.hash_file(robust)
    assert hash_weights(load_weights(files[0])) == hash_weights(near)
    assert hash_weights(load_weights(files[1])) == hash_weights(far)
    other = save_weights(tmp_path / "other.safetensors", small_clip(seed=4))
    assert "text sides differ" in refused("interpolate", robust, "--base", other, "--out", tmp_path / "mix2")


def test_every_alpha_and_both_ends_are_measured(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--alphas", "0.5", "--on", "small-dev,small-other", "--eps", "2/255,8/255", "--samples", "20")
    result = done("interpolate", pair[1], "--out", tmp_path / "a", *options, "--json")
    found = json.loads(result.stdout)
    assert [row["alpha"] for row in found["measured"]] == [0, 0.5, 1]
    assert [Path(row["file"]).name for row in found["files"]] == ["alpha-0.5.safetensors"]
    for row in found["measured"]:
        assert set(row["datasets"]) == {"small-dev", "small-other"}
        assert set(row["datasets"]["small-dev"]) == {"2/255", "8/255"}
        assert row["robust_accuracy"] <= row["clean_accuracy"]
    assert "3 of 3" in result.stderr
    show_measured(found)
    table = capsys.readouterr().out
    for words in ("alpha 0: base", "alpha 0.5", "alpha 1: robust", "PGD-10, eps 2/255, 8/255, 20 images a set"):
        assert words in table


def test_a_file_and_a_folder_in_s3_load_as_local_ones_and_are_fetched_once(
    prefix: str, cache: Path, tmp_path: Path
) -> None:
    path = save_weights(tmp_path / "w.safetensors", small_clip())
    folder = export_open_clip(path, tmp_path / "export")
    storage.put_file(path, f"{prefix}/w.safetensors")
    for file in folder.iterdir():
        storage.put_file(file, f"{prefix}/export/{file.name}")
    storage.put_bytes(f"{prefix}/export/deep/extra.json", b"{}")
    use_s3_weights()
    for address in (f"{prefix}/w.safetensors", f"{prefix}/export/"):
        clip = load_clip(ModelConfig(arch="small-clip", pretrained=address))
        assert hash_weights(clip) == hash_weights(small_clip())
    kept = [file for file in cache.rglob("*.safetensors") if file.is_file()]
    assert sorted(file.name for file in kept) == ["open_clip_model.safetensors", "w.safetensors"]
    before = {file: file.stat().st_ino for file in kept}
    for address in (f"{prefix}/w.safetensors", f"{prefix}/export/"):
        fetch_weights(address)
    assert {file: file.stat().st_ino for file in kept} == before
    measured = load_clip(ModelConfig(arch="small-clip", pretrained=f"{prefix}/w.safetensors"))
    assert hash_weights(measured) == hash_weights(small_clip())


def test_a_damaged_copy_is_fetched_again_and_a_replaced_object_is_another_entry(
    prefix: str, cache: Path, tmp_path: Path
) -> None:
    uri = f"{prefix}/w.safetensors"
    storage.put_file(save_weights(tmp_path / "w.safetensors", small_clip()), uri)
    first = fetch_weights(uri)
    whole = first.read_bytes()
    first.write_bytes(whole[:-1] + b"x")
    assert fetch_weights(uri).read_bytes() == whole
    storage.put_file(save_weights(tmp_path / "v.safetensors", small_clip(1)), uri)
    second = fetch_weights(uri)
    assert second != first
    assert second.read_bytes() == (tmp_path / "v.safetensors").read_bytes()


def test_an_object_that_others_stored_is_remembered_by_its_bytes(prefix: str, cache: Path) -> None:
    bucket, key = storage.split_uri(f"{prefix}/foreign.pt")
    storage.client().put_object(Bucket=bucket, Key=key, Body=b"bytes without our metadata")
    path = fetch_weights(f"{prefix}/foreign.pt")
    path.write_bytes(b"damaged")
    assert fetch_weights(f"{prefix}/foreign.pt").read_bytes() == b"bytes without our metadata"


def test_bytes_that_are_not_the_promised_ones_are_refused_and_not_kept(prefix: str, cache: Path) -> None:
    bucket, key = storage.split_uri(f"{prefix}/w.pt")
    storage.client().put_object(Bucket=bucket, Key=key, Body=b"other bytes", Metadata={"sha256": "1" * 64})
    with pytest.raises(ChecksumMismatch):
        fetch_weights(f"{prefix}/w.pt")
    assert not [file for file in cache.rglob("*.pt") if not file.name.startswith(".")]


def test_two_processes_at_once_both_get_the_whole_file(prefix: str, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "big.bin").write_bytes(os.urandom(20_000_000))
    digest = storage.put_file(tmp_path / "big.bin", f"{prefix}/big.bin").sha256
    code = "import sys; from study.artifacts.sources import *; from infra import storage as s; "
    code += "print(s.hash_file(fetch_weights(sys.argv[1])))"
    command = [sys.executable, "-c", code, f"{prefix}/big.bin"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=300)[0].strip() for process in both] == [digest, digest]
    assert [file.name for file in cache.rglob("*") if file.is_file() and not file.name.startswith(".")] == ["big.bin"]


def test_what_is_not_there_is_said_with_the_nearest_that_is(prefix: str, cache: Path) -> None:
    storage.put_bytes(f"{prefix}/folder/a.json", b"{}")
    with pytest.raises(MissingWeights, match=r"model\.pretrained: s3://.*/none: no such object$"):
        fetch_weights(f"{prefix}/none")
    with pytest.raises(MissingWeights, match=r"there is a folder of this name: write s3://.*/folder/$"):
        fetch_weights(f"{prefix}/folder")
    with pytest.raises(MissingWeights, match=r"found 1 objects, but no open_clip_config\.json"):
        fetch_weights(f"{prefix}/folder/")
    with pytest.raises(MissingWeights, match="found nothing"):
        fetch_weights(f"{prefix}/none/")
    with pytest.raises(MissingWeights, match="no such"):
        fetch_weights("s3://no-such-bucket-here/key")


def test_credentials_in_an_address_are_refused_and_not_shown(cache: Path) -> None:
    with pytest.raises(UserError) as caught:
        fetch_weights("s3://AKIAEXAMPLE:verysecret@bucket/key")
    assert "verysecret" not in str(caught.value)


def test_a_champion_in_s3_is_exported_and_mixed_by_its_address(prefix: str, cache: Path, tmp_path: Path) -> None:
    path = save_weights(tmp_path / "w.safetensors", toy_clip(VIT, seed=2))
    for file in export_open_clip(path, tmp_path / "export").iterdir():
        storage.put_file(file, f"{prefix}/0001/{file.name}")
    done("export", f"{prefix}/0001/", tmp_path / "back.pth", "--layout", "agft")
    done("export", f"{prefix}/0001/", tmp_path / "plain")
    assert hash_weights(load_clip(ModelConfig(arch=VIT, pretrained=str(tmp_path / "plain")))) == hash_weights(
        toy_clip(VIT, seed=2)
    )
    storage.put_file(path, f"{prefix}/w.safetensors")
    done("interpolate", f"{prefix}/0001/", "--base", f"{prefix}/w.safetensors", "--out", tmp_path / "mix")
    assert refused("export", f"{prefix}/none", tmp_path / "x") == f"WEIGHTS: {prefix}/none: no such object"
