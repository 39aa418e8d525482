"""Stored forms that must never change: instances written today are read for ever.

A failure here means that stored journals would be read differently. A new shape needs a new fact with a new number, or
an image with a new tag, and its own line in the golden files; existing lines stay as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import msgspec
import pytest

from stepwell.engine import facts as f
from stepwell.engine.frontier import Failure, Frontier, Request, Scope, Step, from_image, to_image
from stepwell.flow.plan import Key
from stepwell.seal import seal, unseal

GOLDEN = Path(__file__).parent.parent / "golden" / "engine"

ONE_OF_EACH: dict[str, f.Fact] = {
    "RunStarted": f.RunStarted(),
    "StepDone": f.StepDone(300, (2, 70_000), "again"),
    "AttemptFailed": f.AttemptFailed(3, (1,), 2, 1_700_000_000_000_000, 1),
    "StepBegan": f.StepBegan(3, (), 1),
    "TimerFired": f.TimerFired(4, (5,)),
    "MessageKept": f.MessageKept("approve ✓"),
    "CancelBegun": f.CancelBegun("enough", "ann"),
    "RunPaused": f.RunPaused("lunch", "ann"),
    "RunResumed": f.RunResumed("ann"),
    "RunReopened": f.RunReopened("ann"),
    "RunHeld": f.RunHeld("interrupted", "a/b", 7, (1,)),
    "StepsSettled": f.StepsSettled(((1, ()), (2, (3, 4)))),
    "RouteTaken": f.RouteTaken(5, (), "decision=yes"),
    "CursorKept": f.CursorKept(6, (2,)),
    "HoldDecided": f.HoldDecided(7, (1,), "complete", "again", "ann"),
    "RunMoved": f.RunMoved(
        "aa11",
        "bb22",
        ((0, 0, 3), (4, 5, 1)),
        ((2, (), (6, 7)),),
        ((1, (2,), 9),),
        ((9, "done"),),
        ((5, (2,), "a/b"),),
        ((3, ()),),
    ),
    "StepCrashed": f.StepCrashed(3, (1,), 4, 2),
    "StepTried": f.StepTried(3, (1,), 4),
    "MessageTraced": f.MessageTraced("approve ✓", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01 vendor=a b"),
    "Opened": f.Opened(6, (2,), 1_700_000_000_000_000, 3),
    "MessageTaken": f.MessageTaken(7, (), 12),
    "Turned": f.Turned(8, (1, 2), 13),
    "ScopeDone": f.ScopeDone(9, (), 14),
    "StepRefused": f.StepRefused(10, (), "loop_limit"),
    "ChildFailed": f.ChildFailed(11, (1,)),
    "Skipped": f.Skipped(12, ()),
    "ScopeFailing": f.ScopeFailing(13, ()),
    "ScopeFailed": f.ScopeFailed(14, (9,)),
    "RunEnded": f.RunEnded("failed", 15, 3, (1,), "signal_timeout"),
    "StepDone of a chain": f.StepDone(1),
    "Opened of a chain": f.Opened(2),
    "RunEnded well": f.RunEnded("completed"),
}


def _lines(name: str) -> dict[str, bytes]:
    text = (GOLDEN / name).read_text(encoding="utf-8")
    return {line.rpartition(" ")[0]: bytes.fromhex(line.rpartition(" ")[2]) for line in text.splitlines()}


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_fact_is_stored_in_these_bytes(name: str) -> None:
    """Both ways: today's facts are written so, and the bytes are read as today's facts."""
    golden = _lines("facts.txt")[name]
    assert f.encode([ONE_OF_EACH[name]]) == golden
    assert f.decode(golden) == [ONE_OF_EACH[name]]


def test_no_flipped_bit_is_believed() -> None:
    """Every single one, in facts and in an image, is noticed."""
    for golden, read in ((_lines("facts.txt")["AttemptFailed"], f.decode), (_lines("images.txt")["full"], from_image)):
        for bit in range(8 * len(golden)):
            flipped = bytearray(golden)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(msgspec.DecodeError):
                read(bytes(flipped))


def test_every_kind_of_fact_has_golden_bytes() -> None:
    """A new fact cannot be forgotten, and a number is never used twice."""
    kinds = [*get_args(f.Head), *get_args(f.Consequence)]
    assert {type(fact) for fact in ONE_OF_EACH.values()} == set(kinds)
    assert _lines("facts.txt").keys() == ONE_OF_EACH.keys()
    numbers = [kind.__struct_config__.tag for kind in kinds]
    assert len(set(numbers)) == len(numbers)


def test_what_is_no_fact_is_refused() -> None:
    """An unknown number, a wrong field and cut bytes are decoding errors, not guesses."""
    for stored in (
        seal(msgspec.msgpack.encode([[99, 1]])),
        seal(msgspec.msgpack.encode([[2, "x"]])),
        f.encode([f.StepDone(1)])[:-1],
        b"",
    ):
        with pytest.raises(msgspec.DecodeError):
            f.decode(stored)


def _full_state(path: str = "", crashes: int = 0, *pending: Key) -> Frontier:
    """Return a state in which every field holds something, if no run could have it."""
    state = Frontier()
    state.seq, state.started, state.unsettled, state.ended, state.result = 300, True, 2, "failed", 17
    state.steps = {
        (1, ()): Step(),
        (2, (3,)): Step(2, 1, 1_700_000_000_000_000, "parked"),
        (3, (3, 4)): Step(1, 0, 0, "closing", (5, (3,))),
        (4, ()): Step(1 + crashes, phase="began", crashes=crashes),
        (5, ()): Step(phase="closed"),
        (6, ()): Step(3, 3, 0, "failed", path=path),
    }
    state.scopes = {(7, ()): Scope(3, {8: 1, 9: 0}), (8, (3,)): Scope(1, {}, True, [10, 11], 2)}
    state.turning = {(12, (3,)): 4}
    state.values = {(13, ()): 0, (14, (3,)): 299}
    state.tags = {299: "again"}
    state.inbox = {"go": [5, 6]}
    state.cursors = {(4, ()): 298}
    state.stalled = [(15, ()), (16, (3,))]
    state.pending = list(pending)
    state.stopping = True  # not stored: it follows from the next field
    state.cancelling, state.paused = Request("enough", "ann"), Request("lunch", "bob")
    state.held = Request("interrupted", "a/b", 4, (1,))
    state.failure = Failure(6, (3,), 42, "loop_limit")
    return state


FULL = _full_state("a/b", 2, (17, (3,)))


@pytest.mark.parametrize(("name", "state"), [("empty", Frontier()), ("full", _full_state())])
def test_the_first_shape_of_images_is_still_read(name: str, state: Frontier) -> None:
    """It knew neither what is pending nor former paths nor crashes."""
    assert from_image(_lines("images.txt")[name]) == state


@pytest.mark.parametrize(("name", "state"), [("empty-2", Frontier()), ("full-2", FULL)])
def test_an_image_is_stored_in_these_bytes(name: str, state: Frontier) -> None:
    """Both ways, with every field in use."""
    golden = _lines("images.txt")[name]
    assert to_image(state) == golden
    assert from_image(golden) == state


def test_the_full_state_has_every_field_in_use() -> None:
    """So that no field's form can change unseen."""
    empty, full = Frontier(), FULL
    same = [name for name in Frontier.__slots__ if getattr(empty, name) == getattr(full, name)]
    assert same == []


def test_what_is_no_image_is_refused() -> None:
    """Another tag, cut bytes and other values are decoding errors."""
    golden = _lines("images.txt")["full"]
    newer = seal(unseal(golden).replace(b"frontier-1", b"frontier-9"))
    for stored in (newer, golden[:-1], b"", seal(msgspec.msgpack.encode({})), golden[:-4]):
        with pytest.raises(msgspec.DecodeError):
            from_image(stored)
