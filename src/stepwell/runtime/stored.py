"""Reading instances and plans as the store has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from stepwell.backend.base import Backend, Filter, Header, Loaded
from stepwell.errors import InstanceDamaged, InstanceNotFound
from stepwell.flow.plan import Plan
from stepwell.types import check_instance_id

if TYPE_CHECKING:
    from .room import Room


def missing(backend: Backend, instance_id: str) -> InstanceNotFound:
    """Return the error for an id that a store does not have; that it is another store than was meant is likely."""
    return InstanceNotFound(
        instance_id, f"no such instance in {_shown(backend)}; client.list() shows which there are, start() creates one"
    )


def _shown(backend: Backend) -> str:
    """Name a store as it names itself, without a password; one that does not is called by its class."""
    own = type(backend).__repr__ is not object.__repr__
    return repr(backend) if own else f"this {type(backend).__name__}"


def load(room: Room, instance_id: str) -> Loaded:
    assert room.backend is not None
    loaded = room.backend.load(check_instance_id(instance_id))
    if loaded is None:
        raise missing(room.backend, instance_id)
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
