"""Process tasks for test_processes.py: a worker process imports this module by its name."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from stepwell import Permanent, RetryAfter
from stepwell.flow.task import inject, task
from stepwell.retry import Retry
from stepwell.runtime.context import task_context
from stepwell.types import Again, Done


@dataclass
class Order:
    amount: int


class Declined(Exception):
    """An error of the user's own."""


class Stock:
    """A dependency that knows in which process, and how often there, one was made."""

    made = 0

    def __init__(self) -> None:
        Stock.made += 1
        self.seen = (os.getpid(), Stock.made)


def make_stock() -> Stock:
    return Stock()


@task(run_in="process")
def echo(value: Any) -> Any:
    return value


@task(run_in="process")
def doubled(order: Order, *, times: int = 2) -> Order:
    return Order(order.amount * times)


@task(run_in="process")
def pid(_: object) -> int:
    return os.getpid()


def _plain(value: int) -> int:
    return value + 1


plain_in_process = task(run_in="process")(_plain)


@task(run_in="process")
def hang(fifo: str) -> None:
    """Say which process this is, and hold the pipe open for as long as it lives."""
    with open(fifo, "wb", buffering=0) as pipe:
        pipe.write(os.getpid().to_bytes(8, "big"))
        signal.pause()


@task(run_in="process", timeout="1h")
def hang_with_timeout(fifo: str) -> None:
    hang.fn(fifo)


@task(run_in="process")
def touch(path: str) -> None:
    open(path, "x").close()


class Pipes(NamedTuple):
    mine: str
    other: str


@task(run_in="process")
def meet(pipes: Pipes) -> str:
    """Return only when another body holds the other ends."""
    if pipes.mine < pipes.other:
        with open(pipes.mine, "w"), open(pipes.other):
            return "met"
    with open(pipes.other), open(pipes.mine, "w"):
        return "met"


@task(run_in="process", retry=Retry(attempts=3, on=(Declined, OSError), unless=(FileNotFoundError,)))
def fails(how: str) -> object:
    match how:
        case "declined":
            raise Declined("no money")
        case "missing":
            raise FileNotFoundError(2, "nothing there")
        case "chained":
            try:
                raise KeyError("inner")
            except KeyError as error:
                raise PermissionError("outer") from error
        case "permanent":
            raise Permanent("never again")
        case "later":
            raise RetryAfter(2.5)
        case "other":
            raise ValueError("lone \ud800 surrogate and \0")
        case _:
            return object()


@task(run_in="process", retry=Retry(attempts=2, on=(Declined,)))
def dies(how: int) -> NoReturn:
    if how < 0:
        os.kill(os.getpid(), -how)
    os._exit(how)


@task(run_in="process", attempts=2)
def leaves(code: int) -> NoReturn:
    sys.exit(code)


@task(run_in="process")
def context_of(_: object) -> dict[str, Any]:
    context = task_context()
    names = "instance_id run workflow path attempt idempotency_key deadline cancelled cursor"
    seen = {name: getattr(context, name) for name in names.split()}
    metadata = [type(context.metadata).__name__, dict(context.metadata)]
    return seen | {"logger": context.logger.extra, "metadata": metadata}


@task(run_in="process")
def beats(cursors: list[Any]) -> str:
    for cursor in cursors:
        task_context().heartbeat(cursor)
    return "never told to stop"


@task(run_in="process", retry=Retry(attempts=2, delay=0))
def goes_on(order: Order) -> Any:
    """Keep the order as the cursor and fail; the next attempt returns what was kept."""
    context = task_context()
    if context.cursor is None:
        context.heartbeat(order.amount)
        raise Declined("once")
    return context.cursor, context.attempt


@task(run_in="process")
def unstorable_beat(_: object) -> None:
    task_context().heartbeat(object())


@task(run_in="process")
def with_stock(_: object, *, stock: Stock = inject()) -> tuple[int, int]:
    return stock.seen


@task(run_in="process")
def signalled(_: object) -> str:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    return "still here"


@task(run_in="process")
def countdown(left: int) -> Again[int] | Done[str]:
    return Again(left - 1) if left else Done(f"lift-off from {task_context().path}")


@task(run_in="process")
def neither(left: int) -> Any:
    return [left]


@task(run_in="process")
def shadowed(_: object) -> None: ...


hidden, shadowed = shadowed, None  # type: ignore[assignment]  # a task that its own name does not lead to
