"""Whatever may be said to the engine, in any order and across changes of the graph, tells a story that breaks no rule.

The walks are those of the engine's own tests. Their hands report whenever they like, in a pause or before a backoff is
over, which runners do not; what is said about that is left out here and planted elsewhere.
"""

from __future__ import annotations

from collections import Counter

import pytest

from stepwell.backend.base import Entry
from stepwell.engine import facts as f
from stepwell.engine.frontier import Step
from stepwell.flow.plan import Key, Plan
from stepwell.testing.story import Story

from ..engine.edits import edit  # noqa: TID252 - the tests are not installed
from ..engine.graphs import Seeded, grow  # noqa: TID252 - the tests are not installed
from ..engine.hands import Run, finish, walk  # noqa: TID252 - the tests are not installed
from ..engine.test_laws import ends_well_after_a_retry  # noqa: TID252 - the tests are not installed


class LooseHands(Story):
    """A story whose hands begin attempts when they like."""

    def _was_rightly_begun(self, key: Key, step: Step) -> None:
        return

    def _has_recorded_its_start(self, key: Key, step: Step) -> None:
        return


def walked(seed: int, tally: Counter[str]) -> None:
    """Let anything happen to a random graph, change the graph on the way, and tell it again."""
    choose = Seeded(seed)
    workflow = grow(choose, size=12)
    run, plans = Run.of(workflow), dict[str, Plan]()
    plans[run.plan.fingerprint] = first = run.plan
    for _ in range(2):
        walk(run, choose, choose.number(5, 25))
        made = edit(workflow, choose) if choose.number(0, 1) else None
        if made is not None and run.state.ended != "completed" and run.move(made.workflow) is None:
            workflow = made.workflow
            plans[run.plan.fingerprint] = run.plan
            tally["moves"] += 1
    finish(run, choose)
    ends_well_after_a_retry(run, choose)
    told = retold(first, plans, run)
    tally["entries"] += len(run.entries)
    tally["crashes"] += sum(isinstance(fact, f.StepCrashed) for fact in run.facts)
    tally.update(told.examined)


def retold(first: Plan, plans: dict[str, Plan], run: Run) -> Story:
    story = LooseHands(first, plans.__getitem__)
    at_us = 0
    for seq, facts in enumerate(run.entries, 1):
        at_us = max([at_us, *(timers(story, facts))])
        story.tell(Entry(seq, b"", None, at_us), facts, check_laws=False)
    assert story.state == run.state
    return story


def timers(story: Story, facts: list[f.Fact]) -> list[int]:
    """Return when what fires here was due: a walk's clock does not go into its entries."""
    return [story.state.steps[fact.node, fact.turns].due_us for fact in facts if isinstance(fact, f.TimerFired)]


@pytest.mark.parametrize("block", range(4))
def test_no_walk_breaks_a_rule(block: int) -> None:
    """And the walks give every rule of the journal something to say."""
    tally: Counter[str] = Counter()
    for seed in range(block * 40, block * 40 + 40):
        walked(seed, tally)
    assert tally["moves"] > 5
    assert tally["crashes"] > 5
    silent = {rule for rule in ("S1", "S2", "S8", "S9", "S10", "S11", "S12", "S15", "S16") if not tally[rule]}
    assert not silent
