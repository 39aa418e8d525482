"""The snapshots on record: where they are, and how new ones are made.

Run as a program it writes those that are missing, and never touches one that is there: what was written once must be
read for ever. ``python -m tests.control.snapshot_files`` in the repository's root.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

from stepwell import CheckpointingRunner, InMemoryBackend, JsonCodec, MsgpackCodec
from stepwell.runtime import failure
from stepwell.runtime.snapshot import snapshot_of
from stepwell.testing import VirtualClock

from .stories import ID, STORIES, Ledger, Story, World

FOLDER = Path(__file__).parent.parent / "golden" / "snapshots"
ORIGIN = "0123456789abcdef" * 2
CODECS: dict[str, Any] = {"json": JsonCodec, "msgpack": MsgpackCodec}


def file_of(story: Story, codec: str) -> Path:
    return FOLDER / f"{story.name}-{codec}-v1.bin"


def world_of(codec: str, origin: str) -> World:
    """A store in memory with an id that is always the same, on a clock that always begins at the same moment."""
    backend, clock, ledger = InMemoryBackend(CODECS[codec]()), VirtualClock(), Ledger()
    backend.backend_id = origin
    return World(CheckpointingRunner(backend, clock=clock, deps={Ledger: ledger}), clock, ledger)


def made(story: Story, codec: str) -> bytes:
    """Begin a story, and take a snapshot in which nothing tells of the machine it was made on."""
    world = world_of(codec, ORIGIN)
    with world.runner, patch.object(failure, "_frames", lambda error: '  File "stories.py", line 1, in task\n'):
        story.begin(world)
        return snapshot_of(world.runner._room, ID)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for story in STORIES:
        for codec in CODECS:
            if not (file := file_of(story, codec)).exists():
                file.write_bytes(made(story, codec))


if __name__ == "__main__":
    main()
