"""Has Smartcar push: subscribes every car of an application to its webhook, once for each consent."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta

from evbatteryd.domain.cadence import subscribed_now
from evbatteryd.domain.errors import (
    ApplicationRateLimited,
    ApplicationRefused,
    PlanRefused,
    SourceError,
    StoreError,
    Unreachable,
)
from evbatteryd.domain.fleet import Car
from evbatteryd.domain.ports import Clock, Log, Source
from evbatteryd.domain.vehicle import VehicleId, subscription_of
from evbatteryd.flow.cars import Cars
from evbatteryd.flow.pauses import pause
from evbatteryd.flow.purse import Purse
from evbatteryd.flow.timer import SLICE

EVERY = timedelta(hours=1)
"""How often those that were left alone are looked at again."""
SHORTEST_PAUSE = timedelta(minutes=5)
LONGEST_PAUSE = timedelta(days=1)
MOST_UNREACHABLE = 3
"""So many cars in a row for which nobody answers: then it is Smartcar, and not the cars."""
_OF_ALL_CARS = (ApplicationRateLimited, ApplicationRefused, PlanRefused, StoreError)
REFUSED_FOR = timedelta(days=1)
"""How long a car is left alone that Smartcar does not let be subscribed."""
UNREACHABLE_FOR = timedelta(minutes=30)
"""How long one is for which Smartcar failed, so that others get their turn."""


class Subscriber:
    """Of one application that has a webhook."""

    def __init__(
        self,
        application: str,
        webhook_id: str,
        source: Source,
        purse: Purse,
        cars: Cars,
        clock: Clock,
        log: Log,
    ) -> None:
        self._application = application
        self._webhook_id = webhook_id
        self._source = source
        self._purse = purse
        self._cars = cars
        self._clock = clock
        self._log = log.bind(application=application)
        self._someone_new = asyncio.Event()
        self._left_alone: dict[VehicleId, tuple[datetime, timedelta]] = {}
        self._said: set[str] = set()
        self._failures = 0

    def follow(self, car: Car) -> None:
        """The car changed: it may have come, or been consented to anew."""
        if self._wanting(car):
            self._someone_new.set()

    async def run(self) -> None:
        """Subscribe for ever."""
        while True:
            if await self._round():
                self._failures = 0
                await pause(self._clock, EVERY, unless=self._someone_new)
            else:
                wait = min(SHORTEST_PAUSE * 2 ** min(self._failures, 10), LONGEST_PAUSE)
                self._failures += 1
                await self._clock.sleep(wait)

    def _wanting(self, car: Car) -> bool:
        vehicle = car.vehicle
        if vehicle.consent.application != self._application or not car.consented:
            return False
        since, span = self._left_alone.get(car.id, (self._clock.now(), timedelta()))
        if timedelta() <= self._clock.now() - since < span:
            return False
        return vehicle.subscription != subscription_of(self._webhook_id, vehicle.consent.connection_id)

    async def _round(self) -> bool:
        """Every car that wants it. False: something failed that is no single car's."""
        in_a_row = 0
        for number, car in enumerate(self._cars.fleet):
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            if not self._wanting(self._cars.fleet[car.id]):
                continue
            try:
                await self._subscribe(car)
                in_a_row = 0
            except _OF_ALL_CARS as error:
                self._say(error)
                return False
            except Unreachable as error:
                self._leave_alone(car, UNREACHABLE_FOR)
                self._say(error)
                in_a_row += 1
                if in_a_row == MOST_UNREACHABLE:
                    return False
            except SourceError as error:
                self._leave_alone(car, REFUSED_FOR)
                self._say(error)
            except Exception:
                # Whatever one car's answer does to us, every other car is subscribed.
                self._leave_alone(car, REFUSED_FOR)
                self._log.exception("webhook.subscription_bug", vehicle=car.slug)
        return True

    def _leave_alone(self, car: Car, span: timedelta) -> None:
        self._left_alone[car.id] = (self._clock.now(), span)

    async def _subscribe(self, car: Car) -> None:
        consent = car.vehicle.consent
        await self._source.subscribe(consent, self._webhook_id, self._purse.ticket(None))
        now = self._clock.now()

        def subscribed(current: Car) -> Car:
            known = subscription_of(self._webhook_id, consent.connection_id)
            after = replace(current, vehicle=replace(current.vehicle, subscription=known))
            due = current.schedule.due
            if current.reading_id is not None or due is None:
                return after
            soon = subscribed_now(self._cars.fleet.profile(current), current.schedule.polled_at, now)
            if soon.at is None or soon.at >= due:
                return after
            return replace(after, schedule=replace(after.schedule, due=soon.at, reason=soon.reason))

        await self._cars.change(car.id, subscribed)
        self._log.info("vehicle.subscribed", vehicle=car.slug)

    def _say(self, error: SourceError | StoreError) -> None:
        code = error.code if isinstance(error, SourceError) else "STORE"
        detail = error.detail if isinstance(error, SourceError) else str(error)
        if code not in self._said:
            self._said.add(code)
            self._log.warning("webhook.not_subscribed", code=code, detail=detail)
