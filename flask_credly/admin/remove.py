"""Removing the integration."""

from __future__ import annotations

from flask.typing import ResponseReturnValue

from .. import accounts
from ..i18n import gettext
from ..ledger import overview
from .community import here
from .guard import actor
from .index import AT_MOST
from .reading import read
from .respond import flash
from .respond import go_to
from .respond import page


def confirm_remove() -> ResponseReturnValue:
    """Ask whether it is meant: the dialog as a page, where it cannot open."""
    if read(accounts.get) is None:
        return go_to("credly.index")

    found = read(overview.read, at_most=AT_MOST)
    return page("credly/remove.html", overview=found)


def remove_integration() -> ResponseReturnValue:
    """Remove it. A second time does no harm."""
    accounts.remove(here(), by=actor())
    flash(gettext("Credly was removed."))
    return go_to("credly.index")
