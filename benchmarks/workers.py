"""Worker processes: how they are started, what they tell, and what is measured with them, whoever's they are.

A worker is ``python workers.py MODULE PLACE NAME``: it enters ``MODULE.serving(PLACE, NAME)`` and works until its input
ends. Its bodies note when they run (``work.Seen``), on a clock that all processes share; it tells that when asked.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from work import Seen, percentiles_us

LOOK_S = 0.003  # between two looks whether all have ended
PATIENCE_S = 80.0
STEPS = 4  # of each instance in a pool
WARM = 40  # instances that nobody counts


class Worker:
    def __init__(self, module: str, place: str, name: str) -> None:
        command = [sys.executable, __file__, module, place, name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603  # this very file
        self._name = name

    def answer(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"worker {self._name} has ended; what it said is in the log")
        return line

    def times(self) -> list[float]:
        """Return when its bodies began since it was last asked."""
        assert self._process.stdin is not None
        self._process.stdin.write("times\n")
        self._process.stdin.flush()
        return list(json.loads(self.answer()))

    def close(self) -> None:
        try:
            self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


@contextmanager
def working(module: str, place: str, count: int) -> Iterator[list[Worker]]:
    """So many workers, all ready."""
    with ExitStack() as stack:
        started = [Worker(module, place, f"worker-{number}") for number in range(count)]
        for worker in started:
            stack.callback(worker.close)
        for worker in started:
            worker.answer()
        yield started


def pool(
    workers: list[Worker], instances: int, submit: Callable[[int], object], ended: Callable[[], bool]
) -> dict[str, float]:
    """Submit instances of four steps, and wait until the store says that all have ended.

    Without a name: instances a second from the first submit to the last end. ``drain``: from the first body to the
    last one. ``again``: steps that ran once more than they should.
    """
    through(submit, WARM, ended)
    for worker in workers:
        worker.times()
    began_s = time.monotonic()
    through(submit, instances, ended)
    took_s = time.monotonic() - began_s
    times = sorted(at_s for worker in workers for at_s in worker.times())
    if (again := len(times) - STEPS * instances) < 0:
        raise ValueError(f"wrong result: {-again} steps did not run")
    return {"": instances / took_s, "drain": instances / (times[-1] - times[0]), "again": again}


def through(submit: Callable[[int], object], instances: int, ended: Callable[[], bool]) -> None:
    """Submit so many and wait until all have ended."""
    submit(instances)
    until_s = time.monotonic() + PATIENCE_S
    while not ended():
        if time.monotonic() > until_s:
            raise TimeoutError("not all have ended")
        time.sleep(LOOK_S)


def pickup(
    worker: Worker, count: int, submit: Callable[[str], object], result: Callable[[str], object] | None
) -> dict[str, float]:
    """Percentiles from submitting one step to an idle worker until its body begins, and until its result is there."""
    sent_s: list[float] = []
    took_s: list[float] = []
    for number in range(count + 1):
        time.sleep(random.uniform(0.02, 0.06))  # noqa: S311  # at no particular moment
        sent_s.append(time.monotonic())
        submit(name := f"idle-{number}")
        if result is not None:
            result(name)
            took_s.append(time.monotonic() - sent_s[-1])
    until_s, begun_s = time.monotonic() + PATIENCE_S, worker.times()
    while len(begun_s) < len(sent_s) and time.monotonic() < until_s:
        time.sleep(LOOK_S)
        begun_s += worker.times()
    waited = [at_s - since_s for at_s, since_s in zip(begun_s, sent_s, strict=True)]
    found = percentiles_us(waited[1:])
    return found | {f"result_{name}": us for name, us in percentiles_us(took_s[1:]).items()} if took_s else found


def main(module: str, place: str, name: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer

    def tell(line: str) -> None:
        answers.write(f"{line}\n")
        answers.flush()

    with importlib.import_module(module).serving(place, name):
        tell("ready")
        for _ in sys.stdin:
            tell(json.dumps(Seen.take()))


if __name__ == "__main__":
    main(*sys.argv[1:])
