"""The list of integrations, with the Credly card."""

from __future__ import annotations

import logging
import typing as t

from flask import after_this_request
from flask import current_app
from flask import has_request_context
from flask.typing import ResponseReturnValue
from markupsafe import Markup
from sqlalchemy.exc import SQLAlchemyError

from .. import accounts
from ..issuing import workers
from ..ledger import audit
from ..ledger import comparisons
from ..ledger import overview
from ..ledger import removing
from ..ledger.transaction import beside_the_host
from .community import here
from .guard import is_let_in
from .rendering import render
from .respond import do_not_store
from .respond import page

logger = logging.getLogger("flask_credly")


AT_MOST = 5_000
"""How far badges are counted on a page."""


def index() -> ResponseReturnValue:
    """Show the card."""
    return page("credly/index.html", **known())


def card() -> Markup:
    """Render the card for a host's own list. Empty for everybody but an admin and a
    viewer.
    """
    if not is_let_in():
        return Markup()

    if has_request_context():
        after_this_request(do_not_store)

    return render("credly/card.html", **known())


def known() -> dict[str, t.Any]:
    """Gather what the card shows."""
    found: dict[str, t.Any] = {"overview": None, "connection": None, "removal": None}

    try:
        state = here()

        with beside_the_host(state.engine) as session:
            found = {
                "overview": overview.read(
                    session, state.tenant, config=current_app.config, at_most=AT_MOST
                ),
                "connection": (connected := accounts.get(session, state.tenant)),
                "comparison": comparisons.known(session, state.tenant),
                "any_activity": connected is None
                and audit.any_entry(session, state.tenant),
                "removal": connected is None
                and removing.going_on(session, state.tenant),
            }

        if found["removal"]:
            found["workers"] = workers.count(state)
            found["trouble"] = state.web_queue.trouble
    except SQLAlchemyError:
        # The list is also there for other integrations.
        logger.exception(
            "The status of the integration could not be read.",
            extra={"credly_event": "state_not_read"},
        )

    return found
