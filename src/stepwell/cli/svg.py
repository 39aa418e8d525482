"""A plan as an SVG picture: boxes for scopes, arrows for what follows what. Reads nothing but the plan.

A sequence goes downwards, the branches of a fork and the cases of a route stand side by side. Each part is laid out on
its own, from the inside to the outside, as a block with an entrance at the top and an exit at the bottom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

from stepwell.flow.plan import Plan, PlanNode
from stepwell.timing import span

from .steps import shown_children
from .text import clip, safe, width

GAP: Final = 22
PAD: Final = 14
TITLE: Final = 20
CHAR: Final = 7.4
LABEL_MOST: Final = 34

_STYLE: Final = """
text{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;fill:#1f2933}
.t{fill:#fff;stroke:#52606d;stroke-width:1.2}.n{fill:#7b8794;font-size:11px}
.s{fill:none;stroke:#9aa5b1;stroke-dasharray:4 3}.r{fill:#fff8e6;stroke:#b7791f}.d{fill:#eef4ff;stroke:#3b6fb6}
.e{fill:none;stroke:#7b8794;stroke-width:1.3;marker-end:url(#a)}.b{stroke-dasharray:3 3}
.done{fill:#e3f9e5;stroke:#2f8132}.failed{fill:#ffe3e3;stroke:#ab091e;stroke-width:2}.held{fill:#fff3c4;stroke:#cb6e17;
stroke-width:2}.running{fill:#d9f4ff;stroke:#0078a8;stroke-width:2}.waits{fill:#e6efff;stroke:#2b57c4;stroke-width:2}
@media(prefers-color-scheme:dark){text{fill:#e4e7eb}.t{fill:#26313d;stroke:#9aa5b1}.r{fill:#3a3018}.d{fill:#1d2b41}
.done{fill:#16361a}.failed{fill:#46151b}.held{fill:#43340d}.running{fill:#0c3344}.waits{fill:#1c2c52}}
"""


@dataclass(slots=True)
class Block:
    """A laid-out part: drawn from its own corner, entered and left at ``x`` of its upper and lower edge."""

    wide: float
    high: float
    x: float
    parts: list[str] = field(default_factory=list[str])

    def at(self, left: float, top: float) -> str:
        return f'<g transform="translate({left:.1f} {top:.1f})">{"".join(self.parts)}</g>'


def svg(plan: Plan, states: Mapping[int, str]) -> str:
    """Return a plan as an SVG document; ``states`` colours nodes by how their steps stand."""
    block = _Drawer(plan, states).sequence(list(shown_children(plan, 0)))
    title = _text(PAD, 24, plan.name, "", bold=True)
    wide, high = max(block.wide, CHAR * width(plan.name)) + 2 * PAD, block.high + 2 * PAD + 30
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide:.0f}" height="{high:.0f}" '
        f'viewBox="0 0 {wide:.0f} {high:.0f}" role="img" aria-label="{_label(plan.name)}"><style>{_STYLE}</style>'
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="#7b8794"/></marker></defs>{title}{block.at(PAD, 30 + PAD)}</svg>\n'
    )


def _label(text: str) -> str:
    return escape(safe(clip(text, LABEL_MOST)), quote=True)


def _text(x: float, y: float, text: str, kind: str, *, bold: bool = False, middle: bool = False) -> str:
    more = f' class="{kind}"' if kind else ""
    more += ' font-weight="bold"' if bold else ""
    more += ' text-anchor="middle"' if middle else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{_label(text)}</text>'


def _arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    if abs(x1 - x2) < 1:
        return f'<path class="e" d="M{x1:.1f} {y1:.1f}V{y2:.1f}"/>'
    turn = (y1 + y2) / 2
    return f'<path class="e" d="M{x1:.1f} {y1:.1f}V{turn:.1f}H{x2:.1f}V{y2:.1f}"/>'


class _Drawer:
    def __init__(self, plan: Plan, states: Mapping[int, str]) -> None:
        self.plan, self.states = plan, states

    def sequence(self, nodes: Sequence[int]) -> Block:
        """Return nodes below each other, an arrow between each two."""
        blocks = [self.node(node) for node in nodes]
        if not blocks:
            return Block(20, 8, 10, ['<path class="e" d="M10 0V8"/>'])
        x = max(block.x for block in blocks)
        made = Block(x + max(block.wide - block.x for block in blocks), 0, x)
        for at, block in enumerate(blocks):
            if at:
                made.parts.append(_arrow(x, made.high, x, made.high + GAP))
                made.high += GAP
            made.parts.append(block.at(x - block.x, made.high))
            made.high += block.high
        return made

    def node(self, node: int) -> Block:
        match self.plan.kind[node]:
            case "parallel":
                return self._boxed(node, self._beside([self._line(child) for child in shown_children(self.plan, node)]))
            case "branch" | "child":
                return self._boxed(node, self.sequence(list(shown_children(self.plan, node))))
            case "loop":
                return self._loop(node)
            case "route" | "signal":
                return self._ways(node)
            case _:
                return self._shape(node)

    def _line(self, child: int) -> tuple[str, Block]:
        """Return one branch of a parallel, with what it waits for."""
        needs = [self.plan.nodes[need].name for need in self.plan.nodes[child].needs if self._is_shown(need)]
        return (f"after {', '.join(needs)}" if needs else "", self.node(child))

    def _is_shown(self, node: int) -> bool:
        return self.plan.kind[node] not in ("input", "pack")

    def _beside(self, blocks: Sequence[tuple[str, Block]]) -> Block:
        """Return blocks side by side under their titles."""
        titled = TITLE if any(title for title, _ in blocks) else 0
        made = Block(0, titled + max((block.high for _, block in blocks), default=0), 0)
        for title, block in blocks:
            wide = max(block.wide, CHAR * width(title))
            made.wide += GAP if made.wide else 0
            if title:
                made.parts.append(_text(made.wide + wide / 2, 12, title, "n", middle=True))
            made.parts.append(block.at(made.wide + (wide - block.wide) / 2, titled))
            made.wide += wide
        made.x = made.wide / 2
        return made

    def _boxed(self, node: int, inner: Block) -> Block:
        title = _said(self.plan.nodes[node])
        wide = max(inner.wide, CHAR * width(title)) + 2 * PAD
        made = Block(wide, inner.high + 2 * PAD + TITLE, wide / 2)
        kind = self.states.get(node, "")
        made.parts.append(f'<rect class="s" rx="8" width="{wide:.1f}" height="{made.high:.1f}"/>')
        made.parts.append(_text(PAD, 17, ("✓ " if kind == "done" else "") + title, "n"))
        made.parts.append(inner.at(wide / 2 - inner.x if inner.x * 2 == inner.wide else PAD, PAD + TITLE))
        made.x = wide / 2 if inner.x * 2 == inner.wide else PAD + inner.x
        return made

    def _loop(self, node: int) -> Block:
        made = self._boxed(node, self.sequence(list(shown_children(self.plan, node))))
        right, low, top = made.wide, made.high - PAD, PAD + TITLE + 6
        made.parts.append(
            f'<path class="e b" d="M{made.x:.1f} {low:.1f}v6H{right + 12:.1f}V{top:.1f}H{right:.1f}"/>'
            + _text(right + 16, (low + top) / 2, "again", "n")
        )
        made.wide += 60
        return made

    def _shape(self, node: int) -> Block:
        row = self.plan.nodes[node]
        label, note = clip(row.name, LABEL_MOST), _note(row)
        wide = CHAR * max(width(label), width(note)) + 2 * PAD
        high = 46 if note else 32
        style = " ".join(["t", _KINDS.get(row.kind, ""), self.states.get(node, "")])
        rx = 16 if row.kind in ("delay", "signal") else 5
        parts = [
            f'<rect class="{style}" rx="{rx}" width="{wide:.1f}" height="{high}"/>',
            _text(wide / 2, 20, label, "", middle=True),
        ]
        if note:
            parts.append(_text(wide / 2, 36, note, "n", middle=True))
        return Block(wide, high, wide / 2, parts)

    def _ways(self, node: int) -> Block:
        """Return a route with its cases, or a signal with what follows when it does not come."""
        top = self._shape(node)
        cases = [child for child in self.plan.nodes[node].children if self._is_shown(child)]
        if not cases:
            return top
        ways = [(_way(self.plan.nodes[case]), self.sequence(list(shown_children(self.plan, case)))) for case in cases]
        if self.plan.kind[node] == "signal":
            ways.insert(0, ("it comes", Block(20, 8, 10)))
        below = self._beside(ways)
        wide = max(top.wide, below.wide)
        made = Block(wide, top.high + 2 * GAP + below.high, wide / 2)
        made.parts += [top.at(wide / 2 - top.x, 0), below.at(wide / 2 - below.x, top.high + GAP)]
        left = wide / 2 - below.x
        for title, block in ways:
            full = max(block.wide, CHAR * width(title))
            x = left + (full - block.wide) / 2 + block.x
            made.parts.append(_arrow(wide / 2, top.high, x, top.high + GAP))
            end = top.high + GAP + TITLE + block.high
            made.parts.append(_arrow(x, end, wide / 2, made.high))
            left += full + GAP
        return made


_KINDS: Final = {"route": "r", "delay": "d", "signal": "d"}


def _way(case: PlanNode) -> str:
    return case.name.partition("=")[2] or case.name


def _said(row: PlanNode) -> str:
    if row.kind == "loop":
        return f"{row.name}: at most {row.max_iterations} turns"
    return row.name if row.kind == row.name else f"{row.name} ({row.kind})"


def _note(row: PlanNode) -> str:
    match row.kind:
        case "delay":
            return f"delay {span(row.duration_us)}"
        case "signal":
            return f"signal {row.signal}" + (f", at most {span(row.timeout_us)}" if row.timeout_us else "")
        case "route":
            return "route"
        case _:
            return f"{row.retry.attempts} attempts" if row.retry.attempts > 1 else ""
