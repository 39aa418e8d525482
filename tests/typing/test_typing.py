"""Both type checkers agree with the public types: ``good.py`` passes, ``bad.py`` fails exactly where it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = [str(HERE / "good.py"), str(HERE / "bad.py")]
MARK = re.compile(r"# error$")


def marked(path: Path) -> set[int]:
    """Return the numbers of the lines that must be errors."""
    return {n for n, line in enumerate(path.read_text().splitlines(), 1) if MARK.search(line)}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a checker with the project's settings on the package in this checkout."""
    environment = {**os.environ, "MYPYPATH": str(ROOT / "src"), "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )


@pytest.fixture(scope="module")
def mypy_errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[int]]:
    """Return mypy's errors by file name and line."""
    cache = tmp_path_factory.mktemp("mypy")
    done = run("mypy", "--strict", "--cache-dir", str(cache), "--no-error-summary", *FILES)
    found: dict[str, set[int]] = {}
    for name, line in re.findall(r"^(.+?):(\d+): error:", done.stdout, re.MULTILINE):
        found.setdefault(Path(name).name, set()).add(int(line))
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return found


@pytest.fixture(scope="module")
def pyright_errors() -> dict[str, set[int]]:
    """Return pyright's errors by file name and line; skip where its node program cannot start."""
    done = run("pyright", "--outputjson", "--pythonpath", sys.executable, *FILES)
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        pytest.skip(f"pyright cannot start here: {done.stderr[:200]}")
    found: dict[str, set[int]] = {}
    for entry in report["generalDiagnostics"]:
        if entry["severity"] == "error":
            found.setdefault(Path(entry["file"]).name, set()).add(entry["range"]["start"]["line"] + 1)
    assert report["summary"]["filesAnalyzed"] == 2, report
    return found


@pytest.mark.parametrize("checker", ["mypy_errors", "pyright_errors"])
def test_good_programs_pass(checker: str, request: pytest.FixtureRequest) -> None:
    """Correct programs have the types they should, in both front ends."""
    assert request.getfixturevalue(checker).get("good.py", set()) == set()


@pytest.mark.parametrize("checker", ["mypy_errors", "pyright_errors"])
def test_bad_programs_fail(checker: str, request: pytest.FixtureRequest) -> None:
    """Every mistake that types can catch is caught, and nothing else is."""
    assert request.getfixturevalue(checker).get("bad.py", set()) == marked(HERE / "bad.py")


def test_marks_are_found() -> None:
    """The comparison is not between empty sets."""
    assert len(marked(HERE / "bad.py")) > 40
