"""Offers: single steps of held instances that other sessions run, and how their outcome comes back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from msgspec.structs import replace

from stepwell.backend.base import Backend, Header, Offer, Session, Want
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
    dump,
    header_of,
    ids,
    loaded,
    offer,
    offers,
    outcome,
    seqs,
    session_of,
    signal,
    start,
)

from .examiner import Examiner
from .sessions import is_fenced

EVERY_BYTE = bytes(range(256))
WIDE = 1_000
THREADS = 8
ODD_TAGS = ["", "a b", 'qu"ote', "k'ey", "a\0b", "ü/../\U0001f600", "[]", ","]


def offered(backend: Backend, ann: Session, *steps: bytes) -> Header:
    """Start an instance that ``ann`` holds, and offer steps of it."""
    header = start(backend, ann)
    offers(backend, ann, header, *(steps or (b"step",)))
    return header


class Offering(Examiner):
    def test_offer_is_fenced(self, backend: Backend) -> None:
        """A lost session cannot offer anything."""
        header = start(backend, session_of(backend))
        is_fenced(backend, lambda session: backend.offer(session, {header.instance: [offer()]}))
        assert list(backend.offered(header.instance)) == []

    def test_claim_offers_is_fenced(self, backend: Backend) -> None:
        """A lost session cannot claim an offer."""
        ann = session_of(backend)
        offered(backend, ann)
        is_fenced(backend, lambda session: claim_offers(backend, session))

    def test_an_offer_is_claimed_as_it_was_made(self, backend: Backend) -> None:
        """With its step, its work, and the row of its instance; it has no state of the journal."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header = offered(backend, ann)
        (found,) = claim_offers(backend, bob)
        assert (found.step, found.work) == (b"step", b"work of step")
        assert found.header == header_of(backend) == replace(header, offered=1)
        assert seqs(backend, header) == [1]

    def test_every_byte_of_an_offer_is_kept(self, backend: Backend) -> None:
        """Steps and work are bytes, no more and no less; work may be empty or long."""
        ann = session_of(backend)
        header = start(backend, ann)
        made = [Offer(EVERY_BYTE, EVERY_BYTE * 4096, 1), Offer(b"", b"", 2), Offer(EVERY_BYTE[::-1], b"\0", 3)]
        backend.offer(ann, {header.instance: made})
        assert [(each.step, each.work) for each in claim_offers(backend, ann)] == [(o.step, o.work) for o in made]

    def test_offered_tells_which_steps(self, backend: Backend) -> None:
        """Those of this instance, claimed or not, and by whom; an unknown one has none."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header, other = offered(backend, ann, b"x", b"y"), start(backend, ann, "other")
        offers(backend, ann, other, b"z")
        (claimed,) = claim_offers(backend, bob, limit=1)
        assert backend.offered(header.instance) == {b"x": "bob", b"y": ""}
        backend.hand_back(bob, [claimed.id])
        assert backend.offered(header.instance) == {b"x": "", b"y": ""}
        assert (list(backend.offered(other.instance)), list(backend.offered(10_000))) == ([b"z"], [])

    def test_a_header_counts_its_offers(self, backend: Backend) -> None:
        """Claimed or not, wherever the header is seen."""
        ann = session_of(backend)
        offered(backend, ann, b"x", b"y", b"z")
        claim_offers(backend, ann, limit=1)
        (listed,) = [header for header in dump(backend) if isinstance(header, Header)]
        assert listed.offered == header_of(backend).offered == loaded(backend).header.offered == 3

    def test_a_free_offer_stays_as_it_is(self, backend: Backend) -> None:
        """Offering its step again changes neither its work nor its place, and makes no second one."""
        ann = session_of(backend)
        header = offered(backend, ann, b"x", b"y")
        backend.offer(ann, {header.instance: [Offer(b"y", b"other work", 0), offer(b"x", T0 + 9)]})
        assert [(each.step, each.work) for each in claim_offers(backend, ann)] == [
            (b"x", b"work of x"),
            (b"y", b"work of y"),
        ]

    def test_a_claimed_offer_stays_as_it_is(self, backend: Backend) -> None:
        """Offering its step again takes it from nobody and calls nothing back."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header = offered(backend, ann, b"x", b"y")
        x, y = claim_offers(backend, bob)
        backend.call_off(ann, header.instance, [b"y"], stop=True)
        offers(backend, ann, header, b"x", b"y")
        assert claim_offers(backend, ann) == []
        assert list(backend.called_off(bob, [x.id, y.id])) == [y.id]

    def test_what_is_not_held_is_not_offered(self, backend: Backend) -> None:
        """Free, ended, unknown or another's: those are passed over, and the others of the same call are made."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        mine, theirs, free = start(backend, ann, "mine"), start(backend, bob, "theirs"), start(backend, None, "free")
        ended = start(backend, ann, "ended")
        backend.commit(ann, [change(ended, rest=COMPLETED)])
        numbers = [theirs.instance, free.instance, ended.instance, 10_000, mine.instance]
        backend.offer(ann, {number: [offer()] for number in numbers})
        assert [bool(backend.offered(number)) for number in numbers] == [False, False, False, False, True]

    def test_an_offer_is_claimed_once(self, backend: Backend) -> None:
        """Not by another session, and not a second time by its own."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        offered(backend, ann)
        assert [len(claim_offers(backend, each)) for each in (bob, ann, bob)] == [1, 0, 0]

    def test_the_holder_may_claim_its_own(self, backend: Backend) -> None:
        """Nobody else has to."""
        ann = session_of(backend)
        header = offered(backend, ann)
        (found,) = claim_offers(backend, ann)
        assert list(backend.settle(ann, [(found.id, outcome())])) == [True]
        assert len(backend.mail(ann)[header.instance]) == 1

    def test_the_lowest_rank_comes_first(self, backend: Backend) -> None:
        """Whatever the instance and the definition; of equal ranks the one that was offered first."""
        ann = session_of(backend)
        a, b = start(backend, ann, "a", workflow="one"), start(backend, ann, "b", workflow="two")
        backend.offer(ann, {a.instance: [offer(b"late", 30), offer(b"mid", 20)], b.instance: [offer(b"early", 10)]})
        backend.offer(ann, {b.instance: [offer(b"mid-too", 20)]})
        want = Want([definition_of(backend, "one"), definition_of(backend, "two")], T0, 3)
        found = [[each.step for each in backend.claim_offers(ann, want)] for _ in range(2)]
        assert found == [[b"early", b"mid", b"mid-too"], [b"late"]]

    def test_no_definitions_and_no_limit_claim_no_offers(self, backend: Backend) -> None:
        """A definition that is named twice counts once, and one that nobody registered not at all."""
        ann, work = session_of(backend), definition_of(backend)
        offered(backend, ann, b"x", b"y")
        for want in (Want([], T0, 9), Want([work], T0, 0), Want([work], T0, -1), Want([10_000], T0, 9)):
            assert list(backend.claim_offers(ann, want)) == []
        assert len(backend.claim_offers(ann, Want([work, work], T0, 9))) == 2

    def test_offers_of_other_definitions_do_not_use_up_the_limit(self, backend: Backend) -> None:
        """They are filtered before it."""
        ann = session_of(backend)
        other = start(backend, ann, "other", workflow="other")
        backend.offer(ann, {other.instance: [offer(b"%d" % number, 1) for number in range(20)]})
        offered(backend, ann)
        assert [each.step for each in claim_offers(backend, ann, limit=1)] == [b"step"]

    def test_all_tags_are_asked_for(self, backend: Backend) -> None:
        """A session needs every one of them; it may have more, and order and repetition do not count."""
        ann = session_of(backend)
        header = start(backend, ann)
        asked = {b"none": (), b"gpu": ["gpu"], b"both": ["gpu", "eu", "gpu"], b"eu": ["eu"]}
        backend.offer(ann, {header.instance: [offer(step, tags=tags) for step, tags in asked.items()]})
        for tags, steps in (((), [b"none"]), (["eu", "us"], [b"eu"]), (["us", "eu", "gpu"], [b"gpu", b"both"])):
            assert [each.step for each in claim_offers(backend, ann, tags=tags)] == steps

    def test_a_tag_is_compared_as_it_is(self, backend: Backend) -> None:
        """Whatever characters it has, and nothing like it will do."""
        ann = session_of(backend)
        header = start(backend, ann)
        backend.offer(ann, {header.instance: [offer(tag.encode(), tags=[tag]) for tag in ODD_TAGS]})
        assert claim_offers(backend, ann, tags=["a", "b", "A B", "a\0c", "a\0", '["a b"]', " "]) == []
        for tag in ODD_TAGS:
            assert [each.step for each in claim_offers(backend, ann, tags=[tag])] == [tag.encode()]

    def test_offers_for_others_do_not_use_up_the_limit(self, backend: Backend) -> None:
        """Those that ask for more than this session can are filtered before it."""
        ann = session_of(backend)
        header = start(backend, ann)
        many = [offer(b"%d" % number, 1, ["gpu", f"{number}"]) for number in range(20)]
        backend.offer(ann, {header.instance: [*many, offer(b"mine", 2, ["eu"])]})
        assert [each.step for each in claim_offers(backend, ann, limit=1, tags=["eu", "gpu"])] == [b"mine"]

    def test_offers_move_with_their_instance(self, backend: Backend) -> None:
        """Whoever knows what it goes on with now may claim them, claimed ones after they were handed back."""
        ann, new = session_of(backend), backend.register("work", "newer-fingerprint", b"newer plan")
        header = offered(backend, ann, b"x", b"y")
        (x,) = claim_offers(backend, ann, limit=1)
        backend.commit(ann, [change(header, rest=replace(RUNNING, definition=new, release=False))])
        backend.hand_back(ann, [x.id])
        assert claim_offers(backend, ann) == []
        found = backend.claim_offers(ann, Want([new], T0, 9))
        assert [(each.step, each.header.definition) for each in found] == [(b"x", new), (b"y", new)]

    def test_a_wide_fork_is_shared_out(self, backend: Backend) -> None:
        """A thousand offers of one instance, each claimed once, in order."""
        ann = session_of(backend)
        steps = [b"%04d" % number for number in range(WIDE)]
        header = offered(backend, ann, *steps)
        assert header_of(backend).offered == WIDE
        found = [each.step for _ in range(5) for each in claim_offers(backend, ann, limit=WIDE // 4)]
        assert found == steps
        assert sorted(backend.offered(header.instance)) == steps

    def test_the_hint_changes_with_an_offer(self, backend: Backend) -> None:
        """Whoever may run it, waits for it or is to stop it has a reason to look."""
        ann, seen = session_of(backend), [backend.hint()]
        header = offered(backend, ann, b"x", b"y")
        seen.append(backend.hint())
        x, y = claim_offers(backend, ann, limit=2)
        backend.call_off(ann, header.instance, [b"x"], stop=True)
        seen.append(backend.hint())
        backend.settle(ann, [(x.id, outcome())])
        seen.append(backend.hint())
        backend.hand_back(ann, [y.id])
        seen.append(backend.hint())
        assert len(set(seen)) == len(seen)

    def test_the_hint_rests_while_no_offer_changes(self, backend: Backend) -> None:
        """Looking for offers wakes nobody, and neither does asking about them."""
        ann = session_of(backend)
        header = offered(backend, ann, b"x")
        (x,) = claim_offers(backend, ann)
        before = backend.hint()
        claim_offers(backend, ann)
        backend.called_off(ann, [x.id])
        backend.offered(header.instance)
        assert backend.hint() == before

    def test_threads_share_what_is_offered(self, backend: Backend) -> None:
        """Each offer goes to one of the sessions that claim at once."""
        steps = [b"%d" % number for number in range(THREADS * 12)]
        ann, barrier = session_of(backend), Barrier(THREADS)
        offered(backend, ann, *steps)
        sessions = [session_of(backend, str(number)) for number in range(THREADS)]

        def claim(number: int) -> list[bytes]:
            barrier.wait()
            mine: list[bytes] = []
            while found := claim_offers(backend, sessions[number], limit=3):
                mine += [each.step for each in found]
            return mine

        with ThreadPoolExecutor(THREADS) as pool:
            taken = [step for mine in pool.map(claim, range(THREADS)) for step in mine]
        assert sorted(taken) == sorted(steps)


class Settling(Examiner):
    def test_settle_is_fenced(self, backend: Backend) -> None:
        """A lost session cannot bring anything, even for an offer it had claimed."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header = offered(backend, ann)
        (found,) = claim_offers(backend, bob)
        is_fenced(backend, lambda session: backend.settle(session, [(found.id, outcome())]))
        assert backend.mail(ann) == {}
        assert list(backend.offered(header.instance)) == [b"step"]

    def test_an_outcome_comes_as_a_message(self, backend: Backend) -> None:
        """As it was given, in the transaction that ends the offer; the journal is the holder's."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header = offered(backend, ann)
        (found,) = claim_offers(backend, bob)
        assert list(backend.settle(bob, [(found.id, outcome(EVERY_BYTE))])) == [True]
        (message,) = backend.mail(ann)[header.instance]
        assert replace(message, id=0) == outcome(EVERY_BYTE)
        assert (list(backend.offered(header.instance)), seqs(backend, header)) == ([], [1])

    def test_outcomes_come_in_order(self, backend: Backend) -> None:
        """Of one call or several, among other messages; each with an id of its own."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header = offered(backend, ann, b"x", b"y", b"z")
        x, y, z = claim_offers(backend, bob)
        backend.settle(bob, [(y.id, outcome(b"y")), (x.id, outcome(b"x"))])
        backend.post(header.instance, signal())
        backend.settle(bob, [(z.id, outcome(b"z"))])
        mail = backend.mail(ann)[header.instance]
        assert [message.payload for message in mail] == [b"y", b"x", b"payload", b"z"]
        assert [message.id for message in mail] == sorted({message.id for message in mail})

    def test_only_its_claimer_settles_an_offer(self, backend: Backend) -> None:
        """One that is free, another's, settled before or unknown is answered so, and nothing of it is written."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        offered(backend, ann, b"free", b"theirs", b"mine")
        backend.call_off(ann, header_of(backend).instance, [b"free"], stop=False)
        theirs, mine = claim_offers(backend, bob, limit=1), claim_offers(backend, ann, limit=1)
        offers(backend, ann, header_of(backend), b"free")
        backend.settle(ann, [(mine[0].id, outcome())])
        before = dump(backend)
        wrong = [theirs[0].id, mine[0].id, mine[0].id + 1, 10_000]
        assert list(backend.settle(ann, [(number, outcome()) for number in wrong])) == [False] * 4
        assert dump(backend) == before

    def test_each_of_a_batch_is_answered(self, backend: Backend) -> None:
        """In order; an offer that is named twice ends once."""
        ann = session_of(backend)
        header = offered(backend, ann, b"x", b"y")
        x, y = claim_offers(backend, ann)
        results = [(10_000, outcome(b"-")), (x.id, outcome(b"1")), (x.id, outcome(b"2")), (y.id, outcome(b"3"))]
        assert list(backend.settle(ann, results)) == [False, True, False, True]
        assert [message.payload for message in backend.mail(ann)[header.instance]] == [b"1", b"3"]
        assert list(backend.settle(ann, [])) == []

    def test_an_outcome_makes_a_free_instance_due(self, backend: Backend) -> None:
        """Even one that was waiting for nothing but messages; whoever claims it finds them."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header = offered(backend, ann)
        (found,) = claim_offers(backend, bob)
        backend.commit(ann, [change(header, rest=WAITING)])
        assert header_of(backend).due_us is None
        backend.settle(bob, [(found.id, outcome())])
        assert header_of(backend).due_us == 0
        (claimed,) = backend.claim_due(bob, Want([definition_of(backend)], T0, 9))
        assert [message.kind for message in claimed.mail] == ["outcome"]

    def test_an_outcome_leaves_a_held_instance_with_its_holder(self, backend: Backend) -> None:
        """It is told as by any message, also when it gives the instance back."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header = offered(backend, ann)
        (found,) = claim_offers(backend, bob)
        backend.settle(bob, [(found.id, outcome())])
        seen = header_of(backend)
        assert (seen.session, seen.due_us, seen.mail) == (ann.id, header.due_us, 1)
        assert backend.commit(ann, [change(header, rest=WAITING)]) == ["mail"]

    def test_an_outcome_s_message_id_is_accepted_once(self, backend: Backend) -> None:
        """The offer ends either way."""
        ann = session_of(backend)
        header = offered(backend, ann, b"x", b"y")
        x, y = claim_offers(backend, ann)
        backend.post(header.instance, signal(message_id="m"))
        results = [(x.id, replace(outcome(), message_id="m")), (y.id, replace(outcome(), message_id="n"))]
        assert list(backend.settle(ann, results)) == [True, True]
        assert [message.message_id for message in backend.mail(ann)[header.instance]] == ["m", "n"]
        assert (list(backend.offered(header.instance)), list(backend.received(header.instance))) == ([], ["m", "n"])

    def test_the_number_of_an_offer_is_not_given_out_twice(self, backend: Backend) -> None:
        """Who remembers one never ends a later offer by it."""
        ann = session_of(backend)
        header = offered(backend, ann)
        (first,) = claim_offers(backend, ann)
        backend.settle(ann, [(first.id, outcome())])
        offers(backend, ann, header, b"step")
        (second,) = claim_offers(backend, ann)
        assert second.id != first.id
        assert list(backend.settle(ann, [(first.id, outcome())])) == [False]

    def test_hand_back_is_fenced(self, backend: Backend) -> None:
        """A lost session cannot give up anything."""
        is_fenced(backend, lambda session: backend.hand_back(session, [1]))

    def test_what_is_handed_back_is_free(self, backend: Backend) -> None:
        """As if it had never been claimed, however often; no session was lost with it."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header = start(backend, ann)
        backend.offer(ann, {header.instance: [offer(lives=1)]})
        for session in (bob, ann, bob, ann):
            (found,) = claim_offers(backend, session)
            assert found.work == b"work of step"
            backend.hand_back(session, [found.id])
        assert backend.mail(ann) == {}

    def test_only_its_claimer_hands_an_offer_back(self, backend: Backend) -> None:
        """Others' are passed over, and so are free ones and unknown ones."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        offered(backend, ann, b"x", b"y")
        x, y = *claim_offers(backend, bob, limit=1), *claim_offers(backend, ann, limit=1)
        backend.hand_back(ann, [x.id, 10_000, y.id, y.id])
        assert [each.step for each in claim_offers(backend, ann)] == [b"y"]
        assert list(backend.called_off(bob, [x.id])) == []

    def test_of_many_threads_one_settles(self, backend: Backend) -> None:
        """One session that brings an outcome from several threads at once brings one."""
        ann, barrier = session_of(backend), Barrier(THREADS)
        header = offered(backend, ann)
        (found,) = claim_offers(backend, ann)

        def race(number: int) -> bool:
            barrier.wait()
            return backend.settle(ann, [(found.id, outcome(b"%d" % number))])[0]

        with ThreadPoolExecutor(THREADS) as pool:
            answers = list(pool.map(race, range(THREADS)))
        assert answers.count(True) == 1
        (message,) = backend.mail(ann)[header.instance]
        assert message.payload == b"%d" % answers.index(True)

    def test_an_outcome_and_a_release_race(self, backend: Backend) -> None:
        """However they meet, the outcome is found by whoever looks for what is due."""
        ann, bob, barrier = session_of(backend), session_of(backend, "bob"), Barrier(2)

        def settle(number: int) -> bool:
            barrier.wait()
            return backend.settle(bob, [(number, outcome())])[0]

        with ThreadPoolExecutor(1) as pool:
            for turn in range(20):
                header = create(backend, ann, creation(backend, str(turn)))
                offers(backend, ann, header, b"step")
                (found,) = claim_offers(backend, bob)
                answer = pool.submit(settle, found.id)
                barrier.wait()
                backend.commit(ann, [change(header, rest=WAITING)])
                assert answer.result()
                assert ids(backend.claim_due(bob, Want([definition_of(backend)], T0, 9))) == [str(turn)]
