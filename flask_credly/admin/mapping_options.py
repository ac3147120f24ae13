"""The options of one mapping: how its badges are issued."""

from __future__ import annotations

import datetime as dt

from flask import request
from flask import Response
from flask.typing import ResponseReturnValue

from .. import accounts
from ..i18n import format_date
from ..i18n import gettext
from ..models import Mapping
from ..options import EACH
from ..options import LOCALES
from ..options import MEMBER
from ..options import NEVER
from ..options import Options
from ..options import RENEW
from ..options import SILENT
from ..options import TELL
from .community import here
from .courses import list_courses
from .courses import name_anew
from .forms import OptionsForm
from .guard import actor
from .mappings import gone
from .reading import read
from .respond import EXPIRED
from .respond import flash
from .respond import fragment
from .respond import go_to
from .respond import page
from .respond import wants_fragment
from .respond import when_expired
from .rows import kept


def edit_options(mapping_id: int) -> ResponseReturnValue:
    """Show the options of a mapping."""
    mapping = read(accounts.get_mapping, mapping_id)

    if mapping is None:
        return gone()

    form = OptionsForm.of(Options.read(mapping.options))
    form.may_repeat = _may_repeat(mapping)
    return _options_page(mapping_id, form)


def _may_repeat(mapping: Mapping) -> bool:
    # What was chosen before can be kept: the row says what is wrong with it.
    chosen = Options.read(mapping.options).again
    return mapping.template.allows_duplicates or chosen == EACH


def _options_expired(mapping_id: int) -> Response:
    return _options_page(mapping_id, OptionsForm.sent(), 422, gettext(EXPIRED))


@when_expired(_options_expired)
def change_options(mapping_id: int) -> ResponseReturnValue:
    """Save the options of a mapping, or show what they would come to."""
    form = OptionsForm.sent()
    mapping = read(accounts.get_mapping, mapping_id)

    if mapping is None:
        return gone()

    form.may_repeat = _may_repeat(mapping)
    valid = form.validate()

    # By its button, or while somebody types.
    if form.preview.data or request.args.get("preview"):
        if wants_fragment():
            return fragment("credly/_preview.html", preview=_preview(form))

        return _options_page(mapping_id, form, 200 if valid else 422)

    if not valid:
        return _options_page(mapping_id, form, 422)

    before, options = Options.read(mapping.options), form.options()

    try:
        accounts.change_options(here(), mapping_id, options, by=actor())
    except accounts.UnknownMapping:
        return gone()

    name_anew([mapping], list_courses())
    said = gettext("Options saved: %(course)s.", course=mapping.course_title)

    if before.expires != options.expires:
        said += " " + gettext(
            "The new expiry applies to new badges. Badges already issued keep theirs."
        )

    if options.again == RENEW != before.again:
        said += " " + gettext(
            "Later completions now replace the badge. Badges already issued keep"
            " their expiry."
        )

    flash(said)
    return go_to("credly.show", **kept())


def _options_page(
    mapping_id: int, form: OptionsForm, status: int = 200, problem: str | None = None
) -> Response:
    mapping = read(accounts.get_mapping, mapping_id)

    if mapping is None:
        return gone()

    name_anew([mapping], list_courses())
    return page(
        "credly/options.html",
        status,
        mapping=mapping,
        form=form,
        problem=problem,
        locales=LOCALES,
        member=MEMBER,
        again=_choices(form),
        withdrawn=[
            ("", gettext("Keep the badge")),
            (TELL, gettext("Revoke it and notify the member")),
            (SILENT, gettext("Revoke it without notice")),
        ],
        never=NEVER,
        # What is wrong stands above the field.
        preview="" if form.errors else _preview(form),
        kept=kept(),
    )


def _choices(form: OptionsForm) -> list[tuple[str, str]]:
    found = [
        ("", gettext("Nothing: one badge per member")),
        (RENEW, gettext("Renew: replace the previous badge")),
    ]

    if form.may_repeat or form.again.data == EACH:
        found.append((EACH, gettext("Every time: issue another badge")))

    return found


def _preview(form: OptionsForm) -> str:
    """Say until when a badge would hold that is earned today, or what is wrong with the
    number of months. Empty: there is nothing to say that the form does not.
    """
    if not form.validate():
        return form.months.errors[0] if form.months.errors else ""

    now = dt.datetime.now(dt.UTC)

    if until := form.options().expires_at(now):
        return gettext(
            "A badge earned today expires on %(date)s.", date=format_date(until)
        )

    return ""
