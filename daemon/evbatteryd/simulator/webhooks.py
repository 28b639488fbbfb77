"""Smartcar's webhooks, version 4.0: what arrives in its store is posted to one URL.

Payloads are those of recorded deliveries (github.com/wbyoung/smartcar, ``tests/fixtures/webhooks``), the
handshake and the rules of delivery those of Smartcar's documents
(https://smartcar.com/docs/integrations/webhooks/callback-verification, ``best-practices/reliability``).
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from heapq import heappop, heappush
from io import BytesIO
from math import inf
from typing import Any, Final

import aiohttp
import orjson

from evbatteryd.simulator.clouds import DAY, HOUR
from evbatteryd.simulator.draws import key_of, mix, token_of, unit, uuid_of
from evbatteryd.simulator.fleet import Vehicle
from evbatteryd.simulator.signals import SOC, signals_of
from evbatteryd.simulator.uploads import newest_upload, next_upload
from evbatteryd.simulator.world import World

Json = dict[str, Any]

TIMEOUT_S: Final = 15.0
LEAST_TIMEOUT_S: Final = 1.0
"""Real seconds: in time-lapse the receiver's machine is no faster than ever."""
RETRY_AFTER_S: Final = (25.0, 50.0, 100.0)
"""From each failure to the next attempt; after the last one the event is dropped."""
VERIFY_AGAIN_AFTER_S: Final = 60.0
AT_ONCE: Final = 32
"""Attempts under way at one time; the copies that a conduct wants go with theirs."""
LOOK_AHEAD_S: Final = DAY
"""A vehicle whose next upload is further away is looked at again by then."""
CATCH_UP_S: Final = HOUR
"""After a jump of the clock, or while the receiver is too slow, uploads longer ago than that are skipped."""

LONGEST_ANSWER: Final = 4096
"""Bytes of an answer to the challenge that are read."""
SHORTEST_NAP_S: Final = 0.001
LONGEST_NAP_S: Final = 0.02
"""Real seconds: the clock may meanwhile be set ahead, or run faster."""
_EVENTS: Final = key_of("webhook events")
_FIRST_DELAY, _FIRST_SIGNATURE = 1 << 20, 1 << 21
"""Draws of an event; those below are ids."""


@asynccontextmanager
async def delivering(world: World) -> AsyncIterator[None]:
    """Meanwhile webhooks are sent, if the options want them."""
    if world.options.webhook is None:
        yield
        return
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()
    ) as http:
        webhook = Webhook(world, world.options.webhook, http)
        sending = asyncio.create_task(webhook.run(), name="webhook")
        world.notifier = webhook
        try:
            yield
        finally:
            world.notifier = None
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending


def signature(management_token: str, message: bytes) -> str:
    """Of a challenge and of every delivery."""
    return hmac.new(management_token.encode(), message, sha256).hexdigest()


@dataclass(slots=True)
class Subscriber:
    """A vehicle and how far the receiver has been told of it."""

    vehicle: Vehicle
    told_until: float | None = None
    """Epoch seconds; None before the first delivery of a subscription."""
    events: int = 0
    entry: int | None = None
    """The one in the agenda that counts; those before it were overtaken by a change."""


@dataclass(slots=True)
class Event:
    """What is to be delivered, once."""

    key: int
    vehicle: Vehicle
    content: Json
    """What all its deliveries say alike."""
    signal_count: int | None = None
    attempts: int = 0
    deliveries: int = 0
    """Attempts and their copies."""


class Webhook:
    """One callback address. Call ``run`` once."""

    def __init__(self, world: World, url: str, http: aiohttp.ClientSession) -> None:
        self._world = world
        self._url = url
        self._http = http
        self._stats = world.stats.webhooks
        self._key = key_of("webhook", world.options.seed)
        self._subscribers: dict[int, Subscriber] = {}
        self._agenda: list[tuple[float, int, Subscriber | Event]] = []
        """A heap: when (epoch seconds), which entry, whose upload or which retry."""
        self._entries = 0
        self._challenges = 0
        self._stirred = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled. Whatever the receiver does, it raises nothing."""
        begun = self._world.now()
        while not await self.verify():
            await self._until(begun + VERIFY_AGAIN_AFTER_S)
            begun = self._world.now()
        with self._world.fleet.watched(self._changed):
            self.begin_anew()
            await self._deliver()

    def begin_anew(self) -> None:
        """As at Smartcar once a webhook is enabled: no backlog, and of each vehicle a first delivery."""
        self._agenda.clear()
        for vehicle in self._world.fleet:
            subscriber = self._subscriber(vehicle)
            subscriber.told_until = None
            self._changed(vehicle)

    def tell(self, vehicle: Vehicle, error: Json) -> None:
        key = self._event_key(self._subscriber(vehicle), self._world.now())
        event = Event(key, vehicle, _content("VEHICLE_ERROR", vehicle, errors=[error]))
        self._put(self._world.now() + self._delay_s(event), event)

    # --- the handshake --------------------------------------------------------------------------------

    async def verify(self) -> bool:
        """Whether the receiver knows the management token. The challenge itself is not signed."""
        now = self._world.now()
        self._challenges += 1
        key = mix(mix(self._key, round(now * 1000)), self._challenges)
        challenge = token_of(key, 0)
        document = {
            "eventId": uuid_of(key, 1),
            "eventType": "VERIFY",
            "data": {"challenge": challenge},
            "meta": self._meta(
                uuid_of(key, 2),
                datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            ),
        }
        answered = await self._answer_to(orjson.dumps(document))
        expected = signature(self._world.management_token, challenge.encode())
        is_right = isinstance(answered, str) and hmac.compare_digest(answered.encode(), expected.encode())
        self._stats.verified = self._stats.verified or is_right
        return is_right

    async def _answer_to(self, challenge: bytes) -> object:
        """What the receiver says the challenge is; None if it does not say."""
        try:
            async with self._post(challenge, {}) as response:
                if response.status != 200 or response.content_type != "application/json":
                    return None
                answer = orjson.loads(await _beginning(response))
        except (aiohttp.ClientError, TimeoutError, OSError, orjson.JSONDecodeError):
            return None
        return answer.get("challenge") if isinstance(answer, dict) else None

    # --- what is due ----------------------------------------------------------------------------------

    def _changed(self, vehicle: Vehicle) -> None:
        """It came, was subscribed or consented to, or no longer is, or a command altered its course."""
        subscriber = self._subscriber(vehicle)
        if not vehicle.reports:
            subscriber.told_until = subscriber.entry = None
        elif subscriber.told_until is None:
            self._arm(subscriber, self._world.now())
        else:
            self._arm_for_next(subscriber, subscriber.told_until)

    def _subscriber(self, vehicle: Vehicle) -> Subscriber:
        return self._subscribers.setdefault(vehicle.number, Subscriber(vehicle))

    def _arm_for_next(self, subscriber: Subscriber, after: float) -> None:
        until = after + LOOK_AHEAD_S
        upload = next_upload(subscriber.vehicle.car, after, until)
        self._arm(subscriber, until if upload is None else upload.available_at)

    def _arm(self, subscriber: Subscriber, at: float) -> None:
        subscriber.entry = self._put(at, subscriber)

    def _put(self, at: float, due: Subscriber | Event) -> int:
        self._entries += 1
        heappush(self._agenda, (at, self._entries, due))
        self._stirred.set()
        return self._entries

    async def _next_event(self) -> Event:
        """The next one to be attempted, once it is time."""
        while True:
            at = self._agenda[0][0] if self._agenda and not self._world.conduct.paused else inf
            if at > self._world.now():
                await self._nap(at)
                continue
            _, entry, due = heappop(self._agenda)
            if isinstance(due, Event):
                if due.vehicle.reports:
                    return due
            elif due.entry == entry:
                event = self._event_of(due, max(at, self._world.now() - CATCH_UP_S))
                if event is None:
                    continue
                delay_s = self._delay_s(event)
                if delay_s == 0:
                    return event
                self._put(self._world.now() + delay_s, event)

    def _delay_s(self, event: Event) -> float:
        """How late the conduct wants the next attempt."""
        return unit(event.key, _FIRST_DELAY + event.attempts) * self._world.conduct.shuffle_s

    def _event_of(self, subscriber: Subscriber, at: float) -> Event | None:
        """What the receiver is to be told of the vehicle as of ``at``; None if there is nothing new."""
        vehicle, told_until = subscriber.vehicle, subscriber.told_until
        self._arm_for_next(subscriber, at)
        newest = newest_upload(vehicle.car, at)
        if newest is None or (told_until is not None and newest == newest_upload(vehicle.car, told_until)):
            return None
        subscriber.told_until = at
        signals = _signals(vehicle, at)
        triggers = (
            [{"type": "FIRST_DELIVERY"}]
            if told_until is None
            else _updates(signals, _signals(vehicle, told_until))
        )
        content = _content("VEHICLE_STATE", vehicle, signals=signals) | {"triggers": triggers}
        return Event(self._event_key(subscriber, at), vehicle, content, len(signals))

    @staticmethod
    def _event_key(subscriber: Subscriber, at: float) -> int:
        subscriber.events += 1
        return mix(mix(subscriber.vehicle.car.key ^ _EVENTS, round(at * 1000)), subscriber.events)

    async def _until(self, at: float) -> None:
        while self._world.now() < at:
            await self._nap(at)

    async def _nap(self, until: float) -> None:
        """Until then at the latest, or until there is something new in the agenda; never for long."""
        left_s = (until - self._world.now()) / self._world.clock.speed
        self._stirred.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(min(max(left_s, SHORTEST_NAP_S), LONGEST_NAP_S)):
                await self._stirred.wait()

    # --- delivery -------------------------------------------------------------------------------------

    async def _deliver(self) -> None:
        slots = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as attempts:
            while True:
                await slots.acquire()
                attempt = attempts.create_task(self._attempt(await self._next_event()))
                attempt.add_done_callback(lambda _: slots.release())

    async def _attempt(self, event: Event) -> None:
        self._stats.retried += event.attempts > 0
        event.attempts += 1
        copies = self._world.conduct.duplicate
        self._stats.duplicated += copies
        answers = await asyncio.gather(*(self._accepted(event) for _ in range(1 + copies)))
        if answers[0]:
            self._stats.delivered += 1
            return
        self._stats.failed += 1
        if event.attempts > len(RETRY_AFTER_S) or self._world.conduct.paused:
            self._stats.dropped += 1
        else:
            retry_after_s = RETRY_AFTER_S[event.attempts - 1] + self._delay_s(event)
            self._put(self._world.now() + retry_after_s, event)

    async def _accepted(self, event: Event) -> bool:
        event.deliveries += 1
        body = self._body(event)
        headers = self._signed(event, body)
        if self._world.conduct.reserialised:
            body = json.dumps(orjson.loads(body), indent=1).encode()
        try:
            async with self._post(body, headers) as response:
                return 200 <= response.status < 300
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    def _signed(self, event: Event, body: bytes) -> dict[str, str]:
        conduct = self._world.conduct
        if conduct.unsigned:
            return {}
        is_wrong = unit(event.key, _FIRST_SIGNATURE + event.deliveries) < conduct.wrong_signature
        token = self._world.management_token
        return {conduct.header: signature(f"not {token}" if is_wrong else token, body)}

    def _post(
        self, body: bytes, headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._http.post(
            self._url,
            data=BytesIO(body),  # bytes alone aiohttp warns of when they are many
            headers={"Content-Type": "application/json", **headers},
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=max(TIMEOUT_S / self._world.clock.speed, LEAST_TIMEOUT_S)),
        )

    def _body(self, event: Event) -> bytes:
        """Of the present delivery: the event is the same in all of them."""
        meta = self._meta(uuid_of(event.key, event.deliveries), round(self._world.now() * 1000))
        meta["mode"] = "LIVE" if self._world.options.mode == "live" else "TEST"
        if event.signal_count is not None:
            meta["signalCount"] = event.signal_count
        document = {"eventId": uuid_of(event.key, 0), **event.content, "meta": meta}
        body = orjson.dumps(document)
        lacking = self._world.conduct.oversize_bytes - len(body)
        return body if lacking <= 0 else orjson.dumps(document | {"filling": "x" * lacking})

    def _meta(self, delivery_id: str, delivered_at: int | str) -> Json:
        """``delivered_at``: a string in a challenge, else epoch milliseconds."""
        return {
            "version": self._world.conduct.version,
            "webhookId": self._world.webhook_id,
            "webhookName": self._world.webhook_name,
            "deliveryId": delivery_id,
            "deliveredAt": delivered_at,
        }


def _content(event_type: str, vehicle: Vehicle, **data: Sequence[Json]) -> Json:
    car = vehicle.car
    return {
        "eventType": event_type,
        "data": {
            "user": {"id": vehicle.user_id},
            "vehicle": {"id": vehicle.id, "make": car.cloud.make, "model": car.model, "year": car.year},
            **data,
        },
    }


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """Of its body: all of an answer that can be meant."""
    read = b""
    async for chunk in response.content.iter_chunked(LONGEST_ANSWER):
        read += chunk
        if len(read) >= LONGEST_ANSWER:
            break
    return read


def _signals(vehicle: Vehicle, at: float) -> list[Json]:
    """As webhooks show them: without links, and with two of the three times, if they have any."""
    return [_flat(resource) for resource in signals_of(vehicle.car, at, base="")]


def _flat(resource: Json) -> Json:
    times = {name: ms for name, ms in resource["meta"].items() if name in ("oemUpdatedAt", "retrievedAt")}
    return {**resource["attributes"], "meta": times} if times else resource["attributes"]


def _updates(signals: Sequence[Json], former: Sequence[Json]) -> list[Json]:
    """Whose values changed. If none did, a newer measurement is told as one of the state of charge."""
    before = {signal["code"]: (signal["status"], signal.get("body")) for signal in former}
    changed = [
        signal for signal in signals if before.get(signal["code"]) != (signal["status"], signal.get("body"))
    ] or [signal for signal in signals if signal["code"] == SOC]
    return [
        {"type": "SIGNAL_UPDATED", "signal": {name: signal[name] for name in ("name", "code", "group")}}
        for signal in changed
    ]
