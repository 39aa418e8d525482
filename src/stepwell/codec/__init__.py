"""Values to bytes and back, exactly: envelopes, two payload formats, declared types."""

from .base import Codec, check_codec, check_encodable, check_same_codec, codec_name, digest
from .envelope import codec_of
from .hints import assignable, type_name
from .json import JsonCodec
from .msgpack import MsgpackCodec
from .tags import Record

__all__ = [
    "Codec",
    "JsonCodec",
    "MsgpackCodec",
    "Record",
    "assignable",
    "check_codec",
    "check_encodable",
    "check_same_codec",
    "codec_name",
    "codec_of",
    "digest",
    "type_name",
]
