"""``@task``: a function, the options it runs under, and what it declares about its values.

A :class:`Task` stays callable as the bare function; called while a workflow is traced it records a node instead. What
a task declares is read from its signature once. Annotations are resolved at decoration where all names exist by then,
with the names around the decorator in reach, and otherwise at first need, so that a class may be defined after the task
that mentions it. An annotation that never resolves is a :class:`GraphError` of the workflow that uses the task, not a
silent ``Any``: values are decoded against these types.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, partial, update_wrapper
from types import CellType, FunctionType
from typing import (
    Any,
    Final,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
    cast,
    get_type_hints,
    overload,
)

from stepwell.errors import GraphError, OptionError, UsageError
from stepwell.retry import Retry, check_attempts
from stepwell.timing import Duration, duration_us
from stepwell.types import check_name

from .spelling import meant
from .tracer import active_tracer, call_site, user_frame

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
R_co = TypeVar("R_co", covariant=True)

Delivery: TypeAlias = Literal["at_least_once", "at_most_once"]
RunIn: TypeAlias = Literal["thread", "inline", "process"]

TAGS_MAX: Final = 20
TEXT_MAX: Final = 1_000
_DELIVERIES: Final = ("at_least_once", "at_most_once")
_PLACES: Final = ("thread", "inline", "process")

_ONE_ATTEMPT: Final = Retry(attempts=1)


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """How a task runs. ``timeout_us`` 0 means none; a task without ``retry`` or ``attempts`` has one attempt."""

    retry: Retry = _ONE_ATTEMPT
    timeout_us: int = 0
    tags: tuple[str, ...] = ()
    priority: int = 3
    version: str = ""
    description: str = ""
    delivery: Delivery = "at_least_once"
    run_in: RunIn = "thread"


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter that the workflow fills; ``annotation`` is ``Any`` where none is written."""

    name: str
    annotation: object
    required: bool
    kind: IntEnum


class _Inject:
    """The default of a parameter that the runner fills from its ``deps``."""

    def __repr__(self) -> str:
        return "inject()"


_INJECT: Final = _Inject()


def inject() -> Any:
    """Mark a parameter as a dependency: the runner passes ``deps[annotation]``.

    Typed ``Any``, so that calls which leave the parameter out type-check. A direct call in a unit test passes it by
    hand, else it raises UsageError. A runner without the value raises MissingDependency before anything runs. The value
    is never stored; for ``run_in="process"`` ``deps`` holds an importable function that makes it there.

    Example:
        >>> @task
        ... def reserve(order: str, *, stock: dict[str, int] = inject()) -> int:
        ...     return stock[order]
        >>> reserve("pen", stock={"pen": 3})
        3
    """
    return _INJECT


class Task(Generic[P, R_co]):
    """A function that can stand in a workflow; made by :func:`task`.

    Calling it runs the bare function, except while a workflow is traced. Its signature, docstring and ``__wrapped__``
    are the function's.

    Attributes:
        fn: the bare function.
        name: the task's name, by which its code is known.
        node_name: the name its nodes get; differs from ``name`` after :meth:`named`.
        was: the node's former name, after ``named(..., was=)``.
        is_async: whether calling ``fn`` gives an awaitable.
        options: how it runs.
        injected_names: the parameters whose default is :func:`inject`.
        signature: what the workflow may pass: the function's signature without injected parameters.
        where: ``"file:line"`` of the function.

    Example:
        >>> @task
        ... def double(n: int) -> int:
        ...     return 2 * n
        >>> double(4), double.name, double.is_async
        (8, 'double', False)
    """

    __name__: str
    __wrapped__: Callable[P, R_co]

    def __init__(self, fn: Callable[P, R_co], name: str, options: TaskOptions) -> None:
        update_wrapper(self, fn, updated=())
        self.fn = fn
        self.name = self.node_name = name
        self.was = ""
        self.is_async = _is_async(fn)
        self.options = options
        self.where = _where(fn)
        parameters = _signature(fn, name).parameters
        self.injected_names = tuple(p.name for p in parameters.values() if p.default is _INJECT)
        self.signature = _fillable(parameters, name)
        frame = user_frame()
        hints = resolved_hints(fn, frame.f_locals if frame else {})
        if hints is not None:
            self._hints = hints

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        tracer = active_tracer()
        if tracer is not None:
            return cast(R_co, tracer.call(self, args, kwargs))
        if self.injected_names:
            self._check_passed_by_hand(args, kwargs)
        return self.fn(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<task {self.name!r} at {self.where}>"

    def named(self, name: str, *, was: str = "") -> Task[P, R_co]:
        """Return this task for use under another node name; ``was`` is the name this node had in earlier versions.

        Example:
            >>> @task
            ... def charge(amount: int) -> int:
            ...     return amount
            >>> charge.named("charge-eu").node_name
            'charge-eu'
        """
        view: Task[P, R_co] = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view.node_name = check_name(name, "a node's name")
        view.was = check_name(was, "was=") if was else ""
        return view

    @cached_property
    def params(self) -> Mapping[str, Param]:
        """The parameters a workflow fills, by name. Raises GraphError where an annotation cannot be resolved."""
        return {
            p.name: Param(
                p.name, self._hints.get(p.name, Any), p.default is p.empty and p.kind not in _VARIADIC, p.kind
            )
            for p in self.signature.parameters.values()
        }

    @cached_property
    def injected(self) -> Mapping[str, object]:
        """The declared types of the injected parameters, by parameter name."""
        return {name: self._hints[name] for name in self.injected_names}

    @property
    def returns(self) -> object:
        """The declared type of the result, for async tasks the awaited one; ``Any`` where none is written."""
        return self._hints.get("return", Any)

    @cached_property
    def _hints(self) -> Mapping[str, object]:
        hints = resolved_hints(self.fn, {})
        if hints is None:
            raise GraphError(unresolved(self.fn, f"task {self.name!r}"), self.where)
        return hints

    def bind(
        self, args: tuple[S, ...], kwargs: Mapping[str, S], where: str, mend: str = ""
    ) -> tuple[tuple[S, ...], dict[str, S]]:
        """Return arguments in the one form that nodes keep: positional as far as they go, the rest by name.

        ``mend`` ends the message where they do not fit.

        Raises:
            GraphError: one is missing, unknown, given twice, or injected.
        """
        if given := [n for n in self.injected_names if n in kwargs]:
            raise GraphError(f"task {self.name!r}: {given[0]}= is injected by the runner; leave it out", where)
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            known = self.signature.parameters
            near = next((f"; there is no {n!r}{meant(n, known)}" for n in kwargs if n not in known), "")
            shape = ", ".join(map(_shape, known.values()))
            raise GraphError(f"task {self.name!r} takes ({shape}): {error}{near}{mend}", where) from None
        return bound.args, bound.kwargs

    def _check_passed_by_hand(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        bound = inspect.signature(self.fn).bind_partial(*args, **kwargs)
        if missing := [n for n in self.injected_names if n not in bound.arguments]:
            raise UsageError(
                f"task {self.name!r} was called directly without {missing[0]}=; a runner injects it, "
                f"a direct call passes it by hand: {missing[0]}=…"
            )


AnyTask: TypeAlias = Task[..., Any]


class TaskDecorator(Protocol):
    """What ``@task(...)`` returns."""

    def __call__(self, fn: Callable[P, R], /) -> Task[P, R]: ...


@overload
def task(fn: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(
    name: str | None = None,
    /,
    *,
    attempts: int | None = None,
    retry: Retry | None = None,
    timeout: Duration | None = None,
    tags: Sequence[str] = (),
    priority: int = 3,
    version: str = "",
    description: str = "",
    delivery: Delivery = "at_least_once",
    run_in: RunIn | None = None,
) -> TaskDecorator: ...
def task(fn: Callable[..., Any] | str | None = None, /, **options: Any) -> Any:
    """Make a function a task: ``@task``, ``@task(...)`` or ``@task("name", ...)``.

    Args:
        name: the task's name; default the function's. Lambdas, partials and callable objects need one.
        attempts: tries in all, at least 1; short for ``retry=Retry(attempts=...)``.
        retry: the retry policy; default one attempt.
        timeout: the longest an attempt may take: seconds, ``timedelta``, or ``"100ms" "30s" "5m" "2h" "1d"``.
        tags: up to 20 of 1 to 64 characters: what a worker must be able to do to run it (``PooledWorker(tags=)``). A
            runner takes every task.
        priority: 1 (highest) to 5, default 3: what a worker takes up first of what is queued; 10 s of waiting outweigh
            one step of it. A runner starts tasks in the order they are ready.
        version: part of the node's identity; change it when old results must not be mixed with new ones.
        description: for people.
        delivery: ``"at_most_once"`` never starts a step twice; if it is cut off, the run is held (``InstanceHeld``).
        run_in: where a sync task runs: ``"thread"`` (default), ``"inline"`` on the scheduler's thread, ``"process"``.

    Raises:
        OptionError: an option is out of range or does not go with another; the message names task and option.

    Example:
        >>> @task("charge-card", attempts=3, timeout="30s")
        ... def charge(amount: int) -> str:
        ...     return f"charged {amount}"
        >>> charge(5), charge.name
        ('charged 5', 'charge-card')
    """
    if fn is None or isinstance(fn, str):
        return partial(_make, name=fn, given=options)
    return _make(fn, None, options)


def as_task(fn: Callable[..., Any], name: str | None, where: str) -> AnyTask:
    """Return ``fn`` if it is a task, else make it one with default options, named ``name`` or as the function."""
    if isinstance(fn, Task):
        return cast(AnyTask, fn)
    try:
        return _make(fn, name, {})
    except OptionError as error:
        raise GraphError(str(error), where) from None


def _make(fn: Callable[..., Any], name: str | None, given: Mapping[str, Any]) -> AnyTask:
    if isinstance(fn, staticmethod):
        fn = fn.__func__
    _check_callable(fn)
    chosen = own_name(fn, name, "a task's name")
    made: AnyTask = Task(fn, chosen, _options(chosen, given))
    made.__name__ = getattr(fn, "__name__", chosen)
    _check_place(made, given.get("run_in"))
    return made


# --- what may be a task --------------------------------------------------------------


def _check_callable(fn: object) -> None:
    given = fn  # with the type that no check has narrowed
    if isinstance(fn, Task):
        raise OptionError(
            f"{fn!r} is a task already; leave out the second task(), or rename it by .named('other-name')"
        )
    if not callable(fn) or isinstance(fn, type | classmethod):
        raise OptionError(f"a task is made from a function, not from {_shown(given)}; call it in a function")
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise OptionError(
            f"{getattr(fn, '__qualname__', fn)} at {_where(fn)} is a generator; a task returns one value, so collect "
            f"them into a list"
        )


def own_name(fn: object, name: str | None, what: str) -> str:
    """Return ``name`` if given, else the function's own. Raises OptionError where it has none."""
    own: object = getattr(fn, "__name__", None)
    if name is None and (own is None or own == "<lambda>"):
        if hasattr(fn, "plan"):
            raise OptionError(f"{fn!r:.200} is no task; give it to a runner, or call it in another workflow")
        raise OptionError(f"{kind_of(fn)} has no name of its own; give it one: @task('name'), or then(…, name='name')")
    return check_name(name if name is not None else own, what)


def _shown(thing: object) -> str:
    return kind_of(thing) if isinstance(thing, type) else f"{thing!r:.80}"


def kind_of(thing: object) -> str:
    """Say what something is that stands where a function should, without its value."""
    if isinstance(thing, type):
        return f"the class {thing.__qualname__}"
    if inspect.isgeneratorfunction(thing) or inspect.isasyncgenfunction(thing):
        return f"the generator {thing.__qualname__}"
    return f"the lambda at {_where(thing)}" if isinstance(thing, FunctionType) else f"a {type(thing).__name__}"


def _signature(fn: Callable[..., Any], name: str) -> inspect.Signature:
    try:
        signature = inspect.signature(fn)
    except ValueError:
        raise OptionError(f"task {name!r}: {fn!r} does not tell its parameters; wrap it in a function") from None
    first = next(iter(signature.parameters), "")
    if first in ("self", "cls") and _in_class_body(fn):
        raise OptionError(
            f"task {name!r}: {fn.__qualname__} is a method, and no instance can be stored with a workflow; "
            f"use a function or a staticmethod, and inject() for what the instance held"
        )
    return signature


def _shape(p: inspect.Parameter) -> str:
    before, after = _MARKS.get(p.kind, ("", ""))
    return f"{before}{p.name}{after}"


_MARKS: Final[Mapping[IntEnum, tuple[str, str]]] = {
    inspect.Parameter.VAR_POSITIONAL: ("*", ""),
    inspect.Parameter.VAR_KEYWORD: ("**", ""),
    inspect.Parameter.KEYWORD_ONLY: ("", "="),
}


def _in_class_body(fn: object) -> bool:
    qualname = getattr(fn, "__qualname__", "")
    return isinstance(fn, FunctionType) and "." in qualname and not qualname.rpartition(".")[0].endswith("<locals>")


def _is_async(fn: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004 - the attribute itself is wanted, not whether it can be called


def _where(fn: object) -> str:
    while isinstance(fn, partial):
        fn = fn.func
    code = getattr(inspect.unwrap(fn) if callable(fn) else fn, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else call_site()


_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _fillable(parameters: Mapping[str, inspect.Parameter], name: str) -> inspect.Signature:
    """Return the signature without injected parameters; what stood behind one can be passed by keyword only."""
    kept: list[inspect.Parameter] = []
    behind = False
    for p in parameters.values():
        if p.default is _INJECT:
            _check_injected(p, name)
            behind = behind or p.kind is p.POSITIONAL_OR_KEYWORD
        elif behind and p.kind is p.POSITIONAL_OR_KEYWORD:
            kept.append(p.replace(kind=p.KEYWORD_ONLY))
        elif not (behind and p.kind is p.VAR_POSITIONAL):
            kept.append(p)
    return inspect.Signature(kept)


def _check_injected(p: inspect.Parameter, name: str) -> None:
    if p.annotation is p.empty:
        raise OptionError(f"task {name!r}: {p.name}=inject() needs an annotation; the runner looks it up by its type")
    if p.kind is p.POSITIONAL_ONLY:
        raise OptionError(f"task {name!r}: {p.name}=inject() is positional-only; the runner passes it by name")


# --- annotations -----------------------------------------------------------------------


def resolved_hints(fn: Callable[..., Any], names: Mapping[str, object]) -> Mapping[str, object] | None:
    """Return the annotations of ``fn`` as types, or ``None`` where a name does not exist (yet)."""
    target = _annotated(fn)
    try:
        return get_type_hints(target, None, {**names, **_closure(target)}, include_extras=True)
    except (NameError, AttributeError):
        return None
    except TypeError:
        return {}  # a builtin or extension function has no annotations


def _annotated(fn: Any) -> Any:
    while isinstance(fn, partial):
        fn = fn.func
    return fn if hasattr(fn, "__annotations__") and not isinstance(fn, type) else getattr(fn, "__call__", fn)  # noqa: B004 - the attribute itself is wanted, not whether it can be called


def _closure(fn: object) -> Mapping[str, object]:
    code, cells = getattr(fn, "__code__", None), getattr(fn, "__closure__", None)
    return dict(_filled(zip(code.co_freevars, cells, strict=True))) if code and cells else {}


def _filled(cells: Iterable[tuple[str, CellType]]) -> Iterator[tuple[str, object]]:
    for name, cell in cells:
        with suppress(ValueError):  # a name that is bound only after the decorator
            yield name, cell.cell_contents


def unresolved(fn: Callable[..., Any], owner: str) -> str:
    """Say why annotations cannot be resolved and what to do."""
    try:
        get_type_hints(_annotated(fn))
    except (NameError, AttributeError) as error:
        reason = str(error)
    else:
        reason = "a name is missing"
    return (
        f"{owner}: its annotations cannot be resolved ({reason}); values are decoded against them, so import "
        f"the type at run time, outside `if TYPE_CHECKING:`, or define it at module level"
    )


# --- options ---------------------------------------------------------------------------


def _options(name: str, given: Mapping[str, Any]) -> TaskOptions:
    known = _checked_options.__kwdefaults__ or {}
    if unknown := [option for option in given if option not in known]:
        near = meant(unknown[0], known, "{}=")
        raise OptionError(
            f"task {name!r}: {unknown[0]!r} is not an option of @task{near}; the options are {', '.join(known)}"
        )
    try:
        return _checked_options(**given)
    except OptionError as error:
        raise OptionError(f"task {name!r}: {error}") from None


def _checked_options(
    *,
    attempts: int | None = None,
    retry: Retry | None = None,
    timeout: Duration | None = None,
    tags: Sequence[str] = (),
    priority: int = 3,
    version: str = "",
    description: str = "",
    delivery: Delivery = "at_least_once",
    run_in: RunIn | None = None,
) -> TaskOptions:
    _choice(delivery, _DELIVERIES, "delivery")
    _choice(run_in or "thread", _PLACES, "run_in")
    if delivery == "at_most_once" and (attempts is not None or retry is not None):
        raise OptionError("delivery='at_most_once' allows one start only; leave out attempts= and retry=")
    if run_in == "inline" and timeout is not None:
        raise OptionError("run_in='inline' cannot be stopped, so timeout= is refused; use run_in='thread'")
    return TaskOptions(
        retry=_retry(attempts, retry),
        timeout_us=0 if timeout is None else duration_us(timeout, "timeout", least_us=1),
        tags=_tags(tags),
        priority=_priority(priority),
        version=_text(version, "version"),
        description=_text(description, "description"),
        delivery=delivery,
        run_in=run_in or "thread",
    )


def _choice(value: object, choices: tuple[str, ...], option: str) -> None:
    if value not in choices:
        raise OptionError(f"{option} must be one of {', '.join(map(repr, choices))}, not {value!r:.80}")


def _retry(attempts: int | None, retry: Retry | None) -> Retry:
    if attempts is not None and retry is not None:
        raise OptionError("attempts= and retry= were both given; write retry=Retry(attempts=...)")
    if retry is None:
        return Retry(attempts=check_attempts(1 if attempts is None else attempts))
    if not isinstance(retry, Retry):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise OptionError(
            f"retry must be a Retry, not {retry!r:.80}; write retry=Retry(attempts=…), or attempts= for tries in all"
        )
    return retry


def _tags(tags: object) -> tuple[str, ...]:
    if isinstance(tags, str) or not isinstance(tags, Sequence):
        raise OptionError(f"tags must be a list or tuple of str, as tags=['eu'], not {tags!r:.80}")
    given = tuple(cast(Sequence[object], tags))
    if len(given) > TAGS_MAX:
        raise OptionError(f"tags may hold {TAGS_MAX} labels, not {len(given)}")
    for tag in given:
        if not isinstance(tag, str) or not 1 <= len(tag) <= 64 or not tag.isprintable():
            raise OptionError(f"tags must each have 1 to 64 printable characters, not {tag!r:.80}")
    if len(set(given)) < len(given):
        raise OptionError("tags must differ from each other; one is there twice")
    return cast(tuple[str, ...], given)


def _priority(priority: object) -> int:
    if not isinstance(priority, int) or isinstance(priority, bool) or not 1 <= priority <= 5:
        raise OptionError(f"priority must be 1 (highest) to 5, not {priority!r:.80}")
    return priority


def _text(value: object, option: str) -> str:
    if not isinstance(value, str) or len(value) > TEXT_MAX:
        raise OptionError(f"{option} must be a str of at most {TEXT_MAX} characters, not {value!r:.80}")
    return value


def _check_place(made: AnyTask, run_in: RunIn | None) -> None:
    if made.is_async and run_in is not None:
        raise OptionError(
            f"task {made.name!r}: run_in= is for sync tasks; an async one runs on the event loop, so leave it out, or "
            f"make the task a plain def"
        )
    if run_in == "process" and not _importable(made.fn):
        raise OptionError(
            f"task {made.name!r}: run_in='process' needs a module-level function, which the new process can import; "
            f"move it out of the function or class it stands in"
        )


def _importable(fn: object) -> bool:
    return isinstance(fn, FunctionType) and "<" not in fn.__qualname__
