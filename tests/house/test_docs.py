"""What the pages promise exists: links, commands, files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from study.cli.main import main
from study.spec.config import StudyConfig
from trainers.objectives import METHODS
from trainers.objectives.presets import PRESETS
from trainers.schema.attacks import EVAL_ATTACKS
from trainers.schema.training import AttackConfig, OptimizerConfig, Trainable, TrainConfig
from trainers.schema.units import OfEps

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "trainers" / "tiny" / "README.md"]


def commands() -> list[str]:
    found = []
    for page in PAGES:
        for block in re.findall(r"```\n(.*?)```", page.read_text(), flags=re.S):
            found += [line.strip() for line in block.splitlines() if line.startswith("agft ")]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_and_picture_exists(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_every_documented_command_is_accepted_by_the_command_line(line):
    command: click.Command = main
    arguments = shlex.split(line)[1:]
    while isinstance(command, click.Group):
        command = command.commands[arguments.pop(0)]
    above = click.Context(main, info_name="agft", **main.context_settings)  # a command keeps what its first one says
    command.make_context(command.name, arguments, parent=above)  # parses; runs nothing
    for argument in arguments:
        if argument.endswith(".yaml") and command.name != "init":
            assert (ROOT / argument).exists(), line


def test_every_command_is_in_the_guide():
    guide = (ROOT / "docs" / "guide.md").read_text()
    for name, command in main.commands.items():
        names = [f"{name} {inner}" for inner in command.commands] if isinstance(command, click.Group) else [name]
        for each in names:
            assert f"agft {each}" in guide, each


def test_every_block_of_the_study_file_is_in_the_guide():
    guide = (ROOT / "docs" / "guide.md").read_text()
    for name in StudyConfig.model_fields:
        if name not in ("seed",):
            assert f"`{name}`" in guide, name


def test_every_field_of_methods_attack_and_training_and_every_preset_is_in_the_methods_page():
    page = (ROOT / "docs" / "methods.md").read_text()
    records = [*METHODS.values(), AttackConfig, TrainConfig, Trainable, OptimizerConfig]
    fields = {name for record in records for name in record.model_fields} - {"name", "eps", "steps"}
    for name in [*METHODS, *PRESETS, *fields]:
        assert f"`{name}`" in page, name


def test_the_diff_that_added_a_method_is_whole_and_no_other_code_knows_its_name():
    page = (ROOT / "docs" / "methods.md").read_text()
    table = ROOT / "trainers/objectives/__init__.py"
    [diff] = [block for block in re.findall(r"```diff\n(.*?)```", page, re.DOTALL) if "ucat" in block]
    added = [line[1:].strip() for line in diff.splitlines() if line.startswith("+")]
    assert len(added) == 2
    assert all(line in table.read_text() for line in added)
    knows = {
        path.relative_to(ROOT).as_posix()
        for room in ("study", "trainers", "infra")
        for path in (ROOT / room).rglob("*.py")
        if re.search(r"\bucat\b", path.read_text(), re.IGNORECASE)
    }
    assert knows == {"trainers/objectives/__init__.py", "trainers/objectives/ucat.py"}


def test_every_evaluation_attack_and_setting_is_in_the_attacks_page_with_its_limits_default_and_meaning():
    rows = [line for line in (ROOT / "docs" / "attacks.md").read_text().splitlines() if line.startswith("| `")]
    for name, attack in EVAL_ATTACKS.items():
        limits = f"{', '.join(attack.norms)} | {attack.min_classes}"
        assert f"| `{name}` | {attack.summary} | {limits} | {attack.citation} |" in rows
        for key, field in attack.model_fields.items():
            if key != "name":
                default = field.get_default(call_default_factory=True)
                shown = f"{{of_eps: {default.of_eps:g}}}" if isinstance(default, OfEps) else str(default)
                tail = f"| {shown.lower()} | {field.description} |"
                found = [row for row in rows if row.startswith(f"| `{key}` |") and row.endswith(tail)]
                assert any(f"`{name}`" in row for row in found), f"{name}: {key}"


def test_the_readme_has_the_two_commands_and_a_map_of_the_folders():
    readme = (ROOT / "README.md").read_text()
    for word in ("make demo", "make test", "study/", "trainers/", "infra/", "tests/", "docs/"):
        assert word in readme
