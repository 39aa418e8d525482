"""The watcher sees an offer that is granted twice, and one that is settled by somebody else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from stepwell.backend.base import Message, Offered, Session, Want
from stepwell.backend.memory import InMemoryBackend
from stepwell.errors import LeaseLost
from stepwell.testing.conformance import LeaseClock
from stepwell.testing.sample import LEASE_US, claim_offers, offers, outcome, session_of, start
from stepwell.testing.watched import WatchedBackend


class GrantsTwice(InMemoryBackend):
    """Lets every session have what another one has claimed."""

    def claim_offers(self, session: Session, want: Want) -> Sequence[Offered]:
        for held in self._sessions.values():
            for number in tuple(held.offers):
                self._offers.give_up(held, number, lost=False)
        return super().claim_offers(session, want)


class SettlesForAnyone(InMemoryBackend):
    """Takes the outcome of an offer from whoever brings it."""

    def _settle(self, held: Any, number: int, message: Message) -> bool:
        claimers = [other for other in self._sessions.values() if number in other.offers]
        return super()._settle(claimers[0] if claimers else held, number, message)


def story(kind: type[InMemoryBackend]) -> WatchedBackend:
    """Claim, hand back, lose and settle offers of one instance, and then do what the others must not."""
    clock = LeaseClock()
    store = WatchedBackend(kind(lease_clock=clock), lease_clock=clock)
    ann, bob, cyd = (session_of(store, name) for name in ("ann", "bob", "cyd"))
    header = start(store, ann)
    offers(store, ann, header, b"x", b"y", b"z")
    store.hand_back(bob, [each.id for each in claim_offers(store, bob, limit=2)])
    (x,) = claim_offers(store, bob, limit=1)
    claim_offers(store, cyd, limit=1)
    clock.now_us += LEASE_US + 1
    for session in (ann, bob):
        store.renew(session)
    (y,) = claim_offers(store, ann, limit=1)
    with pytest.raises(LeaseLost):
        store.settle(cyd, [(y.id, outcome())])
    store.settle(bob, [(y.id, outcome())])
    store.settle(bob, [(x.id, outcome())])
    store.end_session(ann)
    claim_offers(store, bob)
    return store


def test_the_reference_store_keeps_its_promises_about_offers() -> None:
    """Nothing is found, and there was something to look at."""
    report = story(InMemoryBackend).report
    assert str(report).endswith(": 0 violations")
    assert min(report.examined[rule] for rule in ("S3", "S4", "S12")) > 0


@pytest.mark.parametrize(("kind", "rule"), [(GrantsTwice, "S3"), (SettlesForAnyone, "S4")])
def test_a_store_that_breaks_them_is_found_out(kind: type[InMemoryBackend], rule: str) -> None:
    """By the rule it breaks."""
    assert rule in story(kind).report.rules
