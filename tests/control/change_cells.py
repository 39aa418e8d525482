"""States of an instance, edits of its workflow, and what a restart with the edited code does: the table as data.

Every state has the same graph but for the stage that is open in it: ``first``, a route by ``kind``, the open stage, a
loop ``later``, ``last``. An edit changes the list of stages, as an author changes lines. What is expected stands in
:data:`USUAL`, and in :data:`EXPECTED` where a state differs from that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

from stepwell import Again, CheckpointingRunner, Complete, Done, Flow, Retry, task, task_context
from stepwell.backend.base import Message
from stepwell.backend.liveness import this_process
from stepwell.runtime.client import WorkflowClient
from stepwell.testing import VirtualClock

Stage: TypeAlias = Callable[[Any], Any]
Stages: TypeAlias = dict[str, Stage]
Edit: TypeAlias = "Callable[[Code, Stages], Stages]"


class Code:
    """The author's functions. What is ``broken`` fails; ``runs`` has the idempotency keys of each body's calls."""

    def __init__(self) -> None:
        self.broken = True
        self.runs: dict[str, list[str]] = defaultdict(list)

    def body(self, name: str, result: Any = int, add: int = 1, dies: bool = False, **options: Any) -> Any:
        def run(x: Any) -> Any:
            self.runs[name].append(task_context().idempotency_key)
            if name == "mid" and self.broken:
                raise SystemExit if dies else OSError("the wire")
            return result(x + add) if isinstance(x, int | float) else result(add)

        run.__annotations__ = {"x": Any, "return": result}
        return task(name, **options)(run)

    def kind(self, name: str = "kind") -> Any:
        def run(x: Any) -> str:
            self.runs[name].append(task_context().idempotency_key)
            return "x"

        return task(name)(run)

    def counts(self, name: str) -> Any:
        def run(x: Any) -> Again[int] | Done[int]:
            self.runs[name].append(task_context().idempotency_key)
            return Again(int(x) + 3) if x < 5 else Done(int(x))

        return task(name)(run)


# --- the open stage of each state ------------------------------------------------------------------------------------


def _mid(code: Code, *, name: str = "mid", was: str = "", other: bool = False, more: bool = False) -> Stage:
    return lambda flow: flow.then(code.body("mid", float if other else int), name=name, was=was)


def _dying(code: Code, *, name: str = "mid", was: str = "", other: bool = False, more: bool = False) -> Stage:
    return lambda flow: flow.then(code.body("mid", float if other else int, dies=True), name=name, was=was)


def _flaky(code: Code, *, name: str = "mid", was: str = "", other: bool = False, more: bool = False) -> Stage:
    step = code.body("mid", float if other else int, retry=Retry(3, delay="1h", jitter=0))
    return lambda flow: flow.then(step, name=name, was=was)


def _once(code: Code, *, name: str = "mid", was: str = "", other: bool = False, more: bool = False) -> Stage:
    step = code.body("mid", float if other else int, dies=True, delivery="at_most_once")
    return lambda flow: flow.then(step, name=name, was=was)


def _wait(code: Code, *, name: str = "answer", was: str = "", other: bool = False, more: bool = False) -> Stage:
    return lambda flow: flow.signal(name, float if other else int, was=was)


def _nap(code: Code, *, name: str = "nap", was: str = "", other: bool = False, more: bool = False) -> Stage:
    if other:
        return lambda flow: flow.then(code.body("extra"), name=name)
    return lambda flow: flow.delay(name, "8h", was=was)


def _fork(code: Code, *, name: str = "fork", was: str = "", other: bool = False, more: bool = False) -> Stage:
    def add(flow: Any) -> Any:
        fork = flow.fork(name=name, was=was, on_error="wait" if other else "cancel")
        fork = fork.branch(code.body("left"), name="left").branch(Flow().signal("answer", int), name="right")
        fork = fork.branch(code.body("extra"), name="extra") if more else fork
        return fork.join(code.body("join"))

    return add


def _loop(code: Code, *, name: str = "turns", was: str = "", other: bool = False, more: bool = False) -> Stage:
    body = Flow().then(code.body("left")).signal("answer", int)
    body = (body.then(code.body("extra", add=0)) if more else body).then(code.counts("decide"))
    return lambda flow: flow.loop(body, name=name, was=was, on_max="last" if other else "fail")


def _child(code: Code, *, name: str = "inner", was: str = "", other: bool = False, more: bool = False) -> Stage:
    inner = Flow("inner2" if other else "inner").then(code.body("left")).signal("answer", int).build()
    return lambda flow: flow.then(inner, name=name, was=was)


# --- the graph and its edits -----------------------------------------------------------------------------------------


def stages_of(code: Code, opened: Callable[..., Stage]) -> Stages:
    return {
        "first": lambda flow: flow.then(code.body("first")),
        "route": lambda flow: flow.route(code.kind(), {"x": code.body("chosen")}),
        "open": opened(code),
        "later": lambda flow: flow.loop(code.counts("count"), name="later"),
        "last": lambda flow: flow.then(code.body("last")),
    }


def built(name: str, stages: Stages) -> Any:
    flow: Any = Flow(name)
    for add in stages.values():
        flow = add(flow)
    return flow.build()


def _without(stages: Stages, name: str) -> Stages:
    return {key: stage for key, stage in stages.items() if key != name}


def _before(stages: Stages, name: str, stage: Stage) -> Stages:
    return {
        k: v
        for key, old in stages.items()
        for k, v in ({"new": stage, key: old} if key == name else {key: old}).items()
    }


def _extra(code: Code) -> Stage:
    return lambda flow: flow.then(code.body("extra"))


def _then(code: Code, task_name: str, *, name: str | None = None, was: str = "", **how: Any) -> Stage:
    return lambda flow: flow.then(code.body(task_name, **how), name=name, was=was)


def _tuned(code: Code) -> Stage:
    step = code.body("last", retry=Retry(4, delay="2s"), priority=1, tags=["slow"])
    return lambda flow: flow.then(step)


def _longer(code: Code) -> Stage:
    return lambda flow: flow.loop(Flow().then(code.body("extra", add=0)).then(code.counts("count")), name="later")


def edits_of(state: str) -> dict[str, Edit]:
    """Return what an author does, by name. The open stage is changed through its own function."""
    opened, name = STATES[state][0], OPEN[STATES[state][0]]

    def with_open(code: Code, stages: Stages, **how: Any) -> Stages:
        return {**stages, "open": opened(code, **how)}

    edits: dict[str, Edit] = {
        "append": lambda c, s: {**s, "new": _extra(c)},
        "insert before open": lambda c, s: _before(s, "open", lambda flow: flow.delay("extra", "1s")),
        "insert after open": lambda c, s: _before(s, "later", _extra(c)),
        "rename open, was": lambda c, s: with_open(c, s, name="other", was=name),
        "rename open": lambda c, s: with_open(c, s, name="other"),
        "rename finished, was": lambda c, s: {**s, "first": _then(c, "first", name="other", was="first")},
        "rename finished": lambda c, s: {**s, "first": _then(c, "first", name="other")},
        "remove future": lambda c, s: _without(s, "later"),
        "remove finished": lambda c, s: _without(s, "first"),
        "type of finished": lambda c, s: {**s, "first": _then(c, "first", result=float)},
        "type of open": lambda c, s: with_open(c, s, other=True),
        "type of future": lambda c, s: {**s, "last": _then(c, "last", result=float)},
        "add case": lambda c, s: {
            **s, "route": lambda f: f.route(c.kind(), {"x": c.body("chosen"), "y": c.body("extra")})
        },
        "change route": lambda c, s: {**s, "route": lambda f: f.route(c.kind("sort"), {"x": c.body("chosen")})},
        "tune": lambda c, s: {**s, "last": _tuned(c)},
        "body": lambda c, s: {**s, "last": _then(c, "last", add=100)},
        "loop body": lambda c, s: {**s, "later": _longer(c)},
        "max_iterations": lambda c, s: {
            **s, "later": lambda f: f.loop(c.counts("count"), name="later", max_iterations=99)
        },
    }  # fmt: skip
    if opened in (_fork, _loop):
        edits["add branch" if opened is _fork else "body of the open loop"] = lambda c, s: with_open(c, s, more=True)
    return edits


# --- what is expected ------------------------------------------------------------------------------------------------

USUAL = {
    "append": "moves",
    "insert before open": "held extra",
    "insert after open": "moves",
    "rename open, was": "moves",
    "rename open": "held OPEN",
    "rename finished, was": "moves",
    "rename finished": "held first",
    "remove future": "moves",
    "remove finished": "held first",
    "type of finished": "held first",
    "type of open": "held OPEN",
    "type of future": "moves",
    "add case": "moves",
    "change route": "held kind",
    "tune": "same",
    "body": "same",
    "loop body": "moves",
    "max_iterations": "same",
}
_SAME = {"tune": "same", "body": "same", "max_iterations": "same"}
#: a wait is known to its senders by its name
_AWAITED = {"rename open, was": "held answer"}
EXPECTED: dict[str, dict[str, str]] = {
    "pending": {
        "insert before open": "moves", "rename open": "moves", "type of open": "moves", "change route": "moves",
    },
    "waiting": _AWAITED,
    "paused": _AWAITED,
    "buffered": _AWAITED,
    "cancelled, retried": _AWAITED,
    "unread signal": {  # it is taken in first, so the loop behind it is open, and has been given its value
        **_AWAITED, "insert after open": "held later", "remove future": "held later",
        "loop body": "held later[1]/count",
    },
    "unread cancel": {**dict.fromkeys(USUAL, "ends"), **_SAME},
    "failed": {**dict.fromkeys(USUAL, "left"), **_SAME},
    "cancelled": {**dict.fromkeys(USUAL, "left"), **_SAME},
    "interrupted": {edit: found.replace("held", "kept") for edit, found in USUAL.items()},
    "mid-fork": {"add branch": "moves"},
    "mid-loop": {"body of the open loop": "moves"},
}  # fmt: skip

OPEN = {
    _mid: "mid", _dying: "mid", _flaky: "mid", _once: "mid", _wait: "answer", _nap: "nap", _fork: "fork",
    _loop: "turns", _child: "inner",
}  # fmt: skip


def expected(state: str) -> dict[str, str]:
    row = {**USUAL, **EXPECTED.get(state, {})}
    return {edit: found.replace("OPEN", OPEN[STATES[state][0]]) for edit, found in row.items()}


# --- how a state comes about -----------------------------------------------------------------------------------------


class Case:
    """One instance of one workflow in one state."""

    def __init__(self, store: Any, clock: VirtualClock, client: WorkflowClient, state: str, edit: str) -> None:
        self.store, self.clock, self.client, self.state = store, clock, client, state
        self.id = f"{state} {edit}".replace("/", "-")
        self.code, self.opened = Code(), STATES[state][0]
        self.old = self.built(lambda code, stages: stages)
        self.new = self.built(edits_of(state)[edit])

    def built(self, edit: Edit) -> Any:
        return built(self.id, edit(self.code, stages_of(self.code, self.opened)))

    def runner(self) -> CheckpointingRunner:
        return CheckpointingRunner(self.store, clock=self.clock, poll="1ms")

    def start(self, workflow: Any) -> Any:
        with self.runner() as runner, suppress(SystemExit):
            return runner.start(workflow, 1, instance_id=self.id)
        return self.client.status(self.id)

    def bring(self) -> None:
        STATES[self.state][1](self)

    def answers(self) -> tuple[int, ...]:
        """The messages that a run of this shape awaits."""
        return {_wait: (7,), _fork: (7,), _loop: (1, 7), _child: (7,)}.get(self.opened, ())

    def post(self, message: Message) -> None:
        """Leave a message that its holder has not read before its end."""
        session = self.store.open_session(this_process(), 30_000_000)
        loaded = self.store.claim(session, self.id)
        assert self.store.post(loaded.header.instance, message) == "posted"
        self.store.end_session(session)

    def finished(self, workflow: Any, instance_id: str = "") -> Any:
        """Bring an instance to its end and return its output."""
        self.code.broken, name = False, instance_id or self.id
        with self.runner() as runner:
            status = runner.start(workflow, 1, instance_id=name)
            if status.state == "held":
                (held,) = self.client.explain(name).reasons
                self.client.decide(name, held.path, Complete(4))  # what its body returns
            if status.state == "paused":
                self.client.resume(name)
            if status.state in ("failed", "cancelled"):
                self.client.retry(name)
            sent = 0 if instance_id else SENT.get(self.state, 0)
            for answer in self.answers()[sent:]:
                self.client.signal(name, "answer", answer)
            return runner.run(workflow, 1, instance_id=name)


def _begin(case: Case) -> None:
    case.start(case.old)


def _pending(case: Case) -> None:
    case.client.start(case.old, 1, instance_id=case.id)


def _interrupted(case: Case) -> None:
    case.start(case.old)
    assert case.start(case.old).state == "held"


def _paused(case: Case) -> None:
    case.start(case.old)
    case.client.pause(case.id)


def _cancelled(case: Case) -> None:
    case.start(case.old)
    case.client.cancel(case.id)


def _cancelled_retried(case: Case) -> None:
    _cancelled(case)
    case.client.retry(case.id)


def _failed_retried(case: Case) -> None:
    case.start(case.old)
    case.client.retry(case.id)


def _buffered(case: Case) -> None:
    """A message that came early, in the journal and not taken by any step."""
    case.start(case.old)
    case.client.pause(case.id)
    case.client.signal(case.id, "answer", 7)


def _one_turn(case: Case) -> None:
    case.start(case.old)
    case.client.signal(case.id, "answer", 1)
    case.start(case.old)


def _unread_signal(case: Case) -> None:
    case.start(case.old)
    case.post(Message("signal", "answer", case.store.codec.encode(7), case.clock.now_us()))


def _unread_cancel(case: Case) -> None:
    case.start(case.old)
    case.post(Message("cancel", "", None, case.clock.now_us()))


STATES: dict[str, tuple[Callable[..., Stage], Callable[[Case], None]]] = {
    "pending": (_mid, _pending),
    "cut off": (_dying, _begin),
    "in a backoff": (_flaky, _begin),
    "begun at most once": (_once, _begin),
    "interrupted": (_once, _interrupted),
    "failed": (_mid, _begin),
    "failed, retried": (_mid, _failed_retried),
    "waiting": (_wait, _begin),
    "paused": (_wait, _paused),
    "buffered": (_wait, _buffered),
    "unread signal": (_wait, _unread_signal),
    "unread cancel": (_wait, _unread_cancel),
    "cancelled": (_wait, _cancelled),
    "cancelled, retried": (_wait, _cancelled_retried),
    "in a delay": (_nap, _begin),
    "mid-fork": (_fork, _begin),
    "mid-loop": (_loop, _one_turn),
    "mid-child": (_child, _begin),
}
#: how many of the awaited messages a state has had already
SENT = {"buffered": 1, "unread signal": 1, "mid-loop": 1}
