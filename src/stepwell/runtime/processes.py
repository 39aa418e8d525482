"""Process tasks: bodies that run in worker processes, which a timeout or a cancel really ends.

Each worker is a daemon thread here with one process of its own, started by "spawn" at first need and kept for
further jobs. The thread evaluates the job's arguments, sends them as envelopes, answers what the body asks, and
delivers how it ended. Stopping a flight kills the process; the next job of that worker gets a new one.

A new process imports the main module again, as always with multiprocessing: a script that starts runners must do so
under ``if __name__ == "__main__":``. A process that cannot start, or cannot find the task, is no failure of the
workflow: the caller gets the error (:class:`~stepwell.runtime.hands.Fatal`) and no attempt is used up. A process that
dies *while it runs a body* (``os._exit``, a crash in C code, out of memory) is a failed attempt of type
``ProcessDied``, tried again as the task's policy says: not counted, a body that always crashes would run forever.

Parameters of a process task should be annotated: what is not declared arrives as the codec reads it without a type.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextvars import Context
from importlib import import_module
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from stepwell.codec import Codec
from stepwell.errors import Closed, CodecError, DecodeError, UsageError
from stepwell.flow.declared import may_say_again, turn_types
from stepwell.flow.task import AnyTask, Task
from stepwell.observe.process import options_here
from stepwell.retry import Retry

from .failure import recorded_error
from .hands import Deliver, Fatal, Flight
from .invoke import Bind, Job, Outcome, failed, unstorable
from .process_main import (
    CODECS,
    GRACE_S,
    Answer,
    Call,
    Ending,
    Exited,
    Question,
    Raised,
    Ready,
    Returned,
    ToParent,
    Unfit,
    find,
    kinds_of,
    packed,
    serve,
    target_of,
)

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

_MESSAGE_SLACK: Final = 1024 * 1024  # over the value's own limit: an error's texts, and the frame
_read: Final = msgspec.msgpack.Decoder[ToParent](ToParent).decode

_GUARD: Final = (
    'a new process imports the main module again, so a script must start its work under `if __name__ == "__main__":`'
)


# --- what is checked when a workflow is prepared --------------------------------------------------


class Remote(NamedTuple):
    """How a process runs a task: its name there, its arguments, the factories of its dependencies by parameter."""

    target: str
    bind: Bind
    factories: Mapping[str, str]


def remote_of(task: AnyTask, bind: Bind, deps: Mapping[str, object], codec: Codec) -> Remote:
    """Return how ``task`` runs in a process.

    Raises:
        UsageError: a new process could not find the task or make a dependency, or this one is still starting itself.
    """
    _check_not_importing(task)
    if codec.name not in CODECS:
        raise UsageError(f"task {task.name!r} runs in a process, which takes JsonCodec or MsgpackCodec, not {codec!r}")
    if not _is_found(task.fn):
        raise UsageError(
            f"task {task.name!r} runs in a process, but {target_of(task.fn)} does not lead to it: define it at the "
            f"top level of an importable module or a script (not in an interactive session), and leave its name to it"
        )
    return Remote(target_of(task.fn), bind, {name: _factory(task, name, made) for name, made in deps.items()})


def _is_found(fn: object) -> bool:
    """Say whether a process spawned from this one will find ``fn`` by its name."""
    module = sys.modules.get(getattr(fn, "__module__", None) or "")
    if module is None or "<" in getattr(fn, "__qualname__", "<"):
        return False
    if module.__name__ == "__main__" and module.__spec__ is None and getattr(module, "__file__", None) is None:
        return False  # typed in, or `python -c`: there is nothing to import again
    try:
        found = find(target_of(fn))
    except (ImportError, AttributeError):
        return False
    return (found.fn if isinstance(found, Task) else found) is fn


def _factory(task: AnyTask, parameter: str, made: object) -> str:
    if callable(made) and _is_found(made):
        return target_of(made)
    declared = task.injected[parameter]
    name = getattr(declared, "__name__", str(declared))
    raise UsageError(
        f"task {task.name!r} runs in a process and needs {parameter}: {name}; objects do not travel, so give "
        f"the runner deps={{{name}: make}} where make is a module-level function (or class) without parameters that "
        f"makes one there, not a {type(made).__name__}"
    )


def _check_not_importing(task: AnyTask) -> None:
    """Stop a script without a main guard before its worker processes run the whole script again."""
    module = sys.modules.get("multiprocessing.process")
    if module is not None and getattr(module.current_process(), "_inheriting", False):
        raise UsageError(f"task {task.name!r} was about to run while its worker process is still starting: {_GUARD}")


# --- from a job to a message, and back ------------------------------------------------------------


def _call_of(job: Job) -> Call:
    """Evaluate a job's arguments; constructors and properties of the user may run in here."""
    remote, live, codec = job.body.remote, job.live, job.live.prepared.codec
    assert remote is not None
    args, kwargs = remote.bind(job.raws)
    try:
        positional = [codec.encode(value) for value in args]
        named = {name: codec.encode(value) for name, value in kwargs.items()}
        metadata = codec.encode(dict(live.metadata)) if live.metadata else b""
    except CodecError as error:
        raise unstorable(error, f"an argument of {job.body.name!r}", job.path) from error
    return Call(
        remote.target, job.body.name, codec.name, codec.limits, positional, named, dict(remote.factories), metadata,
        live.instance_id, live.run, live.workflow, live.backend_id, job.node, job.turns, job.path, job.known_as,
        job.number,
        job.deadline_us, live.room.limits.error_bytes,
        job.watch.traceparent() if job.watch is not None else "",
        options_here(),
        job.body.loops,
    )  # fmt: skip


def _landed(job: Job, ending: Ending) -> Outcome | Fatal:
    match ending:
        case Returned(value, tag):
            return Outcome(job, value, tag) if job.live.prepared.stored else _passed(job, value, tag)
        case Raised(record, kinds, steered):
            return _failed_there(job, record, steered or (_covers(job.body.retry, kinds), -1))
        case Exited(record, code):
            stand_ins = {"SystemExit": SystemExit(code), "KeyboardInterrupt": KeyboardInterrupt()}
            return Fatal(job, stand_ins.get(record["type"]) or recorded_error(record))
        case Unfit(message):
            return Fatal(job, UsageError(message))


def _passed(job: Job, value: bytes, tag: str) -> Outcome:
    """Make the object that a run in memory hands on."""
    declared = job.body.task.returns
    if may_say_again(declared):
        declared = turn_types(declared)[tag == "done"] if tag in ("again", "done") else Any
    try:
        return Outcome(job, job.live.prepared.codec.decode(value, declared), tag)
    except DecodeError as error:
        text = f"the result of {job.body.name!r} at {job.path} is not what it declares: {error}"
        return failed(job, DecodeError(text))


def _failed_there(job: Job, record: dict[str, Any], verdict: tuple[bool, int] | None) -> Outcome:
    outcome = Outcome(job, None, "", recorded_error(record), record)
    outcome.verdict = verdict
    return outcome


def _covers(retry: Retry | None, kinds: Sequence[str]) -> bool:
    """Ask a policy about an error that stayed in its process: classes are compared by module and name."""
    if retry is None:
        return False
    names = [{kinds_of(kind)[0] for kind in classes} for classes in (retry.on, retry.unless)]
    return not names[0].isdisjoint(kinds) and names[1].isdisjoint(kinds)


def _died(job: Job, code: int | None) -> Outcome:
    message = f"the worker process ended with exit code {code} while running {job.path}"
    record: dict[str, Any] = {"type": "ProcessDied", "message": message, "traceback": "", "causes": []}
    return _failed_there(job, record, None)


def _answer(job: Job, question: Question) -> Answer:
    codec = job.live.prepared.codec
    try:
        if question.what == "keep" and question.value is not None:
            job.keep_cursor(codec.decode(question.value))
        elif question.what == "cursor":
            cursor = job.cursor()
            return Answer(value=None if cursor is None else codec.encode(cursor))
    except Exception as error:  # noqa: BLE001  # in a thread the body would get it; here its text has to do
        return Answer(error=(type(error).__name__, str(error)))
    return Answer((job.stopped or "the instance is being cancelled") if job.cancelled() else "")


# --- orders and workers -----------------------------------------------------------------------------


class _Order:
    """A job on its way. Its lock decides whether the end or the stop came first."""

    def __init__(self, job: Job, context: Context, deliver: Deliver) -> None:
        self.job, self.context, self._deliver = job, context, deliver
        self.stopped = False
        self._over = False
        self._worker: _Worker | None = None
        self._lock = threading.RLock()

    def give_to(self, worker: _Worker) -> bool:
        """Note who runs it. Returns whether it is still wanted."""
        with self._lock:
            self._worker = worker
            return not self.stopped

    def let_go(self) -> None:
        """From now on a stop reaches no worker."""
        with self._lock:
            self._worker = None

    def finish(self, item: object) -> None:
        with self._lock:
            if not self.stopped:
                self._over = True
                self._deliver(item)

    def stop(self) -> None:
        with self._lock:
            if self._over or self.stopped:
                return
            self.stopped = True
            if self._worker is not None:
                self._worker.kill()


class _Worker:
    """One worker process at a time, and this side of its pipe. Only :meth:`kill` may be called from other threads."""

    def __init__(self, name: str, forking: threading.Lock) -> None:
        self.order: _Order | None = None
        self._name, self._forking = name, forking
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._killed = False
        self._lock = threading.Lock()

    def kill(self) -> None:
        """End the process at once. SIGKILL: no body can refuse it, and a politer signal would end it no more gently."""
        with self._lock:  # against reaping: a reaped pid may belong to somebody else
            self._killed = True
            if self._process is not None:
                self._process.kill()

    def run(self, order: _Order) -> None:
        """See one order through."""
        job = order.job
        if job.watch is not None and not job.watch.entered:
            with job.watch:
                return self.run(order)
        try:
            call = order.context.run(_call_of, job)
        except Exception as error:  # noqa: BLE001  # binding runs the user's constructors
            return order.finish(failed(job, error))
        connection = self._ready(job)
        if order.stopped:  # set before the kill that a stop sends, so one of the two is always seen
            return None
        began = time.perf_counter_ns()
        try:
            connection.send_bytes(packed(call))
            ending = self._converse(connection, job)
        except (EOFError, OSError):
            return order.finish(_died(job, self._reap()))
        finally:
            job.took_us = (time.perf_counter_ns() - began) // 1_000
        return order.finish(order.context.run(_landed, job, ending))

    def _converse(self, connection: Connection, job: Job) -> Ending:
        limit = job.live.prepared.codec.limits.value_bytes + 4 * job.live.room.limits.error_bytes + _MESSAGE_SLACK
        while True:
            message: ToParent = _read(connection.recv_bytes(limit))
            if isinstance(message, Question):
                connection.send_bytes(packed(_answer(job, message)))
            elif not isinstance(message, Ready):
                return message

    # --- the process ---

    def _ready(self, job: Job) -> Connection:
        """Return the pipe to a live process, starting one if need be. Raises UsageError if it does not start."""
        if self._process is not None and not self._alive(self._process):
            self._reap()
        if self._process is None:
            self._start()
            self._wait_ready(job)
        assert self._connection is not None
        return self._connection

    def _alive(self, process: SpawnProcess) -> bool:
        with self._forking, self._lock:
            return process.is_alive()

    def _start(self) -> None:
        import multiprocessing

        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        process = spawn.Process(target=serve, args=(theirs,), name=self._name)
        try:
            with self._forking:
                _block_signals()
                process.start()
        finally:
            theirs.close()
        with self._lock:
            self._process = process
            if self._killed:
                process.kill()

    def _wait_ready(self, job: Job) -> None:
        assert self._connection is not None
        try:
            _read(self._connection.recv_bytes())
        except (EOFError, OSError):
            raise UsageError(
                f"the worker process for task {job.body.name!r} ended with exit code {self._reap()} before it could "
                f"take it (its traceback is on stderr): {_GUARD}, and importing it must not fail"
            ) from None

    def _reap(self) -> int | None:
        """Wait for the process to end, and see to it that it does. Returns its exit code."""
        from multiprocessing.connection import wait

        process, connection = self._process, self._connection
        assert process is not None
        assert connection is not None
        connection.close()
        wait([process.sentinel], GRACE_S)
        with self._forking, self._lock:  # multiprocessing's own bookkeeping of children is not thread-safe
            process.kill()
            process.join()
            self._process = self._connection = None
        return process.exitcode

    def settle(self) -> None:
        """After an order: what was killed is really gone."""
        if self._killed:
            self.end()
            self._killed = False

    def end(self) -> None:
        """Let the process leave; an idle one does so in an orderly way."""
        if self._process is not None:
            self._reap()


def _block_signals() -> None:
    """Keep Ctrl-C and SIGTERM from what this thread spawns until the process there has its own handlers."""
    if hasattr(signal, "pthread_sigmask"):
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # its first start unblocks both
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))


class Processes:
    """Up to ``limit`` worker processes (default: one per CPU), started as they are needed and kept."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit or os.cpu_count() or 1
        self._orders: SimpleQueue[_Order | None] = SimpleQueue()
        self._lock, self._forking = threading.Lock(), threading.Lock()
        self._threads: list[threading.Thread] = []
        self._workers: list[_Worker] = []
        self._open = 0
        self._closed = False
        self._owner = os.getpid()

    def submit(self, job: Job, context: Context, deliver: Deliver) -> Flight:
        """Run ``job`` in a worker process and deliver its :class:`Outcome`. Stopping the flight kills the process.

        Raises:
            Closed: after :meth:`close`.
        """
        order = _Order(job, context, deliver)
        with self._lock:
            if self._closed:
                raise Closed("this runner is closed; make a new one")
            self._open += 1
            if self._open > len(self._workers) and len(self._workers) < self._limit:
                self._add_worker()
            self._orders.put(order)
        return Flight(job, order.stop)

    def close(self) -> None:
        """End idle processes and kill busy ones; what they ran is not delivered. Closing twice does nothing."""
        with self._lock:
            if self._closed or os.getpid() != self._owner:  # a fork of this process inherits its exit handlers
                return
            self._closed = True
            busy = [(worker, worker.order) for worker in self._workers if worker.order is not None]
            for _ in self._workers:
                self._orders.put(None)
        for worker, order in busy:
            order.stop()
            worker.kill()
        for thread in self._threads:
            thread.join(2 * GRACE_S)
        atexit.unregister(self.close)

    def _add_worker(self) -> None:
        if not self._workers:
            import_module("multiprocessing.util")  # its exit handler waits for children; ours has to come before it,
            atexit.register(self.close)  # and what is registered later comes first
        name = f"stepwell-process-{len(self._workers) + 1}"
        worker = _Worker(name, self._forking)
        thread = threading.Thread(target=self._work, args=(worker,), name=name, daemon=True)
        self._workers.append(worker)
        self._threads.append(thread)
        thread.start()

    def _work(self, worker: _Worker) -> None:
        while (order := self._orders.get()) is not None:
            if self._take(worker, order):
                try:
                    worker.run(order)
                except BaseException as error:  # noqa: BLE001  # it is raised again in the caller's thread
                    order.finish(Fatal(order.job, error))
            order.let_go()
            worker.settle()
            with self._lock:
                worker.order = None
                self._open -= 1
            del order  # an idle thread must not keep the last run's values alive
        worker.end()

    def _take(self, worker: _Worker, order: _Order) -> bool:
        with self._lock:
            if self._closed:
                return False
            worker.order = order
        return order.give_to(worker)
