"""``stepwell result``: what an instance or one of its steps returned."""

from __future__ import annotations

import click

from .common import database_option, instance_argument, json_option, opened, subcommand
from .page import say_json


@subcommand(
    "result",
    "stepwell result order-42",
    "stepwell result order-42 --wait 30s | jq .number",
    "stepwell result order-42 parallel/charge",
)
@instance_argument
@click.argument("path", metavar="[STEP]", required=False)
@click.option("--wait", metavar="TIME", default="0", help="Wait so long for its end: 30s, 5m.  [default: do not wait]")
@database_option
@json_option
def command(instance_id: str, path: str | None, wait: str, db: str | None, as_json: bool) -> None:
    """Print what an instance, or one of its steps, returned, as JSON.

    It prints stored values, which no other command does unasked. Exits with 1 if the run failed or was cancelled, with
    6 if there is no result yet.
    """
    from .plainly import span_us
    from .values import plain

    with opened(db) as at:
        if path is not None:
            value = at.client.task_result(instance_id, path)
        else:
            value = at.client.result(instance_id, timeout=span_us(wait, "--wait") / 1e6)
    say_json({"id": instance_id, "step": path, "result": plain(value)} if as_json else plain(value))
