"""A hundred cars on Smartcar's default bucket: real daemon, real simulator with its limits, in time-lapse."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest

from evbatteryd.clock import FastClock
from evbatteryd.simulator import Simulator, SimulatorOptions
from tests.whole.daemon import Control, Daemon, controlling
from tests.whole.whole import free_port, served

CARS = 100
BRANDS = ("tesla", "volvo", "renault", "kia", "bmw", "polestar", "ford", "hyundai")
BUCKET = 120
REFILL_PER_MINUTE = 2
USED = 0.85
"""Of what the bucket gives, at the least; the rest is kept for hints, lists and second pages."""
LONGEST_WAIT = timedelta(hours=6)
SPARE = 12
"""Tokens that the daemon is told of fewer. The simulator's bucket is full, and refills nothing, until the
first request arrives; the daemon's refills from when it left: in time-lapse its milliseconds on the way are
minutes."""
START = datetime(2026, 11, 22, 15, tzinfo=UTC)
"""In the afternoon: by the evening cars come home and charge, whenever the test is run."""
LOOK_EVERY_S = 0.2
SLACK = timedelta(minutes=15)
"""What a tenth of a real second, in which bells ring, and an answer take in time-lapse."""


@dataclass
class Contended:
    """The daemon and its hundred cars, and what was seen of them, look by look."""

    folder: Path
    control: Control
    daemon: Daemon
    clock: FastClock
    longest_wait: timedelta = timedelta()
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By brand and by what the car was doing."""
    car_hours: Counter[tuple[str, str]] = field(default_factory=Counter)

    async def watch(self, span: timedelta) -> None:
        """Look again and again, until ``span`` has passed on the clock."""
        until, before, asked = self.clock.now() + span, self.clock.now(), {}
        async with aiohttp.ClientSession() as session:
            while (now := self.clock.now()) < until:
                async with session.get(f"{self.daemon.url}/api/vehicles") as answer:
                    cars = (await answer.json())["vehicles"]
                self._note_waits(cars)
                asked = await self._note_calls(asked, (now - before) / timedelta(hours=1))
                before = now
                await asyncio.sleep(LOOK_EVERY_S)

    def _note_waits(self, cars: list[dict[str, object]]) -> None:
        now = self.clock.now()
        for car in cars:
            if car["next_poll"] is not None:
                due = datetime.fromisoformat(str(car["next_poll"]))
                self.longest_wait = max(self.longest_wait, now - due)

    async def _note_calls(self, before: dict[str, int], hours: float) -> dict[str, int]:
        truth = await self.control.truth()
        asked = {ref: of_car["requests"] for ref, of_car in (await self.control.stats())["vehicles"].items()}
        for ref, vehicle in truth.items():
            kind = (str(vehicle["make"]), str(vehicle["state"]))
            self.calls[kind] += asked.get(ref, 0) - before.get(ref, 0)
            self.car_hours[kind] += hours
        return asked

    def pace(self, wanted: str) -> float:
        """Calls of a car in an hour while it does that, or of that make."""
        of_kind = [kind for kind in self.car_hours if wanted in kind]
        return sum(self.calls[kind] for kind in of_kind) / sum(self.car_hours[kind] for kind in of_kind)

    def spent(self) -> int:
        with closing(sqlite3.connect(self.folder / "evbatteryd.db")) as db:
            return db.execute("SELECT sum(calls) FROM ledger").fetchone()[0]


@asynccontextmanager
async def contended(folder: Path, speed: float) -> AsyncIterator[Contended]:
    origin = time.monotonic()
    clock = FastClock(speed, START, origin)
    simulator = Simulator(
        SimulatorOptions(
            vehicles=CARS,
            brands=BRANDS,
            speed=speed,
            calls_per_vehicle=None,
            bucket=BUCKET,
            refill_per_minute=REFILL_PER_MINUTE,
        ),
        clock,
    )
    async with simulator.serving("127.0.0.1", 0) as url, controlling(url) as control:
        (folder / "secret").touch(mode=0o600)
        (folder / "secret").write_text(simulator.client_secret)
        origins = ", ".join(f'{name} = "{url}"' for name in ("connect", "iam", "vehicle", "management"))
        config = folder / "evbatteryd.toml"
        config.write_text(
            f"""
[smartcar.test]
application_id = "{simulator.application_id}"
client_id = "{simulator.client_id}"
client_secret = {{ file = "secret" }}
origins = {{ {origins} }}
[smartcar.test.budget]
bucket = {BUCKET - SPARE}
refill_per_minute = {REFILL_PER_MINUTE}
calls_per_vehicle = 2880
period = "day"
[mqtt]
enabled = false
[http]
listen = "127.0.0.1:{free_port()}"
[polling]
consents_every = "5m"
longest_wait = "{LONGEST_WAIT.total_seconds():.0f}s"
[store]
url = "sqlite:///{folder}/evbatteryd.db"
"""
        )
        async with Daemon(config, speed, START, origin) as daemon:
            yield Contended(folder, control, daemon, clock)


async def hold_out(folder: Path, span: timedelta, speed: float) -> Contended:
    async with contended(folder, speed) as world:
        await world.watch(span)
        assert await world.daemon.end(signal.SIGTERM) == 0
        stats = await world.control.stats()
    ends = Counter[str]()
    for of_kind in stats["requests"].values():
        ends.update(of_kind)
    assert ends["429"] == 0
    assert not any(stats["rejected"].values())
    asked = {ref: of_car["requests"] for ref, of_car in stats["vehicles"].items()}
    given = BUCKET + REFILL_PER_MINUTE * (span / timedelta(minutes=1))
    assert len(asked) == CARS
    # The plan would pay for ten times as many: it is the bucket that they come up against.
    assert given * USED <= served(stats) <= given
    # Each was noted before it was sent; what the shutdown cut off was noted in vain.
    assert served(stats) <= world.spent() <= served(stats) + 5
    assert world.longest_wait <= LONGEST_WAIT + SLACK
    return world


async def test_four_hours_in_which_cars_want_more_than_the_bucket_gives_without_a_429(tmp_path: Path) -> None:
    await hold_out(tmp_path, timedelta(hours=4), speed=1800)


@pytest.mark.slow
async def test_a_week_without_a_429_and_calls_go_where_they_buy_most(tmp_path: Path) -> None:
    # Faster than that the hour of an access token ends before the requests that were given it are answered.
    world = await hold_out(tmp_path, timedelta(days=7), speed=3600)
    assert world.pace("charging") > world.pace("parked")
    everyone = sum(world.calls.values()) / sum(world.car_hours.values())
    assert all(world.pace(make) > everyone / 4 for make, _ in world.calls)
