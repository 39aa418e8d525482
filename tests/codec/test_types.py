"""Declared types: what each accepts, what it refuses, and how that is said."""
# ruff: noqa: E501, UP006, UP007, UP035, UP045 - tables read best with one case a line; types as users write them

from __future__ import annotations

import collections
import datetime as dt
import typing
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, MutableSequence, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Generic, List, Literal, NewType, Optional, Protocol, Tuple, TypeVar, Union
from uuid import UUID

import pytest

from stepwell.codec import Codec, JsonCodec, MsgpackCodec, Record
from stepwell.errors import DecodeError

from .shapes import (
    Box,
    Colour,
    Doubling,
    IntBox,
    Item,
    Level,
    Money,
    Mood,
    Movie,
    Node,
    Order,
    Pair,
    Permission,
    Point,
    User,
)

CODECS: list[Codec] = [JsonCodec(), MsgpackCodec()]
both = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)

UserId = NewType("UserId", int)
N = TypeVar("N", int, str)
B = TypeVar("B", bound=Point)


class Named(Protocol):
    name: str


@dataclass
class Twice(Generic[N]):
    one: N
    both: list[Box[N]]


FITS: list[tuple[Any, Any]] = [
    (1, int), (True, int), (2**70, int), (1, float), (True, float), (1.5, float), (float("nan"), float), (1, complex),
    (1j, complex), (True, bool), ("a", str), ("\ud800", str), (b"a", bytes), (None, None), (None, type(None)),
    (1, Any), (1, object), (Decimal(1), Decimal), (UUID(int=1), UUID), (dt.datetime(2024, 1, 1), dt.datetime),
    (dt.datetime(2024, 1, 1), dt.date), (dt.time(1), dt.time), (dt.timedelta(1), dt.timedelta),
    ([1], list), ([1], list[int]), ([1], List[int]), (["!x"], list[str]), ([(1,)], list[tuple[int]]), ([2**70], list[int]),
    ((1, "a"), tuple[int, str]), ((1, 2, 3), tuple[int, ...]), ((), tuple[()]), ((), tuple[int, ...]), ((1,), tuple),
    ((1,), Tuple[int]), ((), tuple[()]), ((1, "a"), tuple[int, *tuple[str, ...]]),
    ({1}, set[int]), (frozenset({"a"}), frozenset[str]), ({1}, AbstractSet[int]),
    ({"a": 1}, dict[str, int]), ({1: "a"}, dict[int, str]), ({"a": 1}, Mapping[str, int]), ({"!type": 1}, dict[str, int]),
    ({Colour.RED: Point(1.0, 1.0)}, dict[Colour, Point]), ({None: 1, "a": 2}, dict[str | None, int]), ({}, dict),
    ({"a": 1}, dict[Literal["a", "b"], int]),
    ([1], Sequence[int]), ((1,), Sequence[int]), ("abc", Sequence[str]), (b"abc", Sequence[int]), ([1], MutableSequence[int]),
    ({1: 2}, Iterable[int]), ({1}, Collection[int]), ("abc", Iterable[str]), ([1], Hashable | list[int]),
    (None, Optional[int]), (1, Optional[int]), ("a", int | str), ([1], Union[str, list[int]]), (1, UserId),
    (1, Annotated[int, "unit"]), (1, Annotated[int, []]), (1, N), (Point(1.0, 2.0), B),
    ("a", Literal["a", "b"]), (1, Literal[1, "x"]), (True, Literal[True]), (Colour.RED, Literal[Colour.RED, "x"]),
    (Colour.GREEN, Colour), (Level.LOW, Level), (Mood.BAD, Mood), (Permission(3), Permission), (Permission(0), Permission),
    (Permission.READ, Permission), (Mood.BAD, Mood | str), ("bad", Mood | str),
    (Point(1, 2), Point), (Pair(1, "a"), Pair), (Money(Decimal(1)), Money), (Doubling(3), Doubling),
    (Money(Decimal(1)), Point | Money), ([Point(1, 2), Pair(1)], list[Point | Pair]), ([Point(1, 2)], list[Pair] | list[Point]),
    ([Pair(1), Point(1, 2)], list[Pair] | list[Point | Pair]),
    (Box(Point(1, 2)), Box[Point]), (Box([Box(1)]), Box[list[Box[int]]]), (IntBox(1, "a"), IntBox),
    (Twice(1, [Box(2)]), Twice[int]), (Box(1), Box), (Node(1, Node(2), [Node(3)]), Node),
    ({"title": "x"}, Movie), ({"title": "x", "stars": [Point(1, 2)], "more": (1,)}, Movie),
    (Record("Gone", {"a": 1}), Record), (Record("Gone", {"a": 1}), Any), (User(name="a"), Named | User),
]  # fmt: skip


@both
@pytest.mark.parametrize(("value", "declared"), FITS, ids=lambda found: repr(found)[:40])
def test_a_fitting_value_is_read_unchanged(codec: Codec, value: object, declared: object) -> None:
    """A declared type gives back what was stored: same type, equal, nothing converted."""
    found = codec.decode(codec.encode(value), declared)
    assert type(found) is type(value)
    assert found == value or found != found


MISFITS: list[tuple[Any, Any, str]] = [
    ("1", int, "expected int, found str"),
    (1, str, "expected str, found int"),
    (1.5, int, "expected int, found float"),
    (None, int, "expected int, found None"),
    ((1,), int, "expected int, found tuple"),
    (1, bool, "expected bool, found int"),
    ("1.5", float, "expected float, found str"),
    (bytearray(b"a"), bytes, "expected bytes, found bytearray"),
    ("2024-01-01", dt.date, "expected date, found str"),
    (dt.date(2024, 1, 1), dt.datetime, "expected datetime, found date"),
    (1, None, "expected None, found int"),
    ([1], tuple[int, ...], "expected tuple[int, ...], found list"),
    ((1,), list[int], "expected list[int], found tuple"),
    ({1}, frozenset[int], "expected frozenset[int], found set"),
    ((1,), tuple[int, int], "expected tuple[int, int], found a tuple of 1 entries"),
    ([1, "x"], list[int], "expected int, found str (at [1])"),
    ((1, "x"), tuple[int, int], "expected int, found str (at [1])"),
    ({"items": [1, {"qty": "x"}]}, dict[str, list[int | dict[str, int]]], "expected int, found str (at ['items'][1]['qty'])"),
    ({1: "x"}, dict[int, int], "expected int, found str (at [1])"),
    ({"a": 1}, dict[int, int], "expected int, found str (at ['a'])"),
    ({1: 1}, dict[str, int], "expected str, found int"),
    ({"k" * 50: "x"}, dict[str, int], "expected int, found str (at [key of type str])"),
    ("x", int | bytes, "expected bytes | int, found str"),
    ("c", Literal["a", "b"], "expected Literal['a', 'b'], found str"),
    (True, Literal[1], "expected Literal[1], found bool"),
    (Order(1, [Item("a", 2), Item("b", "x")]), Order, "expected int, found str (at .items[1].qty)"),  # type: ignore[arg-type]
    (Point(1, 2), Order, "expected Order, found Point"),
    ({"x": 1, "y": 2}, Point, "expected Point, found dict"),
    (Point(1, 2), dict, "expected dict[Any, Any], found Point"),
    (Point(1, 2), Movie, "expected Movie, found Point"),
    ({"stars": []}, Movie, "expected Movie, found a dict without the key 'title'"),
    (Point(1, 2), Money | Pair, "expected Money | Pair, found Point"),
    (Colour.RED, Level, "expected Level, found Colour"),
    ("green", Colour, "expected Colour, found str"),
    (1, Level, "expected Level, found int"),
    (Record("Colour", {"name": "BLUE"}), Colour, "the stored member is none of Colour"),
    (Record("Permission", {"value": 64}), Permission, "Permission has no flags 0x40"),
    (Record("Point", {"x": 1.0}), Point, "field 'y' of Point is not stored and has no default"),
    (Record("Point", {"x": 1.0, "y": 1.0, "z": 1.0}), Point, "Point has no field 'z'"),
    ([1], collections.deque, "expected deque, found list"),
    ([1], collections.deque[int], "expected deque[int], found list"),
    (1, Callable[[], int], "expected Callable[[], int], found int"),
    (Box("x"), Box[int], "expected int, found str (at .content)"),
    (IntBox("x"), IntBox, "expected int, found str (at .content)"),  # type: ignore[arg-type]
    ("abc", Sequence[int], "expected Sequence[int], found str"),
]  # fmt: skip


@both
@pytest.mark.parametrize(("value", "declared", "message"), MISFITS, ids=lambda found: repr(found)[:40])
def test_a_misfit_is_refused_by_path_and_types(codec: Codec, value: object, declared: object, message: str) -> None:
    """What does not fit is never converted: the error names both types and the place, and no payload."""
    with pytest.raises(DecodeError) as caught:
        codec.decode(codec.encode(value), declared)
    assert message in str(caught.value)


@both
def test_a_gained_field_takes_its_default(codec: Codec) -> None:
    """A field that the class gained after the value was stored takes its default, in the class's order."""
    old = codec.encode(Record("Order", {"id": 1, "items": []}))
    assert codec.decode(old, Order) == Order(1, [])
    assert list(vars(codec.decode(old, Order))) == ["id", "items", "colour", "note", "placed", "labels"]


@both
def test_fields_may_be_stored_in_another_order(codec: Codec) -> None:
    """Fields are known by name."""
    assert codec.decode(codec.encode(Record("Point", {"y": 1.0, "x": 2.0})), Point) == Point(2.0, 1.0)


@both
def test_decoders_are_compiled_once(codec: Codec) -> None:
    """A decoder is kept by its codec."""
    assert codec.decoder(list[Point]) is codec.decoder(list[Point])


def test_an_unresolved_name_is_refused_at_once() -> None:
    """A type that cannot be resolved is an error when the decoder is made, not when a value arrives."""

    @dataclass
    class Lost:
        thing: Missing  # type: ignore[name-defined]  # noqa: F821 - a name that does not exist is the point

    with pytest.raises(DecodeError, match="names 'Missing', which its module does not define"):
        CODECS[0].decoder(list[Lost])
    with pytest.raises(DecodeError, match="unresolved name 'Order'"):
        CODECS[0].decoder(list["Order"])


def test_a_union_of_namesakes_is_refused() -> None:
    """Two classes of one name cannot be told apart by what is stored; two uses of one generic class can."""
    other = dataclass(type("Point", (), {"__annotations__": {"x": int}}))
    with pytest.raises(DecodeError, match="two classes named Point"):
        CODECS[0].decoder(Point | other)
    stored = CODECS[0].encode([Box("a"), Box(1)])
    assert CODECS[0].decode(stored, list[Box[int] | Box[str]]) == [Box("a"), Box(1)]


def test_a_failed_compilation_leaves_nothing_behind() -> None:
    """After a type was refused, the types inside it are compiled afresh and work."""

    @dataclass
    class Half:
        good: Node
        bad: Missing  # type: ignore[name-defined]  # noqa: F821 - a name that does not exist is the point

    codec = JsonCodec()
    for _ in range(2):
        with pytest.raises(DecodeError):
            codec.decoder(Half)
    assert codec.decode(codec.encode(Node(1, Node(2))), Node) == Node(1, Node(2))


def test_a_local_class_knows_its_own_name() -> None:
    """A recursive class defined in a function is resolved."""

    @dataclass
    class Tree:
        left: Tree | None = None

    codec = MsgpackCodec()
    assert codec.decode(codec.encode(Tree(Tree())), Tree) == Tree(Tree())


@pytest.mark.skipif(not hasattr(typing, "TypeAliasType"), reason="type aliases are new in Python 3.12")
def test_a_recursive_alias_is_read() -> None:
    """``type Json = …`` may contain itself."""
    scope: dict[str, Any] = {}
    exec("type Json = None | int | list[Json] | dict[str, Json]", scope)  # noqa: S102 - no syntax of Python 3.11
    codec = JsonCodec()
    assert codec.decode(codec.encode({"a": [1, {"b": None}]}), scope["Json"]) == {"a": [1, {"b": None}]}
    with pytest.raises(DecodeError):
        codec.decode(codec.encode({"a": ["x"]}), scope["Json"])
