"""A study as a Ray Job: the driver runs on the cluster, and this terminal may go.

Nothing secret is sent: the Jobs API shows a job's command and environment to everybody who may use it. The cluster's
nodes have the services' addresses and keys in their own environment; the driver's first lines check that.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from infra.checks.diagnosis import Diagnosis
from infra.cluster.cluster import SETTINGS, max_concurrent
from infra.cluster.jobs import Job, Jobs, is_loopback
from infra.errors import Conflict
from infra.provenance import code_revision
from infra.services import Services, services_from_environment
from study.artifacts.ready import WEIGHTS
from study.doctor.cluster import check_by_job
from study.doctor.study import DATASETS, needs_of_study
from study.errors import StudyFailed, UserError
from study.search.prior import check_prior
from study.spec.config import StudyConfig
from study.spec.places import local_places
from study.store.database import address_of
from study.store.rows import StudyRow
from study.store.store import StudyStore

START_SECONDS = 180.0
POLL_SECONDS = 1.0
# Ray would send SIGTERM and, 3 s later, SIGKILL; trials need longer to keep a state.
STOPPING = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "60"}


@dataclass(frozen=True)
class Submission:
    """A job that drives a study. `fresh`: it was started now, not found; `token`: of the lease before it."""

    store: StudyStore
    jobs: Jobs
    identity: str
    fresh: bool
    token: int


def check_shared(environ: Mapping[str, str], database: str, *, here: bool) -> Services:
    """The services that terminal and cluster share; every reason why they cannot be shared, in one `UserError`.

    `here`: all nodes are this machine, so that loopback and SQLite mean the same to them. Anywhere else they do not.
    """
    services = services_from_environment(environ)
    problems = []
    if services is None:
        problems.append(
            "the environment names no services; terminal and cluster share AWS_ENDPOINT_URL, AWS_REGION, "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AGFT_BUCKET and MLFLOW_TRACKING_URI"
        )
    else:
        for name, uri in (("AWS_ENDPOINT_URL", services.s3_endpoint), ("MLFLOW_TRACKING_URI", services.mlflow_uri)):
            host = urlsplit(uri).hostname
            if is_loopback(host) and not here:
                problems.append(f"{name}: {host} is another machine on every node; name the server as the nodes see it")
    parsed = address_of(database)
    if not here:
        if parsed.get_backend_name() == "sqlite":
            problems.append("AGFT_STUDY_DB: SQLite is a file of this machine; a cluster needs postgresql+psycopg://...")
        elif is_loopback(parsed.host) or parsed.host is None:
            problems.append("AGFT_STUDY_DB: a database on loopback; name the server as the nodes see it")
    if problems:
        raise UserError("\n".join(problems))
    assert services is not None
    return services


def submit(
    spec: StudyConfig,
    *,
    address: str,
    database: str,
    environ: Mapping[str, str],
    say: Callable[[str], None],
    working_dir: Path | None = None,
) -> Submission:
    """Store the study and start a driver for it on the cluster; finds the one that runs or waits there already.

    Raises `UserError` before anything is stored, `ServiceError` when the cluster does not take the job.
    """
    if working_dir is not None and not (working_dir / "study" / "cli" / "cluster.py").is_file():
        raise UserError(f"--working-dir: {working_dir}: not the code's top folder, which has study/cli/cluster.py")
    jobs = Jobs(address)
    jobs.check()
    here = jobs.is_here()
    check_shared(environ, database, here=here)
    if here:
        from study.artifacts.ready import check_ready

        check_ready(spec)
    elif named := local_places(spec.model_dump(mode="json")):
        check_places(address, spec, named, say)
    check_size(spec, jobs)
    store = StudyStore(database, spec.name)
    check_prior(database, spec)
    store.create(spec)
    study = store.load()
    if study.lease_seconds <= 0:
        store.desire("run")  # a driver that comes obeys what was asked meanwhile
    prefix = f"agft-{study.name}-{study.created_ms}-"
    if job := settled(jobs, store, prefix, say):
        return Submission(store, jobs, job.identity, fresh=False, token=study.token)
    earlier, study = jobs.of(prefix), store.load()
    if study.lease_seconds > 0:
        raise UserError(
            f"study {study.name!r} is being driven {driver_of(study)} already: `agft logs {study.name} -f` shows it. "
            f"If that driver has just died, try again in {study.lease_seconds:.0f} s"
        )
    store.desire("run")
    identity = f"{prefix}{1 + max((_number(job, prefix) for job in earlier), default=0)}"
    command = shlex.join(["python", "-m", "study.cli.cluster", study.name, str(study.created_ms)])
    try:
        jobs.submit(identity, command, environment=job_environment(working_dir), working_dir=working_dir)
    except Conflict:  # another terminal was first
        return Submission(store, jobs, identity, fresh=False, token=study.token)
    return Submission(store, jobs, identity, fresh=True, token=study.token)


def check_places(address: str, spec: StudyConfig, named: Sequence[str], say: Callable[[str], None]) -> None:
    """`UserError` with the files and folders of this terminal's machine that a node of the cluster does not have."""
    say(f"asking the cluster's nodes for {', '.join(named)} ...")
    refuse_lacking(list(check_by_job(address, needs_of_study(spec))), named)


def refuse_lacking(rows: Sequence[Diagnosis], named: Sequence[str]) -> None:
    """`UserError` if the nodes' own checks do not say that they have what is `named`."""
    asked = [row for row in rows if row.check in (DATASETS, WEIGHTS)]
    if not asked:
        failed = "\n".join(f"{row.detail}; {row.remedy}" for row in rows if row.state == "failed")
        raise UserError(f"the nodes cannot be asked for {', '.join(named)}: {failed or 'they do not answer'}")
    lacking = [row for row in asked if row.state == "failed"]
    if lacking:
        lines = [f"{row.where or 'a node'}: {row.detail}" for row in lacking]
        hint = "put them on a file system that all nodes share under this path, or into S3 (s3://BUCKET/KEY)"
        raise UserError("\n".join([*dict.fromkeys(lines), hint]))


def settled(jobs: Jobs, store: StudyStore, prefix: str, say: Callable[[str], None]) -> Job | None:
    """The study's job that drives or is going to; None once there is none.

    A job that runs without driving is either at its beginning or, having let go of the study, at its end: waited for.
    """
    deadline, told = time.monotonic() + START_SECONDS, False
    while active := [job for job in jobs.of(prefix) if not job.ended]:
        if store.load().lease_seconds > 0 or active[0].status == "PENDING" or time.monotonic() > deadline:
            return active[0]
        if not told:
            say(f"job {active[0].identity} is at its beginning or its end; waiting for either to be over ...")
            told = True
        time.sleep(POLL_SECONDS)
    return None


def check_size(spec: StudyConfig, jobs: Jobs) -> None:
    """`UserError` with the numbers if not even one trial fits the cluster as it is now."""
    wanted, nodes = spec.resources, [node.resources for node in jobs.nodes()]
    total = {name: sum(node.get(name, 0.0) for node in nodes) for name in wanted.of_trial()}
    max_concurrent(wanted.of_trial(), total, None, per_worker=wanted.of_worker(), workers=wanted.workers, nodes=nodes)


def job_environment(working_dir: Path | None) -> dict[str, str]:
    """What the job's processes are told, for everybody to see. Code that is sent brings its revision along."""
    told = {**SETTINGS, **STOPPING, "PYTHONUNBUFFERED": "1"}
    if working_dir is not None:
        code = code_revision(working_dir)
        if code["revision"]:
            told |= {"AGFT_GIT_REVISION": code["revision"], "AGFT_GIT_DIRTY": "1" if code["dirty"] else "0"}
    return told


def wait_for_driver(submission: Submission, say: Callable[[str], None]) -> None:
    """Until the driver drives, or has ended; `StudyFailed` with what it printed if it never came to driving."""
    deadline = time.monotonic() + START_SECONDS
    told = ""
    while True:
        study = submission.store.load()
        if study.lease_seconds > 0:
            say(f"the driver runs {driver_of(study)}")
            return
        job = submission.jobs.job(submission.identity)
        if job is None or job.ended:
            if submission.store.load().token > submission.token or (job and job.status == "SUCCEEDED"):
                return  # driven and over already
            raise StudyFailed(_why(submission, job))
        if time.monotonic() > deadline:
            say(f"the job is {job.status} after {START_SECONDS:.0f} s: {job.message}; see `agft status {study.name}`")
            return
        if job.status != told:
            say(f"job {job.status.lower()} ...")
            told = job.status
        time.sleep(POLL_SECONDS)


def _why(submission: Submission, job: Job | None) -> str:
    if job is None:
        return f"the cluster does not know job {submission.identity} any more"
    text = submission.jobs.output(submission.identity)
    if "No module named" in text or "not found" in text:
        reason = "where `ray start` ran, `python` has no agft: activate its environment there, on every node, or send "
        reason += "the code with --working-dir"
    else:
        reason = job.message
    return f"the driver ended before it began ({reason}). The end of its output:\n{_end(text)}"


def _end(text: str, lines: int = 15) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines()[-lines:])


def driver_of(study: StudyRow) -> str:
    """`on HOST (process PID)` of the study's driver."""
    host, pid = (study.lease_owner or "?|?").split("|")[:2]
    return f"on {host} (process {pid})"


def _number(job: Job, prefix: str) -> int:
    rest = job.identity.removeprefix(prefix)
    return int(rest) if rest.isdigit() else 0
