"""The access token: OAuth 2 client credentials, by Authlib."""

from __future__ import annotations

import dataclasses
import functools
import json
import typing as t

import requests

from ..errors import ConnectionExpired
from ..errors import CredlyError
from ..errors import RateLimited
from ..errors import Unavailable
from ..secret import Secret
from . import answers
from . import transport

SCOPES = ("badge_templates", "issued_badges")
"""Credly's OAuth page: the first covers seeing templates, the second issuing and
reading badges. A token asked for without scopes may have none.
"""

DEFAULT_LIFETIME = 3600
"""Seconds, where the answer does not say. Credly's tokens last two hours."""


@dataclasses.dataclass(frozen=True)
class Token:
    """An access token.

    :param value: What goes into the ``Authorization`` header.
    :param expires_in: Seconds from now.
    """

    value: Secret
    expires_in: int


def fetch_token(
    token_url: str, client_id: str, client_secret: str, *, timeout: float
) -> Token:
    """Fetch a new token.

    The credentials go into the body, once, as Credly's OAuth page says; redirects are
    not followed, as they would carry the secret to another host.

    :raises ConnectionExpired: Credly refused the credentials.
    :raises RateLimited: 429.
    :raises Unavailable: Anything else: the endpoint is in trouble, or something in
        between has answered, and nothing was learned about the credentials.
    """
    client_secret = Secret(client_secret)

    # Loaded here: a web process never needs it.
    from authlib.integrations.requests_client import OAuth2Session

    session = OAuth2Session(
        client_id,
        client_secret,
        scope=" ".join(SCOPES),
        token_endpoint_auth_method="client_secret_post",
    )
    session.register_compliance_hook(
        "access_token_response",
        functools.partial(_check_answer, hide=(client_secret,)),
    )
    failure: CredlyError

    with transport.prepare(session, token_url, timeout):
        try:
            answer = session.fetch_token(
                token_url, grant_type="client_credentials", allow_redirects=False
            )
            return Token(Secret(answer["access_token"]), answer["expires_in"])
        except requests.RequestException as e:
            failure = Unavailable(transport.translate(e).detail)
        except CredlyError as e:
            failure = e
        except Exception as e:  # of Authlib, or of a header that cannot be read
            failure = Unavailable(
                f"The token endpoint's response could not be read ({type(e).__name__})."
            )

    # Without the chain: the frames below hold the secret.
    raise failure.with_traceback(None) from None


def _check_answer(
    response: requests.Response, *, hide: tuple[str, ...]
) -> requests.Response:
    # Authlib would keep any JSON object as the token, a 401's body included.
    status = response.status_code
    body = answers.read_json(response)

    if status == 200 and isinstance(body, dict):
        token: dict[str, t.Any] = {
            "access_token": _usable_token(body),
            "token_type": "Bearer",
            "expires_in": _lifetime(body.get("expires_in")),
        }
        response._content = json.dumps(token).encode()
        return response

    detail = answers.explain(response, hide=hide)

    if status == 429:
        raise RateLimited(detail, retry_after=answers.retry_after(response))

    foreign = answers.is_foreign(response)

    if status in (400, 401, 403) and not foreign:
        raise ConnectionExpired(detail, status=status)

    wait = answers.retry_after(response, 0) if status == 503 else 0
    raise Unavailable(detail, status=status, foreign=foreign, retry_after=wait)


def _usable_token(body: dict[str, t.Any]) -> str:
    value = body.get("access_token")
    scope = body.get("scope")

    if not isinstance(value, str) or not value.isascii() or not value.isprintable():
        raise Unavailable("The token endpoint's response contains no access token.")

    if not value.strip() or " " in value:
        raise Unavailable("The token endpoint's response contains no access token.")

    if str(body.get("token_type", "bearer")).lower() != "bearer":
        raise Unavailable("The token endpoint's response contains no bearer token.")

    if isinstance(scope, str) and not set(SCOPES) <= set(scope.split()):
        raise ConnectionExpired(
            "The OAuth application lacks the scopes badge_templates and issued_badges."
        )

    return value


def _lifetime(value: t.Any) -> int:
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        value = int(value)

    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return DEFAULT_LIFETIME

    # Also false for NaN.
    return int(value) if 0 < value < 366 * 86_400 else DEFAULT_LIFETIME
