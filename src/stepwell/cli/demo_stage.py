"""The demo's stage: it starts the job, follows the ledger, kills the job in the middle of a step, and starts it again.

What is known of the job is what its ledger says. The database is never opened here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple

from stepwell.cli.ledger import Execution, Line, Reader, Story, told
from stepwell.errors import StepwellError

KILL: Final = "SIGKILL" if os.name == "posix" else "TerminateProcess"
TICK_S: Final = 0.01
LIFE_S_MAX: Final = 120.0  # a job that takes longer is stuck; the demo says so instead of waiting for ever
INTO_STEP_S: Final = 0.15  # how far into a step a kill lands, unless a third of the step is less


class StageError(StepwellError):
    """The job did not do what the demo is about: it failed by itself, or ended before it could be killed."""


@dataclass(frozen=True, slots=True)
class Files:
    """What a demo leaves behind in its folder."""

    folder: Path

    @property
    def database(self) -> Path:
        return self.folder / "jobs.db"

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger.jsonl"

    @property
    def report(self) -> Path:
        return self.folder / "report.md"

    @property
    def log(self) -> Path:
        return self.folder / "job.log"


class News(NamedTuple):
    """Something to tell: ``step`` for each step, ``event`` and ``kill`` for the job's processes."""

    at_s: float
    text: str
    kind: Literal["step", "event", "kill"]


@dataclass(slots=True)
class Scene:
    """All that a view shows."""

    modules: int
    turns: int
    started_s: float = field(default_factory=time.monotonic)
    lines: list[Line] = field(default_factory=list[Line])
    pids: list[int] = field(default_factory=list[int])
    news: list[News] = field(default_factory=list[News])
    over: bool = True

    @property
    def story(self) -> Story:
        return told(self.lines)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_s

    def tell(self, kind: Literal["step", "event", "kill"], text: str) -> None:
        self.news.append(News(self.elapsed_s, text, kind))


class Aim(NamedTuple):
    """Where a kill should land: in the middle of a step, once this many steps are through."""

    through: int
    last: int

    def reached(self, story: Story, life: int) -> bool:
        """Whether now is the moment. While the job waits in its delay will do as well."""
        done = {x.path for x in story.executions if x.through}
        if story.lives < life or len(done) < self.through:
            return False
        running = open_steps(story, life)
        return any(_age_s(x) >= _far_enough_s(x, story) for x in running) or (not running and len(done) == self.last)


def open_steps(story: Story, life: int) -> list[Execution]:
    """Return what a process has started and not brought to an end."""
    return [x for x in story.executions if x.life == life and x.ended is None]


def _age_s(execution: Execution) -> float:
    return time.time() - execution.start_us / 1e6


def _far_enough_s(execution: Execution, story: Story) -> float:
    task = execution.path.rpartition("/")[2]
    alike = [x.seconds for x in story.executions if x.through and x.path.rpartition("/")[2] == task]
    return min([INTO_STEP_S, *(seconds / 3 for seconds in alike)])


def aims(kills: int, turns: int) -> list[Aim]:
    """Spread kills over the job: a single one in the middle of the loop, the first of several among the branches."""
    before_loop = 4  # the listing and three branches
    parts = kills if kills > 1 else 2
    loop = [Aim(before_loop + turns * k // parts, before_loop + turns) for k in range(1, parts)]
    return loop if kills == 1 else [Aim(2, before_loop + turns), *loop]


class Stage:
    """Plays one job in a folder. ``show`` is called often, with the scene as it is."""

    def __init__(self, files: Files, scene: Scene, show: Callable[[Scene], None]) -> None:
        self._files, self._scene, self._show = files, scene, show
        self._reader = Reader(files.ledger)

    def play(self, kills: Sequence[Aim]) -> Sequence[Line]:
        """Run the job through all its kills to its end and return the ledger.

        Raises:
            StageError: the job failed, was too fast to be killed, or takes too long.
            LedgerDamaged: its ledger cannot be read.
        """
        for aim in (*kills, None):
            child = self._start()
            try:
                self._follow(child, aim)
            finally:
                child.kill()
                child.wait()
                self._look()
                self._scene.over = True
        self._show(self._scene)
        return self._reader.lines

    def _start(self) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C is for the demo, which then decides about the job.
        command = [
            sys.executable,
            "-P",
            "-m",
            "stepwell.cli.demo_job",
            str(self._files.folder),
            str(self._scene.modules),
        ]
        with self._files.log.open("ab") as log:
            child = subprocess.Popen(  # noqa: S603 - our own module, by the running interpreter
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        again = " again" if self._scene.pids else ""
        self._scene.pids.append(child.pid)
        self._scene.over = False
        self._scene.tell("event", f"The job is started{again}, as process {child.pid}.")
        return child

    def _follow(self, child: subprocess.Popen[bytes], aim: Aim | None) -> None:
        until = time.monotonic() + LIFE_S_MAX
        while child.poll() is None:
            self._look()
            self._show(self._scene)
            if aim is not None and aim.reached(self._scene.story, len(self._scene.pids)):
                return self._kill(child)
            if time.monotonic() > until:
                raise StageError(f"process {child.pid} is not through after {LIFE_S_MAX:g} s; see {self._files.log}")
            time.sleep(TICK_S)
        if child.returncode:
            raise StageError(f"process {child.pid} ended with code {child.returncode}:\n{_tail(self._files.log)}")
        if aim is not None:
            raise StageError("the job was complete before it could be killed; give it more work with --modules")
        self._scene.tell("event", f"The job is complete, says process {child.pid}.")
        return None

    def _kill(self, child: subprocess.Popen[bytes]) -> None:
        child.kill()
        child.wait()
        self._look()
        open_now = [x.path for x in open_steps(self._scene.story, len(self._scene.pids))]
        where = f"in the middle of {' and '.join(open_now)}" if open_now else "while no step was running"
        self._scene.tell("kill", f"{KILL} to process {child.pid}, {where}.")
        self._show(self._scene)

    # --- reading the ledger ---

    def _look(self) -> None:
        for line in self._reader.poll():
            self._scene.lines.append(line)
            self._tell(line)

    def _tell(self, line: Line) -> None:
        story = self._scene.story
        if line.event == "start" and story.lives > 1 and not any(x.life == story.lives for x in story.executions[:-1]):
            kept = len({x.path for x in story.executions if x.through and x.path != line.path})
            self._scene.tell("event", f"Process {line.pid} goes on at {line.path}; {kept} steps are there already.")
        if line.event == "finish":
            seconds = next(x.seconds for x in reversed(story.executions) if x.path == line.path)
            self._scene.tell("step", f"{line.path}: {seconds:.2f} s, {line.note}")


def _tail(path: Path) -> str:
    return "\n".join(path.read_text("utf-8", "replace").splitlines()[-12:])
