"""The whole thread for real: CLI, Ray, Optuna, S3, MLflow, SIGKILL, promotion, plain open_clip."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from infra import storage
from tests.bench.golden import processor
from tests.support.services.real_run import Run, wait_until_gone

pytestmark = [pytest.mark.nested, pytest.mark.timeout(3600)]


@pytest.fixture
def run(killed_and_finished: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The finished study, with this process's environment pointing at its services."""
    for name, value in killed_and_finished.services().items():
        monkeypatch.setenv(name, value)
    return killed_and_finished


def test_the_study_finishes_after_sigkill_with_no_finished_trial_lost_or_run_twice(run):
    before = {trial["number"]: trial for trial in json.loads(run.printed["before"])}
    after = {trial["number"]: trial for trial in run.trials("demo")}
    assert set(after) == set(range(8))
    assert all(trial["state"] in ("complete", "pruned") for trial in after.values())
    finished = [number for number, trial in before.items() if trial["state"] in ("complete", "pruned")]
    running = [number for number, trial in before.items() if trial["state"] == "unfinished"]
    assert finished, "the kill came when a trial had finished"
    assert running, "and while another was running"
    for number in finished:
        assert after[number] == before[number], "a finished trial is as it was"
        assert f"trial {number:>3}  starts" not in run.printed["finished"]
    for number in running:
        assert after[number]["attempts"] == 2
    assert all(trial["attempts"] == 1 for number, trial in after.items() if number not in running)


def test_no_process_of_ray_survives_its_driver(run):
    assert run.printed["left"] == ""


def test_while_a_trial_runs_every_port_is_on_loopback(run):
    ports = run.printed["listening"].splitlines()
    assert [part for part in ("raylet", "gcs_server", "weed", "mlflow") if part not in run.printed["listening"]] == []
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_a_continued_trial_repeats_no_epoch(run):
    shown = re.findall(r"trial +(\d+)  epoch (\d+)/", run.printed["killed"] + run.printed["finished"])
    # The line of an epoch is printed after its commit, so a kill between the two can only lose a line.
    assert len(shown) == len(set(shown))


def test_progress_table_best_trial_and_address_are_printed(run):
    text = run.printed["finished"]
    assert re.search(r"best: trial \d+, epoch \d: clean [\d.]+ % \(unmodified CLIP [\d.]+ %\), robust", text)
    assert "MLflow UI: http://127.0.0.1:" in text
    assert "best first" in text
    assert "unmodified CLIP: clean" in run.printed["killed"]


def test_the_readme_shows_this_very_study(run):
    """Though this one was killed in the middle. On another processor the last bits, and with them images, differ."""
    text = (Path(__file__).parents[2] / "README.md").read_text()
    shown = "study demo" + text.partition("```text\nstudy demo")[2].partition("\n```")[0]
    told = {" ".join(line.split()) for line in run.printed["finished"].splitlines()}
    lines_shown = shown.replace("demo-001", "demo").splitlines()
    lasting = [line for line in lines_shown if line and not re.match(r"\[|report:|MLflow|  +", line)]
    lines = [" ".join(line.split()) for line in lasting]
    assert len(lines) > 30
    missing = [line for line in lines if line not in told]
    if processor() in text:  # of the run that is shown
        assert missing == []
    else:
        assert all(re.search(r"\d", line) for line in missing), missing


def test_the_bucket_holds_one_object_a_role(run):
    client = boto3.Session().client("s3")  # the default session keeps the keys of whoever used it first
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=os.environ["AGFT_BUCKET"])
    keys = [item["Key"] for page in pages for item in page.get("Contents", []) if item["Size"]]
    for number in range(8):
        trial = [key for key in keys if re.match(rf"studies/demo-\d+/trials/{number}/", key)]
        assert sorted(key.rpartition("/")[2].partition("-")[0] for key in trial) == ["best", "latest"], trial
    promoted = [key for key in keys if key.startswith("models/robust-clip/") and key.endswith(".safetensors")]
    assert promoted == ["models/robust-clip/0001/open_clip_model.safetensors"]
    left = [key for key in keys if key.startswith("scratch/")]
    assert left == [], "Ray's own files go with the study's end"


def test_mlflow_shows_the_study_its_trials_and_their_weights(run):
    from mlflow import MlflowClient

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("agft")
    runs = client.search_runs([experiment.experiment_id])
    [parent] = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert (parent.info.run_name, parent.info.status) == ("demo", "FINISHED")
    assert parent.data.metrics["clip_clean_accuracy"] > parent.data.metrics["clip_robust_accuracy"]
    trials = {trial["number"]: trial for trial in run.trials("demo")}
    assert {int(child.data.tags["agft.optuna_number"]) for child in children} == set(trials)
    for child in children:
        trial = trials[int(child.data.tags["agft.optuna_number"])]
        assert child.info.status == {"complete": "FINISHED", "pruned": "FINISHED"}[trial["state"]]
        assert "method.scale_ratio" in child.data.params
        history = client.get_metric_history(child.info.run_id, "robust_accuracy")
        assert [point.step for point in history] == list(range(1, trial["epochs"] + 1))
        stored = storage.head(child.data.tags["agft.best.uri"])
        body = storage.get_bytes(stored.uri)[0]
        assert hashlib.sha256(body).hexdigest() == child.data.tags["agft.best.sha256"]
    artifacts = {item.path for item in client.list_artifacts(children[0].info.run_id)}
    assert {"config.json", "epochs.json"} <= artifacts


def test_the_champion_is_registered_with_its_alias(run):
    from mlflow import MlflowClient

    assert "promotion: promoted" in run.printed["finished"]
    version = MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).get_model_version_by_alias("robust-clip", "champion")
    head = storage.get_json(f"s3://{os.environ['AGFT_BUCKET']}/models/robust-clip/HEAD.json")[0]
    assert (head["champion"], head["previous"], head["generation"]) == (1, None, 1)
    prefix = f"s3://{os.environ['AGFT_BUCKET']}/models/robust-clip/0001"
    assert version.tags["agft.weights.uri"] == f"{prefix}/open_clip_model.safetensors"
    manifest = storage.get_json(f"{prefix}/manifest.json")[0]
    assert version.tags["agft.weights.sha256"] == manifest["weights"]["sha256"]
    assert set(manifest["final"]["unmodified CLIP"]["datasets"]) == {"heldout-letters", "heldout-digits", "real-digits"}


def test_plain_open_clip_loads_the_champion_from_s3_and_sees_what_was_measured(run, tmp_path):
    """A fresh process with boto3 and open_clip, without a line of this project, counts right answers."""
    from trainers.data import load_dataset

    letters = load_dataset("heldout-letters")
    import torch

    torch.save({"images": letters.images, "labels": letters.labels, "prompts": letters.prompts()}, tmp_path / "set.pt")
    code = f"""
import boto3, open_clip, torch
s3 = boto3.client("s3")
for name in ("open_clip_config.json", "open_clip_model.safetensors"):
    s3.download_file("{os.environ["AGFT_BUCKET"]}", "models/robust-clip/0001/" + name, "{tmp_path}/" + name)
model, _, _ = open_clip.create_model_and_transforms("local-dir:{tmp_path}")
tokenizer = open_clip.get_tokenizer("local-dir:{tmp_path}")
mean, std = (torch.tensor(model.visual.preprocess_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
data = torch.load("{tmp_path}/set.pt", weights_only=True)
with torch.no_grad():
    classes = torch.stack([model.encode_text(tokenizer(p), normalize=True).mean(0) for p in data["prompts"]])
    features = model.encode_image((data["images"] / 255 - mean) / std, normalize=True)
    print((features @ torch.nn.functional.normalize(classes, dim=1).T).argmax(1).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    predicted = torch.tensor(json.loads(done.stdout.strip().splitlines()[-1]))
    from trainers.evaluation.verdicts import stratified_sample

    chosen = stratified_sample(letters.labels, 400, seed=0)
    manifest = storage.get_json(f"s3://{os.environ['AGFT_BUCKET']}/models/robust-clip/0001/manifest.json")[0]
    [label] = [label for label in manifest["final"] if label.startswith("trial")]
    [score] = manifest["final"][label]["datasets"]["heldout-letters"].values()
    assert int((predicted[chosen] == letters.labels[chosen]).sum()) == score["correct"]


def test_the_audit_follows_and_report_and_card_say_so(run):
    told = run.agft("audit", "demo").stdout
    assert re.fullmatch(r"study demo: follows \(8 trials, \d proposals?, \d+ verdicts?, 1 promotion\)\n", told), told
    assert "Audit: follows (8 trials, " in (run.home / "reports" / "demo" / "report.md").read_text()
    card = storage.get_bytes(f"s3://{os.environ['AGFT_BUCKET']}/models/robust-clip/0001/README.md")[0].decode()
    assert "| audit of the study | follows (8 trials, " in card


def test_running_a_finished_study_again_starts_nothing(run):
    before = run.trials("demo")
    text = run.agft("run", str(run.file)).stdout
    assert "every trial of the budget has finished already" in text
    assert run.trials("demo") == before


def test_another_spec_under_the_same_name_is_refused(run, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(run.file.read_text().replace("seed: 0", "seed: 2"))
    done = run.agft("run", str(other), check=False)
    assert done.returncode == 2
    assert "seed: 0 -> 2" in done.stderr


@pytest.mark.slow
def test_promoting_again_keeps_a_champion_that_is_as_good(run):
    text = run.agft("promote", "demo").stdout
    assert "promotion: kept" in text
    assert storage.get_json(f"s3://{os.environ['AGFT_BUCKET']}/models/robust-clip/HEAD.json")[0]["generation"] == 1


def test_report_and_status_are_written_for_people(run):
    path = run.agft("report", "demo").stdout.strip()
    folder = os.path.dirname(path)
    assert {"report.md", "curves.png", "tradeoff.png"} <= set(os.listdir(folder))
    status = run.agft("status").stdout
    assert "demo" in status
    assert "finished" in status


def test_secrets_are_in_no_log_and_no_record(run):
    secrets = [
        os.environ[name].encode()
        for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD")
    ]  # fmt: skip
    for text in run.printed.values():
        assert not any(secret.decode() in text for secret in secrets)
    for stored in storage.list_objects(f"s3://{os.environ['AGFT_BUCKET']}/"):
        if not stored.uri.endswith("/"):
            body = (storage.get_bytes(stored.uri) or (b"", ""))[0]
            assert not any(secret in body for secret in secrets), stored.uri
    allowed = {"secrets.json"}
    for folder, _, names in os.walk(run.home):
        for name in names:
            path = os.path.join(folder, name)
            if name in allowed or os.stat(path).st_mode & 0o077 == 0:
                continue  # private files are where credentials are kept
            with open(path, "rb") as file:
                assert not any(secret in file.read() for secret in secrets), path


def test_stack_down_leaves_no_process(run):
    run.agft("stack", "down")
    assert wait_until_gone(run.processes) == []
