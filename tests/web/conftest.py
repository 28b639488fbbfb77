"""The web of a fleet, served over real HTTP on a free port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import aiohttp
import pytest
from aiohttp import web

from evbatteryd.domain.fleet import Car, Fleet
from evbatteryd.sinks.prometheus import Exposition, Metrics
from evbatteryd.web.app import ANNOUNCER, Health, make_app, serving
from tests.fakes import START, VirtualClock
from tests.web import builders

PATIENCE = aiohttp.ClientTimeout(total=20)
"""A stream on which nothing comes fails a test rather than holding it for ever."""


@dataclass
class Site:
    """Everything that a test of the web holds in its hand."""

    fleet: Fleet
    clock: VirtualClock
    app: web.Application
    url: str
    client: aiohttp.ClientSession
    not_ready: list[str] = field(default_factory=list)
    unhealthy: list[str] = field(default_factory=list)

    def change(self, car: Car) -> None:
        """As the flow does it."""
        self.fleet.put(car)
        self.app[ANNOUNCER].changed(car)

    async def text(self, path: str) -> str:
        async with self.client.get(self.url + path) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.text()

    async def json(self, path: str) -> dict[str, object]:
        async with self.client.get(self.url + path) as answer:
            assert answer.status == 200, await answer.text()
            found = await answer.json()
            assert isinstance(found, dict)
            return found


Serve = Callable[..., AbstractAsyncContextManager[Site]]


@asynccontextmanager
async def served(*cars: Car, speed: float = 1.0) -> AsyncIterator[Site]:
    fleet = builders.fleet(*cars)
    clock = VirtualClock(speed=speed)
    not_ready: list[str] = []
    unhealthy: list[str] = []
    app = make_app(
        fleet,
        clock,
        Exposition(Metrics(), fleet, clock),
        Health(ready=lambda: not_ready, healthy=lambda: unhealthy),
        started_at=START - timedelta(hours=3),
    )
    async with (
        serving(app, host="127.0.0.1", port=0, unix_path=None) as url,
        aiohttp.ClientSession(timeout=PATIENCE) as client,
    ):
        yield Site(fleet, clock, app, url, client, not_ready, unhealthy)


@pytest.fixture
def serve() -> Serve:
    """``async with serve(car, ...) as site``."""
    return served
