"""How classes with fields are taken apart and put together: one :class:`Shape` per class.

Objects are put together from their fields as ``copy`` does it: ``object.__new__``, then the fields are set.
``__init__``, ``__post_init__`` and validators do not run again, so what comes back is what was stored even
where a constructor computes, counts or converts; ``init=False`` and ``InitVar`` need no special case. The
exception is a ``msgspec.Struct``, which cannot be made otherwise: its class is called, and then its
fields are set once more, in case a ``__post_init__`` changed them.

What is not a field would be lost and is therefore refused: an attribute set beside the fields. A
``cached_property`` is dropped, as it computes itself again.
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, Flag
from functools import cached_property, partial
from operator import attrgetter
from typing import Any, Final

import msgspec

from .tags import Misfit, Record

Fields = dict[str, object]

FIELDS_SET: Final = "model_fields_set"
_ATTRS_HASH: Final = "_attrs_cached_hash"
_SCALARS: Final = frozenset({type(None), bool, int, float, str, bytes})


@dataclass(frozen=True, slots=True)
class Shape:
    """One class: ``take`` gives an object's fields in order, ``make`` an object with these fields.

    ``hints`` resolves the declared types of the fields; ``defaults`` makes the value of a field that is not
    stored, because the class gained it later; ``optional`` fields may be missing. ``open`` says that fields
    beside ``names`` may be stored.
    """

    cls: type
    name: str
    names: tuple[str, ...]
    take: Callable[[Any], Fields]
    make: Callable[[Fields], object]
    hints: Callable[[], Mapping[str, object]]
    defaults: Mapping[str, Callable[[], object]]
    optional: frozenset[str] = frozenset()
    open: bool = False


def shape_of(cls: Any) -> Shape | None:
    """The shape of a class with fields, or None for any other class.

    Raises:
        Misfit: the class has fields, but its objects cannot be rebuilt from them.
    """
    if issubclass(cls, Enum) or cls is Record:
        return None
    if hasattr(cls, "_field_defaults") and issubclass(cls, tuple):
        return _namedtuple(cls)
    if issubclass(cls, msgspec.Struct):
        return _struct(cls)
    if (model := _pydantic_base()) is not None and issubclass(cls, model):
        return _pydantic(cls)
    if hasattr(cls, "__attrs_attrs__"):
        return _attrs(cls)
    if hasattr(cls, "__dataclass_fields__"):
        return _dataclass(cls)
    return None


def hints_of(cls: type) -> Mapping[str, object]:
    """The resolved annotations of a class; one defined in a function at least knows its own name."""
    try:
        try:
            return typing.get_type_hints(cls, include_extras=True)
        except NameError:
            own = {"typing": typing, cls.__name__: cls}  # dataclasses.make_dataclass writes "typing.Any"
            return typing.get_type_hints(cls, localns=own, include_extras=True)
    except NameError as error:
        raise Misfit(
            f"the annotation of a field of {cls.__qualname__} names {error.name!r}, which its module does not "
            "define; import it at module level, not only under TYPE_CHECKING"
        ) from None
    except (AttributeError, TypeError, SyntaxError) as error:
        raise Misfit(f"the annotations of {cls.__qualname__} cannot be resolved: {error}") from error


# --- dataclasses and attrs: object.__new__, then the fields --------------------------------------------


def _dataclass(cls: Any) -> Shape:
    fields = dataclasses.fields(cls)
    defaults: dict[str, Callable[[], object]] = {}
    for field in fields:
        if field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory
        elif field.default is not dataclasses.MISSING:
            defaults[field.name] = partial(_same, field.default)
    return _plain_object(cls, tuple(f.name for f in fields), partial(hints_of, cls), defaults)


def _attrs(cls: Any) -> Shape:
    attributes: tuple[Any, ...] = cls.__attrs_attrs__
    defaults: dict[str, Callable[[], object]] = {}
    for attribute in attributes:
        default = attribute.default
        if hasattr(default, "takes_self"):
            if not default.takes_self:
                defaults[attribute.name] = default.factory
        elif type(default).__qualname__ != "_Nothing":
            defaults[attribute.name] = partial(_same, default)

    def hints() -> Mapping[str, object]:
        typed = {a.name: a.type for a in attributes if a.type is not None and not isinstance(a.type, str)}
        return {**typed, **hints_of(cls)}

    return _plain_object(cls, tuple(a.name for a in attributes), hints, defaults)


def _plain_object(
    cls: type, names: tuple[str, ...], hints: Callable[[], Mapping[str, object]], defaults: Mapping[str, Any]
) -> Shape:
    try:
        object.__new__(cls)
    except TypeError:
        raise Misfit(
            f"{cls.__qualname__} has fields but is built on {_builtin_base(cls)}, and cannot be rebuilt from them; "
            "store a plain dataclass instead"
        ) from None
    in_dict = cls.__dictoffset__ != 0 and not any(hasattr(_lookup(cls, name), "__set__") for name in names)
    take = _take_dict(cls, names) if in_dict else _take_attributes(cls, names)
    make = _make_dict(cls) if in_dict else _make_attributes(cls)
    return Shape(cls, cls.__qualname__, names, take, make, hints, defaults)


def _take_dict(cls: type, names: tuple[str, ...]) -> Callable[[Any], Fields]:
    slow = _take_attributes(cls, names)

    def take(value: Any) -> Fields:
        attributes: Fields = value.__dict__
        return attributes if tuple(attributes) == names else slow(value)

    return take


def _take_attributes(cls: type, names: tuple[str, ...]) -> Callable[[Any], Fields]:
    known = frozenset(names)
    get: Callable[[Any], tuple[object, ...]] = attrgetter(*names) if len(names) > 1 else partial(_get_few, names)
    has_dict = cls.__dictoffset__ != 0

    def take(value: Any) -> Fields:
        if has_dict:
            _refuse_extras(cls, value.__dict__.keys() - known)
        try:
            return dict(zip(names, get(value), strict=True))
        except AttributeError:
            unset = next((name for name in names if not hasattr(value, name)), "?")
            raise Misfit(f"field {unset!r} of {cls.__qualname__} has no value; set it before returning it") from None

    return take


def _get_few(names: tuple[str, ...], value: Any) -> tuple[object, ...]:
    return tuple(getattr(value, name) for name in names)


def _refuse_extras(cls: type, extras: Iterable[str]) -> None:
    for name in sorted(extras):
        if name != _ATTRS_HASH and not isinstance(_lookup(cls, name), cached_property):
            raise Misfit(
                f"{cls.__qualname__} has the attribute {name!r}, which is no field of it and would be lost; "
                "make it a field or a cached_property"
            )


def _make_dict(cls: Any) -> Callable[[Fields], object]:
    new, set_attribute = object.__new__, object.__setattr__
    if _caches_hash(cls):
        return _make_attributes(cls)

    def make(fields: Fields) -> object:
        made = new(cls)
        set_attribute(made, "__dict__", fields)  # past a frozen class's own __setattr__
        return made

    return make


def _make_attributes(cls: Any) -> Callable[[Fields], object]:
    new, set_attribute = object.__new__, object.__setattr__
    caches_hash = _caches_hash(cls)

    def make(fields: Fields) -> object:
        made = new(cls)
        for name, value in fields.items():
            set_attribute(made, name, value)
        if caches_hash:
            set_attribute(made, _ATTRS_HASH, None)
        return made

    return make


def _caches_hash(cls: type) -> bool:
    """True for an attrs class with ``cache_hash=True``, whose ``__hash__`` reads what ``__init__`` set."""
    code = getattr(getattr(cls, "__hash__", None), "__code__", None)
    return code is not None and _ATTRS_HASH in code.co_names


def _lookup(cls: type, name: str) -> object:
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def _builtin_base(cls: type) -> str:
    return next((base.__name__ for base in cls.__mro__ if base.__module__ == "builtins"), "another class")


def _same(value: object) -> object:
    return value


# --- tuples with names, structs, models ------------------------------------------------------------------


def _namedtuple(cls: Any) -> Shape:
    names: tuple[str, ...] = cls._fields
    defaults = {name: partial(_same, value) for name, value in cls._field_defaults.items()}

    def take(value: Any) -> Fields:
        if getattr(value, "__dict__", None):
            _refuse_extras(cls, value.__dict__)
        if len(value) != len(names):
            raise Misfit(f"{cls.__qualname__} has {len(names)} fields but this one holds {len(value)} values")
        return dict(zip(names, value, strict=True))

    def make(fields: Fields) -> object:
        made: object = cls._make([fields[name] for name in names])  # tuple.__new__, past a __new__ of the class
        return made

    return Shape(cls, cls.__qualname__, names, take, make, partial(hints_of, cls), defaults)


def _struct(cls: Any) -> Shape:
    names: tuple[str, ...] = cls.__struct_fields__
    defaults: dict[str, Callable[[], object]] = {}
    for field in msgspec.structs.fields(cls):
        if field.default is not msgspec.NODEFAULT:
            defaults[field.name] = partial(_same, field.default)
        elif field.default_factory is not msgspec.NODEFAULT:
            defaults[field.name] = field.default_factory
    take_fields = _take_attributes(cls, names)
    has_hook = hasattr(cls, "__post_init__")

    def make(fields: Fields) -> object:
        made = cls(**fields)
        if has_hook:
            for name, value in fields.items():
                msgspec.structs.force_setattr(made, name, value)
        return made

    return Shape(cls, cls.__qualname__, names, take_fields, make, partial(hints_of, cls), defaults)


def _pydantic_base() -> type | None:
    """pydantic's BaseModel if pydantic is loaded; if it is not, no value can be a model."""
    module = sys.modules.get("pydantic")
    return getattr(module, "BaseModel", None)


def _pydantic(cls: Any) -> Shape:
    model = _Model(cls)
    defaults = {
        name: partial(field.get_default, call_default_factory=True)
        for name, field in cls.model_fields.items()
        if not field.is_required()
    }
    optional = frozenset({*model.private, FIELDS_SET})
    names = (*model.fields, *model.private)
    return Shape(cls, cls.__qualname__, names, model.take, model.make, model.hints, defaults, optional, open=True)


class _Model:
    """A pydantic model's fields, extras and private attributes side by side, and which were given if not all.

    ``__setstate__`` is the model's own way back from a copy; it runs no validator.
    """

    def __init__(self, cls: Any) -> None:
        self.cls, self.name = cls, cls.__qualname__
        self.fields: tuple[str, ...] = tuple(cls.model_fields)
        self.private: tuple[str, ...] = tuple(cls.__private_attributes__)
        self.own = frozenset({*self.fields, *self.private, FIELDS_SET})
        self.allows_extra = cls.model_config.get("extra") == "allow"

    def take(self, value: Any) -> Fields:
        inside: Fields = value.__dict__
        _refuse_extras(self.cls, inside.keys() - set(self.fields))
        if missing := [name for name in self.fields if name not in inside]:
            raise Misfit(f"field {missing[0]!r} of {self.name} has no value; set it before returning it")
        private: Fields = value.__pydantic_private__ or {}
        extra: Fields = value.__pydantic_extra__ or {}
        if clash := self.own & extra.keys():
            raise Misfit(f"{self.name} has an extra named {min(clash)!r}, a name it uses itself; rename it")
        taken: Fields = {name: inside[name] for name in self.fields} | private | extra
        given: set[str] = value.__pydantic_fields_set__
        if given != {*self.fields, *extra}:
            taken[FIELDS_SET] = sorted(given)
        return taken

    def make(self, taken: Fields) -> object:
        extra = {name: value for name, value in taken.items() if name not in self.own}
        if extra and not self.allows_extra:
            raise Misfit(f"{self.name} has no field {min(extra)!r}; a stored field must stay in the class")
        private = {name: taken[name] for name in self.private if name in taken}
        given: Any = taken.get(FIELDS_SET, (*self.fields, *extra))  # a list[str], as hints() declares it
        made = self.cls.__new__(self.cls)
        made.__setstate__(
            {
                "__dict__": {name: taken[name] for name in self.fields},
                "__pydantic_extra__": extra if self.allows_extra else None,
                "__pydantic_private__": private if self.private else None,
                "__pydantic_fields_set__": set(given),
            }
        )
        return made

    def hints(self) -> Mapping[str, object]:
        private: Mapping[str, object] = hints_of(self.cls) if self.private else {}
        found: dict[str, object] = {name: private.get(name, Any) for name in self.private}
        found |= {name: field.annotation for name, field in self.cls.model_fields.items()}
        found[FIELDS_SET] = list[str]
        return found


# --- enum members ------------------------------------------------------------------------------------------


def take_member(member: Enum) -> Fields:
    """An enum member as fields: its name, and its value where that is a scalar. A Flag is its value."""
    value: object = member.value
    if isinstance(member, Flag):
        return {"value": value}
    return {"name": member.name, "value": value} if type(value) in _SCALARS else {"name": member.name}


def make_member(cls: type[Enum], fields: Mapping[str, object]) -> Enum:
    """The member of ``cls`` that these fields name; a member is its name, whatever its value is now."""
    name = fields.get("name")
    if type(name) is str and (member := cls.__members__.get(name)) is not None:
        return member
    value = fields.get("value")
    if issubclass(cls, Flag) and type(value) is int:
        try:
            return cls(value)
        except (ValueError, TypeError):
            raise Misfit(f"{cls.__qualname__} has no flags {value:#x}") from None
    raise Misfit(f"the stored member is none of {cls.__qualname__}; a stored member must stay in the class")
