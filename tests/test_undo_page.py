"""The pages on which an admin takes many badges back."""

from __future__ import annotations

import collections.abc as cabc
import csv
import functools
import io
import re
import typing as t

import pytest
import sqlalchemy as sa
from conftest import connect
from conftest import MakeConnected
from conftest import MakeHost
from test_undo import Many
from werkzeug.test import TestResponse

from flask_credly import jobs
from flask_credly.models import Batch
from flask_credly.models import Issuance
from flask_credly.testing import CredlySimulator
from tests.support.pages import Browser
from tests.support.pages import text_of

WINDOW = "/integrations/credly"
UNDO = f"{WINDOW}/undo"
GIVEN = {
    "reason": "They were issued by mistake.",
    "tell_pending": "no",
    "tell_accepted": "yes",
}
HX = {"HX-Request": "true"}


class Admin(Many):
    """The same, with an admin at the pages."""

    @functools.cached_property
    def browser(self) -> Browser:
        return Browser(self.host.app)

    def look(self, query: str) -> TestResponse:
        self.host.db.session.remove()
        return self.browser.get(f"{UNDO}?{query}")

    def send(self, query: str, **fields: str) -> TestResponse:
        """Fill in the form that the page shows."""
        self.host.db.session.remove()
        browser = self.browser
        page = browser.get(f"{UNDO}?{query}").text
        hidden = re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page)
        data = {**dict(hidden), **GIVEN, **fields}
        return browser.client.post(f"{UNDO}?{query}", data=data)

    def undos(self) -> list[Batch]:
        self.host.db.session.rollback()
        query = sa.select(Batch).where(Batch.verb == "undo").order_by(Batch.id)
        found = list(self.host.db.session.scalars(query))
        self.host.db.session.expunge_all()
        return found


@pytest.fixture
def admin(make_host: MakeHost, credly: CredlySimulator) -> cabc.Iterator[Admin]:
    past: list[t.Any] = []
    host = make_host(past_completions=lambda course, since: list(past))

    with host.app.app_context():
        connect(host, credly)
        yield Admin(host, credly, past)


def facts(page: TestResponse) -> dict[str, str]:
    found = re.findall(r"<dt>(.*?)</dt>\s*<dd>(.*?)</dd>", page.text, re.DOTALL)
    return {name: re.sub(r"<[^>]+>", "", value).strip() for name, value in found}


def test_a_backfill_is_taken_back(admin: Admin) -> None:
    batch = admin.issue(4)
    admin.accept("1")
    admin.host.db.session.remove()
    run = admin.browser.get(f"{WINDOW}/backfills/{batch}")
    assert f"{UNDO}?batch={batch}" in run.text
    page = admin.look(f"batch={batch}")
    assert page.status_code == 200
    assert facts(page) == {
        "Queued": "0",
        "Sending": "0",
        "Not accepted": "3 – will be revoked",
        "Accepted": "1 – will be revoked",
    }
    assert "checked" not in page.text
    sent = admin.send(f"batch={batch}", number="4")
    assert sent.status_code == 303, text_of(sent)
    (undo,) = admin.undos()
    assert sent.status_code == 303
    assert sent.location.endswith(f"{UNDO}/{undo.id}")
    assert (undo.tell_pending, undo.tell_accepted) == (False, True)
    assert (undo.reason, undo.number) == (GIVEN["reason"], 4)
    window = text_of(admin.browser.get(WINDOW))
    assert "Revoking 4 badges" in window
    shown = admin.browser.get(f"{UNDO}/{undo.id}")
    assert "Finding badges to revoke" in shown.text and "hx-get" in shown.text
    admin.finish(undo.id)
    admin.host.db.session.remove()
    shown = admin.browser.get(f"{UNDO}/{undo.id}")
    assert "Finished." in shown.text and 'hx-trigger="every 2s"' not in shown.text
    assert facts(shown)["Revoked"] == "4"
    assert "Earlier bulk revocations" in admin.look(f"batch={batch}").text
    run = admin.browser.get(f"{WINDOW}/backfills/{batch}")
    assert "Finished: 4 issued, 0 failed." in text_of(run)
    assert "of 4 done" not in text_of(admin.browser.get(WINDOW))


@pytest.mark.parametrize("number", ["", "3", "five", "4444444444444444444444"])
def test_a_wrong_number_does_nothing_and_loses_nothing(
    admin: Admin, number: str
) -> None:
    batch = admin.issue(4)
    sent = admin.send(f"batch={batch}", number=number)
    assert sent.status_code == 422
    assert "Type the number of badges" in sent.text
    assert GIVEN["reason"] in sent.text
    assert sent.text.count("checked") == 2
    assert 'aria-describedby="credly-number-error' in sent.text
    assert admin.undos() == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"reason": "No"}, "Enter a reason of at least 3 characters."),
        ({"reason": "x" * 501}, "Shorten the reason to 500 characters."),
        ({"reason": "Ask ada@example.org"}, "Remove the e-mail address"),
        (
            {"tell_pending": ""},
            "Choose whether Credly notifies members who have not accepted the badge.",
        ),
        (
            {"tell_accepted": "perhaps"},
            "Choose whether Credly notifies members who have accepted the badge.",
        ),
    ],
)
def test_what_cannot_be_sent(admin: Admin, fields: dict[str, str], said: str) -> None:
    batch = admin.issue(1)
    sent = admin.send(f"batch={batch}", number="1", **fields)
    assert (sent.status_code, said in text_of(sent)) == (422, True)
    assert admin.undos() == []


def test_the_number_as_the_page_writes_it(admin: Admin) -> None:
    batch = admin.issue(2)
    assert admin.send(f"batch={batch}", number=" 2 ").status_code == 303


def test_what_the_badges_page_shows(admin: Admin) -> None:
    admin.issue(5)
    admin.accept("2", "3")
    admin.host.db.session.remove()
    everything = admin.browser.get(f"{WINDOW}/badges").text
    assert "Revoke these" not in everything
    query = "became=accepted&course=course%3Apy-101"
    page = admin.browser.get(f"{WINDOW}/badges?{query}").text
    assert "Revoke these" in page
    shown = facts(admin.look(query))
    assert shown["At Credly"] == "Accepted"
    assert shown["Course or learning path"] == "Python 101"
    assert shown["Accepted"] == "2 – will be revoked"
    sent = admin.send(query, number="2")
    assert sent.status_code == 303, text_of(sent)
    (undo,) = admin.undos()
    assert admin.finish(undo.id) == {"revoked": 2}


def test_what_came_in_since_is_not_caught_up(admin: Admin) -> None:
    admin.issue(2)
    admin.host.db.session.remove()
    browser = admin.browser
    query = "course=course%3Apy-101"
    page = browser.get(f"{UNDO}?{query}").text
    hidden = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page))
    admin.host.complete("late")
    admin.host.drain()
    data = {**hidden, **GIVEN, "number": "2"}
    assert browser.client.post(f"{UNDO}?{query}", data=data).status_code == 303
    (undo,) = admin.undos()
    assert admin.finish(undo.id) == {"revoked": 2}


def test_more_than_the_page_said(admin: Admin) -> None:
    admin.issue(3)
    query = "course=course%3Apy-101"
    sent = admin.send(query, number="1", shown="1")
    assert sent.status_code == 422
    assert "More badges match than this page showed." in sent.text
    assert admin.undos() == []


def test_a_form_that_lacks_fields(admin: Admin) -> None:
    batch = admin.issue(1)
    sent = admin.browser.post(f"{UNDO}?batch={batch}")
    assert sent.status_code == 422
    sent = admin.browser.post(f"{UNDO}?batch={batch}", **GIVEN, number="1", shown="1")
    assert sent.status_code == 303


def test_between_two_times(admin: Admin) -> None:
    admin.issue(3)
    query = "course=course%3Apy-101&since=2026-01-01T00:00"
    assert facts(admin.look(query))["Not accepted"] == "3 – will be revoked"
    query += "&until=2026-01-02T00:00"
    assert "There are no badges to revoke." in admin.look(query).text
    wrong = admin.look("course=course%3Apy-101&since=yesterday")
    assert wrong.status_code == 422
    assert "Enter a date and time" in wrong.text and "Planned changes" not in wrong.text
    assert admin.look("since=0001-01-01T00:00%2B14:00").status_code == 422


def test_never_all_there_are(admin: Admin) -> None:
    admin.issue(1)
    assert admin.look("").location.endswith("/badges")
    browser = admin.browser
    sent = browser.post(UNDO, page=WINDOW, **GIVEN, number="1", shown="1")
    assert sent.status_code == 303
    assert admin.undos() == []


def test_an_undo_or_an_unknown_backfill_cannot_be_undone(admin: Admin) -> None:
    batch = admin.issue(1)
    admin.send(f"batch={batch}", number="1")
    (undo,) = admin.undos()

    for id_ in (undo.id, 999, "x"):
        assert admin.look(f"batch={id_}").status_code == 303

    for path in (f"{WINDOW}/backfills/{undo.id}", f"{UNDO}/{batch}", f"{UNDO}/999"):
        assert admin.browser.get(path).location.endswith("/credly")


def test_it_is_stopped(admin: Admin) -> None:
    batch = admin.issue(3)
    admin.send(f"batch={batch}", number="3")
    (undo,) = admin.undos()
    run_id = undo.id
    jobs.undo()
    admin.host.db.session.remove()
    shown = admin.browser.get(f"{UNDO}/{run_id}", headers=HX)
    assert "<html" not in shown.text and "0 of 3 done" in text_of(shown)
    # The list below goes with it, as it was filtered.
    assert shown.text.count("Being revoked") == 3
    assert 'id="credly-results" hx-swap-oob' in shown.text
    shown = admin.browser.get(f"{UNDO}/{run_id}?outcome=revoked", headers=HX)
    assert "Being revoked" not in shown.text
    assert f"{UNDO}/{run_id}?said=0&amp;outcome=revoked" in shown.text
    stopped = admin.browser.post(f"{UNDO}/{run_id}/stop", page=f"{UNDO}/{run_id}")
    assert stopped.status_code == 303, text_of(stopped)
    assert stopped.location.endswith(f"{UNDO}/{run_id}"), stopped.location
    assert admin.finish(run_id) == {"stopped": 3}
    admin.host.db.session.remove()
    assert "Stopped." in admin.browser.get(f"{UNDO}/{run_id}").text
    admin.browser.post(f"{UNDO}/{run_id}/stop", page=WINDOW)  # does no harm
    assert admin.browser.post(f"{UNDO}/999/stop", page=WINDOW).status_code == 303


def test_what_came_of_each(admin: Admin) -> None:
    batch = admin.issue(3)
    session = admin.host.db.session
    first = admin.host.rows()[0]
    badge_id = first.badge_id
    session.execute(
        sa.update(Issuance)
        .where(Issuance.id == first.id)
        .values(badge_state="rejected", first_name="=cmd()", last_name="")
    )
    session.commit()
    admin.credly.reject(str(badge_id))
    admin.credly.posts_allowed = 3
    admin.credly.fail(
        "revoke",
        times=2,
        status=422,
        body={"data": {"message": "This badge is locked."}, "metadata": None},
    )
    admin.host.app.config["CREDLY_CONCURRENCY"] = 1
    admin.send(f"batch={batch}", number="2")
    (undo,) = admin.undos()
    run_id = undo.id
    count = admin.finish(run_id)
    admin.host.db.session.remove()
    browser = admin.browser
    page = browser.get(f"{UNDO}/{run_id}")
    assert "Declined by the member" in page.text

    if count.get("failed"):
        failed = browser.get(f"{UNDO}/{run_id}?outcome=failed")
        assert "This badge is locked." in failed.text
        assert "Declined by the member" not in failed.text

    left = browser.get(f"{UNDO}/{run_id}?outcome=left").text
    assert left.count("<tr>") == 2
    assert "No badges match" in browser.get(f"{UNDO}/{run_id}?outcome=open").text
    file = browser.get(f"{UNDO}/{run_id}.csv")
    rows = list(csv.reader(io.StringIO(file.text.removeprefix("\ufeff"))))
    assert len(rows) == 4
    assert rows[-1][3] == "'=cmd()" and rows[-1][9] == "Declined by the member"
    assert rows[0][5:8] == ["Kind", "Course or learning path", "Course id"]
    assert rows[1][5:8] == ["Course", "Python 101", "py-101"]
    file = browser.get(f"{UNDO}/{run_id}.csv?outcome=left")
    assert file.text.count("\n") == 2
    assert browser.get(f"{UNDO}/999.csv").status_code == 303


def test_an_expired_form_keeps_what_was_typed(admin: Admin) -> None:
    batch = admin.issue(1)
    sent = admin.send(f"batch={batch}", number="1", csrf_token="old")
    assert GIVEN["reason"] in sent.text and "has expired" in text_of(sent)
    assert admin.undos() == []


def test_only_for_who_may_revoke(make_connected: MakeConnected) -> None:
    past: list[t.Any] = []
    allowed = True
    host, credly, _ = make_connected(
        past_completions=lambda course, since: list(past), may_revoke=lambda: allowed
    )
    admin = Admin(host, credly, past)
    batch = admin.issue(2)
    admin.send(f"batch={batch}", number="2")
    (undo,) = admin.undos()
    run_id = undo.id
    allowed = False
    host.db.session.remove()
    browser = admin.browser
    assert browser.get(f"{UNDO}?batch={batch}").status_code == 403
    sent = browser.post(f"{UNDO}?batch={batch}", number="2", **GIVEN)
    assert sent.status_code == 403
    assert browser.post(f"{UNDO}/{run_id}/stop").status_code == 403
    shown = browser.get(f"{UNDO}/{run_id}")
    assert shown.status_code == 200 and "credly-stop" not in shown.text
    assert "credly-undo" not in browser.get(f"{WINDOW}/backfills/{batch}").text
    listed = browser.get(f"{WINDOW}/badges?status=issued").text
    assert "Revoke these" not in listed


def test_many_rows_take_few_statements(admin: Admin) -> None:
    batch = admin.issue(30)
    admin.send(f"batch={batch}", number="30")
    (undo,) = admin.undos()
    run_id = undo.id
    admin.finish(run_id)
    admin.host.db.session.remove()
    statements: list[str] = []

    def count(conn: t.Any, cursor: t.Any, statement: str, *_: t.Any) -> None:
        statements.append(statement)

    sa.event.listen(admin.host.db.engine, "before_cursor_execute", count)

    try:
        page = admin.browser.get(f"{UNDO}/{run_id}")
    finally:
        sa.event.remove(admin.host.db.engine, "before_cursor_execute", count)

    assert page.text.count("/credly/badges/") >= 30
    assert len(statements) < 25
