"""A worker that was stopped for longer than its lease wakes up in the middle of a step that another has finished."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .bank import patience
from .harness import Chaos


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
@pytest.mark.parametrize("names", ["ab", "aa"], ids=["other-name", "same-name"])
def test_what_a_zombie_brings_is_refused(begin: Callable[..., Chaos], tmp_path: Path, kind: str, names: str) -> None:
    """Its name makes no difference; and it works again after that."""
    chaos, go = begin(kind), tmp_path / "go"
    zombie = chaos.hire(names[0])
    chaos.client.start(patience, str(go), instance_id="z")
    chaos.until(lambda: [line for line in chaos.lines() if line.pid == zombie.pid], "the zombie's body has begun")
    other = chaos.hire(names[1])
    with chaos.stopped(zombie):
        chaos.until(lambda: {line.pid for line in chaos.lines()} >= {other.pid}, "the other has begun the step too")
        go.touch()
        chaos.until(lambda: chaos.client.status("z").finished, "the other has finished it")
        told, journal = chaos.client.result("z"), chaos.client.history("z")
    chaos.until(
        lambda: {line.pid for line in chaos.lines() if line.event == "effect"} == {zombie.pid, other.pid},
        "the zombie's body has ended too",
    )
    chaos.dismiss(other)
    chaos.client.start(patience, str(go), instance_id="y")
    chaos.until(lambda: chaos.client.status("y").finished, "the zombie works again")
    assert (chaos.client.result("z"), chaos.client.history("z")) == (told, journal)
    assert told != chaos.client.result("y")
    assert [line.pid for line in chaos.lines() if line.instance == "y"] == [zombie.pid] * 2
    chaos.judge()
