"""A charge as a line: how steep it is, and where it ends."""

from __future__ import annotations

from typing import Final

from evbatteryd.domain.policy.habits import UNKNOWN, Habits

UNKNOWN_SLOPE: Final = 500.0
"""Weight of the learnt slope up to which it is hardly known."""
TOLD_GAIN: Final = 1.5
"""What a car says of its charge is as sure as if it had been seen over so many percent."""


def slope_of(habits: Habits) -> float:
    """Percent per second of the charge: this one's own and the car's usual one, by their variances."""
    usual = habits.slope
    if not (habits.session_slope and habits.session_gain):
        return usual
    own = habits.session_slope
    own_variance = (0.45 / habits.session_gain * own) ** 2
    usual_variance = ((0.05 if habits.slope_weight > UNKNOWN_SLOPE else 0.6) * usual) ** 2
    if (own - usual) ** 2 > 9 * (own_variance + usual_variance):  # another charger than at home
        return own
    return (own * usual_variance + usual * own_variance) / (usual_variance + own_variance)


def target_of(habits: Habits) -> float:
    """Where the present charge ends, percent: by the car's own limit, as learnt, or as is usual."""
    target = habits.target if habits.targets_seen else (90.0 if habits.soc < 87.0 else 100.0)
    if habits.limit != UNKNOWN and habits.limit > habits.soc + 0.4:
        target = habits.limit if not habits.targets_seen else min(target, habits.limit)
    return 100.0 if habits.soc > target + 0.4 else target
