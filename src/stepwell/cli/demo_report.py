"""The report of the demo's job, as Markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from stepwell.cli.demo_source import Function, Size


def report(
    modules: int,
    size: Size,
    imports: Mapping[str, int],
    packages: Mapping[str, int],
    functions: int,
    longest: Sequence[Function],
    remark: str,
) -> str:
    """Return the whole report."""
    parts = [
        f"# The standard library of Python {platform.python_version()}, read by its own parser",
        f"{modules} modules, {size.lines:,} lines, {functions:,} functions. {_shares(size)}",
        "## The ten longest functions",
        _table(
            ("function", "lines", "decisions", "where"),
            [(f"`{f.name}`", str(f.lines), str(f.decisions), f"{f.module}:{f.line}") for f in longest],
        ),
        remark,
        "## Imported most often",
        _table(("module", "by modules"), [(f"`{name}`", f"{n} ({n / modules:.0%})") for name, n in imports.items()]),
        "## Packages with the most modules",
        _table(("package", "modules"), [(f"`{name}`", str(n)) for name, n in packages.items()]),
    ]
    return "\n\n".join(parts) + "\n"


def _shares(size: Size) -> str:
    whole = max(1, size.lines)
    return (
        f"Of its lines {size.docstrings / whole:.0%} are docstrings, {size.comments / whole:.0%} comments "
        f"and {size.blank / whole:.0%} blank."
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def dissection(function: Function, depth: int, limit: int) -> str:
    """Return a paragraph on a function that is longer than it should be."""
    return (
        f"The longest, `{function.module}.{function.name}`, has {function.lines / limit:.1f} times the {limit} lines "
        f"that a function should have at the very most. It decides something every "
        f"{function.lines / max(1, function.decisions):.0f} lines, in blocks up to {depth} deep."
    )


def save(path: Path, text: str) -> None:
    """Write a file so that readers see all of it or none, even if this process dies meanwhile."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
