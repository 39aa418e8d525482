"""How offers end without an outcome: called off, gone with their run, or lost with those who ran them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from msgspec.structs import replace

from stepwell.backend.base import LOST, Backend, Header, Session, Want
from stepwell.errors import LeaseLost
from stepwell.testing.sample import (
    COMPLETED,
    FAILED,
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
    offer,
    offers,
    outcome,
    session_of,
    start,
)

from .examiner import Examiner, dead_holder
from .offering import offered
from .sessions import is_fenced

TURNS = 20


def lost_steps(backend: Backend, session: Session, header: Header) -> list[bytes | None]:
    """Return the payloads of the instance's messages, which must all say that a step was lost."""
    mail = backend.mail(session).get(header.instance, ())
    assert {(message.kind, message.name, message.message_id) for message in mail} <= {(LOST, "", "")}
    return [message.payload for message in mail]


class CallingOff(Examiner):
    def test_call_off_is_fenced(self, backend: Backend) -> None:
        """A lost session cannot take back anything."""
        is_fenced(backend, lambda session: backend.call_off(session, 1, [b"step"], stop=True))

    def test_called_off_is_fenced(self, backend: Backend) -> None:
        """A lost session hears of it when it asks."""
        is_fenced(backend, lambda session: backend.called_off(session, [1]))

    def test_what_nobody_has_claimed_is_taken_back(self, backend: Backend) -> None:
        """With or without ``stop``; it alone is returned, and not what was never offered or is gone already."""
        ann = session_of(backend)
        header = offered(backend, ann, b"x", b"y", b"z")
        assert sorted(backend.call_off(ann, header.instance, [b"y", b"never", b"x"], stop=False)) == [b"x", b"y"]
        assert list(backend.call_off(ann, header.instance, [b"y", b"z"], stop=True)) == [b"z"]
        assert (list(backend.offered(header.instance)), claim_offers(backend, ann)) == ([], [])
        assert backend.mail(ann) == {}

    def test_what_was_taken_back_can_be_offered_anew(self, backend: Backend) -> None:
        """As if for the first time."""
        ann = session_of(backend)
        header = offered(backend, ann)
        backend.call_off(ann, header.instance, [b"step"], stop=False)
        offers(backend, ann, header, b"step")
        assert len(claim_offers(backend, ann)) == 1

    def test_what_is_claimed_stays(self, backend: Backend) -> None:
        """It is not returned; without ``stop`` whoever runs it is not told either."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header = offered(backend, ann, b"x", b"y")
        (x,) = claim_offers(backend, bob, limit=1)
        assert list(backend.call_off(ann, header.instance, [b"x", b"y"], stop=False)) == [b"y"]
        assert (list(backend.offered(header.instance)), list(backend.called_off(bob, [x.id]))) == ([b"x"], [])
        backend.hand_back(bob, [x.id])
        assert [each.step for each in claim_offers(backend, ann)] == [b"x"]

    def test_whoever_runs_it_is_told_to_stop(self, backend: Backend) -> None:
        """With ``stop``; the offer stays claimed, and a later call without it takes nothing of that back."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header = offered(backend, ann, b"x", b"y")
        x, y = claim_offers(backend, bob)
        for stop in (True, False, True):
            assert list(backend.call_off(ann, header.instance, [b"x"], stop=stop)) == []
            assert list(backend.called_off(bob, [y.id, x.id])) == [x.id]
        assert sorted(backend.offered(header.instance)) == [b"x", b"y"]
        assert claim_offers(backend, ann) == []

    def test_what_is_gone_counts_as_called_off(self, backend: Backend) -> None:
        """Ended with its run, settled, handed back, another's or unknown; in the order asked."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header, other = offered(backend, ann, b"x", b"y", b"z"), start(backend, ann, "other")
        x, y = claim_offers(backend, bob, limit=2)
        (z,) = claim_offers(backend, ann)
        offers(backend, ann, other, b"gone")
        (gone,) = claim_offers(backend, bob)
        backend.commit(ann, [change(other, rest=COMPLETED)])
        backend.settle(bob, [(y.id, outcome())])
        asked = [10_000, z.id, gone.id, x.id, y.id]
        assert list(backend.called_off(bob, asked)) == [10_000, z.id, gone.id, y.id]
        backend.hand_back(bob, [x.id])
        assert list(backend.called_off(bob, [x.id])) == [x.id]
        assert list(backend.offered(header.instance)) != []

    def test_only_the_holder_calls_off(self, backend: Backend) -> None:
        """Of an instance that is another's, free or unknown nothing is taken back, and nothing returned."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header = offered(backend, ann, b"x", b"y")
        (x,) = claim_offers(backend, bob, limit=1)
        for number in (header.instance, 10_000):
            assert list(backend.call_off(bob, number, [b"x", b"y", b"never"], stop=True)) == []
        backend.release(ann, [header.instance])
        assert list(backend.call_off(ann, header.instance, [b"x", b"y"], stop=True)) == []
        assert (header_of(backend).offered, list(backend.called_off(bob, [x.id]))) == (2, [])

    def test_an_outcome_after_the_call_is_welcome(self, backend: Backend) -> None:
        """Work that was done all the same is not thrown away."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header = offered(backend, ann)
        (found,) = claim_offers(backend, bob)
        backend.call_off(ann, header.instance, [b"step"], stop=True)
        assert list(backend.settle(bob, [(found.id, outcome())])) == [True]
        (message,) = backend.mail(ann)[header.instance]
        assert (message.kind, list(backend.offered(header.instance))) == ("outcome", [])

    def test_what_is_handed_back_after_the_call_is_gone(self, backend: Backend) -> None:
        """The holder is told, so that it need not wait any longer."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header = offered(backend, ann)
        (found,) = claim_offers(backend, bob)
        backend.call_off(ann, header.instance, [b"step"], stop=True)
        backend.hand_back(bob, [found.id])
        assert (lost_steps(backend, ann, header), list(backend.offered(header.instance))) == ([b"step"], [])
        assert claim_offers(backend, ann) == []

    def test_a_claimer_that_ends_after_the_call_tells(self, backend: Backend) -> None:
        """Its end is the end of the offer."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header = offered(backend, ann, b"x", b"y")
        claim_offers(backend, bob)
        backend.call_off(ann, header.instance, [b"y"], stop=True)
        backend.end_session(bob)
        assert (lost_steps(backend, ann, header), list(backend.offered(header.instance))) == ([b"y"], [b"x"])

    def test_a_claimer_that_is_lost_after_the_call_tells(self, backend: Backend) -> None:
        """However many lives the offer had."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header = start(backend, ann)
        backend.offer(ann, {header.instance: [offer(lives=9)]})
        claim_offers(backend, bob)
        backend.call_off(ann, header.instance, [b"step"], stop=True)
        self.pass_leases(backend)
        backend.renew(ann)
        assert claim_offers(backend, ann) == []
        assert (lost_steps(backend, ann, header), list(backend.offered(header.instance))) == ([b"step"], [])

    def test_word_of_the_end_makes_a_free_instance_due(self, backend: Backend) -> None:
        """By whatever way the called-off offer ends."""
        for ending in ("hand_back", "end_session"):
            ann, bob = session_of(backend), session_of(backend, "bob")
            header = start(backend, ann, ending)
            offers(backend, ann, header, b"step")
            (found,) = claim_offers(backend, bob)
            backend.call_off(ann, header.instance, [b"step"], stop=True)
            backend.commit(ann, [change(header, rest=WAITING)])
            backend.hand_back(bob, [found.id]) if ending == "hand_back" else backend.end_session(bob)
            seen = header_of(backend, ending)
            assert (seen.due_us, seen.mail, seen.offered) == (0, 1, 0)

    def test_a_claim_and_a_call_race(self, backend: Backend) -> None:
        """Either it is taken back and nobody has it, or it is claimed and not taken back."""
        ann, bob, barrier = session_of(backend), session_of(backend, "bob"), Barrier(2)
        header = start(backend, ann)

        def claim() -> list[bytes]:
            barrier.wait()
            return [each.step for each in claim_offers(backend, bob)]

        with ThreadPoolExecutor(1) as pool:
            for turn in range(TURNS):
                step = b"%d" % turn
                offers(backend, ann, header, step)
                claimed = pool.submit(claim)
                barrier.wait()
                taken_back = list(backend.call_off(ann, header.instance, [step], stop=True))
                assert sorted([*claimed.result(), *taken_back]) == [step]


class Vanishing(Examiner):
    def gone(self, backend: Backend, bob: Session, numbers: list[int], instance: int) -> None:
        """Check that nothing is left of offers, and that nothing can be brought for them."""
        assert list(backend.offered(instance)) == []
        assert claim_offers(backend, bob) == []
        before = dump(backend)
        assert not any(backend.settle(bob, [(number, outcome()) for number in numbers]))
        backend.hand_back(bob, numbers)
        assert list(backend.called_off(bob, numbers)) == numbers
        assert dump(backend) == before

    def test_the_end_takes_all_offers(self, backend: Backend) -> None:
        """Free, claimed and called off; in one change or among others, whatever end it is."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header, other = offered(backend, ann, b"x", b"y", b"z"), start(backend, ann, "other")
        numbers = [each.id for each in claim_offers(backend, bob, limit=2)]
        backend.call_off(ann, header.instance, [b"x"], stop=True)
        backend.commit(ann, [change(other), change(header, rest=FAILED)])
        self.gone(backend, bob, numbers, header.instance)
        assert header_of(backend).offered == 0

    def test_the_end_of_one_leaves_the_offers_of_others(self, backend: Backend) -> None:
        """They belong to their own instance."""
        ann = session_of(backend)
        header, other = offered(backend, ann, b"x"), start(backend, ann, "other")
        offers(backend, ann, other, b"x")
        backend.commit(ann, [change(header, rest=COMPLETED)])
        assert list(backend.offered(other.instance)) == [b"x"]

    def test_a_client_s_end_takes_all_offers(self, backend: Backend) -> None:
        """As when nobody holds the instance and it is cancelled."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header = offered(backend, ann, b"x", b"y")
        numbers = [each.id for each in claim_offers(backend, bob, limit=1)]
        backend.release(ann, [header.instance])
        backend.commit(None, [change(header, rest=replace(FAILED, state="cancelled"))])
        self.gone(backend, bob, numbers, header.instance)

    def test_a_late_end_takes_all_offers(self, backend: Backend) -> None:
        """A rest without entries, or one after entries that came with an earlier change."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header = offered(backend, ann, b"x", b"y")
        numbers = [each.id for each in claim_offers(backend, bob, limit=1)]
        backend.commit(ann, [change(header), change(header, base=2, count=0, rest=COMPLETED)])
        self.gone(backend, bob, numbers, header.instance)

    def test_a_replacement_takes_the_offers_of_the_old_run(self, backend: Backend) -> None:
        """Whether its change brings it to rest or not; the new run begins without any."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        for turn, rest in enumerate((COMPLETED, None)):
            old = start(backend, ann, str(turn))
            offers(backend, ann, old, b"x", b"y")
            numbers = [each.id for each in claim_offers(backend, bob, limit=1)]
            new = create(backend, ann, replace(creation(backend, str(turn)), replacing=change(old, rest=rest)))
            self.gone(backend, bob, numbers, old.instance)
            assert (list(backend.offered(new.instance)), new.offered) == ([], 0)

    def test_what_is_reopened_has_no_offers(self, backend: Backend) -> None:
        """They went with the end; new ones can be made."""
        ann = session_of(backend)
        header = offered(backend, ann, b"x")
        backend.commit(ann, [change(header, rest=FAILED)])
        backend.commit(ann, [change(header, base=2, rest=replace(RUNNING, release=False))])
        assert list(backend.offered(header.instance)) == []
        offers(backend, ann, header, b"x")
        assert len(claim_offers(backend, ann)) == 1

    def test_what_is_deleted_has_no_offers(self, backend: Backend) -> None:
        """Nor has an instance that takes its id."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header = offered(backend, ann, b"x")
        numbers = [each.id for each in claim_offers(backend, bob)]
        backend.commit(ann, [change(header, rest=COMPLETED)])
        backend.delete("a")
        again = start(backend, ann)
        self.gone(backend, bob, numbers, header.instance)
        assert (list(backend.offered(again.instance)), list(backend.stuck(T0))) == ([], [])

    def test_rests_and_releases_keep_offers(self, backend: Backend) -> None:
        """Claimed ones stay claimed, and free ones can be claimed while nobody holds the instance."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header = offered(backend, ann, b"x", b"y")
        (x,) = claim_offers(backend, bob, limit=1)
        backend.commit(ann, [change(header, rest=WAITING)])
        backend.claim(ann, "a")
        backend.release(ann, [header.instance])
        backend.commit(None, [change(header, base=2, rest=WAITING)])
        assert list(backend.called_off(bob, [x.id])) == []
        assert [each.step for each in claim_offers(backend, bob)] == [b"y"]
        assert list(backend.settle(bob, [(x.id, outcome())])) == [True]

    def test_the_end_of_the_holder_s_session_keeps_offers(self, backend: Backend) -> None:
        """Whoever holds the instance next finds them as they were."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header = offered(backend, ann, b"x", b"y")
        (x,) = claim_offers(backend, bob, limit=1)
        backend.end_session(ann)
        backend.claim(bob, "a")
        assert sorted(backend.offered(header.instance)) == [b"x", b"y"]
        assert list(backend.called_off(bob, [x.id])) == []

    def test_a_takeover_of_the_holder_keeps_offers(self, backend: Backend) -> None:
        """What others run for it goes on, and its outcome reaches the next holder."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header = start(backend, ann)
        backend.offer(ann, {header.instance: [offer(b"x", lives=1), offer(b"y", T0 + 1, lives=1)]})
        (x,) = claim_offers(backend, bob, limit=1)
        self.pass_leases(backend)
        backend.renew(bob)
        backend.claim(bob, "a")
        with pytest.raises(LeaseLost):
            backend.renew(ann)
        assert sorted(backend.offered(header.instance)) == [b"x", b"y"]
        assert list(backend.settle(bob, [(x.id, outcome())])) == [True]
        assert len(backend.mail(bob)[header.instance]) == 1

    def test_an_end_and_an_outcome_race(self, backend: Backend) -> None:
        """However they meet, the instance has ended, and nothing but an outcome that came before is left of it."""
        ann, bob, barrier = session_of(backend), session_of(backend, "bob"), Barrier(2)

        def settle(number: int) -> bool:
            barrier.wait()
            return backend.settle(bob, [(number, outcome())])[0]

        with ThreadPoolExecutor(1) as pool:
            for turn in range(TURNS):
                header = start(backend, ann, str(turn))
                offers(backend, ann, header, b"step")
                (found,) = claim_offers(backend, bob)
                settled = pool.submit(settle, found.id)
                barrier.wait()
                backend.commit(ann, [change(header, rest=COMPLETED)])
                seen = header_of(backend, str(turn))
                assert (seen.state, seen.mail, seen.offered) == ("completed", int(settled.result()), 0)


class Losing(Examiner):
    def lose(self, backend: Backend, *living: Session) -> None:
        """Let every other session be taken over."""
        self.pass_leases(backend)
        for session in living:
            backend.renew(session)

    def test_what_was_lost_once_is_free_again(self, backend: Backend) -> None:
        """For others, as it was; nobody is told."""
        ann, bob, cyd = session_of(backend), session_of(backend, "bob"), session_of(backend, "cyd")
        header = offered(backend, ann)
        (first,) = claim_offers(backend, bob)
        self.lose(backend, ann, cyd)
        (again,) = claim_offers(backend, cyd)
        assert (again.id, again.work, backend.mail(ann)) == (first.id, b"work of step", {})
        with pytest.raises(LeaseLost):
            backend.settle(bob, [(first.id, outcome())])
        assert list(backend.offered(header.instance)) == [b"step"]

    def test_with_its_last_life_an_offer_is_lost(self, backend: Backend) -> None:
        """After so many sessions its holder is told, and it is not offered again."""
        for lives in (1, 2, 3):
            ann = session_of(backend)
            header = start(backend, ann, str(lives))
            backend.offer(ann, {header.instance: [offer(lives=lives)]})
            for life in range(lives):
                assert (lost_steps(backend, ann, header), life < lives) == ([], True)
                assert len(claim_offers(backend, session_of(backend, "victim"))) == 1
                self.lose(backend, ann)
            assert claim_offers(backend, ann) == []
            assert (lost_steps(backend, ann, header), list(backend.offered(header.instance))) == ([b"step"], [])

    def test_handing_back_costs_no_life_and_gives_none(self, backend: Backend) -> None:
        """Lives count the sessions that were lost, whatever happened in between."""
        ann = session_of(backend)
        header = offered(backend, ann)
        for give_back in ("lose", "hand_back", "end_session", "lose"):
            bob = session_of(backend, "bob")
            (found,) = claim_offers(backend, bob)
            if give_back == "hand_back":
                backend.hand_back(bob, [found.id])
            elif give_back == "end_session":
                backend.end_session(bob)
            else:
                self.lose(backend, ann)
        assert claim_offers(backend, ann) == []
        assert lost_steps(backend, ann, header) == [b"step"]

    def test_a_session_that_ends_itself_costs_no_life(self, backend: Backend) -> None:
        """Its offers are free again at once."""
        ann = session_of(backend)
        header = start(backend, ann)
        backend.offer(ann, {header.instance: [offer(lives=1)]})
        for _ in range(3):
            bob = session_of(backend, "bob")
            assert len(claim_offers(backend, bob)) == 1
            backend.end_session(bob)
        assert len(claim_offers(backend, ann)) == 1
        assert backend.mail(ann) == {}

    def test_an_offer_made_anew_has_all_its_lives(self, backend: Backend) -> None:
        """What was lost with an earlier one does not count."""
        ann = session_of(backend)
        header = offered(backend, ann)
        claim_offers(backend, session_of(backend, "bob"))
        self.lose(backend, ann)
        (found,) = claim_offers(backend, ann)
        backend.settle(ann, [(found.id, outcome())])
        offers(backend, ann, header, b"step")
        claim_offers(backend, session_of(backend, "cyd"))
        self.lose(backend, ann)
        assert len(claim_offers(backend, ann)) == 1

    def test_a_loss_makes_a_free_instance_due(self, backend: Backend) -> None:
        """Somebody has to decide what becomes of the step."""
        ann = session_of(backend)
        header = start(backend, ann)
        backend.offer(ann, {header.instance: [offer(lives=1)]})
        claim_offers(backend, session_of(backend, "bob"))
        backend.commit(ann, [change(header, rest=WAITING)])
        self.lose(backend, ann)
        (found,) = backend.claim_due(ann, Want([definition_of(backend)], T0, 9))
        assert [(message.kind, message.payload) for message in found.mail] == [(LOST, b"step")]

    def test_whoever_ends_the_session_frees_its_offers(self, backend: Backend) -> None:
        """A claim, a claim of what is due, a claim of offers, a client's write or a post."""
        for way in ("claim", "claim_due", "claim_offers", "commit", "post"):
            ann, victim = session_of(backend), session_of(backend, "victim")
            header, theirs = start(backend, ann, f"{way}-mine"), start(backend, victim, f"{way}-theirs")
            offers(backend, ann, header, b"step")
            assert len(claim_offers(backend, victim)) == 1
            self.lose(backend, ann)
            if way == "claim":
                backend.claim(ann, f"{way}-theirs")
            elif way == "claim_due":
                backend.claim_due(ann, Want([], T0, 0))
            elif way == "commit":
                backend.commit(None, [change(theirs)])
            elif way == "post":
                backend.post(theirs.instance, outcome())
            assert [each.step for each in claim_offers(backend, ann)] == [b"step"], way

    def test_a_dead_claimer_is_found_at_once(self, backend: Backend) -> None:
        """No lease has to pass when its process is provably gone."""
        ann, dead = session_of(backend), session_of(backend, holder=dead_holder())
        offered(backend, ann)
        claim_offers(backend, dead)
        assert len(claim_offers(backend, ann)) == 1

    def test_a_session_may_lose_instance_and_offer_together(self, backend: Backend) -> None:
        """One that ran a step of its own instance: the instance is due, and the offer free or told of."""
        ann, bob = session_of(backend), session_of(backend, "bob")
        header = start(backend, ann)
        backend.offer(ann, {header.instance: [offer(b"x", lives=1), offer(b"y", lives=2)]})
        claim_offers(backend, ann)
        backend.commit(ann, [change(header, count=0, rest=replace(WAITING, release=False))])
        self.lose(backend, bob)
        (found,) = backend.claim_due(bob, Want([definition_of(backend)], 0, 9))
        assert [message.payload for message in found.mail] == [b"x"]
        assert list(backend.offered(header.instance)) == [b"y"]
