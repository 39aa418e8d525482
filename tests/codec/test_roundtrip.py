"""What is stored comes back equal and of the same type, through both codecs."""
# ruff: noqa: E501 - tables read best with one case a line

from __future__ import annotations

import copy
import datetime as dt
import pickle
import sys
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings

from stepwell.codec import Codec, JsonCodec, MsgpackCodec, Record, check_encodable, digest
from stepwell.types import Limits

from .shapes import MANY, ORDER, Colour, Many, Order, Point
from .strategies import VALUES, same, typed_values

CODECS: list[Codec] = [JsonCodec(), MsgpackCodec()]
both = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)

EDGES: list[Any] = [
    2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**9_999, -(10**9_999),
    float("nan"), float("inf"), float("-inf"), -0.0, 5e-324, 1.7976931348623157e308, 1e22,
    "", "\0", "\ud800", "\udfff\ud800", "é\ud800", "\U0010ffff", "null", "!tuple", "!", b"", b"\xff\0", bytearray(b"\x80"),
    [], [[]], ["!list"], ["!tuple", 1], ["!", []], ["!unknown"], [["!tuple"]], [None, True, 1, 1.5],
    (), ((),), ("!tuple",), set(), {1, "1", (1,), None}, frozenset({frozenset()}), {float("nan")},
    {}, {"": 0}, {"!type": "Order"}, {"!type": 1, "a": (1,)}, {"!tuple": [1]}, {"\ud800": 1, "a": [2]},
    {1: 2}, {True: 1, "True": 2}, {None: 1}, {(1, (2,)): {3: 4}}, {1.5: 1, "1.5": 2}, {b"k": 1}, {"b": 1, "a": 2},
    [["Content-Type", "text/html"]], [["rows", [49, 50]]], {"_loop": "again"},
    dt.datetime.min, dt.datetime.max, dt.datetime(2024, 1, 1, tzinfo=dt.UTC),
    dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")), dt.datetime(2024, 1, 1, fold=1),
    dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30), "IST")),
    dt.datetime(2024, 1, 1, tzinfo=dt.timezone(-dt.timedelta(seconds=1))),
    dt.time(1, 2, 3, 4, tzinfo=dt.UTC, fold=1), dt.time(1, tzinfo=ZoneInfo("UTC")), dt.date.min,
    dt.timedelta.min, dt.timedelta.max, dt.timedelta(microseconds=-1),
    Decimal("1.50"), Decimal("-0"), Decimal("NaN123"), Decimal("sNaN"), Decimal("-Infinity"), Decimal("1E+999999"),
    complex(-0.0, float("nan")),
]  # fmt: skip


@both
@pytest.mark.parametrize("value", EDGES, ids=lambda value: type(value).__name__)
def test_edge_values_come_back_exactly(codec: Codec, value: object) -> None:
    """Every awkward value of the builtin kinds round-trips, alone and inside a list, dict and tuple."""
    for whole in (value, [value], {"k": value}, (value, value), {"a": [1, {"b": value}]}):
        assert same(codec.decode(codec.encode(whole)), whole)


@both
@settings(max_examples=150, deadline=None)
@given(value=VALUES)
def test_undeclared_values_come_back_exactly(codec: Codec, value: object) -> None:
    """Law: decode(encode(x)) is x, without any declared type."""
    assert same(codec.decode(codec.encode(value)), value)


@settings(max_examples=100, deadline=None)
@given(value=VALUES)
def test_the_codecs_agree(value: object) -> None:
    """Law: both codecs give the same value, of the same types, and the same digest."""
    read = [codec.decode(codec.encode(value)) for codec in CODECS]
    assert same(*read)
    assert digest(CODECS[0], value) == digest(CODECS[1], read[0])


@both
@settings(max_examples=150, deadline=None)
@given(pair=typed_values())
def test_declared_values_come_back_exactly(codec: Codec, pair: tuple[Any, Any]) -> None:
    """Law: a value of a declared type is read as that type, exactly."""
    declared, value = pair
    assert same(codec.decode(codec.encode(value), declared), value)


@both
@settings(max_examples=75, deadline=None)
@given(pair=typed_values())
def test_what_is_read_untyped_encodes_to_the_same_bytes(codec: Codec, pair: tuple[Any, Any]) -> None:
    """Law: a reader that knows no types passes values on unchanged, records included."""
    stored = codec.encode(pair[1])
    assert codec.encode(codec.decode(stored)) == stored


@both
@settings(max_examples=75, deadline=None)
@given(value=VALUES)
def test_encoding_depends_on_the_value_alone(codec: Codec, value: object) -> None:
    """Law: a fresh codec and a copy of the value give the same bytes."""
    assert codec.encode(copy.deepcopy(value)) == type(codec)(Limits()).encode(value) == codec.encode(value)  # type: ignore[call-arg]


@both
def test_sets_are_stored_in_one_order(codec: Codec) -> None:
    """The bytes of a set do not tell in which order it was filled."""
    one, other = {0, 8, 16, 24}, {24, 16, 8, 0}
    words = [f"word {n}" for n in range(50)]
    assert codec.encode(one) == codec.encode(other)
    assert codec.encode(set(words)) == codec.encode({*words[25:], *words[:25]})


@both
def test_ints_ignore_the_digit_limit_of_python(codec: Codec) -> None:
    """Neither way converts an int to decimal text, so sys.set_int_max_str_digits does not matter."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        value = 7**10_000
        assert codec.decode(codec.encode({"n": value}), dict[str, int]) == {"n": value}
    finally:
        sys.set_int_max_str_digits(before)


@both
def test_a_time_zone_keeps_its_key_and_its_name(codec: Codec) -> None:
    """A ZoneInfo comes back by its key, a named offset with its name."""
    berlin = dt.datetime(2024, 7, 1, tzinfo=ZoneInfo("Europe/Berlin"))
    named = dt.datetime(2024, 7, 1, tzinfo=dt.timezone(dt.timedelta(hours=1), "X"))
    read_berlin, read_named = codec.decode(codec.encode([berlin, named]), list[dt.datetime])  # type: ignore[misc]
    assert read_berlin.tzinfo is berlin.tzinfo
    assert read_named.tzname() == "X"


@both
def test_objects_come_back_as_their_class(codec: Codec) -> None:
    """An object with objects of many kinds inside is made again by its declared type."""
    assert codec.decode(codec.encode(ORDER), Order) == ORDER
    assert codec.decode(codec.encode(MANY), Many) == MANY
    assert codec.decode(codec.encode([ORDER] * 3), list[Order]) == [ORDER] * 3


@both
def test_an_undeclared_object_is_a_record(codec: Codec) -> None:
    """Without a declared type an object is read as marked, read-only data; no class is looked up."""
    read = codec.decode(codec.encode({"o": Point(1.0, 2.0), "c": Colour.RED}))
    assert read == {"o": Record("Point", {"x": 1.0, "y": 2.0}), "c": Record("Colour", {"name": "RED", "value": 1})}


def test_a_record_is_read_only_and_can_be_copied() -> None:
    """A Record takes no new field, hashes, copies and pickles."""
    record = Record("Point", {"x": [1], "y": 2})
    with pytest.raises(TypeError):
        record.fields["x"] = 2  # type: ignore[index]
    with pytest.raises(AttributeError):
        record.type_name = "Other"  # type: ignore[misc]
    assert record["y"] == 2
    assert list(record) == ["x", "y"]
    assert repr(record) == "Record Point(x=[1], y=2)"
    assert hash(record) == hash(copy.deepcopy(record))
    assert pickle.loads(pickle.dumps(record)) == record != Record("Point", {"x": [1]})  # noqa: S301 - what was pickled one call before


@both
def test_a_record_becomes_an_object_where_the_class_is_declared(codec: Codec) -> None:
    """A record that travelled through code without types is read as its class at last."""
    passed_on = codec.encode(codec.decode(codec.encode(ORDER)))
    assert codec.decode(passed_on, Order) == ORDER


@both
def test_values_read_share_nothing(codec: Codec) -> None:
    """Two reads of one envelope give two values; changing one leaves the other."""
    stored = codec.encode({"a": [1]})
    first, second = codec.decode(stored), codec.decode(stored)
    first["a"].append(2)  # type: ignore[index]
    assert second == {"a": [1]}


@settings(max_examples=75, deadline=None)
@given(value=VALUES)
def test_the_digest_ignores_the_order_of_dicts(value: object) -> None:
    """Law: a dict filled the other way round has the same digest, at any depth."""
    assert digest(CODECS[0], [{"a": value, "b": 1}, {1: value, 2: 0}]) == digest(
        CODECS[0], [{"b": 1, "a": value}, {2: 0, 1: value}]
    )


def test_the_digest_tells_values_apart() -> None:
    """Values that are not the same have other digests, even if Python calls them equal."""
    values: list[object] = [
        1,
        1.0,
        True,
        "1",
        [1],
        (1,),
        {1},
        {1: 1},
        {"1": 1},
        None,
        b"1",
        Point(1, 1),
        [1, 2],
        [2, 1],
    ]
    digests = {digest(CODECS[0], value) for value in values}
    assert len(digests) == len(values)
    assert {len(found) for found in digests} == {16}


def test_the_digest_is_the_same_in_every_release() -> None:
    """Digests are stored and compared with later ones."""
    assert digest(CODECS[1], {"b": (1, 2.5), "a": {None: "x"}, "c": ORDER}).hex() == "5349725bf3441739767c141ac605cea9"


def test_what_can_be_stored_passes_the_check() -> None:
    """check_encodable accepts what encode accepts."""
    for value in (*EDGES, ORDER, MANY):
        check_encodable(value)
