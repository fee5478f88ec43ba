"""The Ray cluster: an existing one (`RAY_ADDRESS`), or one on this machine that only this user can talk to.

A local cluster listens on loopback only and demands a token on every port; its files lie in a folder of mode 0700.
It ends with the process that called `connect`, also when that process is killed.
"""

from __future__ import annotations

import atexit
import importlib
import itertools
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from infra.cluster import raw_output, watch
from infra.errors import ServiceError, UserError
from infra.process import usable_cores
from infra.services import default_home
from infra.stack import processes

log = logging.getLogger("agft")
Resources = Mapping[str, float]  # Ray's names: CPU, GPU, memory in bytes, or custom ones

# Read by Ray's processes and by ours; a value that is already in the environment stays.
SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",  # a lost worker, and a seat's end, are noticed so soon; default 2 s
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's ends in a hard kill
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard files for each trial
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else, under `uv run`, Ray packs the folder and starts workers by uv
}
LOCAL_SETTINGS = {
    "RAY_worker_maximum_startup_concurrency": "8",  # a seat is 7 processes; fewer at once only draws warnings
    "OMP_WAIT_POLICY": "PASSIVE",  # workers that share cores must not burn them waiting: 2 to 5 times the speed here
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one actor less for each trial
    "RAY_max_kill_memory_buffer_bytes": "0",  # short of memory, kill the newest process, not all up to a spare gigabyte
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # "no clusters here": makes Ray bind loopback only
    "AUTOSCALER_METRIC_PORT": "-1",  # these two would answer without the token; Ray notes in its log that it cannot
    "DASHBOARD_METRIC_PORT": "-1",
}
# Of these Ray makes errors, or a version of Train that we do not use. It reads some as its libraries are imported, and
# they come after this module.
REFUSED = ("RAY_TRAIN_V2_ENABLED", "TUNE_RESULT_DIR", "RAY_AIR_LOCAL_CACHE_DIR")
_ignored = [f"{name}={os.environ.pop(name)}" for name in REFUSED if os.environ.get(name, "1") != "1"]
TOKEN_FILE = "ray_token"
STARTS_AGAIN = 3
LEAVE_SECONDS = 10.0
LEAVE_ALIVE_SECONDS = 60.0


@dataclass(frozen=True)
class Cluster:
    """A connection. `nodes` are the total resources of each live node when it was made."""

    address: str
    local: bool
    dashboard_url: str | None
    nodes: tuple[Resources, ...]

    @property
    def total(self) -> dict[str, float]:
        """Resources of all nodes together."""
        return total_of(self.nodes)


_mark: str | None = None  # of the local cluster that this process started


def connect(*, num_cpus: float | None = None, log_to_driver: bool = False) -> Cluster:
    """Connect to `RAY_ADDRESS`, else start a local cluster (`num_cpus` logical CPUs; default: those that this
    process may use).

    Call it before other code imports Ray, as Ray reads some settings at import. Connected already: says so again.
    Raises `ServiceError` when the cluster does not answer or refuses the token, `UserError` for no address of one.
    """
    global _mark
    address = named_cluster(os.environ)
    while _ignored:
        log.warning("%s in the environment is ignored: a study's driver cannot run with it", _ignored.pop())
    for name, value in (SETTINGS if address else SETTINGS | LOCAL_SETTINGS).items():
        os.environ.setdefault(name, value)
    if not address:
        _use_token(default_home(os.environ))
    import ray

    constants: Any = importlib.import_module("ray._private.ray_constants")
    constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False  # where it was imported before
    if ray.is_initialized():
        return _describe(ray, local=_mark is not None)
    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": log_to_driver}
    try:
        if address:
            ray.init(address=_reachable(address), **_job_settings(), **quiet)
        else:
            _start_here(num_cpus, quiet)
    except Exception as error:  # Ray raises whatever comes, a bare `Exception` on a busy machine
        reason, told = " ".join(str(error).split())[:300], raw_output.note(traceback.format_exc())
        where = f"Ray at {address}" if address else f"Ray does not start on this machine, which has {_strain()}"
        raise ServiceError(f"{where}: {reason} (all of it: {told})") from error
    made = _describe(ray, local=not address)
    watch.start(made.address, ray.get_runtime_context().get_node_id())
    return made


def _start_here(num_cpus: float | None, quiet: Mapping[str, Any]) -> None:
    """Start the local cluster; tried again where it does not come up, as on a machine that is too busy."""
    global _mark
    import ray

    _reread_settings()
    for tried in itertools.count(1):
        _mark = f"ray:{os.getpid()}:{secrets.token_hex(4)}"
        os.environ[processes.MARKER] = _mark  # inherited by the cluster's processes, to find stragglers
        # So is this: a terminal that is closed tells all its processes, and trials leave when their driver tells them.
        deaf = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        try:
            ray.init(
                address="local",
                num_cpus=_usable_cpus() if num_cpus is None else num_cpus,
                include_dashboard=True,  # without it stopped trials leak their placement groups
                dashboard_host="127.0.0.1",
                _node_ip_address="127.0.0.1",
                _temp_dir=str(_private_folder() / "ray"),
                **quiet,
            )
            return
        except Exception as error:
            disconnect()
            if tried > STARTS_AGAIN or isinstance(error, ServiceError | ValueError):
                raise
            log.warning("Ray did not start (%s); trying again", " ".join(str(error).split())[:200])
            time.sleep(tried)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, deaf)
            os.environ.pop(processes.MARKER, None)


def _usable_cpus() -> int:
    """Ray counts a container's share, of which less than one is none to it, and not which cores a process may use."""
    utils: Any = importlib.import_module("ray._private.utils")
    return max(1, min(int(utils.get_num_cpus(override_docker_cpu_warning=True)), usable_cores()))


def _strain() -> str:
    """How busy this machine is: on one that has much else to do Ray's own time limits run out."""
    free = psutil.virtual_memory().available / 2**30
    return f"a load of {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores and {free:.1f} GB of free memory"


def disconnect() -> None:
    """Leave the cluster; a local one is ended with all its processes, at the latest after some 10 s."""
    global _mark
    gone = watch.lost()
    watch.stop()  # first: a node that we end ourselves is not lost, however long it takes
    if gone and _mark is not None:
        processes.terminate(_mark, grace_seconds=0.0)  # first: a head that hangs would keep Ray waiting
    if "ray" in sys.modules:
        import ray

        leaving = threading.Thread(target=ray.shutdown, name="agft-ray-leaves", daemon=True)
        leaving.start()
        leaving.join(LEAVE_SECONDS if gone else LEAVE_ALIVE_SECONDS)
        if leaving.is_alive():
            atexit.register(os._exit, 1)  # Ray's own handler at the exit would wait for ever
    if _mark is not None:
        processes.wait_gone(_mark, LEAVE_SECONDS)
        processes.terminate(_mark, grace_seconds=1.0)
        _mark = None
        _remove_dead_sessions()


def _remove_dead_sessions() -> None:
    """Ray's files of local clusters that have ended, ours and those of drivers that were killed: Ray keeps them all.

    A session's name ends with the process that began it; while anything of it lives, its name is in a command line.
    """
    running = [" ".join(found) for process in psutil.process_iter() if (found := _command_of(process))]
    for folder in (_private_folder() / "ray").glob("session_2*"):
        begun_by = folder.name.rpartition("_")[2]
        alive = begun_by.isdigit() and int(begun_by) != os.getpid() and psutil.pid_exists(int(begun_by))
        if not folder.is_symlink() and not alive and not any(folder.name in line for line in running):
            shutil.rmtree(folder, ignore_errors=True)


def _command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []  # it has gone, or is somebody else's


def node_capacities() -> list[dict[str, float]]:
    """Total resources of each live node."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def capacity() -> dict[str, float]:
    """Total resources of the live nodes together, used or not."""
    return total_of(node_capacities())


def max_concurrent(
    per_trial: Resources,
    total: Resources,
    requested: int | None = None,
    *,
    per_worker: Resources | None = None,
    workers: int = 1,
    nodes: Sequence[Resources] = (),
) -> int:
    """How many trials can run at once, at least 1: by the scarcest resource, and no more than `requested`.

    `per_trial` is everything one trial holds. With `per_worker` and `nodes`, each of its `workers` must also fit
    into one node, which a total cannot tell. Raises `UserError` with the numbers when not even one trial ever fits.
    """
    if requested is not None and requested < 1:
        raise UserError(f"resources.max_concurrent: {requested}; expected at least 1, or auto")
    for name, need in per_trial.items():
        if need > total.get(name, 0.0) + 1e-9:
            raise UserError(
                f"resources: one trial needs {need:g} {name}, the whole cluster has {total.get(name, 0.0):g}; "
                "it would wait for ever"
            )
    limits = [int(total[name] / need + 1e-9) for name, need in per_trial.items() if need > 0]
    if per_worker and nodes:
        room = [_copies(node, per_worker) for node in nodes]
        if sum(room) < workers:
            wanted = ", ".join(f"{need:g} {name}" for name, need in per_worker.items() if need > 0)
            sizes = "; ".join(", ".join(f"{node.get(name, 0.0):g} {name}" for name in per_worker) for node in nodes)
            raise UserError(
                f"resources: a trial has {workers} worker(s) of {wanted}, each on one node, and the nodes ({sizes}) "
                f"have room for {sum(room)}; it would wait for ever"
            )
        limits.append(sum(room) // workers)
    if requested is not None:
        limits.append(requested)
    if not limits:
        raise UserError("resources: a trial that needs nothing cannot be counted; give it CPUs or GPUs")
    return min(limits)


def placement_groups() -> list[dict[str, Any]]:
    """Placement groups that still hold or wait for resources, each with `placement_group_id`, `name`, `state`."""
    import ray

    return [dict(group) for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]


def total_of(parts: Sequence[Resources]) -> dict[str, float]:
    """Sums by resource, of nodes or of what is held of them."""
    total: dict[str, float] = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def _copies(node: Resources, need: Resources) -> int:
    return min((int(node.get(name, 0.0) / n + 1e-9) for name, n in need.items() if n > 0), default=10**6)


def _describe(ray: Any, *, local: bool) -> Cluster:
    context = ray.get_runtime_context()
    url = ray._private.worker.get_dashboard_url()
    return Cluster(context.gcs_address, local, f"http://{url}" if url else None, tuple(node_capacities()))


def _job_settings() -> dict[str, Any]:
    """`SETTINGS` for our processes on nodes that were started without them; a submitted job was given them already."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return {}
    return {"runtime_env": {"env_vars": {name: os.environ[name] for name in SETTINGS}}}


def _reachable(address: str) -> str:
    """`address`, `auto` as what it stands for. Fails in seconds when no head answers there; Ray tries for minutes."""
    found = address
    if address == "auto":
        found = importlib.import_module("ray._private.services").canonicalize_bootstrap_address_or_die(address)
    host, _, port = found.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        if not watch.answers(found):
            raise ConnectionError(f"the head at {found} does not answer")
    return found


def named_cluster(environ: Mapping[str, str]) -> str | None:
    """What `RAY_ADDRESS` names; None for a cluster of this machine's own.

    Raises `UserError` for an address of Ray's client or of the dashboard, by which no driver can join a cluster.
    """
    address = environ.get("RAY_ADDRESS")
    if not address or address == "local":
        return None
    scheme, found, rest = address.partition("://")
    if found:
        host = re.sub(r":\d+$", "", rest.rstrip("/")) or "HEAD"
        meant = {"ray": "Ray's client", "http": "the dashboard", "https": "the dashboard"}.get(scheme, "something else")
        raise UserError(
            f"RAY_ADDRESS = {address!r}: an address of {meant}; a driver joins the cluster at its head: {host}:6379"
        )
    return address


def _use_token(home: Path) -> None:
    """Demand the home's token (made once, mode 0600) on every port; whoever has it can run code here."""
    processes.kept_secret(home / TOKEN_FILE)
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(home / TOKEN_FILE)
    os.environ.pop("RAY_AUTH_TOKEN", None)


def cluster_environment(home: Path) -> dict[str, str]:
    """What Ray's nodes and the terminals that submit to them must be started with; holds the token."""
    spared = ("RAY_worker_maximum_startup_concurrency", "OMP_WAIT_POLICY")  # of LOCAL_SETTINGS, for nodes as well
    return {**SETTINGS, **{name: LOCAL_SETTINGS[name] for name in spared}, "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": processes.kept_secret(home / TOKEN_FILE)}  # fmt: skip


def _reread_settings() -> None:
    """Make an already imported Ray see the settings that it read at import."""
    constants: Any = importlib.import_module("ray._private.ray_constants")
    core: Any = importlib.import_module("ray._raylet")
    constants.ENABLE_RAY_CLUSTER = False
    core.Config.initialize("")
    core.AuthenticationTokenLoader.instance().reset_cache()


def _private_folder() -> Path:
    """A short path (socket names hold 107 characters) that only we can enter: Ray opens its own to everybody."""
    folder = Path(tempfile.gettempdir()) / f"agft-{os.getuid()}"
    if len(str(folder)) > 40:
        folder = Path(f"/tmp/agft-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) != 0o700:
        raise ServiceError(f"{folder} is not a folder of mode 0700 that belongs to you; remove it")
    return folder
