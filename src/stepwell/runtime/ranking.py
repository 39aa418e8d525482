"""In which order queued work is taken up: by priority, and by how long it has waited.

A rank is a moment, the lowest goes first. A higher priority makes it earlier by so much per step, so that nothing waits
for ever behind what is more urgent, and an index walk in order of rank is all a store has to do.

The rank of an instance also stands for when it is due, which another machine judges by its own clock. So it lies well
in the past: clocks that differ by less than that delay nothing. What was due at a time goes behind what is queued, and
is overtaken for no longer than that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stepwell.engine.frontier import Frontier
    from stepwell.flow.plan import Plan

AGING_US: Final = 10_000_000  # so much waiting outweighs one step of priority
SKEW_US: Final = 3_600_000_000  # clocks of different machines differ by less
LOWEST: Final = 5


def rank_us(now_us: int, priority: int) -> int:
    """Return the rank of what is queued now."""
    return now_us - SKEW_US - (LOWEST - priority) * AGING_US


def queued_us(plan: Plan, state: Frontier, now_us: int) -> int:
    """Return the rank of an instance by the most urgent of its open steps."""
    return rank_us(now_us, min((plan.nodes[node].priority for node, _ in state.steps), default=LOWEST))
