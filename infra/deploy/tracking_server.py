"""Process 1 of the MLflow container: PostgreSQL for runs and users, basic authentication, artifacts proxied into S3.

The passwords stand in no command line: the database address goes through the environment and, for the users' table,
through a file of mode 0600 in the container's own temporary folder.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from infra.deploy.settings import required
from infra.errors import UserError

REQUIRED = (
    "MLFLOW_BACKEND_STORE_URI", "MLFLOW_AUTH_ADMIN_USERNAME", "MLFLOW_AUTH_ADMIN_PASSWORD",
    "MLFLOW_FLASK_SERVER_SECRET_KEY", "AGFT_BUCKET", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
)  # fmt: skip
ALLOWED_HOSTS = "mlflow:*,localhost:*,127.0.0.1:*"
FIXED = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # nobody runs code on the server
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def authentication(database: str) -> str:
    """`basic_auth.ini` for a users' table in `database`: whoever is not given a permission has none."""
    return f"""[mlflow]
default_permission = NO_PERMISSIONS
grant_default_workspace_access = false
database_uri = {database.replace("%", "%%")}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 300
"""


def command(environ: Mapping[str, str]) -> list[str]:
    """The command line; it holds no secret."""
    return [
        *(sys.executable, "-m", "mlflow", "server", "--host", "0.0.0.0", "--port", "5000"),
        *("--workers", environ.get("AGFT_MLFLOW_WORKERS") or "2", "--app-name", "basic-auth"),
        *("--allowed-hosts", environ.get("AGFT_MLFLOW_ALLOWED_HOSTS") or ALLOWED_HOSTS),
        *("--artifacts-destination", f"s3://{environ['AGFT_BUCKET']}/mlflow"),
        *("--uvicorn-opts", "--no-access-log"),
    ]


def main() -> None:
    """Become the server; ends with 2 when a setting is missing."""
    try:
        given = required(os.environ, REQUIRED)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    settings = Path(tempfile.mkdtemp(prefix="mlflow-")) / "basic_auth.ini"  # the folder has mode 0700
    settings.touch(mode=0o600)
    settings.write_text(authentication(given["MLFLOW_BACKEND_STORE_URI"]))
    line = command(os.environ)
    os.execve(line[0], line, {**os.environ, **FIXED, "MLFLOW_AUTH_CONFIG_PATH": str(settings)})


if __name__ == "__main__":
    main()
