"""Workers that are hired, killed, stopped and judged, and what all of it came to.

A fault counts as *observed* only if it is known to have struck: the process ended by the signal, the session was taken
over, the server's sessions were ended, the proxy lost the answer. A run in which an injected fault was not observed
proves nothing, and fails.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import apsw

from stepwell import BackendError, ConflictPolicy, WorkflowClient
from stepwell.testing.invariants import check_ledger, check_store

from ..postgres import Server  # noqa: TID252 - the tests are not installed
from ..proxy import Proxy  # noqa: TID252 - the tests are not installed
from . import worker as worker_script
from .autopsy import states, story, told
from .bank import ACCOUNTS, CENTS_EACH, TRANSFERS, Line, lines_of, output_of, payday
from .places import Place

T = TypeVar("T")

LEASE, POLL, CONCURRENCY = "3s", "200ms", 8
LOOKS = 10_000
"""How often something is looked for before it counts as not coming. A look asks the store and the nursery, and has to
wait for its turn like everybody else: so a busy machine is given more time, and no clock decides."""
LONG = float(os.environ.get("STEPWELL_CHAOS") or 0.25)
"""How many times as many instances and faults there are as in the full storm of a minute, ``STEPWELL_CHAOS=1``."""


class Account:
    """What was done by all tests of this folder, and what came of it."""

    def __init__(self) -> None:
        self.injected: Counter[str] = Counter()
        self.observed: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.takeovers_s: dict[str, list[float]] = {"kill": [], "zombie": []}

    def fault(self, kind: str, observed: int = 1, injected: int = 1) -> None:
        self.injected[kind] += injected
        self.observed[kind] += observed

    def __str__(self) -> str:
        faults = {**dict(sorted(self.injected.items())), "all": self.injected.total()}
        seen = {**self.observed, "all": self.observed.total()}
        rows = [f"  {kind:<44}{n:>6}{seen.get(kind, 0):>10}" for kind, n in faults.items()]
        counts = "  " + ", ".join(f"{name} {n}" for name, n in self.counts.items())
        times = [f"  taken over after a {how}: {_quantiles(found)}" for how, found in self.takeovers_s.items() if found]
        return "\n".join([f"chaos:{'':<39}injected  observed", *rows, counts, *times])


def _quantiles(found: list[float]) -> str:
    ordered = sorted(found)
    p50, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.5, 0.99))
    return f"p50 {p50:.2f} s, p99 {p99:.2f} s, {len(ordered)} times"


@dataclass
class Hired:
    """A worker process. Whoever takes its place has the same name, place and clock."""

    name: str
    place: Place
    skew_s: float
    pid: int
    stopped: bool = False


@dataclass
class Chaos:
    """One store with its workers, a client, and what is expected of them."""

    place: Place
    folder: Path
    account: Account
    server: Server | None = None
    lease: str = LEASE
    poll: str = POLL
    workers: list[Hired] = field(default_factory=list)
    wanted: dict[str, tuple[int, int]] = field(default_factory=dict)
    kills: list[tuple[str, int, int]] = field(default_factory=list)  # how, when, whom
    thaws: list[tuple[int, int]] = field(default_factory=list)  # when, whom
    ended: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._numbers = count(1)
        self.ledger = self.folder / "chaos.lines"
        self.backend = self.place.open()
        self.bank = self.place.bank(self.backend)
        if self.server is not None:
            self.server.execute(f"CREATE SCHEMA {self.place.schema}_bank")
        self.bank.set_up()
        self.client = WorkflowClient(self.backend)
        self._nursery = subprocess.Popen(
            [sys.executable, worker_script.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def close(self) -> None:
        for each in self.workers:
            if each.stopped:
                os.kill(each.pid, signal.SIGCONT)
        with self._nursery:
            assert self._nursery.stdin is not None
            self._nursery.stdin.close()
        self.client.close()
        self.backend.close()

    # --- workers ----------------------------------------------------------------------------------------------

    def _ask(self, order: Mapping[str, object]) -> dict[str, Any]:
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.write(json.dumps(order) + "\n")
        self._nursery.stdin.flush()
        answer: dict[str, Any] = json.loads(self._nursery.stdout.readline())
        return answer

    def hire(self, name: str, place: Place | None = None, skew_s: float = 0.0) -> Hired:
        place = place or self.place
        made = Hired(name, place, skew_s, self._spawn(name, place, skew_s))
        self.workers.append(made)
        return made

    def _spawn(self, name: str, place: Place, skew_s: float) -> int:
        order = {
            "place": place,
            "name": name,
            "worker": f"{name}#{next(self._numbers)}",
            "skew_s": skew_s,
            "lease": self.lease,
            "poll": self.poll,
            "concurrency": CONCURRENCY,
            "ledger": str(self.ledger),
            "log": str(self.folder / "worker"),
        }
        return int(self._ask(order)["pid"])

    def keep(self) -> None:
        """Replace workers that have ended, as a supervisor does."""
        ended = {int(pid): status for pid, status in self._ask({}).items()}
        self.ended.update(ended.values())
        for each in self.workers:
            if each.pid in ended:
                each.pid, each.stopped = self._spawn(each.name, each.place, each.skew_s), False

    def until(self, condition: Callable[[], object], what: str) -> None:
        pause = threading.Event()
        for _ in range(LOOKS):
            self.keep()
            if condition():
                return
            pause.wait(0.005)
        raise AssertionError(f"it never came to this: {what}\n{told(self)}")

    # --- what is known of them --------------------------------------------------------------------------------

    def sessions(self) -> Counter[int]:
        """Return how many sessions each process has in the store."""
        if self.server is not None:
            rows = self.server.execute(f"SELECT pid FROM {self.place.schema}.session")  # noqa: S608 - our own name
        else:
            db = self.backend.connect()
            rows = list(db.execute("SELECT pid FROM session"))
            db.close()
        return Counter(int(pid) for (pid,) in rows)

    def lines(self) -> list[Line]:
        return lines_of(self.ledger)

    def progress(self, amount: int = 12) -> None:
        """Wait until so many more lines are written, or nothing is left to do."""
        size = len(self.lines()) + amount
        self.until(lambda: len(self.lines()) >= size or not self.left(), f"{amount} more lines in the ledger")

    def left(self) -> list[str]:
        """Return which instances have not ended."""
        return self.surely(self.left_now)

    def left_now(self) -> list[str]:
        return [i for i in self.wanted if not self.client.status(i).finished]

    # --- a client that does not take an outage for an answer --------------------------------------------------

    def surely(self, call: Callable[[], T]) -> T:
        answer: list[T] = []

        def tried() -> bool:
            try:
                answer.append(call())
            except BackendError:
                self.account.counts["calls repeated"] += 1
                return False
            return True

        self.until(tried, "a call of the client's comes through")
        return answer[0]

    def start(self, number: int) -> None:
        """Start so many instances, of which each gets the word it waits for."""
        for _ in range(number):
            cents = next(self._numbers)
            instance_id, word = f"i{cents}", cents % 7
            self.wanted[instance_id] = (cents, word)
            self.surely(
                lambda i=instance_id, cents=cents: self.client.start(  # type: ignore[misc]
                    payday, cents, instance_id=i, on_conflict=ConflictPolicy.USE_EXISTING
                )
            )
            self.surely(
                lambda i=instance_id, word=word: self.client.signal(i, "word", word, signal_id="one")  # type: ignore[misc]
            )

    # --- faults -----------------------------------------------------------------------------------------------

    def kill(self, who: Hired) -> None:
        """kill -9."""
        before = self.ended[-signal.SIGKILL]
        self.kills.append(("kill", time.monotonic_ns(), who.pid))
        os.kill(who.pid, signal.SIGKILL)
        self.until(lambda: self.ended[-signal.SIGKILL] > before, "the killed process is buried")
        self.account.fault("kill -9")

    @contextmanager
    def stopped(self, who: Hired, kind: str = "SIGSTOP beyond the lease") -> Iterator[None]:
        """Stop a worker that has a session, wait until that is taken over, and let it go on at the end."""
        self.until(lambda: self.sessions()[who.pid], f"worker {who.pid} has a session")
        who.stopped = True
        self.until(lambda: self._stop(who.pid), f"worker {who.pid} is stopped where it is in nobody's way")
        self.kills.append(("zombie", time.monotonic_ns(), who.pid))
        try:
            self.until(lambda: not self.sessions()[who.pid], "the stopped worker's session is taken over")
            self.account.fault(kind)
            yield
        finally:
            self.thaws.append((time.monotonic_ns(), who.pid))
            os.kill(who.pid, signal.SIGCONT)
            who.stopped = False

    def zombie(self, who: Hired) -> None:
        """Stop a worker until others have taken over and gone on."""
        with self.stopped(who):
            self.progress(3)

    def dismiss(self, who: Hired) -> None:
        """Ask a worker to drain; it ends well."""
        before = self.ended[0]
        self.workers.remove(who)
        os.kill(who.pid, signal.SIGTERM)
        self.until(lambda: self.ended[0] > before, "the worker has drained")

    def _stop(self, pid: int) -> bool:
        """Stop a process, except in the middle of a write to a file: then nobody else could write for as long.

        The signal is only the beginning of it: on a busy machine threads go on for a while, and may take the lock yet.
        """
        os.kill(pid, signal.SIGSTOP)
        self.until(lambda: states(pid) <= {"T"}, f"all threads of {pid} have stopped")
        if self.server is not None:
            return True
        db = self.backend.connect()
        db.set_busy_timeout(500)
        try:
            db.execute("BEGIN IMMEDIATE; ROLLBACK")
        except apsw.BusyError:
            os.kill(pid, signal.SIGCONT)
            return False
        finally:
            db.close()
        return True

    def restart(self) -> None:
        """Crash the database."""
        assert self.server is not None
        before = self.server.execute("SELECT pg_postmaster_start_time()")
        self.server.restart("immediate")
        after = self.server.execute("SELECT pg_postmaster_start_time()")
        self.account.fault("immediate restart of the server", before != after)

    def terminate(self, share: float) -> None:
        """End a share of all sessions of the server but our own."""
        assert self.server is not None
        statement = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' AND random() < %s"
        )
        ended = self.surely(lambda: self.server.execute(statement, (share,)))  # type: ignore[union-attr]
        self.account.fault("pg_terminate_backend, at random", len(ended), len(ended))

    def behind(self, proxy: Proxy) -> Place:
        return self.place._replace(at=proxy.dsn())

    def lose(self, proxy: Proxy, nth: int) -> None:
        """Lose the answer to the n-th commit from now on that goes through a proxy."""
        before = proxy.observed["commit"]
        proxy.drop_commit(nth)

        def lost() -> bool:
            if not self.left():  # then nobody would commit any more
                self.start(2)
            return proxy.observed["commit"] > before

        self.until(lost, "the answer to a commit is lost")
        self.account.fault("lost answer to a commit", proxy.observed["commit"] - before)

    def half_open(self, proxy: Proxy, behind: list[Hired], *, cut: bool) -> None:
        """Let nothing through until those behind the proxy have lost their sessions."""
        self.until(lambda: all(self.sessions()[each.pid] for each in behind), "they have sessions")
        proxy.freeze()
        try:
            self.until(lambda: not any(self.sessions()[each.pid] for each in behind), "their sessions are taken over")
            self.account.fault("half-open beyond the lease", len(behind), len(behind))
        finally:
            proxy.thaw(cut=cut)

    # --- the verdict ------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Wait until everything has ended, without faults from now on."""
        self.until(lambda: not self.left(), f"all instances have ended; {len(self.wanted)} were started")

    def judge(self, *, clocks: bool = True) -> None:
        """Hold what is stored, what is booked and what was written outside against each other."""
        counts, lines = self.account.counts, self.lines()
        money, booked = self.bank.books()
        times = {(i, path): n for i, path, n in booked}
        steps = {(i, path) for i in self.wanted for path in TRANSFERS}
        found = {
            "lost": len(steps - times.keys()),
            "duplicated": sum(n - 1 for n in times.values()) + len(times.keys() - steps),
            "stuck": len(self.left()) + len(self.backend.stuck(2**62)),
            "money drift": money - ACCOUNTS * CENTS_EACH,
        }
        wrong = {
            i: (self.client.status(i).state, output_of(*given))
            for i, given in self.wanted.items()
            if self.client.status(i).state != "completed" or self.client.result(i) != output_of(*given)
        }
        reports = check_store(self.backend), check_ledger(lines, self.backend)
        broken = [each for report in reports for each in report.violations if clocks or each.rule not in ("S9", "S11")]
        thawed = self.starts_of_the_thawed(lines)
        broken = [
            each for each in broken if each.rule != "S2" or (each.instance_id, each.text.split("'")[1]) not in thawed
        ]
        counts.update(instances=len(self.wanted), starts=sum(line.event == "start" for line in lines))
        counts.update({"re-runs": self.reruns(lines), **found})
        counts.update({"wrong outputs": len(wrong), "broken promises": len(broken)})
        self._take_times(lines)
        fine = (found, wrong, broken) == (dict.fromkeys(found, 0), {}, [])
        assert fine, f"{found}\n{wrong}\n{broken}\n{story(self, wrong)}\n{told(self)}"

    def starts_of_the_thawed(self, lines: list[Line]) -> set[tuple[str, str]]:
        """Return what a process that goes on may have been about to begin as it was stopped.

        Between the last look at the lease and the first instruction of a body there is always room to be stopped.
        """
        found: set[tuple[str, str]] = set()
        for at_ns, pid in self.thaws:
            starts = [line for line in lines if line.pid == pid and line.ns > at_ns and line.event == "start"]
            found.update((line.instance, line.path) for line in starts[:CONCURRENCY])
        return found

    def reruns(self, lines: list[Line]) -> int:
        """Count the starts of attempts that had started before."""
        starts = Counter((line.instance, line.path, line.attempt) for line in lines if line.event == "start")
        return starts.total() - len(starts)

    def _take_times(self, lines: list[Line]) -> None:
        """For each step that was cut off, take the time until another process began it again."""
        for how, at_ns, pid in self.kills:
            open_steps: dict[tuple[str, str], Line] = {}
            for line in lines:
                step = (line.instance, line.path)
                if line.ns <= at_ns:
                    open_steps[step] = line
                elif step in open_steps and line.pid != pid and line.event == "start":
                    last = open_steps.pop(step)
                    if last.pid == pid and last.event == "start":
                        self.account.takeovers_s[how].append((line.ns - at_ns) / 1e9)


def several(number: int) -> int:
    return max(1, round(number * LONG))


def dice(seed: str) -> random.Random:
    return random.Random(seed)
