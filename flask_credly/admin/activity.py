"""Who did what, and when: the audit trail, page by page, with an export."""

from __future__ import annotations

import typing as t

from flask.typing import ResponseReturnValue
from markupsafe import Markup

from .. import accounts
from ..i18n import gettext
from ..i18n import html_gettext
from ..ledger import audit
from ..models import AuditEntry
from .community import here
from .export import csv_file
from .export import note
from .query import number
from .reading import read
from .respond import page


def activity() -> ResponseReturnValue:
    """Show one page. It is there after Remove as well."""
    return page(
        "credly/activity.html",
        activity=read(audit.page, before=number("before"), after=number("after")),
        connection=read(accounts.get),
        who=_who,
        what=_what_in_html,
        outcomes=audit.OUTCOMES,
        of_a_badge=audit.OF_A_BADGE,
    )


def export_activity() -> ResponseReturnValue:
    """Send all of it as a file."""
    community = here()
    note("export activity")
    header = [gettext("Timestamp"), gettext("Who"), gettext("What"), gettext("Outcome")]
    cells = (
        [each.at.isoformat(), *words_of(each)]
        for each in audit.every(community.engine, community.tenant)
    )
    return csv_file("credly-activity", header, cells)


def words_of(entry: AuditEntry) -> tuple[str, str, str]:
    """Say who did what, and what came of it."""
    what = gettext(audit.ACTIONS.get(entry.action, entry.action), target=entry.target)
    return _who(entry), what, gettext(audit.OUTCOMES[entry.outcome])


def _who(entry: AuditEntry) -> str:
    if entry.actor == audit.COMMAND_LINE:
        return gettext("Command line")

    if entry.actor == audit.WORKER:
        return gettext("Worker")

    return entry.actor or gettext("Unknown")


def _what_in_html(entry: AuditEntry, **values: t.Any) -> Markup:
    return html_gettext(audit.ACTIONS.get(entry.action, entry.action), **values)
