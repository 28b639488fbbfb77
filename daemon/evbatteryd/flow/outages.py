"""Which brands' clouds are down, application by application: their cars wait at the door, at no cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from evbatteryd.domain.cadence import words
from evbatteryd.domain.errors import SourceError
from evbatteryd.domain.fleet import Car
from evbatteryd.domain.outage import ENOUGH_CARS, HEALTHY, Line, cloud_answered
from evbatteryd.domain.ports import Log
from evbatteryd.domain.profile import BrandProfile
from evbatteryd.domain.reading import Observation

_Key = tuple[str, str]
"""Application and brand."""


class Outages:
    """Keeps a :class:`~evbatteryd.domain.outage.Line` for each application and brand.

    ``most``: requests of one brand that may be under way at once. ``cars_of``: how many cars of an
    application and a brand are asked at all.
    """

    def __init__(self, log: Log, *, most: int, cars_of: Callable[[str, str], int]) -> None:
        self._log = log
        self._most = most
        self._cars_of = cars_of
        self._lines: dict[_Key, Line] = {}
        self._under_way: Counter[_Key] = Counter()

    def admits(self, application: str, brand: str, now: datetime) -> bool:
        """Whether one more car of this brand may be asked."""
        line = self._lines.get((application, brand))
        return line is None or line.admits(self._under_way[application, brand], now)

    def begun(self, car: Car) -> None:
        """It is being asked."""
        key = _key(car)
        self._under_way[key] += 1
        self._keep(key, self._line(key).begun(car.id))

    def answered(
        self, car: Car, answer: Observation | SourceError, profile: BrandProfile, now: datetime
    ) -> None:
        """What its answer says of its brand's cloud."""
        key, up = _key(car), cloud_answered(answer)
        before = self._line(key)
        if up is None:
            return
        if up:
            self._keep(key, before.answering(self._most))
        else:
            # Counting cars walks the fleet: not for each failure of an outage.
            few = not before.closed and len(before.failed) < ENOUGH_CARS - 1
            cars = self._cars_of(*key) if few else ENOUGH_CARS
            self._keep(key, before.failing(car.id, cars, profile.floor, now))
        self._report(key, before, now)

    def ended(self, car: Car, now: datetime) -> None:
        """Its request is over, whether or not it was answered."""
        key = _key(car)
        self._under_way[key] -= 1
        if not self._under_way[key]:
            del self._under_way[key]
        self._keep(key, self._line(key).ended(car.id, now))

    def next_try(self, application: str, brands: Iterable[str]) -> datetime | None:
        """When the first of these brands admits a car by the passing of time alone; None: none of them."""
        lines = (self._line((application, brand)) for brand in brands)
        return min((line.probe_at for line in lines if line.probe_at and not line.probe), default=None)

    def why(self, application: str, profile: BrandProfile, waiting: int, now: datetime) -> str | None:
        """Why cars of this brand wait, in one sentence; None if its cloud is not down."""
        line = self._line((application, profile.brand))
        if line.since is None or line.probe_at is None:
            return None
        cars = "1 car waits" if waiting == 1 else f"{waiting} cars wait"
        wait = line.probe_at - now
        if line.probe is not None:
            then = "one is being asked at this moment"
        else:
            then = "one tries next" if wait <= timedelta() else f"one tries in {words(wait)}"
        silent = f"{profile.name}'s cloud has not answered for {words(now - line.since)}"
        return f"{silent}: {cars} for one to get through; {then}"

    def _line(self, key: _Key) -> Line:
        return self._lines.get(key, HEALTHY)

    def _keep(self, key: _Key, line: Line) -> None:
        if line.healthy:
            self._lines.pop(key, None)
        else:
            self._lines[key] = line

    def _report(self, key: _Key, before: Line, now: datetime) -> None:
        after = self._line(key)
        application, brand = key
        if after.closed and not before.closed:
            self._log.warning("brand.closed", application=application, brand=brand, failed=len(after.failed))
        elif before.closed and not after.closed and before.since is not None:
            self._log.info(
                "brand.opened", application=application, brand=brand, lasted=words(now - before.since)
            )


def _key(car: Car) -> _Key:
    return car.vehicle.consent.application, car.vehicle.brand
