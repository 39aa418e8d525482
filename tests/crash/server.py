"""Forks a fresh process for each line of JSON it reads, waits for its end, and answers with a line.

It imports everything first, opens no database and starts no thread, so a fork is safe and takes milliseconds where a
new interpreter takes a hundred.
"""

from __future__ import annotations

import json
import os
import sys
import traceback


def main() -> None:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import asyncio  # noqa: F401  # so that no child has to

    import scenario  # type: ignore[import-not-found]

    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            _child(scenario.play, json.loads(line), write)
        os.close(write)
        with os.fdopen(read) as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        print(json.dumps({"exit": os.waitstatus_to_exitcode(status), "found": json.loads(said or "{}")}), flush=True)  # noqa: T201 - the parent reads it


def _child(play, request, write):  # type: ignore[no-untyped-def]
    """Never returns: nothing of the server's runs in a child."""
    try:
        found = play(request)
    except BaseException:  # noqa: BLE001  # reported by the parent
        found = {"error": traceback.format_exc()}
    os.write(write, json.dumps(found).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
