"""The first hour with one's own: 200 pictures and a ViT-B/32 of full size, from `agft init` to plain open_clip."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from study.begin.first import random_weights
from tests.support.pictures import drawn
from tests.support.services.real_run import Run, cleared

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
CLASSES, EACH = 8, 25
# Weights that nobody trained are right by chance: gates that ask for better than CLIP would decide by luck.
POLICY = {
    "better_than_clip": False,
    "final": False,
    "floors": {},
    "sanity": {"samples": 20, "checks": ["deterministic"]},
}
PLAIN = """
import sys, open_clip, torch
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{sys.argv[1]}")
tokens = open_clip.get_tokenizer(f"local-dir:{sys.argv[1]}")(["a picture of a star"])
assert torch.isfinite(model.encode_image(torch.zeros(1, 3, 224, 224))).all()
print(sum(each.numel() for each in model.visual.parameters()), tuple(model.encode_text(tokens).shape))
assert not any(name.split(".")[0] in ("study", "trainers") for name in sys.modules)
"""


def test_from_a_folder_of_pictures_and_a_file_of_weights_to_a_champion_in_plain_open_clip(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    for number in range(CLASSES * EACH):
        folder = pictures / f"kind-{number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        drawn("RGB", (96, 80), number).save(folder / f"{number:03d}.jpg", quality=95)
    weights = random_weights("ViT-B-32-quickgelu", tmp_path)
    with cleared(Run(tmp_path / "home", tmp_path / "mine.yaml")) as run:
        took: dict[str, float] = {}

        def timed(*arguments: str) -> str:
            began = time.monotonic()
            printed = run.agft(*arguments).stdout
            took[arguments[0]] = time.monotonic() - began
            return printed

        told = timed("init", str(run.file), "--data", str(pictures), "--weights", str(weights), "--gpus", "0")
        assert f"train       {CLASSES * 16} pictures of {CLASSES} classes" in told
        assert re.search(r"this CPU +fp32 +\d+ (s|min) +\d+ (s|min)", told), "what it will cost, as an estimate"
        study = run.file.read_text()
        study = re.sub(r"^goal: .*$", "goal: {}", study, flags=re.M)
        run.file.write_text(re.sub(r"^budget: .*$", "budget: {trials: 1}", study, flags=re.M))
        policy = tmp_path / "policy.yaml"
        policy.write_text(yaml.safe_dump(POLICY))

        assert "1 trial at once" in timed("plan", str(run.file))
        assert "1 of 1 trials done" in timed("run", str(run.file))
        assert "measured on 1" in timed("plan", str(run.file)), "a measured trial replaces the estimate"
        assert "champion: robust-clip version 1" in timed("promote", "mine", "--policy", str(policy))
        timed("pull", "robust-clip@champion", str(tmp_path / "champion"))
        timed("export", str(tmp_path / "champion"), str(tmp_path / "exported"))
        for folder in ("champion", "exported"):
            done = subprocess.run([sys.executable, "-c", PLAIN, str(tmp_path / folder)], capture_output=True, text=True,
                                  check=False)  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert done.stdout.split() == ["87849216", "(1,", "512)"]
        print({name: round(seconds) for name, seconds in took.items()})
