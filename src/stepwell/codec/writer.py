"""Values to trees: what each kind of value is written as (the table stands in :mod:`.tags`).

What is not plain (see :mod:`.plain`) is walked, twice at most. The first walk trusts that ints fit 64 bits and
that strs hold no lone surrogate, so that a container of scalars passes whole; where the payload format then
refuses, the second, strict walk looks at every leaf. Both count what they will write and stop at a limit.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from base64 import b64encode
from collections.abc import Callable, Collection, Iterable
from decimal import Decimal
from enum import Enum
from types import NoneType
from typing import Any, Final, TypeAlias
from uuid import UUID

from stepwell.types import Limits

from . import tags
from .plain import MANY, TOO_LARGE, flat_sizer, sizer
from .records import Shape, shape_of, take_member
from .tags import MARK, TYPE, Misfit, Record, TooLarge, field_part, key_part

Dumps: TypeAlias = Callable[[object], bytes]
Write: TypeAlias = "Callable[[_Walk, Any, int], object]"

INT_MIN: Final = -(2**63)
INT_END: Final = 2**64

_ZONE_KEY: Final = re.compile(r"[A-Za-z0-9_+\-]+(/[A-Za-z0-9_+\-]+)*")
_STR: Final = frozenset({str})
_CLASSES_MAX: Final = 4096  # a program that makes classes as it runs must not fill the memory with their writers


class Writer:
    """Makes trees for one payload format under one set of limits. Safe to use from several threads."""

    def __init__(self, limits: Limits, dumps: Dumps, *, binary: bool, ordered: bool = False) -> None:
        """``binary``: the format has bytes and all floats. ``ordered``: dict order is not to be seen in the tree."""
        self.limits, self.dumps, self.binary, self.ordered = limits, dumps, binary, ordered
        nonfinite = binary and not ordered  # there are many NaNs to MessagePack, and only one to a digest
        self.size_few = sizer(limits, binary=binary, nonfinite=nonfinite, exact=False)
        self.size_all = sizer(limits, binary=binary, nonfinite=nonfinite, exact=True)
        self.size_flat = flat_sizer(binary=binary, nonfinite=nonfinite)
        self.shapes: dict[type, Shape | None] = {}
        self._base: dict[type, Write] = _COMMON | _TEXT | (_BINARY if binary else {})
        if nonfinite:
            self._base[float] = _as_is
        self._table = dict(self._base)

    def shape(self, cls: type) -> Shape | None:
        try:
            return self.shapes[cls]
        except KeyError:
            if len(self.shapes) >= _CLASSES_MAX:
                self.shapes.clear()
            return self.shapes.setdefault(cls, shape_of(cls))

    def is_plain(self, value: object) -> bool:
        """True if ``value`` is its own tree, apart from ints over 64 bits and lone surrogates."""
        size = self.size_few(value, 1)
        return size >= 0 or (size == MANY and self.is_plain_in_all(value))

    def is_plain_in_all(self, value: object) -> bool:
        size = self.size_all(value, 1)
        if size == TOO_LARGE:
            raise too_large(self.limits)
        return size >= 0

    def tree(self, value: object, *, strict: bool) -> object:
        return _Walk(self, strict).node(value, 0)

    def write_of(self, cls: type) -> Write:
        """How objects of ``cls`` are written; raises Misfit if they cannot be."""
        write = self._table.get(cls)
        if write is None:
            write = _write_for(cls, self.shape(cls))
            if len(self._table) >= _CLASSES_MAX:
                self._table = dict(self._base)
            self._table[cls] = write
        return write


def too_large(limits: Limits) -> TooLarge:
    return TooLarge(
        f"the value takes more than {limits.value_bytes} bytes; store it elsewhere and return its address, "
        "or raise Limits.value_bytes"
    )


class _Walk:
    """One pass over one value."""

    __slots__ = ("limits", "room", "strict", "write_of", "writer")

    def __init__(self, writer: Writer, strict: bool) -> None:
        self.writer, self.limits, self.strict = writer, writer.limits, strict
        self.write_of = writer.write_of
        self.room = writer.limits.value_bytes

    def node(self, value: object, depth: int) -> object:
        return self.write_of(type(value))(self, value, depth)

    def spend(self, size: int) -> None:
        self.room -= size
        if self.room < 0:
            raise too_large(self.limits)

    def enter(self, count: int, depth: int) -> None:
        """Account for a container of ``count`` entries that stands inside ``depth`` others."""
        if depth >= self.limits.depth:
            raise TooLarge(
                f"the value nests deeper than {self.limits.depth} levels; does it contain itself? "
                "If not, store it flatter or raise Limits.depth"
            )
        if count > self.limits.keys:
            raise TooLarge(
                f"a container of {count} entries is over the limit of {self.limits.keys}; split it or raise Limits.keys"
            )
        self.spend(count + 1)

    def enter_object(self, name: str, fields: dict[str, object], depth: int) -> None:
        self.enter(len(fields) + 1, depth)
        self.spend(len(name) + sum(map(len, fields)))

    def passes(self, values: Collection[object]) -> bool:
        """True if all ``values`` are scalars that stand for themselves."""
        if self.strict or (size := self.writer.size_flat(values)) < 0:
            return False
        self.spend(size)
        return True

    def nodes(self, values: Collection[object], depth: int) -> list[object]:
        """The nodes of ``values``, which are entries of a container at ``depth``."""
        if self.passes(values):
            return list(values)
        found: list[object] = []
        try:
            for value in values:
                found.append(self.write_of(type(value))(self, value, depth + 1))
        except Misfit as misfit:
            raise misfit.under(f"[{len(found)}]")  # noqa: B904 - the same error, one part of the path longer
        return found

    def fields(self, values: dict[str, object], depth: int, part: Callable[[str], str]) -> dict[str, object]:
        """The nodes of a dict with str keys, or of an object's fields."""
        if self.passes(values.values()):
            return values
        found: dict[str, object] = {}
        key = ""
        try:
            for key, value in values.items():
                found[key] = self.write_of(type(value))(self, value, depth + 1)
        except Misfit as misfit:
            raise misfit.under(part(key))  # noqa: B904 - as above
        return found


# --- scalars -------------------------------------------------------------------------------------------------


def _as_is(walk: _Walk, value: object, depth: int) -> object:
    return value


def _write_int(walk: _Walk, value: int, depth: int) -> object:
    if INT_MIN <= value < INT_END:
        return value
    check_digits(value, walk.limits)
    return [tags.INT, f"{value:x}"]


def check_digits(value: int, limits: Limits) -> None:
    """Refuse an int of more decimal digits than allowed, without writing it in decimal."""
    least = int((limits.int_digits - 1) * math.log2(10))  # fewer bits than this are surely few enough digits
    if value.bit_length() > least and (value.bit_length() > least + 5 or abs(value) >= 10**limits.int_digits):
        raise TooLarge(
            f"an int of about {int(value.bit_length() * math.log10(2)) + 1} digits is over the limit of "
            f"{limits.int_digits}; raise Limits.int_digits if it is meant"
        )


def _write_float(walk: _Walk, value: float, depth: int) -> object:
    return [tags.FLOAT, repr(value)] if value - value else value


def _write_str(walk: _Walk, value: str, depth: int) -> object:
    walk.spend(len(value))
    if not walk.strict or is_text(value):
        return value
    return [tags.STR, _binary(walk, value.encode("utf-8", "surrogatepass"))]


def is_text(value: str) -> bool:
    """True if ``value`` is valid Unicode text, without lone surrogates."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _binary(walk: _Walk, value: bytes | bytearray) -> object:
    walk.spend(len(value))
    return bytes(value) if walk.writer.binary else b64encode(value).decode("ascii")


def _write_bytes(walk: _Walk, value: bytes, depth: int) -> object:
    return [tags.BYTES, _binary(walk, value)]


def _write_native_bytes(walk: _Walk, value: bytes, depth: int) -> object:
    walk.spend(len(value))
    return value


def _write_bytearray(walk: _Walk, value: bytearray, depth: int) -> object:
    return [tags.BYTEARRAY, _binary(walk, value)]


def _write_complex(walk: _Walk, value: complex, depth: int) -> object:
    return [tags.COMPLEX, repr(value.real), repr(value.imag)]


def _write_decimal(walk: _Walk, value: Decimal, depth: int) -> object:
    text = str(value).replace("e", "E")  # the case hangs on the decimal context
    walk.spend(len(text))
    return [tags.DECIMAL, text]


def _write_uuid(walk: _Walk, value: UUID, depth: int) -> object:
    return [tags.UUID_, value.hex]


# --- dates and times ---------------------------------------------------------------------------------------


def _write_date(walk: _Walk, value: dt.date, depth: int) -> object:
    return [tags.DATE, value.isoformat()]


def _write_timedelta(walk: _Walk, value: dt.timedelta, depth: int) -> object:
    return [tags.TIMEDELTA, value.days, value.seconds, value.microseconds]


def _write_datetime(walk: _Walk, value: dt.datetime, depth: int) -> object:
    return [tags.DATETIME, *_moment(value)]


def _write_time(walk: _Walk, value: dt.time, depth: int) -> object:
    return [tags.TIME, *_moment(value)]


def _moment(value: dt.datetime | dt.time) -> list[object]:
    """``[iso]``, ``[iso, fold]`` or ``[iso, fold, zone]``.

    The text holds a fixed offset but no zone key; zone is the key of a ZoneInfo or the given name of an offset.
    """
    zone = value.tzinfo
    if zone is None or type(zone) is dt.timezone:
        name = _own_name(zone) if zone is not None else None
        return [value.isoformat(), value.fold, name] if name else _with_fold(value)
    from zoneinfo import ZoneInfo  # only where a zone is met: it costs a millisecond of import

    if type(zone) is not ZoneInfo:
        raise Misfit(
            f"a {type(value).__name__} with a tzinfo of type {type(zone).__qualname__} cannot be stored; "
            "use zoneinfo.ZoneInfo or datetime.timezone"
        )
    known = zone_of(zone.key) if zone.key else None
    if known is None or value.replace(tzinfo=known).utcoffset() != value.utcoffset():
        raise Misfit("a ZoneInfo that ZoneInfo(key) would not give again cannot be stored; make it with ZoneInfo(key)")
    return [value.replace(tzinfo=None).isoformat(), value.fold, zone.key]


def zone_of(key: str) -> dt.tzinfo | None:
    """The time zone of this key, None if this machine has none."""
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    if not _ZONE_KEY.fullmatch(key):
        return None
    try:
        return ZoneInfo(key)
    except (ZoneInfoNotFoundError, OSError, ValueError):
        return None


def _with_fold(value: dt.datetime | dt.time) -> list[object]:
    return [value.isoformat(), 1] if value.fold else [value.isoformat()]


def _own_name(zone: dt.timezone) -> str | None:
    if zone is dt.UTC:
        return None
    offset = zone.utcoffset(None)
    if offset.microseconds:  # datetime.fromisoformat loses it where it is all of the offset
        raise Misfit("a timezone with a fraction of a second in its offset cannot be stored; round it")
    name = zone.tzname(None)
    return None if name == dt.timezone(offset).tzname(None) else name


# --- containers ------------------------------------------------------------------------------------------------


def _write_list(walk: _Walk, value: list[object], depth: int) -> object:
    walk.enter(len(value), depth)
    nodes = walk.nodes(value, depth)
    if nodes and type(nodes[0]) is str and nodes[0][:1] == MARK:
        nodes.insert(0, tags.LIST)
    return nodes


def _write_tuple(walk: _Walk, value: tuple[object, ...], depth: int) -> object:
    walk.enter(len(value), depth)
    return [tags.TUPLE, *walk.nodes(value, depth)]


def _write_set(walk: _Walk, value: set[object], depth: int) -> object:
    return [tags.SET, *_sorted(walk, value, depth)]


def _write_frozenset(walk: _Walk, value: frozenset[object], depth: int) -> object:
    return [tags.FROZENSET, *_sorted(walk, value, depth)]


def _sorted(walk: _Walk, value: Iterable[object], depth: int) -> list[object]:
    """Nodes in an order of their own: a set's order differs from one process to the next."""
    items = list(value)
    walk.enter(len(items), depth)
    try:
        nodes = walk.nodes(items, depth)
    except Misfit as misfit:
        misfit.parts[-1:] = ["{…}"]  # the number of an entry would name nothing: sets have no order
        raise
    return sorted(nodes, key=walk.writer.dumps)


def _write_dict(walk: _Walk, value: dict[Any, object], depth: int) -> object:
    walk.enter(len(value), depth)
    if TYPE in value or not _STR.issuperset(map(type, value)) or (walk.strict and not all(map(is_text, value))):
        return _pairs(walk, value, depth)
    walk.spend(sum(map(len, value)))
    return walk.fields(value, depth, key_part)


def _pairs(walk: _Walk, value: dict[object, object], depth: int) -> object:
    pairs: list[tuple[object, object]] = []
    key: object = None
    try:
        for key, item in value.items():
            node = walk.write_of(type(key))(walk, key, depth + 1)
            pairs.append((node, walk.write_of(type(item))(walk, item, depth + 1)))
    except Misfit as misfit:
        raise misfit.under(key_part(key))  # noqa: B904 - as above
    if walk.writer.ordered:
        pairs.sort(key=lambda pair: walk.writer.dumps(pair[0]))
    return [tags.DICT, *(node for pair in pairs for node in pair)]


# --- objects -----------------------------------------------------------------------------------------------------


def _write_record(walk: _Walk, value: Record, depth: int) -> object:
    fields = dict(value.fields)
    names = (value.type_name, *fields)
    if TYPE in fields or not _STR.issuperset(map(type, names)) or not all(map(is_text, names)):
        raise Misfit(f"a Record needs a text as type_name and texts as field names, none of them {TYPE!r}")
    walk.enter_object(value.type_name, fields, depth)
    return {TYPE: value.type_name, **walk.fields(fields, depth, field_part)}


def _write_member(walk: _Walk, value: Enum, depth: int) -> object:
    fields = take_member(value)
    walk.enter_object(type(value).__qualname__, fields, depth)
    return {TYPE: type(value).__qualname__, **walk.fields(fields, depth, field_part)}


def _write_for(cls: Any, shape: Shape | None) -> Write:
    if issubclass(cls, Enum):
        return _write_member
    if shape is None:
        raise Misfit(_refusal(cls))
    name, take = shape.name, shape.take

    def write(walk: _Walk, value: object, depth: int) -> object:
        fields = take(value)
        walk.enter_object(name, fields, depth)
        return {TYPE: name, **walk.fields(fields, depth, field_part)}

    return write


def _refusal(cls: Any) -> str:
    """Why objects of a class cannot be stored, and what to do instead."""
    name = cls.__qualname__
    for base in cls.__mro__[1:]:
        if base in _COMMON or base in _TEXT:
            return (
                f"values of type {name} cannot be stored, as one would come back as a plain {base.__name__}; "
                f"convert it with {base.__name__}(...) or wrap it in a dataclass"
            )
    if issubclass(cls, type):
        return "classes cannot be stored; store the name"
    if callable(getattr(cls, "__next__", None)):
        return f"values of type {name} cannot be stored; make a list of it"
    return (
        f"values of type {name} cannot be stored; use builtins, datetimes, enums, or objects of dataclasses, "
        "msgspec, attrs or pydantic; store the key or path of anything else, and let inject() bring a task its tools"
    )


_COMMON: Final[dict[type, Write]] = {
    NoneType: _as_is,
    bool: _as_is,
    int: _write_int,
    str: _write_str,
    list: _write_list,
    dict: _write_dict,
    tuple: _write_tuple,
    set: _write_set,
    frozenset: _write_frozenset,
    bytearray: _write_bytearray,
    complex: _write_complex,
    Decimal: _write_decimal,
    UUID: _write_uuid,
    dt.datetime: _write_datetime,
    dt.date: _write_date,
    dt.time: _write_time,
    dt.timedelta: _write_timedelta,
    Record: _write_record,
}
_TEXT: Final[dict[type, Write]] = {float: _write_float, bytes: _write_bytes}
_BINARY: Final[dict[type, Write]] = {bytes: _write_native_bytes}
