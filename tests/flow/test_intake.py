"""Each delivery once, committed before it is acknowledged; webhooks and polls make one reading of a car."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from evbatteryd.domain import errors
from evbatteryd.domain.fleet import Car, Trouble
from evbatteryd.domain.ledger import Budget
from evbatteryd.domain.ports import Polled
from evbatteryd.domain.reading import Measurement, Observation, Origin, Signal
from evbatteryd.domain.webhook import Challenge, Delivery, Event, NotTaken, ToldError
from evbatteryd.flow import intake as intake_module
from evbatteryd.flow.intake import Intake
from tests.fakes import START, until
from tests.flow.world import RENAULT, World, world
from tests.store.cars import all_readings

MINUTE = timedelta(minutes=1)


class Deliveries:
    """What the reader makes of a body: its bytes are a key."""

    def __init__(self, w: World) -> None:
        self.w = w
        self.known: dict[bytes, tuple[Delivery, ...] | Challenge | NotTaken] = {}
        self.strangers: list[str] = []

    def read(self, body: bytes, *_: object) -> tuple[Delivery, ...] | Challenge:
        found = self.known[body]
        if isinstance(found, NotTaken):
            raise found
        return found

    def add(self, body: bytes, car: Car, **more: object) -> None:
        delivery = Delivery(
            application="home",
            event=Event.STATE,
            event_id=body.decode(),
            vehicle_ref=car.vehicle.consent.vehicle_ref,
            received_at=self.w.clock.now(),
            webhook_id="hook",
        )
        self.known[body] = (replace(delivery, **more),)

    def soc(self, soc: float, measured_at: datetime, **more: object) -> Observation:
        now = self.w.clock.now()
        values = {Signal.SOC: soc, **{Signal[name]: value for name, value in more.items()}}
        return Observation(
            fetched_at=now,
            origin=Origin.WEBHOOK,
            measurements=tuple(
                Measurement(signal, value, measured_at, now, Origin.WEBHOOK)
                for signal, value in values.items()
            ),
        )


def intake_of(w: World, deliveries: Deliveries) -> Intake:
    return Intake(
        deliveries.read,
        w.cars,
        w.store,
        w.clock,
        w.metrics,
        w.log,
        share_of=lambda car: w.purse.share(car.id),
        stranger=deliveries.strangers.append,
        webhook_ids={"home": "hook"},
        lores=w.lores,
    )


@pytest.fixture
async def setting(tmp_path: Path):
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        deliveries = Deliveries(w)
        intake = intake_of(w, deliveries)
        await intake.open()
        yield w, car, deliveries, intake
        await intake.drain(1.0)


def counted(w: World, event: str, outcome: str) -> float:
    value = w.metrics._registry.get_sample_value(
        "evbatteryd_webhooks_total", {"event": event, "outcome": outcome}
    )
    return value or 0.0


async def test_what_is_pushed_is_a_reading_that_is_committed_before_the_2xx(setting) -> None:
    w, car, deliveries, intake = setting
    deliveries.add(b"e1", car, observation=deliveries.soc(55.0, START - MINUTE))
    answer = await intake.receive(b"e1", "s", None)
    assert answer.status == 200
    (reading,) = await all_readings(w.store)
    assert reading.origin is Origin.WEBHOOK
    assert reading.state.soc_percent == 55.0
    assert reading.state.measured_at == START - MINUTE
    assert w.heard[-1][1] == reading
    assert counted(w, "vehicle_state", "new") == 1
    assert w.source.asked == [], "a webhook costs no call"


async def test_a_repetition_changes_nothing_even_after_a_restart(setting) -> None:
    w, car, deliveries, intake = setting
    deliveries.add(b"e1", car, observation=deliveries.soc(55.0, START - MINUTE))
    await intake.receive(b"e1", "s", None)
    told = len(w.heard)
    assert (await intake.receive(b"e1", "s", None)).status == 200
    again = intake_of(w, deliveries)
    await again.open()
    assert (await again.receive(b"e1", "s", None)).status == 200
    assert len(w.heard) == told
    assert len(await all_readings(w.store)) == 1
    assert counted(w, "vehicle_state", "duplicate") == 2


async def test_two_deliveries_of_one_event_at_once_are_one(setting) -> None:
    w, car, deliveries, intake = setting
    deliveries.add(b"e1", car, observation=deliveries.soc(55.0, START - MINUTE))
    answers = await asyncio.gather(*(intake.receive(b"e1", "s", None) for _ in range(5)))
    assert [answer.status for answer in answers] == [200] * 5
    assert len(await all_readings(w.store)) == 1
    assert counted(w, "vehicle_state", "duplicate") == 4


async def test_what_arrives_late_never_overwrites_what_is_newer(setting) -> None:
    w, car, deliveries, intake = setting
    deliveries.add(b"new", car, observation=deliveries.soc(60.0, START - MINUTE))
    deliveries.add(b"old", car, observation=deliveries.soc(50.0, START - 9 * MINUTE, ODOMETER=100.0))
    await intake.receive(b"new", "s", None)
    await intake.receive(b"old", "s", None)
    state = w.fleet[car.id].state
    assert state.soc_percent == 60.0
    assert state.number(Signal.ODOMETER) == 100.0


async def test_where_webhooks_deliver_polls_are_a_safety_net_until_they_fall_silent(setting) -> None:
    w, car, deliveries, intake = setting
    w.source.soc = 50.0
    await w.poll(car)
    await w.clock.advance(40 * MINUTE)
    deliveries.add(b"e1", car, observation=deliveries.soc(51.0, w.clock.now()))
    await intake.receive(b"e1", "s", None)
    pushed = w.fleet[car.id]
    assert pushed.schedule.pushed_at == w.clock.now()
    assert pushed.schedule.due == w.clock.now() + 2 * RENAULT.parked
    assert "webhooks deliver" in pushed.schedule.reason

    w.source.soc = 51.0
    unchanged = await w.poll_when_due(pushed)
    assert unchanged.schedule.pushed_at is not None, "the silence was true: there was nothing to tell"
    assert unchanged.schedule.due == w.clock.now() + 2 * RENAULT.parked

    async def moved_on(_: object) -> Observation:
        return w.source.observation(40.0, age=20 * MINUTE)

    w.source.answer = moved_on
    silent = await w.poll_when_due(unchanged)
    assert silent.schedule.pushed_at is None
    assert silent.schedule.due - w.clock.now() <= RENAULT.parked
    assert "webhooks have fallen silent" in silent.schedule.reason
    assert len(w.said("webhooks.silent")) == 1
    assert [kept.schedule.pushed_at for kept in await w.store.cars()] == [None]


async def test_strangers_are_looked_for_and_nothing_is_kept_of_them(setting) -> None:
    w, car, deliveries, intake = setting
    deliveries.add(b"e1", car, vehicle_ref="nobody", observation=deliveries.soc(55.0, START))
    answer = await intake.receive(b"e1", "s", None)
    assert answer.status == 200
    assert deliveries.strangers == ["home"]
    assert counted(w, "vehicle_state", "unknown_vehicle") == 1
    assert await all_readings(w.store) == []


async def test_a_car_of_another_application_is_a_stranger(setting) -> None:
    w, car, deliveries, intake = setting
    deliveries.add(b"e1", car, application="other", observation=deliveries.soc(55.0, START))
    await intake.receive(b"e1", "s", None)
    assert counted(w, "vehicle_state", "unknown_vehicle") == 1
    assert w.fleet[car.id].state.soc_percent is None


async def test_a_withdrawn_car_stays_withdrawn(setting) -> None:
    w, car, deliveries, intake = setting
    await w.cars.change(car.id, lambda c: replace(c, vehicle=replace(c.vehicle, withdrawn_at=START)))
    deliveries.add(b"e1", car, observation=deliveries.soc(55.0, START))
    await intake.receive(b"e1", "s", None)
    assert await all_readings(w.store) == []
    assert w.fleet[car.id].vehicle.withdrawn_at == START
    assert deliveries.strangers == ["home"], "it may have been consented to anew"


@pytest.mark.parametrize("test", [True, False])
async def test_values_of_a_trial_are_of_no_car(setting, test: bool) -> None:
    w, car, deliveries, intake = setting
    deliveries.add(b"e1", car, test=test, observation=deliveries.soc(55.0, START))
    await intake.receive(b"e1", "s", None)
    assert (w.fleet[car.id].state.soc_percent is None) is test


async def test_values_that_cannot_be_are_kept_out_and_counted(setting) -> None:
    w, car, deliveries, intake = setting
    deliveries.add(b"e1", car, observation=deliveries.soc(255.0, START, ODOMETER=1000.0))
    await intake.receive(b"e1", "s", None)
    after = w.fleet[car.id]
    assert after.state.soc_percent is None
    assert after.schedule.pushed_at is None, "webhooks deliver no state of charge"
    assert [rejected.signal for rejected in await w.store.rejections(car.id)] == [Signal.SOC]


async def test_a_refusal_is_answered_counted_and_said_once_an_hour(setting) -> None:
    w, _, deliveries, intake = setting
    deliveries.known[b"forged"] = NotTaken("wrong_signature", 401, "the signature does not fit")
    for _ in range(3):
        answer = await intake.receive(b"forged", "s", None)
    assert (answer.status, answer.document) == (401, {"error": "the signature does not fit"})
    assert counted(w, "other", "wrong_signature") == 3
    assert len(w.said("webhook.refused")) == 1
    await w.clock.advance(timedelta(hours=2))
    await intake.receive(b"forged", "s", None)
    assert len(w.said("webhook.refused")) == 2


async def test_a_challenge_is_answered_and_changes_nothing(setting) -> None:
    w, car, deliveries, intake = setting
    deliveries.known[b"verify"] = Challenge("abc")
    before = w.fleet[car.id]
    for _ in range(3):
        assert (await intake.receive(b"verify", None, None)).document == {"challenge": "abc"}
    assert w.fleet[car.id] is before
    assert len(w.said("webhook.verified")) == 1, "anybody may send one"


async def test_while_the_disk_is_full_smartcar_is_asked_to_come_again(
    setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, car, deliveries, intake = setting
    monkeypatch.setattr(intake_module, "ANSWERED_WITHIN_S", 0.05)
    deliveries.add(b"e1", car, observation=deliveries.soc(55.0, START - MINUTE))
    w.store.full.add("record")
    assert (await intake.receive(b"e1", "s", None)).status == 503
    assert counted(w, "vehicle_state", "late") == 1
    assert await all_readings(w.store) == []
    w.store.full.clear()
    await w.clock.advance(timedelta(seconds=10))
    assert (await intake.receive(b"e1", "s", None)).status == 200
    await until(lambda: w.fleet[car.id].state.soc_percent == 55.0)
    assert len(await all_readings(w.store)) == 1


async def test_whoever_hangs_up_stops_no_commit(setting) -> None:
    w, car, deliveries, intake = setting
    deliveries.add(b"e1", car, observation=deliveries.soc(55.0, START - MINUTE))
    with _held(w) as go_on:
        receiving = asyncio.create_task(intake.receive(b"e1", "s", None))
        await until(lambda: go_on.waiting)
        receiving.cancel()
        go_on.event.set()
    await until(lambda: w.fleet[car.id].state.soc_percent == 55.0)
    assert [car.state.soc_percent for car in await w.store.cars()] == [55.0]


class _Gate:
    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.waiting = False


@contextmanager
def _held(w: World) -> Iterator[_Gate]:
    """The store takes nothing down until it is told to go on."""
    gate, record = _Gate(), w.cars._store.record

    async def held(polled: Polled) -> object:
        gate.waiting = True
        await gate.event.wait()
        return await record(polled)

    w.store.record = held  # type: ignore[attr-defined]
    try:
        yield gate
    finally:
        del w.store.record


async def test_nothing_is_taken_before_the_fleet_is_loaded_or_after_it_was_drained(setting) -> None:
    w, car, deliveries, opened = setting
    deliveries.add(b"e1", car, observation=deliveries.soc(55.0, START - MINUTE))
    assert (await intake_of(w, deliveries).receive(b"e1", "s", None)).status == 503
    await opened.drain(1.0)
    assert (await opened.receive(b"e1", "s", None)).status == 503
    assert w.fleet[car.id].state.soc_percent is None


# --- errors ---------------------------------------------------------------------------------------------

ASLEEP = errors.Asleep("VEHICLE_STATE:ASLEEP", "asleep")
LOST = errors.ConsentLost("PERMISSION", "the owner's consent no longer covers this")


async def test_trouble_comes_and_goes_with_its_deliveries(setting) -> None:
    w, car, deliveries, intake = setting
    deliveries.add(b"e1", car, event=Event.ERROR, errors=(ToldError(ASLEEP, False, None),))
    deliveries.add(b"e2", car, event=Event.ERROR, errors=(ToldError(ASLEEP, True, None),))
    await intake.receive(b"e1", "s", None)
    assert w.fleet[car.id].trouble == Trouble("asleep", "VEHICLE_STATE:ASLEEP", "asleep", START)
    assert len(w.said("webhook.trouble")) == 1
    await intake.receive(b"e2", "s", None)
    assert w.fleet[car.id].trouble is None
    assert len(w.said("webhook.recovered")) == 1
    assert counted(w, "vehicle_error", "error") == 2


async def test_a_lost_consent_is_believed_only_when_a_poll_says_so_too(setting) -> None:
    w, car, deliveries, intake = setting
    (polled,) = await w.poll(car)
    await w.clock.advance(30 * MINUTE)
    deliveries.add(b"e1", car, event=Event.ERROR, errors=(ToldError(LOST, False, None),))
    deliveries.add(b"soc", car, observation=deliveries.soc(50.0, w.clock.now()))
    await intake.receive(b"soc", "s", None)  # puts the next poll off
    await intake.receive(b"e1", "s", None)
    after = w.fleet[car.id]
    assert after.consented
    assert after.trouble is None
    assert after.schedule.due == polled.schedule.polled_at + RENAULT.parked
    assert "PERMISSION" in after.schedule.reason
    w.source.failing(LOST)
    lost = await w.poll_when_due(after)
    assert not lost.consented
    deliveries.add(b"e2", car, event=Event.ERROR, errors=(ToldError(LOST, False, None),))
    await intake.receive(b"e2", "s", None)
    assert w.fleet[car.id].schedule.due is None, "nobody is asked for a car whose owner has to consent"


async def test_whoever_is_told_of_has_a_consent_that_stands(setting) -> None:
    w, car, deliveries, intake = setting
    w.source.failing(LOST)
    await w.poll(car)
    assert not w.fleet[car.id].consented
    deliveries.add(b"late", car, observation=deliveries.soc(55.0, START - MINUTE))
    await intake.receive(b"late", "s", None)
    assert not w.fleet[car.id].consented, "it was measured before the consent was lost"
    await w.clock.advance(10 * MINUTE)
    deliveries.add(b"e1", car, observation=deliveries.soc(55.0, w.clock.now()))
    await intake.receive(b"e1", "s", None)
    after = w.fleet[car.id]
    assert after.consented
    assert after.schedule.due == START + RENAULT.parked, "one poll makes sure"


async def test_a_used_up_plan_is_neither_told_nor_ended_by_a_webhook(setting) -> None:
    w, car, deliveries, intake = setting
    w.source.failing(errors.BudgetSpent("BILLING:VEHICLE_REQUEST_LIMIT", "used up"))
    (spent,) = await w.poll(car)
    deliveries.add(b"e1", car, observation=deliveries.soc(55.0, START))
    await intake.receive(b"e1", "s", None)
    after = w.fleet[car.id]
    assert after.state.soc_percent == 55.0
    assert after.trouble == spent.trouble
    assert after.schedule.due >= w.purse.share(car.id).renews_at


async def test_who_is_told_of_counts_as_subscribed(setting) -> None:
    w, car, deliveries, intake = setting
    deliveries.add(b"e1", car, observation=deliveries.soc(55.0, START))
    await intake.receive(b"e1", "s", None)
    assert [kept.vehicle.subscription for kept in await w.store.cars()] == ["hook c0"]


@pytest.mark.parametrize("webhook_id", ["another", None])
async def test_another_webhook_is_no_subscription_to_ours(setting, webhook_id: str | None) -> None:
    w, car, deliveries, intake = setting
    deliveries.add(b"e1", car, webhook_id=webhook_id, observation=deliveries.soc(55.0, START))
    await intake.receive(b"e1", "s", None)
    assert w.fleet[car.id].vehicle.subscription is None


async def test_the_end_of_an_error_that_comes_before_its_beginning_ends_it(setting) -> None:
    w, car, deliveries, intake = setting
    deliveries.add(b"end", car, event=Event.ERROR, errors=(ToldError(ASLEEP, True, None),))
    deliveries.add(b"beginning", car, event=Event.ERROR, errors=(ToldError(ASLEEP, False, None),))
    deliveries.add(b"again", car, event=Event.ERROR, errors=(ToldError(ASLEEP, False, None),))
    await intake.receive(b"end", "s", None)
    await intake.receive(b"beginning", "s", None)
    assert w.fleet[car.id].trouble is None
    await w.clock.advance(10 * MINUTE)
    deliveries.add(b"again", car, event=Event.ERROR, errors=(ToldError(ASLEEP, False, None),))
    await intake.receive(b"again", "s", None)
    assert w.fleet[car.id].trouble is not None


async def test_a_stranger_has_the_list_read_once_an_hour(setting) -> None:
    w, car, deliveries, intake = setting
    for n in range(5):
        deliveries.add(b"e%d" % n, car, vehicle_ref="nobody", observation=deliveries.soc(55.0, START))
        await intake.receive(b"e%d" % n, "s", None)
    assert deliveries.strangers == ["home"]
    await w.clock.advance(timedelta(hours=1))
    deliveries.add(b"later", car, vehicle_ref="nobody", observation=deliveries.soc(55.0, START))
    await intake.receive(b"later", "s", None)
    assert deliveries.strangers == ["home", "home"]


async def test_a_car_that_waits_for_its_turn_is_not_polled_once_a_webhook_answered(tmp_path: Path) -> None:
    # One token: the second car waits while the first is asked.
    async with world(tmp_path, Budget(bucket=2, refill_per_minute=1.0)) as w:
        cars = await w.enrol(2)
        deliveries = Deliveries(w)
        intake = intake_of(w, deliveries)
        await intake.open()
        await w.clock.advance(10 * MINUTE)
        for car in cars:
            w.poller.due(car.id)
        await until(lambda: len(w.source.asked) == 1)
        (waiting,) = [car for car in cars if car.id != w.source.asked[0][1]]
        assert w.poller.waiting == 1
        deliveries.add(b"e1", waiting, observation=deliveries.soc(55.0, w.clock.now()))
        await intake.receive(b"e1", "s", None)
        await w.clock.advance(30 * MINUTE)
        await until(lambda: w.poller.waiting == 0 and w.poller.in_flight == 0)
        assert [asked for _, asked in w.source.asked] == [car.id for car in cars if car is not waiting]


async def test_a_restart_brings_no_poll_forward_that_a_webhook_had_put_off(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        deliveries = Deliveries(w)
        intake = intake_of(w, deliveries)
        await intake.open()
        (polled,) = await w.poll(car)
        await w.clock.advance(timedelta(hours=1))
        deliveries.add(b"e1", car, observation=deliveries.soc(51.0, w.clock.now()))
        await intake.receive(b"e1", "s", None)
        due = w.fleet[car.id].schedule.due
        clock = w.clock
    async with world(tmp_path, clock=clock) as w:
        await w.cars.reconsider(lambda car: w.purse.share(car.id))
        assert w.fleet[car.id].schedule.due == due
        assert due > polled.schedule.due


async def test_a_bug_in_one_delivery_is_told_and_stops_no_other(
    setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, car, deliveries, intake = setting
    deliveries.add(b"e1", car, observation=deliveries.soc(55.0, START))
    deliveries.add(b"e2", car, observation=deliveries.soc(56.0, START))

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(intake_module, "plausible", broken)
        assert (await intake.receive(b"e1", "s", None)).status == 500
        assert (await intake.receive(b"a body that the reader fails on", "s", None)).status == 500
    assert len(w.said("webhook.bug")) == 2
    assert (await intake.receive(b"e2", "s", None)).status == 200
    assert (await intake.receive(b"e1", "s", None)).status == 200
    assert counted(w, "vehicle_state", "failed") == 1


async def test_after_a_day_without_a_webhook_the_car_is_polled_as_the_policy_has_it(setting) -> None:
    w, car, deliveries, intake = setting
    w.source.soc = 50.0
    deliveries.add(b"e1", car, observation=deliveries.soc(50.0, START))
    await intake.receive(b"e1", "s", None)
    after, waits = w.fleet[car.id], []
    for _ in range(8):
        after = await w.poll_when_due(after)
        waits.append(after.schedule.due - w.clock.now())
    assert waits[:6] == [2 * RENAULT.parked] * 6
    assert 2 * RENAULT.parked not in waits[6:]
    assert after.schedule.pushed_at is None
    assert w.said("webhooks.silent") == [], "no poll found anything that one should have brought"
