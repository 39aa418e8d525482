"""What a store says in the end, and in the middle: read by a process of its own, past everything that runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from stepwell.backend.base import Filter, Header
from stepwell.engine import facts as f
from stepwell.flow.plan import Plan
from stepwell.testing.invariants import check_ledger, check_store

from .dying import Ledger

ONCE = (f.StepDone, f.RouteTaken, f.TimerFired, f.MessageTaken, f.ScopeDone, f.StepRefused)
OWNED = ("journal", "inbox", "agenda", "label", "received")
ORPHANS = " + ".join(f"(SELECT count(*) FROM {t} WHERE instance NOT IN (SELECT id FROM instance))" for t in OWNED)  # noqa: S608 - our own names


class Line(NamedTuple):
    """A line of :class:`.dying.Log`."""

    process: int
    phase: str
    instance: str
    run: int
    path: str
    attempt: int
    key: str

    @property
    def event(self) -> str:
        return {"start": "start", "end": "effect"}.get(self.phase, self.phase)


def lines_of(story: str) -> list[Line]:
    file = Path(f"{story}.log")
    rows = [row.split() for row in file.read_text().splitlines()] if file.exists() else []
    return [Line(int(n), phase, i, int(run), path, int(k), key) for n, phase, i, run, path, k, key in rows]


def glance(backend: Any, ledger: Ledger) -> dict[str, Any]:
    """Say what a dead process has left, without touching it."""
    return {"left": _stored(backend)}


def verdict(backend: Any, ledger: Ledger) -> dict[str, Any]:
    """Say what is stored in the end, and which promises it breaks, by the store alone and beside the ledger."""
    runs = {header.instance_id: header.run for header in backend.list(Filter())}
    lines = [line for line in lines_of(ledger.path) if line.run == runs.get(line.instance)]
    reports = check_store(backend), check_ledger(lines, backend)
    return {
        "stored": _stored(backend),
        "broken": [str(violation) for report in reports for violation in report.violations],
        "checked": sum(report.instances for report in reports),
    }


def _stored(backend: Any) -> dict[str, Any]:
    connection = backend.connect()
    try:
        tables = {name for (name,) in connection.execute(TABLES[isinstance(connection, apsw.Connection)])}
        users = {name: list(connection.execute(f"SELECT * FROM {name}")) for name in sorted(tables & USERS)}  # noqa: S608 - our own names
        (orphans,) = connection.execute(f"SELECT {ORPHANS}").fetchone() or (0,)
    finally:
        connection.close()
    return {
        "instances": {header.instance_id: _instance(backend, header) for header in backend.list(Filter())},
        "stuck": len(backend.stuck(2**62)),
        "orphans": orphans,
        **users,
    }


TABLES = (
    "SELECT tablename FROM pg_catalog.pg_tables WHERE schemaname = current_schema()",
    "SELECT name FROM sqlite_schema WHERE type = 'table'",
)
USERS = frozenset({"account", "booking", "purchase"})


def _instance(backend: Any, header: Header) -> dict[str, Any]:
    facts: Counter[str] = Counter()
    once: Counter[str] = Counter()
    done: Counter[str] = Counter()
    plan = Plan.from_bytes(backend.plan(header.fingerprint, header.workflow))
    entries = backend.history(header.instance, 0, 10_000)
    for entry in entries:
        for fact in f.decode(entry.facts):
            facts[type(fact).__name__] += 1
            if isinstance(fact, ONCE):  # a move renumbers, so a step is known by its graph too
                once[f"{facts['RunMoved']} {type(fact).__name__} {fact.node} {fact.turns}"] += 1
            if isinstance(fact, f.StepDone) and "RunMoved" not in facts:
                done[plan.path(fact.node, fact.turns)] += 1
    return {
        "state": header.state,
        "run": header.run,
        "mail": header.mail,
        "held_by": header.held_by,
        "whole": len(entries) == header.seq > 0,
        "facts": facts,
        "done": done,
        "twice": [name for name, times in once.items() if times > 1],
    }
