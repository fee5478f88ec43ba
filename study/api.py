"""Studies from Python, as the command line has them, with typed results.

from study.api import Study

study = Study.open("demo-001")
print(study.state, len(study.trials), "trials")
print(study.best.params, study.best.robust_accuracy)
study.report("report")
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.audit.findings import Audit, Finding
from study.errors import UserError
from study.report.content import Content, content_of
from study.results.facts import Epoch, Trial, trials_of
from study.results.importance import Importances
from study.results.ranking import best_trial, pareto_front, ranked
from study.results.status import live_state
from study.spec.config import StudyConfig
from study.spec.files import load_study
from study.store.archive import stored_of
from study.store.database import database_url
from study.store.store import StudyStore, study_names
from trainers.schema.records import Measurement

if TYPE_CHECKING:
    import optuna
    import pandas  # type: ignore[import-untyped]

    from study.promotion.records import Promotion
    from trainers.evaluation.record import EvaluationRecord

__all__ = [
    "Audit",
    "Content",
    "Epoch",
    "Finding",
    "Importances",
    "Measurement",
    "Study",
    "Trial",
    "UserError",
    "studies",
]


def studies(*, home: str | Path | None = None) -> list[str]:
    """Names of all studies in the database, newest first."""
    return study_names(database_url(_home(home)))


@dataclass(frozen=True)
class Study:
    """One study. Every property reads the database anew, so that a running study is seen as it is now.

    Mistakes raise `UserError`, or another `ValueError`, with the message that the command line would print.
    """

    store: StudyStore
    home: Path

    @classmethod
    def open(cls, name: str, *, home: str | Path | None = None) -> Study:
        """The study `name` of the database that `AGFT_STUDY_DB` names, or of the AGFT home; whoever runs it."""
        folder = _home(home)
        store = StudyStore(database_url(folder), name)
        store.load()  # an unknown name is answered with the nearest one
        return cls(store, folder)

    @classmethod
    def run(
        cls, file: str | Path, *, name: str | None = None, promote: bool = False, home: str | Path | None = None
    ) -> Study:
        """Run a study file here, or go on with it, until it has ended; what `agft run` does, printing included.

        Look at `state` afterwards: a study that was paused can be run again.
        """
        from study.artifacts.ready import check_ready
        from study.cli.here.study import run_here

        spec = _named(load_study(Path(file)), name)
        check_ready(spec)
        run_here(spec, _home(home), then_promote=promote)
        return cls.open(spec.name, home=home)

    @classmethod
    def submit(
        cls,
        file: str | Path,
        *,
        name: str | None = None,
        address: str | None = None,
        working_dir: str | Path | None = None,
        home: str | Path | None = None,
    ) -> Study:
        """Run a study file on a Ray cluster, as `agft submit` does, and return once its driver has the study."""
        from infra.cluster.jobs import dashboard_address
        from study.control.submit import submit, wait_for_driver

        spec = _named(load_study(Path(file)), name)
        submission = submit(
            spec,
            address=dashboard_address(address, os.environ),
            database=database_url(_home(home)),
            environ=os.environ,
            say=print,
            working_dir=None if working_dir is None else Path(working_dir),
        )
        wait_for_driver(submission, print)
        return cls.open(spec.name, home=home)

    @property
    def name(self) -> str:
        """Its name, by which every terminal knows it."""
        return self.store.name

    @property
    def spec(self) -> StudyConfig:
        """The study file as a typed record, with the budget of now."""
        return self.store.load().spec

    @property
    def state(self) -> str:
        """`queued`, `running`, `paused`, `interrupted`, `stopped`, `failed` or `finished`."""
        return live_state(self.store.load())

    @property
    def unmodified(self) -> Measurement | None:
        """Accuracies of the unmodified CLIP on the dev sets; None before they are measured."""
        return self.store.load().baseline

    @property
    def trials(self) -> list[Trial]:
        """Every trial by its number, in any state."""
        return trials_of(self.store.load(), self.store.trials())

    @property
    def best(self) -> Trial | None:
        """The best full-length trial that reaches every floor; None while there is none."""
        study, rows = self.store.load(), self.store.trials()
        found = best_trial(rows, study.goal) if study.goal else None
        return trials_of(study, [found])[0] if found else None

    def ranked(self) -> list[Trial]:
        """Full-length trials, best first: those that reach every floor by the goal, then the others."""
        study, rows = self.store.load(), self.store.trials()
        return trials_of(study, ranked(rows, study.goal)) if study.goal else []

    def pareto(self) -> list[Trial]:
        """Full-length trials that no other beats in both accuracies, or in every metric of a goal with several."""
        study = self.store.load()
        return trials_of(study, pareto_front(self.store.trials(), study.spec.goal.names))

    def importances(self) -> tuple[Importances, ...]:
        """What moved clean and robust accuracy, with the uncertainty; without entries below ten full-length trials."""
        return content_of(self.store.load(), self.store.trials()).importances

    def content(self) -> Content:
        """Everything that a report shows, typed: what `report.json` holds."""
        from study.promotion.claims import told_of

        return content_of(self.store.load(), self.store.trials(), **told_of(self.store))

    def audit(self) -> Audit:
        """Whether proposals, verdicts and claims follow from specification and stored records, and where not."""
        from study.promotion.claims import audited

        return audited(stored_of(self.store))

    def frame(self) -> list[dict[str, Any]]:
        """One plain dict a trial, parameters by dotted path: `pandas.DataFrame(study.frame())`."""
        return [trial.flat() for trial in self.trials]

    def report(self, folder: str | Path | None = None) -> Path:
        """Write the report (page, pictures, Markdown, JSON) into `folder`; returns the path of `report.html`."""
        from study.promotion.claims import told_of
        from study.report.page import write_report

        place = self.home / "reports" / self.name if folder is None else Path(folder)
        path = write_report(self.store.load(), self.store.trials(), place, **told_of(self.store))
        return path.with_name("report.html")

    def dataframe(self) -> pandas.DataFrame:
        """`frame` as a table, one row a trial by its number."""
        import pandas

        rows = self.frame()
        return pandas.DataFrame(rows).set_index("number") if rows else pandas.DataFrame()

    def optuna_study(self) -> optuna.Study:
        """The study as Optuna knows it, for its plots: `optuna.visualization.plot_slice(study.optuna_study())`.

        Only look: our tables are the truth, and what is changed there is not read. A `UserError` before the first
        trial.
        """
        import optuna

        try:
            return optuna.load_study(study_name=self.store.load().optuna_name, storage=self.store.url)
        except KeyError as error:
            raise UserError(f"study {self.name!r} has no trial yet; Optuna knows it from the first one on") from error

    def _repr_html_(self) -> str:
        """What a notebook shows: state and best, and the trials in the report's order."""
        from study.report.page import brief_html

        return brief_html(content_of(self.store.load(), self.store.trials(), known=()))

    def pause(self) -> str:
        """Ask the driver, wherever it runs, to pause; as every method here that does something, says what was done."""
        from study.control.lifecycle import pause_study

        return pause_study(self.store)

    def stop(self) -> str:
        """End the study now; its running trials count as stopped early: `agft stop`."""
        from study.control.lifecycle import stop_study

        return stop_study(self.store)

    def extend(self, *, trials: int = 0, hours: float = 0.0, gpu_hours: float = 0.0) -> str:
        """Raise the budget: `agft extend`."""
        from study.control.lifecycle import extend_study

        return extend_study(self.store, trials=trials, hours=hours, gpu_hours=gpu_hours)

    def resume(self, *, promote: bool = False) -> str:
        """Go on with it here until it ends or pauses: `agft resume`, printing included; its state then."""
        from study.artifacts.ready import check_ready
        from study.cli.here.study import resume_here

        check_ready(self.spec)
        resume_here(self.store, self.home, then_promote=promote)
        return self.state

    def promote(self, **order: Any) -> Promotion:
        """Prove the best trials on unseen data, and make the winner the champion if it passes every gate.

        `order` has the fields of `study.promotion.records.Order`: `trial`, `seeds`, `dry_run`, ...
        """
        from study.cli.here.promote import promote_on
        from study.console import Clock
        from study.promotion.records import Order
        from study.session import cluster_here, services_here

        clock, asked = Clock(), Order(**order)
        services = services_here(self.home, clock)
        with cluster_here(clock) as cluster:
            return promote_on(self.store, services, cluster, clock, asked)

    def evaluate(self, trial: int | None = None, *, suite: str | None = None, **order: Any) -> list[EvaluationRecord]:
        """Measure the best trial, or this one, on a suite under attack: `agft evaluate`; one record a set and attack.

        `order` has the fields of `study.evaluation.models.Order`: `samples`, `workers`, `original`, ...
        """
        from study.cli.here.evaluate import measured
        from study.evaluation.models import Order
        from study.evaluation.work import Progress
        from study.spec.suite import chosen_suite
        from trainers.model.bundled import ARCH

        found = self.best if trial is None else next((each for each in self.trials if each.number == trial), None)
        if found is None or found.checkpoint is None:
            wanted = "no trial that is the best" if trial is None else f"no trial {trial} with a checkpoint"
            raise UserError(f"study {self.name!r} has {wanted} yet")
        model = self.spec.model
        known = model.arch if model.arch == ARCH else f"{model.arch}:{model.pretrained}"
        label = order.pop("label", f"{self.name}-{found.number}")
        asked = Order(models=(found.checkpoint,), labels=(label,), suite=chosen_suite(suite, (known,)), **order)
        results = measured(asked, self.home, Progress())
        return [record for _, records in results for record in records]


def _home(home: str | Path | None) -> Path:
    from infra.services import default_home

    return default_home(os.environ) if home is None else Path(home)


def _named(spec: StudyConfig, name: str | None) -> StudyConfig:
    return spec if name is None else spec.renamed(name)
