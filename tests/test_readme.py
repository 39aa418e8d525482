"""What the README shows is run as it is printed."""

from __future__ import annotations

import gc
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import stepwell
from stepwell import Again, CheckpointingRunner, Done, Flow, InMemoryBackend, Workflow, signal, task, workflow
from stepwell.testing import VirtualClock

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
FIRST, *OTHERS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TABLE = re.findall(r"^\| `((?!with )[^`]+)`", README.partition("| you write |")[2].partition("\n\n")[0], re.MULTILINE)
FLUENT = re.findall(r"`(Flow\(.*?\.build\(\))`", README)


@dataclass(frozen=True)
class Approval:
    granted: bool


@dataclass(frozen=True)
class Order:
    id: str
    kind: str


@task
def charge(order: Order) -> str:
    return order.id


@task
def ship(order: Order) -> str:
    return "by ship"


@task
def mail(order: Order) -> str:
    return "by mail"


@task
def refine(text: str) -> Again[str] | Done[str]:
    return Done(text)


@task
def escalate() -> Approval:
    return Approval(granted=False)


@task
def tell(draft: str, approval: Approval) -> str:
    return f"{draft} {'published' if approval.granted else 'dropped'}"


@workflow
def audit(order: Order) -> str:
    return charge(order)


@workflow
def publish(draft: str) -> str:
    approval = signal("approve", Approval, timeout="2d", on_timeout=escalate)
    return tell(draft, approval)


def execute(code: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run lines of the README and return the names they leave."""
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102 - our own text
    gc.collect()  # what it leaves open is closed here, while it can be told whose it was
    return names


def test_the_first_block_is_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints its result; run again, it charges nobody and prints the recorded one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stepwell, "CheckpointingRunner", partial(CheckpointingRunner, clock=VirtualClock()))
    result = "pens shipped, receipt for pens\n"
    execute(FIRST, {"__name__": "__main__"})
    assert capsys.readouterr().out == f"charging for pens\n{result}"
    execute(FIRST, {"__name__": "__main__"})
    assert capsys.readouterr().out == result


def test_the_calls_of_a_runner() -> None:
    """As printed: the run waits, is answered, ends; and nothing is left to recover."""
    (block,) = OTHERS
    with CheckpointingRunner(InMemoryBackend(), clock=VirtualClock(jump=False)) as runner:
        names = execute(block, {"runner": runner, "publish": publish, "checkout": audit, "Approval": Approval})
    assert names["output"] == "draft published"
    assert names["status"].finished is False
    assert names["statuses"] == []


@pytest.mark.parametrize("snippet", TABLE)
def test_a_row_of_the_table_stands_in_a_workflow(snippet: str) -> None:
    """Each is a node of its own."""

    @workflow
    def flow(order: Order) -> None:
        eval(snippet, {**globals(), **vars(stepwell), "order": order, "first": order.id})  # noqa: S307 - our own text

    assert len(flow.plan.nodes) > 1


def test_the_table_is_found() -> None:
    """All its rows but the one with blocks."""
    assert len(TABLE) == 6


def test_the_fluent_line_builds() -> None:
    """With functions of these names."""

    def fetch(url: str) -> str:
        return url

    def merge(parts: dict[str, str]) -> str:
        return "".join(parts.values())

    (line,) = FLUENT
    branches = {name: task(name)(fetch) for name in ("summarise", "extract")}
    made = eval(line, {"Flow": Flow, "fetch": fetch, "merge": merge, **branches})  # noqa: S307 - our own text
    assert isinstance(made, Workflow)
