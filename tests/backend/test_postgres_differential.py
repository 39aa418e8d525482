"""The same random operations on the reference store and on PostgreSQL give equal answers and equal visible states."""

from __future__ import annotations

from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import initialize

from stepwell.backend.base import Holder, Session
from stepwell.backend.postgres import PostgresBackend
from stepwell.testing.conformance import LeaseClock

from ..postgres import Server  # noqa: TID252 - the tests are not installed
from .test_differential import SameAnswers

SLOWER = 20
"""A lease is so many times as long here, that the time a slow machine takes for an example never matters."""


class SlowPostgres(PostgresBackend):
    def open_session(self, holder: Holder, lease_us: int) -> Session:
        return super().open_session(holder, lease_us * SLOWER)


class ServerClock(LeaseClock):
    """Here the lease clock is the server's: instead of letting time pass, leases are moved back."""

    def __init__(self, server: Server, schema: str) -> None:
        self._server, self._schema, self._now_us = server, schema, 1_000_000_000

    @property
    def now_us(self) -> int:  # type: ignore[override]
        return self._now_us

    @now_us.setter
    def now_us(self, now_us: int) -> None:
        past = f"lease_until - interval '{(now_us - self._now_us) * SLOWER} us'"
        self._server.execute(f'UPDATE "{self._schema}".session SET lease_until = {past}')  # noqa: S608
        self._now_us = now_us


class SameOnPostgres(SameAnswers):
    server: Server

    @initialize()
    def begin(self) -> None:
        self.schema = self.server.new_schema()
        made = SlowPostgres(self.server.dsn(), schema=self.schema, pooled=False)
        there, clock = SameAnswers.__module__, lambda: ServerClock(self.server, self.schema)
        with mock.patch(f"{there}.SqliteBackend", return_value=made), mock.patch(f"{there}.LeaseClock", clock):
            super().begin()

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "schema"):
            self.server.execute(f'DROP SCHEMA "{self.schema}" CASCADE')


class TestSameOnPostgres(SameOnPostgres.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(
        max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )

    @pytest.fixture(autouse=True)
    def _server(self, postgres_server: Server) -> None:
        SameOnPostgres.server = postgres_server
