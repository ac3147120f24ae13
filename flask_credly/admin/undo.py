"""Taking many badges back: those of a backfill, or those that the badges page shows."""

from __future__ import annotations

import datetime as dt

from flask import request
from flask import Response
from flask.typing import ResponseReturnValue

from .. import accounts
from ..i18n import gettext
from ..i18n import gettext_noop
from ..issuing import notifier
from ..ledger import backfills
from ..ledger import reasons
from ..ledger import undone
from ..ledger import undos
from ..ledger.undos import Selection
from ..models import Batch
from ..models import BatchRow
from .badges import asked_for
from .badges import BECAME
from .badges import STATUSES
from .community import here
from .courses import KIND_NAMES
from .courses import list_courses
from .courses import name_anew
from .courses import titles_by_course
from .export import csv_file
from .export import note
from .forms import UndoForm
from .guard import actor
from .guard import may_revoke
from .mappings import gone
from .query import number
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

GONE = gettext_noop("This bulk revocation no longer exists.")
NOTHING = gettext_noop("There are no badges to revoke.")
MORE = gettext_noop(
    "More badges match than this page showed. Nothing was done. Check the numbers"
    " and submit again."
)
NO_TIME = gettext_noop("Enter a date and time, such as 2026-03-31T09:00.")

LEFT_ALONE: dict[str, str] = {
    "was revoked": gettext_noop("Already revoked"),
    "was replaced": gettext_noop("Replaced by another badge"),
    "declined": gettext_noop("Declined by the member"),
    "held": gettext_noop("Already held from another source"),
    "was failed": gettext_noop("Failed, not issued"),
    "was cancelled": gettext_noop("Skipped, not issued"),
    "busy": gettext_noop("Already being revoked"),
    "elsewhere": gettext_noop("In another organization"),
    "erased": gettext_noop("Member erased"),
}

OUTCOMES: dict[str, str] = {
    "revoked": gettext_noop("Revoked"),
    "dropped": gettext_noop("Skipped"),
    "failed": gettext_noop("Revocation failed"),
    "stopped": gettext_noop("Kept: the revocation was stopped"),
    "waits": gettext_noop("Sending"),
    "pending": gettext_noop("Queued for revocation"),
    "accepted": gettext_noop("Queued for revocation"),
    "asked": gettext_noop("Being revoked"),
    **LEFT_ALONE,
}

GROUPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "revoked": (gettext_noop("Revoked"), ("revoked",)),
    "dropped": (gettext_noop("Skipped"), ("dropped",)),
    "failed": (gettext_noop("Failed"), ("failed",)),
    "left": (gettext_noop("Not changed"), undos.LEFT_ALONE),
    "stopped": (gettext_noop("Stopped"), ("stopped",)),
    "open": (gettext_noop("In progress"), undos.OPEN),
}
"""What the list can be filtered by."""


def confirm_undo() -> ResponseReturnValue:
    """Show which badges would be taken back, and ask why."""
    return _confirm_page(UndoForm())


def _confirm_expired() -> Response:
    return _confirm_page(UndoForm.sent(), 422, gettext(EXPIRED))


@when_expired(_confirm_expired)
def start_undo() -> ResponseReturnValue:
    """Begin. A worker does it."""
    form = UndoForm.sent()

    if not form.validate():
        return _confirm_page(form, 422)

    if isinstance(found := _selection(), Response):
        return found

    selection, run, wrong = found

    if wrong:
        return _confirm_page(form, 422)

    state = here()

    try:
        run_id = undos.start(
            state.engine,
            state.tenant,
            selection,
            number=form.count or 0,
            reason=form.reason.data,
            tell_pending=form.tell_pending.data == "yes",
            tell_accepted=form.tell_accepted.data == "yes",
            title=_title(selection, run),
            last_id=read_number(form.last.data or "") if run is None else None,
            by=actor(),
        )
    except undos.Miscounted:
        return _confirm_page(form, 422, gettext(MORE))

    if run_id is None:
        flash(gettext(NOTHING), wrong=True)
        return go_to("credly.badges")

    notifier.ask_for_undo(state)
    return go_to("credly.show_undo", run_id=run_id)


def _selection() -> tuple[Selection, Batch | None, list[str]] | Response:
    """Read what is asked for from the address: with the backfill, if it is one, and
    the names of times that are none.
    """
    if read(accounts.get) is None:
        return gone()

    if request.args.get("batch"):
        progress = read(backfills.progress, number("batch") or 0)
        return (
            (Selection(undoes=progress.run.id), progress.run, [])
            if progress
            else gone(GONE)
        )

    times: dict[str, dt.datetime | None] = {}
    wrong = []

    for name in ("since", "until"):
        text = request.args.get(name, "").strip()

        try:
            times[name] = _read_time(text) if text else None
        except ValueError:
            wrong.append(name)

    selection = Selection(
        wanted=asked_for(), since=times.get("since"), until=times.get("until")
    )

    if selection.is_everything and not wrong:
        flash(gettext("Set a filter first."), wrong=True)
        return go_to("credly.badges")

    return selection, None, wrong


def _read_time(text: str) -> dt.datetime:
    found = dt.datetime.fromisoformat(text)
    found = found if found.tzinfo else found.replace(tzinfo=dt.UTC)

    try:
        return found.astimezone(dt.UTC)
    except OverflowError:
        raise ValueError from None


def _title(selection: Selection, run: Batch | None) -> str:
    wanted = selection.wanted

    if run is not None:
        name_anew([run], list_courses())
        return run.course_title

    if not wanted.course_id:
        return ""

    key = (wanted.kind, wanted.course_id)

    for course in list_courses() or []:
        if (course.kind, course.id) == key:
            return course.title

    return read(accounts.titles, {key}).get(key, wanted.course_id)


def _confirm_page(
    form: UndoForm, status: int = 200, problem: str | None = None
) -> Response:
    if isinstance(found := _selection(), Response):
        return found

    selection, run, wrong = found
    preview = None if wrong else read(undos.preview, selection)

    if wrong:
        status, problem = 422, gettext(NO_TIME)
    elif preview is not None:
        # What the page says from now on.
        form.shown.data = str(preview.number)
        form.last.data = str(preview.last_id)

    kept = ("batch", "status", "became", "course", "q", "since", "until")
    wanted = selection.wanted
    earlier = read(undone.latest, undoes=run.id if run else None)
    name_anew(earlier, list_courses())
    return page(
        "credly/undo.html",
        status,
        form=form,
        problem=problem,
        preview=preview,
        run=run,
        wanted=wanted,
        not_times=wrong,
        title=_title(selection, run),
        status_word=gettext(STATUSES[wanted.status]) if wanted.status else "",
        became_word=gettext(BECAME[wanted.became]) if wanted.became else "",
        reasons=LEFT_ALONE,
        earlier=earlier,
        address={name: request.args[name] for name in kept if request.args.get(name)},
    )


def show_undo(run_id: int) -> ResponseReturnValue:
    """Show how far it is, and what came of each badge."""
    connected = read(accounts.get)
    found = read(undone.progress, run_id)

    if connected is None or found is None:
        return gone(GONE)

    name_anew([found.run], list_courses())
    group = request.args.get("outcome", "")
    group = group if group in GROUPS else ""
    can_stop = may_revoke() and found.run.state != "stopping"
    context = how_far(connected, found, found.chosen, can_stop=can_stop)
    kept = ("outcome", "before", "after")
    context["address"] = {
        name: request.args[name] for name in kept if request.args.get(name)
    }
    rows = read(
        undone.page,
        run_id,
        GROUPS[group][1] if group else (),
        before=number("before"),
        after=number("after"),
    )
    context |= {
        "group": group,
        "rows": rows,
        "outcome_of": _outcome_of,
        "explain": _explain,
    }

    if wants_fragment():
        # What the list says goes with the numbers above it.
        tell = number("said") != context["quarter"]
        return fragment("credly/_undoing.html", **context, tell=tell, listed=True)

    return page("credly/undoing.html", **context, groups=GROUPS)


def _outcome_of(row: BatchRow) -> str:
    """Say what came of one, also where the run's worker has not written it down yet."""
    badge = row.issuance
    is_done = badge.state == "revoked" and badge.action is None
    outcome = "revoked" if row.outcome == "asked" and is_done else row.outcome
    return gettext(OUTCOMES.get(outcome, outcome))


def _explain(row: BatchRow) -> str:
    """Say what went wrong with one that failed."""
    failed = row.outcome == "failed" and row.issuance.state == "issued"
    return (failed and reasons.explain(row.issuance)) or ""


def stop_undo(run_id: int) -> ResponseReturnValue:
    """Stop. What is on its way is finished."""
    state = here()
    found = read(undone.progress, run_id)

    if found is None:
        return gone(GONE)

    if undos.stop(state.engine, state.tenant, run_id, by=actor()):
        notifier.ask_for_undo(state)
        flash(gettext("Revocation stopped. The remaining badges are kept."))

    return go_to("credly.show_undo", run_id=run_id)


def export_undo(run_id: int) -> ResponseReturnValue:
    """Send what came of each badge as a file."""
    community = here()

    if read(undone.progress, run_id) is None:
        return gone(GONE)

    note("export badges")
    # Before the rows, which hold a connection while they are read.
    titles = titles_by_course()
    group = request.args.get("outcome", "")
    outcomes = GROUPS[group][1] if group in GROUPS else ()
    rows = undone.every(community.engine, community.tenant, run_id, outcomes)
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
        gettext("Result"),
        gettext("Error"),
        gettext("Credly badge id"),
    ]
    lines = (_cells(row, titles) for row in rows)
    return csv_file("credly-taken-back", header, lines)


def _cells(row: BatchRow, titles: dict[tuple[str, str], str]) -> list[str]:
    badge = row.issuance
    return [
        str(badge.id),
        gettext("Erased member") if badge.erased_at else badge.member_id,
        badge.email,
        badge.first_name,
        badge.last_name,
        gettext(KIND_NAMES.get(badge.kind, badge.kind)),
        titles.get((badge.kind, badge.course_id), badge.course_id),
        badge.course_id,
        badge.badge_name,
        _outcome_of(row),
        _explain(row),
        badge.badge_id or "",
    ]
