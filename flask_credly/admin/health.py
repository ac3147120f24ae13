"""Whether badges are issued in time: for a probe, which logs in nowhere."""

from __future__ import annotations

import datetime as dt
import json
import logging

from flask import Response
from flask.typing import ResponseReturnValue
from sqlalchemy.exc import SQLAlchemyError

from ..ledger import turns
from ..state import get_state

logger = logging.getLogger("flask_credly")

LATE = dt.timedelta(minutes=15)
"""For how long a badge may be due before that is too late. A worker that runs takes it
within seconds, unless many have come in at once.
"""


def health() -> ResponseReturnValue:
    """Say so of all communities together, and nothing of any of them."""
    try:
        oldest = turns.oldest_due(get_state().engine)
    except SQLAlchemyError:
        logger.exception(
            "The health could not be read from the database.",
            extra={"credly_event": "state_not_read"},
        )
        return _answer("unavailable", None)

    if oldest is not None and oldest > LATE:
        return _answer("late", oldest)

    return _answer("ok", oldest)


def _answer(status: str, oldest: dt.timedelta | None) -> Response:
    seconds = None if oldest is None else int(oldest.total_seconds())
    text = json.dumps({"status": status, "oldest_due_seconds": seconds})
    code = 200 if status == "ok" else 503
    return Response(text, code, mimetype="application/json")
