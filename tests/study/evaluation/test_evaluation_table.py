"""What a person and MLflow are shown of records: numbers with intervals, means, and marks where checks failed."""

from __future__ import annotations

import gzip
import io

import pytest
import torch
from rich.console import Console

from study.evaluation.ledger import COLUMNS, attack_parts, image_rows
from study.evaluation.table import failed_checks, markdown_table, remarks, summary, summary_table
from study.evaluation.tracking import metric_points
from study.evaluation.units import Evaluation
from tests.support.records import record
from trainers.evaluation.readings import READINGS, Readings
from trainers.evaluation.record import EvaluationRecord, Finding
from trainers.evaluation.verdicts import Verdicts
from trainers.schema.suite import AttackAt, Suite

RECORDS = [
    record("imagenet", 900, 1000, 500), record("imagenet", 90, 100, 40, attack="apgd"),
    record("dtd", 50, 100, 10), record("dtd", 55, 100, 8, attack="apgd"),
    record("folder:/data/my pets", 30, 50, 5), record("folder:/data/my pets", 30, 50, 5, attack="apgd"),
]  # fmt: skip


def evaluation(records: list[EvaluationRecord]) -> Evaluation:
    suite = Suite(
        name="mine",
        datasets=tuple(dict.fromkeys(each.dataset.name for each in records)),
        attacks=(AttackAt(attack=records[0].attack.attack),),
        source=("imagenet",),
    )
    return Evaluation(records[0].model, None, None, suite, "cpu")


def shown(records: list[EvaluationRecord]) -> list[list[str]]:
    """The table's cells by line."""
    text = io.StringIO()
    Console(file=text, width=200).print(summary_table(evaluation(records), records))
    return [[cell.strip() for cell in line.split("   ") if cell.strip()] for line in text.getvalue().splitlines()]


def test_every_set_has_a_line_with_wilson_intervals_and_the_size_of_a_smaller_sample() -> None:
    lines = {line[0]: line[1:] for line in shown(RECORDS) if line}
    assert lines["imagenet"] == [
        "1,000", "90.0 [88.0, 91.7]", "50.0 [46.9, 53.1]", "100", "40.0 [30.9, 49.8]",
    ]  # fmt: skip
    assert lines["dtd"][0] == "100"
    assert lines["folder:/data/my pets"][0] == "50"


def test_what_an_attack_doubts_and_which_classes_look_alike_is_marked_and_said_below_the_table() -> None:
    doubted = record("dtd", 50, 100, 10, attack="autoattack", doubts=("randomised: chance",))
    alike = record("cars", 50, 100, 10)
    alike = alike.model_copy(
        update={"dataset": alike.dataset.model_copy(update={"duplicate_prompts": ((0, 3), (4, 5, 6))})}
    )
    records = [doubted, alike]
    lines = [
        "! dtd: autoattack doubts its result: randomised: chance",
        "cars: 5 of 10 classes have equal prompts; of such a group all but one are hardly ever predicted",
    ]
    assert remarks(records) == lines
    assert remarks(RECORDS) == []
    assert {line[0] for line in shown(records) if line} >= {"dtd !", "cars"}
    assert summary(evaluation(records), records, "out")["datasets"][0]["doubts"] == ["randomised: chance"]
    assert doubted.identity() != record("dtd", 50, 100, 10, attack="autoattack").identity()


def test_means_are_given_with_and_without_the_source_sets() -> None:
    lines = {line[0]: line[1:] for line in shown(RECORDS) if line}
    assert [cell.split()[0] for cell in lines["mean"]] == ["66.7", "23.3", "19.3"]
    assert [cell.split()[0] for cell in lines["mean without imagenet"]] == ["55.0", "10.0", "9.0"]
    assert not any("mean" in line[0] for line in shown(RECORDS[:2]) if line), "one set has no mean"


def failing(each: EvaluationRecord) -> EvaluationRecord:
    finding = Finding(name="transfer", outcome="failed", message="a transfer attack is stronger", anchor="transfer")
    passed = Finding(name="huge-radius", outcome="passed", message="nothing is left", anchor="huge-radius")
    return each.model_copy(update={"sanity": (finding, passed)})


def test_a_failed_check_marks_every_row_and_says_where_to_read_about_it() -> None:
    records = [failing(each) for each in RECORDS]
    assert {"imagenet !", "dtd !", "folder:/data/my pets !"} <= {line[0] for line in shown(records) if line}
    assert failed_checks(records) == ["! transfer failed: a transfer attack is stronger (docs/sanity.md#transfer)"]
    assert failed_checks(RECORDS) == []
    found = summary(evaluation(records), records, "/out")
    assert found["datasets"][0]["failed_checks"] == ["transfer"]
    assert found["failed_checks"] == failed_checks(records)


def test_machines_get_counts_intervals_and_means() -> None:
    found = summary(evaluation(RECORDS), RECORDS, "/out")
    dtd = found["datasets"][1]
    assert (dtd["clean"]["correct"], dtd["clean"]["total"]) == (50, 100)
    assert [(row["attack"], row["eps"], row["correct"]) for row in dtd["robust"]] == [
        ("pgd-20", "1/255", 10), ("apgd-100", "1/255", 8),
    ]  # fmt: skip
    assert len(found["means"]) == 6


def test_mlflow_gets_means_first_and_names_that_it_takes() -> None:
    names = [point.name for point in metric_points(RECORDS, ("imagenet",), 5)]
    assert names[:4] == [
        "clean_accuracy/mean", "robust_accuracy/pgd-20/1_255/mean", "robust_accuracy/apgd-100/1_255/mean",
        "clean_accuracy/mean-without-source",
    ]  # fmt: skip
    assert "robust_accuracy/apgd-100/1_255/dtd" in names
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-/") for name in names)
    text = markdown_table(evaluation(RECORDS), RECORDS, intervals=False)
    assert "| dtd | 100 | 50.0 | 10.0 | 100 | 8.0 |" in text


def test_the_table_of_images_gives_back_every_fp32_value_and_no_overlap_without_an_original() -> None:
    generator = torch.Generator().manual_seed(0)

    def readings(*shape: int) -> Readings:
        values = [torch.rand(*shape, generator=generator) for _ in READINGS[1:-1]]
        return Readings(torch.randint(9, shape, generator=generator), *values, torch.full(shape, torch.nan))

    verdicts = Verdicts("a", (1 / 255, 2 / 255), torch.tensor([4, 7, 9]), torch.tensor([1, 0, 2]), readings(3),
                        readings(2, 3))  # fmt: skip
    assert image_rows(verdicts) == image_rows(verdicts), "no time of writing in it"
    lines = [line.split(",") for line in gzip.decompress(image_rows(verdicts)).decode().splitlines()]
    assert lines[0] == list(COLUMNS)
    rows = [dict(zip(COLUMNS, line, strict=True)) for line in lines[1:]]
    assert [(row["index"], row["label"], row["eps"]) for row in rows] == [
        ("4", "1", "1/255"), ("7", "0", "1/255"), ("9", "2", "1/255"), ("4", "1", "2/255"), ("7", "0", "2/255"),
        ("9", "2", "2/255"),
    ]  # fmt: skip
    assert {row["clean_overlap"] for row in rows} == {row["adversarial_overlap"] for row in rows} == {""}
    margins = torch.tensor([float(row["adversarial_margin"]) for row in rows], dtype=torch.float32)
    assert torch.equal(margins, verdicts.attacked.margin.flatten())
    assert [int(row["clean_prediction"]) for row in rows[:3]] == verdicts.clean.prediction.tolist()


@pytest.mark.parametrize(("attack", "parts"), [("pgd", ()), ("apgd", ("apgd-ce-100", "apgd-t-100"))])
def test_a_record_names_what_a_composed_attack_ran(attack: str, parts: tuple[str, ...]) -> None:

    assert attack_parts(record("dtd", 1, 1, 1, attack=attack).attack.attack, "linf", 10) == parts
