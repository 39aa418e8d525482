"""The plan: a workflow as a flat table of pure data, and the derived columns that the engine reads.

A plan holds no callable, type object or constant, so it can be stored, compared and advanced by a process that has no
workflow code. Every node knows its parent. Nodes whose parent is a *sequence* run one after the other; nodes whose
parent is *parallel* start when the siblings they need are done. The kinds:

========  =========  ====================================================================
kind      children   meaning
========  =========  ====================================================================
root      sequence   the workflow itself, node 0
branch    sequence   one named line inside a parallel
case      sequence   one choice of a route
turn      sequence   a loop's body; its value tagged ``again`` or ``done`` says what follows
child     sequence   an inlined workflow
timeout   sequence   what follows when a signal does not come
parallel  by need    order is data flow; its end waits for all
route     one case   a step that computes a key, then the chosen case
loop      the turn   its turns are numbered from 1
signal    a timeout  waits for a message
delay     none       waits for a moment
task      none       user code
pack      none       builds a value from others (a selection, a constant, a display)
input     none       a place in the table for the value a root or turn is entered with; never opened
========  =========  ====================================================================

A value is known by its producer and the turns around it. ``drops`` says after which node a value is read for the last
time, so that the engine's state holds only what is still needed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Final, Literal, TypeAlias

import msgspec

from stepwell.seal import seal, unseal

Kind: TypeAlias = Literal[
    "root", "branch", "case", "turn", "child", "timeout",
    "parallel", "route", "loop", "signal", "delay", "task", "pack", "input",
]  # fmt: skip

SEQUENCES: Final = frozenset({"root", "branch", "case", "turn", "child", "timeout"})
BODIED: Final = frozenset({"task", "pack", "route"})  # something must be computed by the hands
NONE: Final = -1

PLAN_VERSION: Final = 1


class Ref(msgspec.Struct, frozen=True, tag="ref", array_like=True):
    """The value of a node of this plan."""

    node: int


class Selected(msgspec.Struct, frozen=True, tag="select", array_like=True):
    """A part of another source."""

    base: Arg
    steps: tuple[tuple[str, str | int | bool | None], ...]


class Constant(msgspec.Struct, frozen=True, tag="const", array_like=True):
    """The ``index``-th constant of the workflow; ``digest`` stands for its value in the fingerprint."""

    index: int
    digest: str


class Built(msgspec.Struct, frozen=True, tag="build", array_like=True):
    """A list, tuple or dict around other sources; dict keys are given as constants."""

    kind: str
    items: tuple[Arg, ...]
    keys: tuple[Constant, ...] = ()


Arg: TypeAlias = Ref | Selected | Constant | Built


class RetryNumbers(msgspec.Struct, frozen=True, array_like=True):
    """A retry policy without its exception types, which stay with the code."""

    attempts: int = 1
    delay_us: int = 1_000_000
    factor: float = 2.0
    max_delay_us: int = 3_600_000_000
    jitter: float = 0.1


NO_RETRY: Final = RetryNumbers()


class PlanNode(msgspec.Struct, frozen=True, omit_defaults=True):
    """One row of the plan. ``name`` is the path segment; ``depth`` the number of loops around it.

    ``needs`` are siblings inside a parallel that must be done first; ``output`` is the node whose value a sequence
    yields, ``first`` the one whose value a loop starts with; ``interface`` is the text that the interface fingerprint
    hashes.
    """

    kind: Kind
    name: str
    parent: int
    depth: int = 0
    children: tuple[int, ...] = ()
    needs: tuple[int, ...] = ()
    args: tuple[Arg, ...] = ()
    kwargs: tuple[tuple[str, Arg], ...] = ()
    output: int = NONE
    first: int = NONE
    interface: str = ""
    was: str = ""
    task: str = ""
    retry: RetryNumbers = NO_RETRY
    timeout_us: int = 0
    duration_us: int = 0
    signal: str = ""
    max_iterations: int = 0
    on_max: str = ""
    on_error: str = ""
    delivery: str = ""
    priority: int = 3
    tags: tuple[str, ...] = ()


class PlanData(msgspec.Struct, frozen=True):
    """What is stored of a plan."""

    version: int
    name: str
    nodes: tuple[PlanNode, ...]
    fingerprint: str


_TURN: Final = re.compile(r"([^\[\]]+)\[([1-9][0-9]{0,8})\]")

Turns: TypeAlias = tuple[int, ...]
Key: TypeAlias = tuple[int, Turns]


class Plan:
    """A workflow's table with the columns that make one advance cheap.

    Attributes:
        bodied: whether something must be computed by the hands.
        used: whether anybody reads a node's value.
        waiters: siblings in a parallel that need this node.
        drops: values read for the last time by this node.
        following: the next node of the same sequence, or ``NONE``.
    """

    __slots__ = (
        "bodied", "data", "depth", "drops", "fingerprint", "following", "in_parallel", "kind", "name", "nodes",
        "parent", "retry", "scratch", "signals", "used", "waiters",
    )  # fmt: skip

    def __init__(self, data: PlanData) -> None:
        self.data = data
        self.name = data.name
        self.nodes = nodes = data.nodes
        self.fingerprint = data.fingerprint
        self.kind: list[Kind] = [n.kind for n in nodes]
        self.parent = [n.parent for n in nodes]
        self.depth = [n.depth for n in nodes]
        self.bodied = [n.kind in BODIED for n in nodes]
        self.retry = [n.retry for n in nodes]
        self.in_parallel = [n.parent >= 0 and nodes[n.parent].kind == "parallel" for n in nodes]
        self.following = _following(nodes)
        self.waiters = _waiters(nodes)
        self.drops = _drops(nodes, self.following)
        self.used = _used(nodes)
        self.signals = {n.signal for n in nodes if n.kind == "signal"}
        #: facts that carry no run-time data, built by the engine the first time they are decided
        self.scratch: dict[int, object] = {}

    def path(self, node: int, turns: Turns = ()) -> str:
        """Return a node's address by names, ``refine[3]/draft``, below the workflow's own name."""
        return "/".join(reversed([self._segment(n, turns) for n in self._upwards(node)]))

    def _segment(self, node: int, turns: Turns) -> str:
        if self.kind[node] == "loop" and len(turns) > self.depth[node]:
            return f"{self.nodes[node].name}[{turns[self.depth[node]]}]"
        return self.nodes[node].name

    def _upwards(self, node: int) -> Iterator[int]:
        while node > 0:
            if self.kind[node] != "turn":
                yield node
            node = self.parent[node]

    def find(self, path: str) -> Key | None:
        """Return the node and turns that ``path`` names, or ``None``; each loop on the way must say its turn."""
        node = 0
        turns: Turns = ()
        for segment in path.split("/") if path else ():
            name, turn = _split_segment(segment)
            node = next((c for c in self._named_children(node) if self.nodes[c].name == name), NONE)
            if node == NONE or len(turns) != self.depth[node] or (turn and self.kind[node] != "loop"):
                return None
            turns = (*turns, turn) if turn else turns
        return node, turns

    def _named_children(self, node: int) -> Iterator[int]:
        for child in self.nodes[node].children:
            if self.kind[child] == "turn":
                yield from self._named_children(child)
            elif self.kind[child] != "input":
                yield child

    def to_bytes(self) -> bytes:
        """Return the plan as it is stored."""
        return seal(msgspec.json.encode(self.data))

    @classmethod
    def from_bytes(cls, stored: bytes) -> Plan:
        """Return a stored plan. Raises ``msgspec.DecodeError`` for damaged bytes and for plans of a newer version."""
        data = msgspec.json.decode(unseal(stored), type=PlanData)
        if data.version != PLAN_VERSION:
            raise msgspec.DecodeError(f"the plan has version {data.version}, this stepwell reads {PLAN_VERSION}")
        return cls(data)


def _split_segment(segment: str) -> tuple[str, int]:
    match = _TURN.fullmatch(segment)
    return (match[1], int(match[2])) if match else (segment, 0)


def ordered_children(nodes: tuple[PlanNode, ...], node: int) -> list[int]:
    """Return the children that are opened, without the places for inputs."""
    return [c for c in nodes[node].children if nodes[c].kind != "input"]


def _following(nodes: tuple[PlanNode, ...]) -> list[int]:
    following = [NONE] * len(nodes)
    for index, node in enumerate(nodes):
        if node.kind in SEQUENCES:
            line = ordered_children(nodes, index)
            for before, after in itertools.pairwise(line):
                following[before] = after
    return following


def _waiters(nodes: tuple[PlanNode, ...]) -> list[tuple[int, ...]]:
    waiters: list[list[int]] = [[] for _ in nodes]
    for index, node in enumerate(nodes):
        for needed in node.needs:
            waiters[needed].append(index)
    return [tuple(w) for w in waiters]


# --- liveness of values -------------------------------------------------------------------


def refs(arg: Arg) -> Iterator[int]:
    """Yield the nodes whose values an argument reads."""
    match arg:
        case Ref(node):
            yield node
        case Selected(base):
            yield from refs(base)
        case Built(_, items):
            for item in items:
                yield from refs(item)
        case Constant():
            return


def reads(node: PlanNode) -> Iterator[int]:
    """Yield the nodes whose values a node reads when it is bound, entered or left."""
    for arg in node.args:
        yield from refs(arg)
    for _, arg in node.kwargs:
        yield from refs(arg)
    if node.output != NONE:
        yield node.output
    if node.first != NONE:
        yield node.first


def _used(nodes: tuple[PlanNode, ...]) -> list[bool]:
    used = [False] * len(nodes)
    for node in nodes:
        for read in reads(node):
            used[read] = True
    return used


def _drops(nodes: tuple[PlanNode, ...], following: list[int]) -> list[tuple[int, ...]]:
    """Say for each node which values nobody can read once it is done.

    A value belongs to the innermost scope around its producer and all its readers. In a sequence it dies with the last
    child that reads it (or that produced it); in a parallel, and when the scope itself yields it, with the scope.
    """
    lineage = _lineages(nodes)
    readers: list[list[int]] = [[] for _ in nodes]
    for index, node in enumerate(nodes):
        for read in reads(node):
            readers[read].append(index)
    drops: list[list[int]] = [[] for _ in nodes]
    place = {child: at for node in nodes for at, child in enumerate(node.children)}
    for value, who in enumerate(readers):
        if who:
            drops[_last_reader(nodes, lineage, place, value, who)].append(value)
    return [tuple(d) for d in drops]


def _lineages(nodes: tuple[PlanNode, ...]) -> list[tuple[int, ...]]:
    lines: list[tuple[int, ...]] = []
    for index, node in enumerate(nodes):
        lines.append((*lines[node.parent], index) if node.parent >= 0 else (index,))
    return lines


def _last_reader(
    nodes: tuple[PlanNode, ...], lineage: list[tuple[int, ...]], place: dict[int, int], value: int, who: list[int]
) -> int:
    lines = [lineage[value], *(lineage[w] for w in who)]
    shared = _shared_length(lines)
    owner = lines[0][shared - 1]
    if nodes[owner].kind in ("case", "timeout") and owner in who:
        return nodes[owner].parent  # a route or signal is done together with its case or timeout
    if nodes[owner].kind not in SEQUENCES or owner in who:
        return owner
    return max((line[shared] for line in lines), key=lambda child: place[child])


def _shared_length(lines: list[tuple[int, ...]]) -> int:
    shared = 0
    for column in zip(*lines, strict=False):
        if len(set(column)) > 1:
            break
        shared += 1
    return shared
