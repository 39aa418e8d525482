"""Limits hold on the way in and on the way out, before memory is taken."""

from __future__ import annotations

import inspect
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

from stepwell.codec import Codec, JsonCodec, MsgpackCodec, check_encodable, digest
from stepwell.errors import CodecError, CorruptValue, EncodeError, OptionError, ValueTooLarge
from stepwell.types import Limits

from .sealed import seal
from .shapes import Node

BOTH: list[Callable[[Limits], Codec]] = [JsonCodec, MsgpackCodec]
both = pytest.mark.parametrize("make", BOTH, ids=["json", "msgpack"])


def nested(depth: int, wrap: Callable[[Any], Any], core: Any = None) -> Any:
    for _ in range(depth):
        core = wrap(core)
    return core


@dataclass(frozen=True)
class Link:
    """A record that may stand in sets and as a key."""

    next: object


WRAPS: dict[str, Callable[[Any], Any]] = {
    "list": lambda inner: [inner],
    "dict": lambda inner: {"a": inner},
    "tuple": lambda inner: (inner,),
    "pairs": lambda inner: {1: inner},
    "frozenset": lambda inner: frozenset({inner}),
    "record": Link,
}


@both
@pytest.mark.parametrize("kind", WRAPS)
def test_depth_is_bounded_to_the_level(make: Callable[[Limits], Codec], kind: str) -> None:
    """The deepest value allowed comes back, whatever its kinds; one level more is refused."""
    codec = make(Limits())
    deepest = nested(200, WRAPS[kind], Decimal(1))
    assert codec.encode(codec.decode(codec.encode(deepest))) == codec.encode(deepest)
    with pytest.raises(ValueTooLarge, match="nests deeper than 200 levels"):
        codec.encode(nested(201, WRAPS[kind], 1))


@both
def test_the_deepest_typed_value_is_read(make: Callable[[Limits], Codec]) -> None:
    """A linked list of objects may be as deep as any other value, and is read as its class."""
    codec = make(Limits())
    head: Node | None = None
    for n in range(199):
        head = Node(n, head)
    read = codec.decode(codec.encode(head), Node | None)
    assert codec.encode(read) == codec.encode(head)


@both
def test_endless_nesting_is_an_error_of_the_codec(make: Callable[[Limits], Codec]) -> None:
    """A value nested a hundred thousand times gives no RecursionError."""
    with pytest.raises(EncodeError):
        make(Limits()).encode(nested(100_000, lambda inner: [inner]))
    with pytest.raises(EncodeError):
        check_encodable(nested(100_000, lambda inner: (inner,)))


@both
@pytest.mark.parametrize("left", range(15, 120, 7))
def test_a_full_stack_is_an_error_of_the_codec(make: Callable[[Limits], Codec], left: int) -> None:
    """Where the caller has used up the stack, encode and decode fail as they always fail."""
    codec = make(Limits())
    values = [nested(150, wrap) for wrap in WRAPS.values()]
    stored = [codec.encode(value) for value in values]
    results: list[str] = []

    def deep(calls: int) -> None:
        if calls:
            return deep(calls - 1)
        for value, data in zip(values, stored, strict=True):
            results.append(outcome(lambda: codec.encode(value)))  # noqa: B023 - called at once
            results.append(outcome(lambda: codec.decode(data)))  # noqa: B023 - called at once
        return None

    deep(sys.getrecursionlimit() - len(inspect.stack(0)) - left - 20)
    assert {"codec error"} <= set(results) <= {"codec error", "done"}


def outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except CodecError:
        return "codec error"
    return "done"


@both
@pytest.mark.parametrize("depth", [202, 500, 1000, 5000, 200_000])
def test_deep_bytes_are_refused(make: Callable[[Limits], Codec], depth: int) -> None:
    """Stored bytes that nest deeper than a value may are damage, at any depth, plain or not."""
    codec = make(Limits())
    payload = b"[" * depth + b"]" * depth if codec.id == 1 else b"\x91" * depth + b"\xc0"
    for flags in (0, 1):
        with pytest.raises(CorruptValue):
            codec.decode(seal(codec, payload, flags))


@both
def test_entries_are_bounded(make: Callable[[Limits], Codec]) -> None:
    """A container has at most `keys` entries, in plain and in tagged values, in and out."""
    codec, wide = make(Limits(keys=100)), make(Limits())
    for fits, over in [
        ([0] * 100, [0] * 101),
        ((0,) * 100, (0,) * 101),
        (dict.fromkeys(map(str, range(100))), dict.fromkeys(map(str, range(101)))),
        (dict.fromkeys(range(100)), dict.fromkeys(range(101))),
        (set(range(100)), set(range(101))),
    ]:
        assert codec.decode(codec.encode([fits])) == [fits]
        with pytest.raises(ValueTooLarge, match="a container of 101 entries is over the limit of 100"):
            codec.encode([over])
    with pytest.raises(CorruptValue, match="over the limit of 100 entries"):
        codec.decode(wide.encode([0] * 150))


@both
def test_size_is_bounded(make: Callable[[Limits], Codec]) -> None:
    """The whole envelope is at most `value_bytes` long."""
    codec, wide = make(Limits(value_bytes=1000)), make(Limits())
    overhead = len(codec.encode("x" * 300)) - 300
    assert len(codec.encode("x" * (1000 - overhead))) == 1000
    for value in (
        "x" * (1001 - overhead),
        ["x" * 600] * 2,
        ("x" * 600,) * 2,
        list(range(900)),
        "\0" * 999,
        b"x" * 1000,
    ):
        with pytest.raises(ValueTooLarge, match="takes more than 1000 bytes"):
            codec.encode(value)
        with pytest.raises(ValueTooLarge, match="takes more than 1000 bytes"):
            codec.encode({"a": (1, value)})
    with pytest.raises(CorruptValue, match="over the limit of 1000"):
        codec.decode(wide.encode("x" * 2000))


@both
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "tagged"])
def test_what_is_small_in_memory_but_huge_in_text_is_refused_first(
    make: Callable[[Limits], Codec], plain: bool
) -> None:
    """One list met ten to the ninth times, one str met ten thousand times: refused without being written."""
    codec = make(Limits(value_bytes=50_000))
    laughs: Any = [1] if plain else (1,)
    for _ in range(9):
        laughs = [laughs] * 10
    tracemalloc.start()
    try:
        for value in (laughs, ["x" * 40_000] * 10_000, {str(n): (n,) for n in range(1000)} | {"z": laughs}):
            with pytest.raises(ValueTooLarge):
                codec.encode(value)
            with pytest.raises(ValueTooLarge):
                digest(codec, value)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000


@both
def test_ints_are_bounded_by_decimal_digits(make: Callable[[Limits], Codec]) -> None:
    """The limit is exact, both ways, and also holds for stored bytes."""
    codec, narrow = make(Limits()), make(Limits(int_digits=100))
    for n in (10**10_000 - 1, -(10**10_000) + 1):
        assert codec.decode(codec.encode(n)) == n
    for n in (10**10_000, -(10**10_000), 1 << 10_000_000):
        with pytest.raises(ValueTooLarge, match="over the limit of 10000"):
            codec.encode([n])
    for n in (10**100, 10**9_999):
        with pytest.raises(CorruptValue, match="over the limit of 100"):
            narrow.decode(codec.encode([n]))


@pytest.mark.parametrize(
    "payload",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x05",
        b"\xdd\x00\x0f\xff\xff" * 150,
        b"\xdc\xff\xff" * 300,
        b"\xde\xff\xff\xa1a" * 150,
    ],
)
def test_length_bombs_take_no_memory(payload: bytes) -> None:
    """A few bytes that announce gigabytes are damage, found before the memory is taken."""
    codec = MsgpackCodec()
    tracemalloc.start()
    try:
        with pytest.raises(CorruptValue):
            codec.decode(seal(codec, payload, 1))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000


@both
@pytest.mark.parametrize("depth", [0, 241])
def test_a_depth_that_a_format_cannot_write_is_refused(make: Callable[[Limits], Codec], depth: int) -> None:
    """The codec says at once which depths it takes."""
    with pytest.raises(OptionError, match="codecs take 1 to 240"):
        make(Limits(depth=depth))


@both
def test_the_greatest_depth_can_be_written(make: Callable[[Limits], Codec]) -> None:
    """At the greatest depth that a codec takes, a tagged leaf still fits the format."""
    codec = make(Limits(depth=240))
    value = nested(240, lambda inner: [inner], Decimal(1))
    assert codec.decode(codec.encode(value)) == value
