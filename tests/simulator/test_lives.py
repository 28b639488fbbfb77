"""The recorded lives: shipped ones, full recordings, and files that are neither."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from evbatteryd.simulator.lives import SHIPPED, LifeUnreadable, State, load_lives

HEADER = "t_s,soc_fraction,state\n"


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(text.encode()))
    return file


def test_the_shipped_lives_are_twelve_of_four_weeks_in_which_much_happens():
    lives = load_lives()
    assert len(lives) == 12
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 1_000_000
    for life in lives:
        assert life.length == 28 * 86400
        states = [stretch.state for stretch in life.stretches]
        assert set(states) == set(State)
        assert states.count(State.DRIVING) > 40
        assert states.count(State.CHARGING) >= 6
        assert 0.5 <= life.target <= 1.0
    assert sorted(life.name for life in lives if life.is_hybrid) == ["d04", "d22"]


def test_stretches_follow_each_other_without_a_gap_and_remember_what_was_before():
    for life in load_lives():
        assert life.stretches[0].start == 0
        assert life.stretches[-1].end == life.length
        assert life.stretches[0].before is life.stretches[-1].state
        for former, latter in zip(life.stretches, life.stretches[1:], strict=False):
            assert former.end == latter.start
            assert latter.before is former.state
            assert latter.state is not former.state


def test_charging_only_adds_and_driving_alone_counts_as_driven():
    for life in load_lives():
        for stretch in life.stretches:
            if stretch.state is State.CHARGING:
                assert stretch.soc_end > stretch.soc_start
        assert list(life.driven) == sorted(life.driven)
        while_driving = sum(
            life.soc[row] - life.soc[row + 1]
            for row in range(len(life.at) - 1)
            if life.states[row] == State.DRIVING and life.soc[row] > life.soc[row + 1]
        )
        assert life.driven_in_all == pytest.approx(while_driving)


def test_a_row_for_every_minute_and_rows_of_changes_alone_are_the_same_life(tmp_path: Path):
    rows = (
        [(0.5, "parked")] * 3
        + [(0.5, "driving"), (0.45, "driving"), (0.4, "parked")]
        + [(0.4, "plugged")] * 4
    )
    rows += [(0.4, "charging"), (0.42, "charging"), (0.44, "plugged"), (0.44, "plugged")]
    full = [f"{60 * minute},{soc},{state}\n" for minute, (soc, state) in enumerate(rows)]
    changes = [
        line
        for minute, line in enumerate(full)
        if minute in (0, len(rows) - 1) or rows[minute] != rows[minute - 1]
    ]
    write(tmp_path / "full" / "vehicles" / "a.csv.gz", HEADER + "".join(full))
    write(tmp_path / "brief" / "a.csv.gz", HEADER + "".join(changes))
    (of_full,), (of_changes,) = load_lives(tmp_path / "full"), load_lives(tmp_path / "brief")
    assert len(of_changes.at) < len(of_full.at)
    assert of_full.stretches == of_changes.stretches
    assert of_full.length == of_changes.length == 60 * len(rows)
    for offset in range(0, of_full.length, 60):
        assert of_full.soc[of_full.row(offset)] == of_changes.soc[of_changes.row(offset)]


def test_size_and_target_come_from_an_index_beside_or_above(tmp_path: Path):
    write(tmp_path / "vehicles" / "a.csv.gz", HEADER + "0,0.5,parked\n")
    write(tmp_path / "vehicles" / "b.csv.gz", HEADER + "0,0.5,parked\n")
    (tmp_path / "index.csv").write_text("vehicle,battery_kwh,target_soc\na,9.1,0.8\n")
    for folder in (tmp_path, tmp_path / "vehicles"):
        known, unknown = load_lives(folder)
        assert (known.capacity_kwh, known.target, known.is_hybrid) == (9.1, 0.8, True)
        assert (unknown.capacity_kwh, unknown.target, unknown.is_hybrid) == (60.0, 1.0, False)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("t,soc\n0,1\n", "expected the columns"),
        (HEADER, "first row"),
        (HEADER + "60,0.5,parked\n", "first row"),
        (HEADER + "0,0.5,flying\n", "line 2"),
        (HEADER + "0,1.5,parked\n", "within 0 and 1"),
        (HEADER + "0,0.5\n", "line 2"),
        (HEADER + "0,0.5,parked\n0,0.5,driving\n", "comes after"),
    ],
)
def test_what_cannot_be_replayed_is_refused_with_the_reason(tmp_path: Path, text: str, why: str):
    write(tmp_path / "a.csv.gz", text)
    with pytest.raises(LifeUnreadable, match=why):
        load_lives(tmp_path)


def test_a_file_that_is_not_gzip_and_a_folder_without_traces_are_refused(tmp_path: Path):
    with pytest.raises(LifeUnreadable, match="holds no"):
        load_lives(tmp_path)
    (tmp_path / "a.csv.gz").write_text(HEADER)
    with pytest.raises(LifeUnreadable, match=r"a\.csv\.gz"):
        load_lives(tmp_path)
