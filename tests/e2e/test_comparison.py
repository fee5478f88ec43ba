"""`agft compare` for real, as a newcomer runs it: interrupted, gone on with, and reported. 8 nested trials."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator

import pytest

from tests.support.services.real_run import Run, read_until

pytestmark = [pytest.mark.slow, pytest.mark.nested, pytest.mark.timeout(1500)]

FILE = """\
name: duel
methods:
  agft: {method: {name: agft, logit_scale: {of_model: 1.0}}, search: {method.scale_ratio: {low: 0.5, high: 1.0}}}
  tecoa: {method: {name: tecoa}}
search: {train.optimizer.lr: {low: 1e-4, high: 1e-3, log: true}}
seeds: [11, 12]
model: {arch: tiny-clip, pretrained: bundled}
attack: {eps: 4/255, step_size: {of_eps: 0.75}}
data: {train: tiny-color-shapes, dev: [tiny-shapes], confirm: [tiny-colors], final: [tiny-letters, real-digits]}
train: {epochs: 2, batch_size: 64, samples_per_epoch: 256, optimizer: {name: adamw, lr: 5e-4}}
evaluate:
  select: {attack: {eps: [4/255], steps: 3}, samples: 32}
  final: {attack: {eps: [4/255], steps: 3}, samples: 40}
budget: {trials: 2}
"""


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The comparison: Ctrl-C while the first study runs, then the same command to the end, then once more."""
    folder = tmp_path_factory.mktemp("compare")
    run = Run(home=folder / "home", file=folder / "compare.yaml")
    run.file.write_text(FILE)
    try:
        driver = run.start("compare", str(run.file))
        first = read_until(driver, lambda line: re.search(r"trial +\d +epoch 1/", line) is not None)
        os.kill(driver.pid, signal.SIGINT)
        run.printed["interrupted"] = first + driver.communicate(timeout=120)[0]
        run.printed["code"] = str(driver.returncode)
        driver = run.start("compare", str(run.file))
        run.printed["finished"] = driver.communicate(timeout=1200)[0]
        run.printed["again"] = run.agft("compare", str(run.file), "--out", str(folder / "out")).stdout
        yield run
    finally:
        run.agft("stack", "down", check=False)
        for process in run.processes():
            process.kill()


def record_of(run: Run) -> dict:
    return json.loads((run.home / "compare" / "duel" / "report" / "comparison.json").read_text())


def test_ctrl_c_pauses_and_the_same_command_goes_on(compared):
    assert compared.printed["code"] == "1"
    assert "nothing is lost. Go on with the same command" in compared.printed["interrupted"]
    shown = re.findall(r"trial +(\d+)  epoch (\d+)/", compared.printed["interrupted"] + compared.printed["finished"])
    assert len(shown) == 2 * 4 * 2, "4 studies of 2 runs of 2 epochs, none of them twice"
    assert "about" in compared.printed["finished"]


def test_every_method_has_its_search_and_its_fresh_seeds_measured_as_counts_on_the_final_sets(compared):
    record = record_of(compared)
    assert set(record["methods"]) == {"agft", "tecoa"}
    for method in record["methods"].values():
        assert [trial["state"] for trial in method["search"]["trials"]] == ["complete", "complete"]
        assert [run["seed"] for run in method["runs"]] == [11, 12]
        assert len({run["weights"]["sha256"] for run in method["runs"]}) == 2, "another seed, another model"
        for run in method["runs"]:
            for scores in run["final"]["datasets"].values():
                [score] = scores.values()
                assert score["total"] == 40
                assert 0 <= score["robust"] <= score["correct"] <= 40
    first = record["methods"]["tecoa"]["runs"][0]
    assert first["params"] == {"seed": 11}
    assert record["unmodified"]["final"]["clean_accuracy"] > record["unmodified"]["final"]["robust_accuracy"]


def test_the_repetitions_train_with_the_chosen_hyperparameters(compared):
    record = record_of(compared)
    [row] = json.loads(compared.agft("status", "duel-agft-seeds", "--json").stdout)
    assert [trial["params"]["seed"] for trial in sorted(row["trials"], key=lambda t: t["number"])] == [11, 12]
    chosen = record["methods"]["agft"]["chosen"]
    assert chosen["config"]["train"]["optimizer"]["lr"] == chosen["params"]["train.optimizer.lr"]


def test_a_finished_comparison_is_only_written_again(compared):
    text = compared.printed["again"]
    assert "everything has been run and measured already" in text
    assert "trial" not in text.replace("trials", "")
    assert {"comparison.md", "comparison.json", "comparison-accuracy.png"} <= set(
        os.listdir(compared.file.parent / "out")
    )


def test_the_report_is_attached_in_mlflow(compared, monkeypatch):
    for name, value in compared.services().items():
        monkeypatch.setenv(name, value)
    from mlflow import MlflowClient

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("agft")
    [found] = client.search_runs([experiment.experiment_id], "tags.`agft.comparison` = 'duel'")
    assert {"report/comparison.md", "report/comparison-sets.png"} <= {
        item.path for item in client.list_artifacts(found.info.run_id, "report")
    }


def test_mistakes_in_a_compare_file_exit_2_with_their_lines(compared):
    wrong = compared.file.with_name("wrong.yaml")
    wrong.write_text(FILE.replace("name: tecoa", "name: tecao").replace("seeds: [11, 12]", "seeds: [0, 12]"))
    done = compared.agft("compare", str(wrong), check=False)
    assert done.returncode == 2
    assert "did you mean 'tecoa'" in done.stderr
    assert re.search(r"line 6: seeds.0 = 0: is the seed of the search", done.stderr)
    assert "Traceback" not in done.stderr
