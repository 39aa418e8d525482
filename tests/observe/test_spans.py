"""One trace for one run: what stands below what, what is linked to what, and when it is told."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from stepwell import (
    AsyncCheckpointingRunner,
    AsyncInProcessRunner,
    BackendUnavailable,
    CheckpointingRunner,
    Flow,
    InMemoryBackend,
    InProcessRunner,
    InstanceExists,
    InstanceHeld,
    PooledWorker,
    Rerun,
    Retry,
    SqliteBackend,
    WorkflowCancelled,
    WorkflowClient,
    WorkflowFailed,
    parallel,
    signal,
    task,
    task_context,
    workflow,
)
from stepwell.observe.process import joined as joined_in_process

from .seen import Seen, check_tree, context, follows

RUNNERS: dict[str, Callable[[Path], Any]] = {
    "in process": lambda folder: InProcessRunner(),
    "async in process": lambda folder: AsyncInProcessRunner(),
    "memory": lambda folder: CheckpointingRunner(InMemoryBackend()),
    "sqlite": lambda folder: CheckpointingRunner(SqliteBackend(folder / "a.db")),
    "async sqlite": lambda folder: AsyncCheckpointingRunner(SqliteBackend(folder / "a.db")),
}


def mark(name: str) -> None:
    with trace.get_tracer("user").start_as_current_span(f"in {name}"):
        trace.get_current_span().set_attribute("deep", True)
    trace.get_current_span().set_attribute("by", name)


@task
def alone(x: int) -> int:
    mark("alone")
    return x + 1


@task
async def looped(x: int) -> int:
    await asyncio.sleep(0)
    mark("looped")
    return x + 1


@task
def threaded(x: int) -> int:
    mark("threaded")
    return x


@task(run_in="inline")
def inlined(x: int) -> int:
    mark("inlined")
    return x


@task
def joined(a: int, b: int) -> int:
    return a + b


@workflow
async def everywhere(x: int) -> int:
    y = await looped(alone(x))
    with parallel():
        a = threaded(y)
        b = inlined(y)
    return joined(a, b)


def run(runner: Any, flow: Any, *args: Any, **options: Any) -> Any:
    """Run with a sync or async runner, and close it."""
    if not inspect.iscoroutinefunction(runner.run):
        with runner:
            return runner.run(flow, *args, **options)

    async def main() -> Any:
        async with runner:
            return await runner.run(flow, *args, **options)

    return asyncio.run(main())


@pytest.mark.parametrize("kind", RUNNERS)
def test_a_run_is_one_tree_below_its_caller(kind: str, seen: Seen, tmp_path: Path) -> None:
    """Wherever a body runs, its own spans stand below its attempt's, and it may say something there."""
    with seen.user.start_as_current_span("request"):
        assert run(RUNNERS[kind](tmp_path), everywhere, 1) == 6
    assert check_tree(seen.spans).name == "request"
    assert seen.one("start everywhere").parent == context(seen.one("request"))
    for name in ("alone", "looped", "threaded", "inlined", "joined"):
        attempt = seen.one(name)
        assert attempt.parent is not None
        assert attempt.parent.span_id == context(seen.one("start everywhere")).span_id
        assert attempt.attributes is not None
        assert attempt.attributes["stepwell.outcome"] == "succeeded"
        if name != "joined":
            assert attempt.attributes["by"] == name
            assert seen.one(f"in {name}").parent == attempt.context


def test_without_a_caller_a_run_has_a_trace_of_its_own(seen: Seen) -> None:
    """Its start is the root."""
    run(InProcessRunner(), everywhere, 1)
    assert check_tree(seen.spans).name == "start everywhere"


def test_nothing_of_a_caller_that_is_not_sampled_is_told(seen: Seen, tmp_path: Path) -> None:
    """The caller's decision holds in every process: it is stored with the run."""
    caller = trace.SpanContext(7, 7, True, trace.TraceFlags(0))
    with SqliteBackend(tmp_path / "a.db") as backend, WorkflowClient(backend) as client:
        with trace.use_span(trace.NonRecordingSpan(caller)):
            client.start(everywhere, 1, instance_id="a")
        with CheckpointingRunner(backend) as runner:
            runner.recover([everywhere])
        assert client.status("a").state == "completed"
    assert {span.name[:2] for span in seen.spans} == set()


def test_the_callers_state_goes_along(seen: Seen) -> None:
    """``tracestate`` is stored with ``traceparent`` and given to what follows."""
    state = trace.TraceState([("vendor", "a b"), ("other", "1")])
    caller = trace.SpanContext(7, 7, True, trace.TraceFlags(1), state)
    backend = InMemoryBackend()
    with WorkflowClient(backend) as client, trace.use_span(trace.NonRecordingSpan(caller)):
        client.start(everywhere, 1, instance_id="a")
    header = backend.header("a")
    assert header is not None
    assert header.trace.startswith(f"00-{7:032x}-")
    assert header.trace.endswith("-01 vendor=a b,other=1")
    with CheckpointingRunner(backend) as runner:
        runner.recover([everywhere])
    assert context(seen.one("alone")).trace_state == state
    assert context(seen.one("alone")).trace_id == 7


def test_a_run_that_was_started_untraced_is_a_tree_all_the_same(
    seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever commits its first step tells of its start; its ids are the same in every process."""
    with SqliteBackend(tmp_path / "a.db") as backend, WorkflowClient(backend) as client:
        with monkeypatch.context() as off:
            off.setattr("opentelemetry.trace._TRACER_PROVIDER", None)
            off.setattr("opentelemetry.metrics._internal._METER_PROVIDER", None)
            client.start(gated, 1, instance_id="a")
            assert client.status("a").state == "pending"
        with CheckpointingRunner(backend) as runner:
            runner.recover([gated])
        with monkeypatch.context() as off:
            off.setattr("opentelemetry.trace._TRACER_PROVIDER", None)
            client.signal("a", "go", True)
        with CheckpointingRunner(backend) as runner:
            assert runner.resume(gated, "a") == 2
    assert check_tree(seen.spans).name == "start gated"
    assert [span.name for span in seen.spans].count("start gated") == 1


# --- retries and ends -----------------------------------------------------------------------------------


@task(retry=Retry(attempts=3, delay=0))
def third_time(x: int) -> int:
    if task_context().attempt < 3:
        raise ValueError("sesame-4711")
    return x


@workflow
def stubborn(x: int) -> int:
    return third_time(x)


@pytest.mark.parametrize("kind", RUNNERS)
def test_each_attempt_is_linked_to_the_one_before(kind: str, seen: Seen, tmp_path: Path) -> None:
    """And says how it ended, by the error's type alone."""
    run(RUNNERS[kind](tmp_path), stubborn, 1)
    first, second, third = seen.named("third_time")
    assert (follows(second), follows(third)) == ({context(first).span_id}, {context(second).span_id})
    assert follows(first) == set()
    assert [span.attributes["stepwell.outcome"] for span in (first, second, third) if span.attributes] == [
        "failed",
        "failed",
        "succeeded",
    ]
    assert first.attributes is not None
    assert first.attributes["error.type"] == "ValueError"
    assert not first.status.is_ok
    assert "sesame" not in "".join(span.to_json() for span in seen.spans)


def test_a_retried_run_goes_on_in_its_trace(seen: Seen) -> None:
    """Its attempts count on, so no id comes twice, and the first new one is linked to the last old one."""
    asked = []

    @task
    def moody(x: int) -> int:
        asked.append(x)
        if len(asked) == 1:
            raise ValueError
        return x

    flow = Flow("moods").then(moody).build()
    with CheckpointingRunner(InMemoryBackend()) as runner:
        with seen.user.start_as_current_span("request"), pytest.raises(WorkflowFailed):
            runner.run(flow, 1, instance_id="m")
        runner.client.retry("m")
        assert runner.resume(flow, "m") == 1
    first, second = seen.named("moody")
    assert follows(second) == {context(first).span_id}
    assert check_tree(seen.spans).name == "request"


def test_an_attempt_that_timed_out_is_over(seen: Seen) -> None:
    """It is told when its time is, though its thread goes on."""
    gate = asyncio.Event()

    @task(timeout="50ms")
    async def slow(x: int) -> int:
        await gate.wait()
        return x

    with pytest.raises(WorkflowFailed):
        run(CheckpointingRunner(InMemoryBackend()), Flow("slow").then(slow).build(), 1)
    span = seen.one("slow")
    assert span.attributes is not None
    assert span.attributes["stepwell.outcome"] == "timed_out"
    check_tree(seen.spans)


@pytest.mark.parametrize("kind", ["in process", "memory", "sqlite"])
def test_an_attempt_that_was_cancelled_is_over(kind: str, seen: Seen, tmp_path: Path) -> None:
    """So what it has opened below it has its parent."""

    @task
    async def endless(x: int) -> int:
        mark("endless")
        runner.client.cancel("c")
        await asyncio.Event().wait()
        return x

    runner = RUNNERS[kind](tmp_path)
    with pytest.raises(WorkflowCancelled):
        run(runner, Flow("endless").then(endless).build(), 1, instance_id="c")
    span = seen.one("endless")
    assert span.attributes is not None
    assert span.attributes["stepwell.outcome"] == "cancelled"
    check_tree(seen.spans)


def test_each_place_in_a_loop_and_each_run_has_its_own_spans(seen: Seen) -> None:
    """The same task, name and instance id, and no id comes twice."""
    from stepwell import Again, Done

    @task
    def refine(x: int) -> Again[int] | Done[int]:
        return Again(x + 1) if x < 3 else Done(x)

    flow = Flow("refining").loop(refine, max_iterations=9).build()
    with CheckpointingRunner(InMemoryBackend()) as runner, seen.user.start_as_current_span("request"):
        runner.run(flow, 1, instance_id="r")
        runner.run(flow, 1, instance_id="r", on_conflict="terminate_existing")
    paths = [span.attributes["stepwell.path"] for span in seen.named("refine") if span.attributes]
    assert paths == 2 * ["refine[1]/refine", "refine[2]/refine", "refine[3]/refine"]
    check_tree(seen.spans)


def test_attempts_are_as_many_as_the_journal_has(seen: Seen) -> None:
    """Routes too, whose keys are the user's code."""

    @task
    def key(x: int) -> str:
        return "a"

    flow = Flow("routing").route(key, {"a": alone}, default=alone).build()
    with CheckpointingRunner(InMemoryBackend()) as runner:
        runner.run(flow, 1, instance_id="r")
        recorded = sorted(attempt.path for attempt in runner.client.attempts("r"))
    told = [span.attributes["stepwell.path"] for span in seen.spans if "stepwell.path" in (span.attributes or {})]
    assert sorted(map(str, told)) == recorded


def test_a_refused_start_tells_nothing(seen: Seen) -> None:
    """Only what exists has a start."""
    backend = InMemoryBackend()
    with CheckpointingRunner(backend) as runner, WorkflowClient(backend) as client:
        runner.run(everywhere, 1, instance_id="a")
        told = len(seen.spans)
        for start in (runner.run, client.start):
            with pytest.raises(InstanceExists):
                start(everywhere, 1, instance_id="a", on_conflict="fail")
        assert runner.run(everywhere, 1, instance_id="a") == 6
    assert len(seen.spans) == told


def test_an_attempt_whose_outcome_is_not_stored_is_not_told(seen: Seen, tmp_path: Path) -> None:
    """The caller is interrupted in a body; whoever takes the run up has the same span, once."""
    asked = []

    @task
    def interrupted(x: int) -> int:
        asked.append(x)
        mark("interrupted")
        if len(asked) == 1:
            raise KeyboardInterrupt
        return x

    flow = Flow("stopping").then(alone).then(interrupted).build()
    with SqliteBackend(tmp_path / "a.db") as backend:
        with CheckpointingRunner(backend) as runner, pytest.raises(KeyboardInterrupt):
            runner.run(flow, 1, instance_id="i")
        assert seen.named("interrupted") == []
        with CheckpointingRunner(backend) as runner:
            runner.resume(flow, "i")
    assert len(seen.named("in interrupted")) == 2
    parent = context(seen.one("interrupted"))
    assert [each.parent == parent for each in seen.named("in interrupted")] == [True, True]
    check_tree(seen.spans)


def test_an_attempt_that_was_cut_off_is_told_by_who_finds_it(seen: Seen) -> None:
    """So that what it had opened has its parent, and the attempt that follows what it is linked to."""
    asked = []

    @task(delivery="at_most_once")
    def precious(x: int) -> int:
        asked.append(x)
        mark("precious")
        if len(asked) == 1:
            raise SystemExit
        return x

    flow = Flow("once").then(precious).build()
    with CheckpointingRunner(InMemoryBackend()) as runner:
        with pytest.raises(SystemExit):
            runner.run(flow, 1, instance_id="p")
        with pytest.raises(InstanceHeld):
            runner.resume(flow, "p")
        runner.client.decide("p", "precious", Rerun())
        runner.resume(flow, "p")
    crashed, done = seen.named("precious")
    assert crashed.attributes is not None
    assert crashed.attributes["stepwell.outcome"] == "crashed"
    assert follows(done) == {context(crashed).span_id}
    check_tree(seen.spans)


def test_a_value_that_cannot_be_read_is_no_attempt(seen: Seen) -> None:
    """The instance is held; once the code is mended, the same attempt begins."""

    def flow(kind: Any) -> Any:
        def first(x: int) -> Any:
            return x

        def second(x: Any) -> Any:
            return x

        second.__annotations__["x"] = kind
        return Flow("typed").then(task("first")(first)).then(task("second", version="1")(second)).build()

    with CheckpointingRunner(InMemoryBackend()) as runner:
        with pytest.raises(InstanceHeld):
            runner.run(flow(list[str]), 1, instance_id="t")
        assert seen.named("second") == []
        runner.client.decide("t", "second", Rerun())
        with pytest.raises(InstanceHeld):
            runner.resume(flow(list[str]), "t")
    check_tree(seen.spans)


def test_an_attempt_whose_commit_failed_is_told_by_the_one_that_follows(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ran twice, and was told when that was stored."""
    backend = InMemoryBackend()

    def unreachable(*args: object) -> Any:
        raise BackendUnavailable("no route")

    @task
    def unlucky(x: int) -> int:
        mark("unlucky")
        if not failing:
            failing.append(monkeypatch.setattr(backend, "commit", unreachable))
        return x

    failing: list[None] = []
    commit, flow = backend.commit, Flow("bad luck").then(unlucky).then(alone).build()
    with CheckpointingRunner(backend) as runner:
        with pytest.raises(BackendUnavailable):
            runner.run(flow, 1, instance_id="u")
        assert seen.named("unlucky") == []
        monkeypatch.setattr(backend, "commit", commit)
        assert runner.resume(flow, "u") == 2
    assert len(seen.named("in unlucky")) == 2
    check_tree(seen.spans)


# --- signals --------------------------------------------------------------------------------------------


@task
def after(x: int, go: bool) -> int:
    return x if go else -x


@workflow
def gated(x: int) -> int:
    y = alone(x)
    go = signal("go", bool)
    return after(y, go)


@workflow
def passed(x: int) -> int:
    y = alone(x)
    signal("go", bool)
    return threaded(y)


def check_signal(seen: Seen, follower: str) -> None:
    """The step that a signal let go is linked to it, and both to what its sender was doing."""
    signalled = seen.one("signal go")
    approval = context(seen.one("approval"))
    assert follows(signalled) == {approval.span_id}
    assert follows(seen.one(follower)) == {context(signalled).span_id, approval.span_id}
    assert approval.trace_id in {link.context.trace_id for link in seen.one(follower).links}
    check_tree(span for span in seen.spans if span.name != "approval")


@pytest.mark.parametrize(("flow", "follower"), [(gated, "after"), (passed, "threaded")], ids=["read", "unread"])
def test_a_step_is_linked_to_the_signal_it_follows(flow: Any, follower: str, seen: Seen) -> None:
    """The sender writes, as nobody holds the instance; who goes on with it reads the link from the journal."""
    backend = InMemoryBackend()
    with CheckpointingRunner(backend) as runner, WorkflowClient(backend) as client:
        runner.start(flow, 1, instance_id="s")
        with seen.user.start_as_current_span("approval"):
            client.signal("s", "go", True)
        runner.resume(flow, "s")
    check_signal(seen, follower)


def test_a_signal_that_came_early_is_linked_all_the_same(seen: Seen) -> None:
    """It is sent from within, while the instance is held."""

    @task
    def early(x: int) -> int:
        with seen.user.start_as_current_span("approval", trace.set_span_in_context(trace.INVALID_SPAN)):
            client.signal("s", "go", True)
        return x

    @workflow
    def hasty(x: int) -> int:
        y = early(x)
        return after(y, signal("go", bool))

    backend = InMemoryBackend()
    with CheckpointingRunner(backend) as runner, WorkflowClient(backend) as client:
        runner.run(hasty, 1, instance_id="s")
    check_signal(seen, "after")


def test_a_signal_to_a_run_in_memory_is_linked(seen: Seen) -> None:
    """There is no store to read it from."""

    @task
    def early(x: int) -> int:
        with seen.user.start_as_current_span("approval", trace.set_span_in_context(trace.INVALID_SPAN)):
            runner.client.signal("s", "go", True)
        return x

    @workflow
    def hasty(x: int) -> int:
        y = early(x)
        return after(y, signal("go", bool))

    with InProcessRunner() as runner:
        runner.run(hasty, 1, instance_id="s")
    check_signal(seen, "after")


# --- processes --------------------------------------------------------------------------------------------


def test_a_body_in_another_process_joins_and_sends_before_it_goes_on(seen: Seen) -> None:
    """What it opens has the attempt as its parent, although that is told elsewhere."""
    sent: list[int] = []
    seen.provider.settle = lambda: sent.append(len(seen.spans))  # type: ignore[attr-defined]
    with joined_in_process(f"00-{7:032x}-{8:016x}-01", None):
        mark("child")
    assert sent == [1]
    parent = seen.one("in child").parent
    assert parent is not None
    assert (parent.trace_id, parent.span_id) == (7, 8)
    with joined_in_process("", None):
        assert not trace.get_current_span().get_span_context().is_valid
    assert sent == [1]


# --- workers ----------------------------------------------------------------------------------------------


def test_a_step_that_another_worker_runs_stands_in_the_same_tree(seen: Seen) -> None:
    """Whoever ran a body tells of it, once."""

    @task(tags=["gpu"])
    def elsewhere(x: int) -> int:
        mark("elsewhere")
        return x

    @workflow
    def spread(x: int) -> int:
        with parallel():
            a = alone(x)
            b = elsewhere(x)
        return joined(a, b)

    backend = InMemoryBackend()
    workers = [PooledWorker(backend, [spread], poll="10ms", tags=tags) for tags in ((), ("gpu",))]
    handles = [worker.start() for worker in workers]
    with WorkflowClient(backend) as client:
        with seen.user.start_as_current_span("request"):
            client.start_many(spread, range(5), instance_ids=list("abcde"))
        assert [client.result(name, spread, timeout="60s") for name in "abcde"] == [1, 3, 5, 7, 9]
    for worker, handle in zip(workers, handles, strict=True):
        worker.shutdown()
        handle.join()
    assert check_tree(seen.spans).name == "request"
    assert [len(seen.named(name)) for name in ("alone", "elsewhere", "joined")] == [5, 5, 5]


# --- stores and snapshots ---------------------------------------------------------------------------------


def test_a_snapshot_takes_the_trace_along(seen: Seen, tmp_path: Path) -> None:
    """Restored in another store, the run goes on in the same tree."""
    with SqliteBackend(tmp_path / "a.db") as one, InMemoryBackend() as other:  # type: ignore[attr-defined]
        with CheckpointingRunner(one) as runner, seen.user.start_as_current_span("request"):
            runner.start(gated, 1, instance_id="s")
            data = runner.client.snapshot("s")
        with CheckpointingRunner(other) as runner:
            runner.client.restore(data)
            runner.client.signal("s", "go", True)
            runner.resume(gated, "s")
    assert check_tree(seen.spans).name == "request"


def test_many_starts_are_many_trees(seen: Seen) -> None:
    """One for each instance, in one call."""
    with CheckpointingRunner(InMemoryBackend()) as runner:
        runner.client.start_many(everywhere, range(3))
        runner.recover([everywhere])
    traces = {context(span).trace_id for span in seen.spans}
    assert len(traces) == 3
    for each in traces:
        check_tree(span for span in seen.spans if context(span).trace_id == each)


def test_a_program_may_begin_to_trace_after_it_made_its_runner(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """And may change its provider."""
    with monkeypatch.context() as off:
        off.setattr("opentelemetry.trace._TRACER_PROVIDER", None)
        off.setattr("opentelemetry.metrics._internal._METER_PROVIDER", None)
        runner = InProcessRunner()
        runner.run(everywhere, 1)
    assert seen.spans == ()
    runner.run(everywhere, 1)
    told = len(seen.spans)
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", TracerProvider(shutdown_on_exit=False))
    with runner:
        runner.run(everywhere, 1)
    assert told == len(seen.spans) > 5
