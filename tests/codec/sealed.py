"""Envelopes around payloads of the test's choice, with a valid checksum, so that what lies behind it is reached."""

from __future__ import annotations

from zlib import crc32

from stepwell.codec import Codec


def seal(codec: Codec, payload: bytes, flags: int = 0, version: int = 1, codec_id: int | None = None) -> bytes:
    """An envelope as the format describes it, written independently of the codec."""
    head = b"\xf5W" + bytes((version, codec.id if codec_id is None else codec_id, flags))
    return head + crc32(payload, crc32(head)).to_bytes(4, "big") + payload
