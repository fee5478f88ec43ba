"""What of Ray Tune itself the driver changes, without a cluster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.air.execution._internal import RayActorManager
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.tune.experiment import Trial

from study.driver import tune
from study.errors import LeaseLost, StudyFailed


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    storage = SimpleNamespace(trial_working_directory=str(tmp_path), trial_driver_staging_path=str(tmp_path))
    made = Trial("light", stub=True, trial_id="t")
    made.storage = storage
    return made


def failed(trial: Trial, error: Exception, *, at_start: bool) -> Any:
    """What the driver hears of a trial whose process Tune's manager finds failed."""
    tune._let_tune_lose_processes_to_memory()
    manager = RayActorManager(SimpleNamespace(free_resources=lambda acquired_resource: None))
    actor = TrackedActor(1, on_error=lambda _, found: trial.handle_error(found))
    manager._live_actors_to_ray_actors_resources[actor] = (None, None)
    if at_start:
        manager._actor_start_failed(actor, error)
    else:
        manager._actor_task_failed(TrackedActorTask(actor), error)
    driver: Any = SimpleNamespace(endings={})
    searcher: Any = SimpleNamespace(numbers={"t": 7})
    tune._Scheduler(driver, searcher).on_trial_error(None, trial)
    return driver.endings[7]


@pytest.mark.parametrize("at_start", [True, False])
def test_a_process_that_the_memory_monitor_killed_ran_out_of_memory(trial: Trial, at_start: bool) -> None:
    ending = failed(
        trial, OutOfMemoryError("Task was killed due to the node running low on memory.\n..."), at_start=at_start
    )
    assert ending.failure_kind == "out-of-memory"
    assert ending.message.startswith("Task was killed due to the node running low on memory.; lower train.batch_size")


def test_any_other_lost_process_is_lost(trial: Trial) -> None:
    ending = failed(trial, ActorDiedError(), at_start=False)
    assert (ending.outcome, ending.lost) == ("interrupted", True)


@pytest.mark.parametrize("error", [TypeError("unexpected"), DeprecationWarning("TUNE_RESULT_DIR"), KeyError("x")])
def test_whatever_ray_raises_is_one_line_that_names_the_file_with_the_rest(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setenv("AGFT_HOME", str(tmp_path))
    monkeypatch.setattr(tune.tune, "Tuner", refuse)
    searcher: Any = SimpleNamespace()
    with pytest.raises(StudyFailed, match=r"Ray Tune gave up: .* \(all of it: (.*)\)") as caught:
        tune.fit(searcher, searcher, refuse, name="n")
    [told] = (tmp_path / "logs").iterdir()
    assert str(told) in str(caught.value)
    assert type(error).__name__ in told.read_text()


def test_our_own_error_inside_tune_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("Tune's") from LeaseLost("another driver")

    monkeypatch.setattr(tune.tune, "Tuner", refuse)
    searcher: Any = SimpleNamespace()
    with pytest.raises(LeaseLost, match="another driver"):
        tune.fit(searcher, searcher, refuse, name="n")
