"""A W3C trace context as the store keeps it: checked, and no longer than the standard lets every system keep.

What is malformed is dropped, as the standard says, and is never an error of what somebody does within that context.
"""

from __future__ import annotations

import re
from typing import Final

STATE_CHARS: Final = 512
TRACE_CHARS: Final = 55 + 1 + STATE_CHARS
"""The longest text that :func:`kept` returns."""

_LONG: Final = 128  # members that are longer go first
_MEMBERS: Final = 32
_PARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_MEMBER: Final = re.compile(r"([a-z0-9][a-z0-9_\-*/@]{0,255})=[ !-+\--<>-~]{0,255}[!-+\--<>-~]")


def kept(parent: str, state: str = "") -> str:
    """Return ``traceparent`` and after a space ``tracestate`` as far as they are valid; ``""`` without a valid parent.

    A ``tracestate`` over 512 characters loses members: first those over 128, then the last ones.
    """
    if not _PARENT.fullmatch(parent):
        return ""
    return " ".join(filter(None, (parent, _state(state))))


def _state(text: str) -> str:
    members = [member for each in text.split(",") if (member := each.strip(" \t"))]
    keys = {found[1] for each in members if (found := _MEMBER.fullmatch(each))}
    if len(keys) != len(members) or len(members) > _MEMBERS:
        return ""
    return ",".join(_short(members))


def _short(members: list[str]) -> list[str]:
    for dispensable in ([each for each in members if len(each) > _LONG], members):
        for member in reversed(dispensable):
            if len(",".join(members)) <= STATE_CHARS:
                return members
            members = [each for each in members if each != member]
    return members
