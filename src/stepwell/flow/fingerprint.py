"""Who a node and a graph are, so that an instance knows whether it still fits the code.

A node's *interface* is its kind, name, task, types and declared version. Its *wiring* is where its values come from, in
terms of places (paths by names) and not of row numbers, so that it can be compared between two graphs. The graph's
fingerprint covers every interface and wiring, and the order of the rows. Timeouts, retries, priorities, tags, limits of
turns and function bodies are in none of them: tuning them strands no instance. What a loop does at its limit is in its
interface, because ``on_max="last"`` lets its value be what a turn yields to go on with: another type.

All are SHA-256 over MessagePack, which prefixes every length, of names and type texts without module paths: stable
across Python versions, hash seeds and file moves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from .plan import NONE, Arg, Built, Constant, PlanNode, Ref, Selected


def interface_of(node: PlanNode) -> str:
    """Return a node's interface fingerprint, 32 hex digits."""
    return _digest([node.kind, node.name, node.task, node.interface])


def places_of(nodes: Sequence[PlanNode]) -> list[str]:
    """Return every row's path by names from the root, which is ``""``; unlike paths for people it names turns too."""
    places: list[str] = []
    for node in nodes:
        above = places[node.parent] if node.parent >= 0 else ""
        places.append(f"{above}/{node.name}" if node.parent >= 0 else "")
    return places


def wiring_of(node: PlanNode, places: Sequence[str]) -> str:
    """Return the fingerprint of where a node's values come from and what it waits for in a parallel, 32 hex digits.

    Args:
        node: a row of a plan.
        places: what each row of that plan is called, usually by :func:`places_of`.
    """
    return _digest([sorted(places[need] for need in node.needs), sources_of(node, places), _place(node.output, places)])


def sources_of(node: PlanNode, places: Sequence[str]) -> object:
    """Return where the values come from that a node is bound or entered with, as data to compare."""
    return [
        [_described(arg, places) for arg in node.args],
        [[name, _described(arg, places)] for name, arg in node.kwargs],
        _place(node.first, places),
    ]


def _place(node: int, places: Sequence[str]) -> str | None:
    return places[node] if node != NONE else None


def _described(arg: Arg, places: Sequence[str]) -> object:
    match arg:
        case Ref(node):
            return places[node]
        case Selected(base, steps):
            return ["select", _described(base, places), [list(step) for step in steps]]
        case Constant(_, digest):
            return ["const", digest]
        case Built(kind, items, keys):
            return ["build", kind, [_described(item, places) for item in items], [key.digest for key in keys]]


def fingerprint_of(name: str, nodes: Sequence[PlanNode]) -> str:
    """Return the fingerprint of a whole graph, 32 hex digits."""
    places = places_of(nodes)
    return _digest([name, [[node.parent, interface_of(node), wiring_of(node, places)] for node in nodes]])


def _digest(parts: object) -> str:
    return hashlib.sha256(msgspec.msgpack.encode(parts)).hexdigest()[:32]
