"""Clusters that are asked for: the Slurm script with processes for nodes, the SkyPilot task, Kueue's queues."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from study.spec.files import load_study
from study.store.store import StudyStore
from tests.infra.deploy.test_deploy_kubernetes import MANIFESTS, built, folder, mistakes, one, strict
from tests.support.services import hosts
from tests.support.services.compose import ROOT, services
from tests.support.services.hosted import Hosted
from tests.support.study_files import trained

__all__ = ["built", "folder"]

SCHEMAS = json.loads((Path(__file__).parent / "queue_schemas.json").read_text())
KUEUE = SCHEMAS["kueue"]["kinds"]
NODES = ("node-1", "node-2")
SERVICES = {"postgres": "postgres", "storage": "storage", "mlflow": "mlflow"}


def queues() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((MANIFESTS / "kueue" / "queues.yaml").read_text()))


def test_the_queues_are_what_kueues_own_schema_accepts_and_nothing_that_it_does_not_know() -> None:
    for item in queues():
        schema = strict(KUEUE[item["kind"]])
        schema["properties"]["metadata"] = {"type": "object"}
        assert mistakes(jsonschema.Draft202012Validator(schema).iter_errors(item)) == []
        item["spec"]["quota"] = 1
        assert len(mistakes(jsonschema.Draft202012Validator(schema).iter_errors(item))) == 1


def test_a_queued_job_keeps_kueues_rules_and_fits_the_queue(built: dict[str, list[dict[str, Any]]]) -> None:
    job, plain = one(built["gpu-kueue"], "RayJob"), one(built["gpu-job"], "RayJob")
    flavor, cluster, local = queues()
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == local["metadata"]["name"]
    assert job["metadata"]["namespace"] == local["metadata"]["namespace"]
    assert job["spec"]["suspend"], "Kueue lets it begin"
    assert job["spec"]["shutdownAfterJobFinishes"]
    ray = job["spec"]["rayClusterSpec"]
    assert not ray["enableInTreeAutoscaling"], "Kueue refuses a cluster that grows by itself"
    [quota] = cluster["spec"]["resourceGroups"]
    assert quota["flavors"][0]["name"] == flavor["metadata"]["name"]
    limits = {each["name"]: each["nominalQuota"] for each in quota["flavors"][0]["resources"]}
    [group] = ray["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
    asked = group["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert set(asked) <= set(quota["coveredResources"]), "a resource that no quota covers is never admitted"
    for name, amount in asked.items():
        wanted = group["replicas"] * int(amount.removesuffix("Gi"))
        assert wanted <= int(limits[name].removesuffix("Gi")), name
    assert job["spec"]["entrypoint"] == plain["spec"]["entrypoint"]


def test_the_skypilot_task_is_what_its_own_schema_accepts_and_names_a_study_that_there_is() -> None:
    task = yaml.safe_load((ROOT / "infra" / "deploy" / "skypilot.yaml").read_text())
    schemas = SCHEMAS["skypilot"]
    assert mistakes(jsonschema.Draft202012Validator(schemas["task"]).iter_errors(task)) == []
    assert mistakes(jsonschema.Draft202012Validator(schemas["resources"]).iter_errors(task["resources"])) == []
    wrong = {**task["resources"], "acelerators": "L4:1"}
    assert len(mistakes(jsonschema.Draft202012Validator(schemas["resources"]).iter_errors(wrong))) == 1
    assert load_study(ROOT / task["envs"]["STUDY"]).budget.trials > 0
    assert subprocess.run(["bash", "-n"], input=task["run"], text=True, check=False).returncode == 0


# Slurm: `srun` starts its command on every host, in a process namespace of its own, since `ray stop` ends every Ray
# that it sees; `scontrol` names the hosts and writes down what is queued again.

SRUN = """#!/bin/bash
code=0
for host in {hosts}; do
  ip netns exec {tag}-$host unshare --pid --fork --kill-child --mount-proc "$@" &
  started="$started $!"
done
for one in $started; do wait $one || code=$?; done
exit $code
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then printf '%s\\n' {hosts}; else echo "$@" >> {folder}/requeued; fi
"""


@pytest.fixture
def allocation() -> Iterator[Hosted]:
    """Services, and two hosts without anything yet."""
    if reason := hosts.why_not():
        pytest.skip(reason)
    place = Path(tempfile.mkdtemp(prefix="agft-h-", dir="/tmp"))
    place.chmod(0o711)
    written = place / "env"
    subprocess.run([ROOT / "docker" / "up", "--env-only"], check=True, capture_output=True,
                   env={"PATH": "/usr/bin:/bin", "AGFT_ENV_FILE": str(written)})  # fmt: skip
    lines = [line for line in written.read_text().splitlines() if not line.startswith("#")]
    variables = dict(line.split("=", 1) for line in lines)
    try:
        with hosts.hosts([*SERVICES, *NODES, "agft"]) as network:
            made = Hosted(network, services(variables), place)
            made.start_postgres("postgres")
            for name in ("storage", "mlflow"):
                made.start(name, name)
                made.wait_healthy(name, name)
            yield made
    finally:
        shutil.rmtree(place, ignore_errors=True)


def script(made: Hosted, study: Path) -> subprocess.Popen[bytes]:
    """The script as the first node runs it."""
    programs = made.folder / "slurm"
    programs.mkdir(exist_ok=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text.format(hosts=" ".join(NODES), tag=made.hosts.tag, folder=made.folder))
        (programs / name).chmod(0o755)
    given = {**made.environment("node-1", "ray-head"), "RAY_AUTH_MODE": "token"}
    environment = made.folder / "cluster-environment"
    environment.write_text("".join(f"{name}={value!r}\n" for name, value in given.items() if name != "PATH"))
    environment.chmod(0o600)
    slurm = {"SLURM_JOB_NODELIST": "node-[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "1",
             "SLURM_JOB_ID": "7", "AGFT_ENVIRONMENT": str(environment), "RAY_TMPDIR": str(made.folder / "t"),
             "AGFT_PROGRAMS": f"{programs}:{Path(sys.executable).parent}",
             "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}  # fmt: skip
    with (made.folder / "slurm.log").open("ab") as log:
        line = made.hosts.command("node-1", ["bash", str(ROOT / "infra" / "deploy" / "study.sbatch"), str(study)])
        return subprocess.Popen(line, env=slurm, cwd=made.folder, stdout=log, stderr=log, start_new_session=True)


def wait_for(found: Callable[[], Any], job: subprocess.Popen[bytes], log: Path, seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert job.poll() is None, log.read_text()[-5000:]
        assert time.monotonic() < deadline, log.read_text()[-5000:]
        time.sleep(1)


EPOCHS = 120


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_slurms_script_runs_a_study_on_its_allocation_leaves_before_the_time_is_up_and_goes_on_when_queued_again(
    allocation: Hosted,
) -> None:
    file, log = allocation.folder / "queued.yaml", allocation.folder / "slurm.log"
    # epochs for minutes: the pause has to come before their end
    file.write_text(trained(name="queued", train=f"{{epochs: {EPOCHS}, batch_size: 64, samples_per_epoch: 256}}",
                            budget="{trials: 2}"))  # fmt: skip
    address = allocation.hosts.addresses["postgres"]
    password = allocation.environment("agft", "agft")["AGFT_STUDY_DB"].split(":")[2].split("@")[0]
    url = f"postgresql+psycopg://agft:{password}@{address}/agft"

    def epochs() -> int:
        try:
            return sum(len(trial.epochs) for trial in StudyStore(url, "queued").trials())
        except KeyError:
            return 0

    job = script(allocation, file)
    wait_for(epochs, job, log)
    os.kill(job.pid, signal.SIGUSR1)
    job.wait(300)
    kept = epochs()
    assert (allocation.folder / "requeued").read_text() == "requeue 7\n", log.read_text()[-5000:]
    assert StudyStore(url, "queued").load().state == "paused", log.read_text()[-5000:]
    assert kept < 2 * EPOCHS

    job = script(allocation, file)
    assert job.wait(900) == 0, log.read_text()[-5000:]
    study = StudyStore(url, "queued")
    assert [trial.state for trial in study.trials()] == ["complete", "complete"]
    assert epochs() == 2 * EPOCHS
    assert "study 'queued' is finished" in log.read_text()
    assert (allocation.folder / "requeued").read_text() == "requeue 7\n", "it is queued again once"
