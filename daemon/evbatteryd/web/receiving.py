"""``POST /webhooks/smartcar``: where Smartcar pushes what cars report."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from aiohttp import web

from evbatteryd.domain.ports import Clock
from evbatteryd.domain.webhook import WebhookReceiver
from evbatteryd.web.answers import as_json, body_of
from evbatteryd.web.guard import VISITOR, machine
from evbatteryd.web.limits import Limiter, Places, Rate

MOST_AT_ONCE = 256
"""Deliveries that have arrived and are being taken in. Smartcar repeats what is not taken after 25, 50 and
100 s."""
MOST_READING = 1024
"""Deliveries whose bodies are still arriving."""
MOST_READING_EACH = 64
"""Those of one address."""
BODY_WITHIN_S = 4.0
"""Real seconds that a delivery's body may take to arrive. Smartcar waits 15 s for an answer, and to commit
what it says may take 10 of them:
https://smartcar.com/docs/integrations/webhooks/best-practices/reliability"""
REFUSED = Rate(120, timedelta(minutes=1))
"""How often an address may deliver what is not believed."""
_AGAIN_S: Final = 10
_NOT_BELIEVED: Final = frozenset({400, 401})
_UNREAD: Final = {400: "damaged", 408: "too_slow", 413: "too_large"}
_SIGNED: Final = re.compile(r"[0-9A-Fa-f]{64}")
"""A hexadecimal HMAC-SHA256."""


def routes(webhook: WebhookReceiver, clock: Clock) -> Iterable[web.AbstractRouteDef]:
    receiving = _Receiving(webhook, clock)
    return [
        web.post("/webhooks/smartcar", receiving.receive),
        web.post("/webhooks/smartcar/{application}", receiving.receive),
    ]


class _Receiving:
    """The handler, and what it counts."""

    def __init__(self, webhook: WebhookReceiver, clock: Clock) -> None:
        self._webhook = webhook
        self._refused = Limiter(REFUSED, clock)
        self._reading = Places(MOST_READING, MOST_READING_EACH)
        self._under_way = 0

    @machine
    async def receive(self, request: web.Request) -> web.Response:
        """Bounded in size, time, number and mistakes, then handed on as it came."""
        address = request[VISITOR].address
        signature = ", ".join(request.headers.getall("SC-Signature", [])) or None
        # What looks signed is always read: behind a proxy that is not trusted everybody has one address, and
        # an attacker could shut Smartcar out. What is not is an attempt, or a VERIFY that can come again.
        wait_s = 0 if _SIGNED.fullmatch(signature or "") else self._refused.wait_s(address)
        if wait_s:
            self._webhook.refused("too_often")
            raise web.HTTPTooManyRequests(
                text="too much came from this address that could not be believed",
                headers={"Retry-After": str(wait_s)},
            )
        body = await self._body(request, address)
        # Not before: whoever sends slowly, or nothing, must not keep out what is there already.
        if self._under_way >= MOST_AT_ONCE:
            raise self._too_many()
        self._under_way += 1
        try:
            answer = await self._webhook.receive(body, signature, request.match_info.get("application"))
        finally:
            self._under_way -= 1
        if answer.status in _NOT_BELIEVED:
            self._refused.count(address)
        return as_json(answer.document, status=answer.status)

    async def _body(self, request: web.Request, address: str) -> bytes:
        if request.content.is_eof():  # All of it came with its head: nobody is waited for.
            return await self._read(request, address)
        with self._reading.place(address) as given:
            if not given:
                raise self._too_many()
            return await self._read(request, address)

    def _too_many(self) -> web.HTTPServiceUnavailable:
        self._webhook.refused("too_many")
        return web.HTTPServiceUnavailable(
            text="too many deliveries at once: deliver it again", headers={"Retry-After": str(_AGAIN_S)}
        )

    async def _read(self, request: web.Request, address: str) -> bytes:
        try:
            return await body_of(request, BODY_WITHIN_S)
        except web.HTTPClientError as refusal:
            self._webhook.refused(_UNREAD[refusal.status])
            self._refused.count(address)
            raise
