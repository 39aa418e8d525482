"""Each file in ``examples`` runs by itself, offline, and prints what it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import stepwell

EXAMPLES = Path(__file__).parents[1] / "examples"

ENDINGS = {
    "agent.py": "The answer is 42, after 4 calls of the model in 3 turns.",
    "approval.py": "a train ticket: granted by Ada\na yacht: refused by the clock",
    "digest.py": "rain.txt: only 'rain'",
    "order_saga.py": "order-1: shipped 2 items\norder-2: declined, 3 items back on the shelf",
    "recover.py": "  europe ran 1 time\n  oceania ran 2 times",
}


def run(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run an example in a fresh interpreter that treats warnings as errors and leaves its files in ``folder``."""
    env = {
        **os.environ,
        "PYTHONPATH": str(Path(stepwell.__file__).parents[1]),
        "PYTHONUTF8": "1",
        "TMPDIR": str(folder),
        "TEMP": str(folder),
    }
    command = [sys.executable, "-W", "error", str(EXAMPLES / name)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, encoding="utf-8", check=False)


def test_every_example_is_run() -> None:
    """A new file needs its ending here."""
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(ENDINGS)


@pytest.mark.parametrize("name", sorted(ENDINGS))
def test_an_example_runs_and_ends_well(name: str, tmp_path: Path) -> None:
    """It succeeds, complains of nothing, and clears up after itself."""
    done = run(name, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(ENDINGS[name] + "\n")
    assert list(tmp_path.iterdir()) == []
