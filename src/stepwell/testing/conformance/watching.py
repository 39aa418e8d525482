"""Being woken by others' writes. Only for backends that are told of them."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread

import pytest
from msgspec.structs import replace

from stepwell.backend.base import Backend
from stepwell.testing.sample import RUNNING, change, claim_offers, header_of, offers, outcome, session_of, signal, start

from .examiner import Examiner


class Watching(Examiner):
    def watch(self, backend: Backend, wake: Callable[[], None]) -> Callable[[], None]:
        ending = backend.watch(wake)
        if ending is None:
            pytest.skip("this backend is told of nothing")
        return ending

    def test_a_write_wakes(self, backend: Backend) -> None:
        """Every kind of write that another session may wait for."""
        ann, bob, woken = session_of(backend), session_of(backend, "bob"), Event()
        header = start(backend, ann)
        end = self.watch(backend, woken.set)
        writes: list[Callable[[], object]] = [
            lambda: start(backend, None, "free"),
            lambda: backend.commit(ann, [change(header, rest=replace(RUNNING, release=False))]),
            lambda: backend.post(header_of(backend).instance, signal()),
            lambda: offers(backend, ann, header_of(backend), b"x", b"y"),
            lambda: backend.settle(bob, [(each.id, outcome()) for each in claim_offers(backend, bob, limit=1)]),
            lambda: claim_offers(backend, bob, limit=1) and backend.call_off(ann, header.instance, [b"y"], stop=True),
            lambda: backend.release(ann, [header_of(backend).instance]),
        ]
        for number, write in enumerate(writes):
            woken.clear()
            write()
            assert woken.wait(self.wait_s), number
        end()

    def test_whoever_is_woken_may_use_the_store(self, backend: Backend) -> None:
        """It is told without a lock held, so that even another thread can look while it is being told."""
        looked = Event()

        def wake() -> None:
            thread = Thread(target=backend.header, args=("a",))
            thread.start()
            thread.join(self.wait_s)
            if not thread.is_alive():
                looked.set()

        end = self.watch(backend, wake)
        start(backend, None)
        assert looked.wait(self.wait_s)
        end()

    def test_watching_ends(self, backend: Backend) -> None:
        """From then on it is told nothing; ending twice does nothing, and others are still told."""
        mine, others = Event(), Event()
        end, end_other = self.watch(backend, mine.set), self.watch(backend, others.set)
        end()
        end()
        mine.clear()
        start(backend, None)
        assert others.wait(self.wait_s)
        assert not mine.is_set()
        end_other()

    def test_a_closed_store_wakes_nobody(self, backend: Backend) -> None:
        """And its watchers may still end."""
        end = self.watch(backend, lambda: None)
        backend.close()
        end()
