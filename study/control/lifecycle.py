"""What a person may do to a study from any terminal: extend it, run a trial again, take one out, stop it, delete it.

A driver that lives is asked through the database and obeys; without one, what can be done at once is done under the
lease, so that nobody can start driving in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import sqlalchemy as sa

from infra import storage
from infra.errors import ServiceError
from infra.tracking import calls as mlflow_calls
from study.artifacts.checkpoints import scratch_prefix, study_prefix
from study.errors import UserError
from study.search.projection import Projection, delete_projection
from study.search.proposals import Proposer
from study.spec.config import load_canonical
from study.store import tables as t
from study.store.database import transaction
from study.store.lease import LeaseHeld, owner_identity
from study.store.requests import answer, ask, keep_extension
from study.store.store import DELETING, StudyStore
from study.tracking import EXPERIMENT, study_key
from trainers.schema.records import storable


@contextmanager
def _lease(store: StudyStore) -> Iterator[int]:
    """Hold the study's lease for a moment; its state stays what it is."""
    study = store.load()
    token = store.acquire(owner_identity(), state=study.state)
    try:
        yield token
    finally:
        store.release(token, store.load().state, study.message)


def _go_on(store: StudyStore) -> str:
    return f"go on with: agft resume {store.name}"


def extend_study(store: StudyStore, *, trials: int, hours: float, gpu_hours: float) -> str:
    """Raise the budget; the sentence to say. `UserError` where the study has no such budget."""
    budget = store.load().spec.budget
    if store.load().spec.sampler.row.exhaustive and trials:
        raise UserError(f"study {store.name!r} tries every point of a grid: there are no more trials to add")
    for name, asked in (("hours", hours), ("gpu_hours", gpu_hours)):
        if asked and getattr(budget, name) is None:
            raise UserError(f"study {store.name!r} has no budget.{name} that could be raised: it is unlimited")
    if not (trials or hours or gpu_hours):
        raise UserError("say by how much: --trials, --hours or --gpu-hours")
    _raise_budget(store, {"trials": trials, "hours": hours, "gpu_hours": gpu_hours})
    study = store.load()
    raised = study.spec.budget
    parts = [f"{raised.trials} trials"]
    parts += [f"{raised.hours:g} hours"] if raised.hours is not None else []
    parts += [f"{raised.gpu_hours:g} GPU-hours"] if raised.gpu_hours is not None else []
    then = "its driver goes on" if study.lease_seconds > 0 else _go_on(store)
    return f"study {store.name!r} has a budget of {', '.join(parts)} now; {then}"


def _raise_budget(store: StudyStore, more: Mapping[str, float]) -> None:
    """In one transaction: two terminals may do so at once. What is unlimited stays so."""
    row = t.studies.c.name == store.name
    with transaction(store.engine) as connection:
        found = connection.execute(sa.select(t.studies).where(row).with_for_update()).one()
        budget = found.budget or load_canonical(found.spec).budget.model_dump(mode="json")
        raised = {**budget, **{name: budget[name] + by for name, by in more.items() if budget[name] is not None}}
        there = connection.execute(sa.select(sa.func.count()).where(t.trials.c.study == store.name)).scalar_one()
        values = {"budget": raised, "extended_at": there}
        connection.execute(sa.update(t.studies).where(row).values(**values))
        keep_extension(connection, store.name, there, more)


def rerun_trial(store: StudyStore, number: int) -> str:
    """Put a trial's parameters in line once more, as a new trial beside the budget; the sentence to say."""
    row = store.trial(number)
    if not row.finished:
        raise UserError(f"trial {number} has not finished; it is not run again before it has")
    ask(store, "rerun", number, "")
    then = "its driver starts it next" if store.load().lease_seconds > 0 else _go_on(store)
    return f"trial {number} of {store.name!r} will be run again, as a new trial with the same parameters; {then}"


def drop_trial(store: StudyStore, number: int, reason: str) -> str:
    """Take a trial out: its history stays, it counts nowhere, and the search forgets it; the sentence to say."""
    reason = storable(reason)
    if store.trial(number).state == "dropped":
        raise UserError(f"trial {number} of {store.name!r} was dropped already")
    request = ask(store, "drop", number, reason)
    try:
        with _lease(store) as token:
            study = store.load()
            if study.goal is None:
                raise UserError(f"study {store.name!r} has not begun")
            why, rows = f"dropped: {reason}" if reason else "dropped", store.trials()
            store.finish_trial(token, number, "dropped", stop_reason=why, dropped_at=len(rows))
            Projection(store, Proposer(study.spec, study.goal, ())).rebuild(store.trials())
            answer(store, token, request, "dropped")
    except LeaseHeld:
        return f"asked: trial {number} of {store.name!r} is taken out by its driver, as soon as it has left"
    return f"trial {number} of {store.name!r} is dropped; `agft resume {store.name}` runs another in its place"


def pause_study(store: StudyStore) -> str:
    """Ask a study to pause; the sentence to say."""
    study = store.load()
    if study.lease_seconds > 0:
        store.desire("pause")
        return f"asked: running trials of {store.name!r} keep a state and leave, in mid-epoch too"
    if study.state == "new":
        store.desire("pause")
        return f"study {store.name!r} is queued; a driver that comes will not begin"
    return f"study {store.name!r} is not running"


def stop_study(store: StudyStore) -> str:
    """End a study: its running trials count as stopped early. The sentence to say."""
    study = store.load()
    try:
        token = store.acquire(owner_identity(), state=study.state)
    except LeaseHeld:
        store.desire("stop")
        return f"asked: running trials of {store.name!r} end at their next report, with a checkpoint"
    state, message = study.state, study.message
    try:
        unfinished = [row for row in store.trials() if not row.finished]
        if unfinished or state in ("new", "paused", "running", "failed"):
            if study.goal is not None:
                for row in unfinished:
                    ended, why = row.cut_off("study: stop")
                    store.finish_trial(token, row.number, ended, stop_reason=why)
                Projection(store, Proposer(study.spec, study.goal, ())).catch_up(store.trials())
            state, message = "stopped", "asked to stop"
    finally:
        store.release(token, state, message)
    store.desire("stop")  # also of a driver that a cluster has in line
    count = f"; {len(unfinished)} unfinished trials count as stopped early" if unfinished else ""
    return f"study {store.name!r} is {state}{count}"


def _borrowers(store: StudyStore, prefix: str) -> list[str]:
    """Other studies whose checkpoints lie below `prefix`."""
    others = sa.select(t.trials.c.study, t.trials.c.latest, t.trials.c.best).where(t.trials.c.study != store.name)
    with store.engine.connect() as connection:
        rows = connection.execute(others).all()
    files = [(row.study, file) for row in rows for file in (row.latest, row.best) if file]
    return sorted({study for study, file in files if file["uri"].startswith(prefix)})


def _delete_runs(tracking_uri: str, key: str, name: str) -> int:
    try:
        return mlflow_calls.delete_runs(mlflow_calls.connect(tracking_uri), EXPERIMENT, key)
    except Exception as error:  # MLflow's own errors, and those of requests
        reason = mlflow_calls.outage(error) or " ".join(str(error).split())[:300]
        raise ServiceError(
            f"study {name!r} is half deleted: MLflow at {tracking_uri} did not delete its runs ({reason}). "
            f"The same command goes on: agft delete {name}"
        ) from error


def delete_study(store: StudyStore, *, bucket: str, tracking_uri: str, say: Callable[[str], None]) -> None:
    """Delete checkpoints, MLflow runs and the study itself, in this order, so that doing it again completes it.

    Promoted models lie under their own prefix and stay. `LeaseHeld` while somebody drives the study, `UserError` while
    one that was restored from it, in this database, has its checkpoints there.
    """
    study = store.load()
    if borrowers := _borrowers(store, f"{study_prefix(bucket, study.slug)}/"):
        raise UserError(
            f"study {store.name!r} has checkpoints of {', '.join(borrowers)}, restored from it; delete that first"
        )
    token = store.acquire(owner_identity(), state=DELETING)
    try:
        for prefix in (study_prefix(bucket, study.slug), scratch_prefix(bucket, study.slug)):
            count = storage.delete_prefix(f"{prefix}/")
            say(f"deleted {count} objects under {prefix}/")
        runs = _delete_runs(tracking_uri, study_key(study), store.name)
        say(f"deleted {runs} runs in MLflow (its own trash keeps them until `mlflow gc`)")
        delete_projection(store)
    finally:
        store.release(token, DELETING, "half deleted; delete it again")
    store.delete()
