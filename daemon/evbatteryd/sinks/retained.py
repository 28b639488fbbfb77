"""What the broker retains of ours, as far as that is known.

Two kinds of knowledge. *Which topics may hold something* is durable, and noted before they do: so a renamed
car, a removed one, or another version cleans up exactly what was left, and nothing else. *What they hold* is
known as long as the broker can be trusted to have kept it, and saves telling it again.

It can be trusted if it shows us the mark that we left with it last: a retained message whose content changes
after everything that it stands for. A broker that was restored from an older copy shows an older one, and one
that forgot everything none. Whatever was told after the mark is doubted when the connection ends.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Final

from evbatteryd.domain.errors import StoreError
from evbatteryd.domain.ports import Log, Manifest, Published
from evbatteryd.sinks.payload import AVAILABILITY, DISCOVERY, FIELDS, POLLING, STATE, Topics

UNKNOWN_DIGEST: Final = b""
"""The digest of what is not known."""
ELSEWHERE: Final = "elsewhere"
"""What stands or falls with the topics of an earlier configuration."""
_SIZE: Final = 8
"""Bytes of a digest."""
_NONE: Final = frozenset[str]()


def digest(*facts: object) -> bytes:
    """Of what a message rests on: told again, it would say nothing new."""
    return blake2b(repr(facts).encode(), digest_size=_SIZE).digest()


@dataclass(slots=True, eq=False)
class Told:
    """The topics of one slug."""

    leaves: frozenset[str] = _NONE
    """Those that may hold something."""
    gone: frozenset[str] = _NONE
    """Those that were emptied: a broker with a bad memory may show them again."""
    emptied: bool = True
    """Whether the broker is known to hold nothing in those that are gone."""
    estimated: bool | None = False
    """Whether the scalars of an estimate hold something; None: it is not known."""
    scalars_until: datetime | None = None
    """When the scalars that were measured expire; None: they hold nothing, or it is not known."""
    availability: bytes = UNKNOWN_DIGEST
    state: bytes = UNKNOWN_DIGEST
    polling: bytes = UNKNOWN_DIGEST
    discovery: bytes = UNKNOWN_DIGEST
    doubts: int = 0
    """How often it was doubted that those that are gone are emptied."""

    def doubt(self) -> None:
        """What the topics hold is not known any more."""
        self.availability = self.state = self.polling = self.discovery = UNKNOWN_DIGEST
        self.estimated = None
        self.doubt_emptied()

    def doubt_emptied(self) -> None:
        """One of those that are gone may hold something."""
        self.emptied = not self.gone
        self.doubts += 1

    def emptied_of(self, leaves: frozenset[str]) -> None:
        """These topics hold nothing any more."""
        if AVAILABILITY in leaves:
            self.availability = UNKNOWN_DIGEST
        if STATE in leaves or not leaves.isdisjoint(FIELDS):
            self.state, self.estimated = UNKNOWN_DIGEST, False
        if POLLING in leaves:
            self.polling = UNKNOWN_DIGEST
        if DISCOVERY in leaves:
            self.discovery = UNKNOWN_DIGEST

    def packed(self) -> bytes:
        """For the next start; nothing of it is to be believed as long as something is to be emptied."""
        if not self.emptied:
            return UNKNOWN_DIGEST
        parts = (self.availability, self.state, self.polling, self.discovery)
        return b"".join(part or bytes(_SIZE) for part in parts)

    def believe(self, packed: bytes) -> None:
        """The opposite of :meth:`packed`. What does not look like it is not believed."""
        if len(packed) != 4 * _SIZE:
            return
        parts = (packed[start : start + _SIZE] for start in range(0, len(packed), _SIZE))
        known = (UNKNOWN_DIGEST if part == bytes(_SIZE) else part for part in parts)
        self.availability, self.state, self.polling, self.discovery = known
        self.emptied = True


class Retained:
    """What is retained below our topics, by slug. ``sink``: under which name the mark is kept."""

    def __init__(self, topics: Topics, manifest: Manifest, log: Log, *, sink: str) -> None:
        self._topics = topics
        self._manifest = manifest
        self._log = log
        self._sink = sink
        self._told: dict[str, Told] = {}
        self._elsewhere: dict[tuple[str, str], Told] = {}
        """Left below other topics, before the configuration was changed."""
        self._taken_over: set[tuple[str, str]] = set()
        """Of those, whose note does not say yet what became of it."""
        self._run = secrets.token_hex(4)
        self._marks = 0
        self._unacknowledged: set[str] = set()
        """Marks that were sent since the last one that was acknowledged: one of them may have arrived."""
        self.mark: str | None = None
        """What the broker was left with last and has acknowledged; None: nothing is known of it."""
        self._doubtful: dict[str, int] = {}
        """Slugs that were told since that mark, and when in the order of tellings."""
        self._tellings = 0
        self._unnoted: set[str] = set()
        """Slugs whose note does not say what it should."""
        self._unkept: set[str] = set()
        """Slugs whose note holds another digest."""
        self._unmarked = asyncio.Event()
        self._failing = False
        self.empty = True
        """Whether nothing was ever noted."""

    async def open(self) -> None:
        """Take up what was noted by earlier starts. Raises StoreError."""
        self.mark = await self._manifest.mark(self._sink)
        for note in await self._manifest.published():
            self.empty = False
            told = Told(leaves=note.leaves, gone=note.gone, emptied=not note.gone, estimated=None)
            if note.place != self._topics.place:
                told.emptied = self.mark is not None or told.emptied
                self._elsewhere[note.place, note.slug] = told
                continue
            self._told[note.slug] = told
            if self.mark is not None:
                told.believe(note.digest)
        for (place, slug), told in self._elsewhere.items():
            of_ours = (told.leaves | told.gone) - {DISCOVERY}
            if of_ours and Topics.at(place).base == self._topics.base:
                self._take_over(slug, told)
                self._taken_over.add((place, slug))

    def _take_over(self, slug: str, left: Told) -> None:
        """Only the prefix of the discovery was changed: all else is where it is told now."""
        told = self[slug]
        told.gone = (told.gone | left.gone - {DISCOVERY}) - left.leaves
        told.leaves |= left.leaves - {DISCOVERY}
        told.doubt()
        self._unnoted.add(slug)
        left.leaves &= {DISCOVERY}
        left.gone &= {DISCOVERY}
        left.emptied = not left.gone

    def __getitem__(self, slug: str) -> Told:
        """What is known of a slug."""
        return self._told.setdefault(slug, Told())

    def get(self, slug: str) -> Told | None:
        return self._told.get(slug)

    @property
    def slugs(self) -> list[str]:
        return list(self._told)

    def assume(self, slug: str, leaves: frozenset[str]) -> None:
        """An earlier version, which took no notes, may have left something there."""
        self._told.setdefault(slug, Told(leaves=leaves, estimated=None))

    # Before and after something is told

    async def prepare(self, wanted: Mapping[str, frozenset[str]]) -> None:
        """Note what the topics of these slugs will hold, before they do.

        A store that cannot take it keeps nobody from being told; it is noted as soon as it can.
        """
        notes = []
        for slug, leaves in wanted.items():
            told = self[slug]
            if not leaves <= told.leaves:
                told.leaves |= leaves
                told.gone -= leaves
                self._unnoted.add(slug)
        if self._unnoted:
            notes = list(self._unnoted)
        if notes:
            await self._note(notes)

    def telling(self, slug: str) -> None:
        """Something of it is about to be told."""
        self._tellings += 1
        self._doubtful[slug] = self._tellings
        self._unkept.add(slug)
        self._unmarked.set()

    def emptying(self, slug: str, leaves: frozenset[str]) -> frozenset[str]:
        """Which topics are to be emptied so that no others than ``leaves`` hold anything.

        They are taken for gone from now on, and noted as such by the next :meth:`settle`. Whoever has emptied
        all of them says so: ``emptied`` of what is told of the slug.
        """
        told = self._told.get(slug)
        if told is None:
            return _NONE
        surplus = told.leaves - leaves
        to_empty = surplus if told.emptied else told.gone | surplus
        if surplus:
            told.leaves -= surplus
            told.gone |= surplus
            self._unnoted.add(slug)
        if to_empty:
            told.emptied = False
        return to_empty

    def undiscovered(self) -> Iterator[str]:
        """Slugs whose discovery is not known to be told; or not to be deleted."""
        for slug, told in self._told.items():
            untold = DISCOVERY in told.leaves and told.discovery == UNKNOWN_DIGEST
            if untold or (DISCOVERY in told.gone and not told.emptied):
                yield slug

    async def settle(self) -> None:
        """Note what was emptied: for when the broker has acknowledged it."""
        if self._unnoted:
            await self._note(list(self._unnoted))

    async def _note(self, slugs: Iterable[str]) -> None:
        noted = [self._published(slug) for slug in slugs]
        try:
            await self._manifest.note_published(noted)
        except StoreError as error:
            self._say_failing(error)
        else:
            self._failing = False
            self._unnoted.difference_update(note.slug for note in noted)

    def _say_failing(self, error: StoreError) -> None:
        if not self._failing:
            self._failing = True
            self._log.warning("mqtt.manifest_failing", error=str(error))

    def _published(self, slug: str, packed: bytes = b"") -> Published:
        told = self[slug]
        return Published(self._topics.place, slug, told.leaves, told.gone, packed)

    # What was left elsewhere

    def elsewhere(self) -> Iterator[tuple[str, str, frozenset[str]]]:
        """Places and slugs that an earlier configuration filled, and what has to be emptied there."""
        for (place, slug), told in list(self._elsewhere.items()):
            leaves = told.leaves if told.emptied else told.leaves | told.gone
            if leaves:
                yield place, slug, leaves

    def left_elsewhere(self, place: str, slug: str) -> None:
        """All of that is emptied: noted by the next :meth:`settle_elsewhere`."""
        told = self._elsewhere[place, slug]
        if told.leaves:
            self._taken_over.add((place, slug))
        told.gone |= told.leaves
        told.leaves = _NONE
        told.emptied = True

    async def settle_elsewhere(self) -> None:
        await self.settle()
        if not self._taken_over:
            return
        left = {key: self._elsewhere[key] for key in self._taken_over}
        try:
            await self._manifest.note_published(
                [Published(place, slug, told.leaves, told.gone) for (place, slug), told in left.items()]
            )
        except StoreError as error:
            self._say_failing(error)
        else:
            self._taken_over.clear()

    # The broker's memory

    def forget(self) -> None:
        """The broker is not known to hold anything."""
        self.mark = None
        self._doubtful.clear()
        self._unkept.update(self._told)
        for told in (*self._told.values(), *self._elsewhere.values()):
            told.doubt()

    def lost(self) -> list[str]:
        """The connection ended: what was told since the last mark may not have arrived. Whose that is."""
        doubtful = list(self._doubtful)
        self._doubtful.clear()
        for slug in doubtful:
            self[slug].doubt()
        return doubtful

    async def unmarked(self) -> None:
        """Until something is told that no mark stands for."""
        await self._unmarked.wait()

    def next_mark(self) -> tuple[str, int]:
        """A mark for all that is told by now; and how much that is."""
        self._marks += 1
        mark = f"{self._run}-{self._marks}"
        self._unacknowledged.add(mark)
        return mark, self._tellings

    def marked(self, mark: str, tellings: int) -> None:
        """The broker acknowledged this mark, and so everything that was sent before it."""
        self.mark = mark
        self._unacknowledged.clear()
        self._doubtful = {slug: number for slug, number in self._doubtful.items() if number > tellings}
        if not self._doubtful:
            self._unmarked.clear()

    def recognises(self, mark: str) -> bool:
        """Whether a broker that shows this mark has forgotten nothing but what is in doubt anyway."""
        if mark in self._unacknowledged:
            self.mark = mark
        return bool(mark) and mark == self.mark

    def is_ours(self, mark: str) -> bool:
        """Whether this process made it."""
        return mark.startswith(f"{self._run}-")

    async def keep(self) -> None:
        """All is told, marked and acknowledged: the next start may believe it."""
        if self.mark is None or self._doubtful:
            return
        try:
            slugs = self._unkept | self._unnoted
            await self._manifest.note_published(
                [self._published(slug, self[slug].packed()) for slug in slugs]
            )
            await self._manifest.keep_mark(self._sink, self.mark)
        except StoreError as error:
            self._say_failing(error)
