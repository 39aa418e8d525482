"""Values rewritten for the other codec: nothing is lost, and no type need be known."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.codec import Codec, JsonCodec, MsgpackCodec
from stepwell.codec.transcode import transcoder
from stepwell.errors import CodecError, CorruptValue, UnknownFormat, ValueTooLarge
from stepwell.types import Limits

from .sealed import seal
from .shapes import MANY, ORDER, Order
from .strategies import VALUES, same, typed_values
from .test_roundtrip import EDGES

JSON, MSGPACK = JsonCodec(), MsgpackCodec()
TO_JSON, TO_MSGPACK = transcoder(MSGPACK.id, JSON), transcoder(JSON.id, MSGPACK)

ways = pytest.mark.parametrize(
    ("source", "target"), [(JSON, MSGPACK), (MSGPACK, JSON)], ids=["json-msgpack", "msgpack-json"]
)


@ways
@settings(max_examples=200, deadline=None)
@given(pair=typed_values())
def test_a_rewritten_value_is_the_value(source: Codec, target: Codec, pair: tuple[Any, Any]) -> None:
    """Law: what is read under the declared type from the rewritten bytes is what was stored."""
    declared, value = pair
    moved = transcoder(source.id, target)(source.encode(value))
    assert same(target.decode(moved, declared), value)


@settings(max_examples=200, deadline=None)
@given(pair=typed_values())
def test_the_bytes_are_the_other_codecs_own(pair: tuple[Any, Any]) -> None:
    """Law: rewriting gives what the other codec writes of the same value; so there and back changes nothing."""
    declared, value = pair
    json = JSON.encode(value)
    msgpack = MSGPACK.encode(JSON.decode(json, declared))  # the value with the one NaN that JSON knows
    assert TO_JSON(MSGPACK.encode(value)) == json
    assert TO_MSGPACK(json) == msgpack
    assert TO_JSON(msgpack) == json


@settings(max_examples=100, deadline=None)
@given(value=VALUES)
def test_undeclared_values_are_rewritten_too(value: object) -> None:
    """Law: the same holds where no type was ever declared."""
    json = JSON.encode(value)
    assert TO_JSON(MSGPACK.encode(value)) == json
    assert TO_JSON(TO_MSGPACK(json)) == json


@pytest.mark.parametrize("value", [*EDGES, ORDER, MANY], ids=lambda value: type(value).__name__)
def test_edge_values_are_rewritten(value: object) -> None:
    """Every awkward value of the builtin kinds, alone and inside others."""
    for whole in (value, [value], {"k": value}, (value, value), {"a": [1, {"b": value}]}):
        assert TO_JSON(MSGPACK.encode(whole)) == JSON.encode(whole)
        assert TO_JSON(TO_MSGPACK(JSON.encode(whole))) == JSON.encode(whole)


@dataclasses.dataclass(frozen=True, eq=False)
class Ticket:
    """Two tickets of one number are two."""

    number: int


@ways
def test_entries_that_only_identity_tells_apart_stay_two(source: Codec, target: Codec) -> None:
    """Values are not made on the way, so a set cannot lose entries that would be equal as records."""
    value = {Ticket(1), Ticket(1)}
    moved = transcoder(source.id, target)(source.encode(value))
    read: Any = target.decode(moved, set[Ticket])
    assert [ticket.number for ticket in read] == [1, 1]


def test_a_time_zone_need_not_be_known_here() -> None:
    """Its key is passed on."""
    stored = seal(JSON, b'["!datetime","2024-01-01T00:00:00",0,"Mars/Olympus"]')
    assert TO_JSON(TO_MSGPACK(stored)) == stored


def test_the_same_codec_changes_nothing() -> None:
    """Its values are checked and passed on as they are."""
    stored = JSON.encode(ORDER)
    same_again = transcoder(JSON.id, JSON)
    assert same_again(stored) is stored
    with pytest.raises(CorruptValue):
        same_again(stored[:-1])


@ways
@settings(max_examples=150, deadline=None)
@given(value=VALUES, data=st.data())
def test_damage_is_refused(source: Codec, target: Codec, value: object, data: st.DataObject) -> None:
    """Law: cut or flipped bytes are refused with an error of the codec."""
    stored = bytearray(source.encode(value))
    at = data.draw(st.integers(0, len(stored) - 1))
    cut = bytes(stored[:at])
    stored[at] ^= data.draw(st.integers(1, 255))
    for damaged in (cut, bytes(stored)):
        with pytest.raises(CodecError):
            transcoder(source.id, target)(damaged)


@settings(max_examples=300, deadline=None)
@given(payload=st.binary(max_size=30))
def test_a_payload_of_any_bytes_is_rewritten_or_refused(payload: bytes) -> None:
    """Law: with a right checksum before them, no bytes raise anything else than an error of the codec."""
    try:
        moved = TO_JSON(seal(MSGPACK, payload))
    except CodecError:
        return
    assert TO_JSON(TO_MSGPACK(moved)) == moved


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (b'["!new",1]', UnknownFormat),
        (b'["!bytes","?"]', CorruptValue),
        (b'["!bytes"]', CorruptValue),
        (b'["!str",1]', CorruptValue),
        (b'["!float","x"]', CorruptValue),
        (b'["!int","-"]', CorruptValue),
        (b'["!int","' + b"f" * 20_000 + b'"]', ValueTooLarge),
        (b"[" * 300 + b"]" * 300, CorruptValue),
    ],
    ids=["tag", "base64", "empty", "str", "float", "int", "digits", "depth"],
)
def test_what_no_codec_wrote_is_refused(payload: bytes, error: type[CodecError]) -> None:
    """Unknown tags and malformed leaves are named."""
    with pytest.raises(error):
        TO_MSGPACK(seal(JSON, payload))


def test_what_outgrows_the_other_codecs_limit_is_refused() -> None:
    """Base64 takes a third more; a value that fits as MessagePack may not fit as JSON."""
    small = JsonCodec(Limits(value_bytes=1_000))
    stored = MSGPACK.encode(b"x" * 900)
    with pytest.raises(ValueTooLarge, match="1000"):
        transcoder(MSGPACK.id, small)(stored)
    with pytest.raises(ValueTooLarge, match="1000"):
        transcoder(JSON.id, small)(JSON.encode("x" * 1_000))


def test_a_codec_that_is_not_known_is_refused_by_name() -> None:
    """Between others there is no way but their own."""
    with pytest.raises(UnknownFormat, match="codec 9"):
        transcoder(9, JSON)


class Foreign:
    """A codec of somebody else's."""

    name, id, limits = "foreign", 9, Limits()
    encode = decoder = decode = None


def test_values_of_a_foreign_codec_stay_as_they_are() -> None:
    """They may move between stores of that codec, and to no other."""
    foreign: Any = Foreign()
    assert transcoder(9, foreign)(b"anything") == b"anything"
    with pytest.raises(UnknownFormat, match="Foreign"):
        transcoder(1, foreign)


def test_the_declared_type_decides_after_the_move_as_before() -> None:
    """An order is an order again."""
    assert MSGPACK.decode(TO_MSGPACK(JSON.encode(ORDER)), Order) == ORDER
