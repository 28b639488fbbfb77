"""Commands to Smartcar: what answers to them mean, the wire that fails them, and the simulator's cars."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from evbatteryd.domain import errors
from evbatteryd.domain.commanding import Action, Command, CommandKind
from evbatteryd.domain.reading import ChargeState, Signal
from evbatteryd.domain.vehicle import Consent, Vehicle
from evbatteryd.simulator import Simulator, SimulatorOptions
from evbatteryd.simulator.errors import ERRORS
from evbatteryd.simulator.fleet import PERMISSIONS
from evbatteryd.simulator.fleet import Vehicle as SimulatedVehicle
from evbatteryd.simulator.lives import State
from evbatteryd.sources.smartcar import SmartcarSource
from evbatteryd.sources.smartcar_answers import Fault, error_for
from evbatteryd.sources.smartcar_commands import command_done, command_error_for
from tests.fakes import CountingTicket, VirtualClock, settle, until
from tests.simulator.conftest import HandClock
from tests.sources.test_smartcar import OWNED, PROFILE, SECRET, USER, VEHICLE, Smartcar, serve, source_at

START = Command(CommandKind.CHARGING, True)
STOP = Command(CommandKind.CHARGING, False)
LIMIT = Command(CommandKind.CHARGE_LIMIT, 80)
DOUBT = "it is not known whether"


def in_doubt(error: errors.SourceError) -> bool:
    """Whether the car may have done it all the same, as program and reader are told."""
    doubtful = isinstance(error, errors.Unreachable) and error.in_doubt
    assert doubtful is (DOUBT in error.detail)
    return doubtful


def wrapped(**attributes: object) -> dict[str, object]:
    return {"data": {"id": "x", "type": "command", "attributes": attributes}}


def v3_error(kind: str, code: str | None, status: str = "409") -> dict[str, object]:
    return {"errors": [{"status": status, "type": kind, "code": code, "resolution": {"type": None}}]}


NOT_PLUGGED = {"type": "VEHICLE_STATE", "code": "CHARGING_PLUG_NOT_CONNECTED", "statusCode": 409}


# --- what the answer says -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "done"),
    [
        (wrapped(status="SUCCESS"), True),
        (wrapped(status="success", errors=[]), True),
        (wrapped(status={"value": "SUCCESS"}), True),
        (wrapped(status="PENDING"), False),
        (wrapped(status="QUEUED"), False),
        (wrapped(status=7), False),
        (wrapped(), False),
        ({"data": {"status": "SUCCESS"}}, True),
        # API v2, and what github.com/wbyoung/smartcar expects of v3 (tests/test_switch.py).
        ({"status": "success", "message": "Successfully sent request to vehicle"}, True),
        ({"id": "x", "type": "command", "attributes": {"status": "SUCCESS"}}, True),
        ({"type": "command", "status": "PENDING"}, False),
        ({"errors": [], **wrapped(status="SUCCESS")}, True),
        ({"error": None, "status": "SUCCESS"}, True),
        ({}, False),
    ],
)
@pytest.mark.parametrize("status", [200, 202])
def test_the_body_says_whether_it_was_done_whatever_the_status_line(
    document: dict[str, object], done: bool, status: int
) -> None:
    assert command_done(orjson.dumps(document), status) is done


@pytest.mark.parametrize(
    "document",
    [wrapped(status="FAILURE"), wrapped(status={"value": "failed"}), {"status": "error", "message": "no"}],
)
@pytest.mark.parametrize("status", [200, 202])
def test_a_failure_is_one(document: dict[str, object], status: int) -> None:
    with pytest.raises(errors.CommandFailed) as told:
        command_done(orjson.dumps(document), status)
    assert "tried and failed" in told.value.detail


@pytest.mark.parametrize(
    "document",
    [
        v3_error("VEHICLE_STATE", "CHARGING_PLUG_NOT_CONNECTED"),
        {"errors": [None, *v3_error("VEHICLE_STATE", "CHARGING_PLUG_NOT_CONNECTED")["errors"]]},  # type: ignore[misc]
        {"error": NOT_PLUGGED},
        NOT_PLUGGED,
        wrapped(status="FAILURE", error=NOT_PLUGGED),
        wrapped(status={"value": "ERROR", "error": NOT_PLUGGED}),
        {"status": "409", **NOT_PLUGGED},
        {"status": "SUCCESS", "error": NOT_PLUGGED},
    ],
)
@pytest.mark.parametrize("status", [200, 202])
def test_an_error_inside_of_an_answer_that_looks_well_is_an_error(
    document: dict[str, object], status: int
) -> None:
    with pytest.raises(errors.NotNow) as told:
        command_done(orjson.dumps(document), status)
    assert told.value.code == "VEHICLE_STATE:CHARGING_PLUG_NOT_CONNECTED"
    assert "plug it in" in told.value.detail


@pytest.mark.parametrize(
    "document", [{"errors": ["no"]}, {"error": "invalid"}, {"errors": {"odd": 1}, "status": "SUCCESS"}]
)
def test_an_error_that_nobody_can_read_is_no_success(document: dict[str, object]) -> None:
    with pytest.raises(errors.Unreachable) as told:
        command_done(orjson.dumps(document), 200)
    assert in_doubt(told.value)


@pytest.mark.parametrize("status", [200, 202, 204])
@pytest.mark.parametrize("body", [b"", b" \n"])
def test_an_answer_that_says_nothing_leaves_it_open(body: bytes, status: int) -> None:
    assert command_done(body, status) is False


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'"SUCCESS"', b'{"data": {"attri', b"\xff"])
def test_rubbish_leaves_a_promise_open_and_is_no_answer_otherwise(body: bytes) -> None:
    assert command_done(body, 202) is False
    with pytest.raises(errors.Unreadable) as told:
        command_done(body, 200)
    assert in_doubt(told.value)
    assert told.value.excerpt


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["data", "attributes", "status", "value", "errors", "error", "type", "code", "resolution"]
            )
            | st.text(max_size=8),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


def _dumped(value: object) -> bytes:
    try:
        return orjson.dumps(value)
    except (orjson.JSONEncodeError, UnicodeEncodeError):  # beyond 64 bits; half a surrogate pair
        return b"null"


@given(st.binary(max_size=200) | json_values.map(_dumped), st.sampled_from([200, 202, 204]))
def test_whatever_is_answered_is_known_open_or_an_error_of_ours(body: bytes, status: int) -> None:
    try:
        done = command_done(body, status)
    except errors.SourceError:
        return
    assert done is (done and b"success" in body.lower())


# --- what an error means --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant", "words"),
    [
        ("VEHICLE_STATE:CHARGING_IN_PROGRESS", errors.NotNow, "charging already"),
        ("VEHICLE_STATE:CHARGING_PLUG_NOT_CONNECTED", errors.NotNow, "plug it in"),
        ("VEHICLE_STATE:CHARGING_PLUG_CONNECTED", errors.NotNow, "unplug it"),
        ("VEHICLE_STATE:NOT_CHARGING", errors.NotNow, "not charging"),
        ("VEHICLE_STATE:FULLY_CHARGED", errors.NotNow, "up to its limit"),
        ("VEHICLE_STATE:LOW_BATTERY", errors.NotNow, "battery is too low"),
        ("VEHICLE_STATE:CHARGE_FAULT", errors.NotNow, "timers"),
        ("VEHICLE_STATE:DOOR_OPEN", errors.NotNow, "door"),
        ("VEHICLE_STATE:HOOD_OPEN", errors.NotNow, "hood"),
        ("VEHICLE_STATE:TRUNK_OPEN", errors.NotNow, "trunk"),
        ("VEHICLE_STATE:IGNITION_ON", errors.NotNow, "switch it off"),
        ("VEHICLE_STATE:IN_MOTION", errors.NotNow, "parked"),
        ("VEHICLE_STATE:REMOTE_ACCESS_DISABLED", errors.NotNow, "switch it on in the car"),
        ("VEHICLE_STATE:ASLEEP", errors.NotNow, "driven"),
        ("VEHICLE_STATE:UNREACHABLE", errors.NotNow, "network"),
        ("VEHICLE_STATE:VEHICLE_OFFLINE_FOR_SERVICE", errors.NotNow, "service"),
        ("VEHICLE_STATE:UNKNOWN", errors.NotNow, "present state"),
        ("PERMISSION", errors.NotPermitted, "consented"),
        ("PERMISSION:PERMISSION_DENIED", errors.NotPermitted, "consented"),
        ("VALIDATION:PERMISSION_DENIED", errors.NotPermitted, "consented"),
        ("AUTHENTICATION:ACCESS_DENIED", errors.NotPermitted, "plan"),
        ("CONNECTED_SERVICES_ACCOUNT:PERMISSION", errors.NotPermitted, "manufacturer"),
        ("CONNECTED_SERVICES_ACCOUNT:VIRTUAL_KEY_REQUIRED", errors.OwnerMustAct, "virtual key"),
        ("CONNECTED_SERVICES_ACCOUNT:AUTHENTICATION_FAILED", errors.ConsentLost, "sign-in"),
        ("COMPATIBILITY:VEHICLE_NOT_CAPABLE", errors.NotCapable, "cannot do it"),
        ("COMPATIBILITY:PLATFORM_NOT_CAPABLE", errors.NotCapable, "consents anew"),
        ("RATE_LIMIT:VEHICLE", errors.RateLimited, "too many"),
        ("RATE_LIMIT:SMARTCAR_API", errors.ApplicationRateLimited, "used up"),
        ("UPSTREAM:RATE_LIMIT", errors.RateLimited, "manufacturer limits"),
        ("BILLING:VEHICLE_REQUEST_LIMIT", errors.BudgetSpent, "plan"),
        ("VALIDATION:PARAMETER", errors.Unreadable, "malformed"),
        ("UPSTREAM:NO_RESPONSE", errors.Unreachable, DOUBT),
        ("SERVER:INTERNAL", errors.Unreachable, DOUBT),
    ],
)
def test_an_error_says_what_to_do(name: str, meant: type[errors.SourceError], words: str) -> None:
    kind, _, code = name.partition(":")
    found = command_error_for(Fault(kind, code or None, None), status=None, retry_after=timedelta(seconds=9))
    assert type(found) is meant
    assert found.code == name
    assert words in found.detail
    assert in_doubt(found) is (words == DOUBT)
    assert found.retry_after == timedelta(seconds=9)


@pytest.mark.parametrize(
    ("status", "meant", "doubtful"),
    [
        (403, errors.Unreachable, False),
        (404, errors.Unreachable, False),
        (409, errors.NotNow, False),
        (429, errors.ApplicationRateLimited, False),
        (430, errors.BudgetSpent, False),
        (500, errors.Unreachable, True),
        (501, errors.NotCapable, False),
        (502, errors.Unreachable, True),
        (504, errors.Unreachable, True),
    ],
)
def test_a_status_without_words_says_what_it_can(
    status: int, meant: type[errors.SourceError], doubtful: bool
) -> None:
    found = command_error_for(None, status=status)
    assert type(found) is meant
    assert in_doubt(found) is doubtful


@pytest.mark.parametrize("kind", ERRORS.values(), ids=lambda kind: kind.name)
def test_a_car_that_is_read_means_the_same_by_them_as_ever(kind: Any) -> None:
    found = error_for(Fault(kind.type, kind.code, kind.resolution), status=kind.status)
    of_commands = errors.NotNow | errors.NotPermitted | errors.CommandFailed
    assert not isinstance(found, of_commands)
    if kind.type == "VEHICLE_STATE":
        assert type(found) is errors.Asleep
    if kind.type == "PERMISSION":
        assert type(found) is errors.ConsentLost


# --- on the wire ----------------------------------------------------------------------------------------


@pytest.fixture
async def smartcar() -> AsyncIterator[Smartcar]:
    smartcar = Smartcar()
    async with serve(smartcar.handle) as smartcar.origin:
        yield smartcar


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def ticket() -> CountingTicket:
    return CountingTicket()


async def _success(request: web.Request) -> web.Response:
    return web.json_response(wrapped(status="SUCCESS"))


@pytest.mark.parametrize(
    ("command", "path", "body"),
    [
        (START, "start", None),
        (STOP, "stop", None),
        (LIMIT, "set-limit", {"data": {"attributes": {"percent": 80}}}),
    ],
)
async def test_a_command_is_one_call_with_token_and_user(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket, command: Command, path: str, body: object
) -> None:
    sent: list[bytes] = []

    async def answer(request: web.Request) -> web.Response:
        sent.append(await request.read())
        return await _success(request)

    smartcar.answer = answer
    async with source_at(smartcar.origin, clock) as source:
        assert await source.command(VEHICLE, command, ticket) is True
    (request,) = smartcar.asked
    assert (request.method, request.path) == ("POST", f"/v3/vehicles/v1/commands/charge/{path}")
    assert request.headers["Authorization"] == "Bearer token-1"
    assert request.headers["sc-user-id"] == "u1"
    if body is None:
        assert sent == [b""]
    else:
        assert orjson.loads(sent[0]) == body
        assert request.headers["Content-Type"] == "application/json"
    assert ticket.spent == 1


async def test_what_asks_nothing_of_the_car_is_no_command_to_it(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    async with source_at(smartcar.origin, clock) as source:
        with pytest.raises(ValueError, match="poll"):
            await source.command(VEHICLE, Command(CommandKind.POLL), ticket)
    assert (smartcar.asked, ticket.spent) == ([], 0)


async def test_a_refused_token_is_replaced_for_nothing_was_done(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    async def refuses_the_first(request: web.Request) -> web.Response:
        if request.headers["Authorization"] == "Bearer token-1":
            return web.json_response(v3_error("AUTHENTICATION", "UNAUTHORIZED", "401"), status=401)
        return await _success(request)

    smartcar.answer = refuses_the_first
    async with source_at(smartcar.origin, clock) as source:
        assert await source.command(VEHICLE, STOP, ticket) is True
    assert len(smartcar.asked) == ticket.spent == smartcar.tokens_given == 2


async def test_a_command_is_not_sent_again_long_after_it_was_given(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    """The token was refused, and then the application has no request to spare."""

    async def refuses(request: web.Request) -> web.Response:
        return web.json_response(v3_error("AUTHENTICATION", "UNAUTHORIZED", "401"), status=401)

    class Scarce(CountingTicket):
        async def spend(self) -> None:
            if self.spent:
                await clock.sleep(timedelta(hours=1))
            await super().spend()

    smartcar.answer, scarce = refuses, Scarce()
    async with source_at(smartcar.origin, clock) as source:
        commanding = asyncio.create_task(source.command(VEHICLE, STOP, scarce))
        await until(lambda: smartcar.tokens_given == 2)
        await settle()
        for _ in range(6):
            await clock.advance(timedelta(minutes=1))
        with pytest.raises(errors.NotNow) as told:
            await asyncio.wait_for(commanding, 5)
        assert "no request to spare for 5 min" in told.value.detail
        await clock.advance(timedelta(hours=2))
    assert (len(smartcar.asked), scarce.spent) == (1, 1)


async def _drop(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    raise asyncio.CancelledError


async def _break_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.content_length = 100
    await response.prepare(request)
    await response.write(b'{"data":')
    assert request.transport is not None
    request.transport.close()
    return response


async def _bad_gateway(request: web.Request) -> web.StreamResponse:
    return web.Response(status=502)


@pytest.mark.parametrize("answer", [_drop, _break_off, _bad_gateway])
async def test_what_may_have_arrived_is_never_sent_again_and_the_doubt_is_told(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket, answer: Any
) -> None:
    async with source_at(smartcar.origin, clock) as source:
        # On a connection that was kept alive, where aiohttp repeats what it may repeat.
        smartcar.answer = _success
        await source.command(replace(VEHICLE, consent=OWNED), START, ticket)
        smartcar.asked.clear()
        smartcar.answer = answer
        with pytest.raises(errors.Unreachable) as told:
            await source.command(replace(VEHICLE, consent=OWNED), STOP, ticket)
    assert in_doubt(told.value)
    assert len(smartcar.asked) == 1
    assert ticket.spent == 2
    assert USER not in "".join(traceback.format_exception(told.value))


async def test_a_command_without_an_answer_may_have_arrived(ticket: CountingTicket) -> None:
    smartcar = Smartcar()

    async def never(request: web.Request) -> web.StreamResponse:
        return await asyncio.get_running_loop().create_future()

    smartcar.answer = never
    async with _impatient(smartcar) as source:
        with pytest.raises(errors.Unreachable) as told:
            await source.command(VEHICLE, STOP, ticket)
    assert told.value.code == "TIMEOUT"
    assert in_doubt(told.value)
    assert len(smartcar.asked) == 1


@contextlib.asynccontextmanager
async def _impatient(smartcar: Smartcar) -> AsyncIterator[SmartcarSource]:
    """A source that has a token, and waits for one second where the daemon waits for five at least."""
    async with serve(smartcar.handle) as origin, source_at(origin, VirtualClock()) as source:
        usual, smartcar.answer = smartcar.answer, _success
        await source.command(VEHICLE, STOP, CountingTicket())
        smartcar.answer = usual
        smartcar.asked.clear()
        source._session._timeout = aiohttp.ClientTimeout(total=1.0)
        yield source


async def test_what_was_never_sent_leaves_no_doubt(clock: VirtualClock, ticket: CountingTicket) -> None:
    smartcar = Smartcar()
    async with serve(smartcar.handle) as origin, source_at(origin, clock) as source:
        await source.fetch(VEHICLE, PROFILE, ticket)  # a token is at hand
        source._options = replace(source._options, vehicle_origin="http://127.0.0.1:1")
        with pytest.raises(errors.Unreachable) as told:
            await source.command(VEHICLE, STOP, ticket)
    assert told.value.code == "CONNECT"
    assert not in_doubt(told.value)


async def test_without_a_token_nothing_was_sent_and_there_is_no_doubt(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    smartcar.token_answer = _drop
    async with source_at(smartcar.origin, clock) as source:
        with pytest.raises(errors.Unreachable) as told:
            await source.command(VEHICLE, STOP, ticket)
    assert not in_doubt(told.value)
    assert (smartcar.asked, ticket.spent) == ([], 0)


async def _held_open(request: web.Request, *parts: bytes) -> web.StreamResponse:
    response = web.StreamResponse(status=202)
    response.content_type = "application/json"
    await response.prepare(request)
    for part in parts:
        await response.write(part)
    return response


async def test_a_promise_whose_connection_breaks_is_open(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket
) -> None:
    async def breaks(request: web.Request) -> web.StreamResponse:
        response = await _held_open(request, b'{"data":')
        assert request.transport is not None
        request.transport.close()
        return response

    smartcar.answer = breaks
    async with source_at(smartcar.origin, clock) as source:
        assert await source.command(VEHICLE, STOP, ticket) is False
    assert len(smartcar.asked) == ticket.spent == 1


async def test_a_promise_that_is_not_kept_in_time_is_open(ticket: CountingTicket) -> None:
    smartcar = Smartcar()

    async def waits(request: web.Request) -> web.StreamResponse:
        await _held_open(request, b" ")
        return await asyncio.get_running_loop().create_future()

    smartcar.answer = waits
    async with _impatient(smartcar) as source:
        assert await source.command(VEHICLE, STOP, ticket) is False
    assert len(smartcar.asked) == 1


@pytest.mark.parametrize("status", [302, 404])
async def test_a_command_at_a_wrong_address_is_no_cars_fault(
    smartcar: Smartcar, clock: VirtualClock, ticket: CountingTicket, status: int
) -> None:
    async def elsewhere(request: web.Request) -> web.Response:
        body = v3_error("RESOURCE_NOT_FOUND", "INVALID_PATH", str(status))
        return web.json_response(body, status=status, headers={"Location": "http://elsewhere.invalid/"})

    smartcar.answer = elsewhere
    async with source_at(smartcar.origin, clock) as source:
        with pytest.raises(errors.Unreadable) as told:
            await source.command(VEHICLE, STOP, ticket)
    assert told.value.code == f"HTTP_{status}"
    assert not in_doubt(told.value)
    assert len(smartcar.asked) == 1


# --- with the simulator's cars --------------------------------------------------------------------------


@dataclass
class Simulated:
    """One car of the simulator's, and the source that reads and commands it."""

    simulator: Simulator
    clock: HandClock
    source: SmartcarSource
    ticket: CountingTicket

    @property
    def car(self) -> SimulatedVehicle:
        return next(iter(self.simulator.world.fleet))

    @property
    def vehicle(self) -> Vehicle:
        simulated = self.car
        assert simulated.connection_id is not None
        consent = Consent(
            application="home",
            connection_id=simulated.connection_id,
            vehicle_ref=simulated.id,
            user_ref=simulated.user_id,
            make=simulated.car.cloud.make,
        )
        return replace(VEHICLE, consent=consent)

    async def command(self, command: Command) -> bool:
        return await self.source.command(self.vehicle, command, self.ticket)

    def until(self, state: State) -> None:
        """Turn the clock to the middle of a long time in that state."""
        while True:
            now = self.clock.now().timestamp()
            run = self.car.car.run_at(now)
            if run.state is state and min(now - run.start, run.end - now) > 3600:
                return
            self.clock.advance(minutes=10)

    def fault(self, name: str) -> None:
        self.simulator.world.faults.add({"match": {"path": "commands"}, "fault": name, "count": 1})

    async def seen(self) -> dict[Signal, object]:
        observed = await self.source.fetch(self.vehicle, PROFILE, self.ticket)
        return {measurement.signal: measurement.value for measurement in observed.measurements}


@contextlib.asynccontextmanager
async def simulated(**options: Any) -> AsyncIterator[Simulated]:
    clock = HandClock()
    given = {"vehicles": 1, "brands": ("tesla",), "latency_scale": 0, "client_id": "client_1", **options}
    simulator = Simulator(SimulatorOptions(client_secret=SECRET, **given), clock)
    async with simulator.serving("127.0.0.1", 0) as origin, source_at(origin, VirtualClock()) as source:
        yield Simulated(simulator, clock, source, CountingTicket())


@pytest.fixture
async def tesla() -> AsyncIterator[Simulated]:
    async with simulated() as running:
        running.until(State.CHARGING)
        yield running


async def test_a_simulated_car_stops_and_starts_and_its_readings_show_it(tesla: Simulated) -> None:
    assert await tesla.command(STOP) is True
    tesla.clock.advance(minutes=10)
    seen = await tesla.seen()
    assert (seen[Signal.CHARGING], seen[Signal.CHARGE_STATE]) == (False, ChargeState.NOT_CHARGING)
    with pytest.raises(errors.NotNow):
        await tesla.command(STOP)
    assert await tesla.command(START) is True
    tesla.clock.advance(minutes=10)
    assert (await tesla.seen())[Signal.CHARGING] is True


async def test_a_simulated_car_takes_a_limit_and_its_readings_show_it(tesla: Simulated) -> None:
    assert await tesla.command(Command(CommandKind.CHARGE_LIMIT, 55)) is True
    tesla.clock.advance(minutes=10)
    assert (await tesla.seen())[Signal.CHARGE_LIMIT] == 55


async def test_a_simulated_car_can_fail_and_leave_it_open(tesla: Simulated) -> None:
    tesla.fault("command_failure")
    with pytest.raises(errors.CommandFailed):
        await tesla.command(STOP)
    for name in ("command_pending", "command_lost"):
        tesla.fault(name)
        assert await tesla.command(LIMIT) is False


@pytest.mark.parametrize("name", [name for name, kind in ERRORS.items() if kind.status != 401])
async def test_every_error_of_the_simulator_means_what_the_table_says(tesla: Simulated, name: str) -> None:
    kind = ERRORS[name]
    tesla.fault(name)
    with pytest.raises(errors.SourceError) as told:
        await tesla.command(STOP)
    if kind.code in ("PATH", "INVALID_PATH", "VERSION"):
        assert type(told.value) is errors.Unreadable
    else:
        assert type(told.value) is type(command_error_for(Fault(kind.type, kind.code, None), status=None))
        assert told.value.code == name


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("html", errors.Unreadable),
        ("malformed", errors.Unreadable),
        ("truncated", errors.Unreadable),
        ("huge", errors.Unreadable),
        ("redirect", errors.Unreadable),
        ("reset", errors.Unreachable),
        ("empty", None),
        ("wrong_types", None),
        ("older_shapes", True),
        ("extra_fields", True),
    ],
)
async def test_a_wire_that_misbehaves_invents_no_success(
    tesla: Simulated, name: str, meant: type[errors.SourceError] | bool | None
) -> None:
    tesla.fault(name)
    if isinstance(meant, type):
        with pytest.raises(meant):
            await tesla.command(STOP)
    else:
        assert await tesla.command(STOP) is (meant is True)
    assert tesla.ticket.spent == 1


@pytest.mark.parametrize(
    ("fault", "done"),
    [(None, True), ("empty", False), ("malformed", False), ("truncated", False), ("reset", False)],
)
async def test_a_long_command_tells_its_outcome_at_the_end_or_leaves_it_open(
    fault: str | None, done: bool
) -> None:
    async with simulated(latency_scale=1000) as running:  # beyond 175 s, and milliseconds of ours
        running.until(State.CHARGING)
        if fault is not None:
            running.fault(fault)
        assert await running.command(STOP) is done
        assert running.car.car.run_at(running.clock.now().timestamp()).state is State.PLUGGED
        with pytest.raises(errors.NotNow) as told:
            await running.command(STOP)
        assert told.value.code == "VEHICLE_STATE:NOT_CHARGING"


async def test_a_car_whose_owner_consented_to_reading_alone_is_not_given_up() -> None:
    may_read = tuple(name for name in PERMISSIONS if name != "control_charge")
    async with simulated(permissions=may_read) as running:
        running.until(State.CHARGING)
        with pytest.raises(errors.NotPermitted):
            await running.command(STOP)
        assert (await running.seen())[Signal.CHARGING] is True


@pytest.mark.parametrize(("brand", "action"), [("nissan", Action.STOP), ("toyota", Action.LIMIT)])
async def test_a_make_that_cannot_do_it_says_so(brand: str, action: Action) -> None:
    command = STOP if action is Action.STOP else LIMIT
    async with simulated(brands=(brand,)) as running:
        with pytest.raises(errors.NotCapable):
            await running.command(command)
