"""Those who start instances and ask things of them, as clients in processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from stepwell import (
    AlreadyRunning,
    Complete,
    ConflictPolicy,
    InProcessRunner,
    InstanceEnded,
    Rerun,
    UsageError,
    Workflow,
    WorkflowClient,
)
from stepwell.errors import BackendUnavailable
from stepwell.runtime.live import frontier_of
from stepwell.testing.clock import VirtualClock
from stepwell.types import ENDED

from . import bodies
from .machine import Line

if TYPE_CHECKING:
    from .world import World

VALUES: Final = 25
_EARLY_US: Final = 3_000_000


class Customer:
    """One instance's, from its start to its end."""

    def __init__(self, world: World, client: WorkflowClient, workflow: Workflow[Any, Any], number: int) -> None:
        self.world, self.client, self.workflow = world, client, workflow
        self.value = number
        self.instance_id = f"{workflow.name}-{number}"
        self.cancelled = False
        self.sent = 0
        self.over = self._busy = False
        self._started = False
        self._wishes = self._made_wishes()
        self.next_us = world.chance.span_us(_EARLY_US)

    def _made_wishes(self) -> list[str]:
        """Return what is asked besides, at any time."""
        world, found = self.world, list[str]()
        if world.meddling and world.chance.maybe(0.5):
            found += ["pause", "resume"]
        if world.meddling and world.chance.maybe(0.2):
            found += ["cancel"]
        return found

    # --- when ---

    def occasion(self) -> tuple[int, Callable[[], None]] | None:
        return None if self.over or self._busy else (self.next_us, self.act)

    def act(self) -> None:
        self.next_us = self.world.now_us + self.world.chance.span_us(800_000)
        self._busy = True
        try:
            self._act()
        except BackendUnavailable:
            return  # it may have happened all the same; the same is asked again
        finally:
            self._busy = False

    def _act(self) -> None:
        if not self._started:
            self.world.note(f"client starts {self.instance_id}")
            policy = ConflictPolicy.USE_EXISTING
            self.client.start(self.workflow, self.value, instance_id=self.instance_id, on_conflict=policy)
            self._started = True
        elif self._needs_signal():
            self._signal()
        elif self._wishes:
            self._wish(self._wishes[0])
            self._wishes.pop(0)
        else:
            self._tend()

    def _needs_signal(self) -> bool:
        return self.workflow.name == "signalled" and self.sent < bodies.SIGNALS

    def _signal(self) -> None:
        self.world.note(f"client signals {self.instance_id}: {self.sent}")
        try:
            self.client.signal(self.instance_id, "go", self.sent, signal_id=f"go-{self.sent}")
        except InstanceEnded:
            if not self.cancelled:
                raise
        self.sent += 1

    def _wish(self, wish: str) -> None:
        self.world.note(f"client asks {self.instance_id} to {wish}")
        self.cancelled = self.cancelled or wish == "cancel"
        try:
            getattr(self.client, wish)(self.instance_id)
        except (InstanceEnded, UsageError):
            return

    # --- looking after it ---

    def _tend(self) -> None:
        """Look whether a person is needed, until it has ended."""
        header = self.world.store.header(self.instance_id)
        assert header is not None, f"{self.instance_id} was started and is gone"
        if header.state in ENDED:
            self.over = True
            self._check_end(header.state)
        elif header.state == "paused" and not header.session:
            self.client.resume(self.instance_id)
        elif header.state == "held" and not header.session:
            self._decide()

    def _decide(self) -> None:
        loaded = self.world.store.load(self.instance_id)
        assert loaded is not None
        state = frontier_of(self.workflow.plan, loaded)
        if state.held is None:
            return
        if state.held.reason == "changed":
            self._bring_code_back()
            return
        path, reason = self.workflow.plan.path(state.held.node, state.held.turns), state.held.reason
        self.world.note(f"client decides {self.instance_id}, held ({reason}) at {path}")
        self._check_hold(path, reason)
        judge, name = self.world.judge, (self.instance_id, path)
        judge.seen[f"held: {reason}"] += 1
        guilty = reason == "quarantined" and "poison" in path
        if not guilty:
            judge.permits[name] += 1
        try:
            self.client.decide(self.instance_id, path, Complete(self.value) if guilty else Rerun())
        except (InstanceEnded, UsageError):
            return

    def _bring_code_back(self) -> None:
        """Deploy the code that an instance was begun with, or say that it may go on where that is there already."""
        self.world.note(f"client sees {self.instance_id} held as changed")
        if self.world.serving(self.workflow):
            with suppress(AlreadyRunning, InstanceEnded):
                self.client.move(self.instance_id, self.workflow)
        else:
            self.world.spawn(self.workflow)

    def _check_hold(self, path: str, reason: str) -> None:
        judge = self.world.judge
        if reason == "interrupted":
            if self.instance_id not in judge.blamed and not self.world.poison:
                judge.found(f"{self.instance_id!r} is held as interrupted at {path!r}, where nothing was cut off")
        elif reason != "quarantined":
            judge.found(f"{self.instance_id!r} is held: {reason}")
        elif "poison" not in path and self.instance_id not in judge.blamed:
            judge.found(f"{self.instance_id!r} is quarantined for {path!r}, which is innocent")

    def _check_end(self, state: str) -> None:
        judge = self.world.judge
        if state == "cancelled" and self.cancelled:
            return
        if state == "failed" and self.workflow.name == "slow":  # its bodies may have taken too long
            judge.seen["timed out for good"] += 1
            return
        if state != "completed":
            judge.found(f"{self.instance_id!r} has {state}: {self.client.status(self.instance_id).detail}")
        expected, output = undisturbed()[self.workflow.fingerprint, self.value], self._output()
        if output != expected:
            judge.found(f"{self.instance_id!r} gave {output!r}; undisturbed it gives {expected!r}")

    def _output(self) -> object:
        header = self.world.store.header(self.instance_id)
        assert header is not None
        raw = self.world.store.values(header.instance, [header.result_seq]).get(header.result_seq)
        return self.world.store.codec.decode(raw) if raw is not None else None


@cache
def undisturbed() -> Mapping[tuple[str, int], object]:
    """Return what runs come to that nothing disturbs, by the workflow's fingerprint and the input."""
    found: dict[tuple[str, int], object] = {}
    with InProcessRunner(deps={bodies.Outside: bodies.Nowhere()}, clock=VirtualClock()) as runner:
        for workflow in (*bodies.SERVED, *bodies.VERSIONS):
            known = bodies.KNOWN.get(workflow.name)
            for value in range(1, VALUES + 1):
                found[workflow.fingerprint, value] = known(value) if known is not None else runner.run(workflow, value)
    return found


def client_of(world: World) -> WorkflowClient:
    """Return a client with a connection of its own."""
    from .world import SimClock

    client = WorkflowClient(Line(world, None), clock=SimClock(world, 0))
    client._room._random.seed(world.chance.below(2**30))
    return client
