"""Reading instances and plans as the store has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from stepwell.backend.base import Filter, Header, Loaded
from stepwell.errors import InstanceDamaged, InstanceNotFound
from stepwell.flow.plan import Plan
from stepwell.types import check_instance_id

if TYPE_CHECKING:
    from .room import Room


def load(room: Room, instance_id: str) -> Loaded:
    assert room.backend is not None
    loaded = room.backend.load(check_instance_id(instance_id))
    if loaded is None:
        raise InstanceNotFound(instance_id, "no such instance")
    return loaded


def stored_plan(room: Room, header: Header) -> Plan:
    """Return the plan that an instance was last advanced with. Raises InstanceDamaged if it is not stored."""
    try:
        plan = room.stored_plan(header.workflow, header.fingerprint)
    except msgspec.MsgspecError as error:
        raise InstanceDamaged(
            header.instance_id, f"the stored plan of workflow {header.workflow!r} cannot be read: {error}"
        ) from error
    if plan is None:
        raise InstanceDamaged(header.instance_id, f"the plan of workflow {header.workflow!r} is missing from the store")
    return plan


def unfinished(room: Room, workflow: str) -> list[Header]:
    """Return every unfinished instance of a workflow, oldest first."""
    assert room.backend is not None
    found: list[Header] = []
    after: int | None = None
    while page := room.backend.list(Filter(workflow=workflow, unfinished=True, after=after, limit=500)):
        found += page
        after = page[-1].instance
    return found[::-1]
