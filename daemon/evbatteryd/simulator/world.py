"""Everything that the parts of the simulator share: its options, its clock, its fleet and its books."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from evbatteryd.simulator.clock import Clock
from evbatteryd.simulator.clouds import clouds_named
from evbatteryd.simulator.conduct import AS_SMARTCAR
from evbatteryd.simulator.draws import key_of, log_normal, token_of, uuid_of
from evbatteryd.simulator.faults import Faults
from evbatteryd.simulator.fleet import PERMISSIONS, Fleet, Vehicle
from evbatteryd.simulator.identity import Tokens
from evbatteryd.simulator.limits import Bucket, Plan, RollingLimits
from evbatteryd.simulator.lives import load_lives
from evbatteryd.simulator.stats import Stats

MEDIAN_LATENCY_S: Final = 8.0
LATENCY_SIGMA: Final = 1.0
SHORTEST_LATENCY_S: Final = 1.0
LONGEST_LATENCY_S: Final = 300.0
"""At most 300 s, 3 to 45 s on average, says Smartcar:
https://smartcar.com/docs/integration-guide/plan-your-integration/make-requests-to-smartcar/"""
_LATENCY: Final = 1 << 32

MODES: Final = ("live", "simulated")
PERIODS: Final = ("month", "day")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorOptions:
    """What the world is like. Raises ValueError for what cannot be."""

    vehicles: int = 20
    brands: Sequence[str] = ()
    """Makes, as ``LAND ROVER`` or ``land_rover``, in turn; all 46 if empty."""
    traces: Path | str | None = None
    """A folder of recorded lives instead of the shipped ones."""
    speed: float = 1.0
    """The world's seconds in a real one; without effect where a clock is given."""
    seed: int = 0
    client_id: str | None = None
    client_secret: str | None = field(default=None, repr=False)
    application_id: str | None = None
    management_token: str | None = field(default=None, repr=False)
    latency_scale: float = 1.0
    """1: as slow as Smartcar; 0: at once."""
    bucket: float = 120
    """Requests of the application in reserve."""
    refill_per_minute: float = 2.0
    calls_per_vehicle: int | None = 500
    """In a period; None: as many as one likes."""
    period: str = "month"
    mode: str = "live"
    webhook: str | None = field(default=None, repr=False)
    """The URL that webhooks go to; it may hold a password. None: there are none."""
    auto_subscribe: bool = True
    """A consent alone subscribes a vehicle to the webhook. False: only a request for it does, and until then
    nothing is known of the vehicle; this is also so for those of the beginning."""
    redirect_uris: Sequence[str] = ()
    """Where Connect may send browsers back to, exactly. Empty: anywhere by TLS, and to any loopback host."""
    permissions: Sequence[str] = PERMISSIONS
    """What the owners of the vehicles of the beginning have consented to."""
    connect_code: bool = True
    """Whether Connect adds a ``code`` to its answer, as it does for applications that still use API v2.0."""

    def __post_init__(self) -> None:
        wrong = [
            what
            for what, is_wrong in (
                (f"vehicles must be 0 or more, not {self.vehicles}", self.vehicles < 0),
                (f"speed must be above 0, not {self.speed}", not self.speed > 0),
                (f"latency_scale must be 0 or more, not {self.latency_scale}", not self.latency_scale >= 0),
                (f"bucket must be 1 or more, not {self.bucket}", not self.bucket >= 1),
                (
                    f"refill_per_minute must be above 0, not {self.refill_per_minute}",
                    not self.refill_per_minute > 0,
                ),
                (
                    f"calls_per_vehicle must be 0 or more, not {self.calls_per_vehicle}",
                    self.calls_per_vehicle is not None and self.calls_per_vehicle < 0,
                ),
                (
                    f"period must be one of {', '.join(PERIODS)}, not {self.period!r}",
                    self.period not in PERIODS,
                ),
                (f"mode must be one of {', '.join(MODES)}, not {self.mode!r}", self.mode not in MODES),
                (
                    "webhook must be a URL like http://127.0.0.1:9782/webhooks/smartcar",
                    self.webhook is not None and not is_web_address(self.webhook),
                ),
                (
                    "redirect_uris must be URLs like http://127.0.0.1:9782/enrol/callback",
                    not all(map(is_web_address, self.redirect_uris)),
                ),
            )
            if is_wrong
        ]
        if wrong:
            raise ValueError("; ".join(wrong))


def is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets without an end, a port beyond 65535
        return False


class Notifier(Protocol):
    """Whoever sends the webhooks, as far as others may tell it what to do."""

    async def verify(self) -> bool:
        """Send the challenge; whether it was answered right."""
        ...

    def tell(self, vehicle: Vehicle, error: dict[str, Any]) -> None:
        """Send an error of a vehicle."""
        ...

    def begin_anew(self) -> None:
        """Forget all that is still to be sent, and what was: each vehicle gets its first delivery again."""
        ...


class World:
    """One application of Smartcar's, and its vehicles."""

    def __init__(self, options: SimulatorOptions, clock: Clock) -> None:
        self.options = options
        self.clock = clock
        self.latency_scale = options.latency_scale
        key = key_of("application", options.seed)
        self.client_id = options.client_id or f"client_{uuid_of(key, 1)}"
        self.client_secret = options.client_secret or token_of(key, 2)
        self.application_id = options.application_id or uuid_of(key, 3)
        self.management_token = options.management_token or uuid_of(key, 4)
        self.webhook_id = uuid_of(key, 5)
        self.webhook_name = "Simulated"
        self.started_at = self.now()
        self.fleet = Fleet(
            clouds_named(options.brands),
            load_lives(Path(options.traces) if options.traces is not None else None),
            options.seed,
            auto_subscribe=options.auto_subscribe,
        )
        permissions = tuple(options.permissions)
        for _ in range(options.vehicles):
            self.fleet.add().permissions = permissions
        self.tokens = Tokens(self.client_id, self.client_secret, options.seed)
        self.bucket = Bucket(options.bucket, options.refill_per_minute, self.started_at)
        self.limits = RollingLimits()
        self.plan = Plan(options.calls_per_vehicle, options.period)
        self.faults = Faults(options.seed)
        self.stats = Stats()
        self.conduct = AS_SMARTCAR
        self.notifier: Notifier | None = None
        """None while no webhooks are sent."""

    def now(self) -> float:
        """The world's time, in epoch seconds."""
        return self.clock.now().timestamp()

    def latency_s(self, vehicle: Vehicle, number: int) -> float:
        """How long the ``number``-th request of a vehicle takes, in the world's seconds."""
        drawn = log_normal(vehicle.car.key, _LATENCY + number, MEDIAN_LATENCY_S, LATENCY_SIGMA)
        return min(max(drawn, SHORTEST_LATENCY_S), LONGEST_LATENCY_S) * self.latency_scale
