"""Forecasts how the plans' periods will end, and tells the metrics so from time to time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from datetime import datetime, timedelta
from itertools import islice
from typing import Final

from evbatteryd.domain.fleet import Car, Fleet
from evbatteryd.domain.forecast import (
    CarFacts,
    CarForecast,
    Forecast,
    Survey,
    Terms,
    car_forecast,
    facts_of,
)
from evbatteryd.domain.ledger import Window
from evbatteryd.domain.ports import Clock, Ledger, Tally

EVERY: Final = timedelta(minutes=15)
"""How often the metrics are brought up to date. A forecast of days does not change faster."""
CARS_PER_SLICE: Final = 100
"""A few milliseconds of work between two turns of the event loop."""


class Forecaster:
    """Implements :class:`evbatteryd.domain.ports.Forecasts`. ``price_of``: of a car's next call, in pp·s."""

    def __init__(
        self,
        fleet: Fleet,
        ledgers: Mapping[str, Ledger],
        clock: Clock,
        tally: Tally,
        *,
        price_of: Callable[[Car], float],
    ) -> None:
        self._fleet = fleet
        self._ledgers = ledgers
        self._clock = clock
        self._tally = tally
        self._price_of = price_of

    @property
    def applications(self) -> Collection[str]:
        return self._ledgers.keys()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            for application in self._ledgers:
                self._tally.forecast(await self.forecast(application))
            await self._clock.sleep(EVERY)

    async def forecast(self, application: str, other_calls: int | None = None) -> Forecast:
        now = self._clock.now()
        terms = self._terms(application)
        survey = Survey(terms, now, other_calls)
        async for some in self._sliced(application):
            for car in some:
                survey.add(self._facts(car, terms, now))
        return survey.forecast()

    async def cars(self, forecast: Forecast) -> AsyncIterator[list[tuple[Car, CarForecast]]]:
        terms = forecast.terms
        async for some in self._sliced(terms.application):
            yield [(car, car_forecast(self._facts(car, terms, forecast.now), forecast)) for car in some]

    async def _sliced(self, application: str) -> AsyncIterator[list[Car]]:
        """The enrolled cars of an application, giving way to the event loop between slices."""
        cars = iter(self._fleet)
        while some := list(islice(cars, CARS_PER_SLICE)):
            yield [
                car
                for car in some
                if car.vehicle.consent.application == application and car.vehicle.withdrawn_at is None
            ]
            await asyncio.sleep(0)

    def _terms(self, application: str) -> Terms:
        ledger = self._ledgers[application]
        share = ledger.share(None)
        return Terms(
            application=application,
            budget=ledger.budget,
            window=Window(share.began_at, share.renews_at),
            cars=share.cars,
            pool_spent=share.pool_spent,
            tokens=ledger.tokens,
        )

    def _facts(self, car: Car, terms: Terms, now: datetime) -> CarFacts:
        spent = self._ledgers[terms.application].spent(car.id)
        return facts_of(car, self._fleet.profile(car), spent, self._price_of(car), terms, now)
