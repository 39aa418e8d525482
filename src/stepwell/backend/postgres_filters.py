"""The queries of lists in PostgreSQL, put together of fixed pieces."""

from __future__ import annotations

from typing import Final

from .base import Filter
from .postgres_pack import utf8
from .postgres_queries import COLUMNS, JOINS

_OPEN: Final = frozenset({"pending", "running", "waiting", "paused", "held"})
_RARE: Final = frozenset({"failed", "cancelled", "paused", "held"})
# Word for word as in the index, so that it is used.
_IS_RARE: Final = "i.state IN ('failed', 'cancelled', 'paused', 'held')"


class _Pieces:
    """Conditions and the values of their parameters."""

    def __init__(self) -> None:
        self.conditions = ["NOT i.replaced"]
        self.values: list[object] = []

    def bind(self, value: object) -> str:
        self.values.append(value)
        return f"${len(self.values)}"

    def add(self, condition: str, *values: object) -> None:
        self.conditions.append(condition.format(*(self.bind(value) for value in values)))


def page(where: Filter) -> tuple[str, list[object]]:
    """Return the query of a page of headers, newest first, and its bound values."""
    source, number, found = _found(where)
    if where.after is not None:
        found.add(f"{number} < {{}}", where.after)
    limit = found.bind(max(where.limit, 0))
    condition = " AND ".join(found.conditions)
    query = f"SELECT {COLUMNS} FROM {source} {JOINS} WHERE {condition} ORDER BY {number} DESC LIMIT {limit}"  # noqa: S608
    return query, found.values


def counted(where: Filter) -> tuple[str, list[object]]:
    """Return the query of how many match, and its bound values."""
    source, _, found = _found(where)
    condition = " AND ".join(found.conditions)
    query = f"SELECT count(*) FROM {source} JOIN @definition d ON d.id = i.definition WHERE {condition}"  # noqa: S608
    return query, found.values


def _found(where: Filter) -> tuple[str, str, _Pieces]:
    """Return what to walk, the column that numbers instances there, and the conditions."""
    found = _Pieces()
    if where.workflow:
        found.add("d.name = {}", utf8(where.workflow))
    if where.created_from_us is not None:
        found.add("i.created_us >= {}", where.created_from_us)
    if where.created_to_us is not None:
        found.add("i.created_us < {}", where.created_to_us)
    if where.states:
        marks = ", ".join(found.bind(state) for state in where.states)
        found.add(f"i.state IN ({marks})")
    if where.unfinished:
        found.add("i.ended_us IS NULL")
    return (*_way_in(where, found), found)


def _way_in(where: Filter, found: _Pieces) -> tuple[str, str]:
    """Choose what is walked: the few that have a label or a rare state, else what has not ended, else all."""
    if labels := [(utf8(key), utf8(value)) for key, value in where.labels.items()]:
        for label in labels[1:]:
            found.add("EXISTS (SELECT 1 FROM @label x WHERE x.key = {} AND x.value = {} AND x.instance = i.id)", *label)
        found.add("l.key = {} AND l.value = {}", *labels[0])
        return "@label l JOIN @instance i ON i.id = l.instance", "l.instance"
    if where.states and _RARE.issuperset(where.states):
        found.add(_IS_RARE)
    elif where.unfinished or (where.states and _OPEN.issuperset(where.states)):
        return "@agenda o JOIN @instance i ON i.id = o.instance", "o.instance"
    return "@instance i", "i.id"
