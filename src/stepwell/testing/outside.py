"""A store against what bodies wrote outside of it, where no rollback and no crash can unwrite it.

A body writes a line when it starts. That says more than it seems: a step starts only after the entry that opened it is
stored, so each start proves from outside that the journal had reached that entry by then. A step whose outcome stands
at or before an entry that is proven so, and which starts after that, has run once too often (S2).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from stepwell.backend.base import Backend, Entry
from stepwell.engine import facts as f
from stepwell.flow.plan import Key, Plan

from .story import Broken, Story
from .violations import Report

PAGE: Final = 500


class LedgerLine(Protocol):
    """What a body wrote about itself, oldest line first; take the fields from ``task_context()``.

    ``event`` is ``"start"`` or ``"effect"``; other events are passed over, and so are lines without a path.
    """

    @property
    def event(self) -> str: ...

    @property
    def instance(self) -> str: ...

    @property
    def path(self) -> str: ...

    @property
    def attempt(self) -> int: ...

    @property
    def key(self) -> str: ...


def check_ledger(lines: Iterable[LedgerLine], backend: Backend) -> Report:
    """Compare bodies' lines with the journals of their instances.

    S1: an effect follows its start, and whatever is recorded as done by a task that writes lines has run. S2: no body
    starts once its outcome is stored. S7: one idempotency key for all attempts of a step, and for no other. Lines of
    runs that were replaced must not be among them.
    """
    report, by_instance = Report(), dict[str, list[LedgerLine]]()
    for line in lines:
        if line.path and line.event in ("start", "effect"):
            by_instance.setdefault(line.instance, []).append(line)
    _check_keys(report, [line for of_one in by_instance.values() for line in of_one])
    for instance_id, of_one in by_instance.items():
        report.instances += 1
        _check_effects(report, instance_id, of_one)
        journal = _Journal(backend, instance_id)
        if journal.broken is not None:
            report.add("S6", instance_id, f"its journal cannot be told: {journal.broken}")
            continue
        _check_starts(report, instance_id, of_one, journal)
        _check_recorded(report, instance_id, of_one, journal)
    return report


def _check_keys(report: Report, lines: Sequence[LedgerLine]) -> None:
    keys: dict[tuple[str, str], str] = {}
    owners: dict[str, tuple[str, str]] = {}
    for line in lines:
        report.examined["S7"] += 1
        step = (line.instance, line.path)
        if keys.setdefault(step, line.key) != line.key:
            report.add("S7", line.instance, f"{line.path!r} has two idempotency keys")
        elif owners.setdefault(line.key, step) != step:
            report.add("S7", line.instance, f"{line.path!r} shares its idempotency key with {owners[line.key][1]!r}")


def _check_effects(report: Report, instance_id: str, lines: Sequence[LedgerLine]) -> None:
    started: set[tuple[str, int]] = set()
    for line in lines:
        report.examined["S1"] += 1
        if line.event == "start":
            started.add((line.path, line.attempt))
        elif (line.path, line.attempt) not in started:
            report.add("S1", instance_id, f"attempt {line.attempt} of {line.path!r} has an effect and never started")


def _check_starts(report: Report, instance_id: str, lines: Sequence[LedgerLine], journal: _Journal) -> None:
    proven, by = 0, ""
    for line in lines:
        if line.event != "start":
            continue
        report.examined["S2"] += 1
        done = journal.done.get(line.path, 0)
        if 0 < done <= proven:
            text = f"{line.path!r} starts although its outcome is stored, as the start of {by!r} had shown"
            report.add("S2", instance_id, text, done)
        if (ready := journal.ready.get((line.path, line.attempt), 0)) > proven:
            proven, by = ready, line.path


def _check_recorded(report: Report, instance_id: str, lines: Sequence[LedgerLine], journal: _Journal) -> None:
    ran = {(line.path, line.attempt) for line in lines if line.event == "start"}
    writing = {journal.tasks[path] for path, _ in ran if path in journal.tasks}
    for (path, attempt), seq in journal.ran.items():
        report.examined["S1"] += 1
        if (path, attempt) not in ran and journal.tasks[path] in writing:
            report.add("S1", instance_id, f"attempt {attempt} of {path!r} is recorded as done and never started", seq)


class _Journal:
    """When, by entry, each step could start and was done.

    Attributes:
        ready: by path and attempt, the entry that lets the attempt start.
        ran: by path and attempt, the entry with the outcome that it brought.
        done: by path, the entry with the outcome.
        tasks: by path, the name of the task.
        broken: why it cannot be told to its end, or ``None``.
    """

    def __init__(self, backend: Backend, instance_id: str) -> None:
        self.backend = backend
        self.ready: dict[tuple[str, int], int] = {}
        self.ran: dict[tuple[str, int], int] = {}
        self.done: dict[str, int] = {}
        self.tasks: dict[str, str] = {}
        self.broken: str | None = None
        header = backend.header(instance_id)
        if header is None:
            self.broken = "there is no such instance"
            return
        self._workflow = header.workflow
        try:
            self._read(header.instance, header.fingerprint)
        except Broken as broken:
            self.broken = broken.text

    def _plan(self, fingerprint: str) -> Plan:
        stored = self.backend.plan(fingerprint, self._workflow)
        if stored is None:
            raise Broken("S13", "a plan of it is missing")
        return Plan.from_bytes(stored)

    def _read(self, instance: int, fingerprint: str) -> None:
        told = [(entry, f.decode(entry.facts)) for entry in _entries(self.backend, instance)]
        first = next((facts[0].source for _, facts in told if isinstance(facts[0], f.RunMoved)), fingerprint)
        story = Story(self._plan(first), self._plan, policies=False)
        for entry, facts in told:
            steps = dict(story.state.steps)
            story.tell(entry, facts, check_laws=False)
            for fact in facts:
                self._note(story, entry.seq, fact, {key: step.attempt for key, step in steps.items()})

    def _note(self, story: Story, seq: int, fact: f.Fact, attempts: dict[Key, int]) -> None:
        match fact:
            case f.Opened(node, turns, _, attempt) if story.plan.bodied[node]:
                self.ready[story.plan.path(node, turns), attempt] = seq
                self.tasks[story.plan.path(node, turns)] = story.plan.nodes[node].task
            case f.AttemptFailed(node, turns, attempt, due_us) if due_us >= 0:
                self.ready[story.plan.path(node, turns), attempt + 1] = seq
            case f.StepCrashed(node, turns, attempt):
                self.ready[story.plan.path(node, turns), attempt + 1] = seq
            case f.StepDone(node, turns):
                path = story.plan.path(node, turns)
                self.done[path] = self.ran[path, attempts[node, turns]] = seq
            case _:
                return


def _entries(backend: Backend, instance: int) -> Iterable[Entry]:
    after = 0
    while page := backend.history(instance, after, PAGE):
        yield from page
        after = page[-1].seq
