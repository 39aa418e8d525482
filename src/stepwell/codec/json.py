"""Values as JSON text: readable in the database, and by other languages."""

from __future__ import annotations

from typing import Final

import orjson

from stepwell.types import DEFAULT_LIMITS, Limits

from .base import EnvelopeCodec, Format


def _openings(payload: bytes) -> int:
    return payload.count(b"[") + payload.count(b"{")


_JSON: Final = Format("json", 1, False, orjson.dumps, orjson.loads, _openings, level_bytes=2)


class JsonCodec(EnvelopeCodec):
    """Stores values as JSON, which other programs can read in the file. See :class:`Codec`.

    Args:
        limits: what a value may measure.

    Example:
        >>> codec = JsonCodec()
        >>> codec.decode(codec.encode({"when": (1, 2)}))
        {'when': (1, 2)}
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        super().__init__(_JSON, limits)
