"""Who may see the pages."""

from __future__ import annotations

import logging

from werkzeug.wrappers import Response

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

    return allowed if isinstance(allowed, Response) else allowed is True


def is_admin() -> bool:
    """Whether the current visitor is let in."""
    return ask() is True
