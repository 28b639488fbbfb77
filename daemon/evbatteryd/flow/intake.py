"""What Smartcar pushes becomes readings: each delivery once, committed before it is acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from evbatteryd.domain.cadence import words
from evbatteryd.domain.fleet import Car
from evbatteryd.domain.ledger import Share
from evbatteryd.domain.plausibility import plausible
from evbatteryd.domain.policy import polling
from evbatteryd.domain.policy.lore import Lore
from evbatteryd.domain.ports import Clock, Log, Polled, Store, Tally
from evbatteryd.domain.pushing import DELIVERY_TAKES, after_error, after_push
from evbatteryd.domain.reading import Origin, Rejected
from evbatteryd.domain.vehicle import VehicleId, subscription_of
from evbatteryd.domain.webhook import Challenge, Delivery, Event, NotTaken, ToldError, WebhookAnswer
from evbatteryd.flow.cars import Cars

ANSWERED_WITHIN_S: Final = 10.0
"""Real seconds. Smartcar waits for 15: https://smartcar.com/docs/integrations/webhooks/best-practices/reliability"""
MOST_PENDING: Final = 2_000
"""Deliveries that wait for the store at a time."""
REMEMBERED: Final = timedelta(hours=1)
"""How long a delivery is known again: it is repeated for three minutes at most."""
MOST_REMEMBERED: Final = 200_000
MOST_STRANGERS: Final = 10_000
MOST_RESOLVED: Final = 10_000
"""Errors whose end is remembered, for the time that their beginning may still be on its way."""
SAID_AGAIN: Final = timedelta(hours=1)
"""How long the same kind of refusal is not logged again."""

FAILED: Final = "failed"
"""Label of a delivery on which evbatteryd itself failed."""
_OUR_MISTAKE: Final = WebhookAnswer(500, {"error": "evbatteryd made a mistake; its log has the details"})

Read = Callable[[bytes, str | None, datetime, str | None], tuple[Delivery, ...] | Challenge]
"""Body, signature, when it arrived, the application that the address names. Raises NotTaken."""


class Intake:
    """Implements :class:`evbatteryd.domain.webhook.WebhookReceiver`.

    ``share_of``: what a car may spend (None: its application is not configured). ``stranger``: somebody
    consented whom we do not know yet, at this application. ``webhook_ids``: by application, where configured.
    """

    def __init__(
        self,
        read: Read,
        cars: Cars,
        store: Store,
        clock: Clock,
        tally: Tally,
        log: Log,
        *,
        share_of: Callable[[Car], Share | None],
        stranger: Callable[[str], None],
        webhook_ids: Mapping[str, str],
        lores: Mapping[str, Lore],
    ) -> None:
        self._read = read
        self._cars = cars
        self._fleet = cars.fleet
        self._store = store
        self._clock = clock
        self._tally = tally
        self._log = log
        self._share_of = share_of
        self._stranger = stranger
        self._webhook_ids = webhook_ids
        self._lores = lores
        self._taken: dict[str, datetime] = {}
        """Deliveries that are committed, oldest first."""
        self._taking: dict[str, asyncio.Task[str]] = {}
        self._said: dict[str, datetime] = {}
        self._looked_for: dict[tuple[str, str], datetime] = {}
        self._resolved: dict[tuple[VehicleId, str], datetime] = {}
        self._open = False

    async def open(self) -> None:
        """Take deliveries from now on: the fleet is loaded. What was taken before a restart is known again.

        Earlier ones are asked to come again, or they would be of unknown vehicles and lost.
        """
        now = self._clock.now()
        recent = await self._store.recent_events(now - REMEMBERED, MOST_REMEMBERED)
        self._taken = dict.fromkeys(recent, now)
        self._open = True

    async def receive(self, body: bytes, signature: str | None, application: str | None) -> WebhookAnswer:
        """A 2xx means: what the delivery says is committed, or there is nothing in it to commit."""
        now = self._clock.now()
        try:
            read = self._read(body, signature, now, application)
        except NotTaken as refusal:
            self._tally.webhook(Event.OTHER, refusal.outcome)
            self._say_refused(refusal, now)
            return WebhookAnswer(refusal.status, {"error" if refusal.status >= 400 else "note": str(refusal)})
        except Exception:
            # Whatever one delivery does to us, every other one is taken.
            self._log.exception("webhook.bug")
            self._tally.webhook(Event.OTHER, FAILED)
            return _OUR_MISTAKE
        if isinstance(read, Challenge):
            self._tally.webhook(Event.VERIFY, "answered")
            if self._to_be_said("verified", now):  # anybody may send a challenge
                self._log.info("webhook.verified")
            return WebhookAnswer(200, {"challenge": read.answer})
        if not self._open or len(self._taking) >= MOST_PENDING:
            return self._not_now(read, "busy")
        takings = {self._begin(delivery): delivery for delivery in read}
        # Not awaited directly: whoever hangs up must not stop a commit half-way.
        done, late = await asyncio.wait(takings, timeout=ANSWERED_WITHIN_S) if takings else (set(), set())
        if late:
            return self._not_now(read, "late")
        outcomes = {taking.result() for taking in done}
        if FAILED in outcomes:
            return _OUR_MISTAKE
        return WebhookAnswer(200, {"status": ", ".join(sorted(outcomes)) or "nothing in it"})

    def refused(self, outcome: str) -> None:
        """A delivery was refused before it was read."""
        self._tally.webhook(Event.OTHER, outcome)

    async def forget(self) -> None:
        """Delete the notes of deliveries that cannot be repeated any more. Raises StoreError."""
        await self._store.forget_events(self._clock.now() - 2 * REMEMBERED)

    async def drain(self, grace: float) -> None:
        """Take no more; let commits under way end, for ``grace`` real seconds."""
        self._open = False
        if self._taking:
            _, late = await asyncio.wait(set(self._taking.values()), timeout=grace)
            for taking in late:
                taking.cancel()

    def _not_now(self, deliveries: tuple[Delivery, ...], why: str) -> WebhookAnswer:
        for delivery in deliveries:
            self._tally.webhook(delivery.event, why)
        return WebhookAnswer(503, {"error": "it could not be written down in time: deliver it again"})

    def _begin(self, delivery: Delivery) -> asyncio.Task[str]:
        """The task that takes it; of two deliveries of one event the second waits for the first."""
        key = f"{delivery.event_id} {delivery.vehicle_ref}"
        taking = self._taking.get(key)
        if taking is not None:
            self._tally.webhook(delivery.event, "duplicate")
            return taking
        taking = asyncio.create_task(self._take(key, delivery), name="webhook")
        self._taking[key] = taking
        taking.add_done_callback(lambda _: self._taking.pop(key))
        return taking

    async def _take(self, key: str, delivery: Delivery) -> str:
        """Commit what it says; return the label of what became of it."""
        try:
            outcome = "duplicate" if key in self._taken else await self._commit(key, delivery)
        except Exception:
            self._log.exception("webhook.bug")
            outcome = FAILED
        self._tally.webhook(delivery.event, outcome)
        return outcome

    async def _commit(self, key: str, delivery: Delivery) -> str:
        if delivery.test:
            return "test"
        car = self._fleet.by_ref(delivery.application, delivery.vehicle_ref)
        if car is None:
            self._look_for(delivery)
            return "unknown_vehicle"
        if car.vehicle.withdrawn_at is not None:
            self._look_for(delivery)  # it may have been consented to anew
            return "withdrawn_vehicle"
        if delivery.observation is None and not delivery.errors:
            return "nothing_for_us"
        await self._note_subscription(car, delivery)
        rejected: tuple[Rejected, ...] = ()
        outcome = "withdrawn_vehicle"

        def decide(current: Car) -> Polled | None:
            nonlocal rejected, outcome
            if current.vehicle.withdrawn_at is not None:
                return None
            changed, news, rejected = self._after(current, delivery)
            outcome = "error" if delivery.observation is None else "new" if news else "unchanged"
            return Polled(
                car=changed,
                news=news,
                at=delivery.received_at,
                origin=Origin.WEBHOOK,
                rejected=rejected,
                event_id=key,
            )

        after = await self._cars.record(car.id, decide)
        self._remember(key)
        for value in rejected:
            self._tally.rejected(after.vehicle.consent.make, value.signal)
        self._report(car, after)
        return outcome

    def _after(self, car: Car, delivery: Delivery) -> tuple[Car, bool, tuple[Rejected, ...]]:
        """The car after a delivery, whether it brought news, and what of it could not be."""
        now, profile = delivery.received_at, self._fleet.profile(car)
        for told in delivery.errors:
            if not self._was_resolved(car, told, now):
                car = after_error(car, profile, told, now)
        if delivery.observation is None:
            return car, False, ()
        checked = plausible(delivery.observation, car.state, now)
        pushed, news = after_push(car, profile, self._share_of(car), checked.measurements, now)
        lore = self._lores.get(car.vehicle.consent.application)
        if lore is not None:
            learned, trend = polling.after_push(car, pushed.state, profile, lore, now)
            pushed = replace(pushed, learned=learned, trend=trend)
        return pushed, bool(news), checked.rejected

    def _was_resolved(self, car: Car, told: ToldError, now: datetime) -> bool:
        """Whether this error is over already: deliveries come in any order."""
        key = (car.id, told.error.code)
        if told.resolved:
            self._resolved[key] = now
            if len(self._resolved) > MOST_RESOLVED:
                del self._resolved[next(iter(self._resolved))]
            return False
        resolved = self._resolved.get(key)
        return resolved is not None and now - resolved <= DELIVERY_TAKES

    async def _note_subscription(self, car: Car, delivery: Delivery) -> None:
        """Whom our webhook tells of is subscribed to it: nobody has to ask Smartcar for it."""
        webhook_id = self._webhook_ids.get(car.vehicle.consent.application)
        if webhook_id is None or delivery.webhook_id != webhook_id:
            return

        def subscribed(current: Car) -> Car:
            known = subscription_of(webhook_id, current.vehicle.consent.connection_id)
            return replace(current, vehicle=replace(current.vehicle, subscription=known))

        if subscribed(car) != car:
            await self._cars.change(car.id, subscribed)

    def _look_for(self, delivery: Delivery) -> None:
        """Have the list of consents read, once an hour for each vehicle that is not among our cars."""
        now, key = delivery.received_at, (delivery.application, delivery.vehicle_ref)
        looked = self._looked_for.get(key)
        if looked is not None and timedelta() <= now - looked < SAID_AGAIN:
            return
        self._looked_for.pop(key, None)
        self._looked_for[key] = now
        if len(self._looked_for) > MOST_STRANGERS:
            del self._looked_for[next(iter(self._looked_for))]
        self._stranger(delivery.application)

    def _remember(self, key: str) -> None:
        now = self._clock.now()
        self._taken[key] = now
        while self._taken:
            oldest, at = next(iter(self._taken.items()))
            if now - at <= REMEMBERED and len(self._taken) <= MOST_REMEMBERED:
                break
            del self._taken[oldest]

    def _report(self, before: Car, after: Car) -> None:
        log = self._log.bind(vehicle=after.slug, make=after.vehicle.consent.make)
        was, now = before.trouble, after.trouble
        if was is not None and now is None:
            log.info("webhook.recovered", after=was.outcome, lasted=words(self._clock.now() - was.since))
        elif now is not None and (was is None or was.code != now.code):
            log.warning("webhook.trouble", outcome=now.outcome, code=now.code, detail=now.detail)
        if after.reading_id is not None and before.reading_id is None:
            log.info("vehicle.first_reading", soc=after.state.soc_percent, next=after.schedule.reason)

    def _say_refused(self, refusal: NotTaken, now: datetime) -> None:
        if self._to_be_said(refusal.outcome, now):
            self._log.warning("webhook.refused", outcome=refusal.outcome, why=str(refusal))

    def _to_be_said(self, what: str, now: datetime) -> bool:
        """Whether it was not logged within the last hour; it is taken for logged now."""
        said = self._said.get(what)
        if said is not None and timedelta() <= now - said < SAID_AGAIN:
            return False
        self._said[what] = now
        return True
