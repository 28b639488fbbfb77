"""Messages are carried to the broker, and its answers heeded.

What it refuses is said once, and not taken for told. A broker may refuse by hanging up, too: what is found to
be the cause (:mod:`evbatteryd.sinks.blame`) is left out for a while, so that all else arrives.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import aiomqtt
from paho.mqtt.reasoncodes import ReasonCode

from evbatteryd.domain.ports import Log, Tally
from evbatteryd.sinks.blame import Blame, Suspect
from evbatteryd.sinks.connection import MENDING, code_words
from evbatteryd.sinks.payload import DISCOVERY, Message, Topics
from evbatteryd.sinks.retained import ELSEWHERE, UNKNOWN_DIGEST, Retained
from evbatteryd.sinks.session import SUBSCRIPTION, Session


class Courier:
    """Carries messages over a session. ``touch_all``: has all be told that is not told yet."""

    def __init__(
        self, topics: Topics, retained: Retained, tally: Tally, log: Log, *, touch_all: Callable[[], None]
    ) -> None:
        self._topics = topics
        self._retained = retained
        self._tally = tally
        self._log = log
        self._touch_all = touch_all
        self._blame = Blame()
        self._refusals: set[str] = set()
        """Topics."""

    async def tell(
        self, session: Session, messages: Iterable[Message], slots: asyncio.Semaphore | None = None
    ) -> str | None:
        """Send all, in order, and wait for their acknowledgements. What was refused, and why, if anything.
        ``slots``: bounds what is in flight beside the connection's own limit.

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
                if slots is not None:
                    await slots.acquire()
                try:
                    await connection.slot()
                except BaseException:
                    _release(slots)
                    raise
                try:
                    message = next(source, None)
                except BaseException:
                    connection.free_slot()
                    _release(slots)
                    raise
                if message is None:
                    connection.free_slot()
                    _release(slots)
                    break
                part = _part_of(message)
                if self._blame.shuns(part):
                    connection.free_slot()
                    _release(slots)
                    self._doubt(message)
                    refusals.append(f"{message.topic}: it closes the connection whenever it is told this")
                    continue
                if message.slug and message.retain and part != ELSEWHERE:
                    # Also if it cannot be sent: it was taken for told.
                    self._retained.telling(message.slug)
                try:
                    answer = connection.send(message)
                except BaseException:
                    _release(slots)
                    raise
                if slots is not None:
                    answer.add_done_callback(lambda _: _release(slots))
                session.sent(part, message.topic, answer)
                self.note_taken(session)
                waiting.append((message, answer))
                while waiting and waiting[0][1].done():
                    taken += settle()
            while waiting:
                await waiting[0][1]
                taken += settle()
        finally:
            self._tally.published(taken)
        return refusals[0] if refusals else None

    def note_taken(self, session: Session) -> None:
        """What was left out and is taken again is left out no more."""
        for part, topic in session.taken():
            if self._blame.taken(part, topic):
                if part == DISCOVERY:
                    self._touch_all()
                if not self._refusals:
                    self._log.info("mqtt.publish_accepted", topic=topic)

    def blame(self, suspects: Sequence[Suspect], *, proven: bool) -> None:
        """A connection ended, upon one of these if upon a message at all. What is often among them is left
        out. ``proven``: it is known what the broker answered last; else those alone count that it refused.
        """
        # The first messages of every connection prove nothing.
        guilty = self._blame.ended(
            [
                one
                for one in suspects
                if one.strikes == 1
                or (proven and one.part != SUBSCRIPTION and not one.part.startswith(self._topics.bridge))
            ]
        )
        if guilty is not None and not self._refusals:
            self._log.error(
                "mqtt.publish_refused",
                topic=guilty.topic,
                reason="the broker closes the connection whenever it is told this",
                mend=MENDING[135],
            )

    def forgive(self, part: str) -> None:
        """Nothing of what was left out is to be told any more."""
        self._blame.forgive(part)

    def due(self) -> list[str]:
        """Parts that were left out and are to be tried again by now."""
        return self._blame.due()

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
            told.doubt_emptied()


def _part_of(message: Message) -> str:
    """What a message stands or falls with: a car, all of the discovery, a topic of the bridge."""
    return message.part or message.slug or message.topic


def _release(slots: asyncio.Semaphore | None) -> None:
    if slots is not None:
        slots.release()
