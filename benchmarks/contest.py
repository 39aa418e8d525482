"""Contestants take turns: each in a process of its own, one at work at a time.

A process of its own keeps one's heap, threads and libraries out of the other's time. All run on the same Python
with the same (default) settings of the garbage collector, which is run before each measurement. What a contestant
measures, it times itself, inside its process; the way there and back is not counted. A contestant is modules with a
function for each measurement it can take part in; one that cannot be imported is told as "not installed".
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

START_S = 60.0
ABSENT = "not installed"


class Result(NamedTuple):
    """Figures by name (one without a name is ``""``), or the reason why there are none."""

    figures: dict[str, float]
    missing: str = ""


class Contestant:
    """Modules at the other end of a pipe. What takes too long costs the process; a new one is started."""

    def __init__(self, name: str, modules: Sequence[str], folder: Path, cap_s: float) -> None:
        self.name, self._modules, self._folder, self._cap_s = name, modules, folder, cap_s
        self._cut: set[tuple[str, int]] = set()
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._modules, str(self._folder)), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.absent: str = self._answer(START_S)
        except (EOFError, TimeoutError) as error:
            self.absent = f"did not start: {error!r}"

    def _answer(self, cap_s: float) -> Any:
        if not self._pipe.poll(cap_s):
            raise TimeoutError
        return self._pipe.recv()

    def measure(self, method: str, size: int) -> Result:
        """Take one measurement; what was cut once is not tried again."""
        if self.absent:
            return Result({}, self.absent)
        if (method, size) in self._cut:
            return Result({}, f"over {self._cap_s:g} s")
        self._pipe.send((method, size))
        try:
            return Result(*self._answer(self._cap_s))
        except (EOFError, TimeoutError) as error:
            self._cut.add((method, size))
            self.close()
            self._start()
            return Result({}, f"over {self._cap_s:g} s" if isinstance(error, TimeoutError) else "its process died")

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe: Connection, modules: Sequence[str], folder: str) -> None:
    """Answer measurements until the pipe is closed. What a library prints goes to a file beside its data."""
    log = os.open(Path(folder) / f"{modules[0]}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        loaded = [importlib.import_module(module) for module in modules]
    except ModuleNotFoundError as error:
        pipe.send(f"{ABSENT} ({error.name})")
        return
    pipe.send("")
    while True:
        try:
            method, size = pipe.recv()
        except EOFError:
            return
        pipe.send(_measured(loaded, method, size, folder))


def _measured(loaded: Sequence[object], method: str, size: int, folder: str) -> tuple[dict[str, float], str]:
    measure = next((getattr(module, method) for module in loaded if hasattr(module, method)), None)
    if measure is None:
        return {}, "-"
    gc.collect()
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as scratch:
        try:
            found = measure(size, Path(scratch))
        except Exception as error:  # noqa: BLE001  # one contestant's trouble must not end the contest
            sys.excepthook(type(error), error, error.__traceback__)
            return {}, f"{type(error).__name__}: {error}"
    return (found if isinstance(found, dict) else {"": found}), ""


@contextmanager
def contestants(modules: Mapping[str, Sequence[str]], folder: Path, cap_s: float) -> Iterator[list[Contestant]]:
    """Start all of them, and end them whatever happens."""
    started: list[Contestant] = []
    try:
        for name, parts in modules.items():
            started.append(Contestant(name, parts, folder, cap_s))
        yield started
    finally:
        for contestant in started:
            contestant.close()
