"""What is heard on MQTT: hints on ``BASE/VEHICLE/event/set``, and the answers to them.

Whoever may publish there may send what they like as often as they like. So what waits to be taken is bounded
for each car, and a flood of one car's hints crowds out nothing but itself.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Container
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

import orjson

from evbatteryd.domain.hinting import HintAnswer

MOST_WAITING: Final = 4_096
MOST_WAITING_EACH: Final = 8
"""Hints of one car; and of all that name no car of ours together."""
LONGEST_LEVEL: Final = 128
"""Characters of a topic's level that may name a car. Slugs have 64 at most."""
LONGEST_HINT: Final = 256
"""Bytes. What is longer is cut, and then no hint of ours."""
LONGEST_RESPONSE_TOPIC: Final = 1_024
"""Characters."""
_WILDCARDS: Final = frozenset("+#\0")


class Heard(NamedTuple):
    """One message on a topic of hints."""

    level: str
    """The vehicle, as the topic names it."""
    text: str
    response_topic: str | None = None
    correlation: bytes | None = None
    """What a requester knows its answer by (MQTT 5)."""


@dataclass(frozen=True, slots=True)
class HintTopics:
    """Where hints come from and where their answers go, below one base topic."""

    base: str

    @property
    def pattern(self) -> str:
        return f"{self.base}/+/event/set"

    def level(self, topic: str) -> str | None:
        """The vehicle that a topic of :attr:`pattern` names; None if that can be none of ours."""
        level = topic.removeprefix(f"{self.base}/").removesuffix("/event/set")
        return level if level and len(level) <= LONGEST_LEVEL and "/" not in level else None

    def result(self, level: str) -> str:
        return f"{self.base}/{level}/event/result"

    def response(self, asked: object) -> str | None:
        """Where a requester wants its answer, if we may publish there.

        Not below our own base topic: nobody may have us say there what is not so.
        """
        if not isinstance(asked, str) or not 0 < len(asked) <= LONGEST_RESPONSE_TOPIC:
            return None
        ours = asked == self.base or asked.startswith(f"{self.base}/")
        return None if ours or asked.startswith("$") or _WILDCARDS & set(asked) else asked


class Inbox:
    """Hints that wait to be taken, oldest first. ``slugs``: those of cars, past ones too."""

    def __init__(self, slugs: Container[str]) -> None:
        self._slugs = slugs
        self._waiting: deque[tuple[str | None, Heard]] = deque()
        self._each: Counter[str | None] = Counter()
        self._arrived = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, heard: Heard) -> bool:
        """Whether there was room for it."""
        who = heard.level if heard.level in self._slugs else None
        if len(self._waiting) >= MOST_WAITING or self._each[who] >= MOST_WAITING_EACH:
            return False
        self._each[who] += 1
        self._waiting.append((who, heard))
        self._arrived.set()
        return True

    async def take(self) -> Heard:
        """The oldest; waits for one."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        who, heard = self._waiting.popleft()
        self._each[who] -= 1
        if not self._each[who]:
            del self._each[who]
        return heard


def hint_text(payload: bytes) -> str:
    """What a payload says: plain text, or a JSON string."""
    if len(payload) <= LONGEST_HINT and payload.lstrip().startswith(b'"'):
        try:
            told = orjson.loads(payload)
        except orjson.JSONDecodeError:
            told = None
        if isinstance(told, str):
            return told
    return payload[: LONGEST_HINT + 1].decode("utf-8", "replace")


def answer_json(answer: HintAnswer) -> bytes:
    """The payload of ``BASE/VEHICLE/event/result``."""
    return orjson.dumps(answer.document(), _written, orjson.OPT_PASSTHROUGH_DATETIME)


def _written(at: datetime) -> str:
    """Like the times of the state."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
