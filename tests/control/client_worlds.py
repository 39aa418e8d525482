"""Instances brought into every state that a client may meet, each by a workflow of its own kind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from stepwell import (
    Again,
    CheckpointingRunner,
    Done,
    Retry,
    StepwellError,
    branch,
    delay,
    loop,
    parallel,
    signal,
    task,
    workflow,
)
from stepwell.runtime.client import WorkflowClient
from stepwell.testing import VirtualClock

from ..stores import open_store  # noqa: TID252 - the tests are not installed

ID = "i"


class Workflows:
    """The workflows of one test; what they do can be changed while it runs."""

    def __init__(self) -> None:  # noqa: C901  # many small functions, no branch
        self.broken = True
        self.entered, self.go = threading.Event(), threading.Event()

        @task
        def plus(x: int) -> int:
            return x + 1

        @task
        def breaks(x: int) -> int:
            if self.broken:
                raise OSError("the wire")
            return x + 1

        @task(retry=Retry(3, delay="1h", jitter=0))
        def flaky(x: int) -> int:
            if self.broken:
                raise OSError("the wire") from ValueError("deep")
            return x + 1

        @task(delivery="at_most_once")
        def charge(x: int) -> int:
            if self.broken:
                raise SystemExit("the power fails here")
            return x + 1

        @task
        def blocks(x: int) -> int:
            self.entered.set()
            assert self.go.wait(20)
            return x + 1

        @task
        def counts(x: int) -> Again[int] | Done[int]:
            return Again(x + 1) if x < 3 else Done(x)

        @workflow
        def quick(x: int) -> int:
            return plus(plus(x))

        @workflow
        def napping(x: int) -> int:
            a = plus(x)
            delay("8h")
            return plus(a)

        @workflow
        def asking(x: int) -> int:
            plus(x)
            return plus(signal("answer", int))

        @workflow
        def retrying(x: int) -> int:
            a = flaky(x)
            return plus(a)

        @workflow
        def failing(x: int) -> int:
            a = plus(x)
            b = breaks(a)
            signal("answer", int)
            return b

        @workflow
        def charging(x: int) -> int:
            a = charge(x)
            signal("answer", int)
            return a

        @workflow
        def forking(x: int) -> int:
            with parallel():
                with branch("nap"):
                    delay("8h")
                with branch("ask"):
                    got = signal("answer", int)
                with branch("try"):
                    tried = flaky(x)
            return plus(tried) if got is tried else plus(got)

        @workflow
        def turn(x: int) -> Again[int] | Done[int]:
            signal("answer", int)
            return counts(x)

        @workflow
        def looping(x: int) -> int:
            return loop(turn, x, max_iterations=9)

        @workflow
        def blocking(x: int) -> int:
            a = blocks(x)
            signal("answer", int)
            return plus(a)

        self.quick, self.napping, self.asking, self.retrying, self.failing = quick, napping, asking, retrying, failing
        self.charging, self.forking, self.looping, self.blocking = charging, forking, looping, blocking


class World:
    """A store, a runner that works on it, and a client that knows none of its workflows."""

    def __init__(self, kind: str, path: Path, stack: ExitStack) -> None:
        self.kind, self.clock, self.flows, self.path = kind, VirtualClock(), Workflows(), path
        self.backend = open_store(kind, path)
        elsewhere = self.backend if kind == "memory" else open_store(kind, path)
        for store in (self.backend, elsewhere):
            stack.callback(store.close)
        self.runner = stack.enter_context(CheckpointingRunner(self.backend, clock=self.clock, poll="1ms"))
        self.client = stack.enter_context(WorkflowClient(elsewhere, clock=self.clock))
        stack.callback(self.flows.go.set)  # a test that failed leaves no thread behind

    @property
    def state(self) -> str:
        return self.client.status(ID).state

    def begin(self, name: str, value: int = 1) -> None:
        """Start an instance of one of the workflows and go as far as it can now."""
        with suppress(SystemExit):
            self.runner.start(getattr(self.flows, name), value, instance_id=ID)

    def recover(self) -> None:
        """Do what can be done now."""
        with suppress(StepwellError):
            self.runner.recover([getattr(self.flows, self.client.status(ID).workflow)])

    @contextmanager
    def working(self) -> Iterator[Future[int]]:
        """Work on an instance whose body does not end before the block is left: it keeps its session from looking."""
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(self.runner.run, self.flows.blocking, 1, instance_id=ID)
            assert self.flows.entered.wait(20)
            try:
                yield future
            finally:
                self.flows.go.set()

    @contextmanager
    def waiting(self, name: str) -> Iterator[Future[int]]:
        """Let a session sit with an instance until something comes; time stands still meanwhile."""
        sits, timeout_s = threading.Event(), self.clock.timeout_s
        self.clock._jump = False

        def about_to_wait(wait: Any) -> float | None:
            sits.set()
            return timeout_s(wait)

        self.clock.timeout_s = about_to_wait  # type: ignore[method-assign]
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(self.runner.run, getattr(self.flows, name), 1, instance_id=ID)
            assert sits.wait(20)
            try:
                yield future
            finally:
                with suppress(StepwellError):  # a test that failed leaves no thread behind
                    self.client.cancel(ID)

    # --- the states, by name ---

    def bring(self, state: str) -> None:
        """Leave the instance in one of :data:`STATES`."""
        getattr(self, f"_{state.replace(' ', '_')}")()

    def _pending(self) -> None:
        self.client.start(self.flows.asking, 1, instance_id=ID)

    def _in_a_delay(self) -> None:
        self.begin("napping")

    def _at_a_signal(self) -> None:
        self.begin("asking")

    def _in_a_backoff(self) -> None:
        self.begin("retrying")

    def _in_a_fork(self) -> None:
        self.begin("forking")

    def _in_a_loop(self) -> None:
        self.begin("looping")

    def _paused(self) -> None:
        self.begin("asking")
        self.client.pause(ID, reason="lunch", by="bob")

    def _held_at_a_step(self) -> None:
        self.begin("charging")
        self.recover()

    def _held_itself(self) -> None:
        from stepwell.backend.base import Message
        from stepwell.backend.liveness import this_process

        self.begin("asking")
        session = self.backend.open_session(this_process(), 30_000_000)
        loaded = self.backend.claim(session, ID)
        self.backend.post(loaded.header.instance, Message("of a later version", "", None, 0))
        self.backend.end_session(session)
        self.recover()

    def _completed(self) -> None:
        self.begin("quick")

    def _failed(self) -> None:
        self.begin("failing")

    def _cancelled(self) -> None:
        self.begin("asking")
        self.client.cancel(ID, reason="enough", by="ann")


STATES = (
    "pending", "in a delay", "at a signal", "in a backoff", "in a fork", "in a loop", "paused", "held at a step",
    "held itself", "completed", "failed", "cancelled",
)  # fmt: skip


def hold(world: World, path: str, reason: str = "undecodable") -> None:
    """Hold an instance that nobody works on, as a runner would that cannot read what a step needs."""
    from stepwell.backend.base import Change, Rest
    from stepwell.engine import events as e
    from stepwell.engine.frontier import to_image
    from stepwell.runtime.live import Live, frontier_of
    from stepwell.runtime.stored import stored_plan

    loaded = world.backend.load(ID)
    plan = stored_plan(world.runner._room, loaded.header)
    state, now = frontier_of(plan, loaded), world.clock.now_us()
    node, turns = plan.find(path) or (0, ())
    rows = Live.rows(plan, state, [e.HoldAsked(reason, "somebody must look", node, turns)], now)
    rest = Rest(state.status(now), to_image(state), state.next_due_us())
    assert world.backend.commit(None, [Change(loaded.header.instance, loaded.header.seq, rows, (), rest)]) == ["done"]
