"""Merging is the join of a semilattice; what is derived from a state never contradicts itself."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evbatteryd.domain.reading import BatteryState, ChargeState, Measurement, Origin, Signal, merge

from .facts import HOUR, MINUTE, NOW, measurements, state, told

CHARGE_SIGNALS = (Signal.CHARGING, Signal.CHARGE_STATE, Signal.PLUGGED_IN)
heard = st.lists(measurements(), max_size=12) | st.lists(measurements((Signal.SOC,)), max_size=5)


@given(heard, st.data())
def test_neither_order_nor_repeats_nor_batches_decide(told: list[Measurement], data: st.DataObject) -> None:
    expected = merge(BatteryState(), told)
    repeated = told + data.draw(st.lists(st.sampled_from(told), max_size=6) if told else st.just([]))
    shuffled = data.draw(st.permutations(repeated))
    assert merge(BatteryState(), shuffled) == expected

    cut = data.draw(st.integers(0, len(shuffled)))
    first, _ = merge(BatteryState(), shuffled[:cut])
    assert merge(first, shuffled[cut:])[0] == expected[0]


@given(heard)
def test_hearing_it_again_changes_nothing_and_is_no_news(told: list[Measurement]) -> None:
    once, _ = merge(BatteryState(), told)
    again, news = merge(once, told)
    assert again is once
    assert not news


@given(heard)
def test_the_newest_of_each_signal_stays_and_timed_beats_untimed(told: list[Measurement]) -> None:
    merged, _ = merge(BatteryState(), told)
    assert set(merged.signals) == {measurement.signal for measurement in told}
    for kept in merged:
        rivals = [m for m in told if m.signal is kept.signal]
        assert kept in rivals
        timed = [m for m in rivals if m.measured_at is not None]
        if not timed:
            assert kept.fetched_at == max(m.fetched_at for m in rivals)
            continue
        newest = max(m.measured_at for m in timed)
        assert kept.measured_at == newest
        assert kept.fetched_at == max(m.fetched_at for m in timed if m.measured_at == newest)


@given(heard, heard, st.data())
def test_news_is_a_new_value_or_a_new_time_of_the_car(
    before: list[Measurement], new: list[Measurement], data: st.DataObject
) -> None:
    known, _ = merge(BatteryState(), before)
    merged, news = merge(known, new)

    def fact(at: BatteryState, signal: Signal) -> object:
        found = at.signals.get(signal)
        return None if found is None else (found.value, found.measured_at)

    assert news == {signal for signal in Signal if fact(known, signal) != fact(merged, signal)}
    assert merge(known, data.draw(st.permutations(new)))[1] == news


@given(heard, st.sampled_from(Signal))
def test_what_was_never_told_is_absent(told: list[Measurement], signal: Signal) -> None:
    merged, _ = merge(BatteryState(), [m for m in told if m.signal is not signal])
    assert merged.value(signal) is None
    assert merged.number(signal) is None


def test_of_two_values_measured_at_once_the_later_fetched_one_is_the_correction() -> None:
    first = told(Signal.SOC, 50.0, NOW, NOW + MINUTE)
    corrected = told(Signal.SOC, 51.0, NOW, NOW + 2 * MINUTE)
    merged, news = merge(state(first), [corrected])
    assert merged.soc_percent == 51.0
    assert news == {Signal.SOC}


@pytest.mark.parametrize(
    "other",
    [told(Signal.SOC, 51.0, NOW, NOW), told(Signal.SOC, 50.0, NOW, NOW, Origin.WEBHOOK)],
    ids=["value", "origin"],
)
def test_of_two_that_only_differ_in_what_they_say_the_same_one_always_wins(other: Measurement) -> None:
    one = told(Signal.SOC, 50.0, NOW, NOW)
    assert one.supersedes(other) != other.supersedes(one)
    assert merge(state(one), [other])[0] == merge(state(other), [one])[0]


def test_a_correction_taken_back_in_the_same_answer_is_no_news() -> None:
    first = told(Signal.SOC, 50.0, NOW, NOW)
    detour = [told(Signal.SOC, 51.0, NOW, NOW + MINUTE), told(Signal.SOC, 50.0, NOW, NOW + 2 * MINUTE)]
    assert merge(state(first), detour)[1] == frozenset()


def test_a_confirmation_moves_only_the_time_we_heard_it() -> None:
    known = state(told(Signal.SOC, 50.0, NOW, NOW + MINUTE))
    merged, news = merge(known, [told(Signal.SOC, 50.0, NOW, NOW + HOUR)])
    assert (merged.measured_at, merged.fetched_at) == (NOW, NOW + HOUR)
    assert not news


def test_a_late_webhook_does_not_undo_a_poll() -> None:
    polled = told(Signal.SOC, 60.0, NOW)
    late = told(Signal.SOC, 55.0, NOW - HOUR, NOW + HOUR, Origin.WEBHOOK)
    assert merge(state(polled), [late])[0].soc_percent == 60.0


@pytest.mark.parametrize(
    ("signal", "value", "number"),
    [
        (Signal.SOC, 50, 50.0),
        (Signal.SOC, 0.0, 0.0),
        (Signal.CHARGING, True, None),
        (Signal.PLUGGED_IN, False, None),
        (Signal.CHARGE_STATE, ChargeState.CHARGING, None),
    ],
)
def test_only_numbers_are_numbers(signal: Signal, value: float, number: float | None) -> None:
    assert state(told(signal, value)).number(signal) == number


@given(st.lists(measurements(CHARGE_SIGNALS), max_size=6))
def test_views_of_charging_never_contradict_each_other(told: Sequence[Measurement]) -> None:
    merged, _ = merge(BatteryState(), told)
    assert (merged.charging is None) == (merged.charge_state is None)
    if merged.charging is not None:
        assert merged.charging == (merged.charge_state is ChargeState.CHARGING)
    if merged.charging:
        assert merged.plugged_in is True
    if Signal.PLUGGED_IN not in merged.signals:
        assert merged.plugged_in in {None, True}


EARLIER = NOW - HOUR
YES, NO = (told(Signal.CHARGING, value) for value in (True, False))
YES_EARLIER, NO_EARLIER = (told(Signal.CHARGING, value, EARLIER) for value in (True, False))
FULL, BUSY = (told(Signal.CHARGE_STATE, s) for s in (ChargeState.FULLY_CHARGED, ChargeState.CHARGING))
FULL_EARLIER = told(Signal.CHARGE_STATE, ChargeState.FULLY_CHARGED, EARLIER)
BUSY_EARLIER = told(Signal.CHARGE_STATE, ChargeState.CHARGING, EARLIER)
IN, OUT = (told(Signal.PLUGGED_IN, value) for value in (True, False))
OUT_EARLIER = told(Signal.PLUGGED_IN, False, EARLIER)


@pytest.mark.parametrize(
    ("known", "charging", "charge_state", "plugged_in"),
    [
        ([], None, None, None),
        ([YES], True, ChargeState.CHARGING, True),
        ([NO], False, ChargeState.NOT_CHARGING, None),
        ([FULL], False, ChargeState.FULLY_CHARGED, None),
        ([YES_EARLIER, FULL], False, ChargeState.FULLY_CHARGED, None),
        ([FULL_EARLIER, YES], True, ChargeState.CHARGING, True),
        ([BUSY_EARLIER, NO], False, ChargeState.NOT_CHARGING, None),
        ([FULL_EARLIER, NO], False, ChargeState.FULLY_CHARGED, None),
        ([NO_EARLIER, BUSY], True, ChargeState.CHARGING, True),
        ([IN], None, None, True),
        ([IN, NO], False, ChargeState.NOT_CHARGING, True),
        ([OUT_EARLIER, YES], True, ChargeState.CHARGING, True),
        ([OUT, YES], True, ChargeState.CHARGING, True),
        ([OUT, YES_EARLIER], False, ChargeState.NOT_CHARGING, False),
        ([OUT, BUSY_EARLIER], False, ChargeState.NOT_CHARGING, False),
        ([OUT, FULL_EARLIER], False, ChargeState.FULLY_CHARGED, False),
    ],
)
def test_charging_and_cable_by_what_was_told_last(
    known: list[Measurement],
    charging: bool | None,
    charge_state: ChargeState | None,
    plugged_in: bool | None,
) -> None:
    told = state(*known)
    assert (told.charging, told.charge_state, told.plugged_in) == (charging, charge_state, plugged_in)


@pytest.mark.parametrize("signal", [Signal.CHARGE_POWER, Signal.TIME_TO_FULL])
def test_what_is_of_a_charge_is_known_no_longer_than_the_charge_lasts(signal: Signal) -> None:
    charging = [told(Signal.CHARGING, True, NOW), told(signal, 7.2, NOW)]
    during, _ = merge(BatteryState(), charging)
    assert during.number(signal) == 7.2
    after, _ = merge(during, [told(Signal.CHARGING, False, NOW + MINUTE)])
    assert after.number(signal) is None
    zero, _ = merge(after, [told(signal, 0.0, NOW + MINUTE)])
    assert zero.number(signal) == 0.0
    again, _ = merge(after, [told(Signal.CHARGING, True, NOW + HOUR), told(signal, 3.6, NOW + HOUR)])
    assert again.number(signal) == 3.6
