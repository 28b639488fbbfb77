"""Whom to blame when a broker closes the connection upon a message.

A broker may refuse a message by hanging up, and one forbidden topic would then keep everything else from
being told. mosquitto 2.0.11 does so when its access list denies a topic: on MQTT 5 it says why before, on
3.1.1 it acknowledges the message first. Messages are taken in the order in which they were sent: so if none
was refused, it is the last one that was answered, on 3.1.1, or the first one that was not. What was refused,
or is suspected again and again, is left out for a while; everything else goes on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

STRIKES: Final = 3
"""Connections in a row that ended upon a message to the same topic."""
MORE_OF_A_PART: Final = 2
"""Strikes beyond those if they were of several topics of one part."""
SHORTEST_S: Final = 60.0
LONGEST_S: Final = 3600.0
"""Real seconds for which a part is left out, doubled each time."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A message upon which a connection may have ended."""

    part: str
    """What it stands or falls with."""
    topic: str
    """Of one part another one may well be allowed."""
    strikes: int = STRIKES
    """After as many in a row it is left out; 1: it was refused."""


@dataclass(slots=True)
class _Shunned:
    until: float
    times: int


class Blame:
    """Parts of what is published (a car, a topic of the bridge, all of the discovery); which are left out."""

    def __init__(self) -> None:
        self._strikes: dict[str, int] = {}
        """By topic, and by part: how often in a row connections ended upon it."""
        self._shunned: dict[str, _Shunned] = {}

    def ended(self, suspects: Sequence[Suspect]) -> Suspect | None:
        """A connection ended, upon one of these if upon a message at all. Which is left out from now on."""
        before, self._strikes = self._strikes, {}
        for one in suspects:
            topic = self._strikes[one.topic] = before.get(one.topic, 0) + 1
            part = self._strikes[one.part] = before.get(one.part, 0) + 1
            known = self._shunned.get(one.part)
            if topic < one.strikes and part < one.strikes + MORE_OF_A_PART and known is None:
                continue
            times = 1 if known is None else known.times + 1
            span = min(SHORTEST_S * 2 ** (times - 1), LONGEST_S)
            self._shunned[one.part] = _Shunned(time.monotonic() + span, times)
            self._strikes.clear()
            return one
        return None

    def shuns(self, part: str) -> bool:
        """Whether nothing of it is to be told at present."""
        if not self._shunned:
            return False
        known = self._shunned.get(part)
        return known is not None and time.monotonic() < known.until

    def taken(self, part: str, topic: str) -> bool:
        """A message was answered, and so was a later one. Whether its part had been left out."""
        self._strikes.pop(topic, None)
        self._strikes.pop(part, None)
        return bool(self._shunned) and self._shunned.pop(part, None) is not None

    def forgive(self, part: str) -> None:
        """There is nothing to be told of it any more."""
        self._shunned.pop(part, None)

    def due(self) -> list[str]:
        """Parts that are to be tried again by now."""
        now = time.monotonic()
        return [part for part, known in self._shunned.items() if now >= known.until]
