"""What annotations say about a part of a value; what they do not say is ``Any``, never a guess."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Generic, NamedTuple, TypedDict, TypeVar

import msgspec
import pytest

from stepwell.flow.declared import declared, part, union
from stepwell.flow.nodes import Const, Display, Select

if TYPE_CHECKING:
    from nowhere import Unseen

T = TypeVar("T")


class Row(NamedTuple):
    name: str
    count: int


class Table(TypedDict):
    row: Row


class Struct(msgspec.Struct):
    rows: list[Row]


@dataclass
class Box(Generic[T]):
    content: T
    label: str
    contents: list[T]


@dataclass
class Order:
    table: Table
    struct: Struct
    boxes: dict[str, Box[int]]
    maybe: Row | None

    @property
    def total(self) -> float:
        return 0.0

    @property
    def undeclared(self):
        return 0


@dataclass
class Hidden:
    unseen: Unseen
    name: str


@pytest.mark.parametrize(
    ("start", "steps", "found"),
    [
        (Order, [("attr", "table")], Table),
        (Order, [("attr", "table"), ("item", "row"), ("attr", "count")], int),
        (Order, [("attr", "struct"), ("attr", "rows"), ("item", 0), ("item", 1)], int),
        (Order, [("attr", "struct"), ("attr", "rows"), ("item", 0), ("item", -2)], str),
        (Order, [("attr", "boxes"), ("item", "a"), ("attr", "label")], str),
        (Order, [("attr", "total")], float),
        (Annotated[Order, "note"], [("attr", "total")], float),
        (tuple[int, str], [("item", 1)], str),
        (tuple[int, ...], [("item", 7)], int),
        (Sequence[bytes], [("item", 0)], bytes),
        (Mapping[str, Row], [("item", "x"), ("attr", "name")], str),
    ],
)
def test_known(start: object, steps: Any, found: object) -> None:
    """Fields, properties, items and entries have the types they are written with."""
    assert part(start, steps) == found


@pytest.mark.parametrize(
    ("start", "steps"),
    [
        (Any, [("attr", "x")]),
        (Order, [("attr", "nothing")]),
        (Order, [("attr", "undeclared")]),
        (Order, [("attr", "maybe"), ("attr", "name")]),
        (Order, [("attr", "boxes"), ("item", "a"), ("attr", "content")]),
        (Box[int], [("attr", "contents")]),
        (Hidden, [("attr", "name")]),
        (Table, [("item", "column")]),
        (tuple[int, str], [("item", 2)]),
        (list, [("item", 0)]),
        (int, [("item", 0)]),
    ],
)
def test_unknown(start: object, steps: Any) -> None:
    """Optionals, type variables, unseen names and missing fields are Any."""
    assert part(start, steps) is Any


def test_union() -> None:
    """Equal members fall together, one undeclared member makes the whole undeclared."""
    assert (union([int, int]), union([int, str | int]), union([int, None])) == (int, int | str, int | None)
    assert union([int, Any]) is union([]) is Any


def test_sources() -> None:
    """Constants and displays have their builtin type; nothing yields None."""
    assert (declared(Const(1)), declared(Display("list", ())), declared(None)) == (int, list, type(None))
    assert declared(Select(Const((1, 2)), (("item", 0),))) is Any
