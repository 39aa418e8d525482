"""Tracing inside a worker process: its body's own spans stand below the attempt's, which the parent tells."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from .options import Options


def options_here() -> Options | None:
    """Return how :func:`~stepwell.init_tracing` was called here; ``None`` if it was not, or is over."""
    module: Any = sys.modules.get("stepwell.observe.provider")
    if module is None:
        return None
    found: Any = sys.modules["opentelemetry.trace"].get_tracer_provider()
    options: Options | None = found.options if isinstance(found, module.Provider) and not found.over else None
    return options


@contextmanager
def joined(traceparent: str, options: Options | None) -> Generator[None]:
    """Run a body as part of the trace that another process began, and send its spans before going on."""
    if not traceparent:
        yield
        return
    from opentelemetry import context, trace

    from .spans import read
    from .tracing import init_tracing
    from .watching import acts

    if options is not None and not acts(trace.get_tracer_provider()):
        init_tracing(
            service_name=options.service_name,
            endpoint=options.endpoint,
            protocol=options.protocol,
            headers=options.headers,
        )
    token = context.attach(trace.set_span_in_context(trace.get_current_span(read(traceparent))))
    try:
        yield
    finally:
        context.detach(token)
        if (settle := getattr(trace.get_tracer_provider(), "settle", None)) is not None:
            settle()  # the next body may be one that ends this process
