"""One history of calls told to several stores at once: every answer is compared, call by call.

All worlds share one clock that only the history moves, and every body runs in the caller's thread. So whatever differs
between two answers is a difference of the stores, but for the few things that :func:`shown` leaves out: how long a body
took on the computer's own clock, and the random id of a store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Final

import msgspec

from stepwell import CheckpointingRunner, StepwellError
from stepwell.backend.base import Filter, Session
from stepwell.backend.liveness import this_process
from stepwell.runtime import snapshot_format
from stepwell.runtime.client import WorkflowClient
from stepwell.runtime.live import frontier_of
from stepwell.runtime.stored import stored_plan
from stepwell.testing import VirtualClock
from stepwell.testing.invariants import check_store

from ..stores import open_store  # noqa: TID252 - the tests are not installed
from .history_flows import FIRST, Ledger, PowerFails
from .history_model import standing

IDS: Final = ("a", "b", "c")
LEASE_US: Final = 3_600_000_000
ANSWERS: Final = (StepwellError, TimeoutError, PowerFails)

Call = Callable[["Teller"], object]


class Teller:
    """A store, a runner on it, a client without the workflows' code, and a session of somebody else's."""

    def __init__(self, name: str, clock: VirtualClock, path: Path, stack: ExitStack) -> None:
        self.name, self.clock, self.ledger = name, clock, Ledger()
        self.backend = open_store(name, path, durability="fast")
        elsewhere = self.backend if name == "memory" else open_store(name, path, durability="fast")
        for store in (self.backend, elsewhere):
            stack.callback(store.close)
        self.runner = stack.enter_context(CheckpointingRunner(self.backend, clock=clock, deps={Ledger: self.ledger}))
        self.clients = (self.runner.client, stack.enter_context(WorkflowClient(elsewhere, clock=clock)))
        self.other: Session | None = None
        for each in FIRST:
            self.runner._room.prepare(each)  # the first versions were there before the second ones

    def answer(self, call: Call) -> object:
        """Return what a call gives, or in words what it raises."""
        try:
            return shown(call(self))
        except ANSWERS as error:
            text = str(error).replace(repr(self.backend), "the store")
            return f"{type(error).__name__}: {text} <- {error.__cause__!r}"

    # --- what is more than one call ---

    def seize(self, instance_id: str) -> object:
        """Let a session that does nothing hold an instance, so that messages are posted to it."""
        if self.other is None:
            self.other = self.backend.open_session(this_process("somebody"), LEASE_US)
        loaded = self.backend.claim(self.other, instance_id)
        return loaded and (loaded.header.state, loaded.header.held_by, len(loaded.mail))

    def standings(self) -> dict[str, object]:
        """Return how each instance stands, as the bare engine's :meth:`Model.seen` does."""
        return {header.instance_id: self._standing(header.instance_id) for header in self.backend.list(Filter())}

    def _standing(self, instance_id: str) -> object:
        loaded = self.backend.load(instance_id)
        plan = stored_plan(self.runner._room, loaded.header)
        state, header = frontier_of(plan, loaded), loaded.header
        return (header.run, header.mail, bool(header.session), *standing(plan, state, self.clock.now_us()))

    def let_go(self) -> None:
        """End that session, and with it all it holds."""
        if self.other is not None:
            self.backend.end_session(self.other)
        self.other = None

    def everything(self) -> Iterator[object]:
        """Yield all that can be read of all instances."""
        client = self.clients[1]
        for status in client.iterate():
            yield shown(status)
            for read in (client.explain, client.history, client.attempts, client.snapshot):
                yield self.answer(lambda _, read=read, status=status: read(status.instance_id))  # type: ignore[misc]
        yield sorted(self.ledger.ran.items())

    def check(self) -> None:
        """Check every promise of the store; its clock is the history's."""
        report = check_store(self.backend, now_us=self.clock.now_us())
        assert report.ok, f"{self.name}: {report}"


def shown(answer: object) -> object:
    """Return an answer as it is compared."""
    if isinstance(answer, bytes):
        return _snapshot(answer)
    if isinstance(answer, list | tuple):
        return [shown(each) for each in answer]
    if is_dataclass(answer) and not isinstance(answer, type):
        told = {f.name: shown(getattr(answer, f.name)) for f in fields(answer) if f.name not in ("took", "began")}
        return {"": type(answer).__name__, **told, **({"text": answer.text} if hasattr(answer, "text") else {})}
    return answer


def _snapshot(data: bytes) -> object:
    snapshot, codec = snapshot_format.read(data)
    rows = [msgspec.structs.replace(row, took_us=0) for row in snapshot.entries]
    return codec, msgspec.structs.replace(snapshot, origin="-", entries=rows)


def same(first: object, other: object, at: str = "") -> None:
    """Assert that two shown answers are equal; say where they are not."""
    if isinstance(first, list) and isinstance(other, list) and len(first) == len(other):
        for n, (one, two) in enumerate(zip(first, other, strict=True)):
            same(one, two, f"{at}[{n}]")
    elif isinstance(first, dict) and isinstance(other, dict) and first.keys() == other.keys():
        for key, one in first.items():
            same(one, other[key], f"{at}.{key}")
    else:
        assert other == first, f"the stores answer differently{at and f' at {at}'}"


def alike(stored: dict[str, object], model: dict[str, object]) -> None:
    """Assert that instances stand as the bare engine's do; say which does not."""
    assert stored.keys() == model.keys()
    for i, there in stored.items():
        assert there == model[i], f"{i} stands otherwise than the engine's:\n{there}\n{model[i]}"


class Figures:
    """What was explored."""

    def __init__(self) -> None:
        self.histories = self.calls = self.compared = self.refused = 0
        self.states: dict[str, int] = {}

    def note(self, answer: object) -> None:
        """Count one answer that was the same everywhere."""
        self.calls += 1
        self.compared += 1
        self.refused += isinstance(answer, str) and ": " in answer

    def __str__(self) -> str:
        states = ", ".join(f"{state} {count}" for state, count in sorted(self.states.items()))
        return (
            f"{self.histories} histories, {self.calls} calls ({self.refused} refused), "
            f"{self.compared} answers compared; instances at the end: {states}"
        )
