"""Commands become calls: refused with the reason where they cannot be, bounded, and shown by readings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from evbatteryd.domain.admission import (
    LOOK_TAKES,
    Refusal,
    Verdict,
    action_verdict,
    automated,
    forbidden,
    look_verdict,
    looks,
    may_move,
    never,
    not_shown,
    poll_verdict,
    refusals,
    shown,
    spent_automated,
    told_to_wait,
    too_far,
    unread,
)
from evbatteryd.domain.cadence import words
from evbatteryd.domain.commanding import (
    OPERATOR,
    Action,
    Command,
    CommandAnswer,
    CommandKind,
    CommandOutcome,
    command_in,
)
from evbatteryd.domain.errors import (
    ApplicationRateLimited,
    Asleep,
    BudgetSpent,
    ConsentLost,
    NotCapable,
    NotNow,
    NotPermitted,
    OwnerMustAct,
    RateLimited,
    SourceError,
    StoreError,
    Unreachable,
)
from evbatteryd.domain.fleet import Car
from evbatteryd.domain.ledger import Bucket, Share
from evbatteryd.domain.ports import Clock, Log, Source, Tally
from evbatteryd.domain.reading import BatteryState
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.flow.cars import Cars
from evbatteryd.flow.errand import Errand
from evbatteryd.flow.pauses import pause
from evbatteryd.flow.poller import Asked, Poller
from evbatteryd.flow.purse import Purse

MOST_AN_HOUR: Final = 20
"""Commands of one car and origin that are carried out."""
MOST_AT_A_TIME: Final = 256
"""Commands that are sent or wait for it, of all cars together."""
HOUR: Final = timedelta(hours=1)
PATIENCE: Final = timedelta(minutes=5)
"""How long a command waits for a request of the application to be free, a poll for its turn."""
LONGEST_POLL: Final = timedelta(minutes=15)
"""How long the answer to a poll is waited for. Smartcar answers within 5 minutes; a poll may take pages."""
KEPT_WITHIN_S: Final = 10.0
"""Real seconds that the store may take to keep a moved poll."""
LONGEST_ECHO: Final = 40
"""Characters of what was not understood that are said again."""
STOPPED: Final = "evbatteryd was stopped"
_MISTAKES: Final = frozenset(
    {
        CommandOutcome.UNKNOWN_VEHICLE,
        CommandOutcome.NOT_UNDERSTOOD,
        CommandOutcome.NOT_READ,
        CommandOutcome.NOT_PERMITTED,
        CommandOutcome.NOT_CAPABLE,
        CommandOutcome.CHATTERING,
    }
)
"""Refusals that whoever configured it has to mend: said in the log once an hour."""
_ACTIONS: Final = {
    CommandKind.CHARGING: (Action.START, Action.STOP),
    CommandKind.CHARGE_LIMIT: (Action.LIMIT,),
}


class CarCommands:
    """Implements :class:`evbatteryd.domain.ports.Commands`.

    A poll, and the readings that show what a car did, are polls like any other: the car falls due, durably,
    and the poller does the rest. ``applications``: as the poller has them.
    """

    def __init__(
        self,
        cars: Cars,
        clock: Clock,
        tally: Tally,
        log: Log,
        *,
        applications: Mapping[str, tuple[Source, Purse]],
        poller: Poller,
    ) -> None:
        self._cars = cars
        self._fleet = cars.fleet
        self._poller = poller
        self._clock = clock
        self._tally = tally
        self._log = log
        self._applications = applications
        self._open = False
        self._errands: dict[VehicleId, dict[Errand, asyncio.Task[None]]] = {}
        self._under_way = 0
        self._begun_at = clock.now()
        self._carried_out: dict[tuple[VehicleId, str], list[datetime]] = {}
        """When commands of each car and origin were, in the last hour, oldest first."""
        self._automated: dict[VehicleId, Bucket] = {}
        """What commands of automations may still spend."""
        self._payers: dict[VehicleId, Errand] = {}
        """For whose sake the next poll of a car is made."""
        self._refusals: dict[tuple[VehicleId, Action], Refusal] = {}
        self._sent_at: dict[tuple[VehicleId, CommandKind], dict[Command, datetime]] = {}
        """When a car was told what it may have done."""
        self._said: dict[tuple[VehicleId | None, CommandOutcome], datetime] = {}
        cars.listen(lambda car, _: self._stir(car.id))
        poller.listen(self._polled)

    async def run(self) -> None:
        """Take commands until cancelled. Those under way go on then: see :meth:`drain`."""
        self._open = True
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._open = False

    async def drain(self, grace: float) -> None:
        """Answer all that are under way: those that were sent, or whose poll was, within ``grace`` real
        seconds by what is said to them, all others at once."""
        self._open = False
        awaited = {task for errand, task in self._all() if self._is_asking(errand)}
        for _, task in self._all():
            if task not in awaited:
                task.cancel()
        if awaited:
            await asyncio.wait(awaited, timeout=grace)
        tasks = [task for _, task in self._all()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def give(self, slug: str, kind: CommandKind, text: str, origin: str) -> AsyncIterable[CommandAnswer]:
        try:
            taken = self._consider(slug, kind, text, origin)
        except Exception:
            # Whatever one command does to us, every other one is taken.
            self._log.exception("command.bug", vehicle=_echo(slug), command=kind)
            answer = CommandAnswer(
                command=kind, value=_echo(text), outcome=CommandOutcome.FAILED, reason=_MISTAKE, final=True
            )
            taken = self._refused(answer, slug, origin)
        return _only(taken) if isinstance(taken, CommandAnswer) else taken

    def possible(self, car: Car) -> frozenset[CommandKind]:
        if unread(car, self._share(car)) is not None or car.schedule.due is None:
            return frozenset()
        profile = self._fleet.profile(car)
        kinds = {
            kind
            for kind, actions in _ACTIONS.items()
            if (able := [action for action in actions if self._refusal(car, action) is None])
            and never(car, profile, able) is None
        }
        return frozenset({CommandKind.POLL, *kinds})

    # What is taken

    def _consider(self, slug: str, kind: CommandKind, text: str, origin: str) -> Errand | CommandAnswer:
        car, command = self._fleet.by_slug(slug), command_in(kind, text)
        if car is None or isinstance(command, str):
            return self._refused(self._not_understood(slug, kind, text, car, command), slug, origin)
        own = [errand for errand in self._going(car.id) if errand.command.kind is kind]
        # What waits may be replaced, so whoever repeats what was sent before it joins that.
        last = [errand for errand in own if errand.waits and errand.command != command]
        same = next((errand for errand in reversed(own) if errand not in last), None)
        if same is None or same.command != command:
            verdict = self._not_taken() or self._verdict(car, command) or self._too_many(car, command, origin)
            if verdict is not None:
                return self._refused(self._answer(car, command, verdict), slug, origin)
            same = None
        for errand in last:
            self._give_up(errand, CommandOutcome.UNDER_WAY, "a newer command came before it was sent")
        if same is None:
            return self._begin(car, command, origin)
        self._log.debug("command.joined", vehicle=car.slug, command=kind, origin=origin)
        return same

    def _not_understood(
        self, slug: str, kind: CommandKind, text: str, car: Car | None, command: Command | str
    ) -> CommandAnswer:
        if car is None:
            outcome, renamed = CommandOutcome.UNKNOWN_VEHICLE, self._fleet.by_former_slug(slug)
            why = f"no vehicle is called {_echo(slug)!r}"
            if renamed is not None:
                why = f"this vehicle is called {renamed.slug!r} now: send its commands there"
        else:
            outcome, why = CommandOutcome.NOT_UNDERSTOOD, f"{_echo(text)!r} is not understood: {command}"
        return CommandAnswer(command=kind, value=_echo(text), outcome=outcome, reason=why, final=True)

    def _not_taken(self) -> Verdict | None:
        """Why no command of any car is taken at this moment."""
        if not self._open:
            return Verdict(
                CommandOutcome.NOT_NOW, "evbatteryd is starting or stopping: try again in a moment"
            )
        if self._under_way >= MOST_AT_A_TIME:
            why = f"{MOST_AT_A_TIME} commands are under way, more are not taken: try again in a moment"
            return Verdict(CommandOutcome.NOT_NOW, why)
        return None

    def _too_many(self, car: Car, command: Command, origin: str) -> Verdict | None:
        """Why whoever commands has had this car do enough; what costs nothing is never too much."""
        if command.action is None and self._poller.asking(car.id):
            return None
        if len(self._lately(car.id, origin)) >= MOST_AN_HOUR:
            why = (
                f"chattering: no more than {MOST_AN_HOUR} commands of this vehicle are carried out in an hour"
            )
            return Verdict(CommandOutcome.CHATTERING, why)
        share = self._share(car)
        if origin == OPERATOR or share is None:
            return None
        wait = self._automated_bucket(car.id, share).wait(automated(share))
        return spent_automated(wait, self._clock.now())

    def _lately(self, vehicle_id: VehicleId, origin: str) -> list[datetime]:
        """When commands of this origin were carried out in the last hour."""
        now, before = self._clock.now(), self._carried_out.get((vehicle_id, origin), ())
        lately = [at for at in before if timedelta() <= now - at < HOUR]
        self._carried_out[vehicle_id, origin] = lately
        return lately

    def _automated_bucket(self, vehicle_id: VehicleId, share: Share) -> Bucket:
        budget, now = automated(share), self._clock.now()
        full = Bucket(float(budget.bucket), now)
        return self._automated.get(vehicle_id, full).now(budget, now)

    def _verdict(self, car: Car, command: Command) -> Verdict | None:
        """What a command is answered at no cost; None: it is to be carried out."""
        share, profile, now = self._share(car), self._fleet.profile(car), self._clock.now()
        if (gone := unread(car, share)) is not None or share is None:
            return gone
        if (closed := self._closed(car)) is not None:
            return closed
        action = command.action
        if action is None:
            return None if self._poller.asking(car.id) else poll_verdict(car, profile, share, now)
        if (unable := never(car, profile, [action])) is not None:
            return unable
        if (refusal := self._refusal(car, action)) is not None:
            return refusal.verdict
        return action_verdict(
            command, car, profile, share, now, commanded_at=self._commanded_at(car, command, now)
        )

    def _commanded_at(self, car: Car, command: Command, now: datetime) -> datetime:
        """When the car was last told to do otherwise. Who did so before our start, nobody knows."""
        going = [errand.command for errand in self._going(car.id)]
        if any(one.kind is command.kind and one != command for one in going):
            return now  # what is known is of before the car has done that
        sent = self._sent_at.get((car.id, command.kind), {})
        return max([self._begun_at, *(at for one, at in sent.items() if one != command)])

    def _closed(self, car: Car) -> Verdict | None:
        """Whether its application may not ask for longer than a command waits."""
        closed_for = self._application(car)[1].closed_for
        if closed_for <= PATIENCE:
            return None
        why = f"the application may not ask anything for another {words(closed_for)}"
        return Verdict(CommandOutcome.NOT_NOW, why)

    def _refusal(self, car: Car, action: Action) -> Refusal | None:
        found = self._refusals.get((car.id, action))
        return found if found is not None and found.stands(car, self._clock.now()) else None

    def _application(self, car: Car) -> tuple[Source, Purse]:
        return self._applications[car.vehicle.consent.application]

    def _share(self, car: Car) -> Share | None:
        application = self._applications.get(car.vehicle.consent.application)
        return None if application is None else application[1].share(car.id)

    # What is carried out

    def _begin(self, car: Car, command: Command, origin: str) -> Errand:
        errand = Errand(car.id, command, origin, self._clock.now())
        task = asyncio.create_task(self._carry_out(errand), name=f"command {command.kind} {car.slug}")
        self._errands.setdefault(car.id, {})[errand] = task
        self._under_way += 1
        task.add_done_callback(lambda _: self._done(errand))
        return errand

    def _done(self, errand: Errand) -> None:
        own = self._errands[errand.vehicle_id]
        del own[errand]
        if not own:
            del self._errands[errand.vehicle_id]
        if not errand.told:
            self._under_way -= 1
        if not errand.ended:
            self._stopped(errand)

    def _stopped(self, errand: Errand) -> None:
        """It was cancelled by our own end."""
        if errand.command.action is None or not errand.calls:
            self._end(errand, CommandOutcome.FAILED, f"{STOPPED} before it was done")
        elif errand.told:
            self._end(errand, CommandOutcome.UNCONFIRMED, _STOPPED_BEFORE_SHOWN)
        else:
            why = f"{STOPPED} before an answer came; a reading will show whether the car did it"
            self._end(errand, CommandOutcome.UNCONFIRMED, why)

    def _give_up(self, errand: Errand, outcome: CommandOutcome, why: str) -> None:
        """Ended for the sake of a newer one."""
        self._end(errand, outcome, why)
        self._errands[errand.vehicle_id][errand].cancel()

    def _charge(self, errand: Errand, calls: int) -> None:
        errand.calls += calls
        share = self._share(self._fleet[errand.vehicle_id])
        if errand.origin != OPERATOR and share is not None:
            bucket = self._automated_bucket(errand.vehicle_id, share)
            self._automated[errand.vehicle_id] = bucket.take(calls)

    async def _carry_out(self, errand: Errand) -> None:
        self._log.info(
            "command.begun",
            vehicle=self._fleet[errand.vehicle_id].slug,
            command=errand.command.kind,
            value=errand.command.value,
            origin=errand.origin,
        )
        try:
            if errand.command.action is None:
                await self._poll(errand)
            else:
                await self._act(errand, errand.command.action)
        except Exception:
            self._log.exception("command.bug", vehicle=self._fleet[errand.vehicle_id].slug)
            self._end(errand, CommandOutcome.FAILED, _MISTAKE)

    # One poll

    async def _poll(self, errand: Errand) -> None:
        vehicle_id, now = errand.vehicle_id, self._clock.now()
        begun_by, ended_by, before = now + PATIENCE, now + LONGEST_POLL, self._fleet[vehicle_id]
        self._lately(vehicle_id, errand.origin).append(now)
        while not errand.polls:
            car, now = self._fleet[vehicle_id], self._clock.now()
            asking = self._poller.asking(vehicle_id)
            if (gone := unread(car, self._share(car))) is not None:
                return self._end(errand, gone.outcome, gone.reason)
            if now >= (ended_by if asking else begun_by):
                return await self._not_polled(errand, before, asking)
            if not asking and not await self._ask_by(errand, now, "asked for by a command"):
                return self._end(errand, CommandOutcome.FAILED, _NOT_KEPT)
            await pause(self._clock, (ended_by if asking else begun_by) - now, unless=errand.stirred)
        return self._tell_poll(errand, errand.polls[0])

    async def _not_polled(self, errand: Errand, before: Car, asking: bool) -> None:
        """Its turn did not come, or its answer did not."""
        if asking:
            why = f"no answer within {words(LONGEST_POLL)}: what it brings is published when it comes"
            return self._end(errand, CommandOutcome.FAILED, why)
        why = self._poller.why_waiting(errand.vehicle_id) or "its turn has not come"
        if self._payers.get(errand.vehicle_id) is errand:
            del self._payers[errand.vehicle_id]
            await self._put_back(errand.vehicle_id, before)
        return self._end(errand, CommandOutcome.NOT_NOW, f"not asked within {words(PATIENCE)}: {why}")

    def _tell_poll(self, errand: Errand, asked: Asked) -> None:
        match asked.error:
            case None:
                self._end(errand, CommandOutcome.DONE, _what_came(asked, self._clock.now()))
            case BudgetSpent(detail=detail):
                self._end(errand, CommandOutcome.BUDGET_SPENT, detail)
            case ApplicationRateLimited(detail=detail) if not asked.calls:
                self._end(errand, CommandOutcome.NOT_NOW, detail)
            case error:
                self._end(errand, CommandOutcome.FAILED, error.detail)

    async def _ask_by(self, errand: Errand, at: datetime, reason: str) -> bool:
        """Have the car polled then at the latest, in front of others. Whether that was kept in time."""
        moved = False

        def sooner(car: Car) -> Car:
            nonlocal moved
            schedule = car.schedule
            moved = car.consented and schedule.due is not None and schedule.due > at
            return replace(car, schedule=replace(schedule, due=at, reason=reason, gain=0.0)) if moved else car

        if not await self._changed(errand.vehicle_id, sooner):
            return False
        if moved:
            self._payers[errand.vehicle_id] = errand
        self._poller.hurry(errand.vehicle_id)
        return True

    async def _put_back(self, vehicle_id: VehicleId, before: Car) -> None:
        """The car is due when it was, if nothing but us has moved its poll since."""

        def as_before(car: Car) -> Car:
            ours = replace(car.schedule, due=before.schedule.due, reason=before.schedule.reason)
            same = replace(ours, gain=before.schedule.gain) == before.schedule
            return replace(car, schedule=before.schedule) if same else car

        if not await self._changed(vehicle_id, as_before):
            self._log.warning("command.not_put_back", vehicle=before.slug)

    async def _changed(self, vehicle_id: VehicleId, change: Callable[[Car], Car]) -> bool:
        """Whether the change of a car was kept in time."""
        try:
            async with asyncio.timeout(KEPT_WITHIN_S):
                await self._cars.change(vehicle_id, change)
        except TimeoutError:
            return False
        return True

    # One action

    async def _act(self, errand: Errand, action: Action) -> None:
        if not await self._turn(errand):
            why = f"the command before it has not been answered for {words(PATIENCE)}"
            return self._end(errand, CommandOutcome.UNDER_WAY, why)
        source, purse = self._application(self._fleet[errand.vehicle_id])
        if not await self._token(purse):
            why = f"the application has had no request to spare for {words(PATIENCE)}"
            return self._end(errand, CommandOutcome.NOT_NOW, why)
        car = self._fleet[errand.vehicle_id]
        if (verdict := self._verdict(car, errand.command)) is not None:  # as it stands by now
            purse.give_back()
            return self._end(errand, verdict.outcome, verdict.reason)
        ticket = purse.ticket(car.id, prepaid=True)
        before, sent_at = car.state, self._clock.now()
        self._replaces(errand)
        errand.sent_at = sent_at
        self._lately(car.id, errand.origin).append(sent_at)
        error: SourceError | None = None
        done = False
        try:
            done = await source.command(car.vehicle, errand.command, ticket)
        except SourceError as problem:
            error = problem
        except StoreError:
            why = "nothing was sent: the store does not take the note of the call"
            return self._end(errand, CommandOutcome.FAILED, why)
        finally:
            ticket.close()
            self._charge(errand, ticket.calls)
        if error is None:
            outcome = CommandOutcome.DONE if done else CommandOutcome.PENDING
            why = "the car's maker says that it was done" if done else "the car's maker has taken it on"
        else:
            outcome, why = _meaning(error, ticket.calls)
        if ticket.calls and not outcome.refused:
            self._sent_at.setdefault((car.id, errand.command.kind), {})[errand.command] = sent_at
        await self._poller.standing.heard(car.id, purse, error)
        await self._remember(car, action, error)
        errand.told = True
        self._under_way -= 1
        self._stir(car.id)
        if outcome not in _TO_BE_SHOWN:
            return self._end(errand, outcome, why)
        if not self._open:
            return self._end(errand, CommandOutcome.UNCONFIRMED, f"{why}; {_STOPPED_BEFORE_SHOWN}")
        self._say(errand, outcome, f"{why}: a reading will show it", final=False)
        return await self._see(errand, before, sent_at)

    async def _turn(self, errand: Errand) -> bool:
        """Wait until the car has answered what it was told before. Whether it did within the patience."""
        by = self._clock.now() + PATIENCE
        while any(not before.told for before in self._before(errand)):
            if self._clock.now() >= by:
                return False
            await pause(self._clock, by - self._clock.now(), unless=errand.stirred)
        return True

    def _before(self, errand: Errand) -> list[Errand]:
        """What else the car was to be told earlier, and may still come to something."""
        going = self._going(errand.vehicle_id)
        return [one for one in going[: going.index(errand)] if one.command.action is not None]

    def _replaces(self, errand: Errand) -> None:
        """What the car was told before of the same kind is shown by no reading any more."""
        for before in self._before(errand):
            if before.command.kind is errand.command.kind:
                why = "another command came before a reading showed it"
                self._give_up(before, CommandOutcome.UNCONFIRMED, why)

    async def _token(self, purse: Purse) -> bool:
        """Take one of the bucket, if there is one within the patience."""
        taking = asyncio.ensure_future(purse.token())
        enough = asyncio.ensure_future(self._clock.sleep(PATIENCE))
        try:
            await asyncio.wait({taking, enough}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if taking.done():
                purse.give_back()
            raise
        finally:
            enough.cancel()
            if not (taken := taking.done()):
                taking.cancel()
        return taken

    async def _remember(self, car: Car, action: Action, error: SourceError | None) -> None:
        """What the answer to a command means for the next ones, and for polls."""
        now, profile = self._clock.now(), self._fleet.profile(car)
        if found := refusals(car, action, error, now):
            self._refusals.update({(car.id, refused): refusal for refused, refusal in found.items()})
            self._cars.announce(self._fleet[car.id])  # it can be commanded less than was known
        if isinstance(error, RateLimited):
            waits = error
            if not await self._changed(car.id, lambda known: told_to_wait(known, waits, profile, now)):
                self._log.warning("command.wait_not_kept", vehicle=car.slug)

    async def _see(self, errand: Errand, before: BatteryState, sent_at: datetime) -> None:
        """Wait for a reading that shows it, for two polls at most, and answer by that."""
        car = self._fleet[errand.vehicle_id]
        profile = self._fleet.profile(car)
        both = looks(car, profile, self._clock.now())
        if (far := too_far(both[0], self._clock.now())) is not None:
            return self._not_seen(errand, sent_at, far)
        until = both[-1] + LOOK_TAKES
        for look_at in both:
            while True:
                car, now = self._fleet[errand.vehicle_id], self._clock.now()
                showing = shown(errand.command, car.state, before, sent_at)
                if showing is not None:
                    return self._end(errand, CommandOutcome.CONFIRMED, showing)
                if (polled_at := car.schedule.polled_at) is not None and polled_at >= look_at:
                    break
                if now >= until:
                    return self._not_seen(errand, sent_at, "the car could not be asked in time")
                if not self._poller.asking(car.id) and may_move(car, now):
                    if (why := look_verdict(car, self._share(car), profile, now)) is not None:
                        return self._not_seen(errand, sent_at, why)
                    if not await self._ask_by(errand, look_at, "asked whether it did as it was told"):
                        return self._not_seen(errand, sent_at, _NOT_KEPT)
                await pause(self._clock, until - now, unless=errand.stirred)
        return self._not_seen(errand, sent_at)

    def _not_seen(self, errand: Errand, sent_at: datetime, why: str | None = None) -> None:
        known = not_shown(errand.command, self._fleet[errand.vehicle_id].state, sent_at)
        self._end(errand, CommandOutcome.UNCONFIRMED, known if why is None else f"{known}, and {why}")

    # Who works on what

    def _all(self) -> list[tuple[Errand, asyncio.Task[None]]]:
        return [pair for own in self._errands.values() for pair in own.items()]

    def _going(self, vehicle_id: VehicleId) -> list[Errand]:
        return [errand for errand in self._errands.get(vehicle_id, ()) if not errand.ended]

    def _is_asking(self, errand: Errand) -> bool:
        """Whether an answer to it may come at any moment."""
        if errand.command.action is None:
            return self._poller.asking(errand.vehicle_id) or bool(errand.polls)
        return errand.sent_at is not None and not errand.told

    def _stir(self, vehicle_id: VehicleId) -> None:
        for errand in self._errands.get(vehicle_id, ()):
            errand.stirred.set()

    def _polled(self, asked: Asked) -> None:
        if (payer := self._payers.pop(asked.car.id, None)) is not None:
            self._charge(payer, asked.calls)
        for errand in self._errands.get(asked.car.id, ()):
            errand.polls.append(asked)
            errand.stirred.set()

    # What is answered

    def _answer(self, car: Car, command: Command, verdict: Verdict) -> CommandAnswer:
        confirmed = verdict.outcome is CommandOutcome.CONFIRMED
        return CommandAnswer(
            command=command.kind,
            value=command.value,
            outcome=verdict.outcome,
            reason=verdict.reason,
            final=True,
            calls_left=self._calls_left(car),
            next_poll=car.schedule.due,
            reading_id=car.reading_id if confirmed else None,
        )

    def _refused(self, answer: CommandAnswer, slug: str, origin: str) -> CommandAnswer:
        """Counted and, where somebody has to mend it, said once an hour of each car."""
        self._tally.command(answer.command, answer.outcome)
        car = self._fleet.by_slug(slug)
        topic = None if car is None else car.id, answer.outcome
        now, said = self._clock.now(), self._said.get(topic)
        loud = answer.outcome in _MISTAKES and (said is None or not timedelta() <= now - said < HOUR)
        if loud:
            self._said[topic] = now
        (self._log.warning if loud else self._log.debug)(
            "command.answered",
            vehicle=_echo(slug),
            command=answer.command,
            value=answer.value,
            origin=origin,
            outcome=answer.outcome,
            reason=answer.reason,
        )
        return answer

    def _say(
        self,
        errand: Errand,
        outcome: CommandOutcome,
        reason: str,
        *,
        final: bool,
        reading_id: str | None = None,
    ) -> None:
        car = self._fleet[errand.vehicle_id]
        self._tally.command(errand.command.kind, outcome)
        errand.say(
            CommandAnswer(
                command=errand.command.kind,
                value=errand.command.value,
                outcome=outcome,
                reason=reason,
                final=final,
                calls=errand.calls,
                calls_left=self._calls_left(car),
                next_poll=car.schedule.due,
                reading_id=reading_id,
            )
        )

    def _end(self, errand: Errand, outcome: CommandOutcome, reason: str) -> None:
        rests = outcome in {CommandOutcome.DONE, CommandOutcome.CONFIRMED}
        reading_id = self._fleet[errand.vehicle_id].reading_id if rests else None
        self._say(errand, outcome, reason, final=True, reading_id=reading_id)
        self._log.info(
            "command.ended",
            vehicle=self._fleet[errand.vehicle_id].slug,
            command=errand.command.kind,
            value=errand.command.value,
            origin=errand.origin,
            outcome=outcome,
            reason=reason,
            calls=errand.calls,
        )
        self._stir(errand.vehicle_id)  # another one may have waited for its end

    def _calls_left(self, car: Car) -> int | None:
        share = self._share(car)
        return None if share is None else share.calls_left


_TO_BE_SHOWN: Final = frozenset({CommandOutcome.DONE, CommandOutcome.PENDING})
"""Outcomes of what a car was told, of which a reading is awaited."""
_MISTAKE: Final = "evbatteryd made a mistake; its log has the details"
_NOT_KEPT: Final = "it could not be written down in time: the store does not take it"
_STOPPED_BEFORE_SHOWN: Final = f"{STOPPED} before a reading showed it; the next one will"


async def _only(answer: CommandAnswer) -> AsyncIterator[CommandAnswer]:
    yield answer


def _what_came(asked: Asked, now: datetime) -> str:
    state = asked.car.state
    soc, measured_at = state.soc_percent, state.measured_at
    charge = "its state of charge is not known" if soc is None else f"{soc:g} %"
    age = "" if measured_at is None else f" measured {words(now - measured_at)} ago"
    return f"a new reading: {charge}{age}" if asked.news else f"nothing new: still {charge}{age}"


def _meaning(error: SourceError, calls: int) -> tuple[CommandOutcome, str]:
    """What became of a command that its source answered with an error. ``calls``: that were sent."""
    match error:
        case NotCapable():
            outcome = CommandOutcome.NOT_CAPABLE
        case NotPermitted() | ConsentLost() | OwnerMustAct():
            outcome = forbidden(error)
        case BudgetSpent():
            outcome = CommandOutcome.BUDGET_SPENT
        case NotNow() | Asleep() | RateLimited() | ApplicationRateLimited():
            outcome = CommandOutcome.NOT_NOW
        case Unreachable(in_doubt=True) if calls:
            # It may have arrived all the same.
            outcome = CommandOutcome.PENDING
        case _:
            outcome = CommandOutcome.FAILED
    wait = error.retry_after
    return outcome, error.detail if wait is None else f"{error.detail}: wait {words(wait)}"


def _echo(text: str) -> str:
    """What somebody sent, as far as it is said again: short, and nothing that a terminal would heed."""
    shown = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text.strip())
    return shown if len(shown) <= LONGEST_ECHO else f"{shown[:LONGEST_ECHO]}..."
