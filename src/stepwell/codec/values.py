"""Trees to values without a declared type: each tag says what it stands for."""

from __future__ import annotations

import datetime as dt
import re
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, Final, TypeAlias
from uuid import UUID

from stepwell.errors import UnknownFormat
from stepwell.types import Limits

from . import tags
from .tags import LEAVES, MARK, TYPE, Damaged, Misfit, Node, Record, TooLarge, field_part, key_part, type_of
from .writer import check_digits, zone_of

Loads: TypeAlias = "Callable[[list[Any], Limits], object]"

CONTAINERS: Final[Mapping[str, type]] = {tags.LIST: list, tags.TUPLE: tuple, tags.SET: set, tags.FROZENSET: frozenset}

_HEX: Final = re.compile(r"-?[0-9a-f]+")


def value_of(node: Node, limits: Limits) -> object:
    """The value that ``node`` stands for. A record of any type becomes a :class:`Record`.

    Raises:
        Misfit: the node is malformed.
        UnknownFormat: it carries a tag that this version does not know.
    """
    kind = type_of(node)
    if kind is list:
        return _list_value(node, limits)
    if kind is dict:
        return _record(node, limits) if TYPE in node else _fields(node, limits, key_part)
    if kind in LEAVES:
        return node
    raise Damaged(f"found a {kind.__name__} where stored values have none")


def split(node: list[Any]) -> tuple[str, list[Any]]:
    """A list node as its tag, ``!list`` for none, and what follows the tag."""
    if node and type(node[0]) is str and node[0][:1] == MARK:
        return node[0], node[1:]
    return tags.LIST, node


def pairs_value(items: list[Any], read_key: Callable[[Node], Any], read: Callable[[Node], object]) -> object:
    """The dict of a ``!dict`` node's keys and values."""
    if len(items) % 2:
        raise Damaged("found a dict with a key but no value")
    found: dict[object, object] = {}
    key: object = None
    try:
        for at in range(0, len(items), 2):
            key = None
            key = read_key(items[at])
            hash(key)
            found[key] = read(items[at + 1])
    except Misfit as misfit:
        raise misfit.under(key_part(key))  # noqa: B904 - the same error, one part of the path longer
    except TypeError:
        raise Damaged("found a dict key that cannot be hashed") from None
    return found


def hashed(kind: type[Any], items: Sequence[object]) -> object:
    """A set or frozenset of ``items``; also a list or tuple."""
    try:
        return kind(items)
    except TypeError:
        raise Damaged(f"found an entry of a {kind.__name__} that cannot be hashed") from None


def _list_value(node: list[Any], limits: Limits) -> object:
    tag, items = split(node)
    if (build := CONTAINERS.get(tag)) is not None:
        found: list[Any] = items
        if not LEAVES.issuperset(map(type, items)):
            found = []
            try:
                for item in items:
                    found.append(value_of(item, limits))
            except Misfit as misfit:
                raise misfit.under(f"[{len(found)}]")  # noqa: B904 - as above
        return found if build is list else hashed(build, found)
    if tag == tags.DICT:
        read = partial(value_of, limits=limits)
        return pairs_value(items, read, read)
    return _leaf(tag, items, limits)


def _leaf(tag: str, items: list[Any], limits: Limits) -> object:
    make = _MAKERS.get(tag)
    if make is None:
        raise UnknownFormat(f"the value holds the tag {tag[:20]!r}, which this stepwell does not know; use a newer one")
    try:
        return make(items, limits)
    except (ValueError, TypeError, ArithmeticError):
        raise Damaged(f"found a malformed {tag[1:]}") from None


def _record(node: dict[str, Any], limits: Limits) -> Record:
    name = node[TYPE]
    if type(name) is not str:
        raise Damaged("found an object without the name of its type")
    return Record(name, _fields({field: item for field, item in node.items() if field != TYPE}, limits, field_part))


def _fields(node: dict[str, Any], limits: Limits, part: Callable[[str], str]) -> dict[str, Any]:
    if LEAVES.issuperset(map(type, node.values())):
        return node
    found: dict[str, Any] = {}
    key = ""
    try:
        for key, item in node.items():
            found[key] = value_of(item, limits)
    except Misfit as misfit:
        raise misfit.under(part(key))  # noqa: B904 - as above
    return found


# --- one function per tag; a ValueError or TypeError from any of them means malformed --------------------------


def _only(items: list[Any], kind: type | tuple[type, ...] = str) -> Any:
    (item,) = items
    if not isinstance(item, kind):
        raise TypeError
    return item


def _int(items: list[Any], limits: Limits) -> int:
    text = _only(items)
    if not _HEX.fullmatch(text):
        raise ValueError
    if len(text) > limits.int_digits + 1:  # hex digits are fewer than decimal ones
        raise TooLarge(f"an int is over the limit of {limits.int_digits} digits")
    value = int(text, 16)  # a power of two as base: linear, and free of sys.set_int_max_str_digits
    check_digits(value, limits)
    return value


def _bytes(items: list[Any], limits: Limits) -> bytes:
    data = _only(items, (str, bytes))
    return data if isinstance(data, bytes) else b64decode(data, validate=True)


def _str(items: list[Any], limits: Limits) -> str:
    return _bytes(items, limits).decode("utf-8", "surrogatepass")


def _float(items: list[Any], limits: Limits) -> float:
    return float(_only(items))


def _complex(items: list[Any], limits: Limits) -> complex:
    real, imaginary = items
    return complex(float(_only([real])), float(_only([imaginary])))


def _decimal(items: list[Any], limits: Limits) -> Decimal:
    return Decimal(_only(items))


def _uuid(items: list[Any], limits: Limits) -> UUID:
    return UUID(hex=_only(items))


def _date(items: list[Any], limits: Limits) -> dt.date:
    return dt.date.fromisoformat(_only(items))


def _timedelta(items: list[Any], limits: Limits) -> dt.timedelta:
    days, seconds, microseconds = (_only([item], int) for item in items)
    return dt.timedelta(days, seconds, microseconds)


def _datetime(items: list[Any], limits: Limits) -> object:
    return _with_zone(dt.datetime.fromisoformat(_only(items[:1])), items)


def _time(items: list[Any], limits: Limits) -> object:
    return _with_zone(dt.time.fromisoformat(_only(items[:1])), items)


def _with_zone(moment: Any, items: list[Any]) -> Any:
    if len(items) == 1:
        return moment
    _, fold, *names = items
    moment = moment.replace(fold=_only([fold], int))
    if not names:
        return moment
    name = _only(names)
    if moment.tzinfo is None:
        return moment.replace(tzinfo=_zone(name))
    return moment.replace(tzinfo=dt.timezone(moment.tzinfo.utcoffset(None), name))


def _zone(key: str) -> dt.tzinfo:
    zone = zone_of(key)
    if zone is None:
        raise Misfit("the stored time zone is not known here; install the tzdata package")
    return zone


_MAKERS: Final[dict[str, Loads]] = {
    tags.INT: _int,
    tags.STR: _str,
    tags.FLOAT: _float,
    tags.COMPLEX: _complex,
    tags.BYTES: _bytes,
    tags.BYTEARRAY: lambda items, limits: bytearray(_bytes(items, limits)),
    tags.DATETIME: _datetime,
    tags.DATE: _date,
    tags.TIME: _time,
    tags.TIMEDELTA: _timedelta,
    tags.DECIMAL: _decimal,
    tags.UUID_: _uuid,
}
