"""Readings on an MQTT broker.

Two lanes share one connection. The *journal lane* tells every reading, in order per car, and takes it for
told when the broker has acknowledged its messages. A reading that is superseded by then is told to whoever
listens and retained for nobody. The *latest lane* tells what changed without a reading (a confirmation,
freshness, consent, the next poll, what Home Assistant discovers): a set of cars, so that it is bounded by the
fleet and only the newest counts. It never overtakes the journal lane: while a reading of a car is owed, that
car's state waits.

Nothing is told twice without need, not after a restart of ours either: what the broker retains is known
(:mod:`evbatteryd.sinks.retained`) as long as it proves that it forgot nothing. One that did is told
everything again, and what is to be gone is deleted again.

A car that is withdrawn says ``offline`` once to whoever listens, then nothing of it stays retained.

A car may be renamed, withdrawn or erased at any moment, also between two messages that belong together. So
each message is made just before it is sent, and none is made for a slug that the car has no more.

Retained values expire (MQTT 5) when they stop being fresh, and so does the word that they are, so that a
broker that outlives us shows nothing old as if it were new. A value that is not fresh when it is told is kept
for one second: whoever listens hears it, with ``freshness`` beside it, and whoever comes later finds the
availability alone. For the same reason a confirmation repeats the scalar topics, which carry no such mark,
only while the value is fresh. An estimate has an end of its own: its scalars are told, and kept, until then,
whatever the measured value is.

Hints and commands are listened to beside both lanes (:mod:`evbatteryd.sinks.hearing`).
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any, Final

import aiomqtt
import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from evbatteryd import __version__
from evbatteryd.domain.errors import SinkError
from evbatteryd.domain.estimates import Estimator, Step, step, told_estimate
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
from evbatteryd.domain.ports import Clock, Commands, Hints, Log, Manifest, Tally
from evbatteryd.domain.profile import UNKNOWN
from evbatteryd.domain.reading import BatteryState, Origin, Reading
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.sinks.blame import STRIKES, Blame, Suspect
from evbatteryd.sinks.connection import (
    IN_FLIGHT,
    MENDING,
    Connection,
    MqttOptions,
    Silent,
    code_words,
    mending,
    trust,
    words_of,
)
from evbatteryd.sinks.discovery import Device
from evbatteryd.sinks.hearing import HEARERS, ControlTopics, Ears
from evbatteryd.sinks.payload import (
    AVAILABILITY,
    BRIDGE,
    BRIDGE_LEAVES,
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
from evbatteryd.sinks.retained import UNKNOWN_DIGEST, Retained, digest

SHORTEST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
STEADY_S = 10.0
"""A connection that holds this long is a good one: the next failure is the first again."""
FLAPS = 3
"""After as many connections in a row that were none, the next is announced only when it is a good one."""
CAREFUL: Final = 2
"""After as many connections in a row that did not last, one message is in flight at a time: so it shows which
one they end upon."""
POISONED: Final = 2
"""After as many, the broker is to drop what it has kept for us meanwhile."""
SLICE = 256
"""Cars that the latest lane takes up at a time."""
LONGEST_EXPIRY_S = 2**32 - 1
TURNED_AWAY: Final = 3
"""After as many connections in a row that ended when we subscribed, they are taken for the broker's way to
refuse it."""
SUBSCRIPTION: Final = "subscription"
"""What is sent to the broker beside messages, as far as it may be the cause of an end."""
PACKET_TOO_LARGE: Final = 149
"""Reason code of MQTT 5."""
HANGS_UP_WITHIN_S: Final = 2.0
"""Real seconds after a refusal in which a broker hangs up because of it, or not at all."""
LISTEN_AGAIN_S = 3600.0
"""Real seconds after which such a broker is asked again."""
MARK_EVERY_S = 5.0
"""Real seconds between two marks while something is told: what is told in them is told again if we lose the
connection."""
SUBSCRIBED_WITHIN_S = 5.0
"""Real seconds that a broker has to take the subscription to the mark, or nothing is known of its memory."""
MARK_AWAITED_S = 0.5
"""Real seconds that it has then to show the mark."""
EMPTIED_S = 2.0
"""Real seconds after the mark was emptied, last, before all is told anew."""
SHUNNED_TRIED_EVERY_S = 15.0
ELSEWHERE: Final = "elsewhere"
"""What stands or falls with the topics of an earlier configuration."""
_UNFILLED: Final = frozenset({AVAILABILITY, POLLING})
"""Topics of a car that has no value."""


class MqttSink:
    """Implements :class:`evbatteryd.domain.ports.Sink`.

    ``owes``: whether readings of a car are not told yet. ``estimate``: what is told beside what was measured;
    ``past_the_hour``: of UTC the hours turn by which it goes. ``share_of``: what a car may spend; None: its
    application is not configured.
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
        owes: Callable[[VehicleId], bool],
        manifest: Manifest,
        estimate: Estimator,
        share_of: Callable[[Car], Share | None],
        hints: Hints,
        commands: Commands,
        past_the_hour: timedelta = timedelta(),
    ) -> None:
        self._options = options
        self._owes = owes
        self._estimate = partial(told_estimate, estimator=estimate, past_the_hour=past_the_hour)
        self._share_of = share_of
        self._commands = commands
        self._fleet = fleet
        self._clock = clock
        self._tally = tally
        self._log = log
        self._topics = Topics(options.base_topic, options.discovery_prefix)
        self._leaves = _leaves(options)
        self._retained = Retained(self._topics, manifest, log, sink=self.name)
        self._blame = Blame()
        self._started_at = clock.now()
        self._session: _Session | None = None
        self._connections = 0
        self._up = asyncio.Event()
        self._complaint = ""
        self._failures = 0
        self._flaps = 0
        self._refusals: set[str] = set()
        # Positions in the journal: how far we were handed readings, and how far those of a car are erased.
        self._offered = 0
        self._erased: dict[VehicleId, int] = {}
        self._touched: dict[VehicleId, None] = {}
        self._wake = asyncio.Event()
        self._ears = Ears(
            ControlTopics(options.base_topic, options.discovery_prefix),
            fleet.taken_slugs,
            hints,
            commands,
            tally,
            log,
            origin=self.name,
            established=self._established_connection,
        )
        self._turned_away = 0
        self._deaf = ""
        self._other_said = False
        self._forgetful_said = False

    @property
    def connected(self) -> bool:
        return self._session is not None and not self._session.connection.ended

    @property
    def connection(self) -> int:
        return self._connections

    async def open(self) -> None:
        """Take up what was published by earlier starts: before :meth:`run`. Raises StoreError."""
        await self._retained.open()
        if self._retained.empty:
            for car in self._fleet:
                for slug in car.vehicle.former_slugs:
                    self._retained.assume(slug, self._leaves)
                if car.schedule.polled_at is not None:
                    self._retained.assume(car.slug, self._leaves)
        self._touch_all()

    async def run(self) -> None:
        """Keep the connection. Returns never; when cancelled it leaves the connection to :meth:`close`."""
        await _all_of(self._keep_connected(), *(self._ears.take() for _ in range(HEARERS)))

    async def reachable(self) -> None:
        await self._established()

    async def settle(self) -> bool:
        """A broker that dies may take with it what it has acknowledged and not yet handed on. By the time
        that it answers something that was sent later, it has."""
        session = self._session
        if session is None:
            return False
        try:
            await self._leave_mark(session)
        except aiomqtt.MqttError:
            return False
        return self._session is session

    async def publish(self, readings: Sequence[Reading], over: int | None = None) -> None:
        """Tell these readings of one car; return when the broker has acknowledged every message of them.

        Waits while there is no connection. Raises SinkError if it broke or the broker refused a message.
        Readings of a car whose owner has withdrawn consent since are passed over, and those of a car that was
        erased since even when its owner has consented anew.

        Each is told when the one before it is acknowledged. If the connection breaks, only the last one that
        was sent can have been taken without our knowing.
        """
        self._offered = max(self._offered, readings[-1].seq)
        self._note_erasure(readings[0].vehicle_id)
        session = await self._established()
        if over is not None and over != self._connections:
            raise SinkError("the connection to the MQTT broker is another one by now")
        taken = 0
        try:
            for reading in readings:
                refused = await self._tell_reading(session, reading)
                if refused is not None:
                    raise SinkError(f"the MQTT broker refuses {refused}", taken=taken)
                taken = reading.seq
        except aiomqtt.MqttError as error:
            words = "the connection to the MQTT broker broke before all was acknowledged"
            raise SinkError(words, taken=taken) from error

    def touch(self, vehicle_id: VehicleId) -> None:
        """Tell how this car stands as soon as its readings are told, if that changed."""
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
                await self._leave_mark(session)
                await self._tell(session, [self._topics.offline()])
                await session.connection.leave()
        except (aiomqtt.MqttError, TimeoutError) as error:
            reason = session.connection.reason or str(error) or "the broker did not answer in time"
            self._log.info("mqtt.left_abruptly", reason=reason)
        else:
            await self._retained.keep()
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
        shown = _Shown()
        try:
            tls = await asyncio.to_thread(trust, self._options) if self._options.tls else None
            connection = Connection(
                self._present_options(),
                self._topics.offline(),
                tls,
                lambda message: self._hear(shown, message),
                careful=self._flaps >= CAREFUL,
            )
            await connection.enter()
        except (aiomqtt.MqttError, OSError) as error:
            self._complain(error)
            return
        session = _Session(connection, shown, self._clock.now())
        try:
            await _all_of(
                connection.watch(),
                connection.watch_acknowledgements(),
                self._serve(session),
                self._listen(),
                self._keep_marked(session),
                self._make_good(session),
                self._empty_elsewhere(session),
                self._try_shunned(session),
                self._become_steady(session),
            )
        except aiomqtt.MqttError as error:
            if self._complaint != "away":
                self._log.warning(
                    "mqtt.lost",
                    broker=self._options.address,
                    reason=connection.reason or words_of(error),
                    mend=connection.mend or "Nothing: it is taken up again.",
                )
                self._complaint = "away"
            self._flaps += 1
            self._lose(session)
            self._look_for_a_cause(session, silent=isinstance(error, Silent))
        finally:
            if self._session is not session:
                connection.drop()

    def _present_options(self) -> MqttOptions:
        """A message that was kept for us may be what ends each connection: then none is wanted."""
        if self._flaps < POISONED or not self._options.session_expiry:
            return self._options
        if self._flaps == POISONED:
            self._log.warning("mqtt.session_dropped", reason=f"{POISONED} connections in a row did not last")
        return replace(self._options, session_expiry=0)

    async def _serve(self, session: _Session) -> None:
        """Make the connection known to both lanes, then serve the latest lane."""
        session.withdrawn = {car.id for car in self._fleet if car.vehicle.withdrawn_at is not None}
        session.vehicles = len(self._fleet) - len(session.withdrawn)
        if not await self._is_remembered(session):
            self._retained.forget()
            self._touch_all()
        await self._retained.prepare({BRIDGE: BRIDGE_LEAVES})
        if self._options.protocol == "3.1.1":
            # There nothing has expired meanwhile: no car may look fresh beside the word that we are here.
            await self._tell_ended(session)
        await self._tell(session, [self._topics.online(), self._info(session)])
        self._session = session
        self._connections += 1
        self._up.set()
        self._tally.connected(True)
        if self._flaps < FLAPS:
            self._say_connected(session)
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._tell_touched(session)

    async def _is_remembered(self, session: _Session) -> bool:
        """Whether the broker shows us the mark that it was left with."""
        if self._retained.mark is None:
            return False
        try:
            async with asyncio.timeout(SUBSCRIBED_WITHIN_S):
                if not await self._watch_mark(session):
                    return False
        except TimeoutError:
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(MARK_AWAITED_S):
                await session.shown.arrived.wait()
        return self._retained.recognises(session.shown.mark)

    async def _watch_mark(self, session: _Session) -> bool:
        """Whether we are told of the mark, and of whoever changes it."""
        watched = [self._topics.mark_topic]
        session.watches_mark = await self._subscribe(session, watched, retained=True)
        return session.watches_mark

    async def _become_steady(self, session: _Session) -> None:
        await asyncio.sleep(STEADY_S)
        session.connection.trust()
        self._failures = 0
        if self._flaps >= FLAPS:
            self._say_connected(session)
        self._flaps = 0

    def _say_connected(self, session: _Session) -> None:
        self._complaint = ""
        self._log.info("mqtt.connected", broker=self._options.address, protocol=self._options.protocol)
        if not session.connection.retains and not self._forgetful_said:
            self._forgetful_said = True
            self._log.warning("mqtt.retains_nothing", broker=self._options.address, mend=MENDING[154])

    async def _established(self) -> _Session:
        while (session := self._session) is None or session.connection.ended:
            self._up.clear()
            await self._up.wait()
        return session

    async def _established_connection(self) -> Connection:
        return (await self._established()).connection

    def _lose(self, session: _Session) -> None:
        if self._session is session:
            self._session = None
            self._up.clear()
            self._tally.connected(False)

    def _look_for_a_cause(self, session: _Session, *, silent: bool) -> None:
        """The connection broke: what is not known to have arrived is told again, and who may have caused it
        is left out. ``silent``: the broker just stopped answering."""
        for slug in self._retained.lost():
            self._touch_slug(slug)
        suspects = session.suspects(answers_first=self._options.protocol == "3.1.1")
        if not silent and any(one.part == SUBSCRIPTION for one in suspects):
            self._turned_away += 1
        if silent or not session.connection.careful:
            # With many in flight, what the broker said last may be lost with the connection.
            suspects = [one for one in suspects if one.strikes == 1]
        # The first messages of every connection prove nothing.
        bridge = f"{self._topics.base}/{BRIDGE}/"
        guilty = self._blame.ended(
            [
                one
                for one in suspects
                if one.strikes == 1 or not (one.part == SUBSCRIPTION or one.part.startswith(bridge))
            ]
        )
        if guilty is not None and not self._refusals:
            self._log.error(
                "mqtt.publish_refused",
                topic=guilty.topic,
                reason="the broker closes the connection whenever it is told this",
                mend=MENDING[135],
            )

    def _complain(self, error: aiomqtt.MqttError | OSError) -> None:
        """Say why there is no connection: once for each reason to be refused, once while it is just away."""
        code = error.rc if isinstance(error, aiomqtt.MqttCodeError) else None
        refused, reason = isinstance(code, ReasonCode), words_of(error)
        complaint = f"refused: {reason}" if refused else "away"
        if complaint == self._complaint:
            return
        self._complaint = complaint
        log = self._log.bind(broker=self._options.address, reason=reason, mend=mending(error))
        if refused:
            log.error("mqtt.refused")
        else:
            log.warning("mqtt.unreachable")

    # Listening

    async def _listen(self) -> None:
        """Subscribe to hints and commands. If the broker refuses that, readings are told all the same."""
        session = await self._established()
        if self._turned_away >= TURNED_AWAY:
            self._say_deaf("the broker closes the connection whenever it is asked")
            await asyncio.sleep(LISTEN_AGAIN_S)
            self._turned_away = TURNED_AWAY - 1
        watches = session.watches_mark or await self._watch_mark(session)
        hears = await self._subscribe(session, self._ears.topics.patterns)
        if watches and hears and self._deaf:
            self._deaf = ""
            self._log.info("mqtt.heard", topic=f"{self._topics.base}/+/+/set")

    async def _subscribe(self, session: _Session, patterns: Sequence[str], *, retained: bool = False) -> bool:
        """Whether the broker took all of them. Raises MqttError."""
        if self._turned_away >= TURNED_AWAY:
            return False
        answer: asyncio.Future[ReasonCode | None] = asyncio.get_running_loop().create_future()
        session.sent(SUBSCRIPTION, patterns[0], answer)
        refused = await session.connection.listen(patterns, retained=retained)
        answer.set_result(ReasonCode(PacketTypes.SUBACK, identifier=0))
        self._turned_away = 0
        if refused:
            self._say_deaf(code_words(next(iter(refused.values()))))
        return not refused

    def _say_deaf(self, reason: str) -> None:
        if reason != self._deaf:
            self._deaf = reason
            self._log.warning(
                "mqtt.subscription_refused",
                topic=f"{self._topics.base}/#",
                reason=reason,
                mend="Allow this user to subscribe to that topic; until then neither events nor commands are "
                "heard, and each connection begins with telling everything anew.",
            )

    def _hear(self, shown: _Shown, message: paho.MQTTMessage) -> None:
        if message.topic != self._topics.mark_topic:
            self._ears.hear(message)
        elif message.retain:
            shown.mark = bytes(message.payload).decode("utf-8", "replace")
            shown.arrived.set()
        else:
            self._see_mark(bytes(message.payload).decode("utf-8", "replace"))

    def _see_mark(self, mark: str) -> None:
        """Somebody published it: we did, or who empties topics, or another evbatteryd."""
        if not mark:
            if self._session is not None:
                self._session.emptied_at = asyncio.get_running_loop().time()
                self._session.to_make_good.set()
        elif not self._retained.is_ours(mark) and not self._other_said:
            self._other_said = True
            self._log.error(
                "mqtt.not_alone",
                topic=self._topics.mark_topic,
                mend="Another evbatteryd publishes below the same mqtt.base_topic: give each its own.",
            )

    async def _make_good(self, session: _Session) -> None:
        """Tell again what somebody else overwrote: that we are here; all, if they emptied the mark."""
        while True:
            await session.to_make_good.wait()
            session.to_make_good.clear()
            if session.emptied_at is not None:
                # Whoever empties topics may not be through yet.
                emptied_at = session.emptied_at
                await asyncio.sleep(max(emptied_at + EMPTIED_S - asyncio.get_running_loop().time(), 0))
                if session.to_make_good.is_set():
                    continue
                session.emptied_at = None
                self._log.warning("mqtt.emptied", topic=self._topics.mark_topic, action="all is told anew")
                self._retained.forget()
                self._touch_all()
            await self._tell(session, [self._topics.online(), self._info(session)])

    # What the broker can be trusted to have

    async def _keep_marked(self, session: _Session) -> None:
        """Leave a mark now and then while things are told."""
        await self._established()
        while True:
            await self._retained.unmarked()
            await asyncio.sleep(MARK_EVERY_S)
            await self._leave_mark(session)

    async def _leave_mark(self, session: _Session) -> None:
        mark, tellings = self._retained.next_mark()
        if await self._tell(session, [self._topics.mark(mark)]) is None:
            self._retained.marked(mark, tellings)
        self._note_taken(session)

    async def _empty_elsewhere(self, session: _Session) -> None:
        """Delete what an earlier configuration, or a car that is unknown by now, left behind."""
        await self._established()
        for place, slug, leaves in self._retained.elsewhere():
            messages = Topics.at(place).emptied(slug, leaves, part=ELSEWHERE)
            if await self._tell(session, messages) is None:
                self._retained.left_elsewhere(place, slug)
        await self._retained.settle_elsewhere()
        for slug in self._retained.slugs:
            if slug != BRIDGE and self._is_nobodys(slug):
                await self._tell(session, self._emptying(slug, frozenset()))
        await self._retained.settle()

    def _is_nobodys(self, slug: str) -> bool:
        """Whether no car has it or ever had: what those left, the latest lane deletes."""
        return self._fleet.by_slug(slug) is None and self._fleet.by_former_slug(slug) is None

    async def _try_shunned(self, session: _Session) -> None:
        """Give what was left out another chance when its time has come."""
        while True:
            await asyncio.sleep(SHUNNED_TRIED_EVERY_S)
            for part in self._blame.due():
                if part.startswith(f"{self._topics.base}/{BRIDGE}/"):
                    session.to_make_good.set()
                elif part == ELSEWHERE:
                    await self._empty_elsewhere(session)
                elif part == DISCOVERY:  # one car is enough: if it is taken, all are told
                    known = (car.slug for car in self._fleet if car.vehicle.withdrawn_at is None)
                    self._touch_slug(next(known, ""))
                else:
                    self._touch_slug(part)

    # Telling

    async def _tell(
        self, session: _Session, messages: Iterable[Message], lane: asyncio.Semaphore | None = None
    ) -> str | None:
        """Send all, in order, and wait for their acknowledgements. What was refused, and why, if anything.
        ``lane``: bounds what is in flight beside the connection's own limit.

        Each message is made just before it is sent, with nothing in between: what it says is true then, and
        the order in which messages are made is the order in which the broker gets them. Raises MqttError.
        """
        connection = session.connection
        waiting: deque[tuple[Message, asyncio.Future[ReasonCode | None]]] = deque()
        refusals: list[str] = []
        taken = 0

        def settle() -> int:
            message, answer = waiting.popleft()
            refusal = self._refusal(message, answer.result())
            if refusal is not None:
                refusals.append(refusal)
            return int(refusal is None)

        source = iter(messages)
        try:
            while True:
                if lane is not None:
                    await lane.acquire()
                try:
                    await connection.slot()
                except BaseException:
                    _release(lane)
                    raise
                message = next(source, None)
                if message is None:
                    connection.free_slot()
                    _release(lane)
                    break
                part = _part_of(message)
                if self._blame.shuns(part):
                    connection.free_slot()
                    _release(lane)
                    self._doubt(message)
                    refusals.append(f"{message.topic}: it closes the connection whenever it is told this")
                    continue
                if message.slug and message.retain and part != ELSEWHERE:
                    # Also if it cannot be sent: it was taken for told.
                    self._retained.telling(message.slug)
                try:
                    answer = connection.send(message)
                except BaseException:
                    _release(lane)
                    raise
                if lane is not None:
                    answer.add_done_callback(lambda _: _release(lane))
                session.sent(part, message.topic, answer)
                self._note_taken(session)
                waiting.append((message, answer))
                while waiting and waiting[0][1].done():
                    taken += settle()
            while waiting:
                await waiting[0][1]
                taken += settle()
        finally:
            self._tally.published(taken)
        return refusals[0] if refusals else None

    def _refusal(self, message: Message, answer: ReasonCode | None) -> str | None:
        """Why the broker did not take a message; None if it did. Raises MqttError if it said nothing.

        Said once when the first topic is refused, and once when none is any more.
        """
        topic = message.topic
        if answer is None:
            raise aiomqtt.MqttError("the connection broke")
        if answer.is_failure:
            reason = code_words(answer)
            if not self._refusals:
                mend = MENDING.get(answer.value, "Look into the broker's log and limits.")
                self._log.error("mqtt.publish_refused", topic=topic, reason=reason, mend=mend)
            self._refusals.add(topic)
            self._doubt(message)
            return f"{topic}: {reason}"
        if topic in self._refusals:
            self._refusals.discard(topic)
            if not self._refusals:
                self._log.info("mqtt.publish_accepted", topic=topic)
        return None

    def _note_taken(self, session: _Session) -> None:
        """What was left out and is taken again is left out no more."""
        for part, topic in session.taken():
            if self._blame.taken(part, topic):
                if part == DISCOVERY:
                    self._touch_all()
                if not self._refusals:
                    self._log.info("mqtt.publish_accepted", topic=topic)

    def _doubt(self, message: Message) -> None:
        """The topic holds something else than what was to be told."""
        part = _part_of(message)
        if not message.slug or part == ELSEWHERE:
            return
        told = self._retained[message.slug]
        if part != DISCOVERY:
            told.doubt()
        elif message.payload:
            told.discovery = UNKNOWN_DIGEST
        else:
            told.emptied = not told.gone

    async def _tell_reading(self, session: _Session, reading: Reading) -> str | None:
        """Tell one reading under the slug that its car has. What was refused, and why.

        Begun anew if the slug changes meanwhile, or is emptied; ended by a withdrawal.
        """
        whole = False

        def journal(slug: str) -> Iterator[Message]:
            nonlocal whole
            if self._may_tell(reading, slug):
                for message in self._journal(session, reading):
                    if not self._may_tell(reading, slug):
                        return
                    yield message
                whole = True

        while not whole and (slug := self._slug_for(reading)) is not None:
            await self._retained.prepare({slug: self._leaves})
            refused = await self._tell(session, journal(slug), session.journal_lane)
            if refused is not None and self._slug_for(reading) == slug:
                return refused
        return None

    def _may_tell(self, reading: Reading, slug: str) -> bool:
        """Whether the reading is to be told under this slug, and that is noted."""
        return self._slug_for(reading) == slug and self._leaves <= self._retained[slug].leaves

    def _journal(self, session: _Session, reading: Reading) -> Iterator[Message]:
        car = self._fleet[reading.vehicle_id]
        replayed = reading.fetched_at < session.opened_at
        said, telling = self._telling(car, reading.state, reading.reading_id, reading.origin, replayed)
        if not telling.superseded:
            self._retained[car.slug].state = said
        return self._values(telling, measured=not telling.superseded)

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
                await self._retained.prepare(self._wanted(taken_up))
                await self._tell(session, self._latest(session, taken_up))
            except BaseException:
                self._touched.update(dict.fromkeys(taken_up))
                raise
            await self._retained.settle()
        vehicles = len(self._fleet) - len(session.withdrawn)
        if vehicles != session.vehicles:
            session.vehicles = vehicles
            await self._tell(session, [self._info(session)])

    async def _tell_ended(self, session: _Session) -> None:
        """Of all cars that wait to be told: the availability of those that are not fresh."""
        touched = list(self._touched)
        for start in range(0, len(touched), SLICE):
            now = self._clock.now()
            cars = filter(None, map(self._fleet.get, touched[start : start + SLICE]))
            ended = [
                car
                for car in cars
                if car.vehicle.withdrawn_at is None and self._fleet.freshness(car, now) is not Freshness.FRESH
            ]
            await self._retained.prepare({car.slug: self._leaves_of(car) for car in ended})
            await self._tell(session, (m for car in ended for m in self._availability(session, car)))

    def _wanted(self, vehicle_ids: Iterable[VehicleId]) -> dict[str, frozenset[str]]:
        """The topics that cars fill, by slug."""
        cars = (self._fleet.get(vehicle_id) for vehicle_id in vehicle_ids)
        return {car.slug: self._leaves_of(car) for car in cars if car is not None}

    def _leaves_of(self, car: Car) -> frozenset[str]:
        if car.vehicle.withdrawn_at is not None:
            return frozenset()
        return self._leaves if car.reading_id is not None else self._leaves & {*_UNFILLED, DISCOVERY}

    def _latest(self, session: _Session, vehicle_ids: Iterable[VehicleId]) -> Iterator[Message]:
        for vehicle_id in vehicle_ids:
            if vehicle_id not in self._fleet:
                continue
            # The car of each moment: it may change while one of its messages waits to be sent.
            yield from self._forgetting(self._fleet[vehicle_id])
            yield from self._farewell(session, self._fleet[vehicle_id])
            for aspect in self._aspects:
                car = self._fleet[vehicle_id]
                if not self._leaves_of(car) <= self._retained[car.slug].leaves:
                    self._touched[vehicle_id] = None  # it changed since that was noted: once more
                    break
                if car.vehicle.withdrawn_at is None:
                    yield from aspect(session, car)

    @property
    def _aspects(self) -> tuple[Callable[[_Session, Car], Iterator[Message]], ...]:
        """What is said of a car, in this order."""
        return self._surplus, self._discovery, self._availability, self._confirmation, self._polling

    def _surplus(self, session: _Session, car: Car) -> Iterator[Message]:
        """Delete what is retained of a car although it is not told any more."""
        return self._emptying(car.slug, self._leaves_of(car))

    def _availability(self, session: _Session, car: Car) -> Iterator[Message]:
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

    def _confirmation(self, session: _Session, car: Car) -> Iterator[Message]:
        """The state as it stands, if it differs from what is retained."""
        last = newest(car.state)
        if last is None or car.reading_id is None or self._owes(car.id):
            return
        replayed = last.fetched_at < session.opened_at
        said, telling = self._telling(car, car.state, car.reading_id, last.origin, replayed)
        if self._retained[car.slug].state == said:
            return
        for message in self._values(telling, measured=telling.freshness is Freshness.FRESH):
            # A newer reading has begun to be told: the rest would go back in time.
            if self._owes(car.id) or not self._is_still(car):
                return
            yield message
        self._retained[car.slug].state = said

    def _polling(self, session: _Session, car: Car) -> Iterator[Message]:
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

    def _discovery(self, session: _Session, car: Car) -> Iterator[Message]:
        if not self._options.discovery:
            return
        device = self._device(car)
        facts = (replace(device, commands=frozenset()), sorted(device.commands), __version__)
        said, told = digest(facts, self._options.json_state), self._retained[car.slug]
        if told.discovery != said:
            told.discovery = said
            yield self._topics.discovery(device, version=__version__, json_state=self._options.json_state)

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

    def _farewell(self, session: _Session, car: Car) -> Iterator[Message]:
        """Say that a withdrawn car is gone, and delete all of it."""
        if car.vehicle.withdrawn_at is None:
            session.withdrawn.discard(car.id)
            return
        session.withdrawn.add(car.id)
        told = self._retained.get(car.slug)
        offline = digest(Freshness.OFFLINE, None)
        if told is not None and AVAILABILITY in told.leaves and told.availability != offline:
            told.availability = offline
            yield self._topics.availability(car.slug, Freshness.OFFLINE)
        if self._fleet[car.id].vehicle.withdrawn_at is not None:
            yield from self._emptying(car.slug, frozenset())

    def _forgetting(self, car: Car) -> Iterator[Message]:
        """Delete everything that is retained under the car's former slugs."""
        for slug in car.vehicle.former_slugs:
            if self._fleet.by_slug(slug) is None:
                yield from self._emptying(slug, frozenset())

    def _emptying(self, slug: str, leaves: frozenset[str]) -> Iterator[Message]:
        """Delete what is retained under a slug in other topics than ``leaves``."""
        to_empty = self._retained.emptying(slug, leaves)
        if not to_empty:
            return
        told = self._retained[slug]
        told.emptied_of(to_empty)
        for leaf in sorted(to_empty):
            if leaf not in told.leaves:  # else it is a car's again, and what is told there was noted before
                yield from self._topics.emptied(slug, [leaf])
        told.emptied = True

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

    def _touch_all(self) -> None:
        self._touched = dict.fromkeys(car.id for car in self._fleet)
        self._wake.set()

    def _touch_slug(self, slug: str) -> None:
        car = self._fleet.by_slug(slug) or self._fleet.by_former_slug(slug)
        if car is not None:
            self._touched[car.id] = None
            self._wake.set()

    def _telling(
        self, car: Car, state: BatteryState, reading_id: str, origin: Origin, replayed: bool
    ) -> tuple[bytes, Telling]:
        """What is said of a car, and the digest of what that rests on."""
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

    def _info(self, session: _Session) -> Message:
        return self._topics.info(version=__version__, vehicles=session.vehicles, started_at=self._started_at)


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


def _leaves(options: MqttOptions) -> frozenset[str]:
    """The topics of a car that has values."""
    leaves = {AVAILABILITY, POLLING}
    if options.json_state:
        leaves.add(STATE)
    if options.scalars:
        leaves.update(FIELDS)
    if options.discovery:
        leaves.add(DISCOVERY)
    return frozenset(leaves)


@dataclass(slots=True, eq=False)
class _Shown:
    """The mark that the broker shows a new connection."""

    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    mark: str = ""


@dataclass(slots=True, eq=False)
class _Session:
    """One connection, and what only it was told."""

    connection: Connection
    shown: _Shown
    opened_at: datetime
    withdrawn: set[VehicleId] = field(default_factory=set)
    vehicles: int = 0
    watches_mark: bool = False
    _refused: Suspect | None = None
    _sent_at: float = 0.0
    _last: tuple[str, str] | None = None
    """Part and topic of the message that was answered last."""
    to_make_good: asyncio.Event = field(default_factory=asyncio.Event)
    emptied_at: float | None = None
    """When somebody emptied the mark, by the loop's clock."""
    journal_lane: asyncio.Semaphore = field(init=False)
    """Leaves room for the latest lane, however much there is to make up for."""
    _unanswered: deque[tuple[str, str, asyncio.Future[ReasonCode | None]]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        most = min(self.connection.limits.in_flight, IN_FLIGHT)
        self.journal_lane = asyncio.Semaphore(most - most // 4)

    def sent(self, part: str, topic: str, answer: asyncio.Future[ReasonCode | None]) -> None:
        """A message of this part of what is published was sent."""
        self._sent_at = asyncio.get_running_loop().time()
        self._unanswered.append((part, topic, answer))

    def taken(self) -> Iterator[tuple[str, str]]:
        """Parts and topics of messages that were answered, as was a later one; each once."""
        while self._unanswered and _code(self._unanswered[0][2]) is not None:
            answered = self._unanswered.popleft()
            self._refused = _after(self._refused, *answered)
            before, self._last = self._last, answered[:2]
            if before is not None:
                yield before

    def suspects(self, *, answers_first: bool) -> list[Suspect]:
        """Messages for which the broker may have ended the connection. None: it answered all.

        ``answers_first``: it may have acknowledged one and hung up for it all the same.
        """
        refused, last, first = self._refused, self._last, None
        for sent in self._unanswered:
            refused = _after(refused, *sent)
            if _code(sent[2]) is not None:
                last = sent[:2]
            elif first is None:
                first = Suspect(*sent[:2], strikes=2 * STRIKES if answers_first else STRIKES)
        if refused is not None and asyncio.get_running_loop().time() - self._sent_at < HANGS_UP_WITHIN_S:
            return [refused]
        answered = Suspect(*last) if answers_first and last is not None else None
        return [one for one in (answered, first) if one is not None]


def _after(
    refused: Suspect | None, part: str, topic: str, answer: asyncio.Future[ReasonCode | None]
) -> Suspect | None:
    """What was refused just before the end: a broker that answers on does not hang up because of it."""
    code = _code(answer)
    if code is None or code.value == PACKET_TOO_LARGE:  # that one never left us
        return refused
    return Suspect(part, topic, strikes=1) if code.is_failure else None


def _code(answer: asyncio.Future[ReasonCode | None]) -> ReasonCode | None:
    """None: there is no answer. Whoever waited for it may have been cancelled, and it with them."""
    return answer.result() if answer.done() and not answer.cancelled() else None


def _part_of(message: Message) -> str:
    """What a message stands or falls with: a car, all of the discovery, a topic of the bridge."""
    return message.part or message.slug or message.topic


def _release(lane: asyncio.Semaphore | None) -> None:
    if lane is not None:
        lane.release()


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


def _pause(failures: int) -> float:
    """Real seconds before the next attempt: doubled each time, and no two daemons in step."""
    longest = min(SHORTEST_PAUSE_S * 2 ** min(failures - 1, 16), LONGEST_PAUSE_S)
    return random.uniform(longest / 2, longest)
