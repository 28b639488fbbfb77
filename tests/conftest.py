"""What holds for every test."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# No deadlines: the machine may be busy, and no law is about time. Under CI the same examples are tried every
# time, so that it judges the change and not the dice; everywhere else they are new ones.
settings.register_profile(
    "evbatteryd",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("evbatteryd")
