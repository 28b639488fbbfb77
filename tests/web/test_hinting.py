"""Wall boxes that speak HTTP alone: what they say is handed on, and what becomes of it is answered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evbatteryd.domain.hinting import HintAnswer, HintOutcome
from evbatteryd.web.guard import Access
from tests.web.builders import car
from tests.web.conftest import AT_THE_MACHINE, LOCAL_KEY, Serve, Site

KEY = {"Authorization": f"Bearer {LOCAL_KEY}"}
EXPOSED = Access(local_key=LOCAL_KEY, public_url="https://ev.example.org", open_to_read=True)


async def told(site: Site, body: object, slug: str = "car_1", **headers: str) -> tuple[int, dict]:
    where = f"{site.url}/api/vehicles/{slug}/event"
    async with site.client.post(where, json=body, headers=KEY | headers) as answer:
        return answer.status, await answer.json()


async def test_an_event_is_handed_on_and_answered(serve: Serve) -> None:
    async with serve(car(1)) as site:
        assert await told(site, {"event": "plugged_in"}) == (
            200,
            {
                "event": "plugged_in",
                "result": "taken",
                "reason": "asked soon",
                "next_poll": "2026-11-22T12:03:00Z",
            },
        )
        assert site.hints.heard == [("car_1", "plugged_in", "http")]


async def test_who_may_tell_is_who_may_manage(serve: Serve) -> None:
    """A page of another site must not be able to make the operator's browser say it, either."""
    for access, headers, status in (
        (EXPOSED, {}, 401),
        (EXPOSED, {"Authorization": "Bearer wrong"}, 401),
        (EXPOSED, KEY, 200),
        (AT_THE_MACHINE, {}, 403),
        (AT_THE_MACHINE, {"Origin": "https://evil.example"}, 403),
        (AT_THE_MACHINE, KEY, 200),
    ):
        async with serve(car(1), access=access) as site:
            where, body = f"{site.url}/api/vehicles/car_1/event", {"event": "arrived"}
            async with site.client.post(where, json=body, headers=headers) as answer:
                assert answer.status == status, headers
            assert len(site.hints.heard) == (status == 200)


@pytest.mark.parametrize(
    ("outcome", "status", "result"),
    [
        (HintOutcome.PUT_OFF, 200, "put_off"),
        (HintOutcome.REPEATED, 200, "put_off"),
        (HintOutcome.UNKNOWN_EVENT, 400, "refused"),
        (HintOutcome.UNKNOWN_VEHICLE, 404, "refused"),
        (HintOutcome.NOT_READ, 409, "refused"),
        (HintOutcome.CHATTERING, 429, "refused"),
        (HintOutcome.FAILED, 500, "refused"),
        (HintOutcome.NOT_KEPT, 503, "refused"),
    ],
)
async def test_the_status_says_what_became_of_it(
    serve: Serve, outcome: HintOutcome, status: int, result: str
) -> None:
    async with serve(car(1)) as site:
        site.hints.answer = HintAnswer(event="arrived", outcome=outcome, reason="because")
        said = {"event": "arrived", "result": result, "reason": "because", "next_poll": None}
        assert await told(site, {"event": "arrived"}) == (status, said)


async def test_a_vehicle_that_there_is_not_is_for_whoever_takes_hints_to_refuse(serve: Serve) -> None:
    """They know where a renamed car is."""
    async with serve(car(1)) as site:
        site.hints.answer = replace(site.hints.answer, outcome=HintOutcome.UNKNOWN_VEHICLE)
        status, _ = await told(site, {"event": "arrived"}, slug="ghost")
        assert (status, site.hints.heard) == (404, [("ghost", "arrived", "http")])


@pytest.mark.parametrize(
    "body", [None, [], "plugged_in", {}, {"event": None}, {"event": 1}, {"event": "arrived", "at": "noon"}]
)
async def test_what_holds_no_event_is_a_clean_refusal(serve: Serve, body: object) -> None:
    async with serve(car(1)) as site:
        status, answer = await told(site, body)
        assert (status, site.hints.heard) == (400, [])
        assert "plugged_in" in answer["error"]


async def test_a_body_that_is_no_json_is_a_clean_refusal(serve: Serve) -> None:
    async with serve(car(1)) as site:
        where = f"{site.url}/api/vehicles/car_1/event"
        for body, status in ((b"", 400), (b"\xff{", 400), (b"{" * 200_000, 413)):
            async with site.client.post(where, data=body, headers=KEY) as answer:
                assert answer.status == status
        assert site.hints.heard == []
