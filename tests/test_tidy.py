"""The house's own rules about source text, so that nobody has to remember them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

import stepwell
from stepwell.engine import facts

ROOT = Path(__file__).parents[1]
SOURCE = Path(stepwell.__file__).parent

FILE_LINES_MAX = 600
BODY_LINES_MAX = 45

#: tests that may name a sleep of some length, and why
SLEEPS = {
    "flow/test_trace.py",  # the workflow that awaits it is refused before anything sleeps
    "proxy.py",  # a slow network is what it makes
}

SOURCES = sorted(SOURCE.rglob("*.py"))
TESTS = sorted(Path(__file__).parent.rglob("*.py"))

# Written so that this file is not one of its own findings.
_UNFINISHED = re.compile("|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error"]))
_MACHINE = re.compile(r"(?<![\w.])/(?:home|root|work|tmp|Users|private|mnt)/|[A-Z]:\\\\Users")

Function = ast.FunctionDef | ast.AsyncFunctionDef

source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(SOURCE).as_posix())


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT).as_posix()}:{line}" if path.is_relative_to(ROOT) else f"{path.name}:{line}"


def body_lines(function: Function) -> int:
    """Return how many lines a function's body takes, without its docstring."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]


def called(node: ast.AST) -> str:
    """Return the last name of what a call calls, ``""`` if the node is none."""
    function = node.func if isinstance(node, ast.Call) else None
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


@source
def test_a_file_fits_a_head(path: Path) -> None:
    """At most 600 lines."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES_MAX


@source
def test_a_function_fits_a_screen(path: Path) -> None:
    """Its body has at most 45 lines, the docstring apart."""
    functions = [node for node in ast.walk(tree_of(path)) if isinstance(node, Function)]
    long = [f"{f.name} at line {f.lineno} has {body_lines(f)}" for f in functions if body_lines(f) > BODY_LINES_MAX]
    assert not long


@source
def test_a_module_says_what_it_is(path: Path) -> None:
    """Every module and package has a docstring."""
    assert ast.get_docstring(tree_of(path))


@source
def test_nothing_is_swallowed(path: Path) -> None:
    """No bare except, and no handler that does nothing at all."""
    handlers = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.ExceptHandler)]
    silent = [h.lineno for h in handlers if h.type is None or all(isinstance(line, ast.Pass) for line in h.body)]
    assert not silent


@source
def test_nothing_is_left_for_later(path: Path) -> None:
    """No marks for later, no stubs."""
    assert not _UNFINISHED.findall(path.read_text(encoding="utf-8"))


@source
def test_a_library_does_not_print(path: Path) -> None:
    """Only the command writes to the terminal; a text of code that a child process runs is no call."""
    if "cli" not in path.relative_to(SOURCE).parts:
        assert not [node.lineno for node in ast.walk(tree_of(path)) if called(node) == "print"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", stepwell.__all__)
def test_a_public_name_says_what_it_is(name: str) -> None:
    """With a docstring of its own, not one that is inherited or generated."""
    text = vars(stepwell).get(name, getattr(stepwell, name)).__doc__
    assert text
    assert not text.startswith(f"{name}(")


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.relative_to(TESTS[0].parent).as_posix())
def test_no_test_sleeps(path: Path) -> None:
    """A test that waits for time to pass is slow or wrong; sleep(0) only lets others go first."""
    if path.relative_to(Path(__file__).parent).as_posix() in SLEEPS:
        return
    sleeps = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call) and called(node) == "sleep"]
    assert not [where(path, node.lineno) for node in sleeps if [ast.unparse(a) for a in node.args] != ["0"]]


def test_no_path_of_somebodys_machine() -> None:
    """Neither in code nor in tests, nor in what people read."""
    texts = [*SOURCES, *TESTS]
    for folder, pattern in (("benchmarks", "*.py"), ("examples", "*.py"), ("docs", "*.md"), (".", "*.md")):
        texts += sorted((ROOT / folder).glob(pattern))
    found = [where(path, 0) for path in texts if _MACHINE.search(path.read_text(encoding="utf-8"))]
    assert not found


def test_the_format_on_paper_is_the_format_on_record() -> None:
    """Every example in docs/format.md is a line of a golden file."""
    text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    shown = [line for block in re.findall(r"```golden\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    golden = Path(__file__).parent / "golden"
    recorded = {line for path in golden.rglob("*.txt") for line in path.read_text(encoding="utf-8").splitlines()}
    assert len(shown) > 5
    assert set(shown) <= recorded


def test_the_format_on_paper_numbers_every_fact() -> None:
    """And names their fields in the order in which they are stored."""
    text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    rows = {int(n): (name, fields) for n, name, fields in re.findall(r"^\| (\d+) \| (\w+) \| (.*?) ?\|", text, re.M)}
    for kind in (*get_args(facts.Head), *get_args(facts.Consequence)):
        name, fields = rows.pop(kind.__struct_config__.tag)
        assert name == kind.__name__
        told = re.sub(r"\(.*?\)", "", fields)
        assert told.startswith("[[") or re.findall(r"\w+", told) == list(kind.__struct_fields__)
    assert not rows


# --- import cycles ----------------------------------------------------------------------------


def module_of(path: Path) -> str:
    parts = ("stepwell", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def run_at_import(body: list[ast.AST]) -> Iterator[ast.AST]:
    """Yield the statements that importing a module runs: not those of functions, nor those for type checkers."""
    for statement in body:
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            yield from run_at_import(statement.orelse)
        elif not isinstance(statement, Function):
            yield statement
            for part in ("body", "orelse", "finalbody", "handlers"):
                yield from run_at_import(getattr(statement, part, []))


def imports(path: Path, modules: set[str]) -> set[str]:
    """Return the modules of ours that importing this one imports."""
    package = module_of(path).split(".")[: None if path.name == "__init__.py" else -1]
    found: set[str] = set()
    for statement in run_at_import(tree_of(path).body):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            above = package[: len(package) - statement.level + 1] if statement.level else []
            base = ".".join([*above, *([statement.module] if statement.module else [])])
            names = {f"{base}.{alias.name}" for alias in statement.names}
            found |= names & modules or {base}
    return found & modules


def test_imports_go_round_in_no_circle() -> None:
    """Whatever module is imported first, it finds all others whole."""
    paths = {module_of(path): path for path in SOURCES}
    above = {module: imports(path, set(paths)) - {module} for module, path in paths.items()}
    while free := [module for module, needs in above.items() if not needs]:
        for module in free:
            del above[module]
        for needs in above.values():
            needs.difference_update(free)
    assert not above


def test_the_rules_see_what_they_are_for() -> None:
    """The trees are the real ones, and a broken rule would be found."""
    assert len(SOURCES) > 50
    assert imports(SOURCE / "engine" / "advance.py", {module_of(path) for path in SOURCES}) >= {
        "stepwell.engine.events",
        "stepwell.engine.frontier",
        "stepwell.flow.plan",
    }
    long = ast.parse("def f():\n    '''Say.'''\n" + "    1\n" * 46).body[0]
    assert isinstance(long, ast.FunctionDef)
    assert body_lines(long) == 46
    assert called(ast.parse("time.sleep(1)").body[0].value) == "sleep"  # type: ignore[attr-defined]
    assert _MACHINE.search("open('/ho" + "me/ann/x')")
