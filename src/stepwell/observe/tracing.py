"""Switching tracing on and off: the public door, which imports OpenTelemetry only when it is opened."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from stepwell.errors import OptionError, UsageError

from .options import Options

if TYPE_CHECKING:
    from .provider import Provider

PROTOCOLS: Final = ("http/protobuf", "grpc")
_NEEDED: Final = "opentelemetry.sdk", "opentelemetry.exporter.otlp"


def init_tracing(
    *,
    service_name: str = "",
    endpoint: str = "",
    protocol: str = "",
    headers: Mapping[str, str] | None = None,
) -> None:
    """Send spans and metrics of workflows, and of the program's own code, to an OTLP receiver.

    Every run becomes one trace, whichever processes work on it, if each of them has called this. It sets the program's
    global tracer and meter provider, so spans that a task opens stand below those of its attempt. What is left out
    here is read from the standard variables: ``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_EXPORTER_OTLP_PROTOCOL``,
    ``OTEL_EXPORTER_OTLP_HEADERS``, ``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_TRACES_SAMPLER``,
    ``OTEL_TRACES_EXPORTER``, ``OTEL_METRICS_EXPORTER`` (``otlp`` or ``none``), ``OTEL_SDK_DISABLED`` and their kin.

    A program that has set up OpenTelemetry by itself needs no call: its provider is used as it is.

    Args:
        service_name: what the program is called there; default ``stepwell``.
        endpoint: the receiver's base address, ``http://localhost:4318`` or, for gRPC, ``http://localhost:4317``.
        protocol: ``"http/protobuf"``, the default, or ``"grpc"``.
        headers: sent with each request, for receivers that want a key.

    Raises:
        UsageError: OpenTelemetry is not installed, the program has a tracer provider already, or tracing was shut
            down before: a process begins it once.
        OptionError: an unknown protocol or exporter.

    Example:
        >>> init_tracing(service_name="orders", endpoint="http://localhost:4318")  # doctest: +SKIP
    """
    options = Options(service_name, endpoint, protocol, dict(headers or {}))
    _check_installed()
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return
    if (own := _own()) is not None and not own.over:
        return
    _check_unset(own)
    from .provider import begin

    begin(options, *(_exporter(signal, protocol) for signal in ("TRACES", "METRICS")))


def shutdown_tracing() -> None:
    """Send what is left and stop tracing. Does nothing where :func:`init_tracing` was not called.

    Leaving the program does the same. Runners that are at work go on, untraced from their next run.

    Example:
        >>> shutdown_tracing()
    """
    if (own := _own()) is not None:
        own.shutdown()


def _exporter(signal: str, protocol: str) -> str:
    """Return the protocol for traces or metrics, ``""`` if they go nowhere."""
    kind = os.environ.get(f"OTEL_{signal}_EXPORTER", "").strip() or "otlp"
    if kind not in ("otlp", "none"):
        raise OptionError(
            f"OTEL_{signal}_EXPORTER={kind!r} is not known here; use 'otlp' or 'none', or set up a provider of your own"
        )
    names = (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    chosen = protocol or next(filter(None, map(os.environ.get, names)), PROTOCOLS[0])
    if chosen not in PROTOCOLS:
        raise OptionError(f"protocol must be one of {', '.join(map(repr, PROTOCOLS))}, not {chosen!r}")
    return chosen if kind == "otlp" else ""


def _own() -> Provider | None:
    """Return the provider that this process has begun, if it has."""
    api: Any = sys.modules.get("opentelemetry.trace")
    module: Any = sys.modules.get("stepwell.observe.provider")
    if api is None or module is None:
        return None
    found: Provider | None = api.get_tracer_provider()
    return found if isinstance(found, module.Provider) else None


def _check_installed() -> None:
    try:
        missing = [name for name in _NEEDED if find_spec(name) is None]
    except ModuleNotFoundError:
        missing = ["opentelemetry"]
    if missing:
        raise UsageError(f"{missing[0]} is not installed; tracing needs: pip install 'stepwell[otel]'")


def _check_unset(own: Provider | None) -> None:
    if own is not None:
        raise UsageError("tracing was shut down in this process; OpenTelemetry begins it once in each")
    from opentelemetry import trace

    from .watching import acts

    if acts(trace.get_tracer_provider()):
        raise UsageError(
            "this program has a tracer provider already, and workflows are traced with it; leave init_tracing() out"
        )
