"""What the chaos came to."""

from __future__ import annotations

import pytest

from .harness import Account


def test_every_fault_struck_and_nothing_was_lost(account: Account, capsys: pytest.CaptureFixture[str]) -> None:
    """Printed as one table; it is the last test of its folder."""
    with capsys.disabled():
        print(f"\n{account}")  # noqa: T201 - the account is shown in every run
    assert account.injected == account.observed
    for name in ("lost", "duplicated", "stuck", "money drift", "wrong outputs", "broken promises"):
        assert account.counts[name] == 0, name
