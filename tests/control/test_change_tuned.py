"""Numbers that are in no fingerprint: a client decides by those of the newest code, in whatever process it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import stepwell
from stepwell import CheckpointingRunner, Flow, Retry, SqliteBackend
from stepwell.testing import VirtualClock

from .change_cells import Code
from .client_worlds import ID, World
from .test_change import another

HOUR_US = 3_600_000_000
SCRIPT = Path(__file__).with_name("client_elsewhere.py")


def waiting(code: Code, *, hours: int, turns: int = 10, attempts: int = 2) -> Any:
    """Return a workflow whose numbers differ and whose fingerprint does not."""
    step = code.body("last", retry=Retry(attempts))
    flow = Flow("tuned").signal("answer", int).delay("nap", f"{hours}h")
    return flow.loop(code.counts("count"), name="loop", max_iterations=turns).then(step).build()


def tuned(code: Code) -> Any:
    return waiting(code, hours=1, turns=20, attempts=5)


def due_in_hours(world: World) -> float:
    due_us = world.backend.header(ID).due_us
    return (due_us - world.clock.now_us()) / HOUR_US


def test_tuning_makes_no_new_graph() -> None:
    """So nothing moves, and nothing can be held for it."""
    assert waiting(Code(), hours=8).fingerprint == tuned(Code()).fingerprint


def test_a_client_decides_by_the_numbers_of_the_newest_code(world: World) -> None:
    """One that had read the old ones before, and knows no code."""
    code = Code()
    with another(world) as runner:
        runner.start(waiting(code, hours=8), instance_id=ID)
    world.client.explain(ID)
    with another(world) as runner:
        runner.start(tuned(code), instance_id="other")
    world.client.signal(ID, "answer", 7)
    assert due_in_hours(world) == 1


def test_a_client_process_decides_by_the_numbers_of_the_newest_code(tmp_path: Path) -> None:
    """A runner has seen the tuned code, whatever instance it worked on."""
    code, clock, path = Code(), VirtualClock(), tmp_path / "runs.db"
    with SqliteBackend(path) as backend:
        for workflow, instance_id in ((waiting(code, hours=8), ID), (tuned(code), "other")):
            with CheckpointingRunner(backend, clock=clock) as runner:
                runner.start(workflow, instance_id=instance_id)
        signal = json.dumps(["signal", [ID, "answer", 7], {}])
        environment = {**os.environ, "PYTHONPATH": str(Path(stepwell.__file__).parents[1])}
        subprocess.run([sys.executable, SCRIPT, path, signal], check=True, env=environment, stdout=subprocess.DEVNULL)
        header = backend.header(ID)
        assert header is not None
        assert header.due_us is not None
        assert header.due_us - header.updated_us == HOUR_US


def test_what_is_open_keeps_the_moment_that_was_recorded(world: World) -> None:
    """A delay that has begun does not become shorter."""
    code = Code()
    with another(world) as runner:
        runner.start(waiting(code, hours=8), instance_id=ID)
    world.client.signal(ID, "answer", 7)
    with another(world) as runner:
        runner.start(tuned(code), instance_id=ID)
    assert due_in_hours(world) == 8


def test_a_snapshot_brings_no_old_numbers_back(world: World) -> None:
    """The store's own plan is used for what is restored."""
    code = Code()
    with another(world) as runner:
        runner.start(waiting(code, hours=8), instance_id=ID)
        data = world.client.snapshot(ID)
        runner.start(tuned(code), instance_id="other")
    world.client.restore(data, instance_id="copy")
    world.client.signal("copy", "answer", 7)
    world.client.signal(ID, "answer", 7)
    assert due_in_hours(world) == 1
    assert world.backend.header("copy").due_us == world.backend.header(ID).due_us


def test_a_plan_keeps_its_number(world: World) -> None:
    """Moves go forward by it, so tuned old code is no newer code."""
    plans = [waiting(Code(), hours=hours).plan for hours in (8, 1, 8)]
    numbers = {world.backend.register(plan.name, plan.fingerprint, plan.to_bytes()) for plan in plans}
    assert len(numbers) == 1
    assert world.backend.plan(plans[0].fingerprint, "tuned") == plans[2].to_bytes()


#: what ran before has no recorded start, which the store's check would hold against the plan of now
UNCHECKED = pytest.mark.broken_store


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("at_least_once", "at_most_once", marks=UNCHECKED),
        ("at_most_once", "at_least_once"),
    ],
)
def test_another_delivery_holds_nothing_that_has_not_begun(world: World, before: str, after: str) -> None:
    """It is no part of a result, so what is done stays done, and what comes is done as the present code says."""
    code = Code()

    def made(delivery: Any) -> Any:
        step = code.body("first", delivery=delivery)
        return Flow("order").then(step).signal("answer", int).then(code.body("last", delivery=delivery)).build()

    with another(world) as runner:
        runner.start(made(before), 1, instance_id=ID)
    with another(world) as runner:
        assert runner.client.preview_change(made(after)) == []
        runner.start(made(after), 1, instance_id=ID)
        world.client.signal(ID, "answer", 5)
        assert runner.resume(made(after), ID) == 6
    assert {len(keys) for keys in code.runs.values()} == {1}


def test_a_start_that_was_recorded_counts_under_every_delivery(world: World) -> None:
    """Nobody knows whether it happened, whatever the code says by now: it is held, not run again."""
    code = Code()

    def made(delivery: Any) -> Any:
        return Flow("order").then(code.body("mid", dies=True, delivery=delivery)).build()

    for delivery in ("at_most_once", "at_least_once"):
        with another(world) as runner:
            try:
                status = runner.start(made(delivery), 1, instance_id=ID)
            except SystemExit:
                continue
    assert (status.state, len(code.runs["mid"])) == ("held", 1)
