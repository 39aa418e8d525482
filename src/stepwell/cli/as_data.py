"""What the commands print with ``--json``: moments in UTC, spans in seconds, never a value unless it was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepwell.timing import moment

from .steps import STEPS, Run, Told, began_us, below, state_of

if TYPE_CHECKING:
    from stepwell.flow.plan import Key
    from stepwell.runtime.ending import InstanceStatus
    from stepwell.runtime.inspection import ErrorInfo


def status_data(status: InstanceStatus) -> dict[str, Any]:
    """Return an instance's row."""
    return {
        "id": status.instance_id,
        "run": status.run,
        "workflow": status.workflow,
        "state": status.state,
        "created": status.created,
        "updated": status.updated,
        "ended": status.ended,
        "due": status.due,
        "held_by": status.held_by or None,
        "pending": list(status.pending),
        "detail": status.detail or None,
        "labels": dict(status.labels),
        "number": status.number,
    }


def run_data(run: Run) -> dict[str, Any]:
    """Return an instance with the tree of its steps."""
    header = run.header
    return {
        "id": header.instance_id,
        "run": header.run,
        "workflow": header.workflow,
        "fingerprint": header.fingerprint,
        "state": run.shown_state,
        "created": moment(header.created_us),
        "ended": moment(header.ended_us) if header.ended_us is not None else None,
        "held_by": header.held_by or None,
        "labels": dict(header.labels),
        "steps": [_node(run, key) for key in below(run, 0, ())],
    }


def _node(run: Run, key: Key) -> dict[str, Any]:
    node, turns = key
    plan, told, begin = run.plan, run.step(node, turns), began_us(run, node, turns)
    data: dict[str, Any] = {
        "path": plan.path(node, turns),
        "name": plan.nodes[node].name,
        "kind": plan.kind[node],
        "state": state_of(run, node, turns) or "not begun",
        "began": moment(begin) if begin else None,
        "ended": moment(told.ended_us) if told.ended_us else None,
    }
    if plan.kind[node] in STEPS:
        data |= _times(told, run.now_us) | {"error": error_data(told.error)}
    if plan.kind[node] == "loop":
        data["turns"] = run.turns.get(key, 0)
    if plan.kind[node] == "route":
        data["case"] = run.cases.get(key)
    if inner := [_node(run, each) for each in below(run, node, turns)]:
        data["steps"] = inner
    return data


def _times(told: Told, now_us: int) -> dict[str, Any]:
    work_us = told.spent_us("work", now_us) + told.spent_us("failed", now_us)
    return {
        "attempts": told.attempts,
        "due": moment(told.due_us) if told.due_us else None,
        "queue_seconds": told.spent_us("queue", now_us) / 1e6,
        "work_seconds": work_us / 1e6,
        "wait_seconds": (told.spent_us("wait", now_us) + told.spent_us("gap", now_us)) / 1e6,
    }


def error_data(error: ErrorInfo | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {
        "type": error.type,
        "message": error.message,
        "traceback": error.traceback,
        "causes": list(error.causes),
    }
