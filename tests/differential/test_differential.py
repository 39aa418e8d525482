"""One graph, every runner, store and codec: the same output, the same calls, also when it fails or is interrupted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from stepwell import (
    AsyncCheckpointingRunner,
    AsyncInProcessRunner,
    BackendError,
    CheckpointingRunner,
    InMemoryBackend,
    InProcessRunner,
    JsonCodec,
    MsgpackCodec,
    SqliteBackend,
    WorkflowFailed,
)
from stepwell.flow.workflow import Workflow
from stepwell.runtime.control import Control
from stepwell.testing import VirtualClock
from stepwell.testing.faults import Fault, FaultyBackend

from ..engine.graphs import Seeded  # noqa: TID252 - the tests are not installed
from ..postgres import Server  # noqa: TID252 - the tests are not installed
from ..stores import open_store  # noqa: TID252 - the tests are not installed
from .worlds import ALL, INPUT, REPEATABLE, WAITS_MAX, Broken, Ledger, RealOracle, grow, worlds

QUIET = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
)

Made = Workflow[Any, Any]


class Impatient(VirtualClock):
    """Says at once where a call would wait for ever."""

    def timeout_s(self, wait: Any) -> float | None:
        assert wait.busy or wait.until_us is not None, "nothing can move this run any more"
        return super().timeout_s(wait)


class Way:
    """One way to run a workflow: a runner with its own ledger, used for every graph."""

    def __init__(self, name: str, runner: Any, ledger: Ledger, wait: Callable[[Any], Any]) -> None:
        self.name, self.runner, self.ledger, self.wait = name, runner, ledger, wait

    def run(self, made: Made, waits: Counter[str], breaking: bool = False) -> Any:
        self.ledger.prepare(client_of(self.runner), waits, breaking)
        return self.wait(self.runner.run(made, *given_to(made)))


def client_of(runner: Any) -> Control:
    """A client whose calls return when they are done, as bodies need it, also of an async runner."""
    return Control(runner._room)


def given_to(made: Made) -> tuple[Any, ...]:
    return (INPUT,) if made.has_input else ()


def stores(folder: Any) -> dict[str, Callable[[], Any]]:
    """Every store with every codec; they are made when asked for."""
    return {
        "memory json": lambda: InMemoryBackend(JsonCodec()),
        "memory msgpack": lambda: InMemoryBackend(MsgpackCodec()),
        "sqlite json": lambda: SqliteBackend(folder / "json.db", durability="fast", codec=JsonCodec()),
        "sqlite msgpack": lambda: SqliteBackend(folder / "msgpack.db", durability="fast", codec=MsgpackCodec()),
        "postgres json": lambda: open_store("postgres", folder / "json", durability="fast", codec=JsonCodec()),
        "postgres msgpack": lambda: open_store("postgres", folder / "msgpack", durability="fast", codec=MsgpackCodec()),
    }


#: a server takes several times as long, so each kind of runner has it with one codec
SAMPLED = {("CheckpointingRunner", "postgres msgpack"), ("AsyncCheckpointingRunner", "postgres json")}


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory, postgres_server: Server) -> Iterator[list[Way]]:
    """Fourteen ways."""
    made: list[Way] = []
    with asyncio.Runner() as loop, ExitStack() as stack:

        def add(name: str, kind: Any, *args: Any, **options: Any) -> None:
            ledger = Ledger()
            runner = kind(*args, deps={Ledger: ledger}, clock=Impatient(), threads=4, **options)
            asynchronous = kind in (AsyncInProcessRunner, AsyncCheckpointingRunner)
            wait = loop.run if asynchronous else as_it_is
            stack.callback(lambda: wait(runner.close()))
            made.append(Way(name, runner, ledger, wait))

        add("in process", InProcessRunner)
        add("in process, isolated, json", InProcessRunner, isolate=True)
        add("in process, isolated, msgpack", InProcessRunner, isolate=True, codec=MsgpackCodec())
        add("async in process", AsyncInProcessRunner)
        for kind in (CheckpointingRunner, AsyncCheckpointingRunner):
            for name, store in stores(tmp_path_factory.mktemp(kind.__name__)).items():
                if (kind.__name__, name) in SAMPLED or not name.startswith("postgres"):
                    add(f"{kind.__name__} {name}", kind, stack.enter_context(closing(store())))
        yield made


def as_it_is(value: Any) -> Any:
    return value


class closing:
    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __enter__(self) -> Any:
        return self.thing

    def __exit__(self, *exc: object) -> None:
        self.thing.close()


@pytest.fixture(scope="module")
def account() -> Counter[str]:
    """What all tests of this file did; printed by the last one."""
    return Counter()


def expected(made: Made, late: str) -> tuple[Any, RealOracle]:
    oracle = RealOracle(late)
    return oracle.run(made, INPUT), oracle


@settings(QUIET, max_examples=300)
@given(made=worlds(size=16), late=st.sampled_from(["message", "timeout"]))
def test_every_way_comes_to_the_same(ways: list[Way], account: Counter[str], made: Made, late: str) -> None:
    """Output and calls, attempts included, are those of the tree read aloud."""
    output, oracle = expected(made, late)
    assume(oracle.waits.total() <= WAITS_MAX)
    compare(ways, made, output, oracle, account)


def test_every_way_comes_to_the_same_with_large_graphs(ways: list[Way], account: Counter[str]) -> None:
    """Sixty of them, up to sixty nodes, always the same ones."""
    for seed in range(60):
        made = grow(Seeded(seed), 60, ALL)
        output, oracle = expected(made, ("message", "timeout")[seed % 2])
        compare(ways, made, output, oracle, account)


def compare(ways: list[Way], made: Made, output: Any, oracle: RealOracle, account: Counter[str]) -> None:
    for way in ways:
        assert way.run(made, oracle.waits) == output, (way.name, made.draw())
        assert way.ledger.calls == oracle.done, (way.name, made.draw())
        account["runs compared"] += 1
        account["calls compared"] += oracle.done.total()
    account["graphs"] += 1
    account["combinations of runner, store and codec"] = len(ways)


@settings(QUIET, max_examples=120)
@given(made=worlds())
def test_every_way_fails_alike(ways: list[Way], account: Counter[str], made: Made) -> None:
    """Where a step never succeeds the run fails with that step's error, and nothing ran that should not have."""
    _, oracle = expected(made, "message")
    assume(oracle.broken and oracle.waits.total() <= WAITS_MAX)
    for way in ways:
        with pytest.raises(WorkflowFailed) as caught:
            way.run(made, oracle.waits, breaking=True)
        assert isinstance(caught.value.__cause__, Broken), (way.name, caught.value.__cause__)
        assert caught.value.path.rpartition("/")[2] in oracle.broken, way.name
        assert way.ledger.calls <= oracle.done, way.name
        account["failures compared"] += 1


@settings(QUIET, max_examples=400)
@given(
    made=worlds(tasks=REPEATABLE),
    store=st.sampled_from([*["memory json", "memory msgpack", "sqlite json", "sqlite msgpack"] * 2, "postgres json"]),
    kind=st.sampled_from([CheckpointingRunner, AsyncCheckpointingRunner]),
    when=st.sampled_from(["before", "after"]),
    nth=st.integers(1, 12),
)
def test_an_interrupted_run_comes_to_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: Server,
    account: Counter[str],
    made: Made,
    store: str,
    kind: Any,
    when: Any,
    nth: int,
) -> None:
    """The store fails at some commit; another runner goes on, and no call is made more than twice."""
    output, oracle = expected(made, "message")
    assume(oracle.waits.total() <= WAITS_MAX)
    ledger, clock = Ledger(), Impatient()

    def strike() -> None:
        raise BackendError("interrupted here")

    async def twice(backend: Any) -> Any:
        for number, faults in enumerate([[Fault(when, "commit", nth)], []], 1):
            runner = kind(FaultyBackend(backend, faults, strike), deps={Ledger: ledger}, clock=clock, threads=4)
            ledger.client = client_of(runner)
            try:
                answer = runner.run(made, *given_to(made), instance_id="i")
                return number, await answer if kind is AsyncCheckpointingRunner else answer
            except BackendError:
                account["interruptions"] += 1
            finally:
                closed = runner.close()
                if closed is not None:
                    await closed
        raise AssertionError("the second call failed as well")

    ledger.prepare(None, oracle.waits, breaking=False)
    with closing(stores(tmp_path_factory.mktemp("interrupted"))[store]()) as backend:
        if kind is AsyncCheckpointingRunner:
            tries, found = asyncio.run(twice(backend))
        else:
            tries, found = finish(twice(backend))
        assert not backend.stuck(0)
    assert found == output
    assert set(ledger.calls) == set(oracle.done)
    assert max(ledger.calls.values()) <= tries
    account["interrupted runs"] += tries - 1


def finish(coroutine: Any) -> Any:
    """Run a coroutine that awaits nothing, outside of any loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


def test_the_account(account: Counter[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What was compared, and that it was not nothing."""
    with capsys.disabled():
        print("\ndifferential: " + ", ".join(f"{count} {name}" for name, count in account.items()))  # noqa: T201 - the account is shown in every run
    if len(account) > 4:
        assert account["graphs"] > 200
        assert account["interruptions"] > 50
        assert account["failures compared"] > 100
