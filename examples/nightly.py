"""A nightly batch over files that dies in the middle, and the next start, which finishes exactly what is left.

Run ``python examples/nightly.py``. The first process creates one instance per shop, takes up one after the other, and
kills itself (``os._exit``, no clean-up of any kind) in the fifth step. ``recover`` in the second one goes on with every
unfinished run, side by side: what was recorded is kept, the step that was cut off runs again. A shop whose file is
broken fails, is mended, and is retried from the failed step. The tasks write ``work.log``, which tells what really ran.
"""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path

from stepwell import CheckpointingRunner, Retention, SqliteBackend, task, task_context, workflow

NIGHT = "2026-01-31"
SALES = {"agra": "3\n4", "delhi": "10\n20\n30", "jaipur": "7", "pune": "1\noops\n2", "surat": "5\n5"}
DIES_IN_STEP = 5


def work_log(folder: Path) -> list[str]:
    log = folder / "work.log"
    return log.read_text().splitlines() if log.exists() else []


def note(folder: Path) -> None:
    context = task_context()
    with (folder / "work.log").open("a") as log:
        log.write(f"{context.instance_id} {context.path}\n")
    if (folder / "dies").exists() and len(work_log(folder)) == DIES_IN_STEP:
        os._exit(9)  # the power goes


@task
def total(path: str) -> int:
    note(Path(path).parent)
    return sum(int(line) for line in Path(path).read_text().split())


@task
def book(path: str, amount: int) -> str:
    note(Path(path).parent)
    return f"{Path(path).stem} sold {amount}"


@workflow
def close_day(path: str) -> str:
    return book(path, total(path))


def begin(folder: Path) -> None:
    """The first process: all instances are created in one transaction, before the first of them runs."""
    with closing(SqliteBackend(folder / "batch.db")) as store, CheckpointingRunner(store) as runner:
        paths = [str(folder / f"{shop}.txt") for shop in SALES]
        ids = [f"{NIGHT}:{shop}" for shop in SALES]
        runner.client.start_many(close_day, paths, instance_ids=ids, labels={"night": NIGHT})
        for instance_id in ids:
            runner.resume(close_day, instance_id)


def finish(folder: Path) -> None:
    """The second process: it takes over from the dead one at once, and goes on."""
    with (
        closing(SqliteBackend(folder / "batch.db")) as store,
        CheckpointingRunner(store, retention=Retention(age="30d")) as runner,
    ):
        print(f"unfinished: {runner.client.count(state='unfinished', labels={'night': NIGHT})} of {len(SALES)}")
        runner.recover([close_day], wait=True)
        for status in runner.client.list(state="failed", labels={"night": NIGHT}):
            print(f"failed: {status.instance_id}; {status.detail}")
            (folder / "pune.txt").write_text("1\n2")
            runner.client.retry(status.instance_id, by="the night shift")
        runner.recover([close_day], wait=True)
        for status in sorted(runner.client.list(state="completed"), key=lambda each: each.instance_id):
            print(f"{status.instance_id}: {runner.client.result(status.instance_id, close_day)}")


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for shop, sales in SALES.items():
            (folder / f"{shop}.txt").write_text(sales)
        (folder / "dies").touch()
        died = subprocess.run([sys.executable, __file__, "--crash", scratch], check=False)  # noqa: S603 - this very file
        print(f"the batch died with exit status {died.returncode}, after {len(work_log(folder))} steps had begun")
        (folder / "dies").unlink()
        finish(folder)
        ran = Counter(work_log(folder))
        print("ran more than once:", ", ".join(step for step, times in ran.items() if times > 1))
        print(f"{sum(times == 1 for times in ran.values())} of {2 * len(SALES)} steps ran once")


if __name__ == "__main__":
    begin(Path(sys.argv[2])) if "--crash" in sys.argv else main()
