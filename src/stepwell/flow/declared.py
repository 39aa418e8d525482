"""The declared type of a source: what annotations say about a value before any value exists.

``Any`` stands for "not declared": a type that cannot be found out is never guessed.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from stepwell.types import Again, Done

from .nodes import (
    BranchNode,
    ChildNode,
    Const,
    Display,
    Input,
    LoopNode,
    Node,
    RouteNode,
    Select,
    SelectorStep,
    SignalNode,
    Source,
    TaskNode,
    Value,
)
from .spelling import meant

_DISPLAYS: Mapping[str, type] = types.MappingProxyType({"list": list, "tuple": tuple, "dict": dict})


def declared(source: Source | None) -> object:
    """Return the type that a source's value is declared to have, or ``Any``."""
    match source:
        case None:
            return type(None)
        case Value(node):
            return _of_node(node)
        case Input(body):
            return Any if body.input_type is None else body.input_type
        case Select(base, steps):
            return part(declared(base), steps)
        case Const(value):
            return type(value)
        case Display(kind):
            return _DISPLAYS[kind]


def _of_node(node: Node) -> object:
    match node:
        case TaskNode(task=task):
            return task.returns
        case ChildNode(workflow=workflow):
            return workflow.output_type
        case BranchNode(body=body):
            return declared(body.output)
        case SignalNode(payload_type=payload, on_timeout=other):
            return union([payload, declared(other.output)]) if other else payload
        case RouteNode(cases=cases, default=default):
            bodies = [body for _, body in cases] + ([default] if default else [])
            return union(declared(body.output) for body in bodies)
        case LoopNode():
            return _of_loop(node)
        case _:
            return type(None)


def _of_loop(loop: LoopNode) -> object:
    again, done = turn_types(declared(loop.body.output))
    return union([done, again]) if loop.on_max == "last" else done


def turn_types(turn: object) -> tuple[object, object]:
    """Return S and R of a loop body's ``Again[S] | Done[R]``, ``Any`` where they are not declared."""
    return union(_arguments_of(turn, Again)), union(_arguments_of(turn, Done))


def may_say_again(declared_type: object) -> bool:
    """Say whether values of a type may be ``Again`` or ``Done``: it mentions them, or says nothing."""
    members = {get_origin(m) or m for m in _members(declared_type)}
    return bool(members & {Any, object, Again, Done}) or any(isinstance(m, TypeVar) for m in members)


def _arguments_of(declared_type: object, wrapper: type) -> list[object]:
    """Return what ``wrapper[...]`` holds among the members of a union; ``[Any]`` where it is not said."""
    members = [m for m in _members(declared_type) if wrapper in (m, get_origin(m))]
    return [get_args(m)[0] if get_args(m) else Any for m in members] or [Any]


def _members(declared_type: object) -> Sequence[object]:
    return get_args(declared_type) if get_origin(declared_type) in (Union, types.UnionType) else (declared_type,)


def union(members: Iterable[object]) -> object:
    """Return the union of types; ``Any`` if one of them is, or there are none."""
    distinct = list(dict.fromkeys(m for group in members for m in _members(group)))
    if not distinct or Any in distinct:
        return Any
    return distinct[0] if len(distinct) == 1 else cast(Any, Union)[tuple(distinct)]


# --- parts of a value ------------------------------------------------------------------------


def part(declared_type: object, steps: Iterable[SelectorStep]) -> object:
    """Return the declared type that selecting ``steps`` from a value of ``declared_type`` gives, or ``Any``."""
    for kind, key in steps:
        declared_type = _bare(declared_type)
        found = _attribute(declared_type, str(key)) if kind == "attr" else _item(declared_type, key)
        declared_type = Any if _open(found) else found
    return declared_type


def misspelt(declared_type: object, steps: Iterable[SelectorStep]) -> str:
    """Return the first attribute that a declared type is sure not to have, ``""`` if there is none such."""
    for step in steps:
        owner = _bare(declared_type)
        if step[0] == "attr" and _has_no(get_origin(owner) or owner, step[1]):
            return step[1]
        declared_type = part(owner, [step])
    return ""


def spelt(declared_type: object, steps: Sequence[SelectorStep], name: str) -> str:
    """Return the end of a sentence about a :func:`misspelt` attribute: the field that was probably meant."""
    owner = _bare(part(declared_type, steps[: steps.index(("attr", name))]))
    return meant(name, _hints(get_origin(owner) or owner), ".{}") or "; check the spelling"


def _has_no(owner: object, name: str) -> bool:
    """Say whether no instance of a class can have an attribute: its fields are listed, and it is not among them."""
    listed = ("__dataclass_fields__", "__struct_fields__", "__attrs_attrs__", "_fields")
    if not isinstance(owner, type) or not any(hasattr(owner, mark) for mark in listed):
        return False
    return name not in _hints(owner) and not hasattr(owner, name) and not hasattr(owner, "__getattr__")


def _bare(declared_type: object) -> object:
    while get_origin(declared_type) is Annotated:
        declared_type = get_args(declared_type)[0]
    return declared_type


def _open(found: object) -> bool:
    """Say whether a field's type still depends on a type variable of its generic class."""
    return isinstance(found, TypeVar) or bool(getattr(found, "__parameters__", ()))


def _attribute(owner: object, name: str) -> object:
    owner = get_origin(owner) or owner
    if not isinstance(owner, type):
        return Any
    if (hints := _hints(owner)) and name in hints:
        return hints[name]
    getter = getattr(owner, name, None)
    return _hints(getter.fget).get("return", Any) if isinstance(getter, property) else Any


def _item(owner: object, key: object) -> object:
    origin, args = get_origin(owner), get_args(owner)
    if is_typeddict(owner):
        return _hints(owner).get(str(key), Any)
    if origin is tuple and isinstance(key, int):
        return _of_tuple(args, key)
    if isinstance(owner, type) and issubclass(owner, tuple) and isinstance(key, int):
        return _of_tuple(tuple(_hints(owner).values()), key)
    if isinstance(origin, type) and issubclass(origin, Mapping | Sequence) and args:
        return args[-1]
    return Any


def _of_tuple(args: Sequence[object], key: int) -> object:
    if len(args) == 2 and args[1] is Ellipsis:
        return args[0]
    return args[key] if -len(args) <= key < len(args) else Any


def _hints(owner: Any) -> Mapping[str, object]:
    try:
        return get_type_hints(owner, include_extras=True)
    except (NameError, AttributeError, TypeError):  # a name only a type checker sees
        return {}
