"""One badge's own page."""

from __future__ import annotations

import datetime as dt
import re
import typing as t

import pytest
import sqlalchemy as sa
from conftest import connect
from conftest import Connected
from conftest import every_database
from conftest import Host
from conftest import MakeHost

from flask_credly import accounts
from flask_credly import Member
from flask_credly.admin.badge import ACTIONS
from flask_credly.admin.badge import ANSWERS
from flask_credly.admin.badge import AT_MOST
from flask_credly.issuing.poll import poll_now
from flask_credly.ledger import decide
from flask_credly.models import Attempt
from flask_credly.models import AuditEntry
from flask_credly.models import Issuance
from flask_credly.testing import CredlySimulator
from tests.support.pages import BADGES
from tests.support.pages import Browser
from tests.support.pages import browser as browser
from tests.support.pages import fail_one
from tests.support.pages import HX
from tests.support.pages import Mapped
from tests.support.pages import mapped as mapped
from tests.support.pages import text_of


def words(visitor: Browser, row_id: int, **given: t.Any) -> str:
    return " ".join(text_of(visitor.get(f"{BADGES}/{row_id}", **given)).split())


def copy_of(row: Issuance, **changes: t.Any) -> dict[str, t.Any]:
    columns = {column.key: getattr(row, column.key) for column in row.__table__.columns}
    return {**columns, "badge_id": None, **changes}


def test_it_says_all_that_is_known(mapped: Mapped) -> None:
    visitor, connected, _ = mapped
    host, credly, _ = connected
    at = dt.datetime(2026, 2, 3, 4, 5, tzinfo=dt.UTC)
    host.complete(
        member=Member("42", "ada@example.org", "Ada", "Lovelace"), completed_at=at
    )
    host.drain()
    poll_now(host.state)
    row = host.row()
    page = visitor.get(f"{BADGES}/{row.id}")
    said = " ".join(text_of(page).split())

    for each in (
        f"Badge {row.id}",
        "Status Issued",
        "At Credly Waiting to be accepted",
        "Checked",
        "Ada Lovelace ada@example.org Member id: 42",
        "Course Python 101",
        f"Badge Python Badge {row.badge_id}",
        "Completed 3 Feb 2026, 04:05 UTC",
        "Issue the badge Credly issued the badge.",
        "No activity for this badge.",
    ):
        assert each in said

    assert f'/badges/{row.badge_id}" target="_blank"' in page.text
    assert "All badges of this member" not in said
    assert "Retry" not in said and "Check now" in said


@pytest.mark.parametrize("has_hook", [True, False])
def test_where_a_profile_is_completed_is_said(
    make_host: MakeHost, credly: CredlySimulator, has_hook: bool
) -> None:
    host = make_host(member=(lambda member_id: None) if has_hook else None)

    with host.app.app_context():
        connect(host, credly)
        host.complete(member=Member("42", "dan@example.org", "Dan", ""))
        host.drain()
        row_id = host.row().id

    said = words(Browser(host.app), row_id)
    assert "The member's profile has no last name." in said
    there = "Complete the member's profile on this site, not in Credly. Then retry."
    assert (there in said) == has_hook
    assert ("add the @credly.member hook" in said) != has_hook


def test_the_link_to_accept_is_there_while_the_badge_waits(mapped: Mapped) -> None:
    visitor, connected, _ = mapped
    host = connected.host
    host.complete()
    host.drain()
    link = "https://www.credly.com/go/abc"

    for state, shown in (("pending", True), ("accepted", False)):
        host.db.session.execute(
            sa.update(Issuance).values(
                badge_state=state,
                accept_url=link,
                page_url="https://www.credly.com/badges/abc",
                expires_at=dt.datetime(2099, 1, 1, tzinfo=dt.UTC),
            )
        )
        host.db.session.commit()
        html = visitor.get(f"{BADGES}/{host.row().id}").text
        assert (f'href="{link}"' in html) == shown
        assert 'href="https://www.credly.com/badges/abc"' in html
        assert "Expires" in html


def test_each_request_is_told_in_words(mapped: Mapped) -> None:
    visitor, connected, _ = mapped
    host, credly, _ = connected
    row = fail_one(connected)
    row_id = row.id
    credly.fail("issue", status=500, body="no JSON")
    visitor.post(f"{BADGES}/{row_id}/retry")
    host.drain()
    host.db.session.execute(
        sa.insert(Attempt).values(
            tenant="default",
            issuance_id=row_id,
            lease="x",
            started_at=dt.datetime.now(dt.UTC),
        )
    )
    host.db.session.commit()
    said = words(visitor, row_id)
    assert said.count("Credly rejected the request.") == 2
    assert said.count("(HTTP 422)") == 2
    assert "No response yet." in said
    assert "No usable response. Credly may have processed the request." in said


def test_every_answer_and_action_has_words() -> None:
    asked = {rule.action for rule in decide.RULES} - {"check"}
    answers = {rule.answer for rule in decide.RULES if rule.phase == rule.action}
    assert answers <= set(ANSWERS)
    assert asked <= set(ACTIONS)


@every_database
def test_all_cycles_of_the_member_and_no_others(
    host: Host, credly: CredlySimulator
) -> None:
    with host.app.app_context():
        connect(host, credly)
        host.complete("42")
        host.complete("43")
        host.drain()
        first, other = host.rows()
        same = {"state": "failed", "recorded_at": first.recorded_at}
        host.db.session.execute(
            sa.insert(Issuance),
            [
                copy_of(first, id=101, cycle=2, **same),
                copy_of(first, id=102, cycle=3, **same),
                copy_of(first, id=103, cycle=1, course_id="sql", **same),
                copy_of(first, id=104, cycle=1, kind="learning_path", **same),
                copy_of(first, id=105, cycle=4, tenant="beta", **same),
                copy_of(first, id=106, cycle=5, organization_id="other", **same),
            ],
        )
        host.db.session.commit()
        first_id = first.id
        host.db.session.remove()

    visitor = Browser(host.app)

    for row_id in (first_id, 101, 102):
        html = visitor.get(f"{BADGES}/{row_id}").text
        found = {n for n in range(1, 120) if f'id="credly-cycle-{n}"' in html}
        assert found | {row_id} == {first_id, 101, 102}
        assert f"<strong>{row_id}</strong>" in html

    for row_id in (103, 104, 106):
        assert "credly-cycle-" not in visitor.get(f"{BADGES}/{row_id}").text

    # Another organization's: nothing can be done about it from here.
    html = visitor.get(f"{BADGES}/106").text
    assert "other (not the connected one)" in html
    assert "<form" not in html


def test_what_was_done_by_whom(make_host: t.Any, credly: CredlySimulator) -> None:
    host = make_host(actor=lambda: "Grace Example")

    with host.app.app_context():
        connected = connect(host, credly)
        rows = [fail_one(connected, str(number)).id for number in range(12)]
        host.db.session.remove()

    visitor = Browser(host.app)
    visitor.post(f"{BADGES}/{rows[0]}/retry")
    said = words(visitor, rows[0])
    assert f"Retry badge {rows[0]} Grace Example Done" in said
    assert "No activity for" in words(visitor, rows[9])

    # The trail leads to it.
    trail = visitor.get("/integrations/credly/activity").text
    assert f'href="{BADGES}/{rows[0]}">{rows[0]}</a>' in trail
    listed = visitor.get(BADGES).text
    assert all(f'href="{BADGES}/{row_id}"' in listed for row_id in rows)


def test_a_number_in_the_trail_that_is_no_badges_is_no_link(mapped: Mapped) -> None:
    visitor, connected, _ = mapped
    fail_one(connected)
    visitor.post(f"{BADGES}/retry")
    trail = visitor.get("/integrations/credly/activity").text
    assert "Retry all failed badges: <bdi>1</bdi>" in trail


def test_without_a_connection_the_trail_leads_nowhere(mapped: Mapped) -> None:
    visitor, connected, _ = mapped
    row_id = fail_one(connected).id
    visitor.post(f"{BADGES}/{row_id}/retry")
    accounts.remove(connected.host.state)
    trail = visitor.get("/integrations/credly/activity").text
    assert f"Retry badge <bdi>{row_id}</bdi>" in trail
    assert visitor.get(f"{BADGES}/{row_id}").location == "/integrations/credly"


def test_only_the_newest_of_very_many_are_shown(mapped: Mapped) -> None:
    visitor, connected, _ = mapped
    host = connected.host
    row_id = fail_one(connected).id
    now = dt.datetime.now(dt.UTC)
    host.db.session.execute(
        sa.insert(Attempt),
        [
            {
                "tenant": "default",
                "issuance_id": row_id,
                "lease": "x",
                "started_at": now,
                "answer": "rate limited",
            }
            for _ in range(AT_MOST)
        ],
    )
    host.db.session.execute(
        sa.insert(AuditEntry),
        [
            {
                "tenant": "default",
                "at": now,
                "actor": "Ada",
                "action": "check",
                "target": str(row_id),
                "outcome": "ok",
            }
            for _ in range(AT_MOST + 1)
        ],
    )
    host.db.session.commit()
    said = words(visitor, row_id)
    assert said.count("Credly's API rate limit was reached.") == AT_MOST
    assert said.count("Check badge") == AT_MOST
    assert said.count(f"Only the newest {AT_MOST} are shown.") == 2


@pytest.mark.parametrize("headers", [{}, HX])
def test_an_unknown_one(mapped: Mapped, headers: dict[str, str]) -> None:
    visitor, _, _ = mapped
    answer = visitor.get(f"{BADGES}/999", headers=headers)
    assert (answer.location or answer.headers["HX-Redirect"]) == BADGES
    assert "This badge does not exist." in visitor.get(BADGES).text


def test_an_erased_member_has_no_name_and_no_buttons(mapped: Mapped) -> None:
    visitor, connected, _ = mapped
    host = connected.host
    row_id = fail_one(connected).id
    host.credly.erase_member("42")
    host.db.session.commit()
    html = visitor.get(f"{BADGES}/{row_id}").text
    assert "Erased member" in html and "<form" not in html
    assert "Ada" not in html and "member-42" not in html


def test_its_buttons_lead_back_to_it(mapped: Mapped) -> None:
    visitor, connected, _ = mapped
    alone = f"{BADGES}/{fail_one(connected).id}"
    assert visitor.post(f"{alone}/retry", page=alone).location == alone
    assert "The badge is queued again." in visitor.get(alone).text
    outdated = visitor.post(f"{alone}/retry", csrf_token="old")
    assert outdated.location == alone
    assert "has expired" in visitor.get(alone).text


def test_it_follows_what_is_under_way(mapped: Mapped) -> None:
    visitor, connected, _ = mapped
    host = connected.host
    host.complete()
    alone = f"{BADGES}/{host.row().id}"
    assert "every 3s" in visitor.get(alone).text
    host.drain()
    html = visitor.get(alone, headers=HX).text
    assert "every 3s" not in html and 'hx-swap-oob="innerHTML"' in html
    assert "Issued: Waiting to be accepted" in text_of(visitor.get(alone, headers=HX))


def test_one_that_is_revoked_is_said_to_be_once(mapped: Mapped) -> None:
    visitor, connected, _ = mapped
    host = connected.host
    host.complete()
    host.drain()
    alone = f"{BADGES}/{host.row().id}"
    visitor.post(f"{alone}/revoke", reason="Not earned.", tell="no")
    host.drain()
    part = visitor.get(alone, headers=HX).text
    (said,) = re.findall(r'role="status"[^>]*><p>(.*?)</p>', part)
    assert said == "Revoked"


def test_reading_it_asks_nothing_of_credly(connected: Connected) -> None:
    host, credly, _ = connected
    host.complete()
    host.drain()
    before = len(credly.received)
    Browser(host.app).get(f"{BADGES}/{host.row().id}")
    assert len(credly.received) == before
