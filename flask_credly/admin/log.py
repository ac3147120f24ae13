"""The whole error log, page by page."""

from __future__ import annotations

from flask import request
from flask.typing import ResponseReturnValue

from .. import connection
from ..ledger import log
from ..settings import get_state
from .answer import go_to
from .answer import page


def errors() -> ResponseReturnValue:
    """Show one page."""
    session = get_state().session

    if connection.get(session) is None:
        return go_to("credly.show")

    return page(
        "credly/errors.html",
        log=log.page(session, before=_number("before"), after=_number("after")),
    )


def _number(name: str) -> int | None:
    value = request.args.get(name, "")
    return int(value) if value.isdecimal() and len(value) < 18 else None
