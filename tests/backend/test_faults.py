"""The wrapper that fails at named points fails there and nowhere else."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from stepwell.backend.base import Backend, Filter
from stepwell.backend.memory import InMemoryBackend
from stepwell.errors import BackendUnavailable, OptionError
from stepwell.testing.faults import FAULT_EXIT, Fault, FaultyBackend, from_environment
from stepwell.testing.sample import start


def strike() -> None:
    raise BackendUnavailable("struck")


@pytest.mark.parametrize(("when", "created"), [("before", 1), ("after", 2)])
def test_a_fault_strikes_before_or_after_the_call(when: str, created: int) -> None:
    """Before: the second creation did not happen. After: it did, and the caller does not know."""
    backend = FaultyBackend(InMemoryBackend(), [Fault.parse(f"{when}:create:2")], strike)
    start(backend, None, "first")
    with pytest.raises(BackendUnavailable):
        start(backend, None, "second")
    assert backend.count(Filter()) == created


def test_calls_are_counted_by_method() -> None:
    """A test can learn how many points there are from a run without faults."""
    backend = FaultyBackend(InMemoryBackend(), [])
    start(backend, None)
    start(backend, None, "b")
    assert backend.calls == {"register": 2, "create": 2}


@pytest.mark.parametrize("text", ["", "before:commit", "during:commit:1", "before:fly:1", "before:commit:x", "a:b:c:d"])
def test_what_is_no_fault_is_refused(text: str) -> None:
    """A misspelt point would otherwise never strike."""
    with pytest.raises(OptionError):
        Fault.parse(text)


def test_every_method_of_the_protocol_is_a_point() -> None:
    """No method slips past the wrapper."""
    methods = {name for name, _ in inspect.getmembers(Backend, inspect.isfunction) if not name.startswith("_")}
    assert methods == {name for name in vars(FaultyBackend) if name in methods}
    for name in methods:
        assert f'_call("{name}"' in inspect.getsource(getattr(FaultyBackend, name))


def test_without_the_variable_nothing_is_wrapped() -> None:
    """Only tests set it."""
    backend = InMemoryBackend()
    assert from_environment(backend, {}) is backend


def test_the_variable_kills_the_process() -> None:
    """At the point it names, with a status of its own."""
    text = """
from stepwell.backend.memory import InMemoryBackend
from stepwell.testing.faults import from_environment
from stepwell.testing.sample import start
backend = from_environment(InMemoryBackend(), {"STEPWELL_FAULT": "after:create:2,before:commit:1"})
start(backend, None, "a"); print("one", flush=True); start(backend, None, "b"); print("two")
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (FAULT_EXIT, "one\n")
