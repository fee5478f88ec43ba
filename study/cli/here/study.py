"""Drive a study on this machine, and show what came of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from infra.checks.mlflow import require_mlflow
from infra.cluster import raw_output
from infra.cluster.cluster import named_cluster
from infra.cluster.watch import left_when_lost
from infra.services import services_from_environment
from study.cli.tables import trials_table
from study.console import Clock, percent, wide_console
from study.control.logs import copied_output
from study.driver.messages import Notifier, paused_line
from study.driver.run import Outcome, run_study
from study.errors import StudyFailed, UserError
from study.promotion.candidates import candidates, check_weights, preference_of, shortage
from study.promotion.claims import told_of
from study.promotion.records import Promotion
from study.report.page import write_report
from study.results.ranking import best_trial
from study.results.status import study_status
from study.search.prior import check_prior
from study.search.projection import check_projection
from study.session import cluster_here, services_here
from study.spec.config import StudyConfig
from study.store.database import database_url, engine_for, now
from study.store.store import StudyStore
from study.tracking import EXPERIMENT


def run_here(spec: StudyConfig, home: Path, *, then_promote: bool, as_json: bool = False) -> int:
    """Run a study (or go on with it) and show it; the exit code."""
    services_from_environment(os.environ)  # wrong addresses are answered before the study is there
    named_cluster(os.environ)
    store = StudyStore(database_url(home), spec.name)
    check_prior(store.url, spec)
    store.create(spec)  # refuses another spec before anything is started
    return resume_here(store, home, then_promote=then_promote, as_json=as_json)


def resume_here(store: StudyStore, home: Path, *, then_promote: bool, as_json: bool = False) -> int:
    """Drive a stored study from where it is, and show it; `as_json`: its status for machines, the rest aside.

    Exit code 0 when it has ended, 1 when it can go on; with `then_promote` that of the promotion, and 1 if no trial can
    be promoted.
    """
    clock = Clock(aside=as_json)
    store.refuse_if_driven_here()
    spec = store.load().spec
    if then_promote:
        check_weights(spec, preference_of(spec, None))
    clock(f"study {spec.name}: {spec.budget.trials} trials; Ctrl-C pauses it")
    check_projection(store)
    Notifier.from_environment(os.environ)  # a wrong address is answered before anything is started
    named_cluster(os.environ)
    services = services_here(home, clock)
    require_mlflow(services, clock, experiment=EXPERIMENT)
    promotion, refusal = None, ""
    kept_output = copied_output(home / "logs", bucket=services.bucket, store=store)
    with (
        raw_output.apart(), kept_output as copy, cluster_here(clock) as cluster, left_when_lost(lambda reason: copy()),
    ):  # fmt: skip
        outcome = run_study(
            spec, database=store.url, cluster=cluster, bucket=services.bucket, tracking_uri=services.mlflow_uri,
            say=clock, report=home / "reports" / spec.name,
        )  # fmt: skip
        if not as_json:
            _show(store, home, outcome, here=services.home is not None)
        if outcome.state == "paused":
            clock(paused_line(outcome.message, f"agft resume {spec.name}"))
            if as_json:
                _print_record(store, outcome, None)
            return 1
        if then_promote:
            from study.cli.here.promote import promote_on  # it measures, so it imports torch

            try:
                promotion = promote_on(store, services, cluster, clock)
            except StudyFailed as error:
                refusal = str(error)
    if promotion:
        from study.cli.here.promote import show_promotion

        if not as_json:
            show_promotion(wide_console(), promotion, services)
        write_report(store.load(), store.trials(), home / "reports" / spec.name, **told_of(store))
    if as_json:
        _print_record(store, outcome, promotion)
    else:
        print(f"\nMLflow UI: {outcome.mlflow_page}")
    if services.home and not as_json:
        print(f"           user {services.mlflow_username}, password: mlflow_password in {services.home}/secrets.json")
        print("           `agft stack down` stops the services; data stays")
    if refusal:
        clock(f"nothing was promoted: {refusal}")
        return 1
    return promotion.exit_code if promotion else 0


def _print_record(store: StudyStore, outcome: Outcome, promotion: Promotion | None) -> None:
    """The study's status as `agft status --json` has it, with its page in MLflow and what became of a promotion."""
    with engine_for(store.url).connect() as connection:
        found = study_status(store.load(), store.trials(), now(connection))
    decided = promotion.record() if promotion else None
    print(json.dumps({**found, "mlflow_page": outcome.mlflow_page, "promotion": decided}, indent=2))


def _show(store: StudyStore, home: Path, outcome: Outcome, *, here: bool) -> None:
    study = store.load()
    goal, clip = study.goal, study.baseline
    if goal is None or clip is None:  # it was paused before the unmodified model was measured: no trial was begun
        return
    console = wide_console()
    console.print()
    width = console.width if console.is_terminal else None
    console.print(trials_table(study.spec, outcome.trials, goal, width=width))
    best = best_trial(outcome.trials, goal)
    try:
        preference, count = preference_of(study.spec, None), study.spec.promote.candidates
        check_weights(study.spec, preference)
        found = candidates(study, outcome.trials, count=count, number=None, preference=preference)
    except (StudyFailed, UserError):  # said below, or by the promotion
        found = []
    if found and (short := shortage(found, count)):
        console.print(f"promotion: {short}", soft_wrap=True)
    if best is None or best.last is None:
        console.print("no full-length trial reaches every floor yet")
    else:
        own = best.last
        console.print(
            f"best: trial {best.number}, epoch {own.best_epoch}: clean {percent(own.best_clean_accuracy)} "
            f"(unmodified CLIP {percent(clip.clean_accuracy)}), robust {percent(own.best_robust_accuracy)} "
            f"(unmodified CLIP {percent(clip.robust_accuracy)})"
            + "".join(
                f", {name.replace('_', ' ')} {percent(own.at_best(name))} "
                f"(unmodified CLIP {percent(getattr(clip, name))})"
                for name in study.spec.goal.calibrations
            )
        )
    if here:
        console.print(f"report: {home / 'reports' / study.name / 'report.html'}")
    else:  # this may be a node of a cluster that its reader cannot see into
        console.print(f"report: in the study's run in MLflow, and where you call `agft report {study.name}`")
