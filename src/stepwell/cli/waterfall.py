"""A run's steps on one axis of time: queue wait, work, failed attempts and waiting, each with its own mark.

A delay of an hour would leave no room for the seconds around it. So a stretch in which nothing but waiting happens is
squeezed to a few columns, and the axis says so by a gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from .page import UNBOUNDED, Line, Span, hanging, is_fancy, line_width, sign, style_of
from .steps import STEPS, Doing, Piece, Run, Told, state_of
from .text import clip_middle, counted, safe, width
from .times import span

ROWS_SHOWN: Final = 40
AXIS_LEAST: Final = 12
AXIS_MOST: Final = 64
SQUEEZED: Final = 5  # columns of a stretch without work
LONG: Final = 4  # a stretch without work is squeezed if it is so many times longer than all work together


class Mark(NamedTuple):
    """How a stretch of time is drawn."""

    fancy: str
    plain: str
    style: str
    title: str


MARKS: Final[dict[str, Mark]] = {
    "queue": Mark("░", ":", "yellow", "queue"),
    "work": Mark("█", "#", "green", "work"),
    "failed": Mark("▓", "x", "red", "failed attempt"),
    "gap": Mark("·", ".", "yellow", "until the next attempt"),
    "wait": Mark("╌", "-", "blue", "delay or signal"),
}


class Row(NamedTuple):
    """A step and its pieces."""

    path: str
    state: str
    told: Told


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of the axis: moments from ``begin_us`` to ``end_us`` on columns from ``left`` to ``right``."""

    begin_us: int
    end_us: int
    left: float
    right: float
    squeezed: bool


class Axis:
    """Maps moments to columns."""

    def __init__(self, pieces: Sequence[Piece], begin_us: int, end_us: int, columns: int) -> None:
        self.begin_us, self.end_us, self.columns = begin_us, max(end_us, begin_us + 1), columns
        self.stretches = self._stretches(_busy(pieces, end_us))

    def _stretches(self, busy: Sequence[tuple[int, int]]) -> list[Stretch]:
        parts = self._parts(busy)
        idle = [end - begin for begin, end, is_busy in parts if not is_busy]
        worked = sum(end - begin for begin, end, is_busy in parts if is_busy)
        most = max(1, (self.columns // 2) // SQUEEZED)
        long = sorted((us for us in idle if us > LONG * max(worked, 1) / max(1, len(idle))), reverse=True)[:most]
        room = self.columns - SQUEEZED * len(long)
        linear_us = sum(end - begin for begin, end, _ in parts) - sum(long)
        made, left = list[Stretch](), 0.0
        for begin, end, is_busy in parts:
            squeezed = not is_busy and (end - begin) in long
            wide = SQUEEZED if squeezed else room * (end - begin) / max(1, linear_us)
            made.append(Stretch(begin, end, left, left + wide, squeezed))
            left += wide
        return made

    def _parts(self, busy: Sequence[tuple[int, int]]) -> list[tuple[int, int, bool]]:
        """Return the whole axis, cut where work begins and ends."""
        parts, at = list[tuple[int, int, bool]](), self.begin_us
        for begin, end in busy:
            if begin > at:
                parts.append((at, begin, False))
            if end > max(at, begin):
                parts.append((max(at, begin), end, True))
            at = max(at, end)
        return [*parts, (at, self.end_us, False)] if self.end_us > at else parts or [(at, self.end_us, False)]

    def column(self, at_us: int) -> float:
        for stretch in self.stretches:
            if at_us <= stretch.end_us:
                share = (at_us - stretch.begin_us) / max(1, stretch.end_us - stretch.begin_us)
                return stretch.left + (stretch.right - stretch.left) * max(0.0, share)
        return float(self.columns)

    @property
    def gaps(self) -> list[int]:
        """The columns at which a squeezed stretch lies."""
        return [int(s.left) + SQUEEZED // 2 for s in self.stretches if s.squeezed]


def _busy(pieces: Iterable[Piece], now_us: int) -> list[tuple[int, int]]:
    """Return when anything was queued or worked on, overlapping times joined."""
    spans = sorted((p.begin_us, p.end_us or now_us) for p in pieces if p.doing not in ("wait", "gap"))
    joined: list[tuple[int, int]] = []
    for begin, end in spans:
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    return joined


# --- drawing --------------------------------------------------------------------------------------


def rows_of(run: Run) -> list[Row]:
    """Return the steps that took time, in the order in which they were opened."""
    plan = run.plan
    found = [
        Row(plan.path(node, turns), state_of(run, node, turns), told)
        for (node, turns), told in run.steps.items()
        if plan.kind[node] in STEPS and told.pieces
    ]
    return sorted(found, key=lambda row: row.told.opened_us)


def waterfall(run: Run, space: int, *, every: bool = False) -> list[Line]:
    """Return the steps as rows: queue wait and work in figures, and all of it on an axis."""
    rows = rows_of(run)
    if not rows:
        return []
    shown = rows if every else rows[-ROWS_SHOWN:]
    name_columns = min(max(width(safe(row.path)) for row in shown) + 2, max(14, min(space, 160) // 3))
    columns = min(AXIS_MOST, max(AXIS_LEAST, (100 if space >= UNBOUNDED else space) - name_columns - 21))
    begin_us = min(row.told.pieces[0].begin_us for row in shown)
    axis = Axis([piece for row in shown for piece in row.told.pieces], begin_us, run.end_us, columns)
    lines = [_head(axis, name_columns)]
    if len(shown) < len(rows):
        lines.append([Span(f"({counted(len(rows) - len(shown), 'earlier step')}: --all)", "dim")])
    lines += [_row(row, axis, name_columns, run.now_us) for row in shown]
    return [*lines, [], *_legend(shown, space), *hanging([], _sum(rows, run.now_us), space)]


def _head(axis: Axis, name_columns: int) -> Line:
    end = f"+{span(axis.end_us - axis.begin_us)}"
    ruler = f"0{end:>{axis.columns - 1}}"
    for gap in axis.gaps:
        if 2 < gap < axis.columns - len(end) - 2:
            ruler = f"{ruler[: gap - 1]}{'⋯⋯⋯' if is_fancy() else '...'}{ruler[gap + 2 :]}"
    return [Span(f"{'STEP':<{name_columns}}  {'QUEUE':>6}  {'WORK':>8}  {ruler}", "dim")]


def _row(row: Row, axis: Axis, name_columns: int, now_us: int) -> Line:
    told = row.told
    name = clip_middle(safe(row.path), name_columns - 2)
    queued = told.spent_us("queue", now_us)
    worked = told.spent_us("work", now_us) + told.spent_us("failed", now_us)
    waited = told.spent_us("wait", now_us)
    figure = f"({span(waited)})" if waited and not worked else span(worked) if worked else ""
    pad = " " * (name_columns - 2 - width(name))
    return [
        Span(f"{sign(row.state)} ", style_of(row.state)),
        Span(f"{name}{pad}  "),
        Span(f"{span(queued) if queued >= 1_000 else '':>6}  ", "yellow"),
        Span(f"{figure:>8}  ", "blue" if not worked and waited else ""),
        *_bar(told.pieces, axis, now_us),
    ]


def _bar(pieces: Sequence[Piece], axis: Axis, now_us: int) -> Line:
    """Return the axis of one step; what is shorter than a column still gets one."""
    cells: list[str] = [""] * axis.columns
    order = ("wait", "gap", "queue", "work", "failed")
    for piece in sorted(pieces, key=lambda piece: order.index(piece.doing)):
        left = min(axis.columns - 1, int(axis.column(piece.begin_us)))
        right = axis.column(piece.end_us or now_us)
        if piece.doing in ("queue", "gap") and right - axis.column(piece.begin_us) < 0.5:
            continue
        for at in range(left, min(axis.columns, max(left + 1, round(right)))):
            cells[at] = piece.doing
    line, at = Line(), 0
    while at < len(cells):
        end = at
        while end < len(cells) and cells[end] == cells[at]:
            end += 1
        line.append(_cells(cells[at], end - at))
        at = end
    return line


def _cells(doing: str, count: int) -> Span:
    if not doing:
        return Span(" " * count)
    mark = MARKS[doing]
    return Span((mark.fancy if is_fancy() else mark.plain) * count, mark.style)


def _legend(rows: Sequence[Row], space: int) -> list[Line]:
    used = {piece.doing for row in rows for piece in row.told.pieces}
    lines: list[Line] = [[]]
    for doing, mark in MARKS.items():
        if doing in used:
            entry = [_cells(doing, 2), Span(f" {mark.title}   ", "dim")]
            if line_width([*lines[-1], *entry]) > space + 3:
                lines.append([])
            lines[-1] += entry
    return lines


def _sum(rows: Sequence[Row], now_us: int) -> Span:
    def total(*doing: Doing) -> str:
        return span(sum([row.told.spent_us(each, now_us) for row in rows for each in doing]))

    failed, waited = total("failed"), total("wait")
    text = f"work {total('work', 'failed')}{f', {failed} of it in failed attempts' if failed != '0ms' else ''}"
    rest = f"; delays and signals {waited}" if waited != "0ms" else ""
    return Span(f"In all: {text}; in the queue {total('queue')}{rest}.", "dim")
