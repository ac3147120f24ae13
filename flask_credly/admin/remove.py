"""Removing the integration."""

from __future__ import annotations

from flask.typing import ResponseReturnValue

from .. import accounts
from ..i18n import gettext
from ..ledger import overview
from ..ledger import removing
from .community import here
from .guard import actor
from .index import AT_MOST
from .index import known
from .query import number
from .reading import read
from .respond import flash
from .respond import fragment
from .respond import go_to
from .respond import page
from .respond import wants_fragment


def confirm_remove() -> ResponseReturnValue:
    """Ask whether it is meant: the dialog as a page, where it cannot open."""
    if read(accounts.get) is None:
        return go_to("credly.index")

    found = read(overview.read, at_most=AT_MOST)
    return page("credly/remove.html", overview=found)


def remove_integration() -> ResponseReturnValue:
    """Remove it. A second time does no harm."""
    accounts.remove(here(), by=actor())

    if read(removing.going_on) is None:
        flash(gettext("Credly was removed."))
    else:
        flash(
            gettext(
                "Credly was disconnected. The remaining data is being deleted in the"
                " background."
            )
        )

    return go_to("credly.index")


def show_removal() -> ResponseReturnValue:
    """Show once more how far it is, on a page that stays open."""
    if not wants_fragment():
        return go_to("credly.index")

    found = known()
    removal = found["removal"]
    return fragment(
        "credly/_card.html",
        **found,
        # A screen reader shall not read every number.
        tell=not removal or removal.percent // 25 != number("said"),
    )
