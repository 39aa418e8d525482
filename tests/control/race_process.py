"""A process that races another one: ``python -m tests.control.race_process KIND PATH``.

It says that it is ready, and then for each line, the JSON of race, lane, instance id, moment and delay, what it was
told; when there is no more to read, which bodies have run in it.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from stepwell.testing import VirtualClock

from ..stores import open_store  # noqa: TID252 - the tests are not installed
from .history_flows import Ledger
from .race_table import RACES
from .races import Corner


def say(answer: object) -> None:
    print(json.dumps(answer), flush=True)  # noqa: T201  # the parent reads it


def main(kind: str, path: str) -> None:
    races = {race.name: race for race in RACES}
    with ExitStack() as stack:
        clock, ledger = VirtualClock(datetime(2030, 1, 1, tzinfo=UTC), jump=False), Ledger()
        backend = stack.enter_context(open_store(kind, Path(path), durability="fast"))
        corner = Corner(backend, clock, ledger, stack)
        say("ready")
        for line in sys.stdin:
            name, lane, instance_id, now_us, looks = json.loads(line)
            clock.advance((now_us - clock.now_us()) / 1e6)
            for _ in range(looks):
                backend.header("nobody")
            say(corner.told(races[name].contestants[lane], instance_id))
        say(ledger.calls)


if __name__ == "__main__":
    main(*sys.argv[1:])
