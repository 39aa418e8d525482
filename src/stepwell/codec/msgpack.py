"""Values as MessagePack: smaller than JSON, and bytes need no base64."""

from __future__ import annotations

from typing import Final, NoReturn

import msgspec

from stepwell.types import DEFAULT_LIMITS, Limits

from .base import EnvelopeCodec, Format

# The first bytes of arrays and maps. As part of a number or a str they are counted too; that only costs a look.
_OPENINGS: Final = bytes((*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF))


def _refuse_extension(code: int, data: memoryview) -> NoReturn:
    raise ValueError(f"extension type {code}")


def _openings(payload: bytes) -> int:
    return len(payload) - len(payload.translate(None, _OPENINGS))


class MsgpackCodec(EnvelopeCodec):
    """Stores values as MessagePack, smaller than JSON where there are bytes. See :class:`Codec`.

    Args:
        limits: what a value may measure.

    Example:
        >>> codec = MsgpackCodec()
        >>> codec.decode(codec.encode({"when": (1, 2)}))
        {'when': (1, 2)}
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        dumps = msgspec.msgpack.Encoder().encode
        loads = msgspec.msgpack.Decoder(ext_hook=_refuse_extension).decode
        super().__init__(Format("msgpack", 2, True, dumps, loads, _openings, level_bytes=1), limits)
