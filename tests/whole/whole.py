"""Simulator, broker, gate and daemon together, and what a test asks of them."""

from __future__ import annotations

import asyncio
import json
import socket
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
ADMIN_TOKEN = "an-admin-token-of-the-test"
PUBLIC_HOST = "ev.example.test"
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
async def everything(
    folder: Path,
    *,
    speed: float = SPEED,
    vehicles: int = CARS,
    webhook: bool = False,
    auto_subscribe: bool = True,
    pace: str = "10m",
    public: bool = False,
    consents_every: str = "15m",
) -> AsyncIterator[Whole]:
    """``webhook``: Smartcar pushes. ``pace``: how often a car is asked. ``public``: strangers come, too."""
    start, origin = datetime.now(UTC), time.monotonic()
    clock = FastClock(speed, start, origin)
    port = free_port()
    simulator = Simulator(
        SimulatorOptions(
            vehicles=vehicles,
            brands=BRANDS,
            speed=speed,
            calls_per_vehicle=None,
            bucket=20_000,
            refill_per_minute=600,
            latency_scale=1.0 if speed == SPEED else 0.1,
            webhook=f"http://127.0.0.1:{port}/webhooks/smartcar" if webhook else None,
            auto_subscribe=auto_subscribe,
            redirect_uris=(f"http://{PUBLIC_HOST}:{port}/enrol/callback",) if public else (),
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
        for name, secret in (
            ("secret", simulator.client_secret),
            ("management", simulator.management_token),
            ("admin", ADMIN_TOKEN),
        ):
            (folder / name).touch(mode=0o600)
            (folder / name).write_text(secret)
        origins = ", ".join(f'{name} = "{url}"' for name in ("connect", "iam", "vehicle", "management"))
        # So fast a world needs no patience: whatever the brand, its cars are asked every ten minutes of it.
        keys = "\n".join(f'{key} = "{pace}"' for key in ("parked", "charging", "driving", "idle"))
        paces = "\n".join(f'[brands.{brand}]\n{keys}\nfloor = "5m"' for brand in BRANDS)
        config.write_text(
            f"""
[smartcar.test]
application_id = "{simulator.application_id}"
client_id = "{simulator.client_id}"
client_secret = {{ file = "secret" }}
management_token = {{ file = "management" }}
{f'webhook_id = "{simulator.webhook_id}"' if webhook else ""}
origins = {{ {origins} }}
[smartcar.test.budget]
bucket = 10000
refill_per_minute = 600
calls_per_vehicle = 1000000
[mqtt]
url = "mqtt://127.0.0.1:{gate.port}"
scalars = false
[http]
listen = "127.0.0.1:{port}"
admin_token = {{ file = "admin" }}
{f'public_url = "http://{PUBLIC_HOST}:{port}"' if public else ""}
[polling]
consents_every = "{consents_every}"
[store]
url = "sqlite:///{folder}/evbatteryd.db"
{paces}
"""
        )
        async with Daemon(config, speed, start, origin) as daemon:
            yield Whole(folder, broker, gate, control, daemon, clock)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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
