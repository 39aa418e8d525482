"""Values that go into an instance from a terminal: payloads of signals and decided results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepwell.flow.plan import NONE, Plan
from stepwell.runtime.stored import load, stored_plan
from stepwell.types import Again, Done

from .mistakes import refuse
from .values import converted, returned_type, signal_type, without_code

if TYPE_CHECKING:
    from stepwell.flow.workflow import AnyWorkflow

    from .common import Open


def payload_of(at: Open, instance_id: str, name: str, value: object, workflow: AnyWorkflow | None) -> object:
    """Return a signal's payload in the type that the workflow awaits. Raises Mistake."""
    what = f'the payload of signal "{name}"'
    if workflow is not None:
        return converted(value, workflow.bodies.payloads.get(name, Any), what)
    plan = _plan(at, instance_id)
    return value if name not in plan.signals else without_code(value, signal_type(plan, name), what)


def _plan(at: Open, instance_id: str) -> Plan:
    return stored_plan(at.room, load(at.room, instance_id).header)


def completed_with(
    at: Open, instance_id: str, path: str, value: object, workflow: AnyWorkflow | None, loop: str
) -> object:
    """Return what ``decide … complete`` gives a step as its result. ``loop``: ``again``, ``done``, or ``""``."""
    plan = _plan(at, instance_id)
    node, _ = plan.find(path) or (NONE, ())
    if node != NONE and plan.kind[node] == "route":
        return value  # the name of a case
    if workflow is not None:
        value = converted(value, _declared(workflow, path, loop), "the value")
    elif node != NONE:
        value = without_code(value, _bare(returned_type(plan, node), loop), "the value")
    return {"again": Again, "done": Done}[loop](value) if loop else value


def _declared(workflow: AnyWorkflow, path: str, loop: str) -> Any:
    from stepwell.flow.declared import may_say_again, turn_types

    node, _ = workflow.plan.find(path) or (NONE, ())
    declared = workflow.bodies.types.get(node, Any)
    if not may_say_again(declared):
        return declared
    if not loop:
        refuse(f"{path} decides whether its loop goes on: add --again or --done")
    return turn_types(declared)[0 if loop == "again" else 1]


def _bare(name: str, loop: str) -> str:
    """Return the type inside ``Again[…]`` or ``Done[…]`` of a loop's last step, as far as its name tells."""
    import re

    if not loop:
        if "Again[" in name or "Done[" in name:
            refuse("this step decides whether its loop goes on: add --again or --done")
        return name
    found = re.search(rf"{loop.title()}\[([\w |]+)\]", name)
    return found[1] if found else "Any"
