"""What is kept of a W3C trace context: what is valid of it, and no more than is due."""

from __future__ import annotations

import pytest

from stepwell.observe.w3c import STATE_CHARS, TRACE_CHARS, kept

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def test_a_valid_context_is_kept_as_it_is() -> None:
    """Parent and state, with a space between; spaces around members do not count."""
    assert kept(PARENT) == kept(PARENT, "") == kept(PARENT, " , \t") == PARENT
    assert kept(PARENT, "congo=t61,0rojo@vendor=a b c") == f"{PARENT} congo=t61,0rojo@vendor=a b c"
    assert kept(PARENT, " congo=t61 ,\trojo=00f067, ") == f"{PARENT} congo=t61,rojo=00f067"


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "nonsense",
        PARENT + "-00",
        PARENT + "\n",
        PARENT.upper(),
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
    ],
)
def test_without_a_valid_parent_there_is_nothing(parent: str) -> None:
    """Its state says nothing by itself."""
    assert kept(parent, "congo=t61") == ""


@pytest.mark.parametrize(
    "state",
    [
        "no value",
        "=x",
        "Key=x",
        "a=x=y",
        "a=x,a=y",
        "a=" + "x" * 257,
        "a" * 257 + "=x",
        "a=\0",
        "a=ü",
        ",".join(f"k{n}=x" for n in range(33)),
    ],
)
def test_a_malformed_state_is_dropped_whole(state: str) -> None:
    """The parent is kept without it."""
    assert kept(PARENT, state) == PARENT
    assert kept(PARENT, f"good=1,{state}") == PARENT


def test_a_long_state_loses_long_members_and_then_the_last() -> None:
    """Until it fits; one of exactly the length is kept."""
    long, short = "l=" + "x" * 200, [f"s{n:02}=" + "y" * 36 for n in range(12)]
    whole = ",".join(short)
    assert len(whole) == 491
    assert kept(PARENT, f"{long},{whole}") == f"{PARENT} {whole}"
    assert kept(PARENT, f"{whole},t={'z' * 40}") == f"{PARENT} {whole}"
    assert kept(PARENT, f"first=1,{whole},t={'z' * 40}") == f"{PARENT} first=1,{whole}"
    longs = [f"{n}={'x' * 170}" for n in "abc"]
    assert kept(PARENT, ",".join(longs)) == f"{PARENT} {','.join(longs[:2])}"
    exact = f"a={'x' * 256},b={'x' * (STATE_CHARS - 261)}"
    assert len(kept(PARENT, exact)) == TRACE_CHARS
