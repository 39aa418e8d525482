"""The documentation builds without a warning, every reference leads somewhere, and no public name is left out of it."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from operator import attrgetter
from pathlib import Path
from typing import get_overloads

import pytest

import stepwell
import stepwell.reasons
from stepwell.flow import builder
from stepwell.runtime.checkpointing import StartOptions

DOCS = Path(__file__).parents[1] / "docs"
NOT_OBJECTS = {"__version__"}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pages, built once for this module."""
    for needed in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(needed, reason="pip install '.[docs]'", exc_type=ImportError)
    out = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-d", str(out / "trees")]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*command, str(DOCS), str(out / "html")], env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return out / "html"


def test_every_public_name_is_in_the_reference(pages: Path) -> None:
    """By the name under which it is imported."""
    text = "".join(page.read_text("utf-8") for page in (pages / "reference").glob("*.html"))
    documented = set(re.findall(r'id="(stepwell\.[\w.]+)"', text))
    wanted = {f"stepwell.{name}" for name in set(stepwell.__all__) - NOT_OBJECTS}
    wanted |= {f"stepwell.reasons.{name}" for name in set(stepwell.reasons.__all__) - {"Reason"}}
    assert sorted(wanted - documented) == []


def test_no_link_leads_to_a_page_that_is_not_there(pages: Path) -> None:
    """Also those that are written as HTML, or made from files outside of docs/."""
    lost = []
    for page in pages.rglob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"#?:]+)[#?"]', page.read_text("utf-8")):
            if not (page.parent / link).exists():
                lost.append(f"{page.relative_to(pages)}: {link}")
    assert lost == []


WRITTEN = re.compile(r"^ *\.\. auto(?:function|method|class):: ([\w.]+)\((.+)\)$", re.MULTILINE)


def parameters(of: str) -> set[str]:
    """Return what a function may be given, in any of its overloads, also what it takes as typed options."""
    path = of.removeprefix("stepwell.flow.builder.")
    thing = attrgetter(path)(builder if path != of else stepwell)
    shapes = [inspect.signature(each).parameters.values() for each in (thing, *get_overloads(thing))]
    found = {each.name for shape in shapes for each in shape}
    return found | set(StartOptions.__annotations__) if "options" in found else found


@pytest.mark.parametrize("page", ["authoring", "flow", "runners", "client"])
def test_a_signature_written_by_hand_is_that_of_the_code(page: str) -> None:
    """Where the reference shows one signature instead of an overload for each kind of step."""
    text = (DOCS / "reference" / f"{page}.md").read_text("utf-8")
    prefix = ""
    for line in text.splitlines():
        prefix = opened[1] if (opened := re.match(r"\.\. autoclass:: ([\w.]+)", line)) else prefix
        if written := WRITTEN.match(line):
            name = f"{prefix}.{written[1]}" if line.startswith(" ") else written[1]
            told = ast.parse(f"def f({written[2]}): pass").body[0]
            assert isinstance(told, ast.FunctionDef)
            each = [*told.args.posonlyargs, *told.args.args, *told.args.kwonlyargs]
            assert {arg.arg for arg in each} <= parameters(name), name
