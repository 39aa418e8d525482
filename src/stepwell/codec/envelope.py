"""The nine bytes in front of every stored value, and what they prove.

::

    offset  size  field
    0       2     magic      F5 57 ("W"); F5 never occurs in UTF-8, so text is not mistaken for an envelope
    2       1     version    of the envelope and of the tags inside, now 1
    3       1     codec id   1 json, 2 msgpack
    4       1     flags      bit 0: plain, the payload holds no tag
    5       4     CRC-32     big endian, over bytes 0 to 4 and the payload
    9       …     payload

Version and codec are looked at before the checksum: where the checksum stands is for the version to say.
The checksum finds damage, not malice; so nothing behind it is trusted either.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final
from zlib import crc32

from stepwell.errors import CorruptValue, UnknownFormat

MAGIC: Final = b"\xf5W"
VERSION: Final = 1
PLAIN: Final = 1
HEADER_BYTES: Final = 9
FLAGS_AT: Final = 4

_CODECS: Final = {1: "JsonCodec", 2: "MsgpackCodec"}
_HEADER: Final = Struct(">5sI")
_NO_ENVELOPE: Final = "the stored bytes are not a stepwell value: they do not start with its header"


def head_of(codec_id: int, flags: int) -> tuple[bytes, int]:
    """The first bytes of an envelope of this codec and these flags, and what its checksum begins with."""
    head = MAGIC + bytes((VERSION, codec_id, flags))
    return head, crc32(head)


def sealer(codec_id: int, flags: int) -> Callable[[bytes], bytes]:
    """A function that puts the header of this codec and these flags in front of a payload."""
    head, seed = head_of(codec_id, flags)

    def seal(payload: bytes) -> bytes:
        return head + crc32(payload, seed).to_bytes(4, "big") + payload

    return seal


def opener(codec_id: int) -> Callable[[bytes], bytes]:
    """A function that checks an envelope of this codec and returns its payload."""
    seed_of = dict(head_of(codec_id, flags) for flags in (0, PLAIN)).get
    unpack = _HEADER.unpack_from

    def open_envelope(data: bytes) -> bytes:
        if len(data) < HEADER_BYTES:
            raise CorruptValue(_NO_ENVELOPE)
        head, checksum = unpack(data)
        seed = seed_of(head)
        if seed is None:
            raise _refusal(data, codec_id)
        payload = data[9:]
        if crc32(payload, seed) != checksum:
            raise CorruptValue("the stored value is damaged: its checksum does not match")
        return payload

    return open_envelope


def codec_of(data: bytes) -> int:
    """The codec id in an envelope's header, whether or not this version knows that codec.

    Raises:
        CorruptValue: the bytes are no envelope.
        UnknownFormat: the envelope is of a newer version, where the id may stand elsewhere.
    """
    if len(data) < HEADER_BYTES or bytes(data[:2]) != MAGIC:
        raise CorruptValue(_NO_ENVELOPE)
    if data[2] != VERSION:
        raise UnknownFormat(
            f"the value was written in format version {data[2]}, this stepwell reads version {VERSION}; "
            "read it with the stepwell that wrote it, or a newer one"
        )
    return data[3]


def _refusal(data: bytes, codec_id: int) -> UnknownFormat:
    """Why a header is none of this codec's; raises where it is no header that this version knows at all."""
    found = codec_of(data)
    if found == codec_id:
        return UnknownFormat(f"the value carries flags 0x{data[FLAGS_AT]:02x}, which this stepwell does not know")
    if found not in _CODECS:
        return UnknownFormat(f"the value was written by codec {found}, which this stepwell does not know")
    return UnknownFormat(
        f"the value was written by {_CODECS[found]} and is read with {_CODECS[codec_id]}; "
        f"give the backend codec={_CODECS[found]}()"
    )
