"""docs/communities.md holds what it says: its application runs as written."""

from __future__ import annotations

import collections.abc as cabc
import pathlib
import re
import typing as t

import pytest
import responses
from conftest import DEAD_REDIS
from flask import Flask
from flask.testing import FlaskClient

from flask_credly import jobs
from flask_credly.testing import CredlySimulator
from flask_credly.testing import Organization

ROOT = pathlib.Path(__file__).parent.parent
PAGE = (ROOT / "docs/communities.md").read_text()
(CODE,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.fixture
def names() -> dict[str, t.Any]:
    found: dict[str, t.Any] = {"__name__": "communities"}
    exec(compile(CODE, "communities.md", "exec"), found)
    return found


@pytest.fixture
def app(
    names: dict[str, t.Any], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> cabc.Iterator[Flask]:
    for key, value in {
        "SECRET_KEY": "a key for tests",
        "SQLALCHEMY_DATABASE_URI": f"sqlite:///{tmp_path}/school.db",
        "CREDLY_REDIS_URL": DEAD_REDIS,
        "TESTING": "true",
        "WTF_CSRF_ENABLED": "false",
    }.items():
        monkeypatch.setenv(f"FLASK_{key}", value)

    app = names["create_app"]()
    yield app

    with app.app_context():
        names["db"].session.remove()
        names["db"].engine.dispose()


def log_in(client: FlaskClient, community: str, **values: t.Any) -> None:
    with client.session_transaction(base_url=at(community)) as session:
        session.update(values)


def at(community: str) -> str:
    return f"http://{community}.example.org"


def connect_and_map(
    client: FlaskClient, community: str, organization: Organization
) -> None:
    log_in(client, community, admin_of=[community])
    mapping = {
        "course": "course:py-101",
        "template": organization.add_template("Python Badge"),
    }
    account = {
        "organization_id": organization.organization_id,
        "client_id": organization.client_id,
        "client_secret": organization.client_secret,
    }
    window = "/integrations/credly"
    connected = client.post(window, data=account, base_url=at(community))
    mapped = client.post(f"{window}/mappings", data=mapping, base_url=at(community))

    assert (connected.status_code, mapped.status_code) == (303, 303)


def test_the_application_works_as_written(names: dict[str, t.Any], app: Flask) -> None:
    credly = CredlySimulator()
    organizations = {"north": credly, "south": credly.add_organization()}
    client = app.test_client()

    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        credly.register(mock)

        for community, organization in organizations.items():
            connect_and_map(client, community, organization)

        client.post("/complete/py-101", base_url=at("north"))
        names["complete_for"](app, "south", "py-101")
        names["complete_for"](app, None, "py-101")

        with app.app_context():
            jobs.drain()

    assert [len(each.badges) for each in organizations.values()] == [1, 1]
    assert credly.problems == []

    runner = app.test_cli_runner()
    status = runner.invoke(args=["credly", "status", "--json"]).output
    assert re.findall(r'"(\w*)": {"connection"', status) == ["north", "south", ""]
    assert runner.invoke(args=["credly", "sync"]).exit_code == 2
    runner.invoke(args=["credly", "dismiss", "--tenant", ""])
    status = runner.invoke(args=["credly", "status", "--json"]).output
    assert re.findall(r'"(\w*)": {"connection"', status) == ["north", "south"]

    with app.app_context():
        assert names["credly"].forget_tenant("north")


def test_pages_are_there_for_whom_it_says(app: Flask) -> None:
    client = app.test_client()
    operators = "/integrations/credly/communities"
    log_in(client, "north", admin_of=["north"])
    log_in(client, "south", role="operator", admin_of=["north"])

    def status(community: str, path: str) -> int:
        return client.get(path, base_url=at(community)).status_code

    assert status("north", "/integrations/") == 200
    assert status("south", "/integrations/") == 403
    assert status("nowhere", "/integrations/") == 404
    assert status("north", operators) == 403
    assert status("south", operators) == 200


def test_its_links_lead_somewhere() -> None:
    for path, _, place in re.findall(r"\]\(([\w./]+)(#([\w-]+))?\)", PAGE):
        titles = re.findall(r"^#+ (.+)$", (ROOT / "docs" / path).read_text(), re.M)
        places = [
            re.sub(r"[^\w-]", "", each.lower().replace(" ", "-")) for each in titles
        ]
        assert not place or place in places, place
