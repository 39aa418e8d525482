"""Spans and metrics kept in memory, and what a trace is checked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class Seen:
    """What one test's program has told."""

    def __init__(self) -> None:
        self._exporter, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.user = self.provider.get_tracer("user")

    def close(self) -> None:
        self.provider.shutdown()
        self.meters.shutdown()

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def points(self, name: str) -> list[Any]:
        """Return the data points of one metric."""
        data = self._reader.get_metrics_data()
        scopes = [scope for each in (data.resource_metrics if data else ()) for scope in each.scope_metrics]
        return [point for scope in scopes for m in scope.metrics if m.name == name for point in m.data.data_points]


def context(span: ReadableSpan) -> Any:
    assert span.context is not None
    return span.context


def check_tree(spans: Iterable[ReadableSpan]) -> ReadableSpan:
    """Check that spans are one tree, each there once and over, and return its root."""
    spans = list(spans)
    by_id = {context(span).span_id: span for span in spans}
    assert len(by_id) == len(spans), "a span is there twice"
    assert len({context(span).trace_id for span in spans}) == 1
    roots = [span for span in spans if span.parent is None]
    assert len(roots) == 1
    for span in spans:
        assert span.parent is None or span.parent.span_id in by_id, f"{span.name} is an orphan"
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.end_time >= span.start_time
    return roots[0]


def follows(span: ReadableSpan) -> set[int]:
    """Return the ids of the spans that one is linked to."""
    return {link.context.span_id for link in span.links}
