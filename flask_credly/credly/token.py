"""The access token: OAuth 2 client credentials, by Authlib."""

from __future__ import annotations

import dataclasses
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

    :raises ConnectionExpired: The credentials were refused.
    :raises RateLimited: 429.
    :raises Unavailable: Anything else: the endpoint is in trouble, and nothing was
        learned about the credentials.
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
    session.register_compliance_hook("access_token_response", _check_answer)
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
                f"The token endpoint's answer could not be read ({type(e).__name__})."
            )

    # The server's words may repeat what was sent. Raised anew and without the chain:
    # the frames below hold the secret.
    failure.detail = failure.detail.replace(client_secret, "***")
    failure.args = (failure.detail,)
    raise failure.with_traceback(None) from None


def _check_answer(response: requests.Response) -> requests.Response:
    # Authlib would keep any JSON object as the token, a 401's body included.
    status = response.status_code

    if status == 429:
        raise RateLimited(
            answers.explain(response), retry_after=answers.retry_after(response)
        )

    if status in (400, 401, 403):
        raise ConnectionExpired(answers.explain(response), status=status)

    body = answers.read_json(response)

    if status != 200 or not isinstance(body, dict):
        raise Unavailable(answers.explain(response), status=status)

    token: dict[str, t.Any] = {
        "access_token": _usable_token(body),
        "token_type": "Bearer",
        "expires_in": _lifetime(body.get("expires_in")),
    }
    response._content = json.dumps(token).encode()
    return response


def _usable_token(body: dict[str, t.Any]) -> str:
    value = body.get("access_token")
    scope = body.get("scope")

    if not isinstance(value, str) or not value.isascii() or not value.isprintable():
        raise Unavailable("The token endpoint's answer holds no access token.")

    if not value.strip() or " " in value:
        raise Unavailable("The token endpoint's answer holds no access token.")

    if str(body.get("token_type", "bearer")).lower() != "bearer":
        raise Unavailable("The token endpoint's answer holds no bearer token.")

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
