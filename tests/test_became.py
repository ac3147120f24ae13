"""What became of a badge, as an admin and a developer see it."""

from __future__ import annotations

import datetime as dt
import json
import re

import pytest
import sqlalchemy as sa
from conftest import Connected
from conftest import every_database
from conftest import Host

from flask_credly import jobs
from flask_credly.issuing.poll import poll_now
from flask_credly.ledger import communities
from flask_credly.ledger import gates
from flask_credly.ledger import overview
from flask_credly.models import Issuance
from tests.support.pages import BADGES
from tests.support.pages import browser as browser
from tests.support.pages import HX
from tests.support.pages import Mapped
from tests.support.pages import mapped as mapped
from tests.support.pages import read_csv
from tests.support.pages import text_of
from tests.support.pages import WINDOW

WORDS = {
    "pending": "Waiting to be accepted",
    "accepted": "Accepted",
    "rejected": "Declined",
    "revoked": "Revoked",
    "expired": "Expired",
}


def live(connected: Connected) -> None:
    """Let there be a badge of each kind: members are called after it."""
    host, credly, _ = connected

    for name in WORDS:
        host.complete(name)

    host.drain()
    ids = {row.member_id: row.badge_id for row in host.rows()}
    assert all(ids.values())

    for name, act in (
        ("accepted", credly.accept),
        ("expired", credly.accept),
        ("rejected", credly.reject),
        ("revoked", credly.revoke_badge),
    ):
        act(str(ids[name]))

    poll_now(host.state)
    host.db.session.execute(
        sa.update(Issuance)
        .where(Issuance.member_id == "expired")
        .values(expires_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    )
    host.db.session.commit()


def members(html: str) -> set[str]:
    return set(re.findall(r"member-(\w+)@example\.org", html))


def test_each_is_shown_and_filtered(mapped: Mapped) -> None:
    visitor, connected, _ = mapped
    live(connected)
    response = visitor.get(BADGES)
    assert members(response.text) == set(WORDS)
    text = " ".join(text_of(response).split())

    for word in ("Waiting to be accepted", "Declined", "Expired", "Revoked"):
        assert word in text

    for row in connected.host.rows():
        alone = " ".join(text_of(visitor.get(f"{BADGES}/{row.id}")).split())
        since = "" if row.member_id == "pending" else " since"
        assert f"At Credly {WORDS[row.member_id]}{since}" in alone
        assert alone.count("Checked ") == 1

    for name in WORDS:
        html = visitor.get(f"{BADGES}?became={name}").text
        assert members(html) == {name}
        assert "Clear filters" in html

    assert members(visitor.get(f"{BADGES}?status=revoked").text) == {"revoked"}
    assert members(visitor.get(f"{BADGES}?became=other").text) == set(WORDS)


def test_the_export_says_it(mapped: Mapped) -> None:
    visitor, connected, _ = mapped
    live(connected)
    head, *rows = read_csv(visitor.get(f"{BADGES}.csv").text)
    column = head.index("At Credly")
    assert {row[1]: row[column] for row in rows} == WORDS
    row = next(row for row in rows if row[1] == "accepted")
    assert dt.datetime.fromisoformat(row[head.index("Since")])
    assert dt.datetime.fromisoformat(row[head.index("Checked")])


def test_the_card_counts(mapped: Mapped) -> None:
    visitor, connected, _ = mapped
    live(connected)
    response = visitor.get("/integrations/")
    text = " ".join(text_of(response).split())
    assert "4 issued, 1 not yet accepted" in text
    assert "became=pending" in response.text


def test_what_has_expired_is_not_counted_as_not_yet_accepted(mapped: Mapped) -> None:
    visitor, connected, _ = mapped
    host = connected.host
    live(connected)
    host.db.session.execute(
        sa.update(Issuance)
        .where(Issuance.member_id == "pending")
        .values(expires_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    )
    host.db.session.commit()
    assert members(visitor.get(f"{BADGES}?became=pending").text) == set()

    for page in ("/integrations/", WINDOW):
        assert "not yet accepted" not in text_of(visitor.get(page))


@every_database
def test_when_the_last_was_issued_is_the_same_in_one_and_in_all_communities(
    connected: Connected,
) -> None:
    host, _, _ = connected
    host.complete("1")
    host.complete("2")
    host.drain()
    late = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(days=1)
    # As after a late retry.
    host.db.session.rollback()
    these = sa.update(Issuance).where(Issuance.member_id == "1")
    host.db.session.execute(these.values(settled_at=late))
    host.db.session.commit()
    config = host.app.config

    with sa.orm.Session(host.state.engine) as session:
        one = overview.read(session, "default").last_issued_at
        (all_,) = communities.page(session, config=config).rows
        assert one == all_.last_issued_at == late


def test_status_counts(connected: Connected) -> None:
    live(connected)
    run = connected.host.app.test_cli_runner().invoke
    found = json.loads(run(args=["credly", "status", "--json"]).output)
    assert (found["accepted"], found["unaccepted"], found["revoked"]) == (2, 1, 1)
    assert found["issued"] == 4


class TestCheckNow:
    @pytest.mark.parametrize("headers", [{}, HX])
    def test_it_is_left_to_a_worker(
        self, mapped: Mapped, headers: dict[str, str]
    ) -> None:
        visitor, connected, _ = mapped
        host, credly, _ = connected
        host.complete()
        host.drain()
        poll_now(host.state)
        credly.accept(credly.badges[0]["id"])
        before = len(credly.received)
        number = host.row().id
        alone = f"{BADGES}/{number}"
        response = visitor.post(f"{alone}/check", page=alone, headers=headers)
        assert (response.location or response.headers["HX-Redirect"]) == alone
        html = visitor.get(alone).text
        assert "Checking the badge at Credly." in html
        assert "Checking at Credly…" in html
        assert "every 3s" in html and "Check now" not in html
        assert len(credly.received) == before
        jobs.poll()
        shown = visitor.get(alone, headers=HX).text
        assert "Accepted" in shown and "every 3s" not in shown
        assert "Check now" in shown and "<h1" not in shown

    def test_it_is_not_asked_for_again_at_once(self, mapped: Mapped) -> None:
        visitor, connected, _ = mapped
        host = connected.host
        host.complete()
        host.drain()
        number = host.row().id
        visitor.post(f"{BADGES}/{number}/check")
        jobs.poll()
        visitor.post(f"{BADGES}/{number}/check")
        html = visitor.get(f"{BADGES}/{number}").text
        assert "This badge was checked a moment ago." in html
        assert "Check now" in html

    def test_it_is_not_found(self, mapped: Mapped) -> None:
        visitor, connected, _ = mapped
        host = connected.host
        host.complete()
        host.drain()
        row = host.row()
        row.missing_at = row.checked_at
        host.db.session.commit()

        for url in (BADGES, f"{BADGES}?became=missing"):
            assert 'data-became="missing"' in visitor.get(url).text

        html = visitor.get(f"{BADGES}/{row.id}").text
        assert "Not found at Credly" in html

        assert (
            'data-became="missing"' not in visitor.get(f"{BADGES}?became=pending").text
        )

    def test_there_is_nothing_to_ask_for(self, mapped: Mapped) -> None:
        visitor, connected, _ = mapped
        connected.host.complete()
        number = connected.host.row().id
        visitor.post(f"{BADGES}/{number}/check")
        html = visitor.get(f"{BADGES}/{number}").text
        assert "Credly has no badge to check." in html
        assert "Check now" not in html


def test_who_has_not_accepted(connected: Connected) -> None:
    live(connected)
    host = connected.host
    (one,) = host.credly.unaccepted()
    row = next(each for each in host.rows() if each.member_id == "pending")
    assert (one.issuance_id, one.member_id, one.badge_id) == (
        row.id,
        "pending",
        row.badge_id,
    )
    accept = f"https://www.credly.com/badges/{row.badge_id}/accept"
    assert (one.issued_at, one.accept_url) == (row.settled_at, accept)
    assert list(host.credly.unaccepted(dt.timedelta(days=1))) == []
    assert list(host.credly.unaccepted(older_than=dt.timedelta(), tenant="x")) == []
    host.credly.erase_member("pending")
    host.db.session.commit()
    assert list(host.credly.unaccepted()) == []


class TestCommand:
    def run(self, host: Host) -> str:
        return host.app.test_cli_runner().invoke(args=["credly", "poll"]).output

    def test_it_asks_at_once(self, connected: Connected) -> None:
        host, credly, _ = connected
        host.complete()
        host.drain()
        credly.accept(credly.badges[0]["id"])
        said = "1 issued, 1 accepted, 0 not yet accepted, 0 revoked."
        assert said in self.run(host)
        assert said in self.run(host)

    def test_it_says_where_it_cannot(self, connected: Connected) -> None:
        host = connected.host
        gates.switch(host.state.engine, "default", on=False)
        assert "paused" in self.run(host)

    def test_there_is_no_connection(self, host: Host) -> None:
        assert "Credly is not connected." in self.run(host)
