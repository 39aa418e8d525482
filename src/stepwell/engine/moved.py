"""How a move to another graph changes the state: everything gets the new graph's row numbers.

The old graph is not at hand when facts are applied, so the fact carries what the new one does not say: which rows were
which, what is done, and which values are there to be read.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from stepwell.flow.plan import Key, Plan

from . import facts as f
from .state import Failure, Frontier, Request, Scope, Step


def renumbering(rows: Iterable[tuple[int, int, int]]) -> dict[int, int]:
    """Return new row numbers by old ones, from spans of (first old row, first new row, how many)."""
    return {old + i: new + i for old, new, count in rows for i in range(count)}


def spans(rows: dict[int, int]) -> tuple[tuple[int, int, int], ...]:
    """Return what :func:`renumbering` reads."""
    found: list[tuple[int, int, int]] = []
    for old, new in sorted(rows.items()):
        if found and (old, new) == (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]):
            found[-1] = (*found[-1][:2], found[-1][2] + 1)
        else:
            found.append((old, new, 1))
    return tuple(found)


def run_moved(plan: Plan, state: Frontier, fact: f.RunMoved) -> None:
    """Apply the fact. A hold because the graph had changed is over with it."""
    state.seq += 1
    row = renumbering(fact.rows)

    def moved(key: Key) -> Key:
        return row[key[0]], key[1]

    done = {(node, turns): set(children) for node, turns, children in fact.scopes}
    paths = {(node, turns): path for node, turns, path in fact.paths}
    state.scopes = {moved(k): _scope(plan, moved(k), scope, done[moved(k)], row) for k, scope in state.scopes.items()}
    state.steps = {
        moved(k): _step(plan, moved(k), msgspec.structs.replace(step, scope=moved(step.scope)), paths)
        for k, step in state.steps.items()
    }
    state.turning = {moved(k): turn for k, turn in state.turning.items()}
    state.cursors = {moved(k): at for k, at in state.cursors.items()}
    state.stalled = [moved(k) for k in state.stalled]
    state.pending = list(fact.pending)
    state.values = {(node, turns): at for node, turns, at in fact.values}
    state.tags = dict(fact.tags)
    state.failure = _failure(state.failure, row)
    state.held = _held(state.held, row)


def _scope(plan: Plan, key: Key, scope: Scope, done: set[int], row: dict[int, int]) -> Scope:
    """Count again. What was skipped is not lost any more: whether it still is to be skipped is for the engine."""
    children = plan.nodes[key[0]].children
    lost = [row[child] for child in scope.lost if child in row]
    needs = {child: plan.nodes[child].needs for child in children if plan.nodes[child].needs}
    blocked = {child: sum(need not in done for need in need_of) for child, need_of in needs.items()}
    return Scope(len(children) - len(done) - len(lost), blocked, scope.failing, lost, scope.unsettled)


def _step(plan: Plan, key: Key, step: Step, paths: dict[Key, str]) -> Step:
    """Fewer attempts may be allowed now; the one that is open is always allowed."""
    spent = step.spent if step.phase == "failed" else min(step.spent, plan.retry[key[0]].attempts - 1)
    return msgspec.structs.replace(step, spent=spent, path=step.path or paths.get(key, ""))


def _failure(failure: Failure | None, row: dict[int, int]) -> Failure | None:
    return failure and msgspec.structs.replace(failure, node=row.get(failure.node, 0))


def _held(held: Request | None, row: dict[int, int]) -> Request | None:
    if held is None or held.reason == "changed":
        return None
    if held.node not in row:
        return msgspec.structs.replace(held, node=0, turns=())
    return msgspec.structs.replace(held, node=row[held.node])
