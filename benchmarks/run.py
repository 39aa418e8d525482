"""Measure stepwell beside the raw driver and beside its peers, in one run. See README.md for what is measured and how.

python benchmarks/run.py [--rows a,c,d] [--rounds N] [--quick] [--json out.json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from contest import Contestant, Result, contestants
from imports import import_ms
from machine import describe, sync_cost
from report import OURS, RAW, Case, Line, Rounds, as_json, line_of, table, troubles
from rows import Row, rows
from server import running, version

MODULES = {
    OURS: ("ours", "ours_postgres", "fleet"),
    RAW: ("bare", "bare_postgres"),
    "sayiir": ("peer_sayiir", "sayiir_postgres"),
    "dbos": ("peer_dbos", "dbos_postgres"),
    "pgqueuer": ("peer_pgqueuer",),
}
PEERS = [name for name in MODULES if name not in (OURS, RAW)]
SLOW = frozenset({"dbos"})
SLOW_ROUNDS = 3
FOOT = """\
to raw: ours / raw, or our share of raw where more is better. lead: how many times better ours is than that peer.
Both are medians of the ratios within each round; the other figures are medians over the rounds."""
STATEMENTS = {  # what a user writes first
    "IMPORT": {OURS: "import stepwell", "sayiir": "import sayiir", "dbos": "import dbos"},
    "IMPORT_DURABLE": {
        OURS: "from stepwell import CheckpointingRunner, SqliteBackend, task, workflow",
        "sayiir": "import sayiir",
        "dbos": "from dbos import DBOS",
    },
}


def say(text: str = "") -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def needs_server(case: Case) -> bool:
    return case[0].endswith("_postgres")


def measure(contestant: Contestant, method: str, size: int, no_server: str) -> Result:
    if no_server and needs_server((method, size)):
        return Result({}, no_server)
    if method not in STATEMENTS:
        return contestant.measure(method, size)
    statement = STATEMENTS[method].get(contestant.name)
    if statement is None or contestant.absent:
        return Result({}, contestant.absent or "-")
    return Result({"": import_ms(statement)})


def contest(cases: Sequence[Case], taking_part: Sequence[Contestant], count: int, no_server: str) -> Rounds:
    """Go through all cases ``count`` times; in each case the contestants take turns."""
    found: dict[Case, dict[str, list[Result]]] = {case: defaultdict(list) for case in cases}
    for number in range(count):
        began = time.monotonic()
        for case in cases:
            for contestant in taking_part:
                skipped = contestant.name in SLOW and number >= SLOW_ROUNDS
                found[case][contestant.name].append(Result({}) if skipped else measure(contestant, *case, no_server))
        say(f"  round {number + 1}: {time.monotonic() - began:.0f} s")
    return found


def cases_of(chosen: Sequence[Row]) -> list[Case]:
    """Return each measurement once, though several rows may show it."""
    wanted = [(row.method, size) for row in chosen for size in (row.base, row.size) if size is not None]
    return list(dict.fromkeys(wanted))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="letters of the rows, such as a,c,d; default: all")
    parser.add_argument("--rounds", type=int, default=5, help=f"slow peers take part in the first {SLOW_ROUNDS}")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, two rounds: does it work, not how fast")
    parser.add_argument("--without", default="", help="contestants to leave out, such as dbos")
    parser.add_argument("--cap", type=float, default=90.0, help="seconds after which one measurement is cut")
    parser.add_argument("--dir", default=None, help="where the database files lie; default: the temporary folder")
    parser.add_argument("--json", default=None, help="write every round, median and ratio to this file")
    return parser.parse_args()


def chosen_rows(options: argparse.Namespace) -> list[Row]:
    letters = set(filter(None, options.rows.split(",")))
    known = rows(options.quick)
    there = {row.key for row in known}
    if unknown := letters - there:
        raise SystemExit(f"there is no row {', '.join(sorted(unknown))}; there are {', '.join(sorted(there))}")
    return [row for row in known if not letters or row.key in letters]


def main() -> None:
    options, left_out = (given := arguments()), set(given.without.split(","))
    chosen, count = chosen_rows(options), min(options.rounds, 2) if options.quick else options.rounds
    modules = {name: module for name, module in MODULES.items() if name not in left_out}
    with tempfile.TemporaryDirectory(dir=options.dir, ignore_cleanup_errors=True) as folder:
        machine, cases = describe(Path(folder)), cases_of(chosen)
        with running(any(map(needs_server, cases)), options.dir) as no_server:
            if not no_server:
                machine["server"] = version()
            with contestants(modules, Path(folder), options.cap) as taking_part:
                say(f"{len(cases)} measurements, {count} rounds of {', '.join(modules)}")
                rounds = contest(cases, taking_part, count, no_server)
        machine["flush after"] = sync_cost(Path(folder))
    lines = [line_of(row, rounds) for row in chosen]
    show(machine, lines, [name for name in PEERS if name in modules])
    if options.json:
        document = {"machine": machine, "rounds": count, "quick": options.quick, "lines": list(map(as_json, lines))}
        Path(options.json).write_text(json.dumps(document, indent=1))


def show(machine: dict[str, str], lines: Sequence[Line], peers: Sequence[str]) -> None:
    say()
    for name, text in machine.items():
        say(f"{name + ':':<13}{text}")
    say()
    say(table(lines, peers))
    say()
    say(FOOT)
    for text in troubles(lines):
        say(f"! {text}")


if __name__ == "__main__":
    main()
