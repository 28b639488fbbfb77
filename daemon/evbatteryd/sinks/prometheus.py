"""What Prometheus reads: the daemon's own counters, and the cars as they stand at the moment of the scrape.

The daemon's own metrics live in a registry of prometheus-client. The cars' gauges are written from the fleet
by :class:`Exposition`, in slices, so that a scrape of 100,000 cars keeps nobody waiting. A value that was
never measured is absent, and no sample carries a time stamp: how old a value is, is a metric of its own
(https://prometheus.io/docs/instrumenting/writing_exporters/#scheduling).
"""

from __future__ import annotations

import asyncio
import platform
from collections import Counter as Count
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, Metric, generate_latest
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from evbatteryd import __version__
from evbatteryd.domain.fleet import Car, Fleet
from evbatteryd.domain.forecast import Forecast
from evbatteryd.domain.freshness import Freshness
from evbatteryd.domain.ports import Clock
from evbatteryd.domain.reading import Signal

CARS_PER_SLICE = 500
"""About a millisecond of work between two turns of the event loop."""

METERS_PER_KM = 1000.0
JOULES_PER_KWH = 3_600_000.0
WATTS_PER_KW = 1000.0

_REQUEST_BUCKETS_S = (0.25, 0.5, 1, 2, 3, 5, 8, 12, 20, 30, 45, 60, 120, 180, 300)
"""Smartcar answers in 3 to 45 s as a rule, and gives up after 300 s."""
_LAG_BUCKETS_S = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3600)


class Metrics:
    """The daemon's own metrics, in a registry of their own. Implements :class:`domain.ports.Tally`."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own = self._registry
        self._polls = Counter(
            "evbatteryd_polls_total", "Polls of cars, by how they ended.", ["make", "outcome"], registry=own
        )
        self._request_duration = Histogram(
            "evbatteryd_request_duration_seconds",
            "How long the source took to answer a poll, by the daemon's clock.",
            ["make"],
            buckets=_REQUEST_BUCKETS_S,
            registry=own,
        )
        self._schedule_lag = Histogram(
            "evbatteryd_schedule_lag_seconds",
            "How long after it fell due a poll was begun, by the daemon's clock.",
            buckets=_LAG_BUCKETS_S,
            registry=own,
        )
        self._calls = Counter(
            "evbatteryd_calls_total", "Requests sent, of whatever kind.", ["application"], registry=own
        )
        self._budget = Gauge(
            "evbatteryd_calls_budget_remaining",
            "Requests the plan still has until its period turns.",
            ["application"],
            registry=own,
        )
        self._bucket = Gauge(
            "evbatteryd_bucket_tokens",
            "Requests the application may send at once.",
            ["application"],
            registry=own,
        )
        self._forecast = Gauge(
            "evbatteryd_calls_forecast",
            "Requests that will have been spent when the plan's period turns, at this pace.",
            ["application"],
            registry=own,
        )
        self._expected_interval = Gauge(
            "evbatteryd_poll_interval_expected_seconds",
            "Mean time between two polls of a car that can be expected until the plan's period turns.",
            ["application"],
            registry=own,
        )
        self._period_ends = Gauge(
            "evbatteryd_period_ends_timestamp_seconds",
            "When the plan's period turns.",
            ["application"],
            registry=own,
        )
        self._price = Gauge(
            "evbatteryd_call_price_percent_seconds",
            "Error of the state of charge that one more request to a car must end: percentage points, times "
            "the seconds that they would have stood. Absent until the policy has learnt enough.",
            ["application"],
            registry=own,
        )
        self._webhooks = Counter(
            "evbatteryd_webhooks_total",
            "Webhook deliveries that came, by what they were and what became of them.",
            ["event", "outcome"],
            registry=own,
        )
        self._hints = Counter(
            "evbatteryd_hints_total",
            "Events that wall boxes and automations told, by what they were and what became of them.",
            ["event", "outcome"],
            registry=own,
        )
        self._rejected = Counter(
            "evbatteryd_rejected_values_total",
            "Values that cannot be, kept out of the readings.",
            ["make", "signal"],
            registry=own,
        )
        self._outbox = Gauge(
            "evbatteryd_outbox_readings",
            "Readings committed to the store that a sink has not taken yet.",
            ["sink"],
            registry=own,
        )
        self._given_up = Counter(
            "evbatteryd_outbox_given_up_total",
            "Readings that a sink was not told and never will be: too many waited, or they became too old.",
            ["sink", "reason"],
            registry=own,
        )
        self._commands = Counter(
            "evbatteryd_commands_total",
            "Answers to commands, by what was commanded and what became of it.",
            ["command", "outcome"],
            registry=own,
        )
        self._in_flight = Gauge(
            "evbatteryd_polls_in_flight", "Polls that wait for their answer.", registry=own
        )
        self._connected = Gauge(
            "evbatteryd_mqtt_connected", "Whether the MQTT broker is connected.", registry=own
        )
        self._published = Counter(
            "evbatteryd_mqtt_messages_published_total",
            "Messages that the MQTT broker has acknowledged.",
            registry=own,
        )
        Info("evbatteryd_build", "The version that runs.", registry=own).info(
            {"version": __version__, "python_version": platform.python_version()}
        )
        ProcessCollector(registry=own)

    def polled(self, make: str, outcome: str, took: timedelta) -> None:
        self._polls.labels(make, outcome).inc()
        self._request_duration.labels(make).observe(took.total_seconds())

    def lag(self, span: timedelta) -> None:
        self._schedule_lag.observe(span.total_seconds())

    def called(self, application: str) -> None:
        self._calls.labels(application).inc()

    def webhook(self, event: str, outcome: str) -> None:
        self._webhooks.labels(event, outcome).inc()

    def hint(self, event: str, outcome: str) -> None:
        self._hints.labels(event, outcome).inc()

    def rejected(self, make: str, signal: str) -> None:
        self._rejected.labels(make, signal).inc()

    def budget(self, application: str, remaining: int) -> None:
        self._budget.labels(application).set(remaining)

    def bucket(self, application: str, level: float) -> None:
        self._bucket.labels(application).set(level)

    def forecast(self, forecast: Forecast) -> None:
        application, interval = forecast.terms.application, forecast.interval
        self._forecast.labels(application).set(forecast.expected)
        self._period_ends.labels(application).set(forecast.terms.window.end.timestamp())
        _set(self._expected_interval, application, None if interval is None else interval.total_seconds())
        _set(self._price, application, forecast.price)

    def command(self, command: str, outcome: str) -> None:
        self._commands.labels(command, outcome).inc()

    def given_up(self, sink: str, reason: str, readings: int) -> None:
        self._given_up.labels(sink, reason).inc(readings)

    def outbox(self, sink: str, readings: int) -> None:
        self._outbox.labels(sink).set(readings)

    def in_flight(self, polls: int) -> None:
        self._in_flight.set(polls)

    def connected(self, up: bool) -> None:
        self._connected.set(up)

    def published(self, messages: int) -> None:
        self._published.inc(messages)

    def families(self) -> Iterator[bytes]:
        """Text format 0.0.4, one metric family at a time."""
        for family in self._registry.collect():
            # When a counter was created is a series that doubles their number and that nobody asks for.
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield generate_latest(_Single(family))


def _set(gauge: Gauge, label: str, value: float | None) -> None:
    """None: the gauge is absent."""
    if value is None:
        gauge.remove(label)
    else:
        gauge.labels(label).set(value)


@dataclass(frozen=True, slots=True)
class _Single(Collector):
    """One family, as the text writer of prometheus-client wants it."""

    family: Metric

    def collect(self) -> Iterable[Metric]:
        return (self.family,)


@dataclass(frozen=True, slots=True)
class _Gauge:
    """One value of every car. ``of`` converts to the base unit, and returns None when it is not known."""

    name: str
    help: str
    of: Callable[[Car], float | None]

    def line(self, car: Car) -> str:
        value = self.of(car)
        return "" if value is None else f'{self.name}{{vehicle="{_escaped(car.slug)}"}} {value!r}\n'


_CAR_GAUGES = (
    _Gauge(
        "evbattery_state_of_charge_ratio",
        "State of charge of the traction battery, 0 to 1, as the car last told it.",
        lambda car: _ratio(car.state.soc_percent),
    ),
    _Gauge(
        "evbattery_range_meters",
        "Range left, as the car last told it.",
        lambda car: _scaled(car.state.number(Signal.RANGE), METERS_PER_KM),
    ),
    _Gauge(
        "evbattery_capacity_joules",
        "Nominal capacity of the battery.",
        lambda car: _scaled(car.state.number(Signal.CAPACITY), JOULES_PER_KWH),
    ),
    _Gauge(
        "evbattery_charging",
        "Whether the battery is being charged.",
        lambda car: _flag(car.state.charging),
    ),
    _Gauge(
        "evbattery_plugged_in",
        "Whether a charging cable is plugged in.",
        lambda car: _flag(car.state.plugged_in),
    ),
    _Gauge(
        "evbattery_charge_limit_ratio",
        "State of charge at which charging stops, 0 to 1.",
        lambda car: _ratio(car.state.number(Signal.CHARGE_LIMIT)),
    ),
    _Gauge(
        "evbattery_charge_power_watts",
        "Power that flows into the battery.",
        lambda car: _scaled(car.state.number(Signal.CHARGE_POWER), WATTS_PER_KW),
    ),
    _Gauge(
        "evbattery_odometer_meters",
        "Distance travelled.",
        lambda car: _scaled(car.state.number(Signal.ODOMETER), METERS_PER_KM),
    ),
    _Gauge(
        "evbattery_time_to_full_seconds",
        "Time until charging is complete, as the car last told it.",
        lambda car: car.state.number(Signal.TIME_TO_FULL),
    ),
    _Gauge(
        "evbattery_measured_timestamp_seconds",
        "When the car measured its state of charge, by its own clock. Cars are polled on a timer, not when "
        "scraped: time() minus this is the age of the reading.",
        lambda car: _instant(car.state.measured_at),
    ),
    _Gauge(
        "evbattery_fetched_timestamp_seconds",
        "When the state of charge was last confirmed to evbatteryd.",
        lambda car: _instant(car.state.fetched_at),
    ),
    _Gauge(
        "evbattery_next_poll_timestamp_seconds",
        "When the car is asked next. Absent: not before something changes from outside, like a new consent.",
        lambda car: _instant(car.schedule.due),
    ),
)


class Exposition:
    """The whole answer to a scrape, in text format 0.0.4 and in slices."""

    def __init__(self, metrics: Metrics, fleet: Fleet, clock: Clock) -> None:
        self._metrics = metrics
        self._fleet = fleet
        self._clock = clock

    async def chunks(self) -> AsyncIterator[bytes]:
        """The daemon's metrics, then the cars' of one moment. Gives way to the event loop between slices."""
        for family in self._metrics.families():
            yield family
            await asyncio.sleep(0)
        cars: list[Car] = []
        pushed = 0
        for some in _sliced(list(self._fleet)):
            standing = [car for car in some if car.vehicle.withdrawn_at is None]
            pushed += sum(car.schedule.pushed_at is not None for car in standing)
            cars += standing
            await asyncio.sleep(0)
        for gauge in _CAR_GAUGES:
            async for chunk in _written(gauge.name, gauge.help, cars, gauge.line):
                yield chunk
        async for chunk in self._estimates(cars):
            yield chunk
        async for chunk in self._freshness(cars):
            yield chunk
        name = "evbatteryd_vehicles_pushed"
        yield _head(name, "Vehicles whose data webhooks bring.") + f"{name} {pushed}\n".encode()
        async for chunk in _written(
            "evbattery_vehicle_info",
            "What the car is called; join on vehicle.",
            cars,
            _info_line,
        ):
            yield chunk

    async def _estimates(self, cars: Sequence[Car]) -> AsyncIterator[bytes]:
        now = self._clock.now()
        gauge = _Gauge(
            "evbattery_state_of_charge_estimate_ratio",
            "State of charge by now, 0 to 1, carried forward from the last measurement: an estimate. Absent "
            "when nothing is claimed.",
            lambda car: None if car.trend is None else _ratio(car.trend.at(now)),
        )
        async for chunk in _written(gauge.name, gauge.help, cars, gauge.line):
            yield chunk

    async def _freshness(self, cars: Sequence[Car]) -> AsyncIterator[bytes]:
        now = self._clock.now()
        count: Count[Freshness] = Count()

        def fresh(car: Car) -> int:
            freshness = self._fleet.freshness(car, now)
            count[freshness] += 1
            return int(freshness is Freshness.FRESH)

        gauge = _Gauge(
            "evbattery_fresh",
            "Whether the state of charge is as new as this brand can deliver in this state.",
            fresh,
        )
        async for chunk in _written(gauge.name, gauge.help, cars, gauge.line):
            yield chunk
        name = "evbatteryd_vehicles"
        yield (
            _head(name, "Enrolled vehicles, by how fresh their state of charge is.")
            + "".join(
                f"{name}{_labels(freshness=freshness)} {count[freshness]}\n" for freshness in Freshness
            ).encode()
        )


async def _written(
    name: str, help_text: str, cars: Sequence[Car], line: Callable[[Car], str]
) -> AsyncIterator[bytes]:
    """One metric family: its head, then the line of every car that has one."""
    yield _head(name, help_text)
    for some in _sliced(cars):
        text = "".join(map(line, some))
        if text:
            yield text.encode()
        await asyncio.sleep(0)


def _sliced(cars: Sequence[Car]) -> Iterator[Sequence[Car]]:
    for start in range(0, len(cars), CARS_PER_SLICE):
        yield cars[start : start + CARS_PER_SLICE]


def _head(name: str, help_text: str) -> bytes:
    return f"# HELP {name} {help_text}\n# TYPE {name} gauge\n".encode()


def _info_line(car: Car) -> str:
    consent = car.vehicle.consent
    told = {
        "vehicle": car.slug,
        "name": car.vehicle.name,
        "make": consent.make,
        "model": consent.model,
        "brand": car.vehicle.brand,
    }
    return f"evbattery_vehicle_info{_labels(**{key: value for key, value in told.items() if value})} 1\n"


def _labels(**values: str) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in values.items()) + "}"


def _escaped(value: str) -> str:
    """Of a label's value: https://prometheus.io/docs/instrumenting/exposition_formats/#comments-help-text-and-type-information."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _ratio(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def _flag(value: bool | None) -> int | None:
    return None if value is None else int(value)


def _instant(at: datetime | None) -> float | None:
    return None if at is None else at.timestamp()
