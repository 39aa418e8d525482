"""Reading type annotations: one normal form for the many ways to write a type."""

from __future__ import annotations

import collections.abc as abc
import types
import typing
from collections.abc import Mapping
from typing import Any, Final, TypeVar

_WRAPPERS: Final = frozenset({"Annotated", "Required", "NotRequired", "ReadOnly", "Final", "ClassVar"})
_ANY_NAMES: Final = frozenset({"_empty", "MISSING"})
_BARE: Final[Mapping[object, object]] = {None: types.NoneType, object: Any, typing.LiteralString: str}


def strip(declared: object) -> object:
    """A type without what changes nothing about its stored values: Annotated, NewType, aliases, TypeVar, Final."""
    while True:
        inner = _inner(declared)
        if inner is declared:
            return declared
        declared = inner


def _inner(declared: object) -> object:
    if isinstance(declared, typing.NewType):
        return declared.__supertype__
    if isinstance(declared, TypeVar):
        return _bound(declared)
    if type(declared).__name__ == "TypeAliasType":  # typing has it from Python 3.12 on
        return getattr(declared, "__value__", declared)
    origin: Any = typing.get_origin(declared)
    if type(origin).__name__ == "TypeAliasType":
        return origin.__value__[typing.get_args(declared)]
    if origin is not None and getattr(origin, "_name", getattr(origin, "__name__", None)) in _WRAPPERS:
        return typing.get_args(declared)[0]
    if getattr(declared, "__name__", None) in _ANY_NAMES and isinstance(declared, type):
        return Any  # inspect.Parameter.empty: no annotation
    try:
        return _BARE.get(declared, declared)
    except TypeError:
        return declared  # unhashable, as Literal[[]] is


def _bound(variable: TypeVar) -> object:
    if variable.__constraints__:
        return typing.Union[variable.__constraints__]  # noqa: UP007 - made from a tuple
    return Any if variable.__bound__ is None else variable.__bound__


def members(declared: object) -> tuple[object, ...] | None:
    """The members of a union, nested ones too, or None if ``declared`` is no union."""
    declared = strip(declared)
    if typing.get_origin(declared) not in (typing.Union, types.UnionType):
        return None
    found: list[object] = []
    for member in typing.get_args(declared):
        found.extend(members(member) or (strip(member),))
    return tuple(found)


def class_of(declared: object) -> type | None:
    """The class behind a declared type: ``list`` for ``List[int]``, None where there is no class."""
    origin = typing.get_origin(declared)
    if isinstance(origin, type):
        return origin
    return declared if isinstance(declared, type) else None


def is_empty_tuple(declared: object) -> bool:
    """True for ``tuple[()]``, which has no arguments to tell it from ``tuple``."""
    return declared == tuple[()] or declared == typing.Tuple[()]  # noqa: UP006 - the two are not equal


def substitute(declared: object, given: Mapping[object, object]) -> object:
    """``declared`` with its type variables replaced."""
    if isinstance(declared, TypeVar):
        return given.get(declared, declared)
    parameters = getattr(declared, "__parameters__", ())
    if not parameters or (isinstance(declared, type) and not typing.get_args(declared)):
        return declared
    alias: Any = declared
    return alias[tuple(given.get(p, p) for p in parameters)]


def variables(declared: object, cls: type) -> dict[type, dict[object, object]]:
    """For each generic base of ``cls``, what its type variables stand for in ``declared``."""
    parameters: tuple[object, ...] = getattr(cls, "__parameters__", ())
    own: dict[object, object] = dict(zip(parameters, typing.get_args(declared), strict=False))
    found: dict[type, dict[object, object]] = {cls: own}
    for base in getattr(cls, "__orig_bases__", ()):
        origin = typing.get_origin(base)
        if isinstance(origin, type) and origin is not typing.Generic and origin is not typing.Protocol:
            found = variables(substitute(base, own), origin) | found
    for base in cls.__bases__:
        if base not in found and base is not object:
            found = variables(base, base) | found
    return found


def owner(cls: type, field: str) -> type:
    """The class in whose body ``field`` is annotated."""
    for base in cls.__mro__:
        if field in getattr(base, "__annotations__", ()):
            return base
    return cls


# --- names ------------------------------------------------------------------------------------------------


def type_name(declared: object) -> str:
    """The canonical text of a declared type, for fingerprints and messages.

    Equal for all ways to write one type; the same in every Python version and process. It holds no module
    path, so a class may move between files. NewType, Annotated and aliases are seen through, because they do
    not change what is stored. No annotation is ``Any``.

    Example:
        >>> import typing
        >>> type_name(typing.Optional[typing.List[int]])
        'None | list[int]'
    """
    return _name(declared, ())


def _name(declared: object, inside: tuple[object, ...]) -> str:
    if any(outer is declared for outer in inside):
        return str(getattr(declared, "__name__", "..."))  # an alias that contains itself
    inside = (*inside, declared)
    if isinstance(declared, str):
        return declared
    if isinstance(declared, typing.ForwardRef):
        return declared.__forward_arg__
    if declared is object or declared is Ellipsis:
        return "object" if declared is object else "..."
    plain = strip(declared)
    if plain is not declared:
        return _name(plain, inside)
    if (union := members(plain)) is not None:
        return " | ".join(sorted({_name(member, inside) for member in union}))
    return _generic_name(plain, inside)


def _generic_name(declared: object, inside: tuple[object, ...]) -> str:
    origin = typing.get_origin(declared)
    if origin is typing.Literal:
        return f"Literal[{', '.join(sorted({_literal_name(value) for value in typing.get_args(declared)}))}]"
    if declared is Any:
        return "Any"
    if declared is types.NoneType:
        return "None"
    if origin is None and not isinstance(declared, type):
        return str(getattr(declared, "_name", None) or getattr(declared, "__qualname__", None) or repr(declared))
    base = str(getattr(origin or declared, "__qualname__", origin or declared))
    arguments = typing.get_args(declared)
    if not arguments:
        return "tuple[()]" if is_empty_tuple(declared) else base
    return f"{base}[{', '.join(_argument_name(argument, inside) for argument in arguments)}]"


def _argument_name(argument: object, inside: tuple[object, ...]) -> str:
    if isinstance(argument, list):
        parameters = typing.cast("list[object]", argument)
        return f"[{', '.join(_name(item, inside) for item in parameters)}]"
    return "()" if argument == () else _name(argument, inside)


def _literal_name(value: object) -> str:
    name = getattr(value, "_name_", None)
    return f"{type(value).__qualname__}.{name}" if name is not None else repr(value)


# --- wiring ---------------------------------------------------------------------------------------------------

_PROMOTED: Final[Mapping[type, type]] = {float: int, complex: float}


def assignable(produced: object, wanted: object) -> bool | None:
    """Whether every value of type ``produced`` may go where ``wanted`` is declared.

    False only if no value can: both are classes, or unions of classes, of which none fits. True if all
    surely fit, None where that cannot be told from the types alone.

    Example:
        >>> assignable(int, float), assignable(str, int), assignable(list[int], list[str])
        (True, False, None)
    """
    produced, wanted = strip(produced), strip(wanted)
    if wanted is Any or produced == wanted:
        return True
    if produced is Any:
        return None
    verdicts = {_any_of(member, wanted) for member in members(produced) or (produced,)}
    return verdicts.pop() if len(verdicts) == 1 else None


def _any_of(produced: object, wanted: object) -> bool | None:
    verdicts = {_fits(produced, member) for member in members(wanted) or (wanted,)}
    return True if True in verdicts else None if None in verdicts else False


def _fits(produced: object, wanted: object) -> bool | None:
    if wanted is Any or produced == wanted:
        return True
    if not _is_plain_class(produced) or not _is_plain_class(wanted):
        return None
    if _is_subclass(produced, wanted):
        return True
    return None if issubclass(wanted, produced) else False  # the value may be of the narrower class


def _is_plain_class(declared: object) -> typing.TypeGuard[type]:
    return (
        isinstance(declared, type)
        and not typing.get_args(declared)
        and not typing.is_typeddict(declared)
        and not getattr(declared, "_is_protocol", False)
    )


def _is_subclass(cls: type, base: type) -> bool:
    return issubclass(cls, base) or (base in _PROMOTED and _is_subclass(cls, _PROMOTED[base]))


# The abstract containers, and the kinds of stored containers that are such.
ABSTRACT: Final[Mapping[object, tuple[type, ...]]] = {
    abc.Sequence: (list, tuple),
    abc.MutableSequence: (list,),
    abc.Set: (set, frozenset),
    abc.MutableSet: (set,),
    abc.Collection: (list, tuple, set, frozenset, dict),
    abc.Iterable: (list, tuple, set, frozenset, dict),
    abc.Container: (list, tuple, set, frozenset, dict),
    abc.Reversible: (list, tuple, dict),
    abc.Mapping: (dict,),
    abc.MutableMapping: (dict,),
}
