"""An order as a saga: what was reserved is given back when the payment is declined.

The choice between shipping and giving back is a ``route`` over an Enum: forget a case and the workflow does not build.
Each step is recorded in one SQLite file before the next one starts.
"""

import tempfile
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from pathlib import Path

from stepwell import CheckpointingRunner, Retry, SqliteBackend, inject, route, task, task_context, workflow


@dataclass(frozen=True)
class Order:
    id: str
    total: Decimal
    items: tuple[str, ...]


class Answer(Enum):
    PAID = "paid"
    DECLINED = "declined"


class Bank:
    """Stands for a payment service that knows a repeated call by its key."""

    def __init__(self, limit: Decimal) -> None:
        self.limit = limit
        self.answers: dict[str, Answer] = {}

    def charge(self, amount: Decimal, key: str) -> Answer:
        return self.answers.setdefault(key, Answer.PAID if amount <= self.limit else Answer.DECLINED)


@task
def reserve(order: Order) -> list[str]:
    return [f"shelf:{item}" for item in order.items]


@task(retry=Retry(attempts=5, delay="200ms", on=(ConnectionError,)))
def charge(order: Order, *, bank: Bank = inject()) -> Answer:
    return bank.charge(order.total, key=task_context().idempotency_key)


@task
def ship(order: Order, parcels: list[str]) -> str:
    return f"{order.id}: shipped {len(parcels)} items"


@task
def give_back(parcels: list[str]) -> int:
    return len(parcels)


@task
def apologise(order: Order, returned: int) -> str:
    return f"{order.id}: declined, {returned} items back on the shelf"


@workflow
def checkout(order: Order) -> str:
    parcels = reserve(order)
    answer = charge(order)
    return route(
        answer,
        {
            Answer.PAID: lambda: ship(order, parcels),
            Answer.DECLINED: lambda: apologise(order, give_back(parcels)),
        },
    )


ORDERS = [
    Order("order-1", Decimal("19.90"), ("pen", "ink")),
    Order("order-2", Decimal("4000"), ("desk", "lamp", "chair")),
]


def main() -> None:
    print(checkout.draw())
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(SqliteBackend(Path(folder, "orders.db"))) as store,
        CheckpointingRunner(store, deps={Bank: Bank(limit=Decimal(100))}) as runner,
    ):
        for order in ORDERS:
            print(runner.run(checkout, order, instance_id=order.id))


if __name__ == "__main__":
    main()
