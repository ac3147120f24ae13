"""Who is no admin and may look all the same, and which admin may take badges back."""

from __future__ import annotations

import html.parser
import typing as t

import pytest
from conftest import a_member
from conftest import Host
from conftest import MakeHost
from flask import abort
from flask import redirect
from flask import render_template_string
from test_guard import forms_of

from flask_credly import accounts
from flask_credly import Member
from flask_credly.admin import guard
from flask_credly.admin.blueprint import ROUTES
from flask_credly.admin.pages import FOR_VIEWERS
from flask_credly.ledger import audit
from flask_credly.testing import CredlySimulator
from tests.support.pages import Browser
from tests.support.pages import HX
from tests.support.pages import text_of
from tests.support.pages import WINDOW
from tests.support.surface import fill
from tests.support.surface import past_completions
from tests.support.surface import readable
from tests.support.surface import routes
from tests.support.surface import SAFE
from tests.support.surface import snapshot
from tests.support.surface import statements

BADGES = f"{WINDOW}/badges"
MAY_BE_READ = {*FOR_VIEWERS, "credly.static"}
WRITING = [(method, path) for method, path, _ in ROUTES if method not in SAFE]


class Site(t.NamedTuple):
    """A host with everything, and what its hooks say."""

    host: Host
    admin: list[t.Any]
    viewer: list[t.Any]


@pytest.fixture
def site(make_host: MakeHost, credly: CredlySimulator) -> Site:
    admin: list[t.Any] = [True]
    viewer: list[t.Any] = [True]
    host = make_host(
        is_admin=lambda: admin[0],
        is_viewer=lambda: viewer[0]() if callable(viewer[0]) else viewer[0],
        past_completions=past_completions,
        actor=lambda: "grace@admins.example",
    )
    fill(host, credly)
    admin[0] = False
    return Site(host, admin, viewer)


class Links(html.parser.HTMLParser):
    """The addresses that a page leads to, or asks for by itself."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {
            value
            for name, value in attrs
            if name in ("href", "hx-get", "hx-post", "action", "formaction")
            and value
            and value.startswith("/integrations")
            and "/static/" not in value
        }


def test_every_route_that_acts_refuses_a_viewer(
    site: Site, credly: CredlySimulator
) -> None:
    """As it refuses who is nobody, and without a word to the database."""
    before = snapshot(site.host, credly)
    client = site.host.app.test_client()
    refused = 0

    with statements(site.host) as said:
        for route in routes(site.host.app):
            for method in sorted(route.methods):
                if method in SAFE and route.endpoint in MAY_BE_READ:
                    continue

                for headers in ({}, HX):
                    site.viewer[0] = True
                    answers = []

                    for is_viewer in (True, False):
                        site.viewer[0] = is_viewer
                        answers.append(
                            client.open(route.path, method=method, headers=headers)
                        )

                    viewers, nobodys = answers
                    assert viewers.status_code == 403, (method, route.path)
                    assert viewers.data == nobodys.data
                    refused += method not in SAFE

    assert said == []
    assert refused == 2 * len(WRITING)
    assert snapshot(site.host, credly) == before


def test_a_viewer_writes_nothing_by_what_may_be_looked_at(
    site: Site, credly: CredlySimulator
) -> None:
    before = snapshot(site.host, credly)
    client = site.host.app.test_client()
    shown = 0

    for route in routes(site.host.app):
        if route.endpoint in FOR_VIEWERS:
            for headers in ({}, HX):
                answer = client.get(route.path, headers=headers)
                assert answer.status_code in (200, 303), route.path
                shown += answer.status_code == 200

    assert shown > 10
    assert snapshot(site.host, credly) == before


def test_pages_offer_a_viewer_nothing_that_is_refused(site: Site) -> None:
    with site.host.app.app_context():
        engine = site.host.state.engine
        audit.note_alone(engine, "default", "grace@admins.example", "retry", "1")

    client = site.host.app.test_client()
    ahead, seen = ["/integrations/"], set()

    while ahead:
        path = ahead.pop()
        seen.add(path)
        answer = client.get(path)
        # A part of a page leads to the whole.
        assert answer.status_code in (200, 303), path
        assert forms_of(answer.text) == [], path
        ahead += sorted(Links(answer.text).found - seen - set(ahead))

    for path in ("", "/activity", "/badges", "/badges/1", "/errors"):
        assert f"{WINDOW}{path}" in seen

    # An admin has them.
    site.admin[0] = True
    assert len(forms_of(client.get(WINDOW).text)) > 3


def test_addresses_are_masked_for_a_viewer(site: Site) -> None:
    with site.host.app.app_context():
        engine = site.host.state.engine
        audit.note_alone(engine, "default", "grace@admins.example", "retry", "1")
        site.host.complete(member=Member("dan@ids.example", "dan@x.example", "D", "E"))

    client = site.host.app.test_client()
    whole = ("member-1@", "member-2@", "grace@", "dan@")

    def visible(path: str) -> set[str]:
        text = client.get(path, headers=HX).text + client.get(path).text
        return {each for each in whole if each in text}

    site.admin[0] = True
    found = {path: visible(path) for path in readable(site.host.app)}
    assert set.union(*found.values()) == set(whole)
    site.admin[0] = False
    found = {path: visible(path) for path in readable(site.host.app)}
    assert set.union(*found.values()) == set()
    assert "m…@example.org" in client.get(BADGES).text
    details = text_of(client.get(f"{WINDOW}/errors"))
    assert "“m…@example.org”" in details


def test_a_viewer_cannot_guess_an_address_letter_by_letter(site: Site) -> None:
    client = site.host.app.test_client()

    def found(text: str) -> bool:
        return "m…@example.org" in client.get(f"{BADGES}?q={text}").text

    assert not found("member-") and not found("member-2@")
    assert found("Member-2@example.org")
    assert found("Ada")
    errors = client.get(f"{WINDOW}/errors?q=member-1@").text
    assert errors == client.get(f"{WINDOW}/errors?q=nobody").text
    assert 'name="q"' not in errors


def test_a_viewer_before_there_is_a_connection(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    host = make_host(is_admin=lambda: False, is_viewer=lambda: True)
    client = host.app.test_client()
    page = client.get("/integrations/").text
    assert "Not connected" in page and "Set Up" not in page
    assert client.get(WINDOW).location == "/integrations/"


@pytest.mark.parametrize("hook", [1, None, "True", redirect, abort])
def test_only_true_makes_a_viewer(site: Site, hook: t.Any) -> None:
    """Otherwise the refusal is that of ``is_admin``."""
    site.viewer[0] = (lambda: hook("/login")) if hook is redirect else hook
    site.viewer[0] = (lambda: abort(404)) if hook is abort else site.viewer[0]
    client = site.host.app.test_client()
    assert client.get(WINDOW).status_code == 403
    site.admin[0] = redirect("/login")
    assert client.get(WINDOW).location == "/login"
    site.viewer[0] = True
    assert client.get(WINDOW).status_code == 200


def test_an_admin_is_asked_for_first(make_host: MakeHost) -> None:
    asked: list[str] = []

    def says(name: str, value: bool) -> t.Any:
        return lambda tenant: asked.append(f"{name} {tenant}") or value

    host = make_host(
        is_admin=says("admin", False),
        is_viewer=says("viewer", True),
        tenant=lambda: "acme",
    )
    assert host.app.test_client().get("/integrations/").status_code == 200
    assert asked == ["admin acme", "viewer acme"]


def test_the_card_of_a_viewer(site: Site) -> None:
    site.host.app.add_url_rule(
        "/settings",
        "settings",
        lambda: render_template_string("{{ credly_card() }}"),
    )
    client = site.host.app.test_client()
    card = client.get("/settings")
    assert "Open" in card.text and "Remove" not in card.text
    assert card.headers["Cache-Control"] == "no-store, private"
    site.viewer[0] = False
    assert client.get("/settings").text == ""


def test_the_role_is_that_of_this_request(site: Site) -> None:
    """In a context of the host's that is around several requests."""
    with site.host.app.app_context():
        client = site.host.app.test_client()
        site.admin[0] = True
        assert "Disconnect" not in client.get(WINDOW).text
        site.admin[0] = False
        assert forms_of(client.get(WINDOW).text) == []


def test_a_role_ends_with_its_request(site: Site) -> None:
    """Also where a context of the host's is around both."""
    site.admin[0] = True

    with site.host.app.app_context():
        with site.host.app.test_request_context():
            assert guard.check_visitor(to_look=True) is True
            assert guard.may_act()

        with site.host.app.test_request_context():
            assert not guard.may_act()


def test_a_row_that_a_viewer_sees_live(site: Site) -> None:
    with site.host.app.app_context():
        site.host.complete(member=a_member("77"))
        row = site.host.rows()[-1]

    client = site.host.app.test_client()
    html = client.get(f"{BADGES}/{row.id}/row", headers=HX).text
    assert "m…@example.org" in html and "every 3s" in html


def test_a_viewer_sees_no_half_open_form(site: Site) -> None:
    with site.host.app.app_context():
        for mapping in accounts.list_mappings(site.host.db.session, "default"):
            accounts.remove_mapping(site.host.state, mapping.id)

    for query in ("", "?mapping=new", "?mapping=1"):
        page = Browser(site.host.app).get(f"{WINDOW}{query}").text
        assert "<select" not in page and "No mappings yet." in page
