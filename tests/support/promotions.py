"""Promotions on real services in one database, and what must hold of a champion's history whatever happened."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from infra import storage
from infra.cluster import cluster as ray_cluster
from infra.tracking.registry import registered
from study.cli.here.registry import run_of
from study.cli.main import main
from study.models.head import history, model_prefix, read_head, read_manifest
from study.promotion.promote import promote
from study.promotion.records import Order, Promotion, Site
from study.store.store import StudyStore
from tests.support.promoted import STUDY, Trial, finished_study, make_checkpoints

# Of 96 images little can be shown: where a promotion is about something else, the higher value wins.
LAX = {"sanity": None, "final": False, "non_inferior": {}, "improvement": {"certain": False}}
STRICT = {"sanity": None, "final": False, "non_inferior": {"robust_accuracy": 0.03}}


@dataclass
class World:
    """Services and a connected cluster, with studies in one database."""

    home: Path
    services: Any
    checkpoints: Mapping[float, Path]
    cluster: Any

    @property
    def bucket(self) -> str:
        return str(self.services.bucket)

    @property
    def mlflow(self) -> str:
        return str(self.services.mlflow_uri)

    def study(
        self, name: str, trials: Mapping[int, Trial], *, model: str, gates: Any = None, **changed: Any
    ) -> StudyStore:
        """A finished study whose champion is called `model`."""
        block = {**STUDY["promote"], "model_name": model, "gates": gates or LAX}
        url = f"sqlite:///{self.home}/studies.db"
        return finished_study(url, name, self.bucket, trials, **{"promote": block, **changed})

    def trial(self, alpha: float, clean: float = 0.95, robust: float = 0.5) -> Trial:
        return self.checkpoints[alpha], clean, robust

    def agft(self, *arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == code, result.output
        return result

    def promote(self, store: StudyStore, order: Order | None = None, **site: Any) -> Promotion:
        return promote(store, order or Order(), self.site(store, **site))

    def site(self, store: StudyStore, *, said: list[str] | None = None, extra_files: Any = None) -> Site:
        say = (said if said is not None else []).append
        return Site(self.bucket, self.mlflow, self.cluster, say, run_of(store, self.services), extra_files)

    def aliases(self, model: str) -> tuple[int | None, int | None]:
        """MLflow's champion and previous, as numbers of ours."""
        from infra.tracking.calls import connect

        found = []
        for alias in ("champion", "previous"):
            number = registered(self.mlflow, model).aliases.get(alias)
            tags = None if number is None else connect(self.mlflow).get_model_version(model, str(number)).tags
            found.append(None if tags is None else int(tags["agft.version"]))
        return found[0], found[1]


@contextmanager
def promotions(services: Any, home: Path, *, cpus: int) -> Iterator[World]:
    """Checkpoints, and a cluster that every command of this process finds connected."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_", "AGFT_", "RAY_ADDRESS"))]:
            patch.delenv(name)
        for name, value in {**services.environment(), "AGFT_HOME": str(home)}.items():
            patch.setenv(name, value)
        cluster = ray_cluster.connect(num_cpus=cpus)
        try:
            yield World(home, services, make_checkpoints(home), cluster)
        finally:
            ray_cluster.disconnect()


def check_chain(world: World, model: str, moves: int) -> None:
    """HEAD's generations form one chain, every version that was ever champion is whole, MLflow follows."""
    head, _ = read_head(world.bucket, model)
    found = history(world.bucket, model)
    assert [move.generation for move in found] == list(range(moves, 0, -1))
    assert head.generation == moves
    for newer, older in itertools.pairwise(found):
        assert (newer.before, newer.previous) == (older.name, older.champion)
    assert found[-1].previous is None
    assert found[0].champion == head.champion
    for move in found:
        manifest = read_manifest(world.bucket, model, move.champion)
        stored = storage.head(manifest.weights.uri)
        assert stored is not None
        assert stored.sha256 == manifest.weights.sha256
        for file in manifest.files:
            assert storage.head(f"{model_prefix(world.bucket, model, move.champion)}/{file}") is not None
    assert world.aliases(model) == (head.champion, head.previous)
