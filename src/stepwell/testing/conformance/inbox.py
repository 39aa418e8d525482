"""The inbox: messages to an instance that somebody holds, kept in order and accepted once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from msgspec.structs import replace

from stepwell.backend.base import Backend, Change, Want
from stepwell.testing.sample import (
    COMPLETED,
    RUNNING,
    T0,
    WAITING,
    change,
    definition_of,
    entries,
    header_of,
    ids,
    loaded,
    session_of,
    signal,
    start,
)

from .examiner import Examiner

RACES = 20


class Inbox(Examiner):
    def test_messages_keep_their_order(self, backend: Backend) -> None:
        """They are given back oldest first, each with an id, as they were posted."""
        ann = session_of(backend)
        header = start(backend, ann)
        posted = [signal(name, message_id, payload) for name, message_id, payload in _MESSAGES]
        assert [backend.post(header.instance, message) for message in posted] == ["posted"] * len(posted)
        mail = backend.mail(ann)[header.instance]
        assert [replace(message, id=0) for message in mail] == posted
        assert [message.id for message in mail] == sorted({message.id for message in mail})

    def test_messages_keep_the_context_they_were_sent_in(self, backend: Backend) -> None:
        """Whoever gets them has it: the holder, a load, and the session that takes the instance over."""
        ann = session_of(backend)
        header = start(backend, ann)
        for trace in _TRACES:
            assert backend.post(header.instance, signal(trace=trace)) == "posted"
        assert [message.trace for message in backend.mail(ann)[header.instance]] == _TRACES
        assert [message.trace for message in loaded(backend).mail] == _TRACES
        backend.end_session(ann)
        (found,) = backend.claim_due(session_of(backend, "bob"), Want([definition_of(backend)], T0, 9))
        assert [message.trace for message in found.mail] == _TRACES

    def test_a_load_brings_the_messages(self, backend: Backend) -> None:
        """Whoever claims next sees what is waiting, and the header counts it."""
        header = start(backend, session_of(backend))
        backend.post(header.instance, signal())
        assert [message.name for message in loaded(backend).mail] == ["go"]
        assert header_of(backend).mail == 1

    def test_a_session_gets_the_messages_of_what_it_holds(self, backend: Backend) -> None:
        """Messages to instances of others are not among them."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        a, b = start(backend, ann, "a"), start(backend, bob, "b")
        backend.post(a.instance, signal("to-a"))
        backend.post(b.instance, signal("to-b"))
        assert {number: [each.name for each in mail] for number, mail in backend.mail(ann).items()} == {
            a.instance: ["to-a"]
        }

    def test_received_ids_are_remembered(self, backend: Backend) -> None:
        """Posted or brought in by a change, read or not, through rests, releases and the end; sorted."""
        ann = session_of(backend)
        header, other = start(backend, ann), start(backend, ann, "other")
        backend.post(header.instance, signal(message_id="m"))
        backend.post(header.instance, signal())
        backend.post(other.instance, signal(message_id="not mine"))
        taken = [message.id for message in backend.mail(ann)[header.instance]]
        backend.commit(ann, [replace(change(header, taken=taken), message_ids=["k"])])
        assert list(backend.received(header.instance)) == ["k", "m"]
        backend.commit(ann, [change(header, base=2, rest=COMPLETED)])
        assert list(backend.received(header.instance)) == ["k", "m"]
        assert list(backend.received(10_000)) == []

    def test_no_messages(self, backend: Backend) -> None:
        """A session without mail gets an empty answer."""
        ann = session_of(backend)
        start(backend, ann)
        assert backend.mail(ann) == {}

    def test_a_taken_message_is_gone(self, backend: Backend) -> None:
        """It goes in the transaction that takes it in, and the others stay."""
        ann = session_of(backend)
        header = start(backend, ann)
        for name in ("first", "second"):
            backend.post(header.instance, signal(name))
        first, _ = backend.mail(ann)[header.instance]
        backend.commit(ann, [change(header, taken=[first.id])])
        assert [message.name for message in backend.mail(ann)[header.instance]] == ["second"]

    def test_a_conflict_takes_no_message(self, backend: Backend) -> None:
        """What does not land takes nothing with it."""
        ann = session_of(backend)
        header = start(backend, ann)
        backend.post(header.instance, signal())
        (message,) = backend.mail(ann)[header.instance]
        backend.commit(ann, [change(header, base=5, taken=[message.id])])
        assert len(backend.mail(ann)[header.instance]) == 1

    def test_only_an_instance_s_own_messages_can_be_taken(self, backend: Backend) -> None:
        """An id of another instance's message is passed over."""
        ann = session_of(backend)
        a, b = start(backend, ann, "a"), start(backend, ann, "b")
        backend.post(b.instance, signal())
        (message,) = backend.mail(ann)[b.instance]
        assert backend.commit(ann, [change(a, taken=[message.id])]) == ["done"]
        assert header_of(backend, "b").mail == 1

    def test_ids_are_not_given_out_twice(self, backend: Backend) -> None:
        """A holder that remembers an id never mistakes a later message for it."""
        ann = session_of(backend)
        header = start(backend, ann)
        backend.post(header.instance, signal())
        (first,) = backend.mail(ann)[header.instance]
        backend.commit(ann, [change(header, taken=[first.id])])
        backend.post(header.instance, signal())
        (second,) = backend.mail(ann)[header.instance]
        assert second.id > first.id

    def test_a_message_id_is_accepted_once(self, backend: Backend) -> None:
        """Sending it again is answered ``"known"``, also after it was taken."""
        ann = session_of(backend)
        header = start(backend, ann)
        assert backend.post(header.instance, signal(message_id="m")) == "posted"
        assert backend.post(header.instance, signal(message_id="m")) == "known"
        (message,) = backend.mail(ann)[header.instance]
        backend.commit(ann, [change(header, taken=[message.id])])
        assert backend.post(header.instance, signal(message_id="m")) == "known"

    def test_a_message_id_is_remembered_after_the_end(self, backend: Backend) -> None:
        """Who repeats a signal that was accepted is not told that it came too late."""
        ann = session_of(backend)
        header = start(backend, ann)
        backend.post(header.instance, signal(message_id="m"))
        backend.commit(ann, [change(header, rest=COMPLETED)])
        assert backend.post(header.instance, signal(message_id="m")) == "known"
        assert backend.post(header.instance, signal(message_id="n")) == "ended"

    def test_a_message_id_counts_per_instance(self, backend: Backend) -> None:
        """Two instances may get messages with one id."""
        ann = session_of(backend)
        for name in ("a", "b"):
            assert backend.post(start(backend, ann, name).instance, signal(message_id="m")) == "posted"

    def test_a_change_can_bring_a_message_id(self, backend: Backend) -> None:
        """A client that advances a free instance leaves the id behind, so that a repeat is known."""
        header = start(backend, None)
        brought = replace(change(header, rest=WAITING), message_ids=["m"])
        assert backend.commit(None, [brought]) == ["done"]
        assert backend.post(header.instance, signal(message_id="m")) == "known"

    def test_a_change_that_brings_a_known_message_id_is_a_conflict(self, backend: Backend) -> None:
        """Of two senders of one signal, one advances the instance."""
        header = start(backend, None)
        brought = replace(change(header, rest=WAITING), message_ids=["m"])
        backend.commit(None, [brought])
        again = Change(header.instance, 2, entries(3), (), WAITING, ["m"])
        assert backend.commit(None, [again]) == ["conflict"]
        assert backend.commit(session_of(backend), [again]) == ["conflict"]

    def test_a_free_instance_takes_no_post(self, backend: Backend) -> None:
        """The sender may advance it; nothing was put down."""
        header = start(backend, None)
        assert backend.post(header.instance, signal(message_id="m")) == "free"
        assert header_of(backend).mail == 0
        backend.claim(session_of(backend), "a")
        assert backend.post(header.instance, signal(message_id="m")) == "posted"

    def test_an_ended_instance_takes_no_post(self, backend: Backend) -> None:
        """The sender is told, not ignored."""
        header = start(backend, None)
        backend.commit(None, [change(header, rest=COMPLETED)])
        assert backend.post(header.instance, signal()) == "ended"
        assert backend.post(10_000, signal()) == "ended"

    def test_a_message_that_crosses_a_release_makes_it_due(self, backend: Backend) -> None:
        """The holder is told, and whoever looks next finds it at once."""
        ann = session_of(backend)
        header = start(backend, ann)
        backend.post(header.instance, signal())
        assert backend.commit(ann, [change(header, rest=WAITING)]) == ["mail"]
        assert ids(backend.claim_due(ann, Want([definition_of(backend)], 0, 9))) == ["a"]

    def test_a_release_that_takes_its_messages_is_quiet(self, backend: Backend) -> None:
        """What was taken in the same change does not wait any more."""
        ann = session_of(backend)
        header = start(backend, ann)
        backend.post(header.instance, signal())
        (message,) = backend.mail(ann)[header.instance]
        assert backend.commit(ann, [change(header, rest=WAITING, taken=[message.id])]) == ["done"]
        assert header_of(backend).due_us is None

    def test_each_release_in_a_batch_sees_its_own_messages(self, backend: Backend) -> None:
        """Mail of one instance does not wake the others."""
        ann = session_of(backend)
        a, b, c = (start(backend, ann, name) for name in "abc")
        backend.post(b.instance, signal())
        kept = replace(RUNNING, release=False)
        assert backend.commit(ann, [change(a, rest=WAITING), change(b, rest=WAITING), change(c, rest=kept)]) == [
            "done",
            "mail",
            "done",
        ]

    def test_an_end_leaves_messages_unread(self, backend: Backend) -> None:
        """They wake nobody, and are there for whoever reopens it."""
        ann = session_of(backend)
        header = start(backend, ann)
        backend.post(header.instance, signal())
        assert backend.commit(ann, [change(header, rest=COMPLETED)]) == ["done"]
        assert (header_of(backend).due_us, header_of(backend).mail) == (None, 1)
        assert backend.commit(ann, [change(header, base=2, rest=WAITING)]) == ["mail"]

    def test_messages_survive_a_takeover(self, backend: Backend) -> None:
        """What a lost session had not taken in is there for the next, due at once."""
        ann = session_of(backend)
        header = start(backend, ann)
        backend.commit(ann, [change(header, rest=replace(WAITING, release=False))])
        backend.post(header.instance, signal())
        backend.end_session(ann)
        (found,) = backend.claim_due(session_of(backend, "bob"), Want([definition_of(backend)], 0, 9))
        assert len(found.mail) == 1

    def test_a_post_and_a_release_race(self, backend: Backend) -> None:
        """However they meet, an accepted message is found and a refused one is not there."""
        ann, barrier = session_of(backend), Barrier(2)

        def post(number: int) -> str:
            barrier.wait()
            return backend.post(number, signal())

        with ThreadPoolExecutor(1) as pool:
            for turn in range(RACES):
                header = start(backend, ann, str(turn))
                answer = pool.submit(post, header.instance)
                barrier.wait()
                outcome = backend.commit(ann, [change(header, rest=WAITING)])
                posted = answer.result() == "posted"
                assert outcome == ["mail" if posted else "done"]
                assert header_of(backend, str(turn)).due_us == (0 if posted else None)


_MESSAGES = [
    ("go", "", b"payload"),
    ("go", "m1", None),
    ("stop", "", b""),
    ("", "m2", bytes(range(256))),
    ("sig'n\"al%_;--", "ü/../\U0001f600", b"\0"),
]
_PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_TRACES = [_PARENT, "", f"{_PARENT} vendor={'x' * 256},tenant@other={'y' * 235}"]  # the last is as long as may be
