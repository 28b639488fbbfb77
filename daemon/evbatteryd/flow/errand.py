"""One command under way: what has been answered so far, and whoever listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime

from evbatteryd.domain.commanding import Command, CommandAnswer
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.flow.poller import Asked


@dataclass(slots=True, eq=False)
class Errand:
    """A command that is being carried out, for however many gave it."""

    vehicle_id: VehicleId
    command: Command
    origin: str
    begun_at: datetime
    stirred: asyncio.Event = field(default_factory=asyncio.Event)
    """Something of its car changed: whoever works on it looks again."""
    polls: list[Asked] = field(default_factory=list)
    """Polls of its car that ended since it was begun."""
    sent_at: datetime | None = None
    """When its source was given it; None: it was not yet, or is not to be."""
    told: bool = False
    """The car was told, and what it or its maker said is known: readings are awaited."""
    calls: int = 0
    """What it has cost so far."""
    _answers: list[CommandAnswer] = field(default_factory=list)
    _said: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ended(self) -> bool:
        return bool(self._answers) and self._answers[-1].final

    @property
    def waits(self) -> bool:
        """Whether it is to be sent, and was not yet."""
        return self.command.action is not None and self.sent_at is None

    def say(self, answer: CommandAnswer) -> None:
        self._answers.append(answer)
        said, self._said = self._said, asyncio.Event()
        said.set()

    async def __aiter__(self) -> AsyncIterator[CommandAnswer]:
        """All its answers, from the first, up to the final one."""
        heard = 0
        while True:
            while heard == len(self._answers):
                await self._said.wait()
            answer = self._answers[heard]
            heard += 1
            yield answer
            if answer.final:
                return
