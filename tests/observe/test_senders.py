"""What a signal's sender was doing is stored with the signal, and found by whoever runs the step that it lets go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from opentelemetry import trace

from stepwell import (
    CheckpointingRunner,
    InMemoryBackend,
    InProcessRunner,
    JsonCodec,
    MsgpackCodec,
    PooledWorker,
    Retry,
    SqliteBackend,
    WorkflowClient,
    delay,
    parallel,
    signal,
    task,
    workflow,
)
from stepwell.backend.liveness import this_process
from stepwell.engine import facts as f
from stepwell.observe.w3c import TRACE_CHARS
from stepwell.testing import VirtualClock
from tests.postgres import until
from tests.stores import open_store

from .seen import Seen, context

STATE = trace.TraceState([("vendor", "a b"), ("other", "1")])
SENDER = trace.SpanContext(0xA1, 0xB2, False, trace.TraceFlags(1), STATE)
TEXT = f"00-{0xA1:032x}-{0xB2:016x}-01 vendor=a b,other=1"


@contextmanager
def sending(sender: trace.SpanContext = SENDER) -> Iterator[None]:
    """Do something whose span is known by its context alone: nobody here makes it or sends it anywhere."""
    with trace.use_span(trace.NonRecordingSpan(sender)):
        yield


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Return a way to be a process without a tracer for a while."""

    @contextmanager
    def off() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr("opentelemetry.trace._TRACER_PROVIDER", None)
            patch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", None)
            yield

    return off


def senders(seen: Seen, name: str) -> list[set[tuple[int, int]]]:
    """Return what each attempt of a step is linked to outside of its own trace."""
    spans = seen.named(name)
    assert spans
    return [
        {(link.context.trace_id, link.context.span_id) for link in span.links}
        - {(context(span).trace_id, link.context.span_id) for link in span.links}
        for span in spans
    ]


FROM_SENDER = [{(0xA1, 0xB2)}]


def heads(backend: Any, instance_id: str) -> list[f.Fact]:
    header = backend.header(instance_id)
    return [f.decode(entry.facts)[0] for entry in backend.history(header.instance, 0, 100)]


class Killed(BaseException):
    """Ends a process in these tests: nothing is told and nothing stored after it."""


class Deaths:
    """How often a body still ends its process."""

    left = 0

    def come(self) -> None:
        if self.left:
            self.left -= 1
            raise Killed


DEATHS = Deaths()


@task
def first(x: int) -> int:
    return x


@task
def reads(x: int, go: bool) -> int:
    DEATHS.come()
    return x if go else -x


@task
def ignores(x: int) -> int:
    DEATHS.come()
    return x


@workflow
def reading(x: int) -> int:
    return reads(first(x), signal("go", bool))


@workflow
def ignoring(x: int) -> int:
    y = first(x)
    signal("go", bool)
    return ignores(y)


@workflow
def early(x: int) -> int:
    delay("1s")
    signal("go", bool)
    return ignores(x)


both = pytest.mark.parametrize(("flow", "step"), [(reading, "reads"), (ignoring, "ignores")], ids=["read", "unread"])


@both
def test_a_step_is_linked_to_a_sender_that_exports_nothing(
    flow: Any, step: str, seen: Seen, untraced: Any, kind: str, tmp_path: Path
) -> None:
    """Whoever goes on after a kill knows it from the store alone, as it was given."""
    DEATHS.left = 1
    backend = open_store(kind, tmp_path / "a.db")
    with CheckpointingRunner(backend) as runner:
        runner.start(flow, 1, instance_id="s")
    with untraced(), WorkflowClient(backend) as client, sending():
        client.signal("s", "go", True)
    assert f.MessageTraced("go", TEXT) in heads(backend, "s")
    with CheckpointingRunner(backend) as runner, pytest.raises(Killed):
        runner.resume(flow, "s")
    assert seen.named(step) == []
    with CheckpointingRunner(backend) as runner:
        assert runner.resume(flow, "s") == 1
    assert senders(seen, step) == FROM_SENDER
    (link,) = [link for link in seen.one(step).links if link.context.trace_id == 0xA1]
    assert (link.context.trace_state, link.context.trace_flags, link.context.is_remote) == (STATE, 1, True)
    backend.close()


@both
def test_a_message_to_a_held_instance_keeps_its_sender(
    flow: Any, step: str, seen: Seen, kind: str, tmp_path: Path
) -> None:
    """In the inbox, for whoever takes over from a holder that is gone."""
    backend = open_store(kind, tmp_path / "a.db")
    with CheckpointingRunner(backend) as runner:
        runner.start(flow, 1, instance_id="s")
    session = backend.open_session(this_process("gone"), 60_000_000)
    backend.claim(session, "s")
    with WorkflowClient(backend) as client, sending():
        client.signal("s", "go", True)
    (message,) = backend.load("s").mail
    assert message.trace == TEXT
    backend.end_session(session)
    with CheckpointingRunner(backend) as runner:
        assert runner.resume(flow, "s") == 1
        assert heads(backend, "s")[-2] == f.MessageTraced("go", TEXT)
        (came,) = [event.detail for event in runner.client.history("s") if event.kind == "signal came"]
    assert came == f"go, sent in trace {0xA1:032x}"
    assert senders(seen, step) == FROM_SENDER
    backend.close()


def test_a_message_that_waits_in_the_journal_keeps_its_sender(seen: Seen, tmp_path: Path) -> None:
    """It came long before it was waited for; the step that follows is run by somebody else."""
    clock = VirtualClock()
    with SqliteBackend(tmp_path / "a.db") as backend:
        with CheckpointingRunner(backend, clock=clock) as runner:
            runner.start(early, 1, instance_id="s")
            with sending():
                runner.client.signal("s", "go", True)
        clock.advance("2s")
        DEATHS.left = 1
        for _ in range(2):
            with CheckpointingRunner(backend, clock=clock) as runner:
                if DEATHS.left:
                    with pytest.raises(Killed):
                        runner.resume(early, "s")
                else:
                    assert runner.resume(early, "s") == 1
    assert senders(seen, "ignores") == FROM_SENDER


@pytest.mark.parametrize(("source", "target"), [("json", "msgpack"), ("msgpack", "json")])
def test_a_snapshot_takes_senders_along(source: str, target: str, seen: Seen) -> None:
    """Of messages that wait in the inbox and of those in the journal, whatever the codec."""
    codecs: dict[str, Any] = {"json": JsonCodec, "msgpack": MsgpackCodec}

    @workflow
    def twice(x: int) -> int:
        y = reads(x, signal("go", bool))
        return reads(y, signal("go", bool))

    here, there = InMemoryBackend(codecs[source]()), InMemoryBackend(codecs[target]())
    with CheckpointingRunner(here) as runner:
        runner.start(twice, 1, instance_id="s")
        with sending():
            runner.client.signal("s", "go", True)
        here.claim(here.open_session(this_process("gone"), 60_000_000), "s")
        with sending(trace.SpanContext(0xA1, 0xC3, False)):
            runner.client.signal("s", "go", True)
        runner.client.signal("s", "go", False)
        data = runner.client.snapshot("s")
    with CheckpointingRunner(there) as runner:
        runner.client.restore(data)
        assert [message.trace for message in there.load("s").mail] == [  # type: ignore[union-attr]
            f"00-{0xA1:032x}-{0xC3:016x}-00",
            "",
        ]
        assert runner.resume(twice, "s") == 1
    assert senders(seen, "reads") == [{(0xA1, 0xB2)}, {(0xA1, 0xC3)}]


def test_a_move_to_a_changed_graph_keeps_senders(seen: Seen) -> None:
    """A message that was kept under the old graph is read under the new one."""

    def grown(more: bool) -> Any:
        @workflow
        def growing(x: int) -> int:
            y = first(x)
            delay("1h")
            go = signal("go", bool)
            return reads(ignores(y) if more else y, go)

        return growing

    clock, backend = VirtualClock(), InMemoryBackend()
    with CheckpointingRunner(backend, clock=clock) as runner:
        runner.start(grown(more=False), 1, instance_id="s")
        with sending():
            runner.client.signal("s", "go", True)
    clock.advance("2h")
    with CheckpointingRunner(backend, clock=clock) as runner:
        assert runner.resume(grown(more=True), "s") == 1
    assert any(isinstance(head, f.RunMoved) for head in heads(backend, "s"))
    assert senders(seen, "reads") == FROM_SENDER


def test_each_attempt_of_the_step_is_linked(seen: Seen, tmp_path: Path) -> None:
    """Also one in another process, and one of a step that does not read the signal; retries keep their own links."""
    asked = []

    @task(retry=Retry(attempts=2, delay=0))
    def moody(x: int) -> int:
        asked.append(x)
        if len(asked) == 1:
            raise OSError("no route")
        return x

    @workflow
    def going(x: int) -> int:
        signal("go", bool)
        return moody(x)

    with SqliteBackend(tmp_path / "a.db") as backend, CheckpointingRunner(backend) as runner:
        runner.start(going, 1, instance_id="s")
        with sending():
            runner.client.signal("s", "go", True)
        assert runner.resume(going, "s") == 1
    assert senders(seen, "moody") == 2 * FROM_SENDER
    one, two = seen.named("moody")
    assert context(one).span_id in {link.context.span_id for link in two.links}


def test_a_step_that_another_worker_runs_is_linked(seen: Seen) -> None:
    """It has a part of the state and none of the journal, and asks the store."""

    @task(tags=["gpu"])
    def elsewhere(x: int) -> int:
        return x

    @task
    def both_of(a: int, b: int) -> int:
        return a * b

    @workflow
    def spread(x: int) -> int:
        signal("go", bool)
        with parallel():
            a = first(x)
            b = elsewhere(x)
        return both_of(a, b)

    backend = InMemoryBackend()
    workers = [PooledWorker(backend, [spread], poll="10ms", tags=tags) for tags in ((), ("gpu",))]
    with WorkflowClient(backend) as client:
        client.start(spread, 1, instance_id="s")
        with sending():
            client.signal("s", "go", True)
        handles = [workers[0].start()]
        until(lambda: backend.header("s").offered, "its step is offered")  # type: ignore[union-attr]
        handles.append(workers[1].start())
        assert client.result("s", spread, timeout="60s") == 1
    for worker, handle in zip(workers, handles, strict=True):
        worker.shutdown()
        handle.join()
    assert senders(seen, "elsewhere") == senders(seen, "first") == FROM_SENDER
    assert senders(seen, "both_of") == [set()]


def test_a_run_in_memory_is_linked(seen: Seen) -> None:
    """There is no store to find it in."""

    @task
    def calls(x: int) -> int:
        with sending():
            runner.client.signal("s", "go", True)
        return x

    @workflow
    def hasty(x: int) -> int:
        return reads(calls(x), signal("go", bool))

    with InProcessRunner() as runner:
        assert runner.run(hasty, 1, instance_id="s") == 1
    assert senders(seen, "reads") == FROM_SENDER


# --- what is not stored -----------------------------------------------------------------------------------


def test_without_a_context_nothing_more_is_stored(seen: Seen, tmp_path: Path) -> None:
    """Neither in the inbox nor in the journal, whose bytes are what they always were."""
    with SqliteBackend(tmp_path / "a.db") as backend, CheckpointingRunner(backend) as runner:
        runner.start(reading, 1, instance_id="s")
        backend.claim(session := backend.open_session(this_process("gone"), 60_000_000), "s")
        runner.client.signal("s", "go", True)
        assert [message.trace for message in backend.load("s").mail] == [""]  # type: ignore[union-attr]
        backend.end_session(session)
        runner.client.signal("s", "go", True)
        entries = backend.history(backend.header("s").instance, 0, 9)  # type: ignore[union-attr]
    kept = [entry.facts for entry in entries if isinstance(f.decode(entry.facts)[0], f.MessageKept)]
    assert [facts[1:6] for facts in kept] == 2 * [b"\x92\x06\xa2go"]


def test_only_signals_bring_a_context(seen: Seen, tmp_path: Path) -> None:
    """A pause says who asks for it."""
    with SqliteBackend(tmp_path / "a.db") as backend, CheckpointingRunner(backend) as runner:
        runner.start(reading, 1, instance_id="s")
        backend.claim(backend.open_session(this_process("gone"), 60_000_000), "s")
        with sending():
            runner.client.pause("s", by="ann")
        assert [message.trace for message in backend.load("s").mail] == [""]  # type: ignore[union-attr]


def test_what_is_too_long_is_cut_and_the_signal_goes_through(seen: Seen) -> None:
    """The standard lets a state of 512 characters through everywhere; the first members matter most."""
    state = trace.TraceState([(f"k{n:02}", "v" * 60) for n in range(20)])
    backend = InMemoryBackend()
    with CheckpointingRunner(backend) as runner:
        runner.start(reading, 1, instance_id="s")
        with sending(trace.SpanContext(0xA1, 0xB2, False, trace.TraceFlags(1), state)):
            runner.client.signal("s", "go", True)
        assert runner.resume(reading, "s") == 1
    (kept,) = [head for head in heads(backend, "s") if isinstance(head, f.MessageTraced)]
    assert kept.trace.count("k") == 7
    assert len(kept.trace) <= TRACE_CHARS
    assert senders(seen, "reads") == FROM_SENDER


@pytest.mark.parametrize("stored", ["nonsense", "00-1-2-01", "é" * 600, f"{TEXT} =,"])
def test_a_stored_context_that_cannot_be_read_is_no_link(stored: str, seen: Seen) -> None:
    """A store may have been written by others; the run goes on."""
    backend = InMemoryBackend()
    with CheckpointingRunner(backend) as runner:
        runner.start(reading, 1, instance_id="s")
        session = backend.open_session(this_process("gone"), 60_000_000)
        loaded = backend.claim(session, "s")
        assert loaded is not None
        with sending():
            runner.client.signal("s", "go", True)
        run = backend._runs[loaded.header.instance]
        run.mail[:] = [msgspec.structs.replace(message, trace=stored) for message in run.mail]
        backend.end_session(session)
        assert runner.resume(reading, "s") == 1
    assert senders(seen, "reads") in ([set()], FROM_SENDER)


@both
def test_a_damaged_entry_costs_a_link_and_not_the_run(flow: Any, step: str, seen: Seen) -> None:
    """The state is read from its image, so nobody else needs the entry's facts."""
    backend = InMemoryBackend()
    with CheckpointingRunner(backend) as runner:
        runner.start(flow, 1, instance_id="s")
        with sending():
            runner.client.signal("s", "go", True)
        journal = backend._runs[backend.header("s").instance].journal  # type: ignore[union-attr]
        journal[-1] = msgspec.structs.replace(journal[-1], facts=b"damaged")
        assert runner.resume(flow, "s") == 1
    assert senders(seen, step) == [set()]
