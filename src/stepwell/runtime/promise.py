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
from stepwell.codec.tags import type_of
from stepwell.flow.declared import may_say_again, turn_types

Check = Callable[[str, Any, bytes], object]

_PLAIN: Final = frozenset({int, str, float, bool, bytes, dict, list, tuple, set, frozenset, NoneType})


def name_of(kind: type) -> str:
    """Return a class's name, short enough to be stored with a fact."""
    return kind.__name__[:80]


def promise(codec: Codec, returns: object) -> Check | None:
    """Return what raises ``DecodeError`` if a result (its tag, value and stored bytes) breaks the annotation."""
    if may_say_again(returns):
        again, done = (_check(codec, declared) for declared in turn_types(returns))
        checks: dict[str, Check | None] = {"again": again, "done": done}
        return lambda tag, value, stored: check(tag, value, stored) if (check := checks.get(tag)) is not None else None
    return _check(codec, returns)


def _check(codec: Codec, declared: object) -> Check | None:
    if declared is Any or declared is object:
        return None
    decode, surely = codec.decoder(declared), _sure_look(declared)
    if surely is None:
        return lambda tag, value, stored: decode(stored)
    return lambda tag, value, stored: surely(value) or decode(stored)


Look = Callable[[Any], bool]
_Kinds = frozenset[type] | None
"""The classes that all members of a container must be of; ``None``: any."""


def _sure_look(declared: object) -> Look | None:
    """Return a look at a value that says True only if it surely fits; ``None`` where there is no cheap one."""
    if (kinds := _plain_kinds(declared)) is not None:
        return lambda value: type(value) in kinds
    origin, args = get_origin(declared), get_args(declared)
    members = [_member_kinds(arg) for arg in args]
    if _NO_LOOK in members:
        return None
    if origin is list and len(args) == 1:
        return _look_at_list(members[0])
    if origin is dict and len(args) == 2:
        return _look_at_dict(*members)
    return None


def _look_at_list(items: _Kinds) -> Look:
    return lambda value: type_of(value) is list and (items is None or items.issuperset(map(type_of, value)))


def _look_at_dict(keys: _Kinds, items: _Kinds) -> Look:
    return lambda value: (
        type_of(value) is dict
        and (keys is None or keys.issuperset(map(type_of, value)))
        and (items is None or items.issuperset(map(type_of, value.values())))
    )


_NO_LOOK: Final[_Kinds] = frozenset()


def _member_kinds(declared: object) -> _Kinds:
    if declared is Any or declared is object:
        return None
    kinds = _plain_kinds(declared)
    return _NO_LOOK if kinds is None else kinds


def _plain_kinds(declared: object) -> frozenset[type] | None:
    """Return the classes that a type allows if all of them are plain, bare ones."""
    members = get_args(declared) if get_origin(declared) in (Union, UnionType) else (declared,)
    kinds = frozenset(NoneType if member is None else member for member in members if isinstance(member, type | None))
    return kinds if len(kinds) == len(members) and kinds <= _PLAIN else None
