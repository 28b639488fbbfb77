"""Readings on an MQTT broker.

Two lanes share one connection. The *journal lane* tells every reading, in order, and takes it for told when
the broker has acknowledged all of its messages. The *latest lane* tells what changed without a reading
(a confirmation, freshness, consent): a set of cars, so that it is bounded by the fleet and only the newest
counts. It never overtakes the journal lane: while a reading of a car is owed, that car's state waits.

A broker may have forgotten everything that it once acknowledged, or remember too much: every connection
begins with ``online``, every availability and every latest state; and the values of an erased car, and
everything of a withdrawn one or under a slug that a car once had, are deleted once more.

A car that is withdrawn says ``offline`` once to whoever listens, then nothing of it stays retained.

A car may be renamed, withdrawn or erased at any moment, also between two messages that belong together. So
each message is made just before it is sent, and none is made for a slug that the car has no more.

Retained values expire (MQTT 5) when they stop being fresh, so that a broker that outlives us shows nothing
old as if it were new. A value that is not fresh when it is told is kept for one second: whoever listens
hears it, with ``freshness`` beside it, and whoever comes later finds the availability alone. For the same
reason a confirmation repeats the scalar topics, which carry no such mark, only while the value is fresh. An
estimate has an end of its own: its scalars are told, and kept, until then, whatever the measured value is.

Hints are listened to beside both lanes (:mod:`evbatteryd.sinks.hearing`). A retained one is not taken: a
broker tells it again and again, long after it was true.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import socket
import ssl
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property, lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

import aiomqtt
import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from evbatteryd import __version__
from evbatteryd.domain.errors import SinkError
from evbatteryd.domain.estimates import Estimator, Step, step, told_estimate
from evbatteryd.domain.fleet import Car, Fleet
from evbatteryd.domain.freshness import Freshness, fresh_until, judge
from evbatteryd.domain.hinting import HintAnswer, label_of
from evbatteryd.domain.ports import Clock, Hints, Log, Tally
from evbatteryd.domain.reading import BatteryState, Origin, Reading
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.sinks.hearing import Heard, HintTopics, Inbox, answer_json, hint_text
from evbatteryd.sinks.payload import SCHEMA, Message, Telling, Topics, newest

SHORTEST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
STEADY_S = 10.0
"""A connection that holds this long is a good one: the next failure is the first again."""
FLAPS = 3
"""After as many connections in a row that were none, the next is announced only when it is a good one."""
KEEPALIVE_S = 30
CONNECT_TIMEOUT_S = 15.0
ACK_TIMEOUT_S = 15.0
"""A broker that acknowledges nothing for this long, up to twice as long, is given up: it may be frozen."""
IN_FLIGHT = 64
"""Messages that wait for their acknowledgement at a time. More gain nothing."""
SLICE = 256
"""Cars that the latest lane takes up at a time."""
LONGEST_EXPIRY_S = 2**32 - 1
HEARERS: Final = 8
"""Hints that are taken at a time: as many as may wait for the store."""
REFUSALS_APART_S = 0.1
"""Real seconds that a hearer rests after a refusal: nonsense is not answered as fast as it is sent."""
LARGEST_HEARD: Final = 16 * 1024
"""Bytes of a packet. A broker keeps larger ones from us (MQTT 5)."""
ANSWER_KEPT_S: Final = 60
"""How long a broker keeps an answer for somebody who is away."""
TURNED_AWAY: Final = 3
"""After as many connections in a row that ended when we subscribed, they are taken for the broker's way to
refuse it."""
LISTEN_AGAIN_S = 3600.0
"""Real seconds after which such a broker is asked again."""

_MENDING: Final = {
    132: 'Set mqtt.protocol to the other of "5" and "3.1.1".',
    133: "Set another mqtt.client_id.",
    134: "Check mqtt.username and mqtt.password.",
    135: "Check mqtt.username and mqtt.password, and what the broker allows this user.",
    138: "Ask whoever runs the broker why this client is banned.",
    140: "The broker wants another way of signing in than by user name and password.",
}
"""By the reason codes of MQTT 5, to which those of 3.1.1 are mapped."""
_UNANSWERED: Final = "the broker closed the connection unanswered: does it speak this mqtt.protocol?"
_CLOSED: Final = {0: "the broker closed the connection", 128: "the connection broke"}
"""What the codes mean that paho gives a connection which ended without one."""

_QUICK_ACK: Final[int | None] = getattr(socket, "TCP_QUICKACK", None)
"""Linux has it. It wears off, so it is set again and again."""

_quiet = logging.getLogger("evbatteryd.sinks.mqtt.aiomqtt")
"""For aiomqtt and paho: everything they log is told by what they raise."""
_quiet.propagate = False
_quiet.setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttOptions:
    """Where the broker is and how to speak to it."""

    host: str
    port: int
    tls: bool = False
    ca_file: Path | None = None
    """The authorities to trust; None: those of the system."""
    client_certificate: Path | None = None
    client_key: Path | None = None
    websocket_path: str | None = None
    """None: plain MQTT."""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    client_id: str = "evbatteryd"
    base_topic: str = "evbatteryd"
    protocol: Literal["5", "3.1.1"] = "5"
    json_state: bool = True
    scalars: bool = True

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


class MqttSink:
    """Implements :class:`evbatteryd.domain.ports.Sink`.

    ``owed_until``: position of the newest reading in the journal at the start if this sink has not taken it
    yet, else 0. Latest states wait until then, for that reading may be of any car. ``estimate``: what is told
    beside what was measured; ``past_the_hour``: of UTC the hours turn by which it goes. ``hints``: who takes
    what wall boxes and automations tell; without, nothing is subscribed to.
    """

    name = "mqtt"

    def __init__(
        self,
        options: MqttOptions,
        fleet: Fleet,
        clock: Clock,
        tally: Tally,
        log: Log,
        *,
        estimate: Estimator,
        past_the_hour: timedelta = timedelta(),
        owed_until: int = 0,
        hints: Hints | None = None,
    ) -> None:
        self._options = options
        self._estimate = partial(told_estimate, estimator=estimate, past_the_hour=past_the_hour)
        self._fleet = fleet
        self._clock = clock
        self._tally = tally
        self._log = log
        self._topics = Topics(options.base_topic)
        self._started_at = clock.now()
        self._session: _Session | None = None
        self._up = asyncio.Event()
        self._complaint = ""
        self._failures = 0
        self._flaps = 0
        self._refusals: set[str] = set()
        self._owed_until = owed_until
        self._owed: set[VehicleId] = set()
        self._acknowledged: set[int] = set()
        self._taken: dict[VehicleId, str | None] = {}
        # Slugs under which scalars of an estimate may be retained, also since an earlier start: of
        # cars of which the policy had learnt something.
        self._estimated: set[str] = set()
        # Positions in the journal: how far we were handed readings, and how far those of a car are erased.
        self._offered = 0
        self._erased: dict[VehicleId, int] = {}
        self._touched: dict[VehicleId, None] = {}
        self._wake = asyncio.Event()
        self._hints = hints
        self._hint_topics = HintTopics(options.base_topic)
        self._inbox = Inbox(fleet.taken_slugs)
        self._turned_away = 0
        self._deaf = ""
        self._hint_said: set[str] = set()

    @property
    def connected(self) -> bool:
        return self._session is not None

    async def run(self) -> None:
        """Keep the connection. Returns never; when cancelled it leaves the connection to :meth:`close`.

        Begin before the first poll: the readings that the cars have now are those taken earlier.
        """
        self._taken = {car.id: car.reading_id for car in self._fleet}
        self._estimated = {car.slug for car in self._fleet if car.learned}
        hearers = HEARERS if self._hints is not None else 0
        await _all_of(self._keep_connected(), *(self._take_hints() for _ in range(hearers)))

    async def publish(self, readings: Sequence[Reading]) -> None:
        """Tell these readings; return when the broker has acknowledged every message of them.

        Waits while there is no connection. Raises SinkError if it broke or the broker refused a message.
        Readings of a car whose owner has withdrawn consent since are passed over, and those of a car that was
        erased since even when its owner has consented anew.
        """
        if not readings:
            return
        cars: dict[VehicleId, list[Reading]] = {}
        for reading in readings:
            cars.setdefault(reading.vehicle_id, []).append(reading)
        self._offered = readings[-1].seq
        for vehicle_id in cars:
            self._note_erasure(vehicle_id)
        # Stays so after a failure: all are offered again.
        self._owed.update(cars)
        session = await self._established()
        chains = iter(cars.values())
        refused: list[str] = []

        async def tell_cars() -> None:
            for chain in chains:
                refused.extend(await self._tell_in_turn(session, chain))

        try:
            await _all_of(*(tell_cars() for _ in range(min(len(cars), IN_FLIGHT))))
        except aiomqtt.MqttError as error:
            raise SinkError("the connection to the MQTT broker broke before all was acknowledged") from error
        if refused:
            raise SinkError(f"the MQTT broker refuses {refused[0]}")
        self._acknowledged.difference_update(reading.seq for reading in readings)
        self._owed.difference_update(cars)
        for vehicle_id in cars:
            self.touch(vehicle_id)
        if 0 < self._owed_until <= readings[-1].seq:
            self._owed_until = 0
            self._touch_all()

    def touch(self, vehicle_id: VehicleId) -> None:
        """Tell this car's availability and state as soon as its readings are told, if they changed."""
        self._note_erasure(vehicle_id)
        self._touched[vehicle_id] = None
        self._wake.set()

    async def close(self, grace: float) -> None:
        """Say what is left to say, then ``offline``, and disconnect: in ``grace`` real seconds or without.

        For after :meth:`run` was cancelled. Whatever is not said politely, the broker says for us: the last
        will.
        """
        session = self._session
        if session is None:
            return
        self._lose(session)
        try:
            async with asyncio.timeout(grace):
                await self._tell_touched(session)
                await self._tell(session, [self._topics.offline()])
                await session.connection.leave()
        except (aiomqtt.MqttError, TimeoutError) as error:
            reason = session.connection.reason or str(error) or "the broker did not answer in time"
            self._log.info("mqtt.left_abruptly", reason=reason)
        finally:
            session.connection.drop()

    # The connection

    async def _keep_connected(self) -> None:
        while True:
            await self._connect_and_serve()
            self._failures += 1
            await asyncio.sleep(_pause(self._failures))

    async def _connect_and_serve(self) -> None:
        """One connection from its beginning to its end; or none, if the broker is away or refuses."""
        try:
            tls = await asyncio.to_thread(_trust, self._options) if self._options.tls else None
            heard = self._hear if self._hints is not None else None
            connection = _Connection(self._options, self._topics.offline(), tls, heard)
            await connection.enter()
        except (aiomqtt.MqttError, OSError) as error:
            self._complain(error)
            return
        session = _Session(connection, self._clock.now())
        try:
            await _all_of(
                connection.watch(),
                connection.watch_acknowledgements(),
                self._serve(session),
                self._listen(),
                self._become_steady(),
            )
        except aiomqtt.MqttError as error:
            if self._complaint != "away":
                reason = connection.reason or _words(error)
                self._log.warning("mqtt.lost", broker=self._options.address, reason=reason)
                self._complaint = "away"
            self._flaps += 1
            self._lose(session)
        finally:
            if self._session is not session:
                connection.drop()

    async def _serve(self, session: _Session) -> None:
        """Make the connection known to both lanes, then serve the latest lane."""
        session.withdrawn = {car.id for car in self._fleet if car.vehicle.withdrawn_at is not None}
        session.vehicles = len(self._fleet) - len(session.withdrawn)
        await self._tell(session, [self._topics.online(), self._info(session)])
        self._session = session
        self._up.set()
        self._tally.connected(True)
        if self._flaps < FLAPS:
            self._say_connected()
        self._touch_all()
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._tell_touched(session)

    async def _become_steady(self) -> None:
        await asyncio.sleep(STEADY_S)
        self._failures = 0
        if self._flaps >= FLAPS:
            self._say_connected()
        self._flaps = 0

    def _say_connected(self) -> None:
        self._complaint = ""
        self._log.info("mqtt.connected", broker=self._options.address, protocol=self._options.protocol)

    async def _established(self) -> _Session:
        while self._session is None:
            await self._up.wait()
        return self._session

    def _lose(self, session: _Session) -> None:
        if self._session is session:
            self._session = None
            self._up.clear()
            self._tally.connected(False)

    def _complain(self, error: aiomqtt.MqttError | OSError) -> None:
        """Say why there is no connection: once for each reason to be refused, once while it is just away."""
        code = error.rc if isinstance(error, aiomqtt.MqttCodeError) else None
        reason = _words(error)
        complaint = f"refused: {reason}" if isinstance(code, ReasonCode) else "away"
        if complaint == self._complaint:
            return
        self._complaint = complaint
        log = self._log.bind(broker=self._options.address, reason=reason)
        if isinstance(code, ReasonCode):
            log.error("mqtt.refused", mend=_MENDING.get(code.value, "Nothing: it is tried again and again."))
        else:
            log.warning("mqtt.unreachable")

    # Listening

    async def _listen(self) -> None:
        """Subscribe to hints. Returns if the broker refuses it: readings are told all the same."""
        if self._hints is None:
            return
        session = await self._established()
        if self._turned_away >= TURNED_AWAY:
            self._say_deaf("the broker closes the connection whenever it is asked")
            await asyncio.sleep(LISTEN_AGAIN_S)
        self._turned_away += 1
        refusal = await session.connection.listen(self._hint_topics.pattern)
        self._turned_away = 0
        if refusal is not None:
            self._say_deaf(str(refusal).lower())
        elif self._deaf:
            self._deaf = ""
            self._log.info("mqtt.hints_heard", topic=self._hint_topics.pattern)

    def _say_deaf(self, reason: str) -> None:
        if reason != self._deaf:
            self._deaf = reason
            self._log.warning(
                "mqtt.hints_refused",
                topic=self._hint_topics.pattern,
                reason=reason,
                mend="Allow this user to subscribe to that topic; until then events of wall boxes and "
                "automations are not heard.",
            )

    def _hear(self, message: paho.MQTTMessage) -> None:
        """Put what arrived where a hearer finds it. Called for every message, however many: does little."""
        level, text = self._hint_topics.level(message.topic), hint_text(bytes(message.payload))
        if message.retain:
            self._tally.hint(label_of(text), "retained")
            self._say_of_hints("mqtt.hint_retained", "Publish events without the retain flag.")
            return
        asked = self._hint_topics.response(getattr(message.properties, "ResponseTopic", None))
        correlation = getattr(message.properties, "CorrelationData", None)
        if level is None or not self._inbox.put(Heard(level, text, asked, correlation)):
            self._tally.hint(label_of(text), "dropped")
            self._say_of_hints("mqtt.hints_dropped", "Look for whoever publishes so many events.")

    def _say_of_hints(self, event: str, mend: str) -> None:
        """Once: how often it happens is counted."""
        if event not in self._hint_said:
            self._hint_said.add(event)
            self._log.warning(event, topic=self._hint_topics.pattern, mend=mend)

    async def _take_hints(self) -> None:
        """Take one after the other, whether there is a connection or not; answer over the present one."""
        if self._hints is None:
            return
        while True:
            heard = await self._inbox.take()
            answer = await self._hints.told(heard.level, heard.text, self.name)
            if self._session is not None:
                with suppress(aiomqtt.MqttError):
                    await self._answer(self._session.connection, heard, answer)
            if answer.outcome.result == "refused":
                await asyncio.sleep(REFUSALS_APART_S)

    async def _answer(self, connection: _Connection, heard: Heard, answer: HintAnswer) -> None:
        """Where everybody may see it, and where a requester asked for it. Raises MqttError."""
        payload = answer_json(answer)
        ways: list[tuple[str | None, bytes | None]] = [
            (self._hint_topics.result(heard.level), None),
            (heard.response_topic, heard.correlation),
        ]
        for topic, correlation in ways:
            if topic is None:
                continue
            await connection.slot()
            told = await connection.answer(topic, payload, correlation)
            if told is not None and told.is_failure:
                self._say_of_hints("mqtt.answer_refused", "Allow this user to publish answers to events.")
            elif told is not None:
                self._tally.published(1)

    # Telling

    async def _tell(self, session: _Session, messages: Iterable[Message]) -> str | None:
        """Send all, in order, and wait for their acknowledgements. What was refused, and why, if anything.

        Each message is made just before it is sent, with nothing in between: what it says is true then, and
        the order in which messages are made is the order in which the broker gets them. Raises MqttError.
        """
        connection = session.connection
        waiting: deque[tuple[str, asyncio.Future[ReasonCode | None]]] = deque()
        refusals: list[str] = []
        taken = 0

        def settle() -> int:
            topic, answer = waiting.popleft()
            refusal = self._refusal(topic, answer.result())
            if refusal is not None:
                refusals.append(refusal)
            return int(refusal is None)

        source = iter(messages)
        try:
            while True:
                await connection.slot()
                message = next(source, None)
                if message is None:
                    connection.free_slot()
                    break
                waiting.append((message.topic, connection.send(message)))
                while waiting and waiting[0][1].done():
                    taken += settle()
            while waiting:
                await waiting[0][1]
                taken += settle()
        finally:
            for _, answer in waiting:
                answer.cancel()
            self._tally.published(taken)
        return refusals[0] if refusals else None

    def _refusal(self, topic: str, answer: ReasonCode | None) -> str | None:
        """Why the broker did not take a message; None if it did. Raises MqttError if it said nothing.

        Said once when the first topic is refused, and once when none is any more.
        """
        if answer is None:
            raise aiomqtt.MqttError("the connection broke")
        if answer.is_failure:
            reason = _code_words(answer)
            if not self._refusals:
                mend = _MENDING.get(answer.value, "Look into the broker's log and limits.")
                self._log.error("mqtt.publish_refused", topic=topic, reason=reason, mend=mend)
            self._refusals.add(topic)
            return f"{topic}: {reason}"
        if topic in self._refusals:
            self._refusals.discard(topic)
            if not self._refusals:
                self._log.info("mqtt.publish_accepted", topic=topic)
        return None

    async def _tell_in_turn(self, session: _Session, chain: Sequence[Reading]) -> list[str]:
        """Tell the readings of one car, each when the one before it is acknowledged. What was refused.

        If the connection breaks, only the last one that was sent can have been taken without our knowing.
        So it is that one which is told again next, and the car's topics do not go back in time.
        """
        for reading in chain:
            if reading.seq in self._acknowledged:
                continue
            refused = await self._tell(session, self._journal(session, reading))
            if refused is not None:
                return [refused]
            self._acknowledged.add(reading.seq)
            self._taken[reading.vehicle_id] = reading.reading_id
        return []

    def _journal(self, session: _Session, reading: Reading) -> Iterator[Message]:
        """One reading under the slug that its car has: begun anew if that changes, ended by a withdrawal."""
        while (slug := self._slug_for(reading)) is not None:
            car = self._fleet[reading.vehicle_id]
            said, telling = self._telling(
                car, reading.state, reading.reading_id, reading.origin, reading.fetched_at < session.opened_at
            )
            session.tell(slug, said)
            for message in self._values(session, telling, measured=True):
                if self._slug_for(reading) != slug:
                    break
                yield message
            else:
                return

    def _slug_for(self, reading: Reading) -> str | None:
        """What a reading is to be told under; None: its car was withdrawn or erased since."""
        car = self._fleet[reading.vehicle_id]
        erased = reading.seq <= self._erased.get(car.id, 0)
        return None if erased or car.vehicle.withdrawn_at is not None else car.slug

    async def _tell_touched(self, session: _Session) -> None:
        """Serve the latest lane until it is empty."""
        while self._touched:
            taken_up = list(islice(self._touched, SLICE))
            for vehicle_id in taken_up:
                del self._touched[vehicle_id]
            try:
                await self._tell(session, self._latest(session, taken_up))
            except BaseException:
                self._touched.update(dict.fromkeys(taken_up))
                raise
        vehicles = len(self._fleet) - len(session.withdrawn)
        if vehicles != session.vehicles:
            session.vehicles = vehicles
            await self._tell(session, [self._info(session)])

    def _latest(self, session: _Session, vehicle_ids: Iterable[VehicleId]) -> Iterator[Message]:
        for vehicle_id in vehicle_ids:
            if vehicle_id not in self._fleet:
                continue
            # The car of each moment: it may change while one of its messages waits to be sent.
            yield from self._forgetting(session, self._fleet[vehicle_id])
            yield from self._availability(session, self._fleet[vehicle_id])
            yield from self._standing(session, self._fleet[vehicle_id])

    def _standing(self, session: _Session, car: Car) -> Iterator[Message]:
        """The values of a car as they stand, or their deletion."""
        if car.vehicle.withdrawn_at is not None:
            session.withdrawn.add(car.id)
            return self._farewell(session, car)
        session.withdrawn.discard(car.id)
        return self._clearing(session, car) if _blank(car) else self._confirmation(session, car)

    def _availability(self, session: _Session, car: Car) -> Iterator[Message]:
        if car.vehicle.withdrawn_at is not None:  # what there is to say then, its farewell says
            return
        freshness = self._fleet.freshness(car, self._clock.now())
        if session.availability.get(car.slug) is not freshness:
            session.availability[car.slug] = freshness
            session.forgotten.discard(car.slug)
            yield self._topics.availability(car.slug, freshness)

    def _confirmation(self, session: _Session, car: Car) -> Iterator[Message]:
        """The state as it stands, if it differs from what this connection was told."""
        last = newest(car.state)
        if last is None or car.reading_id is None or not self._may_confirm(car):
            return
        said, telling = self._telling(
            car, car.state, car.reading_id, last.origin, last.fetched_at < session.opened_at
        )
        if session.said.get(car.slug) == said:
            return
        for message in self._values(session, telling, measured=telling.freshness is Freshness.FRESH):
            # A newer reading has begun to be told: the rest would go back in time.
            if car.id in self._owed or not self._is_still(car):
                return
            yield message
        session.tell(car.slug, said)

    def _values(self, session: _Session, telling: Telling, *, measured: bool) -> Iterator[Message]:
        """The state, the scalars of the estimate, and those that were measured if so wanted."""
        if self._options.json_state:
            yield self._topics.state(telling)
        if not self._options.scalars:
            return
        if measured:
            yield from self._topics.scalars(telling)
        if telling.estimate is not None:
            self._estimated.add(telling.slug)
            session.unestimated.discard(telling.slug)
            yield from self._topics.estimated(telling)
        elif telling.slug in self._estimated and telling.slug not in session.unestimated:
            yield from self._topics.withdrawn_estimate(telling.slug)
            session.unestimated.add(telling.slug)

    def _clearing(self, session: _Session, car: Car) -> Iterator[Message]:
        """Delete whatever values are retained of a car that has none, once a connection."""
        if car.slug in session.cleared:
            return
        session.said.pop(car.slug, None)
        for message in self._topics.cleared(car.slug):
            yield message
            if car.slug in session.said:  # a new reading has begun to be told
                return
        session.cleared.add(car.slug)

    def _farewell(self, session: _Session, car: Car) -> Iterator[Message]:
        """Say that a withdrawn car is gone, if this connection said otherwise, and delete all of it."""
        if session.availability.get(car.slug, Freshness.OFFLINE) is not Freshness.OFFLINE:
            session.availability[car.slug] = Freshness.OFFLINE
            yield self._topics.availability(car.slug, Freshness.OFFLINE)
        if self._fleet[car.id].vehicle.withdrawn_at is not None:
            yield from self._wiping(session, car.slug)

    def _forgetting(self, session: _Session, car: Car) -> Iterator[Message]:
        """Delete everything that is retained under the car's former slugs."""
        for slug in car.vehicle.former_slugs:
            if self._fleet.by_slug(slug) is not None:
                continue
            for message in self._wiping(session, slug):
                yield message
                if self._fleet.by_slug(slug) is not None:  # it is a car's again
                    break

    def _wiping(self, session: _Session, slug: str) -> Iterator[Message]:
        """Delete everything that is retained under a slug, once a connection."""
        if slug in session.forgotten:
            return
        session.said.pop(slug, None)
        session.availability.pop(slug, None)
        for message in self._topics.forgotten(slug):
            yield message
            if slug in session.said:  # a new reading has begun to be told
                return
        session.cleared.add(slug)
        session.forgotten.add(slug)

    def _is_still(self, car: Car) -> bool:
        """Whether the car has the reading, the slug and the consent that it had."""
        now = self._fleet[car.id]
        same = now.reading_id == car.reading_id and now.slug == car.slug
        return same and now.vehicle.withdrawn_at == car.vehicle.withdrawn_at

    def _note_erasure(self, vehicle_id: VehicleId) -> None:
        """If the car was erased: so were its readings, of which some may be in hand."""
        car = self._fleet.get(vehicle_id)
        if car is not None and car.vehicle.withdrawn_at is not None and car.reading_id is None:
            self._erased[vehicle_id] = self._offered

    def _may_confirm(self, car: Car) -> bool:
        """Whether the newest reading of this car is told."""
        return not self._owed_until and self._taken.get(car.id) == car.reading_id

    def _touch_all(self) -> None:
        self._touched = dict.fromkeys(car.id for car in self._fleet)
        self._wake.set()

    def _telling(
        self, car: Car, state: BatteryState, reading_id: str, origin: Origin, replayed: bool
    ) -> tuple[_Said, Telling]:
        now = self._clock.now()
        newest = reading_id == car.reading_id
        trend = car.trend if newest else None
        until = fresh_until(self._fleet.profile(car), state, car.schedule.activity, trend)
        freshness = judge(until, reachable=car.reachable, consented=car.consented, now=now)
        stands = step(car, now) if newest else None
        estimate = None if stands is None else self._estimate(car, now)
        telling = Telling(
            slug=car.slug,
            state=state,
            reading_id=reading_id,
            origin=origin,
            freshness=freshness,
            replayed=replayed,
            published_at=now,
            expiry=self._expiry(until if freshness is Freshness.FRESH else None, now),
            estimate=estimate,
            estimate_expiry=self._expiry(None if estimate is None else estimate.until, now),
        )
        return (reading_id, state, until, freshness, None if estimate is None else stands), telling

    def _expiry(self, until: datetime | None, now: datetime) -> int:
        """Whole real seconds for which the broker keeps what holds until then: never longer, at least 1."""
        if until is None:
            return 1
        return min(max(math.floor(self._clock.real(until - now)), 1), LONGEST_EXPIRY_S)

    def _info(self, session: _Session) -> Message:
        return self._topics.info(version=__version__, vehicles=session.vehicles, started_at=self._started_at)


def _blank(car: Car) -> bool:
    """Whether a car has no value and a broker may retain one all the same: of before the car was erased.

    There is none if the car was never asked.
    """
    return car.reading_id is None and car.schedule.polled_at is not None


_Said = tuple[str, BatteryState, datetime | None, Freshness, Step | None]
"""What a state message rests on: told again, it would say nothing new."""


@dataclass(slots=True, eq=False)
class _Session:
    """One connection, and what it was told so far; by slug, for that is what topics have."""

    connection: _Connection
    opened_at: datetime
    availability: dict[str, Freshness] = field(default_factory=dict)
    said: dict[str, _Said] = field(default_factory=dict)
    cleared: set[str] = field(default_factory=set)
    """Slugs whose values were deleted, and not told since."""
    forgotten: set[str] = field(default_factory=set)
    """Slugs of which everything was deleted, and nothing told since."""
    unestimated: set[str] = field(default_factory=set)
    """Slugs whose scalars of an estimate were deleted, and not told since."""
    withdrawn: set[VehicleId] = field(default_factory=set)
    vehicles: int = 0

    def tell(self, slug: str, said: _Said) -> None:
        """Values are told under this slug."""
        self.said[slug] = said
        self.cleared.discard(slug)
        self.forgotten.discard(slug)


class _Connection(aiomqtt.Client):
    """One connection to the broker, used once.

    Fresh for each connection, because paho delivers what an earlier one left unacknowledged after the news.
    aiomqtt's own ``publish`` takes a refusal of the broker for its acknowledgement, and lets every message
    of a broken connection wait for its full timeout; :meth:`send` gives the broker's answer, or None as soon
    as the connection is dropped.
    """

    def __init__(
        self,
        options: MqttOptions,
        will: Message,
        tls: ssl.SSLContext | None,
        heard: Callable[[paho.MQTTMessage], None] | None = None,
    ) -> None:
        """``heard``: is handed every message that arrives, and must not raise. None: none are wanted."""
        fifth = options.protocol == "5"
        super().__init__(
            options.host,
            options.port,
            username=options.username,
            password=options.password,
            logger=_quiet,
            identifier=options.client_id,
            protocol=aiomqtt.ProtocolVersion.V5 if fifth else aiomqtt.ProtocolVersion.V311,
            will=aiomqtt.Will(will.topic, will.payload, qos=1, retain=True),
            clean_session=None if fifth else True,
            clean_start=True if fifth else paho.MQTT_CLEAN_START_FIRST_ONLY,
            transport="tcp" if options.websocket_path is None else "websockets",
            websocket_path=options.websocket_path,
            timeout=CONNECT_TIMEOUT_S,
            keepalive=KEEPALIVE_S,
            tls_context=tls,
            # A reading is several small packets: Nagle's algorithm would hold back all but the first.
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
            properties=_limits() if fifth else None,
            # We count what is in flight ourselves: paho cannot learn the broker's limit once it is connected.
            max_inflight_messages=0,
        )
        self._fifth = fifth
        self._heard = heard
        self._acknowledgements: dict[int, asyncio.Future[ReasonCode | None]] = {}
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._dropped = False
        self._farewell: ReasonCode | None = None

    async def enter(self) -> None:
        """Connect. Raises MqttError. Leaves no socket behind if it fails or is cancelled."""
        try:
            try:
                await self.__aenter__()
            finally:
                _heed_cancellation()
        except BaseException:
            self.drop()
            raise

    async def watch(self) -> None:
        """Until the connection is lost: then raises MqttError."""
        async for _ in self.messages:
            pass

    async def watch_acknowledgements(self) -> None:
        """Raises MqttError when the broker has stopped answering. Pings alone would notice it much later."""
        oldest = None
        while True:
            await asyncio.sleep(ACK_TIMEOUT_S)
            if oldest is not None and not oldest.done():
                raise aiomqtt.MqttError("the broker acknowledges nothing any more")
            waiting = (answer for answer in self._acknowledgements.values() if not answer.done())
            oldest = next(waiting, None)

    async def slot(self) -> None:
        """Wait until one more message may be in flight."""
        await self._slots.acquire()

    def free_slot(self) -> None:
        """Give back a slot that was not needed."""
        self._slots.release()

    def send(self, message: Message) -> asyncio.Future[ReasonCode | None]:
        """Put one message on the wire, in the slot that was waited for. The answer comes later.

        Raises MqttError if the connection is gone.
        """
        properties = _properties(message.expiry, message.json) if self._fifth else None
        return self._publish(message.topic, message.payload, properties, retain=True)

    def answer(
        self, topic: str, payload: bytes, correlation: bytes | None
    ) -> asyncio.Future[ReasonCode | None]:
        """Like :meth:`send`, but nothing to be retained."""
        properties = _answer_properties(correlation) if self._fifth else None
        return self._publish(topic, payload, properties, retain=False)

    def _publish(
        self, topic: str, payload: bytes, properties: Properties | None, *, retain: bool
    ) -> asyncio.Future[ReasonCode | None]:
        sent = self._client.publish(topic, payload, 1, retain, properties)
        if sent.rc != paho.MQTT_ERR_SUCCESS:
            raise aiomqtt.MqttCodeError(sent.rc)
        acknowledgement: asyncio.Future[ReasonCode | None] = self._loop.create_future()
        self._acknowledgements[sent.mid] = acknowledgement
        return acknowledgement

    async def listen(self, pattern: str) -> ReasonCode | None:
        """Subscribe to what is published from now on; why the broker refused it, if it did.

        Raises MqttError if the connection is gone. Waits for as long as the broker says nothing.
        """
        if self._fifth:
            # As published: or what is retained from now on would look as if it were not.
            options = SubscribeOptions(
                qos=1, retainAsPublished=True, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND
            )
            codes = await self.subscribe(pattern, options=options, timeout=math.inf)
        else:
            codes = await self.subscribe(pattern, qos=1, timeout=math.inf)
        return next((code for code in codes if isinstance(code, ReasonCode) and code.is_failure), None)

    async def leave(self) -> None:
        """Disconnect politely: the broker forgets our last will."""
        await self.__aexit__(None, None, None)

    def drop(self) -> None:
        """Close the socket, whatever state it is in, and answer all who still wait. May be repeated."""
        self._dropped = True
        self._client._sock_close()  # disconnect() would wait for its turn in paho's queue
        for acknowledgement in self._acknowledgements.values():
            if not acknowledgement.done():
                acknowledgement.set_result(None)
            self._slots.release()
        self._acknowledgements.clear()

    @property
    def reason(self) -> str:
        """Why the connection ended, in words; empty if the socket told nothing."""
        if self._farewell is not None:
            return _code_words(self._farewell)
        error = self._failure()
        return "" if error is None else _words(error)

    def _failure(self) -> BaseException | None:
        ended = self._disconnected
        return ended.exception() if ended.done() and not ended.cancelled() else None

    # What aiomqtt lets paho call

    def _on_connect(
        self,
        client: paho.Client,
        userdata: Any,
        flags: paho.ConnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        most = getattr(properties, "ReceiveMaximum", IN_FLIGHT)
        self._slots = asyncio.Semaphore(min(most, IN_FLIGHT))
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_disconnect(
        self,
        client: paho.Client,
        userdata: Any,
        flags: paho.DisconnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        # aiomqtt would let a connection that is closed instead of answered run into its timeout.
        if not self._connected.done():
            self._connected.set_exception(aiomqtt.MqttError(_UNANSWERED))
        self._farewell = reason_code
        super()._on_disconnect(client, userdata, flags, reason_code, properties)
        # Looked at, so that nobody misses it: aiomqtt throws the future away if the connection ended at once.
        self._failure()

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        # Not into aiomqtt's queue: whoever is handed it bounds what waits, and counts what does not.
        if self._heard is not None:
            self._heard(message)

    def _on_publish(
        self, client: paho.Client, userdata: Any, mid: int, reason_code: ReasonCode, properties: Properties
    ) -> None:
        acknowledgement = self._acknowledgements.pop(mid, None)
        if acknowledgement is None:
            return
        if self._acknowledgements:
            self._expect_more()
        self._slots.release()
        if not acknowledgement.done():
            acknowledgement.set_result(reason_code)

    def _expect_more(self) -> None:
        """Have the kernel acknowledge at once what it gets, or the broker's Nagle holds back the rest."""
        sock = self._client.socket()
        if _QUICK_ACK is not None and isinstance(sock, socket.socket):
            sock.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)

    def _on_socket_open(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        # Called in the thread that connects, which goes on when we are cancelled.
        if self._dropped:
            sock.close()
        else:
            super()._on_socket_open(client, userdata, sock)

    def _on_socket_register_write(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        if not self._dropped:
            self._loop.call_soon_threadsafe(self._await_writable, sock)

    def _await_writable(self, sock: Any) -> None:
        # By now the socket may be closed, and its number be that of another one: aiomqtt does not look.
        if sock.fileno() >= 0:
            self._loop.add_writer(sock.fileno(), self._write)

    def _write(self) -> None:
        try:
            self._client.loop_write()
        except Exception as error:
            if not self._disconnected.done():
                self._disconnected.set_exception(error)


def _heed_cancellation() -> None:
    """Raise the CancelledError that the ``asyncio.wait_for`` of Python 3.11 swallows if it ends just then."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _all_of(*lives: Coroutine[Any, Any, None]) -> None:
    """Run these until one raises, end the others, and raise that.

    A task group would do, but that of Python 3.11 loses a cancellation that comes at the same moment.
    """
    tasks = [asyncio.create_task(life) for life in lives]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Packed(Properties):
    """Properties that are written out once: paho takes longer for that than for sending them."""

    @cached_property
    def _packed(self) -> bytes:
        return bytes(super().pack())  # type: ignore[no-untyped-call]

    def pack(self) -> bytes:
        return self._packed


@lru_cache(maxsize=1024)
def _properties(expiry: int | None, json: bool) -> Properties | None:
    """What MQTT 5 says beside a message."""
    if expiry is None and not json:
        return None
    properties = _Packed(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if expiry is not None:
        properties.MessageExpiryInterval = expiry
    if json:
        properties.ContentType = "application/json"
        properties.UserProperty = ("schema", str(SCHEMA))
    return properties


def _answer_properties(correlation: bytes | None) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.MessageExpiryInterval = ANSWER_KEPT_S
    properties.ContentType = "application/json"
    if correlation is not None:
        properties.CorrelationData = correlation
    return properties


def _limits() -> Properties:
    """What a broker may send us."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.MaximumPacketSize = LARGEST_HEARD
    return properties


def _trust(options: MqttOptions) -> ssl.SSLContext:
    """Read anew for each connection: certificates are renewed while we run. Raises OSError."""
    context = ssl.create_default_context(cafile=options.ca_file)
    if options.client_certificate is not None:
        context.load_cert_chain(options.client_certificate, options.client_key)
    return context


def _pause(failures: int) -> float:
    """Real seconds before the next attempt: doubled each time, and no two daemons in step."""
    longest = min(SHORTEST_PAUSE_S * 2 ** min(failures - 1, 16), LONGEST_PAUSE_S)
    return random.uniform(longest / 2, longest)


def _code_words(code: ReasonCode) -> str:
    return _CLOSED.get(code.value) or str(code).lower()


def _words(error: BaseException) -> str:
    """What went wrong, without codes and class names."""
    if isinstance(error, aiomqtt.MqttCodeError):
        return _code_words(error.rc) if isinstance(error.rc, ReasonCode) else _CLOSED[128]
    # aiomqtt turns the error of a socket into one of its own that holds nothing but its text.
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the broker's certificate is not trusted: {cause.verify_message} (see mqtt.ca_file)"
    if isinstance(cause, OSError):
        return (cause.strerror or str(cause) or str(error)).lower()
    return str(cause)
