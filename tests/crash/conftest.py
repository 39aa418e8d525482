"""One account of all that the crash suite kills."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .harness import Processes


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    made = Processes(tmp_path_factory.mktemp("crash"))
    made.start()
    yield made
    made.close()
