"""Smartcar's API v3 over HTTP: one application, its token, its connections, its vehicles' signals, commands.

Users' ids are personal: they go into requests, and into nothing that is raised or logged.

Pure reading of the answers is in :mod:`evbatteryd.sources.smartcar_answers` and, of those to commands, in
:mod:`evbatteryd.sources.smartcar_commands`; here they are only fetched.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Final
from urllib.parse import parse_qsl, quote, urlsplit

import aiohttp
import orjson

from evbatteryd import __version__
from evbatteryd.domain.cadence import words
from evbatteryd.domain.commanding import Action, Command
from evbatteryd.domain.errors import ApplicationRefused, NotNow, SourceError, Unreachable, Unreadable
from evbatteryd.domain.ports import Clock, Ticket
from evbatteryd.domain.profile import BrandProfile
from evbatteryd.domain.reading import Observation
from evbatteryd.domain.vehicle import Consent, Vehicle
from evbatteryd.sources.smartcar_answers import (
    AccessToken,
    Fault,
    error_for,
    excerpt_of,
    observe,
    parse_consents,
    parse_fault,
    parse_page,
    parse_retry_after,
    parse_token,
)
from evbatteryd.sources.smartcar_commands import ACCEPTED, command_done, command_error_for, in_doubt

LONGEST_ANSWER: Final = timedelta(seconds=310)
"""Smartcar answers within 300 s, on average in 3 to 45 s; hanging up earlier spends the call for nothing.
https://smartcar.com/docs/integration-guide/plan-your-integration/make-requests-to-smartcar/"""
COMMAND_WAITS: Final = timedelta(minutes=5)
"""How long a command waits for a token, and for a request of the application to be free."""
LARGEST_BODY: Final = 1 << 20
"""Bytes. All signals of a car are some 40 KiB."""
MOST_PAGES: Final = 20
"""Of one car's signals; Smartcar knows about 93 signals in all."""
PAGE_SIZE: Final = 100
REFUSAL_HOLDS: Final = timedelta(seconds=30)
"""How long a failed token request answers for every car, so that they do not each repeat it."""
_REFUSED: Final = frozenset({400, 403, 404})
_NOT_TO_BE_SUBSCRIBED: Final = frozenset({"VALIDATION", "RESOURCE_NOT_FOUND", "PERMISSION"})
"""Errors, with one of these statuses, that are of one webhook or one vehicle, not of the application."""
_UNKNOWN_ADDRESS: Final = frozenset({"PATH", "INVALID_PATH", "VERSION"})
"""Codes of RESOURCE_NOT_FOUND that speak of the request's address, not of what was looked for there."""
_COMMAND_PATHS: Final = {Action.START: "start", Action.STOP: "stop", Action.LIMIT: "set-limit"}
_IN_DOUBT: Final = "it is not known whether the request arrived and was carried out"


@dataclass(frozen=True, slots=True, kw_only=True)
class SmartcarOptions:
    """One application. Origins are ``scheme://host[:port]``; the secret is never shown."""

    application: str
    client_id: str
    client_secret: str = field(repr=False)
    iam_origin: str
    vehicle_origin: str
    management_origin: str
    mode: str = "live"


class TokenKeeper:
    """The application's access token: one request at a time however many ask, renewed before it expires."""

    def __init__(self, ask: Callable[[], asyncio.Future[AccessToken]], clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._token: AccessToken | None = None
        self._asking: asyncio.Future[AccessToken] | None = None
        self._failed: tuple[SourceError, datetime] | None = None

    async def current(self) -> AccessToken:
        """A token that is good now. Raises the SourceError of the token endpoint."""
        now = self._clock.now()
        token = self._token
        if token is not None and now < token.renew_at:
            return token
        if token is not None and now < token.expires_at:
            if not self._holds_off(now):
                self._begin_asking()
            return token  # still good: nobody waits for the next one
        if self._asking is None and self._failed is not None and self._holds_off(now):
            raise _again(self._failed[0])
        # Shielded: one car that stops waiting must not take the token from all the others.
        return await asyncio.shield(self._begin_asking())

    def refused(self, token: AccessToken) -> None:
        """``token`` was answered with 401: never use it again."""
        if self._token is token:
            self._token = None

    def hold_off(self, error: SourceError) -> None:
        """A new token was refused as well: nobody asks for another one for a while."""
        self._token = None
        self._failed = (error, self._clock.now())

    def _holds_off(self, now: datetime) -> bool:
        """Whether the endpoint failed just now (by a clock that may have been set back since)."""
        return self._failed is not None and abs(now - self._failed[1]) < REFUSAL_HOLDS

    def _begin_asking(self) -> asyncio.Future[AccessToken]:
        if self._asking is None:
            self._asking = self._ask()
            self._asking.add_done_callback(self._done)
        return self._asking

    def _done(self, asked: asyncio.Future[AccessToken]) -> None:
        self._asking = None
        if asked.cancelled():
            return
        error = asked.exception()
        if error is None:
            self._token, self._failed = asked.result(), None
        elif isinstance(error, SourceError):
            self._failed = (error, self._clock.now())


def _again(error: SourceError) -> SourceError:
    """A fresh exception of the same meaning: one object raised in many tasks piles up their tracebacks."""
    return type(error)(error.code, error.detail)


@dataclass(frozen=True, slots=True)
class Answer:
    """Of any status, read to its end."""

    status: int
    body: bytes = field(repr=False)
    retry_after: timedelta | None

    @property
    def fault(self) -> Fault | None:
        """The error as Smartcar words it; None if it is not Smartcar that speaks."""
        return parse_fault(self.body)

    @property
    def error(self) -> SourceError:
        """What it means that this is not the answer that was hoped for."""
        return self._error(error_for)

    @property
    def command_error(self) -> SourceError:
        """The same, of a command."""
        return self._error(command_error_for)

    def _error(self, table: Callable[..., SourceError]) -> SourceError:
        if 300 <= self.status < 400:
            detail = "Smartcar answered with a redirect, which is not followed"
            return Unreadable(f"HTTP_{self.status}", detail)
        if self.knows_no_such_address:
            return Unreadable(f"HTTP_{self.status}", "Smartcar does not know the address of this request")
        error = table(self.fault, status=self.status, retry_after=self.retry_after)
        if isinstance(error, Unreadable):
            error.excerpt = excerpt_of(self.body)
        return error

    @property
    def knows_no_such_address(self) -> bool:
        fault = self.fault
        return fault is not None and fault.type == "RESOURCE_NOT_FOUND" and fault.code in _UNKNOWN_ADDRESS

    @property
    def refuses_token(self) -> bool:
        return self.status >= 400 and isinstance(self.error, ApplicationRefused)


class SmartcarSource:
    """A :class:`~evbatteryd.domain.ports.Source`."""

    def __init__(
        self,
        options: SmartcarOptions,
        session: aiohttp.ClientSession,
        clock: Clock,
        overhead: Callable[[], Ticket],
        learnt_secret: Callable[[str], None],
    ) -> None:
        self._options = options
        self._session = session
        self._clock = clock
        self._overhead = overhead
        self._learnt_secret = learnt_secret
        self._tokens = TokenKeeper(lambda: asyncio.ensure_future(self._ask_token()), clock)

    async def fetch(self, vehicle: Vehicle, profile: BrandProfile, ticket: Ticket) -> Observation:
        """All signals of a vehicle, page by page; every page is a request and spends one."""
        path = f"/v3/vehicles/{quote(vehicle.consent.vehicle_ref, safe='')}/signals"
        headers = {"sc-user-id": vehicle.consent.user_ref}
        resources = await self._collect(path, {}, headers, ticket, where="the list of signals")
        return observe(resources, self._clock.now())

    async def consents(self, ticket: Ticket) -> AsyncIterator[Consent]:
        async for consent in self._connections({}, ticket):
            yield consent

    async def consent_stands(self, consent: Consent, ticket: Ticket) -> bool:
        query = {
            "filter[vehicle.mode]": self._options.mode,
            "filter[vehicleId]": consent.vehicle_ref,
        }
        resources = await self._collect("/v3/connections", query, {}, ticket, where="the list of connections")
        found = parse_consents(resources, self._options.application)
        return any(other.vehicle_ref == consent.vehicle_ref for other in found)

    async def consents_of(self, user_ref: str, ticket: Ticket) -> list[Consent]:
        asked = {"filter[userId]": user_ref}
        return [consent async for consent in self._connections(asked, ticket, user_ref)]

    async def revoke(self, consent: Consent, ticket: Ticket) -> None:
        path = f"/v3/connections/{quote(consent.connection_id, safe='')}"
        answer = await self._ask_vehicle_api("DELETE", path, ticket)
        if 200 <= answer.status < 300:
            return
        fault = answer.fault
        gone = answer.status == 404 and fault is not None and fault.type == "RESOURCE_NOT_FOUND"
        if not gone or answer.knows_no_such_address:
            raise answer.error

    async def command(self, vehicle: Vehicle, command: Command, ticket: Ticket) -> bool:
        """Start or stop charging, or set the charge limit (``POST .../commands/charge/...``).

        Sent once: neither we nor aiohttp repeat it when it may have arrived; only a refused token, with which
        nothing was done, is replaced. A failure on the way says whether it may have arrived.
        Paths and bodies: https://smartcar.com/docs/specs/full-vehicle.yaml, as listed by
        github.com/trooperthorn/ha_int_smartcar, ``docs/api-reference.md``.
        """
        action = command.action
        if action is None:
            raise ValueError(f"{command.kind} asks nothing of the car itself")
        ref = quote(vehicle.consent.vehicle_ref, safe="")
        document = {"data": {"attributes": {"percent": command.value}}} if action is Action.LIMIT else None
        answer = await self._ask_vehicle_api(
            "POST",
            f"/v3/vehicles/{ref}/commands/charge/{_COMMAND_PATHS[action]}",
            ticket,
            headers={"sc-user-id": vehicle.consent.user_ref},
            document=document,
            once=True,
        )
        if not 200 <= answer.status < 300:
            raise answer.command_error
        return command_done(answer.body, answer.status)

    async def subscribe(self, consent: Consent, webhook_id: str, ticket: Ticket) -> None:
        attributes = {
            "webhookId": webhook_id,
            "userId": consent.user_ref,
            "vehicleId": consent.vehicle_ref,
        }
        url = self._options.management_origin + "/v3/subscriptions"
        document = {"data": {"type": "subscription", "attributes": attributes}}
        answer = await self._ask("POST", url, ticket, document=document)
        if 200 <= answer.status < 300 or answer.status == 409:
            return
        raise self._why_not_subscribed(answer)

    def _why_not_subscribed(self, answer: Answer) -> SourceError:
        table, fault = f"[smartcar.{self._options.application}]", answer.fault
        if answer.refuses_token or (fault is not None and fault.type == "AUTHENTICATION"):
            # The vehicle API may well accept the token: no reason to hold off every poll.
            return ApplicationRefused(
                "MANAGEMENT_REFUSED",
                f"Smartcar's management API does not accept the access token of {table}:"
                " subscribe the cars to the webhook in Smartcar's dashboard",
            )
        refused = answer.status in _REFUSED and not answer.knows_no_such_address
        if fault is None or fault.type not in _NOT_TO_BE_SUBSCRIBED or not refused:
            return answer.error
        return SourceError(
            fault.name,
            f"Smartcar does not know the webhook, or not this car together with it: check that webhook_id"
            f" of {table} is the id of a webhook of this application in Smartcar's dashboard,"
            " and that the car is still connected there",
        )

    async def _connections(
        self, asked: Mapping[str, str], ticket: Ticket, user_ref: str | None = None
    ) -> AsyncIterator[Consent]:
        """Those of the application's mode, of one user if one is named: each vehicle once, page by page."""
        seen: set[str] = set()
        query = {"filter[vehicle.mode]": self._options.mode, **asked}
        async for resources in self._pages(
            "/v3/connections", query, {}, ticket, where="the list of connections"
        ):
            for consent in parse_consents(resources, self._options.application):
                # A filter that is not heeded must not make somebody else's cars theirs, nor hide their own.
                theirs = user_ref is None or consent.user_ref == user_ref
                if theirs and consent.vehicle_ref not in seen:
                    seen.add(consent.vehicle_ref)
                    yield consent

    async def _collect(
        self, path: str, query: Mapping[str, str], headers: Mapping[str, str], ticket: Ticket, *, where: str
    ) -> tuple[object, ...]:
        resources: list[object] = []
        pages = 0
        async for page in self._pages(path, query, headers, ticket, where=where):
            resources.extend(page)
            pages += 1
            if pages >= MOST_PAGES:
                break
        return tuple(resources)

    async def _pages(
        self, path: str, query: Mapping[str, str], headers: Mapping[str, str], ticket: Ticket, *, where: str
    ) -> AsyncIterator[tuple[object, ...]]:
        asked = {**query, "page[size]": str(PAGE_SIZE)}
        been: set[frozenset[tuple[str, str]]] = set()
        while True:
            been.add(frozenset(asked.items()))
            page = parse_page(await self._get(path, asked, headers, ticket), where)
            yield page.resources
            if page.next_link is None:
                return
            # Only the query of the link is taken: a link can never lead our token to another host.
            try:
                following = dict(parse_qsl(urlsplit(page.next_link).query))
            except ValueError as error:
                raise Unreadable("WRONG_SHAPE", f"{where} names a next page that is no address") from error
            asked = {**query, **following}
            if frozenset(asked.items()) in been:
                raise Unreadable("ENDLESS", f"{where} leads in a circle")

    async def _get(
        self, path: str, query: Mapping[str, str], headers: Mapping[str, str], ticket: Ticket
    ) -> bytes:
        """The body of a 200."""
        answer = await self._ask_vehicle_api("GET", path, ticket, query=query, headers=headers)
        if answer.status != 200:
            raise answer.error
        return answer.body

    async def _ask_vehicle_api(
        self,
        method: str,
        path: str,
        ticket: Ticket,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        document: Mapping[str, object] | None = None,
        once: bool = False,
    ) -> Answer:
        url = self._options.vehicle_origin + path
        answer = await self._ask(
            method, url, ticket, query=query, headers=headers, document=document, once=once
        )
        if answer.refuses_token:
            self._tokens.hold_off(answer.error)
            raise answer.error
        return answer

    async def _ask(
        self,
        method: str,
        url: str,
        ticket: Ticket,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        document: Mapping[str, object] | None = None,
        once: bool = False,
    ) -> Answer:
        """The answer to a request that bears our token. Asks once more, with a new one, if it is refused.

        ``once``: it must not be done twice, so a failure says whether the request may have arrived; nor
        must it be done long after it was asked for.
        """
        sent = dict(headers or {})
        if document is not None:
            sent["Content-Type"] = "application/json"
        for last in (False, True):
            token = await (self._leave_soon(ticket) if once else self._leave(ticket))
            answer = await self._request(
                method,
                url,
                ticket,
                params=query,
                data=None if document is None else orjson.dumps(document),
                headers={**sent, "Authorization": f"Bearer {token.value}"},
                once=once,
            )
            if last or not answer.refuses_token:
                return answer
            self._tokens.refused(token)
        raise AssertionError("unreachable")

    async def _leave(self, ticket: Ticket) -> AccessToken:
        """All that a request needs to be sent."""
        token = await self._tokens.current()
        await ticket.spend()
        return token

    async def _leave_soon(self, ticket: Ticket) -> AccessToken:
        """The same; raises NotNow if it takes too long for a command."""
        leaving = asyncio.ensure_future(self._leave(ticket))
        enough = asyncio.ensure_future(self._clock.sleep(COMMAND_WAITS))
        try:
            await asyncio.wait({leaving, enough}, return_when=asyncio.FIRST_COMPLETED)
            if leaving.done():
                return leaving.result()
            raise NotNow(
                "NO_REQUEST", f"the application has had no request to spare for {words(COMMAND_WAITS)}"
            )
        finally:
            leaving.cancel()
            enough.cancel()

    async def sign_in(self) -> None:
        """Have the application's credentials tried. Asks for no vehicle's data. Raises SourceError."""
        await self._ask_token()

    async def _ask_token(self) -> AccessToken:
        ticket = self._overhead()
        await ticket.spend()
        asked_at = self._clock.now()
        answer = await self._request(
            "POST",
            self._options.iam_origin + "/oauth2/token",
            ticket,
            data={
                "grant_type": "client_credentials",
                "client_id": self._options.client_id,
                "client_secret": self._options.client_secret,
            },
        )
        if answer.status in (400, 401, 403):
            raise ApplicationRefused(
                "INVALID_CLIENT",
                f"Smartcar refuses the client id or secret of application {self._options.application!r}",
            )
        if answer.status != 200:
            raise Unreachable(f"TOKEN_HTTP_{answer.status}", f"the token endpoint answered {answer.status}")
        token = parse_token(answer.body, asked_at)
        self._learnt_secret(token.value)
        return token

    async def _request(
        self,
        method: str,
        url: str,
        ticket: Ticket,
        *,
        params: Mapping[str, str] | None = None,
        data: Mapping[str, str] | bytes | None = None,
        headers: Mapping[str, str] | None = None,
        once: bool = False,
    ) -> Answer:
        """Sends it, and says of a failure whether it may have arrived, if it must not be done twice."""
        sending = _Sending(ticket)
        try:
            return await self._send(method, url, sending, params=params, data=data, headers=headers)
        except Unreachable as error:
            if not once or not sending.sent:
                raise
            raise in_doubt(error, _IN_DOUBT) from error

    async def _send(
        self,
        method: str,
        url: str,
        sending: _Sending,
        *,
        params: Mapping[str, str] | None,
        data: Mapping[str, str] | bytes | None,
        headers: Mapping[str, str] | None,
    ) -> Answer:
        """Translates every failure of the way into a SourceError."""
        try:
            async with self._session.request(
                method,
                url,
                params=params,
                data=data,
                headers=headers,
                allow_redirects=False,
                trace_request_ctx=sending,
            ) as response:
                body = await _body_of(response)
                return Answer(response.status, body, parse_retry_after(response.headers.get("retry-after")))
        # Some of these hold the address of the request, and it the id of a user: those are not chained.
        except TimeoutError:
            raise Unreachable("TIMEOUT", "no answer in time") from None
        except aiohttp.ClientSSLError as error:
            raise Unreachable("TLS", "the TLS certificate or handshake was not accepted") from error
        except aiohttp.ClientConnectorError as error:
            raise Unreachable("CONNECT", "no connection could be made") from error
        except aiohttp.ClientPayloadError as error:
            raise Unreadable("TRUNCATED", "the answer broke off") from error
        except aiohttp.ServerDisconnectedError as error:
            raise Unreachable("DISCONNECTED", "the connection was closed without an answer") from error
        except aiohttp.ClientResponseError:
            raise Unreadable("NOT_HTTP", "the answer was no valid HTTP") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable("NETWORK", f"the request failed ({type(error).__name__})") from None


async def _body_of(response: aiohttp.ClientResponse) -> bytes:
    """All of it. What was accepted stays accepted when the connection that is held open for it breaks."""
    try:
        return await _bounded(response)
    except (aiohttp.ClientError, OSError):  # TimeoutError is one of the latter
        if response.status != ACCEPTED:
            raise
        return b""


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > LARGEST_BODY:
            response.close()  # not worth reading to its end for the sake of the connection
            raise Unreadable("TOO_LARGE", f"the answer is larger than {LARGEST_BODY} bytes")
        parts.append(part)
    return b"".join(parts)


@dataclass(slots=True)
class _Sending:
    """aiohttp repeats an idempotent request by itself when a kept-alive connection turns out closed."""

    ticket: Ticket
    sent: int = 0


async def _before_sending(
    session: aiohttp.ClientSession,
    context: SimpleNamespace,
    params: aiohttp.TraceRequestHeadersSentParams,
) -> None:
    """Called before the headers go on the wire, so a repetition is paid for like any request: beforehand."""
    sending = context.trace_request_ctx
    if isinstance(sending, _Sending):
        sending.sent += 1
        if sending.sent > 1:
            await sending.ticket.spend()


@asynccontextmanager
async def open_http(clock: Clock) -> AsyncIterator[aiohttp.ClientSession]:
    """The one HTTP session of the daemon. Who uses it bounds the requests in flight, not the connector."""
    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(_before_sending)
    total = max(clock.real(LONGEST_ANSWER), 5.0)
    connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, ssl=ssl.create_default_context())
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=total, sock_connect=min(30.0, total)),
        headers={"User-Agent": f"evbatteryd/{__version__}", "Accept": "application/json"},
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[trace],
        auto_decompress=True,
        max_line_size=16384,
        max_field_size=16384,
    ) as session:
        yield session


def open_smartcar(
    options: SmartcarOptions,
    session: aiohttp.ClientSession,
    clock: Clock,
    overhead: Callable[[], Ticket],
    learnt_secret: Callable[[str], None],
) -> SmartcarSource:
    """One application's source. ``learnt_secret`` hears of every access token, to keep it out of logs."""
    return SmartcarSource(options, session, clock, overhead, learnt_secret)
