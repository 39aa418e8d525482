"""The cheap look at a result never says yes where reading its bytes would say no."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.codec import JsonCodec
from stepwell.errors import DecodeError
from stepwell.runtime.promise import promise
from stepwell.types import Again, Done

CODEC = JsonCodec()
DECLARED = [
    int,
    str,
    float,
    bool,
    None,
    dict,
    list,
    int | None,
    int | str | None,
    list[int],
    list[int | None],
    list[Any],
    dict[str, int],
    dict[str, object],
    dict[int, str],
    dict[str, list[int]],
    list[dict[str, int]],
    tuple[int, str],
    Annotated[int, ["unhashable"]],
]
ATOMS = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(0, 1) | st.text(max_size=2)
VALUES = st.recursive(
    ATOMS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=1) | st.integers(0, 2), v, max_size=3)
)


@given(value=VALUES, declared=st.sampled_from(DECLARED))
def test_the_look_agrees_with_reading(value: object, declared: object) -> None:
    """Kept exactly when the stored bytes can be read as the declared type."""
    stored = CODEC.encode(value)
    try:
        CODEC.decode(stored, declared)
    except DecodeError:
        readable = False
    else:
        readable = True
    check = promise(CODEC, declared)
    assert check is not None
    try:
        check("", value, stored)
    except DecodeError:
        assert not readable
    else:
        assert readable


@pytest.mark.parametrize(("tag", "value", "kept"), [("again", 1, True), ("again", "x", False), ("done", "x", True)])
def test_a_loops_two_promises_are_apart(tag: str, value: object, kept: bool) -> None:
    """What Again holds and what Done holds have types of their own."""
    check = promise(CODEC, Again[int] | Done[str])
    assert check is not None
    if kept:
        check(tag, value, CODEC.encode(value))
    else:
        with pytest.raises(DecodeError):
            check(tag, value, CODEC.encode(value))


@pytest.mark.parametrize("declared", [Any, object])
def test_who_promises_nothing_is_not_asked(declared: object) -> None:
    """Undeclared results are stored as they are, wrapped or not."""
    check = promise(CODEC, declared)
    assert check is None or check("", object(), b"") is None
