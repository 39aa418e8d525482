"""Whether a run may go on under another graph.

The two graphs are matched by names, from the root down. What the run has done, and what is open, must be there as it
was: the same interface, fed from the same places, with nothing new in front of it or inside what is finished. All else
may differ, because nothing has come of it yet. Within the scopes that are open this is a question of prefixes: a
sequence has passed some of its children, and the new one must begin with the same.

A run that may go on gets the event that moves it; the values that the new graph has readers for, and the old one had
forgotten, are found again in the run's facts. A run that may not gets an :class:`Obstacle`, in words for people.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from stepwell.flow.fingerprint import places_of, sources_of
from stepwell.flow.plan import BODIED, NONE, SEQUENCES, Key, Plan, PlanNode, Turns

from . import events as e
from . import facts as f
from .frontier import Frontier
from .moved import spans
from .past import Past, Standing


class Obstacle(msgspec.Struct, frozen=True):
    """Why a run cannot go on under another graph.

    Attributes:
        path: what differs, as people name it; a new step by its path in the new graph.
        reason: one sentence: what differs, and how to mend it.
        node: the row of the *old* graph that stands in the way, or that a new step would stand before.
        turns: the turns around it.
    """

    path: str
    reason: str
    node: int
    turns: Turns


def compare(old: Plan, new: Plan, state: Frontier, history: Iterable[Sequence[f.Fact]]) -> e.MoveAsked | Obstacle:
    """Return the event that moves a run to another graph, or what keeps it from moving.

    Args:
        old: the graph that ``state`` is in terms of.
        new: the one to go on under.
        state: the run as it stands; it is not changed.
        history: the facts of all its entries from the first, each under the graph it was decided under.

    Raises:
        ValueError: the history is not that of the state.

    Example:
        >>> asked = compare(old, new, state, entries)  # doctest: +SKIP
        >>> if not isinstance(asked, Obstacle):  # doctest: +SKIP
        ...     facts = advance(new, state, asked, now)
    """
    if state.ended == "completed":
        return Obstacle("", "the run has completed; start another under the new graph", 0, ())
    past = Past(history)
    if past.seq != state.seq:
        raise ValueError(f"the history has {past.seq} entries and the state {state.seq}; both must be of one moment")
    comparison = _Comparison(old, new, state, Standing(old, state, past))
    return next(comparison.obstacles(), None) or comparison.move(past)


class _Comparison:
    """Two graphs side by side.

    Attributes:
        to: the row of the new graph for each old row that it has.
        back: the same the other way round.
        renamed: new rows that are matched because they declare it with ``was=``.
        repeats: for each old scope looked at, the names that stand in it more than once, and whether they are kept.
        touched: new rows of what has run or is open.
        done: those of what is done.
    """

    def __init__(self, old: Plan, new: Plan, state: Frontier, stand: Standing) -> None:
        self.old, self.new, self.state, self.stand = old, new, state, stand
        self.to: dict[int, int] = {0: 0}
        self.renamed: set[int] = set()
        self.repeats: dict[int, dict[str, bool]] = {}
        self._match()
        self.back = {n: o for o, n in self.to.items()}
        self.touched = {self.to[row] for row in stand.touched if row in self.to}
        self.done = {self.to[row] for row in stand.done if row in self.to}
        self.places = places_of(old.nodes)
        named = enumerate(places_of(new.nodes))
        self.new_places = [self.places[self.back[n]] if n in self.back else f"+{place}" for n, place in named]

    # --- matching ---

    def _match(self) -> None:
        todo = [(0, 0)]
        while todo:
            old, new = todo.pop()
            pairs = dict(self._renames(old, new))
            pairs |= self._same_names(old, new, pairs)
            self.to |= pairs
            todo.extend(pairs.items())

    def _renames(self, old: int, new: int) -> Iterator[tuple[int, int]]:
        names = {self.old.nodes[row].name: row for row in self.old.nodes[old].children}
        for row in self.new.nodes[new].children:
            name, was = self.new.nodes[row].name, self.new.nodes[row].was
            known = name in names and self.old.nodes[names[name]].was == was  # a rename that this run has behind it
            if was in names and not known:
                self.renamed.add(row)
                yield names[was], row

    def _same_names(self, old: int, new: int, taken: dict[int, int]) -> dict[int, int]:
        names = {self.old.nodes[o].name: o for o in self.old.nodes[old].children if o not in taken}
        free = [n for n in self.new.nodes[new].children if n not in self.renamed]
        return {names[self.new.nodes[n].name]: n for n in free if self.new.nodes[n].name in names}

    # --- what stands in the way ---

    def obstacles(self) -> Iterator[Obstacle]:
        rows = sorted(self.stand.touched)
        for row in rows:
            yield from self._differs(row)
        for row in rows:
            yield from self._differs_inside(row)

    def _obstacle(self, row: int, reason: str, path: str = "") -> Obstacle:
        turns = self.stand.at[row] or ()
        path = path or _path(self.old, row, turns)
        return Obstacle(path, f"{path or 'the workflow'} {reason}", row, turns)

    def _state_of(self, row: int) -> str:
        return "has run" if row in self.stand.done else "is open"

    def _differs(self, row: int) -> Iterator[Obstacle]:
        """A node that counts must be there with the same interface, repeats and sources."""
        was = self.old.nodes[row]
        if row not in self.to:
            yield self._is_missing(row)
            return
        now = self.new.nodes[self.to[row]]
        if what := self._other_interface(was, now, self.to[row] in self.renamed):
            yield self._obstacle(row, f"{self._state_of(row)} and {what}; give the new step another name")
        elif not self._same_repeats(row):
            yield self._obstacle(
                row,
                f"{self._state_of(row)} and is one of several steps called {_base(was)!r}, told apart by their order "
                "alone; that has changed: only add to their end, or give each its own name",
            )
        elif not self._same_sources(row):
            yield self._obstacle(
                row, f"{self._state_of(row)} and is given other values now; give the step another name"
            )

    def _is_missing(self, row: int) -> Obstacle:
        name = self.old.nodes[_for_people(self.old, row)].name
        reason = f"{self._state_of(row)} and is not in the new graph; put it back, or say was={name!r} on its new name"
        return self._obstacle(row, reason)

    @staticmethod
    def _other_interface(was: PlanNode, now: PlanNode, renamed: bool) -> str:
        if was.kind != now.kind:
            return f"is a {now.kind} now, no {was.kind}"
        if was.kind == "root" and was.name != now.name:
            return f"is workflow {now.name!r} now, no longer {was.name!r}"
        if was.kind == "root" or (was.kind == "child" and renamed):
            return ""  # what a workflow yields is open until the end; a child's interface is its workflow's name
        if was.task != now.task and not renamed and now.was != was.task:
            return f"calls task {now.task!r} now, no longer {was.task!r}"
        return _other_types(was, now) if was.interface != now.interface else ""

    def _same_sources(self, row: int) -> bool:
        was, now = self.old.nodes[row], self.new.nodes[self.to[row]]
        return sources_of(was, self.places) == sources_of(now, self.new_places)

    def _same_repeats(self, row: int) -> bool:
        """Steps called ``x``, ``x#2`` … are numbered by order: they are the same only if all old ones are the same."""
        parent = self.old.parent[row]
        if parent < 0:
            return True
        if parent not in self.repeats:
            self.repeats[parent] = self._repeats_in(parent)
        return self.repeats[parent].get(_base(self.old.nodes[row]), True)

    def _repeats_in(self, parent: int) -> dict[str, bool]:
        """Return the names that stand more than once in a scope, in either graph, and whether the old ones are kept."""
        found: dict[str, list[int]] = {}
        for row in self.old.nodes[parent].children:
            found.setdefault(_base(self.old.nodes[row]), []).append(row)
        second = {self.new.nodes[row].name for row in self.new.nodes[self.to[parent]].children}
        repeated = {base for base, rows in found.items() if len(rows) > 1 or f"{base}#2" in second}
        return {base: all(self._is_same(row) for row in found[base]) for base in repeated}

    def _is_same(self, row: int) -> bool:
        if row not in self.to:
            return False
        was, now = self.old.nodes[row], self.new.nodes[self.to[row]]
        return not self._other_interface(was, now, self.to[row] in self.renamed) and self._same_sources(row)

    # --- what stands in the way inside of a scope ---

    def _differs_inside(self, row: int) -> Iterator[Obstacle]:
        if self.old.kind[row] in SEQUENCES:
            yield from self._differs_in_line(row)
        elif self.old.kind[row] == "parallel":
            yield from self._differs_in_parallel(row)

    def _differs_in_line(self, row: int) -> Iterator[Obstacle]:
        """What was passed must be what the new sequence begins with; one that is finished must be as it was."""
        passed = [child for child in self.old.nodes[row].children if child in self.stand.touched]
        now = self.new.nodes[self.to[row]]
        for old, new in zip(passed, now.children, strict=False):
            if self.to[old] != new:
                yield self._stands_before(old, new)
                return
        if self._is_finished(row) and len(now.children) > len(passed):
            yield self._is_new_inside(row, now.children[len(passed)])
        elif row in self.stand.done and not self._yields_the_same(row):
            yield self._obstacle(row, "has run and yields another value now; give it another name")

    def _is_finished(self, row: int) -> bool:
        """A turn whose value was looked at and refused is finished too, though its loop is open."""
        return row in self.stand.done or (self.old.kind[row] == "turn" and self._stalled(row))

    def _stalled(self, row: int) -> bool:
        return (row, self.stand.at[row]) in self.state.stalled

    def _yields_the_same(self, row: int) -> bool:
        was, now = self.old.nodes[row].output, self.new.nodes[self.to[row]].output
        return self.to.get(was, NONE) == now if was != NONE else now == NONE

    def _stands_before(self, old: int, new: int) -> Obstacle:
        turns = self.stand.at[old] or ()
        path, name = _path(self.new, new, turns), _path(self.old, old, turns)
        if new in self.touched:
            return self._obstacle(old, f"{self._state_of(old)} and its order has changed; put it back before {path}")
        if self.new.kind[new] == "input":
            return self._obstacle(old, "is entered with a value now, and was entered without; start another run", path)
        return self._obstacle(
            old, f"is new and stands before {name}, which {self._state_of(old)}; put it behind that", path
        )

    def _is_new_inside(self, row: int, new: int) -> Obstacle:
        turns = self.stand.at[row] or ()
        name = self.old.path(row, turns) or "the workflow"
        return self._obstacle(
            row, f"is new inside {name}, which is finished; put it behind that", _path(self.new, new, turns)
        )

    def _differs_in_parallel(self, row: int) -> Iterator[Obstacle]:
        """What has started must not need what is not done; one that is finished must have no more children."""
        turns = self.stand.at[row] or ()
        for child in self.new.nodes[self.to[row]].children:
            if child not in self.touched and row in self.stand.done:
                yield self._is_new_inside(row, child)
            missing = [need for need in self.new.nodes[child].needs if need not in self.done]
            if child in self.touched and missing:
                need = self.new.path(missing[0], turns)
                old = self.back[child]
                yield self._obstacle(
                    old, f"{self._state_of(old)} and needs {need} now, which is not done; let only new steps read it"
                )

    # --- what a move carries ---

    def move(self, past: Past) -> e.MoveAsked:
        values = tuple(self._values())
        kept = {address for _, _, address in values}
        return e.MoveAsked(
            seq=self.state.seq,
            source=self.old.fingerprint,
            target=self.new.fingerprint,
            rows=spans({row: self.to[row] for row in self.stand.touched}),
            scopes=tuple((self.to[row], turns, self._done_in(row)) for row, turns in self.state.scopes),
            values=values,
            tags=tuple((address, tag) for address, tag in past.tags.items() if address in kept),
            paths=tuple(self._other_paths()),
            ready=tuple(self._ready()),
        )

    def _done_in(self, parallel: int) -> tuple[int, ...]:
        return tuple(child for child in self.new.nodes[self.to[parallel]].children if child in self.done)

    def _values(self) -> Iterator[tuple[int, Turns, int]]:
        """What is done and still read: by the new graph's count, where it was finished with, it is forgotten."""
        forgotten = {value for row in self.done for value in self.new.drops[row]}
        for row, address in self.stand.done.items():
            new = self.to[row]
            if self.new.used[new] and new not in forgotten:
                yield new, self.stand.at[row] or (), address

    def _other_paths(self) -> Iterator[tuple[int, Turns, str]]:
        for (row, turns), step in self.state.steps.items():
            new, path = self.to[row], self.old.path(row, turns)
            if self.new.kind[new] in BODIED and not step.path and path != self.new.path(new, turns):
                yield new, turns, path

    def _ready(self) -> Iterator[Key]:
        """Children of open parallels that have not begun, need nothing more, and nothing else would open."""
        stalled = {(self.to[row], turns) for row, turns in self.state.stalled}
        for row, turns in self.state.scopes:
            for child in self.new.nodes[self.to[row]].children:
                needs = self.new.nodes[child].needs
                waits = any(need not in self.done or (need, turns) in stalled for need in needs)
                if child not in self.touched and not waits:
                    yield child, turns


def _base(node: PlanNode) -> str:
    return node.name.partition("#")[0]


def _path(plan: Plan, row: int, turns: Turns) -> str:
    return plan.path(_for_people(plan, row), turns)


def _for_people(plan: Plan, row: int) -> int:
    """The value that a loop begins with may be a row of the compiler's own; people know the loop."""
    if plan.kind[row] != "pack":
        return row
    return next((child for child in plan.nodes[plan.parent[row]].children if plan.nodes[child].first == row), row)


_DECODER: Final = msgspec.json.Decoder(list[str])


def _other_types(was: PlanNode, now: PlanNode) -> str:
    """Say in words how two interfaces of one kind differ."""
    before, after = _DECODER.decode(was.interface), _DECODER.decode(now.interface)
    match was.kind:
        case "task" if before[1] != after[1]:
            return f"has version {after[1] or '(none)'} now, no longer {before[1] or '(none)'}"
        case "task" if before[2] != after[2]:
            return f"has another result type now, {after[2]}, no longer {before[2]}"
        case "task":
            return "has other parameters now"
        case "signal" if before[1] != after[1]:
            return f"awaits signal {after[1]!r} now, no longer {before[1]!r}"
        case "signal" | "input":
            return f"has another type now, {after[-1]}, no longer {before[-1]}"
        case "child":
            return f"is workflow {after[1]!r} now, no longer {before[1]!r}"
        case "parallel":
            return f"has on_error={after[1]!r} now, no longer {before[1]!r}"
        case "loop":
            return f"has on_max={after[1]!r} now, no longer {before[1]!r}"
        case _:
            return "has another key now"
