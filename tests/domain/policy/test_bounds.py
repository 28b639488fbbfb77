"""What a scenario does not show by itself: how long a wall box is listened for, whom a webhook teaches, and
that a rolling limit has room for a whole poll."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from evbatteryd.domain.ledger import Share
from evbatteryd.domain.policy import polling
from evbatteryd.domain.policy.habits import Habits, Told
from evbatteryd.domain.policy.learning import Look, learn
from evbatteryd.domain.policy.lore import BrandLore, Lore
from evbatteryd.domain.profile import CallLimit
from tests import builders

DAY = 86400.0
NOW = builders.NOON.timestamp()


def test_a_wall_box_is_listened_for_a_week_and_for_what_it_tells() -> None:
    habits = Habits(hinted=NOW, told=Told.PLUGGED, tells=1 << Told.PLUGGED)
    assert habits.hears(Told.PLUGGED, NOW + 6.9 * DAY)
    assert not habits.hears(Told.PLUGGED, NOW + 7.1 * DAY)
    assert not habits.hears(Told.UNPLUGGED, NOW + DAY)
    habits.trust = 0.3
    assert not habits.hears(Told.PLUGGED, NOW + DAY)


def test_a_webhook_says_nothing_of_the_rhythm_of_uploads() -> None:
    def gaps(polled: bool) -> list[float]:
        habits, brand, lore = Habits(), BrandLore(), Lore(lambda _: 0.0)
        for minutes in (0, 10, 20):
            at = NOW + 60.0 * minutes
            look = Look(at + 30, at, 50.0 + minutes / 10, at, at + 30, True, True, polled=polled)
            learn(habits, brand, lore, look, steps=False)
        return brand.gaps

    assert gaps(polled=True) == [600.0, 600.0]
    assert gaps(polled=False) == []


def test_a_rolling_limit_has_room_for_all_pages_of_a_poll() -> None:
    profile = builders.profile(limit=CallLimit(10, timedelta(hours=24)))
    state = builders.state(soc=50, charging=True, plugged_in=True)
    car = builders.car()
    car = replace(car, schedule=replace(car.schedule, calls_per_poll=3))
    share = Share(
        calls_left=90_000,
        calls=100_000,
        began_at=builders.NOON - timedelta(days=5),
        renews_at=builders.NOON + timedelta(days=25),
        application_interval=timedelta(seconds=1),
    )
    now, lore, asked = builders.NOON, Lore(lambda _: 0.0), []
    for _ in range(6):
        now += timedelta(minutes=1)
        asked.append(now)
        state = builders.state(
            soc=50, charging=True, plugged_in=True, measured_at=now - timedelta(seconds=20), fetched_at=now
        )
        found = polling.after_answer(car, state, profile, share, lore, now)
        car = replace(car, learned=found.learned, state=state)
        assert found.wanted is not None
        assert found.wanted.at is not None
        now = found.wanted.at
    for first, fourth in zip(asked, asked[3:], strict=False):
        assert fourth - first > timedelta(hours=24), "twelve calls in a day that allows ten"
