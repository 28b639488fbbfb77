"""The mark by which a broker proves that it forgot nothing (:mod:`evbatteryd.sinks.retained`).

It is left with the broker after whatever it stands for, and looked for when a connection begins. Whoever else
publishes it has emptied topics of ours, or is another evbatteryd.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import paho.mqtt.client as paho

from evbatteryd.domain.ports import Log
from evbatteryd.sinks.courier import Courier
from evbatteryd.sinks.payload import Topics
from evbatteryd.sinks.retained import Retained
from evbatteryd.sinks.session import Session, Shown
from evbatteryd.sinks.subscriptions import Subscriptions

MARK_EVERY_S = 5.0
"""Real seconds between two marks while something is told: what is told in them is told again if we lose the
connection."""
SUBSCRIBED_WITHIN_S = 5.0
"""Real seconds that a broker has to take the subscription to the mark, or nothing is known of its memory."""
MARK_AWAITED_S = 0.5
"""Real seconds that it has then to show the mark."""


class Mark:
    """Leaves the mark, looks for it, and notices who else publishes it."""

    def __init__(
        self, topics: Topics, retained: Retained, courier: Courier, subscriptions: Subscriptions, log: Log
    ) -> None:
        self._topics = topics
        self._retained = retained
        self._courier = courier
        self._subscriptions = subscriptions
        self._log = log
        self._other_said = False

    async def is_remembered(self, session: Session) -> bool:
        """Whether the broker shows us the mark that it was left with. Raises MqttError."""
        if self._retained.mark is None:
            return False
        if not await self._subscriptions.watch_mark(session, within=SUBSCRIBED_WITHIN_S):
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(MARK_AWAITED_S):
                await session.shown.arrived.wait()
        return self._retained.recognises(session.shown.mark)

    async def keep(self, session: Session) -> None:
        """Leave a mark now and then while things are told. Raises MqttError."""
        while True:
            await self._retained.unmarked()
            await asyncio.sleep(MARK_EVERY_S)
            await self.leave(session)

    async def leave(self, session: Session) -> None:
        """Have the broker acknowledge a mark for all that was told. Raises MqttError."""
        mark, tellings = self._retained.next_mark()
        if await self._courier.tell(session, [self._topics.mark(mark)]) is None:
            self._retained.marked(mark, tellings)
        self._courier.note_taken(session)

    def hear(self, message: paho.MQTTMessage, shown: Shown, session: Session | None) -> None:
        """Take what arrived on its topic. ``shown``: to whom the broker shows what it retains.

        ``session``: None until it is established.
        """
        mark = bytes(message.payload).decode("utf-8", "replace")
        if message.retain:
            shown.mark = mark
            shown.arrived.set()
        elif not mark:
            if session is not None:
                session.emptied_at = asyncio.get_running_loop().time()
                session.to_make_good.set()
        elif not self._retained.is_ours(mark) and not self._other_said:
            self._other_said = True
            self._log.error(
                "mqtt.not_alone",
                topic=self._topics.mark_topic,
                mend="Another evbatteryd publishes below the same mqtt.base_topic: give each its own.",
            )
