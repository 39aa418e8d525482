"""``stepwell tree``: one instance as a tree of its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .common import Open, database_option, instance_argument, json_option, opened, subcommand, times_of, utc_option
from .page import Line, Span, columns_of_terminal, hanging, is_fancy, say, say_json

if TYPE_CHECKING:
    from .steps import Run
    from .times import Times


@subcommand(
    "tree", "stepwell tree order-42", "stepwell tree order-42 --all", "stepwell watch order-42    # the same, live"
)
@instance_argument
@click.option("--all", "every", is_flag=True, help="Every turn of loops and every branch of wide forks.")
@database_option
@utc_option
@json_option
def command(instance_id: str, every: bool, db: str | None, utc: bool, as_json: bool) -> None:
    """Show one instance as a tree of its steps.

    Each line has a step, how it stands, how long it took or has been at it, and what it waits for. The last line says
    what would move the instance, if it does not move by itself.
    """
    from .steps import read_run

    with opened(db) as at:
        run = read_run(at.room, instance_id)
        if as_json:
            from .as_data import run_data

            say_json(run_data(run))
        else:
            say(*picture(at, run, times_of(utc), columns_of_terminal(), every=every))


def picture(at: Open, run: Run, times: Times, space: int, *, every: bool = False) -> list[Line]:
    """Return the head, the tree, and what would move the instance."""
    from . import picture as p

    return [*p.head(run, times, space), *p.tree(run, times, space, every=every), *_next(at, run, times, space)]


def _next(at: Open, run: Run, times: Times, space: int) -> list[Line]:
    """Say what would move an instance that does not move by itself."""
    if run.shown_state == "completed" or run.header.session:
        return []
    from .plainly import Sayer

    explanation = at.client.explain(run.header.instance_id)
    sayings = Sayer(at, explanation, times).all()
    commands = [command for saying in sayings for command in saying.commands]
    arrow = "→ " if is_fancy() else "> "
    lines = [line for each in commands[:3] for line in hanging([Span(arrow, "cyan")], Span(each, "cyan"), space)]
    return [[], *lines] if lines else []
