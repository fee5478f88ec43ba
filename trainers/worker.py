"""What runs inside a Ray Train worker: `train` with its one way out, the report, wired to Ray.

The only file of this package that knows Ray. It knows neither storage nor the study: whoever starts the workers hands
over a few functions (`Wiring`), picklable by reference.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from trainers import distributed
from trainers.errors import UserError
from trainers.model.weights import CheckpointError
from trainers.schema.records import Decision, Ending, Progress, Report, Weights
from trainers.training.loop import Outcome, train
from trainers.training.update import NonFinite
from trainers.trial_config import TrialConfig, outside_entries
from trainers.wiring import Wiring


def train_on_worker(settings: dict[str, Any]) -> Ending:
    """Train one trial; how it ended is the same on every rank.

    What the run itself did wrong (a non-finite loss; impossible input or out of memory on a single worker) is an
    outcome; everything else is raised, so that Ray Train tears the group down and starts again from the newest state.
    """
    started = time.monotonic()
    config = TrialConfig.model_validate(settings["config"])
    wiring: Wiring = settings["wiring"]
    try:
        outcome = _run(config, wiring, threads=int(settings["threads"]))
        return Ending(outcome=outcome, seconds=time.monotonic() - started)
    except NonFinite as error:  # agreed on by all ranks, since the loss is all-reduced
        kind, message = "non-finite", str(error)
    except UserError as error:
        if distributed.world_size() > 1 or isinstance(error, CheckpointError):
            raise  # a file may be missing on one machine only, and the other ranks wait in a collective
        kind, message = "invalid", str(error)
    except torch.OutOfMemoryError as error:
        if distributed.world_size() > 1:
            raise  # the other ranks wait in a collective: the group must go
        kind, message = "out-of-memory", str(error)
    return Ending.failed(kind, message, time.monotonic() - started)


def _run(config: TrialConfig, wiring: Wiring, *, threads: int) -> Outcome:
    torch.set_num_threads(max(1, threads))
    chief = ray.train.get_context().get_world_rank() == 0
    wiring.arrive()
    provenance = {**wiring.provenance(), "entries": outside_entries(config)}
    with tempfile.TemporaryDirectory(prefix="agft-trial-") as folder:
        workdir = Path(folder)
        group = distributed.broadcast_int(wiring.claim() if chief else 0)
        restored = wiring.fetch(group, workdir)
        kept: dict[str, Weights | None] = {"latest": restored.latest, "best": restored.best} if restored else {}
        stored = wiring.stored

        def report(progress: Progress) -> Decision:
            nonlocal stored
            if not chief:  # every rank must report; the first one's is passed on, and its decision holds for all
                ray.train.report({})
                return Decision.CONTINUE
            if not progress.resumed:
                # The best weights first: a state that says "epoch 4 is the best" never exists without them.
                if progress.best is not None:
                    kept["best"] = wiring.keep(group, progress.best, "best")
                if progress.latest is not None:
                    kept["latest"] = wiring.keep(group, progress.latest, "latest")
            facts = {**provenance, "inputs": progress.inputs}
            told = Report.of(progress.history, stored, **kept, provenance=facts)
            ray.train.report({"report": told.model_dump_json()})
            answer = wiring.answer(told.epoch)
            stored = max(stored, answer.stored)
            return answer.decision

        result = train(
            config,
            report=report,
            workdir=workdir,
            resume_from=restored.state if restored else None,
            device=str(ray.train.torch.get_device()),
            shared=wiring.shared,
        )
    return result.outcome
