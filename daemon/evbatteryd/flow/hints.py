"""Hints from wall boxes and automations become decisions: free of cost, bounded, committed."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from evbatteryd.domain.cadence import words
from evbatteryd.domain.fleet import Car
from evbatteryd.domain.hinting import (
    KNOWN,
    HintAnswer,
    HintOutcome,
    hint_named,
    label_of,
    standing_wait,
    woken,
)
from evbatteryd.domain.ledger import Share
from evbatteryd.domain.policy.lore import Lore
from evbatteryd.domain.policy.outlook import Hint
from evbatteryd.domain.policy.polling import Hinted
from evbatteryd.domain.ports import Clock, Log, Tally
from evbatteryd.domain.profile import BrandProfile
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.flow.cars import Cars

SAID_JUST_BEFORE: Final = timedelta(seconds=30)
"""Within this, a hint of the same kind is the same one."""
STILL_SO: Final = timedelta(minutes=10)
"""Within this, a hint that was also the last one says that nothing changed: automations repeat states."""
MOST_AN_HOUR: Final = 20
"""Hints of one car that are considered. Who plugs in and out drives and charges less often than that."""
HOUR: Final = timedelta(hours=1)
ANSWERED_WITHIN_S = 10.0
"""Real seconds that the store may take to keep a hint."""
LONGEST_ECHO: Final = 40
"""Characters of what was not understood that are said again."""

Policy = Callable[[Car, BrandProfile, Share, Lore, Hint, datetime], Hinted]
"""What a hint means for a car: :func:`evbatteryd.domain.policy.polling.after_hint`."""


@dataclass(slots=True)
class _Heard:
    """What one car's hints were lately."""

    last_at: datetime
    last: Hint | None = None
    """The last one, considered or not."""
    kinds: dict[Hint, datetime] = field(default_factory=dict)
    """When each was last considered."""
    considered: list[datetime] = field(default_factory=list)
    """In the last hour, oldest first."""
    warned_at: datetime | None = None


class CarHints:
    """Implements :class:`evbatteryd.domain.ports.Hints`.

    ``share_of``: what a car may spend (None: its application is not configured). ``lores``: by application.
    The policy decides what a hint is worth; here is what no policy can undo: how many hints are considered,
    and which waits stand.
    """

    def __init__(
        self,
        cars: Cars,
        clock: Clock,
        tally: Tally,
        log: Log,
        policy: Policy,
        *,
        share_of: Callable[[Car], Share | None],
        lores: Mapping[str, Lore],
        hurry: Callable[[VehicleId], None],
    ) -> None:
        self._cars = cars
        self._fleet = cars.fleet
        self._clock = clock
        self._tally = tally
        self._log = log
        self._policy = policy
        self._share_of = share_of
        self._lores = lores
        self._hurry = hurry
        self._heard: OrderedDict[VehicleId, _Heard] = OrderedDict()
        """Of the cars that hinted within the last hour, the longest silent one first."""
        self._said: dict[HintOutcome, datetime] = {}

    async def told(self, slug: str, event: str, origin: str) -> HintAnswer:
        """Take ``event`` for the car of that slug; ``origin``: the way that it came. Raises nothing."""
        answer = await self._told(slug, event, origin)
        self._tally.hint(label_of(event), answer.outcome)
        self._log.debug(
            "hint.told", vehicle=_echo(slug), hint=answer.event, origin=origin, outcome=answer.outcome
        )
        return answer

    async def _told(self, slug: str, event: str, origin: str) -> HintAnswer:
        now, hint, car = self._clock.now(), hint_named(event), self._fleet.by_slug(slug)
        if car is None or hint is None:
            return self._not_understood(slug, event, car, origin, now)
        if car.vehicle.withdrawn_at is not None:
            return _gone(hint)
        heard = self._heard_of(car.id, now)
        before = heard.last, heard.kinds.get(hint)
        refusal = self._bounded(heard, car, hint, origin, now)
        if refusal is not None:
            return refusal
        try:
            async with asyncio.timeout(ANSWERED_WITHIN_S):
                return await self._consider(car.id, hint)
        except TimeoutError:
            _take_back(heard, hint, now, *before)
            why = "it could not be written down in time: the store does not take it"
            return HintAnswer(event=hint, outcome=HintOutcome.NOT_KEPT, reason=why)
        except Exception:
            # Whatever one car's hint does to us, every other one is taken.
            _take_back(heard, hint, now, *before)
            self._log.exception("hint.bug", vehicle=car.slug)
            why = "evbatteryd made a mistake; its log has the details"
            return HintAnswer(event=hint, outcome=HintOutcome.FAILED, reason=why)

    def _not_understood(
        self, slug: str, event: str, car: Car | None, origin: str, now: datetime
    ) -> HintAnswer:
        """Refused, and said once an hour: somebody configured it so."""
        if car is None:
            outcome, renamed = HintOutcome.UNKNOWN_VEHICLE, self._fleet.by_former_slug(slug)
            why = f"no vehicle is called {_echo(slug)!r}"
            if renamed is not None:
                why = f"this vehicle is called {renamed.slug!r} now: send its events there"
        else:
            outcome, why = HintOutcome.UNKNOWN_EVENT, f"{_echo(event)!r} is no event; known: {KNOWN}"
        if not _within(HOUR, self._said.get(outcome), now):
            self._said[outcome] = now
            self._log.warning("hint.refused", vehicle=_echo(slug), reason=why, origin=origin)
        return HintAnswer(event=_echo(event), outcome=outcome, reason=why)

    def _bounded(self, heard: _Heard, car: Car, hint: Hint, origin: str, now: datetime) -> HintAnswer | None:
        """Why a hint is not even considered; None, and a note of it, if it is."""
        again = STILL_SO if heard.last is hint else SAID_JUST_BEFORE
        heard.last = hint
        if _within(again, heard.kinds.get(hint), now):
            why = f"it was said {words(now - heard.kinds[hint])} before"
            return HintAnswer(
                event=hint, outcome=HintOutcome.REPEATED, reason=why, next_poll=car.schedule.due
            )
        heard.considered = [at for at in heard.considered if _within(HOUR, at, now)]
        if len(heard.considered) >= MOST_AN_HOUR:
            why = f"chattering: {MOST_AN_HOUR} events of this vehicle in an hour are all that is listened to"
            if not _within(HOUR, heard.warned_at, now):
                heard.warned_at = now
                self._log.warning("hint.chattering", vehicle=car.slug, origin=origin, most=MOST_AN_HOUR)
            return HintAnswer(
                event=hint, outcome=HintOutcome.CHATTERING, reason=why, next_poll=car.schedule.due
            )
        heard.kinds[hint] = now
        heard.considered.append(now)
        return None

    def _heard_of(self, vehicle_id: VehicleId, now: datetime) -> _Heard:
        """What this car said lately. Those that have been silent for an hour are forgotten."""
        heard = self._heard.setdefault(vehicle_id, _Heard(now))
        heard.last_at = now
        self._heard.move_to_end(vehicle_id)
        while not _within(HOUR, next(iter(self._heard.values())).last_at, now):
            self._heard.popitem(last=False)
        return heard

    async def _consider(self, vehicle_id: VehicleId, hint: Hint) -> HintAnswer:
        """Commit what the policy makes of it."""
        answer: HintAnswer

        def hinted(current: Car) -> Car:
            nonlocal answer
            changed, answer = self._after(current, hint, self._clock.now())
            return changed

        await self._cars.change(vehicle_id, hinted)
        if answer.outcome is HintOutcome.TAKEN:
            self._hurry(vehicle_id)
        return answer

    def _after(self, car: Car, hint: Hint, now: datetime) -> tuple[Car, HintAnswer]:
        """The car after the hint, and the answer: pure but for the purse's share and the lore."""
        schedule, application = car.schedule, car.vehicle.consent.application
        if car.vehicle.withdrawn_at is not None:  # meanwhile
            return car, _gone(hint)
        share, lore = self._share_of(car), self._lores.get(application)
        if share is None or lore is None:
            why = f"its Smartcar application {application!r} is not configured"
            return car, HintAnswer(event=hint, outcome=HintOutcome.NOT_READ, reason=why)
        due, stands = schedule.due, standing_wait(car, share, now)
        # As if it were due: the policy learns, and spends nothing of what hints may cost.
        known = car if stands is None else replace(car, schedule=replace(schedule, due=now))
        hinted = self._policy(known, self._fleet.profile(car), share, lore, hint, now)
        learnt, at = replace(car, learned=hinted.learned, trend=hinted.trend), hinted.at
        if stands is not None or at is None or (due is not None and at >= due):
            why = stands or hinted.reason
            return learnt, HintAnswer(event=hint, outcome=HintOutcome.PUT_OFF, reason=why, next_poll=due)
        at = max(at, now)
        moved = replace(schedule, due=at, reason=hinted.reason, gain=hinted.gain)
        taken = HintAnswer(event=hint, outcome=HintOutcome.TAKEN, reason=hinted.reason, next_poll=at)
        return replace(woken(learnt, now), schedule=moved), taken


def _take_back(heard: _Heard, hint: Hint, at: datetime, last: Hint | None, kind_at: datetime | None) -> None:
    """Nothing came of the hint of ``at``: whoever tells it again is listened to. ``last``, ``kind_at``: of
    before."""
    if heard.last is hint:
        heard.last = last
    if heard.kinds.get(hint) == at:
        del heard.kinds[hint]
        if kind_at is not None:
            heard.kinds[hint] = kind_at
    if at in heard.considered:
        heard.considered.remove(at)


def _gone(hint: Hint) -> HintAnswer:
    why = "this vehicle is not read any more: its owner's consent is gone"
    return HintAnswer(event=hint, outcome=HintOutcome.NOT_READ, reason=why)


def _within(span: timedelta, at: datetime | None, now: datetime) -> bool:
    """Whether ``at`` is less than ``span`` ago. Not if it lies ahead: the clock was set back."""
    return at is not None and timedelta() <= now - at < span


def _echo(text: str) -> str:
    """What somebody sent, as far as it is said again: short, and nothing that a terminal would heed."""
    shown = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text.strip())
    return shown if len(shown) <= LONGEST_ECHO else f"{shown[:LONGEST_ECHO]}..."
