"""A table of misuses: what somebody writes, and what the error must tell them.

A case is a function as a user would write it, under ``@case``. The line that the error must point at carries the
comment ``# here``; an error without a line of its own names a step, an instance or an option instead, in ``where``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from stepwell import CheckpointingRunner, SqliteBackend, WorkflowClient
from stepwell.testing import VirtualClock

T = TypeVar("T")

#: Stands in inputs, results and messages for what nobody else may read; no error may repeat it.
SECRET = "canary-4711-of-the-customer"  # noqa: S105 - it is none
HERE = "# here"


class Desk:
    """What a misuse needs around it: a folder, and stores and runners that are closed when it is over."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open = ExitStack()

    def keep(self, thing: T) -> T:
        self._open.callback(thing.close)  # type: ignore[attr-defined]
        return thing

    def backend(self, **options: Any) -> SqliteBackend:
        return self.keep(SqliteBackend(self.folder / "shop.db", **options))

    def runner(self, **options: Any) -> CheckpointingRunner:
        return self.keep(CheckpointingRunner(self.backend(), **{"clock": VirtualClock(), **options}))

    def client(self) -> WorkflowClient:
        return self.keep(WorkflowClient(self.backend()))

    def close(self) -> None:
        self._open.close()


@dataclass(frozen=True)
class Case:
    """A misuse and what its error must say: ``what`` went wrong, ``where``, and ``how`` to mend it."""

    act: Callable[[Desk], object]
    error: type[BaseException]
    what: tuple[str, ...]
    where: tuple[str, ...]
    how: tuple[str, ...]
    needs: str

    @property
    def name(self) -> str:
        return self.act.__name__

    def line(self) -> str:
        """Return ``file:line`` of the marked line, ``""`` if none is marked."""
        lines, first = inspect.getsourcelines(self.act)
        marked = [first + i for i, line in enumerate(lines) if line.rstrip().endswith(HERE)]
        return f"{inspect.getsourcefile(self.act)}:{marked[0]}" if marked else ""


def case(
    error: type[BaseException], what: str = "", where: str = "", how: str = "", *, needs: str = ""
) -> Callable[[Callable[[Desk], object]], Case]:
    """Make a misuse a case; several texts that an error must contain are parted by ``|``.

    ``needs`` names an optional package without which it cannot be made.
    """

    def made(act: Callable[[Desk], object]) -> Case:
        return Case(act, error, _parts(what), _parts(where), _parts(how), needs)

    return made


def cases_of(*modules: ModuleType) -> list[Case]:
    """Return the cases of modules that can be made here, in the order in which they are written."""
    found = [each for module in modules for each in vars(module).values() if isinstance(each, Case)]
    return [each for each in found if not each.needs or find_spec(each.needs)]


def _parts(texts: str) -> tuple[str, ...]:
    return tuple(filter(None, texts.split("|")))
