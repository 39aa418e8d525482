"""A nightly batch that dies in the middle, and the next start that finishes it.

The batch runs in a process of its own, which kills itself (``os._exit``, no clean-up of any kind) in the fifth step.
``recover`` then continues every unfinished run of the file: what was recorded is kept, the step that was cut off runs
again. The tasks write ``work.log`` themselves, so it tells what really ran.
"""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path

from stepwell import CheckpointingRunner, SqliteBackend, task, workflow

REGIONS = ("africa", "america", "asia", "europe", "oceania")


@task
def count(folder: str, region: str) -> int:
    log = Path(folder, "work.log")
    with log.open("a") as lines:
        lines.write(f"{region}\n")
    if len(log.read_text().split()) == len(REGIONS):
        os._exit(1)  # the power goes
    return len(region)


@task
def total(counts: list[int]) -> int:
    return sum(counts)


@workflow
def nightly(folder: str) -> int:
    return total([count(folder, region) for region in REGIONS])


def batch(folder: str) -> None:
    with closing(SqliteBackend(Path(folder, "batch.db"))) as store, CheckpointingRunner(store) as runner:
        runner.start(nightly, folder, instance_id="2026-01-31")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        died = subprocess.run([sys.executable, __file__, folder], check=False)  # noqa: S603 - this very file
        print(f"the batch died with exit status {died.returncode}")
        with closing(SqliteBackend(Path(folder, "batch.db"))) as store, CheckpointingRunner(store) as runner:
            for status in runner.recover([nightly], wait=True):
                print(f"run {status.instance_id} is {status.state}")
            print(f"its output is {runner.resume(nightly, '2026-01-31')}")
        for region, times in Counter(Path(folder, "work.log").read_text().split()).items():
            print(f"  {region} ran {times} time{'s'[: times - 1]}")


if __name__ == "__main__":
    batch(sys.argv[1]) if sys.argv[1:] else main()
