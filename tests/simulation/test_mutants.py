"""Each planted mistake is found by the simulation; one that is not would show what it cannot see."""

from __future__ import annotations

import pytest

from .mutants import MUTANTS, Mutant
from .schedule import tell

SEEDS_MAX = 60


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_planted_mistake_is_found(mutant: Mutant) -> None:
    """Within a bounded number of schedules a promise is seen to be broken."""
    with mutant.planted():
        for seed in range(mutant.seed, mutant.seed + SEEDS_MAX):
            told = tell(seed, workflows=mutant.workflows, kinds=mutant.kinds, meddling=mutant.meddling)
            if told.violations:
                return
    pytest.fail(f"{SEEDS_MAX} schedules and nothing seen of it: {mutant.name}")
