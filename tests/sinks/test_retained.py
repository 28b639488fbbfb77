"""What a broker retains: told again if it forgot, not told again if it did not, and nothing left behind."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiomqtt
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from evbatteryd.domain.fleet import Car
from evbatteryd.domain.ports import Published
from evbatteryd.sinks import mark
from evbatteryd.sinks.payload import AVAILABILITY, FIELDS, POLLING, STATE, Topics
from evbatteryd.sinks.retained import UNKNOWN_DIGEST, Retained, digest
from tests.builders import car, reading, state
from tests.fakes import until
from tests.mosquitto import LOOPBACK, Gate, Heard, Mosquitto, Witness
from tests.sinks.conftest import Station
from tests.sinks.world import Notes, all_kept, later

MARK = "evbatteryd/bridge/mark"
BRIDGE = {"evbatteryd/bridge/state", "evbatteryd/bridge/info"}
VALUES = {STATE, AVAILABILITY, POLLING, "soc", "range_km", "measured_at", "fetched_at"}
"""What is retained of :func:`read`, without the discovery."""


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    """Marks are left soon."""
    monkeypatch.setattr(mark, "MARK_EVERY_S", 0.02)


def read(number: int = 1, soc: float = 61) -> Car:
    """A car with a fresh reading that was taken earlier."""
    return car(number, state=state(soc=soc, range_km=240), reading_id=f"r{number}")


def renamed(known: Car, slug: str) -> Car:
    former = tuple(one for one in (*known.vehicle.former_slugs, known.slug) if one != slug)
    return replace(known, vehicle=replace(known.vehicle, slug=slug, former_slugs=former))


def withdrawn(known: Car) -> Car:
    return replace(known, vehicle=replace(known.vehicle, withdrawn_at=later(1)))


def topics(slug: str, leaves: set[str] = VALUES, base: str = "evbatteryd") -> set[str]:
    return {f"{base}/{slug}/{leaf}" for leaf in leaves}


def config(slug: str, base: str = "evbatteryd", prefix: str = "homeassistant") -> str:
    return f"{prefix}/device/{base}_{slug}/config"


async def settled(station: Station) -> None:
    """Until everything is told, and a mark stands for it."""
    retained = station.retained
    await until(lambda: not station.touched and not retained._doubtful and retained.mark is not None)


async def told_by(station: Station, witness: Witness, number: int = 99) -> None:
    """Until everything that was touched before was told: a car that is told last has been heard."""
    station.told(car(number))
    await witness.until(lambda w: w.on(f"{station.options.base_topic}/car_{number}/polling"))


def said(heard: list[Heard], *numbers: int) -> list[str]:
    """The topics that were published, without marks and without the cars that end a wait."""
    beside = ("/mark", "end/of/what/is/kept", *(f"car_{number}/" for number in (numbers or (99,))))
    return [message.topic for message in heard if not any(part in message.topic for part in beside)]


async def crash(station: Station) -> None:
    """The process ends without a word."""
    assert station._running is not None
    station._running.cancel()
    await asyncio.wait([station._running])
    if station.sink._session is not None:
        station.sink._session.connection.drop()


# A broker that forgot nothing


async def test_a_car_that_was_taken_up_when_the_connection_broke_is_told_over_the_next(
    broker: Mosquitto, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any of it was sent; and nothing else is in doubt."""
    async with (
        Witness(broker.port) as witness,
        Gate(broker.port) as gate,
        Station(gate.port, read(1), protocol=protocol) as station,
    ):
        await settled(station)

        async def breaks(_: object) -> None:
            gate.shut()
            await asyncio.Event().wait()

        with monkeypatch.context() as held:
            held.setattr(station.retained, "prepare", breaks)
            station.told(replace(read(1), state=state(soc=60, range_km=240), reading_id="r7"))
            await station.connected(False)
        gate.open()
        await witness.until(lambda w: w.last("evbatteryd/car_1/soc") == "60")


async def test_a_broker_that_forgot_nothing_is_told_nothing_twice(broker: Mosquitto, protocol: str) -> None:
    cars = [read(1), read(2), renamed(read(3), "blue")]
    async with (
        Witness(broker.port, "#") as witness,
        Gate(broker.port) as gate,
        Station(gate.port, *cars, protocol=protocol, discovery=True) as station,
    ):
        await told_by(station, witness, 90)
        for times in (2, 3):
            await settled(station)
            before = len(witness.heard)
            gate.shut()
            await station.connected(False)
            gate.open()
            await station.logged("mqtt.connected", times=times)
            await told_by(station, witness, 90 + times)
            # Of the car that ended the wait before, the bridge had been told that there is one more.
            assert set(said(witness.heard[before:], 90 + times)) == BRIDGE


async def test_what_was_told_since_the_last_mark_is_told_again(
    broker: Mosquitto, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        Witness(broker.port) as witness,
        Gate(broker.port) as gate,
        Station(gate.port, read(1), read(2), protocol=protocol) as station,
    ):
        await settled(station)
        monkeypatch.setattr(mark, "MARK_EVERY_S", 3600.0)
        await asyncio.sleep(0.05)  # the pause before the next mark is a long one from now on
        station.told(replace(read(1), state=state(soc=60, range_km=240), reading_id="r7"))
        await told_by(station, witness)
        before = len(witness.heard)
        gate.shut()
        await station.connected(False)
        gate.open()
        await witness.until(lambda w: "evbatteryd/car_1/polling" in said(w.heard[before:]))
        await told_by(station, witness, 98)
        again = set(said(witness.heard[before:], 98, 99))
        assert again - BRIDGE - topics("car_1", {*VALUES, *FIELDS}) == set()
        assert again >= topics("car_1", {STATE, AVAILABILITY, POLLING})


async def test_a_restart_of_ours_repeats_nothing(broker: Mosquitto, protocol: str) -> None:
    notes = Notes()
    cars = [read(1), renamed(read(2), "blue"), withdrawn(read(3)), car(4)]
    async with Witness(broker.port, "#") as witness:
        for start in range(3):
            before = len(witness.heard)
            async with Station(broker.port, *cars, notes=notes, protocol=protocol, discovery=True) as station:
                await station.logged("mqtt.connected")
                await station.until(lambda s=station: not s.touched)
                await settled(station) if start == 0 else None
            await witness.until(lambda w, n=before: w.heard[n:] and w.heard[-1].text == "offline")
            told = said(witness.heard[before:])
            if start == 0:
                assert set(told) >= topics("car_1") | topics("blue") | {config("car_1"), config("blue")}
            else:
                assert sorted(told) == sorted([*BRIDGE, "evbatteryd/bridge/state"])
    found = await all_kept(broker.port)
    empty = topics("car_4", {AVAILABILITY, POLLING}) | {config("car_4")}
    expected = topics("car_1") | topics("blue") | {config("car_1"), config("blue")} | empty
    assert set(found) == expected | BRIDGE | {MARK}


@pytest.mark.parametrize("meanwhile", ["renamed", "withdrawn", "read"])
async def test_what_changed_while_we_were_away_is_told_and_nothing_else(
    broker: Mosquitto, protocol: str, meanwhile: str
) -> None:
    notes = Notes()
    after = {
        "renamed": renamed(read(1), "blue"),
        "withdrawn": withdrawn(read(1)),
        "read": replace(read(1, soc=60), reading_id="r9"),
    }[meanwhile]
    async with Witness(broker.port, "#") as witness:
        async with Station(
            broker.port, read(1), read(2), notes=notes, protocol=protocol, discovery=True
        ) as station:
            await witness.until(lambda w: w.on("evbatteryd/car_2/polling"))
        await witness.until(lambda w: w.last("evbatteryd/bridge/state") == "offline")
        before = len(witness.heard)
        async with Station(
            broker.port, after, read(2), notes=notes, protocol=protocol, discovery=True
        ) as station:
            await told_by(station, witness)
        told = set(said(witness.heard[before:]))
        assert not any("car_2" in topic for topic in told)
        found = await all_kept(broker.port)
        of_car = {t: text for t, text in found.items() if "car_1" in t or "blue" in t}
        if meanwhile == "renamed":
            assert set(of_car) == topics("blue") | {config("blue")}
        elif meanwhile == "withdrawn":
            assert of_car == {}
        else:
            assert of_car["evbatteryd/car_1/soc"] == "60"
            assert config("car_1") not in told


# One that forgot


async def test_a_broker_that_forgot_everything_gets_everything_back(broker: Mosquitto, protocol: str) -> None:
    cars = [read(1), renamed(read(2), "blue"), withdrawn(read(3)), car(4)]
    async with Station(broker.port, *cars, protocol=protocol, discovery=True) as station:
        async with Witness(broker.port, "#") as witness:
            await witness.until(lambda w: w.on("evbatteryd/car_4/polling"))
            await settled(station)
        before = await all_kept(broker.port)
        await broker.restart()
        await station.logged("mqtt.connected", times=2)
        async with Witness(broker.port, "#") as witness:
            await witness.until(lambda w: w.on("evbatteryd/car_4/polling"))
            await settled(station)
        after = await all_kept(broker.port)
        assert set(after) == set(before)
        assert config("blue") in after
        same = {topic for topic in before if not topic.endswith(("/state", "/polling", "/mark"))}
        assert {topic: after[topic] for topic in same} == {topic: before[topic] for topic in same}


async def test_a_broker_that_was_restored_from_an_older_copy_is_told_everything_again(
    tmp_path: Path, protocol: str
) -> None:
    """Its copy holds a car under a name that it has no more, and one that is gone."""
    cars = [read(1), read(2), read(3)]
    async with (
        Mosquitto(tmp_path / "broker", persistent=True) as broker,
        Gate(broker.port) as gate,
        Station(gate.port, *cars, protocol=protocol, discovery=True) as station,
    ):
        async with Witness(broker.port, "#") as witness:
            await witness.until(lambda w: w.on("evbatteryd/car_3/polling"))
            await settled(station)
        await broker.stop()
        kept_file, copy = broker.folder / "mosquitto.db", tmp_path / "copy.db"
        shutil.copy(kept_file, copy)
        await broker.start()
        await station.logged("mqtt.connected", times=2)
        async with Witness(broker.port, "#") as witness:
            station.told(renamed(read(2), "blue"))
            station.told(withdrawn(read(3)))
            await station.publish([reading(9, state=state(soc=33, range_km=99, measured_at=later(1)))])
            await told_by(station, witness)
            await settled(station)
        gate.shut()
        await station.connected(False)
        await broker.kill()
        shutil.copy(copy, kept_file)
        await broker.start()
        old = await all_kept(broker.port)
        assert old["evbatteryd/car_1/soc"] == "61"
        assert old.keys() >= topics("car_2") | topics("car_3")
        async with Witness(broker.port, "#") as witness:
            gate.open()
            await station.logged("mqtt.connected", times=3)
            await told_by(station, witness, 98)
            await settled(station)
        found = await all_kept(broker.port)
        cars_told = topics("car_1") | topics("blue")
        waits = {leaf for n in (98, 99) for leaf in topics(f"car_{n}", {AVAILABILITY, POLLING})}
        configs = {config(slug) for slug in ("car_1", "blue", "car_98", "car_99")}
        assert set(found) == cars_told | waits | configs | BRIDGE | {MARK}
        assert found["evbatteryd/car_1/soc"] == "33"


async def test_after_a_crash_of_ours_everything_is_told_once(broker: Mosquitto, protocol: str) -> None:
    notes = Notes()
    cars = [read(1), renamed(read(2), "blue")]
    async with Witness(broker.port, "#") as witness:
        async with Station(broker.port, *cars, notes=notes, protocol=protocol, discovery=True) as station:
            await told_by(station, witness)
            await settled(station)
            await crash(station)
        await witness.until(lambda w: w.last("evbatteryd/bridge/state") == "offline")
        before = len(witness.heard)
        async with Station(broker.port, *cars, notes=notes, protocol=protocol, discovery=True) as station:
            await told_by(station, witness, 98)
        values = [m.topic for m in witness.heard[before:] if m.payload and "car_9" not in m.topic]
        told = [t for t in values if "/bridge/" not in t]
        assert sorted(told) == sorted(topics("car_1") | topics("blue") | {config("car_1"), config("blue")})
        deleted = [m.topic for m in witness.heard[before:] if not m.payload and "car_2" in m.topic]
        assert sorted(deleted) == sorted(
            topics("car_2", {*FIELDS, STATE, AVAILABILITY, POLLING}) | {config("car_2")}
        )


async def test_what_is_wiped_while_we_are_connected_is_told_again(broker: Mosquitto, protocol: str) -> None:
    async with (
        Witness(broker.port, "#") as witness,
        Station(broker.port, read(1), protocol=protocol, discovery=True) as station,
    ):
        await told_by(station, witness)
        await settled(station)
        before = await all_kept(broker.port)
        async with aiomqtt.Client(LOOPBACK, broker.port) as wiper:
            # As `mosquitto_sub --remove-retained` does: each topic that is retained, one after the other.
            for topic in sorted(before, key=lambda topic: topic == MARK):
                await wiper.publish(topic, b"", qos=1, retain=True)
        await station.logged("mqtt.emptied")
        told = len(witness.heard)
        await witness.until(lambda w: "evbatteryd/car_1/polling" in said(w.heard[told:]))
        await told_by(station, witness, 98)
        await settled(station)
        after = await all_kept(broker.port)
        assert after.keys() >= topics("car_1") | {config("car_1"), MARK}


async def test_two_daemons_below_one_topic_are_noticed_once(broker: Mosquitto, protocol: str) -> None:
    async with (
        Witness(broker.port) as witness,
        Station(broker.port, read(1), protocol=protocol) as one,
        Station(broker.port, read(2), protocol=protocol, client_id="another") as other,
    ):
        for number in range(90, 94):
            await told_by(one, witness, number)
            await told_by(other, witness, number + 5)
            await settled(one)
            await settled(other)
        line = await one.logged("mqtt.not_alone")
        assert "mqtt.base_topic" in str(line["mend"])
        assert len(one.events("mqtt.not_alone")) == 1
        assert len(other.events("mqtt.not_alone")) <= 1
        assert one.sink.connected
        assert other.sink.connected


# Another configuration, another fleet

FOREIGN = {
    "evbatteryd/foreign/thing": "stays",
    "evbatteryd/car_1/event/note": "stays",
    "homeassistant/device/another/config": "stays",
    "elsewhere/car_1/soc": "stays",
}


async def with_foreign_topics(broker: Mosquitto) -> None:
    async with aiomqtt.Client(LOOPBACK, broker.port) as client:
        for topic, text in FOREIGN.items():
            await client.publish(topic, text, qos=1, retain=True)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"base_topic": "home/ev"}, topics("car_1", base="home/ev") | {config("car_1", "home_ev")}),
        ({"discovery_prefix": "ha"}, topics("car_1") | {config("car_1", prefix="ha")}),
        ({"discovery": False}, topics("car_1")),
        ({"discovery": False, "discovery_prefix": "ha"}, topics("car_1")),
        ({"scalars": False}, topics("car_1", {STATE, AVAILABILITY, POLLING}) | {config("car_1")}),
        ({"json_state": False}, topics("car_1", VALUES - {STATE}) | {config("car_1")}),
    ],
    ids=["base", "prefix", "no_discovery", "no_discovery_and_prefix", "no_scalars", "no_state"],
)
async def test_another_configuration_cleans_up_exactly_what_the_former_left(
    broker: Mosquitto, change: dict[str, object], expected: set[str]
) -> None:
    notes = Notes()
    usual: dict[str, object] = {"discovery": True}
    changed = usual | change
    base = str(changed.get("base_topic", "evbatteryd"))
    await with_foreign_topics(broker)
    async with Witness(broker.port, "#") as witness:
        async with Station(broker.port, read(1), notes=notes, **usual) as station:
            await witness.until(lambda w: w.on("evbatteryd/car_1/polling") and w.on(config("car_1")))
            await settled(station)
        await witness.until(lambda w: w.last("evbatteryd/bridge/state") == "offline")
        for start in range(3):
            before = len(witness.heard)
            async with Station(broker.port, read(1), notes=notes, **changed) as station:
                await station.logged("mqtt.connected")
                await settled(station)
                await until(lambda s=station: not list(s.retained.elsewhere()))
            await witness.until(lambda w, n=before: w.heard[n:] and w.heard[-1].text == "offline")
            found = await all_kept(broker.port)
            assert {t: found.pop(t) for t in FOREIGN} == FOREIGN
            bridges = {topic for topic in found if "/bridge/" in topic}
            assert set(found) - bridges == expected
            if start:  # once is enough
                repeated = set(said(witness.heard[before:]))
                assert repeated == {f"{base}/bridge/state", f"{base}/bridge/info"}


async def test_a_way_back_to_the_former_configuration_tells_everything_there_again(broker: Mosquitto) -> None:
    notes = Notes()
    for base in ("evbatteryd", "other", "evbatteryd"):
        async with Station(broker.port, read(1), notes=notes, base_topic=base, discovery=True) as station:
            await station.logged("mqtt.connected")
            await settled(station)
            await until(lambda s=station: not list(s.retained.elsewhere()))
        found = await all_kept(broker.port)
        own = {topic for topic in found if "/bridge/" not in topic}
        assert own == topics("car_1", base=base) | {config("car_1", base)}


async def test_a_car_that_is_no_more_is_deleted(broker: Mosquitto, protocol: str) -> None:
    notes = Notes()
    async with Witness(broker.port, "#") as witness:
        async with Station(
            broker.port, read(1), read(2), notes=notes, protocol=protocol, discovery=True
        ) as station:
            await settled(station)
        async with Station(broker.port, read(2), notes=notes, protocol=protocol, discovery=True) as station:
            await told_by(station, witness)
        found = await all_kept(broker.port)
        assert not any("car_1" in topic for topic in found)
        assert found.keys() >= topics("car_2")


# A store that takes nothing


async def test_a_full_disk_keeps_nobody_from_being_told(broker: Mosquitto, protocol: str) -> None:
    notes = Notes(full=True)
    async with (
        Witness(broker.port) as witness,
        Station(broker.port, read(1), notes=notes, protocol=protocol) as station,
    ):
        await station.publish([reading(2, state=state(soc=44, range_km=1, measured_at=later(0)))])
        await witness.until(lambda w: w.last("evbatteryd/car_1/soc") == "44")
        await told_by(station, witness)
        assert len(station.events("mqtt.manifest_failing")) == 1
        assert notes.rows == {}
        notes.full = False
        await told_by(station, witness, 98)
        assert notes.leaves("car_1") >= {STATE, AVAILABILITY, POLLING, "soc"}
    assert notes.marks  # and it ends in order


async def test_a_disk_that_is_full_at_the_end_has_the_next_start_tell_everything(broker: Mosquitto) -> None:
    notes = Notes()
    async with Witness(broker.port) as witness:
        async with Station(broker.port, read(1), notes=notes) as station:
            await settled(station)
            notes.full = True
        assert station.events("mqtt.manifest_failing")
        notes.full = False
        before = len(witness.heard)
        async with Station(broker.port, read(1), notes=notes) as station:
            await told_by(station, witness)
        assert set(said(witness.heard[before:])) >= topics("car_1")


# The laws, without a broker

PLACE = Topics("evbatteryd", "homeassistant")
LEAVES = frozenset({STATE, AVAILABILITY, POLLING})
SLUGS = ("a", "b", "c")


class Cut(Exception):
    """The connection ends here."""


@dataclass
class Life:
    """What is wanted, a broker that may forget, and us, who may end at any moment."""

    notes: Notes = field(default_factory=Notes)
    wanted: dict[str, int] = field(default_factory=dict)
    """A value for each slug that is told; the others are to hold nothing."""
    held: dict[tuple[str, str], str] = field(default_factory=dict)
    """What the broker retains."""
    copies: list[dict[tuple[str, str], str]] = field(default_factory=list)
    left: int | None = None
    """Messages that go through before the connection ends; None: all."""
    retained: Retained = field(init=False)

    async def start(self) -> None:
        self.retained = Retained(PLACE, self.notes, structlog.get_logger(), sink="mqtt")
        await self.retained.open()
        await self.connect()

    async def connect(self) -> None:
        shown = self.held.get(("", "mark"))
        if self.retained.mark is None or shown != self.retained.mark:
            self.retained.forget()

    def send(self, slug: str, leaf: str, value: str) -> None:
        if slug:
            self.retained.telling(slug)
        if self.left == 0:
            raise Cut
        if self.left is not None:
            self.left -= 1
        if value:
            self.held[slug, leaf] = value
        else:
            self.held.pop((slug, leaf), None)

    async def sync(self) -> None:
        """What the sink does with everything that was touched."""
        try:
            for slug in [*self.retained.slugs, *self.wanted]:
                await self._tell(slug)
            self._mark()
        except Cut:
            self.retained.lost()
            await self.connect()
        finally:
            self.left = None

    async def _tell(self, slug: str) -> None:
        leaves = LEAVES if slug in self.wanted else frozenset[str]()
        await self.retained.prepare({slug: leaves} if leaves else {})
        to_empty = self.retained.emptying(slug, leaves)
        if to_empty:
            told = self.retained[slug]
            told.emptied_of(to_empty)
            for leaf in sorted(to_empty):
                self.send(slug, leaf, "")
            told.emptied = True
        await self.retained.settle()
        if slug in self.wanted:
            content, told = digest(self.wanted[slug]), self.retained[slug]
            if told.state != content:
                for leaf in sorted(leaves):
                    self.send(slug, leaf, str(self.wanted[slug]))
                told.state = content

    def _mark(self) -> None:
        mark, tellings = self.retained.next_mark()
        self.send("", "mark", mark)
        self.retained.marked(mark, tellings)

    def noted(self) -> set[tuple[str, str]]:
        """Everything that is known that somebody may retain."""
        return {(n.slug, leaf) for n in self.notes.rows.values() for leaf in n.leaves | n.gone}

    def values(self) -> dict[tuple[str, str], str]:
        return {where: value for where, value in self.held.items() if where[0]}


happenings = st.lists(
    st.one_of(
        st.tuples(st.just("want"), st.tuples(st.sampled_from(SLUGS), st.integers(0, 2))),
        st.tuples(st.just("rename"), st.tuples(st.sampled_from(SLUGS), st.sampled_from(SLUGS))),
        st.tuples(st.just("withdraw"), st.sampled_from(SLUGS)),
        st.tuples(st.just("cut"), st.integers(0, 8)),
        st.tuples(
            st.sampled_from(["sync", "sync", "copy", "restore", "reset", "crash", "restart", "break"]),
            st.none(),
        ),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=200)
@given(happenings)
def test_whatever_happens_the_broker_retains_what_is_wanted_and_all_of_it_is_noted(
    happened: list[tuple[str, object]],
) -> None:
    asyncio.run(_live(happened))


async def _live(happened: list[tuple[str, object]]) -> None:
    life = Life()
    await life.start()
    for what, argument in happened:
        match what, argument:
            case "want", (str(slug), int(value)):
                life.wanted[slug] = value
            case "rename", (str(slug), str(new)):
                if slug in life.wanted:
                    life.wanted[new] = life.wanted.pop(slug)
            case "withdraw", slug:
                life.wanted.pop(str(slug), None)
            case "cut", int(after):
                life.left = after
                await life.sync()
            case "sync", _:
                await life.sync()
            case "break", _:
                life.retained.lost()
                await life.connect()
            case "copy", _:
                life.copies.append(dict(life.held))
            case "restore" | "reset", _:
                life.held = dict(life.copies[-1]) if what == "restore" and life.copies else {}
                life.retained.lost()
                await life.connect()
            case "crash", _:
                await life.start()
            case "restart", _:
                await life.sync()
                await life.retained.keep()
                await life.start()
        for held in (life.held, *life.copies):
            assert {where for where in held if where[0]} <= life.noted()
    await life.sync()
    assert life.values() == {(slug, leaf): str(v) for slug, v in life.wanted.items() for leaf in LEAVES}
    before = life.retained._tellings
    await life.sync()
    assert life.retained._tellings == before, "told once"


async def test_a_digest_is_believed_only_with_the_mark_that_was_kept_with_it() -> None:
    notes = Notes()
    life = Life(notes, wanted={"a": 1})
    await life.start()
    await life.sync()
    await life.retained.keep()
    await life.start()
    assert life.retained["a"].state == digest(1)
    crashed = Life(notes, wanted={"a": 1}, held=life.held)
    await crashed.start()  # whoever asked for the mark before did not keep one
    assert crashed.retained["a"].state == UNKNOWN_DIGEST


async def test_nothing_is_believed_that_could_not_be_told_again() -> None:
    """The broker forgot; one car could not be told; the end came in order."""
    life = Life(wanted={"a": 1, "b": 1})
    await life.start()
    await life.sync()
    await life.retained.keep()
    await life.start()
    life.held = {}
    await life.connect()
    del life.wanted["a"]
    slug_b = dict(life.wanted)
    life.retained.telling("b")
    for leaf in LEAVES:
        life.held["b", leaf] = str(slug_b["b"])
    life.retained["b"].state = digest(1)
    life._mark()
    await life.retained.keep()
    life.wanted["a"] = 1
    await life.start()
    await life.sync()
    assert life.values() == {(slug, leaf): "1" for slug in "ab" for leaf in LEAVES}


@pytest.mark.parametrize("packed", [b"", b"x", b"x" * 31, b"x" * 33])
async def test_a_digest_that_was_damaged_is_not_believed(packed: bytes) -> None:
    notes = Notes(marks={"mqtt": "m-1"})
    notes.rows[PLACE.place, "a"] = Published(PLACE.place, "a", LEAVES, frozenset(), packed)
    retained = Retained(PLACE, notes, structlog.get_logger(), sink="mqtt")
    await retained.open()
    assert retained["a"].state == UNKNOWN_DIGEST
    assert retained["a"].leaves == LEAVES
