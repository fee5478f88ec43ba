"""Which models are evaluated: loaded here once; workers get the very tensors that were hashed."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from study.artifacts.sources import fetch_weights, use_s3_weights
from study.errors import UserError
from study.evaluation.names import REFERENCE, REGISTERED, default_label, of_architecture
from study.evaluation.units import Device, Evaluation
from study.models.head import model_prefix, read_head
from study.session import storage_here
from study.spec.suite import capped, check_ready, checked_sets, default_suite, load_suite
from trainers.errors import UserError as TrainersUserError
from trainers.evaluation.record import ModelFacts
from trainers.evaluation.summary import model_facts
from trainers.model import bundled as tiny
from trainers.model.importing import import_checkpoint
from trainers.model.pretrained import load_clip, load_folder
from trainers.model.robust import RobustCLIP
from trainers.model.weights import is_weights_file, load_weights, read_metadata, save_weights
from trainers.schema.suite import Suite
from trainers.schema.training import ModelConfig

Say = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """A loaded model, and what it says it was tuned from (itself a MODEL), if it says so."""

    clip: nn.Module
    facts: ModelFacts
    origin: str | None

    def packed(self) -> bytes:
        """The model as one weights file."""
        with tempfile.TemporaryDirectory(prefix="agft-evaluate-") as folder:
            return save_weights(Path(folder) / "weights.safetensors", self.clip).read_bytes()


class Gallery:
    """Loads every MODEL once. `home` is where the embedded storage is kept."""

    def __init__(self, home: Path, say: Say) -> None:
        self.home, self.say = home, say
        self._loaded: dict[str, tuple[nn.Module, str | None]] = {}

    def subject(self, named: str, label: str | None = None, *, path: str = "MODEL") -> Subject:
        """The model that `named` means; every error starts with `path` and the name."""
        label = label or default_label(named)
        if named not in self._loaded:
            try:
                self._loaded[named] = self._load(named)
            except (TrainersUserError, UserError) as error:
                text = re.sub(r"^(model\.(pretrained|arch)|--arch|--base): ", "", str(error))
                raise UserError(f"{path}: {named}: {text.removeprefix(f'{named}: ')}") from error
        clip, origin = self._loaded[named]
        return Subject(clip, model_facts(clip, RobustCLIP(clip), label), origin)

    def _load(self, named: str) -> tuple[nn.Module, str | None]:
        if named.startswith(REGISTERED):
            named = self._registered(named)
        if named.startswith("s3:"):
            self._reach_storage()
            return _from_place(fetch_weights(named, self.say), named)
        if found := of_architecture(named):
            return self._of_architecture(*found)
        return _from_place(Path(named).expanduser(), named)

    def _of_architecture(self, arch: str, pretrained: str) -> tuple[nn.Module, str | None]:
        if pretrained.startswith("s3:"):
            self._reach_storage()
        config = ModelConfig(arch=arch, pretrained=pretrained)
        file = Path(pretrained).expanduser()
        if file.is_file() and not is_weights_file(file):
            found = import_checkpoint(file, arch)
            return found.clip, found.base and f"{arch}:{found.base}"
        clip = load_clip(config)
        if file.is_file():
            return clip, _origin(file)
        return clip, None if config.names_a_place() else f"{arch}:{pretrained}"  # a tag's model is nobody's tuned one

    def _registered(self, named: str) -> str:
        """The folder of a registered version; the champion's truth is in storage."""
        match = REFERENCE.match(named)
        assert match is not None, named
        bucket = self._reach_storage()
        if not bucket:
            raise UserError("AGFT_BUCKET must say in which bucket the registered models are")
        name, version = match["name"], match["version"]
        if version is None:
            head, _ = read_head(bucket, name)
            found = head.previous if match["alias"] == "previous" else head.champion
            if found is None:
                raise UserError(f"{model_prefix(bucket, name)} has no {match['alias'] or 'champion'}")
            version = str(found)
        return f"{model_prefix(bucket, name, int(version))}/"

    def _reach_storage(self) -> str:
        """The bucket, empty where none is named."""
        use_s3_weights()
        return storage_here(self.home, self.say)


def _from_place(path: Path, named: str) -> tuple[nn.Module, str | None]:
    """From a file or folder that says its architecture itself."""
    if path.is_dir():
        header = path / "open_clip_model.safetensors"
        return load_folder(path), _origin(header) if header.is_file() and read_metadata(header) else None
    if not is_weights_file(path):
        raise UserError(f"no weights file of agft: say its architecture, as in ViT-B-32-quickgelu:{named}")
    return load_weights(path), _origin(path)


def _origin(path: Path) -> str | None:
    """What a weights file says it was made from, as a MODEL."""
    metadata = read_metadata(path)
    extra, trained = metadata.get("extra", {}), metadata.get("config", {}).get("model", {})
    mixed = extra.get("interpolation", {}).get("base", {}).get("from")
    base = trained.get("pretrained") or mixed or extra.get("import", {}).get("base")
    if base is None and metadata.get("arch") == tiny.ARCH:
        base = "bundled"
    return base and f"{metadata['arch']}:{base}"


# What an evaluation is about: the models, what they are compared with, the suite; refused where they do not fit.

NONE = "none"
LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")  # part of a folder's name


@dataclass(frozen=True)
class Order:
    """What the command line asks for; None where it leaves the choice to us. `suite`: if it names one."""

    models: tuple[str, ...]
    labels: tuple[str, ...]
    suite: Suite | None
    original: str | None = None
    surrogate: str | None = None
    out: str | None = None
    workers: int | None = None
    cpus: float | None = None
    gpus: float | None = None
    batch_size: int | None = None
    samples: int | None = None
    sanity: str = "auto"
    mlflow: bool = True


@dataclass(frozen=True)
class Inputs:
    """Loaded models, each with the original it is compared with, and the sets that sanity checks are made on."""

    subjects: tuple[Subject, ...]
    originals: tuple[Subject | None, ...]
    surrogate: Subject | None
    suite: Suite
    checked: tuple[str, ...]

    def models(self) -> list[Subject]:
        """All that take part."""
        return [each for each in (*self.subjects, *self.originals, self.surrogate) if each is not None]

    def evaluations(self, device: Device) -> list[Evaluation]:
        """One for every model."""
        surrogate = None if self.surrogate is None else self.surrogate.facts
        return [
            Evaluation(subject.facts, None if original is None else original.facts, surrogate, self.suite, device)
            for subject, original in zip(self.subjects, self.originals, strict=True)
        ]


def read_inputs(order: Order, home: Path, say: Callable[[str], None]) -> Inputs:
    """Load what the order names. Raises `UserError`."""
    gallery = Gallery(home, say)
    subjects = _subjects(order, gallery)
    suite = capped(order.suite or _default_suite(subjects), order.samples)
    checked = checked_sets(order.sanity, suite)
    surrogate = _surrogate(order, suite, gallery)
    originals = tuple(_original(order, each, gallery, say) for each in subjects)
    return Inputs(subjects, originals, surrogate, suite, checked)


def _subjects(order: Order, gallery: Gallery) -> tuple[Subject, ...]:
    if order.labels and len(order.labels) != len(order.models):
        raise UserError(f"--label: {len(order.labels)} for {len(order.models)} models; give one for each, or none")
    if wrong := [label for label in order.labels if not LABEL.fullmatch(label)]:
        raise UserError(f"--label: {wrong[0]!r}: a label is 1 to 100 letters, digits and . _ -, no dash or dot first")
    labels = order.labels or (None,) * len(order.models)
    subjects = tuple(gallery.subject(named, label) for named, label in zip(order.models, labels, strict=True))
    names = [subject.facts.label for subject in subjects]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--label: two models are called {', '.join(twice)}; give every one a --label")
    return subjects


def _default_suite(subjects: Sequence[Subject]) -> Suite:
    suite = load_suite(default_suite([each.facts.arch for each in subjects]))
    check_ready(suite, suite.name)
    return suite


def _surrogate(order: Order, suite: Suite, gallery: Gallery) -> Subject | None:
    transfers = [entry.label for entry in suite.attacks if entry.attack.name == "transfer"]
    if transfers and order.surrogate is None:
        raise UserError(f"--surrogate: {', '.join(transfers)} needs a model to make its images on")
    if order.surrogate is None:
        return None
    if not transfers:
        raise UserError(f"--surrogate: no attack of suite {suite.name!r} is made on another model")
    return gallery.subject(order.surrogate, path="--surrogate")


def _original(order: Order, subject: Subject, gallery: Gallery, say: Callable[[str], None]) -> Subject | None:
    """The model that top-5 overlap and sanity checks compare with."""
    named = order.original or subject.origin
    if named is None:
        say(f"{subject.facts.label}: its file does not say what it was tuned from, so no top-5 overlap; see --original")
    if named is None or named == NONE:
        return None
    try:
        return gallery.subject(named, path="--original")
    except UserError as error:
        if order.original:
            raise
        raise UserError(
            f"{error}\n{subject.facts.label} says that it was tuned from it; name another place of it with --original, "
            "or --original none to go without top-5 overlap"
        ) from error
