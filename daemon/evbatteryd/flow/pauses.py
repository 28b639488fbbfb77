"""Waiting for a time or for somebody, whichever comes first."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from evbatteryd.domain.ports import Clock


async def pause(clock: Clock, span: timedelta, *, unless: asyncio.Event) -> None:
    """Until ``span`` has passed on the clock, or ``unless`` is set: it is cleared then."""
    ends = {asyncio.create_task(clock.sleep(span)), asyncio.create_task(unless.wait())}
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for end in ends:
            end.cancel()
        unless.clear()
