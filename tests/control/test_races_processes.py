"""The main races once more, between two processes on one store."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from .race_table import RACES
from .races import LATER_BY, Arena, Race, Told
from .test_races import named, record

ROUNDS = {"sqlite": 100, "postgres": 15}
MAIN = (
    "signal or timeout", "cancel or finish", "pause or finish", "cancel or pause", "retry or cancel",
    "decide or decide", "move or signal", "one signal twice", "purge or retry", "restore or start",
)  # fmt: skip


class Field:
    """An arena, and two processes on its store."""

    def __init__(self, kind: str, folder: Path, stack: ExitStack) -> None:
        self.arena, self.rounds = Arena(kind, folder / "race.db", stack), ROUNDS[kind]
        command = [sys.executable, "-m", "tests.control.race_process", kind, str(self.arena.path)]
        root = Path(__file__).parents[2]
        self.racers = [
            stack.enter_context(
                subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(2)
        ]
        for racer in self.racers:
            assert self.heard(racer) == "ready"

    @staticmethod
    def heard(racer: Any) -> Any:
        return json.loads(racer.stdout.readline())

    def race(self, race: Race) -> Counter[Told]:
        seen: Counter[Told] = Counter()
        for n in range(self.rounds):
            instance_id = f"{race.name} {n}"
            race.begin(self.arena, instance_id)
            for lane, racer in enumerate(self.racers):
                assert racer.stdin is not None
                looks = n % LATER_BY if n % 2 == lane else 0
                line = json.dumps([race.name, lane, instance_id, self.arena.clock.now_us(), looks])
                racer.stdin.write(f"{line}\n")
                racer.stdin.flush()
            seen[race.outcome(self.arena, instance_id, [self.heard(racer) for racer in self.racers])] += 1
        return seen

    def end(self) -> None:
        """Hear which bodies ran in the processes, and let them go."""
        for racer in self.racers:
            assert racer.stdin is not None
            racer.stdin.close()
            self.arena.ledger.calls += map(tuple, self.heard(racer))
            assert racer.wait(60) == 0


@pytest.fixture(scope="module", params=ROUNDS)
def field(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    """The same processes for all races; what they left is checked at their end."""
    if request.param == "postgres":
        request.getfixturevalue("postgres_server")
    with ExitStack() as stack:
        made = Field(request.param, tmp_path_factory.mktemp("races"), stack)
        yield made
        made.end()
        made.arena.settle()
        made.arena.check()


@pytest.mark.parametrize("race", [race for race in RACES if race.name in MAIN], ids=named)
def test_processes_race(race: Race, field: Field) -> None:
    """Two processes come to one lawful outcome each time."""
    seen = field.race(race)
    record("processes", race, field.arena, seen)
    field.arena.check()
    assert seen.total() == field.rounds
