"""A process of its own for tests that kill or interrupt one: ``python children.py PART STORE``.

A store is given by its path or URL.
It says where it stands by lines on its output, so that nobody has to guess by time.
"""

from __future__ import annotations

import sys

from stepwell import CheckpointingRunner, delay, task, workflow
from stepwell.backend.urls import open_backend
from stepwell.runtime.clock import SystemClock, Wait


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # the parent reads it


@task
def begins(x: int) -> int:
    say("began")
    return x + 1


@task
def holds(x: int) -> int:
    """Work until the parent says otherwise, which it never does."""
    say("holding")
    sys.stdin.readline()
    return x + 1


@workflow
def napping(x: int) -> int:
    a = begins(x)
    delay("30d")
    return begins(a)


@workflow
def holding(x: int) -> int:
    a = begins(x)
    return begins(holds(a))


class Watched(SystemClock):
    """Says when the call is about to wait."""

    def timeout_s(self, wait: Wait) -> float | None:
        say("waiting")
        return super().timeout_s(wait)


def main(part: str, url: str) -> None:
    clock = Watched() if part == "napping" else None
    with CheckpointingRunner(open_backend(url), clock=clock, poll="1h") as runner:
        runner.run({"napping": napping, "holding": holding}[part], 1, instance_id="child")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        say("interrupted")
