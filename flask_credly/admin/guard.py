"""Who may see the pages."""

from __future__ import annotations

import logging

from werkzeug.wrappers import Response

from ..catalog import clean
from ..ledger.audit import COMMAND_LINE
from ..ledger.transaction import end_hosts_transaction
from ..settings import get_state

logger = logging.getLogger("flask_credly")


def ask() -> bool | Response:
    """Ask the host. A response is the refusal as the host wants it."""
    try:
        allowed = get_state().is_admin()
    except Exception:
        logger.exception(
            "The @credly.is_admin hook failed; nobody is let in.",
            extra={"credly_event": "hook_failed", "credly_hook": "is_admin"},
        )
        return False

    if isinstance(allowed, (bool, Response)):
        return allowed

    if allowed is not None:
        logger.error(
            "The @credly.is_admin hook must return True or False, or a response, not"
            " %s; nobody is let in.",
            type(allowed).__name__,
            extra={"credly_event": "hook_failed", "credly_hook": "is_admin"},
        )

    return False


def is_admin() -> bool:
    """Whether the current visitor is let in."""
    return ask() is True


def actor() -> str:
    """Ask the host who is at work. Empty: unknown, also where the hook fails; what the
    admin does goes on.
    """
    state = get_state()

    if state.name_actor is None:
        return ""

    try:
        name = state.name_actor()
    except Exception:
        logger.exception(
            "The @credly.actor hook failed; the audit trail names nobody.",
            extra={"credly_event": "hook_failed", "credly_hook": "actor"},
        )
        # Its failed statement would spoil those of the host's layout.
        end_hosts_transaction(failed=True)
        return ""

    if name is not None and not isinstance(name, str):
        logger.error(
            "The @credly.actor hook must return a string or None, not %s; the audit"
            " trail names nobody.",
            type(name).__name__,
            extra={"credly_event": "hook_failed", "credly_hook": "actor"},
        )

    # Nobody passes for the command line.
    name = clean(name, 255)
    return "" if name == COMMAND_LINE else name
