"""A plan as a picture: an indented tree for terminals, a Mermaid flowchart for documents.

Both read nothing but the plan, so that a client without workflow code can draw a stored one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from stepwell.timing import span

from .plan import Plan, PlanNode

_HIDDEN: Final = frozenset({"input", "pack"})


def text(plan: Plan) -> str:
    """Return the graph as a tree, one line per node.

    Example::

        checkout
        ├─ parallel
        │  ├─ charge
        │  └─ reserve
        └─ cooling-off (delay 1h)
    """
    return "\n".join([plan.name, *_branches(plan, 0, "")])


def _branches(plan: Plan, parent: int, indent: str) -> Iterator[str]:
    shown = _shown(plan, parent)
    for child in shown:
        last = child == shown[-1]
        yield f"{indent}{'└─ ' if last else '├─ '}{_line(plan.nodes[child])}"
        yield from _branches(plan, child, indent + ("   " if last else "│  "))


def _shown(plan: Plan, parent: int) -> list[int]:
    """Return the children that a reader knows of; a loop's turn is shown as the loop."""
    shown: list[int] = []
    for child in plan.nodes[parent].children:
        if plan.kind[child] == "turn":
            shown += _shown(plan, child)
        elif plan.kind[child] not in _HIDDEN:
            shown.append(child)
    return shown


def _line(node: PlanNode) -> str:
    note = _note(node)
    return f"{node.name} ({note})" if note else node.name


def _note(node: PlanNode) -> str:
    """Say what a node is, where its name does not."""
    match node.kind:
        case "delay":
            return f"delay {span(node.duration_us)}"
        case "signal":
            return f"signal, at most {span(node.timeout_us)}" if node.timeout_us else "signal"
        case "loop":
            return f"loop, at most {node.max_iterations}"
        case "parallel":
            return "parallel, waits for all" if node.on_error == "wait" else _kind(node)
        case "route" | "child" | "branch":
            return _kind(node)
        case _:
            return ""


def _kind(node: PlanNode) -> str:
    return node.kind if node.kind != node.name else ""


# --- Mermaid -----------------------------------------------------------------------------------


def mermaid(plan: Plan) -> str:
    """Return the graph as a Mermaid flowchart; scopes are boxes, arrows say what follows what.

    Inside a parallel an arrow means that a step waits for another's value.
    """
    chart = _Chart(plan)
    chart.sequence(0, "  ")
    return "\n".join(["flowchart TD", *chart.lines, *chart.edges])


@dataclass(slots=True)
class _Chart:
    """Lines and edges so far. Each drawing method returns the ids where its node begins and where it ends."""

    plan: Plan
    lines: list[str] = field(default_factory=list[str])
    edges: list[str] = field(default_factory=list[str])

    def sequence(self, parent: int, indent: str) -> tuple[list[str], list[str]]:
        begins: list[str] = []
        ends: list[str] = []
        for child in _shown(self.plan, parent):
            first, last = self.node(child, indent)
            self._connect(ends, first)
            begins, ends = begins or first, last
        return begins, ends

    def node(self, index: int, indent: str) -> tuple[list[str], list[str]]:
        match self.plan.kind[index]:
            case "parallel":
                return self._parallel(index, indent)
            case "branch" | "child" | "loop":
                return self._box(index, indent)
            case "route":
                return self._route(index, indent)
            case "signal":
                return self._signal(index, indent)
            case "delay":
                return self._shape(index, indent, "([", "])")
            case _:
                return self._shape(index, indent, "[", "]")

    def _shape(self, index: int, indent: str, opening: str, closing: str) -> tuple[list[str], list[str]]:
        label = _escaped(_line(self.plan.nodes[index]))
        self.lines.append(f'{indent}n{index}{opening}"{label}"{closing}')
        return [f"n{index}"], [f"n{index}"]

    def _box(self, index: int, indent: str) -> tuple[list[str], list[str]]:
        self.lines.append(f'{indent}subgraph n{index}["{_escaped(_line(self.plan.nodes[index]))}"]')
        begins, ends = self.sequence(index, indent + "  ")
        if self.plan.kind[index] == "loop":
            self._connect(ends, begins, "again")
        self.lines.append(f"{indent}end")
        return [f"n{index}"], [f"n{index}"]

    def _parallel(self, index: int, indent: str) -> tuple[list[str], list[str]]:
        self.lines.append(f'{indent}subgraph n{index}["{_escaped(_line(self.plan.nodes[index]))}"]')
        drawn = {child: self.node(child, indent + "  ") for child in _shown(self.plan, index)}
        for child, (begins, _) in drawn.items():
            for needed in self._needed(child):
                self._connect(drawn[needed][1], begins)
        self.lines.append(f"{indent}end")
        return [f"n{index}"], [f"n{index}"]

    def _needed(self, child: int) -> Iterator[int]:
        """Yield the siblings that a child waits for, also those behind a hidden one."""
        for needed in self.plan.nodes[child].needs:
            if self.plan.kind[needed] in _HIDDEN:
                yield from self._needed(needed)
            else:
                yield needed

    def _route(self, index: int, indent: str) -> tuple[list[str], list[str]]:
        here, _ = self._shape(index, indent, "{", "}")
        ends: list[str] = []
        for case in self.plan.nodes[index].children:
            ends += self._way(here, case, indent, self.plan.nodes[case].name)
        return here, list(dict.fromkeys(ends))

    def _signal(self, index: int, indent: str) -> tuple[list[str], list[str]]:
        here, ends = self._shape(index, indent, "[/", "/]")
        for timeout in self.plan.nodes[index].children:
            ends = [*ends, *self._way(here, timeout, indent, "timeout")]
        return here, list(dict.fromkeys(ends))

    def _way(self, here: list[str], sequence: int, indent: str, label: str) -> list[str]:
        """Draw a labelled way out of a node; one without steps of its own ends where it begins."""
        begins, ends = self.sequence(sequence, indent)
        self._connect(here, begins, label)
        return ends or here

    def _connect(self, ends: list[str], begins: list[str], label: str = "") -> None:
        arrow = f'-->|"{_escaped(label)}"|' if label else "-->"
        self.edges += [f"  {end} {arrow} {begin}" for end in ends for begin in begins]


def _escaped(label: str) -> str:
    return label.replace("#", "#35;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")
