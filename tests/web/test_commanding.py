"""Commands over HTTP: handed on as text, answered with the final answer, or with what is known by then."""

from __future__ import annotations

import pytest

from evbatteryd.domain.commanding import CommandKind, CommandOutcome
from evbatteryd.web import commanding
from evbatteryd.web.guard import Access
from tests.web.builders import car, command_answer
from tests.web.conftest import AT_THE_MACHINE, LOCAL_KEY, Serve, Site

KEY = {"Authorization": f"Bearer {LOCAL_KEY}"}
EXPOSED = Access(local_key=LOCAL_KEY, public_url="https://ev.example.org", open_to_read=True)


async def told(site: Site, command: str, body: object = None, slug: str = "car_1") -> tuple[int, dict]:
    where = f"{site.url}/api/vehicles/{slug}/{command}"
    async with site.client.post(where, json=body, headers=KEY) as answer:
        return answer.status, await answer.json()


@pytest.mark.parametrize("sent", [{"json": {}}, {}])
async def test_a_poll_is_handed_on_and_answered(serve: Serve, sent: dict[str, object]) -> None:
    async with serve(car(1)) as site:
        async with site.client.post(f"{site.url}/api/vehicles/car_1/poll", headers=KEY, **sent) as answer:
            assert (answer.status, await answer.json()) == (
                200,
                {
                    "command": "poll",
                    "value": None,
                    "result": "done",
                    "outcome": "done",
                    "reason": "a new reading: 63 % measured 2 min ago",
                    "final": True,
                    "calls": 1,
                    "calls_left": 36,
                    "next_poll": "2026-11-22T12:03:00Z",
                    "reading_id": "r-1",
                },
            )
        assert site.commands.heard == [("car_1", CommandKind.POLL, "now", "http")]


@pytest.mark.parametrize(
    ("command", "value", "text"),
    [
        ("charging", "on", "on"),
        ("charging", True, "true"),
        ("charging", False, "false"),
        ("charge_limit", 80, "80"),
        ("charge_limit", 80.0, "80.0"),
        ("charge_limit", "80", "80"),
    ],
)
async def test_a_value_is_handed_on_written_out(serve: Serve, command: str, value: object, text: str) -> None:
    async with serve(car(1)) as site:
        status, _ = await told(site, command, {"value": value})
        assert (status, site.commands.heard) == (200, [("car_1", CommandKind(command), text, "http")])


async def test_the_final_answer_is_waited_for(serve: Serve) -> None:
    async with serve(car(1)) as site:
        site.commands.answers = [
            command_answer(CommandOutcome.PENDING, final=False),
            command_answer(CommandOutcome.CONFIRMED, reason="it is charging now"),
        ]
        status, document = await told(site, "charging", {"value": "on"})
        assert (status, document["outcome"], document["final"]) == (200, "confirmed", True)


@pytest.mark.parametrize(("said", "outcome"), [([CommandOutcome.DONE], "done"), ([], "pending")])
async def test_what_is_known_is_told_when_it_takes_long(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, said: list[CommandOutcome], outcome: str
) -> None:
    monkeypatch.setattr(commanding, "ANSWERED_WITHIN_S", 0.02)
    async with serve(car(1)) as site:
        site.commands.answers = [command_answer(one, final=False) for one in said]
        site.commands.endless = True
        status, document = await told(site, "charging", {"value": "on"})
        assert (status, document["outcome"], document["final"]) == (202, outcome, False)


@pytest.mark.parametrize(
    ("outcome", "status", "result"),
    [
        (CommandOutcome.UNCONFIRMED, 200, "unconfirmed"),
        (CommandOutcome.NOT_UNDERSTOOD, 400, "refused"),
        (CommandOutcome.NOT_PERMITTED, 403, "refused"),
        (CommandOutcome.UNKNOWN_VEHICLE, 404, "refused"),
        (CommandOutcome.NOT_READ, 409, "refused"),
        (CommandOutcome.NOT_CAPABLE, 409, "refused"),
        (CommandOutcome.NOT_NOW, 409, "refused"),
        (CommandOutcome.UNDER_WAY, 409, "refused"),
        (CommandOutcome.BUDGET_SPENT, 429, "refused"),
        (CommandOutcome.CHATTERING, 429, "refused"),
        (CommandOutcome.FAILED, 502, "failed"),
    ],
)
async def test_the_status_says_what_became_of_it(
    serve: Serve, outcome: CommandOutcome, status: int, result: str
) -> None:
    async with serve(car(1)) as site:
        site.commands.answers = [command_answer(outcome)]
        found, document = await told(site, "charging", {"value": "on"}, slug="whoever")
        assert (found, document["result"], document["outcome"]) == (status, result, outcome)


@pytest.mark.parametrize("command", ["poll", "charging", "charge_limit"])
async def test_who_may_command_is_who_may_manage(serve: Serve, command: str) -> None:
    """It costs calls and acts on a car; another site's page must not make the operator's browser say it."""
    body = {} if command == "poll" else {"value": 80}
    for access, headers, status in (
        (EXPOSED, {}, 401),
        (EXPOSED, {"Authorization": "Bearer wrong"}, 401),
        (EXPOSED, KEY, 200),
        (AT_THE_MACHINE, {}, 403),
        (AT_THE_MACHINE, {"Origin": "https://evil.example"}, 403),
        (AT_THE_MACHINE, KEY, 200),
    ):
        async with serve(car(1), access=access) as site:
            where = f"{site.url}/api/vehicles/car_1/{command}"
            async with site.client.post(where, json=body, headers=headers) as answer:
                assert answer.status == status, headers
            assert len(site.commands.heard) == (status == 200)


@pytest.mark.parametrize(
    ("command", "body"),
    [
        ("poll", {"value": "now"}),
        ("poll", []),
        ("charging", {}),
        ("charging", {"value": None}),
        ("charging", {"value": ["on"]}),
        ("charging", {"value": "on", "at": "noon"}),
        ("charge_limit", "80"),
    ],
)
async def test_what_holds_no_command_is_a_clean_refusal(serve: Serve, command: str, body: object) -> None:
    async with serve(car(1)) as site:
        status, document = await told(site, command, body)
        assert (status, site.commands.heard) == (400, [])
        assert "JSON object" in document["error"]


async def test_a_body_that_is_no_json_is_a_clean_refusal(serve: Serve) -> None:
    async with serve(car(1)) as site:
        for body, status in ((b"\xff{", 400), (b"{" * 200_000, 413)):
            where = f"{site.url}/api/vehicles/car_1/charging"
            async with site.client.post(where, data=body, headers=KEY) as answer:
                assert answer.status == status
        assert site.commands.heard == []
