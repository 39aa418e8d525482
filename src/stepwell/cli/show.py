"""``stepwell show``: one instance in full."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .common import Open, database_option, instance_argument, json_option, opened, subcommand, times_of, utc_option
from .page import Line, Span, columns_of_terminal, hanging, record, say, say_json, state_span
from .text import counted
from .times import span

if TYPE_CHECKING:
    from stepwell.runtime.ending import InstanceStatus
    from stepwell.runtime.inspection import HistoryEvent

    from .steps import Run
    from .times import Times


@subcommand(
    "show",
    "stepwell show order-42",
    "stepwell show order-42 --values              # input, results and output too",
    "stepwell show order-42 --history --utc",
)
@instance_argument
@click.option("--values", is_flag=True, help="Show the input, what each step returned, and the output.")
@click.option("--history", is_flag=True, help="Show all that has happened, in order.")
@click.option("--all", "every", is_flag=True, help="Every step; by default the last 40.")
@database_option
@utc_option
@json_option
def command(
    instance_id: str, values: bool, history: bool, every: bool, db: str | None, utc: bool, as_json: bool
) -> None:
    """Show one instance: how it stands, where its time went, and what failed.

    The waterfall has each step on one axis of time, with the wait in the queue apart from the work. Stretches in which
    nothing is worked on are squeezed. Values are shown only with --values.
    """
    from .steps import read_run

    with opened(db) as at:
        run, status = read_run(at.room, instance_id), at.client.status(instance_id)
        events = at.client.history(instance_id) if history else []
        if as_json:
            say_json(_data(at, run, status, events if history else None, values=values))
            return
        times, space = times_of(utc), columns_of_terminal()
        say(*_head(status, run, times, space))
        for part in (_time(run, space, every), _errors(run, space), _values(at, run, space) if values else []):
            if part:
                say([], *part)
        if events:
            say([], *_events(events, times, space))


def _head(status: InstanceStatus, run: Run, times: Times, space: int) -> list[Line]:
    from .mistakes import in_commands

    ended = f"{times.whole(status.ended)}, after {span(run.end_us - run.header.created_us)}" if status.ended else ""
    steps = sum(told.state == "done" and run.plan.kind[node] == "task" for (node, _), told in run.steps.items())
    rows = [
        ("workflow", Span(f"{status.workflow}  (graph {run.header.fingerprint[:8]})")),
        ("started", Span(f"{times.whole(status.created)}, {times.age(status.created)} ago")),
        ("ended", Span(ended)),
        ("due", Span(f"{times.at(status.due)} ({times.until(status.due)})" if status.due and not status.ended else "")),
        ("run", Span(f"{status.run}, after it was started anew" if status.run > 1 else "")),
        ("labels", Span(", ".join(f"{key}={value}" for key, value in sorted(status.labels.items())))),
        ("worker", Span(status.held_by)),
        ("on its way", Span(", ".join(status.pending), "yellow")),
        ("steps done", Span(counted(steps, "task") + f", {counted(status.seq, 'journal entry', 'journal entries')}")),
        ("because", Span(in_commands(status.detail, status.instance_id), "yellow")),
    ]
    return [[Span(status.instance_id, "bold"), Span("  "), state_span(status.state)], *record(rows, space)]


def _time(run: Run, space: int, every: bool) -> list[Line]:
    from .waterfall import waterfall

    return waterfall(run, space, every=every)


def _errors(run: Run, space: int) -> list[Line]:
    """Return the last error of each step that failed, with the task's own frames."""
    lines: list[Line] = []
    for (node, turns), told in run.steps.items():
        if told.error is None:
            continue
        if told.state == "done":
            told_now = f"failed before it succeeded at attempt {told.attempts}"
        else:
            told_now = f"failed at attempt {max(1, told.attempts)}"
        head = [Span(run.plan.path(node, turns), "bold"), Span(f" {told_now}: ")]
        lines += [*hanging(head, Span(str(told.error), "red"), space, indent=2)]
        if told.state != "done":
            frames = told.error.traceback.splitlines()
            lines += [[Span(f"  {line}", "dim")] for line in frames]
            lines += [[Span(f"  from {cause}", "dim")] for cause in told.error.causes]
    return lines


# --- values ---------------------------------------------------------------------------------------


def _values(at: Open, run: Run, space: int) -> list[Line]:
    from .page import to_json

    lines: list[Line] = []
    for name, value in values_of(at, run).items():
        lines += hanging([Span(f"{name}  ", "bold")], Span(to_json(value, indent=0)), space, indent=4)
    return lines


def values_of(at: Open, run: Run) -> dict[str, Any]:
    """Return the input, the results of steps by path, and the output; one that cannot be read says so."""
    from .steps import STEPS

    header = run.header
    kept = {"input": 1}
    for (node, turns), told in run.steps.items():
        if told.address and run.plan.kind[node] in STEPS:
            kept[run.plan.path(node, turns)] = told.address
    if header.state == "completed":
        kept["output"] = header.result_seq
    raw = at.backend.values(header.instance, sorted({seq for seq in kept.values() if seq}))
    return {name: _decoded(at, raw.get(seq)) for name, seq in kept.items()}


def _decoded(at: Open, raw: bytes | None) -> Any:
    from stepwell.errors import CodecError

    from .values import plain

    try:
        return plain(at.backend.codec.decode(raw)) if raw is not None else None
    except CodecError as error:
        return f"(cannot be read: {error})"


# --- history --------------------------------------------------------------------------------------


def _events(events: list[HistoryEvent], times: Times, space: int) -> list[Line]:
    lines: list[Line] = []
    for event in events:
        lines += event_lines(event, times, space)
    return lines


def event_lines(event: HistoryEvent, times: Times, space: int) -> list[Line]:
    """Return one event of the history."""
    counted_as = f" ({event.attempt})" if event.attempt > 1 else ""
    head = [Span(f"{times.at(event.at)}  ", "dim")]
    if event.path:
        head.append(Span(f"{event.path}  ", "bold"))
    said = f": {event.detail}" if event.detail else ""
    style = "red" if "failed" in event.kind else ""
    return hanging(head, Span(f"{event.kind}{counted_as}{said}", style), space, indent=12)


def event_data(event: HistoryEvent) -> dict[str, Any]:
    return {
        "seq": event.seq,
        "at": event.at,
        "kind": event.kind,
        "path": event.path,
        "attempt": event.attempt,
        "detail": event.detail,
    }


def _data(
    at: Open, run: Run, status: InstanceStatus, events: list[HistoryEvent] | None, *, values: bool
) -> dict[str, Any]:
    from .as_data import run_data, status_data

    data = status_data(status) | run_data(run) | {"state": status.state}
    if values:
        data["values"] = values_of(at, run)
    if events is not None:
        data["history"] = [event_data(event) for event in events]
    return data
