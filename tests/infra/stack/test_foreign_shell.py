"""What a user's shell says of other stores and proxies reaches neither our services nor our calls to them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.services import Services, go_direct
from infra.stack import processes
from infra.stack import stack as embedded

DEAD = "http://127.0.0.1:9"
SHELL = {
    "AWS_SESSION_TOKEN": "of-another-account", "AWS_PROFILE": "gone", "AWS_CA_BUNDLE": "/nowhere.pem",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "odd", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true",
    "AWS_ENDPOINT_URL_S3": "", "AWS_MAX_ATTEMPTS": "none", "MLFLOW_TRACKING_TOKEN": "of-another-server",
    "MLFLOW_TRACKING_AUTH": "odd", "MLFLOW_S3_ENDPOINT_URL": DEAD, "http_proxy": DEAD, "HTTPS_PROXY": DEAD,
    "all_proxy": DEAD, "no_proxy": "intranet",
}  # fmt: skip
# A command's own process: it finds the services, and uses them by the libraries that read the environment.
COMMAND = """
import os, sys
from pathlib import Path
from infra import storage
from infra.services import use
from infra.stack import stack
from infra.tracking.calls import connect, experiment_id

home = Path(sys.argv[1])
assert {line.state for line in stack.status(home)} == {"running"}, stack.status(home)
services = use(stack.up(home))
uri = f"s3://{services.bucket}/tests/foreign-shell"
storage.put_bytes(uri, b"bytes")
assert storage.get_bytes(uri)[0] == b"bytes"
import pyarrow.fs
found, path = pyarrow.fs.FileSystem.from_uri(uri)
assert found.open_input_stream(path).read() == b"bytes"
assert experiment_id(connect(services.mlflow_uri), "foreign shell")
print(*sorted(name for name in os.environ if name.startswith(("AWS_", "MLFLOW_TRACKING_"))))
"""


@pytest.fixture
def shell(stack: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """With a proxy that answers nobody, and settings of AWS that would end every call."""
    config = tmp_path / "config"
    config.write_text("[default]\nregion = mars\nca_bundle = /nowhere.pem\nendpoint_url = http://127.0.0.1:9\n")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "AGFT_"))}
    return {**clean, **SHELL, "AWS_CONFIG_FILE": str(config), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def test_no_token_profile_option_or_proxy_of_the_shell_gets_between_us_and_our_services(
    stack: Services, shell: dict[str, str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, str(stack.home)], env=shell, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    names = {name for name in stack.environment() if name.startswith(("AWS_", "MLFLOW_TRACKING_"))}
    assert set(done.stdout.split()) == names


@pytest.mark.slow
def test_services_that_are_started_from_such_a_shell_run_and_hear_nothing_of_it(
    shell: dict[str, str], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    up = (
        "import sys; from pathlib import Path; from infra.stack import stack; stack.up(Path(sys.argv[1]), kept_up=True)"
    )
    try:
        subprocess.run([sys.executable, "-c", up, str(home)], env=shell, check=True)
        for name in ("seaweedfs", "mlflow", "keeper"):
            for process in processes.members(f"{home.resolve()}:{name}"):
                told = process.environ()
                assert not [name for name in SHELL if told.get(name) == SHELL[name]], (process, told)
    finally:
        embedded.down(home)


def test_loopback_is_added_to_what_the_user_wants_no_proxy_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("NO_PROXY", "intranet, localhost")
    go_direct("10.1.2.3")
    go_direct()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "intranet,localhost,127.0.0.1,::1,10.1.2.3"
