"""The verbs of an operator: what they ask of the running daemon, and how they tell it."""

from __future__ import annotations

import asyncio
import difflib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Generic, NoReturn, Self, TypeVar
from urllib.parse import urlsplit

import click

from evbatteryd import localkey
from evbatteryd.clock import WallClock
from evbatteryd.domain.cadence import words
from evbatteryd.domain.commanding import CommandOutcome
from evbatteryd.domain.enrolment import INVITATION_LASTS
from evbatteryd.domain.forecast import Binding, Standing
from evbatteryd.domain.freshness import Freshness
from evbatteryd.domain.ports import Clock
from evbatteryd.enrol.enrolment import LONGEST_INVITATION
from evbatteryd.operate import (
    BegunEnrolment,
    MadeInvitation,
    NoSuchThing,
    NotDone,
    Operator,
    ToldAnswer,
    ToldEnrolment,
    ToldForecast,
    ToldPlan,
    ToldShare,
    ToldVehicle,
    open_operator,
)
from evbatteryd.problems import Misconfigured, Problem, did_you_mean
from evbatteryd.settings import DEFAULT_PATH, Listen, Settings, load_settings
from evbatteryd.web.view import ago, plight

LOOK_EVERY: Final = timedelta(seconds=0.5)
"""How often the daemon is asked whether somebody has come back from Connect."""
FIRST_READING: Final = timedelta(minutes=5)
"""How long the first reading of a new car is waited for: Smartcar may take that long to answer."""
STILL_READ: Final = 3
"""Exit code of `evbatteryd poll` while the car has not answered yet."""
MOST_ALIKE: Final = 20
"""Vehicles that are offered to whoever named one that is not there."""
_LONGEST_LINE: Final = 65536
"""Bytes. What is longer is no address."""

T = TypeVar("T")
Row = TypeVar("Row")

config_option = click.option(
    "--config",
    "config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_PATH,
    show_default=True,
    help="The configuration file.",
)


def load(config: Path, *, without_credentials: bool = False) -> tuple[Settings, tuple[Problem, ...]]:
    """The settings and their warnings; or every mistake is told, and the exit code is 1."""
    try:
        return load_settings(config, os.environ, without_credentials=without_credentials)
    except Misconfigured as error:
        tell(error.problems)
        raise SystemExit(1) from None


def tell(problems: tuple[Problem, ...]) -> None:
    for problem in problems:
        kind = click.style("warning", fg="yellow") if problem.warning else click.style("error", fg="red")
        click.echo(f"{kind}: {problem}", err=True)
    errors = sum(1 for problem in problems if not problem.warning)
    if errors:
        click.echo(f"{errors} mistake{'s' if errors > 1 else ''} to mend.", err=True)


def fail(text: str) -> NoReturn:
    click.echo(f"evbatteryd: {text}", err=True)
    raise SystemExit(1)


def _operating(settings: Settings, work: Callable[[Operator], Coroutine[Any, Any, T]]) -> T:
    """What ``work`` returns; or it is told why it was not done, and the exit code is 1."""
    listen = settings.http.listen
    try:
        key, owner = localkey.load(settings.store.url.path), localkey.owner(settings.store.url.path)
    except OSError as error:
        fail(error.strerror or str(error))
    except localkey.UnusableKey as error:
        fail(str(error))

    async def working() -> T:
        async with open_operator(
            host=listen.host, port=listen.port, unix_path=listen.unix_path, key=key, owner=owner
        ) as operator:
            return await work(operator)

    try:
        return asyncio.run(working())
    except NotDone as error:
        fail(str(error))


# --- enrol --------------------------------------------------------------------------------------------


@click.command()
@config_option
@click.option("--application", metavar="NAME", help="The [smartcar.NAME] table, if there are several.")
@click.option("--make", help="The brand as Smartcar spells it (RENAULT): skips the choice of brand.")
@click.option("--country", metavar="CC", help="Whose brands are offered: DE, FR, US, ...")
@click.option("--invite", metavar="NAME", help="Make a link, for one use, for somebody else instead.")
@click.option(
    "--days",
    type=click.IntRange(1, LONGEST_INVITATION.days),
    help=f"How long the invitation lasts; {INVITATION_LASTS.days} unless given.",
)
def enrol(
    config: Path,
    application: str | None,
    make: str | None,
    country: str | None,
    invite: str | None,
    days: int | None,
) -> None:
    """Connect a car: print the link to consent at, and wait until its battery has been read.

    What a browser cannot bring back by itself is pasted: the address at which it ended.
    """
    if invite is not None and (make or country):
        raise click.UsageError("--make and --country are chosen by whoever is invited")
    if invite is None and days is not None:
        raise click.UsageError("--days belongs to --invite NAME")
    settings, _ = load(config, without_credentials=True)
    if invite is not None:
        lasts = None if days is None else timedelta(days=days)
        made = _operating(
            settings, lambda operator: operator.invite(invite, application=application, lasts=lasts)
        )
        _tell_invitation(made, public=settings.http.public_url is not None)
        return

    consented = False

    async def enrolling(operator: Operator) -> None:
        nonlocal consented
        begun = await operator.begin_enrolment(
            application=application,
            make=make and make.upper().replace(" ", "_"),
            country=country and country.upper(),
        )
        _tell_link(begun, settings.http.listen)
        clock = WallClock()
        with TypedLines(_standard_input()) as typed:
            told = await _answered(operator, begun, typed, clock)
        _tell_answer(told)
        if told is not None and told.consented:
            consented = True
            _tell_arrived(*await _first_readings(operator, told, clock))

    try:
        _operating(settings, enrolling)
    except KeyboardInterrupt:
        click.echo("\nStopped waiting. `evbatteryd vehicles` shows what came of it.", err=True)
    raise SystemExit(0 if consented else 1)


def _tell_link(begun: BegunEnrolment, listen: Listen) -> None:
    click.echo(f"Open this link in a browser and allow what is asked there:\n\n  {begun.link}\n")
    back = urlsplit(begun.callback)
    if back.hostname == "localhost":
        here = listen.host in {"localhost", "127.0.0.1", "::1", "0.0.0.0", "::"}  # noqa: S104
        target = f"localhost:{back.port}" if listen.unix_path is None else str(listen.unix_path)
        if here:
            click.echo("* A browser on this machine comes back by itself.")
        if here or listen.unix_path is not None:
            click.echo(
                "* A browser on another machine does so through a tunnel, begun there before:\n"
                f"  ssh -L {back.port}:{target} {_machine()}"
            )
        click.echo(
            "* Any other browser ends at an address that it cannot open. Copy all of it and paste it here:\n"
            f"  {begun.callback}?..."
        )
    else:
        click.echo(
            f"* A browser that is signed in at {back.scheme}://{back.netloc} comes back by itself.\n"
            "* Of any other browser, copy the address at which it ends and paste it here:\n"
            f"  {begun.callback}?..."
        )
    click.echo(f"\nWaiting until {_local(begun.expires_at)}; Ctrl-C stops.")


def _machine() -> str:
    return os.uname().nodename


async def _answered(
    operator: Operator, begun: BegunEnrolment, typed: TypedLines, clock: Clock
) -> ToldEnrolment | None:
    """How the enrolment ended, whichever way that reached the daemon; None: not in time."""
    while clock.now() < begun.expires_at:
        line = await typed.line(LOOK_EVERY)
        if not line:
            told = await operator.enrolment(begun.id)
        else:
            try:
                told = await operator.paste(line)
            except NotDone as error:
                click.echo(f"{error}\nStill waiting.", err=True)
                continue
            if told.id != begun.id:
                click.echo(f"That was the answer to another link: {told.title}. Still waiting.", err=True)
                continue
        if told.ending is not None:
            return told
    return None


def _tell_answer(told: ToldEnrolment | None) -> None:
    if told is None:
        click.echo("Nobody came back in time. Begin again: evbatteryd enrol", err=True)
        return
    click.echo("\n".join(filter(None, (f"{told.title}.", told.what, told.then))), err=not told.consented)
    if told.consented:
        click.echo("\nWaiting for the first reading; Ctrl-C stops.")


async def _first_readings(
    operator: Operator, told: ToldEnrolment, clock: Clock
) -> tuple[ToldEnrolment, list[ToldVehicle]]:
    """The cars that arrived, as soon as each has been asked or the patience has run out."""
    until = clock.now() + FIRST_READING
    while True:
        vehicles = [await operator.vehicle(vehicle.slug) for vehicle in told.vehicles]
        if (told.arrived and all(map(_was_asked, vehicles))) or clock.now() >= until:
            return told, vehicles
        await clock.sleep(LOOK_EVERY)
        told = await operator.enrolment(told.id)


def _was_asked(vehicle: ToldVehicle) -> bool:
    answered = vehicle.last_outcome in {"new", "unchanged"}
    return answered or vehicle.soc is not None or vehicle.trouble is not None


def _tell_arrived(told: ToldEnrolment, vehicles: list[ToldVehicle]) -> None:
    if not told.arrived:
        click.echo("The cars are not here yet; they come by themselves: see `evbatteryd vehicles`.")
    elif not vehicles:
        click.echo("Smartcar lists no car for this consent: see `evbatteryd vehicles` in a while.")
    for vehicle in vehicles:
        click.echo(f"{vehicle.slug}: {_clean(vehicle.name)}, {_first(vehicle)}")


def _first(vehicle: ToldVehicle) -> str:
    if vehicle.soc is not None:
        return _percent(vehicle.soc)
    trouble = "" if vehicle.trouble is None else f": {plight(vehicle.trouble).title.lower()}"
    return f"not read yet{trouble} (evbatteryd why {vehicle.slug})"


def _tell_invitation(made: MadeInvitation, *, public: bool) -> None:
    click.echo(f"For {_clean(made.name)}, once, until {_local(made.expires_at)}:\n\n  {made.link}\n")
    if sys.stdout.isatty() and (code := _qr_code(made.link, shutil.get_terminal_size().columns)):
        click.echo(code)
    if not public:
        host = urlsplit(made.link).hostname
        where = (
            "on this machine, or through an SSH tunnel to it" if host == "localhost" else "in this network"
        )
        click.echo(
            f"[http] has no public_url, so this link works only {where}. Elsewhere it opens nothing.",
            err=True,
        )


def _qr_code(text: str, columns: int) -> str | None:
    """``text`` for a phone's camera, dark on light whatever the terminal's colours; None: it does not fit."""
    import segno  # noqa: PLC0415 - the other verbs start faster without it

    drawn = io.StringIO()
    segno.make(text, micro=False, error="m").terminal(drawn, compact=True)
    lines = drawn.getvalue().splitlines()
    if max(map(len, lines)) > columns:
        return None
    try:
        drawn.getvalue().encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return None
    return "\n".join(click.style(line, fg="bright_white", bg="black") for line in lines)


def _standard_input() -> int | None:
    """Its descriptor; None if there is none."""
    try:
        return None if sys.stdin is None else sys.stdin.fileno()
    except (OSError, ValueError):  # io.UnsupportedOperation is both.
        return None


class TypedLines:
    """Lines of a terminal, a pipe or a file, as they come, without holding up the loop."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._lines: asyncio.Queue[str] = asyncio.Queue()
        self._begun = b""
        self._watched = False

    def __enter__(self) -> Self:
        if self._descriptor is not None:
            try:
                asyncio.get_running_loop().add_reader(self._descriptor, self._read, self._descriptor)
                self._watched = True
            except PermissionError:  # A file or /dev/null: epoll refuses what never makes anybody wait.
                while self._read(self._descriptor):
                    pass
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    async def line(self, within: timedelta) -> str | None:
        """The next line; None if there was none in that time."""
        try:
            async with asyncio.timeout(within.total_seconds()):
                return await self._lines.get()
        except TimeoutError:
            return None

    def _read(self, descriptor: int) -> bool:
        """Take what is there. False: that was the end."""
        try:
            chunk = os.read(descriptor, _LONGEST_LINE)
        except OSError:  # The terminal is gone.
            chunk = b""
        *whole, rest = (self._begun + chunk).split(b"\n")
        if not chunk:
            whole, rest = [rest], b""
            self._end()
        for line in whole:
            self._lines.put_nowait(line.decode(errors="replace").strip())
        self._begun = rest if len(rest) <= _LONGEST_LINE else b""
        return bool(chunk)

    def _end(self) -> None:
        if self._watched and self._descriptor is not None:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            self._watched = False


# --- vehicles -----------------------------------------------------------------------------------------


@click.command()
@config_option
@click.option("--all", "everything", is_flag=True, help="Also those whose consent is gone.")
@click.option("--json", "as_json", is_flag=True, help="Everything that is known of them, as JSON.")
def vehicles(config: Path, everything: bool, as_json: bool) -> None:
    """List the cars: who consented to what, since when, their charge, and their troubles."""
    settings, _ = load(config, without_credentials=True)

    async def asking(operator: Operator) -> tuple[list[ToldVehicle], datetime]:
        return await operator.vehicles(withdrawn=everything), await operator.now()

    found, now = _operating(settings, asking)
    if as_json:
        told = [vehicle.model_dump(mode="json") for vehicle in found]
        click.echo(json.dumps({"vehicles": told}, indent=2, ensure_ascii=False))
    elif found:
        _tell_table(COLUMNS, sorted(found, key=lambda vehicle: vehicle.slug), now)
    else:
        click.echo("There are no vehicles yet. `evbatteryd enrol` connects one.", err=True)


@dataclass(frozen=True, slots=True)
class Column(Generic[Row]):
    """One column of a table."""

    title: str
    show: Callable[[Row, datetime], str]
    rank: int
    """Where there is no room for all columns, those of the lowest ranks are shown."""
    most: int = 32
    """Characters that a terminal gives it."""
    below: bool = False
    """Where there is no room for it, it goes on lines of its own, below its row."""


def _plight(vehicle: ToldVehicle, now: datetime) -> str:
    if vehicle.withdrawn_at is not None:
        return f"withdrawn {ago(vehicle.withdrawn_at, now)}"
    return "" if vehicle.trouble is None else plight(vehicle.trouble).title.lower()


def _short(permissions: Iterable[str]) -> str:
    """What may be read goes without saying so each time: ``battery, charge, control_charge``."""
    return ", ".join(permission.removeprefix("read_") for permission in permissions)


COLUMNS: Final[Sequence[Column[ToldVehicle]]] = (
    Column("vehicle", lambda vehicle, _: vehicle.slug, 0),
    Column("name", lambda vehicle, _: _clean(vehicle.name), 6, 24),
    Column("SoC", lambda vehicle, _: _percent(vehicle.soc), 1),
    Column("freshness", lambda vehicle, _: vehicle.freshness.value, 2),
    Column("measured", lambda vehicle, now: _ago(vehicle.measured_at, now), 3),
    Column("invited", lambda vehicle, _: _clean(vehicle.invited or ""), 5, 20),
    Column("application", lambda vehicle, _: vehicle.application, 8, 20),
    Column("allows", lambda vehicle, _: _short(vehicle.permissions), 9, 48),
    Column("since", lambda vehicle, _: f"{vehicle.enrolled_at.astimezone():%Y-%m-%d}", 7),
    Column("trouble", _plight, 4),
)
GAP: Final = 2
_STYLES: Final = {
    Freshness.FRESH.value: "green",
    Freshness.STALE.value: "yellow",
    Freshness.OFFLINE.value: "red",
}


def _tell_table(columns: Sequence[Column[Row]], rows: Sequence[Row], now: datetime) -> None:
    """Every column where lines may be of any length; in a terminal, those that fit."""
    from rich.cells import cell_len  # noqa: PLC0415 - the other verbs start faster without it

    cells = {column: [column.title, *(column.show(row, now) for row in rows)] for column in columns}
    widths = {column: max(map(cell_len, shown)) for column, shown in cells.items() if any(shown[1:])}
    if sys.stdout.isatty():
        _tell_in_terminal(cells, {column: min(width, column.most) for column, width in widths.items()})
        return
    for row in zip(*(cells[column] for column in widths), strict=True):
        padded = (
            text + " " * (width - cell_len(text)) for text, width in zip(row, widths.values(), strict=True)
        )
        click.echo((" " * GAP).join(padded).rstrip())


def _tell_in_terminal(cells: dict[Column[Row], list[str]], widths: dict[Column[Row], int]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.padding import Padding  # noqa: PLC0415
    from rich.segment import Segment, Segments  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(highlight=False)
    columns = fitting(widths, console.width)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column.title, no_wrap=True, max_width=column.most, overflow="ellipsis")
    for row in list(zip(*(cells[column] for column in columns), strict=True))[1:]:
        # Colour only repeats what the word says.
        table.add_row(
            *(
                Text(text, style=_STYLES.get(text, "") if column.title == "freshness" else "")
                for text, column in zip(row, columns, strict=True)
            )
        )
    below = [cells[column][1:] for column in widths if column.below and column not in columns]
    if not below:
        console.print(table)
        return
    head, *lines = console.render_lines(table, pad=False)
    console.print(Segments([*head, Segment.line()]))
    for line, texts in zip(lines, zip(*below, strict=True), strict=True):
        console.print(Segments([*line, Segment.line()]))
        for text in filter(None, texts):
            console.print(Padding(Text(text, style="dim"), (0, 0, 0, GAP), expand=False))


def fitting(widths: dict[Column[Row], int], room: int) -> list[Column[Row]]:
    """The columns to show in so many characters, in their order; the first by rank always."""
    chosen: set[Column[Row]] = set()
    for column in sorted(widths, key=lambda column: column.rank):
        if not chosen or widths[column] <= room:
            chosen.add(column)
            room -= widths[column] + GAP
    return [column for column in widths if column in chosen]


# --- one vehicle --------------------------------------------------------------------------------------


@click.command()
@config_option
@click.argument("vehicle")
@click.option("--name", help="What people call it.")
@click.option("--slug", help="What topics and labels call it: a-z, 0-9 and _.")
def rename(config: Path, vehicle: str, name: str | None, slug: str | None) -> None:
    """Give a car another display name, another slug, or both."""
    if name is None and slug is None:
        raise click.UsageError("say --name, --slug or both")
    settings, _ = load(config, without_credentials=True)
    renamed = _operating(
        settings,
        lambda operator: _of_known(
            operator, vehicle, lambda known: operator.rename(known, name=name, new_slug=slug)
        ),
    )
    click.echo(f"{vehicle} is now {renamed.slug}: {_clean(renamed.name)}.")
    if renamed.slug != vehicle:
        click.echo("Its topics, labels and addresses have changed with it.")


@click.command()
@config_option
@click.argument("vehicle")
@click.option("--erase", is_flag=True, help="Also delete everything that was read of it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def disconnect(config: Path, vehicle: str, erase: bool, yes: bool) -> None:
    """End a car's consent at Smartcar, stop asking it, and clear what is published of it."""
    settings, _ = load(config, without_credentials=True)
    if not yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise click.UsageError("there is no terminal to ask whether you mean it: say --yes")
        known = _operating(settings, lambda operator: _of_known(operator, vehicle, operator.vehicle))
        history = ", and everything that was read of it is deleted" if erase else ""
        click.confirm(
            f"End the consent for {known.slug} ({_clean(known.name)})? Only its owner can give it "
            f"again{history}.",
            abort=True,
        )
    done = _operating(
        settings,
        lambda operator: _of_known(operator, vehicle, lambda known: operator.disconnect(known, erase=erase)),
    )
    click.echo(f"{done.vehicle} is disconnected{' and its history erased' if done.erased else ''}.")


@click.command()
@config_option
@click.argument("vehicle")
@click.option("--yes", is_flag=True, help="Do not ask whether it is worth a call.")
@click.option("--json", "as_json", is_flag=True, help="The answer as JSON.")
def poll(config: Path, vehicle: str, yes: bool, as_json: bool) -> None:
    """Read a car now: it costs a call of its plan.

    Exit code 0: it was read. 1: it was not, and why is told. 3: it has not answered yet, and what it tells
    is published when it does.
    """
    settings, _ = load(config, without_credentials=True)
    if not yes:
        cost = _operating(settings, lambda operator: _cost(operator, vehicle))
        if sys.stdin is None or not sys.stdin.isatty():
            raise click.UsageError(f"{cost}; --yes to go on")
        click.confirm(f"{cost}. Go on?", abort=True, err=True)

    async def polling(operator: Operator) -> tuple[ToldAnswer, ToldVehicle, datetime]:
        await _of_known(operator, vehicle, operator.vehicle)
        answer = await operator.poll(vehicle)
        return answer, await operator.vehicle(vehicle), await operator.now()

    answer, told, now = _operating(settings, polling)
    if as_json:
        state = {"vehicle": told.slug, "soc": told.soc, "measured_at": told.measured_at}
        document = answer.model_dump(mode="json") | state
        click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=datetime.isoformat))
    else:
        for title, text in _told_poll(answer, told, now):
            click.echo(f"{title:<11}{text}", err=answer.outcome != CommandOutcome.DONE)
    raise SystemExit(STILL_READ if not answer.final else answer.outcome != CommandOutcome.DONE)


async def _cost(operator: Operator, vehicle: str) -> str:
    """What a poll of this car costs, in words."""
    known = await _of_known(operator, vehicle, operator.vehicle)
    try:
        told = await operator.plan(application=known.application, vehicles=True)
    except NoSuchThing:  # Its application is not configured: the daemon says so.
        return f"this costs {_calls(known)}"
    left = next((share.left for share in told.vehicles or () if share.slug == known.slug), None)
    if left is None:
        return f"this costs {_calls(known)}"
    (forecast,) = told.applications
    return f"this costs {known.calls_per_poll} of {left:.0f} calls left until {_local(forecast.renews_at)}"


def _calls(vehicle: ToldVehicle) -> str:
    return "a call" if vehicle.calls_per_poll == 1 else f"{vehicle.calls_per_poll} calls"


def _told_poll(answer: ToldAnswer, vehicle: ToldVehicle, now: datetime) -> Iterable[tuple[str, str]]:
    yield answer.outcome.replace("_", " ") if answer.final else "under way", _clean(answer.reason)
    yield "state", _state(vehicle)
    yield "measured", _when(vehicle.measured_at, now)
    yield "next poll", _due(answer.next_poll, now)
    if answer.calls_left is not None:
        yield "calls left", str(answer.calls_left)


@click.command()
@config_option
@click.argument("vehicle")
def why(config: Path, vehicle: str) -> None:
    """Say how a car stands, what came of asking it, and when it is asked next and for what reason."""
    settings, _ = load(config, without_credentials=True)

    async def asking(operator: Operator) -> tuple[ToldVehicle, datetime]:
        return await _of_known(operator, vehicle, operator.vehicle), await operator.now()

    told, now = _operating(settings, asking)
    for title, text in _reasons(told, now):
        click.echo(f"{title:<11}{text}")


async def _of_known(operator: Operator, slug: str, ask: Callable[[str], Coroutine[Any, Any, T]]) -> T:
    """What ``ask`` returns. Raises NotDone that offers other names if no vehicle has this one."""
    try:
        return await ask(slug)
    except NoSuchThing:
        known = [vehicle.slug for vehicle in await operator.vehicles(withdrawn=True)]
        alike = difflib.get_close_matches(slug, known, n=MOST_ALIKE, cutoff=0)
        mend = did_you_mean(slug, alike) if alike else "There is none yet: `evbatteryd enrol` connects one."
        raise NotDone(f"there is no vehicle {_clean(slug)!r}. {mend}") from None


def _reasons(vehicle: ToldVehicle, now: datetime) -> Iterable[tuple[str, str]]:
    badge = " ".join(str(part) for part in (vehicle.make, vehicle.model, vehicle.year) if part)
    yield (
        "vehicle",
        f"{vehicle.slug}: {_clean(vehicle.name)} ({_clean(badge)}), application {vehicle.application}",
    )
    yield "state", _state(vehicle)
    yield "measured", _when(vehicle.measured_at, now)
    yield "freshness", vehicle.freshness.value
    yield "last poll", _outcome(vehicle)
    if vehicle.trouble is not None:
        trouble = plight(vehicle.trouble)
        yield (
            "trouble",
            f"{trouble.title} for {words(now - trouble.since)}: {trouble.detail} ({trouble.code})",
        )
    if vehicle.withdrawn_at is not None:
        yield "consent", f"withdrawn {_when(vehicle.withdrawn_at, now)}; enrolling it again revives it"
        return
    if vehicle.pushed_at is not None:
        yield "webhooks", f"deliver: the last one came {_when(vehicle.pushed_at, now)}"
    else:
        yield "webhooks", "do not deliver: it is polled"
    yield "next poll", _due(vehicle.next_poll, now)
    yield "reason", vehicle.reason


def _state(vehicle: ToldVehicle) -> str:
    known = [_percent(vehicle.soc)]
    if vehicle.range_km is not None:
        known.append(f"{vehicle.range_km:.0f} km")
    if vehicle.charging:
        known.append("charging")
    elif vehicle.plugged_in is not None:
        known.append("plugged in" if vehicle.plugged_in else "not plugged in")
    return ", ".join(known)


def _outcome(vehicle: ToldVehicle) -> str:
    match vehicle.last_outcome:
        case None:
            return "it was not asked yet"
        case "new":
            return "brought something new"
        case "unchanged":
            return "brought nothing new"
        case label:
            return f"failed ({label.replace('_', ' ')})"


# --- plan ---------------------------------------------------------------------------------------------


@click.command()
@config_option
@click.option("--application", metavar="NAME", help="That [smartcar.NAME] table alone.")
@click.option(
    "--calls",
    type=click.IntRange(1, 999_999_999),
    metavar="N",
    help="The plan to compare with, in calls per vehicle; twice the calls unless given.",
)
@click.option("--vehicles", "of_each", is_flag=True, help="And what each car gets of it.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def plan(config: Path, application: str | None, calls: int | None, of_each: bool, as_json: bool) -> None:
    """Say what the plan buys until its period ends, and what a larger one would."""
    settings, _ = load(config, without_credentials=True)
    told = _operating(
        settings, lambda operator: operator.plan(application=application, calls=calls, vehicles=of_each)
    )
    if as_json:
        click.echo(json.dumps(told.model_dump(mode="json"), indent=2, ensure_ascii=False))
    else:
        _tell_plan(told)


def _tell_plan(told: ToldPlan) -> None:
    for forecast in told.applications:
        text = f"{forecast.application}: {' '.join(_prospects(forecast, told.now))}"
        click.echo(click.wrap_text(text, shutil.get_terminal_size().columns) if sys.stdout.isatty() else text)
        click.echo()
    _tell_table(FORECAST_COLUMNS, told.applications, told.now)
    if told.vehicles:
        click.echo()
        _tell_table(SHARE_COLUMNS, sorted(told.vehicles, key=lambda share: share.slug), told.now)


def _prospects(forecast: ToldForecast, now: datetime) -> Iterable[str]:
    """What is ahead, in sentences."""
    pooled = ", pooled" if forecast.pooled else ""
    yield (
        f"{forecast.calls_per_vehicle} calls per vehicle and {forecast.period}{pooled}, until "
        f"{_local(forecast.renews_at)} (in {words(forecast.renews_at - now)})."
    )
    if not forecast.vehicles:
        yield "No car is asked."
        return
    yield (
        f"{forecast.spent} of {forecast.calls} are spent; at this pace it will be {forecast.expected} "
        f"({_number(forecast.pace_per_day)} a day; what is left would do for "
        f"{_number(forecast.even_per_day)})."
    )
    if forecast.interval_s is not None:
        yield f"Each car that is polled can expect a poll every {_span(forecast.interval_s)}."
    yield _running_out(forecast)
    yield from _frugal(forecast)
    yield forecast.advice


def _running_out(forecast: ToldForecast) -> str:
    if forecast.first_out is None:
        used_up = forecast.standings.get(Standing.SPENT, 0)
        who = "1 car has used up its" if used_up == 1 else f"{used_up} cars have used up their"
        return f"{who} calls." if used_up else "The calls last."
    who = "1 car runs" if forecast.run_out == 1 else f"{forecast.run_out} cars run"
    return f"At this pace {who} out of calls before then, the first on {_local(forecast.first_out)}."


def _frugal(forecast: ToldForecast) -> Iterable[str]:
    """The cars that hardly need the plan."""
    for standing, one, more in (
        (Standing.PUSHED, "is fed by webhooks", "are fed by webhooks"),
        (Standing.SILENT, "has been silent for long", "have been silent for long"),
    ):
        if count := forecast.standings.get(standing, 0):
            who = f"1 car {one}: it needs" if count == 1 else f"{count} cars {more}: they need"
            yield f"{who} few calls."


FORECAST_COLUMNS: Final[Sequence[Column[ToldForecast]]] = (
    Column("application", lambda told, _: told.application, 0, 20),
    Column("cars", lambda told, _: str(told.vehicles), 9),
    Column("calls", lambda told, _: str(told.calls), 8),
    Column("spent", lambda told, _: str(told.spent), 3),
    Column("left", lambda told, _: str(told.left), 6),
    Column("expected", lambda told, _: str(told.expected), 4),
    Column("a day", lambda told, _: _number(told.pace_per_day), 10),
    Column("even", lambda told, _: _number(told.even_per_day), 11),
    Column("every", lambda told, _: _span(told.interval_s), 5),
    Column("run out", lambda told, _: str(told.run_out), 7),
    Column("limited by", lambda told, _: _limit(told.limited_by), 1),
    Column("pp*s/call", lambda told, _: _number(told.price), 12),
    Column("more buys", lambda told, _: _points(told.gain), 2),
)
SHARE_COLUMNS: Final[Sequence[Column[ToldShare]]] = (
    Column("vehicle", lambda told, _: told.slug, 0, 24),
    Column("spent", lambda told, _: str(told.spent), 1),
    Column("left", lambda told, _: f"{told.left:.0f}", 2),
    Column("a day", lambda told, _: _number(told.calls_per_day), 7),
    Column("every", lambda told, _: _span(told.interval_s), 3),
    Column("state", lambda told, _: told.standing.value.replace("_", " "), 6),
    Column("next poll", lambda told, now: _soon(told.next_poll, now), 5),
    Column("pp*s/call", lambda told, _: _number(told.price), 4),
    Column("why", lambda told, _: _clean(told.reason), 8, 60, below=True),
)


# --- words --------------------------------------------------------------------------------------------


def _percent(soc: float | None) -> str:
    return "? %" if soc is None else f"{soc:g} %"


def _number(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}"


def _span(seconds: float | None) -> str:
    return "-" if seconds is None else words(timedelta(seconds=seconds))


def _limit(binding: Binding) -> str:
    return "nothing" if binding is Binding.NEED else binding.value


def _points(percent: float | None) -> str:
    return "?" if percent is None else f"{percent:.2g} pp"


def _soon(at: datetime | None, now: datetime) -> str:
    if at is None:
        return "-"
    return f"in {words(at - now)}" if at > now else "now"


def _ago(at: datetime | None, now: datetime) -> str:
    return "not yet" if at is None else ago(at, now)


def _when(at: datetime | None, now: datetime) -> str:
    return "not yet" if at is None else f"{ago(at, now)} ({_local(at)})"


def _due(at: datetime | None, now: datetime) -> str:
    if at is None:
        return "not before something changes"
    return f"in {words(at - now)} ({_local(at)})" if at > now else f"now (due {_local(at)})"


def _local(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M %Z}"


def _clean(text: str) -> str:
    """Without what could command the terminal: names come from owners and from Smartcar."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
