"""optuna-dashboard behind a password: `python -m infra.deploy.trials_page`, with the user and password of MLflow.

By itself it lets everybody who reaches its port read and delete studies. The database address, which holds a password,
stays in the environment.
"""

from __future__ import annotations

import base64
import hmac
import importlib
import os
import sys
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIServer, make_server

from infra.deploy.settings import required
from infra.errors import UserError

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
PORT = 8080
PUBLIC = "/health"


class Server(ThreadingMixIn, WSGIServer):
    """One thread for each request: the page asks for several things at once."""

    daemon_threads = True


def guarded(application: Application, username: str, password: str) -> Application:
    """`application` for whoever names `username` and `password`; `/health` answers everybody."""
    wanted = "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("PATH_INFO") == PUBLIC:
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"OK"]
        given = environ.get("HTTP_AUTHORIZATION", "")
        if not hmac.compare_digest(given.encode(), wanted.encode()):
            start_response(
                "401 Unauthorized", [("Content-Type", "text/plain"), ("WWW-Authenticate", 'Basic realm="agft"')]
            )
            return [b"a user and a password are needed\n"]
        return application(environ, start_response)

    return answer


def main() -> int:
    """Serve until the end of the process; 2 when a setting is missing."""
    try:
        given = required(os.environ, ["AGFT_STUDY_DB", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    optuna_dashboard: Any = importlib.import_module("optuna_dashboard")
    page = guarded(
        optuna_dashboard.wsgi(given["AGFT_STUDY_DB"]),
        given["MLFLOW_TRACKING_USERNAME"],
        given["MLFLOW_TRACKING_PASSWORD"],
    )
    with make_server("0.0.0.0", PORT, page, server_class=Server) as server:
        print(f"optuna-dashboard on port {PORT}", flush=True)
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
