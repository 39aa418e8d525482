"""Damaged, foreign and hostile bytes: always an error of the DecodeError family, never anything else."""
# ruff: noqa: E501 - tables read best with one case a line

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.codec import Codec, JsonCodec, MsgpackCodec, Record, codec_of
from stepwell.errors import CorruptValue, DecodeError, UnknownFormat

from .sealed import seal
from .shapes import MANY, ORDER, Address, Box, Colour, Many, Money, Movie, Order, Pair, Permission, User
from .strategies import VALUES

CODECS: list[Codec] = [JsonCodec(), MsgpackCodec()]
both = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)

DECLARED: list[Any] = [
    Any, int, str, bytes, Decimal, UUID, dt.datetime, list[int], tuple[int, str], tuple[int, ...], set[str], dict[str, int],
    dict[int, Any], Order, Many, User, Money, Address, Pair, Movie, Colour, Permission, Box[int], Order | Many | list[Pair] | None,
]  # fmt: skip
BUILTINS = (type(None), bool, int, float, str, bytes, bytearray, complex, list, tuple, set, frozenset, dict, dt.datetime,
            dt.date, dt.time, dt.timedelta, Decimal, UUID, Record)  # fmt: skip

TAGS = [
    "!list", "!tuple", "!set", "!frozenset", "!dict", "!str", "!int", "!float", "!complex", "!bytes", "!bytearray",
    "!datetime", "!date", "!time", "!timedelta", "!decimal", "!uuid", "!", "!later",
]  # fmt: skip


def read_all(codec: Codec, data: bytes) -> None:
    """Read as every declared type; only values, or errors of the family, may come out."""
    for declared in DECLARED:
        try:
            value = codec.decode(data, declared)
        except DecodeError:
            continue
        assert declared is not Any or isinstance(value, BUILTINS)


@both
@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=60))
def test_random_bytes(codec: Codec, data: bytes) -> None:
    """Law: bytes that nobody wrote are damage."""
    with pytest.raises(DecodeError):
        codec.decode(data)


@both
@settings(max_examples=200, deadline=None)
@given(payload=st.binary(max_size=40), flags=st.integers(0, 1))
def test_random_payloads(codec: Codec, payload: bytes, flags: int) -> None:
    """Law: a payload that nobody wrote is read or refused, behind a valid checksum too."""
    read_all(codec, seal(codec, payload, flags))


SHREDS = st.recursive(
    st.sampled_from(TAGS) | st.sampled_from(["!type", "Order", "RED", "2024-01-01", "1", "nan", "QQ==", "-f"]) | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False) | st.none() | st.text(st.characters(codec="utf-8"), max_size=3),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["!type", "name", "value", "id", "items", "model_fields_set", "x"]), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@both
@settings(max_examples=300, deadline=None)
@given(tree=SHREDS)
def test_random_trees_of_tags(codec: Codec, tree: object) -> None:
    """Law: trees made of tags in the wrong places are read or refused."""
    write: Callable[[object], bytes] = (lambda t: json.dumps(t).encode()) if codec.id == 1 else msgspec.msgpack.encode
    read_all(codec, seal(codec, write(tree)))


@both
@settings(max_examples=150, deadline=None)
@given(value=VALUES | st.sampled_from([ORDER, MANY]), data=st.data())
def test_mutated_envelopes(codec: Codec, value: object, data: st.DataObject) -> None:
    """Law: a changed byte is noticed, and with the checksum mended it does no harm."""
    stored = bytearray(codec.encode(value))
    place = data.draw(st.integers(0, len(stored) - 1))
    stored[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DecodeError):
        codec.decode(bytes(stored))
    read_all(codec, seal(codec, bytes(stored[9:]), stored[4] & 1))


@both
@settings(max_examples=50, deadline=None)
@given(value=VALUES, data=st.data())
def test_cut_envelopes(codec: Codec, value: object, data: st.DataObject) -> None:
    """Law: what was cut off at any place is noticed."""
    stored = codec.encode(value)
    with pytest.raises(CorruptValue):
        codec.decode(stored[: data.draw(st.integers(0, len(stored) - 1))])


MALFORMED: list[tuple[Any, str]] = [
    (["!tuple", ["!int"]], "found a malformed int; the stored bytes are damaged (at [0])"),
    (["!int", "zz"], "found a malformed int"),
    (["!int", "_1"], "found a malformed int"),
    (["!float", "x"], "found a malformed float"),
    (["!float", 1], "found a malformed float"),
    (["!complex", "1"], "found a malformed complex"),
    (["!decimal", "x"], "found a malformed decimal"),
    (["!uuid", "x"], "found a malformed uuid"),
    (["!bytes", 1], "found a malformed bytes"),
    (["!str", "gICA"], "found a malformed str"),
    (["!date", "2024-13-01"], "found a malformed date"),
    (["!datetime", "2024-01-01", 2], "found a malformed datetime"),
    (["!datetime", "2024-01-01", 0, "a", "b"], "found a malformed datetime"),
    (["!datetime"], "found a malformed datetime"),
    (["!time", "25:00"], "found a malformed time"),
    (["!timedelta", 1, 2], "found a malformed timedelta"),
    (["!timedelta", 10**10, 0, 0], "found a malformed timedelta"),
    (["!dict", 1], "found a dict with a key but no value"),
    (["!dict", [], 1], "found a dict key that cannot be hashed"),
    (["!set", []], "found an entry of a set that cannot be hashed"),
    ({"!type": 1}, "found an object without the name of its type"),
    ({"a": {"!type": "A", "f": [1, ["!uuid", 1]]}}, "found a malformed uuid; the stored bytes are damaged (at ['a'].f[1])"),
    (["!dict", "k", ["!uuid", 1]], "damaged (at ['k'])"),
]  # fmt: skip


@both
@pytest.mark.parametrize(("tree", "message"), MALFORMED, ids=[message[:40] for _, message in MALFORMED])
def test_a_malformed_tag_is_damage(codec: Codec, tree: object, message: str) -> None:
    """Each tag checks what stands behind it, and the error says where."""
    payload = json.dumps(tree).encode() if codec.id == 1 else msgspec.msgpack.encode(tree)
    with pytest.raises(CorruptValue) as caught:
        codec.decode(seal(codec, payload))
    assert message in str(caught.value)


@both
def test_a_tag_of_a_later_version_is_named(codec: Codec) -> None:
    """An unknown tag is no damage but a newer writer."""
    payload = b'["!fraction",1,2]' if codec.id == 1 else msgspec.msgpack.encode(["!fraction", 1, 2])
    with pytest.raises(UnknownFormat, match="holds the tag '!fraction', which this stepwell does not know"):
        codec.decode(seal(codec, payload))


@both
@pytest.mark.parametrize(
    "key", ["Nowhere/City", "../../etc/passwd", "/etc/passwd", "", "Europe", "a\0b", "tzdata.zoneinfo"]
)
def test_a_time_zone_is_looked_up_by_key_only(codec: Codec, key: str) -> None:
    """A zone that is not here, or a key that is a path or a module, is an error."""
    tree = ["!datetime", "2024-01-01T00:00:00", 0, key]
    payload = json.dumps(tree).encode() if codec.id == 1 else msgspec.msgpack.encode(tree)
    with pytest.raises(DecodeError, match="time zone is not known here"):
        codec.decode(seal(codec, payload))


@both
def test_extension_types_are_damage(codec: Codec) -> None:
    """MessagePack extensions are never written, so they are never read."""
    with pytest.raises(CorruptValue):
        codec.decode(seal(codec, b"\xd4\x05a", 1))


# --- the header --------------------------------------------------------------------------------------------


def test_another_codec_is_refused_by_name() -> None:
    """The error says who wrote the value and how to read it."""
    with pytest.raises(
        UnknownFormat, match=r"written by MsgpackCodec and is read with JsonCodec; .* codec=MsgpackCodec\(\)"
    ):
        CODECS[0].decode(CODECS[1].encode(1))
    with pytest.raises(UnknownFormat, match="written by JsonCodec and is read with MsgpackCodec"):
        CODECS[1].decode(CODECS[0].encode(1), int)


@both
def test_an_unknown_header_is_refused_by_name(codec: Codec) -> None:
    """A newer version, an unknown codec and unknown flags are told apart."""
    for data, message in [
        (seal(codec, b"1", version=2), "written in format version 2, this stepwell reads version 1"),
        (seal(codec, b"1", codec_id=9), "written by codec 9, which this stepwell does not know"),
        (seal(codec, b"1", flags=2), "flags 0x02, which this stepwell does not know"),
    ]:
        with pytest.raises(UnknownFormat, match=message):
            codec.decode(data)


@both
def test_what_is_no_envelope_is_damage(codec: Codec) -> None:
    """Empty, short and foreign bytes."""
    for data in (b"", b"\xf5", b"\xf5W\x01", b'{"a": 1} and more', b"\0" * 20):
        with pytest.raises(CorruptValue, match="not a stepwell value"):
            codec.decode(data)
        with pytest.raises(CorruptValue, match="not a stepwell value"):
            codec_of(data)


@both
def test_a_wrong_checksum_is_damage(codec: Codec) -> None:
    """The checksum covers the flags and the payload."""
    good = codec.encode({"a": 1})
    for data in (good[:-1] + b"\0", good[:4] + b"\0" + good[5:], good + b" "):
        with pytest.raises(CorruptValue, match="its checksum does not match"):
            codec.decode(data)


def test_the_codec_of_an_unknown_codec_is_its_number() -> None:
    """codec_of reads the number also where the codec is not known; a newer version it refuses."""
    assert codec_of(seal(CODECS[0], b"", codec_id=77)) == 77
    with pytest.raises(UnknownFormat, match="format version 9"):
        codec_of(seal(CODECS[0], b"", version=9))
