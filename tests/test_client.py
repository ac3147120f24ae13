"""The client against every answer that Credly, or what stands before it, may give."""

from __future__ import annotations

import base64
import collections.abc as cabc
import datetime as dt
import html
import http.server
import json
import re
import socket
import threading
import time
import traceback
import typing as t
import urllib.parse

import pytest
import requests
import responses
from responses import matchers

from flask_credly.credly import BadgeRequest
from flask_credly.credly import Client
from flask_credly.credly import fetch_token
from flask_credly.credly.answers import FOREIGN
from flask_credly.errors import AlreadyHeld
from flask_credly.errors import ConnectionExpired
from flask_credly.errors import CredlyError
from flask_credly.errors import InTrouble
from flask_credly.errors import OutcomeUnknown
from flask_credly.errors import RateLimited
from flask_credly.errors import Refused
from flask_credly.errors import Unauthorized
from flask_credly.errors import Unavailable
from flask_credly.testing import CredlySimulator
from tests.support.credly import API
from tests.support.credly import BADGE
from tests.support.credly import issued
from tests.support.credly import listed
from tests.support.credly import ORGANIZATION
from tests.support.credly import REQUEST
from tests.support.credly import TEMPLATE

TOKEN_URL = "https://www.credly.com/oauth/token"
BADGES = f"{API}/organizations/{ORGANIZATION}/badges"


@pytest.fixture
def mock() -> cabc.Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as mock:
        yield mock


@pytest.fixture
def client() -> cabc.Iterator[Client]:
    with Client(API, ORGANIZATION, timeout=1) as client:
        yield client


def envelope(**data: t.Any) -> dict[str, t.Any]:
    return {"data": data, "metadata": None}


def plain(text: str) -> str:
    return text


def upper(text: str) -> str:
    return text.upper()


def in_a_url(text: str) -> str:
    return urllib.parse.quote(text, safe="")


def in_a_form(text: str) -> str:
    return urllib.parse.quote_plus(text)


def twice_in_a_form(text: str) -> str:
    return urllib.parse.quote_plus(urllib.parse.quote_plus(text))


def all_in_percents(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode())


def in_json(text: str) -> str:
    return json.dumps(text)[1:-1]


def in_html(text: str) -> str:
    return html.escape(text)


def in_numbers(text: str) -> str:
    return "".join(f"&#{ord(char)};" for char in text)


def in_hex_numbers(text: str) -> str:
    return "".join(f"&#x{ord(char):X};" for char in text)


def in_base64(text: str) -> str:
    return base64.b64encode(f"client:{text}".encode()).decode()


SPELLINGS = [
    plain,
    upper,
    in_a_url,
    in_a_form,
    twice_in_a_form,
    all_in_percents,
    in_json,
    in_html,
    in_numbers,
    in_hex_numbers,
]


class TestIssue:
    def test_it_sends_what_credly_names_as_required(
        self, mock: responses.RequestsMock, client: Client
    ) -> None:
        mock.post(
            BADGES,
            status=201,
            json=issued(),
            match=[
                matchers.json_params_matcher(
                    {
                        "recipient_email": "ada+badge@example.org",
                        "issued_to_first_name": "Ada",
                        "issued_to_last_name": "Example",
                        "badge_template_id": TEMPLATE,
                        "issued_at": "2026-11-01 09:30:00 +0000",
                        "issuer_earner_id": "e" * 40,
                    }
                ),
                matchers.header_matcher(
                    {
                        "Authorization": "Bearer a-token",
                        "Accept": "application/json",
                        "Content-Type": "application/json",
                    }
                ),
            ],
        )

        assert client.issue("a-token", REQUEST).id == BADGE

    @pytest.mark.parametrize("status", [200, 201])
    def test_success(
        self, mock: responses.RequestsMock, client: Client, status: int
    ) -> None:
        mock.post(BADGES, status=status, json=issued())

        assert client.issue("t", REQUEST).id == BADGE

    @pytest.mark.parametrize(
        ("status", "body", "kind", "detail"),
        [
            (
                422,
                envelope(message="User already has this badge."),
                AlreadyHeld,
                "User already has this badge. (HTTP 422)",
            ),
            (
                422,
                envelope(
                    message="Validation failed",
                    errors=[
                        {"attribute": "user", "messages": ["Already has  this badge"]}
                    ],
                ),
                AlreadyHeld,
                "Validation failed (HTTP 422)",
            ),
            (
                422,
                envelope(errors={"user": ["already has this\u00a0badge"]}),
                AlreadyHeld,
                "Credly answered HTTP 422.",
            ),
            (
                422,
                {"errors": ["User already has this badge"]},
                AlreadyHeld,
                "Credly answered HTTP 422.",
            ),
            (
                409,
                envelope(message="User already has this badge"),
                AlreadyHeld,
                "User already has this badge (HTTP 409)",
            ),
            (
                422,
                envelope(message="Invalid or missing Badge Template ID: x"),
                Refused,
                "Invalid or missing Badge Template ID: x (HTTP 422)",
            ),
            (
                422,
                envelope(
                    message="",
                    errors=[
                        {
                            "attribute": "recipient_email",
                            "attribute_label": "Recipient email",
                            "messages": ["is invalid", "is too long"],
                        }
                    ],
                ),
                Refused,
                "Recipient email: is invalid; Recipient email: is too long (HTTP 422)",
            ),
            (
                422,
                envelope(errors=[{"attribute": "locale", "messages": "is unknown"}]),
                Refused,
                "locale: is unknown (HTTP 422)",
            ),
            (400, envelope(), Refused, "Credly answered HTTP 400."),
            (400, {"error": "bad request"}, Refused, "bad request (HTTP 400)"),
            (403, envelope(), Refused, "Credly answered HTTP 403."),
            (403, "", OutcomeUnknown, f"HTTP 403. {FOREIGN}"),
            (404, "<html>no</html>", OutcomeUnknown, f"HTTP 404. {FOREIGN}"),
            (403, {"message": "Forbidden"}, OutcomeUnknown, f"HTTP 403. {FOREIGN}"),
            (410, "null", OutcomeUnknown, f"HTTP 410. {FOREIGN}"),
            (401, envelope(), Unauthorized, "Credly answered HTTP 401."),
            (401, "<html>", Unauthorized, f"HTTP 401. {FOREIGN}"),
            (408, "", OutcomeUnknown, "Credly answered HTTP 408."),
            (500, "", OutcomeUnknown, "Credly answered HTTP 500."),
            (
                502,
                "<html>Bad Gateway</html>",
                OutcomeUnknown,
                "Credly answered HTTP 502.",
            ),
            (503, envelope(message="down"), InTrouble, "down (HTTP 503)"),
            (504, "[1", OutcomeUnknown, "Credly answered HTTP 504."),
            (202, issued(), OutcomeUnknown, "Credly answered HTTP 202."),
            (204, "", OutcomeUnknown, "Credly answered HTTP 204."),
        ],
    )
    def test_errors(
        self,
        mock: responses.RequestsMock,
        client: Client,
        status: int,
        body: t.Any,
        kind: type[CredlyError],
        detail: str,
    ) -> None:
        given = body if isinstance(body, str) else json.dumps(body)
        mock.post(BADGES, status=status, body=given)

        with pytest.raises(CredlyError) as caught:
            client.issue("t", REQUEST)

        assert (kind, detail, status) == (
            type(caught.value),
            caught.value.detail,
            caught.value.status,
        )

    @pytest.mark.parametrize(
        "body",
        [
            "",
            "<html>created</html>",
            '{"data": {"id"',
            "[]",
            "null",
            '{"data": null}',
            '{"data": []}',
            json.dumps(issued(id=None)),
            json.dumps(issued(id="42")),
            json.dumps(issued(id=["x"])),
            json.dumps(issued(badge_template={"id": BADGE})),
            json.dumps(issued(recipient_email="other@example.org")),
            "[" * 100_000,
        ],
        ids=lambda body: body[:30],
    )
    def test_a_success_that_cannot_be_read_is_an_unknown_outcome(
        self, mock: responses.RequestsMock, client: Client, body: str
    ) -> None:
        mock.post(BADGES, status=201, body=body)

        with pytest.raises(OutcomeUnknown, match="could not be read"):
            client.issue("t", REQUEST)

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_302_on_post_is_not_success(
        self, mock: responses.RequestsMock, client: Client, status: int
    ) -> None:
        mock.post(BADGES, status=status, headers={"Location": "https://other.example"})

        with pytest.raises(OutcomeUnknown):
            client.issue("t", REQUEST)

        assert len(mock.calls) == 1

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (requests.ConnectTimeout("x"), Unavailable),
            (requests.ReadTimeout("x"), OutcomeUnknown),
            (requests.ConnectionError("Connection aborted."), OutcomeUnknown),
            (requests.exceptions.ChunkedEncodingError("x"), OutcomeUnknown),
            (requests.exceptions.ContentDecodingError("x"), OutcomeUnknown),
            (requests.exceptions.SSLError("x"), OutcomeUnknown),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
    )
    def test_no_answer(
        self,
        mock: responses.RequestsMock,
        client: Client,
        error: Exception,
        kind: type[CredlyError],
    ) -> None:
        mock.post(BADGES, body=error)

        with pytest.raises(CredlyError) as caught:
            client.issue("t", REQUEST)

        assert kind is type(caught.value)
        assert len(mock.calls) == 1

    def test_what_it_repeats_is_not_shown(
        self, mock: responses.RequestsMock, client: Client
    ) -> None:
        said = f"No {REQUEST.email}, no secret-token."
        mock.add("POST", re.compile(".*"), status=429, json={"message": said})

        with pytest.raises(RateLimited) as caught:
            client.issue("secret-token", REQUEST)

        assert caught.value.detail == "No ***, no ***. (HTTP 429)"

    def test_no_half_of_it_is_shown_where_a_text_is_too_long_to_be_read(
        self, mock: responses.RequestsMock, client: Client
    ) -> None:
        """The addresses before it are hidden: what is left is short."""
        token = "t0k3n" * 8
        addresses = f"{'x' * 60}@{'y' * 250} " * 64
        said = f"{addresses:.<19980}{token} and so on" + " and on" * 1000
        mock.add("POST", re.compile(".*"), status=429, json={"message": said})

        with pytest.raises(RateLimited) as caught:
            client.issue(token, REQUEST)

        assert "t0k3n" not in caught.value.detail

    @pytest.mark.parametrize("spell", SPELLINGS, ids=lambda spell: spell.__name__)
    def test_no_spelling_of_an_address_is_shown(
        self,
        mock: responses.RequestsMock,
        client: Client,
        spell: cabc.Callable[[str], str],
    ) -> None:
        said = f"No {spell(REQUEST.email)} here"
        mock.add("POST", re.compile(".*"), status=429, json={"message": said})

        with pytest.raises(RateLimited) as caught:
            client.issue("secret-token", REQUEST)

        assert caught.value.detail in ("No *** here (HTTP 429)",)
        assert str(caught.value) == "HTTP 429 from Credly."

    def test_another_address_is_not_shown_either(
        self, mock: responses.RequestsMock, client: Client
    ) -> None:
        said = {"message": "Sent to Someone.Else@example.com, or else%40example.com!"}
        mock.add("POST", re.compile(".*"), status=429, json=said)

        with pytest.raises(RateLimited) as caught:
            client.issue("secret-token", REQUEST)

        assert caught.value.detail == "Sent to ***, or ***! (HTTP 429)"

    @pytest.mark.parametrize(
        "said",
        [
            "ADA Example",
            "(Ada Example)",
            "Ada+Badge@example.org",
            "/badges?filter=recipient_email_all%3A%3Aada%2Bbadge%40example.org%7Cx",
        ],
    )
    def test_nobody_is_named_by_an_answer_whatever_it_is(
        self, mock: responses.RequestsMock, client: Client, said: str
    ) -> None:
        message = f"{said} already has this badge"
        mock.post(BADGES, status=422, json=envelope(message=message))

        with pytest.raises(AlreadyHeld) as caught:
            client.issue("t", REQUEST)

        assert "***" in caught.value.detail
        assert "ada" not in caught.value.detail.lower()

    def test_foreign_words_are_one_short_line(
        self, mock: responses.RequestsMock, client: Client
    ) -> None:
        mock.post(
            BADGES,
            status=422,
            json=envelope(message="a\r\nb\x1b[2J\u2028c " + "x" * 10_000),
        )

        with pytest.raises(Refused) as caught:
            client.issue("t", REQUEST)

        assert len(caught.value.detail) < 350
        assert caught.value.detail.isprintable()


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("value", "seconds"),
        [("12", 12.0), ("0", 1.0), ("-1", 1.0), ("1e9", 60.0), ("99999999", 3600.0)],
    )
    def test_seconds(
        self, mock: responses.RequestsMock, client: Client, value: str, seconds: float
    ) -> None:
        mock.post(BADGES, status=429, headers={"Retry-After": value})

        with pytest.raises(RateLimited) as caught:
            client.issue("t", REQUEST)

        assert seconds == caught.value.retry_after

    def test_a_date(self, mock: responses.RequestsMock, client: Client) -> None:
        until = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=90)
        value = until.strftime("%a, %d %b %Y %H:%M:%S GMT")
        mock.post(BADGES, status=429, headers={"Retry-After": value})

        with pytest.raises(RateLimited) as caught:
            client.issue("t", REQUEST)

        assert 90 == pytest.approx(caught.value.retry_after, abs=2)


class TestLookUp:
    def test_it_asks_by_our_name(
        self, mock: responses.RequestsMock, client: Client
    ) -> None:
        mock.get(BADGES, json=listed(issued()))

        (found,) = client.find("t", REQUEST)

        assert found.id == BADGE
        assert len(mock.calls) == 1
        assert mock.calls[0].request.params == {  # type: ignore[attr-defined]
            "filter": f"issuer_earner_id::{'e' * 40}|badge_template_id::{TEMPLATE}"
            "|state::pending,accepted,rejected,revoked",
            "page": "1",
        }

    def test_by_address_it_is_encoded(
        self, mock: responses.RequestsMock, client: Client
    ) -> None:
        mock.get(BADGES, json=listed(issued(issuer_earner_id=None)))

        assert len(client.find("t", REQUEST, by_address=True)) == 1
        assert "ada%2Bbadge%40example.org" in str(mock.calls[0].request.url)

    @pytest.mark.parametrize(
        "changes",
        [
            {"recipient_email": "x@example.org", "issuer_earner_id": "other"},
            {"badge_template": {"id": BADGE}},
            {"badge_template": None},
            {"state": "imagined"},
            {"id": "not an id"},
        ],
        ids=str,
    )
    def test_a_strangers_badge_is_not_taken(
        self, mock: responses.RequestsMock, client: Client, changes: dict[str, t.Any]
    ) -> None:
        """Had the service ignored the filter, any badge might be in the list."""
        mock.get(BADGES, json=listed(issued(**changes)))

        assert client.find("t", REQUEST) == []

    @pytest.mark.parametrize("email", ["a|state::x@example.org", "a,b@example.org", ""])
    def test_an_address_that_would_change_the_filter_is_not_sent(
        self, mock: responses.RequestsMock, client: Client, email: str
    ) -> None:
        request = BadgeRequest(TEMPLATE, "e", email, "A", "B", REQUEST.issued_at)

        assert client.find("t", request, by_address=True) == []
        assert len(mock.calls) == 0

    def test_it_reads_all_pages_by_number(
        self, mock: responses.RequestsMock, client: Client
    ) -> None:
        other = issued(recipient_email="x@example.org", issuer_earner_id="other")
        first = listed(other, pages=2)
        first["metadata"]["next_page_url"] = "https://other.example/steal"
        mock.get(BADGES, json=first)
        mock.get(BADGES, json=listed(issued(), pages=2))

        assert len(client.find("t", REQUEST)) == 1
        assert "page=2" in str(mock.calls[1].request.url)

    @pytest.mark.parametrize("body", ["", "{}", '{"data": {}}', '{"data": [], "x": 1}'])
    def test_a_list_that_cannot_be_read_says_nothing(
        self, mock: responses.RequestsMock, client: Client, body: str
    ) -> None:
        mock.get(BADGES, body=body)

        with pytest.raises(OutcomeUnknown):
            client.find("t", REQUEST)

    def test_an_endless_list_ends(
        self, mock: responses.RequestsMock, client: Client
    ) -> None:
        other = issued(recipient_email="x@example.org", issuer_earner_id="other")
        mock.get(BADGES, json=listed(other, pages=10**9))

        with pytest.raises(OutcomeUnknown, match="did not end"):
            client.find("t", REQUEST)


class TestTemplates:
    def test_only_usable_rows_are_taken(
        self, mock: responses.RequestsMock, client: Client
    ) -> None:
        rows: list[t.Any] = [
            {"id": TEMPLATE.upper(), "name": "A\nB", "state": "active", "new_key": 1},
            {"id": BADGE, "name": "Draft", "state": "draft", "image_url": None},
            {"id": "no uuid", "name": "x"},
            {"name": "x"},
            "text",
            {
                "id": ORGANIZATION,
                "name": None,
                "image_url": "javascript:alert(1)",
                "allow_duplicate_badges": True,
            },
        ]
        mock.get(
            f"{API}/organizations/{ORGANIZATION}/badge_templates",
            json={"data": rows, "metadata": {"total_pages": 1}},
        )
        page = client.templates("t", 1)

        assert page.is_last
        assert [(row.id, row.name, row.image_url) for row in page.rows] == [
            (TEMPLATE, "A B", None),
            (ORGANIZATION, ORGANIZATION, None),
        ]
        assert [row.allows_duplicates for row in page.rows] == [False, True]


def test_an_organization_that_is_no_uuid_never_gets_into_an_address() -> None:
    with pytest.raises(ValueError, match="UUID"):
        Client(API, "../../oauth", timeout=1)


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    ("proxy", "usable"),
    [
        ("http://:pass-word@127.0.0.1:1", True),
        ("http://ada:@127.0.0.1:1", True),
        ("127.0.0.1:1", True),
        ("http://ada:pass-word€@127.0.0.1:1", False),
        ("http://ada:pass-word@127.0.0.1:port", False),
        ("http://ada:pass-word@", False),
        ("http://ada:pass/word@127.0.0.1:1", False),
        ("ftp://ada:pass-word@127.0.0.1:1", False),
        ("http://[::1", False),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_and_nothing_is_in_doubt(
    monkeypatch: pytest.MonkeyPatch, name: str, proxy: str, usable: bool
) -> None:
    for each in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(each, raising=False)

    monkeypatch.setenv(name, proxy)

    with Client(API, ORGANIZATION, timeout=1) as client:
        for ask in (
            lambda: client.issue("a-token", REQUEST),
            lambda: client.connect(1, map),
            lambda: fetch_token(TOKEN_URL, "an-id", "s3cret-value", timeout=1),
        ):
            with pytest.raises(Unavailable) as caught:
                ask()

            said = caught.value.detail
            assert ("The proxy address is not valid" in said) is not usable, said
            assert "pass" not in said.replace("name:password", "")


class TestToken:
    def fetch(self, secret: str = "s3cret-value") -> tuple[str, int]:
        token = fetch_token(TOKEN_URL, "an-id", secret, timeout=1)
        return token.value, token.expires_in

    def test_the_credentials_go_once_and_into_the_body(
        self, mock: responses.RequestsMock
    ) -> None:
        mock.post(
            TOKEN_URL,
            json={"access_token": "abc", "token_type": "Bearer", "expires_in": 7200},
            match=[
                matchers.urlencoded_params_matcher(
                    {
                        "grant_type": "client_credentials",
                        "client_id": "an-id",
                        "client_secret": "s3cret-value",
                        "scope": "badge_templates issued_badges",
                    }
                )
            ],
        )

        assert self.fetch() == ("abc", 7200)
        assert "Authorization" not in mock.calls[0].request.headers
        assert "?" not in str(mock.calls[0].request.url)

    @pytest.mark.parametrize(
        "value",
        ["abc", None, -1, 0, 1e300, float("nan"), True, [], {}, "", 10**12],
        ids=repr,
    )
    def test_expires_in_garbage(
        self, mock: responses.RequestsMock, value: object
    ) -> None:
        mock.post(TOKEN_URL, json={"access_token": "abc", "expires_in": value})

        assert self.fetch() == ("abc", 3600)

    def test_float_expires_at(self, mock: responses.RequestsMock) -> None:
        mock.post(TOKEN_URL, json={"access_token": "abc", "expires_at": 1e12})

        assert self.fetch() == ("abc", 3600)

    def test_expires_in_as_text(self, mock: responses.RequestsMock) -> None:
        mock.post(TOKEN_URL, json={"access_token": "abc", "expires_in": "100"})

        assert self.fetch() == ("abc", 100)

    @pytest.mark.parametrize(
        ("status", "body", "kind"),
        [
            (401, {"error": "invalid_client"}, ConnectionExpired),
            (401, {"data": {"message": "no"}}, ConnectionExpired),
            (401, "", Unavailable),
            (400, {"error": "invalid_scope"}, ConnectionExpired),
            (400, {"error": "unauthorized_client"}, ConnectionExpired),
            (403, "<html>", Unavailable),
            (403, {"message": "Forbidden"}, Unavailable),
            (401, '["invalid_client"]', Unavailable),
            (200, {"access_token": "a", "scope": "issued_badges"}, ConnectionExpired),
            (429, {"message": "slow down"}, RateLimited),
            (404, {}, Unavailable),
            (500, {"error": "server_error"}, Unavailable),
            (503, "<html>", Unavailable),
            (307, "", Unavailable),
            (302, "", Unavailable),
            (200, "<html>", Unavailable),
            (200, "", Unavailable),
            (200, {}, Unavailable),
            (200, [], Unavailable),
            (200, {"access_token": ""}, Unavailable),
            (200, {"access_token": "a b"}, Unavailable),
            (200, {"access_token": "a\r\nX: y"}, Unavailable),
            (200, {"access_token": 7}, Unavailable),
            (200, {"access_token": "a", "token_type": "mac"}, Unavailable),
            (200, {"error": "invalid_client", "access_token": ""}, Unavailable),
        ],
    )
    def test_answers_without_a_token(
        self,
        mock: responses.RequestsMock,
        status: int,
        body: t.Any,
        kind: type[CredlyError],
    ) -> None:
        given = body if isinstance(body, str) else json.dumps(body)
        mock.post(TOKEN_URL, status=status, body=given, headers={"Location": API})

        with pytest.raises(CredlyError) as caught:
            self.fetch()

        assert kind is type(caught.value)
        assert len(mock.calls) == 1

    def test_null_access_token(self, mock: responses.RequestsMock) -> None:
        mock.post(TOKEN_URL, json={"access_token": None, "token_type": "Bearer"})

        with pytest.raises(Unavailable, match="no access token"):
            self.fetch()

    @pytest.mark.parametrize(
        "error", [requests.ReadTimeout("x"), requests.ConnectionError("x")]
    )
    def test_no_answer(self, mock: responses.RequestsMock, error: Exception) -> None:
        mock.post(TOKEN_URL, body=error)

        with pytest.raises(Unavailable):
            self.fetch()

    def test_an_answer_that_repeats_the_secret_is_not_passed_on(
        self, mock: responses.RequestsMock
    ) -> None:
        mock.post(
            TOKEN_URL,
            status=401,
            json={"error_description": "Unknown secret s3cret-value"},
        )

        with pytest.raises(ConnectionExpired) as caught:
            self.fetch()

        assert "s3cret-value" not in str(caught.value)
        assert "s3cret-value" not in "".join(traceback.format_exception(caught.value))
        assert caught.value.detail == "Unknown secret *** (HTTP 401)"

    @pytest.mark.parametrize("before", ["", "x" * 280, "x" * 295, "x" * 5000])
    @pytest.mark.parametrize(
        "spell", [*SPELLINGS, in_base64], ids=lambda spell: spell.__name__
    )
    def test_no_spelling_of_the_secret_is_passed_on(
        self,
        mock: responses.RequestsMock,
        spell: cabc.Callable[[str], str],
        before: str,
    ) -> None:
        secret = "a+b/C d=é~1&2'\"-0123456789abcdefgh"
        said = f"{before} {spell(secret)}, client"
        mock.post(TOKEN_URL, status=401, json={"error_description": said})

        with pytest.raises(ConnectionExpired) as caught:
            fetch_token(TOKEN_URL, "client", secret, timeout=1)

        said = caught.value.detail
        assert spell(secret)[10:20] not in said.replace("***", "")
        assert "0123456789" not in said
        assert str(caught.value) == "HTTP 401 from Credly."

    def test_a_refusal_in_the_header_alone_is_credlys(
        self, mock: responses.RequestsMock
    ) -> None:
        challenge = 'Bearer realm="Doorkeeper", error="invalid_client"'
        mock.post(TOKEN_URL, status=401, headers={"WWW-Authenticate": challenge})

        with pytest.raises(ConnectionExpired):
            self.fetch()

    @pytest.mark.parametrize("challenge", ["Basic realm=proxy", "Negotiate", "NTLM"])
    def test_that_of_a_proxy_is_not(
        self, mock: responses.RequestsMock, challenge: str
    ) -> None:
        mock.post(TOKEN_URL, status=401, headers={"WWW-Authenticate": challenge})

        with pytest.raises(Unavailable):
            self.fetch()


class Server(http.server.ThreadingHTTPServer):
    """A server that misbehaves in ways that cannot be mocked."""

    daemon_threads = True
    asked: list[str]

    def handle_error(self, *args: object) -> None:
        """The client went away: that is what these tests are about."""


@pytest.fixture
def serve() -> cabc.Iterator[cabc.Callable[[cabc.Callable[[t.Any], None]], Server]]:
    servers: list[Server] = []

    def start(answer: cabc.Callable[[t.Any], None]) -> Server:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                server.asked.append(self.rfile.read(length).decode())
                answer(self)

            def log_message(self, *args: object) -> None:
                pass

        server = Server(("127.0.0.1", 0), Handler)
        server.asked = []
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        servers.append(server)
        return server

    yield start

    for server in servers:
        server.shutdown()
        server.server_close()


def issue_at(server: Server, timeout: float = 0.5) -> None:
    url = f"http://127.0.0.1:{server.server_port}/v1"

    with Client(url, ORGANIZATION, timeout=timeout) as client:
        client.issue("t", REQUEST)


class TestOnTheWire:
    def test_what_is_said_before_an_answer_shifts_none_to_the_next_request(
        self, serve: t.Any
    ) -> None:
        """Or the next member would be taken for the one who has the badge already."""

        def answer(handler: t.Any) -> None:
            handler.close_connection = False

            if len(server.asked) == 1:
                handler.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
                time.sleep(0.2)
                status, said = 422, envelope(message="User already has this badge")
            else:
                status, said = 201, issued()

            body = json.dumps(said).encode()
            handler.wfile.write(
                b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
            )
            handler.wfile.write(body)

        server = serve(answer)
        url = f"http://127.0.0.1:{server.server_port}/v1"

        with Client(url, ORGANIZATION, timeout=5) as client:
            with pytest.raises(AlreadyHeld):
                client.issue("t", REQUEST)

            assert client.issue("t", REQUEST).id == BADGE

    def test_drip_body_total_deadline(self, serve: t.Any) -> None:
        def drip(handler: t.Any) -> None:
            handler.send_response(201)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()

            for _ in range(40):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(0.1)

        started = time.monotonic()

        with pytest.raises(OutcomeUnknown, match="in time"):
            issue_at(serve(drip))

        assert time.monotonic() - started < 2

    def test_drip_header_total_deadline(self, serve: t.Any) -> None:
        def drip(handler: t.Any) -> None:
            handler.wfile.write(b"HTTP/1.1 201 Created\r\nX-Slow: ")

            for _ in range(40):
                handler.wfile.write(b"x")
                handler.wfile.flush()
                time.sleep(0.1)

        started = time.monotonic()

        with pytest.raises(OutcomeUnknown, match="in time"):
            issue_at(serve(drip))

        assert time.monotonic() - started < 2

    def test_a_slow_answer_does_not_shorten_the_next(self, serve: t.Any) -> None:
        def answer(handler: t.Any) -> None:
            time.sleep(1.2)
            body = json.dumps(issued()).encode()
            handler.send_response(201)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)

        server = serve(answer)

        with Client(
            f"http://127.0.0.1:{server.server_port}/v1", ORGANIZATION, timeout=2
        ) as client:
            for _ in range(2):
                client.issue("t", REQUEST)

        assert len(server.asked) == 2

    def test_nobody_listening_means_nothing_was_sent(self, serve: t.Any) -> None:
        server = serve(lambda handler: None)
        server.shutdown()
        server.server_close()

        with pytest.raises(Unavailable):
            issue_at(server)

    @pytest.mark.parametrize("trouble", ["not spoken", "silent"])
    def test_tls_trouble_means_nothing_was_sent(
        self, serve: t.Any, trouble: str
    ) -> None:
        server = serve(lambda handler: handler.send_error(500))
        silent = socket.create_server(("127.0.0.1", 0))
        spoken_to = silent if trouble == "silent" else server.socket
        url = f"https://127.0.0.1:{spoken_to.getsockname()[1]}/v1"

        with (
            silent,
            Client(url, ORGANIZATION, timeout=0.5) as client,
            pytest.raises(Unavailable),
        ):
            client.issue("t", REQUEST)

        assert server.asked == []

    def test_an_unknown_host_means_nothing_was_sent(self) -> None:
        with (
            Client("https://nowhere.invalid/v1", ORGANIZATION, timeout=2) as client,
            pytest.raises(Unavailable),
        ):
            client.issue("t", REQUEST)

    def test_a_broken_connection_is_not_repeated(self, serve: t.Any) -> None:
        server = serve(lambda handler: handler.connection.close())

        with pytest.raises(OutcomeUnknown):
            issue_at(server)

        assert len(server.asked) == 1

    def test_redirect_307_does_not_carry_secret(self, serve: t.Any) -> None:
        thief = serve(lambda handler: handler.send_error(500))

        def redirect(handler: t.Any) -> None:
            handler.send_response(307)
            handler.send_header("Location", f"http://127.0.0.1:{thief.server_port}/")
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        server = serve(redirect)

        with pytest.raises(Unavailable):
            fetch_token(
                f"http://127.0.0.1:{server.server_port}/", "id", "secret", timeout=1
            )

        assert (len(server.asked), thief.asked) == (1, [])

    def test_connections_are_kept_alive(self) -> None:
        simulator = CredlySimulator()
        template = simulator.add_template("Python Badge")

        with simulator.serve() as server:
            token = fetch_token(
                server.token_url,
                simulator.client_id,
                simulator.client_secret,
                timeout=5,
            )
            url = server.api_url

            with Client(url, simulator.organization_id, timeout=5) as client:
                for number in range(3):
                    client.issue(
                        token.value,
                        BadgeRequest(
                            template,
                            f"earner-{number}",
                            f"a{number}@example.org",
                            "A",
                            "B",
                            REQUEST.issued_at,
                        ),
                    )

                (session,) = client._sessions
                pool = session.get_adapter(url).poolmanager.pools  # type: ignore[attr-defined]
                (only,) = [pool[key] for key in pool.keys()]

                assert only.num_connections == 1

    def test_urllib3_debug_has_no_email(self, caplog: pytest.LogCaptureFixture) -> None:
        credly = CredlySimulator()
        caplog.set_level("DEBUG")

        with credly.serve() as server:
            token = fetch_token(
                server.token_url, credly.client_id, credly.client_secret, timeout=5
            )

            with Client(server.api_url, credly.organization_id, timeout=5) as client:
                assert client.find(token.value, REQUEST, by_address=True) == []

        assert credly.received[-1].query["filter"].startswith("recipient_email_all::")
        assert "GET /v1/organizations/" in caplog.text
        assert "example.org" not in caplog.text
        assert credly.client_secret not in caplog.text

    def test_urllib3_says_of_a_malformed_header_only_that_it_is(
        self,
        caplog: pytest.LogCaptureFixture,
        serve: cabc.Callable[[cabc.Callable[[t.Any], None]], Server],
    ) -> None:
        def answer(handler: t.Any) -> None:
            handler.wfile.write(
                b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"
                b"filter ada+badge@example.org s3cret\r\nX: y\r\n\r\n{}"
            )

        server = serve(answer)
        caplog.set_level("DEBUG")
        url = f"http://127.0.0.1:{server.server_port}/v1"

        with Client(url, ORGANIZATION, timeout=5) as client:
            with pytest.raises(CredlyError):
                client.find("s3cret", REQUEST)

        (said,) = [each for each in caplog.records if each.levelname == "WARNING"]
        assert "Failed to parse headers" in said.getMessage()
        assert "example.org" not in caplog.text
        assert "s3cret" not in caplog.text
