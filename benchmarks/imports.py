"""How long an import takes: a fresh interpreter that does it, less one that does nothing, side by side."""

from __future__ import annotations

import subprocess
import sys
import time

FRESH = 5


def import_ms(statement: str) -> float:
    """Return the median milliseconds that a fresh interpreter needs more than a bare one."""
    _run(statement)  # byte code is compiled and files are read once before
    return sorted(_run(statement) - _run("pass") for _ in range(FRESH))[FRESH // 2] * 1e3


def _run(statement: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, capture_output=True)  # noqa: S603 - this interpreter, on statements of this file
    return time.perf_counter() - began
