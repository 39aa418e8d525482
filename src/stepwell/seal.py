"""The checksum under which facts, images and plans are stored: a flipped bit must be noticed, not believed.

SQLite keeps no checksum of its pages, and most damaged MessagePack is still MessagePack. CRC-32 stands behind the bytes
rather than before them, so that a reader of another language may simply ignore the last four.
"""

from __future__ import annotations

import zlib
from typing import Final

import msgspec

SEAL_BYTES: Final = 4


def seal(body: bytes) -> bytes:
    """Return ``body`` with its checksum."""
    return body + zlib.crc32(body).to_bytes(SEAL_BYTES, "little")


def unseal(stored: bytes) -> bytes:
    """Return what was sealed. Raises ``msgspec.DecodeError`` if it is not what was stored."""
    body, checksum = stored[:-SEAL_BYTES], stored[-SEAL_BYTES:]
    if zlib.crc32(body).to_bytes(SEAL_BYTES, "little") != checksum:
        raise msgspec.DecodeError("the checksum does not match")
    return body
