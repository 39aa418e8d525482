"""Which instances a client lists, counts or removes: what users write, made into what a store is asked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast, get_args

from stepwell.backend.base import Backend, Filter, Header
from stepwell.errors import InstanceDamaged, OptionError
from stepwell.timing import Duration, duration_us
from stepwell.types import RESTING, State, check_labels

from .ending import InstanceStatus, status_of
from .session import stored_status

if TYPE_CHECKING:
    from stepwell.flow.workflow import AnyWorkflow

    from .room import Room

StateFilter: TypeAlias = State | Literal["unfinished"] | Collection[State]

LIMIT_MAX: Final = 10_000
BATCH: Final = 500  # instances removed in one transaction, so that writers are not kept waiting

_STATES: Final = get_args(State)


def where(
    state: StateFilter | None,
    workflow: str | AnyWorkflow | None,
    labels: Mapping[str, str] | None,
    created_after: datetime | None,
    created_before: datetime | None,
    limit: int = 100,
    after: InstanceStatus | int | None = None,
) -> Filter:
    """Return the filter for a page. Raises OptionError for what is no filter."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= LIMIT_MAX:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise OptionError(f"limit must be a whole number from 1 to {LIMIT_MAX}, not {limit!r}")
    return Filter(
        states=_states(state),
        workflow=workflow if isinstance(workflow, str) else workflow.name if workflow is not None else "",
        labels=check_labels(labels or {}),
        created_from_us=_moment_us(created_after, "created_after"),
        created_to_us=_moment_us(created_before, "created_before"),
        unfinished=state == "unfinished",
        after=after.number if isinstance(after, InstanceStatus) else after,
        limit=limit,
    )


def _states(state: StateFilter | None) -> tuple[State, ...]:
    if state is None or state == "unfinished":
        return ()
    states = cast("tuple[State, ...]", (state,) if isinstance(state, str) else tuple(state))
    for each in states:
        if each not in _STATES:
            known = ", ".join(repr(s) for s in _STATES)
            raise OptionError(f"state must be 'unfinished', one of {known}, or several of these, not {each!r}")
    if not states:
        raise OptionError("state names no state; leave it out to find all")
    return states


def _moment_us(at: datetime | None, what: str) -> int | None:
    if at is None:
        return None
    if not isinstance(at, datetime) or at.tzinfo is None:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise OptionError(f"{what} must be a datetime with a time zone, not {at!r}")
    return round(at.timestamp() * 1e6)


def page(room: Room, backend: Backend, wanted: Filter) -> list[InstanceStatus]:
    """Return the statuses of a page. Only those that have more to say than their row are loaded."""
    return [_status(room, backend, header) for header in backend.list(wanted)]


def _status(room: Room, backend: Backend, header: Header) -> InstanceStatus:
    if not header.mail and header.state not in _TELLING:
        return status_of(header)
    try:
        loaded = backend.load(header.instance_id)
        if loaded is None or loaded.header.state != header.state:  # it has gone on since
            return status_of(header)
        return stored_status(room, loaded)
    except InstanceDamaged as error:  # one bad instance does not hide the others
        return status_of(header, str(error))


_TELLING: Final = RESTING - {"completed"}


def purge(backend: Backend, now_us: int, older_than: Duration | None, keep: int | None, limit: int | None) -> int:
    """Remove ended instances; see ``WorkflowClient.purge``."""
    if older_than is None and keep is None:
        raise OptionError("purge() needs older_than, or keep, or both; without either it would remove everything")
    for name, number in (("keep", keep), ("limit", limit)):
        if number is not None and (type(number) is not int or number < 0):
            raise OptionError(f"{name} must be a whole number from 0 on, not {number!r}")
    before_us = None if older_than is None else now_us - duration_us(older_than, "older_than")
    removed = 0
    while batch := BATCH if limit is None else min(BATCH, limit - removed):
        gone = backend.purge(before_us, keep, batch)
        removed += gone
        if gone < batch:
            break
    return removed
