"""What each address of the simulated Credly answers."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import json
import re
import typing as t

from . import access
from . import listing
from . import lists
from . import serving
from . import shapes
from . import writing
from .organization import Organization
from .record import Kind
from .rules import Refusal
from .rules import Row
from .serving import Call
from .serving import data_reply
from .serving import json_reply
from .serving import Reply

_TEMPLATES = "badge_templates"
_BADGES = "issued_badges"
_SEARCH = "high_volume_issued_badge_search"


def answer(organization: Organization, call: Call, route: Route | None) -> Reply:
    """Answer a request as Credly would."""
    try:
        if route is None:
            raise Refusal(404, "Not found")

        _admit(organization, call, route)
        return route.answer(organization, call, **route.found)
    except Refusal as refusal:
        return _refuse(organization, refusal)


def _admit(organization: Organization, call: Call, route: Route) -> None:
    access.check_query(organization, call)

    if route.kind != "token":
        access.check_media_types(call)
        access.check_token(organization, call, route.scope)
        access.check_organization(organization, route.found.get("org"))


def _refuse(organization: Organization, refusal: Refusal) -> Reply:
    if refusal.body is None:
        body = refusal.envelope(organization.error_shape)
        return json_reply(refusal.status, body, refusal.headers)

    kind, text = refusal.body
    headers = {"Content-Type": kind} if text else {}
    return Reply(refusal.status, text.encode(), headers | refusal.headers)


# Organization and templates


def _organizations(organization: Organization, call: Call) -> Reply:
    return listing.page(organization, call, [_organization_row(organization)])


def _organization(organization: Organization, call: Call, org: str) -> Reply:
    return data_reply(_organization_row(organization))


def _organization_row(organization: Organization) -> Row:
    if organization.organization_status != 200:
        raise Refusal(organization.organization_status, "You are not authorized.")

    return organization.row()


def _templates(organization: Organization, call: Call, org: str) -> Reply:
    rows = [shapes.shown_template(row) for row in organization.book.templates.values()]
    filters = lists.TEMPLATE_FILTERS
    return listing.answer(organization, call, rows, filters, lists.TEMPLATE_SORTS)


def _template(organization: Organization, call: Call, org: str, id: str) -> Reply:
    if (row := organization.book.templates.get(id.lower())) is None:
        raise Refusal(404, "Badge template not found")

    return data_reply(shapes.shown_template(row))


# Badges


def _badges(organization: Organization, call: Call, org: str) -> Reply:
    rows = [entry.row for entry in listing.shown_badges(organization)]
    filters = listing.badge_filters(organization)
    return listing.answer(organization, call, rows, filters, lists.BADGE_SORTS)


def _badge(organization: Organization, call: Call, org: str, id: str) -> Reply:
    return data_reply(writing.find(organization, id).row)


def write_late(
    organization: Organization, call: Call, route: Route, body: object, delay: float
) -> None:
    """Write what is asked for some seconds later, if the request is let in."""
    try:
        _admit(organization, call, route)
    except Refusal:
        return

    if not what_is_written(organization, route, body):
        return

    def write(at: float) -> None:
        writing.write(organization, route.kind, route.found, body, at)

    organization.book.agenda.add(organization.clock() + delay, write)


# Reading a request


def read_body(call: Call, kind: Kind) -> object | None:
    """Read a body for the record, without judging it."""
    if kind == "token":
        return dict(access.read_form(call.body))

    try:
        return t.cast(object, json.loads(call.body))
    except ValueError:
        return None


def what_is_written(
    organization: Organization, route: Route | None, body: object
) -> list[str]:
    """Get all that a request would write, in words."""
    if route is None:
        return []

    return writing.what_is_written(organization, route.kind, route.found, body)


# The addresses


@dataclasses.dataclass(frozen=True)
class Route:
    """An address and what answers there.

    :param found: The parts of the path that were called.
    """

    kind: Kind
    method: str
    pattern: re.Pattern[str]
    answer: cabc.Callable[..., Reply]
    scope: str | None = None
    side: serving.Side = "api"
    found: dict[str, str] = dataclasses.field(default_factory=dict)


def find_route(call: Call) -> Route | None:
    """Get what is asked for. ``None`` if there is no such address."""
    path = call.path.removesuffix("/")

    for route in _ROUTES:
        if call.method != route.method or call.side not in (route.side, "both"):
            continue

        if (match := route.pattern.fullmatch(path)) is not None:
            return dataclasses.replace(route, found=match.groupdict())

    return None


def _route(
    kind: Kind,
    method: str,
    path: str,
    answer: cabc.Callable[..., Reply],
    scope: str | None = None,
) -> Route:
    pattern = re.sub(r"<(\w+)>", r"(?P<\1>[^/]+)", f"/v1/organizations{path}")
    return Route(kind, method, re.compile(pattern), answer, scope)


_ROUTES = (
    Route("token", "POST", re.compile("/oauth/token"), access.give_token, side="token"),
    _route("organization", "GET", "", _organizations),
    _route("organization", "GET", "/<org>", _organization),
    _route("templates", "GET", "/<org>/badge_templates", _templates, _TEMPLATES),
    _route("template", "GET", "/<org>/badge_templates/<id>", _template, _TEMPLATES),
    _route("issue", "POST", "/<org>/badges", writing.issue, _BADGES),
    _route("batch", "POST", "/<org>/badges/batch", writing.issue_many, _BADGES),
    _route("look-up", "GET", "/<org>/badges", _badges, _BADGES),
    _route("search", "GET", f"/<org>/{_SEARCH}", listing.search, _BADGES),
    _route("badge", "GET", "/<org>/badges/<id>", _badge, _BADGES),
    _route("revoke", "PUT", "/<org>/badges/<id>/revoke", writing.revoke, _BADGES),
    _route("replace", "POST", "/<org>/badges/<id>/replace", writing.replace, _BADGES),
)
