"""Whether a result is what its task declares to return, asked before it is stored.

A wrong one would be found by its consumer, when nothing can be done any more but hold the instance. The full answer is
to read the stored bytes as the declared type. Most results need no such reading: for plain classes and flat containers
of them a look at the value's own types is as sure, and several times cheaper.
"""

from __future__ import annotations

from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, Final, Union, get_args, get_origin

from stepwell.codec import Codec
from stepwell.flow.declared import may_say_again, turn_types

Check = Callable[[Any, bytes], object]

_PLAIN: Final = frozenset({int, str, float, bool, bytes, dict, list, tuple, set, frozenset, NoneType})


def promise(codec: Codec, returns: object) -> Callable[[str, Any, bytes], object] | None:
    """Return what raises ``DecodeError`` if a result (its tag, value and stored bytes) breaks the annotation."""
    if may_say_again(returns):
        again, done = (_check(codec, declared) for declared in turn_types(returns))
        checks: dict[str, Check | None] = {"again": again, "done": done}
        return lambda tag, value, stored: check(value, stored) if (check := checks.get(tag)) is not None else None
    check = _check(codec, returns)
    return None if check is None else lambda tag, value, stored: check(value, stored)


def _check(codec: Codec, declared: object) -> Check | None:
    if declared is Any or declared is object:
        return None
    decode, surely = codec.decoder(declared), _sure_look(declared)
    if surely is None:
        return lambda value, stored: decode(stored)
    return lambda value, stored: surely(value) or decode(stored)


Look = Callable[[Any], bool]


def _sure_look(declared: object) -> Look | None:
    """Return a look at a value that says True only if it surely fits; ``None`` where there is no cheap one."""
    if (kinds := _plain_kinds(declared)) is not None:
        return lambda value: type(value) in kinds
    origin, args = get_origin(declared), get_args(declared)
    if origin is list and len(args) == 1:
        return _look_at_list(_look_at_all(args[0]))
    if origin is dict and len(args) == 2:
        return _look_at_dict(_look_at_all(args[0]), _look_at_all(args[1]))
    return None


def _look_at_list(items: Look | None) -> Look | None:
    return None if items is None else lambda value: type(value) is list and items(value)


def _look_at_dict(keys: Look | None, items: Look | None) -> Look | None:
    if keys is None or items is None:
        return None
    return lambda value: type(value) is dict and keys(value) and items(value.values())


def _look_at_all(declared: object) -> Look | None:
    """Return a look at many values at once."""
    if declared is Any or declared is object:
        return lambda values: True
    kinds = _plain_kinds(declared)
    return None if kinds is None else lambda values: kinds.issuperset(map(type, values))


def _plain_kinds(declared: object) -> frozenset[type] | None:
    """Return the classes that a type allows if all of them are plain, bare ones."""
    members = get_args(declared) if get_origin(declared) in (Union, UnionType) else (declared,)
    kinds = frozenset(NoneType if member is None else member for member in members if isinstance(member, type | None))
    return kinds if len(kinds) == len(members) and kinds <= _PLAIN else None
