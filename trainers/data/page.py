"""The generated part of docs/datasets.md: `python -m trainers.data.page`. A test holds the page to it."""

from __future__ import annotations

from trainers.data import DATASETS, ZERO_SHOT_15, DatasetEntry


def table() -> str:
    """Every dataset that is read from files, then those that are drawn."""
    lines = [
        "| name | split | images | classes | pixels | template | class names | source; licence | files |",
        "| --- | --- | --: | --: | --- | --- | --- | --- | --- |",
    ]
    stored = [entry for entry in DATASETS.values() if entry.files is not None]
    for entry in sorted(stored, key=lambda entry: entry.name not in ZERO_SHOT_15):
        assert entry.files is not None
        pixels = "224" if entry.resolution == "224" else f"native, {entry.files.size}"
        name = f"**`{entry.name}`**" if entry.name in ZERO_SHOT_15 else f"`{entry.name}`"
        cells = (
            name, entry.split, f"{entry.num_images:,}", f"{entry.num_classes:,}", pixels, entry.templates[0],
            entry.names, entry.source, entry.kind,
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| drawn | images | classes | what | source |", "| --- | --: | --: | --- | --- |"]
    lines += [
        f"| `{entry.name}` | {entry.num_images:,} | {_classes(entry)} | {entry.description} | {entry.source} |"
        for entry in DATASETS.values()
        if entry.files is None
    ]
    return "\n".join(lines)


def _classes(entry: DatasetEntry) -> str:
    return f"{len(entry.held_out)} of {entry.num_classes}" if entry.held_out else f"{entry.num_classes:,}"


def steps() -> str:
    """What to do for the sets that cannot be downloaded without a person."""
    return "\n\n".join(_steps(entry) for entry in DATASETS.values() if entry.files is not None and entry.files.by_hand)


def _steps(entry: DatasetEntry) -> str:
    assert entry.files is not None
    body = "\n".join(line.format(root="$AGFT_DATA") for line in entry.files.by_hand)
    return f"`{entry.name}`:\n\n```text\n{body}\n```"


if __name__ == "__main__":
    print(f"{table()}\n\n## By hand\n\n{steps()}")
