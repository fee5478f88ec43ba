"""A trial without training: all of `study.driver.trial.run_trial`'s contract but the neural network and Ray Train.

It runs in Tune's own process, takes its curve from a function of the sampled values, keeps real objects in S3, goes on
from them after an interruption, obeys the board, and misbehaves when it is told to. `python tests/support/light.py
STUDY.yaml` drives a study with it as `agft run` does, in a process of its own that a test can kill.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import log2, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.artifacts.checkpoints import attempt_prefix, begin_group, fetch_state, keep_file
from study.driver.away import Patience
from study.driver.board import Inside, announce, ask_board, board_name, remark, tell_wait
from study.driver.trial import TrialOrder
from trainers.errors import Interrupted, MissingWeights
from trainers.schema.records import At, Ending, EpochRecord, Measurement, Report, Score, Sign, Weights, is_better

if TYPE_CHECKING:
    from infra.cluster.cluster import Cluster
    from infra.services import Services
    from study.driver.run import Outcome
    from study.spec.config import StudyConfig
    from study.store.store import StudyStore

# At the end of the epoch `Plan.fault_epoch`, before anything of it is kept or reported.
FAULTS = {
    "nothing": "returns without a single report, before the first epoch",
    "mute": "returns without an outcome",
    "raise": "an exception that the trial's own code catches and reports, as run_trial does for its workers'",
    "escape": "an exception that reaches Tune",
    "non-finite": "a loss that is nan, found by the training loop",
    "out-of-memory": "MemoryError in the training",
    "no-weights": "the weights that every trial starts from are not there",
    "hang-once": "says nothing any more, unless it goes on from a checkpoint",
    "long": "an epoch of `Plan.long_seconds`, with signs of life",
    "greedy": "takes memory until it is killed, at most GREEDY_BYTES, every time",
    "kill": "SIGKILL, every time",
    "kill-once": "SIGKILL, unless it goes on from a checkpoint",
}
GREEDY_BYTES = 6 << 30
Curve = Callable[[Mapping[str, Any]], list[tuple[float, float, float]]]
Tell = Callable[[dict[str, Any]], None]
IMAGES = 1200
UNMODIFIED = Score.of(correct=876, robust=264, total=IMAGES)
BASELINE = Measurement(
    clean_accuracy=UNMODIFIED.clean_accuracy, robust_accuracy=UNMODIFIED.robust_accuracy,
    datasets={name: {"4/255": UNMODIFIED} for name in ("tiny-shapes", "tiny-digits")},
)  # fmt: skip


def response(config: Mapping[str, Any]) -> list[tuple[float, float, float]]:
    """(clean, robust, seconds) after every epoch: smooth in rate, ratio and radius, with repeatable noise."""
    rate, eps = log10(config["train"]["optimizer"]["lr"]), max(0.25, config["attack"]["eps"] * 255)
    ratio = config["method"].get("scale_ratio", 0.8)
    robust = 0.47 - 0.05 * (rate + 3.1) ** 2 - 0.10 * (ratio - 0.8) ** 2 + 0.03 * log2(eps)
    clean = 0.70 - 0.035 * (rate + 4) ** 2 - 0.03 * log2(eps)
    noise = random.Random(f"{rate!r}/{ratio!r}/{eps!r}")
    points = []
    for epoch in range(1, config["train"]["epochs"] + 1):
        left = 0.55**epoch
        points.append(
            (
                min(1.0, max(0.0, clean + (0.73 - clean) * left + noise.gauss(0, 0.006))),
                min(1.0, max(0.0, robust + (0.22 - robust) * left + noise.gauss(0, 0.008))),
                1.0,
            )
        )
    return points


@dataclass(frozen=True)
class Plan:
    """How light trials behave. `faults`: trial number -> a name of `FAULTS`.

    An epoch takes the curve's seconds times `scale`, the start of a trial `start_seconds`.
    """

    curve: Curve = response
    scale: float = 0.0
    start_seconds: float = 0.0
    faults: Mapping[int, str] = field(default_factory=dict)
    fault_epoch: int = 2
    long_seconds: float = 40.0


def light(plan: Plan | None = None) -> Callable[[dict[str, Any]], None]:
    """A trainable for `run_study`. Ray's workers need not find this file: it travels with the function."""
    import ray.tune

    plan = plan or Plan()
    unknown = set(plan.faults.values()) - set(FAULTS)
    assert not unknown, f"{unknown} are no faults; known: {', '.join(FAULTS)}"
    for name in {__name__, plan.curve.__module__}:
        ray.cloudpickle.register_pickle_by_value(sys.modules[name])

    def light_trial(settings: dict[str, Any]) -> None:
        run_light(plan, settings, ray.tune.report)

    return light_trial


def run_light(plan: Plan, settings: dict[str, Any], report: Tell) -> None:
    """Tune's trainable; `report` takes the place of `tune.report`."""
    order = TrialOrder.of(settings)
    fault = plan.faults.get(order.number, "")
    if fault == "nothing":
        return
    time.sleep(plan.start_seconds)
    board = board_name(order.study, order.token)
    announce(board, order.number, "worker")
    try:
        with tempfile.TemporaryDirectory(prefix="agft-light-") as folder:
            ending = Ending(outcome=_train(plan, order, fault, board, Path(folder), report))
    except Escaped:
        raise
    except Interrupted as error:
        ending = Ending(outcome="interrupted", message=str(error))
    except ArithmeticError as error:
        ending = Ending.failed("non-finite", str(error))
    except MemoryError as error:
        ending = Ending.failed("out-of-memory", str(error))
    except MissingWeights as error:
        ending = Ending.failed("invalid", str(error)).model_copy(update={"of_every_trial": True})
    except ValueError as error:
        ending = Ending.failed("bug", str(error))
    if fault != "mute":
        report({"ending": ending.model_dump_json()})


class Escaped(Exception):
    """What no code of the trial expects."""


def _train(plan: Plan, order: TrialOrder, fault: str, board: str, folder: Path, tell: Tell) -> Any:
    """Epochs up to the last one or the board's word; `finished`, `stopped` or `paused`."""
    epochs = order.config["train"]["epochs"]
    points = plan.curve(order.config)
    place = (order.bucket, order.study, order.number, order.token)
    patiently = Patience(partial(tell_wait, board, order.number), order.patience)
    attempt, say = attempt_prefix(*place), partial(remark, board, order.number)
    group = begin_group(place, order.known, say, patiently)
    restored = patiently(fetch_state, attempt, group, folder)
    kept: dict[str, Weights | None] = {"latest": restored.latest, "best": restored.best} if restored else {}
    state = json.loads(restored.state.read_text())["history"] if restored else []
    history = [EpochRecord.model_validate(record) for record in state]
    stored, word = order.stored, "continue"

    def report() -> str:
        """As `trainers.worker` does; the board's word."""
        nonlocal stored
        told = Report.of(history, stored, **kept, provenance={"hostname": "light", "devices": [], "pid": os.getpid()})
        tell({"report": told.model_dump_json()})
        answer = ask_board(board, order.number, order.rungs, told.epoch)
        stored = max(stored, answer.stored)
        return str(answer.decision)

    if history:
        word = report()
    while word == "continue" and len(history) < epochs:
        epoch = len(history) + 1
        time.sleep(points[epoch - 1][2] * plan.scale)
        if epoch == plan.fault_epoch:
            _misbehave(fault, order.number, resumed=restored is not None)
            if fault == "long" and not _take_long(plan.long_seconds, Inside(board, order.number)):
                return "paused"
        history.append(_record(order, history, points[epoch - 1]))
        path = folder / "state.json"
        path.write_text(json.dumps({"history": [record.model_dump(mode="json") for record in history]}))
        if history[-1].best_epoch == epoch:  # the best weights first, as the real trial
            kept["best"] = patiently(keep_file, attempt, group, path, "best", At(epoch, epoch), stored)
        kept["latest"] = patiently(keep_file, attempt, group, path, "latest", At(epoch, history[-1].best_epoch), stored)
        word = report()
    return "finished" if len(history) >= epochs else {"stop": "stopped", "pause": "paused"}[word]


def _take_long(seconds: float, inside: Inside) -> bool:
    """False where the driver wants the trial to leave meanwhile; of the epoch nothing is kept."""
    for second in range(int(seconds)):
        inside.tell(Sign(stage="training", done=10 * second, total=int(10 * seconds), images_per_second=10.0))
        time.sleep(1.0)
        if inside.asked():
            return False
    return True


def _misbehave(fault: str, number: int, *, resumed: bool) -> None:
    if fault == "kill" or (fault == "kill-once" and not resumed):
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hang-once" and not resumed:
        time.sleep(10**6)
    taken = []
    while fault == "greedy" and len(taken) < GREEDY_BYTES >> 26:
        taken.append(b"1" * (1 << 26))
        time.sleep(0.02)
    errors: dict[str, Exception] = {
        "raise": ValueError(f"trial {number} was told to raise"),
        "escape": Escaped(f"trial {number} was told to let an exception escape"),
        "non-finite": ArithmeticError("the loss is nan at step 7"),
        "no-weights": MissingWeights("model.pretrained: /weights.pt: no such file"),
        "out-of-memory": MemoryError("cannot allocate 80 GiB"),
    }
    if fault in errors:
        raise errors[fault]


def _record(order: TrialOrder, history: list[EpochRecord], point: tuple[float, float, float]) -> EpochRecord:
    """The next epoch; its accuracies are the curve's, to one image in 1200."""
    from trainers.schema.training import Goal

    goal, epoch = Goal.model_validate(order.config["goal"]), len(history) + 1
    clean, robust, seconds = point
    score = Score.of(correct=round(clean * IMAGES), robust=round(min(clean, robust) * IMAGES), total=IMAGES)
    own = {
        "clean_accuracy": score.clean_accuracy, "robust_accuracy": score.robust_accuracy,
        "feasible": all(getattr(score, name) >= floor for name, floor in goal.at_least.items()),
    }  # fmt: skip
    best = history[history[-1].best_epoch - 1] if history else None
    values = own if best is None or is_better(score, best, goal) else best.model_dump(include=set(own))
    return EpochRecord(
        epoch=epoch, timestamp_ms=int(time.time() * 1000), steps=8 * epoch, train_loss=2.0 * 0.8**epoch, parts={},
        lr=order.config["train"]["optimizer"]["lr"], grad_norm=1.0, **own,
        datasets={name: {"4/255": score} for name in order.config["evaluate"]["datasets"]},
        best_epoch=epoch if values is own else history[-1].best_epoch,
        **{f"best_{name}": value for name, value in values.items()},
        train_seconds=seconds, eval_seconds=0.1, images_per_second=512 / max(seconds, 1e-9),
    )  # fmt: skip


def create_measured(store: StudyStore, spec: StudyConfig, baseline: Measurement = BASELINE) -> None:
    """A new study whose unmodified model counts as measured: its driver imports no torch and reads no dataset."""
    if store.create(spec):
        token = store.acquire("light|1|0|m.b.1", seconds=5)
        store.set_study(token, baseline=baseline, provenance={"code": {"revision": "0" * 40, "dirty": False}})
        store.release(token, "new")


STUDY = """\
name: NAME
model: {arch: tiny-clip, pretrained: bundled}
method: {name: agft, logit_scale: {of_model: 1.0}, scale_ratio: 0.8}
attack: {name: pgd, eps: 4/255, steps: 2}
data: {train: tiny-color-shapes, dev: [tiny-shapes, tiny-digits], confirm: [tiny-colors], final: [tiny-letters]}
train: {epochs: 6, batch_size: 64, samples_per_epoch: 64, optimizer: {name: adamw, lr: 5e-4}}
evaluate: {select: {attack: {eps: [4/255], steps: 2}, samples: 24}}
search:
  method.scale_ratio: {low: 0.2, high: 1.4}
  attack.eps: {low: 1/255, high: 8/255}
  train.optimizer.lr: {low: 1e-5, high: 1e-1, log: true}
scheduler: {name: asha, grace_fraction: 0.3, reduction_factor: 2}
goal: {metric: robust_accuracy, subject_to: {clean_accuracy: ">= clip * 0.8"}}
budget: {trials: 12}
seed: 1
"""


def light_study(name: str, **changed: Any) -> StudyConfig:
    """A study of 12 trials of 6 epochs under ASHA; `changed` replaces whole blocks."""
    import yaml

    from study.spec.files import parse_study

    return parse_study(yaml.safe_dump({**yaml.safe_load(STUDY), "name": name, **changed}), source=name)


@contextmanager
def light_cluster(services: Services, home: Path, *, cpus: int = 2) -> Iterator[Cluster]:
    """A local Ray cluster whose processes know the services, in this process; ended with everything it started."""
    from infra.cluster.cluster import connect, disconnect

    before = dict(os.environ)
    for name in [name for name in before if name.startswith(("AWS_", "MLFLOW_", "AGFT_", "RAY_ADDRESS"))]:
        del os.environ[name]
    os.environ.update(services.environment(), AGFT_HOME=str(home))
    try:
        yield connect(num_cpus=cpus)
    finally:
        disconnect()
        os.environ.clear()
        os.environ.update(before)


def drive(
    spec: StudyConfig, plan: Plan | None = None, *, database: str, cluster: Cluster, services: Services,
    say: Callable[[str], None] = print, baseline: Measurement = BASELINE,
) -> Outcome:  # fmt: skip
    """Run a study of light trials to its end, or go on with it."""
    from study.driver.run import run_study
    from study.store.store import StudyStore

    store = StudyStore(database, spec.name)
    create_measured(store, spec, baseline)
    return run_study(
        store.load().spec, database=database, cluster=cluster, bucket=services.bucket,
        tracking_uri=services.mlflow_uri, say=say, trainable=light(plan),
    )  # fmt: skip


def main() -> None:
    """Drive a study of light trials in the home `AGFT_HOME`, beside its services; lines as `agft run` prints them."""
    from infra.services import default_home
    from study.console import Clock, say
    from study.errors import SERVICE_ERRORS
    from study.session import cluster_here, services_here
    from study.spec.files import load_study
    from study.store.database import database_url

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--scale", type=float, default=0.0, help="seconds an epoch")
    parser.add_argument("--faults", type=json.loads, default={}, help='such as {"3": "kill"}')
    parser.add_argument("--cpus", type=int, default=2)
    wanted = parser.parse_args()
    home, clock = default_home(os.environ), Clock()
    spec = load_study(wanted.file)
    services = services_here(home, clock)
    plan = Plan(scale=wanted.scale, faults={int(number): fault for number, fault in wanted.faults.items()})
    cpus = None if os.environ.get("RAY_ADDRESS") else wanted.cpus
    try:
        with cluster_here(clock, num_cpus=cpus) as cluster:
            outcome = drive(spec, plan, database=database_url(home), cluster=cluster, services=services, say=clock)
    except SERVICE_ERRORS as error:
        say(f"failed: {error}")
        sys.exit(1)
    print(f"{outcome.state}: {outcome.message}", flush=True)


if __name__ == "__main__":
    main()
