"""The blueprint: its routes, its guard, its headers."""

from __future__ import annotations

import logging
import mimetypes
import re
import typing as t

from flask import Blueprint
from flask import current_app
from flask import request
from flask import Response
from flask import send_from_directory
from flask.typing import ResponseReturnValue
from flask_wtf.csrf import CSRFError
from markupsafe import Markup
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import ProgrammingError
from werkzeug.exceptions import HTTPException
from werkzeug.routing import IntegerConverter
from werkzeug.routing import Map
from werkzeug.routing import PathConverter

from .. import assets
from ..catalog import clean
from ..i18n import gettext
from ..i18n import gettext_noop
from ..ledger import audit
from ..ledger import tables
from ..ledger.transaction import end_hosts_transaction
from ..settings import Settings
from ..state import get_state
from . import actions
from . import activity
from . import backfills
from . import badge
from . import badges
from . import communities
from . import compare
from . import forms
from . import guard
from . import index
from . import log
from . import mapping_options
from . import mappings
from . import remove
from . import test_badge
from . import undo
from . import window
from . import withdrawn
from .query import MAX_ID
from .rendering import is_own_layout
from .rendering import render
from .rendering import render_page
from .rendering import tags
from .respond import is_ours
from .respond import respond
from .respond import show_expired
from .respond import wants_fragment

logger = logging.getLogger("flask_credly")

# No scripts or styles but our files, so that nothing a member or Credly wrote can run.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' https://*.credly.com data:; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

HEADERS = {
    "Cache-Control": "no-store, private",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
}

DENIED = gettext_noop("You do not have access to this page.")
FOREIGN = gettext_noop(
    "This request came from another site, so nothing was done. Open the page here"
    " and use its buttons."
)
NO_FORM = gettext_noop(
    "The form data is not valid. Nothing was changed. Reload the page and try again."
)

READING = {"GET", "HEAD", "OPTIONS"}

FORMS = ("", "application/x-www-form-urlencoded", "multipart/form-data")

# What was typed stays where it is.
IN_PLACE = {
    "HX-Retarget": "#credly-flash",
    "HX-Reswap": "innerHTML show:top",
    "HX-Reselect": "[role=alert]",
}

ROUTES: list[tuple[str, str, t.Callable[..., ResponseReturnValue]]] = [
    ("GET", "/", index.index),
    ("GET", "/credly", window.show),
    ("POST", "/credly", window.connect),
    ("GET", "/credly/connection", window.edit),
    ("GET", "/credly/banners", window.banners),
    ("POST", "/credly/unrecorded/<int:number>/dismiss", window.dismiss),
    ("POST", "/credly/test", window.test),
    ("POST", "/credly/pause", window.pause),
    ("POST", "/credly/resume", window.resume),
    ("POST", "/credly/templates", window.refresh_templates),
    ("GET", "/credly/mappings/new", mappings.new),
    ("POST", "/credly/mappings", mappings.add),
    ("GET", "/credly/mappings/<int:mapping_id>", mappings.edit_mapping),
    ("POST", "/credly/mappings/<int:mapping_id>", mappings.change),
    ("GET", "/credly/mappings/<int:mapping_id>/row", mappings.row),
    ("POST", "/credly/mappings/<int:mapping_id>/remove", mappings.remove_mapping),
    ("GET", "/credly/mappings/<int:mapping_id>/options", mapping_options.edit_options),
    (
        "POST",
        "/credly/mappings/<int:mapping_id>/options",
        mapping_options.change_options,
    ),
    ("GET", "/credly/mappings/<int:mapping_id>/test", test_badge.edit_test),
    ("POST", "/credly/mappings/<int:mapping_id>/test", test_badge.send_test),
    ("GET", "/credly/badges", badges.badges),
    ("GET", "/credly/badges.csv", badges.export_badges),
    ("GET", "/credly/badges/<int:issuance_id>", badge.show_badge),
    ("GET", "/credly/badges/<int:issuance_id>/row", badges.badge_row),
    ("POST", "/credly/badges/<int:issuance_id>/retry", badge.retry),
    ("POST", "/credly/badges/<int:issuance_id>/check", badge.check),
    ("GET", "/credly/badges/<int:issuance_id>/revoke", actions.edit_revoke),
    ("POST", "/credly/badges/<int:issuance_id>/revoke", actions.revoke),
    ("GET", "/credly/badges/<int:issuance_id>/correct", actions.edit_correction),
    ("POST", "/credly/badges/<int:issuance_id>/correct", actions.correct),
    ("GET", "/credly/badges/<int:issuance_id>/again", actions.edit_again),
    ("POST", "/credly/badges/<int:issuance_id>/again", actions.issue_again),
    ("GET", "/credly/withdrawn", withdrawn.confirm_withdrawn),
    ("POST", "/credly/withdrawn", withdrawn.decide_withdrawn),
    ("GET", "/credly/badges/retry", badges.confirm_retry),
    ("POST", "/credly/badges/retry", badges.retry_all),
    ("POST", "/credly/badges/retry/<int:run_id>/stop", badges.stop_retry),
    ("GET", "/credly/mappings/<int:mapping_id>/backfill", backfills.confirm_backfill),
    ("POST", "/credly/mappings/<int:mapping_id>/backfill", backfills.start_backfill),
    ("GET", "/credly/backfills/<int:run_id>", backfills.show_backfill),
    ("POST", "/credly/backfills/<int:run_id>/stop", backfills.stop_backfill),
    ("GET", "/credly/undo", undo.confirm_undo),
    ("POST", "/credly/undo", undo.start_undo),
    ("GET", "/credly/undo/<int:run_id>", undo.show_undo),
    ("GET", "/credly/undo/<int:run_id>.csv", undo.export_undo),
    ("POST", "/credly/undo/<int:run_id>/stop", undo.stop_undo),
    ("GET", "/credly/compare", compare.show_compare),
    ("POST", "/credly/compare", compare.start_compare),
    ("GET", "/credly/compare.csv", compare.export_compare),
    ("POST", "/credly/compare/<int:run_id>/stop", compare.stop_compare),
    ("GET", "/credly/compare/repair", compare.confirm_repair),
    ("POST", "/credly/compare/repair", compare.start_repair),
    ("GET", "/credly/errors", log.errors),
    ("GET", "/credly/errors.csv", log.export_errors),
    ("GET", "/credly/activity", activity.activity),
    ("GET", "/credly/activity.csv", activity.export_activity),
    ("GET", "/credly/remove", remove.confirm_remove),
    ("POST", "/credly/remove", remove.remove_integration),
]

OPERATORS = ("GET", "/credly/communities", communities.communities)
"""The one page that is not of one community, where the host says who may see it."""

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


# The same for everybody: the files, which the page that refuses needs too, and, where
# the host wants it, what a probe asks for.
FOR_EVERYBODY = {"credly.static", "credly.health"}


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


class _RowId(IntegerConverter):
    """A row's id. A number that none can have is an unknown address."""

    regex = r"\d{1,10}"

    def __init__(self, map: Map) -> None:
        super().__init__(map, max=MAX_ID)


# By names of our own: a host may have given the usual ones to converters of its own.
CONVERTERS = {"credly_int": _RowId, "credly_path": PathConverter}


def static(filename: str) -> Response:
    """Send a file of ours."""
    # The URL changes with the content.
    age = 365 * 86_400 if "v" in request.args else None
    response = send_from_directory(assets.STATIC, filename, max_age=age)
    # Whatever the host's class of responses makes of it.
    if kind := mimetypes.guess_type(filename)[0]:
        response.mimetype = kind

    return response


def make_blueprint(settings: Settings, *, for_operators: bool = False) -> Blueprint:
    """Make the blueprint for one application.

    :param for_operators: Whether to add the page of all communities.
    """
    blueprint = Blueprint("credly", __name__, url_prefix=settings.url_prefix)

    # First: the rules are read after it.
    blueprint.record(lambda setup: setup.app.url_map.converters.update(CONVERTERS))

    routes = [*ROUTES, ("GET", "/static/<path:filename>", static)]

    if for_operators:
        routes.append(OPERATORS)

    if settings.health:
        # Late: of use only here.
        from .health import health

        routes.append(("GET", "/credly/health", health))

    for method, path, view in routes:
        rule = re.sub("<(int|path):", r"<credly_\1:", path)
        blueprint.add_url_rule(
            rule, view_func=view, methods=[method], host=settings.host
        )

    blueprint.before_request(_guard)
    blueprint.after_request(_add_headers)
    blueprint.after_request(_tell_htmx_of_redirects)
    # A host that protects all its forms refuses before our guard is asked.
    blueprint.register_error_handler(
        CSRFError, lambda error: _refuse_visitor() or _expired(error)
    )

    for error in (OperationalError, ProgrammingError):
        blueprint.register_error_handler(error, _explain)

    # In the templates of the whole application.
    blueprint.add_app_template_global(index.card, "credly_card")
    blueprint.add_app_template_global(_member_badges, "credly_badges")
    blueprint.add_app_template_global(tags, "credly_assets")

    return blueprint


def _member_badges(member_id: str, **given: t.Any) -> Markup:
    # Late: many hosts show members nothing.
    from .member import badges

    return badges(member_id, **given)


def _guard() -> ResponseReturnValue | None:
    """Stand before every view, so that none has to look after itself: who asks, from
    where, with what, and whether it was meant.
    """
    if request.endpoint in FOR_EVERYBODY:
        return None

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


def _add_headers(response: Response) -> Response:
    if request.endpoint == "credly.static":
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        return response

    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)

    response.vary.update(["HX-Request", "HX-Boosted", "HX-History-Restore-Request"])

    if response.mimetype == "text/html" and is_own_layout():
        response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)

    return response


def _tell_htmx_of_redirects(response: Response) -> Response:
    # htmx would follow a redirect to the login and put that page into ours.
    if (
        "HX-Request" not in request.headers
        or not 300 <= response.status_code < 400
        or "Location" not in response.headers
        or is_ours(response)
    ):
        return response

    told = Response(status=401)
    # With all that it says besides, such as cookies.
    told.headers.extend(
        (name, value)
        for name, value in response.headers
        if name.lower() not in ("content-length", "content-type", "location")
    )
    told.headers["HX-Redirect"] = response.headers["Location"]
    told.call_on_close(response.close)
    return told


def _explain(error: DBAPIError) -> ResponseReturnValue:
    # It may be of a statement of the host's.
    end_hosts_transaction(failed=True)

    if not tables.explain(get_state().engine, error):
        raise error

    logger.error(tables.MISSING, extra={"credly_event": "tables_missing"})

    if wants_fragment():
        return respond(render("credly/_no_tables.html"), 503)

    return respond(render_page("credly/no_tables.html"), 503)


def _expired(error: CSRFError) -> ResponseReturnValue:
    reason = f"The form for {request.endpoint} was refused: {error.description}"
    _log_refusal("form", reason)

    return show_expired()
