"""The tracer provider that :func:`~stepwell.init_tracing` sets up, and how its spans get away.

A span is worth most when its process dies soon after. So spans do not wait for a timer here: before the next body
begins, whoever starts it lets the spans that are waiting go, all in one request, and waits for the receiver's answer.
A receiver close by takes that in milliseconds. A slow one is not waited for long: all waiting together takes at most a
tenth of the time (:class:`_Purse`), and none while the receiver fails. Where ``OTEL_BSP_SCHEDULE_DELAY`` is set, spans
wait for a timer after all, as the SDK has it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as contexts
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

if TYPE_CHECKING:
    from .options import Options

_LOG: Final = logging.getLogger("stepwell.observe")

QUEUE_SPANS: Final = 8_192
BATCH_SPANS: Final = 512
LINGER_S: Final = 0.2  # what nobody waits for is sent this long after it came
PATIENCE_S: Final = 0.2  # the longest wait for one answer
SHARE: Final = 0.1  # of the time may be spent waiting …
CREDIT_S: Final = 1.0  # … and this much at once
LEAVING_S: Final = 5.0  # so long leaving waits for the receiver, for spans and metrics together
METERS_MS: Final = 500  # what is left for metrics then, at least


class Provider(TracerProvider):
    """The SDK's provider, which also knows how it was begun and whether it is over."""

    def __init__(self, options: Options, resource: Resource) -> None:
        super().__init__(resource=resource)
        self.options = options
        self.over = False
        self.meters: MeterProvider | None = None
        self._courier: Courier | None = None

    def send_by(self, processor: SpanProcessor) -> None:
        self._courier = processor if isinstance(processor, Courier) else None
        self.add_span_processor(processor)

    def settle(self) -> None:
        """Let what has ended go before anything else happens. Never waits long, and never on an event loop."""
        if self._courier is not None:
            self._courier.settle()

    def shutdown(self) -> None:
        if self.over:
            return
        self.over = True
        until_s = time.monotonic() + LEAVING_S
        super().shutdown()
        if self.meters is not None:
            self.meters.shutdown(max(METERS_MS, (until_s - time.monotonic()) * 1e3))


def begin(options: Options, traces: str, meters: str) -> None:
    """Set the program's global providers. ``traces`` and ``meters`` are protocols, ``""`` for none."""
    resource = _resource(options)
    provider = Provider(options, resource)
    if traces:
        exporter = span_exporter(traces, options)
        timed = bool(os.environ.get("OTEL_BSP_SCHEDULE_DELAY"))
        provider.send_by(BatchSpanProcessor(exporter) if timed else Courier(exporter))
    trace.set_tracer_provider(provider)
    if meters:
        reader = PeriodicExportingMetricReader(metric_exporter(meters, options))
        provider.meters = MeterProvider([reader], resource, shutdown_on_exit=False)
        metrics.set_meter_provider(provider.meters)


def _resource(options: Options) -> Resource:
    named = Resource.create({"service.name": options.service_name} if options.service_name else None)
    if options.service_name or os.environ.get("OTEL_SERVICE_NAME") or "service.name" in _env_attributes():
        return named
    return named.merge(Resource({"service.name": "stepwell"}))


def _env_attributes() -> str:
    return os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")


def span_exporter(protocol: str, options: Options) -> SpanExporter:
    """Return what sends spans. What the options leave open it reads from the environment."""
    given = _given(options, protocol, "/v1/traces")
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc

        return OverGrpc(**given)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

    return OverHttp(**given)


def metric_exporter(protocol: str, options: Options) -> MetricExporter:
    """Return what sends metrics."""
    given = _given(options, protocol, "/v1/metrics")
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as OverGrpc

        return OverGrpc(**given)
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as OverHttp

    return OverHttp(**given)


def _given(options: Options, protocol: str, path: str) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if options.endpoint:
        given["endpoint"] = options.endpoint if protocol == "grpc" else options.endpoint.rstrip("/") + path
    if options.headers:
        given["headers"] = dict(options.headers)
    return given


# --- sending ----------------------------------------------------------------------------------------------


class _Purse:
    """Time that may be spent waiting: a share of what goes by, saved up to a limit."""

    def __init__(self) -> None:
        self._saved_s, self._at_s = CREDIT_S, time.monotonic()

    def left(self) -> float:
        now = time.monotonic()
        self._saved_s = min(CREDIT_S, self._saved_s + SHARE * (now - self._at_s))
        self._at_s = now
        return self._saved_s

    def spend(self, seconds: float) -> None:
        self._saved_s -= seconds


class Courier(SpanProcessor):
    """Sends spans from a thread of its own: at once if somebody waits, else a moment later, many in one request."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._spans: deque[ReadableSpan] = deque()
        self._dropped = 0
        self._over = False
        self._begin()
        if hasattr(os, "register_at_fork"):
            child = weakref.WeakMethod(self._begin)
            os.register_at_fork(after_in_child=lambda: (begin := child()) and begin(forked=True))

    def _begin(self, forked: bool = False) -> None:
        """Start the thread; a forked child has lost it, and its parent sends what had been waiting."""
        if forked:
            self._spans.clear()
        self._purse = _Purse()
        self._changed = threading.Condition()
        self._urgent = self._failing = False
        self._sending = 0
        self._thread = threading.Thread(target=self._work, name="stepwell-spans", daemon=True)
        if not self._over:
            self._thread.start()

    # --- what the SDK calls ---

    def on_start(self, span: Span, parent_context: contexts.Context | None = None) -> None:
        return

    def on_end(self, span: ReadableSpan) -> None:
        if self._over or not span.context or not span.context.trace_flags.sampled:
            return
        with self._changed:
            if len(self._spans) < QUEUE_SPANS:
                self._spans.append(span)
            else:
                self._dropped += 1
            self._changed.notify_all()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._wait(timeout_millis / 1e3)

    def shutdown(self) -> None:
        if self._over:
            return
        self._wait(LEAVING_S)
        self._over = True
        with self._changed:
            self._changed.notify_all()
        self._exporter.shutdown()

    # --- waiting ---

    def settle(self) -> None:
        """Wait until what has ended is away, if that is worth it."""
        if not (self._spans or self._sending) or self._failing or _on_a_loop():
            return
        patience = min(PATIENCE_S, self._purse.left())
        if patience > 0:
            began = time.monotonic()
            self._wait(patience)
            self._purse.spend(time.monotonic() - began)

    def _wait(self, seconds: float) -> bool:
        with self._changed:
            self._urgent = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._spans and not self._sending, seconds)

    # --- the thread ---

    def _work(self) -> None:
        contexts.attach(contexts.set_value(_UNTRACED, True))  # the request itself is nobody's span
        while batch := self._next():
            sent = self._send(batch)
            with self._changed:
                self._sending, self._failing = 0, not sent
                self._urgent = self._urgent and bool(self._spans)
                self._changed.notify_all()

    def _next(self) -> Sequence[ReadableSpan]:
        """Wait for spans and take some; none: it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._spans or self._over)
            self._changed.wait_for(self._is_time, LINGER_S)
            batch = [self._spans.popleft() for _ in range(min(BATCH_SPANS, len(self._spans)))]
            self._sending = len(batch)
            dropped, self._dropped = self._dropped, 0
        if dropped:
            _LOG.warning("%d spans were dropped: the receiver does not keep pace", dropped)
        return batch

    def _is_time(self) -> bool:
        return self._urgent or self._over or len(self._spans) >= BATCH_SPANS

    def _send(self, batch: Sequence[ReadableSpan]) -> bool:
        try:
            return self._exporter.export(batch) is SpanExportResult.SUCCESS
        except Exception as error:  # noqa: BLE001  # tracing must not end a workflow
            _LOG.warning("spans could not be sent: %s", type(error).__name__)
            return False


_UNTRACED: Final = contexts._SUPPRESS_INSTRUMENTATION_KEY  # pyright: ignore[reportPrivateUsage]  # the SDK's own way


def _on_a_loop() -> bool:
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None
