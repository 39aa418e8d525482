"""A worker process: what it does, and the messages it exchanges with the process that started it.

The main thread runs one body after the other, so that a body finds what it expects of a main thread. A listening
thread reads the pipe; when the pipe ends, because the parent closed it or was killed, an idle process leaves in an
orderly way and a busy one at once, so no process is left over.

Messages are msgspec arrays, never pickles; values in them are envelopes of the run's own codec. A task asks its parent
(heartbeat, cursor, ``raise_if_cancelled``) by a question that waits for its answer.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from importlib import import_module
from queue import SimpleQueue
from types import FunctionType, MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeAlias, cast

import msgspec

from stepwell.codec import Codec, JsonCodec, MsgpackCodec
from stepwell.errors import CodecError, DecodeError, RecordedError, StepCancelled, UsageError
from stepwell.flow.compile import wanted_types
from stepwell.flow.task import AnyTask, Task, as_task
from stepwell.observe.options import Options
from stepwell.observe.process import joined
from stepwell.types import Again, Done, Limits

from .context import CURRENT, Cell
from .failure import error_record
from .invoke import steered, unstorable
from .promise import name_of

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

GRACE_S: Final = 1.0  # how long an idle process may take to leave: its dependencies may have something to close
CODECS: Final[Mapping[str, Callable[[Limits], Codec]]] = {"json": JsonCodec, "msgpack": MsgpackCodec}
_TAGS: Final[Mapping[type, str]] = {Again: "again", Done: "done"}
_MAIN, _MAIN_HERE = "__main__", "__mp_main__"  # what a script is called in the parent, and in a process it spawned


# --- messages ---------------------------------------------------------------------------------


class Call(msgspec.Struct, frozen=True, tag="call", array_like=True):
    """Parent to child: run a task.

    ``target`` and ``factories`` (by parameter) are ``module:qualname`` of the parent's own objects; ``trace`` is what
    the body's own spans belong to, and ``tracing`` how the parent was told to trace. ``loops``: as in :class:`.Body`.
    """

    target: str
    name: str
    codec: str
    limits: Limits
    args: list[bytes]
    kwargs: dict[str, bytes]
    factories: dict[str, str]
    metadata: bytes
    instance_id: str
    run: int
    workflow: str
    backend_id: str
    node: int
    turns: tuple[int, ...]
    path: str
    known_as: str
    number: int
    deadline_us: int
    error_bytes: int
    trace: str = ""
    tracing: Options | None = None
    loops: bool = False


class Answer(msgspec.Struct, frozen=True, tag="answer", array_like=True):
    """Parent to child: ``reason`` to stop, ``value`` of a cursor, ``error`` (type and text) of a refusal."""

    reason: str = ""
    value: bytes | None = None
    error: tuple[str, str] | None = None


class Ready(msgspec.Struct, frozen=True, tag="ready", array_like=True):
    """Child to parent, once: the main module is imported, calls may come."""


class Question(msgspec.Struct, frozen=True, tag="question", array_like=True):
    """Child to parent, from a running body; answered by an :class:`Answer`."""

    what: Literal["alive", "cursor", "keep"]
    value: bytes | None = None


class Returned(msgspec.Struct, frozen=True, tag="returned", array_like=True):
    """Child to parent: the body's result, and ``tag`` if it came in ``Again`` or ``Done``."""

    value: bytes
    tag: str


class Raised(msgspec.Struct, frozen=True, tag="raised", array_like=True):
    """Child to parent: the body's error, the names of its classes, and what the error itself says about a retry."""

    record: dict[str, Any]
    kinds: list[str]
    steered: tuple[bool, int] | None


class Exited(msgspec.Struct, frozen=True, tag="exited", array_like=True):
    """Child to parent: the body raised what is no attempt's failure, such as SystemExit with ``code``."""

    record: dict[str, Any]
    code: int | str | None


class Unfit(msgspec.Struct, frozen=True, tag="unfit", array_like=True):
    """Child to parent: the task cannot be found here; nothing was run."""

    message: str


Ending: TypeAlias = Returned | Raised | Exited | Unfit
_Metadata: TypeAlias = Mapping[str, object]
_Declared: TypeAlias = tuple[tuple[object, ...], dict[str, object]]
ToChild: TypeAlias = Call | Answer
ToParent: TypeAlias = Ready | Question | Returned | Raised | Exited | Unfit

_read: Final = msgspec.msgpack.Decoder[ToChild](ToChild).decode
packed: Final = msgspec.msgpack.Encoder().encode


# --- names ------------------------------------------------------------------------------------


def target_of(fn: object) -> str:
    """Return ``module:qualname`` of a function or class of this process."""
    return f"{getattr(fn, '__module__', '')}:{getattr(fn, '__qualname__', '')}"


def find(target: str) -> object:
    """Return what ``module:qualname`` names here. It was taken from a live object of the parent, never from storage."""
    module, _, qualname = target.partition(":")
    found: object = import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


def kinds_of(error: type[BaseException]) -> list[str]:
    """Name a class and its bases so that both processes agree, also on those of the script itself."""
    return [target_of(kind).replace(f"{_MAIN_HERE}:", f"{_MAIN}:", 1) for kind in error.__mro__]


def _record(error: BaseException, call: Call) -> dict[str, Any]:
    """Return what is stored of an error, with the names that the parent has for its types."""
    record: dict[str, Any] = error_record(error, call.error_bytes)
    for each in (record, *record["causes"]):
        each["type"] = each["type"].replace(f"{_MAIN_HERE}.", f"{_MAIN}.", 1)
    return record


# --- what a task's context asks ---------------------------------------------------------------


@dataclass(slots=True)
class _Facts:
    instance_id: str
    run: int
    workflow: str
    backend_id: str
    metadata: Mapping[str, object]


class _Attempt:
    """The running attempt as :class:`~stepwell.runtime.context.TaskContext` sees it from this side of the pipe."""

    def __init__(self, server: Server, call: Call, codec: Codec) -> None:
        self.node, self.turns, self.number, self.deadline_us = call.node, call.turns, call.number, call.deadline_us
        self.path, self.known_as, self.over = call.path, call.known_as, False
        metadata = cast(_Metadata, codec.decode(call.metadata) if call.metadata else {})
        self.facts = _Facts(call.instance_id, call.run, call.workflow, call.backend_id, MappingProxyType(metadata))
        self._server, self._codec, self._name = server, codec, call.name

    def reason(self) -> str:
        return self._server.ask(self, Question("alive")).reason

    def cancelled(self) -> bool:
        return bool(self.reason())

    def check_alive(self) -> None:
        if reason := self.reason():
            raise StepCancelled(f"{reason}: {self.path}", self.path)

    def cursor(self) -> object:
        value = self._server.ask(self, Question("cursor")).value
        return None if value is None else self._codec.decode(value)

    def transaction(self, kind: object) -> NoReturn:
        raise UsageError(f"{self.path} runs in a process of its own, where there is no transaction(); use a thread")

    def keep_cursor(self, cursor: object) -> None:
        try:
            kept = self._codec.encode(cursor)
        except CodecError as error:
            raise unstorable(error, f"the cursor of {self._name!r}", self.path) from error
        self._server.ask(self, Question("keep", kept))


# --- the process --------------------------------------------------------------------------------


def serve(connection: Connection) -> None:
    """Run tasks until the parent closes the pipe. The entry point of a worker process."""
    _leave_signals_to_parent()
    server = Server(connection)
    threading.Thread(target=server.listen, name="stepwell-pipe", daemon=True).start()
    server.run()


def _leave_signals_to_parent() -> None:
    """Ctrl-C and a service manager's SIGTERM reach all processes; what becomes of running bodies the parent says.

    SIGTERM is not set to SIG_IGN, which a body's own subprocesses would inherit. The parent blocked both signals while
    this process started, so that there was no moment in which one could end it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))


class Server:
    """The child's end of the pipe, with what it has found and made so far."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._answers: SimpleQueue[Answer] = SimpleQueue()
        self._asking = threading.Lock()
        self._busy = False
        self._tasks: dict[str, AnyTask] = {}
        self._codecs: dict[tuple[str, Limits], Codec] = {}
        self._made: dict[str, object] = {}

    def listen(self) -> None:
        """Sort what comes in, until the pipe ends."""
        with suppress(EOFError, OSError):
            while True:
                message: ToChild = _read(self._connection.recv_bytes())
                if isinstance(message, Answer):
                    self._answers.put(message)
                else:
                    self._busy = True
                    self._calls.put(message)
        self._leave()

    def _leave(self) -> None:
        if not self._busy:
            self._calls.put(None)
            threading.Event().wait(GRACE_S)
        os._exit(1)

    def run(self) -> None:
        """Take calls until there are no more."""
        self._send(Ready())
        while (call := self._calls.get()) is not None:
            ending = copy_context().run(self._perform, call)
            _flush()
            self._busy = False
            self._send(ending)

    def ask(self, attempt: _Attempt, question: Question) -> Answer:
        """Put a question to the parent and wait. A thread that outlives its attempt is told to stop."""
        with self._asking:
            if attempt.over:
                return Answer("the attempt has ended")
            self._send(question)
            answer = self._answers.get()
        if answer.error is not None:
            raise RecordedError(*answer.error)
        return answer

    def _send(self, message: ToParent) -> None:
        self._connection.send_bytes(packed(message))

    # --- one call ---

    def _perform(self, call: Call) -> Ending:
        try:
            task, codec = self._task(call), self._codec(call)
            attempt = _Attempt(self, call, codec)
            declared = wanted_types(task, len(call.args), call.kwargs)
        except Exception as error:  # noqa: BLE001  # importing runs the user's modules; whatever they raise is reported
            return Unfit(_unfit(call, error))
        cell = Cell(attempt)
        CURRENT.set(cell)
        try:
            with joined(call.trace, call.tracing):
                return self._run(task, call, codec, declared)
        except Exception as error:  # noqa: BLE001  # whatever the user's code raises is the attempt's outcome
            return Raised(_record(error, call), kinds_of(type(error)), steered(error))
        except BaseException as error:  # noqa: BLE001  # it is raised again in the parent
            return _exited(error, call)
        finally:
            cell.attempt = None
            with self._asking:  # no question may follow the ending
                attempt.over = True

    def _run(self, task: AnyTask, call: Call, codec: Codec, declared: _Declared) -> Ending:
        types, types_by_name = declared
        args = [_argument(call, codec, data, kind) for data, kind in zip(call.args, types, strict=True)]
        kwargs = {name: _argument(call, codec, data, types_by_name[name]) for name, data in call.kwargs.items()}
        injected = {name: self._dependency(factory) for name, factory in call.factories.items()}
        value: object = task.fn(*args, **kwargs, **injected)
        tag = _TAGS.get(type(value), "")
        try:
            output = codec.encode(cast(Any, value).value if tag else value)
            return Returned(output, tag or (name_of(type(value)) if call.loops else ""))
        except CodecError as error:
            raise unstorable(error, f"the result of {call.name!r}", call.path) from error

    def _task(self, call: Call) -> AnyTask:
        if (known := self._tasks.get(call.target)) is not None:
            return known
        found = find(call.target)
        if not isinstance(found, Task | FunctionType):
            raise UsageError(f"it is a {type(found).__name__} there, not a function")
        task = self._tasks[call.target] = as_task(cast("Callable[..., Any]", found), None, call.target)
        return task

    def _codec(self, call: Call) -> Codec:
        key = call.codec, call.limits
        if key not in self._codecs:
            self._codecs[key] = CODECS[call.codec](call.limits)
        return self._codecs[key]

    def _dependency(self, factory: str) -> object:
        if factory not in self._made:
            self._made[factory] = cast("Callable[[], object]", find(factory))()
        return self._made[factory]


def _argument(call: Call, codec: Codec, data: bytes, declared: object) -> object:
    try:
        return codec.decode(data, declared)
    except DecodeError as error:
        raise DecodeError(f"an argument of {call.name!r} at {call.path} does not fit: {error}") from error


def _unfit(call: Call, error: Exception) -> str:
    text = (
        f"the worker process cannot find task {call.name!r} as {call.target}: {type(error).__name__}: {error}. "
        f"A process task is a module-level function that a new process finds by importing its module"
    )
    if call.target.startswith(f"{_MAIN}:"):
        text += '; in a script it must be defined outside `if __name__ == "__main__":`'
    return text


def _exited(error: BaseException, call: Call) -> Exited:
    code = cast(object, error.code) if isinstance(error, SystemExit) else None
    plain = code if code is None or isinstance(code, int | str) else str(code)
    return Exited(_record(error, call), plain)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or None under pythonw
            stream.flush()
