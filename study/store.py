"""The study's truth. Drivers, terminals and workers come and go; what is here stays.

Every write of a driver runs in one transaction that first checks the driver's lease token, so a driver that was
thought dead and was replaced can change nothing any more. Optuna's tables live in the same database (`searcher.py`).
"""

from __future__ import annotations

import difflib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import sqlalchemy as sa

from study import tables as t
from study.config import StudyConfig, load_canonical
from study.database import engine_for, now, transaction
from study.errors import LeaseLost, UserError

__all__ = ["LEASE_SECONDS", "LeaseHeld", "StudyRow", "StudyStore", "TrialRow", "owner_identity", "study_names"]

LEASE_SECONDS = 30.0
FINISHED = ("complete", "pruned", "failed")


class LeaseHeld(UserError):
    """Another driver drives this study. `seconds` until its lease ends if it is not renewed."""

    def __init__(self, study: str, owner: str, seconds: float, *, local: bool) -> None:
        self.study, self.owner, self.seconds, self.local = study, owner, seconds, local
        host, pid = owner.split("|")[:2]
        super().__init__(f"study {study!r} is being driven by process {pid} on {host}; one driver at a time")


@dataclass(frozen=True)
class StudyRow:
    """A study as stored. `driven_seconds` is wall time of all drivers together."""

    name: str
    spec: StudyConfig
    spec_hash: str
    desired: str
    state: str
    created_ms: int
    driven_seconds: float
    token: int
    lease_owner: str | None
    lease_seconds: float  # left; 0 or less when nobody drives
    baseline: dict[str, Any] | None
    provenance: dict[str, Any] | None


@dataclass(frozen=True)
class TrialRow:
    """A trial as stored, with its epoch records (JSON of `trainers.records.EpochRecord`), oldest first."""

    number: int
    state: str
    params: dict[str, Any]
    config: dict[str, Any]
    started_ms: int
    ended_ms: int | None = None
    stop_reason: str | None = None
    failure_kind: str | None = None
    latest: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    epochs: tuple[dict[str, Any], ...] = ()
    verdicts: dict[int, str] = field(default_factory=dict)
    attempts: tuple[int, ...] = ()
    device_seconds: float = 0.0

    @property
    def finished(self) -> bool:
        """Whether the trial's outcome is final."""
        return self.state in FINISHED

    @property
    def last(self) -> dict[str, Any] | None:
        """The newest epoch record."""
        return self.epochs[-1] if self.epochs else None


def owner_identity() -> str:
    """This process, so that another can tell whether it still lives: host, pid, start time."""
    return f"{socket.gethostname()}|{os.getpid()}|{psutil.Process().create_time():.2f}"


def _owner_is_gone(owner: str) -> bool:
    """Whether `owner` was a process of this host that has ended."""
    host, pid, started = owner.split("|")
    if host != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(pid))
        return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - float(started)) > 1
    except psutil.NoSuchProcess:
        return True


def study_names(url: str) -> list[str]:
    """Names of all studies, newest first."""
    with engine_for(url).connect() as connection:
        return list(connection.execute(sa.select(t.studies.c.name).order_by(t.studies.c.created_ms.desc())).scalars())


def spec_difference(old: str, new: str) -> str:
    """What changed between two canonical specs, one `path: old -> new` a line."""

    def flat(value: Any, prefix: str = "") -> dict[str, Any]:
        if isinstance(value, Mapping) and value:
            return {k: v for key, inner in value.items() for k, v in flat(inner, f"{prefix}{key}.").items()}
        return {prefix.rstrip("."): value}

    before, after = flat(json.loads(old)), flat(json.loads(new))
    return "\n".join(
        f"  {path}: {before.get(path, '(absent)')!r} -> {after.get(path, '(absent)')!r}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    )


class StudyStore:
    """One study in one database. Reads need no lease; methods that take `token` are a driver's."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name = url, name
        self.engine = engine_for(url)

    # --- the study -----------------------------------------------------------------------------------------------

    def create(self, spec: StudyConfig) -> bool:
        """Store a new study; False when it is there already. `UserError` with the diff for another spec.

        A study that has no trial yet takes the new spec: nothing was measured under the old one.
        """
        with transaction(self.engine) as connection:
            found = connection.execute(
                sa.select(t.studies.c.spec, t.studies.c.spec_hash).where(t.studies.c.name == self.name)
            ).first()
            if found is None:
                connection.execute(
                    sa.insert(t.studies).values(
                        name=self.name, spec=spec.canonical(), spec_hash=spec.spec_hash(), desired="run", state="new",
                        created_ms=int(now(connection) * 1000), driven_seconds=0.0, token=0,
                    )
                )  # fmt: skip
                return True
            if found.spec_hash == spec.spec_hash():
                return False
            row = t.studies.c.name == self.name
            begun = sa.select(t.trials.c.number).where(t.trials.c.study == self.name)
            if connection.execute(begun).first() is not None:
                raise UserError(
                    f"study {self.name!r} exists with another specification; give this one a new name, or undo:\n"
                    + spec_difference(found.spec, spec.canonical())
                )
            changed = {"spec": spec.canonical(), "spec_hash": spec.spec_hash(), "baseline": None}
            connection.execute(sa.update(t.studies).where(row).values(**changed))
            return True

    def load(self) -> StudyRow:
        """The study, or `UserError` with the nearest name."""
        with self.engine.connect() as connection:
            row = connection.execute(sa.select(t.studies).where(t.studies.c.name == self.name)).first()
            clock = now(connection)
        if row is None:
            known = study_names(self.url)
            close = difflib.get_close_matches(self.name, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UserError(f"no study {self.name!r}; {hint}known: {', '.join(known) or 'none yet'}")
        fields = row._asdict()
        expires = fields.pop("lease_expires")
        return StudyRow(
            **{**fields, "spec": load_canonical(row.spec)}, lease_seconds=(expires - clock) if expires else 0.0
        )

    def desire(self, state: str) -> None:
        """Ask the driver, wherever it runs, for `run`, `pause` or `stop`."""
        with transaction(self.engine) as connection:
            connection.execute(sa.update(t.studies).where(t.studies.c.name == self.name).values(desired=state))

    # --- the lease -----------------------------------------------------------------------------------------------

    def acquire(self, owner: str, *, seconds: float = LEASE_SECONDS) -> int:
        """Become the driver: a new token. `LeaseHeld` while another driver's lease runs and it may be alive."""
        with transaction(self.engine) as connection:
            row = connection.execute(sa.select(t.studies).where(t.studies.c.name == self.name).with_for_update()).one()
            clock = now(connection)
            left = (row.lease_expires or 0) - clock
            if row.lease_owner and left > 0 and not _owner_is_gone(row.lease_owner):
                local = row.lease_owner.split("|")[0] == socket.gethostname()
                raise LeaseHeld(self.name, row.lease_owner, left, local=local)
            token: int = row.token + 1
            connection.execute(
                sa.update(t.studies)
                .where(t.studies.c.name == self.name)
                .values(token=token, lease_owner=owner, lease_expires=clock + seconds, state="running", desired="run")
            )
            return token

    def renew(self, token: int, *, driven: float, seconds: float = LEASE_SECONDS) -> str:
        """Keep the lease, add `driven` seconds of driving, and learn the desired state. `LeaseLost` when replaced."""
        with self.fenced(token) as connection:
            row = t.studies.c.name == self.name
            connection.execute(
                sa.update(t.studies)
                .where(row)
                .values(lease_expires=now(connection) + seconds, driven_seconds=t.studies.c.driven_seconds + driven)
            )
            return str(connection.execute(sa.select(t.studies.c.desired).where(row)).scalar_one())

    def release(self, token: int, state: str) -> None:
        """Stop driving and say in which state the study is now."""
        with self.fenced(token) as connection:
            connection.execute(
                sa.update(t.studies)
                .where(t.studies.c.name == self.name)
                .values(state=state, lease_owner=None, lease_expires=None)
            )

    @contextmanager
    def fenced(self, token: int) -> Iterator[sa.Connection]:
        """A write transaction of the driver that holds `token`; `LeaseLost` once there is a newer one."""
        with transaction(self.engine) as connection:
            current = connection.execute(
                sa.select(t.studies.c.token).where(t.studies.c.name == self.name).with_for_update()
            ).scalar_one()
            if current != token:
                raise LeaseLost(f"study {self.name!r}: another driver took over (lease {current}, ours was {token})")
            yield connection

    def set_study(self, token: int, **values: Any) -> None:
        """Set columns of the study's row: `baseline`, `provenance`, `state`."""
        with self.fenced(token) as connection:
            connection.execute(sa.update(t.studies).where(t.studies.c.name == self.name).values(**values))

    # --- trials --------------------------------------------------------------------------------------------------

    def start_trial(self, token: int, number: int, params: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """A new trial, or another attempt at an unfinished one."""
        with self.fenced(token) as connection:
            clock = int(now(connection) * 1000)
            if connection.execute(self._of(t.trials, number, sa.select(t.trials.c.number))).first() is None:
                connection.execute(
                    sa.insert(t.trials).values(
                        study=self.name, number=number, state="running", params=dict(params), config=dict(config),
                        started_ms=clock,
                    )
                )  # fmt: skip
            where = sa.and_(t.attempts.c.study == self.name, t.attempts.c.number == number, t.attempts.c.token == token)
            if connection.execute(sa.select(t.attempts.c.token).where(where)).first() is None:
                connection.execute(
                    sa.insert(t.attempts).values(
                        study=self.name, number=number, token=token, started_ms=clock, device_seconds=0.0
                    )
                )

    def record(
        self,
        token: int,
        number: int,
        history: Sequence[Mapping[str, Any]],
        *,
        latest: Mapping[str, Any] | None,
        best: Mapping[str, Any] | None,
        device_seconds: float,
        provenance: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Commit the epochs that are not stored yet, and where the checkpoints are; returns the new records."""
        with self.fenced(token) as connection:
            known = set(connection.execute(self._of(t.epochs, number, sa.select(t.epochs.c.epoch))).scalars())
            fresh = [dict(record) for record in history if record["epoch"] not in known]
            for record in fresh:
                connection.execute(
                    sa.insert(t.epochs).values(study=self.name, number=number, epoch=record["epoch"], record=record)
                )
            changed = {key: dict(value) for key, value in (("latest", latest), ("best", best)) if value}
            if changed:
                connection.execute(self._of(t.trials, number, sa.update(t.trials)).values(**changed))
            values: dict[str, Any] = {"device_seconds": device_seconds}
            if provenance:
                values["provenance"] = dict(provenance)
            connection.execute(
                self._of(t.attempts, number, sa.update(t.attempts)).where(t.attempts.c.token == token).values(**values)
            )
            return fresh

    def decide(self, token: int, number: int, epoch: int, decision: str, reason: str) -> str:
        """Store a verdict once; the stored one wins, so that a replay decides the same."""
        with self.fenced(token) as connection:
            found = connection.execute(
                self._of(t.verdicts, number, sa.select(t.verdicts.c.decision)).where(t.verdicts.c.epoch == epoch)
            ).scalar()
            if found is not None:
                return str(found)
            connection.execute(
                sa.insert(t.verdicts).values(
                    study=self.name, number=number, epoch=epoch, decision=decision, reason=reason
                )
            )
            return decision

    def finish_trial(
        self, token: int, number: int, state: str, *, stop_reason: str | None = None, failure_kind: str | None = None
    ) -> None:
        """The trial's final state: complete, pruned or failed (with the failure's kind)."""
        assert state in FINISHED, state
        with self.fenced(token) as connection:
            clock = int(now(connection) * 1000)
            connection.execute(
                self._of(t.trials, number, sa.update(t.trials)).values(
                    state=state, stop_reason=stop_reason, failure_kind=failure_kind, ended_ms=clock
                )
            )
            self._end(connection, token, number, state, clock)

    def end_attempt(self, token: int, number: int, outcome: str) -> None:
        """This driver is done with the trial, which is to go on later (paused, lost)."""
        with self.fenced(token) as connection:
            self._end(connection, token, number, outcome, int(now(connection) * 1000))

    def _end(self, connection: sa.Connection, token: int, number: int, outcome: str, clock: int) -> None:
        connection.execute(
            self._of(t.attempts, number, sa.update(t.attempts))
            .where(t.attempts.c.token == token)
            .values(ended_ms=clock, outcome=outcome)
        )

    def _of(self, table: sa.Table, number: int, statement: Any) -> Any:
        return statement.where(table.c.study == self.name, table.c.number == number)

    def trials(self) -> list[TrialRow]:
        """All trials by number."""
        with self.engine.connect() as connection:

            def rows(table: sa.Table, *order: sa.Column[Any]) -> list[Any]:
                return list(connection.execute(sa.select(table).where(table.c.study == self.name).order_by(*order)))

            trials = rows(t.trials, t.trials.c.number)
            epochs, verdicts, attempts = (rows(x, x.c.number) for x in (t.epochs, t.verdicts, t.attempts))
        return [
            TrialRow(
                **{key: value for key, value in row._asdict().items() if key != "study"},
                epochs=tuple(sorted((e.record for e in epochs if e.number == row.number), key=lambda r: r["epoch"])),
                verdicts={v.epoch: v.decision for v in verdicts if v.number == row.number},
                attempts=tuple(sorted(a.token for a in attempts if a.number == row.number)),
                device_seconds=sum(a.device_seconds for a in attempts if a.number == row.number),
            )
            for row in trials
        ]

    # --- promotions ----------------------------------------------------------------------------------------------

    def start_promotion(self) -> int:
        """Count one access to the confirm and final sets; returns its id."""
        with transaction(self.engine) as connection:
            result = connection.execute(
                sa.insert(t.promotions).values(study=self.name, started_ms=int(time.time() * 1000), state="started")
            )
            return int(result.inserted_primary_key[0])  # type: ignore[index]

    def end_promotion(self, identity: int, state: str, record: Mapping[str, Any]) -> None:
        """Keep a promotion's outcome (promoted, kept, refused) with its numbers."""
        with transaction(self.engine) as connection:
            connection.execute(
                sa.update(t.promotions).where(t.promotions.c.id == identity).values(state=state, record=dict(record))
            )

    def promotions(self) -> list[dict[str, Any]]:
        """All promotions of this study, oldest first."""
        with self.engine.connect() as connection:
            rows = connection.execute(
                sa.select(t.promotions).where(t.promotions.c.study == self.name).order_by(t.promotions.c.id)
            )
            return [row._asdict() for row in rows]
