"""``stepwell doctor``: check a database and what is in it, and name the next command for each finding."""

from __future__ import annotations

from typing import Final

import click

from stepwell.errors import BackendError

from .checks import Finding, Level, all_findings, unopened, worst
from .common import database_option, json_option, opened, place_named, subcommand
from .mistakes import FAILED, NO_DATABASE, OK
from .page import Line, Span, columns_of_terminal, hanging, is_fancy, say, say_json
from .text import counted

_SIGNS: Final[dict[Level, tuple[str, str, str]]] = {
    "ok": ("✓", "+", "green"),
    "note": ("!", "!", "yellow"),
    "problem": ("✗", "x", "bold red"),
}


@subcommand(
    "doctor",
    "stepwell doctor",
    "stepwell doctor shop.py:checkout shop.py:refund    # does what is unfinished fit this code?",
    "stepwell doctor --deep --json",
)
@click.argument("workflows", metavar="[MODULE:WORKFLOW]...", nargs=-1)
@click.option("--deep", is_flag=True, help="Read everything; by default the 200 newest instances.")
@click.option("--strict", is_flag=True, help="Exit with 1 for notes as well.")
@database_option
@json_option
def command(workflows: tuple[str, ...], deep: bool, strict: bool, db: str | None, as_json: bool) -> int:
    """Check the database and all that is in it.

    The file and its schema, permissions, clock; whether journals and values can be read; instances that nothing moves,
    that no worker takes up, or that wait for a person; with code named, whether what is unfinished fits it. Nothing is
    changed. Exits with 1 if there is a problem, with 5 if the database cannot be used.
    """
    from .loading import load_workflow

    served = [load_workflow(each) for each in workflows]
    place = place_named(db)
    findings: list[Finding] = []
    code = OK
    try:
        with opened(db) as at:
            findings += all_findings(at, served, deep=deep)
    except BackendError as error:
        findings.append(unopened(error, place.shown))
        code = NO_DATABASE
    level = worst(findings)
    code = code or (FAILED if level == "problem" or (strict and level == "note") else OK)
    if as_json:
        say_json({"database": place.shown, "worst": level, "findings": [f._asdict() for f in findings]})
    else:
        say(*_page(findings, columns_of_terminal()))
    return code


def _page(findings: list[Finding], space: int) -> list[Line]:
    widest = max(len(finding.check) for finding in findings)
    lines: list[Line] = []
    for finding in findings:
        fancy, plain, style = _SIGNS[finding.level]
        head = [Span(f"{fancy if is_fancy() else plain} ", style), Span(f"{finding.check:<{widest}}  ", "bold")]
        lines += hanging(head, Span(finding.text), space)
        if finding.command:
            arrow = Span(" " * (widest + 4) + ("→ " if is_fancy() else "> "), "cyan")
            lines += hanging([arrow], Span(finding.command, "cyan"), space)
    return [*lines, [], [_sum(findings)]]


def _sum(findings: list[Finding]) -> Span:
    problems = sum(finding.level == "problem" for finding in findings)
    notes = sum(finding.level == "note" for finding in findings)
    if problems:
        return Span(f"{counted(problems, 'problem')} to mend.", "bold red")
    looks = f", with {counted(notes, 'thing')} to look at" if notes else ""
    return Span(f"Sound{looks}.", "bold green")
