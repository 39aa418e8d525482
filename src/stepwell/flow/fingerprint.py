"""Who a node and a graph are, so that an instance knows whether it still fits the code.

A node's *interface* is its kind, name, types and declared version. The graph's fingerprint covers every interface and
the wiring. Timeouts, retries, priorities, tags and function bodies are in neither: tuning them strands no instance.
Both are SHA-256 over MessagePack, which prefixes every length, of names and type texts without module paths: stable
across Python versions, hash seeds and file moves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from .plan import PlanNode


def interface_of(node: PlanNode) -> str:
    """Return a node's interface fingerprint, 32 hex digits."""
    return _digest([node.kind, node.name, node.interface])


def wiring_of(node: PlanNode) -> str:
    """Return the fingerprint of where a node's values come from and when it may start."""
    return _digest([node.needs, node.args, node.kwargs, node.output, node.first])


def fingerprint_of(name: str, nodes: Sequence[PlanNode]) -> str:
    """Return the fingerprint of a whole graph, 32 hex digits."""
    return _digest([name, [[node.parent, interface_of(node), wiring_of(node)] for node in nodes]])


def _digest(parts: object) -> str:
    return hashlib.sha256(msgspec.msgpack.encode(parts)).hexdigest()[:32]
