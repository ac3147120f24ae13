"""Which community a request is about. The host says so, and no address and no form."""

from __future__ import annotations

import logging

from flask import g
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import NotFound

from ..catalog import DEFAULT_TENANT
from ..catalog import read_id
from ..ledger.transaction import end_hosts_transaction
from ..state import Community
from ..state import get_state

logger = logging.getLogger("flask_credly")

_KEY = "credly_community"


def here() -> Community:
    """Get the community of this request.

    :raises werkzeug.exceptions.NotFound: The host names none.
    """
    if _KEY not in g:
        setattr(g, _KEY, get_state().of(_ask()))

    community: Community = g.get(_KEY)
    return community


def _ask() -> str:
    state = get_state()

    if state.name_tenant is None:
        return DEFAULT_TENANT

    try:
        tenant = state.name_tenant()
        found = None if tenant is None else read_id(tenant, "The tenant")
    except HTTPException:
        raise
    except Exception:
        logger.exception(
            "The @credly.tenant hook failed; no page is shown.",
            extra={"credly_event": "hook_failed", "credly_hook": "tenant"},
        )
        # Its failed statement would spoil those of the host's layout.
        end_hosts_transaction(failed=True)
        found = None

    if found is None:
        raise NotFound

    return found
