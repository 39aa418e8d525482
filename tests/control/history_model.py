"""The third one that a history is told to: instances that are nothing but the engine, with hands a page long.

It has no store, no session, no drive and no bytes. It says whether each call may be refused, how each instance stands
behind it, and which bodies have run; every event goes through :class:`tests.engine.hands.Run`, which checks the laws.
What depends on a client's knowledge of types is taken from the answer of the real ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

from stepwell.engine import events as e
from stepwell.engine.change import Obstacle
from stepwell.engine.frontier import Frontier
from stepwell.flow.plan import Plan, Turns
from stepwell.types import ENDED, Again, Complete, Done, Fail
from tests.engine.hands import Run

from .history_flows import CHANGED, FIRST, Ledger

ALREADY, CONFLICT, EXISTS = "AlreadyRunning", "InstanceConflict", "InstanceExists"
MISSING, OVER, USAGE = "InstanceNotFound", "InstanceEnded", "UsageError"


class Note(NamedTuple):
    """A message: what it is called, the event that it stands for, what it brings, and the id that counts it once."""

    kind: str
    event: Callable[[Plan], e.Event]
    value: object = None
    id: str = ""


class Bodies(Run):
    """A run whose bodies are those of the histories' workflows."""

    ledger: Ledger

    def computed(self, node: int, turns: Turns) -> tuple[object, str]:
        row = self.plan.nodes[node]
        given: list[Any] = [self.bound(arg, turns) for arg in row.args]
        name = row.name.partition("#")[0]
        if row.kind == "route":
            cases = [self.plan.nodes[child].name for child in row.children]
            return None, next(case for case in cases if case == f"parity={given[0]}")
        if not all(isinstance(each, int) for each in given):
            raise TypeError(f"{name} takes numbers")
        return _BODIES[name](*given)

    def again(self) -> Bodies:
        """Return a copy that goes its own way."""
        plan, bodies, self.plan, self.bodies = self.plan, self.bodies, None, None  # type: ignore[assignment]
        twin = deepcopy(self)
        self.plan, self.bodies = twin.plan, twin.bodies = plan, bodies
        return twin


_BODIES: dict[str, Callable[..., tuple[object, str]]] = {
    "plus": lambda x: (x + 1, ""),
    "minus": lambda x: (x - 1, ""),
    "adds": lambda x, y: (x + y, ""),
    "breaks": lambda x: (x + 1, ""),
    "flaky": lambda x: (x + 1, ""),
    "charge": lambda x: (x + 1, ""),
    "counts": lambda x: (x + 1, "again") if x < 3 else (x, "done"),
    "parity": lambda x: ("even" if x % 2 == 0 else "odd", ""),
}
FRAGILE = ("breaks", "flaky")


class Instance:
    """One run of an instance."""

    def __init__(self, instance_id: str, made: Any, x: int, number: int, now: int) -> None:
        self.id, self.name, self.x, self.number = instance_id, made.name, x, number
        self.run = Bodies.of(made)
        self.mail: list[Note] = []
        self.ids: set[str] = set()
        self.held = False
        self.say(now, e.Start(), x)

    @property
    def state(self) -> Frontier:
        return self.run.state

    def say(self, now: int, event: e.Event, value: object = None) -> bool:
        """Advance, and settle what closes: nothing runs while anything is decided."""
        self.run.now = now
        follows = bool(self.run.say(event, value))
        if closing := tuple(self.run.steps("closing")):
            self.run.say(e.Settled(closing))
        return follows

    def hear(self, now: int, notes: Sequence[Note]) -> None:
        for note in notes:
            if self.say(now, note.event(self.run.plan), note.value) and note.id:
                self.ids.add(note.id)

    def read_mail(self, now: int) -> None:
        mail, self.mail = self.mail, []
        self.hear(now, () if self.state.ended else mail)

    def seen(self) -> object:
        """Return how it stands, in the words of :func:`standing`."""
        return (self.number, len(self.mail), self.held, *standing(self.run.plan, self.state, self.run.now))


def standing(plan: Plan, state: Frontier, now: int) -> tuple[object, ...]:
    """Return what must be the same wherever an instance is: all but the addresses of its values."""
    steps = sorted((plan.path(*key), step.phase, step.attempt, step.due_us) for key, step in state.steps.items())
    held = state.held and (state.held.reason, plan.path(state.held.node, state.held.turns))
    asked = (state.paused, state.cancelling, held)
    kept = sorted((name, len(there)) for name, there in state.inbox.items() if there)
    return plan.fingerprint, state.status(now), steps, asked, kept


class Model:
    """All instances, and what their bodies do."""

    def __init__(self, clock: Any, ledger: Ledger) -> None:
        self.clock, self.ledger = clock, ledger
        self.of: dict[str, Instance] = {}
        self.ran: Counter[tuple[str, int, str, int]] = Counter()

    @property
    def now(self) -> int:
        return int(self.clock.now_us())

    def seen(self) -> dict[str, object]:
        for each in self.of.values():
            each.run.now = self.now
        return {i: each.seen() for i, each in self.of.items()}

    # --- messages ---

    def send(self, i: str, note: Note) -> str:
        """Deliver a message; return the error it is refused with, or ``ok``."""
        while True:
            if (refused := self.refusal(i, note)) != "ok":
                return refused
            there = self.of[i]
            if note.id and note.id in there.ids:
                return "ok"
            if there.held:
                there.mail.append(note)
                there.ids |= {note.id} - {""}
                return "ok"
            if not there.mail or note.kind == "retry":
                break
            there.read_mail(self.now)
        left, there.mail = [each for each in there.mail if each.kind == "signal"], []
        there.hear(self.now, [note, *left])
        return "ok"

    def refusal(self, i: str, note: Note) -> str:
        """Return why a message is refused, ``ok`` if it is not."""
        if (there := self.of.get(i)) is None:
            return MISSING
        state = there.state
        if note.kind == "retry":
            return "ok" if state.ended in ("failed", "cancelled") else OVER if state.ended else USAGE
        if state.ended:
            return "ok" if note.id and note.id in there.ids else OVER
        stuck = state.held and not state.paused and note.kind in ("pause", "resume")
        return USAGE if stuck else "ok"

    def decided(self, i: str, path: str, decision: Any, by: str) -> str:
        """Deliver a decision that a client has found to fit."""
        kind = "complete" if isinstance(decision, Complete) else "fail" if isinstance(decision, Fail) else "rerun"
        value = decision.value if isinstance(decision, Complete) else {"reason": ""} if kind == "fail" else None
        tag = "again" if isinstance(value, Again) else "done" if isinstance(value, Done) else ""
        value = value.value if isinstance(value, Again | Done) else value

        def event(plan: Plan) -> e.Event:
            node, turns = plan.find(path) or (-1, ())
            return e.Decided(node, turns, kind, tag, by)  # type: ignore[arg-type]

        return self.send(i, Note("decide", event, value))

    # --- starting ---

    def start(self, i: str, made: Any, x: int, policy: str | None, mismatch: str) -> str:
        """Start as a client does, which runs nothing; say ``ok``, ``attach`` or the error."""
        there, policy = self.of.get(i), policy or "use_existing"
        if policy == "nonsense":
            return "OptionError"
        if there is None:
            self.of[i] = Instance(i, made, x, 1, self.now)
            return "ok"
        if policy == "fail":
            return EXISTS
        if there.name != made.name:
            return CONFLICT
        if policy == "terminate_existing":
            self.of[i] = Instance(i, made, x, there.number + 1, self.now)
            return "ok"
        if mismatch == "fail" and there.x != x:
            return "InputMismatch"
        restarts = policy == "restart_if_failed" and there.state.ended in ("failed", "cancelled")
        return "restart" if restarts else "attach"

    def reopen(self, i: str) -> str:
        return self.send(i, Note("retry", lambda _: e.RetryAsked()))

    def run(self, i: str, made: Any, x: int, policy: str | None, mismatch: str) -> str:
        """Start as a runner does, which goes on as far as it goes."""
        answer = self.start(i, made, x, policy, mismatch)
        there = self.of.get(i)
        if there is None or answer not in ("ok", "attach", "restart"):
            return answer
        if answer == "restart" and (refused := self._moved(there, made)):
            return refused
        if answer == "restart":
            self.reopen(i)
        return self.go_on(there, made)

    def go_on(self, there: Instance, made: Any) -> str:
        """Take an instance up, bring it to a graph, and go on with it."""
        if there.state.ended:
            return "ok"
        if there.held:
            return CONFLICT if made not in CHANGED and self._is_of_changed(there) else ALREADY
        if refused := self._moved(there, made):
            return refused
        if there.run.plan.fingerprint == made.plan.fingerprint and not there.state.ended:
            return self._go(there)
        return "ok"

    def _moved(self, there: Instance, made: Any) -> str:
        state, old = there.state, there.run.plan.fingerprint
        if old == made.plan.fingerprint:
            if state.held and state.held.reason == "changed":
                there.say(self.now, e.Decided(state.held.node, state.held.turns, "rerun"))
            return ""
        if made not in CHANGED:
            return CONFLICT  # it is of a newer graph
        there.run.now = self.now
        if state.ended == "completed":
            return CONFLICT
        if not state.ended:
            there.read_mail(self.now)  # it was sent under the old graph, and means what it meant there
            if state.ended:
                return ""
        obstacle = there.run.move(made)
        if isinstance(obstacle, Obstacle) and state.ended:
            return CONFLICT
        if isinstance(obstacle, Obstacle):
            there.say(self.now, e.HoldAsked("changed", obstacle.reason))
        return ""

    def move(self, i: str, made: Any) -> str:
        """Move as a client does, forth and back."""
        if (there := self.of.get(i)) is None:
            return MISSING
        if there.name != made.name:
            return CONFLICT
        if there.run.plan.fingerprint == made.plan.fingerprint:
            return "ok" if there.held else self._moved(there, made) or "ok"
        if there.state.ended == "completed":
            return OVER
        if there.held and not there.state.ended:
            return ALREADY
        there.run.now = self.now
        return self._moved_by_client(there, made)

    def _moved_by_client(self, there: Instance, made: Any) -> str:
        mail, was = list(there.mail), there.run.again()
        if not there.state.ended:
            there.read_mail(self.now)
        ended = there.state.ended
        if ended == "completed":
            return OVER
        if there.run.move(made):
            if not ended:
                there.run, there.mail = was, mail  # nothing is written of what is refused
            return CONFLICT
        return "ok"

    # --- hands ---

    def _go(self, there: Instance) -> str:
        """Do what can be done now: what is ready, then what came, then what is due."""
        for key in there.run.steps("began"):
            there.say(self.now, e.CutOff(*key, there.state.steps[key].attempt))
        while not there.state.ended:
            ready = [] if self._gated(there) else self._due(there, "ready")
            for node, turns in ready:
                if (node, turns) in there.run.steps("ready") and not self._perform(there, node, turns):
                    return "PowerFails"
            came = bool(there.mail)
            there.read_mail(self.now)
            fired = [] if self._gated(there) else self._due(there, "parked")
            for key in fired:
                there.say(self.now, e.Fired(*key))
            if not (ready or came or fired):
                return "ok"
        return "ok"

    @staticmethod
    def _gated(there: Instance) -> bool:
        return bool(there.state.held or there.state.paused or there.state.ended)

    def _due(self, there: Instance, phase: str) -> list[tuple[int, Turns]]:
        steps = there.state.steps
        timed = phase == "parked"
        return [k for k in there.run.steps(phase) if steps[k].due_us <= self.now and (steps[k].due_us or not timed)]

    def _perform(self, there: Instance, node: int, turns: Turns) -> bool:
        """Run a body; ``False``: the power failed in it."""
        if self._gated(there):
            return True
        run, now = there.run, self.now
        name, attempt = run.plan.nodes[node].name.partition("#")[0], run.state.steps[(node, turns)].attempt
        if name == "charge" and not self._begin(there, node, turns, attempt):
            return True
        try:
            value, tag = run.computed(node, turns)
        except TypeError:
            there.say(now, e.HoldAsked("undecodable", "", node, turns))
            return True
        if run.plan.kind[node] == "task":
            self.ran[there.id, there.number, run.plan.path(node, turns), attempt] += 1
        if name == "charge" and self.ledger.cut:
            return False
        if name in FRAGILE and self.ledger.broken:
            there.say(now, e.Errored(node, turns, attempt, True), {"error": name})
        else:
            there.say(now, e.Succeeded(node, turns, attempt, tag), value)
        return True

    def _begin(self, there: Instance, node: int, turns: Turns, attempt: int) -> bool:
        """Record the start of an at-most-once body, and read the mail; return whether it is still to run."""
        there.say(self.now, e.Begun(node, turns, attempt))
        there.read_mail(self.now)
        return (node, turns) in there.run.steps("began")

    def recover(self, made: Sequence[Any], taken: Sequence[str]) -> None:
        """Go on with what a runner has taken up. Whatever was due, or left in the middle, must be among it."""
        by_name = {each.name: each for each in made}
        for there in list(self.of.values()):
            if there.id in taken:
                self.go_on(there, by_name[there.name])
            else:
                newer = by_name[there.name] not in CHANGED and self._is_of_changed(there)
                assert there.held or newer or not self._is_due(there), f"{there.id} was due"

    @staticmethod
    def _is_of_changed(there: Instance) -> bool:
        return any(each.plan.fingerprint == there.run.plan.fingerprint for each in CHANGED)

    def _is_due(self, there: Instance) -> bool:
        due_us = None if there.state.ended else there.state.next_due_us()
        return due_us is not None and due_us <= self.now

    # --- upkeep ---

    def restore(self, i: str, to: str) -> str:
        if to in self.of:
            return EXISTS
        there, twin = self.of[i], Instance(to, FIRST[0], 1, 1, self.now)
        twin.name, twin.x, twin.number = there.name, there.x, there.number
        twin.run, twin.mail, twin.ids = there.run.again(), list(there.mail), set(there.ids)
        self.of[to] = twin
        return "ok"

    def seize(self, i: str) -> str:
        """Let somebody hold an instance, who does nothing."""
        if (there := self.of.get(i)) is not None and not there.state.ended:
            there.held = True
        return "ok"

    def let_go(self) -> None:
        for there in self.of.values():
            there.held = False

    def delete(self, i: str) -> str:
        if (there := self.of.get(i)) is None:
            return MISSING
        if not there.state.ended:
            return USAGE
        del self.of[i]
        return "ok"

    def purged(self, left: Sequence[str], count: object) -> None:
        """Take note of what a purge has left; only what had ended may be gone."""
        gone = [i for i in self.of if i not in left]
        assert isinstance(count, str) or len(gone) == count
        for i in gone:
            assert self.of.pop(i).state.ended in ENDED
