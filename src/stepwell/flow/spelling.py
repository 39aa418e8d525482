"""What a misspelt name was probably meant to be."""

from __future__ import annotations

from collections.abc import Iterable


def meant(name: str, known: Iterable[str], form: str = "{}") -> str:
    """Return ``" (did you mean …?)"`` with the known name nearest to ``name``, ``""`` where none is near.

    Example:
        >>> meant("atempts", ["attempts", "timeout"], "{}=")
        ' (did you mean attempts=?)'
    """
    from difflib import get_close_matches

    near = get_close_matches(name, list(known), 1, 0.6)
    return f" (did you mean {form.format(near[0])}?)" if near else ""
