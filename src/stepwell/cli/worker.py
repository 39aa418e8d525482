"""``stepwell worker``: work on instances of some workflows until told to stop."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from .common import Open, database_option, json_option, opened, subcommand
from .mistakes import refuse
from .page import Span, say, say_json, say_json_line, state_span
from .text import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepwell.flow.workflow import AnyWorkflow
    from stepwell.runtime.worker import PooledWorker


@subcommand(
    "worker",
    "stepwell worker shop.py:checkout shop.py:refund",
    "stepwell worker shop:checkout --concurrency 8 --tag gpu --name rack-7",
    "stepwell worker shop:checkout --once         # from cron: do what is due, then leave",
)
@click.argument("workflows", metavar="MODULE:WORKFLOW...", nargs=-1, required=True)
@click.option("--concurrency", type=click.IntRange(1, 4_096), default=32, show_default=True, help="Steps at a time.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="What this worker can do; may be repeated.")
@click.option("--lease", default="30s", show_default=True, metavar="TIME", help="How long its claims outlive it.")
@click.option(
    "--poll", default="5s", show_default=True, metavar="TIME", help="How often it looks without being called."
)
@click.option("--deps", metavar="MODULE:NAME", help="A mapping of types to what tasks get by inject(), or its maker.")
@click.option("--name", default="", metavar="NAME", help="How others see it.  [default: host:pid]")
@click.option(
    "--max-running", multiple=True, metavar="WORKFLOW=N", help="So many instances of it at once, of all workers."
)
@click.option("--once", is_flag=True, help="Do what is due now, then leave; waits for nothing.")
@database_option
@json_option
def command(
    workflows: tuple[str, ...],
    concurrency: int,
    tags: tuple[str, ...],
    lease: str,
    poll: str,
    deps: str | None,
    name: str,
    max_running: tuple[str, ...],
    once: bool,
    db: str | None,
    as_json: bool,
) -> None:
    """Work on instances of these workflows until told to stop.

    Ctrl-C or SIGTERM lets running steps end and gives the rest back; a second one leaves at once, and what is cut off
    then is taken up by another worker. Any number of workers, on any number of machines, may serve one database.
    """
    from .loading import load_deps, load_workflow

    served = [load_workflow(each) for each in workflows]
    needs = load_deps(deps)
    with opened(db, create=True) as at:
        if once:
            _once(at, served, needs, lease, as_json)
            return
        options: Any = {"tags": tags, "lease": lease, "poll": poll, "deps": needs, "name": name}
        worker = _pooled(at, served, concurrency, _limits(max_running), options)
        _begin(at, served, worker, as_json)
        worker.run()
        _end(worker, as_json)


def _limits(given: Sequence[str]) -> dict[str, int]:
    """Return how many instances of which workflow may run at once. Raises Mistake."""
    limits: dict[str, int] = {}
    for each in given:
        name, _, number = each.rpartition("=")
        if not name or not number.isdigit() or int(number) < 1:
            refuse(f"--max-running {each} is not WORKFLOW=N, as in --max-running checkout=4")
        limits[name] = int(number)
    return limits


def _pooled(
    at: Open, served: Sequence[AnyWorkflow], concurrency: int, limits: dict[str, int], options: dict[str, Any]
) -> PooledWorker:
    from stepwell.runtime.worker import PooledWorker

    return PooledWorker(at.backend, served, concurrency=concurrency, max_running=limits or None, **options)


def _begin(at: Open, served: Sequence[AnyWorkflow], worker: PooledWorker, as_json: bool) -> None:
    names = sorted({workflow.name for workflow in served})
    name = worker.health().name
    if as_json:
        say_json_line({"event": "serving", "worker": name, "workflows": names, "database": at.place.shown})
    else:
        served_from = f"{name} serves {', '.join(names)} from {at.place.shown}"
        say(f"{served_from}; Ctrl-C drains, a second one leaves at once.", err=True)


def _end(worker: PooledWorker, as_json: bool) -> None:
    if as_json:
        say_json_line({"event": "stopped", "health": dataclasses.asdict(worker.health())})
    else:
        say("Stopped: nothing is held any more.", err=True)


def _once(at: Open, served: Sequence[AnyWorkflow], deps: Any, lease: str, as_json: bool) -> None:
    """Run what can go on now, as ``runner.recover`` does."""
    from stepwell.runtime.checkpointing import CheckpointingRunner

    with CheckpointingRunner(at.backend, deps=deps, lease=lease) as runner:
        statuses = runner.recover(served)
    if as_json:
        from .as_data import status_data

        say_json({"instances": [status_data(status) for status in statuses]})
        return
    for status in statuses:
        say([Span(status.instance_id, "bold"), Span("  "), state_span(status.state)])
    say(f"{counted(len(statuses), 'instance')} taken up.", err=True)
