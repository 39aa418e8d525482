"""Each example leaves a store that keeps every promise; they delete it themselves, so it is checked as it closes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import stepwell

EXAMPLES = Path(__file__).parents[2] / "examples"

WATCH = """
import sys
from stepwell import InMemoryBackend, SqliteBackend
from stepwell.testing.invariants import check_store

closed = []

def watch(kind):
    close = kind.close

    def closing(store):
        if store not in closed:
            closed.append(store)
            report = check_store(store)
            print(report, file=sys.stderr)
            assert report.ok and report.entries
        close(store)

    kind.close = closing

watch(InMemoryBackend)
watch(SqliteBackend)
"""


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_breaks_no_promise(path: Path, tmp_path: Path) -> None:
    """Whatever it shows, retries and crashes included."""
    watcher = tmp_path / "watcher"  # found by every interpreter that the example starts, too
    watcher.mkdir()
    (watcher / "sitecustomize.py").write_text(WATCH)
    paths = os.pathsep.join([str(watcher), str(Path(stepwell.__file__).parents[1])])
    env = {**os.environ, "PYTHONPATH": paths, "TMPDIR": str(tmp_path), "TEMP": str(tmp_path)}
    command = [sys.executable, str(path)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    uses_a_store = "Backend(" in path.read_text()
    assert ("0 violations" in done.stderr) == uses_a_store, done.stderr
