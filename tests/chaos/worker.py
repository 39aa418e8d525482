"""A worker process of the chaos suite, and what forks it.

Started as a script it reads lines of JSON: each forks a worker, or asks who has ended. It imports everything first and
starts no thread, so a fork is safe and takes milliseconds. When its input ends it kills those that are left.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def work(order: dict[str, Any]) -> None:
    """Be a worker until SIGTERM."""
    from stepwell import PooledWorker

    from .bank import WORKFLOWS, Bank, Ledger, Skewed
    from .places import Place

    place = Place(*order["place"])
    backend = place.open()
    ledger = Ledger(order["ledger"], order["worker"])
    worker = PooledWorker(
        backend,
        WORKFLOWS,
        concurrency=order["concurrency"],
        lease=order["lease"],
        poll=order["poll"],
        deps={Ledger: ledger, Bank: place.bank(backend)},
        name=order["name"],
        clock=Skewed(order.get("skew_s", 0.0)),
        max_crashes=1_000,  # the bodies are innocent, however often their workers die
    )
    _tell_on_request(worker)
    worker.run()
    backend.close()


def _tell_on_request(worker: Any) -> None:
    """SIGUSR1: where each thread is, even if none can run Python code. SIGUSR2: how the worker is."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGUSR2, lambda *_: logging.getLogger("chaos").warning("%s", worker.health()))


def _child(order: dict[str, Any]) -> None:
    """Never returns: nothing of the nursery's runs in a child."""
    status = 1
    try:
        log = os.open(f"{order['log']}.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(threadName)s %(levelname)s %(message)s")
        work(order)
        status = 0
    except BaseException:  # read from the log
        logging.getLogger("chaos").exception("the worker has ended")
    finally:
        logging.shutdown()
        os._exit(status)


class Nursery:
    """Forks workers and buries them."""

    def __init__(self) -> None:
        self.alive: set[int] = set()
        self.ended: dict[int, int] = {}

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        if "place" not in order:
            ended, self.ended = self.ended, {}
            return {str(pid): status for pid, status in ended.items()}
        pid = os.fork()
        if pid == 0:
            _child(order)
        self.alive.add(pid)
        return {"pid": pid}

    def bury(self) -> None:
        while self.alive:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self.alive.discard(pid)
            self.ended[pid] = os.waitstatus_to_exitcode(status)

    def end(self) -> None:
        for pid in self.alive:
            os.kill(pid, signal.SIGKILL)
        for pid in self.alive:
            os.waitpid(pid, 0)


def main() -> None:
    import asyncio  # noqa: F401  # so that no child has to
    import pkgutil
    from importlib import import_module

    for room in ("stepwell.engine", "stepwell.backend", "stepwell.codec", "stepwell.runtime"):
        for found in pkgutil.iter_modules(import_module(room).__path__):
            import_module(f"{room}.{found.name}")
    gc.freeze()
    nursery, said = Nursery(), b""
    while True:
        ready, _, _ = select.select([0], [], [], 0.01)
        nursery.bury()
        if ready:
            heard = os.read(0, 65_536)
            if not heard:
                break
            *lines, said = (said + heard).split(b"\n")
            for line in lines:
                os.write(1, json.dumps(nursery.answer(json.loads(line))).encode() + b"\n")
    nursery.end()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from tests.chaos import worker

    worker.main()
