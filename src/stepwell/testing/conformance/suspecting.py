"""Being suspect: how many sessions were lost with an instance since anything was written for it."""

from __future__ import annotations

from msgspec.structs import replace

from stepwell.backend.base import Backend, Filter, Session, Want
from stepwell.testing.sample import (
    COMPLETED,
    FAILED,
    RUNNING,
    T0,
    WAITING,
    change,
    claim_offers,
    definition_of,
    header_of,
    loaded,
    session_of,
    signal,
    start,
)

from .examiner import Examiner, dead_holder
from .offering import offered


class Suspecting(Examiner):
    def lose(self, backend: Backend, *living: Session) -> None:
        """Let every other session be taken over, by a claim that takes nothing."""
        self.pass_leases(backend)
        for session in living:
            backend.renew(session)
        passing = session_of(backend, "passing")
        backend.claim_due(passing, Want([], T0, 0))
        backend.end_session(passing)

    def test_a_takeover_is_counted(self, backend: Backend) -> None:
        """Of each instance that the session held, and of no other; wherever the header is seen."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        for name, session in (("a", ann), ("b", ann), ("free", None), ("bob's", bob)):
            assert start(backend, session, name).suspect == 0
        self.lose(backend, bob)
        counted = {header.instance_id: header.suspect for header in backend.list(Filter())}
        assert counted == {"a": 1, "b": 1, "free": 0, "bob's": 0}
        assert loaded(backend).header.suspect == 1

    def test_whoever_takes_over_counts(self, backend: Backend) -> None:
        """A claim, a claim of what is due, a claim of offers, or a post that finds nobody there."""
        for way in ("claim", "claim_due", "claim_offers", "post"):
            header = start(backend, session_of(backend, "victim"), way)
            self.pass_leases(backend)
            bob = session_of(backend, "bob")
            if way == "claim":
                backend.claim(bob, way)
            elif way == "claim_due":
                backend.claim_due(bob, Want([definition_of(backend)], T0, 9))
            elif way == "claim_offers":
                claim_offers(backend, bob)
            else:
                assert backend.post(header.instance, signal()) == "free"
            assert header_of(backend, way).suspect == 1, way
            backend.end_session(bob)

    def test_a_claim_tells_the_claimer(self, backend: Backend) -> None:
        """The one that took over sees it in what it got."""
        start(backend, session_of(backend))
        self.pass_leases(backend)
        claimed = backend.claim(session_of(backend, "bob"), "a")
        assert claimed is not None
        assert claimed.header.suspect == 1

    def test_a_dead_process_is_counted_at_once(self, backend: Backend) -> None:
        """It need not have been late."""
        start(backend, session_of(backend, holder=dead_holder()))
        (found,) = backend.claim_due(session_of(backend), Want([definition_of(backend)], T0, 9))
        assert found.header.suspect == 1

    def test_a_late_session_that_comes_back_is_not_counted(self, backend: Backend) -> None:
        """Nobody has ended it."""
        ann = session_of(backend)
        start(backend, ann)
        self.pass_leases(backend)
        backend.renew(ann)
        assert header_of(backend).suspect == 0

    def test_a_session_that_ends_itself_is_not_counted(self, backend: Backend) -> None:
        """Nor is one that gives an instance back, late or not, or that was taken over with nothing in its hands."""
        ann = session_of(backend)
        header = start(backend, ann)
        backend.release(ann, [header.instance])
        self.lose(backend)
        bob = session_of(backend, "bob")
        backend.claim(bob, "a")
        self.pass_leases(backend)
        backend.end_session(bob)
        assert header_of(backend).suspect == 0

    def test_each_takeover_in_a_row_is_counted(self, backend: Backend) -> None:
        """As long as nothing is written."""
        start(backend, session_of(backend))
        for times in (1, 2, 3):
            self.lose(backend)
            assert header_of(backend).suspect == times
            backend.claim(session_of(backend), "a")

    def test_what_gives_it_back_keeps_the_count(self, backend: Backend) -> None:
        """Releases, the end of a session, and rests without entries are no progress."""
        header = start(backend, session_of(backend))
        self.lose(backend)
        for give_back in ("release", "end", "rest", "keep"):
            ann = session_of(backend)
            backend.claim(ann, "a")
            if give_back == "release":
                backend.release(ann, [header.instance])
            elif give_back == "end":
                backend.end_session(ann)
            else:
                rest = replace(WAITING, release=give_back == "rest")
                backend.commit(ann, [change(header, count=0, rest=rest)])
            assert header_of(backend).suspect == 1, give_back
        self.lose(backend)
        assert header_of(backend).suspect == 2

    def test_messages_keep_the_count(self, backend: Backend) -> None:
        """What others say about it is not its own progress until it is written."""
        header, bob = start(backend, session_of(backend)), session_of(backend, "bob")
        self.lose(backend, bob)
        backend.claim(bob, "a")
        backend.post(header.instance, signal())
        assert header_of(backend).suspect == 1

    def test_an_entry_clears_it(self, backend: Backend) -> None:
        """Written by whoever holds it, with a rest or without, alone or with others."""
        for rest in (None, RUNNING, replace(RUNNING, release=False)):
            header = start(backend, session_of(backend), str(rest))
            ann = session_of(backend)
            other = start(backend, ann, f"other {rest}")
            self.lose(backend, ann)
            backend.claim(ann, str(rest))
            assert backend.commit(ann, [change(other), change(header, rest=rest)]) == ["done", "done"]
            assert header_of(backend, str(rest)).suspect == 0

    def test_a_client_s_entry_clears_it(self, backend: Backend) -> None:
        """With a rest or without; also one that takes the session over by itself."""
        for rest in (None, WAITING):
            for late in (True, False):
                name = f"{rest} {late}"
                header = start(backend, session_of(backend), name)
                self.pass_leases(backend) if late else self.lose(backend)
                assert backend.commit(None, [change(header, rest=rest)]) == ["done"]
                assert header_of(backend, name).suspect == 0

    def test_it_is_counted_anew_after_an_entry(self, backend: Backend) -> None:
        """What was lost before the last entry never counts again."""
        header = start(backend, session_of(backend))
        for seq in (1, 2, 3):
            self.lose(backend)
            ann = session_of(backend)
            backend.claim(ann, "a")
            assert header_of(backend).suspect == 1
            backend.commit(ann, [change(header, base=seq)])
            assert header_of(backend).suspect == 0

    def test_an_end_clears_it(self, backend: Backend) -> None:
        """With entries or without, and it stays so for whoever reopens the instance."""
        header = start(backend, session_of(backend))
        self.lose(backend)
        assert backend.commit(None, [change(header, count=0, rest=FAILED)]) == ["done"]
        assert header_of(backend).suspect == 0
        assert backend.commit(None, [change(header, count=0, rest=RUNNING)]) == ["done"]
        assert header_of(backend).suspect == 0
        assert backend.commit(None, [change(header, rest=COMPLETED)]) == ["done"]

    def test_a_lost_offer_makes_nobody_suspect(self, backend: Backend) -> None:
        """The instance was in other hands."""
        ann = session_of(backend)
        offered(backend, ann)
        claim_offers(backend, session_of(backend, "bob"))
        self.lose(backend, ann)
        assert header_of(backend).suspect == 0
