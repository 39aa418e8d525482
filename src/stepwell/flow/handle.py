"""Handles: what stands for a value while a workflow is traced, before any value exists.

A handle knows where its value will come from and nothing of the value itself. So the only things it can do are be an
argument and be selected from: ``handle.attr``, ``handle["key"]``. Everything that would need the value (a comparison, a
truth test, iteration, a method call, text) raises at once, at the user's line, and says what to write instead. Names
with a leading underscore are not selectors: Python and tools look such names up unasked.

``is`` and ``isinstance`` cannot be caught: ``handle is None`` is always False. Use a route.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Final, Literal, NoReturn, TypeAlias

from stepwell.errors import GraphError

from .nodes import Node, Select, SelectorStep, Source
from .tracer import active_tracer, call_site

ScopeKind: TypeAlias = Literal["workflow", "parallel", "branch", "case", "turn", "timeout"]

#: What leaves a value visible after it: the nodes of a parallel and its branches have all run when it ends.
_TRANSPARENT: Final = frozenset({"parallel", "branch"})


@dataclass(frozen=True, slots=True, eq=False)
class Scope:
    """A block of the user's code that records into ``nodes``; ``title`` names it in messages."""

    kind: ScopeKind
    title: str
    nodes: list[Node]
    parent: Scope | None = None

    @property
    def home(self) -> Scope:
        """The innermost block outside which values made here cannot be read."""
        return self.parent.home if self.parent is not None and self.kind in _TRANSPARENT else self

    def within(self, other: Scope) -> bool:
        """Say whether this block is ``other`` or stands inside it."""
        return self is other or (self.parent is not None and self.parent.within(other))


def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """What a handle knows. ``made_by`` and ``where`` are for messages; an async call is not ``ready`` until awaited."""

    source: Source
    home: Scope
    made_by: str
    where: str
    ready: bool = True
    awaited: Callable[[], object] = _nothing


class NoSelector(GraphError, AttributeError):
    """A name on a handle that cannot be selected; an ``AttributeError`` too, so that ``hasattr`` answers False."""


class Handle:
    """Stands for the value that a node will yield."""

    __slots__ = ("__origin__",)
    __origin__: Origin

    def __init__(self, origin: Origin) -> None:
        object.__setattr__(self, "__origin__", origin)

    def __repr__(self) -> str:
        return f"<handle of {self.__origin__.made_by}, made at {self.__origin__.where}>"

    def __getattr__(self, name: str) -> Handle:
        if name.startswith("_"):
            where = call_site()
            raise NoSelector(
                f"{name!r} cannot be selected from {told(self, where)}: names with a leading _ are private; "
                f"read it in a task",
                where,
            )
        return _selected(self, ("attr", name))

    def __getitem__(self, key: object) -> Handle:
        if key is None or type(key) is str or type(key) is int or type(key) is bool:
            return _selected(self, ("item", key))
        where = call_site()
        raise GraphError(
            f"only a str, int, bool or None selects an item from {told(self, where)}, not a {type(key).__name__}; "
            f"use a task for anything else",
            where,
        )

    def __await__(self) -> Generator[NoReturn, None, Handle]:
        origin = self.__origin__
        if origin.ready:
            raise GraphError(f"{origin.made_by} is not async; leave out `await`", call_site())
        origin.awaited()
        yield from ()  # a generator, as __await__ must be, that never suspends
        return Handle(replace(origin, ready=True))


def told(handle: Handle, where: str) -> str:
    """Say whose value a handle stands for, and where it was made, if that is not where the reader is sent anyway."""
    origin = handle.__origin__
    made_by = origin.made_by if origin.made_by.startswith("the ") else f"the result of {origin.made_by}"
    return made_by if origin.where == where else f"{made_by} (made at {origin.where})"


def _selected(handle: Handle, step: SelectorStep) -> Handle:
    origin = handle.__origin__
    if not origin.ready:
        raise GraphError(f"{origin.made_by} is async; write `await` before the call", call_site())
    base, steps = (
        (origin.source.base, origin.source.steps) if isinstance(origin.source, Select) else (origin.source, ())
    )
    return Handle(Origin(Select(base, (*steps, step)), origin.home, origin.made_by, origin.where))


# --- what a handle refuses -------------------------------------------------------------------

_VALUE: Final = "a workflow function only notes the steps, so there is no value yet"
_ROUTE: Final = "to choose by a value use route(), to repeat use loop()"
_TASK: Final = "do it in a task"

_REFUSED: Final = {
    "compared": (_ROUTE, "eq ne lt le gt ge"),
    "used as a condition": (_ROUTE, "bool"),
    "searched with `in`": (_TASK, "contains"),
    "iterated over or unpacked": ("select items with [0], [1], or do it in a task", "iter next reversed"),
    "measured with len()": (_TASK, "len length_hint"),
    "made text": ("format it in a task; to see where it comes from use repr()", "str format bytes"),
    "called": ("call its methods in a task", "call"),
    "a set member or dict key": ("use it as a list item or dict value", "hash"),
    "changed": (_TASK, "setattr delattr setitem delitem"),
    "used in `with`": (_TASK, "enter exit aenter aexit"),
    "used in `async for`": (_TASK, "aiter anext"),
    "made a number": (_TASK, "int float complex index round trunc floor ceil"),
    "computed with": (
        _TASK,
        "add sub mul matmul truediv floordiv mod divmod pow lshift rshift and or xor neg pos abs invert "
        "radd rsub rmul rmatmul rtruediv rfloordiv rmod rdivmod rpow rlshift rrshift rand ror rxor",
    ),
}


def _refusal(verb: str, instead: str) -> Callable[..., NoReturn]:
    def refuse(self: Handle, *args: object, **kwargs: object) -> NoReturn:
        where = call_site()
        error = GraphError(f"{told(self, where)} cannot be {verb}: {_VALUE}; {instead}", where)
        if (tracer := active_tracer()) is not None:
            tracer.refused(error)
        raise error

    return refuse


for _verb, (_instead, _names) in _REFUSED.items():
    for _name in _names.split():
        setattr(Handle, f"__{_name}__", _refusal(_verb, _instead))


__all__ = ["Handle", "NoSelector", "Origin", "Scope", "told"]
