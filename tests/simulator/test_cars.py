"""Cars as functions of time: laws that hold at any instant, with and without commands."""

from __future__ import annotations

from bisect import bisect_right

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evbatteryd.simulator.cars import Car
from evbatteryd.simulator.clouds import CLOUDS
from evbatteryd.simulator.fleet import Fleet
from evbatteryd.simulator.lives import State, load_lives
from evbatteryd.simulator.tracks import FIRST_MONDAY, Track

LIVES = load_lives()
LOOP = LIVES[0].length
instants = st.floats(FIRST_MONDAY - 2 * LOOP, FIRST_MONDAY + 60 * LOOP)
spans = st.floats(0, 3 * LOOP)
numbers = st.integers(0, 11)
keys = st.integers(0, 2**64 - 1)
law = settings(deadline=None)


def car_of(number: int, key: int = 7, shift_s: int = 0) -> Car:
    return Car(key, Track(LIVES[number], shift_s), CLOUDS[0])


def find(car: Car, state: State, since: float = FIRST_MONDAY + 40 * LOOP, at_least_s: float = 600) -> float:
    """An instant in the middle of a run of that state."""
    t = since
    while True:
        run = car.run_at(t)
        if run.state is state and run.end - run.start >= at_least_s:
            return (max(run.start, since) + run.end) / 2
        t = run.end


@law
@given(numbers, keys, instants, spans)
def test_the_odometer_never_falls(number: int, key: int, t: float, span: float):
    car = car_of(number, key)
    assert car.odometer_at(t + span) >= car.odometer_at(t)


@law
@given(numbers, instants)
def test_the_odometer_rises_by_what_was_driven_in_a_loop(number: int, t: float):
    car = car_of(number)
    whole = car.odometer_at(t + LOOP) - car.odometer_at(t)
    assert whole == pytest.approx(car.life.driven_in_all * car.capacity_kwh / car.kwh_per_km)
    run = car.run_at(t)
    if run.state is not State.DRIVING:
        assert car.odometer_at(run.end - 1) == car.odometer_at(run.start)


@law
@given(numbers, keys, instants, st.integers(0, LOOP))
def test_a_snapshot_agrees_with_itself(number: int, key: int, t: float, shift_s: int):
    car = car_of(number, key, shift_s)
    truth = car.snapshot(t)
    assert 0 <= truth.soc_percent <= 100
    run = car.run_at(t)
    assert run.start <= t < run.end
    assert truth.state is run.state
    if truth.state is State.CHARGING:
        assert truth.power_kw > 0
        assert (
            truth.power_kw == pytest.approx(truth.phases * 230 * truth.amperage / 1000) or truth.phases == 0
        )
        assert truth.minutes_left == (run.end - t) / 60
    else:
        assert (truth.power_kw, truth.minutes_left, truth.energy_added_kwh) == (0, 0, 0)
    km_per_kwh = truth.range_km / (truth.soc_percent / 100 * car.capacity_kwh)
    assert 4 < km_per_kwh < 7.5


@law
@given(numbers, instants)
def test_runs_follow_each_other_without_a_gap(number: int, t: float):
    car = car_of(number)
    run = car.run_at(t)
    latter = car.run_at(run.end)
    assert latter.start == run.end
    assert latter.before is run.state


def test_power_times_time_is_the_energy_of_a_charge():
    for number in range(12):
        car = car_of(number)
        charges = [stretch for stretch in car.life.stretches if stretch.state is State.CHARGING]
        for charge in charges[:5]:
            minutes = range(FIRST_MONDAY + charge.start, FIRST_MONDAY + charge.end, 60)
            energy_kwh = sum(car.snapshot(t).power_kw / 60 for t in minutes)
            assert energy_kwh == pytest.approx(
                (charge.soc_end - charge.soc_start) * car.capacity_kwh, rel=0.05
            )


def test_no_seam_of_the_loop_looks_like_hours_of_driving():
    for number in range(12):
        car = car_of(number)
        for loop in (0, 1, 40):
            seam = FIRST_MONDAY + loop * LOOP
            for run in (car.run_at(seam - 1), car.run_at(seam)):
                assert run.state is not State.DRIVING or run.end - run.start < 2 * 3600
            assert car.odometer_at(seam) - car.odometer_at(seam - 60) < 3


def test_stopping_holds_the_battery_until_the_cable_is_pulled():
    car = car_of(0)
    t = find(car, State.CHARGING, at_least_s=7200)
    unplugged = t
    while car.run_at(unplugged).state.plugged_in:
        unplugged = car.run_at(unplugged).end
    soc, odometer_then = car.soc_at(t), car.odometer_at(t + LOOP)
    car.order(t, charge=False)
    assert car.run_at(t).state is State.PLUGGED
    assert car.run_at(t).before is None
    assert car.run_at(t - 1).state is State.CHARGING
    assert car.run_at(t - 1).end == t
    assert car.soc_at(unplugged - 1) == soc
    assert not car.run_at(unplugged).state.plugged_in
    assert car.odometer_at(t + LOOP) == odometer_then


def test_after_a_stop_the_car_charges_again_and_finds_back_to_its_recorded_life():
    car, undisturbed = car_of(0), car_of(0)
    t = find(car, State.CHARGING, at_least_s=7200)
    car.order(t, charge=False)
    week_later = t + 14 * 86400
    assert car.soc_at(t + 86400 / 2) < undisturbed.soc_at(t + 86400 / 2)
    assert car.soc_at(week_later) == undisturbed.soc_at(week_later)
    assert car.run_at(week_later) == undisturbed.run_at(week_later)


def test_where_the_recorded_life_is_found_again_a_run_begins_without_an_event():
    car = car_of(0)
    t = find(car, State.PARKED)
    recorded = car.run_at(t)
    car.order(t, limit=car.life.target)  # changes nothing
    assert car.run_at(t) == recorded._replace(start=t, before=State.PARKED)
    assert car.run_at(t - 1) == recorded._replace(end=t)


def test_starting_charges_to_the_owners_target_whatever_the_timer_says():
    car = car_of(3)  # d08: plugs in in the afternoon, its timer starts at 01:00
    t = find(car, State.PLUGGED, at_least_s=4 * 3600)
    while car.soc_at(t) > car.life.target - 0.2 or car.run_at(car.run_at(t).end).state is not State.CHARGING:
        t = find(car, State.PLUGGED, since=car.run_at(t).end, at_least_s=4 * 3600)
    start = car.run_at(t).start + 60
    car.order(start, charge=True)
    run = car.run_at(start + 60)
    assert run.state is State.CHARGING
    assert car.snapshot(start + 60).minutes_left > 0
    done = start + (car.life.target - car.soc_at(start)) / car.life.charge_rate + 120
    assert car.soc_at(done) == pytest.approx(car.life.target)
    assert car.run_at(done).state is State.PLUGGED
    assert car.snapshot(done).fully_charged


@pytest.mark.parametrize("limit", [0.6, 1.0])
def test_a_limit_holds_for_every_charge_from_then_on(limit: float):
    car = car_of(9)  # d23: charges most days, to 80 %
    t = find(car, State.PARKED)
    assert car.limit_at(t) == 0.8
    car.order(t, limit=limit)
    assert car.limit_at(t) == limit
    assert car.limit_at(t - 1) == 0.8
    reached = []
    for at in range(int(t), int(t) + LOOP, 60):
        run = car.run_at(at)
        if run.state is State.CHARGING:
            assert run.goal == limit
            reached.append(car.soc_at(at))
    assert len(reached) > 600
    assert max(reached) == pytest.approx(limit, abs=0.01)


def test_the_owners_usual_limit_given_again_ends_the_detour():
    car, undisturbed = car_of(9), car_of(9)
    t = find(car, State.PARKED)
    car.order(t, limit=0.6)
    car.order(t + 3 * 86400, limit=0.8)
    later = t + LOOP
    assert car.limit_at(later) == 0.8
    assert car.soc_at(later) == undisturbed.soc_at(later)


@law
@given(
    numbers, st.lists(st.tuples(st.floats(0, 5 * 86400), st.integers(0, 3)), min_size=1, max_size=6), spans
)
def test_whatever_is_ordered_the_past_stays_and_the_future_is_the_same_for_all_who_ask(
    number: int, orders: list[tuple[float, int]], span: float
):
    asked_once, asked_often = car_of(number), car_of(number)
    t = FIRST_MONDAY + 30 * LOOP
    for wait, order in orders:
        t += wait + 1
        for at in (t + 9999, t - 1, t):
            asked_often.soc_at(at)
        before = (asked_often.soc_at(t - 1), asked_often.odometer_at(t + LOOP))
        for car in (asked_once, asked_often):
            match order:
                case 0 | 1:
                    car.order(t, charge=bool(order))
                case _:
                    car.order(t, limit=0.5 + 0.25 * (order - 1))
        assert (asked_often.soc_at(t - 1), asked_often.odometer_at(t + LOOP)) == before
    asked = t + span
    assert asked_once.soc_at(asked) == asked_often.soc_at(asked)
    assert asked_once.snapshot(asked) == asked_often.snapshot(asked)
    assert 0 < asked_once.soc_at(asked) <= 1
    run = asked_once.run_at(asked)
    assert run.start <= asked < run.end


def test_deep_sleep_comes_after_days_of_standing_still_and_ends_with_a_drive():
    gm = next(cloud for cloud in CLOUDS if cloud.make == "GMC")
    car = Car(1, Track(next(life for life in LIVES if life.name == "d12"), 0), gm)
    (long_idle,) = (s for s in car.life.stretches if s.end - s.start > 4 * 86400)
    assert long_idle.state is State.PLUGGED
    started, ended = FIRST_MONDAY + long_idle.start, FIRST_MONDAY + long_idle.end
    assert ended - started > gm.deep_sleep_after_s
    assert not car.deep_asleep_at(started + 86400)
    assert car.deep_asleep_at(ended - 1)
    assert car.asleep_at(started + 86400)
    unplugged = car.run_at(ended)
    assert unplugged.state is State.PARKED
    assert car.deep_asleep_at(ended)
    assert car.run_at(unplugged.end).state is State.DRIVING
    assert not car.deep_asleep_at(unplugged.end)


def test_a_fleet_is_the_same_for_a_seed_and_another_for_another():
    def fleet(seed: int) -> list[tuple[str, str, str | None, str, float]]:
        made = Fleet(CLOUDS, LIVES, seed)
        cars = [made.add() for _ in range(60)]
        return [(v.id, v.user_id, v.connection_id, v.car.model, v.car.soc_at(1.8e9)) for v in cars]

    assert fleet(1) == fleet(1)
    assert not {line[0] for line in fleet(1)} & {line[0] for line in fleet(2)}


def test_every_seventh_vehicle_belongs_to_the_user_of_the_one_before():
    made = Fleet(CLOUDS, LIVES, 0)
    vehicles = [made.add() for _ in range(22)]
    owned = [vehicle.user_id for vehicle in vehicles]
    shared = [number for number in range(1, 22) if owned[number] == owned[number - 1]]
    assert shared == [6, 13, 20]
    assert len(set(owned)) == 19


def test_makes_get_lives_of_a_size_that_they_sell():
    made = Fleet(CLOUDS, LIVES, 0)
    for _ in range(46 * 12):
        vehicle = made.add()
        cloud = vehicle.car.cloud
        if cloud.electric and cloud.hybrid:
            assert vehicle.car.life is LIVES[vehicle.number % 12]
        assert vehicle.car.powertrain == ("PHEV" if vehicle.car.life.is_hybrid else "BEV")
        assert vehicle.car.model


def test_cars_that_share_a_life_do_not_all_do_the_same():
    made = Fleet(CLOUDS, LIVES, 0)
    cars = [made.add().car for _ in range(480)]
    t = FIRST_MONDAY + 40 * LOOP
    together = [car.run_at(t).start for car in cars if car.life.name == "d17"]
    assert len(set(together)) > len(together) / 2


def test_driven_grows_evenly_within_a_row():
    car = car_of(0)
    t = find(car, State.DRIVING, at_least_s=900)
    track = car.track
    row_ends = track.next_row(t)
    row = bisect_right(car.life.at, (t - FIRST_MONDAY) % LOOP) - 1
    begins = row_ends - (car.life.at[row + 1] - car.life.at[row])
    middle = track.driven_at((begins + row_ends) / 2)
    assert middle == pytest.approx((track.driven_at(begins) + track.driven_at(row_ends)) / 2)
