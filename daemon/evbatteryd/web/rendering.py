"""The templates of the page, and the files that go with it."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from importlib import resources

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined

from evbatteryd import __version__
from evbatteryd.domain.cadence import words
from evbatteryd.domain.ports import Clock
from evbatteryd.web import view
from evbatteryd.web.guard import VISITOR, Guard, Level

_ASSETS = {
    "style.css": "text/css",
    "page.js": "text/javascript",
    "favicon.svg": "image/svg+xml",
}


def level_of(request: web.Request, guard: Guard) -> Level:
    """What this visitor may see."""
    visitor = request.get(VISITOR)
    if visitor is not None and visitor.operator:
        return Level.OPERATOR
    return Level.READER if guard.access.open_to_read else Level.PUBLIC


class Pages:
    """The templates, filled in, and the files they refer to."""

    def __init__(self, clock: Clock, started_at: datetime, *, signs_in: bool = False) -> None:
        self._clock = clock
        self._started_at = started_at
        folder = resources.files("evbatteryd.web") / "pages"
        self._assets = {name: (folder / name).read_bytes() for name in _ASSETS}
        self._templates = Environment(
            loader=PackageLoader("evbatteryd.web", "pages"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals |= {
            "asset": self._address,
            "iso": _iso,
            "plain": _plain,
            "spelled": {"ago": view.ago, "ahead": view.ahead, "lasting": view.lasting},
            "version": __version__,
            "signs_in": signs_in,
        }
        # Compiled at the start rather than while somebody waits; a broken one shows at once.
        for name in self._templates.list_templates(extensions=("html", "svg")):
            self._templates.get_template(name)
        self._row = self._templates.get_template("row.html")

    def html(
        self, name: str, now: datetime | None = None, /, *, level: Level = Level.PUBLIC, **context: object
    ) -> str:
        """A whole page, as of ``now``. Links to what visitors of this ``level`` may not see are left out."""
        now = now or self._clock.now()
        return self._templates.get_template(name).render(
            now=now,
            speed=self._clock.speed,
            up=words(now - self._started_at),
            reads=level >= Level.READER,
            operates=level >= Level.OPERATOR,
            **context,
        )

    def row(self, row: view.Row, now: datetime) -> str:
        """One car of the page."""
        return self._row.render(row=row, now=now)

    def asset(self, name: str) -> tuple[bytes, str]:
        """A file and its media type. Raises KeyError for any other."""
        return self._assets[name], _ASSETS[name]

    def _address(self, name: str) -> str:
        return f"/assets/{name}?v={hashlib.sha256(self._assets[name]).hexdigest()[:12]}"


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
