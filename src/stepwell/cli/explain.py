"""``stepwell explain``: why an instance does not move, and what would move it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .common import database_option, instance_argument, json_option, opened, subcommand, times_of, utc_option
from .page import Line, Span, columns_of_terminal, hanging, is_fancy, say, say_json, sign, state_span, style_of

if TYPE_CHECKING:
    from stepwell.runtime.explaining import Explanation

    from .plainly import Saying


@subcommand("explain", "stepwell explain order-42", "stepwell explain order-42 --json")
@instance_argument
@database_option
@utc_option
@json_option
def command(instance_id: str, db: str | None, utc: bool, as_json: bool) -> None:
    """Say why an instance does not move, and what would move it.

    One paragraph for each open step: how it stands and why. What you could do about it follows as commands that can
    be copied.
    """
    from .plainly import Sayer

    with opened(db) as at:
        explanation = at.client.explain(instance_id)
        sayings = Sayer(at, explanation, times_of(utc)).all()
    if as_json:
        say_json(explained_data(explanation, sayings))
    else:
        say(*explained(explanation, sayings, columns_of_terminal()))


def explained(explanation: Explanation, sayings: list[Saying], space: int) -> list[Line]:
    """Return the page for people."""
    from .plainly import summary

    head = [Span(explanation.instance_id, "bold"), Span("  "), state_span(explanation.state), Span("  ")]
    lines = hanging(head, Span(summary(explanation, sayings)), space, indent=2)
    for saying in sayings:
        lines += [[], *_paragraph(saying, space)]
    for message in explanation.pending:
        lines += [[], *hanging([Span("  ")], Span(f"On its way, not taken in yet: {message}."), space)]
    return lines


def _paragraph(saying: Saying, space: int) -> list[Line]:
    style = style_of(saying.state)
    head = [Span("  "), Span(f"{sign(saying.state)} ", style), Span(saying.path or "the instance", "bold"), Span("  ")]
    lines = hanging(head, Span(saying.text), space, indent=4)
    arrow = "→ " if is_fancy() else "> "
    for command in saying.commands:
        lines += hanging([Span("    "), Span(arrow, "cyan")], Span(command, "cyan"), space)
    return lines


def explained_data(explanation: Explanation, sayings: list[Saying]) -> dict[str, Any]:
    import dataclasses

    told = [
        {
            **{field.name: getattr(reason, field.name) for field in dataclasses.fields(reason)},
            "kind": reason.kind,
            "text": saying.text,
            "commands": list(saying.commands),
        }
        for reason, saying in zip(explanation.reasons, sayings, strict=True)
    ]
    return {
        "id": explanation.instance_id,
        "workflow": explanation.workflow,
        "state": explanation.state,
        "reasons": told,
        "pending": list(explanation.pending),
    }
