"""Memory per enrolled vehicle: a process that has loaded its fleet from the store and armed its schedule."""

from __future__ import annotations

import argparse
import asyncio
import gc
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from evbatteryd.brands import load_profiles
from evbatteryd.clock import WallClock
from evbatteryd.domain.fleet import Fleet, Schedule
from evbatteryd.domain.ports import Polled
from evbatteryd.domain.reading import merge
from evbatteryd.domain.vehicle import Consent
from evbatteryd.flow.cars import Cars
from evbatteryd.flow.lores import Lores
from evbatteryd.flow.timer import CohortTimer
from evbatteryd.flow.watch import FreshnessWatch
from evbatteryd.logs import get_logger
from evbatteryd.sources.smartcar_answers import observe
from evbatteryd.store.sqlite import open_store
from tests.benchmarks.upstream import signals


def run(options: argparse.Namespace) -> None:
    for vehicles in options.vehicles:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "fleet.db"
            asyncio.run(_fill(path, vehicles))
            command = [sys.executable, "-m", "tests.benchmarks.memory", str(path)]
            bare, loaded, seconds = map(
                float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            )
            size = path.stat().st_size
        print(
            f"{vehicles:>7} vehicles: {(loaded - bare) / vehicles / 1024:6.2f} KiB each, "
            f"{loaded / 2**20:6.0f} MiB in all, loaded in {seconds:.2f} s; "
            f"{size / vehicles / 1024:.2f} KiB each in the store"
        )


async def _fill(path: Path, vehicles: int) -> None:
    clock = WallClock()
    async with open_store(path) as store:

        async def one(number: int) -> None:
            now = clock.now()
            consent = Consent(
                application="bench",
                connection_id=f"{number:032x}-c",
                vehicle_ref=f"{number:032x}-v",
                user_ref=f"{number:032x}-u",
                make="RENAULT",
                model="Megane E-Tech",
                year=2024,
                powertrain="BEV",
                permissions=frozenset({"read_battery", "read_charge", "read_odometer"}),
            )
            schedule = Schedule(due=now + timedelta(minutes=number % 120), reason="parked; Renault every 2 h")
            car = await store.enrol(
                consent, slug=f"renault_{number}", name="Renault", brand="renault", schedule=schedule, at=now
            )
            state, _ = merge(car.state, observe(tuple(signals(number % 90 + 5, now)), now).measurements)
            await store.record(Polled(car=replace(car, state=state), news=True, at=now))

        for first in range(0, vehicles, 500):
            await asyncio.gather(*(one(n) for n in range(first, min(first + 500, vehicles))))


async def _load(path: Path) -> None:
    clock = WallClock()
    gc.collect()
    bare = _resident()
    began = time.perf_counter()
    async with open_store(path) as store:
        fleet = Fleet(load_profiles())
        timer = CohortTimer(clock, lambda bug: None)
        log = get_logger("bench")
        lores = Lores({"bench"}, store, clock, log, offset=lambda at: 0.0)
        cars = Cars(fleet, store, clock, timer, log, brand_of=lambda make: "renault", lores=lores)
        watch = FreshnessWatch(fleet, clock, lambda car: None)
        cars.listen(lambda car, reading: watch.follow(car))
        await cars.load({"bench"})
        seconds = time.perf_counter() - began
        gc.collect()
        print(bare, _resident(), seconds)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


if __name__ == "__main__":
    asyncio.run(_load(Path(sys.argv[1])))
