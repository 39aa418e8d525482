"""From the rounds to lines of text: medians, ratios taken within each round, and marks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from contest import ABSENT, Result
from rows import Goal, Row

OURS, RAW = "stepwell", "raw"

Case = tuple[str, int]
Rounds = Mapping[Case, Mapping[str, Sequence[Result]]]  # by case and contestant, in the order of the rounds


class Line(NamedTuple):
    """One row with its outcome. ``ratios`` are ours to raw, and how many times better ours is than each peer."""

    row: Row
    values: dict[str, list[float | None]]
    medians: dict[str, float]
    missing: dict[str, str]
    ratios: dict[str, float]
    mark: str


def line_of(row: Row, rounds: Rounds) -> Line:
    values = {name: _values(row, rounds, name) for name in rounds[row.method, row.size]}
    there = {name: [value for value in each if value is not None] for name, each in values.items()}
    medians = {name: median(found) for name, found in there.items() if found}
    missing = {name: _reason(rounds[row.method, row.size][name]) for name in values if name not in medians}
    ratios = {}
    if row.base is None:
        ratios = {name: found for name in values if name != OURS and (found := _ratio(row, values, name)) is not None}
    return Line(row, values, medians, missing, ratios, _mark(row.goal, medians, ratios))


def _values(row: Row, rounds: Rounds, name: str) -> list[float | None]:
    figures = _figures(row, rounds[row.method, row.size][name])
    if row.base is None:
        return figures
    pairs = zip(figures, _figures(row, rounds[row.method, row.base][name]), strict=True)
    return [now / then if now and then else None for now, then in pairs]


def _figures(row: Row, results: Iterable[Result]) -> list[float | None]:
    return [result.figures.get(row.figure) for result in results]


def _reason(results: Iterable[Result]) -> str:
    return next((result.missing for result in results if result.missing), "-")


def _ratio(row: Row, values: Mapping[str, Sequence[float | None]], name: str) -> float | None:
    """Return the median of ours / raw, or of how many times better ours is than a peer, round by round."""
    pairs = [(mine, theirs) for mine, theirs in zip(values[OURS], values[name], strict=False) if mine and theirs]
    upward = row.more or name == RAW
    return median(mine / theirs if upward else theirs / mine for mine, theirs in pairs) if pairs else None


def _mark(goal: Goal | None, medians: Mapping[str, float], ratios: Mapping[str, float]) -> str:
    if goal is None:
        return ""
    value = ratios.get(goal.against) if goal.against in ("raw", "sayiir") else medians.get(OURS)
    if value is None:
        return "?"
    upward = goal.aim > goal.reach
    for mark, bound in (("aim", goal.aim), ("reached", goal.reach)):
        if value >= bound if upward else value <= bound:
            return mark
    return "SHORT"


# --- text -----------------------------------------------------------------------------------------


def table(lines: Sequence[Line], peers: Sequence[str]) -> str:
    peers = [peer for peer in peers if any(_takes_part(peer, line) for line in lines)]
    beside = [column for peer in peers for column in (peer, "lead")]
    head = ["", "work", "size", "unit", OURS, RAW, "to raw", *beside, "to reach", "aim", ""]
    body = [_cells(line, peers) for line in lines]
    widths = [max(len(cells[at]) for cells in [head, *body]) for at in range(len(head))]
    return "\n".join(_joined(cells, widths) for cells in [head, ["-" * width for width in widths], *body])


def _takes_part(peer: str, line: Line) -> bool:
    return peer in line.medians or line.missing.get(peer, "-") != "-"


def _joined(cells: Sequence[str], widths: Sequence[int]) -> str:
    left = (0, 1, 3, len(widths) - 1)
    pairs = enumerate(zip(cells, widths, strict=True))
    return "  ".join(cell.ljust(width) if at in left else cell.rjust(width) for at, (cell, width) in pairs).rstrip()


def _cells(line: Line, peers: Sequence[str]) -> list[str]:
    row = line.row
    size = f"{row.size:,}" if row.base is None else f"{row.base:,} -> {row.size:,}"
    to_raw = line.ratios.get(RAW)
    shown = f"{to_raw:.0%}" if to_raw is not None and row.more else f"{number(to_raw)} x" if to_raw is not None else ""
    columns = [row.key, row.what, size if row.size else "", row.unit, _value(line, OURS), _value(line, RAW), shown]
    for peer in peers:
        columns += [_value(line, peer), f"{number(lead)} x" if (lead := line.ratios.get(peer)) is not None else ""]
    goal = row.goal
    return [*columns, *([_bound(goal, goal.reach), _bound(goal, goal.aim)] if goal else ["", ""]), line.mark]


def _value(line: Line, name: str) -> str:
    if name in line.medians:
        return number(line.medians[name])
    reason = line.missing.get(name, "-")
    return ABSENT if reason.startswith(ABSENT) else reason if len(reason) < 10 else "failed"


def _bound(goal: Goal, bound: float) -> str:
    if goal.against == "raw" and goal.aim > goal.reach:
        return f"{bound:.0%} of raw"
    return f"{bound:g}" + {"": "", "raw": " x raw", "sayiir": " x sayiir", "growth": ""}[goal.against]


def number(value: float | None) -> str:
    """Return a figure with three digits that mean something."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def troubles(lines: Iterable[Line]) -> list[str]:
    """Return what did not work, once each, for the foot of the table."""
    found: dict[str, None] = {}
    for line in lines:
        for name, reason in line.missing.items():
            what = name if reason.startswith(ABSENT) else f"{name}, {line.row.method} {line.row.size}"
            if reason != "-":
                found[f"{what}: {reason}"] = None
    return list(found)


def as_json(line: Line) -> dict[str, Any]:
    return {**line._asdict(), "row": {**line.row._asdict(), "goal": line.row.goal._asdict() if line.row.goal else None}}
