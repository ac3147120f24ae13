"""Lets the badges of withdrawn completions be revoked, or has a person decide."""

from __future__ import annotations

import logging

from ..ledger import turns
from ..ledger import withdrawals
from ..state import AppState

logger = logging.getLogger("flask_credly")


def release(state: AppState) -> None:
    """Look at what was withdrawn, for every community where something was."""
    for tenant in turns.to_release(state.engine):
        if number := withdrawals.release(state.engine, tenant):
            logger.warning(
                "%s badges of withdrawn completions await a decision. Above %s in"
                " an hour, an admin must confirm the revocation on the Issued"
                " badges page.",
                number,
                withdrawals.MOST,
                extra={
                    "credly_event": "withdrawals_wait",
                    "credly_count": number,
                    "credly_tenant": tenant,
                },
            )
