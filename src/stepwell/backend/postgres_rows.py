"""Rows of PostgreSQL as the records of :mod:`.base`, and changes as the arrays of a statement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from stepwell.types import ENDED

from .base import Change, Entry, Header, Holder, Loaded, Message, Session
from .liveness import is_dead
from .postgres_pack import byteas, from_utf8, int8s, texts, utf8

Row: TypeAlias = tuple[Any, ...]


def holder_of(row: Row) -> Holder:
    name, host, pid, started, boot_id, namespace = row
    return Holder(from_utf8(name), from_utf8(host), pid, started, from_utf8(boot_id), from_utf8(namespace))


def holder_name(row: Row, mine: int = 0) -> str | None:
    """Return the name of the session in the columns of :data:`.postgres_queries.HOLDER` if it counts."""
    number, current, *rest = row
    if number is None:
        return None
    if number == mine:
        return from_utf8(rest[0])
    return None if not current or is_dead(holder := holder_of(tuple(rest))) else holder.name


def header_of(row: Row, mine: int = 0) -> Header:
    """Make a header of the columns of :data:`.postgres_queries.COLUMNS`; ``mine`` is a session that counts anyway."""
    (
        instance, instance_id, run, workflow, fingerprint, state, seq, created_us, updated_us, ended_us, due_us, digest,
        result_seq, mail, labels, trace, definition, origin, suspect, suspect_seq, offered, lane, *holder,
    ) = row  # fmt: skip
    name = holder_name(tuple(holder), mine)
    return Header(
        instance, from_utf8(instance_id), run, from_utf8(workflow), from_utf8(fingerprint), state, seq, created_us,
        updated_us, ended_us, due_us, digest, result_seq, name if name is not None else "", mail,
        labels_of(labels) if labels is not None else {}, from_utf8(trace), holder[0] if name is not None else 0,
        definition, from_utf8(origin), suspect if suspect_seq == seq else 0, offered, from_utf8(lane),
    )  # fmt: skip


def loaded_of(row: Row, mine: int = 0) -> Loaded:
    *front, image, seqs, facts, brought, times, took, kinds, names, payloads, sent, message_ids, ids, traces = row
    outputs = [brought, *[None] * (len(seqs) - 1)] if seqs else []
    entries = [Entry(*each) for each in zip(seqs, facts, outputs, times, took, strict=True)] if seqs else []
    mail = zip(kinds, names, payloads, sent, message_ids, ids, traces, strict=True) if ids else ()
    return Loaded(header_of(tuple(front), mine), image, entries, [message_of(each) for each in mail])


def message_of(row: Row) -> Message:
    kind, name, payload, at_us, message_id, number, trace = row
    return Message(from_utf8(kind), from_utf8(name), payload, at_us, from_utf8(message_id), number, from_utf8(trace))


def labels_of(text: bytes) -> dict[str, str]:
    """Return labels as they were given, none if the text is damaged: one bad row must not stop a list."""
    try:
        return msgspec.json.decode(text, type=dict[str, str])
    except msgspec.MsgspecError:
        return {}


def is_plain(session: Session | None, changes: Sequence[Change]) -> bool:
    """Whether no change needs more than the admission in the statement that writes it."""
    if session is None or not changes or len({change.instance for change in changes}) != len(changes):
        return False
    for change in changes:
        if not change.entries or change.base <= 0 or change.message_ids or not is_numbered(change):
            return False
        if change.rest is not None and change.rest.definition is not None:
            return False
    return True


def is_lone(session: Session | None, changes: Sequence[Change]) -> bool:
    """Whether this is one step of one instance that goes on."""
    if session is None or len(changes) != 1:
        return False
    (change,) = changes
    if change.rest is not None or change.taken or change.message_ids or len(change.entries) != 1:
        return False
    return change.entries[0].seq == change.base + 1 > 1


def is_numbered(change: Change) -> bool:
    seq = change.base
    for entry in change.entries:
        seq += 1
        if entry.seq != seq:
            return False
    return True


def columns(entries: Sequence[Entry]) -> tuple[object, ...]:
    return (
        int8s([each.seq for each in entries]),
        int8s([each.at_us for each in entries]),
        int8s([each.took_us for each in entries]),
        byteas([each.facts for each in entries]),
        byteas([each.output for each in entries]),
    )


def steps(session: Session, changes: Sequence[Change]) -> tuple[object, ...]:
    """Return the parameters of :data:`.postgres_queries.STEPS`."""
    entries = [(change.instance, entry) for change in changes for entry in change.entries]
    return (
        session.id,
        session.token,
        int8s([change.instance for change in changes]),
        int8s([change.base for change in changes]),
        len(changes),
        int8s([instance for instance, _ in entries]),
        *columns([entry for _, entry in entries]),
    )


def rests(changes: Sequence[Change], nonce: int) -> tuple[object, ...]:
    """Return the further parameters of :data:`.postgres_queries.RESTS`."""
    taken = [(change.instance, number) for change in changes for number in change.taken]
    rests = [(change, change.rest) for change in changes if change.rest is not None]
    left = [(change.instance, rest) for change, rest in rests if rest.state not in ENDED]
    return (
        int8s([instance for instance, _ in taken]),
        int8s([number for _, number in taken]),
        int8s([change.instance for change, rest in rests if rest.state in ENDED]),
        int8s([instance for instance, _ in left]),
        int8s([rest.due_us for _, rest in left]),
        int8s([int(not rest.release) for _, rest in left]),
        byteas([utf8(rest.avoid) for _, rest in left]),
        nonce,
        int8s([change.instance for change, _ in rests]),
        texts([rest.state for _, rest in rests]),
        byteas([rest.image for _, rest in rests]),
        int8s([change.base + len(change.entries) for change, _ in rests]),
        int8s([rest.result_seq for _, rest in rests]),
        int8s([change.entries[-1].at_us for change, _ in rests]),
        int8s([int(rest.state in ENDED) for _, rest in rests]),
    )
