"""Sessions: leases, takeover, and the fence that stands in front of every write."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from stepwell.backend.base import Backend, Filter, Holder, Session, Want
from stepwell.errors import LeaseLost
from stepwell.testing.sample import T0, change, creation, definition_of, header_of, seqs, session_of, signal, start

from .examiner import Examiner, dead_holder


def is_fenced(backend: Backend, action: Callable[[Session], object]) -> None:
    """Check that an ended session, and one with another token, cannot do this, and that a live one can."""
    lost, live = session_of(backend), session_of(backend)
    backend.end_session(lost)
    for session in (lost, replace(live, token=live.token ^ 1)):
        before = backend.list(Filter())
        with pytest.raises(LeaseLost):
            action(session)
        assert backend.list(Filter()) == before
    action(live)


class Sessions(Examiner):
    def test_sessions_differ_in_id_and_token(self, backend: Backend) -> None:
        """Two sessions of one process are two."""
        one, other = session_of(backend), session_of(backend)
        assert one.id != other.id
        assert one.token != other.token

    def test_renew_is_fenced(self, backend: Backend) -> None:
        """A lost session cannot renew its lease."""
        is_fenced(backend, backend.renew)

    def test_create_is_fenced(self, backend: Backend) -> None:
        """A lost session cannot create an instance."""
        made = creation(backend)
        is_fenced(backend, lambda session: backend.create(session, [made]))

    def test_commit_is_fenced(self, backend: Backend) -> None:
        """A lost session cannot write, not even to an instance nobody holds."""
        header = start(backend, None)
        is_fenced(backend, lambda session: backend.commit(session, [change(header)]))

    def test_claim_is_fenced(self, backend: Backend) -> None:
        """A lost session cannot claim an instance."""
        start(backend, None)
        is_fenced(backend, lambda session: backend.claim(session, "a"))

    def test_claim_due_is_fenced(self, backend: Backend) -> None:
        """A lost session cannot claim what is due."""
        start(backend, None)
        work = definition_of(backend)
        is_fenced(backend, lambda session: backend.claim_due(session, Want([work], T0, 1)))

    def test_release_is_fenced(self, backend: Backend) -> None:
        """A lost session cannot give back what it no longer holds."""
        is_fenced(backend, lambda session: backend.release(session, [1]))

    def test_mail_is_fenced(self, backend: Backend) -> None:
        """A lost session hears of it when it asks for messages."""
        is_fenced(backend, backend.mail)

    def test_ending_a_session_twice_does_nothing(self, backend: Backend) -> None:
        """A second end is silent."""
        session = session_of(backend)
        backend.end_session(session)
        before = backend.hint()
        backend.end_session(session)
        assert backend.hint() == before

    def test_ending_with_another_token_does_nothing(self, backend: Backend) -> None:
        """Only who knows the token can end a session."""
        session = session_of(backend)
        backend.end_session(replace(session, token=session.token ^ 1))
        backend.renew(session)

    def test_ending_a_session_frees_what_it_held(self, backend: Backend) -> None:
        """Its instances can be claimed by others at once."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        start(backend, ann)
        backend.end_session(ann)
        claimed = backend.claim(bob, "a")
        assert claimed is not None
        assert claimed.header.session == bob.id

    def test_a_lease_keeps_others_away(self, backend: Backend) -> None:
        """While the lease lasts, a claim by another session shows the holder and takes nothing."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        start(backend, ann)
        seen = backend.claim(bob, "a")
        assert seen is not None
        assert (seen.header.session, seen.header.held_by) == (ann.id, "ann")

    def test_renewing_extends_the_lease(self, backend: Backend) -> None:
        """A lease that was renewed lasts from then on."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        start(backend, ann)
        self.pass_leases(backend)
        backend.renew(ann)
        seen = backend.claim(bob, "a")
        assert seen is not None
        assert seen.header.session == ann.id

    def test_a_lease_that_ran_out_can_be_taken_over(self, backend: Backend) -> None:
        """A claim after the lease ends the old session and succeeds."""
        ann = session_of(backend)
        start(backend, ann)
        self.pass_leases(backend)
        bob = session_of(backend, "bob")
        taken = backend.claim(bob, "a")
        assert taken is not None
        assert taken.header.session == bob.id

    def test_a_lease_that_ran_out_shows_no_holder(self, backend: Backend) -> None:
        """Who only reads sees that nobody holds it any more."""
        start(backend, session_of(backend))
        self.pass_leases(backend)
        assert (header_of(backend).session, header_of(backend).held_by) == (0, "")

    def test_a_late_session_may_go_on_until_it_is_taken_over(self, backend: Backend) -> None:
        """The fence is the takeover, not the time."""
        ann = session_of(backend)
        header = start(backend, ann)
        self.pass_leases(backend)
        assert backend.commit(ann, [change(header)]) == ["done"]
        backend.renew(ann)

    def test_a_late_session_does_not_take_itself_over(self, backend: Backend) -> None:
        """Its own claims go on finding what it holds."""
        ann = session_of(backend)
        start(backend, ann)
        self.pass_leases(backend)
        again = backend.claim(ann, "a")
        backend.claim_due(ann, Want([definition_of(backend)], T0, 1))
        assert again is not None
        assert again.header.session == ann.id
        backend.renew(ann)

    def test_a_zombie_writes_nothing(self, backend: Backend) -> None:
        """A holder that was taken over and wakes up changes no row."""
        ann = session_of(backend)
        header = start(backend, ann)
        self.pass_leases(backend)
        backend.claim(session_of(backend, "bob"), "a")
        with pytest.raises(LeaseLost):
            backend.commit(ann, [change(header)])
        assert seqs(backend, header) == [1]

    def test_taking_over_one_instance_takes_the_whole_session(self, backend: Backend) -> None:
        """A session ends as a whole, so everything it held is free."""
        ann = session_of(backend)
        start(backend, ann, "a")
        start(backend, ann, "b")
        self.pass_leases(backend)
        backend.claim(session_of(backend, "bob"), "a")
        with pytest.raises(LeaseLost):
            backend.renew(ann)
        assert header_of(backend, "b").session == 0

    def test_a_client_s_write_fences_a_late_session(self, backend: Backend) -> None:
        """Writing without a session to what a late session held ends that session first."""
        ann = session_of(backend)
        header = start(backend, ann)
        self.pass_leases(backend)
        assert backend.commit(None, [change(header)]) == ["done"]
        with pytest.raises(LeaseLost):
            backend.commit(ann, [change(header, base=2)])

    def test_a_post_fences_a_late_session(self, backend: Backend) -> None:
        """If a message is refused because nobody holds the instance, then nobody does."""
        ann = session_of(backend)
        header = start(backend, ann)
        self.pass_leases(backend)
        assert backend.post(header.instance, signal()) == "free"
        with pytest.raises(LeaseLost):
            backend.commit(ann, [change(header)])

    def test_a_dead_process_is_taken_over_at_once(self, backend: Backend) -> None:
        """No lease has to pass when the holder is provably gone."""
        start(backend, session_of(backend, holder=dead_holder()))
        bob = session_of(backend, "bob")
        taken = backend.claim(bob, "a")
        assert taken is not None
        assert taken.header.session == bob.id

    def test_a_dead_process_is_found_by_claim_due(self, backend: Backend) -> None:
        """What it held is due at once for whoever looks."""
        start(backend, session_of(backend, holder=dead_holder()))
        found = backend.claim_due(session_of(backend), Want([definition_of(backend)], T0, 10))
        assert [each.header.instance_id for each in found] == ["a"]

    def test_a_process_that_only_may_be_dead_keeps_its_lease(self, backend: Backend) -> None:
        """A pid of another boot proves nothing."""
        ann = session_of(backend, holder=replace(dead_holder(), boot_id="another boot"))
        start(backend, ann)
        seen = backend.claim(session_of(backend, "bob"), "a")
        assert seen is not None
        assert seen.header.session == ann.id


def served_by(backend: Backend, holder: Holder | None = None) -> tuple[Session, int, int]:
    """Return a session that serves two graphs, and those."""
    session, one, two = session_of(backend, holder=holder), definition_of(backend), definition_of(backend, "other")
    backend.serve(session, [one, two, one])
    return session, one, two


class Serving(Examiner):
    def test_a_session_serves_nothing_unless_it_says_so(self, backend: Backend) -> None:
        """Who says nothing is not counted, and nobody is counted for a graph that he did not name."""
        session_of(backend)
        _, one, two = served_by(backend)
        assert dict(backend.served([one, two, definition_of(backend, "third"), 10_000])) == {one: 1, two: 1}
        assert dict(backend.served([two])) == {two: 1}
        assert dict(backend.served([])) == {}

    def test_each_session_counts_once(self, backend: Backend) -> None:
        """It is known how many serve a graph, whatever else they serve."""
        _, one, two = served_by(backend)
        backend.serve(session_of(backend, "bob"), [two])
        assert dict(backend.served([one, two])) == {one: 1, two: 2}

    def test_what_is_said_last_counts(self, backend: Backend) -> None:
        """A worker that drains takes back that it serves anything, and goes on otherwise."""
        ann, one, two = served_by(backend)
        backend.serve(ann, [two])
        assert dict(backend.served([one, two])) == {two: 1}
        backend.serve(ann, [])
        assert dict(backend.served([one, two])) == {}
        backend.renew(ann)

    def test_serve_is_fenced(self, backend: Backend) -> None:
        """A lost session says nothing any more."""
        one = definition_of(backend)
        is_fenced(backend, lambda session: backend.serve(session, [one]))
        assert dict(backend.served([one])) == {one: 1}

    def test_an_ended_session_serves_nothing(self, backend: Backend) -> None:
        """From its end on, by itself."""
        ann, one, two = served_by(backend)
        backend.end_session(ann)
        assert dict(backend.served([one, two])) == {}

    def test_a_session_that_was_taken_over_serves_nothing(self, backend: Backend) -> None:
        """Also if its process wakes up again."""
        ann, one, two = served_by(backend)
        start(backend, ann)
        self.pass_leases(backend)
        backend.claim(session_of(backend, "bob"), "a")
        with pytest.raises(LeaseLost):
            backend.serve(ann, [one])
        assert dict(backend.served([one, two])) == {}

    def test_a_lease_that_ran_out_serves_nothing(self, backend: Backend) -> None:
        """Nobody has to end the session for that; if it is renewed all the same, it counts again."""
        ann, one, two = served_by(backend)
        self.pass_leases(backend)
        assert dict(backend.served([one, two])) == {}
        backend.renew(ann)
        assert dict(backend.served([one, two])) == {one: 1, two: 1}

    def test_a_dead_process_serves_nothing(self, backend: Backend) -> None:
        """No lease has to pass when it is provably gone."""
        _, one, two = served_by(backend, dead_holder())
        assert dict(backend.served([one, two])) == {}
