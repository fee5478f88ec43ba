"""Studies as Prometheus metrics: read from the study database at every scrape, whoever drives them, and where.

Ray exports its own metrics; these are about studies and say the same after a driver is gone.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from sqlalchemy.exc import SQLAlchemyError

from study.errors import SERVICE_ERRORS, UserError
from study.results.ranking import best_trial
from study.results.status import counts, live_state
from study.store.database import engine_for, now
from study.store.store import LEASE_SECONDS, StudyStore, study_names

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
            top = best_trial(rows, study.goal) if study.goal else None
            for kind in ("clean", "robust"):
                if top is not None and top.last is not None:
                    best.add_metric([name, kind], top.last.at_best(f"{kind}_accuracy"))
                if study.baseline is not None:
                    clip.add_metric([name, kind], getattr(study.baseline, f"{kind}_accuracy"))
            device.add_metric([name], sum(trial.device_seconds for trial in rows))
            driven.add_metric([name], study.driven_seconds)
            stamps = [record.timestamp_ms for trial in rows for record in trial.epochs]
            epochs.add_metric([name], len(stamps))
            if stamps:
                report.add_metric([name], max(0.0, clock - max(stamps) / 1000))
            if study.lease_owner:
                beat.add_metric([name], max(0.0, LEASE_SECONDS - study.lease_seconds))
            created.add_metric([name], study.created_ms / 1000)
        yield from (state, trials, budget, best, clip, device, driven, epochs, report, beat, created)


def exposition(url: str) -> bytes:
    """The text that Prometheus reads."""
    registry = CollectorRegistry()
    collector = StudyCollector(url)
    registry.register(collector)
    return generate_latest(registry)


# The endpoint that Prometheus scrapes: `/metrics` with a bearer token; nothing else, and nothing without it.

log = logging.getLogger("agft")
TOKEN_FILE = "metrics_token"  # of the home; Prometheus' `credentials_file` may name it
AWAY: tuple[type[Exception], ...] = (SQLAlchemyError, *SERVICE_ERRORS)


class MetricsServer(ThreadingHTTPServer):
    """Answers GET /metrics with what `text` returns, to those who have the token; 503 while the database is away."""

    daemon_threads = True

    def __init__(self, bind: str, port: int, token: str, text: Callable[[], bytes]) -> None:
        self.token, self.text = token, text
        try:
            super().__init__((bind, port), _Handler)
        except OSError as error:
            raise UserError(f"--port: {bind}:{port} cannot be listened on: {error.strerror}") from None


class _Handler(BaseHTTPRequestHandler):
    server: MetricsServer
    timeout = 10  # of a client that says nothing
    server_version = "agft"
    sys_version = ""

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are no news."""

    def do_GET(self) -> None:
        """`/metrics`; everything else is not there."""
        given = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if not hmac.compare_digest(given.encode(), self.server.token.encode()):
            self._answer(401, b"a token is demanded\n", {"WWW-Authenticate": "Bearer"})
        elif self.path.partition("?")[0] != "/metrics":
            self._answer(404, b"/metrics\n")
        else:
            self._metrics()

    def _metrics(self) -> None:
        try:
            body = self.server.text()
        except AWAY as error:
            log.warning("metrics: the study database does not answer (%s)", type(error).__name__)
            self._answer(503, b"the study database does not answer\n")
            return
        self._answer(200, body, {"Content-Type": CONTENT_TYPE_LATEST})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
