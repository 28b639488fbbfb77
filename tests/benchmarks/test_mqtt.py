"""The benchmark of the MQTT side computes what it says, from readings that are like the daemon's."""

from __future__ import annotations

import math
from datetime import timedelta
from inspect import signature
from itertools import islice
from pathlib import Path

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from evbatteryd.sinks.mqtt import MqttSink
from evbatteryd.store.sqlite import open_store
from tests.benchmarks import mqtt
from tests.benchmarks.mqtt import Pace, Sample, Waits, minutes_of_a_day, publishes, wait_in
from tests.mosquitto import Heard

CARS, ROUNDS = 3, 4


def heard(leaf: str, expiry: int | None = None) -> Heard:
    properties = Properties(PacketTypes.PUBLISH)
    if expiry is not None:
        properties.MessageExpiryInterval = expiry
    return Heard(f"evbatteryd/renault_1/{leaf}", leaf.encode(), True, properties)


def test_the_sink_that_is_timed_is_called_like_the_daemons() -> None:
    assert signature(mqtt.TimedSink.publish) == signature(MqttSink.publish)


def test_a_pace_is_per_second_of_the_wall_and_of_our_cpu() -> None:
    pace = Pace(count=100, wall_s=4.0, cpu_s=2.0)
    assert (pace.per_second, pace.per_core_second) == (25.0, 50.0)


def test_a_quantile_is_a_wait_within_which_that_share_was_done() -> None:
    waits = Waits([float(number) for number in range(100, 0, -1)])
    assert [waits.quantile(share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]
    assert Waits([7.0]).quantile(0.5) == Waits([7.0]).quantile(0.99) == 7.0
    assert math.isnan(Waits([]).quantile(0.5))


def test_waits_are_told_in_milliseconds_and_beside_others_as_ratios() -> None:
    assert str(Waits([0.001, 0.002, 0.25])) == "p50 2.0 ms, p99 250.0 ms"
    assert Waits([0.004, 0.5]).beside(Waits([0.002, 0.1])) == "2.0 and 5.0"


def test_a_day_of_ten_thousand_cars_is_48_readings_of_each() -> None:
    assert minutes_of_a_day(8_000.0) == pytest.approx(1.0)


def test_the_bare_loop_publishes_what_was_heard_of_one_car_for_all_cars_in_turn() -> None:
    sample = Sample((heard("state", 60), heard("soc")))
    assert list(islice(publishes(sample, 2), 5)) == [
        ("bare/renault_0/state", b"state", True, 60),
        ("bare/renault_0/soc", b"soc", True, None),
        ("bare/renault_1/state", b"state", True, 60),
        ("bare/renault_1/soc", b"soc", True, None),
        ("bare/renault_0/state", b"state", True, 60),
    ]


def test_superseded_messages_are_kept_for_nobody() -> None:
    sample = Sample((heard("state", 60), heard("soc"))).only("state").superseded()
    assert list(islice(publishes(sample, 1), 1)) == [("bare/renault_0/state", b"state", False, None)]


async def test_what_waits_is_owed_and_ends_on_the_state_of_each_car(tmp_path: Path) -> None:
    path = tmp_path / "waiting.db"
    await mqtt._enrol(path, CARS)
    wait_in(path, ROUNDS)
    async with open_store(path) as store:
        cursor = await store.cursor(MqttSink.name)
        owed = await store.owed(MqttSink.name, cursor, 1_000)
        cars = {car.id: car for car in await store.cars()}
        assert len(cars) == CARS
        assert len(owed) == CARS * ROUNDS
        for vehicle_id, car in cars.items():
            told = await store.readings(position for position, whose in owed if whose == vehicle_id)
            assert len(told) == ROUNDS
            assert told[-1].reading_id == car.reading_id
            assert told[-1].state == car.state
            ages = [told[-1].fetched_at - one.fetched_at for one in told]
            assert ages == [timedelta(minutes=minutes) for minutes in (3, 2, 1, 0)]
            assert {len(one.state.signals) for one in told} == {len(car.state.signals)}
