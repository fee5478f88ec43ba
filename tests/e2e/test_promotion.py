"""Promotion as a person does it, on real S3, a real MLflow server, Ray and finished tiny-CLIP studies."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import storage
from study.models.head import Head, history, model_prefix, read_head, read_manifest, versions
from study.models.looks import read_looks, share
from study.models.manifest import Gate
from study.promotion.promote import promote
from study.promotion.records import Order, Promotion, Site
from study.promotion.verdicts import rederive
from study.store import requests as promotion_rows
from study.store.store import StudyStore
from tests.support.promoted import CONFIRM, STUDY
from tests.support.promotions import LAX, STRICT, World, check_chain, promotions

pytestmark = pytest.mark.timeout(600)
CHEAP = {**STRICT, "sanity": {"samples": 40, "checks": ["deterministic", "above-chance", "zero-gradients"]}}


@pytest.fixture(scope="module")
def world(stack: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with promotions(stack, tmp_path_factory.mktemp("promotion"), cpus=2) as world:
        yield world


def test_a_proved_winner_is_shipped_whole_and_what_comes_after_moves_nothing(world: World, tmp_path: Path) -> None:
    trials = {0: world.trial(0.2, robust=0.3), 1: world.trial(0.6), 2: (None, 0.9, 0.9)}
    store = world.study("whole", trials, model="whole-clip", gates=CHEAP)
    shown = world.agft("promote", "whole").output
    assert "gates of trial 1 on the confirm sets (no champion yet)" in shown
    assert "the study's final sets were looked at once" in shown
    assert "champion: whole-clip version 1" in shown
    manifest = read_manifest(world.bucket, "whole-clip", 1)
    assert (manifest.trial, manifest.forced, manifest.final_accesses) == (1, None, 1)
    assert {gate.name: gate.verdict for gate in manifest.gates}["sanity"] == "passed"
    prefix = model_prefix(world.bucket, "whole-clip", 1)
    assert versions(world.bucket, "whole-clip") == {1: {*manifest.files, "reserved.json", "manifest.json",
                                                        "open_clip_model.safetensors"}}  # fmt: skip
    table = storage.get_bytes(f"{prefix}/evaluation/confirm/{CONFIRM}/pgd-4.csv.gz")[0]
    rows = gzip.decompress(table).decode().splitlines()[1:]
    [score] = manifest.confirm["trial 1"]["datasets"][CONFIRM].values()
    assert len(rows) == score["total"] == 96
    [row], [access] = promotion_rows.promotions(store), promotion_rows.accesses(store)
    assert (row["state"], row["record"]["trial"], row["record"]["gates"]) == (
        "promoted",
        1,
        [gate.record() for gate in manifest.gates],
    )
    assert access["promotion"] == row["name"] == manifest.promotion
    [move] = history(world.bucket, "whole-clip")
    assert (move.action, move.champion, move.facts["promotion"]) == ("promotion", 1, manifest.promotion)
    check_chain(world, "whole-clip", 1)

    before = everything(world)
    policy = tmp_path / "policy.yaml"
    policy.write_text("floors: {robust_accuracy: '>= 0.99'}\nsanity: null\n")
    assert read_looks(world.bucket, "whole-clip") == [], "without a champion nothing is compared"
    refused = world.agft("promote", "whole", "--trial", "0", "--policy", str(policy), code=1).output
    assert "promotion: refused: floor robust" in refused
    assert "agft promote whole --force --reason TEXT" in refused
    kept = json.loads(world.agft("promote", "whole", "--json").stdout)
    assert (kept["state"], kept["version"], kept["champion"]) == ("kept", None, 1)
    assert kept["look"] == {"number": 2, "level": share(2), "hypotheses": 3}, "two candidates and a floor"
    [gate] = [gate for gate in kept["gates"] if gate["name"] == "improvement"]
    assert gate["numbers"]["level"] == share(2) / 3
    assert rederive(Gate(**gate)).record() == gate
    assert [each["state"] for each in promotion_rows.promotions(store)] == ["promoted", "refused", "kept"]
    assert all(each["record"]["gates"] for each in promotion_rows.promotions(store))
    assert len(promotion_rows.accesses(store)) == 1, "what is refused or kept does not see the final sets"
    dry = world.agft("promote", "whole", "--dry-run").output
    assert "promotion: would keep" in dry
    assert (
        "nothing was shipped, registered or moved; look 2 at the confirm sets is counted; the final sets were not "
        in dry
    )
    assert len(promotion_rows.promotions(store)) == 3, "a dry run leaves no row"
    assert everything(world) == before
    looks = read_looks(world.bucket, "whole-clip")
    assert [each["number"] for each in looks] == [1, 2], "the dry run looked as the promotion before it"
    assert "first champion" in world.agft("rollback", "whole-clip", code=2).output


def everything(world: World) -> dict[str, str]:
    """Every object in the bucket but the counted looks, with its content's tag."""
    found = storage.list_objects(f"s3://{world.bucket}/")
    return {each.uri: each.etag for each in found if "/looks/" not in each.uri}


@pytest.mark.slow
def test_final_sets_veto_before_anything_is_shipped_and_force_is_on_record(world: World, tmp_path: Path) -> None:
    """Trial 0 keeps 78 % on the confirm set, of CLIP's 48 %; on the final set it is no better than CLIP for certain."""
    store = world.study("veto", {0: world.trial(0.2)}, model="veto-clip", gates={"sanity": None})
    shown = world.agft("promote", "veto", code=1).output
    assert "promotion: refused: final better than CLIP: " in shown
    assert "only 1 full-length trial reaches the floors, of 2 candidates asked for" in shown
    assert read_head(world.bucket, "veto-clip") == (Head(), None)
    assert versions(world.bucket, "veto-clip") == {}, "no version was begun"
    assert len(promotion_rows.accesses(store)) == 1
    assert "promotion: refused: final better" in world.agft("promote", "veto", code=1).output
    assert len(promotion_rows.accesses(store)) == 1, "the same answer needs no other look"
    dry = world.agft("promote", "veto", "--dry-run").output
    assert "promotion: would promote" in dry
    assert "registered or moved; the final sets were not looked at" in dry
    assert "would refuse: final better" in world.agft("promote", "veto", "--dry-run", "--final", code=1).output

    forced = world.agft("promote", "veto", "--force", "--reason", "letters do not matter").output
    assert "forced, because letters do not matter; not passed: final better than CLIP" in " ".join(forced.split())
    manifest = read_manifest(world.bucket, "veto-clip", 1)
    assert (manifest.forced, manifest.failed_gates) == ("letters do not matter", ["final better than CLIP"])
    card = storage.get_bytes(f"{model_prefix(world.bucket, 'veto-clip', 1)}/README.md")[0].decode()
    assert "**They veto it: final better than CLIP.**" in card
    assert "Reason given: letters do not matter" in card
    report = Path(world.agft("report", "veto", "--out", str(tmp_path / "report")).stdout.strip()).read_text()
    assert "promoted: version 1, against its gates | - | final better than CLIP: " in report
    assert "Promotions" in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.slow
def test_final_sets_that_have_nothing_against_the_winner_say_so_on_its_card(world: World) -> None:
    """Of colours the fine-tuning has seen the like: there CLIP keeps 48 %, and the winner 92 %."""
    data = {**STUDY["data"], "confirm": ["tiny-textures"], "final": [CONFIRM]}
    world.study("passes", {0: world.trial(0.6)}, model="passes-clip", gates={"sanity": None}, data=data)
    shown = world.agft("promote", "passes").output
    assert "gates of trial 0 on the confirm sets and the final sets (no champion yet)" in shown
    manifest = read_manifest(world.bucket, "passes-clip", 1)
    verdicts = {gate.name: gate.verdict for gate in manifest.gates}
    assert (verdicts["final better than CLIP"], verdicts["final floor clean"]) == ("passed", "passed")
    card = storage.get_bytes(f"{model_prefix(world.bucket, 'passes-clip', 1)}/README.md")[0].decode()
    assert "They have nothing against it." in card


@pytest.mark.slow
def test_a_run_that_is_to_promote_ends_with_the_promotions_exit_code(world: World) -> None:
    for name, trial, gates, code, said in (
        ("run-fine", world.trial(0.2), None, 0, "promotion: promoted"),
        ("run-veto", world.trial(0.2), {"sanity": None}, 1, "promotion: refused: final better than CLIP"),
        ("run-none", (None, 0.9, 0.9), None, 1, "nothing was promoted: study 'run-none' has no finished trial"),
    ):
        world.study(name, {0: trial}, model=f"{name}-clip", gates=gates, budget={"trials": 1})
        shown = " ".join(world.agft("resume", name, "--promote", code=code).output.split())
        assert said in shown
        assert "MLflow UI: " in shown
        assert ("promotion: only 1 full-length trial reaches the floors" in shown) == (name != "run-none")


def test_when_a_gate_refuses_the_best_candidate_the_next_one_is_tried(world: World) -> None:
    """The best one was rolled back from before."""
    for name, alpha in (("next-one", 0.2), ("next-two", 1.0)):
        world.promote(world.study(name, {0: world.trial(alpha)}, model="next-clip"))
    world.agft("rollback", "next-clip", "--reason", "users complain")
    store = world.study("next-three", {0: world.trial(0.6), 1: world.trial(1.0)}, model="next-clip")
    shown = " ".join(world.agft("promote", "next-three").output.split())
    assert "trial 1 is refused: not taken back: generation 3 took it back on" in shown
    assert "the next candidate is tried" in shown
    assert "gates of trial 0 on the confirm sets" in shown
    manifest = read_manifest(world.bucket, "next-clip", 3)
    assert (manifest.trial, [each.trial for each in manifest.tried]) == (0, [1])
    [row] = promotion_rows.promotions(store)
    [tried] = row["record"]["tried"]
    assert (tried["trial"], row["record"]["trial"]) == (1, 0)
    assert next(gate for gate in tried["gates"] if gate["name"] == "not taken back")["verdict"] == "failed"
    assert [each["number"] for each in read_looks(world.bucket, "next-clip")] == [1, 2], "one look for both of them"
    card = storage.get_bytes(f"{model_prefix(world.bucket, 'next-clip', 3)}/README.md")[0].decode()
    assert "Trial 1 was better there and was refused: not taken back" in card
    assert "in look 2 of this model name" in card

    alone = world.study("next-four", {0: world.trial(1.0)}, model="next-clip")
    refused = world.promote(alone)
    assert (refused.state, refused.trial, refused.tried) == ("refused", 0, ())


@pytest.mark.slow
def test_a_dry_run_measures_what_nobody_has_and_keeps_nothing(world: World) -> None:
    evaluate = {**STUDY["evaluate"], "final": {**STUDY["evaluate"]["final"], "seed": 3}}
    store = world.study("dry", {0: world.trial(0.6)}, model="dry-clip", evaluate=evaluate)
    before = everything(world)
    assert "promotion: would promote" in world.agft("promote", "dry", "--dry-run").output
    assert (promotion_rows.promotions(store), promotion_rows.accesses(store)) == ([], [])
    shown = world.agft("promote", "dry", "--dry-run", "--final").output
    assert "the study's final sets were looked at once" in shown
    assert len(promotion_rows.accesses(store)) == 1, "who asks for it is counted"
    assert everything(world) == before


def test_of_two_promotions_at_once_one_wins_and_the_other_decides_again(world: World) -> None:
    """Both have shipped and stand before HEAD when either may move it."""
    trials = {"race-a": {0: world.trial(0.6)}, "race-b": {0: world.trial(0.6)}}
    stores = {name: world.study(name, rows, model="race-clip") for name, rows in trials.items()}
    outcomes = race(world, list(stores.values()))
    assert sorted(each.state for each in outcomes) == ["promoted", "superseded"]
    check_chain(world, "race-clip", 1)
    superseded = next(each for each in outcomes if each.state == "superseded")
    assert "improvement" in superseded.reason
    assert superseded.champion == read_head(world.bucket, "race-clip")[0].champion
    assert sorted(
        row["state"] for store in stores.values() for row in promotion_rows.promotions(store)
    ) == ["promoted", "superseded"]  # fmt: skip


def race(world: World, stores: list[StudyStore]) -> list[Promotion]:
    """All of them together, held up until every one is about to write its manifest."""
    barrier, outcomes, errors = threading.Barrier(len(stores)), [], []

    def hold(_: Mapping[str, Any]) -> Mapping[str, bytes]:
        barrier.wait(timeout=300)
        return {}

    def run(store: StudyStore) -> None:
        try:
            outcomes.append(world.promote(store, extra_files=hold))
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    return outcomes


@pytest.mark.slow
def test_a_loser_that_is_better_than_the_new_champion_is_promoted_after_it(world: World) -> None:
    """The better one is held up until the other has moved HEAD."""
    worse = world.study("late-a", {0: world.trial(0.2)}, model="late-clip")
    better = world.study("late-b", {0: world.trial(1.0)}, model="late-clip", gates=STRICT)
    said: list[str] = []

    def first_the_other(_: Mapping[str, Any]) -> Mapping[str, bytes]:
        assert world.promote(worse).state == "promoted"
        return {}

    found = promote(better, Order(), world.site(better, said=said, extra_files=first_the_other))
    assert found.state == "promoted"
    check_chain(world, "late-clip", 2)
    looks = [line.rpartition(":" if "before" in line else "measuring")[2] for line in said if "confirm sets" in line]
    assert [look.strip(" .") for look in looks] == ["unmodified CLIP, trial 0", "champion"], "no candidate again"
    assert sum("another promotion was faster" in line for line in said) == 1
    moves = history(world.bucket, "late-clip")
    improvement = next(gate for gate in moves[0].facts["gates"] if gate["name"] == "improvement")
    assert improvement["verdict"] == "passed", "the record of the move has the gates of the last decision"
    assert (moves[0].facts["look"], moves[0].facts["evidence"]) == (1, True)
    assert [each["number"] for each in read_looks(world.bucket, "late-clip")] == [1]


@pytest.mark.slow
def test_five_promotions_at_once_leave_one_chain(world: World) -> None:
    stores = [
        world.study(f"five-{number}", {0: world.trial(alpha)}, model="five-clip")
        for number, alpha in enumerate((0.2, 0.6, 1.0, 0.6, 0.2))
    ]
    outcomes = race(world, stores)
    promoted = [each for each in outcomes if each.state == "promoted"]
    assert {each.state for each in outcomes} == {"promoted", "superseded"}
    check_chain(world, "five-clip", len(promoted))


@pytest.mark.slow
def test_the_story_promote_fail_force_promote_a_better_one_and_roll_back(world: World, tmp_path: Path) -> None:
    model, policy = "story-clip", tmp_path / "policy.yaml"
    world.study("story-one", {0: world.trial(0.2)}, model=model)
    world.study("story-two", {0: world.trial(0.6)}, model=model)
    world.study("story-three", {0: world.trial(1.0)}, model=model)
    world.agft("promote", "story-one")
    check_chain(world, model, 1)
    assert told(world, model) == ["1 champion story-one passed"]

    strict = {**LAX, "floors": {"clean_accuracy": ">= 0.5", "robust_accuracy": ">= 0.99"}}
    policy.write_text(yaml.safe_dump(strict))
    world.agft("promote", "story-two", "--policy", str(policy), code=1)
    check_chain(world, model, 1)
    assert told(world, model) == ["1 champion story-one passed"]
    assert "--reason TEXT" in world.agft("promote", "story-two", "--policy", str(policy), "--force", code=2).output

    reason = "the floor is of another data set; see the minutes of Monday"
    forced = world.agft("promote", "story-two", "--policy", str(policy), "--force", "--reason", reason).output
    assert reason in " ".join(forced.split())
    check_chain(world, model, 2)
    manifest = read_manifest(world.bucket, model, 2)
    assert manifest.forced == reason
    assert manifest.failed_gates == ["floor robust"]
    assert history(world.bucket, model)[0].facts["forced"] == reason
    assert told(world, model) == ["2 champion story-two forced", "1 previous story-one passed"]

    world.agft("promote", "story-three")
    check_chain(world, model, 3)
    assert world.aliases(model) == (3, 2)
    versions = ["3 champion story-three passed", "2 previous story-two forced", "1 - story-one passed"]
    assert told(world, model) == versions

    back = world.agft("rollback", model, "--reason", "users complain").output
    assert "version 2 is the champion again, generation 4" in back
    check_chain(world, model, 4)
    move = history(world.bucket, model)[0]
    assert (move.action, move.why, move.facts["from"]) == ("rollback", "users complain", 3)
    versions = ["3 previous story-three passed", "2 champion story-two forced", "1 - story-one passed"]
    assert told(world, model) == versions
    world.agft("rollback", model, "--to", "1")
    check_chain(world, model, 5)
    versions = ["3 - story-three passed", "2 previous story-two forced", "1 champion story-one passed"]
    assert told(world, model) == versions
    assert "is the champion already" in world.agft("rollback", model, "--to", "1").output
    check_chain(world, model, 5)
    assert "no complete version 9; versions: 1, 2, 3" in world.agft("rollback", model, "--to", "9", code=2).output


def told(world: World, model: str) -> list[str]:
    """What `agft models` shows, newest first: version, alias, study, gates; MLflow says the same as S3."""
    table = world.agft("models", model).stdout.splitlines()
    assert table[0].startswith(f"model {model}: champion version ")
    [facts] = json.loads(world.agft("models", model, "--json").stdout)
    assert facts["differences"] == []
    rows = []
    for row in reversed(facts["versions"]):
        [line] = [line for line in table if f" {row['study']} " in line]
        alias = ", ".join(row["aliases"]) or "-"
        gates = "forced" if "forced: " in line else "passed" if " passed " in line else line
        assert (alias in line) or alias == "-"
        rows.append(f"{row['version']} {alias} {row['study']} {gates}")
    return rows


@pytest.mark.slow
def test_a_version_whose_weights_were_changed_is_not_rolled_back_to(world: World) -> None:
    world.study("rot-one", {0: world.trial(0.2)}, model="rot-clip")
    world.study("rot-two", {0: world.trial(1.0)}, model="rot-clip")
    for name in ("rot-one", "rot-two"):
        world.agft("promote", name)
    uri = read_manifest(world.bucket, "rot-clip", 1).weights.uri
    data = bytearray(storage.get_bytes(uri)[0])
    data[len(data) // 2] ^= 1
    storage.put_bytes(uri, bytes(data))
    assert "has SHA-256" in world.agft("rollback", "rot-clip", code=1).output
    check_head(world, "rot-clip", champion=2, generation=2)


def check_head(world: World, model: str, *, champion: int, generation: int) -> None:
    head, _ = read_head(world.bucket, model)
    assert (head.champion, head.generation) == (champion, generation)


@pytest.mark.slow
def test_the_promotion_stands_when_mlflow_is_away_and_the_aliases_follow_later(world: World) -> None:
    first = world.study("away-one", {0: world.trial(0.2)}, model="away-clip")
    second = world.study("away-two", {0: world.trial(1.0)}, model="away-clip")
    dead = Site(world.bucket, "http://127.0.0.1:9", world.cluster, lambda _: None)
    for store in (first, second):
        found = promote(store, Order(), dead)
        assert (found.state, found.exit_code) == ("promoted", 1)
        assert "127.0.0.1:9" in found.registry
    check_head(world, "away-clip", champion=2, generation=2)
    assert world.aliases("away-clip") == (None, None)
    for study in ("away-one", "away-two"):  # MLflow has lost the other study's run, and gets one in its place
        shown = world.agft("promote", study, "--repair").output
        assert "away-clip champion is version 2, previous 1" in shown
        check_chain(world, "away-clip", 2)
    assert told(world, "away-clip") == ["2 champion away-two passed", "1 previous away-one passed"]


@pytest.mark.slow
def test_several_final_attacks_are_one_number_and_each_its_own(world: World) -> None:
    attacks = [
        {"attack": {"name": "pgd", "steps": 4}, "eps": ["6/255"], "samples": 60},
        {"attack": {"name": "apgd-ce", "steps": 5}, "eps": ["6/255"], "samples": 48},
    ]
    evaluate = {"select": STUDY["evaluate"]["select"], "final": {"attacks": attacks}}
    store = world.study("strong", {0: world.trial(0.6)}, model="strong-clip", evaluate=evaluate)
    found = world.promote(store)
    assert found.state == "promoted"
    for role in (found.confirm, found.final):
        whole = role["trial 0"]
        assert set(whole["attacks"]) == {"pgd-4", "apgd-ce-5"}
        [score] = next(iter(whole["datasets"].values())).values()
        assert score["total"] == 48, "images that both were run on"
        for attack, samples in (("pgd-4", 60), ("apgd-ce-5", 48)):
            [alone] = next(iter(whole["attacks"][attack]["datasets"].values())).values()
            assert alone["total"] == samples
        [strongest] = next(iter(whole["attacks"]["apgd-ce-5"]["datasets"].values())).values()
        assert score["robust"] <= strongest["robust"], "an image must survive both"


@pytest.mark.slow
@pytest.mark.nested
def test_fresh_seeds_are_trained_measured_and_gate(world: World) -> None:
    promote_block = {
        "model_name": "seeds-clip", "seeds": 3, "ship": "median",
        "gates": {"sanity": None, "max_seed_spread": {"robust_accuracy": 0.3}},
    }  # fmt: skip
    store = world.study("seeds", {0: world.trial(0.6)}, model="seeds-clip", promote=promote_block)
    found = world.promote(store)
    assert found.state in ("promoted", "refused"), found.reason
    assert found.seeds is not None
    measured = found.seeds.measured
    assert len(measured) == 3
    assert {gate.name: gate.verdict for gate in found.gates}["seed spread robust"] == "passed"
    values = sorted(each["robust_accuracy"] for each in measured.values())
    assert found.confirm["trial 0"]["robust_accuracy"] == values[1], "the median one is who is judged"
    assert "trial 0, as searched" in found.confirm
    summary = found.seeds.summary["robust_accuracy"]
    assert summary.low < summary.mean < summary.high
    assert summary.mean == pytest.approx(sum(values) / 3)
    again = StudyStore(store.url, "seeds-seeds-0x3")
    assert [trial.state for trial in again.trials()] == ["complete"] * 3
    assert world.promote(store).state == {"promoted": "kept", "refused": "refused"}[found.state]
    assert len(again.trials()) == 3, "nothing is trained twice"
