"""Creating instances: once per id, all together, and in place of an earlier run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from msgspec.structs import replace

from stepwell.backend.base import Backend, Created, Filter
from stepwell.errors import OptionError
from stepwell.testing.sample import (
    COMPLETED,
    T0,
    WAITING,
    change,
    create,
    creation,
    entries,
    header_of,
    loaded,
    seqs,
    session_of,
    signal,
    start,
)

from .examiner import Examiner

THREADS = 8


class Creating(Examiner):
    def test_a_created_header_is_the_stored_one(self, backend: Backend) -> None:
        """What ``create`` answers is what a later read shows, field by field."""
        made = replace(creation(backend), labels={"team": "search"}, trace="00-1-2-01", image=b"image", state="running")
        assert create(backend, session_of(backend), made) == header_of(backend)

    def test_a_creation_is_claimed_by_its_session(self, backend: Backend) -> None:
        """The claim lands with the instance."""
        ann = session_of(backend)
        assert start(backend, ann).session == ann.id

    def test_a_creation_need_not_be_claimed(self, backend: Backend) -> None:
        """With ``claim=False`` it is free and due, session or not."""
        made = replace(creation(backend), claim=False)
        header = create(backend, session_of(backend), made)
        assert (header.session, header.due_us) == (0, T0)

    def test_a_creation_without_session_is_free(self, backend: Backend) -> None:
        """Nobody holds what no session claimed."""
        assert start(backend, None).session == 0

    def test_a_creation_may_have_ended(self, backend: Backend) -> None:
        """An instance that ended in its first commit is neither held nor due."""
        made = replace(creation(backend), state="completed")
        header = create(backend, session_of(backend), made)
        assert (header.state, header.session, header.due_us, header.ended_us) == ("completed", 0, None, T0)

    def test_an_existing_instance_is_answered_as_it_is(self, backend: Backend) -> None:
        """A second creation changes nothing and returns the row that exists."""
        header = start(backend, session_of(backend))
        other = replace(creation(backend, workflow="other", count=2), input_digest=b"other")
        assert backend.create(session_of(backend), [other]) == [header]
        assert seqs(backend, header) == [1]

    def test_one_id_twice_in_a_batch_is_created_once(self, backend: Backend) -> None:
        """The first makes it, the second finds it."""
        first, second = backend.create(None, [creation(backend), creation(backend)])
        assert isinstance(first, Created)
        assert second == first.header

    def test_a_batch_answers_in_order(self, backend: Backend) -> None:
        """New and existing ids may be mixed."""
        old = start(backend, None, "old")
        answers = backend.create(None, [creation(backend, "x"), creation(backend, "old"), creation(backend, "y")])
        assert [isinstance(answer, Created) for answer in answers] == [True, False, True]
        assert answers[1] == old

    def test_entries_are_numbered_from_one(self, backend: Backend) -> None:
        """Anything else is the caller's mistake, and nothing of the batch is written."""
        wrong = replace(creation(backend, "b"), entries=entries(2))
        with pytest.raises(OptionError):
            backend.create(None, [creation(backend, "a"), wrong])
        assert backend.count(Filter()) == 0

    def test_an_unknown_definition_is_refused(self, backend: Backend) -> None:
        """Nothing of the batch is written."""
        wrong = replace(creation(backend, "b"), definition=10_000)
        with pytest.raises(OptionError):
            backend.create(None, [creation(backend, "a"), wrong])
        assert backend.count(Filter()) == 0

    def test_of_many_threads_one_creates(self, backend: Backend) -> None:
        """Threads that create one id at once agree on one instance."""
        barrier, made = Barrier(THREADS), creation(backend)

        def race(_: int) -> object:
            barrier.wait()
            return backend.create(None, [made])[0]

        with ThreadPoolExecutor(THREADS) as pool:
            answers = list(pool.map(race, range(THREADS)))
        assert sum(isinstance(answer, Created) for answer in answers) == 1
        assert backend.count(Filter()) == 1

    def test_replacing_begins_the_next_run(self, backend: Backend) -> None:
        """The old run gets its end and the new one its number, in one transaction."""
        old = start(backend, None)
        made = replace(creation(backend), replacing=change(old, rest=COMPLETED))
        new = create(backend, None, made)
        assert (new.run, header_of(backend)) == (2, new)
        assert seqs(backend, old) == [1, 2]

    def test_replacing_fences_the_holder_of_the_old_run(self, backend: Backend) -> None:
        """A live session that held the old run cannot write to it any more, with whatever seq."""
        ann = session_of(backend)
        old = start(backend, ann)
        create(backend, None, replace(creation(backend), replacing=change(old, rest=COMPLETED)))
        assert backend.commit(ann, [change(old), change(old, base=2)]) == ["conflict", "conflict"]
        assert seqs(backend, old) == [1, 2]

    def test_replacing_an_ended_run_needs_no_entry(self, backend: Backend) -> None:
        """A run that has ended stays as it is."""
        old = start(backend, None)
        backend.commit(None, [change(old, rest=COMPLETED)])
        new = create(backend, None, replace(creation(backend), replacing=change(old, base=2, count=0)))
        assert new.run == 2

    def test_replacing_empties_the_inbox(self, backend: Backend) -> None:
        """Messages to the old run are not messages to the new one, and the old one takes none."""
        old = start(backend, session_of(backend))
        backend.post(old.instance, signal())
        create(backend, None, replace(creation(backend), replacing=change(old, rest=COMPLETED)))
        assert not loaded(backend).mail
        assert backend.post(old.instance, signal()) == "ended"

    def test_replacing_a_run_that_moved_on_is_a_conflict(self, backend: Backend) -> None:
        """Neither the end of the old run nor the new one is written."""
        old = start(backend, None)
        backend.commit(None, [change(old, rest=WAITING)])
        before = header_of(backend)
        assert backend.create(None, [replace(creation(backend), replacing=change(old))]) == ["conflict"]
        assert header_of(backend) == before

    def test_only_the_last_run_can_be_replaced(self, backend: Backend) -> None:
        """A caller that saw an older run hears that it is too late."""
        old = start(backend, None)
        made = replace(creation(backend), replacing=change(old, rest=COMPLETED))
        create(backend, None, made)
        late = replace(made, replacing=change(old, base=2))
        assert backend.create(None, [made, late]) == ["conflict", "conflict"]

    def test_replacing_what_is_gone_is_a_conflict(self, backend: Backend) -> None:
        """A run that was deleted meanwhile is not brought back."""
        old = start(backend, None)
        backend.commit(None, [change(old, rest=COMPLETED)])
        backend.delete("a")
        assert backend.create(None, [replace(creation(backend), replacing=change(old))]) == ["conflict"]
