"""A Starlette app that starts, watches and cancels workflows, and goes on with them after it was restarted.

Run ``python examples/web.py`` (it needs ``pip install starlette httpx``): it starts the app twice over one file and
talks to it with Starlette's test client, without a network. To serve it, give ``create_app("orders.db")`` to uvicorn.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from stepwell import AsyncCheckpointingRunner, InstanceEnded, InstanceNotFound, SqliteBackend, signal, task, workflow


@dataclass(frozen=True)
class Order:
    item: str
    count: int


@task
async def reserve(order: Order) -> str:
    return f"{order.count} {order.item} on shelf 7"


@task
def ship(order: Order, shelf: str, picker: str) -> str:
    return f"{shelf}, picked by {picker}, shipped"


@workflow
async def fulfil(order: Order) -> str:
    shelf = await reserve(order)
    return ship(order, shelf, signal("picked", str))


class State(TypedDict):
    runner: AsyncCheckpointingRunner


# --- the app ---------------------------------------------------------------------------------------


async def create(request: Request) -> Response:
    """202 and a place to look: the order is on disk before we say so, and runs behind the answer."""
    runner: AsyncCheckpointingRunner = request.state.runner
    order = Order(**await request.json())
    key = request.headers.get("idempotency-key")  # sent twice, an order is still one order
    status = await runner.client.start(fulfil, order, instance_id=key, labels={"item": order.item})
    where = f"/orders/{status.instance_id}"
    headers, work = {"location": where}, BackgroundTask(runner.recover, [fulfil])
    return JSONResponse({"state": status.state}, 202, headers, background=work)


async def watch(request: Request) -> Response:
    client, id = request.state.runner.client, request.path_params["id"]
    status = await client.status(id)
    shown: dict[str, object] = {"state": status.state, "why": (await client.explain(id)).text.splitlines()[1:]}
    if status.state == "completed":
        shown["result"] = await client.result(id, fulfil)
    return JSONResponse(shown)


async def picked(request: Request) -> Response:
    runner: AsyncCheckpointingRunner = request.state.runner
    picker = (await request.json())["by"]
    await runner.client.signal(request.path_params["id"], "picked", picker, workflow=fulfil)
    return Response(status_code=202, background=BackgroundTask(runner.recover, [fulfil]))


async def cancel(request: Request) -> Response:
    await request.state.runner.client.cancel(request.path_params["id"], reason="the customer changed her mind")
    return Response(status_code=204)


async def not_found(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 404)


async def conflict(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 409)


async def go_on(runner: AsyncCheckpointingRunner) -> None:
    """Take up what has become due meanwhile: delays, retries, and what another process has started."""
    while True:
        await runner.recover([fulfil])
        await asyncio.sleep(1)


def create_app(path: str) -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[State]:
        with closing(SqliteBackend(path)) as store:
            async with AsyncCheckpointingRunner(store) as runner:
                going_on = asyncio.create_task(go_on(runner))
                yield {"runner": runner}
                going_on.cancel()
                with suppress(asyncio.CancelledError):
                    await going_on

    routes = [
        Route("/orders", create, methods=["POST"]),
        Route("/orders/{id}", watch),
        Route("/orders/{id}", cancel, methods=["DELETE"]),
        Route("/orders/{id}/picked", picked, methods=["POST"]),
    ]
    errors = {InstanceNotFound: not_found, InstanceEnded: conflict}
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=errors)


# --- a story ---------------------------------------------------------------------------------------


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "orders.db"))
        with TestClient(create_app(path)) as web:
            pens = {"item": "pens", "count": 3}
            for _ in range(2):
                made = web.post("/orders", json=pens, headers={"idempotency-key": "order-1"})
                print("POST /orders:", made.status_code, made.headers["location"])
            web.post("/orders", json={"item": "vases", "count": 1}, headers={"idempotency-key": "order-2"})
            print("GET /orders/order-1:", web.get("/orders/order-1").json())
        print("the app is restarted")
        with TestClient(create_app(path)) as web:
            print("POST /orders/order-1/picked:", web.post("/orders/order-1/picked", json={"by": "Ada"}).status_code)
            print("GET /orders/order-1:", web.get("/orders/order-1").json())
            print("DELETE /orders/order-2:", web.delete("/orders/order-2").status_code)
            print("GET /orders/order-2:", web.get("/orders/order-2").json())
            print("DELETE /orders/order-1:", web.delete("/orders/order-1").json()["error"])
            print("GET /orders/order-3:", web.get("/orders/order-3").json()["error"])


if __name__ == "__main__":
    main()
