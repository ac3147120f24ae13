"""What a signal says: of which app and community it is, and who completed what."""

from __future__ import annotations

import logging
import typing as t

from flask import current_app
from flask import Flask
from flask import has_app_context
from flask import has_request_context

from ..catalog import Completion
from ..catalog import DEFAULT_TENANT
from ..catalog import read_completion
from ..catalog import read_tenant
from ..catalog import read_withdrawal
from ..catalog import Withdrawal
from ..state import AppState

logger = logging.getLogger("flask_credly")


def app_of(sender: t.Any) -> Flask | None:
    """Get the app that a completion is of. ``None``: one without an integration.

    :raises TypeError: It is not known.
    """
    if hasattr(sender, "_get_current_object"):
        sender = sender._get_current_object()

    if not isinstance(sender, Flask) and has_app_context():
        sender = current_app._get_current_object()  # type: ignore[attr-defined]

    if isinstance(sender, Flask):
        # Another app of this process may have no integration.
        if "credly" in sender.extensions:
            return sender

        logger.debug(
            "The app %s does not use Flask-Credly. The signal was ignored.", sender.name
        )
        return None

    raise TypeError("Send the signal with the app: course_completed.send(app, …).")


def tenant_of(state: AppState, given: t.Any) -> str:
    """Get the community that a completion is of.

    :raises ValueError: It is not known.
    """
    if state.name_tenant is None:
        if given not in (None, DEFAULT_TENANT):
            raise ValueError(
                "This app has one community. Omit 'tenant' from course_completed,"
                " or register a function with '@credly.tenant'."
            )

        return DEFAULT_TENANT

    if given is None and has_request_context():
        given = state.name_tenant()

    if given is None:
        raise ValueError(
            "The signal names no community. Outside a request, or if"
            " '@credly.tenant' returns None, send course_completed.send(app, …,"
            " tenant=…)."
        )

    return read_tenant(given)


def read(
    state: AppState,
    given: dict[str, t.Any],
    *,
    raises: tuple[type[Exception], ...] = (),
) -> Completion:
    """Check what was sent.

    :param raises: Errors that rise where a field of the member's has them. Otherwise
        it counts as missing.
    :raises TypeError: Something is missing, or there is too much.
    :raises ValueError: A value cannot be right.
    """
    return read_completion(
        **{name: value for name, value in given.items() if name not in _FOR_US},
        tenant=tenant_of(state, given.get("tenant")),
        raises=raises,
    )


def read_withdrawn(state: AppState, given: dict[str, t.Any]) -> Withdrawal:
    """Check what was sent of a completion that was withdrawn.

    :raises TypeError: There is too much.
    :raises ValueError: Something is missing, or cannot be right.
    """
    return read_withdrawal(
        **{name: value for name, value in given.items() if name not in _FOR_US},
        tenant=tenant_of(state, given.get("tenant")),
    )


_FOR_US = ("session", "tenant")
"""Names that say how to record it, or whose it is."""
