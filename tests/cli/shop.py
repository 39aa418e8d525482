"""The workflows that the tests of the command run, named as a user names them: ``…/shop.py:checkout``."""

import os
from dataclasses import dataclass

from stepwell import Again, Done, Flow, Retry, delay, inject, loop, parallel, route, signal, task, workflow

EVIL = "\x1b[31mred\r\x9b2J\u202etxt.exe\x07"


@dataclass(frozen=True)
class Order:
    sku: str
    count: int = 1


@dataclass(frozen=True)
class Approval:
    granted: bool
    by: str


@task
def charge(order: Order) -> str:
    return f"receipt for {order.sku}"


@task
def reserve(order: Order) -> str:
    return f"{order.count} reserved"


@task
def first(order: Order) -> int:
    return order.count


@task
def refine(n: int) -> Again[int] | Done[int]:
    return Again(n + 1) if n < 5 else Done(n)


@task
def granted(approval: Approval) -> bool:
    return approval.granted


@task
def ship(receipt: str, stock: str) -> str:
    return f"shipped: {receipt}, {stock}"


@task
def refund(receipt: str) -> str:
    return f"refunded: {receipt}"


@workflow
def checkout(order: Order) -> str:
    with parallel():
        receipt = charge(order)
        stock = reserve(order)
    loop(refine, first(order), max_iterations=8)
    delay("1ms", name="cooling-off")
    approval = signal("approve", Approval, timeout="2d")
    yes = granted(approval)
    return route(yes, {True: lambda: ship(receipt, stock), False: lambda: refund(receipt)}, name="decision")


@workflow
def gate(order: Order) -> bool:
    charge(order)
    return signal("go", bool)


@task
def boom(text: str) -> str:
    raise ValueError(text or EVIL)


@workflow
def failing(text: str) -> str:
    return boom(text)


@task(retry=Retry(attempts=3, delay="1h"))
def flaky(text: str) -> str:
    raise OSError(f"no route to {text}")


@workflow
def slow(text: str) -> str:
    return flaky(text)


@task(delivery="at_most_once")
def wire(amount: int) -> str:
    if os.environ.get("WIRE") == "works":
        return "sent"
    raise KeyboardInterrupt  # stands for a kill


@workflow
def pay(amount: int) -> str:
    return wire(amount)


@task
def double(n: int) -> int:
    return 2 * n


@task
def total(parts: dict[str, int]) -> int:
    return sum(parts.values())


def _wide() -> Flow:
    flow = Flow("wide").then(double).fork()
    for number in range(40):
        flow = flow.branch(double, name=f"part-{number}")
    return flow.join(total)


wide = _wide().build()


class Bank:
    def __init__(self, name: str) -> None:
        self.name = name


@task
def ask(n: int, *, bank: Bank = inject()) -> str:
    return f"{bank.name} has {n}"


@workflow
def banking(n: int) -> str:
    return ask(n)


def deps() -> dict[type, object]:
    return {Bank: Bank("first")}


no_workflow = 7
