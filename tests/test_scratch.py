"""Where the tests' own files are, and what of it is left."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .scratch import DISK, PREFIX, Scratch, open_scratch

pytest.importorskip("fcntl")


@pytest.fixture(autouse=True)
def as_on_a_desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What this run has set is not there."""
    with monkeypatch.context() as patch:
        patch.delenv("TMPDIR", raising=False)
        patch.setenv(DISK, "")
        patch.setattr(tempfile, "tempdir", None)
        yield


def opened(memory: Path) -> Scratch:
    scratch = open_scratch(memory, room=1)
    assert scratch is not None
    return scratch


def test_files_are_in_memory_until_it_is_closed(tmp_path: Path) -> None:
    """Those of this process and of any that it starts; servers that want a disk are told where it is."""
    before = tempfile.gettempdir()
    scratch = opened(tmp_path)
    script = "import tempfile; print(tempfile.gettempdir())"
    child = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True)
    assert [child.stdout.strip(), tempfile.gettempdir()] == [str(scratch.folder)] * 2
    assert os.environ[DISK] == before
    scratch.close(keep=False)
    assert tempfile.gettempdir() == before
    assert list(tmp_path.iterdir()) == []


def test_what_a_failed_run_leaves_is_there_until_the_next(tmp_path: Path) -> None:
    """Whoever wants to look at it may do so; memory is not filled for ever."""
    first = opened(tmp_path)
    first.close(keep=True)
    assert first.folder.exists()
    second = opened(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [second.folder.name]
    second.close(keep=False)


def test_a_run_that_goes_on_keeps_its_folder(tmp_path: Path) -> None:
    """Two runs on one machine do not disturb each other, and nobody else's folder is touched."""
    (tmp_path / "other").mkdir()
    first = opened(tmp_path)
    del os.environ["TMPDIR"]  # as in another process
    second = opened(tmp_path)
    assert first.folder.exists()
    assert first.folder.name.startswith(PREFIX)
    second.close(keep=False)
    os.environ.update({"TMPDIR": "", DISK: ""})
    first.close(keep=False)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_where_there_is_no_room_files_are_where_they_always_are(tmp_path: Path) -> None:
    """Nor where there is no such folder, or somebody has said where they should be."""
    assert open_scratch(tmp_path, room=2**62) is None
    assert open_scratch(tmp_path / "none", room=1) is None
    os.environ["TMPDIR"] = str(tmp_path)
    assert open_scratch(tmp_path, room=1) is None
    assert list(tmp_path.iterdir()) == []
