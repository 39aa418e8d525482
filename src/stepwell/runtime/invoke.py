"""One attempt of a body: bind, decode, call, encode.

A :class:`Prepared` workflow holds, for each node with a body, a :class:`Body` whose ``call`` was composed once from the
plan's arguments, the codec's decoders and the user's function; an attempt only feeds it the stored values it reads.
Everything in here may run user code (a task, but also a constructor or a property), so it runs where the task runs and
not on the scheduler.

Values are handled in one of two ways: *stored* (bytes, each consumer decodes its own copy) or *passed* (the object
itself, only for a run that nothing outlives).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from copy import deepcopy
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import msgspec

from stepwell.codec import Codec
from stepwell.codec.tags import type_of
from stepwell.engine.deciding import decides_loop
from stepwell.errors import (
    CodecError,
    EncodeError,
    MissingDependency,
    NoRoute,
    Permanent,
    StepError,
    TaskTimeout,
    UsageError,
)
from stepwell.flow.declared import may_say_again, turn_types
from stepwell.flow.plan import Arg, Built, Constant, Key, Plan, Ref, Selected, Turns, refs
from stepwell.retry import Retry, RetryAfter
from stepwell.types import Again, Done

from .context import CURRENT, Cell
from .failure import error_record
from .promise import name_of, promise

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from stepwell.flow.workflow import AnyWorkflow
    from stepwell.observe.watching import Arrival

    from .live import Live
    from .processes import Remote
    from .transaction import Transaction

_clock_ns: Final = time.perf_counter_ns

Raws: TypeAlias = Sequence[Any]
Getter: TypeAlias = Callable[[Raws], Any]
Bind: TypeAlias = Callable[[Raws], tuple[list[Any], dict[str, Any]]]


class Undecodable(Exception):
    """A stored value does not fit what the code declares now; the instance is held, no attempt is used up."""


class NeedsHolder(BaseException):
    """A body that runs for another holder has asked for what only the holder can give."""


class Tagged:
    """A stored value that was returned inside ``Again`` or ``Done``."""

    __slots__ = ("raw", "tag")

    def __init__(self, tag: str, raw: Any) -> None:
        self.tag, self.raw = tag, raw


class Body:
    """What runs at one node.

    Attributes:
        call: takes the stored values of ``refs`` and runs the body; for async tasks it returns an awaitable.
        top_keys: where its values are found if none of them was made inside a loop; ``top_key`` if it is one.
        encode: how its result is stored; ``None`` where values are passed as they are.
        loops: whether a loop goes on by its result, which has to be Again or Done.
        promised: raises if a result is not what the task declares to return; it could not be read by its consumers.
        plain: a sync task that the caller's own thread may run; ``inline``: one that the scheduler may.
        remote: how a process runs it; set where ``run_in`` is ``"process"``, and then ``call`` is not used.
    """

    __slots__ = (
        "at_most_once", "call", "cases", "encode", "inline", "is_async", "kind", "loops", "name", "node", "plain",
        "promised", "refs", "remote", "retry", "run_in", "task", "timeout_us", "top_key", "top_keys",
    )  # fmt: skip

    def __init__(self, node: int, kind: str, name: str, refs: tuple[int, ...], call: Callable[[Raws], Any]) -> None:
        self.node, self.kind, self.name, self.refs, self.call = node, kind, name, refs, call
        self.top_keys: tuple[Key, ...] | None = None
        self.top_key: Key | None = None
        self.cases: Mapping[tuple[type, object], str] = {}
        self.encode: Callable[[object], bytes] | None = None
        self.promised: Callable[[str, Any, bytes], object] | None = None
        self.task: Any = None
        self.retry: Retry | None = None
        self.remote: Remote | None = None
        self.timeout_us = 0
        self.run_in = "inline"
        self.is_async = self.at_most_once = self.plain = self.loops = False
        self.inline = True


class Job(msgspec.Struct, eq=False):
    """One attempt on its way: what it reads, where it belongs, and whether it should stop."""

    live: Any  # a Live; msgspec must not look into it
    body: Any
    node: int
    turns: Turns
    number: int
    raws: Any
    keep: Any = None
    stop: Any = None  # how to end it early, where that is possible
    context: Any = None
    deadline_us: int = 0
    stopped: str = ""
    took_us: int = 0
    transacting: Any = None  # a Transaction, once the body has asked for one
    away: bool = False  # another session runs it
    watch: Any = None  # an AttemptWatch, if somebody watches

    @property
    def key(self) -> Key:
        return self.node, self.turns

    # --- what those who watch ask ---

    @property
    def task_name(self) -> str:
        return cast(str, self.body.name if self.body.task is None else self.body.task.name)

    def signals(self) -> Iterable[int]:
        from .observed import signals_read

        return signals_read(self)

    def let_go_by(self) -> Iterable[int]:
        from .observed import let_go_by

        return let_go_by(self)

    def arrival(self, address: int) -> Arrival | None:
        from .observed import arrival

        return arrival(self, address)

    # --- what a task context asks ---

    @property
    def facts(self) -> Live:
        return cast("Live", self.live)

    @property
    def path(self) -> str:
        return self.facts.plan.path(self.node, self.turns)

    @property
    def known_as(self) -> str:
        step = self.facts.state.steps.get(self.key)
        return (step.path if step is not None else "") or self.path

    def cancelled(self) -> bool:
        return bool(self.stopped) or self.live.stop_asked()

    def check_alive(self) -> None:
        from stepwell.errors import StepCancelled

        if self.cancelled():
            raise StepCancelled(f"{self.stopped or 'the instance is being cancelled'}: {self.path}", self.path)

    def cursor(self) -> object:
        return self.live.read_cursor(self.key)

    def transaction(self, kind: object) -> AbstractContextManager[object]:
        if self.facts.guest:
            raise NeedsHolder(self.path)
        if self.transacting is None:
            from .transaction import Transaction

            self.transacting = Transaction(self)
        return cast("Transaction", self.transacting).giving(kind)

    def keep_cursor(self, cursor: object) -> None:
        if self.keep is None:
            return
        if self.transacting is not None and self.transacting.open:
            raise UsageError(
                f"{self.path} keeps a cursor while its transaction is open; nothing else can be stored now"
            )
        try:
            self.keep(self, cursor)
        except CodecError as error:
            raise unstorable(error, f"the cursor of {self.body.name!r}", self.path) from error


class Outcome(msgspec.Struct, eq=False):
    """How an attempt ended. ``output`` is stored bytes or the object itself; ``error`` is set if it failed.

    ``verdict`` is given where the exception itself stayed in another process; ``stored`` says that the body's own
    transaction has written it, so that the journal tells what came of it.
    """

    job: Job
    output: Any
    tag: str = ""
    error: Any = None
    record: Any = None
    verdict: tuple[bool, int] | None = None
    stored: bool = False


def perform(job: Job, cell: Cell) -> Outcome:
    """Run a sync body here and now. Only ``Exception`` is an attempt's failure; anything else passes through."""
    if job.watch is not None and not job.watch.entered:
        with job.watch:
            return perform(job, cell)
    cell.attempt, body = job, job.body
    began = 0 if body.encode is None else _clock_ns()  # only a journal tells how long it took
    try:
        value = body.call(job.raws)
    except Exception as error:  # noqa: BLE001  # whatever the user's code raises is the attempt's outcome
        if job.transacting is not None:
            job.transacting.undo(error)
        return failed(job, error)
    except BaseException:
        if job.transacting is not None:
            job.transacting.roll_back()
        raise
    finally:
        cell.attempt = None
        if began:
            job.took_us = (_clock_ns() - began) // 1_000
    return keep(job, value) if job.transacting is None else job.transacting.settle(value)


async def perform_async(job: Job) -> Outcome:
    """Run an async body in the current asyncio task."""
    if job.watch is not None and not job.watch.entered:
        with job.watch:
            return await perform_async(job)
    cell = Cell(job)
    CURRENT.set(cell)
    began = time.perf_counter_ns()
    try:
        value = await cast(Awaitable[Any], job.body.call(job.raws))
    except Exception as error:  # noqa: BLE001  # whatever the user's code raises is the attempt's outcome
        return failed(job, error)
    finally:
        cell.attempt = None
        job.took_us = (time.perf_counter_ns() - began) // 1_000
    return keep(job, value)


def keep(job: Job, value: Any) -> Outcome:
    """Turn what a body returned into an outcome: a tag where the engine needs one, and the value as it is stored."""
    body, tag, kind = job.body, "", type_of(value)
    if body.kind == "route":
        return _chosen(job, value)
    if kind is Again or kind is Done:
        value, tag = value.value, "again" if kind is Again else "done"
    elif body.loops:
        tag = name_of(kind)
    if body.encode is None:
        return Outcome(job, value, tag)
    try:
        output = body.encode(value)
        if body.promised is not None:
            body.promised(tag, value, output)
        return Outcome(job, output, tag)
    except CodecError as error:
        return failed(job, unstorable(error, f"the result of {body.name!r}", job.path))


def unstorable(error: CodecError, what: str, path: str) -> EncodeError:
    """Return the error of a step whose value the codec has refused."""
    described = type(error)(f"{what} at {path} cannot be stored: {error}", "")
    described.path = error.path
    described.__cause__ = error
    return cast(EncodeError, described)


def _chosen(job: Job, key: object) -> Outcome:
    case = job.body.cases.get((type(key), key)) if isinstance(key, Hashable) else None
    case = case or job.body.cases.get((type(None), "else"))
    if case is None:
        known = ", ".join(sorted(job.body.cases.values())) or "none"
        return failed(
            job,
            NoRoute(f"no case for {key!r:.80} at {job.path}, which has {known}; add the case or a default", job.path),
        )
    return Outcome(job, None, case)


def failed(job: Job, error: BaseException) -> Outcome:
    """Return the outcome of a failed attempt, with the record that is stored of it."""
    return Outcome(job, None, "", error, error_record(error, job.live.room.limits.error_bytes))


def verdict(body: Body, error: BaseException) -> tuple[bool, int]:
    """Say whether an error may be tried again, and after how many microseconds if the task named a wait (else -1)."""
    return steered(error) or (body.retry is not None and body.retry.covers(error), -1)


def steered(error: BaseException) -> tuple[bool, int] | None:
    """Return the verdict that lies in the error itself; ``None`` leaves it to the policy."""
    if isinstance(error, RetryAfter):
        return True, int(error.seconds * 1e6)
    if isinstance(error, (Permanent, CodecError)) or (
        isinstance(error, StepError) and not isinstance(error, TaskTimeout)
    ):
        return False, -1
    return None


# --- preparing a workflow ------------------------------------------------------------------------


class Prepared:
    """A workflow ready to run in one runner: its dependencies are found; bodies are composed as they are first needed.

    With ``deps=None`` it can be started and described, but has no bodies.

    Raises:
        MissingDependency: the runner was given no value for an ``inject()``.
    """

    def __init__(self, workflow: AnyWorkflow, codec: Codec, deps: Mapping[object, object] | None, stored: bool) -> None:
        self.workflow, self.plan, self.codec, self.stored = workflow, workflow.plan, codec, stored
        self.definition = 0
        self.input_promised = promise(codec, workflow.input_type) if workflow.has_input else None
        self.output_decoder = codec.decoder(workflow.output_type)
        self._composer = _Composer(workflow, codec, stored, deps) if deps is not None else None
        self.bodies: list[Body | None] = [None] * len(self.plan.nodes)
        self.signal_types = workflow.bodies.payloads

    def body(self, node: int) -> Body:
        """Compose what runs at a node, at its first use: a run that goes on at its end needs few of them."""
        assert self._composer is not None, "what has no dependencies is never run"
        body = self.bodies[node] = self._composer.body(node)
        return body


class _Composer:
    def __init__(self, workflow: AnyWorkflow, codec: Codec, stored: bool, deps: Mapping[object, object]) -> None:
        self.plan: Plan = workflow.plan
        self.bodies, self.codec, self.stored = workflow.bodies, codec, stored
        self.injected: dict[int, dict[str, object]] = {}
        for task in {id(task): task for task in self.bodies.tasks.values()}.values():
            found = {k: dependency(deps, task.name, k, t) for k, t in task.injected.items()}
            if task.options.run_in == "process":
                from .processes import remote_of

                remote_of(task, binding([], {}), found, codec)  # refuses what a process could not find
            self.injected[id(task)] = found

    def body(self, node: int) -> Body:
        row = self.plan.nodes[node]
        positions = {ref: at for at, ref in enumerate(dict.fromkeys(r for a in _all_args(row) for r in refs(a)))}
        wanted, wanted_by_name = self.bodies.wanted[node]
        getters = [self.getter(a, w, positions) for a, w in zip(row.args, wanted, strict=True)]
        named = {k: self.getter(a, wanted_by_name[k], positions) for k, a in row.kwargs}
        if row.kind == "task":
            body = self._task_body(node, tuple(positions), getters, named)
        else:
            body = Body(node, row.kind, row.name, tuple(positions), getters[0])
            body.cases = self._cases(node)
        body.encode = self.codec.encode if self.stored else None
        if not any(self.plan.depth[ref] for ref in positions):
            body.top_keys = tuple((ref, ()) for ref in positions)
            body.top_key = body.top_keys[0] if len(body.top_keys) == 1 else None
        return body

    def _cases(self, node: int) -> dict[tuple[type, object], str]:
        if self.plan.kind[node] != "route":
            return {}
        cases = dict(self.bodies.cases[node])
        if any(self.plan.nodes[c].name == "else" for c in self.plan.nodes[node].children):
            cases[(type(None), "else")] = "else"
        return cases

    def _task_body(self, node: int, reads: tuple[int, ...], getters: list[Getter], named: dict[str, Getter]) -> Body:
        row, task = self.plan.nodes[node], self.bodies.tasks[node]
        injected = self.injected[id(task)]
        body = Body(node, "task", row.name, reads, compose(task.fn, getters, named, injected))
        body.task, body.is_async, body.retry = task, task.is_async, task.options.retry
        body.timeout_us, body.run_in = task.options.timeout_us, task.options.run_in
        body.promised = promise(self.codec, task.returns) if self.stored else None
        body.at_most_once = task.options.delivery == "at_most_once"
        body.loops = decides_loop(self.plan, node)
        if body.run_in == "process":
            from .processes import remote_of

            body.remote = remote_of(task, binding(getters, named), injected, self.codec)
        body.inline = body.run_in == "inline" and not task.is_async
        body.plain = body.run_in == "thread" and not task.is_async and not body.timeout_us
        return body

    # --- arguments ---

    def getter(self, arg: Arg, wanted: object, positions: Mapping[int, int]) -> Getter:
        match arg:
            case Ref(node):
                return self._reader(node, wanted, positions[node])
            case Constant(index):
                return self._constant(index)
            case Selected(base, steps):
                return _selector(self.getter(base, Any, positions), steps, self._origin(base))
            case Built(kind, items, keys):
                parts = [self.getter(item, Any, positions) for item in items]
                return _display(kind, parts, [self.bodies.constants[k.index] for k in keys])

    def _origin(self, arg: Arg) -> str:
        """Say where a value comes from, to whoever has to mend it."""
        if not isinstance(arg, Ref):
            return "its value"
        node = self.plan.nodes[arg.node]
        return "the workflow's input" if node.kind == "input" else f"what {node.name!r} returns"

    def _constant(self, index: int) -> Getter:
        value = self.bodies.constants[index]
        if isinstance(value, (str, int, float, bytes, bool, type(None))):
            return lambda raws: value
        return lambda raws: deepcopy(value)  # each consumer has its own, as it has of every other value

    def _reader(self, node: int, wanted: object, at: int) -> Getter:
        produced = self.bodies.types.get(node, Any)
        declared = produced if wanted is Any or wanted is object else wanted
        if may_say_again(produced):  # a route, branch or child passes on what its last task said
            read = self._decoder(declared, node) if self.stored else _as_it_is
            return self._tagged_reader(read, produced, node, at)
        if not self.stored:
            return itemgetter(at)
        return self._stored_reader(declared, node, at)

    def _stored_reader(self, declared: object, node: int, at: int) -> Getter:
        decode, name = self.codec.decoder(declared), self.plan.nodes[node].name

        def get(raws: Raws) -> Any:
            raw = raws[at]
            try:
                return None if raw is None else decode(raw)
            except CodecError as error:
                raise _undecodable(name, error) from error

        return get

    def _tagged_reader(self, read: Callable[[Any], Any], produced: object, node: int, at: int) -> Getter:
        again, done = (self._decoder(t, node) if self.stored else _as_it_is for t in turn_types(produced))

        def get(raws: Raws) -> Any:
            raw = raws[at]
            if type(raw) is Tagged:
                return Again(again(raw.raw)) if raw.tag == "again" else Done(done(raw.raw))
            return None if raw is None else read(raw)

        return get

    def _decoder(self, declared: object, node: int) -> Callable[[bytes], Any]:
        decode, name = self.codec.decoder(declared), self.plan.nodes[node].name

        def read(raw: bytes) -> Any:
            try:
                return decode(raw)
            except CodecError as error:
                raise _undecodable(name, error) from error

        return read


def _undecodable(name: str, error: CodecError) -> Undecodable:
    return Undecodable(f"the stored value of {name!r} cannot be read: {error}")


def _as_it_is(raw: Any) -> Any:
    return raw


def _all_args(row: Any) -> list[Arg]:
    return [*row.args, *(arg for _, arg in row.kwargs)]


def dependency(deps: Mapping[object, object], task: str, parameter: str, declared: object) -> object:
    """Return the runner's value for an injected parameter."""
    try:
        return deps[declared]
    except (KeyError, TypeError):
        raise MissingDependency(task, parameter, getattr(declared, "__name__", str(declared))) from None


def compose(
    fn: Callable[..., Any], getters: Sequence[Getter], named: Mapping[str, Getter], injected: Mapping[str, object]
) -> Callable[[Raws], Any]:
    """Return one function that binds arguments from stored values and calls ``fn``."""
    if named or injected:
        return lambda raws: fn(*[g(raws) for g in getters], **{k: g(raws) for k, g in named.items()}, **injected)
    if not getters:
        return lambda raws: fn()
    if len(getters) == 1:
        get = getters[0]
        return lambda raws: fn(get(raws))
    return lambda raws: fn(*[g(raws) for g in getters])


def binding(getters: Sequence[Getter], named: Mapping[str, Getter]) -> Bind:
    """Return a function that binds arguments from stored values, for a call made elsewhere."""
    return lambda raws: ([g(raws) for g in getters], {k: g(raws) for k, g in named.items()})


def _selector(base: Getter, steps: Sequence[tuple[str, Any]], origin: str) -> Getter:
    def get(raws: Raws) -> Any:
        value = base(raws)
        for kind, key in steps:
            try:
                value = getattr(value, key) if kind == "attr" else value[key]
            except (AttributeError, LookupError, TypeError) as error:
                shown = f".{key}" if kind == "attr" else f"[{key!r}]"
                what = f"an argument selects {shown} from a {type(value).__name__}, which has none"
                raise StepError(f"{what}; mend {origin}, or the workflow, which takes {shown} of it") from error
        return value

    return get


_DISPLAYS: Final[dict[str, Callable[[list[Any]], Any]]] = {"list": list, "tuple": tuple}


def _display(kind: str, parts: Sequence[Getter], keys: Sequence[object]) -> Getter:
    if kind == "dict":
        return lambda raws: {key: get(raws) for key, get in zip(keys, parts, strict=True)}
    make = _DISPLAYS[kind]
    return lambda raws: make([get(raws) for get in parts])
