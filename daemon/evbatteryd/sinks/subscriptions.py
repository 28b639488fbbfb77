"""What the broker is asked to tell us: of the mark, and of hints and commands.

Readings are told all the same if it refuses. Some brokers refuse by hanging up: those are not asked again for
a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from evbatteryd.domain.ports import Log
from evbatteryd.sinks.blame import Suspect
from evbatteryd.sinks.connection import code_words
from evbatteryd.sinks.payload import Topics
from evbatteryd.sinks.session import SUBSCRIPTION, Session

TURNED_AWAY: Final = 3
"""After as many connections in a row that ended when we subscribed, they are taken for the broker's way to
refuse it."""
LISTEN_AGAIN_S = 3600.0
"""Real seconds after which a broker that refuses it is asked again."""


class Subscriptions:
    """Asks for them. ``controls``: the patterns of the topics on which hints and commands come."""

    def __init__(self, topics: Topics, controls: Sequence[str], log: Log) -> None:
        self._topics = topics
        self._controls = controls
        self._log = log
        self._turned_away = 0
        self._deaf = ""
        """Why the broker does not let us listen; empty: it does."""

    async def watch_mark(self, session: Session, *, within: float | None = None) -> bool:
        """Whether we are told of the mark, and of whoever changes it; ``within`` real seconds, or it is taken
        that we are not. Raises MqttError."""
        topic = self._topics.mark_topic
        session.watches_mark = await self._subscribe(session, [topic], retained=True, within=within)
        return session.watches_mark

    async def listen(self, session: Session) -> None:
        """Subscribe to hints and commands, and to the mark if that is not done yet. Raises MqttError."""
        if self._turned_away >= TURNED_AWAY:
            self._say_deaf("the broker closes the connection whenever it is asked")
            await asyncio.sleep(LISTEN_AGAIN_S)
            self._turned_away = TURNED_AWAY - 1
        while True:
            if await self._hears_all(session):
                break
            # What it allows may be changed without anybody connecting anew.
            await asyncio.sleep(LISTEN_AGAIN_S)
        if self._deaf:
            self._deaf = ""
            self._log.info("mqtt.heard", topic=f"{self._topics.base}/+/+/set")

    async def _hears_all(self, session: Session) -> bool:
        watches = session.watches_mark or await self.watch_mark(session)
        return await self._subscribe(session, self._controls) and watches

    def suspect(self, suspects: Sequence[Suspect]) -> None:
        """The broker hung up upon one of these, if upon anything that we sent."""
        if any(one.part == SUBSCRIPTION for one in suspects):
            self._turned_away += 1

    async def _subscribe(
        self,
        session: Session,
        patterns: Sequence[str],
        *,
        retained: bool = False,
        within: float | None = None,
    ) -> bool:
        """Whether the broker took all of them, ``within`` real seconds if that is given. Raises MqttError."""
        if self._turned_away >= TURNED_AWAY:
            return False
        answer: asyncio.Future[ReasonCode | None] = asyncio.get_running_loop().create_future()
        session.sent(SUBSCRIPTION, patterns[0], answer)
        try:
            async with asyncio.timeout(within):
                refused = await session.connection.listen(patterns, retained=retained)
        except TimeoutError:
            session.given_up(answer)
            return False
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
