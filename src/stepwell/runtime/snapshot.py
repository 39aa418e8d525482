"""Taking one instance out of a store, whole, and putting it into another.

A snapshot is what the store has of the last run of an instance: header, journal with every value, the plans it was
written under, and the inbox. Restored, it is due as its state says, held by nobody, and goes on with
``runner.resume`` or ``recover``; no step that is done runs again.

Idempotency keys are made from the id of the store in which the run began, its instance id, run, workflow and path. A
snapshot carries that first id along, so a step that was in flight asks the outside world with the same key as before.
Under another instance id it is another instance, and its keys are others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import msgspec

from stepwell.backend.base import Backend, Created, Creation, Entry, Header, Loaded, Message
from stepwell.codec.transcode import transcoder
from stepwell.engine import facts as f
from stepwell.engine.frontier import Frontier, to_image
from stepwell.errors import (
    AlreadyRunning,
    CodecError,
    CorruptValue,
    InstanceDamaged,
    InstanceExists,
    OptionError,
    UsageError,
)
from stepwell.flow.plan import Plan
from stepwell.types import check_instance_id

from . import snapshot_format as form
from .live import frontier_of
from .requests import value_of
from .stored import missing, stored_plan

if TYPE_CHECKING:
    from .room import Room

LOOKS_MAX: Final = 16
_PAGE: Final = 256

Move: TypeAlias = Callable[[bytes], bytes]


# --- taking ----------------------------------------------------------------------------------------------


def snapshot_of(room: Room, instance_id: str) -> bytes:
    """Return the last run of an instance as bytes that :func:`restore_into` takes, in any store.

    It may be in any state, and somebody may be working on it. What is taken is what is recorded at one moment, inbox
    and journal together. A step that runs at that moment is open in the snapshot: if the original goes on while a copy
    is restored elsewhere, both run it, with the same idempotency key. Pause or cancel the original first where that
    matters.

    Raises:
        InstanceNotFound: there is no such instance.
        InstanceDamaged: its rows contradict each other, so no store would take them.
        AlreadyRunning: it moved on each time it was looked at; pause it, or try again.
        ValueTooLarge: it takes more than 1 GiB.
    """
    backend = _backend_of(room)
    seen = _look(backend, check_instance_id(instance_id))
    try:
        plans = _plans(room, seen.loaded.header, [f.decode(entry.facts) for entry in seen.entries])
    except (msgspec.MsgspecError, ValueError) as error:
        raise InstanceDamaged(instance_id, "its journal cannot be read") from error
    state = frontier_of(plans[-1], seen.loaded)
    snapshot = _snapshot(backend, seen, plans, state)
    try:
        form.state_of(snapshot)
    except CorruptValue as error:
        raise InstanceDamaged(instance_id, "its journal leads to another state than its image says") from error
    return form.write(snapshot, backend.codec_id)


class _Seen(NamedTuple):
    """What a store had of an instance at one moment."""

    loaded: Loaded
    entries: Sequence[Entry]
    received: Sequence[str]


def _look(backend: Backend, instance_id: str) -> _Seen:
    """Read an instance in several transactions, until nothing has changed between the first and the last.

    A journal only grows, so another look reads only what is new.
    """
    loaded, entries = _load(backend, instance_id), list[Entry]()
    for _ in range(LOOKS_MAX):
        before = loaded.header
        _read_on(backend, before, entries)
        received = backend.received(before.instance)
        loaded, first = _load(backend, instance_id), loaded
        if loaded.header == before and loaded.mail == first.mail:
            return _Seen(loaded, entries, received)
        if loaded.header.instance != before.instance:  # another run has taken its place
            entries.clear()
    raise AlreadyRunning(
        instance_id, f"it moved on each of the {LOOKS_MAX} times it was read; pause it, or take the snapshot again"
    )


def _load(backend: Backend, instance_id: str) -> Loaded:
    loaded = backend.load(instance_id)
    if loaded is None:
        raise missing(backend, instance_id)
    return loaded


def _read_on(backend: Backend, header: Header, entries: list[Entry]) -> None:
    """Add the entries that are missing up to the header's last one."""
    size = sum(len(entry.facts) + len(entry.output or b"") for entry in entries)
    while (missing := header.seq - len(entries)) > 0:
        page = backend.history(header.instance, len(entries), min(_PAGE, missing))
        if not page:
            return  # it was deleted, or lacks entries: what is read next says which
        entries += page
        size += sum(len(entry.facts) + len(entry.output or b"") for entry in page)
        form.check_size(size)


def _plans(room: Room, header: Header, history: form.History) -> list[Plan]:
    """Return the plans that a journal was written under, oldest first, each once."""
    names = form.eras(history, header.fingerprint)
    return [stored_plan(room, msgspec.structs.replace(header, fingerprint=name)) for name in names]


def _snapshot(backend: Backend, seen: _Seen, plans: Sequence[Plan], state: Frontier) -> form.Snapshot:
    header, entries = seen.loaded.header, seen.entries
    updated_us = max(header.updated_us, entries[-1].at_us if entries else 0)
    ended_us = header.ended_us  # a row may lag behind its journal, where a runner was cut off between the two
    if state.ended and ended_us is None:
        ended_us = updated_us
    return form.Snapshot(
        instance_id=header.instance_id,
        run=header.run,
        origin=header.origin or backend.backend_id,
        workflow=header.workflow,
        fingerprint=header.fingerprint,
        state=state.status(updated_us),
        created_us=header.created_us,
        updated_us=updated_us,
        ended_us=ended_us,
        due_us=state.next_due_us(),
        result_seq=state.result,
        input_digest=header.input_digest,
        labels=dict(header.labels),
        trace=header.trace,
        plans=[plan.to_bytes() for plan in plans],
        entries=[form.Row(e.facts, e.output, e.at_us, e.took_us) for e in entries],
        image=to_image(state),
        mail=[form.Note(m.kind, m.name, m.payload, m.at_us, m.message_id) for m in seen.loaded.mail],
        message_ids=list(seen.received),
        lane=header.lane,
        mail_traces=[m.trace for m in seen.loaded.mail] if any(m.trace for m in seen.loaded.mail) else [],
    )


# --- restoring -------------------------------------------------------------------------------------------


def restore_into(room: Room, data: bytes, instance_id: str | None = None) -> Header:
    """Put an instance into this store as :func:`snapshot_of` took it, and return its header.

    An unfinished one is held by nobody and due as its state says: ``runner.resume`` or ``recover`` goes on with it. The
    store may be of another kind and have another codec; then values are rewritten for it.

    Args:
        instance_id: another id for it; ``None``: its own. Under its own id steps have the idempotency keys they had
            before; under another id they have others, as it is another instance.

    Raises:
        InstanceExists: the id is taken here; nothing was changed.
        InstanceDamaged: this store has its plan already, but cannot read it.
        CorruptValue: the bytes are damaged, or no snapshot; nothing was written.
        UnknownFormat: a newer stepwell wrote it, or its codec's values cannot be rewritten for this store.
        ValueTooLarge: a value exceeds the limits of this store's codec.
        OptionError: ``data`` is not bytes, or ``instance_id`` cannot name an instance.
    """
    backend = _backend_of(room)
    snapshot, codec_id = form.read(_bytes_of(data))
    name = snapshot.instance_id if instance_id is None else check_instance_id(instance_id)
    plans, state = form.state_of(snapshot, lambda plan: _known(room, name, plan))
    move = transcoder(codec_id, backend.codec)
    entries, messages = _entries(snapshot, move), _messages(snapshot, move)
    if (there := backend.header(name)) is not None:
        raise _taken(there)
    ids = {plan.fingerprint: backend.register(plan.name, plan.fingerprint, plan.to_bytes()) for plan in plans}
    creation = Creation(
        instance_id=name,
        definition=ids[snapshot.fingerprint],
        input_digest=snapshot.input_digest,  # it is made of the input's tree in MessagePack, whatever the codec
        entries=entries,
        at_us=snapshot.created_us,
        state=state.status(snapshot.updated_us),
        due_us=state.next_due_us(),
        labels=snapshot.labels,
        trace=snapshot.trace,
        claim=False,
        image=to_image(state),
        origin="" if snapshot.origin == backend.backend_id else snapshot.origin,
        run=snapshot.run,
        messages=messages,
        message_ids=snapshot.message_ids,
        result_seq=snapshot.result_seq,
        updated_us=snapshot.updated_us,
        ended_us=snapshot.ended_us,
        lane=snapshot.lane,
    )
    answer = backend.create(None, [creation])[0]
    if isinstance(answer, Created):
        return answer.header
    assert isinstance(answer, Header), "only a replacing creation can meet a conflict"
    raise _taken(answer)


def _bytes_of(data: object) -> bytes:
    if isinstance(data, bytes | bytearray):
        return bytes(data)
    raise OptionError(f"a snapshot is bytes, as client.snapshot() returned them, not {type(data).__name__}")


def _backend_of(room: Room) -> Backend:
    if room.backend is None:
        raise UsageError("an InProcessRunner keeps no instances; use a CheckpointingRunner for snapshots")
    return room.backend


def _known(room: Room, instance_id: str, plan: Plan) -> Plan:
    """Return the plan that this store has already under a fingerprint, else ``plan``."""
    try:
        return room.stored_plan(plan.name, plan.fingerprint) or plan
    except msgspec.MsgspecError as error:
        raise InstanceDamaged(instance_id, f"the plan that this store has of {plan.name!r} cannot be read") from error


def _taken(header: Header) -> InstanceExists:
    return InstanceExists(
        header.instance_id,
        f"it exists here already ({header.state}); delete it first, or restore under another id with instance_id=",
    )


def _entries(snapshot: form.Snapshot, move: Move) -> list[Entry]:
    """Return the journal, its values those of this store's codec."""
    entries: list[Entry] = []
    for seq, row in enumerate(snapshot.entries, 1):
        output = None if row.output is None else _moved(move, row.output, f"the value of journal entry {seq}")
        entries.append(Entry(seq, row.facts, output, row.at_us, row.took_us))
    return entries


def _messages(snapshot: form.Snapshot, move: Move) -> list[Message]:
    messages: list[Message] = []
    traces = snapshot.mail_traces or [""] * len(snapshot.mail)
    for note, trace in zip(snapshot.mail, traces, strict=True):
        message = Message(note.kind, note.name, note.payload, note.at_us, note.message_id, trace=trace)
        if (value := value_of(message)) is not None:
            payload = _moved(move, value, f"the payload of a waiting {note.kind}")
            message = msgspec.structs.replace(message, payload=payload)
        messages.append(message)
    return messages


def _moved(move: Move, value: bytes, what: str) -> bytes:
    try:
        return move(value)
    except CodecError as error:
        raise type(error)(f"the snapshot cannot be restored here: {what} is refused: {error}") from error
