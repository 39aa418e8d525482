"""Commits: what is admitted, what lands together, and how an instance is left."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from stepwell.backend.base import Backend, Change, Rest, Want
from stepwell.errors import LeaseLost, OptionError
from stepwell.testing.sample import (
    COMPLETED,
    RUNNING,
    T0,
    WAITING,
    change,
    create,
    creation,
    definition_of,
    entries,
    header_of,
    ids,
    loaded,
    seqs,
    session_of,
    start,
)

from .examiner import Examiner

EVERY_BYTE = bytes(range(256))
FIVE_MB = EVERY_BYTE * (5 * 1024 * 4)


class Admission(Examiner):
    def test_entries_land_in_order(self, backend: Backend) -> None:
        """History gives back what was written, field by field."""
        ann = session_of(backend)
        header = start(backend, ann)
        assert backend.commit(ann, [change(header, count=3)]) == ["done"]
        assert backend.history(header.instance, 1, 10) == entries(2, 3)

    def test_nothing_to_commit(self, backend: Backend) -> None:
        """An empty commit has no outcomes, but is fenced like any other."""
        ann = session_of(backend)
        assert backend.commit(ann, []) == []
        backend.end_session(ann)
        with pytest.raises(LeaseLost):
            backend.commit(ann, [])

    def test_a_stale_base_is_a_conflict(self, backend: Backend) -> None:
        """A seq that is taken stays as it is."""
        ann = session_of(backend)
        header = start(backend, ann)
        backend.commit(ann, [change(header)])
        before = backend.history(header.instance, 0, 10)
        assert backend.commit(ann, [Change(header.instance, 1, entries(2, output=b"other"))]) == ["conflict"]
        assert backend.history(header.instance, 0, 10) == before

    def test_a_stale_base_with_fresh_entries_is_a_conflict(self, backend: Backend) -> None:
        """No entry of a stale change lands, even one whose own seq would be the next."""
        ann = session_of(backend)
        header = start(backend, ann)
        backend.commit(ann, [change(header)])
        assert backend.commit(ann, [change(header, base=1, count=3)]) == ["conflict"]
        assert seqs(backend, header) == [1, 2]

    def test_a_base_ahead_is_a_conflict(self, backend: Backend) -> None:
        """The journal never gets a hole."""
        ann = session_of(backend)
        header = start(backend, ann)
        assert backend.commit(ann, [change(header, base=2)]) == ["conflict"]
        assert seqs(backend, header) == [1]

    def test_a_gap_between_entries_is_a_conflict(self, backend: Backend) -> None:
        """Entries are numbered without a gap."""
        ann = session_of(backend)
        header = start(backend, ann)
        gap = Change(header.instance, 1, [*entries(2), *entries(4)])
        assert backend.commit(ann, [gap]) == ["conflict"]
        assert seqs(backend, header) == [1]

    def test_entries_that_do_not_follow_their_base_are_a_conflict(self, backend: Backend) -> None:
        """The base counts, not only the seqs."""
        ann = session_of(backend)
        header = start(backend, ann)
        assert backend.commit(ann, [Change(header.instance, 0, entries(2))]) == ["conflict"]
        assert backend.commit(ann, [Change(header.instance, 1, [*entries(2), *entries(2)])]) == ["conflict"]
        assert seqs(backend, header) == [1]

    def test_one_conflict_does_not_hurt_the_others(self, backend: Backend) -> None:
        """Each change of a batch has its own outcome."""
        ann = session_of(backend)
        a, b, c = (start(backend, ann, name) for name in "abc")
        assert backend.commit(ann, [change(a), change(b, base=7), change(c)]) == ["done", "conflict", "done"]
        assert [seqs(backend, header) for header in (a, b, c)] == [[1, 2], [1], [1, 2]]

    def test_changes_of_one_instance_apply_in_order(self, backend: Backend) -> None:
        """A batch may hold several changes of one instance; each continues the one before."""
        ann = session_of(backend)
        header = start(backend, ann)
        outcomes = backend.commit(ann, [change(header), change(header, base=2), change(header, base=2)])
        assert outcomes == ["done", "done", "conflict"]

    def test_an_unknown_instance_is_a_conflict(self, backend: Backend) -> None:
        """Nothing is written for a number that was never given out, with or without a session."""
        lost = replace(change(start(backend, None)), instance=10_000)
        assert backend.commit(session_of(backend), [lost]) == ["conflict"]
        assert backend.commit(None, [lost]) == ["conflict"]
        assert backend.history(10_000, 0, 10) == []

    def test_another_session_s_instance_is_a_conflict(self, backend: Backend) -> None:
        """A session cannot write what another one holds."""
        header = start(backend, session_of(backend))
        assert backend.commit(session_of(backend, "bob"), [change(header)]) == ["conflict"]
        assert seqs(backend, header) == [1]

    def test_without_a_session_a_held_instance_is_left_alone(self, backend: Backend) -> None:
        """A client is told to post instead."""
        header = start(backend, session_of(backend))
        assert backend.commit(None, [change(header)]) == ["held"]
        assert seqs(backend, header) == [1]

    def test_without_a_session_a_free_instance_can_be_written(self, backend: Backend) -> None:
        """That is how clients signal, cancel and pause when nobody works on it."""
        header = start(backend, None)
        assert backend.commit(None, [change(header, rest=WAITING)]) == ["done"]
        assert header_of(backend).state == "waiting"

    def test_a_write_without_a_rest_leaves_a_free_instance_due(self, backend: Backend) -> None:
        """Somebody has to go on from the new entries."""
        header = start(backend, None)
        backend.commit(None, [change(header, rest=WAITING)])
        assert backend.commit(None, [change(header, base=2)]) == ["done"]
        assert header_of(backend).due_us == 0

    def test_a_session_holds_what_it_wrote(self, backend: Backend) -> None:
        """A session that writes to a free instance has it afterwards."""
        ann = session_of(backend)
        backend.commit(ann, [change(start(backend, None))])
        assert header_of(backend).session == ann.id

    def test_a_session_does_not_hold_what_it_gave_back(self, backend: Backend) -> None:
        """Writing to a free instance with a rest that releases leaves it free."""
        ann = session_of(backend)
        backend.commit(ann, [change(start(backend, None), rest=WAITING)])
        assert header_of(backend).session == 0

    def test_every_byte_is_kept(self, backend: Backend) -> None:
        """Facts, outputs and images are bytes, no more and no less."""
        ann = session_of(backend)
        header = start(backend, ann)
        entry = replace(entries(2)[0], facts=EVERY_BYTE, output=EVERY_BYTE)
        backend.commit(ann, [Change(header.instance, 1, [entry], (), replace(WAITING, image=EVERY_BYTE))])
        assert backend.history(header.instance, 1, 1) == [entry]
        assert loaded(backend).image == EVERY_BYTE

    def test_no_output_is_not_an_empty_one(self, backend: Backend) -> None:
        """``None`` and ``b""`` come back as they went in."""
        ann = session_of(backend)
        header = start(backend, ann)
        backend.commit(ann, [Change(header.instance, 1, [*entries(2, output=None), *entries(3, output=b"")])])
        assert [entry.output for entry in backend.history(header.instance, 1, 10)] == [None, b""]

    def test_a_large_output_is_kept(self, backend: Backend) -> None:
        """Five megabytes are no special case."""
        ann = session_of(backend)
        header = start(backend, ann)
        backend.commit(ann, [Change(header.instance, 1, entries(2, output=FIVE_MB))])
        assert backend.values(header.instance, [2]) == {2: FIVE_MB}


class Resting(Examiner):
    def test_a_rest_is_what_the_header_shows(self, backend: Backend) -> None:
        """State, due time, result and the time of the last entry are those of the rest."""
        ann = session_of(backend)
        rest = Rest("running", b"image", due_us=T0 + 9, result_seq=2)
        backend.commit(ann, [change(start(backend, ann), rest=rest)])
        header = header_of(backend)
        shown = (header.state, header.due_us, header.result_seq, header.updated_us, header.ended_us, header.session)
        assert shown == ("running", T0 + 9, 2, T0 + 2, None, 0)

    def test_a_rest_may_keep_the_claim(self, backend: Backend) -> None:
        """An image can be written in the middle of work."""
        ann = session_of(backend)
        backend.commit(ann, [change(start(backend, ann), rest=replace(RUNNING, release=False))])
        assert header_of(backend).session == ann.id

    def test_without_a_rest_the_header_stays(self, backend: Backend) -> None:
        """Only ``seq`` moves while work goes on."""
        ann = session_of(backend)
        header = start(backend, ann)
        backend.commit(ann, [change(header)])
        assert header_of(backend) == replace(header, seq=2)

    def test_an_end_gives_the_claim_back(self, backend: Backend) -> None:
        """An ended instance is neither held nor due, whatever the rest says."""
        ann = session_of(backend)
        rest = replace(COMPLETED, release=False, due_us=T0, result_seq=2)
        assert backend.commit(ann, [change(start(backend, ann), rest=rest)]) == ["done"]
        header = header_of(backend)
        assert (header.state, header.session, header.due_us, header.ended_us) == ("completed", 0, None, T0 + 2)

    def test_an_ended_instance_can_be_reopened(self, backend: Backend) -> None:
        """A retry is a change like any other; the store does not judge it."""
        header = start(backend, None)
        backend.commit(None, [change(header, rest=Rest("failed", b"image"))])
        assert backend.commit(None, [change(header, base=2, rest=RUNNING)]) == ["done"]
        assert (header_of(backend).state, header_of(backend).ended_us) == ("running", None)
        assert ids(backend.claim_due(session_of(backend), Want([definition_of(backend)], T0, 9))) == ["a"]

    def test_reopening_with_a_session_can_claim(self, backend: Backend) -> None:
        """A rest that does not release leaves the reopened instance with its session."""
        ann, header = session_of(backend), start(backend, None)
        backend.commit(None, [change(header, rest=Rest("failed", b"image"))])
        backend.commit(ann, [change(header, base=2, rest=replace(RUNNING, release=False))])
        assert header_of(backend).session == ann.id

    def test_entries_after_the_end_change_nothing_else(self, backend: Backend) -> None:
        """A late result is recorded; the instance stays ended, free and not due."""
        ann, header = session_of(backend), start(backend, None)
        backend.commit(None, [change(header, rest=COMPLETED)])
        ended = header_of(backend)
        assert backend.commit(ann, [change(header, base=2)]) == ["done"]
        assert header_of(backend) == replace(ended, seq=3)

    def test_a_rest_needs_no_entries(self, backend: Backend) -> None:
        """Giving back without news is a change with a base and a rest."""
        ann = session_of(backend)
        assert backend.commit(ann, [change(start(backend, ann), count=0, rest=WAITING)]) == ["done"]
        assert (header_of(backend).state, header_of(backend).seq) == ("waiting", 1)

    def test_a_rest_without_entries_has_to_be_current(self, backend: Backend) -> None:
        """Its base is checked as if it had entries."""
        ann = session_of(backend)
        header = start(backend, ann)
        backend.commit(ann, [change(header)])
        assert backend.commit(ann, [change(header, count=0, rest=WAITING)]) == ["conflict"]
        assert header_of(backend).state == "pending"

    def test_a_load_reads_from_the_image_on(self, backend: Backend) -> None:
        """Entries that the image covers are left out, and so are the outputs of the others."""
        ann = session_of(backend)
        header = start(backend, ann)
        backend.commit(ann, [change(header, rest=replace(RUNNING, image=b"two", release=False))])
        backend.commit(ann, [change(header, base=2, count=2)])
        found = loaded(backend)
        assert (found.image, found.header.seq) == (b"two", 4)
        assert list(found.entries) == entries(3, 2, output=None)

    def test_an_image_may_come_with_the_creation(self, backend: Backend) -> None:
        """It covers the entries it came with."""
        create(backend, None, replace(creation(backend, count=2), image=b"two"))
        assert (loaded(backend).image, list(loaded(backend).entries)) == (b"two", [])

    def test_without_an_image_a_load_reads_everything(self, backend: Backend) -> None:
        """A new instance is its entries."""
        create(backend, None, creation(backend, count=2))
        assert (loaded(backend).image, list(loaded(backend).entries)) == (None, [*entries(1), *entries(2, output=None)])

    def test_a_rest_may_move_to_another_definition(self, backend: Backend) -> None:
        """From then on it is listed and claimed under the new one."""
        new = backend.register("work", "newer-fingerprint", b"newer plan")
        backend.commit(None, [change(start(backend, None), rest=replace(RUNNING, definition=new))])
        assert header_of(backend).fingerprint == "newer-fingerprint"
        ann = session_of(backend)
        assert ids(backend.claim_due(ann, Want([definition_of(backend)], T0, 9))) == []
        assert ids(backend.claim_due(ann, Want([new], T0, 9))) == ["a"]

    def test_an_unknown_definition_is_refused(self, backend: Backend) -> None:
        """Nothing of the commit is written."""
        a, b = start(backend, None, "a"), start(backend, None, "b")
        with pytest.raises(OptionError):
            backend.commit(None, [change(a), change(b, rest=replace(RUNNING, definition=10_000))])
        assert seqs(backend, a) == [1]
