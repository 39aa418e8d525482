"""The stored format, byte for byte. A change here needs a new format version and a reader for the old one."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from stepwell.codec import Codec, JsonCodec, MsgpackCodec, Record, codec_of

from .shapes import Address, Box, Colour, Doubling, Item, Level, Money, Mood, Open, Pair, Permission, Point, User
from .strategies import same

GOLDEN = Path(__file__).parent.parent / "golden" / "codec"

VALUES: dict[str, Any] = {
    "none": None, "true": True, "false": False,
    "int": -42, "int_63": 2**63, "int_64": 2**64, "int_negative": -(2**64), "int_100": 10**100,
    "float": 1.5, "float_small": 5e-324, "float_zero": -0.0, "nan": float("nan"), "inf": float("inf"),
    "minus_inf": float("-inf"), "complex": complex(1.5, -0.0),
    "str": "héllo\0", "str_surrogate": "a\ud800", "str_mark": "!tuple",
    "bytes": b"\x00\xff", "bytearray": bytearray(b"ab"),
    "list": [1, "a", [None, 2.5]], "list_marked": ["!tuple", 1], "tuple": (1, (), ("a",)),
    "set": {3, 1, 2}, "set_mixed": {"b", "a", (1,), None}, "frozenset": frozenset({1}),
    "dict": {"b": 1, "a": {"c": []}}, "dict_marked": {"!type": "x"}, "dict_pairs": {1: "a", None: (1,), ("x", 2): 2.5},
    "dict_surrogate": {"\ud800": 1},
    "datetime": dt.datetime(2024, 2, 29, 12, 30, 15, 123456), "datetime_utc": dt.datetime(2024, 1, 1, tzinfo=dt.UTC),
    "datetime_offset": dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=-5))),
    "datetime_named": dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1), "CET")),
    "datetime_zone": dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
    "datetime_fold": dt.datetime(2024, 1, 1, fold=1), "date": dt.date(2024, 2, 29), "time": dt.time(1, 2, 3, 4),
    "timedelta": dt.timedelta(days=-1, seconds=5, microseconds=7),
    "decimal": Decimal("-1.50E+10"), "decimal_nan": Decimal("sNaN1"), "uuid": UUID(int=0x0123456789ABCDEF),
    "record": Record("Order", {"id": 1, "items": [Record("Item", {"sku": "a"})]}),
}  # fmt: skip

OBJECTS: dict[str, Any] = {
    "dataclass": Item("a", 2, 1.5), "dataclass_slots": Point(1.0, -2.0), "dataclass_generic": Box((1,)),
    "struct": Money(Decimal("9.90")), "struct_hook": Doubling(2), "attrs": Address("Main", "12", ["x"]),
    "pydantic": User(name="Ann", address=Point(1, 2), friends=[User(name="Bob")]), "pydantic_extra": Open(a=1, z=(2,)),
    "namedtuple": Pair(1, "b"), "enum": Colour.RED, "enum_tuple": Colour.PAIR, "enum_int": Level.HIGH,
    "enum_str": Mood.GOOD, "flag": Permission.READ | Permission.WRITE,
}  # fmt: skip


def _golden(codec: Codec) -> dict[str, str]:
    lines = (GOLDEN / f"{codec.name}-v1.txt").read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines if not line.startswith("#"))


def _stored(codec: Codec) -> dict[str, str]:
    return {name: codec.encode(value).hex() for name, value in (VALUES | OBJECTS).items()}


CODECS: list[Codec] = [JsonCodec(), MsgpackCodec()]
both = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)


@both
def test_values_are_written_as_they_always_were(codec: Codec) -> None:
    """Each kind of value has the bytes that are on record for it."""
    assert _stored(codec) == _golden(codec)


@both
def test_recorded_bytes_are_read_as_they_always_were(codec: Codec) -> None:
    """The bytes on record give the values that they were made from."""
    for name, text in _golden(codec).items():
        if name in VALUES:
            assert same(codec.decode(bytes.fromhex(text)), VALUES[name]), name
        else:
            assert codec.decode(bytes.fromhex(text), type(OBJECTS[name])) == OBJECTS[name], name


def test_the_header_is_nine_bytes() -> None:
    """Magic, version, codec, flags, checksum, payload: spelt out once."""
    assert JsonCodec().encode(1) == b"\xf5W" + b"\x01" + b"\x01" + b"\x01" + bytes.fromhex("8f1506fb") + b"1"
    assert MsgpackCodec().encode((1,)) == b"\xf5W\x01\x02\x00" + bytes.fromhex("8e4124d5") + b"\x92\xa6!tuple\x01"


@both
def test_the_codec_is_told_from_the_header(codec: Codec) -> None:
    """codec_of needs no codec."""
    assert codec_of(codec.encode("x")) == codec.id
