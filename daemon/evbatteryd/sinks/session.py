"""One connection to the broker, and what only it was told.

All of this is thrown away when the connection ends. Until then it tells which of the messages that were sent
over it the broker has answered; and at the end, upon which it may have hung up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from paho.mqtt.reasoncodes import ReasonCode

from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.sinks.blame import STRIKES, Suspect
from evbatteryd.sinks.connection import IN_FLIGHT, Connection

SUBSCRIPTION: Final = "subscription"
"""What is sent to the broker beside messages, as far as it may be the cause of an end."""
PACKET_TOO_LARGE: Final = 149
"""Reason code of MQTT 5."""
HANGS_UP_WITHIN_S: Final = 2.0
"""Real seconds after a refusal in which a broker hangs up because of it, or not at all."""


@dataclass(slots=True, eq=False)
class Shown:
    """The mark that the broker shows a new connection."""

    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    mark: str = ""


@dataclass(slots=True, eq=False)
class Session:
    """One connection, and what only it was told."""

    connection: Connection
    shown: Shown
    opened_at: datetime
    withdrawn: set[VehicleId] = field(default_factory=set)
    vehicles: int = 0
    """How many cars the broker was told there are: those that are not withdrawn."""
    watches_mark: bool = False
    """Whether the broker tells us of the mark, and of whoever changes it."""
    to_make_good: asyncio.Event = field(default_factory=asyncio.Event)
    """Somebody else overwrote what the broker is told at the beginning."""
    emptied_at: float | None = None
    """When somebody emptied the mark, by the loop's clock."""
    journal_slots: asyncio.Semaphore = field(init=False)
    """Leaves room for the latest lane, however much there is to make up for."""
    _refused: Suspect | None = None
    _sent_at: float = 0.0
    _last: tuple[str, str] | None = None
    """Part and topic of the message that was answered last."""
    _unanswered: deque[tuple[str, str, asyncio.Future[ReasonCode | None]]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        most = min(self.connection.limits.in_flight, IN_FLIGHT)
        self.journal_slots = asyncio.Semaphore(most - most // 4)

    def sent(self, part: str, topic: str, answer: asyncio.Future[ReasonCode | None]) -> None:
        """A message of this part of what is published was sent."""
        self._sent_at = asyncio.get_running_loop().time()
        self._unanswered.append((part, topic, answer))

    def given_up(self, answer: asyncio.Future[ReasonCode | None]) -> None:
        """Nobody waits for this answer any more: nothing is to be concluded from it."""
        self._unanswered = deque(sent for sent in self._unanswered if sent[2] is not answer)

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
