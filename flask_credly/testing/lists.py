"""How Credly's lists are filtered, sorted and cut into pages."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import math
import re
import secrets
import typing as t

from .rules import Refusal
from .rules import Row

Clause = tuple[str, list[str]]
Filters = cabc.Mapping[str, cabc.Callable[[Row, str], bool]]
Search = tuple[str | None, str]

PER_PAGE = 50


def parse_filter(text: str) -> list[Clause]:
    """Split ``key::value,value|key::value``.

    :raises Refusal: If the text has another form.
    """
    return [_parse_clause(part) for part in text.split("|")]


def _parse_clause(part: str) -> Clause:
    key, _, value = part.partition("::")

    if not value or not re.fullmatch(r"[a-z_]+(\[[a-z_]+\])?", key):
        raise Refusal(400, f"Invalid filter: {part}")

    return key, value.split(",")


def select(rows: list[Row], clauses: list[Clause], filters: Filters) -> list[Row]:
    """Get the rows that meet every clause with one of its values."""
    for key, values in clauses:
        rows = [row for row in rows if any(filters[key](row, v) for v in values)]

    return rows


def sort(rows: list[Row], text: str, keys: cabc.Collection[str]) -> list[Row]:
    """Sort by ``key1|-key2``. Keys that are not in ``keys`` change nothing."""
    for part in reversed(text.split("|")):
        if (key := part.removeprefix("-")) in keys:
            rows = sorted(rows, key=_sort_key(key), reverse=part.startswith("-"))

    return rows


def page(rows: list[Row], number: int, url: str) -> Row:
    """Cut one page out of a list.

    :param url: Address of the list as the page URLs spell it.
    """
    pages = max(1, math.ceil(len(rows) / PER_PAGE))
    shown = rows[(number - 1) * PER_PAGE : number * PER_PAGE]
    before = f"{url}?page={number - 1}" if 1 < number <= pages else None
    after = f"{url}?page={number + 1}" if number < pages else None

    return {
        "data": shown,
        "metadata": {
            "count": len(shown),
            "current_page": number,
            "total_count": len(rows),
            "total_pages": pages,
            "per": PER_PAGE,
            "previous_page_url": before,
            "next_page_url": after,
        },
    }


@dataclasses.dataclass(frozen=True)
class Cursor:
    """Where a page of the search ended.

    :param after: The number of its last badge.
    :param asked: What was asked for: the filter and the format.
    :param until: When it ceases to be good.
    """

    after: int
    asked: Search
    until: float


class Cursors:
    """The cursors that were given."""

    def __init__(self) -> None:
        self._cursors: dict[str, Cursor] = {}

    def give(self, after: int, asked: Search, until: float) -> str:
        """Make a cursor."""
        value = secrets.token_urlsafe(48)
        self._cursors[value] = Cursor(after, asked, until)
        return value

    def find(self, value: str) -> Cursor | None:
        """Get a cursor, whether or not it is still good."""
        return self._cursors.get(value)

    def clear(self) -> None:
        self._cursors.clear()


def _sort_key(key: str) -> cabc.Callable[[Row], t.Any]:
    if key == "name":
        return lambda row: row["name"].casefold()

    if key == "badge_templates[name]":
        return lambda row: row["badge_template"]["name"].casefold()

    # As the database does that Credly is thought to have: nothing is above all.
    return lambda row: (row[key] is None, row[key] or "")


def _same(key: str) -> cabc.Callable[[Row, str], bool]:
    return lambda row, value: row[key] == value


def _named(row: Row, value: str) -> bool:
    if len(value) > 1 and value[0] == value[-1] == '"':
        return t.cast(bool, row["name"] == value[1:-1])

    return value.casefold() in row["name"].casefold()


def _never(row: Row, value: str) -> bool:
    return False


TEMPLATE_SORTS = ("badges_count", "created_at", "name", "updated_at")
BADGE_SORTS = ("created_at", "issued_at", "state_updated_at", "badge_templates[name]")

TEMPLATE_FILTERS: Filters = {
    "state": _same("state"),
    "name": _named,
    "query": lambda row, value: (
        value.casefold() in f"{row['name']} {row['description']}".casefold()
    ),
    "public": lambda row, value: str(row["public"]).lower() == value,
    "owner_id": lambda row, value: row["owner"]["id"] == value.lower(),
    "skills": lambda row, value: value in row["skills"],
    "reporting_tags": lambda row, value: value in row["reporting_tags"],
    "created_at_min": lambda row, value: row["created_at"][:10] >= value,
    "created_at_max": lambda row, value: row["created_at"][:10] <= value,
    "updated_at_min": lambda row, value: row["updated_at"][:10] >= value,
    "updated_at_max": lambda row, value: row["updated_at"][:10] <= value,
    "recommendation_ids": _never,
    "collection_id": _never,
}

# The two e-mail filters depend on accounts and switches: the simulator adds them.
BADGE_FILTERS: Filters = {
    "badge_template_id": lambda row, value: row["badge_template"]["id"] == value,
    "issuer_earner_id": _same("issuer_earner_id"),
    "state": _same("state"),
    "public": lambda row, value: str(row["public"]).lower() == value,
    "query": lambda row, value: (
        value.casefold() in f"{row['issued_to']} {row['recipient_email']}".casefold()
    ),
    "badge_templates[reporting_tags]": _never,
    "expires_at_date_max": lambda row, value: bool(
        row["expires_at_date"] and row["expires_at_date"] <= value
    ),
}
