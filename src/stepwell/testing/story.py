"""A journal retold fact by fact, each held against the promises before it is applied.

The engine's own state says what is open; what *has happened* it forgets on purpose. So a story remembers that itself:
which steps have their outcome, which way a route took, which timers came. From these and the plan alone follows what
may happen next, by rules that share no code with the ones that decided it.

The first fact that breaks a rule ends the story: what follows from a wrong fact proves nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from stepwell.backend.base import Entry
from stepwell.engine import facts as f
from stepwell.engine import laws
from stepwell.engine.frontier import ROOT, Frontier, Step, apply, case_of
from stepwell.flow.plan import NONE, SEQUENCES, Key, Plan, Turns, ordered_children

_RULE_OF_LAW: Final = {
    "needs_come_first": "S16",
    "scopes_count_children": "S15",
    "scopes_go_on": "S15",
    "messages_are_taken": "S8",
    "no_limbo": "L2",
    "ended_is_quiet": "S12",
    "nothing_starts_where_it_failed": "S10",
}


_LAWS_OF_POLICY: Final = frozenset({"turning_in_range"})


class Broken(Exception):
    """A promise that a fact or state breaks."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(text)
        self.rule, self.text = rule, text


class Story:
    """One run, told entry by entry. :meth:`tell` raises :class:`Broken` at the first entry that breaks a promise.

    It begins under ``plan``; where the run was moved to another graph, ``plan_of`` gives that by its fingerprint.

    Attributes:
        state: the engine's state so far.
        outcomes: the entry in which each step, scope and turn-bound node got its outcome.
        policies: whether limits of the plan (attempts, turns, delivery) are those that the run was executed with.
        max_crashes: the crash limit of all who executed it, ``None``: it is not known.
        readied: the entry since which the current attempt of a step may run.
        crashes: how many processes in a row died in each open step.
        examined: how often each rule was asked.
    """

    def __init__(
        self, plan: Plan, plan_of: Callable[[str], Plan], *, policies: bool = True, max_crashes: int | None = None
    ) -> None:
        self.state = Frontier()
        self.plan_of, self.policies, self.max_crashes = plan_of, policies, max_crashes
        self.outcomes: dict[Key, int] = {}
        self.begun: set[Key] = set()
        self.ways: dict[Key, int] = {}
        self.turned: dict[Key, int] = {}
        self.timed_out: set[Key] = set()
        self.readied: dict[Key, int] = {}
        self.crashes: dict[Key, int] = {}
        self.kept: dict[str, list[int]] = {}
        self.paused_at = self.held_at = 0
        self.examined: Counter[str] = Counter()
        self._take_up(plan)
        self._seq, self._at_us = 0, 0
        self._head: type = f.RunStarted
        self._judges: dict[type, Callable[[Any], None]] = {
            f.RunStarted: self._run_started,
            f.StepDone: self._step_done,
            f.RouteTaken: self._route_taken,
            f.AttemptFailed: self._attempt_failed,
            f.StepBegan: self._step_began,
            f.StepTried: self._step_tried,
            f.StepCrashed: self._step_crashed,
            f.CursorKept: self._cursor_kept,
            f.TimerFired: self._timer_fired,
            f.MessageKept: self._message_kept,
            f.MessageTraced: self._message_kept,
            f.MessageTaken: self._message_taken,
            f.Opened: self._opened,
            f.Turned: self._turned,
            f.ScopeDone: self._scope_done,
            f.StepRefused: self._step_refused,
            f.ChildFailed: self._child_lost,
            f.Skipped: self._child_lost,
            f.RunPaused: self._run_paused,
            f.RunResumed: self._run_resumed,
            f.RunHeld: self._run_held,
            f.CancelBegun: self._cancel_begun,
            f.RunReopened: self._run_reopened,
            f.HoldDecided: self._hold_decided,
            f.RunMoved: self._run_moved,
            f.RunEnded: self._run_ended,
        }

    def _take_up(self, plan: Plan) -> None:
        self.plan = plan
        self._before = {after: node for node, after in enumerate(plan.following) if after != NONE}

    def tell(self, entry: Entry, facts: Sequence[f.Fact], *, check_laws: bool) -> None:
        """Go through one entry."""
        self._hold("S5", entry.seq == self._seq + 1, "it follows entry {last}", last=self._seq)
        self._seq, self._at_us = entry.seq, entry.at_us
        self._hold("S6", bool(facts), "it has no facts")
        heads = [isinstance(fact, laws.HEADS) for fact in facts]
        self._hold("S6", heads[0] and sum(heads) == 1, "it is not one head and its consequences")
        self._head = type(facts[0])
        for fact in facts:
            self._judge(fact)
        self._hold("S6", self.state.seq == entry.seq, "its facts count {counted} entries", counted=self.state.seq)
        if check_laws:
            self.check_laws()

    def check_laws(self) -> None:
        """Check the engine's laws of the state so far."""
        self.examined["laws"] += 1
        try:
            laws.check(self.plan, self.state)
        except laws.LawBroken:
            self._raise_the_plainest_law()

    def _raise_the_plainest_law(self) -> None:
        """Of all laws that are broken, raise the one that says most; that nothing is open often follows from it."""
        view, broken = laws.View(self.plan, self.state), list[laws.LawBroken]()
        for law in laws.LAWS:
            try:
                law(view)
            except laws.LawBroken as found:
                broken.append(found)
        told = [each for each in broken if self.policies or each.law not in _LAWS_OF_POLICY]
        if told:
            first = min(told, key=lambda each: (each.law == "no_limbo", each.law not in _RULE_OF_LAW))
            raise Broken(_RULE_OF_LAW.get(first.law, "S6"), f"law {first}") from None

    def _judge(self, fact: f.Fact) -> None:
        try:
            self._hold_not_ended(fact)
            if (judge := self._judges.get(type(fact))) is not None:
                judge(fact)
            apply(self.plan, self.state, fact)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise Broken("S6", f"{type(fact).__name__} does not apply ({type(error).__name__})") from error

    def _hold(self, rule: str, truth: bool, text: str, key: Key = ROOT, **said: object) -> None:
        """Raise :class:`Broken` unless ``truth``; the text is made only then, as nearly always nobody reads it."""
        self.examined[rule] += 1
        if not truth:
            raise Broken(rule, text.format(step=self.text(key), **said))

    def _hold_not_ended(self, fact: f.Fact) -> None:
        ended, kind = self.state.ended, type(fact)
        again = kind is f.RunReopened or (kind is f.RunMoved and ended != "completed")
        self._hold("S12", not ended or again, "{kind} after it has {ended}", kind=kind.__name__, ended=ended)

    def text(self, key: Key) -> str:
        return repr(self.plan.path(*key))

    # --- what may happen, from what has happened --------------------------------------------------

    def may_begin(self, node: int, turns: Turns) -> bool:
        """Whether all that a node follows is done and what it stands in was entered."""
        parent = self.plan.parent[node]
        if parent == NONE:
            return self.state.started
        if self.plan.kind[parent] == "parallel":
            needs = self.plan.nodes[node].needs
            return (parent, turns) in self.begun and all((need, turns) in self.outcomes for need in needs)
        if (before := self._before.get(node, NONE)) != NONE:
            return (before, turns) in self.outcomes
        return self._entered(parent, turns)

    def _entered(self, sequence: int, turns: Turns) -> bool:
        key = (self.plan.parent[sequence], turns)
        match self.plan.kind[sequence]:
            case "case":
                return self.ways.get(key) == sequence
            case "turn":
                return self.turned.get((key[0], turns[:-1])) == turns[-1]
            case "timeout":
                return key in self.timed_out
            case _:
                return self.may_begin(sequence, turns)

    def is_through(self, sequence: int, turns: Turns) -> bool:
        """Whether the last child of a sequence is done."""
        line = ordered_children(self.plan.nodes, sequence)
        return (line[-1], turns) in self.outcomes if line else self._entered(sequence, turns)

    def _scope_is_through(self, node: int, turns: Turns) -> bool:
        match self.plan.kind[node]:
            case "parallel":
                return all((child, turns) in self.outcomes for child in self.plan.nodes[node].children)
            case "loop":
                turn = self.turned.get((node, turns), 0)
                return self.is_through(self.plan.nodes[node].children[0], (*turns, turn))
            case "route":
                taken = self.ways.get((node, turns), NONE)
                return taken != NONE and self.is_through(taken, turns)
            case "signal":
                return (node, turns) in self.timed_out and self.is_through(self.plan.nodes[node].children[0], turns)
            case kind:
                return kind in SEQUENCES and self.is_through(node, turns)

    # --- shared judgements ------------------------------------------------------------------------

    def _no_outcome(self, key: Key, rule: str = "S1") -> None:
        earlier = self.outcomes.get(key)
        self._hold(rule, earlier is None, "{step} has an outcome since entry {earlier}", key, earlier=earlier)

    def _outcome(self, key: Key, rule: str = "S1") -> None:
        self._no_outcome(key, rule)
        self.outcomes[key] = self._seq

    def _open_step(self, key: Key) -> Step:
        """Return the step that an attempt reports about: it was opened before and is not done."""
        self._hold("S2", key not in self.outcomes, "{step} is at work although its outcome is stored", key)
        self._hold("S16", key in self.state.steps, "{step} reports before it was opened", key)
        step = self.state.steps[key]
        self._hold(
            "S16",
            step.phase in ("ready", "began", "tried", "closing"),
            "{step} reports and is {phase}",
            key,
            phase=step.phase,
        )
        self._was_rightly_begun(key, step)
        return step

    def _was_rightly_begun(self, key: Key, step: Step) -> None:
        """An attempt that could begin only after the run was stopped, and has reported before it goes on, began."""
        self._hold("S11", step.due_us <= self._at_us, "{step} reports before its attempt was due", key)
        ready = self.readied.get(key, 0)
        self._hold("S10", not self.paused_at or ready <= self.paused_at, "{step} was begun in a paused run", key)
        self._hold("S10", not self.held_at or ready <= self.held_at, "{step} was begun in a held run", key)

    def _is_once(self, key: Key) -> bool:
        return self.policies and self.plan.nodes[key[0]].delivery == "at_most_once"

    def _has_recorded_its_start(self, key: Key, step: Step) -> None:
        unbegun = self._is_once(key) and step.phase in ("ready", "tried")
        self._hold("S2", not unbegun, "{step} is at-most-once and had not begun", key)

    def _goes_on(self, fact: object) -> None:
        self._hold("S10", not self.state.stopping, "{kind} after the cancel", kind=type(fact).__name__)

    def _moves(self, fact: object) -> None:
        """Timers and messages move a run that is neither cancelled nor stopped."""
        self._goes_on(fact)
        self._hold(
            "S10", not (self.paused_at or self.held_at), "{kind} while the run is stopped", kind=type(fact).__name__
        )

    # --- one method for each fact -----------------------------------------------------------------

    def _run_started(self, fact: f.RunStarted) -> None:
        self._hold("S1", not self.state.started, "the run has started before")

    def _step_done(self, fact: f.StepDone) -> None:
        key = fact.node, fact.turns
        self._no_outcome(key)
        self._has_recorded_its_start(key, self._open_step(key))
        self.outcomes[key] = self._seq
        self.crashes.pop(key, None)

    def _route_taken(self, fact: f.RouteTaken) -> None:
        key = fact.node, fact.turns
        self._hold("S1", key not in self.ways, "{step} has taken its way before", key)
        self._open_step(key)
        self.ways[key] = case_of(self.plan, fact.node, fact.case)

    def _attempt_failed(self, fact: f.AttemptFailed) -> None:
        key = fact.node, fact.turns
        step, allowed = self._open_step(key), self._attempts(fact.node)
        self._attempt(key, fact.attempt, step.attempt)
        self.crashes.pop(key, None)
        self._hold(
            "S11", step.spent <= fact.spent <= step.spent + 1, "{step}: {spent} attempts spent", key, spent=fact.spent
        )
        self._hold(
            "S11",
            fact.spent <= allowed,
            "{step}: {spent} attempts of {allowed}",
            key,
            spent=fact.spent,
            allowed=allowed,
        )
        if fact.due_us >= 0:
            self._goes_on(fact)
            self._hold(
                "S11", fact.spent < allowed, "{step} is tried again after {allowed} attempts", key, allowed=allowed
            )
            self._hold("S11", fact.due_us >= self._at_us, "{step} is due again before it failed", key)
            self.readied[key] = self._seq

    def _attempts(self, node: int) -> float:
        return self.plan.retry[node].attempts if self.policies else math.inf

    def _attempt(self, key: Key, found: int, current: int) -> None:
        self._hold(
            "S11",
            found == current,
            "{step}: attempt {found} reports in place of {current}",
            key,
            found=found,
            current=current,
        )

    def _step_began(self, fact: f.StepBegan) -> None:
        key = fact.node, fact.turns
        self._goes_on(fact)
        step = self._open_step(key)
        self._attempt(key, fact.attempt, step.attempt)
        may = step.phase in ("ready", "tried")
        self._hold("S2", may, "{step} begins while it is {phase}", key, phase=step.phase)

    def _step_tried(self, fact: f.StepTried) -> None:
        key = fact.node, fact.turns
        self._goes_on(fact)
        step = self._open_step(key)
        self._attempt(key, fact.attempt, step.attempt)
        self._hold("S2", step.phase == "ready", "{step} is tried while it is {phase}", key, phase=step.phase)
        self._hold("S2", not self._is_once(key), "{step} is at-most-once and begins as if it were not", key)

    def _step_crashed(self, fact: f.StepCrashed) -> None:
        """Of a step that began, or was given away: of that the journal says nothing until it is lost."""
        key, before = (fact.node, fact.turns), self.crashes.get((fact.node, fact.turns), 0)
        self._goes_on(fact)
        step = self._crashable(key)
        self._attempt(key, fact.attempt, step.attempt)
        self._hold("S11", step.crashes == before, "{step}: {found} crashes are kept", key, found=step.crashes)
        self._hold("S11", fact.crashes == before + 1, "{step}: {found} crashes are counted", key, found=fact.crashes)
        self._hold("S11", self._may_crash(fact.crashes), "{step} starts after {found} crashes", key, found=fact.crashes)
        self.crashes[key], self.readied[key] = fact.crashes, self._seq

    def _crashable(self, key: Key) -> Step:
        """Return a step that was running, or could have been, and may run again."""
        step = self._open_step(key)
        self._hold("S11", step.phase != "closing", "{step} crashed and was closing", key)
        once = step.phase == "began" or (step.phase == "ready" and self._is_once(key))
        self._hold("S2", not once, "{step} is at-most-once and would start again", key)
        return step

    def _may_crash(self, crashes: int) -> bool:
        """Whether a step may start again after so many crashes."""
        return self.max_crashes is None or crashes < max(1, self.max_crashes)

    def _cursor_kept(self, fact: f.CursorKept) -> None:
        self._open_step((fact.node, fact.turns))

    def _timer_fired(self, fact: f.TimerFired) -> None:
        key = fact.node, fact.turns
        step = self.state.steps.get(key)
        self._hold("S9", key not in self.timed_out, "{step} has fired before", key)
        self._hold("S9", key not in self.outcomes, "{step} fires and is done", key)
        self._moves(fact)
        self._hold("S16", step is not None, "{step} fires before it was opened", key)
        assert step is not None
        self._hold("S9", step.phase == "parked" and step.due_us > 0, "{step} fires and waits for no time", key)
        self._hold(
            "S9", step.due_us <= self._at_us, "{step} fires {early} us early", key, early=step.due_us - self._at_us
        )
        if self.plan.kind[fact.node] == "delay":
            self.outcomes[key] = self._seq
        else:
            self.timed_out.add(key)

    def _message_kept(self, fact: f.MessageKept) -> None:
        self.kept.setdefault(fact.name, []).append(self._seq)

    def _message_taken(self, fact: f.MessageTaken) -> None:
        key, name = (fact.node, fact.turns), self.plan.nodes[fact.node].signal
        self._hold("S9", key not in self.timed_out, "{step} takes a message after its timeout", key)
        self._moves(fact)
        kept = self.kept.get(name, [])
        self._hold(
            "S8",
            fact.address in kept,
            "message {address} is not kept for {name!r}, or was taken before",
            address=fact.address,
            name=name,
        )
        self._hold(
            "S8",
            kept[0] == fact.address,
            "message {address} is taken before {oldest}",
            address=fact.address,
            oldest=kept[0],
        )
        self._outcome(key)
        self._hold("S16", key in self.state.steps, "{step} takes a message before it was opened", key)
        first = next((k for k, s in self.state.steps.items() if s.phase == "parked" and self._signal(k) == name), key)
        self._hold("S8", first == key, "{longer} has waited longer than {step}", key, longer=self.text(first))
        kept.remove(fact.address)

    def _signal(self, key: Key) -> str:
        return self.plan.nodes[key[0]].signal

    def _opened(self, fact: f.Opened) -> None:
        key = fact.node, fact.turns
        step, again = self.state.steps.get(key), self._head in _REOPENING
        self._goes_on(fact)
        joins = bool(self.plan.in_parallel[fact.node] and self.plan.nodes[fact.node].needs)
        self._hold("S2", key not in self.outcomes, "{step} opens although its outcome is stored", key)
        twice = (step is not None or key in self.state.scopes) and not again
        self._hold("S15" if joins else "S2", not twice, "{step} opens a second time", key)
        self._hold("S16", self.may_begin(*key), "{step} opens before what it follows is done", key)
        self._attempt(key, fact.attempt, step.attempt + 1 if step is not None else 1)
        self.begun.add(key)
        self.crashes.pop(key, None)
        self.timed_out.discard(key)
        self.readied[key] = self._seq

    def _turned(self, fact: f.Turned) -> None:
        turns, turn = fact.turns[:-1], fact.turns[-1]
        key, last = (fact.node, turns), self.turned.get((fact.node, turns), 0)
        self._goes_on(fact)
        self._hold("S2", key not in self.outcomes, "{step} turns although it is done", key)
        self._hold("S1", turn == last + 1, "{step} begins turn {turn} after turn {last}", key, turn=turn, last=last)
        body = self.plan.nodes[fact.node].children[0]
        ready = self.may_begin(*key) if turn == 1 else self.is_through(body, (*turns, last))
        self._hold("S16", ready, "{step} begins turn {turn} before what it follows is done", key, turn=turn)
        self.turned[key] = turn

    def _scope_done(self, fact: f.ScopeDone) -> None:
        key, joins = (fact.node, fact.turns), self.plan.kind[fact.node] == "parallel"
        self._goes_on(fact)
        rule = "S15" if joins else "S16"
        self._hold(rule, self._scope_is_through(*key), "{step} is done before what is in it", key)
        self._outcome(key, "S15" if joins else "S1")

    def _step_refused(self, fact: f.StepRefused) -> None:
        key = fact.node, fact.turns
        self._goes_on(fact)
        if self.plan.kind[fact.node] == "signal":
            self._hold("S9", key in self.timed_out, "{step} is refused and its time has not come", key)
            self.timed_out.discard(key)
        else:
            self._hold("S16", self._scope_is_through(*key), "{step} is refused within a turn", key)

    def _child_lost(self, fact: f.ChildFailed | f.Skipped) -> None:
        key = fact.node, fact.turns
        self._hold("S1", key not in self.outcomes, "{step} is lost and was done", key)

    def _run_paused(self, fact: f.RunPaused) -> None:
        self.paused_at = self._seq

    def _run_resumed(self, fact: f.RunResumed) -> None:
        self.paused_at = 0

    def _run_held(self, fact: f.RunHeld) -> None:
        if fact.reason == "quarantined":
            key = fact.node, fact.turns
            self._crashable(key)
            died = self.crashes.get(key, 0) + 1
            enough = self.max_crashes is None or not self._may_crash(died)
            self._hold("S11", enough, "{step} is quarantined after {died} crashes", key, died=died)
        self.held_at = self._seq

    def _cancel_begun(self, fact: f.CancelBegun) -> None:
        self.paused_at = self.held_at = 0

    def _run_reopened(self, fact: f.RunReopened) -> None:
        state = self.state
        may = bool(state.held) or state.ended in ("failed", "cancelled")
        self._hold("S12", may, "it is reopened and is {now}", now=state.ended or "going on")
        self.held_at = 0

    def _hold_decided(self, fact: f.HoldDecided) -> None:
        key = fact.node, fact.turns
        self._hold("S12", self.state.held is not None, "it is decided about and is not held")
        if fact.kind != "rerun":  # of what is done meanwhile, that ends the hold and no more
            self._no_outcome(key)
        self.held_at = 0
        if fact.kind == "complete" and self.plan.kind[fact.node] == "route":
            self.ways[key] = case_of(self.plan, fact.node, fact.tag)
        elif fact.kind == "complete":
            self._outcome(key)

    def _run_moved(self, fact: f.RunMoved) -> None:
        """Another era begins: all that is remembered by row is renumbered."""
        self._hold("S6", fact.source == self.plan.fingerprint, "it moves from a graph that it was not under")
        if self.state.held is not None and self.state.held.reason == "changed":
            self.held_at = 0
        rows = {old + i: new + i for old, new, count in fact.rows for i in range(count)}
        self.outcomes, self.ways = _renumbered(self.outcomes, rows), _renumbered(self.ways, rows)
        self.ways = {key: rows[case] for key, case in self.ways.items() if case in rows}
        self.turned, self.readied = _renumbered(self.turned, rows), _renumbered(self.readied, rows)
        self.crashes = _renumbered(self.crashes, rows)
        self.begun = set(_renumbered(dict.fromkeys(self.begun, 0), rows))
        self.timed_out = set(_renumbered(dict.fromkeys(self.timed_out, 0), rows))
        self._take_up(self.plan_of(fact.target))

    def _run_ended(self, fact: f.RunEnded) -> None:
        state = self.state
        self.paused_at = self.held_at = 0
        self._hold(
            "S6", 0 <= fact.address <= self._seq, "its result is said to be entry {address}", address=fact.address
        )
        if fact.state == "completed":
            self._goes_on(fact)
            self._hold("S16", self.is_through(0, ()), "the run is completed before its last step")
        elif fact.state == "cancelled":
            self._hold("S10", state.cancelling is not None, "the run is cancelled and nobody asked for it")
        else:
            self._hold("S6", state.failure is not None, "the run failed and no step did")


def _renumbered(known: Mapping[Key, int], rows: Mapping[int, int]) -> dict[Key, int]:
    return {(rows[node], turns): value for (node, turns), value in known.items() if node in rows}


_REOPENING: Final[frozenset[type]] = frozenset({f.RunReopened, f.HoldDecided})
"""Heads after which what was closed, failed or begun may be opened again."""
