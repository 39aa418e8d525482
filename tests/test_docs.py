"""What the pages in docs/ show is run as it is printed.

Blocks of a page run one after the other, in an empty folder. ``python`` is executed here, or written to a file if its
first line is a comment with the file's name. ``console`` whose lines begin with ``$`` is typed into a shell, and what
that says must be what the page says, where ``…`` stands for anything. ``py``, and ``console`` without ``$``, are shown.
(The pages on changes and on tracing need more around them: tests/control, tests/observe.)
"""

from __future__ import annotations

import gc
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

import stepwell

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# ([\w/]+\.py)\n")
ELSEWHERE = {"change"}
DATABASE = "STEPWELL_DB"  # a page whose code reads it is given an empty PostgreSQL database
MACHINE = re.compile(r"/(?:root|home|Users|work|tmp)/")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return what of a page is run, in order."""
    found = [(kind, text) for kind, text in BLOCK.findall(page.read_text("utf-8"))]
    return [(kind, text) for kind, text in found if kind == "python" or text.startswith("$ ")]


def name_of(page: Path) -> str:
    return page.relative_to(DOCS).with_suffix("").as_posix()


PAGES = {name_of(page): blocks(page) for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts}
RUN = [name for name, found in PAGES.items() if found and name not in ELSEWHERE]


class Terminal:
    """One shell for all that a page types; it starts with the first command."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shell: subprocess.Popen[str] | None = None

    def _commands(self) -> Path:
        """Return a folder with the commands that the pages use: this Python, and this stepwell."""
        (folder := self._folder / ".bin").mkdir()
        for name, module in (("python", ""), ("stepwell", " -m stepwell")):
            (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{module} "$@"\n')
            (folder / name).chmod(0o755)
        return folder

    def _start(self) -> subprocess.Popen[str]:
        if (bash := shutil.which("bash")) is None:
            pytest.skip("the page types into a shell")
        env = {
            **{key: value for key, value in os.environ.items() if not key.startswith("STEPWELL_")},
            "PATH": f"{self._commands()}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(Path(stepwell.__file__).parents[1]),
            "PYTHONUNBUFFERED": "1",
            "NO_COLOR": "1",
            "COLUMNS": "100",
            "TZ": "UTC",
        }
        return subprocess.Popen(
            [bash, "--norc"], cwd=self._folder, env=env, text=True, encoding="utf-8",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def say(self, command: str) -> str:
        """Return what a command prints, wherever to."""
        shell = self._shell = self._shell or self._start()
        assert shell.stdin is not None
        assert shell.stdout is not None
        end = secrets.token_hex(8)
        shell.stdin.write(f"{command}\necho {end}\n")
        shell.stdin.flush()
        said = ""
        while end not in said:
            line = shell.stdout.readline()
            assert line, f"the shell has ended\n{said}"
            said += line
        return said.replace(f"{end}\n", "")

    def close(self) -> None:
        if self._shell is not None:
            self._shell.communicate("kill $(jobs -p) 2>/dev/null; wait\n")


def plain(text: str) -> str:
    """Return a text with single blanks, as columns are as wide as what stands in them."""
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())


def check(text: str, terminal: Terminal) -> None:
    """Type the commands of a block, and compare what is said to each."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, said = part.partition("\n")
        pattern = re.escape(plain(said)).replace("…", ".*?")
        heard = terminal.say(command.partition("   #")[0])
        assert re.fullmatch(pattern, plain(heard), re.DOTALL), f"{command}\n{heard}"


def close_all(names: Mapping[str, object]) -> None:
    """Close what a page has left open: stores come after what works on them."""
    ours = [value for value in names.values() if type(value).__module__.startswith("stepwell.")]
    for value in sorted(ours, key=lambda value: hasattr(value, "codec_id")):
        if hasattr(value, "close"):
            value.close()


def run(page: str, terminal: Terminal, folder: Path) -> None:
    """Run all blocks of a page."""
    names: dict[str, object] = {"__name__": f"docs_{Path(page).name}"}
    for number, (kind, text) in enumerate(PAGES[page], 1):
        if kind == "console":
            check(text, terminal)
        elif file := FILE.match(text):
            (folder / file[1]).write_text(text, "utf-8")
        else:
            exec(compile(text, f"docs/{page}.md, block {number}", "exec", dont_inherit=True), names)  # noqa: S102 - our own text
    close_all(names)


@pytest.mark.parametrize("page", RUN)
def test_a_page_runs_as_it_is_printed(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """All blocks of a page, one after the other, in an empty folder."""
    if any(DATABASE in text for kind, text in PAGES[page] if kind == "python"):
        server = request.getfixturevalue("postgres_server")
        monkeypatch.setenv(DATABASE, server.dsn(server.create_database()))
    monkeypatch.chdir(tmp_path)
    with closing(Terminal(tmp_path)) as terminal:
        run(page, terminal, tmp_path)
    gc.collect()


def test_no_page_names_a_place_on_somebodys_machine() -> None:
    """Nor does any page in a folder."""
    assert len(PAGES) > 30
    assert not [name for name in PAGES if MACHINE.search((DOCS / f"{name}.md").read_text("utf-8"))]
