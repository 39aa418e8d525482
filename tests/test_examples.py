"""Each file in ``examples`` runs by itself, offline, by the one command it names, and tells the story it promises."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import stepwell

from .postgres import Server

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
LINES_MIN, LINES_MAX = 60, 160

#: what must stand in an example's output, in this order
STORIES = {
    "agent.py": [
        "turn[2]/route/wish=TOOL/use_tool: price train 12 -> 900 rupees",
        "trip is waiting after 3 calls of the model",
        "turn[3]/route/wish=SPEND/allow: waits for client.signal(id, 'allow', …)",
        "turn[3]/route/wish=SPEND/spend: book train 12 -> seat 7",
        "Answer: You leave at 8:05 with train 12.",
        "the second program called the model 2 times",
    ],
    "approval.py": [
        "train is waiting\ndecision: waits for client.signal(id, 'decision', …) until 2030-01-03 00:00:00 UTC",
        "train is completed: a train ticket: granted by Ada",
        "yacht is completed: a yacht: refused by the clock",
        "it is 03 January now; it was the 1st",
    ],
    "documents.py": [
        "shorten (loop, at most 20)",
        "first run:",
        "  reading README.md",
        " headings; ",
        "second run, after one page was changed:\n  reading README.md\n",
        " summaries kept, 1 made anew: One page is new.",
    ],
    "nightly.py": [
        "the batch died with exit status 9, after 5 steps had begun",
        "unfinished: 3 of 5",
        "failed: 2026-01-31:pune; step total failed: ValueError",
        "2026-01-31:pune: pune sold 3",
        "2026-01-31:surat: surat sold 10",
        "ran more than once: 2026-01-31:jaipur total, 2026-01-31:pune total",
        "8 of 10 steps ran once",
    ],
    "order_saga.py": [
        "pack=BROKEN",
        "  bank: took 19.90\nthe first process died with exit status 9\norder-1 is running\n",
        "  bank: I have done this already, took 19.90\norder-1: shipped pen, ink; the bank took 19.90\n",
        "  bank: took 250.00\n  bank: gave back 250.00\norder-2: sorry, it was broken",
    ],
    "three_workers.py": [
        "  ada: I am ready\n  grace: I am ready\n  linus: I am ready\n30 instances were started",
        "30 are completed; none is lost, and nobody was asked",
        "ada: in the middle of a picture the power goes\nada ended with exit status 9",
        "grace: I have ended what I had begun\ngrace ended with exit status 0",
        "linus: I have ended what I had begun\nlinus ended with exit status 0",
    ],
    "web.py": [
        "POST /orders: 202 /orders/order-1\nPOST /orders: 202 /orders/order-1\n",
        "GET /orders/order-1: {'state': 'waiting'",
        "the app is restarted\nPOST /orders/order-1/picked: 202",
        "'result': '3 pens on shelf 7, picked by Ada, shipped'",
        "GET /orders/order-2: {'state': 'cancelled', 'why': ['it was cancelled: the customer changed her mind",
        "GET /orders/order-3: instance 'order-3': no such instance",
    ],
}
#: packages that an example needs and stepwell does not; the first that is there of each tuple
NEEDS = {"web.py": [("starlette",), ("httpx2", "httpx")]}
#: Starlette's own advice to prefer one HTTP client over another is none of ours.
IGNORED = "ignore:Using `httpx` with `starlette.testclient` is deprecated"

example = pytest.mark.parametrize("name", sorted(STORIES))


def run(name: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run an example in a fresh interpreter that treats warnings as errors and leaves its files in ``folder``."""
    env = {
        **{key: value for key, value in os.environ.items() if key != "STEPWELL_DB"},
        **more,
        "PYTHONPATH": str(Path(stepwell.__file__).parents[1]),
        "PYTHONUTF8": "1",
        "TMPDIR": str(folder),
        "TEMP": str(folder),
    }
    command = [sys.executable, "-W", "error", "-W", IGNORED, str(EXAMPLES / name)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, encoding="utf-8", check=False)


def check(name: str, done: subprocess.CompletedProcess[str]) -> None:
    """Check that it went well without a word of complaint, and that its story is there in the right order."""
    assert (done.returncode, done.stderr) == (0, "")
    at = 0
    for line in STORIES[name]:
        assert line in done.stdout[at:], done.stdout
        at = done.stdout.index(line, at) + len(line)


def docstring(name: str) -> str:
    return ast.get_docstring(ast.parse((EXAMPLES / name).read_text("utf-8"))) or ""


def test_every_example_is_run() -> None:
    """A new file needs its story here."""
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(STORIES)


@example
def test_an_example_tells_its_story(name: str, tmp_path: Path) -> None:
    """It succeeds, complains of nothing, and clears up after itself."""
    if any(not any(map(find_spec, either)) for either in NEEDS.get(name, [])):
        pytest.skip(f"{name} needs {' and '.join(' or '.join(either) for either in NEEDS[name])}")
    check(name, run(name, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_three_workers_on_postgresql(tmp_path: Path, postgres_server: Server) -> None:
    """The same story, told by a database server."""
    database = postgres_server.dsn(postgres_server.create_database())
    check("three_workers.py", run("three_workers.py", tmp_path, STEPWELL_DB=database))


@example
def test_an_example_says_how_it_is_run(name: str) -> None:
    """In its docstring and on the page; and it is short enough to be read in one go."""
    command = f"python examples/{name}"
    page = (ROOT / "docs" / "examples.md").read_text("utf-8")
    assert f"``{command}" in docstring(name)
    assert re.search(rf"^\| `{re.escape(command)}` \|", page, re.MULTILINE)
    assert LINES_MIN <= len((EXAMPLES / name).read_text("utf-8").splitlines()) <= LINES_MAX


def test_the_page_lists_no_other() -> None:
    """Each command on the page has its file."""
    page = (ROOT / "docs" / "examples.md").read_text("utf-8")
    assert set(re.findall(r"^\| `python examples/(\w+\.py)", page, re.MULTILINE)) == set(STORIES)
