"""Studies as Prometheus metrics: read from the study database at every scrape, whoever drives them, and where.

Ray exports its own metrics; these are about studies and say the same after a driver is gone.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from study.database import engine_for, now
from study.results import best_trial
from study.status import counts, live_state
from study.store import LEASE_SECONDS, StudyRow, StudyStore, TrialRow, study_names

__all__ = ["STATES", "StudyCollector", "exposition"]

STATES = ("queued", "running", "paused", "interrupted", "stopped", "finished", "failed")


class StudyCollector:
    """What `prometheus_client` asks at a scrape; a study is one value of the label `study`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def collect(self) -> Iterator[Metric]:
        """All metrics of all studies. `SQLAlchemyError` or `StudyFailed` when the database is away."""
        label = ["study"]
        state = GaugeMetricFamily("agft_study_state", "1 for the state that the study is in", labels=["study", "state"])
        trials = GaugeMetricFamily("agft_study_trials", "Trials by what they are", labels=["study", "state"])
        budget = GaugeMetricFamily("agft_study_trials_budget", "Trials that the study may run", labels=label)
        best = GaugeMetricFamily(
            "agft_study_best_accuracy",
            "Of the best full-length trial on the dev sets, 0 to 1",
            labels=["study", "kind"],
        )
        clip = GaugeMetricFamily(
            "agft_study_unmodified_accuracy", "Of the unmodified CLIP on the dev sets, 0 to 1", labels=["study", "kind"]
        )
        device = CounterMetricFamily("agft_study_device_seconds", "Device-seconds of all attempts", labels=label)
        driven = CounterMetricFamily("agft_study_driven_seconds", "Wall time of all drivers together", labels=label)
        epochs = CounterMetricFamily("agft_study_epochs", "Epochs that trials have reported", labels=label)
        report = GaugeMetricFamily(
            "agft_study_last_report_age_seconds", "Since a trial last reported an epoch", labels=label
        )
        beat = GaugeMetricFamily(
            "agft_study_driver_heartbeat_age_seconds",
            "Since the driver last renewed its lease; absent when nobody drives, above 30 when a driver was lost",
            labels=label,
        )
        created = GaugeMetricFamily("agft_study_created_timestamp_seconds", "When it was made", labels=label)
        for name in study_names(self.url):
            store = StudyStore(self.url, name)
            study, rows = store.load(), store.trials()
            with engine_for(self.url).connect() as connection:
                clock = now(connection)
            found = live_state(study)
            for each in STATES:
                state.add_metric([name, each], float(each == found))
            for kind, value in counts(study, rows, live=found == "running").items():
                if kind != "done":  # the sum of three others
                    trials.add_metric([name, kind], value)
            budget.add_metric([name], study.spec.budget.trials)
            for family, values in ((best, _best(study, rows)), (clip, study.baseline)):
                for kind in ("clean", "robust"):
                    if values is not None:
                        family.add_metric([name, kind], float(values[f"{kind}_accuracy"]))
            device.add_metric([name], sum(trial.device_seconds for trial in rows))
            driven.add_metric([name], study.driven_seconds)
            stamps = [record["timestamp_ms"] for trial in rows for record in trial.epochs]
            epochs.add_metric([name], len(stamps))
            if stamps:
                report.add_metric([name], max(0.0, clock - max(stamps) / 1000))
            if study.lease_owner:
                beat.add_metric([name], max(0.0, LEASE_SECONDS - study.lease_seconds))
            created.add_metric([name], study.created_ms / 1000)
        yield from (state, trials, budget, best, clip, device, driven, epochs, report, beat, created)


def _best(study: StudyRow, trials: list[TrialRow]) -> dict[str, float] | None:
    if study.baseline is None:
        return None
    found = best_trial(trials, study.spec.goal.resolve(study.baseline))
    if found is None or found.last is None:
        return None
    return {f"{kind}_accuracy": found.last[f"best_{kind}_accuracy"] for kind in ("clean", "robust")}


def exposition(url: str) -> bytes:
    """The text that Prometheus reads."""
    registry = CollectorRegistry()
    collector = StudyCollector(url)
    registry.register(collector)
    return generate_latest(registry)
