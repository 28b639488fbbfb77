"""A store of an earlier schema keeps everything when it is opened."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from importlib import resources
from pathlib import Path

import pytest

from evbatteryd.domain.errors import StoreError
from evbatteryd.domain.fleet import Car, Schedule, Trouble
from evbatteryd.domain.ledger import Bucket
from evbatteryd.domain.profile import Activity
from evbatteryd.domain.reading import (
    BatteryState,
    ChargeState,
    Measurement,
    Origin,
    Reading,
    Rejected,
    Signal,
)
from evbatteryd.domain.vehicle import Consent, Vehicle, VehicleId
from evbatteryd.store import open_store
from tests.store.cars import START, all_readings, answer, renamed
from tests.store.enrolments import begun, invited

SCHEMAS = resources.files("evbatteryd.store") / "schema"
FIRST = (
    (SCHEMAS / "0001_initial.sql").read_text()
    + """
    UPDATE store SET epoch = 'feedbeef';
    INSERT INTO application VALUES (1, 'home', 99.5, 1793520000000), (2, 'away', NULL, NULL);
    INSERT INTO vehicle VALUES
        (1, 'zoe', 'Emma''s Zoe', 'renault', 1, 'connection-1', 'vehicle-1', 'user-1', 'RENAULT', 'Zoe', 2021,
            'BEV', '["read_battery"]', 1793520000000, NULL),
        (2, 'leaf', 'Leaf', 'nissan', 2, 'connection-2', 'vehicle-2', 'user-2', 'NISSAN', NULL, NULL, NULL,
            '[]', 1793520000000, 1793523600000);
    INSERT INTO latest VALUES
        (1, 2, 1793520060000, 0, 1793520000000, 61.5, 200.25, NULL, 0, 1, NULL, NULL, NULL, NULL, NULL, NULL,
            1793520960000, 'charging', 1793520060000, 1793520060000, 'new', 0, 'charging', 2,
            NULL, NULL, NULL, NULL),
        (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
            NULL, 'consent lost', NULL, NULL, 'consent_lost', 3, 'parked', 1,
            'consent_lost', 'GONE', 'The owner took it back.', 1793523600000);
    INSERT INTO reading VALUES
        (1, 1, 1793519999000, 1, 1793519990000, 60.5, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
            NULL),
        (2, 1, 1793520060000, 0, 1793520000000, 61.5, 200.25, NULL, 0, 1, NULL, NULL, NULL, NULL, NULL, NULL);
    INSERT INTO cursor VALUES ('mqtt', 1);
    INSERT INTO ledger VALUES (1, 1793520000000, 0, 4), (1, 1793520000000, 1, 7);
    INSERT INTO rejected VALUES (1, 1, 'soc', '255%', 'above 100 %', NULL, 1793520000000);
    INSERT INTO excerpt VALUES (1, '<html>');
    PRAGMA user_version = 1;
"""
)
SECOND = (
    FIRST
    + (SCHEMAS / "0002_enrolment.sql").read_text()
    + """
    UPDATE vehicle SET renewed_ms = 1793523600000, invited = 'Emma', former_slugs = '["twingo"]',
        subscription = 'webhook connection-1' WHERE id = 1;
    UPDATE latest SET pushed_ms = 1793520060000 WHERE vehicle_id = 1;
    INSERT INTO invitation VALUES (1, x'01', 'Emma', 1, 1793520000000, 1793523600000, 1793520060000, NULL);
    INSERT INTO enrolment VALUES (1, x'02', NULL, 1, 1, 1793520000000, 1793523600000, 1793520060000,
        'consented', 'user-1', NULL);
    INSERT INTO webhook_event VALUES ('delivered', 1793520060000);
    PRAGMA user_version = 2;
"""
)
THIRD = (
    SECOND
    + (SCHEMAS / "0003_policy.sql").read_text()
    + """
    UPDATE latest SET gain = 3.5, learned = x'6861626974' WHERE vehicle_id = 1;
    INSERT INTO lore VALUES (1, x'6c6f7265');
    PRAGMA user_version = 3;
"""
)
EARLIER = pytest.mark.parametrize("script", [FIRST, SECOND, THIRD], ids=["first", "second", "third"])
MINUTE = timedelta(minutes=1)
LATER = START + timedelta(hours=1)


def left_by(script: str, path: Path) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(script)
    return path


@pytest.fixture
def first(path: Path) -> Path:
    """A database as the first schema's program left it."""
    return left_by(FIRST, path)


@pytest.fixture
def second(path: Path) -> Path:
    """As the second one's left it."""
    return left_by(SECOND, path)


@pytest.fixture
def third(path: Path) -> Path:
    """As the third one's left it."""
    return left_by(THIRD, path)


def content(path: Path) -> bytes:
    return path.read_bytes()


def measured(signal: Signal, value: float | bool | ChargeState) -> Measurement:
    return Measurement(signal, value, START, START + MINUTE)


STATE = BatteryState(
    {
        Signal.SOC: measured(Signal.SOC, 61.5),
        Signal.RANGE: measured(Signal.RANGE, 200.25),
        Signal.CHARGE_STATE: measured(Signal.CHARGE_STATE, ChargeState.CHARGING),
        Signal.CHARGING: measured(Signal.CHARGING, True),
    }
)
ZOE = Car(
    vehicle=Vehicle(
        id=VehicleId(1),
        slug="zoe",
        name="Emma's Zoe",
        brand="renault",
        consent=Consent(
            application="home",
            connection_id="connection-1",
            vehicle_ref="vehicle-1",
            user_ref="user-1",
            make="RENAULT",
            model="Zoe",
            year=2021,
            powertrain="BEV",
            permissions=frozenset({"read_battery"}),
        ),
        enrolled_at=START,
    ),
    schedule=Schedule(
        due=START + 16 * MINUTE,
        reason="charging",
        polled_at=START + MINUTE,
        answered_at=START + MINUTE,
        outcome="new",
        activity=Activity.CHARGING,
        calls_per_poll=2,
    ),
    state=STATE,
    reading_id="feedbeef-2",
)
LEAF = Car(
    vehicle=Vehicle(
        id=VehicleId(2),
        slug="leaf",
        name="Leaf",
        brand="nissan",
        consent=Consent(
            application="away",
            connection_id="connection-2",
            vehicle_ref="vehicle-2",
            user_ref="user-2",
            make="NISSAN",
        ),
        enrolled_at=START,
        withdrawn_at=LATER,
    ),
    schedule=Schedule(due=None, reason="consent lost", outcome="consent_lost", failures=3),
    trouble=Trouble("consent_lost", "GONE", "The owner took it back.", LATER),
)


SUBSCRIBED_ZOE = replace(
    ZOE,
    vehicle=replace(
        ZOE.vehicle,
        renewed_at=LATER,
        invited="Emma",
        former_slugs=("twingo",),
        subscription="webhook connection-1",
    ),
    schedule=replace(ZOE.schedule, pushed_at=START + MINUTE),
)


async def test_a_store_of_the_first_schema_keeps_everything(first: Path) -> None:
    soc = Measurement(
        Signal.SOC, 60.5, START - timedelta(seconds=10), START - timedelta(seconds=1), Origin.WEBHOOK
    )
    for _ in range(2):
        async with open_store(first) as store:
            assert await store.cars() == [ZOE, LEAF]
            assert await all_readings(store) == [
                Reading(
                    seq=1,
                    reading_id="feedbeef-1",
                    vehicle_id=ZOE.id,
                    state=BatteryState({Signal.SOC: soc}),
                    fetched_at=START - timedelta(seconds=1),
                    origin=Origin.WEBHOOK,
                ),
                Reading(
                    seq=2,
                    reading_id="feedbeef-2",
                    vehicle_id=ZOE.id,
                    state=STATE,
                    fetched_at=START + MINUTE,
                    origin=Origin.POLL,
                ),
            ]
            assert (store.head, await store.cursor("mqtt")) == (2, 1)
            account = await store.account("home", START)
            assert (account.spent, account.overhead) == ({ZOE.id: 7}, 4)
            assert account.bucket == Bucket(99.5, START)
            assert await store.rejections(ZOE.id) == [
                Rejected(Signal.SOC, "255%", "above 100 %", None, START)
            ]
            assert await store.excerpt(ZOE.id) == "<html>"


async def test_a_store_of_the_second_schema_keeps_everything(second: Path) -> None:
    for _ in range(2):
        async with open_store(second) as store:
            assert await store.cars() == [SUBSCRIBED_ZOE, LEAF]
            assert [reading.reading_id for reading in await all_readings(store)] == [
                "feedbeef-1",
                "feedbeef-2",
            ]
            assert (await store.account("home", START)).spent == {ZOE.id: 7}
            assert await store.recent_events(START, 10) == ["delivered"]
            (invitation,) = await store.invitations(10)
            assert (invitation.name, invitation.used_at) == ("Emma", START + MINUTE)
            (awaited,) = await store.awaited()
            assert (awaited.user_ref, awaited.invited) == ("user-1", "Emma")


async def test_a_store_of_the_third_schema_keeps_everything(third: Path) -> None:
    schedule = replace(SUBSCRIBED_ZOE.schedule, gain=3.5)
    for _ in range(2):
        async with open_store(third) as store:
            assert await store.cars() == [replace(SUBSCRIBED_ZOE, schedule=schedule, learned=b"habit"), LEAF]
            assert await store.lore("home") == b"lore"
            assert [reading.reading_id for reading in await all_readings(store)] == [
                "feedbeef-1",
                "feedbeef-2",
            ]
            assert (store.head, await store.cursor("mqtt")) == (2, 1)
            assert (await store.account("home", START)).spent == {ZOE.id: 7}


@EARLIER
async def test_a_sink_goes_on_from_where_its_cursor_was(path: Path, script: str) -> None:
    left_by(script, path)
    async with open_store(path) as store:
        assert (await store.published(), await store.mark("mqtt")) == ([], None)
        assert await store.owed("mqtt", 0, 10) == [(2, ZOE.id)]
        _, reading = await store.record(answer(LEAF, 1))
        assert reading is not None
        await store.delivered("mqtt", {LEAF.id: reading.seq})
    async with open_store(path) as store:
        assert await store.owed("mqtt", 0, 10) == [(2, ZOE.id)]
        assert await store.cursor("mqtt") == 1


@pytest.mark.parametrize("script", [FIRST, SECOND], ids=["first", "second"])
async def test_it_can_do_what_is_new(path: Path, script: str) -> None:
    left_by(script, path)
    async with open_store(path) as store:
        assert [(car.learned, car.schedule.gain) for car in await store.cars()] == [(b"", 0.0)] * 2
        assert await store.lore("home") is None
        await store.update(renamed(ZOE, "emma"))
        with pytest.raises(StoreError, match="was once enrolled as 'zoe'"):
            await store.update(renamed(LEAF, "zoe"))
        await store.record(answer(LEAF, 1, event_id="event"))
        await store.erase(ZOE.id)
        enrolment = await begun(store, invitation=(await invited(store)).id)
        learnt, _ = await store.record(
            answer(replace(LEAF, schedule=replace(LEAF.schedule, gain=3.5), learned=b"habits"), 1)
        )
        await store.keep_lore("home", b"of all cars")
    async with open_store(path) as store:
        assert (await store.cars())[1] == learnt
        assert await store.lore("home") == b"of all cars"
        assert (await store.recent_events(START, 10))[-1] == "event"
        assert await store.enrolment_by_id(enrolment.id) == enrolment
        assert [reading.vehicle_id for reading in await all_readings(store)] == [LEAF.id] * 2


@EARLIER
async def test_looking_at_it_says_what_to_do_and_changes_nothing(path: Path, script: str) -> None:
    schema = [FIRST, SECOND, THIRD].index(script) + 1
    before = content(left_by(script, path))
    with pytest.raises(StoreError, match=rf"older evbatteryd \(schema {schema}, .* start the daemon once"):
        async with open_store(path, read_only=True):
            pass
    assert content(path) == before
