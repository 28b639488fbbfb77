"""APScheduler rings the bell, our tasks do the work.

One job per brand cohort, which drains that cohort's heap of due cars in slices. Version 3 of APScheduler
drops alarms over a second late unless ``misfire_grace_time=None``, removes one-shot jobs it missed, logs and
swallows what a job raises, and blocks the loop for seconds when 100,000 jobs fall due; so no car is ever a
job of its own, and no job does more than ring.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from evbatteryd.domain.ports import Clock
from evbatteryd.domain.vehicle import VehicleId

SET_BACK_S = 2.0
"""By so much the machine's clock must go back at once to count as set back."""
SLICE = 256
"""Cars that one ring hands on before it lets the loop breathe."""


class Alarms:
    """At most one alarm per car, earliest first; setting a new one silences the old."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, VehicleId]] = []
        self._set: dict[VehicleId, float] = {}

    def __len__(self) -> int:
        return len(self._set)

    def arm(self, vehicle_id: VehicleId, at: datetime | None) -> None:
        """Set the car's alarm, or with None silence it."""
        if at is None:
            self._set.pop(vehicle_id, None)
        else:
            when = at.timestamp()
            if self._set.get(vehicle_id) != when:
                self._set[vehicle_id] = when
                heapq.heappush(self._heap, (when, vehicle_id))
        if len(self._heap) > 64 + 2 * len(self._set):
            self._heap = [(when, car) for car, when in self._set.items()]
            heapq.heapify(self._heap)

    def due(self, now: datetime, at_most: int) -> Iterator[VehicleId]:
        """Cars whose alarm has come, earliest first. Each is silenced as it is handed out."""
        until = now.timestamp()
        while at_most > 0 and self._heap and self._heap[0][0] <= until:
            when, vehicle_id = heapq.heappop(self._heap)
            if self._set.get(vehicle_id) == when:
                del self._set[vehicle_id]
                at_most -= 1
                yield vehicle_id


def _ahead() -> float:
    """Seconds by which the machine's clock is ahead of its steady one."""
    return time.time() - time.monotonic()


def _nobody(vehicle_id: VehicleId) -> None:
    raise AssertionError("a bell rang before the timer was started")


class CohortTimer:
    """Alarms of cars, by brand, each brand with its bell; and the few housekeeping bells.

    What a bell's callback raises is a bug: it is handed to ``on_bug``, because APScheduler would swallow it.
    """

    def __init__(self, clock: Clock, on_bug: Callable[[BaseException], None]) -> None:
        self._clock = clock
        self._on_bug = on_bug
        self._on_due: Callable[[VehicleId], None] = _nobody
        self._cohorts: dict[str, Alarms] = {}
        self._minding: asyncio.TimerHandle | None = None
        # In time-lapse a second of the clock is too short to ring in; a tenth of the wall's will do.
        self._tick = 1.0 if clock.speed <= 1.0 else 0.1
        logging.getLogger("apscheduler").setLevel(logging.WARNING)
        self._bells = AsyncIOScheduler(
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1}, timezone="UTC"
        )

    def start(self, on_due: Callable[[VehicleId], None]) -> None:
        """Ring from now on; ``on_due`` is called with every car that falls due."""
        self._on_due = on_due
        self._bells.start()
        self._mind_the_clock(_ahead())

    def stop(self) -> None:
        """Nothing falls due any more. Alarms stay: their due times are in the store anyway."""
        if self._bells.running:
            self._bells.shutdown(wait=False)
        if self._minding is not None:
            self._minding.cancel()

    def _mind_the_clock(self, ahead: float) -> None:
        """APScheduler waits for instants: were the clock set back an hour, no bell would ring for one."""
        now_ahead = _ahead()
        if now_ahead < ahead - SET_BACK_S:
            for job in self._bells.get_jobs():
                job.modify(next_run_time=datetime.fromtimestamp(time.time(), UTC))
        loop = asyncio.get_running_loop()
        self._minding = loop.call_later(1.0, self._mind_the_clock, now_ahead)

    def arm(self, vehicle_id: VehicleId, brand: str, at: datetime | None) -> None:
        """Ask for this car at ``at``; with None, not at all."""
        alarms = self._cohorts.get(brand)
        if alarms is None:
            alarms = self._cohorts[brand] = Alarms()
            self._ring(f"cohort {brand}", self._tick, self._drain, alarms)
        alarms.arm(vehicle_id, at)

    def every(self, name: str, span: timedelta, ring: Callable[[], None]) -> None:
        """A housekeeping bell."""
        self._ring(name, max(self._clock.real(span), self._tick), self._once, ring)

    def __len__(self) -> int:
        return sum(map(len, self._cohorts.values()))

    def _ring(self, name: str, seconds: float, job: Any, *args: Any) -> None:
        self._bells.add_job(job, "interval", seconds=seconds, args=args, id=name, name=name)

    # Coroutines, or APScheduler would run them in a thread.
    async def _drain(self, alarms: Alarms) -> None:
        try:
            while True:
                due = list(alarms.due(self._clock.now(), SLICE))
                for vehicle_id in due:
                    self._on_due(vehicle_id)
                if len(due) < SLICE:
                    return
                await asyncio.sleep(0)
        except Exception as bug:
            self._on_bug(bug)

    async def _once(self, ring: Callable[[], None]) -> None:
        try:
            ring()
        except Exception as bug:
            self._on_bug(bug)
