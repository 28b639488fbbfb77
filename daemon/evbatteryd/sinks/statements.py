"""What is said of a car, message by message, as far as the broker is not known to hold it already.

No socket, and nothing that waits. Whoever takes a message from here sends it before the next is made: it is
true of the moment at which it is made, and noted there and then as told (:mod:`evbatteryd.sinks.retained`).

Retained values expire (MQTT 5) when they stop being fresh, and so does the word that they are, so that a
broker that outlives us shows nothing old as if it were new. A value that is not fresh when it is told is kept
for one second: whoever listens hears it, with ``freshness`` beside it, and whoever comes later finds the
availability alone. For the same reason a confirmation repeats the scalar topics, which carry no such mark,
only while the value is fresh. An estimate has an end of its own: its scalars are told, and kept, until then,
whatever the measured value is.

A car that is withdrawn says ``offline`` once to whoever listens, then nothing of it stays retained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Final

from evbatteryd import __version__
from evbatteryd.domain.estimates import Estimator, Step, step
from evbatteryd.domain.fleet import Car, Fleet
from evbatteryd.domain.freshness import (
    GRACE,
    Freshness,
    fresh_until,
    judge,
    tellings,
    told_again_every,
)
from evbatteryd.domain.ledger import Share
from evbatteryd.domain.ports import Clock, Commands
from evbatteryd.domain.profile import UNKNOWN
from evbatteryd.domain.reading import BatteryState, Origin, Reading
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.sinks.connection import MqttOptions
from evbatteryd.sinks.discovery import Device
from evbatteryd.sinks.payload import (
    AVAILABILITY,
    DISCOVERY,
    ESTIMATED,
    FIELDS,
    MEASURED,
    POLLING,
    STATE,
    Message,
    Polling,
    Telling,
    Topics,
    newest,
)
from evbatteryd.sinks.retained import Retained, digest

LONGEST_EXPIRY_S = 2**32 - 1
_VALUELESS: Final = frozenset({AVAILABILITY, POLLING, DISCOVERY})
"""Topics of a car that has no value."""


class Statements:
    """Makes the messages.

    ``owes``: whether readings of a car are not told yet. ``estimate``: what is told beside what was measured.
    ``share_of``: what a car may spend; None: its application is not configured.
    """

    def __init__(
        self,
        options: MqttOptions,
        topics: Topics,
        fleet: Fleet,
        clock: Clock,
        retained: Retained,
        commands: Commands,
        *,
        owes: Callable[[VehicleId], bool],
        estimate: Estimator,
        share_of: Callable[[Car], Share | None],
    ) -> None:
        self._options = options
        self._topics = topics
        self._fleet = fleet
        self._clock = clock
        self._retained = retained
        self._commands = commands
        self._owes = owes
        self._estimate = estimate
        self._share_of = share_of
        self._started_at = clock.now()
        self.leaves = _leaves(options)
        """The topics of a car that has values."""

    def leaves_of(self, car: Car) -> frozenset[str]:
        """The topics that a car fills."""
        if car.vehicle.withdrawn_at is not None:
            return frozenset()
        return self.leaves if car.reading_id is not None else self.leaves & _VALUELESS

    # Of ourselves

    def info(self, vehicles: int) -> Message:
        return self._topics.info(version=__version__, vehicles=vehicles, started_at=self._started_at)

    # A reading

    def reading(self, reading: Reading, opened_at: datetime) -> Iterator[Message]:
        """``opened_at``: when the connection was opened; what was fetched before is told as replayed."""
        car = self._fleet[reading.vehicle_id]
        replayed = reading.fetched_at < opened_at
        said, telling = self._telling(car, reading.state, reading.reading_id, reading.origin, replayed)
        if not telling.superseded:
            self._retained[car.slug].state = said
        return self._values(telling, measured=not telling.superseded)

    # How a car stands

    def aspects(self, opened_at: datetime) -> tuple[Callable[[Car], Iterator[Message]], ...]:
        """What is said of a car that is not withdrawn, in this order."""
        return (
            self.surplus,
            self.discovery,
            self.availability,
            partial(self.confirmation, opened_at=opened_at),
            self.polling,
        )

    def surplus(self, car: Car) -> Iterator[Message]:
        """Delete what is retained of a car although it is not told any more."""
        return self._emptying(car.slug, self.leaves_of(car))

    def discovery(self, car: Car) -> Iterator[Message]:
        if not self._options.discovery:
            return
        device = self._device(car)
        facts = (replace(device, commands=frozenset()), sorted(device.commands), __version__)
        said, told = digest(facts, self._options.json_state), self._retained[car.slug]
        if told.discovery != said:
            told.discovery = said
            yield self._topics.discovery(device, version=__version__, json_state=self._options.json_state)

    def availability(self, car: Car) -> Iterator[Message]:
        now = self._clock.now()
        until, freshness = self._fleet.fresh_until(car), self._fleet.freshness(car, now)
        if freshness is Freshness.FRESH and self._owes(car.id):
            return  # the value that is retained is another one
        expires = freshness is Freshness.FRESH and self._options.protocol == "5"
        told, said = self._retained[car.slug], digest(freshness, until if expires else None)
        if told.availability != said:
            told.availability = said
            expiry = self._expiry(until, now) if expires else None
            yield self._topics.availability(car.slug, freshness, expiry)

    def confirmation(self, car: Car, opened_at: datetime) -> Iterator[Message]:
        """The state as it stands, if it differs from what is retained."""
        last = newest(car.state)
        if last is None or car.reading_id is None or self._owes(car.id):
            return
        replayed = last.fetched_at < opened_at
        said, telling = self._telling(car, car.state, car.reading_id, last.origin, replayed)
        if self._retained[car.slug].state == said:
            return
        for message in self._values(telling, measured=telling.freshness is Freshness.FRESH):
            # A newer reading has begun to be told: the rest would go back in time.
            if self._owes(car.id) or not self._is_still(car):
                return
            yield message
        self._retained[car.slug].state = said

    def polling(self, car: Car) -> Iterator[Message]:
        schedule, trouble, share = car.schedule, car.trouble, self._share_of(car)
        commands = self._commands.possible(car)
        polling = Polling(
            measured_at=car.state.measured_at,
            fetched_at=car.state.fetched_at,
            next_poll=schedule.due,
            reason=schedule.reason,
            outcome=schedule.outcome,
            problem=trouble,
            calls_left=None if share is None else share.calls_left,
            calls=None if share is None else share.calls,
            renews_at=None if share is None else share.renews_at,
            commands=commands,
        )
        # Sets have no order that two processes would share.
        told, said = (
            self._retained[car.slug],
            digest(replace(polling, commands=frozenset()), sorted(commands)),
        )
        if told.polling != said:
            told.polling = said
            yield self._topics.polling(car.slug, polling, self._clock.now())

    # What is gone

    def farewell(self, car: Car) -> Iterator[Message]:
        """Say that a withdrawn car is gone, and delete all of it."""
        told = self._retained.get(car.slug)
        offline = digest(Freshness.OFFLINE, None)
        if told is not None and AVAILABILITY in told.leaves and told.availability != offline:
            told.availability = offline
            yield self._topics.availability(car.slug, Freshness.OFFLINE)
        if self._fleet[car.id].vehicle.withdrawn_at is not None:
            yield from self.nothing(car.slug)

    def former(self, car: Car) -> Iterator[Message]:
        """Delete everything that is retained under the car's former slugs."""
        for slug in car.vehicle.former_slugs:
            if self._fleet.by_slug(slug) is None:
                yield from self.nothing(slug)

    def nothing(self, slug: str) -> Iterator[Message]:
        """Delete everything that is retained under a slug."""
        return self._emptying(slug, frozenset())

    def _emptying(self, slug: str, leaves: frozenset[str]) -> Iterator[Message]:
        """Delete what is retained under a slug in other topics than ``leaves``."""
        to_empty = self._retained.emptying(slug, leaves)
        if not to_empty:
            return
        told = self._retained[slug]
        told.emptied_of(to_empty)
        doubts = told.doubts
        for leaf in sorted(to_empty):
            if leaf not in told.leaves:  # else it is a car's again, and what is told there was noted before
                yield from self._topics.emptied(slug, [leaf])
        told.emptied = told.doubts == doubts  # else one of them was left out

    # What it rests on

    def _is_still(self, car: Car) -> bool:
        """Whether the car has the reading, the slug and the consent that it had."""
        now = self._fleet[car.id]
        same = now.reading_id == car.reading_id and now.slug == car.slug
        return same and now.vehicle.withdrawn_at == car.vehicle.withdrawn_at

    def _device(self, car: Car) -> Device:
        vehicle, profile = car.vehicle, self._fleet.profile(car)
        return Device(
            slug=car.slug,
            name=vehicle.name,
            make=vehicle.consent.make.title() if profile.brand == UNKNOWN else profile.name,
            model=vehicle.consent.model,
            year=vehicle.consent.year,
            commands=self._commands.possible(car),
            expire_after_s=max(math.ceil(self._clock.real(told_again_every(profile) + GRACE)), 1),
        )

    def _values(self, telling: Telling, *, measured: bool) -> Iterator[Message]:
        """The state, the scalars of the estimate, and those that were measured if so wanted.

        A superseded reading is told by its state alone: a scalar does not tell that there is a newer one.
        """
        if self._options.json_state:
            yield self._topics.state(telling)
        if not self._options.scalars or telling.superseded:
            return
        told = self._retained[telling.slug]
        if measured:
            yield from self._topics.scalars(telling)
            told.scalars_until = telling.fresh_until
        elif told.scalars_until is not None and self._clock.now() < told.scalars_until:
            # They would outlive their freshness, which ended early.
            yield from self._topics.emptied(telling.slug, MEASURED)
            told.scalars_until = None
        if telling.estimate is not None:
            told.estimated = True
            yield from self._topics.estimated(telling)
        elif told.estimated is not False:
            yield from self._topics.emptied(telling.slug, ESTIMATED)
            told.estimated = False

    def _telling(
        self, car: Car, state: BatteryState, reading_id: str, origin: Origin, replayed: bool
    ) -> tuple[bytes, Telling]:
        """What is said of a car's state, and the digest of what that rests on."""
        now, profile = self._clock.now(), self._fleet.profile(car)
        superseded = reading_id != car.reading_id
        trend = None if superseded else car.trend
        until = fresh_until(profile, state, car.schedule.activity, trend)
        freshness = judge(until, reachable=car.reachable, consented=car.consented, now=now)
        if superseded:
            freshness = Freshness.STALE
        stands = None if superseded else step(car, now)
        estimate = None if stands is None else self._estimate(car, now)
        telling = Telling(
            slug=car.slug,
            state=state,
            reading_id=reading_id,
            origin=origin,
            freshness=freshness,
            replayed=replayed or superseded,
            superseded=superseded,
            published_at=now,
            fresh_until=until if freshness is Freshness.FRESH and self._options.protocol == "5" else None,
            expiry=self._expiry(until if freshness is Freshness.FRESH else None, now),
            estimate=estimate,
            estimate_expiry=self._expiry(None if estimate is None else estimate.until, now),
        )
        again = tellings(profile, state, now) if freshness is Freshness.FRESH else 0
        return _rests_on(telling, until, stands if estimate is not None else None, again), telling

    def _expiry(self, until: datetime | None, now: datetime) -> int:
        """Whole real seconds for which the broker keeps what holds until then: never longer, at least 1."""
        if until is None:
            return 1
        return min(max(math.floor(self._clock.real(until - now)), 1), LONGEST_EXPIRY_S)


def _leaves(options: MqttOptions) -> frozenset[str]:
    leaves = {AVAILABILITY, POLLING}
    if options.json_state:
        leaves.add(STATE)
    if options.scalars:
        leaves.update(FIELDS)
    if options.discovery:
        leaves.add(DISCOVERY)
    return frozenset(leaves)


def _rests_on(telling: Telling, until: datetime | None, stands: Step | None, again: int) -> bytes:
    last = newest(telling.state)
    confirmed = None if last is None else last.fetched_at
    return digest(telling.reading_id, confirmed, until, telling.freshness, _nearly(stands), again)


def _nearly(stands: Step | None) -> tuple[float | str, ...]:
    """A step as it is also known again after a restart, when what was learnt is a little less exact."""
    if stands is None:
        return ()
    trend = stands.trend
    figures = (trend.soc_percent, trend.percent_per_hour, trend.target_percent)
    return (*(round(figure, 1) for figure in figures), f"{stands.until:%Y-%m-%d %H:%M}")
