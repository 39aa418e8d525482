"""``stepwell graph``: a workflow drawn as text, Mermaid or SVG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .common import InstanceId, database_option, json_option, opened, subcommand
from .mistakes import refuse
from .page import is_fancy, say, say_json

if TYPE_CHECKING:
    from stepwell.flow.plan import Plan

    from .steps import Run

FORMATS = ("text", "mermaid", "svg")


@subcommand(
    "graph",
    "stepwell graph shop.py:checkout",
    "stepwell graph shop.py:checkout --format svg --output checkout.svg",
    "stepwell graph --instance order-42 --format svg > order-42.svg    # coloured by state; needs no code",
)
@click.argument("workflow", metavar="[MODULE:WORKFLOW]", required=False)
@click.option("--instance", metavar="ID", type=InstanceId(), help="Draw the graph that this instance goes by.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", show_default=True, help="What to draw.")
@click.option("--output", metavar="FILE", help="Write to a file.")
@database_option
@json_option
def command(
    workflow: str | None, instance: str | None, form: str, output: str | None, db: str | None, as_json: bool
) -> None:
    """Draw a workflow as text, Mermaid or SVG.

    The code is imported, or with --instance the graph is read from the database, where it is kept with the instance.
    """
    if (workflow is None) == (instance is None):
        refuse("name either a workflow, as shop.py:checkout, or --instance ID")
    run = _run(instance, db) if instance is not None else None
    plan = run.plan if run is not None else _plan(workflow or "")
    drawn = _drawn(plan, run, form)
    if output is not None:
        _write(output, drawn)
    elif as_json:
        say_json({"workflow": plan.name, "fingerprint": plan.fingerprint, "format": form, "drawing": drawn})
    else:
        say(*drawn.rstrip("\n").split("\n"))


def _plan(target: str) -> Plan:
    from .loading import load_workflow

    return load_workflow(target).plan


def _run(instance: str, db: str | None) -> Run:
    from .steps import read_run

    with opened(db) as at:
        return read_run(at.room, instance)


def _drawn(plan: Plan, run: Run | None, form: str) -> str:
    from stepwell.flow import draw

    if form == "mermaid":
        return draw.mermaid(plan)
    if form == "svg":
        from .svg import svg

        return svg(plan, _states(run) if run is not None else {})
    text = draw.text(plan)
    return text if is_fancy() else text.translate(_ASCII)


_ASCII = str.maketrans("├└─│", "|`-|")


def _states(run: Run) -> dict[int, str]:
    """Return how each node stands, in its last turn."""
    from .steps import state_of

    named = {"closing": "running", "retries": "failed"}
    found = {node: state_of(run, node, turns) for node, turns in sorted(run.steps)}
    return {node: named.get(state, state) for node, state in found.items() if state}


def _write(output: str, drawn: str) -> None:
    try:
        Path(output).write_text(drawn if drawn.endswith("\n") else drawn + "\n", encoding="utf-8")
    except OSError as error:
        refuse(f"{output} cannot be written: {error.strerror}")
