"""All pages, and what each request for one passes before and after its view.

Loaded by the first such request: a process that serves none does without.
"""

from __future__ import annotations

import logging

import sqlalchemy as sa
from flask import current_app
from flask import request
from flask.typing import ResponseReturnValue
from flask_wtf.csrf import CSRFError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import HTTPException

from ..catalog import clean
from ..i18n import gettext
from ..i18n import gettext_noop
from ..ledger import audit
from ..ledger import fitness
from ..ledger import tables
from ..ledger.transaction import end_hosts_transaction
from ..ledger.transaction import passes
from ..ledger.transaction import Unfit
from ..state import get_state
from . import actions as actions
from . import activity as activity
from . import backfills as backfills
from . import badge as badge
from . import badges as badges
from . import communities as communities
from . import compare as compare
from . import forms
from . import guard
from . import index as index
from . import log as log
from . import mapping_options as mapping_options
from . import mappings as mappings
from . import remove as remove
from . import test_badge as test_badge
from . import undo as undo
from . import window as window
from . import withdrawn as withdrawn
from .rendering import render
from .rendering import render_page
from .respond import respond
from .respond import show_expired
from .respond import UNFIT
from .respond import wants_fragment

logger = logging.getLogger("flask_credly")

DENIED = gettext_noop("You do not have access to this page.")
FOREIGN = gettext_noop(
    "This request came from another site, so nothing was done. Open the page here"
    " and use its buttons."
)
NO_FORM = gettext_noop(
    "The form data is not valid. Nothing was changed. Reload the page and try again."
)

NO_TABLES = gettext_noop(
    "The database is missing tables or columns of the Credly integration. Ask the"
    " developer of this site to run the migrations (flask db upgrade). The command"
    " flask credly doctor shows which are missing."
)

READING = {"GET", "HEAD", "OPTIONS"}

FORMS = ("", "application/x-www-form-urlencoded", "multipart/form-data")

# Read, but noted in the admin's name, or a burden to the host: only by our own links.
ON_PURPOSE = {
    f"credly.{view.__name__}"
    for view in (
        activity.export_activity,
        backfills.confirm_backfill,
        badges.export_badges,
        compare.export_compare,
        log.export_errors,
        undo.export_undo,
    )
}


# What a viewer may look at. Nothing that is there to change something, and no export,
# which is noted in the trail and holds addresses.
FOR_VIEWERS = {
    f"credly.{view.__name__}"
    for view in (
        activity.activity,
        backfills.show_backfill,
        badge.show_badge,
        badges.badge_row,
        badges.badges,
        compare.show_compare,
        index.index,
        log.errors,
        remove.show_removal,
        undo.show_undo,
        window.banners,
        window.show,
    )
}


# What takes back what was issued: only for whom "may_revoke" lets in besides.
REVOKING = {
    f"credly.{view.__name__}"
    for view in (
        actions.correct,
        actions.edit_again,
        actions.edit_correction,
        actions.edit_revoke,
        actions.issue_again,
        actions.revoke,
        undo.confirm_undo,
        undo.start_undo,
        undo.stop_undo,
        withdrawn.confirm_withdrawn,
        withdrawn.decide_withdrawn,
    )
}

# What was typed stays where it is.
IN_PLACE = {
    "HX-Retarget": "#credly-flash",
    "HX-Reswap": "innerHTML show:top",
    "HX-Reselect": "[role=alert]",
}


def check() -> ResponseReturnValue | None:
    """Stand before every view, so that none has to look after itself: who asks, from
    where, with what, and whether it was meant.
    """
    if (refusal := _refuse_visitor()) is not None or not _writes():
        return refusal

    # Read here, where what goes wrong is not logged with what was typed.
    if (status := _read_form()) != 200:
        _log_refusal(
            "form", f"The request to {request.endpoint} did not contain form data."
        )
        return _refuse(gettext(NO_FORM), status)

    try:
        forms.check_token()
    except CSRFError as e:
        return _expired(e)

    return None


def _refuse_visitor() -> ResponseReturnValue | None:
    """Refuse who is no admin, or a viewer who wants more than to look, and what an
    admin's browser was made to send.
    """
    try:
        if request.endpoint == "credly.communities":
            allowed = guard.check_operator()
        else:
            allowed = guard.check_visitor(to_look=request.endpoint in FOR_VIEWERS)

            if allowed is True and request.endpoint in REVOKING:
                allowed = guard.check_revoker()
    except HTTPException as e:
        # The community or the page is not there.
        return current_app.handle_http_exception(e)

    if allowed is not True:
        _log_refusal("access", f"Access to {request.endpoint} was denied.")

        if allowed is False:
            return _refuse(gettext(DENIED), 403, let_in=guard.may_act())

        # Handled here and not raised: also in the handler of an error, and where a
        # host traps these.
        if isinstance(allowed, HTTPException):
            return current_app.handle_http_exception(allowed)

        return allowed

    if not guard.is_foreign() or guard.is_opened() and not _leaves_traces():
        return None

    origin = clean(request.headers.get("Origin"), 255) or "another site"
    reason = (
        f"Refused a request for {request.endpoint} from {origin}, because this"
        f" site is {request.host}. If both are the same site, configure its proxy"
        " to pass the Host header on."
    )
    _log_refusal("access", reason)
    return _refuse(gettext(FOREIGN), 403)


def _writes() -> bool:
    # By the rule, which no header and no field of a request can change.
    rule = request.url_rule
    assert rule is not None and rule.methods is not None
    # Flask answers these by itself.
    automatic = getattr(rule, "provide_automatic_options", False)

    if request.method == "OPTIONS" and automatic:
        return False

    return not rule.methods <= READING


def _leaves_traces() -> bool:
    return _writes() or request.endpoint in ON_PURPOSE


def _read_form() -> int:
    if request.mimetype not in FORMS:
        return 400

    try:
        return 400 if request.files else 200
    except HTTPException as e:
        return e.code or 400


def _refuse(text: str, status: int, *, let_in: bool = True) -> ResponseReturnValue:
    name = "_denied" if wants_fragment() else "denied"
    make = render if wants_fragment() else render_page
    html = make(f"credly/{name}.html", text=text, status=status, let_in=let_in)
    return respond(html, status, IN_PLACE if wants_fragment() else None)


def _log_refusal(action: str, message: str) -> None:
    # Not in the table: anybody could fill that up.
    audit.logger.info(
        message,
        extra={
            "credly_actor": "",
            "credly_action": action,
            "credly_target": request.endpoint,
            "credly_outcome": "refused",
        },
    )


def explain(error: DBAPIError | Unfit) -> ResponseReturnValue:
    """Say that tables of ours are missing, or that the database does not do what is
    needed, where that is what an error comes from.
    """
    # It may be of a statement of the host's.
    end_hosts_transaction(failed=True)
    engine = get_state().engine

    if (misfit := _find_misfit(engine, error)) is not None:
        logger.error("%s %s", *misfit, extra={"credly_event": "database_unfit"})
        text = gettext(UNFIT)
    elif isinstance(error, DBAPIError) and tables.explain(engine, error):
        logger.error(tables.MISSING, extra={"credly_event": "tables_missing"})
        text = gettext(NO_TABLES)
    else:
        raise error

    name = "_no_database" if wants_fragment() else "no_database"
    make = render if wants_fragment() else render_page
    return respond(make(f"credly/{name}.html", text=text), 503)


def _find_misfit(engine: sa.Engine, error: DBAPIError | Unfit) -> fitness.Misfit | None:
    # Who was only late, or was cut off, finds the database as it should be.
    if isinstance(error, DBAPIError) and passes(error):
        return None

    try:
        return fitness.examine(engine)
    except SQLAlchemyError:
        return None


def refuse_token(error: CSRFError) -> ResponseReturnValue:
    """Answer a form without a valid token, unless its visitor is refused anyway."""
    return _refuse_visitor() or _expired(error)


def _expired(error: CSRFError) -> ResponseReturnValue:
    reason = f"The form for {request.endpoint} was refused: {error.description}"
    _log_refusal("form", reason)

    return show_expired()
