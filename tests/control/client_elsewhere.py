"""A process that knows no workflow: ``python client_elsewhere.py DATABASE CALL…``.

Each call is a JSON array of a method's name, its arguments and its options; the answers are printed as JSON, a line
each. A decision is written as ``{"Complete": 5}``; an error is answered by its class and text.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from stepwell import InstanceStatus, StepwellError
from stepwell.backend.urls import open_backend
from stepwell.runtime.client import WorkflowClient
from stepwell.testing import VirtualClock
from stepwell.types import Complete, Fail, Rerun

DECISIONS = {"Rerun": lambda _: Rerun(), "Complete": Complete, "Fail": Fail}


def read(argument: Any) -> Any:
    if isinstance(argument, dict):
        (kind, value), *_ = argument.items()
        return bytes.fromhex(value) if kind == "bytes" else DECISIONS[kind](value)
    return argument


def shown(answer: Any) -> Any:
    if isinstance(answer, bytes):
        return answer.hex()
    if isinstance(answer, list):
        return [shown(item) for item in answer]
    if isinstance(answer, InstanceStatus):
        return repr(answer)
    return answer if isinstance(answer, int | str | float | None) else str(answer)


def call(client: WorkflowClient, name: str, arguments: list[Any], options: dict[str, Any]) -> Any:
    try:
        return shown(getattr(client, name)(*map(read, arguments), **options))
    except (StepwellError, TimeoutError) as error:
        return {"error": type(error).__name__, "text": str(error)}


def main(url: str, *calls: str) -> None:
    backend = open_backend(url)
    with WorkflowClient(backend, clock=VirtualClock()) as client:
        for line in calls:
            name, arguments, options = json.loads(line)
            print(json.dumps(call(client, name, arguments, options)))  # noqa: T201  # the parent reads it
    backend.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
