"""How spans get away: at once for whoever waits, a moment later else, and never at the price of the run."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator, Sequence
from typing import cast

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from stepwell.observe import provider as sending
from stepwell.observe.options import Options
from stepwell.observe.provider import Courier

WAIT_S = 60


class Counter(SpanExporter):
    """Notes batches; may be held up, and may fail."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.open, self.asked = threading.Event(), threading.Event()
        self.open.set()
        self.answer = SpanExportResult.SUCCESS

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.asked.set()
        self.open.wait(WAIT_S)
        self.batches.append(len(spans))
        return self.answer


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def courier(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> Iterator[Courier]:
    """A courier that sends only what somebody waits for."""
    monkeypatch.setattr(sending, "LINGER_S", WAIT_S)
    monkeypatch.setattr(sending, "PATIENCE_S", WAIT_S)
    monkeypatch.setattr(sending, "CREDIT_S", WAIT_S)
    found = Courier(counter)
    yield found
    counter.open.set()
    found.shutdown()


def spans(courier: Courier, count: int) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(courier)
    tracer = provider.get_tracer("test")
    for _ in range(count):
        tracer.start_span("one").end()


def test_what_waits_is_sent_in_one_request(courier: Courier, counter: Counter) -> None:
    """Once somebody waits, who goes on when it is away."""
    spans(courier, 7)
    courier.settle()
    assert counter.batches == [7]
    courier.settle()
    assert counter.batches == [7]


def test_a_full_batch_waits_for_nobody(courier: Courier, counter: Counter) -> None:
    """The rest waits on."""
    spans(courier, sending.BATCH_SPANS)
    assert counter.asked.wait(WAIT_S)
    assert courier.force_flush()
    assert counter.batches == [sending.BATCH_SPANS]


def test_what_nobody_waits_for_is_sent_soon(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the courier's own thread."""
    monkeypatch.setattr(sending, "LINGER_S", 0)
    courier = Courier(counter)
    spans(courier, 1)
    assert counter.asked.wait(WAIT_S)
    courier.shutdown()


def test_a_slow_receiver_is_waited_for_no_longer_than_that_is_worth(
    courier: Courier, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the time that may be spent is spent, runs go on at once."""
    monkeypatch.setattr(sending, "PATIENCE_S", 0.01)
    counter.open.clear()
    spans(courier, 1)
    courier.settle()
    assert counter.batches == []
    with monkeypatch.context() as poor:
        poor.setattr(courier._purse, "left", lambda: 0.0)
        poor.setattr(courier, "_wait", lambda seconds: pytest.fail("it waits"))
        courier.settle()


def test_a_purse_fills_with_time_and_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of what goes by, a second at most."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    purse = sending._Purse()
    assert purse.left() == sending.CREDIT_S
    purse.spend(sending.CREDIT_S)
    assert purse.left() == 0
    now[0] += 5
    assert purse.left() == pytest.approx(5 * sending.SHARE)
    now[0] += 1_000
    assert purse.left() == sending.CREDIT_S


def test_a_receiver_that_fails_is_not_waited_for(courier: Courier, counter: Counter) -> None:
    """Until it answers again."""
    counter.answer = SpanExportResult.FAILURE
    spans(courier, 1)
    courier.settle()
    spans(courier, 1)
    courier.settle()
    assert counter.batches == [1]
    counter.answer = SpanExportResult.SUCCESS
    assert courier.force_flush()
    spans(courier, 1)
    courier.settle()
    assert counter.batches == [1, 1, 1]


def test_an_event_loop_is_not_held_up(courier: Courier, counter: Counter) -> None:
    """Spans go a moment later then."""

    async def main() -> None:
        spans(courier, 1)
        courier.settle()
        assert counter.batches == []

    asyncio.run(main())


def test_what_is_too_much_is_dropped_and_said(
    courier: Courier, counter: Counter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory does not grow with a receiver's outage."""
    monkeypatch.setattr(sending, "QUEUE_SPANS", 5)
    counter.open.clear()
    spans(courier, 9)
    counter.open.set()
    courier.settle()
    assert counter.batches == [5]
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (logging.WARNING, "4 spans were dropped: the receiver does not keep pace")
    ]


def test_an_exporter_that_raises_ends_nothing(
    courier: Courier, counter: Counter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next spans are sent as ever."""

    def broken(spans: object) -> SpanExportResult:
        raise OSError("no route to 10.0.0.1")

    with monkeypatch.context() as wrong:
        wrong.setattr(counter, "export", broken)
        spans(courier, 1)
        courier.settle()
    assert [record.getMessage() for record in caplog.records] == ["spans could not be sent: OSError"]
    spans(courier, 1)
    assert courier.force_flush()
    assert counter.batches == [1]


def test_nothing_is_taken_after_the_end(courier: Courier, counter: Counter) -> None:
    """And ending twice does nothing."""
    spans(courier, 1)
    courier.shutdown()
    courier.shutdown()
    spans(courier, 1)
    assert counter.batches == [1]


@pytest.mark.parametrize(("leaving_s", "most_ms"), [(0.0, sending.METERS_MS), (WAIT_S, WAIT_S * 1e3)])
def test_spans_and_metrics_share_the_time_that_leaving_takes(
    courier: Courier, monkeypatch: pytest.MonkeyPatch, leaving_s: float, most_ms: float
) -> None:
    """A receiver that is away holds up the end of a program once, not twice."""
    left: list[float] = []

    class Meters:
        def shutdown(self, timeout_ms: float) -> None:
            left.append(timeout_ms)

    monkeypatch.setattr(sending, "LEAVING_S", leaving_s)
    provider = sending.Provider(Options(), Resource({}))
    provider.meters = cast(MeterProvider, Meters())
    provider.send_by(courier)
    provider.shutdown()
    assert len(left) == 1
    assert sending.METERS_MS <= left[0] <= most_ms
