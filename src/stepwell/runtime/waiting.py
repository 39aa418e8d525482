"""Waiting for an instance's end without working on it: shared by the sync and the async client."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from stepwell.codec import type_name
from stepwell.errors import DecodeError, InstanceConflict
from stepwell.timing import Duration, duration_us
from stepwell.types import RESTING, check_instance_id

from .clock import AnyMailbox, Polling, Wait
from .ending import Ending
from .session import stored_ending
from .stored import load, missing

if TYPE_CHECKING:
    from stepwell.flow.workflow import AnyWorkflow

    from .room import Room


@contextmanager
def woken(room: Room, mailbox: AnyMailbox) -> Generator[None]:
    """Let a mailbox hear of others' writes, where the store tells of them."""
    assert room.backend is not None
    end = room.backend.watch(partial(mailbox.put, None))
    try:
        yield
    finally:
        if end is not None:
            end()


class Rest:
    """An instance on its way to rest: looked at when the store has been written to, at most once for each poll."""

    def __init__(self, room: Room, instance_id: str, workflow: AnyWorkflow | None, timeout: Duration | None) -> None:
        self._room, self._workflow = room, workflow
        self._instance_id = check_instance_id(instance_id)
        self._until_us = None if timeout is None else room.clock.now_us() + duration_us(timeout, "timeout")
        self._hint, self._polling = -1, Polling(room.poll_us)
        self._polling.came(time.perf_counter_ns())
        self._ending: Ending | None = None

    def reached(self) -> bool:
        """Look whether it rests. Raises InstanceNotFound, InstanceConflict."""
        backend = self._room.backend
        self._room.check_open()
        assert backend is not None
        hint = backend.hint()
        if hint != self._hint:
            self._ending, self._hint = self._look(), hint  # the hint is older than the look: nothing is missed
        return self._ending is not None

    def _look(self) -> Ending | None:
        assert self._room.backend is not None
        header = self._room.backend.header(self._instance_id)
        if header is None:
            raise missing(self._room.backend, self._instance_id)
        if self._workflow is not None and header.workflow != self._workflow.name:
            raise InstanceConflict(
                self._instance_id, f"it belongs to workflow {header.workflow!r}, not {self._workflow.name!r}"
            )
        if header.state not in RESTING:
            return None
        ending = stored_ending(self._room, load(self._room, self._instance_id))
        return ending if ending.resting else None

    def pause_s(self) -> float | None:
        """Return how long to wait before the next look. Raises TimeoutError."""
        if self._until_us is not None and self._room.clock.now_us() >= self._until_us:
            raise TimeoutError(
                f"instance {self._instance_id!r} has not come to rest within the timeout; it goes on all the same, and "
                f"client.explain() says what it waits for"
            )
        poll_us = self._polling.pause_us(time.perf_counter_ns())
        return self._room.clock.timeout_s(Wait(self._until_us, False, poll_us))

    def output(self) -> object:
        """Return the output, or raise what the instance came to instead."""
        ending, workflow = self._ending, self._workflow
        assert ending is not None, "it has come to rest"
        ending.raise_if_unfinished()
        raw = ending.value(ending.state.result)
        if raw is None:
            return None
        if workflow is None:
            return self._room.codec.decode(raw)
        try:
            return self._room.codec.decode(raw, workflow.output_type)
        except DecodeError as error:
            what = f"the output of workflow {workflow.name!r} in instance {self._instance_id!r}"
            text = f"{what} cannot be read as {type_name(workflow.output_type)}, which it declares: {error}"
            raise type(error)(text, error.path) from error
