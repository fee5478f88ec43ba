"""The shape of the house: no circles, no long files, no full folders, and every file says what it is."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.house import modules

FILES, LINES = 15, 400
SOURCES = modules.sources(*modules.PACKAGES)
TESTS = modules.sources("tests")


def test_no_two_files_import_each_other_on_any_way():
    """Imports in functions and for types count: they tie two files to each other all the same."""
    known = {modules.dotted(path): path for path in SOURCES}
    graph = {name: {target for target, _ in modules.imports(path, known)} - {name} for name, path in known.items()}
    assert sum(map(len, graph.values())) > len(known), "imports are found"
    found = [" -> ".join([*circle, circle[0]]) for circle in modules.circles(graph)]
    assert not found, f"import in a circle: {found}"


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"a"}}, [["a", "b"]]),
        ({"x": {"a"}, "a": {"b"}, "b": {"c", "y"}, "c": {"a"}, "y": set()}, [["a", "b", "c"]]),
        ({"a": {"b"}, "b": {"a"}, "c": {"d"}, "d": {"c"}}, [["a", "b"], ["c", "d"]]),
    ],
    ids=["none", "two", "three-with-a-way-in-and-out", "two-circles"],
)
def test_a_circle_is_found_where_there_is_one(graph, found):
    assert modules.circles(graph) == found


@pytest.mark.parametrize(
    "line", ["import study.errors", "from study import errors", "from study.errors import UserError"]
)
def test_every_way_of_importing_a_file_is_seen_also_in_a_function(line, tmp_path, monkeypatch):
    monkeypatch.setattr(modules, "ROOT", tmp_path)
    (tmp_path / "x.py").write_text(f"def f():\n    {line}\n")
    known = {"study": tmp_path, "study.errors": tmp_path}
    assert list(modules.imports(tmp_path / "x.py", known)) == [("study.errors", 2)]


def test_no_folder_has_more_than_15_source_files_and_none_more_than_15_test_files():
    held = Counter(path.parent for path in SOURCES)
    held.update(path.parent for path in TESTS if path.name.startswith("test_"))
    full = {str(folder): number for folder, number in held.items() if number > FILES}
    assert not full, f"more than {FILES} files: {full}"


def test_no_source_file_has_more_than_400_lines():
    lengths = {str(path): len((modules.ROOT / path).read_text().splitlines()) for path in SOURCES}
    long = {path: lines for path, lines in lengths.items() if lines > LINES}
    assert not long, f"more than {LINES} lines: {long}"


def test_every_file_says_what_it_is_in_the_first_line_of_its_docstring():
    bad = [str(path) for path in [*SOURCES, *TESTS] if not modules.title(path).rstrip().endswith((".", "!", "?", ":"))]
    assert not bad, f"the first line of the docstring is no sentence: {bad}"


def test_every_folder_of_tests_for_a_package_has_the_name_of_one():
    folders = {path.parent.relative_to("tests") for path in TESTS if path.parts[1] in modules.PACKAGES}
    assert folders, "there are such folders"
    assert not [str(folder) for folder in folders if not (modules.ROOT / folder / "__init__.py").exists()]


def test_the_architecture_page_lists_the_packages_and_modules_that_there_are():
    page = modules.PAGE.read_text()
    assert page == modules.filled(page), "python tests/house/modules.py --write"
