"""What Prometheus is told: every value once converted, nothing invented, nothing held up."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from evbatteryd.domain.fleet import Car, Fleet, Trouble
from evbatteryd.domain.reading import BatteryState, ChargeState, Signal, Value
from evbatteryd.sinks.prometheus import CARS_PER_SLICE, Exposition, Metrics
from tests.fakes import START, VirtualClock
from tests.web.builders import HOUR, MINUTE, car, fleet, rising

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]

UNITS = {
    Signal.SOC: ("evbattery_state_of_charge_ratio", 0.01),
    Signal.RANGE: ("evbattery_range_meters", 1e3),
    Signal.CAPACITY: ("evbattery_capacity_joules", 3.6e6),
    Signal.CHARGE_LIMIT: ("evbattery_charge_limit_ratio", 0.01),
    Signal.CHARGE_POWER: ("evbattery_charge_power_watts", 1e3),
    Signal.ODOMETER: ("evbattery_odometer_meters", 1e3),
    Signal.TIME_TO_FULL: ("evbattery_time_to_full_seconds", 1.0),
}


async def scraped(cars: Fleet, metrics: Metrics | None = None, now: timedelta = timedelta()) -> str:
    exposition = Exposition(metrics or Metrics(), cars, VirtualClock(START + now))
    return b"".join([chunk async for chunk in exposition.chunks()]).decode()


def parsed(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series = found.setdefault(sample.name, {})
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in series, "a series is told twice"
            series[labels] = sample.value
    return found


def of(samples: Samples, name: str, slug: str = "car_1") -> float | None:
    return samples.get(name, {}).get((("vehicle", slug),))


def everything() -> dict[Signal, Value]:
    return {
        Signal.SOC: 57.0,
        Signal.RANGE: 214.5,
        Signal.CAPACITY: 52.0,
        Signal.CHARGE_STATE: ChargeState.CHARGING,
        Signal.CHARGING: True,
        Signal.PLUGGED_IN: True,
        Signal.CHARGE_LIMIT: 80.0,
        Signal.CHARGE_POWER: 7.4,
        Signal.TIME_TO_FULL: 5400.0,
        Signal.ODOMETER: 12345.6,
    }


def busy_metrics() -> Metrics:
    """Every metric has a sample."""
    metrics = Metrics()
    metrics.polled("RENAULT", "new", timedelta(seconds=8))
    metrics.lag(timedelta(seconds=3))
    metrics.called("home")
    metrics.webhook("vehicle_state", "new")
    metrics.hint("plugged_in", "taken")
    metrics.rejected("RENAULT", "soc")
    metrics.budget("home", 321)
    metrics.bucket("home", 118.5)
    metrics.outbox("mqtt", 4)
    metrics.connected(True)
    metrics.published(11)
    return metrics


async def test_promtool_has_nothing_to_say() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        if os.environ.get("CI"):
            pytest.fail("CI has to provide promtool")
        pytest.skip("promtool is not installed")
    text = await scraped(fleet(car(values=everything()), car(2, values={})), busy_metrics())
    told = await asyncio.to_thread(
        subprocess.run,
        [promtool, "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


async def test_what_the_daemon_counts_is_told() -> None:
    samples = parsed(await scraped(fleet(), busy_metrics()))
    assert samples["evbatteryd_polls_total"] == {(("make", "RENAULT"), ("outcome", "new")): 1}
    assert samples["evbatteryd_request_duration_seconds_sum"] == {(("make", "RENAULT"),): 8}
    assert samples["evbatteryd_schedule_lag_seconds_sum"] == {(): 3}
    assert samples["evbatteryd_calls_total"] == {(("application", "home"),): 1}
    assert samples["evbatteryd_webhooks_total"] == {(("event", "vehicle_state"), ("outcome", "new")): 1}
    assert samples["evbatteryd_rejected_values_total"] == {(("make", "RENAULT"), ("signal", "soc")): 1}
    assert samples["evbatteryd_hints_total"] == {(("event", "plugged_in"), ("outcome", "taken")): 1}
    assert samples["evbatteryd_calls_budget_remaining"] == {(("application", "home"),): 321}
    assert samples["evbatteryd_bucket_tokens"] == {(("application", "home"),): 118.5}
    assert samples["evbatteryd_outbox_readings"] == {(("sink", "mqtt"),): 4}
    assert samples["evbatteryd_mqtt_connected"] == {(): 1}
    assert samples["evbatteryd_mqtt_messages_published_total"] == {(): 11}
    (build,) = samples["evbatteryd_build_info"]
    assert {label for label, _ in build} == {"version", "python_version"}
    assert samples["process_resident_memory_bytes"][()] > 0


async def test_a_broker_that_went_away_is_told() -> None:
    metrics = busy_metrics()
    metrics.connected(False)
    assert parsed(await scraped(fleet(), metrics))["evbatteryd_mqtt_connected"] == {(): 0}


async def test_a_request_may_take_five_minutes() -> None:
    metrics = Metrics()
    metrics.polled("KIA", "unreachable", timedelta(seconds=299))
    buckets = parsed(await scraped(fleet(), metrics))["evbatteryd_request_duration_seconds_bucket"]
    count = {float(dict(labels)["le"]): value for labels, value in buckets.items()}
    assert count[300.0] == 1
    assert count[180.0] == 0


async def test_the_global_registry_stays_untouched() -> None:
    await scraped(fleet(car()), busy_metrics())
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith("evbattery")]


async def test_when_a_counter_was_created_is_nobodys_business() -> None:
    assert "_created" not in await scraped(fleet(car()), busy_metrics())


async def test_every_value_of_a_car_in_base_units() -> None:
    samples = parsed(await scraped(fleet(car(values=everything(), measured_at=START - MINUTE))))
    assert of(samples, "evbattery_state_of_charge_ratio") == 0.57
    assert of(samples, "evbattery_range_meters") == 214_500
    assert of(samples, "evbattery_capacity_joules") == 187_200_000
    assert of(samples, "evbattery_charging") == 1
    assert of(samples, "evbattery_plugged_in") == 1
    assert of(samples, "evbattery_charge_limit_ratio") == 0.8
    assert of(samples, "evbattery_charge_power_watts") == 7_400
    assert of(samples, "evbattery_odometer_meters") == 12_345_600
    assert of(samples, "evbattery_time_to_full_seconds") == 5400
    assert of(samples, "evbattery_measured_timestamp_seconds") == START.timestamp() - 60
    assert of(samples, "evbattery_fetched_timestamp_seconds") == START.timestamp()
    assert of(samples, "evbattery_next_poll_timestamp_seconds") == START.timestamp() + 3600


finite = st.floats(min_value=0, max_value=1e7)
states = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(UNITS, finite),
        Signal.CHARGING: st.booleans(),
        Signal.PLUGGED_IN: st.booleans(),
        Signal.CHARGE_STATE: st.sampled_from(ChargeState),
    },
)


@settings(deadline=None)
@given(states)
def test_what_was_measured_is_told_and_what_was_not_is_absent(values: dict[Signal, Value]) -> None:
    one = car(values=values)
    samples = parsed(asyncio.run(scraped(fleet(one))))
    for signal, (name, factor) in UNITS.items():
        told = of(samples, name)
        if signal in values:
            assert told == pytest.approx(values[signal] * factor, rel=1e-12, abs=1e-300)
        else:
            assert told is None
    assert of(samples, "evbattery_charging") == one.state.charging
    assert of(samples, "evbattery_plugged_in") == one.state.plugged_in
    assert (of(samples, "evbattery_measured_timestamp_seconds") is None) == (Signal.SOC not in values)


async def test_a_car_of_which_nothing_is_known_has_no_readings() -> None:
    samples = parsed(await scraped(fleet(car(values={}, due=None))))
    told = {name for name in samples if name.startswith("evbattery_")}
    assert told == {"evbattery_fresh", "evbattery_vehicle_info"}
    assert of(samples, "evbattery_fresh") == 0


async def test_a_time_the_oem_does_not_say_is_absent() -> None:
    samples = parsed(await scraped(fleet(car(measured_at=None))))
    assert of(samples, "evbattery_state_of_charge_ratio") == 0.57
    assert of(samples, "evbattery_measured_timestamp_seconds") is None
    assert of(samples, "evbattery_fetched_timestamp_seconds") == START.timestamp()


ESTIMATE = "evbattery_state_of_charge_estimate_ratio"


async def test_the_estimate_is_of_the_moment_of_the_scrape_and_measured_values_stay() -> None:
    values: dict[Signal, Value] = {Signal.SOC: 57.0, Signal.CHARGING: True}
    cars = fleet(car(1, values=values, trend=rising(12.0, to=80.0)), car(2), car(3, trend=rising(0.0)))
    for passed, percent in ((timedelta(), 57.0), (30 * MINUTE, 63.0), (3 * HOUR, 80.0)):
        samples = parsed(await scraped(cars, now=passed))
        assert of(samples, ESTIMATE) == pytest.approx(percent / 100)
        assert of(samples, "evbattery_state_of_charge_ratio") == 0.57
        assert of(samples, ESTIMATE, "car_2") is None
        assert of(samples, ESTIMATE, "car_3") == 0.57
    assert ESTIMATE not in parsed(await scraped(cars, now=4 * HOUR))


async def test_false_is_a_value() -> None:
    samples = parsed(
        await scraped(fleet(car(values={Signal.CHARGING: False, Signal.PLUGGED_IN: False, Signal.SOC: 0.0})))
    )
    assert of(samples, "evbattery_charging") == 0
    assert of(samples, "evbattery_plugged_in") == 0
    assert of(samples, "evbattery_state_of_charge_ratio") == 0


async def test_fresh_is_judged_at_the_scrape() -> None:
    lost = Trouble("consent_lost", "PERMISSION:null", "the consent is gone", START)
    cars = fleet(car(1), car(2, measured_at=START - 200 * HOUR), car(3, trouble=lost))
    samples = parsed(await scraped(cars))
    assert [of(samples, "evbattery_fresh", f"car_{n}") for n in (1, 2, 3)] == [1, 0, 0]
    assert samples["evbatteryd_vehicles"] == {
        (("freshness", "fresh"),): 1,
        (("freshness", "stale"),): 1,
        (("freshness", "offline"),): 1,
    }
    later = parsed(await scraped(cars, now=timedelta(days=30)))
    assert of(later, "evbattery_fresh", "car_1") == 0
    assert later["evbatteryd_vehicles"][(("freshness", "fresh"),)] == 0


async def test_a_withdrawn_car_disappears() -> None:
    text = await scraped(fleet(car(1), car(2, withdrawn_at=START)))
    assert "car_1" in text
    assert "car_2" not in text
    assert sum(parsed(text)["evbatteryd_vehicles"].values()) == 1


def names_of(samples: Samples) -> set[str]:
    """Every car that a sample tells of."""
    return {
        value
        for name, series in samples.items()
        if name.startswith("evbattery_")
        for labels in series
        for label, value in labels
        if label == "vehicle"
    }


async def test_a_renamed_car_is_told_under_its_new_slug_alone() -> None:
    cars = fleet(car(1, values=everything()), car(2))
    before = parsed(await scraped(cars))
    one = cars.by_slug("car_1")
    assert one is not None
    cars.put(replace(one, vehicle=replace(one.vehicle, slug="blue", former_slugs=("car_1",))))
    after = parsed(await scraped(cars))
    assert (names_of(before), names_of(after)) == ({"car_1", "car_2"}, {"blue", "car_2"})
    assert of(after, "evbattery_state_of_charge_ratio", "blue") == 0.57
    assert len(after["evbattery_vehicle_info"]) == 2


def erased(known: Car) -> Car:
    return replace(known, state=BatteryState(), reading_id=None)


async def test_an_erased_car_has_no_value_even_when_its_owner_consents_anew() -> None:
    gone = erased(car(1, values=everything(), withdrawn_at=START))
    assert names_of(parsed(await scraped(fleet(gone)))) == set()
    again = parsed(await scraped(fleet(erased(car(1, values=everything())))))
    told = {name for name in again if name.startswith("evbattery_")}
    assert told == {"evbattery_fresh", "evbattery_next_poll_timestamp_seconds", "evbattery_vehicle_info"}
    assert of(again, "evbattery_fresh") == 0


def pushed(known: Car) -> Car:
    return replace(known, schedule=replace(known.schedule, pushed_at=START))


async def test_cars_that_webhooks_tell_of_are_counted() -> None:
    withdrawn = car(4, withdrawn_at=START)
    cars = fleet(pushed(car(1)), car(2), pushed(car(3)), pushed(withdrawn))
    assert parsed(await scraped(cars))["evbatteryd_vehicles_pushed"] == {(): 2}
    assert parsed(await scraped(fleet(car(1))))["evbatteryd_vehicles_pushed"] == {(): 0}


async def test_readings_carry_the_vehicle_alone() -> None:
    for name, series in parsed(await scraped(fleet(car(values=everything())))).items():
        if name.startswith("evbattery_") and name != "evbattery_vehicle_info":
            assert [[label for label, _ in labels] for labels in series] == [["vehicle"]], name


def info_of(samples: Samples) -> dict[str, str]:
    ((labels, value),) = samples["evbattery_vehicle_info"].items()
    assert value == 1
    return dict(labels)


async def test_a_car_is_named_once() -> None:
    assert info_of(parsed(await scraped(fleet(car(name="Blue car"))))) == {
        "vehicle": "car_1",
        "name": "Blue car",
        "make": "EXAMPLE",
        "model": "One",
        "brand": "example",
    }


async def test_an_unknown_model_is_absent() -> None:
    assert "model" not in info_of(parsed(await scraped(fleet(car(model=None)))))


@settings(deadline=None)
@given(st.text(min_size=1))
def test_any_name_comes_through(name: str) -> None:
    assert info_of(parsed(asyncio.run(scraped(fleet(car(name=name))))))["name"] == name


async def test_nothing_personal_is_told() -> None:
    text = await scraped(fleet(car(7, values=everything())), busy_metrics())
    for secret in ("user-7", "connection-7", "vehicle-7"):
        assert secret not in text


def heads(text: str) -> Iterable[str]:
    return [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")]


async def test_each_family_stands_together() -> None:
    """The text format allows one group per metric, with its HELP and TYPE at its head."""
    text = await scraped(fleet(*(car(n, values=everything()) for n in range(1, 4))), busy_metrics())
    assert len(set(heads(text))) == len(list(heads(text)))
    current = ""
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            current = line.split()[2]
        elif not line.startswith("#"):
            assert line.startswith(current), line


async def test_a_large_fleet_holds_nobody_up() -> None:
    """Between two slices the event loop turns, and no slice has more than its share of cars."""
    number = 4 * CARS_PER_SLICE
    cars = fleet(*(car(n, trend=rising(0.0)) for n in range(1, number + 1)))
    exposition = Exposition(Metrics(), cars, VirtualClock())
    turns = 0
    done = False

    async def others() -> None:
        nonlocal turns
        while not done:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    lines, chunks = 0, 0
    before = turns
    async for chunk in exposition.chunks():
        if b"evbattery_" in chunk:
            assert chunk.count(b"\n") <= CARS_PER_SLICE
            lines += chunk.count(b'{vehicle="')
            chunks += b'{vehicle="' in chunk
    done = True
    await other
    assert lines == number * 7  # SoC, its estimate, measured, fetched, next poll, fresh, info
    assert chunks == 4 * 7
    assert turns - before >= chunks


async def test_all_families_tell_of_one_moment() -> None:
    cars = fleet(*(car(n) for n in range(1, 1_201)))
    told = []
    async for chunk in Exposition(Metrics(), cars, VirtualClock()).chunks():
        told.append(chunk)
        if b"evbattery_state" in chunk:
            cars.put(car(1, values={}, due=None))
        cars.put(car(len(cars) + 1))
    samples = parsed(b"".join(told).decode())
    numbers = {len(series) for name, series in samples.items() if name.startswith("evbattery_")}
    assert len(numbers) == 1
