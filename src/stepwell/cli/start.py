"""``stepwell start``: create an instance for whoever runs its workflow next."""

from __future__ import annotations

import click

from .common import database_option, json_option, labels_of, labels_option, opened, subcommand
from .page import say, say_json

POLICIES = ("fail", "use_existing", "terminate_existing", "restart_if_failed")


@subcommand(
    "start",
    'stepwell start shop.py:checkout \'{"sku": "pens"}\' --id order-42 --label customer=ann',
    "stepwell start shop:checkout --file order.json",
    "cat order.json | stepwell start shop:checkout -",
)
@click.argument("workflow", metavar="MODULE:WORKFLOW")
@click.argument("value", metavar="[JSON]", required=False)
@click.option("--file", metavar="FILE", help="Read the input from a file.")
@click.option("--id", "instance_id", metavar="ID", help="Name the instance; by default it gets a fresh id.")
@click.option(
    "--on-conflict", type=click.Choice(POLICIES), help="What to do if the id exists.  [default: use_existing]"
)
@click.option("--ignore-input", is_flag=True, help="Attach to what exists even if its input was another one.")
@labels_option("A label to find the instance by; may be repeated.")
@click.option("--lane", metavar="LANE", help="Where --max-running of a worker holds for each lane by itself.")
@database_option
@json_option
def command(
    workflow: str,
    value: str | None,
    file: str | None,
    instance_id: str | None,
    on_conflict: str | None,
    ignore_input: bool,
    labels: tuple[str, ...],
    lane: str | None,
    db: str | None,
    as_json: bool,
) -> None:
    """Create an instance for a worker, and return at once.

    The input is JSON: an argument, a file, or standard input (-). It is converted to the type that the workflow
    declares. Starting an id that exists attaches to it, unless --on-conflict says otherwise.
    """
    from .inputs import options_of, with_input
    from .loading import load_workflow

    found = load_workflow(workflow)
    call = with_input(found, value, file, workflow)
    options = options_of(instance_id, on_conflict, ignore_input, labels_of(labels), lane)
    with opened(db, create=True) as at:
        status = at.client.start(*call, **options)
        if as_json:
            from .as_data import status_data

            say_json(status_data(status))
        else:
            say(f"{status.instance_id}  {status.state}")
            say(f"A worker runs it: {at.command('worker', workflow)}", err=True)
