"""Working inside a transaction of the user's own: all of it lands when they commit, none of it else."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from stepwell.backend.base import Backend, Change, Created, Creation, Filter, Joined
from stepwell.errors import LeaseLost, OptionError
from stepwell.testing.sample import (
    COMPLETED,
    T0,
    WAITING,
    change,
    creation,
    dump,
    entries,
    header_of,
    offers,
    seqs,
    session_of,
    start,
)

from .examiner import Examiner


class Joining(Examiner):
    """A store that cannot do it refuses; the others are examined through :meth:`~.Examiner.begin`."""

    def test_a_store_without_user_transactions_refuses(self, backend: Backend) -> None:
        """The error names what to use instead."""
        if backend.capabilities.user_transactions:
            pytest.skip("this store has them")
        with pytest.raises(OptionError):
            backend.within(object())
        with pytest.raises(OptionError):
            backend.connect()

    def test_what_is_no_connection_is_refused(self, backend: Backend) -> None:
        """Whatever the store: a path or a number is none."""
        for wrong in (None, 7, "store.db"):
            with pytest.raises(OptionError):
                backend.within(wrong)

    def test_nothing_lands_before_the_user_commits(self, backend: Backend) -> None:
        """Others see neither the instance nor its steps, and the user's own view sees both."""
        made, connection = creation(backend), self._begin(backend)
        joined = backend.within(connection)
        (created,) = joined.create(None, [made])
        assert isinstance(created, Created)
        assert joined.commit(None, [change(created.header, rest=WAITING)]) == ["done"]
        seen = joined.header("a")
        assert seen is not None
        assert (seen.seq, backend.header("a")) == (2, None)
        self.finish(connection, keep=True)
        assert header_of(backend) == seen

    def test_offers_go_when_the_user_s_end_commits(self, backend: Backend) -> None:
        """An instance that is ended inside takes its offers with it, and keeps them if that is rolled back."""
        ann = session_of(backend)
        header = start(backend, ann)
        offers(backend, ann, header, b"x")
        backend.release(ann, [header.instance])
        for keep, left in ((False, [b"x"]), (True, [])):
            connection = self._begin(backend)
            assert backend.within(connection).commit(None, [change(header, rest=COMPLETED)]) == ["done"]
            self.finish(connection, keep=keep)
            assert list(backend.offered(header.instance)) == left

    def test_an_entry_of_the_user_s_clears_suspicion(self, backend: Backend) -> None:
        """It is progress as any other."""
        header = start(backend, session_of(backend))
        self.pass_leases(backend)
        backend.claim(session_of(backend, "bob"), "a")
        assert header_of(backend).suspect == 1
        self.pass_leases(backend)
        connection = self._begin(backend)
        backend.within(connection).commit(None, [change(header)])
        self.finish(connection, keep=True)
        assert header_of(backend).suspect == 0

    def test_what_the_user_rolls_back_never_was(self, backend: Backend) -> None:
        """Creations, entries, ends, replacements: the store is as it was."""
        old, waiting = start(backend, None, "old"), start(backend, None, "waiting")
        replacing = replace(creation(backend, "old"), replacing=change(old, rest=COMPLETED))
        new, before, connection = creation(backend, "new"), dump(backend), self._begin(backend)
        joined = backend.within(connection)
        joined.create(None, [new, replacing])
        joined.commit(None, [change(waiting, rest=WAITING)])
        joined.register("late", "late", b"plan")
        self.finish(connection, keep=False)
        assert dump(backend) == before
        assert backend.plan("late", "late") is None

    def test_a_definition_that_was_rolled_back_is_unknown(self, backend: Backend) -> None:
        """Its number is remembered by nobody, and the next to come may get it."""
        connection = self._begin(backend)
        number = backend.within(connection).register("late", "late", b"plan")
        backend.within(connection).create(None, [_creation(number)])
        self.finish(connection, keep=False)
        with pytest.raises(OptionError):
            backend.create(None, [_creation(number)])
        second = self._begin(backend)
        other = backend.within(second).register("other", "other", b"plan")
        (created,) = backend.within(second).create(None, [_creation(other)])
        self.finish(second, keep=True)
        assert isinstance(created, Created)
        assert (created.header.workflow, header_of(backend).workflow) == ("other", "other")

    def test_a_failure_inside_undoes_itself_only(self, backend: Backend) -> None:
        """What the user did before it stays, and the transaction is still theirs."""
        good, first, lost = creation(backend, "good"), creation(backend, "first"), session_of(backend)
        backend.end_session(lost)
        connection = self._begin(backend)
        joined = backend.within(connection)
        joined.create(None, [good])
        with pytest.raises(OptionError):
            joined.create(None, [first, replace(first, instance_id="second", definition=10_000)])
        with pytest.raises(LeaseLost):
            joined.create(lost, [first])
        assert joined.header("first") is None
        self.finish(connection, keep=True)
        assert [header.instance_id for header in backend.list(Filter())] == ["good"]

    def test_a_session_writes_inside(self, backend: Backend) -> None:
        """What it holds, from where the journal ends; it holds it still when the user has committed."""
        ann = session_of(backend)
        header = start(backend, ann)
        connection = self._begin(backend)
        joined = backend.within(connection)
        assert joined.commit(ann, [change(header, count=2)]) == ["done"]
        assert joined.values(header.instance, [3]) == {3: b"out"}
        self.finish(connection, keep=True)
        assert backend.commit(ann, [change(header, base=3)]) == ["done"]
        assert seqs(backend, header) == [1, 2, 3, 4]
        assert header_of(backend).session == ann.id

    def test_admission_inside_is_the_same(self, backend: Backend) -> None:
        """A stale seq, the instance of another session, a gap and an unknown instance are conflicts."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        mine, other = start(backend, ann, "mine"), start(backend, bob, "other")
        connection = self._begin(backend)
        joined = backend.within(connection)
        gap = Change(mine.instance, 1, entries(3))
        wrong = [change(mine, base=0), change(other), gap, Change(10_000, 1, entries(2))]
        assert joined.commit(ann, wrong) == ["conflict"] * 4
        assert joined.commit(None, [change(mine)]) == ["held"]
        assert joined.commit(ann, [change(mine), change(other)]) == ["done", "conflict"]
        self.finish(connection, keep=True)
        assert (seqs(backend, mine), seqs(backend, other)) == ([1, 2], [1])

    def test_a_lost_session_writes_nothing_inside(self, backend: Backend) -> None:
        """It hears of it, and what the user does with the transaction is the user's business."""
        ann = session_of(backend)
        header = start(backend, ann)
        backend.end_session(ann)
        connection = self._begin(backend)
        with pytest.raises(LeaseLost):
            backend.within(connection).commit(ann, [change(header)])
        self.finish(connection, keep=True)
        assert seqs(backend, header) == [1]

    def test_what_a_transaction_took_back_may_be_written_again(self, backend: Backend) -> None:
        """A step whose transaction was rolled back is as if it had never been committed."""
        ann = session_of(backend)
        header = start(backend, ann)
        connection = self._begin(backend)
        backend.within(connection).commit(ann, [change(header)])
        self.finish(connection, keep=False)
        assert backend.commit(ann, [change(header)]) == ["done"]

    def test_reading_inside(self, backend: Backend) -> None:
        """Loads, headers, values and plans are those of the store."""
        header = start(backend, None)
        connection = self._begin(backend)
        joined: Joined = backend.within(connection)
        assert (joined.load("a"), joined.header("a")) == (backend.load("a"), header)
        assert joined.values(header.instance, [1]) == {1: b"out"}
        assert (joined.plan("work-fingerprint", "work"), joined.plan("no", "work")) == (b"plan of work", None)
        assert (joined.load("nobody"), joined.header("nobody")) == (None, None)
        assert joined.register("work", "work-fingerprint", b"plan of work") == header.definition
        self.finish(connection, keep=False)

    def _begin(self, backend: Backend) -> object:
        if not backend.capabilities.user_transactions:
            pytest.skip("this store does not claim user_transactions")
        return self.begin(backend)


def _creation(definition: int) -> Creation:
    """Return a creation without asking the store for anything, as its user may be writing to it."""
    return Creation("a", definition, b"digest", entries(1), T0)
