"""Lines of styled text, and how they reach a terminal, a pipe or a live picture.

Everything a command shows is made of lines of spans. This is the one door to the terminal: each span is made harmless
here, so no command can forget it. Colour is added last, and only where it is wanted; no meaning rests on it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import click

from .text import clip, clip_middle, safe, safe_json, width, wrapped

if TYPE_CHECKING:
    from rich.text import Text


class Span(NamedTuple):
    """A stretch of text in one style: ``""`` or words as ``"bold red"`` or ``"dim"``."""

    text: str
    style: str = ""


Line: TypeAlias = list[Span]

UNBOUNDED: Final = 1_000_000  # the width of a pipe: nothing is cut or wrapped there
NARROWEST: Final = 30


class Column(NamedTuple):
    """How a column of a table behaves where space is short.

    ``drop``: columns go in the order of these numbers, 0: never. ``cut``: may be shortened, down to ``least``.
    """

    title: str
    right: bool = False
    drop: int = 0
    cut: bool = False
    least: int = 8


def columns_of_terminal() -> int:
    """Return how wide the page is; what is no terminal has no end."""
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        return UNBOUNDED
    return max(NARROWEST, shutil.get_terminal_size((100, 40)).columns)


def is_colourful() -> bool:
    """Whether to use colour: on a terminal, unless NO_COLOR is set; elsewhere if FORCE_COLOR is."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return sys.stdout.isatty() or bool(os.environ.get("FORCE_COLOR"))


def is_fancy() -> bool:
    """Whether standard output can show more than ASCII."""
    stream = sys.stdout if getattr(sys.stdout, "encoding", None) else sys.__stdout__  # a live picture stands in for it
    return (getattr(stream, "encoding", None) or "ascii").lower().replace("-", "").startswith("utf")


# --- printing -------------------------------------------------------------------------------------


def say(*lines: Line | str, err: bool = False) -> None:
    """Print lines."""
    colourful = is_colourful() and not err
    for line in lines:
        spans = [Span(line)] if isinstance(line, str) else line
        _write("".join(_painted(span, colourful) for span in spans).rstrip(" "), err)


def _write(text: str, err: bool) -> None:
    stream = sys.stderr if err else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding), err=err, color=True)


def _painted(span: Span, colourful: bool) -> str:
    text = safe(span.text)
    if not colourful or not span.style or not text.strip():
        return text
    words = span.style.split()
    colour = next((word for word in words if word not in ("bold", "dim")), None)
    return click.style(text, fg=colour, bold="bold" in words or None, dim="dim" in words or None)


def say_json(value: object) -> None:
    """Print a value as JSON: indented on a terminal or in a file, and never able to command a terminal."""
    _write(to_json(value), err=False)


def say_json_line(value: object) -> None:
    """Print a value as JSON in one line, at once."""
    _write(to_json(value, indent=0), err=False)
    sys.stdout.flush()


def to_json(value: object, indent: int = 2) -> str:
    import msgspec

    raw = msgspec.json.encode(value)
    return safe_json((msgspec.json.format(raw, indent=indent) if indent else raw).decode())


def as_rich(lines: Iterable[Line]) -> Text:
    """Return lines as a live picture takes them."""
    from rich.text import Text

    text = Text(no_wrap=True, overflow="crop", end="")
    for at, line in enumerate(lines):
        text.append("\n" if at else "")
        for span in line:
            text.append(safe(span.text), span.style)
    return text


# --- layout ---------------------------------------------------------------------------------------


def line_width(line: Line) -> int:
    return sum(width(safe(span.text)) for span in line)


def cropped(line: Line, columns: int) -> Line:
    """Return a line that fits into so many columns."""
    if columns >= UNBOUNDED or line_width(line) <= columns:
        return line
    kept, room = Line(), columns
    for span in line:
        text = clip(safe(span.text), room)
        kept.append(Span(text, span.style))
        room -= width(text)
        if room <= 0:
            break
    return kept


def table(columns: Sequence[Column], rows: Sequence[Sequence[Span]], space: int) -> list[Line]:
    """Return a table with its head; columns are dropped and cut until it fits into the space."""
    rows = [[Span(safe(cell.text), cell.style) for cell in row] for row in rows]
    shown = _shown(columns, rows, space)
    widths = _widths(columns, rows, shown, space)
    lines = [_row([Span(column.title.upper(), "dim") for column in columns], columns, shown, widths)]
    return [*lines, *(_row(row, columns, shown, widths) for row in rows)]


GAP: Final = 2


def _natural(columns: Sequence[Column], rows: Sequence[Sequence[Span]], at: int) -> int:
    return max([width(columns[at].title), *(width(row[at].text) for row in rows)])


def _shown(columns: Sequence[Column], rows: Sequence[Sequence[Span]], space: int) -> list[int]:
    """Return the columns that stay, none of which need be shorter than it may be."""
    shown = list(range(len(columns)))
    for at in sorted((at for at in shown if columns[at].drop), key=lambda at: columns[at].drop):
        least = [
            min(columns[i].least, _natural(columns, rows, i)) if columns[i].cut else _natural(columns, rows, i)
            for i in shown
        ]
        if sum(least) + GAP * (len(shown) - 1) > space:
            shown.remove(at)
    return shown


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[Span]], shown: list[int], space: int) -> dict[int, int]:
    widths = {at: _natural(columns, rows, at) for at in shown}
    while sum(widths.values()) + GAP * (len(shown) - 1) > space:
        cuttable = [at for at in shown if columns[at].cut and widths[at] > columns[at].least]
        if not cuttable:
            break
        widest = max(cuttable, key=lambda at: widths[at])
        widths[widest] -= 1
    return widths


def _row(row: Sequence[Span], columns: Sequence[Column], shown: list[int], widths: dict[int, int]) -> Line:
    line = Line()
    for at in shown:
        text = clip_middle(row[at].text, widths[at])
        pad = " " * (widths[at] - width(text))
        gap = " " * GAP if at != shown[-1] else ""
        line.append(Span(f"{pad}{text}{gap}" if columns[at].right else f"{text}{pad}{gap}", row[at].style))
    return line


def hanging(head: Line, body: Span, space: int, indent: int = -1) -> list[Line]:
    """Return a text behind a head, with its further lines indented as far as it began, or by ``indent``."""
    begin = line_width(head)
    under = begin if indent < 0 else indent
    if space - max(begin, under) < 16:  # too little beside the head: below it
        under = min(under, 4)
        return [head, *([Span(" " * under), Span(part, body.style)] for part in _parts(body, space - under))]
    first, *rest = _parts(body, space - max(begin, under))
    return [[*head, Span(first, body.style)], *([Span(" " * under), Span(part, body.style)] for part in rest)]


def _parts(body: Span, columns: int) -> list[str]:
    return list(wrapped(safe(body.text), max(10, columns)))


# --- states ---------------------------------------------------------------------------------------

_SIGNS: Final[dict[str, tuple[str, str, str]]] = {
    # word: sign, sign in ASCII, style
    "completed": ("✓", "+", "green"),
    "done": ("✓", "+", "green"),
    "failed": ("✗", "x", "bold red"),
    "cancelled": ("⊘", "-", "magenta"),
    "stopped": ("⊘", "-", "dim"),
    "skipped": ("⊘", "-", "dim"),
    "running": ("●", "*", "cyan"),
    "closing": ("●", "*", "yellow"),
    "waiting": ("◔", "~", "blue"),
    "waits": ("◔", "~", "blue"),
    "retries": ("↻", "~", "yellow"),
    "paused": ("‖", "=", "yellow"),
    "held": ("!", "!", "bold yellow"),
    "pending": ("○", "o", ""),
    "ready": ("○", "o", ""),
    "": ("·", ".", "dim"),
}


def sign(state: str) -> str:
    """Return a state's sign."""
    fancy, ascii_, _ = _SIGNS[state]
    return fancy if is_fancy() else ascii_


def style_of(state: str) -> str:
    return _SIGNS[state][2]


def state_span(state: str) -> Span:
    """Return a state as sign and word, so that its colour says nothing new."""
    return Span(f"{sign(state)} {state}", style_of(state))


def record(pairs: Iterable[tuple[str, Span]], space: int) -> list[Line]:
    """Return names with their values below each other; a value without text is left out."""
    told = [(name, value) for name, value in pairs if value.text]
    longest = max((len(name) for name, _ in told), default=0)
    lines: list[Line] = []
    for name, value in told:
        lines += hanging([Span(f"{name:<{longest}}  ", "dim")], value, space)
    return lines


def bar(done: int, of: int, columns: int = 10) -> str:
    """Return progress as a bar: ``▰▰▰▱▱``."""
    full = columns * done // of if of else 0
    return ("▰" * full + "▱" * (columns - full)) if is_fancy() else "#" * full + "." * (columns - full)
