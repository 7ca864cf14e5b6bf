"""What tests of the application share."""

from __future__ import annotations

import pytest
from argon2 import PasswordHasher

from reid.app import accounts


@pytest.fixture(autouse=True)
def quick_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash passwords with the least work; the real parameters are tested in test_accounts.py."""
    monkeypatch.setattr(accounts, "_HASHER", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    accounts._hash_of_nobody.cache_clear()
