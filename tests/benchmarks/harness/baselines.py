"""What existing software does. ``scale`` multiplies every interval; at a budget :mod:`.bench` gives each
baseline the scale that suits it best."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass

from tests.benchmarks.harness.upstream import PollError, Reading, Vehicle

MIN = 60.0


class Baseline(ABC):
    """A policy that waits, by what it was just told."""

    name = "baseline"

    def __init__(self, budget: float | None = None, seed: int = 0, scale: float = 1.0) -> None:
        self.budget, self.seed, self.scale = budget, seed, scale

    def first(self, vehicle: Vehicle, now: float) -> float:
        return now + random.Random(f"{self.seed}/{vehicle.id}").random() * 30 * MIN * self.scale

    @abstractmethod
    def wait(self, vehicle: Vehicle, answer: Reading | PollError) -> float:
        """Seconds to the next poll, before scaling."""

    def after(self, vehicle: Vehicle, answer: Reading | PollError, now: float) -> float:
        if isinstance(answer, PollError) and answer.retry_after:
            return now + answer.retry_after
        return now + self.wait(vehicle, answer) * self.scale


class Fixed(Baseline):
    """Every ``minutes``, but no faster than the brand's documented limit allows."""

    name, minutes = "fixed", 60

    def wait(self, vehicle: Vehicle, answer: Reading | PollError) -> float:
        floor = 1.02 * vehicle.limit[1] / vehicle.limit[0] / self.scale if vehicle.limit else 0.0
        return max(self.minutes * MIN, floor)


class EvccLike(Baseline):
    """evcc's shape: every 15 min (its vehicle cache) while charging, every 60 min otherwise (its poll
    interval; the real default polls only while charging, with help from the wall box)."""

    name = "evcc-like"

    def wait(self, vehicle: Vehicle, answer: Reading | PollError) -> float:
        return (15 if isinstance(answer, Reading) and answer.is_charging else 60) * MIN


@dataclass(slots=True)
class _Memory:
    soc: float | None = None
    idle: int = 0


class TeslaMateLike(Baseline):
    """TeslaMate's state machine, slowed down to paid calls (2.5 s driving there): driving fast, charging
    medium, online slow; after 3 min idle it suspends for 15 min so that the car can sleep, and leaves a
    sleeping car alone. Driving is inferred: unplugged and less charge than before."""

    name = "teslamate-like"

    def __init__(self, budget: float | None = None, seed: int = 0, scale: float = 1.0) -> None:
        super().__init__(budget, seed, scale)
        self._memories: dict[str, _Memory] = {}

    def wait(self, vehicle: Vehicle, answer: Reading | PollError) -> float:
        memory = self._memories.setdefault(vehicle.id, _Memory())
        if isinstance(answer, PollError):
            return 30 * MIN if answer.kind == "asleep" else 5 * MIN
        dropped = memory.soc is not None and answer.soc < memory.soc - 1e-9
        changed = memory.soc is None or abs(answer.soc - memory.soc) > 1e-9
        memory.soc = answer.soc
        if answer.is_charging:
            memory.idle = 0
            return 10 * MIN
        if dropped and not answer.is_plugged_in:
            memory.idle = 0
            return 5 * MIN
        memory.idle = 0 if changed else memory.idle + 1
        return (60 if memory.idle >= 2 else 20) * MIN


class HaLike(Fixed):
    """Home Assistant's DataUpdateCoordinator: a fixed interval (30 min); after a 429 or a failure the next
    one is doubled, up to 8 times, back to normal after an answer; honours retry-after."""

    name, minutes = "ha-like", 30

    def __init__(self, budget: float | None = None, seed: int = 0, scale: float = 1.0) -> None:
        super().__init__(budget, seed, scale)
        self._doublings: dict[str, int] = {}

    def wait(self, vehicle: Vehicle, answer: Reading | PollError) -> float:
        failed = isinstance(answer, PollError) and answer.kind != "asleep"
        doublings = min(self._doublings.get(vehicle.id, 0) + 1, 3) if failed else 0
        self._doublings[vehicle.id] = doublings
        return super().wait(vehicle, answer) * 2**doublings


BASELINES: dict[str, type[Baseline]] = {
    policy.name: policy for policy in (Fixed, EvccLike, TeslaMateLike, HaLike)
}
