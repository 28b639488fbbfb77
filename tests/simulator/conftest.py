"""A simulator on a free port, its clock in the test's hand, and a client that has a token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest

from evbatteryd.simulator import Simulator, SimulatorOptions
from evbatteryd.simulator.fleet import Vehicle


class HandClock:
    """Stands still until it is told otherwise; sleeps in it last no time worth speaking of."""

    speed = 1e6

    def __init__(self) -> None:
        self.at = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at

    def advance(self, **span: float) -> None:
        self.at += timedelta(**span)


@dataclass
class Smartcar:
    """The simulator as a test sees it: its world, and HTTP to it."""

    simulator: Simulator
    clock: HandClock
    origin: str
    http: aiohttp.ClientSession
    token: str = ""

    @property
    def vehicles(self) -> list[Vehicle]:
        return list(self.simulator.world.fleet)

    async def sign_in(self) -> None:
        asked = {
            "grant_type": "client_credentials",
            "client_id": self.simulator.client_id,
            "client_secret": self.simulator.client_secret,
        }
        async with self.http.post(f"{self.origin}/oauth2/token", data=asked) as response:
            self.token = (await response.json())["access_token"]

    async def ask(
        self, method: str, path: str, *, user: str | None = None, json: Any = None, token: str | None = None
    ) -> Answered:
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        if user is not None:
            headers["sc-user-id"] = user
        async with self.http.request(
            method, self.origin + path, headers=headers, json=json, allow_redirects=False
        ) as response:
            body = await response.read()
            is_json = response.content_type == "application/json" and body
            return Answered(
                response.status, await response.json() if is_json else None, response.headers, body
            )

    async def signals(self, vehicle: Vehicle, rest: str = "?page[size]=100") -> Answered:
        return await self.ask("GET", f"/v3/vehicles/{vehicle.id}/signals{rest}", user=vehicle.user_id)

    async def command(self, vehicle: Vehicle, command: str, json: Any = None) -> Answered:
        path = f"/v3/vehicles/{vehicle.id}/commands/charge/{command}"
        return await self.ask("POST", path, user=vehicle.user_id, json=json)

    async def control(self, method: str, path: str, json: Any = None) -> Any:
        async with self.http.request(method, f"{self.origin}/_control/{path}", json=json) as response:
            assert response.status == 200, await response.text()
            return await response.json()


@dataclass
class Answered:
    status: int
    json: Any
    headers: Any
    body: bytes

    @property
    def error(self) -> str:
        """``TYPE:CODE`` of a v3 error."""
        (error,) = self.json["errors"]
        assert error["status"] == str(self.status)
        return error["type"] if error["code"] is None else f"{error['type']}:{error['code']}"

    def body_of(self, code: str) -> Any:
        (signal,) = (one for one in self.json["data"] if one["id"] == code)
        return signal["attributes"].get("body")


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it holds; fail if it does not come true."""
    for _ in range(5000):
        if await holds():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came true")


StartSmartcar = Callable[..., AbstractAsyncContextManager[Smartcar]]


@pytest.fixture
def start() -> StartSmartcar:
    """``async with start(vehicles=3, ...) as smartcar``: SimulatorOptions, without latency by default."""

    @asynccontextmanager
    async def started(**options: Any) -> AsyncIterator[Smartcar]:
        clock = HandClock()
        simulator = Simulator(SimulatorOptions(**{"vehicles": 3, "latency_scale": 0, **options}), clock)
        async with simulator.serving("127.0.0.1", 0) as origin, aiohttp.ClientSession() as http:
            smartcar = Smartcar(simulator, clock, origin, http)
            await smartcar.sign_in()
            yield smartcar

    return started


@pytest.fixture
async def smartcar(start: StartSmartcar) -> AsyncIterator[Smartcar]:
    """Three vehicles (a Tesla, a Volkswagen, a BMW), no latency."""
    async with start() as running:
        yield running
