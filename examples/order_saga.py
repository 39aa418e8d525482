"""An order as a saga: whatever was taken is given back when the parcel turns out to be broken.

Run ``python examples/order_saga.py``. It starts itself once more with ``--crash``: that process dies, without any
clean-up, between the bank's taking the money and stepwell's recording it, which is the worst moment there is. The next
process asks the bank again, with the same idempotency key, so the customer pays once.
"""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from pathlib import Path

from stepwell import CheckpointingRunner, Retry, SqliteBackend, inject, parallel, route, task, task_context, workflow


@dataclass(frozen=True)
class Order:
    id: str
    total: Decimal
    items: tuple[str, ...]


class Parcel(Enum):
    WHOLE = "whole"
    BROKEN = "broken"


class Bank:
    """Stands for a payment service: it keeps its own books, and knows a repeated call by its key."""

    def __init__(self, books: Path, *, crash: bool = False) -> None:
        self._books, self._crash = books, crash

    def move(self, amount: Decimal, key: str) -> str:
        entries: dict[str, str] = json.loads(self._books.read_text()) if self._books.exists() else {}
        if key in entries:
            print(f"  bank: I have done this already, {entries[key]}")
            return entries[key]
        entries[key] = f"{'took' if amount > 0 else 'gave back'} {abs(amount)}"
        self._books.write_text(json.dumps(entries))
        print(f"  bank: {entries[key]}", flush=True)
        if self._crash:
            os._exit(9)  # the power goes: the bank knows, we do not
        return entries[key]


@task
def reserve(order: Order) -> list[str]:
    return [f"shelf:{item}" for item in order.items]


@task(retry=Retry(attempts=5, delay="200ms", on=(ConnectionError,)))
def charge(order: Order, *, bank: Bank = inject()) -> str:
    return bank.move(order.total, key=task_context().idempotency_key)


@task
def pack(order: Order, shelves: list[str]) -> Parcel:
    return Parcel.BROKEN if "vase" in order.items else Parcel.WHOLE


@task
def ship(order: Order, paid: str) -> str:
    return f"{order.id}: shipped {', '.join(order.items)}; the bank {paid}"


@task(retry=Retry(attempts=5, delay="200ms", on=(ConnectionError,)))
def refund(order: Order, *, bank: Bank = inject()) -> str:
    return bank.move(-order.total, key=task_context().idempotency_key)


@task
def give_back(shelves: list[str]) -> int:
    return len(shelves)


@task
def apologise(order: Order, refunded: str, returned: int) -> str:
    return f"{order.id}: sorry, it was broken; the bank {refunded}, {returned} items are back on the shelf"


@workflow
def checkout(order: Order) -> str:
    with parallel():
        shelves = reserve(order)
        paid = charge(order)
    parcel = pack(order, shelves)
    return route(
        parcel,  # an Enum: forget a case, and the workflow does not build
        {
            Parcel.WHOLE: lambda: ship(order, paid),
            Parcel.BROKEN: lambda: apologise(order, refund(order), give_back(shelves)),
        },
    )


ORDERS = (Order("order-1", Decimal("19.90"), ("pen", "ink")), Order("order-2", Decimal("250.00"), ("vase", "table")))


def serve(folder: Path, *, crash: bool) -> None:
    bank = Bank(folder / "bank.json", crash=crash)
    with (
        closing(SqliteBackend(folder / "orders.db")) as store,
        CheckpointingRunner(store, deps={Bank: bank}) as runner,
    ):
        for status in runner.client.list(state="unfinished"):
            print(runner.client.explain(status.instance_id).text)
        for order in ORDERS:
            print(runner.run(checkout, order, instance_id=order.id))


def main() -> None:
    print(checkout.draw())
    with tempfile.TemporaryDirectory() as folder:
        died = subprocess.run([sys.executable, __file__, "--crash", folder], check=False)  # noqa: S603 - this very file
        print(f"the first process died with exit status {died.returncode}")
        serve(Path(folder), crash=False)


if __name__ == "__main__":
    serve(Path(sys.argv[2]), crash=True) if "--crash" in sys.argv else main()
