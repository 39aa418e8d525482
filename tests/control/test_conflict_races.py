"""Callers that start the same id at the same time: processes over one store, and threads.

What the callers were told, what is stored and what a ledger outside says has run must agree.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from stepwell import (
    AlreadyRunning,
    CheckpointingRunner,
    InstanceExists,
    StepwellError,
    WorkflowCancelled,
    WorkflowFailed,
    task,
    task_context,
    workflow,
)
from stepwell.codec import digest
from stepwell.engine import facts as f
from stepwell.runtime.starting import start_of, start_unheld

from ..stores import open_store, url_of  # noqa: TID252 - the tests are not installed
from . import racers

PROCESSES, IDS = 8, {"sqlite": 100, "postgres": 16}
THREADS, ROUNDS = 4, {"memory": 200, "postgres": 8}


def record(what: str, count: object) -> None:
    """Say what was counted, for whoever runs this with ``-s``."""
    sys.stdout.write(f"{what}: {count}\n")


RUNS = "SELECT id, run, state FROM {} WHERE instance_id = {} ORDER BY run"


# --- processes --------------------------------------------------------------------------------------------


class Field:
    """Eight processes on one store, and what they left."""

    def __init__(self, kind: str, folder: Path, stack: ExitStack) -> None:
        self.kind, self.ids = kind, IDS[kind]
        self.ledger, path = folder / "ledger", folder / "races.db"
        self.ledger.touch()
        self.backend = stack.enter_context(open_store(kind, path, durability="fast"))
        self.racers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, racers.__file__, str(who), url_of(kind, path), str(self.ledger)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for who in range(PROCESSES)
        ]
        for racer in self.racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"

    def race(self, heat: str, prefix: str, processes: int = PROCESSES) -> list[list[str]]:
        """Let processes race for the ids with a prefix, and return for each id what each of them was told."""
        started = self.racers[:processes]
        for racer in started:
            assert racer.stdin is not None
            racer.stdin.write(f"{heat} {prefix} {self.ids}\n")
            racer.stdin.flush()
        told: list[list[str]] = [json.loads(racer.stdout.readline()) for racer in started]  # type: ignore[union-attr]
        return [list(each) for each in zip(*told, strict=True)]

    def ran(self) -> dict[str, Counter[tuple[int, str, int]]]:
        """Return how often each run's bodies began, by instance: (run, step, input)."""
        ran: dict[str, Counter[tuple[int, str, int]]] = {}
        for line in self.ledger.read_text().splitlines():
            instance_id, run, step, x = line.split()
            ran.setdefault(instance_id, Counter())[int(run), step, int(x)] += 1
        return ran

    def runs(self, instance_id: str) -> list[tuple[int, int, str]]:
        """Return number, run and state of every run of an instance."""
        with closing(self.backend.connect()) as connection:
            if self.kind == "sqlite":
                rows = connection.execute(RUNS.format("instance", "?"), (instance_id,)).fetchall()
            else:
                table = f"{self.backend._server.texts.schema}.instance"
                rows = connection.execute(RUNS.format(table, "%s"), (instance_id.encode(),)).fetchall()
        return [(int(number), int(run), str(state)) for number, run, state in rows]

    def check_completed(self, instance_id: str, run: int, winner: int) -> None:
        header = self.backend.header(instance_id)
        assert header is not None
        assert (header.state, header.run, header.held_by) == ("completed", run, "")
        assert header.input_digest == digest(self.backend.codec, winner)


def facts_of(backend: Any, number: int) -> list[f.Fact]:
    return [fact for entry in backend.history(number, 0, 1_000) for fact in f.decode(entry.facts)]


def outputs(told: list[str]) -> list[int]:
    return [int(each.removeprefix("output ")) for each in told if each.startswith("output ")]


@pytest.fixture(scope="module", params=IDS)
def field(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    if request.param == "postgres":
        request.getfixturevalue("postgres_server")
    with ExitStack() as stack:
        made = Field(request.param, tmp_path_factory.mktemp("races"), stack)
        yield made
        for racer in made.racers:
            assert racer.stdin is not None
            racer.stdin.close()
            assert racer.wait() == 0
        assert not made.backend.stuck(0)


def test_processes_fail(field: Field) -> None:
    """FAIL: one of eight wins each id, its input is stored, and each body runs once."""
    told = field.race("fail", "fail")
    for n, each in enumerate(told):
        (winner,) = outputs(each)
        assert each.count("exists") == PROCESSES - 1
        field.check_completed(f"fail{n}", 1, winner)
        assert field.ran()[f"fail{n}"] == {(1, "marks", winner): 1, (1, "checks", winner): 1}
    winners = Counter(outputs(each)[0] for each in told)
    record("winners", dict(winners))
    assert len(winners) > 1, "somebody always was first: nobody raced"


def test_processes_use_existing(field: Field) -> None:
    """USE_EXISTING: one creation, one run of each body, and eight times the same output."""
    told = field.race("use", "use")
    for n, each in enumerate(told):
        (winner,) = set(outputs(each))
        assert len(outputs(each)) == PROCESSES
        field.check_completed(f"use{n}", 1, winner)
        assert field.ran()[f"use{n}"] == {(1, "marks", winner): 1, (1, "checks", winner): 1}
    record("outputs", sum(len(outputs(each)) for each in told))


def test_processes_terminate_existing(field: Field) -> None:
    """TERMINATE_EXISTING: eight runs of each id, without a gap; the last completes, and no other one moves after its
    end."""
    told, cancelled = field.race("terminate", "terminate"), 0
    for n, each in enumerate(told):
        runs = field.runs(f"terminate{n}")
        assert [run for _, run, _ in runs] == list(range(1, PROCESSES + 1))
        ran, told_cancelled = field.ran()[f"terminate{n}"], each.count("cancelled")
        (winner,) = {x for (run, _, x) in ran if run == PROCESSES}
        field.check_completed(f"terminate{n}", PROCESSES, winner)
        assert each[winner] == f"output {winner}"
        assert set(ran.values()) == {1}, "no body ran twice in one run"
        for number, _, state in runs[:-1]:
            facts = facts_of(field.backend, number)
            ends = [i for i, fact in enumerate(facts) if isinstance(fact, f.RunEnded)]
            assert ends == [len(facts) - 1], "a run ends once, and then nothing is written"
            assert state == facts[-1].state  # type: ignore[union-attr]
        assert told_cancelled == sum(state == "cancelled" for _, _, state in runs)
        assert told_cancelled + len(outputs(each)) == PROCESSES
        cancelled += told_cancelled
    record("replaced while at work", cancelled)
    if field.kind == "sqlite":  # on a server few ids are tried
        assert cancelled > 0, "nobody was replaced at work: nobody raced"


def test_processes_restart_if_failed(field: Field) -> None:
    """RESTART_IF_FAILED: eight callers open a failed run again once; what was done is not done again."""
    broken = field.ledger.with_name(racers.BROKEN)
    broken.touch()
    assert field.race("break", "restart", 1) == [["failed"]] * field.ids
    broken.unlink()
    told, ran = field.race("restart", "restart"), field.ran()
    for n, each in enumerate(told):
        assert outputs(each) == [0] * PROCESSES
        field.check_completed(f"restart{n}", 1, 0)
        ((number, _, _),) = field.runs(f"restart{n}")
        assert sum(isinstance(fact, f.RunReopened) for fact in facts_of(field.backend, number)) == 1
        assert ran[f"restart{n}"] == {(1, "marks", 0): 1, (1, "checks", 0): 2}
    record("reopened", field.ids)


# --- threads ----------------------------------------------------------------------------------------------


class Track:
    """Two runners of two threads each over one store, and a workflow that notes what ran."""

    def __init__(self, kind: str, path: Path, stack: ExitStack) -> None:
        self.rounds = ROUNDS[kind]
        self.backend = stack.enter_context(open_store(kind, path))
        other = self.backend if kind == "memory" else stack.enter_context(open_store(kind, path))
        self.runners = [stack.enter_context(CheckpointingRunner(store, poll="1ms")) for store in (self.backend, other)]
        self._pool = stack.enter_context(ThreadPoolExecutor(THREADS))
        self._start = threading.Barrier(THREADS)
        self.ran: Counter[tuple[str, int, str, int]] = Counter()
        self.broken = False
        lock = threading.Lock()

        def note(step: str, x: int) -> int:
            context = task_context()
            with lock:
                self.ran[context.instance_id, context.run, step, x] += 1
            return x

        @task
        def marks(x: int) -> int:
            return note("marks", x)

        @task
        def checks(x: int) -> int:
            note("checks", x)
            if self.broken:
                raise OSError("broken")
            return x

        @workflow
        def race(x: int) -> int:
            return checks(marks(x))

        self.workflow = race

    def race(self, call: Callable[[Any, int], object]) -> list[object]:
        """Let every thread call at the same time, and return what each got or which error it met."""

        def one(who: int) -> object:
            self._start.wait(20)
            try:
                return call(self.runners[who % 2], who)
            except StepwellError as error:
                return type(error)

        return list(self._pool.map(one, range(THREADS)))

    def run(self, runner: Any, value: int, instance_id: str, **options: Any) -> object:
        """Run, or wait for whoever does."""
        try:
            return runner.run(self.workflow, value, instance_id=instance_id, **options)
        except AlreadyRunning:
            return runner.result(self.workflow, instance_id)

    def unheld(self, runner: Any, value: int, **options: Any) -> object:
        room = runner._room
        (header,) = start_unheld(room, room.prepare(self.workflow), [start_of(value, options)])
        return header

    def check_ended(self, instance_id: str, run: int) -> Any:
        header = self.backend.header(instance_id)
        assert header is not None
        assert (header.state, header.run, header.held_by) == ("completed", run, "")
        return header


@pytest.fixture(params=ROUNDS)
def track(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Track]:
    if request.param == "postgres":
        request.getfixturevalue("postgres_server")
    with ExitStack() as stack:
        made = Track(request.param, tmp_path / "track.db", stack)
        yield made
        assert not made.backend.stuck(0)


def test_threads_fail(track: Track) -> None:
    """One of four wins, whether it shares a runner with another or not."""
    for n in range(track.rounds):
        told = track.race(
            lambda runner, who, n=n: runner.run(track.workflow, who, instance_id=f"{n}", on_conflict="fail")  # type: ignore[misc]
        )
        (winner,) = [each for each in told if isinstance(each, int)]
        assert told.count(InstanceExists) == THREADS - 1
        header = track.check_ended(f"{n}", 1)
        assert header.input_digest == digest(track.backend.codec, winner)
    assert set(track.ran.values()) == {1}
    assert len(track.ran) == 2 * track.rounds


def test_threads_use_existing(track: Track) -> None:
    """All get what the first one's input leads to."""
    for n in range(track.rounds):
        told = track.race(lambda runner, who, n=n: track.run(runner, who, f"{n}", on_mismatch="ignore"))  # type: ignore[misc]
        assert len(set(told)) == 1
        header = track.check_ended(f"{n}", 1)
        assert header.input_digest == digest(track.backend.codec, told[0])
    assert set(track.ran.values()) == {1}
    assert len(track.ran) == 2 * track.rounds


def test_threads_terminate_existing(track: Track) -> None:
    """Each makes one run and gets its output, or hears that another took its place; the last run completes."""
    cancelled = 0
    for n in range(track.rounds):
        told = track.race(
            lambda runner, who, n=n: runner.run(  # type: ignore[misc]
                track.workflow, who, instance_id=f"{n}", on_conflict="terminate_existing"
            )
        )
        header = track.check_ended(f"{n}", THREADS)
        (winner,) = [x for (i, run, step, x) in track.ran if (i, run, step) == (f"{n}", THREADS, "checks")]
        assert told[winner] == winner
        assert header.input_digest == digest(track.backend.codec, winner)
        assert all(each in (who, WorkflowCancelled) for who, each in enumerate(told))
        cancelled += told.count(WorkflowCancelled)
    assert set(track.ran.values()) == {1}
    record("replaced while at work", cancelled)


def test_threads_restart_if_failed(track: Track) -> None:
    """A failed run is opened again once, and its first step is not run again."""
    for n in range(track.rounds):
        track.broken = True
        with pytest.raises(WorkflowFailed):
            track.runners[0].run(track.workflow, 0, instance_id=f"{n}")
        track.broken = False
        told = track.race(lambda runner, who, n=n: track.run(runner, 0, f"{n}", on_conflict="restart_if_failed"))  # type: ignore[misc]
        assert told == [0] * THREADS
        facts = facts_of(track.backend, track.check_ended(f"{n}", 1).instance)
        assert sum(isinstance(fact, f.RunReopened) for fact in facts) == 1
        assert (track.ran[f"{n}", 1, "marks", 0], track.ran[f"{n}", 1, "checks", 0]) == (1, 2)


@pytest.mark.parametrize("policy", ["fail", "use_existing", "terminate_existing"])
def test_threads_start_without_holding(policy: str, track: Track) -> None:
    """Clients race as runners do: what they leave is run once by whoever recovers it."""
    for n in range(track.rounds):
        told = track.race(
            lambda runner, who, n=n: track.unheld(runner, 0, instance_id=f"{n}", on_conflict=policy)  # type: ignore[misc]
        )
        assert told.count(InstanceExists) == (THREADS - 1 if policy == "fail" else 0)
    assert track.ran == {}
    run = THREADS if policy == "terminate_existing" else 1
    assert {status.state for status in track.runners[0].recover([track.workflow])} == {"completed"}
    assert set(track.ran.values()) == {1}
    assert set(track.ran) == {(f"{n}", run, step, 0) for n in range(track.rounds) for step in ("marks", "checks")}


def test_threads_of_every_policy_at_once(track: Track) -> None:
    """A runner that replaces, one that attaches, one that restarts and a client that replaces: nobody is stuck, the
    runs are without gaps, and no body runs twice in one run."""
    for n in range(track.rounds):
        calls: list[Callable[[Any], object]] = [
            lambda runner, n=n: runner.run(  # type: ignore[misc]
                track.workflow, 0, instance_id=f"{n}", on_conflict="terminate_existing"
            ),
            lambda runner, n=n: runner.run(track.workflow, 0, instance_id=f"{n}"),  # type: ignore[misc]
            lambda runner, n=n: runner.run(  # type: ignore[misc]
                track.workflow, 0, instance_id=f"{n}", on_conflict="restart_if_failed"
            ),
            lambda runner, n=n: track.unheld(runner, 0, instance_id=f"{n}", on_conflict="terminate_existing"),  # type: ignore[misc]
        ]
        told = track.race(lambda runner, who, calls=calls: calls[who](runner))  # type: ignore[misc]
        assert told[0] in (0, WorkflowCancelled)
        assert {told[1], told[2]} <= {0, WorkflowCancelled, AlreadyRunning}
        track.runners[0].recover([track.workflow])
        header = track.backend.header(f"{n}")
        assert header is not None
        assert (header.state, header.held_by) == ("completed", "")
        assert header.run in (2, 3)
    assert set(track.ran.values()) == {1}
