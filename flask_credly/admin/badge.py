"""One badge's own page: what is true of it, and all that was asked and done."""

from __future__ import annotations

import collections.abc as cabc
import typing as t
import urllib.parse

from flask import request
from flask import Response
from flask.typing import ResponseReturnValue

from .. import accounts
from ..i18n import gettext
from ..i18n import gettext_noop
from ..issuing import notifier
from ..issuing import profile
from ..ledger import actions
from ..ledger import audit
from ..ledger import issuances
from ..ledger import polls
from ..models import Issuance
from .activity import what_in_html
from .activity import who
from .badges import address
from .badges import BECAME
from .badges import is_undecided
from .badges import is_under_way
from .badges import names_of
from .badges import retried
from .badges import status_of
from .community import here
from .guard import actor
from .guard import may_revoke
from .reading import read
from .respond import EXPIRED
from .respond import flash
from .respond import fragment
from .respond import go_to
from .respond import page
from .respond import wants_fragment
from .respond import when_expired

AT_MOST = 100
"""So many of each kind are shown: the newest."""

GONE = gettext_noop("This badge does not exist.")

ANSWERS: dict[str, str] = {
    "issued": gettext_noop("Credly issued the badge."),
    "found": gettext_noop("Credly had already issued this badge."),
    "held": gettext_noop("The member already has this badge from another source."),
    "unlisted": gettext_noop(
        "Credly reported a duplicate, but did not list the first badge."
    ),
    "refused": gettext_noop("Credly rejected the request."),
    "unknown": gettext_noop(
        "No usable response. Credly may have processed the request."
    ),
    "foreign": gettext_noop(
        "The response came from a proxy or firewall, not from Credly."
    ),
    "rate limited": gettext_noop("Credly's API rate limit was reached."),
    "unauthorized": gettext_noop("Credly rejected the credentials."),
    "unavailable": gettext_noop("Credly could not be reached."),
    "in trouble": gettext_noop(
        "Credly reported an outage. It may have processed the request."
    ),
    "blocked": gettext_noop(
        "Credly still counts an earlier badge that is no longer valid."
    ),
    "revoked": gettext_noop("Credly revoked the badge."),
    "outlived": gettext_noop("The badge to replace is no longer valid."),
    "not sent": gettext_noop("The request was not sent."),
    "sent back": gettext_noop(
        "Credly rejected a request for several badges. This one is sent again."
    ),
    "died": gettext_noop("The worker stopped before Credly responded."),
}
"""What :attr:`.Attempt.answer` says."""

ACTIONS: dict[str, str] = {
    "issue": gettext_noop("Issue the badge"),
    "revoke": gettext_noop("Revoke the badge"),
    "replace": gettext_noop("Replace the badge"),
}
"""What :attr:`.Attempt.action` says."""


def show_badge(issuance_id: int) -> ResponseReturnValue:
    """Show one badge, or again what changes on its page."""
    connected = read(accounts.get)

    if connected is None:
        return go_to("credly.show")

    row = read(issuances.get, issuance_id)

    if row is None:
        flash(gettext(GONE), wrong=True)
        return go_to("credly.badges")

    state = here()
    cycles = read(issuances.cycles, row, AT_MOST)
    asked = row.id in polls.asked_for(state.engine, state.tenant, [row.id])
    context: dict[str, t.Any] = {
        "row": row,
        "connection": connected,
        "asked": asked,
        "live": asked or is_under_way(row),
        "cycles": cycles,
        "requests": read(issuances.requests, row.id, AT_MOST),
        "answers": ANSWERS,
        "actions": ACTIONS,
        "done": [
            (entry, who(entry), what_in_html(entry, linked=True))
            for entry in read(audit.of_badge, row.id, row.recorded_at, AT_MOST)
        ],
        "outcomes": audit.OUTCOMES,
        "possible": _possible(row),
        "undecided": is_undecided(row),
        "can_decide": is_undecided(row) and may_revoke(),
        "lacks_profile": _lacks_profile(row),
        "has_profiles": state.load_member is not None,
        "at_most": AT_MOST,
        "credly_site": _site(state.settings.token_url),
        **names_of(cycles if any(row.id == each.id for each in cycles) else [row]),
    }

    if not wants_fragment():
        return page("credly/badge.html", **context)

    said = "" if context["live"] else _said(row)
    return fragment("credly/_badge_page.html", said=said, **context)


def _possible(row: Issuance) -> cabc.Set[actions.Possible]:
    found = read(actions.what_may_be_done, [row.id]).get(row.id)
    return found if found and may_revoke() else frozenset()


def _lacks_profile(row: Issuance) -> bool:
    """Whether it failed as the member's profile has no address or name."""
    is_ours = not row.test and row.erased_at is None
    return row.state == "failed" and is_ours and profile.missing(row) is not None


def _said(row: Issuance) -> str:
    found = issuances.became(row)
    status = status_of(row)

    # Of one that is revoked it would be the same word again.
    if found is None or row.state != "issued":
        return status

    became = gettext(BECAME[found])
    return gettext("%(status)s: %(became)s", status=status, became=became)


def _site(token_url: str) -> str:
    """Get the address under which a badge's public page is."""
    parts = urllib.parse.urlsplit(token_url)
    return f"{parts.scheme}://{parts.netloc}"


def _show_anew(issuance_id: int) -> Response:
    flash(gettext(EXPIRED), wrong=True)
    return _back(issuance_id)


def _back(issuance_id: int) -> Response:
    """Go to where the button was pressed."""
    if "listed" in request.args:
        return go_to("credly.badges", **address(), **retried(issuance_id))

    return go_to("credly.show_badge", issuance_id=issuance_id)


@when_expired(_show_anew)
def check(issuance_id: int) -> ResponseReturnValue:
    """Ask for what has become of one, by a worker: no page waits for Credly."""
    state = here()

    asked = polls.ask_for(state.engine, state.tenant, issuance_id, by=actor())

    if asked is None:
        flash(gettext("Credly has no badge to check."), wrong=True)
    elif asked == "just asked":
        flash(gettext("This badge was checked a moment ago. Try again in 30 seconds."))
    else:
        notifier.ask_for_poll(state)
        flash(gettext("Checking the badge at Credly."))

    return _back(issuance_id)


@when_expired(_show_anew)
def retry(issuance_id: int) -> ResponseReturnValue:
    """Try one once more that was not issued."""
    state = here()

    if issuances.retry(state.engine, state.tenant, issuance_id, by=actor()):
        notifier.notify(state)
        wrong, said = False, gettext("The badge is queued again.")
    else:
        wrong = True
        said = gettext(
            "This badge cannot be retried. Either it is already queued, or its"
            " course is no longer mapped."
        )

    if (
        "listed" in request.args
        and wants_fragment()
        and (row := read(issuances.get, issuance_id))
    ):
        return fragment(
            "credly/_badge_alone.html",
            row=row,
            said=said,
            wrong=wrong,
            focus=True,
            live=True,
            **names_of([row]),
        )

    flash(said, wrong=wrong)
    return _back(issuance_id)
