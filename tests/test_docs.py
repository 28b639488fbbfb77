"""What others depend on is in the README, because this looks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evbatteryd.cli import main
from evbatteryd.domain.policy.outlook import Hint
from evbatteryd.sinks.payload import FIELDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("verb", sorted(main.commands))
def test_every_verb_is_in_the_readme(verb: str) -> None:
    assert f"evbatteryd {verb}" in README


@pytest.mark.parametrize("option", [o for p in main.commands["demo"].params for o in p.opts])
def test_every_flag_of_the_demo_is_in_the_readme(option: str) -> None:
    assert f"`{option}" in README


@pytest.mark.parametrize("field", [*FIELDS, "reading_id", "published_at", "freshness", "replayed"])
def test_every_field_is_in_the_readme(field: str) -> None:
    assert f'"{field}"' in README


@pytest.mark.parametrize("hint", Hint)
def test_every_hint_is_in_the_readme(hint: Hint) -> None:
    assert f"`{hint}`" in README


def test_every_metric_is_in_the_readme_and_none_that_is_not_there() -> None:
    source = (ROOT / "daemon/evbatteryd/sinks/prometheus.py").read_text()
    written = set(re.findall(r'"(evbatteryd?_[a-z_]+[a-z])"', source)) - {"evbatteryd_build"}
    written.add("evbatteryd_build_info")
    told = set(re.findall(r"\bevbatteryd?_[a-z_]+[a-z]\b", README)) - {"evbattery_", "evbatteryd_"}
    assert {name.removesuffix("_total") for name in written} == {name.removesuffix("_total") for name in told}


def test_links_lead_to_files_that_are_there() -> None:
    for page in (README, *(p.read_text() for p in (ROOT / "docs").glob("*.md"))):
        for link in re.findall(r"\]\(([^)#]+)\)", page):
            if "://" not in link:
                assert (ROOT / link).exists() or (ROOT / "docs" / link).exists(), link


def test_both_commands_are_in_the_readme() -> None:
    assert "make demo" in README
    assert "make test" in README
