"""Cars that are due and wait for a request to be free: it goes where it buys most."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.domain.worth import Claim

LONGEST_WAIT = timedelta(hours=12)
GRADES_PER_OCTAVE = 4
"""Slopes of one grade differ by a factor of 2^(1/4) at most."""

_Entry = tuple[float, int, VehicleId, str]
"""Epoch seconds that it is ordered by, ticket, car, brand."""


class WaitingRoom:
    """Due cars of one application. Taking one of 100,000 looks at the first of each grade, some dozens.

    The worth of a car is the square of ``slope * (now - since)``, so who is ahead changes with time, and no
    heap could hold that order. But of cars with the same slope the one with the earliest ``since`` is ahead
    for ever. So slopes are rounded to grades, powers of 2^(1/4), and only the first of each grade are
    compared, by the middle of their grade. Rounding moves the root of a worth by 2^(1/8) at most, up for one
    car and down for another: whoever is taken has at least 2^(-1/4), 84 %, of the root of the highest worth
    in the room, and so at least 2^(-1/2), 71 %, of that worth.

    Two things go before worth. A car that was not asked for ``longest_wait`` after it fell due goes first,
    the oldest of them before all others. And cars whose answer somebody awaits have a line of their own that
    gets every second call as long as others wait too: a thousand cars that are enrolled at once wait for each
    other, and nobody waits twice as long because of them.
    """

    def __init__(self, longest_wait: timedelta = LONGEST_WAIT) -> None:
        self._longest_wait_s = longest_wait.total_seconds()
        self._places: dict[VehicleId, _Place] = {}
        self._tickets: dict[VehicleId, int] = {}
        self._numbers = itertools.count()
        self._brands: Counter[str] = Counter()
        self._grades: dict[int, _Line] = {}
        self._by_due = _Line(self._tickets)
        self._awaited = _Line(self._tickets)
        self._awaited_went = False

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, vehicle_id: VehicleId) -> bool:
        return vehicle_id in self._places

    @property
    def brands(self) -> Collection[str]:
        """Those of the cars that wait. A view, not a copy."""
        return self._brands.keys()

    def waiting(self, brand: str) -> int:
        """How many cars of this brand wait."""
        return self._brands[brand]

    def enter(self, vehicle_id: VehicleId, brand: str, claim: Claim, *, awaited: bool = False) -> None:
        """Let it wait. One that waits already waits by this claim from now on."""
        self.leave(vehicle_id)
        ticket = next(self._numbers)
        self._tickets[vehicle_id] = ticket
        self._brands[brand] += 1
        due = (claim.due.timestamp(), ticket, vehicle_id, brand)
        if awaited:
            self._awaited.push(due)
            self._places[vehicle_id] = _Place(brand, (self._awaited,))
            return
        number = math.floor(GRADES_PER_OCTAVE * math.log2(claim.slope))
        grade = self._grade(number)
        grade.push((claim.since.timestamp(), ticket, vehicle_id, brand))
        self._by_due.push(due)
        self._places[vehicle_id] = _Place(brand, (grade, self._by_due), number)

    def leave(self, vehicle_id: VehicleId) -> None:
        """It waits no more, if it did."""
        place = self._places.pop(vehicle_id, None)
        if place is None:
            return
        del self._tickets[vehicle_id]
        self._brands[place.brand] -= 1
        if not self._brands[place.brand]:
            del self._brands[place.brand]
        for line in place.lines:
            line.left()
        if place.grade is not None and self._grades[place.grade].empty:
            del self._grades[place.grade]

    def take(self, now: datetime, admits: Callable[[str], bool]) -> VehicleId | None:
        """Whoever is next of the brands that ``admits`` one more; None if there is nobody."""
        refused = {brand for brand in self._brands if not admits(brand)}
        if len(refused) == len(self._brands):
            return None
        awaited = self._awaited.first(refused)
        other = self._overdue(now, refused) or self._worthiest(now, refused)
        chosen = awaited if other is None or (awaited and not self._awaited_went) else other
        if chosen is None:
            return None
        self._awaited_went = chosen is awaited
        self.leave(chosen[2])
        return chosen[2]

    def _overdue(self, now: datetime, refused: Container[str]) -> _Entry | None:
        oldest = self._by_due.first(refused)
        if oldest is None or now.timestamp() - oldest[0] < self._longest_wait_s:
            return None
        return oldest

    def _worthiest(self, now: datetime, refused: Container[str]) -> _Entry | None:
        at, best, most = now.timestamp(), None, -math.inf
        for grade in self._grades.values():
            first = grade.first(refused)
            if first is not None and (root := grade.slope * (at - first[0])) > most:
                best, most = first, root
        return best

    def _grade(self, number: int) -> _Line:
        line = self._grades.get(number)
        if line is None:
            middle = 2.0 ** ((number + 0.5) / GRADES_PER_OCTAVE)
            line = self._grades[number] = _Line(self._tickets, middle)
        return line


@dataclass(frozen=True, slots=True)
class _Place:
    brand: str
    lines: tuple[_Line, ...]
    """Those it stands in."""
    grade: int | None = None
    """None: it stands in none of them, being awaited."""


class _Line:
    """Cars in order of an instant. The first of all brands but some is found without walking the others.

    Each brand has its heap, and the first of each stand in another one. Whoever has left goes on standing in
    them until he comes first: ``tickets`` tells whose place still counts.
    """

    def __init__(self, tickets: Mapping[VehicleId, int], slope: float = 0.0) -> None:
        self.slope = slope
        self._tickets = tickets
        self._waiting = 0
        self._standing = 0
        self._queues: dict[str, list[_Entry]] = {}
        self._leads: list[_Entry] = []
        self._lead: dict[str, int] = {}
        """Ticket by which each brand stands among ``_leads``; other entries of it there are void."""

    @property
    def empty(self) -> bool:
        return not self._waiting

    def push(self, entry: _Entry) -> None:
        self._waiting += 1
        self._standing += 1
        if self._standing > 64 + 2 * self._waiting:
            self._tidy()
        queue = self._queues.setdefault(entry[3], [])
        heapq.heappush(queue, entry)
        if queue[0] is entry:
            self._leads_by(entry)

    def left(self) -> None:
        """One of them waits no more."""
        self._waiting -= 1
        if not self._waiting:
            self._clear()

    def first(self, refused: Container[str]) -> _Entry | None:
        """The first of a brand that is not refused."""
        leads, aside = self._leads, []
        found: _Entry | None = None
        while leads and found is None:
            entry = leads[0]
            _, ticket, vehicle_id, brand = entry
            if self._lead.get(brand) != ticket:
                heapq.heappop(leads)
            elif self._tickets.get(vehicle_id) != ticket:
                heapq.heappop(leads)
                self._advance(brand)
            elif brand in refused:
                aside.append(heapq.heappop(leads))
            else:
                found = entry
        for entry in aside:
            heapq.heappush(leads, entry)
        return found

    def _advance(self, brand: str) -> None:
        """Have the next of this brand that still waits stand for it."""
        queue = self._queues[brand]
        while queue and self._tickets.get(queue[0][2]) != queue[0][1]:
            heapq.heappop(queue)
            self._standing -= 1
        if queue:
            self._leads_by(queue[0])
        else:
            del self._queues[brand], self._lead[brand]

    def _leads_by(self, entry: _Entry) -> None:
        self._lead[entry[3]] = entry[1]
        heapq.heappush(self._leads, entry)
        if len(self._leads) > 64 + 2 * len(self._queues):
            self._leads[:] = [queue[0] for queue in self._queues.values()]
            heapq.heapify(self._leads)

    def _tidy(self) -> None:
        """Let go of all that have left: they must not outnumber those who wait."""
        standing = [
            entry
            for queue in self._queues.values()
            for entry in queue
            if self._tickets.get(entry[2]) == entry[1]
        ]
        self._clear()
        self._standing = len(standing) + 1
        for entry in sorted(standing):
            queue = self._queues.setdefault(entry[3], [])
            queue.append(entry)
            if len(queue) == 1:
                self._leads_by(entry)

    def _clear(self) -> None:
        self._standing = 0
        self._queues.clear()
        self._leads.clear()
        self._lead.clear()
