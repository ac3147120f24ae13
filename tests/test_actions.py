"""A badge that was issued is revoked, corrected or issued again."""

from __future__ import annotations

import datetime as dt
import threading
import typing as t
import uuid

import pytest
import sqlalchemy as sa
from conftest import a_member
from conftest import connect
from conftest import connect_and_map
from conftest import Connected
from conftest import every_database
from conftest import Host
from conftest import MakeConnected

from flask_credly import accounts
from flask_credly import badge_failed
from flask_credly import badge_issued
from flask_credly import badge_replaced
from flask_credly import badge_revoked
from flask_credly import Member
from flask_credly.catalog import Completion
from flask_credly.issuing.verdict import BLOCKED
from flask_credly.ledger import actions
from flask_credly.ledger import issuances
from flask_credly.ledger import retention
from flask_credly.ledger import retrying
from flask_credly.ledger.insert import insert
from flask_credly.models import AuditEntry
from flask_credly.models import Issuance
from flask_credly.options import Options
from flask_credly.testing import CredlySimulator

REASON = "It was issued by mistake."


def issued(host: Host, **given: t.Any) -> Issuance:
    """Issue a badge."""
    host.complete(**given)
    host.drain()
    *_, row = host.rows()
    assert row.state == "issued"
    return row


def revoke(host: Host, row: Issuance, *, tell: bool = False) -> str | None:
    return actions.revoke(
        host.state.engine, "default", row.id, reason=REASON, tell=tell, by="An admin"
    )


def correct(host: Host, row: Issuance, **other: t.Any) -> int | None:
    given = {
        "first_name": row.first_name,
        "last_name": row.last_name,
        "completed_at": row.completed_at,
        "template_id": row.template_id,
    }
    return actions.correct(
        host.state.engine, "default", row.id, **given | other, by="An admin"
    )


def issue_again(host: Host, row: Issuance, **other: t.Any) -> int | None:
    given: dict[str, t.Any] = {
        "email": row.email,
        "first_name": row.first_name,
        "last_name": row.last_name,
    }
    return actions.issue_again(
        host.state.engine, "default", row.id, **given | other, by="An admin"
    )


def possible(host: Host, row: Issuance) -> set[str]:
    host.db.session.rollback()
    found = actions.what_may_be_done(host.db.session, "default", [row.id])
    return set(found.get(row.id, ()))


def states(host: Host) -> list[tuple[str, str | None]]:
    return [(row.state, row.action) for row in host.rows()]


def last_change(credly: CredlySimulator, row: Issuance) -> tuple[t.Any, ...]:
    assert row.badge_id is not None
    last = credly.history(row.badge_id)[-1]
    return last.state, last.by, last.reason, last.told


def wait_until_due(host: Host) -> None:
    host.let_lists_catch_up()


class TestRevoking:
    @every_database
    @pytest.mark.parametrize("tell", [False, True])
    def test_a_badge_is_revoked(
        self, host: Host, credly: CredlySimulator, tell: bool
    ) -> None:
        heard: list[dict[str, t.Any]] = []

        def hear(sender: object, **given: t.Any) -> None:
            heard.append(given)

        with host.app.app_context(), badge_revoked.connected_to(hear):
            connect(host, credly)
            row = issued(host)
            assert revoke(host, row, tell=tell) == "revoke"
            assert states(host) == [("issued", "revoke")]
            host.drain()
            row = host.row()

            assert (row.state, row.action, row.badge_state) == (
                *("revoked", None, "revoked"),
            )
            assert (row.error, row.due_at, row.lease) == (None, None, None)
            assert last_change(credly, row) == ("revoked", "request", REASON, tell)
            assert [each["issuance_id"] for each in heard] == [row.id]
            assert row.badge_told == "revoked"

    def test_it_is_read_before_it_is_revoked(self, connected: Connected) -> None:
        host, credly, _ = connected
        row = issued(host)
        assert row.badge_id is not None
        credly.revoke_badge(row.badge_id, reason="By hand.")
        revoke(host, row)
        host.drain()

        assert states(host) == [("revoked", None)]
        assert credly.count("revoke") == 0
        assert last_change(credly, row) == ("revoked", "issuer", "By hand.", True)

    def test_what_the_member_has_declined_is_left_alone(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        row = issued(host)
        assert row.badge_id is not None
        credly.reject(row.badge_id)
        revoke(host, row)
        host.drain()
        row = host.row()

        assert (row.state, row.action, row.badge_state) == ("issued", None, "rejected")
        assert row.error and "declined" in row.error
        assert (credly.count("revoke"), host.log()) == (0, [])

    def test_a_completion_does_not_bring_it_back(self, connected: Connected) -> None:
        host, credly, _ = connected
        row = issued(host)
        revoke(host, row)
        host.drain()
        host.complete()
        host.drain()

        assert states(host) == [("revoked", None)]
        assert len(credly.badges) == 1
        assert retrying.retry_all(host.state.engine, "default").number == 0

    @pytest.mark.parametrize("after", [False, True])
    def test_a_lost_answer_is_looked_up(
        self, connected: Connected, after: bool
    ) -> None:
        host, credly, _ = connected
        row = issued(host)
        credly.fail("revoke", status=500, after=after)
        revoke(host, row)
        host.drain()
        wait_until_due(host)
        host.drain()

        assert states(host) == [("revoked", None)]
        assert credly.count("revoke") == (1 if after else 2)

    def test_a_request_that_arrives_late_is_waited_for(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        row = issued(host)
        credly.fail("revoke", how="late", delay=30)
        revoke(host, row)
        host.drain()
        host.make_due()
        host.drain()  # it may be on its way
        assert (states(host), credly.count("revoke")) == ([("issued", "revoke")], 1)
        credly.advance(60)
        wait_until_due(host)
        host.drain()

        assert (states(host), credly.count("revoke")) == ([("revoked", None)], 1)

    def test_two_refusals_and_the_badge_stays(self, connected: Connected) -> None:
        host, credly, _ = connected
        failed: list[object] = []
        credly.posts_allowed = 3
        row = issued(host)
        credly.fail(
            "revoke",
            times=2,
            status=422,
            body={"data": {"message": "This badge is locked."}, "metadata": None},
        )
        revoke(host, row)

        def hear(sender: object, **given: t.Any) -> None:
            failed.append(given)

        with badge_failed.connected_to(hear):
            host.drain(2)

        row = host.row()
        assert (row.state, row.action) == ("issued", None)
        assert row.error == "This badge is locked. (HTTP 422)"
        assert failed == []
        ((error, details),) = host.log()
        assert error == "Badge revocation failed"
        assert "This badge is locked." in details
        # It can be ordered once more.
        assert revoke(host, row) == "revoke"
        host.drain()
        assert states(host) == [("revoked", None)]
        assert host.row().error is None

    def test_a_badge_that_credly_does_not_know(self, connected: Connected) -> None:
        host, credly, _ = connected
        row = issued(host)
        assert row.badge_id is not None
        credly.delete_badge(row.badge_id)
        revoke(host, row)

        for _ in range(6):
            assert states(host) == [("issued", "revoke")]
            host.make_due()
            host.drain()

        row = host.row()
        assert (row.state, row.action) == ("issued", None)
        assert row.error == "Credly no longer has this badge."
        assert [error for error, _ in host.log()] == ["Badge revocation failed"]

    def test_a_closed_gate_keeps_it(self, connected: Connected) -> None:
        host, credly, _ = connected
        row = issued(host)
        credly.fail("badge", status=429, headers={"Retry-After": "60"})
        revoke(host, row)
        host.drain()

        assert states(host) == [("issued", "revoke")]
        assert (credly.count("revoke"), host.row().attempts) == (0, 0)

    def test_it_needs_no_mapping(self, connected: Connected) -> None:
        host, credly, _ = connected
        row = issued(host)
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        accounts.remove_mapping(host.state, mapping.id)
        revoke(host, row)
        host.drain()

        assert states(host) == [("revoked", None)]

    def test_what_waits_is_taken_back(self, connected: Connected) -> None:
        host, credly, _ = connected
        host.complete()
        row = host.row()
        assert possible(host, row) == {"drop"}
        assert revoke(host, row) == "drop"
        host.drain()
        row = host.row()

        assert (row.state, row.reason, credly.badges) == ("cancelled", "dropped", [])
        # By no completion, but by an admin.
        host.complete()
        host.drain()
        assert host.row().state == "cancelled"
        assert issuances.retry(host.state.engine, "default", row.id) == 1
        host.drain()
        assert host.row().state == "issued"

    @pytest.mark.parametrize(
        "reason",
        [
            *("", "  ", "No", "x" * 501, "Ask ada@example.org."),
            # What nobody sees: nothing would be left of it.
            *("\0\0\0", "\u200b\u200b\u200b", "\u202e\u202e\u202e"),
            *("\ud800\ud800\ud800", "No\0\0\0", "a\r\n\r\n"),
        ],
    )
    def test_a_reason_that_cannot_be_given(
        self, connected: Connected, reason: str
    ) -> None:
        host, _, _ = connected
        row = issued(host)

        with pytest.raises(ValueError):
            actions.revoke(
                host.state.engine, "default", row.id, reason=reason, tell=True, by=None
            )

        assert states(host) == [("issued", None)]

    def test_what_cannot_be_revoked(self, connected: Connected) -> None:
        host, credly, template_id = connected
        row = issued(host)
        assert revoke(host, row) == "revoke"
        assert revoke(host, row) is None  # it has an action
        host.drain()
        assert revoke(host, row) is None  # it is revoked
        row.id += 1
        assert revoke(host, row) is None  # nobody knows it
        host.db.session.rollback()

    def test_a_badge_of_another_organization(self, connected: Connected) -> None:
        host, _, _ = connected
        row = issued(host)
        host.db.session.execute(sa.update(Issuance).values(organization_id="other"))
        host.db.session.commit()

        assert possible(host, row) == set()
        assert revoke(host, row) is None
        assert correct(host, row) is None
        assert issue_again(host, row) is None

    def test_it_is_noted_by_whom(self, connected: Connected) -> None:
        host, _, _ = connected
        row = issued(host)
        revoke(host, row)
        entries = host.db.session.scalars(sa.select(AuditEntry)).all()
        assert [(each.actor, each.action, each.target) for each in entries][-1] == (
            *("An admin", "revoke", str(row.id)),
        )

    def test_remove_ends_it_and_the_badge_stays(self, connected: Connected) -> None:
        host, credly, _ = connected
        row = issued(host)
        revoke(host, row)
        accounts.remove(host.state)
        row = host.row()

        assert (row.state, row.action, row.due_at) == ("issued", None, None)
        assert credly.count("revoke") == 0

    def test_an_erased_member_is_not_written_about(self, connected: Connected) -> None:
        from flask_credly.ledger import privacy

        host, credly, _ = connected
        row = issued(host)
        revoke(host, row)
        privacy.erase(host.state.engine, "default", "42")
        host.drain()
        row = host.row()

        assert (row.state, row.action) == ("issued", None)
        assert (row.revocation_reason, row.tell) == (None, None)
        assert credly.count("revoke") == 0

    def test_what_a_worker_dies_over_again_and_again(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        row = issued(host)
        revoke(host, row)
        host.db.session.execute(sa.update(Issuance).values(crashes=9))
        host.db.session.commit()
        host.drain()
        row = host.row()

        assert (row.state, row.action, row.reason) == ("issued", None, "crashed")
        assert [error for error, _ in host.log()] == ["Badge revocation failed"]


class TestIssuingAgain:
    @every_database
    def test_after_a_revocation(self, connected: Connected) -> None:
        host, credly, _ = connected
        row = issued(host)
        assert possible(host, row) == {"revoke", "correct", "issue again"}
        revoke(host, row)
        assert possible(host, row) == set()
        host.drain()
        assert possible(host, row) == {"issue again"}
        new_id = issue_again(host, row, first_name="Grace")
        assert new_id is not None
        host.drain()
        old, new = host.rows()

        assert (old.state, new.id, new.cycle) == ("revoked", new_id, 2)
        assert (new.state, new.first_name) == ("issued", "Grace")
        assert [badge["state"] for badge in credly.badges] == ["revoked", "pending"]
        assert possible(host, old) == set()

    def test_to_another_address(self, connected: Connected) -> None:
        host, credly, _ = connected
        row = issued(host)
        new_id = issue_again(
            host, row, email="ada@example.com", reason=REASON, tell=False
        )
        assert states(host) == [("issued", "revoke"), ("none", "issue")]
        assert (host.rows()[1].due_at, new_id) == (None, host.rows()[1].id)
        host.drain(2)

        assert states(host) == [("revoked", None), ("issued", None)]
        assert [
            (badge["recipient_email"], badge["state"]) for badge in credly.badges
        ] == [("member-42@example.org", "revoked"), ("ada@example.com", "pending")]

    def test_not_before_the_first_is_revoked(self, connected: Connected) -> None:
        host, credly, _ = connected
        row = issued(host)
        credly.posts_allowed = 3
        credly.fail("revoke", times=2, status=422)
        issue_again(host, row, email="ada@example.com", reason=REASON, tell=False)
        host.drain(3)
        old, new = host.rows()

        assert (old.state, old.action) == ("issued", None)
        assert (new.state, new.reason) == ("cancelled", "not revoked")
        assert len(credly.badges) == 1
        # It is not retried past that: from the first on it can be ordered once more.
        assert issuances.retry(host.state.engine, "default", new.id) == 0
        assert possible(host, old) == {"revoke", "correct", "issue again"}
        again = issue_again(host, old, reason=REASON, tell=False)
        host.drain(2)
        assert again is not None
        assert [row.state for row in host.rows()] == ["revoked", "cancelled", "issued"]

    def test_what_is_in_force_needs_a_reason(self, connected: Connected) -> None:
        host, _, _ = connected
        row = issued(host)

        with pytest.raises(ValueError, match="valid badge"):
            issue_again(host, row)

        assert states(host) == [("issued", None)]

    def test_what_the_member_has_declined(self, connected: Connected) -> None:
        host, credly, _ = connected
        row = issued(host)
        assert row.badge_id is not None
        credly.reject(row.badge_id)
        credly.states_in_the_way = {"pending", "accepted"}
        host.db.session.execute(sa.update(Issuance).values(badge_state="rejected"))
        host.db.session.commit()
        assert issue_again(host, row)
        host.drain()

        assert [row.state for row in host.rows()] == ["issued", "issued"]

    def test_credly_counts_the_earlier_badge(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.states_in_the_way = {"pending", "accepted", "rejected", "revoked"}
        row = issued(host)
        revoke(host, row)
        host.drain()
        issue_again(host, row)
        host.drain()
        old, new = host.rows()

        assert (old.state, new.state) == ("revoked", "failed")
        assert new.error and new.error.startswith("Credly still counts an earlier")

    def test_an_unmapped_course(self, connected: Connected) -> None:
        host, _, _ = connected
        row = issued(host)
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        accounts.remove_mapping(host.state, mapping.id)

        assert possible(host, row) == {"revoke", "correct"}
        assert issue_again(host, row, reason=REASON, tell=False) is None
        assert states(host) == [("issued", None)]

    def test_not_where_another_badge_has_taken_its_place(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        row = issued(host)
        assert row.badge_id is not None
        credly.replace_badge(row.badge_id, issued_to_last_name="By hand")
        issue_again(host, row, reason=REASON, tell=False)
        host.drain(2)

        # What stands now was not to be revoked: a second would stand beside it.
        assert states(host) == [("replaced", None), ("cancelled", None)]
        assert host.rows()[1].reason == "not revoked"
        assert credly.count("issue") == 1

    def test_it_is_still_counted_when_it_is_tried_again(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        credly.states_in_the_way.add("revoked")
        credly.posts_allowed = 9  # an admin tries it again
        row = issued(host)
        revoke(host, row)
        host.drain()
        issue_again(host, row)
        host.drain()

        for _ in range(2):
            assert retrying.retry_all(host.state.engine, "default").number == 1

            for _ in range(10):
                host.drain()
                host.let_lists_catch_up()

            _, new = host.rows()
            # An earlier request might have made it: that was looked for.
            assert (new.state, new.action, new.error) == ("failed", None, BLOCKED)

        credly.states_in_the_way.remove("revoked")
        retrying.retry_all(host.state.engine, "default")
        host.drain()
        assert states(host) == [("revoked", None), ("issued", None)]


class TestCorrecting:
    @every_database
    def test_a_name(self, host: Host, credly: CredlySimulator) -> None:
        heard: list[dict[str, t.Any]] = []

        def hear(sender: object, **given: t.Any) -> None:
            heard.append(given)

        with (
            host.app.app_context(),
            badge_replaced.connected_to(hear),
            badge_issued.connected_to(hear),
        ):
            connect(host, credly)
            row = issued(host)
            heard.clear()
            assert row.badge_id is not None
            credly.accept(row.badge_id)
            new_id = correct(host, row, first_name="Grace")
            assert states(host) == [("issued", None), ("none", "replace")]
            host.drain()
            old, new = host.rows()

            assert new.id == new_id
            assert (old.state, old.first_name, old.replaced_by) == (
                *("replaced", "Ada", new.badge_id),
            )
            assert (new.state, new.first_name, new.cycle) == ("issued", "Grace", 2)
            assert (new.badge_state, new.replaces) == ("accepted", old.badge_id)
            before, now = credly.badges
            assert (before["id"], now["id"]) == (old.badge_id, new.badge_id)
            assert now["replaces_badge_id"] == old.badge_id
            assert now["issued_to_first_name"] == "Grace"
            assert now["recipient_email"] == old.email
            assert [each.get("replaced_by") for each in heard] == [None, new.badge_id]
            assert heard[1]["issuance_id"] == old.id
            assert possible(host, old) == set()
            assert possible(host, new) == {"revoke", "correct", "issue again"}

    def test_the_badge_and_the_date(self, connected: Connected) -> None:
        host, credly, _ = connected
        row = issued(host)
        other = credly.add_template("Another Badge")
        accounts.sync_templates(host.state)
        at = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
        assert correct(host, row, template_id=other, completed_at=at)
        host.drain()
        _, new = host.rows()

        assert (new.state, new.badge_name) == ("issued", "Another Badge")
        badge = credly.badges[1]
        assert badge["badge_template"]["id"] == other
        assert badge["issued_at"].startswith("2026-03-01T12:00:00")

    def test_it_is_not_said_to_become_what_the_course_is_mapped_to(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        row = issued(host)
        other = credly.add_template("Another Badge")
        accounts.sync_templates(host.state)
        new_id = correct(host, row, template_id=other)
        assert new_id is not None
        host.db.session.rollback()
        assert issuances.becoming(host.db.session, "default", [new_id]) == {}

    def test_a_row_whose_address_remove_has_forgotten(
        self, connected: Connected
    ) -> None:
        host, credly, template_id = connected
        issued(host)
        accounts.remove(host.state)
        connect_and_map(host, credly, template_id)
        row = host.row()
        assert row.email == ""
        assert correct(host, row, first_name="Ada", last_name="Roe")
        host.drain()

        # The address is not sent: it is that of the badge.
        assert states(host) == [("replaced", None), ("issued", None)]
        assert credly.badges[1]["issued_to"] == "Ada Roe"
        assert credly.badges[1]["recipient_email"] == "member-42@example.org"

    def test_a_template_that_is_not_to_be_had(self, connected: Connected) -> None:
        host, credly, _ = connected
        row = issued(host)

        assert correct(host, row, template_id=str(uuid.uuid4())) is None
        assert states(host) == [("issued", None)]

    @pytest.mark.parametrize("after", [False, True])
    def test_a_lost_answer_is_looked_up(
        self, connected: Connected, after: bool
    ) -> None:
        host, credly, _ = connected
        row = issued(host)
        credly.fail("replace", status=500, after=after)
        correct(host, row, last_name="Other")
        host.drain()
        wait_until_due(host)
        host.drain()

        assert states(host) == [("replaced", None), ("issued", None)]
        assert len(credly.badges) == 2
        assert credly.count("replace") == (1 if after else 2)

    def test_what_fails_leaves_the_badge_as_it_is(self, connected: Connected) -> None:
        host, credly, _ = connected
        row = issued(host)
        credly.fail("replace", times=2, status=422)
        correct(host, row, last_name="Other")
        host.drain(2)
        old, new = host.rows()

        assert (old.state, new.state) == ("issued", "failed")
        assert [error for error, _ in host.log()] == ["Badge replacement failed"]
        assert possible(host, old) == {"revoke", "correct", "issue again"}
        # It can be tried once more.
        credly.posts_allowed = 3
        assert issuances.retry(host.state.engine, "default", new.id) == 1
        wait_until_due(host)
        host.drain()
        assert states(host) == [("replaced", None), ("issued", None)]
        assert host.rows()[1].last_name == "Other"

    @pytest.mark.parametrize("what", ["revoke_badge", "reject", "delete_badge"])
    def test_a_badge_that_is_not_in_force_any_more(
        self, connected: Connected, what: str
    ) -> None:
        host, credly, _ = connected
        row = issued(host)
        getattr(credly, what)(row.badge_id)
        correct(host, row, last_name="Other")

        for _ in range(7):
            host.make_due()
            host.drain()

        _, new = host.rows()
        assert (new.state, credly.count("replace")) == ("failed", 0)
        assert new.error and "no longer valid" in new.error

    def test_what_was_replaced_at_credly_is_replaced_there(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        row = issued(host)
        assert row.badge_id is not None
        # But for a name, as ours.
        by_hand = credly.replace_badge(row.badge_id, issued_to_last_name="Wrong")
        correct(host, row, last_name="Other")
        host.drain()
        old, new = host.rows()

        assert (old.state, new.state) == ("replaced", "issued")
        assert [badge["replaces_badge_id"] for badge in credly.badges] == [
            *(None, row.badge_id, by_hand),
        ]

    def test_one_after_another(self, connected: Connected) -> None:
        host, credly, _ = connected
        row = issued(host)

        for name in ("One", "Two", "Three"):
            assert correct(host, row, last_name=name)
            assert correct(host, row, last_name=name) is None  # one at a time
            host.drain()
            *_, row = host.rows()

        assert [(each.cycle, each.state) for each in host.rows()] == [
            *((1, "replaced"), (2, "replaced"), (3, "replaced"), (4, "issued")),
        ]
        assert len(credly.badges) == 4

    def test_it_is_revoked_as_what_it_is_now(self, connected: Connected) -> None:
        host, credly, _ = connected
        row = issued(host)
        correct(host, row, last_name="Other")
        host.drain()
        old, new = host.rows()
        assert revoke(host, old) is None
        assert revoke(host, new) == "revoke"
        host.drain()

        assert states(host) == [("replaced", None), ("revoked", None)]

    @every_database
    def test_it_is_not_revoked_while_its_correction_waits(
        self, connected: Connected
    ) -> None:
        """The corrected badge would stay in force, and nobody would be told."""
        host, credly, _ = connected
        row = issued(host)
        new_id = correct(host, row, last_name="Other")
        assert revoke(host, row) is None

        _, new = host.rows()
        assert (new.id, revoke(host, new)) == (new_id, "drop")
        assert revoke(host, row) == "revoke"
        host.drain()
        assert states(host) == [("revoked", None), ("cancelled", None)]
        assert [badge["state"] for badge in credly.badges] == ["revoked"]

    def test_a_badge_replaced_meanwhile_is_not_revoked(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        row = issued(host)
        assert row.badge_id is not None
        credly.replace_badge(row.badge_id)
        revoke(host, row)
        host.drain()

        assert states(host) == [("replaced", None)]
        assert credly.count("revoke") == 0

    def test_a_completion_adds_nothing(self, connected: Connected) -> None:
        host, credly, _ = connected
        row = issued(host)
        correct(host, row, last_name="Other")
        host.complete()
        host.drain()
        host.complete()
        host.drain()

        assert states(host) == [("replaced", None), ("issued", None)]


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("what", ["correct", "issue again"])
def test_a_completion_that_the_host_commits_at_that_moment(
    host: Host, credly: CredlySimulator, what: str
) -> None:
    found: list[int | None] = []

    def act(row: Issuance) -> None:
        with host.app.app_context():
            if what == "correct":
                found.append(correct(host, row, last_name="Roe"))
            else:
                found.append(issue_again(host, row, reason=REASON, tell=False))

    with host.app.app_context():
        connect(host, credly)
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        host.db.session.rollback()
        accounts.change_options(host.state, mapping.id, Options(again="renew"))
        row = issued(host, completed_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
        host.db.session.rollback()

        with host.state.engine.connect() as connection:
            completion = Completion(
                member=a_member(),
                kind="course",
                course_id="py-101",
                completed_at=dt.datetime(2026, 6, 1, tzinfo=dt.UTC),
            )
            assert insert(connection, completion)
            thread = threading.Thread(target=act, args=(row,))
            thread.start()
            thread.join(0.5)  # it waits for the number of the row
            assert thread.is_alive()
            connection.commit()

        thread.join(30)
        # The next row is the completion's, and the badge is what that replaces.
        assert found == [None]
        assert states(host) == [("issued", None), ("none", "issue")]
        host.drain()
        assert states(host) == [("replaced", None), ("issued", None)]


class TestCommands:
    WHY = ("--reason", REASON, "--silent")

    def run(self, host: Host, *words: str) -> tuple[int, str]:
        result = host.app.test_cli_runner().invoke(args=["credly", *words])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, result.output

    def test_revoke(self, connected: Connected) -> None:
        host, credly, _ = connected
        row = issued(host)
        host.complete("43")
        waiting = host.rows()[1]
        ids = (str(row.id), str(waiting.id))

        code, output = self.run(host, "revoke", *ids, *self.WHY)
        assert (code, output.splitlines()[0]) == (
            *(0, "1 queued for revocation, 1 skipped."),
        )
        host.drain()
        assert states(host) == [("revoked", None), ("cancelled", None)]
        assert last_change(credly, row) == ("revoked", "request", REASON, False)
        code, output = self.run(host, "revoke", *ids, *self.WHY)
        assert code == 1
        assert f"Badge {row.id} cannot be revoked" in output

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ((), "--tell or --silent"),
            (("--tell", "--silent", "--reason", REASON), "--tell or --silent"),
            (("--tell",), "--reason TEXT"),
            (("--tell", "--reason", "x"), "at least 3"),
            (("--tell", "--reason", "x" * 501), "to 500"),
            (("--silent", "--reason", "Ask ada@example.org"), "e-mail address from"),
        ],
    )
    def test_what_it_has_to_be_told(
        self, connected: Connected, words: tuple[str, ...], said: str
    ) -> None:
        host, _, _ = connected
        row = issued(host)
        code, output = self.run(host, "revoke", str(row.id), *words)

        assert (code, states(host)) == (2, [("issued", None)])
        assert said in output

    def test_an_unknown_number(self, connected: Connected) -> None:
        host, _, _ = connected
        row = issued(host)
        code, output = self.run(host, "revoke", str(row.id), "99", *self.WHY)

        assert (code, states(host)) == (1, [("issued", None)])
        assert "There is no badge 99." in output

    def test_reissue(self, make_connected: MakeConnected) -> None:
        def member(member_id: str) -> Member:
            return Member(member_id, "ada@example.com", "Ada", "Example")

        host, credly, _ = make_connected(member=member)
        row = issued(host)
        code, output = self.run(host, "reissue", str(row.id))
        assert (code, "is valid and is revoked first" in output) == (2, True)
        code, output = self.run(host, "reissue", str(row.id), *self.WHY)
        assert (code, f"as badge {row.id + 1}." in output) == (0, True)
        host.drain(2)

        assert states(host) == [("revoked", None), ("issued", None)]
        assert credly.badges[1]["recipient_email"] == "ada@example.com"
        code, output = self.run(host, "reissue", str(row.id))
        assert (code, "there is a later one" in output) == (1, True)

    @pytest.mark.parametrize("knows", [None, "nobody", "no address"])
    def test_reissue_to_nobody_leaves_the_badge_in_force(
        self, make_connected: MakeConnected, knows: str | None
    ) -> None:
        """The names are not kept for ever, and the host need not know them."""

        def member(member_id: str) -> Member | None:
            no_address = Member(member_id, " ", "Ada", "Example")
            return no_address if knows == "no address" else None

        given = {"member": member} if knows else {}
        host, credly, _ = make_connected(CREDLY_PERSONAL_DATA_DAYS=30, **given)
        row = issued(host)
        past = row.recorded_at - dt.timedelta(days=31)
        host.db.session.execute(sa.update(Issuance).values(settled_at=past))
        host.db.session.commit()
        retention.prune(host.state.engine, host.state.settings)
        assert host.row().email == ""

        code, output = self.run(host, "reissue", str(row.id), *self.WHY)
        host.drain(2)
        assert (code, "has no e-mail address" in output) == (1, True)
        assert states(host) == [("issued", None)]
        assert credly.count("revoke") == 0
