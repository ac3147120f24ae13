"""What an admin does about a badge that was issued: revoke, correct, issue again.

A worker does it. What a form asks for is checked here, and whether it can be done once
more in the transaction that writes it down.
"""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import typing as t

from flask import request
from flask import Response
from flask.typing import ResponseReturnValue

from .. import accounts
from ..i18n import format_date
from ..i18n import gettext
from ..i18n import gettext_noop
from ..issuing import notifier
from ..issuing import profile
from ..ledger import actions
from ..ledger import issuances
from ..ledger.reasons import REASONS
from ..ledger.transaction import end_hosts_transaction
from ..models import Issuance
from .badge import GONE
from .badges import status_of
from .community import here
from .forms import AgainForm
from .forms import CorrectForm
from .forms import RevokeForm
from .guard import actor
from .reading import read
from .respond import EXPIRED
from .respond import flash
from .respond import go_to
from .respond import page
from .respond import when_expired
from .rows import template_choices

MEANWHILE = gettext_noop(
    "This badge has changed since you opened the page. Nothing was done. Check"
    " its status and try again."
)
IN_FORCE = gettext_noop(
    "This badge is now valid and must be revoked first. Give a reason."
)
UNDECIDED = REASONS["awaits approval"]
CHANGED = gettext_noop("The member's profile has changed. Check it and submit again.")


def _open(
    issuance_id: int, *wanted: actions.Possible
) -> tuple[Issuance, frozenset[actions.Possible]] | Response:
    """Get a badge about which one of these can be done, or say why none can."""
    if read(accounts.get) is None:
        return go_to("credly.show")

    row = read(issuances.get, issuance_id)

    if row is None:
        flash(gettext(GONE), wrong=True)
        return go_to("credly.badges")

    possible = read(actions.what_may_be_done, [row.id]).get(row.id, frozenset())

    if possible.isdisjoint(wanted):
        flash(_why_not(row), wrong=True)
        return _to(row.id)

    return row, possible


def _why_not(row: Issuance) -> str:
    replaced = read(issuances.being_replaced, [row.id])

    if row.reason == "awaits approval":
        return gettext(UNDECIDED)

    if row.action is not None or replaced:
        return gettext(
            "Another action on this badge is in progress (%(status)s). Wait until"
            " it finishes.",
            status=status_of(row, being_replaced=replaced),
        )

    connected = read(accounts.get)

    if connected is not None and row.organization_id != connected.organization_id:
        return gettext(
            "This badge belongs to another organization than the connected one."
            " Connect that organization first."
        )

    return gettext(
        "This action is not possible. The badge's status is: %(status)s.",
        status=status_of(row),
    )


def _to(row_id: int) -> Response:
    return go_to("credly.show_badge", issuance_id=row_id)


def _began(row_id: int, said: str) -> Response:
    notifier.notify(here())
    flash(said)
    return _to(row_id)


def _meanwhile(row_id: int) -> Response:
    flash(gettext(MEANWHILE), wrong=True)
    return _to(row_id)


def _named(row: Issuance) -> str:
    return f"{row.first_name} {row.last_name}".strip() or row.member_id


# Revoke


def edit_revoke(issuance_id: int) -> ResponseReturnValue:
    """Ask why a badge is to be revoked, and whether its member is told."""
    return _revoke_page(issuance_id, RevokeForm())


def _revoke_expired(issuance_id: int) -> Response:
    return _revoke_page(issuance_id, RevokeForm.sent(), 422, gettext(EXPIRED))


@when_expired(_revoke_expired)
def revoke(issuance_id: int) -> ResponseReturnValue:
    """Have a badge revoked, or take it back where it was not sent yet."""
    form = RevokeForm.sent()

    if not form.validate():
        return _revoke_page(issuance_id, form, 422)

    if isinstance(found := _open(issuance_id, "revoke", "drop"), Response):
        return found

    state = here()
    done = actions.revoke(
        state.engine,
        state.tenant,
        issuance_id,
        reason=form.reason.data,
        tell=form.tell.data == "yes",
        by=actor(),
    )

    if done is None:
        return _meanwhile(issuance_id)

    if done == "drop":
        return _began(
            issuance_id, gettext("The badge was skipped and will not be issued.")
        )

    return _began(issuance_id, gettext("The revocation is queued."))


def _revoke_page(
    issuance_id: int, form: RevokeForm, status: int = 200, problem: str | None = None
) -> Response:
    if isinstance(found := _open(issuance_id, "revoke", "drop"), Response):
        return found

    row, possible = found
    return page(
        "credly/revoke.html",
        status,
        row=row,
        name=_named(row),
        unsent="drop" in possible,
        can_correct="correct" in possible,
        form=form,
        problem=problem,
    )


# Correct


def edit_correction(issuance_id: int) -> ResponseReturnValue:
    """Ask what shall stand on a badge."""
    if isinstance(found := _open(issuance_id, "correct"), Response):
        return found

    row, _ = found
    form = CorrectForm(
        data={
            "first_name": row.first_name,
            "last_name": row.last_name,
            "completed": row.completed_at.date().isoformat(),
            "template": row.template_id,
        }
    )
    return _correction_page(issuance_id, form)


def _correction_expired(issuance_id: int) -> Response:
    return _correction_page(issuance_id, CorrectForm.sent(), 422, gettext(EXPIRED))


@when_expired(_correction_expired)
def correct(issuance_id: int) -> ResponseReturnValue:
    """Show what a correction changes, and then have it done."""
    form = CorrectForm.sent()

    if form.step.data == "edit" or _is_searched(form):
        return _correction_page(issuance_id, form)

    if not form.validate():
        return _correction_page(issuance_id, form, 422)

    if isinstance(found := _open(issuance_id, "correct"), Response):
        return found

    row, _ = found
    template = read(accounts.get_template, form.template.data)

    if template is None or not template.active:
        form.template.errors = [
            gettext(
                "This badge template is no longer active in Credly. Select another one."
            )
        ]
        return _correction_page(issuance_id, form, 422)

    changes = _changes(row, form, template.name)

    if not any(each.is_different for each in changes):
        problem = gettext("You have not changed anything.")
        return _correction_page(issuance_id, form, 422, problem)

    if form.step.data != "confirm":
        return page(
            "credly/correction.html",
            row=row,
            name=_named(row),
            form=form,
            changes=changes,
        )

    state = here()
    new_id = actions.correct(
        state.engine,
        state.tenant,
        issuance_id,
        first_name=form.first_name.data,
        last_name=form.last_name.data,
        completed_at=_completed_at(row, form),
        template_id=template.id,
        by=actor(),
    )

    if new_id is None:
        return _meanwhile(issuance_id)

    said = gettext(
        "The corrected badge is queued. It replaces badge %(number)s once Credly"
        " issues it.",
        number=str(issuance_id),
    )
    return _began(new_id, said)


class _Change(t.NamedTuple):
    name: str
    before: str
    after: str

    @property
    def is_different(self) -> bool:
        return self.before != self.after


def _changes(row: Issuance, form: CorrectForm, template: str) -> list[_Change]:
    completed = _completed_at(row, form)
    changes = [
        _Change(gettext("First name"), row.first_name, form.first_name.data),
        _Change(gettext("Last name"), row.last_name, form.last_name.data),
        _Change(
            gettext("Date of completion"),
            format_date(row.completed_at),
            format_date(completed),
        ),
    ]
    names = row.badge_name, template

    if row.template_id != form.template.data and names[0] == names[1]:
        # Two templates may have one name.
        names = (
            f"{row.badge_name} ({row.template_id})",
            f"{template} ({form.template.data})",
        )

    if row.template_id == form.template.data:
        names = template, template

    return [*changes, _Change(gettext("Badge"), *names)]


def _completed_at(row: Issuance, form: CorrectForm) -> dt.datetime:
    day = dt.date.fromisoformat(form.completed.data)

    # Only the day is asked for: the time stays where that does.
    if day == row.completed_at.date():
        return row.completed_at

    return dt.datetime.combine(day, dt.time(), dt.UTC)


def _is_searched(form: CorrectForm) -> bool:
    return bool(form.search.data or request.args.get("search"))


def _correction_page(
    issuance_id: int, form: CorrectForm, status: int = 200, problem: str | None = None
) -> Response:
    if isinstance(found := _open(issuance_id, "correct"), Response):
        return found

    row, possible = found
    choices = template_choices(
        form.template.data or "",
        form.template_text.data or "",
        read(accounts.count_templates),
    )
    return page(
        "credly/correct.html",
        status,
        row=row,
        name=_named(row),
        can_issue_again="issue again" in possible,
        form=form,
        problem=problem,
        choices=choices,
        twins=read(accounts.find_twins, choices.shown),
        today=dt.datetime.now(dt.UTC).date().isoformat(),
    )


# Issue again


def edit_again(issuance_id: int) -> ResponseReturnValue:
    """Ask to whom a badge is issued once more, and why the one in force is revoked."""
    return _again_page(issuance_id)


def _again_expired(issuance_id: int) -> Response:
    return _again_page(issuance_id, _sent, 422, gettext(EXPIRED))


def _sent(row: Issuance) -> AgainForm:
    return AgainForm.sent_with(in_force=actions.is_in_force(row))


@when_expired(_again_expired)
def issue_again(issuance_id: int) -> ResponseReturnValue:
    """Have a badge issued once more. One that is in force is revoked first."""
    if isinstance(found := _open(issuance_id, "issue again"), Response):
        return found

    row, _ = found
    form = _sent(row)

    if (now := _profile(row)) and _person(form) != now:
        return _show_again(row, now, form, 422, gettext(CHANGED))

    if not form.validate():
        return _show_again(row, now, form, 422)

    state = here()
    why = form.data

    try:
        new_id = actions.issue_again(
            state.engine,
            state.tenant,
            issuance_id,
            **_person(form),
            reason=why.get("reason"),
            tell=why["tell"] == "yes" if "tell" in why else None,
            by=actor(),
        )
    except ValueError:
        return _again_page(issuance_id, _sent, 422, gettext(IN_FORCE))

    if new_id is None:
        return _meanwhile(issuance_id)

    if "reason" in why:
        said = gettext(
            "The new badge is queued. It is issued once badge %(number)s is revoked.",
            number=str(issuance_id),
        )
    else:
        said = gettext("The new badge is queued.")

    return _began(new_id, said)


def _person(form: AgainForm) -> dict[str, str]:
    return {
        "email": form.email.data,
        "first_name": form.first_name.data,
        "last_name": form.last_name.data,
    }


def _profile(row: Issuance) -> dict[str, str] | None:
    """Ask the host for the member as of now. ``None``: it does not say all of it."""
    try:
        member = profile.ask(here(), row)
    except Exception:
        profile.note_failure(row)
        # Its failed statement would spoil those of the host's layout.
        end_hosts_transaction(failed=True)
        return None

    if member is None:
        return None

    found = profile.named(member)
    return found if all(found.values()) else None


def _again_page(
    issuance_id: int,
    make_form: cabc.Callable[[Issuance], AgainForm] | None = None,
    status: int = 200,
    problem: str | None = None,
) -> Response:
    if isinstance(found := _open(issuance_id, "issue again"), Response):
        return found

    row, _ = found
    now = _profile(row)
    stored = {name: getattr(row, name) for name in ("email", "first_name", "last_name")}
    form = make_form(row) if make_form else AgainForm(data=now or stored)
    return _show_again(row, now, form, status, problem)


def _show_again(
    row: Issuance,
    now: dict[str, str] | None,
    form: AgainForm,
    status: int,
    problem: str | None = None,
) -> Response:
    if now:
        # Changed where it is kept, and not here: the next badge would have it again.
        for name, value in now.items():
            form[name].data = value

    mapping = read(accounts.get_mapping_of, row.kind, row.course_id)
    return page(
        "credly/again.html",
        status,
        row=row,
        name=_named(row),
        in_force=actions.is_in_force(row),
        profile=now,
        badge=mapping.template.name if mapping else row.badge_name,
        form=form,
        problem=problem,
    )
