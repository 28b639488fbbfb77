"""The rules about commands: what a poll has to wait for, and what a reading shows."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evbatteryd.domain.admission import (
    CLOCKS_DIFFER,
    action_verdict,
    automated,
    looks,
    not_shown,
    poll_verdict,
    shown,
    told_to_wait,
)
from evbatteryd.domain.commanding import (
    HIGHEST_LIMIT,
    LOWEST_LIMIT,
    Command,
    CommandKind,
    CommandOutcome,
    command_in,
)
from evbatteryd.domain.errors import RateLimited
from evbatteryd.domain.ledger import Share
from evbatteryd.domain.policy.habits import Habits, Told
from evbatteryd.domain.policy.lore import Lore
from evbatteryd.domain.policy.polling import after_answer
from evbatteryd.domain.profile import CallLimit
from evbatteryd.domain.reading import BatteryState
from tests.builders import NOON, car, profile, state

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
SHARE = Share(
    calls_left=100,
    calls=500,
    began_at=NOON - timedelta(days=21),
    renews_at=NOON + timedelta(days=9),
    application_interval=MINUTE,
)
ON, OFF = Command(CommandKind.CHARGING, True), Command(CommandKind.CHARGING, False)
LIMIT = Command(CommandKind.CHARGE_LIMIT, 80)
NOTHING = BatteryState()


# When a car may be polled


def test_a_rolling_limit_of_the_brand_is_kept_beside_its_floor() -> None:
    """Two calls were made of two an hour: the next one is possible when the first is an hour old."""
    limited = profile(limit=CallLimit(2, HOUR), floor=MINUTE)
    read = car(state=state(soc=50), due=NOON + HOUR)
    lore = Lore(lambda _: 0.0)
    for at in (NOON, NOON + 10 * MINUTE):
        schedule = replace(read.schedule, polled_at=at, outcome="new")
        learned = after_answer(read, read.state, limited, SHARE, lore, at).learned
        read = replace(read, schedule=schedule, learned=learned)
    refused = poll_verdict(read, limited, SHARE, NOON + 30 * MINUTE)
    assert refused is not None
    assert (refused.outcome, refused.reason) == (
        CommandOutcome.NOT_NOW,
        "Acme limits how often it may be asked: possible again at 13:00 UTC",
    )
    assert poll_verdict(read, limited, SHARE, NOON + HOUR + MINUTE) is None


def test_a_car_that_waited_for_the_plan_may_be_asked_once_it_has_calls_again() -> None:
    waits = car(due=NOON + 2 * HOUR)
    waits = replace(waits, schedule=replace(waits.schedule, outcome="budget_spent", polled_at=NOON - HOUR))
    assert poll_verdict(waits, profile(), SHARE, NOON) is None
    refused = poll_verdict(waits, profile(), replace(SHARE, calls_left=0), NOON)
    assert refused is not None
    assert refused.outcome is CommandOutcome.BUDGET_SPENT


def test_a_wait_of_days_says_until_which_day() -> None:
    waits = car(due=NOON + timedelta(days=2))
    waits = replace(waits, schedule=replace(waits.schedule, outcome="plan_refused", reason="refused"))
    refused = poll_verdict(waits, profile(), SHARE, NOON)
    assert refused is not None
    assert refused.reason == "refused: possible again at 2026-11-24 12:00 UTC"


def test_looks_keep_to_latency_and_floor() -> None:
    slow = profile(latency=3 * MINUTE)
    assert looks(car(), slow, NOON) == (NOON + 3 * MINUTE, NOON + 18 * MINUTE)
    asked = car()
    asked = replace(asked, schedule=replace(asked.schedule, polled_at=NOON))
    assert looks(asked, profile(), NOON)[0] == NOON + 5 * MINUTE


# What a reading shows


@pytest.mark.parametrize("told", [{"charging": True}, {"charge_state": "charging"}])
def test_either_signal_of_a_charge_shows_it(told: dict[str, object]) -> None:
    after = state(measured_at=NOON + MINUTE, **told)
    assert shown(ON, after, NOTHING, NOON) == "it is charging now"
    assert shown(OFF, after, NOTHING, NOON) is None


@pytest.mark.parametrize(
    ("measured", "fetched", "shows"),
    [
        (MINUTE, MINUTE, True),
        (timedelta(), MINUTE, True),
        (-CLOCKS_DIFFER, MINUTE, None),
        (-CLOCKS_DIFFER - MINUTE, MINUTE, False),
        (-CLOCKS_DIFFER, -MINUTE, False),
        (None, MINUTE, None),
        (None, -MINUTE, False),
    ],
)
def test_only_what_is_newer_than_the_command_shows_it(
    measured: timedelta | None, fetched: timedelta, shows: bool | None
) -> None:
    """None: if it has changed since."""
    at = None if measured is None else NOON + measured
    told = state(measured_at=at, fetched_at=NOON + fetched, charging=True)
    for charged, changed in ((None, False), (True, False), (False, True)):
        before = NOTHING if charged is None else state(measured_at=NOON - HOUR, charging=charged)
        found = shown(ON, told, before, NOON)
        assert (found is not None) is (changed if shows is None else shows)
        if found is None and shows is None:
            assert "nothing tells whether it was so before" in not_shown(ON, told, NOON)


def test_what_is_known_instead_is_said() -> None:
    assert not_shown(ON, NOTHING, NOON) == "no reading tells of it"
    before = state(measured_at=NOON - HOUR, charging=False)
    assert not_shown(ON, before, NOON) == "nothing newer has come than the reading of 11:00 UTC"
    after = state(measured_at=NOON + MINUTE, charging=False, charge_limit=90.0)
    assert not_shown(ON, after, NOON) == "the reading of 12:01 UTC still says: it is not charging"
    assert not_shown(LIMIT, after, NOON) == "the reading of 12:01 UTC still says: its charge limit is 90 %"


def test_a_cable_tells_nothing_of_a_car_that_tells_nothing_of_charging() -> None:
    plugged = state(measured_at=NOON + MINUTE, plugged_in=True)
    assert shown(OFF, plugged, NOTHING, NOON) is None
    assert not_shown(OFF, plugged, NOON) == "no reading tells of it"


@given(before=st.integers(0, 100), after=st.integers(0, 100))
def test_a_limit_counts_as_set_if_it_is_or_if_the_brand_moved_it_near(before: int, after: int) -> None:
    known = state(measured_at=NOON - HOUR, charge_limit=float(before))
    told = state(measured_at=NOON + MINUTE, charge_limit=float(after))
    near = abs(after - 80) < 5 and after != before
    assert (shown(LIMIT, told, known, NOON) is not None) is (after == 80 or near)


# What is answered at no cost


def verdict(
    command: Command,
    known: BatteryState,
    share: Share = SHARE,
    commanded_at: datetime = NOON - HOUR,
    learned: bytes = b"",
) -> CommandOutcome | None:
    asked = replace(car(state=known, due=NOON + HOUR), learned=learned)
    found = action_verdict(command, asked, profile(), share, NOON, commanded_at=commanded_at)
    return None if found is None else found.outcome


@pytest.mark.parametrize("measured_at", [NOON - 3 * HOUR, None])
def test_what_was_measured_long_ago_or_nobody_knows_when_decides_nothing(
    measured_at: datetime | None,
) -> None:
    """However lately it was told again."""
    known = state(
        measured_at=measured_at,
        fetched_at=NOON - MINUTE,
        soc=1,
        charging=False,
        plugged_in=False,
        charge_limit=80.0,
    )
    assert [verdict(command, known) for command in (ON, OFF, LIMIT)] == [None] * 3


def test_what_was_measured_lately_decides() -> None:
    known = state(
        measured_at=NOON - MINUTE, fetched_at=NOON, charging=False, plugged_in=False, charge_limit=80.0
    )
    confirmed = CommandOutcome.CONFIRMED
    assert [verdict(command, known) for command in (ON, OFF, LIMIT)] == [
        CommandOutcome.NOT_NOW,
        confirmed,
        confirmed,
    ]


@pytest.mark.parametrize(
    ("since", "outcome"), [(2 * MINUTE, CommandOutcome.CONFIRMED), (MINUTE / 2, None), (-MINUTE, None)]
)
def test_nothing_is_so_already_by_what_was_measured_before_another_command(
    since: timedelta, outcome: CommandOutcome | None
) -> None:
    known = state(measured_at=NOON - MINUTE, charging=False)
    assert verdict(OFF, known, commanded_at=NOON - MINUTE - since) is outcome


@pytest.mark.parametrize(
    ("told", "at", "outcome"),
    [
        (Told.PLUGGED, NOON, None),
        (Told.CHARGING, NOON, None),
        (Told.PLUGGED, NOON - HOUR, CommandOutcome.NOT_NOW),
        (Told.UNPLUGGED, NOON, CommandOutcome.NOT_NOW),
    ],
)
def test_a_wall_box_knows_better_whether_the_cable_is_in(
    told: Told, at: datetime, outcome: CommandOutcome | None
) -> None:
    habits = Habits(hinted=at.timestamp(), told=told)
    known = state(measured_at=NOON - MINUTE, plugged_in=False)
    assert verdict(ON, known, learned=habits.pack()) is outcome


@pytest.mark.parametrize(("spent", "outcome"), [(19_850, None), (19_999, CommandOutcome.BUDGET_SPENT)])
def test_of_a_pool_any_car_may_have_what_is_left(spent: int, outcome: CommandOutcome | None) -> None:
    pool = replace(SHARE, calls_left=1, calls=100, cars=200, pool_spent=spent)
    assert verdict(ON, NOTHING, pool) is outcome


@given(calls=st.integers(1, 100_000), days=st.integers(1, 31))
def test_automations_have_about_a_quarter_of_a_plan(calls: int, days: int) -> None:
    share = replace(SHARE, calls=calls, renews_at=SHARE.began_at + timedelta(days=days))
    bucket = automated(share)
    in_a_period = bucket.bucket + bucket.refill_per_minute * days * 24 * 60
    assert calls / 4 <= in_a_period <= 0.28 * calls + 3
    assert bucket.bucket >= 3, "one command and its looks"


def test_a_wait_that_a_command_was_told_never_brings_a_poll_forward() -> None:
    error = RateLimited("RATE_LIMIT:VEHICLE", "too often", retry_after=2 * HOUR)
    for due in (NOON + MINUTE, NOON + 5 * HOUR):
        after = told_to_wait(car(due=due), error, profile(), NOON)
        assert after.schedule.due == max(due, NOON + 2 * HOUR)
        assert poll_verdict(after, profile(), SHARE, NOON) is not None
    assert told_to_wait(car(due=None), error, profile(), NOON) == car(due=None)


# What is understood


@given(st.text(max_size=12))
def test_whatever_is_sent_is_a_command_or_said_to_be_none(text: str) -> None:
    for kind in CommandKind:
        found = command_in(kind, text)
        assert isinstance(found, str) or found.kind is kind
        if isinstance(found, Command) and kind is CommandKind.CHARGE_LIMIT:
            assert LOWEST_LIMIT <= int(found.value or 0) <= HIGHEST_LIMIT
        if isinstance(found, str):
            assert "payload" not in found, "over HTTP there is none"


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (CommandKind.CHARGING, " ON ", True),
        (CommandKind.CHARGING, "false", False),
        (CommandKind.CHARGE_LIMIT, "80.0", 80),
        (CommandKind.CHARGE_LIMIT, "50", 50),
        (CommandKind.CHARGE_LIMIT, "100", 100),
    ],
)
def test_what_automations_write_is_understood(kind: CommandKind, text: str, value: object) -> None:
    assert command_in(kind, text) == Command(kind, value)


@pytest.mark.parametrize(
    "text", ["49", "101", "80.5", "-80", "8e1", "\N{ARABIC-INDIC DIGIT EIGHT}0", "1" * 99, ""]
)
def test_what_is_no_limit_is_none(text: str) -> None:
    assert isinstance(command_in(CommandKind.CHARGE_LIMIT, text), str)
