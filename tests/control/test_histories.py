"""Random histories of client calls, told to a store in memory, to another store and to the bare engine side by side.

``python -m tests.control.test_histories 2000 30`` explores as many histories of as many calls, and prints what it saw;
with ``postgres`` behind it on a server, else on a file.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from stepwell.engine import events as e
from stepwell.runtime import drive
from stepwell.testing import VirtualClock
from stepwell.types import Again, Complete, Done, Fail, Rerun

from ..postgres import DSN, Server  # noqa: TID252 - the tests are not installed
from .histories import IDS, Call, Figures, Teller, alike, same
from .history_flows import CHANGED, FIRST, PATHS, VERSIONS
from .history_model import Model, Note

HISTORIES, SERVED, CALLS = 60, 5, 30
FOREVER_NS = 10**15

ids = st.sampled_from(IDS)
flows = st.sampled_from(range(len(FIRST)))
versions = st.sampled_from((0, 0, 0, 1))
who = st.sampled_from((0, 1))
inputs = st.sampled_from((1, 2))
policies = st.sampled_from((None, None, "fail", "use_existing", "terminate_existing", "restart_if_failed", "nonsense"))
people = st.sampled_from(("", "ann"))
spans = st.sampled_from(("1h", "1h", "2h", "8h", "30m"))
states = st.sampled_from((None, "unfinished", "failed", "waiting", "held", ("completed", "cancelled"), "nonsense", ()))
paths = st.sampled_from(PATHS)
completions = st.sampled_from((5, 5, 5, "odd", Again(2), Done(2))).map(Complete)
decisions = completions | st.sampled_from((Rerun(), Rerun(), Fail("no"), "no"))


@contextmanager
def commits_fall(hasty: bool) -> Iterator[None]:
    """Let each step be a commit, or as many as can; else it would depend on how busy the computer is."""
    with patch.object(drive, "TURN_NS", -1 if hasty else FOREVER_NS):
        yield


class Histories(RuleBasedStateMachine):
    """Every rule is one call, and each is answered by all worlds alike."""

    figures = Figures()
    store = "sqlite"

    @initialize(
        made=st.lists(flows, min_size=len(IDS), max_size=len(IDS)), run=st.booleans(), cut=st.booleans(),
        hasty=st.booleans(),
    )  # fmt: skip
    def begin(self, made: list[int], run: bool, cut: bool, hasty: bool) -> None:
        self.stack, self.clock = ExitStack(), VirtualClock(jump=False)
        self.stack.enter_context(commits_fall(hasty))
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.worlds = [Teller(name, self.clock, folder / "h.db", self.stack) for name in ("memory", self.store)]
        self.model = Model(self.clock, self.worlds[0].ledger)
        self.figures.histories += 1
        self.turn_out(True, cut)
        for i, flow in zip(IDS, made, strict=True):
            self.start(i, flow, 0, 1, None, False, 0)
            if run:
                self.run(i, flow, 0, 1, None, False)

    def both(self, call: Call) -> object:
        """Make a call everywhere, and compare."""
        first, *others = [world.answer(call) for world in self.worlds]
        for other in others:
            same(first, other)
        self.figures.note(first)
        return first

    def then(self, call: Call, instance_id: str, model: Callable[[], str] | None = None) -> object:
        """Make a call that writes, and compare how the instance stands behind it.

        ``model`` makes it of the bare engine and returns the error that it must lead to; a call that was refused for
        what is in its arguments is not made of it.
        """
        answer = self.both(call)
        error = answer.partition(":")[0] if isinstance(answer, str) else "ok"
        if model is not None and error not in ("EncodeError", "OptionError"):
            told = model()
            assert ("ok" if told in ("attach", "restart") else told) == error, f"the engine says {told} to {answer}"
        self.both(lambda world: world.clients[1].status(instance_id))
        self.agree()
        return answer

    def agree(self) -> None:
        """Compare every instance, and every body that has run, with the bare engine's."""
        world = self.worlds[0]
        alike(world.standings(), self.model.seen())
        assert world.ledger.ran == self.model.ran
        self.figures.compared += len(self.model.of)

    # --- starting and going on ---

    @rule(i=ids, flow=flows, version=versions, x=inputs, policy=policies, ignore=st.booleans(), by=who)
    def start(self, i: str, flow: int, version: int, x: int, policy: str | None, ignore: bool, by: int) -> None:
        options: Any = {"instance_id": i, "on_conflict": policy, "on_mismatch": "ignore" if ignore else "fail"}
        made = VERSIONS[version][flow]
        mismatch = options["on_mismatch"]

        def model() -> str:
            told = self.model.start(i, made, x, policy, mismatch)
            return self.model.reopen(i) if told == "restart" else told

        self.then(lambda world: world.clients[by].start(made, x, labels={"x": str(x)}, **options), i, model)

    @rule(i=ids, flow=flows, version=versions, x=inputs, policy=policies, ignore=st.booleans())
    def run(self, i: str, flow: int, version: int, x: int, policy: str | None, ignore: bool) -> None:
        options: Any = {"instance_id": i, "on_conflict": policy, "on_mismatch": "ignore" if ignore else "fail"}
        made = VERSIONS[version][flow]
        mismatch = options["on_mismatch"]
        self.then(
            lambda world: world.runner.start(made, x, **options), i,
            lambda: self.model.run(i, made, x, policy, mismatch),
        )  # fmt: skip

    @rule(i=ids, x=inputs, policy=policies)
    def run_its_own(self, i: str, x: int, policy: str | None) -> None:
        if (flow := self.flow_of(i)) is not None:
            self.run(i, flow, 0, x, policy, ignore=True)

    def flow_of(self, i: str) -> int | None:
        """Return which workflow an instance is of, so that most calls are about the right one."""
        header = self.worlds[0].backend.header(i)
        return next((n for n, each in enumerate(FIRST) if each.name == header.workflow), None) if header else None

    @rule(version=versions)
    def recover(self, version: int) -> None:
        for world in self.worlds:
            world.ledger.cut = False  # what else the call had reached then would depend on how commits fall
        found: Any = self.both(lambda world: world.runner.recover(VERSIONS[version]))
        self.model.recover(VERSIONS[version], [each["instance_id"] for each in found])
        self.agree()

    @rule(span=spans, recover=st.booleans())
    def time_passes(self, span: str, recover: bool) -> None:
        self.clock.advance(span)
        if recover:
            self.recover(0)

    @rule(answer=st.booleans())
    def all_goes_well(self, answer: bool) -> None:
        """Bring whatever can end to its end."""
        self.turn_out(False, False)
        for i in IDS if answer else ():
            self.signal(i, "answer", 7, "", 1)
        self.time_passes("8h", True)

    @rule(broken=st.booleans(), cut=st.booleans())
    def turn_out(self, broken: bool, cut: bool) -> None:
        for world in self.worlds:
            world.ledger.broken, world.ledger.cut = broken, cut

    # --- from outside ---

    @rule(
        i=ids,
        name=st.sampled_from(("answer", "answer", "answer", "other", "nonsense", "a/b")),
        payload=st.sampled_from((1, 7, 7, "odd", object())),
        signal_id=st.sampled_from(("", "", "s1", "s2")),
        by=who,
    )
    def signal(self, i: str, name: str, payload: object, signal_id: str, by: int) -> None:
        awaited = self.awaits(i, name)
        note = Note("signal", lambda _: e.Signalled(name), payload, signal_id)
        known = [world.clients[by] for world in self.worlds[:1]]

        def model() -> str:
            goes_on = i in self.model.of and not self.model.of[i].state.ended
            if goes_on and not (awaited and self.fits(known[0], i, payload)):
                return "UsageError"
            return self.model.send(i, note)

        self.then(lambda world: world.clients[by].signal(i, name, payload, signal_id=signal_id), i, model)

    def awaits(self, i: str, name: str) -> bool:
        """Whether an instance's workflow takes a signal of this name."""
        there = self.model.of.get(i)
        return there is not None and name in there.run.plan.signals

    def fits(self, client: Any, i: str, payload: object) -> bool:
        """Whether a client may send this payload: all are numbers, which one without the workflow cannot know."""
        return isinstance(payload, int) or client._room.workflow_of(self.model.of[i].run.plan) is None

    @rule(i=ids, reason=people, by=people)
    def cancel(self, i: str, reason: str, by: str) -> None:
        note = Note("cancel", lambda _: e.CancelAsked(reason, by))
        self.then(lambda world: world.clients[1].cancel(i, reason=reason, by=by), i, lambda: self.model.send(i, note))

    @rule(i=ids, reason=people, by=people)
    def pause(self, i: str, reason: str, by: str) -> None:
        note = Note("pause", lambda _: e.PauseAsked(reason, by))
        self.then(lambda world: world.clients[1].pause(i, reason=reason, by=by), i, lambda: self.model.send(i, note))

    @rule(i=ids, by=people)
    def resume(self, i: str, by: str) -> None:
        note = Note("resume", lambda _: e.ResumeAsked(by))
        self.then(lambda world: world.clients[1].resume(i, by=by), i, lambda: self.model.send(i, note))

    @rule(i=ids, by=people)
    def retry(self, i: str, by: str) -> None:
        note = Note("retry", lambda _: e.RetryAsked(by))
        self.then(lambda world: world.clients[1].retry(i, by=by), i, lambda: self.model.send(i, note))

    @rule(i=ids, path=st.none() | paths, decision=decisions, by=people, whose=who)
    def decide(self, i: str, path: str | None, decision: Any, by: str, whose: int) -> None:
        right = self.held_at(i) if path is None else path
        answer = self.both(lambda world: world.clients[whose].decide(i, right, decision, by=by))
        if answer is None:
            assert self.model.decided(i, right, decision, by) == "ok"
        self.agree()

    def held_at(self, i: str) -> str:
        """Return the path that an instance is held for, so that most decisions are about the right one."""
        told: Any = self.worlds[0].answer(lambda world: world.clients[1].explain(i))
        return next((r["path"] for r in told["reasons"] if r[""] == "Held"), "") if isinstance(told, dict) else ""

    @rule(i=ids, flow=flows, version=st.sampled_from((0, 1)))
    def move(self, i: str, flow: int, version: int) -> None:
        made = VERSIONS[version][flow]
        self.then(lambda world: world.clients[1].move(i, made), i, lambda: self.model.move(i, made))

    @rule(i=ids, version=st.sampled_from((0, 1)))
    def move_its_own(self, i: str, version: int) -> None:
        if (flow := self.flow_of(i)) is not None:
            self.move(i, flow, version)

    @rule(i=ids)
    def seize(self, i: str) -> None:
        self.then(lambda world: world.seize(i), i, lambda: self.model.seize(i))

    @rule()
    def let_go(self) -> None:
        self.both(lambda world: world.let_go())
        self.model.let_go()
        self.agree()
        for i, there in list(self.model.of.items()):
            if there.mail and there.run.steps("ready"):  # a runner may take up either first
                self.resume(i, "")

    # --- upkeep ---

    @rule(older=st.none() | spans, keep=st.none() | st.sampled_from((0, 1, -1)), limit=st.none() | st.just(1))
    def purge(self, older: str | None, keep: int | None, limit: int | None) -> None:
        count = self.both(lambda world: world.clients[1].purge(older_than=older, keep=keep, limit=limit))
        self.model.purged([status.instance_id for status in self.worlds[0].clients[1].iterate()], count)
        self.agree()
        self.page(None, None, 2)

    @rule(i=ids)
    def delete(self, i: str) -> None:
        self.then(lambda world: world.clients[1].delete(i), i, lambda: self.model.delete(i))

    @rule(i=ids, to=st.none() | ids, cross=st.booleans())
    def restore(self, i: str, to: str | None, cross: bool) -> None:
        """Take a snapshot in each world, and put it into the same one or the next."""
        self.both(lambda world: world.clients[1].snapshot(i))
        if self.worlds[0].backend.header(i) is None:
            return
        taken = [world.clients[1].snapshot(i) for world in self.worlds]
        there = dict(zip((world.name for world in self.worlds), taken[::-1] if cross else taken, strict=True))
        self.then(
            lambda world: world.clients[1].restore(there[world.name], instance_id=to), to or i,
            lambda: self.model.restore(i, to or i),
        )  # fmt: skip

    # --- reading ---

    @rule(i=ids)
    def explain(self, i: str) -> None:
        self.both(lambda world: world.clients[1].explain(i))

    @rule(i=ids, after=st.sampled_from((0, 0, 2)), limit=st.none() | st.sampled_from((1, 5)))
    def history(self, i: str, after: int, limit: int | None) -> None:
        self.both(lambda world: world.clients[1].history(i, after=after, limit=limit))

    @rule(i=ids, path=st.none() | paths)
    def attempts(self, i: str, path: str | None) -> None:
        self.both(lambda world: world.clients[1].attempts(i, path))

    @rule(i=ids, path=paths, kind=st.sampled_from((int, str)))
    def task_result(self, i: str, path: str, kind: Any) -> None:
        self.both(lambda world: world.clients[1].task_result(i, path, type=kind))

    @rule(i=ids, flow=st.none() | flows)
    def result(self, i: str, flow: int | None) -> None:
        made = None if flow is None else FIRST[flow]
        self.both(lambda world: world.clients[1].result(i, made, timeout=0))

    @rule(state=states, flow=st.none() | flows, limit=st.sampled_from((0, 1, 2, 100)))
    def page(self, state: Any, flow: int | None, limit: int) -> None:
        """List a page and the one after it, and count what is on all of them."""
        where: Any = {"state": state, "workflow": None if flow is None else FIRST[flow]}
        page: Any = self.both(lambda world: world.clients[1].list(limit=limit, **where))
        self.both(lambda world: world.clients[1].count(**where, labels={"x": "1"}))
        if isinstance(page, list) and page:
            self.both(lambda world: world.clients[1].list(limit=limit, after=page[-1]["number"], **where))

    @rule(changed=st.sampled_from(range(len(CHANGED))))
    def preview(self, changed: int) -> None:
        self.both(lambda world: world.clients[1].preview_change(CHANGED[changed]))
        self.both(lambda world: world.clients[1].stuck())

    def teardown(self) -> None:
        if not hasattr(self, "worlds"):
            return
        with self.stack:
            for world in self.worlds:
                world.check()
            first, *others = [list(world.everything()) for world in self.worlds]
            for other in others:
                same(first, other)
            self.figures.compared += len(first)
            for world in self.worlds[:1]:
                for status in world.clients[1].iterate():
                    self.figures.states[status.state] = self.figures.states.get(status.state, 0) + 1


def explored(store: str, histories: int, calls: int) -> Figures:
    """Explore, and return what was seen."""
    figures, Histories.store = Figures(), store
    Histories.figures = figures
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Histories,
        settings=settings(
            max_examples=histories, stateful_step_count=calls, suppress_health_check=list(HealthCheck), deadline=None
        ),
    )
    return figures


def test_every_store_answers_every_call_alike() -> None:
    """Whatever is called in whatever order, memory and SQLite say the same of it, and neither breaks a promise."""
    figures = explored("sqlite", HISTORIES, CALLS)
    sys.stdout.write(f"{figures}\n")
    assert figures.histories >= HISTORIES
    assert figures.refused < figures.calls


@pytest.mark.usefixtures("postgres_server")
def test_a_server_answers_every_call_alike() -> None:
    """The same of memory and PostgreSQL, for a few histories."""
    figures = explored("postgres", SERVED, CALLS)
    sys.stdout.write(f"{figures}\n")
    assert figures.histories >= SERVED


if __name__ == "__main__":
    with ExitStack() as servers:
        if "postgres" in sys.argv:
            os.environ[DSN] = servers.enter_context(Server(durable=False)).dsn()
        sys.stdout.write(f"{explored((*sys.argv, 'sqlite')[3], int(sys.argv[1]), int(sys.argv[2]))}\n")
