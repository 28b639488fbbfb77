"""A broker, and a sink that runs against it with everything it is handed in the test's hand."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
import structlog
from structlog.testing import LogCapture
from structlog.typing import EventDict

from evbatteryd.domain.errors import SinkError
from evbatteryd.domain.estimates import Estimator
from evbatteryd.domain.fleet import Car
from evbatteryd.domain.ledger import Share
from evbatteryd.domain.ports import Commands, Hints
from evbatteryd.domain.reading import Reading
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.sinks import mqtt
from evbatteryd.sinks.connection import MqttOptions
from evbatteryd.sinks.lanes import Touched
from evbatteryd.sinks.mqtt import MqttSink
from evbatteryd.sinks.retained import Retained
from tests.builders import NOON, fleet
from tests.fakes import VirtualClock
from tests.mosquitto import LOOPBACK, PATIENCE_S, Mosquitto
from tests.sinks.world import NoHints, Notes, Obedient, at_its_newest
from tests.web.builders import estimate

PASSWORD = "hunter2-of-the-broker"  # in every station's options, and never to be seen


class CountingTally:
    """What of the Tally a sink counts."""

    def __init__(self, news: asyncio.Event) -> None:
        self.messages = 0
        self.up: list[bool] = []
        self.hints: Counter[tuple[str, str]] = Counter()
        self.commands: Counter[tuple[str, str]] = Counter()
        self._news = news

    def command(self, command: str, outcome: str) -> None:
        self.commands[command, outcome] += 1
        self._news.set()

    def connected(self, up: bool) -> None:
        self.up.append(up)
        self._news.set()

    def hint(self, event: str, outcome: str) -> None:
        self.hints[event, outcome] += 1
        self._news.set()

    def published(self, messages: int) -> None:
        self.messages += messages
        self._news.set()


class Station:
    """A sink that runs. An async context manager: inside, it has been started; after, it was closed."""

    def __init__(
        self,
        port: int,
        *cars: Car,
        notes: Notes | None = None,
        hints: Hints | None = None,
        commands: Commands | None = None,
        estimate: Estimator = estimate,
        share: Share | None = None,
        **options: object,
    ) -> None:
        self.clock = VirtualClock(NOON + timedelta(minutes=1))
        self.fleet = fleet(*cars)
        self._news = asyncio.Event()
        self.tally = CountingTally(self._news)
        self._log = LogCapture()
        self.notes = Notes() if notes is None else notes
        self.owed: set[VehicleId] = set()
        """Cars of which readings wait that this station has not been handed."""
        self._waiting: dict[VehicleId, set[int]] = {}
        usual: dict[str, object] = {
            "host": LOOPBACK,
            "username": "evbatteryd",
            "password": PASSWORD,
            "discovery": False,
        }
        self.options = MqttOptions(port=port, **(usual | options))
        log = structlog.wrap_logger(
            None, processors=[self._heard, self._log], wrapper_class=structlog.make_filtering_bound_logger(0)
        )
        self.sink = MqttSink(
            self.options,
            self.fleet,
            self.clock,
            self.tally,
            log,
            owes=self.owes,
            manifest=self.notes,
            estimate=estimate,
            share_of=lambda _: share,
            hints=NoHints() if hints is None else hints,
            commands=Obedient() if commands is None else commands,
        )
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.sink.open()
        for known in self.fleet:  # as every car is announced when it is loaded
            self.sink.touch(known.id)
        self._running = asyncio.create_task(self.sink.run())
        self._running.add_done_callback(lambda _: self._news.set())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self, grace: float = PATIENCE_S) -> None:
        """End it as the service does."""
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running
            await self.sink.close(grace)
        assert PASSWORD not in repr(self.log)
        assert PASSWORD not in repr(self.options)

    @property
    def log(self) -> list[dict[str, object]]:
        return list(self._log.entries)

    def events(self, *names: str) -> list[dict[str, object]]:
        return [entry for entry in self.log if entry["event"] in names]

    def _heard(self, _: object, __: str, entry: EventDict) -> EventDict:
        self._news.set()
        return entry

    async def until(self, happened: Callable[[], object]) -> None:
        """Until this holds: looked at whenever a line is logged or the connection changes."""
        async with asyncio.timeout(PATIENCE_S):
            while not happened():
                assert self._running is None or not self._running.done(), "the sink has ended"
                await self._news.wait()
                self._news.clear()
                await asyncio.sleep(0)

    async def logged(self, name: str, times: int = 1) -> dict[str, object]:
        """Wait for the ``times``-th line of this name."""
        await self.until(lambda: len(self.events(name)) >= times)
        return self.events(name)[times - 1]

    @property
    def touched(self) -> Touched:
        """Cars that the latest lane has not told yet."""
        return self.sink._touched

    @property
    def retained(self) -> Retained:
        """What the sink knows of the broker."""
        return self.sink._retained

    async def connected(self, connected: bool = True) -> None:
        await self.until(lambda: self.sink.connected is connected)

    def told(self, car: Car) -> None:
        """A car changed, and whoever changed it says so."""
        self.fleet.put(car)
        self.sink.touch(car.id)

    def owes(self, vehicle_id: VehicleId) -> bool:
        return vehicle_id in self.owed or vehicle_id in self._waiting

    def commit(self, one: Reading) -> None:
        """A reading is in the journal, and its car at it, before anybody hears of it."""
        known = self.fleet[one.vehicle_id]
        if known.vehicle.withdrawn_at is None:
            self.fleet.put(at_its_newest(known, [one]))
        self._waiting.setdefault(one.vehicle_id, set()).add(one.seq)

    async def publish(self, readings: Sequence[Reading], *, commit: bool = True) -> None:
        """Offer readings, all cars at a time, as the delivery does.

        ``commit``: first they are committed; else the cars stay as they are.
        """
        cars: dict[VehicleId, list[Reading]] = {}
        for one in readings:
            cars.setdefault(one.vehicle_id, []).append(one)
            if commit:
                self.commit(one)
            else:
                self._waiting.setdefault(one.vehicle_id, set()).add(one.seq)
        async with asyncio.timeout(PATIENCE_S):
            told = await asyncio.gather(*map(self._tell, cars.values()), return_exceptions=True)
        for failure in told:
            if isinstance(failure, BaseException):
                raise failure

    async def _tell(self, own: list[Reading]) -> None:
        vehicle_id = own[0].vehicle_id
        taken = 0
        try:
            await self.sink.publish(own)
            taken = own[-1].seq
        except SinkError as error:
            taken = error.taken
            raise
        finally:
            waiting = {seq for seq in self._waiting.pop(vehicle_id, ()) if seq > taken}
            if waiting:
                self._waiting[vehicle_id] = waiting
            else:
                self.owed.discard(vehicle_id)
                self.sink.touch(vehicle_id)

    async def deliver(self, readings: Sequence[Reading], *, commit: bool = True) -> int:
        """Offer readings until they are taken, as the journal does; how often that failed."""
        failures = 0
        async with asyncio.timeout(4 * PATIENCE_S):
            while True:
                try:
                    await self.publish(readings, commit=commit)
                except SinkError:
                    failures += 1
                    commit = False
                    readings = [one for one in readings if one.seq in self._waiting.get(one.vehicle_id, ())]
                    await asyncio.sleep(0.02)
                else:
                    return failures


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    async with Mosquitto(tmp_path / "mosquitto") as running:
        yield running


@pytest.fixture(params=["5", "3.1.1"])
def protocol(request: pytest.FixtureRequest) -> str:
    """Both versions of MQTT that we speak."""
    return str(request.param)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts to reconnect follow fast, so that tests do not wait for them."""
    monkeypatch.setattr(mqtt, "SHORTEST_PAUSE_S", 0.02)
    monkeypatch.setattr(mqtt, "LONGEST_PAUSE_S", 0.1)
