"""What is learnt outlives a restart: habits as bytes, lore as a document."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import asdict, fields, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evbatteryd.domain.ledger import Budget
from evbatteryd.domain.policy import habits as module
from evbatteryd.domain.policy.habits import UNKNOWN, Doing, Habits, Told
from evbatteryd.domain.policy.lore import Lore
from tests import builders

from .anything import Step, Tale
from .lives import Cloud, People, desk_of, greenwich

NAMES = tuple(one.name for one in fields(Habits))
INSTANTS = frozenset(NAMES[: module._INSTANTS])
"""These are kept as they are, the other numbers as float32."""
instants = st.floats(1.2e9, 4e9)
numbers = st.floats(-1e6, 1e6, width=32)
counts = st.floats(0, 1e6, width=32)
DIVISORS = ("trip_count", "slope_weight", "slope", "plugins", "plan_per_day")


def _of(name: str) -> st.SearchStrategy[Any]:
    fresh = getattr(Habits(), name)
    if isinstance(fresh, list):
        return st.lists(counts, min_size=len(fresh), max_size=len(fresh))
    if isinstance(fresh, bool):
        return st.booleans()
    if isinstance(fresh, int):
        return st.integers(0, 4)
    if name in DIVISORS:
        return counts.filter(bool)
    return instants if name in INSTANTS else numbers


@st.composite
def any_habits(draw: st.DrawFn) -> Habits:
    habits = Habits(**{name: draw(_of(name)) for name in NAMES if name != "calls"})
    habits.calls = [
        habits.asked - ago for ago in draw(st.lists(st.integers(0, 86400).map(float), max_size=60))
    ]
    return habits


@settings(max_examples=40)
@given(any_habits())
def test_habits_are_the_same_after_they_were_kept(habits: Habits) -> None:
    kept = Habits.unpack(habits.pack())
    assert asdict(kept) == asdict(habits)  # every number here is one that float32 holds exactly


def test_instants_are_kept_to_the_microsecond_and_numbers_to_seven_digits() -> None:
    kept = Habits.unpack(Habits(measured=1833964440.123456, soc=33.333333333).pack())
    assert kept.measured == 1833964440.123456
    assert kept.soc == pytest.approx(33.333333333, rel=1e-7)
    assert kept.soc != 33.333333333


@settings(max_examples=60)
@given(st.binary(max_size=64) | st.binary(min_size=400, max_size=800))
def test_bytes_of_nobody_are_fresh_habits(rubbish: bytes) -> None:
    if rubbish[:1] != bytes([module.VERSION]):
        assert Habits.unpack(rubbish) == Habits()


def test_habits_that_were_cut_short_are_forgotten() -> None:
    packed = Habits(soc=40.0).pack()
    assert Habits.unpack(packed).soc == 40.0
    assert Habits.unpack(packed[:-1]) == Habits()


def test_habits_of_another_version_are_forgotten() -> None:
    packed = Habits(soc=40.0).pack()
    assert Habits.unpack(bytes([module.VERSION + 1]) + packed[1:]) == Habits()


def _broken(**wrong: float) -> bytes:
    return Habits(**({"soc": 50.0, "measured": 1.83e9, "looked": 1.83e9, "changed": 1.83e9} | wrong)).pack()


@pytest.mark.parametrize(
    "packed",
    [
        _broken(measured=float("nan")),
        _broken(soc=float("inf")),
        _broken(slope=0.0),
        _broken(trip_count=0.0),
        _broken(doing=200),
        _broken(price_log=float("nan"), price_at=1.83e9),
        b"\x01" + b"\xff" * (len(_broken()) - 1),
    ],
    ids=["no time", "endless charge", "no slope", "no trips", "doing nothing known", "no price", "all ones"],
)
def test_a_car_whose_habits_are_broken_is_asked_all_the_same(packed: bytes) -> None:
    tale = Tale(builders.profile(), Budget())
    tale.car = replace(tale.car, learned=packed)
    told = tale.happen(Step(timedelta(hours=1), "poll", 50.0, False, True, age=timedelta(minutes=1)))
    assert told.then is not None
    assert told.then.at is not None


def test_what_is_kept_of_a_car_is_small_after_half_a_year() -> None:
    life = People(random.Random(3)).live(180)
    desk = desk_of(Cloud(life))
    desk.run(timedelta(days=180))
    assert 100 < len(desk.cars[1].learned) < 2048
    assert Habits.unpack(desk.cars[1].learned).pack() == desk.cars[1].learned


def _learned_lore() -> Lore:
    desk = desk_of(Cloud(People(random.Random(4)).live(40)), Budget(pooled=True))
    desk.run(timedelta(days=40))
    return desk.lore


def test_lore_is_the_same_after_it_was_kept() -> None:
    lore, kept = _learned_lore(), Lore(greenwich)
    document = json.loads(json.dumps(lore.document()))
    assert kept.take(document)
    assert kept.document() == lore.document()
    assert kept.price == lore.price
    at = 1.84e9
    assert [kept.days(at + hour * 3600) for hour in range(30)] == pytest.approx(
        [lore.days(at + hour * 3600) for hour in range(30)], abs=0.02
    )
    assert kept.rates(Habits(), 0) == lore.rates(Habits(), 0)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60)
@given(
    st.sampled_from(
        [
            "version",
            "events",
            "watched",
            "calls",
            "brands",
            "pool",
            "use",
            "use_at",
            "bucket_log",
            "usual_log",
        ]
    ),
    json_values,
)
def test_a_document_with_a_wrong_part_changes_nothing(part: str, wrong: Any) -> None:
    lore = Lore(greenwich)
    document = Lore(greenwich).document() | {part: wrong}
    before = copy.deepcopy(lore.document())
    if not lore.take(document):
        assert lore.document() == before


@settings(max_examples=40)
@given(json_values)
def test_what_is_no_document_changes_nothing(wrong: Any) -> None:
    lore = Lore(greenwich)
    before = copy.deepcopy(lore.document())
    assert not lore.take(wrong)
    assert lore.document() == before


_FRESH = Lore(greenwich).document()


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": 2},
        {"events": _FRESH["events"][:2]},
        {"watched": [[float("nan")] * 24] * 3},
        {"calls": [0.0] * 24},
        {"calls": [-1.0] + [1.0] * 23},
        {"drawn": [0.0] * 24},
        {"since_drawn": None},
        {"brands": {"bmw": {"no such thing": 1.0}}},
        {"brands": []},
        {"pool": None},
        {"bucket_log": float("inf")},
        {"use": "much"},
        {"pool": _FRESH["pool"] | {"price_log": "dear", "at": 1.8e9}},
        {"pool": _FRESH["pool"] | {"price_log": float("nan"), "at": 1.8e9}},
        {"brands": {"bmw": {"period": "often"}}},
        {"brands": {"bmw": {"margin": float("nan")}}},
        {"brands": {"bmw": {"gaps": None}}},
    ],
    ids=str,
)
def test_a_wrong_document_is_refused(wrong: dict[str, Any]) -> None:
    lore = Lore(greenwich)
    before = copy.deepcopy(lore.document())
    assert not lore.take(before | wrong)
    assert lore.document() == before


def test_habits_start_from_what_is_usual() -> None:
    fresh = Habits()
    assert not fresh.known
    assert fresh.soc == UNKNOWN
    assert (fresh.doing, fresh.told) == (Doing.UNPLUGGED, Told.NOTHING)
