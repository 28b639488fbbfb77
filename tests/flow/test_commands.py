"""Commands spend knowingly, are refused with the reason, and end on what a reading shows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from evbatteryd.domain.commanding import Action, Command, CommandAnswer, CommandKind, CommandOutcome
from evbatteryd.domain.errors import (
    ApplicationRateLimited,
    ApplicationRefused,
    Asleep,
    BudgetSpent,
    CommandFailed,
    ConsentLost,
    NotCapable,
    NotNow,
    NotPermitted,
    OwnerMustAct,
    RateLimited,
    SourceError,
    Unreachable,
)
from evbatteryd.domain.fleet import Car, Trouble
from evbatteryd.domain.ledger import Bucket, Budget
from evbatteryd.domain.ports import Polled
from evbatteryd.domain.profile import BrandProfile, Quirk
from evbatteryd.domain.reading import Measurement, Observation, Origin, Signal, merge
from evbatteryd.domain.vehicle import Vehicle
from evbatteryd.flow import commands as commands_module
from evbatteryd.flow.commands import CarCommands
from tests.fakes import START, VirtualClock, settle, until
from tests.flow.world import PROFILES, RENAULT, World, world

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
POLL, CHARGING, LIMIT = CommandKind.POLL, CommandKind.CHARGING, CommandKind.CHARGE_LIMIT
CONTROL = frozenset({"read_battery", "control_charge"})


class Town:
    """A world with its clock running for whoever commands, and one car that may be commanded."""

    def __init__(self, w: World) -> None:
        self.w = w
        self.commands = CarCommands(
            w.cars,
            w.clock,
            w.metrics,
            w.log,
            applications={"home": (w.source, w.purse)},
            poller=w.poller,
        )

    @property
    def car(self) -> Car:
        return next(iter(self.w.fleet))

    def give(
        self, kind: CommandKind, text: str = "now", slug: str | None = None, *, origin: str = "mqtt"
    ) -> Heard:
        return Heard(self.commands.give(slug or self.car.slug, kind, text, origin))

    async def refused(self, kind: CommandKind, text: str = "now", slug: str | None = None) -> CommandAnswer:
        """The one answer to a command that costs nothing."""
        before = self.calls, list(self.w.source.asked), list(self.w.source.commanded)
        heard = self.give(kind, text, slug)
        await until(lambda: heard.over)
        assert (self.calls, list(self.w.source.asked), list(self.w.source.commanded)) == before
        (answer,) = heard
        assert (answer.final, answer.calls) == (True, 0)
        return answer

    @property
    def calls(self) -> int:
        return self.w.purse.spent(self.car.id)

    def counted(self, kind: CommandKind, outcome: CommandOutcome) -> float:
        labels = {"command": kind, "outcome": outcome}
        return self.w.metrics._registry.get_sample_value("evbatteryd_commands_total", labels) or 0.0

    async def calm(self, **schedule: object) -> Car:
        """The car was read long ago, and is due in three hours."""
        now = self.w.clock.now()
        usual = {"due": now + 3 * HOUR, "reason": "parked", "outcome": "new", "polled_at": now - HOUR}
        return await self.w.cars.change(
            self.car.id, lambda car: replace(car, schedule=replace(car.schedule, **(usual | schedule)))
        )

    async def tell(self, *, age: timedelta = timedelta(), **values: object) -> None:
        """A webhook brings these values, measured so long ago."""
        now = self.w.clock.now()
        told = [Measurement(Signal[n], v, now - age, now, Origin.WEBHOOK) for n, v in values.items()]

        def decide(car: Car) -> Polled:
            state, news = merge(car.state, told)
            return Polled(car=replace(car, state=state), news=bool(news), at=now, origin=Origin.WEBHOOK)

        await self.w.cars.record(self.car.id, decide)

    async def later(self, span: timedelta, step: timedelta = 20 * SECOND) -> None:
        """Let time pass; the car's bell rings when its poll falls due, and it is answered."""
        end = self.w.clock.now() + span
        await self.idle()
        while (now := self.w.clock.now()) < end:
            await self.w.clock.advance(min(step, end - now))
            self.ring()
            await until(lambda: self.w.poller.in_flight == 0 and self.w.poller.waiting == 0)
            await self.idle()

    def ring(self) -> None:
        due = self.car.schedule.due
        if due is not None and due <= self.w.clock.now():
            self.w.poller.due(self.car.id)

    async def idle(self) -> None:
        """Until the store has taken what was on its way: it writes in the order that it was told."""
        for _ in range(2):
            await settle()
            await self.w.store.keep_lore("nobody's", b"")
            await settle()


class Heard(list[CommandAnswer]):
    """What somebody who commanded has been answered."""

    def __init__(self, answers: AsyncIterable[CommandAnswer]) -> None:
        super().__init__()
        self.given = answers
        self.task = asyncio.create_task(self._listen(answers))

    async def _listen(self, answers: AsyncIterable[CommandAnswer]) -> None:
        async for answer in answers:
            self.append(answer)

    @property
    def over(self) -> bool:
        return self.task.done()

    @property
    def outcomes(self) -> list[CommandOutcome]:
        return [answer.outcome for answer in self]


@pytest.fixture
def budget() -> Budget:
    return Budget()


@pytest.fixture
async def town(tmp_path: Path, budget: Budget) -> AsyncIterator[Town]:
    async with living(tmp_path, budget) as made:
        yield made


@asynccontextmanager
async def living(path: Path, budget: Budget, clock: VirtualClock | None = None) -> AsyncIterator[Town]:
    """A town in which everything runs, and that is stopped afterwards."""
    async with world(path, budget, clock=clock) as w:
        if not len(w.fleet):
            await w.enrol()
        town = Town(w)
        consent = replace(town.car.vehicle.consent, permissions=CONTROL)
        await w.cars.change(
            town.car.id, lambda car: replace(car, vehicle=replace(car.vehicle, consent=consent))
        )
        if not town.car.schedule.outcome:
            await town.calm()
        running = asyncio.create_task(town.commands.run())
        await settle()
        try:
            yield town
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            await town.commands.drain(0.0)
            assert not town.commands._errands


def profile(monkeypatch: pytest.MonkeyPatch, **figures: object) -> BrandProfile:
    """The car's brand, with these figures changed."""
    changed = replace(RENAULT, **figures)
    monkeypatch.setitem(PROFILES, "renault", changed)
    return changed


# A poll


async def test_a_poll_is_made_at_once_and_its_answer_told(town: Town) -> None:
    town.w.source.soc = 63.0
    heard = town.give(POLL)
    await town.idle()
    assert (heard, town.car.schedule.due) == ([], START)
    assert (await town.w.store.cars())[0].schedule.due == START, "it survives a restart"
    await town.later(2 * SECOND, SECOND)
    await until(lambda: heard.over)
    (answer,) = heard
    assert (answer.outcome, answer.final) == (CommandOutcome.DONE, True)
    assert answer.reason == "a new reading: 63 % measured 60 s ago"
    assert answer.reading_id == town.car.reading_id
    assert (answer.calls, answer.calls_left, answer.next_poll) == (1, 499, town.car.schedule.due)
    assert town.counted(POLL, CommandOutcome.DONE) == 1
    assert [line["outcome"] for line in town.w.said("command.ended")] == ["done"]


async def test_a_poll_that_brings_nothing_new_says_since_when(town: Town) -> None:
    await town.tell(SOC=50.0, CHARGING=False)
    state, at = town.car.state, town.w.clock.now()

    async def again(_: Vehicle) -> Observation:
        found = tuple(replace(one, fetched_at=town.w.clock.now(), origin=Origin.POLL) for one in state)
        return Observation(fetched_at=town.w.clock.now(), measurements=found)

    town.w.source.answer = again
    await town.w.clock.advance(10 * MINUTE)
    heard = town.give(POLL)
    await town.later(2 * SECOND, SECOND)
    await until(lambda: heard.over)
    assert heard[0].outcome is CommandOutcome.DONE
    assert heard[0].reason == "nothing new: still 50 % measured 10 min ago"
    assert town.w.clock.now() - at < 11 * MINUTE


async def test_a_poll_that_fails_tells_the_trouble(town: Town) -> None:
    town.w.source.failing(Unreachable("UPSTREAM:NO_RESPONSE", "the maker's cloud did not answer"))
    heard = town.give(POLL)
    await town.later(2 * SECOND, SECOND)
    await until(lambda: heard.over)
    assert heard.outcomes == [CommandOutcome.FAILED]
    assert (heard[0].reason, heard[0].calls) == ("the maker's cloud did not answer", 1)


async def test_two_that_ask_at_once_share_one_poll(town: Town) -> None:
    one, other = town.give(POLL), town.give(POLL, " NOW ")
    await town.later(2 * SECOND, SECOND)
    await until(lambda: one.over and other.over)
    assert one == other
    assert one.given is other.given, "whoever joins is given the same"
    assert (town.calls, town.counted(POLL, CommandOutcome.DONE)) == (1, 1)


async def test_a_poll_under_way_is_waited_for_and_no_second_one_paid(town: Town) -> None:
    go_on = asyncio.Event()

    async def slowly(vehicle: Vehicle) -> Observation:
        await go_on.wait()
        return await town.w.source.parked(vehicle)

    town.w.source.answer = slowly
    town.w.poller.due(town.car.id)
    await until(lambda: len(town.w.source.asked) == 1)
    heard = town.give(POLL)
    await town.idle()
    go_on.set()
    await until(lambda: heard.over)
    assert (heard.outcomes, heard[0].calls, town.calls) == ([CommandOutcome.DONE], 0, 1)


async def test_webhooks_keep_nobody_from_asking(town: Town) -> None:
    await town.calm(pushed_at=town.w.clock.now(), due=START + 4 * HOUR)
    heard = town.give(POLL)
    await town.later(2 * SECOND, SECOND)
    await until(lambda: heard.over)
    assert heard.outcomes == [CommandOutcome.DONE]


async def test_a_webhook_that_puts_the_poll_off_meanwhile_does_not_end_the_command(town: Town) -> None:
    heard = town.give(POLL)
    await town.idle()
    await town.w.cars.change(
        town.car.id, lambda car: replace(car, schedule=replace(car.schedule, due=START + HOUR))
    )
    await town.idle()
    assert town.car.schedule.due == START
    await town.later(2 * SECOND, SECOND)
    await until(lambda: heard.over)
    assert heard.outcomes == [CommandOutcome.DONE]


async def test_the_floor_of_the_brand_stands(town: Town) -> None:
    await town.calm(polled_at=START - 2 * MINUTE)
    answer = await town.refused(POLL)
    assert answer.outcome is CommandOutcome.NOT_NOW
    assert answer.reason == (
        "asked 2 min ago; Renault tells nothing newer within 5 min: possible again at 12:03 UTC"
    )
    assert answer.document()["result"] == "refused"
    await town.w.clock.advance(3 * MINUTE)
    heard = town.give(POLL)
    await town.later(2 * SECOND, SECOND)
    await until(lambda: heard.over)
    assert heard.outcomes == [CommandOutcome.DONE]


@pytest.mark.parametrize(
    ("outcome", "stands"),
    [("rate_limited", True), ("unreachable", True), ("owner_must_act", True), ("asleep", False)],
)
async def test_a_wait_that_was_imposed_stands_a_mere_pace_does_not(
    town: Town, outcome: str, stands: bool
) -> None:
    await town.calm(outcome=outcome, reason="backing off for 3 h")
    trouble = Trouble(outcome, "SOME:CODE", "because", START)
    await town.w.cars.change(town.car.id, lambda car: replace(car, trouble=trouble))
    if stands:
        answer = await town.refused(POLL)
        assert answer.outcome is CommandOutcome.NOT_NOW
        assert answer.reason == "backing off for 3 h: possible again at 15:00 UTC"
        return
    heard = town.give(POLL)
    await town.later(2 * SECOND, SECOND)
    await until(lambda: heard.over)
    assert heard.outcomes == [CommandOutcome.DONE]


async def test_a_brand_whose_cars_calls_wake_is_let_sleep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile(monkeypatch, quirks=frozenset({Quirk.WAKES_ON_POLL}))
    async with living(tmp_path, Budget()) as town:
        await town.calm(outcome=Asleep.outcome)
        answer = await town.refused(POLL)
        assert (answer.outcome, "12 V" in answer.reason) == (CommandOutcome.NOT_NOW, True)


async def test_who_is_not_read_cannot_be_polled(town: Town) -> None:
    await town.w.cars.change(
        town.car.id, lambda car: replace(car, vehicle=replace(car.vehicle, withdrawn_at=START))
    )
    assert town.commands.possible(town.car) == frozenset()
    for kind, text in ((POLL, "now"), (CHARGING, "on"), (LIMIT, "80")):
        answer = await town.refused(kind, text)
        assert (answer.outcome, "consent is gone" in answer.reason) == (CommandOutcome.NOT_READ, True)


async def test_an_application_that_is_not_configured_is_told(town: Town) -> None:
    stranger = replace(town.car.vehicle.consent, application="office", permissions=CONTROL)
    await town.w.cars.change(
        town.car.id, lambda car: replace(car, vehicle=replace(car.vehicle, consent=stranger))
    )
    answer = await town.refused(POLL)
    assert (answer.outcome, "'office' is not configured" in answer.reason) == (CommandOutcome.NOT_READ, True)
    assert answer.calls_left is None


async def test_a_car_that_can_never_answer_is_not_asked(town: Town) -> None:
    await town.calm(due=None, reason="this car can never answer: not asked again", outcome="not_capable")
    assert (await town.refused(POLL)).outcome is CommandOutcome.NOT_CAPABLE
    assert town.commands.possible(town.car) == frozenset()


class TestBudget:
    """Of three calls, so that none is kept; and of a hundred, of which one is."""

    @pytest.fixture
    def budget(self) -> Budget:
        return Budget(calls_per_vehicle=3)

    async def spend(self, town: Town, calls: int) -> None:
        for _ in range(calls):
            await town.w.purse.ticket(town.car.id).spend()

    async def test_the_last_call_goes_to_a_poll_and_then_none(self, town: Town) -> None:
        await self.spend(town, 2)
        heard = town.give(POLL)
        await town.later(2 * SECOND, SECOND)
        await until(lambda: heard.over)
        assert (heard.outcomes, heard[0].calls_left) == ([CommandOutcome.DONE], 0)
        await town.w.clock.advance(HOUR)
        answer = await town.refused(POLL)
        assert answer.outcome is CommandOutcome.BUDGET_SPENT
        assert (answer.reason, answer.calls_left) == (
            "the plan's calls are used up until 2026-12-01 00:00 UTC",
            0,
        )

    async def test_a_poll_under_way_needs_no_second_call(self, town: Town) -> None:
        await self.spend(town, 2)
        go_on = asyncio.Event()

        async def slowly(vehicle: Vehicle) -> Observation:
            await go_on.wait()
            return await town.w.source.parked(vehicle)

        town.w.source.answer = slowly
        town.w.poller.due(town.car.id)
        await until(lambda: town.calls == 3)
        heard = town.give(POLL)
        go_on.set()
        await until(lambda: heard.over)
        assert (heard.outcomes, heard[0].calls) == ([CommandOutcome.DONE], 0)

    async def test_an_action_needs_a_call_for_its_reading_too(self, town: Town) -> None:
        await self.spend(town, 2)
        answer = await town.refused(CHARGING, "on")
        assert (answer.outcome, answer.calls_left) == (CommandOutcome.BUDGET_SPENT, 1)
        assert "the reading that shows what it did" in answer.reason

    async def test_two_calls_do_for_an_action_and_one_look(self, town: Town) -> None:
        await self.spend(town, 1)
        heard = town.give(CHARGING, "on")
        await until(lambda: len(heard) == 1)
        await town.later(3 * MINUTE)
        await until(lambda: heard.over)
        assert heard.outcomes == [CommandOutcome.DONE, CommandOutcome.UNCONFIRMED]
        assert "the plan's calls are used up" in heard[-1].reason
        assert (heard[-1].calls, heard[-1].calls_left, town.calls) == (2, 0, 3)


class TestReserve:
    @pytest.fixture
    def budget(self) -> Budget:
        return Budget(calls_per_vehicle=100)

    async def test_what_no_routine_poll_may_have_a_command_may(self, town: Town) -> None:
        for _ in range(99):
            await town.w.purse.ticket(town.car.id).spend()
        share = town.w.purse.share(town.car.id)
        assert (share.calls_left, share.reserve) == (1, 1)
        heard = town.give(POLL)
        await town.later(2 * SECOND, SECOND)
        await until(lambda: heard.over)
        assert heard.outcomes == [CommandOutcome.DONE]


async def test_a_commanded_poll_goes_in_front_of_others(town: Town) -> None:
    await town.w.enrol()
    mine, other = town.w.fleet
    town.w.purse._bucket = Bucket(-2.0, START)
    long_due = replace(
        other.schedule,
        due=START - 5 * HOUR,
        outcome="new",
        polled_at=START - DAY,
        answered_at=START - DAY,
    )
    await town.w.cars.change(other.id, lambda car: replace(car, schedule=long_due))
    await town.calm(answered_at=START - HOUR)
    town.w.poller.due(other.id)
    heard = town.give(POLL)
    await town.idle()
    town.ring()
    for asked in (1, 2):
        await town.w.clock.advance(2 * MINUTE + SECOND)
        await until(lambda asked=asked: len(town.w.source.asked) >= asked)
    await until(lambda: heard.over)
    assert [vehicle_id for _, vehicle_id in town.w.source.asked] == [mine.id, other.id]


async def test_a_poll_whose_turn_does_not_come_is_put_back(town: Town) -> None:
    due, reason = town.car.schedule.due, town.car.schedule.reason
    town.w.purse._bucket = Bucket(-30.0, START)  # empty for a quarter of an hour
    heard = town.give(POLL)
    await town.idle()
    assert town.car.schedule.due == START
    town.ring()
    await town.w.clock.advance(6 * MINUTE)
    await until(lambda: heard.over)
    assert heard.outcomes == [CommandOutcome.NOT_NOW]
    assert "waits until the application has a request to spare" in heard[0].reason
    assert (town.car.schedule.due, town.car.schedule.reason) == (due, reason)
    assert (await town.w.store.cars())[0].schedule.due == due
    await town.w.clock.advance(20 * MINUTE)
    assert town.w.source.asked == []


async def test_a_store_that_does_not_take_it_is_no_poll(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands_module, "KEPT_WITHIN_S", 0.02)
    town.w.store.full = {"update"}
    heard = town.give(POLL)
    await until(lambda: heard.over)
    assert (heard.outcomes, "store" in heard[0].reason) == ([CommandOutcome.FAILED], True)
    town.w.store.full = set()


# What is done to a car


async def commanded(town: Town, kind: CommandKind = CHARGING, text: str = "on") -> Heard:
    """Given, and answered for the first time."""
    heard = town.give(kind, text)
    await until(lambda: len(heard) > 0)
    return heard


async def test_a_charge_that_is_started_is_shown_by_a_poll(town: Town) -> None:
    heard = await commanded(town)
    assert town.w.source.commanded == [Command(CHARGING, True)]
    assert heard.outcomes == [CommandOutcome.DONE]
    assert (heard[0].final, heard[0].calls, heard[0].reason) == (
        False,
        1,
        "the car's maker says that it was done: a reading will show it",
    )
    await town.idle()
    assert town.car.schedule.due == START + MINUTE
    assert (await town.w.store.cars())[0].schedule.due == START + MINUTE, "it survives a restart"

    async def charging(_: Vehicle) -> Observation:
        return town.w.source.observation(51.0, timedelta(), CHARGING=True)

    town.w.source.answer = charging
    await town.later(2 * MINUTE)
    await until(lambda: heard.over)
    last = heard[-1]
    assert (last.outcome, last.final, last.reason) == (
        CommandOutcome.CONFIRMED,
        True,
        "it is charging now",
    )
    assert (last.reading_id, last.calls, town.calls) == (town.car.reading_id, 2, 2)
    assert len(town.w.source.asked) == 1


async def test_a_webhook_shows_it_as_well(town: Town) -> None:
    heard = await commanded(town)
    await town.w.clock.advance(20 * SECOND)
    await town.tell(CHARGING=True, SOC=50.0)
    await until(lambda: heard.over)
    assert heard.outcomes == [CommandOutcome.DONE, CommandOutcome.CONFIRMED]
    assert (town.calls, heard[-1].reading_id) == (1, town.car.reading_id)


async def test_what_was_measured_before_the_command_shows_nothing(town: Town) -> None:
    heard = await commanded(town)
    await town.tell(CHARGING=True, SOC=50.0, age=HOUR)
    await town.idle()
    assert heard.outcomes == [CommandOutcome.DONE]


@pytest.mark.parametrize(
    "told", [{"CHARGING": False}, {"PLUGGED_IN": False}], ids=["not charging", "cable pulled"]
)
async def test_a_charge_that_is_stopped_is_shown_by_its_end(town: Town, told: dict[str, object]) -> None:
    await town.tell(CHARGING=True, PLUGGED_IN=True, SOC=50.0)
    await town.w.clock.advance(SECOND)
    heard = await commanded(town, CHARGING, "off")
    assert town.w.source.commanded == [Command(CHARGING, False)]
    await town.w.clock.advance(30 * SECOND)
    await town.tell(PLUGGED_IN=True)
    await town.idle()
    assert heard.outcomes == [CommandOutcome.DONE], "a cable that is in says nothing"
    await town.w.clock.advance(SECOND)
    await town.tell(**told)
    await until(lambda: heard.over)
    assert heard[-1].outcome is CommandOutcome.CONFIRMED


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        (90.0, 80.0, CommandOutcome.CONFIRMED),
        (90.0, 82.0, CommandOutcome.CONFIRMED),
        (90.0, 85.0, None),
        (82.0, 82.0, None),
        (None, 78.0, CommandOutcome.CONFIRMED),
    ],
)
async def test_a_limit_is_shown_by_itself_or_by_what_the_brand_made_of_it(
    town: Town, before: float | None, after: float, outcome: CommandOutcome | None
) -> None:
    await town.tell(SOC=50.0, **({} if before is None else {"CHARGE_LIMIT": before}))
    await town.w.clock.advance(SECOND)
    heard = await commanded(town, LIMIT, "80")
    await town.w.clock.advance(30 * SECOND)
    await town.tell(CHARGE_LIMIT=after)
    await town.idle()
    if outcome is None:
        assert heard.outcomes == [CommandOutcome.DONE]
    else:
        assert heard.outcomes == [CommandOutcome.DONE, outcome]
        assert f"its charge limit is {after:g} %" in heard[-1].reason


async def test_what_two_looks_do_not_show_is_unconfirmed(town: Town) -> None:
    async def pending(vehicle: Vehicle, command: Command) -> bool:
        return False

    async def as_ever(vehicle: Vehicle) -> Observation:
        return town.w.source.observation(50.0, timedelta())

    town.w.source.obey, town.w.source.answer = pending, as_ever
    heard = await commanded(town)
    assert (heard.outcomes, heard[0].final) == ([CommandOutcome.PENDING], False)
    await town.later(40 * MINUTE, MINUTE)
    await until(lambda: heard.over)
    assert heard.outcomes == [CommandOutcome.PENDING, CommandOutcome.UNCONFIRMED]
    assert heard[-1].reason == "the reading of 12:31 UTC still says: it is not charging"
    asked = [at[11:16] for at, _ in town.w.source.asked]
    assert (asked[0], asked[-1]) == ("12:01", "12:31")
    assert heard[-1].calls == 3, "those between are routine"
    assert town.counted(CHARGING, CommandOutcome.UNCONFIRMED) == 1


async def test_the_first_look_keeps_to_the_floor(town: Town) -> None:
    await town.calm(polled_at=START - MINUTE)
    await commanded(town)
    await town.idle()
    assert town.car.schedule.due == START + 4 * MINUTE


async def test_a_wait_that_comes_with_a_look_is_kept(town: Town) -> None:
    town.w.source.failing(RateLimited("UPSTREAM:RATE_LIMIT", "too often", retry_after=2 * HOUR))
    heard = await commanded(town)
    await town.later(50 * MINUTE, MINUTE)
    await until(lambda: heard.over)
    assert heard[-1].outcome is CommandOutcome.UNCONFIRMED
    assert "could not be asked in time" in heard[-1].reason
    assert len(town.w.source.asked) == 1


# What is refused without a call


async def test_without_the_owners_permission_nothing_is_done(town: Town) -> None:
    consent = replace(town.car.vehicle.consent, permissions=frozenset({"read_battery"}))
    await town.w.cars.change(
        town.car.id, lambda car: replace(car, vehicle=replace(car.vehicle, consent=consent))
    )
    answer = await town.refused(CHARGING, "on")
    assert answer.outcome is CommandOutcome.NOT_PERMITTED
    assert "add 'control_charge' to permissions of [smartcar.home]" in answer.reason
    assert town.commands.possible(town.car) == {POLL}
    assert [line["level"] for line in town.w.said("command.answered")] == ["warning"]
    await town.refused(CHARGING, "on")
    assert [line["level"] for line in town.w.said("command.answered")] == ["warning", "debug"]


async def test_what_the_brand_does_not_do_is_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile(monkeypatch, actions=frozenset({Action.START, Action.STOP}))
    async with living(tmp_path, Budget()) as town:
        answer = await town.refused(LIMIT, "80")
        assert (answer.outcome, answer.reason) == (
            CommandOutcome.NOT_CAPABLE,
            "a Renault cannot be given a charge limit through Smartcar",
        )
        assert town.commands.possible(town.car) == {POLL, CHARGING}


async def test_what_a_car_cannot_do_is_asked_of_it_once(town: Town) -> None:
    async def cannot(vehicle: Vehicle, command: Command) -> bool:
        raise NotCapable("COMPATIBILITY:VEHICLE_NOT_CAPABLE", "this car cannot do it")

    town.w.source.obey = cannot
    town.w.heard.clear()
    heard = await commanded(town)
    await until(lambda: heard.over)
    assert town.w.heard == [(town.car, None)], "whoever tells what it can be commanded hears of it"
    assert (heard.outcomes, heard[0].final, heard[0].calls) == ([CommandOutcome.NOT_CAPABLE], True, 1)
    assert (await town.refused(CHARGING, "on")).outcome is CommandOutcome.NOT_CAPABLE
    assert town.commands.possible(town.car) == {POLL, CHARGING, LIMIT}
    await commanded(town, CHARGING, "off")
    assert len(town.w.source.commanded) == 2
    assert town.commands.possible(town.car) == {POLL, LIMIT}
    anew = replace(town.car.vehicle.consent, connection_id="another")
    await town.w.cars.change(
        town.car.id, lambda car: replace(car, vehicle=replace(car.vehicle, consent=anew))
    )
    assert town.commands.possible(town.car) == {POLL, CHARGING, LIMIT}


async def test_a_low_battery_is_known_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile(monkeypatch, start_stop_from_percent=20.0)
    async with living(tmp_path, Budget()) as town:
        await town.tell(SOC=12.0, CHARGE_LIMIT=90.0)
        answer = await town.refused(CHARGING, "on")
        assert (answer.outcome, "20 %, and has 12 %" in answer.reason) == (CommandOutcome.NOT_NOW, True)
        await commanded(town, LIMIT, "80")
        await town.w.clock.advance(DAY)
        await commanded(town)
        assert len(town.w.source.commanded) == 2, "what is known may be wrong by now"


async def test_a_cable_that_is_out_is_known_beforehand(town: Town) -> None:
    await town.tell(SOC=50.0, PLUGGED_IN=False, CHARGING=False)
    answer = await town.refused(CHARGING, "on")
    assert (answer.outcome, answer.reason) == (
        CommandOutcome.NOT_NOW,
        "it is not plugged in: plug it in first",
    )
    await town.w.clock.advance(HOUR)
    await commanded(town)
    assert len(town.w.source.commanded) == 1, "it may have been plugged in since"


@pytest.mark.parametrize(
    ("told", "kind", "text", "reason"),
    [
        ({"CHARGING": True}, CHARGING, "on", "it is charging already"),
        ({"CHARGING": False}, CHARGING, "off", "it is not charging already"),
        ({"CHARGE_LIMIT": 80.0}, LIMIT, "80", "its charge limit is 80 % already"),
    ],
)
async def test_what_is_so_already_costs_nothing(
    town: Town, told: dict[str, object], kind: CommandKind, text: str, reason: str
) -> None:
    await town.w.clock.advance(2 * MINUTE)
    await town.tell(SOC=50.0, **told)
    answer = await town.refused(kind, text)
    assert (answer.outcome, answer.reason, answer.reading_id) == (
        CommandOutcome.CONFIRMED,
        reason,
        town.car.reading_id,
    )
    await town.w.clock.advance(2 * HOUR)
    await commanded(town, kind, text)
    assert len(town.w.source.commanded) == 1, "that was two hours ago"


async def test_what_was_so_before_another_command_is_not_so_already(town: Town) -> None:
    """It was not charging; it was told to; nothing has shown that yet. To stop it is no nonsense."""
    await town.tell(SOC=50.0, CHARGING=False)
    await town.w.clock.advance(SECOND)
    started = await commanded(town, CHARGING, "on")
    stopped = await commanded(town, CHARGING, "off")
    await until(lambda: started.over)
    assert started.outcomes == [CommandOutcome.DONE, CommandOutcome.UNCONFIRMED]
    assert started[-1].reason == "another command came before a reading showed it"
    assert stopped.outcomes == [CommandOutcome.DONE]
    assert len(town.w.source.commanded) == 2
    stopped.task.cancel()


async def test_after_a_command_that_nothing_showed_what_is_known_is_older(town: Town) -> None:
    """The state is fresh, but of before the car was told to do otherwise."""
    await town.tell(SOC=50.0, CHARGING=False)
    await town.w.clock.advance(SECOND)

    async def fails(vehicle: Vehicle, command: Command) -> bool:
        raise CommandFailed("FAILURE", "tried and failed")

    town.w.source.obey = fails
    assert (await commanded(town, CHARGING, "on")).outcomes == [CommandOutcome.FAILED]
    await commanded(town, CHARGING, "off")
    assert len(town.w.source.commanded) == 2


async def test_a_car_is_told_one_thing_at_a_time(town: Town) -> None:
    go_on = asyncio.Event()

    async def slowly(vehicle: Vehicle, command: Command) -> bool:
        await go_on.wait()
        return True

    town.w.source.obey = slowly
    one, same = town.give(CHARGING, "on"), town.give(CHARGING, "true")
    await until(lambda: len(town.w.source.commanded) == 1)
    other = town.give(LIMIT, "80")
    await settle()
    assert (len(town.w.source.commanded), len(other)) == (1, 0), "it waits for its turn"
    go_on.set()
    await until(lambda: len(one) == len(same) == len(other) == 1)
    assert town.w.source.commanded == [Command(CHARGING, True), Command(LIMIT, 80)]
    assert one.outcomes == [CommandOutcome.DONE], "its reading is still awaited"
    await town.w.clock.advance(20 * SECOND)
    await town.tell(SOC=50.0, CHARGING=True)
    await until(lambda: one.over and same.over)
    assert one == same
    assert one.outcomes == [CommandOutcome.DONE, CommandOutcome.CONFIRMED]
    assert len(town.w.source.commanded) == 2


async def test_the_last_of_several_commands_holds(town: Town) -> None:
    go_on = asyncio.Event()

    async def slowly(vehicle: Vehicle, command: Command) -> bool:
        await go_on.wait()
        return True

    town.w.source.obey = slowly
    first = town.give(CHARGING, "on")
    await until(lambda: len(town.w.source.commanded) == 1)
    replaced, last = town.give(LIMIT, "80"), town.give(LIMIT, "90")
    off = town.give(CHARGING, "off")
    await until(lambda: replaced.over)
    assert replaced.outcomes == [CommandOutcome.UNDER_WAY]
    assert (replaced[0].calls, replaced[0].document()["result"]) == (0, "refused")
    go_on.set()
    await until(lambda: first.over and len(last) == len(off) == 1)
    sent = [Command(CHARGING, True), Command(LIMIT, 90), Command(CHARGING, False)]
    assert town.w.source.commanded == sent
    assert first.outcomes == [CommandOutcome.DONE, CommandOutcome.UNCONFIRMED]


async def test_whoever_goes_back_to_what_is_being_done_joins_it(town: Town) -> None:
    go_on = asyncio.Event()

    async def slowly(vehicle: Vehicle, command: Command) -> bool:
        await go_on.wait()
        return True

    town.w.source.obey = slowly
    first = town.give(CHARGING, "on")
    await until(lambda: len(town.w.source.commanded) == 1)
    off, again = town.give(CHARGING, "off"), town.give(CHARGING, "on")
    assert again.given is first.given
    await until(lambda: off.over)
    go_on.set()
    await until(lambda: len(again) == 1)
    await town.idle()
    assert town.w.source.commanded == [Command(CHARGING, True)]


async def test_a_command_does_not_wait_for_ever_for_the_one_before(town: Town) -> None:
    async def never(vehicle: Vehicle, command: Command) -> bool:
        await asyncio.Event().wait()
        return True

    town.w.source.obey = never
    town.give(CHARGING, "on")
    await until(lambda: len(town.w.source.commanded) == 1)
    heard = town.give(CHARGING, "off")
    await settle()
    await town.w.clock.advance(6 * MINUTE)
    await until(lambda: heard.over)
    assert heard.outcomes == [CommandOutcome.UNDER_WAY]
    assert len(town.w.source.commanded) == 1


async def test_who_chatters_is_not_listened_to(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is not the one who does may still command, and what costs nothing is none of it."""
    monkeypatch.setattr(commands_module, "MOST_AN_HOUR", 2)
    await town.calm(polled_at=START)
    for _ in range(5):
        assert (await town.refused(POLL)).outcome is CommandOutcome.NOT_NOW
    for text in ("80", "90"):
        heard = town.give(LIMIT, text, origin="http")
        await until(lambda heard=heard: len(heard) > 0)
        assert heard[0].outcome is CommandOutcome.DONE
    heard = town.give(LIMIT, "70", origin="http")
    await until(lambda: heard.over)
    assert heard.outcomes == [CommandOutcome.CHATTERING]
    assert (await commanded(town, LIMIT, "70"))[0].outcome is CommandOutcome.DONE
    await town.w.clock.advance(HOUR)
    later = town.give(LIMIT, "80", origin="http")
    await until(lambda: len(later) > 0)
    assert later[0].outcome is CommandOutcome.DONE


async def test_automations_leave_most_of_the_plan_to_readings(town: Town) -> None:
    begun, polls = town.w.clock.now(), 0
    while (town.w.clock.now() - begun) < DAY:
        heard = town.give(POLL)
        await town.later(2 * SECOND, SECOND)
        await until(lambda heard=heard: heard.over)
        polls += heard.outcomes == [CommandOutcome.DONE]
        await town.calm()
        await town.w.clock.advance(20 * MINUTE)
    assert polls == 12 + 4, "a dozen at once, and 125 of 500 a month"
    answer = await town.refused(POLL)
    assert answer.outcome is CommandOutcome.CHATTERING
    assert "possible again at" in answer.reason
    operator = town.give(POLL, origin="http")
    await town.later(2 * SECOND, SECOND)
    await until(lambda: operator.over)
    assert operator.outcomes == [CommandOutcome.DONE]


async def test_more_than_enough_at_a_time_are_put_off(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands_module, "MOST_AT_A_TIME", 1)
    go_on = asyncio.Event()

    async def slowly(vehicle: Vehicle, command: Command) -> bool:
        await go_on.wait()
        return True

    town.w.source.obey = slowly
    heard = town.give(CHARGING, "on")
    await until(lambda: len(town.w.source.commanded) == 1)
    answer = await town.refused(LIMIT, "80")
    assert (answer.outcome, "1 commands are under way" in answer.reason) == (CommandOutcome.NOT_NOW, True)
    go_on.set()
    await until(lambda: len(heard) == 1)
    await commanded(town, LIMIT, "80")
    assert not heard.over, "one that waits for its reading holds up nobody"


async def test_what_is_not_understood_is_said_so(town: Town) -> None:
    for kind, text in ((POLL, "later"), (CHARGING, "maybe"), (LIMIT, "49"), (LIMIT, "full \x1b[31m" * 9)):
        answer = await town.refused(kind, text)
        assert answer.outcome is CommandOutcome.NOT_UNDERSTOOD
        assert "\x1b" not in answer.reason
        assert len(str(answer.value)) < 50
    assert (await town.refused(POLL, slug="ghost")).outcome is CommandOutcome.UNKNOWN_VEHICLE
    before = town.car.slug
    await town.w.cars.rename(town.car.id, name=None, slug="zoe")
    assert "'zoe' now" in (await town.refused(POLL, slug=before)).reason


# What the answer to a command means


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (NotNow("VEHICLE_STATE:X", "the car is not plugged in: plug it in first"), CommandOutcome.NOT_NOW),
        (Asleep("VEHICLE_STATE:ASLEEP", "it sleeps"), CommandOutcome.NOT_NOW),
        (NotPermitted("PERMISSION", "not allowed"), CommandOutcome.NOT_PERMITTED),
        (CommandFailed("FAILURE", "tried and failed"), CommandOutcome.FAILED),
        (ConsentLost("AUTHENTICATION:X", "gone"), CommandOutcome.NOT_PERMITTED),
        (OwnerMustAct("CONNECTED_SERVICES_ACCOUNT:VIRTUAL_KEY", "no key"), CommandOutcome.NOT_NOW),
        (BudgetSpent("BILLING:VEHICLE_REQUEST_LIMIT", "used up"), CommandOutcome.BUDGET_SPENT),
        (ApplicationRateLimited("RATE_LIMIT:X", "all at once"), CommandOutcome.NOT_NOW),
        (ApplicationRefused("AUTHENTICATION:X", "refused"), CommandOutcome.FAILED),
        (Unreachable("CONNECT", "no connection could be made"), CommandOutcome.FAILED),
        (SourceError("SOME:CODE", "who knows"), CommandOutcome.FAILED),
    ],
    ids=lambda value: value.outcome if isinstance(value, SourceError) else "",
)
async def test_what_an_error_means_for_a_command(
    town: Town, error: SourceError, outcome: CommandOutcome
) -> None:
    due = town.car.schedule.due

    async def fails(vehicle: Vehicle, command: Command) -> bool:
        raise error

    town.w.source.obey = fails
    heard = await commanded(town)
    await until(lambda: heard.over)
    (answer,) = heard
    assert (answer.outcome, answer.reason, answer.calls) == (outcome, error.detail, 1)
    assert (town.calls if outcome is not CommandOutcome.BUDGET_SPENT else 1) == 1
    assert town.car.schedule.due == due, "nothing is awaited"


async def test_an_answer_that_never_came_is_looked_for(town: Town) -> None:
    async def fails(vehicle: Vehicle, command: Command) -> bool:
        error = Unreachable("TIMEOUT", "no answer in time; it is not known whether the request arrived")
        error.in_doubt = True
        raise error

    town.w.source.obey = fails
    heard = await commanded(town)
    assert heard.outcomes == [CommandOutcome.PENDING]
    assert "not known whether the request arrived" in heard[0].reason
    await town.w.clock.advance(20 * SECOND)
    await town.tell(SOC=50.0, CHARGING=True)
    await until(lambda: heard.over)
    assert heard[-1].outcome is CommandOutcome.CONFIRMED


async def test_errors_of_the_application_bind_all_its_cars(town: Town) -> None:
    errors: list[SourceError] = [ApplicationRateLimited("RATE_LIMIT:X", "all", retry_after=20 * MINUTE)]

    async def fails(vehicle: Vehicle, command: Command) -> bool:
        raise errors[0]

    town.w.source.obey = fails
    assert (await commanded(town))[0].reason == "all: wait 20 min"
    assert town.w.purse.closed_for == 20 * MINUTE
    answer = await town.refused(POLL)
    assert "not ask anything for another 20 min" in answer.reason
    await town.w.clock.advance(2 * HOUR)
    errors[0] = BudgetSpent("BILLING:VEHICLE_REQUEST_LIMIT", "used up")
    await commanded(town)
    await until(lambda: town.w.purse.share(town.car.id).calls_left == 0)
    assert (await town.refused(CHARGING, "on")).outcome is CommandOutcome.BUDGET_SPENT


async def test_a_wait_that_a_command_was_told_is_kept_by_commands(town: Town) -> None:
    async def fails(vehicle: Vehicle, command: Command) -> bool:
        raise RateLimited("UPSTREAM:RATE_LIMIT", "too often", retry_after=10 * MINUTE)

    town.w.source.obey = fails
    await town.calm(due=START + MINUTE)
    await commanded(town)
    await town.idle()
    for kind, text in ((LIMIT, "80"), (POLL, "now")):
        answer = await town.refused(kind, text)
        assert answer.reason == "told to wait 10 min for this car: possible again at 12:10 UTC"
    assert (await town.w.store.cars())[0].schedule.due == START + 10 * MINUTE, "it survives a restart"
    await town.later(9 * MINUTE, MINUTE)
    assert town.w.source.asked == [], "no routine poll either"
    town.w.source.obey = town.w.source.done
    await town.later(2 * MINUTE, MINUTE)
    assert len(town.w.source.asked) == 1
    await commanded(town, LIMIT, "80")
    assert len(town.w.source.commanded) == 2


@pytest.mark.parametrize("outcome", ["rate_limited", "owner_must_act", "plan_refused", "unreachable"])
async def test_a_wait_that_a_poll_was_told_is_kept_by_commands(town: Town, outcome: str) -> None:
    await town.calm(outcome=outcome, reason="told to wait 3 h for this car")
    if outcome == "unreachable":  # a car that was out of reach may have come back
        await commanded(town)
        assert len(town.w.source.commanded) == 1
        return
    answer = await town.refused(CHARGING, "on")
    assert answer.outcome is CommandOutcome.NOT_NOW
    assert answer.reason == "told to wait 3 h for this car: possible again at 15:00 UTC"


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (NotPermitted("PERMISSION", "not allowed"), CommandOutcome.NOT_PERMITTED),
        (OwnerMustAct("CONNECTED_SERVICES_ACCOUNT:VIRTUAL_KEY", "no key"), CommandOutcome.NOT_NOW),
    ],
)
async def test_what_the_owner_has_to_put_right_is_tried_once_a_day(
    town: Town, error: SourceError, outcome: CommandOutcome
) -> None:
    async def fails(vehicle: Vehicle, command: Command) -> bool:
        raise error

    town.w.source.obey = fails
    await commanded(town)
    for kind, text in ((CHARGING, "on"), (CHARGING, "off"), (LIMIT, "80")):
        answer = await town.refused(kind, text)
        assert (answer.outcome, answer.reason) == (outcome, error.detail)
    assert town.commands.possible(town.car) == {POLL}
    await town.w.clock.advance(DAY)
    assert town.commands.possible(town.car) == {POLL, CHARGING, LIMIT}
    await commanded(town)
    anew = replace(town.car.vehicle.consent, connection_id="another")
    await town.w.cars.change(
        town.car.id, lambda car: replace(car, vehicle=replace(car.vehicle, consent=anew))
    )
    assert town.commands.possible(town.car) == {POLL, CHARGING, LIMIT}


async def test_what_the_car_refused_it_was_never_told(town: Town) -> None:
    """What was so before a refused command is so still: to say so costs nothing."""
    await town.w.clock.advance(2 * MINUTE)
    await town.tell(SOC=50.0, CHARGING=False)

    async def refuses(vehicle: Vehicle, command: Command) -> bool:
        raise NotNow("VEHICLE_STATE:DOOR_OPEN", "a door is open: close it first")

    town.w.source.obey = refuses
    assert (await commanded(town)).outcomes == [CommandOutcome.NOT_NOW]
    assert (await town.refused(CHARGING, "off")).outcome is CommandOutcome.CONFIRMED


async def test_what_nobody_waits_for_is_unconfirmed_at_once(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile(monkeypatch, floor=3 * HOUR)
    await town.calm(polled_at=START - HOUR)
    heard = await commanded(town)
    await until(lambda: heard.over)
    assert heard.outcomes == [CommandOutcome.DONE, CommandOutcome.UNCONFIRMED]
    assert "the car cannot be asked before 14:00 UTC" in heard[-1].reason


async def test_one_poll_is_paid_by_one_command(town: Town) -> None:
    heard = await commanded(town)
    await town.idle()
    poll = town.give(POLL)
    await town.later(2 * SECOND, SECOND)
    await until(lambda: poll.over)
    await town.w.clock.advance(20 * SECOND)
    await town.tell(SOC=50.0, CHARGING=True)
    await until(lambda: heard.over)
    assert (poll[-1].calls, heard[-1].calls, town.calls) == (1, 1, 2)


async def test_mistakes_are_said_of_each_car(town: Town) -> None:
    await town.w.enrol()
    for car in town.w.fleet:
        for _ in range(2):
            await town.refused(POLL, "later", slug=car.slug)
    levels = [line["level"] for line in town.w.said("command.answered")]
    assert levels == ["warning", "debug", "warning", "debug"]


async def test_no_request_to_spare_is_not_waited_for_for_ever(town: Town) -> None:
    town.w.purse._bucket = Bucket(-30.0, START)
    heard = town.give(CHARGING, "on")
    await settle()
    await town.w.clock.advance(6 * MINUTE)
    await until(lambda: heard.over)
    assert (heard.outcomes, town.w.source.commanded) == ([CommandOutcome.NOT_NOW], [])
    await town.w.clock.advance(20 * MINUTE)
    assert town.w.purse.tokens == -30.0 + 26 * 2, "nobody has taken a token since"


async def test_a_car_that_is_withdrawn_before_it_is_told_costs_nothing(town: Town) -> None:
    town.w.purse._bucket = Bucket(-2.0, START)
    heard = town.give(CHARGING, "on")
    await settle()
    await town.w.cars.change(
        town.car.id, lambda car: replace(car, vehicle=replace(car.vehicle, withdrawn_at=START))
    )
    await town.w.clock.advance(3 * MINUTE)
    await until(lambda: heard.over)
    assert (heard.outcomes, town.w.source.commanded) == ([CommandOutcome.NOT_READ], [])
    assert town.w.purse.tokens == -2.0 + 3 * 2


async def test_a_source_that_sent_nothing_cost_nothing(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: object) -> bool:
        raise ApplicationRefused("INVALID_CLIENT", "Smartcar refuses the client id")

    monkeypatch.setattr(town.w.source, "command", refused)
    tokens = town.w.purse.tokens
    heard = await commanded(town)
    assert (heard.outcomes, heard[0].calls) == ([CommandOutcome.FAILED], 0)
    assert town.w.purse.tokens == tokens


async def test_a_request_is_waited_for_for_a_while(town: Town) -> None:
    town.w.purse._bucket = Bucket(-3.0, START)
    heard = town.give(CHARGING, "on")
    await settle()
    await town.w.clock.advance(4 * MINUTE)
    await until(lambda: len(heard) == 1)
    assert heard.outcomes == [CommandOutcome.DONE]


async def test_a_call_that_cannot_be_noted_is_not_made(town: Town) -> None:
    town.w.store.full = {"reserve"}
    tokens = town.w.purse.tokens
    heard = await commanded(town)
    assert (heard.outcomes, town.calls, town.w.source.commanded) == ([CommandOutcome.FAILED], 0, [])
    assert town.w.purse.tokens == tokens


# Whatever happens around it


async def test_whoever_stops_listening_stops_nothing(town: Town) -> None:
    heard = await commanded(town)
    heard.task.cancel()
    await town.w.clock.advance(20 * SECOND)
    await town.tell(SOC=50.0, CHARGING=True)
    await until(lambda: town.counted(CHARGING, CommandOutcome.CONFIRMED) == 1)


async def test_a_mistake_of_ours_is_that_commands_answer(town: Town) -> None:
    async def mistaken(vehicle: Vehicle, command: Command) -> bool:
        raise ZeroDivisionError

    town.w.source.obey = mistaken
    heard = await commanded(town)
    assert heard.outcomes == [CommandOutcome.FAILED]
    assert "its log has the details" in heard[0].reason
    assert len(town.w.said("command.bug")) == 1
    town.w.source.obey = town.w.source.done
    assert (await commanded(town)).outcomes == [CommandOutcome.DONE]


async def test_a_mistake_in_deciding_is_that_commands_answer_too(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands_module, "poll_verdict", None)
    assert (await town.refused(POLL)).outcome is CommandOutcome.FAILED
    assert len(town.w.said("command.bug")) == 1


async def test_a_car_that_is_withdrawn_meanwhile_ends_its_command(town: Town) -> None:
    heard = await commanded(town)
    await town.w.cars.change(
        town.car.id, lambda car: replace(car, vehicle=replace(car.vehicle, withdrawn_at=START))
    )
    await until(lambda: heard.over)
    assert heard[-1].outcome is CommandOutcome.UNCONFIRMED
    assert "consent is gone" in heard[-1].reason


async def test_after_the_end_commands_are_not_taken(town: Town) -> None:
    await town.commands.drain(0.0)
    answer = await town.refused(POLL)
    assert (answer.outcome, "starting or stopping" in answer.reason) == (CommandOutcome.NOT_NOW, True)


async def test_the_end_answers_everything_under_way(town: Town) -> None:
    go_on = asyncio.Event()

    async def slowly(vehicle: Vehicle, command: Command) -> bool:
        await go_on.wait()
        return True

    told = await commanded(town, LIMIT, "80")
    poll = town.give(POLL)
    town.w.source.obey = slowly
    telling = town.give(CHARGING, "on")
    await until(lambda: len(town.w.source.commanded) == 2)
    draining = asyncio.create_task(town.commands.drain(10.0))
    await until(lambda: told.over and poll.over)
    assert told[-1].outcome is CommandOutcome.UNCONFIRMED
    assert "evbatteryd was stopped before a reading showed it" in told[-1].reason
    assert (poll[-1].outcome, poll[-1].reason) == (
        CommandOutcome.FAILED,
        "evbatteryd was stopped before it was done",
    )
    go_on.set()
    await draining
    await until(lambda: telling.over)
    assert telling.outcomes == [CommandOutcome.UNCONFIRMED]
    assert "the car's maker says that it was done" in telling[-1].reason


async def test_the_end_does_not_wait_for_ever(town: Town) -> None:
    async def never(vehicle: Vehicle, command: Command) -> bool:
        await asyncio.Event().wait()
        return True

    town.w.source.obey = never
    heard = town.give(CHARGING, "on")
    await until(lambda: len(town.w.source.commanded) == 1)
    await town.commands.drain(0.02)
    await until(lambda: heard.over)
    assert (heard.outcomes, heard[0].calls) == ([CommandOutcome.UNCONFIRMED], 1)
    assert "a reading will show whether the car did it" in heard[0].reason


async def test_what_has_just_been_taken_is_answered_at_the_end(town: Town) -> None:
    heard = town.give(CHARGING, "on")
    await town.commands.drain(0.0)
    await until(lambda: heard.over)
    assert (heard.outcomes, heard[0].calls) == ([CommandOutcome.FAILED], 0)
    assert town.w.source.commanded == []


async def test_after_a_restart_nothing_is_so_already(tmp_path: Path) -> None:
    """It was charging, was told to stop, and we were started again: nobody knows of the command any more."""
    async with living(tmp_path, Budget()) as town:
        await town.w.clock.advance(2 * MINUTE)
        await town.tell(SOC=50.0, CHARGING=True)
        await town.w.clock.advance(SECOND)
        await commanded(town, CHARGING, "off")
        now = town.w.clock.now()
    async with living(tmp_path, Budget(), VirtualClock(now + 20 * SECOND)) as town:
        await commanded(town, CHARGING, "on")
        assert town.w.source.commanded == [Command(CHARGING, True)]


async def test_a_look_that_was_arranged_is_made_after_a_restart(tmp_path: Path) -> None:
    async with living(tmp_path, Budget()) as town:
        await commanded(town)
        await town.idle()
        assert town.car.schedule.due == START + MINUTE
    async with living(tmp_path, Budget(), VirtualClock(START + 20 * SECOND)) as town:
        assert town.car.schedule.due == START + MINUTE
        await town.later(MINUTE)
        assert [at[11:16] for at, _ in town.w.source.asked] == ["12:01"]
