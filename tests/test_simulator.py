from __future__ import annotations

import base64
import collections
import collections.abc as cabc
import concurrent.futures
import contextlib
import dataclasses
import datetime as dt
import email.utils
import io
import json
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import typing as t
import urllib.parse
import uuid

import pytest
import requests
import responses
import sqlalchemy as sa
from conftest import MakeHost
from werkzeug.test import Client

from flask_credly import accounts
from flask_credly import models
from flask_credly import testing
from flask_credly.testing import control
from flask_credly.testing import CredlySimulator
from flask_credly.testing import Organization
from flask_credly.testing import Received
from flask_credly.testing import SimulatorServer
from flask_credly.testing.manners import Manners
from flask_credly.testing.record import KINDS
from flask_credly.testing.rules import Refusal

API = "https://api.credly.com/v1"
TOKEN_URL = "https://www.credly.com/oauth/token"
SCOPES = "badge_templates issued_badges"
ISSUED_AT = "2024-04-01 09:41:00 -0500"
SEARCH = "/high_volume_issued_badge_search"
PAGE = {"type": "UrlEvidence", "name": "Project", "value": "https://example.org"}
LATER = "2025-05-01T00:00:00Z"


class Caller:
    """A client that keeps all the rules, unless told otherwise."""

    def __init__(self, sim: Organization, api_url: str, token_url: str) -> None:
        self.sim = sim
        self.api_url = api_url
        self.token_url = token_url
        self.session = requests.Session()
        self.token = ""

    def form(self, **changes: str) -> dict[str, str]:
        form = {
            "grant_type": "client_credentials",
            "client_id": self.sim.client_id,
            "client_secret": self.sim.client_secret,
            "scope": SCOPES,
        } | changes
        return {name: value for name, value in form.items() if value}

    def ask_token(
        self, form: dict[str, str] | None = None, **options: t.Any
    ) -> requests.Response:
        form = self.form() if form is None else form
        return self.session.post(self.token_url, data=form, timeout=5, **options)

    def call(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str | None] | None = None,
        timeout: float = 5,
        **options: t.Any,
    ) -> requests.Response:
        if not self.token:
            self.token = self.ask_token().json()["access_token"]

        url = f"{self.api_url}/organizations/{self.sim.organization_id}{path}"
        sent: dict[str, str | None] = {
            "Accept": "application/json",
            "Authorization": f"Bearer {self.token}",
        }
        return self.session.request(
            method, url, headers=sent | (headers or {}), timeout=timeout, **options
        )

    def templates(self, **query: t.Any) -> requests.Response:
        return self.call("GET", "/badge_templates", params=query)

    def badges(self, **query: t.Any) -> requests.Response:
        return self.call("GET", "/badges", params=query)

    def issue(
        self, template_id: str, *, timeout: float = 5, **changes: t.Any
    ) -> requests.Response:
        body = {
            "recipient_email": "earner@example.org",
            "issued_to_first_name": "Example",
            "issued_to_last_name": "Earner",
            "badge_template_id": template_id,
            "issued_at": ISSUED_AT,
        } | changes
        return self.call("POST", "/badges", json=body, timeout=timeout)


@pytest.fixture
def sim() -> CredlySimulator:
    return CredlySimulator()


@pytest.fixture
def mock() -> cabc.Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as mock:
        yield mock


@pytest.fixture
def caller(sim: CredlySimulator, mock: responses.RequestsMock) -> cabc.Iterator[Caller]:
    sim.register(mock)
    caller = Caller(sim, API, TOKEN_URL)
    yield caller
    caller.session.close()


@pytest.fixture
def server(sim: CredlySimulator) -> cabc.Iterator[SimulatorServer]:
    with sim.serve() as server:
        yield server


@pytest.fixture
def remote(sim: CredlySimulator, server: SimulatorServer) -> cabc.Iterator[Caller]:
    caller = Caller(sim, server.api_url, server.token_url)
    yield caller
    caller.session.close()


def message(response: requests.Response) -> str:
    body = response.json()
    assert body["metadata"] is None
    return t.cast(str, body["data"]["message"])


def names(response: requests.Response) -> list[str]:
    assert response.status_code == 200
    return [row["name"] for row in response.json()["data"]]


# 1-4: transport and routing


def test_a_clean_run_leaves_no_problems(caller: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101")

    caller.templates(filter="state::active", sort="name", page=1)
    caller.issue(template_id, issuer_earner_id="site:42")
    caller.badges(filter=f"issuer_earner_id::site:42|badge_template_id::{template_id}")

    assert sim.problems == []
    kinds = [request.kind for request in sim.received]
    assert kinds == ["token", "templates", "issue", "look-up"]


@pytest.mark.parametrize(
    "url",
    [f"{API}/oauth/token", "https://api.credly.com/oauth/token", f"{API}/unknown"],
)
def test_the_token_endpoint_is_on_its_own_host(caller: Caller, url: str) -> None:
    caller.token_url = url

    response = caller.ask_token()

    assert response.status_code == 404
    assert message(response) == "Not found"


def test_the_token_host_does_not_serve_the_api(caller: Caller) -> None:
    caller.ask_token()
    caller.api_url = "https://www.credly.com/v1"
    caller.token = "any"

    assert caller.templates().status_code == 404


@pytest.mark.parametrize("method", ["DELETE", "PUT", "PATCH", "POST"])
def test_a_wrong_method_is_not_found(caller: Caller, method: str) -> None:
    assert caller.call(method, "/badge_templates", json={}).status_code == 404


@pytest.mark.parametrize("accept", [None, "*/*", "text/html"])
def test_json_has_to_be_accepted(caller: Caller, accept: str | None) -> None:
    headers = {"Accept": accept}

    assert caller.call("GET", "/badges", headers=headers).status_code == 400


def test_an_issue_request_has_to_say_that_it_is_json(caller: Caller) -> None:
    headers: dict[str, str | None] = {"Content-Type": "text/plain"}

    response = caller.call("POST", "/badges", data="{}", headers=headers)

    assert response.status_code == 400
    assert "Content-Type" in message(response)


@pytest.mark.parametrize("body", ["{", "", '"text"', "[]", '{"a": "\\u0000"}'])
def test_what_is_no_json_object_is_a_bad_request(caller: Caller, body: str) -> None:
    headers: dict[str, str | None] = {"Content-Type": "application/json"}

    response = caller.call("POST", "/badges", data=body, headers=headers)

    assert response.status_code == 400


@pytest.mark.parametrize("path", ["/badge_templates/", "/badges/"])
def test_a_trailing_slash_is_accepted(caller: Caller, path: str) -> None:
    assert caller.call("GET", path).status_code == 200


@pytest.mark.parametrize("name", ["access_token", "client_secret", "api_key"])
def test_credentials_in_the_query_are_refused_and_noted(
    caller: Caller, sim: CredlySimulator, name: str
) -> None:
    response = caller.badges(**{name: "value"})

    assert response.status_code == 400
    assert any("credentials in the query" in problem for problem in sim.problems)
    assert sim.received[-1].query == {name: "***"}


def test_a_token_under_any_query_name_is_noted(
    caller: Caller, sim: CredlySimulator
) -> None:
    caller.badges()

    assert caller.badges(filter=caller.token).status_code == 400
    assert any("credentials in the query" in problem for problem in sim.problems)


def test_the_secret_in_a_token_query_is_refused(caller: Caller) -> None:
    response = caller.ask_token({}, params=caller.form())

    assert response.status_code == 400


# 5-8: tokens


def test_a_token_has_the_shape_of_the_real_one(
    caller: Caller, sim: CredlySimulator
) -> None:
    response = caller.ask_token()

    body = response.json()
    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"
    assert isinstance(body.pop("access_token"), str)
    assert abs(body.pop("created_at") - sim.clock()) < 5
    assert body == {"token_type": "Bearer", "expires_in": 7200, "scope": SCOPES}


def test_credentials_may_be_sent_as_basic(caller: Caller, sim: CredlySimulator) -> None:
    form = {"grant_type": "client_credentials", "scope": SCOPES}

    response = caller.ask_token(form, auth=(sim.client_id, sim.client_secret))

    assert response.status_code == 200


@pytest.mark.parametrize(
    ("changes", "status", "error"),
    [
        ({"grant_type": "password"}, 400, "unsupported_grant_type"),
        ({"grant_type": ""}, 400, "invalid_request"),
        ({"client_secret": "wrong"}, 401, "invalid_client"),
        ({"client_id": "wrong"}, 401, "invalid_client"),
        ({"client_id": "", "client_secret": ""}, 401, "invalid_client"),
        ({"scope": "read"}, 400, "invalid_scope"),
        ({"scope": "events"}, 400, "invalid_scope"),
    ],
)
def test_a_bad_token_request_is_refused(
    caller: Caller, changes: dict[str, str], status: int, error: str
) -> None:
    response = caller.ask_token(caller.form(**changes))

    assert response.status_code == status
    assert response.json()["error"] == error
    assert ("WWW-Authenticate" in response.headers) == (status == 401)


def test_two_ways_of_authentication_are_one_too_many(
    caller: Caller, sim: CredlySimulator
) -> None:
    response = caller.ask_token(auth=(sim.client_id, sim.client_secret))

    assert response.status_code == 400
    assert response.json()["error"] == "invalid_request"


def test_a_token_request_has_to_be_a_form(caller: Caller) -> None:
    response = caller.session.post(TOKEN_URL, json=caller.form(), timeout=5)

    assert response.status_code == 400


def test_a_token_is_not_to_be_had_by_get(caller: Caller) -> None:
    assert caller.session.get(TOKEN_URL, timeout=5).status_code == 404


def test_a_scope_can_be_granted(caller: Caller, sim: CredlySimulator) -> None:
    sim.granted_scopes = ("events",)

    assert caller.ask_token(caller.form(scope="events")).status_code == 200


def test_a_token_asked_for_without_scope_has_none(caller: Caller) -> None:
    answer = caller.ask_token(caller.form(scope="")).json()
    caller.token = answer["access_token"]

    response = caller.templates()

    assert answer["scope"] == ""
    assert response.status_code == 403
    assert response.content == b""
    assert 'error="insufficient_scope"' in response.headers["WWW-Authenticate"]


def test_each_call_needs_its_own_scope(caller: Caller) -> None:
    form = caller.form(scope="badge_templates")
    caller.token = caller.ask_token(form).json()["access_token"]

    assert caller.templates().status_code == 200
    assert caller.badges().status_code == 403


def test_a_token_expires_on_the_simulators_clock(
    caller: Caller, sim: CredlySimulator
) -> None:
    assert caller.templates().status_code == 200
    sim.advance(7100)
    assert caller.templates().status_code == 200
    sim.advance(100)

    response = caller.templates()

    assert response.status_code == 401
    assert "The access token expired" in response.headers["WWW-Authenticate"]


def test_a_token_can_be_revoked(caller: Caller, sim: CredlySimulator) -> None:
    caller.templates()
    sim.revoke_tokens()

    response = caller.templates()

    assert response.status_code == 401
    assert "The access token was revoked" in response.headers["WWW-Authenticate"]
    assert caller.ask_token().status_code == 200


def test_a_deleted_application_takes_secret_and_tokens_along(
    caller: Caller, sim: CredlySimulator
) -> None:
    caller.templates()

    sim.revoke_client()
    assert caller.templates().status_code == 401
    assert caller.ask_token().json()["error"] == "invalid_client"

    sim.restore_client()
    assert caller.templates().status_code == 401
    assert caller.ask_token().status_code == 200


def test_a_new_secret_replaces_the_old_one(
    caller: Caller, sim: CredlySimulator
) -> None:
    caller.templates()
    old = sim.client_secret

    assert sim.new_secret() == sim.client_secret != old
    assert caller.ask_token(caller.form(client_secret=old)).status_code == 401
    assert caller.ask_token().status_code == 200
    assert caller.templates().status_code == 200


def test_token_requests_are_counted(caller: Caller, sim: CredlySimulator) -> None:
    caller.ask_token()
    caller.ask_token()

    assert sim.count("token") == 2


# 9-11: authorization of API calls


@pytest.mark.parametrize("value", [None, "Bearer wrong", "Bearer", "Token x"])
def test_an_unknown_token_is_unauthorized(caller: Caller, value: str | None) -> None:
    headers = {"Authorization": value}

    response = caller.call("GET", "/badges", headers=headers)

    assert response.status_code == 401
    assert response.content == b""
    assert 'error="invalid_token"' in response.headers["WWW-Authenticate"]


def test_a_basic_token_is_refused_in_credlys_words(caller: Caller) -> None:
    value = base64.b64encode(b"old-token:").decode()
    headers: dict[str, str | None] = {"Authorization": f"Basic {value}"}

    response = caller.call("GET", "/badges", headers=headers)

    assert response.status_code == 401
    assert message(response) == "You specified an invalid authorization token."


def test_the_body_of_a_401_can_be_switched(
    caller: Caller, sim: CredlySimulator
) -> None:
    caller.token = "wrong"

    sim.unauthorized_body = "json"
    assert message(caller.badges()) == "You specified an invalid authorization token."

    sim.unauthorized_body = "html"
    assert caller.badges().headers["Content-Type"] == "text/html"
    caller.ask_token()


@pytest.mark.parametrize("status", [401, 403, 404])
def test_another_organization_is_refused(
    caller: Caller, sim: CredlySimulator, status: int
) -> None:
    caller.templates()
    sim.organization_mismatch_status = status
    sim.organization_id = str(uuid.uuid4())
    assert caller.templates().status_code == 200

    url = f"{API}/organizations/{uuid.uuid4()}/badge_templates"
    headers = {"Accept": "application/json", "Authorization": f"Bearer {caller.token}"}

    assert requests.get(url, headers=headers, timeout=5).status_code == status


def test_an_organization_that_is_no_uuid_is_not_found(
    caller: Caller, sim: CredlySimulator
) -> None:
    sim.organization_id = "my-organization"

    assert caller.templates().status_code == 404


def test_the_organization_is_forbidden_unless_switched(
    caller: Caller, sim: CredlySimulator
) -> None:
    assert caller.call("GET", "").status_code == 403

    sim.organization_status = 200
    response = caller.call("GET", "/")

    assert response.json()["data"]["id"] == sim.organization_id
    assert sim.count("organization") == 2


# 12-15: templates


def test_a_page_has_fifty_rows_whatever_is_asked_for(
    caller: Caller, sim: CredlySimulator
) -> None:
    for number in range(51):
        sim.add_template(f"Template {number:02}")

    body = caller.templates(per=100).json()

    list_url = (
        "https://api.credly.com/api/v1/organizations/"
        f"{sim.organization_id}/badge_templates"
    )
    assert len(body["data"]) == 50
    assert body["metadata"] == {
        "count": 50,
        "current_page": 1,
        "total_count": 51,
        "total_pages": 2,
        "per": 50,
        "previous_page_url": None,
        "next_page_url": f"{list_url}?page=2",
    }
    assert sim.problems == [
        f"GET /v1/organizations/{sim.organization_id}/badge_templates:"
        " unknown query parameter 'per'"
    ]

    second = caller.templates(page=2, sort="-name").json()
    assert [row["name"] for row in second["data"]] == ["Template 00"]
    assert second["metadata"]["previous_page_url"] == f"{list_url}?page=1"
    assert second["metadata"]["next_page_url"] is None


def test_an_unfiltered_list_has_templates_that_cannot_be_issued(
    caller: Caller, sim: CredlySimulator
) -> None:
    for state in ("active", "archived", "draft"):
        sim.add_template(state, state=state)

    rows = caller.templates().json()["data"]

    assert [row["state"] for row in rows] == ["active", "archived", "draft"]
    assert rows[0]["image"]["url"] == rows[0]["image_url"]
    assert rows[2]["image"] is rows[2]["image_url"] is None
    assert set(rows[1]) > set(rows[0])
    assert names(caller.templates(filter="state::active")) == ["active"]
    assert len(names(caller.templates(filter="state::active,draft"))) == 2


def test_a_template_can_have_no_image(caller: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Plain", image=False)

    row = caller.call("GET", f"/badge_templates/{template_id}").json()["data"]

    assert row["image"] is None


@pytest.mark.parametrize(
    ("clause", "found"),
    [
        ("name::python", ["Python 101", "Python 102"]),
        ('name::"Python 101"', ["Python 101"]),
        ("query::data", ["Data path"]),
        ("public::false", []),
        ("state::active|name::101,path", ["Python 101", "Data path"]),
        ("created_at_min::2999-01-01", []),
        ("created_at_max::2999-01-01|name::path", ["Data path"]),
    ],
)
def test_templates_can_be_filtered(
    caller: Caller, sim: CredlySimulator, clause: str, found: list[str]
) -> None:
    for name in ("Python 101", "Python 102", "Data path"):
        sim.add_template(name)

    assert names(caller.templates(filter=clause)) == found


@pytest.mark.parametrize("text", ["", "state", "state:active", "state::", "a::b||c::d"])
def test_a_filter_of_another_form_is_refused(caller: Caller, text: str) -> None:
    assert caller.templates(filter=text).status_code == 400


def test_an_unknown_filter_is_ignored_and_noted_or_refused(
    caller: Caller, sim: CredlySimulator
) -> None:
    sim.add_template("Python 101")

    assert names(caller.templates(filter="color::red")) == ["Python 101"]
    assert "unknown filter key 'color'" in sim.problems[0]

    sim.unknown_filter = "refuse"
    assert caller.templates(filter="color::red").status_code == 400


def test_a_known_filter_can_be_ignored(caller: Caller, sim: CredlySimulator) -> None:
    sim.award(sim.add_template("Python 101"), "stranger@example.org")
    sim.ignored_filters = {"issuer_earner_id"}

    assert len(caller.badges(filter="issuer_earner_id::a").json()["data"]) == 1
    assert sim.problems == []


def test_an_unknown_sort_key_is_noted(caller: Caller, sim: CredlySimulator) -> None:
    caller.templates(sort="name|-color")

    assert "unknown sort key '-color'" in sim.problems[0]


@pytest.mark.parametrize("number", ["0", "-1", "x"])
def test_a_page_that_is_no_number_is_noted(
    caller: Caller, sim: CredlySimulator, number: str
) -> None:
    assert caller.templates(page=number).json()["metadata"]["current_page"] == 1
    assert len(sim.problems) == 1


def test_the_next_page_url_is_a_trap(caller: Caller, sim: CredlySimulator) -> None:
    for number in range(51):
        sim.add_template(f"Template {number}")

    url = caller.templates().json()["metadata"]["next_page_url"]
    response = caller.session.get(url, timeout=5)

    assert response.status_code == 404
    assert any("page URL" in problem for problem in sim.problems)


def test_an_empty_list_has_one_page(caller: Caller) -> None:
    body = caller.templates().json()

    assert body["data"] == []
    assert body["metadata"]["total_pages"] == 1
    assert body["metadata"]["count"] == body["metadata"]["total_count"] == 0


def test_a_page_beyond_the_end_is_empty(caller: Caller, sim: CredlySimulator) -> None:
    sim.add_template("Python 101")

    body = caller.templates(page=9).json()

    assert body["data"] == []
    assert body["metadata"]["current_page"] == 9
    assert body["metadata"]["next_page_url"] is None


def test_a_template_can_change_under_the_client(
    caller: Caller, sim: CredlySimulator
) -> None:
    template_id = sim.add_template("Python 101")
    sim.add_template("Python 101")

    sim.change_template(template_id, name="Python 201", state="archived")
    assert names(caller.templates()) == ["Python 201", "Python 101"]

    sim.delete_template(template_id)
    assert names(caller.templates()) == ["Python 101"]
    response = caller.call("GET", f"/badge_templates/{template_id}")
    assert response.status_code == 404


def test_mistakes_in_a_test_are_told(sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101")

    with pytest.raises(TypeError, match="no color"):
        sim.change_template(template_id, color="red")

    with pytest.raises(ValueError, match="state is 'gone'"):
        sim.change_template(template_id, state="gone")

    with pytest.raises(ValueError, match="kind is 'badges'"):
        sim.fail(t.cast(t.Any, "badges"))

    with pytest.raises(ValueError, match="how is 'slow'"):
        sim.fail("issue", how=t.cast(t.Any, "slow"))

    with pytest.raises(ValueError, match="retry_after"):
        sim.rate_limit(1, retry_after=t.cast(t.Any, "never"))


# 16-21: issuing


def test_an_issued_badge_is_pending(caller: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101")

    response = caller.issue(template_id, issuer_earner_id="site:42")

    badge = response.json()["data"]
    assert response.status_code == 201
    assert response.json()["metadata"] == {}
    assert uuid.UUID(badge["id"])
    assert badge["state"] == "pending"
    assert badge["user"] == {}
    assert badge["issued_to"] == "Example Earner"
    assert badge["issuer_earner_id"] == "site:42"
    assert badge["locale"] == "en"
    assert badge["badge_template"]["id"] == template_id
    assert "reporting_tags" not in badge["badge_template"]
    assert badge["accept_badge_url"]
    assert "badge_url" not in badge
    assert sim.badges == [badge]


@pytest.mark.parametrize(
    ("sent", "echoed"),
    [
        ("2024-04-01 09:41:00 -0500", "2024-04-01T14:41:00.000Z"),
        ("2024-04-01T23:41:00.25Z", "2024-04-01T23:41:00.250Z"),
        ("2024-04-01T23:41:00-05:00", "2024-04-02T04:41:00.000Z"),
    ],
)
def test_the_time_of_issue_is_echoed_in_utc(
    caller: Caller, sim: CredlySimulator, sent: str, echoed: str
) -> None:
    badge = caller.issue(sim.add_template("Python 101"), issued_at=sent).json()["data"]

    assert badge["issued_at"] == echoed
    assert badge["issued_at_date"] == echoed[:10]


FIELDS = [
    "recipient_email",
    "issued_to_first_name",
    "issued_to_last_name",
    "badge_template_id",
    "issued_at",
]


@pytest.mark.parametrize("value", [None, "", "  ", 7, ["x"]])
@pytest.mark.parametrize("field", FIELDS)
def test_five_fields_are_required_texts(
    caller: Caller, sim: CredlySimulator, field: str, value: object
) -> None:
    response = caller.issue(
        sim.add_template("Python 101"), **{field: t.cast(t.Any, value)}
    )

    assert response.status_code == 422
    assert re.match("Validation failed: |Invalid or missing Badge", message(response))
    assert sim.badges == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("recipient_email", "earner"),
        ("recipient_email", "earner@example"),
        ("recipient_email", "ear ner@example.org"),
        ("recipient_email", " earner@example.org"),
        ("recipient_email", "a@example.org,b@example.org"),
        ("issued_to_first_name", "x" * 256),
        ("issued_to_middle_name", 7),
        ("issuer_earner_id", 42),
        ("issuer_earner_id", "x" * 256),
        ("issued_at", "2024-04-01 09:41:00"),
        ("issued_at", "2024-04-01T09:41:00"),
        ("issued_at", "2024-04-01"),
        ("issued_at", "2024-13-01 09:41:00 +0000"),
        ("issued_at", "yesterday"),
        ("locale", "xx"),
        ("expires_at", True),
        ("expires_at", "soon"),
        ("suppress_badge_notification_email", "yes"),
        ("duplicate_behavior", "maybe"),
        ("evidence", {}),
        ("evidence", [{}]),
        ("evidence", [PAGE, {"type": "TextEvidence", "title": "x"}]),
        ("evidence", [{"type": "UrlEvidence", "value": "https://example.org"}]),
        ("evidence", [PAGE | {"name": " "}]),
        ("evidence", [PAGE | {"description": 7}]),
        ("evidence", [PAGE | {"url": "https://example.org"}]),
        ("evidence", [PAGE | {"value": "http://example.org"}]),
        ("evidence", [PAGE | {"value": "https:///x"}]),
        ("evidence", [PAGE | {"value": "https://[::1"}]),
        ("evidence", [PAGE | {"value": "https://example.org/a b"}]),
        ("evidence", [{"type": "IdEvidence", "id": "7"}]),
        ("evidence", [{"type": "IdEvidence", "title": "x", "id": 7}]),
        ("evidence", [{"type": ["IdEvidence"], "title": "x"}]),
        ("issuer_earner_group", "group"),
        ("issuer_earner_group", {}),
        ("issuer_earner_group", {"name": ""}),
        ("issuer_earner_group", {"name": "group", "id": "7"}),
    ],
)
def test_a_value_of_the_wrong_form_is_refused(
    caller: Caller, sim: CredlySimulator, field: str, value: object
) -> None:
    sim.error_shape = "list"
    response = caller.issue(
        sim.add_template("Python 101"), **{field: t.cast(t.Any, value)}
    )

    assert response.status_code == 422
    assert message(response).startswith("Validation failed: ")
    (error,) = response.json()["data"]["errors"]
    assert error["attribute"] == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("recipient_email", "ear.ner+tag@mail.example.org"),
        ("locale", "pt-BR"),
        ("expires_at", False),
        ("expires_at", None),
        ("expires_at", "2999-01-01"),
        ("expires_at", "2999-01-01 00:00:00 +0000"),
        ("suppress_badge_notification_email", True),
        ("evidence", []),
        ("evidence", [PAGE, {"type": "IdEvidence", "title": "x"}]),
        ("evidence", [PAGE | {"description": "x"}]),
        ("evidence", [{"type": "IdEvidence", "title": "x", "id": "7"}]),
        ("issuer_earner_group", {"name": "group"}),
    ],
)
def test_documented_values_are_accepted(
    caller: Caller, sim: CredlySimulator, field: str, value: object
) -> None:
    response = caller.issue(
        sim.add_template("Python 101"), **{field: t.cast(t.Any, value)}
    )

    assert response.status_code == 201
    assert sim.problems == []


@pytest.mark.parametrize(("minutes", "status"), [(4, 201), (6, 422)])
def test_the_time_of_issue_may_be_a_little_in_the_future(
    caller: Caller, sim: CredlySimulator, minutes: int, status: int
) -> None:
    at = dt.datetime.fromtimestamp(sim.clock() + 60 * minutes, dt.UTC)
    text = at.strftime("%Y-%m-%d %H:%M:%S %z")

    response = caller.issue(sim.add_template("Python 101"), issued_at=text)

    assert response.status_code == status


def test_an_unknown_template_is_named(caller: Caller) -> None:
    template_id = str(uuid.uuid4())

    text = message(caller.issue(template_id))

    assert text == f"Invalid or missing Badge Template ID: {template_id}"


@pytest.mark.parametrize("state", ["archived", "draft"])
def test_only_an_active_template_is_issued(
    caller: Caller, sim: CredlySimulator, state: str
) -> None:
    response = caller.issue(sim.add_template("Python 101", state=state))

    assert response.status_code == 422
    assert state in message(response)


@pytest.mark.parametrize(
    ("shape", "messages"),
    [("message", None), ("list", ["can't be blank"]), ("string", "can't be blank")],
)
def test_the_shape_of_an_error_can_be_switched(
    caller: Caller,
    sim: CredlySimulator,
    shape: t.Literal["message", "list", "string"],
    messages: object,
) -> None:
    sim.error_shape = shape
    template_id = sim.add_template("Python 101")

    data = caller.issue(template_id, issued_to_last_name="").json()["data"]

    assert data["message"] == "Validation failed: Issued to last name can't be blank"
    errors = data.get("errors", [{"messages": None}])
    assert errors[0]["messages"] == messages


def test_a_badge_is_issued_once(caller: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101")
    caller.issue(template_id)

    response = caller.issue(template_id, recipient_email="EARNER@Example.org")

    assert response.status_code == 422
    assert "already has this badge" in message(response)
    assert len(sim.badges) == 1


def test_the_earner_id_makes_a_duplicate(caller: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101")
    caller.issue(template_id, issuer_earner_id="site:42")

    response = caller.issue(
        template_id, issuer_earner_id="site:42", recipient_email="new@example.org"
    )

    assert response.status_code == 422
    assert caller.issue(sim.add_template("Other")).status_code == 201


def test_the_credly_user_makes_a_duplicate(
    caller: Caller, sim: CredlySimulator
) -> None:
    template_id = sim.add_template("Python 101")
    sim.add_account("home@example.org", "Work@example.org")
    caller.issue(template_id, recipient_email="home@example.org")

    response = caller.issue(template_id, recipient_email="work@example.org")

    assert response.status_code == 422


def test_a_revoked_badge_is_not_in_the_way(
    caller: Caller, sim: CredlySimulator
) -> None:
    template_id = sim.add_template("Python 101")
    badge_id = sim.award(template_id, "earner@example.org")
    sim.revoke_badge(badge_id)

    assert caller.issue(template_id).status_code == 201
    assert sim.badges[0]["state"] == "revoked"


def test_a_rejected_badge_is_in_the_way(caller: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101")
    sim.reject(sim.award(template_id, "earner@example.org"))

    assert caller.issue(template_id).status_code == 422


def test_a_template_may_allow_duplicates(caller: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101", allow_duplicate_badges=True)
    sim.award(template_id, "earner@example.org")

    assert caller.issue(template_id, duplicate_behavior="deny").status_code == 201
    assert sim.problems == []

    assert caller.issue(template_id).status_code == 201
    assert sim.problems == [
        f"second badge of template {template_id} for e-mail earner@example.org"
    ]


def test_a_duplicate_can_be_allowed_in_the_request(
    caller: Caller, sim: CredlySimulator
) -> None:
    template_id = sim.add_template("Python 101")
    caller.issue(template_id)

    response = caller.issue(template_id, duplicate_behavior="allow")

    assert response.status_code == 201
    assert len(sim.badges) == 2


def test_a_duplicate_can_replace_the_first(
    caller: Caller, sim: CredlySimulator
) -> None:
    template_id = sim.add_template("Python 101")
    caller.issue(template_id)

    caller.issue(
        template_id, duplicate_behavior="replace", issued_at="2025-01-01T00:00:00Z"
    )

    first, second = sim.badges
    assert first["replacement_badge_id"] == second["id"]
    assert second["replaces_badge_id"] == first["id"]
    assert second["issued_at"] == first["issued_at"]
    assert sim.problems == []


def test_an_unknown_field_is_noted(caller: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101")

    assert caller.issue(template_id, notification_message="Hi").status_code == 201
    assert "unknown field 'notification_message'" in sim.problems[0]


def test_an_accepted_badge_has_its_address(
    caller: Caller, sim: CredlySimulator
) -> None:
    badge_id = caller.issue(sim.add_template("Python 101")).json()["data"]["id"]

    sim.accept(badge_id)

    badge = caller.call("GET", f"/badges/{badge_id}").json()["data"]
    assert badge["state"] == "accepted"
    assert badge["badge_url"]
    assert badge["user"]["id"]
    assert "accept_badge_url" not in badge
    assert caller.call("GET", f"/badges/{uuid.uuid4()}").status_code == 404


# 22: faults


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_server_error_can_be_scripted(
    caller: Caller, sim: CredlySimulator, status: int
) -> None:
    template_id = sim.add_template("Python 101")
    sim.fail("issue", status=status)
    sim.fail("issue", status=status, body="<html>Bad Gateway</html>")
    sim.fail("issue", status=status, body="", after=True)

    assert message(caller.issue(template_id))
    sim.posts_allowed = 9
    html = caller.issue(template_id)
    assert html.headers["Content-Type"].startswith("text/html")
    assert sim.badges == []
    empty = caller.issue(template_id)
    assert (empty.status_code, empty.content) == (status, b"")
    assert len(sim.badges) == 1
    assert caller.issue(template_id).status_code == 422
    assert sim.problems == []


@pytest.mark.parametrize("value", ["7", "Wed, 21 Oct 2065 07:28:00 GMT", "99999999"])
def test_a_429_can_be_scripted(
    caller: Caller, sim: CredlySimulator, value: str
) -> None:
    sim.fail("issue", status=429, headers={"Retry-After": value}, times=2)
    template_id = sim.add_template("Python 101")

    assert caller.issue(template_id).headers["Retry-After"] == value
    assert caller.issue(template_id).status_code == 429
    assert caller.issue(template_id).status_code == 201


def test_a_refusal_of_the_token_endpoint_can_be_scripted(
    caller: Caller, sim: CredlySimulator
) -> None:
    sim.fail("token", status=401)
    sim.fail("token", status=503)

    assert caller.ask_token().json()["error"] == "invalid_client"
    assert caller.ask_token().status_code == 503
    assert caller.ask_token().status_code == 200


def test_a_fault_for_all_kinds_stays_until_cleared(
    caller: Caller, sim: CredlySimulator
) -> None:
    caller.templates()
    sim.fail("*", times=None, status=503)

    assert {caller.ask_token().status_code, caller.badges().status_code} == {503}

    sim.clear_faults()
    assert caller.badges().status_code == 200


def test_a_share_of_the_requests_can_fail(caller: Caller, sim: CredlySimulator) -> None:
    def run() -> list[int]:
        sim.clear_faults()
        sim.fail("look-up", status=500, share=0.3, seed=7)
        return [caller.badges().status_code for _ in range(60)]

    first = run()

    assert 5 < first.count(500) < 35
    assert run() == first


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("hang", requests.exceptions.ReadTimeout),
        ("reset", requests.exceptions.ConnectionError),
        ("late", requests.exceptions.ConnectionError),
        ("truncate", requests.exceptions.ChunkedEncodingError),
    ],
)
def test_a_broken_connection_is_an_error_in_responses(
    caller: Caller, sim: CredlySimulator, how: t.Any, error: type[Exception]
) -> None:
    template_id = sim.add_template("Python 101")
    sim.fail("issue", how=how, delay=60)

    with pytest.raises(error):
        caller.issue(template_id)

    assert len(sim.badges) == (how == "truncate")
    sim.advance(61)
    assert len(sim.badges) == (how in ("truncate", "late"))


def test_a_late_badge_is_written_when_it_is_due(
    caller: Caller, sim: CredlySimulator
) -> None:
    template_id = sim.add_template("Python 101")
    sim.fail("issue", how="late", delay=60)
    sim.fail("issue", how="late", delay=30)

    for email_address in ("a@example.org", "b@example.org"):
        with pytest.raises(requests.exceptions.ConnectionError):
            caller.issue(template_id, recipient_email=email_address)

    sim.advance(61)

    order = [badge["recipient_email"] for badge in sim.badges]
    assert order == ["b@example.org", "a@example.org"]


def test_a_late_badge_needs_a_good_token(caller: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101")
    caller.badges()
    sim.revoke_tokens()
    sim.fail("issue", how="late")

    with pytest.raises(requests.exceptions.ConnectionError):
        caller.issue(template_id)

    assert sim.badges == []


def test_a_late_badge_can_be_a_duplicate(caller: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101")
    sim.fail("issue", how="late", delay=60)

    with pytest.raises(requests.exceptions.ConnectionError):
        caller.issue(template_id)

    assert caller.issue(template_id).status_code == 201
    sim.advance(61)
    assert len(sim.badges) == 1


# 22: faults over real sockets


def test_a_connection_is_kept_alive(remote: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101")
    for number in range(3):
        remote.issue(template_id, recipient_email=f"e{number}@example.org")

    adapter = t.cast(t.Any, remote.session.get_adapter(remote.api_url))
    (pool,) = adapter.poolmanager.pools._container.values()

    assert pool.num_connections == 1
    assert len(sim.badges) == 3
    assert sim.problems == []


@pytest.mark.parametrize("after", [False, True])
def test_a_hanging_answer_times_out(
    remote: Caller, sim: CredlySimulator, after: bool
) -> None:
    template_id = sim.add_template("Python 101")
    remote.templates()
    sim.fail("issue", how="hang", delay=30, after=after)

    with pytest.raises(requests.exceptions.ReadTimeout):
        remote.issue(template_id, timeout=1)

    assert sim.received[-1].status is None
    assert len(sim.badges) == after
    expected = 422 if after else 201
    assert remote.issue(template_id).status_code == expected


def test_a_hang_ends_without_an_answer(remote: Caller, sim: CredlySimulator) -> None:
    remote.templates()
    sim.fail("look-up", how="hang", delay=0.05)

    with pytest.raises(requests.exceptions.ConnectionError, match="aborted"):
        remote.badges()


@pytest.mark.parametrize("after", [False, True])
def test_a_connection_is_reset(
    remote: Caller, sim: CredlySimulator, after: bool
) -> None:
    template_id = sim.add_template("Python 101")
    remote.templates()
    sim.fail("issue", how="reset", after=after)

    with pytest.raises(requests.exceptions.ConnectionError, match="aborted|reset"):
        remote.issue(template_id)

    assert len(sim.badges) == after


def test_a_body_is_cut_short(remote: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101")
    remote.templates()
    sim.fail("issue", how="truncate")
    sim.fail("issue", how="truncate", status=502, body="")

    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        remote.issue(template_id)

    assert len(sim.badges) == 1

    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        remote.issue(template_id, recipient_email="other@example.org")

    assert len(sim.badges) == 1


def test_a_body_drips(remote: Caller, sim: CredlySimulator) -> None:
    remote.templates()
    sim.fail("templates", how="drip")
    sim.fail("templates", how="drip", status=502, body="<p>oops</p>", delay=0.01)

    assert remote.templates().json()["data"] == []

    start = time.monotonic()
    assert remote.templates().text == "<p>oops</p>"
    assert time.monotonic() - start >= 0.1
    assert remote.templates().status_code == 200


def test_a_late_badge_over_http(remote: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101")
    remote.templates()
    sim.fail("issue", how="late", delay=60)

    with pytest.raises(requests.exceptions.ConnectionError, match="aborted"):
        remote.issue(template_id)

    assert sim.badges == []
    sim.advance(60)
    assert len(remote.badges().json()["data"]) == 1


def test_an_answer_can_be_slow(remote: Caller, sim: CredlySimulator) -> None:
    remote.templates()
    sim.fail("templates", status=200, body={"data": []}, delay=0.05)
    start = time.monotonic()

    assert remote.templates().json() == {"data": []}
    assert time.monotonic() - start >= 0.05


def test_closing_ends_connections_that_hang(
    sim: CredlySimulator, capfd: pytest.CaptureFixture[str]
) -> None:
    server = sim.serve()
    sim.fail("*", how="hang", delay=60)
    errors: list[Exception] = []

    def ask() -> None:
        try:
            requests.get(server.api_url, timeout=30)
        except requests.exceptions.ConnectionError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()

    while not sim.received:
        time.sleep(0.005)

    server.close()
    server.close()
    thread.join(timeout=5)

    assert len(errors) == 1
    assert capfd.readouterr() == ("", "")


def test_nothing_is_printed(
    remote: Caller, sim: CredlySimulator, capfd: pytest.CaptureFixture[str]
) -> None:
    hows: list[t.Any] = ["reset", "late", "truncate", "hang"]
    for how in hows:
        sim.fail("look-up", how=how)
        with pytest.raises(requests.exceptions.RequestException):
            remote.badges()

    with socket.create_connection(("127.0.0.1", int(remote.api_url[17:-3]))) as raw:
        raw.sendall(b"POST /oauth/token HTTP/1.1\r\nContent-Length: 10\r\n\r\nab")

    with socket.create_connection(("127.0.0.1", int(remote.api_url[17:-3]))) as raw:
        raw.sendall(b"nonsense\r\n\r\n")
        raw.recv(1000)

    assert remote.badges().status_code == 200
    assert capfd.readouterr() == ("", "")


def test_a_taken_port_is_an_error(sim: CredlySimulator) -> None:
    with sim.serve() as server, pytest.raises(OSError):
        sim.serve(port=server.port)


def test_another_wsgi_server_answers_500_where_it_cannot_hang_up(
    sim: CredlySimulator,
) -> None:
    sim.fail("*", how="reset")

    response = Client(sim).get("/v1/organizations")

    assert response.status_code == 500
    assert "socket" in response.text


def test_a_chunked_body_is_read(remote: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101")
    body = {
        "recipient_email": "earner@example.org",
        "issued_to_first_name": "Example",
        "issued_to_last_name": "Earner",
        "badge_template_id": template_id,
        "issued_at": ISSUED_AT,
    }
    stream = io.BytesIO(json.dumps(body).encode())
    headers: dict[str, str | None] = {"Content-Type": "application/json"}

    response = remote.call("POST", "/badges", data=iter(stream), headers=headers)

    assert response.status_code == 201
    assert remote.badges().status_code == 200


# 22: the rate limit


@pytest.mark.parametrize("form", ["seconds", "date", "none", "garbage"])
def test_too_many_calls_are_refused(
    caller: Caller, sim: CredlySimulator, form: t.Any
) -> None:
    caller.ask_token()
    sim.rate_limit(2, 60, retry_after=form)

    statuses = [caller.badges().status_code for _ in range(3)]
    response = caller.badges()

    assert statuses == [200, 200, 429]
    value = response.headers.get("Retry-After")

    if form == "seconds":
        assert 1 <= int(t.cast(str, value)) <= 60
    elif form == "date":
        end = email.utils.parsedate_to_datetime(t.cast(str, value))
        assert 0 < (end - dt.datetime.now(dt.UTC)).total_seconds() <= 62
    else:
        assert value == {"none": None, "garbage": "soon"}[form]

    assert caller.ask_token().status_code == 200
    sim.rate_limit(None)
    assert caller.badges().status_code == 200


def test_the_window_ends(caller: Caller, sim: CredlySimulator) -> None:
    caller.ask_token()
    caller.badges()
    sim.rate_limit(1, 1)

    assert [caller.badges().status_code for _ in range(2)] == [200, 429]
    time.sleep(1)
    assert caller.badges().status_code == 200


# 23-24: what the client must not do, and what it must expect


def test_a_third_issue_request_is_noted(caller: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101")
    sim.fail("issue", how="reset")

    with pytest.raises(requests.exceptions.ConnectionError):
        caller.issue(template_id, issuer_earner_id="site:42")

    caller.issue(template_id, issuer_earner_id="site:42")
    assert sim.problems == []

    caller.issue(template_id, issuer_earner_id="site:42")
    (problem,) = sim.problems
    assert f"issue request no. 3 for template {template_id}" in problem


@pytest.mark.parametrize("step", ["revoke_badge", "replace_badge", "accept"])
def test_issue_requests_are_counted_anew_for_a_badge_that_ended(
    caller: Caller, sim: CredlySimulator, step: str
) -> None:
    template_id = sim.add_template("Python 101", allow_duplicate_badges=True)
    sim.badges_allowed = 99
    caller.issue(template_id)
    getattr(sim, step)(sim.badges[0]["id"])

    for _ in range(2):
        caller.issue(template_id)

    assert len(sim.problems) == (step == "accept")
    caller.issue(template_id)
    assert f"issue request no. {4 if step == 'accept' else 3}" in sim.problems[-1]


def test_what_was_not_processed_does_not_count(
    caller: Caller, sim: CredlySimulator
) -> None:
    template_id = sim.add_template("Python 101")
    sim.fail("issue", status=429, times=3)
    sim.fail("issue", status=401, times=3)

    for _ in range(6):
        caller.issue(template_id)

    sim.rate_limit(0)
    caller.issue(template_id)
    sim.rate_limit(None)
    sim.revoke_tokens()
    caller.issue(template_id)
    caller.token = ""

    assert caller.issue(template_id).status_code == 201
    assert sim.problems == []


def test_one_template_and_earner_get_one_badge(
    caller: Caller, sim: CredlySimulator
) -> None:
    template_id = sim.add_template("Python 101", allow_duplicate_badges=True)
    sim.fail("issue", status=504, after=True)

    caller.issue(template_id, issuer_earner_id="site:42")
    caller.issue(template_id, issuer_earner_id="site:43", recipient_email="b@c.org")
    assert sim.problems == []

    caller.issue(template_id, issuer_earner_id="site:42")

    assert sim.problems == [
        f"second badge of template {template_id} for earner site:42"
    ]


def test_a_new_badge_can_be_missing_from_lists_for_a_while(
    caller: Caller, sim: CredlySimulator
) -> None:
    sim.look_up_lag = 30
    caller.issue(sim.add_template("Python 101"))

    assert caller.badges().json()["metadata"]["total_count"] == 0
    sim.advance(31)
    assert caller.badges().json()["metadata"]["total_count"] == 1


# 25-26: looking badges up


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("recipient_email::A@example.org", 1),
        ("recipient_email::a+b@example.org", 1),
        ("recipient_email_all::home@example.org", 1),
        ("recipient_email::home@example.org", 0),
        ("issuer_earner_id::site:1", 1),
        ("issuer_earner_id::site", 0),
        ("state::pending,accepted", 2),
        ("state::accepted", 1),
        ("state::revoked", 1),
        ("public::true", 1),
        ("query::a+b@", 1),
        ("expires_at_date_max::2999-01-01", 0),
        ("badge_template_id::{template}|state::pending|issuer_earner_id::site:1", 1),
    ],
)
def test_badges_can_be_looked_up(
    caller: Caller, sim: CredlySimulator, text: str, found: int
) -> None:
    template_id = sim.add_template("Python 101")
    sim.add_account("a@example.org", "home@example.org")
    sim.award(template_id, "a@example.org", issuer_earner_id="site:1")
    sim.accept(sim.award(template_id, "a+b@example.org"))
    sim.revoke_badge(sim.award(template_id, "c@example.org"))

    response = caller.badges(filter=text.format(template=template_id))

    assert response.json()["metadata"]["total_count"] == found
    assert sim.problems == []


def test_a_plus_that_is_not_encoded_is_a_space(
    caller: Caller, sim: CredlySimulator
) -> None:
    sim.award(sim.add_template("Python 101"), "a+b@example.org")

    bare = caller.call("GET", "/badges?filter=recipient_email::a+b@example.org")
    encoded = caller.call("GET", "/badges?filter=recipient_email::a%2Bb@example.org")

    assert bare.json()["data"] == []
    assert len(encoded.json()["data"]) == 1


def test_badges_are_paged_and_sorted(caller: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101")
    for number in range(51):
        at = dt.datetime(2024, 1, 1, 0, number, tzinfo=dt.UTC)
        sim.award(template_id, f"e{number:02}@example.org", issued_at=at)

    body = caller.badges(sort="-issued_at", page=2).json()

    assert [row["recipient_email"] for row in body["data"]] == ["e00@example.org"]
    assert body["metadata"]["total_pages"] == 2


def test_the_email_filter_can_miss_accepted_badges(
    caller: Caller, sim: CredlySimulator
) -> None:
    sim.accept(sim.award(sim.add_template("Python 101"), "a@example.org"))
    sim.email_filter_finds_accepted = False

    assert caller.badges(filter="recipient_email::a@example.org").json()["data"] == []
    found = caller.badges(filter="recipient_email_all::a@example.org").json()["data"]
    assert len(found) == 1


# 27-28: forbidden calls, the record


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/badges/{id}/revoke"),
        ("PUT", "/badges/{id}/replace"),
        ("DELETE", "/badges/{id}"),
    ],
)
def test_badges_are_not_to_be_deleted_or_changed_in_another_way(
    caller: Caller, sim: CredlySimulator, method: str, path: str
) -> None:
    badge_id = sim.award(sim.add_template("Python 101"), "a@example.org")

    response = caller.call(method, path.format(id=badge_id), json={})

    assert response.status_code == 404
    assert sim.badges[0]["state"] == "pending"
    assert len(sim.problems) == 1


def test_a_request_without_user_agent_or_timeout_is_noted(
    caller: Caller, sim: CredlySimulator
) -> None:
    caller.session.headers.clear()
    caller.session.post(TOKEN_URL, data=caller.form())

    assert sim.problems == [
        "POST /oauth/token: no User-Agent",
        "POST /oauth/token: no timeout",
    ]


def test_an_unknown_token_field_is_noted(caller: Caller, sim: CredlySimulator) -> None:
    caller.ask_token(caller.form(audience="credly"))

    assert "unknown token parameter 'audience'" in sim.problems[0]


def test_the_secret_in_an_api_body_is_noted(
    caller: Caller, sim: CredlySimulator
) -> None:
    caller.issue(sim.add_template("Python 101"), issuer_earner_id=sim.client_secret)

    assert "the client secret in the body" in sim.problems[0]


def test_the_record_holds_no_secret(caller: Caller, sim: CredlySimulator) -> None:
    caller.issue(sim.add_template("Python 101"), issuer_earner_id="site:42")
    basic = {"grant_type": "client_credentials"}
    caller.ask_token(basic, auth=(sim.client_id, sim.client_secret))

    token, issue, _ = sim.received
    assert isinstance(token, Received)
    assert t.cast(t.Any, token.json)["client_secret"] == "***"
    assert issue.headers["Authorization"] == "***"
    assert issue.status == 201
    assert t.cast(t.Any, issue.json)["issuer_earner_id"] == "site:42"
    text = repr(sim.received)
    assert sim.client_secret not in text
    assert caller.token not in text
    assert "Basic" not in text


def test_the_book_can_be_asked(sim: CredlySimulator) -> None:
    one, two = sim.add_template("Python 101"), sim.add_template("Data path")
    sim.award(one, "a@example.org", issuer_earner_id="site:1")
    sim.award(two, "b@example.org", issuer_earner_id="site:2")

    assert len(sim.badges_for("A@example.org")) == 1
    assert len(sim.badges_for(earner_id="site:2", template_id=two)) == 1
    assert sim.badges_for(earner_id="site:2", template_id=one) == []


def test_reset_keeps_templates_and_credentials(
    caller: Caller, sim: CredlySimulator
) -> None:
    template_id = sim.add_template("Python 101")
    caller.issue(template_id, notification_message="Hi")
    sim.fail("issue")
    sim.rate_limit(0)

    sim.reset()

    assert not sim.badges and not sim.received and not sim.problems
    assert caller.issue(template_id).status_code == 201


def test_many_threads_are_served(sim: CredlySimulator, server: SimulatorServer) -> None:
    template_id = sim.add_template("Python 101")
    token = Caller(sim, server.api_url, server.token_url)
    token.badges()
    token.session.close()

    def issue(number: int) -> int:
        caller = Caller(sim, server.api_url, server.token_url)
        caller.token = token.token
        earner = f"e{number % 10}@example.org"
        status = caller.issue(template_id, recipient_email=earner).status_code
        caller.session.close()
        return status

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(issue, range(20)))

    assert sorted(statuses) == [201] * 10 + [422] * 10
    assert len(sim.badges) == 10
    assert sim.problems == []


def test_other_addresses_can_be_registered(
    sim: CredlySimulator, mock: responses.RequestsMock
) -> None:
    base = "https://credly.example.org/sandbox"
    sim.register(mock, api_url=f"{base}/v1", token_url=f"{base}/token")
    caller = Caller(sim, f"{base}/v1", f"{base}/token")

    assert caller.templates().status_code == 200
    assert sim.problems == []
    caller.session.close()


def test_registering_demands_no_calls(sim: CredlySimulator) -> None:
    with responses.RequestsMock() as mock:
        sim.register(mock)

    assert sim.received == []


# The life of a badge


def live(sim: Organization, badge_id: str, steps: str) -> None:
    """Take steps of a badge's life, such as "accept reject"."""
    for step in steps.split():
        getattr(sim, {"revoke": "revoke_badge"}.get(step, step))(badge_id)


def put_revoke(caller: Caller, badge_id: str, **body: t.Any) -> requests.Response:
    body = {"reason": "Issued in error"} | body
    return caller.call("PUT", f"/badges/{badge_id}/revoke", json=body)


@pytest.mark.parametrize(
    ("steps", "state", "shown"),
    [
        ("", "pending", "accept_badge_url"),
        ("accept", "accepted", "badge_url"),
        ("reject", "rejected", None),
        ("accept reject", "rejected", None),
        ("revoke", "revoked", None),
        ("accept revoke", "revoked", None),
        ("reject revoke", "revoked", None),
    ],
)
def test_a_badge_has_its_state_its_time_and_its_address(
    caller: Caller, sim: CredlySimulator, steps: str, state: str, shown: str | None
) -> None:
    badge_id = caller.issue(sim.add_template("Python 101")).json()["data"]["id"]
    sim.advance(3600)
    live(sim, badge_id, steps)

    badge = caller.call("GET", f"/badges/{badge_id}").json()["data"]

    assert badge["state"] == state
    assert {"accept_badge_url", "badge_url"} & set(badge) == {shown} - {None}
    assert (badge["state_updated_at"] is None) == (state == "pending")
    assert (badge["state_updated_at"] or "") <= badge["updated_at"]
    assert (badge["revocation_reason"] is None) == (state != "revoked")
    assert (badge["updated_at"] > badge["created_at"]) == bool(steps)
    assert [each.state for each in sim.history(badge_id)][-1] == state
    assert len(sim.history(badge_id)) == len(steps.split()) + 1
    assert sim.count("badge") == 1
    assert sim.problems == []


@pytest.mark.parametrize(
    ("before", "step"),
    [
        ("accept", "accept"),
        ("reject", "accept"),
        ("reject", "reject"),
        ("revoke", "accept"),
        ("revoke", "reject"),
        ("revoke", "revoke"),
    ],
)
def test_what_cannot_become_of_a_badge_is_a_mistake_in_the_test(
    sim: CredlySimulator, before: str, step: str
) -> None:
    badge_id = sim.award(sim.add_template("Python 101"), "a@example.org")
    live(sim, badge_id, before)

    with pytest.raises(ValueError, match="does not become"):
        live(sim, badge_id, step)

    assert len(sim.history(badge_id)) == 2


def test_the_history_tells_who_did_it(caller: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101")
    ours = caller.issue(template_id).json()["data"]["id"]
    sim.accept(ours)
    put_revoke(caller, ours, suppress_revoke_notification_email=True)
    by_hand = sim.award(template_id, "b@example.org")
    sim.revoke_badge(by_hand, "Mistaken")

    first, second, third = sim.history(ours)
    assert [first.by, second.by, third.by] == ["request", "earner", "request"]
    assert first.at <= second.at <= third.at
    assert (third.reason, third.told) == ("Issued in error", False)
    assert [each.by for each in sim.history(by_hand)] == ["issuer", "issuer"]
    assert sim.history(by_hand)[-1].reason == "Mistaken"


def test_a_pending_badge_may_have_a_time(caller: Caller, sim: CredlySimulator) -> None:
    sim.pending_has_state_time = True

    badge = caller.issue(sim.add_template("Python 101")).json()["data"]

    assert badge["state_updated_at"] == badge["created_at"]


@pytest.mark.parametrize("silent", [None, False, True])
@pytest.mark.parametrize("before", ["", "accept", "reject"])
def test_a_badge_is_revoked(
    caller: Caller, sim: CredlySimulator, before: str, silent: bool | None
) -> None:
    badge_id = caller.issue(sim.add_template("Python 101")).json()["data"]["id"]
    live(sim, badge_id, before)

    response = put_revoke(caller, badge_id, suppress_revoke_notification_email=silent)

    badge = response.json()["data"]
    assert response.status_code == 200
    assert response.json()["metadata"] == {}
    assert badge == sim.badges[0]
    assert (badge["id"], badge["state"]) == (badge_id, "revoked")
    assert badge["revocation_reason"] == "Issued in error"
    assert sim.history(badge_id)[-1].told is not silent or silent is None
    assert sim.count("revoke") == 1
    assert sim.problems == []


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({}, 422, "Reason can't be blank"),
        ({"reason": None}, 422, "Reason can't be blank"),
        ({"reason": "  "}, 422, "Reason can't be blank"),
        ({"reason": 7}, 422, "Reason must be a string"),
        (
            {"reason": "x", "suppress_revoke_notification_email": "yes"},
            422,
            "Suppress revoke notification email is invalid",
        ),
        ([], 400, "JSON object"),
        ("{", 400, "not valid JSON"),
    ],
)
def test_a_revocation_of_the_wrong_form_is_refused(
    caller: Caller, sim: CredlySimulator, body: t.Any, status: int, text: str
) -> None:
    badge_id = sim.award(sim.add_template("Python 101"), "a@example.org")
    data = body if isinstance(body, str) else json.dumps(body)
    headers: dict[str, str | None] = {"Content-Type": "application/json"}
    path = f"/badges/{badge_id}/revoke"

    response = caller.call("PUT", path, data=data, headers=headers)

    assert response.status_code == status
    assert text in message(response)
    assert sim.badges[0]["state"] == "pending"
    assert caller.call("PUT", path, data=data).status_code == 400  # says no JSON


def test_who_may_not_revoke(caller: Caller, sim: CredlySimulator) -> None:
    badge_id = sim.award(sim.add_template("Python 101"), "a@example.org")

    assert put_revoke(caller, str(uuid.uuid4())).status_code == 404
    form = caller.form(scope="badge_templates")
    caller.token = caller.ask_token(form).json()["access_token"]
    assert put_revoke(caller, badge_id).status_code == 403
    caller.token = "unknown"
    assert put_revoke(caller, badge_id).status_code == 401
    assert sim.badges[0]["state"] == "pending"


@pytest.mark.parametrize(
    ("steps", "refused", "status"),
    [
        ("", {"revoked"}, 200),
        ("", {"pending"}, 422),
        ("accept", {"pending"}, 200),
        ("reject", {"rejected"}, 422),
        ("revoke", {"revoked"}, 422),
        ("revoke", set(), 200),
    ],
)
def test_which_badges_are_revoked_can_be_switched(
    caller: Caller, sim: CredlySimulator, steps: str, refused: set[str], status: int
) -> None:
    badge_id = sim.award(sim.add_template("Python 101"), "a@example.org")
    live(sim, badge_id, steps)
    before = sim.history(badge_id)
    sim.states_not_revoked = refused

    response = put_revoke(caller, badge_id, reason="Another reason")

    assert response.status_code == status
    changed = status == 200 and steps != "revoke"
    assert (sim.history(badge_id) != before) == changed
    assert sim.problems == []  # somebody else revoked it


def test_a_replaced_badge_is_not_revoked(caller: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101")
    old = sim.award(template_id, "earner@example.org")
    assert caller.issue(template_id, duplicate_behavior="replace").status_code == 201

    response = put_revoke(caller, old)

    assert response.status_code == 422
    assert "has been replaced" in message(response)
    assert sim.badges[0]["state"] == "pending"


def test_to_revoke_again_without_a_look_is_noted(
    caller: Caller, sim: CredlySimulator
) -> None:
    badge_id = sim.award(sim.add_template("Python 101"), "a@example.org")

    put_revoke(caller, badge_id, color="red")
    put_revoke(caller, badge_id)
    put_revoke(caller, badge_id)

    unknown, second, third, count = sim.problems
    assert "unknown field 'color'" in unknown
    assert "revoked" in second and "revoked" in third
    assert f"revoke request no. 3 for badge {badge_id}" in count


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("how", ["reset", "hang"])
def test_the_answer_to_a_revocation_can_be_lost(
    caller: Caller, sim: CredlySimulator, how: t.Any, after: bool
) -> None:
    badge_id = sim.award(sim.add_template("Python 101"), "a@example.org")
    sim.fail("revoke", how=how, after=after)

    with pytest.raises(requests.RequestException):
        put_revoke(caller, badge_id)

    assert sim.badges[0]["state"] == ("revoked" if after else "pending")


def test_a_revocation_can_be_late(caller: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101")
    ids = [sim.award(template_id, f"e{n}@example.org") for n in range(3)]
    sim.fail("revoke", how="late", delay=60, times=3)

    for badge_id in ids:
        with pytest.raises(requests.ConnectionError):
            put_revoke(caller, badge_id)

    sim.revoke_badge(ids[1], "Mistaken")
    sim.delete_badge(ids[2])
    assert [badge["state"] for badge in sim.badges] == ["pending", "revoked"]
    due = sim.clock() + 60
    sim.advance(120)

    assert [badge["state"] for badge in sim.badges] == ["revoked", "revoked"]
    assert sim.history(ids[0])[-1].by == "request"
    assert abs(sim.history(ids[0])[-1].at - due) < 5
    assert [each.by for each in sim.history(ids[1])] == ["issuer", "issuer"]


def replace(
    caller: Caller, badge_id: str, template_id: str, **changes: t.Any
) -> requests.Response:
    body = {"badge_template_id": template_id, "issued_at": LATER} | changes
    return caller.call("POST", f"/badges/{badge_id}/replace", json=body)


@pytest.mark.parametrize("status", [200, 201])
@pytest.mark.parametrize("accepted", [False, True])
def test_a_badge_is_replaced(
    caller: Caller, sim: CredlySimulator, accepted: bool, status: int
) -> None:
    template_id = sim.add_template("Python 101")
    options: dict[str, t.Any] = {
        "issuer_earner_id": "site:42",
        "issued_to_middle_name": "B.",
        "country_name": "France",
        "evidence": [{"type": "UrlEvidence", "name": "A", "value": "https://a.org"}],
        "suppress_badge_notification_email": True,
    }
    old_id = caller.issue(template_id, **options).json()["data"]["id"]
    sim.advance(60)
    live(sim, old_id, "accept" if accepted else "")
    before = sim.badges[0]
    sim.advance(60)
    sim.replace_status = status

    response = replace(caller, old_id, template_id, issued_to_last_name="Roe")

    old, new = sim.badges
    assert (response.status_code, response.json()) == (
        status,
        {"data": new, "metadata": {}},
    )
    links = {"replacement_badge_id": new["id"], "updated_at": new["created_at"]}
    assert old == before | links
    assert new["id"] != old["id"]
    assert new["replaces_badge_id"] == old["id"]
    assert new["replacement_badge_id"] is None
    assert new["state"] == old["state"] == ("accepted" if accepted else "pending")
    assert new["user"] == old["user"]
    assert ("badge_url" in new) == accepted
    assert (new["state_updated_at"] is None) == (not accepted)
    assert new["issued_at"] == "2025-05-01T00:00:00.000Z"
    assert new["issued_to"] == "Example Roe"
    same = {*options, "recipient_email", "issued_to_first_name"} - {"country_name"}
    assert {name: new[name] for name in same} == {name: old[name] for name in same}
    assert new["country"] == "France"
    assert [each.state for each in sim.history(old_id)][-1] == "replaced"
    assert [each.state for each in sim.history(new["id"])] == [new["state"]]
    assert sim.badges_for(in_force=True) == [new]
    ids = {row["id"] for row in caller.badges().json()["data"]}
    assert ids == {old["id"], new["id"]}
    assert sim.count("replace") == 1
    assert sim.problems == []


def test_a_badge_is_replaced_by_one_of_another_template(
    caller: Caller, sim: CredlySimulator
) -> None:
    one, two = sim.add_template("Python 101"), sim.add_template("Python 102")
    old_id = caller.issue(one).json()["data"]["id"]

    badge = replace(caller, old_id, two, issuer_earner_id="site:1").json()["data"]

    assert badge["badge_template"]["id"] == two
    assert badge["issuer_earner_id"] == "site:1"
    assert caller.issue(one).status_code == 201
    assert caller.issue(two).status_code == 422
    assert sim.problems == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"badge_template_id": None}, "Invalid or missing Badge Template ID: "),
        ({"issued_at": None}, "Issued at can't be blank"),
        ({"issued_at": "1 May 2025"}, "Issued at is invalid"),
        ({"issued_to_last_name": ""}, "Issued to last name can't be blank"),
        ({"notification_message": 7}, "Notification message must be a string"),
        ({"expires_at": "never"}, "Expires at is invalid"),
    ],
)
def test_a_replacement_of_the_wrong_form_is_refused(
    caller: Caller, sim: CredlySimulator, changes: dict[str, t.Any], text: str
) -> None:
    template_id = sim.add_template("Python 101")
    old_id = sim.award(template_id, "a@example.org")

    response = replace(caller, old_id, template_id, **changes)

    assert response.status_code == 422
    assert text in message(response)
    assert len(sim.badges) == 1
    assert sim.problems == []


def test_who_may_not_replace(caller: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101")
    old_id = sim.award(template_id, "a@example.org")

    assert replace(caller, str(uuid.uuid4()), template_id).status_code == 404
    response = caller.call("POST", f"/badges/{old_id}/replace", json=[])
    assert response.status_code == 400
    form = caller.form(scope="badge_templates")
    caller.token = caller.ask_token(form).json()["access_token"]
    assert replace(caller, old_id, template_id).status_code == 403
    assert len(sim.badges) == 1


def test_a_field_that_belongs_to_issuing_is_noted(
    caller: Caller, sim: CredlySimulator
) -> None:
    template_id = sim.add_template("Python 101")
    old_id = sim.award(template_id, "a@example.org")
    extra = {
        "notification_message": "Hi",
        "duplicate_behavior": "deny",
        "colour": "red",
    }

    assert replace(caller, old_id, template_id, **extra).status_code == 201

    behavior, colour = (text.partition("unknown ")[2] for text in sorted(sim.problems))
    assert (colour, behavior) == ("field 'duplicate_behavior'", "field 'colour'")


def test_the_badge_in_force_is_named_where_one_was_replaced(
    caller: Caller, sim: CredlySimulator
) -> None:
    template_id = sim.add_template("Python 101")
    first = sim.award(template_id, "a@example.org")
    second = sim.replace_badge(first)
    third = sim.replace_badge(second, issued_to_last_name="Roe")

    for number in range(2):
        response = replace(caller, [first, second][number], template_id)

        assert response.status_code == 422
        body = response.json()
        assert body["metadata"] == {"current_badge_id": third}
        assert body["data"]["message"] == (
            "Validation failed: This badge cannot be replaced because it has already"
            " been replaced."
        )

    sim.delete_badge(second)
    body = replace(caller, first, template_id).json()
    assert body["metadata"] == {"current_badge_id": third}
    assert sim.problems == []  # somebody else replaced them
    assert sim.badges_for(in_force=True)[0]["issued_to_last_name"] == "Roe"


@pytest.mark.parametrize(
    ("steps", "refused", "status"),
    [
        ("", {"rejected", "revoked"}, 201),
        ("", {"pending"}, 422),
        ("reject", {"rejected", "revoked"}, 422),
        ("accept reject", {"rejected", "revoked"}, 422),
        ("reject", {"revoked"}, 201),
        ("revoke", {"rejected", "revoked"}, 422),
        ("revoke", set(), 201),
    ],
)
def test_which_badges_are_replaced_can_be_switched(
    caller: Caller, sim: CredlySimulator, steps: str, refused: set[str], status: int
) -> None:
    template_id = sim.add_template("Python 101")
    old_id = sim.award(template_id, "a@example.org")
    live(sim, old_id, steps)
    assert sim.states_not_replaced == {"rejected", "revoked"}
    sim.states_not_replaced = refused

    response = replace(caller, old_id, template_id)

    assert response.status_code == status
    assert [badge["state"] for badge in sim.badges[1:]] == ["pending"] * (status == 201)
    assert sim.problems == []


@pytest.mark.parametrize("replaced", [True, False])
def test_whether_an_expired_badge_is_replaced_can_be_switched(
    caller: Caller, sim: CredlySimulator, replaced: bool
) -> None:
    template_id = sim.add_template("Python 101")
    until = dt.datetime.fromtimestamp(sim.clock() + 3600, dt.UTC).isoformat()
    old_id = caller.issue(template_id, expires_at=until).json()["data"]["id"]
    sim.advance(3601)
    sim.expired_is_replaced = replaced
    assert sim.badges_for(in_force=True) == []

    response = replace(caller, old_id, template_id)

    assert response.status_code == (201 if replaced else 422)
    assert [each["expires_at"] for each in sim.badges_for(in_force=True)] == (
        [None] if replaced else []
    )
    assert replaced or "has expired" in message(response)


@pytest.mark.parametrize("accepted", [False, True])
def test_a_new_address_is_for_a_badge_that_was_not_accepted(
    caller: Caller, sim: CredlySimulator, accepted: bool
) -> None:
    template_id = sim.add_template("Python 101")
    old_id = sim.award(template_id, "a@example.org")
    live(sim, old_id, "accept" if accepted else "")

    response = replace(caller, old_id, template_id, recipient_email="b@example.org")

    assert response.status_code == (422 if accepted else 201)
    assert len(sim.badges_for("b@example.org")) == (not accepted)
    response = replace(caller, old_id, template_id, recipient_email="A@example.org")
    assert response.status_code == (201 if accepted else 422)


@pytest.mark.parametrize("double", [False, True])
def test_a_replacement_may_not_be_a_second_badge(
    caller: Caller, sim: CredlySimulator, double: bool
) -> None:
    one, two = sim.add_template("Python 101"), sim.add_template("Python 102")
    old_id = caller.issue(one).json()["data"]["id"]
    sim.award(two, "earner@example.org")
    sim.replace_may_double = double

    response = replace(caller, old_id, two)

    assert response.status_code == (201 if double else 422)
    assert double or "already has this badge" in message(response)
    noted = [f"second badge of template {two} for e-mail earner@example.org"]
    assert sim.problems == (noted if double else [])


@pytest.mark.parametrize("behavior", ["allow", None])
def test_two_badges_in_force_are_noted(
    caller: Caller, sim: CredlySimulator, behavior: str | None
) -> None:
    template_id = sim.add_template("Python 101")
    by_hand = sim.award(template_id, "earner@example.org")
    sim.states_in_the_way = {"pending", "accepted", "rejected"} if behavior else set()

    caller.issue(template_id, issuer_earner_id="site:1", duplicate_behavior=behavior)

    noted = [f"second badge of template {template_id} for earner site:1"]
    assert sim.problems == noted
    for badge in sim.badges:
        sim.revoke_badge(badge["id"])

    assert caller.issue(template_id, issuer_earner_id="site:1").status_code == 201
    assert sim.problems == noted
    assert sim.history(by_hand)[-1].state == "revoked"


def test_a_test_may_allow_several_badges(caller: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101", allow_duplicate_badges=True)
    sim.badges_allowed = 2
    old_id = caller.issue(template_id).json()["data"]["id"]
    caller.issue(template_id)
    replace(caller, old_id, template_id)
    assert sim.problems == []

    replace(caller, sim.badges[-1]["id"], template_id)
    sim.posts_allowed = 3
    caller.issue(template_id)
    assert len(sim.problems) == 1
    assert "second badge" in sim.problems[0]


def test_to_replace_again_without_a_look_is_noted(
    caller: Caller, sim: CredlySimulator
) -> None:
    template_id = sim.add_template("Python 101")
    old_id = sim.award(template_id, "a@example.org")

    for _ in range(3):
        replace(caller, old_id, template_id)

    second, third, count = sim.problems
    assert "a badge was replaced that was so by a request" in second
    assert second == third
    assert f"replace request no. 3 for badge {old_id}" in count
    assert len(sim.badges) == 2


def test_of_many_at_once_one_replaces(remote: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101")
    old_id = sim.award(template_id, "a@example.org")
    remote.badges()  # a token

    def ask(_: int) -> requests.Response:
        return replace(remote, old_id, template_id)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(ask, range(8)))

    (new,) = sim.badges_for(in_force=True)
    found = collections.Counter(response.status_code for response in responses)
    assert found == {201: 1, 422: 7}
    refused = [r.json()["metadata"] for r in responses if r.status_code == 422]
    assert refused == [{"current_badge_id": new["id"]}] * 7


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("how", ["reset", "hang", "truncate"])
def test_the_answer_to_a_replacement_can_be_lost(
    caller: Caller, sim: CredlySimulator, how: t.Any, after: bool
) -> None:
    template_id = sim.add_template("Python 101")
    old_id = sim.award(template_id, "a@example.org")
    sim.fail("replace", how=how, after=after)

    with pytest.raises(requests.RequestException):
        replace(caller, old_id, template_id)

    assert len(sim.badges) == 1 + (after or how == "truncate")


def test_a_replacement_can_be_late(caller: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101")
    ids = [sim.award(template_id, f"{n}@example.org") for n in range(4)]
    sim.fail("replace", how="late", delay=60, times=4)

    for badge_id in ids:
        with pytest.raises(requests.ConnectionError):
            replace(caller, badge_id, template_id)

    sim.revoke_badge(ids[1])
    sim.delete_badge(ids[2])
    other = sim.replace_badge(ids[3])
    sim.advance(60)

    first, second, fourth, by_hand, new = sim.badges
    assert first["replacement_badge_id"] == new["id"]
    assert second["replacement_badge_id"] is None
    assert fourth["replacement_badge_id"] == by_hand["id"] == other
    assert sim.history(new["id"])[0].at == pytest.approx(sim.clock(), abs=5)
    assert sim.problems == []


def test_a_replaced_badge_stays_as_it_is(caller: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101")
    old_id = sim.award(template_id, "a@example.org")
    new_id = sim.replace_badge(old_id)

    for step in ("accept", "reject", "revoke"):
        with pytest.raises(ValueError, match="replaced does not become"):
            live(sim, old_id, step)

    live(sim, new_id, "accept")
    newest = sim.replace_badge(new_id)
    live(sim, newest, "revoke")
    pending, accepted, revoked = sim.badges
    assert (pending["state"], accepted["state"]) == ("pending", "accepted")
    assert {"badge_url", "accept_badge_url"} & set(revoked) == set()
    assert sim.badges_for(in_force=True) == []


def test_a_duplicate_of_two_badges_replaces_neither(
    caller: Caller, sim: CredlySimulator
) -> None:
    template_id = sim.add_template("Python 101")
    sim.award(template_id, "earner@example.org")
    sim.award(template_id, "other@example.org", issuer_earner_id="site:1")

    response = caller.issue(
        template_id, issuer_earner_id="site:1", duplicate_behavior="replace"
    )

    assert response.status_code == 422
    assert len(sim.badges_for(in_force=True)) == 2
    assert sim.problems == []


def test_a_duplicate_that_replaces_goes_on_from_the_first(
    caller: Caller, sim: CredlySimulator
) -> None:
    template_id = sim.add_template("Python 101")
    sim.add_account("earner@example.org", "new@example.org")
    order: dict[str, t.Any] = {
        "issuer_earner_id": "site:1",
        "duplicate_behavior": "replace",
    }
    caller.issue(template_id, country_name="France", **order)
    sim.posts_allowed = 9

    caller.issue(template_id, recipient_email="new@example.org", **order)
    sim.accept(sim.badges[-1]["id"])
    caller.issue(template_id, **order)

    emails = [badge["recipient_email"] for badge in sim.badges]
    assert emails == ["earner@example.org", "new@example.org", "new@example.org"]
    assert [badge["state"] for badge in sim.badges] == [
        "pending",
        "accepted",
        "accepted",
    ]
    assert [badge["country"] for badge in sim.badges] == ["France", None, None]
    response = replace(caller, sim.badges[-1]["id"], template_id)
    assert response.json()["data"]["recipient_email"] == "new@example.org"
    assert sim.problems == []


def test_a_deleted_badge_is_gone(caller: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101")
    badge_id = caller.issue(template_id).json()["data"]["id"]
    kept = caller.issue(template_id, recipient_email="b@example.org").json()["data"]

    sim.delete_badge(badge_id)

    assert caller.call("GET", f"/badges/{badge_id}").status_code == 404
    assert put_revoke(caller, badge_id).status_code == 404
    assert [row["id"] for row in caller.badges().json()["data"]] == [kept["id"]]
    assert caller.issue(template_id).status_code == 201
    assert sim.problems == []

    with pytest.raises(KeyError):
        sim.delete_badge(badge_id)


def make_news(sim: CredlySimulator) -> list[str]:
    """Have five badges; what became of three of them is not in their order."""
    template_id = sim.add_template("Python 101")
    ids = [sim.award(template_id, f"e{n}@example.org") for n in range(5)]

    for number, step in ((3, "accept"), (0, "revoke"), (2, "reject")):
        sim.advance(60)
        live(sim, ids[number], step)

    return [ids[number] for number in (2, 0, 3, 1, 4)]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (
            {
                "filter": "state::accepted,rejected,revoked",
                "sort": "-state_updated_at",
            },
            [0, 1, 2],
        ),
        ({"filter": "state::accepted,rejected,revoked"}, [1, 0, 2]),
        ({"sort": "-state_updated_at"}, [3, 4, 0, 1, 2]),
        ({"sort": "state_updated_at"}, [2, 1, 0, 3, 4]),
    ],
)
def test_the_news_can_be_listed(
    caller: Caller, sim: CredlySimulator, query: dict[str, str], found: list[int]
) -> None:
    ids = make_news(sim)

    rows = caller.badges(**query).json()["data"]

    assert [row["id"] for row in rows] == [ids[number] for number in found]
    assert sim.problems == []


def test_the_order_of_the_news_can_be_ignored(
    caller: Caller, sim: CredlySimulator
) -> None:
    ids = make_news(sim)
    sim.ignored_sorts.add("state_updated_at")

    body = caller.badges(
        filter="state::accepted,rejected,revoked", sort="-state_updated_at"
    ).json()

    assert [row["id"] for row in body["data"]] == [ids[1], ids[0], ids[2]]
    assert sim.problems == []


@pytest.mark.parametrize(
    ("steps", "in_the_way", "status"),
    [
        ("", {"pending", "accepted", "rejected"}, 422),
        ("accept", {"pending", "accepted", "rejected"}, 422),
        ("reject", {"pending", "accepted", "rejected"}, 422),
        ("reject", {"pending", "accepted"}, 201),
        ("revoke", {"pending", "accepted", "rejected"}, 201),
        ("revoke", {"pending", "accepted", "revoked"}, 422),
    ],
)
def test_which_badge_is_in_the_way_can_be_switched(
    caller: Caller, sim: CredlySimulator, steps: str, in_the_way: set[str], status: int
) -> None:
    template_id = sim.add_template("Python 101")
    live(sim, sim.award(template_id, "earner@example.org"), steps)
    assert sim.states_in_the_way == {"pending", "accepted", "rejected"}
    sim.states_in_the_way = in_the_way

    assert caller.issue(template_id).status_code == status


def test_earners_act_over_http(
    remote: Caller, sim: CredlySimulator, server: SimulatorServer
) -> None:
    template_id = sim.add_template("Python 101")
    ids = [sim.award(template_id, f"e{n}@example.org") for n in range(3)]

    def post(command: str, **options: t.Any) -> int:
        url = f"http://127.0.0.1:{server.port}/_simulator/{command}"
        return remote.session.post(url, json=options, timeout=5).status_code

    assert post("accept", badge_id=ids[0]) == 200
    assert post("reject", badge_id=ids[1]) == 200
    assert post("revoke-badge", badge_id=ids[2], reason="Mistaken") == 200
    states = [badge["state"] for badge in sim.badges]
    assert states == ["accepted", "rejected", "revoked"]
    assert sim.badges[2]["revocation_reason"] == "Mistaken"
    assert post("accept", badge_id=ids[2]) == 400
    assert post("replace-badge", badge_id=ids[2]) == 400
    assert post("change-template", id=template_id, state="archived") == 200
    assert remote.issue(template_id).status_code == 422
    assert post("change-template", id=template_id, state="active") == 200
    assert post("change-template", id=template_id, state="lost") == 400
    assert post("change-template", id=str(uuid.uuid4()), state="active") == 400
    assert post("replace-badge", badge_id=ids[0], template_id=template_id) == 200
    assert sim.badges[3]["replaces_badge_id"] == ids[0]
    assert post("accept", badge_id=str(uuid.uuid4())) == 400
    assert post("accept") == 400


# The search


def read_all(caller: Caller, **query: t.Any) -> list[list[dict[str, t.Any]]]:
    """Read all pages by the query strings of their addresses."""
    pages = []

    while True:
        response = caller.call("GET", SEARCH, params=query)
        body = response.json()
        assert response.status_code == 200
        assert list(body["metadata"]) == ["next_page_url"]
        pages.append(body["data"])

        if (url := body["metadata"]["next_page_url"]) is None:
            return pages

        parts = urllib.parse.urlsplit(url)
        query = dict(urllib.parse.parse_qsl(parts.query))


def make_badges(sim: Organization, number: int = 7) -> list[str]:
    template_id = sim.add_template("Python 101")
    return [sim.award(template_id, f"{n}@example.org") for n in range(number)]


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_all_badges_can_be_searched(
    caller: Caller, sim: CredlySimulator, size: int
) -> None:
    ids = make_badges(sim)
    sim.search_page_size = size

    pages = read_all(caller)

    assert [row["id"] for page in pages for row in page] == ids
    assert {len(page) for page in pages[:-1]} <= {size}
    assert pages[0][0] == sim.badges[0]
    assert sim.count("search") == len(pages)
    assert sim.problems == []


@pytest.mark.parametrize("steps", ["", "accept", "accept reject", "revoke"])
def test_a_minimal_badge_has_few_keys(
    caller: Caller, sim: CredlySimulator, steps: str
) -> None:
    (badge_id,) = make_badges(sim, 1)
    live(sim, badge_id, steps)
    (badge,) = sim.badges

    ((row,),) = read_all(caller, badge_format="minimal")

    names = (
        "id state state_updated_at issued_at created_at updated_at expires_at issued_to"
        " issued_to_first_name issued_to_last_name issuer_earner_id recipient_email"
        " public badge_template user"
    ).split()
    shown = [*names, "badge_url"] if steps == "accept" else names
    assert sorted(row) == sorted(shown)
    template = badge["badge_template"]
    assert row.pop("badge_template") == {
        "id": template["id"],
        "name": template["name"],
    }
    user = row.pop("user")
    assert user == ({"id": badge["user"]["id"]} if badge["user"] else {})
    assert row == {name: badge[name] for name in row}
    assert sim.problems == []


def test_a_search_has_the_filters_of_the_list(
    caller: Caller, sim: CredlySimulator
) -> None:
    ids = make_badges(sim)
    sim.search_page_size = 1
    live(sim, ids[1], "accept")
    live(sim, ids[4], "revoke")
    sim.look_up_lag = 60

    assert read_all(caller) == [[]]
    sim.advance(60)
    pages = read_all(caller, filter="state::accepted,revoked", badge_format="minimal")

    assert [[row["id"] for row in page] for page in pages] == [[ids[1]], [ids[4]]]
    assert sim.problems == []
    caller.call("GET", SEARCH, params={"filter": "colour::red"})
    caller.call("GET", SEARCH, params={"page": "2"})
    unknown, number = sim.problems
    assert "unknown filter key 'colour'" in unknown
    assert "unknown query parameter 'page'" in number
    refused = caller.call("GET", SEARCH, params={"badge_format": "small"})
    assert refused.status_code == 400


def test_a_search_misses_nothing_while_badges_change(
    caller: Caller, sim: CredlySimulator
) -> None:
    ids = make_badges(sim)
    sim.search_page_size = 2
    template_id = sim.badges[0]["badge_template"]["id"]
    body = caller.call("GET", SEARCH).json()
    seen = [row["id"] for row in body["data"]]
    sim.delete_badge(ids[0])
    sim.delete_badge(ids[3])
    new = [sim.replace_badge(ids[1]), sim.award(template_id, "new@example.org")]

    while (url := body["metadata"]["next_page_url"]) is not None:
        body = follow(caller, url).json()
        seen += [row["id"] for row in body["data"]]

    assert seen == [*ids[:3], *ids[4:], *new]


def test_a_search_shows_what_was_written_late_in_its_time(
    caller: Caller, sim: CredlySimulator
) -> None:
    template_id = sim.add_template("Python 101")
    sim.fail("issue", how="late", delay=10)

    with pytest.raises(requests.ConnectionError):
        caller.issue(template_id)

    sim.advance(20)
    sim.award(template_id, "other@example.org")
    with pytest.raises(Refusal):
        sim.award(template_id, "earner@example.org")

    emails = [badge["recipient_email"] for badge in sim.badges]
    assert emails == ["earner@example.org", "other@example.org"]


def next_url(caller: Caller, **query: t.Any) -> str:
    body = caller.call("GET", SEARCH, params=query).json()
    return t.cast(str, body["metadata"]["next_page_url"])


def follow(caller: Caller, url: str, **changes: t.Any) -> requests.Response:
    query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query))
    return caller.call("GET", SEARCH, params=query | changes)


def test_the_address_of_the_next_page_is_a_trap(
    caller: Caller, sim: CredlySimulator
) -> None:
    make_badges(sim)
    sim.search_page_size = 3
    url = next_url(caller, filter="state::pending", badge_format="minimal")
    assert url.startswith("https://api.credly.com/api/v1/organizations/")
    assert follow(caller, url).status_code == 200
    assert sim.problems == []
    headers = {
        "Accept": "application/json",
        "Authorization": f"Bearer {caller.token}",
    }
    response = caller.session.get(url, headers=headers, timeout=5)
    assert response.status_code == 404
    assert "a page URL of an answer was followed" in sim.problems[0]

    sim.search_next_address = "https://other.example.org/v2/all"
    assert next_url(caller).startswith("https://other.example.org/v2/all?search_after=")


@pytest.mark.parametrize("status", [400, 404])
def test_a_cursor_ceases_to_be_good(
    caller: Caller, sim: CredlySimulator, status: int
) -> None:
    make_badges(sim)
    sim.search_page_size = 3
    sim.cursor_seconds = 60
    sim.lost_cursor_status = status
    url = next_url(caller)
    assert follow(caller, url).status_code == 200
    assert follow(caller, url, search_after="x").status_code == status
    assert follow(caller, url, filter="state::pending").status_code == 400
    assert follow(caller, url, badge_format="minimal").status_code == 400

    sim.advance(61)
    assert follow(caller, url).status_code == status


def test_a_cursor_can_be_named_again(caller: Caller, sim: CredlySimulator) -> None:
    make_badges(sim)
    sim.search_page_size = 2
    sim.search_repeats_cursor = True
    url = next_url(caller)

    body = follow(caller, url).json()

    assert body["metadata"]["next_page_url"] == url
    assert follow(caller, url).json() == body


def test_a_search_can_fail(caller: Caller, sim: CredlySimulator) -> None:
    make_badges(sim)
    sim.fail("search", status=503)

    assert caller.call("GET", SEARCH).status_code == 503
    assert caller.call("GET", SEARCH).status_code == 200
    form = caller.form(scope="badge_templates")
    caller.token = caller.ask_token(form).json()["access_token"]
    assert caller.call("GET", SEARCH).status_code == 403


# Expiry, mails, and who sees a badge


DAY = 86400


def mails(sim: Organization) -> list[tuple[str, str, str]]:
    return [(mail.kind, mail.to, mail.badge_id) for mail in sim.mails]


@pytest.mark.parametrize(
    ("issued_at", "months", "day"),
    [
        ("2024-01-31T10:00:00Z", 1, "2024-02-29"),
        ("2024-02-29T10:00:00Z", 12, "2025-02-28"),
        ("2023-12-31T23:30:00-0500", 2, "2024-03-01"),
        ("2024-08-15T10:00:00Z", 30, "2027-02-15"),
    ],
)
def test_a_badge_expires_as_its_template_says(
    caller: Caller, sim: CredlySimulator, issued_at: str, months: int, day: str
) -> None:
    template_id = sim.add_template("Python 101", expires=months)

    badge = caller.issue(template_id, issued_at=issued_at).json()["data"]

    assert badge["expires_at_date"] == badge["expires_at"][:10] == day
    assert badge["expires_at"][10:] == badge["issued_at"][10:]
    assert badge["badge_template"]["default_expires_at_type"] == "months"


def test_a_template_can_expire_at_one_time(
    caller: Caller, sim: CredlySimulator
) -> None:
    until = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    template_id = sim.add_template("Python 101", expires=until)

    badge = caller.issue(template_id).json()["data"]

    assert badge["expires_at"] == "2030-01-01T00:00:00.000Z"
    (template,) = caller.templates().json()["data"]
    assert template["default_expires_at_date"] == "2030-01-01"


@pytest.mark.parametrize(
    ("asked", "day"),
    [
        ({}, "2025-04-01"),
        ({"expires_at": None}, "2025-04-01"),
        ({"expires_at": False}, None),
        ({"expires_at": "2031-01-01"}, "2031-01-01"),
    ],
)
def test_the_date_that_is_asked_for_wins(
    caller: Caller, sim: CredlySimulator, asked: dict[str, t.Any], day: str | None
) -> None:
    template_id = sim.add_template("Python 101", expires=12)
    assert caller.issue(template_id, **asked).json()["data"]["expires_at_date"] == day

    later = {"2025-04-01": "2026-05-01"}.get(str(day), day)
    old_id = sim.badges[0]["id"]
    badge = replace(caller, old_id, template_id, **asked).json()["data"]

    assert badge["expires_at_date"] == later
    assert sim.badges[0]["expires_at_date"] == day


def test_badges_that_exist_keep_their_expiry(
    caller: Caller, sim: CredlySimulator
) -> None:
    template_id = sim.add_template("Python 101")
    old_id = caller.issue(template_id, expires_at="2031-01-01").json()["data"]["id"]
    sim.change_template(template_id, expires=1)

    assert sim.badges[0]["expires_at_date"] == "2031-01-01"
    sim.advance(10)
    badge = replace(caller, old_id, template_id).json()["data"]
    assert badge["expires_at_date"] == "2025-06-01"
    # It expired before it was issued, and keeps its state all the same.
    assert badge["state"] == "pending"
    assert sim.badges_for(in_force=True) == []


@pytest.mark.parametrize("stands", [True, False])
def test_whether_an_expired_badge_is_in_the_way_can_be_switched(
    caller: Caller, sim: CredlySimulator, stands: bool
) -> None:
    template_id = sim.add_template("Python 101", expires=1)
    caller.issue(template_id)
    sim.expired_is_in_the_way = stands

    assert caller.issue(template_id).status_code == (422 if stands else 201)
    assert sim.problems == []


def test_mails_are_on_record(caller: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101")
    old_id = caller.issue(template_id, locale="fr").json()["data"]["id"]
    sim.advance(60)
    badge = replace(caller, old_id, template_id, notification_message="Hello")
    new_id = badge.json()["data"]["id"]
    put_revoke(caller, new_id)

    to = "earner@example.org"
    assert mails(sim) == [
        ("issued", to, old_id),
        ("replaced", to, new_id),
        ("revoked", to, new_id),
    ]
    issued, replaced, revoked = sim.mails
    assert {mail.locale for mail in sim.mails} == {"fr"}
    assert (issued.message, replaced.message, revoked.message) == (None, "Hello", None)
    assert issued.at < replaced.at <= revoked.at
    sim.reset()
    assert sim.mails == []


def test_mails_can_be_suppressed(caller: Caller, sim: CredlySimulator) -> None:
    template_id = sim.add_template("Python 101", notify_expiring=True)
    year = dt.datetime.fromtimestamp(sim.clock(), dt.UTC) + dt.timedelta(days=365)
    options: dict[str, t.Any] = {"expires_at": year.isoformat()}
    silent: dict[str, t.Any] = {"suppress_badge_notification_email": True}
    old_id = caller.issue(template_id, **options, **silent).json()["data"]["id"]
    response = replace(caller, old_id, template_id, **options)
    put_revoke(
        caller,
        response.json()["data"]["id"],
        suppress_revoke_notification_email=True,
    )
    sim.award(template_id, "b@example.org", **options, **silent)
    sim.advance(400 * DAY)

    assert sim.mails == []


def test_nobody_is_written_to_about_what_was_refused(
    caller: Caller, sim: CredlySimulator
) -> None:
    template_id = sim.add_template("Python 101")
    caller.issue(template_id)
    caller.issue(template_id)
    put_revoke(caller, sim.badges[0]["id"], reason="")

    assert len(sim.mails) == 1


def test_an_earner_is_told_60_days_before_a_badge_expires(
    sim: CredlySimulator,
) -> None:
    told = sim.add_template("Python 101", notify_expiring=True)
    untold = sim.add_template("Python 102")
    now = dt.datetime.fromtimestamp(sim.clock(), dt.UTC)

    def award(template_id: str, name: str, days: int = 100) -> str:
        until = (now + dt.timedelta(days=days)).isoformat()
        return sim.award(template_id, f"{name}@example.org", expires_at=until)

    ids = {name: award(told, name) for name in ("a", "b", "c", "d", "e", "f")}
    award(untold, "g")
    award(told, "short", days=59)
    sim.accept(ids["b"])
    sim.reject(ids["c"])
    sim.revoke_badge(ids["d"])
    sim.delete_badge(ids["e"])
    new_id = sim.replace_badge(ids["f"], expires_at=False)
    assert sim.mails[-1].badge_id == new_id
    count = len(sim.mails)

    sim.advance(40 * DAY - 60)
    assert len(sim.mails) == count
    sim.advance(120)

    assert [mail.badge_id for mail in sim.mails[count:]] == [ids["a"], ids["b"]]
    assert {mail.kind for mail in sim.mails[count:]} == {"expiring"}
    sim.advance(100 * DAY)
    assert len(sim.mails) == count + 2
    assert {badge["state"] for badge in sim.badges_for("a@example.org")} == {"pending"}


@pytest.mark.parametrize("public", [True, False])
def test_who_sees_an_accepted_badge(
    caller: Caller, sim: CredlySimulator, public: bool
) -> None:
    template_id = sim.add_template("Python 101")
    badge_id = sim.award(template_id, "a@example.org")
    sim.accepted_is_public = public

    def shown() -> bool:
        found = caller.badges(filter="public::true").json()["data"]
        return [row["id"] for row in found] == [badge_id]

    with pytest.raises(ValueError, match="Only a badge that is accepted"):
        sim.make_private(badge_id)

    assert not shown()
    sim.accept(badge_id)
    assert shown() == public
    before = sim.badges[0]["state_updated_at"]
    sim.make_private(badge_id)
    assert not shown()
    sim.make_public(badge_id)
    assert shown()
    assert sim.badges[0]["state_updated_at"] == before

    new_id = sim.replace_badge(badge_id)
    assert sim.badges[1]["public"] is True
    sim.revoke_badge(new_id)
    assert sim.badges[1]["public"] is False

    with pytest.raises(ValueError, match="Only a badge that is accepted"):
        sim.make_public(badge_id)


# The book stays in order, whatever happens


class Life:
    """Requests, earners and issuers who do as they like, by a seed. Seconds pass only
    when it says so.
    """

    def __init__(self, caller: Caller, sim: CredlySimulator, seed: int) -> None:
        self.caller = caller
        self.sim = sim
        self.chance = random.Random(seed)
        self.ever: dict[str, dict[str, t.Any]] = {}
        self.answered: set[int | None] = set()
        sim.posts_allowed = 10**6
        sim.badges_allowed = 10**6
        sim.add_account("a@example.org", "b@example.org")
        self.templates = [
            sim.add_template("Once"),
            sim.add_template("Once a year", expires=12, notify_expiring=True),
            sim.add_template("Often", allow_duplicate_badges=True),
        ]

    def run(self, steps: int) -> None:
        acts = (
            [self.request] * 6
            + [self.by_hand] * 3
            + [self.award, self.fail, self.pass_time]
            + ([self.delete] if self.chance.random() < 0.5 else [])
        )

        for _ in range(steps):
            self.chance.choice(acts)()
            self.check()

        self.sim.clear_faults()
        self.sim.advance(600)
        self.check()
        self.check_lists()

    def pick(self) -> str:
        ids = [badge["id"] for badge in self.sim.badges]
        return str(self.chance.choice([*ids[-8:], uuid.uuid4()]))

    def request(self) -> None:
        kind = self.chance.choice(["issue", "issue", "replace", "replace", "revoke"])
        before = self.sim.badges

        try:
            response = getattr(self, kind)()
        except requests.RequestException:
            self.answered.add(None)
            return

        self.answered.add(response.status_code)

        if response.status_code not in (200, 201, 500):
            assert self.sim.badges == before
        elif response.status_code == 201:
            assert response.json()["data"] == self.sim.badges[-1]
            assert self.sim.badges[-1] not in before

    def issue(self) -> requests.Response:
        number = self.chance.randrange(4)
        return self.caller.issue(
            self.chance.choice(self.templates),
            recipient_email=f"{'abcd'[number]}@example.org",
            issuer_earner_id=self.chance.choice([None, f"site:{number}"]),
            duplicate_behavior=self.chance.choice([None, None, "replace", "deny"]),
            suppress_badge_notification_email=self.chance.random() < 0.2,
        )

    def replace(self) -> requests.Response:
        now = dt.datetime.fromtimestamp(self.sim.clock(), dt.UTC)
        changes: dict[str, t.Any] = self.chance.choice(
            [
                {},
                {"issued_at": now.isoformat(timespec="seconds")},
                {"recipient_email": "e@example.org"},
                {"expires_at": False},
                {"issued_to_last_name": ""},
            ]
        )
        template_id = self.chance.choice(self.templates)
        return replace(self.caller, self.pick(), template_id, **changes)

    def revoke(self) -> requests.Response:
        silent = self.chance.random() < 0.5
        return put_revoke(
            self.caller, self.pick(), suppress_revoke_notification_email=silent
        )

    def by_hand(self) -> None:
        steps = ["accept", "accept", "reject", "revoke_badge", "replace_badge"]
        step = self.chance.choice([*steps, "make_private", "make_public"])

        with contextlib.suppress(KeyError, ValueError, Refusal):
            getattr(self.sim, step)(self.pick())

    def award(self) -> None:
        template_id = self.chance.choice(self.templates)
        email = f"{self.chance.choice('abcd')}@example.org"

        with contextlib.suppress(Refusal):
            self.sim.award(template_id, email)

    def delete(self) -> None:
        with contextlib.suppress(KeyError):
            self.sim.delete_badge(self.pick())

    def fail(self) -> None:
        how = self.chance.choice(["late", "reset", "answer"])
        self.sim.fail(
            self.chance.choice(["issue", "replace", "revoke"]),
            how=t.cast(t.Any, how),
            delay=self.chance.choice([30, 300]) if how == "late" else 0,
            after=how != "late" and self.chance.random() < 0.5,
        )

    def pass_time(self) -> None:
        self.sim.advance(self.chance.choice([10, 60, 400, 60 * DAY]))
        self.caller.token = ""

    def check(self) -> None:
        badges = self.sim.badges
        now = {badge["id"]: badge for badge in badges}
        assert len(now) == len(badges)
        self.ever |= now
        histories = [self.sim.history(id) for id in now]
        begun = [history[0].at for history in histories]
        assert begun == sorted(begun)

        for badge, history in zip(badges, histories, strict=True):
            self.check_badge(badge, history)

        self.check_holders()
        assert {text for text in self.sim.problems if "by a request" not in text} == (
            set()
        )

    def check_badge(
        self, badge: dict[str, t.Any], history: list[testing.Change]
    ) -> None:
        state = badge["state"]
        times = [change.at for change in history]
        assert times == sorted(times)
        assert [c.state for c in history if c.state != "replaced"][-1] == state
        newer, older = badge["replacement_badge_id"], badge["replaces_badge_id"]
        assert (newer is not None) == (history[-1].state == "replaced")
        assert newer is None or self.ever[newer]["replaces_badge_id"] == badge["id"]
        assert older is None or self.ever[older]["replacement_badge_id"] == badge["id"]

        if history[0].state == "accepted":
            assert older is not None
            email = self.ever[older]["recipient_email"]
            assert badge["recipient_email"].casefold() == email

        assert ("badge_url" in badge) == (state == "accepted")
        assert (badge["user"] != {}) or state != "accepted"
        assert ("accept_badge_url" in badge) <= (state in ("pending", "accepted"))
        assert ("accept_badge_url" in badge) or state != "pending"
        assert (badge["state_updated_at"] is None) == (state == "pending")
        assert (badge["revocation_reason"] is not None) == (state == "revoked")
        assert state == "accepted" or not badge["public"]

    def check_holders(self) -> None:
        """One who may have a badge once has one in force."""
        for template_id in self.templates[:2]:
            in_force = self.sim.badges_for(template_id=template_id, in_force=True)
            who = [
                re.sub("^b@", "a@", badge["recipient_email"]) for badge in in_force
            ] + [
                badge["issuer_earner_id"]
                for badge in in_force
                if badge["issuer_earner_id"] is not None
            ]
            assert len(who) == len(set(who))

    def check_lists(self) -> None:
        badges = self.sim.badges
        self.sim.search_page_size = 7
        pages = read_all(self.caller)
        assert [row for page in pages for row in page] == badges
        first = self.caller.badges(sort="created_at").json()
        assert first["metadata"]["total_count"] == len(badges)

        for badge in badges:
            if badge["replacement_badge_id"] is None:
                continue

            self.sim.posts_allowed = 10**6
            response = replace(self.caller, badge["id"], self.templates[0])
            current = response.json()["metadata"]["current_badge_id"]
            assert self.ever[current]["replacement_badge_id"] is None or (
                current not in {each["id"] for each in badges}
            )

        self.check_mails()

    def check_mails(self) -> None:
        kinds = collections.Counter(mail.kind for mail in self.sim.mails)
        loud = [
            each
            for each in self.ever.values()
            if not each["suppress_badge_notification_email"]
        ]
        assert kinds["replaced"] == sum(
            each["replaces_badge_id"] is not None for each in loud
        )
        assert kinds["issued"] + kinds["replaced"] == len(loud)
        notices = [mail for mail in self.sim.mails if mail.kind == "expiring"]
        assert len({mail.badge_id for mail in notices}) == len(notices)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_the_book_stays_in_order(
    caller: Caller, sim: CredlySimulator, seed: int
) -> None:
    life = Life(caller, sim, seed)

    life.run(120)

    assert len(life.ever) > 10
    assert {None, 201, 422} <= life.answered


# Control over HTTP


def test_the_simulator_is_controlled_over_http(
    remote: Caller, sim: CredlySimulator, server: SimulatorServer
) -> None:
    control = f"http://127.0.0.1:{server.port}/_simulator"
    template_id = sim.add_template("Python 101")

    def post(command: str, **options: t.Any) -> int:
        url = f"{control}/{command}"
        return remote.session.post(url, json=options, timeout=5).status_code

    assert remote.issue(template_id).status_code == 201
    record = remote.session.get(f"{control}/record", timeout=5).json()
    assert record["badges"] == sim.badges
    assert [one["kind"] for one in record["received"]] == ["token", "issue"]
    assert record["problems"] == []
    assert record["templates"][0]["id"] == template_id
    assert record["credentials"] == {
        "organization_id": sim.organization_id,
        "client_id": sim.client_id,
        "client_secret": sim.client_secret,
    }

    assert post("fail", kind="look-up", status=503) == 200
    assert remote.badges().status_code == 503
    assert post("fail", kind="look-up", times=None) == 200
    assert post("clear") == 200
    assert remote.badges().status_code == 200
    assert post("rate-limit", limit=0, per_seconds=60, retry_after="none") == 200
    assert remote.badges().status_code == 429
    assert post("rate-limit", limit=None) == 200
    assert post("revoke") == 200
    assert remote.ask_token().status_code == 401
    assert post("restore") == 200
    assert remote.ask_token().status_code == 200
    assert post("reset") == 200
    assert not sim.badges and not sim.received
    assert post("fail", kind="nothing") == 400
    assert post("fail", color="red") == 400
    assert post("unknown") == 404


@pytest.mark.slow
@pytest.mark.parametrize("pictures", [False, True])
def test_it_is_served_by_a_command_that_says_what_to_do(
    make_host: MakeHost, pictures: bool
) -> None:
    command = [sys.executable, "-m", "flask_credly.testing"]
    command += ["--pictures"] * pictures

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = ""

        while "Client Secret" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line

        settings = dict(re.findall(r"(CREDLY_\w+)=(\S+)", said))
        account = re.findall(
            r"(?:Organization ID|Client ID|Client Secret)  +(\S+)", said
        )
        host = make_host(**settings)
        taken = subprocess.run(
            [*command, "--port", settings["CREDLY_API_URL"].split(":")[2][:-3]],
            capture_output=True,
            text=True,
        )

        with host.app.app_context():
            found = accounts.connect(
                host.state,
                organization_id=account[0],
                client_id=account[1],
                client_secret=account[2],
            )
            addresses = host.db.session.scalars(
                sa.select(models.Template.image_url)
            ).all()

        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)

    assert found.templates >= 3
    assert all(addresses) if pictures else not any(addresses)
    assert process.returncode == 0
    assert taken.returncode == 2
    assert "cannot be used" in taken.stderr


def test_control_is_not_in_responses(caller: Caller) -> None:
    url = "https://api.credly.com/_simulator/record"

    assert caller.session.get(url, timeout=5).status_code == 404


# Several organizations


@dataclasses.dataclass
class Two:
    """Two organizations at one Credly, each with a template and a client."""

    sim: CredlySimulator
    one: Caller
    other: Caller
    one_template: str
    other_template: str

    @property
    def another(self) -> Organization:
        return self.other.sim

    def issue(self, caller: Caller, **changes: t.Any) -> requests.Response:
        mine = caller is self.one
        template = self.one_template if mine else self.other_template
        return caller.issue(template, **changes)

    def close(self) -> None:
        self.one.session.close()
        self.other.session.close()


def make_two(sim: CredlySimulator, api_url: str, token_url: str) -> Two:
    another = sim.add_organization()
    return Two(
        sim,
        Caller(sim, api_url, token_url),
        Caller(another, api_url, token_url),
        sim.add_template("Python 101"),
        another.add_template("Data path"),
    )


@pytest.fixture
def two(sim: CredlySimulator, mock: responses.RequestsMock) -> cabc.Iterator[Two]:
    sim.register(mock)
    two = make_two(sim, API, TOKEN_URL)
    yield two
    two.close()


@pytest.fixture
def remote_two(sim: CredlySimulator, server: SimulatorServer) -> cabc.Iterator[Two]:
    two = make_two(sim, server.api_url, server.token_url)
    yield two
    two.close()


def test_each_organization_has_what_is_its_own(two: Two) -> None:
    assert two.issue(two.one).status_code == 201
    assert two.issue(two.other).status_code == 201
    assert two.issue(two.other, recipient_email="b@example.org").status_code == 201

    assert names(two.one.templates()) == ["Python 101"]
    assert names(two.other.templates()) == ["Data path"]
    assert len(two.one.badges().json()["data"]) == len(two.sim.badges) == 1
    assert len(two.other.badges().json()["data"]) == len(two.another.badges) == 2
    assert (two.sim.count("issue"), two.another.count("issue")) == (1, 2)
    assert (two.sim.count("token"), two.another.count("token")) == (1, 1)
    assert two.sim.organizations == [two.sim, two.another]
    assert two.sim.problems == []


def test_all_requests_are_in_one_order(two: Two) -> None:
    for caller in (two.one, two.other, two.one):
        two.issue(caller)

    issued = [each for each in two.sim.traffic if each.kind == "issue"]
    assert [each.organization_id for each in issued] == [
        two.sim.organization_id,
        two.another.organization_id,
        two.sim.organization_id,
    ]
    assert len(two.sim.traffic) == len(two.sim.received) + len(two.another.received)


def test_what_organizations_show_tells_them_apart(two: Two) -> None:
    two.another.organization_status = 200

    row = two.other.call("GET", "").json()["data"]

    assert row["id"] == two.another.organization_id
    assert row["name"] == two.another.name != two.sim.name
    owner = two.other.templates().json()["data"][0]["owner"]
    assert owner == row


@pytest.mark.parametrize(
    ("trouble", "shows"),
    [
        (lambda one: one.fail("*", times=None, status=503), 503),
        (lambda one: one.fail("issue", status=403), 403),
        (lambda one: one.fail("issue", how="hang"), requests.ReadTimeout),
        (lambda one: one.fail("issue", how="reset"), requests.ConnectionError),
        (lambda one: one.rate_limit(0), 429),
        (lambda one: one.revoke_client(), 401),
        (lambda one: one.revoke_tokens(), 401),
        (lambda one: one.delete_template(list(one.book.templates)[0]), 422),
    ],
)
@pytest.mark.parametrize("struck", ["one", "other"])
def test_trouble_of_one_organization_is_its_own(
    two: Two,
    trouble: cabc.Callable[[Organization], None],
    shows: int | type[Exception],
    struck: str,
) -> None:
    hit, spared = two.one, two.other

    if struck == "other":
        hit, spared = spared, hit

    hit.badges()
    spared.badges()

    trouble(hit.sim)

    for _ in range(2):
        email = f"{uuid.uuid4()}@example.org"
        assert two.issue(spared, recipient_email=email).status_code == 201

    if isinstance(shows, int):
        assert two.issue(hit).status_code == shows
    else:
        with pytest.raises(shows):
            two.issue(hit)

    assert two.sim.problems == []


def test_switches_are_of_one_organization(two: Two) -> None:
    two.another.look_up_lag = 60
    two.another.granted_scopes = ("badge_templates", "issued_badges", "events")
    scope = f"{SCOPES} events"

    two.issue(two.one)
    two.issue(two.other)

    assert len(two.one.badges().json()["data"]) == 1
    assert two.other.badges().json()["data"] == []
    assert two.one.ask_token(two.one.form(scope=scope)).status_code == 400
    assert two.other.ask_token(two.other.form(scope=scope)).status_code == 200


def test_one_organization_hangs_while_another_is_answered(remote_two: Two) -> None:
    two = remote_two
    two.one.badges()
    two.other.badges()
    two.another.fail("issue", how="hang", delay=30)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        hanging = pool.submit(two.issue, two.other, timeout=1)
        start = time.monotonic()
        assert two.issue(two.one).status_code == 201
        assert time.monotonic() - start < 0.9
        assert isinstance(hanging.exception(), requests.Timeout)


def test_one_organization_is_slow(remote_two: Two) -> None:
    two = remote_two
    two.one.badges()
    two.other.badges()
    two.another.latency = 0.3

    start = time.monotonic()
    assert two.issue(two.one).status_code == 201
    between = time.monotonic()
    assert two.issue(two.other).status_code == 201

    assert time.monotonic() - between >= 0.3 > between - start


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize(
    ("method", "path", "writes"),
    [
        ("GET", "/badge_templates", False),
        ("GET", "/badges", False),
        ("GET", "", False),
        ("POST", "/badges", True),
    ],
)
def test_a_token_is_good_for_one_organization(
    two: Two, status: int, method: str, path: str, writes: bool
) -> None:
    two.other.badges()
    two.one.token = two.other.token
    two.another.organization_mismatch_status = status
    body = {"badge_template_id": two.one_template} if method == "POST" else None

    assert two.one.call(method, path, json=body).status_code == status
    assert two.sim.badges == two.another.badges == []
    assert two.sim.received == []
    # To read is what connecting with a wrong id does.
    assert any("with a token of" in text for text in two.sim.problems) == writes


def test_the_secret_of_one_is_none_of_another(two: Two) -> None:
    form = two.one.form(client_secret=two.another.client_secret)

    assert two.one.ask_token(form).status_code == 401
    assert two.one.ask_token().status_code == 200
    assert two.other.ask_token().status_code == 200


def test_credentials_sent_as_basic_are_told_apart(two: Two) -> None:
    form = {"grant_type": "client_credentials", "scope": SCOPES}
    auth = (two.another.client_id, two.another.client_secret)

    response = two.other.ask_token(form, auth=auth)

    assert response.status_code == 200
    two.other.token = response.json()["access_token"]
    assert two.other.templates().status_code == 200
    assert two.sim.count("token") == 0


def test_the_badges_and_templates_of_another_are_not_found(two: Two) -> None:
    badge_id = two.another.award(two.other_template, "a@example.org")

    assert two.one.call("GET", f"/badges/{badge_id}").status_code == 404
    path = f"/badge_templates/{two.other_template}"
    assert two.one.call("GET", path).status_code == 404
    assert two.one.issue(two.other_template).status_code == 422
    assert two.sim.badges == []


def test_an_unknown_caller_is_of_the_organization_in_the_address(two: Two) -> None:
    two.other.token = "unknown"

    assert two.other.badges().status_code == 401
    assert two.another.count("look-up") == 1
    assert two.sim.received == []


def test_an_earner_is_one_user_to_all_organizations(two: Two) -> None:
    two.sim.add_account("earner@example.org", "private@example.org")
    two.issue(two.one)
    two.issue(two.other)

    for caller in (two.one, two.other):
        found = caller.badges(filter="recipient_email_all::private@example.org")
        assert len(found.json()["data"]) == 1
        again = two.issue(caller, recipient_email="private@example.org")
        assert again.status_code == 422


def test_problems_of_any_organization_are_problems_of_the_simulator(two: Two) -> None:
    two.issue(two.other, color="red")

    assert len(two.another.problems) == 1
    assert two.sim.problems == two.another.problems

    two.issue(two.one, color="red")

    assert len(two.another.problems) == 1
    assert len(two.sim.problems) == 2


def test_secrets_of_any_organization_are_hidden_and_noted(two: Two) -> None:
    two.other.badges()

    for value in (two.another.client_secret, two.other.token):
        assert two.one.badges(filter=value).status_code == 400
        assert value not in repr(two.sim.traffic)

    two.issue(two.one, issuer_earner_id=two.another.client_secret)

    assert "the client secret in the body" in two.sim.problems[-1]
    assert len([text for text in two.sim.problems if "in the query" in text]) == 2


def test_one_organization_or_all_are_reset(two: Two) -> None:
    for caller in (two.one, two.other):
        two.issue(caller)

    two.another.reset()

    assert not two.another.badges and not two.another.received
    assert two.sim.badges and two.sim.received

    two.issue(two.other)
    two.sim.reset()

    assert not two.another.badges and not two.another.received
    assert not two.sim.badges and not two.sim.received and not two.sim.traffic


def test_time_is_the_same_to_all(two: Two) -> None:
    two.one.badges()
    two.other.badges()

    two.sim.advance(7201)

    assert two.one.badges().status_code == two.other.badges().status_code == 401
    assert abs(two.another.clock() - two.sim.clock()) < 1


def test_an_organization_is_not_added_twice(sim: CredlySimulator) -> None:
    with pytest.raises(ValueError, match="already"):
        sim.add_organization(sim.organization_id.upper())

    with pytest.raises(ValueError, match="client_id"):
        sim.add_organization(client_id=sim.client_id)

    assert sim.organizations == [sim]


def test_one_organization_is_controlled_over_http(
    remote_two: Two, server: SimulatorServer
) -> None:
    two = remote_two
    two.issue(two.other)
    control = f"http://127.0.0.1:{server.port}/_simulator"
    session = two.one.session
    other = {"organization_id": two.another.organization_id}

    def post(command: str, **options: t.Any) -> int:
        url = f"{control}/{command}"
        return session.post(url, json=options, timeout=5).status_code

    first = session.get(f"{control}/record", timeout=5).json()
    assert first["badges"] == []
    assert [each["organization_id"] for each in first["organizations"]] == [
        two.sim.organization_id,
        two.another.organization_id,
    ]
    second = session.get(f"{control}/record", params=other, timeout=5).json()
    assert second["badges"] == two.another.badges
    assert second["credentials"] == first["organizations"][1]

    assert post("fail", kind="look-up", times=None, **other) == 200
    assert two.other.badges().status_code == 500
    assert two.one.badges().status_code == 200
    assert post("clear", **other) == 200
    assert two.other.badges().status_code == 200
    assert post("revoke", organization_id=str(uuid.uuid4())) == 400
    assert session.post(f"{control}/revoke", json=["x"], timeout=5).status_code == 400

    page = f"http://127.0.0.1:{server.port}/badges/{second['badges'][0]['id']}"
    assert "Data path" in session.get(page, timeout=5).text


@pytest.mark.slow
def test_a_command_serves_several_organizations() -> None:
    command = [sys.executable, "-m", "flask_credly.testing", "--organizations"]

    with subprocess.Popen(
        [*command, "3"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = ""

        while said.count("Client Secret") < 3:
            line = process.stdout.readline()
            assert line, said
            said += line

        settings = dict(re.findall(r"(CREDLY_\w+)=(\S+)", said))
        accounts = list(
            zip(
                *(
                    re.findall(rf"{name}  +(\S+)", said)
                    for name in ("Organization ID", "Client ID", "Client Secret")
                ),
                strict=True,
            )
        )
        templates = []

        for account in accounts:
            caller = Caller(
                CredlySimulator(*account),
                settings["CREDLY_API_URL"],
                settings["CREDLY_TOKEN_URL"],
            )
            templates += [each["id"] for each in caller.templates().json()["data"]]
            caller.session.close()

        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)

    assert len(accounts) == 3
    assert len(templates) == len(set(templates)) >= 9

    for number in ("0", "1000", "x"):
        refused = subprocess.run([*command, number], capture_output=True, text=True)
        assert refused.returncode == 2
        assert "--organizations" in refused.stderr


PAGE_OF_DOCS = pathlib.Path(__file__).parent.parent / "docs/testing.md"


def test_its_page_holds_what_it_says(sim: CredlySimulator) -> None:
    text = PAGE_OF_DOCS.read_text()
    _, code = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(compile(code, PAGE_OF_DOCS.name, "exec"), {})

    switches = re.findall(r"^\| `(\w+)` \|", text, re.M)
    assert switches == sorted(t.get_type_hints(Manners))
    assert all(hasattr(sim, name) for name in re.findall(r"`credly\.(\w+)", text))
    kinds = text.partition("scripts a fault for ")[2].partition("`*`")[0]
    assert set(KINDS) - {"other"} <= set(re.findall(r'"([\w-]+)"', kinds))
    assert set(re.findall(r"`([a-z-]+)`", text)) >= set(control.COMMANDS)


MODULES = """
rules orders shapes lists serving record manners entry agenda holders book organization
access writing listing endpoints control simulator __main__
"""


def test_its_modules_import_only_those_before_them() -> None:
    folder = pathlib.Path(testing.__file__).parent
    before = {"__init__"}

    for name in MODULES.split():
        text = (folder / f"{name}.py").read_text()
        found = set(re.findall(r"^from \.(\w+) import", text, re.M))
        found |= set(re.findall(r"^from \. import (\w+)", text, re.M))
        assert found <= before, name
        before.add(name)

    assert before == {path.stem for path in folder.glob("*.py")}
