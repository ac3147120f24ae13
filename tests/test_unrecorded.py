"""Completions that could not be recorded: counted, shown, and added later."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import datetime as dt
import json
import os
import pathlib
import threading
import time
import typing as t
import uuid

import pytest
import redis
import sqlalchemy as sa
from click.testing import Result
from conftest import a_member
from conftest import connect
from conftest import COURSES
from conftest import DEAD_REDIS
from conftest import every_database
from conftest import Host
from conftest import in_threads
from conftest import MakeConnected
from conftest import MakeHost
from sqlalchemy import event

from flask_credly import accounts
from flask_credly import Course
from flask_credly import course_completed
from flask_credly import jobs
from flask_credly import Member
from flask_credly.issuing import meanwhile
from flask_credly.issuing import notifier
from flask_credly.issuing import periodic
from flask_credly.issuing import unrecorded
from flask_credly.ledger import backfills
from flask_credly.ledger import privacy
from flask_credly.ledger import unrecorded as counted
from flask_credly.models import AuditEntry
from flask_credly.models import Batch
from flask_credly.models import Issuance
from flask_credly.models import Mapping
from flask_credly.models import Unrecorded
from flask_credly.testing import CredlySimulator
from tests.support.farm import Farm
from tests.support.farm import farm as farm
from tests.support.farm import wait_for
from tests.support.farm import WORKER
from tests.support.pages import Browser
from tests.support.pages import text_of
from tests.support.pages import WINDOW

HOUR = dt.timedelta(hours=1)
DAY = dt.timedelta(days=1)


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@dataclasses.dataclass
class School:
    """A host that knows who completed a course, and whose database can break."""

    host: Host
    credly: CredlySimulator
    past: list[tuple[Member, dt.datetime]]
    asked: list[tuple[str, dt.datetime | None]]
    browser: Browser

    def graduate(self, id_: str, at: dt.datetime | None = None) -> None:
        """Have a completion in the host's records, and signal nothing."""
        self.past.append((a_member(id_), at or now()))

    def complete(self, id_: str, **given: t.Any) -> None:
        """Have it there and signal it."""
        at = now()
        self.graduate(id_, at)
        self.host.complete(id_, completed_at=at, **given)
        self.host.wait_for_count()

    def map_since(self, at: dt.datetime | None) -> None:
        self.change(sa.update(Mapping).values(created_at=at))

    def change(self, *statements: t.Any) -> None:
        with self.host.state.engine.begin() as connected:
            for each in statements:
                connected.execute(sa.text(each) if isinstance(each, str) else each)

    def flask(self, *arguments: str) -> Result:
        self.host.db.session.rollback()
        return self.host.app.test_cli_runner().invoke(args=["credly", *arguments])

    def status(self) -> tuple[int, dt.datetime | None]:
        found = json.loads(self.flask("status", "--json").output)
        since = found["unrecorded_since"]
        return found["unrecorded"], since and dt.datetime.fromisoformat(since)

    def doctor(self) -> dict[str, str]:
        found: dict[str, str] = json.loads(self.flask("doctor", "--json").output)[
            "checks"
        ]["unrecorded"]
        return found

    def window(self) -> str:
        self.host.db.session.rollback()
        return " ".join(text_of(self.browser.get(WINDOW)).split())

    def states(self) -> dict[str, str]:
        return {row.member_id: row.state for row in self.host.rows()}

    def done(self) -> list[tuple[str, str, str]]:
        self.host.db.session.rollback()
        entries = self.host.db.session.scalars(
            sa.select(AuditEntry).order_by(AuditEntry.id)
        )
        return [(each.actor, each.action, each.target) for each in entries]

    @property
    def redis(self) -> redis.Redis:
        return notifier.web_queue(self.host.state).connection

    @property
    def key(self) -> str:
        return f"flask-credly:unrecorded:{self.host.state.settings.queue}"

    @contextlib.contextmanager
    def broken(self, how: str) -> cabc.Iterator[None]:
        """Let the ledger take no row."""
        there, back = BREAKS[how]
        dialect = self.host.state.engine.dialect.name
        self.host.db.session.remove()
        self.change(*_statements(there, dialect))
        yield
        self.host.db.session.remove()
        self.change(*_statements(back, dialect))


RAISE = {
    "sqlite": [
        "CREATE TRIGGER full BEFORE INSERT ON credly_issuance BEGIN"
        " SELECT RAISE(FAIL, 'database or disk is full'); END"
    ],
    "postgresql": [
        "CREATE FUNCTION refuse() RETURNS trigger AS $$ BEGIN"
        " RAISE EXCEPTION USING ERRCODE = '53100', MESSAGE = 'disk full'; END $$"
        " LANGUAGE plpgsql",
        "CREATE TRIGGER full_disk BEFORE INSERT ON credly_issuance FOR EACH ROW"
        " EXECUTE FUNCTION refuse()",
    ],
    "mysql": [
        "CREATE TRIGGER full_disk BEFORE INSERT ON credly_issuance FOR EACH ROW"
        " SIGNAL SQLSTATE 'HY000' SET MESSAGE_TEXT = 'Disk full', MYSQL_ERRNO = 1021"
    ],
}
RAISE_NOT = {
    "sqlite": ["DROP TRIGGER full"],
    "postgresql": [
        "DROP TRIGGER full_disk ON credly_issuance",
        "DROP FUNCTION refuse",
    ],
    "mysql": ["DROP TRIGGER full_disk"],
}
AWAY = "ALTER TABLE {0} RENAME TO {0}_away"
BACK = "ALTER TABLE {0}_away RENAME TO {0}"

BREAKS: dict[str, tuple[t.Any, t.Any]] = {
    "no table yet": (
        [AWAY.format("credly_issuance")],
        [BACK.format("credly_issuance")],
    ),
    "no column yet": (
        ["ALTER TABLE credly_issuance RENAME COLUMN bulk TO away"],
        ["ALTER TABLE credly_issuance RENAME COLUMN away TO bulk"],
    ),
    "full": (RAISE, RAISE_NOT),
    "no tables of ours yet": (
        [AWAY.format("credly_issuance"), AWAY.format("credly_unrecorded")],
        [BACK.format("credly_issuance"), BACK.format("credly_unrecorded")],
    ),
}


def _statements(given: t.Any, dialect: str) -> list[str]:
    found = given[dialect] if isinstance(given, dict) else given
    # A percent sign or colon of theirs would be a parameter.
    return [each.replace(":", r"\:") for each in found]


MakeSchool = cabc.Callable[..., School]


@pytest.fixture
def make_school(
    make_host: MakeHost, credly: CredlySimulator, redis_url: str
) -> cabc.Iterator[MakeSchool]:
    with contextlib.ExitStack() as stack:

        def make(*, hook: bool = True, **given: t.Any) -> School:
            past: list[tuple[Member, dt.datetime]] = []
            asked: list[tuple[str, dt.datetime | None]] = []

            def past_completions(course: Course, since: dt.datetime | None) -> t.Any:
                asked.append((course.id, since))
                yield from past

            config = {
                "CREDLY_REDIS_URL": redis_url,
                "CREDLY_QUEUE": f"credly-{uuid.uuid4().hex}",
                **given,
            }
            host = make_host(
                past_completions=past_completions if hook else None, **config
            )
            stack.enter_context(host.app.app_context())
            connect(host, credly)
            return School(host, credly, past, asked, Browser(host.app))

        yield make


@pytest.fixture
def school(make_school: MakeSchool) -> School:
    return make_school()


def write_enrolment(host: Host) -> None:
    """Write in the host's transaction."""
    host.db.session.execute(sa.text("INSERT INTO enrolment (done) VALUES (1)"))


@pytest.fixture
def enrolled(school: School) -> School:
    school.change("CREATE TABLE enrolment (done INT)")
    return school


# Counted and shown


@every_database
@pytest.mark.parametrize("how", BREAKS)
def test_what_could_not_be_recorded_is_shown_healed_and_said(
    school: School, how: str
) -> None:
    before = now()
    assert school.status() == (0, None)
    assert school.doctor()["status"] == "ok"

    with school.broken(how):
        school.complete("1")
        school.complete("2")
        school.complete("3")

    number, since = school.status()
    assert number == 3
    assert since is not None and before <= since <= now()
    found = school.doctor()
    assert found["status"] == "error"
    assert found["detail"].startswith("3 completions could not be recorded since ")
    assert f"flask credly backfill --since {(since - HOUR).date()}" in found["hint"]
    assert "3 completions could not be recorded since " in school.window()
    assert school.states() == {}

    jobs.heal()
    school.host.drain()

    assert school.states() == {"1": "issued", "2": "issued", "3": "issued"}
    assert school.status() == (0, None)
    assert school.doctor()["status"] == "ok"
    page = school.window()
    assert "could not be recorded" not in page
    assert "3 missing completions were recorded, the last at " in page
    assert ("worker", "heal", "Python 101") in school.done()


@every_database
def test_it_is_counted_where_the_host_commits_and_not_where_it_rolls_back(
    enrolled: School,
) -> None:
    host = enrolled.host

    with enrolled.broken("full"):
        write_enrolment(host)
        enrolled.complete("1")
        host.db.session.rollback()
        write_enrolment(host)
        enrolled.complete("2")
        assert not host.state.uncounted.counts
        host.db.session.commit()
        host.wait_for_count()

        # A wrong call too: the host took it back with all that it stood for.
        write_enrolment(host)
        enrolled.host.complete(member=t.cast(t.Any, "42"))
        host.db.session.rollback()
        write_enrolment(host)
        host.db.session.commit()
        host.wait_for_count()

    assert enrolled.status()[0] == 1


@every_database
def test_it_is_counted_where_the_host_only_reads(school: School) -> None:
    with school.broken("no table yet"):
        school.host.db.session.scalars(sa.select(Mapping)).all()
        school.complete("1")
        school.host.db.session.remove()
        school.host.wait_for_count()

    assert school.status()[0] == 1


@pytest.mark.parametrize(
    "given",
    [
        {"member": None},
        {"course_id": None},
        {"kind": "webinar"},
        {"session": "no session"},
    ],
    ids=str,
)
def test_a_wrong_call_is_counted(school: School, given: dict[str, t.Any]) -> None:
    arguments = {"member": a_member(), "course_id": "py-101", **given}
    course_completed.send(school.host.app, **arguments)
    school.host.wait_for_count()

    assert school.status()[0] == 1


def test_a_wrong_call_outside_of_a_context_is_counted(
    make_host: MakeHost, credly: CredlySimulator
) -> None:
    host = make_host()
    course_completed.send(host.app, course_id="py-101")
    host.wait_for_count()

    with host.app.app_context():
        assert unrecorded.read(host.state).number == 1


READ_ONLY = {
    "sqlite": ("PRAGMA query_only = 1", "PRAGMA query_only = 0"),
    "postgresql": (
        "SET default_transaction_read_only = on",
        "SET default_transaction_read_only = off",
    ),
    "mysql": (
        "SET SESSION TRANSACTION READ ONLY",
        "SET SESSION TRANSACTION READ WRITE",
    ),
}


@every_database
def test_a_read_only_database_leaves_the_count_to_redis_until_it_writes_again(
    school: School,
) -> None:
    engine = school.host.state.engine
    on, _ = READ_ONLY[engine.dialect.name]

    def set_read_only(raw: t.Any, _: object) -> None:
        cursor = raw.cursor()
        cursor.execute(on)
        cursor.close()
        raw.commit()

    event.listen(engine, "connect", set_read_only)
    school.host.db.session.remove()
    engine.dispose()

    school.complete("1")
    school.complete("2")
    assert school.status()[0] == 2
    assert school.doctor()["status"] == "error"
    assert "2 completions could not be recorded" in school.window()

    # No personal data, and it stays.
    values = school.redis.hgetall(school.key)
    assert set(values) == {b"number/default", b"since/default"}
    assert values[b"number/default"] == b"2"
    assert school.redis.ttl(school.key) == -1
    assert sweep(school) == 2  # which changes nothing while nothing can be written

    event.remove(engine, "connect", set_read_only)
    school.host.db.session.remove()
    engine.dispose()

    assert sweep(school) == 2
    assert school.redis.exists(school.key) == 0
    assert school.host.db.session.scalars(sa.select(Unrecorded.number)).all() == [2]


SINCE = "2026-01-01T00:00:00+00:00"


@pytest.mark.parametrize(
    "forged",
    [
        {"number/default": "-2", "since/default": SINCE},
        {"number/default": "9" * 30, "since/default": SINCE},
        {"number/default": "9" * 4000, "since/default": SINCE},
        {"number/default": b"\xff", "since/default": SINCE},
        {"number/default": "3", "since/default": "2026-01-01T00:00:00"},
        {"number/default": "3", "since/default": "0001-01-01T00:00:00+23:59"},
        {"number/default": "3", "since/default": "9999-12-31T23:59:59-23:59"},
    ],
)
def test_what_is_forged_in_redis_hides_no_count(
    school: School, forged: dict[str, t.Any]
) -> None:
    with school.broken("no column yet"):
        school.complete("1")
        school.complete("2")

    assert sweep(school) == 2
    school.redis.hset(school.key, mapping=forged)

    assert school.status()[0] == 2
    assert sweep(school) == 2
    assert school.doctor()["status"] == "error"
    assert "2 completions could not be recorded" in school.window()
    assert school.flask("dismiss").output == "2 dismissed.\n"
    assert school.status() == (0, None)


@pytest.mark.parametrize(
    "forge",
    [
        lambda redis, key: redis.rpush(key, "1"),
        lambda redis, key: redis.set(key, "1"),
        lambda redis, key: redis.zadd(key, {"1": 1}),
        lambda redis, key: redis.hset(
            key, mapping={"number/default": "x", "since/default": SINCE}
        ),
    ],
    ids=["list", "string", "set", "hash"],
)
def test_what_is_of_another_kind_in_redis_stops_neither_the_worker_nor_the_count(
    school: School, forge: t.Callable[[t.Any, str], object]
) -> None:
    forge(school.redis, school.key)
    assert sweep(school) == 0
    assert not school.redis.exists(school.key)

    forge(school.redis, school.key)
    unrecorded._to_redis(school.host.state, "default", counted.Count(2, now()))
    assert school.redis.hget(school.key, "number/default") == b"2"
    assert sweep(school) == 2


def test_a_lock_that_never_ends_holds_up_no_count(school: School) -> None:
    lock = f"{school.key}:lock"
    school.redis.rpush(lock, "1")
    unrecorded._to_redis(school.host.state, "default", counted.Count(2, now()))
    sweep(school)

    assert 0 < school.redis.ttl(lock) <= 60


def sweep(school: School) -> int:
    assert school.flask("sweep").exit_code == 0
    return school.status()[0]


def test_a_full_disk_is_known(school: School) -> None:
    """SQLite's own limit: the row that has no room is the member's, not the count."""
    engine = school.host.state.engine
    school.host.db.session.remove()
    counted.add(engine, "default", counted.Count(1, now()))

    def limit(raw: t.Any, _: object) -> None:
        (pages,) = raw.execute("PRAGMA page_count").fetchone()
        raw.execute(f"PRAGMA max_page_count = {pages}")

    engine.dispose()
    event.listen(engine, "connect", limit)

    for number in range(200):
        school.complete(str(number))

    event.remove(engine, "connect", limit)
    school.host.db.session.remove()
    engine.dispose()

    missing = 200 - len(school.states())
    assert missing > 0
    assert school.status()[0] == 1 + missing


def test_where_nothing_takes_the_count_the_process_keeps_it(
    make_school: MakeSchool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unrecorded, "PAUSE", 0.05)
    school = make_school(CREDLY_REDIS_URL=DEAD_REDIS)

    with school.broken("no tables of ours yet"):
        school.graduate("1")
        school.host.complete("1")
        school.host.complete("2")
        time.sleep(0.2)
        assert sum(each[1] for each in school.host.state.uncounted.counts) == 2
        assert school.doctor()["detail"].startswith("2 completions could not be")

    # By itself, without a restart or another completion.
    school.host.wait_for_count()
    assert school.host.db.session.scalars(sa.select(Unrecorded.number)).all() == [2]
    assert school.status()[0] == 2


def test_no_request_waits_for_the_count(
    make_school: MakeSchool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is locked, and the host itself has the lock."""
    school = make_school()
    begun = threading.Event()

    def slow(*_: object) -> None:
        begun.set()
        time.sleep(2)

    monkeypatch.setattr(counted, "add", slow)
    before = time.monotonic()
    course_completed.send(school.host.app, course_id="py-101")
    took = time.monotonic() - before

    assert begun.wait(5)
    assert took < 0.5


def test_a_host_with_one_connection_for_all_threads_keeps_its_transaction(
    make_connected: MakeConnected,
) -> None:
    host, _, _ = make_connected(SQLALCHEMY_DATABASE_URI="sqlite://")
    session = host.db.session
    session.execute(sa.text("CREATE TABLE enrolment (done INT)"))
    session.commit()
    write_enrolment(host)

    # Counts at once, in the midst of the host's transaction.
    unrecorded.note(host.state)
    host.wait_for_ring()
    time.sleep(0.2)
    session.rollback()

    assert session.scalar(sa.text("SELECT count(*) FROM enrolment")) == 0
    assert unrecorded.read(host.state).number == 1


@pytest.mark.slow
def test_a_process_that_ends_at_once_has_counted(farm: Farm) -> None:
    with farm.host.state.engine.begin() as connected:
        connected.execute(sa.text(AWAY.format("credly_issuance")))

    assert "was not recorded" in farm.run("flask", "complete")

    with farm.host.state.engine.begin() as connected:
        connected.execute(sa.text(BACK.format("credly_issuance")))

    found = json.loads(farm.run("flask", "credly", "status", "--json"))
    assert found["unrecorded"] == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_does_not_count_what_its_parent_did(
    make_school: MakeSchool, tmp_path: pathlib.Path
) -> None:
    school = make_school(CREDLY_REDIS_URL=DEAD_REDIS)
    school.host.state.uncounted.over.set()  # so that no thread waits here

    with school.broken("no tables of ours yet"):
        school.complete("1")
        assert len(school.host.state.uncounted.counts) == 1

        if not (child := os.fork()):
            counts = school.host.state.uncounted.counts
            (tmp_path / "child").write_text(str(len(counts)))
            os._exit(0)

        os.waitpid(child, 0)

    assert (tmp_path / "child").read_text() == "0"
    assert len(school.host.state.uncounted.counts) == 1


@every_database
def test_counts_of_many_processes_at_once_are_all_there(school: School) -> None:
    engine = school.host.state.engine
    one = counted.Count(1, now())
    in_threads(*[lambda: counted.add(engine, "default", one)] * 8)

    assert school.status()[0] == 8


@every_database
def test_the_earliest_time_stays_and_what_comes_meanwhile_too(school: School) -> None:
    engine = school.host.state.engine
    counted.add(engine, "default", counted.Count(2, now() - DAY))
    counted.add(engine, "default", counted.Count(1, now() - 2 * DAY))
    counted.add(engine, "default", counted.Count(3, now()))

    number, since = school.status()
    assert number == 6
    assert since is not None and since < now() - DAY - HOUR

    counted.settle(engine, "default", 4)
    assert school.status()[0] == 2
    counted.settle(engine, "default", 4)
    assert school.status() == (0, None)


# Dismissed


def test_without_the_hook_it_is_dismissed_on_the_page(make_school: MakeSchool) -> None:
    school = make_school(hook=False)

    with school.broken("no table yet"):
        school.complete("1")

    found = school.doctor()
    assert found["status"] == "error"
    assert "Send them again, then run flask credly dismiss" in found["hint"]
    page = school.window()
    assert "1 completion could not be recorded since " in page
    assert "can send them again" in page

    # One more since the page was loaded stays.
    counted.add(school.host.state.engine, "default", counted.Count(1, now()))
    path = f"{WINDOW}/unrecorded/1/dismiss"
    browser = school.browser
    browser.client.post(path)  # without a token
    assert school.status()[0] == 2
    assert browser.post(path).status_code == 303
    assert school.status()[0] == 1
    assert school.done()[-1] == ("", "dismiss", "1")
    browser.post(path)
    assert school.doctor()["status"] == "ok"


def test_it_is_dismissed_by_a_command(make_school: MakeSchool) -> None:
    school = make_school(hook=False)

    with school.broken("no tables of ours yet"):
        school.complete("1")

    assert school.flask("dismiss").output == "1 dismissed.\n"
    assert school.status() == (0, None)
    assert school.done()[-1] == ("command line", "dismiss", "1")
    assert school.flask("dismiss").output == "0 dismissed.\n"
    assert [each[1] for each in school.done()].count("dismiss") == 1


# By the command


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ((), 0),
        (("--since", "2020-01-01"), 0),
        (("--since", "2999-01-01"), 1),
        (("--course", "py-101"), 1),
        (("--dry-run",), 1),
    ],
    ids=str,
)
def test_a_backfill_of_all_settles_the_count(
    school: School, arguments: tuple[str, ...], left: int
) -> None:
    with school.broken("no table yet"):
        school.complete("1")

    assert school.flask("backfill", *arguments).exit_code == 0
    assert school.status()[0] == left


def test_a_backfill_that_fails_settles_nothing(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    with school.broken("no table yet"):
        school.complete("1")

    with school.broken("full"):
        assert school.flask("backfill").exit_code == 1

    assert school.status()[0] == 1


def test_a_course_and_a_path_with_one_id_are_told_apart(school: School) -> None:
    path = Course("py-101", "Python path", "learning_path")
    (mapping,) = accounts.list_mappings(school.host.db.session, "default")
    accounts.add_mapping(school.host.state, path, mapping.template_id)
    found = school.flask("backfill", "--course", "py-101", "--dry-run")

    assert found.exit_code == 2
    assert "A course and a learning path share the id 'py-101'." in found.output
    assert "--kind course or --kind learning_path" in found.output
    assert school.asked == []

    given = ("backfill", "--course", "py-101", "--dry-run", "--kind")
    assert school.flask(*given, "course").output.startswith("Python 101: ")
    assert school.flask(*given, "learning_path").output.startswith("Python path: ")
    assert school.flask(*given, "webinar").exit_code == 2
    found = school.flask("backfill", "--kind", "learning_path", "--dry-run")
    assert found.output.startswith("Python path: ")


# Healed


@every_database
def test_nothing_is_issued_unasked_from_before_the_mapping(school: School) -> None:
    school.map_since(now() - 2 * DAY)
    school.graduate("before", now() - 3 * DAY)
    school.graduate("after", now() - DAY)
    jobs.heal()

    assert school.states() == {"after": "none"}
    assert school.host.row().bulk
    assert school.asked[0][1] is not None
    assert abs(school.asked[0][1] - (now() - 2 * DAY)) < HOUR


def test_it_looks_at_the_last_days_and_further_where_something_is_missing(
    school: School,
) -> None:
    school.map_since(now() - 365 * DAY)
    school.graduate("long ago", now() - 30 * DAY)
    school.graduate("of late", now() - 6 * DAY)
    jobs.heal()
    assert school.states() == {"of late": "none"}

    counted.add(school.host.state.engine, "default", counted.Count(1, now() - 28 * DAY))
    jobs.heal()
    assert set(school.states()) == {"of late", "long ago"}
    assert school.status() == (0, None)


def test_a_mapping_of_unknown_age_begins_now(school: School) -> None:
    school.map_since(None)
    school.graduate("1", now() - HOUR)
    jobs.heal()
    assert school.states() == {}

    school.graduate("2", now() + dt.timedelta(seconds=1))
    jobs.heal()
    assert school.states() == {"2": "none"}


def test_a_mapping_keeps_its_age_with_its_course(school: School) -> None:
    school.map_since(now() - DAY)
    other = school.credly.add_template("Other")
    accounts.sync_templates(school.host.state)
    (mapping,) = accounts.list_mappings(school.host.db.session, "default")
    state, mapping_id = school.host.state, mapping.id
    changed = accounts.change_mapping(state, mapping_id, COURSES[0], other)
    assert changed.created_at is not None and changed.created_at < now() - HOUR

    # Another course is mapped from now on.
    changed = accounts.change_mapping(state, mapping_id, COURSES[1], other)
    assert changed.created_at is not None and changed.created_at > now() - HOUR


def test_a_course_that_was_mapped_anew_meanwhile_is_not_healed_from_before(
    school: School,
) -> None:
    school.map_since(now() - DAY)
    school.graduate("1", now() - HOUR)
    (mapping,) = accounts.list_mappings(school.host.db.session, "default")
    run_id = backfills.start(
        school.host.state.engine, "default", mapping.id, now() - DAY, healing=True
    )
    template_id = mapping.template_id
    accounts.remove_mapping(school.host.state, mapping.id)
    accounts.add_mapping(school.host.state, COURSES[0], template_id)
    jobs.backfill()

    assert run_id is not None
    assert school.states() == {}


@pytest.mark.parametrize("state", ["issued", "held", "failed", "cancelled"])
def test_what_has_a_row_is_left_alone(school: School, state: str) -> None:
    school.map_since(now() - DAY)
    school.complete("1")
    stopped = "stopped" if state == "cancelled" else None
    school.change(
        sa.update(Issuance).values(
            state=state, action=None, due_at=None, reason=stopped
        )
    )
    school.graduate("2")
    jobs.heal()

    assert school.states() == {"1": state, "2": "none"}


def test_an_erased_member_does_not_come_back(school: School) -> None:
    school.map_since(now() - DAY)
    school.complete("1")
    privacy.erase(school.host.state.engine, "default", "1")
    jobs.heal()

    assert len(school.host.rows()) == 1
    assert not school.host.row().email


def test_what_an_admin_stopped_stays_stopped(school: School) -> None:
    school.map_since(now() - DAY)
    school.graduate("1")
    jobs.heal()
    session = school.host.db.session
    run = session.scalars(sa.select(Batch)).one()
    assert run.healing
    backfills.stop(school.host.state.engine, "default", run.id)
    jobs.heal()

    assert school.states() == {"1": "cancelled"}


def test_a_member_without_an_address_is_no_reason_to_begin(school: School) -> None:
    school.map_since(now() - DAY)
    school.past.append((dataclasses.replace(a_member("1"), email=""), now()))
    jobs.heal()

    assert school.states() == {}
    assert school.host.db.session.scalars(sa.select(Batch)).all() == []


def test_the_switch(make_school: MakeSchool) -> None:
    school = make_school(CREDLY_HEAL=False)
    school.graduate("1")

    with school.broken("no table yet"):
        school.complete("2")

    assert "once a day" not in school.doctor()["hint"]
    assert "flask credly backfill" in school.window()
    jobs.heal()
    assert school.flask("sweep").exit_code == 0
    jobs_there = notifier.web_queue(school.host.state).jobs

    assert school.states() == {}
    assert periodic.HEAL.function not in {job.func_name for job in jobs_there}


def test_a_wrong_switch_is_refused(make_host: MakeHost) -> None:
    with pytest.raises(ValueError, match="CREDLY_HEAL must be True or False"):
        make_host(CREDLY_HEAL="nightly")


def test_a_hook_that_fails_settles_nothing_and_takes_no_other_along(
    make_connected: MakeConnected, caplog: pytest.LogCaptureFixture
) -> None:
    def past_completions(course: Course, since: dt.datetime | None) -> t.Any:
        if course.id == "py-101":
            raise RuntimeError("wrong")

        yield a_member("1"), now()

    host, _, template_id = make_connected(past_completions=past_completions)
    accounts.add_mapping(host.state, COURSES[1], template_id)
    counted.add(host.state.engine, "default", counted.Count(1, now()))
    jobs.heal()

    assert [row.course_id for row in host.rows()] == ["sql"]
    assert unrecorded.read(host.state).number == 1
    assert "The search for missing completions of course 'py-101' failed" in caplog.text


def test_a_worker_heals_by_itself(
    make_school: MakeSchool, monkeypatch: pytest.MonkeyPatch
) -> None:
    school = make_school()
    assert school.flask("sweep").exit_code == 0
    there = [job.func_name for job in notifier.web_queue(school.host.state).jobs]
    assert there.count(periodic.HEAL.function) == 1

    # Once a day.
    assert school.flask("sweep").exit_code == 0
    there = [job.func_name for job in notifier.web_queue(school.host.state).jobs]
    assert there.count(periodic.HEAL.function) == 1


# Giving way


@every_database
def test_a_slow_hook_does_not_keep_a_live_badge_waiting(
    make_connected: MakeConnected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meanwhile, "LOOK_EVERY", 0.05)
    issued = threading.Event()
    waited: list[bool] = []

    def past_completions(course: Course, since: dt.datetime | None) -> t.Any:
        # It gives nothing before somebody who completed meanwhile has the badge.
        waited.append(issued.wait(20))
        yield a_member("1"), now()

    host, _, _ = make_connected(past_completions=past_completions)
    mapping_id = host.db.session.scalars(sa.select(Mapping.id)).one()
    backfills.start(host.state.engine, "default", mapping_id)
    host.complete("live")
    host.db.session.remove()

    def look() -> None:
        with host.app.app_context():
            until = time.monotonic() + 20

            while time.monotonic() < until and not issued.is_set():
                if [row.state for row in host.rows()][:1] == ["issued"]:
                    issued.set()

                time.sleep(0.05)

    looking = threading.Thread(target=look)
    looking.start()
    jobs.backfill()
    looking.join()

    assert waited == [True]
    assert {row.member_id: row.state for row in host.rows()}["live"] == "issued"


def test_a_job_goes_on_where_issuing_beside_it_fails(
    school: School, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> t.NoReturn:
        raise RuntimeError("cannot be looked at")

    monkeypatch.setattr(meanwhile, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(meanwhile.turns, "waiting", fail)

    with meanwhile.issuing_meanwhile(school.host.state):
        time.sleep(0.3)

    assert caplog.text.count("Issuing badges during a longer job failed.") == 1


SLOW = """
@credly.past_completions
def past_completions(course, since):
    import time
    time.sleep(12)
    yield Member("1", "one@example.org", "One", "Example"), __import__(
        "datetime"
    ).datetime.now(__import__("datetime").UTC)
"""


@pytest.mark.slow
def test_one_worker_issues_while_a_host_is_slow(farm: Farm) -> None:
    path = farm.folder / "host_app.py"
    path.write_text(
        path.read_text().replace("def create_app", f"{SLOW}\ndef create_app")
    )
    farm.start(*WORKER)
    mapping_id = farm.host.db.session.scalars(sa.select(Mapping.id)).one()
    farm.host.db.session.remove()
    wait_for(lambda: farm.redis.smembers("rq:workers"))
    backfills.start(farm.host.state.engine, "default", mapping_id)
    notifier.ask_for_backfill(farm.host.state)
    wait_for(lambda: started(farm))
    begun = time.monotonic()
    farm.host.complete("live")
    wait_for(lambda: len(farm.credly.badges) == 1)

    assert time.monotonic() - begun < 9
    wait_for(lambda: len(farm.credly.badges) == 2)


def started(farm: Farm) -> bool:
    return notifier.web_queue(farm.host.state).started_job_registry.get_job_count() > 0
