"""Trees to values of a declared type.

A declared type is compiled once to a :class:`Reader`. Declared types select and construct, they never
convert: what is read is the very value that was stored, or an error. Where checkers let an int stand for
a float, it is read as the int it is. In this way no union can read a value as the wrong one of its
members, and the order of its members does not matter.

The types decide only this: whether a stored kind is allowed at its place, and which class makes an
object's fields an object again. That class must bear the name that was stored. What is declared as Any, or
as a class the codec cannot make, is read without a type and then checked with ``isinstance``.
"""

from __future__ import annotations

import collections.abc as abc
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from threading import RLock
from types import NoneType
from typing import Any, Final, NamedTuple, TypeAlias

from stepwell.types import Limits

from . import tags
from .hints import ABSTRACT, class_of, is_empty_tuple, members, owner, strip, substitute, type_name, variables
from .records import Shape, hints_of, make_member
from .tags import LEAVES, TYPE, Misfit, Node, field_part, key_part, kind_of, type_of
from .values import CONTAINERS, hashed, pairs_value, split, value_of

Read: TypeAlias = Callable[[object], object]

_READERS_MAX: Final = 4096
_SIGNATURES_MAX: Final = 64

_PROMOTED: Final[Mapping[type, tuple[type, ...]]] = {float: (float, int), complex: (complex, float, int)}
_TAGS: Final[Mapping[type, str]] = {kind: tag for tag, kind in CONTAINERS.items()}


class Reader(NamedTuple):
    """``read`` makes a value of a node or raises Misfit; it is called through :meth:`value`.

    A node whose type is in ``natives`` is the value itself and need not be known to ``read``; in a payload
    without tags also one in ``plain``.
    """

    read: Read
    natives: frozenset[type]
    plain: frozenset[type]

    def value(self, node: Node) -> object:
        return node if type(node) in self.natives else self.read(node)


_NONE: Final[frozenset[type]] = frozenset()


def _reader(read: Read, natives: frozenset[type] = _NONE, plain: frozenset[type] = _NONE) -> Reader:
    return Reader(read, natives, natives | plain)


class Readers:
    """The compiled readers of one codec. Safe to use from several threads."""

    def __init__(self, limits: Limits, shape: Callable[[type], Shape | None]) -> None:
        self.limits, self.shape = limits, shape
        self._readers: dict[object, Reader] = {}
        self._drafts: dict[object, Reader] = {}
        self._lock = RLock()
        self.none = self._instance(None, NoneType)
        self.any = _reader(self._read_any, LEAVES, frozenset({list, dict}))

    def of(self, declared: object) -> Reader:
        """The reader of a declared type.

        Raises:
            Misfit: the type holds a name that cannot be resolved, or a class that cannot be rebuilt.
        """
        try:
            known = self._readers.get(declared)
        except TypeError:
            return self._compile(declared)  # unhashable: Literal[[]], or metadata of Annotated
        if known is not None:
            return known
        with self._lock:
            return self._drafts.get(declared) or self._draft(declared)

    def _draft(self, declared: object) -> Reader:
        """Compile a type that may contain itself: inside, it is known by a reader that looks later.

        Readers are published only when the outermost is finished, as they may look to one that is not.
        """
        outermost = not self._drafts
        done: list[Reader] = []

        def read_later(node: Node) -> object:
            read, natives, _ = done[0]
            return node if type(node) in natives else read(node)

        self._drafts[declared] = _reader(read_later)
        try:
            reader = self._compile(declared)
        except BaseException:
            self._drafts.clear()
            raise
        done.append(reader)
        self._drafts[declared] = reader
        if outermost:
            if len(self._readers) >= _READERS_MAX:
                self._readers.clear()
            self._readers.update(self._drafts)
            self._drafts.clear()
        return reader

    def _read_any(self, node: Node) -> object:
        return value_of(node, self.limits)

    def _compile(self, declared: object) -> Reader:
        plain = strip(declared)
        if plain is not declared:
            return self.of(plain)
        if plain is Any or plain is NoneType:
            return self.any if plain is Any else self.none
        if isinstance(plain, str | typing.ForwardRef):
            raise Misfit(f"the declared type holds the unresolved name {type_name(plain)!r}; declare the class itself")
        if (union := members(plain)) is not None:
            _refuse_namesakes(union)
            return self._union(plain, [self.of(member) for member in union])
        if typing.get_origin(plain) is typing.Literal:
            return self._literal(plain)
        cls = class_of(plain)
        return self.any if cls is None else self._class(plain, cls)

    def _class(self, declared: object, cls: Any) -> Reader:
        arguments = typing.get_args(declared)
        if cls is tuple:
            return self._tuple(declared, arguments)
        if cls is dict or cls is abc.Mapping or cls is abc.MutableMapping:
            return self._dict(*arguments) if len(arguments) == 2 else self._dict(Any, Any)
        if cls in _TAGS:
            return self._items(declared, (cls,), arguments)
        if cls in ABSTRACT:
            return self._abstract(declared, cls, arguments)
        if typing.is_typeddict(cls):
            return self._typed_dict(declared, cls)
        if issubclass(cls, Enum):
            return _member_reader(cls)
        if (shape := self.shape(cls)) is not None:
            return self._object(declared, shape)
        return self._instance(declared, cls)

    def _instance(self, declared: object, cls: Any) -> Reader:
        """A builtin, or any class of which an undeclared value may be an instance."""
        if getattr(cls, "_is_protocol", False) or hasattr(cls, "__get_pydantic_core_schema__"):
            return self.any  # it says what its values can do, not what they are
        accepted = _PROMOTED.get(cls, (cls,))
        limits = self.limits

        def read(node: Node) -> object:
            value = value_of(node, limits)
            if not isinstance(value, accepted):
                raise _mismatch(declared, node)
            return value

        return _reader(read, frozenset(leaf for leaf in LEAVES if issubclass(leaf, accepted)))

    def _union(self, declared: object, readers: list[Reader]) -> Reader:
        natives = _NONE.union(*(reader.natives for reader in readers))
        plain = _NONE.union(*(reader.plain for reader in readers))
        readers = [reader for reader in readers if reader is not self.none]
        reads = [reader.read for reader in sorted(readers, key=lambda reader: reader is self.any)]  # Any comes last
        if len(reads) == 1:
            return Reader(reads[0], natives, plain)  # an optional costs nothing

        def read(node: Node) -> object:
            deepest: Misfit | None = None
            for read_member in reads:
                try:
                    return read_member(node)
                except Misfit as misfit:
                    if misfit.parts and (deepest is None or len(misfit.parts) > len(deepest.parts)):
                        deepest = misfit
            raise deepest or _mismatch(declared, node)

        return Reader(read, natives, plain)

    def _literal(self, declared: object) -> Reader:
        values = typing.get_args(declared)
        allowed: set[tuple[type, object]] = {(type(value), value) for value in values}
        enums = {type(value) for value in values if isinstance(value, Enum)}
        reads = [*(_member_reader(cls).read for cls in enums), self._read_any]

        def read(node: Node) -> object:
            for read_value in reads:
                try:
                    value = read_value(node)
                    if (type(value), value) in allowed:
                        return value
                except (Misfit, TypeError):  # another enum's member; a value that cannot be hashed
                    continue
            raise _mismatch(declared, node)

        return _reader(read)

    # --- containers ------------------------------------------------------------------------------------------

    def _items(self, declared: object, kinds: tuple[type, ...], arguments: tuple[object, ...]) -> Reader:
        """Lists, tuples of any length, sets and frozensets: one type for every entry."""
        entries = self.of(arguments[0]) if len(arguments) == 1 else self.any
        allowed = {_TAGS[kind] for kind in kinds if kind in _TAGS}

        def read(node: Node) -> object:
            kind = type_of(node)
            if kind is list:
                tag, items = split(node)
                if tag in allowed:
                    found = _read_items(items, entries)
                    return found if tag == tags.LIST else hashed(CONTAINERS[tag], found)
            raise _mismatch(declared, node)

        return _reader(read, plain=frozenset({list}) if list in kinds and entries is self.any else _NONE)

    def _tuple(self, declared: object, arguments: tuple[object, ...]) -> Reader:
        if not arguments and not is_empty_tuple(declared):
            return self._items(declared, (tuple,), ())
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return self._items(declared, (tuple,), arguments[:1])
        if any(getattr(a, "__unpacked__", False) or typing.get_origin(a) is typing.Unpack for a in arguments):
            return self._items(declared, (tuple,), ())
        readers = [self.of(argument) for argument in arguments]

        def read(node: Node) -> object:
            kind = type_of(node)
            tag, items = split(node) if kind is list else ("", [])
            if tag != tags.TUPLE:
                raise _mismatch(declared, node)
            if len(items) != len(readers):
                raise Misfit(f"expected {type_name(declared)}, found a tuple of {len(items)} entries")
            found: list[object] = []
            try:
                for item, reader in zip(items, readers, strict=True):
                    found.append(item if type(item) in reader.natives else reader.read(item))
            except Misfit as misfit:
                raise misfit.under(f"[{len(found)}]")  # noqa: B904 - the same error, one part of the path longer
            return tuple(found)

        return _reader(read)

    def _dict(self, key: object = Any, value: object = Any) -> Reader:
        keys, values = self.of(key), self.of(value)
        declared = dict[key, value]  # type: ignore[valid-type]

        def read(node: Node) -> object:
            kind = type_of(node)
            if kind is list:
                tag, items = split(node)
                if tag == tags.DICT:
                    return pairs_value(items, keys.value, values.value)
            if kind is not dict or TYPE in node:
                raise _mismatch(declared, node)
            if str not in keys.natives:
                for name in node:
                    _read_key(keys, name)
            if values.natives.issuperset(map(type, node.values())):
                return node
            return _read_fields(node, lambda name: values, key_part)

        anything = str in keys.natives and values is self.any
        return _reader(read, plain=frozenset({dict}) if anything else _NONE)

    def _abstract(self, declared: object, cls: type, arguments: tuple[object, ...]) -> Reader:
        """Sequence, Iterable and their kind: any stored container that is one; also str where it is one of strs."""
        kinds = ABSTRACT[cls]
        readers = [self._items(declared, kinds, arguments)]
        if dict in kinds:
            readers.append(self._dict(*arguments, *(Any,) * (2 - len(arguments))))
        reader = self._union(declared, readers) if len(readers) > 1 else readers[0]
        entries = self.of(arguments[0]) if arguments else self.any
        likes: tuple[tuple[type, type], ...] = ((str, str), (bytes, int))  # a str is a Sequence[str]
        texts = {text for text, entry in likes if issubclass(text, cls) and entry in entries.natives}

        def read(node: Node) -> object:
            try:
                return reader.read(node)
            except Misfit:
                value = value_of(node, self.limits)
                if type(value) in texts:
                    return value
                raise

        return _reader(read, frozenset(texts), reader.plain)

    def _typed_dict(self, declared: object, cls: Any) -> Reader:
        """A dict; keys beside the declared ones are kept, as a type checker allows them."""
        hints = _field_types(declared, cls, hints_of(cls))
        readers = {name: self.of(hint) for name, hint in hints.items()}
        required = {name for name, hint in hints.items() if _is_required(cls, name, hint)}

        def read(node: Node) -> object:
            kind = type_of(node)
            if kind is not dict or TYPE in node:
                raise _mismatch(declared, node)
            if missing := required - node.keys():
                raise Misfit(f"expected {cls.__qualname__}, found a dict without the key {min(missing)!r}")
            return _read_fields(node, lambda name: readers.get(name, self.any), key_part)

        return _reader(read)

    # --- objects --------------------------------------------------------------------------------------------------

    def _object(self, declared: object, shape: Shape) -> Reader:
        found = _ObjectReader(declared, shape, self.any)
        reader = self._drafts[declared] = _reader(found.read)  # known to its own fields without a detour
        hints = _field_types(declared, shape.cls, shape.hints())
        for name in (*shape.names, *hints) if shape.open else shape.names:
            found.readers[name] = self.of(hints.get(name, Any))
        return reader


class _ObjectReader:
    """Reads the objects of one class.

    Stored fields mostly have the same names in the same order and need no work of their own: then two tuples
    are compared, of names and of types. Tuples of types found to fit are remembered, up to a small number.
    """

    __slots__ = ("any", "declared", "keys", "make", "readers", "shape", "signatures")

    def __init__(self, declared: object, shape: Shape, any_reader: Reader) -> None:
        self.declared, self.shape, self.any = declared, shape, any_reader
        self.readers: dict[str, Reader] = {}
        self.keys = (TYPE, *shape.names)
        self.make = shape.make
        self.signatures: set[tuple[type, ...]] = set()

    def read(self, node: Node) -> object:
        kind = type_of(node)
        if kind is not dict or node.get(TYPE) != self.shape.name:
            raise _mismatch(self.declared, node)
        fields = node.copy()  # the node stays whole: another member of a union may read it again
        del fields[TYPE]
        if tuple(node) == self.keys:
            signature = tuple(map(type, node.values()))
            if signature in self.signatures or self._fits(signature):
                return self.make(fields)
        else:
            self._refuse_unknown(fields)
        readers, name = self.readers, ""
        try:
            for name, item in fields.items():
                read, natives, _ = readers.get(name, self.any)
                if type(item) not in natives:
                    fields[name] = read(item)
        except Misfit as misfit:
            raise misfit.under(field_part(name))  # noqa: B904 - the same error, one part of the path longer
        return self.make(self._complete(fields))

    def _fits(self, signature: tuple[type, ...]) -> bool:
        pairs = zip(signature[1:], self.shape.names, strict=True)
        if not all(kind in self.readers[name].natives for kind, name in pairs):
            return False
        if len(self.signatures) < _SIGNATURES_MAX:
            self.signatures.add(signature)
        return True

    def _refuse_unknown(self, fields: dict[str, object]) -> None:
        if not self.shape.open and (unknown := fields.keys() - self.readers.keys()):
            raise Misfit(f"{self.shape.name} has no field {min(unknown)!r}; a stored field must stay in the class")

    def _complete(self, fields: dict[str, object]) -> dict[str, object]:
        """``fields`` in the class's order, with defaults for those that it gained since they were stored."""
        shape = self.shape
        if tuple(fields) == shape.names:
            return fields
        for name in shape.names:
            if name not in fields and name not in shape.optional:
                if name not in shape.defaults:
                    raise Misfit(f"field {name!r} of {shape.name} is not stored and has no default; give it one")
                fields[name] = shape.defaults[name]()
        return {name: fields[name] for name in (*shape.names, *fields) if name in fields}


def _member_reader(cls: type[Enum]) -> Reader:
    name = cls.__qualname__

    def read(node: Node) -> object:
        kind = type_of(node)
        if kind is not dict or node.get(TYPE) != name:
            raise _mismatch(cls, node)
        return make_member(cls, node)

    return _reader(read)


def _refuse_namesakes(union: tuple[object, ...]) -> None:
    """Stored objects carry their class's name alone, so a union cannot tell two classes of one name apart."""
    classes = {cls for member in union if (cls := class_of(member)) is not None}
    names = [cls.__qualname__ for cls in classes]
    if doubled := sorted(name for name in names if names.count(name) > 1):
        raise Misfit(f"the union has two classes named {doubled[0]}; rename one, as only the name is stored")


def _is_required(cls: Any, name: str, hint: object) -> bool:
    """Whether a TypedDict must have a key; it does not know that itself where its annotations are texts."""
    origin = typing.get_origin(hint)
    return origin is typing.Required or (name in cls.__required_keys__ and origin is not typing.NotRequired)


def _field_types(declared: object, cls: type, hints: Mapping[str, object]) -> dict[str, object]:
    """The types of a class's fields, with the type variables of each base replaced."""
    if not hasattr(cls, "__parameters__") and not hasattr(cls, "__orig_bases__"):
        return dict(hints)
    given = variables(declared, cls)
    return {name: substitute(hint, given.get(owner(cls, name), {})) for name, hint in hints.items()}


def _read_items(items: list[Any], entries: Reader) -> list[object]:
    if entries.natives.issuperset(map(type, items)):
        return items
    found: list[object] = []
    read, natives, _ = entries
    try:
        for item in items:
            found.append(item if type(item) in natives else read(item))
    except Misfit as misfit:
        raise misfit.under(f"[{len(found)}]")  # noqa: B904 - the same error, one part of the path longer
    return found


def _read_fields(
    fields: Mapping[str, object], reader_of: Callable[[str], Reader], part: Callable[[str], str]
) -> dict[str, object]:
    found: dict[str, object] = {}
    name = ""
    try:
        for name, item in fields.items():
            read, natives, _ = reader_of(name)
            found[name] = item if type(item) in natives else read(item)
    except Misfit as misfit:
        raise misfit.under(part(name))  # noqa: B904 - as above
    return found


def _read_key(keys: Reader, name: str) -> None:
    try:
        keys.value(name)
    except Misfit as misfit:
        raise misfit.under(key_part(name))  # noqa: B904 - as above


def _mismatch(declared: object, node: Node) -> Misfit:
    return Misfit(f"expected {type_name(declared)}, found {kind_of(node)}")
