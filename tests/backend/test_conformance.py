"""Our own backends pass the examination we ship."""

from __future__ import annotations

from .examiners import ExaminesMemory, ExaminesSqlite


class TestInMemory(ExaminesMemory):
    pass


class TestSqlite(ExaminesSqlite):
    pass
