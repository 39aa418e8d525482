"""What cannot be stored exactly is refused before it is stored, by type name and path."""

from __future__ import annotations

import collections
import datetime as dt
import pathlib
import threading
from collections.abc import Callable
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from stepwell.codec import Codec, JsonCodec, MsgpackCodec, Record, check_encodable, digest
from stepwell.errors import EncodeError, ValueTooLarge

from .shapes import Point

CODECS: list[Codec] = [JsonCodec(), MsgpackCodec()]


class Text(str):
    __slots__ = ()


class Number(float):
    __slots__ = ()


class LocalZone(dt.tzinfo):
    def utcoffset(self, moment: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta(hours=1)


class Plain:
    pass


def _keyless() -> ZoneInfo:
    from importlib.resources import files
    from io import BytesIO

    path = pathlib.Path("/usr/share/zoneinfo/UTC")
    data = path.read_bytes() if path.exists() else (files("tzdata.zoneinfo") / "UTC").read_bytes()
    return ZoneInfo.from_file(BytesIO(data))


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: lambda: 1, "values of type function cannot be stored"),
    (lambda: (n for n in [1]), "values of type generator cannot be stored; make a list of it"),
    (lambda: iter([1]), "values of type list_iterator cannot be stored; make a list of it"),
    (threading.Lock, "values of type lock cannot be stored"),
    (object, "values of type object cannot be stored"),
    (Plain, "values of type Plain cannot be stored"),
    (lambda: Plain, "classes cannot be stored; store the name"),
    (lambda: pathlib.Path("a"), "cannot be stored"),
    (lambda: memoryview(b"a"), "values of type memoryview cannot be stored"),
    (lambda: range(3), "values of type range cannot be stored"),
    (lambda: ..., "values of type ellipsis cannot be stored"),
    (lambda: ValueError("x"), "values of type ValueError cannot be stored"),
    (lambda: msgspec.UNSET, "values of type UnsetType cannot be stored"),
    (lambda: msgspec.Raw(b"1"), "values of type Raw cannot be stored"),
    (
        lambda: Text("a"),
        "values of type Text cannot be stored, as one would come back as a plain str; convert it with str",
    ),
    (lambda: Number(1), "values of type Number cannot be stored, as one would come back as a plain float"),
    (lambda: collections.OrderedDict(a=1), "OrderedDict cannot be stored, as one would come back as a plain dict"),
    (lambda: collections.defaultdict(int), "defaultdict cannot be stored, as one would come back as a plain dict"),
    (lambda: collections.Counter("a"), "Counter cannot be stored, as one would come back as a plain dict"),
    (lambda: collections.deque([1]), "values of type deque cannot be stored"),
    (
        lambda: dt.datetime(2024, 1, 1, tzinfo=LocalZone()),
        "a datetime with a tzinfo of type LocalZone cannot be stored",
    ),
    (lambda: dt.time(1, tzinfo=LocalZone()), "a time with a tzinfo of type LocalZone cannot be stored"),
    (lambda: dt.datetime(2024, 1, 1, tzinfo=_keyless()), "a ZoneInfo that ZoneInfo(key) would not give again"),
    (lambda: dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(microseconds=1))), "a fraction of a second"),
    (lambda: Record("A", {"!type": 1}), "a Record needs a text as type_name"),
    (lambda: Record("A", {1: 1}), "a Record needs a text as type_name"),  # type: ignore[dict-item]
    (lambda: Record("\ud800", {}), "a Record needs a text as type_name"),
]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message[:45] for _, message in REFUSED])
def test_a_value_that_would_not_come_back_is_refused(codec: Codec, make: Callable[[], Any], message: str) -> None:
    """Every way in refuses it with the same words, and tells the place of it."""
    for refuse in (codec.encode, check_encodable, lambda value: digest(codec, value)):
        with pytest.raises(EncodeError) as caught:
            refuse({"a": [1, {"b": make()}]})
        assert message in str(caught.value)
        assert caught.value.path == "['a'][1]['b']"


PATHS: list[tuple[Any, str]] = [
    ({1: {"x": object()}}, "[1]['x']"),
    ({object(): 1}, "[key of type object]"),
    ({(1, object()): 1}, "[key of type tuple][1]"),
    ({"a" * 41: object()}, "[key of type str]"),
    ({"a\n": object()}, "[key of type str]"),
    ((1, [object()]), "[1][0]"),
    ({1, object()}, "{…}"),
    (Point([object()], 1), "Point.x[0]"),  # type: ignore[arg-type]
    (Record("A", {"f": object()}), ".f"),
]


@pytest.mark.parametrize(("value", "path"), PATHS, ids=[path for _, path in PATHS])
def test_the_path_leads_to_the_part_at_fault(value: object, path: str) -> None:
    """Fields, entries and short keys are named; unusual keys are payload and are not shown."""
    with pytest.raises(EncodeError) as caught:
        CODECS[0].encode(value)
    assert caught.value.path == path.removeprefix("Point")


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_value_that_contains_itself_is_refused(codec: Codec) -> None:
    """A list, a dict and an object that contain themselves, each also many times over."""
    loop: list[Any] = []
    loop.extend([loop] * 5)
    ring: dict[Any, Any] = {}
    ring.update({1: ring, "a": (ring,)})
    point = Point(1, 1)
    object.__setattr__(point, "x", [point])
    for value in (loop, ring, point):
        with pytest.raises(ValueTooLarge, match="nests deeper than 200 levels; does it contain itself"):
            codec.encode(value)


def test_a_long_path_is_cut_in_the_middle() -> None:
    """An error text stays readable however deep the fault is."""
    value: object = object()
    for _ in range(100):
        value = [value]
    with pytest.raises(EncodeError) as caught:
        CODECS[0].encode(value)
    assert caught.value.path == "[0]" * 12 + "…" + "[0]" * 4


def test_no_payload_in_messages() -> None:
    """An error names types and places, never a value."""
    with pytest.raises(EncodeError) as caught:
        CODECS[0].encode(["secret", Text("secret"), {"k": "secret"}])
    assert "secret" not in str(caught.value)
