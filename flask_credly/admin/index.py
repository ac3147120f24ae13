"""The list of integrations, with the Credly card."""

from __future__ import annotations

import logging

from flask.typing import ResponseReturnValue
from sqlalchemy.exc import SQLAlchemyError

from .. import connection
from ..ledger import overview
from ..settings import get_state
from .answer import page
from .forms import Button

logger = logging.getLogger("flask_credly")


def index() -> ResponseReturnValue:
    """Show the card."""
    session = get_state().session

    try:
        found, connected = overview.read(session), connection.get(session)
    except SQLAlchemyError:
        # The list is also there for other integrations.
        logger.exception("The state of the integration could not be read.")
        session.rollback()
        found = connected = None

    return page(
        "credly/index.html", overview=found, connection=connected, button=Button()
    )
