"""Reading what happened to an instance: its history, its attempts, and what a step returned. Needs no workflow code.

The journal says nodes by number. A run that was moved to a changed graph has eras: the entries before the move count
the rows of the graph it came from. So a journal is read whole, and each entry is shown with the plan of its time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, TypeGuard

import msgspec
from msgspec.structs import replace

from stepwell.backend.base import Entry, Header
from stepwell.codec import Codec
from stepwell.engine import facts as f
from stepwell.engine.moved import renumbering
from stepwell.errors import CodecError, DecodeError, InstanceDamaged, StepNotFinished, UsageError
from stepwell.flow.plan import BODIED, Plan
from stepwell.timing import moment

from .ending import refusal
from .failure import recorded_error
from .stored import load, stored_plan

if TYPE_CHECKING:
    from .room import Room

PAGE: Final = 200  # entries read at a time; each may bring a value


@dataclass(frozen=True, slots=True)
class HistoryEvent:
    """One thing that happened to an instance. What happened in one commit's entry has one ``seq``.

    Attributes:
        seq: the journal entry it stands in, from 1.
        at: when, in UTC.
        kind: what, in plain words: ``started``, ``opened``, ``done``, ``attempt failed``, ``held``, ``completed`` …
        path: the step or scope it is about, ``""`` for the run itself.
        attempt: which attempt of the step, 0 where there are none.
        detail: the rest in words: an error, a moment, a reason and who gave it. Never a payload.

    Example:
        >>> for event in client.history("order-42"):  # doctest: +SKIP
        ...     print(event)
        2030-01-01 00:00:01 UTC  charge  attempt failed (1): OSError: no route; next at 2030-01-01 00:00:02 UTC
    """

    seq: int
    at: datetime
    kind: str
    path: str
    attempt: int = 0
    detail: str = ""

    def __str__(self) -> str:
        ended_badly = "failed" in self.kind or self.kind == "crashed"
        counted = f" ({self.attempt})" if self.attempt > 1 or (ended_badly and self.attempt) else ""
        said = f": {self.detail}" if self.detail else ""
        return f"{in_words(self.at)}  {f'{self.path}  ' if self.path else ''}{self.kind}{counted}{said}"


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An error as it was recorded: text only.

    Attributes:
        type: the class's qualified name.
        message: what it said.
        traceback: the task's own frames, as Python prints them.
        causes: what it was raised from, nearest first, as ``Type: message``.

    Example:
        >>> error = client.attempts("order-42", "charge")[0].error  # doctest: +SKIP
        >>> error.type, error.message  # doctest: +SKIP
        ('OSError', 'no route')
    """

    type: str
    message: str
    traceback: str = ""
    causes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


Outcome: TypeAlias = Literal["succeeded", "failed", "interrupted", "crashed", "decided"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One recorded attempt of a step.

    Attributes:
        path: the step, ``refine[3]/draft``.
        number: from 1; retries of a failed instance count on.
        outcome: ``succeeded``; ``failed``; ``interrupted``: an at-most-once step was cut off; ``crashed``: the process
            died that ran it, so there is no error; ``decided``: no attempt but a person's decision stands for it.
        began, ended: moments in UTC; ``began`` is ``None`` where only the end was seen.
        took: how long the body ran.
        error: why it failed.
        retry_due: when the next attempt was due, if one followed by itself.

    Example:
        >>> for attempt in client.attempts("order-42"):  # doctest: +SKIP
        ...     print(attempt.path, attempt.number, attempt.outcome, attempt.took)
        charge 1 failed 0:00:00.031000
        charge 2 succeeded 0:00:00.012000
    """

    path: str
    number: int
    outcome: Outcome
    began: datetime | None
    ended: datetime
    took: timedelta | None = None
    error: ErrorInfo | None = None
    retry_due: datetime | None = None


def in_words(at: datetime) -> str:
    """Return a moment as people read it, to the second."""
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


# --- the journal --------------------------------------------------------------------------------


class Row(NamedTuple):
    """A journal entry with the plan that its facts count by. Outputs are left out but for those of errors."""

    entry: Entry
    facts: Sequence[f.Fact]
    plan: Plan


def journal(room: Room, header: Header) -> list[Row]:
    """Return all entries of a run. Raises InstanceDamaged for what stepwell has not written."""
    rows: list[Row] = []
    plan = stored_plan(room, header)
    for entry, facts in reversed(list(_entries(room, header))):
        rows.append(Row(entry, facts, plan))
        if isinstance(moved := facts[0], f.RunMoved):
            plan = stored_plan(room, replace(header, fingerprint=moved.source))
    return rows[::-1]


def _entries(room: Room, header: Header) -> Iterator[tuple[Entry, list[f.Fact]]]:
    assert room.backend is not None
    after = 0
    while page := room.backend.history(header.instance, after, PAGE):
        for entry in page:
            try:
                facts = f.decode(entry.facts)
            except (msgspec.MsgspecError, ValueError) as error:
                raise InstanceDamaged(header.instance_id, f"its journal entry {entry.seq} cannot be read") from error
            yield (entry if _tells_error(facts[0]) else replace(entry, output=None)), facts
        after = page[-1].seq


def _tells_error(head: f.Fact) -> bool:
    return isinstance(head, f.AttemptFailed) or (isinstance(head, f.HoldDecided) and head.kind == "fail")


def error_info(codec: Codec, output: bytes | None) -> ErrorInfo:
    """Return a stored error record; one that cannot be read says so."""
    try:
        error = recorded_error(codec.decode(output) if output is not None else None)
    except CodecError as unreadable:
        return ErrorInfo("Error", f"its record cannot be read: {unreadable}")
    causes, cause = list[str](), error.__cause__
    while cause is not None:
        causes.append(str(cause))
        cause = cause.__cause__
    return ErrorInfo(error.type_name, error.message, error.traceback, tuple(causes))


class Counts:
    """Which attempt each step is at, as a journal is read from its start."""

    def __init__(self) -> None:
        self._now: dict[str, int] = {}

    def note(self, fact: f.Fact, plan: Plan) -> tuple[str, int]:
        """Return a fact's path, and the attempt that it is about."""
        if not _is_placed(fact):
            return "", 0
        path = plan.path(fact.node, fact.turns) if fact.node >= 0 else ""
        if not fact.node or plan.kind[fact.node] not in BODIED or isinstance(fact, f.RunEnded):
            return path, 0
        if isinstance(fact, f.Opened):
            self._now[path] = fact.attempt
        number = self._now.get(path, 1)
        if isinstance(fact, f.AttemptFailed | f.StepCrashed):
            self._now[path] = fact.attempt + 1
        return path, number


Placed: TypeAlias = (
    f.StepDone | f.AttemptFailed | f.StepBegan | f.StepTried | f.StepCrashed | f.TimerFired | f.RunHeld | f.RouteTaken
    | f.CursorKept | f.HoldDecided | f.Opened | f.MessageTaken | f.Turned | f.ScopeDone | f.StepRefused | f.ChildFailed
    | f.Skipped | f.ScopeFailing | f.ScopeFailed | f.RunEnded
)  # fmt: skip


def _is_placed(fact: f.Fact) -> TypeGuard[Placed]:
    """Whether a fact is about one node."""
    return isinstance(fact, Placed)


# --- history ----------------------------------------------------------------------------------------


def history(room: Room, instance_id: str, after: int, limit: int | None) -> list[HistoryEvent]:
    """Return what happened, in order; see ``WorkflowClient.history``."""
    counts, events = Counts(), list[HistoryEvent]()
    for row in journal(room, load(room, instance_id).header):
        for fact in row.facts:
            path, attempt = counts.note(fact, row.plan)
            if row.entry.seq > after and (limit is None or len(events) < limit):
                kind, detail = _told(fact, row, room.codec)
                events.append(HistoryEvent(row.entry.seq, moment(row.entry.at_us), kind, path, attempt, detail))
    return events


def _told(fact: f.Fact, row: Row, codec: Codec) -> tuple[str, str]:
    """Return what a fact is called, and the rest of it in words."""
    if isinstance(fact, f.AttemptFailed):
        follows = f"next at {in_words(moment(fact.due_us))}" if fact.due_us >= 0 else "no attempt follows"
        return "attempt failed", f"{error_info(codec, row.entry.output)}; {follows}"
    if isinstance(fact, f.RunEnded):
        return fact.state, ""
    if isinstance(fact, f.Turned):
        return "turn begun", str(fact.turns[-1])
    kind, detail = _KINDS[type(fact)]
    return kind, detail(fact)


def _nothing(fact: Any) -> str:
    return ""


def _asked(fact: Any) -> str:
    by = f"by {fact.by}" if fact.by else ""
    return ": ".join(part for part in (by, getattr(fact, "reason", "")) if part)


def _until(fact: f.Opened) -> str:
    return f"until {in_words(moment(fact.due_us))}" if fact.due_us else ""


def _counted(fact: f.StepsSettled) -> str:
    return f"{len(fact.steps)} {'step' if len(fact.steps) == 1 else 'steps'} that did not run"


_KINDS: Final[Mapping[type, tuple[str, Callable[[Any], str]]]] = {
    f.RunStarted: ("started", _nothing),
    f.StepDone: ("done", lambda fact: fact.tag),
    f.StepBegan: ("begun", _nothing),
    f.StepTried: ("begun", _nothing),
    f.StepCrashed: ("crashed", lambda fact: f"its process died; {fact.crashes} in a row"),
    f.TimerFired: ("time over", _nothing),
    f.MessageKept: ("signal came", lambda fact: fact.name),
    f.MessageTraced: ("signal came", lambda fact: f"{fact.name}, sent in trace {fact.trace[3:35]}"),
    f.CancelBegun: ("cancel asked", _asked),
    f.RunPaused: ("paused", _asked),
    f.RunResumed: ("resumed", _asked),
    f.RunReopened: ("retried", _asked),
    f.RunHeld: ("held", lambda fact: f"{fact.reason}: {fact.detail}"),
    f.HoldDecided: ("decided", lambda fact: f"{fact.kind}{f' by {fact.by}' if fact.by else ''}"),
    f.RunMoved: ("moved", lambda fact: f"from graph {fact.source[:8]}"),
    f.StepsSettled: ("settled", _counted),
    f.RouteTaken: ("case chosen", lambda fact: fact.case),
    f.CursorKept: ("cursor kept", _nothing),
    f.Opened: ("opened", _until),
    f.MessageTaken: ("signal taken", lambda fact: f"of entry {fact.address}"),
    f.ScopeDone: ("done", _nothing),
    f.StepRefused: ("failed", lambda fact: fact.reason.replace("_", " ")),
    f.ChildFailed: ("failed", lambda fact: "its siblings go on"),
    f.Skipped: ("skipped", lambda fact: "what it reads has failed"),
    f.ScopeFailing: ("failing", lambda fact: "what is open in it ends first"),
    f.ScopeFailed: ("failed", _nothing),
}


# --- attempts -------------------------------------------------------------------------------------------


def attempts(room: Room, instance_id: str, path: str | None) -> list[Attempt]:
    """Return the recorded attempts, in order of their ends; see ``WorkflowClient.attempts``."""
    header = load(room, instance_id).header
    if path is not None:
        _check_path(stored_plan(room, header), instance_id, path, turns_needed=False)
    found = _attempts(journal(room, header), room.codec)
    return [a for a in found if path is None or path in (a.path, _without_turns(a.path))]


def _attempts(rows: Iterable[Row], codec: Codec) -> Iterator[Attempt]:
    counts, began = Counts(), dict[str, int]()
    for row in rows:
        for fact in row.facts:
            path, number = counts.note(fact, row.plan)
            if isinstance(fact, f.StepBegan | f.StepTried):
                began[path] = row.entry.at_us
            elif number and (outcome := _outcome(fact, row.plan)):
                start_us = began.pop(path, 0)
                yield _attempt(path, number, outcome, row, fact, start_us, codec)


def _outcome(fact: f.Fact, plan: Plan) -> Outcome | None:
    """Return how an attempt ended with a fact; ``None`` if none did, or of a step that only puts values together."""
    match fact:
        case f.StepDone(node=node):
            return "succeeded" if plan.kind[node] != "pack" else None
        case f.RouteTaken():
            return "succeeded"
        case f.AttemptFailed():
            return "failed"
        case f.RunHeld(reason="interrupted"):
            return "interrupted"
        case f.StepCrashed() | f.RunHeld(reason="quarantined"):
            return "crashed"
        case f.HoldDecided(kind="complete" | "fail"):
            return "decided"
        case _:
            return None


def _attempt(path: str, number: int, outcome: Outcome, row: Row, fact: f.Fact, start_us: int, codec: Codec) -> Attempt:
    entry, ran = row.entry, outcome in ("succeeded", "failed")
    start_us = start_us or (entry.at_us - entry.took_us if ran else 0)
    return Attempt(
        path,
        number,
        outcome,
        moment(start_us) if start_us else None,
        moment(entry.at_us),
        timedelta(microseconds=entry.took_us) if ran else None,
        error_info(codec, entry.output) if _tells_error(fact) else None,
        moment(fact.due_us) if isinstance(fact, f.AttemptFailed) and fact.due_us >= 0 else None,
    )


def last_errors(rows: Iterable[Row], codec: Codec) -> dict[str, str]:
    """Return what each step failed with last, by path."""
    found: dict[str, str] = {}
    for row in rows:
        for fact in row.facts:
            if _tells_error(fact):
                assert isinstance(fact, f.AttemptFailed | f.HoldDecided)
                found[row.plan.path(fact.node, fact.turns)] = str(error_info(codec, row.entry.output))
            elif isinstance(fact, f.StepRefused):
                path = row.plan.path(fact.node, fact.turns)
                found[path] = str(refusal(row.plan, fact.node, fact.reason, path))
    return found


# --- results of steps ---------------------------------------------------------------------------------------


def task_result(room: Room, instance_id: str, path: str, declared: object) -> object:
    """Return what a finished step has returned; see ``WorkflowClient.task_result``."""
    assert room.backend is not None
    header = load(room, instance_id).header
    _check_path(stored_plan(room, header), instance_id, path, turns_needed=True)
    address = _last_address(journal(room, header), path)
    if address is None:
        raise StepNotFinished(instance_id, f"step {path} has not finished; client.explain() says how it stands", path)
    raw = room.backend.values(header.instance, [address]).get(address) if address else None
    if raw is None:
        return None
    try:
        return room.codec.decode(raw, declared)
    except DecodeError as error:
        raise type(error)(f"the result of step {path} in instance {instance_id!r}: {error}", error.path) from error


def _last_address(rows: Sequence[Row], path: str) -> int | None:
    """Return where the value of a step or scope was last recorded, 0 for None; ``None`` if it was not.

    The step is followed back through moves by its row, as it may have had another name.
    """
    key = rows[-1].plan.find(path)
    for row in reversed(rows):
        for fact in reversed(row.facts):
            if _is_placed(fact) and (fact.node, fact.turns) == key and (told := _address(fact, row)) is not None:
                return told if told >= 0 else None
        if isinstance(moved := row.facts[0], f.RunMoved) and key is not None:
            before = {new: old for old, new in renumbering(moved.rows).items()}
            key = (before[key[0]], key[1]) if key[0] in before else None
    return None


def _address(fact: Placed, row: Row) -> int | None:
    """Return the address that a fact gives its node's value; -1: it has none yet, ``None``: the fact does not say."""
    match fact:
        case f.StepDone() | f.HoldDecided(kind="complete"):
            return row.entry.seq if row.plan.kind[fact.node] != "route" else None
        case f.MessageTaken(address=address) | f.ScopeDone(address=address):
            return address
        case f.TimerFired(node=node) if row.plan.kind[node] == "delay":
            return 0
        case f.Opened():
            return -1
        case _:
            return None


def _check_path(plan: Plan, instance_id: str, path: str, *, turns_needed: bool) -> None:
    """Refuse a path that names no step. Raises UsageError naming those that are near."""
    if path and plan.find(path) is not None:
        return
    known = [plan.path(node) for node in range(1, len(plan.nodes)) if plan.kind[node] not in ("input", "turn")]
    bare = _without_turns(path)
    if bare in known and not turns_needed:
        return
    where = f"instance {instance_id!r}: workflow {plan.name!r} has"
    if bare in known:
        raise UsageError(f"{where} step {bare} inside a loop; say which turn of it, as in refine[3]/draft")
    near = get_close_matches(path, known, 3, 0.3) or known[:10]
    raise UsageError(f"{where} no step {path!r}; there is {', '.join(dict.fromkeys(near))}")


def _without_turns(path: str) -> str:
    return "/".join(segment.partition("[")[0] for segment in path.split("/"))
