"""The whole as its user has it: simulated cars, our daemon, a real broker and a real Home Assistant.

One of each serves all tests of this file, which go from one state of the whole to the next.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
import pytest_asyncio

from tests.foreign.homeassistant import UNAVAILABLE, UNKNOWN, HomeAssistant
from tests.mosquitto import Witness
from tests.whole.daemon import Daemon
from tests.whole.whole import Town, command, enrolled, listed, rows, town, until

pytestmark = [pytest.mark.foreign, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

BASE: Final = "home"
START: Final = datetime(2026, 11, 26, 19, tzinfo=UTC)
"""An evening: some cars charge, some are under way."""
SPEED: Final = 30.0
"""So slow that Home Assistant can be compared with the daemon between two polls."""
HASTE: Final = 36_000.0
CARS: Final = 8
BUDGET: Final = "bucket = 10000\nrefill_per_minute = 600\ncalls_per_vehicle = 1000000"
PATIENCE_S: Final = 90.0
SHOWN: Final = ("soc", "freshness", "measured_at", "next_poll")
VANISHING: Final = (*(f"sensor.{{}}_{field}" for field in SHOWN), "sensor.{}_range", "switch.{}_charging")
"""What is not available without the daemon, however old it is."""

Document = dict[str, object]


@dataclass
class House:
    """All that there is in it."""

    town: Town
    daemon: Daemon
    ha: HomeAssistant
    refs: dict[str, str]
    """The id at Smartcar of each car, by slug."""

    async def truth(self, slug: str) -> Document:
        """What is so of a car, whoever knows."""
        return (await self.town.control.truth())[self.refs[slug]]

    async def agree(self) -> dict[str, Document]:
        """Until Home Assistant shows every car as the daemon's API tells of it; what that is, by slug."""
        told: dict[str, Document] = {}
        differing: list[tuple[object, ...]] = []

        async def same() -> bool:
            told.clear()
            told.update(await listed(self.daemon))
            states = await self.ha.states()
            differing[:] = [
                (slug, field, told[slug][field], state)
                for slug in told
                for field in SHOWN
                if not _shows(told[slug], field, state := states.get(f"sensor.{slug}_{field}"))
            ]
            return bool(told) and not differing

        try:
            await until(same, PATIENCE_S)
        except TimeoutError:
            pytest.fail(f"Home Assistant shows something else: {differing}")
        return told

    async def until_unavailable(self) -> None:
        """Until nothing is shown of any car."""
        entities = [pattern.format(slug) for pattern in VANISHING for slug in self.refs]
        await self.ha.until_states(lambda states: all(states.get(one) == UNAVAILABLE for one in entities))

    def complaints(self) -> list[str]:
        """What Home Assistant warned of, apart from a machine that is slow to start it."""
        slow = ("[homeassistant.setup]", "[homeassistant.bootstrap]")
        return [line for line in self.ha.complaints() if not any(words in line for words in slow)]

    async def one_that(self, fits: Callable[[Document, Document], bool]) -> str:
        """The slug of a fresh car of which that holds: of what is true and of what is known."""
        found: list[str] = []

        async def is_there() -> bool:
            told, true = await listed(self.daemon), await self.town.control.truth()
            found[:] = [
                slug
                for slug, known in told.items()
                if known["freshness"] == "fresh" and fits(true[self.refs[slug]], known)
            ]
            return bool(found)

        await until(is_there, PATIENCE_S)
        return found[0]


def _charges_for_a_while(true: Document, known: Document) -> bool:
    return true["state"] == "charging" and bool(known["charging"]) and true["soc_percent"] < 70


def _stands_unplugged(true: Document, known: Document) -> bool:
    return true["state"] == "parked" and known["plugged_in"] is False


def _shows(car: Document, field: str, state: str | None) -> bool:
    """Whether that is the state of the entity for a field of a car."""
    if state is None:
        return False
    if field == "freshness":
        return state == car[field]
    if field == "soc":
        return state == UNAVAILABLE if car["freshness"] != "fresh" else _number(state) == car[field]
    at = car[field]
    return state == (UNKNOWN if at is None else datetime.fromisoformat(str(at)).isoformat(timespec="seconds"))


def _number(state: str) -> float | None:
    try:
        return float(state)
    except ValueError:
        return None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    folder = tmp_path_factory.mktemp("whole")
    async with (
        town(folder, START, SPEED, vehicles=CARS, brands=("tesla",), seed=3) as place,
        HomeAssistant(tmp_path_factory.mktemp("homeassistant"), place.broker.port) as ha,
    ):
        config = place.settled(BASE, BUDGET)
        house = House(place, place.daemon(config), ha, {})
        try:
            await house.daemon.start()
            house.refs = {slug: ref for ref, slug in (await enrolled(config, CARS)).items()}
            await until(lambda: _all_read(house.daemon), PATIENCE_S)
            yield house
        finally:
            await house.daemon.__aexit__()


async def _all_read(daemon: Daemon) -> bool:
    return all(car["measured_at"] for car in (await listed(daemon)).values())


async def test_every_car_is_one_device_that_shows_what_the_daemon_knows(house: House) -> None:
    cars = await house.agree()
    assert len(cars) == CARS
    assert any(car["freshness"] == "fresh" for car in cars.values())
    devices = await house.ha.devices()
    assert sorted(device["identifiers"] for device in devices) == sorted(
        [["mqtt", f"{BASE}_{slug}"]] for slug in cars
    )
    assert house.complaints() == []


async def test_a_switch_stops_and_starts_the_charge_of_a_car(house: House) -> None:
    slug = await house.one_that(_charges_for_a_while)
    switch = f"switch.{slug}_charging"
    await house.ha.until(switch, "on")
    for word, state in (("off", "plugged"), ("on", "charging")):
        await house.ha.call(f"switch.turn_{word}", switch)

        async def obeyed(state: str = state) -> bool:
            return (await house.truth(slug))["state"] == state

        await until(obeyed, PATIENCE_S)
        # And the car itself says so.
        await house.ha.until(switch, word)
    assert house.complaints() == []


async def test_a_switch_that_cannot_be_obeyed_is_answered(house: House) -> None:
    slug = await house.one_that(_stands_unplugged)
    switch, result = f"switch.{slug}_charging", f"{BASE}/{slug}/charging/result"
    await house.ha.until(switch, "off")
    async with Witness(house.town.broker.port, result) as witness:
        await house.ha.call("switch.turn_on", switch)
        await witness.until(lambda heard: heard.last(result))
        [answer] = [message.json for message in witness.heard]
    assert (answer["result"], answer["outcome"], answer["value"]) == ("refused", "not_now", "on")
    assert (await house.truth(slug))["state"] != "charging"
    assert house.complaints() == []


async def test_a_daemon_that_is_killed_takes_its_values_with_it_and_brings_them_back(house: House) -> None:
    before = await house.agree()
    await house.daemon.end(signal.SIGKILL)
    await house.until_unavailable()
    # Nothing new is to be known, so what is shown afterwards is what was known before.
    await house.town.control.fault("SERVER:INTERNAL")
    known = _known(house)
    await house.daemon.start()
    cars = await house.agree()
    assert {slug: datetime.fromisoformat(str(car["measured_at"])) for slug, car in cars.items()} == known
    unread = [slug for slug in cars if cars[slug]["measured_at"] == before[slug]["measured_at"]]
    assert unread
    assert all(cars[slug]["soc"] == before[slug]["soc"] for slug in unread)
    assert any(car["freshness"] == "fresh" for car in cars.values())
    await house.town.control.clear()
    assert house.complaints() == []


def _known(house: House) -> dict[str, datetime]:
    """When each car's state of charge was measured, as it is in the store."""
    query = "SELECT slug, measured_ms FROM latest JOIN vehicle ON vehicle.id = vehicle_id"
    found = rows(house.town.folder / BASE / "evbatteryd.toml", query)
    return {slug: datetime.fromtimestamp(measured_ms / 1000, UTC) for slug, measured_ms in found}


async def test_after_a_restart_of_home_assistant_what_is_fresh_is_shown_and_nothing_else(
    house: House,
) -> None:
    """A day later, on which one car could not be reached."""
    place = house.town
    await house.ha.stop()
    assert await house.daemon.end(signal.SIGTERM) == 0
    lost = min(house.refs)
    await place.control.fault("SERVER:INTERNAL", match={"path": "signals", "vehicle": house.refs[lost]})
    later = place.clock.now() + timedelta(days=1)
    place.clock.turn(HASTE)
    await until(lambda: place.clock.now() > later)
    place.clock.turn(SPEED)
    house.daemon = place.daemon(place.folder / BASE / "evbatteryd.toml")
    await house.daemon.start()

    async def told_apart() -> bool:
        words = {slug: car["freshness"] for slug, car in (await listed(house.daemon)).items()}
        return words[lost] != "fresh" and "fresh" in words.values()

    await until(told_apart, PATIENCE_S)
    await house.ha.start()
    cars = await house.agree()
    assert cars[lost]["freshness"] != "fresh"
    assert any(car["freshness"] == "fresh" for car in cars.values())
    assert await house.ha.state(f"switch.{lost}_charging") == UNAVAILABLE
    await place.control.clear()
    assert house.complaints() == []


async def test_a_broker_that_forgot_everything_is_told_it_again(house: House) -> None:
    earlier = len(house.complaints())
    await house.town.broker.kill()
    await house.until_unavailable()
    await house.town.broker.start()
    cars = await house.agree()
    assert len(cars) == CARS
    assert any(car["freshness"] == "fresh" for car in cars.values())
    assert len(await house.ha.devices()) == CARS
    # It lost its connection, and says so.
    lost = "[homeassistant.components.mqtt.client]"
    assert [line for line in house.complaints()[earlier:] if lost not in line] == []


async def test_a_car_that_is_disconnected_is_gone(house: House) -> None:
    earlier = len(house.complaints())
    slug = max(house.refs)
    await command(house.town.folder / BASE / "evbatteryd.toml", "disconnect", slug, "--yes")

    async def gone() -> bool:
        found = [device["identifiers"] for device in await house.ha.devices()]
        entities = await house.ha.registered()
        return [["mqtt", f"{BASE}_{slug}"]] not in found and not any(f".{slug}_" in one for one in entities)

    await until(gone, PATIENCE_S)
    assert len(await house.ha.devices()) == CARS - 1
    assert slug not in await house.agree()
    # For each entity that was disabled Home Assistant deletes the topic once more, and warns of that.
    warning = f"No device components to cleanup for {BASE}_{slug}"
    assert [line for line in house.complaints()[earlier:] if warning not in line] == []
