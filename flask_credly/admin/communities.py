"""All communities, for whoever operates the site. No member's data is shown."""

from __future__ import annotations

from flask import current_app
from flask import request
from flask.typing import ResponseReturnValue

from ..ledger import communities as ledger
from ..ledger.transaction import in_session
from ..state import get_state
from .respond import page


def communities() -> ResponseReturnValue:
    """Show one page."""
    engine = get_state().engine
    # No name holds a NUL, and PostgreSQL takes none.
    after = request.args.get("after", "").replace("\0", "")[:191]
    return page(
        "credly/communities.html",
        after=after,
        found=in_session(engine, ledger.page, after=after, config=current_app.config),
        unknown=in_session(engine, ledger.count_unknown),
    )
