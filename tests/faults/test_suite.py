"""The fault suite itself: its faults strike and are mended, a study goes through them, and what is broken is seen."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest
import sqlalchemy as sa
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from infra.services import Services
from study.store import tables as t
from study.store.lease import owner_identity
from tests.faults import page
from tests.faults.injections import FAULTS
from tests.faults.invariants import in_optuna, in_store
from tests.faults.ordeal import endure, undisturbed
from tests.faults.stage import KINDS, stage
from tests.support.services.forgetful_s3 import forgetful_s3
from tests.support.services.gate import HABITS, Refusal, gate
from tests.support.worlds import run_world

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = pytest.mark.timeout(900)


NOWHERE = Services("http://127.0.0.1:9", "us-east-1", "any", "any", "agft", "http://127.0.0.1:9", "", "")
LIGHT = KINDS["light"]


def test_what_is_lost_or_changed_in_a_study_is_seen(tmp_path: Path) -> None:
    known = undisturbed(tmp_path, NOWHERE, LIGHT)
    with stage(tmp_path, NOWHERE, LIGHT, random.Random(7), known.baseline) as made:
        made.create("seen", 3)
        assert made.spec is not None
        run_world(made.database, made.spec, seed=2)
        made.store.release(made.store.acquire(owner_identity()), "finished")
        reference = known.found(3)

        def seen() -> str:
            given = made, made.study(), made.store.trials()
            return "\n".join([*in_store(*given, reference), *in_optuna(*given)])

        assert seen() == "", "kills of a simulated driver change nothing"
        with made.store.engine.begin() as connection:
            epochs = sa.delete(t.epochs).where(t.epochs.c.number == 0, t.epochs.c.epoch == 1)
            connection.execute(epochs)
            connection.execute(sa.update(t.trials).where(t.trials.c.number == 1).values(state="failed"))
            connection.execute(sa.update(t.studies).values(state="paused"))
        for said in ("study is paused", "trial 0: epochs lost", "trial 0: not as", "trial 1: failed", "unlike [1]"):
            assert said in seen()


SLOW = ("trial", "driver", "mlflow-middle", "sqlite", "postgres", "twice", "checkpoint-altered", "s3-down")


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_a_study_goes_through_a_fault(service_environment: Services, tmp_path: Path, name: str) -> None:
    known = undisturbed(tmp_path, service_environment, LIGHT)
    given = service_environment, LIGHT, random.Random(7), known.baseline
    with stage(tmp_path, *given) as made, FAULTS[name].setting(made):
        result = endure(made, name, FAULTS[name], 2, known)
    assert (result.times, result.violations) == (2, [])


def client_of(address: str) -> S3Client:
    """It asks once."""
    keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=address, config=Config(retries={"total_max_attempts": 1}), **keys)


@pytest.mark.parametrize("habit", ["busy", "expired", "full", "readonly", "no-checksum", "cut"])
def test_a_gate_has_its_habit_and_forgets_it(habit: str) -> None:
    with forgetful_s3() as (address, objects), gate(address) as each:
        s3 = client_of(each.address)
        s3.put_object(Bucket="b", Key="before", Body=b"x" * 1000)
        each.habit = habit
        refusal = (HABITS[habit] or Refusal(0, "Connection was closed", "")).code
        with pytest.raises((ClientError, BotoCoreError), match=refusal):
            s3.put_object(Bucket="b", Key="during", Body=b"x" * 1000)
        each.habit = ""
        assert s3.get_object(Bucket="b", Key="before")["Body"].read() == b"x" * 1000
        assert set(objects) == {"b/before"}


def test_a_gate_that_is_shut_refuses_and_opens_again_at_the_same_address() -> None:
    with forgetful_s3() as (address, _), gate(address) as each:
        s3 = client_of(each.address)
        s3.put_object(Bucket="b", Key="x", Body=b"there")
        each.shut()
        with pytest.raises(BotoCoreError, match="Could not connect"):
            s3.get_object(Bucket="b", Key="x")
        each.open()
        assert s3.get_object(Bucket="b", Key="x")["Body"].read() == b"there"


def test_the_page_has_the_tables_that_the_kept_results_make() -> None:
    text = page.PAGE.read_text()
    assert text == page.filled(text), "python -m tests.faults.suite ... --write"
