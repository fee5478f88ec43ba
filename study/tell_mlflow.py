"""MLflow's side of what is done to a study that nobody drives: without it a stopped study would look alive there.

A study that is driven is shown by its driver; one whose MLflow is away is shown by its next driver.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from infra import stack
from infra.errors import ServiceError, UserError
from infra.services import Services, services_from_environment
from infra.tracking import Tracker
from study.projection import (
    EXPERIMENT,
    end_study,
    project_best,
    project_epochs,
    project_outcome,
    project_study,
    project_trial,
)
from study.store import StudyStore

__all__ = ["tell_mlflow"]

PATIENCE_SECONDS = 20.0


def tell_mlflow(store: StudyStore, home: Path, say: Callable[[str], None]) -> None:
    """Show the study's ended trials and its own end as they are stored; nothing is started for it, nothing raised."""
    study, trials = store.load(), store.trials()
    if study.lease_seconds > 0 or study.baseline is None:
        return
    try:
        services = _that_run(home)
    except (UserError, ServiceError) as error:
        say(f"MLflow was not told: {error}")
        return
    if services is None:
        return
    os.environ.update(services.environment())
    tracker = Tracker(services.mlflow_uri, EXPERIMENT)
    project_study(tracker, study, reopen=False)
    for trial in (row for row in trials if row.finished):
        project_trial(tracker, study, trial)
        project_epochs(tracker, study, trial.number, trial.epochs)
        project_outcome(tracker, study, trial)
    project_best(tracker, study, trials)
    end_study(tracker, study)
    if tracker.close(PATIENCE_SECONDS):
        say("MLflow does not answer; it is told by the study's next driver")


def _that_run(home: Path) -> Services | None:
    """What the environment names, or the embedded services if they are up."""
    found = services_from_environment(os.environ)
    if found is None and any(one.name == "mlflow" and one.state == "running" for one in stack.status(home)):
        found = stack.up(home)
    return found
