"""Slugs fit a topic, a label and an object id, whatever people call their cars."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evbatteryd.domain.vehicle import RESERVED_SLUGS, SLUG, slug_for

names = st.text(max_size=80) | st.sampled_from(["Zoe", "zoe", "Zoe 2", "zoe_2", "", "🚗", "bridge", "a" * 70])


@given(names, st.sets(names.map(lambda name: slug_for(name, ())), max_size=5))
def test_a_slug_is_well_formed_free_and_always_the_same(name: str, taken: set[str]) -> None:
    slug = slug_for(name, taken)
    assert SLUG.fullmatch(slug)
    assert slug not in taken
    assert slug not in RESERVED_SLUGS
    assert slug == slug_for(name, taken)


@given(st.lists(names, max_size=30))
def test_no_two_cars_share_one(fleet: list[str]) -> None:
    taken: set[str] = set()
    for name in fleet:
        taken.add(slug_for(name, taken))
    assert len(taken) == len(fleet)


@pytest.mark.parametrize(
    ("name", "taken", "slug"),
    [
        ("Renault Zoe", (), "renault_zoe"),
        ("Škoda Enyaq iV 80", (), "skoda_enyaq_iv_80"),
        ("  --Mein/Auto+#  ", (), "mein_auto"),
        ("日産リーフ", (), "car"),
        ("", ("car", "car_2"), "car_3"),
        ("Zoe", ("zoe",), "zoe_2"),
        ("bridge", (), "bridge_2"),
        ("Bridge!", ("bridge_2",), "bridge_3"),
    ],
)
def test_examples(name: str, taken: tuple[str, ...], slug: str) -> None:
    assert slug_for(name, taken) == slug
