"""How often somebody may knock."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evbatteryd.web import limits
from evbatteryd.web.limits import Limiter, Places, Rate
from tests.fakes import VirtualClock

TEN_MINUTES = timedelta(minutes=10)


async def test_a_burst_then_one_by_one() -> None:
    clock = VirtualClock()
    limiter = Limiter(Rate(10, TEN_MINUTES), clock)
    assert [limiter.take("a") for _ in range(10)] == [0] * 10
    assert limiter.take("a") == 60
    await clock.advance(timedelta(seconds=59))
    assert limiter.take("a") == 1
    await clock.advance(timedelta(seconds=1))
    assert limiter.take("a") == 0
    assert limiter.take("a") == 60


async def test_who_stays_away_has_a_whole_burst_again_and_no_more() -> None:
    clock = VirtualClock()
    limiter = Limiter(Rate(3, TEN_MINUTES), clock)
    for _ in range(3):
        limiter.count("a")
    await clock.advance(10 * TEN_MINUTES)
    assert [limiter.take("a") == 0 for _ in range(4)] == [True, True, True, False]


def test_addresses_do_not_share() -> None:
    limiter = Limiter(Rate(1, TEN_MINUTES), VirtualClock())
    assert limiter.take("a") == 0
    assert limiter.take("b") == 0
    assert limiter.take("a") == 600


def test_looking_counts_nothing_and_counting_beyond_the_burst_costs_nothing_more() -> None:
    limiter = Limiter(Rate(2, TEN_MINUTES), VirtualClock())
    assert [limiter.wait_s("a") for _ in range(9)] == [0] * 9
    for _ in range(9):
        limiter.count("a")
    assert limiter.wait_s("a") == 300


async def test_a_clock_that_is_set_back_neither_frees_nor_locks_out() -> None:
    clock = VirtualClock()
    limiter = Limiter(Rate(1, TEN_MINUTES), clock)
    limiter.count("a")
    clock._now -= timedelta(days=1)
    assert limiter.wait_s("a") == 600
    await clock.advance(TEN_MINUTES)
    assert limiter.wait_s("a") == 0


def test_waits_are_told_in_real_seconds() -> None:
    limiter = Limiter(Rate(1, TEN_MINUTES), VirtualClock(speed=60.0))
    limiter.count("a")
    assert limiter.wait_s("a") == 10


def test_memory_is_bounded_and_the_most_recent_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_ADDRESSES", 3)
    limiter = Limiter(Rate(1, TEN_MINUTES), VirtualClock())
    for address in ("a", "b", "c", "a", "d"):
        limiter.count(address)
    assert [address for address in "abcd" if limiter.wait_s(address)] == ["a", "c", "d"]
    assert len(limiter._free_at) == 3


@given(
    burst=st.integers(1, 300),
    per_s=st.integers(1, 3600),
    pauses_s=st.lists(st.floats(0, 400, allow_nan=False), max_size=60),
)
async def test_never_more_than_a_burst_and_the_share_of_the_time(
    burst: int, per_s: int, pauses_s: list[float]
) -> None:
    clock = VirtualClock()
    begun = clock.now()
    limiter = Limiter(Rate(burst, timedelta(seconds=per_s)), clock)
    let_in = 0
    for pause in pauses_s:
        clock._now += timedelta(seconds=pause)
        let_in += limiter.take("a") == 0
    passed = (clock.now() - begun).total_seconds()
    # A microsecond for each: the share of one is rounded to whole ones.
    assert let_in <= burst + (passed + 1e-6 * len(pauses_s)) * burst / per_s


@given(burst=st.integers(1, 300), per_s=st.integers(1, 3600), came=st.integers(0, 400))
async def test_who_waits_as_long_as_told_is_let_in(burst: int, per_s: int, came: int) -> None:
    clock = VirtualClock()
    limiter = Limiter(Rate(burst, timedelta(seconds=per_s)), clock)
    for _ in range(came):
        limiter.count("a")
    clock._now += timedelta(seconds=limiter.wait_s("a"))
    assert limiter.take("a") == 0


def test_places_are_few_of_each_address_and_overall() -> None:
    places = Places(3, 2)
    with places.place("a") as first, places.place("a") as second:
        assert first
        assert second
        with places.place("a") as third, places.place("b") as other, places.place("c") as one_more:
            assert (third, other, one_more) == (False, True, False)
        with places.place("c") as free_again:
            assert free_again


def test_places_are_free_again_whatever_happens() -> None:
    places = Places(1, 1)
    for _ in range(3):
        with suppress(RuntimeError), places.place("a") as given:
            assert given
            raise RuntimeError
    assert not places._taken
