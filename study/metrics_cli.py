"""`agft metrics`: studies for Prometheus. Light to import."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

__all__ = ["attach_metrics"]

PORT = 9465


def attach_metrics(main: click.Group, answering: Callable[..., Any], home: Callable[[], Path]) -> None:
    """Add the command. `answering` turns errors into exit codes, `home` says where things are kept."""

    @main.command()
    @click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="0: any free one.")
    @click.option("--bind", default="127.0.0.1", show_default=True, help="Address to listen on.")
    @click.option("--once", is_flag=True, help="Print them and end: for a node exporter's textfile collector.")
    @answering
    def metrics(port: int, bind: str, once: bool) -> None:
        """Serve metrics of all studies to Prometheus, until Ctrl-C; a token is demanded."""
        from study.database import database_url
        from study.metrics_export import exposition
        from study.metrics_server import TOKEN_FILE, MetricsServer, kept_token

        if once:
            click.echo(exposition(database_url(home())), nl=False)
            return
        exposition(database_url(home()))  # a wrong address is answered at once
        token = kept_token(home())
        with MetricsServer(bind, port, token, lambda: exposition(database_url(home()))) as server:
            host, chosen = server.server_address[:2]
            click.echo(f"http://{host!s}:{chosen}/metrics  token: {home() / TOKEN_FILE}")
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()
