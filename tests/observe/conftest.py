"""A program that traces, seen from inside: what it would send stays in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .seen import Seen


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """Trace for one test, as a program does that has set up OpenTelemetry by itself."""
    found = Seen()
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", found.provider)
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", found.meters)
    yield found
    found.close()
