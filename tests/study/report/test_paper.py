"""Tables for papers: what they say is what the JSON beside them says, and LaTeX takes them."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from study import latex
from study.cli.main import main
from study.comparison.paper import latex_of as of_comparison
from tests.support.studies import synthetic_study

ROOT = Path(__file__).parents[3]
ODD = r"50% & $x_1$ {a} \b ~c^2 #3 <tag> | ± × ★ ü"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    synthetic_study(home, name="papers", trials=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGFT_HOME", str(home))
        patch.delenv("AGFT_STUDY_DB", raising=False)
        patch.setattr("study.report.page.static.write", lambda *args, **more: None)  # the pictures are another test's
        done = CliRunner().invoke(main, ["report", "papers", "--latex"])
    assert done.exit_code == 0, done.output
    report = home / "reports" / "papers"
    assert done.stdout == (report / "trials.tex").read_text()
    return report


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables of the comparison on the pages."""
    place = tmp_path_factory.mktemp("comparison") / "comparison.tex"
    facts = ROOT / "docs" / "comparison.json"
    place.write_text(of_comparison(json.loads(facts.read_text()), facts))
    return place


def test_each_row_leads_to_the_json_and_the_weights_that_its_cells_were_read_from(folder):
    text, facts = (folder / "trials.tex").read_text(), folder / "report.json"
    assert f"% report.json sha256:{hashlib.sha256(facts.read_bytes()).hexdigest()}" in text
    found = json.loads(facts.read_text())
    rows = re.findall(r"^(\d+)[^&]*& ([\d.]+) .*% report.json#/trials/(\d+); weights sha256:(\w+)$", text, flags=re.M)
    assert len(rows) == sum(trial["state"] == "complete" for trial in found["trials"]) > 0
    for number, clean, place, weights in rows:
        trial = found["trials"][int(place)]
        assert (trial["number"], trial["checkpoint_sha256"]) == (int(number), weights)
        assert f"{100 * trial['clean_accuracy']:.1f}" == clean
    assert "% report.json#/unmodified" in text


def test_a_comparison_s_rows_name_the_weights_of_every_seed(comparison):
    record = json.loads((ROOT / "docs" / "comparison.json").read_text())
    text = comparison.read_text()
    assert text.count(r"\begin{table}") == len(record["groups"])
    for method in record["methods"].values():
        for run in method["runs"]:
            assert f"seed {run['seed']} sha256:{run['weights']['sha256']}" in text


def test_text_of_users_cannot_leave_its_cell():
    shown = latex.escaped(ODD)
    assert re.search(r"(?<!\\)[%&#_]", shown) is None
    assert "?" in shown


@pytest.mark.slow
def test_latex_sets_the_tables(folder, comparison, tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("no LaTeX here")
    odd = latex.table([ODD, ODD], [[ODD, ODD]], caption=ODD, label="tab:odd", about=[ODD], sources=[ODD])
    parts = [(folder / "trials.tex").read_text(), comparison.read_text(), odd]
    head = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs}\begin{document}"
    (tmp_path / "all.tex").write_text("\n".join([head, *parts, r"\end{document}"]), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert (tmp_path / "all.pdf").stat().st_size > 10_000
