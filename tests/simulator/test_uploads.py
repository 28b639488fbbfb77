"""What reached the cloud: the laws of uploads, for every make."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evbatteryd.simulator.cars import Car
from evbatteryd.simulator.clouds import CLOUDS, Event, clouds_named, events_between
from evbatteryd.simulator.lives import State, load_lives
from evbatteryd.simulator.signals import shown_soc, signals_of
from evbatteryd.simulator.tracks import FIRST_MONDAY, Track
from evbatteryd.simulator.uploads import Upload, newest_upload, uploads_of

LIVES = load_lives()
NOW = FIRST_MONDAY + 40 * LIVES[0].length
clouds = st.sampled_from(CLOUDS)
lives = st.sampled_from(LIVES)
keys = st.integers(0, 2**64 - 1)
law = settings(deadline=None)
offsets = st.floats(0, 28 * 86400)


def car_of(make: str, life: int = 0, key: int = 5) -> Car:
    (cloud,) = clouds_named([make])
    return Car(key, Track(LIVES[life], 0), cloud)


def everything_uploaded(car: Car, since: float, until: float) -> list[Upload]:
    """Eagerly: every upload of every run, whether or not it had arrived or was ever the newest."""
    uploads, t = [], until
    while t > since:
        run = car.run_at(t)
        uploads.extend(uploads_of(car, run, until))
        t = run.start - 1
    return uploads


@law
@given(clouds, lives, keys, offsets)
def test_the_newest_upload_is_never_from_the_future(cloud, life, key, offset):
    car, now = Car(key, Track(life, 0), cloud), NOW + offset
    upload = newest_upload(car, now)
    assert upload is not None
    assert upload.measured_at < upload.available_at <= now


@settings(deadline=None, max_examples=50)
@given(clouds, lives, keys, offsets)
def test_the_lazy_newest_upload_is_the_newest_of_all(cloud, life, key, offset):
    car, now = Car(key, Track(life, 0), cloud), NOW + offset
    arrived = [one for one in everything_uploaded(car, now - 9 * 86400, now) if one.available_at <= now]
    newest = max(arrived, key=lambda one: one.measured_at)
    assert newest_upload(car, now).measured_at == newest.measured_at
    former = max((one.measured_at for one in arrived if one.measured_at < newest.measured_at), default=None)
    if former is not None:
        assert newest_upload(car, now, before=newest.measured_at).measured_at == former


@law
@given(clouds, lives, keys, offsets, st.floats(0, 3 * 86400))
def test_time_brings_newer_uploads_never_older_ones(cloud, life, key, offset, span):
    car, now = Car(key, Track(life, 0), cloud), NOW + offset
    assert newest_upload(car, now + span).measured_at >= newest_upload(car, now).measured_at


@law
@given(clouds, lives, keys, st.lists(offsets, min_size=2, max_size=8))
def test_uploads_depend_neither_on_the_order_of_questions_nor_on_who_asks(cloud, life, key, asked):
    one, other = (Car(key, Track(life, 0), cloud) for _ in range(2))
    forth = {at: newest_upload(one, NOW + at) for at in asked}
    back = {at: newest_upload(other, NOW + at) for at in reversed(asked)}
    assert forth == back


@law
@given(clouds, lives, keys, offsets, st.sampled_from([True, False]))
def test_a_command_changes_no_upload_of_the_past(cloud, life, key, offset, charge):
    car, now = Car(key, Track(life, 0), cloud), NOW + offset
    before = [newest_upload(car, now - ago) for ago in (0, 60, 3600, 86400)]
    states = [car.snapshot(upload.measured_at) for upload in before]
    car.order(now + 1, charge=charge)
    assert [newest_upload(car, now - ago) for ago in (0, 60, 3600, 86400)] == before
    assert [car.snapshot(upload.measured_at) for upload in before] == states


@law
@given(clouds, st.floats(0, 100))
def test_the_shown_state_of_charge_is_in_the_makes_steps(cloud, percent):
    shown = shown_soc(cloud, percent)
    assert shown / cloud.soc_step_percent == pytest.approx(round(shown / cloud.soc_step_percent))
    assert abs(shown - percent) <= cloud.soc_step_percent
    if cloud.soc_floor:
        assert shown <= percent + 1e-4
    assert 0 <= shown <= 100


def test_a_command_is_told_to_the_cloud_soon_after():
    car = car_of("SEAT")  # which otherwise uploads in batches, and nothing while parked
    t = next(
        NOW + s.start + 3600 for s in LIVES[0].stretches if s.state is State.PARKED and s.end - s.start > 9999
    )
    assert newest_upload(car, t + 1800).measured_at < t
    for key in range(20):  # a quarter of its uploads are lost
        car = car_of("SEAT", key=key)
        car.order(t, limit=0.6)
        if newest_upload(car, t + 1800).measured_at >= t:
            break
    upload = newest_upload(car, t + 1800)
    assert upload.measured_at - t < 30
    limits = next(s for s in signals_of(car, t + 1800, "") if s["id"] == "charge-chargelimits")
    assert limits["attributes"]["body"]["activeLimit"] == 60


def cadence_s(make: str, state: State, life: int) -> float:
    """Median seconds between uploads that were measured in that state."""
    car = car_of(make, life)
    uploads = sorted(one.measured_at for one in everything_uploaded(car, NOW, NOW + 28 * 86400))
    return median(
        latter - former
        for former, latter in pairwise(uploads)
        if car.run_at(former) == car.run_at(latter) and car.run_at(former).state is state
    )


@pytest.mark.parametrize("make", ["TESLA", "VOLKSWAGEN", "BMW", "VOLVO", "BYD", "CHEVROLET", "TOYOTA"])
def test_a_charging_car_uploads_at_its_makes_pace(make):
    (cloud,) = clouds_named([make])
    assert cadence_s(make, State.CHARGING, 4) == pytest.approx(cloud.charging_s, rel=0.1)


def test_the_first_upload_of_a_charge_comes_one_interval_after_its_start():
    car = car_of("TESLA", 4)
    charges = [s for s in LIVES[4].stretches if s.state is State.CHARGING and s.end - s.start > 3600]
    for charge in charges:
        run = car.run_at(NOW + charge.start)
        after_s = sorted(one.measured_at - run.start for one in uploads_of(car, run, run.end - 1))
        at_the_event, *at_intervals = after_s
        assert 1 <= at_the_event <= 20
        for number, at in enumerate(at_intervals, start=1):
            assert abs(at - number * car.cloud.charging_s) <= car.cloud.jitter_s + 1


def test_a_late_upload_of_an_earlier_run_can_still_be_the_newest():
    (kia,) = clouds_named(["KIA"])
    slow = replace(kia, event_lag_s=(2.0, 1800.0))
    overtaken = 0
    for key in range(40):
        car = Car(key, Track(LIVES[5], 0), slow)
        for stretch in LIVES[5].stretches[:60]:
            now = NOW + stretch.start + 1900
            arrived = [one for one in everything_uploaded(car, now - 86400, now) if one.available_at <= now]
            newest = max(one.measured_at for one in arrived)
            assert newest_upload(car, now).measured_at == newest
            own = next(uploads_of(car, car.run_at(newest), now), None)
            overtaken += own is None or own.measured_at != newest
    assert overtaken > 100


def test_a_batched_make_keeps_to_a_fixed_clock_and_sends_once_more_after_the_state_has_ended():
    car = car_of("CUPRA", 4)
    uploads = everything_uploaded(car, NOW, NOW + 7 * 86400)
    assert len({round(one.measured_at % 900 / 20) % 45 for one in uploads}) <= 2
    after = [one for one in uploads if car.run_at(one.measured_at).state in (State.PARKED, State.PLUGGED)]
    assert after
    for one in after:
        assert car.run_at(one.measured_at - 1000).state in (State.DRIVING, State.CHARGING) or any(
            car.run_at(one.measured_at - ago).state is not car.run_at(one.measured_at).state
            for ago in range(0, 1000, 60)
        )


def test_kia_uploads_while_charging_at_each_tenth_of_the_battery():
    car = car_of("KIA", 0)
    for stretch in car.life.stretches:
        if stretch.state is State.CHARGING and stretch.soc_end - stretch.soc_start > 0.35:
            break
    run = car.run_at(NOW + stretch.start + 60)
    levels = [car.soc_at(one.measured_at) for one in uploads_of(car, run, run.end - 1)]
    crossed = [soc for soc in levels if soc > run.soc_start + 0.05]
    assert len(crossed) >= 3
    for soc in crossed:
        assert soc * 10 == pytest.approx(round(soc * 10), abs=0.05)


def test_an_event_is_uploaded_by_makes_that_tell_of_it_alone():
    parked = next(
        stretch
        for stretch in LIVES[0].stretches
        if (stretch.before, stretch.state) == (State.DRIVING, State.PARKED)
        and stretch.end - stretch.start > 9000
    )
    run = car_of("FORD").run_at(NOW + parked.start)
    assert len(list(uploads_of(car_of("FORD"), run, run.end))) == 1
    assert list(uploads_of(car_of("SEAT"), run, run.end)) == []


@pytest.mark.parametrize(
    ("before", "after", "events"),
    [
        (State.PARKED, State.DRIVING, Event.DRIVE_START),
        (State.DRIVING, State.PARKED, Event.DRIVE_END),
        (State.DRIVING, State.PLUGGED, Event.DRIVE_END | Event.PLUG_IN),
        (State.PLUGGED, State.CHARGING, Event.CHARGE_START),
        (State.CHARGING, State.PLUGGED, Event.CHARGE_END),
        (State.CHARGING, State.DRIVING, Event.CHARGE_END | Event.UNPLUG | Event.DRIVE_START),
        (State.PLUGGED, State.PLUGGED, Event(0)),
    ],
)
def test_what_happens_between_two_states(before, after, events):
    assert events_between(before, after) == events


def test_losses_are_as_frequent_as_said():
    (cloud,) = clouds_named(["SEAT"])
    car = car_of("SEAT", 4)
    uploads = everything_uploaded(car, NOW, NOW + 28 * 86400)
    ticks = sum(
        (stretch.end - stretch.start) / 900 + 1
        for stretch in LIVES[4].stretches
        if stretch.state in (State.DRIVING, State.CHARGING)
    )
    assert len(uploads) / ticks == pytest.approx(1 - cloud.loss, abs=0.1)
