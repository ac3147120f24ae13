"""What an admin does with the pages, without a browser."""

from __future__ import annotations

import contextvars
import csv
import html
import html.parser
import io
import re
import typing as t

import flask
import pytest
import sqlalchemy as sa
from conftest import Connected
from conftest import Host
from flask import Flask
from flask.testing import FlaskClient
from flask_wtf.csrf import generate_csrf
from werkzeug.test import TestResponse

from flask_credly import accounts
from flask_credly.models import Base
from flask_credly.models import Issuance
from flask_credly.testing import CredlySimulator

LIST = "/integrations/"


WINDOW = "/integrations/credly"


HX = {"HX-Request": "true"}


HOSTILE = '"><img src=x onerror=alert(1)><a hx-get="/x">\u202e'


class Browser:
    """A client that fills in forms as a browser does, the token included."""

    def __init__(self, app: Flask) -> None:
        self.client: FlaskClient = app.test_client()

    def get(self, path: str, **given: t.Any) -> TestResponse:
        return self.client.get(path, buffered=True, **given)

    def token(self, path: str) -> str:
        found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', self.get(path).text)
        assert found, f"no form on {path}"
        return found[1]

    def post(
        self,
        path: str,
        *,
        page: str | None = None,
        headers: t.Any = None,
        **fields: str,
    ) -> TestResponse:
        """Send a form.

        :param page: Where it is. If it does not matter, no page is loaded.
        """
        # Outside of the test's own context, which would be that of all requests.
        token = self.token(page) if page else contextvars.Context().run(self._token)
        data = {"csrf_token": token, **fields}
        return self.client.post(path, data=data, headers=headers)

    def _token(self) -> str:
        app = self.client.application

        with self.client.session_transaction() as kept, app.test_request_context():
            flask.session.update(kept)
            token = generate_csrf()
            kept.update(flask.session)

        return t.cast(str, token)

    def connect(self, credly: CredlySimulator, **changes: t.Any) -> TestResponse:
        headers = changes.pop("headers", None)
        fields = {
            "organization_id": credly.organization_id,
            "client_id": credly.client_id,
            "client_secret": credly.client_secret,
            **changes,
        }
        page = f"{WINDOW}/connection"
        return self.post(WINDOW, page=page, headers=headers, **fields)


@pytest.fixture
def browser(host: Host) -> Browser:
    return Browser(host.app)


@pytest.fixture
def mapped(browser: Browser, connected: Connected) -> tuple[Browser, Connected, int]:
    (mapping,) = accounts.list_mappings(connected.host.db.session, "default")
    mapping_id = mapping.id
    connected.host.db.session.remove()
    return browser, connected, mapping_id


def text_of(response: TestResponse) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", response.text))


def digest(host: Host) -> str:
    """Everything in our tables, but for the trail."""
    host.db.session.rollback()
    return repr(
        [
            host.db.session.execute(sa.select(table)).all()
            for table in Base.metadata.sorted_tables
            if table.name != "credly_audit"
        ]
    )


BADGES = "/integrations/credly/badges"


Mapped = tuple[Browser, Connected, int]


def fail_one(connected: Connected, member_id: str = "42") -> Issuance:
    host, credly, _ = connected
    credly.posts_allowed = 9
    credly.fail("issue", status=422, times=2)
    host.complete(member_id)
    host.drain(2)
    row = host.rows()[-1]
    assert row.state == "failed"
    return row


def read_csv(text: str) -> list[list[str]]:
    assert text.startswith("\ufeff")
    return list(csv.reader(io.StringIO(text[1:])))
