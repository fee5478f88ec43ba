"""Ray Tune as a study uses it: a searcher that says which trial starts next and when, a scheduler that stops none."""

from __future__ import annotations

import logging
import os
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import class_cache
from ray.tune.experiment import trial as tune_trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from infra.cluster import raw_output
from infra.errors import ServiceError, UserError
from study.driver.driver import Driver
from study.driver.seats import in_memory
from study.driver.trial import ending_of, run_trial
from study.driver.trials import Upcoming
from study.errors import StudyFailed
from trainers.schema.records import Ending

# A trial's own process waits for its workers and must not take a core from them; Ray wants it to ask for something.
DRIVER_RESOURCES = {"CPU": 0, "memory": 1 << 20}


class StudySearcher(Searcher):
    """What Tune talks to. `begin(number)` stores the start of a trial, `end(number, error)` its outcome; true is
    a trial that was interrupted and goes on.

    `unfinished` trials of an earlier driver go first; then come those that `upcoming()` names, each when it may start.
    It limits concurrency itself (`slots` free trials at once, `admit()` asks the cluster), so that Tune never builds a
    trial that would only wait for resources.
    """

    def __init__(
        self,
        *,
        unfinished: Iterable[int],
        upcoming: Callable[[], Upcoming | None],
        ended: Callable[[int], bool],
        slots: int,
        admit: Callable[[int], bool],
        begin: Callable[[int], dict[str, Any]],
        end: Callable[[int, bool], bool],
        closing: Callable[[], bool],
    ) -> None:
        super().__init__()
        self.waiting = deque(sorted(unfinished))
        self.upcoming, self.ended, self.slots = upcoming, ended, slots
        self.admit, self.begin, self.end, self.closing = admit, begin, end, closing
        self.numbers: dict[str, int] = {}  # Tune's trial id -> our number, for the trials of this driver

    def finished(self) -> bool:
        """Whether no trial is left to start."""
        return self._next() is None

    def _next(self) -> Upcoming | None:
        while self.waiting and self.ended(self.waiting[0]):  # it may have been dropped meanwhile
            self.waiting.popleft()
        return Upcoming(self.waiting[0]) if self.waiting else self.upcoming()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A trial's settings; None while it has to wait; FINISHED when there is none any more."""
        if self.closing():
            return Searcher.FINISHED
        if len(self.numbers) >= self.slots:
            return None
        coming = self._next()
        if coming is None:
            return Searcher.FINISHED
        if coming.awaited is not None or not self.admit(coming.number):
            return None
        if self.waiting:
            self.waiting.popleft()
        self.numbers[trial_id] = coming.number
        return self.begin(coming.number)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tune is done with a trial, one way or the other."""
        number = self.numbers.pop(trial_id, None)
        if number is not None and self.end(number, error):
            self.waiting.append(number)

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Yes, this searcher limits concurrency itself."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Nothing: Tune's directory is scratch, the database is the truth."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing, as `save`."""

    def restore(self, checkpoint_path: str) -> None:
        """Never used: every driver builds a fresh searcher from the store."""
        raise NotImplementedError("a study is continued from its store, not from Tune's files")

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher into scratch; no database address or handle goes there


class _Scheduler(FIFOScheduler):
    """Tune's view of early stopping: it always continues; the verdict goes by way of the board."""

    def __init__(self, driver: Driver, searcher: StudySearcher) -> None:
        super().__init__()
        self.driver, self.searcher = driver, searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number = self.searcher.numbers.get(trial.trial_id)
        if number is not None:
            self.driver.result(number, result)
        return str(TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        number, file = self.searcher.numbers.get(trial.trial_id), trial.pickled_error_file
        if number is not None and file:  # Tune has just written it there; it hands its scheduler nothing else
            try:
                ending = ending_of(ray.cloudpickle.loads(Path(file).read_bytes()))
            except Exception:  # an error of the trial's code that does not survive the way
                ending = Ending.failed("bug", Path(trial.error_file).read_text()[-4000:])
            self.driver.endings.setdefault(number, ending)

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Turn(tune.Callback):
    """Gives the driver a turn in Tune's loop."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.driver.step()

    def __getstate__(self) -> dict[str, Any]:
        return {}


def fit(driver: Driver, searcher: StudySearcher, trainable: Callable[[dict[str, Any]], None], *, name: str) -> None:
    """Run Tune until it has heard of no more trials; `StudyFailed` where it gives up, in one line."""
    _keep_keys_out_of_ray()
    _let_tune_lose_processes_to_memory()
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "3600"  # its snapshots are never read
    os.environ["TUNE_WARN_THRESHOLD_S"] = "30"  # a write to the database may take longer than its half a second
    # Tune looks for result files of its own, which are switched off, and warns that there are none.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    try:
        _tuner(driver, searcher, trainable, name).fit()
    except Exception as error:  # Ray raises whatever comes, a DeprecationWarning for a variable of the environment
        raise _in_one_line(error) from None


def _tuner(
    driver: Driver, searcher: StudySearcher, trainable: Callable[[dict[str, Any]], None], name: str
) -> tune.Tuner:
    return tune.Tuner(
        tune.with_resources(trainable, DRIVER_RESOURCES),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_Scheduler(driver, searcher),
            num_samples=-1,
            reuse_actors=trainable is run_trial,  # which ends by itself at once: Tune stops no trial
            trial_dirname_creator=lambda trial: f"tune-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=name,
            **in_memory(),
            verbose=0,
            callbacks=[_Turn(driver)],
            failure_config=tune.FailureConfig(max_failures=0),  # an interrupted trial is put in line again by us
        ),
    )


def _keep_keys_out_of_ray() -> None:
    """Tune copies keys of S3 into every trial's runtime environment, which Ray's logs and pages show to everybody who
    sees them (Ray 2.60, `ray/tune/execution/class_cache.py`). Nodes have keys of their own; nothing needs the copy."""
    kept = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE.intersection_update(kept)


class Killed(RayActorError, OutOfMemoryError):
    """The memory monitor's victim, as Tune knows lost processes."""

    def __init__(self, message: str) -> None:
        super().__init__(error_msg=message)
        self.message = message


def _let_tune_lose_processes_to_memory() -> None:
    """Tune gives up the whole sweep for a process that Ray's memory monitor has killed (Ray 2.60,
    `ray/air/execution/_internal/actor_manager.py`: `OutOfMemoryError` is neither of the two errors that it expects,
    nor one that it hands on), and where it had not said a word yet, because Tune's own printing asks it for one."""
    RayActorManager._actor_start_failed = _start_failed
    RayActorManager._actor_task_failed = _task_failed
    tune_trial.Trial._get_default_result_or_future = _first_word


_START_FAILED, _TASK_FAILED = RayActorManager._actor_start_failed, RayActorManager._actor_task_failed
_FIRST_WORD = tune_trial.Trial._get_default_result_or_future


def _start_failed(manager: Any, tracked_actor: Any, exception: Exception) -> None:
    _START_FAILED(manager, tracked_actor, _known_to_tune(exception))


def _task_failed(manager: Any, tracked_actor_task: Any, exception: Exception) -> None:
    _TASK_FAILED(manager, tracked_actor_task, _known_to_tune(exception))


def _known_to_tune(error: Exception) -> Exception:
    return Killed(str(error)) if isinstance(error, OutOfMemoryError) else error


def _first_word(trial: Any) -> Any:
    try:
        return _FIRST_WORD(trial)
    except OutOfMemoryError:
        trial._default_result_or_future = None
        return None


def _in_one_line(error: Exception) -> Exception:
    """What ended Tune: our own error where it is one, else one line that names the file with the rest."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, StudyFailed | ServiceError | UserError):
            return cause
        cause = cause.__cause__ or cause.__context__
    last = str(error).strip().splitlines() or [type(error).__name__]
    return StudyFailed(f"Ray Tune gave up: {last[-1][:300]} (all of it: {raw_output.note(traceback.format_exc())})")
