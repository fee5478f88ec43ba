"""Tables for papers: LaTeX with booktabs, a comment in each row says by SHA-256 what its cells are from."""

from __future__ import annotations

from collections.abc import Sequence

SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "×": r"$\times$", "†": r"$\dagger$", "ε": r"$\varepsilon$",
    "–": "--", "·": r"$\cdot$", "−": "$-$", "≥": r"$\geq$", "≤": r"$\leq$",
}  # fmt: skip


def escaped(text: object) -> str:
    """Text that is set as it was written; what LaTeX cannot be expected to know is a question mark."""
    plain = " ".join(str(text).split())
    return "".join(SPECIAL.get(c, c if c.isascii() or c.isalpha() else "?") for c in plain)


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    caption: str,
    label: str,
    about: Sequence[str],
    sources: Sequence[str],
    left: int = 1,
) -> str:
    r"""A `table` for `\input`, in a document with `\usepackage{booktabs}`.

    `about`: what all cells come from; `sources`: of each row, beside it; the first `left` columns are set to the left.
    """
    assert len(sources) == len(rows), "every row has a source"

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(escaped, cells)) + r" \\"

    def comment(text: str) -> str:
        return "% " + " ".join(text.split())

    columns = "l" * left + "r" * (len(head) - left)
    return "\n".join([
        *map(comment, about), r"\begin{table}", r"\centering", rf"\caption{{{escaped(caption)}}}",
        rf"\label{{{label}}}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(head), r"\midrule",
        *(f"{line(row)} {comment(source)}" for row, source in zip(rows, sources, strict=True)),
        r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip
