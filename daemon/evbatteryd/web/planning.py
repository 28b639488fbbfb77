"""What the plans buy until they renew: ``/api/plan``. It names applications and cars: for operators."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from datetime import timedelta

import orjson
from aiohttp import web

from evbatteryd.domain.fleet import Car
from evbatteryd.domain.forecast import CarForecast, Forecast, advice
from evbatteryd.domain.ports import Clock, Forecasts
from evbatteryd.problems import did_you_mean
from evbatteryd.web.answers import JSON, as_json, whole_number


def routes(forecasts: Forecasts, clock: Clock) -> Iterable[web.AbstractRouteDef]:
    return [web.get("/api/plan", _Planning(forecasts, clock).plan)]


class _Planning:
    def __init__(self, forecasts: Forecasts, clock: Clock) -> None:
        self._forecasts = forecasts
        self._clock = clock

    async def plan(self, request: web.Request) -> web.StreamResponse:
        """``application``: of one alone; ``calls``: beside that plan; ``vehicles=1``: of each car, too."""
        asked = request.query
        applications = self._applications(asked.get("application"))
        calls = whole_number(asked["calls"]) if "calls" in asked else None
        if "calls" in asked and not calls:
            raise web.HTTPBadRequest(text="calls is a whole number from 1 on: calls per vehicle and period")
        if asked.get("vehicles", "0") not in ("0", "1"):
            raise web.HTTPBadRequest(text="vehicles is 0 or 1")
        found = [await self._forecasts.forecast(application, calls) for application in applications]
        told = {"now": self._clock.now(), "applications": [_application_json(one) for one in found]}
        if asked.get("vehicles", "0") == "0":
            return as_json(told)
        return await self._with_vehicles(request, told, found)

    def _applications(self, name: str | None) -> list[str]:
        known = sorted(self._forecasts.applications)
        if name is None:
            return known
        if name not in known:
            raise web.HTTPNotFound(text=f"there is no application {name[:80]!r}. {did_you_mean(name, known)}")
        return [name]

    async def _with_vehicles(
        self, request: web.Request, told: dict[str, object], found: list[Forecast]
    ) -> web.StreamResponse:
        """One document, written in slices: the cars of a large fleet are many."""
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        head = orjson.dumps(told, option=JSON).removesuffix(b"}")
        await response.write(head + b',"vehicles":[')
        separator = b""
        async for rows in self._rows(found):
            await response.write(separator + b",".join(orjson.dumps(row, option=JSON) for row in rows))
            separator = b","
        await response.write(b"]}\n")
        await response.write_eof()
        return response

    async def _rows(self, found: list[Forecast]) -> AsyncIterator[list[dict[str, object]]]:
        for forecast in found:
            async for some in self._forecasts.cars(forecast):
                if some:
                    yield [_car_json(car, its, forecast) for car, its in some]


def _application_json(forecast: Forecast) -> dict[str, object]:
    terms = forecast.terms
    return {
        "application": terms.application,
        "calls_per_vehicle": terms.budget.calls_per_vehicle,
        "period": terms.budget.period,
        "pooled": terms.budget.pooled,
        "began_at": terms.window.start,
        "renews_at": terms.window.end,
        "vehicles": forecast.cars,
        "standings": {standing.value: cars for standing, cars in forecast.standings.items()},
        "calls": forecast.plan,
        "spent": forecast.spent,
        "left": forecast.left,
        "expected": forecast.expected,
        "even_per_day": round(forecast.even_per_day, 2),
        "pace_per_day": round(forecast.pace_per_day, 2),
        "interval_s": _seconds(forecast.interval),
        "run_out": forecast.run_out,
        "first_out": forecast.first_out,
        "limited_by": forecast.binding,
        "price": _whole(forecast.price),
        "other_calls_per_vehicle": forecast.other_calls,
        "gain": _hundredths(forecast.gain_percent),
        "advice": advice(forecast),
    }


def _car_json(car: Car, its: CarForecast, forecast: Forecast) -> dict[str, object]:
    return {
        "slug": car.slug,
        "name": car.vehicle.name,
        "application": forecast.terms.application,
        "spent": its.spent,
        "left": round(its.left, 2),
        "calls_per_day": round(its.calls_per_day, 2),
        "interval_s": _seconds(its.interval),
        "standing": its.standing,
        "price": _whole(its.price),
        "next_poll": car.schedule.due,
        "reason": car.schedule.reason,
    }


def _seconds(span: timedelta | None) -> int | None:
    return None if span is None else round(span.total_seconds())


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _hundredths(value: float | None) -> float | None:
    """0 without a sign."""
    return None if value is None else round(value, 2) + 0.0
