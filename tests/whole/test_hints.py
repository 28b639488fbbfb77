"""Hints of wall boxes, end to end: the same cars are read by two daemons, and only one of them is told."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import mean

import aiomqtt

from tests.mosquitto import LOOPBACK, Witness
from tests.whole.daemon import Daemon
from tests.whole.whole import Town, enrolled, listed, metrics, rows, town

SPEED = 3600.0
CARS = 24
BRANDS = ("tesla", "volvo", "skoda", "ford", "polestar", "mg")
"""Makes whose clouds are told when the cable is plugged in."""
START = datetime(2026, 11, 26, 8, tzinfo=UTC)
SPAN = timedelta(hours=8)
CALLS = 240
"""Of each car and month, which has just begun: one in three hours."""
BUDGET = f"bucket = 10000\nrefill_per_minute = 600\ncalls_per_vehicle = {CALLS}\nanchor_day = {START.day}"
TELLS = {"plugged": "plugged_in", "charging": "charging"}
"""What a wall box says when the car's state becomes this."""
LOOK_EVERY_S = 0.02
SEEN_BY_THEN = timedelta(hours=1)
"""Charges that began later than this before the end are not judged."""
UNSEEN = timedelta(hours=6)
"""As late as this counts a charge that was never seen."""
AT_ONCE = 4
"""Calls that a car's hints may cause in a row: by so many it may be ahead of its twin."""
AHEAD = 1.5
"""All cars together: what hints cost is saved at other times, of which a day's third has few."""


@dataclass
class WallBoxes:
    """They see what the simulated cars truly do, and say so."""

    town: Town
    teller: aiomqtt.Client
    base: str
    slugs: dict[str, str]
    states: dict[str, str] = field(default_factory=dict)
    began: list[tuple[str, datetime]] = field(default_factory=list)
    """Which car began to charge, when."""

    async def watch(self, span: timedelta, charges: int) -> None:
        """For so long, and until so many charges could have been seen."""
        until = self.town.clock.now() + span
        while (now := self.town.clock.now()) < until or len(self.before(now - SEEN_BY_THEN)) < charges:
            for ref, truth in (await self.town.control.truth()).items():
                await self._see(self.slugs[ref], str(truth["state"]), _at(truth["at"]))
            await asyncio.sleep(LOOK_EVERY_S)

    def before(self, at: datetime) -> list[tuple[str, datetime]]:
        return [(slug, began) for slug, began in self.began if began < at]

    async def _see(self, slug: str, state: str, at: datetime) -> None:
        before = self.states.get(slug, state)
        self.states[slug] = state
        if state == before:
            return
        if state == "charging":
            self.began.append((slug, at))
        if state in TELLS and before != "charging":
            await self.teller.publish(f"{self.base}/{slug}/event/set", TELLS[state], qos=1)


@asynccontextmanager
async def telling(town: Town) -> AsyncIterator[aiomqtt.Client]:
    protocol = aiomqtt.ProtocolVersion.V5
    async with aiomqtt.Client(LOOPBACK, town.broker.port, protocol=protocol) as client:
        yield client


def minutes_until_seen(witness: Witness, base: str, slug: str, began: datetime) -> float:
    """From when a charge began until the car's state first said so."""
    for message in witness.on(f"{base}/{slug}/state"):
        told = message.json
        # Between two looks at the truth it may have begun a little earlier.
        if told["charging"] and _at(told["measured_at"]) >= began - 2 * LOOK_EVERY_S * timedelta(hours=1):
            return min(_at(told["published_at"]) - began, UNSEEN) / timedelta(minutes=1)
    return UNSEEN / timedelta(minutes=1)


def _at(written: object) -> datetime:
    return datetime.fromisoformat(str(written))


async def test_a_charge_that_its_wall_box_tells_of_is_seen_earlier_for_hardly_more_calls(
    tmp_path: Path,
) -> None:
    async with town(tmp_path, START, SPEED, vehicles=CARS, brands=BRANDS, seed=1) as place:
        configs = {name: place.settled(name, BUDGET) for name in ("told", "twin")}
        async with (
            Witness(place.broker.port, "+/+/#") as witness,
            telling(place) as teller,
            place.daemon(configs["told"]) as told,
            place.daemon(configs["twin"]) as twin,
        ):
            boxes = WallBoxes(place, teller, "told", await enrolled(configs["told"], CARS))
            assert boxes.slugs == await enrolled(configs["twin"], CARS)
            await boxes.watch(SPAN, CARS // 4)
            now = place.clock.now()
            counted = await metrics(told)
            assert not any(name.startswith("evbatteryd_hints_total") for name in await metrics(twin))
    answers = [message.json for message in witness.heard if message.topic.endswith("/event/result")]
    taken = sum(answer["result"] == "taken" for answer in answers)
    assert taken == sum(calls for name, calls in counted.items() if 'outcome="taken"' in name) > 0
    assert not any(answer["result"] == "refused" for answer in answers)
    # Earlier ...
    charges = boxes.before(now - SEEN_BY_THEN)
    waits = {base: mean(minutes_until_seen(witness, base, *charge) for charge in charges) for base in configs}
    assert waits["told"] < waits["twin"] / 3, waits
    # ... within the same plan.
    spent = {base: _spent(config) for base, config in configs.items()}
    of_all = {base: calls.total() for base, calls in spent.items()}
    midnight = START.replace(hour=0)
    assert of_all["told"] <= CARS * CALLS * ((now - midnight) / timedelta(days=30)), of_all
    assert of_all["told"] <= of_all["twin"] * AHEAD, of_all
    assert all(calls <= spent["twin"][slug] + AT_ONCE for slug, calls in spent["told"].items()), spent


def _spent(config: Path) -> Counter[str]:
    """Calls of each car."""
    query = "SELECT slug, sum(calls) FROM ledger JOIN vehicle ON vehicle.id = vehicle_id GROUP BY slug"
    return Counter(dict(rows(config, query)))


async def test_what_is_retained_is_no_hint(tmp_path: Path) -> None:
    async with town(tmp_path, START, 60.0, vehicles=1, brands=("tesla",)) as place:
        config = place.settled("home", BUDGET)
        async with (
            Witness(place.broker.port, "home/#") as witness,
            telling(place) as teller,
            place.daemon(config) as daemon,
        ):
            while not (read := [car for car in (await listed(daemon)).values() if car["soc"] is not None]):  # noqa: ASYNC110 - another process makes it true
                await asyncio.sleep(0.05)
            [car] = read
            topic = f"home/{car['slug']}/event/set"
            # One comes while it listens, the broker keeps it, and it comes again at the next start.
            await teller.publish(topic, "plugged_in", qos=1, retain=True)
            await _until_counted(daemon, 'event="plugged_in",outcome="retained"')
            assert (await listed(daemon))[str(car["slug"])]["next_poll"] == car["next_poll"]
            await daemon.end(signal.SIGTERM)
            await witness.until(lambda w: w.last("home/bridge/state") == "offline")
            await daemon.start()
            await witness.until(lambda w: w.last("home/bridge/state") == "online")
            assert (await listed(daemon))[str(car["slug"])]["next_poll"] == car["next_poll"]
            result = topic.replace("/set", "/result")
            assert witness.on(result) == []
            # The same, said as it should be.
            await teller.publish(topic, "plugged_in", qos=1)
            await witness.until(lambda w: w.on(result))
            [answer] = witness.on(result)
            assert answer.json["event"] == "plugged_in"
            assert answer.json["result"] == "taken"
            assert _at(answer.json["next_poll"]) < _at(car["next_poll"])
            assert not any("retained" in name for name in await metrics(daemon))


async def _until_counted(daemon: Daemon, labels: str) -> None:
    async with asyncio.timeout(15):
        while f"evbatteryd_hints_total{{{labels}}}" not in await metrics(daemon):  # noqa: ASYNC110 - another process makes it true
            await asyncio.sleep(0.05)
