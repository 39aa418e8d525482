"""Classes that the codec tests store: one of every kind of class with fields, and enums."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from typing import Any, Generic, Literal, NamedTuple, NotRequired, TypedDict, TypeVar

import attrs
import msgspec
import pydantic

T = TypeVar("T")


class Colour(enum.Enum):
    RED = 1
    GREEN = "green"
    PAIR = (1, 2)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mood(enum.StrEnum):
    GOOD = "good"
    BAD = "bad"


class Permission(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass
class Item:
    sku: str
    qty: int
    price: float = 0.0


@dataclass
class Order:
    id: int
    items: list[Item]
    colour: Colour = Colour.RED
    note: str | None = None
    placed: datetime | None = None
    labels: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Point:
    x: float
    y: float


@dataclass
class Node:
    value: int
    next: Node | None = None
    children: list[Node] = field(default_factory=list)


@dataclass
class Box(Generic[T]):
    content: T


@dataclass
class IntBox(Box[int]):
    extra: str = ""


@dataclass
class Counted:
    """A dataclass whose constructor does things that must not be done twice."""

    total: int
    scale: dataclasses.InitVar[int] = 2
    double: int = field(init=False)

    def __post_init__(self, scale: int) -> None:
        self.total *= scale
        self.double = self.total * 2

    @cached_property
    def costly(self) -> int:
        return self.total + 1


class Money(msgspec.Struct, frozen=True):
    amount: Decimal
    currency: str = "EUR"


class Doubling(msgspec.Struct):
    value: int

    def __post_init__(self) -> None:
        self.value *= 2


@attrs.define
class Address:
    street: str
    _code: str = "0000"
    tags: list[str] = attrs.field(factory=list)


@attrs.frozen(cache_hash=True)
class HashedKey:
    name: str


class User(pydantic.BaseModel):
    name: str
    address: Point | None = None
    friends: list[User] = []
    _visits: int = pydantic.PrivateAttr(default=0)


class Open(pydantic.BaseModel, extra="allow"):
    a: int = 0


class Validated(pydantic.BaseModel):
    """A model that a second validation would change or refuse."""

    value: int

    @pydantic.field_validator("value")
    @classmethod
    def double(cls, value: int) -> int:
        return value * 2


@pydantic.dataclasses.dataclass
class Checked:
    count: int


class Pair(NamedTuple):
    left: int
    right: str = "r"


class Movie(TypedDict):
    title: str
    stars: NotRequired[list[Point]]


@dataclass
class Many:
    """One field of each kind of declared type."""

    literal: Literal["a", 1]
    sequence: Sequence[Point]
    mapping: Mapping[str, Money]
    fixed: tuple[int, Point]
    colours: frozenset[Colour]
    anything: Any
    movie: Movie
    either: Point | Money | int


ORDER = Order(1, [Item("a", 2, 1.5), Item("b", 1)], Colour.PAIR, None, datetime(2024, 5, 1), {"x": (1, 2)})
MANY = Many(
    "a",
    [Point(1.0, 2.0)],
    {"eur": Money(Decimal("1.50"))},
    (1, Point(0.0, -0.0)),
    frozenset({Colour.RED}),
    {"k": (1, {2})},
    {"title": "Alien", "stars": [Point(3.0, 4.0)]},
    Money(Decimal(3)),
)
