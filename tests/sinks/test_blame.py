"""A broker that hangs up on one topic is told everything else; what was left out gets its chance again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evbatteryd.domain.reading import Reading
from evbatteryd.sinks import blame, mark, mqtt
from evbatteryd.sinks.blame import (
    LONGEST_S,
    MORE_OF_A_PART,
    SHORTEST_S,
    STRIKES,
    Blame,
    Suspect,
)
from evbatteryd.sinks.payload import DISCOVERY
from tests.builders import NOON, car, reading, state
from tests.fakes import until
from tests.mosquitto import Mosquitto, Witness
from tests.sinks.conftest import Station
from tests.sinks.world import all_kept, later, readings_of


class Ticking:
    """Real time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Ticking:
    ticking = Ticking()
    monkeypatch.setattr(blame, "time", ticking)
    return ticking


TOPIC = "evbatteryd/car_1/state"


def ended(accused: Blame, part: str | None, topic: str = TOPIC, *, proven: bool = False) -> bool:
    """Whether somebody is left out once a connection ended upon this message."""
    suspects = [] if part is None else [Suspect(part, topic, 1 if proven else STRIKES)]
    return accused.ended(suspects) is not None


def struck(accused: Blame, part: str, times: int = STRIKES, topic: str = TOPIC) -> list[bool]:
    return [ended(accused, part, topic) for _ in range(times)]


def test_only_who_was_there_every_time_is_left_out(time: Ticking) -> None:
    accused = Blame()
    assert struck(accused, "car_1", STRIKES - 1) == [False] * (STRIKES - 1)
    assert not accused.shuns("car_1")
    assert ended(accused, "car_1", TOPIC)
    assert accused.shuns("car_1")
    assert not accused.shuns("car_2")


@pytest.mark.parametrize("between", [("car_2", "evbatteryd/car_2/state"), (None, "")])
def test_another_cause_in_between_clears_a_suspect(time: Ticking, between: tuple[str | None, str]) -> None:
    accused = Blame()
    struck(accused, "car_1", STRIKES - 1)
    ended(accused, *between)
    assert struck(accused, "car_1", STRIKES - 1) == [False] * (STRIKES - 1)
    assert ended(accused, "car_1", TOPIC)


def test_a_topic_that_is_taken_in_between_was_not_the_cause(time: Ticking) -> None:
    """An outage while the readings of a busy car are on their way is no fault of it."""
    accused = Blame()
    for _ in range(3 * STRIKES):
        assert not ended(accused, "car_1", TOPIC)
        accused.taken("car_1", TOPIC)
    # One that takes another topic of the car every time may well deny this one.
    for _ in range(STRIKES - 1):
        assert not ended(accused, "car_1", TOPIC)
        accused.taken("car_1", "evbatteryd/car_1/availability")
    assert ended(accused, "car_1", TOPIC)


def test_a_part_of_which_ever_other_topics_are_the_last_is_left_out_as_well(time: Ticking) -> None:
    accused = Blame()
    topics = [f"evbatteryd/car_1/{number}" for number in range(STRIKES + MORE_OF_A_PART)]
    assert [ended(accused, "car_1", topic) for topic in topics] == [False] * (len(topics) - 1) + [True]


def test_what_was_refused_is_left_out_at_once(time: Ticking) -> None:
    accused = Blame()
    assert ended(accused, "car_1", TOPIC, proven=True)
    assert accused.shuns("car_1")


def test_it_is_left_out_twice_as_long_each_time_up_to_an_hour(time: Ticking) -> None:
    accused, pauses = Blame(), []
    ended(accused, "car_1", TOPIC, proven=True)
    for _ in range(9):
        begun = time.now
        assert accused.due() == []
        while accused.shuns("car_1"):
            time.now += SHORTEST_S / 2
        pauses.append(time.now - begun)
        assert accused.due() == ["car_1"]
        assert ended(accused, "car_1", TOPIC)  # once is enough for what is known
    assert pauses == [min(SHORTEST_S * 2**times, LONGEST_S) for times in range(9)]


def test_whoever_is_answered_is_as_good_as_new(time: Ticking) -> None:
    accused = Blame()
    for _ in range(3):
        ended(accused, "car_1", TOPIC, proven=True)
        time.now += LONGEST_S
    assert accused.taken("car_1", TOPIC)
    assert not accused.taken("car_1", TOPIC)
    assert accused.due() == []
    ended(accused, "car_1", TOPIC, proven=True)
    time.now += SHORTEST_S
    assert not accused.shuns("car_1")


@given(st.lists(st.sampled_from(["car_1", "car_2", None]), max_size=40))
def test_nobody_is_left_out_who_was_not_there_three_times_running(ends: list[str | None]) -> None:
    accused = Blame()
    for number, part in enumerate(ends, 1):
        ended(accused, part, f"evbatteryd/{part}/state")
        for one in ("car_1", "car_2"):
            runs = [ends[first : first + STRIKES] == [one] * STRIKES for first in range(number - STRIKES + 1)]
            assert accused.shuns(one) == any(runs)


def test_what_is_to_be_told_no_more_is_not_tried_again(time: Ticking) -> None:
    accused = Blame()
    ended(accused, "car_1", proven=True)
    time.now += SHORTEST_S
    accused.forgive("car_1")
    assert accused.due() == []


# With a broker that does it


@pytest.fixture
def forgiving(monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    """What is left out gets its chance again soon; a connection that holds is a good one early."""
    monkeypatch.setattr(blame, "SHORTEST_S", 0.3)
    monkeypatch.setattr(blame, "LONGEST_S", 0.6)
    monkeypatch.setattr(mqtt, "SHUNNED_TRIED_EVERY_S", 0.05)


class Denying:
    """A mosquitto that denies some topics, as its access list has it."""

    def __init__(self, folder: Path, *allowed: str) -> None:
        self._rules = folder / "acl"
        self._allow(allowed)
        self.broker = Mosquitto(folder / "broker", settings=f"acl_file {self._rules}")

    def _allow(self, topics: tuple[str, ...]) -> None:
        lines = ["pattern read #", *(f"pattern write {topic}" for topic in topics)]
        self._rules.write_text("\n".join([*lines, ""]))

    async def mend(self) -> None:
        self._allow(("#",))
        await self.broker.reload()


@asynccontextmanager
async def denying(folder: Path, *allowed: str) -> AsyncIterator[Denying]:
    denied = Denying(folder, "evbatteryd/bridge/#", *allowed)
    async with denied.broker:
        yield denied


def told_states(witness: Witness, slug: str) -> list[str]:
    """The readings told of a car, repeats left out."""
    told = [str(message.json["reading_id"]) for message in witness.on(f"evbatteryd/{slug}/state")]
    return list(dict.fromkeys(told))


async def test_a_car_that_is_denied_keeps_nobody_else_from_being_told(
    tmp_path: Path, protocol: str, forgiving: None
) -> None:
    cars = [car(number) for number in (1, 2, 3)]
    others = ("evbatteryd/car_2/#", "evbatteryd/car_3/#")
    journals = {number: readings_of(number, 12, first=number, step=3) for number in (1, 2, 3)}

    async with (
        denying(tmp_path, *others) as denied,
        Witness(denied.broker.port) as witness,
        Station(denied.broker.port, *cars, protocol=protocol) as station,
    ):
        deliveries = station_deliveries(station, journals)
        await witness.until(lambda w: all(len(told_states(w, f"car_{n}")) == 12 for n in (2, 3)))
        for number in (2, 3):
            await witness.until(lambda w, n=number: w.last(f"evbatteryd/car_{n}/availability") == "fresh")
            assert told_states(witness, f"car_{number}") == [one.reading_id for one in journals[number]]
        refused = await station.logged("mqtt.publish_refused")
        assert "car_1" in str(refused["topic"])
        assert [m for m in witness.heard if m.topic.startswith("evbatteryd/car_1/")] == []
        # It is left out, and nobody else is disturbed: the next readings of others come through.
        more = [reading(100, number=2, state=state(soc=5, measured_at=later(1)))]
        await station.deliver(more)
        await witness.until(lambda w: w.last("evbatteryd/car_2/soc") == "5")
        assert not deliveries[1].done()
        await denied.mend()
        await deliveries[1]
        await witness.until(lambda w: w.last("evbatteryd/car_1/availability") == "fresh")
        assert told_states(witness, "car_1") == [one.reading_id for one in journals[1]]
        assert (await all_kept(denied.broker.port, "evbatteryd/car_1/soc")).popitem()[1] == "89"
        await station.logged("mqtt.publish_accepted")
        for task in deliveries.values():
            await task


def station_deliveries(station: Station, journals: dict[int, list[Reading]]) -> dict[int, asyncio.Task[int]]:
    """Each car's readings on their way, as the delivery's hands have them."""
    for journal in journals.values():
        for one in journal:
            station.commit(one)
    return {
        number: asyncio.create_task(station.deliver(journal, commit=False))
        for number, journal in journals.items()
    }


async def test_a_discovery_that_is_denied_keeps_no_car_from_being_told(
    tmp_path: Path, protocol: str, forgiving: None
) -> None:
    cars = [car(number, state=state(soc=40 + number), reading_id=f"r{number}") for number in (1, 2, 3)]
    async with (
        denying(tmp_path, "evbatteryd/#") as denied,
        Witness(denied.broker.port, "#") as witness,
        Station(denied.broker.port, *cars, protocol=protocol, discovery=True) as station,
    ):
        for one in cars:
            await witness.until(lambda w, one=one: told_states(w, one.slug) == [one.reading_id])
            await witness.until(lambda w, one=one: w.last(f"evbatteryd/{one.slug}/availability") == "fresh")
            await witness.until(lambda w, one=one: w.last(f"evbatteryd/{one.slug}/polling"))
        assert len(station.events("mqtt.publish_refused")) == 1
        assert not any(message.topic.startswith("homeassistant/") for message in witness.heard)
        await denied.mend()
        for one in cars:
            config = f"homeassistant/device/evbatteryd_{one.slug}/config"
            await witness.until(lambda w, config=config: w.last(config))


async def test_a_discovery_of_one_car_that_is_denied_is_tried_again(
    tmp_path: Path, protocol: str, forgiving: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the other is told, and is not what is to be tried."""
    monkeypatch.setattr(mark, "MARK_EVERY_S", 0.02)
    taken, denied_one = (f"homeassistant/device/evbatteryd_car_{number}/config" for number in (1, 2))
    async with (
        denying(tmp_path, "evbatteryd/#", taken) as denied,
        Witness(denied.broker.port, "#") as witness,
        Station(denied.broker.port, car(1), car(2), protocol=protocol, discovery=True) as station,
    ):
        retained = station.retained
        await station.logged("mqtt.publish_refused")
        await witness.until(lambda w: w.on(taken))
        await until(
            lambda: (
                retained["car_1"].discovery
                and list(retained.undiscovered()) == ["car_2"]
                and not (station.touched or retained._doubtful)
            )
        )
        await denied.mend()
        await witness.until(lambda w: w.on(denied_one))


async def test_a_discovery_of_which_nothing_is_untold_is_tried_no_more(
    broker: Mosquitto, forgiving: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blame, "SHORTEST_S", 0.0)
    monkeypatch.setattr(mark, "MARK_EVERY_S", 0.02)
    async with Station(broker.port, car(1), discovery=True) as station:
        courier = station.sink._courier
        await until(lambda: station.retained.mark is not None and not station.retained._doubtful)
        courier.blame([Suspect(DISCOVERY, "homeassistant/device/evbatteryd_car_2/config", 1)], proven=True)
        assert courier.due() == [DISCOVERY]
        await until(lambda: courier.due() == [])


async def test_a_discovery_that_could_not_be_deleted_is_deleted_later(
    broker: Mosquitto, forgiving: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mark, "MARK_EVERY_S", 0.02)
    config = "homeassistant/device/evbatteryd_car_1/config"
    async with (
        Station(broker.port, car(1), car(2), discovery=True) as station,
        Witness(broker.port, "#") as witness,
    ):
        await witness.until(lambda w: w.last(config))
        station.sink._courier.blame([Suspect(DISCOVERY, config, 1)], proven=True)
        station.told(car(1, withdrawn_at=NOON))
        await witness.until(lambda w: w.last("evbatteryd/car_1/polling") == "")
        await witness.until(lambda w: w.last(config) == "")
    assert not any("car_1" in topic for topic in await all_kept(broker.port))


async def test_a_broker_that_denies_one_topic_is_not_left_again_and_again(
    tmp_path: Path, protocol: str, impatient: None
) -> None:
    """Once it is known what it hangs up upon, the connection holds."""
    async with (
        denying(tmp_path, "evbatteryd/car_2/#") as denied,
        Witness(denied.broker.port) as witness,
        Station(denied.broker.port, car(1), car(2), protocol=protocol) as station,
    ):
        await witness.until(lambda w: w.last("evbatteryd/car_2/polling"))
        await station.until(lambda: station.events("mqtt.publish_refused") and station.sink.connected)
        ends = station.tally.up.count(False)
        if protocol == "5":  # it says what it refuses; else three ends in a row have to be of one topic
            assert ends <= STRIKES
        for number in range(1, 31):
            await station.publish([reading(number, number=2, state=state(soc=number, measured_at=later(0)))])
        await witness.until(lambda w: w.last("evbatteryd/car_2/soc") == "30")
        assert station.tally.up.count(False) == ends
        assert station.events("mqtt.subscription_refused") == []
