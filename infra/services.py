"""Addresses and credentials of the services that a study uses: one value, however they were started."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from infra.errors import UserError

DEFAULT_BUCKET = "agft"
DEFAULT_REGION = "us-east-1"

KEY_PAIR = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
# What boto3's own chain of keys reads; others are other keys.
CHAIN = (*KEY_PAIR, "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE")

# Any of these says "I bring my own services"; then every row of REQUIRED must be there.
ANNOUNCING = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI")
# Any of these says that S3 can be reached, if only for reading.
NAMING_STORAGE = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_PROFILE")
REQUIRED: tuple[tuple[str, ...], ...] = (
    ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    ("AWS_REGION", "AWS_DEFAULT_REGION"),
    ("MLFLOW_TRACKING_URI",),
    ("AGFT_BUCKET",),
)
ENDPOINTS, REGIONS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"), ("AWS_REGION", "AWS_DEFAULT_REGION")
REGION = re.compile(r"(?![0-9]+$)(?!-)[a-zA-Z0-9-]{1,63}(?<!-)")  # boto3's rule
MLFLOW_USER = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
# What else a shell may say to boto3, pyarrow and MLflow: meant for other services than ours. The exceptions are ours.
FOREIGN = re.compile(r"AWS_|_?MLFLOW_(?!HTTP_REQUEST_|DISABLE_TELEMETRY|SUPPRESS_)")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Services:
    """Where bytes and runs go. Secrets are kept out of `repr`, so out of logs and tracebacks.

    Without `access_key`, the keys are where boto3 looks for them: in a profile, a role, a file.
    """

    s3_endpoint: str
    region: str
    access_key: str
    secret_key: str = field(repr=False)
    bucket: str
    mlflow_uri: str
    mlflow_username: str
    mlflow_password: str = field(repr=False)
    home: Path | None = None  # None: the services are not ours
    endpoint_name: str = "AWS_ENDPOINT_URL"  # or the variable for S3 alone: then AWS is asked for a role's keys

    def environment(self) -> dict[str, str]:
        """Variables that boto3, pyarrow, Ray and MLflow read. Holds secrets: give it to processes, never to a log."""
        variables = {
            self.endpoint_name: self.s3_endpoint,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "MLFLOW_TRACKING_URI": self.mlflow_uri,
            "AGFT_BUCKET": self.bucket,
        }
        if self.access_key:
            keys = {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}
            variables |= keys | {"AWS_EC2_METADATA_DISABLED": "true"}
        if self.mlflow_username:
            variables["MLFLOW_TRACKING_USERNAME"] = self.mlflow_username
            variables["MLFLOW_TRACKING_PASSWORD"] = self.mlflow_password
        if self.home is not None:  # the user's profiles are of other stores
            variables |= dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
        return variables


def default_home(environ: Mapping[str, str]) -> Path:
    """`AGFT_HOME`, or `~/.agft`: an absolute path, not yet created."""
    return Path(environ.get("AGFT_HOME") or "~/.agft").expanduser().resolve()


def services_from_environment(environ: Mapping[str, str]) -> Services | None:
    """The services that the environment names, or None when it names none.

    All or nothing: one address without the rest is a `UserError` that lists what is missing. Only addresses count
    as a request; AWS keys alone are often there for other reasons.
    """
    found = [name for name in ANNOUNCING if environ.get(name)]
    if not found:
        return None
    if missing := missing_variables(environ):
        raise UserError(
            f"environment: {', '.join(found)} given, so the study uses your services, but missing: "
            f"{', '.join(missing)}. Set all of them, or unset {', '.join(found)} to use the embedded services."
        )
    endpoint, region = s3_address(environ)
    return Services(
        s3_endpoint=endpoint or "",
        region=region,
        access_key=environ.get("AWS_ACCESS_KEY_ID", ""),
        secret_key=environ.get("AWS_SECRET_ACCESS_KEY", ""),
        bucket=bucket_name(environ["AGFT_BUCKET"]),
        mlflow_uri=mlflow_address(environ["MLFLOW_TRACKING_URI"]),
        mlflow_username=environ.get("MLFLOW_TRACKING_USERNAME", ""),
        mlflow_password=environ.get("MLFLOW_TRACKING_PASSWORD", ""),
        endpoint_name=endpoint_variable(environ),
    )


def endpoint_variable(environ: Mapping[str, str]) -> str:
    """The one that names S3's address; empty where none does. That for S3 alone goes first, as boto3 has it."""
    return _given(environ, ENDPOINTS)


def mlflow_address(uri: str) -> str:
    """The address of an MLflow server as it was given; `UserError` for what is none, or may hold a password."""
    expected = "expected a server's address, like http://HOST:5000"
    if "@" in uri:
        raise UserError("MLFLOW_TRACKING_URI: holds a user or password, which would be shown with it; give them by "
                        f"{' and '.join(MLFLOW_USER)}")  # fmt: skip
    if "?" in uri or "#" in uri:
        raise UserError(f"MLFLOW_TRACKING_URI: holds a '?' or '#'; {expected}")
    try:
        parts = urlsplit(uri)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and _is_plain(uri)
    except ValueError:
        usable = False
    if not usable:
        named = re.fullmatch(r"[\w-][\w.-]*:\d+(/\S*)?", uri)
        raise UserError(f"MLFLOW_TRACKING_URI: {uri!r}: {expected}{f'; write http://{uri}' if named else ''}")
    return uri


def _is_plain(value: str) -> bool:
    """Printable ASCII without blanks, which every header takes."""
    return all("!" <= each <= "~" for each in value)


def bucket_name(name: str) -> str:
    """The name as it was given; `UserError` for what boto3 takes for none."""
    from botocore.handlers import VALID_BUCKET

    if VALID_BUCKET.fullmatch(name):
        return name
    right = name.strip().removeprefix("s3://").partition("/")[0]
    advice = f"; write {right}" if VALID_BUCKET.fullmatch(right) else ""
    raise UserError(f"AGFT_BUCKET = {name!r}: a bucket's name has letters, digits, '.', '-' and '_'{advice}")


def missing_variables(environ: Mapping[str, str]) -> list[str]:
    """What the environment lacks to name services, each as the names that would do."""
    missing = [" or ".join(names) for names in REQUIRED if not _value(environ, names)]
    for pair in (KEY_PAIR, MLFLOW_USER):  # one may do without either, not with half of one
        lacking = [name for name in pair if not environ.get(name)]
        missing += lacking if len(lacking) == 1 else []
    return missing


def _value(environ: Mapping[str, str], names: tuple[str, ...]) -> str:
    return environ.get(_given(environ, names), "")


def _given(environ: Mapping[str, str], names: tuple[str, ...]) -> str:
    """The first of these variables that says anything; '' if none does."""
    return next((name for name in names if environ.get(name)), "")


def s3_address(environ: Mapping[str, str]) -> tuple[str | None, str]:
    """(endpoint, region) however little the environment says; no endpoint means AWS itself.

    `UserError` for what boto3 cannot use, also of the keys, whose values no message has.
    """
    for name in (*KEY_PAIR, "AWS_SESSION_TOKEN"):
        if not _is_plain(environ.get(name, "")):
            raise UserError(f"{name}: holds a blank, a line's end or another character that no key has")
    given = endpoint_variable(environ)
    if given:
        _check_endpoint(given, environ[given])
    region = _given(environ, REGIONS)
    if region and not REGION.fullmatch(environ[region]):
        raise UserError(f"{region} = {environ[region]!r}: a region has letters, digits and '-', like {DEFAULT_REGION}")
    return environ.get(given) or None, environ.get(region) or DEFAULT_REGION


def _check_endpoint(name: str, value: str) -> None:
    from botocore.utils import is_valid_uri

    if "@" in value:
        raise UserError(f"{name}: holds a user or password, which would be shown with it; give keys by "
                        f"{' and '.join(KEY_PAIR)}")  # fmt: skip
    scheme, _, rest = value.strip().rpartition("://")
    right = f"{'https' if scheme.lower() == 'https' else 'http'}://{re.split('[?#]', rest)[0]}"
    try:
        usable = is_valid_uri(right) and urlsplit(right).port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UserError(f"{name} = {value!r}: expected http://HOST:PORT or https://HOST; a host's name has letters, "
                        "digits, '-' and '.', a port is at most 65535")  # fmt: skip
    if value != right:
        raise UserError(f"{name} = {value!r}: an address begins with http:// or https:// and has no blank, '?' or '#'; "
                        f"write {right}")  # fmt: skip


def names_storage(environ: Mapping[str, str]) -> bool:
    """Whether the environment says how to reach S3, if only for reading."""
    return any(environ.get(name) for name in NAMING_STORAGE)


def use(services: Services) -> Services:
    """Point this process, and every process that it starts, at the services: boto3, MLflow and Ray read variables.

    The one place that writes them. Secrets reach other machines by their own environment alone. Services of ours get
    all that is said to these libraries, so that no session token, profile or option of the shell gets in between.
    """
    direct = []
    if services.home is not None:
        for name in [name for name in os.environ if FOREIGN.match(name)]:
            del os.environ[name]
        direct = [urlsplit(url).hostname or "" for url in (services.s3_endpoint, services.mlflow_uri)]
    os.environ.update(services.environment())
    go_direct(*direct)
    return services


def go_direct(*hosts: str) -> None:
    """Let this process, and those that it starts, reach loopback and `hosts` past any proxy."""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    known = [each.strip() for each in given.split(",") if each.strip()]
    known += [host for host in (*LOOPBACK, *hosts) if host not in known]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys(known))


def proxy_to(url: str) -> str:
    """By what the environment sends requests for `url` elsewhere, like `http_proxy=http://proxy:3128`, or ''."""
    from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

    parts, proxies = urlsplit(url), getproxies_environment()
    scheme = parts.scheme if parts.scheme in proxies else "all"
    if scheme not in proxies or proxy_bypass_environment(parts.netloc, proxies):
        return ""
    name = next(each for each in os.environ if each.lower() == f"{scheme}_proxy" and os.environ[each])
    return f"{name}={re.sub('//[^/@]*@', '//', proxies[scheme])}"  # its password is nobody's business
