"""Who did what, and when: the audit trail, page by page, with an export."""

from __future__ import annotations

import re

from flask import url_for
from flask.typing import ResponseReturnValue
from markupsafe import Markup

from .. import accounts
from ..i18n import gettext
from ..i18n import html_gettext
from ..ledger import audit
from ..models import AuditEntry
from .community import here
from .export import cell_of
from .export import csv_file
from .export import note
from .query import number
from .reading import read
from .respond import page


def activity() -> ResponseReturnValue:
    """Show one page. It is there after Remove as well."""
    found = read(audit.page, before=number("before"), after=number("after"))
    connection = read(accounts.get)
    linked = connection is not None
    return page(
        "credly/activity.html",
        activity=found,
        done=[
            (each, who(each), what_in_html(each, linked=linked)) for each in found.rows
        ],
        connection=connection,
        outcomes=audit.OUTCOMES,
    )


def export_activity() -> ResponseReturnValue:
    """Send all of it as a file."""
    community = here()
    note("export activity")
    header = [
        gettext("Timestamp"),
        gettext("Who"),
        gettext("Action"),
        gettext("Result"),
    ]
    cells = (
        [cell_of(each.at), *_words(each)]
        for each in audit.every(community.engine, community.tenant)
    )
    return csv_file("credly-activity", header, cells)


def _words(entry: AuditEntry) -> tuple[str, str, str]:
    what = gettext(audit.ACTIONS.get(entry.action, entry.action), target=entry.target)
    return who(entry), what, gettext(audit.OUTCOMES[entry.outcome])


def who(entry: AuditEntry) -> str:
    """Name who did it."""
    if entry.actor == audit.COMMAND_LINE:
        return gettext("Command line")

    if entry.actor == audit.WORKER:
        return gettext("Worker")

    return entry.actor or gettext("Unknown")


def what_in_html(entry: AuditEntry, *, linked: bool) -> Markup:
    """Say what was done.

    :param linked: Whether badges have their pages: not without a connection.
    """
    target = Markup("<bdi>{}</bdi>").format(entry.target)

    if linked and entry.action in audit.OF_A_BADGE:
        parts = re.split(r"(\d+)", entry.target)
        target = Markup().join(
            _link(part) if part.isdecimal() else part for part in parts
        )

    return html_gettext(audit.ACTIONS.get(entry.action, entry.action), target=target)


def _link(number: str) -> Markup:
    url = url_for("credly.show_badge", issuance_id=int(number))
    return Markup('<a href="{}">{}</a>').format(url, number)
