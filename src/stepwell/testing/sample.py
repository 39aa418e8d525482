"""Short words for common records, for tests of a store and for the processes they start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from stepwell.backend.base import (
    Backend,
    Change,
    Created,
    Creation,
    Entry,
    Filter,
    Header,
    Holder,
    Loaded,
    Message,
    Offer,
    Offered,
    Rest,
    Session,
    Want,
)
from stepwell.backend.liveness import this_process

LEASE_US: Final = 30_000_000
T0: Final = 1_700_000_000_000_000  # a moment; every time in the tests is counted from it
WAITING: Final = Rest("waiting", b"image")
RUNNING: Final = Rest("running", b"image", due_us=T0)
COMPLETED: Final = Rest("completed", b"image")
FAILED: Final = Rest("failed", b"image")


def session_of(backend: Backend, name: str = "ann", holder: Holder | None = None) -> Session:
    return backend.open_session(holder or this_process(name), LEASE_US)


def definition_of(backend: Backend, name: str = "work") -> int:
    return backend.register(name, f"{name}-fingerprint", b"plan of " + name.encode())


def entries(first: int, count: int = 1, output: bytes | None = b"out") -> list[Entry]:
    return [Entry(seq, b"facts %d" % seq, output, T0 + seq, took_us=seq) for seq in range(first, first + count)]


def creation(backend: Backend, instance_id: str = "a", *, workflow: str = "work", count: int = 1) -> Creation:
    return Creation(instance_id, definition_of(backend, workflow), b"digest", entries(1, count), T0, due_us=T0)


def create(backend: Backend, session: Session | None, made: Creation) -> Header:
    """Create an instance that does not exist yet."""
    (answer,) = backend.create(session, [made])
    assert isinstance(answer, Created)
    return answer.header


def start(backend: Backend, session: Session | None, instance_id: str = "a", *, workflow: str = "work") -> Header:
    return create(backend, session, creation(backend, instance_id, workflow=workflow))


def change(
    header: Header, base: int | None = None, count: int = 1, rest: Rest | None = None, taken: Sequence[int] = ()
) -> Change:
    base = header.seq if base is None else base
    return Change(header.instance, base, entries(base + 1, count), taken, rest)


def signal(name: str = "go", message_id: str = "", payload: bytes | None = b"payload", trace: str = "") -> Message:
    return Message("signal", name, payload, T0, message_id, trace=trace)


def offer(step: bytes = b"step", rank_us: int = T0, tags: Sequence[str] = (), lives: int = 2) -> Offer:
    return Offer(step, b"work of " + step, rank_us, tags, lives)


def offers(backend: Backend, session: Session, header: Header, *steps: bytes) -> None:
    """Offer steps of an instance, in order."""
    backend.offer(session, {header.instance: [offer(step, T0 + rank) for rank, step in enumerate(steps)]})


def claim_offers(
    backend: Backend, session: Session, limit: int = 10, workflow: str = "work", tags: Sequence[str] = ()
) -> list[Offered]:
    return list(backend.claim_offers(session, Want([definition_of(backend, workflow)], T0, limit, tags)))


def outcome(payload: bytes = b"outcome") -> Message:
    return Message("outcome", "", payload, T0)


def loaded(backend: Backend, instance_id: str = "a") -> Loaded:
    found = backend.load(instance_id)
    assert found is not None, instance_id
    return found


def header_of(backend: Backend, instance_id: str = "a") -> Header:
    return loaded(backend, instance_id).header


def seqs(backend: Backend, header: Header) -> list[int]:
    return [entry.seq for entry in backend.history(header.instance, 0, 10_000)]


def ids(found: Sequence[Loaded]) -> list[str]:
    return [each.header.instance_id for each in found]


def dump(backend: Backend) -> list[object]:
    """Return everything that can be seen through the protocol without a session, to be compared."""
    headers = backend.list(Filter(limit=10_000))
    loads = [backend.load(header.instance_id) for header in headers]
    received = [tuple(backend.received(header.instance)) for header in headers]
    return [*headers, *loads, *received, *(tuple(backend.history(header.instance, 0, 10_000)) for header in headers)]
