"""How values are packed for PostgreSQL: always in binary, always as the same types.

A prepared statement is found again by its text and by the types of its parameters. psycopg would send a small int as
``smallint`` and a large one as ``bigint``, and walk through every list in Python; so here an int is always a
``bigint``, and arrays, which carry nearly everything, are packed at once into PostgreSQL's own layout: the number of
dimensions, whether there are NULLs, the type of the elements, their count, the first index, then each with its length.

Text is sent as bytes: PostgreSQL's text knows no NUL, no lone surrogate, and equality only within a collation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct, pack
from typing import Any, Final

INT8: Final = 20
BYTEA: Final = 17
TEXT: Final = 25
_NULL: Final = b"\xff\xff\xff\xff"
_LENGTH: Final = Struct("!i").pack
_PAIR: Final = Struct("!iq").pack
_INT: Final = Struct("!q").pack
_ONE_INT: Final = pack("!iiIii", 1, 0, INT8, 1, 1)


class Int8s(bytes):
    """A ``bigint[]`` as it is sent."""


class Byteas(bytes):
    """A ``bytea[]`` as it is sent."""


class Texts(bytes):
    """A ``text[]`` as it is sent."""


_TYPES: Final = ((Int8s, 1016), (Byteas, 1001), (Texts, 1009), (bytes, BYTEA), (bool, 16), (int, INT8), (str, TEXT))


def int8s(values: Sequence[int | None]) -> Int8s:
    if len(values) == 1 and (only := values[0]) is not None:
        return Int8s(_ONE_INT + _PAIR(8, only))
    return Int8s(_head(INT8, len(values)) + b"".join([_NULL if each is None else _PAIR(8, each) for each in values]))


def byteas(values: Sequence[bytes | None]) -> Byteas:
    return Byteas(_head(BYTEA, len(values)) + _blobs(values))


def texts(values: Sequence[str | None]) -> Texts:
    return Texts(_head(TEXT, len(values)) + _blobs([None if each is None else each.encode() for each in values]))


def _head(oid: int, count: int) -> bytes:
    if not count:
        return pack("!iiI", 0, 0, oid)
    return pack("!iiIii", 1, 1, oid, count, 1)  # the second says that there may be NULLs; it is only a hint


def _blobs(values: Sequence[bytes | None]) -> bytes:
    parts: list[bytes] = []
    for each in values:
        parts += (_NULL,) if each is None else (_LENGTH(len(each)), each)
    return b"".join(parts)


def utf8(text: str) -> bytes:
    """Return text as it is stored; lone surrogates, which are no text elsewhere, have a form of their own."""
    return text.encode("utf-8", "surrogatepass")


def from_utf8(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def packed_values(values: Sequence[object]) -> list[bytes | None]:
    """Return parameters as they are sent."""
    return [(_PACKED.get(value.__class__) or _packer_of(value))(value) for value in values]


def _packer_of(value: object) -> Callable[[Any], bytes | None]:
    """Return how a value of a subclass is sent: as what it is a kind of."""
    return next(pack for kind, pack in _PACKED.items() if isinstance(value, kind))


def _as_it_is(value: object) -> bytes | None:
    assert value is None or isinstance(value, bytes)
    return value


_PACKED: Final[dict[type, Callable[[Any], bytes | None]]] = {
    int: _INT,
    bool: lambda value: b"\1" if value else b"\0",
    str: str.encode,
    **dict.fromkeys((bytes, Int8s, Byteas, Texts, type(None)), _as_it_is),
}


def type_of(value: object) -> int:
    """Return the number of PostgreSQL's type for a parameter, 0 where the statement alone can tell."""
    for kind, oid in _TYPES:
        if isinstance(value, kind):
            return oid
    return 0
