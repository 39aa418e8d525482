"""Process tasks: what comes back, what is killed, and what becomes of everything else."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell.codec import JsonCodec, MsgpackCodec
from stepwell.errors import Closed, MissingDependency, RecordedError, UsageError, WorkflowFailed
from stepwell.flow.builder import Flow
from stepwell.flow.task import task
from stepwell.runtime.clock import Wait
from stepwell.runtime.context import CURRENT, Cell
from stepwell.runtime.hands import Fatal, Flight
from stepwell.runtime.in_process import InProcessRunner
from stepwell.runtime.invoke import Job, Outcome, perform, verdict
from stepwell.runtime.live import Live
from stepwell.runtime.processes import Processes
from stepwell.runtime.room import Room

HERE = str(Path(__file__).parent)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the tests watch processes through FIFOs")


@pytest.fixture(scope="module", autouse=True)
def bodies() -> Iterator[Any]:
    """The module of process tasks, where a new process finds it too."""
    sys.path.insert(0, HERE)
    yield importlib.import_module("process_bodies")
    sys.path.remove(HERE)


@pytest.fixture(scope="module")
def one() -> Iterator[Processes]:
    """A single worker, for all tests that need not care which."""
    processes = Processes(1)
    yield processes
    processes.close()


def job_of(
    step: Any, value: object, *, stored: bool = True, codec: Any = None, deps: Any = None, metadata: Any = None
) -> Job:
    """One attempt of a workflow's only task."""
    room = Room(None, stored=stored, codec=codec, deps=deps)
    prepared = room.prepare(Flow("flow", metadata=metadata or {}).then(step).build())
    live = Live(room, prepared, "order-42", 1, 1, copy_context())
    body = prepared.body(next(iter(prepared.workflow.bodies.tasks)))
    return Job(live, body, body.node, (), 1, [live.encode(value)])


def run_here(job: Job) -> Outcome:
    """Run the same body as a thread would."""
    cell = Cell()
    context = copy_context()
    context.run(CURRENT.set, cell)
    return context.run(perform, job, cell)


class Post:
    """Collects what is delivered."""

    def __init__(self, processes: Processes) -> None:
        self.items: SimpleQueue[Any] = SimpleQueue()
        self._processes = processes

    def send(self, job: Job) -> Flight:
        return self._processes.submit(job, copy_context(), self.items.put)

    def run(self, job: Job) -> Any:
        self.send(job)
        return self.items.get()


def fifo(directory: Path, name: str = "fifo") -> str:
    path = str(directory / name)
    os.mkfifo(path)
    return path


class Watched:
    """A hanging body's end of its FIFO: opening waits for the body to begin, reading on for its process to end."""

    def __init__(self, path: str) -> None:
        self._pipe = open(path, "rb", buffering=0)  # noqa: SIM115  # it stays open for as long as the process is watched
        self.pid = int.from_bytes(self._pipe.read(8), "big")

    def wait_ended(self) -> None:
        with self._pipe:
            assert self._pipe.read(1) == b""


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# --- values ------------------------------------------------------------------------------------

storable = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.decimals(),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(value=storable, codec=st.sampled_from([JsonCodec(), MsgpackCodec()]))
def test_a_stored_result_has_a_threads_bytes(one: Processes, bodies: Any, value: object, codec: Any) -> None:
    """Law: for every value and codec, the outcome is that of the same body run here."""
    job = job_of(bodies.echo, value, codec=codec)
    there, here = Post(one).run(job), run_here(job)
    assert (there.output, there.error) == (here.output, None)


@pytest.mark.parametrize("isolate", [False, True])
def test_an_object_is_made_of_its_declared_type_on_both_sides(bodies: Any, isolate: bool) -> None:
    """Argument and result cross the pipe as what the task declares."""
    flow = Flow("flow").then(bodies.doubled).then(bodies.doubled, name="again").build()
    with InProcessRunner(isolate=isolate) as runner:
        assert runner.run(flow, bodies.Order(3)) == bodies.Order(12)


@pytest.mark.parametrize("isolate", [False, True])
def test_a_loop_turns_on_what_a_process_returns(bodies: Any, isolate: bool) -> None:
    """Again and Done keep their meaning over the pipe."""
    flow = Flow("flow").loop(bodies.countdown, max_iterations=5, name="loop").build()
    with InProcessRunner(isolate=isolate) as runner:
        assert runner.run(flow, 2) == "lift-off from loop[3]/countdown"


@pytest.mark.parametrize("isolate", [False, True])
def test_a_loop_is_told_the_type_that_a_process_returned_instead(bodies: Any, isolate: bool) -> None:
    """Its name comes over the pipe, and the value is of no concern."""
    flow = Flow("flow").loop(bodies.neither, max_iterations=5, name="loop").build()
    with InProcessRunner(isolate=isolate) as runner, pytest.raises(WorkflowFailed, match="returned list, neither"):
        runner.run(flow, 2)


def test_a_plain_function_may_carry_the_name_of_its_task(one: Processes, bodies: Any) -> None:
    """The module's attribute may be the function itself."""
    job = job_of(bodies.plain_in_process, 1)
    assert job.live.prepared.codec.decode(Post(one).run(job).output) == 2


def test_an_argument_that_does_not_fit_fails_the_step_for_good(one: Processes, bodies: Any) -> None:
    """A passed object that is not what the parameter declares is told by type, not guessed into shape."""
    outcome = Post(one).run(job_of(bodies.doubled, "three", stored=False))
    assert (outcome.record["type"], outcome.verdict) == ("DecodeError", (False, -1))
    assert "an argument of 'doubled' at doubled does not fit" in outcome.record["message"]


def test_an_argument_that_cannot_travel_fails_the_step_for_good(one: Processes, bodies: Any) -> None:
    """In a run that passes objects, an object without a stored form is refused with the task and the path."""
    outcome = Post(one).run(job_of(bodies.echo, object(), stored=False))
    assert verdict(outcome.job.body, outcome.error) == (False, -1)
    assert str(outcome.error).startswith("an argument of 'echo' at echo cannot be stored: ")


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["declined", "missing", "chained", "permanent", "later", "other", "unstorable"])
def test_an_error_is_recorded_and_judged_as_in_a_thread(one: Processes, bodies: Any, how: str) -> None:
    """Law: type, message, frames and causes are the same, and so is what the policy says to them."""
    job = job_of(bodies.fails, how)
    there, here = Post(one).run(job), run_here(job)
    assert here.error is not None
    assert there.record == here.record
    assert there.verdict == verdict(job.body, here.error)


def test_a_failed_run_raises_what_the_process_recorded(bodies: Any) -> None:
    """The cause of WorkflowFailed carries the text of an exception that stayed in its process."""
    with InProcessRunner() as runner, pytest.raises(WorkflowFailed) as raised:
        runner.run(Flow("flow").then(bodies.fails).build(), "other")
    assert isinstance(raised.value.__cause__, RecordedError)
    assert raised.value.__cause__.type_name == "ValueError"


@pytest.mark.parametrize("code", [3, -signal.SIGKILL, -signal.SIGSEGV])
def test_a_body_that_ends_its_process_has_failed_an_attempt(one: Processes, bodies: Any, code: int) -> None:
    """The error names the exit code and the step, and the policy decides: this one covers Declined alone."""
    outcome = Post(one).run(job_of(bodies.dies, code))
    assert outcome.record["type"] == "ProcessDied"
    assert outcome.record["message"] == f"the worker process ended with exit code {code} while running dies"
    assert verdict(outcome.job.body, outcome.error) == (False, -1)


def test_a_worker_whose_process_died_takes_the_next_job(one: Processes, bodies: Any) -> None:
    """Dying hurts nobody else."""
    post = Post(one)
    post.run(job_of(bodies.dies, 1))
    assert post.run(job_of(bodies.pid, None)).error is None


def test_a_process_that_died_while_idle_is_replaced(bodies: Any) -> None:
    """No attempt is lost to a process that was killed between two jobs."""
    processes = Processes(1)
    post = Post(processes)
    first = int(JsonCodec().decode(post.run(job_of(bodies.pid, None)).output))  # type: ignore[call-overload]
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert JsonCodec().decode(post.run(job_of(bodies.pid, None)).output) != first
    processes.close()


def test_leaving_is_no_attempts_failure(one: Processes, bodies: Any) -> None:
    """SystemExit reaches the caller, as from a thread."""
    fatal = Post(one).run(job_of(bodies.leaves, 7))
    assert isinstance(fatal, Fatal)
    assert isinstance(fatal.error, SystemExit)
    assert fatal.error.code == 7


def test_signals_to_the_group_do_not_end_a_body(one: Processes, bodies: Any) -> None:
    """Ctrl-C and a service manager's SIGTERM are for the parent to act on."""
    assert JsonCodec().decode(Post(one).run(job_of(bodies.signalled, None)).output) == "still here"


# --- what a task asks -----------------------------------------------------------------------------


def test_the_context_is_that_of_a_thread(one: Processes, bodies: Any) -> None:
    """Law: every attribute of task_context() has the same value on both sides."""
    job = job_of(bodies.context_of, None, metadata={"team": ["search"]})
    job.deadline_us, job.number = 1_700_000_000_000_000, 2
    assert Post(one).run(job).output == run_here(job).output


def test_heartbeats_arrive_in_order(one: Processes, bodies: Any) -> None:
    """Each cursor reaches the parent before heartbeat() returns."""
    job, kept = job_of(bodies.beats, [1, {"at": "row 2"}, None]), list[object]()
    job.keep = lambda _, cursor: kept.append(cursor)
    Post(one).run(job)
    assert kept == [1, {"at": "row 2"}, None]


def test_a_heartbeat_tells_a_body_to_stop(one: Processes, bodies: Any) -> None:
    """A stop asked of the parent while the body runs is raised by its next heartbeat, and is not tried again."""
    job = job_of(bodies.beats, [1, 2])

    def keep(running: Job, cursor: object) -> None:
        running.stopped = "its timeout has passed" if cursor == 2 else ""

    job.keep = keep
    outcome = Post(one).run(job)
    assert (outcome.record["type"], outcome.record["message"]) == ("StepCancelled", "its timeout has passed: beats")
    assert outcome.verdict == (False, -1)


def test_a_heartbeat_that_the_parent_refuses_raises_in_the_body(one: Processes, bodies: Any) -> None:
    """The refusal's type and text come back over the pipe."""
    job = job_of(bodies.beats, [1])

    def keep(running: Job, cursor: object) -> None:
        raise LookupError("no such step")

    job.keep = keep
    assert Post(one).run(job).record["message"] == "LookupError: no such step"


def test_a_cursor_reaches_the_next_attempt(bodies: Any) -> None:
    """What heartbeat() kept is task_context().cursor after the retry."""
    with InProcessRunner(isolate=True) as runner:
        assert runner.run(Flow("flow").then(bodies.goes_on).build(), bodies.Order(9)) == (9, 2)


def test_an_unstorable_cursor_is_refused_where_it_is_given(one: Processes, bodies: Any) -> None:
    """heartbeat() names the task and path."""
    record = Post(one).run(job_of(bodies.unstorable_beat, None)).record
    assert record["type"] == "EncodeError"
    assert record["message"].startswith("the cursor of 'unstorable_beat' at unstorable_beat cannot be stored: ")


# --- dependencies and names ---------------------------------------------------------------------


@pytest.mark.parametrize("factory", ["Stock", "make_stock"])
def test_a_dependency_is_made_once_in_each_process(bodies: Any, factory: str) -> None:
    """A class or a function makes it there, not here."""
    processes = Processes(1)
    post = Post(processes)
    jobs = [job_of(bodies.with_stock, None, deps={bodies.Stock: getattr(bodies, factory)}) for _ in range(2)]
    seen = [JsonCodec().decode(post.run(job).output) for job in jobs]
    assert seen[0] == seen[1]
    assert seen[0] != bodies.Stock().seen
    processes.close()


def test_a_dependency_must_be_a_factory(bodies: Any) -> None:
    """An object does not travel; preparing says what to give instead."""
    with pytest.raises(UsageError, match=r"needs stock: Stock; objects do not travel, .* not a Stock"):
        job_of(bodies.with_stock, None, deps={bodies.Stock: bodies.Stock()})


def test_a_missing_dependency_is_told_before_anything_runs(bodies: Any) -> None:
    """As for tasks in threads."""
    with pytest.raises(MissingDependency, match="with_stock"):
        job_of(bodies.with_stock, None)


def test_a_task_that_its_name_does_not_lead_to_is_refused(bodies: Any) -> None:
    """A new process could not find it; that is said before anything runs."""
    with pytest.raises(UsageError, match="process_bodies:shadowed does not lead to it"):
        job_of(bodies.hidden, None)


def test_a_task_that_only_the_parent_can_import_is_told_apart_from_a_failure(one: Processes) -> None:
    """The caller gets a UsageError with the name that was looked for; no attempt is used up."""
    module = types.ModuleType("made_up_here")
    exec("def f(x: int) -> int:\n    return x", module.__dict__)  # noqa: S102  # a module without a file
    module.f = task(run_in="process")(module.f)  # type: ignore[attr-defined]
    sys.modules["made_up_here"] = module
    try:
        fatal = Post(one).run(job_of(module.f, 1))
    finally:
        del sys.modules["made_up_here"]
    assert isinstance(fatal, Fatal)
    assert "cannot find task 'f' as made_up_here:f: ModuleNotFoundError" in str(fatal.error)


# --- stopping -------------------------------------------------------------------------------------


def test_stop_ends_the_process_and_delivers_nothing(bodies: Any, tmp_path: Path) -> None:
    """The body is over, its pid is gone, and the worker goes on with a new process."""
    processes = Processes(1)
    post = Post(processes)
    flight = post.send(job_of(bodies.hang, path := fifo(tmp_path)))
    hanging = Watched(path)
    assert flight.stop is not None
    flight.stop()
    hanging.wait_ended()
    assert JsonCodec().decode(post.run(job_of(bodies.pid, None)).output) != hanging.pid
    assert gone(hanging.pid)
    processes.close()
    assert post.items.empty()


def test_a_stopped_job_in_the_queue_never_runs(bodies: Any, tmp_path: Path) -> None:
    """It leaves no trace, and the one behind it has its turn."""
    processes = Processes(1)
    post = Post(processes)
    first = post.send(job_of(bodies.hang, path := fifo(tmp_path)))
    second = post.send(job_of(bodies.touch, str(tmp_path / "second")))
    Watched(path)._pipe.close()
    assert second.stop is not None
    assert first.stop is not None
    second.stop()
    first.stop()
    assert post.run(job_of(bodies.touch, str(tmp_path / "third"))).error is None
    assert not (tmp_path / "second").exists()
    processes.close()


def test_stopping_what_has_ended_hurts_nobody(bodies: Any) -> None:
    """The process lives on."""
    processes = Processes(1)
    post = Post(processes)
    flight = post.send(job_of(bodies.pid, None))
    first = post.items.get()
    assert flight.stop is not None
    flight.stop()
    assert post.run(job_of(bodies.pid, None)).output == first.output
    processes.close()


def test_jobs_run_side_by_side_up_to_the_limit(bodies: Any, tmp_path: Path) -> None:
    """Two bodies that wait for each other both return."""
    processes = Processes(2)
    post = Post(processes)
    a, b = fifo(tmp_path, "a"), fifo(tmp_path, "b")
    post.send(job_of(bodies.meet, bodies.Pipes(a, b)))
    post.send(job_of(bodies.meet, bodies.Pipes(b, a)))
    assert [JsonCodec().decode(post.items.get().output) for _ in range(2)] == ["met", "met"]
    processes.close()


def test_close_kills_what_is_busy_and_drops_what_waits(bodies: Any, tmp_path: Path) -> None:
    """Afterwards no process is left and nothing is delivered or accepted."""
    processes = Processes(1)
    post = Post(processes)
    post.send(job_of(bodies.hang, path := fifo(tmp_path)))
    post.send(job_of(bodies.touch, str(tmp_path / "waiting")))
    hanging = Watched(path)
    processes.close()
    hanging.wait_ended()
    assert gone(hanging.pid)
    assert post.items.empty()
    assert not (tmp_path / "waiting").exists()
    with pytest.raises(Closed):
        post.send(job_of(bodies.pid, None))


def test_close_ends_an_idle_process(bodies: Any) -> None:
    """Its pid is gone when close() returns."""
    processes = Processes(1)
    idle = JsonCodec().decode(Post(processes).run(job_of(bodies.pid, None)).output)
    processes.close()
    assert gone(int(idle))  # type: ignore[call-overload]


class JumpingClock:
    """Stands still until a body hangs; then the time is whatever the runner waits for."""

    def __init__(self, path: str) -> None:
        self._path, self._now = path, 1_700_000_000_000_000
        self.hanging: Watched | None = None

    def now_us(self) -> int:
        return self._now

    def timeout_s(self, wait: Wait) -> float | None:
        if self.hanging is None and wait.until_us is not None:
            self.hanging = Watched(self._path)
            self._now = wait.until_us
            return 0
        return None


def test_a_timeout_ends_the_body(bodies: Any, tmp_path: Path) -> None:
    """The step fails with TaskTimeout and its process is really over."""
    path = fifo(tmp_path)
    clock = JumpingClock(path)
    with InProcessRunner(clock=clock) as runner, pytest.raises(WorkflowFailed, match="its timeout of 1h"):
        runner.run(Flow("flow").then(bodies.hang_with_timeout).build(), path)
    assert clock.hanging is not None
    clock.hanging.wait_ended()
    assert gone(clock.hanging.pid)


# --- whole scripts ----------------------------------------------------------------------------------

SCRIPT = """
import os, sys, threading
from dataclasses import dataclass
from stepwell.flow.builder import Flow
from stepwell.flow.task import task
from stepwell.retry import Retry
from stepwell.runtime.in_process import InProcessRunner
from process_bodies import hang

@dataclass
class Order:
    amount: int

class Declined(Exception):
    pass

@task(run_in="process", retry=Retry(attempts=2, delay=0, on=(Declined,)))
def charge(order: Order) -> Order:
    if order.amount < 0:
        raise Declined("negative")
    return Order(order.amount + 1)

flow = Flow("flow").then(charge).build()
hanging = Flow("hanging").then(hang).build()
"""


def script(directory: Path, text: str) -> list[str]:
    path = directory / "script.py"
    path.write_text(SCRIPT + textwrap.dedent(text))
    return [sys.executable, str(path)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([HERE, *filter(None, sys.path)])}


def finish(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, env=environment(), capture_output=True, text=True, check=False)


def test_a_script_may_define_its_process_tasks_itself(tmp_path: Path) -> None:
    """`python script.py` works, with types and errors of the script's own."""
    arguments = script(
        tmp_path,
        """
        if __name__ == "__main__":
            runner = InProcessRunner()
            print(runner.run(flow, Order(1)))
            try:
                runner.run(flow, Order(-1))
            except Exception as error:
                print(error)
                print(type(error.__cause__).__name__, error.__cause__)
        """,
    )
    done = finish(arguments)
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == "Order(amount=2)"
    assert done.stdout.splitlines()[-1] == "RecordedError __main__.Declined: negative"


def test_a_script_without_a_main_guard_is_told_so(tmp_path: Path) -> None:
    """Its worker process stops before it runs the script's work again."""
    done = finish(script(tmp_path, "print('once')\nInProcessRunner().run(flow, Order(1))\n"))
    assert done.returncode == 1
    assert re.search(r"UsageError: .* a script must start its work under `if __name__ == \"__main__\":`", done.stderr)


def test_a_busy_body_does_not_delay_the_exit_of_its_parent(tmp_path: Path) -> None:
    """A runner that nobody closed lets the interpreter go, and the body with it."""
    path = fifo(tmp_path)
    arguments = script(
        tmp_path,
        f"""
        if __name__ == "__main__":
            threading.Thread(target=InProcessRunner().run, args=(hanging, {path!r}), daemon=True).start()
            sys.stdin.read()
        """,
    )
    parent = subprocess.Popen(arguments, env=environment(), stdin=subprocess.PIPE)
    hanging = Watched(path)
    parent.communicate()
    hanging.wait_ended()
    assert parent.returncode == 0


def test_no_process_outlives_a_killed_parent(tmp_path: Path) -> None:
    """The pipe ends with the parent, and with the pipe the worker, though its body hangs."""
    path = fifo(tmp_path)
    arguments = script(
        tmp_path,
        f"""
        if __name__ == "__main__":
            InProcessRunner().run(hanging, {path!r})
        """,
    )
    parent = subprocess.Popen(arguments, env=environment())
    hanging = Watched(path)
    parent.kill()
    assert parent.wait() == -signal.SIGKILL
    hanging.wait_ended()
