"""A person in the loop: runs that wait for a signal, and what happens when nobody answers for two days.

Run ``python examples/approval.py``. While they wait they hold no thread, process or worker: the runner that started
them is closed before the answer is sent, by a client that needs none of the workflow's code. A virtual clock lets the
two days pass at once; leave it out and they take two days, over as many restarts as you like.
"""

import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from stepwell import CheckpointingRunner, SqliteBackend, WorkflowClient, signal, task, workflow
from stepwell.testing import VirtualClock


@dataclass(frozen=True)
class Expense:
    what: str
    euros: int


@dataclass(frozen=True)
class Decision:
    granted: bool
    by: str


@task
def describe(expense: Expense) -> str:
    return f"please approve {expense.what} for {expense.euros} euros"


@task
def refuse(expense: Expense) -> Decision:
    return Decision(granted=False, by="the clock")


@task
def file(expense: Expense, decision: Decision) -> str:
    return f"{expense.what}: {'granted' if decision.granted else 'refused'} by {decision.by}"


@workflow
def approval(expense: Expense) -> str:
    describe(expense)
    decision = signal("decision", Decision, timeout="2d", on_timeout=lambda: refuse(expense))
    return file(expense, decision)


EXPENSES = {"train": Expense("a train ticket", 90), "yacht": Expense("a yacht", 900_000)}


def main() -> None:
    clock = VirtualClock()
    with tempfile.TemporaryDirectory() as folder, closing(SqliteBackend(Path(folder, "expenses.db"))) as store:
        with CheckpointingRunner(store, clock=clock) as runner:
            for name, expense in EXPENSES.items():
                runner.start(approval, expense, instance_id=name, labels={"by": "linus"})

        with WorkflowClient(store, clock=clock) as client:
            for status in client.list(state="waiting", labels={"by": "linus"}):
                print(client.explain(status.instance_id).text)
            client.signal("train", "decision", Decision(granted=True, by="Ada"), signal_id="mail-7")
            client.signal("train", "decision", Decision(granted=True, by="Ada"), signal_id="mail-7")  # counts once

        with CheckpointingRunner(store, clock=clock) as runner:
            for status in runner.recover([approval], wait=True):  # until nothing waits any more
                print(f"{status.instance_id} is {status.state}: {runner.client.result(status.instance_id, approval)}")
            print(f"it is {clock.now:%d %B} now; it was the 1st")


if __name__ == "__main__":
    main()
