"""Random histories of client calls, told to a store in memory, to a SQLite file and to the bare engine side by side.

``python -m tests.control.test_histories 2000 30`` explores as many histories of as many calls, and prints what it saw.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from stepwell.testing import VirtualClock
from stepwell.types import Again, Complete, Done, Fail, Rerun

from .histories import IDS, Call, Figures, Teller
from .history_flows import CHANGED, FIRST, PATHS, VERSIONS

HISTORIES, CALLS = 60, 30

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
decisions = st.sampled_from(
    (Rerun(), Rerun(), Complete(5), Complete(5), Complete("odd"), Complete(Again(2)), Complete(Done(2)), Fail("no"), "no")
)


class Histories(RuleBasedStateMachine):
    """Every rule is one call, and each is answered by all worlds alike."""

    figures = Figures()

    @initialize(made=st.lists(flows, min_size=len(IDS), max_size=len(IDS)), run=st.booleans(), cut=st.booleans())
    def begin(self, made: list[int], run: bool, cut: bool) -> None:
        self.stack, self.clock = ExitStack(), VirtualClock(jump=False)
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.worlds = [Teller(name, self.clock, folder / "h.db", self.stack) for name in ("memory", "sqlite")]
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
            assert other == first
        self.figures.note(first)
        return first

    def then(self, call: Call, instance_id: str) -> None:
        """Make a call that writes, and compare how the instance stands behind it."""
        self.both(call)
        self.both(lambda world: world.clients[1].status(instance_id))

    # --- starting and going on ---

    @rule(i=ids, flow=flows, version=versions, x=inputs, policy=policies, ignore=st.booleans(), by=who)
    def start(self, i: str, flow: int, version: int, x: int, policy: str | None, ignore: bool, by: int) -> None:
        options: Any = {"instance_id": i, "on_conflict": policy, "on_mismatch": "ignore" if ignore else "fail"}
        made = VERSIONS[version][flow]
        self.then(lambda world: world.clients[by].start(made, x, labels={"x": str(x)}, **options), i)

    @rule(i=ids, flow=flows, version=versions, x=inputs, policy=policies, ignore=st.booleans())
    def run(self, i: str, flow: int, version: int, x: int, policy: str | None, ignore: bool) -> None:
        options: Any = {"instance_id": i, "on_conflict": policy, "on_mismatch": "ignore" if ignore else "fail"}
        made = VERSIONS[version][flow]
        self.then(lambda world: world.runner.start(made, x, **options), i)

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
        self.both(lambda world: world.runner.recover(VERSIONS[version]))

    @rule(span=spans, recover=st.booleans())
    def time_passes(self, span: str, recover: bool) -> None:
        self.clock.advance(span)
        if recover:
            self.recover(0)

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
        self.then(lambda world: world.clients[by].signal(i, name, payload, signal_id=signal_id), i)

    @rule(i=ids, reason=people, by=people)
    def cancel(self, i: str, reason: str, by: str) -> None:
        self.then(lambda world: world.clients[1].cancel(i, reason=reason, by=by), i)

    @rule(i=ids, reason=people, by=people)
    def pause(self, i: str, reason: str, by: str) -> None:
        self.then(lambda world: world.clients[1].pause(i, reason=reason, by=by), i)

    @rule(i=ids, by=people)
    def resume(self, i: str, by: str) -> None:
        self.then(lambda world: world.clients[1].resume(i, by=by), i)

    @rule(i=ids, by=people)
    def retry(self, i: str, by: str) -> None:
        self.then(lambda world: world.clients[1].retry(i, by=by), i)

    @rule(i=ids, path=st.none() | paths, decision=decisions, by=people, whose=who)
    def decide(self, i: str, path: str | None, decision: Any, by: str, whose: int) -> None:
        right = self.held_at(i) if path is None else path
        self.then(lambda world: world.clients[whose].decide(i, right, decision, by=by), i)

    def held_at(self, i: str) -> str:
        """Return the path that an instance is held for, so that most decisions are about the right one."""
        told: Any = self.worlds[0].answer(lambda world: world.clients[1].explain(i))
        return next((r["path"] for r in told["reasons"] if r[""] == "Held"), "") if isinstance(told, dict) else ""

    @rule(i=ids, flow=flows, version=st.sampled_from((0, 1)))
    def move(self, i: str, flow: int, version: int) -> None:
        self.then(lambda world: world.clients[1].move(i, VERSIONS[version][flow]), i)

    @rule(i=ids, version=st.sampled_from((0, 1)))
    def move_its_own(self, i: str, version: int) -> None:
        if (flow := self.flow_of(i)) is not None:
            self.move(i, flow, version)

    @rule(i=ids)
    def seize(self, i: str) -> None:
        self.then(lambda world: world.seize(i), i)

    @rule()
    def let_go(self) -> None:
        self.both(lambda world: world.let_go())

    # --- upkeep ---

    @rule(older=st.none() | spans, keep=st.none() | st.sampled_from((0, 1, -1)), limit=st.none() | st.just(1))
    def purge(self, older: str | None, keep: int | None, limit: int | None) -> None:
        self.both(lambda world: world.clients[1].purge(older_than=older, keep=keep, limit=limit))
        self.page(None, None, 2)

    @rule(i=ids)
    def delete(self, i: str) -> None:
        self.then(lambda world: world.clients[1].delete(i), i)

    @rule(i=ids, to=st.none() | ids, cross=st.booleans())
    def restore(self, i: str, to: str | None, cross: bool) -> None:
        """Take a snapshot in each world, and put it into the same one or the next."""
        self.both(lambda world: world.clients[1].snapshot(i))
        if self.worlds[0].backend.header(i) is None:
            return
        taken = [world.clients[1].snapshot(i) for world in self.worlds]
        there = dict(zip((world.name for world in self.worlds), taken[::-1] if cross else taken, strict=True))
        self.then(lambda world: world.clients[1].restore(there[world.name], instance_id=to), to or i)

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
                assert other == first
            self.figures.compared += len(first)
            for world in self.worlds[:1]:
                for status in world.clients[1].iterate():
                    self.figures.states[status.state] = self.figures.states.get(status.state, 0) + 1


def explored(histories: int, calls: int) -> Figures:
    """Explore, and return what was seen."""
    figures = Histories.figures = Figures()
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Histories,
        settings=settings(
            max_examples=histories, stateful_step_count=calls, suppress_health_check=list(HealthCheck), deadline=None
        ),
    )
    return figures


def test_every_store_answers_every_call_alike() -> None:
    """Whatever is called in whatever order, memory and SQLite say the same of it, and neither breaks a promise."""
    figures = explored(HISTORIES, CALLS)
    sys.stdout.write(f"{figures}\n")
    assert figures.histories >= HISTORIES
    assert figures.refused < figures.calls


if __name__ == "__main__":
    sys.stdout.write(f"{explored(int(sys.argv[1]), int(sys.argv[2]))}\n")
