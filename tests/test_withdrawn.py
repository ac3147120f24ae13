"""The host says that a completion was withdrawn."""

from __future__ import annotations

import datetime as dt
import itertools
import logging
import random
import threading
import typing as t

import pytest
import sqlalchemy as sa
from conftest import a_member
from conftest import connect
from conftest import Connected
from conftest import COURSES
from conftest import every_database
from conftest import Host
from conftest import in_threads
from conftest import MakeHost

from flask_credly import accounts
from flask_credly import completion_withdrawn
from flask_credly.credly import Client
from flask_credly.issuing import periodic
from flask_credly.issuing.poll import poll_now
from flask_credly.ledger import actions
from flask_credly.ledger import claim
from flask_credly.ledger import gates
from flask_credly.ledger import issuances
from flask_credly.ledger import privacy
from flask_credly.ledger import retrying
from flask_credly.ledger import settle
from flask_credly.ledger import withdrawals
from flask_credly.ledger.reasons import explain
from flask_credly.models import Account
from flask_credly.models import AuditEntry
from flask_credly.models import Issuance
from flask_credly.models import Mapping
from flask_credly.options import Options
from flask_credly.options import RENEW
from flask_credly.testing import CredlySimulator
from tests.support.pages import Browser
from tests.support.pages import browser as browser
from tests.support.pages import mapped as mapped
from tests.support.pages import text_of
from tests.support.pages import WINDOW
from tests.support.sites import make_site

START = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
Mapped = tuple[Browser, Connected, int]

HOUR = dt.timedelta(hours=1)
DAY = dt.timedelta(days=1)


def choose(host: Host, withdrawn: str, **other: t.Any) -> None:
    """Say what becomes of the badge of a withdrawn completion."""
    host.db.session.rollback()
    (mapping,) = accounts.list_mappings(host.db.session, "default")
    accounts.change_options(
        host.state, mapping.id, Options(withdrawn=withdrawn, **other)
    )


def withdraw(host: Host, member_id: str = "42", **given: t.Any) -> None:
    completion_withdrawn.send(
        host.app, **{"member_id": member_id, "course_id": "py-101"} | given
    )


def complete(host: Host, at: dt.datetime = START, member_id: str = "42") -> None:
    host.complete(member_id, completed_at=at)


def take(host: Host) -> claim.Row:
    """Take the row, as a worker does that dies then."""
    gate = gates.read(host.state.engine, "default")
    assert gate is not None
    (row,) = claim.claim(host.state.engine, gate, limit=1, lease_seconds=60)
    return row


def states(host: Host) -> list[tuple[str, str | None, str | None]]:
    return [(row.state, row.action, row.reason) for row in host.rows()]


def change(host: Host, **values: t.Any) -> None:
    host.db.session.rollback()
    host.db.session.execute(sa.update(Issuance).values(**values))
    host.db.session.commit()


CANCELLED = ("cancelled", None, "withdrawn")

NOTED = ("cancelled", None, "withdrawn first")

each_choice = pytest.mark.parametrize("choice", ["", "tell", "silent"])


class TestNotSentYet:
    @every_database
    def test_it_is_cancelled_whatever_the_mapping_says(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        for number, choice in enumerate(("", "tell", "silent"), 1):
            choose(host, choice)
            complete(host, member_id=str(number))
            withdraw(host, str(number), withdrawn_at=START + DAY)
            row = host.rows()[-1]

            assert states(host) == [CANCELLED] * number
            assert row.withdrawn_at == START + DAY
            assert (row.due_at, row.settled_at is None) == (None, False)
            assert (row.revocation_reason, row.tell) == (None, None)

        host.drain()
        assert credly.badges == []

    @every_database
    def test_only_a_later_completion_brings_it_back(self, connected: Connected) -> None:
        host, _, _ = connected
        complete(host)
        withdraw(host, withdrawn_at=START + DAY)

        for at in (START, START + HOUR, START + DAY):
            complete(host, at)
            assert states(host) == [CANCELLED], at

        complete(host, START + 2 * DAY)
        row = host.row()
        assert (row.state, row.action, row.reason) == ("none", "issue", None)
        assert (row.completed_at, row.withdrawn_at) == (START + 2 * DAY, None)

        # As before: a late message.
        withdraw(host, withdrawn_at=START + DAY)
        host.drain()
        assert states(host) == [("issued", None, None)]

    @every_database
    @pytest.mark.parametrize("again", ["renew", "each"])
    def test_an_older_completion_is_no_further_one(
        self, host: Host, credly: CredlySimulator, again: str
    ) -> None:
        with host.app.app_context():
            connect(host, credly, allow_duplicate_badges=True)
            choose(host, "silent", again=again)
            complete(host)
            withdraw(host, withdrawn_at=START + 100 * DAY)
            complete(host, START + 50 * DAY)
            assert states(host) == [CANCELLED]
            complete(host, START + 101 * DAY)
            assert states(host) == [CANCELLED, ("none", "issue", None)]
            host.drain()
            withdraw(host, withdrawn_at=START + 200 * DAY)
            complete(host, START + 150 * DAY)
            assert len(host.rows()) == 2
            host.drain()
            assert states(host) == [CANCELLED, ("revoked", None, None)]

    def test_a_failed_one_is_cancelled(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.fail("issue", times=2, status=422)
        complete(host)
        host.drain()
        assert host.row().state == "failed"
        withdraw(host)
        assert states(host) == [CANCELLED]
        assert host.row().error is None

    @every_database
    def test_it_is_cancelled_though_its_course_is_not_mapped_now(
        self, connected: Connected
    ) -> None:
        host, credly, template_id = connected
        complete(host)
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        host.db.session.rollback()
        accounts.remove_mapping(host.state, mapping.id)
        withdraw(host, withdrawn_at=START + DAY)
        assert states(host) == [CANCELLED]
        accounts.add_mapping(host.state, COURSES[0], template_id)
        host.drain()
        assert credly.badges == []

    def test_what_an_admin_took_back_stays_so(self, connected: Connected) -> None:
        host, _, _ = connected
        complete(host)
        actions.revoke(
            host.state.engine, "default", host.row().id, reason="By mistake.", tell=True
        )
        withdraw(host, withdrawn_at=START + DAY)
        complete(host, START + 2 * DAY)
        assert states(host) == [("cancelled", None, "dropped")]

    def test_what_was_cancelled_before_is_not_brought_back_by_an_older_one(
        self, connected: Connected
    ) -> None:
        host, _, _ = connected
        complete(host)
        change(host, state="cancelled", action=None, due_at=None, reason="unmapped")
        withdraw(host, withdrawn_at=START + DAY)
        complete(host, START + HOUR)
        assert states(host) == [CANCELLED]


class TestOnItsWay:
    @every_database
    @pytest.mark.parametrize("choice", ["", "silent"])
    def test_it_is_revoked_once_it_was_issued(
        self,
        host: Host,
        credly: CredlySimulator,
        choice: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        issue = Client.issue

        def issue_and_withdraw(*args: t.Any, **given: t.Any) -> t.Any:
            # Not before it: on a slow machine it would then come in time.
            answer = issue(*args, **given)
            withdraw(host)
            return answer

        with host.app.app_context():
            connect(host, credly)
            choose(host, choice)
            complete(host)
            monkeypatch.setattr(Client, "issue", issue_and_withdraw)
            host.drain()
            row = host.row()
            assert (row.state, row.withdrawn_at is None) == ("issued", False)

            if choice:
                assert states(host) == [("issued", "revoke", "withdrawn")]
                host.drain()
                assert states(host) == [("revoked", None, None)]
            else:
                assert states(host) == [("issued", None, None)]

    @every_database
    def test_a_leased_one_is_marked(self, connected: Connected) -> None:
        host, credly, _ = connected
        complete(host)
        row = take(host)
        withdraw(host)
        assert host.row().lease == row.lease
        assert states(host) == [("none", "issue", None)]

        # Its worker died, and had sent nothing.
        change(host, due_at=START)
        host.drain()
        assert states(host) == [CANCELLED]
        assert credly.badges == []

    @every_database
    @pytest.mark.parametrize("number", [1, 12])
    def test_one_that_a_worker_has_not_sent_yet_is_cancelled(
        self,
        host: Host,
        credly: CredlySimulator,
        number: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It may hold many, and send them one after the other."""
        begin = claim.begin

        def withdraw_and_begin(*given: t.Any, **named: t.Any) -> t.Any:
            withdraw(host)
            return begin(*given, **named)

        with host.app.app_context():
            connect(host, credly)
            complete(host)

            for each in range(100, 99 + number):
                host.complete(str(each))

            monkeypatch.setattr(claim, "begin", withdraw_and_begin)
            host.drain()
            assert states(host)[0] == CANCELLED
            assert len(credly.badges) == number - 1
            assert len(host.attempts()) == number - 1

    @every_database
    @pytest.mark.parametrize("late", [False, True])
    def test_undo_of_the_mappings_removal_does_not_bring_it_back(
        self, connected: Connected, late: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nor where it is withdrawn as the worker is about to cancel it."""
        host, credly, template_id = connected
        complete(host)
        row = take(host)
        (mapping,) = accounts.list_mappings(host.db.session, "default")
        host.db.session.rollback()

        if not late:
            withdraw(host)

        accounts.remove_mapping(host.state, mapping.id)
        claim.release(host.state.engine, [row])
        cancel = settle.cancel_unmapped

        def withdraw_and_cancel(*given: t.Any) -> bool:
            withdraw(host)
            return cancel(*given)

        if late:
            monkeypatch.setattr(settle, "cancel_unmapped", withdraw_and_cancel)

        host.drain(2)
        accounts.add_mapping(host.state, COURSES[0], template_id, undo=True)
        host.drain(2)
        assert states(host) == [CANCELLED]
        assert credly.badges == []

    @pytest.mark.parametrize("booked", [True, False])
    def test_what_was_perhaps_issued_is_looked_up(
        self, connected: Connected, booked: bool
    ) -> None:
        host, credly, _ = connected
        choose(host, "silent")
        credly.fail("issue", status=500, after=booked)
        credly.fail("look-up", status=500)
        complete(host)
        host.drain()
        assert (host.row().action, host.row().outcome_unknown) == ("issue", True)
        withdraw(host)
        assert host.row().action == "issue"

        for _ in range(3):
            host.let_lists_catch_up()
            host.drain()

        found = [badge["state"] for badge in credly.badges]
        assert found == (["revoked"] if booked else [])
        assert host.row().state == ("revoked" if booked else "cancelled")

    def test_what_the_mapping_said_of_an_earlier_withdrawal_does_not_count(
        self, connected: Connected
    ) -> None:
        host, _, _ = connected
        choose(host, "silent")
        complete(host)

        take(host)
        withdraw(host, withdrawn_at=START + DAY)
        assert host.row().revocation_reason is not None
        change(host, due_at=START)
        host.drain()
        assert states(host) == [CANCELLED]
        issuances.retry(host.state.engine, "default", host.row().id)
        choose(host, "")
        take(host)
        withdraw(host, withdrawn_at=START + 2 * DAY)
        assert states(host) == [("none", "issue", None)]
        assert (host.row().revocation_reason, host.row().tell) == (None, None)


class TestIssued:
    @every_database
    @each_choice
    def test_the_mapping_says_what_becomes_of_it(
        self, connected: Connected, choice: str
    ) -> None:
        host, credly, _ = connected
        complete(host)
        host.drain()
        choose(host, choice)
        withdraw(host)

        if not choice:
            assert states(host) == [("issued", None, None)]
            assert host.row().withdrawn_at is None
            return

        assert states(host) == [("issued", "revoke", "withdrawn")]
        assert host.row().due_at is None
        host.drain()
        row = host.row()
        assert (row.state, row.action, row.reason) == ("revoked", None, None)
        last = credly.history(t.cast(str, row.badge_id))[-1]
        assert (last.reason, last.told) == (
            *("The completion was withdrawn.", choice == "tell"),
        )
        entry = host.db.session.scalars(
            sa.select(AuditEntry).where(AuditEntry.action == "revoke")
        ).one()
        assert (entry.actor, entry.target) == ("worker", str(row.id))

    @every_database
    def test_one_that_is_older_or_known_changes_nothing(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        choose(host, "silent")
        complete(host)
        host.drain()
        withdraw(host, withdrawn_at=START - HOUR)
        assert states(host) == [("issued", None, None)]
        withdraw(host, withdrawn_at=START)
        withdraw(host, withdrawn_at=START)
        host.drain()
        withdraw(host, withdrawn_at=START)
        host.drain()
        assert states(host) == [("revoked", None, None)]
        assert credly.count("revoke") == 1

    @every_database
    def test_of_one_that_an_admin_has_revoked_it_is_noted(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        choose(host, "silent")
        complete(host)
        host.drain()
        row_id = host.row().id
        actions.revoke(
            host.state.engine, "default", row_id, reason="By hand.", tell=True
        )
        before = host.row().due_at
        withdraw(host)
        row = host.row()
        assert (row.state, row.action, row.reason) == ("issued", "revoke", None)
        assert (row.revocation_reason, row.tell) == ("By hand.", True)
        assert row.due_at == before is not None
        assert row.withdrawn_at is not None

        host.drain()
        row = host.row()
        assert (row.state, row.action) == ("revoked", None)
        assert credly.history(t.cast(str, row.badge_id))[-1].reason == "By hand."
        assert credly.count("revoke") == 1

    def test_nothing_is_done_where_nothing_is_meant(self, connected: Connected) -> None:
        host, _, _ = connected
        choose(host, "silent")
        complete(host)
        host.drain()
        withdraw(host, course_id="js-101")
        withdraw(host, kind="learning_path")
        assert states(host) == [("issued", None, None)]

        change(host, test=True)
        withdraw(host)
        assert states(host) == [("issued", None, None)]
        change(host, test=False)

        (mapping,) = accounts.list_mappings(host.db.session, "default")
        host.db.session.rollback()
        accounts.remove_mapping(host.state, mapping.id)
        withdraw(host)
        assert states(host) == [("issued", None, None)]

    @every_database
    def test_one_that_is_known_spares_what_was_issued_again_since(
        self, connected: Connected
    ) -> None:
        host, _, _ = connected
        choose(host, "silent")
        complete(host)
        host.drain()
        withdraw(host, withdrawn_at=START + DAY)
        host.drain()
        row = host.row()
        assert row.state == "revoked"
        actions.issue_again(
            host.state.engine,
            "default",
            row.id,
            email=row.email,
            first_name=row.first_name,
            last_name=row.last_name,
        )

        for at in (START + HOUR, START + DAY):
            withdraw(host, withdrawn_at=at)
            host.drain()
            assert [row.state for row in host.rows()] == ["revoked", "issued"]

        withdraw(host, withdrawn_at=START + 2 * DAY)
        host.drain()
        assert [row.state for row in host.rows()] == ["revoked", "revoked"]

    @every_database
    def test_the_last_of_several_is_meant(
        self, host: Host, credly: CredlySimulator
    ) -> None:
        credly.badges_allowed = 2

        with host.app.app_context():
            connect(host, credly, allow_duplicate_badges=True)
            choose(host, "silent", again="each")
            complete(host)
            complete(host, START + 10 * DAY)
            host.drain()
            withdraw(host, withdrawn_at=START + 5 * DAY)
            assert [row.action for row in host.rows()] == [None, None]
            withdraw(host, withdrawn_at=START + 20 * DAY)
            withdraw(host, withdrawn_at=START + 20 * DAY)
            host.drain()
            assert [row.state for row in host.rows()] == ["issued", "revoked"]
            withdraw(host, withdrawn_at=START + 30 * DAY)
            host.drain()
            assert [row.state for row in host.rows()] == ["issued", "revoked"]

    @every_database
    def test_a_correction_is_of_the_same_completion(self, connected: Connected) -> None:
        host, credly, template_id = connected
        choose(host, "silent")
        complete(host)
        host.drain()
        actions.correct(
            *(host.state.engine, "default", host.row().id),
            first_name="Grace",
            last_name="Example",
            completed_at=START,
            template_id=template_id,
        )
        withdraw(host)
        host.drain()
        assert [row.state for row in host.rows()] == ["revoked", "cancelled"]
        assert [badge["state"] for badge in credly.badges] == ["revoked"]

    def test_a_withdrawn_badge_stays_revoked(self, connected: Connected) -> None:
        host, credly, _ = connected
        choose(host, "silent")
        complete(host)
        host.drain()
        withdraw(host, withdrawn_at=START + DAY)
        host.drain()
        complete(host, START + 2 * DAY)
        host.drain()
        assert states(host) == [("revoked", None, None)]
        assert len(credly.badges) == 1

    def test_one_that_was_erased_is_left_alone(self, connected: Connected) -> None:
        host, _, _ = connected
        choose(host, "silent")
        complete(host)
        host.drain()
        withdraw(host)
        privacy.erase(host.state.engine, "default", "42")
        withdraw(host, withdrawn_at=dt.datetime.now(dt.UTC))
        host.drain()
        assert [row.action for row in host.rows()] == [None, None]
        # Whose badge that was is not known any more.
        assert states(host)[1:] == [NOTED]

    def test_remove_drops_it(self, connected: Connected) -> None:
        host, credly, _ = connected
        choose(host, "silent")
        complete(host)
        host.drain()
        withdraw(host)
        accounts.remove(host.state)
        host.drain()
        assert states(host) == [("issued", None, "removed")]
        assert credly.count("revoke") == 0


@every_database
class TestBeforeTheCompletion:
    """The withdrawal arrives first."""

    def test_the_completion_is_not_issued_and_a_later_one_is(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        withdraw(host, withdrawn_at=START)
        assert states(host) == [NOTED]
        complete(host, START - HOUR)
        complete(host, START)
        host.drain()
        assert (states(host), credly.badges) == ([NOTED], [])
        assert explain(host.row()) == (
            "The completion was withdrawn before it came in."
        )

        complete(host, START + HOUR)
        host.drain()
        row = host.row()
        assert (row.state, row.withdrawn_at) == ("issued", None)
        assert (row.email, row.completed_at) == (a_member("42").email, START + HOUR)
        assert len(credly.badges) == 1

    def test_where_a_further_completion_renews_the_badge(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        choose(host, "", again=RENEW)
        withdraw(host, withdrawn_at=START)
        host.complete(completed_at=START - HOUR, completion_id="a")
        complete(host, START)
        host.drain()
        assert (states(host), credly.badges) == ([NOTED], [])

        host.complete(completed_at=START + 60 * DAY, completion_id="b")
        host.drain()
        assert [row.state for row in host.rows()][-1] == "issued"
        assert len(credly.badges) == 1

    def test_the_latest_withdrawal_counts(self, connected: Connected) -> None:
        host, _, _ = connected
        withdraw(host, withdrawn_at=START)
        withdraw(host, withdrawn_at=START + DAY)
        withdraw(host, withdrawn_at=START - DAY)
        complete(host, START + HOUR)
        assert states(host) == [NOTED]
        assert host.row().withdrawn_at == START + DAY

    @pytest.mark.parametrize("commits", [True, False])
    def test_it_is_kept_or_taken_back_with_the_hosts_transaction(
        self, connected: Connected, commits: bool
    ) -> None:
        host, _, _ = connected
        session = host.db.session
        session.rollback()
        session.execute(sa.update(Mapping).values(course_title="Python"))
        withdraw(host)
        session.commit() if commits else session.rollback()
        assert states(host) == [NOTED] * commits

    def test_a_completion_that_is_being_recorded_at_that_moment_is_withdrawn(
        self, host: Host, credly: CredlySimulator, database: str
    ) -> None:
        if "sqlite" in database:
            pytest.skip("one writes at a time there")

        with host.app.app_context():
            connect(host, credly)
            session = host.db.session
            session.rollback()
            session.execute(sa.update(Mapping).values(course_title="Python"))
            complete(host)
            other = threading.Thread(target=withdraw, args=[host])
            other.start()
            other.join(0.5)
            assert other.is_alive()
            session.commit()
            other.join()
            assert states(host) == [CANCELLED]

    def test_it_is_of_its_course_member_and_community_alone(
        self, connected: Connected
    ) -> None:
        host, _, _ = connected
        withdraw(host, course_id="js-101")
        assert host.rows() == []
        withdraw(host)
        complete(host, member_id="43")
        assert states(host) == [NOTED, ("none", "issue", None)]

    def test_nobody_tries_it_by_hand(self, connected: Connected) -> None:
        host, _, _ = connected
        withdraw(host)
        assert issuances.retry(host.state.engine, "default", host.row().id) == 0
        assert retrying.retry_all(host.state.engine, "default").number == 0
        assert states(host) == [NOTED]

    def test_it_is_forgotten_after_30_days_and_erased_with_its_member(
        self, connected: Connected
    ) -> None:
        host, _, _ = connected
        now = dt.datetime.now(dt.UTC)
        withdraw(host, "1", withdrawn_at=now - 31 * DAY)
        withdraw(host, "2", withdrawn_at=now - 29 * DAY)
        change(host, recorded_at=Issuance.withdrawn_at)
        said = host.app.test_cli_runner().invoke(args=["credly", "prune"])
        assert "Withdrawals without a completion deleted" in said.output
        assert [row.member_id for row in host.rows()] == ["2"]

        found = privacy.export(host.state.engine, "default", "2")
        assert "2" in str(found)
        erased = privacy.erase(host.state.engine, "default", "2")
        assert (erased.badges, erased.deleted) == (0, 1)
        assert host.rows() == []

    def test_one_of_long_ago_waits_as_long(self, connected: Connected) -> None:
        """The host may catch up, in any order."""
        host, credly, _ = connected
        now = dt.datetime.now(dt.UTC)
        withdraw(host, withdrawn_at=now - 60 * DAY)
        host.app.test_cli_runner().invoke(args=["credly", "prune"])
        complete(host, now - 61 * DAY)
        host.drain()
        assert (states(host), credly.badges) == ([NOTED], [])

        # It was withdrawn once more, not long ago.
        change(host, recorded_at=now - 40 * DAY, withdrawn_at=now - 29 * DAY)
        host.app.test_cli_runner().invoke(args=["credly", "prune"])
        assert states(host) == [NOTED]
        change(host, withdrawn_at=now - 31 * DAY)
        host.app.test_cli_runner().invoke(args=["credly", "prune"])
        assert host.rows() == []


def in_another_thread(host: Host, work: t.Callable[[], object]) -> None:
    """Do something while the host's transaction is open."""

    def run() -> None:
        with host.app.app_context():
            work()

    other = threading.Thread(target=run)
    other.start()
    other.join(60)
    assert not other.is_alive()


@every_database
class TestAFurtherCompletion:
    """It is recorded, or withdrawn, in a transaction that is open meanwhile."""

    @pytest.fixture(params=["renew", "each"])
    def further(
        self, host: Host, credly: CredlySimulator, request: pytest.FixtureRequest
    ) -> t.Iterator[Host]:
        credly.badges_allowed = 9

        with host.app.app_context():
            connect(host, credly, allow_duplicate_badges=True)
            choose(host, "silent", again=request.param)
            complete(host)
            host.drain()
            yield host

    def complete_and_withdraw(
        self, host: Host, first: str, meanwhile: t.Callable[[], object] | None = None
    ) -> None:
        """Do the second before the first is committed."""
        if host.state.engine.dialect.name == "sqlite":
            pytest.skip("one writes at a time there")

        host.db.session.rollback()
        session = host.db.session()

        def complete(**given: t.Any) -> None:
            host.complete(completed_at=START + 40 * DAY, **given)

        def take_back(**given: t.Any) -> None:
            withdraw(host, withdrawn_at=START + 50 * DAY, **given)

        both = complete, take_back
        one, other = both if first == "completion" else both[::-1]
        one(session=session)
        in_another_thread(host, other)

        if meanwhile is not None:
            in_another_thread(host, meanwhile)

        session.commit()

    @pytest.mark.parametrize("first", ["completion", "withdrawal"])
    def test_it_is_the_one_that_was_withdrawn(
        self, further: Host, credly: CredlySimulator, first: str
    ) -> None:
        self.complete_and_withdraw(further, first)
        further.drain(2)
        assert states(further) == [("issued", None, None), CANCELLED]
        assert [badge["state"] for badge in credly.badges] == ["pending"]
        assert [row.withdrawn_at for row in further.rows()] == [
            *(None, START + 50 * DAY),
        ]

        # The same once more; another one that is not later; and one that is.
        withdraw(further, withdrawn_at=START + 50 * DAY)
        complete(further, START + 40 * DAY)
        further.drain(2)
        assert states(further) == [("issued", None, None), CANCELLED]
        complete(further, START + 90 * DAY)
        further.drain()
        assert states(further)[-1] == ("issued", None, None)

    def test_it_is_not_issued_where_another_was_revoked_for_it(
        self, further: Host, credly: CredlySimulator
    ) -> None:
        self.complete_and_withdraw(further, "completion", lambda: further.drain(2))
        further.drain()
        assert states(further) == [("revoked", None, None), CANCELLED]
        assert [badge["state"] for badge in credly.badges] == ["revoked"]

    @pytest.mark.parametrize("revoked", [True, False])
    def test_who_tries_it_all_the_same_knows(
        self, further: Host, credly: CredlySimulator, revoked: bool
    ) -> None:
        self.complete_and_withdraw(
            further, "completion", (lambda: further.drain(2)) if revoked else None
        )
        further.drain()
        row = further.rows()[-1]
        further.db.session.rollback()
        assert issuances.retry(further.state.engine, "default", row.id) == 1
        further.drain()
        assert states(further)[-1] == ("issued", None, None)

    def test_what_is_issued_again_is_issued(
        self, further: Host, credly: CredlySimulator
    ) -> None:
        self.complete_and_withdraw(further, "completion", lambda: further.drain(2))
        further.drain()
        row = further.rows()[0]
        further.db.session.rollback()
        assert actions.issue_again(
            *(further.state.engine, "default", row.id),
            email=row.email,
            first_name=row.first_name,
            last_name=row.last_name,
        )
        further.drain()
        assert states(further)[-1] == ("issued", None, None)

    # A renewal would wait for the commit.
    @pytest.mark.parametrize("further", ["each"], indirect=True)
    def test_one_that_was_issued_meanwhile_is_revoked(
        self, further: Host, credly: CredlySimulator
    ) -> None:
        def drain() -> None:
            further.drain(2)
            assert len(credly.badges) == 2

        self.complete_and_withdraw(further, "withdrawal", drain)
        further.drain(2)
        assert [row.state for row in further.rows()] == ["issued", "revoked"]

    def test_what_was_cancelled_before_is_tried_by_who_knows(
        self, further: Host
    ) -> None:
        complete(further, START + 40 * DAY)
        actions.revoke(
            *(further.state.engine, "default", further.rows()[-1].id),
            reason="By mistake.",
            tell=True,
        )
        withdraw(further, withdrawn_at=START + 50 * DAY)
        further.drain()
        assert [row.state for row in further.rows()] == ["revoked", "cancelled"]
        row = further.rows()[-1]
        further.db.session.rollback()
        assert issuances.retry(further.state.engine, "default", row.id) == 1
        further.drain()
        assert states(further)[-1] == ("issued", None, None)


class TestTheHostsTransaction:
    @every_database
    @pytest.mark.parametrize("commits", [True, False])
    def test_it_is_kept_or_taken_back_with_it(
        self, connected: Connected, commits: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        host, _, _ = connected
        complete(host)
        session = host.db.session
        session.rollback()
        # Something of the host's.
        session.execute(sa.update(Mapping).values(course_title="Python"))
        withdraw(host)
        session.commit() if commits else session.rollback()
        row = host.row()

        if commits:
            assert states(host) == [CANCELLED]
        else:
            assert (row.state, row.withdrawn_at) == ("none", None)
            events = [getattr(each, "credly_event", "") for each in caplog.records]
            assert "withdrawal_taken_back" in events

    @every_database
    def test_a_savepoint_takes_it_back(self, connected: Connected) -> None:
        host, _, _ = connected
        complete(host)
        session = host.db.session
        session.rollback()
        session.execute(sa.update(Mapping).values(course_title="Python"))
        savepoint = session.begin_nested()
        withdraw(host)
        savepoint.rollback()
        session.commit()
        assert [row.state for row in host.rows()] == ["none"]

    @every_database
    def test_without_one_it_is_durable_at_return(self, connected: Connected) -> None:
        host, _, _ = connected
        complete(host)
        host.db.session.rollback()
        withdraw(host)

        with host.state.engine.connect() as other:
            assert other.scalar(sa.select(Issuance.state)) == "cancelled"

    @every_database
    def test_a_completion_and_its_withdrawal_may_be_sent_in_one(
        self, connected: Connected
    ) -> None:
        host, _, _ = connected
        session = host.db.session
        session.rollback()
        session.execute(sa.update(Mapping).values(course_title="Python"))
        complete(host)
        withdraw(host)
        session.commit()
        assert states(host) == [CANCELLED]

    @pytest.mark.parametrize(
        "wrong",
        [
            {"course_id": None},
            {"member_id": None},
            {"kind": "lesson"},
            {"withdrawn_at": "some day"},
            {"session": "none"},
            {"tenant": "acme"},
        ],
    )
    def test_what_is_wrong_breaks_nothing(
        self,
        connected: Connected,
        wrong: dict[str, t.Any],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        host, _, _ = connected
        complete(host)
        withdraw(host, **wrong)
        assert host.row().state == "none"
        (record,) = [
            each
            for each in caplog.records
            if getattr(each, "credly_event", "") == "withdrawal_lost"
        ]
        assert record.levelno == logging.ERROR

    def test_what_the_host_throws_in_rises(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, _, _ = connected
        complete(host)

        def interrupt(*args: object, **given: object) -> t.NoReturn:
            raise KeyboardInterrupt

        monkeypatch.setattr("flask_credly.ledger.withdrawals.withdraw", interrupt)

        with pytest.raises(KeyboardInterrupt):
            withdraw(host)

    def test_where_it_cannot_be_written_that_is_said(
        self,
        connected: Connected,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        host, _, _ = connected

        def fail(*args: object, **given: object) -> t.NoReturn:
            raise sa.exc.OperationalError("UPDATE", {}, Exception("the disk is full"))

        monkeypatch.setattr("flask_credly.ledger.withdrawals.withdraw", fail)
        withdraw(host, withdrawn_at=START)
        (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
        assert (
            record.__dict__
            | {
                "credly_event": "withdrawal_lost",
                "credly_member": "42",
                "credly_kind": "course",
                "credly_course": "py-101",
            }
            == record.__dict__
        )
        assert "2026-03-01" in record.getMessage()


def several(host: Host, number: int, first: int = 1) -> None:
    """Issue badges, and withdraw the completions."""
    ids = [str(each) for each in range(first, first + number)]

    for each in ids:
        complete(host, member_id=each)

    host.drain()

    for each in ids:
        withdraw(host, each)


def counted(host: Host) -> dict[tuple[str, str | None, str | None], int]:
    found = sorted(states(host), key=str)
    return {key: len([*rows]) for key, rows in itertools.groupby(found)}


REVOKED = ("revoked", None, None)
WAITS = ("issued", "revoke", "awaits approval")


class TestManyAtOnce:
    def test_of_a_few_each_badge_says_who_has_it_revoked(self, mapped: Mapped) -> None:
        browser, (host, _, _), _ = mapped
        choose(host, "silent")
        several(host, 2)
        host.drain()
        assert counted(host) == {REVOKED: 2}

        for row in host.rows():
            text = text_of(browser.get(f"{WINDOW}/badges/{row.id}"))
            assert f"Revoke badge {row.id} Worker" in " ".join(text.split())

    @every_database
    def test_more_than_25_wait_for_a_person(
        self, connected: Connected, caplog: pytest.LogCaptureFixture
    ) -> None:
        host, _, _ = connected
        choose(host, "silent")
        several(host, 31)
        host.drain(2)
        assert counted(host) == {WAITS: 31}
        assert withdrawals.count(host.db.session, "default") == 31
        (record,) = [
            each
            for each in caplog.records
            if getattr(each, "credly_event", "") == "withdrawals_wait"
        ]
        assert record.__dict__["credly_count"] == 31
        host.db.session.rollback()
        engine = host.state.engine

        assert withdrawals.decide(engine, "default", 30, revoke=True) is None
        assert withdrawals.decide(engine, "default", 31, revoke=True, by="Ada")
        host.drain()
        assert counted(host) == {REVOKED: 31}
        entry = host.db.session.scalars(
            sa.select(AuditEntry).where(AuditEntry.action == "revoke withdrawn")
        ).one()
        assert (entry.actor, entry.target) == ("Ada", "31")

    @every_database
    def test_they_may_be_kept(self, connected: Connected) -> None:
        host, _, _ = connected
        choose(host, "tell")
        several(host, 26)
        host.drain()
        host.db.session.rollback()
        assert withdrawals.decide(host.state.engine, "default", 26, revoke=False)
        assert counted(host) == {("issued", None, None): 26}
        assert {(row.tell, row.revocation_reason) for row in host.rows()} == {
            (None, None)
        }
        # The same message once more.
        (at,) = {row.withdrawn_at for row in host.rows() if row.member_id == "1"}
        withdraw(host, "1", withdrawn_at=at)
        host.drain()
        assert counted(host) == {("issued", None, None): 26}
        withdraw(host, "1")
        host.drain()
        assert counted(host) == {REVOKED: 1, ("issued", None, None): 25}

    @every_database
    def test_one_that_was_revoked_at_credly_waits_for_nobody(
        self, host: Host, credly: CredlySimulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(withdrawals, "MOST", 1)

        with host.app.app_context():
            connect(host, credly)
            choose(host, "silent")
            several(host, 2)
            host.drain()
            assert counted(host) == {WAITS: 2}
            badge_id = host.rows()[0].badge_id
            assert badge_id is not None
            credly.revoke_badge(badge_id)
            poll_now(host.state)
            assert counted(host) == {WAITS: 1, REVOKED: 1}
            host.db.session.rollback()
            assert withdrawals.count(host.db.session, "default") == 1

    def test_the_hour_is_counted(self, connected: Connected) -> None:
        host, _, _ = connected
        choose(host, "silent")
        several(host, 20)
        host.drain()
        several(host, 5, first=21)
        host.drain()
        assert counted(host) == {REVOKED: 25}
        several(host, 1, first=26)
        host.drain()
        assert counted(host) == {REVOKED: 25, WAITS: 1}

        host.db.session.execute(sa.update(Account).values(withdrawals_since=START))
        host.db.session.commit()
        # While one waits, the others do.
        several(host, 1, first=27)
        host.drain()
        assert counted(host) == {REVOKED: 25, WAITS: 2}
        host.db.session.rollback()
        withdrawals.decide(host.state.engine, "default", 2, revoke=False)
        several(host, 25, first=28)
        host.drain()
        assert counted(host) == {REVOKED: 50, ("issued", None, None): 2}

    @every_database
    def test_two_workers_release_them_once(self, connected: Connected) -> None:
        host, _, _ = connected
        choose(host, "silent")
        several(host, 20)
        host.drain()
        several(host, 5, first=21)
        engine = host.state.engine
        in_threads(*[lambda: withdrawals.release(engine, "default")] * 2)
        host.db.session.rollback()
        assert host.db.session.scalar(sa.select(Account.withdrawals)) == 25
        host.drain()
        assert counted(host) == {REVOKED: 25}

    def test_the_sweep_finds_what_nobody_rang_for(self, connected: Connected) -> None:
        host, _, _ = connected
        choose(host, "silent")
        complete(host)
        host.drain()
        assert not periodic.DRAIN.is_due(host.state)
        withdraw(host)
        assert periodic.DRAIN.is_due(host.state)
        host.drain()
        assert not periodic.DRAIN.is_due(host.state)

    def test_a_worker_may_die_between(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, _, _ = connected
        choose(host, "silent")
        several(host, 3)

        def die(*args: object, **given: object) -> t.NoReturn:
            raise SystemExit

        with monkeypatch.context() as patch:
            patch.setattr("flask_credly.jobs.drain_ledger", die)

            with pytest.raises(SystemExit):
                host.drain()

        host.drain()
        assert counted(host) == {REVOKED: 3}


@every_database
def test_each_community_has_its_own(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    site = make_site(make_host, credly, "acme", "beta")

    with site.host.app.app_context():
        for tenant in ("acme", "beta"):
            (mapping,) = accounts.list_mappings(site.host.db.session, tenant)
            site.host.db.session.rollback()
            accounts.change_options(
                site.of(tenant), mapping.id, Options(withdrawn="silent")
            )
            site.complete(tenant)

        site.host.drain()
        withdraw(site.host)  # of which community is not known
        withdraw(site.host, tenant="gamma")
        withdraw(site.host, tenant="beta")
        site.host.drain()
        assert (site.states("acme"), site.states("beta")) == (["issued"], ["revoked"])


@pytest.mark.slow
@every_database
@pytest.mark.parametrize("seed", range(4))
def test_any_order_ends_in_what_the_last_message_says(
    connected: Connected, seed: int
) -> None:
    host, credly, _ = connected
    made = random.Random(seed)
    choose(host, "silent")

    for member in map(str, range(8)):
        complete(host, START, member)
        late = [
            (made.choice((complete, withdraw)), START + each * HOUR)
            for each in made.sample(range(-3, 8), 4)
        ]
        late += made.choices(late, k=2)
        made.shuffle(late)
        at: dt.datetime | None = START
        withdrawn = START - 100 * DAY

        for send, when in late:
            if send is complete:
                complete(host, when, member)

                if at is None and when > withdrawn:
                    at = when
            else:
                withdraw(host, member, withdrawn_at=when)
                withdrawn = max(withdrawn, when) if at is None else withdrawn

                if at is not None and when >= at:
                    at, withdrawn = None, when

        row = host.rows()[-1]
        assert (row.state == "none", row.member_id) == (at is not None, member)

        if at is not None:
            assert row.completed_at == at

    host.drain()
    assert len(credly.badges) == sum(row.state == "issued" for row in host.rows())


class TestRetry:
    def test_who_tries_it_all_the_same_knows(self, connected: Connected) -> None:
        host, _, _ = connected
        complete(host)
        withdraw(host)
        issuances.retry(host.state.engine, "default", host.row().id)
        host.drain()
        assert states(host) == [("issued", None, None)]
        assert host.row().withdrawn_at is None

    def test_all_that_failed_are_not_tried(self, connected: Connected) -> None:
        host, _, _ = connected
        complete(host)
        withdraw(host)
        retrying.retry_all(host.state.engine, "default")
        assert states(host) == [CANCELLED]


class TestPage:
    PAGE = f"{WINDOW}/withdrawn"

    def wait(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(withdrawals, "MOST", 1)
        choose(host, "silent")
        several(host, 3)
        host.drain()
        assert counted(host) == {WAITS: 3}

    def test_an_admin_decides(
        self, mapped: Mapped, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        browser, connected, _ = mapped
        host = connected.host
        assert browser.get(self.PAGE).status_code == 303
        self.wait(host, monkeypatch)
        text = "3 completions were withdrawn"
        assert text in text_of(browser.get(f"{WINDOW}/badges"))
        page = browser.get(self.PAGE)
        assert text in text_of(page)

        # What is decided about can be looked at.
        links = [f'href="{WINDOW}/badges/{row.id}"' for row in host.rows()]
        last = max(row.id for row in host.rows())
        older = browser.get(f"{self.PAGE}?before={last}").text
        assert [each in page.text for each in links] == [True, True, True]
        assert [each in older for each in links] == [True, True, False]

        alone = browser.get(f"{WINDOW}/badges/{last}")
        words = " ".join(text_of(alone).split())
        assert "Status Issued The completion was withdrawn along with many" in words
        assert "Being revoked" not in words and "Revocation reason" not in words
        assert f'href="{self.PAGE}"' in alone.text
        assert 'hx-trigger="every' not in alone.text

        for number, shown in (
            *(("", "3"), ("2", "3"), ("2", "2"), ("", ""), ("x", "x")),
            ("9" * 30, "9" * 30),
        ):
            sent = {"decision": "revoke", "number": number, "shown": shown}
            answer = browser.post(self.PAGE, page=self.PAGE, **sent)
            assert answer.status_code == 422
            assert "<title>Error: " in answer.text
            assert counted(host) == {WAITS: 3}

        # As somebody may write it who is used to other digits, or copies a blank.
        sent = {"decision": "revoke", "number": "\u0663\u202f", "shown": "3"}
        answer = browser.post(self.PAGE, page=self.PAGE, **sent)
        assert answer.location == f"{WINDOW}/badges"
        page = text_of(browser.get(f"{WINDOW}/badges"))
        assert "3 badges are queued for revocation." in page and text not in page
        host.drain()
        assert counted(host) == {REVOKED: 3}

    def test_of_none_nothing_is_noted(self, mapped: Mapped) -> None:
        browser, connected, _ = mapped

        for decision in ("keep", "revoke"):
            sent = {"decision": decision, "number": "0", "shown": "0"}
            answer = browser.post(self.PAGE, page=WINDOW, **sent)
            assert answer.location == f"{WINDOW}/badges"

        query = sa.select(AuditEntry.action).where(
            AuditEntry.action.in_(("keep withdrawn", "revoke withdrawn"))
        )
        assert connected.host.db.session.scalars(query).all() == []

    def test_they_are_kept(
        self, mapped: Mapped, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        browser, connected, _ = mapped
        self.wait(connected.host, monkeypatch)
        sent = {"decision": "keep", "shown": "3"}
        browser.post(self.PAGE, page=self.PAGE, **sent)
        assert "3 badges are kept." in text_of(browser.get(f"{WINDOW}/badges"))
        connected.host.drain()
        assert counted(connected.host) == {("issued", None, None): 3}

    def test_only_who_may_revoke_decides(
        self,
        make_host: MakeHost,
        credly: CredlySimulator,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        host = make_host(may_revoke=lambda: False)

        with host.app.app_context():
            connect(host, credly)
            self.wait(host, monkeypatch)
            host.db.session.remove()

        browser = Browser(host.app)
        page = browser.get(f"{WINDOW}/badges").text
        assert "3 completions were withdrawn" in page
        assert "/withdrawn" not in page
        sent = {"decision": "keep", "shown": "3"}
        assert browser.get(self.PAGE).status_code == 403
        answer = browser.post(self.PAGE, page=f"{WINDOW}/connection", **sent)
        assert answer.status_code == 403
