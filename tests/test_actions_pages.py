"""The pages by which an admin revokes, corrects and issues again."""

from __future__ import annotations

import datetime as dt
import functools
import re
import typing as t

import pytest
import sqlalchemy as sa
from conftest import connect
from conftest import Connected
from conftest import every_database
from conftest import Host
from conftest import in_threads
from conftest import MakeHost
from flask import Response

from flask_credly import accounts
from flask_credly import Member
from flask_credly.admin.pages import REVOKING
from flask_credly.ledger import actions
from flask_credly.models import AuditEntry
from flask_credly.models import Issuance
from flask_credly.models import Template
from flask_credly.testing import CredlySimulator
from tests.support.pages import BADGES
from tests.support.pages import Browser
from tests.support.pages import browser as browser
from tests.support.pages import digest
from tests.support.pages import fail_one
from tests.support.pages import HX
from tests.support.pages import Mapped
from tests.support.pages import mapped as mapped
from tests.support.pages import read_csv
from tests.support.pages import text_of

WHY = {"reason": "Issued to the wrong person.", "tell": "no"}


def issue(connected: Connected, member_id: str = "42") -> str:
    """Issue a badge, and get the address of its page."""
    host = connected.host
    host.complete(member_id)
    host.drain()
    row = host.rows()[-1]
    assert row.state == "issued"
    return f"{BADGES}/{row.id}"


def said(visitor: Browser, path: str) -> str:
    return " ".join(text_of(visitor.get(path)).split())


def trail(host: Host) -> list[tuple[str, str]]:
    host.db.session.rollback()
    found = host.db.session.execute(
        sa.select(AuditEntry.action, AuditEntry.target).order_by(AuditEntry.id)
    )
    return [(action, target) for action, target in found]


class TestRevoke:
    @every_database
    def test_it_is_done_by_a_worker(self, host: Host, credly: CredlySimulator) -> None:
        with host.app.app_context():
            alone = issue(connect(host, credly))
            before = len(credly.received)
            host.db.session.remove()

        visitor = Browser(host.app)
        page = visitor.get(f"{alone}/revoke").text
        assert "The member may see this reason." in page
        assert "checked" not in page
        answer = visitor.post(f"{alone}/revoke", page=f"{alone}/revoke", **WHY)
        assert answer.location == alone
        assert len(credly.received) == before
        words = said(visitor, alone)
        assert "The revocation is queued." in words
        assert "Status Being revoked" in words
        assert "Issued to the wrong person. Credly does not notify the member." in words
        assert "every 3s" in visitor.get(alone).text

        with host.app.app_context():
            host.drain()
            assert host.row().state == "revoked"
            host.db.session.remove()

        words = said(visitor, alone)
        assert "Status Revoked" in words
        assert "Revoke the badge Credly revoked the badge." in words
        assert "Revoke badge 1 Unknown Done" in words
        assert "Revoke…" not in words and "Reissue…" in words

    @pytest.mark.parametrize(
        ("fields", "error"),
        [
            ({"reason": "  a "}, "Enter a reason of at least 3 characters."),
            ({"reason": ""}, "Enter a reason of at least 3 characters."),
            (
                {"reason": "x" * 501},
                "Shorten the reason to 500 characters. It has 501.",
            ),
            ({"reason": "Ask dan@example.org."}, "Remove the e-mail address"),
            ({"tell": ""}, "Choose whether Credly notifies the member."),
            ({"tell": "perhaps"}, "Choose whether Credly notifies the member."),
        ],
    )
    @pytest.mark.parametrize("headers", [{}, HX])
    def test_what_is_wrong_is_said_and_nothing_is_lost(
        self,
        mapped: Mapped,
        fields: dict[str, str],
        error: str,
        headers: dict[str, str],
    ) -> None:
        visitor, connected, _ = mapped
        alone = issue(connected)
        before = digest(connected.host), trail(connected.host)
        sent = {**WHY, **fields}
        answer = visitor.post(f"{alone}/revoke", headers=headers, **sent)
        assert answer.status_code == 422
        assert error in answer.text and 'role="alert"' in answer.text
        assert f">{sent['reason'].strip()}</textarea>" in answer.text
        assert ('value="no" checked' in answer.text) == (sent["tell"] == "no")
        assert (digest(connected.host), trail(connected.host)) == before

    def test_a_longest_reason_is_taken(self, mapped: Mapped) -> None:
        visitor, connected, _ = mapped
        alone = issue(connected)
        visitor.post(f"{alone}/revoke", reason="é" * 500, tell="yes")
        row = connected.host.row()
        assert (row.action, row.revocation_reason, row.tell) == (
            "revoke",
            "é" * 500,
            True,
        )

    def test_one_that_was_not_sent_is_taken_back(self, mapped: Mapped) -> None:
        visitor, connected, _ = mapped
        host = connected.host
        host.complete()
        alone = f"{BADGES}/{host.row().id}"
        assert "Skip badge…" in said(visitor, alone)
        assert "is not issued yet. It will be skipped" in said(
            visitor, f"{alone}/revoke"
        )
        visitor.post(f"{alone}/revoke", **WHY)
        words = said(visitor, alone)
        assert (
            "The badge was skipped and will not be issued." in words
            and "Status Skipped" in words
        )
        host.drain()
        assert connected.credly.badges == []

    def test_one_that_awaits_a_decision_is_not_said_to_be_in_progress(
        self, mapped: Mapped
    ) -> None:
        visitor, connected, _ = mapped
        alone = issue(connected)
        connected.host.db.session.execute(
            sa.update(Issuance).values(action="revoke", reason="awaits approval")
        )
        connected.host.db.session.commit()

        for path in ("revoke", "correct", "again"):
            assert visitor.get(f"{alone}/{path}").location == alone
            words = said(visitor, alone)
            assert words.count("An admin must decide whether to revoke the badge.") == 2
            assert "in progress" not in words

    def test_a_second_admin_sees_what_the_first_did(self, mapped: Mapped) -> None:
        visitor, connected, _ = mapped
        alone = issue(connected)

        for path in ("revoke", "correct", "again"):
            assert visitor.get(f"{alone}/{path}").status_code == 200

        visitor.post(f"{alone}/revoke", **WHY)
        visitor.get(alone)
        before = digest(connected.host)

        for path in ("revoke", "correct", "again"):
            answer = visitor.post(f"{alone}/{path}", **WHY)
            assert answer.location == alone
            words = said(visitor, alone)
            assert "Another action on this badge is in progress" in words
            assert visitor.get(f"{alone}/{path}").location == alone

        assert digest(connected.host) == before

    def test_a_revocation_that_fails_is_said(self, mapped: Mapped) -> None:
        visitor, connected, _ = mapped
        alone = issue(connected)
        body = {"data": {"message": "Not today"}, "metadata": None}
        connected.credly.fail("revoke", times=2, status=422, body=body)
        visitor.post(f"{alone}/revoke", **WHY)
        connected.host.drain(3)
        words = said(visitor, alone)
        assert "Status Issued Not today" in words
        assert "Revoke…" in words
        errors = said(visitor, "/integrations/credly/errors")
        assert "Badge revocation failed" in errors


class TestCorrect:
    def change(self, visitor: Browser, alone: str, **changes: str) -> t.Any:
        form = visitor.get(f"{alone}/correct").text
        fields = {
            "first_name": "Ada",
            "last_name": "Example",
            "completed": "".join(
                re.findall(r'type="date".*?value="([^"]*)"', form, re.S)
            ),
            "template": "".join(re.findall(r'value="([^"]*)" selected', form)),
            **changes,
        }
        return visitor.post(f"{alone}/correct", **fields)

    @every_database
    def test_before_and_after_are_shown_first(
        self, host: Host, credly: CredlySimulator
    ) -> None:
        with host.app.app_context():
            alone = issue(connect(host, credly))
            other = credly.add_template("Another Badge")
            accounts.sync_templates(host.state)
            completed_at = host.row().completed_at
            host.db.session.remove()

        visitor = Browser(host.app)
        assert "You cannot change the e-mail address here." in said(
            visitor, f"{alone}/correct"
        )
        page = self.change(visitor, alone, last_name="Lovelace", template=other)
        words = " ".join(text_of(page).split())
        assert "Changes" in words
        assert "First name Ada unchanged Last name Example Lovelace" in words
        assert "Badge Python Badge Another Badge" in words

        with host.app.app_context():
            assert host.row().action is None
            host.db.session.remove()

        # Back to the form, with what was typed.
        form = self.change(
            visitor, alone, last_name="Lovelace", template=other, step="edit"
        )
        assert form.status_code == 200 and 'value="Lovelace"' in form.text
        assert f'<option value="{other}" selected>' in form.text
        answer = self.change(
            visitor, alone, last_name="Lovelace", template=other, step="confirm"
        )
        new = answer.location
        assert new != alone
        assert "It replaces badge 1" in said(visitor, new)
        assert "Status Being replaced" in said(visitor, alone)
        assert "Being replaced" in said(visitor, BADGES)

        with host.app.app_context():
            host.drain()
            old, row = host.rows()
            assert (old.state, row.state) == ("replaced", "issued")
            assert (row.last_name, row.badge_name) == ("Lovelace", "Another Badge")
            assert row.completed_at == completed_at
            assert ("correct", f"{old.id} → {row.id}") in trail(host)
            host.db.session.remove()

        words = said(visitor, new)
        assert "Replaces Badge 1" in words
        assert "Replace the badge" in words
        assert "All badges of this member for this course" in words
        words = said(visitor, alone)
        assert "Status Replaced" in words and "Replaced by Badge 2" in words
        assert "1 issued, 1 not yet accepted" in said(visitor, "/integrations/")
        assert "At Credly" not in words and "Check now" not in words
        assert f'href="{alone}"' not in visitor.get(f"{BADGES}?became=pending").text

        for path in (alone, new):
            assert "Correct badge 1 → 2" in said(visitor, path)

        listed = visitor.get(f"{BADGES}?status=replaced").text
        assert f'href="{alone}"' in listed and f'href="{new}"' not in listed

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({"first_name": " "}, "Enter a first name."),
            ({"last_name": ""}, "Enter a last name."),
            ({"completed": "31.3.2026"}, "Enter a date, such as"),
            ({"completed": "2026-02-30"}, "Enter a date, such as"),
            ({"completed": "2999-01-01"}, "Enter a date from 1970 on"),
            ({"completed": "1969-12-31"}, "Enter a date from 1970 on"),
            ({"template": ""}, "Select a badge template."),
            ({"template": "unknown"}, "This badge template is no longer active"),
            ({}, "You have not changed anything."),
        ],
    )
    @pytest.mark.parametrize("step", ["", "confirm"])
    def test_what_is_wrong_is_said_and_nothing_is_lost(
        self, mapped: Mapped, changes: dict[str, str], error: str, step: str
    ) -> None:
        visitor, connected, _ = mapped
        alone = issue(connected)
        before = digest(connected.host), trail(connected.host)
        answer = self.change(visitor, alone, step=step, **changes)
        assert answer.status_code == 422
        assert error in answer.text
        assert (digest(connected.host), trail(connected.host)) == before

    def test_a_date_moves_the_day_and_nothing_else(self, mapped: Mapped) -> None:
        visitor, connected, _ = mapped
        alone = issue(connected)
        self.change(visitor, alone, completed="2026-01-31", step="confirm")
        new = connected.host.rows()[-1]
        assert new.completed_at == dt.datetime(2026, 1, 31, tzinfo=dt.UTC)
        assert new.first_name == "Ada"

    def test_of_many_templates_some_are_searched(self, mapped: Mapped) -> None:
        visitor, connected, _ = mapped
        alone = issue(connected)
        connected.host.db.session.execute(
            sa.insert(Template),
            [
                {
                    "id": f"{number:08}-0000-4000-8000-000000000000",
                    "tenant": "default",
                    "name": f"Many {number:03}",
                    "active": True,
                }
                for number in range(250)
            ],
        )
        connected.host.db.session.commit()
        page = self.change(
            visitor, alone, search="template", template_text="many 24", last_name="L"
        )
        assert page.status_code == 200 and 'value="L"' in page.text
        # The chosen one stays.
        assert len(re.findall("<option", page.text)) == 1 + 1 + 10
        assert "10 found." in page.text


class TestIssueAgain:
    def test_one_in_force_is_revoked_first(
        self, make_host: MakeHost, credly: CredlySimulator
    ) -> None:
        members = {"42": Member("42", "new@example.org", "Ada", "Lovelace")}
        host = make_host(member=members.get)

        with host.app.app_context():
            alone = issue(connect(host, credly))
            host.db.session.remove()

        visitor = Browser(host.app)
        words = said(visitor, f"{alone}/again")
        assert "The badge sent to member-42@example.org is revoked first." in words
        assert "To Ada Lovelace new@example.org" in words
        person = {
            "email": "new@example.org",
            "first_name": "Ada",
            "last_name": "Lovelace",
        }
        answer = visitor.post(f"{alone}/again", **person)
        assert answer.status_code == 422
        assert "Enter a reason" in answer.text

        # What was looked at is what is sent.
        members["42"] = Member("42", "newer@example.org", "Ada", "Lovelace")
        answer = visitor.post(f"{alone}/again", **person, **WHY)
        assert answer.status_code == 422
        assert "profile has changed" in answer.text
        assert "newer@example.org" in answer.text
        person["email"] = "newer@example.org"
        new = visitor.post(f"{alone}/again", **person, **WHY).location
        assert new != alone
        words = said(visitor, new)
        assert "Status Queued until revocation" in words
        assert "once badge 1 is revoked." in words
        assert "Being revoked" in said(visitor, alone)

        with host.app.app_context():
            host.drain(3)
            assert [row.state for row in host.rows()] == ["revoked", "issued"]
            assert credly.badges[-1]["recipient_email"] == "newer@example.org"
            host.db.session.remove()

    @pytest.mark.parametrize("name", ["Ada", "Grace"])
    def test_the_host_is_asked_once_where_the_form_is_shown_again(
        self, make_host: MakeHost, credly: CredlySimulator, name: str
    ) -> None:
        asked: list[str] = []

        def member(member_id: str) -> Member:
            asked.append(member_id)
            return Member(member_id, "ada@example.org", "Ada", "Lovelace")

        host = make_host(member=member)

        with host.app.app_context():
            alone = issue(connect(host, credly))
            host.db.session.remove()

        asked.clear()
        person = {"email": "ada@example.org", "last_name": "Lovelace"}
        answer = Browser(host.app).post(f"{alone}/again", **person, first_name=name)
        assert answer.status_code == 422
        assert asked == ["42"]

    def test_without_the_hook_the_address_is_typed(self, mapped: Mapped) -> None:
        visitor, connected, _ = mapped
        alone = issue(connected)
        page = visitor.get(f"{alone}/again").text
        assert 'value="member-42@example.org"' in page
        fields = {"first_name": "Ada", "last_name": "E", **WHY}
        wrong = visitor.post(f"{alone}/again", email="no address", **fields)
        assert wrong.status_code == 422 and 'value="no address"' in wrong.text
        assert "Issued to the wrong person.</textarea>" in wrong.text
        visitor.post(f"{alone}/again", email="dan@example.org", **fields)
        connected.host.drain(3)
        assert connected.host.rows()[-1].email == "dan@example.org"
        assert connected.host.rows()[-1].state == "issued"

    def test_one_that_is_revoked_needs_no_reason(self, mapped: Mapped) -> None:
        visitor, connected, _ = mapped
        alone = issue(connected)
        visitor.post(f"{alone}/revoke", **WHY)
        connected.host.drain()
        page = visitor.get(f"{alone}/again").text
        assert "<textarea" not in page
        person = {"email": "a@example.org", "first_name": "A", "last_name": "B"}
        new = visitor.post(f"{alone}/again", **person).location
        assert "The new badge is queued." in said(visitor, new)
        connected.host.drain()
        assert connected.host.rows()[-1].state == "issued"

    def test_a_hook_that_fails_leaves_what_is_stored(
        self, make_host: MakeHost, credly: CredlySimulator
    ) -> None:
        def member(member_id: str) -> Member:
            raise RuntimeError("the directory is down")

        host = make_host(member=member)

        with host.app.app_context():
            alone = issue(connect(host, credly))
            host.db.session.remove()

        page = Browser(host.app).get(f"{alone}/again").text
        assert 'value="member-42@example.org"' in page


@every_database
def test_of_two_at_once_one_wins(host: Host, credly: CredlySimulator) -> None:
    with host.app.app_context():
        alone = issue(connect(host, credly))
        host.db.session.remove()

    visitors = [Browser(host.app) for _ in range(4)]
    tokens = [visitor.token("/integrations/credly") for visitor in visitors]
    answers: list[t.Any] = []
    person = {"email": "dan@example.org", "first_name": "Dan", "last_name": "E"}

    def act(number: int) -> None:
        path = ("again", "revoke")[number % 2]
        answers.append(
            visitors[number].client.post(
                f"{alone}/{path}",
                data={"csrf_token": tokens[number], **person, **WHY},
            )
        )

    in_threads(*(functools.partial(act, number) for number in range(4)))

    assert [answer.status_code for answer in answers] == [303] * 4

    with host.app.app_context():
        rows = host.rows()
        assert rows[0].action == "revoke"
        assert len(rows) <= 2
        acted = [each for each in trail(host) if each[0] in ("revoke", "issue again")]
        assert len(acted) == 1


class TestWhatCannotBeDone:
    @pytest.mark.parametrize("path", ["revoke", "correct", "again"])
    @pytest.mark.parametrize("headers", [{}, HX])
    def test_it_is_said(
        self, mapped: Mapped, path: str, headers: dict[str, str]
    ) -> None:
        visitor, connected, _ = mapped
        host = connected.host
        failed = f"{BADGES}/{fail_one(connected, '1').id}"
        foreign = issue(connected, "2")
        host.db.session.execute(
            sa.update(Issuance)
            .where(Issuance.member_id == "2")
            .values(organization_id="other")
        )
        host.db.session.commit()
        before = digest(host)

        for alone, words in (
            (failed, "The badge's status is: Failed."),
            (foreign, "belongs to another organization than the connected one"),
            (f"{BADGES}/999", "This badge does not exist."),
        ):
            shown = BADGES if alone.endswith("999") else alone

            for ask in (visitor.get, functools.partial(visitor.post, **WHY)):
                answer = ask(f"{alone}/{path}", headers=headers)
                to = answer.location or answer.headers["HX-Redirect"]
                assert to == shown
                assert words in said(visitor, shown)

        assert digest(host) == before

    @pytest.mark.parametrize("path", ["revoke", "correct", "again"])
    def test_a_correction_that_waits_is_named(self, mapped: Mapped, path: str) -> None:
        visitor, connected, _ = mapped
        alone = issue(connected)
        row = connected.host.row()
        assert actions.correct(
            connected.host.state.engine,
            "default",
            row.id,
            first_name="Other",
            last_name="Other",
            completed_at=row.completed_at,
            template_id=row.template_id,
        )
        before = digest(connected.host)
        assert "Revoke…" not in said(visitor, alone)
        visitor.post(f"{alone}/{path}", **WHY)
        assert "in progress (Being replaced)" in said(visitor, alone)
        assert digest(connected.host) == before

    def test_nothing_is_offered_that_is_refused(self, mapped: Mapped) -> None:
        visitor, connected, _ = mapped
        failed = fail_one(connected, "1").id
        words = said(visitor, f"{BADGES}/{failed}")
        assert not any(f"{each}…" in words for each in ("Revoke", "Correct", "again"))

    @pytest.mark.parametrize("path", ["revoke", "correct", "again"])
    def test_an_outdated_form_keeps_what_was_typed(
        self, mapped: Mapped, path: str
    ) -> None:
        visitor, connected, _ = mapped
        alone = issue(connected)
        typed = {**WHY, "first_name": "Typed", "last_name": "Typed", "email": "t@x.y"}
        answer = visitor.post(f"{alone}/{path}", csrf_token="old", **typed)
        assert answer.status_code == 422
        assert "has expired" in answer.text
        kept = WHY["reason"] if path == "revoke" else 'value="Typed"'
        assert kept in answer.text
        assert connected.host.row().action is None


class TestWhoMayRevoke:
    def test_an_admin_who_may_not_is_refused_and_offered_nothing(
        self, make_host: MakeHost, credly: CredlySimulator
    ) -> None:
        may: list[t.Any] = [False]
        asked: list[str] = []

        def may_revoke(tenant: str) -> t.Any:
            asked.append(tenant)
            return may[0]

        host = make_host(may_revoke=may_revoke)

        with host.app.app_context():
            alone = issue(connect(host, credly))
            before = digest(host)
            host.db.session.remove()

        visitor = Browser(host.app)
        words = said(visitor, alone)
        assert "Check now" in words and "Revoke…" not in words
        assert set(asked) == {"default"}
        refused = 0

        for value in (False, None, 1, "True"):
            may[0] = value

            for rule in host.app.url_map.iter_rules():
                if rule.endpoint not in REVOKING:
                    continue

                path = re.sub("<[^>]+>", "1", rule.rule)

                for answer in (
                    *([visitor.get(path)] if "GET" in (rule.methods or ()) else []),
                    *([visitor.post(path, **WHY)] if "POST" in rule.methods else []),
                ):
                    assert answer.status_code == 403, path
                    refused += 1

        assert refused == 4 * len(REVOKING)
        may[0] = Response("Ask the head office.", 418)
        assert visitor.get(f"{alone}/revoke").status_code == 418
        may[0] = True
        assert visitor.get(f"{alone}/revoke").status_code == 200
        assert "Revoke…" in said(visitor, alone)

        with host.app.app_context():
            assert digest(host) == before

    def test_it_is_not_asked_of_who_is_no_admin(
        self, make_host: MakeHost, credly: CredlySimulator
    ) -> None:
        asked: list[bool] = []
        admin = [True]
        host = make_host(
            is_admin=lambda: admin[0],
            is_viewer=lambda: True,
            may_revoke=lambda: asked.append(True) or True,
        )

        with host.app.app_context():
            alone = issue(connect(host, credly))
            host.db.session.remove()

        admin[0] = False
        visitor = Browser(host.app)
        assert "Revoke" not in said(visitor, alone)
        assert visitor.get(f"{alone}/revoke").status_code == 403
        assert asked == []


def test_the_export_tells_of_both(mapped: Mapped) -> None:
    visitor, connected, _ = mapped
    alone = issue(connected)
    visitor.post(f"{alone}/revoke", **{**WHY, "reason": "=1+1 is a formula"})
    head, row = read_csv(visitor.get(f"{BADGES}.csv").text)
    assert row[head.index("Revocation reason")] == "'=1+1 is a formula"
    assert row[head.index("Status")] == "Being revoked"
    assert {"Replaces", "Replaced by"} <= set(head)


def test_the_reason_is_shown_as_text(mapped: Mapped) -> None:
    visitor, connected, _ = mapped
    alone = issue(connected)
    visitor.post(f"{alone}/revoke", reason='<b hx-get="/x">no</b>', tell="yes")
    assert "<b hx-get" not in visitor.get(alone).text


def test_the_limits_are_the_ledgers() -> None:
    assert actions.REASON_LENGTH == (3, 500)
