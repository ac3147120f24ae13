"""The ledger: every badge that was asked for, with filters, retries and an export."""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import functools
import typing as t
import urllib.parse

from flask import request
from flask import Response
from flask.typing import ResponseReturnValue

from .. import accounts
from ..i18n import gettext
from ..i18n import gettext_noop
from ..i18n import ngettext
from ..issuing import notifier
from ..ledger import gates
from ..ledger import issuances
from ..ledger import polls
from ..ledger import reasons
from ..ledger.issuances import Filter
from ..models import Issuance
from .community import here
from .courses import KIND_NAMES
from .courses import list_courses
from .export import csv_file
from .export import note
from .guard import actor
from .query import number
from .query import read_key
from .query import searched
from .query import write_key
from .reading import read
from .respond import EXPIRED
from .respond import flash
from .respond import fragment
from .respond import go_to
from .respond import page
from .respond import wants_fragment
from .respond import when_expired
from .rows import MANY

STATUSES: dict[str, str] = {
    "waiting": gettext_noop("Waiting"),
    "issued": gettext_noop("Issued"),
    "held": gettext_noop("Already issued"),
    "failed": gettext_noop("Failed"),
    "skipped": gettext_noop("Skipped"),
    "revoked": gettext_noop("Revoked"),
    "replaced": gettext_noop("Replaced"),
}


BECAME: dict[str, str] = {
    "pending": gettext_noop("Waiting to be accepted"),
    "accepted": gettext_noop("Accepted"),
    "rejected": gettext_noop("Declined"),
    "revoked": gettext_noop("Revoked"),
    "expired": gettext_noop("Expired"),
}


def badges() -> ResponseReturnValue:
    """Show one page."""
    if read(accounts.get) is None:
        return go_to("credly.show")

    wanted = _filter()
    found = read(issuances.page, wanted, before=number("before"), after=number("after"))
    names = _names(found.rows)
    return page(
        "credly/badges.html",
        badges=found,
        wanted=wanted,
        can_retry=read(issuances.retriable, 1),
        live=wanted.id is not None,
        choices=_choices(wanted, names["titles"]),
        **names,
    )


def show_badge(issuance_id: int) -> ResponseReturnValue:
    """Show one once more, on a page that stays open."""
    row = read(issuances.get, issuance_id)

    if row is None or not wants_fragment():
        return go_to("credly.badges", id=issuance_id)

    names = _names([row])
    ended = (
        row.state not in issuances.STATES["waiting"] and row.id not in names["asked"]
    )
    return fragment(
        "credly/_badge_alone.html",
        row=row,
        said=_said(row) if ended else "",
        live=True,
        **names,
    )


def _show_anew(issuance_id: int) -> Response:
    # With its filters.
    flash(gettext(EXPIRED), wrong=True)
    return go_to("credly.badges", **_address())


def _said(row: Issuance) -> str:
    found = issuances.became(row)
    status = status_of(row)
    return f"{status}: {gettext(BECAME[found])}" if found else status


@when_expired(_show_anew)
def check(issuance_id: int) -> ResponseReturnValue:
    """Ask for what has become of one, by a worker: no page waits for Credly."""
    state = here()
    wrong = not polls.ask_for(state.engine, state.tenant, issuance_id, by=actor())

    if wrong:
        said = gettext("There is no badge at Credly to ask for.")
    else:
        notifier.ask_for_poll(state)
        said = gettext("Credly is asked what became of the badge.")

    return _respond(issuance_id, said, wrong=wrong)


@when_expired(_show_anew)
def retry(issuance_id: int) -> ResponseReturnValue:
    """Try one once more that was not issued."""
    state = here()

    if issuances.retry(state.engine, state.tenant, issuance_id, by=actor()):
        notifier.notify(state)
        wrong, said = False, gettext("The badge is tried once more.")
    else:
        wrong = True
        said = gettext(
            "This badge cannot be tried again: it is on its way already, or its course"
            " is not mapped any more."
        )

    return _respond(issuance_id, said, wrong=wrong)


def _respond(issuance_id: int, said: str, *, wrong: bool) -> Response:
    """Show the row whose button was pressed, with what came of it."""
    if wants_fragment() and (row := read(issuances.get, issuance_id)):
        return fragment(
            "credly/_badge_alone.html",
            row=row,
            said=said,
            wrong=wrong,
            focus=True,
            live=True,
            **_names([row]),
        )

    flash(said, wrong=wrong)
    return go_to("credly.badges", **_address())


def confirm_retry() -> ResponseReturnValue:
    """Ask whether all that failed shall be tried again."""
    if read(accounts.get) is None:
        return go_to("credly.show")

    number = read(issuances.retriable)
    return page("credly/retry.html", number=number)


def retry_all() -> ResponseReturnValue:
    """Try all that failed once more."""
    state = here()
    tried = issuances.retry(state.engine, state.tenant, by=actor())

    if tried:
        notifier.notify(state)

    flash(
        ngettext(
            "%(number)s badge is tried once more.",
            "%(number)s badges are tried once more.",
            tried,
        )
    )
    return go_to("credly.badges")


def export_badges() -> ResponseReturnValue:
    """Send what the filters show as a file."""
    community = here()
    note("export badges")
    rows = issuances.every(community.engine, community.tenant, _filter())
    header = [
        gettext("Number"),
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
        gettext("At Credly"),
        gettext("Since"),
        gettext("Checked"),
        gettext("Expires"),
        gettext("Test"),
    ]
    return csv_file("credly-badges", header, (_cells(row) for row in rows))


def _cells(row: Issuance) -> list[str]:
    return [
        str(row.id),
        gettext("Erased member") if row.erased_at else row.member_id,
        row.email,
        row.first_name,
        row.last_name,
        gettext(KIND_NAMES.get(row.kind, row.kind)),
        row.course_id,
        row.badge_name,
        status_of(row),
        reasons.explain(row) or "",
        row.completed_at.isoformat(),
        _iso(row.settled_at),
        row.badge_id or "",
        gettext(BECAME[found]) if (found := issuances.became(row)) else "",
        _iso(row.badge_state_at),
        _iso(row.checked_at),
        _iso(row.expires_at),
        gettext("Test") if row.test else "",
    ]


def _iso(at: dt.datetime | None) -> str:
    return at.isoformat() if at else ""


def status_of(row: Issuance, *, paused: bool = False) -> str:
    """Say a row's state in words.

    :param paused: Whether nothing is issued at present.
    """
    if row.action and not row.lease and paused:
        return gettext("Paused")

    if row.state in issuances.STATES["waiting"]:
        return gettext("Retrying") if row.attempts else gettext("Queued")

    return next(
        gettext(STATUSES[status])
        for status, states in issuances.STATES.items()
        if row.state in states
    )


def _filter() -> Filter:
    status = request.args.get("status", "")
    became = request.args.get("became", "")
    kind, course_id = read_key(request.args.get("course", ""))
    return Filter(
        status=t.cast(issuances.Status, status) if status in STATUSES else None,
        kind=kind,
        course_id=course_id,
        text=searched(),
        id=number("id"),
        became=t.cast(issuances.Became, became) if became in BECAME else None,
    )


def _address() -> dict[str, str]:
    """Keep the filters and the page in an address."""
    kept = ("status", "became", "course", "q", "id", "before", "after")
    return {name: request.args[name] for name in kept if request.args.get(name)}


def _names(rows: cabc.Sequence[Issuance]) -> dict[str, t.Any]:
    state = here()
    courses = {(each.kind, each.id): each.title for each in list_courses() or []}
    mapped = read(accounts.titles, {(row.kind, row.course_id) for row in rows})
    gate = gates.read(state.engine, state.tenant)
    paused = gate is not None and not gate.is_open
    can_be_retried = read(issuances.can_be_retried, [row.id for row in rows])
    return {
        "address": _address(),
        "statuses": STATUSES,
        "became": BECAME,
        "became_of": issuances.became,
        "asked": polls.asked_for(state.engine, state.tenant, [row.id for row in rows]),
        "explain": reasons.explain,
        "status_of": functools.partial(status_of, paused=paused),
        "paused": paused,
        "becoming": read(issuances.becoming, [row.id for row in rows]),
        "can_be_retried": can_be_retried,
        # The title of now, or else the one that the course had when it was mapped.
        "titles": mapped | courses,
        "kind_names": KIND_NAMES,
        "mapped": mapped,
        "credly_site": _site(state.settings.token_url),
    }


def _choices(wanted: Filter, titles: dict[tuple[str, str], str]) -> dict[str, str]:
    """Get the courses to filter by. Of too many to choose from it is the chosen one:
    each mapping's row leads to its badges.
    """
    mappings = read(accounts.list_mappings, limit=MANY + 1)
    found = {(each.kind, each.course_id): each.course_title for each in mappings}

    if len(found) > MANY:
        chosen = (wanted.kind, wanted.course_id)
        found = {chosen: chosen[1]} if wanted.course_id else {}

    named = {each: titles.get(each, title) for each, title in found.items()}
    by_title = sorted(named.items(), key=lambda each: each[1])
    return {write_key(*course): title for course, title in by_title}


def _site(token_url: str) -> str:
    """Get the address under which a badge's public page is."""
    parts = urllib.parse.urlsplit(token_url)
    return f"{parts.scheme}://{parts.netloc}"
