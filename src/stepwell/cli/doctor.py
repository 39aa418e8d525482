"""``stepwell doctor``: check a database and what is in it, and name the next command for each finding."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Final

import click

from stepwell.backend.urls import Place
from stepwell.errors import BackendError

from .checks import Finding, Level, all_findings, unopened, worst
from .common import command_line, database_option, flags_of, json_option, opened, place_named, subcommand
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

    The file, or the server with its settings; schema, permissions, clock; whether journals and values can be read;
    instances that nothing moves, that no worker takes up, or that wait for a person; with code named, whether what is
    unfinished fits it. Nothing is mended, made or brought up to date. Exits with 1 if there is a problem, with 5 if the
    database cannot be used as it is.
    """
    from .loading import load_workflow

    served = [load_workflow(each) for each in workflows]
    place = place_named(db)
    findings: list[Finding] = []
    usable = False
    try:
        if usable := _looked_at(place, flags_of(db, place), findings, deep=deep):
            with opened(db) as at:
                findings += all_findings(at, served, deep=deep)
    except BackendError as error:
        usable = False
        findings.append(unopened(error, place.shown))
    level = worst(findings)
    code = (FAILED if level == "problem" or (strict and level == "note") else OK) if usable else NO_DATABASE
    if as_json:
        say_json({"database": place.shown, "worst": level, "findings": [f._asdict() for f in findings]})
    else:
        say(*_page(findings, usable, columns_of_terminal()))
    return code


def _looked_at(place: Place, flags: tuple[str, ...], findings: list[Finding], *, deep: bool) -> bool:
    """Look at the database itself. Returns whether a store can be opened there, which then changes nothing."""
    command = partial(command_line, flags)
    if place.kind == "postgresql":
        from stepwell.backend.postgres import check_driver

        check_driver()
        from .checks_server import server_findings

        return server_findings(place, command, now_us, findings)
    path = Path(place.target).absolute()
    if not path.is_file():
        return True  # which is refused with the reason
    from .checks_file import file_findings

    return file_findings(path, command, findings, deep=deep)


def now_us() -> int:
    return time.time_ns() // 1_000


def _page(findings: list[Finding], usable: bool, space: int) -> list[Line]:
    widest = max(len(finding.check) for finding in findings)
    lines: list[Line] = []
    for finding in findings:
        fancy, plain, style = _SIGNS[finding.level]
        head = [Span(f"{fancy if is_fancy() else plain} ", style), Span(f"{finding.check:<{widest}}  ", "bold")]
        lines += hanging(head, Span(finding.text), space)
        if finding.command:
            arrow = Span(" " * (widest + 4) + ("→ " if is_fancy() else "> "), "cyan")
            lines += hanging([arrow], Span(finding.command, "cyan"), space)
    left = [] if usable else [Span(" What is in the store was not looked at.")]
    return [*lines, [], [_sum(findings), *left]]


def _sum(findings: list[Finding]) -> Span:
    problems = sum(finding.level == "problem" for finding in findings)
    notes = sum(finding.level == "note" for finding in findings)
    if problems:
        return Span(f"{counted(problems, 'problem')} to mend.", "bold red")
    looks = f", with {counted(notes, 'thing')} to look at" if notes else ""
    return Span(f"Sound{looks}.", "bold green")
