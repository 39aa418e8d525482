"""Stores with journals written by hand, so that exactly one thing can be wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stepwell import InMemoryBackend, Retry, delay, parallel, route, signal, task, workflow
from stepwell.backend.base import Creation, Entry
from stepwell.engine import facts as f
from stepwell.engine.frontier import Frontier, fold, to_image
from stepwell.errors import StepwellError

HOUR_US = 3_600_000_000
START_US = 1_000_000


@task(retry=Retry(attempts=2, delay="1s", jitter=0))
def a(x: int) -> int:
    return x


@task
def b(x: int) -> int:
    return x


@task
def join(x: int, y: int) -> int:
    return x + y


@task(delivery="at_most_once")
def pay(x: int) -> int:
    return x


@workflow
def line(x: int) -> int:
    return b(a(x))


def _longer() -> Any:
    @workflow
    def line(x: int) -> int:
        return a(b(a(x)))

    return line


longer = _longer()


@workflow
def fork(x: int) -> int:
    with parallel():
        p = a(x)
        q = b(p)
        r = join(p, q)
    return b(r)


@workflow
def ask(x: int) -> int:
    return join(signal("word", int), signal("word", int))


@workflow
def ask_for_an_hour(x: int) -> int:
    return b(signal("word", int, timeout="1h"))


@workflow
def nap(x: int) -> int:
    delay("1h")
    return a(x)


@workflow
def paid(x: int) -> int:
    return pay(x)


@workflow
def either(x: int) -> int:
    return route(x, {1: lambda: a(x), 2: lambda: b(x)})


class Forge:
    """One instance of a workflow, ``i``, whose entries are given as facts.

    ``node`` finds a row by its path. ``write`` adds an entry; a value is added where the head promises one.
    """

    def __init__(self, flow: Any) -> None:
        self.plan = flow.plan
        self.store = InMemoryBackend()
        self.definition = self.store.register(self.plan.name, self.plan.fingerprint, self.plan.to_bytes())
        self.entries: list[Entry] = []
        self.at_us = START_US

    def node(self, path: str) -> int:
        found = self.plan.find(path)
        assert found is not None, path
        return int(found[0])

    def write(self, *facts: f.Fact, after_us: int = 0) -> Forge:
        self.at_us += after_us
        brings = isinstance(facts[0], f.RunStarted | f.StepDone | f.AttemptFailed | f.MessageKept | f.CursorKept)
        value = self.store.codec.encode(1) if brings else None
        self.entries.append(Entry(len(self.entries) + 1, f.encode(facts), value, self.at_us))
        return self

    def state(self) -> Frontier:
        """Return where the journal leads; a forged one may lead nowhere."""
        state = Frontier()
        for entry in self.entries:
            fold(self.plan, state, f.decode(entry.facts))
        return state

    def stored(self, **fields: Any) -> InMemoryBackend:
        """Store the instance at rest as its journal says; ``fields`` of the creation may say otherwise."""
        rest: dict[str, Any] = {}
        try:
            state = self.state()
            rest = {
                "state": state.status(self.at_us),
                "due_us": state.next_due_us(),
                "image": to_image(state),
                "result_seq": state.result,
            }
        except (LookupError, TypeError, ValueError, AttributeError, StepwellError):
            rest = {"state": "running", "due_us": 0}
        made = {"input_digest": b"", "entries": self.entries, "at_us": self.at_us, "claim": False, **rest, **fields}
        self.store.create(None, [Creation("i", self.definition, **made)])
        return self.store


def line_done(upto: int = 4) -> Forge:
    """A run of ``line``: started, ``a`` done, ``b`` done and ended."""
    forge = Forge(line)
    first, second = forge.node("a"), forge.node("b")
    entries: Sequence[Sequence[f.Fact]] = (
        (f.RunStarted(), f.Opened(first)),
        (f.StepDone(first), f.Opened(second)),
        (f.StepDone(second), f.RunEnded("completed", 3)),
    )
    for facts in entries[:upto]:
        forge.write(*facts)
    return forge


def row(store: InMemoryBackend) -> Any:
    """Return the stored run itself, to be changed."""
    return store._last["i"]
