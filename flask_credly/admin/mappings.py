"""The mapping rows. Each is swapped by itself, so that others keep what was chosen."""

from __future__ import annotations

import secrets

from flask import Response
from flask.typing import ResponseReturnValue

from .. import accounts
from ..i18n import gettext
from ..i18n import gettext_noop
from ..ledger import retrying
from ..models import Mapping
from .community import here
from .courses import key
from .courses import key_of
from .courses import KIND_NAMES
from .courses import list_courses
from .courses import name_anew
from .forms import MappingForm
from .guard import actor
from .reading import read
from .respond import EXPIRED
from .respond import flash
from .respond import fragment
from .respond import go_to
from .respond import wants_fragment
from .respond import when_expired
from .rows import EditRow
from .rows import find_choices
from .rows import find_deleted
from .rows import find_removed
from .rows import kept
from .rows import searched
from .rows import summarize
from .window import show_with

GONE = gettext_noop("This mapping no longer exists.")
NO_UNDO = gettext_noop("It is too late to undo this. Add the mapping again.")
NOT_CONNECTED = gettext_noop("Credly is no longer connected.")


def new() -> ResponseReturnValue:
    """Open one more row."""
    if not wants_fragment():
        return go_to("credly.show", mapping="new")

    return _edit_row(EditRow(secrets.token_hex(4)))


def edit_mapping(mapping_id: int) -> ResponseReturnValue:
    """Open the row of a mapping."""
    if not wants_fragment():
        return go_to("credly.show", mapping=mapping_id)

    mapping = read(accounts.get_mapping, mapping_id)
    return _edit_row(EditRow.changing(mapping)) if mapping else gone()


def row(mapping_id: int) -> ResponseReturnValue:
    """Close the row of a mapping."""
    if not wants_fragment():
        return _to_list()

    mapping = read(accounts.get_mapping, mapping_id)
    return _text_row(mapping) if mapping else gone()


def _edit_expired(mapping_id: int | None = None) -> Response:
    return _again(MappingForm.sent(), mapping_id, [gettext(EXPIRED)])


@when_expired(_edit_expired)
def add() -> ResponseReturnValue:
    """Save a new mapping."""
    form = MappingForm.sent()

    if not form.undo.data:
        return _save(form, None)

    # What comes back stands in the database, and not in the form.
    if (removed := find_removed(form.undo.data)) is None:
        flash(gettext(NO_UNDO), wrong=True)
        return _to_list()

    form.course.data = key_of(removed)
    form.template.data = removed.template_id
    return _save(form, None)


@when_expired(_edit_expired)
def change(mapping_id: int) -> ResponseReturnValue:
    """Save a changed mapping."""
    return _save(MappingForm.sent(), mapping_id)


def remove_mapping(mapping_id: int) -> ResponseReturnValue:
    """Remove a mapping, and offer to take that back."""
    removed = accounts.remove_mapping(here(), mapping_id, by=actor())

    if removed is None:
        return gone()

    name_anew([removed], list_courses())
    said = gettext(
        "Mapping removed: %(course)s. Badges already issued are kept.",
        course=removed.course_title,
    )

    if not wants_fragment():
        flash(said)
        return _to_list(undo=str(removed.id))

    return fragment(
        "credly/_mapping_removed.html",
        mapping=removed,
        said=said,
    )


def _save(form: MappingForm, mapping_id: int | None) -> Response:
    if searched(form):
        return _show_again(EditRow.sent(form, mapping_id), 200)

    if not form.validate():
        errors = [text for texts in form.errors.values() for text in texts]
        return _again(form, mapping_id, errors)

    chosen = {key(each): each for each in list_courses() or []}.get(form.course.data)

    if chosen is None:
        error = gettext(
            "This course or learning path no longer exists. Select another one."
        )
        return _again(form, mapping_id, [error])

    state = here()

    try:
        if mapping_id is None:
            mapping = accounts.add_mapping(
                state,
                chosen,
                form.template.data,
                undo=bool(form.undo.data),
                by=actor(),
            )
        else:
            mapping = accounts.change_mapping(
                state, mapping_id, chosen, form.template.data, by=actor()
            )
    except accounts.AlreadyMapped as e:
        error = gettext(
            "This course or learning path is already mapped to %(badge)s.",
            badge=e.badge_name,
        )
        return _again(form, mapping_id, [error])
    except accounts.UnknownTemplate:
        error = gettext(
            "This badge template is no longer active in Credly. Select another one."
        )
        return _again(form, mapping_id, [error])
    except (accounts.NotConnected, accounts.UnknownMapping):
        return gone()

    said = gettext(
        "Mapping saved: %(course)s to %(badge)s.",
        course=mapping.course_title,
        badge=mapping.template.name,
    )

    if any(
        (each.kind, each.course_id) == (mapping.kind, mapping.course_id)
        for each in read(retrying.brought_back)
    ):
        said += " " + gettext("Its badges are queued again in the background.")

    if wants_fragment():
        return _text_row(mapping, said)

    flash(said)
    return _to_list()


def _to_list(**values: str) -> Response:
    """Go to the page of the list that the form stood on."""
    return go_to("credly.show", **kept(), **values)


def _again(form: MappingForm, mapping_id: int | None, errors: list[str]) -> Response:
    return _show_again(EditRow.sent(form, mapping_id, errors=errors), 422)


def _show_again(edited: EditRow, status: int) -> Response:
    if wants_fragment():
        return _edit_row(edited, status)

    return show_with([edited], status)


def _edit_row(edited: EditRow, status: int = 200) -> Response:
    return fragment(
        "credly/_mapping_edit.html",
        status,
        row=edited,
        focus_new=not edited.focus,
        **find_choices([edited], list_courses()),
    )


def _text_row(mapping: Mapping, said: str = "") -> Response:
    courses = list_courses()
    name_anew([mapping], courses)
    return fragment(
        "credly/_mapping_row.html",
        mapping=mapping,
        said=said,
        focus=True,
        deleted=find_deleted([mapping], courses),
        summaries={mapping.id: summarize(mapping)},
        twins=read(accounts.find_twins, [mapping.template]),
        kind_names=KIND_NAMES,
    )


def gone(what: str = GONE) -> Response:
    """Answer for a mapping, or a whole integration, that was removed elsewhere."""
    if read(accounts.get) is None:
        what = NOT_CONNECTED

    flash(gettext(what), wrong=True)
    return go_to("credly.show")
