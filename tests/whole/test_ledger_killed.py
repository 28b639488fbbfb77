"""The ledger against ``kill -9``: whenever the daemon dies, no call is made that the plan does not hold.

Two applications of one daemon, each with a simulator of its own behind real HTTP: one plan counts every car's
calls, the other the fleet's together. The simulators have no plan of their own and refuse nothing: whatever
was sent to them counts.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest

from evbatteryd.clock import FastClock
from evbatteryd.simulator import Simulator, SimulatorOptions
from tests.whole.daemon import Daemon
from tests.whole.whole import Arrivals

SPEED = 3000.0
START = datetime(2026, 11, 2, 18, tzinfo=UTC)
DAY = timedelta(days=1)
MORNING = datetime(2026, 11, 3, 2, tzinfo=UTC)
"""The period has turned, and calls were made since."""
ON_ITS_WAY = timedelta(hours=1)
"""A call that was noted before midnight may arrive after it: a busy machine's second is most of an hour."""
CARS = 3
CALLS = 4
"""Of each car and day; of the pooled plan for each of its cars."""
POOLED = {"capped": False, "pool": True}
PATIENCE_S = 0.4
"""How long a kill waits for the call that it is meant for: with the budget spent, there is none."""


def by_day(arrivals: Arrivals) -> Iterator[Counter[str]]:
    """Calls of each car in each period, without those that may be of the one before."""
    days = {at - (at - datetime.min.replace(tzinfo=UTC)) % DAY for _, at in arrivals.calls}
    for day in sorted(days):
        yield Counter(vehicle for vehicle, at in arrivals.calls if day + ON_ITS_WAY <= at < day + DAY)


@dataclass
class Ledger:
    """What the store says was spent, read beside a daemon that is dead or alive."""

    path: Path

    def by_day(self, application: str) -> dict[int, Counter[str]]:
        """Calls of each car by the start of the period."""
        days: dict[int, Counter[str]] = {}
        for window, vehicle, calls in self._rows(
            "SELECT window_ms, vehicle_ref, calls FROM ledger JOIN vehicle ON vehicle.id = vehicle_id"
            " JOIN application ON application.id = ledger.application_id WHERE application.name = ?",
            application,
        ):
            days.setdefault(window, Counter())[vehicle] = calls
        return days

    def by_car(self, application: str) -> Counter[str]:
        return sum(self.by_day(application).values(), Counter())

    def others(self, application: str) -> int:
        [(calls,)] = self._rows(
            "SELECT coalesce(sum(calls), 0) FROM ledger JOIN application ON application.id = application_id"
            " WHERE name = ? AND vehicle_id = 0",
            application,
        )
        return calls

    def _rows(self, query: str, *arguments: str) -> list[tuple]:
        # Read-only: whoever else closes such a file last folds its log into it, which is the daemon's to do.
        with closing(sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True)) as db:
            return db.execute(query, arguments).fetchall()


@dataclass
class World:
    clock: FastClock
    arrivals: Mapping[str, Arrivals]
    ledger: Ledger
    daemon: Daemon

    def owed(self) -> Counter[str]:
        """Calls of each car, and of what no car pays for, that were noted and never arrived."""
        owed: Counter[str] = Counter()
        for application, arrived in self.arrivals.items():
            spent, calls = self.ledger.by_car(application), arrived.by_car()
            owed.update({vehicle: spent[vehicle] - calls[vehicle] for vehicle in spent | calls})
            owed[application] = self.ledger.others(application) - arrived.others
        return owed


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    origin = time.monotonic()
    clock = FastClock(SPEED, START, origin)
    config, tables = folder / "evbatteryd.toml", []
    arrivals = {name: Arrivals(clock) for name in POOLED}
    async with AsyncExitStack() as opened:
        for seed, (name, pooled) in enumerate(POOLED.items()):
            simulator = Simulator(
                SimulatorOptions(
                    vehicles=CARS,
                    brands=("volvo", "polestar"),
                    seed=seed,
                    calls_per_vehicle=None,
                    bucket=20_000,
                    refill_per_minute=600,
                    latency_scale=120.0,
                ),
                clock,
            )
            simulator.app.middlewares.append(arrivals[name].counting())
            url = await opened.enter_async_context(simulator.serving("127.0.0.1", 0))
            (folder / name).touch(mode=0o600)
            (folder / name).write_text(simulator.client_secret)
            origins = ", ".join(f'{host} = "{url}"' for host in ("connect", "iam", "vehicle", "management"))
            tables.append(
                f"""
[smartcar.{name}]
client_id = "{simulator.client_id}"
client_secret = {{ file = "{name}" }}
origins = {{ {origins} }}
[smartcar.{name}.budget]
bucket = 10000
refill_per_minute = 600
calls_per_vehicle = {CALLS}
period = "day"
pooled = {str(pooled).lower()}
"""
            )
        paces = "\n".join(f'{key} = "10m"' for key in ("parked", "charging", "driving", "idle", "floor"))
        config.write_text(
            f"""
{"".join(tables)}
[mqtt]
enabled = false
[http]
listen = "127.0.0.1:0"
[store]
url = "sqlite:///{folder}/evbatteryd.db"
[brands.volvo]
{paces}
[brands.polestar]
{paces}
"""
        )
        daemon = await opened.enter_async_context(Daemon(config, SPEED, START, origin))
        yield World(clock, arrivals, Ledger(folder / "evbatteryd.db"), daemon)


async def _at_a_moment(world: World, dice: random.Random) -> None:
    """Anything may be under way, or nothing."""
    await asyncio.sleep(dice.uniform(0.0, PATIENCE_S))


async def _as_a_call_arrives(world: World, dice: random.Random) -> None:
    """It was sent and is not answered yet."""
    await _wait_for(world, dice, lambda arrivals: arrivals.begun)


async def _as_an_answer_leaves(world: World, dice: random.Random) -> None:
    """Its commit may be under way, and the next page's reservation."""
    await _wait_for(world, dice, lambda arrivals: arrivals.answered)
    await asyncio.sleep(dice.uniform(0.0, 0.01))


async def _wait_for(world: World, dice: random.Random, event_of: Callable[[Arrivals], asyncio.Event]) -> None:
    """Until the simulator of one of the applications saw it a few times."""
    event = event_of(world.arrivals[dice.choice(list(POOLED))])
    try:
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(dice.randint(1, CARS)):
                event.clear()
                await event.wait()
    except TimeoutError:
        return


MOMENTS = (_as_a_call_arrives, _as_an_answer_leaves, _as_a_call_arrives, _at_a_moment)


@pytest.mark.parametrize(
    ("seed", "kills"), [(1, 12), *(pytest.param(seed, 60, marks=pytest.mark.slow) for seed in (2, 3, 4))]
)
async def test_however_often_it_is_killed_nothing_is_overspent(tmp_path: Path, seed: int, kills: int) -> None:
    dice = random.Random(seed)
    async with world(tmp_path) as w:
        owed: Counter[str] = Counter()
        for number in count():
            if number >= kills and w.clock.now() >= MORNING:
                break
            await MOMENTS[number % len(MOMENTS)](w, dice)
            await w.daemon.end(signal.SIGKILL)
            before, owed = owed, w.owed()
            # Noted before it is sent; and a kill costs a car at most the one call that it had under way,
            # an application at most a token and a list.
            assert all(calls >= 0 for calls in owed.values()), owed
            assert all(calls - before[of] <= 1 + (of in POOLED) for of, calls in owed.items()), (before, owed)
            await w.daemon.start()
        await _at_a_moment(w, dice)
        assert await w.daemon.end(signal.SIGTERM) == 0
        before, owed = owed, w.owed()
        # Whoever may finish loses no call of a car.
        assert all(calls <= before[of] for of, calls in owed.items() if of not in POOLED), (before, owed)
        for application, pooled in POOLED.items():
            spent = list(w.ledger.by_day(application).values())
            for day in (*spent, *by_day(w.arrivals[application])):
                assert day.total() <= CALLS * CARS
                assert pooled or all(calls <= CALLS for calls in day.values())
            # Killed again and again they came up against the plan, or this would prove nothing.
            fullest = max(spent, key=Counter.total)
            assert fullest.total() >= CALLS * CARS * 0.75
            assert pooled or max(fullest.values()) >= CALLS - 1
