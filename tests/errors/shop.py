"""The shop whose owner makes the mistakes: its values, tasks and one sound workflow."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from stepwell import inject, signal, task, workflow


@dataclass(frozen=True)
class Order:
    id: str
    total: int
    card: str


@dataclass(frozen=True)
class Receipt:
    number: str
    paid: bool


class Answer(Enum):
    YES = "yes"
    NO = "no"
    LATER = "later"


class Bank:
    """What tasks ask for."""


@task
def charge(order: Order) -> Receipt:
    return Receipt(f"r-{order.id}", paid=True)


@task
async def reserve(order: Order) -> str:
    return order.id


@task
def ask(order: Order) -> Answer:
    return Answer.LATER


@task
def ship(order: Order, receipt: Receipt) -> str:
    return f"{order.id} with {receipt.number}"


@task
def thank(name: str) -> str:
    return f"thank you, {name}"


@task
def pay(order: Order, *, bank: Bank = inject()) -> str:
    return order.id


@workflow
def approval(order: Order) -> str:
    charge(order)
    return thank(signal("approve", str, timeout="2d"))


@workflow
def checkout(order: Order) -> str:
    return ship(order, charge(order))
