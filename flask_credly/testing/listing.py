"""How the simulated Credly answers with lists."""

from __future__ import annotations

import itertools
import re
import urllib.parse

from . import lists
from . import rules
from . import shapes
from .entry import Entry
from .organization import Organization
from .rules import Refusal
from .rules import Row
from .serving import Call
from .serving import json_reply
from .serving import Reply

_FORMATS = ("default", "minimal")


def shown_badges(organization: Organization) -> list[Entry]:
    """Get the badges that lists know of by now, in the order issued."""
    until = organization.clock() - organization.look_up_lag
    return organization.book.written(until)


def badge_filters(organization: Organization) -> lists.Filters:
    def has_email(row: Row, email: str) -> bool:
        if row["state"] == "accepted" and not organization.email_filter_finds_accepted:
            return False

        return rules.same_email(row["recipient_email"], email)

    return {
        **lists.BADGE_FILTERS,
        "recipient_email": has_email,
        "recipient_email_all": organization.book.holders.owns,
    }


def answer(
    organization: Organization,
    call: Call,
    rows: list[Row],
    filters: lists.Filters,
    sorts: tuple[str, ...],
) -> Reply:
    """Answer with one page of a list, filtered and sorted as asked for."""
    query = dict(call.query)

    if (text := query.get("filter")) is not None:
        rows = lists.select(rows, _read(organization, call, text, filters), filters)

    if (text := query.get("sort")) is not None:
        honoured = set(sorts) - organization.ignored_sorts
        rows = lists.sort(rows, text, honoured)

        for part in text.split("|"):
            if part.removeprefix("-") not in sorts:
                organization.record.note(call, f"unknown sort key {part!r}")

    return page(organization, call, rows)


def _read(
    organization: Organization, call: Call, text: str, filters: lists.Filters
) -> list[lists.Clause]:
    clauses = lists.parse_filter(text)

    for key, _ in clauses:
        if key in filters:
            continue

        if organization.unknown_filter == "refuse":
            raise Refusal(400, f"Unknown filter: {key}")

        organization.record.note(call, f"unknown filter key {key!r}")

    return [
        (key, values)
        for key, values in clauses
        if key in filters and key not in organization.ignored_filters
    ]


def page(organization: Organization, call: Call, rows: list[Row]) -> Reply:
    text = dict(call.query).get("page", "1")

    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        organization.record.note(call, f"page is {text!r}")
        text = "1"

    # With neither filter nor sort: so the real service was seen to do.
    return json_reply(200, lists.page(rows, int(text), _own_address(call)))


# The search, whose pages have no numbers


def search(organization: Organization, call: Call, org: str) -> Reply:
    """Answer with the next page of all badges that fit."""
    query = dict(call.query)
    text, form = query.get("filter"), query.get("badge_format", "default")
    after = -1

    if form not in _FORMATS:
        raise Refusal(400, f"Invalid badge format: {form}")

    if (value := query.get("search_after")) is not None:
        after = _find_cursor(organization, value, (text, form)).after

    filters = badge_filters(organization)
    clauses = [] if text is None else _read(organization, call, text, filters)
    # A place in the order issued: no badge is left out or shown twice, whatever becomes
    # of the others between two pages.
    found = (
        one
        for one in shown_badges(organization)
        if one.number > after and lists.select([one.row], clauses, filters)
    )
    page = list(itertools.islice(found, organization.search_page_size))
    url = None

    if next(found, None) is not None:
        if value is None or not organization.search_repeats_cursor:
            until = organization.clock() + organization.cursor_seconds
            value = organization.cursors.give(page[-1].number, (text, form), until)

        url = _next_url(organization, call, value)

    rows = [shapes.shown_badge(one.row, form) for one in page]
    return json_reply(200, {"data": rows, "metadata": {"next_page_url": url}})


def _find_cursor(
    organization: Organization, value: str, asked: lists.Search
) -> lists.Cursor:
    cursor = organization.cursors.find(value)

    if cursor is None or cursor.until <= organization.clock():
        raise Refusal(organization.lost_cursor_status, "The cursor is not valid.")

    if cursor.asked != asked:
        raise Refusal(400, "The cursor belongs to another search.")

    return cursor


def _next_url(organization: Organization, call: Call, cursor: str) -> str:
    query = [(name, text) for name, text in call.query if name != "search_after"]
    text = urllib.parse.urlencode([*query, ("search_after", cursor)])
    return f"{organization.search_next_address or _own_address(call)}?{text}"


def _own_address(call: Call) -> str:
    # Not the prefix that was called: so the real service was seen to do.
    return f"{call.origin}/api{call.path.removesuffix('/')}"
