"""Comparing with Credly: what differs, and what is repaired."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import typing as t

from flask import request
from flask import Response
from flask.typing import ResponseReturnValue

from .. import accounts
from ..i18n import gettext
from ..i18n import gettext_noop
from ..issuing import notifier
from ..ledger import comparisons
from ..models import Batch
from ..models import DifferenceRow
from ..models import Issuance
from .badges import status_of
from .community import here
from .courses import KIND_NAMES
from .courses import list_courses
from .export import cell_of
from .export import csv_file
from .export import note
from .forms import CompareForm
from .forms import RepairForm
from .guard import actor
from .guard import may_act
from .mappings import gone
from .query import read_number
from .reading import read
from .respond import EXPIRED
from .respond import flash
from .respond import fragment
from .respond import go_to
from .respond import page
from .respond import wants_fragment
from .respond import when_expired
from .window import how_far

SHOWN = 200
"""Badges of each kind that the page lists. The file has all that are stored."""

CHANGED = gettext_noop(
    "The number of badges has changed, or another run is going on. Nothing was"
    " repaired. Check the numbers and submit again."
)

# In which way badges agree or differ: its name, and what to do.
WORDS: dict[str, tuple[str, str]] = {
    "agreed": (
        gettext_noop("Matching"),
        gettext_noop("This site and Credly say the same. Nothing to do."),
    ),
    "not_recorded": (
        gettext_noop("Completed without a badge"),
        gettext_noop(
            "Members completed a mapped course, but no badge was requested. Repair"
            " issues the badges."
        ),
    ),
    "waiting_too_long": (
        gettext_noop("Queued for more than an hour"),
        gettext_noop(
            "Nothing is in the way, but no worker sent them. Ask the developer of this"
            " site whether a worker is running."
        ),
    ),
    "unknown_here": (
        gettext_noop("Only at Credly"),
        gettext_noop(
            "Credly has badges of your members that are not listed here. Repair adds"
            " them."
        ),
    ),
    "failed_here": (
        gettext_noop("Issued at Credly, but not here"),
        gettext_noop(
            "Listed here as queued, failed, skipped or already held, but issued at"
            " Credly. Repair marks them as issued."
        ),
    ),
    "state_differs": (
        gettext_noop("Different status"),
        gettext_noop(
            "Credly has another status or expiry date. Repair takes over what Credly"
            " has."
        ),
    ),
    "not_at_credly": (
        gettext_noop("Missing at Credly"),
        gettext_noop(
            "Issued more than a day ago, but Credly does not list them. To issue one"
            " again, open the badge and reissue it."
        ),
    ),
    "differs": (
        gettext_noop("Different content"),
        gettext_noop(
            "Credly has another badge template, e-mail address or date. Open the badge"
            " to correct it."
        ),
    ),
    "twice": (
        gettext_noop("Issued twice"),
        gettext_noop(
            "The member has a second valid badge, but the badge template allows one."
            " If it should not exist, open the badge and revoke it."
        ),
    ),
    "no_longer_completed": (
        gettext_noop("No longer completed"),
        gettext_noop(
            "This site no longer says that the member completed the course. If the"
            " member should not have the badge, open it and revoke it."
        ),
    ),
    "not_ours": (
        gettext_noop("Not from this site"),
        gettext_noop(
            "Badges of your organization that this site did not issue. Nothing to do."
        ),
    ),
}

LEFT: dict[str, str] = {
    "changed": gettext_noop("Changed since the comparison"),
    "no course": gettext_noop("Course unknown"),
}
"""Why a repair has left a badge alone."""


@dataclasses.dataclass(frozen=True)
class _Progress:
    """How far a comparison is, for :func:`.how_far`."""

    run: Batch

    @property
    def done(self) -> int:
        """It is not known how many badges there are."""
        return 0

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.run.state not in comparisons.GOES_ON


def show_compare() -> ResponseReturnValue:
    """Show what the last comparison has found, and how far one is."""
    form = CompareForm()
    latest = read(comparisons.known).latest

    if latest is not None and latest.since is not None:
        form.since.data = latest.since.date().isoformat()

    return _page(form)


def _page(form: CompareForm, status: int = 200, problem: str | None = None) -> Response:
    connected = read(accounts.get)

    if connected is None:
        return gone()

    known = read(comparisons.known)
    run = known.latest
    context: dict[str, t.Any] = {
        "form": form,
        "problem": problem,
        "known": known,
        "words": WORDS,
        "repaired": comparisons.REPAIRED,
        "reasons": comparisons.WORDS,
        "left": {},
        "listed": {},
    }

    if run is not None:
        progress = _Progress(run)
        # Of no use here: it does not say how far it is.
        context |= how_far(connected, progress, 0, can_stop=may_act())

    is_over = known.going_on is None
    is_whole = status != 200 or not wants_fragment()

    # What is listed stays as it is until there is more.
    if known.shown is not None and (is_over or is_whole):
        context |= _differences(known.shown)

    if is_whole:
        return page("credly/compare.html", status, **context)

    return fragment("credly/_comparing.html", **context, tell=is_over)


def _differences(run: Batch) -> dict[str, t.Any]:
    """Gather the badges that differ, as they are listed."""
    found = comparisons.Found.of(run)
    listed = {
        bucket: read(comparisons.differences, run.id, bucket=bucket, at_most=SHOWN)
        for bucket in comparisons.DIFFERENCES
        if found.counts.get(bucket)
    }
    return {
        "listed": listed,
        "left": read(comparisons.count_left, run.id),
        "titles": _titles(each for rows in listed.values() for each in rows),
        "course_of": _course,
        "left_alone": LEFT,
        "status_of": status_of,
    }


def _titles(
    rows: cabc.Iterable[tuple[DifferenceRow, Issuance | None]],
) -> dict[tuple[str, str], str]:
    courses = {(each.kind, each.id): each.title for each in list_courses() or []}
    keys = {_course(row, badge) for row, badge in rows}
    return read(accounts.titles, {each for each in keys if each}) | courses


def _course(row: DifferenceRow, badge: Issuance | None) -> tuple[str, str] | None:
    if row.course_id is not None:
        return row.kind or "", row.course_id

    # Another row of the member says nothing of the course.
    if badge is None or row.bucket == "unknown_here":
        return None

    return badge.kind, badge.course_id


def _compare_expired() -> Response:
    return _page(CompareForm.sent(), 422, gettext(EXPIRED))


@when_expired(_compare_expired)
def start_compare() -> ResponseReturnValue:
    """Begin. A worker does it."""
    form = CompareForm.sent()

    if not form.validate():
        return _page(form, 422)

    state = here()

    if comparisons.start(state.engine, state.tenant, form.time, by=actor()) is None:
        return gone()

    notifier.ask_for_compare(state)
    return go_to("credly.show_compare")


def stop_compare(run_id: int) -> ResponseReturnValue:
    """Stop. What was repaired stays so."""
    state = here()

    if comparisons.stop(state.engine, state.tenant, run_id, by=actor()):
        flash(gettext("Stopped."))

    return go_to("credly.show_compare")


def confirm_repair() -> ResponseReturnValue:
    """Show what a repair would do, and ask how many there are."""
    return _repair_page(RepairForm())


def _repair_expired() -> Response:
    return _repair_page(RepairForm.sent(), 422, gettext(EXPIRED))


@when_expired(_repair_expired)
def start_repair() -> ResponseReturnValue:
    """Begin to repair. A worker does it."""
    form = RepairForm.sent()

    if not form.validate():
        return _repair_page(form, 422)

    state = here()
    begun = comparisons.start_repair(
        state.engine,
        state.tenant,
        read_number(form.run.data or "") or 0,
        request.args.get("bucket", ""),
        read_number(form.shown.data or "") or 0,
        by=actor(),
    )

    if not begun:
        return _repair_page(form, 422, gettext(CHANGED))

    notifier.ask_for_compare(state)
    return go_to("credly.show_compare")


def _repair_page(
    form: RepairForm, status: int = 200, problem: str | None = None
) -> Response:
    if read(accounts.get) is None:
        return gone()

    known = read(comparisons.known)
    bucket = request.args.get("bucket", "")
    run = known.shown
    left = 0

    if run is not None and run.state == "compared" and known.going_on is None:
        left = read(comparisons.count_left, run.id).get(bucket, 0)

    if run is None or known.found is None or not left:
        flash(problem or gettext("There is nothing to repair."), wrong=True)
        return go_to("credly.show_compare")

    # What the page says from now on.
    form.shown.data, form.run.data = str(left), str(run.id)
    return page(
        "credly/repair.html",
        status,
        form=form,
        problem=problem,
        bucket=bucket,
        words=WORDS[bucket],
        number=left,
        total=known.found.counts.get(bucket, left),
    )


def export_compare() -> ResponseReturnValue:
    """Send all differences that are stored as a file."""
    run = read(comparisons.known).shown

    if read(accounts.get) is None or run is None:
        return gone()

    note("export differences")
    rows = [
        each
        for bucket in comparisons.DIFFERENCES
        for each in read(comparisons.differences, run.id, bucket=bucket)
    ]
    titles = _titles(rows)
    header = [
        gettext("Difference"),
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
        gettext("Completed"),
        gettext("Credly badge id"),
        gettext("Result"),
    ]
    lines = (_cells(row, badge, titles) for row, badge in rows)
    return csv_file("credly-differences", header, lines)


def _cells(
    row: DifferenceRow, badge: Issuance | None, titles: dict[tuple[str, str], str]
) -> list[str]:
    course = _course(row, badge)
    # Of a badge that has no row, only who it is for is known by another.
    is_its = badge is not None and row.bucket != "unknown_here"
    member_id = row.member_id or (badge.member_id if badge else "")
    return [
        gettext(WORDS[row.bucket][0]),
        str(badge.id) if badge and is_its else "",
        gettext("Erased member") if badge and badge.erased_at else member_id,
        badge.email if badge else "",
        badge.first_name if badge else "",
        badge.last_name if badge else "",
        gettext(KIND_NAMES.get(course[0], course[0])) if course else "",
        titles.get(course, course[1]) if course else "",
        course[1] if course else "",
        badge.badge_name if badge and is_its else "",
        status_of(badge) if badge and is_its else "",
        cell_of(row.completed_at or (badge.completed_at if badge and is_its else None)),
        row.badge_id or "",
        gettext(LEFT[row.outcome]) if row.outcome else "",
    ]
