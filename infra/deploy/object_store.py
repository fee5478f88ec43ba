"""Process 1 of the S3 container: SeaweedFS, reachable through its S3 port alone.

    python -m infra.deploy.object_store serve    writes the settings into the working directory and becomes `weed`
    python -m infra.deploy.object_store check    ends with 0 when the bucket can be read; makes it at the first time

Master, volume and filer listen on the container's loopback, with TLS and client certificates besides; S3 demands
signatures of the one key pair `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`. The keys by which `weed`'s parts sign for
each other are new at every start.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from infra.deploy.settings import required
from infra.errors import ServiceError, UserError
from infra.stack import seaweed

PORTS = {
    "s3": 8333, "s3_grpc": 18333, "filer": 8888, "filer_grpc": 18888,
    "volume": 8080, "volume_grpc": 18080, "master": 9333, "master_grpc": 19333,
}  # fmt: skip


def command(folder: Path) -> list[str]:
    """The command line; it holds paths and ports, never a secret."""
    return [*seaweed.command(folder, PORTS), "-s3.ip.bind=0.0.0.0"]


def keys(environ: Mapping[str, str]) -> dict[str, str]:
    """All that `seaweed.configure` wants: the S3 key pair as given, the rest random."""
    given = required(environ, ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
    random = {name: secrets.token_hex(24) for name in seaweed.SECRETS}
    return random | {"access_key": given["AWS_ACCESS_KEY_ID"], "secret_key": given["AWS_SECRET_ACCESS_KEY"]}


def main(arguments: list[str]) -> int:
    """Exit code of `check`; `serve` does not come back."""
    try:
        if arguments == ["serve"]:
            folder = Path.cwd()
            seaweed.configure(folder, keys(os.environ))
            line = command(folder)
            os.execve(line[0], line, seaweed.environment())
        if arguments == ["check"]:
            seaweed.probe(PORTS, keys(os.environ), create=True)
            return 0
        raise UserError(f"{' '.join(arguments) or 'no word'}: expected serve or check")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except ServiceError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
