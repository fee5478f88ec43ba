"""Named places where a test kills this process: between every pair of writes that must survive being cut apart.

`AGFT_FAILPOINT=name` kills with SIGKILL at the first passage of `name`, `name:3` at the third. Without the variable a
passage costs one look into a dictionary.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

# What has been written when the process dies here, and what has not.
FAILPOINTS = {
    "driver.acquired": "the lease is ours; nothing else",
    "driver.prepared": "provenance, lag, given trials and baseline are stored; no trial",
    "trial.proposed": "a new trial has parameters; the store does not know it",
    "trial.stored": "the store has the trial; Optuna does not, Tune has not started it",
    "trial.projected": "the store and Optuna have the trial; Tune has not started it",
    "trial.reopened": "a stopped trial is to be finished; no attempt at it is on record",
    "report.received": "the checkpoint is in S3 and reported; the store does not know the epoch",
    "report.stored": "the store has the epoch; MLflow does not",
    "verdict.stored": "the verdict is in the store; the trial was not told",
    "verdict.published": "the trial was told to stop and has not left yet",
    "outcome.received": "the trial has left; the store says running",
    "outcome.stored": "the store says finished; Optuna says running, old checkpoints are there",
    "outcome.told": "the store and Optuna say finished; old checkpoints are there",
    "outcome.tidied": "old checkpoints are gone; MLflow says running",
    "mlflow.before-create": "the study's or trial's run is in no record of MLflow's",
    "mlflow.after-create": "MLflow has the run; we do not know its id",
    "mlflow.after-points": "MLflow has the points; we have not noted that they are sent",
    "request.obeyed": "a trial is in line again, or out; the request still says pending",
    "drop.stored": "the store has a trial as dropped; Optuna has its value",
    "drop.projected": "Optuna has forgotten the trial as well; the request still says pending",
    "study.finished": "every trial is finished; the study says running, scratch files are there",
    "study.released": "the study says finished; MLflow's run may be open",
    "promotion.started": "the store has the promotion; nothing is measured",
    "promotion.look-counted": "the look at the confirm sets is counted and has not happened",
    "promotion.decided": "the gates are passed; the final sets are untouched, nothing is shipped",
    "promotion.access-counted": "the look at the final sets is counted and has not happened",
    "promotion.proved": "the final sets are measured; no version is reserved",
    "promotion.reserved": "a version's number is taken; its folder is empty",
    "promotion.weights-shipped": "weights and configuration are in the version; the rest is not",
    "promotion.described": "everything of the version is there but its manifest",
    "promotion.complete": "the version is complete; no record of a move, HEAD names the old champion",
    "head.recorded": "the record of the move is there; HEAD names the old champion",
    "head.moved": "HEAD names the new champion; neither MLflow nor the store know",
    "promotion.registered": "the store and MLflow have the version; the alias names another one",
    "promotion.aliased": "MLflow's aliases are right; the store has not noted that they are",
}
_passed: Counter[str] = Counter()


def reach(name: str) -> None:
    """Pass the failpoint `name`, or die there."""
    wanted = os.environ.get("AGFT_FAILPOINT")
    if not wanted:
        return
    assert name in FAILPOINTS, name
    _passed[name] += 1
    point, _, count = wanted.partition(":")
    if name == point and _passed[name] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
