"""The pages, without a browser."""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import html
import html.parser
import re
import typing as t
import wsgiref.validate

import pytest
import responses
import sqlalchemy as sa
from conftest import connect
from conftest import Connected
from conftest import COURSES
from conftest import every_database
from conftest import Host
from conftest import MakeHost
from flask import Flask
from flask import redirect
from flask import render_template_string
from flask import Response
from flask_sqlalchemy import SQLAlchemy
from flask_wtf import CSRFProtect
from werkzeug.test import Client
from werkzeug.test import TestResponse

from flask_credly import accounts
from flask_credly import Course
from flask_credly import issuance_paused
from flask_credly.ledger import log
from flask_credly.models import Account
from flask_credly.models import AuditEntry
from flask_credly.models import Issuance
from flask_credly.models import Mapping
from flask_credly.models import Template
from flask_credly.testing import CredlySimulator
from tests.support.pages import Browser
from tests.support.pages import browser as browser
from tests.support.pages import digest
from tests.support.pages import HOSTILE
from tests.support.pages import HX
from tests.support.pages import LIST
from tests.support.pages import mapped as mapped
from tests.support.pages import text_of
from tests.support.pages import WINDOW


class TestConnect:
    def test_connecting_shows_the_sections(
        self, browser: Browser, credly: CredlySimulator
    ) -> None:
        credly.add_template("Python Badge")
        response = browser.connect(credly)
        page = browser.get(response.location)

        assert response.status_code == 303
        assert "Connected to Credly. 1 badge template loaded." in page.text
        assert "Error Log" in page.text

    def test_with_htmx_the_whole_page_changes(
        self, browser: Browser, credly: CredlySimulator
    ) -> None:
        response = browser.connect(credly, headers=HX)

        assert (response.status_code, response.headers["HX-Redirect"]) == (200, WINDOW)

    @pytest.mark.parametrize("headers", [None, HX], ids=["page", "htmx"])
    def test_a_refusal_keeps_what_was_typed_but_the_secret(
        self, host: Host, browser: Browser, credly: CredlySimulator, headers: t.Any
    ) -> None:
        response = browser.connect(
            credly, client_id="typed-id", client_secret="typed-secret", headers=headers
        )

        assert response.status_code == 422
        assert response.text.count("Unable to connect to Credly.") == 1
        assert f'value="{credly.organization_id}"' in response.text
        assert 'value="typed-id"' in response.text
        assert "typed-secret" not in response.text
        assert ("<html" in response.text) == (headers is None)

        with host.app.app_context():
            assert accounts.get(host.db.session, "default") is None

    def test_an_unreachable_credly_is_not_the_admins_fault(
        self, browser: Browser, credly: CredlySimulator
    ) -> None:
        credly.fail("token", status=503)
        response = browser.connect(credly)

        assert response.status_code == 422
        assert (
            "Credly could not be reached, so your details were not checked or saved."
            " Try again in a few minutes." in response.text
        )

    @pytest.mark.parametrize(
        ("field", "value", "said"),
        [
            ("organization_id", "", "Enter your Organization ID."),
            ("organization_id", "  \t ", "Enter your Organization ID."),
            ("organization_id", "acme", "Enter a valid Organization ID"),
            ("organization_id", "../../oauth", "Enter a valid Organization ID"),
            (
                "organization_id",
                "{11111111-2222-4333-8444-555555555555}",
                "Enter a valid Org",
            ),
            ("organization_id", "1" * 5000, "Enter a valid Organization ID"),
            ("client_id", "", "Enter your Client ID."),
            ("client_id", "x" * 256, "The Client ID is too long."),
            ("client_id", "a b", "contains invalid characters"),
            ("client_id", "a\r\nb", "contains invalid characters"),
            ("client_id", "<b>é</b>", "contains invalid characters"),
            ("client_secret", "", "Enter your Client Secret."),
            ("client_secret", "\x00\x00", "contains invalid characters"),
            ("client_secret", "s" * 10_000, "The Client Secret is too long."),
        ],
    )
    def test_a_wrong_value_is_named_and_nothing_is_asked(
        self,
        browser: Browser,
        credly: CredlySimulator,
        field: str,
        value: str,
        said: str,
    ) -> None:
        response = browser.connect(credly, **{field: value})

        assert response.status_code == 422
        assert said in text_of(response)
        assert "There is a problem" in response.text
        assert "<title>Error: Credly Integration</title>" in response.text
        assert credly.received == []

    def test_blanks_around_a_value_do_no_harm(
        self, browser: Browser, credly: CredlySimulator
    ) -> None:
        response = browser.connect(credly, client_secret=f"  {credly.client_secret}\n")

        assert response.status_code == 303

    def test_missing_fields_are_like_empty_ones(self, browser: Browser) -> None:
        response = browser.post(WINDOW)

        assert response.status_code == 422
        assert response.text.count("Enter your") == 6

    def test_another_organization_needs_remove_first(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, connected, _ = mapped
        response = browser.connect(
            connected.credly, organization_id="11111111-2222-4333-8444-555555555555"
        )

        assert "Remove the integration first" in response.text
        assert "Your previous connection is still in use." in response.text

    @pytest.mark.parametrize(
        ("sandbox", "changes", "said"),
        [
            (False, {"client_secret": "wrong"}, "to set CREDLY_SANDBOX"),
            (True, {"client_secret": "wrong"}, "uses Credly's sandbox"),
            (
                False,
                {"organization_id": "11111111-2222-4333-8444-555555555555"},
                "Check the Organization ID.",
            ),
        ],
        ids=["secret", "secret in the sandbox", "organization"],
    )
    def test_a_refusal_says_what_was_refused(
        self, make_host: MakeHost, sandbox: bool, changes: dict[str, str], said: str
    ) -> None:
        credly = CredlySimulator()
        account = {
            "organization_id": credly.organization_id,
            "client_id": credly.client_id,
            "client_secret": credly.client_secret,
        }
        host = make_host(CREDLY_SANDBOX=sandbox, WTF_CSRF_ENABLED=False)
        settings = host.state.settings

        with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
            credly.register(
                mock, api_url=settings.api_url, token_url=settings.token_url
            )
            response = host.app.test_client().post(WINDOW, data=account | changes)

        assert "Unable to connect to Credly." in text_of(response)
        assert said in text_of(response)

    def test_without_a_key_it_says_whom_to_ask(
        self, make_host: MakeHost, credly: CredlySimulator
    ) -> None:
        host = make_host(SECRET_KEY=None, WTF_CSRF_ENABLED=False)
        response = host.app.test_client().post(
            WINDOW,
            data={
                "organization_id": credly.organization_id,
                "client_id": credly.client_id,
                "client_secret": credly.client_secret,
            },
        )

        assert "CREDLY_ENCRYPTION_KEYS" in response.text

    def test_the_stored_secret_is_on_no_page(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, connected, mapping_id = mapped
        pages = [LIST, WINDOW, f"{WINDOW}/connection", f"{WINDOW}/errors"]
        pages += [f"{WINDOW}/remove", f"{WINDOW}?mapping={mapping_id}"]

        for page in pages:
            response = browser.get(page)
            assert response.status_code == 200
            assert connected.credly.client_secret not in response.text

    def test_the_connection_can_be_tested(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, connected, _ = mapped
        response = browser.post(f"{WINDOW}/test")
        assert "<p>The connection works.</p>" in browser.get(response.location).text

        connected.credly.revoke_tokens()
        connected.credly.fail("token", status=500)
        response = browser.post(f"{WINDOW}/test")
        assert "could not be reached" in browser.get(response.location).text

        connected.credly.revoke_client()
        response = browser.post(f"{WINDOW}/test")
        said = '<p role="alert" data-word="Error">Unable to connect to Credly.'
        assert said in browser.get(response.location).text

    @pytest.mark.parametrize("button", ["test", "templates"])
    def test_refused_credentials_have_expired_at_once(
        self, mapped: tuple[Browser, Connected, int], button: str
    ) -> None:
        browser, connected, _ = mapped
        host, credly, _ = connected
        told: list[t.Any] = []

        def receive(app: Flask, **payload: t.Any) -> None:
            told.append(payload["reason"])

        credly.revoke_client()
        credly.revoke_tokens()

        with issuance_paused.connected_to(receive):
            browser.post(f"{WINDOW}/{button}")
            browser.post(f"{WINDOW}/{button}")

        card, window = text_of(browser.get(LIST)), text_of(browser.get(WINDOW))
        assert "Connection expired" in card
        assert "Reconnect" in card
        assert "Please reconnect." in window
        assert "The badge templates are" not in window
        assert [error for error, _ in host.log()] == ["Connection expired"]
        assert told == ["expired"]

        credly.restore_client()
        browser.post(f"{WINDOW}/test")
        assert "Connection expired" not in text_of(browser.get(LIST))

    def test_the_templates_can_be_refreshed(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, connected, _ = mapped
        connected.credly.add_template("Another Badge")
        response = browser.post(f"{WINDOW}/templates")
        page = browser.get(response.location)

        assert "Badge templates loaded: 2." in page.text

        connected.credly.fail("templates", status=500)
        response = browser.post(f"{WINDOW}/templates")
        assert "could not be loaded" in browser.get(response.location).text


class TestMappings:
    def add(
        self, browser: Browser, course: str, template: str, **more: t.Any
    ) -> TestResponse:
        return browser.post(
            f"{WINDOW}/mappings", course=course, template=template, **more
        )

    @pytest.mark.parametrize("headers", [None, HX], ids=["page", "htmx"])
    def test_one_is_added(
        self, mapped: tuple[Browser, Connected, int], headers: t.Any
    ) -> None:
        browser, connected, _ = mapped
        response = self.add(
            browser, "learning_path:data", connected.template_id, headers=headers
        )
        page = response if headers else browser.get(response.location)

        assert response.status_code == (200 if headers else 303)
        assert "Mapping saved: Data path to Python Badge." in page.text
        assert len(accounts.list_mappings(connected.host.db.session, "default")) == 2

    @pytest.mark.slow
    @pytest.mark.parametrize("headers", [None, HX], ids=["page", "htmx"])
    @pytest.mark.parametrize(
        ("course", "template", "said"),
        [
            ("", None, "Select a course or learning path."),
            ("  ", None, "Select a course or learning path."),
            ("course:sql", "", "Select a badge template."),
            ("course:py-101", None, "is already mapped to Python Badge."),
            (
                "course:gone",
                None,
                "This course or learning path no longer exists. Select another one.",
            ),
            (
                "webinar:sql",
                None,
                "This course or learning path no longer exists. Select another one.",
            ),
            (
                "sql",
                None,
                "This course or learning path no longer exists. Select another one.",
            ),
            (
                HOSTILE,
                None,
                "This course or learning path no longer exists. Select another one.",
            ),
            (
                "x" * 10_000,
                None,
                "This course or learning path no longer exists. Select another one.",
            ),
            ("course:sql", "x", "no longer active in Credly"),
            ("course:sql", "x\x00" * 300, "no longer active in Credly"),
            (
                "course:sql",
                "11111111-2222-4333-8444-555555555555",
                "no longer active in Credly",
            ),
        ],
    )
    def test_a_wrong_choice_is_named_in_the_row(
        self,
        mapped: tuple[Browser, Connected, int],
        headers: t.Any,
        course: str,
        template: str | None,
        said: str,
    ) -> None:
        browser, connected, _ = mapped
        before = digest(connected.host)
        chosen = connected.template_id if template is None else template
        response = self.add(browser, course, chosen, headers=headers)

        assert response.status_code == 422
        assert said in text_of(response)
        assert "onerror" not in response.text
        assert digest(connected.host) == before

        if template is None:
            assert re.search(
                rf'value="{connected.template_id}"\s+selected', response.text
            )

    def test_one_is_changed(self, mapped: tuple[Browser, Connected, int]) -> None:
        browser, connected, mapping_id = mapped
        fields = {"course": "course:sql", "template": connected.template_id}
        response = browser.post(f"{WINDOW}/mappings/{mapping_id}", headers=HX, **fields)

        assert "Mapping saved: SQL basics to Python Badge." in response.text

    @pytest.mark.parametrize("headers", [None, HX], ids=["page", "htmx"])
    def test_one_is_removed_and_that_is_undone(
        self, mapped: tuple[Browser, Connected, int], headers: t.Any
    ) -> None:
        browser, connected, mapping_id = mapped
        connected.host.complete()
        response = browser.post(
            f"{WINDOW}/mappings/{mapping_id}/remove", headers=headers
        )
        page = response if headers else browser.get(response.location)

        assert (
            "Mapping removed: Python 101. Badges already issued are kept." in page.text
        )

        connected.host.drain()
        assert connected.host.row().state == "cancelled"

        # Whatever else is sent with it
        self.add(browser, "course:sql", "x", undo=str(mapping_id))
        assert connected.host.row().state == "none"

    def test_a_removed_one_is_gone_everywhere(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, connected, _ = mapped
        fields = {"course": "course:sql", "template": connected.template_id}

        for path in ("/mappings/999", "/mappings/999/remove"):
            response = browser.post(f"{WINDOW}{path}", **fields)
            page = browser.get(response.location)
            assert "This mapping no longer exists." in page.text

        for path in ("/mappings/999", "/mappings/999/row"):
            response = browser.get(f"{WINDOW}{path}", headers=HX)
            assert response.headers["HX-Redirect"] == WINDOW

    def test_rows_open_without_javascript(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, _, mapping_id = mapped

        for path in ("/mappings/new", f"/mappings/{mapping_id}"):
            response = browser.get(f"{WINDOW}{path}", follow_redirects=True)
            assert "Save mapping" in response.text
            assert "<html" in response.text

        assert browser.get(f"{WINDOW}?mapping=999999999999").status_code == 200

    def test_rows_open_as_fragments_with_htmx(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, _, mapping_id = mapped

        for path in ("new", f"{mapping_id}", f"{mapping_id}/row"):
            response = browser.get(f"{WINDOW}/mappings/{path}", headers=HX)
            assert response.status_code == 200
            assert "<html" not in response.text

    @pytest.mark.parametrize("header", ["HX-Boosted", "HX-History-Restore-Request"])
    def test_a_boosted_link_and_back_get_the_whole_page(
        self, mapped: tuple[Browser, Connected, int], header: str
    ) -> None:
        browser, _, _ = mapped
        response = browser.get(f"{WINDOW}/mappings/new", headers={**HX, header: "true"})

        assert response.status_code == 303
        assert "<html" in browser.get(WINDOW, headers=HX).text

    def test_a_mapped_course_is_not_offered_again(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, _, mapping_id = mapped
        new = browser.get(f"{WINDOW}/mappings/new", headers=HX).text
        own = browser.get(f"{WINDOW}/mappings/{mapping_id}", headers=HX).text

        assert "course:py-101" not in new
        assert "course:sql" in new
        assert re.search(r'value="course:py-101"\s+selected', own)

    def test_broken_rows_are_flagged_and_stay(
        self, make_host: MakeHost, credly: CredlySimulator
    ) -> None:
        courses = list(COURSES)
        host = make_host(courses=lambda: courses)
        browser = Browser(host.app)

        with host.app.app_context():
            template_id = connect(host, credly).template_id
            courses.pop(0)
            credly.change_template(template_id, state="archived")
            accounts.sync_templates(host.state)
            host.db.session.remove()
            page = browser.get(WINDOW).text

        assert "Course was deleted." in page
        assert "Python 101" in page
        assert "Badge template no longer active in Credly." in page
        assert "No active badge templates were found" in page

    def test_a_row_names_what_is_not_there_any_more(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, connected, mapping_id = mapped
        host, credly, template_id = connected
        session = host.db.session
        path = f"{WINDOW}/mappings/{mapping_id}"
        assert "no longer available" not in browser.get(path, headers=HX).text

        credly.change_template(template_id, state="archived")
        accounts.sync_templates(host.state)
        session.execute(sa.update(Mapping).values(course_id="deleted"))
        session.commit()

        for page in (
            browser.get(path, headers=HX),
            browser.get(f"{WINDOW}?mapping={mapping_id}"),
            browser.post(path),
        ):
            assert "“<bdi>Python 101</bdi>” is no longer available." in page.text
            assert "“<bdi>Python Badge</bdi>” is no longer available." in page.text

    def test_a_failing_course_hook_leaves_the_page(
        self,
        make_host: MakeHost,
        credly: CredlySimulator,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def courses() -> cabc.Iterator[Course]:
            raise RuntimeError("no catalogue")
            yield

        host = make_host(courses=courses)

        with host.app.app_context():
            connect(host, credly)
            host.db.session.remove()
            page = Browser(host.app).get(WINDOW)

        assert page.status_code == 200
        assert "The courses could not be loaded." in page.text
        assert "no catalogue" in caplog.text

    @pytest.mark.parametrize(
        "wrong",
        [
            None,
            ["py-101", "sql"],
            [("py-101", "Python 101")],
            {"py-101": "Python 101"},
            Course("py-101", "Python 101"),
        ],
    )
    def test_courses_that_are_none_are_a_failing_hook(
        self,
        make_host: MakeHost,
        credly: CredlySimulator,
        caplog: pytest.LogCaptureFixture,
        wrong: t.Any,
    ) -> None:
        host = make_host(courses=lambda: wrong)

        with host.app.app_context():
            connect(host, credly)
            host.db.session.remove()
            page = Browser(host.app).get(WINDOW)

        assert page.status_code == 200
        assert "The courses could not be loaded." in page.text
        assert "[Course(id='py-101', title='Python 101')]" in caplog.text
        assert vars(caplog.records[-1])["credly_hook"] == "courses"

    @every_database
    @pytest.mark.parametrize("path", ["", "/mappings/1/backfill"])
    def test_a_failed_statement_of_a_hook_spoils_no_page(
        self, make_host: MakeHost, credly: CredlySimulator, path: str
    ) -> None:
        def fails(*_: object) -> t.Any:
            host.db.session.execute(sa.text("SELECT * FROM no_such_table"))

        host = make_host(courses=fails, past_completions=fails)

        with host.app.app_context():
            connect(host, credly)
            (mapping,) = accounts.list_mappings(host.db.session, "default")
            path = path.replace("1", str(mapping.id))
            host.db.session.remove()

        page = Browser(host.app).get(f"{WINDOW}{path}")

        assert page.status_code == 200
        assert "The developer of this site finds the cause in the log." in text_of(page)

    def test_a_course_that_is_listed_twice_is_offered_once(
        self, make_host: MakeHost, credly: CredlySimulator
    ) -> None:
        host = make_host(courses=lambda: [*COURSES, *COURSES])

        with host.app.app_context():
            connect(host, credly)
            host.db.session.remove()
            page = Browser(host.app).get(f"{WINDOW}/mappings/new", headers=HX)

        assert page.text.count('value="course:sql"') == 1

    def test_a_form_left_open_after_remove_says_so(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, connected, _ = mapped
        token = browser.token(WINDOW)
        accounts.remove(connected.host.state)
        connected.host.db.session.remove()
        response = browser.client.post(
            f"{WINDOW}/mappings",
            data={
                "csrf_token": token,
                "course": "course:sql",
                "template": connected.template_id,
            },
        )

        assert "no longer connected" in browser.get(response.location).text


class TestErrorLog:
    def fill(self, host: Host, number: int) -> None:
        import datetime as dt

        with host.state.engine.begin() as connected:
            for each in range(number):
                at = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
                log.write(connected, "default", at, log.RATE_LIMIT, f"entry {each}.")

    def test_it_is_read_page_by_page(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, connected, _ = mapped
        self.fill(connected.host, 120)
        seen: list[str] = []
        path: str | None = f"{WINDOW}/errors"

        while path:
            page = browser.get(path).text
            seen += re.findall(r"entry \d+\.", page)
            older = re.search(r'rel="next" href="([^"]+)"', page)
            path = html.unescape(older[1]) if older else None

        assert seen == [f"entry {each}." for each in reversed(range(120))]

        newer = re.search(r'rel="prev" href="([^"]+)"', page)
        assert newer
        back = browser.get(html.unescape(newer[1])).text
        assert re.findall(r"entry \d+\.", back) == seen[50:100]

    def test_the_window_shows_the_last_ten(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, connected, _ = mapped
        self.fill(connected.host, 12)
        page = browser.get(WINDOW).text

        assert len(re.findall(r"entry \d+\.", page)) == 10
        assert f"{WINDOW}/errors" in page

    @pytest.mark.parametrize("query", ["?before=x", "?after=-1", "?before=" + "9" * 99])
    def test_a_strange_address_is_the_first_page(
        self, mapped: tuple[Browser, Connected, int], query: str
    ) -> None:
        browser, _, _ = mapped

        assert browser.get(f"{WINDOW}/errors{query}").status_code == 200

    def test_without_a_connection_there_is_none(self, browser: Browser) -> None:
        assert browser.get(f"{WINDOW}/errors").status_code == 303


class TestRemove:
    def test_it_asks_and_removes(self, mapped: tuple[Browser, Connected, int]) -> None:
        browser, connected, _ = mapped
        connected.host.complete()
        asked = browser.get(f"{WINDOW}/remove")
        assert "1 queued badge will not be issued." in asked.text

        response = browser.post(f"{WINDOW}/remove", page=f"{WINDOW}/remove")
        page = browser.get(response.location)

        assert "Credly was removed." in page.text
        assert "Not connected" in page.text

    def test_a_second_time_does_no_harm(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, _, _ = mapped
        token = browser.token(f"{WINDOW}/remove")

        for _ in range(2):
            response = browser.client.post(
                f"{WINDOW}/remove", data={"csrf_token": token}
            )
            assert "Credly was removed." in browser.get(response.location).text

        assert browser.get(f"{WINDOW}/remove").status_code == 303


MANY_COURSES = [
    Course(id=f"c{number:05}", title=f"Course {number:05}") for number in range(10_000)
]


@pytest.fixture
def many(make_host: MakeHost, credly: CredlySimulator) -> cabc.Iterator[Connected]:
    """10,000 courses, 5,000 badge templates, 200 mappings."""
    host = make_host(courses=lambda: MANY_COURSES)

    with host.app.app_context():
        connected = connect(host, credly)
        host.db.session.execute(sa.delete(Mapping))
        host.db.session.execute(
            sa.insert(Template),
            [
                {
                    "id": f"{number:08}-0000-4000-8000-000000000000",
                    "tenant": "default",
                    "name": f"Badge {number:05}",
                    "active": True,
                }
                for number in range(5_000)
            ],
        )
        host.db.session.execute(
            sa.insert(Mapping),
            [
                {
                    "tenant": "default",
                    "kind": "course",
                    "course_id": each.id,
                    "course_title": each.title,
                    "template_id": connected.template_id,
                }
                for each in MANY_COURSES[:200]
            ],
        )
        host.db.session.commit()
        yield connected


def options(text: str) -> list[str]:
    return re.findall(r'<option value="([^"]+)"', text)


class TestManyChoices:
    NEW = f"{WINDOW}?mapping=new"
    ADD = f"{WINDOW}/mappings"

    def test_the_page_stays_small(self, many: Connected) -> None:
        browser = Browser(many.host.app)
        page = browser.get(self.NEW)

        assert len(page.data) < 60_000
        assert "Showing 50 of 9,800. Type more to narrow the list." in text_of(page)
        assert "Showing 50 of 5,001." in text_of(page)
        assert len(options(page.text)) == 100

    def test_mappings_are_read_page_by_page(self, many: Connected) -> None:
        browser = Browser(many.host.app)
        found = [
            re.findall(r"<bdi>Course (\d+)</bdi>", browser.get(f"{WINDOW}?{page}").text)
            for page in ("", *(f"page={number}" for number in range(2, 12)), "page=x")
        ]

        assert [len(each) for each in found] == [*[20] * 10, 0, 20]
        assert len({title for each in found for title in each}) == 200

    def test_without_javascript_a_row_stays_on_its_page(self, many: Connected) -> None:
        browser = Browser(many.host.app)
        second = f"{WINDOW}?page=2"
        links = re.findall(r'href="([^"]+)"', browser.get(second).text)
        (opened, *_) = (html.unescape(link) for link in links if "mapping=" in link)
        row = browser.get(opened).text.split("credly-editing")[1]
        action = html.unescape(re.findall(r'action="([^"]+)"', row)[0])
        course = re.findall(r'value="([^"]+)" selected', row)[0]
        cancel = re.findall(r'href="([^"]+)"', row)[0]
        assert html.unescape(cancel) == second

        # An error, and a search
        answer = browser.post(action, page=opened)
        assert answer.status_code == 422
        assert "Page 2 of 10" in text_of(answer)
        assert "Select a badge template." in text_of(answer)
        assert f'action="{action}"' in answer.text

        answer = browser.post(
            action, page=opened, search="template", template_text="Badge 01234"
        )
        assert "Page 2 of 10" in text_of(answer)
        assert '"Badge 01234"' in answer.text.split("credly-editing")[1]

        # Save, Remove and Undo
        template = "00001234-0000-4000-8000-000000000000"
        answer = browser.post(action, page=opened, course=course, template=template)
        assert answer.location == second
        assert "Mapping saved: " in text_of(browser.get(second))

        page = browser.get(second).text
        remove = re.findall(r'action="([^"]+/remove[^"]*)"', page)[0]
        answer = browser.post(html.unescape(remove), page=second)
        page = browser.get(answer.location).text
        assert "Page 2 of 10" in page
        form = page.split("Undo")[0].rpartition("<form")[2]
        fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', form))
        undo = html.unescape(re.findall(r'action="([^"]+)"', form)[0])
        assert browser.post(undo, page=second, **fields).location == second

        # And a new one
        new = [html.unescape(link) for link in links if "mapping=new" in link][0]
        assert "Page 2 of 10" in text_of(browser.get(new))

    @pytest.mark.parametrize("headers", [None, HX])
    def test_both_lists_are_searched_and_nothing_is_saved(
        self, many: Connected, headers: t.Any
    ) -> None:
        browser = Browser(many.host.app)
        answer = browser.post(
            self.ADD,
            page=self.NEW,
            headers=headers,
            key="abc",
            search="template",
            course_text="course 0999",
            template_text="BADGE 0123",
            course="course:c05000",
        )
        found = options(answer.text)

        assert answer.status_code == 200
        assert [each for each in found if each.startswith("course:")] == [
            "course:c05000",
            *(f"course:c0999{digit}" for digit in range(10)),
        ]
        assert len(found) == 11 + 10
        assert '<option value="course:c05000" selected>' in answer.text
        assert 'id="credly-edit-abc"' in answer.text
        assert re.search(r'id="credly-edit-abc-template"\s+autofocus', answer.text)
        assert len(accounts.list_mappings(many.host.db.session, "default")) == 200

    def test_nothing_found_is_said(self, many: Connected) -> None:
        browser = Browser(many.host.app)
        answer = browser.post(
            self.ADD, page=self.NEW, search="typing", course_text=HOSTILE
        )

        assert "Nothing matches" in text_of(answer)
        assert "<img src=x" not in answer.text

    def test_what_was_found_is_saved(self, many: Connected) -> None:
        browser = Browser(many.host.app)
        template = "00001234-0000-4000-8000-000000000000"
        fields = {"course": "course:c09999", "template": template}
        answer = browser.post(self.ADD, page=self.NEW, **fields)
        session = many.host.db.session

        assert answer.status_code == 303
        assert ("course", "c09999") in accounts.mapped_courses(session, "default")

    def test_an_error_keeps_what_was_searched_and_chosen(self, many: Connected) -> None:
        browser = Browser(many.host.app)
        template = "00001234-0000-4000-8000-000000000000"
        answer = browser.post(
            self.ADD, page=self.NEW, template=template, template_text="badge 00001"
        )

        assert answer.status_code == 422
        assert f'<option value="{template}" selected>' in answer.text
        assert 'value="badge 00001"' in answer.text
        assert "Select a course or learning path." in text_of(answer)


class TestState:
    @pytest.mark.parametrize(
        ("values", "card", "window"),
        [
            ({}, "Connected", "Credly Integration"),
            ({"expired": True}, "Connection expired", "Please reconnect."),
            (
                {"paused_until": True, "pause_reason": "rate limit"},
                "Issuance paused until",
                "Credly's API rate limit was reached.",
            ),
            (
                {"paused_until": True, "pause_reason": "unavailable"},
                "Issuance paused until",
                "Credly could not be reached.",
            ),
            (
                {"switched_off": True},
                "Issuance paused",
                "No badges are issued until you resume.",
            ),
            (
                {"switched_off": True, "expired": True},
                "Connection expired",
                "Resume issuing",
            ),
            (
                # It has no end, though Credly's pause has one.
                {"switched_off": True, "paused_until": True},
                "Issuance paused",
                "Resume issuing",
            ),
        ],
    )
    def test_it_is_said_in_words(
        self,
        mapped: tuple[Browser, Connected, int],
        values: dict[str, t.Any],
        card: str,
        window: str,
    ) -> None:
        browser, connected, _ = mapped

        if "paused_until" in values:
            later = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=5)
            values = {**values, "paused_until": later}

        if values:
            connected.host.db.session.execute(sa.update(Account).values(**values))
            connected.host.db.session.commit()

        listed = text_of(browser.get(LIST))
        assert card in listed
        assert ("paused until" in listed) == ("paused until" in card)
        assert window in text_of(browser.get(WINDOW))

    def test_issuing_is_paused_and_resumed(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, connected, _ = mapped
        host = connected.host
        browser.post(f"{WINDOW}/pause")
        assert "Issuing is paused." in text_of(browser.get(WINDOW))
        assert "Pause issuing" not in text_of(browser.get(WINDOW))

        host.complete()
        host.drain()
        assert host.row().state == "none"
        assert "1 badge is queued." in text_of(browser.get(WINDOW))

        browser.post(f"{WINDOW}/resume")
        assert "Issuing has resumed." in text_of(browser.get(WINDOW))
        host.drain()
        assert host.row().state == "issued"

    def test_the_connection_was_last_checked(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, connected, _ = mapped
        session = connected.host.db.session
        before = dt.datetime(2026, 1, 2, 3, 4, tzinfo=dt.UTC)
        session.execute(sa.update(Account).values(checked_at=before))
        session.commit()
        assert "2 Jan 2026, 03:04 UTC" in text_of(browser.get(WINDOW))

        browser.post(f"{WINDOW}/test")
        assert "2 Jan 2026, 03:04 UTC" not in text_of(browser.get(WINDOW))

    def test_what_is_wrong_stands_on_the_card(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, connected, _ = mapped
        host, credly, _ = connected
        assert "failed" not in text_of(browser.get(LIST))

        body = {"data": {"message": "Example refusal"}, "metadata": None}
        credly.fail("issue", times=2, status=422, body=body)
        host.complete("1")
        host.drain(2)
        host.complete("2")
        assert "1 badge failed" in text_of(browser.get(LIST))

        long_ago = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        session = host.db.session
        due = sa.update(Issuance).where(Issuance.due_at.is_not(None))
        session.execute(due.values(due_at=long_ago))
        session.commit()
        assert "Badges are not being issued: 1 queued" in text_of(browser.get(LIST))

    def test_what_was_mended_needs_nothing_to_be_done(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, connected, _ = mapped
        host, credly, _ = connected
        body = {"data": {"message": "Example refusal"}, "metadata": None}
        credly.posts_allowed = 4
        credly.fail("issue", times=2, status=422, body=body)
        host.complete("1")
        host.drain(2)
        shown = text_of(browser.get(WINDOW))
        assert "What to do" in shown
        assert "Resolved" not in shown

        browser.post(f"{WINDOW}/badges/{host.row().id}/retry")
        host.drain()
        assert host.row().state == "issued"
        shown = text_of(browser.get(WINDOW))
        assert "What to do" not in shown
        assert "Resolved" in shown

    @pytest.mark.parametrize("status", [429, 503])
    def test_a_pause_is_solved_by_the_next_badge(
        self,
        mapped: tuple[Browser, Connected, int],
        monkeypatch: pytest.MonkeyPatch,
        status: int,
    ) -> None:
        browser, connected, _ = mapped
        monkeypatch.setattr("flask_credly.issuing.dispatcher.SHORT_PAUSE", 1.0)
        host, credly, _ = connected
        credly.fail("token", status=status)
        credly.revoke_tokens()
        host.complete("1")
        host.drain()
        shown = text_of(browser.get(WINDOW))
        assert "What to do" in shown
        assert "Resolved" not in shown

        past = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
        host.db.session.execute(sa.update(Account).values(paused_until=past))
        host.db.session.commit()
        assert "Resolved" not in text_of(browser.get(WINDOW))

        host.drain()
        assert host.row().state == "issued"
        shown = text_of(browser.get(WINDOW))
        assert "What to do" not in shown
        assert "Resolved" in shown

    def test_a_badge_that_waits_for_a_pause_says_so(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, connected, mapping_id = mapped
        browser.post(f"{WINDOW}/pause")
        connected.host.complete("1")
        assert "Queued (paused)" in text_of(browser.get(f"{WINDOW}/badges"))

        path = f"{WINDOW}/mappings/{mapping_id}/test"
        who = {"email": "a@example.org", "first_name": "A", "last_name": "B"}
        answer = browser.post(path, page=path, **who)
        said = text_of(browser.get(answer.location))
        assert "The test badge is queued. It is sent when issuing resumes." in said

    def test_a_kept_record_names_its_course_after_remove(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, connected, _ = mapped
        connected.host.complete("1")
        connected.host.drain()
        accounts.remove(connected.host.state)
        browser.connect(connected.credly)
        shown = text_of(browser.get(f"{WINDOW}/badges"))

        assert "Python 101" in shown
        assert "member-1@example.org" not in shown

    def test_each_number_leads_to_its_badges(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, connected, _ = mapped
        connected.host.complete("1")
        session = connected.host.db.session
        page = browser.get(WINDOW)
        assert f'href="{WINDOW}/badges?status=waiting"' in page.text
        assert f'href="{WINDOW}/badges?status=skipped"' not in page.text

        session.execute(sa.update(Issuance).values(state="cancelled", action=None))
        session.commit()
        page = browser.get(WINDOW)
        assert "1 skipped" in text_of(page)
        assert f'href="{WINDOW}/badges?status=skipped"' in page.text

    def test_many_are_not_counted_to_the_end(
        self, mapped: tuple[Browser, Connected, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        browser, connected, _ = mapped
        monkeypatch.setattr("flask_credly.admin.window.AT_MOST", 2)

        for number in range(3):
            connected.host.complete(str(number))

        assert "2+ queued" in text_of(browser.get(WINDOW))

    def test_an_old_list_of_templates_is_said(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, connected, _ = mapped
        said = ". Later attempts failed. Badges are still issued."
        # Refused, that is, and within reach.
        connected.credly.fail("templates", status=403)
        browser.post(f"{WINDOW}/templates")
        assert said in text_of(browser.get(WINDOW))

        browser.post(f"{WINDOW}/templates")
        assert said not in text_of(browser.get(WINDOW))

    def test_what_is_in_the_way_is_a_part_of_the_page(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, _, _ = mapped
        part = browser.get(f"{WINDOW}/banners", headers={"HX-Request": "true"})
        assert "Redis cannot be reached" in text_of(part)
        assert "<html" not in part.text
        assert browser.get(f"{WINDOW}/banners").location == WINDOW

    def test_a_queue_out_of_reach_is_said(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        browser, _, _ = mapped

        assert "Redis cannot be reached" in browser.get(WINDOW).text

    def test_no_worker_is_said(
        self,
        mapped: tuple[Browser, Connected, int],
        redis_url: str,
    ) -> None:
        from flask_credly.issuing import notifier

        browser, connected, _ = mapped
        import redis

        state = connected.host.state
        with redis.Redis.from_url(redis_url) as client:
            client.flushdb()
            state.web_queue.queue = notifier.make_queue(
                state.app, state.settings, client
            )
            page = browser.get(WINDOW).text

        assert "No worker is running" in page

    def test_lost_key_page_is_200(self, mapped: tuple[Browser, Connected, int]) -> None:
        browser, connected, _ = mapped
        connected.host.app.config.update(
            SECRET_KEY="another", SECRET_KEY_FALLBACKS=None
        )
        asked = len(connected.credly.received)
        card, window = browser.get(LIST), browser.get(WINDOW)
        assert (card.status_code, window.status_code) == (200, 200)
        assert "Encryption key missing" in card.text
        assert "enter the Client Secret again." in window.text

        response = browser.post(f"{WINDOW}/test")
        assert "enter the Client Secret again." in browser.get(response.location).text
        assert len(connected.credly.received) == asked

    def test_missing_tables_leave_the_list(
        self, host: Host, browser: Browser, caplog: pytest.LogCaptureFixture
    ) -> None:
        with host.app.app_context():
            host.db.drop_all()

        response = browser.get(LIST)

        assert response.status_code == 200
        assert "Status unavailable" in response.text
        # It may be connected.
        assert "Set Up" not in response.text
        assert f'href="{WINDOW}"' in response.text

    @every_database
    @pytest.mark.parametrize("gone", ["table", "column"])
    def test_missing_tables_are_said_on_a_page(
        self,
        host: Host,
        browser: Browser,
        caplog: pytest.LogCaptureFixture,
        gone: str,
    ) -> None:
        with host.app.app_context():
            if gone == "table":
                host.db.drop_all()
            else:
                statement = "ALTER TABLE credly_account DROP COLUMN token"
                host.db.session.execute(sa.text(statement))
                host.db.session.commit()

        page = browser.get(WINDOW)
        part = browser.get(f"{WINDOW}/banners", headers=HX)

        assert (page.status_code, part.status_code) == (503, 503)
        assert "<html" in page.text and "<html" not in part.text
        assert "flask db upgrade" in page.text and "flask db upgrade" in part.text
        assert "flask credly doctor" in page.text
        assert "<title>Error: " in page.text and f'href="{LIST}"' in page.text
        events = [vars(each).get("credly_event") for each in caplog.records]
        assert events[-2:] == ["tables_missing"] * 2
        assert "Traceback" not in caplog.text

    def test_another_error_of_the_database_is_the_hosts_to_handle(
        self, host: Host, browser: Browser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> t.NoReturn:
            raise sa.exc.OperationalError("", {}, Exception("gone away"))

        monkeypatch.setattr(accounts, "get", fail)

        with pytest.raises(sa.exc.OperationalError):
            browser.get(WINDOW)


def rules(app: Flask) -> list[tuple[str, str]]:
    """Every rule and method below the prefix: a new one cannot be forgotten."""
    adapter = app.url_map.bind("localhost")
    return [
        (
            method,
            adapter.build(
                rule.endpoint,
                {
                    name: "credly.css" if name == "filename" else 1
                    for name in rule.arguments
                },
                method=method,
            ),
        )
        for rule in app.url_map.iter_rules()
        if rule.rule.startswith("/integrations")
        for method in (rule.methods or set()) - {"OPTIONS", "HEAD"}
    ]


def test_every_answer_is_what_a_server_may_send(
    mapped: tuple[Browser, Connected, int],
) -> None:
    # The test client is lenient.
    app = mapped[1].host.app
    client = Client(wsgiref.validate.validator(app.wsgi_app))

    for method, path in rules(app):
        if method == "GET":
            assert client.get(path, buffered=True).status_code in (200, 303, 404)


class TestGuard:
    @pytest.mark.parametrize(
        "answer",
        [False, None, 0, 1, "True", "yes", [True], {True: True}, (True,)],
        ids=repr,
    )
    def test_only_true_lets_in(
        self, make_host: MakeHost, credly: CredlySimulator, answer: object
    ) -> None:
        allowed = [True]
        host = make_host(is_admin=lambda: True if allowed else answer)
        client = host.app.test_client()

        with host.app.app_context():
            connect(host, credly)
            before, asked = digest(host), len(credly.received)
            host.db.session.remove()
            allowed.clear()
            found = {
                (method, path): client.open(
                    path, method=method, buffered=True
                ).status_code
                for method, path in rules(host.app)
            }
            # The same for everybody, and the refusal is a page that needs them.
            assert found.pop(("GET", "/integrations/static/credly.css")) == 200

            assert set(found.values()) == {403}
            assert len(found) >= 16
            assert (digest(host), len(credly.received)) == (before, asked)

    @pytest.mark.parametrize(
        ("answer", "logged"),
        [
            (False, False),
            (None, False),
            (redirect("/login"), False),
            (1, True),
            ("yes", True),
            ((True, "admin"), True),
        ],
        ids=lambda value: str(value)[:12],
    )
    def test_an_answer_that_is_none_is_logged(
        self,
        make_host: MakeHost,
        caplog: pytest.LogCaptureFixture,
        answer: object,
        logged: bool,
    ) -> None:
        client = make_host(is_admin=lambda: answer).app.test_client()
        caplog.clear()
        client.get(WINDOW)
        records = [vars(each) for each in caplog.records]

        assert [each["credly_hook"] for each in records] == ["is_admin"] * logged
        assert [each["credly_event"] for each in records] == ["hook_failed"] * logged

    def test_a_hook_that_is_a_coroutine_is_logged(
        self, make_host: MakeHost, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def is_admin() -> bool:
            return True

        answer = is_admin()
        client = make_host(is_admin=lambda: answer).app.test_client()

        assert client.get(WINDOW).status_code == 403
        assert "not coroutine. Access was denied." in caplog.text
        answer.close()

    def test_the_refusal_is_a_page(self, make_host: MakeHost) -> None:
        client = make_host(is_admin=lambda: False).app.test_client()

        assert "You do not have access to this page." in client.get(WINDOW).text
        assert "<html" not in client.get(WINDOW, headers=HX).text

    @pytest.mark.parametrize(
        ("answer", "where"), [(False, "#credly-flash"), (Response("No", 403), None)]
    )
    def test_a_refusal_leaves_what_htmx_asked_for_in_place(
        self, make_host: MakeHost, answer: t.Any, where: str | None
    ) -> None:
        """But the host's own stands where the host wants it."""
        client = make_host(is_admin=lambda: answer).app.test_client()
        refusal = client.get(f"{WINDOW}/mappings/new", headers=HX)

        assert refusal.status_code == 403
        assert refusal.headers.get("HX-Retarget") == where

    def test_a_failing_hook_lets_nobody_in(
        self, make_host: MakeHost, caplog: pytest.LogCaptureFixture
    ) -> None:
        def is_admin() -> bool:
            raise RuntimeError("directory is down")

        client = make_host(is_admin=is_admin).app.test_client()

        assert client.get(WINDOW).status_code == 403
        assert "directory is down" in caplog.text

    def test_a_coroutine_is_not_true(self, make_host: MakeHost) -> None:
        async def is_admin() -> bool:
            return True

        made: list[t.Any] = []

        def hook() -> t.Any:
            made.append(is_admin())
            return made[-1]

        client = make_host(is_admin=hook).app.test_client()

        assert client.get(WINDOW).status_code == 403
        made[0].close()

    def test_a_response_is_the_refusal(self, make_host: MakeHost) -> None:
        host = make_host(is_admin=lambda: redirect("/login"))
        client = host.app.test_client()

        assert client.get(WINDOW).location == "/login"

        with_htmx = client.get(WINDOW, headers=HX)
        assert (with_htmx.status_code, with_htmx.headers["HX-Redirect"]) == (
            401,
            "/login",
        )

    def test_a_login_of_the_whole_site_reaches_htmx_too(
        self, make_host: MakeHost
    ) -> None:
        def setup(app: Flask, db: SQLAlchemy) -> None:
            @app.before_request
            def login() -> t.Any:
                return redirect("/login")

        client = make_host(setup=setup).app.test_client()

        assert client.get(WINDOW, headers=HX).headers["HX-Redirect"] == "/login"


class TestTokens:
    @pytest.fixture(params=["alone", "protected", "exempt"])
    def guarded(
        self, request: pytest.FixtureRequest, make_host: MakeHost
    ) -> cabc.Iterator[Host]:
        def setup(app: Flask, db: SQLAlchemy) -> None:
            if request.param != "alone":
                CSRFProtect(app)

        host = make_host(setup=setup)

        if request.param == "exempt":
            host.app.extensions["csrf"].exempt(host.app.blueprints["credly"])

        yield host

    @pytest.mark.parametrize("token", [None, "", "wrong"], ids=repr)
    @pytest.mark.parametrize("headers", [None, HX], ids=["page", "htmx"])
    def test_csrf_without_host_protection(
        self,
        guarded: Host,
        credly: CredlySimulator,
        token: str | None,
        headers: t.Any,
    ) -> None:
        """And with it: no POST does anything without its token."""
        client = guarded.app.test_client()

        with guarded.app.app_context():
            template_id = connect(guarded, credly).template_id
            (mapping,) = accounts.list_mappings(guarded.db.session, "default")
            before, asked = digest(guarded), len(credly.received)
            guarded.db.session.remove()
            data = {
                "organization_id": credly.organization_id,
                "client_id": credly.client_id,
                "client_secret": credly.client_secret,
                "course": "course:sql",
                "template": template_id,
            }

            if token is not None:
                data["csrf_token"] = token

            for method, path in rules(guarded.app):
                if method == "POST":
                    client.post(path, data=data, headers=headers)

            assert (digest(guarded), len(credly.received)) == (before, asked)

    def test_a_right_token_works(self, guarded: Host, credly: CredlySimulator) -> None:
        assert Browser(guarded.app).connect(credly).status_code == 303

    @pytest.mark.parametrize("headers", [None, HX], ids=["page", "htmx"])
    def test_secret_key_rotation_open_page(
        self, guarded: Host, credly: CredlySimulator, headers: t.Any
    ) -> None:
        """An outdated token loses nothing that was typed, but the secret."""
        response = guarded.app.test_client().post(
            WINDOW,
            data={
                "csrf_token": "old",
                "organization_id": "typed-organization",
                "client_id": "typed-client",
                "client_secret": "typed-secret",
            },
            headers=headers,
        )

        assert response.status_code == 422
        assert "This page has expired. Please submit the form again." in response.text
        assert 'value="typed-organization"' in response.text
        assert 'value="typed-client"' in response.text
        assert "typed-secret" not in response.text

    @pytest.mark.parametrize("headers", [None, HX], ids=["page", "htmx"])
    def test_a_row_keeps_its_choices(
        self, guarded: Host, credly: CredlySimulator, headers: t.Any
    ) -> None:
        with guarded.app.app_context():
            template_id = connect(guarded, credly).template_id
            guarded.db.session.remove()
            response = guarded.app.test_client().post(
                f"{WINDOW}/mappings",
                data={"course": "course:sql", "template": template_id},
                headers=headers,
            )

        assert response.status_code == 422
        assert "This page has expired." in response.text
        assert re.search(r'value="course:sql"\s+selected', response.text)

    def test_a_button_says_so_on_the_page(
        self, guarded: Host, credly: CredlySimulator
    ) -> None:
        with guarded.app.app_context():
            connect(guarded, credly)
            guarded.db.session.remove()
            client = guarded.app.test_client()
            response = client.post(f"{WINDOW}/test")

            assert "has expired" in client.get(response.location).text


def test_a_backfill_that_is_not_there_is_no_mapping(
    mapped: tuple[Browser, Connected, int],
) -> None:
    browser, _, _ = mapped
    said = "This run no longer exists."
    answer = browser.get(f"{WINDOW}/backfills/99")
    assert said in text_of(browser.get(answer.location))

    answer = browser.post(f"{WINDOW}/backfills/99/stop")
    assert said in text_of(browser.get(answer.location))


def test_reading_changes_nothing(mapped: tuple[Browser, Connected, int]) -> None:
    browser, connected, _ = mapped
    before, asked = digest(connected.host), len(connected.credly.received)
    connected.host.db.session.remove()

    for method, path in rules(connected.host.app):
        if method == "GET":
            browser.get(path)
            browser.get(path, headers=HX)

    assert (digest(connected.host), len(connected.credly.received)) == (before, asked)
    # Who has taken all of it away is noted.
    noted = set(connected.host.db.session.scalars(sa.select(AuditEntry.action)))
    assert noted == {"export activity", "export badges", "export errors"}


def test_headers_are_on_every_answer(mapped: tuple[Browser, Connected, int]) -> None:
    browser, connected, _ = mapped

    for method, path in rules(connected.host.app):
        headers = browser.client.open(path, method=method, buffered=True).headers
        assert headers["X-Content-Type-Options"] == "nosniff"

        if "/static/" not in path:
            assert headers["Cache-Control"] == "no-store, private"
            assert headers["X-Frame-Options"] == "SAMEORIGIN"
            assert "HX-Request" in headers["Vary"]


def test_static_files_are_kept_for_a_year_under_their_version(browser: Browser) -> None:
    page = browser.get(LIST).text
    (url,) = re.findall(r'href="([^"]+credly\.css[^"]*)"', page)

    assert re.search(r"\?v=[0-9a-f]{8}$", url)
    assert "max-age=31536000" in browser.get(url).headers["Cache-Control"]
    assert "max-age" not in browser.get(url.partition("?")[0]).headers["Cache-Control"]


def test_our_own_layout_has_a_strict_policy(browser: Browser) -> None:
    response = browser.get(LIST)

    assert "script-src 'self'" in response.headers["Content-Security-Policy"]
    assert not re.search(r"<script(?! src=)|<style| style=| on\w+=", response.text)


HOST_LAYOUT = (
    "<body>Mine {% block title %}{% endblock %}{% block content %}{% endblock %}"
)


@pytest.mark.parametrize("shadowed", [False, True], ids=["setting", "shadow"])
def test_pages_stand_in_the_hosts_layout(
    make_host: MakeHost, shadowed: bool, tmp_path: t.Any
) -> None:
    from jinja2 import DictLoader

    name = "credly/base.html" if shadowed else "host.html"

    def setup(app: Flask, db: SQLAlchemy) -> None:
        app.jinja_loader = DictLoader({name: HOST_LAYOUT})

    config = {} if shadowed else {"CREDLY_LAYOUT": name}
    response = make_host(setup=setup, **config).app.test_client().get(LIST)

    assert "Mine Integrations" in response.text
    assert "Content-Security-Policy" not in response.headers
    assert "htmx" not in re.sub(r"hx-\w+", "", response.text).lower()


class Skeleton(html.parser.HTMLParser):
    """The tags of a page and the names of their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(f"{tag} {[name for name, _ in attrs]}")


def test_foreign_text_is_only_text(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    """The tags of every page are the same whatever the names are."""

    def skeletons(name: str) -> list[list[str]]:
        host = make_host(
            courses=lambda: [Course(id=name, title=name)], CREDLY_PLATFORM_NAME=name
        )
        template_id = credly.add_template(name)

        with host.app.app_context():
            host.db.drop_all()
            host.db.create_all()
            accounts.connect(
                host.state,
                organization_id=credly.organization_id,
                client_id=credly.client_id,
                client_secret=credly.client_secret,
            )
            accounts.add_mapping(host.state, Course(id=name, title=name), template_id)

            with host.state.engine.begin() as connected:
                import datetime as dt

                log.write(connected, "default", dt.datetime.now(dt.UTC), name, name)

            host.db.session.remove()
            client = host.app.test_client()
            pages = [
                client.get(path, headers=headers).text
                for path in (LIST, WINDOW, f"{WINDOW}?mapping=1", f"{WINDOW}/errors")
                for headers in ({}, HX)
            ]
            host.db.session.execute(sa.delete(Mapping))
            host.db.session.commit()
            credly.delete_template(template_id)
            return [Skeleton(page).found for page in pages]

    assert skeletons("plain") == skeletons(HOSTILE)


def test_template_suffix_autoescape() -> None:
    """Jinja escapes by the file's ending, and what is not marked safe."""
    from flask_credly import assets

    files = [path for path in assets.TEMPLATES.rglob("*") if path.is_file()]

    assert {path.suffix for path in files} == {".html"}
    assert not [path for path in files if "|safe" in path.read_text().replace(" ", "")]


def test_a_refusal_is_a_page_in_a_hosts_layout(make_host: MakeHost) -> None:
    response: t.Any = make_host(is_admin=lambda: Response("no", 401)).app
    assert response.test_client().get(LIST).status_code == 401


class TestEmbedding:
    """The card in a host's own list of integrations."""

    PAGE = "<head>{{ credly_assets() }}{{ credly_assets() }}</head>{{ credly_card() }}"

    def show(self, host: Host) -> str:
        with host.app.test_request_context():
            return render_template_string(self.PAGE)

    def test_the_card_stands_in_a_page_of_the_host(self, host: Host) -> None:
        text = self.show(host)

        assert "Not connected" in text
        assert text.count("credly.css") == text.count("credly.js") == 1

    def test_it_shows_what_there_is(
        self, mapped: tuple[Browser, Connected, int]
    ) -> None:
        _, connected, _ = mapped
        text = self.show(connected.host)

        assert connected.credly.organization_id in text
        assert "1 mapping" in text
        assert 'action="/integrations/credly/remove"' in text

    @pytest.mark.parametrize("answer", [False, Response("no"), "yes"])
    def test_nobody_else_sees_it(self, make_host: MakeHost, answer: t.Any) -> None:
        text = self.show(make_host(is_admin=lambda: answer))

        assert "Credly" not in text.partition("</head>")[2]

    def test_tags_carry_the_hosts_nonce(self, host: Host) -> None:
        names = host.app.jinja_env.globals
        assert "nonce" not in self.show(host)

        for nonce in ("abc", lambda: "abc"):
            names["csp_nonce"] = nonce
            assert self.show(host).count(' nonce="abc"') == 2

        names["csp_nonce"] = '"><x'
        assert "<x" not in self.show(host)


def test_a_removal_is_undone_without_javascript(
    mapped: tuple[Browser, Connected, int],
) -> None:
    browser, connected, mapping_id = mapped
    host = connected.host
    host.complete()
    answer = browser.post(f"{WINDOW}/mappings/{mapping_id}/remove")
    host.drain()
    assert host.row().state == "cancelled"
    page = browser.get(answer.location).text
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', page.split("Undo")[0]))
    assert fields["undo"] == str(mapping_id)
    assert not {"course", "template"} & {*fields}

    browser.post(f"{WINDOW}/mappings", **fields)
    host.drain()

    assert host.row().state == "issued"
    assert "Undo" not in browser.get(answer.location).text


def test_a_badge_that_waits_is_shown_as_what_its_course_is_mapped_to_now(
    connected: Connected,
) -> None:
    host, credly, _ = connected
    other = credly.add_template("The Badge Of Now")
    accounts.sync_templates(host.state)
    host.complete()
    (mapping,) = accounts.list_mappings(host.db.session, "default")
    accounts.change_mapping(host.state, mapping.id, COURSES[0], other)
    text = host.app.test_client().get("/integrations/credly/badges").text

    assert "<bdi>The Badge Of Now</bdi>" in text
