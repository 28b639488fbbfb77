"""What Home Assistant is told of a car: one device with all its entities, in one retained message. Pure.

The payload is that of device-based discovery, which Home Assistant understands from 2024.12 on, with its
abbreviations, because brokers may limit the size of a message
(https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload). Worth knowing of it:

* A component that names nothing but its platform is removed, and nothing happens if there is none. So a
  command that a car can no longer be given leaves no dead switch behind.
* ``None`` is the state "unknown" of every platform. A template must bear an empty payload, too: that is what
  whoever is connected hears when a retained message is deleted. What it trips over is logged there.

A value that ages is available only while the car's state is fresh. Readings that an outage delayed are told
when they are no news any more, and Home Assistant would note them as of now: it takes these values from fresh
states alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

import orjson

from evbatteryd.domain.commanding import HIGHEST_LIMIT, LOWEST_LIMIT, CommandKind
from evbatteryd.domain.freshness import Freshness
from evbatteryd.domain.reading import ChargeState, Signal

Config = dict[str, object]
"""What JSON has of an entity, or a part of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What Home Assistant is told of one car."""

    slug: str
    name: str
    make: str
    model: str | None
    year: int | None
    commands: frozenset[CommandKind]
    """What it may be commanded."""
    expire_after_s: int | None
    """The longest that a value of this brand may be fresh without being told again, in real seconds. None:
    the broker's expiry and the availability topic suffice."""


class _While(Enum):
    """When an entity is available: what the availability topic says then."""

    FRESH = (Freshness.FRESH,)
    KNOWN = (Freshness.FRESH, Freshness.STALE)
    """Not offline."""
    ONLINE = ()
    """Whatever it says, as long as the daemon is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    """One field of the car's state, as a sensor or a binary sensor."""

    key: str
    """The component's, and the end of the entity's ids."""
    field: str
    name: str | None
    """None: the entity is called what the device is called."""
    available: _While
    looks: Config
    """Class, unit, category and the like."""
    platform: str = "sensor"
    shown: str = "v"
    """Expression of its state; ``v`` is the field's value, or none."""
    attributes: tuple[str, ...] = ()
    """Fields that say more of this one; the first of them alone where there is no JSON."""


def _number(device_class: str, unit: str, decimals: int, state_class: str = "measurement") -> Config:
    return {"dev_cla": device_class, "unit_of_meas": unit, "stat_cla": state_class, "sug_dsp_prc": decimals}


_DIAGNOSTIC: Final[Config] = {"ent_cat": "diagnostic"}
_TIME: Final[Config] = {"dev_cla": "timestamp", **_DIAGNOSTIC}
_DISABLED: Final[Config] = {"en": False}
"""Until somebody wants it."""
_ESTIMATE: Final[Config] = {
    "unit_of_meas": "%",
    "stat_cla": "measurement",
    "sug_dsp_prc": 0,
    "ic": "mdi:battery-clock",
    **_DISABLED,
}
"""Of no device class: the one of class battery is what Home Assistant shows as the device's."""
_MINUTES: Final = "(v|float/60)|round(1) if v is not none else v"
_LIMIT: Final = f"v if v is not none and v|float>={LOWEST_LIMIT} else none"
"""A number outside its range is an error to Home Assistant, and cars may be limited to less at the wheel."""

_FIELDS: Final = (
    _Field(
        key="soc",
        field=Signal.SOC,
        name=None,
        available=_While.FRESH,
        looks=_number("battery", "%", 0),
        attributes=("measured_at", "fetched_at", "freshness", "source"),
    ),
    _Field(
        key="range",
        field=Signal.RANGE,
        name="Range",
        available=_While.FRESH,
        looks=_number("distance", "km", 0),
    ),
    _Field(
        key="capacity",
        field=Signal.CAPACITY,
        name="Capacity",
        available=_While.KNOWN,
        looks={**_number("energy_storage", "kWh", 1), **_DIAGNOSTIC},
    ),
    _Field(
        key="charging",
        field=Signal.CHARGING,
        name="Charging",
        available=_While.FRESH,
        platform="binary_sensor",
        looks={"dev_cla": "battery_charging"},
    ),
    _Field(
        key="plugged_in",
        field=Signal.PLUGGED_IN,
        name="Plugged in",
        available=_While.FRESH,
        platform="binary_sensor",
        looks={"dev_cla": "plug"},
    ),
    _Field(
        key="charge_state",
        field=Signal.CHARGE_STATE,
        name="Charge state",
        available=_While.FRESH,
        looks={"dev_cla": "enum", "ops": [*ChargeState], "ic": "mdi:ev-station"},
    ),
    _Field(
        key="charge_power",
        field=Signal.CHARGE_POWER,
        name="Charge power",
        available=_While.FRESH,
        looks=_number("power", "kW", 1),
    ),
    _Field(
        key="charge_limit",
        field=Signal.CHARGE_LIMIT,
        name="Charge limit",
        available=_While.FRESH,
        looks={"unit_of_meas": "%", "sug_dsp_prc": 0, "ic": "mdi:battery-lock"},
    ),
    _Field(
        key="time_to_full",
        field=Signal.TIME_TO_FULL,
        name="Time to full",
        available=_While.FRESH,
        looks=_number("duration", "min", 0),
        shown=_MINUTES,
    ),
    _Field(
        key="odometer",
        field=Signal.ODOMETER,
        name="Odometer",
        available=_While.KNOWN,
        looks=_number("distance", "km", 0, "total_increasing"),
    ),
    _Field(
        key="soc_estimate",
        field="soc_estimate",
        name="Estimated charge",
        available=_While.KNOWN,
        looks=_ESTIMATE,
        attributes=("estimate_until",),
    ),
    _Field(
        key="soc_estimate_low",
        field="soc_estimate_low",
        name="Estimated charge at least",
        available=_While.KNOWN,
        looks=_ESTIMATE,
    ),
    _Field(
        key="soc_estimate_high",
        field="soc_estimate_high",
        name="Estimated charge at most",
        available=_While.KNOWN,
        looks=_ESTIMATE,
    ),
)

_DOCUMENT: Final = "(value_json|default({}))"
"""What JSON a payload is; of one that is empty, a document that holds nothing."""


def discovery_topic(prefix: str, base: str, slug: str) -> str:
    """Where Home Assistant looks for a car: ``prefix`` is of its topics, ``base`` of ours."""
    return f"{prefix}/device/{_object_id(base, slug)}/config"


def discovery_json(device: Device, *, base: str, version: str, json_state: bool) -> bytes:
    """The payload for :func:`discovery_topic`.

    ``version``: ours. ``json_state``: whether ``BASE/VEHICLE/state`` is published; if not, values are those
    of the scalar topics.
    """
    entities = _Entities(device, base, json_state=json_state)
    return orjson.dumps(
        {
            "dev": _described(device, entities.object_id),
            "o": {"name": "evbatteryd", "sw": version},
            "avty": entities.availability(_While.FRESH),
            "avty_mode": "all",
            "stat_t": entities.state_topic,
            "cmps": dict(entities.every()),
        }
    )


def _object_id(base: str, slug: str) -> str:
    """Letters, digits, ``_`` and ``-`` are all that Home Assistant admits there."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", f"{base}_{slug}")


def _described(device: Device, object_id: str) -> Config:
    model = " ".join(str(part) for part in (device.model, device.year) if part is not None)
    described: Config = {"ids": [object_id], "name": device.name, "mf": device.make}
    return {**described, "mdl": model} if model else described


def _told(field: str) -> str:
    """Expression of what a document says of ``field``; none if nothing."""
    return f"{_DOCUMENT}.{field}|default(none)"


def _template(expression: str, v: str = "") -> str:
    """The template of an expression, in which ``v`` may stand for another one."""
    if not v:
        return f"{{{{{expression}}}}}"
    return f"{{{{{v}}}}}" if expression == "v" else f"{{%set v={v}%}}{{{{{expression}}}}}"


class _Entities:
    """The entities of one device. What they say nothing of is as the device has it: they are available while
    the car's state is fresh, and take their own state from its JSON."""

    def __init__(self, device: Device, base: str, *, json_state: bool) -> None:
        self.object_id = _object_id(base, device.slug)
        self._device = device
        self._base = base
        self._json_state = json_state

    @property
    def state_topic(self) -> str:
        """Of every entity that names no other."""
        return self._topic("state")

    def every(self) -> Iterator[tuple[str, Config]]:
        """Each of them, by its key."""
        for field in _FIELDS:
            yield field.key, self._measured(field)
        # Not from the state, which a broker drops when it is old: its age is what people want to know then.
        yield "measured_at", self._time("measured_at", "Measured at")
        yield "fetched_at", self._time("fetched_at", "Fetched at")
        yield "freshness", self._freshness("freshness")
        yield "problem", self._problem("problem")
        yield "next_poll", self._time("next_poll", "Next poll") | self._polling_attributes("reason")
        yield "calls_left", self._calls_left("calls_left")
        for key, platform, kind, configured in (
            ("refresh", "button", CommandKind.POLL, self._refresh),
            ("set_charging", "switch", CommandKind.CHARGING, self._set_charging),
            ("set_charge_limit", "number", CommandKind.CHARGE_LIMIT, self._set_charge_limit),
        ):
            yield key, configured(key) if kind in self._device.commands else {"p": platform}

    def availability(self, available: _While) -> list[Config]:
        """The topics that say whether an entity is available, all of them at once."""
        bridge: Config = {"t": f"{self._base}/bridge/state"}
        if available is _While.ONLINE:
            return [bridge]
        words = " or ".join(f"value=='{word}'" for word in available.value)
        template = _template(f"'online' if {words} else 'offline'")
        return [bridge, {"t": self._topic("availability"), "val_tpl": template}]

    # What the car measures, and what is made of it

    def _measured(self, field: _Field) -> Config:
        config = self._entity(field.key, field.platform, field.name, field.available)
        config |= self._value(field.field, field.available, field.shown) | field.looks
        if field.platform == "binary_sensor":
            config |= {"pl_on": self._truth(True), "pl_off": self._truth(False)}
        if field.available is _While.FRESH and self._device.expire_after_s is not None:
            config["exp_aft"] = self._device.expire_after_s
        if field.attributes:
            config |= self._attributes(field.attributes)
        return config

    def _value(self, field: str, available: _While, shown: str = "v") -> Config:
        """Topic and template of a field's value."""
        if not self._json_state:
            return {"stat_t": self._topic(field), "val_tpl": _template(shown, "value or none")}
        if available is _While.FRESH:
            value = f"value_json.get('{field}') if {_DOCUMENT}.freshness=='fresh' else none"
        else:
            value = _told(field)
        return {"val_tpl": _template(shown, value)}

    def _truth(self, value: bool) -> str:
        """What templates make of a boolean: Python's word for JSON's; a scalar stays as it is."""
        return str(value) if self._json_state else str(value).lower()

    def _attributes(self, fields: tuple[str, ...]) -> Config:
        if not self._json_state:
            template = _template(f"{{'{fields[0]}':value or none}}|to_json")
            return {"json_attr_t": self._topic(fields[0]), "json_attr_tpl": template}
        words = ",".join(f"'{field}'" for field in fields)
        template = _template(f"dict({_DOCUMENT}.items()|selectattr(0,'in',[{words}]))|to_json")
        return {"json_attr_t": self.state_topic, "json_attr_tpl": template}

    # How it is doing

    def _freshness(self, key: str) -> Config:
        return {
            **self._entity(key, "sensor", "Freshness", _While.ONLINE),
            "stat_t": self._topic("availability"),
            "val_tpl": _template("value or none"),
            "dev_cla": "enum",
            "ops": [*Freshness],
            "ic": "mdi:clock-check-outline",
            **_DIAGNOSTIC,
        }

    def _problem(self, key: str) -> Config:
        return {
            **self._entity(key, "binary_sensor", "Data problem", _While.ONLINE),
            "stat_t": self._topic("polling"),
            "val_tpl": _template(
                "none if v is not defined else 'ON' if v else 'OFF'", f"{_DOCUMENT}.problem"
            ),
            "json_attr_t": self._topic("polling"),
            "json_attr_tpl": _template(f"({_told('problem')} or {{}})|to_json"),
            "dev_cla": "problem",
            **_DIAGNOSTIC,
        }

    def _time(self, key: str, name: str) -> Config:
        return {
            **self._entity(key, "sensor", name, _While.ONLINE),
            "stat_t": self._topic("polling"),
            "val_tpl": _template(_told(key)),
            **_TIME,
        }

    def _polling_attributes(self, field: str) -> Config:
        template = _template(f"{{'{field}':{_told(field)}}}|to_json")
        return {"json_attr_t": self._topic("polling"), "json_attr_tpl": template}

    def _calls_left(self, key: str) -> Config:
        return {
            **self._entity(key, "sensor", "Calls left", _While.ONLINE),
            "stat_t": self._topic("polling"),
            "val_tpl": _template(_told("calls_left")),
            "unit_of_meas": "calls",
            "stat_cla": "measurement",
            "ic": "mdi:counter",
            **_DIAGNOSTIC,
            **_DISABLED,
        }

    # What it may be commanded

    def _refresh(self, key: str) -> Config:
        """Disabled, because it costs a call."""
        return {
            **self._entity(key, "button", "Refresh", _While.ONLINE),
            "cmd_t": self._command_topic(CommandKind.POLL),
            "pl_prs": "now",
            "ic": "mdi:refresh",
            **_DIAGNOSTIC,
            **_DISABLED,
        }

    def _set_charging(self, key: str) -> Config:
        return {
            **self._entity(key, "switch", "Charging", _While.FRESH),
            **self._value(Signal.CHARGING, _While.FRESH),
            "cmd_t": self._command_topic(CommandKind.CHARGING),
            "pl_on": "on",
            "pl_off": "off",
            "stat_on": self._truth(True),
            "stat_off": self._truth(False),
            "ic": "mdi:ev-plug-type2",
        }

    def _set_charge_limit(self, key: str) -> Config:
        return {
            **self._entity(key, "number", "Charge limit", _While.FRESH),
            **self._value(Signal.CHARGE_LIMIT, _While.FRESH, _LIMIT),
            "cmd_t": self._command_topic(CommandKind.CHARGE_LIMIT),
            "min": LOWEST_LIMIT,
            "max": HIGHEST_LIMIT,
            "unit_of_meas": "%",
            "ic": "mdi:battery-lock",
            "ent_cat": "config",
        }

    # What all have in common

    def _entity(self, key: str, platform: str, name: str | None, available: _While) -> Config:
        config: Config = {
            "p": platform,
            "uniq_id": f"{self.object_id}_{key}",
            "def_ent_id": f"{platform}.{self._device.slug}_{key.removeprefix('set_')}",
            "name": name,
            "qos": 1,
        }
        return config if available is _While.FRESH else {**config, "avty": self.availability(available)}

    def _topic(self, leaf: str) -> str:
        return f"{self._base}/{self._device.slug}/{leaf}"

    def _command_topic(self, kind: CommandKind) -> str:
        return self._topic(f"{kind}/set")
