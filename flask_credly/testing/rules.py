"""What Credly refuses, and what its rows and answers look like. Keeps no state."""

from __future__ import annotations

import collections.abc as cabc
import copy
import dataclasses
import datetime as dt
import re
import typing as t
import uuid

Row = dict[str, t.Any]

FUTURE_LIMIT = dt.timedelta(minutes=5)
STATES = ("active", "archived", "draft")
SCOPES = (
    "authorization_tokens",
    "badge_templates",
    "events",
    "invitations",
    "issued_badges",
    "memberships",
    "recommendations",
    "workforce",
)
LOCALES = ("en fr de ko ja zh-CN pt es-ES es-US fr-CA pt-BR").split()
BEHAVIORS = ("replace", "allow", "deny")

REQUIRED_FIELDS = (
    "recipient_email",
    "issued_to_first_name",
    "issued_to_last_name",
    "badge_template_id",
    "issued_at",
)
_TEXT_FIELDS = (
    "issued_to_middle_name",
    "issuer_earner_id",
    "country_name",
    "state_or_province",
)
_KNOWN_FIELDS = {
    *REQUIRED_FIELDS,
    *_TEXT_FIELDS,
    "locale",
    "suppress_badge_notification_email",
    "expires_at",
    "evidence",
    "duplicate_behavior",
    "issuer_earner_group",
}

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_EMAIL = re.compile(r"[^@\s,;|<>]+@[^@\s,;|<>.]+(\.[^@\s,;|<>.]+)+")
_MOMENT = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d(?:\.\d{1,6})?) ?(Z|[+-]\d\d:?\d\d)"
)


class Refusal(Exception):
    """An answer that is not a success.

    :param status: The HTTP status.
    :param message: The sentence in ``data.message``.
    :param errors: Pairs of attribute and message, for ``data.errors``.
    :param headers: Headers to send along.
    :param body: The body and its content type, if it is not the error envelope.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        errors: cabc.Sequence[tuple[str, str]] = (),
        headers: cabc.Mapping[str, str] | None = None,
        body: tuple[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.errors = errors
        self.headers = dict(headers or {})
        self.body = body

    def envelope(self, shape: str) -> Row:
        """Get the JSON body.

        :param shape: ``"message"`` leaves ``errors`` out; ``"list"`` and
            ``"string"`` say what its ``messages`` are.
        """
        data: Row = {"message": self.message}

        if self.errors and shape != "message":
            data["errors"] = [
                {
                    "attribute": attribute,
                    "attribute_label": _label(attribute),
                    "messages": [text] if shape == "list" else text,
                }
                for attribute, text in self.errors
            ]

        return {"data": data, "metadata": None}


@dataclasses.dataclass(frozen=True)
class Order:
    """The checked body of an issue request."""

    template_id: str
    email: str
    first_name: str
    last_name: str
    issued_at: dt.datetime
    earner_id: str | None
    behavior: str | None
    expires_at: dt.datetime | None
    options: Row


def is_uuid(value: str) -> bool:
    return _UUID.fullmatch(value) is not None


def same_email(one: str, other: str) -> bool:
    return one.casefold() == other.casefold()


def stamp(moment: dt.datetime) -> str:
    """Write a time as Credly does: UTC, milliseconds, ``Z``."""
    text = moment.astimezone(dt.UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def unknown_fields(body: object) -> list[str]:
    """Get the names in an issue body that Credly does not document."""
    return sorted(set(body) - _KNOWN_FIELDS) if isinstance(body, dict) else []


# Reading an issue request


def read_order(
    body: object, templates: cabc.Mapping[str, Row], now: dt.datetime
) -> Order:
    """Check the body of an issue request.

    :param body: The decoded JSON.
    :param templates: The organization's templates by id.
    :param now: The time of the request, aware.
    :raises Refusal: If Credly would not issue this badge.
    """
    if not isinstance(body, dict):
        raise Refusal(400, "The request body must be a JSON object.")

    _check_template(body.get("badge_template_id"), templates)
    errors = [*_check_required(body), *_check_optional(body)]
    issued_at = read_moment(body["issued_at"]) if _filled(body, "issued_at") else None

    if issued_at is not None and issued_at > now + FUTURE_LIMIT:
        errors.append(("issued_at", "can't be in the future"))

    if errors or issued_at is None:
        text = ", ".join(f"{_label(name)} {message}" for name, message in errors)
        raise Refusal(422, f"Validation failed: {text}", errors=errors)

    return Order(
        template_id=body["badge_template_id"].lower(),
        email=body["recipient_email"],
        first_name=body["issued_to_first_name"].strip(),
        last_name=body["issued_to_last_name"].strip(),
        issued_at=issued_at,
        earner_id=body.get("issuer_earner_id") or None,
        behavior=body.get("duplicate_behavior"),
        expires_at=read_expiry(body.get("expires_at")),
        options=body,
    )


def read_moment(text: str) -> dt.datetime | None:
    """Read a time with an explicit offset. ``None`` if it is anything else."""
    if (match := _MOMENT.fullmatch(text)) is None:
        return None

    day, time, offset = match.groups()

    try:
        return dt.datetime.fromisoformat(f"{day}T{time}{offset}")
    except ValueError:
        return None


def read_expiry(value: object) -> dt.datetime | None:
    """Read ``expires_at``, a time or a date. ``None`` if there is no such time."""
    if not isinstance(value, str):
        return None

    if re.fullmatch(r"\d{4}-\d\d-\d\d", value):
        value += "T00:00:00Z"

    return read_moment(value)


def _check_template(template_id: object, templates: cabc.Mapping[str, Row]) -> None:
    key = template_id.lower() if isinstance(template_id, str) else ""

    if (template := templates.get(key)) is None:
        shown = "" if template_id is None else template_id
        raise Refusal(422, f"Invalid or missing Badge Template ID: {shown}")

    if (state := template["state"]) != "active":
        raise Refusal(422, f"This badge template is {state} and cannot be issued.")


def _check_required(body: Row) -> cabc.Iterator[tuple[str, str]]:
    for name in REQUIRED_FIELDS:
        value = body.get(name)

        if value is None or (isinstance(value, str) and not value.strip()):
            yield name, "can't be blank"
        elif not isinstance(value, str):
            yield name, "must be a string"
        elif len(value) > 255:
            yield name, "is too long (maximum is 255 characters)"
        elif name == "recipient_email" and not _EMAIL.fullmatch(value):
            yield name, "is invalid"
        elif name == "issued_at" and read_moment(value) is None:
            yield name, "is invalid"


def _check_optional(body: Row) -> cabc.Iterator[tuple[str, str]]:
    for name in _TEXT_FIELDS:
        value = body.get(name)

        if value is not None and not isinstance(value, str):
            yield name, "must be a string"
        elif value and len(value) > 255:
            yield name, "is too long (maximum is 255 characters)"

    checks: dict[str, cabc.Callable[[t.Any], bool]] = {
        "locale": lambda value: value in LOCALES,
        "suppress_badge_notification_email": lambda value: isinstance(value, bool),
        "duplicate_behavior": lambda value: value in BEHAVIORS,
        "evidence": _is_evidence,
        "issuer_earner_group": lambda value: isinstance(value, dict),
        "expires_at": lambda value: value is False or read_expiry(value) is not None,
    }

    for name, passes in checks.items():
        if body.get(name) is not None and not passes(body[name]):
            yield name, "is invalid"


def _is_evidence(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict) and isinstance(item.get("type"), str) for item in value
    )


def _filled(body: Row, name: str) -> bool:
    return isinstance(body.get(name), str)


def _label(attribute: str) -> str:
    return attribute.replace("_", " ").capitalize()


# Rows


def template_row(
    *,
    id: str,
    name: str,
    state: str,
    allow_duplicate_badges: bool,
    image: bool,
    organization: Row,
    now: dt.datetime,
    unknown_keys: bool,
) -> Row:
    """Make a row of the template list.

    :param unknown_keys: Add keys that no client can know.
    """
    picture = {"id": str(uuid.uuid4()), "url": f"https://images.credly.com/{id}.png"}
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    row: Row = {
        "id": id,
        "name": name,
        "description": f"Awarded for {name}.",
        "state": state,
        "public": True,
        "visibility": "public",
        "image": picture if image else None,
        "image_url": picture["url"] if image else None,
        "url": f"https://badges.example.org/badges/{id}",
        "vanity_slug": slug,
        "global_activity_url": None,
        "level": None,
        "cost": None,
        "time_to_earn": None,
        "type_category": None,
        "skills": [],
        "reporting_tags": [],
        "allow_duplicate_badges": allow_duplicate_badges,
        "lock_badge_state": False,
        "recipient_type": "User",
        "badges_count": 0,
        "get_issue_count": 0,
        "certification": False,
        "criteria_url": None,
        "criteria_url_name": None,
        "printing_disabled": False,
        "record_to_blockchain": False,
        "send_expiring_badge_notifications": False,
        "show_badge_lmi": True,
        "show_skill_tag_links": True,
        "alignments": [],
        "recommendations": [],
        "required_badge_templates": [],
        "badge_template_activities": [],
        "owner": organization,
        "state_updated_at": stamp(now),
        "created_at": stamp(now),
        "updated_at": stamp(now),
    }

    if unknown_keys:
        row["default_expires_at_type"] = None
        row["added_without_notice"] = {"nested": [1, None, True]}

    return row


def organization_row(id: str, name: str) -> Row:
    """Make the organization as it appears as owner and issuer."""
    return {
        "type": "Organization",
        "id": id,
        "name": name,
        "url": f"https://badges.example.org/organizations/{id}",
        "vanity_url": "https://badges.example.org/org/example-academy",
        "vanity_slug": "example-academy",
        "verified": False,
        "viewable": True,
        "enable_blockchain": False,
    }


def shown_template(template: Row) -> Row:
    """Get a template as the list shows it: a draft has no image."""
    if template["state"] != "draft":
        return template

    return template | {"image": None, "image_url": None}


def badge_row(order: Order, template: Row, now: dt.datetime) -> Row:
    """Make a new badge, pending."""
    id = str(uuid.uuid4())
    expires = order.expires_at and order.expires_at.astimezone(dt.UTC)
    embedded = copy.deepcopy(shown_template(template))
    embedded.pop("reporting_tags")

    return {
        "id": id,
        "state": "pending",
        "issued_to": f"{order.first_name} {order.last_name}",
        "issued_to_first_name": order.first_name,
        "issued_to_middle_name": order.options.get("issued_to_middle_name"),
        "issued_to_last_name": order.last_name,
        "issuer_earner_id": order.earner_id,
        "recipient_email": order.email,
        "locale": order.options.get("locale") or "en",
        "public": False,
        "suppress_badge_notification_email": bool(
            order.options.get("suppress_badge_notification_email")
        ),
        **issued_keys(stamp(order.issued_at)),
        "expires_at": stamp(expires) if expires else None,
        "expires_at_date": expires.date().isoformat() if expires else None,
        "created_at": stamp(now),
        "updated_at": stamp(now),
        "state_updated_at": stamp(now),
        "replacement_badge_id": None,
        "replaces_badge_id": None,
        "revocation_reason": None,
        "country": order.options.get("country_name"),
        "country_code": None,
        "state_or_province": order.options.get("state_or_province"),
        "image": embedded["image"] or {},
        "image_url": embedded["image_url"],
        "alignments": [],
        "evidence": order.options.get("evidence") or [],
        "badge_template": embedded,
        "issuer": {
            "summary": f"issued by {template['owner']['name']}",
            "entities": [
                {"label": "Issued by", "primary": True, "entity": template["owner"]}
            ],
        },
        "created_by": {"type": "OauthApplication", "name": "Simulated application"},
        "user": {},
        "printing_enabled": True,
        "print_method": "standard",
        "accept_badge_url": f"https://badges.example.org/go/{id}/accept",
    }


def issued_keys(text: str) -> Row:
    return {"issued_at": text, "issued_at_date": text[:10]}
