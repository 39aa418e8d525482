"""What the checks have found once."""

from __future__ import annotations

import pytest

from stepwell import BackendError, CheckpointingRunner, InMemoryBackend, task
from stepwell.testing.faults import Fault, FaultyBackend
from stepwell.testing.invariants import check_store


@task
def double(x: int) -> int:
    return 2 * x


def test_the_end_that_is_stored_while_leaving_is_an_end_in_the_row_too() -> None:
    """The last commit fails, and the runner stores what it has as it goes: journal and row must say the same (S6)."""

    def strike() -> None:
        raise BackendError("the disk is on fire")

    store = InMemoryBackend()
    faulty = FaultyBackend(store, [Fault("before", "commit", 1)], strike)
    with CheckpointingRunner(faulty) as runner, pytest.raises(BackendError):
        runner.run(double, 21, instance_id="i")
    header = store.header("i")
    assert header is not None
    assert header.seq == 2
    assert header.state == "completed"
    assert check_store(store).ok
