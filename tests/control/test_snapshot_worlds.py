"""Random workflows, cut off at a random commit, taken to a store of another kind and codec, and finished there."""

from __future__ import annotations

from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from stepwell import BackendError, CheckpointingRunner, JsonCodec, MsgpackCodec
from stepwell.engine import facts as f
from stepwell.flow.plan import Plan
from stepwell.runtime import snapshot_format as form
from stepwell.runtime.snapshot import restore_into, snapshot_of
from stepwell.testing import VirtualClock
from stepwell.testing.faults import Fault, FaultyBackend

from ..differential.worlds import INPUT, REPEATABLE, WAITS_MAX, Ledger, RealOracle, worlds  # noqa: TID252 - the tests are not installed
from ..stores import open_store  # noqa: TID252

KINDS = ["memory json", "memory msgpack", "sqlite json", "sqlite msgpack"]
SERVED = ["postgres json", "postgres msgpack"]
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def store(kind: str, folder: Path) -> Any:
    codec = JsonCodec() if kind.endswith("json") else MsgpackCodec()
    return open_store(kind.split()[0], folder / f"{kind}.db", codec=codec)


def strike() -> None:
    raise BackendError("interrupted here")


@settings(max_examples=120, suppress_health_check=QUIET)
@given(
    made=worlds(tasks=REPEATABLE),
    kinds=st.permutations(KINDS),
    when=st.sampled_from(["before", "after"]),
    nth=st.integers(1, 12),
)
def test_a_run_that_is_cut_off_is_finished_elsewhere(
    tmp_path_factory: pytest.TempPathFactory, made: Any, kinds: list[str], when: Any, nth: int
) -> None:
    """Law: the output is the same, and of all calls only those that were open are made a second time."""
    cut_off_and_finished(tmp_path_factory, made, kinds, when, nth)


@settings(max_examples=10, suppress_health_check=QUIET)
@given(
    made=worlds(tasks=REPEATABLE),
    kinds=st.permutations((*SERVED, "memory json", "sqlite msgpack")).filter(lambda kinds: {*kinds[:2]} & {*SERVED}),
    when=st.sampled_from(["before", "after"]),
    nth=st.integers(1, 12),
)
@pytest.mark.usefixtures("postgres_server")
def test_a_run_that_is_cut_off_is_finished_on_or_off_a_server(
    tmp_path_factory: pytest.TempPathFactory, made: Any, kinds: list[str], when: Any, nth: int
) -> None:
    """The same to PostgreSQL, from it, and between two schemas."""
    cut_off_and_finished(tmp_path_factory, made, kinds, when, nth)


def cut_off_and_finished(
    tmp_path_factory: pytest.TempPathFactory, made: Any, kinds: list[str], when: Any, nth: int
) -> None:
    oracle = RealOracle("message")
    output = oracle.run(made, INPUT)
    assume(oracle.waits.total() <= WAITS_MAX)
    clock, ledger, folder = VirtualClock(), Ledger(), tmp_path_factory.mktemp("moved")
    ledger.prepare(None, oracle.waits, breaking=False)
    here, there = (store(kind, folder) for kind in kinds[:2])
    with closing(here), closing(there):
        with runner_on(FaultyBackend(here, [Fault(when, "commit", nth)], strike), clock, ledger) as runner:
            with suppress(BackendError):
                assert runner.run(made, *given_to(made), instance_id="i") == output
            data, before = snapshot_of(runner._room, "i"), ledger.calls.copy()
        with runner_on(there, clock, ledger) as runner:
            restore_into(runner._room, data, None)
            assert runner.run(made, *given_to(made), instance_id="i") == output
        assert not there.stuck(clock.now_us())
    assert set(ledger.calls) == set(oracle.done)
    assert max(ledger.calls.values()) <= 2
    assert finished(data).isdisjoint((name, turns) for name, turns, *_ in ledger.calls - before)


def given_to(made: Any) -> tuple[Any, ...]:
    return (INPUT,) if made.has_input else ()


def runner_on(backend: Any, clock: VirtualClock, ledger: Ledger) -> CheckpointingRunner:
    runner = CheckpointingRunner(backend, deps={Ledger: ledger}, clock=clock, threads=4)
    ledger.client = runner.client
    return runner


def finished(data: bytes) -> set[tuple[str, Any]]:
    """Return the steps that are done according to a snapshot."""
    snapshot, _ = form.read(data)
    (plan,) = map(Plan.from_bytes, snapshot.plans)
    heads = [f.decode(row.facts)[0] for row in snapshot.entries]
    return {(plan.nodes[head.node].name, head.turns) for head in heads if isinstance(head, f.StepDone)}
