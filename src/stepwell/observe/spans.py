"""Spans and metrics of runs. Imported only by a program that has OpenTelemetry and traces.

A run's trace is one tree::

    the caller's span
    └─ start checkout            ended when the run exists, so whatever becomes of its processes, it is there
       ├─ charge                 attempt 1: failed
       ├─ charge                 attempt 2, linked to attempt 1
       ├─ signal approve         by whoever sent it, linked to what the sender was doing
       └─ ship                   linked to the signal that it followed, and to what the sender was doing; spans of
                                 the task's own hang below it

All attempts are children of the start, and its context is what the store keeps of the trace. A run that was started
by a program which does not trace has a trace of its own; its start is told by whoever commits the first thing that
happens to it, which the store lets only one do.

What the sender of a signal was doing is stored with the signal. So the link to it needs neither the sender's tracer nor
its good luck; the link to the signal's own span is made of ids that both sides work out.

*Told when it counts.* The span of an attempt is begun where its body runs, so that the task's own spans find it, and
ended only once the outcome is committed. A process that was killed, or has lost its lease, thus tells nothing; the
attempt that runs in its place has the same number and the same span id (:mod:`.ids`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast

from opentelemetry import context as contexts
from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from . import ids, w3c

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Token

    from stepwell.flow.plan import Key

    from .watching import Arrival, Attempt, Run

SCOPE: Final = "stepwell"
_DURATIONS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0, 7_200.0)
_W3C: Final = TraceContextTextMapPropagator()


# --- contexts as text ------------------------------------------------------------------------------------


def written(context: Context) -> str:
    """Return a context as the store keeps it: ``traceparent``, and after a space ``tracestate`` if there is one."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, context)
    return w3c.kept(carrier.get("traceparent", ""), carrier.get("tracestate", ""))


def here() -> str:
    """Return what the caller is doing, as the store keeps it."""
    return written(contexts.get_current())


def read(text: str) -> Context:
    """Return the context that :func:`written` gave; an empty one for what is no W3C context."""
    parent, _, state = text.partition(" ")
    return _W3C.extract({"traceparent": parent, "tracestate": state} if state else {"traceparent": parent}, Context())


# --- ids that are given --------------------------------------------------------------------------------


class _Given(threading.local):
    trace_id = span_id = 0


class GivenIds:
    """Stands in for a tracer's id generator: the next ids may be given, by thread; else they are drawn as before."""

    def __init__(self, drawn: Any) -> None:
        self._drawn = drawn
        self.next = _Given()

    def generate_trace_id(self) -> int:
        given, self.next.trace_id = self.next.trace_id, 0
        return given or cast(int, self._drawn.generate_trace_id())

    def generate_span_id(self) -> int:
        given, self.next.span_id = self.next.span_id, 0
        return given or cast(int, self._drawn.generate_span_id())

    def is_trace_id_random(self) -> bool:
        return bool(self._drawn.is_trace_id_random()) if hasattr(self._drawn, "is_trace_id_random") else False


def _give_ids(tracer: Tracer) -> GivenIds | None:
    """Take over a tracer's ids; ``None`` for a tracer that is not the SDK's own kind."""
    found: Any = getattr(tracer, "id_generator", None)
    if found is None or isinstance(found, GivenIds):
        return found
    ids = GivenIds(found)
    cast(Any, tracer).id_generator = ids  # the tracer is this scope's alone
    return ids


# --- what one program traces with ------------------------------------------------------------------------


class _Instruments(NamedTuple):
    attempts: metrics.Counter
    duration: metrics.Histogram
    queue_wait: metrics.Histogram
    open_claims: metrics.UpDownCounter
    runs: metrics.Counter

    @classmethod
    def of(cls, meter: metrics.Meter) -> _Instruments:
        return cls(
            meter.create_counter("stepwell.attempts", "{attempt}", "Attempts of steps whose outcome is stored"),
            _seconds(meter, "stepwell.attempt.duration", "How long the bodies of attempts ran"),
            _seconds(meter, "stepwell.queue_wait", "From the moment a step was ready or due until its body began"),
            meter.create_up_down_counter("stepwell.open_claims", "{instance}", "Instances that are worked on"),
            meter.create_counter("stepwell.runs", "{run}", "Runs that have ended"),
        )


def _seconds(meter: metrics.Meter, name: str, description: str) -> metrics.Histogram:
    return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=_DURATIONS)


def tracing_of(provider: trace.TracerProvider) -> Tracing:
    """Return what to trace with: this provider, and the program's meters."""
    return Tracing(provider, _Instruments.of(metrics.get_meter_provider().get_meter(SCOPE)))


class Tracing:
    """Makes the spans and counts of all runs of one runner or client."""

    def __init__(self, provider: trace.TracerProvider, instruments: _Instruments) -> None:
        self.tracer = provider.get_tracer(SCOPE)
        self.count = instruments
        self.settle: Callable[[], object] | None = getattr(provider, "settle", None)
        self._ids = _give_ids(self.tracer)

    @property
    def knows_ids(self) -> bool:
        """Whether span ids are the same in every process; else nothing can be linked to them."""
        return self._ids is not None

    def span(
        self,
        name: str,
        parent: Context,
        span_id: int = 0,
        *,
        trace_id: int = 0,
        links: Iterable[Link] = (),
        kind: SpanKind = SpanKind.INTERNAL,
        start_ns: int | None = None,
        attributes: dict[str, str | int],
    ) -> Span:
        """Begin a span under these ids, as far as they are given and the tracer takes them."""
        if self._ids is not None:
            self._ids.next.trace_id, self._ids.next.span_id = trace_id, span_id
        try:
            return self.tracer.start_span(name, parent, kind, attributes, list(links), start_ns)
        finally:
            if self._ids is not None:  # a span that is not sampled draws none
                self._ids.next.trace_id = self._ids.next.span_id = 0

    def run(self, run: Run, beginning: _Beginning | None = None) -> TracedRun:
        return TracedRun(self, run, beginning)

    def beginning(self, workflow: str, instance_id: str) -> _Beginning:
        """Begin the start of a run, as a child of what the caller is doing."""
        attributes: dict[str, str | int] = {"stepwell.workflow": workflow, "stepwell.instance": instance_id}
        here = contexts.get_current()
        span = self.span(f"start {workflow}", here, kind=SpanKind.PRODUCER, attributes=attributes)
        return _Beginning(span)

    def signalled(self, run: Run, name: str, at_us: int) -> None:
        """Tell of a signal in the trace of its run, linked to what its sender is doing."""
        line = TracedRun(self, run, None)
        sender = trace.get_current_span().get_span_context()
        span = self.span(
            f"signal {name}",
            line.parent,
            line.signal_id(name, at_us),
            links=[Link(sender)] if sender.is_valid else (),
            kind=SpanKind.PRODUCER,
            attributes={**line.attributes, "stepwell.signal": name},
        )
        span.end()
        if self.settle is not None:
            self.settle()


class _Beginning:
    """The start of a run that is being created; it is told only if that comes about."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.context = trace.set_span_in_context(span, Context())
        self.trace = written(self.context)

    def created(self) -> None:
        self.span.end()


# --- runs and attempts -----------------------------------------------------------------------------------


class Ended(Protocol):
    def tell(self) -> None: ...


class TracedRun:
    """One run in one runner's hands. Only the thread that drives it calls this."""

    def __init__(self, tracing: Tracing, run: Run, beginning: _Beginning | None) -> None:
        self.tracing, self._run, self._beginning = tracing, run, beginning
        self.trace = beginning.trace if beginning is not None else ""
        self._waiting: dict[tuple[str, int], Ended] = {}
        self._arrivals: dict[int, Arrival] = {}
        self._let_go: dict[Key, Sequence[int]] = {}
        self._opened_before: frozenset[Key] = frozenset()
        self._ready_us = 0
        self._own_start: Span | None = None
        self._parent: Context | None = None
        self._hash: Any = None
        self._stored = True

    # --- what its spans are made with: looked up late, as a row may bring it ---

    @property
    def hash(self) -> Any:
        if self._hash is None:
            run = self._run
            self._hash = ids.run_hash(run.backend_id, run.instance_id, run.run)
        return self._hash

    @property
    def attributes(self) -> dict[str, str | int]:
        run = self._run
        return {"stepwell.workflow": run.workflow, "stepwell.instance": run.instance_id, "stepwell.run": run.run}

    @property
    def parent(self) -> Context:
        """The context of the run's start."""
        if self._parent is None:
            if self._beginning is not None:
                self._parent = self._beginning.context
            elif not trace.get_current_span(stored := read(self._run.trace)).get_span_context().is_valid:
                self._parent = trace.set_span_in_context(self._start(), Context())
            else:
                self._parent = stored
        return self._parent

    def _start(self) -> Span:
        """Begin the start of a run that came into being without a trace; every process begins the same one."""
        self._own_start = self.tracing.span(
            f"start {self._run.workflow}",
            Context(),
            ids.span_id(self.hash, "start"),
            trace_id=ids.trace_id(self.hash),
            kind=SpanKind.PRODUCER,
            attributes=self.attributes,
        )
        return self._own_start

    def signal_id(self, name: str, at_us: int) -> int:
        """Return the id of the span of a signal that arrived at this moment."""
        return ids.span_id(self.hash, "signal", name, at_us)

    def attempt_id(self, known_as: str, number: int) -> int:
        return ids.span_id(self.hash, known_as, number)

    def link(self, span_id: int) -> Link:
        """Return a link to another span of this run."""
        start = trace.get_current_span(self.parent).get_span_context()
        return Link(SpanContext(start.trace_id, span_id, True, TraceFlags(start.trace_flags), start.trace_state))

    # --- what happens to it ---

    def entered(self, stored: bool) -> None:
        self._stored = stored
        self.tracing.count.open_claims.add(1, {"workflow": self._run.workflow})
        if not stored:
            self._tell_start()

    def attempt(self, job: Attempt, due_us: int, now_us: int) -> TracedAttempt:
        if self.tracing.settle is not None:  # a body may end the process; what came before it is told then
            self.tracing.settle()
        since_us = max(due_us, self._ready_us) or now_us
        return TracedAttempt(self, job, max(0, now_us - since_us))

    def restored(self, ready_us: int, open_steps: Iterable[Key]) -> None:
        self._ready_us, self._opened_before = ready_us, frozenset(open_steps)
        self._arrivals, self._let_go = {}, {}  # what was not stored may never have been

    def links(self, job: Attempt) -> list[Link]:
        """Return links to what an attempt follows from, besides the start: an earlier attempt, signals."""
        signals = self._signals(job)
        known = [self.signal_id(signal.name, signal.at_us) for signal in signals]
        if job.number > 1:
            known.append(self.attempt_id(job.known_as, job.number - 1))
        here = [self.link(span_id) for span_id in known] if self.tracing.knows_ids else []
        return [*here, *_senders(signals)]

    def _signals(self, job: Attempt) -> list[Arrival]:
        """Return the signals that an attempt reads, and those that let its step go."""
        let_go: Iterable[int] | None = self._let_go.pop(job.key, None)
        if let_go is None and (job.number > 1 or job.key in self._opened_before):
            let_go = job.let_go_by()
        addresses = dict.fromkeys((*job.signals(), *(let_go or ())))
        found = (self._arrivals.get(address) or job.arrival(address) for address in addresses)
        return [signal for signal in found if signal is not None]

    def arrived(self, address: int, signal: Arrival) -> None:
        self._arrivals[address] = signal

    def let_go(self, steps: Mapping[Key, Sequence[int]]) -> None:
        self._let_go.update(steps)

    def crashed(self, path: str, known_as: str, task: str, attempt: int) -> None:
        self._waiting.setdefault((known_as, attempt), _Crashed(self, path, known_as, task, attempt))

    def ended(self, attempt: Ended, known_as: str, number: int, final: bool) -> None:
        """Tell of an attempt once its outcome is stored, or at once."""
        if final or not self._stored:
            attempt.tell()
        else:
            self._waiting[known_as, number] = attempt

    def committed(self, base: int) -> None:
        if base == 0 or (base == 1 and self._beginning is None):  # it exists by now, or goes its first step
            self._tell_start()
        self._ready_us = 0
        waiting, self._waiting = self._waiting, {}
        for attempt in waiting.values():
            attempt.tell()

    def _tell_start(self) -> None:
        if self._beginning is not None:
            self._beginning.created()
        elif self.parent and self._own_start is not None:
            self._own_start.end()

    def left(self, ended: str) -> None:
        count, workflow = self.tracing.count, self._run.workflow
        count.open_claims.add(-1, {"workflow": workflow})
        if ended:
            self.committed(-1)
            count.runs.add(1, {"workflow": workflow, "state": ended})


def _senders(signals: Iterable[Arrival]) -> list[Link]:
    """Return links to what the senders of signals were doing, as it was stored."""
    traces = dict.fromkeys(signal.trace for signal in signals if signal.trace)
    contexts = (trace.get_current_span(read(text)).get_span_context() for text in traces)
    return [Link(context) for context in contexts if context.is_valid]


class TracedAttempt:
    """One attempt: its span is begun where the body runs, and ended where its outcome is committed."""

    def __init__(self, run: TracedRun, job: Attempt, waited_us: int) -> None:
        self.entered = False
        self._run, self._job, self._waited_s = run, job, waited_us / 1e6
        self._handed_ns = time.perf_counter_ns()
        self._began_ns = self._clock_ns = self._took_ns = 0
        self._span: Span | None = None
        self._token: Token[Context] | None = None
        self._outcome = self._error = ""
        self._known_as, self._parent = job.known_as, run.parent
        self._links = run.links(job)

    def _attributes(self) -> dict[str, str | int]:
        job = self._job
        return {**self._run.attributes, "stepwell.path": job.path, "stepwell.attempt": job.number}

    def __enter__(self) -> None:
        job, run = self._job, self._run
        self.entered = True
        self._began_ns, self._clock_ns = time.time_ns(), time.perf_counter_ns()
        self._span = run.tracing.span(
            job.task_name,
            self._parent,
            run.attempt_id(self._known_as, job.number),
            links=self._links,
            start_ns=self._began_ns,
            attributes=self._attributes(),
        )
        self._token = contexts.attach(trace.set_span_in_context(self._span))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._took_ns = time.perf_counter_ns() - self._clock_ns
        if self._token is not None:
            contexts.detach(self._token)

    def traceparent(self) -> str:
        return written(trace.set_span_in_context(self._span, Context())) if self._span is not None else ""

    def ended(self, outcome: str, error: str, final: bool) -> None:
        if self._span is None:
            return  # it was called off before its body began
        self._outcome, self._error = outcome, error
        self._took_ns = self._took_ns or time.perf_counter_ns() - self._clock_ns
        self._run.ended(self, self._known_as, self._job.number, final)

    def tell(self) -> None:
        """End the span, and count."""
        span, count = self._span, self._run.tracing.count
        assert span is not None
        labels = {"workflow": str(self._run.attributes["stepwell.workflow"]), "task": self._job.task_name}
        span.set_attribute("stepwell.outcome", self._outcome)
        if self._error:
            span.set_attribute("error.type", self._error)
            span.set_status(Status(StatusCode.ERROR, self._error))
        span.end(self._began_ns + self._took_ns)
        count.attempts.add(1, {**labels, "outcome": self._outcome})
        count.duration.record(self._took_ns / 1e9, labels)
        count.queue_wait.record(self._waited_s + max(0, self._clock_ns - self._handed_ns) / 1e9, labels)


class _Crashed:
    """An attempt that was lost with its process: nobody saw it end, so its span is the moment that it was missed."""

    def __init__(self, run: TracedRun, path: str, known_as: str, task: str, number: int) -> None:
        self._run, self._path, self._known_as, self._task, self._number = run, path, known_as, task, number
        self._at_ns = time.time_ns()

    def tell(self) -> None:
        run = self._run
        found: dict[str, str | int] = {"stepwell.path": self._path, "stepwell.attempt": self._number}
        span = run.tracing.span(
            self._task,
            run.parent,
            run.attempt_id(self._known_as, self._number),
            start_ns=self._at_ns,
            attributes={**run.attributes, **found, "stepwell.outcome": "crashed"},
        )
        span.set_status(Status(StatusCode.ERROR, "crashed"))
        span.end(self._at_ns)
        labels = {"workflow": str(run.attributes["stepwell.workflow"]), "task": self._task, "outcome": "crashed"}
        run.tracing.count.attempts.add(1, labels)
