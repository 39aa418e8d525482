"""A person in the loop: a run that waits for a signal, and what happens when nobody answers.

While it waits it holds no thread, no process and no worker: ``start`` returns, and the program may end. The answer may
come from another process; here it is sent by the same one.
"""

import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from stepwell import CheckpointingRunner, SqliteBackend, signal, task, workflow


@dataclass(frozen=True)
class Decision:
    granted: bool
    by: str


@task
def describe(expense: str) -> str:
    return f"please approve: {expense}"


@task
def refuse() -> Decision:
    return Decision(granted=False, by="the clock")


@task
def file(expense: str, decision: Decision) -> str:
    return f"{expense}: {'granted' if decision.granted else 'refused'} by {decision.by}"


@workflow
def approval(expense: str) -> str:
    describe(expense)
    decision = signal("decision", Decision, timeout="200ms", on_timeout=refuse)
    return file(expense, decision)


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(SqliteBackend(Path(folder, "expenses.db"))) as store,
        CheckpointingRunner(store) as runner,
    ):
        status = runner.start(approval, "a train ticket", instance_id="train")
        print(f"{status.instance_id} is {status.state}")
        runner.client.signal("train", "decision", Decision(granted=True, by="Ada"))
        print(runner.resume(approval, "train"))
        print(runner.run(approval, "a yacht", instance_id="yacht"))  # nobody answers: the timeout decides


if __name__ == "__main__":
    main()
