"""The bodies of requests that write, checked."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import re
import typing as t
import urllib.parse

from . import rules
from .rules import Refusal
from .rules import Row

FUTURE_LIMIT = dt.timedelta(minutes=5)
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
_ISSUE_FIELDS = {
    *REQUIRED_FIELDS,
    *_TEXT_FIELDS,
    "locale",
    "suppress_badge_notification_email",
    "expires_at",
    "evidence",
    "duplicate_behavior",
    "issuer_earner_group",
}

_FIELDS: dict[str, set[str]] = {
    "issue": _ISSUE_FIELDS,
    "replace": _ISSUE_FIELDS - {"duplicate_behavior"} | {"notification_message"},
    "revoke": {"reason", "suppress_revoke_notification_email"},
}
# By type, what evidence must have and may have. Nothing is known of any other type.
_EVIDENCE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "UrlEvidence": (("name", "value"), ("description",)),
    "IdEvidence": (("title",), ("id", "description")),
}
_OF_ONE_BADGE = ("badge_template_id", "issued_at", "expires_at")
_NOT_TAKEN_OVER = {*_OF_ONE_BADGE, "duplicate_behavior", "notification_message"}
_EMAIL = re.compile(r"[^@\s,;|<>]+@[^@\s,;|<>.]+(\.[^@\s,;|<>.]+)+")


@dataclasses.dataclass(frozen=True)
class Order:
    """The checked body of a request to issue a badge, or to replace one."""

    template_id: str
    email: str
    first_name: str
    last_name: str
    issued_at: dt.datetime
    earner_id: str | None
    behavior: str | None
    expires_at: dt.datetime | None
    options: Row

    @property
    def who(self) -> str:
        return who(self.earner_id, self.email)

    def until(self, template: Row) -> dt.datetime | None:
        """Get when the badge expires. ``None`` if never."""
        if self.options.get("expires_at") is None:
            return rules.default_expiry(template, self.issued_at)

        return self.expires_at


def unknown_fields(body: object, kind: str) -> list[str]:
    """Get the names in a body that Credly does not document.

    :param kind: ``"issue"``, ``"batch"``, ``"replace"`` or ``"revoke"``.
    """
    if kind == "batch":
        rows = [each for each in read_batch(body) if isinstance(each, dict)]
        outside = set(body) - {"badges"} if isinstance(body, dict) else set()
        return sorted(outside.union(*rows) - _ISSUE_FIELDS)

    return sorted(set(body) - _FIELDS[kind]) if isinstance(body, dict) else []


def read_batch(body: object) -> list[object]:
    """Get the bodies of several badges. Empty if there are none."""
    rows = body.get("badges") if isinstance(body, dict) else None
    return list(rows) if isinstance(rows, list) else []


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
    issued_at = (
        rules.read_moment(body["issued_at"]) if _filled(body, "issued_at") else None
    )

    if issued_at is not None and issued_at > now + FUTURE_LIMIT:
        errors.append(("issued_at", "can't be in the future"))

    if errors or issued_at is None:
        raise invalid(errors)

    return Order(
        template_id=body["badge_template_id"].lower(),
        email=body["recipient_email"],
        first_name=body["issued_to_first_name"].strip(),
        last_name=body["issued_to_last_name"].strip(),
        issued_at=issued_at,
        earner_id=body.get("issuer_earner_id") or None,
        behavior=body.get("duplicate_behavior"),
        expires_at=rules.read_expiry(body.get("expires_at")),
        options=body,
    )


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
        elif name == "issued_at" and rules.read_moment(value) is None:
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
        "issuer_earner_group": _is_group,
        "expires_at": lambda value: (
            value is False or rules.read_expiry(value) is not None
        ),
    }

    for name, passes in checks.items():
        if body.get(name) is not None and not passes(body[name]):
            yield name, "is invalid"


def _is_evidence(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_piece, value))


def _is_piece(value: object) -> bool:
    kind = value.get("type") if isinstance(value, dict) else None

    if not isinstance(value, dict) or not isinstance(kind, str):
        return False

    needed, possible = _EVIDENCE.get(kind, ((), ()))
    texts = {name: value[name] for name in value if name != "type"}

    if not needed or not set(needed) <= set(texts) <= {*needed, *possible}:
        return False

    if not all(isinstance(text, str) for text in texts.values()):
        return False

    full = all(texts[name].strip() for name in needed)
    return full and ("value" not in texts or _is_link(texts["value"]))


def _is_link(text: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(text)
    except ValueError:
        return False

    spaced = re.search(r"[\s\x00-\x1f\x7f]", text)
    return parts.scheme == "https" and bool(parts.hostname) and not spaced


def _is_group(value: object) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"name"}
        and isinstance(value["name"], str)
        and 0 < len(value["name"].strip()) <= 255
    )


def _filled(body: Row, name: str) -> bool:
    return isinstance(body.get(name), str)


# Reading a request to replace


def read_replacement(
    body: object, old: Row, templates: cabc.Mapping[str, Row], now: dt.datetime
) -> Order:
    """Check the body of a request to replace a badge. What it leaves out is as it was,
    but for the date of expiry: that is the template's.

    :param body: The decoded JSON.
    :param old: The body that the badge was issued with.
    :param templates: The organization's templates by id.
    :param now: The time of the request, aware.
    :raises Refusal: If Credly would not issue the new badge.
    """
    if not isinstance(body, dict):
        raise Refusal(400, "The request body must be a JSON object.")

    if not isinstance(body.get("notification_message"), str | None):
        raise invalid([("notification_message", "must be a string")])

    kept = {name: old[name] for name in old if name not in _NOT_TAKEN_OVER}
    asked = {name: body[name] for name in body if name != "duplicate_behavior"}
    return read_order(kept | asked, templates, now)


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
        raise invalid(errors)

    return t.cast(str, reason), not silent


def invalid(errors: list[tuple[str, str]]) -> Refusal:
    """Make the refusal of a body with these attributes and messages."""
    text = ", ".join(f"{rules.label(name)} {message}" for name, message in errors)
    return Refusal(422, f"Validation failed: {text}", errors=errors)


# What a request is about


def read_subject(body: object) -> tuple[str, str] | None:
    """Get the template's id and the earner's name that an issue body is about."""
    if not isinstance(body, dict):
        return None

    names = ("badge_template_id", "issuer_earner_id", "recipient_email")
    template_id, earner_id, email = (body.get(name) or "" for name in names)

    if not all(isinstance(value, str) for value in (template_id, earner_id, email)):
        return None

    return template_id.lower(), who(earner_id, email)


def who(earner_id: str | None, email: str) -> str:
    """Name an earner: by their id, or else by their address."""
    return earner_key(earner_id) if earner_id else email_key(email)


def earner_key(earner_id: str) -> str:
    return f"earner {earner_id}"


def email_key(email: str) -> str:
    return f"e-mail {email.casefold()}"
