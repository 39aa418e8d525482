"""What reaches a drive, apart from outcomes, and how a failure becomes an event."""

from __future__ import annotations

from typing import Any, NamedTuple

from stepwell.backend.base import Message, Session
from stepwell.engine import events as e
from stepwell.errors import TaskTimeout
from stepwell.timing import span

from .invoke import Job, Outcome, Undecodable, failed, verdict
from .live import Live


class Posted(NamedTuple):
    """A message for an instance of this runner that no store is told about."""

    instance_id: str
    message: Message


class News(NamedTuple):
    """A hint that the inbox of an instance has something."""

    instance_id: str


class Replaced(NamedTuple):
    """Another run has taken the place of this one."""

    live: Live


class Lapsed(NamedTuple):
    """A session's lease is lost, or may be; it is told more than once, perhaps when another session is in its place."""

    why: str
    session: Session | None = None


class Kept(NamedTuple):
    """A cursor that a running body wants to keep."""

    job: Job
    cursor: object


def event_of_failure(outcome: Outcome) -> tuple[e.Event, Any]:
    """Return the event that a failed attempt is, and the error record that it brings."""
    job = outcome.job
    if isinstance(outcome.error, Undecodable):
        return e.HoldAsked("undecodable", str(outcome.error), job.node, job.turns, job.number), None
    room = job.facts.room
    retryable, after_us = outcome.verdict or verdict(job.body, outcome.error)
    event = e.Errored(job.node, job.turns, job.number, retryable, after_us, room.draw())
    return event, job.facts.prepared.codec.encode(outcome.record) if room.stored else outcome.record


def timed_out(job: Job) -> Outcome:
    """Return the outcome of an attempt that ran longer than its timeout."""
    what = f"{job.body.name!r} ran longer than its timeout of {span(job.body.timeout_us)} at {job.path}"
    error = TaskTimeout(what, job.path)
    job.took_us = job.body.timeout_us
    return failed(job, error)
