"""Due cars become answers, answers become readings: asked in parallel, by worth, one at a time per car."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from evbatteryd.domain.cadence import (
    Answered,
    Failed,
    Outcome,
    activity,
    consented_anew,
    next_poll,
    words,
)
from evbatteryd.domain.errors import (
    ApplicationRateLimited,
    ApplicationRefused,
    BudgetSpent,
    ConsentLost,
    NotCapable,
    SourceError,
    StoreError,
    Unreadable,
)
from evbatteryd.domain.fleet import Car, Trouble, facts_of
from evbatteryd.domain.plausibility import plausible
from evbatteryd.domain.ports import Clock, Log, Polled, Source, Tally
from evbatteryd.domain.pushing import missed_by_webhooks, silent_for_long
from evbatteryd.domain.reading import BatteryState, Observation, Rejected, Signal, merge
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.flow.cars import Cars
from evbatteryd.flow.purse import CREDENTIALS, OURS, Purse, PurseTicket
from evbatteryd.flow.timer import CohortTimer
from evbatteryd.flow.waiting import Kind, WaitingRoom

APPLICATION_PAUSE = timedelta(minutes=1)
"""How long an application waits that is rate limited without being told for how long."""
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
    room: WaitingRoom = field(default_factory=WaitingRoom)
    someone_waits: asyncio.Event = field(default_factory=asyncio.Event)


class Poller:
    """Takes cars as they fall due, asks their source, and commits what it says.

    At most ``max_in_flight`` requests are under way, at most half of them for one brand: a brand whose cloud
    hangs for five minutes delays nobody else. ``redact`` cleans what an unreadable answer is kept as.
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
        redact: Callable[[str], str],
        on_bug: Callable[[BaseException], None],
    ) -> None:
        self._cars = cars
        self._fleet = cars.fleet
        self._clock = clock
        self._timer = timer
        self._tally = tally
        self._log = log
        self._applications = {name: _Application(*parts) for name, parts in applications.items()}
        self._slots = asyncio.Semaphore(max_in_flight)
        self._most_per_brand = max(1, max_in_flight // 2)
        self._redact = redact
        self._on_bug = on_bug
        self._polls: dict[VehicleId, asyncio.Task[None]] = {}
        self._settling: set[VehicleId] = set()
        self._rang: set[VehicleId] = set()
        self._waited_for: dict[VehicleId, datetime | None] = {}
        """When the cars that wait were due as they began to."""
        self._refused: set[str] = set()
        self._brands: Counter[str] = Counter()
        self._freed = asyncio.Event()
        self._silence_said: dict[str, datetime] = {}
        self._said: dict[VehicleId, frozenset[tuple[Signal, str]]] = {}

    def due(self, vehicle_id: VehicleId) -> None:
        """The car's bell rang."""
        car = self._fleet.get(vehicle_id)
        if car is None or not _asked(car):
            return
        if vehicle_id in self._polls:
            self._rang.add(vehicle_id)
            return
        application = self._applications.get(car.vehicle.consent.application)
        if application is not None:
            kind = (car.vehicle.brand, car.schedule.activity)
            application.room.enter(vehicle_id, kind, car.schedule.due or self._clock.now())
            self._waited_for[vehicle_id] = car.schedule.due
            application.someone_waits.set()
            self._freed.set()  # for a dispatcher that waits for one of another brand

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
                dispatchers.create_task(self._dispatch(application), name=f"dispatch {name}")

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

    async def _dispatch(self, application: _Application) -> None:
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
            vehicle_id = room.take(self._clock.now(), self._interval, self._admits)
            if vehicle_id is not None and self._still_wanted(vehicle_id):
                self._begin(vehicle_id, purse, application.source)
                continue
            purse.give_back()
            self._slots.release()
            if vehicle_id is not None:  # withdrawn while it waited, or answered by a webhook
                continue
            if len(room):  # all of them of brands that have enough requests under way
                self._freed.clear()
                await self._freed.wait()
            else:
                application.someone_waits.clear()

    def _still_wanted(self, vehicle_id: VehicleId) -> bool:
        """Whether a car that waited is to be asked: a webhook may have put its poll off meanwhile."""
        car, waited_for = self._fleet[vehicle_id], self._waited_for.pop(vehicle_id, None)
        due = car.schedule.due
        put_off = due is not None and due != waited_for and due > self._clock.now()
        return _asked(car) and not put_off

    def _interval(self, kind: Kind) -> timedelta:
        return self._fleet.profiles[kind[0]].interval(kind[1])

    def _admits(self, brand: str) -> bool:
        return self._brands[brand] < self._most_per_brand

    def _begin(self, vehicle_id: VehicleId, purse: Purse, source: Source) -> None:
        car = self._fleet[vehicle_id]
        now = self._clock.now()
        self._tally.lag(now - (car.schedule.due or now))
        self._brands[car.vehicle.brand] += 1
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
        await self._mind_application(car, purse, answer)
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

    async def _mind_application(self, car: Car, purse: Purse, answer: Observation | SourceError) -> None:
        """What an answer means for more than its car."""
        match answer:
            case ApplicationRateLimited(code=code, retry_after=told) if code != OURS:
                pause, was_open = told or APPLICATION_PAUSE, not purse.closed_for
                await self._cars.kept(lambda: purse.close(pause))
                if was_open:
                    self._log.warning(
                        "application.rate_limited",
                        application=purse.application,
                        wait_s=pause.total_seconds(),
                    )
            case ApplicationRefused(code=code):
                await purse.close(APPLICATION_PAUSE, emptied=False)
                if purse.application not in self._refused:
                    self._refused.add(purse.application)
                    self._log.error(
                        "application.refused", application=purse.application, code=code, mend=CREDENTIALS
                    )
            case Observation() if purse.application in self._refused:
                self._refused.remove(purse.application)
                self._log.info("application.accepted", application=purse.application)
            case BudgetSpent(code=code) if code != OURS:
                await self._cars.kept(lambda: purse.exhausted(car.id))

    def _decide(
        self,
        car: Car,
        answer: Observation | SourceError,
        purse: Purse,
        calls: int,
        began: datetime,
        now: datetime,
    ) -> Polled:
        """The car after this answer: pure but for the purse's share."""
        profile = self._fleet.profile(car)
        schedule, state, trouble = car.schedule, car.state, None
        rejected: tuple[Rejected, ...] = ()
        excerpt: str | None = None
        outcome: Outcome
        if isinstance(answer, SourceError):
            outcome = Failed(answer, schedule.failures + 1)
            schedule = replace(schedule, failures=outcome.in_a_row)
            trouble = _trouble(car.trouble, answer, now)
            if isinstance(answer, Unreadable) and answer.excerpt:
                excerpt = self._redact(answer.excerpt)
        else:
            checked = plausible(answer, state, now)
            rejected = checked.rejected
            state, news = merge(state, checked.measurements)
            outcome = Answered(news)
            schedule = replace(
                schedule,
                answered_at=now,
                failures=0,
                calls_per_poll=max(calls, 1),
                activity=activity(car.state, state, profile, now),
            )
            schedule = replace(schedule, pushed_at=self._still_pushed(car, state, now))
        known = replace(car, schedule=schedule)
        decision = next_poll(facts_of(known, profile, outcome, purse.share(car.id)), now)
        silent = car.schedule.pushed_at is not None and schedule.pushed_at is None
        schedule = replace(
            schedule,
            due=decision.at,
            reason=f"{decision.reason} (webhooks have fallen silent)" if silent else decision.reason,
            polled_at=began if calls else schedule.polled_at,
            outcome=outcome.label,
        )
        return Polled(
            car=replace(car, state=state, schedule=schedule, trouble=trouble),
            news=isinstance(outcome, Answered) and bool(outcome.news),
            at=now,
            rejected=rejected,
            excerpt=excerpt,
        )

    def _still_pushed(self, car: Car, state: BatteryState, now: datetime) -> datetime | None:
        """When a webhook last brought data, if they can be taken to deliver after what this poll found."""
        pushed_at, profile, doing = car.schedule.pushed_at, self._fleet.profile(car), car.schedule.activity
        if pushed_at is None or silent_for_long(pushed_at, profile, doing, now):
            return None
        if missed_by_webhooks(car.state, state, pushed_at, profile, doing, now):
            self._report_silence(car, now)
            return None
        return pushed_at

    def _consented_meanwhile(self, car: Car, now: datetime) -> Polled:
        """The consent that was refused is not the one the owner has given since: ask with that."""
        first = consented_anew(self._fleet.profile(car), car.vehicle.spread, now, now)
        schedule = replace(car.schedule, due=first.at, reason=first.reason, polled_at=now)
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


def _trouble(before: Trouble | None, error: SourceError, now: datetime) -> Trouble:
    """The same trouble as before goes on since then; another one begins now."""
    since = before.since if before is not None and before.outcome == error.outcome else now
    return Trouble(error.outcome, error.code, error.detail, since)
