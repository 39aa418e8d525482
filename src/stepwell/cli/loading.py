"""Finding the workflow that ``module:workflow`` or ``path/to/file.py:workflow`` names.

The current folder is on ``sys.path``, as with ``python -m``; a file is imported under its own name, with its folder
there too, so that what it imports beside itself and what runs in other processes finds the same module.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from .mistakes import Mistake, refuse

if TYPE_CHECKING:
    from stepwell.flow.workflow import AnyWorkflow


def load_workflow(target: str) -> AnyWorkflow:
    """Return a workflow; a task stands for the workflow of that one step. Raises Mistake."""
    place, _, name = target.partition(":")
    module = load_module(place)
    return _workflow(module, place, name)


def load_deps(target: str | None) -> Mapping[Any, object] | None:
    """Return what ``--deps module:name`` names: a mapping by type, or a function that makes one."""
    if target is None:
        return None
    place, colon, name = target.partition(":")
    found: object = getattr(load_module(place), name, None) if colon else None
    if callable(found) and not isinstance(found, Mapping):
        found = found()
    if not isinstance(found, Mapping):
        refuse(f"--deps {target} is no mapping of types to values, and no function that returns one")
    return cast("Mapping[Any, object]", found)


def load_module(place: str) -> ModuleType:
    """Import a module by its name or file. Raises Mistake for what cannot be imported."""
    if not place:
        refuse("say where the workflow is: module:workflow, or path/to/file.py:workflow")
    try:
        return _from_file(Path(place)) if place.endswith(".py") or "/" in place else _by_name(place)
    except Mistake:
        raise
    except SystemExit as left:
        refuse(f"{place} leaves the program while it is imported ({left}); put that under if __name__ == '__main__'")
    except Exception as error:  # noqa: BLE001  # it is the user's code, which may raise anything
        refuse(f"{place} cannot be imported: {_described(error)}")


def _described(error: Exception) -> str:
    """Return what went wrong in the user's code, and where."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "importlib" not in f.filename and not f.filename.startswith(str(_OURS))]
    where = f"{own[-1].filename}:{own[-1].lineno}: " if own else ""
    text = str(error)
    return f"{where if where not in text else ''}{type(error).__name__}: {text}"


_OURS = Path(__file__).parents[1]


def _by_name(name: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise  # the module is there; what it imports is not
        as_file = Path(name.replace(".", "/") + ".py")
        near = get_close_matches(name, [path.stem for path in Path.cwd().glob("*.py")], 1)
        mend = f"; did you mean {near[0]}?" if near else f"; there is no {as_file} in {folder} either"
        refuse(f"there is no module {name}{mend}")


def _from_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        folder = path.parent
        near = get_close_matches(path.name, [p.name for p in folder.glob("*.py")] if folder.is_dir() else [], 1)
        refuse(f"there is no file {path}" + (f"; did you mean {near[0]}?" if near else ""))
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    if known is not None or path.stem in sys.stdlib_module_names:
        refuse(f"{path.name} has the name of a module that Python uses itself; rename it")
    spec = util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


# --- inside the module ----------------------------------------------------------------------------


def workflows_of(module: ModuleType) -> dict[str, AnyWorkflow]:
    """Return the workflows that a module has, by the names they have there."""
    from stepwell.flow.workflow import Workflow

    return {name: value for name, value in vars(module).items() if isinstance(value, Workflow)}


def _workflow(module: ModuleType, place: str, name: str) -> AnyWorkflow:
    known = workflows_of(module)
    if not name:
        return _only_one(known, place)
    found = known.get(name) or next((w for w in known.values() if w.name == name), None)
    if found is not None:
        return found
    return _other(module, place, name, known)


def _only_one(known: dict[str, AnyWorkflow], place: str) -> AnyWorkflow:
    different = {id(workflow): workflow for workflow in known.values()}
    if len(different) == 1:
        return next(iter(different.values()))
    if not known:
        refuse(f"{place} has no workflow; a function becomes one under @workflow, or by Flow(…).build()")
    return refuse(
        f"{place} has several workflows; say which: " + ", ".join(f"{place}:{name}" for name in sorted(known))
    )


def _other(module: ModuleType, place: str, name: str, known: dict[str, AnyWorkflow]) -> AnyWorkflow:
    from stepwell.flow.builder import Flow
    from stepwell.flow.task import Task

    found = getattr(module, name, None)
    if isinstance(found, Task):
        task = cast("Task[..., Any]", found)
        return Flow(task.name).then(task).build()
    if found is not None:
        refuse(f"{place}:{name} is a {type(found).__name__}, not a workflow{_known(place, known)}")
    near = get_close_matches(name, known, 1, 0.5)
    return refuse(f"{place} has no {name}" + (f"; did you mean {place}:{near[0]}?" if near else _known(place, known)))


def _known(place: str, known: dict[str, AnyWorkflow]) -> str:
    return f"; its workflows: {', '.join(sorted(known))}" if known else f"; {place} has no workflow"
