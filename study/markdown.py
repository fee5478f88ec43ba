"""Text of users and machines in Markdown: shown as it is, wherever it stands."""

from __future__ import annotations

import re

# `_` inside a word is no markup; `#`, `-` and `+` are none but at the start of a line, where no such text stands.
MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def escaped(text: object) -> str:
    """In a line, a heading or a table's cell: neither markup nor HTML, and no further line or column."""
    plain = " ".join(str(text).split())
    return MARKUP.sub(r"\\\g<0>", plain).replace("&", "&amp;").replace("<", "&lt;")


def as_code(text: object) -> str:
    """As code, in a fence that is longer than any in the text."""
    plain = " ".join(str(text).split()).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", plain)), default=0))
    space = " " if len(fence) > 1 else ""
    return f"{fence}{space}{plain}{space}{fence}"
