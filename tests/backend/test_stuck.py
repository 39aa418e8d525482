"""What ``stuck`` finds in rows that were broken by hand, each in one way, and what it does not mistake for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from stepwell.backend.base import NO_SESSION, NOTHING_MOVES, OFFER_LEFT, OFFER_NO_SESSION, UNREAD, Filter
from stepwell.backend.memory import InMemoryBackend
from stepwell.backend.sqlite import SqliteBackend
from stepwell.testing.sample import (
    COMPLETED,
    RUNNING,
    T0,
    WAITING,
    change,
    claim_offers,
    create,
    creation,
    offers,
    session_of,
    signal,
    start,
)

pytestmark = pytest.mark.broken_store


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[SqliteBackend]:
    """Hold one instance of each kind that is not stuck."""
    backend = SqliteBackend(tmp_path / "store.db", durability="fast")
    ann = session_of(backend)
    start(backend, ann, "claimed")
    start(backend, None, "ready")
    for state in ("waiting", "paused", "held", "completed", "failed", "cancelled"):
        backend.commit(None, [change(start(backend, None, state), rest=replace(WAITING, state=state))])
    timer = replace(RUNNING, state="waiting", due_us=T0 + 10**12)
    backend.commit(None, [change(start(backend, None, "timer"), rest=timer)])
    old = start(backend, None, "replaced")
    create(backend, None, replace(creation(backend, "replaced"), replacing=change(old, count=0)))
    backend.post(start(backend, ann, "unread").instance, signal())
    offers(backend, ann, start(backend, ann, "offering"), b"free", b"claimed")
    claim_offers(backend, ann, limit=1)
    yield backend
    backend.close()


def found(backend: SqliteBackend | InMemoryBackend) -> dict[str, str]:
    return {stuck.instance_id: stuck.reason for stuck in backend.stuck(T0)}


def test_what_something_moves_is_not_stuck(backend: SqliteBackend) -> None:
    """Claimed, due now or later, waiting, paused, held, ended, replaced: all are in order."""
    assert found(backend) == {}
    assert backend.count(Filter()) == 12


@pytest.mark.parametrize(
    ("instance_id", "damage", "reason"),
    [
        ("ready", "DELETE FROM agenda WHERE instance = ?", "no row in the agenda"),
        ("waiting", "DELETE FROM agenda WHERE instance = ?", "no row in the agenda"),
        ("claimed", "DELETE FROM agenda WHERE instance = ?", "no row in the agenda"),
        ("ready", "UPDATE agenda SET due_us = NULL WHERE instance = ?", NOTHING_MOVES),
        ("waiting", "UPDATE instance SET state = 'running' WHERE id = ?", NOTHING_MOVES),
        ("paused", "UPDATE instance SET state = 'pending' WHERE id = ?", NOTHING_MOVES),
        ("claimed", "UPDATE agenda SET session = 99 WHERE instance = ?", NO_SESSION),
        ("waiting", "UPDATE agenda SET session = 99 WHERE instance = ?", NO_SESSION),
        ("unread", "UPDATE agenda SET session = NULL, due_us = NULL WHERE instance = ?", NOTHING_MOVES),
        ("held", "UPDATE inbox SET instance = ?", UNREAD),
        ("waiting", "UPDATE inbox SET instance = ?", UNREAD),
        ("ready", "UPDATE agenda SET definition = 99 WHERE instance = ?", "not its own"),
        ("timer", "UPDATE instance SET definition = 99 WHERE id = ?", "not its own"),
        ("ready", "UPDATE instance SET replaced = 1 WHERE id = ?", "later run of it is missing"),
        ("completed", "UPDATE instance SET state = 'running' WHERE id = ?", "no row in the agenda"),
        ("failed", "UPDATE instance SET ended_us = NULL WHERE id = ?", "no row in the agenda"),
    ],
)
def test_a_row_that_nothing_moves_is_found(backend: SqliteBackend, instance_id: str, damage: str, reason: str) -> None:
    """It alone, with the reason."""
    header = backend.header(instance_id)
    assert header is not None
    backend._database.connection.execute(damage, [header.instance])
    (stuck,) = found(backend).items()
    assert stuck[0] == instance_id
    assert reason in stuck[1]


def test_every_claim_of_a_session_that_is_gone_is_found(backend: SqliteBackend) -> None:
    """A session is ended with its claims freed; one that vanished otherwise has left them."""
    backend._database.connection.execute("DELETE FROM session")
    assert found(backend) == {"claimed": NO_SESSION, "unread": NO_SESSION, "offering": OFFER_NO_SESSION}


@pytest.mark.parametrize(
    ("instance_id", "damage", "reason"),
    [
        ("completed", "UPDATE offer SET instance = ? WHERE session IS NULL", OFFER_LEFT),
        ("completed", "UPDATE offer SET instance = ? WHERE session IS NOT NULL", OFFER_LEFT),
        ("", "UPDATE offer SET instance = ? + 99", OFFER_LEFT),
        ("claimed", "UPDATE offer SET instance = ?, session = 99 WHERE session IS NOT NULL", OFFER_NO_SESSION),
    ],
)
def test_an_offer_that_nothing_ends_is_found(
    backend: SqliteBackend, instance_id: str, damage: str, reason: str
) -> None:
    """By the instance it stands for, once; no name is left of one that is gone."""
    header = backend.header(instance_id or "completed")
    assert header is not None
    backend._database.connection.execute(damage, [header.instance])
    assert [(each.instance_id, each.reason) for each in backend.stuck(T0)] == [(instance_id, reason)]


def test_the_reference_store_finds_such_offers_too() -> None:
    """The same rows, broken in memory."""
    backend = InMemoryBackend()
    ann, bob = session_of(backend), session_of(backend, "bob")
    header = start(backend, ann)
    offers(backend, ann, header, b"x", b"y")
    claim_offers(backend, bob, limit=1)
    assert found(backend) == {}
    del backend._sessions[bob.id]
    assert found(backend) == {"a": OFFER_NO_SESSION}
    backend._runs[header.instance].state = "completed"
    assert found(backend) == {"a": OFFER_LEFT}


@pytest.mark.parametrize(
    ("state", "due_us", "session", "mail", "reason"),
    [
        ("running", None, 0, False, NOTHING_MOVES),
        ("pending", None, 0, False, NOTHING_MOVES),
        ("waiting", None, 99, False, NO_SESSION),
        ("running", 0, 99, False, NO_SESSION),
        ("waiting", None, 0, True, UNREAD),
        ("paused", None, 0, True, UNREAD),
        ("held", None, 0, True, UNREAD),
        ("held", None, 0, False, None),
        ("running", T0 + 10**12, 0, True, None),
        ("completed", None, 0, True, None),
    ],
)
def test_the_reference_store_says_the_same(
    state: str, due_us: int | None, session: int, mail: bool, reason: str | None
) -> None:
    """The same rows, broken in memory."""
    backend = InMemoryBackend()
    run = backend._runs[start(backend, None).instance]
    run.state, run.due_us, run.session = state, due_us, session  # type: ignore[assignment]
    run.mail.extend([signal()] * mail)
    assert found(backend) == ({"a": reason} if reason is not None else {})


def test_a_commit_mends_nothing_by_chance(backend: SqliteBackend) -> None:
    """What was stuck and is written again with a due time is not stuck any more."""
    backend._database.connection.execute("UPDATE agenda SET due_us = NULL")
    assert found(backend) == {"ready": NOTHING_MOVES, "replaced": NOTHING_MOVES}
    header = backend.header("ready")
    assert header is not None
    backend.commit(None, [change(header, rest=COMPLETED)])
    assert found(backend) == {"replaced": NOTHING_MOVES}
