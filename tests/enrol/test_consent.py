"""The link out and the answer back: what is asked for, and what is believed."""

from __future__ import annotations

from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evbatteryd.domain.enrolment import Ending, Refusal
from evbatteryd.enrol.consent import (
    ENDINGS,
    PERMISSIONS,
    REFUSALS,
    ConnectAnswer,
    ConnectOptions,
    connect_url,
    digest,
    pasted,
    read_answer,
)

OPTIONS = ConnectOptions(
    application="home", application_id="app-id", connect_origin="https://connect.smartcar.com"
)
STATE = "s" * 43
USER = "36ab27d0-fd9d-4455-823a-ce30af709ffc"


def test_the_link_names_all_that_connect_wants_to_know() -> None:
    link = connect_url(OPTIONS, redirect_uri="http://localhost:9782/enrol/callback", state=STATE)
    parts = urlsplit(link)
    assert link.startswith("https://connect.smartcar.com/oauth/authorize?")
    assert parse_qs(parts.query) == {
        "response_type": ["code"],
        "client_id": ["app-id"],
        "redirect_uri": ["http://localhost:9782/enrol/callback"],
        "scope": [" ".join(PERMISSIONS)],
        "mode": ["live"],
        "state": [STATE],
        "approval_prompt": ["force"],
    }
    more = parse_qs(
        urlsplit(connect_url(OPTIONS, redirect_uri="x", state=STATE, make="LAND_ROVER", country="DE")).query
    )
    assert (more["make"], more["flags"]) == (["LAND_ROVER"], ["country:DE"])


def test_nothing_personal_is_asked_for_unasked() -> None:
    assert not {"read_vin", "read_location", "read_user_profile"} & set(PERMISSIONS)


@pytest.mark.parametrize("more", [{}, {"code": "abc"}])
def test_a_consent_holds_a_user_with_or_without_a_code(more: dict[str, str]) -> None:
    answer = read_answer({"state": STATE, "user_id": USER, **more})
    assert answer == ConnectAnswer(state=STATE, ending=Ending.CONSENTED, user_ref=USER)
    assert USER not in repr(answer)
    assert STATE not in repr(answer)


@pytest.mark.parametrize(
    "ending", [ending for ending in Ending if ending not in (Ending.CONSENTED, Ending.OTHER)]
)
def test_every_error_of_connect_is_known(ending: Ending) -> None:
    answer = read_answer({"state": STATE, "error": ending.value, "error_description": "x"})
    assert answer == ConnectAnswer(state=STATE, ending=ending)


@pytest.mark.parametrize("error", ["consented", "other", "a_new_one", "<script>"])
def test_an_unknown_error_is_never_a_consent(error: str) -> None:
    answer = read_answer({"state": STATE, "error": error, "user_id": USER})
    assert answer == ConnectAnswer(state=STATE, ending=Ending.OTHER)


def test_an_incompatible_car_is_named_without_its_vin() -> None:
    answer = read_answer(
        {
            "state": STATE,
            "error": "vehicle_incompatible",
            "vin": "WVWZZZ1JZXW000001",
            "make": "VW",
            "model": "Golf",
            "year": "2009",
        }
    )
    assert isinstance(answer, ConnectAnswer)
    assert answer.car == "VW Golf 2009"


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"user_id": USER},
        {"state": STATE},
        {"state": "short", "user_id": USER},
        {"state": STATE + "!", "user_id": USER},
        {"state": STATE, "user_id": ""},
        {"state": STATE, "user_id": "../../users"},
        {"state": STATE, "user_id": "x" * 65},
        {"state": STATE, "code": "abc"},
    ],
)
def test_what_is_not_complete_is_refused(query: dict[str, str]) -> None:
    assert read_answer(query) is Refusal.UNREADABLE


@given(st.dictionaries(st.sampled_from(["state", "user_id", "error", "make"]), st.text(max_size=80)))
def test_any_parameters_are_an_answer_or_refused(query: dict[str, str]) -> None:
    answer = read_answer(query)
    if isinstance(answer, ConnectAnswer):
        assert answer.state == query["state"]
        assert (answer.user_ref is None) is (answer.ending is not Ending.CONSENTED)


@pytest.mark.parametrize("around", ["{}", "  {}\n", "<{}>", '"{}"'])
def test_an_address_can_be_pasted_as_it_was_copied(around: str) -> None:
    query = {"state": STATE, "user_id": USER}
    address = "http://localhost:9782/enrol/callback?" + urlencode(query)
    assert pasted(around.format(address)) == query
    assert pasted("?" + urlencode(query)) == query


@given(st.text())
def test_anything_can_be_pasted(text: str) -> None:
    read_answer(pasted(text))


def test_a_novel_is_not_read() -> None:
    assert pasted("http://x/?state=" + "s" * 5000) == {}


def test_digests_differ_and_tell_nothing() -> None:
    assert digest("a") != digest("b")
    assert len(digest("a")) == 32


def test_every_ending_and_refusal_is_told_in_words() -> None:
    assert set(ENDINGS) == set(Ending)
    assert set(REFUSALS) == set(Refusal)
    for words in (*ENDINGS.values(), *REFUSALS.values()):
        assert words.title
        assert words.what.endswith(".")
        assert words.then.endswith((".", "my.smartcar.com.", "configuration."))


def test_only_what_another_try_can_mend_is_offered_another_try() -> None:
    assert {ending for ending, words in ENDINGS.items() if not words.again} == {
        Ending.CONSENTED,
        Ending.CONFIGURATION,
    }
