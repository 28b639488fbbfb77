"""The stores that keep the contract: add one here and the whole contract is asked of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from evbatteryd.domain.ports import Store
from evbatteryd.store import open_store

Opener = Callable[[], AbstractAsyncContextManager[Store]]


@pytest.fixture(params=["sqlite"])
def opener(tmp_path: Path) -> Opener:
    """Opens the same store, each time as a daemon does that starts."""
    return lambda: open_store(tmp_path / "evbatteryd.db")


@pytest.fixture
async def store(opener: Opener) -> AsyncIterator[Store]:
    async with opener() as opened:
        yield opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of an SQLite store that is not there yet."""
    return tmp_path / "evbatteryd.db"
