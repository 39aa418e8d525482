"""Forks a fresh process for each line of JSON it reads, waits for its end, and answers with a line.

It imports everything first, opens no database and starts no thread, so a fork is safe and takes milliseconds where a
new interpreter takes a hundred.
"""

from __future__ import annotations

import gc
import json
import os
import pkgutil
import signal
import sys
import traceback
from importlib import import_module

ROOMS = ("stepwell.engine", "stepwell.backend", "stepwell.codec", "stepwell.runtime", "stepwell.testing")
SCRIPTS = ("scenario", "requested", "changed", "banking", "looking")
PATIENCE_S = 30


def main() -> None:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    import asyncio  # noqa: F401  # so that no child has to

    for room in ROOMS:
        for found in pkgutil.iter_modules(import_module(room).__path__):
            import_module(f"{room}.{found.name}")
    play = import_module("tests.crash.dying").play
    scripts = {name: vars(import_module(f"tests.crash.{name}")) for name in SCRIPTS}
    parts = {f"{name}.{part}": made for name, made_in in scripts.items() for part, made in made_in.items()}
    gc.freeze()
    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            _child(play, json.loads(line), parts, write)
        os.close(write)
        with os.fdopen(read) as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        print(json.dumps({"exit": os.waitstatus_to_exitcode(status), "found": json.loads(said or "{}")}), flush=True)  # noqa: T201 - the parent reads it


def _child(play, request, parts, write):  # type: ignore[no-untyped-def]
    """Never returns: nothing of the server's runs in a child. One that waits for ever is a finding, so it is ended."""
    signal.alarm(PATIENCE_S)
    try:
        found = play(request, parts)
    except BaseException:  # noqa: BLE001  # reported by the parent
        found = {"error": traceback.format_exc()}
    os.write(write, json.dumps(found).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
