"""Creating instances: once per id, all together, and in place of an earlier run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from msgspec.structs import replace

from stepwell.backend.base import Backend, Created, Creation, Filter, Want
from stepwell.errors import OptionError
from stepwell.testing.sample import (
    COMPLETED,
    T0,
    WAITING,
    change,
    create,
    creation,
    definition_of,
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
        made = replace(creation(backend), labels={"team": "search"}, trace="00-1-2-01", lane="eu ü")
        made = replace(made, image=b"image", state="running")
        header = create(backend, session_of(backend), made)
        assert header == header_of(backend) == backend.header("a")
        assert (header.trace, header.lane, dict(header.labels)) == ("00-1-2-01", "eu ü", {"team": "search"})

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


def restored(backend: Backend) -> Creation:
    """Return a creation as a restore makes it: a later run of another store, with history, image and inbox."""
    return replace(
        creation(backend, count=3), claim=False, origin="another store", run=4, state="waiting", due_us=None,
        image=b"image", messages=[signal("first", "m", trace="00-1-2-01"), signal("second")], message_ids=["k"],
        result_seq=2, updated_us=T0 + 9, labels={"team": "search"}, lane="eu",
    )  # fmt: skip


class Restoring(Examiner):
    def test_a_restored_header_is_the_stored_one(self, backend: Backend) -> None:
        """What ``create`` answers is what a later read shows, with the values it was given."""
        header = create(backend, None, restored(backend))
        assert header == header_of(backend)
        assert (header.origin, header.run, header.seq, header.mail, header.lane) == ("another store", 4, 3, 2, "eu")
        assert (header.state, header.result_seq) == ("waiting", 2)
        assert (header.created_us, header.updated_us, header.ended_us) == (T0, T0 + 9, None)

    def test_an_instance_of_this_store_has_no_other_origin(self, backend: Backend) -> None:
        """Its keys are made from the id of this store; it is run 1, written when it was created."""
        header = start(backend, None)
        assert (header.origin, header.run, header.updated_us, header.result_seq) == ("", 1, T0, 0)

    def test_a_restored_history_is_whole(self, backend: Backend) -> None:
        """Entries have their outputs, and the image covers them all, so that a load reads none."""
        header = create(backend, None, restored(backend))
        assert list(backend.history(header.instance, 0, 9)) == entries(1, 3)
        found = loaded(backend)
        assert (found.image, list(found.entries)) == (b"image", [])

    def test_a_restored_inbox_keeps_its_order(self, backend: Backend) -> None:
        """Messages get ids of this store, above those that were given out before."""
        held = start(backend, session_of(backend), "other")
        backend.post(held.instance, signal())
        (before,) = loaded(backend, "other").mail
        messages = [replace(signal("a", trace="00-1-2-01"), id=1), replace(signal("b"), id=1)]
        create(backend, None, replace(restored(backend), messages=messages))
        mail = loaded(backend).mail
        assert [message.name for message in mail] == ["a", "b"]
        assert [message.trace for message in mail] == ["00-1-2-01", ""]
        assert before.id < mail[0].id < mail[1].id

    def test_restored_mail_makes_it_due(self, backend: Backend) -> None:
        """Whoever serves its workflow takes the messages in."""
        create(backend, None, restored(backend))
        (found,) = backend.claim_due(session_of(backend), Want([definition_of(backend)], T0, 9))
        assert [message.name for message in found.mail] == ["first", "second"]
        assert list(backend.stuck(T0)) == []

    def test_restored_message_ids_are_known(self, backend: Backend) -> None:
        """Those accepted before, and those of the inbox, are not accepted again."""
        ann = session_of(backend)
        header = create(backend, ann, replace(restored(backend), claim=True))
        assert list(backend.received(header.instance)) == ["k", "m"]
        assert [backend.post(header.instance, signal(message_id=name)) for name in "kmn"] == [
            "known",
            "known",
            "posted",
        ]

    def test_a_restored_end_is_an_end(self, backend: Backend) -> None:
        """It ended when it is said to have ended, is nobody's and never due, whatever a claim asked for."""
        made = replace(restored(backend), state="failed", ended_us=T0 + 7, claim=True)
        header = create(backend, session_of(backend), made)
        assert (header.state, header.ended_us, header.session, header.due_us) == ("failed", T0 + 7, 0, None)
        assert backend.purge(T0 + 7, None, 9) == 0
        assert backend.purge(T0 + 8, None, 9) == 1

    def test_a_restored_run_goes_on(self, backend: Backend) -> None:
        """It is claimed, written and replaced like any other, and its next run has the next number."""
        ann = session_of(backend)
        create(backend, None, restored(backend))
        found = backend.claim(ann, "a")
        assert found is not None
        assert backend.commit(ann, [change(found.header)]) == ["done"]
        next_run = replace(creation(backend), replacing=change(found.header, base=4, rest=COMPLETED))
        assert create(backend, ann, next_run).run == 5

    def test_a_taken_id_is_not_restored_over(self, backend: Backend) -> None:
        """The row that exists is answered, and nothing of the restored one is kept."""
        header = start(backend, None)
        assert backend.create(None, [restored(backend)]) == [header]
        assert (list(backend.received(header.instance)), list(loaded(backend).mail)) == ([], [])
        assert backend.count(Filter(labels={"team": "search"})) == 0

    def test_what_contradicts_itself_is_refused(self, backend: Backend) -> None:
        """A run below 1, or the end of a run that goes on."""
        for wrong in (replace(restored(backend), run=-1), replace(restored(backend), ended_us=T0)):
            with pytest.raises(OptionError):
                backend.create(None, [wrong])

    def test_a_replacing_run_has_the_next_number(self, backend: Backend) -> None:
        """A number of its own is refused, as it could be one that was there."""
        old = start(backend, None)
        with pytest.raises(OptionError):
            backend.create(None, [replace(creation(backend), run=7, replacing=change(old, rest=COMPLETED))])
