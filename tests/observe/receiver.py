"""An OTLP receiver on the loopback, over HTTP or gRPC: it decodes what comes and keeps it."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

WAIT_S = 60.0


class Got(NamedTuple):
    """One span as it arrived."""

    name: str
    service: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    links: tuple[str, ...]
    attributes: dict[str, Any]
    status: int
    text: str


class Receiver:
    """What has arrived so far. Thread-safe."""

    def __init__(self) -> None:
        self.spans: list[Got] = []
        self.metrics: set[str] = set()
        self.headers: list[dict[str, str]] = []
        self.endpoint = ""
        self._arrived = threading.Condition()

    def take_traces(self, data: bytes, headers: dict[str, str]) -> None:
        request = ExportTraceServiceRequest.FromString(data)
        with self._arrived:
            self.headers.append(headers)
            for resource in request.resource_spans:
                service = _plain(resource.resource.attributes)["service.name"]
                self.spans += [_got(span, service) for scope in resource.scope_spans for span in scope.spans]
            self._arrived.notify_all()

    def take_metrics(self, data: bytes) -> None:
        request = ExportMetricsServiceRequest.FromString(data)
        with self._arrived:
            for resource in request.resource_metrics:
                self.metrics |= {metric.name for scope in resource.scope_metrics for metric in scope.metrics}

    def wait_for(self, *names: str) -> None:
        """Wait until spans of these names are here."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: {span.name for span in self.spans} >= set(names), WAIT_S)


def _plain(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


def _got(span: Any, service: str) -> Got:
    return Got(
        span.name, service, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(),
        span.start_time_unix_nano, span.end_time_unix_nano, tuple(link.span_id.hex() for link in span.links),
        _plain(span.attributes), span.status.code, str(span),
    )  # fmt: skip


@contextmanager
def over_http() -> Iterator[Receiver]:
    """Receive on a free port."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                data = gzip.decompress(data)
            if self.path == "/v1/traces":
                receiver.take_traces(data, {name.lower(): value for name, value in self.headers.items()})
            elif self.path == "/v1/metrics":
                receiver.take_metrics(data)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    receiver.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def over_grpc() -> Iterator[Receiver]:
    """Receive traces by gRPC on a free port."""
    import grpc

    receiver = Receiver()

    def export(request: bytes, context: Any) -> bytes:
        receiver.take_traces(request, dict(context.invocation_metadata()))
        return bytes(ExportTraceServiceResponse().SerializeToString())

    def ignore(request: bytes, context: Any) -> bytes:
        return b""

    server = grpc.server(ThreadPoolExecutor(2))
    for service, answer in (("trace.v1.TraceService", export), ("metrics.v1.MetricsService", ignore)):
        handler = grpc.unary_unary_rpc_method_handler(answer)
        name = f"opentelemetry.proto.collector.{service}"
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"Export": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    receiver.endpoint = f"http://127.0.0.1:{port}"
    try:
        yield receiver
    finally:
        server.stop(None).wait()


def check_tree(spans: list[Got]) -> Got:
    """Check that what arrived is one tree, every span once and over, and return its root."""
    ids = [span.span_id for span in spans]
    assert len(set(ids)) == len(ids), "a span arrived twice"
    assert len({span.trace_id for span in spans}) == 1
    orphans = [span.name for span in spans if span.parent_id and span.parent_id not in ids]
    assert not orphans
    roots = [span for span in spans if not span.parent_id]
    assert len(roots) == 1
    assert all(0 < span.start <= span.end for span in spans)
    return roots[0]
