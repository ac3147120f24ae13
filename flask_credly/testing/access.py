"""Who may come in to the simulated Credly: tokens, and what is checked of each call."""

from __future__ import annotations

import base64
import binascii
import json
import re
import urllib.parse

from . import rules
from .organization import Organization
from .organization import TOKEN_SECONDS
from .rules import Refusal
from .serving import Call
from .serving import json_reply
from .serving import Reply

_FORM = "application/x-www-form-urlencoded"
_JSON = "application/json"
_TOKEN_FIELDS = ("grant_type", "client_id", "client_secret", "scope")
_BAD_TOKEN = "You specified an invalid authorization token."


def whose(organizations: list[Organization], call: Call) -> Organization:
    """Get the organization of the credentials, or else of the address. What is
    nobody's is taken for a request of the first.
    """
    scheme, value = _authorization(call)
    client_id = dict(read_form(call.body)).get("client_id", "")

    if scheme == "basic":
        client_id = _read_basic(value)[0]

    asked = asked_organization(call)

    for fits in (
        lambda each: each.find_token(value) is not None,
        lambda each: each.client_id == client_id,
        lambda each: each.organization_id == asked,
    ):
        for each in organizations:
            if fits(each):
                return each

    return organizations[0]


def asked_organization(call: Call) -> str | None:
    """Get the id in the address."""
    path = re.match(r"/v1/organizations/([^/]+)", call.path)
    return path[1].lower() if path else None


def check_query(organization: Organization, call: Call) -> None:
    """Refuse credentials in the address."""
    if any(organization.service.is_secret(name, value) for name, value in call.query):
        raise Refusal(400, "Credentials do not belong in the query string.")


def check_media_types(call: Call) -> None:
    """Refuse what is not said to be JSON, or does not want any."""
    accepted = call.headers.get("Accept", "").split(",")

    if not any(_has_type(part, _JSON) for part in accepted):
        raise Refusal(400, "The Accept header must name application/json.")

    content = call.headers.get("Content-Type")

    if call.method in ("POST", "PUT") and not _has_type(content, _JSON):
        raise Refusal(400, "The Content-Type must be application/json.")


def check_token(organization: Organization, call: Call, scope: str | None) -> None:
    """Refuse a token that is not good for this call."""
    scheme, value = _authorization(call)

    if scheme == "basic":
        envelope = Refusal(401, _BAD_TOKEN).envelope("message")
        body = (_JSON, json.dumps(envelope))
        raise _unauthorized(organization, "The access token is invalid", body)

    token = organization.find_token(value) if scheme == "bearer" else None

    if token is None:
        raise _unauthorized(organization, "The access token is invalid")

    if token.revoked:
        raise _unauthorized(organization, "The access token was revoked")

    if token.expires_at <= organization.clock():
        raise _unauthorized(organization, "The access token expired")

    if scope is not None and scope not in token.scopes:
        raise Refusal(
            403,
            "Insufficient scope",
            headers=_challenge("insufficient_scope", "Scope is missing"),
            body=("", ""),
        )


def _authorization(call: Call) -> tuple[str, str]:
    scheme, _, value = call.headers.get("Authorization", "").partition(" ")
    return scheme.lower(), value.strip()


def _unauthorized(
    organization: Organization, description: str, body: tuple[str, str] | None = None
) -> Refusal:
    if body is None and organization.unauthorized_body == "empty":
        body = ("", "")
    elif body is None and organization.unauthorized_body == "html":
        body = ("text/html", "<html><body><h1>Unauthorized</h1></body></html>")

    headers = _challenge("invalid_token", description)
    return Refusal(401, _BAD_TOKEN, headers=headers, body=body)


def check_organization(organization: Organization, asked: str | None) -> None:
    """Refuse the address of another organization."""
    if asked is None:
        return

    if not rules.is_uuid(asked):
        raise Refusal(404, "Organization not found")

    if asked.lower() == organization.organization_id:
        return

    if organization.organization_mismatch_status == 401:
        raise _unauthorized(organization, "The access token is invalid")

    raise Refusal(organization.organization_mismatch_status, "Organization not found")


# The token endpoint


def give_token(organization: Organization, call: Call) -> Reply:
    """Answer a request for a token."""
    if not _has_type(call.headers.get("Content-Type"), _FORM):
        raise _oauth_error(400, "invalid_request", "The body must be a form.")

    pairs = read_form(call.body)
    form = dict(pairs)

    for name in sorted(set(form) - set(_TOKEN_FIELDS)):
        organization.record.note(call, f"unknown token parameter {name!r}")

    if len(pairs) != len(form) or "grant_type" not in form:
        raise _oauth_error(400, "invalid_request", "A parameter is missing.")

    if form["grant_type"] != "client_credentials":
        raise _oauth_error(400, "unsupported_grant_type", "Wrong grant type.")

    if not organization.knows(_read_credentials(call, form)):
        raise _oauth_error(401, "invalid_client", "Client authentication failed.")

    # No scope asked for, no scope given: a client that forgets it must notice.
    scopes = tuple(form.get("scope", "").split())

    if not set(scopes) <= set(organization.granted_scopes) & set(rules.SCOPES):
        raise _oauth_error(400, "invalid_scope", "The scope is not granted.")

    body = {
        "access_token": organization.give_token(scopes),
        "token_type": "Bearer",
        "expires_in": TOKEN_SECONDS,
        "scope": " ".join(scopes),
        "created_at": int(organization.clock()),
    }
    return json_reply(200, body, {"Cache-Control": "no-store"})


def _read_credentials(call: Call, form: dict[str, str]) -> tuple[str, str]:
    in_body = "client_id" in form or "client_secret" in form
    scheme, value = _authorization(call)

    if not value:
        return form.get("client_id", ""), form.get("client_secret", "")

    if in_body:
        raise _oauth_error(400, "invalid_request", "Two ways of authentication.")

    if scheme != "basic":
        return "", ""

    return _read_basic(value)


def _read_basic(value: str) -> tuple[str, str]:
    try:
        text = base64.b64decode(value, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return "", ""

    client_id, _, secret = text.partition(":")
    return urllib.parse.unquote(client_id), urllib.parse.unquote(secret)


def _oauth_error(status: int, error: str, description: str) -> Refusal:
    body = json.dumps({"error": error, "error_description": description})
    headers = {"Cache-Control": "no-store"}

    if status == 401:
        headers |= _challenge(error, description)

    return Refusal(status, description, headers=headers, body=(_JSON, body))


def _challenge(error: str, description: str) -> dict[str, str]:
    value = (
        f'Bearer realm="Credly simulator", error="{error}",'
        f' error_description="{description}"'
    )
    return {"WWW-Authenticate": value}


def _has_type(value: str | None, media_type: str) -> bool:
    return (value or "").partition(";")[0].strip().lower() == media_type


def read_form(body: bytes) -> list[tuple[str, str]]:
    text = body.decode("utf-8", "replace")
    return urllib.parse.parse_qsl(text, keep_blank_values=True)
