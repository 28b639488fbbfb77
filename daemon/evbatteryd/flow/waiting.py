"""Cars that are due and wait for a request to be free: the one that gains most goes first."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from datetime import datetime, timedelta

from evbatteryd.domain.cadence import urgency
from evbatteryd.domain.profile import Activity
from evbatteryd.domain.vehicle import VehicleId

Kind = tuple[str, Activity]
"""Brand and activity. Cars of a kind share an interval: among them the longest due is the most urgent."""


class WaitingRoom:
    """Due cars, by kind. Taking the most urgent of 100,000 looks at one car per kind."""

    def __init__(self) -> None:
        self._kinds: dict[Kind, list[tuple[datetime, VehicleId]]] = {}
        self._inside: set[VehicleId] = set()

    def __len__(self) -> int:
        return len(self._inside)

    def __contains__(self, vehicle_id: VehicleId) -> bool:
        return vehicle_id in self._inside

    def enter(self, vehicle_id: VehicleId, kind: Kind, due: datetime) -> None:
        if vehicle_id not in self._inside:
            self._inside.add(vehicle_id)
            heapq.heappush(self._kinds.setdefault(kind, []), (due, vehicle_id))

    def take(
        self, now: datetime, interval: Callable[[Kind], timedelta], admits: Callable[[str], bool]
    ) -> VehicleId | None:
        """The most urgent car of a brand that ``admits`` one more; None if there is none."""
        best: tuple[float, Kind] | None = None
        for kind, queue in list(self._kinds.items()):
            if not queue:
                del self._kinds[kind]
            elif admits(kind[0]):
                worth = urgency(queue[0][0], interval(kind), now)
                if best is None or worth > best[0]:
                    best = (worth, kind)
        if best is None:
            return None
        _, vehicle_id = heapq.heappop(self._kinds[best[1]])
        self._inside.remove(vehicle_id)
        return vehicle_id
