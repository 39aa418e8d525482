"""Snapshots on record: each of them is restored and finished by today's code, and written by it byte for byte."""

from __future__ import annotations

import re

import pytest

from stepwell.runtime.context import idempotency_key
from stepwell.runtime.snapshot import restore_into, snapshot_of

from .snapshot_files import CODECS, FOLDER, ORIGIN, file_of, made, world_of
from .stories import ID, STORIES, Story

Steps = list[tuple[str, int]]

#: what each of them comes to, and the steps that are still to be done
ENDS: dict[str, tuple[object, Steps]] = {
    "delay": (3, [("weigh", 1)]),
    "messages": (33, [("weigh", 1)]),
    "backoff": (3, [("shaky", 2), ("shaky", 3), ("weigh", 1)]),
    "paused": (3, [("weigh", 1)]),
    "held": ("InstanceHeld", []),
    "failed": ("WorkflowFailed", []),
    "mended": (3, [("broken", 2), ("weigh", 1)]),
    "cancelled": ("WorkflowCancelled", []),
    "completed": (3, []),
    "fork": (15, [("parallel/asleep/pack", 1), ("parallel/failing/shaky", 3), ("weigh", 1)]),
    "loop": (5, [("slowly[3]/slowly/one_more", 1), ("weigh", 1)]),
    "moved": (6, [("shaky", 1), ("shaky", 2), ("shaky", 3), ("weigh", 1)]),
    "child": (6, [("nested/looking", 1), ("weigh", 1)]),
}

each = pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
both = pytest.mark.parametrize("codec", CODECS)


@both
@each
def test_what_was_written_once_is_finished_today(story: Story, codec: str) -> None:
    """In a store of the other codec, with the idempotency keys of the store where it began."""
    other = "json" if codec == "msgpack" else "msgpack"
    world = world_of(other, "f" * 32)
    with world.runner:
        restore_into(world.runner._room, file_of(story, codec).read_bytes(), None)
        found = story.finish(world)
    end, steps = ENDS[story.name]
    assert (found.partition(":")[0] if isinstance(found, str) else found) == end
    assert world.ledger.steps == steps
    for call in world.ledger.calls:
        assert call.key == idempotency_key(ORIGIN, ID, 1, story.workflow.name, call.path)


@both
@each
def test_what_was_written_once_is_written_today(story: Story, codec: str) -> None:
    """Restored and taken again it has the same bytes: neither reader nor writer has changed."""
    world = world_of(codec, "f" * 32)
    stored = file_of(story, codec).read_bytes()
    with world.runner:
        restore_into(world.runner._room, stored, None)
        assert snapshot_of(world.runner._room, ID) == stored


def test_a_key_is_what_it_always_was() -> None:
    """The outside world knows it; spelt out once."""
    world = world_of("json", "f" * 32)
    with world.runner:
        restore_into(world.runner._room, file_of(STORIES[0], "json").read_bytes(), None)
        STORIES[0].finish(world)
    assert [call.key for call in world.ledger.calls] == ["a2de6e21bd4f990c4727fc28cdc85cc0"]


def test_every_story_is_on_record() -> None:
    """In both codecs, and nothing else is; ``python -m tests.control.snapshot_files`` writes what is missing."""
    assert {file.name for file in FOLDER.iterdir()} == {file_of(s, c).name for s in STORIES for c in CODECS}


def test_the_record_tells_nothing_of_a_machine() -> None:
    """No path of the one it was made on."""
    for file in FOLDER.iterdir():
        assert not re.search(rb"(?<![\w.])/(home|root|work|tmp|Users|private|mnt)/|site-packages", file.read_bytes())


def test_a_story_still_leaves_the_instance_where_its_record_does() -> None:
    """So that a new file would say what the old ones do."""
    for story in STORIES:
        world = world_of("json", ORIGIN)
        with world.runner:
            restore_into(world.runner._room, made(story, "json"), None)
            assert world.runner.client.status(ID).state == story.state
