"""``stepwell run``: a workflow from its beginning, or from where it stands, to its end, in this process."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import click

from stepwell.errors import StepwellError, WorkflowFailed

from .common import Open, database_option, json_option, labels_of, labels_option, opened, subcommand
from .mistakes import INTERRUPTED, Mistake, refuse, told
from .page import say, say_json
from .start import POLICIES

if TYPE_CHECKING:
    from stepwell.runtime.checkpointing import CheckpointingRunner


@subcommand(
    "run",
    "stepwell run shop.py:checkout '\"pens\"' --id order-42",
    "stepwell run shop.py:checkout --resume order-42      # go on after Ctrl-C or a crash",
    "stepwell run shop:checkout --file order.json --watch",
)
@click.argument("workflow", metavar="MODULE:WORKFLOW")
@click.argument("value", metavar="[JSON]", required=False)
@click.option("--file", metavar="FILE", help="Read the input from a file.")
@click.option("--id", "instance_id", metavar="ID", help="Name the instance; by default it gets a fresh id.")
@click.option("--resume", metavar="ID", help="Go on with an instance that exists, with the input it has.")
@click.option(
    "--on-conflict", type=click.Choice(POLICIES), help="What to do if the id exists.  [default: use_existing]"
)
@click.option("--ignore-input", is_flag=True, help="Attach to what exists even if its input was another one.")
@labels_option("A label to find the instance by; may be repeated.")
@click.option("--deps", metavar="MODULE:NAME", help="A mapping of types to what tasks get by inject(), or its maker.")
@click.option("--watch", "watching", is_flag=True, help="Show its tree of steps while it runs.")
@database_option
@json_option
def command(
    workflow: str,
    value: str | None,
    file: str | None,
    instance_id: str | None,
    resume: str | None,
    on_conflict: str | None,
    ignore_input: bool,
    labels: tuple[str, ...],
    deps: str | None,
    watching: bool,
    db: str | None,
    as_json: bool,
) -> None:
    """Run a workflow to its end in this process, and print its output as JSON.

    It sits through delays and signals. Ctrl-C suspends the instance, and says how to go on; so does a crash, without
    words. Running an id that exists goes on with it; one that has ended prints its recorded output.
    """
    from .inputs import options_of, with_input
    from .loading import load_deps, load_workflow

    if resume is not None and (value is not None or file is not None or instance_id is not None):
        refuse("--resume goes on with the input that the instance has; leave out --id, the JSON and --file")
    found = load_workflow(workflow)
    name = resume or instance_id or f"{found.name}-{secrets.token_hex(4)}"
    options = options_of(name, on_conflict, ignore_input, labels_of(labels))
    call = [] if resume else with_input(found, value, file, workflow)
    needs = load_deps(deps)
    with opened(db, create=not resume) as at, _runner(at, needs) as runner, _suspending(at, workflow, name):
        work = (lambda: runner.resume(found, name)) if resume else (lambda: runner.run(*call, **options))
        _run(at, workflow, name, work, watching=watching, as_json=as_json)


@contextmanager
def _runner(at: Open, deps: Any) -> Generator[CheckpointingRunner]:
    from stepwell.runtime.checkpointing import CheckpointingRunner

    with CheckpointingRunner(at.backend, deps=deps) as runner:
        yield runner


@contextmanager
def _suspending(at: Open, workflow: str, instance_id: str) -> Generator[None]:
    """Say how to go on if the user stops the run."""
    try:
        yield
    except KeyboardInterrupt:
        say("", f"Suspended: {instance_id} keeps all it has done. To go on:", err=True)
        say(f"  {at.command('run', workflow, '--resume', instance_id)}", err=True)
        sys.exit(INTERRUPTED)


def _run(at: Open, target: str, instance_id: str, work: Callable[[], Any], *, watching: bool, as_json: bool) -> None:
    try:
        with _watched(at, instance_id, watching and not as_json):
            output = work()
    except StepwellError as error:
        _ended(at, error, instance_id, target)
    from .values import as_stored

    shown = as_stored(at.backend.codec, output)
    say_json({"id": instance_id, "state": "completed", "output": shown} if as_json else shown)
    if not as_json:
        say(f"{instance_id} completed; see where its time went: {at.command('show', instance_id)}", err=True)


@contextmanager
def _watched(at: Open, instance_id: str, watching: bool) -> Generator[None]:
    if not watching:
        yield
        return
    from .watch import beside

    with beside(at, instance_id):
        yield


def _ended(at: Open, error: StepwellError, instance_id: str, target: str) -> NoReturn:
    """Say why there is no output: for the task's own error with the lines of its code."""
    mistake = told(error, instance_id)
    if isinstance(error, WorkflowFailed):
        _say_traceback(at, error)
        again = f"{at.command('retry', instance_id)} && {at.command('run', target, '--resume', instance_id)}"
        mistake = Mistake(f"{mistake.message}; to go on from there: {again}", mistake.code)
    raise mistake from error


def _say_traceback(at: Open, error: WorkflowFailed) -> None:
    attempts = at.client.attempts(error.instance_id, error.path) if error.path else []
    if attempts and (last := attempts[-1].error) is not None:
        for line in last.traceback.splitlines():
            say(line, err=True)
