"""The traced program that docs/tracing.md prints is run as it is printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import stepwell

from .receiver import check_tree, over_http

PAGE = Path(__file__).parents[2] / "docs" / "tracing.md"


def test_the_program_on_the_page_is_traced(tmp_path: Path) -> None:
    """By a receiver where the variable says."""
    (program,) = re.findall(r"```py\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (tmp_path / "shop.py").write_text(program, "utf-8")
    source = str(Path(stepwell.__file__).parents[1])
    with over_http() as receiver:
        env = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "PYTHONPATH": source}
        done = subprocess.run([sys.executable, "shop.py"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("receipt-1\n", "")
    assert check_tree(receiver.spans).name == "POST /orders"
    (bank,) = [span for span in receiver.spans if span.name == "call the bank"]
    assert (bank.service, bank.attributes) == ("shop", {"bank": "first"})
