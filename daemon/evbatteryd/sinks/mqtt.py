"""Readings on an MQTT broker.

This is the sink: it keeps the connection, and gives each one to those who use it. What is said, and what of
it the broker is told, is theirs:

* :mod:`~evbatteryd.sinks.lanes`: every reading in order, and beside that how a car stands;
* :mod:`~evbatteryd.sinks.statements`: what is said of a car, made of :mod:`~evbatteryd.sinks.payload`;
* :mod:`~evbatteryd.sinks.courier`: messages are sent, and refusals heeded;
* :mod:`~evbatteryd.sinks.mark`, :mod:`~evbatteryd.sinks.retained`: what the broker can be trusted to have;
* :mod:`~evbatteryd.sinks.subscriptions`, :mod:`~evbatteryd.sinks.hearing`: hints and commands come in.

Nothing is told twice without need, not after a restart of ours either: what the broker retains is known as
long as it proves that it forgot nothing. One that did is told everything again, and what is to be gone is
deleted again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Final

import aiomqtt
import paho.mqtt.client as paho
from paho.mqtt.reasoncodes import ReasonCode

from evbatteryd.domain.errors import SinkError
from evbatteryd.domain.estimates import Estimator, told_estimate
from evbatteryd.domain.fleet import Car, Fleet
from evbatteryd.domain.ledger import Share
from evbatteryd.domain.ports import Clock, Commands, Hints, Log, Manifest, Tally
from evbatteryd.domain.reading import Reading
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.sinks.connection import (
    MENDING,
    Connection,
    MqttOptions,
    Silent,
    mending,
    trust,
    words_of,
)
from evbatteryd.sinks.courier import Courier
from evbatteryd.sinks.hearing import HEARERS, ControlTopics, Ears
from evbatteryd.sinks.lanes import JournalLane, LatestLane, Touched
from evbatteryd.sinks.mark import Mark
from evbatteryd.sinks.payload import BRIDGE, BRIDGE_LEAVES, DISCOVERY, Topics
from evbatteryd.sinks.retained import ELSEWHERE, Retained
from evbatteryd.sinks.session import Session, Shown
from evbatteryd.sinks.statements import Statements
from evbatteryd.sinks.subscriptions import Subscriptions

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
EMPTIED_S = 2.0
"""Real seconds after the mark was emptied, last, before all is told anew."""
SHUNNED_TRIED_EVERY_S = 15.0


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
        self._fleet = fleet
        self._clock = clock
        self._tally = tally
        self._log = log
        self._topics = topics = Topics(options.base_topic, options.discovery_prefix)
        self._retained = retained = Retained(topics, manifest, log, sink=self.name)
        self._touched = Touched(fleet)
        self._courier = courier = Courier(topics, retained, tally, log, touch_all=self._touched.touch_all)
        self._statements = Statements(
            options,
            topics,
            fleet,
            clock,
            retained,
            commands,
            owes=owes,
            estimate=partial(told_estimate, estimator=estimate, past_the_hour=past_the_hour),
            share_of=share_of,
        )
        self._journal = JournalLane(fleet, self._statements, retained, courier)
        self._latest = LatestLane(fleet, clock, self._statements, retained, courier, self._touched)
        controls = ControlTopics(options.base_topic, options.discovery_prefix)
        self._subscriptions = Subscriptions(topics, controls.patterns, log)
        self._mark = Mark(topics, retained, courier, self._subscriptions, log)
        self._ears = Ears(
            controls,
            fleet.taken_slugs,
            hints,
            commands,
            tally,
            log,
            origin=self.name,
            established=self._established_connection,
        )
        self._session: Session | None = None
        self._connections = 0
        self._up = asyncio.Event()
        self._complaint = ""
        self._failures = 0
        self._flaps = 0
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
                    self._retained.assume(slug, self._statements.leaves)
                if car.schedule.polled_at is not None:
                    self._retained.assume(car.slug, self._statements.leaves)
        self._touched.touch_all()

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
            await self._mark.leave(session)
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
        self._journal.offered(readings)
        session = await self._established()
        if over is not None and over != self._connections:
            raise SinkError("the connection to the MQTT broker is another one by now")
        await self._journal.tell(session, readings)

    def touch(self, vehicle_id: VehicleId) -> None:
        """Tell how this car stands as soon as its readings are told, if that changed."""
        self._journal.note_erasure(vehicle_id)
        self._touched.touch(vehicle_id)

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
                await self._latest.tell(session)
                await self._mark.leave(session)
                await self._courier.tell(session, [self._topics.offline()])
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
        shown = Shown()
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
        session = Session(connection, shown, self._clock.now())
        try:
            await _all_of(
                connection.watch(),
                connection.watch_acknowledgements(),
                self._serve(session),
                self._listen(session),
                self._keep_marked(session),
                self._make_good(session),
                self._empty_leftovers(session),
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
            if self._flaps == POISONED and self._options.session_expiry:
                reason = f"{POISONED} connections in a row did not last"
                self._log.warning("mqtt.session_dropped", reason=reason)
            self._lose(session)
            self._look_for_a_cause(session, silent=isinstance(error, Silent))
        finally:
            if self._session is not session:
                connection.drop()

    def _present_options(self) -> MqttOptions:
        """A message that was kept for us may be what ends each connection: then none is wanted."""
        if self._flaps < POISONED or not self._options.session_expiry:
            return self._options
        return replace(self._options, session_expiry=0)

    async def _serve(self, session: Session) -> None:
        """Make the connection known to both lanes, then serve the latest lane."""
        session.withdrawn = {car.id for car in self._fleet if car.vehicle.withdrawn_at is not None}
        session.vehicles = len(self._fleet) - len(session.withdrawn)
        if not await self._mark.is_remembered(session):
            self._tell_all_anew()
        await self._retained.prepare({BRIDGE: BRIDGE_LEAVES})
        if self._options.protocol == "3.1.1":
            # There nothing has expired meanwhile: no car may look fresh beside the word that we are here.
            await self._latest.tell_ended(session)
        await self._introduce(session)
        self._session = session
        self._connections += 1
        self._up.set()
        self._tally.connected(True)
        if self._flaps < FLAPS:
            self._say_connected(session)
        await self._latest.serve(session)

    async def _introduce(self, session: Session) -> None:
        """Say that we are here."""
        about_us = [self._topics.online(), self._statements.info(session.vehicles)]
        await self._courier.tell(session, about_us)

    def _tell_all_anew(self) -> None:
        """The broker is not known to hold anything."""
        self._retained.forget()
        self._touched.touch_all()

    async def _become_steady(self, session: Session) -> None:
        await asyncio.sleep(STEADY_S)
        session.connection.trust()
        self._failures = 0
        if self._flaps >= FLAPS:
            self._say_connected(session)
        self._flaps = 0

    def _say_connected(self, session: Session) -> None:
        self._complaint = ""
        self._log.info("mqtt.connected", broker=self._options.address, protocol=self._options.protocol)
        if not session.connection.retains and not self._forgetful_said:
            self._forgetful_said = True
            self._log.warning("mqtt.retains_nothing", broker=self._options.address, mend=MENDING[154])

    async def _established(self) -> Session:
        while (session := self._session) is None or session.connection.ended:
            self._up.clear()
            await self._up.wait()
        return session

    async def _established_connection(self) -> Connection:
        return (await self._established()).connection

    def _lose(self, session: Session) -> None:
        if self._session is session:
            self._session = None
            self._up.clear()
            self._tally.connected(False)

    def _look_for_a_cause(self, session: Session, *, silent: bool) -> None:
        """The connection broke: what is not known to have arrived is told again, and who may have caused it
        is left out. ``silent``: the broker just stopped answering."""
        for slug in self._retained.lost():
            self._touched.touch_slug(slug)
        suspects = session.suspects(answers_first=self._options.protocol == "3.1.1")
        if not silent:
            self._subscriptions.suspect(suspects)
        # With many in flight, what the broker said last may be lost with the connection.
        self._courier.blame(suspects, proven=session.connection.careful and not silent)

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

    # Beside both lanes

    def _hear(self, shown: Shown, message: paho.MQTTMessage) -> None:
        if message.topic == self._topics.mark_topic:
            self._mark.hear(message, shown, self._session)
        else:
            self._ears.hear(message)

    async def _listen(self, session: Session) -> None:
        await self._established()
        await self._subscriptions.listen(session)

    async def _keep_marked(self, session: Session) -> None:
        await self._established()
        await self._mark.keep(session)

    async def _make_good(self, session: Session) -> None:
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
                self._tell_all_anew()
            await self._introduce(session)

    async def _empty_leftovers(self, session: Session) -> None:
        """Delete what an earlier configuration, or a car that is unknown by now, left behind."""
        await self._established()
        for place, slug, leaves in self._retained.elsewhere():
            messages = Topics.at(place).emptied(slug, leaves, part=ELSEWHERE)
            if await self._courier.tell(session, messages) is None:
                self._retained.left_elsewhere(place, slug)
        await self._retained.settle_elsewhere()
        for slug in self._retained.slugs:
            if slug != BRIDGE and self._is_nobodys(slug):
                await self._courier.tell(session, self._statements.nothing(slug))
        await self._retained.settle()

    def _is_nobodys(self, slug: str) -> bool:
        """Whether no car has it or ever had: what those left, the latest lane deletes."""
        return self._fleet.by_slug(slug) is None and self._fleet.by_former_slug(slug) is None

    async def _try_shunned(self, session: Session) -> None:
        """Give what was left out another chance when its time has come."""
        while True:
            await asyncio.sleep(SHUNNED_TRIED_EVERY_S)
            for part in self._courier.due():
                if part.startswith(self._topics.bridge):
                    session.to_make_good.set()
                elif part == ELSEWHERE:
                    await self._empty_leftovers(session)
                elif part == DISCOVERY:  # one car is enough: if it is taken, all are told
                    untold = (slug for slug in self._retained.undiscovered() if not self._is_nobodys(slug))
                    slug = next(untold, None)
                    if slug is None:
                        self._courier.forgive(part)
                    else:
                        self._touched.touch_slug(slug)
                else:
                    self._touched.touch_slug(part)


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
