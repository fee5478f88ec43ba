"""Simulated studies follow, whatever samples and stops trials and whatever users do; a changed number is found."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from study.audit.audit import audit
from study.audit.findings import Audit
from study.cli.main import main
from study.control.lifecycle import drop_trial, extend_study, rerun_trial
from study.errors import UserError
from study.promotion.claims import audited
from study.spec.config import SAMPLERS, STOPPING, StudyConfig
from study.spec.starts import Observation, Start
from study.store import tables as t
from study.store.archive import export_study, import_study, stored_in, stored_of
from study.store.store import StudyStore
from tests.support.hand import Hand
from tests.support.light import light_study
from tests.support.simulated import Simulation, write_archive
from tests.support.worlds import ELSEWHERE, run_world

TRIALS, EPOCHS, STUDY = 100, t.epochs.name, "audited"
GRID = {
    "method.scale_ratio": {"choices": [round(0.2 + 0.1 * place, 1) for place in range(10)]},
    "train.optimizer.lr": {"choices": [10**-power for power in range(1, 11)]},
}


def spec_of(sampler: str, rule: str = "asha", **changed: Any) -> StudyConfig:
    row = SAMPLERS[sampler]
    how = {
        "sampler": {"name": sampler, **({"population": 5} if "population" in row.reads else {})},
        "scheduler": {"name": rule, "grace_fraction": 0.3, "reduction_factor": 2},
        "budget": {"trials": TRIALS},
        **({"search": GRID} if row.exhaustive else {}),
    }
    return light_study(STUDY, **how | changed)


def audit_of(content: dict[str, Any], folder: Path) -> Audit:
    return audited(stored_in(write_archive(content, folder / "a.json")))


MODELS = ("gp", "auto")  # a proposal takes half a second: the slow tier has a smaller study of them


QUICK = {("tpe", "asha"), ("cmaes", "median"), ("nsga2", "none"), ("qmc", "asha"), ("grid", "asha"), ("random", "none")}


@pytest.mark.parametrize(
    ("sampler", "rule"),
    [
        pytest.param(sampler, rule, marks=[] if (sampler, rule) in QUICK else [pytest.mark.slow])
        for sampler in SAMPLERS
        if sampler not in MODELS
        for rule in STOPPING
    ],
)
def test_a_hundred_light_trials_follow_with_every_sampler_and_stopping_rule(sampler, rule, tmp_path):
    found = audit_of(Simulation(spec_of(sampler, rule), seed=3, faults={5: 2, 17: 1, 60: 4}).run().content(), tmp_path)
    assert found.follows, found.line
    assert found.counted["trials"] == TRIALS
    assert found.counted["proposals"] == (0 if sampler == "grid" else TRIALS - 1), "the file's own values are given"
    assert (found.counted["verdicts"] > 0) == STOPPING[rule].stops


USERS = {
    10: [("drop", 3), ("rerun", 1)],
    18: [("drop", 16), ("rerun", 2), ("drop", 12)],
    30: [("extend", 8), ("drop", 25)],
}


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in ("grid", *MODELS)])
@pytest.mark.parametrize("speeds", [1, 2])
def test_dropped_repeated_extended_failed_and_finished_trials_have_their_place(sampler, speeds, tmp_path):
    how = {"name": "median", "min_trials": 3, "finish": 2}
    spec = spec_of(sampler, scheduler=how, budget={"trials": 25})
    study = Simulation(spec, seed=speeds, faults={4: 3}, script=USERS).run()
    assert sum(row.finishing for row in study.rows.values()) >= 2
    assert len(study.rows) == 25 + 8 + 4 + 2
    found = audit_of(study.content(), tmp_path)
    assert found.follows, found.line


def test_a_grid_that_lost_a_point_follows(tmp_path):
    search = {"train.optimizer.lr": {"choices": [10**-power for power in range(1, 7)]}}
    spec = spec_of("grid", search=search, budget={"trials": 6})
    found = audit_of(Simulation(spec, script={4: [("drop", 1)]}).run().content(), tmp_path)
    assert found.follows, found.line
    assert found.counted["trials"] == 7


@pytest.mark.parametrize("metrics", [[], ["robust_accuracy", "clean_accuracy"]])
def test_a_study_that_stands_still_and_one_of_a_front_follow(metrics, tmp_path):
    goal = {"metrics": metrics} if metrics else {"metric": "robust_accuracy"}
    budget = {"trials": 60, "patience": 6, "min_delta": 0.01}
    how = {"name": "none"} if metrics else {"name": "none", "patience": 2, "min_delta": 0.02}
    study = Simulation(spec_of("tpe", goal=goal, budget=budget, scheduler=how), script={8: [("extend", 3)]}).run()
    assert study.message.endswith("(budget.patience)")
    assert metrics or any(row.stop_reason for row in study.rows.values()), "some stood still"
    found = audit_of(study.content(), tmp_path)
    assert found.follows, found.line


def test_of_a_study_that_is_cut_off_everywhere_what_is_there_follows(tmp_path):
    """At any moment, as another terminal or an archive sees it."""
    content = Simulation(spec_of("tpe", budget={"trials": 12})).run().content()
    for left in (0, 1, 7):
        part = copy.deepcopy(content)
        part["study"] |= {"state": "paused", "message": "interrupted"}
        kept = {name: [row for row in part["rows"][name] if row["number"] < left] for name in OF_TRIALS}
        if left:
            newest = kept[t.trials.name][-1]
            newest |= {"state": "running", "stop_reason": None, "failure_kind": None, "ended_ms": None}
            for name in (EPOCHS, t.verdicts.name):
                kept[name] = [row for row in kept[name] if row["number"] < left - 1 or row["epoch"] < 2]
        part["rows"] |= kept
        found = audit_of(part, tmp_path)
        assert found.follows, found.line


def test_starts_of_earlier_studies_are_taken_as_stored_and_their_trials_have_to_follow(tmp_path):
    spec = spec_of("tpe", budget={"trials": 6}, prior={"studies": ["earlier"]})
    starts = [Start("earlier trial 3", {"attack.eps": 0.01}), Start("earlier trial 1", {"method.scale_ratio": 0.9})]
    content = Simulation(spec, prior=starts).run().content()
    found = audit_of(content, tmp_path)
    assert found.follows, found.line
    assert found.counted["proposals"] == 6 - 3
    content["study"]["starts"][1]["values"]["attack.eps"] = 0.011
    assert audit_of(content, tmp_path).line.startswith("does not follow: trial 1: params.attack.eps")


OBSERVED = [
    Observation(f"earlier trial {n}", {"method.scale_ratio": 0.2 + 0.1 * n, "train.optimizer.lr": 10 ** -(2 + n / 2)},
                {"clean_accuracy": 0.6, "robust_accuracy": 0.1 + 0.02 * n})
    for n in range(6)
]  # fmt: skip


def observing(sampler: str, rule: str, trials: int) -> dict[str, Any]:
    search = {"method.scale_ratio": {"low": 0.1, "high": 0.9},
              "train.optimizer.lr": {"low": 1e-6, "high": 1e-1, "log": True}}  # fmt: skip
    spec = spec_of(sampler, rule, budget={"trials": trials}, search=search, warm_starts=[],
                   prior={"studies": ["earlier"], "observe": True})  # fmt: skip
    starts = [Start(each.origin, each.values) for each in OBSERVED[:2]]
    return Simulation(spec, prior=starts, observed=OBSERVED, faults={4: 2}).run().content()


def test_earlier_results_are_taken_as_stored_and_what_is_proposed_has_to_follow_from_them(tmp_path):
    content = observing("tpe", "asha", 12)
    found = audit_of(content, tmp_path)
    assert found.follows, found.line
    assert found.counted["proposals"] == 12 - 2
    content["study"]["starts"][2]["measured"]["robust_accuracy"] = 0.9
    assert audit_of(content, tmp_path).line.startswith("does not follow: trial ")


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "rule"), [("gp", "asha"), ("gp", "none"), ("auto", "median")])
def test_proposals_of_a_gaussian_process_follow_from_what_is_stored(sampler, rule, tmp_path):
    found = audit_of(observing(sampler, rule, 16), tmp_path)
    assert found.follows, found.line
    assert found.counted["proposals"] == 16 - 2


def test_a_proposal_that_does_not_follow_is_named_with_the_versions_that_made_it(tmp_path):
    content = Simulation(spec_of("random", budget={"trials": 3})).run().content()
    content["study"]["provenance"] = {"packages": {"optuna": "0.1", "numpy": "0.2", "torch": "0.3"}}
    content["rows"][t.trials.name][2]["params"]["attack.eps"] *= 1.5
    told = audit_of(content, tmp_path).line
    assert "it ran with optuna 0.1, here " in told
    assert "numpy 0.2, here" in told
    assert "torch" not in told


OF_TRIALS = (t.trials.name, t.attempts.name, EPOCHS, t.verdicts.name)


# Twenty archives in each of which one number was changed, and the sum written anew.


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    spec = spec_of("tpe", budget={"trials": 24, "patience": 20}, lag=4, scheduler={"name": "median", "finish": 1})
    script = {8: [("rerun", 2), ("drop", 5)], 24: [("extend", 4)]}
    return Simulation(spec, seed=4, faults={9: 3}, script=script).run().content()


def trial(content: dict[str, Any], number: int) -> dict[str, Any]:
    return content["rows"][t.trials.name][number]


def record(content: dict[str, Any], number: int, epoch: int) -> dict[str, Any]:
    found = next(row for row in content["rows"][EPOCHS] if (row["number"], row["epoch"]) == (number, epoch))
    return found["record"]


def score(content: dict[str, Any], number: int, epoch: int) -> dict[str, Any]:
    return record(content, number, epoch)["datasets"]["tiny-digits"]["4/255"]


def judged(content: dict[str, Any], decision: str) -> dict[str, Any]:
    return next(row for row in content["rows"][t.verdicts.name] if row["decision"] == decision and row["number"] > 8)


def add(row: dict[str, Any], key: str, by: float) -> None:
    row[key] += by


def change_spec(content: dict[str, Any], old: str, new: str) -> None:
    assert old in content["study"]["spec"]
    content["study"]["spec"] = content["study"]["spec"].replace(old, new)


Change = Callable[[dict[str, Any]], None]
CHANGES: dict[str, tuple[Change, str]] = {
    "a sampled value in its last bit": (
        lambda c: add(trial(c, 20)["params"], "method.scale_ratio", 2**-52), "trial 20: params.method.scale_ratio"),
    "a given value": (
        lambda c: add(trial(c, 0)["params"], "train.optimizer.lr", 1e-9), "trial 0: params.train.optimizer.lr"),
    "a setting": (
        lambda c: add(trial(c, 7)["config"]["train"], "batch_size", 1), "trial 7: config.train.batch_size"),
    "a count of right images": (lambda c: add(score(c, 3, 2), "correct", 1), "trial 3, epoch 2: datasets"),
    "a count of robust images": (lambda c: add(score(c, 11, 1), "robust", -1), "trial 11, epoch 1: datasets"),
    "a number of images": (lambda c: add(score(c, 6, 1), "total", 1), "trial 6, epoch 1: datasets"),
    "a set's accuracy": (
        lambda c: add(score(c, 6, 2), "robust_accuracy", 1e-3),
        "trial 6, epoch 2: datasets.tiny-digits.4/255.robust_accuracy"),
    "an epoch's accuracy": (
        lambda c: add(record(c, 14, 2), "robust_accuracy", 1e-6), "trial 14, epoch 2: robust_accuracy"),
    "a best epoch": (lambda c: record(c, 0, 6).update(best_epoch=1), "trial 0, epoch 6: best_epoch"),
    "the best epoch's accuracy": (
        lambda c: add(record(c, 1, 2), "best_clean_accuracy", 1e-9), "trial 1, epoch 2: best_clean_accuracy"),
    "an epoch": (lambda c: _shift(c, 10), "trial 10, epoch"),
    "a verdict's epoch": (lambda c: add(judged(c, "continue"), "epoch", -1), "verdict"),
    "a cut-off in a verdict's sentence": (
        lambda c: judged(c, "stop").update(reason=judged(c, "stop")["reason"].replace("0.", "0.9", 1)), "reason"),
    "the lag": (lambda c: add(c["study"], "lag", 1), "lag"),
    "the lag, in the file as well": (
        lambda c: (add(c["study"], "lag", 1), change_spec(c, '"lag": 4', '"lag": 5')), "spec_hash"),
    "a count of the unmodified model": (
        lambda c: add(c["study"]["baseline"]["datasets"]["tiny-shapes"]["4/255"], "correct", -1), "baseline.datasets"),
    "the unmodified model's accuracy, which floors depend on": (
        lambda c: add(c["study"]["baseline"], "clean_accuracy", -0.01), "baseline.clean_accuracy"),
    "the budget": (lambda c: add(c["study"]["budget"], "trials", 1), "budget.trials"),
    "the trials that there were when it was raised": (lambda c: add(c["study"], "extended_at", -1), "extended_at"),
    "a repeated trial's number": (lambda c: add(_again(c), "rerun_of", 1), "rerun_of"),
    "a trial that was asked for again": (lambda c: add(c["rows"][t.requests.name][0], "number", 1), "rerun_of"),
    "since when a trial is out": (lambda c: add(trial(c, 5), "dropped_at", 6), "trial "),
    "which trial was dropped": (lambda c: add(c["rows"][t.requests.name][1], "number", 1), "trial 5: state"),
    "the seed": (lambda c: change_spec(c, '"seed": 1,', '"seed": 2,'), "spec_hash"),
    "a given trial": (
        lambda c: add(c["study"]["starts"][0]["values"], "attack.eps", 1e-6), "starts.0.values.attack.eps"),
    "how long a failed trial is": (
        lambda c: add(trial(c, 9)["config"]["train"], "epochs", -4), "trial 9: config.train.epochs"),
}  # fmt: skip


def _again(content: dict[str, Any]) -> dict[str, Any]:
    return next(row for row in content["rows"][t.trials.name] if row["rerun_of"] is not None)


def _shift(content: dict[str, Any], number: int) -> None:
    """A trial's last epoch becomes the one after."""
    last = [row for row in content["rows"][EPOCHS] if row["number"] == number][-1]
    last["epoch"] += 1
    last["record"]["epoch"] += 1


def test_the_archive_as_it_is_follows(content, tmp_path):
    found = audit_of(content, tmp_path)
    assert found.follows, found.line


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_number_is_found_though_the_sum_was_written_anew(change, content, tmp_path):
    changed, (apply, place) = copy.deepcopy(content), CHANGES[change]
    apply(changed)
    assert changed != content
    found = audit_of(changed, tmp_path)
    assert found.first is not None
    assert place in str(found.first), found.line
    assert not found.first.path.startswith("sha256")


@pytest.mark.parametrize(
    "change",
    [
        lambda c: add(record(c, 3, 1), "train_loss", 0.1),
        lambda c: add(trial(c, 3), "started_ms", 1),
        lambda c: add(c["rows"][t.attempts.name][3], "device_seconds", 1.0),
    ],
    ids=["loss", "time", "device-seconds"],
)
def test_what_nothing_derives_is_covered_by_the_sum_which_restore_checks_as_well(change, content, tmp_path):
    changed = copy.deepcopy(content)
    change(changed)
    path = write_archive(content, tmp_path / "a.json")
    path.write_text(json.dumps({**changed, "sha256": json.loads(path.read_text())["sha256"]}))
    found = audit(stored_in(path))
    assert found.first is not None
    assert found.first.path == "sha256"
    with pytest.raises(UserError, match=rf"{path}: not as `agft archive` wrote it"):
        import_study(f"sqlite:///{tmp_path}/there.db", path)


def test_what_cmaes_keeps_is_never_read_from_a_file(tmp_path):
    content = Simulation(spec_of("cmaes", budget={"trials": 24})).run().content()
    memories = [row for row in content["rows"][t.trials.name] if row["memory"]]
    assert memories, "it keeps something"
    for row in memories:
        row["memory"] = dict.fromkeys(row["memory"], "80049521")  # no pickle
    assert audit_of(content, tmp_path).follows


# What the service's own drivers write, on a real database.


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "nsga2"])
def test_what_killed_drivers_and_users_leave_in_a_database_follows(sampler, tmp_path):
    """Dropped, repeated, extended, finished after all and dropped while that went on; restored from an archive."""
    url, how = f"sqlite:///{tmp_path}/studies.db", {"name": "median", "min_trials": 2, "finish": 2}
    spec = spec_of(sampler, scheduler=how, budget={"trials": 8}, lag=2)
    store = StudyStore(url, spec.name)
    run_world(url, spec, 1, kills=0.02)
    finished = [row for row in store.trials() if row.finishing]
    assert len(finished) == 2
    extend_study(store, trials=3, hours=0, gpu_hours=0)
    drop_trial(store, finished[0].number, "an odd one")
    rerun_trial(store, 0)
    rerun_trial(store, 5)
    hand = Hand(store, owner=ELSEWHERE, seconds=0.0)
    assert hand.obey() == ["in line again"] * 2
    run_world(url, spec, 2, kills=0.02)
    assert len(store.trials()) == 8 + 3 + 1 + 2
    before = audited(stored_of(store))
    assert before.follows, before.line
    export_study(store, tmp_path / "a.json")
    other = f"sqlite:///{tmp_path}/other.db"
    import_study(other, tmp_path / "a.json", name="twin")
    run_world(other, spec.renamed("twin"), 3)
    twin = StudyStore(other, "twin")
    extend_study(twin, trials=4, hours=0, gpu_hours=0)
    run_world(other, spec.renamed("twin"), 4)
    after = audited(stored_of(twin))
    assert after.follows, after.line
    assert after.counted["trials"] == 8 + 3 + 1 + 2 + 4


def test_a_trial_that_is_dropped_while_it_is_finished_stays_known_as_it_was(tmp_path):
    url, how = f"sqlite:///{tmp_path}/studies.db", {"name": "median", "min_trials": 2, "finish": 1}
    spec = spec_of("tpe", scheduler=how, budget={"trials": 8}, lag=2)
    store = StudyStore(url, spec.name)
    run_world(url, spec, 1, kills=0.0)
    [again] = [row.number for row in store.trials() if row.finishing]
    token = store.acquire(ELSEWHERE, seconds=0.0)
    store.reopen_trial(token, again)
    drop_trial(store, again, "")
    assert store.trial(again).state_before == "pruned"
    found = audited(stored_of(store))
    assert found.follows, found.line


# The command.


def run(home: Path, *arguments: str) -> tuple[int, str]:
    done = CliRunner(env={"AGFT_HOME": str(home), "AGFT_STUDY_DB": ""}).invoke(main, ["audit", *arguments])
    return done.exit_code, done.output.strip()


def test_the_command_says_follows_or_the_first_place_of_a_file_and_of_a_restored_study(content, tmp_path):
    path = write_archive(content, tmp_path / "a.json")
    code, told = run(tmp_path, str(path))
    assert code == 0
    assert told.startswith(f"study {STUDY}: follows (30 trials, 28 proposals, ")
    import_study(f"sqlite:///{tmp_path}/studies.db", path)
    assert run(tmp_path, STUDY) == (0, told)
    changed = copy.deepcopy(content)
    add(record(changed, 14, 2), "robust_accuracy", 0.01)
    code, told = run(tmp_path, str(write_archive(changed, path)))
    assert code == 1
    assert "does not follow: trial 14, epoch 2: robust_accuracy: stored 0." in told
    code, told = run(tmp_path, str(path), "--json")
    first = json.loads(told)["first"]
    assert (code, first["trial"], first["epoch"], first["path"]) == (1, 14, 2, "robust_accuracy")


def test_wrong_input_is_told_apart_from_what_does_not_follow(tmp_path):
    StudyStore(f"sqlite:///{tmp_path}/studies.db", STUDY).create(spec_of("tpe"))
    assert run(tmp_path, "audited") == (0, f"study {STUDY}: follows (0 trials, 0 proposals, 0 verdicts)")
    assert run(tmp_path, "audite") == (2, "no study 'audite'; did you mean 'audited'? known: audited")
    code, told = run(tmp_path, str(tmp_path / "no.json"))
    assert (code, told) == (2, f"{tmp_path}/no.json: cannot be read: No such file or directory")
    (tmp_path / "x.json").write_text("{}")
    code, told = run(tmp_path, str(tmp_path / "x.json"))
    assert code == 2
    assert "not a study written by `agft archive`" in told
