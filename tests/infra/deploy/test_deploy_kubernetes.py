"""The Kubernetes manifests as kustomize builds them, against KubeRay's own schemas and against each other."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from infra.cluster.cluster import SETTINGS
from study.spec.files import load_study

ROOT = Path(__file__).parents[3]
MANIFESTS = ROOT / "infra" / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "gpu", "gpu-node", "cpu-job", "gpu-job", "gpu-kueue")
REDUCED = json.loads((Path(__file__).parent / "kuberay_schemas.json").read_text())
PODS = {"Deployment": "spec", "StatefulSet": "spec"}
GPU = "nvidia.com/gpu"


def kubectl() -> str:
    """The test environment's, else the system's."""
    beside = Path(sys.executable).parent / "kubectl"
    return str(beside) if beside.exists() else "kubectl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the manifests with secrets of its own."""
    copy = tmp_path_factory.mktemp("manifests") / "kubernetes"
    shutil.copytree(MANIFESTS, copy, ignore=shutil.ignore_patterns("secrets"))
    subprocess.run([copy / "new-secrets"], check=True, capture_output=True)
    return copy


@pytest.fixture(scope="module")
def built(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Overlay -> its objects."""
    found = {}
    for name in OVERLAYS:
        done = subprocess.run(
            [kubectl(), "kustomize", folder / "overlays" / name], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found[name] = [item for item in yaml.safe_load_all(done.stdout) if item]
    return found


def one(objects: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    [found] = [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    return found


def cluster_spec(objects: list[dict[str, Any]]) -> dict[str, Any]:
    for item in objects:
        if item["kind"] == "RayCluster":
            return dict(item["spec"])
        if item["kind"] == "RayJob":
            return dict(item["spec"]["rayClusterSpec"])
    raise AssertionError("neither a RayCluster nor a RayJob")


def strict(schema: Any) -> Any:
    """The same schema, in which a field that it does not name is a mistake: Kubernetes would drop it in silence."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    preserved = made.get("x-kubernetes-preserve-unknown-fields") or made.get("x-kubernetes-embedded-resource")
    if isinstance(made.get("properties"), dict) and "additionalProperties" not in made and not preserved:
        made["additionalProperties"] = False
    return made


def validator(schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**strict(schema), "$defs": strict(REDUCED["$defs"])})


def kuberay(kind: str) -> jsonschema.Draft202012Validator:
    schema = dict(REDUCED["kinds"][kind])
    schema["properties"] = {**schema["properties"], "metadata": {"type": "object"}}
    return validator(schema)


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` itself, where it is only the name of another."""
    while "$ref" in schema:
        schema = REDUCED["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def pod_schema() -> dict[str, Any]:
    """KubeRay's schema of a pod's specification, which is Kubernetes' own."""
    schema = REDUCED["kinds"]["RayCluster"]
    for key in ("spec", "headGroupSpec", "template", "spec"):
        schema = resolved(schema)["properties"][key]
    return resolved(schema)


def mistakes(found: Iterator[jsonschema.ValidationError]) -> list[str]:
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_objects_are_what_kuberays_own_schema_accepts(built, overlay):
    kinds = [item for item in built[overlay] if item["apiVersion"] == "ray.io/v1"]
    assert [item["kind"] for item in kinds] == (["RayJob"] if overlay.endswith(("job", "kueue")) else ["RayCluster"])
    for item in kinds:
        assert mistakes(kuberay(item["kind"]).iter_errors(item)) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "enableInTreeAutoscalling"), True),
        (("spec", "workerGroupSpecs", 0, "minReplicas"), "one"),
        (("spec", "autoscalerOptions", "upscalingMode"), "Brisk"),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0, "envfrom"), []),
        (("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
    ],
)
def test_the_schema_refuses_a_misspelled_field_and_a_wrong_value(built, path, value):
    item = json.loads(json.dumps(one(built["cpu"], "RayCluster")))
    place = item
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert len(mistakes(kuberay("RayCluster").iter_errors(item))) == 1


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_other_pod_is_what_kubernetes_accepts(built, overlay):
    pods = [item for item in built[overlay] if item["kind"] in PODS]
    assert {item["metadata"]["name"] for item in pods} == {"postgres", "storage", "mlflow", "redis", "terminal"}
    for item in pods:
        assert mistakes(validator(pod_schema()).iter_errors(item["spec"]["template"]["spec"])) == []


def pod_specs(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    specs = {o["metadata"]["name"]: o["spec"]["template"]["spec"] for o in objects if o["kind"] in PODS}
    ray = cluster_spec(objects)
    specs["ray-head"] = ray["headGroupSpec"]["template"]["spec"]
    return specs | {f"ray-{g['groupName']}": g["template"]["spec"] for g in ray["workerGroupSpecs"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_run_without_root_without_privileges_and_with_bounded_memory(built, overlay):
    for name, spec in pod_specs(built[overlay]).items():
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert not spec.get("hostNetwork"), name
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}, name
            assert "memory" in container["resources"]["limits"], name
    for name in ("postgres", "storage", "mlflow", "redis", "terminal", "ray-workers"):
        assert pod_specs(built[overlay])[name]["automountServiceAccountToken"] is False, name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_secret_map_service_and_port_that_is_named_exists(built, overlay):
    objects = built[overlay]
    have = {(o["kind"], o["metadata"]["name"]): o for o in objects}
    text = json.dumps([o for o in objects if o["kind"] not in ("Secret", "ConfigMap")])
    named = set(re.findall(r'"(?:secretRef|secretKeyRef)": \{[^{}]*"name": "([^"]+)"', text))
    named |= {cluster_spec(objects)["authOptions"]["secretName"]}
    assert named == {name for kind, name in have if kind == "Secret"}
    for name, key in re.findall(r'"secretKeyRef": \{"key": "([^"]+)", "name": "([^"]+)"', text):
        assert name in have["Secret", key]["data"]
    maps = set(re.findall(r'"(?:configMapRef|configMap)": \{"name": "([^"]+)"', text))
    assert maps == {name for kind, name in have if kind == "ConfigMap"}
    labelled = {
        tuple(o["spec"]["template"]["metadata"]["labels"].items()): o["spec"]["template"]["spec"]
        for o in objects
        if o["kind"] in PODS
    }
    for item in (o for o in objects if o["kind"] == "Service"):
        spec = labelled[tuple(item["spec"]["selector"].items())]
        ports = {port["name"]: port["containerPort"] for container in spec["containers"] for port in container["ports"]}
        [port] = item["spec"]["ports"]
        assert ports[port["targetPort"]] == port["port"]
        assert item["spec"].get("type", "ClusterIP") == "ClusterIP", "reached from the cluster's own network only"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_is_in_one_namespace_that_admits_nobody_from_outside(built, overlay):
    objects = built[overlay]
    namespace = one(objects, "Namespace")["metadata"]["name"]
    assert {o["metadata"]["namespace"] for o in objects if o["kind"] != "Namespace"} == {namespace}
    rules = one(objects, "NetworkPolicy", "only-this-namespace")["spec"]
    assert rules == {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {}}]}]}
    [rule] = one(objects, "NetworkPolicy", "operator-to-dashboard")["spec"]["ingress"]
    assert rule["ports"] == [{"port": 8265, "protocol": "TCP"}]


def test_no_secret_is_anywhere_but_in_secrets_and_each_is_in_the_few_that_need_it(folder, built):
    values = {
        line.partition("=")[2]
        for file in (folder / "base" / "secrets").iterdir()
        for line in file.read_text().split()
        if "://" not in line
    }
    assert len(values) == 9
    for objects in built.values():
        text = json.dumps([o for o in objects if o["kind"] != "Secret"])
        assert not any(value in text for value in values)
    workers = cluster_spec(built["cpu"])["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    given = {entry["secretRef"]["name"] for entry in workers["envFrom"] if "secretRef" in entry}
    assert given == {"agft-storage", "agft-nodes"}, "no PostgreSQL superuser, no MLflow database, no Redis"


def test_secrets_are_fresh_private_and_never_written_over(folder, tmp_path):
    made = folder / "base" / "secrets"
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in made.iterdir()} == {0o600}
    before = (made / "postgres.env").read_text()
    again = subprocess.run([folder / "new-secrets"], capture_output=True, text=True, check=False)
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
    assert (made / "postgres.env").read_text() == before
    other = tmp_path / "kubernetes"
    (other / "base").mkdir(parents=True)
    shutil.copy(folder / "new-secrets", other)
    subprocess.run([other / "new-secrets"], check=True, capture_output=True)
    assert (other / "base" / "secrets" / "postgres.env").read_text() != before
    ignored = subprocess.run(
        ["git", "check-ignore", "-q", "infra/deploy/kubernetes/base/secrets/ray.env"], cwd=ROOT, check=False
    )
    assert ignored.returncode == 0


def test_the_cluster_has_its_token_survives_its_head_and_keeps_trials_off_it(built):
    spec = one(built["cpu"], "RayCluster")["spec"]
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), flags=re.M)
    assert spec["rayVersion"] == pinned[1]
    assert spec["authOptions"] == {"mode": "token", "secretName": "agft-ray-token"}
    assert spec["gcsFaultToleranceOptions"]["redisAddress"] == "redis:6379"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["enableInTreeAutoscaling"]
    [group] = spec["workerGroupSpecs"]
    assert 1 <= group["minReplicas"] < group["maxReplicas"], "a study is refused when not one trial fits"


def test_nodes_have_the_settings_that_a_driver_gives_to_its_own_cluster(built):
    found = one(built["cpu"], "ConfigMap", "agft-ray-settings")["data"]
    assert found | SETTINGS == found


def test_only_the_gpu_overlay_asks_for_gpus_and_only_for_workers(built):
    for overlay, objects in built.items():
        asking = {
            name
            for name, spec in pod_specs(objects).items()
            if any(GPU in c["resources"]["limits"] for c in spec["containers"])
        }
        assert asking == ({"ray-workers"} if overlay.startswith("gpu") else set())


@pytest.mark.parametrize(("overlay", "gpus"), [("gpu", "1"), ("gpu-node", "8")])
def test_gpu_workers_have_room_in_shared_memory_a_disk_for_the_cache_and_nccls_watch(built, overlay, gpus):
    spec = pod_specs(built[overlay])["ray-workers"]
    [container] = spec["containers"]
    assert container["resources"]["limits"][GPU] == gpus
    places = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert int(volumes[places["/dev/shm"]]["emptyDir"]["sizeLimit"].removesuffix("Gi")) >= 8
    assert volumes[places["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert "ephemeral" in volumes[places["/home/agft/.cache"]]
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsUser"], "else the disk is root's"
    assert {"name": "RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR", "value": "1"} in container["env"]


def test_the_runtime_class_is_a_component_that_an_overlay_names(folder):
    overlay = folder / "overlays" / "gpu-node" / "kustomization.yaml"
    plain = overlay.read_text()
    overlay.write_text(plain + "components:\n  - ../../runtime-class\n")
    try:
        done = subprocess.run([kubectl(), "kustomize", overlay.parent], capture_output=True, text=True, check=True)
    finally:
        overlay.write_text(plain)
    objects = [item for item in yaml.safe_load_all(done.stdout) if item]
    assert pod_specs(objects)["ray-workers"]["runtimeClassName"] == "nvidia"
    assert "runtimeClassName" not in pod_specs(objects)["ray-head"]
    assert mistakes(kuberay("RayCluster").iter_errors(one(objects, "RayCluster"))) == []


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_a_job_brings_the_very_cluster_that_the_overlay_would_start(built, kind):
    job = one(built[f"{kind}-job"], "RayJob")["spec"]["rayClusterSpec"]
    head = job["headGroupSpec"]["template"]["spec"]
    assert head.pop("volumes") == [{"name": "study", "configMap": {"name": "agft-study"}}]
    assert head["containers"][0].pop("volumeMounts") == [{"name": "study", "mountPath": "/etc/agft"}]
    assert job == one(built[kind], "RayCluster")["spec"]


def test_a_retried_job_goes_on_with_the_study_that_it_finds(built, tmp_path):
    spec = one(built["cpu-job"], "RayJob")["spec"]
    assert spec["entrypoint"] == "agft run /etc/agft/study.yaml", "`agft run` continues a stored study"
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"], "KubeRay makes a new cluster for a retry"
    told = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert told["RAY_JOB_STOP_SIGNAL"] == "SIGINT"
    file = tmp_path / "study.yaml"
    file.write_text(one(built["cpu-job"], "ConfigMap", "agft-study")["data"]["study.yaml"])
    assert load_study(file).budget.trials > 0
