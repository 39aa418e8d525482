"""The input of ``run`` and ``start``: read, checked against the workflow, converted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stepwell.codec import type_name

from .mistakes import refuse
from .values import MISSING, converted, read_json

if TYPE_CHECKING:
    from stepwell.flow.workflow import AnyWorkflow


def with_input(workflow: AnyWorkflow, text: str | None, file: str | None, target: str) -> list[Any]:
    """Return a workflow with its input as the arguments of ``start`` and ``run``. Raises Mistake."""
    value = read_json(text, file, "the input")
    if not workflow.has_input:
        if value is not MISSING:
            refuse(f"workflow {workflow.name} takes no input; leave the JSON out")
        return [workflow]
    if value is MISSING:
        wanted = type_name(workflow.input_type)
        refuse(f"workflow {workflow.name} takes an input of type {wanted}: stepwell … {target} JSON, or --file FILE")
    return [workflow, converted(value, workflow.input_type, "the input")]


def options_of(
    instance_id: str | None,
    on_conflict: str | None,
    ignore_input: bool,
    labels: Mapping[str, str],
    lane: str | None = None,
) -> dict[str, Any]:
    """Return the options of ``start`` and ``run`` that were given."""
    given = {"instance_id": instance_id, "on_conflict": on_conflict, "labels": labels or None, "lane": lane}
    mismatch = {"on_mismatch": "ignore"} if ignore_input else {}
    return {name: value for name, value in given.items() if value is not None} | mismatch
