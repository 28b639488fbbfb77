"""What every store promises, whatever it is made of."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from evbatteryd.domain.errors import StoreError
from evbatteryd.domain.fleet import Schedule, Trouble
from evbatteryd.domain.ledger import Bucket
from evbatteryd.domain.policy.outlook import Trend
from evbatteryd.domain.ports import Polled, Store
from evbatteryd.domain.profile import Activity
from evbatteryd.domain.reading import BatteryState, Measurement, Origin, Rejected, Signal
from evbatteryd.domain.vehicle import VehicleId
from tests.store.cars import (
    DUE,
    MINUTE,
    START,
    all_readings,
    answer,
    consent,
    enrolled,
    recorded,
    renamed,
    request,
)
from tests.store.conftest import Opener

NOBODY = VehicleId(4711)
MICROSECOND = timedelta(microseconds=1)


async def test_an_enrolled_vehicle_is_there_after_a_restart(opener: Opener) -> None:
    async with opener() as store:
        assert await store.cars() == []
        cars = [await enrolled(store, number) for number in (1, 2)]
        assert await store.cars() == cars
    async with opener() as store:
        assert await store.cars() == cars
    assert cars[0].vehicle.consent == consent(1)
    assert cars[0].schedule == DUE
    assert cars[0].state == BatteryState()
    assert cars[0].id != cars[1].id


async def test_a_slug_is_given_once_and_the_refusal_harms_nobody_else(store: Store) -> None:
    await enrolled(store, 1)
    results = await asyncio.gather(*(enrolled(store, n) for n in (2, 1, 3)), return_exceptions=True)
    assert [type(result) for result in results[::2]] == [type(results[0])] * 2
    assert isinstance(results[1], StoreError)
    assert "zoe_1" in str(results[1])
    assert {car.slug for car in await store.cars()} == {"zoe_1", "zoe_2", "zoe_3"}


async def test_the_name_on_the_invitation_is_kept_with_the_vehicle(opener: Opener) -> None:
    async with opener() as store:
        car = await store.enrol(
            consent(), slug="zoe", name="Zoe", brand="renault", schedule=DUE, at=START, invited="Aunt Emma"
        )
        assert car.vehicle.invited == "Aunt Emma"
        assert (await enrolled(store, 2)).vehicle.invited is None
    async with opener() as store:
        assert [one.vehicle.invited for one in await store.cars()] == ["Aunt Emma", None]


async def test_a_vehicle_gets_another_slug_and_may_go_back_to_a_former_one(opener: Opener) -> None:
    async with opener() as store:
        car = await enrolled(store)
        there = renamed(renamed(car, "emma"), "emmas_zoe")
        await store.update(there)
        assert await store.cars() == [there]
        back = renamed(there, "zoe_1")
        await store.update(back)
    async with opener() as store:
        assert await store.cars() == [back]
    assert back.vehicle.former_slugs == ("zoe_1", "emma", "emmas_zoe")


@pytest.mark.parametrize(
    ("slug", "words"),
    [("zoe_2", "already enrolled as 'zoe_2'"), ("once", "was once enrolled as 'once'")],
)
async def test_nobody_takes_a_slug_that_is_or_was_anothers(store: Store, slug: str, words: str) -> None:
    car = await enrolled(store, 1)
    other = renamed(renamed(await enrolled(store, 2, slug="first"), "once"), "zoe_2")
    await store.update(other)
    refused = await asyncio.gather(
        store.update(renamed(replace(car, trouble=Trouble("asleep", "", "", START)), slug)),
        enrolled(store, 3, slug=slug),
        enrolled(store, 4),
        return_exceptions=True,
    )
    assert [type(result) for result in refused[:2]] == [StoreError] * 2
    assert all(words in str(result) for result in refused[:2])
    assert await store.cars() == [car, other, refused[2]]


async def test_update_changes_what_is_known_of_a_car_but_for_its_state_and_readings(
    opener: Opener,
) -> None:
    async with opener() as store:
        car, reading = await store.record(answer(await enrolled(store), 1))
        changed = replace(
            car,
            vehicle=replace(
                car.vehicle,
                slug="emma",
                former_slugs=("zoe_1",),
                name="Emma's car",
                invited="Emma",
                subscription="webhook connection-1",
                consent=replace(
                    consent(1), application="away", connection_id="anew", permissions=frozenset()
                ),
                withdrawn_at=START + 3 * MINUTE,
            ),
            schedule=Schedule(
                due=None,
                reason="consent lost",
                outcome="consent_lost",
                failures=3,
                activity=Activity.CHARGING,
                pushed_at=START + 2 * MINUTE,
                gain=1234.5,
            ),
            trouble=Trouble("consent_lost", "VEHICLE_STATE:GONE", "The owner took it back.", START),
            learned=b"\x01habits\x00",
        )
        await store.update(replace(changed, state=BatteryState(), reading_id="other"))
    async with opener() as store:
        assert await store.cars() == [changed]
        assert await all_readings(store) == [reading]
        await store.update(car)
        assert await store.cars() == [car]


async def test_a_reading_is_found_as_it_was_returned(opener: Opener) -> None:
    async with opener() as store:
        car = await enrolled(store)
        assert store.head == 0
        first_car, first = await store.record(answer(car, 1, soc=50.0))
        second_car, second = await store.record(answer(first_car, 2, soc=51.0))
        assert first is not None
        assert second is not None
        assert (first_car.reading_id, second_car.reading_id) == (first.reading_id, second.reading_id)
        assert first.reading_id != second.reading_id
        assert first.state == first_car.state
        assert first.state.soc_percent == 50.0
        assert first.fetched_at == START + 2 * MINUTE
        assert store.head == second.seq > first.seq
    async with opener() as store:
        assert store.head == second.seq
        assert await store.cars() == [second_car]
        assert await all_readings(store) == [first, second]


async def test_an_answer_without_news_changes_the_car_and_not_the_journal(opener: Opener) -> None:
    async with opener() as store:
        car, first = await store.record(answer(await enrolled(store), 1))
        later, none = await store.record(answer(replace(car, reading_id=None), 9, news=False))
        assert none is None
        assert first is not None
        assert later.reading_id == first.reading_id
        assert later.state.fetched_at == START + 10 * MINUTE
        assert store.head == first.seq
    async with opener() as store:
        assert await store.cars() == [later]
        assert await all_readings(store) == [first]


async def test_a_first_answer_without_news_has_no_reading(store: Store) -> None:
    car, _ = await store.record(answer(await enrolled(store), 1, news=False))
    assert car.reading_id is None
    assert await store.cars() == [car]


async def test_instants_are_rounded_down_to_milliseconds_before_anyone_sees_them(store: Store) -> None:
    car = await enrolled(store)
    polled = answer(car, 1, measured=START + 999 * MICROSECOND)
    kept, reading = await store.record(replace(polled, at=polled.at + 1999 * MICROSECOND))
    assert kept.state.measured_at == START
    assert reading is not None
    assert reading.fetched_at == polled.at + timedelta(milliseconds=1)
    assert await store.cars() == [kept]


async def test_a_webhook_and_an_unknown_time_stay_what_they_are(store: Store) -> None:
    car = await enrolled(store)
    soc = Measurement(Signal.SOC, 44.0, None, START, Origin.WEBHOOK)
    limit = Measurement(Signal.CHARGE_LIMIT, 80.0, START - MINUTE, START - MINUTE, Origin.POLL)
    mixed = replace(car, state=BatteryState({Signal.SOC: soc, Signal.CHARGE_LIMIT: limit}))
    kept, reading = await store.record(Polled(car=mixed, news=True, at=START, origin=Origin.WEBHOOK))
    assert kept == replace(mixed, reading_id=kept.reading_id)
    assert await store.cars() == [kept]
    assert await all_readings(store) == [reading]
    assert reading is not None
    assert reading.origin is Origin.WEBHOOK


async def test_when_a_webhook_last_delivered_is_kept_with_an_answer_and_goes_with_one(store: Store) -> None:
    car = await enrolled(store)
    pushed = replace(car, schedule=replace(car.schedule, pushed_at=START))
    kept, _ = await store.record(answer(pushed, 1))
    assert kept.schedule.pushed_at == START
    assert await store.cars() == [kept]
    polled, _ = await store.record(answer(replace(kept, schedule=DUE), 2))
    assert await store.cars() == [polled]
    assert polled.schedule.pushed_at is None


async def test_what_the_policy_learnt_and_expects_is_kept_with_every_answer(opener: Opener) -> None:
    async with opener() as store:
        fresh, other = await enrolled(store, 1), await enrolled(store, 2)
        assert (fresh.learned, fresh.schedule.gain) == (b"", DUE.gain)
        for minute, news, learned in ((1, True, bytes(range(256))), (2, False, b"\x02" * 450)):
            car = replace(fresh, schedule=replace(DUE, gain=float(minute)), learned=learned)
            kept, _ = await store.record(answer(car, minute, news=news))
            assert (kept.learned, kept.schedule.gain) == (learned, float(minute))
            assert await store.cars() == [kept, other]
    async with opener() as store:
        assert await store.cars() == [kept, other]
        forgotten, _ = await store.record(answer(replace(kept, learned=b""), 3))
        assert await store.cars() == [forgotten, other]
        assert forgotten.learned == b""


async def test_how_a_car_is_expected_to_go_on_is_not_kept(store: Store) -> None:
    trend = Trend(50.0, START, 11.0, 80.0, START + 60 * MINUTE)
    kept, _ = await store.record(answer(replace(await enrolled(store), trend=trend), 1))
    assert kept.trend == trend
    assert await store.cars() == [replace(kept, trend=None)]


async def test_what_was_learnt_across_cars_is_kept_by_application(opener: Opener) -> None:
    async with opener() as store:
        await enrolled(store)
        assert (await store.lore("home"), await store.lore("nobody's")) == (None, None)
        await store.keep_lore("home", b"first")
        await store.keep_lore("yet unheard of", b"\x01\x00\xff" * 1000)
    async with opener() as store:
        assert await store.lore("home") == b"first"
        assert await store.lore("yet unheard of") == b"\x01\x00\xff" * 1000
        await store.keep_lore("home", b"second")
        # The same application as that of the ledger, whichever was heard of first.
        await store.reserve(request(None, application="yet unheard of"))
        assert (await store.account("yet unheard of", START)).overhead == 1
        assert (await store.account("home", START)).bucket is None
    async with opener() as store:
        assert await store.lore("home") == b"second"
        assert await store.lore("yet unheard of") == b"\x01\x00\xff" * 1000
        assert await store.lore("nobody's") is None


async def test_deliveries_are_noted_once_with_what_they_brought(opener: Opener) -> None:
    async with opener() as store:
        car = await enrolled(store)
        assert await store.recent_events(START, 10) == []
        for minute, event_id in ((5, "later"), (1, "z"), (3, "a"), (9, "z"), (4, None)):
            await store.record(answer(car, minute, event_id=event_id))
        stranger = replace(car, vehicle=replace(car.vehicle, id=NOBODY))
        with pytest.raises(StoreError):
            await store.record(answer(stranger, 4, event_id="of nobody"))
    async with opener() as store:
        assert await store.recent_events(START, 10) == ["z", "a", "later"]
        # Each was fetched a minute after it was measured.
        assert await store.recent_events(START + 4 * MINUTE, 10) == ["a", "later"]
        assert await store.recent_events(START + 4 * MINUTE + MICROSECOND * 1000, 10) == ["later"]


async def test_erasing_takes_all_that_was_heard_of_one_vehicle_and_nothing_else(opener: Opener) -> None:
    tale = Rejected(Signal.SOC, "255%", "above 100 %", None, START)
    untimed = {Signal.SOC: Measurement(Signal.SOC, 1.0, None, START)}
    async with opener() as store:
        one, two = [replace(await enrolled(store, number), learned=b"habits") for number in (1, 2)]
        other, _ = await store.record(answer(two, 1, rejected=(tale,), excerpt="<kept>"))
        car, _ = await store.record(answer(one, 2, rejected=(tale,), excerpt="<gone>"))
        await store.keep_lore("home", b"of all cars")
        await store.record(Polled(car=replace(car, state=BatteryState(untimed)), news=True, at=START))
        car, newest = await store.record(answer(car, 3))
        await store.reserve(request(car.id))
        readings = await all_readings(store)
        await store.erase(car.id)
        assert newest is not None
        assert store.head == newest.seq
    async with opener() as store:
        erased = replace(car, state=BatteryState(), reading_id=None, learned=b"")
        assert await store.cars() == [erased, other]
        assert await store.lore("home") == b"of all cars"
        assert await all_readings(store) == [one for one in readings if one.vehicle_id == other.id]
        assert (await store.rejections(car.id), await store.rejections(other.id)) == ([], [tale])
        assert (await store.excerpt(car.id), await store.excerpt(other.id)) == (None, "<kept>")
        assert (await store.account("home", START)).spent == {car.id: 1}
        await store.erase(car.id)
        again, reading = await store.record(answer(erased, 4))
        assert reading is not None
        assert reading.seq > newest.seq
        assert await store.cars() == [again, other]


async def test_erasing_a_vehicle_nobody_knows(store: Store) -> None:
    with pytest.raises(StoreError, match="4711"):
        await store.erase(NOBODY)


async def test_trouble_is_kept_with_an_answer_and_goes_with_one(store: Store) -> None:
    car = await enrolled(store)
    trouble = Trouble("asleep", "VEHICLE_STATE:ASLEEP", "It sleeps.", START)
    sleeping, _ = await store.record(answer(replace(car, trouble=trouble), 1, news=False))
    assert sleeping.trouble == trouble
    assert await store.cars() == [sleeping]
    awake, _ = await store.record(answer(replace(sleeping, trouble=None), 2))
    assert await store.cars() == [awake]
    assert awake.trouble is None


async def test_the_last_twenty_rejected_values_are_kept_newest_first(store: Store) -> None:
    one, other = await enrolled(store, 1), await enrolled(store, 2)
    values = tuple(
        Rejected(Signal.SOC, f"25{n}%", "above 100 %", None if n % 2 else START, START + n * MINUTE)
        for n in range(25)
    )
    kept_too = Rejected(Signal.RANGE, "65535", "out of proportion", START, START)
    await store.record(answer(other, 0, rejected=(kept_too,)))
    await store.record(answer(one, 1, rejected=values[:3]))
    await store.record(answer(one, 2, rejected=values[3:]))
    assert await store.rejections(one.id) == list(reversed(values))[:20]
    assert await store.rejections(other.id) == [kept_too]
    assert await store.rejections(NOBODY) == []


async def test_the_last_unreadable_answer_is_kept(store: Store) -> None:
    car = await enrolled(store)
    assert await store.excerpt(car.id) is None
    await store.record(answer(car, 1, news=False, excerpt="<html>first"))
    await store.record(answer(car, 2, news=False, excerpt="<html>second"))
    await store.record(answer(car, 3))
    assert await store.excerpt(car.id) == "<html>second"


async def test_what_cannot_be_kept_leaves_nothing_behind_and_harms_nobody_else(store: Store) -> None:
    car = await enrolled(store)
    halves = [
        answer(replace(car, vehicle=replace(car.vehicle, id=NOBODY)), 1),
        answer(car, 2, excerpt="a lone surrogate \ud800"),
        answer(car, 3, soc=float("nan")),
    ]
    results = await asyncio.gather(
        *(store.record(half) for half in halves), recorded(store, car, 4), return_exceptions=True
    )
    assert [type(result) for result in results[:3]] == [StoreError] * 3
    assert await all_readings(store) == [results[3]]
    assert store.head == results[3].seq
    assert await store.excerpt(car.id) is None


@pytest.mark.parametrize("due", [None, START + 9 * MINUTE])
async def test_a_request_for_a_vehicle_nobody_knows(store: Store, due: datetime | None) -> None:
    car = await enrolled(store)
    stranger = replace(car, vehicle=replace(car.vehicle, id=NOBODY))
    with pytest.raises(StoreError, match="4711"):
        await store.update(stranger)
    if due is not None:
        with pytest.raises(StoreError, match="4711"):
            await store.reserve(request(NOBODY, due=due))
        assert (await store.account("home", START)).spent == {}


async def test_requests_are_counted_by_application_period_and_vehicle(opener: Opener) -> None:
    tomorrow = START + timedelta(days=1)
    async with opener() as store:
        one, other = await enrolled(store, 1), await enrolled(store, 2)
        nothing = await store.account("home", START)
        assert (nothing.spent, nothing.overhead, nothing.bucket) == ({}, 0, None)
        for reservation in (
            request(one.id),
            request(one.id),
            request(other.id),
            request(None),
            request(one.id, window=tomorrow),
            request(one.id, application="away", level=7.25),
        ):
            await store.reserve(reservation)
        await store.reserve(request(None, level=113.5))
    async with opener() as store:
        account = await store.account("home", START)
        assert account.spent == {one.id: 2, other.id: 1}
        assert account.overhead == 2
        assert account.bucket == Bucket(113.5, START)
        assert (await store.account("home", tomorrow)).spent == {one.id: 1}
        away = await store.account("away", START)
        assert (away.spent, away.overhead, away.bucket) == ({one.id: 1}, 0, Bucket(7.25, START))


async def test_a_reservation_moves_the_due_time_so_that_a_crash_makes_no_burst(opener: Opener) -> None:
    due = START + 40 * MINUTE
    async with opener() as store:
        polled, waiting = await enrolled(store, 1), await enrolled(store, 2)
        await store.reserve(request(polled.id, due=due))
        await store.reserve(request(waiting.id))
    async with opener() as store:
        asked, untouched = await store.cars()
    assert asked.schedule == replace(polled.schedule, due=due, polled_at=START + 5 * MINUTE)
    assert untouched == waiting


async def test_a_later_page_of_a_poll_moves_neither_when_it_was_asked_nor_when_it_falls_due(
    opener: Opener,
) -> None:
    due = START + 40 * MINUTE
    async with opener() as store:
        car = replace(await enrolled(store), learned=b"habits")
        car, _ = await store.record(answer(replace(car, schedule=replace(DUE, polled_at=START)), 1))
        await store.reserve(request(car.id, due=due, at=START + 30 * MINUTE))
        await store.reserve(request(car.id, at=START + 31 * MINUTE))
        await store.reserve(request(car.id, at=START + 32 * MINUTE))
    async with opener() as store:
        schedule = replace(car.schedule, due=due, polled_at=START + 30 * MINUTE)
        assert await store.cars() == [replace(car, schedule=schedule)]
        assert (await store.account("home", START)).spent == {car.id: 3}


async def test_the_source_may_correct_the_count(store: Store) -> None:
    car = await enrolled(store)
    await store.correct("home", car.id, START, 500)
    await store.correct("new", car.id, START, 3)
    await store.reserve(request(car.id))
    assert (await store.account("home", START)).spent == {car.id: 501}
    await store.correct("home", car.id, START, 7)
    assert (await store.account("home", START)).spent == {car.id: 7}
    new = await store.account("new", START)
    assert (new.spent, new.bucket) == ({car.id: 3}, None)


async def test_history_is_one_vehicles_in_the_order_of_the_cars_clock(store: Store) -> None:
    car, other = await enrolled(store, 1), await enrolled(store, 2)
    late = await recorded(store, car, 30)
    early = await recorded(store, car, 10)
    middle = await recorded(store, car, 20)
    await recorded(store, other, 20)
    untimed = replace(car, state=BatteryState({Signal.SOC: Measurement(Signal.SOC, 1.0, None, START)}))
    await store.record(Polled(car=untimed, news=True, at=START + 20 * MINUTE))

    async def between(since: datetime, until: datetime, limit: int = 100) -> list[object]:
        return list(await store.history(car.id, since, until, limit))

    forever = (START - timedelta(days=9), START + timedelta(days=9))
    assert await between(*forever) == [early, middle, late]
    assert await between(*forever, 2) == [early, middle]
    ten, thirty = START + 10 * MINUTE, START + 30 * MINUTE
    assert await between(ten, thirty) == [early, middle]
    assert await between(ten + MICROSECOND, thirty + MICROSECOND) == [middle, late]


async def test_only_what_is_old_and_taken_by_every_sink_is_pruned(store: Store) -> None:
    car = await enrolled(store)
    readings = [await recorded(store, car, minute) for minute in (1, 2, 9, 3, 4)]
    await store.delivered("mqtt", {}, readings[4].seq)
    await store.delivered("remote", {}, readings[3].seq)
    assert await store.prune(START + 5 * MINUTE) == 3
    assert await all_readings(store) == [readings[2], readings[4]]
    assert await store.prune(START + 5 * MINUTE) == 0


async def test_pruning_keeps_what_was_fetched_at_the_given_time(store: Store) -> None:
    car = await enrolled(store)
    reading = await recorded(store, car, 1)
    assert await store.prune(reading.fetched_at) == 0
    assert await store.prune(reading.fetched_at + MICROSECOND) == 1


async def test_a_sink_that_has_only_asked_for_its_cursor_loses_nothing(store: Store) -> None:
    car = await enrolled(store)
    reading = await recorded(store, car, 1)
    assert await store.cursor("new") == 0
    await store.delivered("mqtt", {}, reading.seq)
    assert await store.prune(START + timedelta(days=1)) == 0
    assert await all_readings(store) == [reading]


async def test_a_position_is_never_given_twice_not_even_when_all_is_pruned(opener: Opener) -> None:
    async with opener() as store:
        car = await enrolled(store)
        last = [await recorded(store, car, minute) for minute in (1, 2)][-1]
        assert await store.prune(START + timedelta(days=1)) == 2
    async with opener() as store:
        assert store.head == last.seq
        assert await store.prune(START + timedelta(days=1)) == 0
        assert (await recorded(store, car, 3)).seq > last.seq


async def test_leaving_writes_what_is_waiting(opener: Opener) -> None:
    async with opener() as store:
        car = await enrolled(store)
        waiting = [asyncio.create_task(recorded(store, car, minute)) for minute in range(50)]
        await asyncio.sleep(0)
    readings = await asyncio.gather(*waiting)
    async with opener() as store:
        assert await all_readings(store) == readings


async def test_a_reading_whose_caller_was_cancelled_is_kept_and_told_of(opener: Opener) -> None:
    async with opener() as store:
        car = await enrolled(store)
        cancelled = asyncio.create_task(recorded(store, car, 1))
        await asyncio.sleep(0)
        cancelled.cancel()
        await recorded(store, car, 2)
        assert len(await all_readings(store)) == 2
        assert cancelled.cancelled()


async def test_a_closed_store_says_so(opener: Opener) -> None:
    async with opener() as store:
        car = await enrolled(store)
    with pytest.raises(StoreError, match="closed"):
        await store.update(car)
    with pytest.raises(StoreError, match="closed"):
        await store.cars()
