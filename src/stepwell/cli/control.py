"""``signal``, ``cancel``, ``pause``, ``resume`` and ``retry``: asking something of one instance, or of several."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from stepwell.errors import UsageError

from .common import InstanceId, Open, by_option, database_option, instance_argument, json_option, opened, subcommand
from .mistakes import NOT_ALLOWED, Mistake, in_commands
from .page import Span, say, say_json, state_span

if TYPE_CHECKING:
    from stepwell.runtime.ending import InstanceStatus


def reason_option(function: Any) -> Any:
    return click.option("--reason", default="", metavar="WHY", help="Kept with the instance, and shown.")(function)


def instances_argument(function: Any) -> Any:
    return click.argument("ids", metavar="ID...", nargs=-1, required=True, type=InstanceId())(function)


def _each(db: str | None, ids: tuple[str, ...], as_json: bool, ask: Callable[[Open, str], None]) -> None:
    """Ask something of each instance; the first that refuses ends the command, and those before it stay asked."""
    with opened(db) as at:
        done: list[InstanceStatus] = []
        for instance_id in dict.fromkeys(ids):
            _asked(at, instance_id, ask)
            status = at.client.status(instance_id)
            done.append(status)
            if not as_json:
                _say(status)
        if as_json:
            from .as_data import status_data

            say_json(status_data(done[0]) if len(done) == 1 else [status_data(status) for status in done])


def _asked(at: Open, instance_id: str, ask: Callable[[Open, str], None]) -> None:
    try:
        ask(at, instance_id)
    except UsageError as error:
        if isinstance(error, ValueError):  # an option, not the instance's state
            raise
        raise Mistake(in_commands(str(error), instance_id), NOT_ALLOWED) from error


def _say(status: InstanceStatus) -> None:
    line = [Span(status.instance_id, "bold"), Span("  "), state_span(status.state)]
    if status.pending:
        line.append(
            Span(f"  {', '.join(status.pending)} is on its way: {status.held_by or 'a worker'} takes it in", "dim")
        )
    say(line)


@subcommand("cancel", "stepwell cancel order-42 --reason 'the customer withdrew' --by ann")
@instances_argument
@reason_option
@by_option
@database_option
@json_option
def cancel(ids: tuple[str, ...], reason: str, by: str, db: str | None, as_json: bool) -> None:
    """End instances as cancelled: nothing starts any more, and what runs is told to stop.

    Finished steps keep their results, so a retry can go on from there.
    """
    _each(db, ids, as_json, lambda at, each: at.client.cancel(each, reason=reason, by=by))


@subcommand("pause", "stepwell pause order-42 --reason stock-taking")
@instances_argument
@reason_option
@by_option
@database_option
@json_option
def pause(ids: tuple[str, ...], reason: str, by: str, db: str | None, as_json: bool) -> None:
    """Let instances start nothing more until they are resumed.

    What runs ends, and its result is kept. No timer and no signal is lost.
    """
    _each(db, ids, as_json, lambda at, each: at.client.pause(each, reason=reason, by=by))


@subcommand("resume", "stepwell resume order-42")
@instances_argument
@by_option
@database_option
@json_option
def resume(ids: tuple[str, ...], by: str, db: str | None, as_json: bool) -> None:
    """Let paused instances go on. To work on one here: stepwell run MODULE:WORKFLOW --resume ID."""
    _each(db, ids, as_json, lambda at, each: at.client.resume(each, by=by))


@subcommand(
    "retry",
    "stepwell retry order-42",
    "stepwell ps --state failed --json | jq -r '.instances[].id' | xargs stepwell retry",
)
@instances_argument
@by_option
@database_option
@json_option
def retry(ids: tuple[str, ...], by: str, db: str | None, as_json: bool) -> None:
    """Let failed or cancelled instances go on where they stopped.

    Results are kept and attempts count afresh. A worker takes them up at once.
    """
    _each(db, ids, as_json, lambda at, each: at.client.retry(each, by=by))


@subcommand(
    "signal",
    "stepwell signal order-42 approve true",
    "stepwell signal order-42 approve '{\"granted\": true}' --workflow shop.py:checkout --signal-id mail-77",
)
@instance_argument
@click.argument("name", metavar="NAME")
@click.argument("payload", metavar="[JSON]", required=False)
@click.option("--file", metavar="FILE", help="Read the payload from a file.")
@click.option("--signal-id", default="", metavar="ID", help="A message with an id counts once.")
@click.option("--workflow", metavar="MODULE:WORKFLOW", help="The code: needed where the payload is of a type of yours.")
@database_option
@json_option
def signal(
    instance_id: str,
    name: str,
    payload: str | None,
    file: str | None,
    signal_id: str,
    workflow: str | None,
    db: str | None,
    as_json: bool,
) -> None:
    """Send a message to an instance. It is kept until a step waits for it, the oldest first.

    The payload is JSON: an argument, a file or standard input (-); without one it is null.
    """
    from .loading import load_workflow
    from .sending import payload_of
    from .values import MISSING, read_json

    value = read_json(payload, file, "the payload")
    code = load_workflow(workflow) if workflow else None
    with opened(db) as at:
        sent = payload_of(at, instance_id, name, None if value is MISSING else value, code)
        at.client.signal(instance_id, name, sent, signal_id=signal_id, workflow=code)
        status = at.client.status(instance_id)
    if as_json:
        from .as_data import status_data

        say_json(status_data(status) | {"signal": name})
    else:
        _say(status)
