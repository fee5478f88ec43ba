"""A backup back into a stack: objects first, then studies, then the models' records, HEAD last.

In this order an interrupted restore can be repeated, and nothing names what is not there. Reading a backup runs no code
from it and writes no file of its names.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import storage
from infra.errors import ChecksumMismatch, Conflict, Missing
from infra.tracking.runs import Tracker
from study.console import Say
from study.errors import StudyFailed, UserError
from study.models.registry import follow_head
from study.operations.backup import FORMAT, PREFIXES, S3, copy_back, objects_of
from study.store.archive import SUM, check_sum, import_study, seal
from study.store.store import StudyStore, study_names
from study.tracking import EXPERIMENT, end_study, mark_best, project_all, project_best, untold

MLFLOW_SECONDS = 300.0


LARGEST_BYTES = 1 << 30  # of a file in a backup: a study of a million epochs has less


@dataclass(frozen=True)
class Restoration:
    """What came back. `unfinished`: trials that go on; `anew`: those of them whose checkpoint is nowhere."""

    studies: list[str]
    there_already: list[str]
    champions: dict[str, Any]
    objects: int
    lacking: int
    unfinished: int
    anew: int


def restore_backup(
    url: str, bucket: str, place: str, *, objects: str | None, tracking_uri: str | None, say: Say
) -> Restoration:
    """Put a backup into the database at `url` and the bucket. `objects`: where their copies are, if they were moved.

    `UserError`, before anything is written, for a file that is none, and where a study or champion of the same name and
    another origin is there already. `StudyFailed` if a champion's weights are neither in the bucket nor at `objects`.
    """
    with tempfile.TemporaryDirectory(prefix="agft-restore-") as folder:
        found = _content(place, _fetch(place, Path(folder)), bucket)
        studies, models = found.studies, found.models
        there = _check_studies(url, studies)
        _check_heads(bucket, models)
        _check_keys(place, [*found.listed, *models])
        copied, lacking = _objects(objects or found.objects, bucket, found.listed, models, say)
        for name, study in studies.items():
            if name not in there:
                path = Path(folder) / "study.json"
                path.write_text(json.dumps(study))
                import_study(url, path)
        say(f"{len(studies) - len(there)} studies are in the database")
        _put_models(bucket, models)
    if tracking_uri:
        _ship(url, list(studies), tracking_uri, say)
    unfinished, anew = _unfinished(url, list(studies))
    heads = {name.split("/")[1]: json.loads(data) for name, data in models.items() if name.endswith("/HEAD.json")}
    if tracking_uri:
        for name in heads:  # registered versions and aliases are made from HEAD and the manifests
            follow_head(bucket, name, tracking_uri)
    return Restoration(sorted(studies), sorted(there), heads, copied, len(lacking), unfinished, anew)


@dataclass(frozen=True)
class _Content:
    """What a backup holds, with the addresses of here. `listed`: keys of its objects, whose copies are at `objects`."""

    studies: dict[str, Any]
    models: dict[str, bytes]
    listed: list[str]
    objects: str | None


def _content(place: str, file: Path, bucket: str) -> _Content:
    """Read all of it, before anything is written; `UserError` for a file that is none, or not whole."""
    try:
        with tarfile.open(file, "r:") as tar:
            return _whole(place, tar, bucket)
    except UserError:
        raise
    except KeyError as error:
        reason = f"it lacks {error.args[0]}"
        raise UserError(f"{place}: not a backup written by `agft backup`, or not whole ({reason})") from None
    except (tarfile.TarError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{place}: not a backup written by `agft backup`, or not whole ({error})") from None


def _whole(place: str, tar: tarfile.TarFile, bucket: str) -> _Content:
    members = {entry.name: entry for entry in tar.getmembers() if entry.isfile()}
    about = json.loads(_read(tar, members, "backup.json"))
    if about.get("format") != FORMAT:
        raise UserError(f"{place}: format {about.get('format')!r}, expected {FORMAT!r}")
    source, objects = str(about["bucket"]), about.get("objects")
    studies = {
        name: _moved_study(json.loads(_read(tar, members, f"studies/{name}.json")), f"{place}: {name}", source, bucket)
        for name in about["studies"]
    }
    models = {name: _read(tar, members, name) for name in members if name.startswith("models/")}
    records = {name: json.loads(data) for name, data in models.items()}
    if source != bucket:
        models = {
            name: json.dumps(_moved(record, source, bucket), indent=1).encode() for name, record in records.items()
        }
    for name in (name for name in records if name.endswith("/HEAD.json")):
        int(records[name]["champion"])
    entries = json.loads(_read(tar, members, "objects.json"))
    listed = [str(entry["uri"]).removeprefix(f"{S3}{source}/") for entry in entries]
    return _Content(studies, models, listed, None if objects is None else str(objects))


def _fetch(place: str, folder: Path) -> Path:
    if not place.startswith(S3):
        path = Path(place).expanduser()
        if not path.is_file():
            raise UserError(f"{place}: no such file")
        return path
    try:
        storage.get_file(place, folder / "backup.tar")
    except Missing:
        raise UserError(f"{place}: no such object") from None
    return folder / "backup.tar"


def _read(tar: tarfile.TarFile, content: dict[str, tarfile.TarInfo], name: str) -> bytes:
    if content[name].sparse is not None or content[name].size > LARGEST_BYTES:
        raise UserError(f"{tar.name!r}: {name} has {content[name].size:,} bytes; at most {LARGEST_BYTES:,}")
    opened = tar.extractfile(content[name])
    assert opened is not None, "members that are files can be read"
    return opened.read()


def _check_keys(place: str, keys: list[str]) -> None:
    """A key becomes the name of a file below the objects' folder."""
    for key in keys:
        parts = key.split("/")
        if parts[0] not in PREFIXES or ".." in parts or "" in parts:
            raise UserError(f"{place}: names an object {key!r}, which no study and no model has; nothing was restored")


def _moved_study(study: dict[str, Any], place: str, source: str, bucket: str) -> dict[str, Any]:
    """A study's file, checked by its sum as it was written, and sealed anew with the addresses of here."""
    check_sum(study, place)
    moved = {key: _moved(value, source, bucket) for key, value in study.items()}
    return {**moved, SUM: seal(moved)}


def _moved(value: Any, source: str, bucket: str) -> Any:
    """`value` with addresses in the old bucket turned into addresses in the new one."""
    if isinstance(value, dict):
        return {key: _moved(inner, source, bucket) for key, inner in value.items()}
    if isinstance(value, list):
        return [_moved(inner, source, bucket) for inner in value]
    if isinstance(value, str) and value.startswith(f"{S3}{source}/"):
        return f"{S3}{bucket}/" + value.removeprefix(f"{S3}{source}/")
    return value


def _check_studies(url: str, studies: dict[str, Any]) -> set[str]:
    """Names of studies that are there already, from this backup; `UserError` for others of the same name."""
    there = set(study_names(url)) & set(studies)
    foreign = [
        name for name in sorted(there)
        if StudyStore(url, name).load().created_ms != studies[name]["study"]["created_ms"]
    ]  # fmt: skip
    if foreign:
        raise UserError(
            f"other studies of these names are in this database: {', '.join(foreign)}; nothing was restored. Delete "
            "them (`agft delete`), or restore into an empty database"
        )
    return there


def _check_heads(bucket: str, models: dict[str, bytes]) -> None:
    for name, data in models.items():
        found = storage.get_bytes(f"{S3}{bucket}/{name}") if name.endswith("/HEAD.json") else None
        if found is not None and json.loads(found[0]) != json.loads(data):
            raise UserError(
                f"{S3}{bucket}/{name}: another champion reigns here; nothing was restored. Use an empty bucket "
                "(AGFT_BUCKET)"
            )


def _objects(
    place: str | None, bucket: str, listed: list[str], models: dict[str, bytes], say: Say
) -> tuple[int, list[str]]:
    """Bring the objects; those that a champion needs must be there afterwards."""
    wanted = [key for key in listed if key not in models]
    copied = 0
    if place:
        say(f"objects from {place}")
        copied = copy_back(place, bucket, wanted, say)
        say(f"{copied} objects copied")
    there = {each.uri.removeprefix(f"{S3}{bucket}/") for each in objects_of(bucket)}
    lacking = [key for key in wanted if key not in there]
    for name, data in models.items():
        if name.endswith("/HEAD.json"):
            prefix = f"{name.removesuffix('HEAD.json')}{json.loads(data)['champion']:04d}/"
            gone = [key for key in lacking if key.startswith(prefix)]
            if gone:
                raise StudyFailed(
                    f"{S3}{bucket}/{gone[0]}: the champion's weights are not there; nothing was restored into the "
                    "database. Say where the copies are: --objects PLACE"
                )
    return copied, lacking


def _put_models(bucket: str, models: dict[str, bytes]) -> None:
    """Records first, HEAD last; what is there already is the same, or was checked."""
    for name in sorted(models, key=lambda name: name.endswith("/HEAD.json")):
        uri = f"{S3}{bucket}/{name}"
        try:
            storage.put_bytes(uri, models[name], if_absent=True)
        except Conflict:
            found = storage.get_bytes(uri)
            if found is None or json.loads(found[0]) != json.loads(models[name]):
                raise ChecksumMismatch(f"{uri}: is there with other content; it stays as it is") from None


def _ship(url: str, names: list[str], tracking_uri: str, say: Say) -> None:
    """MLflow's runs of every study, which it may have lost; sending what is there adds nothing."""
    say("MLflow: sending the studies ...")
    tracker = Tracker(tracking_uri, EXPERIMENT)
    try:
        for name in names:
            store = StudyStore(url, name)
            study, trials = store.load(), store.trials()
            project_all(tracker, study, trials)
            if study.baseline:
                project_best(tracker, study, trials)
                mark_best(tracker, study, trials)
            last = max((trial.ended_ms or trial.started_ms for trial in trials), default=study.created_ms)
            end_study(tracker, study, when_ms=last)
        tracker.flush(MLFLOW_SECONDS)
    finally:
        left = tracker.close(1.0)
    if lacking := untold(tracker, left):
        say(f"warning: MLflow at {tracking_uri} {lacking}; each study's next driver sends them again")


def _unfinished(url: str, names: list[str]) -> tuple[int, int]:
    """(unfinished trials, those of them that have epochs and no checkpoint any more)."""
    trials = [trial for name in names for trial in StudyStore(url, name).trials() if not trial.finished]
    lost = [trial for trial in trials if trial.latest and storage.head(trial.latest.uri) is None]
    return len(trials), len(lost)
