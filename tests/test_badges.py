"""The ledger and the error log as pages: filters, retries, exports."""

from __future__ import annotations

import html
import re
import typing as t
import wsgiref.validate

import pytest
from conftest import connect
from conftest import Connected
from conftest import COURSES
from conftest import every_database
from conftest import Host
from conftest import MakeConnected
from sqlalchemy import event
from werkzeug.test import Client

from flask_credly import accounts
from flask_credly import badge_failed
from flask_credly import badge_issued
from flask_credly import Course
from flask_credly import Member
from flask_credly.admin.rows import MANY
from flask_credly.ledger import issuances
from flask_credly.ledger import log
from flask_credly.ledger import overview
from flask_credly.ledger import retrying
from flask_credly.models import Mapping
from flask_credly.testing import CredlySimulator
from tests.support.databases import open_again
from tests.support.pages import BADGES
from tests.support.pages import Browser
from tests.support.pages import browser as browser
from tests.support.pages import fail_one
from tests.support.pages import HX
from tests.support.pages import Mapped
from tests.support.pages import mapped as mapped
from tests.support.pages import read_csv
from tests.support.pages import text_of

ERRORS = "/integrations/credly/errors"


class TestRetry:
    @every_database
    def test_a_failed_badge_is_issued(
        self, host: Host, credly: CredlySimulator
    ) -> None:
        with host.app.app_context():
            row = fail_one(connect(host, credly))

            assert issuances.retry(host.state.engine, "default", row.id) == 1
            host.drain()

            row = host.row()
            assert (row.state, row.error, row.attempts) == ("issued", None, 1)
            assert len(credly.badges) == 1

    def test_it_has_its_two_attempts_again(self, connected: Connected) -> None:
        host, credly, _ = connected
        row = fail_one(connected)
        credly.fail("issue", status=422, times=2)
        issuances.retry(host.state.engine, "default", row.id)
        host.drain(2)

        assert host.row().state == "failed"
        assert credly.count("issue") == 4
        assert len(host.log()) == 2

    def test_it_makes_no_second_badge(self, connected: Connected) -> None:
        """Somebody issued it by hand meanwhile: that badge is not the row's."""
        host, credly, template_id = connected
        row = fail_one(connected)
        credly.award(template_id, row.email)
        issuances.retry(host.state.engine, "default", row.id)
        host.drain()

        assert (host.row().state, host.row().badge_id) == ("held", None)
        assert "It was issued in Credly, not by this site." in (host.row().error or "")
        assert (len(credly.badges), credly.count("issue")) == (1, 3)

    def test_it_becomes_what_the_course_is_mapped_to_now(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        row = fail_one(connected)
        other = credly.add_template("Another Badge")
        accounts.sync_templates(host.state)
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        accounts.change_mapping(host.state, mapping.id, COURSES[0], other)
        issuances.retry(host.state.engine, "default", row.id)
        host.drain()

        (badge,) = credly.badges
        assert badge["badge_template"]["id"] == other
        assert host.row().badge_name == "Another Badge"

    @pytest.mark.parametrize("state", ["issued", "none"])
    def test_nothing_else_is_tried(self, connected: Connected, state: str) -> None:
        host, credly, _ = connected
        host.complete()

        if state == "issued":
            host.drain()

        assert issuances.retry(host.state.engine, "default", host.row().id) == 0
        assert retrying.retry_all(host.state.engine, "default").number == 0

    def test_an_unmapped_course_is_left_alone(self, connected: Connected) -> None:
        host, _, _ = connected
        row = fail_one(connected)
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        accounts.remove_mapping(host.state, mapping.id)

        assert issuances.retry(host.state.engine, "default", row.id) == 0

    @pytest.mark.parametrize("every", [False, True])
    def test_what_was_skipped_comes_back_when_asked_for(
        self, connected: Connected, every: bool
    ) -> None:
        host, credly, template_id = connected
        host.complete()
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        accounts.remove_mapping(host.state, mapping.id)
        host.drain()
        accounts.add_mapping(host.state, COURSES[0], template_id)
        row = host.row()
        assert row.state == "cancelled"
        assert issuances.retriable(host.db.session, "default") == 1
        host.db.session.remove()

        if every:
            assert retrying.retry_all(host.state.engine, "default").number == 1
        else:
            assert issuances.retry(host.state.engine, "default", row.id) == 1

        host.drain()

        assert host.row().state == "issued"

    def test_a_member_whose_badge_waited_at_remove_is_served_after_a_reconnect(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        credly.fail("issue", status=422)
        credly.fail("issue", status=429)
        host.complete()
        host.drain()
        accounts.remove(host.state)
        assert host.row().state == "failed"

        connect(host, credly)
        retrying.retry_all(host.state.engine, "default")
        open_again(host)
        host.drain(2)
        assert host.row().state == "none"

        # It may have been issued: that is looked up when Credly's lists had their time.
        host.let_lists_catch_up()
        host.drain()

        # Remove cleared the address, and this host has no @credly.member hook.
        assert "no e-mail address" in (host.row().error or "")

    def test_by_command(self, connected: Connected) -> None:
        host, credly, _ = connected
        row = fail_one(connected)
        runner = host.app.test_cli_runner()

        assert (
            "1 queued again"
            in runner.invoke(args=["credly", "retry", str(row.id)]).output
        )
        host.drain()
        assert host.row().state == "issued"
        assert (
            "0 queued again" in runner.invoke(args=["credly", "retry", "--all"]).output
        )
        assert runner.invoke(args=["credly", "retry"]).exit_code == 2


class TestTheLedgersPage:
    def test_each_state_in_words(self, mapped: Mapped) -> None:
        browser, connected, _ = mapped
        host, credly, template_id = connected
        host.complete("1")
        host.drain()
        credly.award(template_id, "member-2@example.org")
        credly.email_filter_finds_accepted = False
        host.complete("2")
        host.drain()
        fail_one(connected, "3")
        host.complete("4")
        text = text_of(browser.get(BADGES))

        for word in ("Queued", "Issued", "Already held", "Failed"):
            assert word in text

        assert "Retry" in text

    def test_filters(self, mapped: Mapped) -> None:
        browser, connected, _ = mapped
        host = connected.host
        host.complete("1")
        host.drain()
        fail_one(connected, "3")
        host.complete(
            member=Member("2", "grace@example.org", "Grace", "Example_Person")
        )

        def found(query: str) -> set[str]:
            text = browser.get(f"{BADGES}?{query}").text
            addresses = ("member-1@", "grace@", "member-3@")
            return {each for each in addresses if f"{each}example.org" in text}

        assert found("") == {"member-1@", "grace@", "member-3@"}
        assert found("status=issued") == {"member-1@"}
        assert found("status=waiting") == {"grace@"}
        assert found("status=failed") == {"member-3@"}
        assert found("status=skipped") == set()
        assert found("status=nonsense&q=") == {"member-1@", "grace@", "member-3@"}
        assert found("q=GRACE") == {"grace@"}
        assert found("q=example_p") == {"grace@"}
        assert found("q=%25") == set()
        assert found("q=Grace+example_person") == {"grace@"}
        assert found("q=Grace+Other") == set()
        assert found("q=3") == {"member-3@"}
        assert found("course=course:py-101&q=grace") == {"grace@"}
        assert found("course=course:sql") == set()
        assert "No badges match these filters." in text_of(
            browser.get(f"{BADGES}?status=skipped")
        )

    def test_it_is_read_page_by_page(self, mapped: Mapped) -> None:
        browser, connected, _ = mapped

        for number in range(120):
            connected.host.complete(f"m{number:03}")

        seen: list[str] = []
        address: str | None = f"{BADGES}?status=waiting"

        while address:
            text = browser.get(address).text
            seen += re_find(r"member-(m\d+)@", text)
            older = re_find(r'rel="next" href="([^"]+)"', text)
            address = older[0].replace("&amp;", "&") if older else None

        assert seen == [f"m{number:03}" for number in reversed(range(120))]

    def test_retry_as_a_form_keeps_the_filters(self, mapped: Mapped) -> None:
        browser, connected, _ = mapped
        row = fail_one(connected)
        page = f"{BADGES}?status=failed"
        (action,) = re_find(r'action="([^"]+/retry[^"]*)"', browser.get(page).text)
        answer = browser.post(action.replace("&amp;", "&"), page=page)

        assert answer.status_code == 303
        # What was retried stays on the page, whatever its filter says.
        assert answer.location == f"{page}&retried={row.id}"
        assert connected.host.row().state == "none"
        assert "queued again" in text_of(browser.get(page))
        assert row.id == connected.host.row().id

    @pytest.mark.parametrize("headers", [None, HX])
    def test_an_outdated_retry_keeps_the_filters(
        self, mapped: Mapped, headers: t.Any
    ) -> None:
        browser, connected, _ = mapped
        fail_one(connected)
        page = f"{BADGES}?status=failed"
        name = "hx-post" if headers else "action"
        (path,) = re_find(f'{name}="([^"]+/retry[^"]*)"', browser.get(page).text)
        path = path.replace("&amp;", "&")
        answer = browser.post(path, csrf_token="old", headers=headers)

        location = answer.location or answer.headers["HX-Redirect"]
        assert location.startswith(page)
        assert "This page has expired." in text_of(browser.get(page))
        assert connected.host.row().state == "failed"

    def test_a_badge_without_a_name_is_told_from_the_others(
        self, mapped: Mapped
    ) -> None:
        browser, connected, _ = mapped
        host = connected.host
        host.complete("42")
        host.drain()
        accounts.remove(host.state)
        connect(host, connected.credly)

        page = " ".join(text_of(browser.get(BADGES)).split())
        assert f"42 , badge {host.row().id}" in page

    def test_retry_with_htmx_changes_the_row(self, mapped: Mapped) -> None:
        browser, connected, _ = mapped
        row = fail_one(connected)
        path = f"{BADGES}/{row.id}/retry?listed=1"
        answer = browser.post(path, page=BADGES, headers=HX)

        assert answer.status_code == 200
        assert answer.text.strip().startswith("<tr")
        assert "Queued" in answer.text
        assert "queued again" in answer.text

    def test_what_is_retried_stays_in_its_filter(self, mapped: Mapped) -> None:
        browser, connected, _ = mapped
        first = fail_one(connected)
        second = fail_one(connected, "43")
        failed = f"{BADGES}?status=failed"

        for row in (first, second):
            form = re.search(
                rf'action="([^"]*/{row.id}/retry[^"]*)"', browser.get(failed).text
            )
            assert form is not None
            answer = browser.post(html.unescape(form[1]), page=failed)
            failed = answer.location
            assert "status=failed" in failed

        page = browser.get(failed).text
        shown = re.findall(r'<tr id="credly-badge-(\d+)"', page)
        assert shown == [str(second.id), str(first.id)]
        assert page.count('data-state="none"') == 2
        assert 'data-state="failed"' not in page

        # Once it is left, the filter shows what it says.
        assert "credly-badge-" not in browser.get(f"{BADGES}?status=failed").text

        for odd in ("x", "-1", "9" * 30, "999"):
            assert browser.get(f"{BADGES}?retried={odd}").status_code == 200

    def test_a_row_that_is_gone(self, mapped: Mapped) -> None:
        browser, connected, _ = mapped
        fail_one(connected)

        for headers in (None, HX):
            path = f"{BADGES}/999/retry"
            answer = browser.post(path, page=BADGES, headers=headers)
            assert answer.status_code in (303, 200)
            assert "cannot be retried" in text_of(browser.get(BADGES))

    def test_retry_all_asks_first(self, mapped: Mapped) -> None:
        browser, connected, _ = mapped
        fail_one(connected, "1")
        fail_one(connected, "2")
        page = f"{BADGES}/retry"

        assert "Retry 2 badges" in text_of(browser.get(page))
        browser.post(page, page=page)
        assert "2 badges are queued again." in text_of(browser.get(BADGES))
        assert {row.state for row in connected.host.rows()} == {"none"}
        assert "There are no badges to retry." in text_of(browser.get(page))

    @pytest.mark.parametrize("way", ["mapping", "integration"])
    def test_what_cannot_be_retried_is_not_promised(
        self, mapped: Mapped, way: str
    ) -> None:
        browser, connected, mapping_id = mapped
        host = connected.host
        fail_one(connected)

        if way == "mapping":
            accounts.remove_mapping(host.state, mapping_id)
        else:
            accounts.remove(host.state)
            accounts.connect(
                host.state,
                organization_id=connected.credly.organization_id,
                client_id=connected.credly.client_id,
                client_secret=connected.credly.client_secret,
            )

        unmapped = "This course is no longer mapped. Map it again to retry."
        alone = f"{BADGES}/{host.row().id}"

        for path in (BADGES, alone):
            assert "Retry" not in text_of(browser.get(path))

        assert unmapped in text_of(browser.get(alone))
        assert "There are no badges to retry." in text_of(
            browser.get(f"{BADGES}/retry")
        )

        # The way out
        accounts.add_mapping(host.state, COURSES[0], connected.template_id)
        assert "Retry 1 badge" in text_of(browser.get(f"{BADGES}/retry"))
        assert "Retry all failed" in text_of(browser.get(BADGES))
        assert unmapped not in text_of(browser.get(alone))
        assert "/retry" in browser.get(alone).text

    def test_what_was_perhaps_issued_elsewhere_is_not_promised(
        self, mapped: Mapped
    ) -> None:
        browser, connected, _ = mapped
        row = fail_one(connected)
        row.outcome_unknown = True
        row.organization_id = "another"
        connected.host.db.session.commit()

        alone = text_of(browser.get(f"{BADGES}/{row.id}"))
        assert "Retry" not in text_of(browser.get(BADGES)) + alone
        assert "may have issued this badge in another organization (another)" in alone
        assert "There are no badges to retry." in text_of(
            browser.get(f"{BADGES}/retry")
        )

    def test_the_export_holds_what_the_filters_show(self, mapped: Mapped) -> None:
        browser, connected, _ = mapped
        host = connected.host
        host.complete(member=Member("1", "a@example.org", "=1+1", "@SUM(A1)"))
        host.drain()
        fail_one(connected, "2")
        # As a server would send it: the test client encodes text by itself.
        app = wsgiref.validate.validator(browser.client.application.wsgi_app)
        answer = Client(app).get(f"{BADGES}.csv?status=issued", buffered=True)
        header, row = read_csv(answer.text)

        assert answer.headers["Content-Type"].startswith("text/csv")
        assert "credly-badges.csv" in answer.headers["Content-Disposition"]
        assert row[1:5] == ["1", "a@example.org", "'=1+1", "'@SUM(A1)"]
        issued = next(each for each in connected.host.rows() if each.member_id == "1")
        assert row[header.index("Number")] == str(issued.id)
        assert row[header.index("Status")] == "Issued"
        assert row[header.index("Credly badge id")] == connected.credly.badges[0]["id"]
        assert len(read_csv(browser.get(f"{BADGES}.csv").text)) == 3

    def test_a_long_export_is_complete(self, mapped: Mapped) -> None:
        browser, connected, _ = mapped

        for number in range(1100):
            connected.host.complete(f"m{number:04}")

        rows = read_csv(browser.get(f"{BADGES}.csv").text)[1:]
        assert [row[1] for row in rows] == [
            f"m{number:04}" for number in reversed(range(1100))
        ]

    def test_few_mappings_are_loaded_however_many_there_are(
        self, browser: Browser, connected: Connected
    ) -> None:
        host, _, template_id = connected
        host.complete("42")
        row_id = host.row().id

        for number in range(MANY + 5):
            course = Course(id=f"other-{number}", title=f"Other {number}")
            accounts.add_mapping(host.state, course, template_id)

        host.db.session.remove()
        loaded: list[object] = []

        def note(target: object, _: object) -> None:
            loaded.append(target)

        event.listen(Mapping, "load", note)

        try:
            assert "Python 101" in browser.get(BADGES).text
            assert len(loaded) <= MANY + 1

            loaded.clear()
            poll = browser.get(f"{BADGES}/{row_id}/row", headers=HX)
            assert "Python 101" in poll.text
            assert loaded == []
        finally:
            event.remove(Mapping, "load", note)

    def test_without_a_connection_there_is_none(self, browser: Browser) -> None:
        assert browser.get(BADGES).status_code == 303
        assert browser.get(f"{BADGES}/retry").status_code == 303


ADMIN = {"email": "admin@example.org", "first_name": "Grace", "last_name": "Example"}


class TestATestBadge:
    @every_database
    def test_it_is_issued_for_real(self, make_connected: MakeConnected) -> None:
        host, credly, template_id = make_connected()
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        id_ = issuances.add_test(host.state.engine, "default", mapping.id, **ADMIN)
        host.drain()
        (badge,) = credly.badges

        assert (host.row().id, host.row().state) == (id_, "issued")
        assert badge["recipient_email"] == "admin@example.org"
        assert badge["badge_template"]["id"] == template_id
        assert issuances.add_test(host.state.engine, "default", 999, **ADMIN) is None

    def test_it_counts_for_no_member(self, mapped: Mapped) -> None:
        browser, connected, mapping_id = mapped
        host = connected.host
        heard: list[str] = []

        def hear(sender: object, member_id: str, **_: object) -> None:
            heard.append(member_id)

        with badge_issued.connected_to(hear), badge_failed.connected_to(hear):
            self.send(browser, mapping_id)
            connected.credly.fail("issue", status=422, times=2)
            self.send(browser, mapping_id, email="other@example.org")
            host.complete("1")
            host.drain(2)

        assert heard == ["1"]
        found = overview.read(host.db.session, "default")
        assert (found.issued, found.failed, found.pending) == (1, 0, 0)

    def test_the_admins_own_badge_is_still_issued(self, mapped: Mapped) -> None:
        """The admin may be a member too."""
        browser, connected, mapping_id = mapped
        connected.credly.posts_allowed = 9
        self.send(browser, mapping_id)
        self.send(browser, mapping_id)
        connected.host.complete(member=Member("7", **ADMIN))
        connected.host.drain()

        assert {row.state for row in connected.host.rows()} <= {"issued", "held"}
        assert len(connected.host.rows()) == 3

    def test_the_page(self, mapped: Mapped) -> None:
        browser, connected, mapping_id = mapped
        answer = self.send(browser, mapping_id)
        assert answer.status_code == 303
        connected.host.drain()
        text = text_of(browser.get(answer.location))

        assert "The test badge is queued." in text
        assert "Test" in text
        assert "admin@example.org" in text

    def test_a_second_one_to_the_same_address_says_why_it_was_not_issued(
        self, mapped: Mapped
    ) -> None:
        browser, connected, mapping_id = mapped
        self.send(browser, mapping_id)
        connected.host.drain()
        answer = self.send(browser, mapping_id)
        connected.host.drain()

        assert connected.host.rows()[-1].state == "held"
        assert "did not issue the test badge" in text_of(browser.get(answer.location))

    @pytest.mark.parametrize(
        ("field", "value", "said"),
        [
            ("email", "", "Enter an e-mail address, such as name@example.org."),
            ("email", "nobody", "such as name@example.org"),
            ("email", "a b@example.org", "such as name@example.org"),
            ("first_name", " ", "Enter a first name."),
            ("last_name", "", "Enter a last name."),
        ],
    )
    def test_a_wrong_value_is_named_and_nothing_is_lost(
        self, mapped: Mapped, field: str, value: str, said: str
    ) -> None:
        browser, connected, mapping_id = mapped
        answer = self.send(browser, mapping_id, **{field: value})
        kept = {name: given for name, given in ADMIN.items() if name != field}

        assert answer.status_code == 422
        assert said in text_of(answer)
        assert all(f'value="{given}"' in answer.text for given in kept.values())
        assert connected.host.rows() == []

    def test_an_old_page_keeps_what_was_typed(self, mapped: Mapped) -> None:
        browser, _, mapping_id = mapped
        path = f"/integrations/credly/mappings/{mapping_id}/test"
        answer = browser.client.post(path, data={**ADMIN, "csrf_token": "old"})

        assert answer.status_code == 422
        assert "has expired" in text_of(answer)
        assert 'value="admin@example.org"' in answer.text

    def test_a_mapping_that_is_gone(self, mapped: Mapped) -> None:
        browser, _, _ = mapped
        path = "/integrations/credly/mappings/999/test"
        assert browser.get(path).status_code == 303

    def send(self, browser: Browser, mapping_id: int, **changes: str) -> t.Any:
        path = f"/integrations/credly/mappings/{mapping_id}/test"
        return browser.post(path, page=path, **{**ADMIN, **changes})


class TestTheErrorLogsPage:
    def write(self, host: Host, error: str, details: str) -> None:
        from datetime import datetime
        from datetime import UTC

        with host.state.engine.begin() as connected:
            log.write(connected, "default", datetime.now(UTC), error, details)

    def test_a_failure_leads_to_its_badge(self, mapped: Mapped) -> None:
        browser, connected, _ = mapped
        row = fail_one(connected)
        text = browser.get(ERRORS).text

        assert f'href="{BADGES}/{row.id}"' in text
        assert "member-42@example.org" in browser.get(f"{BADGES}/{row.id}").text

    def test_repeats_are_folded(self, mapped: Mapped) -> None:
        browser, connected, _ = mapped

        for _ in range(3):
            self.write(connected.host, log.RATE_LIMIT, "Hit. Again.")

        self.write(connected.host, log.RATE_LIMIT, "Hit. Otherwise.")
        text = browser.get(ERRORS).text

        assert text.count("Hit. Again.") == 1
        assert "3 times, first" in text

    def test_filters(self, mapped: Mapped) -> None:
        browser, connected, _ = mapped
        self.write(connected.host, log.RATE_LIMIT, "Slow down, 100%.")
        self.write(connected.host, log.UNREACHABLE, "Nobody there.")

        def found(query: str) -> set[str]:
            text = browser.get(f"{ERRORS}?{query}").text
            return {each for each in ("Slow", "Nobody") if f"{each} " in text}

        assert found("") == {"Slow", "Nobody"}
        assert found("type=API+Rate+Limit") == {"Slow"}
        assert found("type=unknown") == {"Slow", "Nobody"}
        assert found("q=nobody") == {"Nobody"}
        assert found("q=100%25") == {"Slow"}
        assert "No errors match these filters." in text_of(
            browser.get(f"{ERRORS}?q=neither")
        )

    def test_the_window_says_so_where_there_are_none(self, mapped: Mapped) -> None:
        said = text_of(mapped[0].get("/integrations/credly"))

        assert "No errors. Connection and badge issuance problems appear here." in said

    def test_an_entry_names_its_badge_by_number(self, mapped: Mapped) -> None:
        browser, connected, _ = mapped
        row = fail_one(connected)
        page = browser.get(ERRORS)
        _, entry = read_csv(browser.get(f"{ERRORS}.csv").text)

        assert f"Badge {row.id}" in text_of(page)
        assert f'href="{BADGES}/{row.id}"' in page.text
        assert entry[3] == str(row.id)

    def test_the_export(self, mapped: Mapped) -> None:
        browser, connected, _ = mapped
        self.write(connected.host, log.RATE_LIMIT, "=cmd|' /C calc'!A0")
        self.write(connected.host, log.UNREACHABLE, "Nobody there.")
        header, row = read_csv(browser.get(f"{ERRORS}.csv?type=API+Rate+Limit").text)

        assert header == ["Timestamp", "Error", "Details", "Badge number"]
        assert row[1:] == ["API Rate Limit", "'=cmd|' /C calc'!A0", ""]


def re_find(pattern: str, text: str) -> list[str]:
    import re

    return re.findall(pattern, text)
