"""Many badges are taken back: those of a backfill, or those that a filter shows."""

from __future__ import annotations

import collections
import collections.abc as cabc
import contextlib
import dataclasses
import datetime as dt
import os
import re
import signal
import time
import typing as t

import pytest
import sqlalchemy as sa
from conftest import a_member
from conftest import connect
from conftest import connect_and_map
from conftest import Connected
from conftest import every_database
from conftest import Host
from conftest import MakeConnected
from conftest import MakeHost
from test_crash_points import make_app
from test_crash_points import start

from flask_credly import accounts
from flask_credly import jobs
from flask_credly.issuing import stopping
from flask_credly.ledger import actions
from flask_credly.ledger import backfills
from flask_credly.ledger import claim
from flask_credly.ledger import gates
from flask_credly.ledger import privacy
from flask_credly.ledger import retrying
from flask_credly.ledger import runs
from flask_credly.ledger import undoing
from flask_credly.ledger import undone
from flask_credly.ledger import undos
from flask_credly.ledger.issuances import Filter
from flask_credly.ledger.transaction import in_session
from flask_credly.ledger.undos import Selection
from flask_credly.models import Account
from flask_credly.models import AuditEntry
from flask_credly.models import Batch
from flask_credly.models import BatchRow
from flask_credly.models import Issuance
from flask_credly.models import Mapping
from flask_credly.testing import CredlySimulator
from tests.support.databases import open_again

REASON = "They were issued by mistake."
DAY = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)
COURSE = Filter(kind="course", course_id="py-101")


@dataclasses.dataclass
class Many:
    """A host with the badges of a backfill."""

    host: Host
    credly: CredlySimulator
    past: list[t.Any]

    def record(self, number: int, first: int = 0) -> int:
        self.past[:] = [(a_member(str(first + n)), DAY) for n in range(number)]
        mapping_id = self.host.db.session.scalars(sa.select(Mapping.id)).one()
        self.host.db.session.rollback()
        run_id = backfills.start(self.host.state.engine, "default", mapping_id)
        assert run_id is not None
        jobs.backfill()
        return run_id

    def issue(self, number: int, first: int = 0) -> int:
        run_id = self.record(number, first)
        self.host.drain()
        return run_id

    def preview(self, selection: Selection) -> undos.Preview:
        return in_session(self.host.state.engine, undos.preview, "default", selection)

    def start(self, selection: Selection, **changes: t.Any) -> int:
        found = self.preview(selection)
        given: dict[str, t.Any] = {
            "number": found.number,
            "reason": REASON,
            "tell_pending": False,
            "tell_accepted": True,
            "last_id": found.last_id,
            "by": "An admin",
        }
        run_id = undos.start(
            self.host.state.engine, "default", selection, **given | changes
        )
        assert run_id is not None
        return run_id

    def make_due(self) -> None:
        session = self.host.db.session
        session.rollback()
        session.execute(
            sa.update(Batch)
            .where(Batch.due_at.is_not(None))
            .values(due_at=Batch.started_at)
        )
        session.commit()

    def work(self, times: int = 1) -> None:
        """Go on with the run, and let the badges be revoked."""
        for _ in range(times):
            self.make_due()
            jobs.undo()
            self.host.drain()

    def finish(self, run_id: int, times: int = 30) -> dict[str, int]:
        for _ in range(times):
            self.work()

            if (found := self.progress(run_id)).is_over:
                return found.count

            self.host.let_lists_catch_up()

        raise AssertionError(f"It does not end: {found.run.state} {found.count}")

    def progress(self, run_id: int) -> undone.Progress:
        found = in_session(self.host.state.engine, undone.progress, "default", run_id)
        assert found is not None
        return found

    def states(self) -> collections.Counter[tuple[str, str | None]]:
        return collections.Counter((row.state, row.action) for row in self.host.rows())

    def accept(self, *members: str) -> None:
        for row in self.host.rows():
            if row.member_id in members:
                assert row.badge_id
                self.credly.accept(row.badge_id)

        # As a poll would say.
        self.host.db.session.execute(
            sa.update(Issuance)
            .where(Issuance.member_id.in_(members))
            .values(badge_state="accepted")
        )
        self.host.db.session.commit()


@pytest.fixture
def many(make_host: MakeHost, credly: CredlySimulator) -> cabc.Iterator[Many]:
    past: list[t.Any] = []
    host = make_host(past_completions=lambda course, since: list(past))

    with host.app.app_context():
        connect(host, credly)
        yield Many(host, credly, past)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few badges take several portions."""
    monkeypatch.setattr(undoing, "PORTION", 3)
    monkeypatch.setattr(undoing, "AT_A_TIME", 4)


def changes(credly: CredlySimulator) -> list[tuple[str, bool | None]]:
    """Say what became of each badge in Credly's book, and whether it was told."""
    found = []

    # Issued at the same time: in any order.
    for badge in sorted(credly.badges, key=lambda badge: badge["recipient_email"]):
        last = credly.history(badge["id"])[-1]
        found.append((last.state, last.told))

    return found


class TestTakingBack:
    @every_database
    def test_a_backfill(self, many: Many, small: None) -> None:
        batch = many.issue(10)
        many.host.complete("own")
        many.host.drain()
        many.accept("3", "4")
        many.record(2, first=20)  # of another run
        found = many.preview(Selection(undoes=batch))
        assert (found["pending"], found["accepted"], found.number) == (8, 2, 10)

        run_id = many.start(Selection(undoes=batch))
        assert many.states()["issued", "revoke"] == 0  # nothing is done in a request
        assert many.finish(run_id) == {"revoked": 10}
        assert many.states() == {("revoked", None): 10, ("issued", None): 3}
        told = collections.Counter(changes(many.credly))
        assert told == {
            ("revoked", False): 8,
            ("revoked", True): 2,
            ("pending", None): 3,
        }
        assert many.credly.count("revoke") == 10

    @every_database
    def test_a_backfill_of_before_remove_is_left_alone(self, many: Many) -> None:
        """SQLite gives the number of its run to the next."""
        session = many.host.db.session
        template_id = session.scalars(sa.select(Mapping.template_id)).one()
        many.issue(3)
        session.rollback()
        accounts.remove(many.host.state)
        connect_and_map(many.host, many.credly, template_id)
        batch = many.issue(2, first=20)
        found = many.preview(Selection(undoes=batch))
        assert found.number == 2
        progress = in_session(
            many.host.state.engine, backfills.progress, "default", batch
        )
        assert progress is not None
        assert progress.to_issue == 2

    def test_what_was_not_sent_is_dropped_first_and_who_accepted_comes_last(
        self, many: Many, small: None
    ) -> None:
        batch = many.issue(5)
        many.accept("0", "1")
        session = many.host.db.session
        many.record(3, first=10)
        session.execute(sa.update(Issuance).values(batch_id=batch))
        session.commit()
        run_id = many.start(Selection(undoes=batch))
        seen: list[dict[str, int]] = []
        many.make_due()
        run = runs.take(many.host.state.engine, "undo")
        assert run is not None

        while undoing.step(many.host.state.engine, run) == "more":
            seen.append(many.progress(run_id).count)

        dropped = [each.get("dropped", 0) for each in seen]
        asked = [each.get("asked", 0) for each in seen]
        assert dropped[-1] == 3
        assert all(d == 3 for d, a in zip(dropped, asked, strict=True) if a)
        # Not more at a time, and of those who have accepted only the last.
        assert seen[-1] == {"dropped": 3, "asked": 4, "accepted": 1}
        runs.leave(many.host.state.engine, run, rest=True)
        assert many.finish(run_id) == {"dropped": 3, "revoked": 5}
        assert len(many.credly.badges) == 5

    def test_what_is_revoked_counts_before_the_run_has_seen_it(
        self, many: Many
    ) -> None:
        """The worker of the run may have died while another revokes."""
        batch = many.issue(3)
        run_id = many.start(Selection(undoes=batch))
        many.make_due()
        jobs.undo()
        assert many.progress(run_id).count == {"asked": 3}
        many.host.drain()
        found = many.progress(run_id)
        assert (found.count, found.done, found.is_over) == ({"revoked": 3}, 3, False)
        assert many.finish(run_id) == {"revoked": 3}

    def test_what_is_left_alone_and_why(self, many: Many) -> None:
        batch = many.issue(9)
        rows = {row.member_id: row for row in many.host.rows()}
        ids = {name: str(rows[name].badge_id) for name in rows}
        engine = many.host.state.engine
        many.credly.reject(ids["0"])
        many.credly.revoke_badge(ids["1"])
        actions.revoke(engine, "default", rows["2"].id, reason=REASON, tell=True)
        privacy.erase(engine, "default", "3")
        session = many.host.db.session

        for member, values in {
            "0": {"badge_state": "rejected"},
            "1": {"badge_state": "revoked", "state": "revoked"},
            "4": {"state": "held"},
            "5": {"state": "failed"},
            "6": {"state": "replaced"},
            "7": {"organization_id": "other"},
        }.items():
            this = sa.update(Issuance).where(Issuance.member_id == member)
            session.execute(this.values(**values))

        session.commit()
        found = many.preview(Selection(undoes=batch))
        alone = {
            "declined": 1,
            "was revoked": 1,
            "busy": 1,
            "erased": 1,
            "held": 1,
            "was failed": 1,
            "was replaced": 1,
            "elsewhere": 1,
        }
        assert (found.left_alone, found.number) == (alone, 1)
        run_id = many.start(Selection(undoes=batch))
        assert many.finish(run_id) == alone | {"revoked": 1}

    def test_what_is_on_its_way_settles_first(self, many: Many) -> None:
        batch = many.record(3)
        engine = many.host.state.engine
        gate = gates.read(engine, "default")
        assert gate is not None
        (row,) = claim.claim(engine, gate, limit=1, lease_seconds=60)
        run_id = many.start(Selection(undoes=batch))
        many.make_due()
        jobs.undo()
        assert many.progress(run_id).count == {"dropped": 2, "waits": 1}
        assert not many.progress(run_id).is_over
        claim.release(engine, [dataclasses.replace(row, outcome_unknown=True)])
        many.host.drain()  # it is looked up, and issued
        assert many.states() == {("cancelled", None): 2, ("issued", None): 1}
        assert many.finish(run_id) == {"dropped": 2, "revoked": 1}
        assert changes(many.credly) == [("revoked", False)]

    def test_an_outcome_that_is_not_known(self, many: Many) -> None:
        many.credly.look_up_lag = 60
        many.credly.fail("issue", status=500, after=True)
        batch = many.record(1)
        many.host.drain()
        assert many.states() == {("none", "issue"): 1}
        assert many.preview(Selection(undoes=batch))["waits"] == 1
        run_id = many.start(Selection(undoes=batch))
        many.credly.advance(100)
        assert many.finish(run_id) == {"revoked": 1}
        assert changes(many.credly) == [("revoked", False)]

    def test_a_backfill_that_is_still_recording_is_stopped(self, many: Many) -> None:
        batch = many.issue(2)
        session = many.host.db.session
        session.execute(sa.update(Batch).values(state="recording", due_at=DAY))
        session.commit()
        found = many.preview(Selection(undoes=batch))
        assert found.recording
        many.start(Selection(undoes=batch), number=1)
        states = session.scalars(sa.select(Batch.state).order_by(Batch.id)).all()
        assert states == ["stopped", "choosing"]
        jobs.backfill()
        assert len(many.host.rows()) == 2

    def test_what_is_accepted_meanwhile_is_told_as_that(
        self, many: Many, small: None
    ) -> None:
        batch = many.issue(6)
        run_id = many.start(Selection(undoes=batch))
        many.make_due()
        jobs.undo()
        many.accept("5")
        assert many.finish(run_id) == {"revoked": 6}
        assert changes(many.credly)[-1] == ("revoked", True)

    def test_a_failure_is_said_and_can_be_taken_up_by_a_further_run(
        self, many: Many
    ) -> None:
        batch = many.issue(3)
        many.credly.posts_allowed = 4
        many.credly.fail("revoke", times=2, status=422)
        many.host.app.config["CREDLY_CONCURRENCY"] = 1
        run_id = many.start(Selection(undoes=batch))
        count = many.finish(run_id)
        assert count["revoked"] + count.get("failed", 0) == 3
        again = many.preview(Selection(undoes=batch))
        assert again.number == count.get("failed", 0)

        if again.number:
            assert many.finish(many.start(Selection(undoes=batch))) == {
                "revoked": again.number,
                "was revoked": 3 - again.number,
            }

        assert {state for state, _ in changes(many.credly)} == {"revoked"}

    def test_a_later_backfill_does_not_bring_them_back(self, many: Many) -> None:
        batch = many.issue(3)
        session = many.host.db.session
        many.record(2, first=3)
        session.execute(sa.update(Issuance).values(batch_id=batch))
        session.commit()
        many.finish(many.start(Selection(undoes=batch)))
        before = many.states()
        assert before == {("revoked", None): 3, ("cancelled", None): 2}
        many.issue(5)
        many.host.complete("1")
        retrying.retry_all(many.host.state.engine, "default")
        many.host.drain()

        assert many.states() == before
        assert len(many.credly.badges) == 3

    def test_a_badge_that_was_issued_again_is_another(self, many: Many) -> None:
        batch = many.issue(1)
        many.finish(many.start(Selection(undoes=batch)))
        row = many.host.row()
        new_id = actions.issue_again(
            many.host.state.engine,
            "default",
            row.id,
            email=row.email,
            first_name=row.first_name,
            last_name=row.last_name,
        )
        many.host.drain()
        assert new_id is not None
        assert many.states() == {("revoked", None): 1, ("issued", None): 1}
        # It is not the backfill's.
        assert many.preview(Selection(undoes=batch)).number == 0

    def test_completions_that_come_in_go_first(
        self, make_connected: MakeConnected
    ) -> None:
        past = [(a_member(str(n)), DAY) for n in range(20)]
        host, credly, _ = make_connected(
            past_completions=lambda *_: past, CREDLY_CONCURRENCY=1, CREDLY_BATCH_SIZE=1
        )
        many = Many(host, credly, past)
        batch = many.issue(20)
        run_id = many.start(Selection(undoes=batch))
        jobs.undo()
        assert many.states() == {("issued", "revoke"): 20}
        host.complete("new")
        host.drain()
        kinds = [
            each.kind for each in credly.received if each.kind in ("issue", "revoke")
        ]
        assert kinds == ["issue"] * 21 + ["revoke"] * 20
        assert many.finish(run_id) == {"revoked": 20}

    def test_it_is_noted_by_whom(self, many: Many) -> None:
        batch = many.issue(2)
        run_id = many.start(Selection(undoes=batch))
        undos.stop(many.host.state.engine, "default", run_id, by="Another")
        entries = many.host.db.session.scalars(sa.select(AuditEntry)).all()
        assert [(each.actor, each.action, each.target) for each in entries][-2:] == [
            ("An admin", "take back", "Python 101: 2"),
            ("Another", "stop taking back", "Python 101: 2"),
        ]


class TestSelections:
    @every_database
    def test_a_course_between_two_times(self, many: Many) -> None:
        many.issue(6)
        session = many.host.db.session
        ids = [row.id for row in many.host.rows()]

        for number, id_ in enumerate(ids):
            at = DAY + dt.timedelta(hours=number)
            this = sa.update(Issuance).where(Issuance.id == id_)
            session.execute(this.values(recorded_at=at))

        session.commit()
        selection = Selection(
            wanted=COURSE,
            since=DAY + dt.timedelta(hours=1),
            until=DAY + dt.timedelta(hours=4),
        )
        assert many.preview(selection).number == 3
        assert many.finish(many.start(selection)) == {"revoked": 3}
        assert [row.state for row in many.host.rows()] == [
            *("issued", "revoked", "revoked", "revoked", "issued", "issued")
        ]

    def test_what_came_in_after_the_preview_is_not_caught_up(self, many: Many) -> None:
        many.issue(2)
        found = many.preview(Selection(wanted=COURSE))
        many.host.complete("late")
        many.host.drain()
        run_id = many.start(Selection(wanted=COURSE), last_id=found.last_id, number=2)
        assert many.finish(run_id) == {"revoked": 2}
        assert many.states() == {("revoked", None): 2, ("issued", None): 1}

    def test_more_than_were_confirmed_are_not_taken_back(self, many: Many) -> None:
        many.issue(3)

        with pytest.raises(undos.Miscounted):
            many.start(Selection(wanted=COURSE), number=2)

        assert many.states() == {("issued", None): 3}
        assert (
            many.host.db.session.scalar(
                sa.select(sa.func.count()).where(Batch.verb == "undo")
            )
            == 0
        )

    def test_a_filter(self, many: Many, small: None) -> None:
        many.issue(7)
        many.accept("1", "2")
        selection = Selection(wanted=Filter(became="accepted"))
        assert many.preview(selection).number == 2
        run_id = many.start(selection)
        assert many.finish(run_id) == {"revoked": 2}
        by_name = Selection(wanted=Filter(text="member-3@"))
        run_id = many.start(by_name)
        many.host.db.session.rollback()
        (batch,) = many.host.db.session.scalars(
            sa.select(Batch).where(Batch.id == run_id)
        )
        assert batch.wanted == {"text": "member-3@"}
        assert many.finish(run_id) == {"revoked": 1}
        # What was searched for may name somebody.
        assert many.progress(run_id).run.wanted is None

    def test_what_waits_and_is_issued_before_it_is_chosen(self, many: Many) -> None:
        many.record(2)
        run_id = many.start(Selection(wanted=Filter(status="waiting")))
        many.host.drain()
        assert many.finish(run_id) == {"revoked": 2}

    def test_never_all_there_are(self, many: Many) -> None:
        many.issue(1)

        with pytest.raises(ValueError, match="Set a filter"):
            many.start(Selection())

    def test_nothing_to_take_back(self, many: Many) -> None:
        with pytest.raises(AssertionError):
            many.start(Selection(wanted=COURSE))

    def test_an_undo_is_not_undone(self, many: Many) -> None:
        batch = many.issue(1)
        run_id = many.start(Selection(undoes=batch))

        with pytest.raises(AssertionError):
            many.start(Selection(undoes=run_id))

        assert backfills.progress(many.host.db.session, "default", run_id) is None


class TestMeanwhile:
    def test_two_admins_at_once(self, many: Many) -> None:
        batch = many.issue(4)
        one = many.start(Selection(undoes=batch))
        assert many.start(Selection(undoes=batch)) == one
        other = many.start(Selection(wanted=COURSE))
        counts = many.finish(one), many.finish(other)

        revoked = sum(each.get("revoked", 0) for each in counts)
        assert revoked == 4
        assert sum(sum(each.values()) for each in counts) == 8
        assert many.credly.count("revoke") == 4

    @every_database
    def test_a_stop(self, many: Many, small: None) -> None:
        batch = many.issue(9)
        run_id = many.start(Selection(undoes=batch))
        many.make_due()
        jobs.undo()
        engine = many.host.state.engine
        gate = gates.read(engine, "default")
        assert gate is not None
        # A worker holds more than it sends at once.
        held = claim.claim(engine, gate, limit=4, lease_seconds=0)
        assert len(held) == 4
        (begun,) = claim.begin(engine, held[:1], gate, lease_seconds=0)
        assert undos.stop(engine, "default", run_id)
        assert not undos.stop(engine, "default", run_id)
        # At once, but for what is on its way.
        assert many.states() == {("issued", None): 8, ("issued", "revoke"): 1}
        assert claim.hold(engine, held[1:], gate, lease_seconds=0) == []
        assert claim.begin(engine, held[1:], gate, lease_seconds=0) == []
        assert many.finish(run_id) == {"revoked": 1, "stopped": 8}
        assert many.states() == {("issued", None): 8, ("revoked", None): 1}
        assert many.progress(run_id).run.state == "stopped"

    def test_a_stop_before_they_are_chosen(self, many: Many) -> None:
        batch = many.record(3)
        run_id = many.start(Selection(undoes=batch))
        undos.stop(many.host.state.engine, "default", run_id)
        assert many.finish(run_id) == {}
        assert many.states() == {("issued", None): 3}

    def test_a_worker_that_was_stopped_meanwhile_does_no_more(self, many: Many) -> None:
        batch = many.issue(3)
        run_id = many.start(Selection(undoes=batch))
        engine = many.host.state.engine
        run = runs.take(engine, "undo")
        assert run is not None
        assert runs.take(engine, "undo") is None
        undos.stop(engine, "default", run_id)
        assert undoing.step(engine, run) == "over"
        runs.leave(engine, run, rest=True)
        assert many.finish(run_id) == {}

    def test_remove(self, many: Many, small: None) -> None:
        batch = many.issue(9)
        many.start(Selection(undoes=batch))
        engine = many.host.state.engine
        run = runs.take(engine, "undo")
        assert run is not None

        for _ in range(5):
            undoing.step(engine, run)

        accounts.remove(many.host.state)
        assert undoing.step(engine, run) == "over"
        jobs.undo()
        many.host.drain()
        session = many.host.db.session
        assert session.scalars(sa.select(Batch)).all() == []
        assert session.scalars(sa.select(BatchRow)).all() == []
        assert many.states() == {("issued", None): 9}
        assert many.credly.count("revoke") == 0

    def test_a_member_is_erased(self, many: Many, small: None) -> None:
        batch = many.issue(6)
        run_id = many.start(Selection(undoes=batch))
        many.make_due()
        jobs.undo()
        engine = many.host.state.engine

        for member in ("0", "5"):  # one that is being revoked, one that is not yet
            privacy.erase(engine, "default", member)

        assert many.finish(run_id) == {"revoked": 4, "erased": 2}
        assert many.credly.count("revoke") == 4

    def test_another_organization(self, many: Many) -> None:
        batch = many.issue(2)
        run_id = many.start(Selection(undoes=batch))
        many.make_due()
        jobs.undo()
        session = many.host.db.session
        session.execute(sa.update(Issuance).values(organization_id="other"))
        session.commit()
        assert many.finish(run_id) == {"elsewhere": 2}
        assert many.credly.count("revoke") == 0

    def test_a_job_that_is_ended_leaves_the_rest(
        self, many: Many, small: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batch = many.issue(9)
        run_id = many.start(Selection(undoes=batch))
        monkeypatch.setattr("flask_credly.issuing.undo.BUDGET", -1)
        jobs.undo()
        assert many.progress(run_id).count == {"pending": 3}
        monkeypatch.undo()
        stopping.set()

        try:
            jobs.undo()
        finally:
            stopping.clear()

        assert many.progress(run_id).count == {"pending": 3}
        assert many.finish(run_id) == {"revoked": 9}


def test_what_it_reads_does_not_grow_with_the_table(connected: Connected) -> None:
    """SQLite goes through no table and sorts nothing."""
    host, _, _ = connected
    plans: list[str] = []

    @sa.event.listens_for(host.db.engine, "before_cursor_execute")
    def explain(
        conn: t.Any, cursor: t.Any, statement: str, parameters: t.Any, *_: t.Any
    ) -> None:
        if "credly_" in statement and not statement.startswith("INSERT"):
            raw = conn.connection.dbapi_connection.cursor()
            raw.execute("EXPLAIN QUERY PLAN " + statement, parameters)
            plans.extend(f"{row[3]}: {statement}" for row in raw.fetchall())

    host.complete()
    host.drain()
    engine = host.state.engine
    now = dt.datetime.now(dt.UTC)
    common: dict[str, t.Any] = {
        "tenant": "default",
        "kind": "course",
        "course_id": "py-101",
        "course_title": "Python 101",
        "verb": "undo",
        "started_at": now,
        "due_at": now,
        "last_id": 10**6,
        "reason": REASON,
        "tell_pending": True,
        "tell_accepted": True,
    }
    lease = "x"

    for state in undos.GOES_ON:
        for more in (
            {"undoes": 1},
            {"since": DAY},
            {"wanted": {"status": "issued"}},
            {"wanted": {"status": "waiting"}},
        ):
            with engine.begin() as connection:
                connection.execute(sa.delete(BatchRow))
                connection.execute(sa.delete(Batch))
                connection.execute(
                    sa.insert(Batch).values(
                        **common | more, state=state, id=5, lease=lease
                    )
                )

            plans.clear()
            undoing.step(
                engine, runs.Run(5, "default", "undo", lease, "", "", "", None, False)
            )
            assert plans
            bad = [
                each
                for each in plans
                if each.startswith(("SCAN", "USE TEMP B-TREE"))
                and not each.startswith(("SCAN credly_account", "SCAN CONSTANT"))
            ]
            assert bad == []


DIED = -9


def child(config: dict[str, t.Any]) -> None:
    """Go on with what is due until somebody puts an end to it."""
    app = make_app(config)

    with app.app_context():
        while True:
            jobs.undo()
            jobs.drain()
            time.sleep(0.05)


@pytest.mark.slow
@every_database
def test_a_backfill_of_500_with_errors_and_a_kill_in_the_middle(
    make_host: MakeHost,
) -> None:
    credly = CredlySimulator()
    past = [(a_member(str(number)), DAY) for number in range(500)]

    with contextlib.ExitStack() as stack:
        server = stack.enter_context(credly.serve())
        host = make_host(
            past_completions=lambda *_: past,
            CREDLY_API_URL=server.api_url,
            CREDLY_TOKEN_URL=server.token_url,
        )
        stack.enter_context(host.app.app_context())
        connect(host, credly)
        many = Many(host, credly, past)
        batch = many.issue(500)
        assert many.states() == {("issued", None): 500}
        many.accept(*(str(number) for number in range(0, 500, 5)))
        # A worker that died over a request makes it once more where it has to.
        credly.posts_allowed = 6
        credly.fail("revoke", share=0.01, how="reset", seed=1)
        credly.fail("revoke", share=0.01, how="hang", delay=0.05, after=True, seed=2)
        credly.fail("revoke", share=0.01, status=422, seed=3)
        run_id = many.start(Selection(undoes=batch))
        kills = 0

        for wanted in (100, 250):
            limited: dict[str, t.Any] = {"status": 429, "headers": {"Retry-After": "1"}}
            credly.fail("badge", times=2, **limited)
            credly.fail("revoke", status=500, after=True)
            process = start(host, child)
            until = time.monotonic() + 60

            while credly.count("revoke") < wanted:
                assert time.monotonic() < until, "it does not go on"
                time.sleep(0.02)
                # What Credly's errors have closed.
                host.db.session.execute(
                    sa.update(Account)
                    .where(Account.paused_until.is_not(None))
                    .values(paused_until=DAY)
                )
                host.db.session.commit()

            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join(60)
            kills += process.exitcode == DIED

        assert kills == 2
        count: dict[str, int] = {}

        for _ in range(30):
            open_again(host)
            host.let_lists_catch_up()
            many.work()

            if many.progress(run_id).is_over:
                count = many.progress(run_id).count
                break

        assert count.get("revoked", 0) + count.get("failed", 0) == 500
        assert count["revoked"] > 490
        rows = {str(row.badge_id): row for row in host.rows()}
        outcomes = in_session(host.state.engine, undone.page, "default", run_id)
        assert len(outcomes.rows) == 50

        for badge in credly.badges:
            row = rows[badge["id"]]
            history = [each.state for each in credly.history(badge["id"])]
            assert row.action is None
            # Exactly once, and the ledger says so.
            assert history.count("revoked") == (row.state == "revoked")
            assert badge["state"] == row.badge_state
            last = credly.history(badge["id"])[-1]

            if row.state == "revoked":
                assert last.reason == REASON
                assert last.told == (int(row.member_id) % 5 == 0)

        assert sum(row.state == "revoked" for row in rows.values()) == count["revoked"]

    assert credly.problems == []


class TestCommand:
    COURSE = ("--course", "py-101")
    WHY = ("--reason", REASON, "--tell", "accepted")

    def run(self, many: Many, *words: str) -> tuple[int, str]:
        many.host.db.session.rollback()
        result = many.host.app.test_cli_runner().invoke(
            args=["credly", "revoke-many", *words]
        )
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, re.sub(" +", " ", result.output)

    def runs(self, many: Many) -> list[Batch]:
        many.host.db.session.rollback()
        query = sa.select(Batch).where(Batch.verb == "undo")
        return list(many.host.db.session.scalars(query))

    def test_shows_what_it_would_do_and_does_nothing(self, many: Many) -> None:
        batch = many.issue(4)
        many.accept("1")
        engine = many.host.state.engine
        (row,) = (each for each in many.host.rows() if each.member_id == "2")
        actions.revoke(engine, "default", row.id, reason=REASON, tell=True)
        many.host.complete("new")

        code, output = self.run(many, "--batch", str(batch))
        assert (code, output.splitlines()) == (
            0,
            [
                "Python 101:",
                "Queued, will be skipped 0",
                "Sending, will be revoked after issuance 0",
                "Not accepted, will be revoked 2",
                "Accepted, will be revoked 1",
                "Not changed: Already being revoked 1",
                "Badges to skip or revoke 3",
                "To revoke these badges, add --confirm 3 --reason TEXT --tell"
                " everyone|accepted|unaccepted|nobody. You cannot undo this.",
            ],
        )
        code, output = self.run(many, *self.COURSE)
        assert (code, "Queued, will be skipped 1\n" in output) == (0, True)
        assert "--confirm 4 " in output
        assert self.runs(many) == []

    @pytest.mark.parametrize(
        ("whom", "told"),
        [
            ("everyone", (True, True)),
            ("accepted", (False, True)),
            ("unaccepted", (True, False)),
            ("nobody", (False, False)),
        ],
    )
    def test_a_worker_does_it(
        self, many: Many, whom: str, told: tuple[bool, bool]
    ) -> None:
        batch = many.issue(2)
        many.accept("1")
        many.host.complete("own")
        words = ("--batch", str(batch), "--confirm", "2", "--reason", REASON)
        code, output = self.run(many, *words, "--tell", whom)
        (run,) = self.runs(many)

        assert code == 0, output
        assert f"See /integrations/credly/undo/{run.id}\n" in output
        assert many.states() == {("issued", None): 2, ("none", "issue"): 1}
        assert many.finish(run.id) == {"revoked": 2}
        assert changes(many.credly)[:2] == [("revoked", each) for each in told]
        assert many.states()["issued", None] == 1
        assert "There are no badges to revoke." in self.run(many, *words[:2])[1]

    def test_those_requested_between_two_times(self, many: Many) -> None:
        many.issue(3)
        for day, member in ((1, "0"), (2, "1"), (3, "2")):
            at = dt.datetime(2026, 5, day, tzinfo=dt.UTC)
            this = sa.update(Issuance).where(Issuance.member_id == member)
            many.host.db.session.execute(this.values(recorded_at=at))

        many.host.db.session.commit()
        # In any time zone; from then on, and before then.
        times = ("--since", "2026-05-02T02:00+02:00", "--until", "2026-05-03")
        found = self.run(many, *self.COURSE, *times)
        assert "--confirm 1 " in found[1]
        code, _ = self.run(many, *self.COURSE, *times, "--confirm", "1", *self.WHY)
        (run,) = self.runs(many)
        assert (code, many.finish(run.id)) == (0, {"revoked": 1})
        assert [row.state for row in many.host.rows()] == [
            *("issued", "revoked", "issued"),
        ]

    def test_a_course_that_is_not_mapped_any_more(self, many: Many) -> None:
        many.issue(1)
        mapping_id = many.host.db.session.scalars(sa.select(Mapping.id)).one()
        accounts.remove_mapping(many.host.state, mapping_id)
        code, output = self.run(many, *self.COURSE, "--confirm", "1", *self.WHY)
        (run,) = self.runs(many)
        assert (code, run.course_title) == (0, "py-101"), output

    def test_a_course_and_a_learning_path_of_one_id(self, many: Many) -> None:
        many.issue(2)
        this = sa.update(Issuance).where(Issuance.member_id == "1")
        many.host.db.session.execute(this.values(kind="learning_path"))
        many.host.db.session.commit()
        code, output = self.run(many, *self.COURSE)
        assert (code, "Add --kind course or --kind learning_path." in output) == (
            *(2, True),
        )
        code, output = self.run(many, *self.COURSE, "--kind", "learning_path")
        assert (code, "--confirm 1 " in output) == (0, True)

    @pytest.mark.parametrize(
        ("words", "code", "said"),
        [
            ((), 2, "--batch ID or --course ID"),
            (("--batch", "1", "--course", "py-101"), 2, "--batch ID or --course ID"),
            (("--batch", "1", "--since", "2026-01-01"), 2, "with --course only"),
            (("--batch", "99"), 1, "There is no backfill 99."),
            (("--batch", "9" * 30), 1, "There is no backfill 999"),
            (("--batch", "-" + "9" * 30), 1, "There is no backfill -999"),
            (("--batch", "first"), 2, "--batch"),
            (("--course", "nowhere"), 1, "There are no badges of this course."),
            (("--course", ""), 2, "--course"),
            (("--course", "py-101", "--kind", "learning_path"), 1, "no badges of this"),
            (("--course", "py-101", "--until", "2020-01-01"), 1, "in this time."),
            (("--course", "py-101", "--since", "soon"), 2, "Use a time such as"),
            (
                ("--course", "py-101", "--since", "0001-01-01T00:00+14:00"),
                *(2, "Use a time such as"),
            ),
            (("--course", "py-101", "--confirm", "3"), 2, "--reason TEXT"),
            (
                ("--course", "py-101", "--confirm", "3", "--reason", REASON),
                *(2, "--tell everyone|accepted|unaccepted|nobody"),
            ),
            (("--course", "py-101", "--confirm", "all"), 2, "--confirm"),
        ],
    )
    def test_what_it_has_to_be_told(
        self, many: Many, words: tuple[str, ...], code: int, said: str
    ) -> None:
        many.issue(3)
        found = self.run(many, *words)

        assert (found[0], self.runs(many)) == (code, []), found[1]
        assert said in found[1]
        assert "Traceback" not in found[1]

    @pytest.mark.parametrize("reason", ["x", " ", "x" * 501, "Ask ada@example.org"])
    def test_a_reason_that_is_none(self, many: Many, reason: str) -> None:
        many.issue(1)
        words = ("--confirm", "1", "--tell", "nobody", "--reason", reason)
        code, _ = self.run(many, *self.COURSE, *words)
        assert (code, self.runs(many)) == (2, [])

    @pytest.mark.parametrize("number", ["-1", "0", "2", "4", "9" * 30])
    def test_another_number_than_it_showed(self, many: Many, number: str) -> None:
        many.issue(3)
        code, output = self.run(many, *self.COURSE, "--confirm", number, *self.WHY)

        assert (code, self.runs(many)) == (1, [])
        assert "Nothing was done: there are 3 badges" in output
        assert many.states() == {("issued", None): 3}

    def test_those_that_came_since_it_showed_the_number(self, many: Many) -> None:
        many.issue(2)
        _, output = self.run(many, *self.COURSE)
        many.issue(1, first=10)
        code, output = self.run(many, *self.COURSE, "--confirm", "2", *self.WHY)
        assert (code, "there are 3 badges" in output) == (1, True)
        assert self.runs(many) == []

    def test_a_backfill_that_goes_on_is_stopped(self, many: Many) -> None:
        batch = many.issue(3)
        session = many.host.db.session
        session.execute(sa.update(Batch).values(state="recording", due_at=DAY))
        session.commit()
        # It has recorded one more since the number was shown.
        words = ("--batch", str(batch), "--confirm", "2", *self.WHY)
        code, output = self.run(many, *words)
        assert (code, "It is stopped first." in output) == (0, True)
        (run,) = self.runs(many)
        assert many.finish(run.id) == {"revoked": 3}

    def test_a_second_time_while_it_is_done(self, many: Many) -> None:
        many.issue(3)
        words = (*self.COURSE, "--confirm", "3", *self.WHY)
        assert self.run(many, *words)[0] == 0
        code, output = self.run(many, *words)
        assert (code, "are being revoked already" in output) == (1, True)
        assert len(self.runs(many)) == 1

    def test_without_a_connection(self, many: Many) -> None:
        many.issue(1)
        accounts.remove(many.host.state)
        code, output = self.run(many, *self.COURSE, "--confirm", "1", *self.WHY)
        assert (code, "Credly is not connected." in output) == (1, True)

    def test_it_is_noted_in_the_activity(self, many: Many) -> None:
        batch = many.issue(2)
        self.run(many, "--batch", str(batch))
        self.run(many, "--batch", str(batch), "--confirm", "2", *self.WHY)
        entry = many.host.db.session.scalars(
            sa.select(AuditEntry).order_by(AuditEntry.id.desc()).limit(1)
        ).one()
        noted = (entry.actor, entry.action, entry.target)
        assert noted == ("command line", "take back", "Python 101: 2")
        query = sa.select(sa.func.count()).where(AuditEntry.action == "take back")
        assert many.host.db.session.scalar(query) == 1
