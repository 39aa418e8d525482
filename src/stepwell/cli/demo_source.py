"""Reading Python source: what the demo's job finds out about the standard library. Plain functions, no workflow."""

from __future__ import annotations

import ast
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Tests, applications and generated tables would drown what the library itself is like.
_SKIPPED: Final = frozenset(
    ("__pycache__", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tests", "turtledemo")
)
_DECISIONS: Final = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)
_NESTING: Final = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.With, ast.AsyncWith, ast.Match)
_DEFINITIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_BLOCKS: Final = ("body", "orelse", "finalbody", "handlers", "cases")


@dataclass(frozen=True)
class Module:
    """A source file and the name it is imported by."""

    name: str
    path: str


@dataclass(frozen=True)
class Function:
    """A function, method or nested function. ``lines`` counts its decorators, signature and body."""

    module: str
    name: str
    line: int
    lines: int
    decisions: int


@dataclass(frozen=True)
class Size:
    """Lines of a file or a whole library: all, blank, comments, docstrings."""

    lines: int = 0
    blank: int = 0
    comments: int = 0
    docstrings: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(
            self.lines + other.lines,
            self.blank + other.blank,
            self.comments + other.comments,
            self.docstrings + other.docstrings,
        )

    @property
    def prose(self) -> float:
        """The share of lines that are written for people, 0 to 1."""
        return (self.comments + self.docstrings) / max(1, self.lines)


def find_modules(limit: int) -> list[Module]:
    """Return at most ``limit`` modules of the standard library, spread evenly over the alphabet."""
    root = Path(sysconfig.get_path("stdlib"))
    found = sorted(_modules_under(root), key=lambda module: module.name)
    step = max(1.0, len(found) / max(1, limit))
    return [found[int(i * step)] for i in range(min(limit, len(found)))]


def _modules_under(root: Path) -> Iterator[Module]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED and name.isidentifier()]
        for file in files:
            path = Path(folder, file)
            if path.suffix == ".py" and path.stem.isidentifier():
                parts = path.relative_to(root).with_suffix("").parts
                yield Module(".".join(parts).removesuffix(".__init__"), str(path))


def parse(module: Module) -> ast.Module:
    """Return the syntax tree of a module, an empty one if this Python cannot read it."""
    try:
        return ast.parse(Path(module.path).read_bytes())
    except (SyntaxError, ValueError):
        return ast.Module([], [])


def blocks_of(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements, handlers and cases directly inside a node."""
    for field in _BLOCKS:
        yield from getattr(node, field, ())


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and every statement inside it; expressions, most of a tree, are passed over."""
    todo = [node]
    while todo:
        node = todo.pop()
        yield node
        todo += blocks_of(node)


def functions_in(module: Module) -> Iterator[Function]:
    """Yield every function of a module, nested ones under their qualified names."""
    todo: list[tuple[ast.AST, str]] = [(parse(module), "")]
    while todo:
        node, prefix = todo.pop()
        for child in blocks_of(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield _function(module.name, f"{prefix}{child.name}", child)
            inner = f"{prefix}{child.name}." if isinstance(child, _DEFINITIONS) else prefix
            todo.append((child, inner))


def _function(module: str, name: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Function:
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    decisions = sum(isinstance(inner, _DECISIONS) for inner in statements(node))
    return Function(module, name, node.lineno, (node.end_lineno or node.lineno) - first + 1, decisions)


def imports_of(module: Module) -> set[str]:
    """Return the names of the top-level modules that a module imports, anywhere in its text."""
    found: set[str] = set()
    for node in statements(parse(module)):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
    return found


def size_of(module: Module) -> Size:
    """Count the lines of a module by what they are."""
    lines = [line.strip() for line in Path(module.path).read_bytes().splitlines()]
    comments = sum(line.startswith(b"#") for line in lines)
    return Size(len(lines), lines.count(b""), comments, sum(map(_docstring_lines, statements(parse(module)))))


def _docstring_lines(node: ast.AST) -> int:
    if not isinstance(node, (*_DEFINITIONS, ast.Module)) or ast.get_docstring(node, clean=False) is None:
        return 0
    return (node.body[0].end_lineno or 0) - node.body[0].lineno + 1


def deepest_nesting(function: Function, modules: list[Module]) -> int:
    """Return how many blocks stand inside each other at most in one function; 0 if it is not found."""
    for module in modules:
        if module.name == function.module:
            found = (each for each in statements(parse(module)) if getattr(each, "lineno", 0) == function.line)
            return max((_depth(each) for each in found), default=0)
    return 0


def _depth(function: ast.AST) -> int:
    deepest, todo = 0, [(function, 0)]
    while todo:
        node, depth = todo.pop()
        deepest = max(deepest, depth)
        todo += [(child, depth + _opens(node, child)) for child in blocks_of(node)]
    return deepest


def _opens(node: ast.AST, child: ast.AST) -> bool:
    """Whether a child stands one block deeper than its parent; an ``elif`` does not, though the tree nests it."""
    if isinstance(node, ast.If) and isinstance(child, ast.If) and child in node.orelse:
        return False
    return isinstance(node, _NESTING)
