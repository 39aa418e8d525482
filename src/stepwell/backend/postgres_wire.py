"""The types of :mod:`.postgres_pack`, made known to psycopg."""

from __future__ import annotations

from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import AdaptersMap, Dumper
from psycopg.pq import Format
from psycopg.types.numeric import Int8BinaryDumper
from psycopg.types.string import StrBinaryDumper

from .postgres_pack import BYTEA, Byteas, Int8s, Texts


class _Sent(Dumper):
    """Sends bytes that are ready as what their type says."""

    format = Format.BINARY

    def dump(self, obj: Buffer) -> Buffer:
        return obj


class _Int8s(_Sent):
    oid = 1016


class _Byteas(_Sent):
    oid = 1001


class _Texts(_Sent):
    oid = 1009


class _Bytea(_Sent):
    oid = BYTEA


def set_up(context: AdaptContext) -> None:
    """Let a connection or a cursor send values as this module says, whatever its adapters were."""
    adapters: AdaptersMap = context.adapters
    adapters.register_dumper(int, Int8BinaryDumper)
    adapters.register_dumper(str, StrBinaryDumper)
    adapters.register_dumper(bytes, _Bytea)
    adapters.register_dumper(Int8s, _Int8s)
    adapters.register_dumper(Byteas, _Byteas)
    adapters.register_dumper(Texts, _Texts)
