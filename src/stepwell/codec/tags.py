"""The stored form of a value: a tree of native kinds, in which everything else carries a tag.

Native kinds are what the payload format has itself: None, bool, int of 64 bits, finite float, valid str,
list, dict with str keys; for msgpack also bytes and every float. All other kinds are written so::

    (1, 2)            ["!tuple", 1, 2]            also !set !frozenset (sorted), !bytes !bytearray
    {1: "a"}          ["!dict", 1, "a"]           keys and values by turns
    Decimal("1.50")   ["!decimal", "1.50"]        also !uuid !date !time !datetime !timedelta !complex
    2**70             ["!int", "400000000000000000"]      in hex: decimal text would cost quadratic time
    nan, "\\ud800"     ["!float", "nan"], ["!str", …]
    Order(id=1)       {"!type": "Order", "id": 1}         dataclass, Struct, attrs, pydantic, NamedTuple
    Colour.RED        {"!type": "Colour", "name": "RED", "value": 1}

No user value is mistaken for a tag: a list that begins with a str in "!" is written ``["!list", …]``, a
dict that has the key "!type" as ``["!dict", …]``. A tag adds no level of nesting, so the depth of a tree is
the depth of its value, plus one for a tagged leaf.

A type's name is written, never its module: files may move, and nothing is ever imported by it. Where the
reader declares the type, that type is made; where it does not, the value becomes a :class:`Record`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType, NoneType
from typing import Any, Final, TypeAlias, cast

Node: TypeAlias = Any  # None, a leaf, or a list or dict of nodes; nothing below a payload is known to be of any type

type_of = cast("Callable[[object], type]", type)  # to a checker, type(x) of an Any is unknown

TYPE: Final = "!type"
MARK: Final = "!"

LIST: Final = "!list"
TUPLE: Final = "!tuple"
SET: Final = "!set"
FROZENSET: Final = "!frozenset"
DICT: Final = "!dict"
STR: Final = "!str"
INT: Final = "!int"
FLOAT: Final = "!float"
COMPLEX: Final = "!complex"
BYTES: Final = "!bytes"
BYTEARRAY: Final = "!bytearray"
DATETIME: Final = "!datetime"
DATE: Final = "!date"
TIME: Final = "!time"
TIMEDELTA: Final = "!timedelta"
DECIMAL: Final = "!decimal"
UUID_: Final = "!uuid"

# Types whose nodes a payload may hold as leaves; a value of such a node is the node itself.
LEAVES: Final[frozenset[type]] = frozenset({NoneType, bool, int, float, str, bytes})


_PARTS_MAX: Final = 16  # a path is read by a person


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Record:
    """A stored object or enum member, read without its type being declared.

    ``type_name`` is the qualified name of the class that was stored, ``fields`` its fields, read-only. No
    class is looked up by that name. A record encodes to the same bytes as the object that it stands for, so
    it may travel through workflows that do not know the class.

    Example:
        >>> Record("Order", {"id": 1})["id"]
        1
    """

    type_name: str
    fields: Mapping[str, object]

    def __init__(self, type_name: str, fields: Mapping[str, object]) -> None:
        object.__setattr__(self, "type_name", type_name)
        object.__setattr__(self, "fields", MappingProxyType(dict(fields)))

    def __getitem__(self, name: str) -> object:
        return self.fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __hash__(self) -> int:
        return hash((self.type_name, frozenset(self.fields)))  # not of the values, which may have no hash

    def __reduce__(self) -> tuple[type[Record], tuple[str, dict[str, object]]]:
        return Record, (self.type_name, dict(self.fields))  # a mappingproxy can be neither pickled nor copied

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.fields.items())
        return f"Record {self.type_name}({inside})"


class Misfit(Exception):
    """Why a value cannot be written or read; each container on the way out adds its part of the path."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.parts: list[str] = []

    def under(self, part: str) -> Misfit:
        self.parts.append(part)
        return self

    @property
    def path(self) -> str:
        parts = self.parts[::-1]
        if len(parts) > _PARTS_MAX:
            parts = [*parts[: _PARTS_MAX - 4], "…", *parts[-4:]]
        return "".join(parts)


class TooLarge(Misfit):
    """A limit is exceeded."""


class Damaged(Misfit):
    """Stored bytes that no codec wrote so."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; the stored bytes are damaged")


def key_part(key: object) -> str:
    """A dict key as a part of a path; long or unusual keys are payload and are not shown."""
    if type(key) is int and -(10**9) < key < 10**9:
        return f"[{key}]"
    if type(key) is str and len(key) <= 40 and key.isprintable():
        return f"[{key!r}]"
    return f"[key of type {type(key).__name__}]"


def field_part(name: str) -> str:
    """An object's field as a part of a path."""
    return f".{name}"


def kind_of(node: Node) -> str:
    """The name of the kind of value that a node stands for, for messages."""
    kind = type_of(node)
    if kind is list and node and isinstance(node[0], str) and node[0][:1] == MARK:
        return node[0][1:21]
    if kind is dict and isinstance(name := node.get(TYPE), str):
        return name[:100]
    return "None" if node is None else kind.__name__
