"""The project's own files, as its tests and pages see them: where they are, what they say they are, what they import.

    python tests/house/modules.py            # whether the lists of docs/architecture.md are up to date
    python tests/house/modules.py --write    # writes them anew

The lists are made of the first lines of docstrings, so what a module is stands in one place: the module.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("study", "trainers", "infra")
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- {}: written by tests/house/modules.py -->", "<!-- end of {} -->"


def sources(*roots: str) -> list[Path]:
    """Every Python file below each of `roots`, relative to the repository: a folder's own files, then its folders."""
    found = [path.relative_to(ROOT) for root in roots for path in (ROOT / root).rglob("*.py")]
    return sorted(found, key=lambda path: (roots.index(path.parts[0]), path.parent, path.name))


def dotted(path: Path) -> str:
    """`study/spec/files.py` is `study.spec.files`, and a package's `__init__.py` is the package."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def title(path: Path) -> str:
    """The first line of a file's docstring, "" where it has none."""
    text = ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
    return text.partition("\n")[0]


def imports(path: Path, known: Mapping[str, Path]) -> Iterator[tuple[str, int]]:
    """(module, line) of every import of a `known` module, wherever in the file it stands: in functions, for types.

    `from package import name` is an import of `package.name` where that is a module, otherwise of the package.
    """
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}:{node.lineno}: imports are absolute"
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known or node.module in known:
                    yield inner if inner in known else node.module, node.lineno


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """One circle for every knot of modules that import each other; found by taking away what imports nothing left."""
    left = {name: set(targets) & set(graph) for name, targets in graph.items()}
    while done := [name for name, targets in left.items() if not targets]:
        for name in done:
            del left[name]
        for targets in left.values():
            targets.difference_update(done)
    found: list[list[str]] = []
    seen: set[str] = set()
    for name in left:
        way: list[str] = []
        while name not in seen:  # every module that is left imports another one that is left
            seen.add(name)
            way.append(name)
            name = min(left[name])
        if name in way:
            found.append(way[way.index(name) :])
    return found


def packages_table() -> str:
    rows = [(path.parent, title(path)) for path in sources(*PACKAGES) if path.name == "__init__.py"]
    lines = [f"| [`{folder}/`](../{folder}) | {_shown(text)} |" for folder, text in rows]
    return "\n".join(["| package | what it is |", "| --- | --- |", *lines])


def modules_list() -> str:
    lines: list[str] = []
    folder = None
    for path in sources(*PACKAGES):
        if path.name == "__init__.py":
            continue
        if path.parent != folder:
            folder = path.parent
            lines += ["", f"**{folder}/**", "", "| module | what it is |", "| --- | --- |"]
        lines.append(f"| [`{path.name}`](../{path}) | {_shown(title(path))} |")
    return "\n".join(lines[1:])


def _shown(text: str) -> str:
    return text.removesuffix(".").replace("|", "\\|")


def filled(page: str) -> str:
    """The page with its lists as they must be."""
    for name, content in {"packages": packages_table(), "modules": modules_list()}.items():
        begin, end = BEGIN.format(name), END.format(name)
        before, _, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        assert closed, f"{PAGE}: the lines {begin!r} and {end!r} must be there, in this order"
        page = f"{before}{begin}\n\n{content}\n\n{end}{after}"
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the lists")
    page = PAGE.read_text()
    wanted = filled(page)
    if parser.parse_args().write:
        PAGE.write_text(wanted)
    elif page != wanted:
        print(f"{PAGE.relative_to(ROOT)} is not up to date: python tests/house/modules.py --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
