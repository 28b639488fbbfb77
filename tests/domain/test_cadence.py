"""The rules about waiting: each row of the outcome table by example, what holds for all of them by law."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evbatteryd.domain.cadence import (
    DAY,
    LONGEST_ASLEEP,
    LONGEST_BACK_OFF,
    LONGEST_UNREACHABLE,
    LONGEST_WAIT,
    SILENT_CHARGE,
    Answered,
    Facts,
    Failed,
    NextPoll,
    Outcome,
    activity,
    asked_to_make_sure,
    calmed,
    first_poll,
    next_poll,
    resumed,
    subscribed_now,
    words,
)
from evbatteryd.domain.errors import (
    ApplicationRateLimited,
    ApplicationRefused,
    Asleep,
    BudgetSpent,
    ConsentLost,
    NotCapable,
    NothingYet,
    OwnerMustAct,
    PlanRefused,
    RateLimited,
    SourceError,
    Unreachable,
    Unreadable,
)
from evbatteryd.domain.ledger import Share
from evbatteryd.domain.profile import Activity, BrandProfile, CallLimit, Quirk
from evbatteryd.domain.reading import BatteryState, ChargeState, Signal, merge
from evbatteryd.domain.vehicle import VehicleId

from .facts import (
    ERRORS,
    FINAL,
    GENEROUS,
    HOUR,
    MINUTE,
    NOW,
    PERSONAL,
    PROFILE,
    SECOND,
    errors,
    measurements,
    profiles,
    shares,
    spreads,
    state,
    told,
)

answers = st.frozensets(st.sampled_from(Signal)).map(Answered)
failures = st.builds(Failed, errors(), st.integers(1, 2000))
outcomes: st.SearchStrategy[Outcome] = answers | failures
lasting = st.timedeltas(timedelta(days=-400), timedelta(days=400))
"""How long ago a trouble began, or how far ahead the policy looks: as far as a clock can be wrong."""
facts = st.builds(
    Facts,
    profile=profiles(),
    outcome=outcomes,
    activity=st.sampled_from(Activity),
    share=shares(),
    calls_per_poll=st.integers(1, 4),
    spread=spreads,
    first=st.booleans(),
    pushed_at=st.none() | st.just(NOW - MINUTE),
    since=st.none() | lasting.map(lambda span: NOW - span),
    wanted=st.none() | st.builds(NextPoll, lasting.map(NOW.__add__), st.just("as the policy chose")),
)


def facts_of(
    outcome: Outcome, *, share: Share = GENEROUS, profile: BrandProfile = PROFILE, spread: float = 0.0
) -> Facts:
    return Facts(profile=profile, outcome=outcome, activity=Activity.PARKED, share=share, spread=spread)


def failed(kind: type[SourceError], in_a_row: int = 1, retry_after: timedelta | None = None) -> Failed:
    if issubclass(kind, Unreadable):
        return Failed(kind("UNREADABLE", "no JSON"), in_a_row)
    return Failed(kind("TYPE:CODE", "in words", retry_after=retry_after), in_a_row)


def wait(outcome: Outcome, *, share: Share = GENEROUS, profile: BrandProfile = PROFILE) -> timedelta | None:
    """How long after ``outcome`` the next poll is, and that there is a reason."""
    decision = next_poll(facts_of(outcome, share=share, profile=profile), NOW)
    assert decision.reason
    return None if decision.at is None else decision.at - NOW


# The outcome table of the design, row by row.


@pytest.mark.parametrize("news", [frozenset(), frozenset({Signal.SOC})])
@pytest.mark.parametrize(
    ("doing", "pace"),
    [
        (Activity.DRIVING, 15 * MINUTE),
        (Activity.CHARGING, 20 * MINUTE),
        (Activity.PARKED, 2 * HOUR),
    ],
)
def test_after_a_reading_new_or_not_the_brand_s_interval(
    news: frozenset[Signal], doing: Activity, pace: timedelta
) -> None:
    decision = next_poll(replace(facts_of(Answered(news)), activity=doing), NOW)
    assert decision.at == NOW + pace
    assert decision.reason == f"{doing}; Example every {words(pace)}"


def test_an_unchanged_reading_is_counted_as_such() -> None:
    assert Answered(frozenset()).label == "unchanged"
    assert Answered(frozenset({Signal.ODOMETER})).label == "new"
    assert failed(Asleep).label == "asleep"


def test_429_of_the_vehicle_waits_as_told() -> None:
    assert wait(failed(RateLimited, retry_after=HOUR)) == HOUR
    assert wait(failed(RateLimited, retry_after=SECOND)) == PROFILE.floor
    assert wait(failed(RateLimited, retry_after=timedelta())) == PROFILE.floor


def test_502_of_the_oem_s_rate_limit_backs_off_exponentially() -> None:
    waits = [wait(failed(RateLimited, count)) for count in (1, 2, 3, 4)]
    assert waits == [5 * MINUTE, 10 * MINUTE, 20 * MINUTE, 40 * MINUTE]


def test_429_of_the_application_makes_all_cars_wait_and_not_come_back_together() -> None:
    assert wait(failed(ApplicationRateLimited, retry_after=HOUR)) == HOUR
    assert wait(failed(ApplicationRateLimited)) == PROFILE.floor
    outcome = failed(ApplicationRateLimited, retry_after=HOUR)
    early, late = (next_poll(facts_of(outcome, spread=spread), NOW).at for spread in (0.1, 0.9))
    assert early is not None
    assert late is not None
    assert late - early > 10 * MINUTE


def test_430_waits_for_the_plan_s_period_to_turn() -> None:
    assert wait(failed(BudgetSpent)) == GENEROUS.renews_at - NOW
    over = replace(GENEROUS, renews_at=NOW - HOUR)
    assert wait(failed(BudgetSpent), share=over) == PROFILE.floor


def test_430_of_the_account_is_tried_once_a_day() -> None:
    assert wait(failed(PlanRefused, 30)) == DAY


def test_409_asleep_waits_the_idle_interval_on_the_first_day_however_often() -> None:
    assert {wait(failed(Asleep, count)) for count in (1, 5, 50)} == {PROFILE.idle}
    assert "asleep" in next_poll(facts_of(failed(Asleep)), NOW).reason


def after(kind: type[SourceError], lasted: timedelta, **facts: object) -> NextPoll:
    """What is decided when a trouble has lasted for so long, and the car was asked often meanwhile."""
    return next_poll(replace(facts_of(failed(kind, 50)), since=NOW - lasted, **facts), NOW)


@pytest.mark.parametrize(
    ("slept", "pause"),
    [
        (HOUR, 6 * HOUR),
        (DAY, 6 * HOUR),
        (2 * DAY, 12 * HOUR),
        (9 * DAY, 54 * HOUR),
        (28 * DAY, 7 * DAY),
        (300 * DAY, 7 * DAY),
        (-DAY, 6 * HOUR),
    ],
)
def test_a_car_that_sleeps_on_is_asked_less_and_less(slept: timedelta, pause: timedelta) -> None:
    assert after(Asleep, slept).at == NOW + pause


def test_the_reason_says_for_how_long_a_car_has_slept_and_what_its_brand_is_known_for() -> None:
    assert after(Asleep, 9 * DAY).reason == ("asleep for 9 d; asked less and less until it wakes: in 2 d 6 h")
    deep = replace(PROFILE, quirks=frozenset({Quirk.DEEP_SLEEP}))
    assert after(Asleep, 9 * DAY, profile=deep).reason == (
        "asleep for 9 d (Example stops telling after some days without a trip); "
        "asked less and less until it wakes: in 2 d 6 h"
    )
    assert after(Asleep, HOUR, profile=deep).reason == "asleep; Example every 6 h"


@pytest.mark.parametrize("kind", [Unreachable, Unreadable, SourceError])
@pytest.mark.parametrize(
    ("lasted", "pause"),
    [
        (23 * HOUR, 6 * HOUR),
        (2 * DAY, 6 * HOUR),
        (4 * DAY, 12 * HOUR),
        (16 * DAY, 2 * DAY),
        (300 * DAY, 2 * DAY),
    ],
)
def test_a_car_that_stays_out_of_reach_is_asked_less_and_less(
    kind: type[SourceError], lasted: timedelta, pause: timedelta
) -> None:
    decision = after(kind, lasted)
    assert decision.at == NOW + pause
    assert ("asked less and less until it answers" in decision.reason) is (pause > LONGEST_BACK_OFF)
    if lasted == 4 * DAY:
        assert f"for 4 d; asked less and less until it answers: in {words(pause)}" in decision.reason


@pytest.mark.parametrize("kind", [ApplicationRefused, RateLimited])
def test_a_trouble_that_is_not_the_cars_silence_calms_nothing(kind: type[SourceError]) -> None:
    assert after(kind, 300 * DAY).at == NOW + LONGEST_BACK_OFF


@given(
    profiles(),
    st.sampled_from([Asleep, Unreachable, Unreadable, SourceError]),
    st.integers(1, 100),
    spreads,
    lasting,
    st.timedeltas(timedelta(), timedelta(days=30)),
)
def test_the_longer_a_silence_the_longer_the_wait_up_to_its_cap(
    profile: BrandProfile,
    kind: type[SourceError],
    in_a_row: int,
    spread: float,
    lasted: timedelta,
    more: timedelta,
) -> None:
    def pause(lasted: timedelta) -> timedelta:
        facts = facts_of(failed(kind, in_a_row), profile=replace(profile, limit=None), spread=spread)
        at = next_poll(replace(facts, since=NOW - lasted), NOW).at
        assert at is not None
        return at - NOW

    usual = (
        max(profile.idle, profile.floor) if kind is Asleep else 1.25 * max(LONGEST_BACK_OFF, profile.floor)
    )
    longest = LONGEST_ASLEEP if kind is Asleep else LONGEST_UNREACHABLE
    assert profile.floor <= pause(lasted) <= pause(lasted + more) <= max(usual, longest)


@pytest.mark.parametrize(("kind", "calls"), [(Asleep, 12), (Unreachable, 30)])
def test_three_months_of_silence_cost_hardly_a_call(kind: type[SourceError], calls: int) -> None:
    """Of the third month. Told once in an hour it would be 720 of them."""
    asked, now = list[datetime](), NOW
    while now < NOW + 90 * DAY:
        asked.append(now)
        now = next_poll(replace(facts_of(failed(kind, len(asked))), since=NOW), now).at or now
    assert sum(at >= NOW + 60 * DAY for at in asked) <= calls
    assert len(asked) > calls


def test_only_a_long_silence_of_the_car_is_calmed() -> None:
    assert calmed("asleep", NOW - DAY, NOW)
    assert not calmed("asleep", NOW - DAY + SECOND, NOW)
    assert not calmed("asleep", NOW + DAY, NOW)
    assert not calmed("rate_limited", NOW - 30 * DAY, NOW)


def test_404_is_asked_again_soon_at_first_and_at_the_idle_interval_in_the_long_run() -> None:
    waits = [wait(failed(NothingYet, count)) for count in (1, 2, 3, 4, 50)]
    assert waits == [5 * MINUTE, 20 * MINUTE, 80 * MINUTE, 320 * MINUTE, PROFILE.idle]
    assert "nothing to have of this car yet" in next_poll(facts_of(failed(NothingYet)), NOW).reason


def test_401_of_our_own_token_backs_off() -> None:
    assert wait(failed(ApplicationRefused, 2)) == 10 * MINUTE


def test_403_stops_and_says_what_helps() -> None:
    decision = next_poll(facts_of(failed(ConsentLost)), NOW)
    assert decision.at is None
    assert "consent" in decision.reason


def test_what_only_the_owner_can_mend_is_tried_once_a_day() -> None:
    assert wait(failed(OwnerMustAct, 30)) == DAY


@pytest.mark.parametrize("kind", [Unreachable, Unreadable, SourceError])
def test_5xx_network_timeout_and_nonsense_back_off_with_jitter(kind: type[SourceError]) -> None:
    assert [wait(failed(kind, count)) for count in (1, 2, 3)] == [5 * MINUTE, 10 * MINUTE, 20 * MINUTE]
    assert wait(failed(kind, 1000)) == LONGEST_BACK_OFF
    spread = {next_poll(facts_of(failed(kind, 3), spread=spread), NOW).at for spread in (0.0, 0.3, 0.9)}
    assert len(spread) == 3


def test_501_never_again() -> None:
    assert wait(failed(NotCapable)) is None


# Budgets.


def test_a_scarce_budget_sets_the_pace_and_is_named() -> None:
    share = replace(GENEROUS, calls_left=100)
    decision = next_poll(facts_of(Answered(frozenset()), share=share), NOW)
    assert decision.at == NOW + timedelta(days=20) / 100
    assert decision.reason == (
        "parked; Example every 2 h; but the budget (100 calls left until 2026-08-25 12:00 UTC) "
        "allows one every 4 h 48 min"
    )


def test_a_crowded_application_is_named_rather_than_the_plan() -> None:
    share = replace(GENEROUS, application_interval=5 * HOUR)
    decision = next_poll(facts_of(Answered(frozenset()), share=share), NOW)
    assert decision.at == NOW + 5 * HOUR
    assert "the application's rate limit" in decision.reason
    assert "calls left" not in decision.reason


@pytest.mark.parametrize("calls_left", [0, -3, 1])
def test_without_calls_for_a_whole_poll_it_waits_for_the_next_period(calls_left: int) -> None:
    share = replace(GENEROUS, calls_left=calls_left)
    decision = next_poll(replace(facts_of(Answered(frozenset()), share=share), calls_per_poll=2), NOW)
    assert decision.at == share.renews_at
    assert "used up until 2026-08-25 12:00 UTC" in decision.reason


def test_at_the_turn_of_the_period_cars_come_back_one_after_another() -> None:
    share = replace(GENEROUS, calls_left=0)
    due = [next_poll(facts_of(Answered(frozenset()), share=share, spread=n / 10), NOW).at for n in range(10)]
    assert due == sorted(set(due))


def test_a_failure_is_a_call_too() -> None:
    share = replace(GENEROUS, calls_left=100)
    told_to_wait = failed(RateLimited, retry_after=2 * MINUTE)
    for outcome in (failed(Unreachable), told_to_wait, failed(ApplicationRateLimited), failed(Asleep)):
        at = wait(outcome, share=share)
        assert at is not None
        assert at >= timedelta(days=20) / 100


def test_a_documented_limit_counts_calls_not_polls() -> None:
    limited = replace(PROFILE, limit=CallLimit(20, DAY))
    one = next_poll(replace(facts_of(Answered(frozenset())), profile=limited), NOW)
    two = next_poll(replace(facts_of(Answered(frozenset())), profile=limited, calls_per_poll=2), NOW)
    assert one.at == NOW + 2 * HOUR
    assert two.at == NOW + DAY / 10


# What the policy chose.

WANTED = NextPoll(NOW + 3 * HOUR, "as the policy chose")


def chosen(wanted: NextPoll, **changes: object) -> NextPoll:
    return next_poll(replace(facts_of(Answered(frozenset())), wanted=wanted, **changes), NOW)


def test_what_the_policy_chose_holds() -> None:
    assert chosen(WANTED) == WANTED


@pytest.mark.parametrize("calls_left", [0, 1_000_000])
def test_no_choice_puts_a_car_off_for_longer_than_a_period(calls_left: int) -> None:
    far = replace(WANTED, at=NOW + 400 * DAY)
    share = replace(GENEROUS, calls_left=calls_left)
    assert chosen(far, share=share) == replace(WANTED, at=NOW + LONGEST_WAIT)


@pytest.mark.parametrize(("days", "calls"), [(1, 15), (1, 500), (30, 500)])
def test_calls_are_kept_for_hints_until_a_thirtieth_of_the_period_is_left(days: int, calls: int) -> None:
    def with_left(part: float) -> NextPoll:
        renews = NOW + part * days * DAY
        share = replace(GENEROUS, calls=calls, began_at=renews - days * DAY, renews_at=renews)
        assert share.reserve > 0
        soon = NextPoll(NOW + 10 * MINUTE, "as the policy chose")
        return chosen(soon, share=replace(share, calls_left=share.reserve))

    early, late = with_left(0.5), with_left(1 / 31)
    assert early.at == NOW + 0.5 * days * DAY
    assert "used up, but for hints and commands, until" in early.reason
    assert late == NextPoll(NOW + 10 * MINUTE, "as the policy chose")


# Laws.


@given(facts)
def test_never_before_the_floor_the_budget_or_the_renewal(facts: Facts) -> None:
    decision = next_poll(facts, NOW)
    final = isinstance(facts.outcome, Failed) and isinstance(facts.outcome.error, FINAL)
    assert (decision.at is None) == final
    if decision.at is None:
        return
    assert decision.at >= NOW + facts.profile.floor
    if isinstance(facts.outcome, Answered) and facts.wanted is not None and facts.pushed_at is None:
        if facts.share.calls_left < facts.calls_per_poll:
            assert decision.at >= min(facts.share.renews_at, NOW + LONGEST_WAIT)
        return  # paced by its price
    if facts.profile.limit is not None:
        assert decision.at >= NOW + facts.profile.limit.interval * facts.calls_per_poll
    assert decision.at >= NOW + facts.share.application_interval * facts.calls_per_poll
    if facts.share.calls_left >= facts.calls_per_poll:
        assert decision.at >= NOW + facts.share.interval(facts.calls_per_poll, NOW)
    else:
        assert decision.at >= facts.share.renews_at
    if isinstance(facts.outcome, Failed):
        if facts.outcome.error.retry_after is not None:
            assert decision.at >= NOW + min(facts.outcome.error.retry_after, LONGEST_WAIT)
        if isinstance(facts.outcome.error, BudgetSpent):
            assert decision.at >= facts.share.renews_at


@given(facts)
def test_a_car_is_never_forgotten(facts: Facts) -> None:
    decision = next_poll(facts, NOW)
    if decision.at is None:
        return
    profile, share = facts.profile, facts.share
    slowest = max(profile.driving, profile.charging, profile.parked, profile.idle, profile.floor)
    limit = timedelta() if profile.limit is None else profile.limit.interval * facts.calls_per_poll
    bucket = share.application_interval * facts.calls_per_poll
    longest = max(slowest, limit, bucket, share.renews_at - NOW, LONGEST_WAIT, 1.25 * LONGEST_BACK_OFF)
    assert decision.at <= NOW + max(longest, 1.25 * profile.floor) + 15 * MINUTE


@given(facts)
def test_the_same_facts_lead_to_the_same_decision_with_a_reason_fit_for_print(facts: Facts) -> None:
    decision = next_poll(facts, NOW)
    assert decision == next_poll(facts, NOW)
    assert decision.reason == decision.reason.strip()
    assert decision.reason.isprintable()
    assert len(decision.reason) > 5
    assert PERSONAL not in decision.reason


@given(facts, st.integers(1, 20_000))
def test_fewer_calls_left_never_bring_an_earlier_poll(facts: Facts, fewer: int) -> None:
    more = next_poll(facts, NOW).at
    poorer = replace(facts.share, calls_left=facts.share.calls_left - fewer)
    less = next_poll(replace(facts, share=poorer), NOW).at
    assert (more is None) == (less is None)
    if more is not None and less is not None:
        assert less >= more


@given(
    profiles(),
    st.sampled_from([Unreachable, Unreadable, SourceError, ApplicationRefused, RateLimited]),
    st.integers(1, 100),
    spreads,
)
def test_back_off_grows_up_to_its_cap(
    profile: BrandProfile, kind: type[SourceError], in_a_row: int, spread: float
) -> None:
    def pause(count: int) -> timedelta:
        at = next_poll(facts_of(failed(kind, count), profile=profile, spread=spread), NOW).at
        assert at is not None
        return at - NOW

    limit = timedelta() if profile.limit is None else profile.limit.interval
    assert profile.floor <= pause(in_a_row) <= pause(in_a_row + 1)
    assert pause(in_a_row) <= max(1.25 * LONGEST_BACK_OFF, 1.25 * profile.floor, limit)


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("told", [timedelta.max, timedelta(days=400), timedelta(days=-400)])
def test_an_absurd_wait_neither_loses_the_car_nor_breaks(kind: type[SourceError], told: timedelta) -> None:
    pause = wait(failed(kind, retry_after=told))
    assert pause is None or PROFILE.floor <= pause <= LONGEST_WAIT


# What the car is doing.

BEFORE = NOW - HOUR
PARKED = state(told(Signal.SOC, 60.0, BEFORE), told(Signal.ODOMETER, 1000.0, BEFORE))
AT = NOW - 5 * MINUTE


@pytest.mark.parametrize(
    ("news", "doing"),
    [
        ([], Activity.PARKED),
        ([told(Signal.SOC, 60.0, AT)], Activity.PARKED),
        ([told(Signal.SOC, 61.0, AT)], Activity.PARKED),
        ([told(Signal.SOC, 59.5, AT)], Activity.PARKED),
        ([told(Signal.SOC, 59.0, AT)], Activity.DRIVING),
        ([told(Signal.ODOMETER, 1003.0, AT)], Activity.DRIVING),
        ([told(Signal.ODOMETER, 1003.0, NOW - 31 * MINUTE)], Activity.PARKED),
        # The SoC is fresh, but the kilometres are from long ago: a trip that is over.
        ([told(Signal.SOC, 60.0, AT), told(Signal.ODOMETER, 1003.0, NOW - 40 * MINUTE)], Activity.PARKED),
        # The kilometres are fresh, the SoC is not reported while driving.
        ([told(Signal.SOC, 60.0, NOW - 59 * MINUTE), told(Signal.ODOMETER, 1003.0, AT)], Activity.DRIVING),
        ([told(Signal.ODOMETER, 1003.0, AT), told(Signal.PLUGGED_IN, True, AT)], Activity.PARKED),
        ([told(Signal.ODOMETER, 1003.0, AT), told(Signal.PLUGGED_IN, True, BEFORE)], Activity.DRIVING),
        ([told(Signal.ODOMETER, 1003.0, AT), told(Signal.PLUGGED_IN, False, AT)], Activity.DRIVING),
        ([told(Signal.CHARGING, True, AT)], Activity.CHARGING),
        ([told(Signal.CHARGE_STATE, ChargeState.CHARGING, AT)], Activity.CHARGING),
        ([told(Signal.CHARGING, True, AT), told(Signal.SOC, 58.0, AT)], Activity.CHARGING),
        ([told(Signal.CHARGING, False, AT)], Activity.PARKED),
    ],
)
def test_activity_by_what_changed(news: list, doing: Activity) -> None:
    after, _ = merge(PARKED, news)
    assert activity(PARKED, after, PROFILE, NOW) is doing


def test_a_coarse_soc_has_to_fall_by_a_whole_step() -> None:
    coarse = replace(PROFILE, soc_step_percent=10.0)
    after, _ = merge(PARKED, [told(Signal.SOC, 55.0, AT)])
    assert activity(PARKED, after, coarse, NOW) is Activity.PARKED


def test_a_charge_nobody_hears_of_any_more_does_not_set_the_pace() -> None:
    charging = state(told(Signal.CHARGING, True), told(Signal.SOC, 50.0))
    last = NOW + SILENT_CHARGE
    assert activity(charging, charging, PROFILE, last) is Activity.CHARGING
    assert activity(charging, charging, PROFILE, last + SECOND) is Activity.PARKED
    # Without any time of the car there is nothing to judge its silence by.
    untimed = state(told(Signal.CHARGING, True, None, NOW))
    assert activity(untimed, untimed, PROFILE, last + DAY) is Activity.CHARGING


@given(st.lists(measurements(), max_size=8), st.lists(measurements(), max_size=8), profiles())
def test_activity_knows_an_answer_to_anything(before: list, news: list, profile: BrandProfile) -> None:
    was, _ = merge(BatteryState(), before)
    after, changed = merge(was, news)
    doing = activity(was, after, profile, NOW)
    if not after.charging:
        assert doing is not Activity.CHARGING
    if not changed & {Signal.ODOMETER, Signal.SOC}:
        assert doing is not Activity.DRIVING


# Enrolment and restart.


@given(spreads)
def test_a_new_car_is_asked_within_seconds(spread: float) -> None:
    first = first_poll(spread, NOW)
    assert first.at is not None
    assert NOW <= first.at <= NOW + 5 * SECOND
    assert first.reason


@given(
    st.timedeltas(timedelta(days=-400), timedelta(days=40)),
    profiles(),
    spreads,
    st.lists(st.timedeltas(timedelta(), timedelta(days=2)), max_size=5),
)
def test_a_restart_keeps_future_dues_and_never_polls_in_the_past(
    until_due: timedelta, profile: BrandProfile, spread: float, restarts: list[timedelta]
) -> None:
    due, now, reason = NOW + until_due, NOW, "parked; Example every 2 h"
    for down in [timedelta(), *restarts]:
        now += down
        again = resumed(due, reason, profile, spread, now)
        assert again.at is not None
        if due > now + LONGEST_WAIT + 15 * MINUTE:  # noted by a clock that went wrong
            assert now + LONGEST_WAIT <= again.at <= now + LONGEST_WAIT + 15 * MINUTE
        elif due >= now:
            assert timedelta() <= due - again.at <= 15 * MINUTE
            assert again.at == due or due > now + LONGEST_WAIT
            assert again.reason == reason
        else:
            assert now <= again.at <= now + min(profile.charging, 15 * MINUTE)
            assert again.reason == "parked; Example every 2 h (fell due while evbatteryd was away)"
        due, reason = again.at, again.reason


@pytest.mark.parametrize("away", [10 * SECOND, HOUR, timedelta(days=3)])
def test_a_fleet_that_fell_due_meanwhile_does_not_burst(away: timedelta) -> None:
    cars = 3000
    room = min(away, 15 * MINUTE)
    began = Counter[int]()
    for number in range(cars):
        spread = (VehicleId(number) * 0.6180339887498949) % 1.0
        at = resumed(NOW - away, "parked", PROFILE, spread, NOW).at
        assert at is not None
        began[int((at - NOW) / room * 10)] += 1
    assert max(began.values()) <= 1.1 * cars / 10


@pytest.mark.parametrize(
    ("span", "said"),
    [
        (timedelta(seconds=-5), "0 s"),
        (timedelta(), "0 s"),
        (timedelta(seconds=89.4), "89 s"),
        (timedelta(seconds=90), "2 min"),
        (15 * MINUTE, "15 min"),
        (timedelta(minutes=59, seconds=59), "1 h"),
        (HOUR, "1 h"),
        (150 * MINUTE, "2 h 30 min"),
        (timedelta(hours=47, minutes=59), "47 h 59 min"),
        (timedelta(hours=48), "2 d"),
        (timedelta(days=3, hours=4), "3 d 4 h"),
        (timedelta(days=6, hours=23, minutes=59), "7 d"),
    ],
)
def test_durations_in_words(span: timedelta, said: str) -> None:
    assert words(span) == said


@given(st.timedeltas(timedelta(), timedelta(days=400)))
def test_words_are_never_far_off(span: timedelta) -> None:
    units = {"s": SECOND, "min": MINUTE, "h": HOUR, "d": DAY}
    parts = words(span).split()
    meant = sum((int(n) * units[unit] for n, unit in zip(parts[::2], parts[1::2], strict=True)), timedelta())
    assert abs(meant - span) <= max(span / 3, SECOND)
    assert abs(meant - span) <= 31 * MINUTE


# --- webhooks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("doing", Activity)
def test_where_webhooks_deliver_a_poll_is_only_a_safety_net(doing: Activity) -> None:
    polled = replace(facts_of(Answered(frozenset({Signal.SOC}))), activity=doing)
    pushed = replace(polled, pushed_at=NOW)
    without, with_webhooks = next_poll(polled, NOW), next_poll(pushed, NOW)
    assert without.at is not None
    assert with_webhooks.at is not None
    assert with_webhooks.at - NOW == 2 * (without.at - NOW)
    assert "webhooks deliver" in with_webhooks.reason


@given(facts)
def test_webhooks_never_bring_a_poll_forward(facts: Facts) -> None:
    pushed = next_poll(replace(facts, pushed_at=NOW), NOW).at
    polled = next_poll(replace(facts, pushed_at=None, first=False, wanted=None), NOW).at
    assert (pushed is None) is (polled is None)
    assert pushed is None or polled is None or pushed >= polled


def test_bad_news_of_a_webhook_is_looked_into_at_the_parked_pace() -> None:
    assert asked_to_make_sure(PROFILE, None, "X:Y", NOW).at == NOW
    assert asked_to_make_sure(PROFILE, NOW - MINUTE, "X:Y", NOW).at == NOW - MINUTE + PROFILE.parked
    assert asked_to_make_sure(PROFILE, NOW - DAY, "X:Y", NOW).at == NOW


def test_a_car_subscribed_just_now_is_asked_soon_but_not_under_its_floor() -> None:
    assert subscribed_now(PROFILE, None, NOW).at == NOW + MINUTE
    assert subscribed_now(PROFILE, NOW, NOW).at == NOW + PROFILE.floor
