"""Values that cannot be stored, and stores that cannot be used."""

from __future__ import annotations

import os
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwell import (
    BackendUnavailable,
    CheckpointingRunner,
    Closed,
    DatabaseCorrupt,
    EncodeError,
    JsonCodec,
    Limits,
    MsgpackCodec,
    OptionError,
    PostgresBackend,
    SqliteBackend,
    UsageError,
    WorkflowClient,
    WorkflowFailed,
    open_backend,
    task,
    workflow,
)

from .shop import Order, Receipt, approval, charge, checkout, thank
from .table import SECRET, Desk, case

ORDER = Order("7", 300, SECRET)


class Session:
    """Something with a connection in it."""

    def __init__(self) -> None:
        self.secret = SECRET


@dataclass
class Basket:
    items: list[Any]


# --- values ----------------------------------------------------------------------------------------------


@case(EncodeError, "Session", "workflow 'buy'|.items[1]", "dataclasses|inject()")
def an_input_that_cannot_be_stored(desk: Desk) -> None:
    @workflow
    def buy(basket: Basket) -> Any:
        return thank(basket.items[0])

    desk.runner().run(buy, Basket([SECRET, Session()]), instance_id="order-7")


@case(WorkflowFailed, "the result of 'open_till'|lock", "'order-7'|step open_till|['lock']", "inject()")
def a_result_that_cannot_be_stored(desk: Desk) -> None:
    @task
    def open_till(order: Order) -> Any:
        return {"lock": threading.Lock(), "card": order.card}

    desk.runner().run(open_till, ORDER, instance_id="order-7")


@case(WorkflowFailed, "the result of 'bill'|str", "'order-7'|step bill", "expected Receipt")
def a_result_of_another_type_than_annotated(desk: Desk) -> None:
    @task
    def bill(order: Order) -> Receipt:
        return order.card  # type: ignore[return-value]

    desk.runner().run(bill, ORDER, instance_id="order-7")


@case(WorkflowFailed, "1000 bytes", "'order-7'|step copy", "Limits.value_bytes")
def a_result_that_is_too_large(desk: Desk) -> None:
    @task
    def copy(text: str) -> str:
        return text * 100

    backend = desk.backend(codec=JsonCodec(Limits(value_bytes=1_000)))
    desk.keep(CheckpointingRunner(backend)).run(copy, SECRET, instance_id="order-7")


@case(EncodeError, "payload|Session", "'order-7'|signal 'approve'", "dataclasses")
def a_message_that_cannot_be_stored(desk: Desk) -> None:
    runner = desk.runner()
    runner.start(approval, ORDER, instance_id="order-7")
    runner.client.signal("order-7", "approve", Session())


@case(UsageError, "'approve' as str|int", "'order-7'|'approval'", "expected str")
def a_message_of_another_type(desk: Desk) -> None:
    runner = desk.runner()
    runner.start(approval, ORDER, instance_id="order-7")
    runner.client.signal("order-7", "approve", 4711)


# --- stores -----------------------------------------------------------------------------------------------


@case(UsageError, "str", "runner", "SqliteBackend('file.db')")
def a_path_for_a_backend(desk: Desk) -> None:
    CheckpointingRunner("shop.db")  # type: ignore[arg-type]


@case(UsageError, "str", "client", "SqliteBackend('file.db')")
def a_path_for_a_backend_of_a_client(desk: Desk) -> None:
    WorkflowClient("shop.db")  # type: ignore[arg-type]


@case(UsageError, "the class SqliteBackend", "runner", "SqliteBackend('file.db')")
def a_class_for_a_backend(desk: Desk) -> None:
    CheckpointingRunner(SqliteBackend)  # type: ignore[arg-type]


@case(BackendUnavailable, "there is no directory", "shop.db|nowhere", "create it first")
def a_folder_that_is_not_there(desk: Desk) -> None:
    SqliteBackend(desk.folder / "nowhere" / "shop.db")


@case(BackendUnavailable, "is a directory", "shop", "name a file in it")
def a_folder_for_a_file(desk: Desk) -> None:
    (desk.folder / "shop").mkdir()
    SqliteBackend(desk.folder / "shop")


@case(DatabaseCorrupt, "not an SQLite database", "notes.txt", "give another path")
def a_file_that_is_no_database(desk: Desk) -> None:
    Path(desk.folder, "notes.txt").write_text(SECRET * 100)
    SqliteBackend(desk.folder / "notes.txt")


@case(OptionError, "postgresql: URL", "SqliteBackend", "PostgresBackend(dsn)")
def a_server_for_a_file(desk: Desk) -> None:
    SqliteBackend(f"postgresql://shop:{SECRET}@db/shop")


@case(OptionError, "postgresql: URL", "SqliteBackend", "PostgresBackend(dsn)")
def a_server_as_a_path(desk: Desk) -> None:
    SqliteBackend(Path(f"postgresql://shop:{SECRET}@db/shop"))


@case(OptionError, "names a server", "SqliteBackend", "PostgresBackend(dsn)")
def a_connection_string_for_a_file(desk: Desk) -> None:
    SqliteBackend(f"host=db user=shop password={SECRET}")


@case(OptionError, "names a server", "SqliteBackend", "PostgresBackend(dsn)")
def a_user_and_password_for_a_file(desk: Desk) -> None:
    SqliteBackend(f"shop:{SECRET}@db/shop")


@case(OptionError, "sqlite: URL", "SqliteBackend", "open_backend(url)")
def a_url_for_a_path(desk: Desk) -> None:
    SqliteBackend("sqlite:shop.db")


@case(OptionError, "mysql:", "database", "sqlite:FILE|postgresql://")
def a_url_of_another_kind(desk: Desk) -> None:
    open_backend(f"mysql://shop:{SECRET}@db.example/shop")


@case(OptionError, "server's address", "no URL", "postgresql://user@host/database")
def an_address_for_a_url(desk: Desk) -> None:
    open_backend(f"host=db user=shop password={SECRET}")


@case(OptionError, "names no file", "URL", "sqlite:FILE")
def a_url_of_nothing(desk: Desk) -> None:
    open_backend("sqlite:")


@case(OptionError, "DSN", "PostgreSQL", "write postgresql://user@host:5432/database", needs="psycopg")
def a_database_url_of_another_kind(desk: Desk) -> None:
    PostgresBackend(f"mysql://shop:{SECRET}@db.example/shop")


@case(BackendUnavailable, "it cannot be reached", "PostgreSQL shop@127.0.0.1:1/shop", "check that", needs="psycopg")
def a_database_where_nobody_answers(desk: Desk) -> None:
    PostgresBackend(f"postgresql://shop:{SECRET}@127.0.0.1:1/shop", timeout="1ms")


@case(OptionError, "durability|'fastest'", "durability", '"full" or "fast"')
def a_durability_that_is_none(desk: Desk) -> None:
    desk.backend(durability="fastest")


@case(Closed, "closed", "shop.db", "make a new one")
def a_closed_backend(desk: Desk) -> None:
    runner = desk.runner()
    runner.run(checkout, ORDER)
    backend = desk.backend()
    backend.close()
    CheckpointingRunner(backend).run(charge, ORDER)


@case(OptionError, "JsonCodec|MsgpackCodec", "shop.db", "pass codec=JsonCodec()")
def a_store_of_another_codec(desk: Desk) -> None:
    desk.backend().close()
    desk.backend(codec=MsgpackCodec())


@case(OptionError, "':memory:'", "SqliteBackend", "InMemoryBackend()")
def a_store_in_memory(desk: Desk) -> None:
    SqliteBackend(":memory:")


@case(OptionError, "sqlite3", "connection=", "backend.connect()")
def a_connection_of_another_library(desk: Desk) -> None:
    connection = desk.keep(sqlite3.connect(os.devnull))
    desk.client().start(checkout, ORDER, connection=connection)
