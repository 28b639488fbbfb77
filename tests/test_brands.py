"""The brand files, their loader and the table in docs/brands.md.

``python -m tests.test_brands`` prints that table.
"""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evbatteryd import brands
from evbatteryd.brands import brand_of, brands_folder, load_profiles
from evbatteryd.domain.commanding import Action
from evbatteryd.domain.profile import Activity, BrandProfile, CallLimit, Quirk
from evbatteryd.problems import Misconfigured, Problem
from evbatteryd.simulator.clouds import CLOUDS

DOCUMENT = Path(__file__).parent.parent / "docs" / "brands.md"

# Smartcar's frequency table, in its own spelling, and SEAT.
MAKES = """
    ACURA, ALFA ROMEO, AUDI, BMW, BUICK, BYD, CADILLAC, CHEVROLET, CHRYSLER, CITROEN, CUPRA, DACIA,
    DODGE, DS, FIAT, FORD, GMC, HONDA, HYUNDAI, INFINITI, JAGUAR, JEEP, KIA, LAND ROVER, LEXUS,
    LINCOLN, MAZDA, MERCEDES BENZ, MG, MINI, NISSAN, OPEL, PEUGEOT, POLESTAR, PORSCHE, RAM, RENAULT,
    RIVIAN, SKODA, SUBARU, TESLA, TOYOTA, VAUXHALL, VOLKSWAGEN, VOLVO, SEAT
"""
MAKES_OF_SMARTCAR = [make.strip() for make in MAKES.split(",")]

# Upper ends of that table in minutes; for Volkswagen Europe's.
PUBLISHED_MINUTES = {
    "acura": 60, "alfa_romeo": 10, "audi": 5, "bmw": 10, "buick": 45, "byd": 3, "cadillac": 45,
    "chevrolet": 45, "chrysler": 10, "citroen": 10, "cupra": 10, "dacia": 60, "dodge": 10, "ds": 10,
    "fiat": 10, "ford": 10, "gmc": 45, "honda": 30, "infiniti": 10, "jaguar": 30, "jeep": 10,
    "land_rover": 30, "lexus": 10, "lincoln": 10, "mazda": 10, "mercedes": 10, "mg": 60, "mini": 60,
    "nissan": 10, "opel": 10, "peugeot": 10, "polestar": 3, "porsche": 60, "ram": 10, "renault": 60,
    "rivian": 5, "skoda": 5, "subaru": 10, "tesla": 5, "toyota": 60, "vauxhall": 10, "volkswagen": 10,
    "volvo": 3,
}  # fmt: skip

INTERVALS = ("driving", "charging", "parked", "idle")
DURATIONS = ("reports", "silence", *INTERVALS, "floor", "latency")

PROFILES = load_profiles()
BRANDS = sorted(PROFILES)


def files() -> list[Path]:
    return sorted(brands_folder().glob("[!_]*.toml"))


# --- What is shipped ----------------------------------------------------------------------------------------


def test_every_make_of_smartcar_has_a_file_of_its_own() -> None:
    found = {make: brand_of(make, PROFILES) for make in MAKES_OF_SMARTCAR}
    assert len(found) == 46
    assert brands.UNKNOWN not in found.values()
    assert sorted([*found.values(), brands.UNKNOWN]) == BRANDS == [path.stem for path in files()]


@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_every_figure_says_where_it_comes_from(path: Path) -> None:
    said = tomllib.loads(path.read_text(encoding="utf-8"))
    sources = said.pop("sources")
    assert set(said) - {"name", "makes"} <= set(sources)
    for key, source in sources.items():
        derived = source.startswith(("derived: ", "none: "))
        assert derived or re.search(r"https://[\w.-]+\.\w+/\S", source), f"{key}: {source}"
        assert ("none: " in source[:6]) == (key not in said), f"{key} says none and has a figure, or neither"


def test_update_cadences_are_those_that_smartcar_publishes() -> None:
    shipped = {key: PROFILES[key].reports / timedelta(minutes=1) for key in PUBLISHED_MINUTES}
    assert shipped == PUBLISHED_MINUTES
    # SEAT and unknown makes are not in the table; Hyundai and Kia send in 10 % steps, slower than it says.
    assert set(BRANDS) - set(PUBLISHED_MINUTES) == {"seat", "unknown", "hyundai", "kia"}


@pytest.mark.parametrize("brand", BRANDS)
def test_intervals_respect_documented_limits_by_themselves(brand: str) -> None:
    profile = PROFILES[brand]
    # Smartcar's rule of thumb: fewer than 20 requests per hour and vehicle.
    # A limit over many hours is a budget, which the policy keeps; over a short time it is a floor.
    short = profile.limit is not None and profile.limit.per <= timedelta(hours=6)
    limits = [timedelta(minutes=3), *([profile.limit.interval] if short else [])]
    assert profile.floor >= max(limits)
    for activity in Activity:
        own = getattr(profile, activity.value)
        assert own >= profile.floor
        assert profile.interval(activity) == max(own, profile.limit.interval if profile.limit else own)


def test_limits_that_smartcar_documents_for_gm_are_kept_by_all_its_brands() -> None:
    for brand in ("buick", "cadillac", "chevrolet", "gmc"):
        assert PROFILES[brand].limit == CallLimit(1, timedelta(minutes=30))
        assert PROFILES[brand].silence == timedelta(days=4)


@pytest.mark.parametrize("brand", BRANDS)
def test_a_sleeping_car_is_asked_no_more_often_than_a_parked_one(brand: str) -> None:
    profile = PROFILES[brand]
    assert profile.charging <= profile.parked <= profile.idle <= profile.silence


def test_quirks_are_where_they_are_documented() -> None:
    with_quirk = {quirk: {key for key, p in PROFILES.items() if quirk in p.quirks} for quirk in Quirk}
    assert with_quirk == {
        Quirk.DEEP_SLEEP: {"acura", "buick", "cadillac", "chevrolet", "ford", "gmc", "lincoln"},
        Quirk.GEOFENCE: {"bmw", "mini"},
        Quirk.VIRTUAL_KEY: {"tesla"},
        Quirk.SOC_STEPS: {"hyundai", "kia"},
        Quirk.SINGLE_SESSION: {"byd"},
        Quirk.WAKES_ON_POLL: {"hyundai", "infiniti", "kia", "mg", "nissan"},
        Quirk.STALE_SUBSCRIPTION: {"bmw", "mini"},
        Quirk.SERIAL_ACCOUNT: {"mazda"},
    }
    coarse = {key for key, profile in PROFILES.items() if profile.soc_step_percent != 1}
    assert coarse == with_quirk[Quirk.SOC_STEPS]


ALL_ACTIONS = frozenset(Action)
START_STOP = ALL_ACTIONS - {Action.LIMIT}


def test_commands_are_those_that_sources_tell_of() -> None:
    of_all = {"audi", "bmw", "ford", "hyundai", "kia", "lincoln", "mini", "tesla", "volkswagen"}
    assert {key for key, profile in PROFILES.items() if profile.actions == ALL_ACTIONS} == of_all
    assert PROFILES["mg"].actions == {Action.LIMIT}
    assert PROFILES["nissan"].actions == START_STOP  # in the United States start alone, in Europe both
    of_nobody = {key for key, profile in PROFILES.items() if profile.actions is None}
    assert {"unknown", "byd", "volvo", "peugeot"} <= of_nobody
    assert of_nobody.isdisjoint({"renault", "mercedes", "gmc", "toyota", *of_all})


def test_general_motors_starts_and_stops_only_from_half_a_battery_on() -> None:
    limited = {key: p.start_stop_from_percent for key, p in PROFILES.items() if p.start_stop_from_percent}
    assert limited == {"buick": 50, "cadillac": 50, "chevrolet": 50, "gmc": 50}


def test_no_brand_forbids_what_the_simulator_can_do_but_limits_that_no_source_tells_of() -> None:
    names = {"start": Action.START, "stop": Action.STOP, "set-limit": Action.LIMIT}
    forbidden: dict[str, frozenset[Action]] = {}
    for cloud in CLOUDS:
        profile = PROFILES[brand_of(cloud.make, PROFILES)]
        assert cloud.start_stop_above_percent >= profile.start_stop_from_percent
        if profile.actions is not None and (more := {names[c] for c in cloud.commands} - profile.actions):
            forbidden[profile.brand] = frozenset(more)
    told_of_start_and_stop_alone = {
        *("buick", "cadillac", "chevrolet", "gmc"),
        *("porsche", "rivian", "skoda", "cupra", "seat"),
    }
    assert forbidden == dict.fromkeys(told_of_start_and_stop_alone, frozenset({Action.LIMIT}))


# --- Which brand a make is ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "brand"),
    [
        ("LAND ROVER", "land_rover"),
        ("Land Rover", "land_rover"),
        ("LAND_ROVER", "land_rover"),
        ("Mercedes-Benz", "mercedes"),
        ("MERCEDES", "mercedes"),
        ("Citroën", "citroen"),
        ("ŠKODA", "skoda"),
        ("ram", "ram"),
        ("LUCID", "unknown"),
        ("", "unknown"),
        ("---", "unknown"),
    ],
)
def test_a_make_finds_its_brand(make: str, brand: str) -> None:
    assert brand_of(make, PROFILES) == brand


@given(data=st.data(), make=st.sampled_from(sorted(m for p in PROFILES.values() for m in p.makes)))
def test_the_spelling_of_a_make_does_not_matter(data: st.DataObject, make: str) -> None:
    letters = [letter for letter in make if letter.isalnum()]
    cases = data.draw(
        st.lists(st.sampled_from([str.upper, str.lower]), min_size=len(letters), max_size=len(letters))
    )
    gaps = data.draw(
        st.lists(st.sampled_from(["", " ", "-", "_", " - "]), min_size=len(letters), max_size=len(letters))
    )
    spelt = "".join(gap + case(letter) for gap, case, letter in zip(gaps, cases, letters, strict=True))
    assert brand_of(spelt, PROFILES) == brand_of(make, PROFILES) != brands.UNKNOWN


@given(make=st.text())
def test_any_text_has_a_profile(make: str) -> None:
    assert brand_of(make, PROFILES) in PROFILES


# --- What an operator may change ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three brands: quick to load often."""
    folder = tmp_path_factory.mktemp("few")
    for brand in ("renault", "tesla", "unknown"):
        shutil.copy(brands_folder() / f"{brand}.toml", folder)
    return folder


def figures(profile: BrandProfile) -> dict[str, object]:
    return {key: getattr(profile, key) for key in BrandProfile.__dataclass_fields__ if key != "sources"}


OVERRIDES = {
    "name": st.just(("Ours", "Ours")),
    "makes": st.just((["OURS", "THEIRS"], ("OURS", "THEIRS"))),
    "limit": st.tuples(st.integers(1, 999), st.integers(1, 99)).map(
        lambda limit: (
            {"calls": limit[0], "period": f"{limit[1]}h"},
            CallLimit(limit[0], timedelta(hours=limit[1])),
        )
    ),
    "soc_step_percent": (st.integers(1, 50) | st.floats(0.01, 50)).map(lambda step: (step, step)),
    "quirks": st.sets(st.sampled_from(Quirk)).map(lambda some: ([q.value for q in some], frozenset(some))),
    "actions": st.sets(st.sampled_from(Action)).map(lambda some: ([a.value for a in some], frozenset(some))),
    "start_stop_from_percent": (st.integers(0, 100) | st.floats(0, 100)).map(lambda soc: (soc, soc)),
    **{
        key: st.integers(1, 500 * 60).map(lambda minutes: (f"{minutes}m", timedelta(minutes=minutes)))
        for key in DURATIONS
    },
}


@given(
    data=st.data(),
    brand=st.sampled_from(["renault", "tesla", "unknown"]),
    key=st.sampled_from(sorted(OVERRIDES)),
)
def test_an_override_of_any_key_is_in_the_profile_and_changes_nothing_else(
    few: Path, data: st.DataObject, brand: str, key: str
) -> None:
    written, meant = data.draw(OVERRIDES[key])
    before = load_profiles(folder=few)
    wanted = {**figures(before[brand]), key: meant}
    possible = wanted["charging"] <= wanted["parked"] and all(wanted["floor"] <= wanted[k] for k in INTERVALS)
    if possible:
        after = load_profiles({brand: {key: written}}, folder=few)
        assert figures(after[brand]) == wanted
        assert {k: p for k, p in after.items() if k != brand} == {
            k: p for k, p in before.items() if k != brand
        }
    else:
        with pytest.raises(Misconfigured) as refused:
            load_profiles({brand: {key: written}}, folder=few, file="ours.toml")
        assert {(p.file, p.key) for p in refused.value.problems} == {("ours.toml", f"brands.{brand}.{key}")}


@given(st.fixed_dictionaries({}, optional={key: st.integers(1, 600) for key in (*INTERVALS, "floor")}))
def test_a_floor_above_an_interval_never_loads(few: Path, minutes: dict[str, int]) -> None:
    override = {key: f"{count}m" for key, count in minutes.items()}
    try:
        profile = load_profiles({"renault": override}, folder=few)["renault"]
    except Misconfigured:
        shipped = {key: getattr(PROFILES["renault"], key) for key in (*INTERVALS, "floor")}
        wanted = shipped | {key: timedelta(minutes=count) for key, count in minutes.items()}
        assert (
            any(wanted["floor"] > wanted[key] for key in INTERVALS) or wanted["charging"] > wanted["parked"]
        )
    else:
        assert profile.floor <= min(getattr(profile, key) for key in INTERVALS)
        assert profile.charging <= profile.parked


def test_an_overridden_figure_says_that_the_operator_set_it() -> None:
    overrides = {"renault": {"charging": "20m", "parked": "3h", "sources": {"parked": "my neighbour"}}}
    sources = dict(load_profiles(overrides, file="ours.toml")["renault"].sources)
    assert sources["charging"] == "set in ours.toml"
    assert sources["parked"] == "my neighbour"
    assert sources["driving"] == dict(PROFILES["renault"].sources)["driving"]


def test_an_alias_that_the_operator_adds_is_found() -> None:
    profiles = load_profiles({"renault": {"makes": ["RENAULT", "Alpine"]}})
    assert brand_of("ALPINE", profiles) == brand_of("RENAULT", profiles) == "renault"


# --- Mistakes -----------------------------------------------------------------------------------------------


def problems_of(*args: object, **kwargs: object) -> list[Problem]:
    with pytest.raises(Misconfigured) as refused:
        load_profiles(*args, **kwargs)  # type: ignore[arg-type]
    return list(refused.value.problems)


@pytest.mark.parametrize(
    ("override", "key", "what", "mend"),
    [
        ({"chargin": "5m"}, "chargin", "unknown key", "Did you mean 'charging'?"),
        ({"charging": "soon"}, "charging", "'soon' is no duration", '"15m"'),
        ({"charging": 15}, "charging", "not 15", '"15m"'),
        ({"charging": True}, "charging", "not True", '"15m"'),
        ({"latency": "0s"}, "latency", "not between 0 and a year", '"15m"'),
        ({"silence": "367d"}, "silence", "not between 0 and a year", "at most a year"),
        ({"silence": "9" * 400 + "d"}, "silence", "longer than time lasts", "at most a year"),
        ({"floor": "-5m"}, "floor", "is no duration", '"15m"'),
        ({"name": 4}, "name", "valid string", "Renault"),
        ({"name": ""}, "name", "at least 1 character", "Renault"),
        ({"makes": "RENAULT"}, "makes", "valid list", '["RENAULT"]'),
        ({"makes": []}, "makes", "empty", '["RENAULT"]'),
        ({"makes": ["RENAULT", "--"]}, "makes.1", "'--' is no name", '["RENAULT"]'),
        (
            {"makes": ["RENAULT", "Land-Rover"]},
            "makes",
            "'Land-Rover' belongs to 'land_rover' too",
            "remove the other",
        ),
        ({"soc_step_percent": 0}, "soc_step_percent", "greater than 0", "at most 50"),
        ({"soc_step_percent": 50.1}, "soc_step_percent", "less than or equal to 50", "at most 50"),
        ({"soc_step_percent": float("nan")}, "soc_step_percent", "finite number", "at most 50"),
        ({"soc_step_percent": "1"}, "soc_step_percent", "valid number", "at most 50"),
        ({"limit": 60}, "limit", "not a table", "{ calls = 60"),
        (
            {"limit": {"calls": 0, "period": "1h"}},
            "limit.calls",
            "greater than or equal to 1",
            "at least one call",
        ),
        ({"limit": {"calls": 1.5, "period": "1h"}}, "limit.calls", "valid integer", "{ calls = 60"),
        ({"limit": {"calls": 60}}, "limit.period", "missing", "{ calls = 60"),
        (
            {"limit": {"calls": 60, "period": "0h"}},
            "limit.period",
            "not between 0 and a year",
            "{ calls = 60",
        ),
        ({"limit": {"calls": 60, "period": "1h", "perid": "1h"}}, "limit.perid", "unknown key", "'period'"),
        ({"quirks": "geofence"}, "quirks", "valid list", '["geofence"]'),
        ({"quirks": ["geofense"]}, "quirks.0", "'geofense' is no quirk", "Did you mean 'geofence'?"),
        ({"quirks": ["geofence", 3]}, "quirks.1", "3 is no quirk", "deep_sleep"),
        ({"actions": "start"}, "actions", "valid list", '["start", "stop", "limit"]'),
        ({"actions": ["star"]}, "actions.0", "'star' is nothing", "Did you mean 'start'?"),
        ({"actions": ["start", True]}, "actions.1", "True is nothing", "stop"),
        (
            {"start_stop_from_percent": -1},
            "start_stop_from_percent",
            "greater than or equal to 0",
            "0 to 100",
        ),
        (
            {"start_stop_from_percent": 101},
            "start_stop_from_percent",
            "less than or equal to 100",
            "0 to 100",
        ),
        ({"start_stop_from_percent": "50"}, "start_stop_from_percent", "valid number", "0 to 100"),
        ({"sources": "me"}, "sources", "not a table", "[sources]"),
        ({"sources": {"chargin": "me"}}, "sources.chargin", "unknown key", "Did you mean 'charging'?"),
        ({"sources": {"charging": ""}}, "sources.charging", "at least 1 character", "[sources]"),
        (
            {"floor": "45m", "driving": "1h"},
            "floor",
            "floor (45 min) is longer than charging (30 min)",
            "at most as",
        ),
        (
            {"driving": "4m"},
            "driving",
            "floor (5 min) is longer than driving (4 min)",
            "at most as long as driving",
        ),
        (
            {"parked": "4m", "charging": "4m", "driving": "4m", "idle": "4m", "floor": "4m59s"},
            "idle",
            "longer",
            "Make",
        ),
        (
            {"charging": "3h"},
            "charging",
            "charging (3 h) is longer than parked (2 h)",
            "at most as long as parked",
        ),
        (
            {"parked": "29m"},
            "parked",
            "charging (30 min) is longer than parked (29 min)",
            "Make charging at most",
        ),
        ("20m", "", "not a table", 'charging = "20m"'),
    ],
)
def test_a_wrong_override_is_refused_by_name(override: object, key: str, what: str, mend: str) -> None:
    found = problems_of({"renault": override}, file="ours.toml")
    dotted = f"brands.renault.{key}" if key else "brands.renault"
    assert any(p.key == dotted and what in p.what and mend in p.mend for p in found), found
    assert {p.file for p in found} == {"ours.toml"}


def test_an_override_of_an_unknown_brand_is_refused_with_a_suggestion() -> None:
    (problem,) = problems_of({"renaut": {"charging": "20m"}})
    assert (problem.file, problem.key, problem.what) == ("evbatteryd.toml", "brands.renaut", "no such brand")
    assert problem.mend == "Did you mean 'renault'?"


def example() -> str:
    return (brands_folder() / "_example.toml").read_text(encoding="utf-8")


@pytest.fixture
def folder(few: Path, tmp_path: Path) -> Path:
    """Three good brands, for a bad one to be put beside them."""
    return shutil.copytree(few, tmp_path / "brands")


def test_the_template_is_skipped_where_it_is_and_valid_where_it_is_copied_to(folder: Path) -> None:
    assert "_example" not in PROFILES
    (folder / "example.toml").write_text(example(), encoding="utf-8")
    profile = load_profiles(folder=folder)["example"]
    assert (profile.brand, profile.makes) == ("example", ("EXAMPLE",))
    explained = set(re.findall(r"^(\w+) =", example(), re.MULTILINE)) | {"sources"}
    assert explained == set(brands._KEYS), "the template shows every key"
    assert all(quirk in example() for quirk in Quirk), "the template names every quirk"


@pytest.mark.parametrize(
    ("written", "instead", "key", "what", "mend"),
    [
        ('name = "Example" ', "", "name", "missing", "Renault"),
        ('makes = ["EXAMPLE"]', "", "makes", "missing", '["RENAULT"]'),
        ('makes = ["EXAMPLE"]', "makes = []", "makes", "empty", '["RENAULT"]'),
        (
            'makes = ["EXAMPLE"]',
            'makes = ["Tesla"]',
            "makes",
            "'TESLA' belongs to 'example' too",
            "remove the other",
        ),
        ('silence = "7d"', "", "silence", "missing", '"15m"'),
        ('idle = "6h"', 'idel = "6h"', "idel", "unknown key", "'idle'"),
        (
            'floor = "5m"',
            'floor = "11m"',
            "charging",
            "floor (11 min) is longer than charging",
            "at most as long",
        ),
        (
            'charging = "10m"',
            'charging = "2h"',
            "parked",
            "longer than parked (1 h)",
            "at most as long as parked",
        ),
        ("\n[sources]\n", "\n[source]\n", "sources", "missing", "[sources]"),
        ('latency = "derived:', 'latencies = "derived:', "sources.latency", "missing", "'latency'"),
        ('latency = "derived:', 'latencies = "derived:', "sources.latencies", "unknown key", "'latency'"),
        ('quirks = ["deep_sleep"]', "quirks = [", "", "no TOML", "Mend the line"),
    ],
)
def test_a_wrong_file_is_refused_by_name(
    folder: Path, written: str, instead: str, key: str, what: str, mend: str
) -> None:
    path = folder / "example.toml"
    assert written in example()
    path.write_text(example().replace(written, instead, 1), encoding="utf-8")
    found = problems_of(folder=folder)
    assert any(p.key == key and what in p.what and mend in p.mend for p in found), found
    assert {Path(p.file).parent for p in found} == {folder}


def test_a_make_in_two_files_names_both(folder: Path) -> None:
    (folder / "alpine.toml").write_text(
        example().replace('"EXAMPLE"', '"ALPINE", "renault"'), encoding="utf-8"
    )
    (problem,) = problems_of(folder=folder)
    assert problem.file == str(folder / "renault.toml")
    assert (problem.key, problem.what) == ("makes", "'RENAULT' belongs to 'alpine' too")


@pytest.mark.parametrize("brand", ["renault", "tesla"])
def test_a_make_claimed_by_an_override_is_the_overrides_mistake(few: Path, brand: str) -> None:
    makes = ["RENAULT", "TESLA"]
    (problem,) = problems_of({brand: {"makes": makes}}, folder=few)
    assert (problem.file, problem.key) == ("evbatteryd.toml", f"brands.{brand}.makes")


def test_a_file_that_is_no_text_is_refused_and_the_others_are_still_read(folder: Path) -> None:
    (folder / "example.toml").write_bytes(b"name = \xff\xfe")
    (folder / "tesla.toml").write_text("colour = 'red'", encoding="utf-8")
    found = problems_of(folder=folder)
    assert {Path(p.file).name for p in found} == {"example.toml", "tesla.toml"}


def test_a_file_that_cannot_be_read_is_refused(folder: Path) -> None:
    (folder / "example.toml").mkdir()
    (problem,) = problems_of(folder=folder)
    assert problem.file == str(folder / "example.toml")
    assert "cannot be read" in problem.what


@pytest.mark.parametrize("missing", ["unknown.toml", ""])
def test_a_folder_without_the_profile_of_unknown_makes_is_refused(folder: Path, missing: str) -> None:
    if missing:
        (folder / missing).unlink()
    else:
        folder = folder / "nowhere"
    (problem,) = problems_of(folder=folder)
    assert problem.file == str(folder)
    assert "no unknown.toml" in problem.what


def test_all_mistakes_are_told_at_once(folder: Path) -> None:
    (folder / "example.toml").write_text(
        example().replace('"7d"', '"7"').replace("[sources]", "[s]"), encoding="utf-8"
    )
    (folder / "other.toml").write_text("=", encoding="utf-8")
    overrides = {
        "renault": {"charging": "1m", "idel": "1h", "quirks": ["?"]},
        "tesla": {"parked": "often"},
        "renaut": {},
    }
    found = {(Path(p.file).name, p.key) for p in problems_of(overrides, folder=folder)}
    assert found == {
        ("example.toml", "silence"),
        ("example.toml", "s"),
        ("example.toml", "sources"),
        ("other.toml", ""),
        ("evbatteryd.toml", "brands.renault.charging"),
        ("evbatteryd.toml", "brands.renault.idel"),
        ("evbatteryd.toml", "brands.renault.quirks.0"),
        ("evbatteryd.toml", "brands.tesla.parked"),
        ("evbatteryd.toml", "brands.renaut"),
    }


# --- Where the files are ------------------------------------------------------------------------------------


def test_an_installed_package_brings_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "daemon" / "evbatteryd"
    package.mkdir(parents=True)
    monkeypatch.setattr(brands, "__file__", str(package / "brands.py"))
    assert brands_folder() == tmp_path / "config" / "brands"
    (package / "_data" / "config" / "brands").mkdir(parents=True)
    assert brands_folder() == package / "_data" / "config" / "brands"


# --- The document -------------------------------------------------------------------------------------------


def short(span: timedelta) -> str:
    """As the files write it: ``30m``, ``2h``, ``7d``."""
    seconds = round(span.total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % size == 0 and (unit != "d" or seconds > size):
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def commands(profile: BrandProfile) -> str:
    if profile.actions is None:
        return ""
    known = ", ".join(action for action in Action if action in profile.actions) or "none"
    least = profile.start_stop_from_percent
    return f"{known}; start and stop from {least:g} %" if least else known


def rows() -> Iterator[str]:
    """The table of docs/brands.md."""
    yield (
        "| Brand | Key | charging | driving | parked | idle | floor | reports | silence | limit | quirks"
        " | commands |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for key, p in sorted(PROFILES.items(), key=lambda item: (item[0] == brands.UNKNOWN, item[0])):
        spans = (p.charging, p.driving, p.parked, p.idle, p.floor, p.reports, p.silence)
        limit = f"{p.limit.calls} per {short(p.limit.per)}" if p.limit else ""
        cells = [p.name, f"`{key}`", *map(short, spans), limit, ", ".join(sorted(p.quirks)), commands(p)]
        yield "| " + " | ".join(cells) + " |"


def test_the_document_shows_what_is_shipped() -> None:
    shown = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert shown == list(rows()), "python -m tests.test_brands prints the table"


def test_the_document_explains_every_quirk() -> None:
    explained = re.findall(r"^- `(\w+)`:", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(explained) == sorted(Quirk)


def test_what_the_document_shows_as_configuration_loads() -> None:
    (shown,) = re.findall(r"```toml\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    overrides = tomllib.loads(shown)["brands"]
    profiles = load_profiles(overrides)
    assert {key for key in overrides if profiles[key] != PROFILES[key]} == set(overrides)


if __name__ == "__main__":
    print("\n".join(rows()))
