"""From a bell to a committed reading, and everything that may come between."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from evbatteryd.domain import errors
from evbatteryd.domain.fleet import Car
from evbatteryd.domain.ledger import Budget
from evbatteryd.domain.ports import Ticket
from evbatteryd.domain.profile import BrandProfile
from evbatteryd.domain.reading import Observation, Rejected, Signal, SignalProblem
from evbatteryd.domain.vehicle import Vehicle
from tests.fakes import START, until
from tests.flow.world import RENAULT, world
from tests.store.cars import all_readings


async def test_an_answer_becomes_a_committed_reading_and_a_next_poll(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        (after,) = await w.poll(car)
        assert after.state.soc_percent == 50
        assert after.schedule.outcome == "new"
        assert after.schedule.due is not None
        assert RENAULT.floor <= after.schedule.due - START < timedelta(hours=12)
        w.source.soc = 51
        again = await w.poll_when_due(after)
        assert again.schedule.due >= w.clock.now() + RENAULT.floor
        assert again.schedule.gain > 0
        assert after.learned != again.learned
        assert after.schedule.calls_per_poll == 1
        (stored,) = await w.store.cars()
        assert stored == replace(again, trend=None)
        journal = [reading.reading_id for reading in await all_readings(w.store)]
        assert journal == [after.reading_id, again.reading_id]
        assert [heard.reading_id for _, heard in w.heard if heard] == journal


async def test_unchanged_answers_write_no_reading_but_confirm(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        first = w.source.observation(50)

        async def same(vehicle: Vehicle) -> Observation:
            now = w.clock.now()
            return replace(
                first,
                fetched_at=now,
                measurements=tuple(replace(m, fetched_at=now) for m in first.measurements),
            )

        w.source.answer = same
        (before,) = await w.poll(car)
        after = await w.poll_when_due(car)
        assert after.schedule.outcome == "unchanged"
        assert after.reading_id == before.reading_id
        assert after.state.measured_at == before.state.measured_at
        assert after.state.fetched_at == w.clock.now()
        assert await all_readings(w.store) == [r for _, r in w.heard if r]


async def test_what_cannot_be_is_kept_out_and_kept_with_its_reason(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        await w.poll(car)

        async def impossible(vehicle: Vehicle) -> Observation:
            wrong = w.source.observation(255)
            unit = Rejected(Signal.RANGE, "{'unit': 'leagues'}", "unknown unit", None, w.clock.now())
            return replace(wrong, rejected=(unit,))

        w.source.answer = impossible
        after = await w.poll_when_due(car)
        await w.poll_when_due(car)
        assert after.state.soc_percent == 50
        kept = await w.store.rejections(car.id)
        assert {rejected.signal for rejected in kept} == {Signal.SOC, Signal.RANGE}
        assert len(w.said("reading.rejected")) == 1  # said once, not on every poll


@pytest.mark.parametrize("kind", [errors.Unreachable, errors.Unreadable])
async def test_failures_back_off_further_and_further_and_end_with_the_first_answer(
    tmp_path: Path, kind: type[errors.SourceError]
) -> None:
    async with world(tmp_path, Budget(calls_per_vehicle=100_000, refill_per_minute=60)) as w:
        (car,) = await w.enrol()
        w.source.failing(kind("HTTP_500", "down"))
        waits = []
        for _ in range(5):
            after = await w.poll_when_due(car)
            assert after.schedule.due is not None
            waits.append(after.schedule.due - w.clock.now())
        assert waits == sorted(set(waits))
        assert waits[0] >= RENAULT.floor
        assert after.schedule.failures == 5
        assert len(w.said("poll.failing")) == 1
        w.source.answer = w.source.parked
        after = await w.poll_when_due(car)
        assert after.trouble is None
        assert after.schedule.failures == 0
        assert len(w.said("poll.recovered")) == 1


async def test_a_car_that_sleeps_for_weeks_is_asked_less_and_less(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        w.source.failing(errors.Asleep("VEHICLE_STATE:ASLEEP", "asleep"))
        began = w.clock.now()
        while w.clock.now() - began < timedelta(days=21):
            car = await w.poll_when_due(car)
        assert car.schedule.due is not None
        assert car.schedule.due - w.clock.now() > timedelta(days=5)
        assert car.schedule.reason.startswith("asleep for 2")
        assert "asked less and less until it wakes" in car.schedule.reason
        assert len(w.source.asked) < 30
        (kept,) = await w.store.cars()
        assert (kept.schedule, kept.trouble) == (car.schedule, car.trouble)
        w.source.answer = w.source.parked
        awake = await w.poll_when_due(car)
        assert awake.trouble is None
        assert awake.schedule.due is not None
        assert awake.schedule.due - w.clock.now() < timedelta(days=1)


@pytest.mark.parametrize(
    "error", [errors.ConsentLost("PERMISSION", "gone"), errors.NotCapable("COMPATIBILITY", "never")]
)
async def test_what_only_a_new_consent_can_mend_is_not_asked_again(
    tmp_path: Path, error: errors.SourceError
) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        w.source.failing(error)
        (after,) = await w.poll(car)
        assert after.schedule.due is None
        await w.poll(car)
        assert len(w.source.asked) == 1


async def test_a_spent_plan_waits_for_the_period_to_turn_and_is_believed(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        w.source.failing(errors.BudgetSpent("BILLING:VEHICLE_REQUEST_LIMIT", "none left"))
        (after,) = await w.poll(car)
        assert after.schedule.due is not None
        # Not all cars at the very turn of the period.
        assert timedelta() <= after.schedule.due - w.purse.share(car.id).renews_at < timedelta(hours=1)
        assert w.purse.share(car.id).calls_left == 0
        account = await w.store.account("home", START.replace(day=1, hour=0))
        assert account.spent == {car.id: 500}
        w.source.answer = w.source.parked
        after = await w.poll_when_due(car)
        assert after.trouble is None
        assert w.purse.share(car.id).calls_left == 499


async def test_our_own_budget_stops_a_call_before_it_is_sent(tmp_path: Path) -> None:
    async with world(tmp_path, Budget(calls_per_vehicle=2)) as w:
        (car,) = await w.enrol()
        for _ in range(4):
            w.poller.due(car.id)
            await until(lambda: w.poller.in_flight == 0 and w.poller.waiting == 0)
        assert len(w.source.asked) == 2
        assert w.fleet[car.id].schedule.outcome == "budget_spent"


async def test_a_slow_answer_does_not_shift_the_schedule_of_the_next_start(tmp_path: Path) -> None:
    async with world(tmp_path, Budget(calls_per_vehicle=100_000, refill_per_minute=60)) as w:
        (car,) = await w.enrol()

        async def slow(vehicle: Vehicle) -> Observation:
            await w.clock.sleep(timedelta(minutes=4))
            return w.source.observation(50)

        w.source.answer = slow
        for _ in range(2):
            due = w.fleet[car.id].schedule.due
            assert due is not None
            await w.clock.advance(due - w.clock.now())
            asked = len(w.source.asked)
            w.poller.due(car.id)
            await until(lambda asked=asked: len(w.source.asked) == asked + 1)
            await w.clock.advance(timedelta(minutes=4))
            await until(lambda: w.poller.in_flight == 0)
        stood = w.fleet[car.id].schedule.due
        await w.cars.reconsider(lambda car: w.purse.share(car.id))
        assert w.fleet[car.id].schedule.due == stood


async def test_a_rate_limit_that_cannot_be_noted_at_once_is_said_all_the_same(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        w.source.failing(errors.ApplicationRateLimited("RATE_LIMIT:SMARTCAR_API", "full"))
        w.store.full = {"keep_bucket"}
        w.poller.due(car.id)
        await until(lambda: len(w.said("store.failing")) == 1)
        w.store.full = set()
        await w.clock.advance(timedelta(seconds=6))
        await until(lambda: w.poller.in_flight == 0)
        assert len(w.said("application.rate_limited")) == 1


async def test_a_rate_limited_application_asks_for_no_car(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        one, other = await w.enrol(2)
        w.source.failing(
            errors.ApplicationRateLimited("RATE_LIMIT:SMARTCAR_API", "full", retry_after=timedelta(minutes=3))
        )
        await w.poll(one)
        w.source.answer = w.source.parked
        w.poller.due(other.id)
        await w.clock.advance(timedelta(minutes=2, seconds=59))
        assert len(w.source.asked) == 1
        await w.clock.advance(timedelta(minutes=2))
        await until(lambda: len(w.source.asked) == 2)
        await until(lambda: w.poller.in_flight == 0)
        assert len(w.said("application.rate_limited")) == 1


async def test_one_request_at_a_time_for_a_car_and_a_slow_one_delays_nobody(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        slow, quick = await w.enrol(2)
        hang = asyncio.Event()

        async def answer(vehicle: Vehicle) -> Observation:
            if vehicle.id == slow.id:
                await hang.wait()
            return w.source.observation(50)

        w.source.answer = answer
        w.poller.due(slow.id)
        await until(lambda: w.poller.in_flight == 1)
        w.poller.due(slow.id)
        w.poller.due(quick.id)
        await until(lambda: w.fleet[quick.id].reading_id is not None and w.poller.in_flight == 1)
        assert [vehicle for _, vehicle in w.source.asked].count(slow.id) == 1
        hang.set()
        await until(lambda: w.poller.in_flight == 0)


async def test_a_brand_whose_cloud_hangs_takes_half_of_the_requests_at_most(tmp_path: Path) -> None:
    async with world(tmp_path, max_in_flight=4) as w:
        hanging = await w.enrol(6)
        (other,) = await w.enrol(1, "LADA")
        hang = asyncio.Event()

        async def answer(vehicle: Vehicle) -> Observation:
            if vehicle.brand == "renault":
                await hang.wait()
            return w.source.observation(50)

        w.source.answer = answer
        for car in hanging:
            w.poller.due(car.id)
        await until(lambda: w.poller.in_flight == 2)
        w.poller.due(other.id)
        hang_free = until(lambda: w.fleet[other.id].reading_id is not None)
        hang.set()
        await hang_free
        await until(lambda: all(w.fleet[car.id].reading_id for car in hanging))


async def test_a_bug_in_one_cars_answer_stops_no_other(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        odd, fine = await w.enrol(2)

        async def answer(vehicle: Vehicle) -> Observation:
            if vehicle.id == odd.id:
                raise ZeroDivisionError
            return w.source.observation(50)

        w.source.answer = answer
        odd_after, fine_after = await w.poll(odd, fine)
        assert odd_after.schedule.outcome == "unreadable"
        assert odd_after.schedule.due is not None
        assert fine_after.reading_id is not None
        assert len(w.said("poll.bug")) == 1


async def test_pages_are_paid_for_and_learnt(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        w.source.pages = 3
        (after,) = await w.poll(car)
        assert after.schedule.calls_per_poll == 3
        assert w.purse.share(car.id).calls_left == 497


async def test_an_answer_for_a_car_that_was_withdrawn_meanwhile_is_not_kept(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        hang = asyncio.Event()

        async def answer(vehicle: Vehicle) -> Observation:
            await hang.wait()
            return w.source.observation(50)

        w.source.answer = answer
        w.poller.due(car.id)
        await until(lambda: len(w.source.asked) == 1)
        await w.cars.change(
            car.id, lambda now: replace(now, vehicle=replace(now.vehicle, withdrawn_at=w.clock.now()))
        )
        hang.set()
        await until(lambda: w.poller.in_flight == 0)
        assert w.fleet[car.id].state.soc_percent is None
        assert await all_readings(w.store) == []


async def test_what_cannot_be_read_is_kept_for_whoever_mends_the_parser(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()

        async def unreadable(vehicle: Vehicle) -> Observation:
            raise errors.Unreadable("NOT_JSON", "HTML", excerpt="<html>maintenance")

        w.source.answer = unreadable
        await w.poll(car)
        assert await w.store.excerpt(car.id) == "<html>maintenance"


async def test_after_a_crash_the_call_is_spent_and_the_car_not_asked_before_its_floor(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        hang = asyncio.Event()

        async def never(vehicle: Vehicle) -> Observation:
            await hang.wait()
            return w.source.observation(50)

        w.source.answer = never
        w.poller.due(car.id)
        await until(lambda: len(w.source.asked) == 1)
        # What a crash leaves behind: nothing but what is durable.
        (stored,) = await w.store.cars()
        assert stored.schedule.due == START + RENAULT.floor
        assert (await w.store.account("home", START.replace(day=1, hour=0))).spent == {car.id: 1}


async def test_a_restart_takes_up_the_schedule_without_a_burst(tmp_path: Path) -> None:
    async with world(tmp_path, Budget(bucket=1000)) as w:
        cars = await w.enrol(40)
        await w.poll(*cars)
        due = [w.fleet[car.id].schedule.due for car in cars]
        clock = w.clock
    async with world(tmp_path, Budget(bucket=1000), clock=clock) as again:
        await again.roster.count()
        await again.cars.reconsider(lambda car: again.purse.share(car.id))
        assert [car.schedule.due for car in again.fleet] == due
        assert [car.state for car in again.fleet] == [w.fleet[car.id].state for car in cars]
        assert again.purse.share(cars[0].id).calls_left == 499
    await clock.advance(timedelta(days=1))
    async with world(tmp_path, clock=clock) as late:
        spread = sorted(car.schedule.due - clock.now() for car in late.fleet if car.schedule.due)
        assert len(spread) == 40
        assert spread[0] >= timedelta()
        assert spread[-1] - spread[0] > timedelta(minutes=10)
        # No minute gets more than a fair few of them.
        assert max(sum(1 for s in spread if m <= s.total_seconds() // 60 < m + 1) for m in range(16)) <= 6


async def test_drain_lets_answers_arrive_and_gives_up_the_rest(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        stuck, arriving = await w.enrol(2)
        arrive, never = asyncio.Event(), asyncio.Event()

        async def answer(vehicle: Vehicle) -> Observation:
            await (never if vehicle.id == stuck.id else arrive).wait()
            return w.source.observation(50)

        w.source.answer = answer
        w.poller.due(stuck.id)
        w.poller.due(arriving.id)
        await until(lambda: len(w.source.asked) == 2)
        arrive.set()
        await w.poller.drain(0.3)
        assert w.poller.in_flight == 0
        assert w.fleet[arriving.id].reading_id is not None
        assert w.fleet[stuck.id].reading_id is None


async def test_cars_of_an_application_that_is_not_configured_are_kept_and_asked_again_when_it_is(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        await w.cars.load({"another"})
        assert w.fleet[car.id].schedule.due is None
        assert "not configured" in w.fleet[car.id].schedule.reason
        await w.cars.load({"home"})
        assert w.fleet[car.id].schedule.due == car.schedule.due


async def test_a_full_disk_spends_no_call_and_loses_no_answer(tmp_path: Path) -> None:
    async with world(tmp_path, Budget(calls_per_vehicle=3)) as w:
        (car,) = await w.enrol()
        w.store.full = {"reserve"}
        for _ in range(10):
            await w.poll(car)
        assert w.source.asked == []
        assert w.purse.share(car.id).calls_left == 3
        w.store.full = set()
        (after,) = await w.poll(car)
        assert after.reading_id is not None


async def test_an_answer_waits_in_hand_until_the_disk_has_room(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        w.store.full = {"record"}
        w.poller.due(car.id)
        await until(lambda: len(w.said("store.failing")) == 1)
        w.store.full = set()
        await w.clock.advance(timedelta(seconds=6))
        async with asyncio.timeout(20):
            await until(lambda: w.fleet[car.id].reading_id is not None)
        assert len(w.said("store.recovered")) == 1


async def test_a_plan_that_cannot_be_corrected_ends_no_process(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        w.source.failing(errors.BudgetSpent("BILLING:VEHICLE_REQUEST_LIMIT", "none left"))
        w.store.full = {"correct"}
        w.poller.due(car.id)
        await until(lambda: len(w.said("store.failing")) == 1)
        w.store.full = set()
        await w.clock.advance(timedelta(seconds=6))
        await until(lambda: w.poller.in_flight == 0)
        assert w.fleet[car.id].schedule.outcome == "budget_spent"
        assert w.purse.share(car.id).calls_left == 0


async def test_a_refusal_of_the_old_consent_does_not_end_the_new_one(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        hang = asyncio.Event()

        async def refused(vehicle: Vehicle) -> Observation:
            await hang.wait()
            raise errors.ConsentLost("PERMISSION", "gone")

        w.source.answer = refused
        w.poller.due(car.id)
        await until(lambda: len(w.source.asked) == 1)
        w.source.consent_list = [replace(car.vehicle.consent, connection_id="c9")]
        await w.roster.sync(w.purse.ticket(None))
        hang.set()
        await until(lambda: w.poller.in_flight == 0)
        after = w.fleet[car.id]
        assert after.trouble is None
        assert after.schedule.due == START + RENAULT.floor


async def test_a_bell_during_the_last_moments_of_a_poll_is_not_lost(tmp_path: Path) -> None:
    async with world(tmp_path, Budget(calls_per_vehicle=100_000, refill_per_minute=60)) as w:
        (car,) = await w.enrol()

        def ring_at_once(changed: Car, _: object) -> None:
            if len(w.source.asked) == 1:
                w.fleet.put(replace(changed, schedule=replace(changed.schedule, due=w.clock.now())))
                w.poller.due(changed.id)

        w.cars.listen(ring_at_once)
        w.poller.due(car.id)
        await until(lambda: len(w.source.asked) == 2)
        await until(lambda: w.poller.in_flight == 0)


async def test_while_one_brand_hangs_a_car_of_another_that_falls_due_is_asked(tmp_path: Path) -> None:
    async with world(tmp_path, max_in_flight=4) as w:
        hanging = await w.enrol(4)
        (other,) = await w.enrol(1, "LADA")
        hang = asyncio.Event()

        async def answer(vehicle: Vehicle) -> Observation:
            if vehicle.brand == "renault":
                await hang.wait()
            return w.source.observation(50)

        w.source.answer = answer
        for car in hanging:
            w.poller.due(car.id)
        await until(lambda: w.poller.in_flight == 2)
        await asyncio.sleep(0.01)  # the dispatcher waits for a request of the brand to end
        w.poller.due(other.id)
        await until(lambda: w.fleet[other.id].reading_id is not None)
        hang.set()
        await until(lambda: w.poller.in_flight == 0 and w.poller.waiting == 0)


async def test_a_car_that_is_withdrawn_while_it_waits_is_not_asked(tmp_path: Path) -> None:
    async with world(tmp_path, Budget(bucket=2, refill_per_minute=1)) as w:
        (car,) = await w.enrol()
        await w.purse.token()
        w.poller.due(car.id)
        await w.cars.change(
            car.id, lambda now: replace(now, vehicle=replace(now.vehicle, withdrawn_at=w.clock.now()))
        )
        await w.clock.advance(timedelta(minutes=10))
        await until(lambda: w.poller.waiting == 0)
        assert w.source.asked == []


async def test_after_a_page_that_could_not_be_noted_the_floor_holds(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        w.source.pages = 2
        asked = w.source.fetch

        async def then_full(vehicle: Vehicle, profile: BrandProfile, ticket: Ticket) -> Observation:
            await ticket.spend()
            w.store.full = {"reserve"}
            return await asked(vehicle, profile, ticket)

        w.source.fetch = then_full
        w.poller.due(car.id)
        await until(lambda: len(w.said("poll.not_noted")) == 1)
        await until(lambda: w.poller.in_flight == 0)
        rings = [at for alarms in w.timer._cohorts.values() for at in alarms._set.values()]
        assert min(rings) >= (START + RENAULT.floor).timestamp()


async def test_an_application_without_tokens_holds_no_slot(tmp_path: Path) -> None:
    async with world(tmp_path, Budget(bucket=2, refill_per_minute=0.001), max_in_flight=1) as w:
        (car,) = await w.enrol()
        await w.purse.token()
        w.poller.due(car.id)
        await asyncio.sleep(0.01)
        assert not w.poller._slots.locked()


async def test_a_bigger_plan_is_used_from_the_next_start_on(tmp_path: Path) -> None:
    async with world(tmp_path, Budget(calls_per_vehicle=1)) as w:
        (car,) = await w.enrol()
        (after,) = await w.poll(car)
        assert after.schedule.due is not None
        assert after.schedule.due - START > timedelta(days=7)
        clock = w.clock
    async with world(tmp_path, Budget(calls_per_vehicle=10_000), clock=clock) as again:
        await again.roster.count()
        told: list[Car] = []
        again.cars.listen(lambda car, _: told.append(car))
        await again.cars.reconsider(lambda car: again.purse.share(car.id))
        due = again.fleet[car.id].schedule.due
        assert told == [again.fleet[car.id]], "what is told of its estimate holds until it is due"
        assert due is not None
        assert due - START <= RENAULT.parked


async def test_refused_credentials_are_said_once_for_all_cars_and_the_bucket_stays_full(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        cars = await w.enrol(3)
        w.source.failing(errors.ApplicationRefused("AUTHENTICATION:UNAUTHORIZED", "refused"))
        for car in cars:
            w.poller.due(car.id)
            await w.clock.advance(timedelta(minutes=2))
            await until(lambda: w.poller.in_flight == 0)
        (said,) = w.said("application.refused")
        assert "client_id" in str(said["mend"])
        assert w.said("poll.failing") == []
        assert w.purse._bucket.level > 110
        w.source.answer = w.source.parked
        await w.clock.advance(timedelta(minutes=2))
        await w.poll(cars[0])
        assert len(w.said("application.accepted")) == 1


async def test_a_used_up_plan_is_said_loudly(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        w.source.failing(errors.BudgetSpent("BILLING:VEHICLE_REQUEST_LIMIT", "none left"))
        await w.poll(car)
        (said,) = w.said("poll.failing")
        assert said["level"] == "error"


async def test_a_signal_that_fails_beside_others_is_said_once(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()

        async def partly(vehicle: Vehicle) -> Observation:
            lost = SignalProblem(Signal.RANGE, "COMPATIBILITY:VEHICLE_NOT_CAPABLE", permanent=True)
            return replace(w.source.observation(50), problems=(lost,))

        w.source.answer = partly
        await w.poll(car)
        await w.poll_when_due(car)
        (said,) = w.said("signals.failing")
        assert said["signals"] == [
            {"signal": "range_km", "code": "COMPATIBILITY:VEHICLE_NOT_CAPABLE", "permanent": True}
        ]
        assert w.fleet[car.id].trouble is None
