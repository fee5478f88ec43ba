"""Images, compose file and `ray up` file as they stand, and the programs that are process 1 in the containers."""

from __future__ import annotations

import configparser
import io
import json
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from wsgiref.simple_server import make_server
from wsgiref.util import setup_testing_defaults

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from infra.cluster.cluster import SETTINGS
from infra.deploy import object_store, tracking_server
from infra.deploy.health import answer
from infra.deploy.trials_page import guarded
from tests.support.services.compose import filled

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "docker"
IMAGES = {"Dockerfile": "agft", "mlflow.Dockerfile": "agft-mlflow", "storage.Dockerfile": "agft-storage"}
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
STANDING = {"postgres", "storage", "mlflow", "ray-head", "ray-worker"}
SIZES = {"AGFT_WORKERS", "AGFT_WORKER_CPUS"}


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    path = tmp_path / "env"
    up(path)
    return path


def up(path: Path) -> str:
    done = subprocess.run(
        [DOCKER / "up", "--env-only"], env={"PATH": "/usr/bin:/bin", "AGFT_ENV_FILE": str(path)}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout


def pairs(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if not line.startswith("#"))


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_runs_without_root_is_asked_for_its_health_and_holds_no_secret(name):
    text = (DOCKER / name).read_text()
    assert re.findall(r"^USER (.+)$", text, flags=re.M) == ["1000:1000"], "by number, so that Kubernetes can check it"
    assert text.rindex("USER 1000:1000") < text.rindex("\nCMD ")
    assert "HEALTHCHECK" in text
    assert "org.opencontainers.image.revision=${REVISION}" in text
    assert not re.search(r"^(ENV|ARG) \S*(PASSWORD|SECRET|TOKEN|KEY)", text, flags=re.M)
    assert re.findall(r"^FROM (\S+)$", text, flags=re.M) == ["docker.io/library/python:3.11-slim-bookworm"]


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_installs_what_is_pinned_and_nothing_else(name):
    pinned = {
        canonicalize_name(line.split("==")[0])
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    installs = re.findall(r"pip install (.+?)(?: \\)?$", (DOCKER / name).read_text(), flags=re.M)
    assert installs
    for line in installs:
        assert "--constraint /build/constraints.txt" in line or line.startswith("--no-deps"), line
        words = (
            re.sub(r"--(constraint|requirement) \S+|\$\{.*?\}|--\S+|&&.*|/build\S*", "", line).replace("'", "").split()
        )
        assert {canonicalize_name(Requirement(word).name) for word in words} <= pinned


def test_the_build_is_sent_the_code_and_no_environment_file():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    kept = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        word
        for name in IMAGES
        for line in re.findall(r"^COPY (.+) \S+$", (DOCKER / name).read_text(), flags=re.M)
        for word in line.split()
    }
    assert copied == kept
    assert {"**/.env", "**/*.env"} <= set(ignored)


def test_the_environment_file_is_private_fresh_and_never_written_over(env_file, tmp_path):
    assert stat.S_IMODE(env_file.stat().st_mode) == 0o600
    first = pairs(env_file)
    assert "wrote" not in up(env_file)
    assert pairs(env_file) == first
    up(tmp_path / "other")
    other = pairs(tmp_path / "other")
    secrets = set(first) - SIZES
    assert all(len(first[name]) >= 20 and first[name] != other[name] for name in secrets)
    assert len({first[name] for name in secrets}) == len(secrets), "one leak is one leak"
    ignored = subprocess.run(["git", "check-ignore", "-q", "docker/.env"], cwd=ROOT, check=False)
    assert ignored.returncode == 0


def test_compose_takes_every_secret_from_the_environment_file_and_has_none_of_its_own(env_file):
    text = (DOCKER / "compose.yaml").read_text()
    demanded = set(re.findall(r"\$\{(\w+):\?", text))
    assert demanded == set(pairs(env_file)) - SIZES
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|KEY|_DB$|STORE_URI", name):
                assert "${" in str(value), name


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_are_what_the_compose_specification_accepts(name, env_file):
    schema = json.loads((Path(__file__).parent / "compose_schema.json").read_text())
    validator = jsonschema.Draft7Validator(schema)
    found = filled(yaml.safe_load((DOCKER / name).read_text()), pairs(env_file))
    assert [error.message for error in validator.iter_errors(found)] == []
    found["services"]["ray-worker"]["healthchek"] = {}
    assert len(list(validator.iter_errors(found))) == 1


def merged(base: Any, over: Any) -> Any:
    """As podman-compose merges two files: maps by key, lists one after the other, and only texts with texts."""
    if isinstance(base, dict) and isinstance(over, dict):
        return {key: merged(base.get(key), over.get(key)) for key in base | over}
    if base is None or over is None:
        return base if over is None else over
    if isinstance(base, list) and isinstance(over, list):
        return base + over
    assert type(base) is type(over), (base, over)
    return over


def test_the_gpu_file_merges_with_the_plain_one_and_gives_a_worker_all_cores_and_room(env_file):
    over = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())["services"]["ray-worker"]
    plain = SERVICES["ray-worker"]
    lacking = [word for word in plain["command"] if word not in over["command"]]
    assert [word.split("=")[0] for word in lacking] == ["--num-cpus", "--object-store-memory"]
    worker = filled(merged({**plain, "command": None}, over), pairs(env_file))
    assert int(worker["deploy"]["replicas"]) == 1
    shared = int(worker["shm_size"].removesuffix("gb")) * 10**9
    [store] = [int(word.split("=")[1]) for word in worker["command"] if word.startswith("--object-store-memory")]
    assert shared >= 8 * 10**9 >= 2 * store
    assert worker["ulimits"]["memlock"] == -1
    assert worker["environment"]["RAY_AUTH_MODE"] == "token"
    assert worker["environment"]["RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR"] == "1"


KERNEL = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.build import compile_module_from_src

@triton.jit
def step(images, gradients, eps, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    moved = tl.load(images + place, inside) + eps * tl.load(gradients + place, inside)
    tl.store(images + place, moved, inside)

signature = {"images": "*fp32", "gradients": "*fp32", "eps": "fp32", "count": "i32", "BLOCK": "constexpr"}
found = triton.compile(ASTSource(step, signature, {"BLOCK": 256}), target=GPUTarget("cuda", 90, 32))
assert len(found.asm["cubin"]) > 1000
source = (
    '#include <Python.h>\\nstatic struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "starter", NULL, -1, NULL};\\n'
    'PyMODINIT_FUNC PyInit_starter(void) { return PyModule_Create(&module); }'
)
print(compile_module_from_src(source, "starter").__name__)
"""


def test_a_triton_kernel_is_built_with_what_the_image_installs(tmp_path):
    kernel = tmp_path / "kernel.py"
    kernel.write_text(KERNEL)
    environment = {"PATH": "/usr/bin:/bin", "TRITON_CACHE_DIR": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    built = subprocess.run([sys.executable, kernel], env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-2000:]
    assert built.stdout.split() == ["starter"]
    bare = tmp_path / "bare"
    bare.mkdir()
    environment |= {"PATH": str(bare), "HOME": str(bare), "TRITON_CACHE_DIR": str(bare / "cache")}
    without = subprocess.run([sys.executable, kernel], env=environment, capture_output=True, text=True, check=False)
    assert "Failed to find C compiler" in without.stderr
    assert re.search(r"apt-get install .*\bg\+\+", (DOCKER / "Dockerfile").read_text())


def test_compose_publishes_on_loopback_alone():
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 4
    assert all(re.fullmatch(r"127\.0\.0\.1:\$\{\w+:-\d+\}:\d+", port) for port in published)
    assert "ports" not in SERVICES["postgres"]
    assert not any("network_mode" in service or "privileged" in service for service in SERVICES.values())


def test_compose_services_wait_for_each_other_and_are_asked_for_their_health():
    assert {name for name, service in SERVICES.items() if not service.get("profiles")} == STANDING
    assert {name for name, service in SERVICES.items() if service.get("profiles")} == {"agft", "optuna-dashboard"}
    for name in STANDING:
        assert SERVICES[name]["healthcheck"]["test"][0] == "CMD", name
        for needed, how in SERVICES[name].get("depends_on", {}).items():
            assert needed in STANDING
            assert how == {"condition": "service_healthy"}
    for name in set(SERVICES) - {"postgres"}:
        assert SERVICES[name]["cap_drop"] == ["ALL"]
        assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]


def test_compose_nodes_have_the_settings_that_a_driver_gives_to_its_own_cluster_and_a_token():
    for name in ("ray-head", "ray-worker"):
        found = SERVICES[name]["environment"]
        assert found | SETTINGS == found
        assert found["RAY_AUTH_MODE"] == "token"
    assert "--num-cpus=0" in SERVICES["ray-head"]["command"]
    for name in ("agft", "optuna-dashboard"):
        shared = SERVICES[name]["environment"]
        assert {key: SERVICES["ray-head"]["environment"][key] for key in shared if key in SERVICES["ray-head"][
            "environment"]}.items() <= shared.items()  # fmt: skip


def test_compose_starts_mlflow_with_everything_that_its_program_demands():
    assert set(tracking_server.REQUIRED) <= set(SERVICES["mlflow"]["environment"])


def test_compose_and_kubernetes_run_the_same_programs_with_the_same_names():
    base = ROOT / "infra" / "deploy" / "kubernetes" / "base"
    for name in ("mlflow", "storage"):
        [pod] = [item for item in yaml.safe_load_all((base / f"{name}.yaml").read_text()) if "template" in item["spec"]]
        [container] = pod["spec"]["template"]["spec"]["containers"]
        assert container["readinessProbe"]["exec"]["command"] == SERVICES[name]["healthcheck"]["test"][1:]
    assert (DOCKER / "../infra/deploy/kubernetes/base/postgres-init.sh").resolve().exists()
    assert any("postgres-init.sh" in volume for volume in SERVICES["postgres"]["volumes"])


def test_the_object_store_opens_its_s3_port_only_and_names_no_secret(monkeypatch, tmp_path):
    line = object_store.command(tmp_path)
    binds = dict(word[1:].split("=", 1) for word in line if ".bind=" in word or word.startswith("-ip="))
    assert binds == {"ip": "127.0.0.1", "ip.bind": "127.0.0.1", "s3.ip.bind": "0.0.0.0"}
    given = {"AWS_ACCESS_KEY_ID": "an-identity", "AWS_SECRET_ACCESS_KEY": "a-secret"}
    first, second = object_store.keys(given), object_store.keys(given)
    assert (first["access_key"], first["secret_key"]) == ("an-identity", "a-secret")
    assert all(first[name] != second[name] for name in first if name.startswith("jwt"))
    assert not any(value in word for word in line for value in first.values())


@pytest.mark.parametrize("module", ["object_store", "tracking_server", "trials_page"])
def test_a_container_without_its_settings_says_which_and_ends_with_2(module, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", f"infra.deploy.{module}", *(["serve"] if module == "object_store" else [])],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert re.fullmatch(r"environment: not set: \w+(, \w+)+\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_mlflows_users_are_in_its_database_and_have_no_permission_by_default():
    parsed = configparser.ConfigParser()
    parsed.read_string(tracking_server.authentication("postgresql+psycopg://mlflow:p%40ss@postgres/mlflow"))
    assert parsed["mlflow"]["database_uri"] == "postgresql+psycopg://mlflow:p%40ss@postgres/mlflow"
    assert parsed["mlflow"]["default_permission"] == "NO_PERMISSIONS"
    line = tracking_server.command({"AGFT_BUCKET": "agft", "MLFLOW_BACKEND_STORE_URI": "postgresql://u:secret@h/d"})
    assert "secret" not in " ".join(line)
    assert line[line.index("--allowed-hosts") + 1] == "mlflow:*,localhost:*,127.0.0.1:*"


def asked(page: Any, path: str, authorization: str | None) -> tuple[str, bytes]:
    environ: dict[str, Any] = {"PATH_INFO": path, "wsgi.input": io.BytesIO()}
    setup_testing_defaults(environ)
    if authorization is not None:
        environ["HTTP_AUTHORIZATION"] = authorization
    said: list[str] = []
    body = b"".join(page(environ, lambda status, headers: said.append(status)))
    return said[0][:3], body


@pytest.mark.parametrize(
    ("path", "authorization", "status"),
    [
        ("/api/studies", None, "401"),
        ("/dashboard", "Basic YWdmdDp3cm9uZw==", "401"),
        ("/api/studies", "Bearer geheim", "401"),
        ("/healthz", None, "401"),
        ("/health", None, "200"),
        ("/api/studies", "Basic YWdmdDpnZWhlaW0=", "200"),
    ],
)
def test_the_trials_page_answers_only_those_who_know_the_password(path, authorization, status):
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"studies"]

    found, body = asked(guarded(application, "agft", "geheim"), path, authorization)
    assert found == status
    assert (b"studies" in body) == (status == "200" and path != "/health")


def test_the_health_check_tells_200_from_everything_else():
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK" if environ["PATH_INFO"] == "/health" else "503 Service Unavailable", [])
        return [b""]

    with make_server("127.0.0.1", 0, application) as server:
        server.RequestHandlerClass.log_message = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert answer(f"{address}/health") == ""
        assert answer(f"{address}/other") == f"{address}/other: HTTP 503"
        server.shutdown()
    assert "refused" in answer(f"{address}/health")


def test_the_ray_up_file_is_what_rays_own_schema_accepts_and_holds_no_secret():
    program = (
        "import json, sys, yaml\n"
        "from ray.autoscaler._private.util import prepare_config, validate_config\n"
        "found = prepare_config(yaml.safe_load(open(sys.argv[1])))\n"
        "validate_config(found)\n"
        "print(json.dumps(found))\n"
    )
    path = ROOT / "infra" / "deploy" / "ray-cluster.yaml"
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["max_workers"] == len(found["provider"]["worker_ips"])
    for command in (found["head_start_ray_commands"][-1], found["worker_start_ray_commands"][-1]):
        assert ". ~/.agft/cluster-environment" in command, "the nodes' secrets come from a file of mode 0600"
    assert "--dashboard-host=127.0.0.1" in found["head_start_ray_commands"][-1]
