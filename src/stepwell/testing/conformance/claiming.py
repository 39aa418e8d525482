"""Claims: who gets what, in which order, and how it comes back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from msgspec.structs import replace

from stepwell.backend.base import Backend, Rest, Session, Want
from stepwell.testing.sample import (
    COMPLETED,
    RUNNING,
    T0,
    WAITING,
    change,
    claim_offers,
    create,
    creation,
    definition_of,
    entries,
    header_of,
    ids,
    loaded,
    offers,
    seqs,
    session_of,
    start,
)

from .examiner import Examiner
from .sessions import is_fenced

THREADS = 4
EACH = 25


class Claiming(Examiner):
    def test_a_claim_brings_what_a_session_needs(self, backend: Backend) -> None:
        """It is the instance as loaded, now held by the claimer."""
        start(backend, None)
        ann = session_of(backend)
        claimed = backend.claim(ann, "a")
        assert claimed is not None
        assert claimed == loaded(backend)
        assert list(claimed.entries) == entries(1)
        assert claimed.header.session == ann.id

    def test_a_claim_of_nothing(self, backend: Backend) -> None:
        """An unknown id is ``None``."""
        assert backend.claim(session_of(backend), "nobody") is None

    def test_a_claim_does_not_ask_for_a_due_time(self, backend: Backend) -> None:
        """A waiting instance can be claimed by name."""
        backend.commit(None, [change(start(backend, None), rest=WAITING)])
        ann = session_of(backend)
        claimed = backend.claim(ann, "a")
        assert claimed is not None
        assert claimed.header.session == ann.id

    def test_an_ended_instance_is_not_claimed(self, backend: Backend) -> None:
        """It is returned as it is."""
        backend.commit(None, [change(start(backend, None), rest=COMPLETED)])
        seen = backend.claim(session_of(backend), "a")
        assert seen is not None
        assert (seen.header.state, seen.header.session) == ("completed", 0)

    def test_a_claim_of_what_is_held_already(self, backend: Backend) -> None:
        """The holder may claim again."""
        ann = session_of(backend)
        start(backend, ann)
        again = backend.claim(ann, "a")
        assert again is not None
        assert again.header.session == ann.id

    def test_the_oldest_due_comes_first(self, backend: Backend) -> None:
        """Due time decides, then the order of creation."""
        for name, due_us in (("late", 30), ("early", 10), ("mid", 20), ("mid-too", 20)):
            create(backend, None, replace(creation(backend, name), due_us=due_us))
        ann, work = session_of(backend), definition_of(backend)
        assert ids(backend.claim_due(ann, Want([work], 30, 3))) == ["early", "mid", "mid-too"]
        assert ids(backend.claim_due(ann, Want([work], 30, 3))) == ["late"]

    def test_nothing_is_claimed_before_it_is_due(self, backend: Backend) -> None:
        """An instance is due at its time, not a microsecond earlier."""
        create(backend, None, replace(creation(backend), due_us=T0))
        ann, work = session_of(backend), definition_of(backend)
        assert ids(backend.claim_due(ann, Want([work], T0 - 1, 9))) == []
        assert ids(backend.claim_due(ann, Want([work], T0, 9))) == ["a"]

    def test_without_a_due_time_nothing_is_due(self, backend: Backend) -> None:
        """A parked instance waits for a message only."""
        backend.commit(None, [change(start(backend, None), rest=WAITING)])
        assert ids(backend.claim_due(session_of(backend), Want([definition_of(backend)], 10**18, 9))) == []

    def test_held_and_ended_instances_are_not_due(self, backend: Backend) -> None:
        """Only what is free can be claimed."""
        start(backend, session_of(backend), "held")
        backend.commit(None, [change(start(backend, None, "over"), rest=COMPLETED)])
        assert ids(backend.claim_due(session_of(backend), Want([definition_of(backend)], T0, 9))) == []

    def test_other_definitions_do_not_use_up_the_limit(self, backend: Backend) -> None:
        """Rows nobody asked for are filtered before the limit, so they cannot hide the others."""
        for number in range(20):
            create(backend, None, replace(creation(backend, str(number), workflow="other"), due_us=1))
        create(backend, None, replace(creation(backend, "mine"), due_us=2))
        assert ids(backend.claim_due(session_of(backend), Want([definition_of(backend)], 9, 1))) == ["mine"]

    def test_no_definitions_claim_nothing(self, backend: Backend) -> None:
        """A worker that knows nothing gets nothing, and one that knows a plan twice gets each instance once."""
        start(backend, None)
        ann, work = session_of(backend), definition_of(backend)
        assert ids(backend.claim_due(ann, Want([], T0, 9))) == []
        assert ids(backend.claim_due(ann, Want([work], T0, 0))) == []
        assert ids(backend.claim_due(ann, Want([work, work], T0, 9))) == ["a"]

    def test_the_next_due_time_is_told_by_definition(self, backend: Backend) -> None:
        """Of each of the workflows' own the earliest; what is held or waits for a message only does not count."""
        for name, due_us in (("late", 30), ("early", 20), ("parked", None)):
            create(backend, None, replace(creation(backend, name, workflow="one"), due_us=due_us))
        create(backend, None, replace(creation(backend, "else", workflow="two"), due_us=10))
        work, newer = definition_of(backend, "one"), backend.register("one", "newer", b"newer plan of one")
        (other,) = backend.next_due(["two"])["two"]
        assert backend.next_due(["one", "two"]) == {"one": {work: 20, newer: None}, "two": {other: 10}}
        assert ids(backend.claim_due(session_of(backend), Want([work], 20, 9))) == ["early"]
        assert backend.next_due(["one"]) == {"one": {work: 30, newer: None}}
        assert backend.next_due(["nobody's", "one"])["nobody's"] == {}

    def test_holdings_is_fenced(self, backend: Backend) -> None:
        """A lost session hears of it when it asks what it has."""
        is_fenced(backend, backend.holdings)

    def test_a_session_can_ask_what_it_has(self, backend: Backend) -> None:
        """The instances and the offers it has claimed, however it came to them, until it gives them back."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        a, b = start(backend, ann, "a"), start(backend, None, "b")
        start(backend, bob, "c")
        backend.claim(ann, "b")
        offers(backend, ann, a, b"x", b"y", b"z")
        mine, others = claim_offers(backend, ann, limit=2), claim_offers(backend, bob)
        assert _holdings(backend, ann) == ([a.instance, b.instance], sorted(each.id for each in mine))
        assert _holdings(backend, bob)[1] == [each.id for each in others]
        backend.release(ann, [b.instance])
        backend.hand_back(ann, [mine[0].id])
        assert _holdings(backend, ann) == ([a.instance], [mine[1].id])
        backend.commit(ann, [change(a, rest=COMPLETED)])
        assert _holdings(backend, ann) == ([], [])

    def test_threads_share_what_is_due(self, backend: Backend) -> None:
        """Each instance goes to one of the sessions that claim at once."""
        total = THREADS * EACH
        backend.create(None, [creation(backend, str(number)) for number in range(total)])
        work, barrier = definition_of(backend), Barrier(THREADS)
        sessions = [session_of(backend, str(number)) for number in range(THREADS)]

        def claim(number: int) -> list[str]:
            barrier.wait()
            mine: list[str] = []
            while found := backend.claim_due(sessions[number], Want([work], T0, 3)):
                mine += ids(found)
            return mine

        with ThreadPoolExecutor(THREADS) as pool:
            taken = [name for mine in pool.map(claim, range(THREADS)) for name in mine]
        assert sorted(taken) == sorted(str(number) for number in range(total))


def _holdings(backend: Backend, session: Session) -> tuple[list[int], list[int]]:
    instances, offers = backend.holdings(session)
    return sorted(instances), sorted(offers)


class Freeing(Examiner):
    def test_a_released_instance_is_due(self, backend: Backend) -> None:
        """Work that was given back half done is for the next one, at once."""
        ann = session_of(backend)
        header = create(backend, ann, replace(creation(backend), due_us=None))
        backend.commit(ann, [change(header)])
        backend.release(ann, [header.instance])
        assert ids(backend.claim_due(session_of(backend), Want([definition_of(backend)], 0, 9))) == ["a"]

    def test_a_release_changes_no_journal(self, backend: Backend) -> None:
        """It is not an event of the instance."""
        ann = session_of(backend)
        header = start(backend, ann)
        backend.release(ann, [header.instance])
        assert seqs(backend, header) == [1]
        assert header_of(backend).state == header.state

    def test_what_was_parked_stays_parked(self, backend: Backend) -> None:
        """A claim that wrote nothing leaves a waiting instance as its last rest did."""
        rest = Rest("waiting", b"image", due_us=T0 + 77)
        header = start(backend, None)
        backend.commit(None, [change(header, rest=rest)])
        for give_back in ("release", "end"):
            ann = session_of(backend)
            backend.claim(ann, "a")
            backend.release(ann, [header.instance]) if give_back == "release" else backend.end_session(ann)
            assert (header_of(backend).session, header_of(backend).due_us) == (0, T0 + 77)

    def test_what_went_on_after_its_rest_is_due(self, backend: Backend) -> None:
        """Entries that no image covers need somebody to go on, even if the last rest was waiting."""
        ann = session_of(backend)
        header = start(backend, ann)
        backend.commit(ann, [change(header, rest=replace(WAITING, release=False))])
        backend.commit(ann, [change(header, base=2)])
        backend.end_session(ann)
        assert header_of(backend).due_us == 0

    def test_what_was_running_is_due(self, backend: Backend) -> None:
        """An image written in the middle of work is not a place to stop."""
        ann = session_of(backend)
        rest = replace(RUNNING, due_us=None, release=False)
        backend.commit(ann, [change(start(backend, ann), rest=rest)])
        backend.end_session(ann)
        assert header_of(backend).due_us == 0

    def test_others_claims_are_not_released(self, backend: Backend) -> None:
        """A session gives back its own and passes over everything else."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        a, b = start(backend, ann, "a"), start(backend, bob, "b")
        backend.release(ann, [b.instance, 10_000, a.instance])
        assert (header_of(backend, "a").session, header_of(backend, "b").session) == (0, bob.id)

    def test_claim_due_ends_late_sessions(self, backend: Backend) -> None:
        """What they held is among what is due."""
        ann = session_of(backend)
        start(backend, ann)
        self.pass_leases(backend)
        assert ids(backend.claim_due(session_of(backend), Want([definition_of(backend)], T0, 9))) == ["a"]
