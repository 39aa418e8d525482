"""What a session asks for when it claims: turns between definitions, what to avoid, and how many of a lane."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from msgspec.structs import replace

from stepwell.backend.base import Backend, Filter, Header, Session, Want
from stepwell.testing.sample import (
    COMPLETED,
    FAILED,
    RUNNING,
    T0,
    WAITING,
    change,
    create,
    creation,
    definition_of,
    header_of,
    ids,
    session_of,
    start,
)

from .examiner import Examiner

LONG = 1_000
THREADS = 8
MOST = 3


def due(backend: Backend, names: str, *, workflow: str = "work", lane: str = "", due_us: int = 1) -> None:
    """Create free instances named by single characters, each due a microsecond after the one before."""
    for later, name in enumerate(names):
        made = replace(creation(backend, name, workflow=workflow), due_us=due_us + later, lane=lane)
        create(backend, None, made)


class Turns(Examiner):
    def test_definitions_take_turns(self, backend: Backend) -> None:
        """The oldest of each, then the second of each; in a turn, the one that is due longest first."""
        due(backend, "abcd", workflow="one", due_us=10)
        due(backend, "xy", workflow="two", due_us=11)
        due(backend, "p", workflow="three", due_us=5)
        three = [definition_of(backend, name) for name in ("one", "two", "three")]
        assert ids(backend.claim_due(session_of(backend), Want(three, 99, 9))) == list("paxbycd")

    def test_a_long_queue_delays_no_other(self, backend: Backend) -> None:
        """A thousand that are due of one definition, and one of another that came last."""
        made = [replace(creation(backend, str(number), workflow="long"), due_us=1) for number in range(LONG)]
        backend.create(None, made)
        due(backend, "x", workflow="short", due_us=T0)
        both = [definition_of(backend, "long"), definition_of(backend, "short")]
        assert ids(backend.claim_due(session_of(backend), Want(both, T0, 2))) == ["0", "x"]

    def test_turns_that_are_not_used_are_not_wasted(self, backend: Backend) -> None:
        """A definition with little to do leaves the rest of the limit to the others."""
        due(backend, "abcde", workflow="one")
        due(backend, "x", workflow="two")
        both = [definition_of(backend, "one"), definition_of(backend, "two"), 10_000]
        assert ids(backend.claim_due(session_of(backend), Want(both, 99, 5))) == list("axbcd")


class Avoiding(Examiner):
    def avoided(self, backend: Backend, instance_id: str = "a", due_us: int = T0) -> Header:
        """Leave an instance that failed in the hands of ``"ann"``."""
        header = start(backend, None, instance_id)
        backend.commit(None, [change(header, rest=replace(RUNNING, due_us=due_us, avoid="ann"))])
        return header

    def wanted(self, backend: Backend, now_us: int, avoid: str = "ann", limit: int = 9) -> list[str]:
        want = Want([definition_of(backend)], now_us, limit, avoid=avoid, patience_us=50)
        session = session_of(backend, avoid)
        found = ids(backend.claim_due(session, want))
        backend.end_session(session)
        return found

    def test_it_waits_for_others(self, backend: Backend) -> None:
        """Past its due time for as long as the session is patient, not a microsecond less or more."""
        self.avoided(backend)
        assert self.wanted(backend, T0 + 49) == []
        assert self.wanted(backend, T0 + 50) == ["a"]

    def test_others_take_it_when_it_is_due(self, backend: Backend) -> None:
        """Whatever their name, and also without one; not before it is due."""
        for name in ("bob", "", "an", "Ann"):
            self.avoided(backend, name)
            assert (self.wanted(backend, T0 - 1, name), self.wanted(backend, T0, name)) == ([], [name])
            backend.commit(None, [change(header_of(backend, name), rest=COMPLETED)])

    def test_without_patience_nothing_is_avoided(self, backend: Backend) -> None:
        """The session takes it as others do."""
        self.avoided(backend)
        want = Want([definition_of(backend)], T0, 9, avoid="ann")
        assert ids(backend.claim_due(session_of(backend), want)) == ["a"]

    def test_what_asks_for_nothing_is_not_avoided(self, backend: Backend) -> None:
        """Neither by a session with a name nor by one without."""
        start(backend, None)
        for name in ("ann", ""):
            assert self.wanted(backend, T0, name) == ["a"]

    def test_the_last_rest_counts(self, backend: Backend) -> None:
        """Another one takes the wish back; one in between its entries does not."""
        header = self.avoided(backend)
        backend.commit(None, [change(header, base=2, rest=replace(RUNNING, due_us=T0))])
        assert self.wanted(backend, T0) == ["a"]

    def test_a_claim_by_name_avoids_nothing(self, backend: Backend) -> None:
        """Somebody asked for this very instance."""
        self.avoided(backend)
        ann = session_of(backend)
        claimed = backend.claim(ann, "a")
        assert claimed is not None
        assert claimed.header.session == ann.id

    def test_what_is_avoided_does_not_use_up_the_limit(self, backend: Backend) -> None:
        """It is filtered before."""
        for number in range(80):
            self.avoided(backend, str(number), T0)
        create(backend, None, replace(creation(backend, "mine"), due_us=T0 + 1))
        assert self.wanted(backend, T0 + 2, limit=1) == ["mine"]

    def test_what_is_freed_is_due_for_everybody(self, backend: Backend) -> None:
        """An instance that is due at once has waited long enough."""
        header, bob = self.avoided(backend), session_of(backend, "bob")
        backend.claim(bob, "a")
        backend.commit(bob, [change(header, base=2)])
        backend.end_session(bob)
        assert self.wanted(backend, T0) == ["a"]

    def test_a_parked_instance_that_was_claimed_in_between_is_still_avoided(self, backend: Backend) -> None:
        """A claim that wrote nothing changes nothing of its wishes."""
        header = start(backend, None)
        backend.commit(None, [change(header, rest=replace(WAITING, due_us=T0, avoid="ann"))])
        bob = session_of(backend, "bob")
        backend.claim(bob, "a")
        backend.end_session(bob)
        assert self.wanted(backend, T0 + 49) == []
        assert self.wanted(backend, T0 + 50) == ["a"]


class Lanes(Examiner):
    def want(self, backend: Backend, most: int = 2, limit: int = 9) -> Want:
        work = definition_of(backend)
        return Want([work], T0, limit, most={work: most})

    def test_no_more_than_most_are_held(self, backend: Backend) -> None:
        """By all sessions together; whoever gives one back makes room for another."""
        due(backend, "abcde")
        ann, bob = session_of(backend), session_of(backend, "bob")
        assert ids(backend.claim_due(ann, self.want(backend, limit=1))) == ["a"]
        assert ids(backend.claim_due(bob, self.want(backend))) == ["b"]
        assert [ids(backend.claim_due(each, self.want(backend))) for each in (ann, bob)] == [[], []]
        backend.commit(ann, [change(header_of(backend), rest=COMPLETED)])
        assert ids(backend.claim_due(bob, self.want(backend))) == ["c"]

    def test_however_they_came_to_be_held(self, backend: Backend) -> None:
        """Created, claimed by name or written to: each counts, even if that makes them too many."""
        ann = session_of(backend)
        start(backend, ann, "created")
        due(backend, "abc")
        backend.claim(ann, "a")
        backend.commit(ann, [change(header_of(backend, "b"))])
        assert ids(backend.claim_due(ann, self.want(backend, most=3))) == []
        assert ids(backend.claim_due(ann, self.want(backend, most=4))) == ["c"]

    def test_each_lane_has_its_own_room(self, backend: Backend) -> None:
        """Also the one without a name."""
        for lane, names in (("", "abc"), ("eu", "pqr"), ("us", "xyz")):
            due(backend, names, lane=lane)
        ann = session_of(backend)
        assert ids(backend.claim_due(ann, self.want(backend, most=1))) == ["a", "p", "x"]
        assert ids(backend.claim_due(ann, self.want(backend, most=1))) == []
        assert ids(backend.claim_due(ann, self.want(backend))) == ["b", "q", "y"]

    def test_a_full_lane_does_not_hide_the_others(self, backend: Backend) -> None:
        """However many are due in it, and however long: it is filtered before the limit."""
        made = replace(creation(backend), due_us=1, lane="full")
        backend.create(None, [replace(made, instance_id=str(number)) for number in range(200)])
        due(backend, "xyz", lane="free", due_us=50)
        due(backend, "p", due_us=51)
        ann = session_of(backend)
        assert ids(backend.claim_due(ann, self.want(backend, most=1, limit=1))) == ["0"]
        assert ids(backend.claim_due(ann, self.want(backend, most=1, limit=1))) == ["x"]
        assert ids(backend.claim_due(ann, self.want(backend, most=2, limit=4))) == ["1", "y", "p"]

    def test_a_lane_is_one_of_a_workflow(self, backend: Backend) -> None:
        """All definitions of one name share it, and no other workflow does."""
        due(backend, "ab")
        newer = backend.register("work", "newer-fingerprint", b"newer plan")
        create(backend, None, replace(creation(backend, "n"), definition=newer))
        due(backend, "xy", workflow="other")
        work, other = definition_of(backend), definition_of(backend, "other")
        ann = session_of(backend)
        assert ids(backend.claim_due(ann, Want([newer], T0, 9, most={newer: 2}))) == ["n"]
        most = {work: 2, newer: 2, other: 1}
        assert ids(backend.claim_due(ann, Want([work, newer, other], T0, 9, most=most))) == ["a", "x"]

    def test_definitions_of_one_workflow_share_what_is_left(self, backend: Backend) -> None:
        """One claim that serves both takes no more than there is room for, and the oldest first."""
        newer = backend.register("work", "newer-fingerprint", b"newer plan")
        for name, definition, due_us in (("a", definition_of(backend), 2), ("n", newer, 1), ("m", newer, 3)):
            create(backend, None, replace(creation(backend, name), definition=definition, due_us=due_us))
        both = [definition_of(backend), newer]
        want = Want(both, T0, 9, most=dict.fromkeys(both, 2))
        assert ids(backend.claim_due(session_of(backend), want)) == ["n", "a"]

    def test_only_those_that_are_named_are_limited(self, backend: Backend) -> None:
        """Of a definition that ``most`` does not name, any number."""
        due(backend, "ab")
        due(backend, "xyz", workflow="other")
        work, other = definition_of(backend), definition_of(backend, "other")
        want = Want([work, other], T0, 9, most={work: 1, 10_000: 0})
        assert ids(backend.claim_due(session_of(backend), want)) == ["a", "x", "y", "z"]

    def test_no_room_at_all(self, backend: Backend) -> None:
        """Zero is a number like any other."""
        due(backend, "ab")
        assert ids(backend.claim_due(session_of(backend), self.want(backend, most=0))) == []

    def test_what_a_lost_session_held_leaves_room(self, backend: Backend) -> None:
        """It is ended before anything is counted."""
        due(backend, "abc")
        backend.claim_due(session_of(backend), self.want(backend))
        self.pass_leases(backend)
        assert ids(backend.claim_due(session_of(backend, "bob"), self.want(backend))) == ["a", "b"]

    def test_a_lane_is_kept_for_life(self, backend: Backend) -> None:
        """Through rests, releases, a move, the end, and for whoever reopens it."""
        ann, newer = session_of(backend), backend.register("work", "newer-fingerprint", b"newer plan")
        due(backend, "ab", lane="one")
        (held,) = backend.claim_due(ann, self.want(backend, most=1))
        header = held.header
        backend.commit(ann, [change(header, rest=replace(FAILED, definition=newer))])
        backend.commit(ann, [change(header, base=2, rest=replace(RUNNING, release=False))])
        assert ids(backend.claim_due(ann, self.want(backend, most=1))) == []
        backend.release(ann, [header.instance])
        assert ids(backend.claim_due(ann, self.want(backend, most=1))) == ["b"]
        assert {each.instance_id: each.lane for each in backend.list(Filter())} == {"a": "one", "b": "one"}

    def test_full_lanes_and_those_who_avoid_it(self, backend: Backend) -> None:
        """What a session leaves to others takes no room from what it may take."""
        header = start(backend, None)
        backend.commit(None, [change(header, rest=replace(RUNNING, due_us=1, avoid="ann"))])
        due(backend, "xy", due_us=2)
        want = replace(self.want(backend, most=1), now_us=9, avoid="ann", patience_us=50)
        assert ids(backend.claim_due(session_of(backend), want)) == ["x"]

    def test_of_many_claimers_none_takes_too_many(self, backend: Backend) -> None:
        """Threads that claim from two lanes at once never hold more than most of either, and leave nothing behind."""
        lanes = {str(number): ("odd" if number % 2 else "even") for number in range(THREADS * 4)}
        made = creation(backend)
        backend.create(None, [replace(made, instance_id=name, lane=lane) for name, lane in lanes.items()])
        want, barrier = self.want(backend, most=MOST, limit=2), Barrier(THREADS)

        def claim(session: Session) -> list[str]:
            barrier.wait()
            return ids(backend.claim_due(session, want))

        done: list[str] = []
        with ThreadPoolExecutor(THREADS) as pool:
            while len(done) < len(lanes):
                sessions = [session_of(backend, str(number)) for number in range(THREADS)]
                held = [name for names in pool.map(claim, sessions) for name in names]
                counts = Counter(lanes[name] for name in held)
                assert 0 < max(counts.values()) <= MOST
                for session in sessions:
                    backend.end_session(session)
                backend.commit(None, [change(header_of(backend, name), rest=COMPLETED) for name in held])
                done += held
        assert sorted(done) == sorted(lanes)
