"""Many workers on one store, told from seeds: whatever goes wrong, every promise holds.

``STEPWELL_SIMULATIONS=5000`` tells more schedules than the usual ones, ``STEPWELL_SIMULATION_FROM=100000`` others. A
seed that fails is shown with the last things that happened in it and with the command that tells it again.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from .schedule import Told, shown, shrink, tell
from .world import MAX_CRASHES

SCHEDULES = int(os.environ.get("STEPWELL_SIMULATIONS", "60"))
FIRST = int(os.environ.get("STEPWELL_SIMULATION_FROM", "0"))
PARTS = 3
RARE = (
    "lost reply", "refused", "kill", "kill before", "kill after", "stall before", "drain", "leave", "outage",
    "held: interrupted", "held: quarantined", "others first", "others after", "late renewal",
    "no word", "held: changed",
)  # fmt: skip


@pytest.fixture(scope="module")
def account() -> Counter[str]:
    """What all schedules together have seen."""
    return Counter()


def _explain(told: Told) -> str:
    kept, short = shrink(told.seed, told)
    return shown(short, kept)


@pytest.mark.parametrize("part", range(PARTS))
def test_every_promise_holds_in_every_schedule(part: int, account: Counter[str]) -> None:
    """Kills, zombies, lost replies, outages and clients at any moment change no output, journal or ledger."""
    for seed in range(FIRST + part, FIRST + SCHEDULES, PARTS):
        told = tell(seed)
        assert not told.violations, _explain(told)
        account.update(told.seen, schedules=1, steps=told.steps, instances=told.instances, faults=len(told.faults))


def test_the_schedules_have_seen_what_is_rare(account: Counter[str]) -> None:
    """A simulation in which nothing went wrong proves nothing."""
    if account["schedules"] < 60:
        pytest.skip("too few schedules were told in this process")
    assert not [kind for kind in RARE if not account[kind]], dict(account)


def test_a_schedule_is_told_the_same_way_each_time() -> None:
    """A seed is worth something only if it leads to the same schedule again."""
    first, second = tell(71, trace=True), tell(71, trace=True)
    assert first.log == second.log
    assert first.log


def test_poison_alone_is_quarantined_after_its_crashes() -> None:
    """With nothing else going wrong only the culprit is held, after the deaths that count and few others."""
    for seed in range(6):
        told = tell(seed, workflows=["poison", "wide", "chain"], kinds=[])
        assert not told.violations, _explain(told)
        deaths = {kind: times for kind, times in told.seen.items() if kind.startswith("deaths of ")}
        assert deaths, told.seen
        assert all(MAX_CRASHES <= times <= 2 * (MAX_CRASHES + 2) for times in deaths.values()), deaths


def test_nothing_goes_wrong_where_no_fault_is() -> None:
    """Without a fault no body runs twice, and nobody has to be asked."""
    told = tell(3, workflows=["chain", "wide", "nested", "routed", "signalled", "careful", "tagged"], kinds=[])
    assert not told.violations, _explain(told)
    assert not [kind for kind in told.seen if kind.startswith("held")], told.seen
    assert told.seen["bodies run again"] == 0
