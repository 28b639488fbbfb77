"""Minutes of everything going wrong at random: nothing lost, nothing invented, nothing out of order."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.mosquitto import Witness
from tests.whole.whole import Whole, everything, in_order, readings, served

ROUNDS = 40


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_goes_wrong_store_and_witness_agree(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    async with everything(tmp_path) as whole, Witness(whole.broker.port) as witness:
        misfortunes: list[Callable[[Whole], Awaitable[None]]] = [
            _killed,
            _stopped,
            _cut_off,
            _frozen,
            _smartcar_fails,
        ]
        for _ in range(ROUNDS):
            await asyncio.sleep(dice.uniform(0.2, 2.0))
            await dice.choice(misfortunes)(whole)
        await whole.control.clear()
        await whole.until_all(lambda car: car["trouble"] is None)
        assert await whole.daemon.end(signal.SIGTERM) == 0
        await whole.daemon.start()
        await witness.until(lambda w: whole.committed()[-1] in readings(w))
        assert await whole.daemon.end(signal.SIGTERM) == 0
        told = readings(witness)
        assert whole.spent() >= served(await whole.control.stats())
    assert in_order(told)
    assert set(told) == set(whole.committed())


async def _killed(whole: Whole) -> None:
    await whole.daemon.end(signal.SIGKILL)
    await whole.daemon.start()


async def _stopped(whole: Whole) -> None:
    assert await whole.daemon.end(signal.SIGTERM) == 0
    await whole.daemon.start()


async def _cut_off(whole: Whole) -> None:
    whole.gate.shut()
    await asyncio.sleep(1.0)
    whole.gate.open()


async def _frozen(whole: Whole) -> None:
    whole.broker.freeze()
    await asyncio.sleep(0.5)
    whole.broker.thaw()


async def _smartcar_fails(whole: Whole) -> None:
    for fault in ("SERVER:INTERNAL", "html", "truncated", "reset", "hang"):
        await whole.control.fault(fault, rate=0.3)
    await asyncio.sleep(0.5)
    await whole.control.clear()
