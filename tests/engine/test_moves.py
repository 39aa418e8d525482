"""Runs move to edited graphs: the laws hold, nothing runs twice, and what the new graph asks for is done."""

from __future__ import annotations

from collections import Counter

import pytest

from stepwell.engine import events as e
from stepwell.engine import facts as f
from stepwell.engine.change import Obstacle

from .edits import HARMLESS, Edited, edit
from .graphs import Seeded, grow
from .hands import Run, finish, walk
from .oracle import Oracle
from .test_laws import disturb, ends_well_after_a_retry


def names_what_differs(obstacle: Obstacle, made: Edited) -> None:
    """An obstacle names something that the edit changed, in a sentence."""
    named = obstacle.path.rpartition("/")[2].partition("[")[0]
    assert made.kind not in HARMLESS or made.kind == "append_at_the_end", obstacle
    assert named in made.concerns, (obstacle, made)
    assert obstacle.path in obstacle.reason


def walked_and_moved(seed: int, tally: Counter[str]) -> None:
    choose = Seeded(seed)
    workflow = grow(choose, size=12)
    run = Run.of(workflow)
    for _ in range(choose.number(1, 3)):
        walk(run, choose, choose.number(1, 20))
        made = edit(workflow, choose)
        if made is None or run.state.ended == "completed":
            continue
        obstacle = run.move(made.workflow)
        tally[f"{made.kind}: {'obstacle' if obstacle else 'moved'}"] += 1
        if obstacle:
            names_what_differs(obstacle, made)
        else:
            workflow = made.workflow
    walk(run, choose, 5)
    finish(run, choose)
    ends_well_after_a_retry(run, choose)


@pytest.mark.parametrize("block", range(8))
def test_laws_hold_on_walks_with_moves(block: int) -> None:
    """Whatever has happened, a run that moves goes on lawfully and can be brought to its end."""
    tally: Counter[str] = Counter()
    for seed in range(block * 100, block * 100 + 100):
        walked_and_moved(seed, tally)
    assert tally


def moved_as_it_reads(seed: int) -> str:
    """Move a run that nothing fails for good, and compare its end with what the new tree says."""
    choose = Seeded(seed)
    workflow = grow(choose, size=14, failing=False)
    run = Run.of(workflow)
    run.say(e.Start(), "input")
    for _ in range(choose.number(0, 30)):
        disturb(run, choose)
    made = edit(workflow, choose)
    if made is None or made.kind == "add_case" or run.state.ended == "completed":
        return "nothing"
    if any(isinstance(fact, f.Turned) and max(fact.turns) > 1 for fact in run.facts):
        return "nothing"  # earlier turns ran as the old tree read
    if run.move(made.workflow):
        return "obstacle"
    for _ in range(3):
        run.say(e.RetryAsked())
        finish(run, choose)
    oracle = Oracle()
    assert run.result == oracle.run(made.workflow)
    assert run.calls == oracle.calls
    assert run.made == oracle.made
    return "moved"


@pytest.mark.parametrize("block", range(6))
def test_a_moved_run_does_what_the_new_tree_says(block: int) -> None:
    """Each step of the new graph has run, none twice, and every value is the oracle's."""
    tally = Counter(moved_as_it_reads(seed) for seed in range(block * 100, block * 100 + 100))
    assert tally["moved"] > 10
    assert tally["obstacle"] > 3
