"""`agft init`: a study file that fits this machine, the folder of one's own, and the weights of one's own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from infra.checks.machine import gpus_here
from study.artifacts.ready import wrong_weights
from study.begin import recipes as shipped
from study.begin.folder import Proposal, link, propose
from study.begin.schema import editor_line, kept_schema
from study.begin.template import study_name, study_text
from study.comparison.file import parse_comparison
from study.console import counted
from study.errors import UserError
from study.spec.config import StudyConfig
from study.spec.files import parse_study
from study.spec.places import weights_at
from study.spec.suite import parse_suite
from trainers.model import bundled as tiny

DEFAULT_ARCH, DEFAULT_TAG = "ViT-B-32-quickgelu", "openai"


@dataclass(frozen=True)
class Wanted:
    """What a person asks for; None is "whatever fits"."""

    recipe: str | None = None
    preset: str | None = None
    arch: str | None = None
    pretrained: str | None = None
    data: Path | None = None
    gpus: int | None = None
    smoke: bool = False


@dataclass(frozen=True)
class Written:
    """What was written. `study`: None for a comparison or a suite."""

    source: str
    study: StudyConfig | None
    proposal: Proposal | None
    gpus: int

    def lines(self, path: Path) -> Iterator[str]:
        """For a person."""
        yield f"{path}: written from {self.source}"
        if self.proposal is not None:
            yield f"  roles, {self.proposal.how}"
            yield from (f"    {line}" for line in self.proposal.lines())
        if self.study is not None:
            where = counted(self.gpus, "GPUs") if self.gpus else "CPU cores"
            trials, epochs = counted(self.study.budget.trials, "trials"), counted(self.study.train.epochs, "epochs")
            yield f"  {trials} of {epochs}, for {where}"
            if not self.gpus and self.study.model.arch != tiny.ARCH:
                yield "  without a GPU this shows the whole way on few pictures and is no result; for a GPU: --gpus 1"


def write_first(path: Path, wanted: Wanted, home: Path) -> Written:
    """Write a study file, or what the recipe is; `UserError` for what does not go together, with nothing written."""
    name = study_name(path)
    if wanted.recipe and wanted.preset:
        raise UserError("--recipe, --preset: a recipe says its preset; give one of them")
    if wanted.smoke and wanted.pretrained:
        raise UserError("--smoke, --weights: a smoke form has random weights; give one of them")
    if wanted.recipe is None and wanted.data is not None:
        chosen: str | None = "agft-folder" if wanted.preset is None else None
    elif wanted == Wanted(smoke=wanted.smoke):
        chosen = shipped.FIRST
    else:
        chosen = wanted.recipe
    model = {"arch": wanted.arch or DEFAULT_ARCH, "pretrained": weights_at(wanted.pretrained or DEFAULT_TAG, Path())}
    text = shipped.recipe(chosen) if chosen else study_text(name, preset=wanted.preset or "agft-paper", model=model)
    if "datasets:" in text and "attacks:" in text:
        parse_suite(text, source=str(path))
        return _write(path, text, "suite", home, f"the recipe {chosen}")
    text = shipped.with_block(text, "name", name)
    if chosen and (wanted.arch or wanted.pretrained):
        text = shipped.with_block(text, "model", {**shipped.block(text, "model"), **{
            key: model[key] for key, given in (("arch", wanted.arch), ("pretrained", wanted.pretrained)) if given
        }})  # fmt: skip
    gpus = gpus_here() if wanted.gpus is None else wanted.gpus
    arch = (shipped.block(text, "model") or {}).get("arch")
    if arch != tiny.ARCH:
        text = shipped.for_devices(text, gpus)
    elif not gpus and (shipped.block(text, "resources") or {}).get("gpus_per_worker"):
        text = shipped.with_block(text, "resources", {"workers": 1, "cpus_per_worker": 1})  # it trains on one core
    if wanted.smoke:
        text = shipped.smoke(text, None if arch == tiny.ARCH else str(random_weights(str(arch), home)))
        gpus = 0
    proposal = propose(wanted.data.expanduser()) if wanted.data is not None else None
    place = path.absolute().with_name(f"{path.stem}-data")
    if proposal is not None:
        sets = link(proposal, place)
        text = shipped.with_fields(text, "data", {role: at if role == "train" else [at] for role, at in sets.items()})
        images = sum(map(len, proposal.sets["train"].values()))
        batch = (shipped.block(text, "train") or {}).get("batch_size", 256)
        text = shipped.with_fields(
            text, "train", {"batch_size": min(batch, 1 << (max(1, images // 4)).bit_length() - 1)}
        )
    source = f"the recipe {chosen}" if chosen else f"the preset {wanted.preset or 'agft-paper'}"
    try:
        if "methods" in text and shipped.block(text, "methods"):
            parse_comparison(text, source=str(path), base=path.parent)
            return _write(path, text, "compare", home, source)
        study = parse_study(text, source=str(path), base=path.parent)
        if wrong := wrong_weights(study.model):
            raise UserError(wrong)
    except UserError:  # nothing is left of what is not written
        if proposal is not None:
            shutil.rmtree(place)
        raise
    return _write(path, text, "study", home, source, study=study, proposal=proposal, gpus=gpus)


def _write(
    path: Path, text: str, kind: str, home: Path, source: str, *, study: StudyConfig | None = None,
    proposal: Proposal | None = None, gpus: int = 0,
) -> Written:  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{editor_line(kept_schema(kind, home))}\n{text}", encoding="utf-8")
    return Written(source, study, proposal, gpus)


def random_weights(arch: str, home: Path) -> Path:
    """Weights of an architecture that nobody has trained, made once: for smoke forms."""
    path = home / "smoke" / f"{arch}.safetensors"
    if not path.exists():
        import torch

        from trainers.model.build import create
        from trainers.model.weights import save_weights

        path.parent.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng(devices=[]):
            save_weights(path, create(arch, arch))
    return path
