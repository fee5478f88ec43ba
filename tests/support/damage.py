"""Pictures that went wrong on their way, as Hypothesis draws them: any format and mode, damaged in a few places."""

from __future__ import annotations

from functools import cache

from hypothesis import strategies as st

from tests.support.pictures import ALL, picture

NUMBERS = [b"\x00\x00", b"\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x00\x01\x00\x00"]
OTHER = [
    b"<html>404</html>",
    b"version https://git-lfs.github.com/spec/v1\n",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"GIF89a",
    b"%PDF-1.7",
    b"%!PS-Adobe-3.0 EPSF-3.0",
    b"RIFF\xff\xff\xff\x7fWEBP",
    b"II*\x00\x08\x00\x00\x00\xff\xff",
]


@cache
def whole(kind: int) -> bytes:
    suffix, mode, options = ALL[kind]
    return picture(suffix, mode, options, size=(61, 43), seed=kind)


@st.composite
def damaged_pictures(draw: st.DrawFn) -> tuple[str, bytes]:
    """A suffix and what the file holds."""
    kind = draw(st.integers(0, len(ALL) - 1))
    suffix, content = ALL[kind][0], bytearray(whole(kind))
    for _ in range(draw(st.integers(1, 4))):
        header = draw(st.booleans())  # where sizes and offsets are
        place = draw(st.integers(0, min(len(content), 200) if header else len(content)))
        match draw(st.sampled_from(["cut", "flip", "number", "drop", "twice", "insert", "other", "empty"])):
            case "cut":
                del content[place:]
            case "flip" if place < len(content):
                content[place] ^= draw(st.integers(1, 255))
            case "number":
                number = draw(st.sampled_from(NUMBERS))
                content[place : place + len(number)] = number
            case "drop":
                del content[place : place + draw(st.integers(1, 64))]
            case "twice":
                content[place:place] = content[max(0, place - 64) : place]
            case "insert":
                content[place:place] = draw(st.binary(max_size=32))
            case "other":
                other = draw(st.sampled_from(OTHER))
                content[: len(other)] = other
            case "empty" if draw(st.integers(0, 9)) == 0:
                content.clear()
    return suffix, bytes(content)
