"""The Smartcar source against a real HTTP server that misbehaves as told."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from aiohttp import web

from evbatteryd.clock import FastClock
from evbatteryd.domain import errors
from evbatteryd.domain.ports import Clock
from evbatteryd.domain.profile import BrandProfile
from evbatteryd.domain.reading import Signal
from evbatteryd.domain.vehicle import Consent, Vehicle, VehicleId
from evbatteryd.simulator import Simulator, SimulatorOptions
from evbatteryd.sources.smartcar import (
    LARGEST_BODY,
    SmartcarOptions,
    SmartcarSource,
    open_http,
    open_smartcar,
)
from tests.fakes import START, CountingTicket, VirtualClock, until
from tests.simulator.conftest import HandClock

SECRET = "cl13nt-s3cr3t"
PROFILE = BrandProfile(
    brand="renault",
    name="Renault",
    makes=("RENAULT",),
    reports=timedelta(minutes=30),
    silence=timedelta(days=7),
    driving=timedelta(minutes=30),
    charging=timedelta(minutes=30),
    parked=timedelta(hours=2),
    idle=timedelta(hours=6),
    floor=timedelta(minutes=5),
    latency=timedelta(seconds=8),
)
CONSENT = Consent(application="home", connection_id="c1", vehicle_ref="v1", user_ref="u1", make="RENAULT")
VEHICLE = Vehicle(
    id=VehicleId(1), slug="renault", name="Renault", brand="renault", consent=CONSENT, enrolled_at=START
)
USER = "7b1f4a52-0c1d-4f5e-9a37-2f1d6c9e8b10"
"""Personal: it may be sent to Smartcar, and shown nowhere."""
OWNED = replace(CONSENT, user_ref=USER)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def soc(value: float = 50) -> dict[str, object]:
    return {
        "id": "tractionbattery-stateofcharge",
        "attributes": {
            "code": "tractionbattery-stateofcharge",
            "status": {"value": "SUCCESS"},
            "body": {"value": value, "unit": "percent"},
        },
        "meta": {"oemUpdatedAt": 1767920401000},
    }


def connection(number: int, user: str = USER) -> dict[str, object]:
    return {
        "id": f"c{number}",
        "attributes": {"vehicle": {"make": "BMW"}},
        "relationships": {"vehicle": {"data": {"id": f"v{number}"}}, "user": {"data": {"id": user}}},
    }


class Smartcar:
    """Answers tokens by itself and everything else by ``answer``; remembers what it was asked."""

    def __init__(self) -> None:
        self.tokens_given = 0
        self.expires_in = 3600
        self.asked: list[web.Request] = []
        self.answer: Handler = self.fine
        self.token_answer: Handler = self.token
        self.origin = ""

    async def fine(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [soc()], "links": {"next": None}})

    async def token(self, request: web.Request) -> web.Response:
        form = await request.post()
        if (form.get("client_id"), form.get("client_secret")) != ("client_1", SECRET):
            return web.json_response({"error": "invalid_client"}, status=401)
        self.tokens_given += 1
        return web.json_response(
            {
                "access_token": f"token-{self.tokens_given}",
                "token_type": "Bearer",
                "expires_in": self.expires_in,
            }
        )

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/oauth2/token":
            return await self.token_answer(request)
        self.asked.append(request)
        return await self.answer(request)


@contextlib.asynccontextmanager
async def serve(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


@pytest.fixture
async def smartcar() -> AsyncIterator[Smartcar]:
    smartcar = Smartcar()
    async with serve(smartcar.handle) as smartcar.origin:
        yield smartcar


@contextlib.asynccontextmanager
async def source_at(
    origin: str,
    clock: Clock,
    learnt: list[str] | None = None,
    secret: str = SECRET,
    management_origin: str | None = None,
) -> AsyncIterator[SmartcarSource]:
    options = SmartcarOptions(
        application="home",
        client_id="client_1",
        client_secret=secret,
        iam_origin=origin,
        vehicle_origin=origin,
        management_origin=management_origin or origin,
    )
    async with open_http(clock) as http:
        yield open_smartcar(
            options, http, clock, CountingTicket, (learnt if learnt is not None else []).append
        )


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def ticket() -> CountingTicket:
    return CountingTicket()


async def test_a_poll_is_one_call_with_token_and_user(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    learnt: list[str] = []
    async with source_at(smartcar.origin, clock, learnt) as source:
        observation = await source.fetch(VEHICLE, PROFILE, ticket)
    (request,) = smartcar.asked
    assert request.path == "/v3/vehicles/v1/signals"
    assert request.headers["Authorization"] == "Bearer token-1"
    assert request.headers["sc-user-id"] == "u1"
    assert [(m.signal, m.value, m.fetched_at) for m in observation.measurements] == [
        (Signal.SOC, 50.0, START)
    ]
    assert ticket.spent == 1
    assert learnt == ["token-1"]


async def test_fifty_cars_that_need_a_token_ask_for_one(smartcar: Smartcar, clock: VirtualClock) -> None:
    async with source_at(smartcar.origin, clock) as source:
        await asyncio.gather(*(source.fetch(VEHICLE, PROFILE, CountingTicket()) for _ in range(50)))
    assert smartcar.tokens_given == 1
    assert len(smartcar.asked) == 50


async def test_the_token_is_renewed_before_it_expires(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    async with source_at(smartcar.origin, clock) as source:
        await source.fetch(VEHICLE, PROFILE, ticket)
        await clock.advance(timedelta(minutes=50))
        await source.fetch(VEHICLE, PROFILE, ticket)
        assert smartcar.tokens_given == 1
        await clock.advance(timedelta(minutes=9))
        await source.fetch(VEHICLE, PROFILE, ticket)  # nobody waits for the new one
        assert smartcar.asked[-1].headers["Authorization"] == "Bearer token-1"
        await until(lambda: smartcar.tokens_given == 2)
        await asyncio.sleep(0.01)
        await source.fetch(VEHICLE, PROFILE, ticket)
    assert smartcar.asked[-1].headers["Authorization"] == "Bearer token-2"


async def test_a_token_that_is_still_good_serves_while_it_cannot_be_renewed(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    async def down(request: web.Request) -> web.Response:
        return web.Response(status=503)

    async with source_at(smartcar.origin, clock) as source:
        await source.fetch(VEHICLE, PROFILE, ticket)
        smartcar.token_answer = down
        await clock.advance(timedelta(minutes=58))
        await source.fetch(VEHICLE, PROFILE, ticket)
        await clock.advance(timedelta(minutes=3))
        with pytest.raises(errors.Unreachable):
            await source.fetch(VEHICLE, PROFILE, ticket)
    assert ticket.spent == 2


async def test_a_refused_token_is_fetched_anew_once(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    async def refuses_the_first(request: web.Request) -> web.Response:
        if request.headers["Authorization"] == "Bearer token-1":
            body = {"errors": [{"status": "401", "type": "AUTHENTICATION", "code": "UNAUTHORIZED"}]}
            return web.json_response(body, status=401)
        return await smartcar.fine(request)

    smartcar.answer = refuses_the_first
    async with source_at(smartcar.origin, clock) as source:
        observation = await source.fetch(VEHICLE, PROFILE, ticket)
    assert observation.measurements
    assert smartcar.tokens_given == 2
    assert ticket.spent == 2


async def test_a_token_endpoint_that_hangs_stops_nobody_while_the_token_is_good(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    async with source_at(smartcar.origin, clock) as source:
        await source.fetch(VEHICLE, PROFILE, ticket)
        smartcar.token_answer = _hang
        await clock.advance(timedelta(minutes=58))
        for _ in range(3):
            assert (await source.fetch(VEHICLE, PROFILE, ticket)).measurements


@pytest.mark.parametrize("link", ["https://[::bad/v3", "http://[", "//[x"])
async def test_a_next_page_that_is_no_address_is_unreadable(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket, link: str
) -> None:
    async def odd(request: web.Request) -> web.Response:
        return web.json_response({"data": [], "links": {"next": link}})

    smartcar.answer = odd
    async with source_at(smartcar.origin, clock) as source:
        with pytest.raises(errors.Unreadable):
            await source.fetch(VEHICLE, PROFILE, ticket)


async def test_when_every_token_is_refused_it_is_the_application_and_not_the_consent(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    async def refuses(request: web.Request) -> web.Response:
        return web.Response(status=401)

    smartcar.answer = refuses
    async with source_at(smartcar.origin, clock) as source:
        for _ in range(5):
            with pytest.raises(errors.ApplicationRefused):
                await source.fetch(VEHICLE, PROFILE, ticket)
        # The other cars need not find out by themselves.
        assert (len(smartcar.asked), smartcar.tokens_given) == (2, 2)
        smartcar.answer = smartcar.fine
        await clock.advance(timedelta(minutes=1))
        await source.fetch(VEHICLE, PROFILE, ticket)


async def test_a_wrong_secret_is_asked_once_for_all_cars_and_spends_no_call(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    attempts = 0

    async def counting(request: web.Request) -> web.Response:
        nonlocal attempts
        attempts += 1
        return await smartcar.token(request)

    smartcar.token_answer = counting
    async with source_at(smartcar.origin, clock, secret="wr0ng") as source:
        for _ in range(5):
            with pytest.raises(errors.ApplicationRefused) as told:
                await source.fetch(VEHICLE, PROFILE, ticket)
            assert "wr0ng" not in str(told.value)
        assert attempts == 1
        await clock.advance(timedelta(minutes=1))
        with pytest.raises(errors.ApplicationRefused):
            await source.fetch(VEHICLE, PROFILE, ticket)
    assert attempts == 2
    assert ticket.spent == 0


async def test_a_car_that_gives_up_waiting_leaves_the_token_to_the_others(
    smartcar: Smartcar, clock: VirtualClock
) -> None:
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        asked.set()
        await may_answer.wait()
        return await smartcar.token(request)

    smartcar.token_answer = slow
    async with source_at(smartcar.origin, clock) as source:
        impatient = asyncio.create_task(source.fetch(VEHICLE, PROFILE, CountingTicket()))
        patient = asyncio.create_task(source.fetch(VEHICLE, PROFILE, CountingTicket()))
        await asked.wait()
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
        may_answer.set()
        assert (await patient).measurements
    assert smartcar.tokens_given == 1


async def test_every_page_is_read_and_paid_for_and_our_token_stays_with_its_host(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    async def paged(request: web.Request) -> web.Response:
        number = int(request.query.get("page[number]", "1"))
        following = f"https://elsewhere.example/v3/other?page%5Bnumber%5D={number + 1}&page[size]=100"
        return web.json_response(
            {
                "data": [soc(number)] if number == 3 else [],
                "links": {"next": following if number < 3 else None},
            }
        )

    smartcar.answer = paged
    async with source_at(smartcar.origin, clock) as source:
        observation = await source.fetch(VEHICLE, PROFILE, ticket)
    assert observation.measurements[0].value == 3
    assert ticket.spent == 3
    assert {request.path for request in smartcar.asked} == {"/v3/vehicles/v1/signals"}


async def test_pages_that_lead_in_a_circle_end(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    async def circle(request: web.Request) -> web.Response:
        return web.json_response({"data": [], "links": {"next": "/v3/x?page[number]=2&page[size]=100"}})

    smartcar.answer = circle
    async with source_at(smartcar.origin, clock) as source:
        with pytest.raises(errors.Unreadable):
            await source.fetch(VEHICLE, PROFILE, ticket)
    assert ticket.spent == 2


async def _html(request: web.Request) -> web.Response:
    return web.Response(text="<html>maintenance</html>", content_type="text/html")


async def _malformed(request: web.Request) -> web.Response:
    return web.Response(body=b'{"data": [', content_type="application/json")


async def _truncated(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"data": [')
    assert request.transport is not None
    request.transport.close()
    return response


async def _huge(request: web.Request) -> web.Response:
    return web.Response(body=b" " * (10 << 20), content_type="application/json")


async def _bomb(request: web.Request) -> web.Response:
    response = web.Response(body=b" " * (LARGEST_BODY * 4), content_type="application/json")
    response.enable_compression(web.ContentCoding.gzip)
    return response


async def _redirect(request: web.Request) -> web.Response:
    return web.Response(status=302, headers={"Location": "https://elsewhere.example/"})


async def _list(request: web.Request) -> web.Response:
    return web.json_response([1, 2, 3])


async def _reset(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def _hang(request: web.Request) -> web.Response:
    await asyncio.sleep(3600)
    return web.Response()


async def _validation(request: web.Request) -> web.Response:
    return web.json_response({"errors": [{"type": "VALIDATION", "code": "INVALID_INPUT_FORMAT"}]}, status=400)


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        (_html, errors.Unreadable, "NOT_JSON"),
        (_malformed, errors.Unreadable, "NOT_JSON"),
        (_truncated, errors.Unreadable, "TRUNCATED"),
        (_huge, errors.Unreadable, "TOO_LARGE"),
        (_bomb, errors.Unreadable, "TOO_LARGE"),
        (_redirect, errors.Unreadable, "HTTP_302"),
        (_list, errors.Unreadable, "WRONG_SHAPE"),
        (_reset, errors.Unreachable, "DISCONNECTED"),
        (_validation, errors.Unreadable, "VALIDATION:INVALID_INPUT_FORMAT"),
    ],
)
async def test_bad_answers(
    smartcar: Smartcar,
    clock: VirtualClock,
    ticket: CountingTicket,
    answer: Handler,
    kind: type[errors.SourceError],
    code: str,
) -> None:
    smartcar.answer = answer
    async with source_at(smartcar.origin, clock) as source:
        with pytest.raises(kind) as told:
            await source.fetch(VEHICLE, PROFILE, ticket)
        assert told.value.code == code
        assert type(told.value) is kind
        # The session is as good as before.
        smartcar.answer = smartcar.fine
        assert (await source.fetch(VEHICLE, PROFILE, ticket)).measurements


async def test_an_answer_that_never_comes_ends_at_the_documented_maximum(smartcar: Smartcar) -> None:
    # 310 s of a clock that runs 10,000 times faster; no request is cut off under 5 real seconds.
    smartcar.answer = _hang
    async with source_at(smartcar.origin, FastClock(10_000)) as source:
        with pytest.raises(errors.Unreachable) as told:
            await source.fetch(VEHICLE, PROFILE, CountingTicket())
    assert told.value.code == "TIMEOUT"


async def test_a_request_that_the_client_repeats_by_itself_is_paid_for_before_it_is_sent(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    async def closes_kept_alive(request: web.Request) -> web.Response:
        if len(smartcar.asked) == 2:
            return await _reset(request)
        return await smartcar.fine(request)

    smartcar.answer = closes_kept_alive
    async with source_at(smartcar.origin, clock) as source:
        await source.fetch(VEHICLE, PROFILE, ticket)
        await source.fetch(VEHICLE, PROFILE, ticket)
    assert len(smartcar.asked) == 3
    assert ticket.spent == 3


async def test_a_repetition_that_cannot_be_paid_for_is_not_sent(
    smartcar: Smartcar, clock: VirtualClock
) -> None:
    class Two(CountingTicket):
        async def spend(self) -> None:
            if self.spent == 2:
                raise errors.BudgetSpent("BUDGET", "used up")
            await super().spend()

    async def closes_kept_alive(request: web.Request) -> web.Response:
        if len(smartcar.asked) == 2:
            return await _reset(request)
        return await smartcar.fine(request)

    smartcar.answer = closes_kept_alive
    ticket = Two()
    async with source_at(smartcar.origin, clock) as source:
        await source.fetch(VEHICLE, PROFILE, ticket)
        with pytest.raises(errors.BudgetSpent):
            await source.fetch(VEHICLE, PROFILE, ticket)
    assert len(smartcar.asked) == 2


async def test_nobody_listening(clock: VirtualClock, ticket: CountingTicket) -> None:
    async with serve(_html) as origin:
        pass
    async with source_at(origin, clock) as source:
        with pytest.raises(errors.Unreachable) as told:
            await source.fetch(VEHICLE, PROFILE, ticket)
    assert told.value.code == "CONNECT"
    assert ticket.spent == 0


async def test_a_certificate_that_nobody_vouches_for(
    clock: VirtualClock, ticket: CountingTicket, untrusted: ssl.SSLContext, smartcar: Smartcar
) -> None:
    async with serve(smartcar.handle, untrusted) as origin, source_at(origin, clock) as source:
        with pytest.raises(errors.Unreachable) as told:
            await source.fetch(VEHICLE, PROFILE, ticket)
    assert told.value.code == "TLS"


async def test_consents_are_listed_once_each_over_all_pages(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    async def paged(request: web.Request) -> web.Response:
        assert request.query["filter[vehicle.mode]"] == "live"
        number = int(request.query.get("page[number]", "1"))
        following = f"?page[number]={number + 1}&page[size]=100" if number < 3 else None
        return web.json_response({"data": [connection(number), connection(1)], "links": {"next": following}})

    smartcar.answer = paged
    async with source_at(smartcar.origin, clock) as source:
        found = [consent.vehicle_ref async for consent in source.consents(ticket)]
    assert found == ["v1", "v2", "v3"]
    assert ticket.spent == 3


@pytest.mark.parametrize("stands", [True, False])
async def test_one_consent_can_be_asked_for(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket, stands: bool
) -> None:
    async def listing(request: web.Request) -> web.Response:
        ref = request.query["filter[vehicleId]"]
        found = {
            "id": "c1",
            "relationships": {"vehicle": {"data": {"id": ref}}, "user": {"data": {"id": "u"}}},
        }
        return web.json_response({"data": [found] if stands else [], "links": {}})

    smartcar.answer = listing
    async with source_at(smartcar.origin, clock) as source:
        assert await source.consent_stands(CONSENT, ticket) is stands


async def test_a_hostile_vehicle_id_stays_inside_its_path(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    odd = replace(VEHICLE, consent=replace(CONSENT, vehicle_ref="../users/u1?x=1"))
    async with source_at(smartcar.origin, clock) as source:
        await source.fetch(odd, PROFILE, ticket)
    (request,) = smartcar.asked
    assert request.raw_path.startswith("/v3/vehicles/")
    assert "/users/u1?x" not in request.raw_path


def test_options_never_show_the_secret() -> None:
    options = SmartcarOptions(
        application="home",
        client_id="c",
        client_secret=SECRET,
        iam_origin="http://a",
        vehicle_origin="http://b",
        management_origin="http://c",
    )
    assert SECRET not in repr(options)


# --- consents of one user, their end, and subscriptions -----------------------------------------------------


def fails(status: int, kind: str | None = None, code: str | None = None) -> Handler:
    async def failing(request: web.Request) -> web.Response:
        if kind is None:
            return web.Response(status=status, text=f"<html>no {USER}</html>", content_type="text/html")
        error = {"status": str(status), "type": kind, "code": code, "detail": f"no user {USER}"}
        return web.json_response({"errors": [error]}, status=status)

    return failing


async def _ended(request: web.Request) -> web.Response:
    return web.Response(status=204)


async def _no_http(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.write(b"this is no HTTP at all\r\n\r\n")
    request.transport.close()
    return web.Response()


def everything_said(error: BaseException) -> str:
    """What a log could hold of it: its words, its traceback with all causes, and its excerpt."""
    return "".join(
        [*traceback.format_exception(error), str(error), repr(error), str(getattr(error, "excerpt", ""))]
    )


async def test_all_pages_of_one_user_s_consents_are_read(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    async def paged(request: web.Request) -> web.Response:
        assert request.query["filter[userId]"] == USER
        assert request.query["filter[vehicle.mode]"] == "live"
        number = int(request.query.get("page[number]", "1"))
        following = f"?page[number]={number + 1}&page[size]=100" if number < 3 else None
        return web.json_response({"data": [connection(number), connection(1)], "links": {"next": following}})

    smartcar.answer = paged
    async with source_at(smartcar.origin, clock) as source:
        found = await source.consents_of(USER, ticket)
    assert [(consent.vehicle_ref, consent.user_ref) for consent in found] == [
        (f"v{number}", USER) for number in (1, 2, 3)
    ]
    assert ticket.spent == 3


async def test_a_filter_that_is_not_heeded_gives_nobody_the_cars_of_others(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    async def everybody(request: web.Request) -> web.Response:
        return web.json_response({"data": [connection(1, "u-other"), connection(2)], "links": {}})

    smartcar.answer = everybody
    async with source_at(smartcar.origin, clock) as source:
        assert [consent.vehicle_ref for consent in await source.consents_of(USER, ticket)] == ["v2"]


async def test_a_car_of_two_users_is_each_one_s_though_the_filter_is_not_heeded(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    async def both(request: web.Request) -> web.Response:
        shared = [connection(1, "u-other"), connection(1), connection(1)]
        return web.json_response({"data": shared, "links": {}})

    smartcar.answer = both
    async with source_at(smartcar.origin, clock) as source:
        for user in (USER, "u-other"):
            found = await source.consents_of(user, ticket)
            assert [(consent.vehicle_ref, consent.user_ref) for consent in found] == [("v1", user)]


async def test_a_consent_is_ended_by_one_paid_request(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    smartcar.answer = _ended
    async with source_at(smartcar.origin, clock) as source:
        await source.revoke(replace(OWNED, connection_id="c/1?x"), ticket)
    (request,) = smartcar.asked
    assert (request.method, request.raw_path) == ("DELETE", "/v3/connections/c%2F1%3Fx")
    assert request.headers["Authorization"] == "Bearer token-1"
    assert ticket.spent == 1


@pytest.mark.parametrize("code", [None, "CONNECTION_NOT_FOUND"])
async def test_a_consent_that_is_over_already_is_ended(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket, code: str | None
) -> None:
    smartcar.answer = fails(404, "RESOURCE_NOT_FOUND", code)
    async with source_at(smartcar.origin, clock) as source:
        await source.revoke(OWNED, ticket)
    assert ticket.spent == 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (fails(404), errors.Unreachable),
        (fails(404, "RESOURCE_NOT_FOUND", "INVALID_PATH"), errors.Unreadable),
        (fails(404, "RESOURCE_NOT_FOUND", "VERSION"), errors.Unreadable),
        (fails(403, "PERMISSION"), errors.ConsentLost),
        (fails(403), errors.Unreachable),
        (fails(429, "RATE_LIMIT", "SMARTCAR_API"), errors.ApplicationRateLimited),
        (fails(500, "SERVER", "INTERNAL"), errors.Unreachable),
        (fails(400, "VALIDATION", "PARAMETER"), errors.Unreadable),
        (_redirect, errors.Unreadable),
        (_no_http, errors.Unreadable),
        (_truncated, errors.Unreadable),
    ],
)
async def test_a_consent_that_could_not_be_ended_is_not_taken_for_ended(
    smartcar: Smartcar,
    clock: VirtualClock,
    ticket: CountingTicket,
    answer: Handler,
    kind: type[errors.SourceError],
) -> None:
    smartcar.answer = answer
    async with source_at(smartcar.origin, clock) as source:
        with pytest.raises(errors.SourceError) as told:
            await source.revoke(OWNED, ticket)
    assert type(told.value) is kind
    assert USER not in everything_said(told.value)


async def test_ending_a_consent_survives_a_dead_connection_and_pays_for_the_repetition(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    async def closes_kept_alive(request: web.Request) -> web.Response:
        if len(smartcar.asked) == 1:
            return await smartcar.fine(request)
        if len(smartcar.asked) == 2:
            return await _reset(request)
        return await fails(404, "RESOURCE_NOT_FOUND")(request)  # the first one had been heard

    smartcar.answer = closes_kept_alive
    async with source_at(smartcar.origin, clock) as source:
        await source.fetch(VEHICLE, PROFILE, ticket)
        await source.revoke(OWNED, ticket)
    assert [request.method for request in smartcar.asked] == ["GET", "DELETE", "DELETE"]
    assert ticket.spent == 3


async def test_a_token_refused_to_an_ending_is_fetched_anew_once(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    async def refuses_the_first(request: web.Request) -> web.Response:
        first = request.headers["Authorization"] == "Bearer token-1"
        return await (fails(401, "AUTHENTICATION", "UNAUTHORIZED") if first else _ended)(request)

    smartcar.answer = refuses_the_first
    async with source_at(smartcar.origin, clock) as source:
        await source.revoke(OWNED, ticket)
    assert (smartcar.tokens_given, ticket.spent) == (2, 2)


@contextlib.asynccontextmanager
async def management(answer: Handler) -> AsyncIterator[tuple[str, list[web.Request], list[object]]]:
    """The other host: its origin, what it was asked, and the documents it was sent."""
    asked: list[web.Request] = []
    documents: list[object] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        asked.append(request)
        documents.append(await request.json())
        return await answer(request)

    async with serve(handle) as origin:
        yield origin, asked, documents


def says(status: int) -> Handler:
    async def saying(request: web.Request) -> web.Response:
        return web.json_response({"data": {"id": "s1", "type": "subscription"}}, status=status)

    return saying


@pytest.mark.parametrize("answer", [says(202), says(200), says(201), fails(409, "VALIDATION"), fails(409)])
async def test_a_vehicle_is_subscribed_to_the_webhook_at_the_management_host(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket, answer: Handler
) -> None:
    async with (
        management(answer) as (origin, asked, documents),
        source_at(smartcar.origin, clock, management_origin=origin) as source,
    ):
        await source.subscribe(OWNED, "w-1", ticket)
    (request,) = asked
    assert (request.method, request.path) == ("POST", "/v3/subscriptions")
    assert request.headers["Authorization"] == "Bearer token-1"
    assert request.content_type == "application/json"
    assert documents == [
        {
            "data": {
                "type": "subscription",
                "attributes": {"webhookId": "w-1", "userId": USER, "vehicleId": "v1"},
            }
        }
    ]
    assert smartcar.asked == []
    assert ticket.spent == 1


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (
            fails(404, "RESOURCE_NOT_FOUND"),
            errors.SourceError,
            r"check that webhook_id of \[smartcar\.home\]",
        ),
        (fails(403, "PERMISSION"), errors.SourceError, "still connected"),
        (fails(400, "VALIDATION", "PARAMETER"), errors.SourceError, "webhook_id"),
        (fails(500, "VALIDATION"), errors.Unreadable, "malformed"),
        (fails(500, "SERVER", "INTERNAL"), errors.Unreachable, "failed"),
        (fails(403, "AUTHENTICATION", "ACCESS_DENIED"), errors.ApplicationRefused, "Smartcar's dashboard"),
        (fails(404, "RESOURCE_NOT_FOUND", "INVALID_PATH"), errors.Unreadable, "address"),
        (fails(404), errors.Unreachable, "404"),
        (fails(403), errors.Unreachable, "403"),
        (fails(429, "RATE_LIMIT", "SMARTCAR_API"), errors.ApplicationRateLimited, "used up"),
        (fails(430, "BILLING", "INVALID_PLAN"), errors.BudgetSpent, "plan"),
        (fails(503), errors.Unreachable, "503"),
        (_reset, errors.Unreachable, "without an answer"),
        (_no_http, errors.Unreadable, "HTTP"),
    ],
)
async def test_why_a_vehicle_is_not_subscribed_is_said_in_words(
    smartcar: Smartcar,
    clock: VirtualClock,
    ticket: CountingTicket,
    answer: Handler,
    kind: type[errors.SourceError],
    words: str,
) -> None:
    async with (
        management(answer) as (origin, asked, _),
        source_at(smartcar.origin, clock, management_origin=origin) as source,
    ):
        with pytest.raises(errors.SourceError, match=words) as told:
            await source.subscribe(OWNED, "w-1", ticket)
    assert type(told.value) is kind
    assert (len(asked), ticket.spent) == (1, 1)
    assert USER not in everything_said(told.value)


async def test_a_management_host_that_refuses_every_token_stops_no_poll(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    async with (
        management(fails(401, "AUTHENTICATION", "UNAUTHORIZED")) as (origin, asked, _),
        source_at(smartcar.origin, clock, management_origin=origin) as source,
    ):
        with pytest.raises(errors.ApplicationRefused, match="management API"):
            await source.subscribe(OWNED, "w-1", ticket)
        assert (len(asked), smartcar.tokens_given, ticket.spent) == (2, 2, 2)
        assert (await source.fetch(VEHICLE, PROFILE, ticket)).measurements
    assert smartcar.tokens_given == 2


@pytest.mark.parametrize("answer", [_no_http, fails(500), fails(400, "VALIDATION"), _list, _truncated])
async def test_the_user_s_id_is_in_no_error_about_their_consents(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket, answer: Handler
) -> None:
    smartcar.answer = answer
    async with source_at(smartcar.origin, clock) as source:
        with pytest.raises(errors.SourceError) as told:
            await source.consents_of(USER, ticket)
    assert smartcar.asked[0].query["filter[userId]"] == USER
    assert USER not in everything_said(told.value)


async def test_a_wrong_address_is_not_taken_for_a_car_without_data(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    smartcar.answer = fails(404, "RESOURCE_NOT_FOUND", "PATH")
    async with source_at(smartcar.origin, clock) as source:
        with pytest.raises(errors.Unreadable, match="address"):
            await source.fetch(VEHICLE, PROFILE, ticket)


# --- the simulator ------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def simulated(clock: Clock) -> AsyncIterator[tuple[SmartcarSource, Simulator]]:
    simulator = Simulator(SimulatorOptions(vehicles=7, latency_scale=0, client_secret=SECRET), HandClock())
    async with simulator.serving("127.0.0.1", 0) as origin, open_http(clock) as http:
        options = SmartcarOptions(
            application="home",
            client_id=simulator.client_id,
            client_secret=SECRET,
            iam_origin=origin,
            vehicle_origin=origin,
            management_origin=origin,
        )
        yield open_smartcar(options, http, clock, CountingTicket, lambda token: None), simulator


async def test_a_user_of_the_simulator_has_their_cars_and_ends_one_consent(clock: VirtualClock) -> None:
    ticket = CountingTicket()
    async with simulated(clock) as (source, simulator):
        *_, shared, last = simulator.world.fleet
        assert shared.user_id == last.user_id
        consents = await source.consents_of(last.user_id, ticket)
        assert [consent.vehicle_ref for consent in consents] == [shared.id, last.id]
        await source.revoke(consents[1], ticket)
        await source.revoke(consents[1], ticket)  # over already
        assert (shared.stands, last.stands) == (True, False)
        assert await source.consents_of(last.user_id, ticket) == consents[:1]


async def test_a_car_of_the_simulator_is_subscribed_once(clock: VirtualClock) -> None:
    ticket = CountingTicket()
    async with simulated(clock) as (source, simulator):
        vehicle = next(iter(simulator.world.fleet))
        simulator.world.fleet.unsubscribe(vehicle)
        (consent, *_) = await source.consents_of(vehicle.user_id, ticket)
        with pytest.raises(errors.SourceError, match="webhook_id") as told:
            await source.subscribe(consent, "w-unknown", ticket)
        assert (type(told.value), told.value.outcome) == (errors.SourceError, "failed")
        assert not vehicle.subscribed
        for _ in range(2):
            await source.subscribe(consent, simulator.webhook_id, ticket)
            assert vehicle.subscribed
