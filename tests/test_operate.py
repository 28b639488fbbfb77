"""The client of the running daemon, against the real web over TCP and Unix sockets; and every odd answer."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from urllib.parse import parse_qs, urlsplit

import pytest
import structlog
from aiohttp import web

from evbatteryd import operate
from evbatteryd.clock import WallClock
from evbatteryd.domain.commanding import CommandKind, CommandOutcome
from evbatteryd.domain.enrolment import Enrolment
from evbatteryd.domain.fleet import Car, Fleet, Trouble
from evbatteryd.domain.forecast import Standing
from evbatteryd.domain.freshness import Freshness
from evbatteryd.domain.ports import Clock, Ledger
from evbatteryd.enrol.consent import ConnectOptions
from evbatteryd.enrol.enrolment import Enrolments
from evbatteryd.flow.forecaster import Forecaster
from evbatteryd.operate import NoSuchThing, NotDone, Operator, listeners, open_operator
from evbatteryd.sinks.prometheus import Exposition, Metrics
from evbatteryd.web.app import Health, make_app, serving
from evbatteryd.web.guard import Access
from tests.fakes import START, VirtualClock
from tests.web import builders
from tests.web.test_planning import Book

KEY = "k" * 43
USER = "8d1f4a0e-64a1-4f0c-8a2c-0f3f6b3a9c11"
HOME = ConnectOptions(
    application="home", application_id="an-application", connect_origin="https://connect.example"
)


@dataclass
class Daemon:
    """The real web of a fleet in memory. ``listen``: where, as ``[http] listen`` spells it."""

    listen: str
    fleet: Fleet
    clock: Clock
    store: builders.MemoryEnrolments
    steward: builders.FleetSteward
    commands: builders.RememberingCommands
    welcomed: list[Enrolment]
    hosts: list[str] = field(default_factory=list)
    """The name that each request called it by."""

    @property
    def where(self) -> dict[str, object]:
        if self.listen.startswith("unix:"):
            return {"host": None, "port": None, "unix_path": Path(self.listen.removeprefix("unix:"))}
        host, _, port = self.listen.rpartition(":")
        return {"host": host.strip("[]"), "port": int(port), "unix_path": None}

    def operator(self, key: str = KEY, **where: object):
        return open_operator(key=key, **(self.where | where))

    def put(self, car: Car) -> None:
        """A car that is enrolled just now."""
        self.fleet.put(replace(car, vehicle=replace(car.vehicle, enrolled_at=self.clock.now())))

    async def arrive(self, enrolment: Enrolment, *cars: Car) -> None:
        """As the flow does it: the cars of a consent are enrolled."""
        for one in cars:
            self.put(one)
        await self.store.arrived(enrolment.id, self.clock.now())


@asynccontextmanager
async def running(
    *cars: Car,
    unix_path: Path | None = None,
    host: str = "127.0.0.1",
    clock: Clock | None = None,
    applications: tuple[ConnectOptions, ...] = (HOME,),
    public_url: str | None = None,
    ledgers: Mapping[str, Ledger] = MappingProxyType({}),
    price: float = 0.0,
) -> AsyncIterator[Daemon]:
    clock, fleet, store = clock or WallClock(), builders.fleet(*cars), builders.MemoryEnrolments()
    welcomed: list[Enrolment] = []
    hosts: list[str] = []
    steward = builders.FleetSteward(fleet, clock, fleet.put)
    commands = builders.RememberingCommands()
    app = make_app(
        fleet,
        clock,
        Exposition(Metrics(), fleet, clock),
        Health(ready=list, healthy=list),
        started_at=START,
        access=Access(local_key=KEY, public_url=public_url),
        enrolments=Enrolments(
            store,
            clock,
            # Not that of the commands, which run in this process too and share its standard error.
            structlog.wrap_logger(structlog.ReturnLogger(), processors=[]),
            {options.application: options for options in applications},
            welcomed.append,
        ),
        steward=steward,
        webhook=builders.RememberingReceiver(),
        hints=builders.RememberingHints(),
        commands=commands,
        estimate=builders.estimate,
        why_waiting=lambda _: None,
        forecasts=Forecaster(fleet, ledgers, clock, Metrics(), price_of=lambda _: price),
    )

    async def overhear(request: web.Request, _: web.StreamResponse) -> None:
        hosts.append(request.host)

    app.on_response_prepare.append(overhear)
    port = None if unix_path else 0
    async with serving(app, host=None if unix_path else host, port=port, unix_path=unix_path) as url:
        listen = url if unix_path else f"{host}:{urlsplit(url).port}"
        yield Daemon(listen, fleet, clock, store, steward, commands, welcomed, hosts)


@pytest.fixture(params=["tcp", "unix"])
async def daemon(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Daemon]:
    trouble = Trouble("asleep", "VEHICLE_STATE:ASLEEP", "It sleeps.", START)
    cars = (
        builders.car(1, slug="zoe", name="Zoe", invited="Ada", permissions=frozenset({"read_charge", "a"})),
        builders.car(2, slug="leaf", values={}, measured_at=None, trouble=trouble),
        builders.car(3, slug="gone", withdrawn_at=START),
    )
    path = tmp_path / "http.sock" if request.param == "unix" else None
    async with running(*cars, unix_path=path) as running_daemon:
        yield running_daemon


@pytest.fixture
async def operator(daemon: Daemon) -> AsyncIterator[Operator]:
    async with daemon.operator() as opened:
        yield opened


# --- what it does -------------------------------------------------------------------------------------


async def test_cars_are_told_with_who_consented_to_what(operator: Operator) -> None:
    leaf, zoe = await operator.vehicles()
    assert (zoe.slug, zoe.name, zoe.soc, zoe.invited) == ("zoe", "Zoe", 57.0, "Ada")
    assert (zoe.application, zoe.permissions, zoe.enrolled_at) == ("home", ("a", "read_charge"), START)
    assert (leaf.soc, leaf.measured_at, leaf.freshness) == (None, None, Freshness.STALE)
    assert leaf.trouble == Trouble("asleep", "VEHICLE_STATE:ASLEEP", "It sleeps.", START)
    assert zoe.model_dump()["brand"] == "example", "what is not understood is handed on"
    assert {car.slug for car in await operator.vehicles(withdrawn=True)} == {"zoe", "leaf", "gone"}
    gone = await operator.vehicle("gone")
    assert gone.withdrawn_at == START


async def test_what_time_it_is_for_the_daemon() -> None:
    clock = VirtualClock()
    async with running(builders.car(), clock=clock) as daemon, daemon.operator() as operator:
        assert await operator.now() == START
        await clock.advance(timedelta(days=400))
        assert await operator.now() == START + timedelta(days=400)


@pytest.mark.parametrize("count", [0, 500, 1001])
async def test_a_large_fleet_comes_whole(count: int) -> None:
    async with running(*(builders.car(number) for number in range(1, count + 1))) as daemon:
        async with daemon.operator() as operator:
            assert len(await operator.vehicles()) == count
        assert len(daemon.hosts) == {0: 1, 500: 1, 1001: 3}[count]


async def test_a_car_is_renamed(operator: Operator, daemon: Daemon) -> None:
    renamed = await operator.rename("zoe", name="Our Zoe", new_slug="our_zoe")
    assert (renamed.slug, renamed.name) == ("our_zoe", "Our Zoe")
    only_name = await operator.rename("our_zoe", name="Zoe again")
    assert (only_name.slug, only_name.name) == ("our_zoe", "Zoe again")
    with pytest.raises(NotDone, match="another car has or had the slug leaf"):
        await operator.rename("our_zoe", new_slug="leaf")
    assert daemon.fleet.by_slug("our_zoe") is not None


async def test_a_car_is_disconnected(operator: Operator, daemon: Daemon) -> None:
    daemon.steward.unwilling = "Smartcar did not answer: try again."
    with pytest.raises(NotDone, match=r"^Smartcar did not answer: try again\.$"):
        await operator.disconnect("zoe")
    daemon.steward.unwilling = ""
    done = await operator.disconnect("zoe", erase=True)
    assert (done.vehicle, done.erased) == ("zoe", True)
    zoe = daemon.fleet.by_slug("zoe")
    assert zoe is not None
    assert zoe.vehicle.withdrawn_at is not None
    assert zoe.state.soc_percent is None
    assert not (await operator.disconnect("leaf")).erased


async def test_a_car_is_polled(operator: Operator, daemon: Daemon) -> None:
    told = await operator.poll("zoe")
    assert (told.outcome, told.final, told.calls, told.calls_left) == ("done", True, 1, 36)
    assert daemon.commands.heard == [("zoe", CommandKind.POLL, "now", "http")]


async def test_why_a_car_is_not_polled_is_an_answer(operator: Operator, daemon: Daemon) -> None:
    daemon.commands.answers = [builders.command_answer(CommandOutcome.NOT_NOW, reason="asked 2 min ago")]
    told = await operator.poll("zoe")
    assert (told.outcome, told.reason) == ("not_now", "asked 2 min ago")


async def test_an_enrolment_from_link_to_pasted_answer(operator: Operator, daemon: Daemon) -> None:
    begun = await operator.begin_enrolment(application="home", make="EXAMPLE", country="FR")
    asked = parse_qs(urlsplit(begun.link).query)
    assert (asked["make"], asked["flags"]) == (["EXAMPLE"], ["country:FR"])
    port = daemon.where["port"] or 9782
    assert begun.callback == asked["redirect_uri"][0] == f"http://localhost:{port}/enrol/callback"
    open_still = await operator.enrolment(begun.id)
    assert (open_still.ending, open_still.title, open_still.arrived) == (None, None, False)
    with pytest.raises(NotDone, match="not complete"):
        await operator.paste(f"{begun.callback}?state=x")
    ended = await operator.paste(f"{begun.callback}?user_id={USER}&state={asked['state'][0]}")
    assert (ended.id, ended.ending, ended.consented) == (begun.id, "consented", True)
    await daemon.arrive(daemon.welcomed[0], builders.car(9, slug="new", user_ref=USER))
    arrived = await operator.enrolment(begun.id)
    assert arrived.arrived
    assert [(car.slug, car.soc) for car in arrived.vehicles] == [("new", 57.0)]
    assert USER not in repr(arrived)


async def test_an_invitation(operator: Operator, daemon: Daemon) -> None:
    made = await operator.invite("Grace", lasts=timedelta(days=2))
    assert (made.name, made.application) == ("Grace", "home")
    assert timedelta(days=1, hours=23) < made.expires_at - WallClock().now() <= timedelta(days=2)
    assert made.link.startswith(f"http://localhost:{daemon.where['port'] or 9782}/enrol/i/")
    week = await operator.invite("Ada", application="home")
    assert week.expires_at - made.expires_at > timedelta(days=4)
    with pytest.raises(NotDone, match="1 to 80 characters"):
        await operator.invite(" ")


async def test_what_the_plan_buys() -> None:
    books = {"home": Book(calls={1: 30}), "away": Book()}
    cars = (builders.car(1, slug="zoe"), builders.car(2, slug="leaf", application="away"))
    async with (
        running(*cars, clock=VirtualClock(), ledgers=books, price=9e5) as daemon,
        daemon.operator() as operator,
    ):
        told = await operator.plan()
        assert [one.application for one in told.applications] == ["away", "home"]
        assert (told.now, told.vehicles) == (START, None)
        away, home = told.applications
        assert (home.spent, home.left, home.limited_by, home.standings[Standing.POLLED]) == (
            30,
            470,
            "plan",
            1,
        )
        assert (away.spent, away.other_calls_per_vehicle) == (0, 1000)
        told = await operator.plan(application="home", calls=200, vehicles=True)
        assert [one.other_calls_per_vehicle for one in told.applications] == [200]
        assert [(one.slug, one.spent, one.standing) for one in told.vehicles] == [("zoe", 30, "polled")]
        with pytest.raises(NoSuchThing, match=r"no application 'office'. Known here: away, home\.$"):
            await operator.plan(application="office")


async def test_what_keeps_owners_from_consenting_is_said() -> None:
    lacking = ConnectOptions(application="home", application_id=None, connect_origin="https://c.example")
    async with running(applications=(lacking,)) as daemon, daemon.operator() as operator:
        with pytest.raises(NotDone, match=r"Set application_id in \[smartcar\.home\]"):
            await operator.begin_enrolment()


@pytest.mark.parametrize(("host", "reached"), [("0.0.0.0", "localhost"), ("127.0.0.2", "127.0.0.2")])
async def test_links_begin_with_a_name_that_leads_here(host: str, reached: str) -> None:
    """Connect leads back to localhost, and a browser keeps its cookies by the name it knows us by."""
    async with running(host=host) as daemon:
        async with daemon.operator() as operator:
            await operator.vehicles()
        assert daemon.hosts == [f"{reached}:{daemon.where['port']}"]


async def test_the_proxies_of_the_environment_are_not_for_the_key(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    assert len(await operator.vehicles()) == 2


# --- what goes wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", ["nobody", "../vehicles", "Zoe", "", "a b", "é"])
async def test_a_car_that_is_not_there(operator: Operator, slug: str) -> None:
    for asking in (operator.vehicle(slug), operator.rename(slug, name="x"), operator.disconnect(slug)):
        with pytest.raises(NoSuchThing, match="no vehicle has this name"):
            await asking


async def test_the_key_is_what_proves_it() -> None:
    """Where a proxy may stand at this machine, too, being at this machine proves nothing."""
    async with running(public_url="https://ev.example.org") as daemon:
        async with daemon.operator() as operator:
            assert await operator.vehicles() == []
        async with daemon.operator("another-key") as operator:
            with pytest.raises(NotDone, match="does not take this key") as refused:
                await operator.vehicles()
        assert "another-key" not in str(refused.value)


async def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with open_operator(host="0.0.0.0", port=port, unix_path=None, key=KEY) as operator:
        with pytest.raises(NotDone) as refused:
            await operator.vehicles()
    assert str(refused.value) == (
        f"evbatteryd is not running at 127.0.0.1:{port}: start it (systemctl start evbatteryd)"
    )
    left = tmp_path / "left.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(left))
    for path in (tmp_path / "none.sock", left):
        async with open_operator(host=None, port=None, unix_path=path, key=KEY) as operator:
            with pytest.raises(NotDone, match=f"evbatteryd is not running at unix:{path}: start it"):
                await operator.vehicles()


async def test_a_socket_that_is_not_for_this_user(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    async with running(unix_path=path) as daemon:
        path.chmod(0o600)
        for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
            folder.chmod(0o755)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)  # nobody: root may use every socket
        else:
            path.chmod(0)
        try:
            async with daemon.operator() as operator:
                with pytest.raises(NotDone, match="run it as the user evbatteryd or with sudo"):
                    await operator.vehicles()
        finally:
            if root:
                os.seteuid(0)


Answer = Callable[[], web.Response | None]


@asynccontextmanager
async def answering(answer: Answer, *, after: float = 0) -> AsyncIterator[Operator]:
    """Something that answers everything with this; with None it ends the connection."""

    async def handler(request: web.Request) -> web.Response:
        await asyncio.sleep(after)
        made = answer()
        if made is None and request.transport is not None:
            request.transport.close()
        return made or web.Response()

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    async with serving(app, host="127.0.0.1", port=0, unix_path=None) as url:
        where = {"host": "127.0.0.1", "port": urlsplit(url).port, "unix_path": None}
        async with open_operator(key=KEY, **where) as operator:
            yield operator


@pytest.mark.parametrize(
    "answer",
    [
        lambda: web.Response(text="<html>Grafana</html>", content_type="text/html"),
        lambda: web.Response(text="{", content_type="application/json"),
        lambda: web.Response(body=b'"\xff"', content_type="application/json"),
        lambda: web.json_response([]),
        lambda: web.json_response({"vehicle": "zoe"}),
        lambda: web.json_response({"vehicle": "zoe", "erased": "perhaps"}),
        lambda: web.json_response({"message": "no"}, status=404),
        lambda: web.json_response(["no"], status=500),
        lambda: web.json_response({}, status=303, headers={"Location": "/elsewhere"}),
    ],
)
async def test_another_program_or_version(answer: Answer) -> None:
    async with answering(answer) as operator:
        with pytest.raises(NotDone, match="another program, or another version") as refused:
            await operator.disconnect("zoe")
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("status", [400, 403, 409, 429, 500, 503])
async def test_a_refusal_is_told_in_the_words_of_the_daemon(status: int) -> None:
    words = "the store cannot be written at the moment: nothing was changed"
    answer = {"status": status, "error": words}
    async with answering(lambda: web.json_response(answer, status=status)) as operator:
        with pytest.raises(NotDone, match=f"^{words}$"):
            await operator.disconnect("zoe")


async def test_it_goes_away_before_it_answers() -> None:
    async with answering(lambda: None) as operator:
        with pytest.raises(NotDone, match="went away before it answered"):
            await operator.disconnect("zoe")


async def test_what_smartcar_is_asked_for_has_more_time_than_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operate, "QUICK", timedelta(milliseconds=50))
    done = {"vehicle": "zoe", "erased": False}
    async with answering(lambda: web.json_response(done), after=0.4) as operator:
        with pytest.raises(NotDone, match="did not answer within"):
            await operator.vehicle("zoe")
        assert (await operator.disconnect("zoe")).vehicle == "zoe"
    assert timedelta(minutes=5) < operate.ENDING


# --- who listens ----------------------------------------------------------------------------------------

TABLE = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2636 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000 0 111 1
   1: 0100007F:2636 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1001 0 112 1
   2: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0 0 113 1
"""


def test_who_listens_on_a_port_is_read_from_linux(tmp_path: Path) -> None:
    table = tmp_path / "tcp"
    table.write_text(TABLE)
    assert listeners(9782, (str(table), str(tmp_path / "not there"))) == {1000}
    assert listeners(22, (str(table),)) == {0}
    assert listeners(80, (str(table),)) == set()
    table.write_text("nonsense\nnonsense\n")
    assert listeners(9782, (str(table),)) == set()


async def test_a_real_listener_is_seen() -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with server:
        assert listeners(server.sockets[0].getsockname()[1]) == {os.getuid()}


async def test_nobody_else_gets_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = asyncio.Event()
    server = await asyncio.start_server(lambda *_: heard.set(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    monkeypatch.setattr(operate, "listeners", {port: {1234}}.__getitem__)
    async with server:
        with pytest.raises(NotDone, match="not sent"):
            async with open_operator(host="127.0.0.1", port=port, unix_path=None, key=KEY, owner=4321):
                pass
        async with open_operator(host="127.0.0.1", port=port, unix_path=None, key=KEY, owner=1234):
            pass
    assert not heard.is_set()


async def test_a_socket_of_somebody_else_does_not_get_it_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "http.sock"
    path.touch()
    if os.getuid() == 0:
        os.chown(path, 1234, -1)
        owner = 4321
    else:
        owner = os.getuid() + 1
    with pytest.raises(NotDone, match="not sent"):
        async with open_operator(host=None, port=None, unix_path=path, key="k" * 43, owner=owner):
            pass
