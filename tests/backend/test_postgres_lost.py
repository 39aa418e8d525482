"""Whatever answer is lost on the way: what a write returns is what has become of it, and it lands once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from stepwell.backend.base import Backend, Created, Filter, Message, Session, Want
from stepwell.backend.postgres import PostgresBackend
from stepwell.errors import BackendUnavailable
from stepwell.testing.sample import (
    COMPLETED,
    T0,
    WAITING,
    change,
    create,
    creation,
    definition_of,
    header_of,
    ids,
    seqs,
    session_of,
    signal,
    start,
)
from stepwell.types import State

from ..postgres import Server  # noqa: TID252 - the tests are not installed
from ..proxy import Proxy  # noqa: TID252


@pytest.fixture
def proxy(postgres_server: Server) -> Iterator[Proxy]:
    with Proxy(postgres_server.socket) as made:
        yield made


@pytest.fixture
def backend(proxy: Proxy, postgres_server: Server) -> Iterator[PostgresBackend]:
    with PostgresBackend(proxy.dsn(), schema=postgres_server.new_schema()) as made:
        yield made


def losing(proxy: Proxy, write: Callable[[], Any]) -> Any:
    """Return what a write answers when the answer to its first commit is lost."""
    before = sum(proxy.observed.values())
    proxy.drop_commit()
    answer = write()
    proxy.drop_commits(lambda number: False)
    assert sum(proxy.observed.values()) > before, "nothing was lost"
    return answer


def test_a_session_is_opened_once(proxy: Proxy, backend: PostgresBackend, postgres_server: Server) -> None:
    """And it is the one that was returned."""
    ann = losing(proxy, lambda: session_of(backend))
    backend.renew(ann)
    (count,) = postgres_server.execute(f'SELECT count(*) FROM "{backend._server.place.schema}".session')[0]  # noqa: S608
    assert count == 1


def test_a_definition_is_registered_once(proxy: Proxy, backend: PostgresBackend) -> None:
    """Its number is the one it got."""
    number = losing(proxy, lambda: definition_of(backend))
    assert definition_of(backend) == number


def test_a_creation_that_landed_is_this_call_s(proxy: Proxy, backend: PostgresBackend) -> None:
    """Each of the batch, held by its session; a second call finds them."""
    ann, made = session_of(backend), [creation(backend, name) for name in "abc"]
    start(backend, None, "b")
    answers = losing(proxy, lambda: backend.create(ann, made))
    assert [isinstance(answer, Created) for answer in answers] == [True, False, True]
    assert answers[0].header == header_of(backend, "a")
    assert not any(isinstance(answer, Created) for answer in backend.create(ann, made))
    assert backend.count(Filter()) == 3


def test_a_replacement_lands_once(proxy: Proxy, backend: PostgresBackend) -> None:
    """The next run is run 2."""
    old = start(backend, None)
    made = replace(creation(backend), replacing=change(old, rest=COMPLETED))
    (answer,) = losing(proxy, lambda: backend.create(None, [made]))
    assert (answer.header.run, header_of(backend).run) == (2, 2)


@pytest.mark.parametrize("count", [1, 3])
def test_a_step_that_landed_is_done(proxy: Proxy, backend: PostgresBackend, count: int) -> None:
    """Of one change or of several together, of one entry or more."""
    ann = session_of(backend)
    headers = [start(backend, ann, name) for name in "abc"[:count]]
    changes = [change(header, count=count) for header in headers]
    assert losing(proxy, lambda: backend.commit(ann, changes)) == ["done"] * count
    assert seqs(backend, headers[0]) == list(range(1, count + 2))
    assert backend.commit(ann, changes) == ["conflict"] * count


@pytest.mark.parametrize("state", ["waiting", "completed"])
def test_a_rest_that_landed_is_done(proxy: Proxy, backend: PostgresBackend, state: State) -> None:
    """Also when it has given the claim back, with news or without."""
    ann = session_of(backend)
    header, other = start(backend, ann), start(backend, ann, "other")
    rest = replace(WAITING, state=state)
    changes = [change(header, rest=rest), change(other, count=0, rest=rest)]
    assert losing(proxy, lambda: backend.commit(ann, changes)) == ["done", "done"]
    assert (header_of(backend).state, header_of(backend, "other").state) == (state, state)


def test_a_release_that_met_a_message_says_so(proxy: Proxy, backend: PostgresBackend) -> None:
    """The second time as the first."""
    ann = session_of(backend)
    header = start(backend, ann)
    backend.post(header.instance, signal())
    assert losing(proxy, lambda: backend.commit(ann, [change(header, rest=WAITING)])) == ["mail"]


def test_a_write_without_a_session_is_done(proxy: Proxy, backend: PostgresBackend) -> None:
    """A client's signal to an instance that nobody holds lands once."""
    header = start(backend, None)
    assert losing(proxy, lambda: backend.commit(None, [change(header, rest=WAITING)])) == ["done"]
    assert seqs(backend, header) == [1, 2]


@pytest.mark.parametrize("message_id", ["", "m"])
def test_a_message_is_posted_once(proxy: Proxy, backend: PostgresBackend, message_id: str) -> None:
    """With an id or without."""
    ann = session_of(backend)
    header = start(backend, ann)
    assert losing(proxy, lambda: backend.post(header.instance, signal(message_id=message_id))) == "posted"
    assert len(backend.mail(ann)[header.instance]) == 1


def test_a_claim_by_name_is_ours(proxy: Proxy, backend: PostgresBackend) -> None:
    """It is loaded as claimed."""
    start(backend, None)
    ann = session_of(backend)
    claimed = losing(proxy, lambda: backend.claim(ann, "a"))
    assert claimed.header.session == ann.id


@pytest.mark.parametrize("most", [{}, {1: 9}])
def test_claims_are_found_again(proxy: Proxy, backend: PostgresBackend, most: dict[int, int]) -> None:
    """All that were taken are returned, and no others besides."""
    backend.create(None, [creation(backend, name) for name in "abcd"])
    ann, work = session_of(backend), definition_of(backend)
    found = losing(proxy, lambda: backend.claim_due(ann, Want([work], T0, 3, most=most)))
    assert ids(found) == ["a", "b", "c"]
    assert len(backend.holdings(ann)[0]) == 3


def test_offers_are_made_claimed_and_settled_once(proxy: Proxy, backend: PostgresBackend) -> None:
    """Each of the three is what it says."""
    from stepwell.backend.base import Offer

    ann, bob = session_of(backend), session_of(backend, "bob")
    header = start(backend, ann)
    losing(proxy, lambda: backend.offer(ann, {header.instance: [Offer(b"x", b"work", 0)]}))
    (found,) = losing(proxy, lambda: backend.claim_offers(bob, Want([header.definition], T0, 9)))
    assert losing(proxy, lambda: backend.settle(bob, [(found.id, Message("outcome", "", b"out", T0))])) == [True]
    assert backend.settle(bob, [(found.id, Message("outcome", "", b"out", T0))]) == [False]
    assert len(backend.mail(ann)[header.instance]) == 1


def test_releases_ends_and_removals_are_done(proxy: Proxy, backend: PostgresBackend) -> None:
    """None of them raises, and each has happened."""
    ann = session_of(backend)
    header = start(backend, ann)
    losing(proxy, lambda: backend.release(ann, [header.instance]))
    assert header_of(backend).session == 0
    losing(proxy, lambda: backend.end_session(ann))
    backend.commit(None, [change(header, rest=COMPLETED)])
    assert losing(proxy, lambda: backend.delete("a")) is True
    assert backend.header("a") is None


def test_an_idle_connection_that_was_cut_is_made_again(proxy: Proxy, backend: PostgresBackend) -> None:
    """For writes, reads, claims and renewals alike; nobody notices."""
    ann: Session = session_of(backend)
    header = start(backend, ann)
    for count in range(3):
        proxy.cut()
        assert backend.commit(ann, [change(header, base=count + 1)]) == ["done"]
        assert header_of(backend).seq == count + 2
        backend.renew(ann)
        assert list(backend.claim_due(ann, Want([header.definition], 0, 1))) == []


def test_a_server_that_stays_away_is_unavailable(proxy: Proxy, postgres_server: Server) -> None:
    """After the time the user gave, with the place and without the password."""
    dsn = proxy.dsn().replace("postgres@", "postgres:s3cret@")
    with PostgresBackend(dsn, schema=postgres_server.new_schema(), timeout="300ms") as backend:
        assert "s3cret" not in repr(backend)
        proxy.close()
        with pytest.raises(BackendUnavailable) as failed:
            backend.header("a")
        assert "s3cret" not in str(failed.value)
        assert "127.0.0.1" in str(failed.value)


def test_the_start_of_a_run_with_a_backend_lost_in_between(proxy: Proxy, backend: PostgresBackend) -> None:
    """Each answer of a short life may be lost, one after the other, and it is the same life."""
    lost = iter(range(8))
    proxy.drop_commits(lambda number, lost=lost: number % 2 == 0 and next(lost, None) is not None)  # type: ignore[misc]
    ann = session_of(backend)
    header = create(backend, ann, creation(backend))
    for base in range(1, 6):
        assert backend.commit(ann, [change(header, base=base)]) == ["done"]
    assert backend.commit(ann, [change(header, base=6, rest=COMPLETED)]) == ["done"]
    assert seqs(backend, header) == [1, 2, 3, 4, 5, 6, 7]
    store: Backend = backend
    assert list(store.stuck(T0)) == []
