"""What `import stepwell` promises: its names, its cost, and its types."""

from __future__ import annotations

import ast
import importlib.resources
import inspect
import re
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from types import FunctionType

import pytest

import stepwell

#: modules that a program which only defines tasks and workflows must not pay for
DEAR = (
    "apsw",
    "asyncio",
    "attr",
    "click",
    "concurrent.futures",
    "multiprocessing",
    "pydantic",
    "rich",
    "sqlite3",
    "ssl",
)

DEFINING = """
import stepwell
@stepwell.task
def t(x: int) -> int: return x
@stepwell.workflow
def w(x: int) -> int: return t(x)
"""


def imported_by(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter has after a statement."""
    done = subprocess.run(  # our own statement
        [sys.executable, "-c", f"{statement}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(stepwell.__file__).parents[1])},
    )
    return set(done.stdout.split())


def test_all_is_sorted_and_whole() -> None:
    """Every name of __all__ exists, and every name bound on purpose is in it."""
    assert list(stepwell.__all__) == sorted(stepwell.__all__)
    assert len(set(stepwell.__all__)) == len(stepwell.__all__)
    for name in stepwell.__all__:
        assert getattr(stepwell, name) is not None
    assert set(dir(stepwell)) == set(stepwell.__all__)


def test_every_exception_and_front_end_is_exported() -> None:
    """errors.py in full, and whatever __init__ imports."""
    errors = {
        name
        for name, kind in vars(stepwell.errors).items()
        if isinstance(kind, type) and kind.__module__ == "stepwell.errors"
    }
    assert errors <= set(stepwell.__all__)
    tree = ast.parse(Path(stepwell.__file__).read_text())
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]
    bound = {alias.asname or alias.name for node in imports for alias in node.names}
    assert bound <= set(stepwell.__all__)


def test_names_that_are_imported_later_are_the_real_ones() -> None:
    """And the same object every time."""
    from stepwell.runtime.checkpointing import CheckpointingRunner

    assert stepwell.CheckpointingRunner is CheckpointingRunner
    assert stepwell.CheckpointingRunner is stepwell.CheckpointingRunner


def test_an_unknown_name_is_an_attribute_error() -> None:
    """With the name."""
    with pytest.raises(AttributeError, match="nonsense"):
        stepwell.nonsense  # noqa: B018 - looking it up is the point


def test_importing_stepwell_is_cheap() -> None:
    """Defining a workflow loads no event loop, no database and no terminal library."""
    assert not imported_by("import stepwell") & set(DEAR)
    assert not imported_by(DEFINING) & {"apsw", "asyncio", "click", "pydantic", "rich", "sqlite3"}


def test_running_sync_tasks_in_memory_loads_no_event_loop_and_no_database() -> None:
    """What is not used is not paid for."""
    found = imported_by(DEFINING + "with stepwell.InProcessRunner() as r: assert r.run(w, 1) == 1")
    assert not found & {"apsw", "asyncio", "click", "pydantic", "rich", "sqlite3"}


def test_the_package_says_that_it_is_typed() -> None:
    """py.typed is there, and is found as an installed resource."""
    assert importlib.resources.files("stepwell").joinpath("py.typed").is_file()


def test_the_testing_package_exports_the_clock() -> None:
    """As public API for users' own tests."""
    import stepwell.testing

    assert list(stepwell.testing.__all__) == sorted(stepwell.testing.__all__)
    assert "VirtualClock" in stepwell.testing.__all__


# --- docstrings -------------------------------------------------------------------------------

#: what users are given and need not call, or what only stands for a shape; no example would say more
GIVEN = {"Backend", "Chain", "Decision", "__version__"}
DOCUMENTED = [name for name in stepwell.__all__ if name not in GIVEN]
#: what decorators and typed options hide behind
UNTOLD = {"args", "fn", "kwargs", "options"}
#: made by stepwell only
MADE = {"ConflictPolicy", "Explanation", "Task", "TaskContext", "Workflow", "WorkerHandle"}
METHODS = FunctionType, classmethod, property, cached_property
FRONTS = [
    stepwell.AsyncCheckpointingRunner,
    stepwell.AsyncInProcessRunner,
    stepwell.AsyncWorkflowClient,
    stepwell.CheckpointingRunner,
    stepwell.Flow,
    stepwell.InProcessRunner,
    stepwell.PooledWorker,
    stepwell.Task,
    stepwell.TaskContext,
    stepwell.WorkerHandle,
    stepwell.Workflow,
    stepwell.WorkflowClient,
]


def is_error(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, BaseException)


def told(thing: object) -> str:
    """Return a docstring that is the thing's own, without its indentation."""
    return inspect.cleandoc(getattr(thing, "__doc__", None) or "")


@pytest.mark.parametrize("name", [name for name in DOCUMENTED if not is_error(getattr(stepwell, name))])
def test_a_public_name_shows_how_it_is_used(name: str) -> None:
    """By an example, and with every parameter that can be given; a twin's are those of its twin."""
    thing = getattr(stepwell, name)
    text = told(thing)
    assert "Example:" in text
    text += told(getattr(stepwell, name.removeprefix("Async")))
    given = inspect.signature(thing).parameters if name not in MADE else {}
    assert [each for each in given if each not in UNTOLD and not re.search(rf"\b{each}\b", text)] == []


@pytest.mark.parametrize("name", [name for name in DOCUMENTED if is_error(getattr(stepwell, name))])
def test_a_public_error_says_when_it_is_raised(name: str) -> None:
    """In a sentence of its own."""
    text = told(getattr(stepwell, name))
    assert text.partition("\n")[0].endswith(".")
    assert "__doc__" in vars(getattr(stepwell, name))


@pytest.mark.parametrize("kind", FRONTS, ids=lambda kind: kind.__name__)
def test_every_method_of_a_front_is_explained(kind: type) -> None:
    """In words of its own, or by naming the twin that has them."""
    public = {name: each for name, each in vars(kind).items() if not name.startswith("_")}
    methods = {name: each for name, each in public.items() if isinstance(each, METHODS)}
    assert methods
    assert [name for name, each in methods.items() if not told(getattr(each, "__func__", each))] == []
