"""What a call costs: one price, led so that the plan's calls last exactly as long as its period.

The best way to spread calls over moments of unequal worth is to make every call whose gain is above one
price, and the price is right when the calls last. So the price (a Lagrange multiplier) is learnt: it rises
while calls are spent ahead of the pace, and falls while they are saved. The pace is not even: cars want most
of their calls by day.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import exp, log
from typing import Final

from evbatteryd.domain.policy.hours import DAY

IN_HAND: Final = 0.1
"""Days' worth of calls that are kept ahead of need: a brake before the line, not at it."""
SPRING: Final = 1.0
"""Logarithm by which a day ahead of the pace makes a call dearer at once ..."""
LEARNING: Final = 0.48
"""... and for good, per day that it lasts."""
BRAKE_FROM: Final = 0.3
BRAKE: Final = 6.0
"""The same for what is spent beyond so many days ahead: near the line the price stops nearly everything."""
SAVED: Final = 1.5
"""Days' worth of calls: when more than that was not needed, all of it is spread over what is left."""
HASTE: Final = 2.0
"""Times the plan's even pace: faster than that nobody is asked to use up what is left of a period."""
COURTESY: Final = 60.0
"""The least that a call must gain, pp*s, however many the plan allows: the OEM's cloud and the car's 12 V
battery are not there to be asked for nothing."""
DEAREST: Final = 1e9
FIRST_ERROR: Final = 20.0
"""Percent that a car's charge moves in a day: sets the first price before anything is known."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What may be spent, and has been, in the period that ``began``: by one car, or by all cars of a pool."""

    calls: float
    spent: float
    began: float
    ends: float
    at_most: float = float("inf")
    """Calls per day that the brand's documented limit allows."""

    @property
    def per_day(self) -> float:
        """Calls per day, all period long."""
        return max(min(self.calls / max((self.ends - self.began) / DAY, 1e-3), self.at_most), 0.05)


@dataclass(frozen=True, slots=True)
class Pace:
    """The price, and where the pace was last begun: so many calls had been spent at that moment."""

    price_log: float
    at: float
    """When the price was last thought over; 0: never."""
    anchored: float
    anchor_spent: float
    window: float
    """Which period the anchor is of."""
    per_day: float
    """Calls per day of the plan that the price is of."""


def first_price(calls_per_day: float) -> float:
    """The price at which a car that moves evenly would be asked just so often."""
    day = max(calls_per_day, 0.05)
    return FIRST_ERROR / DAY / 2 * (DAY / day) ** 2


def paced(
    pace: Pace, plan: Plan, days: Callable[[float], float], now: float, crowd: float | None = None
) -> tuple[Pace, float, float]:
    """The pace after ``now``, the price of a call (pp*s), and by how many days' worth of calls it is ahead.

    ``days`` measures time by how many of a day's calls are usually wanted in it. ``crowd``: how full a
    rolling limit of the brand is (1: as full as it may be), where that binds rather than the plan.
    """
    pace = _anchored(pace, plan, days, now)
    # Where a rolling limit counts for itself, the plan's own pace is kept beside it.
    rate = _rate(pace, plan, days) if crowd is not None else min(_rate(pace, plan, days), plan.at_most)
    ahead = (plan.spent - pace.anchor_spent) / rate - (days(now) - days(pace.anchored))
    if ahead < -SAVED:  # the pace is begun anew, still that far behind
        pace = replace(pace, anchored=now - SAVED * DAY, anchor_spent=plan.spent)
        ahead = -SAVED
    if crowd is not None:
        ahead = max(ahead, crowd - 1.0 - IN_HAND)  # the scarcer of the two
    lead = IN_HAND * min(1.0, max(plan.ends - now, 0.0) / DAY / 2)
    drift = ahead + lead
    span = min(max(now - pace.at, 0.0), DAY) / DAY
    price_log = pace.price_log + LEARNING * max(-1.0, min(1.0, drift)) * span
    price_log = max(log(COURTESY) - 2.0, min(price_log, log(DEAREST)))
    now_log = price_log + SPRING * drift + BRAKE * max(0.0, drift - BRAKE_FROM)
    price = max(COURTESY, min(exp(min(now_log, 30.0)), DEAREST))
    return replace(pace, price_log=price_log, at=now), price, ahead


def _anchored(pace: Pace, plan: Plan, days: Callable[[float], float], now: float) -> Pace:
    """The pace with an anchor in this period: its beginning, or now for a car that has just come."""
    if pace.at == 0.0:
        fresh = Pace(0.0, now, now, plan.spent, plan.began, plan.per_day)
        return replace(fresh, price_log=log(first_price(min(_rate(fresh, plan, days), plan.at_most))))
    if abs(plan.per_day - pace.per_day) > 0.05 * pace.per_day:
        # Another plan. What accumulates unseen grows evenly: the price goes with the interval's square.
        price_log = pace.price_log + 2 * log(pace.per_day / plan.per_day)
        return Pace(price_log, pace.at, now, plan.spent, plan.began, plan.per_day)
    if pace.window != plan.began:
        return replace(pace, anchored=plan.began, anchor_spent=0.0, window=plan.began)
    if plan.spent < pace.anchor_spent or now < pace.anchored:  # the ledger was corrected, or the clock
        return replace(pace, anchored=now, anchor_spent=plan.spent)
    return pace


def _rate(pace: Pace, plan: Plan, days: Callable[[float], float]) -> float:
    """Calls per day from the anchor to the period's end: what was saved is not all spent on its last days."""
    span = days(plan.ends) - days(pace.anchored)
    left = (plan.calls - pace.anchor_spent) / max(span, 0.05)
    return max(min(left, HASTE * plan.per_day), 0.05)
