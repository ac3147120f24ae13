"""The ledger: every badge that was asked for, with filters and an export."""

from __future__ import annotations

import collections.abc as cabc
import functools
import typing as t

from flask import request
from flask.typing import ResponseReturnValue

from .. import accounts
from ..i18n import gettext
from ..i18n import gettext_noop
from ..i18n import ngettext
from ..issuing import notifier
from ..ledger import gates
from ..ledger import issuances
from ..ledger import reasons
from ..ledger import retrying
from ..ledger import withdrawals
from ..ledger.issuances import Filter
from ..models import Issuance
from .community import here
from .courses import KIND_NAMES
from .courses import list_courses
from .courses import name_anew
from .courses import titles_by_course
from .export import cell_of
from .export import csv_file
from .export import note
from .guard import actor
from .guard import may_act
from .guard import may_revoke
from .query import number
from .query import read_key
from .query import read_number
from .query import searched
from .query import write_key
from .reading import read
from .respond import flash
from .respond import fragment
from .respond import go_to
from .respond import page
from .respond import wants_fragment
from .rows import MANY

STATUSES: dict[str, str] = {
    "waiting": gettext_noop("Queued"),
    "issued": gettext_noop("Issued"),
    "held": gettext_noop("Already held"),
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
    "missing": gettext_noop("Not found at Credly"),
}


_AT_MOST_RETRIED = 10


def badges() -> ResponseReturnValue:
    """Show one page."""
    if read(accounts.get) is None:
        return go_to("credly.show")

    wanted = asked_for()
    found = read(issuances.page, wanted, before=number("before"), after=number("after"))
    found.rows.extend(_retried_among(found.rows))
    found.rows.sort(key=lambda row: row.id, reverse=True)
    names = names_of(found.rows)
    waiting = read(withdrawals.count)
    retried = read(retrying.going_on)

    if brought_back := read(retrying.brought_back):
        name_anew(brought_back, list_courses())

    return page(
        "credly/badges.html",
        badges=found,
        wanted=wanted,
        can_retry=read(issuances.retriable, 1),
        retrying=retried,
        runs=[*filter(None, [retried]), *brought_back],
        can_take_back=wanted != Filter() and bool(found.rows) and may_revoke(),
        withdrawn=waiting,
        can_decide=bool(waiting) and may_revoke(),
        choices=_choices(wanted, names["titles"]),
        **names,
    )


def badge_row(issuance_id: int) -> ResponseReturnValue:
    """Show one row once more, on a page that stays open."""
    row = read(issuances.get, issuance_id)

    if row is None or not wants_fragment():
        return go_to("credly.badges", **address())

    return fragment(
        "credly/_badge_alone.html",
        row=row,
        said="" if is_under_way(row) else status_of(row),
        live=True,
        **names_of([row]),
    )


def confirm_retry() -> ResponseReturnValue:
    """Ask whether all that failed shall be tried again."""
    if read(accounts.get) is None:
        return go_to("credly.show")

    if read(retrying.going_on) is not None:
        return go_to("credly.badges")

    number = read(issuances.retriable)
    return page("credly/retry.html", number=number)


def retry_all() -> ResponseReturnValue:
    """Try all that failed once more."""
    state = here()
    shown = read_number(request.form.get("number", ""))
    number, run_id = retrying.retry_all(
        state.engine, state.tenant, number=shown, by=actor()
    )

    if run_id is not None:
        notifier.ask_for_undo(state)
        flash(gettext("Retrying all failed badges. Work continues in the background."))
        return go_to("credly.badges")

    if number:
        notifier.notify(state)

    flash(
        ngettext(
            "%(number)s badge is queued again.",
            "%(number)s badges are queued again.",
            number,
        )
    )
    return go_to("credly.badges")


def stop_retry(run_id: int) -> ResponseReturnValue:
    """Retry no more of them, or restore no more of a course."""
    state = here()

    if retrying.stop(state.engine, state.tenant, run_id, by=actor()):
        flash(gettext("Stopped. Badges already queued stay queued."))

    return go_to("credly.badges")


def export_badges() -> ResponseReturnValue:
    """Send what the filters show as a file."""
    community = here()
    note("export badges")
    # Before the rows, which hold a connection while they are read.
    titles = titles_by_course()
    rows = issuances.every(community.engine, community.tenant, asked_for())
    header = [
        gettext("Number"),
        gettext("Member"),
        gettext("E-mail address"),
        gettext("First name"),
        gettext("Last name"),
        gettext("Kind"),
        gettext("Course or learning path"),
        gettext("Course id"),
        gettext("Badge"),
        gettext("Status"),
        gettext("Error"),
        gettext("Completed"),
        gettext("Requested"),
        gettext("Finished"),
        gettext("Credly badge id"),
        gettext("At Credly"),
        gettext("Since"),
        gettext("Checked"),
        gettext("Expires"),
        gettext("Replaces"),
        gettext("Replaced by"),
        gettext("Revocation reason"),
        gettext("Test"),
    ]
    return csv_file("credly-badges", header, (_cells(row, titles) for row in rows))


def _cells(row: Issuance, titles: dict[tuple[str, str], str]) -> list[str]:
    return [
        str(row.id),
        gettext("Erased member") if row.erased_at else row.member_id,
        row.email,
        row.first_name,
        row.last_name,
        gettext(KIND_NAMES.get(row.kind, row.kind)),
        titles.get((row.kind, row.course_id), row.course_id),
        row.course_id,
        row.badge_name,
        status_of(row),
        reasons.explain(row) or "",
        cell_of(row.completed_at),
        cell_of(row.recorded_at),
        cell_of(row.settled_at),
        row.badge_id or "",
        gettext(BECAME[found]) if (found := issuances.became(row)) else "",
        cell_of(row.badge_state_at),
        cell_of(row.checked_at),
        cell_of(row.expires_at),
        row.replaces or "",
        row.replaced_by or "",
        row.revocation_reason or "",
        gettext("Test") if row.test else "",
    ]


def status_of(
    row: Issuance,
    *,
    paused: bool = False,
    being_replaced: cabc.Container[int] = frozenset(),
) -> str:
    """Say a row's state in words.

    :param paused: Whether nothing is issued at present.
    :param being_replaced: See :func:`.issuances.being_replaced`.
    """
    if row.id in being_replaced:
        return gettext("Being replaced")

    if row.reason == "awaits revocation":
        return gettext("Queued until revocation")

    if row.action == "revoke" and not is_undecided(row):
        return gettext("Being revoked")

    if row.state == "none":
        if row.lease:
            return gettext("Sending")

        return gettext("Queued (paused)") if paused else gettext("Queued")

    return next(
        gettext(STATUSES[status])
        for status, state in issuances.STATES.items()
        if row.state == state
    )


def is_under_way(row: Issuance) -> bool:
    """Whether something is being done that somebody may wait for."""
    return row.action not in (None, "check") and not is_undecided(row)


def is_undecided(row: Issuance) -> bool:
    """Whether a person decides if it is revoked: it is issued until then."""
    return row.reason == "awaits approval"


def asked_for() -> Filter:
    """Read the filters from the address."""
    status = request.args.get("status", "")
    became = request.args.get("became", "")
    kind, course_id = read_key(request.args.get("course", ""))
    return Filter(
        status=t.cast(issuances.Status, status) if status in STATUSES else None,
        kind=kind,
        course_id=course_id,
        text=searched(),
        whole_address=not may_act(),
        became=t.cast(issuances.Became, became) if became in BECAME else None,
    )


def address() -> dict[str, str]:
    """Keep the filters and the page in an address."""
    kept = ("status", "became", "course", "q", "before", "after")
    return {name: request.args[name] for name in kept if request.args.get(name)}


def retried(*ids: int) -> dict[str, list[int]]:
    """Keep in an address which badges were retried, and the given ones: they stay
    in the list until it is left, whatever their state is by now.
    """
    earlier = [read_number(each) for each in request.args.getlist("retried")]
    kept = {each for each in [*earlier, *ids] if each is not None}
    return {"retried": sorted(kept)[:_AT_MOST_RETRIED]} if kept else {}


def _retried_among(rows: cabc.Sequence[Issuance]) -> list[Issuance]:
    """Get those that were retried and are no longer among the rows."""
    shown = {row.id for row in rows}
    ids = retried().get("retried", [])
    found = [read(issuances.get, each) for each in ids if each not in shown]
    return [row for row in found if row is not None]


def names_of(rows: cabc.Sequence[Issuance]) -> dict[str, t.Any]:
    """Gather what rows are shown with."""
    state = here()
    courses = {(each.kind, each.id): each.title for each in list_courses() or []}
    mapped = read(accounts.titles, {(row.kind, row.course_id) for row in rows})
    gate = gates.read(state.engine, state.tenant)
    paused = gate is not None and not gate.is_open
    can_be_retried = read(issuances.can_be_retried, [row.id for row in rows])
    return {
        "address": address(),
        "retried": retried(),
        "statuses": STATUSES,
        "became": BECAME,
        "became_of": issuances.became,
        "is_under_way": is_under_way,
        "explain": reasons.explain,
        "status_of": functools.partial(
            status_of,
            paused=paused,
            being_replaced=read(issuances.being_replaced, [row.id for row in rows]),
        ),
        "paused": paused,
        "becoming": read(issuances.becoming, [row.id for row in rows]),
        "can_be_retried": can_be_retried,
        # The title of now, or else the one that the course had when it was mapped.
        "titles": mapped | courses,
        "kind_names": KIND_NAMES,
        "mapped": mapped,
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
