"""A winner trained again with fresh seeds, on the cluster, as a study of its own that a kill cannot lose."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

from infra.cluster.cluster import Cluster
from study.errors import StudyFailed, UserError
from study.models.manifest import SeedMean
from study.promotion.gates import Measured
from study.spec.config import StudyConfig
from study.statistics import METRICS, Spread, spread, t_quantile
from study.store.lease import owner_identity
from study.store.rows import StudyRow, TrialRow
from study.store.store import StudyStore

NAME_LENGTH = 63


def fresh_seeds(study: StudyRow, trials: Sequence[TrialRow], number: int, count: int) -> tuple[int, ...]:
    """So many seeds that no trial of the search was trained with; the same whenever they are asked for."""
    used = {study.spec.seed, *(int(trial.config["seed"]) for trial in trials)}
    found: list[int] = []
    place = 0
    while len(found) < count:
        digest = hashlib.sha256(f"{study.slug}/{number}/{place}".encode()).digest()
        seed = int.from_bytes(digest[:4], "little") % 2**31
        if seed not in used and seed not in found:
            found.append(seed)
        place += 1
    return tuple(found)


def repetition(study: StudyRow, trial: TrialRow, seeds: Sequence[int]) -> StudyConfig:
    """The study that runs a trial's configuration again, once a seed, each epoch selected by the same rule."""
    name = f"{study.name}-seeds-{trial.number}x{len(seeds)}"
    if len(name) > NAME_LENGTH:
        raise UserError(f"promote.seeds: the study of fresh seeds would be called {name!r}, {len(name)} characters; "
                        f"at most {NAME_LENGTH}: give the study a shorter name")  # fmt: skip
    promote = {"model_name": study.spec.promote.model_name}
    return study.spec.repeated(name, trial.config, seeds, promote=promote)


def retrain(
    store: StudyStore,
    study: StudyRow,
    trial: TrialRow,
    seeds: Sequence[int],
    *,
    cluster: Cluster,
    bucket: str,
    tracking_uri: str,
    say: Callable[[str], None],
) -> dict[int, TrialRow]:
    """Seed -> its finished full-length trial; runs what is left to run. `StudyFailed` when it was interrupted."""
    from study.driver.run import run_study

    spec = repetition(study, trial, seeds)
    again = StudyStore(store.url, spec.name)
    again.create(spec)
    if again.load().state != "finished":
        say(f"trial {trial.number} is trained again with {len(seeds)} fresh seeds, as study {spec.name}")
        again.take_baseline(owner_identity(), study.baseline)
        outcome = run_study(
            spec, database=store.url, cluster=cluster, bucket=bucket, tracking_uri=tracking_uri, say=say
        )
        if outcome.state != "finished":
            raise StudyFailed(
                f"the fresh seeds of study {spec.name!r} are {outcome.state}: {outcome.message}; "
                "the same command goes on"
            )
    return {int(row.config["seed"]): row for row in again.trials() if row.state == "complete" and row.best}


def spreads(seeds: Mapping[int, Measured]) -> dict[str, Spread]:
    """Metric -> mean and deviation over the seeds."""
    return {name: spread([float(each.result[name]) for each in seeds.values()]) for name in METRICS}


def summary(found: Mapping[str, Spread]) -> dict[str, SeedMean]:
    """Metric -> mean, deviation, number, and the mean's 95 % t interval, which one seed does not have."""
    result = {}
    for name, each in found.items():
        low = high = None
        if each.deviation is not None:
            half = t_quantile(each.n - 1) * each.deviation / math.sqrt(each.n)
            low, high = each.mean - half, each.mean + half
        result[name] = SeedMean(mean=each.mean, deviation=each.deviation, n=each.n, low=low, high=high)
    return result


def median(seeds: Mapping[int, Measured], rank: Callable[[Measured], tuple[float, ...]]) -> int:
    """The seed in the middle by `rank`; of an even number the lower one. Never the luckiest of three or more."""
    order = sorted(seeds, key=lambda seed: (rank(seeds[seed]), seed))
    return order[(len(order) - 1) // 2]
