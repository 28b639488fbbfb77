"""What was asked of the simulator, for tests that must know how a client behaved."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(slots=True)
class VehicleStats:
    requests: int = 0
    """All that named it, also those refused."""
    billed: int = 0
    """Those the plan counted."""
    in_flight: int = 0
    most_in_flight: int = 0


@dataclass(slots=True)
class WebhookStats:
    verified: bool = False
    """The receiver has answered the challenge."""
    delivered: int = 0
    """Events answered with success."""
    failed: int = 0
    """Attempts that were not."""
    retried: int = 0
    """Attempts after the first."""
    duplicated: int = 0
    """Copies sent beside them."""
    dropped: int = 0
    """Events that the last retry could not deliver either, or whose retries a pause came before."""


class Stats:
    def __init__(self) -> None:
        self._by_kind: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._asked: Counter[str] = Counter()
        self._vehicles: defaultdict[str, VehicleStats] = defaultdict(VehicleStats)
        self.rejected = Counter({"bucket": 0, "vehicle": 0, "plan": 0})
        self.webhooks = WebhookStats()

    @contextmanager
    def asking(self, kind: str, vehicle_id: str | None) -> Iterator[int]:
        """While a request is served. Yields its number among those of its vehicle, or of its kind."""
        self._asked[kind] += 1
        if vehicle_id is None:
            yield self._asked[kind]
            return
        vehicle = self._vehicles[vehicle_id]
        vehicle.requests += 1
        vehicle.in_flight += 1
        vehicle.most_in_flight = max(vehicle.most_in_flight, vehicle.in_flight)
        try:
            yield vehicle.requests
        finally:
            vehicle.in_flight -= 1

    def answered(self, kind: str, how: str) -> None:
        """``how``: the HTTP status; without an answer the fault, or ``gone`` if the client hung up."""
        self._by_kind[kind][how] += 1

    def billed(self, vehicle_id: str) -> None:
        self._vehicles[vehicle_id].billed += 1

    def as_json(self) -> dict[str, Any]:
        return {
            "requests": {kind: dict(counts) for kind, counts in self._by_kind.items()},
            "rejected": dict(self.rejected),
            "webhooks": asdict(self.webhooks),
            "most_in_flight": max((v.most_in_flight for v in self._vehicles.values()), default=0),
            "vehicles": {
                vehicle_id: {
                    "requests": vehicle.requests,
                    "billed": vehicle.billed,
                    "most_in_flight": vehicle.most_in_flight,
                }
                for vehicle_id, vehicle in self._vehicles.items()
            },
        }
