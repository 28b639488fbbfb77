"""The web of a fleet, served over real HTTP on a free port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType

import aiohttp
import pytest
import structlog
from aiohttp import web

from evbatteryd.domain.enrolment import Enrolment
from evbatteryd.domain.fleet import Car, Fleet
from evbatteryd.domain.ports import Ledger
from evbatteryd.enrol.consent import ConnectOptions
from evbatteryd.enrol.enrolment import Enrolments
from evbatteryd.flow.forecaster import Forecaster
from evbatteryd.sinks.prometheus import Exposition, Metrics
from evbatteryd.web.app import ANNOUNCER, Health, make_app, serving
from evbatteryd.web.guard import Access
from tests.fakes import START, VirtualClock
from tests.web import builders

PATIENCE = aiohttp.ClientTimeout(total=20)
"""A stream on which nothing comes fails a test rather than holding it for ever."""
LOCAL_KEY = "local-key"
AT_THE_MACHINE = Access(local_key=LOCAL_KEY)
CONNECT = "https://connect.example.com"
HOME = {
    "home": ConnectOptions(
        application="home",
        application_id="0b0e1f3c-8a1d-4c4e-9f64-1a7a5d1f8a11",
        connect_origin=CONNECT,
    )
}


@dataclass
class Site:
    """Everything that a test of the web holds in its hand."""

    fleet: Fleet
    clock: VirtualClock
    app: web.Application
    url: str
    client: aiohttp.ClientSession
    enrolments: Enrolments
    store: builders.MemoryEnrolments
    steward: builders.FleetSteward
    webhook: builders.RememberingReceiver
    hints: builders.RememberingHints
    commands: builders.RememberingCommands
    welcomed: list[Enrolment]
    """The consents that have arrived, as the flow is told of them."""
    change: Callable[[Car], None]
    """As the flow does it: what is known of a car is replaced, and whoever listens hears of it."""
    not_ready: list[str] = field(default_factory=list)
    unhealthy: list[str] = field(default_factory=list)

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
async def served(
    *cars: Car,
    speed: float = 1.0,
    access: Access = AT_THE_MACHINE,
    applications: Mapping[str, ConnectOptions] = HOME,
    unix_path: Path | None = None,
    ledgers: Mapping[str, Ledger] = MappingProxyType({}),
    price: float = 0.0,
    waits: str | None = None,
) -> AsyncIterator[Site]:
    fleet = builders.fleet(*cars)
    clock = VirtualClock(speed=speed)
    not_ready: list[str] = []
    unhealthy: list[str] = []
    welcomed: list[Enrolment] = []
    store = builders.MemoryEnrolments()
    enrolments = Enrolments(store, clock, structlog.get_logger(), applications, welcomed.append)

    def change(car: Car) -> None:
        fleet.put(car)
        app[ANNOUNCER].changed(car)

    steward = builders.FleetSteward(fleet, clock, change)
    webhook = builders.RememberingReceiver()
    hints = builders.RememberingHints()
    commands = builders.RememberingCommands()
    app = make_app(
        fleet,
        clock,
        Exposition(Metrics(), fleet, clock),
        Health(ready=lambda: not_ready, healthy=lambda: unhealthy),
        started_at=START - timedelta(hours=3),
        access=access,
        enrolments=enrolments,
        steward=steward,
        webhook=webhook,
        hints=hints,
        commands=commands,
        estimate=builders.estimate,
        why_waiting=lambda _: waits,
        forecasts=Forecaster(fleet, ledgers, clock, Metrics(), price_of=lambda _: price),
    )
    host, port = ("127.0.0.1", 0) if unix_path is None else (None, None)
    connector = None if unix_path is None else aiohttp.UnixConnector(str(unix_path))
    async with (
        serving(app, host=host, port=port, unix_path=unix_path) as address,
        aiohttp.ClientSession(timeout=PATIENCE, connector=connector) as client,
    ):
        url = address if unix_path is None else "http://localhost"
        yield Site(
            fleet,
            clock,
            app,
            url,
            client,
            enrolments,
            store,
            steward,
            webhook,
            hints,
            commands,
            welcomed,
            change,
            not_ready,
            unhealthy,
        )


@pytest.fixture
def serve() -> Serve:
    """``async with serve(car, ...) as site``."""
    return served
