"""Badges for members who completed a course before it was mapped."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import re
import threading
import time
import typing as t

import pytest
import sqlalchemy as sa
from click.testing import Result
from conftest import a_member
from conftest import connect
from conftest import Connected
from conftest import every_database
from conftest import Host
from conftest import MakeConnected
from conftest import MakeHost

from flask_credly import accounts
from flask_credly import Course
from flask_credly import jobs
from flask_credly import Member
from flask_credly.catalog import Completion
from flask_credly.issuing import backfill
from flask_credly.issuing import stopping
from flask_credly.ledger import backfills
from flask_credly.ledger import claim
from flask_credly.ledger import gates
from flask_credly.ledger import privacy
from flask_credly.ledger import runs
from flask_credly.models import Batch
from flask_credly.models import Issuance
from flask_credly.models import Mapping
from flask_credly.testing import CredlySimulator
from tests.support.pages import Browser
from tests.support.pages import text_of

WINDOW = "/integrations/credly"
DAY = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)

Pairs = list[tuple[Member, dt.datetime]]


@dataclasses.dataclass
class School:
    """A host that knows who completed a course."""

    host: Host
    credly: CredlySimulator
    past: Pairs
    asked: list[tuple[Course, dt.datetime | None]]

    def graduate(self, *ids: str, at: dt.datetime = DAY, **changes: str) -> None:
        for id_ in ids:
            self.past.append((dataclasses.replace(a_member(id_), **changes), at))

    def mapping_id(self) -> int:
        return self.host.db.session.scalars(sa.select(Mapping.id)).one()

    def start(self) -> int:
        started = backfills.start(self.host.state.engine, "default", self.mapping_id())
        assert started is not None
        return started

    def preview(self) -> tuple[int, ...]:
        found = backfill.preview(self.host.state, Course("py-101", "Python 101"))
        return (
            found.completed,
            found.there,
            found.failed,
            found.incomplete,
            found.to_issue,
        )

    def progress(self, run_id: int) -> tuple[str, int, int, int]:
        self.host.db.session.rollback()
        found = backfills.progress(self.host.db.session, "default", run_id)
        assert found is not None
        return found.run.state, found.to_issue, found.issued, found.failed

    def flask(self, *arguments: str) -> Result:
        return self.host.app.test_cli_runner().invoke(args=["credly", *arguments])

    def states(self) -> dict[str, str]:
        return {row.member_id: row.state for row in self.host.rows()}


@pytest.fixture
def school(make_host: MakeHost, credly: CredlySimulator) -> cabc.Iterator[School]:
    past: Pairs = []
    asked: list[tuple[Course, dt.datetime | None]] = []

    def past_completions(course: Course, since: dt.datetime | None) -> t.Any:
        asked.append((course, since))
        yield from past

    host = make_host(past_completions=past_completions)

    with host.app.app_context():
        connect(host, credly)
        yield School(host, credly, past, asked)


@every_database
def test_those_who_completed_before_get_their_badge_once(school: School) -> None:
    school.graduate("1", "2")
    school.host.complete("2")
    school.host.drain()
    assert school.preview() == (2, 1, 0, 0, 1)

    run_id = school.start()
    jobs.backfill()
    assert school.progress(run_id) == ("recorded", 1, 0, 0)

    school.host.drain()
    assert school.progress(run_id) == ("recorded", 1, 1, 0)
    (badge,) = [
        each
        for each in school.credly.badges
        if each["recipient_email"] == "member-1@example.org"
    ]
    assert badge["issued_at"].startswith("2026-05-01T12:00:00")
    assert len(school.credly.badges) == 2

    # Once more adds nothing.
    school.start()
    jobs.backfill()
    school.host.drain()
    assert len(school.host.rows()) == len(school.credly.badges) == 2


@every_database
def test_more_than_a_chunk_is_recorded(school: School) -> None:
    school.graduate(*(str(number) for number in range(1203)))
    school.start()
    jobs.backfill()

    assert len(school.host.rows()) == 1203
    assert {row.bulk for row in school.host.rows()} == {True}


def test_a_member_without_a_name_is_left_out_and_said(school: School) -> None:
    school.graduate("1")
    school.graduate("2", last_name="")
    school.graduate("3", email=" ")
    assert school.preview() == (3, 0, 0, 2, 1)

    run_id = school.start()
    jobs.backfill()
    school.host.drain()
    found = backfills.progress(school.host.db.session, "default", run_id)

    assert found is not None
    assert (found.run.completed, found.run.incomplete) == (3, 2)
    assert school.states() == {"1": "issued"}
    assert school.host.log() == []


def test_what_failed_before_is_left_to_a_retry(school: School) -> None:
    school.graduate("1")
    body = {"data": {"message": "Example refusal"}, "metadata": None}
    school.credly.fail("issue", times=2, status=422, body=body)
    school.host.complete("1")
    school.host.drain(2)

    assert school.preview() == (1, 0, 1, 0, 0)
    school.start()
    jobs.backfill()
    assert school.states() == {"1": "failed"}


def test_completions_that_come_in_do_not_wait_for_a_backfill(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    past = [(a_member(str(number)), DAY) for number in range(40)]
    host = make_host(past_completions=lambda *_: past, CREDLY_CONCURRENCY=1)

    with host.app.app_context():
        connect(host, credly)
        mapping_id = host.db.session.scalars(sa.select(Mapping.id)).one()
        backfills.start(host.state.engine, "default", mapping_id)
        jobs.backfill()
        host.complete("new")
        host.drain()

    first = credly.badges[0]["recipient_email"]
    assert first == "member-new@example.org"
    assert len(credly.badges) == 41


def test_a_run_is_stopped(school: School) -> None:
    school.graduate("1", "2", "3")
    run_id = school.start()
    jobs.backfill()
    session = school.host.db.session
    session.execute(
        sa.update(Issuance)
        .where(Issuance.member_id == "1")
        .values(state="none", attempts=1, outcome_unknown=True, lease="x")
    )
    session.commit()

    assert backfills.stop(school.host.state.engine, "default", run_id) == 2
    assert school.states() == {"1": "none", "2": "cancelled", "3": "cancelled"}
    assert school.progress(run_id) == ("stopped", 1, 0, 0)

    # Nobody is lost to a later run.
    assert school.preview() == (3, 1, 0, 0, 2)
    again = school.start()
    jobs.backfill()
    assert school.states() == {"1": "none", "2": "none", "3": "none"}
    assert school.progress(again) == ("recorded", 2, 0, 0)


@every_database
def test_what_was_stopped_is_taken_up_with_the_address_of_now(school: School) -> None:
    school.graduate("1", "2")
    run_id = school.start()
    jobs.backfill()
    backfills.stop(school.host.state.engine, "default", run_id)
    school.past.clear()
    school.graduate("1", email="new@example.org")
    school.graduate("2", first_name="Grace")
    school.start()
    jobs.backfill()
    rows = {row.member_id: row for row in school.host.rows()}

    assert school.states() == {"1": "none", "2": "none"}
    assert (rows["1"].email, rows["1"].first_name) == ("new@example.org", "Ada")
    assert (rows["2"].email, rows["2"].first_name) == (a_member("2").email, "Grace")


@every_database
def test_a_completion_signalled_since_is_shown_after_a_stop(school: School) -> None:
    school.graduate("1")
    run_id = school.start()
    jobs.backfill()
    school.host.complete("1")
    backfills.stop(school.host.state.engine, "default", run_id)

    assert school.states() == {"1": "cancelled"}
    assert school.host.row().reason == "stopped"
    assert school.flask("retry", str(school.host.row().id)).exit_code == 0
    school.host.drain()
    assert school.states() == {"1": "issued"}


@every_database
def test_what_is_completed_after_a_stop_is_the_backfills_no_more(
    school: School,
) -> None:
    """Neither another stop nor an undo of the backfill takes that badge away."""
    school.graduate("1")
    run_id = school.start()
    jobs.backfill()
    engine = school.host.state.engine
    backfills.stop(engine, "default", run_id)
    school.host.complete("1")

    assert backfills.stop(engine, "default", run_id) == 0
    assert school.states() == {"1": "none"}
    assert school.host.row().batch_id is None
    school.host.drain()
    assert school.states() == {"1": "issued"}


@every_database
def test_what_a_worker_holds_and_has_not_begun_is_stopped(school: School) -> None:
    school.graduate("1")
    run_id = school.start()
    jobs.backfill()
    engine = school.host.state.engine
    gate = gates.read(engine, "default")
    assert gate is not None
    (row,) = claim.claim(engine, gate, limit=1, lease_seconds=60)
    backfills.stop(engine, "default", run_id)

    assert claim.begin(engine, [row], gate, lease_seconds=60) == []
    claim.release(engine, [row])
    assert school.states() == {"1": "cancelled"}


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("what", ["remove", "change"])
def test_what_the_admin_does_while_a_run_is_recorded(school: School, what: str) -> None:
    """It waits for the run's transaction. SQLite has one writer at a time anyway."""
    engine = school.host.state.engine
    other = school.credly.add_template("Other")
    accounts.sync_templates(school.host.state)
    school.start()
    taken = runs.take(engine, "backfill")
    assert taken is not None
    mapping_id = school.mapping_id()
    school.host.db.session.rollback()
    recorded = threading.Event()
    done: list[object] = []

    def act() -> None:
        recorded.wait(10)

        with school.host.app.app_context():
            if what == "remove":
                done.append(accounts.remove(school.host.state))
            else:
                course = Course("py-101", "Python 101")
                state = school.host.state
                done.append(accounts.change_mapping(state, mapping_id, course, other))

    thread = threading.Thread(target=act)
    thread.start()
    completions = [
        Completion(a_member(str(number)), "py-101", "course", DAY)
        for number in range(20)
    ]

    with engine.begin() as connected:
        assert backfills.add.__wrapped__(  # type: ignore[attr-defined]
            connected, taken, completions, incomplete=0
        )
        recorded.set()
        time.sleep(0.3)  # so that the other meets the open transaction

    thread.join()
    rows = school.host.rows()
    assert len(done) == 1

    if what == "remove":
        assert rows == []
    else:
        school.host.drain()
        assert {row.template_id for row in school.host.rows()} == {other}


def test_a_run_belongs_to_the_worker_that_took_it_last(school: School) -> None:
    school.graduate("1")
    run_id = school.start()
    engine = school.host.state.engine
    first = runs.take(engine, "backfill")
    session = school.host.db.session
    session.execute(sa.update(Batch).values(due_at=DAY))
    session.commit()
    second = runs.take(engine, "backfill")
    assert first is not None and second is not None

    backfills.finish(engine, first, failed=True)
    assert not backfills.add(engine, first, [], incomplete=0)
    assert school.progress(run_id)[0] == "recording"
    backfill.record(school.host.state, second)
    assert school.progress(run_id) == ("recorded", 1, 0, 0)


def test_a_stop_ends_the_recording(school: School) -> None:
    school.graduate(*(str(number) for number in range(2000)))
    run_id = school.start()
    reading = school.host.credly._past_completions
    assert reading is not None
    engine = school.host.state.engine

    def stopped_midway(course: Course, since: dt.datetime | None) -> t.Any:
        for number, each in enumerate(school.past):
            if number == 1200:
                backfills.stop(engine, "default", run_id)

            yield each

    state = dataclasses.replace(school.host.state, past_completions=stopped_midway)
    # On WAL the host is read while the ledger is written.
    with engine.connect() as connected:
        connected.exec_driver_sql("PRAGMA journal_mode = wal")

    backfill.run(state)

    assert set(school.states().values()) == {"cancelled"}
    assert school.progress(run_id)[0] == "stopped"


@every_database
def test_a_run_goes_on_after_a_crash(school: School) -> None:
    school.graduate(*(str(number) for number in range(700)))
    run_id = school.start()
    taken = runs.take(school.host.state.engine, "backfill")
    assert taken is not None

    def dies(course: Course, since: dt.datetime | None) -> t.Any:
        yield from school.past[:600]
        raise SystemExit

    state = dataclasses.replace(school.host.state, past_completions=dies)

    if school.host.state.engine.dialect.name == "sqlite":
        with school.host.state.engine.connect() as connected:
            connected.exec_driver_sql("PRAGMA journal_mode = wal")

    with pytest.raises(SystemExit):
        backfill.record(state, taken)

    assert school.progress(run_id) == ("recording", 500, 0, 0)
    assert not runs.due_for(school.host.state.engine, "backfill")

    # Its lease runs out
    session = school.host.db.session
    session.execute(sa.update(Batch).values(due_at=DAY))
    session.commit()
    assert runs.due_for(school.host.state.engine, "backfill")
    jobs.backfill()

    assert school.progress(run_id) == ("recorded", 700, 0, 0)
    run = session.get(Batch, run_id)
    assert run is not None and run.completed == 700


def connect_and_record(host: Host, credly: CredlySimulator) -> None:
    connect(host, credly)
    mapping_id = host.db.session.scalars(sa.select(Mapping.id)).one()
    host.db.session.rollback()
    assert backfills.start(host.state.engine, "default", mapping_id)
    jobs.backfill()


@every_database
def test_it_ends_however_many_members_are_erased_meanwhile(
    make_host: MakeHost, credly: CredlySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "CHUNK", 4)
    there = [str(number) for number in range(10)]
    read: list[str] = []

    def past_completions(course: Course, since: dt.datetime | None) -> t.Any:
        for id_ in list(there):
            read.append(id_)
            yield a_member(id_), DAY

            # Otherwise it would be read for ever.
            if int(id_) % 2 and len(read) < 30:
                there.remove(id_)
                privacy.erase(host.state.engine, "default", id_)

    host = make_host(past_completions=past_completions)

    with host.app.app_context():
        connect_and_record(host, credly)

        assert len(read) == 10
        left = [row.member_id for row in host.rows() if row.erased_at is None]
        assert sorted(left) == ["0", "2", "4", "6", "8"]


def test_after_very_many_erasures_it_begins_anew(
    make_host: MakeHost, credly: CredlySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "MOST_LEFT_OUT", 2)
    there = [str(number) for number in range(6)]
    read: list[str] = []

    def past_completions(course: Course, since: dt.datetime | None) -> t.Any:
        read.extend(there)
        yield from [(a_member(id_), DAY) for id_ in there]

        for id_ in there[:3]:
            there.remove(id_)
            privacy.erase(host.state.engine, "default", id_)

    host = make_host(past_completions=past_completions)

    with host.app.app_context():
        connect_and_record(host, credly)

        assert host.rows() == []
        assert len(read) == 6 + 3


@pytest.mark.parametrize("again", [None, "each"])
def test_a_member_who_is_erased_while_it_reads_is_not_recorded(
    make_host: MakeHost, credly: CredlySimulator, again: str | None
) -> None:
    there = ["1", "2", "3"]

    def past_completions(course: Course, since: dt.datetime | None) -> t.Any:
        yield from [(a_member(id_), DAY) for id_ in there]

        if "1" in there:
            there.remove("1")
            privacy.erase(host.state.engine, "default", "1")

    host = make_host(past_completions=past_completions)

    with host.app.app_context():
        connect(host, credly)
        session = host.db.session
        mapping_id = session.scalars(sa.select(Mapping.id)).one()
        session.execute(
            sa.update(Mapping).values(again=again, options={"again": again})
        )
        session.commit()
        assert backfills.start(host.state.engine, "default", mapping_id)
        jobs.backfill()

        assert session.scalars(sa.select(Batch.state)).one() == "recorded"
        assert sorted(row.member_id for row in host.rows()) == ["2", "3"]


def test_a_worker_told_to_stop_leaves_a_run_to_the_next(school: School) -> None:
    school.graduate(*(str(number) for number in range(700)))
    run_id = school.start()
    taken = runs.take(school.host.state.engine, "backfill")
    assert taken is not None
    stopping.set()

    try:
        backfill.record(school.host.state, taken)
    finally:
        stopping.clear()

    assert school.progress(run_id) == ("recording", 500, 0, 0)
    assert runs.due_for(school.host.state.engine, "backfill")


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(["no pair"], id="no-pair"),
        pytest.param([(a_member(), "yesterday")], id="no-time"),
        pytest.param([("Ada", DAY)], id="no-member"),
        pytest.param([(a_member(), None)], id="no-time-at-all"),
    ],
)
def test_a_hook_that_fails_is_said(
    make_connected: MakeConnected, caplog: pytest.LogCaptureFixture, wrong: list[t.Any]
) -> None:
    host, _, _ = make_connected(
        past_completions=lambda *_: [(a_member("1"), DAY), *wrong]
    )
    mapping_id = host.db.session.scalars(sa.select(Mapping.id)).one()
    run_id = backfills.start(host.state.engine, "default", mapping_id)
    jobs.backfill()
    browser = Browser(host.app)
    assert "The backfill of course 'py-101' failed." in caplog.text
    assert "could not be fully read" in text_of(
        browser.get(f"{WINDOW}/backfills/{run_id}")
    )
    assert "could not be read." in text_of(
        browser.get(f"{WINDOW}/mappings/{mapping_id}/backfill")
    )


def test_two_clicks_begin_one_run(school: School) -> None:
    school.graduate("1")

    assert school.start() == school.start()


def test_remove_ends_a_run(school: School) -> None:
    school.graduate("1")
    school.start()
    jobs.backfill()
    accounts.remove(school.host.state)
    jobs.backfill()

    assert school.states() == {}
    assert school.host.db.session.scalars(sa.select(Batch)).all() == []


def test_a_mapping_that_is_removed_ends_a_run(school: School) -> None:
    school.graduate("1")
    run_id = school.start()
    accounts.remove_mapping(school.host.state, school.mapping_id())
    jobs.backfill()

    assert school.progress(run_id) == ("stopped", 0, 0, 0)


# The command


def test_the_page_takes_a_first_day_and_names_who_is_left_out(school: School) -> None:
    school.graduate("1", at=DAY)
    school.graduate("2", at=DAY + dt.timedelta(days=30))
    school.graduate("3", at=DAY + dt.timedelta(days=30), first_name="")
    browser = Browser(school.host.app)
    path = f"{WINDOW}/mappings/{school.mapping_id()}/backfill"

    everyone = " ".join(text_of(browser.get(path)).split())
    assert "Completed 3" in everyone
    assert "Members who will be skipped" in everyone
    assert "Member id: 3" in everyone

    since = (DAY + dt.timedelta(days=10)).date().isoformat()
    later = browser.get(f"{path}?since={since}")
    assert "Completed 2" in " ".join(text_of(later).split())
    assert f'name="since" value="{since}"' in later.text

    wrong = browser.get(f"{path}?since=soon")
    assert "Enter a date, such as 2026-03-31." in text_of(wrong)
    assert "Issue 2 badges" not in text_of(wrong)
    assert browser.post(path, page=path, since="soon").location == path

    place = browser.post(path, page=path, since=since).location
    jobs.backfill()
    assert "Only completions since" in text_of(browser.get(place))
    assert school.states() == {"2": "none"}


def test_the_command_heals_what_was_never_signalled(school: School) -> None:
    school.graduate("1", at=DAY)
    school.graduate("2", at=DAY + dt.timedelta(days=30))
    counted = school.flask("backfill", "--dry-run")
    assert counted.exit_code == 0
    assert counted.output == (
        "Python 101: 2 completed, 0 issued, held or queued, 0 failed or skipped,"
        " 0 without an e-mail address or name, 2 to issue.\n"
    )
    assert school.states() == {}

    # What the host yields too much is left out.
    assert school.flask("backfill", "--since", "2026-05-15").exit_code == 0
    assert school.asked[-1][1] == dt.datetime(2026, 5, 15, tzinfo=dt.UTC)
    assert school.states() == {"2": "none"}

    recorded = school.flask("backfill").output
    assert "1 issued, held or queued" in recorded
    assert re.search(r"1 to issue\.\nPython 101: 1 queued \(batch \d+\)\.\n$", recorded)
    assert school.states() == {"1": "none", "2": "none"}


@pytest.mark.parametrize(
    "given",
    [
        "2026-05-15",
        "2026-05-15 00:00:00",
        "2026-05-15T00:00:00",
        "2026-05-15T00:00:00Z",
        "2026-05-15T00:00:00+00:00",
        "2026-05-15T02:00:00+02:00",
    ],
)
def test_the_command_takes_a_time_in_each_of_its_forms(
    school: School, given: str
) -> None:
    assert school.flask("backfill", "--since", given, "--dry-run").exit_code == 0
    assert school.asked[-1][1] == dt.datetime(2026, 5, 15, tzinfo=dt.UTC)


def test_the_command_says_how_to_write_a_time(school: School) -> None:
    found = school.flask("backfill", "--since", "15 May")

    assert found.exit_code == 2
    assert "2025-01-31T12:00:00Z" in found.output


def test_the_command_is_for_mapped_courses(school: School) -> None:
    found = school.flask("backfill", "--course", "sql")

    assert found.exit_code == 1
    assert "There is no mapping for this course." in found.output


def test_the_command_says_what_to_write(connected: Connected) -> None:
    runner = connected.host.app.test_cli_runner()
    found = runner.invoke(args=["credly", "backfill"])

    assert found.exit_code == 1
    assert "'@credly.past_completions'" in found.output


def a_mistake(course: Course, since: dt.datetime | None) -> t.Any:
    found: t.Any = None
    yield found["of the host"]


@pytest.mark.parametrize("dry_run", [["--dry-run"], []])
def test_the_command_names_a_hook_that_raises(
    make_host: MakeHost,
    credly: CredlySimulator,
    caplog: pytest.LogCaptureFixture,
    dry_run: list[str],
) -> None:
    host = make_host(past_completions=a_mistake)

    with host.app.app_context():
        connect(host, credly)

    runner = host.app.test_cli_runner()
    found = runner.invoke(args=["credly", "backfill", *dry_run])
    (record,) = [each for each in caplog.records if hasattr(each, "credly_hook")]

    assert found.exit_code == 1
    assert "@credly.past_completions hook failed (TypeError)" in found.output
    assert "is not subscriptable" not in found.output
    assert vars(record)["credly_hook"] == "past_completions"
    assert 'yield found["of the host"]' in caplog.text


def test_the_command_says_what_a_hook_must_yield(school: School) -> None:
    school.past.append((a_member("1"), t.cast(dt.datetime, None)))
    found = school.flask("backfill")

    assert found.exit_code == 1
    assert "must yield pairs of a Member and an aware time" in found.output
    assert school.states() == {}


def test_the_command_fails_where_the_recording_does(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> t.NoReturn:
        raise sa.exc.DataError("", {}, Exception("bad value"))

    school.graduate("1")
    monkeypatch.setattr(backfills, "add", fail)
    found = school.flask("backfill")

    assert found.exit_code == 1
    assert "1 to issue." in found.output
    assert re.search(r"Python 101: 0 queued \(batch \d+\)\.", found.output)
    assert "Some completions could not be recorded" in found.output


# The pages


def test_the_page_counts_starts_shows_and_stops(school: School) -> None:
    school.graduate("1", "2")
    school.graduate("3", first_name="")
    browser = Browser(school.host.app)
    path = f"{WINDOW}/mappings/{school.mapping_id()}/backfill"
    assert f'href="{path}"' in browser.get(WINDOW).text

    shown = " ".join(text_of(browser.get(path)).split())
    assert "Completed 3" in shown
    assert "Will be skipped 1: no e-mail address, first name or last name" in shown
    assert "Issue 2 badges" in shown

    started = browser.post(path, page=path)
    assert started.status_code == 303
    place = started.location
    assert "Finding members" in text_of(browser.get(place))
    jobs.backfill()
    assert "0 of 2 done, 0 failed" in text_of(browser.get(place))
    assert "0 of 2 done" in text_of(browser.get(WINDOW))

    school.host.drain()
    assert "Finished: 2 issued, 0 failed." in text_of(browser.get(place))
    assert "of 2 done" not in text_of(browser.get(WINDOW))
    assert "Nothing to issue." in text_of(browser.get(path))

    school.graduate("4")
    place = browser.post(path, page=path).location
    jobs.backfill()
    stopped = browser.post(f"{place}/stop", page=place)
    assert "Stopped. Queued badges are skipped." in text_of(
        browser.get(stopped.location)
    )
    assert school.states() == {"1": "issued", "2": "issued", "4": "cancelled"}


def test_progress_is_read_out_by_quarters(school: School) -> None:
    school.graduate(*"12345678")
    browser = Browser(school.host.app)
    run_id = school.start()
    jobs.backfill()
    hx = {"HX-Request": "true"}
    place = f"{WINDOW}/backfills/{run_id}"
    assert "hx-swap-oob" not in browser.get(f"{place}?said=0", headers=hx).text

    session = school.host.db.session
    some = sa.select(Issuance.id).limit(5)
    session.execute(
        sa.update(Issuance)
        .where(Issuance.id.in_(session.scalars(some).all()))
        .values(state="issued", due_at=None)
    )
    session.commit()
    part = browser.get(f"{place}?said=0", headers=hx)
    assert "50 % done" in text_of(part)
    assert 'hx-swap-oob="innerHTML"' in part.text
    assert "said=2" in part.text


def test_a_host_without_the_hook_is_not_offered_it(
    connected: Connected,
) -> None:
    browser = Browser(connected.host.app)
    (mapping,) = accounts.list_mappings(connected.host.db.session, "default")
    assert "Earlier completions" not in browser.get(WINDOW).text
    found = browser.get(f"{WINDOW}/mappings/{mapping.id}/backfill")
    assert found.status_code == 303


def test_a_host_with_too_many_is_not_counted_to_the_end(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_credly.admin.backfills.SECONDS", 0)
    school.graduate(*(str(number) for number in range(600)))
    browser = Browser(school.host.app)
    path = f"{WINDOW}/mappings/{school.mapping_id()}/backfill"
    shown = text_of(browser.get(path))

    assert "More than 500" in shown
    assert "Badges are issued for all of them." in shown
