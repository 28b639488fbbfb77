"""The sink against a real broker that comes, goes, forgets, freezes and refuses."""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import itertools
import logging
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from evbatteryd.domain.errors import SinkError
from evbatteryd.domain.fleet import Car, Trouble
from evbatteryd.domain.freshness import GRACE
from evbatteryd.domain.ledger import Share
from evbatteryd.domain.reading import Reading
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.sinks import blame, connection, mark, mqtt
from evbatteryd.sinks.connection import Connection, MqttOptions
from evbatteryd.sinks.mqtt import MqttSink
from evbatteryd.sinks.payload import AVAILABILITY, FIELDS, POLLING, STATE, Message, Topics
from tests.builders import NOON, car, profile, reading, state
from tests.fakes import until
from tests.mosquitto import LOOPBACK, PATIENCE_S, Gate, Mosquitto, Witness, program
from tests.sinks.conftest import PASSWORD, Station
from tests.sinks.world import (
    Notes,
    at_its_newest,
    kept,
    later,
    packet,
    packet_id,
    readings_of,
    server,
    websocket_front,
)

EVERYTHING = {STATE, AVAILABILITY, POLLING, *FIELDS}
"""Whatever may be retained of a car."""
STALE_AT = NOON + timedelta(seconds=30) + 2 * profile().parked + GRACE
"""When what was fetched half a minute past noon stops being fresh, for a parked car."""


def interleaved(cars: int, each: int) -> list[Reading]:
    """Readings of several cars as the journal has them."""
    every = [
        one for number in range(1, cars + 1) for one in readings_of(number, each, first=number, step=cars)
    ]
    return sorted(every, key=lambda one: one.seq)


def ids(witness: Witness, slug: str) -> list[str]:
    """The readings that the state topic of a car told, repeats left out."""
    told = [str(message.json["reading_id"]) for message in witness.on(f"evbatteryd/{slug}/state")]
    return list(dict.fromkeys(told))


def told_of(known: Car, readings: list[Reading]) -> list[str]:
    return [one.reading_id for one in readings if one.vehicle_id == known.id]


def never_went_back(witness: Witness, slug: str) -> bool:
    times = [str(message.json["measured_at"]) for message in witness.on(f"evbatteryd/{slug}/state")]
    scalars = [message.text for message in witness.on(f"evbatteryd/{slug}/measured_at")]
    return times == sorted(times) and scalars == sorted(scalars)


# What is told


async def test_every_reading_is_told_in_order_and_the_newest_alone_is_kept(
    broker: Mosquitto, protocol: str
) -> None:
    cars = [car(number) for number in (1, 2, 3)]
    journal = interleaved(3, 40)
    async with Witness(broker.port) as witness, Station(broker.port, *cars, protocol=protocol) as station:
        await station.publish(journal[:70])
        await station.publish(journal[70:])
        station.told(car(9))
        await witness.until(lambda w: len(w.on("evbatteryd/bridge/info")) == 2)
        await station.until(lambda: station.tally.messages >= len(witness.heard))
        assert station.tally.messages == len(witness.heard)
    for one in cars:
        offers = [
            [entry for entry in part if entry.vehicle_id == one.id] for part in (journal[:70], journal[70:])
        ]
        newest = {own[-1].reading_id: own[-1] for own in offers}
        states = witness.on(f"evbatteryd/{one.slug}/state")
        assert [message.json["reading_id"] for message in states] == told_of(one, journal)
        for message in states:
            is_newest = message.json["reading_id"] in newest
            assert message.retain is is_newest
            # Not on the connection that told it: each was fetched before that.
            assert message.json["replayed"] is True
            assert message.json["freshness"] == ("fresh" if is_newest else "stale")
            assert hasattr(message.properties, "MessageExpiryInterval") == (is_newest and protocol == "5")
        scalars = [message.text for message in witness.on(f"evbatteryd/{one.slug}/soc")]
        assert scalars == [f"{entry.state.soc_percent:.0f}" for entry in newest.values()]
        assert len(witness.on(f"evbatteryd/{one.slug}/fetched_at")) == len(newest)


async def test_a_published_reading_was_acknowledged(broker: Mosquitto) -> None:
    """Whoever subscribes after ``publish`` has returned finds it retained."""
    async with Station(broker.port, car(1)) as station:
        await station.publish([reading(7, state=state(soc=61, range_km=240))])
        async with Witness(broker.port, "evbatteryd/car_1/+") as late:
            await late.until(lambda w: len(w.heard) == 5)
            assert ids(late, "car_1") == ["r7"]
            assert late.last("evbatteryd/car_1/soc") == "61"
            assert late.last("evbatteryd/car_1/range_km") == "240"


async def test_a_state_says_what_it_is_and_how_long_it_holds(broker: Mosquitto) -> None:
    async with Witness(broker.port) as witness, Station(broker.port, car(1)) as station:
        await station.publish([reading(1, state=state(soc=61))])
        await witness.until(lambda w: w.on("evbatteryd/car_1/soc"))
        (whole,), (soc,) = witness.on("evbatteryd/car_1/state"), witness.on("evbatteryd/car_1/soc")
        seconds = (STALE_AT - station.clock.now()).total_seconds()
        assert whole.properties.MessageExpiryInterval == seconds
        assert soc.properties.MessageExpiryInterval == seconds
        assert whole.properties.ContentType == "application/json"
        assert whole.properties.UserProperty == [("schema", "1")]
        assert whole.json["freshness"] == "fresh"


async def test_the_word_that_a_car_is_fresh_holds_as_long_as_its_value(
    broker: Mosquitto, protocol: str
) -> None:
    """Any other word, and every word of MQTT 3.1.1, holds until there is another."""
    topic = "evbatteryd/car_1/availability"
    async with Witness(broker.port) as witness, Station(broker.port, car(1), protocol=protocol) as station:
        await witness.until(lambda w: w.last(topic) == "stale")
        await station.publish([reading(1, state=state(soc=61))])
        await witness.until(lambda w: w.last(topic) == "fresh")
        stale, fresh = witness.on(topic)
        assert not hasattr(stale.properties, "MessageExpiryInterval")
        seconds = (STALE_AT - station.clock.now()).total_seconds()
        expiry = getattr(fresh.properties, "MessageExpiryInterval", None)
        assert expiry == (seconds if protocol == "5" else None)
        # A confirmation prolongs it, where it runs out.
        station.told(car(1, state=state(soc=61, fetched_at=later(1)), reading_id="r1"))
        await witness.until(lambda w: len(w.on("evbatteryd/car_1/fetched_at")) == 2)
        station.told(car(9))
        await witness.until(lambda w: w.last("evbatteryd/car_9/polling"))
        prolonged = witness.on(topic)[2:]
        if protocol == "5":
            assert [m.properties.MessageExpiryInterval for m in prolonged] == [seconds + 30]
        else:
            assert prolonged == []


async def test_how_a_car_is_polled_is_told_whenever_it_changes(broker: Mosquitto, protocol: str) -> None:
    known = replace(
        car(1, state=state(soc=61), reading_id="r1", due=later(60)),
        trouble=Trouble("unreachable", "network", "no way there", NOON),
    )
    share = Share(
        calls_left=400,
        calls=1000,
        began_at=NOON - timedelta(days=22),
        renews_at=NOON + timedelta(days=8),
        application_interval=timedelta(minutes=1),
    )
    topic = "evbatteryd/car_1/polling"
    async with (
        Witness(broker.port) as witness,
        Station(broker.port, known, protocol=protocol, share=share) as station,
    ):
        await witness.until(lambda w: w.on(topic))
        (told,) = witness.on(topic)
        assert told.retain
        assert told.json["next_poll"] == "2026-11-22T13:00:00.000Z"
        assert told.json["problem"]["code"] == "network"
        assert (told.json["calls_left"], told.json["calls"]) == (400, 1000)
        assert told.json["renews_at"] == "2026-11-30T12:00:00.000Z"
        for _ in range(3):
            station.sink.touch(known.id)
        station.told(replace(known, schedule=replace(known.schedule, due=later(90))))
        await witness.until(lambda w: len(w.on(topic)) == 2)
        assert witness.on(topic)[-1].json["next_poll"] == "2026-11-22T13:30:00.000Z"
        station.told(replace(known, trouble=None))
        await witness.until(lambda w: len(w.on(topic)) == 3)
        assert witness.on(topic)[-1].json["problem"] is None


async def test_a_superseded_reading_is_told_as_one_whatever_else_it_may_be(broker: Mosquitto) -> None:
    """Nobody finds it later and takes it for news, though it was fetched on this connection."""
    first, second = (
        reading(number, state=state(soc=60 + number, measured_at=later(0), fetched_at=later(1.5)))
        for number in (1, 2)
    )
    async with Witness(broker.port) as witness, Station(broker.port, car(1)) as station:
        await station.connected()
        await station.publish([first, second])
        await witness.until(lambda w: len(w.on("evbatteryd/car_1/state")) == 2)
        old, new = witness.on("evbatteryd/car_1/state")
        assert (old.json["reading_id"], old.json["replayed"], old.retain) == ("r1", True, False)
        assert old.json["freshness"] != "fresh"
        assert old.json["measured_at"] == "2026-11-22T12:00:00.000Z"
        assert (new.json["reading_id"], new.json["replayed"], new.retain) == ("r2", False, True)
        assert new.json["freshness"] == "fresh"
        await witness.until(lambda w: w.on("evbatteryd/car_1/soc"))
        assert [message.text for message in witness.on("evbatteryd/car_1/soc")] == ["62"]


async def test_a_clock_that_runs_fast_makes_values_expire_fast(broker: Mosquitto) -> None:
    async with Witness(broker.port) as witness, Station(broker.port, car(1)) as station:
        station.clock.speed = 60.0
        await station.publish([reading(1, state=state(soc=61))])
        await witness.until(lambda w: w.on("evbatteryd/car_1/state"))
        seconds = (STALE_AT - station.clock.now()).total_seconds() // 60
        assert witness.on("evbatteryd/car_1/state")[0].properties.MessageExpiryInterval == seconds


async def test_a_late_subscriber_gets_what_is_left_of_the_time(broker: Mosquitto) -> None:
    async with Station(broker.port, car(1)) as station:
        await station.publish([reading(1, state=state(soc=61))])
        seconds = (STALE_AT - station.clock.now()).total_seconds()
        left = seconds
        while left == seconds:  # the broker counts whole seconds
            await asyncio.sleep(0.2)
            async with Witness(broker.port, "evbatteryd/car_1/soc") as late:
                await late.until(lambda w: w.heard)
                left = late.heard[0].properties.MessageExpiryInterval
        assert 0 < left < seconds


async def test_a_value_that_is_old_when_told_is_heard_and_then_gone(broker: Mosquitto) -> None:
    old = state(soc=61, measured_at=NOON - timedelta(days=9))
    async with Witness(broker.port) as witness, Station(broker.port, car(1)) as station:
        await station.publish([reading(1, state=old)])
        await witness.until(lambda w: w.on("evbatteryd/car_1/soc"))
        (whole,) = witness.on("evbatteryd/car_1/state")
        assert whole.json["freshness"] == "stale"
        assert whole.properties.MessageExpiryInterval == 1
        await witness.until(lambda w: w.last("evbatteryd/car_1/availability") == "stale")
        retained = {"evbatteryd/car_1/state"}
        while retained & {"evbatteryd/car_1/state", "evbatteryd/car_1/soc"}:
            await asyncio.sleep(0.2)
            async with Witness(broker.port, "evbatteryd/car_1/+") as late:
                await late.until(lambda w: w.on("evbatteryd/car_1/availability"))
                retained = {message.topic for message in late.heard}


async def test_either_shape_can_be_switched_off(broker: Mosquitto) -> None:
    async with Witness(broker.port) as witness:
        async with Station(broker.port, car(1), scalars=False, base_topic="evbatteryd/a") as station:
            await station.publish([reading(1, state=state(soc=61))])
        async with Station(broker.port, car(1), json_state=False, base_topic="evbatteryd/b") as station:
            await station.publish([reading(1, state=state(soc=61))])
        await witness.until(lambda w: w.last("evbatteryd/b/bridge/state") == "offline")
        topics = {message.topic.removeprefix("evbatteryd/") for message in witness.heard}
        always = ("bridge/state", "bridge/info", "bridge/mark", "car_1/availability", "car_1/polling")
        assert topics == {
            *(f"{base}/{topic}" for base in "ab" for topic in always),
            *("a/car_1/state", "b/car_1/soc", "b/car_1/measured_at", "b/car_1/fetched_at"),
        }


async def test_the_bridge_says_what_it_is_and_how_many_cars_it_has(broker: Mosquitto) -> None:
    cars = [car(1), car(2), car(3, withdrawn_at=NOON)]
    async with Witness(broker.port) as witness, Station(broker.port, *cars) as station:
        await witness.until(lambda w: w.last("evbatteryd/car_2/availability"))
        info = witness.on("evbatteryd/bridge/info")
        assert [(m.json["vehicles"], m.json["started_at"]) for m in info] == [(2, "2026-11-22T12:01:00.000Z")]
        station.told(car(4))
        await witness.until(lambda w: len(w.on("evbatteryd/bridge/info")) == 2)
        station.told(car(1, withdrawn_at=NOON))
        await witness.until(lambda w: len(w.on("evbatteryd/bridge/info")) == 3)
        assert [m.json["vehicles"] for m in witness.on("evbatteryd/bridge/info")] == [2, 3, 2]


# Confirmations, freshness, consent


async def test_a_confirmation_repeats_the_reading_with_its_new_time(broker: Mosquitto) -> None:
    async with Witness(broker.port) as witness, Station(broker.port, car(1)) as station:
        first = reading(1, state=state(soc=61))
        await station.publish([first])
        confirmed = state(soc=61, fetched_at=later(1))
        station.told(car(1, state=confirmed, reading_id="r1"))
        await witness.until(lambda w: len(w.on("evbatteryd/car_1/fetched_at")) == 2)
        told = [message.json for message in witness.on("evbatteryd/car_1/state")]
        assert [one["reading_id"] for one in told] == ["r1", "r1"]
        assert [one["fetched_at"] for one in told] == ["2026-11-22T12:00:30.000Z", "2026-11-22T12:01:00.000Z"]
        assert [one["measured_at"] for one in told] == ["2026-11-22T12:00:00.000Z"] * 2
        assert witness.last("evbatteryd/car_1/fetched_at") == "2026-11-22T12:01:00.000Z"


async def test_a_touch_that_changes_nothing_says_nothing(broker: Mosquitto) -> None:
    async with Witness(broker.port) as witness, Station(broker.port, car(1), car(2)) as station:
        first = reading(1, state=state(soc=61))
        station.fleet.put(at_its_newest(car(1), [first]))
        await station.publish([first])
        await witness.until(lambda w: w.last("evbatteryd/car_1/fetched_at"))
        await witness.until(lambda w: w.last("evbatteryd/car_1/availability") == "fresh")
        heard = len([m for m in witness.heard if m.topic.startswith("evbatteryd/car_1/")])
        for _ in range(5):
            station.sink.touch(VehicleId(1))
        station.told(car(2, trouble=Trouble("unreachable", "network", "no way there", NOON)))
        await witness.until(lambda w: w.last("evbatteryd/car_2/availability") == "offline")
        assert len([m for m in witness.heard if m.topic.startswith("evbatteryd/car_1/")]) == heard


async def test_freshness_that_runs_out_is_told_and_nothing_old_looks_new(broker: Mosquitto) -> None:
    async with Witness(broker.port) as witness, Station(broker.port, car(1)) as station:
        first = reading(1, state=state(soc=61))
        station.fleet.put(at_its_newest(car(1), [first]))
        await station.publish([first])
        await witness.until(lambda w: w.last("evbatteryd/car_1/availability") == "fresh")
        await station.clock.advance(STALE_AT - station.clock.now())
        station.sink.touch(VehicleId(1))
        await witness.until(lambda w: len(w.on("evbatteryd/car_1/state")) == 2)
        told = witness.on("evbatteryd/car_1/state")[-1]
        assert (told.json["freshness"], told.json["reading_id"]) == ("stale", "r1")
        assert told.properties.MessageExpiryInterval == 1
        assert [m.text for m in witness.on("evbatteryd/car_1/availability")] == ["fresh", "stale"]
        station.told(replace(station.fleet[VehicleId(1)], trouble=Trouble("unreachable", "n", "n", NOON)))
        await witness.until(lambda w: w.last("evbatteryd/car_1/availability") == "offline")
        assert len(witness.on("evbatteryd/car_1/soc")) == 1


async def test_a_car_without_consent_is_offline_however_new_its_value_is(broker: Mosquitto) -> None:
    async with Witness(broker.port) as witness, Station(broker.port, car(1)) as station:
        first = reading(1, state=state(soc=61))
        await station.publish([first])
        lost = Trouble("consent_lost", "CONSENT", "withdrawn in the app", NOON)
        station.told(replace(at_its_newest(car(1), [first]), trouble=lost))
        await witness.until(lambda w: len(w.on("evbatteryd/car_1/state")) == 2)
        told = witness.on("evbatteryd/car_1/state")[-1]
        assert (told.json["freshness"], told.properties.MessageExpiryInterval) == ("offline", 1)
        assert witness.last("evbatteryd/car_1/availability") == "offline"


async def test_a_reading_makes_its_car_available(broker: Mosquitto) -> None:
    async with Witness(broker.port) as witness, Station(broker.port, car(1)) as station:
        await witness.until(lambda w: w.last("evbatteryd/car_1/availability") == "stale")
        first = reading(1, state=state(soc=61))
        station.fleet.put(at_its_newest(car(1), [first]))
        await station.publish([first])
        await witness.until(lambda w: w.last("evbatteryd/car_1/availability") == "fresh")


async def test_a_withdrawn_car_is_wiped_and_stays_so(
    broker: Mosquitto, protocol: str, impatient: None
) -> None:
    first = reading(1, state=state(soc=61, charging=True))
    async with (
        Witness(broker.port) as witness,
        Gate(broker.port) as gate,
        Station(gate.port, car(1), protocol=protocol) as station,
    ):
        station.fleet.put(at_its_newest(car(1), [first]))
        await station.publish([first])
        await witness.until(lambda w: w.last("evbatteryd/car_1/soc") == "61")
        gone = car(1, state=first.state, reading_id="r1", withdrawn_at=later(1))
        station.told(gone)
        await witness.until(lambda w: w.last("evbatteryd/car_1/availability") == "")
        await station.publish([reading(2, state=state(soc=60, measured_at=later(1)))])
        station.sink.touch(gone.id)
        station.told(car(2))
        await witness.until(lambda w: w.on("evbatteryd/car_2/availability"))
        for field in ("state", *FIELDS):
            empty = [m for m in witness.on(f"evbatteryd/car_1/{field}") if not m.payload]
            assert len(empty) == 1, field
        assert await kept(broker.port, "evbatteryd/car_1/+") == {}
        gate.shut()
        await station.logged("mqtt.lost")
        gate.open()
        await station.logged("mqtt.connected", times=2)
        await witness.until(lambda w: len(w.on("evbatteryd/car_2/availability")) == 2)
        # Once more, if what was told last may not have arrived.
        assert [message.text for message in witness.on("evbatteryd/car_1/soc")][:2] == ["61", ""]
        assert {message.text for message in witness.on("evbatteryd/car_1/soc")[1:]} == {""}
        told = [message.text for message in witness.on("evbatteryd/car_1/availability")]
        assert "".join(told).endswith("offline")
        assert told.count("offline") == 1
        assert await kept(broker.port, "evbatteryd/car_1/+") == {}


async def test_a_car_whose_owner_consents_again_is_told_again(broker: Mosquitto) -> None:
    first = reading(1, state=state(soc=61))
    async with Witness(broker.port) as witness, Station(broker.port, car(1)) as station:
        await station.publish([first])
        station.told(car(1, state=first.state, reading_id="r1", withdrawn_at=later(1)))
        await witness.until(lambda w: all(w.last(f"evbatteryd/car_1/{leaf}") == "" for leaf in EVERYTHING))
        gone = len(witness.heard)
        station.told(car(1, state=first.state, reading_id="r1"))
        await witness.until(lambda w: w.last("evbatteryd/car_1/soc") == "61")
        again = [m for m in witness.heard[gone:] if m.topic.startswith("evbatteryd/car_1/")]
        assert [m.topic for m in again[:2]] == ["evbatteryd/car_1/availability", "evbatteryd/car_1/state"]
        assert again[0].text == "fresh"
        station.told(car(1, state=first.state, reading_id="r1", withdrawn_at=later(2)))
        await witness.until(lambda w: w.last("evbatteryd/car_1/availability") == "")
        told = [message.text for message in witness.on("evbatteryd/car_1/availability")]
        assert told[-5:] == ["offline", "", "fresh", "offline", ""]
        assert await kept(broker.port, "evbatteryd/car_1/+") == {}


# The two lanes


async def test_a_confirmation_waits_for_the_readings_before_it(broker: Mosquitto, impatient: None) -> None:
    journal = readings_of(1, 20)
    async with (
        Witness(broker.port) as witness,
        Gate(broker.port) as gate,
        Station(gate.port, car(1), car(2)) as station,
    ):
        await witness.until(lambda w: w.on("evbatteryd/car_2/availability"))
        gate.shut()
        await station.connected(False)
        station.owed.add(VehicleId(1))
        station.told(at_its_newest(car(1), journal))
        gate.open()
        # The sweep of the new connection has passed this car once it has reached the one after it.
        await witness.until(lambda w: len(w.on("evbatteryd/car_2/availability")) == 2)
        # Nor is it said to be fresh: what is retained is not what was measured last.
        assert witness.last("evbatteryd/car_1/availability") == "stale"
        assert witness.on("evbatteryd/car_1/state") == []
        delivering = asyncio.create_task(station.publish(journal))
        for _ in range(50):
            station.sink.touch(VehicleId(1))
            await asyncio.sleep(0)
        await delivering
        await witness.until(lambda w: len(ids(w, "car_1")) == 20)
        assert never_went_back(witness, "car_1")


async def test_a_confirmation_never_follows_the_reading_after_it(broker: Mosquitto) -> None:
    """Nor does it come before its own: each reading is confirmed while it is on its way."""
    journal = readings_of(1, 30)
    async with Witness(broker.port) as witness, Station(broker.port, car(1)) as station:
        for one in journal:
            telling = asyncio.create_task(station.publish([one]))
            await asyncio.sleep(0)
            while not telling.done():
                confirmed = state(
                    soc=one.state.soc_percent or 0,
                    measured_at=one.state.measured_at,
                    fetched_at=one.fetched_at + timedelta(microseconds=one.seq),
                )
                station.told(car(1, state=confirmed, reading_id=one.reading_id))
                await asyncio.sleep(0)
            await telling
        await witness.until(lambda w: len(ids(w, "car_1")) == 30)
        assert never_went_back(witness, "car_1")
        assert ids(witness, "car_1") == told_of(car(1), journal)


async def test_a_confirmation_under_way_ends_where_a_reading_begins() -> None:
    """A broker that takes one message at a time is given a reading in the middle of a confirmation."""
    told: list[str] = []
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                kind, body = await packet(reader)
                if kind == 0x10:
                    writer.write(b"\x20\x06\x00\x00\x03\x21\x00\x01")
                elif kind == 0x30:
                    told.append(body[2 : 2 + int.from_bytes(body[:2], "big")].decode())
                    if told.count("evbatteryd/car_1/state") == 2 and not begun.is_set():
                        begun.set()
                        await go_on.wait()
                    writer.write(b"\x40\x02" + packet_id(body))
        writer.close()

    async with server(slow) as port, Station(port, car(1)) as station:
        whole = state(soc=61, range_km=200, capacity_kwh=52, charging=False)
        await station.publish([reading(1, state=whole)])
        again = state(soc=61, range_km=200, capacity_kwh=52, charging=False, fetched_at=later(1))
        station.told(car(1, state=again, reading_id="r1"))
        await asyncio.wait_for(begun.wait(), PATIENCE_S)
        telling = asyncio.create_task(station.publish([reading(2, state=state(soc=60))]))
        await asyncio.sleep(0)
        go_on.set()
        await telling
    assert told.count("evbatteryd/car_1/state") == 3
    assert (
        told.count("evbatteryd/car_1/range_km") == 1
    )  # of the first reading: the confirmation never got there


async def test_after_a_restart_no_state_is_told_before_the_readings_that_wait(broker: Mosquitto) -> None:
    """The process begins with readings 1 to 20 of one car in the journal that this sink never took."""
    journal = readings_of(1, 20)
    cars = [at_its_newest(car(1), journal), car(2, state=state(soc=33), reading_id="r0")]
    station = Station(broker.port, *cars)
    station.owed.add(VehicleId(1))
    async with Witness(broker.port) as witness, station:
        await witness.until(lambda w: w.on("evbatteryd/car_2/state"))  # it waits for nobody else's readings
        assert witness.on("evbatteryd/car_1/availability") == []
        await station.sink.publish(journal[:10])
        station.sink.touch(VehicleId(1))
        station.told(car(3))
        await witness.until(lambda w: w.last("evbatteryd/car_3/polling"))
        assert ids(witness, "car_1") == told_of(cars[0], journal[:10])
        await station.publish(journal[10:])
        await witness.until(lambda w: len(ids(w, "car_1")) == 20)
        assert ids(witness, "car_1") == told_of(cars[0], journal)
        assert never_went_back(witness, "car_1")
        assert ids(witness, "car_2") == ["r0"]


async def test_after_a_restart_every_state_is_told_again(broker: Mosquitto, protocol: str) -> None:
    cars = [car(number, state=state(soc=number), reading_id=f"r{number}") for number in range(1, 301)]
    async with Station(broker.port, *cars, protocol=protocol, scalars=False), Witness(broker.port) as witness:
        for one in cars:
            await witness.until(lambda w, one=one: w.on(f"evbatteryd/{one.slug}/state"))
            told = witness.on(f"evbatteryd/{one.slug}/state")[-1].json
            assert (told["reading_id"], told["replayed"]) == (one.reading_id, True)


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_breaks_nothing_is_lost_and_no_state_goes_back(
    broker: Mosquitto, impatient: None, seed: int
) -> None:
    """Readings, confirmations and breaks in random order: as the journal, the poller and the world do."""
    chance = random.Random(seed)
    cars = [car(number) for number in range(1, 5)]
    journal = interleaved(4, 50)
    async with (
        Witness(broker.port) as witness,
        Gate(broker.port) as gate,
        Station(gate.port, *cars) as station,
    ):
        committed: asyncio.Queue[Reading | None] = asyncio.Queue()

        async def poll() -> None:
            for number, one in enumerate(journal):
                station.commit(one)
                committed.put_nowait(one)
                station.sink.touch(one.vehicle_id)
                if number % 60 == 30:
                    gate.shut()
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(chance.choice([0, 0, 0.002, 0.01]))
                    station.sink.touch(VehicleId(chance.randrange(1, 5)))
                gate.open()
            committed.put_nowait(None)

        async def deliver() -> None:
            while (one := await committed.get()) is not None:
                batch = [one]
                while not committed.empty() and len(batch) < chance.randrange(1, 12):
                    following = committed.get_nowait()
                    if following is None:
                        committed.put_nowait(None)
                        break
                    batch.append(following)
                await station.deliver(batch, commit=False)

        async with asyncio.TaskGroup() as living:
            living.create_task(poll())
            living.create_task(deliver())
        for one in cars:
            await witness.until(lambda w, one=one: len(ids(w, one.slug)) == 50)
            assert ids(witness, one.slug) == told_of(one, journal)
            assert never_went_back(witness, one.slug)
        assert station.events("mqtt.lost")


# The broker comes and goes


@pytest.mark.parametrize("persistent", [False, True], ids=["forgetful", "persistent"])
@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_a_broker_that_was_away_is_told_everything(
    tmp_path: Path, protocol: str, impatient: None, how: str, persistent: bool
) -> None:
    cars = [car(1), car(2, state=state(soc=20), reading_id="r0")]
    journal = readings_of(1, 30)
    before, meanwhile, after = journal[:10], journal[10:20], journal[20:]
    async with (
        Mosquitto(tmp_path / "broker", persistent=persistent) as broker,
        Gate(broker.port) as gate,
        Station(gate.port, *cars, protocol=protocol) as station,
    ):
        async with Witness(broker.port) as witness:
            await station.publish(before)
            await witness.until(lambda w: len(ids(w, "car_1")) == 10)
        await (broker.stop() if how == "stopped" else broker.kill())
        await station.logged("mqtt.lost")
        gate.shut()
        station.told(at_its_newest(cars[0], meanwhile))
        telling = asyncio.create_task(station.deliver(meanwhile))
        await station.clock.advance(timedelta(minutes=2))
        await broker.start()
        async with Witness(broker.port) as witness:
            gate.open()
            await telling
            for one in after:
                await station.publish([replace(one, fetched_at=station.clock.now())])
            await witness.until(
                lambda w: len(ids(w, "car_1")) >= 20 and w.last("evbatteryd/car_1/soc") == "71"
            )
            own = [m.json for m in witness.on("evbatteryd/car_1/state") if not _kept(m, before)]
            assert list(dict.fromkeys(one["reading_id"] for one in own)) == told_of(cars[0], journal[10:])
            assert never_went_back(witness, "car_1")
            replayed = {str(one["reading_id"]): one["replayed"] for one in reversed(own)}
            assert [replayed[one.reading_id] for one in meanwhile] == [True] * 10
            assert [replayed[one.reading_id] for one in after] == [False] * 10
            await witness.until(lambda w: w.last("evbatteryd/bridge/state") == "online")
            await witness.until(lambda w: ids(w, "car_2") == ["r0"])
            await witness.until(lambda w: w.last("evbatteryd/car_2/availability") == "fresh")
            assert witness.last("evbatteryd/car_2/soc") == "20"
        assert [entry["event"] for entry in station.log] == ["mqtt.connected", "mqtt.lost", "mqtt.connected"]


def _kept(message: object, readings: list[Reading]) -> bool:
    """What a persistent broker had kept and told the witness at once."""
    return message.json["reading_id"] in {one.reading_id for one in readings}  # type: ignore[attr-defined]


async def test_a_broker_that_is_not_there_at_the_start_is_waited_for(tmp_path: Path, impatient: None) -> None:
    broker = Mosquitto(tmp_path / "broker")
    async with Station(broker.port, car(1)) as station:
        telling = asyncio.create_task(station.publish([reading(1, state=state(soc=61))]))
        assert (await station.logged("mqtt.unreachable"))["reason"] == "connection refused"
        async with broker:
            await telling
            assert station.sink.connected
            # One line, however often it was tried.
            assert [entry["event"] for entry in station.log] == ["mqtt.unreachable", "mqtt.connected"]
            assert station.tally.up == [True]


async def test_a_break_in_the_middle_raises_and_everything_is_offered_again(
    broker: Mosquitto, impatient: None
) -> None:
    journal = readings_of(1, 100)
    async with (
        Witness(broker.port) as witness,
        Gate(broker.port) as gate,
        Station(gate.port, car(1)) as station,
    ):
        telling = asyncio.create_task(station.publish(journal))
        await witness.until(lambda w: len(ids(w, "car_1")) > 20)
        gate.shut()
        with pytest.raises(SinkError) as broken:
            await telling
        assert len(ids(witness, "car_1")) - 1 <= broken.value.taken <= len(ids(witness, "car_1"))
        gate.open()
        await station.publish(journal[broken.value.taken :])
        await witness.until(lambda w: w.last("evbatteryd/car_1/soc") == "1")
        assert ids(witness, "car_1") == [one.reading_id for one in journal]
        assert never_went_back(witness, "car_1")


async def test_an_outage_makes_no_noise(
    broker: Mosquitto, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither asyncio nor aiomqtt log a word, and no exception is left that nobody retrieved."""
    caplog.set_level(logging.DEBUG)
    async with Station(broker.port, car(1)) as station:
        for outage in range(1, 4):
            delivering = asyncio.create_task(station.deliver(readings_of(1, 100)))
            await station.connected()
            await asyncio.sleep(0.01)
            await broker.kill()
            await station.logged("mqtt.lost", times=outage)
            await broker.start()
            await delivering
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert PASSWORD not in caplog.text


async def test_a_socket_closed_with_something_to_send_is_left_alone(
    broker: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    """Its number may be that of another socket by the time the loop would watch it."""
    offline = Topics("evbatteryd", "homeassistant").offline()
    client = Connection(MqttOptions(host=LOOPBACK, port=broker.port), offline, None)
    await client.enter()
    await client.slot()
    answer = client.send(offline)
    client.drop()
    assert await answer is None
    await asyncio.sleep(0.01)
    assert caplog.records == []


async def test_a_frozen_broker_is_given_up_and_taken_back(
    broker: Mosquitto, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ACK_TIMEOUT_S", 0.1)
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT_S", 0.1)
    async with Station(broker.port, car(1)) as station:
        await station.connected()
        broker.freeze()
        delivering = asyncio.create_task(station.deliver(readings_of(1, 5)))
        lost = await station.logged("mqtt.lost")
        assert lost["reason"] == "the broker acknowledges nothing any more"
        broker.thaw()
        assert await delivering >= 1
        async with Witness(broker.port) as late:
            await late.until(lambda w: w.last("evbatteryd/car_1/soc") == "96")
            await late.until(lambda w: w.last("evbatteryd/bridge/state") == "online")


@pytest.mark.parametrize(
    ("farewell", "reason"),
    [
        (b"\xe0\x01\x8e", "session taken over"),
        (b"\xe0\x01\x8b", "server shutting down"),
        (b"\xe0\x00", "the broker closed the connection"),
        (b"", "the connection broke"),
    ],
)
async def test_why_a_connection_ended_is_said_in_words(farewell: bytes, reason: str) -> None:
    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(3):  # CONNECT, `online` and `info`
            kind, body = await packet(reader)
            writer.write(b"\x20\x03\x00\x00\x00" if kind == 0x10 else b"\x40\x02" + packet_id(body))
        writer.write(farewell)
        await writer.drain()
        writer.close()

    async with server(end) as port, Station(port, car(1)) as station:
        assert (await station.logged("mqtt.lost"))["reason"] == reason
        assert [entry["event"] for entry in station.log] == ["mqtt.connected", "mqtt.lost"]


async def test_a_connection_that_never_holds_is_not_announced_again_and_again(
    impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until one does hold."""
    monkeypatch.setattr(mqtt, "STEADY_S", 0.5)
    attempts = asyncio.Semaphore(0)
    mended = asyncio.Event()

    async def flap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            for number in itertools.count():
                kind, body = await packet(reader)
                writer.write(b"\x20\x03\x00\x00\x00" if kind == 0x10 else b"\x40\x02" + packet_id(body))
                if number == 2 and not mended.is_set():
                    break
        writer.close()
        attempts.release()

    async with server(flap) as port, Station(port, car(1)) as station:
        for _ in range(2 * mqtt.FLAPS):
            await asyncio.wait_for(attempts.acquire(), PATIENCE_S)
        said = [entry["event"] for entry in station.log]
        # That each ended upon the same is taken for the broker's way to refuse that.
        refused = [event for event in said if event.endswith("_refused")]
        assert len(refused) == len(set(refused))
        assert [event for event in said if event not in refused] == [
            *("mqtt.connected", "mqtt.lost") * mqtt.FLAPS
        ]
        mended.set()
        await station.logged("mqtt.connected", times=mqtt.FLAPS + 1)


async def test_that_the_session_is_dropped_is_said_once_however_long_the_broker_is_away(
    impatient: None,
) -> None:
    attempts = asyncio.Semaphore(0)
    numbers = itertools.count(1)

    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        if next(numbers) <= mqtt.POISONED:
            writer.write(b"\x20\x03\x00\x00\x00")
        writer.close()
        attempts.release()

    async with server(end) as port, Station(port, car(1), session_expiry=60) as station:
        for _ in range(mqtt.POISONED + 4):
            await asyncio.wait_for(attempts.acquire(), PATIENCE_S)
        assert len(station.events("mqtt.session_dropped")) == 1


async def test_a_connection_that_ends_in_the_breath_in_which_it_began_makes_no_noise(
    impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = asyncio.Semaphore(0)

    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(b"\x20\x03\x00\x00\x00\xe0\x01\x9f")
        writer.close()
        attempts.release()

    async with server(end) as port, Station(port, car(1)) as station:
        for _ in range(5):
            await asyncio.wait_for(attempts.acquire(), PATIENCE_S)
        (line,) = station.log
        assert (line["event"], line["reason"]) == ("mqtt.lost", "connection rate exceeded")
    gc.collect()
    assert caplog.records == []


async def test_a_subscription_that_is_not_answered_in_time_proves_nothing(
    impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent after it is known to be taken all the same."""
    monkeypatch.setattr(mark, "SUBSCRIBED_WITHIN_S", 0.05)
    monkeypatch.setattr(mark, "MARK_EVERY_S", 0.02)
    subscriptions = 0

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal subscriptions
        with suppress(asyncio.IncompleteReadError):
            while True:
                kind, body = await packet(reader)
                if kind == 0x10:
                    writer.write(b"\x20\x02\x00\x00")
                elif kind == 0x30:
                    writer.write(b"\x40\x02" + packet_id(body))
                elif kind == 0x80:
                    subscriptions += 1
                    if subscriptions > 1:
                        writer.write(b"\x90\x03" + body[:2] + b"\x00")
        writer.close()

    notes = Notes(marks={"mqtt": "m-1"})
    async with server(slow) as port, Station(port, car(1), notes=notes, protocol="3.1.1") as station:
        await station.connected()
        session = station.sink._session
        assert session is not None
        await station.publish([reading(1, state=state(soc=61))])
        await until(lambda: subscriptions == 3 and not session._unanswered)
        assert session.suspects(answers_first=False) == []


async def test_a_statement_that_fails_keeps_no_slot(broker: Mosquitto) -> None:
    def broken() -> Iterator[Message]:
        raise ZeroDivisionError
        yield

    async with Station(broker.port, car(1)) as station:
        await station.connected()
        session = station.sink._session
        assert session is not None
        async with asyncio.timeout(PATIENCE_S):
            for slots in (None, session.journal_slots):
                for _ in range(connection.IN_FLIGHT + 1):
                    with pytest.raises(ZeroDivisionError):
                        await station.sink._courier.tell(session, broken(), slots)
        await station.publish([reading(1, state=state(soc=61))])


# The broker refuses


async def test_a_wrong_password_is_said_once_and_recovered_from(
    tmp_path: Path, protocol: str, impatient: None
) -> None:
    async with (
        Mosquitto(tmp_path / "broker", users={"evbatteryd": "another one"}) as broker,
        Station(broker.port, car(1), protocol=protocol) as station,
    ):
        telling = asyncio.create_task(station.publish([reading(1, state=state(soc=61))]))
        refused = await station.logged("mqtt.refused")
        assert refused["reason"] == "not authorized"
        assert "mqtt.password" in str(refused["mend"])
        await asyncio.sleep(0.3)  # several attempts
        broker.users = {"evbatteryd": PASSWORD}
        await broker.reload()
        await telling
        assert [entry["event"] for entry in station.log] == ["mqtt.refused", "mqtt.connected"]


@pytest.mark.parametrize(
    ("answer", "protocol", "event", "words"),
    [
        (b"\x20\x03\x00\x84\x00", "5", "mqtt.refused", "unsupported protocol version"),
        (b"\x20\x02\x00\x01", "5", "mqtt.refused", "unsupported protocol version"),
        (b"\x20\x03\x00\x86\x00", "5", "mqtt.refused", "bad user name or password"),
        (b"\x20\x03\x00\x8a\x00", "5", "mqtt.refused", "banned"),
        (b"\x20\x02\x00\x04", "3.1.1", "mqtt.refused", "bad user name or password"),
        (b"\x20\x02\x00\x05", "3.1.1", "mqtt.refused", "not authorized"),
        (b"\x20\x02\x00\x01", "3.1.1", "mqtt.unreachable", "does it speak this mqtt.protocol?"),
        (b"", "5", "mqtt.unreachable", "does it speak this mqtt.protocol?"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "5", "mqtt.unreachable", "does it speak this mqtt.protocol?"),
    ],
)
async def test_every_refusal_is_said_in_words_and_once(
    impatient: None, answer: bytes, protocol: str, event: str, words: str
) -> None:
    attempts = asyncio.Semaphore(0)

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()
        attempts.release()

    async with server(refuse) as port, Station(port, car(1), protocol=protocol) as station:
        for _ in range(4):
            await asyncio.wait_for(attempts.acquire(), PATIENCE_S)
        (line,) = station.log
        assert line["event"] == event
        assert words in str(line["reason"])
        assert "mend" in line or event == "mqtt.unreachable"


async def test_a_message_that_the_broker_refuses_is_no_message_taken(
    tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And mosquitto 2.0 ends the connection with it, which is not said again and again."""
    monkeypatch.setattr(mqtt, "STEADY_S", 3.0)
    monkeypatch.setattr(blame, "SHORTEST_S", 0.5)
    monkeypatch.setattr(blame, "LONGEST_S", 0.5)
    monkeypatch.setattr(mqtt, "SHUNNED_TRIED_EVERY_S", 0.1)
    rules = tmp_path / "acl"
    rules.write_text("pattern read #\npattern write evbatteryd/bridge/#\npattern write evbatteryd/car_2/#\n")
    async with (
        Mosquitto(tmp_path / "broker", settings=f"acl_file {rules}") as broker,
        Station(broker.port, car(2)) as station,
    ):
        await station.connected()
        station.fleet.put(car(1))
        telling = asyncio.create_task(station.deliver([reading(1, state=state(soc=61))]))
        refused = await station.logged("mqtt.publish_refused")
        assert str(refused["topic"]).startswith("evbatteryd/car_1/"), refused
        # Its answer may be lost with the connection.
        closes = "the broker closes the connection whenever it is told this"
        assert refused["reason"] in ("not authorized", closes)
        assert "what the broker allows" in str(refused["mend"])
        async with Witness(broker.port) as witness:
            station.told(car(2, trouble=Trouble("unreachable", "network", "no way there", NOON)))
            await witness.until(lambda w: w.last("evbatteryd/car_2/availability") == "offline")
            assert not telling.done()
            rules.write_text("pattern readwrite #\n")
            await broker.reload()
            await telling
            await witness.until(lambda w: w.last("evbatteryd/car_1/soc") == "61")
        await station.logged("mqtt.publish_accepted")
        assert len(station.events("mqtt.publish_refused")) == 1
        lost = len(station.events("mqtt.lost"))
        assert 1 <= lost <= mqtt.FLAPS
        await station.logged("mqtt.connected", times=lost + 1)


async def test_no_more_is_in_flight_than_the_broker_allows() -> None:
    """A broker that announces Receive Maximum 3 and acknowledges nothing until it has seen three."""
    allowed, outstanding, most = 3, 0, 0

    async def acknowledge(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal outstanding, most
        waiting: list[bytes] = []
        while True:
            try:
                kind, body = await packet(reader)
            except asyncio.IncompleteReadError:
                break
            if kind == 0x10:
                writer.write(b"\x20\x06\x00\x00\x03\x21" + allowed.to_bytes(2, "big"))
            elif kind == 0x30:
                waiting.append(packet_id(body))
                most = max(most, len(waiting))
                await asyncio.sleep(0.002)  # more would come now, if more were sent
            if not reader._buffer:  # type: ignore[attr-defined]
                for mid in waiting:
                    writer.write(b"\x40\x02" + mid)
                waiting.clear()
        writer.close()

    async with server(acknowledge) as port, Station(port, car(1)) as station:
        await station.publish(readings_of(1, 30))
    assert most == allowed


# The end


async def test_the_end_is_said(broker: Mosquitto, protocol: str) -> None:
    """What was touched before the end is told, then ``offline``; nothing after."""
    first = reading(1, state=state(soc=61))
    async with Witness(broker.port) as witness:
        async with Station(broker.port, car(1), protocol=protocol) as station:
            await station.publish([first])
            station.told(car(1, state=state(soc=61, fetched_at=later(1)), reading_id="r1"))
        assert not station.sink.connected
        assert station.tally.up == [True, False]
        await witness.until(lambda w: w.last("evbatteryd/bridge/state") == "offline")
        assert witness.heard[-1].topic == "evbatteryd/bridge/state"
        assert witness.last("evbatteryd/car_1/fetched_at") == "2026-11-22T12:01:00.000Z"
        assert witness.last("evbatteryd/car_1/availability") == "fresh"
        assert [m.text for m in witness.on("evbatteryd/bridge/state")] == ["online", "offline"]


async def test_an_end_in_the_middle_of_telling_tells_the_rest(broker: Mosquitto) -> None:
    cars = [car(number, state=state(soc=1), reading_id=f"r{number}") for number in range(1, 401)]
    async with Witness(broker.port, "evbatteryd/#") as witness:
        async with Station(broker.port, *cars) as station:
            await station.connected()
            await asyncio.sleep(0.02)  # some of them are told
        await witness.until(lambda w: w.last("evbatteryd/bridge/state") == "offline")
        assert all(witness.last(f"evbatteryd/{one.slug}/fetched_at") for one in cars)


async def test_an_end_that_the_broker_does_not_answer_takes_no_longer_than_its_grace(
    broker: Mosquitto,
) -> None:
    async with Witness(broker.port) as witness:
        station = Station(broker.port, car(1))
        async with station:
            await station.connected()
            await witness.until(lambda w: w.last("evbatteryd/bridge/state") == "online")
            broker.freeze()
            await station.stop(grace=0.05)
            assert station.events("mqtt.left_abruptly")
        broker.thaw()
        await witness.until(lambda w: w.last("evbatteryd/bridge/state") == "offline")


async def test_an_end_while_connecting_leaves_nothing_behind() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        while await reader.read(1000):
            pass
        broken.set()
        writer.close()

    connected, broken = asyncio.Event(), asyncio.Event()
    async with server(silent) as port:
        async with Station(port, car(1)):
            await connected.wait()
        await asyncio.wait_for(broken.wait(), 10)


async def test_an_end_while_the_way_is_being_opened_leaves_nothing_behind() -> None:
    """The thread that opens a WebSocket goes on when nobody wants it: it must not become a client."""
    asked, answer, rest = asyncio.Event(), asyncio.Event(), asyncio.Event()
    sent = b""

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked.set()
        await answer.wait()
        (key,) = re.findall(r"Sec-WebSocket-Key: (\S+)", request)
        magic = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
        accept = base64.b64encode(magic).decode()
        lines = ["HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", "Upgrade: websocket"]
        writer.write("\r\n".join([*lines, f"Sec-WebSocket-Accept: {accept}", "", ""]).encode())
        sent = await reader.read()
        rest.set()
        writer.close()

    async with server(late) as port:
        async with Station(port, car(1), websocket_path="/mqtt"):
            await asyncio.wait_for(asked.wait(), PATIENCE_S)
        answer.set()
        await asyncio.wait_for(rest.wait(), PATIENCE_S)
    assert sent == b""


async def test_a_killed_process_is_told_by_its_last_will(broker: Mosquitto, protocol: str) -> None:
    script = f"""
import asyncio
from tests.builders import car
from tests.sinks.conftest import Station

async def main():
    async with Station({broker.port}, car(1), protocol={protocol!r}) as station:
        await asyncio.Event().wait()

asyncio.run(main())
"""
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    async with Witness(broker.port) as witness:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, cwd=root, env=environment, stdout=subprocess.DEVNULL
        )
        try:
            await witness.until(lambda w: w.last("evbatteryd/bridge/state") == "online")
        finally:
            with suppress(ProcessLookupError):
                child.send_signal(signal.SIGKILL)
            await child.wait()
        await witness.until(lambda w: w.last("evbatteryd/bridge/state") == "offline")
        assert witness.on("evbatteryd/bridge/state")[-1].retain


# Ways to the broker


async def test_a_websocket_leads_there_too(broker: Mosquitto, protocol: str) -> None:
    async with (
        websocket_front(broker.port, "/mqtt") as (port, _),
        Station(port, car(1), websocket_path="/mqtt", protocol=protocol) as station,
        Witness(broker.port) as witness,
    ):
        await station.publish(readings_of(1, 10))
        await witness.until(lambda w: len(ids(w, "car_1")) == 10)


async def test_a_certificate_that_is_trusted_leads_there(tls_broker: Mosquitto) -> None:
    options = {"tls": True, "ca_file": tls_broker.folder / "ca.pem", "host": "localhost"}
    certificate = {
        "client_certificate": tls_broker.folder / "client.pem",
        "client_key": tls_broker.folder / "client.key",
    }
    async with Station(tls_broker.port, car(1), **options, **certificate) as station:
        await station.publish(readings_of(1, 10))
        assert station.tally.messages >= 10


@pytest.mark.filterwarnings(
    "ignore:unclosed <ssl.SSLSocket:ResourceWarning"
)  # paho, after a failed handshake
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host": "localhost"}, "not trusted"),
        ({"ca_file": "ca.pem", "host": LOOPBACK}, "not trusted: IP address mismatch"),
        ({"ca_file": "missing.pem", "host": "localhost"}, "no such file or directory"),
    ],
)
async def test_a_certificate_that_is_not_trusted_leads_nowhere(
    tls_broker: Mosquitto, impatient: None, options: dict[str, str], words: str
) -> None:
    folder = tls_broker.folder
    files = {key: folder / value for key, value in options.items() if key == "ca_file"}
    async with Station(tls_broker.port, car(1), tls=True, **(options | files)) as station:
        assert words in str((await station.logged("mqtt.unreachable"))["reason"])
        assert not station.sink.connected


def test_pauses_grow_up_to_a_minute_and_differ() -> None:
    for failures in range(1, 30):
        longest = min(0.5 * 2 ** (failures - 1), 60.0)
        pauses = {mqtt._pause(failures) for _ in range(50)}
        assert len(pauses) > 1
        assert all(longest / 2 <= pause <= longest for pause in pauses)


def test_options_do_not_show_the_password() -> None:
    assert "hunter2" not in repr(MqttOptions(host="broker", port=1883, username="me", password="hunter2"))


def test_the_sink_is_known_to_the_journal_as_mqtt() -> None:
    assert MqttSink.name == "mqtt"


@pytest.fixture
async def tls_broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    """Speaks TLS as ``localhost`` and wants a client certificate if it is to be shown one."""
    folder = tmp_path / "tls"
    folder.mkdir()
    _certificates(folder)
    settings = f"cafile {folder}/ca.pem\ncertfile {folder}/localhost.pem\nkeyfile {folder}/localhost.key"
    async with Mosquitto(folder, settings=settings) as broker:
        yield broker


def _certificates(folder: Path) -> None:
    openssl = program("openssl")

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    run("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority")
    for name in ("localhost", "client"):
        request = ("-addext", f"subjectAltName=DNS:{name}", "-subj", f"/CN={name}")
        authority = ("-CA", "ca.pem", "-CAkey", "ca.key")
        run("req", "-x509", *key, *request, *authority, "-keyout", f"{name}.key", "-out", f"{name}.pem")
