"""Whose badge is it that Credly shows? Each case on every database, and any sequence of
what can happen to members, courses, addresses and badges.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import datetime as dt
import json
import threading
import typing as t

import pytest
import responses
import sqlalchemy as sa
from conftest import a_member
from conftest import connect
from conftest import connect_and_map
from conftest import Connected
from conftest import COURSES
from conftest import every_database
from conftest import Host
from conftest import MakeHost
from hypothesis import stateful
from hypothesis import strategies as st
from test_time import map_to

from flask_credly import accounts
from flask_credly import badge_issued
from flask_credly import Course
from flask_credly import doctor
from flask_credly import jobs
from flask_credly import Member
from flask_credly.accounts import restoring
from flask_credly.credly import Badge
from flask_credly.credly import Client
from flask_credly.issuing import backfill as past
from flask_credly.issuing import whose
from flask_credly.issuing.sender import earner_id
from flask_credly.ledger import backfills
from flask_credly.ledger import claim
from flask_credly.ledger import gates
from flask_credly.ledger import issuances
from flask_credly.ledger import overview
from flask_credly.ledger import retrying
from flask_credly.models import Base
from flask_credly.models import Installation
from flask_credly.models import Issuance
from flask_credly.testing import CredlySimulator
from flask_credly.testing.rules import Refusal
from tests.support.databases import open_again
from tests.support.world import run_machine
from tests.support.world import World
from tests.support.world import world as world

AT = dt.datetime(2026, 11, 1, 9, 30, tzinfo=dt.UTC)
ANNA = Member("A", "info@example.org", "Anna", "Alpha")
BERT = Member("B", "Info@Example.org", "Bert", "Beta")
CARL = Member("C", "carl@example.org", "Carl", "Gamma")
MANY_IDS = ["once 1", "once 2", "often 1", "often 2"]
MANY = [Course(id=each, title=each) for each in MANY_IDS]


@pytest.fixture
def lax(
    host: Host, credly: CredlySimulator, in_context: None
) -> cabc.Iterator[Connected]:
    """A host whose template may be issued to a member twice."""
    credly.posts_allowed = 99
    yield connect(host, credly, allow_duplicate_badges=True)
    credly.problems[:] = [
        each for each in credly.problems if not each.startswith("second badge")
    ]


def settle(host: Host, credly: CredlySimulator) -> None:
    for _ in range(12):
        host.drain()
        credly.advance(4000)
        host.make_due()


def second_course(connected: Connected) -> None:
    accounts.add_mapping(connected.host.state, COURSES[1], connected.template_id)


def heard(host: Host) -> list[dict[str, t.Any]]:
    signals: list[dict[str, t.Any]] = []

    def hear(app: object, **given: t.Any) -> None:
        signals.append(given)

    badge_issued.connect(hear, host.app, weak=False)
    return signals


def our_name(host: Host, member_id: str) -> str:
    key = host.db.session.scalars(sa.select(Installation.key)).one()
    return earner_id(key, member_id)


class TestABadgeBelongsToOneRow:
    @every_database
    def test_two_courses_lose_their_answers_and_one_was_made(
        self, lax: Connected
    ) -> None:
        host, credly, _ = lax
        second_course(lax)
        credly.fail("issue", how="reset", after=True)
        credly.fail("issue", how="reset")
        host.complete(completed_at=AT)
        host.complete(course_id="sql", completed_at=AT)
        settle(host, credly)

        one, two = host.rows()
        assert (one.state, two.state) == ("issued", "issued")
        assert {one.badge_id, two.badge_id} == {each["id"] for each in credly.badges}
        assert len(credly.badges) == 2

    @every_database
    def test_two_workers_find_the_same_badge_at_the_same_moment(
        self, lax: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both have looked before either has written it down."""
        host, credly, _ = lax
        second_course(lax)
        credly.fail("issue", how="reset", after=True)
        credly.fail("issue", how="reset")
        host.complete(completed_at=AT)
        host.complete(course_id="sql", completed_at=AT)
        host.drain()
        open_again(host)
        barrier = threading.Barrier(2, timeout=5)
        find = Client.find
        together: set[int] = set()

        def find_together(self: Client, *args: t.Any, **given: t.Any) -> list[Badge]:
            found = find(self, *args, **given)

            try:
                barrier.wait()
                together.add(threading.get_ident())
            except threading.BrokenBarrierError:
                pass  # a later look, alone

            return found

        with monkeypatch.context() as patched:
            patched.setattr(Client, "find", find_together)
            host.drain()

        barrier.abort()
        assert len(together) == 2
        settle(host, credly)
        one, two = host.rows()
        assert (one.state, two.state) == ("issued", "issued")
        assert {one.badge_id, two.badge_id} == {each["id"] for each in credly.badges}
        assert len(credly.badges) == 2

    @every_database
    def test_the_database_refuses_a_second_row(self, lax: Connected) -> None:
        host, _, _ = lax
        second_course(lax)
        host.complete()
        host.complete(course_id="sql")
        host.drain()
        badge_id = host.rows()[0].badge_id

        with pytest.raises(sa.exc.IntegrityError):
            host.db.session.execute(sa.update(Issuance).values(badge_id=badge_id))

        host.db.session.rollback()


class TestAnotherMembersBadge:
    @every_database
    def test_it_is_held_and_named_nowhere(self, connected: Connected) -> None:
        host, credly, _ = connected
        signals = heard(host)
        host.complete(member=ANNA)
        host.drain()
        host.complete(member=BERT)
        host.drain()
        anna, bert = host.rows()
        (badge,) = credly.badges

        assert (anna.state, anna.badge_id) == ("issued", badge["id"])
        assert (bert.state, bert.badge_id) == ("held", None)
        assert (
            bert.error
            == "Another member already has this badge under the same e-mail address."
        )
        assert [each["member_id"] for each in signals] == ["A"]
        assert badge["id"] not in str(host.credly.export_member("B"))
        assert host.credly.erase_member("B").at_credly == ()
        assert host.log() == []

    @pytest.mark.parametrize("lost", [1, 2])
    def test_also_after_lost_answers(self, connected: Connected, lost: int) -> None:
        host, credly, _ = connected
        host.complete(member=ANNA)
        host.drain()
        credly.fail("issue", how="reset", after=True, times=lost)
        host.complete(member=BERT)
        settle(host, credly)
        _, bert = host.rows()

        assert (bert.state, bert.badge_id) == ("held", None)
        assert (
            bert.error
            == "Another member already has this badge under the same e-mail address."
        )
        assert len(credly.badges) == 1

    def test_where_it_may_be_issued_twice_each_gets_one(self, lax: Connected) -> None:
        host, credly, _ = lax
        host.complete(member=ANNA)
        host.drain()
        credly.fail("issue", how="reset")
        host.complete(member=BERT)
        settle(host, credly)
        anna, bert = host.rows()

        assert [anna.badge_id, bert.badge_id] == [each["id"] for each in credly.badges]


class TestABadgeGivenByHand:
    @every_database
    @pytest.mark.parametrize("member_of_ours", [False, True])
    def test_last_years_is_not_taken_where_it_may_be_issued_twice(
        self, lax: Connected, member_of_ours: bool
    ) -> None:
        """Our request never arrived."""
        host, credly, template_id = lax
        name = our_name(host, "42") if member_of_ours else None
        by_hand = credly.award(
            template_id,
            "member-42@example.org",
            issuer_earner_id=name,
            issued_at=AT - dt.timedelta(days=365),
        )
        credly.fail("issue", how="reset")
        host.complete(completed_at=AT)
        settle(host, credly)

        assert host.row().state == "issued"
        assert host.row().badge_id == credly.badges[-1]["id"] != by_hand
        assert len(credly.badges) == 2

    def test_where_it_refuses_a_second_one_the_row_is_held(
        self, connected: Connected
    ) -> None:
        host, credly, template_id = connected
        credly.award(template_id, "MEMBER-42@example.org")
        host.complete()
        host.drain()

        assert (host.row().state, host.row().badge_id) == ("held", None)
        assert "It was issued in Credly, not by this site." in (host.row().error or "")
        assert (len(credly.badges), host.log()) == (1, [])

    def test_one_to_an_address_with_a_plus_is_not_in_the_way(
        self, connected: Connected
    ) -> None:
        host, credly, template_id = connected
        credly.award(template_id, "member-42+more@example.org")
        host.complete()
        host.drain()

        assert host.row().state == "issued"


class TestTheTimeThatWasSent:
    @every_database
    def test_a_second_request_sends_the_same(self, connected: Connected) -> None:
        """A completion that lies a little ahead has the time of its first request."""
        host, credly, _ = connected
        credly.fail("issue", status=500)
        host.complete(completed_at=dt.datetime.now(dt.UTC) + dt.timedelta(minutes=1))
        settle(host, credly)
        sent = [
            t.cast(dict[str, str], each.json)["issued_at"]
            for each in credly.received
            if each.kind == "issue"
        ]

        assert len(sent) == 2
        assert len(set(sent)) == 1
        assert host.row().issued_at is not None
        assert host.row().issued_at <= dt.datetime.now(dt.UTC)

    @every_database
    def test_a_lost_answer_is_found_by_it(self, lax: Connected) -> None:
        host, credly, _ = lax
        credly.fail("issue", how="reset", after=True)
        host.complete(completed_at=dt.datetime.now(dt.UTC) + dt.timedelta(minutes=1))
        settle(host, credly)

        assert host.row().badge_id == credly.badges[0]["id"]
        assert (len(credly.badges), credly.count("issue")) == (1, 1)

    def test_a_changed_address_changes_nothing(
        self, host: Host, credly: CredlySimulator, in_context: None
    ) -> None:
        connect(host, credly, allow_duplicate_badges=True)
        credly.fail("issue", how="reset", after=True)
        host.complete(completed_at=AT)
        host.drain()
        host.db.session.execute(sa.update(Issuance).values(email="new@example.org"))
        host.db.session.commit()
        settle(host, credly)

        assert host.row().badge_id == credly.badges[0]["id"]
        assert len(credly.badges) == 1

    def test_a_badge_that_was_revoked_since_was_issued(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        credly.fail("issue", how="reset", after=True)
        host.complete()
        host.drain()
        row = host.row()

        if row.state == "none":
            credly.revoke_badge(credly.badges[0]["id"])

        settle(host, credly)
        assert host.row().state == "issued"
        assert len(credly.badges) == 1


@pytest.mark.parametrize(
    ("shown", "result"),
    [
        ("2026-11-01T09:30:00.000Z", "same"),
        ("2026-11-01T09:30:00.999Z", "same"),
        ("2026-11-01T09:30:00Z", "same"),
        ("2026-11-01 09:30:00 +0000", "same"),
        ("2026-11-01 09:30:00 UTC", "same"),
        ("2026-11-01 04:30:00 -0500", "same"),
        ("2026-11-01T11:30:00+02:00", "same"),
        ("2026-11-01T09:30:00", "same"),
        ("2026-11-01", "same"),
        ("2026-11-01T00:00:00.000Z", "same"),
        ("2026-10-31T00:00:00-05:00", "same"),
        ("2026-11-01T09:30:02.000Z", "other"),
        ("2026-11-01T09:29:59.000Z", "other"),
        ("2025-11-01", "other"),
        ("2025-11-01T09:30:00.000Z", "other"),
        ("soon", "not said"),
        ("", "not said"),
        (None, "not said"),
    ],
)
def test_times_are_compared_as_credly_may_write_them(
    shown: str | None, result: str
) -> None:
    sent = AT.replace(microsecond=700_000).astimezone(
        dt.timezone(dt.timedelta(hours=5))
    )
    assert whose.compare_times(shown, sent) == result


class TestTheListLags:
    @every_database
    def test_our_own_retry_is_looked_for_until_its_id_is_known(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        credly.look_up_lag = 600
        credly.fail("issue", how="reset", after=True)
        host.complete()
        host.drain()

        for _ in range(3):
            host.make_due()
            host.drain()

        assert (host.row().state, host.row().badge_id) == ("none", None)
        credly.advance(600)
        host.make_due()
        host.drain()

        assert (host.row().state, host.row().error) == ("issued", None)
        assert host.row().badge_id == credly.badges[0]["id"]
        assert (credly.count("issue"), host.log()) == (2, [])

    def test_also_after_a_retry_by_hand(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.posts_allowed = 3
        credly.look_up_lag = 600
        credly.fail("issue", how="reset", after=True)
        credly.fail("issue", status=400)
        credly.fail("look-up", status=500)
        host.complete()

        while host.row().state != "failed":
            host.drain()
            host.make_due()

        issuances.retry(host.state.engine, "default", host.row().id)
        host.drain()
        assert host.row().state == "none"
        credly.advance(600)
        host.make_due()
        host.drain()

        assert host.row().badge_id == credly.badges[0]["id"]

    def test_it_is_looked_for_an_hour_and_then_held(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.look_up_lag = 10**9
        credly.fail("issue", how="reset", after=True)
        host.complete()
        host.drain()
        waited = dt.timedelta()

        for _ in range(20):
            if (due_at := host.row().due_at) is None:
                break

            waited += max(due_at - dt.datetime.now(dt.UTC), dt.timedelta())
            host.make_due()
            host.drain()

        assert (host.row().state, host.row().badge_id) == ("held", None)
        assert host.row().error == whose.NOT_LISTED
        assert credly.count("issue") == 2
        assert dt.timedelta(minutes=50) < waited < dt.timedelta(hours=2)


SANDBOX = "11111111-2222-4333-8444-555555555555"


@contextlib.contextmanager
def another_organization(host: Host) -> cabc.Iterator[CredlySimulator]:
    """Remove, and connect another one, with the first course mapped."""
    accounts.remove(host.state)
    host.db.session.remove()
    other = CredlySimulator(organization_id=SANDBOX)
    template_id = other.add_template("Real Badge")

    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        other.register(mock)
        connect_and_map(host, other, template_id)
        yield other

    assert other.problems == []


class TestAnotherOrganization:
    """A sandbox that was tried out: its rows are in nobody's way."""

    @pytest.fixture
    def tried(
        self, make_host: MakeHost, credly: CredlySimulator
    ) -> cabc.Iterator[Host]:
        past = [(a_member(id_), AT) for id_ in ("42", "43", "44")]
        host = make_host(past_completions=lambda *_: past, member=a_member)

        with host.app.app_context():
            connect(host, credly)
            host.complete("42")
            host.drain()
            credly.fail("issue", status=422, times=2)
            host.complete("43")
            settle(host, credly)
            assert [row.state for row in host.rows()] == ["issued", "failed"]
            yield host

    @every_database
    @pytest.mark.parametrize("joined", [False, True])
    def test_a_completion_gets_the_real_badge(self, tried: Host, joined: bool) -> None:
        with another_organization(tried) as real:
            if joined:
                tried.db.session.execute(sa.update(Issuance).values(test=Issuance.test))

            for _ in range(2):
                tried.complete("42")

            tried.db.session.commit()
            tried.drain()
            old, _, new = tried.rows()

            assert (old.state, new.state) == ("issued", "issued")
            assert new.badge_id == real.badges[0]["id"] != old.badge_id
            assert (len(real.badges), new.organization_id) == (1, SANDBOX)

    @every_database
    def test_a_backfill_and_its_preview_take_them_as_not_there(
        self, tried: Host
    ) -> None:
        with another_organization(tried) as real:
            found = past.preview(tried.state, COURSES[0], None)
            assert (found.there, found.failed, found.to_issue) == (0, 0, 3)

            (mapping,) = accounts.list_mappings(tried.db.session, "default")
            backfills.start(tried.state.engine, "default", mapping.id)
            jobs.backfill()
            tried.drain()

            assert len(real.badges) == 3
            assert past.preview(tried.state, COURSES[0], None).there == 3

    @every_database
    def test_a_retry_takes_this_organizations_row_only(self, tried: Host) -> None:
        with another_organization(tried) as real:
            assert retrying.retry_all(tried.state.engine, "default").number == 0

            real.fail("issue", status=422, times=2)
            tried.complete("43")
            settle(tried, real)
            assert issuances.retriable(tried.db.session, "default") == 1
            assert retrying.retry_all(tried.state.engine, "default").number == 1
            real.posts_allowed = 3
            tried.drain()

            assert [row.state for row in tried.rows()] == ["issued", "failed", "issued"]

    def test_export_and_erase_see_both(self, tried: Host) -> None:
        with another_organization(tried):
            tried.complete("42")
            tried.drain()

            assert len(tried.credly.export_member("42")["badges"]) == 2
            assert tried.credly.erase_member("42").badges == 2

    def test_the_first_one_again_issues_nothing_twice(
        self, tried: Host, credly: CredlySimulator
    ) -> None:
        with another_organization(tried):
            tried.complete("42")
            tried.drain()

        accounts.remove(tried.state)
        tried.db.session.remove()
        accounts.connect(
            tried.state,
            organization_id=credly.organization_id,
            client_id=credly.client_id,
            client_secret=credly.client_secret,
        )
        template_id = credly.badges[0]["badge_template"]["id"]
        accounts.add_mapping(tried.state, COURSES[0], template_id)
        tried.complete("42")
        tried.drain()

        assert len(tried.rows()) == 3
        assert len(credly.badges) == 1


def back_up(host: Host) -> cabc.Callable[[], None]:
    """Take a backup of our tables. Get what restores it."""
    host.db.session.rollback()
    tables = Base.metadata.sorted_tables

    with host.state.engine.connect() as connected:
        kept = {
            table: [dict(row._mapping) for row in connected.execute(sa.select(table))]
            for table in tables
        }

    def restore() -> None:
        host.db.session.remove()

        with host.state.engine.begin() as connected:
            for table in reversed(tables):
                connected.execute(sa.delete(table))

            for table, rows in kept.items():
                if rows:
                    connected.execute(sa.insert(table), rows)

    return restore


def run(host: Host, *args: str) -> str:
    result = host.app.test_cli_runner().invoke(args=["credly", *args])
    assert result.exit_code == 0, result.output
    return result.output


class TestARestoredDatabase:
    @every_database
    def test_what_was_issued_since_the_backup_is_found(self, lax: Connected) -> None:
        """Rows that wait in the backup, and completions that are not in it."""
        host, credly, _ = lax
        second_course(lax)
        host.complete("1", completed_at=AT)
        restore = back_up(host)
        host.drain()
        host.complete("2", completed_at=AT)
        host.complete("2", course_id="sql", completed_at=AT)
        host.drain()
        made = {each["id"] for each in credly.badges}
        assert len(made) == 3

        restore()
        run(host, "restored")
        # The member completes again what the host has lost, too.
        host.complete("2")
        host.complete("2", course_id="sql")
        settle(host, credly)

        assert {row.state for row in host.rows()} == {"issued"}
        assert {row.badge_id for row in host.rows()} == made
        assert {each["id"] for each in credly.badges} == made

    @every_database
    @pytest.mark.parametrize("was_issued", [True, False])
    def test_a_mapping_changed_since_is_followed_after_the_look_up(
        self, connected: Connected, was_issued: bool
    ) -> None:
        """What was issued since the backup is the badge of the old mapping."""
        host, credly, _ = connected
        host.complete(completed_at=AT)
        restore = back_up(host)

        if was_issued:
            host.drain()

        restore()
        run(host, "restored")
        other = credly.add_template("Another")
        accounts.sync_templates(host.state)
        map_to(host, other)
        host.drain(3)

        (badge,) = credly.badges
        assert (host.row().state, host.row().badge_id) == ("issued", badge["id"])
        assert host.row().template_id == badge["badge_template"]["id"]
        assert (badge["badge_template"]["id"] == other) != was_issued

    def test_what_is_new_is_issued(self, lax: Connected) -> None:
        host, credly, _ = lax
        run(host, "restored")
        host.complete("1")
        host.drain()

        assert host.row().badge_id == credly.badges[0]["id"]
        assert [each.kind for each in credly.received[-2:]] == ["look-up", "issue"]

    def test_a_badge_that_was_revoked_since_is_not_issued_again(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        host.complete(completed_at=AT)
        restore = back_up(host)
        host.drain()
        credly.revoke_badge(credly.badges[0]["id"])
        restore()
        run(host, "restored")
        settle(host, credly)

        assert host.row().state == "revoked"
        assert len(credly.badges) == 1

    def test_it_outlives_remove(self, lax: Connected) -> None:
        host, credly, template_id = lax
        host.complete("1")
        restore = back_up(host)
        host.drain()
        restore()
        run(host, "restored")
        accounts.remove(host.state)
        host.db.session.remove()
        connect_and_map(host, credly, template_id)
        host.complete("1")
        host.drain()

        assert host.row().state == "issued"
        assert len(credly.badges) == 1

    @every_database
    def test_a_worker_that_runs_already_begins_nothing_more(
        self, lax: Connected
    ) -> None:
        host, _, _ = lax
        host.complete("1")
        gate = gates.read(host.state.engine, "default")
        assert gate is not None
        (row,) = claim.claim(host.state.engine, gate, limit=1, lease_seconds=60)
        run(host, "restored")

        assert not claim.begin(host.state.engine, [row], gate, lease_seconds=60)

    def test_a_copy_issues_nothing_until_told(self, connected: Connected) -> None:
        host, credly, _ = connected
        said = run(host, "restored", "--copy")
        host.complete()
        host.drain()

        assert "flask credly restored" in said
        assert (host.row().state, credly.count("issue")) == ("none", 0)
        assert overview.read(host.db.session, "default").connection == "paused"
        gates.switch(host.state.engine, "default", on=True)
        host.drain()
        assert credly.count("issue") == 0

        page = host.app.test_client().get("/integrations/credly").text
        assert "This database is a copy" in page
        assert "flask credly restored" in page
        found = doctor.examine(host.state)["connection"]
        assert found.status == "warning"
        assert "flask credly restored" in (found.hint or "")
        assert json.loads(run(host, "status", "--json"))["copy"] is True

        run(host, "restored")
        host.drain()
        assert host.row().state == "issued"
        assert "This database is a copy" not in (
            host.app.test_client().get("/integrations/credly").text
        )

    def test_a_copy_that_was_never_connected_issues_nothing_either(
        self, host: Host, credly: CredlySimulator, in_context: None
    ) -> None:
        run(host, "restored", "--copy")
        connect(host, credly)
        host.complete()
        host.drain()

        assert (host.row().state, credly.count("issue")) == ("none", 0)


class Badges(stateful.RuleBasedStateMachine):
    """Members who share an address, courses that share a template, answers that are
    lost, badges given by hand, and a database that is restored.
    """

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.begin_anew()
        self.host = self.world.host
        self.credly = self.world.credly
        self.credly.posts_allowed = 999
        self.once = self.credly.add_template("Once")
        self.often = self.credly.add_template("Often", allow_duplicate_badges=True)
        accounts.connect(
            self.host.state,
            organization_id=self.credly.organization_id,
            client_id=self.credly.client_id,
            client_secret=self.credly.client_secret,
        )

        for course in MANY:
            template_id = self.once if course.id.startswith("once") else self.often
            accounts.add_mapping(self.host.state, course, template_id)

        self.completed: set[tuple[str, str]] = set()
        self.given: set[str] = set()
        self.restored = False
        self.restore_backup = back_up(self.host)

    @stateful.rule(
        member=st.sampled_from([ANNA, BERT, CARL]),
        course=st.sampled_from(MANY_IDS),
        second=st.integers(0, 1),
    )
    def complete(self, member: Member, course: str, second: int) -> None:
        self.completed.add((member.id, course))
        at = AT + dt.timedelta(seconds=second)
        self.host.complete(member=member, course_id=course, completed_at=at)

    @stateful.rule(
        template=st.booleans(),
        member=st.sampled_from([ANNA, BERT, CARL]),
        name=st.sampled_from([None, "of another system", "ours"]),
    )
    def give_by_hand(self, template: bool, member: Member, name: str | None) -> None:
        template_id = self.once if template else self.often

        if name == "ours":
            name = our_name(self.host, member.id)

        try:
            self.given.add(
                self.credly.award(
                    template_id,
                    member.email,
                    issuer_earner_id=name,
                    issued_at=AT - dt.timedelta(days=365),
                )
            )
        except Refusal:
            pass  # the address has it

    @stateful.rule(after=st.booleans(), times=st.integers(1, 3))
    def lose_answers(self, after: bool, times: int) -> None:
        self.credly.fail("issue", how="reset", after=after, times=times)

    @stateful.rule(times=st.integers(1, 2))
    def fail_to_list(self, times: int) -> None:
        self.credly.fail("look-up", status=500, times=times)

    # Below the wait of a minute: beyond it a second badge is the stated limit.
    @stateful.rule(lag=st.sampled_from([0, 50]))
    def lag(self, lag: int) -> None:
        self.credly.look_up_lag = lag

    @stateful.rule(seconds=st.sampled_from([0, 61, 61, 4000]))
    def drain(self, seconds: int) -> None:
        self.world.advance(seconds)
        self.host.drain()

    @stateful.rule()
    def retry(self) -> None:
        retrying.retry_all(self.host.state.engine, "default")

    @stateful.rule()
    def back_up(self) -> None:
        self.restore_backup = back_up(self.host)

    @stateful.rule()
    def restore(self) -> None:
        # It takes its time, and no worker runs meanwhile.
        self.world.advance(600)
        self.restore_backup()
        restoring.note_restored(self.host.state.engine)
        self.restored = True

    @stateful.invariant()
    def each_badge_is_its_rows(self) -> None:
        if not hasattr(self, "completed"):
            return

        book = {each["id"]: each for each in self.credly.badges}
        taken = [row for row in self.host.rows() if row.badge_id]
        assert len({row.badge_id for row in taken}) == len(taken)

        for row in taken:
            badge = book[row.badge_id or ""]
            assert row.state == "issued"
            assert badge["badge_template"]["id"] == row.template_id
            assert badge["issuer_earner_id"] == our_name(self.host, row.member_id)

            if row.template_id == self.often and not self.restored:
                assert row.badge_id not in self.given

        for member in (ANNA, BERT, CARL):
            mine = our_name(self.host, member.id)
            ours = [each for each in book.values() if each["issuer_earner_id"] == mine]
            often = [
                each
                for each in ours
                if each["badge_template"]["id"] == self.often
                and each["id"] not in self.given
            ]
            done = [
                course
                for who, course in self.completed
                if who == member.id and course.startswith("often")
            ]
            assert len(often) <= len(done)
            once = [e for e in ours if e["badge_template"]["id"] == self.once]
            assert len(once) <= 1

    def teardown(self) -> None:
        self.credly.clear_faults()
        self.credly.look_up_lag = 0

        for _ in range(20):
            retrying.retry_all(self.host.state.engine, "default")
            self.world.advance(4000)
            self.host.drain()

            if all(row.state in ("issued", "held") for row in self.host.rows()):
                break

        for row in self.host.rows():
            assert row.state in ("issued", "held"), row.error
            # Only Credly's refusal of a second one leaves a row without a badge.
            assert (row.badge_id is None) == (row.state == "held")
            assert row.state == "issued" or row.template_id == self.once
            assert row.state == "issued" or row.error

        self.each_badge_is_its_rows()


@pytest.mark.slow
@every_database
def test_any_sequence_of_badges(world: World) -> None:
    run_machine(Badges, world)
