"""Answers in the forms that the web has: JSON, pages, and numbers and words read out of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from evbatteryd.domain.fleet import Car, Fleet
from evbatteryd.domain.freshness import Freshness

JSON: Final = orjson.OPT_UTC_Z | orjson.OPT_OMIT_MICROSECONDS
LARGEST_BODY: Final = 128 * 1024
"""Bytes. Smartcar's deliveries are at most 50 KB:
https://smartcar.com/docs/integrations/webhooks/best-practices/reliability"""
BODY_WITHIN_S = 10.0
"""Real seconds that a request's body may take to arrive."""


def as_json(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return compressed(
        web.Response(
            body=orjson.dumps(body, option=JSON | orjson.OPT_APPEND_NEWLINE),
            status=status,
            content_type="application/json",
            headers=headers,
        )
    )


def as_page(
    text: str, status: int = 200, headers: Mapping[str, str] | None = None, *, compress: bool = True
) -> web.Response:
    """``compress``: not if the page holds a form's token beside words of the request (BREACH).

    https://www.breachattack.com
    """
    page = web.Response(text=text, status=status, content_type="text/html", headers=headers)
    return compressed(page) if compress else page


def compressed(response: web.Response) -> web.Response:
    response.enable_compression()
    response.headers["Vary"] = "Accept-Encoding"
    return response


def freshness_named(text: str) -> Freshness | None:
    return Freshness(text) if text in tuple(Freshness) else None


def whole_number(text: str) -> int | None:
    """A whole number from 0 on, of at most nine digits."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def car_of(request: web.Request, fleet: Fleet) -> Car:
    """The car whose slug is part of the address. Raises HTTPNotFound."""
    car = fleet.by_slug(request.match_info["slug"])
    if car is None:
        raise web.HTTPNotFound(text="no vehicle has this name; /api/vehicles lists them")
    return car


async def body_of(request: web.Request, within_s: float | None = None) -> bytes:
    """All of the request's body, if it arrives within ``within_s`` real seconds (:data:`BODY_WITHIN_S`).

    Raises the HTTPException that says what is wrong with it.
    """
    if (request.content_length or 0) > LARGEST_BODY:
        raise web.HTTPRequestEntityTooLarge(LARGEST_BODY, request.content_length or 0)
    try:
        async with asyncio.timeout(BODY_WITHIN_S if within_s is None else within_s):
            return await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="the body did not arrive in time") from None
    except (web.RequestPayloadError, HttpProcessingError, OSError):  # OSError: the client is gone.
        raise web.HTTPBadRequest(text="the body is cut off or damaged") from None
