"""Generated values, and generated pairs of a declared type and a value of it."""

from __future__ import annotations

import dataclasses
import datetime as dt
from decimal import Decimal
from typing import Any, Union
from uuid import UUID
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

from .shapes import Box, Colour, Level, Money, Mood, Pair, Permission, Point

ZONES = st.sampled_from([None, dt.UTC, dt.timezone(dt.timedelta(hours=-3, seconds=7)), ZoneInfo("Europe/Berlin")])

TEXTS = st.text(st.characters(), max_size=8) | st.sampled_from(["", "!tuple", "!", "\0", "\ud800", "!type", "null"])
INTS = st.integers() | st.integers(-(2**200), 2**200) | st.sampled_from([2**63, 2**64 - 1, 2**64, -(2**63) - 1])
FLOATS = st.floats()
SCALARS = st.none() | st.booleans() | INTS | FLOATS | TEXTS | st.binary(max_size=8)
DATETIMES = st.datetimes(timezones=ZONES) | st.builds(
    lambda moment, fold: moment.replace(fold=fold), st.datetimes(timezones=ZONES), st.integers(0, 1)
)
LEAVES = st.one_of(
    SCALARS,
    DATETIMES,
    st.dates(),
    st.times(timezones=st.sampled_from([None, dt.UTC])),
    st.timedeltas(),
    st.decimals(),
    st.decimals(allow_nan=False, places=3),
    st.uuids(),
    st.complex_numbers(),
    st.binary(max_size=4).map(bytearray),
)
HASHABLE_LEAVES = LEAVES.filter(lambda value: not isinstance(value, bytearray) and not _is_signalling(value))
HASHABLES = st.recursive(
    HASHABLE_LEAVES,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(TEXTS, inner, max_size=4),
        st.dictionaries(HASHABLES, inner, max_size=3),
        st.sets(HASHABLES, max_size=4),
        st.frozensets(HASHABLES, max_size=4),
    )


VALUES = st.recursive(LEAVES, _containers, max_leaves=12)
"""Any value that round-trips without a declared type."""


def _is_signalling(value: object) -> bool:
    return isinstance(value, Decimal) and value.is_snan()


TypeAndValues = tuple[Any, st.SearchStrategy[Any]]

_LEAF_TYPES: list[TypeAndValues] = [
    (int, INTS),
    (float, FLOATS),
    (str, TEXTS),
    (bool, st.booleans()),
    (bytes, st.binary(max_size=5)),
    (bytearray, st.binary(max_size=5).map(bytearray)),
    (complex, st.complex_numbers()),
    (type(None), st.none()),
    (dt.datetime, DATETIMES),
    (dt.date, st.dates()),
    (dt.timedelta, st.timedeltas()),
    (Decimal, st.decimals(allow_nan=False)),
    (UUID, st.uuids()),
    (Colour, st.sampled_from(Colour)),
    (Level, st.sampled_from(Level)),
    (Mood, st.sampled_from(Mood)),
    (Permission, st.sampled_from([Permission(n) for n in range(4)])),
    (Point, st.builds(Point, FLOATS, FLOATS)),
    (Money, st.builds(Money, st.decimals(allow_nan=False), TEXTS)),
    (Pair, st.builds(Pair, INTS, TEXTS)),
    (Any, VALUES),
]
_HASHABLE_TYPES = [pair for pair in _LEAF_TYPES if pair[0] not in (bytearray, Any, Point, Money)]


@st.composite
def types(draw: st.DrawFn, depth: int = 3) -> TypeAndValues:
    """A declared type and a strategy for its values."""
    kind = draw(st.integers(0, 9)) if depth else 0
    if kind <= 2:
        return draw(st.sampled_from(_LEAF_TYPES))
    if kind == 3:
        key, keys = draw(st.sampled_from(_HASHABLE_TYPES))
        value, values = draw(types(depth=depth - 1))
        return dict[key, value], st.dictionaries(keys, values, max_size=3)
    if kind == 4:
        entry, entries = draw(st.sampled_from(_HASHABLE_TYPES))
        kinds = draw(st.sampled_from([set, frozenset]))
        return kinds[entry], st.lists(entries, max_size=3).map(kinds)
    inner, inners = draw(types(depth=depth - 1))
    if kind == 5:
        return list[inner], st.lists(inners, max_size=3)
    if kind == 6:
        return tuple[inner, ...], st.lists(inners, max_size=3).map(tuple)
    if kind == 7:
        return Box[inner], inners.map(Box)
    other, others = draw(types(depth=depth - 1))
    if kind == 8 or "Any" in f"{inner} {other}":  # Any may take what another member was meant for
        return tuple[inner, other], st.tuples(inners, others)
    return Union[inner, other], inners | others  # noqa: UP007 - made at run time


@st.composite
def typed_values(draw: st.DrawFn) -> tuple[Any, Any]:
    """A declared type and a value of it."""
    declared, values = draw(types())
    return declared, draw(values)


def same(one: object, other: object) -> bool:
    """True if both are equal and of the same types throughout; NaN equals NaN, -0.0 does not equal 0.0."""
    return spelt(one) == spelt(other)


def spelt(value: Any) -> str:
    """A text that is equal for the same values only: types, order of dicts, signs and zones are in it."""
    match value:
        case set() | frozenset():
            inside = sorted(map(spelt, value))
        case list() | tuple():
            inside = [*map(spelt, value)]
        case dict():
            inside = [f"{spelt(key)}: {spelt(item)}" for key, item in value.items()]
        case int():
            return f"{type(value).__qualname__} {value:x}"  # decimal text is limited
        case _ if dataclasses.is_dataclass(value):
            inside = [spelt(getattr(value, field.name)) for field in dataclasses.fields(value)]
        case _:
            return f"{type(value).__qualname__} {value!r}"
    return f"{type(value).__qualname__}({', '.join(inside)})"
