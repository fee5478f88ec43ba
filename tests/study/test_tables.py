"""Tables take rows in one place, from here or from an installed package; nothing beside a table repeats its names."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from study.errors import StudyFileError
from study.spec.config import SAMPLERS, STOPPING
from study.spec.files import parse_study
from study.spec.promotion import SELECTION
from trainers.attacks import ATTACKS, EVAL_ATTACKS
from trainers.data import DATASETS
from trainers.objectives import METHODS
from trainers.schema.checks import CHECKS
from trainers.table import Table

ROOT = Path(__file__).parents[2]
OUTSIDE = ROOT / "tests" / "support" / "outside"
TABLES: dict[str, Table[Any]] = {
    "methods": METHODS, "training_attacks": ATTACKS, "attacks": EVAL_ATTACKS, "datasets": DATASETS,  # type: ignore[dict-item]
    "samplers": SAMPLERS, "stopping": STOPPING, "checks": CHECKS, "selection": SELECTION,
}  # fmt: skip
TOYS = {
    "methods": ("toy-method", "toys.method:ToyMethod"),
    "training_attacks": ("toy-halving", "toys.training_attack:toy_halving"),
    "attacks": ("toy-attack", "toys.attack:ToyAttack"),
    "datasets": ("toy-greys", "toys.dataset:TOY_GREYS"),
    "samplers": ("toy-sampler", "toys.sampler:TOY_SAMPLER"),
    "stopping": ("toy-stopping", "toys.stopping:TOY_STOPPING"),
    "checks": ("toy-check", "toys.check:toy_check"),
    "selection": ("toy-knee", "toys.selection:TOY_KNEE"),
}
STUDY: dict[str, Any] = {
    "name": "toys",
    "model": {"arch": "tiny-clip", "pretrained": "bundled"},
    "method": {"name": "toy-method", "pull": 3},
    "attack": {"name": "toy-halving"},
    "data": {"train": "tiny-color-shapes", "dev": ["toy-greys"], "confirm": ["tiny-shapes"], "final": ["tiny-digits"]},
    "search": {"method.pull": {"low": 1, "high": 4}},
    "evaluate": {"final": {"attacks": [{"attack": {"name": "toy-attack", "levels": 2}}]}},
    "goal": {"metrics": ["robust_accuracy", "clean_accuracy"]},
    "sampler": {"name": "toy-sampler"},
    "scheduler": {"name": "toy-stopping"},
    "promote": {"preference": "toy-knee", "gates": {"sanity": {"checks": ["toy-check"]}}},
    "budget": {"trials": 4},
}
ONE_METRIC = {**STUDY, "goal": {}, "promote": {"gates": STUDY["promote"]["gates"]}}
FRONT = {**STUDY, "scheduler": {"name": "none"}}


# One file and one row.


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every toy as one row of its table."""
    monkeypatch.syspath_prepend(str(OUTSIDE))
    for kind, (name, place) in TOYS.items():
        monkeypatch.setitem(TABLES[kind].rows, name, place)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("study", [ONE_METRIC, FRONT], ids=["one metric", "front"])
def test_one_row_is_all_that_a_study_file_needs_to_name_an_entry_of_any_kind(study: dict[str, Any]) -> None:
    spec = parse_study(yaml.safe_dump(study), source="toys.yaml")
    assert json.loads(spec.canonical())["method"] == {"name": "toy-method", "pull": 3}
    assert type(spec).model_validate_json(spec.canonical()) == spec


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("kind", TOYS)
def test_a_row_is_named_where_a_name_is_wrong(kind: str) -> None:
    name = TOYS[kind][0]
    study = json.dumps(FRONT if kind == "selection" else ONE_METRIC).replace(name, f"{name}x")
    assert name in problems(json.loads(study)).replace(f"{name}x", "")


def problems(study: dict[str, Any]) -> str:
    with pytest.raises(StudyFileError) as caught:
        parse_study(yaml.safe_dump(study), source="toys.yaml")
    return str(caught.value)


@pytest.mark.usefixtures("rows")
def test_init_and_comparison_know_a_method_by_its_file() -> None:
    from study.begin.template import study_text
    from study.comparison.record import form_name

    text = study_text("a", preset="toy-paper", model={"arch": "tiny-clip", "pretrained": "bundled"})
    spec = parse_study(text, source="a")
    assert (spec.method.name, list(spec.search)) == ("toy-method", ["method.pull", "train.optimizer.lr"])
    run = {"method": "toy-method", "search": {"space": spec.search}}
    assert form_name({**run, "chosen": {"config": {"method": {"name": "toy-method"}}}}) == "Toy, weighted"


# An installed package.


def installed(
    tmp_path: Path, toys: dict[str, tuple[str, str]], *, package: str = "agft-toys", version: str = "1.2"
) -> Path:
    """A folder like site-packages that has the toys' package, with its metadata."""
    place = tmp_path / package
    info = place / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    points = [f"[agft.{kind}]\n{name} = {target}\n" for kind, (name, target) in toys.items()]
    (info / "entry_points.txt").write_text("\n".join(points))
    return place


def run(
    *places: Path, code: str = "", arguments: tuple[str, ...] = (), home: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own that finds these packages: `code`, or `agft` with these arguments."""
    code = code or "from study.cli.main import main; main()"
    path = os.pathsep.join(map(str, [ROOT, *places, OUTSIDE]))
    environment = {**os.environ, "PYTHONPATH": path, **({"AGFT_HOME": str(home)} if home else {})}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_an_installed_package_is_in_help_validate_plan_and_lists(tmp_path: Path) -> None:
    place, file = installed(tmp_path, TOYS), tmp_path / "toys.yaml"
    file.write_text(yaml.safe_dump(ONE_METRIC))
    assert "toy-paper" in run(place, arguments=("init", "--help")).stdout
    done = run(place, arguments=("validate", str(file)), home=tmp_path)
    assert done.returncode == 0, done.stderr
    whose = [line for line in done.stdout.splitlines() if "of agft-toys 1.2, file " in line]
    assert [line.split(":")[0].strip() for line in whose] == [
        "method.name", "attack.name", "data.dev.0", "evaluate.final.attacks.0.attack.name", "sampler.name",
        "scheduler.name", "promote.gates.sanity.checks",
    ]  # fmt: skip
    assert "toy-greys" in run(place, arguments=("data", "list"), home=tmp_path).stdout
    file.write_text(yaml.safe_dump({**ONE_METRIC, "sampler": {"name": "toy-samplr"}}))
    assert "did you mean 'toy-sampler'?" in run(place, arguments=("validate", str(file)), home=tmp_path).stderr


CONTRACT = """
import study.testing as of_study
from trainers.testing import attacks, checks, datasets, methods
from trainers.attacks import ATTACKS, EVAL_ATTACKS
from trainers.data import DATASETS
from trainers.objectives import METHODS
from trainers.schema.checks import CHECKS

found = {
    **methods.method_contract(METHODS["toy-method"]()),
    **attacks.training_attack_contract(ATTACKS["toy-halving"]),
    **attacks.attack_contract(EVAL_ATTACKS["toy-attack"]()),
    **datasets.dataset_contract(DATASETS["toy-greys"]),
    **checks.check_contract(CHECKS["toy-check"]),
    **of_study.sampler_contract("toy-sampler"),
    **of_study.stopping_contract("toy-stopping"),
    **of_study.selection_contract("toy-knee", "toy-knee"),
}
for name, check in found.items():
    print(name, flush=True)
    check()
print(len(found), "kept; pytest:", "pytest" in __import__("sys").modules)
"""


def test_entries_of_an_installed_package_keep_the_contracts_without_pytest(tmp_path: Path) -> None:
    done = run(installed(tmp_path, TOYS), code=CONTRACT)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-300:]
    assert done.stdout.splitlines()[-1] == "60 kept; pytest: False"


PROVENANCE = """
import json
from study.spec.files import load_study
from study.spec.outside import outside_entries, with_drivers
from trainers.table import lacking
from trainers import trial_config
from pathlib import Path
import sys

spec = load_study(Path(sys.argv[1]))
trial = trial_config.TrialConfig.model_validate(spec.base())
origins = list(outside_entries(spec).values())
print(json.dumps([with_drivers(spec, {"entries": trial_config.outside_entries(trial)}), lacking(origins)]))
"""


def test_a_trials_provenance_has_package_version_and_digest_of_what_it_uses(tmp_path: Path) -> None:
    place, file = installed(tmp_path, TOYS), tmp_path / "toys.yaml"
    file.write_text(yaml.safe_dump(ONE_METRIC))
    provenance, missing = json.loads(run(place, code=PROVENANCE, arguments=(str(file),)).stdout)
    assert missing == []
    assert [(each["group"], each["name"]) for each in provenance["entries"]] == [
        ("agft.methods", "toy-method"), ("agft.training_attacks", "toy-halving"), ("agft.datasets", "toy-greys"),
        ("agft.samplers", "toy-sampler"), ("agft.stopping", "toy-stopping"),
    ]  # fmt: skip
    assert {(each["distribution"], each["version"]) for each in provenance["entries"]} == {("agft-toys", "1.2")}
    assert len({each["sha256"] for each in provenance["entries"]}) == 5
    import hashlib

    method = hashlib.sha256((OUTSIDE / "toys" / "method.py").read_bytes()).hexdigest()
    assert provenance["entries"][0]["sha256"] == method


LACKING = """
from trainers.table import Origin, lacking
for line in lacking([
    Origin("agft.methods", "toy-method", "agft-toys", "1.1", "0"),
    Origin("agft.methods", "toy-method", "agft-toys", "1.2", "0"),
    Origin("agft.methods", "other", "agft-others", "3", "0"),
]):
    print(line)
"""


def test_a_machine_says_what_it_has_not_or_has_otherwise(tmp_path: Path) -> None:
    assert run(installed(tmp_path, TOYS), code=LACKING).stdout.splitlines() == [
        "agft.methods 'toy-method' of agft-toys 1.1 is agft-toys 1.2 here",
        "agft.methods 'toy-method' of agft-toys 1.2 is another file here",
        "agft.methods 'other' of agft-others 3 is not installed",
    ]


def message(place: Path, *more: Path, tmp_path: Path) -> str:
    """What `agft validate` says in one line about a study that names the toy method."""
    file = tmp_path / "toys.yaml"
    plain = {"name": "toys", "method": {"name": "toy-method"}, "data": {**STUDY["data"], "dev": ["tiny-colors"]}}
    file.write_text(yaml.safe_dump({**plain, "model": STUDY["model"], "budget": {"trials": 1}}))
    done = run(place, *more, arguments=("validate", str(file)), home=tmp_path)
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("toys.nothing:Toy", "cannot be imported: ModuleNotFoundError: No module named 'toys.nothing'"),
        ("toys.method:Nothing", "cannot be imported: AttributeError"),
        ("toys.sampler:TOY_SAMPLER", "is no method: must be a subclass of trainers.objectives.base.Objective"),
        ("toys.attack:ToyAttack", "is no method: must be a subclass of trainers.objectives.base.Objective"),
    ],
)
def test_a_broken_entry_is_one_message_with_its_package(target: str, said: str, tmp_path: Path) -> None:
    found = message(installed(tmp_path, {"methods": ("toy-method", target)}), tmp_path=tmp_path)
    assert f"agft-toys 1.2: entry point toy-method = {target} of agft.methods: {said}" in found


def test_an_entry_under_another_name_than_its_own_is_refused(tmp_path: Path) -> None:
    place = installed(tmp_path, {"methods": ("toy", "toys.method:ToyMethod")})
    done = run(place, code="from trainers.objectives import METHODS; METHODS['toy']")
    assert "its field `name` must be the literal 'toy', not 'toy-method'" in done.stderr


def test_a_name_of_ours_is_never_replaced(tmp_path: Path) -> None:
    place = installed(tmp_path, {"methods": ("agft", "toys.method:ToyMethod")})
    assert "agft-toys 1.2: entry point agft = toys.method:ToyMethod of agft.methods" in message(
        place, tmp_path=tmp_path
    )


def test_two_packages_with_one_name_are_both_named(tmp_path: Path) -> None:
    first = installed(tmp_path, {"methods": TOYS["methods"]})
    second = installed(tmp_path, {"methods": TOYS["methods"]}, package="agft-more-toys", version="7")
    found = message(first, second, tmp_path=tmp_path)
    assert "agft-toys 1.2" in found
    assert "agft-more-toys 7" in found


# No second list.


def texts_of(nodes: Iterable[ast.expr | None]) -> list[str]:
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def lists_of_names(tree: ast.AST) -> Iterator[tuple[int, str, list[str]]]:
    """Line, kind and texts of every Literal, list, tuple, set, and of the keys of every mapping."""
    inside_literals = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
            inside_literals.add(node.slice)
            yield node.lineno, "Literal", texts_of(ast.walk(node.slice))  # type: ignore[arg-type]
        elif isinstance(node, ast.List | ast.Tuple | ast.Set) and node not in inside_literals:
            yield node.lineno, "list", texts_of(node.elts)
        elif isinstance(node, ast.Dict):
            yield node.lineno, "dict", texts_of(node.keys)


def repeats(kind: str, texts: list[str], names: list[str]) -> bool:
    """A Literal of a table's names, or a collection of half of them or more."""
    own = [text for text in dict.fromkeys(texts) if text in names]
    if kind == "Literal":
        return len(own) >= 2 and len(own) == len(set(texts))
    return len(own) >= max(2, (len(names) + 1) // 2)


TABLE_FILES = {
    "study/spec/config.py", "study/spec/promotion.py", "trainers/objectives/__init__.py", "trainers/schema/checks.py",
}  # fmt: skip
OTHERS = {"study/cli/weights.py", "trainers/model/official.py"}  # whose code saved a checkpoint: not the methods here


def repeated(root: Path = ROOT) -> list[str]:
    """Where the code repeats a table's names, but for the tables themselves."""
    found = []
    for file in sorted(each for part in ("study", "trainers", "infra") for each in (root / part).rglob("*.py")):
        where = str(file.relative_to(root))
        for line, kind, texts in lists_of_names(ast.parse(file.read_text())):
            for table in TABLES.values():
                own = where in TABLE_FILES and kind == "dict" and set(texts) == set(table.rows)
                if where not in OTHERS and not own and repeats(kind, texts, list(table.rows)):
                    found.append(f"{where}:{line}: a {kind} repeats the names of the {table.kind}s: {', '.join(texts)}")
    return found


def test_no_literal_list_or_mapping_repeats_the_names_of_a_table() -> None:
    assert repeated() == []


def test_a_second_list_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "a.py").write_text(
        'A: Literal["asha", "none"]\nB = {"tpe": 1, "gp": 2, "cmaes": 3, "grid": 4}\nC = ["agft", "tecoa", "fare"]\n'
        'D = ("tpe",)\nE: Literal["asha"]\n'
    )
    assert [line.split(": ")[0] for line in repeated(tmp_path)] == ["study/a.py:1", "study/a.py:2", "study/a.py:3"]


def test_a_table_is_what_it_says() -> None:
    for kind, table in TABLES.items():
        assert table.group == f"agft.{kind}"
        assert list(table) == list(table.rows)  # here no package is installed that brings one
        assert all(table.origin(name) is None for name in table)
