"""The study's truth. Drivers, terminals and workers come and go; what is here stays.

Every write of a driver runs in one transaction that first checks the driver's lease token, so a driver that was
thought dead and was replaced can change nothing any more. Optuna's tables, a projection, live in the same database.
A driver's writes can be repeated without harm, and are, while the database is away (`patient`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel

from study.errors import LeaseLost, UserError
from study.spec.config import StudyConfig
from study.spec.files import spec_difference
from study.store import tables as t
from study.store.database import address_of, engine_for, now, patient, transaction
from study.store.lease import LeaseHeld, is_driven, is_local
from study.store.rows import FINISHED, Proposal, StudyRow, TrialRow
from study.store.typed import study_row, trial_rows
from trainers.schema.records import Measurement, Report, Sign

LEASE_SECONDS = 30.0
DELETING = "deleting"


def study_names(url: str) -> list[str]:
    """Names of all studies, newest first."""
    with engine_for(url).connect() as connection:
        return list(connection.execute(sa.select(t.studies.c.name).order_by(t.studies.c.created_ms.desc())).scalars())


def driven_studies(url: str) -> list[str]:
    """Names of the studies that have a driver now."""
    address = address_of(url)
    if address.get_backend_name() == "sqlite" and not Path(address.database or "").exists():
        return []  # looking would make it
    with engine_for(url).connect() as connection:
        clock = now(connection)
        rows = connection.execute(sa.select(t.studies.c.name, t.studies.c.lease_owner, t.studies.c.lease_expires))
        return [row.name for row in rows if is_driven(row, clock)]


def _plain(value: Any) -> Any:
    """As a JSON column takes it."""
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


class StudyStore:
    """One study in one database. Reads need no lease; methods that take `token` are a driver's, which has a
    `DriverStore`."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name = url, name
        self.engine = engine_for(url)
        self.own = t.studies.c.name == name

    # --- the study -----------------------------------------------------------------------------------------------

    def create(self, spec: StudyConfig) -> bool:
        """Store a new study; False when it is there already. `UserError` with the diff for another spec.

        A study that has no trial yet and no driver takes the new spec: nothing was measured under the old one.
        """
        with transaction(self.engine) as connection:
            found = connection.execute(sa.select(t.studies).where(self.own)).first()
            clock = now(connection)
            if found is None:
                connection.execute(
                    sa.insert(t.studies).values(
                        name=self.name, spec=spec.canonical(), spec_hash=spec.spec_hash(), desired="run", state="new",
                        created_ms=int(clock * 1000), driven_seconds=0.0, token=0,
                    )
                )  # fmt: skip
                return True
            if found.spec == spec.canonical():
                return False
            begun = connection.execute(sa.select(t.trials.c.number).where(t.trials.c.study == self.name)).first()
            if begun is not None or is_driven(found, clock):
                difference = spec_difference(found.spec, spec.canonical())
                more = ""
                if "budget." in difference:
                    more = f"\nA budget is raised with: agft extend {self.name} --trials MORE"
                raise UserError(
                    f"study {self.name!r} exists with another specification; give this one a new name, or undo:\n"
                    + difference + more
                )  # fmt: skip
            changed = {"spec": spec.canonical(), "spec_hash": spec.spec_hash(), "baseline": None, "budget": None}
            # A driver that was cut off while it measured for the old spec comes back with a token of the past.
            after = {"lag": None, "starts": None, "token": found.token + 1}
            connection.execute(sa.update(t.studies).where(self.own).values(**changed, **after))
            return True

    def load(self) -> StudyRow:
        """The study, or `UserError` with the nearest name."""
        with self.engine.connect() as connection:
            row = connection.execute(sa.select(t.studies).where(self.own)).first()
            clock = now(connection)
        if row is None:
            known = study_names(self.url)
            close = difflib.get_close_matches(self.name, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UserError(f"no study {self.name!r}; {hint}known: {', '.join(known) or 'none yet'}")
        left = (row.lease_expires - clock) if row.lease_expires else 0.0
        return study_row(row._asdict(), left if is_driven(row, clock) else min(left, 0.0))

    def desire(self, state: str) -> None:
        """Ask the driver, wherever it runs, for `run`, `pause` or `stop`."""
        with transaction(self.engine) as connection:
            connection.execute(sa.update(t.studies).where(self.own).values(desired=state))

    def delete(self) -> None:
        """Forget the study and everything of it in our tables; `LeaseHeld` while somebody drives it."""
        with transaction(self.engine) as connection:
            self._refuse_if_driven(connection)
            connection.execute(sa.delete(t.studies).where(self.own))

    # --- the lease -----------------------------------------------------------------------------------------------

    def _refuse_if_driven(self, connection: sa.Connection) -> tuple[Any, float]:
        row = connection.execute(sa.select(t.studies).where(self.own).with_for_update()).one()
        clock = now(connection)
        if is_driven(row, clock):
            left = row.lease_expires - clock
            raise LeaseHeld(self.name, row.lease_owner, left, local=is_local(row.lease_owner))
        return row, clock

    def refuse_if_driven_here(self) -> None:
        """`LeaseHeld` if a living process of this machine drives; the lease of another machine may be waited out."""
        study = self.load()
        owner = study.lease_owner
        if owner is not None and study.lease_seconds > 0 and is_local(owner):
            raise LeaseHeld(self.name, owner, study.lease_seconds, local=True)

    def acquire(self, owner: str, *, seconds: float = LEASE_SECONDS, state: str = "running") -> int:
        """Become the driver: a new token. `LeaseHeld` while another driver's lease runs and it may be alive.

        A study that was deleted in part can only be deleted (`state`): its checkpoints may be gone.
        """
        with transaction(self.engine) as connection:
            row, clock = self._refuse_if_driven(connection)
            if row.state == DELETING != state:
                raise UserError(f"study {self.name!r} is half deleted; go on with: agft delete {self.name}")
            token: int = row.token + 1
            connection.execute(
                sa.update(t.studies)
                .where(self.own)
                .values(
                    token=token, lease_owner=owner, lease_expires=clock + seconds, state=state, desired="run",
                    message=None,
                )
            )  # fmt: skip
            return token

    def renew(self, token: int, *, driven: float, seconds: float = LEASE_SECONDS) -> str:
        """Keep the lease, add `driven` seconds of driving, and learn the desired state. `LeaseLost` when replaced."""
        with self.fenced(token) as connection:
            connection.execute(
                sa.update(t.studies)
                .where(self.own)
                .values(lease_expires=now(connection) + seconds, driven_seconds=t.studies.c.driven_seconds + driven)
            )
            return str(connection.execute(sa.select(t.studies.c.desired).where(self.own)).scalar_one())

    @patient
    def release(self, token: int, state: str, message: str | None = None) -> None:
        """Stop driving and say in which state the study is now, and why; no trial is under way any more."""
        with self.fenced(token) as connection:
            connection.execute(sa.delete(t.signs).where(t.signs.c.study == self.name))
            connection.execute(
                sa.update(t.studies)
                .where(self.own)
                .values(state=state, message=message, lease_owner=None, lease_expires=None)
            )

    @contextmanager
    def fenced(self, token: int) -> Iterator[sa.Connection]:
        """A write transaction of the driver that holds `token`; `LeaseLost` once there is a newer one."""
        with transaction(self.engine) as connection:
            current = connection.execute(
                sa.select(t.studies.c.token).where(self.own).with_for_update()
            ).scalar_one_or_none()
            if current is None:
                raise LeaseLost(f"study {self.name!r} was deleted")
            if current != token:
                raise LeaseLost(f"study {self.name!r}: another driver took over (lease {current}, ours was {token})")
            yield connection

    @patient
    def set_study(self, token: int, **values: Any) -> None:
        """Set columns of the study's row: `baseline`, `provenance`, `state`, `lag`, `starts`."""
        with self.fenced(token) as connection:
            plain = {name: _plain(value) for name, value in values.items()}
            connection.execute(sa.update(t.studies).where(self.own).values(**plain))

    def take_baseline(self, owner: str, baseline: Measurement | None) -> None:
        """The unmodified CLIP on the dev sets as another study measured it, if it did and this one has not."""
        if baseline is not None and self.load().baseline is None:
            token = self.acquire(owner)
            self.set_study(token, baseline=baseline)
            self.release(token, "new")

    # --- trials --------------------------------------------------------------------------------------------------

    @patient
    def start_trial(self, token: int, proposal: Proposal, config: Mapping[str, Any]) -> TrialRow:
        """A new trial, and a first attempt at it; the row as it is now. A second call changes nothing."""
        number = proposal.number
        with self.fenced(token) as connection:
            clock = int(now(connection) * 1000)
            if connection.execute(self._of(t.trials, number, sa.select(t.trials.c.number))).first() is None:
                connection.execute(
                    sa.insert(t.trials).values(
                        study=self.name, number=number, state="running", params=dict(proposal.params),
                        config=dict(config), started_ms=clock, rerun_of=proposal.rerun_of,
                        origin=proposal.origin, memory=dict(proposal.memory), finishing=False,
                    )
                )  # fmt: skip
        return self.attempt_trial(token, number)

    @patient
    def attempt_trial(self, token: int, number: int) -> TrialRow:
        """This driver attempts an unfinished trial, maybe once more; the row as it is now."""
        with self.fenced(token) as connection:
            clock = int(now(connection) * 1000)
            where = sa.and_(t.attempts.c.study == self.name, t.attempts.c.number == number, t.attempts.c.token == token)
            if connection.execute(sa.select(t.attempts.c.token).where(where)).first() is not None:
                again: dict[str, Any] = {"ended_ms": None, "outcome": None}
                connection.execute(sa.update(t.attempts).where(where).values(**again))
            else:
                connection.execute(
                    sa.insert(t.attempts).values(
                        study=self.name, number=number, token=token, started_ms=clock, device_seconds=0.0
                    )
                )
            return self._row(connection, number)

    @patient
    def record(self, token: int, row: TrialRow, report: Report, *, device_seconds: float) -> TrialRow:
        """Commit what a report says that is not stored yet; the row as it is then.

        `row` is the trial as this driver knows it: nobody else writes it, and a long history is not read every epoch.
        """
        with self.fenced(token) as connection:
            epochs = {record.epoch: record for record in report.records}
            known = sa.select(t.epochs.c.epoch).where(t.epochs.c.epoch.in_(list(epochs)))
            for epoch in epochs.keys() - set(connection.execute(self._of(t.epochs, row.number, known)).scalars()):
                connection.execute(
                    sa.insert(t.epochs).values(
                        study=self.name, number=row.number, epoch=epoch, record=_plain(epochs[epoch])
                    )
                )
            latest, best = report.latest or row.latest, report.best or row.best
            files = {"latest": _plain(latest), "best": _plain(best)}
            connection.execute(self._of(t.trials, row.number, sa.update(t.trials)).values(**files))
            spent: dict[str, Any] = {"device_seconds": device_seconds}
            if report.provenance:
                spent["provenance"] = report.provenance
            mine = self._of(t.attempts, row.number, sa.update(t.attempts)).where(t.attempts.c.token == token)
            connection.execute(mine.values(**spent))
        epochs |= {record.epoch: record for record in row.epochs}  # what was stored first stays
        attempts = tuple(replace(a, **spent) if a.token == token else a for a in row.attempts)
        history = tuple(epochs[epoch] for epoch in sorted(epochs))
        return replace(row, epochs=history, attempts=attempts, latest=latest, best=best)

    @patient
    def show(self, token: int, signs: Mapping[int, Sign]) -> None:
        """Of every running trial, how far it is inside an epoch; what was there before is replaced as a whole."""
        with self.fenced(token) as connection:
            connection.execute(sa.delete(t.signs).where(t.signs.c.study == self.name))
            rows = [{"study": self.name, "number": n, "sign": sign.model_dump()} for n, sign in signs.items()]
            if rows:
                connection.execute(sa.insert(t.signs), rows)

    def signs(self) -> dict[int, Sign]:
        """What `show` was last given."""
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(t.signs).where(t.signs.c.study == self.name))
            return {row.number: Sign.model_validate(row.sign) for row in rows}

    @patient
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

    @patient
    def finish_trial(
        self,
        token: int,
        number: int,
        state: str,
        *,
        stop_reason: str | None = None,
        failure_kind: str | None = None,
        device_seconds: float | None = None,
        dropped_at: int | None = None,
    ) -> TrialRow:
        """The trial's final state: complete, pruned, failed (with the failure's kind) or dropped; the row.

        `dropped_at`: of a dropped one, the first trial that does not know it.
        """
        assert state in FINISHED, state
        with self.fenced(token) as connection:
            clock = int(now(connection) * 1000)
            values: dict[str, Any] = {"state": state, "stop_reason": stop_reason, "failure_kind": failure_kind}
            was = connection.execute(self._of(t.trials, number, sa.select(t.trials))).one()
            before = was.ended_ms
            if state == "dropped" != was.state:
                stopped = "pruned" if was.finishing else None  # while it was finished after all: known as it was
                values |= {"dropped_at": dropped_at, "state_before": was.state if was.state in FINISHED else stopped}
            connection.execute(
                self._of(t.trials, number, sa.update(t.trials)).values(**values, ended_ms=before or clock)
            )
            if before is None:
                self._end(connection, token, number, state, clock, device_seconds)
            return self._row(connection, number)

    @patient
    def reopen_trial(self, token: int, number: int) -> TrialRow:
        """A trial that was stopped is to be trained to its end; the row."""
        with self.fenced(token) as connection:
            again = {"state": "running", "ended_ms": None, "finishing": True}
            connection.execute(self._of(t.trials, number, sa.update(t.trials)).values(**again))
            return self._row(connection, number)

    @patient
    def end_attempt(self, token: int, number: int, outcome: str, *, device_seconds: float | None = None) -> TrialRow:
        """This driver is done with the trial, which is to go on later (paused, lost); the row."""
        with self.fenced(token) as connection:
            self._end(connection, token, number, outcome, int(now(connection) * 1000), device_seconds)
            return self._row(connection, number)

    def _end(
        self, connection: sa.Connection, token: int, number: int, outcome: str, clock: int, seconds: float | None
    ) -> None:
        values: dict[str, Any] = {"ended_ms": clock, "outcome": outcome}
        if seconds is not None:
            values["device_seconds"] = seconds
        connection.execute(
            self._of(t.attempts, number, sa.update(t.attempts)).where(t.attempts.c.token == token).values(**values)
        )

    def _of(self, table: sa.Table, number: int, statement: Any) -> Any:
        return statement.where(table.c.study == self.name, table.c.number == number)

    def trials(self) -> list[TrialRow]:
        """All trials by number."""
        with self.engine.connect() as connection:
            return self._rows(connection)

    def trial(self, number: int) -> TrialRow:
        """One trial; `UserError` when there is none of this number."""
        with self.engine.connect() as connection:
            rows = self._rows(connection, number)
        if not rows:
            raise UserError(f"study {self.name!r} has no trial {number}; `agft status {self.name}` lists them")
        return rows[0]

    def _row(self, connection: sa.Connection, number: int) -> TrialRow:
        return self._rows(connection, number)[0]

    def _rows(self, connection: sa.Connection, number: int | None = None) -> list[TrialRow]:
        def read(table: sa.Table) -> list[dict[str, Any]]:
            statement = sa.select(table).where(table.c.study == self.name).order_by(*table.primary_key.columns)
            if number is not None:
                statement = statement.where(table.c.number == number)
            return [row._asdict() for row in connection.execute(statement)]

        return trial_rows(self.name, read(t.trials), read(t.epochs), read(t.verdicts), read(t.attempts))


class DriverStore(StudyStore):
    """A driver's: while the database is away it waits with what it reads, too."""

    load = patient(StudyStore.load)
    trials = patient(StudyStore.trials)
