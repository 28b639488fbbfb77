"""MQTT that neither lies nor loses: whatever breaks, what is in the store is what an outside witness heard.

The witness takes QoS 0: it then writes nothing that a dying broker would answer with a reset, and hears all
that the broker had sent it. Of a broker that starts anew it is a subscriber before the daemon is let in.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    closing,
    contextmanager,
    suppress,
)
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import aiomqtt
import pytest

from evbatteryd.demo import _amqtt
from tests.mosquitto import Heard, Mosquitto, Witness
from tests.whole.whole import CARS, Whole, command, everything, free_port, kept, metrics, rows, until

BASE = "evbatteryd"
PROTOCOLS = ("5", "3.1.1")
HASTY = {"speed": 3600.0, "pace": "10m"}
"""Readings come as fast as they can."""
CALM = {"speed": 10.0, "pace": "1h", "vehicles": 6}
"""After the first readings nothing happens for a minute."""
SCALARS = (
    *("soc", "range_km", "capacity_kwh", "charge_state", "charging", "plugged_in", "charge_limit"),
    *("charge_power_kw", "time_to_full_s", "odometer_km", "measured_at", "fetched_at"),
)
ESTIMATED = ("soc_estimate", "soc_estimate_low", "soc_estimate_high", "estimate_until")
BRIDGE = {f"{BASE}/bridge/{leaf}" for leaf in ("state", "info", "mark")}
SETTLES_S = 60.0


# --- what the store has -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Noted:
    """A reading in the store."""

    id: str
    seq: int
    slug: str
    soc: float | None
    measured_at: datetime | None
    fetched_at: datetime


def journal(whole: Whole) -> list[Noted]:
    [(epoch,)] = rows(whole.config, "SELECT epoch FROM store")
    query = (
        "SELECT seq, slug, soc, measured_ms, fetched_ms FROM reading JOIN vehicle ON vehicle.id = vehicle_id"
        " ORDER BY seq"
    )
    return [
        Noted(f"{epoch}-{seq}", seq, slug, soc, _instant(measured_ms), _instant(fetched_ms))
        for seq, slug, soc, measured_ms, fetched_ms in rows(whole.config, query)
    ]


def newest_of(noted: Sequence[Noted]) -> dict[str, Noted]:
    """Of each car, by slug."""
    return {reading.slug: reading for reading in noted}


def _instant(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def _at(written: object) -> datetime | None:
    return None if written is None else datetime.fromisoformat(str(written))


# --- what was witnessed -------------------------------------------------------------------------------------


def states(heard: Sequence[Heard]) -> list[dict[str, object]]:
    """Every state of a car that was told, in order."""
    return [
        message.json
        for message in heard
        if message.topic.endswith("/state") and message.topic not in BRIDGE and message.payload
    ]


def assert_nothing_lost_or_invented(noted: Sequence[Noted], told: Sequence[dict[str, object]]) -> None:
    first: dict[object, dict[str, object]] = {}
    for state in told:
        first.setdefault(state["reading_id"], state)
    missing = [reading for reading in noted if reading.id not in first]
    invented = first.keys() - {reading.id for reading in noted}
    assert (missing, invented) == ([], set())
    # Each as it was measured, when it was.
    for reading in noted:
        state = first[reading.id]
        assert state["soc"] == pytest.approx(reading.soc, abs=0.001), (reading, state)
        assert _at(state["measured_at"]) == reading.measured_at
        assert _at(state["fetched_at"]) <= reading.fetched_at <= _at(state["published_at"])
    # In order, each car by itself; and at last its newest.
    assert_in_order(first.values())
    last = {str(state["vehicle"]): state["reading_id"] for state in told}
    assert last == {slug: reading.id for slug, reading in newest_of(noted).items()}


def assert_in_order(told: Iterable[dict[str, object]]) -> None:
    """No car goes back in time."""
    reached: dict[object, int] = {}
    for state in told:
        seq = int(str(state["reading_id"]).rpartition("-")[2])
        assert seq >= reached.get(state["vehicle"], 0), state
        reached[state["vehicle"]] = seq


def assert_late_ones_say_so(
    noted: Sequence[Noted], told: Sequence[dict[str, object]], connected_at: datetime
) -> int:
    """Of what was told since the daemon could connect again. How many were late."""
    known = {reading.id: reading for reading in noted}
    late = 0
    for state in told:
        reading = known[str(state["reading_id"])]
        # The state's is that of the state of charge, or of its last confirmation.
        if max(reading.fetched_at, _at(state["fetched_at"])) < connected_at:
            assert state["replayed"] is True, state
            late += 1
        successor = next((r for r in noted if r.slug == reading.slug and r.seq > reading.seq), None)
        if successor is not None and successor.fetched_at < connected_at:
            assert state["freshness"] != "fresh", state
            assert state["soc_estimate"] is None
    return late


def assert_kept_are_newest(found: dict[str, bytes], noted: Sequence[Noted], *, expires: bool) -> None:
    """Nothing but the newest of each car is retained. ``expires``: it need not be there any more."""
    for slug, reading in newest_of(noted).items():
        payload = found.get(f"{BASE}/{slug}/state")
        if payload is None:
            assert expires, slug
            continue
        state = json.loads(payload)
        assert state["reading_id"] == reading.id
        for field in SCALARS:
            scalar, value = found.get(f"{BASE}/{slug}/{field}"), state[field]
            if field == "fetched_at" and state["freshness"] != "fresh":
                continue  # a confirmation of what is not fresh is told by the state alone
            if scalar is not None:
                assert scalar.decode() == (value if isinstance(value, str) else json.dumps(value)), field
            elif value is not None:
                # To a broker that forgot, what is not fresh is told again by the state alone.
                assert expires or state["freshness"] != "fresh", (slug, field)


async def agreed(whole: Whole, *, expires: bool) -> bool:
    """Whether API, availability and retained state say the same of how fresh each car is."""
    cars, found = await whole.vehicles(), await kept(whole.broker.port)
    for car in cars:
        word = found.get(f"{BASE}/{car['slug']}/availability", b"").decode()
        if word != car["freshness"]:
            return False
        state = found.get(f"{BASE}/{car['slug']}/state")
        if state is None and not expires:
            return False
        if state is not None and json.loads(state)["freshness"] != car["freshness"]:
            return False
    return True


# --- outages ------------------------------------------------------------------------------------------------


class Watched:
    """The whole, and all that was ever heard of it from outside."""

    def __init__(self, whole: Whole, protocol: str = "5") -> None:
        self.whole = whole
        self.protocol = protocol
        self.heard: list[Heard] = []

    @property
    def expires(self) -> bool:
        return self.protocol == "5"

    @asynccontextmanager
    async def listening(self, *, retained: bool = False) -> AsyncIterator[Witness]:
        """With a witness that is there before the daemon is; in the end the daemon is cut off."""
        self.whole.gate.shut()
        async with Witness(self.whole.broker.port, "#", qos=0, retained=retained) as witness:
            self.whole.gate.open()
            try:
                yield witness
            finally:
                self.heard += witness.heard

    async def killed(self, witness: Witness) -> None:
        """The broker is, whatever it is at."""
        await self.whole.broker.kill()
        await witness.ended()
        # Over one connection nothing goes back, also where the next one has to tell some of it again.
        assert_in_order(states(witness.heard))

    def told(self) -> list[dict[str, object]]:
        return states(self.heard)

    async def all_told(self, witness: Witness, *, patience_s: float = SETTLES_S) -> None:
        """Until all that is in the store was heard, by whichever witness."""

        await until(lambda: self.is_all_told(*witness.heard), patience_s)

    def is_all_told(self, *further: Heard, of: Sequence[Noted] | None = None) -> bool:
        """``of``: these readings; None: all that are in the store."""
        heard = {state["reading_id"] for state in states([*self.heard, *further])}
        return all(reading.id in heard for reading in (journal(self.whole) if of is None else of))

    async def finish(self, witness: Witness) -> list[Noted]:
        """End the daemon as systemd does; whatever it committed until then has to be told by then."""
        assert await self.whole.daemon.end(signal.SIGTERM) == 0
        await witness.until(lambda w: w.last(f"{BASE}/bridge/state") == "offline")
        return journal(self.whole)

    async def more_readings(self, count: int) -> None:
        """Until so many more are in the store."""
        before = len(self.whole.committed())
        await until(lambda: len(self.whole.committed()) >= before + count)


@asynccontextmanager
async def watched(
    folder: Path, protocol: str = "5", *, broker: Mosquitto | None = None, keys: str = "", **options: object
) -> AsyncIterator[Watched]:
    """``keys``: further ones of [mqtt]."""
    mqtt = f'protocol = "{protocol}"\n{keys}'
    async with everything(folder, mqtt=mqtt, broker=broker, **options) as whole:
        yield Watched(whole, protocol)


async def backlog(outage: Watched, each: int) -> int:
    """So many readings of each car wait, as if it had been read again and again; the daemon is down.

    How many had been told before.
    """
    whole = outage.whole
    await calm(outage)
    assert await whole.daemon.end(signal.SIGTERM) == 0
    already = len(journal(whole))
    with closing(sqlite3.connect(whole.folder / "evbatteryd.db")) as db, db:
        names = [row[1] for row in db.execute("PRAGMA table_info(reading)") if row[1] != "seq"]
        later = [f"{name} + number.n" if name in {"fetched_ms", "measured_ms"} else name for name in names]
        db.execute(
            "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < ?)"
            f" INSERT INTO reading ({', '.join(names)}) SELECT {', '.join(later)} FROM number, reading"
            " WHERE seq IN (SELECT min(seq) FROM reading GROUP BY vehicle_id) ORDER BY n, seq",
            (each,),
        )
        db.execute(
            "UPDATE latest SET (reading_seq, fetched_ms, measured_ms) = (SELECT max(seq), fetched_ms,"
            " measured_ms FROM reading WHERE reading.vehicle_id = latest.vehicle_id)"
        )
    return already


async def silenced(whole: Whole) -> None:
    """Smartcar answers nothing any more, and what was known before is not fresh any more."""
    await whole.control.fault("SERVER:INTERNAL")
    await whole.until_all(lambda car: car["freshness"] != "fresh")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocol", "persistent"),
    [
        ("5", True),
        pytest.param("5", False),
        pytest.param("3.1.1", True),
        pytest.param("3.1.1", False),
    ],
)
async def test_after_hours_without_a_broker_nothing_is_missing_and_nothing_old_looks_new(
    tmp_path: Path, protocol: str, persistent: bool
) -> None:
    broker = Mosquitto(tmp_path / "broker", persistent=persistent)
    async with watched(tmp_path, protocol, broker=broker, **HASTY) as outage:
        whole = outage.whole
        async with outage.listening(retained=True) as before:
            await before.until(lambda w: len(states(w.heard)) >= CARS + 8)
            await broker.stop()
            await before.ended()
        gone_at = whole.clock.now()
        await outage.more_readings(2 * CARS)
        await until(lambda: whole.clock.now() - gone_at > timedelta(hours=2))
        # A broker that forgot nothing still has what was fresh hours ago.
        await silenced(whole)
        await broker.start()
        connected_at = whole.clock.now()
        async with outage.listening() as after:
            await outage.all_told(after)
            await until(partial(agreed, whole, expires=outage.expires))
            noted = journal(whole)
            assert_kept_are_newest(await kept(broker.port), noted, expires=outage.expires)
            assert assert_late_ones_say_so(noted, states(after.heard), connected_at) >= 2 * CARS
            assert all(state["freshness"] != "fresh" for state in states(after.heard))
            # And as soon as there is something new, all is well again.
            await whole.control.clear()
            fresh = {state["vehicle"] for state in states(after.heard) if state["freshness"] == "fresh"}
            assert fresh == set()
            await after.until(
                lambda w: len({s["vehicle"] for s in states(w.heard) if s["freshness"] == "fresh"}) == CARS
            )
            noted = await outage.finish(after)
        assert_nothing_lost_or_invented(noted, outage.told())
        assert_kept_are_newest(await kept(broker.port), noted, expires=outage.expires)


@pytest.mark.parametrize("protocol", ["5", pytest.param("3.1.1", marks=pytest.mark.slow)])
async def test_a_broker_that_is_killed_again_and_again_while_it_is_told(
    tmp_path: Path, protocol: str
) -> None:
    async with watched(tmp_path, protocol, **CALM) as outage:
        broker = outage.whole.broker
        async with outage.listening(retained=True):
            await backlog(outage, 200)
        outage.whole.gate.shut()
        await outage.whole.daemon.start()
        for kill in range(3):
            async with outage.listening() as witness:
                # Somewhere in the backlog, each time elsewhere.
                await witness.until(lambda w, n=100 + 37 * kill: len(states(w.heard)) >= n)
                await outage.killed(witness)
            assert not outage.is_all_told()
            await broker.start()
        async with outage.listening() as witness:
            await outage.all_told(witness)
            noted = await outage.finish(witness)
        assert_nothing_lost_or_invented(noted, outage.told())
        assert_kept_are_newest(await kept(broker.port), noted, expires=outage.expires)


async def test_a_daemon_that_is_killed_again_and_again(tmp_path: Path) -> None:
    async with watched(tmp_path, **HASTY) as outage, outage.listening(retained=True) as witness:
        for round_ in range(4):
            heard = len(states(witness.heard))
            await witness.until(lambda w, n=heard + 3 + 4 * round_: len(states(w.heard)) >= n)
            await outage.whole.daemon.end(signal.SIGKILL)
            await outage.whole.daemon.start()
        await outage.all_told(witness)
        noted = await outage.finish(witness)
    assert_nothing_lost_or_invented(noted, outage.told())
    # Whoever heard nothing of us for a while was told so by the broker.
    bridge = [message.text for message in outage.heard if message.topic == f"{BASE}/bridge/state"]
    assert bridge.count("offline") == 5


@pytest.mark.slow
async def test_a_subscriber_that_was_away_finds_all_when_it_comes_back(tmp_path: Path) -> None:
    """Of MQTT 3.1.1: with MQTT 5 the broker keeps a value for nobody longer than it is fresh."""
    returning = {"identifier": "returning", "protocol": aiomqtt.ProtocolVersion.V311, "clean_session": False}
    async with watched(tmp_path, "3.1.1", **HASTY) as outage:
        port = outage.whole.broker.port
        async with Witness(port, "#", **returning):
            pass
        async with outage.listening() as witness:
            for _ in range(2):
                await outage.more_readings(CARS)
                await outage.whole.daemon.end(signal.SIGKILL)
                await outage.whole.daemon.start()
            await outage.all_told(witness)
            noted = await outage.finish(witness)
        async with Witness(port, "#", **returning) as returned:
            await returned.until(lambda w: w.last(f"{BASE}/bridge/state") == "offline")
            await returned.until(
                lambda w: {s["reading_id"] for s in states(w.heard)} >= {r.id for r in noted}
            )


# --- restarts -----------------------------------------------------------------------------------------------


def said(payload: bytes) -> object:
    """What a message says, apart from when that was said and what goes by that."""
    if not payload.startswith(b"{"):
        return payload
    document = json.loads(payload)
    passing = {"published_at", "replayed", *ESTIMATED}
    return {key: value for key, value in document.items() if key not in passing}


def assert_only_news(heard: Sequence[Heard], before: dict[str, bytes]) -> None:
    """Of the cars nothing but what has changed, and nothing is blanked."""
    known = {topic: said(payload) for topic, payload in before.items()}
    for message in heard:
        if message.topic in BRIDGE:
            continue
        assert message.payload, message.topic
        assert message.topic.endswith("/polling"), (message.topic, message.text)
        assert said(message.payload) != known[message.topic], (message.topic, message.text)
        known[message.topic] = said(message.payload)


async def calm(outage: Watched) -> dict[str, bytes]:
    """Until every car is told and nothing more is to be: what is retained then."""
    found: dict[str, bytes] = {}

    async def settled() -> bool:
        nonlocal found
        before, found = found, await kept(outage.whole.broker.port)
        leaves = Counter(topic.rpartition("/")[2] for topic in found if topic not in BRIDGE)
        return leaves["state"] == leaves["availability"] == leaves["config"] == CALM["vehicles"] and {
            topic: said(text) for topic, text in before.items()
        } == {topic: said(text) for topic, text in found.items()}

    await outage.whole.until_all(lambda car: car["soc"] is not None)
    await until(settled)
    return found


@pytest.mark.parametrize("protocol", ["5", pytest.param("3.1.1", marks=pytest.mark.slow)])
async def test_restarts_repeat_nothing_and_blank_nothing(tmp_path: Path, protocol: str) -> None:
    broker = Mosquitto(tmp_path / "broker", persistent=True)
    async with watched(tmp_path, protocol, broker=broker, **CALM) as outage:
        daemon = outage.whole.daemon
        before = await calm(outage)
        # Ours, politely.
        async with Witness(broker.port, "#", retained=False) as witness:
            await daemon.end(signal.SIGTERM)
            await witness.until(lambda w: w.last(f"{BASE}/bridge/state") == "offline")
            await daemon.start()
            await witness.until(lambda w: w.last(f"{BASE}/bridge/info"))
            await daemon.end(signal.SIGTERM)
            await witness.until(lambda w: w.last(f"{BASE}/bridge/state") == "offline")
            assert_only_news(witness.heard, before)
            told = Counter(message.topic for message in witness.heard)
            assert told[f"{BASE}/bridge/state"] == 3
            assert told[f"{BASE}/bridge/info"] == 1
        # A broker that forgets nothing.
        await daemon.start()
        before = await calm(outage)
        await broker.restart()
        async with outage.listening() as witness:
            await witness.until(lambda w: w.last(f"{BASE}/bridge/info"))
            await daemon.end(signal.SIGTERM)
            await witness.until(lambda w: w.last(f"{BASE}/bridge/state") == "offline")
            assert_only_news(witness.heard, before)


@pytest.mark.parametrize("protocol", ["5", pytest.param("3.1.1", marks=pytest.mark.slow)])
async def test_a_broker_that_forgot_gets_everything_back(tmp_path: Path, protocol: str) -> None:
    async with watched(tmp_path, protocol, **CALM) as outage:
        before = await calm(outage)
        # There is something by which the broker could be taken for one that remembers.
        await until(partial(_is_kept, outage.whole.broker.port, f"{BASE}/bridge/mark"))
        await outage.whole.broker.kill()
        await outage.whole.broker.start()
        assert (await kept(outage.whole.broker.port)).keys() <= BRIDGE
        after = await calm(outage)
        assert after.keys() == before.keys()
        for topic in after.keys() - BRIDGE:
            if not topic.endswith(("/polling", *ESTIMATED)):
                assert said(after[topic]) == said(before[topic]), topic
        # It was not told that the daemon is gone, nor that any car is.
        assert after[f"{BASE}/bridge/state"] == b"online"


async def test_a_killed_daemon_blanks_nothing(tmp_path: Path) -> None:
    async with watched(tmp_path, **CALM) as outage:
        before = await calm(outage)
        async with Witness(outage.whole.broker.port, "#", retained=False) as witness:
            await outage.whole.daemon.end(signal.SIGKILL)
            await witness.until(lambda w: w.last(f"{BASE}/bridge/state") == "offline")
            await outage.whole.daemon.start()
            await witness.until(lambda w: len({s["vehicle"] for s in states(w.heard)}) == CALM["vehicles"])
            for message in witness.heard:
                assert message.payload, message.topic
                if message.topic not in BRIDGE and not message.topic.endswith(("/polling", *ESTIMATED)):
                    assert said(message.payload) == said(before[message.topic])


# --- brokers that set limits --------------------------------------------------------------------------------


def allowing(folder: Path, denied: Sequence[str]) -> str:
    """The line of a broker's configuration by which nobody may publish to these topics."""
    access = folder / "access"
    access.touch(mode=0o600)
    lines = ["topic readwrite #", *(f"topic deny {topic}" for topic in denied)]
    access.write_text("\n".join(lines) + "\n")
    return f"acl_file {access}"


@pytest.mark.parametrize(
    ("protocol", "restarted"),
    [
        ("5", True),
        pytest.param("5", False, marks=pytest.mark.slow),
        pytest.param("3.1.1", False, marks=pytest.mark.slow),
    ],
)
async def test_a_car_whose_topic_is_denied_holds_up_nobody(
    tmp_path: Path, protocol: str, restarted: bool
) -> None:
    """``restarted``: so is the daemon, once it is allowed; else it tries again by itself, in a minute."""
    broker = Mosquitto(tmp_path / "broker", settings=allowing(tmp_path, []))
    async with watched(tmp_path, protocol, broker=broker, **CALM) as outage:
        whole = outage.whole
        async with outage.listening(retained=True) as witness:
            await backlog(outage, 50)
            denied, *_ = {reading.slug for reading in journal(whole)}
            others = [reading for reading in journal(whole) if reading.slug != denied]
            allowing(tmp_path, [f"{BASE}/{denied}/state"])
            await broker.reload()
            # mosquitto 2.0 refuses by hanging up: no gate in between delays what it said before.
            whole.config.write_text(
                whole.config.read_text().replace(f":{whole.gate.port}", f":{broker.port}")
            )
            await whole.daemon.start()
            await until(lambda: outage.is_all_told(*witness.heard, of=others), SETTLES_S)
            await until(lambda: "mqtt.publish_refused" in whole.events(), SETTLES_S)
            assert sum(state["vehicle"] == denied for state in states(witness.heard)) == 1  # as before
            allowing(tmp_path, [])
            await broker.reload()
            if restarted:
                await whole.daemon.end(signal.SIGTERM)
                await whole.daemon.start()
            await outage.all_told(witness, patience_s=4 * SETTLES_S)
            noted = await outage.finish(witness)
        assert_nothing_lost_or_invented(noted, outage.told())


async def test_few_in_flight_and_small_packets(tmp_path: Path) -> None:
    strict = Mosquitto(tmp_path / "broker", settings="max_inflight_messages 1\nmax_packet_size 350")
    async with watched(tmp_path, broker=strict, **CALM) as outage:
        whole = outage.whole
        async with outage.listening(retained=True) as witness:
            # What is small enough arrives; what is not stays where it is, and that is said.
            await witness.until(lambda w: _told_of(w, "soc") == CALM["vehicles"])
            await until(lambda: "mqtt.publish_refused" in whole.events())
            assert states(witness.heard) == []
            await outage.killed(witness)
        strict.settings = "max_inflight_messages 1"
        await strict.start()
        async with outage.listening() as witness:
            await outage.all_told(witness)
            noted = await outage.finish(witness)
        assert_nothing_lost_or_invented(noted, outage.told())


def _told_of(witness: Witness, leaf: str) -> int:
    """Of how many cars this topic was told."""
    return len({message.topic for message in witness.heard if message.topic.endswith(f"/{leaf}")})


async def test_what_exceeds_the_outbox_is_given_up_oldest_first(tmp_path: Path) -> None:
    most = 1000
    async with watched(tmp_path, keys=f"outbox_readings = {most}", **{**CALM, "speed": 60.0}) as outage:
        whole = outage.whole
        already = await backlog(outage, 200)
        await whole.broker.kill()
        await whole.daemon.start()
        await until(lambda: "delivery.given_up" in whole.events())
        counted = await metrics(whole.daemon)
        gone = round(counted['evbatteryd_outbox_given_up_total{reason="size",sink="mqtt"}'])
        lines = [json.loads(line) for line in whole.daemon.log.read_text().splitlines()]
        [line] = [line for line in lines if line["event"] == "delivery.given_up"]
        assert (line["level"], line["readings"]) == ("error", gone)
        await whole.broker.start()
        async with outage.listening() as witness:
            await witness.until(lambda w: len({state["reading_id"] for state in states(w.heard)}) >= most)
            noted = await outage.finish(witness)
        owed = noted[already:]
        assert len(owed) - most - CALM["vehicles"] <= gone <= len(owed) - most  # some were read since
        assert_nothing_lost_or_invented(owed[gone:], outage.told())


# --- a disk that is full ------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """``folder`` as a file system of its own. False: that is not for us to make."""
    folder.mkdir()
    mounted = (
        os.getuid() == 0
        and not subprocess.run(
            ("mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)), check=False, capture_output=True
        ).returncode
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(("umount", "--lazy", str(folder)), check=True)


@contextmanager
def filled(whole: Whole, *, disk: bool) -> Iterator[None]:
    """Nothing can be written any more: the disk is full, or no file of the daemon may grow."""
    if not disk:
        resource.prlimit(whole.daemon.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        yield
        resource.prlimit(
            whole.daemon.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        )
        return
    ballast = whole.folder / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    yield
    ballast.unlink()


async def test_a_disk_that_is_full_for_a_while(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    with small_disk(folder) as disk:
        async with watched(folder, **HASTY) as outage, outage.listening(retained=True) as witness:
            await witness.until(lambda w: len(states(w.heard)) >= CARS + 8)
            with filled(outage.whole, disk=disk):
                await until(partial(_nothing_is_kept, outage.whole))
            await outage.more_readings(CARS)
            await outage.all_told(witness)
            noted = await outage.finish(witness)
        assert_nothing_lost_or_invented(noted, outage.told())


async def _nothing_is_kept(whole: Whole) -> bool:
    """Whether for hours nothing new was."""
    before, since = len(whole.committed()), whole.clock.now()
    await until(lambda: whole.clock.now() - since > timedelta(hours=2))
    return len(whole.committed()) == before


# --- what is left behind ------------------------------------------------------------------------------------


async def restarted_with(whole: Whole, old: str, new: str) -> None:
    """With another line in its configuration."""
    assert await whole.daemon.end(signal.SIGTERM) == 0
    text = whole.config.read_text()
    assert old in text
    whole.config.write_text(text.replace(old, new, 1))
    await whole.daemon.start()


@pytest.mark.parametrize("protocol", ["5", pytest.param("3.1.1", marks=pytest.mark.slow)])
async def test_nothing_is_left_under_names_that_are_gone(tmp_path: Path, protocol: str) -> None:
    keys = 'base_topic = "evbatteryd"\ndiscovery_prefix = "homeassistant"\nscalars = true\ndiscovery = true'
    async with watched(tmp_path, protocol, keys=keys, **CALM) as outage:
        whole, port = outage.whole, outage.whole.broker.port
        before = await calm(outage)
        renamed, gone, *others = sorted(str(car["slug"]) for car in await whole.vehicles())
        # What happens while the broker is away ...
        whole.gate.shut()
        await command(whole.config, "rename", renamed, "--slug", "the_new_name")
        await command(whole.config, "disconnect", gone, "--yes")
        whole.gate.open()
        after: dict[str, bytes] = {}

        async def tidy() -> bool:
            nonlocal after
            after = await kept(port)
            left, new = under(after, renamed, gone), under(after, "the_new_name")
            return not left and len(new) == len(under(before, renamed))

        await until(tidy)
        assert under(after, *others).keys() == under(before, *others).keys()
        # ... and what an operator may change in the configuration.
        for old, new, left in (
            ("scalars = true", "scalars = false", lambda topic: topic.rpartition("/")[2] in SCALARS),
            (
                'discovery_prefix = "homeassistant"',
                'discovery_prefix = "ha"',
                lambda topic: topic.startswith("homeassistant/"),
            ),
            ("discovery = true", "discovery = false", lambda topic: topic.endswith("/config")),
            (
                'base_topic = "evbatteryd"',
                'base_topic = "cars/ours"',
                lambda topic: topic.startswith("evbatteryd/") and topic not in BRIDGE,
            ),
        ):
            assert any(map(left, await kept(port))), new
            await restarted_with(whole, old, new)
            await until(partial(_none_kept, port, left))
            states_kept = [topic for topic in await kept(port) if topic.endswith("/state")]
            assert len(states_kept) >= CALM["vehicles"], new  # all but the one that is gone, and the bridge's


def under(found: dict[str, bytes], *slugs: str) -> dict[str, bytes]:
    """What is retained of these cars, wherever it is."""
    names = {*slugs, *(f"{BASE}_{slug}" for slug in slugs)}
    return {topic: payload for topic, payload in found.items() if names & set(topic.split("/"))}


async def _is_kept(port: int, topic: str) -> bool:
    return topic in await kept(port)


async def _none_kept(port: int, left: Callable[[str], bool]) -> bool:
    return not any(map(left, await kept(port)))


# --- brokers that answer nothing, in real time --------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_broker_that_stands_still(tmp_path: Path, protocol: str) -> None:
    """It is stopped for longer than its acknowledgements are waited for; then it goes on."""
    async with watched(tmp_path, protocol, **HASTY) as outage:
        whole = outage.whole
        async with outage.listening(retained=True) as witness:
            await witness.until(lambda w: len(states(w.heard)) >= CARS + 8)
            whole.broker.freeze()
            await until(lambda: "mqtt.lost" in whole.events(), SETTLES_S)
            await outage.more_readings(CARS)
            whole.broker.thaw()
            await outage.all_told(witness, patience_s=2 * SETTLES_S)
            noted = await outage.finish(witness)
        assert_nothing_lost_or_invented(noted, outage.told())


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_network_that_loses_everything(tmp_path: Path, protocol: str) -> None:
    """No connection breaks, and nothing passes."""
    async with watched(tmp_path, protocol, **HASTY) as outage:
        whole = outage.whole
        async with outage.listening(retained=True) as witness:
            await witness.until(lambda w: len(states(w.heard)) >= CARS + 8)
            whole.gate.swallow()
            await until(lambda: "mqtt.lost" in whole.events(), SETTLES_S)
            await outage.more_readings(CARS)
            whole.gate.deliver()
            await outage.all_told(witness, patience_s=2 * SETTLES_S)
            noted = await outage.finish(witness)
        assert_nothing_lost_or_invented(noted, outage.told())


@pytest.mark.slow
@pytest.mark.parametrize(("protocol", "seed"), [("5", 1), ("5", 2), ("3.1.1", 3)])
async def test_anything_in_any_order(tmp_path: Path, protocol: str, seed: int) -> None:
    """Daemon, broker and network end and come back as chance has it; the witness is always there first."""
    chance = random.Random(seed)
    broker = Mosquitto(tmp_path / "broker", persistent=chance.random() < 0.5)
    async with watched(tmp_path, protocol, broker=broker, **HASTY) as outage:
        whole, running = outage.whole, True
        for _ in range(15):
            async with outage.listening(retained=not outage.heard) as witness:
                match chance.choice(("term", "kill", "cut", "nothing")):
                    case "cut":
                        whole.gate.shut()
                    case "nothing":
                        pass
                    case _ if not running:
                        await whole.daemon.start()
                        running = True
                    case how:
                        await whole.daemon.end(signal.SIGTERM if how == "term" else signal.SIGKILL)
                        running = False
                await asyncio.sleep(chance.uniform(0.0, 1.0))
                await (broker.stop() if chance.random() < 0.5 else broker.kill())
                await witness.ended()
            await asyncio.sleep(chance.uniform(0.0, 0.5))
            await broker.start()
        async with outage.listening() as witness:
            if not running:
                await whole.daemon.start()
            await outage.all_told(witness, patience_s=3 * SETTLES_S)
            noted = await outage.finish(witness)
        assert_nothing_lost_or_invented(noted, outage.told())
        assert_kept_are_newest(await kept(broker.port), noted, expires=outage.expires)


# --- the embedded broker ------------------------------------------------------------------------------------


class Elsewhere(AbstractAsyncContextManager["Elsewhere"]):
    """A broker that runs already, and that somebody else ends."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def __aexit__(self, *_: object) -> None: ...


async def test_the_embedded_broker_of_the_demo(tmp_path: Path) -> None:
    """It speaks MQTT 3.1.1 alone."""
    async with _amqtt(free_port()) as embedded:
        port = int(embedded.url.rpartition(":")[2])
        async with watched(tmp_path, embedded.protocol, broker=Elsewhere(port), **HASTY) as outage:
            async with Witness(port, "#", protocol=aiomqtt.ProtocolVersion.V311) as witness:
                await outage.more_readings(CARS)
                await outage.whole.daemon.end(signal.SIGKILL)
                await outage.whole.daemon.start()
                await outage.more_readings(CARS)
                await outage.all_told(witness)
                noted = await outage.finish(witness)
                outage.heard += witness.heard
            assert_nothing_lost_or_invented(noted, outage.told())
