"""What Home Assistant is told, as its templates would read it. A real one reads it in tests/foreign."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import replace
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evbatteryd.domain.commanding import CommandKind, command_in
from evbatteryd.domain.freshness import Freshness
from evbatteryd.domain.reading import ChargeState, Signal
from evbatteryd.sinks.discovery import Device, discovery_json, discovery_topic
from evbatteryd.sinks.payload import ESTIMATED, FIELDS

ZOE = Device(
    slug="zoe",
    name="Our Zoë",
    make="Renault",
    model="Zoe",
    year=2021,
    commands=frozenset(CommandKind),
    expire_after_s=5400,
)
AGEING = {
    "soc",
    "range",
    "charging",
    "plugged_in",
    "charge_state",
    "charge_power",
    "charge_limit",
    "time_to_full",
    "set_charging",
    "set_charge_limit",
}
LASTING = {"capacity", "odometer", "soc_estimate", "soc_estimate_low", "soc_estimate_high"}
STATE = {
    "soc": 55,
    "charging": True,
    "charge_limit": 80,
    "time_to_full_s": 5400,
    "odometer_km": 0,
    "freshness": "fresh",
    "measured_at": "2026-11-22T12:00:00.000Z",
    "fetched_at": "2026-11-22T12:05:00.000Z",
    "source": "poll",
    "soc_estimate": 56.5,
    "estimate_until": "2026-11-22T13:00:00.000Z",
    "reading_id": "r1",
}


def document(device: Device = ZOE, *, base: str = "evbatteryd", json_state: bool = True) -> dict[str, Any]:
    told = discovery_json(device, base=base, version="1.2.3", json_state=json_state)
    found: dict[str, Any] = json.loads(told)
    return found


def entity(key: str, *, json_state: bool = True, device: Device = ZOE) -> dict[str, Any]:
    """A component with what it has of the device, as Home Assistant merges them."""
    whole = document(device, json_state=json_state)
    shared = {name: whole[name] for name in ("avty", "avty_mode", "stat_t")}
    return shared | whole["cmps"][key]


class Complaining(jinja2.StrictUndefined):
    """Home Assistant logs what this refuses; it lets what is undefined be compared, though."""

    __eq__ = jinja2.Undefined.__eq__
    __hash__ = jinja2.Undefined.__hash__


def rendered(template: str, payload: str) -> str:
    """As Home Assistant renders it; fails where it would log something."""
    environment = jinja2.Environment(undefined=Complaining)
    environment.filters["to_json"] = json.dumps
    given: dict[str, Any] = {"value": payload}
    with suppress(ValueError):
        given["value_json"] = json.loads(payload)
    return environment.from_string(template).render(given).strip()


def shown(key: str, payload: object, *, json_state: bool = True) -> str:
    text = payload if isinstance(payload, str) else json.dumps(payload)
    return rendered(entity(key, json_state=json_state)["val_tpl"], text)


def attributes(key: str, payload: object, *, json_state: bool = True) -> dict[str, Any]:
    text = payload if isinstance(payload, str) else json.dumps(payload)
    found: dict[str, Any] = json.loads(rendered(entity(key, json_state=json_state)["json_attr_tpl"], text))
    return found


@pytest.mark.parametrize(
    ("base", "topic"),
    [
        ("evbatteryd", "homeassistant/device/evbatteryd_zoe/config"),
        ("home/ev", "homeassistant/device/home_ev_zoe/config"),
        ("Häuser/Nr. 1", "homeassistant/device/H_user_Nr__1_zoe/config"),
    ],
)
def test_the_topic_is_one_that_home_assistant_admits(base: str, topic: str) -> None:
    assert discovery_topic("homeassistant", base, "zoe") == topic


def test_the_device() -> None:
    told = document(base="home/ev")
    assert told["dev"] == {"ids": ["home_ev_zoe"], "name": "Our Zoë", "mf": "Renault", "mdl": "Zoe 2021"}
    assert told["o"] == {"name": "evbatteryd", "sw": "1.2.3"}


@pytest.mark.parametrize(
    ("model", "year", "told"), [("Zoe", None, "Zoe"), (None, 2021, "2021"), (None, None, None)]
)
def test_what_is_not_known_of_the_car_is_not_told(
    model: str | None, year: int | None, told: str | None
) -> None:
    assert document(replace(ZOE, model=model, year=year))["dev"].get("mdl") == told


def test_ids_are_stable_and_no_two_the_same() -> None:
    components = document(base="home/ev")["cmps"]
    assert {key: told["uniq_id"] for key, told in components.items()} == {
        key: f"home_ev_zoe_{key}" for key in components
    }
    entity_ids = [told["def_ent_id"] for told in components.values()]
    assert len(set(entity_ids)) == len(entity_ids)
    for told in components.values():
        assert re.fullmatch(rf"{told['p']}\.zoe_[a-z_]+", told["def_ent_id"])


def test_every_published_field_is_shown() -> None:
    told = document(json_state=False)["cmps"]
    topics = {c.get("stat_t") for c in told.values()} | {c.get("json_attr_t") for c in told.values()}
    aged = {"measured_at", "fetched_at"}
    assert topics >= {f"evbatteryd/zoe/{field}" for field in FIELDS if field not in aged}
    assert all(told[key]["stat_t"] == "evbatteryd/zoe/polling" for key in aged)


def test_only_states_that_exist_are_options() -> None:
    assert entity("charge_state")["ops"] == [*ChargeState]
    assert entity("freshness")["ops"] == [*Freshness]


@pytest.mark.parametrize("json_state", [True, False])
@pytest.mark.parametrize("word", [*Freshness, ""])
def test_availability(word: str, json_state: bool) -> None:
    """What ages is available while it is fresh, what lasts unless the car is offline, the rest always."""
    available = set()
    for key in document()["cmps"]:
        told = entity(key, json_state=json_state)
        bridge, *more = told["avty"]
        assert told["avty_mode"] == "all"
        assert bridge == {"t": "evbatteryd/bridge/state"}
        assert [each["t"] for each in more] in ([], ["evbatteryd/zoe/availability"])
        if all(rendered(each["val_tpl"], word) == "online" for each in more):
            available.add(key)
    always = document()["cmps"].keys() - AGEING - LASTING
    assert available == always | {"fresh": AGEING | LASTING, "stale": LASTING}.get(word, set())


@pytest.mark.parametrize("json_state", [True, False])
def test_what_ages_expires(json_state: bool) -> None:
    components = document(json_state=json_state)["cmps"]
    expiring = {key: told["exp_aft"] for key, told in components.items() if "exp_aft" in told}
    assert expiring == dict.fromkeys((key for key in AGEING if not key.startswith("set_")), 5400)
    forever = document(replace(ZOE, expire_after_s=None), json_state=json_state)["cmps"]
    assert not [key for key, told in forever.items() if "exp_aft" in told]


@pytest.mark.parametrize(
    ("key", "state"),
    [
        ("soc", "55"),
        ("charging", "True"),
        ("set_charging", "True"),
        ("set_charge_limit", "80"),
        ("time_to_full", "90.0"),
        ("odometer", "0"),
        ("soc_estimate", "56.5"),
    ],
)
def test_values_of_the_json(key: str, state: str) -> None:
    assert entity(key)["stat_t"] == "evbatteryd/zoe/state"
    assert shown(key, STATE) == state


@pytest.mark.parametrize(
    ("key", "field", "payload", "state"),
    [
        ("soc", Signal.SOC, "55.5", "55.5"),
        ("soc", Signal.SOC, "0", "0"),
        ("charging", Signal.CHARGING, "false", "false"),
        ("set_charging", Signal.CHARGING, "true", "true"),
        ("set_charge_limit", Signal.CHARGE_LIMIT, "80", "80"),
        ("set_charge_limit", Signal.CHARGE_LIMIT, "49.5", "None"),
        ("time_to_full", Signal.TIME_TO_FULL, "0", "0.0"),
        ("time_to_full", Signal.TIME_TO_FULL, "90", "1.5"),
    ],
)
def test_values_of_the_scalars(key: str, field: str, payload: str, state: str) -> None:
    assert entity(key, json_state=False)["stat_t"] == f"evbatteryd/zoe/{field}"
    assert shown(key, payload, json_state=False) == state
    assert shown(key, "", json_state=False) == "None"


@pytest.mark.parametrize("key", ["charging", "plugged_in"])
def test_booleans_mean_on_and_off(key: str) -> None:
    field = str(getattr(Signal, key.upper()))
    for value, word in ((True, "pl_on"), (False, "pl_off")):
        state = {field: value, "freshness": "fresh"}
        assert shown(key, state) == entity(key)[word]
        assert shown(key, json.dumps(value), json_state=False) == entity(key, json_state=False)[word]


def test_the_switch_shows_what_the_sensor_shows() -> None:
    for json_state in (True, False):
        sensor, switch = (entity(key, json_state=json_state) for key in ("charging", "set_charging"))
        assert (switch["stat_on"], switch["stat_off"]) == (sensor["pl_on"], sensor["pl_off"])


@pytest.mark.parametrize("limit", [0, 49.9, 50, 80.5, 100, None])
def test_a_limit_outside_the_range_is_unknown_to_the_number(limit: float | None) -> None:
    """Home Assistant would log an error."""
    number = entity("set_charge_limit")
    state = shown("set_charge_limit", STATE | {"charge_limit": limit})
    assert state == "None" or number["min"] <= float(state) <= number["max"]
    assert shown("charge_limit", STATE | {"charge_limit": limit}) == str(limit)


_payloads = st.one_of(
    st.just(""),
    st.just("{}"),
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys([*FIELDS, "reason", "problem", "next_poll", "calls_left"], st.none()),
            "freshness": st.sampled_from([None, *Freshness]),
        },
    ).map(json.dumps),
)


@given(_payloads)
def test_what_is_null_missing_or_deleted_is_unknown(payload: str) -> None:
    for key, told in document()["cmps"].items():
        if told["p"] in {"sensor", "binary_sensor", "switch", "number"} and key != "freshness":
            unknown = {"None"} | ({"OFF"} if key == "problem" else set())
            assert shown(key, payload) in unknown, key
        if "json_attr_tpl" in told:
            assert set(attributes(key, payload).values()) <= {None, *Freshness}


@pytest.mark.parametrize("freshness", ["stale", "offline", None])
def test_only_fresh_states_tell_what_ages(freshness: str | None) -> None:
    """Of a reading that an outage delayed Home Assistant would take the values for the present's."""
    late = {**dict.fromkeys(FIELDS, 60), "freshness": freshness}
    told = {key for key in AGEING | LASTING if shown(key, late) != "None"}
    assert told == LASTING


def test_attributes_of_the_charge() -> None:
    told = attributes("soc", STATE)
    assert told == {key: STATE[key] for key in ("measured_at", "fetched_at", "freshness", "source")}
    assert attributes("soc_estimate", STATE) == {"estimate_until": STATE["estimate_until"]}
    scalar = entity("soc", json_state=False)
    assert scalar["json_attr_t"] == "evbatteryd/zoe/measured_at"
    assert attributes("soc", "2026-11-22T12:00:00.000Z", json_state=False) == {
        "measured_at": "2026-11-22T12:00:00.000Z"
    }
    assert attributes("soc", "", json_state=False) == {"measured_at": None}


def test_polling() -> None:
    problem = {"outcome": "asleep", "code": "VEHICLE_STATE:ASLEEP", "detail": "it sleeps", "since": "..."}
    polling = {
        "next_poll": "2026-11-22T12:20:00.000Z",
        "reason": "it charges",
        "problem": problem,
        "calls_left": 0,
    }
    for key in ("problem", "next_poll", "calls_left"):
        assert entity(key)["stat_t"] == "evbatteryd/zoe/polling"
    assert shown("problem", polling) == "ON"
    assert attributes("problem", polling) == problem
    assert shown("problem", polling | {"problem": None}) == "OFF"
    assert attributes("problem", polling | {"problem": None}) == {}
    assert shown("next_poll", polling) == polling["next_poll"]
    assert attributes("next_poll", polling) == {"reason": "it charges"}
    assert shown("calls_left", polling) == "0"


def test_what_costs_or_is_not_measured_is_disabled_until_somebody_wants_it() -> None:
    disabled = {key for key, told in document()["cmps"].items() if not told.get("en", True)}
    assert disabled == {"refresh", "calls_left", *ESTIMATED[:3]}


def test_commands_are_understood() -> None:
    """What is sent means the command, and lands on the topic that is listened to."""
    refresh, switch, number = (entity(key) for key in ("refresh", "set_charging", "set_charge_limit"))
    for told, kind in (
        (refresh, CommandKind.POLL),
        (switch, CommandKind.CHARGING),
        (number, CommandKind.CHARGE_LIMIT),
    ):
        assert told["cmd_t"] == f"evbatteryd/zoe/{kind}/set"
        assert not told.get("ret", False)
    for kind, payload, value in (
        (CommandKind.POLL, refresh["pl_prs"], None),
        (CommandKind.CHARGING, switch["pl_on"], True),
        (CommandKind.CHARGING, switch["pl_off"], False),
        (CommandKind.CHARGE_LIMIT, str(number["min"]), 50),
        (CommandKind.CHARGE_LIMIT, str(number["max"]), 100),
    ):
        command = command_in(kind, payload)
        assert not isinstance(command, str)
        assert command.value is value or command.value == value


@pytest.mark.parametrize("kind", CommandKind)
def test_a_command_that_is_not_possible_is_taken_away(kind: CommandKind) -> None:
    keys = {
        CommandKind.POLL: ("refresh", "button"),
        CommandKind.CHARGING: ("set_charging", "switch"),
        CommandKind.CHARGE_LIMIT: ("set_charge_limit", "number"),
    }
    components = document(replace(ZOE, commands=frozenset(CommandKind) - {kind}))["cmps"]
    removed = {key: told for key, told in components.items() if told.keys() == {"p"}}
    key, platform = keys[kind]
    assert removed == {key: {"p": platform}}


@pytest.mark.parametrize("json_state", [True, False])
def test_it_stays_small(json_state: bool) -> None:
    """Of brokers in the cloud some take no more than 128 KB a message, and microcontrollers far less."""
    told = discovery_json(ZOE, base="evbatteryd", version="1.2.3", json_state=json_state)
    assert len(told) < 10_000
