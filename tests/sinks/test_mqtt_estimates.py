"""Estimates on a real broker: beside what was measured, told again as they move, deleted when withdrawn."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from evbatteryd.domain.estimates import next_change
from evbatteryd.domain.fleet import Car
from evbatteryd.domain.policy.outlook import Estimate, Trend
from evbatteryd.domain.reading import BatteryState
from evbatteryd.flow.watch import FreshnessWatch
from evbatteryd.sinks.payload import ESTIMATED
from tests.builders import NOON, car, reading, state
from tests.mosquitto import Gate, Heard, Mosquitto, Witness
from tests.sinks.conftest import Station
from tests.sinks.world import kept, later

CHARGING = state(soc=57, charging=True)
TOPIC = "evbatteryd/car_1/"
UNTIL = later(30)
OF_ESTIMATES = {TOPIC + field for field in ESTIMATED}


def expecting(number: int = 1, known: BatteryState = CHARGING, reading_id: str | None = "r1") -> Car:
    """A car that charges a point each six minutes, for half an hour."""
    trend = Trend(57.0, NOON, 10.0, 80.0, UNTIL)
    return replace(car(number, state=known, reading_id=reading_id), trend=trend)


def measured(message: Heard) -> dict[str, object]:
    """What a state tells beside its estimate and when it was told."""
    return {
        field: value for field, value in message.json.items() if field not in {*ESTIMATED, "published_at"}
    }


def guess(message: Heard) -> list[object]:
    return [message.json[field] for field in ESTIMATED]


async def touched_until_silent(station: Station, witness: Witness, number: int) -> None:
    """Touch the first car, then another one that has something to say: what the first had to say is said."""
    station.sink.touch(expecting().id)
    station.told(car(number))
    await witness.until(lambda w: w.on(f"evbatteryd/car_{number}/availability"))


async def test_an_estimate_is_told_again_at_each_point_and_what_was_measured_stays(
    broker: Mosquitto, protocol: str
) -> None:
    async with Witness(broker.port) as witness, Station(broker.port, car(1), protocol=protocol) as station:
        station.fleet.put(expecting())
        await station.publish([reading(1, state=CHARGING)])
        await witness.until(lambda w: w.on(TOPIC + "estimate_until"))
        for number, passed in ((90, 0), (91, 4)):  # 57.2 and 57.8
            await station.clock.advance(timedelta(minutes=passed))
            await touched_until_silent(station, witness, number)
        assert len(witness.on(TOPIC + "state")) == 1
        following = next_change(expecting(), station.clock.now())
        assert following == later(6)
        await station.clock.advance(following - station.clock.now())
        await touched_until_silent(station, witness, 92)
        await witness.until(lambda w: len(w.on(TOPIC + "estimate_until")) == 2)
        first, second = witness.on(TOPIC + "state")
        # To a point more than what the estimate's band is now: so far it moves until it is told again.
        assert guess(first) == [57.2, 57, 60, "2026-11-22T12:30:00.000Z"]
        assert guess(second) == [58, 57, 61, "2026-11-22T12:30:00.000Z"]
        assert measured(first) == measured(second)
        assert second.json["reading_id"] == "r1"
        assert second.json["published_at"] == "2026-11-22T12:06:00.000Z"
        assert second.retain
        assert [m.text for m in witness.on(TOPIC + "soc_estimate")] == ["57.2", "58"]
        assert {m.text for m in witness.on(TOPIC + "soc")} == {"57"}


async def test_an_estimate_is_withdrawn_when_nothing_is_claimed_any_more(
    broker: Mosquitto, protocol: str
) -> None:
    async with Witness(broker.port) as witness, Station(broker.port, car(1), protocol=protocol) as station:
        station.fleet.put(expecting())
        await station.publish([reading(1, state=CHARGING)])
        await witness.until(lambda w: w.on(TOPIC + "estimate_until"))
        assert set(await kept(broker.port, TOPIC + "+")) >= OF_ESTIMATES
        await station.clock.advance(UNTIL - station.clock.now())
        await touched_until_silent(station, witness, 90)
        first, last = witness.on(TOPIC + "state")
        assert guess(last) == [None] * 4
        assert measured(first) == measured(last)
        assert set(await kept(broker.port, TOPIC + "+")) & OF_ESTIMATES == set()
        assert (await kept(broker.port, TOPIC + "soc"))[TOPIC + "soc"] == "57"
        station.told(replace(expecting(), state=state(soc=57, charging=True, fetched_at=later(31))))
        await witness.until(lambda w: len(w.on(TOPIC + "fetched_at")) == 3)
        await touched_until_silent(station, witness, 91)
        assert [m.text for m in witness.on(TOPIC + "soc_estimate")] == ["57.2", ""], "deleted once"


async def test_scalars_of_an_estimate_expire_with_it(broker: Mosquitto) -> None:
    async with Witness(broker.port) as witness, Station(broker.port, car(1)) as station:
        station.fleet.put(expecting())
        await station.publish([reading(1, state=CHARGING)])
        await witness.until(lambda w: w.on(TOPIC + "estimate_until"))
        expiries = {
            field: witness.on(TOPIC + field)[0].properties.MessageExpiryInterval
            for field in ("state", "soc", *ESTIMATED)
        }
    fresh = (35 - 1) * 60
    claimed = (30 - 1) * 60
    assert expiries == {"state": fresh, "soc": fresh, **dict.fromkeys(ESTIMATED, claimed)}


# Parked cars: the band widens, and nobody tells of that until the car should have answered.

DUE = NOON + timedelta(hours=2)


def waiting(due: datetime | None = DUE, **values: object) -> Car:
    """A parked car about which something is claimed for a day."""
    trend = Trend(57.0, NOON, 0.0, 57.0, NOON + timedelta(days=1))
    return replace(car(1, state=state(soc=57, **values), reading_id="r1", due=due), trend=trend)


def widening(_: Car, now: datetime) -> Estimate:
    """A point an hour, downwards."""
    return Estimate(57.0, 57.0 - (now - NOON) / timedelta(hours=1), 57.0, NOON + timedelta(days=1))


def band(witness: Witness) -> tuple[float, float]:
    told = witness.on(TOPIC + "state")[-1].json
    low, high = (witness.last(TOPIC + f"soc_estimate_{end}") for end in ("low", "high"))
    assert (told["soc_estimate_low"], told["soc_estimate_high"]) == (float(low), float(high))
    return float(low), float(high)


async def test_the_band_that_was_told_holds_until_it_is_told_again(broker: Mosquitto, protocol: str) -> None:
    """Looked at every ten minutes of a night in which the car does not answer."""
    async with (
        Witness(broker.port) as witness,
        Station(broker.port, car(1), protocol=protocol, estimate=widening) as station,
    ):
        known = waiting()

        def tell(one: Car) -> None:
            watch.follow(one)
            station.sink.touch(one.id)

        watch = FreshnessWatch(station.fleet, station.clock, tell)
        station.fleet.put(known)
        await station.publish([reading(1, state=known.state)])
        await witness.until(lambda w: w.on(TOPIC + "estimate_until"))
        watch.follow(known)
        tellings = 0
        for number in range(100, 136):
            watch.ring()
            await touched_until_silent(station, witness, number)
            low, high = band(witness)
            now = widening(known, station.clock.now())
            assert low <= now.low_percent
            assert high >= now.high_percent
            tellings = len(witness.on(TOPIC + "soc_estimate_low"))
            await station.clock.advance(timedelta(minutes=10))
        assert 5 <= tellings <= 7, (
            "at first, as it turns stale, when it is overdue, and every hour from then on"
        )


async def test_the_estimate_of_a_stale_value_goes_on_being_told(broker: Mosquitto, protocol: str) -> None:
    """What was measured is not: its scalars stay as they were told while it was fresh."""
    async with Witness(broker.port) as witness, Station(broker.port, car(1), protocol=protocol) as station:
        charging = replace(
            expecting(), trend=Trend(57.0, NOON, 10.0, 80.0, NOON + timedelta(hours=8)), reading_id="r1"
        )
        station.fleet.put(charging)
        await station.publish([reading(1, state=CHARGING)])
        await witness.until(lambda w: w.on(TOPIC + "estimate_until"))
        assert witness.last(TOPIC + "soc_estimate") == "57.2"
        await station.clock.advance(timedelta(minutes=59))
        await touched_until_silent(station, witness, 90)
        assert witness.last(TOPIC + "availability") == "stale"
        assert witness.on(TOPIC + "state")[-1].json["freshness"] == "stale"
        assert guess(witness.on(TOPIC + "state")[-1])[0] == 67
        assert [m.text for m in witness.on(TOPIC + "soc_estimate")] == ["57.2", "67"]
        assert len(witness.on(TOPIC + "soc")) == 1
        assert set(await kept(broker.port, TOPIC + "+")) >= OF_ESTIMATES
        if protocol == "5":
            left = witness.on(TOPIC + "soc_estimate")[-1].properties.MessageExpiryInterval
            assert left == 7 * 3600, "until nothing is claimed any more"
            assert witness.on(TOPIC + "state")[-1].properties.MessageExpiryInterval == 1


async def test_scalars_of_an_estimate_outlast_those_of_what_was_measured(broker: Mosquitto) -> None:
    async with Witness(broker.port) as witness, Station(broker.port, car(1), estimate=widening) as station:
        station.fleet.put(waiting())
        await station.publish([reading(1, state=waiting().state)])
        await witness.until(lambda w: w.on(TOPIC + "estimate_until"))
        kept_s = {
            field: witness.on(TOPIC + field)[0].properties.MessageExpiryInterval
            for field in ("soc", *ESTIMATED)
        }
    assert {kept_s.pop(field) for field in ESTIMATED} == {24 * 3600 - 60}
    assert kept_s["soc"] < 4 * 3600


async def test_the_estimate_of_now_is_not_told_beside_a_reading_of_earlier(broker: Mosquitto) -> None:
    earlier = state(soc=40, measured_at=NOON - timedelta(hours=3))
    async with Witness(broker.port) as witness, Station(broker.port, car(1)) as station:
        station.fleet.put(expecting(reading_id="r2"))
        await station.publish([reading(1, state=earlier), reading(2, state=CHARGING)])
        await witness.until(lambda w: w.on(TOPIC + "estimate_until"))
        told = [
            (m.json["reading_id"], m.json["soc"], m.json["soc_estimate"]) for m in witness.on(TOPIC + "state")
        ]
        assert told == [("r1", 40, None), ("r2", 57, 57.2)]


async def test_an_estimate_of_an_earlier_start_is_deleted_on_every_connection_until_there_is_one(
    broker: Mosquitto, impatient: None
) -> None:
    """MQTT 3.1.1, where nothing expires."""
    async with Station(broker.port, car(1), protocol="3.1.1") as station:
        station.fleet.put(expecting())
        await station.publish([reading(1, state=CHARGING)])
    assert set(await kept(broker.port, TOPIC + "+")) >= OF_ESTIMATES
    polled = replace(expecting().schedule, polled_at=NOON)
    unclaimed = replace(expecting(), trend=None, learned=b"habits", schedule=polled)
    async with (
        Gate(broker.port) as gate,
        Witness(broker.port) as witness,
        Station(gate.port, unclaimed, protocol="3.1.1") as station,
    ):
        await witness.until(lambda w: w.last(TOPIC + "estimate_until") == "")
        assert set(await kept(broker.port, TOPIC + "+")) & OF_ESTIMATES == set()
        gate.shut()
        await station.connected(False)
        gate.open()
        await witness.until(lambda w: [m.text for m in w.on(TOPIC + "estimate_until")].count("") == 2)
        station.told(replace(expecting(), learned=b"habits"))
        await witness.until(lambda w: w.last(TOPIC + "estimate_until"))
        assert set(await kept(broker.port, TOPIC + "+")) >= OF_ESTIMATES
        station.told(unclaimed)
        await witness.until(lambda w: w.last(TOPIC + "estimate_until") == "")


async def test_a_withdrawn_car_leaves_no_estimate(broker: Mosquitto) -> None:
    async with Witness(broker.port) as witness, Station(broker.port, car(1)) as station:
        station.fleet.put(expecting())
        await station.publish([reading(1, state=CHARGING)])
        gone = expecting()
        station.told(replace(gone, vehicle=replace(gone.vehicle, withdrawn_at=later(1))))
        await witness.until(lambda w: w.last(TOPIC + "availability") == "")
        assert await kept(broker.port, TOPIC + "+") == {}
