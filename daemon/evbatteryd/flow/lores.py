"""What the polling policy has learnt across cars, by application: taken up at the start, then kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Final

from evbatteryd.domain.errors import StoreError
from evbatteryd.domain.policy.lore import Lore
from evbatteryd.domain.ports import Clock, Log, Store

EVERY: Final = timedelta(minutes=10)
"""How often what was learnt is kept: a crash forgets no more."""


class Lores(Mapping[str, Lore]):
    """The lore of every configured application.

    ``offset``: seconds that local time is east of UTC at an epoch time, where the cars' people live.
    """

    def __init__(
        self,
        applications: Iterable[str],
        store: Store,
        clock: Clock,
        log: Log,
        *,
        offset: Callable[[float], float],
    ) -> None:
        self._lores = {name: Lore(offset) for name in applications}
        self._store = store
        self._clock = clock
        self._log = log
        self._kept: dict[str, bytes] = {}

    def __getitem__(self, application: str) -> Lore:
        return self._lores[application]

    def __iter__(self) -> Iterator[str]:
        return iter(self._lores)

    def __len__(self) -> int:
        return len(self._lores)

    async def open(self) -> None:
        """Take up what was kept. What cannot be read is learnt anew, and said."""
        for name, lore in self._lores.items():
            packed = await self._store.lore(name)
            if packed is not None and not lore.take(_document(packed)):
                self._log.warning("policy.lore_forgotten", application=name, reason="of another version")

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._clock.sleep(EVERY)
            await self.keep()

    async def keep(self) -> None:
        """Keep what has changed. A full disk loses nothing that is not learnt again."""
        for name, lore in self._lores.items():
            packed = json.dumps(lore.document(), separators=(",", ":")).encode()
            if packed == self._kept.get(name):
                continue
            try:
                await self._store.keep_lore(name, packed)
            except StoreError as error:
                self._log.warning("policy.lore_not_kept", application=name, error=str(error))
            else:
                self._kept[name] = packed


def _document(packed: bytes) -> object:
    try:
        return json.loads(packed)
    except ValueError:
        return None
