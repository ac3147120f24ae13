"""Who may use the pages, and from where."""

from __future__ import annotations

import logging
import re
import typing as t

from flask import g
from flask import has_request_context
from flask import request
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from ..catalog import clean
from ..ledger.audit import COMMAND_LINE
from ..ledger.audit import WORKER
from ..ledger.transaction import end_hosts_transaction
from ..state import get_state
from .community import here

logger = logging.getLogger("flask_credly")


_ROLE = "credly_role"

_ADDRESS = re.compile("([^\\s@“\"'<(]?)[^\\s@“]*@")


def check_visitor(*, to_look: bool) -> bool | Response | HTTPException:
    """Ask the host whether the visitor is an admin, and if not, a viewer. A response,
    or what the hook has called ``abort()`` with, is the refusal as the host wants it.

    :param to_look: Whether a viewer may do what is asked for.
    """
    community = here()
    allowed = _check("is_admin", community.is_admin)
    _note_role("admin" if allowed is True else "")

    if allowed is True or community.is_viewer is None:
        return allowed

    if _check("is_viewer", community.is_viewer) is not True:
        return allowed

    _note_role("viewer")
    return to_look


def _note_role(role: str) -> None:
    # A context of the host's may be around several requests.
    setattr(g, _ROLE, (_this_request(), role))


def _this_request() -> object:
    return request._get_current_object() if has_request_context() else None  # type: ignore[attr-defined]


def may_act() -> bool:
    """Whether the visitor is an admin, and no viewer."""
    return bool(g.get(_ROLE) == (_this_request(), "admin"))


def check_revoker() -> bool | Response | HTTPException:
    """Ask the host whether an admin may take back what was issued."""
    hook = here().may_revoke
    return hook is None or _check("may_revoke", hook)


def may_revoke() -> bool:
    """Whether the visitor may take back what was issued."""
    return may_act() and check_revoker() is True


def mask(text: str) -> str:
    """Take from a text what only an admin may read: all of an e-mail address but its
    first letter and its host.
    """
    return text if may_act() else _ADDRESS.sub(r"\1…@", text)


def check_operator() -> bool | Response | HTTPException:
    """Ask the host whether the visitor may see all communities, in the same way."""
    hook = get_state().is_operator
    assert hook is not None  # without it there is no such page
    return _check("is_operator", hook)


def _check(name: str, hook: t.Callable[[], object]) -> bool | Response | HTTPException:
    try:
        allowed = hook()
    except HTTPException as e:
        return e
    except Exception:
        logger.exception(
            "The @credly.%s hook failed. Access was denied.",
            name,
            extra={"credly_event": "hook_failed", "credly_hook": name},
        )
        return False

    # What merely equals or stands for True is neither of these.
    if allowed is True or allowed is False:
        return allowed

    if isinstance(allowed, Response):
        return allowed

    if allowed is not None:
        logger.error(
            "The @credly.%s hook must return True, False or a response, not %s."
            " Access was denied.",
            name,
            type(allowed).__name__,
            extra={"credly_event": "hook_failed", "credly_hook": name},
        )

    return False


def is_let_in() -> bool:
    """Whether the current visitor may look at the pages."""
    try:
        return check_visitor(to_look=True) is True
    except HTTPException:
        return False  # there is no community here


def is_foreign() -> bool:
    """Whether a page of another origin has sent this request, as far as the browser
    says. Sibling subdomains are other origins.
    """
    if site := request.headers.get("Sec-Fetch-Site"):
        # "none": the address was typed, or is a bookmark.
        return site not in ("same-origin", "none")

    # Browsers that do not know that header, and plain HTTP.
    if (origin := request.headers.get("Origin")) is None:
        return False

    # No form can make this one up. Only some proxies pass the other one on.
    forwarded = request.headers.get("X-Forwarded-Host", "").split(",")
    hosts = {request.host, *(each.strip() for each in forwarded)}
    # "null", of a frame that is fenced in, has none.
    return origin.partition("://")[2] not in hosts - {""}


def is_opened() -> bool:
    """Whether a page is opened in a tab, by a link for example, and not put into
    another one as a frame, a picture or by a script.
    """
    return (
        request.headers.get("Sec-Fetch-Mode") == "navigate"
        and request.headers.get("Sec-Fetch-Dest") == "document"
    )


def actor() -> str:
    """Ask the host who is at work. Empty: unknown, also where the hook fails; what the
    admin does goes on.
    """
    state = here()

    if state.name_actor is None:
        return ""

    try:
        name = state.name_actor()
    except Exception:
        logger.exception(
            "The @credly.actor hook failed. The audit entry has no actor.",
            extra={"credly_event": "hook_failed", "credly_hook": "actor"},
        )
        # Its failed statement would spoil those of the host's layout.
        end_hosts_transaction(failed=True)
        return ""

    if name is not None and not isinstance(name, str):
        logger.error(
            "The @credly.actor hook must return a string or None, not %s. The"
            " audit entry has no actor.",
            type(name).__name__,
            extra={"credly_event": "hook_failed", "credly_hook": "actor"},
        )

    # Nobody passes for the command line or a worker.
    name = clean(name, 255)
    return "" if name in (COMMAND_LINE, WORKER) else name
