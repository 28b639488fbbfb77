"""Simulator, broker, gate and daemon together, and what a test asks of them."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from evbatteryd.clock import FastClock
from evbatteryd.simulator import Simulator, SimulatorOptions
from tests.mosquitto import Gate, Mosquitto, Witness
from tests.whole.daemon import Control, Daemon, controlling

SPEED = 3600.0
CARS = 12
BRANDS = ("tesla", "volvo", "renault", "kia", "bmw", "polestar")


@dataclass
class Whole:
    """Everything, and what it left behind."""

    folder: Path
    broker: Mosquitto
    gate: Gate
    """The daemon's way to the broker."""
    control: Control
    daemon: Daemon
    clock: FastClock

    def committed(self) -> list[tuple[str, str]]:
        """(slug, reading id) of every reading in the store, in order."""
        with closing(sqlite3.connect(self.folder / "evbatteryd.db")) as db:
            query = "SELECT slug, seq FROM reading JOIN vehicle ON vehicle.id = vehicle_id ORDER BY seq"
            rows = db.execute(query).fetchall()
        return [(slug, str(seq)) for slug, seq in rows]

    def spent(self) -> int:
        with closing(sqlite3.connect(self.folder / "evbatteryd.db")) as db:
            return db.execute("SELECT sum(calls) FROM ledger").fetchone()[0]

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in self.daemon.log.read_text().splitlines()]

    async def vehicles(self) -> list[dict[str, object]]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.daemon.url}/api/vehicles") as answer,
        ):
            return (await answer.json())["vehicles"]

    async def until_all(self, condition: Callable[[dict[str, object]], bool]) -> list[dict[str, object]]:
        """Until every car of the API fulfils it."""
        async with asyncio.timeout(30):
            while True:
                cars = await self.vehicles()
                if cars and all(map(condition, cars)):
                    return cars
                await asyncio.sleep(0.1)


@asynccontextmanager
async def everything(folder: Path) -> AsyncIterator[Whole]:
    start, origin = datetime.now(UTC), time.monotonic()
    clock = FastClock(SPEED, start, origin)
    simulator = Simulator(
        SimulatorOptions(
            vehicles=CARS,
            brands=BRANDS,
            speed=SPEED,
            calls_per_vehicle=None,
            bucket=20_000,
            refill_per_minute=600,
        ),
        clock,
    )
    async with (
        simulator.serving("127.0.0.1", 0) as url,
        controlling(url) as control,
        Mosquitto(folder / "broker") as broker,
        Gate(broker.port) as gate,
    ):
        config = folder / "evbatteryd.toml"
        (folder / "secret").touch(mode=0o600)
        (folder / "secret").write_text(simulator.client_secret)
        origins = ", ".join(f'{name} = "{url}"' for name in ("connect", "iam", "vehicle", "management"))
        # So fast a world needs no patience: whatever the brand, its cars are asked every ten minutes of it.
        pace = "\n".join(
            f'[brands.{brand}]\nparked = "10m"\ncharging = "10m"\ndriving = "10m"\nfloor = "5m"\nidle = "10m"'
            for brand in BRANDS
        )
        config.write_text(
            f"""
[smartcar.test]
client_id = "{simulator.client_id}"
client_secret = {{ file = "secret" }}
origins = {{ {origins} }}
[smartcar.test.budget]
bucket = 10000
refill_per_minute = 600
calls_per_vehicle = 1000000
[mqtt]
url = "mqtt://127.0.0.1:{gate.port}"
scalars = false
[http]
listen = "127.0.0.1:0"
[store]
url = "sqlite:///{folder}/evbatteryd.db"
{pace}
"""
        )
        async with Daemon(config, SPEED, start, origin) as daemon:
            yield Whole(folder, broker, gate, control, daemon, clock)


def readings(witness: Witness) -> list[tuple[str, str]]:
    """(slug, sequence number) of every reading heard, each at its first time."""
    seen: dict[str, str] = {}
    for message in witness.heard:
        if (
            message.topic.endswith("/state")
            and not message.topic.endswith("bridge/state")
            and message.payload
        ):
            told = message.json
            seen.setdefault(str(told["reading_id"]), str(told["vehicle"]))
    return [(slug, reading_id.rpartition("-")[2]) for reading_id, slug in seen.items()]


def in_order(told: list[tuple[str, str]]) -> bool:
    last: dict[str, int] = {}
    for slug, seq in told:
        if int(seq) <= last.get(slug, 0):
            return False
        last[slug] = int(seq)
    return True


def served(stats: dict[str, dict[str, dict[str, int]]]) -> int:
    """Requests that the simulator has seen, of whatever kind and end."""
    return sum(sum(ends.values()) for ends in stats["requests"].values())
