"""Tell one schedule again: ``python -m tests.simulation.replay SEED [--only 3,17] [--lines 80] [--shrink]``."""

from __future__ import annotations

import argparse
import sys
import traceback

from .schedule import shown, shrink, tell


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--only", default="")
    parser.add_argument("--lines", type=int, default=80)
    parser.add_argument("--shrink", action="store_true")
    given = parser.parse_args()
    only = None if not given.only else [int(each) for each in given.only.split(",") if each != "none"]
    told = tell(given.seed, only=only)
    kept = [fault.nth for fault in told.faults]
    if told.violations and given.shrink:
        kept, told = shrink(given.seed, told)
    sys.stdout.write(shown(told, kept, given.lines) + "\n")
    if told.error is not None:
        traceback.print_exception(told.error, file=sys.stdout)
    return bool(told.violations)


if __name__ == "__main__":
    sys.exit(main())
