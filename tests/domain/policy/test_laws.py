"""What holds whatever happens: looks that contradict each other, clocks that jump, plans of any size."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evbatteryd.domain.cadence import Answered, next_poll
from evbatteryd.domain.fleet import facts_of
from evbatteryd.domain.ledger import Budget
from evbatteryd.domain.policy import charge, looking, polling
from evbatteryd.domain.policy.habits import Habits
from evbatteryd.domain.policy.outlook import Hint
from evbatteryd.domain.profile import Quirk
from evbatteryd.domain.reading import Signal
from tests import builders

from .anything import Step, Tale, Told, budgets, steps, tales
from .lives import START, Cloud, Desk, People, desk_of

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
GRAIN = timedelta(minutes=40)
"""Two of the longest steps in which the policy looks for a moment: laws about time hold to that."""


def longest(tale: Tale, told: Told, reason: str) -> timedelta:
    """The longest wait that is documented for this plan, and for a car that is silent."""
    days = (told.share.renews_at - told.share.began_at) / DAY
    ordinary = max(looking.LONGEST_WAIT, looking.LONGEST_IN_INTERVALS * days * 86400 / told.share.calls)
    silent = looking.LONGEST_SILENT_WAIT if "first sign of life" in reason else 0.0
    return timedelta(seconds=1.01 * max(ordinary, silent)) + MINUTE


def in_words(reason: str) -> bool:
    odd = {"nan", "inf", "-inf", "None"}
    return reason.isprintable() and len(reason.split()) > 2 and not odd & set(reason.split())


# --------------------------------------------------------------------------------------------------- polls
@settings(max_examples=120)
@given(tales(), steps)
def test_a_poll_comes_neither_before_the_floor_nor_without_calls_for_it(
    tale: Tale, story: list[Step]
) -> None:
    for told in tale.tell(story):
        if told.decision is not None and told.decision.wanted is not None:
            assert told.decision.wanted.at is not None
            assert told.decision.wanted.at >= told.now + tale.profile.floor - timedelta(microseconds=1)
        if told.then is not None and told.then.at is not None:
            assert told.then.at >= told.now + tale.profile.floor
            if told.share.calls_left < 1:
                assert told.then.at >= told.share.renews_at


@settings(max_examples=80)
@given(tales(), steps)
def test_every_decision_says_why_and_what_for(tale: Tale, story: list[Step]) -> None:
    for told in tale.tell(story):
        if told.decision is not None:
            assert (told.decision.wanted is None) == (told.after.state.soc_percent is None)
            assert math.isfinite(told.decision.gain)
            assert told.decision.gain >= 0.0
        if told.then is not None:
            assert in_words(told.then.reason)
        if told.hinted is not None:
            assert in_words(told.hinted.reason)
            assert math.isfinite(told.hinted.gain)
            assert told.hinted.gain >= 0.0


def _dice_steps(dice: random.Random) -> Iterator[Step]:
    """Looks at a car of which anything is seen, minutes to days apart."""
    while True:
        yield Step(
            gap=timedelta(seconds=dice.choice([dice.randint(60, 7200), dice.randint(3600, 200_000)])),
            what=dice.choice(["poll"] * 5 + ["push", "hint", "fail"]),
            soc=dice.choice([None] + [float(dice.randint(0, 100))] * 6),
            charging=dice.choice([True, False, None]),
            plugged=dice.choice([True, False, None]),
            limit=dice.choice([None, None, 80.0]),
            age=dice.choice(
                [timedelta(seconds=dice.randint(0, 3000)), timedelta(seconds=dice.randint(0, 90_000)), None]
            ),
            hint=dice.choice(list(Hint)),
        )


@pytest.mark.parametrize("stepwise", [False, True], ids=["at times", "at steps"])
def test_no_wait_is_longer_than_the_longest_that_is_documented(stepwise: bool) -> None:
    dice = random.Random(1)
    quirks = frozenset({Quirk.SOC_STEPS}) if stepwise else frozenset()
    brand = builders.profile(soc_step_percent=10.0 if stepwise else 1.0, quirks=quirks)
    for calls in [16, 100, 500, 1000] * 60:
        tale = Tale(brand, Budget(calls_per_vehicle=calls))
        for _, step in zip(range(15), _dice_steps(dice), strict=False):
            told = tale.happen(step)
            if told.decision is not None and told.decision.wanted is not None:
                assert told.decision.wanted.at is not None
                reason = told.decision.wanted.reason
                assert told.decision.wanted.at - told.now <= longest(tale, told, reason), reason


@settings(max_examples=40)
@given(tales(), steps)
def test_the_same_facts_lead_to_the_same_decision_and_the_same_bytes(tale: Tale, story: list[Step]) -> None:
    again = copy.deepcopy(tale)
    for one, other in zip(tale.tell(story), again.tell(story), strict=True):
        assert (one.decision, one.hinted, one.then) == (other.decision, other.hinted, other.then)
        assert one.after.learned == other.after.learned
    assert tale.lore.document() == again.lore.document()


@settings(max_examples=40)
@given(tales(), steps)
def test_a_restart_between_any_two_events_changes_no_decision(tale: Tale, story: list[Step]) -> None:
    again = copy.deepcopy(tale)
    for step in story:
        told = tale.happen(step)
        document = copy.deepcopy(again.lore.document())
        assert again.lore.take(document)
        after = again.happen(step)
        assert after.then == told.then
        assert after.after.learned == told.after.learned


@settings(max_examples=60)
@given(tales(), steps)
def test_what_is_kept_stays_small_and_can_be_read(tale: Tale, story: list[Step]) -> None:
    for told in tale.tell(story):
        assert len(told.after.learned) <= 2048
        if told.after.learned:
            assert Habits.unpack(told.after.learned).pack() == told.after.learned


def test_without_a_state_of_charge_the_policy_stands_aside() -> None:
    tale = Tale(builders.profile(), Budget())
    told = tale.happen(Step(MINUTE, "poll", None, True, True, age=MINUTE))
    assert told.decision is not None
    assert told.decision.wanted is None
    assert told.decision.trend is None
    assert told.then is not None
    assert "Acme every" in told.then.reason


# ------------------------------------------------------------------------------------- budgets and prices
def ordinary(brand: dict[str, object] | None = None, calls: int = 500, seed: int = 7) -> Desk:
    """A car that has been asked for two months."""
    life = People(random.Random(seed), timer=None if seed % 2 else 23.0).live(80)
    profile = builders.profile(**(brand or {}))
    stepwise = profile.soc_step_percent if Quirk.SOC_STEPS in profile.quirks else 0.0
    desk = desk_of(Cloud(life, steps=stepwise), Budget(calls_per_vehicle=calls), profile)
    desk.run(timedelta(days=50))
    return desk


STEPWISE: dict[str, object] = {"quirks": frozenset({Quirk.SOC_STEPS}), "soc_step_percent": 10.0}
PLAIN: dict[str, object] = {}


@pytest.mark.parametrize(("brand", "calls"), [(PLAIN, 240), (PLAIN, 1000), (STEPWISE, 500)])
def test_more_calls_left_never_lead_to_a_later_look(brand: dict[str, object], calls: int) -> None:
    desk, dice, pairs = ordinary(brand, calls), random.Random(1), 0
    for _ in range(60):
        desk.run(timedelta(hours=dice.uniform(1, 12)))
        share, car, earlier = desk.share(), desk.cars[1], None
        for spent in [0, 1, 3, 10, 40, 120]:
            less = replace(share, calls_left=max(share.calls_left - spent, 0))
            lore = copy.deepcopy(desk.lore)
            found = polling.after_answer(car, car.state, desk.profile, less, lore, desk.now)
            facts = facts_of(car, desk.profile, _unchanged(), less, found.wanted)
            at = next_poll(facts, desk.now).at
            assert at is not None
            if earlier is not None:
                pairs += at > earlier
                assert at >= earlier - GRAIN
            earlier = max(at, earlier or at)
    assert pairs > 60  # it does make a difference


@pytest.mark.parametrize(("brand", "calls"), [(PLAIN, 240), (PLAIN, 1000), (STEPWISE, 500)])
def test_a_larger_plan_never_leads_to_a_later_look(brand: dict[str, object], calls: int) -> None:
    desk, dice = ordinary(brand, calls), random.Random(2)
    sooner = 0
    for _ in range(60):
        desk.run(timedelta(hours=dice.uniform(1, 12)))
        share, car = desk.share(), desk.cars[1]
        more = replace(share, calls=2 * share.calls, calls_left=share.calls_left + share.calls)
        one, other = (
            polling.after_answer(
                car, car.state, desk.profile, each, copy.deepcopy(desk.lore), desk.now
            ).wanted
            for each in (share, more)
        )
        assert one is not None
        assert other is not None
        assert one.at is not None
        assert other.at is not None
        assert other.at <= one.at + GRAIN
        sooner += other.at < one.at
    assert sooner > 20


@pytest.mark.parametrize("brand", [PLAIN, STEPWISE])
def test_a_higher_price_never_leads_to_an_earlier_look(brand: dict[str, object]) -> None:
    desk, dice = ordinary(brand), random.Random(3)
    lore, later = desk.lore, 0
    terms = looking.Terms(desk.profile.soc_step_percent if brand else 0.0, 16.0)
    for _ in range(60):
        desk.run(timedelta(hours=dice.uniform(1, 12)))
        now, before, price = desk.now.timestamp(), None, 10 ** dice.uniform(2, 6)
        for factor in [1.0, 1.1, 2.0, 4.0, 10.0]:
            moment = looking.next_look(desk.habits(), lore.brand("acme"), lore, terms, price * factor, now)
            if before is not None:
                assert moment.at >= before - GRAIN.total_seconds()
                later += moment.at > before
            before = max(moment.at, before or moment.at)
    assert later > 100


def _unchanged() -> Answered:
    return Answered(frozenset())


# ------------------------------------------------------------------------------------------------ estimates
@settings(max_examples=100)
@given(tales(), steps, st.lists(st.floats(0, 40), max_size=4))
def test_an_estimate_lies_within_its_band_and_agrees_with_the_trend(
    tale: Tale, story: list[Step], later: list[float]
) -> None:
    for told in tale.tell(story):
        for hours in [0.0, *later]:
            now = told.now + timedelta(hours=hours)
            found = polling.estimate(told.after, tale.profile, tale.lore, now)
            trend = told.after.trend
            if trend is None:
                continue
            if found is None:
                assert now >= trend.until - timedelta(seconds=1)
                continue
            assert 0.0 <= found.low_percent <= found.soc_percent <= found.high_percent <= 100.0
            assert now < found.until
            by_trend = trend.at(now)
            assert by_trend is None or by_trend == pytest.approx(found.soc_percent, abs=0.02)


@settings(max_examples=60)
@given(tales(), steps)
def test_nothing_is_claimed_once_it_is_too_old(tale: Tale, story: list[Step]) -> None:
    tale.tell(story)
    found = polling.estimate(tale.car, tale.profile, tale.lore, tale.now)
    if found is None:
        return
    moment = timedelta(milliseconds=1)
    assert polling.estimate(tale.car, tale.profile, tale.lore, found.until + moment) is None
    just_before = found.until - moment
    assert polling.estimate(tale.car, tale.profile, tale.lore, just_before) is not None
    assert tale.car.trend is None or tale.car.trend.at(found.until + timedelta(seconds=1)) is None


@settings(max_examples=80)
@given(
    st.floats(1, 99),
    st.none() | st.floats(1, 100),
    st.lists(st.floats(0, 30), min_size=1, max_size=5),
    st.floats(0.5, 60),
)
def test_the_estimate_of_a_charge_only_rises_and_stops_at_its_target(
    soc: float, limit: float | None, hours: list[float], rate: float
) -> None:
    tale = Tale(builders.profile(), Budget())
    tale.happen(Step(MINUTE, "poll", soc, True, True, limit, age=timedelta()))
    told = tale.happen(
        Step(30 * MINUTE, "poll", min(soc + rate / 2, 100.0), True, True, limit, age=timedelta())
    )
    measured, before = told.after.state.soc_percent, 0.0
    assert measured is not None
    habits = Habits.unpack(told.after.learned)
    most = max(charge.target_of(habits), measured)
    if limit is not None and limit > measured + 0.4:
        assert most <= limit + 1e-4
    for later in sorted(hours):
        found = polling.estimate(told.after, tale.profile, tale.lore, told.now + timedelta(hours=later))
        if found is None:
            break
        assert measured - 1e-4 <= found.soc_percent <= most + 1e-4
        assert found.soc_percent >= before
        before = found.soc_percent


def test_a_charge_is_foretold_along_its_slope() -> None:
    tale = Tale(builders.profile(), Budget())
    tale.happen(Step(MINUTE, "poll", 40.0, True, True, age=timedelta()))
    told = tale.happen(Step(60 * MINUTE, "poll", 60.0, True, True, age=timedelta()))
    found = polling.estimate(told.after, tale.profile, tale.lore, told.now + 30 * MINUTE)
    assert found is not None
    assert 66.0 < found.soc_percent < 70.5


# ---------------------------------------------------------------------------------------------------- hints
@settings(max_examples=100)
@given(tales(), steps)
def test_a_hint_brings_a_poll_forward_or_leaves_it(tale: Tale, story: list[Step]) -> None:
    for told in tale.tell(story):
        if told.hinted is None or told.hinted.at is None:
            continue
        schedule = told.before.schedule
        assert schedule.due is not None
        assert told.now <= told.hinted.at < schedule.due
        if schedule.polled_at is not None:
            assert told.hinted.at >= schedule.polled_at + tale.profile.floor
        assert told.share.calls_left >= schedule.calls_per_poll


@settings(max_examples=40)
@given(budgets, st.lists(st.tuples(st.sampled_from(Hint), st.integers(0, 1800)), min_size=20, max_size=60))
def test_hints_in_a_row_move_no_more_polls_than_their_allowance(
    budget: Budget, told: list[tuple[Hint, int]]
) -> None:
    tale = Tale(builders.profile(), budget)
    tale.happen(Step(HOUR, "poll", 60.0, False, False, age=MINUTE))
    began, moved = tale.now, 0
    for hint, seconds in told:
        far = tale.now + 100 * DAY
        tale.car = replace(tale.car, schedule=replace(tale.car.schedule, due=far))  # as if it were asked
        heard = tale.happen(Step(timedelta(seconds=seconds), "hint", hint=hint))
        assert heard.hinted is not None
        moved += heard.hinted.at is not None
    regained = (tale.now - began).total_seconds() / polling.HINT_REGAINED
    assert moved <= polling.HINTS_AT_ONCE + regained


def test_a_clock_that_was_set_back_stops_nothing() -> None:
    desk = ordinary()
    car = desk.cars[1]
    back = desk.now - 400 * DAY
    found = polling.after_answer(car, car.state, desk.profile, _share_at(desk, back), desk.lore, back)
    assert found.wanted is not None
    assert found.wanted.at is not None
    assert back < found.wanted.at <= back + 8 * DAY


def _share_at(desk: Desk, now: object) -> object:
    kept, desk.now = desk.now, now  # type: ignore[assignment]
    try:
        return desk.share()
    finally:
        desk.now = kept


def test_the_reason_for_a_poll_names_no_signal_value_that_is_unknown() -> None:
    """A brand that tells neither cable nor charging, nor times."""
    tale = Tale(builders.profile(), Budget())
    for soc in (50.0, 49.0, 49.0, 70.0):
        told = tale.happen(Step(3 * HOUR, "poll", soc))
        assert told.then is not None
        assert in_words(told.then.reason)
        assert Signal.CHARGING not in told.after.state.signals
    assert tale.now > START
