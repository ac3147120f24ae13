"""The blueprint: its routes, its files, its headers. What else the pages need is loaded
by the first request for one.
"""

from __future__ import annotations

import mimetypes
import re
import typing as t

from flask import Blueprint
from flask import request
from flask import Response
from flask import send_from_directory
from flask.typing import ResponseReturnValue
from flask_wtf.csrf import CSRFError
from markupsafe import Markup
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import IntegrityError
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import ProgrammingError
from werkzeug.routing import IntegerConverter
from werkzeug.routing import Map
from werkzeug.routing import PathConverter

from .. import assets
from ..ledger.transaction import Unfit
from ..settings import Settings
from .query import MAX_ID

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

View = t.Callable[..., ResponseReturnValue]


def _page(name: str) -> View:
    """Make a view of one in :mod:`.pages`.

    :param name: Of the module there, and of the function in it.
    """
    module, _, function = name.partition(".")

    def view(**given: t.Any) -> ResponseReturnValue:
        from . import pages

        found: View = getattr(getattr(pages, module), function)
        return found(**given)

    # A host may know a view by them, as Flask-WTF and Flask-Limiter do.
    view.__name__ = view.__qualname__ = function
    view.__module__ = f"{__package__}.{module}"
    return view


ROUTES: list[tuple[str, str, View]] = [
    ("GET", "/", _page("index.index")),
    ("GET", "/credly", _page("window.show")),
    ("POST", "/credly", _page("window.connect")),
    ("GET", "/credly/connection", _page("window.edit")),
    ("GET", "/credly/banners", _page("window.banners")),
    ("POST", "/credly/unrecorded/<int:number>/dismiss", _page("window.dismiss")),
    ("POST", "/credly/test", _page("window.test")),
    ("POST", "/credly/pause", _page("window.pause")),
    ("POST", "/credly/resume", _page("window.resume")),
    ("POST", "/credly/templates", _page("window.refresh_templates")),
    ("GET", "/credly/mappings/new", _page("mappings.new")),
    ("POST", "/credly/mappings", _page("mappings.add")),
    ("GET", "/credly/mappings/<int:mapping_id>", _page("mappings.edit_mapping")),
    ("POST", "/credly/mappings/<int:mapping_id>", _page("mappings.change")),
    ("GET", "/credly/mappings/<int:mapping_id>/row", _page("mappings.row")),
    (
        "POST",
        "/credly/mappings/<int:mapping_id>/remove",
        _page("mappings.remove_mapping"),
    ),
    (
        "GET",
        "/credly/mappings/<int:mapping_id>/options",
        _page("mapping_options.edit_options"),
    ),
    (
        "POST",
        "/credly/mappings/<int:mapping_id>/options",
        _page("mapping_options.change_options"),
    ),
    ("GET", "/credly/mappings/<int:mapping_id>/test", _page("test_badge.edit_test")),
    ("POST", "/credly/mappings/<int:mapping_id>/test", _page("test_badge.send_test")),
    ("GET", "/credly/badges", _page("badges.badges")),
    ("GET", "/credly/badges.csv", _page("badges.export_badges")),
    ("GET", "/credly/badges/<int:issuance_id>", _page("badge.show_badge")),
    ("GET", "/credly/badges/<int:issuance_id>/row", _page("badges.badge_row")),
    ("POST", "/credly/badges/<int:issuance_id>/retry", _page("badge.retry")),
    ("POST", "/credly/badges/<int:issuance_id>/check", _page("badge.check")),
    ("GET", "/credly/badges/<int:issuance_id>/revoke", _page("actions.edit_revoke")),
    ("POST", "/credly/badges/<int:issuance_id>/revoke", _page("actions.revoke")),
    (
        "GET",
        "/credly/badges/<int:issuance_id>/correct",
        _page("actions.edit_correction"),
    ),
    ("POST", "/credly/badges/<int:issuance_id>/correct", _page("actions.correct")),
    ("GET", "/credly/badges/<int:issuance_id>/again", _page("actions.edit_again")),
    ("POST", "/credly/badges/<int:issuance_id>/again", _page("actions.issue_again")),
    ("GET", "/credly/withdrawn", _page("withdrawn.confirm_withdrawn")),
    ("POST", "/credly/withdrawn", _page("withdrawn.decide_withdrawn")),
    ("GET", "/credly/badges/retry", _page("badges.confirm_retry")),
    ("POST", "/credly/badges/retry", _page("badges.retry_all")),
    ("POST", "/credly/badges/retry/<int:run_id>/stop", _page("badges.stop_retry")),
    (
        "GET",
        "/credly/mappings/<int:mapping_id>/backfill",
        _page("backfills.confirm_backfill"),
    ),
    (
        "POST",
        "/credly/mappings/<int:mapping_id>/backfill",
        _page("backfills.start_backfill"),
    ),
    ("GET", "/credly/backfills/<int:run_id>", _page("backfills.show_backfill")),
    ("POST", "/credly/backfills/<int:run_id>/stop", _page("backfills.stop_backfill")),
    ("GET", "/credly/undo", _page("undo.confirm_undo")),
    ("POST", "/credly/undo", _page("undo.start_undo")),
    ("GET", "/credly/undo/<int:run_id>", _page("undo.show_undo")),
    ("GET", "/credly/undo/<int:run_id>.csv", _page("undo.export_undo")),
    ("POST", "/credly/undo/<int:run_id>/stop", _page("undo.stop_undo")),
    ("GET", "/credly/compare", _page("compare.show_compare")),
    ("POST", "/credly/compare", _page("compare.start_compare")),
    ("GET", "/credly/compare.csv", _page("compare.export_compare")),
    ("POST", "/credly/compare/<int:run_id>/stop", _page("compare.stop_compare")),
    ("GET", "/credly/compare/repair", _page("compare.confirm_repair")),
    ("POST", "/credly/compare/repair", _page("compare.start_repair")),
    ("GET", "/credly/errors", _page("log.errors")),
    ("GET", "/credly/errors.csv", _page("log.export_errors")),
    ("GET", "/credly/activity", _page("activity.activity")),
    ("GET", "/credly/activity.csv", _page("activity.export_activity")),
    ("GET", "/credly/remove", _page("remove.confirm_remove")),
    ("POST", "/credly/remove", _page("remove.remove_integration")),
    ("GET", "/credly/removal", _page("remove.show_removal")),
]

OPERATORS = ("GET", "/credly/communities", _page("communities.communities"))
"""The one page that is not of one community, where the host says who may see it."""

# The same for everybody: the files, which the page that refuses needs too, and, where
# the host wants it, what a probe asks for.
FOR_EVERYBODY = {"credly.static", "credly.health"}


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
    blueprint.register_error_handler(CSRFError, _refuse_token)

    for error in (OperationalError, ProgrammingError, IntegrityError, Unfit):
        blueprint.register_error_handler(error, _explain)

    # In the templates of the whole application.
    blueprint.add_app_template_global(_card, "credly_card")
    blueprint.add_app_template_global(_member_badges, "credly_badges")
    blueprint.add_app_template_global(_assets, "credly_assets")

    return blueprint


def _card() -> Markup:
    from .index import card

    return card()


def _assets() -> Markup:
    from .rendering import tags

    return tags()


def _member_badges(member_id: str, **given: t.Any) -> Markup:
    # Late: many hosts show members nothing.
    from .member import badges

    return badges(member_id, **given)


def _guard() -> ResponseReturnValue | None:
    if request.endpoint in FOR_EVERYBODY:
        return None

    from . import pages

    return pages.check()


def _refuse_token(error: CSRFError) -> ResponseReturnValue:
    from . import pages

    return pages.refuse_token(error)


def _explain(error: DBAPIError | Unfit) -> ResponseReturnValue:
    from . import pages

    return pages.explain(error)


def _add_headers(response: Response) -> Response:
    if request.endpoint == "credly.static":
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        return response

    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)

    response.vary.update(["HX-Request", "HX-Boosted", "HX-History-Restore-Request"])

    if response.mimetype == "text/html":
        from .rendering import is_own_layout

        if is_own_layout():
            response.headers.setdefault(
                "Content-Security-Policy", CONTENT_SECURITY_POLICY
            )

    return response


def _tell_htmx_of_redirects(response: Response) -> Response:
    # htmx would follow a redirect to the login and put that page into ours.
    if (
        "HX-Request" not in request.headers
        or not 300 <= response.status_code < 400
        or "Location" not in response.headers
    ):
        return response

    from .respond import is_ours

    if is_ours(response):
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
