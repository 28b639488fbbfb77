"""What holds for every test."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No deadlines: the machine may be busy, and no law is about time.
settings.register_profile("evbatteryd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("evbatteryd")
