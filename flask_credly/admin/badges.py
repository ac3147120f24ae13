"""The ledger: every badge that was asked for, with filters, retries and an export."""

from __future__ import annotations

import typing as t
import urllib.parse

from flask import request
from flask.typing import ResponseReturnValue

from .. import connection
from ..issuing import bell
from ..ledger import issuances
from ..ledger import overview
from ..ledger.issuances import Filter
from ..models import Issuance
from ..settings import get_state
from ..words import gettext
from ..words import mark
from ..words import ngettext
from .answer import fragment
from .answer import go_to
from .answer import page
from .answer import say
from .answer import wants_fragment
from .export import csv_file
from .forms import Button
from .log import number
from .mappings import KIND_NAMES

STATUSES: dict[str, str] = {
    "waiting": mark("Waiting"),
    "issued": mark("Issued"),
    "held": mark("Already issued"),
    "failed": mark("Failed"),
    "skipped": mark("Skipped"),
}


def badges() -> ResponseReturnValue:
    """Show one page."""
    session = get_state().session

    if connection.get(session) is None:
        return go_to("credly.show")

    wanted = _filter()
    return page(
        "credly/badges.html",
        badges=issuances.page(
            session, wanted, before=number("before"), after=number("after")
        ),
        wanted=wanted,
        **_names(),
    )


def retry(issuance_id: int) -> ResponseReturnValue:
    """Try one once more that was not issued."""
    Button().is_valid()
    state = get_state()

    if issuances.retry(state.engine, issuance_id):
        bell.ring(state)
        said = gettext("The badge is tried once more.")
    else:
        said = gettext(
            "This badge cannot be tried again: it is on its way already, or its course"
            " is not mapped any more."
        )

    if wants_fragment():
        state.session.rollback()

        if row := state.session.get(Issuance, issuance_id):
            return fragment("credly/_badge.html", row=row, said=said, **_names())

    say(said)
    return go_to("credly.badges", **_address())


def ask_retry() -> ResponseReturnValue:
    """Ask whether all that failed shall be tried again."""
    state = get_state()

    if connection.get(state.session) is None:
        return go_to("credly.show")

    found = overview.read(state.session)
    return page("credly/retry.html", button=Button(), failed=found.failed)


def retry_all() -> ResponseReturnValue:
    """Try all that failed once more."""
    Button().is_valid()
    state = get_state()
    tried = issuances.retry(state.engine)

    if tried:
        bell.ring(state)

    say(
        ngettext(
            "%(number)s badge is tried once more.",
            "%(number)s badges are tried once more.",
            tried,
        )
    )
    return go_to("credly.badges")


def export_badges() -> ResponseReturnValue:
    """Send what the filters show as a file."""
    rows = issuances.every(get_state().engine, _filter())
    header = [
        gettext("Member"),
        gettext("E-mail address"),
        gettext("First name"),
        gettext("Last name"),
        gettext("Kind"),
        gettext("Course or learning path"),
        gettext("Badge"),
        gettext("Status"),
        gettext("Error"),
        gettext("Completed"),
        gettext("Settled"),
        gettext("Credly badge id"),
        gettext("Test"),
    ]
    return csv_file("credly-badges", header, (_cells(row) for row in rows))


def _cells(row: Issuance) -> list[str]:
    return [
        row.member_id,
        row.email,
        row.first_name,
        row.last_name,
        gettext(KIND_NAMES.get(row.kind, row.kind)),
        row.course_id,
        row.badge_name,
        status_of(row),
        row.error or "",
        row.completed_at.isoformat(),
        row.settled_at.isoformat() if row.settled_at else "",
        row.badge_id or "",
        gettext("Test") if row.test else "",
    ]


def status_of(row: Issuance) -> str:
    """Say a row's state in words."""
    if row.state in issuances.STATES["waiting"]:
        return gettext("Retrying") if row.attempts else gettext("Queued")

    return next(
        gettext(STATUSES[status])
        for status, states in issuances.STATES.items()
        if row.state in states
    )


def _filter() -> Filter:
    status = request.args.get("status", "")
    kind, _, course_id = request.args.get("course", "").partition(":")
    return Filter(
        status=t.cast(issuances.Status, status) if status in STATUSES else None,
        kind=kind,
        course_id=course_id,
        text=request.args.get("q", "").strip(),
        id=number("id"),
    )


def _address() -> dict[str, str]:
    """Keep the filters and the page in an address."""
    kept = ("status", "course", "q", "id", "before", "after")
    return {name: request.args[name] for name in kept if request.args.get(name)}


def _names() -> dict[str, t.Any]:
    state = get_state()
    courses = {
        (each.kind, each.course_id): each.course_title
        for each in connection.list_mappings(state.session)
    }
    return {
        "button": Button(),
        "address": _address(),
        "statuses": STATUSES,
        "status_of": status_of,
        "kind_names": KIND_NAMES,
        "course_titles": courses,
        "credly_site": _site(state.settings.token_url),
    }


def _site(token_url: str) -> str:
    """Get the address under which a badge's public page is."""
    parts = urllib.parse.urlsplit(token_url)
    return f"{parts.scheme}://{parts.netloc}"
