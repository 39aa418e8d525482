"""An instance as a tree: a line for each step, indented by the scopes it stands in.

Long forks and loops would bury what matters, so of many turns the last are shown, of many branches those that are not
done; what is left out is counted in a line of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from stepwell.flow.plan import Key
from stepwell.timing import span as span_as_written

from .page import UNBOUNDED, Line, Span, bar, hanging, is_fancy, sign, state_span, style_of
from .steps import Run, Told, began_us, below, shown_children, state_of
from .text import clip_middle, counted, safe, width
from .times import span

if TYPE_CHECKING:
    from .times import Times

TURNS_SHOWN: Final = 3
BRANCHES_SHOWN: Final = 10
BAR_COLUMNS: Final = 10


class Entry(NamedTuple):
    """One line of the tree."""

    prefix: str
    name: str
    state: str
    time: str = ""
    note: str = ""


class _Branch(NamedTuple):
    """Something with a line of its own: a node at a turn, or what stands for several of them."""

    key: Key
    name: str = ""
    inner: tuple[Key, ...] | None = None
    state: str = ""
    note: str = ""


def head(run: Run, times: Times, space: int) -> list[Line]:
    """Return who the instance is and how it stands."""
    header = run.header
    who = [Span(header.instance_id, "bold"), Span("  "), state_span(run.shown_state)]
    begun = f"{header.workflow}, started {times.at(header.created_us)}"
    if header.ended_us is not None:
        begun += f", ended {times.at(header.ended_us)} after {span(header.ended_us - header.created_us)}"
    else:
        begun += f", {span(max(0, run.now_us - header.created_us))} ago"
    by = f"; {header.held_by} works on it" if header.held_by else ""
    return [who, *hanging([], Span(begun + by, "dim"), space)]


def tree(run: Run, times: Times, space: int, *, every: bool = False) -> list[Line]:
    """Return the tree of an instance's steps."""
    entries = list(_Tree(run, times, every=every).entries((0, ()), ""))
    return _laid_out(entries, space)


class _Tree:
    def __init__(self, run: Run, times: Times, *, every: bool) -> None:
        self.run, self.times, self.every = run, times, every
        self.fork, self.last, self.pipe = ("├─ ", "└─ ", "│  ") if is_fancy() else ("|- ", "`- ", "|  ")

    def entries(self, key: Key, prefix: str) -> Iterator[Entry]:
        yield from self._all(list(self._branches(key)), prefix)

    def _all(self, branches: Sequence[_Branch], prefix: str) -> Iterator[Entry]:
        for at, branch in enumerate(branches, 1):
            is_last = at == len(branches)
            yield self._entry(branch, prefix + (self.last if is_last else self.fork))
            inner = [_Branch(key) for key in branch.inner] if branch.inner is not None else self._branches(branch.key)
            yield from self._all(list(inner), prefix + ("   " if is_last else self.pipe))

    # --- what stands in a scope ---

    def _branches(self, key: Key) -> Iterator[_Branch]:
        kind = self.run.plan.kind[key[0]]
        if kind == "loop":
            yield from self._turns(key)
        elif kind == "parallel":
            yield from self._forked(key)
        else:
            yield from (_Branch(inner) for inner in below(self.run, *key))

    def _turns(self, loop: Key) -> Iterator[_Branch]:
        run, (node, turns) = self.run, loop
        count = run.turns.get(loop, 0)
        first = 1 if self.every else max(1, count - TURNS_SHOWN + 1)
        if first > 1:
            last = first - 1
            yield _Branch(loop, f"turn{'s 1 to' if last > 1 else ''} {last}", (), "done")
        body = list(shown_children(run.plan, node))
        for turn in range(first, count + 1):
            keys: tuple[Key, ...] = tuple((child, (*turns, turn)) for child in body)
            if len(keys) == 1:
                yield _Branch(keys[0], f"[{turn}] {run.plan.nodes[body[0]].name}")
            else:
                yield _Branch(loop, f"[{turn}]", keys, self._together(keys))

    def _together(self, keys: Sequence[Key]) -> str:
        states = [state_of(self.run, *key) for key in keys]
        if all(state == "done" for state in states):
            return "done"
        return next((state for state in states if state not in ("done", "")), "running" if "done" in states else "")

    def _forked(self, key: Key) -> Iterator[_Branch]:
        branches = [_Branch(inner) for inner in below(self.run, *key)]
        if self.every or len(branches) <= BRANCHES_SHOWN + 2:
            yield from branches
            return
        states = {branch: state_of(self.run, *branch.key) for branch in branches}
        wanted = sorted(branches, key=lambda branch: _INTEREST.get(states[branch], 9))[:BRANCHES_SHOWN]
        yield from (branch for branch in branches if branch in wanted)
        others = Counter(states[branch] for branch in branches if branch not in wanted)
        told = ", ".join(f"{count} {state or 'not begun'}" for state, count in others.most_common())
        yield _Branch(key, f"{len(branches) - len(wanted)} more", (), "done" if set(others) == {"done"} else "", told)

    # --- a line ---

    def _entry(self, branch: _Branch, prefix: str) -> Entry:
        run = self.run
        if branch.inner is not None:
            return Entry(prefix, branch.name, branch.state, "", branch.note)
        node, turns = branch.key
        state, told = state_of(run, node, turns), run.step(node, turns)
        name = branch.name or run.plan.nodes[node].name
        return Entry(prefix, name, state, self._time(branch.key, told, state), self._note(branch.key, told, state))

    def _time(self, key: Key, told: Told, state: str) -> str:
        begin = began_us(self.run, *key)
        if not state or not begin or state == "skipped":
            return ""
        if self.run.plan.kind[key[0]] in ("task",) and state in ("done", "failed"):
            return span(told.spent_us("work", self.run.now_us) + told.spent_us("failed", self.run.now_us))
        if state in ("running", "ready", "retries", "waits") and told.pieces:
            return span(self.run.now_us - told.pieces[-1].begin_us)
        return span((told.ended_us or self.run.end_us) - begin)

    def _note(self, key: Key, told: Told, state: str) -> str:
        kind = self.run.plan.kind[key[0]]
        parts = [self._of_kind(key, kind, state), self._of_state(key, told, state), told.note]
        if told.attempts > 1 and state in ("done", "failed"):
            parts.append(counted(told.attempts, "attempt"))
        return ", ".join(part for part in parts if part)

    def _of_kind(self, key: Key, kind: str, state: str) -> str:
        run, row = self.run, self.run.plan.nodes[key[0]]
        match kind:
            case "parallel":
                children = list(below(run, *key))
                done = sum(state_of(run, *child) in ("done", "failed", "skipped") for child in children)
                return f"{bar(done, len(children), min(BAR_COLUMNS, len(children)))} {done}/{len(children)}"
            case "loop" if turns := run.turns.get(key, 0):
                return f"turn {turns} of at most {row.max_iterations}" if state != "done" else counted(turns, "turn")
            case "loop":
                return f"a loop of at most {counted(row.max_iterations, 'turn')}"
            case "route":
                cases = ", ".join(_case(run.plan.nodes[child].name) for child in row.children)
                return f"took {_case(run.cases[key])}" if key in run.cases else f"takes one of: {cases}"
            case "delay":
                return f"a delay of {span_as_written(row.duration_us)}"
            case "signal":
                return f'signal "{row.signal}"'
            case _:
                return ""

    def _of_state(self, key: Key, told: Told, state: str) -> str:
        match state:
            case "waits" if told.due_us:
                return f"until {self._when(told.due_us)}"
            case "retries":
                return f"attempt {told.attempts + 1} {self._when(told.due_us)}, after {_error(told)}"
            case "failed" if told.error is not None:
                return _error(told)
            case "running" if told.attempts and self.run.plan.kind[key[0]] == "task":
                return f"attempt {told.attempts + 1}, after {_error(told)}"
            case "ready" if not self.run.state.paused and not self.run.state.held:
                return "for a worker to take it"
            case "held" if held := self.run.state.held:
                return f"{held.reason}: a person must decide"
            case _:
                return ""

    def _when(self, at_us: int) -> str:
        return f"{self.times.at(at_us)} ({self.times.until(at_us)})"


_INTEREST: Final = {
    state: at
    for at, state in enumerate(("held", "failed", "retries", "closing", "running", "waits", "ready", "stopped", ""))
}


def _case(name: str) -> str:
    return name.partition("=")[2] or name


def _error(told: Told) -> str:
    return str(told.error).splitlines()[0] if told.error is not None else "an error"


# --- layout ---------------------------------------------------------------------------------------

_STATE_COLUMNS: Final = 7
_TIME_COLUMNS: Final = 8


def _laid_out(entries: Sequence[Entry], space: int) -> list[Line]:
    natural = max((width(safe(e.prefix + e.name)) + 2 for e in entries), default=0)
    left = min(natural, max(20, space // 2) if space < UNBOUNDED else natural)
    state_columns = max([_STATE_COLUMNS, *(len(e.state) for e in entries)])
    time_columns = max((len(e.time) for e in entries), default=0)
    lines: list[Line] = []
    for entry in entries:
        lines += _line(entry, left, state_columns, time_columns, space)
    return lines


def _line(entry: Entry, left: int, state_columns: int, time_columns: int, space: int) -> list[Line]:
    name = clip_middle(safe(entry.name), left - width(entry.prefix) - 2)
    pad = " " * (left - width(entry.prefix) - 2 - width(name))
    style = style_of(entry.state)
    line = [
        Span(entry.prefix, "dim"),
        Span(f"{sign(entry.state)} ", style),
        Span(name, "dim" if entry.state in ("", "skipped") else "bold" if entry.state in _LOUD else ""),
        Span(f"{pad}  {entry.state:<{state_columns}}", style),
        Span(f"  {entry.time:>{time_columns}}", ""),
    ]
    if not entry.note:
        return [line]
    room = space - sum(width(s.text) for s in line) - 2
    under = entry.prefix.replace("├─ ", "│  ").replace("└─ ", "   ").replace("|- ", "|  ").replace("`- ", "   ")
    if room >= 20 or width(entry.note) <= room:
        return _beside(line, entry.note, under, space)
    return [
        line,
        *(
            [Span(under, "dim"), *part]
            for part in hanging([Span("    ")], Span(entry.note, _NOTE), space - width(under))
        ),
    ]


_NOTE: Final = "dim"
_LOUD: Final = frozenset({"held", "failed", "running", "waits", "retries", "ready"})


def _beside(line: Line, note: str, under: str, space: int) -> list[Line]:
    """Return a line with its note, whose further lines stand below it and keep the tree's lines."""
    first, *rest = hanging([*line, Span("  ")], Span(note, _NOTE), space)
    return [first, *([Span(under, "dim"), Span(_after(part, under)), part[-1]] for part in rest)]


def _after(part: Line, under: str) -> str:
    return " " * max(0, width(part[0].text) - width(under))
