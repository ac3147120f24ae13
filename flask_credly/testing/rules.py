"""What Credly refuses, and in which words. Keeps no state."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import re
import typing as t

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

_REVOKE_FIELDS = {"reason", "suppress_revoke_notification_email"}

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


def unknown_fields(body: object, *, revoke: bool = False) -> list[str]:
    """Get the names in a body that Credly does not document.

    :param revoke: Whether it is that of a request to revoke, and not to issue.
    """
    known = _REVOKE_FIELDS if revoke else _KNOWN_FIELDS
    return sorted(set(body) - known) if isinstance(body, dict) else []


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
        raise _invalid(errors)

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


# Reading a request to revoke


def read_revocation(body: object) -> tuple[str, bool]:
    """Check the body of a request to revoke. Get the reason, and whether the earner
    is told.

    :param body: The decoded JSON.
    :raises Refusal: If Credly would not revoke for it.
    """
    if not isinstance(body, dict):
        raise Refusal(400, "The request body must be a JSON object.")

    reason = body.get("reason")
    silent = body.get("suppress_revoke_notification_email")
    errors = []

    if reason is None or (isinstance(reason, str) and not reason.strip()):
        errors.append(("reason", "can't be blank"))
    elif not isinstance(reason, str):
        errors.append(("reason", "must be a string"))

    if not isinstance(silent, bool | None):
        errors.append(("suppress_revoke_notification_email", "is invalid"))

    if errors:
        raise _invalid(errors)

    return t.cast(str, reason), not silent


def _invalid(errors: list[tuple[str, str]]) -> Refusal:
    text = ", ".join(f"{_label(name)} {message}" for name, message in errors)
    return Refusal(422, f"Validation failed: {text}", errors=errors)
