"""The hands of these tests: a run in memory that checks every law after every event, and what may be said to it.

Values are short texts that name the step, its turns and a digest of its arguments, so that two values are equal only if
the same step was given the same things.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from stepwell.engine import advance as engine
from stepwell.engine import events as e
from stepwell.engine import facts as f
from stepwell.engine import laws
from stepwell.engine.change import Obstacle, compare
from stepwell.engine.frontier import Frontier, Step, address, fold, from_image, to_image
from stepwell.flow.compile import Bodies
from stepwell.flow.plan import Arg, Built, Constant, Key, Plan, Ref, Selected, Turns
from stepwell.flow.workflow import Workflow

from .graphs import Chooser

BODY = ("ready", "began", "tried", "closing")


# --- what steps compute: shared with the oracle ------------------------------------------


def stem(name: str) -> str:
    """Return a step's first name: what renames it puts ``~1`` behind it."""
    return name.partition("~")[0]


def token(name: str, turns: Turns, *given: object) -> str:
    """Return the value of a step: who, in which turns, from what."""
    return f"{stem(name)}{turns}#{hashlib.blake2b(repr(given).encode(), digest_size=6).hexdigest()}"


def says(name: str, turns: Turns) -> str:
    """Return the tag of a loop's decider: it takes one to three turns, by its name."""
    return "again" if turns[-1] < 1 + zlib.crc32(stem(name).encode()) % 3 else "done"


def chosen(name: str, key: object, count: int) -> int:
    """Return which of a route's cases is chosen."""
    return zlib.crc32(repr((stem(name), key)).encode()) % count


def selected(value: object, steps: object) -> object:
    return token("select", (), value, steps)


def displayed(kind: str, items: Sequence[object], keys: Sequence[object]) -> object:
    if kind == "dict":
        return dict(zip(keys, items, strict=True))
    return list(items) if kind == "list" else tuple(items)


# --- a run -------------------------------------------------------------------------------


class Run:
    """One run. ``say`` is the only way to move it; it raises LawBroken or AssertionError when something is wrong."""

    def __init__(self, plan: Plan, bodies: Bodies | None = None) -> None:
        self.plan, self.bodies = plan, bodies
        self.state, self.shadow = Frontier(), Frontier()
        self.now = 1_000
        self.values: dict[int, object] = {0: None}
        self.outcomes: Counter[tuple[str, int, Turns]] = Counter()
        self.calls: Counter[tuple[str, Turns]] = Counter()
        self.ran: Counter[str] = Counter()
        self.made: dict[tuple[str, Turns], object] = {}
        self.facts: list[f.Fact] = []
        self.entries: list[Sequence[f.Fact]] = []
        self.events: list[e.Event] = []
        self.crashes: Counter[Key] = Counter()
        self.starts: dict[Key, str] = {}
        self.most_kept = 0

    @classmethod
    def of(cls, workflow: Workflow[Any, Any]) -> Run:
        return cls(workflow.plan, workflow.bodies)

    def say(self, event: e.Event, value: object = None) -> Sequence[f.Fact]:
        """Advance, and check everything that can be checked of one step."""
        before, open_steps = to_image(self.state), dict(self.state.steps)
        must_ignore = self.must_ignore(event)
        expected = None if must_ignore else self.expected(event)
        twin = from_image(before)
        facts = engine.advance(self.plan, self.state, event, self.now)
        stored = f.encode(facts)
        assert f.encode(engine.advance(self.plan, twin, event, self.now)) == stored, "advance is not deterministic"
        assert twin == self.state, "a state read from its image goes another way"
        assert fold(self.plan, self.shadow, f.decode(stored)) == self.state, "the recovered state differs"
        assert not (facts and must_ignore), f"{event} does not fit and led to {facts}"
        assert expected is None or list(facts) == expected, f"{event} led to {facts}"
        laws.check_step(self.plan, before, facts, self.state)
        laws.check(self.plan, self.state)
        self._note(event, facts, value)
        self._check_crashes(open_steps, facts)
        return facts

    def must_ignore(self, event: e.Event) -> bool:
        """Say whether an event does not fit, as a reader of its docstring would."""
        state = self.state
        if isinstance(event, e.RetryAsked):
            return state.ended in ("", "completed")
        if isinstance(event, e.MoveAsked):
            return state.ended == "completed" or event.seq != state.seq
        if isinstance(event, e.Decided):
            held = state.held
            return held is None or (held.node, held.turns) != (event.node, event.turns)
        if state.ended:
            return True
        if isinstance(event, e.Succeeded | e.Errored | e.Begun | e.Beat | e.CutOff):
            step = state.steps.get((event.node, event.turns))
            return step is None or step.attempt != event.attempt or step.phase not in BODY
        if isinstance(event, e.HoldAsked) and event.attempt:
            step = state.steps.get((event.node, event.turns))
            return step is None or step.attempt != event.attempt or step.phase not in BODY
        if isinstance(event, e.Fired):
            step = state.steps.get((event.node, event.turns))
            stopped = state.paused or state.held
            return bool(stopped) or step is None or step.phase != "parked" or not 0 < step.due_us <= self.now
        return False

    def expected(self, event: e.Event) -> list[f.Fact] | None:
        """Return what the start or the loss of an attempt leads to; ``None`` for what is not said here."""
        match event:
            case e.Begun():
                return self.begun(event)
            case e.CutOff():
                return self.cut_off(event)
            case _:
                return None

    def once(self, node: int) -> bool:
        return self.plan.nodes[node].delivery == "at_most_once"

    def begun(self, event: e.Begun) -> list[f.Fact]:
        """Return how a start is recorded: as the plan says now, and once, unless it is to be the only one now."""
        key, once = (event.node, event.turns), self.once(event.node)
        start = self.starts.get(key, "")
        if self.state.steps[key].phase == "closing" or start == "only" or (start and not once):
            return []
        return [(f.StepBegan if once else f.StepTried)(*key, event.attempt)]

    def cut_off(self, event: e.CutOff) -> list[f.Fact] | None:
        """Return what a cut off leads to; ``None`` for a step that is closing, which then just settles."""
        key, held = (event.node, event.turns), self.state.held
        step, start = self.state.steps[key], self.starts.get((event.node, event.turns), "")
        died, path = self.crashes[key] + 1, self.plan.path(*key)
        if step.phase == "closing":
            return None
        if start == "only":
            return [] if held else [f.RunHeld("interrupted", path, *key)]
        if (not start and self.once(event.node)) or (held and (held.node, held.turns) == key):
            return []
        if died < event.limit:
            return [f.StepCrashed(*key, step.attempt, died)]
        return [] if held else [f.RunHeld("quarantined", path, *key)]

    def _check_crashes(self, before: dict[Key, Step], facts: Sequence[f.Fact]) -> None:
        """Crashes are counted one by one until an attempt ends, and change nothing else about a step."""
        for fact in facts:
            self._note_start(fact)
            match fact:
                case f.StepCrashed(node, turns, attempt, crashes):
                    self.crashes[(node, turns)] += 1
                    again = Step(
                        attempt + 1, before[(node, turns)].spent, crashes=crashes, path=before[(node, turns)].path
                    )
                    assert self.state.steps[(node, turns)] == again, f"{fact} led to another step than {again}"
                case f.AttemptFailed(node, turns) | f.StepDone(node, turns) | f.RouteTaken(node, turns):
                    self.crashes.pop((node, turns), None)
                case f.Opened(node, turns) | f.HoldDecided(node, turns, "complete" | "fail"):
                    self.crashes.pop((node, turns), None)
                case f.RunMoved():
                    row = {old + i: new + i for old, new, count in fact.rows for i in range(count)}
                    self.crashes = Counter({(row[n], t): c for (n, t), c in self.crashes.items() if n in row})
        kept = {key: step.crashes for key, step in self.state.steps.items() if step.crashes}
        assert kept == dict(self.crashes), f"crashes are kept as {kept} and were {self.crashes}"

    def _note_start(self, fact: f.Fact) -> None:
        """Which attempts have begun, and whether as the only start of their step or as one that may be repeated."""
        match fact:
            case f.StepBegan(node, turns):
                self.starts[(node, turns)] = "only"
            case f.StepTried(node, turns):
                self.starts[(node, turns)] = "one of many"
            case f.StepCrashed(node, turns) | f.AttemptFailed(node, turns) | f.StepDone(node, turns):
                self.starts.pop((node, turns), None)
            case f.RouteTaken(node, turns) | f.Opened(node, turns) | f.HoldDecided(node, turns, "complete" | "fail"):
                self.starts.pop((node, turns), None)
            case f.RunMoved():
                row = {old + i: new + i for old, new, count in fact.rows for i in range(count)}
                self.starts = {(row[n], t): start for (n, t), start in self.starts.items() if n in row}

    def _note(self, event: e.Event, facts: Sequence[f.Fact], value: object) -> None:
        if not facts:
            return
        self.events.append(event)
        self.facts.extend(facts)
        self.entries.append(facts)
        self.values[self.state.seq] = value
        if isinstance(facts[0], f.RunMoved):
            self._renumber(facts[0])
        for fact in facts:
            self._note_call(fact)
            if isinstance(fact, f.StepDone | f.RouteTaken | f.ScopeDone | f.MessageTaken | f.Turned):
                done = type(fact).__name__, fact.node, fact.turns
                self.outcomes[done] += 1
                assert self.outcomes[done] == 1, f"{done} has two outcomes"
        self.most_kept = max(self.most_kept, len(self.state.values) + len(self.state.steps))

    def _note_call(self, fact: f.Fact) -> None:
        """No body has two outcomes in one place and turn: paths, but for new names, outlive renumbering."""
        match fact:
            case f.StepDone(node, turns) | f.HoldDecided(node, turns, "complete"):
                if self.plan.kind[node] == "task":
                    call = stem(self.plan.nodes[node].name), turns
                    self.calls[call] += 1
                    self.made[call] = self.values[self.state.seq]
                    path = re.sub(r"~\d", "", self.plan.path(node, turns))
                    self.ran[path] += 1
                    assert self.ran[path] == 1, f"{path} ran twice"

    def _renumber(self, moved: f.RunMoved) -> None:
        row = {old + i: new + i for old, new, count in moved.rows for i in range(count)}
        self.outcomes = Counter({(k, row[n], t): c for (k, n, t), c in self.outcomes.items() if n in row})
        self.events.clear()  # they name rows of the old graph; whoever has some in flight must not move

    def move(self, workflow: Workflow[Any, Any]) -> Obstacle | None:
        """Go on under another graph, or say what stands in the way."""
        before = to_image(self.state)
        asked = compare(self.plan, workflow.plan, self.state, self.entries)
        assert to_image(self.state) == before, "comparing changed the state"
        if isinstance(asked, Obstacle):
            return asked
        self.plan, self.bodies = workflow.plan, workflow.bodies
        assert self.say(asked)
        return None

    def tune(self, node: int) -> None:
        """Go on under code that delivers a task otherwise, which makes no other graph."""
        delivery = "at_least_once" if self.once(node) else "at_most_once"
        nodes = list(self.plan.nodes)
        nodes[node] = msgspec.structs.replace(nodes[node], delivery=delivery)
        self.plan = Plan(msgspec.structs.replace(self.plan.data, nodes=tuple(nodes)))

    # --- bodies ---

    def bound(self, arg: Arg, turns: Turns) -> object:
        match arg:
            case Ref(node):
                return self.values[address(self.plan, self.state, node, turns)]
            case Selected(base, steps):
                return selected(self.bound(base, turns), steps)
            case Constant(index):
                assert self.bodies is not None
                return self.bodies.constants[index]
            case Built(kind, items, keys):
                return displayed(kind, [self.bound(i, turns) for i in items], [self.bound(k, turns) for k in keys])

    def computed(self, node: int, turns: Turns) -> tuple[object, str]:
        """Return what a step's body gives: value and tag."""
        row = self.plan.nodes[node]
        args = [self.bound(arg, turns) for arg in row.args]
        if row.kind == "pack":
            return args[0], ""
        if row.kind == "route":
            return None, self.plan.nodes[row.children[chosen(row.name, args[0], len(row.children))]].name
        kwargs = [(k, self.bound(arg, turns)) for k, arg in row.kwargs]
        version = self.bodies.tasks[node].options.version if self.bodies else ""
        return token(row.name, turns, args, kwargs, version), says(
            row.name, turns
        ) if row.task == "decider" and turns else ""

    def succeed(self, node: int, turns: Turns) -> Sequence[f.Fact]:
        value, tag = self.computed(node, turns)
        return self.say(e.Succeeded(node, turns, self.state.steps[(node, turns)].attempt, tag), value)

    def fire(self, node: int, turns: Turns) -> Sequence[f.Fact]:
        self.now = max(self.now, self.state.steps[(node, turns)].due_us)
        return self.say(e.Fired(node, turns))

    # --- looking ---

    def steps(self, *phases: str) -> list[Key]:
        return [key for key, step in self.state.steps.items() if step.phase in phases]

    def at(self, path: str) -> Step:
        key = self.plan.find(path)
        assert key is not None, path
        return self.state.steps[key]

    @property
    def result(self) -> object:
        return self.values[self.state.result]


# --- going to the end --------------------------------------------------------------------


def finish(run: Run, choose: Chooser, late: str = "message") -> None:
    """Bring a run to its end whatever state it is in, or fail: this is what "no limbo" means.

    ``late`` says what comes to a signal that has a timeout: ``message`` or ``timeout``.
    """
    for _ in range(4_000):
        if run.state.ended:
            return
        step(run, choose, late)
    raise AssertionError("the run does not end")


def step(run: Run, choose: Chooser, late: str = "message") -> None:
    """Do one thing that moves a run towards its end."""
    if not run.state.started:
        assert run.say(e.Start(), "input")
    elif run.state.held:
        held = run.state.held
        assert run.say(e.Decided(held.node, held.turns, "rerun"))
    elif run.state.paused:
        assert run.say(e.ResumeAsked())
    else:
        live = run.steps(*BODY, "parked")
        assert live, "nothing can move this run"
        move(run, *choose.pick(live), choose, late)


def move(run: Run, node: int, turns: Turns, choose: Chooser, late: str) -> None:
    phase, row = run.state.steps[(node, turns)].phase, run.plan.nodes[node]
    if phase == "closing" and choose.number(0, 1):
        assert run.say(e.Settled(((node, turns),)))
    elif phase != "parked":
        run.now = max(run.now, run.state.steps[(node, turns)].due_us)
        assert run.succeed(node, turns)
    elif row.kind == "delay" or (row.timeout_us and late == "timeout"):
        assert run.fire(node, turns)
    else:
        assert run.say(e.Signalled(row.signal), row.signal)


# --- everything that may be said ---------------------------------------------------------


def _any_step(run: Run, choose: Chooser, *phases: str) -> tuple[int, Turns, int]:
    keys = run.steps(*phases) or list(run.state.steps)
    if not keys or choose.number(0, 15) == 15:
        node = choose.number(0, len(run.plan.nodes) - 1)
        return node, tuple(choose.number(1, 2) for _ in range(run.plan.depth[node])), 1
    node, turns = choose.pick(keys)
    late = -1 if choose.number(0, 9) == 9 else 0
    return node, turns, run.state.steps[(node, turns)].attempt + late


def _start(run: Run, choose: Chooser) -> None:
    run.say(e.Start(), "input")


def _succeed(run: Run, choose: Chooser) -> None:
    node, turns, attempt = _any_step(run, choose, *BODY)
    row, here = run.plan.nodes[node], (node, turns) in run.state.steps
    if here and row.kind in ("task", "pack", "route") and choose.number(0, 4):
        value, tag = run.computed(node, turns)
    else:
        value, tag = "odd", choose.pick(("", "again", "done", "nonsense"))
    run.say(e.Succeeded(node, turns, attempt, tag), value)


def _err(run: Run, choose: Chooser) -> None:
    node, turns, attempt = _any_step(run, choose, *BODY)
    retryable, after = bool(choose.number(0, 1)), choose.pick((-1, -1, -1, 0, 25))
    run.say(e.Errored(node, turns, attempt, retryable, after, choose.number(0, 9) / 10), "error")


def _fire(run: Run, choose: Chooser) -> None:
    node, turns, _ = _any_step(run, choose, "parked")
    run.now += choose.pick((0, 10, 30))
    run.say(e.Fired(node, turns))


def _signal(run: Run, choose: Chooser) -> None:
    name = choose.pick(("go", "stop", "late", "unknown"))
    run.say(e.Signalled(name), name)


def _cancel(run: Run, choose: Chooser) -> None:
    run.say(e.CancelAsked("enough", "someone"))


def _pause(run: Run, choose: Chooser) -> None:
    run.say(e.PauseAsked("wait", "someone"))


def _resume(run: Run, choose: Chooser) -> None:
    run.say(e.ResumeAsked("someone"))


def _retry(run: Run, choose: Chooser) -> None:
    run.say(e.RetryAsked("someone"))


def _hold(run: Run, choose: Chooser) -> None:
    node, turns, _ = _any_step(run, choose, *BODY)
    run.say(e.HoldAsked("decision", "look at this", node, turns))


def _refuse(run: Run, choose: Chooser) -> None:
    """Let an attempt ask for a hold itself, mostly one that is not the current one."""
    node, turns, attempt = _any_step(run, choose, *BODY)
    run.say(e.HoldAsked("decision", "cannot be read", node, turns, attempt + choose.pick((0, 1, 1, 1))))


def _decide(run: Run, choose: Chooser) -> None:
    """Decide about what is held, mostly; now and then about another step, or with a tag that it cannot have."""
    held = run.state.held
    node, turns = (held.node, held.turns) if held and choose.number(0, 9) else _any_step(run, choose, *BODY)[:2]
    kind: Any = choose.pick(("rerun", "complete", "complete", "fail"))
    value, tag = "odd", choose.pick(("", "again", "nonsense"))
    if kind == "complete" and (node, turns) in run.steps(*BODY) and choose.number(0, 4):
        value, tag = run.computed(node, turns)  # type: ignore[assignment]  # any value may be a step's
    run.say(e.Decided(node, turns, kind, tag, "someone"), value)


def _begin(run: Run, choose: Chooser) -> None:
    run.say(e.Begun(*_any_step(run, choose, "ready")))


def _beat(run: Run, choose: Chooser) -> None:
    run.say(e.Beat(*_any_step(run, choose, *BODY)), "cursor")


def _cut_off(run: Run, choose: Chooser) -> None:
    run.say(e.CutOff(*_any_step(run, choose, "began", "tried"), choose.pick((5, 3, 1))))


def _crash(run: Run, choose: Chooser) -> None:
    """Let a process die in a step that may run again, begun or given away; it seldom was one process too many."""
    again = [key for key in run.steps(*BODY) if not run.once(key[0])]
    if again:
        key = choose.pick(again)
        attempt = run.state.steps[key].attempt
        if choose.number(0, 1):
            run.say(e.Begun(*key, attempt))
        run.say(e.CutOff(*key, attempt, choose.pick((5, 5, 5, 3, 2))))


def _tune(run: Run, choose: Chooser) -> None:
    """Go on under code that delivers a task otherwise, most likely one whose start is recorded."""
    tasks = [key[0] for key in run.steps("began", "tried") or run.steps(*BODY) if run.plan.kind[key[0]] == "task"]
    if tasks:
        run.tune(choose.pick(tasks))


def _settle(run: Run, choose: Chooser) -> None:
    closing = run.steps("closing")
    settled = [key for key in closing if choose.number(0, 2)]
    run.say(e.Settled((*settled, *run.steps("ready", "failed")[:1])))


def _again(run: Run, choose: Chooser) -> None:
    """Deliver an event a second time, if the step it is about has gone on."""
    if run.events:
        run.say(choose.pick(run.events[-5:]), "odd")


MOVES: dict[str, Callable[[Run, Chooser], None]] = {
    "start": _start, "succeed": _succeed, "err": _err, "fire": _fire, "signal": _signal, "cancel": _cancel,
    "pause": _pause, "resume": _resume, "retry": _retry, "hold": _hold, "begin": _begin, "cut_off": _cut_off,
    "crash": _crash, "settle": _settle, "again": _again, "beat": _beat, "decide": _decide, "tune": _tune,
    "refuse": _refuse,
}  # fmt: skip

#: how often a random walk does each
COMMON = (
    *["succeed"] * 8,
    *["err"] * 3,
    *["fire"] * 2,
    *["signal"] * 2,
    *["settle"] * 3,
    *["retry"] * 2,
    "crash",
    "decide",
    "begin",
    "beat",
    "again",
)
#: what stops a run; a walk uses few of these, or nothing else would happen
STOPS = ("cancel", "pause", "hold", "cut_off", "start")


def walk(run: Run, choose: Chooser, length: int) -> None:
    """Say ``length`` random things to a run."""
    moves = [*COMMON, choose.pick(STOPS), choose.pick(STOPS), *["resume"] * 2][: len(COMMON) + choose.number(0, 4)]
    if choose.number(0, 9):
        run.say(e.Start(), "input")
    for _ in range(length):
        MOVES[choose.pick(moves)](run, choose)
