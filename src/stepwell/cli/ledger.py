"""An outside record of which steps ran, and the judgement on it. Nothing here looks at the database.

Tasks write one line when they start and one when they are through, each with a single append and an ``fsync``, so that
a line survives the writer's death. :func:`judge` reads only these lines.

When is a step *finished*? Its own last line says that its body is through, but the process can die between that line
and the commit of the step's outcome; such a step is not recorded and may rightly run again. The ledger sees the commit
from outside: what follows a step starts only after the step is recorded. So **a step is finished once something that
follows it has started**, or once the process has reported the whole job complete. A step whose body was through, of
which nothing else is known, and which ran again is counted apart as *unrecorded*.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal

import msgspec

from stepwell.errors import StepwellError
from stepwell.runtime.context import task_context

Event = Literal["begin", "start", "finish", "error", "end"]

LINE_BYTES_MAX: Final = 4_000  # one page: a file system takes such an append whole


class LedgerDamaged(StepwellError):
    """A line of a ledger cannot be read; a judgement on the others would prove nothing."""


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line. ``begin`` and ``end`` are a process's first and last word, the others tell of an attempt of a step."""

    event: Event
    pid: int
    at_us: int
    instance: str
    path: str = ""
    attempt: int = 0
    key: str = ""
    note: str = ""


class Ledger:
    """Appends lines to a file; usable from many threads and processes at once.

    Example:
        >>> @task
        ... def fetch(url: str, *, ledger: Ledger = inject()) -> bytes:
        ...     with ledger.step() as note:
        ...         note("from the mirror")
        ...         return download(url)
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, instance: str) -> None:
        """Say that a process takes up an instance."""
        self._append(Line("begin", os.getpid(), _now_us(), instance))

    def end(self, instance: str) -> None:
        """Say that an instance is complete, as far as this process was told."""
        self._append(Line("end", os.getpid(), _now_us(), instance))

    @contextmanager
    def step(self) -> Generator[Callable[[str], None], None, None]:
        """Record the start and the finish of the running attempt. Yields a function that puts a note on the latter."""
        context, notes = task_context(), [""]

        def line(event: Event) -> Line:
            step = (context.instance_id, context.path, context.attempt, context.idempotency_key)
            return Line(event, os.getpid(), _now_us(), *step, notes[-1])

        self._append(line("start"))
        try:
            yield notes.append
        except BaseException:
            self._append(line("error"))
            raise
        self._append(line("finish"))

    def _append(self, line: Line) -> None:
        data = msgspec.json.encode(line) + b"\n"
        assert len(data) <= LINE_BYTES_MAX, "paths and notes of a demo are short"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        try:
            os.write(file, data)
            os.fsync(file)
        finally:
            os.close(file)


def _now_us() -> int:
    return time.time_ns() // 1_000


# --- reading -----------------------------------------------------------------------------------


class Reader:
    """Follows a ledger that others append to."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self._decoder = msgspec.json.Decoder(Line)
        self.lines: list[Line] = []

    def poll(self) -> list[Line]:
        """Read what is new and complete. Raises LedgerDamaged."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(data) + len(newline)
        new = [self._line(raw) for raw in data.split(b"\n")] if newline else []
        self.lines += new
        return new

    def _line(self, raw: bytes) -> Line:
        try:
            return self._decoder.decode(raw)
        except msgspec.MsgspecError as error:
            raise LedgerDamaged(f"a line of {self._path} cannot be read: {error}") from error


@dataclass(slots=True)
class Execution:
    """One run of a step's body. ``life`` counts the processes from 1; ``started`` and ``ended`` are line numbers."""

    path: str
    key: str
    life: int
    started: int
    start_us: int
    ended: int | None = None
    end_us: int = 0
    failed: bool = False
    note: str = ""

    @property
    def through(self) -> bool:
        """Whether the body came to its end without an error."""
        return self.ended is not None and not self.failed

    @property
    def seconds(self) -> float:
        """How long the body ran, by the clock of its process; 0 while it has not ended."""
        return max(0, self.end_us - self.start_us) / 1e6 if self.ended is not None else 0.0


@dataclass(frozen=True, slots=True)
class Story:
    """The lines as executions. ``ended`` is the line that first says the job is complete, or ``None``."""

    executions: Sequence[Execution]
    lives: int
    ended: int | None


def told(lines: Sequence[Line]) -> Story:
    """Pair the lines of starts and finishes."""
    executions: list[Execution] = []
    running: dict[tuple[int, str], Execution] = {}
    lives, ended = 0, None
    for number, line in enumerate(lines):
        if line.event == "begin":
            lives += 1
        elif line.event == "end":
            ended = number if ended is None else ended
        elif line.event == "start":
            execution = Execution(line.path, line.key, lives, number, line.at_us)
            executions.append(execution)
            running[line.pid, line.path] = execution
        else:
            if (line.pid, line.path) not in running:
                raise LedgerDamaged(f"line {number + 1} ends {line.path}, which process {line.pid} never started")
            execution = running.pop((line.pid, line.path))
            execution.ended, execution.end_us = number, line.at_us
            execution.failed, execution.note = line.event == "error", line.note
    return Story(executions, lives, ended)


# --- judging -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the ledger proves. Every field but the last two holds paths of steps, in the order they first started.

    Attributes:
        before: bodies that were through before the last kill.
        kept: those of ``before`` that did not run again after that kill.
        cut_off: started and not through when a kill came.
        unrecorded: through, not known to be recorded, and ran again after a kill; at-least-once allows it.
        after: ran in the last process for the first time.
        twice: finished, and ran again: must be empty.
        rekeyed: had another idempotency key in another attempt: must be empty.
        lives: how many processes worked on the job.
        complete: the job was reported complete, and nothing was left open.
    """

    before: tuple[str, ...]
    kept: tuple[str, ...]
    cut_off: tuple[str, ...]
    unrecorded: tuple[str, ...]
    after: tuple[str, ...]
    twice: tuple[str, ...]
    rekeyed: tuple[str, ...]
    lives: int
    complete: bool

    @property
    def holds(self) -> bool:
        """Whether the job completed and no finished step ran twice."""
        return self.complete and not self.twice and not self.rekeyed


def judge(lines: Sequence[Line], parallel: str) -> Judgement:
    """Judge a ledger. ``parallel`` is the path of the one scope whose branches do not follow each other."""
    story = told(lines)
    steps: dict[str, list[Execution]] = {}
    for execution in story.executions:
        steps.setdefault(execution.path, []).append(execution)
    earlier = [path for path, runs in steps.items() if any(x.through and x.life < story.lives for x in runs)]
    twice = [path for path in steps if _ran_twice(path, steps, story, parallel)]
    return Judgement(
        before=tuple(earlier),
        kept=tuple(path for path in earlier if steps[path][-1].life < story.lives),
        cut_off=tuple(path for path, runs in steps.items() if any(_cut_off(x, story) for x in runs)),
        unrecorded=tuple(p for p, runs in steps.items() if p not in twice and any(x.through for x in runs[:-1])),
        after=tuple(path for path, runs in steps.items() if runs[0].life == story.lives),
        twice=tuple(twice),
        rekeyed=tuple(path for path, runs in steps.items() if len({x.key for x in runs}) > 1),
        lives=story.lives,
        complete=story.ended is not None and all(runs[-1].through for runs in steps.values()),
    )


def _cut_off(execution: Execution, story: Story) -> bool:
    return execution.ended is None and (execution.life < story.lives or story.ended is not None)


def _ran_twice(path: str, steps: dict[str, list[Execution]], story: Story, parallel: str) -> bool:
    runs = steps[path]
    finished = min((_finished_at(x, steps, story, parallel) for x in runs if x.through), default=None)
    if finished is not None and runs[-1].started > finished:
        return True
    # Within one life only an error justifies a second start.
    return any(a.life == b.life and not a.failed for a, b in pairwise(runs))


def _finished_at(run: Execution, steps: dict[str, list[Execution]], story: Story, parallel: str) -> float:
    """Return the line at which a run whose body was through is known to be recorded; infinity if it never was."""
    assert run.ended is not None
    own_place = steps[run.path][0].started
    starts = [
        x.started
        for path, runs in steps.items()
        if runs[0].started > own_place and not concurrent(run.path, path, parallel)
        for x in runs
        if x.started > run.ended
    ]
    if story.ended is not None:
        starts.append(story.ended)
    return min(starts, default=float("inf"))


def concurrent(one: str, other: str, parallel: str) -> bool:
    """Whether two steps stand in different branches of the scope at path ``parallel``."""
    inside = f"{parallel}/"
    if not (one.startswith(inside) and other.startswith(inside)):
        return False
    return one[len(inside) :].partition("/")[0] != other[len(inside) :].partition("/")[0]
