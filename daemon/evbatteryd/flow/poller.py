"""Due cars become answers, answers become readings: asked in parallel, by worth, one at a time per car."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial

from evbatteryd.domain.cadence import consented_anew, words
from evbatteryd.domain.errors import (
    ApplicationRateLimited,
    ApplicationRefused,
    ConsentLost,
    NotCapable,
    SourceError,
    StoreError,
    Unreadable,
)
from evbatteryd.domain.fleet import Car
from evbatteryd.domain.policy.lore import Lore
from evbatteryd.domain.ports import Clock, Log, Polled, Source, Tally
from evbatteryd.domain.reading import Observation, Rejected, Signal
from evbatteryd.domain.settling import settle
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.domain.worth import awaited, claim
from evbatteryd.flow.cars import Cars
from evbatteryd.flow.outages import Outages
from evbatteryd.flow.pauses import pause as wait
from evbatteryd.flow.purse import Purse, PurseTicket
from evbatteryd.flow.standing import Standing
from evbatteryd.flow.timer import CohortTimer
from evbatteryd.flow.waiting import LONGEST_WAIT, WaitingRoom

_OF_THE_APPLICATION = frozenset({ApplicationRefused.outcome, ApplicationRateLimited.outcome})
SILENCE_SAID_AGAIN = timedelta(days=1)
SILENT = (
    "it is polled instead. See the webhook at https://dashboard.smartcar.com: is it enabled, can its address "
    "be reached, has it triggers on state of charge and charging?"
)
"""What to mend when webhooks miss what polls find."""
STORE_PAUSE = timedelta(seconds=30)
"""When a car is tried again for which no call could be noted down."""


@dataclass(slots=True)
class _Application:
    """What the poller keeps of one Smartcar application."""

    source: Source
    purse: Purse
    room: WaitingRoom
    someone_waits: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class Asked:
    """How one poll of a car ended."""

    car: Car
    """As it is after it."""
    news: bool
    error: SourceError | None
    """None: it was answered with data."""
    calls: int


class Poller:
    """Takes cars as they fall due, asks their source, and commits what it says.

    At most ``max_in_flight`` requests are under way, at most half of them for one brand: a brand whose cloud
    hangs for five minutes delays nobody else. Of a brand whose cloud is down one car is asked now and then
    until it answers (``flow/outages.py``). ``redact`` cleans what an unreadable answer is kept as.
    """

    def __init__(
        self,
        cars: Cars,
        clock: Clock,
        timer: CohortTimer,
        tally: Tally,
        log: Log,
        *,
        applications: Mapping[str, tuple[Source, Purse]],
        max_in_flight: int,
        lores: Mapping[str, Lore],
        redact: Callable[[str], str],
        on_bug: Callable[[BaseException], None],
        longest_wait: timedelta = LONGEST_WAIT,
    ) -> None:
        self._cars = cars
        self._fleet = cars.fleet
        self._clock = clock
        self._timer = timer
        self._tally = tally
        self._log = log
        self._applications = {
            name: _Application(source, purse, WaitingRoom(longest_wait))
            for name, (source, purse) in applications.items()
        }
        self._slots = asyncio.Semaphore(max_in_flight)
        self._most_per_brand = max(1, max_in_flight // 2)
        self._outages = Outages(log, most=self._most_per_brand, cars_of=self._cars_of)
        self._lores = lores
        self._redact = redact
        self._on_bug = on_bug
        self._polls: dict[VehicleId, asyncio.Task[None]] = {}
        self._settling: set[VehicleId] = set()
        self._rang: set[VehicleId] = set()
        self._waited_for: dict[VehicleId, datetime | None] = {}
        """When the cars that wait were due as they began to."""
        self._awaited: set[VehicleId] = set()
        """Cars whose next answer somebody awaits."""
        self.standing = Standing(cars, log)
        self._listeners: list[Callable[[Asked], None]] = []
        self._brands: Counter[str] = Counter()
        self._freed = asyncio.Event()
        self._silence_said: dict[str, datetime] = {}
        self._said: dict[VehicleId, frozenset[tuple[Signal, str]]] = {}

    def listen(self, listener: Callable[[Asked], None]) -> None:
        """Have ``listener`` hear of every poll that ended, once what it brought is committed."""
        self._listeners.append(listener)

    def asking(self, vehicle_id: VehicleId) -> bool:
        """Whether a poll of this car is under way."""
        poll = self._polls.get(vehicle_id)
        return poll is not None and not poll.done()

    def due(self, vehicle_id: VehicleId) -> None:
        """The car's bell rang."""
        car = self._fleet.get(vehicle_id)
        if car is None or not _asked(car):
            return
        if vehicle_id in self._polls:
            self._rang.add(vehicle_id)
            return
        application = self._application_of(car)
        if application is not None:
            self._enter(application.room, car)
            self._waited_for[vehicle_id] = car.schedule.due
            application.someone_waits.set()
            self._freed.set()  # for a dispatcher that waits for one of another brand

    def hurry(self, vehicle_id: VehicleId) -> None:
        """Somebody awaits this car's next answer: when it falls due, it does not wait behind routine.

        Kept in memory alone, until it is asked.
        """
        self._awaited.add(vehicle_id)
        application = self._application_of(self._fleet[vehicle_id])
        if application is not None and vehicle_id in application.room:
            self._enter(application.room, self._fleet[vehicle_id])

    def why_waiting(self, vehicle_id: VehicleId) -> str | None:
        """Why a car that is due has not been asked yet, in one sentence; None if it does not wait."""
        car, now = self._fleet[vehicle_id], self._clock.now()
        application = self._application_of(car)
        if application is None or vehicle_id not in application.room:
            return None
        profile, room = self._fleet.profile(car), application.room
        down = self._outages.why(
            car.vehicle.consent.application, profile, room.waiting(car.vehicle.brand), now
        )
        if down is not None:
            return down
        others = f", as {len(room)} cars do: where it gains most it goes first" if len(room) > 1 else ""
        return f"waits until the application has a request to spare{others}"

    def _enter(self, room: WaitingRoom, car: Car) -> None:
        hurried = car.id in self._awaited or awaited(car.schedule)
        bid = claim(car.schedule, self._fleet.profile(car), self._clock.now())
        room.enter(car.id, car.vehicle.brand, bid, awaited=hurried)

    def _application_of(self, car: Car) -> _Application | None:
        return self._applications.get(car.vehicle.consent.application)

    def _cars_of(self, application: str, brand: str) -> int:
        return sum(
            1
            for car in self._fleet
            if car.vehicle.brand == brand and car.vehicle.consent.application == application and _asked(car)
        )

    @property
    def in_flight(self) -> int:
        return len(self._polls)

    @property
    def waiting(self) -> int:
        return sum(len(application.room) for application in self._applications.values())

    async def run(self) -> None:
        """Until cancelled. Polls under way go on then: see :meth:`drain`."""
        async with asyncio.TaskGroup() as dispatchers:
            for name, application in self._applications.items():
                dispatchers.create_task(self._dispatch(name, application), name=f"dispatch {name}")

    async def drain(self, grace: float) -> None:
        """Let answers under way arrive for ``grace`` real seconds, then give up those that have not.

        What is given up was noted as spent and falls due again on its own.
        """
        polls = list(self._polls.values())
        if polls:
            await asyncio.wait(polls, timeout=grace)
        for vehicle_id, poll in list(self._polls.items()):
            if vehicle_id not in self._settling:
                poll.cancel()
        if self._polls:
            await asyncio.wait(list(self._polls.values()), timeout=grace)

    async def _dispatch(self, name: str, application: _Application) -> None:
        room, purse = application.room, application.purse
        while True:
            await application.someone_waits.wait()
            # The token first: an application that has none must not hold a slot that others could use.
            await purse.token()
            try:
                await self._slots.acquire()
            except BaseException:
                purse.give_back()
                raise
            vehicle_id = room.take(self._clock.now(), partial(self._admits, name))
            if vehicle_id is not None and self._still_wanted(vehicle_id):
                self._begin(vehicle_id, purse, application.source)
                continue
            purse.give_back()
            self._slots.release()
            if vehicle_id is not None:  # withdrawn while it waited, or answered by a webhook
                continue
            if len(room):  # all of them of brands that have enough requests under way, or whose cloud is down
                await self._another_admitted(name, room)
            else:
                application.someone_waits.clear()

    async def _another_admitted(self, application: str, room: WaitingRoom) -> None:
        """Until another brand may be admitted."""
        self._freed.clear()
        not_full = [brand for brand in room.brands if self._brands[brand] < self._most_per_brand]
        next_try = self._outages.next_try(application, not_full)
        if next_try is None:
            await self._freed.wait()
        else:
            span = next_try - self._clock.now() + timedelta(milliseconds=1)
            await wait(self._clock, span, unless=self._freed)

    def _still_wanted(self, vehicle_id: VehicleId) -> bool:
        """Whether a car that waited is to be asked: a webhook may have put its poll off meanwhile."""
        car, waited_for = self._fleet[vehicle_id], self._waited_for.pop(vehicle_id, None)
        self._awaited.discard(vehicle_id)
        due = car.schedule.due
        put_off = due is not None and due != waited_for and due > self._clock.now()
        return _asked(car) and not put_off

    def _admits(self, application: str, brand: str) -> bool:
        up = self._outages.admits(application, brand, self._clock.now())
        return up and self._brands[brand] < self._most_per_brand

    def _begin(self, vehicle_id: VehicleId, purse: Purse, source: Source) -> None:
        car = self._fleet[vehicle_id]
        now = self._clock.now()
        self._tally.lag(now - (car.schedule.due or now))
        self._brands[car.vehicle.brand] += 1
        self._outages.begun(car)
        floor = now + self._fleet.profile(car).floor
        ticket = purse.ticket(vehicle_id, prepaid=True, due=floor)
        poll = asyncio.create_task(self._poll(car, purse, source, ticket), name=f"poll {car.slug}")
        self._polls[vehicle_id] = poll
        self._tally.in_flight(len(self._polls))
        poll.add_done_callback(lambda done: self._ended(car, done))

    def _ended(self, car: Car, poll: asyncio.Task[None]) -> None:
        del self._polls[car.id]
        self._tally.in_flight(len(self._polls))
        self._settling.discard(car.id)
        self._brands[car.vehicle.brand] -= 1
        self._outages.ended(car, self._clock.now())
        self._slots.release()
        self._freed.set()
        if car.id in self._rang:  # it fell due again before it was let go
            self._rang.remove(car.id)
            due = self._fleet[car.id].schedule.due
            if due is not None and due <= self._clock.now():
                self.due(car.id)
        if not poll.cancelled() and (bug := poll.exception()) is not None:
            self._on_bug(bug)

    async def _poll(self, car: Car, purse: Purse, source: Source, ticket: PurseTicket) -> None:
        profile = self._fleet.profile(car)
        began = self._clock.now()
        answer: Observation | SourceError
        try:
            answer = await source.fetch(car.vehicle, profile, ticket)
        except SourceError as error:
            answer = error
        except StoreError as error:
            ticket.close()
            self._log.error("poll.not_noted", vehicle=car.slug, error=str(error))
            # If a page was asked for already, the floor counts from there.
            pause = max(STORE_PAUSE, profile.floor) if ticket.calls else STORE_PAUSE
            self._timer.arm(car.id, car.vehicle.brand, self._clock.now() + pause)
            return
        except Exception as bug:
            # Whatever one car's answer does to us, every other car goes on.
            self._log.exception("poll.bug", vehicle=car.slug)
            answer = Unreadable("BUG", f"evbatteryd failed on the answer ({type(bug).__name__})")
        self._settling.add(car.id)
        now = self._clock.now()
        if ticket.calls:
            self._outages.answered(car, answer, profile, now)
        problem = answer if isinstance(answer, SourceError) else None
        await self.standing.heard(car.id, purse, problem)
        ticket.close()
        polled: Polled | None = None

        def decide(current: Car) -> Polled | None:
            nonlocal polled
            anew = current.vehicle.consent != car.vehicle.consent
            if current.vehicle.withdrawn_at is not None:
                polled = None
            elif anew and isinstance(answer, ConsentLost | NotCapable):
                polled = self._consented_meanwhile(current, now)
            else:
                polled = self._decide(current, answer, purse, ticket.calls, began, now)
            return polled

        settled = await self._cars.record(car.id, decide)
        if polled is None:
            return
        label = answer.outcome if isinstance(answer, SourceError) else settled.schedule.outcome
        self._tally.polled(car.vehicle.consent.make, label, now - began)
        self._report(car, settled)
        if isinstance(answer, Observation):
            self._report_signals(settled, answer, polled.rejected)
        for listener in self._listeners:
            listener(Asked(settled, polled.news, problem, ticket.calls))

    def _decide(
        self,
        car: Car,
        answer: Observation | SourceError,
        purse: Purse,
        calls: int,
        began: datetime,
        now: datetime,
    ) -> Polled:
        profile, lore = self._fleet.profile(car), self._lores[car.vehicle.consent.application]
        decide = partial(
            settle, answer=answer, profile=profile, share=purse.share(car.id), lore=lore, calls=calls
        )
        try:
            settled = decide(car, began=began, now=now)
        except Exception:
            if not car.learned:
                raise
            # What was learnt is kept, so a mistake in it would come again after every restart.
            self._log.exception("policy.bug", vehicle=car.slug)
            settled = decide(replace(car, learned=b""), began=began, now=now)
        if settled.missed:
            self._report_silence(car, now)
        excerpt = answer.excerpt if isinstance(answer, Unreadable) else ""
        return Polled(
            car=settled.car,
            news=settled.news,
            at=now,
            rejected=settled.rejected,
            excerpt=self._redact(excerpt) if excerpt else None,
        )

    def _consented_meanwhile(self, car: Car, now: datetime) -> Polled:
        """The consent that was refused is not the one the owner has given since: ask with that."""
        first = consented_anew(self._fleet.profile(car), car.vehicle.spread, now, now)
        schedule = replace(car.schedule, due=first.at, reason=first.reason, polled_at=now, gain=0.0)
        return Polled(car=replace(car, schedule=schedule), news=False, at=now)

    def _report(self, before: Car, after: Car) -> None:
        """One line when something changed; nothing when it happened again."""
        log = self._log.bind(vehicle=after.slug, make=after.vehicle.consent.make)
        was, now = before.trouble, after.trouble
        if now is not None and now.outcome in _OF_THE_APPLICATION:
            return  # said once for all its cars
        if now is not None and (was is None or was.code != now.code):
            asleep = now.outcome in {"asleep", "nothing_yet"}
            say = log.info if asleep else log.error if now.outcome == "budget_spent" else log.warning
            say(
                "poll.asleep" if asleep else "poll.failing",
                outcome=now.outcome,
                code=now.code,
                detail=now.detail,
                next=after.schedule.reason,
            )
        elif was is not None and now is None and was.outcome not in _OF_THE_APPLICATION:
            log.info("poll.recovered", after=was.outcome, lasted=words(self._clock.now() - was.since))
        elif after.reading_id is not None and before.reading_id is None:
            log.info("vehicle.first_reading", soc=after.state.soc_percent, next=after.schedule.reason)

    def _report_silence(self, car: Car, now: datetime) -> None:
        """Webhooks no longer deliver what a poll finds: said once a day of an application."""
        application = car.vehicle.consent.application
        said = self._silence_said.get(application)
        if said is None or not timedelta() <= now - said < SILENCE_SAID_AGAIN:
            self._silence_said[application] = now
            self._log.warning("webhooks.silent", application=application, vehicle=car.slug, mend=SILENT)

    def _report_signals(self, car: Car, answer: Observation, rejected: tuple[Rejected, ...]) -> None:
        """Signals without a value to believe, although the car answered: said when there is another one."""
        for value in rejected:
            self._tally.rejected(car.vehicle.consent.make, value.signal)
        wrong = frozenset((value.signal, value.reason) for value in rejected)
        failing = frozenset((problem.signal, problem.code) for problem in answer.problems)
        said = self._said.get(car.id, frozenset())
        if wrong - said:
            self._log.warning(
                "reading.rejected",
                vehicle=car.slug,
                values=[{"signal": v.signal, "raw": v.raw, "reason": v.reason} for v in rejected],
            )
        if failing - said:
            self._log.warning(
                "signals.failing",
                vehicle=car.slug,
                signals=[
                    {"signal": p.signal, "code": p.code, "permanent": p.permanent} for p in answer.problems
                ],
            )
        if wrong or failing:
            self._said[car.id] = wrong | failing
        else:
            self._said.pop(car.id, None)


def _asked(car: Car) -> bool:
    return car.consented and car.schedule.due is not None
