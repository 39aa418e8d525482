"""Text from a store on its way to a terminal: made harmless, measured in columns, cut and wrapped.

A terminal obeys control characters, and shows text in another order than it is stored in where bidirectional controls
say so. Ids, labels, errors and reasons are other people's text, so everything that is printed passes :func:`safe`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Final

_KEPT: Final = frozenset("\u200c\u200d")  # joiners, without which some scripts and emoji fall apart
_UNSAFE: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_PLAIN: Final = re.compile(r"[ -~]*")
_WORD: Final = re.compile(r"[\w@%+=:,./\[\]-]+", re.ASCII)
_WIDE: Final = frozenset("WF")
ELLIPSIS: Final = "…"


def safe(text: str) -> str:
    """Return a text in which nothing commands a terminal; what would is written as Python writes it: ``\\x1b``."""
    if _PLAIN.fullmatch(text):
        return text
    return "".join(_written(c) if _is_unsafe(c) else c for c in text)


def safe_json(text: str) -> str:
    """Return JSON of the same meaning in which no character commands a terminal."""
    return "".join(_json_escape(c) if c != "\n" and _is_unsafe(c) else c for c in text)


def _is_unsafe(c: str) -> bool:
    return unicodedata.category(c) in _UNSAFE and c not in _KEPT


def _written(c: str) -> str:
    return c.encode("unicode_escape", "backslashreplace").decode("ascii")


def _json_escape(c: str) -> str:
    units = c.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


def width(text: str) -> int:
    """Return how many columns a terminal gives a text."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(c: str) -> int:
    if unicodedata.combining(c) or c in _KEPT or unicodedata.category(c) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(c) in _WIDE else 1


def clip(text: str, columns: int) -> str:
    """Return a text that fits into so many columns, with an ellipsis where its end is missing."""
    return text if width(text) <= columns else _head(text, max(0, columns - 1)) + ELLIPSIS[:columns]


def clip_middle(text: str, columns: int) -> str:
    """As :func:`clip`, with both ends kept: ids and paths differ at their ends."""
    if width(text) <= columns or columns < 5:
        return clip(text, columns)
    tail = _head(text[::-1], (columns - 1) // 2)[::-1]
    return _head(text, columns - 1 - width(tail)) + ELLIPSIS + tail


def _head(text: str, columns: int) -> str:
    taken = 0
    for at, c in enumerate(text):
        taken += _columns(c)
        if taken > columns:
            return text[:at]
    return text


def wrapped(text: str, columns: int) -> Iterator[str]:
    """Yield a text's lines of at most so many columns, broken between words where that is possible."""
    line = ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if width(joined) <= columns:
            line = joined
            continue
        if line:
            yield line
        *whole, line = _pieces(word, columns)
        yield from whole
    yield line


def _pieces(word: str, columns: int) -> list[str]:
    pieces: list[str] = []
    while width(word) > columns and (head := _head(word, columns)):
        pieces.append(head)
        word = word[len(head) :]
    return [*pieces, word]


def quoted(text: str) -> str:
    """Return a text as a shell takes it as one word."""
    return text if _WORD.fullmatch(text) else "'" + text.replace("'", "'\\''") + "'"


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun: ``1 step``, ``3 steps``."""
    return f"{number:,}".replace(",", " ") + f" {one if number == 1 else many or one + 's'}"
