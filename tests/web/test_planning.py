"""What the plans buy, over HTTP: of every application, of every car, and what is asked wrongly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from evbatteryd.domain.forecast import REALISED
from evbatteryd.domain.ledger import Budget, Share, window
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.web.guard import Access
from tests.fakes import START
from tests.web.builders import car
from tests.web.conftest import LOCAL_KEY, Serve

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Book:
    """A ledger as it stands at noon on the 22nd: 21.5 days of a month of 30 have passed."""

    budget: Budget = field(default_factory=Budget)
    calls: Mapping[int, int] = field(default_factory=dict)
    """Spent, by the car's number."""
    tokens: float = 100.0

    def share(self, vehicle_id: VehicleId | None) -> Share:
        period = window(self.budget, START)
        return Share(
            calls_left=self.budget.calls_per_vehicle,
            calls=self.budget.calls_per_vehicle,
            began_at=period.start,
            renews_at=period.end,
            application_interval=timedelta(minutes=1),
            cars=max(len(self.calls), 1),
            pool_spent=sum(self.calls.values()) if self.budget.pooled else None,
        )

    def spent(self, vehicle_id: VehicleId) -> int:
        return self.calls.get(vehicle_id, 0)


HOME = Book(calls={1: 30, 2: 5})
"""Cars of the tests are enrolled at the very moment. So the 30 count as those of the first 6 hours, and the
even pace is added; the 5 of the car that is pushed count as those of a day."""


async def test_an_application(serve: Serve) -> None:
    pushed = car(2, slug="leaf", pushed_at=START)
    async with serve(
        car(1), pushed, car(3, application="away"), ledgers={"home": HOME}, price=9e5 + 0.4
    ) as site:
        told = await site.json("/api/plan")
    assert set(told) == {"now", "applications"}
    (home,) = told["applications"]
    even = 470 / 8.5
    pace, floor = even + 120, 288
    assert home.pop("gain") == round(REALISED * 9e5 * pace / 86400 * (1 - pace / floor) / 2, 2)
    assert home.pop("advice").startswith(
        "1000 calls per vehicle and month instead of 500 would lower the mean"
    )
    assert home == {
        "application": "home",
        "calls_per_vehicle": 500,
        "period": "month",
        "pooled": False,
        "began_at": "2026-11-01T00:00:00Z",
        "renews_at": "2026-12-01T00:00:00Z",
        "vehicles": 2,
        "standings": {"polled": 1, "pushed": 1, "silent": 0, "spent": 0, "not_asked": 0},
        "calls": 1000,
        "spent": 35,
        "left": 965,
        "expected": 35 + 512,
        "even_per_day": round(965 / 8.5, 2),
        "pace_per_day": round(even + 120 + 5, 2),
        "interval_s": 1563,
        "run_out": 0,
        "first_out": None,
        "limited_by": "plan",
        "price": 900_000,
        "other_calls_per_vehicle": 1000,
    }


async def test_each_car(serve: Serve) -> None:
    ledgers = {"home": HOME, "away": Book(Budget(calls_per_vehicle=2))}
    cars = (car(1, slug="zoe", name="Zoë"), car(2, slug="leaf", due=None, reason="lost"))
    gone, far = car(4, withdrawn_at=START), car(3, application="away")
    async with serve(*cars, far, gone, car(5, application="former"), ledgers=ledgers) as site:
        told = await site.json("/api/plan?vehicles=1")
        assert [one["application"] for one in told["applications"]] == ["away", "home"]
        away, zoe, leaf = told["vehicles"]
        assert (away["application"], away["left"]) == ("away", 2)
        assert zoe == {
            "slug": "zoe",
            "name": "Zoë",
            "application": "home",
            "spent": 30,
            "left": 470,
            "calls_per_day": round(470 / 8.5, 2),
            "interval_s": 1563,
            "standing": "polled",
            "price": None,
            "next_poll": "2026-11-22T13:00:00Z",
            "reason": "parked; Example every 2 h",
        }
        assert (leaf["standing"], leaf["interval_s"], leaf["calls_per_day"]) == ("not_asked", None, 0)
        only = await site.json("/api/plan?application=away&vehicles=1")
        assert [one["slug"] for one in only["vehicles"]] == ["car_3"]
        assert len(only["applications"]) == 1


async def test_figures_are_round(serve: Serve) -> None:
    async with serve(car(1), ledgers={"home": HOME}, price=1234.56) as site:
        told = await site.json("/api/plan?vehicles=1&calls=499")
    (home,), (one,) = told["applications"], told["vehicles"]
    for figure in (home["price"], one["price"], home["interval_s"], one["interval_s"]):
        assert isinstance(figure, int), figure
    assert home["price"] == one["price"] == 1235
    async with serve(car(1), ledgers={"home": HOME}, price=0.01) as site:
        (home,) = (await site.json("/api/plan?calls=499"))["applications"]
    assert str(home["gain"]) == "0.0", "not -0.0"


async def test_a_large_fleet_comes_whole(serve: Serve) -> None:
    async with serve(*(car(number) for number in range(1, 1002)), ledgers={"home": Book()}) as site:
        told = await site.json("/api/plan?vehicles=1")
        async with site.client.head(site.url + "/api/plan?vehicles=1") as answer:
            assert (answer.status, answer.content_type) == (200, "application/json")
    assert len({one["slug"] for one in told["vehicles"]}) == 1001
    assert told["applications"][0]["vehicles"] == 1001


async def test_no_application_and_no_cars(serve: Serve) -> None:
    async with serve() as site:
        told = await site.json("/api/plan?vehicles=1")
        assert (told["applications"], told["vehicles"]) == ([], [])


async def test_another_plan(serve: Serve) -> None:
    async with serve(car(1), ledgers={"home": HOME}, price=9e5) as site:
        (home,) = (await site.json("/api/plan?calls=250"))["applications"]
    assert home["other_calls_per_vehicle"] == 250
    assert home["gain"] < 0
    assert "would raise" in home["advice"]


@pytest.mark.parametrize(
    ("query", "status", "why"),
    [
        ("application=hoem", 404, "there is no application 'hoem'. Did you mean 'home'?"),
        ("calls=0", 400, "calls is a whole number from 1 on"),
        ("calls=many", 400, "calls is a whole number from 1 on"),
        ("calls=-5", 400, "calls is a whole number from 1 on"),
        ("vehicles=yes", 400, "vehicles is 0 or 1"),
    ],
)
async def test_what_cannot_be_asked(serve: Serve, query: str, status: int, why: str) -> None:
    async with (
        serve(car(1), ledgers={"home": HOME}) as site,
        site.client.get(f"{site.url}/api/plan?{query}") as answer,
    ):
        told = await answer.json()
    assert (answer.status, told["status"]) == (status, status)
    assert told["error"].startswith(why)


async def test_readers_are_not_told(serve: Serve) -> None:
    access = Access(local_key=LOCAL_KEY, public_url="https://ev.example.org", open_to_read=True)
    async with (
        serve(car(1), ledgers={"home": HOME}, access=access) as site,
        site.client.get(site.url + "/api/plan") as answer,
    ):
        assert answer.status == 401
        assert "home" not in await answer.text()
