"""Commands, end to end: said on MQTT, sent to Smartcar's API, done by a car, shown by a reading."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import aiomqtt
import pytest
from aiohttp import web
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.mosquitto import LOOPBACK, Gate, Heard, Witness
from tests.whole.daemon import Daemon
from tests.whole.whole import Handler, Town, enrolled, kept, listed, metrics, rows, town, until

BASE = "home"
SPEED = 600.0
CARS = 16
START = datetime(2026, 11, 26, 19, tzinfo=UTC)
"""An evening: some cars charge, some wait for it, some are under way."""
RICH = "bucket = 10000\nrefill_per_minute = 600\ncalls_per_vehicle = 1000000"
SPARING = "bucket = 10000\nrefill_per_minute = 600\ncalls_per_vehicle = 100"
"""No car is asked more than every few hours."""
POOR = "bucket = 10000\nrefill_per_minute = 600\ncalls_per_vehicle = 2"

Document = dict[str, object]


@dataclass
class Commanded:
    """A daemon whose cars can be commanded, and who listens."""

    place: Town
    config: Path
    daemon: Daemon
    gate: Gate
    """The daemon's way to the broker."""
    witness: Witness
    teller: aiomqtt.Client
    fifth: bool
    slugs: dict[str, str]
    """Of each car, by its id at Smartcar."""
    answered: list[int] = field(default_factory=list)
    """The status of every command that the simulator has answered."""
    _numbers: count[int] = field(default_factory=count)

    async def tell(
        self, slug: str, kind: str, payload: str, *, retain: bool = False
    ) -> Callable[[], list[Heard]]:
        """Publish a command; what is answered to this one, so far."""
        topic, number = f"{BASE}/{slug}/{kind}", next(self._numbers)
        if not self.fifth:
            heard = len(self.witness.on(f"{topic}/result"))
            await self.teller.publish(f"{topic}/set", payload, qos=1, retain=retain)
            return lambda: self.witness.on(f"{topic}/result")[heard:]
        asking = Properties(PacketTypes.PUBLISH)
        asking.ResponseTopic, asking.CorrelationData = f"answers/{slug}", f"number {number}".encode()
        await self.teller.publish(f"{topic}/set", payload, qos=1, retain=retain, properties=asking)
        return lambda: [
            message
            for message in self.witness.on(f"answers/{slug}")
            if message.properties.CorrelationData == f"number {number}".encode()
        ]

    async def command(self, slug: str, kind: str, payload: str) -> list[Document]:
        """Its answers, until the last one."""
        told = await self.tell(slug, kind, payload)
        await self.witness.until(lambda _: told() and told()[-1].json["final"])
        answers = [message.json for message in told()]
        assert [answer["final"] for answer in answers] == [False] * (len(answers) - 1) + [True]
        # Whoever looks on hears the same.
        everybody = [message.payload for message in self.witness.on(f"{BASE}/{slug}/{kind}/result")]
        assert everybody[-len(answers) :] == [message.payload for message in told()]
        assert not any(message.retain for message in told())
        return answers

    async def truth(self, slug: str) -> Document:
        return (await self.place.control.truth())[self.ref(slug)]

    def ref(self, slug: str) -> str:
        return next(ref for ref, its in self.slugs.items() if its == slug)

    async def one_that(self, fits: Callable[[Document, Document], bool]) -> str:
        """The slug of a car of which that holds: of what is true and of what is known."""
        found = ""

        async def is_there() -> bool:
            nonlocal found
            known, true = await listed(self.daemon), await self.place.control.truth()
            found = next((slug for ref, slug in self.slugs.items() if fits(true[ref], known[slug])), "")
            return bool(found)

        await until(is_there)
        return found

    def readings(self) -> set[str]:
        [(epoch,)] = rows(self.config, "SELECT epoch FROM store")
        return {f"{epoch}-{seq}" for (seq,) in rows(self.config, "SELECT seq FROM reading")}


@asynccontextmanager
async def commanded(
    folder: Path,
    protocol: str = "5",
    *,
    budget: str = RICH,
    brands: Sequence[str] = ("tesla",),
    cars: int = CARS,
    **options: object,
) -> AsyncIterator[Commanded]:
    """``options``: of the simulator."""
    statuses: list[int] = []

    @web.middleware
    async def noting(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        if "/commands/" in request.path:
            statuses.append(response.status)
        return response

    fifth = protocol == "5"
    version = aiomqtt.ProtocolVersion.V5 if fifth else aiomqtt.ProtocolVersion.V311
    async with (
        town(folder, START, SPEED, noting, vehicles=cars, brands=brands, seed=3, **options) as place,
        Gate(place.broker.port) as gate,
        Witness(place.broker.port, "#") as witness,
        aiomqtt.Client(LOOPBACK, place.broker.port, protocol=version) as teller,
    ):
        config = place.settled(BASE, budget, mqtt=f'protocol = "{protocol}"')
        config.write_text(config.read_text().replace(f":{place.broker.port}", f":{gate.port}"))
        async with place.daemon(config) as daemon:
            slugs = await enrolled(config, cars)
            await until(lambda: _all_read(daemon))
            await witness.until(lambda w: w.last(f"{BASE}/bridge/state") == "online")
            yield Commanded(place, config, daemon, gate, witness, teller, fifth, slugs, statuses)


async def _all_read(daemon: Daemon) -> bool:
    return all(car["last_outcome"] for car in (await listed(daemon)).values())


def charging(true: Document, known: Document) -> bool:
    return true["state"] == "charging" and bool(known["charging"]) and true["soc_percent"] < 70


def outcomes(answers: Sequence[Document]) -> list[object]:
    return [answer["outcome"] for answer in answers]


@pytest.mark.parametrize("protocol", ["5", pytest.param("3.1.1", marks=pytest.mark.slow)])
async def test_a_charge_is_stopped_and_started_again(tmp_path: Path, protocol: str) -> None:
    async with commanded(tmp_path, protocol) as home:
        slug = await home.one_that(charging)
        for payload, state in (("off", "plugged"), ("on", "charging")):
            spent = _spent(home.config)
            answers = await home.command(slug, "charging", payload)
            assert outcomes(answers) == ["done", "confirmed"], answers
            assert (await home.truth(slug))["state"] == state
            done, confirmed = answers
            assert (done["command"], done["value"], done["result"]) == ("charging", payload, "done")
            assert done["calls"] == 1
            assert 2 <= int(str(confirmed["calls"])) <= 3
            assert _spent(home.config) >= spent + 2
            # The reading that it rests on is one that everybody can find, and says so.
            assert confirmed["reading_id"] in home.readings()
            await home.witness.until(
                lambda w, id_=confirmed["reading_id"]: any(
                    message.json["reading_id"] == id_ for message in w.on(f"{BASE}/{slug}/state")
                )
            )
            state_told = home.witness.on(f"{BASE}/{slug}/state")[-1].json
            assert state_told["charging"] is (payload == "on")
        assert home.answered == [200, 200]
        counted = await metrics(home.daemon)
        assert counted['evbatteryd_commands_total{command="charging",outcome="confirmed"}'] == 2


def _spent(config: Path) -> int:
    [(calls,)] = rows(config, "SELECT sum(calls) FROM ledger")
    return calls


async def test_a_charge_limit_is_set_and_shown(tmp_path: Path) -> None:
    async with commanded(tmp_path, cars=4) as home:
        slug = next(iter(home.slugs.values()))
        answers = await home.command(slug, "charge_limit", "65")
        assert outcomes(answers) == ["done", "confirmed"], answers
        assert (await home.truth(slug))["charge_limit_percent"] == 65
        # A slow one is answered with 202 at once, and its outcome follows on the same connection.
        await home.place.control.latency(30.0)
        for percent in range(66, 80):
            answers = await home.command(slug, "charge_limit", str(percent))
            assert answers[-1]["outcome"] == "confirmed", answers
            assert (await home.truth(slug))["charge_limit_percent"] == percent
            if 202 in home.answered:
                break
        assert 202 in home.answered


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_poll_now_brings_a_reading(tmp_path: Path, protocol: str) -> None:
    async with commanded(tmp_path, protocol, budget=SPARING) as home:
        # One that would not be asked soon by itself: or the command may join the poll that is under way.
        slug = await home.one_that(lambda _, known: _is_far(home, known["next_poll"]))
        answer = await _polled(home, slug)
        assert (answer["result"], answer["calls"]) == ("done", 1)
        assert answer["reading_id"] in home.readings()
        [again] = await home.command(slug, "poll", "now")
        assert (again["result"], again["outcome"], again["calls"]) == ("refused", "not_now", 0)
        [nonsense] = await home.command(slug, "poll", "please")
        assert nonsense["outcome"] == "not_understood"
        [unknown] = await home.command("nobody", "poll", "now")
        assert unknown["outcome"] == "unknown_vehicle"


def _is_far(home: Commanded, at: object) -> bool:
    return datetime.fromisoformat(str(at)) - home.place.clock.now() > timedelta(hours=1)


async def _polled(home: Commanded, slug: str) -> Document:
    """The answer to a poll, as soon as the brand's floor allows one."""
    while True:
        [answer] = await home.command(slug, "poll", "now")
        if answer["outcome"] != "not_now":
            return answer
        await asyncio.sleep(0.2)


async def test_what_the_maker_promises_fails_or_never_does(tmp_path: Path) -> None:
    async with commanded(tmp_path, cars=4) as home:
        slug, control = next(iter(home.slugs.values())), home.place.control
        before = (await home.truth(slug))["charge_limit_percent"]
        await control.fault("command_failure", path="commands", count=1)
        answers = await home.command(slug, "charge_limit", "61")
        assert outcomes(answers) == ["failed"], answers
        assert (await home.truth(slug))["charge_limit_percent"] == before
        # It takes it on, and does it a little later.
        await control.fault("command_pending", path="commands", count=1, delay=30)
        answers = await home.command(slug, "charge_limit", "62")
        assert outcomes(answers) == ["pending", "confirmed"], answers
        assert (await home.truth(slug))["charge_limit_percent"] == 62
        # It takes it on, or says that it did it, and nothing happens.
        for fault, said in (("command_lost", "pending"), ("command_ignored", "done")):
            await control.fault(fault, path="commands", count=1)
            answers = await home.command(slug, "charge_limit", "63")
            assert outcomes(answers) == [said, "unconfirmed"], answers
            assert answers[-1]["reading_id"] is None
            assert (await home.truth(slug))["charge_limit_percent"] == 62


async def test_refusals_say_why_and_what_they_cost(tmp_path: Path) -> None:
    async with commanded(tmp_path, brands=("tesla", "volvo"), cars=CARS) as home:

        async def refusal(slug: str, kind: str, payload: str) -> tuple[object, str]:
            before = len(home.answered)
            [answer] = await home.command(slug, kind, payload)
            assert answer["result"] == "refused"
            # What Smartcar was asked has cost a call, and only that.
            assert answer["calls"] == len(home.answered) - before
            return answer["outcome"], str(answer["reason"])

        volvo = await home.one_that(lambda true, _: true["make"] == "VOLVO")
        outcome, reason = await refusal(volvo, "charging", "on")
        assert outcome == "not_capable", reason
        slug = await home.one_that(
            lambda true, known: (
                true["make"] == "TESLA"
                and true["state"] == "parked"
                and known["plugged_in"] is False
                and known["freshness"] == "fresh"
            )
        )
        outcome, reason = await refusal(slug, "charge_limit", "40")
        assert outcome == "not_understood"
        assert "50 to 100" in reason
        # Whether it is plugged in is known, or Smartcar says so.
        outcome, reason = await refusal(slug, "charging", "on")
        assert outcome == "not_now"
        assert "the car is not plugged in" in reason or "it is not plugged in" in reason
        assert (await home.truth(slug))["state"] != "charging"


async def test_a_plan_that_is_used_up(tmp_path: Path) -> None:
    async with commanded(tmp_path, budget=POOR, cars=4) as home:
        slug = next(iter(home.slugs.values()))
        [answer] = await home.command(slug, "charge_limit", "70")
        assert (answer["outcome"], answer["calls_left"]) == ("budget_spent", 1), answer
        assert "calls" in str(answer["reason"])
        assert home.answered == []


async def test_without_consent_to_commands_there_are_none(tmp_path: Path) -> None:
    permissions = ("read_battery", "read_charge", "read_odometer", "read_vehicle_info")
    async with commanded(tmp_path, cars=2, permissions=permissions) as home:
        slug = next(iter(home.slugs.values()))
        for kind, payload in (("charging", "on"), ("charge_limit", "70")):
            [answer] = await home.command(slug, kind, payload)
            assert answer["outcome"] == "not_permitted"
            assert "control_charge" in str(answer["reason"])
        assert home.answered == []
        # Nobody is offered a switch that does nothing.
        await home.witness.until(lambda w: w.last(f"{BASE}/{slug}/polling"))
        assert home.witness.on(f"{BASE}/{slug}/polling")[-1].json["commands"] == ["poll"]


async def test_a_retained_command_is_none(tmp_path: Path) -> None:
    async with commanded(tmp_path, cars=4) as home:
        slug = next(iter(home.slugs.values()))
        told = await home.tell(slug, "charge_limit", "66", retain=True)
        counter = 'evbatteryd_commands_total{command="charge_limit",outcome="retained"}'

        async def counted() -> bool:
            return counter in await metrics(home.daemon)

        await until(counted)
        # The broker tells it again to whoever comes.
        assert f"{BASE}/{slug}/charge_limit/set" in await kept(home.place.broker.port)
        await home.daemon.end(signal.SIGTERM)
        await home.daemon.start()
        # A proper one comes after it and is the only one that is carried out.
        answers = await home.command(slug, "charge_limit", "67")
        assert answers[-1]["outcome"] == "confirmed"
        assert told() == []
        assert home.answered == [200]
        assert (await home.truth(slug))["charge_limit_percent"] == 67


async def test_a_command_waits_for_a_daemon_that_was_cut_off(tmp_path: Path) -> None:
    async with commanded(tmp_path, cars=4) as home:
        slug = next(iter(home.slugs.values()))
        home.gate.shut()
        await home.witness.until(lambda w: w.last(f"{BASE}/bridge/state") == "offline")
        told = await home.tell(slug, "charge_limit", "64")
        home.gate.open()
        await home.witness.until(lambda _: told() and told()[-1].json["final"])
        assert told()[-1].json["outcome"] == "confirmed"
        assert (await home.truth(slug))["charge_limit_percent"] == 64
        assert home.answered == [200]
