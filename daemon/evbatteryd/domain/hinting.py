"""Hints from wall boxes and automations: what they may move, and what is answered."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from evbatteryd.domain.cadence import LONGEST_BACK_OFF, calmed, longest_calm
from evbatteryd.domain.errors import Asleep, NothingYet
from evbatteryd.domain.fleet import Car
from evbatteryd.domain.ledger import Share
from evbatteryd.domain.policy.outlook import Hint

OTHER: Final = "other"
"""Label of what is no hint that we know."""
KNOWN: Final = ", ".join(Hint)
AT_EASE: Final = frozenset({"", "new", "unchanged", Asleep.outcome, NothingYet.outcome})
"""Outcomes after which a car waits for its pace alone. A hint may be the first sign that it is awake."""


class HintOutcome(StrEnum):
    """What became of a hint: also the label that it is counted under."""

    TAKEN = "taken"
    """The next poll was brought forward."""
    PUT_OFF = "put_off"
    """Learnt from; the next poll stays when it is."""
    REPEATED = "repeated"
    """Said just before: the next poll stays when it is."""
    CHATTERING = "chattering"
    """Too many in the last hour."""
    UNKNOWN_EVENT = "unknown_event"
    UNKNOWN_VEHICLE = "unknown_vehicle"
    NOT_READ = "not_read"
    """A car whose consent, or whose application, is gone."""
    NOT_KEPT = "not_kept"
    """The store did not take it in time."""
    FAILED = "failed"
    """evbatteryd itself failed on it."""

    @property
    def result(self) -> str:
        """``taken``, ``put_off`` or ``refused``: what whoever hinted is told."""
        match self:
            case HintOutcome.TAKEN:
                return "taken"
            case HintOutcome.PUT_OFF | HintOutcome.REPEATED:
                return "put_off"
            case _:
                return "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class HintAnswer:
    """What whoever hinted is told."""

    event: str
    """As it was understood; what was not, cut short."""
    outcome: HintOutcome
    reason: str
    """In one sentence."""
    next_poll: datetime | None = None
    """When the car is asked next; None: nobody knows, or it is not ours to say."""

    def document(self) -> dict[str, object]:
        """As JSON has it, wherever it is answered."""
        return {
            "event": self.event,
            "result": self.outcome.result,
            "reason": self.reason,
            "next_poll": self.next_poll,
        }


def hint_named(text: str) -> Hint | None:
    """The hint of that name, whatever its case; None if there is none."""
    name = text.strip().lower()
    return Hint(name) if name in tuple(Hint) else None


def label_of(text: str) -> str:
    """What a hint is counted under: its name, or :data:`OTHER`."""
    return hint_named(text) or OTHER


ANSWER_TAKES: Final = timedelta(minutes=15)
"""At most, between a request and what is decided by its answer."""


def standing_wait(car: Car, share: Share, now: datetime) -> str | None:
    """Why no hint may bring this car's next poll forward; None if one may.

    A wait that the source, its owner or the plan imposed stands, and where webhooks deliver, they tell what
    a poll would. That a car could not be reached is such a wait, until nothing but its long silence puts it
    off.
    """
    schedule = car.schedule
    if schedule.due is None:
        return schedule.reason
    if schedule.pushed_at is not None:
        return "webhooks deliver what this car reports"
    if share.calls_left < schedule.calls_per_poll:
        return f"the plan's calls are used up until {share.renews_at:%Y-%m-%d %H:%M} UTC"
    return imposed_wait(car, now)


def imposed_wait(car: Car, now: datetime, *, at_ease: Container[str] = AT_EASE) -> str | None:
    """What the car's source or its owner has it wait for; None if it waits for its pace alone.

    ``at_ease``: outcomes after which it does.
    """
    outcomes = {car.schedule.outcome, car.schedule.outcome if car.trouble is None else car.trouble.outcome}
    if all(outcome in at_ease for outcome in outcomes) or _merely_silent(car, now):
        return None
    return car.schedule.reason


def woken(car: Car, now: datetime) -> Car:
    """The car after a hint that has it asked: silent for long as it was, it is waited for like one that has
    just fallen silent."""
    trouble = car.trouble
    if trouble is None or not calmed(trouble.outcome, trouble.since, now):
        return car
    return replace(car, trouble=replace(trouble, since=now))


def _merely_silent(car: Car, now: datetime) -> bool:
    """Whether a car is out of reach for so long that it is seldom asked, and it was not told to wait."""
    schedule, trouble = car.schedule, car.trouble
    if trouble is None or schedule.due is None or schedule.polled_at is None:
        return False
    if trouble.outcome != schedule.outcome or not calmed(trouble.outcome, trouble.since, now):
        return False
    put_off = schedule.due - schedule.polled_at
    rested = now - schedule.polled_at >= LONGEST_BACK_OFF
    return rested and put_off <= longest_calm(trouble.since, now) + ANSWER_TAKES
