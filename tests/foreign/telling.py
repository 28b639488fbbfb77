"""What evbatteryd publishes of a car, made by its own functions."""

from __future__ import annotations

from datetime import datetime

from evbatteryd.domain.freshness import Freshness
from evbatteryd.domain.reading import Origin, Value
from evbatteryd.sinks.payload import Telling, state_json
from tests.builders import state


def state_payload(
    published_at: datetime,
    *,
    slug: str = "zoe",
    measured_at: datetime | None = None,
    freshness: Freshness = Freshness.FRESH,
    superseded: bool = False,
    **values: Value,
) -> bytes:
    """``BASE/zoe/state``; measured when it was published, unless told otherwise."""
    return state_json(
        Telling(
            slug=slug,
            state=state(measured_at=measured_at or published_at, fetched_at=published_at, **values),
            reading_id="r1",
            origin=Origin.POLL,
            freshness=freshness,
            replayed=superseded,
            superseded=superseded,
            fresh_until=None,
            published_at=published_at,
            expiry=60,
            estimate=None,
            estimate_expiry=60,
        )
    )
