"""Planted faults: each small wrong variant of the engine must be caught by the random walks or the oracle.

A proof that cannot fail proves nothing. The search is seeded and short, so that a fault that slips through is noticed.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from stepwell.engine import events as e
from stepwell.engine import facts as f
from stepwell.engine import frontier as frontier_room
from stepwell.engine.frontier import Frontier, Step
from stepwell.engine.laws import LawBroken
from stepwell.flow import plan as plan_room
from stepwell.flow.plan import Plan, Turns

from . import test_change, test_deciding, test_failing
from .graphs import Seeded, grow
from .hands import Run, finish, walk
from .test_laws import ends_well_after_a_retry, runs_as_it_reads
from .test_moves import moved_as_it_reads, walked_and_moved

engine: Any = importlib.import_module("stepwell.engine.advance")
deciding: Any = importlib.import_module("stepwell.engine.deciding")
turn_room: Any = importlib.import_module("stepwell.engine.turn")
state_room: Any = importlib.import_module("stepwell.engine.state")
change: Any = importlib.import_module("stepwell.engine.change")
moved: Any = importlib.import_module("stepwell.engine.moved")
past: Any = importlib.import_module("stepwell.engine.past")
frontier: Any = frontier_room
Patch = pytest.MonkeyPatch
Apply = Callable[[Plan, Frontier, Any], None]

SEARCH = 150


def search() -> None:
    """Do what the suite does, until something is wrong: random runs, then the tables."""
    for seed in range(SEARCH):
        choose = Seeded(seed)
        run = Run.of(grow(choose, size=12))
        walk(run, choose, 30)
        finish(run, choose)
        ends_well_after_a_retry(run, choose)
        runs_as_it_reads(grow(Seeded(seed), size=14, failing=False), seed, "message")
    test_failing.test_two_failing_scopes_that_settle_at_once_fail_the_outer_one_once()


# --- one wrong variant each --------------------------------------------------------------


def _deciding(patch: Patch, kind: type, wrong: Callable[..., Sequence[f.Fact]]) -> None:
    patch.setitem(engine._DECIDE, kind, wrong)


def _applying(patch: Patch, kind: type, wrong: Apply) -> None:
    patch.setitem(frontier._APPLY, kind, wrong)


def attempt_not_checked(patch: Patch) -> None:
    """Any attempt may report."""
    right = engine._succeeded

    def wrong(plan: Plan, state: Frontier, event: e.Succeeded, now: int) -> Sequence[f.Fact]:
        step = state.steps.get((event.node, event.turns))
        current = step.attempt if step else event.attempt
        facts: Sequence[f.Fact] = right(plan, state, msgspec.structs.replace(event, attempt=current), now)
        return facts

    _deciding(patch, e.Succeeded, wrong)


def values_never_dropped(patch: Patch) -> None:
    patch.setattr(frontier, "_forget", lambda *given: None)


def values_dropped_early(patch: Patch) -> None:
    """A value dies with its first reader."""
    right = plan_room._last_reader

    def wrong(nodes: Any, lineage: Any, place: Any, value: int, who: list[int]) -> int:
        return right(nodes, lineage, place, value, who[:1])

    patch.setattr(plan_room, "_last_reader", wrong)


def tags_never_dropped(patch: Patch) -> None:
    def wrong(plan: Plan, state: Frontier, node: int, turns: Turns) -> None:
        state.values.pop((node, turns[: plan.depth[node]]), 0)

    patch.setattr(frontier, "_forget", wrong)


def blocked_ignored(patch: Patch) -> None:
    """A waiter opens when the first thing it needs is done."""

    def wrong(turn: Any, parallel: int, child: int, turns: Turns) -> None:
        for waiter in reversed(turn.plan.waiters[child]):
            if (waiter, turns) not in turn.state.steps:
                turn.open(waiter, turns)
        if not turn.state.scopes[(parallel, turns)].remaining:
            turn._close_parallel(parallel, turns)

    patch.setattr(turn_room.Turn, "_follow_parallel", wrong)


def join_by_first_branch(patch: Patch) -> None:
    right = turn_room.Turn._follow_parallel

    def wrong(turn: Any, parallel: int, child: int, turns: Turns) -> None:
        if not turn.plan.waiters[child] and turn.state.scopes[(parallel, turns)].remaining:
            turn._close_parallel(parallel, turns)
        else:
            right(turn, parallel, child, turns)

    patch.setattr(turn_room.Turn, "_follow_parallel", wrong)


def join_never(patch: Patch) -> None:
    """The last of several branches is not noticed."""
    right = turn_room.Turn._follow_parallel

    def wrong(turn: Any, parallel: int, child: int, turns: Turns) -> None:
        if len(turn.plan.nodes[parallel].children) < 3 or turn.state.scopes[(parallel, turns)].remaining:
            right(turn, parallel, child, turns)

    patch.setattr(turn_room.Turn, "_follow_parallel", wrong)


def pause_ignored_by_timers(patch: Patch) -> None:
    right = engine._fired

    def wrong(plan: Plan, state: Frontier, event: e.Fired, now: int) -> Sequence[f.Fact]:
        paused, state.paused = state.paused, None
        facts: Sequence[f.Fact] = right(plan, state, event, now)
        state.paused = paused
        return facts

    _deciding(patch, e.Fired, wrong)


def timers_fire_early(patch: Patch) -> None:
    right = engine._fired
    _deciding(patch, e.Fired, lambda plan, state, event, now: right(plan, state, event, now + 15))


def wait_treated_as_cancel(patch: Patch) -> None:
    def wrong(turn: Any, node: int, turns: Turns) -> None:
        child, turns = turn._up_to_parallel(node, turns)
        if child == 0:
            turn.end_failed()
        else:
            turn._fail_parallel(turn.plan.parent[child], turns)

    patch.setattr(turn_room.Turn, "failed", wrong)


def readers_not_skipped(patch: Patch) -> None:
    def wrong(turn: Any, child: int, turns: Turns) -> None:
        parallel = turn.plan.parent[child]
        if not turn.state.scopes[(parallel, turns)].remaining:
            turn._close_parallel(parallel, turns)

    patch.setattr(turn_room.Turn, "skip_readers", wrong)


def newest_message_first(patch: Patch) -> None:
    def wrong(turn: Any, node: int, turns: Turns, message: int) -> None:
        turn.emit(f.MessageTaken(node, turns, turn.state.inbox[turn.plan.nodes[node].signal][-1]))
        turn.done(node, turns)

    patch.setattr(turn_room.Turn, "take", wrong)


def loop_one_turn_too_many(patch: Patch) -> None:
    _loop_limit(patch, 1)


def loop_one_turn_too_few(patch: Patch) -> None:
    _loop_limit(patch, -1)


def _loop_limit(patch: Patch, off: int) -> None:
    def wrong(turn: Any, loop: int, turns: Turns, value: int) -> None:
        tag, row = turn.state.tags.get(value, ""), turn.plan.nodes[loop]
        if tag == "again" and turns[-1] < row.max_iterations + off:
            turn._turn_loop(loop, (*turns[:-1], turns[-1] + 1), value)
        elif tag == "done" or (tag == "again" and row.on_max == "last"):
            turn._scope_done(loop, turns[:-1], value)
        else:
            turn.refuse(loop, turns[:-1], "loop_limit" if tag == "again" else "loop_value")

    patch.setattr(turn_room.Turn, "_after_turn", wrong)


def one_attempt_too_many(patch: Patch) -> None:
    right = engine._next_attempt

    def wrong(plan: Plan, step: Step, event: e.Errored, now: int) -> tuple[int, int]:
        due, spent = right(plan, msgspec.structs.replace(step, spent=step.spent - 1), event, now)
        return due, spent + 1

    patch.setattr(engine, "_next_attempt", wrong)


def unsettled_ignored(patch: Patch) -> None:
    """A scope fails while steps in it may still run."""

    def wrong(turn: Any, parallel: int, turns: Turns) -> None:
        turn.emit(f.ScopeFailing(parallel, turns))
        turn._scope_failed(parallel, turns)

    patch.setattr(turn_room.Turn, "_fail_parallel", wrong)


def settled_twice(patch: Patch) -> None:
    """Settling does not take a step off the count."""
    patch.setattr(frontier, "_settle", lambda *given: None)


def nothing_closes(patch: Patch) -> None:
    patch.setattr(frontier, "_close_below", lambda *given: 0)


def stalled_forgotten(patch: Patch) -> None:
    """What was done while its scope failed is not gone on from."""
    patch.setattr(deciding, "_go_on", lambda *given: None)


def stalled_in_parallels_forgotten(patch: Patch) -> None:
    patch.setattr(turn_room.Turn, "done_in_parallels", lambda *given: None)


def inner_failure_counts_again(patch: Patch) -> None:
    """A scope fails although one around it is failing already."""
    patch.setattr(turn_room.Turn, "_covered", lambda *given: False)


def cancel_does_not_end(patch: Patch) -> None:
    def wrong(plan: Plan, state: Frontier, event: e.CancelAsked, now: int) -> Sequence[f.Fact]:
        if state.ended or state.cancelling:
            return ()
        turn = turn_room.Turn(plan, state, now)
        turn.emit(f.CancelBegun(event.reason, event.by))
        return turn.finish()  # type: ignore[no-any-return]

    _deciding(patch, e.CancelAsked, wrong)


def images_forget_tags(patch: Patch) -> None:
    right = state_room._IMAGE_ENCODER

    class Wrong:
        def encode(self, image: Any) -> bytes:
            return right.encode(msgspec.structs.replace(image, tags={}))

    patch.setattr(state_room, "_IMAGE_ENCODER", Wrong())


def state_changed_outside_apply(patch: Patch) -> None:
    """A live counter that recovery does not know."""
    right = engine._begun

    def wrong(plan: Plan, state: Frontier, event: e.Begun, now: int) -> Sequence[f.Fact]:
        facts: Sequence[f.Fact] = right(plan, state, event, now)
        if facts:
            state.steps[(event.node, event.turns)] = Step(event.attempt, 1, 0, "began")
        return facts

    _deciding(patch, e.Begun, wrong)


def later_turns_are_entered_with_nothing(patch: Patch) -> None:
    right = turn_room.Turn._turn_loop

    def wrong(turn: Any, loop: int, turns: Turns, value: int) -> None:
        right(turn, loop, turns, value if turns[-1] == 1 else 0)

    patch.setattr(turn_room.Turn, "_turn_loop", wrong)


def short_cut_forgets_nothing(patch: Patch) -> None:
    """The fused way of the short cut differs from apply."""
    right = engine.apply_straight_on

    def wrong(plan: Plan, state: Frontier, done: tuple[int, Turns], opened: tuple[int, Turns]) -> None:
        values = dict(state.values)
        right(plan, state, done, opened)
        state.values = {**values, **state.values}

    patch.setattr(engine, "apply_straight_on", wrong)


def cursors_never_dropped(patch: Patch) -> None:
    class Kept(dict[Any, int]):
        def pop(self, *given: Any) -> Any:
            return None

    right = frontier._cursor_kept

    def wrong(plan: Plan, state: Frontier, fact: f.CursorKept) -> None:
        state.cursors = Kept(state.cursors)
        right(plan, state, fact)

    _applying(patch, f.CursorKept, wrong)


def retry_runs_done_steps_again(patch: Patch) -> None:
    """A result that came while the scope failed is asked for again."""

    def wrong(turn: Any, node: int, turns: Turns) -> None:
        turn.open(node, turns)

    patch.setattr(deciding, "_go_on", wrong)


# --- decisions and moves -----------------------------------------------------------------


def a_decision_keeps_the_attempt(patch: Patch) -> None:
    """Whoever still works on the old one is heard."""

    def wrong(turn: Any, key: Any, step: Step | None) -> None:
        if step is not None and step.phase in ("ready", "began", "tried"):
            turn.emit(f.Opened(*key, 0, step.attempt))

    patch.setattr(deciding, "_rerun", wrong)


def any_tag_is_believed(patch: Patch) -> None:
    patch.setattr(deciding, "_may_have", lambda *given: True)


def another_step_is_decided(patch: Patch) -> None:
    """Whatever the hold names."""
    right = deciding.decided

    def wrong(plan: Plan, state: Frontier, event: e.Decided, now: int) -> Sequence[f.Fact]:
        if state.held:
            state.held = msgspec.structs.replace(state.held, node=event.node, turns=event.turns)
        facts: Sequence[f.Fact] = right(plan, state, event, now)
        return facts

    _deciding(patch, e.Decided, wrong)


def a_failed_run_ends_while_steps_run(patch: Patch) -> None:
    patch.setattr(deciding, "_fail_run", lambda turn: turn.end_failed())


def a_retry_ends_a_hold(patch: Patch) -> None:
    def wrong(plan: Plan, state: Frontier, event: e.RetryAsked, now: int) -> Sequence[f.Fact]:
        if not state.held:
            return deciding.retry_asked(plan, state, event, now)  # type: ignore[no-any-return]
        turn = turn_room.Turn(plan, state, now)
        turn.emit(f.RunReopened(event.by))
        return turn.finish()  # type: ignore[no-any-return]

    _deciding(patch, e.RetryAsked, wrong)


def _comparing(name: str, wrong: Callable[..., Any]) -> Callable[[Patch], None]:
    def mutant(patch: Patch) -> None:
        patch.setattr(change._Comparison, name, wrong)

    mutant.__name__ = f"compare_without{name}"
    return mutant


def _nothing(*given: Any) -> Any:
    return iter(())


def values_not_found_again(patch: Patch) -> None:
    """Only what the old graph had kept goes over."""
    right = change._Comparison._values

    def wrong(comparison: Any) -> Any:
        kept = set(comparison.state.values.values())
        return (value for value in right(comparison) if value[2] in kept)

    patch.setattr(change._Comparison, "_values", wrong)


def everything_found_again(patch: Patch) -> None:
    """Also what the new graph has done with."""

    def wrong(comparison: Any) -> Any:
        for row, address in comparison.stand.done.items():
            if comparison.new.used[comparison.to[row]]:
                yield comparison.to[row], comparison.stand.at[row] or (), address

    patch.setattr(change._Comparison, "_values", wrong)


def tags_not_found_again(patch: Patch) -> None:
    right = change._Comparison.move

    def wrong(comparison: Any, past: Any) -> e.MoveAsked:
        return msgspec.structs.replace(right(comparison, past), tags=())

    patch.setattr(change._Comparison, "move", wrong)


def blocked_by_all_needs(patch: Patch) -> None:
    """What is done is counted as if it were not."""
    right = moved._scope

    def wrong(plan: Plan, key: Any, scope: Any, done: set[int], row: dict[int, int]) -> Any:
        made = right(plan, key, scope, done, row)
        made.blocked = {child: len(plan.nodes[child].needs) for child in made.blocked}
        return made

    patch.setattr(moved, "_scope", wrong)


def new_children_are_not_counted(patch: Patch) -> None:
    right = moved._scope

    def wrong(plan: Plan, key: Any, scope: Any, done: set[int], row: dict[int, int]) -> Any:
        made = right(plan, key, scope, done, row)
        made.remaining = scope.remaining
        return made

    patch.setattr(moved, "_scope", wrong)


def new_children_start_where_all_has_stopped(patch: Patch) -> None:
    patch.setattr(deciding, "_stopped_around", lambda *given: [])


def the_pending_are_forgotten(patch: Patch) -> None:
    right = deciding.retry_asked

    def wrong(plan: Plan, state: Frontier, event: e.RetryAsked, now: int) -> Sequence[f.Fact]:
        if state.ended:
            state.pending = []
        facts: Sequence[f.Fact] = right(plan, state, event, now)
        return facts

    _deciding(patch, e.RetryAsked, wrong)


def readers_of_the_lost_wait_for_ever(patch: Patch) -> None:
    patch.setattr(deciding, "_skip_what_needs_the_lost", lambda turn: None)


def attempts_that_were_spent_stay_spent(patch: Patch) -> None:
    def wrong(plan: Plan, key: Any, step: Step, paths: dict[Any, str]) -> Step:
        return msgspec.structs.replace(step, path=step.path or paths.get(key, ""))

    patch.setattr(moved, "_step", wrong)


def former_paths_are_forgotten(patch: Patch) -> None:
    patch.setattr(change._Comparison, "_other_paths", _nothing)


def earlier_turns_count(patch: Patch) -> None:
    """What the first turn has done is taken for done."""
    right = past.Past._turn

    def wrong(read: Any, loop: Any, turn: int, address: int) -> None:
        if loop not in read.turned:
            right(read, loop, turn, address)

    patch.setattr(past.Past, "_turn", wrong)


def eras_are_not_told_apart(patch: Patch) -> None:
    """Facts from before a move are read in the numbers from after it."""
    patch.setattr(past.Past, "_renumber", lambda *given: None)


MUTANTS = [
    attempt_not_checked, values_never_dropped, values_dropped_early, tags_never_dropped, blocked_ignored,
    join_by_first_branch, join_never, pause_ignored_by_timers, timers_fire_early, wait_treated_as_cancel,
    readers_not_skipped, newest_message_first, loop_one_turn_too_many, loop_one_turn_too_few, one_attempt_too_many,
    unsettled_ignored, settled_twice, nothing_closes, stalled_forgotten, stalled_in_parallels_forgotten,
    inner_failure_counts_again, cancel_does_not_end, images_forget_tags, state_changed_outside_apply,
    later_turns_are_entered_with_nothing, short_cut_forgets_nothing, cursors_never_dropped, retry_runs_done_steps_again,
]  # fmt: skip
CHANGING = [
    a_decision_keeps_the_attempt, any_tag_is_believed, another_step_is_decided, a_failed_run_ends_while_steps_run,
    a_retry_ends_a_hold, values_not_found_again, everything_found_again, tags_not_found_again, blocked_by_all_needs,
    new_children_are_not_counted, new_children_start_where_all_has_stopped, the_pending_are_forgotten,
    readers_of_the_lost_wait_for_ever, attempts_that_were_spent_stay_spent, former_paths_are_forgotten,
    earlier_turns_count, eras_are_not_told_apart,
    _comparing("_other_interface", lambda *given: ""),
    _comparing("_same_sources", lambda *given: True),
    _comparing("_same_repeats", lambda *given: True),
    _comparing("_yields_the_same", lambda *given: True),
    _comparing("_is_finished", lambda *given: False),
    _comparing("_differs_in_line", _nothing),
    _comparing("_differs_in_parallel", _nothing),
    _comparing("_is_missing", _nothing),
    _comparing("_renames", _nothing),
    _comparing("_ready", _nothing),
]  # fmt: skip


#: skipped checks, lost values and wrong counts
AT_RANDOM = [
    values_not_found_again, blocked_by_all_needs, new_children_are_not_counted,
    *(mutant for mutant in CHANGING if mutant.__name__ in (
        "compare_without_other_interface", "compare_without_same_sources", "compare_without_differs_in_line",
        "compare_without_differs_in_parallel", "compare_without_ready",
    )),
]  # fmt: skip


def search_changes() -> None:
    """Do what the suite does about decisions and moves: the tables, then random ones."""
    for room in (test_change, test_deciding):
        for name, test in vars(room).items():
            if name.startswith("test_") and not hasattr(test, "pytestmark"):
                test()
    for cancelled in (False, True):
        test_change.test_a_new_child_waits_for_the_retry(cancelled)
    search_random_changes()


def search_random_changes() -> None:
    tally: Counter[str] = Counter()
    for seed in range(SEARCH):
        walked_and_moved(seed, tally)
        moved_as_it_reads(seed)


@pytest.mark.parametrize("mutant", CHANGING)
def test_a_fault_planted_in_changes_is_caught(mutant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    """The same for what people decide and for moves."""
    mutant(monkeypatch)
    with pytest.raises((LawBroken, AssertionError, LookupError, ValueError)):
        search_changes()


@pytest.mark.parametrize("mutant", AT_RANDOM)
def test_random_edits_alone_catch_a_fault(mutant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    """Without the tables: the laws and the oracle see the worst of them on random graphs."""
    mutant(monkeypatch)
    with pytest.raises((LawBroken, AssertionError, LookupError, ValueError)):
        search_random_changes()


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_planted_fault_is_caught(mutant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    """The search meets a broken law, a wrong result, or an error of the engine's own."""
    mutant(monkeypatch)
    with pytest.raises((LawBroken, AssertionError, LookupError)):
        search()
