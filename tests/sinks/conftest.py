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
from evbatteryd.domain.ports import Hints
from evbatteryd.domain.reading import Reading
from evbatteryd.sinks import mqtt
from evbatteryd.sinks.mqtt import MqttOptions, MqttSink
from tests.builders import NOON, fleet
from tests.fakes import VirtualClock
from tests.mosquitto import LOOPBACK, PATIENCE_S, Mosquitto
from tests.web.builders import estimate

PASSWORD = "hunter2-of-the-broker"  # in every station's options, and never to be seen


class CountingTally:
    """What of the Tally a sink counts."""

    def __init__(self, news: asyncio.Event) -> None:
        self.messages = 0
        self.up: list[bool] = []
        self.hints: Counter[tuple[str, str]] = Counter()
        self._news = news

    def connected(self, up: bool) -> None:
        self.up.append(up)
        self._news.set()

    def hint(self, event: str, outcome: str) -> None:
        self.hints[event, outcome] += 1
        self._news.set()

    def published(self, messages: int) -> None:
        self.messages += messages


class Station:
    """A sink that runs. An async context manager: inside, it has been started; after, it was closed."""

    def __init__(
        self,
        port: int,
        *cars: Car,
        owed_until: int = 0,
        hints: Hints | None = None,
        estimate: Estimator = estimate,
        **options: object,
    ) -> None:
        self.clock = VirtualClock(NOON + timedelta(minutes=1))
        self.fleet = fleet(*cars)
        self._news = asyncio.Event()
        self.tally = CountingTally(self._news)
        self._log = LogCapture()
        usual: dict[str, object] = {"host": LOOPBACK, "username": "evbatteryd", "password": PASSWORD}
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
            estimate=estimate,
            owed_until=owed_until,
            hints=hints,
        )
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self.sink.run())
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
                await self._news.wait()
                self._news.clear()
                await asyncio.sleep(0)

    async def logged(self, name: str, times: int = 1) -> dict[str, object]:
        """Wait for the ``times``-th line of this name."""
        await self.until(lambda: len(self.events(name)) >= times)
        return self.events(name)[times - 1]

    async def connected(self, connected: bool = True) -> None:
        await self.until(lambda: self.sink.connected is connected)

    def told(self, car: Car) -> None:
        """A car changed, and whoever changed it says so."""
        self.fleet.put(car)
        self.sink.touch(car.id)

    async def publish(self, readings: Sequence[Reading]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.sink.publish(readings)

    async def deliver(self, readings: Sequence[Reading]) -> int:
        """Offer readings until they are taken, as the journal does; how often that failed."""
        failures = 0
        async with asyncio.timeout(4 * PATIENCE_S):
            while True:
                try:
                    await self.sink.publish(readings)
                except SinkError:
                    failures += 1
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
