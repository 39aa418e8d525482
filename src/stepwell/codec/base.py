"""The codec itself: envelope, tree and payload put together, for both payload formats."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Protocol
from zlib import crc32

import msgspec

from stepwell.errors import CorruptValue, DecodeError, EncodeError, OptionError, ValueTooLarge
from stepwell.types import DEFAULT_LIMITS, Limits

from .envelope import FLAGS_AT, HEADER_BYTES, PLAIN, head_of, opener, sealer
from .plain import MANY
from .tags import DICT, LEAVES, TYPE, Damaged, Misfit, Node, TooLarge, type_of
from .typed import Readers
from .writer import Dumps, Writer, too_large

DIGEST_BYTES: Final = 16
_DECODERS_MAX: Final = 4096
DEPTH_MAX: Final = 240  # orjson writes 253 levels; a tagged leaf takes one more

# What orjson and msgspec raise where a value does not fit their format. None of it carries a path, so the value
# is walked again to find it.
_REFUSALS: Final = (TypeError, ValueError, OverflowError)
_DAMAGE: Final = (ValueError, TypeError, OverflowError, RecursionError, MemoryError, msgspec.MsgspecError)


class Codec(Protocol):
    """Turns values into bytes and back, exactly.

    A value comes back equal and of the same type, or is refused before it is stored. Equal bytes come from
    equal values: nothing but the value goes into them.

    Example:
        >>> from stepwell import JsonCodec
        >>> codec = JsonCodec()
        >>> codec.decode(codec.encode((1, 2)), tuple[int, int])
        (1, 2)
    """

    name: str
    id: int
    limits: Limits

    def encode(self, value: object) -> bytes:
        """The whole envelope of ``value``.

        Raises:
            EncodeError: the value cannot be stored exactly; ``path`` says which part of it.
            ValueTooLarge: it exceeds a limit.
        """
        ...

    def decoder(self, declared: object) -> Callable[[bytes], object]:
        """A function that reads envelopes as ``declared``; compiled once per type.

        Raises:
            DecodeError: the type holds an unresolved name, or a class that cannot be rebuilt.
        """
        ...

    def decode(self, data: bytes, declared: object = Any) -> object:
        """The value in an envelope, read as ``declared``.

        Raises:
            DecodeError: the value does not fit the declared type; ``path`` says where.
            CorruptValue: the bytes are damaged or over a limit.
            UnknownFormat: another codec or a newer stepwell wrote them.
        """
        ...


_NAMES: Final = {1: "JsonCodec", 2: "MsgpackCodec"}


def check_codec(codec: object) -> None:
    """Refuse what was given for a codec and is none. Raises OptionError."""
    if isinstance(codec, type) or not all(hasattr(codec, name) for name in ("id", "limits", "encode", "decode")):
        given = f"the class {codec.__name__}" if isinstance(codec, type) else f"a {type(codec).__name__}"
        raise OptionError(f"codec= takes a codec, not {given}; write codec=JsonCodec() or codec=MsgpackCodec()")


def codec_name(codec_id: int) -> str:
    """Return how users call a codec, from the id that a store keeps of it."""
    return _NAMES.get(codec_id, f"the codec with id {codec_id}")


def check_same_codec(place: object, codec_id: int, codec: Codec) -> None:
    """Refuse another codec than the one whose id a store keeps. Raises OptionError."""
    if codec.id == codec_id:
        return
    was = codec_name(codec_id)
    mend = f"codec={was}(), or no codec" if codec_id in _NAMES else f"{was} as codec="
    raise OptionError(f"{place} was created with {was} and is opened with {type(codec).__name__}; pass {mend}")


@dataclass(frozen=True, slots=True)
class Format:
    """A payload format.

    ``openings`` gives at least the number of containers in a payload, without reading it; ``level_bytes`` is
    the least that one level of nesting takes.
    """

    name: str
    id: int
    binary: bool
    dumps: Dumps
    loads: Callable[[bytes], object]
    openings: Callable[[bytes], int]
    level_bytes: int


class EnvelopeCodec:
    """What both codecs share; a subclass chooses the format."""

    def __init__(self, form: Format, limits: Limits) -> None:
        if not 1 <= limits.depth <= DEPTH_MAX:
            raise OptionError(f"Limits.depth is {limits.depth}; codecs take 1 to {DEPTH_MAX}")
        self.name, self.id, self.limits, self.binary = form.name, form.id, limits, form.binary
        self._writer = writer = Writer(limits, form.dumps, binary=form.binary)
        self.dumps, self._size_few = writer.dumps, writer.size_few
        self._canonical = _canonical_writer(limits)
        self._readers = Readers(limits, self._writer.shape)
        self._tree, self._loads = _tree_opener(form, limits), form.loads
        self._seal, self._seal_plain = sealer(form.id, 0), sealer(form.id, PLAIN)
        self._plain_head = head_of(form.id, PLAIN)
        self._short = _short(form, limits)
        self._decoders: dict[object, Callable[[bytes], object]] = {}
        self._room = limits.value_bytes - HEADER_BYTES

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.limits!r})"

    def encode(self, value: object) -> bytes:
        try:
            size = self._size_few(value, 1)  # Writer.is_plain, written out: most calls end within these lines
            if size >= 0 or (size == MANY and self._writer.is_plain_in_all(value)):
                try:
                    payload: bytes | None = self.dumps(value)
                except _REFUSALS:
                    payload = None  # an int over 64 bits or a lone surrogate; a walk finds and tags it
                if payload is not None and len(payload) <= self._room:
                    head, seed = self._plain_head  # sealed here for the same reason
                    return head + crc32(payload, seed).to_bytes(4, "big") + payload
            return self._seal(self._tagged(value))
        except Exception as error:  # noqa: BLE001 - see _encode_error
            raise _encode_error(error, value) from (None if isinstance(error, Misfit) else error)

    def decoder(self, declared: object) -> Callable[[bytes], object]:
        try:
            known = self._decoders.get(declared)
        except TypeError:
            return self._make_decoder(declared)  # an unhashable type, such as Literal[[]]
        if known is None:
            if len(self._decoders) >= _DECODERS_MAX:
                self._decoders.clear()
            known = self._decoders[declared] = self._make_decoder(declared)
        return known

    def decode(self, data: bytes, declared: object = Any) -> object:
        return self.decoder(declared)(data)

    def tree_of(self, data: bytes) -> Node:
        """The tree in an envelope as :mod:`.tags` describes it, within limits. Raises CorruptValue, UnknownFormat."""
        return self._tree(data)

    def envelope_of(self, tree: Node, *, plain: bool) -> bytes:
        """The envelope of a tree; ``plain`` says that no tag is in it. Raises CorruptValue, ValueTooLarge."""
        try:
            payload = self.dumps(tree)
        except _REFUSALS:
            raise CorruptValue(f"the stored value is damaged: its tree is none that {self.name} can hold") from None
        if len(payload) > self._room:
            raise ValueTooLarge(too_large(self.limits).reason)
        return (self._seal_plain if plain else self._seal)(payload)

    def digest(self, value: object) -> bytes:
        """See :func:`digest`."""
        return blake2b(_canonical_payload(self._canonical, value), digest_size=DIGEST_BYTES).digest()

    def _tagged(self, value: object) -> bytes:
        payload = self._payload_if_flat(value) or _payload(self._writer, value)
        if len(payload) > self._room:
            raise too_large(self.limits)
        return payload

    def _payload_if_flat(self, value: object) -> bytes | None:
        """The payload of an object whose fields are plain, without a walk. Its class must have been met before."""
        shape = self._writer.shapes.get(type(value))
        if shape is None:
            return None
        fields = shape.take(value)
        if self._size_few(fields, 1) < 0:
            return None
        return _dumps_or_none(self.dumps, {TYPE: shape.name, **fields})

    def _make_decoder(self, declared: object) -> Callable[[bytes], object]:
        tree, loads, short, (head, seed) = self._tree, self._loads, self._short, self._plain_head
        number = int.from_bytes
        try:
            read, natives, plain = self._readers.of(declared)
        except Misfit as misfit:
            raise DecodeError(misfit.reason) from None

        def decode(data: bytes) -> object:
            try:
                # What most values are, plain and too short to break a limit, is opened here and not in three calls.
                payload = data[9:]
                if len(data) <= short and data[:5] == head and crc32(payload, seed) == number(data[5:9], "big"):
                    try:
                        node = loads(payload)
                    except _DAMAGE:
                        node = tree(data)  # it says what is the matter
                    return node if type(node) in plain else read(node)
                node = tree(data)
                return node if type(node) in (plain if data[FLAGS_AT] & PLAIN else natives) else read(node)
            except Misfit as misfit:
                raise _decode_error(misfit) from None
            except RecursionError:
                raise CorruptValue("the value nests too deeply for the stack that is left") from None
            except DecodeError:
                raise
            except Exception as error:
                raise DecodeError(f"making the value raised {type(error).__name__}") from error

        return decode


def digest(codec: Codec, value: object) -> bytes:
    """16 bytes that stand for a value, whatever its dicts' order and whichever codec is used.

    Raises:
        EncodeError: the value cannot be stored.
    """
    if isinstance(codec, EnvelopeCodec):
        return codec.digest(value)
    payload = _canonical_payload(_canonical_writer(codec.limits), value)
    return blake2b(payload, digest_size=DIGEST_BYTES).digest()


def check_encodable(value: object) -> None:
    """Raise :class:`~stepwell.errors.EncodeError`, naming the path, if ``value`` cannot be stored."""
    _canonical_payload(_canonical_writer(DEFAULT_LIMITS), value)


def _canonical_writer(limits: Limits) -> Writer:
    return Writer(limits, _dumps_ordered, binary=True, ordered=True)


def _dumps_ordered(value: object) -> bytes:
    return msgspec.msgpack.encode(value, order="deterministic")


def _canonical_payload(writer: Writer, value: object) -> bytes:
    try:
        payload = _dumps_or_none(writer.dumps, value) if writer.is_plain(value) else None
        return payload or _payload(writer, value)
    except Exception as error:  # noqa: BLE001 - see _encode_error
        raise _encode_error(error, value) from (None if isinstance(error, Misfit) else error)


def _dumps_or_none(dumps: Dumps, value: object) -> bytes | None:
    try:
        return dumps(value)
    except _REFUSALS:
        return None  # an int over 64 bits or a lone surrogate; a walk finds and tags it


def _payload(writer: Writer, value: object) -> bytes:
    """The payload of a value that needs tags."""
    try:
        return writer.dumps(writer.tree(value, strict=False))
    except _REFUSALS:
        return writer.dumps(writer.tree(value, strict=True))


def _tree_opener(form: Format, limits: Limits) -> Callable[[bytes], object]:
    """A function that checks an envelope and gives the tree in it, within limits."""
    open_envelope, loads, openings = opener(form.id), form.loads, form.openings
    value_bytes, depth, keys = limits.value_bytes, limits.depth, limits.keys
    short = _short(form, limits)

    def tree(data: bytes) -> object:
        if len(data) > value_bytes:
            raise CorruptValue(f"the stored value has {len(data)} bytes, over the limit of {value_bytes}")
        payload = open_envelope(data)
        try:
            node = loads(payload)
        except _DAMAGE:
            raise CorruptValue(f"the stored value is damaged: its payload is no {form.name}") from None
        if len(payload) > short and (len(payload) > keys or openings(payload) > depth):
            _check_tree(node, limits, 1)
        return node

    return tree


def _short(form: Format, limits: Limits) -> int:
    """A length up to which no payload can exceed the limits on depth and keys; most payloads are shorter."""
    return min(limits.keys, limits.depth * form.level_bytes, limits.value_bytes)


def _check_tree(node: Node, limits: Limits, depth: int) -> None:
    """Hold a tree read from storage to the limits that one written here has kept."""
    kind = type_of(node)
    if kind is dict:
        inside: Collection[Node] = node.values()
    elif kind is list:
        inside = node
    else:
        return
    if depth > limits.depth + 1:  # a tagged leaf stands one level below its container
        raise CorruptValue(f"the stored value nests deeper than the limit of {limits.depth} levels")
    most = 2 * limits.keys if kind is list and node[:1] == [DICT] else limits.keys
    if len(inside) > most + 1:  # one more for a tag
        raise CorruptValue(f"the stored value has a container over the limit of {limits.keys} entries")
    if not LEAVES.issuperset(map(type, inside)):
        for item in inside:
            if type(item) not in LEAVES:
                _check_tree(item, limits, depth + 1)


def _encode_error(error: Exception, value: object) -> EncodeError:
    """What to raise for what came up while a value was written; properties and the like are the user's code."""
    if isinstance(error, Misfit):
        return (ValueTooLarge if isinstance(error, TooLarge) else EncodeError)(error.reason, error.path)
    if isinstance(error, RecursionError):
        return EncodeError("the value nests too deeply for the stack that is left; does it contain itself?")
    name = type(value).__qualname__
    return EncodeError(f"the {name} cannot be stored: reading it raised {type(error).__name__}")


def _decode_error(misfit: Misfit) -> DecodeError:
    kind = CorruptValue if isinstance(misfit, TooLarge | Damaged) else DecodeError
    return kind(misfit.reason, misfit.path)
