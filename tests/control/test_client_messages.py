"""Requests as messages: what is posted means what was asked, and what nobody can read harms nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell import signal, task, workflow
from stepwell.backend.base import Message
from stepwell.backend.liveness import this_process
from stepwell.engine import events as e
from stepwell.runtime import requests
from stepwell.runtime.requests import Verdict

from .client_worlds import ID, World


@task
def plus(x: int) -> int:
    return x + 1


@workflow
def asking(x: int) -> int:
    plus(x)
    return signal("answer", int)


TEXT = st.text(max_size=40)


@given(TEXT, TEXT)
def test_a_request_keeps_its_words(reason: str, by: str) -> None:
    """Whatever they are, up to what cannot be stored anywhere."""
    event = requests.event_of(requests.request("cancel", reason, by, 0), asking.plan)
    assert event == e.CancelAsked(requests.said(reason, "it"), requests.said(by, "it"))
    assert requests.said(reason, "it") == reason.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


@given(st.sampled_from(["rerun", "complete", "fail"]), TEXT, TEXT, st.binary(max_size=9) | st.none())
def test_a_decision_keeps_its_parts(choice: Any, tag: str, by: str, value: bytes | None) -> None:
    """Path, kind, tag and person in its name, the value in its payload."""
    verdict = Verdict("plus", choice, tag.encode("utf-8", "replace").decode(), requests.said(by, "by"))
    message = requests.decision(verdict, value, 7)
    assert requests.verdict_of(message) == verdict
    assert requests.value_of(message) == value
    node, turns = asking.plan.find("plus") or (0, ())
    assert requests.event_of(message, asking.plan) == e.Decided(node, turns, choice, verdict.tag, verdict.by)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (Message("signal", "approve", b"", 0), "signal approve"),
        (requests.request("cancel", "why", "ann", 0), "cancel"),
        (requests.decision(Verdict("a/b[2]/c", "complete"), None, 0), "decide complete a/b[2]/c"),
        (requests.decision(Verdict("", "rerun"), None, 0), "decide rerun"),
        (Message("decide", "rot", None, 0), "decide"),
        (Message("of a later version", "", None, 0), "of a later version"),
    ],
)
def test_what_is_pending_has_words(message: Message, words: str) -> None:
    """Short ones, without the payload."""
    assert requests.in_words(message) == words


@pytest.mark.parametrize("name", ["rot", "[]", '["plus","maybe"]', "[1,2]", '{"path":"plus"}', ""])
def test_a_decision_that_cannot_be_read_holds(name: str) -> None:
    """It was not written by this version; a person looks."""
    assert isinstance(requests.event_of(Message("decide", name, None, 0), asking.plan), e.HoldAsked)


def test_a_decision_about_a_step_that_is_gone_changes_nothing(world: World) -> None:
    """The holder's graph has no such path."""
    world.runner.start(asking, 1, instance_id=ID)
    before = world.client.status(ID)
    session = world.backend.open_session(this_process(), 30_000_000)
    loaded = world.backend.claim(session, ID)
    for path in ("nowhere", "answer", ""):
        world.backend.post(loaded.header.instance, requests.decision(Verdict(path, "rerun"), None, 0))
    world.backend.end_session(session)
    world.runner.recover([asking])
    after = world.client.status(ID)
    assert (after.state, after.seq, after.pending) == (before.state, before.seq, ())
