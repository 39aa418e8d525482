"""What holds for every test."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings

from .stores import WATCHED, Stores

# No wall clock decides about a test, and no run leaves files behind.
# At a desk each run looks elsewhere; where CI is set it looks where the last one did: a red build then means a change.
settings.register_profile("stepwell", deadline=None, database=None, print_blob=True)
settings.register_profile("ci", settings.get_profile("stepwell"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "stepwell")

# --- every store is checked after its test; see stores.py -----------------------------------------

_STORES = pytest.StashKey[Stores]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "broken_store: the test damages a store on purpose, so it is not checked")
    stores = config.stash[_STORES] = Stores()
    stores.watch()
    config.add_cleanup(stores.unwatch)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    stores = item.config.stash[_STORES]
    unwatched = item.get_closest_marker("broken_store") or not item.nodeid.startswith(WATCHED)
    if unwatched:  # now already: with the last test the session ends, and looks at what is left
        stores.forget(getattr(item, "funcargs", {}).get("tmp_path"))
    yield
    if unwatched:
        stores.forget(None)
        return
    # random graphs of one store may differ in nothing but their limits, and the store has those of the last one
    report = stores.check(policies=not item.nodeid.startswith("tests/differential"))
    assert report.ok, f"the test left a store that breaks a promise\n{report}"


@pytest.fixture(scope="session", autouse=True)
def stores_of_other_processes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Check what processes other than this one have left, when all tests are over."""
    yield
    report = request.config.stash[_STORES].check_left_files(tmp_path_factory.getbasetemp())
    assert report.ok, f"another process left a store that breaks a promise\n{report}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.write_line(str(config.stash[_STORES]))
