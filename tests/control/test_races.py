"""Races of clients and runners about one instance: every interleaving by hand, and many by threads of each kind.

A race ends in one of the outcomes that it states, breaks no promise of the store, and runs no attempt's body twice.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .race_table import RACES
from .races import Arena, Race, Told, crossed, raced

ROUNDS = {"memory": 100, "sqlite": 100, "postgres": 12}  # a server takes ten times as long

TWO = [race for race in RACES if len(race.contestants) == 2]


def named(race: Race) -> str:
    return race.name.replace(" ", "-").replace(",", "")


@pytest.fixture
def arena(kind: str, tmp_path: Path) -> Iterator[Arena]:
    with ExitStack() as stack:
        yield Arena(kind, tmp_path / "race.db", stack)


def record(what: str, race: Race, arena: Arena, seen: Counter[Told]) -> None:
    """Say what was seen, for whoever runs this with ``-s``."""
    told = "; ".join(f"{count} x {' / '.join(outcome)}" for outcome, count in seen.most_common())
    never = "" if {race.first, race.second} <= seen.keys() else "  NEVER OVERLAPPED"
    sys.stdout.write(f"{what} {race.name} ({arena.kind}): {told}{never}\n")


@pytest.mark.parametrize("race", TWO, ids=named)
def test_one_call_inside_the_other(race: Race, arena: Arena) -> None:
    """Wherever one call falls into the other, the outcome is lawful; both plain orders are seen."""
    seen = crossed(race, arena, 0) + crossed(race, arena, 1)
    record("crossed", race, arena, seen)
    arena.check()
    assert {race.first, race.second} <= seen.keys()
    arena.settle()
    arena.check()


@pytest.mark.parametrize("race", RACES, ids=named)
def test_a_race_many_times(race: Race, arena: Arena) -> None:
    """Threads that leave a barrier together come to one lawful outcome each time."""
    seen = raced(race, arena, ROUNDS[arena.kind])
    record("raced", race, arena, seen)
    assert seen.total() == ROUNDS[arena.kind]
    arena.check()
    arena.settle()
    arena.check()
