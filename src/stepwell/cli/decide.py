"""``stepwell decide``: end a hold by saying what becomes of the step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from stepwell.types import Complete, Decision, Fail, Rerun

from .common import Open, by_option, database_option, instance_argument, json_option, opened, subcommand
from .mistakes import NOT_ALLOWED, refuse
from .page import Span, say, say_json, state_span

if TYPE_CHECKING:
    from stepwell.flow.workflow import AnyWorkflow


@subcommand(
    "decide",
    "stepwell decide pay-1 wire rerun",
    "stepwell decide pay-1 wire complete --value '\"the bank says it left\"' --by ann",
    "stepwell decide pay-1 wire fail --reason 'it did not leave'",
    "stepwell decide pay-1 '' rerun                # where the run itself is held",
)
@instance_argument
@click.argument("path", metavar="STEP")
@click.argument("choice", metavar="rerun|complete|fail", type=click.Choice(("rerun", "complete", "fail")))
@click.option("--value", metavar="JSON", help="With complete: the step's result; of a route, the name of a case.")
@click.option("--file", metavar="FILE", help="With complete: read the result from a file.")
@click.option("--reason", metavar="WHY", help="With fail: why it has failed.")
@click.option("--again", "loop", flag_value="again", help="With complete, in a loop: its step says Again(value).")
@click.option("--done", "loop", flag_value="done", help="With complete, in a loop: its step says Done(value).")
@click.option("--workflow", metavar="MODULE:WORKFLOW", help="The code: needed where the result is of a type of yours.")
@by_option
@database_option
@json_option
def command(
    instance_id: str,
    path: str,
    choice: str,
    value: str | None,
    file: str | None,
    reason: str | None,
    loop: str | None,
    workflow: str | None,
    by: str,
    db: str | None,
    as_json: bool,
) -> None:
    """Decide about a step that an instance is held for.

    rerun: do it again. complete: it was done, and this is its result. fail: it has failed, and no attempt follows.
    `stepwell explain ID` names the step and says why it is held.
    """
    from .loading import load_workflow

    if (value is not None or file is not None) and choice != "complete":
        refuse(f"--value and --file go with complete, not with {choice}")
    if choice != "fail" and reason is not None:
        refuse(f"--reason goes with fail, not with {choice}")
    code = load_workflow(workflow) if workflow else None
    with opened(db) as at:
        _check_held(at, instance_id)
        decision = _decision(at, instance_id, path, choice, (value, file), reason, loop or "", code)
        at.client.decide(instance_id, path, decision, by=by, workflow=code)
        status = at.client.status(instance_id)
    if as_json:
        from .as_data import status_data

        say_json(status_data(status))
    else:
        say([Span(instance_id, "bold"), Span("  "), state_span(status.state)])


def _check_held(at: Open, instance_id: str) -> None:
    status = at.client.status(instance_id)
    if status.state != "held":
        mend = f"{at.command('explain', instance_id)} says how it stands"
        refuse(
            f"instance {instance_id} is {status.state}, not held, so there is nothing to decide; {mend}", NOT_ALLOWED
        )


def _decision(
    at: Open,
    instance_id: str,
    path: str,
    choice: str,
    given: tuple[str | None, str | None],
    reason: str | None,
    loop: str,
    code: AnyWorkflow | None,
) -> Decision:
    from .sending import completed_with
    from .values import MISSING, read_json

    if choice == "rerun":
        return Rerun()
    if choice == "fail":
        return Fail(reason or refuse("fail needs --reason: what the run's error will say"))
    value = read_json(*given, "the value")
    if value is MISSING:
        refuse("complete needs the step's result: --value JSON (null, if it returns nothing)")
    return Complete(completed_with(at, instance_id, path, value, code, loop))
