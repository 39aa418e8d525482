"""What docs/change.md shows is run as it is printed, and its table is what happens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from stepwell import signal, task, workflow

from .client_worlds import World

PAGE = (Path(__file__).parents[2] / "docs" / "change.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_is_a_story(world: World) -> None:
    """An order is charged once, moved to the new graph, and taken back to the old one."""
    charged: list[str] = []

    @task
    def charge(item: str) -> str:
        charged.append(item)
        return f"receipt for {item}"

    @task
    def ship(receipt: str) -> str:
        return f"shipped, {receipt}"

    @task
    def thank(note: str) -> str:
        return f"{note}, thank you"

    @workflow("order")
    def old(item: str) -> str:
        receipt = charge(item)
        signal("packed", str)
        return ship(receipt)

    names: dict[str, Any] = {
        "runner": world.runner, "client": world.client, "workflow": workflow, "signal": signal,
        "charge": charge, "ship": ship, "thank": thank, "old": old,
    }  # fmt: skip
    first, second, back = BLOCKS
    exec(compile(first + second, "change.md", "exec"), names)  # noqa: S102 - our own text
    assert names["status"].state == "waiting"
    assert world.backend.header("order-42").fingerprint == names["new"].fingerprint
    exec(compile(back, "change.md", "exec"), names)  # noqa: S102 - our own text
    assert world.backend.header("order-42").fingerprint == old.fingerprint
    world.client.signal("order-42", "packed", "yes")
    assert world.runner.resume(old, "order-42") == "shipped, receipt for pens"
    assert charged == ["pens"]
