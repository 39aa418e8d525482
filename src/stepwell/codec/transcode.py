"""Values of one codec rewritten for another, without knowing their types.

The tree is rewritten, not the value: both codecs write the same tree but for a few leaves that one of them has natively
and the other tags (bytes, floats that are not finite), and the order of sets, which is that of their entries' bytes.
Nothing is decoded, so nothing can be lost: not two objects that only their identity tells apart, nor a time zone that
this machine does not have. What comes out is byte for byte what the other codec would have written of the same value,
but for one thing: MessagePack tells one NaN from another by its bits, and JSON knows only one.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from typing import Final

from stepwell.errors import CorruptValue, UnknownFormat, ValueTooLarge

from . import tags
from .base import Codec, EnvelopeCodec
from .json import JsonCodec
from .msgpack import MsgpackCodec
from .tags import LEAVES, TYPE, Damaged, Node, TooLarge, type_of
from .values import CONTAINERS, split, value_of

_CODECS: Final = {1: JsonCodec, 2: MsgpackCodec}
_SETS: Final = frozenset({tags.SET, tags.FROZENSET})
_NESTING: Final = frozenset({*CONTAINERS, tags.DICT})
_BINARY: Final = frozenset({tags.BYTES, tags.BYTEARRAY, tags.STR})
_ALIKE: Final = frozenset({tags.COMPLEX, tags.DATETIME, tags.DATE, tags.TIME, tags.TIMEDELTA, tags.DECIMAL, tags.UUID_})


def transcoder(source_id: int, target: Codec) -> Callable[[bytes], bytes]:
    """A function that takes values of the codec with this id to ``target``; those of its own are only checked.

    The function raises :class:`~stepwell.errors.CorruptValue`, :class:`~stepwell.errors.UnknownFormat` and, where a
    value exceeds the target's limits, :class:`~stepwell.errors.ValueTooLarge`.

    Raises:
        UnknownFormat: there is no way from the one to the other.

    Example:
        >>> to_json = transcoder(2, JsonCodec())
        >>> to_json(MsgpackCodec().encode(b"x")) == JsonCodec().encode(b"x")
        True
    """
    if not isinstance(target, EnvelopeCodec):
        if source_id == target.id:
            return bytes
        raise UnknownFormat(_no_way(source_id, target))
    if source_id == target.id:
        return _checker(target)
    if source_id not in _CODECS:
        raise UnknownFormat(_no_way(source_id, target))
    return _rewriter(_CODECS[source_id](target.limits), target)


def _no_way(source_id: int, target: Codec) -> str:
    return (
        f"the values were written by codec {source_id}, which cannot be rewritten for {type(target).__name__} "
        f"(codec {target.id}); give the backend the codec that wrote them"
    )


def _checker(codec: EnvelopeCodec) -> Callable[[bytes], bytes]:
    def check(data: bytes) -> bytes:
        _check_size(data, codec)
        codec.tree_of(data)
        return data

    return check


def _rewriter(source: EnvelopeCodec, target: EnvelopeCodec) -> Callable[[bytes], bytes]:
    def rewrite(data: bytes) -> bytes:
        _check_size(data, target)
        walk = _Walk(target)
        try:
            tree = walk.node(source.tree_of(data))
        except TooLarge as misfit:
            raise ValueTooLarge(misfit.reason) from None
        except Damaged as misfit:
            raise CorruptValue(misfit.reason) from None
        except RecursionError:
            raise CorruptValue("the value nests too deeply for the stack that is left") from None
        return target.envelope_of(tree, plain=not walk.tagged)

    return rewrite


def _check_size(data: bytes, target: EnvelopeCodec) -> None:
    if len(data) > target.limits.value_bytes:
        raise ValueTooLarge(
            f"a value has {len(data)} bytes, over the limit of {target.limits.value_bytes}; raise Limits.value_bytes"
        )


class _Walk:
    """One pass over one tree; ``tagged`` says whether a tag was written."""

    __slots__ = ("binary", "limits", "order", "tagged")

    def __init__(self, target: EnvelopeCodec) -> None:
        self.binary, self.limits, self.tagged = target.binary, target.limits, False
        self.order: Callable[[Node], bytes] = target.dumps

    def node(self, node: Node) -> Node:
        kind = type_of(node)
        if kind is list:
            return self._list(node)
        if kind is dict:
            self.tagged |= TYPE in node
            return {key: self.node(item) for key, item in node.items()}
        if kind not in LEAVES:
            raise Damaged(f"found a {kind.__name__} where stored values have none")
        if self.binary or not (kind is bytes or (kind is float and node - node)):
            return node
        return self._tag(tags.BYTES, _text(node)) if kind is bytes else self._tag(tags.FLOAT, repr(node))

    def _tag(self, tag: str, *nodes: Node) -> Node:
        self.tagged = True
        return [tag, *nodes]

    def _list(self, node: list[Node]) -> Node:
        tag, items = split(node)
        if items is node:
            return [self.node(item) for item in node]
        if tag in _NESTING:
            nodes = [self.node(item) for item in items]
            return self._tag(tag, *(sorted(nodes, key=self.order) if tag in _SETS else nodes))
        if tag in _BINARY:
            return self._bytes(tag, items)
        if tag == tags.FLOAT:
            return self.node(value_of(node, self.limits))
        if tag == tags.INT:
            value_of(node, self.limits)  # its digits are counted
        elif tag not in _ALIKE:
            raise UnknownFormat(
                f"the value holds the tag {tag[:20]!r}, which this stepwell does not know; use a newer one"
            )
        return self._tag(*node)

    def _bytes(self, tag: str, items: list[Node]) -> Node:
        data: Node = value_of([tags.BYTES, *items], self.limits)
        if tag == tags.BYTES:
            return self.node(data)
        return self._tag(tag, data if self.binary else _text(data))


def _text(data: bytes) -> str:
    return b64encode(data).decode("ascii")
