"""``stepwell ps``: the instances of a store, newest first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args

import click

from stepwell.types import ENDED, State

from .common import (
    Open,
    database_option,
    json_option,
    labels_of,
    labels_option,
    opened,
    subcommand,
    times_of,
    utc_option,
)
from .mistakes import refuse
from .page import Column, Line, Span, columns_of_terminal, say, say_json, state_span, table
from .text import counted

if TYPE_CHECKING:
    from stepwell.runtime.ending import InstanceStatus

    from .times import Times

STATES: Final[tuple[str, ...]] = (*get_args(State), "unfinished")

COLUMNS: Final = (
    Column("id", cut=True, least=12),
    Column("workflow", drop=2, cut=True),
    Column("state"),
    Column("step", cut=True, least=10),
    Column("age", right=True, drop=1),
    Column("next", cut=True, least=12),
)


class Asked(NamedTuple):
    """What ``ps`` was asked for."""

    states: tuple[str, ...]
    workflow: str | None
    labels: dict[str, str]
    since: datetime | None
    limit: int
    after: str | None


class Listed(NamedTuple):
    """A row: an instance, where it is, and what would move it."""

    status: InstanceStatus
    steps: Sequence[str]
    next: str


_STATE_HELP: Final = f"{', '.join(STATES)}; may be repeated."
_FILTERS: Final[tuple[Callable[[Any], Any], ...]] = (
    click.option("--state", "states", multiple=True, type=click.Choice(STATES), metavar="STATE", help=_STATE_HELP),
    click.option("--workflow", metavar="NAME", help="Instances of this workflow only."),
    labels_option("Instances with this label only; may be repeated."),
    click.option("--since", metavar="TIME", help="Created since: 2h, 3d, or a date as 2030-01-31."),
    click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="So many at most."),
)


def filters(function: Any) -> Any:
    """Add the options that choose instances."""
    for option in reversed(_FILTERS):
        function = option(function)
    return function


@subcommand(
    "ps",
    "stepwell ps --state failed --state held --since 2d",
    "stepwell ps --workflow checkout --label customer=ann",
    "stepwell ps --after order-42         # the page that follows order-42",
    "stepwell ps --json | jq -r '.instances[].id'",
)
@filters
@click.option("--after", metavar="ID", help="Go on below this instance: the last one of the page before.")
@database_option
@utc_option
@json_option
def command(
    states: tuple[str, ...],
    workflow: str | None,
    labels: tuple[str, ...],
    since: str | None,
    limit: int,
    after: str | None,
    db: str | None,
    utc: bool,
    as_json: bool,
) -> None:
    """List instances, newest first: where each one is, and what it would move on.

    Exits with 0 also if there is none.
    """
    times = times_of(utc)
    asked = Asked(states, workflow, labels_of(labels), since_of(since, times), limit, after)
    with opened(db) as at:
        rows = listed(at, asked, times)
        if as_json:
            say_json({"instances": [_data(row) for row in rows], "after": _after(rows, limit)})
        else:
            say(*lines(rows, times, columns_of_terminal()))
            _say_more(at, rows, asked)


def since_of(text: str | None, times: Times) -> datetime | None:
    """Return the moment that ``--since`` names: so long ago, or a date. Raises Mistake."""
    if text is None:
        return None
    from .plainly import span_us

    try:
        if "-" in text:
            return datetime.fromisoformat(text).astimezone()
        return times.now - timedelta(microseconds=span_us(text, "--since"))
    except ValueError:
        refuse(f"--since {text} is no time; write how long ago, as 2h or 3d, or a date as 2030-01-31T12:00")


# --- reading --------------------------------------------------------------------------------------


def listed(at: Open, asked: Asked, times: Times) -> list[Listed]:
    """Return the rows that were asked for."""
    after = at.client.status(asked.after).number if asked.after is not None else None
    found = at.client.list(
        state=_states(asked.states),
        workflow=asked.workflow,
        labels=asked.labels,
        created_after=asked.since,
        limit=asked.limit,
        after=after,
    )
    return [_listed(at, status, times) for status in found]


def _states(states: tuple[str, ...]) -> Any:
    if "unfinished" not in states:
        return states or None
    return "unfinished" if len(states) == 1 else [s for s in get_args(State) if s in states or s not in ENDED]


def _listed(at: Open, status: InstanceStatus, times: Times) -> Listed:
    from stepwell.errors import InstanceDamaged, InstanceNotFound
    from stepwell.runtime.stored import load

    from .steps import glance

    if status.state == "completed":
        return Listed(status, (), "")
    try:
        run = glance(at.room, load(at.room, status.instance_id))
    except InstanceNotFound:  # it was removed since
        return Listed(status, (), "")
    except InstanceDamaged:
        return Listed(status, (), "cannot be read: doctor")
    awaited = [
        run.plan.nodes[node].signal
        for (node, _), step in run.state.steps.items()
        if step.phase == "parked" and run.plan.kind[node] == "signal"
    ]
    live = replace(status, state=run.shown_state)  # the row says how it was left by whoever had it last
    return Listed(live, run.open_paths(), _next(live, awaited, times))


def _next(status: InstanceStatus, awaited: Sequence[str], times: Times) -> str:
    """Say what would move an instance on."""
    if status.state in _PERSON:
        return _PERSON[status.state]
    if status.held_by:
        return f"at {status.held_by}"
    parts = [f"signal {name}" for name in dict.fromkeys(awaited)]
    if status.due is not None:
        due = times.until(status.due)
        parts.append("due, no worker" if due == "now" else due)
    elif status.state in ("pending", "running"):
        parts.append("due, no worker")
    return ", or ".join(parts)


_PERSON: Final = {
    "held": "decide",
    "paused": "resume",
    "failed": "retry",
    "cancelled": "",
    "completed": "",
}


# --- showing --------------------------------------------------------------------------------------


def lines(rows: Sequence[Listed], times: Times, space: int) -> list[Line]:
    """Return the table."""
    if not rows:
        return [[Span("no instance matches", "dim")]]
    return table(COLUMNS, [cells(row, times) for row in rows], space)


def cells(row: Listed, times: Times) -> list[Span]:
    status, steps = row.status, row.steps
    more = f" +{len(steps) - 1}" if len(steps) > 1 else ""
    return [
        Span(status.instance_id, "bold"),
        Span(status.workflow),
        state_span(status.state),
        Span(f"{steps[0]}{more}" if steps else ""),
        Span(times.age(status.created), "dim"),
        Span(row.next),
    ]


def _say_more(at: Open, rows: Sequence[Listed], asked: Asked) -> None:
    if len(rows) == asked.limit and (last := _after(rows, asked.limit)):
        say(f"{counted(asked.limit, 'instance')} shown; the next page: the same with --after {last}", err=True)


def _after(rows: Sequence[Listed], limit: int) -> str | None:
    """Return what ``--after`` takes for the next page, ``None`` if this is the last one."""
    return rows[-1].status.instance_id if len(rows) == limit else None


def _data(row: Listed) -> dict[str, Any]:
    from .as_data import status_data

    return status_data(row.status) | {"steps": list(row.steps), "next": row.next or None}
