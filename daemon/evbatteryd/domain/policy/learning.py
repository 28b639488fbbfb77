"""What a look teaches: of the car, of its brand's cloud, and of all cars of the application.

A car is seen at moments. Whatever is learnt must not take the moments for the life: of several events
between two looks only the last is seen, and of a quiet time only the quiet after the last event is evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from evbatteryd.domain.policy import hours
from evbatteryd.domain.policy.charge import TOLD_GAIN, UNKNOWN_SLOPE, slope_of, target_of
from evbatteryd.domain.policy.habits import (
    ARRIVAL,
    DEPARTURE,
    TRIP,
    UNKNOWN,
    Doing,
    Habits,
    Told,
)
from evbatteryd.domain.policy.hours import HOUR
from evbatteryd.domain.policy.lore import BrandLore, Lore

MINUTE: Final = 60.0
STILL: Final = 0.6
"""Percent by which a charge that stands still may seem to move: whole percents are rounded."""
ROSE: Final = 1.2
"""Percent by which a charge must have risen to be sure that it did."""
AT_ONCE: Final = 20 * MINUTE
"""A charge that starts so soon after plug-in did not wait."""
ON_TARGET: Final = 2.0
"""Percent by which the ends of charges to one target differ."""
ON_LINE: Final = 1.1
"""Percent by which a charge may miss its target and still tell how late its end is told."""
TOO_LATE: Final = 12 * MINUTE
"""An end further from the end of its line was not the one that the line led to."""
STEADY_SLOPE: Final = 2000.0
SLOWEST: Final = 0.5 / HOUR
"""Percent per second: less is no charge but two looks at different ones."""
FASTEST: Final = 400.0 / HOUR
"""Percent per second: no battery of today charges faster (5C)."""
LARGEST_TRIP: Final = 30.0
"""Percent: longer trips count as that, or one journey would outweigh a month."""
OFTEN_ENOUGH: Final = 2 * HOUR
"""Between looks, to know from a long time without uploads that there was none."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one answer, or one webhook, showed."""

    at: float
    """When it reached us."""
    measured: float
    """By the car's clock: of whatever is newest of charge, charging and cable."""
    soc: float
    """Percent."""
    soc_at: float
    """By the car's clock: of the charge alone."""
    confirmed: float
    """When the charge last reached us: it may be that only others did now."""
    charging: bool
    plugged: bool | None
    """None: it does not tell of its cable."""
    limit: float | None = None
    """The charge limit that the car names, percent."""
    slope: float | None = None
    """Percent per second of the charge, by what the car itself says of it."""
    polled: bool = True
    """Whether we asked, rather than were told: only then its moment says something of the brand's uploads."""


def learn(habits: Habits, brand: BrandLore, lore: Lore, look: Look, *, steps: bool) -> None:
    """Change habits and lore by what ``look`` showed.

    ``steps``: the brand uploads at steps of charge rather than at times.
    """
    if look.limit is not None:
        habits.limit = look.limit
    plugged = _cable(habits, look)
    if not habits.known:
        _take(habits, look, plugged)
        habits.changed = look.measured
        _enter(habits, brand, look, news=False)
        _told(habits, look)
        return
    news = look.measured > habits.measured
    change = look.soc - habits.soc
    if look.polled:
        _cloud(habits, brand, look, change if news else 0.0, plugged=plugged, steps=steps)
    _life(habits, lore, look, news and _moved(habits, look, plugged))
    if not habits.charging:
        _parked(habits, brand, lore, look, plugged, news)
    if news:
        _session(habits, brand, look, plugged)
        _gap(habits, look)
        if habits.plugged and look.plugged is False and change > -STILL:
            habits.left = look.measured
    habits.last_drop = change if news else 0.0
    _take(habits, look, plugged)
    _enter(habits, brand, look, news)


def _cable(habits: Habits, look: Look) -> bool:
    """Whether the cable is in; where nobody tells, it is until the charge falls."""
    if look.plugged is not None:
        habits.cable = True
        return look.plugged or look.charging
    return look.charging or (habits.plugged and look.soc >= habits.soc - STILL)


def _take(habits: Habits, look: Look, plugged: bool) -> None:
    if look.measured >= habits.measured:
        habits.soc, habits.soc_at, habits.measured = look.soc, look.soc_at, look.measured
        habits.charging, habits.plugged = look.charging, plugged
    habits.looked = max(look.at, habits.looked)
    habits.confirmed = max(look.confirmed, habits.confirmed)


def _moved(habits: Habits, look: Look, plugged: bool) -> bool:
    """Whether the car did anything, rather than renewing the times of what it had told."""
    return abs(look.soc - habits.soc) > STILL or look.charging != habits.charging or plugged != habits.plugged


def _life(habits: Habits, lore: Lore, look: Look, moved: bool) -> None:
    """For how long it has done nothing, in events that an ordinary car would have had."""
    if moved:
        habits.changed, habits.silent = look.measured, 0.0
        return
    hazard = DEPARTURE if habits.plugged else TRIP
    expected = lore.expect(hazard, habits.looked, look.at) * lore.scale(habits, hazard)
    habits.silent = min(habits.silent + expected, 1000.0)


def _gap(habits: Habits, look: Look) -> None:
    """How close two uploads were, at least: a long time between them proves nothing if nobody looked."""
    gap = look.measured - habits.measured
    if look.at - habits.looked > OFTEN_ENOUGH and gap > OFTEN_ENOUGH:
        return
    longer = 1.1 * habits.shortest_gap
    habits.shortest_gap = gap if habits.gaps == 0 else min(gap, longer)
    habits.gaps = habits.gaps + 1 if habits.gaps < 250 else 200


def _cloud(
    habits: Habits, brand: BrandLore, look: Look, change: float, *, plugged: bool, steps: bool
) -> None:
    """How old uploads get, whether a drop is followed by another, whether an upload was there in time."""
    if look.charging and habits.charging:
        brand.oldest = max(min(look.at - look.measured, 4000.0), 0.98 * brand.oldest)
    if habits.doing == Doing.DRIVING and look.at - habits.looked < 40 * MINUTE:
        brand.fresh_drops += 1.0
        if change < -0.4 and not plugged:
            brand.goes_on += 1.0
        if brand.fresh_drops > 500:
            brand.fresh_drops, brand.goes_on = brand.fresh_drops / 2, brand.goes_on / 2
    expected, habits.expected_upload = habits.expected_upload, 0.0
    on_time = abs(look.at - expected - brand.margin) < 2 * MINUTE
    if not expected or steps or not on_time:  # sooner or later it proves nothing
        return
    # Three of four are to be there: a little later costs less than a call for nothing.
    there = look.measured > expected - 0.3 * brand.period
    brand.margin = max(20.0, min(brand.margin + (-8.0 if there else 24.0), 0.5 * brand.period))


def _parked(habits: Habits, brand: BrandLore, lore: Lore, look: Look, plugged: bool, news: bool) -> None:
    """What happened to a car that did not charge when it was last looked at."""
    change = look.soc - habits.soc
    moved = news and _moved(habits, look, plugged)
    rose = news and plugged and change > ROSE
    started = news and (rose or look.charging)
    began = look.measured
    if started:
        earliest = habits.measured if habits.plugged else habits.looked
        began = max(look.measured - max(0.0, change) / habits.slope, earliest)
    waited = habits.doing == Doing.WAITING
    if started and habits.plugged and change > -STILL:
        if waited:
            _start_after_wait(habits, brand, lore, look, began)
    elif news and habits.plugged and waited and change > ROSE and not plugged:
        _note_start(habits, lore, habits.looked, look.measured - change / habits.slope, exactly=False)
    _count_events(habits, lore, look, plugged, moved=moved, change=change)
    if not habits.plugged:
        if not habits.laid_up_at(look.at):
            quiet_until = max(look.measured, habits.looked) if moved else look.at
            lore.watch(habits, ARRIVAL, habits.looked, quiet_until)
        if news and plugged and started:
            lore.struck(habits, ARRIVAL, max(habits.looked, began))
    if news:
        _trips(habits, look, plugged, change, began if started else look.measured)
    if rose and not look.charging:
        _ended(habits, look)


def _start_after_wait(habits: Habits, brand: BrandLore, lore: Lore, look: Look, began: float) -> None:
    """The charge of a car that was plugged in and waited has started."""
    if habits.looked - habits.measured < 2 * HOUR:
        brand.waits += 1.0
        brand.hidden += began < habits.looked - 10 * MINUTE
        if brand.waits > 200:
            brand.waits, brand.hidden = brand.waits / 2, brand.hidden / 2
    prompt = began - habits.measured < AT_ONCE or (habits.assumed and look.soc - habits.soc > ROSE)
    _plugged_in(habits, prompt)
    if not prompt:
        latest = max(began, habits.looked + MINUTE)
        _note_start(habits, lore, habits.looked, latest, exactly=look.charging)


def _plugged_in(habits: Habits, prompt: bool) -> None:
    habits.plugins += 1.0
    habits.prompt += prompt
    if habits.plugins > 60:
        habits.plugins, habits.prompt = habits.plugins / 2, habits.prompt / 2


def _note_start(habits: Habits, lore: Lore, earliest: float, latest: float, *, exactly: bool) -> None:
    """A charge began long after plug-in: at ``latest``, or somewhere in between."""
    if sum(habits.starts) > 6:
        habits.starts = [0.8 * count for count in habits.starts]
    earliest, latest = lore.local(earliest), lore.local(latest)
    if exactly or latest - earliest < HOUR:
        habits.starts[hours.at(latest)] += 1.0
        return
    first, last = int(earliest // HOUR), int(latest // HOUR)
    among = [hour % 24 for hour in range(first, min(last, first + 23) + 1)]
    total = sum(habits.starts[hour] + hours.TIMERS[hour] for hour in among)
    for hour in among:
        habits.starts[hour] += (habits.starts[hour] + hours.TIMERS[hour]) / total


def _count_events(
    habits: Habits, lore: Lore, look: Look, plugged: bool, *, moved: bool, change: float
) -> None:
    if habits.doing == Doing.DRIVING:
        return
    seen_at = max(look.measured, habits.looked) if moved else look.at
    # What a car that is laid up does not do says nothing of what it does otherwise.
    counts = not habits.laid_up_at(look.at)
    if habits.plugged:
        if counts:
            lore.watch(habits, DEPARTURE, habits.looked, seen_at)
        if moved and not (plugged and change > -STILL):
            lore.struck(habits, DEPARTURE, seen_at)
        return
    if not moved:
        if counts:
            lore.watch(habits, TRIP, habits.looked, seen_at)
        return
    if not plugged:
        lore.watch(habits, TRIP, seen_at, look.at)
    lore.struck(habits, TRIP, seen_at)


def _trips(habits: Habits, look: Look, plugged: bool, change: float, began: float) -> None:
    """How large its trips are, and with how much left it comes home."""
    if plugged and not habits.plugged:
        risen = max(0.0, look.measured - began) * habits.slope
        habits.comes_home_at += 0.2 * (min(look.soc - risen, habits.soc) - habits.comes_home_at)
        habits.trips_since_home = 0
    elif not plugged and (change < -STILL or habits.plugged):
        habits.trips_since_home = 1 if habits.plugged else min(habits.trips_since_home + 1, 200)
    if change < -STILL:
        habits.trip_sum += min(-change, LARGEST_TRIP)
        habits.trip_count += 1.0
        if habits.trip_count > 40:
            habits.trip_sum, habits.trip_count = 0.9 * habits.trip_sum, 0.9 * habits.trip_count


def _session(habits: Habits, brand: BrandLore, look: Look, plugged: bool) -> None:
    """A charge goes on, has begun, or has ended."""
    if look.charging:
        lasting = habits.charging and look.soc >= habits.soc - 0.3 and habits.session_since
        if lasting and look.measured - habits.measured < _longest_charge(habits):
            _goes_on(habits, brand, look)
        else:
            _begin(habits, look)
            if not habits.plugged and look.measured > habits.looked:
                _plugged_in(habits, prompt=True)
        _told(habits, look)
    elif habits.charging:
        if habits.session_slope and habits.session_gain > TOLD_GAIN:
            weight = min(habits.session_gain, 30.0) ** 2
            whole = habits.slope_weight + weight
            habits.slope = (habits.slope * habits.slope_weight + habits.session_slope * weight) / whole
            habits.slope_weight = min(whole, STEADY_SLOPE)
        if plugged and look.soc >= habits.soc - 0.3:
            _end(habits, brand, look)
            _ended(habits, look)
        habits.session_since = habits.session_slope = 0.0


def _longest_charge(habits: Habits) -> float:
    """Looks further apart may show two charges."""
    return 2 * HOUR + 1.5 * max(0.0, 100.0 - habits.soc) / habits.slope


def _begin(habits: Habits, look: Look) -> None:
    """A charge is known from now on; a charge level that was told long before says nothing of its start."""
    habits.session_since, habits.session_slope, habits.session_gain = look.measured, 0.0, 0.0
    habits.session_soc = look.soc if look.measured - look.soc_at < AT_ONCE else UNKNOWN


def _told(habits: Habits, look: Look) -> None:
    """What the car says of its charge counts until that is seen: if little is known of it, or if it is faster
    than usual. Less than usual may be the beginning of a charge, when the power still rises."""
    if look.slope is None or not SLOWEST < look.slope < FASTEST:
        return
    news = habits.slope_weight <= UNKNOWN_SLOPE or look.slope > habits.slope
    if news and habits.session_gain <= TOLD_GAIN:
        habits.session_slope, habits.session_gain = look.slope, TOLD_GAIN


def _goes_on(habits: Habits, brand: BrandLore, look: Look) -> None:
    if look.polled:
        brand.saw_gap(look.measured - habits.measured)
    if habits.session_soc == UNKNOWN:
        if look.soc_at > habits.session_since:
            habits.session_since, habits.session_soc = look.soc_at, look.soc
        return
    gain, span = look.soc - habits.session_soc, look.soc_at - habits.session_since
    if gain > ROSE and span > MINUTE and SLOWEST < gain / span < FASTEST:
        habits.session_slope, habits.session_gain = gain / span, gain


def _end(habits: Habits, brand: BrandLore, look: Look) -> None:
    """The line of a charge said when it would end: how much later than that did its upload come?"""
    target = target_of(habits)
    if abs(look.soc - target) > ON_LINE:
        return
    span = max(0.0, target - habits.soc) / slope_of(habits)
    late = look.measured - (habits.line_since + span)
    if abs(late) < 0.1 * span + TOO_LATE:
        brand.saw_end(late)


def _ended(habits: Habits, look: Look) -> None:
    """A charge ended with the cable in: that is where this car's charges end."""
    if habits.targets_seen == 0 or abs(look.soc - habits.target) < ON_TARGET:
        habits.targets_seen = min(habits.targets_seen + 1, 5)
        habits.target = look.soc
    elif look.soc > habits.target:
        habits.target, habits.targets_seen = look.soc, 1
    else:  # ended early, once: another target only if it goes on
        habits.targets_seen -= 1


def _enter(habits: Habits, brand: BrandLore, look: Look, news: bool) -> None:
    """What the car is taken to be doing from now on."""
    habits.assumed = False
    if habits.charging:
        habits.doing = Doing.CHARGING
        if not habits.session_since:
            _begin(habits, look)
    elif habits.plugged:
        low = habits.soc < habits.target - 2.5
        habits.doing = Doing.WAITING if low else Doing.RESTING
        heard = habits.told == Told.CHARGING and habits.hears(Told.CHARGING, look.at)
        if heard and habits.measured < habits.hinted + MINUTE and habits.soc < 99.5:
            habits.doing, habits.assumed = Doing.WAITING, True
        elif low and brand.hidden > 0.4 * brand.waits and habits.prompt > 0.5 * habits.plugins:
            age = look.at - habits.measured
            habits.assumed = age < 2.0 * brand.period + brand.margin and age < 1.2 * HOUR
    else:
        habits.doing = Doing.UNPLUGGED
        if (
            habits.told not in (Told.NOTHING, Told.UNPLUGGED)
            and habits.measured > habits.hinted + 10 * MINUTE
        ):
            habits.told = Told.NOTHING
        fresh = look.at - habits.measured < 12 * MINUTE
        if news and habits.last_drop < -0.4 and fresh and brand.goes_on > 0.15 * brand.fresh_drops:
            habits.doing = Doing.DRIVING
