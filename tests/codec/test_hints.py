"""Names of declared types, and which may be wired to which."""
# ruff: noqa: E501, UP006, UP007, UP035, UP045 - tables read best with one case a line; types as users write them

from __future__ import annotations

import collections.abc
import decimal
import inspect
import subprocess
import sys
import typing
from typing import Annotated, Any, Dict, Generic, List, Literal, NewType, Optional, Protocol, Tuple, TypeVar, Union

import pytest

from stepwell.codec import assignable, type_name
from stepwell.types import Again, Done

from .shapes import Box, Colour, Item, Level, Mood, Movie, Node, Order, Pair, Point

T = TypeVar("T")
Bound = TypeVar("Bound", bound=int)
Choice = TypeVar("Choice", int, str)
UserId = NewType("UserId", int)


class Speaks(Protocol):
    def speak(self) -> str: ...


NAMES: list[tuple[Any, str]] = [
    (int, "int"), (None, "None"), (type(None), "None"), (Any, "Any"), (object, "object"), (decimal.Decimal, "Decimal"),
    (inspect.Parameter.empty, "Any"), (inspect.Signature.empty, "Any"),
    (List[int], "list[int]"), (list[int], "list[int]"), (List, "list"), (list, "list"), (Dict[str, Any], "dict[str, Any]"),
    (Tuple[int, ...], "tuple[int, ...]"), (Tuple[()], "tuple[()]"), (tuple[int, str], "tuple[int, str]"), (tuple[()], "tuple[()]"), (tuple, "tuple"),
    (Optional[int], "None | int"), (int | None, "None | int"), (None | int, "None | int"), (Union[str, int, None], "None | int | str"),
    (Union[int, Union[str, None]], "None | int | str"), (list[int | None], "list[None | int]"),
    (Literal["b", "a"], "Literal['a', 'b']"), (Literal[1, True], "Literal[1, True]"), (Literal[Colour.RED], "Literal[Colour.RED]"),
    (Annotated[int, "x"], "int"), (list[Annotated[int, ["x"]]], "list[int]"), (UserId, "int"), (dict[UserId, int], "dict[int, int]"),
    (T, "Any"), (Bound, "int"), (Choice, "int | str"), (Box[int], "Box[int]"), (Box, "Box"), (Order, "Order"),
    (Again[int] | Done[str], "Again[int] | Done[str]"), (Movie, "Movie"), (Pair, "Pair"), (Colour, "Colour"),
    (collections.abc.Sequence[int], "Sequence[int]"), (typing.Sequence[int], "Sequence[int]"),
    (typing.Mapping[str, "Order"], "Mapping[str, Order]"), ("Order", "Order"), (Speaks, "Speaks"),
    (collections.abc.Callable[[int], str], "Callable[[int], str]"), (typing.LiteralString, "str"), (type[int], "type[int]"),
    (typing.Final[int], "int"), (typing.NoReturn, "NoReturn"),
]  # fmt: skip


@pytest.mark.parametrize(("declared", "name"), NAMES, ids=[name for _, name in NAMES])
def test_a_type_has_one_name(declared: object, name: str) -> None:
    """All ways to write a type have one text, with no module path in it."""
    assert type_name(declared) == name


def test_names_do_not_depend_on_the_process() -> None:
    """Another hash seed gives the same texts; they are part of fingerprints."""
    code = (
        "from typing import *; from stepwell.codec import type_name;"
        "print(type_name(dict[str, int | str | None | Literal['a', 'b', 'c'] | set[bytes]]))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert texts == {"dict[str, Literal['a', 'b', 'c'] | None | int | set[bytes] | str]\n"}


def test_a_name_ignores_where_the_class_lives() -> None:
    """A class that moves to another module keeps its name."""
    moved = type("Order", (), {"__module__": "somewhere.else"})
    assert type_name(list[moved]) == type_name(list[Order])  # type: ignore[valid-type]


class Animal: ...


class Dog(Animal): ...


class Fits(Generic[T]): ...


WIRES: list[tuple[Any, Any, bool | None]] = [
    (int, int, True), (int, float, True), (bool, int, True), (bool, float, True), (float, complex, True), (int, str, False),
    (float, int, False), (str, int, False), (str, bytes, False), (bytearray, bytes, False), (Dog, Animal, True),
    (Animal, Dog, None), (Animal, int, False), (int, bool, None), (int, Any, True), (int, object, True), (Any, int, None),
    (object, int, None), (None, int, False), (None, None, True), (int, None, False), (None, int | None, True),
    (int | None, int, None), (int | str, int | str | None, True), (int | str, float | bytes, None), (int | str, bytes, False),
    (Optional[int], Optional[str], None), (int | bytes, Union[str, Dog], False),
    (list[int], list[int], True), (list[int], list[str], None), (list[int], int, None), (list, int, False), (list[int], list, None),
    (Level, int, True), (Mood, str, True), (Colour, int, False), (Point, Item, False), (Pair, tuple, True),
    (dict, Movie, None), (Movie, dict, None), (Dog, Speaks, None), (UserId, int, True), (int, UserId, True),
    (Annotated[int, "x"], str, False), (Annotated[int, "x"], int, True), (T, int, None), (int, T, True), (Bound, str, False),
    (Literal["a"], str, None), (inspect.Parameter.empty, int, None), (int, inspect.Parameter.empty, True),
    (int, collections.abc.Hashable, True), (list, collections.abc.Sequence, True), (Box[int], Box[int], True), (Node, Node, True),
]  # fmt: skip


@pytest.mark.parametrize(("produced", "wanted", "verdict"), WIRES, ids=lambda found: str(found)[:30])
def test_assignable(produced: object, wanted: object, verdict: bool | None) -> None:
    """False only for what can never fit; None where the types alone do not tell."""
    assert assignable(produced, wanted) is verdict
