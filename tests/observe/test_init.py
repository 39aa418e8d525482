"""Switching tracing on: what a real receiver gets, over which way, named how; each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import stepwell

from .receiver import check_tree, over_grpc, over_http

RUN = """
import sys
from stepwell import InProcessRunner, init_tracing, shutdown_tracing, task, workflow
from opentelemetry import trace
@task
def step(x: int) -> int:
    return x
@workflow
def small(x: int) -> int:
    return step(x)
def run():
    with InProcessRunner() as runner, trace.get_tracer("user").start_as_current_span("request"):
        runner.run(small, 1)
"""


def python(code: str, **env: str) -> str:
    """Run code in a new process with these variables, and return what it prints."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    kept["PYTHONPATH"] = str(Path(stepwell.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], env=kept | env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_http_is_the_default_and_the_variables_are_honoured() -> None:
    """Traces and metrics arrive, named and with headers; leaving the program sends what is left."""
    with over_http() as receiver:
        python(
            RUN + "init_tracing()\ninit_tracing()\nrun()",
            OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
            OTEL_SERVICE_NAME="orders",
            OTEL_EXPORTER_OTLP_HEADERS="x-key=abc",
            OTEL_EXPORTER_OTLP_COMPRESSION="gzip",
        )
    assert check_tree(receiver.spans).name == "request"
    assert {span.service for span in receiver.spans} == {"orders"}
    assert receiver.headers[0]["x-key"] == "abc"
    assert receiver.headers[0]["content-encoding"] == "gzip"
    assert receiver.metrics >= {
        "stepwell.attempts",
        "stepwell.attempt.duration",
        "stepwell.queue_wait",
        "stepwell.open_claims",
        "stepwell.runs",
    }


def test_arguments_come_before_variables() -> None:
    """And a timer is used where one is set."""
    with over_http() as receiver:
        python(
            RUN
            + f"init_tracing(service_name='mine', endpoint={receiver.endpoint!r}, headers={{'x-key': '1'}})\n"
            + "run()\nshutdown_tracing()\nrun()\nshutdown_tracing()",
            OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
            OTEL_SERVICE_NAME="orders",
            OTEL_BSP_SCHEDULE_DELAY="60000",
            OTEL_METRICS_EXPORTER="none",
        )
    assert check_tree(receiver.spans).name == "request"
    assert {span.service for span in receiver.spans} == {"mine"}
    assert receiver.headers[0]["x-key"] == "1"
    assert receiver.metrics == set()


@pytest.mark.parametrize("way", ["argument", "variable"])
def test_grpc_by_choice(way: str) -> None:
    """By argument or variable."""
    pytest.importorskip("grpc")
    with over_grpc() as receiver:
        call = "init_tracing(protocol='grpc')" if way == "argument" else "init_tracing()"
        env = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"} if way == "variable" else {}
        python(RUN + f"{call}\nrun()", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint, **env)
    assert check_tree(receiver.spans).name == "request"
    assert {span.service for span in receiver.spans} == {"stepwell"}


def test_switched_off_by_variable_nothing_is_sent() -> None:
    """As for every program that uses OpenTelemetry."""
    with over_http() as receiver:
        python(RUN + "init_tracing()\nrun()", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint, OTEL_SDK_DISABLED="true")
    assert receiver.spans == []


def test_a_receiver_that_is_not_there_stops_nothing() -> None:
    """The run ends, and no span is waited for by more than it is worth."""
    code = RUN + "import logging, os; logging.disable()\ninit_tracing()\nrun()\nprint('done', flush=True)\nos._exit(0)"
    assert python(code, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1") == "done\n"


MISUSES = {
    "begun after its end": ("init_tracing(); shutdown_tracing(); init_tracing()", "UsageError: tracing was shut down"),
    "a provider is there": (
        "from opentelemetry.sdk.trace import TracerProvider; trace.set_tracer_provider(TracerProvider());"
        "init_tracing()",
        "UsageError: this program has a tracer provider already",
    ),
    "unknown protocol": ("init_tracing(protocol='smoke')", "OptionError: protocol must be one of 'http/protobuf', "),
    "unknown exporter": (
        "import os; os.environ['OTEL_TRACES_EXPORTER'] = 'zipkin'; init_tracing()",
        "OptionError: OTEL_TRACES_EXPORTER='zipkin' is not known here",
    ),
    "not installed": (
        "import stepwell.observe.tracing as t; t.find_spec = lambda name: None; init_tracing()",
        "UsageError: opentelemetry.sdk is not installed; tracing needs: pip install 'stepwell[otel]'",
    ),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each misuse needs a process, and forks are cheap")
def test_misuse_is_told_with_its_mend() -> None:
    """Each in one line."""
    code = RUN + (
        "import json, os\n"
        "for name, (code, _) in json.loads(sys.argv[1] if len(sys.argv) > 1 else os.environ['CODES']).items():\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        try:\n"
        "            exec(code)\n"
        "        except Exception as error:\n"
        "            print(json.dumps([name, f'{type(error).__name__}: {error}']), flush=True)\n"
        "        os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
    )
    lines = python(code, CODES=json.dumps(MISUSES), OTEL_TRACES_EXPORTER="none", OTEL_METRICS_EXPORTER="none")
    told = dict(json.loads(line) for line in lines.splitlines())
    for name, (_, text) in MISUSES.items():
        assert told[name].startswith(text), name


def loaded(code: str) -> set[str]:
    return {name for name in python(code + "\nprint(*sys.modules)").split() if name.startswith("opentelemetry")}


OFF: dict[str, Any] = {
    "import": "import sys, stepwell",
    "run": RUN.replace("from opentelemetry import trace\n", "") + "with InProcessRunner() as r: r.run(small, 1)",
    "store": RUN.replace("from opentelemetry import trace\n", "")
    + "from stepwell import CheckpointingRunner, InMemoryBackend\n"
    + "with CheckpointingRunner(InMemoryBackend()) as r: r.run(small, 1)\nshutdown_tracing()",
}


@pytest.mark.parametrize("what", OFF)
def test_a_program_that_does_not_trace_imports_nothing_of_it(what: str) -> None:
    """Although it is installed."""
    assert loaded(OFF[what]) == set()


def test_a_program_that_has_the_api_and_no_provider_is_not_traced() -> None:
    """Libraries import the API for programs that may trace."""
    code = "import opentelemetry.trace, opentelemetry.metrics\n" + OFF["run"]
    assert "stepwell.observe.spans" not in python(code + "\nprint(*sys.modules)").split()
