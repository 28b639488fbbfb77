"""JSON:API's envelope: pages of a list and the links between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

from evbatteryd.simulator.errors import Refused

Json = dict[str, Any]
Item = TypeVar("Item")

MOST: Final = 100


def one(query: Mapping[str, str], name: str, default: int, most: int | None = None) -> int:
    """A paging parameter: a whole number from 1."""
    written = query.get(name)
    if written is None:
        return default
    if not written.isascii() or not written.isdecimal():
        raise Refused("VALIDATION:INVALID_INPUT_FORMAT", detail=f"{name} must be a number")
    number = int(written[:9])
    if number < 1 or (most is not None and number > most):
        raise Refused("VALIDATION:PARAMETER", detail=f"{name} is out of range")
    return number


def page(
    address: str,
    query: Mapping[str, str],
    items: Sequence[Item],
    show: Callable[[Item], Json],
    *,
    default_size: int,
) -> Json:
    """The page of ``items`` that ``query`` asks for. ``address`` is the list's own, without a query."""
    number = one(query, "page[number]", 1)
    size = one(query, "page[size]", default_size, MOST)
    last = max(1, -(-len(items) // size))
    others = urlencode({name: value for name, value in query.items() if not name.startswith("page[")})
    prefix = f"{address}?{others}{'&' if others else ''}"

    def link(to: int) -> str:
        return f"{prefix}page%5Bnumber%5D={to}&page%5Bsize%5D={size}"

    return {
        "data": [show(item) for item in items[(number - 1) * size : number * size]],
        "meta": {"pageNumber": number, "pageSize": size, "totalCount": len(items)},
        "links": {
            "self": link(number),
            "first": link(1),
            "prev": link(min(number - 1, last)) if number > 1 else None,
            "next": link(number + 1) if number < last else None,
            "last": link(last),
        },
    }
