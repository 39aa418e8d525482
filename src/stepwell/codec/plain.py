"""Finding out, at the speed of C loops, whether a value is its own tree.

Most stored values are plain: None, bool, int, str and finite floats, in lists and in dicts with str keys, all
of the exact type. (For a binary format also bytes, and for some formats every float.) They go to the payload
format as they are. Ints over 64 bits and lone surrogates are not looked for: the formats refuse them, and a
walk follows.

One value met at many places is written at each of them, so what is small in memory may have a huge text. So
the size is estimated on the way and bounded by ``value_bytes`` before anything is written. A value of few
entries is not estimated: its text is at most that many times its largest str.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from types import NoneType
from typing import Final, TypeAlias

from stepwell.types import Limits

from .tags import MARK, TYPE, Node, type_of

FEW: Final = 64  # entries
NOT_PLAIN: Final = -1
MANY: Final = -2
TOO_LARGE: Final = -3

_Types: TypeAlias = frozenset[type]
_NONE: Final[_Types] = frozenset()
_STR: Final[_Types] = frozenset({str})
_BYTES: Final[_Types] = frozenset({bytes})
_FLOAT: Final[_Types] = frozenset({float})
_NUMBERS: Final[_Types] = frozenset({NoneType, bool, int})
_SCALARS: Final[_Types] = _NUMBERS | _STR


def sizer(limits: Limits, *, binary: bool, nonfinite: bool, exact: bool) -> Callable[[object, int], int]:  # noqa: C901 - see size_of
    """A function that sizes a value standing inside ``depth - 1`` containers.

    It gives the entries in all of a plain value, with ``exact`` the characters too, else NOT_PLAIN. Without
    ``exact`` it stops at FEW entries with MANY, with it at ``value_bytes`` with TOO_LARGE. What is over another
    limit is not plain, and the walk names the place.
    """
    scalars = _SCALARS | (_BYTES if binary else _NONE) | (_FLOAT if nonfinite else _NONE)
    easy = scalars - {str, bytes} if exact else scalars
    most, over = (limits.value_bytes, TOO_LARGE) if exact else (FEW, MANY)
    keys_max, depth_max = limits.keys, limits.depth

    def size_of(value: Node, depth: int) -> int:  # noqa: C901 - one function, as a call costs more than an entry
        kind = type_of(value)
        if kind is dict:
            if TYPE in value or (binary and not _STR.issuperset(map(type, value))):
                return NOT_PLAIN
            items: Collection[Node] = value.values()
        elif kind is list:
            if value and type(value[0]) is str and value[0][:1] == MARK:
                return NOT_PLAIN
            items = value
        elif kind is float and not nonfinite:
            return NOT_PLAIN if value - value else 0  # nan for nan and the infinities, 0.0 for all others
        else:
            return 0 if kind in scalars else NOT_PLAIN
        size = len(items)
        if size > FEW:
            if not exact:
                return MANY
            if easy.issuperset(map(type, items)) and size <= keys_max and depth <= depth_max:
                return size
        if size > keys_max or depth > depth_max:
            return NOT_PLAIN
        for item in items:
            kind = type_of(item)
            if kind in easy:
                continue
            if kind is float:
                if item - item:
                    return NOT_PLAIN
            elif kind is str or (kind is bytes and binary):
                size += len(item)
            else:
                if (inside := size_of(item, depth + 1)) < 0:
                    return inside
                size += inside
            if size > most:
                return over
        return size

    return size_of


def flat_sizer(*, binary: bool, nonfinite: bool) -> Callable[[Collection[object]], int]:
    """A function that gives the characters in ``values`` if all are plain scalars, else NOT_PLAIN."""
    easy = _NUMBERS | (_FLOAT if nonfinite else _NONE)

    def size_of(values: Collection[object]) -> int:
        size = 0
        for item in [value for value in values if type(value) not in easy]:
            if type(item) is str or (type(item) is bytes and binary):
                size += len(item)
            elif type(item) is not float or item - item:
                return NOT_PLAIN
        return size

    return size_of
