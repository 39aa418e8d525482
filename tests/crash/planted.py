"""Faults that are planted into a process on purpose: the suite must find each of them, or it finds nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from msgspec.structs import replace

T = TypeVar("T")


def planted(name: str, inner: Any) -> Any:
    """Return the store with a fault of this name, or as it is."""
    return FAULTS[name](inner) if name else inner


LOOKS = ("hint", "mail")  # what a drive asks for between a commit and the steps that follow it


class Planted:
    """A store that hands everything on."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Early(Planted):
    """Says that a commit is done before it is: it lands with the next call, so what follows it begins before it."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.late: list[tuple[Any, Sequence[Any]]] = []

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        return self._after_all(found) if callable(found) and name not in LOOKS else found

    def _after_all(self, call: Callable[..., T]) -> Callable[..., T]:
        def made(*args: Any, **options: Any) -> T:
            while self.late:
                self.inner.commit(*self.late.pop(0))
            return call(*args, **options)

        return made

    def commit(self, session: Any, changes: Sequence[Any]) -> Sequence[str]:
        self._after_all(lambda: None)()
        self.late.append((session, changes))
        return ["done"] * len(changes)


class Forgetful(Planted):
    """A move to another graph that forgets which one."""

    def commit(self, session: Any, changes: Sequence[Any]) -> Any:
        return self.inner.commit(session, [_without_definition(change) for change in changes])


def _without_definition(change: Any) -> Any:
    if change.rest is None or change.rest.definition is None:
        return change
    return replace(change, rest=replace(change.rest, definition=None))


class Beside(Planted):
    """An outcome that is committed beside the user's transaction, and not in it."""

    def within(self, connection: Any) -> Any:
        return self.inner


def piecemeal(inner: Any) -> Any:
    """On PostgreSQL: what belongs into one transaction lands statement by statement."""
    from stepwell.backend.postgres_lines import Line

    setattr(Line, "together", Line.once)  # noqa: B010 - mypy knows it as a method
    return inner


FAULTS: dict[str, Callable[[Any], Any]] = {
    "early": Early, "forgetful": Forgetful, "beside": Beside, "piecemeal": piecemeal,
}  # fmt: skip
