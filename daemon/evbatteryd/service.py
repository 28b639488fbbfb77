"""The composition root: builds every part, wires them, supervises them, and shuts them down in order.

An expected failure is handled where it happens. What reaches this place is a bug: it ends the process with
its traceback, and systemd starts it anew; nothing is lost, because everything was committed first.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from evbatteryd import __version__, localkey
from evbatteryd.brands import brand_of
from evbatteryd.clock import utc_offset
from evbatteryd.domain.cadence import words
from evbatteryd.domain.enrolment import Enrolment
from evbatteryd.domain.errors import StoreError
from evbatteryd.domain.estimates import Estimator
from evbatteryd.domain.fleet import Car, Fleet
from evbatteryd.domain.ledger import Share
from evbatteryd.domain.policy import polling
from evbatteryd.domain.policy.outlook import Estimate
from evbatteryd.domain.ports import Clock, Log, Source
from evbatteryd.domain.reading import Reading
from evbatteryd.domain.webhook import Challenge, Delivery
from evbatteryd.enrol.consent import ConnectOptions
from evbatteryd.enrol.enrolment import Enrolments
from evbatteryd.flow.cars import Cars
from evbatteryd.flow.commands import CarCommands
from evbatteryd.flow.delivery import Delivery as JournalDelivery
from evbatteryd.flow.forecaster import Forecaster
from evbatteryd.flow.hints import CarHints
from evbatteryd.flow.intake import Intake
from evbatteryd.flow.intake import Read as WebhookReader
from evbatteryd.flow.lores import Lores
from evbatteryd.flow.poller import Poller
from evbatteryd.flow.purse import Purse
from evbatteryd.flow.roster import Roster
from evbatteryd.flow.steward import CarSteward
from evbatteryd.flow.subscriber import Subscriber
from evbatteryd.flow.timer import CohortTimer
from evbatteryd.flow.watch import FreshnessWatch
from evbatteryd.flow.welcome import Welcome
from evbatteryd.logs import redact_text, redactor
from evbatteryd.options import mqtt_options, smartcar_options
from evbatteryd.sdnotify import Notifier
from evbatteryd.settings import HttpSettings, Settings, SmartcarSettings
from evbatteryd.sinks.mqtt import MqttSink
from evbatteryd.sinks.prometheus import Exposition, Metrics
from evbatteryd.sources import SOURCES
from evbatteryd.sources.smartcar import open_http
from evbatteryd.sources.smartcar_webhooks import WebhookKey, read_delivery
from evbatteryd.store.sqlite import open_store
from evbatteryd.web.app import ANNOUNCER, Health, make_app, serving
from evbatteryd.web.guard import Access

TOKENS_UNSAID = 3
"""Access tokens that are kept out of the log: each lives for an hour."""
DRAIN = 3.0
"""Real seconds that answers under way, and then readings not yet taken, get at shutdown."""
ENROLMENTS_KEPT = timedelta(days=30)
"""After they expired: what became of an invitation can be looked up for so long."""
HEARTBEAT = timedelta(seconds=5)
STUCK = 30.0
"""Real seconds without a heartbeat after which we are not healthy."""


@dataclass(frozen=True, slots=True)
class Running:
    """What a caller in the same process may look at."""

    fleet: Fleet
    clock: Clock
    url: str
    poller: Poller
    mqtt: MqttSink | None
    delivery: JournalDelivery | None


async def serve(
    settings: Settings,
    clock: Clock,
    stop: asyncio.Event,
    log: Log,
    *,
    notifier: Notifier | None = None,
    on_ready: Callable[[Running], None] = lambda _: None,
) -> None:
    """Run until ``stop`` is set. Raises StoreError or OSError if it cannot begin, anything else is a bug."""
    for secret in settings.secrets():
        redactor.register(secret.reveal())
    async with AsyncExitStack() as opened:
        daemon = await _build(settings, clock, log, opened, notifier or Notifier({}))
        await daemon.run(stop, on_ready)


async def _build(
    settings: Settings,
    clock: Clock,
    log: Log,
    opened: AsyncExitStack,
    notifier: Notifier,
) -> _Daemon:
    store = await opened.enter_async_context(open_store(settings.store.url.path))
    local_key = await asyncio.to_thread(localkey.load_or_make, settings.store.url.path)
    redactor.register(local_key)
    http = await opened.enter_async_context(open_http(clock))
    fleet = Fleet(settings.profiles)
    metrics = Metrics()
    bugs: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_bug(bug: BaseException) -> None:
        if not bugs.done():
            bugs.set_exception(bug)
        else:
            log.error("bug", exc_info=bug)

    applications: dict[str, tuple[Source, Purse]] = {}
    rosters: dict[str, Roster] = {}
    welcomes: dict[str, Welcome] = {}
    subscribers: list[Subscriber] = []
    timer = CohortTimer(clock, on_bug)
    offset = utc_offset(settings.polling.time_zone)
    lores = Lores(settings.smartcar, store, clock, log, offset=offset)
    cars = Cars(
        fleet,
        store,
        clock,
        timer,
        log,
        brand_of=lambda make: brand_of(make, settings.profiles),
        lores=lores,
    )
    for name, application in settings.smartcar.items():
        purse = Purse(name, application.budget, store, clock, metrics)
        source = SOURCES["smartcar"](
            smartcar_options(name, application), http, clock, partial(purse.ticket, None), _Unsaid().learn
        )
        applications[name] = (source, purse)
        roster = Roster(name, source, purse, cars, clock, log, every=settings.polling.consents_every)
        rosters[name] = roster
        welcomes[name] = Welcome(name, roster, source, purse, cars, store, clock, log)
        if application.webhook_id is not None:
            subscribers.append(Subscriber(name, application.webhook_id, source, purse, cars, clock, log))
    poller = Poller(
        cars,
        clock,
        timer,
        metrics,
        log,
        applications=applications,
        max_in_flight=settings.polling.max_in_flight,
        lores=lores,
        redact=redact_text,
        on_bug=on_bug,
        longest_wait=settings.polling.longest_wait,
    )

    def share_of(car: Car) -> Share | None:
        application = applications.get(car.vehicle.consent.application)
        return None if application is None else application[1].share(car.id)

    def estimate(car: Car, now: datetime) -> Estimate | None:
        lore = lores.get(car.vehicle.consent.application)
        if lore is None:
            return None
        try:
            return polling.estimate(car, fleet.profile(car), lore, now)
        except Exception:
            # An estimate is a courtesy: a mistake in it must not keep anybody from the measured value.
            log.exception("estimate.bug", vehicle=car.slug)
            return None

    hints = CarHints(
        cars,
        clock,
        metrics,
        log,
        polling.after_hint,
        share_of=share_of,
        lores=lores,
        hurry=poller.hurry,
    )
    forecaster = Forecaster(
        fleet,
        {name: purse for name, (_, purse) in applications.items()},
        clock,
        metrics,
        price_of=lambda car: polling.price_of(car, lores[car.vehicle.consent.application]),
    )
    commands = CarCommands(
        cars,
        clock,
        metrics,
        log,
        applications=applications,
        poller=poller,
    )
    mqtt: MqttSink | None = None
    delivery: JournalDelivery | None = None
    if settings.mqtt is not None:
        mqtt = MqttSink(
            mqtt_options(settings.mqtt),
            fleet,
            clock,
            metrics,
            log,
            owes=lambda vehicle_id: delivery is not None and delivery.owes(vehicle_id),
            manifest=store,
            estimate=estimate,
            share_of=share_of,
            past_the_hour=timedelta(seconds=-offset(clock.now().timestamp()) % 3600),
            hints=hints,
            commands=commands,
        )
        delivery = JournalDelivery(
            store,
            mqtt,
            clock,
            metrics,
            log,
            most=settings.mqtt.outbox_readings,
            longest=settings.mqtt.outbox_age,
        )

    def welcome(enrolment: Enrolment) -> None:
        if enrolment.application in welcomes:
            welcomes[enrolment.application].add(enrolment)

    intake = Intake(
        _reader(settings.smartcar),
        cars,
        store,
        clock,
        metrics,
        log,
        share_of=share_of,
        stranger=lambda name: rosters[name].stir(),
        webhook_ids={
            name: known.webhook_id
            for name, known in settings.smartcar.items()
            if known.webhook_id is not None
        },
        lores=lores,
    )
    connect = {name: _connect_options(name, known) for name, known in settings.smartcar.items()}
    return _Daemon(
        access=_access(settings.http, local_key),
        enrolments=Enrolments(store, clock, log, connect, welcome),
        steward=CarSteward(cars, rosters, log),
        intake=intake,
        welcome=welcome,
        welcomes=list(welcomes.values()),
        subscribers=subscribers,
        share_of=share_of,
        estimate=estimate,
        hints=hints,
        commands=commands,
        forecaster=forecaster,
        lores=lores,
        settings=settings,
        clock=clock,
        log=log,
        notifier=notifier,
        opened=opened,
        store=store,
        fleet=fleet,
        metrics=metrics,
        timer=timer,
        cars=cars,
        purses=[purse for _, purse in applications.values()],
        rosters=list(rosters.values()),
        poller=poller,
        mqtt=mqtt,
        delivery=delivery,
        bugs=bugs,
    )


class _Unsaid:
    """One application's access tokens, for the log's redaction: the present one and those just before it."""

    def __init__(self) -> None:
        self._tokens: deque[str] = deque()

    def learn(self, token: str) -> None:
        redactor.register(token)
        self._tokens.append(token)
        if len(self._tokens) > TOKENS_UNSAID:
            redactor.forget(self._tokens.popleft())


async def _for_ever(name: str, life: Coroutine[Any, Any, None]) -> None:
    """A part that ends by itself is a bug: better the process ends than that it goes on without it."""
    try:
        await life
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
    raise RuntimeError(f"{name} ended although nobody stopped it")


def _connect_options(name: str, settings: SmartcarSettings) -> ConnectOptions:
    return ConnectOptions(
        application=name,
        application_id=settings.application_id,
        connect_origin=settings.origins.connect,
        mode=settings.mode,
        permissions=settings.permissions,
        country=settings.country,
    )


def _reader(applications: Mapping[str, SmartcarSettings]) -> WebhookReader:
    """Reads deliveries with the management tokens of all applications that have one."""
    keys = [
        WebhookKey(
            application=name,
            token=application.management_token.reveal(),
            webhook_id=application.webhook_id,
            simulated=application.mode == "simulated",
        )
        for name, application in applications.items()
        if application.management_token is not None
    ]

    def read(
        body: bytes, signature: str | None, received_at: datetime, application: str | None
    ) -> tuple[Delivery, ...] | Challenge:
        return read_delivery(body, signature, keys, received_at, application=application)

    return read


def _access(settings: HttpSettings, local_key: str) -> Access:
    return Access(
        local_key=local_key,
        public_url=settings.public_url,
        admin_token=None if settings.admin_token is None else settings.admin_token.reveal(),
        trusted_proxies=settings.trusted_proxies.networks,
        trusts_unix=settings.trusted_proxies.unix,
        admin_header=settings.admin_header,
        admin_users=frozenset(settings.admin_users),
        open_to_read=settings.open_to_read,
        open_enrolment=settings.enrolment == "open",
    )


@dataclass(kw_only=True)
class _Daemon:
    """The parts, wired; :meth:`run` is their life."""

    access: Access
    enrolments: Enrolments
    steward: CarSteward
    intake: Intake
    welcome: Callable[[Enrolment], None]
    welcomes: list[Welcome]
    subscribers: list[Subscriber]
    share_of: Callable[[Car], Share | None]
    estimate: Estimator
    hints: CarHints
    commands: CarCommands
    forecaster: Forecaster
    lores: Lores
    settings: Settings
    clock: Clock
    log: Log
    notifier: Notifier
    opened: AsyncExitStack
    store: Any
    fleet: Fleet
    metrics: Metrics
    timer: CohortTimer
    cars: Cars
    purses: list[Purse]
    rosters: list[Roster]
    poller: Poller
    mqtt: MqttSink | None
    delivery: JournalDelivery | None
    bugs: asyncio.Future[None]
    beat: float = 0.0
    scheduled: bool = False
    chores: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    async def run(self, stop: asyncio.Event, on_ready: Callable[[Running], None]) -> None:
        self.beat = time.monotonic()
        exposition = Exposition(self.metrics, self.fleet, self.clock)
        app = make_app(
            self.fleet,
            self.clock,
            exposition,
            Health(ready=self._not_ready, healthy=self._not_healthy),
            started_at=self.clock.now(),
            access=self.access,
            enrolments=self.enrolments,
            steward=self.steward,
            webhook=self.intake,
            hints=self.hints,
            commands=self.commands,
            forecasts=self.forecaster,
            estimate=self.estimate,
            why_waiting=self.poller.why_waiting,
        )
        listen = self.settings.http.listen
        url = await self.opened.enter_async_context(
            serving(app, host=listen.host, port=listen.port, unix_path=listen.unix_path)
        )
        watch = FreshnessWatch(self.fleet, self.clock, self.cars.announce)
        announcer = app[ANNOUNCER]

        def tell(car: Car, reading: Reading | None) -> None:
            watch.follow(car)
            announcer.changed(car)
            for subscriber in self.subscribers:
                subscriber.follow(car)
            if self.mqtt is not None and self.delivery is not None:
                if reading is not None:
                    self.delivery.offer(reading)
                elif car.reading_id is None:
                    self.delivery.forget(car.id)
                self.mqtt.touch(car.id)

        self.cars.listen(tell)
        for purse in self.purses:
            await purse.open()
        await self.lores.open()
        await self.cars.load(self.settings.smartcar)
        for roster in self.rosters:
            await roster.count()
        await self.cars.reconsider(self.share_of)
        await self.intake.open()
        for enrolment in await self.store.awaited():
            self.welcome(enrolment)
        if self.mqtt is not None and self.delivery is not None:
            await self.mqtt.open()
            await self.delivery.open()
        # What lives as long as the process need not be walked by every collection.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 50, 1_000)
        self.scheduled = True

        async with asyncio.TaskGroup() as outer:  # sinks walk on to the journal's end, within a grace time
            talking = self._start(outer, self._talkers())
            async with asyncio.TaskGroup() as inner:  # nobody asks any more
                asking = self._start(inner, self._askers())
                self._set_bells(watch, inner)
                self.timer.start(self.poller.due)
                self.notifier.ready(self._status())
                self.log.info("evbatteryd.started", version=__version__, vehicles=len(self.fleet), url=url)
                on_ready(Running(self.fleet, self.clock, url, self.poller, self.mqtt, self.delivery))
                await self._until(stop)
                self.notifier.stopping()
                self.log.info("evbatteryd.stopping", in_flight=self.poller.in_flight)
                self.timer.stop()
                for task in (*asking, *self.chores.values()):
                    task.cancel()
            await self.poller.drain(DRAIN)
            await self.commands.drain(DRAIN)
            await self.intake.drain(DRAIN)
            await self.lores.keep()
            await self._hand_over()
            for task in talking:
                task.cancel()
        if self.mqtt is not None and self.delivery is not None:
            await self.delivery.close()
            await self.mqtt.close(1.0)
        self.log.info("evbatteryd.stopped")

    async def _until(self, stop: asyncio.Event) -> None:
        """Until we are told to stop. A bug that nobody else could raise is raised here."""

        async def stopped() -> None:
            await stop.wait()
            if not self.bugs.done():
                self.bugs.set_result(None)

        waiting = asyncio.create_task(stopped())
        try:
            await self.bugs
        finally:
            waiting.cancel()

    async def _hand_over(self) -> None:
        """Readings that are committed and not yet taken: told now if the broker is there, else next time."""
        if self.mqtt is not None and self.delivery is not None and self.mqtt.connected:
            try:
                async with asyncio.timeout(DRAIN):
                    await self.delivery.caught_up()
            except TimeoutError:
                self.log.info("delivery.left_for_next_start", readings=self.delivery.waiting)

    def _talkers(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        if self.mqtt is None or self.delivery is None:
            return []
        return [("mqtt", self.mqtt.run()), ("delivery mqtt", self.delivery.run())]

    def _askers(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        return [
            ("poller", self.poller.run()),
            ("forecaster", self.forecaster.run()),
            ("lores", self.lores.run()),
            ("commands", self.commands.run()),
            *(("roster", roster.run()) for roster in self.rosters),
            *(("welcome", welcome.run()) for welcome in self.welcomes),
            *(("subscriber", subscriber.run()) for subscriber in self.subscribers),
        ]

    @staticmethod
    def _start(
        group: asyncio.TaskGroup, lives: list[tuple[str, Coroutine[Any, Any, None]]]
    ) -> list[asyncio.Task[None]]:
        return [group.create_task(_for_ever(name, life), name=name) for name, life in lives]

    def _set_bells(self, watch: FreshnessWatch, tasks: asyncio.TaskGroup) -> None:
        def heartbeat() -> None:
            self.beat = time.monotonic()
            self.notifier.alive()
            self.notifier.status(self._status())
            if self.delivery is not None and self.mqtt is not None:
                self.metrics.outbox(self.mqtt.name, self.delivery.waiting)
                self.metrics.connected(self.mqtt.connected)

        def chore(name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
            """Begins the work, unless it is still at it since the bell before."""

            def ring() -> None:
                if name not in self.chores:
                    self.chores[name] = task = tasks.create_task(work(), name=name)
                    task.add_done_callback(lambda _: self.chores.pop(name))

            return ring

        watchdog = self.notifier.watchdog
        beat = min(HEARTBEAT, watchdog / 3) if watchdog else HEARTBEAT
        # The heart beats in the wall's time: systemd does.
        self.timer.every("heartbeat", beat * self.clock.speed, heartbeat)
        self.timer.every("freshness", timedelta(seconds=1), watch.ring)
        self.timer.every("retention", timedelta(hours=1), chore("prune", self._prune))
        if self.delivery is not None:
            self.timer.every("outbox", timedelta(minutes=1), chore("trim", self.delivery.trim))

    async def _prune(self) -> None:
        try:
            gone = await self.store.prune(self.clock.now() - self.settings.store.history)
            await self.intake.forget()
            await self.store.forget_enrolments(self.clock.now() - ENROLMENTS_KEPT)
        except StoreError as error:
            self.log.warning("store.not_pruned", error=str(error))
        else:
            if gone:
                self.log.info("store.pruned", readings=gone)

    def _status(self) -> str:
        asked = (
            sum(1 for car in self.fleet if car.schedule.due is not None) if len(self.fleet) <= 1000 else None
        )
        cars = f"{len(self.fleet)} vehicles" + (f", {asked} polled" if asked is not None else "")
        broker = "" if self.mqtt is None else "; MQTT " + ("connected" if self.mqtt.connected else "away")
        return f"{cars}; {self.poller.in_flight} requests in flight{broker}"

    def _not_ready(self) -> list[str]:
        reasons = []
        if not self.scheduled:
            reasons.append("the schedule is not set up yet")
        if self.mqtt is not None and not self.mqtt.connected:
            reasons.append("not connected to the MQTT broker")
        reasons += [roster.trouble for roster in self.rosters if roster.trouble]
        reasons += [
            f"application {purse.application}: no requests for another {words(purse.closed_for)}"
            for purse in self.purses
            if purse.closed_for
        ]
        return reasons

    def _not_healthy(self) -> list[str]:
        silent = time.monotonic() - self.beat
        return [f"no heartbeat for {silent:.0f} s"] if silent > STUCK else []
