"""Span and trace ids that every process works out alike.

An attempt that a killed process had begun runs again under the same number, in another process, and has the same span
id there. So whatever the first process had exported below it has its parent after all, and nobody has to store an id.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import blake2b


def run_hash(backend_id: str, instance_id: str, run: int) -> blake2b:
    """Return the common beginning of all ids of one run."""
    return _fed(hashlib.blake2b(digest_size=16), (backend_id, instance_id, run))


def trace_id(run: blake2b) -> int:
    """Return the id of the trace of a run that was started without one."""
    return _number(_fed(run.copy(), ("trace",)), 16)


def span_id(run: blake2b, *parts: object) -> int:
    """Return the id of one span of a run; no two lists of parts give the same."""
    return _number(_fed(run.copy(), parts), 8)


def _fed(digest: blake2b, parts: tuple[object, ...]) -> blake2b:
    for part in parts:
        text = str(part).encode("utf-8", "surrogatepass")
        digest.update(len(text).to_bytes(4, "big") + text)
    return digest


def _number(digest: blake2b, size: int) -> int:
    return int.from_bytes(digest.digest()[:size], "big") or 1  # 0 means "no id" to everybody
