"""The list of integrations, with the Credly card."""

from __future__ import annotations

import logging
import typing as t

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
    known: dict[str, t.Any] = {"overview": None, "connection": None}

    try:
        known = {
            "overview": overview.read(session),
            "connection": connection.get(session),
        }
    except SQLAlchemyError:
        # The list is also there for other integrations.
        logger.exception("The state of the integration could not be read.")
        session.rollback()

    return page("credly/index.html", button=Button(), **known)
