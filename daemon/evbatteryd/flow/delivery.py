"""The journal is the queue; a sink has a place in it for every car, and loses nothing.

A car's readings are told one after the other. Cars do not wait for each other: whoever cannot be told (a
broker that refuses its topic) holds up nobody else, and who has news while the readings of an outage are
made up for goes first, with all that is owed of that car before it.

What was taken a moment before the connection ends may be lost with whoever took it. So it counts only when
something later was taken as well, and until then it is told again. How far a car is, is noted after that: a
crash in between tells the last readings once more, under the same ``reading_id``.

What waits is bounded in number and age; what is given up goes oldest first, and is said and counted. Memory
holds eight bytes of each reading that waits: its position.
"""

from __future__ import annotations

import asyncio
import random
from array import array
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final

from evbatteryd.domain.errors import SinkError, StoreError
from evbatteryd.domain.ports import Clock, Log, Sink, Store, Tally
from evbatteryd.domain.reading import Reading
from evbatteryd.domain.vehicle import VehicleId

HANDS: Final = 64
"""Cars that are told at a time: a broker on the next machine is kept busy by fewer, a distant one is not."""
FEW_HANDS: Final = 16
"""Of them, those that make up for an outage while there are news. A car's news wait for all that is owed of
it, one reading after the other: with 64 at a time that took over twice as long, and the rest was hardly
faster (tests/benchmarks/mqtt.py)."""
NEWS_LATELY_S: Final = 5.0
"""Real seconds for which there are news after the last one: cars are polled less often than every second."""
CHUNK: Final = 50
"""Readings of one car that are told before it is another's turn."""
LOADED: Final = 10_000
"""Positions that are taken up at a time at the start."""
SHORTEST_REST_S: Final = 1.0
LONGEST_REST_S: Final = 600.0
"""Real seconds that a car rests whose readings were refused, doubled each time."""
NOTED_EVERY_S: Final = 0.5
"""Real seconds between two notes of how far the cars are."""
SETTLED_EVERY: Final = 20
"""Notes after which the cursor follows them."""
SETTLED_WITHIN_S: Final = 1.0
"""Real seconds that the other side has, at the end, to show that it passed on what it took."""
GIVEN_UP_SAID: Final = timedelta(hours=1)


class Delivery:
    """One sink's way through the journal.

    ``most``: readings that may wait; ``longest``: how old they may become.
    """

    def __init__(
        self,
        store: Store,
        sink: Sink,
        clock: Clock,
        tally: Tally,
        log: Log,
        *,
        most: int,
        longest: timedelta,
    ) -> None:
        self._store = store
        self._sink = sink
        self._clock = clock
        self._tally = tally
        self._log = log.bind(sink=sink.name)
        self._most = most
        self._longest = longest
        self._owed: dict[VehicleId, array[int]] = {}
        """Positions that were not told yet, by car, in order."""
        self._count = 0
        self._news: dict[VehicleId, None] = {}
        """Cars that wait for their turn because of a reading that came while the other side was there."""
        self._behind: dict[VehicleId, None] = {}
        """All others that wait for their turn."""
        self._in_hand: set[VehicleId] = set()
        self._making_up = 0
        """Hands that tell one of those."""
        self._news_until = 0.0
        self._resting: dict[VehicleId, asyncio.TimerHandle] = {}
        self._refused: dict[VehicleId, int] = {}
        """How often in a row the readings of a car were."""
        self._fresh: dict[VehicleId, Reading] = {}
        """Readings that need not be looked up: each the only one owed of its car."""
        self._told: dict[VehicleId, array[int]] = {}
        """Positions that were taken, but may be lost with the connection over which they were told."""
        self._told_over = 0
        """That connection."""
        self._passed: dict[VehicleId, int] = {}
        """How far cars are, where that is not noted yet."""
        self._cursor = 0
        self._hands: set[asyncio.Task[None] | None] = set()
        self._running: asyncio.Future[None] | None = None
        self._to_note = asyncio.Event()
        self._caught_up = asyncio.Event()
        self._caught_up.set()
        self._failing = False
        self._given_up_at: datetime | None = None

    async def open(self) -> None:
        """Take up what is owed since earlier starts. Raises StoreError."""
        self._cursor = position = await self._store.cursor(self._sink.name)
        while owed := await self._store.owed(self._sink.name, position, LOADED):
            for position, vehicle_id in owed:
                self._add(vehicle_id, position)
                self._behind[vehicle_id] = None
            await asyncio.sleep(0)
        self._say()

    def offer(self, reading: Reading) -> None:
        """A reading was committed."""
        vehicle_id = reading.vehicle_id
        alone = vehicle_id not in self._owed
        self._add(vehicle_id, reading.seq)
        if alone:
            self._fresh[vehicle_id] = reading
        else:
            self._fresh.pop(vehicle_id, None)
        if vehicle_id not in self._in_hand and vehicle_id not in self._resting:
            self._queue(vehicle_id, news=self._sink.connected)
            self._hire()

    def forget(self, vehicle_id: VehicleId) -> None:
        """All readings of this car were erased."""
        self._told.pop(vehicle_id, None)
        positions = self._owed.get(vehicle_id)
        if positions is not None:
            self._drop(vehicle_id, positions[-1])
            self._news.pop(vehicle_id, None)
            self._behind.pop(vehicle_id, None)

    def owes(self, vehicle_id: VehicleId) -> bool:
        """Whether readings of this car are not told yet."""
        return vehicle_id in self._owed

    @property
    def waiting(self) -> int:
        """Readings that the sink has not taken yet."""
        return self._count

    async def caught_up(self) -> None:
        """Until every reading was taken."""
        await self._caught_up.wait()

    async def run(self) -> None:
        """Deliver until cancelled: at least once, in order per car."""
        self._running = asyncio.get_running_loop().create_future()
        try:
            for _ in range(min(HANDS, len(self._behind) + len(self._news))):
                self._hire()
            await asyncio.gather(self._running, self._keep_notes())
        finally:
            self._running = None
            hands = [hand for hand in self._hands if hand is not None]
            for hand in hands:
                hand.cancel()
            await asyncio.gather(*hands, return_exceptions=True)
            for timer in self._resting.values():
                timer.cancel()

    async def close(self) -> None:
        """Note what was told last: for after :meth:`run` was cancelled."""
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLED_WITHIN_S):
                await self._prove()
        with suppress(StoreError):
            await self._note()
            await self._settle()

    async def trim(self) -> None:
        """Give up the oldest readings beyond what may wait. For a bell; raises nothing."""
        try:
            by_age = await self._store.position_before(self._clock.now() - self._longest)
            await self._give_up(by_age, "age")
            await self._give_up(await self._too_many(), "size")
        except StoreError as error:
            self._complain(error)

    # Whose turn it is

    def _add(self, vehicle_id: VehicleId, position: int) -> None:
        positions = self._owed.get(vehicle_id)
        if positions is None:
            positions = self._owed[vehicle_id] = array("q")
        positions.append(position)
        self._count += 1
        self._caught_up.clear()

    def _queue(self, vehicle_id: VehicleId, *, news: bool) -> None:
        if news:
            self._behind.pop(vehicle_id, None)
            self._news[vehicle_id] = None
            self._news_until = asyncio.get_running_loop().time() + NEWS_LATELY_S
        elif vehicle_id not in self._news:
            self._behind[vehicle_id] = None

    def _hire(self) -> None:
        if self._running is None or len(self._hands) >= HANDS:
            return
        hand = asyncio.create_task(self._work(), name=f"deliver {self._sink.name}")
        self._hands.add(hand)
        hand.add_done_callback(self._dismiss)

    def _dismiss(self, hand: asyncio.Task[None]) -> None:
        if hand.cancelled():
            return
        bug = hand.exception()
        if bug is not None and self._running is not None and not self._running.done():
            self._running.set_exception(bug)

    def _may_make_up(self) -> bool:
        """Whether one more hand may tell a car that is behind."""
        few = asyncio.get_running_loop().time() < self._news_until
        return bool(self._behind) and self._making_up < (FEW_HANDS if few else HANDS)

    async def _work(self) -> None:
        """Tell one car after the other while any waits."""
        try:
            await self._tell_all()
        finally:
            # Now, not when its callback has run: an offer in between would find all hands full.
            self._hands.discard(asyncio.current_task())

    async def _tell_all(self) -> None:
        while self._news or self._may_make_up():
            if not self._sink.connected:
                await self._sink.reachable()
                # What was news before the other side came back waits like everything else by now.
                self._behind.update(self._news)
                self._news.clear()
            if self._news:
                await self._take_in_hand(self._news, news=True)
            elif self._may_make_up():
                self._making_up += 1
                try:
                    await self._take_in_hand(self._behind, news=False)
                finally:
                    self._making_up -= 1
                if self._may_make_up():
                    self._hire()  # there were fewer of us while there were news

    async def _take_in_hand(self, queue: dict[VehicleId, None], *, news: bool) -> None:
        vehicle_id = next(iter(queue))
        del queue[vehicle_id]
        self._in_hand.add(vehicle_id)
        try:
            await self._tell(vehicle_id, news=news)
        finally:
            self._in_hand.discard(vehicle_id)

    async def _tell(self, vehicle_id: VehicleId, *, news: bool) -> None:
        """Tell a car's next readings, and have it wait for its next turn if there are more."""
        over = self._sink.connection
        if self._told_over != over:
            self._offer_again()  # what was told over the one before is told first
            self._told_over = over
        chunk = self._owed[vehicle_id][:CHUNK]
        known_last = self._owed[vehicle_id][-1]
        refusal: Exception | None = None
        taken = chunk[-1]
        try:
            readings = await self._look_up(vehicle_id, chunk)
            if readings:
                await self._sink.publish(readings, over)
        except SinkError as error:
            refusal, taken = error, error.taken
        except StoreError as error:
            refusal, taken = error, 0
        self._take(vehicle_id, taken, over)
        if refusal is None:
            self._refused.pop(vehicle_id, None)
            self._recovered()
        else:
            self._complain(refusal)
        owed = self._owed.get(vehicle_id)
        if owed is None:
            self._sink.touch(vehicle_id)
        elif refusal is not None and self._sink.connected:
            self._rest(vehicle_id)
        else:
            came_meanwhile = owed[-1] != known_last
            self._queue(vehicle_id, news=(news or came_meanwhile) and self._sink.connected)

    async def _look_up(self, vehicle_id: VehicleId, chunk: array[int]) -> list[Reading]:
        fresh = self._fresh.pop(vehicle_id, None)
        if fresh is not None and len(chunk) == 1 and chunk[0] == fresh.seq:
            return [fresh]
        return await self._store.readings(chunk)

    def _rest(self, vehicle_id: VehicleId) -> None:
        """Have others go on, and try this car again later."""
        times = self._refused.get(vehicle_id, 0) + 1
        self._refused[vehicle_id] = times
        longest = min(SHORTEST_REST_S * 2.0 ** min(times - 1, 16), LONGEST_REST_S)

        def rested() -> None:
            del self._resting[vehicle_id]
            if vehicle_id in self._owed:
                self._queue(vehicle_id, news=False)
                self._hire()

        pause = random.uniform(longest / 2, longest)
        self._resting[vehicle_id] = asyncio.get_running_loop().call_later(pause, rested)

    def _take(self, vehicle_id: VehicleId, position: int, over: int) -> None:
        """Everything of this car up to and including ``position`` is told, ``over`` that connection."""
        positions = self._owed.get(vehicle_id)
        if positions is None or positions[0] > position or over != self._told_over:
            return
        self._told.setdefault(vehicle_id, array("q")).extend(positions[: _count_up_to(positions, position)])
        self._drop(vehicle_id, position)
        self._to_note.set()

    def _offer_again(self) -> None:
        """What was told may be lost: it is owed again."""
        told, self._told = self._told, {}
        for vehicle_id, positions in told.items():
            owed = self._owed.get(vehicle_id)
            if owed is not None:
                positions.extend(owed)
            self._count += len(positions) - (0 if owed is None else len(owed))
            self._owed[vehicle_id] = positions
            self._fresh.pop(vehicle_id, None)
            self._caught_up.clear()
            if vehicle_id not in self._in_hand and vehicle_id not in self._resting:
                self._queue(vehicle_id, news=False)
                self._hire()

    def _drop(self, vehicle_id: VehicleId, position: int) -> int:
        """Owe nothing of this car up to and including ``position``; how many readings that were."""
        positions = self._owed.get(vehicle_id)
        if positions is None:
            return 0
        count = _count_up_to(positions, position)
        if count == len(positions):
            del self._owed[vehicle_id]
            self._fresh.pop(vehicle_id, None)
            self._refused.pop(vehicle_id, None)
        else:
            del positions[:count]
        self._count -= count
        if not self._owed:
            self._caught_up.set()
        return count

    # How far it is

    async def _keep_notes(self) -> None:
        """Note how far the cars are, some at a time, and move the cursor after them now and then."""
        notes = 0
        while True:
            await self._to_note.wait()
            await asyncio.sleep(NOTED_EVERY_S)
            self._to_note.clear()
            try:
                await self._prove()
                await self._note()
                notes += 1
                if notes % SETTLED_EVERY == 0 or not self._owed:
                    await self._settle()
            except StoreError as error:
                self._complain(error)
                self._to_note.set()
            self._say()

    async def _prove(self) -> None:
        """Make sure that what was told was passed on, or have it told again."""
        if not self._told:
            return
        over, cars = self._told_over, {vehicle_id: len(told) for vehicle_id, told in self._told.items()}
        settled = over == self._sink.connection and await self._sink.settle()
        if self._told_over != over:
            return  # the connection ended meanwhile, and all of it is owed again
        if not settled or over != self._sink.connection:
            self._offer_again()
            return
        for vehicle_id, count in cars.items():
            told = self._told.get(vehicle_id)
            if told is None:  # erased
                continue
            self._passed[vehicle_id] = told[count - 1]
            if count == len(told):
                del self._told[vehicle_id]
            else:
                del told[:count]

    async def _note(self) -> None:
        """Keep how far the cars are. Raises StoreError."""
        passed, self._passed = self._passed, {}
        if not passed:
            return
        try:
            await self._store.delivered(self._sink.name, passed)
        except BaseException:
            self._passed = passed | self._passed
            raise

    async def _settle(self) -> None:
        """Move the cursor as far as nothing is owed. Raises StoreError.

        Positions are given in the order of the commits. So if nothing up to the newest one is owed by what is
        noted, nothing up to there is still on its way to us either.
        """
        newest = self._store.head
        owed = await self._store.owed(self._sink.name, self._cursor, 1)
        settled = owed[0][0] - 1 if owed else newest
        if settled > self._cursor:
            await self._store.delivered(self._sink.name, {}, settled)
            self._cursor = settled

    # What is too much

    async def _too_many(self) -> int:
        """Position of the last reading that has to go for there to be few enough; 0: none has to."""
        excess, position = self._count - self._most, self._cursor
        if excess <= 0:
            return 0
        while excess > 0:
            owed = await self._store.owed(self._sink.name, position, min(excess, LOADED))
            if not owed:
                break
            position = owed[-1][0]
            excess -= len(owed)
        return position

    async def _give_up(self, position: int, reason: str) -> None:
        """Owe nothing up to and including ``position``. Raises StoreError."""
        if position <= self._cursor:
            return
        await self._store.delivered(self._sink.name, {}, position)
        self._cursor = position
        gone = 0
        for vehicle_id in list(_beginning_before(self._owed, position)):
            gone += self._drop(vehicle_id, position)
            if vehicle_id not in self._owed:
                self._news.pop(vehicle_id, None)
                self._behind.pop(vehicle_id, None)
                self._sink.touch(vehicle_id)
        if gone:
            self._tally.given_up(self._sink.name, reason, gone)
            self._say_given_up(reason, gone)
        self._say()

    def _say_given_up(self, reason: str, gone: int) -> None:
        now = self._clock.now()
        if self._given_up_at is not None and timedelta() <= now - self._given_up_at < GIVEN_UP_SAID:
            return
        self._given_up_at = now
        limit = (
            f"older than {self._longest.total_seconds() / 86_400:g} days"
            if reason == "age"
            else f"more than {self._most} wait"
        )
        self._log.error(
            "delivery.given_up",
            readings=gone,
            reason=limit,
            waiting=self._count,
            mend="Bring the other side back, or let more wait; the history still holds what was given up.",
        )

    # What is said

    def _say(self) -> None:
        self._tally.outbox(self._sink.name, self._count)

    def _complain(self, error: Exception) -> None:
        if not self._failing:
            self._failing = True
            self._log.warning("delivery.failing", error=str(error), waiting=self._count)

    def _recovered(self) -> None:
        if self._failing and not self._refused:
            self._failing = False
            self._log.info("delivery.recovered", waiting=self._count)


def _count_up_to(positions: array[int], position: int) -> int:
    """How many of the positions, which rise, are at most ``position``."""
    low, high = 0, len(positions)
    while low < high:
        middle = (low + high) // 2
        if positions[middle] <= position:
            low = middle + 1
        else:
            high = middle
    return low


def _beginning_before(owed: dict[VehicleId, array[int]], position: int) -> Iterator[VehicleId]:
    return (vehicle_id for vehicle_id, positions in owed.items() if positions[0] <= position)
