"""Which community a request is about. The host says so, and no address and no form."""

from __future__ import annotations

import logging

from flask import g
from flask import has_request_context
from flask import request
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import NotFound

from ..catalog import DEFAULT_TENANT
from ..catalog import read_tenant
from ..ledger.transaction import end_hosts_transaction
from ..state import Community
from ..state import get_state

logger = logging.getLogger("flask_credly")

_KEY = "credly_community"


def here() -> Community:
    """Get the community of this request.

    :raises werkzeug.exceptions.NotFound: The host names none.
    """
    # A context of the host's may be around several requests.
    this = request._get_current_object() if has_request_context() else None  # type: ignore[attr-defined]
    known: tuple[object, Community] | None = g.get(_KEY)

    if this is None or known is None or known[0] is not this:
        known = (this, get_state().of(_ask()))
        setattr(g, _KEY, known)

    return known[1]


def _ask() -> str:
    state = get_state()

    if state.name_tenant is None:
        return DEFAULT_TENANT

    # The hook is for requests: what it goes by is not there elsewhere.
    if not has_request_context():
        raise NotFound

    try:
        tenant = state.name_tenant()
        found = None if tenant is None else read_tenant(tenant)
    except HTTPException:
        raise
    except Exception:
        logger.exception(
            "The @credly.tenant hook failed. No page is shown.",
            extra={"credly_event": "hook_failed", "credly_hook": "tenant"},
        )
        # Its failed statement would spoil those of the host's layout.
        end_hosts_transaction(failed=True)
        found = None

    if found is None:
        raise NotFound

    return found
