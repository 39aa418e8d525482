"""What holds for every test."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings

from .postgres import DSN, NoServer, Server
from .scratch import open_scratch
from .stores import KINDS, WATCHED, Stores

# No wall clock decides about a test, and no run leaves files behind.
# At a desk each run looks elsewhere; where CI is set it looks where the last one did: a red build then means a change.
settings.register_profile("stepwell", deadline=None, database=None, print_blob=True)
settings.register_profile("ci", settings.get_profile("stepwell"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "stepwell")


# --- where files are: see scratch.py ---------------------------------------------------------------

_FAILED = pytest.StashKey[bool]()


def _use_scratch(config: pytest.Config) -> None:
    if hasattr(config, "workerinput") or (scratch := open_scratch()) is None:
        return  # a worker's files are below those of the process that started it
    config.stash[_FAILED] = True  # until it is known better
    config.add_cleanup(lambda: scratch.close(keep=config.stash[_FAILED]))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_FAILED] = exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)


# --- in which order: what takes long comes first, so that no process is left alone with it at the end -----------------

LONGEST = (
    *("tests/chaos/test_storm", "tests/crash/", "tests/chaos/", "tests/test_docs_build", "tests/typing/"),
    *("tests/simulation/", "tests/control/", "tests/backend/", "tests/engine/", "tests/test_docs", "tests/runtime/"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((at for at, room in enumerate(LONGEST) if room in item.nodeid), len(LONGEST)))


# --- PostgreSQL ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres_server(pytestconfig: pytest.Config) -> Server:
    """One server for all tests of this process, started when the first of them asks for it.

    Nothing here takes the power away from it, so it need not wait for the disk. It outlives the last test's fixtures,
    since their stores are looked at after that.
    """
    try:
        server = Server(durable=False)
    except NoServer as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    pytestconfig.add_cleanup(server.close)
    os.environ[DSN] = server.dsn()
    pytestconfig.add_cleanup(lambda: os.environ.pop(DSN))
    return server


@pytest.fixture
def postgres_place(postgres_server: Server) -> tuple[str, str]:
    """A DSN, and a schema of the test's own, which is there as soon as a store makes it."""
    return postgres_server.dsn(), postgres_server.new_schema()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Every kind of store; see :func:`.stores.open_store`."""
    if request.param == "postgres":
        request.getfixturevalue("postgres_server")
    return str(request.param)


# --- every store is checked after its test; see stores.py -----------------------------------------

_STORES = pytest.StashKey[Stores]()


def pytest_configure(config: pytest.Config) -> None:
    _use_scratch(config)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of a job in the background; children would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
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
        stores.forget(None, drop=True)
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
    if not getattr(config.option, "numprocesses", None):  # else other processes have looked at the stores
        terminalreporter.write_line(str(config.stash[_STORES]))
