"""What a node must have before a study is driven there: our package, and the services in its environment."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from infra.errors import ServiceError
from infra.s3 import lacking_keys
from infra.services import missing_variables

ADDRESSES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AGFT_BUCKET")  # must be the same everywhere
PATIENCE_SECONDS = 90.0


def environment_facts(environ: Mapping[str, str]) -> dict[str, Any]:
    """`missing`: names of variables that are not set; `digests`: of the addresses, so that no value travels."""
    digests = {name: hashlib.sha256(environ[name].encode()).hexdigest() for name in ADDRESSES if environ.get(name)}
    return {"missing": missing_variables(environ), "digests": digests}


def _facts_here(lacking: Callable[[], Sequence[str]]) -> dict[str, Any]:
    return {**environment_facts(os.environ), "lacking": [*lacking_keys(), *lacking()]}


def check_nodes(lacking: Callable[[], Sequence[str]] = tuple) -> None:
    """Ask every live node of the connected cluster at once; `ServiceError` lists what each lacks, by variable.

    `lacking`, called on the node: what else it lacks, one line each.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    own = environment_facts(os.environ)
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    ask = ray.remote(num_cpus=0, max_retries=0)(_facts_here)
    asked = {
        node: ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(lacking)
        for node in nodes
    }
    problems = []
    for node, answer in asked.items():
        name = f"node {nodes[node]} ({node[:6]})"
        try:
            facts = ray.get(answer, timeout=PATIENCE_SECONDS)
        except ray.exceptions.GetTimeoutError:
            problems.append(f"{name}: no answer in {PATIENCE_SECONDS:.0f} s")
            continue
        except ray.exceptions.RayError as error:
            problems.append(f"{name}: cannot run agft: {str(error).strip().splitlines()[-1][:300]}")
            continue
        if facts["missing"]:
            problems.append(f"{name}: not set where `ray start` ran: {', '.join(facts['missing'])}")
        problems += [f"{name}: {each}" for each in facts["lacking"]]
        differing = [key for key in ADDRESSES if facts["digests"].get(key) != own["digests"].get(key)]
        if differing and not facts["missing"]:
            problems.append(f"{name}: {', '.join(differing)} differs from the driver's node")
    if problems:
        raise ServiceError("the cluster's nodes are not ready:\n  " + "\n  ".join(problems))
