"""The job that ``stepwell demo`` runs and kills: a survey of the standard library's own source code.

It reads as any program would. What makes it durable is the last function: a runner over a SQLite file. The ``ledger``
is no part of that; it is the demo's witness, which tells from outside what ran how often.

Run it by hand, kill it, run it again::

    python -m stepwell.cli.demo_job FOLDER [MODULES]
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from stepwell import (
    Again,
    CheckpointingRunner,
    Done,
    SqliteBackend,
    delay,
    inject,
    loop,
    parallel,
    route,
    task,
    workflow,
)
from stepwell.cli import demo_report, demo_source
from stepwell.cli.demo_source import Function, Module, Size
from stepwell.cli.ledger import Ledger

INSTANCE: Final = "survey"
PARALLEL: Final = "analyse"
MODULES: Final = 600
BATCHES_MAX: Final = 12
OVERLONG: Final = 200  # lines; a function beyond this does not fit on any screen


@dataclass(frozen=True)
class Job:
    """What to survey, and where the report goes."""

    modules: int
    report: str


@dataclass(frozen=True)
class Totals:
    """Where the loop over batches stands: the next module to read, and what was found so far."""

    cursor: int = 0
    functions: int = 0
    longest: tuple[Function, ...] = ()


class Verdict(Enum):
    """The finding that the job routes on."""

    OVERLONG = "overlong"
    TIDY = "tidy"


@dataclass(frozen=True)
class Finding:
    """What the loop ends with."""

    totals: Totals
    verdict: Verdict


def batch_size(modules: int) -> int:
    """Return how many modules one turn of the loop reads; at least ten, so that a turn is worth a checkpoint."""
    return max(10, -(-modules // BATCHES_MAX))


@task
def list_modules(job: Job, *, ledger: Ledger = inject()) -> list[Module]:
    with ledger.step() as note:
        modules = demo_source.find_modules(job.modules)
        note(f"{len(modules)} modules")
        return modules


@task
def map_imports(modules: list[Module], *, ledger: Ledger = inject()) -> dict[str, int]:
    with ledger.step() as note:
        imported = Counter(name for module in modules for name in demo_source.imports_of(module))
        note(f"{imported.total():,} imports, most of {imported.most_common(1)[0][0]}")
        return dict(imported.most_common(10))


@task
def count_lines(modules: list[Module], *, ledger: Ledger = inject()) -> Size:
    with ledger.step() as note:
        size = sum(map(demo_source.size_of, modules), Size())
        note(f"{size.lines:,} lines, {size.prose:.0%} of them prose")
        return size


@task
def find_packages(modules: list[Module], *, ledger: Ledger = inject()) -> dict[str, int]:
    with ledger.step() as note:
        packages = Counter(module.name.partition(".")[0] for module in modules)
        note(f"{len(packages)} packages, largest {packages.most_common(1)[0][0]}")
        return dict(packages.most_common(5))


@task
def read_batch(so_far: Totals, modules: list[Module], *, ledger: Ledger = inject()) -> Again[Totals] | Done[Finding]:
    with ledger.step() as note:
        end = so_far.cursor + batch_size(len(modules))
        found = [f for module in modules[so_far.cursor : end] for f in demo_source.functions_in(module)]
        longest = sorted([*so_far.longest, *found], key=lambda f: (-f.lines, f.module, f.line))[:10]
        totals = Totals(end, so_far.functions + len(found), tuple(longest))
        note(f"{totals.functions:,} functions so far")
    if end < len(modules):
        return Again(totals)
    overlong = bool(longest) and longest[0].lines > OVERLONG
    return Done(Finding(totals, Verdict.OVERLONG if overlong else Verdict.TIDY))


@task
def dissect(finding: Finding, modules: list[Module], *, ledger: Ledger = inject()) -> str:
    with ledger.step() as note:
        longest = finding.totals.longest[0]
        depth = demo_source.deepest_nesting(longest, modules)
        note(f"{longest.name}: {longest.lines} lines")
        return demo_report.dissection(longest, depth, OVERLONG)


@task
def commend(finding: Finding, *, ledger: Ledger = inject()) -> str:
    with ledger.step() as note:
        note("no function is overlong")
        return f"None of the {finding.totals.functions:,} functions is longer than {OVERLONG} lines."


@task
def write_report(
    job: Job,
    modules: list[Module],
    size: Size,
    imports: dict[str, int],
    packages: dict[str, int],
    finding: Finding,
    remark: str,
    *,
    ledger: Ledger = inject(),
) -> str:
    with ledger.step() as note:
        totals = finding.totals
        text = demo_report.report(len(modules), size, imports, packages, totals.functions, totals.longest, remark)
        demo_report.save(Path(job.report), text)
        note(f"{Path(job.report).name}, {len(text.splitlines())} lines")
        return job.report


@workflow
def survey(job: Job) -> str:
    modules = list_modules(job)
    with parallel(PARALLEL):
        packages = find_packages(modules)
        imports = map_imports(modules)
        size = count_lines(modules)
    finding = loop(lambda so_far: read_batch(so_far, modules), Totals(), max_iterations=100, name="batches")
    delay("1s", name="a-moment")
    remark = route(
        finding.verdict,
        {Verdict.OVERLONG: lambda: dissect(finding, modules), Verdict.TIDY: lambda: commend(finding)},
        name="verdict",
    )
    return write_report(job, modules, size, imports, packages, finding, remark)


def run(folder: Path, modules: int = MODULES) -> str:
    """Run the survey in a folder, or go on with the one that was begun there; return the report's path."""
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.begin(INSTANCE)
    with CheckpointingRunner(SqliteBackend(folder / "jobs.db"), deps={Ledger: ledger}) as runner:
        report = runner.run(survey, Job(modules, str(folder / "report.md")), instance_id=INSTANCE)
    ledger.end(INSTANCE)
    return report


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore", SyntaxWarning)  # the library's own, of which its readers hear enough
    warnings.simplefilter("ignore", DeprecationWarning)
    run(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
