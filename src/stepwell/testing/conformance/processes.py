"""Several processes on one store. Only for backends that declare ``multi_process``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from stepwell.backend.base import Backend, Filter, Want
from stepwell.testing.sample import (
    T0,
    claim_offers,
    creation,
    definition_of,
    header_of,
    ids,
    loaded,
    offers,
    session_of,
    start,
)

from .examiner import Examiner

PROCESSES = 8
EACH = 15

_PRELUDE = """
import json, os, sys
from stepwell.backend.base import Change, Created, Entry, Want
from stepwell.testing.sample import *
def at_once():
    print("ready", flush=True)
    sys.stdin.readline()
def answer(value):
    print(json.dumps(value), flush=True)
"""


class Processes(Examiner):
    def children(self, backend: Backend, tmp_path: Path, sources: Sequence[str]) -> list[object]:
        """Run each source in a process of its own, let go all at once, and return what they answered."""
        if not backend.capabilities.multi_process:
            pytest.skip("this backend does not claim to be shared by processes")
        with ExitStack() as stack:
            running = [stack.enter_context(self._child(tmp_path, source)) for source in sources]
            assert [_line(child) for child in running] == ["ready\n"] * len(running)
            for child in running:
                _say(child, "go\n")
            answers = [_line(child) for child in running]
            for child in running:  # nobody ends before all have answered: a process that is gone can be taken over
                child.communicate("end\n")
        return [json.loads(text) if text else None for text in answers]

    def _child(self, tmp_path: Path, source: str) -> subprocess.Popen[str]:
        text = f"{_PRELUDE}{self.child_source(tmp_path)}\nat_once()\n{source}"
        return subprocess.Popen(  # noqa: S603 - it runs the test's own text
            [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def test_of_many_processes_one_creates(self, backend: Backend, tmp_path: Path) -> None:
        """Eight processes create one id at once; one of them makes it."""
        definition_of(backend)
        source = "answer(isinstance(backend.create(None, [creation(backend)])[0], Created))"
        assert self.children(backend, tmp_path, [source] * PROCESSES).count(True) == 1
        assert backend.count(Filter()) == 1

    def test_of_many_processes_each_seq_is_written_once(self, backend: Backend, tmp_path: Path) -> None:
        """Clients that write to one free instance lose no update: every process gets all its entries in."""
        header = start(backend, None)
        source = f"""
landed = 0
while landed < {EACH}:
    base = header_of(backend).seq
    entry = Entry(base + 1, b"%d" % os.getpid(), None, {T0})
    landed += backend.commit(None, [Change({header.instance}, base, [entry])]) == ["done"]
answer(str(os.getpid()))
"""
        pids = self.children(backend, tmp_path, [source] * PROCESSES)
        journal = backend.history(header.instance, 1, 10_000)
        assert [entry.seq for entry in journal] == list(range(2, PROCESSES * EACH + 2))
        assert Counter(entry.facts.decode() for entry in journal) == dict.fromkeys(pids, EACH)

    def test_many_processes_share_what_is_due(self, backend: Backend, tmp_path: Path) -> None:
        """Each instance is claimed by one of them."""
        total = PROCESSES * EACH
        backend.create(None, [creation(backend, str(number)) for number in range(total)])
        source = f"""
session, mine = session_of(backend), []
while found := backend.claim_due(session, Want([{definition_of(backend)}], {T0}, 2)):
    mine += ids(found)
answer(",".join(mine))
sys.stdin.readline()
"""
        answers = self.children(backend, tmp_path, [source] * 3)
        taken = [name for mine in answers for name in str(mine).split(",") if name]
        assert sorted(taken) == sorted(str(number) for number in range(total))

    def test_many_processes_share_what_is_offered(self, backend: Backend, tmp_path: Path) -> None:
        """Each offer is claimed by one of them, and each outcome reaches the instance once."""
        ann, steps = session_of(backend), [b"%d" % number for number in range(PROCESSES * EACH)]
        offers(backend, ann, start(backend, ann), *steps)
        source = """
session = session_of(backend)
while found := claim_offers(backend, session, limit=4):
    assert all(backend.settle(session, [(each.id, outcome(each.step)) for each in found]))
answer("done")
sys.stdin.readline()
"""
        assert self.children(backend, tmp_path, [source] * 3) == ["done"] * 3
        assert sorted(str(message.payload) for message in loaded(backend).mail) == sorted(map(str, steps))

    def test_many_processes_hold_no_more_than_most(self, backend: Backend, tmp_path: Path) -> None:
        """Of what they claim at once, exactly as many are held as may be."""
        backend.create(None, [creation(backend, str(number)) for number in range(20)])
        source = f"""
session, work = session_of(backend), {definition_of(backend)}
answer(len(backend.claim_due(session, Want([work], {T0}, 9, most={{work: 7}}))))
sys.stdin.readline()
"""
        answers = self.children(backend, tmp_path, [source] * 3)
        assert sum(int(str(each)) for each in answers) == 7

    def test_a_killed_process_leaves_its_offers(self, backend: Backend, tmp_path: Path) -> None:
        """They are free again for the next one, without waiting for its lease."""
        ann = session_of(backend)
        offers(backend, ann, start(backend, ann), b"x")
        self.children(backend, tmp_path, ["claim_offers(backend, session_of(backend))\nos._exit(9)"])
        assert [each.step for each in claim_offers(backend, session_of(backend))] == [b"x"]

    def test_a_killed_process_is_taken_over_at_once(self, backend: Backend, tmp_path: Path) -> None:
        """What it held is due for the next one, without waiting for its lease; what it wrote is there."""
        source = """
session = session_of(backend)
backend.commit(session, [change(start(backend, session))])
os._exit(9)
"""
        self.children(backend, tmp_path, [source])
        assert header_of(backend).seq == 2
        assert ids(backend.claim_due(session_of(backend), Want([definition_of(backend)], T0, 9))) == ["a"]

    def test_the_hint_changes_with_another_process_s_write(self, backend: Backend, tmp_path: Path) -> None:
        """A poll of the hint is enough to notice."""
        before = backend.hint()
        self.children(backend, tmp_path, ["answer(start(backend, None).instance)"])
        assert backend.hint() != before


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline()


def _say(child: subprocess.Popen[str], text: str) -> None:
    assert child.stdin is not None
    child.stdin.write(text)
    child.stdin.flush()
