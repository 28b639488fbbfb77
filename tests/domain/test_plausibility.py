"""What cannot be is kept out with its reason; what is merely odd, and everything beside it, stays."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evbatteryd.domain.plausibility import CLOCK_SKEW, EARLIEST, LIMITS, MEMORY, TOGETHER, plausible
from evbatteryd.domain.reading import (
    BatteryState,
    ChargeState,
    Measurement,
    Observation,
    Signal,
    Value,
    merge,
)

from .facts import HOUR, MINUTE, NOW, measurements, observed, state, told

NOTHING = BatteryState()


def rejected(*measurements: Measurement, known: BatteryState = NOTHING, now: datetime = NOW) -> set[Signal]:
    """The signals not believed, each with its reason; that all others stay is checked by the way."""
    checked = plausible(observed(*measurements), known, now)
    assert all(one.reason and one.raw for one in checked.rejected)
    gone = {one.signal for one in checked.rejected}
    assert [m for m in measurements if m.signal not in gone] == list(checked.measurements)
    return gone


# Limits and sentinels.


@pytest.mark.parametrize(
    ("signal", "value"),
    [
        (Signal.SOC, 255.0),
        (Signal.SOC, 100.5),
        (Signal.SOC, -1.0),
        (Signal.RANGE, 65535.0),
        (Signal.RANGE, 6553.5),
        (Signal.RANGE, 655.35),
        (Signal.RANGE, 1501.0),
        (Signal.RANGE, -1.0),
        (Signal.CAPACITY, 0.0),
        (Signal.CAPACITY, -77.0),
        (Signal.CAPACITY, 77_000.0),
        (Signal.CHARGE_LIMIT, 0.0),
        (Signal.CHARGE_LIMIT, 255.0),
        (Signal.CHARGE_POWER, 11_000.0),
        (Signal.CHARGE_POWER, 655.35),
        (Signal.CHARGE_POWER, -255.0),
        (Signal.TIME_TO_FULL, 65535.0),
        (Signal.TIME_TO_FULL, 65535.0 * 60),
        (Signal.TIME_TO_FULL, -60.0),
        (Signal.ODOMETER, -1.0),
        (Signal.ODOMETER, 2.0**32 - 1),
        (Signal.SOC, True),
        (Signal.RANGE, ChargeState.CHARGING),
    ],
)
def test_values_that_cannot_be(signal: Signal, value: Value) -> None:
    beside = told(Signal.PLUGGED_IN, True)
    assert rejected(told(signal, value), beside) == {signal}


@pytest.mark.parametrize("signal", sorted(LIMITS))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none(signal: Signal, value: float) -> None:
    assert rejected(told(signal, value)) == {signal}


@pytest.mark.parametrize(
    ("signal", "value"),
    [
        (Signal.SOC, 0.0),
        (Signal.SOC, 100),
        (Signal.RANGE, 0.0),
        (Signal.RANGE, 255.0),
        (Signal.CAPACITY, 5.5),  # Citroën Ami
        (Signal.CAPACITY, 246.8),  # GMC Hummer EV
        (Signal.CHARGE_LIMIT, 50.0),
        (Signal.CHARGE_LIMIT, 100.0),
        (Signal.CHARGE_POWER, 0.0),
        (Signal.CHARGE_POWER, 255.0),
        (Signal.CHARGE_POWER, 1000.0),
        (Signal.CHARGE_POWER, -11.0),
        (Signal.TIME_TO_FULL, 0.0),
        (Signal.TIME_TO_FULL, 255.0 * 60),
        (Signal.ODOMETER, 0.0),
        (Signal.ODOMETER, 65535.0),
        (Signal.CHARGING, False),
        (Signal.CHARGE_STATE, ChargeState.FULLY_CHARGED),
    ],
)
def test_values_that_can_be(signal: Signal, value: Value) -> None:
    observation = observed(told(signal, value))
    assert plausible(observation, NOTHING, NOW) is observation


def test_the_reason_tells_a_sentinel_from_a_mere_excess() -> None:
    sentinel, excess = plausible(
        observed(told(Signal.SOC, 255.0), told(Signal.CHARGE_LIMIT, 101.0)), NOTHING, NOW
    ).rejected
    assert "not measured" in sentinel.reason
    assert (sentinel.raw, sentinel.measured_at, sentinel.fetched_at) == ("255.0", NOW, NOW + MINUTE)
    assert "not measured" not in excess.reason


def test_what_came_raw_is_kept_short() -> None:
    (only,) = plausible(observed(told(Signal.RANGE, 10**60)), NOTHING, NOW).rejected
    assert len(only.raw) <= 40
    assert only.raw.startswith("1000")


# Range against SoC and capacity.


def car(soc: float, distance: float, capacity: float | None, at: datetime = NOW) -> list[Measurement]:
    known = [told(Signal.SOC, soc, at), told(Signal.RANGE, distance, at)]
    return known if capacity is None else [*known, told(Signal.CAPACITY, capacity, None)]


@pytest.mark.parametrize(
    ("what", "soc", "distance", "capacity"),
    [
        ("Microlino in summer", 100, 230, 14),
        ("Twizy at its best", 100, 100, 6.1),
        ("Hummer with a trailer in winter", 80, 130, 212),
        ("Hummer, half full, EPA range", 50, 265, 212),
        ("VW ID.4", 78, 331, 77),
        ("a van that is almost empty", 21, 3, 68),
        ("plug-in hybrid that keeps its reserve", 18, 0, 12),
        ("too empty to tell", 9, 350, 77),
        ("no capacity known", 80, 1400, None),
    ],
)
def test_ranges_that_can_be(what: str, soc: float, distance: float, capacity: float | None) -> None:
    assert rejected(*car(soc, distance, capacity)) == set(), what


@pytest.mark.parametrize(
    ("what", "soc", "distance", "capacity"),
    [
        ("metres by ten", 50, 1400, 60),
        ("full range of a big car in a small one", 10, 500, 20),
        ("zero for unknown", 80, 0, 77),
        ("a tenth", 90, 25, 77),
    ],
)
def test_ranges_out_of_proportion_leave_the_soc_alone(
    what: str, soc: float, distance: float, capacity: float
) -> None:
    assert rejected(*car(soc, distance, capacity)) == {Signal.RANGE}, what


def test_the_capacity_may_have_been_told_before_and_the_soc_too() -> None:
    known = state(told(Signal.CAPACITY, 77.0, None), told(Signal.SOC, 80.0))
    assert rejected(told(Signal.RANGE, 0.0), known=known) == {Signal.RANGE}


def test_an_soc_of_another_moment_says_nothing_about_a_range() -> None:
    capacity, soc = told(Signal.CAPACITY, 77.0), told(Signal.SOC, 80.0, NOW)
    early = told(Signal.RANGE, 20.0, NOW - TOGETHER - MINUTE)
    assert rejected(capacity, soc, early) == set()
    assert rejected(capacity, soc, replace(early, measured_at=NOW - TOGETHER)) == {Signal.RANGE}


def test_an_soc_that_cannot_be_does_not_judge_the_range() -> None:
    assert rejected(*car(255, 300, 77)) == {Signal.SOC}
    assert rejected(*car(80, 300, 0)) == {Signal.CAPACITY}


def test_the_newest_of_two_capacities_in_one_answer_counts() -> None:
    older, newer = told(Signal.CAPACITY, 7.0, NOW - HOUR), told(Signal.CAPACITY, 77.0, NOW)
    assert rejected(*car(80, 320, None), older, newer) == set()
    assert rejected(*car(80, 320, None), newer, older) == set()


# Miles sold as kilometres.

KNOWN = state(*car(80, 320, 77, NOW - 2 * HOUR))


@pytest.mark.parametrize(
    ("soc", "distance", "believed"),
    [
        (80, 320, True),
        (80, 320 / 1.609, False),
        (80, 320 * 1.609, False),
        (70, 280 / 1.609, False),
        (79, 196, False),
        (60, 240, True),
        (80, 320 / 1.70, True),
        (80, 320 / 1.52, True),
        (80, 250, True),  # the heating was switched on
        (19, 76 / 1.609, True),  # too empty to tell
    ],
)
def test_a_jump_by_a_mile_is_a_change_of_unit(soc: float, distance: float, believed: bool) -> None:
    assert rejected(*car(soc, distance, None), known=KNOWN) == (set() if believed else {Signal.RANGE})


def test_a_known_pair_that_is_almost_empty_does_not_testify() -> None:
    known = state(*car(15, 60, None, NOW - 2 * HOUR))
    assert rejected(*car(80, 320 / 1.609, None), known=known) == set()


def polls(known: BatteryState, wrong: float, right: float, hours: int) -> list[float]:
    """The range believed after each of the hourly polls of a parked car at 80 %: first wrong, then right."""
    seen = []
    for hour in range(-1, hours):
        at = NOW + hour * HOUR
        answer = observed(*car(80, wrong if hour < 0 else right, 77, at))
        known, _ = merge(known, plausible(answer, known, at).measurements)
        assert known.soc_percent == 80
        assert known.measured_at == at
        seen.append(known.number(Signal.RANGE))
    return seen


def test_the_unit_stays_rejected_while_the_soc_is_believed_on() -> None:
    believed = polls(NOTHING, 320.0, 320 / 1.609, 40)
    assert set(believed) == {320.0}


def test_a_wrong_first_value_heals() -> None:
    believed = polls(NOTHING, 320 / 1.609, 320.0, 60)
    healed = int(MEMORY / HOUR) + 1
    assert set(believed[:healed]) == {320 / 1.609}
    assert set(believed[healed:]) == {320.0}


def test_a_parked_car_confirmed_until_yesterday_still_testifies() -> None:
    friday = NOW - timedelta(days=3)
    confirmed = state(*(replace(m, fetched_at=NOW - HOUR) for m in car(80, 320, None, friday)))
    assert rejected(*car(80, 199, None), known=confirmed) == {Signal.RANGE}
    forgotten = state(*(replace(m, fetched_at=NOW - MEMORY - HOUR) for m in car(80, 320, None, friday)))
    assert rejected(*car(80, 199, None), known=forgotten) == set()


def test_a_late_answer_from_before_is_left_to_the_merge() -> None:
    late = [replace(m, fetched_at=NOW) for m in car(80, 320 / 1.609, None, NOW - 3 * HOUR)]
    assert rejected(*late, known=KNOWN) == set()
    assert merge(KNOWN, late)[0] == KNOWN


# The odometer.


@pytest.mark.parametrize(
    ("km", "measured_at", "believed"),
    [
        (1000.0, NOW, True),
        (1500.0, NOW, True),
        (999.2, NOW, True),
        (999.0, NOW, False),
        (621.4, NOW, False),
        (621.4, NOW - 3 * HOUR, True),  # older than what is known: the merge drops it
        (621.4, None, True),  # likewise
    ],
)
def test_an_odometer_does_not_go_back(km: float, measured_at: datetime | None, believed: bool) -> None:
    known = state(told(Signal.ODOMETER, 1000.0, NOW - 2 * HOUR))
    answer = told(Signal.ODOMETER, km, measured_at)
    assert rejected(answer, known=known) == (set() if believed else {Signal.ODOMETER})
    if believed and km < 999:
        assert merge(known, [answer])[0] == known


def test_a_wrong_first_odometer_heals() -> None:
    known = state(told(Signal.ODOMETER, 2_900_000.0, NOW - MEMORY))
    right = told(Signal.ODOMETER, 20_000.0, NOW)
    assert rejected(right, known=known) == {Signal.ODOMETER}
    later = told(Signal.ODOMETER, 20_000.0, NOW + HOUR)
    assert rejected(later, known=known, now=NOW + HOUR) == set()


def test_a_jump_of_the_soc_is_odd_and_believed() -> None:
    known = state(told(Signal.SOC, 90.0, NOW - HOUR))
    assert rejected(told(Signal.SOC, 20.0), known=known) == set()
    assert rejected(told(Signal.SOC, 100.0), known=state(told(Signal.SOC, 10.0, NOW - HOUR))) == set()


# Clocks.


def test_a_time_in_the_future_is_unknown_its_value_stays_and_the_owner_can_see_why() -> None:
    ahead = told(Signal.SOC, 55.0, NOW + 3 * HOUR, NOW)
    checked = plausible(observed(ahead), NOTHING, NOW)
    assert checked.measurements == (replace(ahead, measured_at=None),)
    (note,) = checked.rejected
    assert note.raw == "2026-08-05T15:00:00+00:00"
    assert note.measured_at is None
    assert "clock" in note.reason


def test_a_little_ahead_is_believed() -> None:
    observation = observed(told(Signal.SOC, 55.0, NOW + CLOCK_SKEW, NOW))
    assert plausible(observation, NOTHING, NOW) is observation


@pytest.mark.parametrize("never", [datetime(1970, 1, 1, tzinfo=UTC), EARLIEST - MINUTE])
def test_a_time_before_there_were_connected_cars_is_no_time(never: datetime) -> None:
    unset = told(Signal.CHARGING, True, never, NOW)
    checked = plausible(observed(unset), NOTHING, NOW)
    assert checked.measurements == (replace(unset, measured_at=None),)
    assert checked.rejected == ()


def test_a_wrong_clock_never_overwrites_what_has_a_time() -> None:
    known = state(told(Signal.SOC, 60.0, NOW - HOUR))
    checked = plausible(observed(told(Signal.SOC, 10.0, NOW + HOUR, NOW)), known, NOW)
    assert merge(known, checked.measurements)[0] == known


# Laws.

numbers = st.floats() | st.sampled_from([-1.0, 255.0, 65535.0, 0.0, 50.0, 199.0, 320.0]) | st.integers()
any_time = st.none() | st.datetimes(timezones=st.just(UTC)) | st.timedeltas(-3 * HOUR, HOUR).map(NOW.__add__)


@st.composite
def anything(draw: st.DrawFn) -> Measurement:
    signal = draw(st.sampled_from(Signal))
    value: st.SearchStrategy[Value] = numbers | st.booleans() | st.sampled_from(ChargeState)
    return Measurement(signal, draw(value), draw(any_time), NOW)


believed_before = st.lists(measurements(), max_size=8).map(lambda told: merge(NOTHING, told)[0])


def without_limits(measured: Iterable[Measurement]) -> list[tuple[Signal, Value]]:
    return [(m.signal, m.value) for m in measured if m.signal not in LIMITS]


@given(st.lists(anything(), max_size=12), believed_before)
def test_nothing_is_lost_nothing_invented_and_twice_is_once(
    given: list[Measurement], known: BatteryState
) -> None:
    observation = observed(*given)
    checked = plausible(observation, known, NOW)

    def count(measured: list[Measurement]) -> Mapping[tuple[Signal, str], int]:
        return Counter((m.signal, str(m.value)) for m in measured)

    kept = count(list(checked.measurements))
    assert all(kept[fact] <= here for fact, here in count(given).items())
    dropped = len(given) - len(checked.measurements)
    notes = sum("clock" in note.reason for note in checked.rejected)
    assert len(checked.rejected) == dropped + notes
    assert without_limits(checked.measurements) == without_limits(given)
    assert plausible(checked, known, NOW) is checked


@given(st.lists(anything(), max_size=12), believed_before)
def test_what_is_believed_can_be(given: list[Measurement], known: BatteryState) -> None:
    for kept in plausible(observed(*given), known, NOW).measurements:
        assert kept.measured_at is None or EARLIEST <= kept.measured_at <= NOW + CLOCK_SKEW
        if kept.signal in LIMITS:
            assert not isinstance(kept.value, bool | str)
            assert LIMITS[kept.signal].least <= kept.value <= LIMITS[kept.signal].most


@given(numbers, st.floats(0, 100), believed_before)
def test_no_range_takes_the_soc_along(distance: float, soc: float, known: BatteryState) -> None:
    observation = observed(told(Signal.SOC, soc), told(Signal.RANGE, distance))
    assert told(Signal.SOC, soc) in plausible(observation, known, NOW).measurements


@given(st.lists(anything(), max_size=8), believed_before, st.data())
def test_the_order_within_an_answer_does_not_matter(
    given: list[Measurement], known: BatteryState, data: st.DataObject
) -> None:
    def outcome(told: list[Measurement]) -> tuple[list[str], list[str]]:
        checked = plausible(observed(*told), known, NOW)
        return sorted(map(repr, checked.measurements)), sorted(map(repr, checked.rejected))

    assert outcome(given) == outcome(data.draw(st.permutations(given)))


def test_what_the_source_rejected_itself_stays_rejected() -> None:
    (before,) = plausible(observed(told(Signal.SOC, 255.0)), NOTHING, NOW).rejected
    answer = Observation(fetched_at=NOW, measurements=(told(Signal.RANGE, -1.0),), rejected=(before,))
    assert [one.signal for one in plausible(answer, NOTHING, NOW).rejected] == [Signal.SOC, Signal.RANGE]
