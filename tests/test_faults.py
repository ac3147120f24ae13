"""The database in trouble, the host in a strange state, Credly with odd answers: what
was completed is kept, and what was answered is written down.
"""

from __future__ import annotations

import collections
import collections.abc as cabc
import contextlib
import dataclasses
import datetime as dt
import pathlib
import sqlite3
import threading
import types
import typing as t

import pytest
import sqlalchemy as sa
import time_machine
from conftest import a_member
from conftest import connect
from conftest import Connected
from conftest import COURSES
from conftest import every_database
from conftest import Host
from conftest import in_threads
from conftest import MakeConnected
from conftest import MakeHost
from conftest import missing
from sqlalchemy import event

from flask_credly import accounts
from flask_credly import jobs
from flask_credly import Member
from flask_credly import signals
from flask_credly.credly import Client
from flask_credly.issuing.token import EARLY
from flask_credly.issuing.verdict import DUPLICATES_WAIT
from flask_credly.ledger import claim
from flask_credly.ledger import gates
from flask_credly.ledger import issuances
from flask_credly.ledger import overview
from flask_credly.ledger import settle
from flask_credly.models import Account
from flask_credly.models import Attempt
from flask_credly.models import Base
from flask_credly.models import Issuance
from flask_credly.models import LogEntry
from flask_credly.models import Mapping
from flask_credly.options import Options
from flask_credly.testing import CredlySimulator
from tests.storm.servers import make_folder
from tests.storm.servers import NotFound
from tests.storm.servers import PrivatePostgreSQL
from tests.support.databases import open_again
from tests.support.databases import servers

pytestmark = pytest.mark.slow

postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)
mariadb = pytest.mark.parametrize("database", ["mariadb"], indirect=True)


def backend(connected: sa.Connection) -> int:
    """Get the server's number of a connection."""
    number: int = connected.scalar(
        sa.text(
            "SELECT pg_backend_pid()"
            if connected.dialect.name == "postgresql"
            else "SELECT connection_id()"
        )
    )
    return number


def kill(engine: sa.Engine, number: int) -> None:
    """End a connection from the server's side."""
    other = sa.create_engine(engine.url, isolation_level="AUTOCOMMIT")

    with other.connect() as connected:
        if engine.dialect.name == "postgresql":
            connected.execute(sa.text(f"SELECT pg_terminate_backend({number}, 5000)"))
        else:
            connected.execute(sa.text(f"KILL {number}"))

    other.dispose()


def host_writes(host: Host) -> None:
    """Leave a transaction open that has written something."""
    host.db.session.execute(sa.text("UPDATE host_thing SET id = 2"))


@pytest.fixture
def with_table(
    make_host: MakeHost, credly: CredlySimulator
) -> cabc.Iterator[cabc.Callable[..., Host]]:
    """Make connected hosts that have a table of their own."""
    made: list[Host] = []

    with contextlib.ExitStack() as stack:

        def make(**config: t.Any) -> Host:
            host = make_host(**config)
            stack.enter_context(host.app.app_context())
            connect(host, credly)
            host.db.session.execute(sa.text("CREATE TABLE host_thing (id INT)"))
            host.db.session.execute(sa.text("INSERT INTO host_thing VALUES (1)"))
            host.db.session.commit()
            host.db.session.remove()
            made.append(host)
            return host

        yield make

        for host in made:
            host.db.session.remove()
            host.db.session.execute(sa.text("DROP TABLE host_thing"))
            host.db.session.commit()


class TestTheHostIsNotHarmed:
    @servers
    def test_a_rollback_after_a_lost_connection(
        self, with_table: cabc.Callable[..., Host]
    ) -> None:
        host = with_table()
        kill(host.state.engine, backend(host.db.session.connection()))

        with pytest.raises(sa.exc.OperationalError):
            host.db.session.execute(sa.text("SELECT 1"))

        host.db.session.rollback()
        assert host.db.session.scalar(sa.text("SELECT 1")) == 1

    @mariadb
    def test_an_open_transaction_of_the_host_keeps_no_gate_open(
        self, with_table: cabc.Callable[..., Host]
    ) -> None:
        impatient = {"init_command": "SET innodb_lock_wait_timeout = 2"}
        host = with_table(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": impatient})
        host_writes(host)
        host.complete()
        gate = gates.read(host.state.engine, "default")
        assert gate is not None

        until = gates.pause(
            host.state.engine, "default", gate.generation, "rate limit", 5, "x"
        )

        assert until is not None

    @mariadb
    def test_a_completion_sent_twice_keeps_no_worker_waiting(
        self, with_table: cabc.Callable[..., Host], credly: CredlySimulator
    ) -> None:
        impatient = {"init_command": "SET innodb_lock_wait_timeout = 2"}
        host = with_table(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": impatient})
        host.complete()
        host_writes(host)
        host.complete()

        def drain() -> None:
            with host.app.app_context():
                host.drain()

        in_threads(drain)

        assert len(credly.badges) == 1

    @mariadb
    @pytest.mark.parametrize("number", [6, 60])
    def test_completions_that_are_not_committed_keep_no_worker_and_no_admin_waiting(
        self,
        with_table: cabc.Callable[..., Host],
        credly: CredlySimulator,
        number: int,
    ) -> None:
        # It reads all of a small table, unless it is told to find rows by their ids.
        impatient = {"init_command": "SET innodb_lock_wait_timeout = 1"}
        host = with_table(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": impatient})
        start = dt.datetime.now(dt.UTC) - dt.timedelta(days=90)
        mapping_id = host.db.session.scalars(sa.select(Mapping.id)).one()
        accounts.change_options(host.state, mapping_id, Options(again="renew"))

        for each in range(number):
            host.complete(f"earlier-{each}", completed_at=start)

        host.db.session.remove()
        host_writes(host)

        for each in range(number):
            for who in ("earlier", "later"):
                later = start + dt.timedelta(days=60)
                host.complete(f"{who}-{each}", completed_at=later)

        waited: list[str | None] = []

        @event.listens_for(host.state.engine, "handle_error")
        def note(context: sa.engine.ExceptionContext) -> None:
            waited.append(context.statement)

        def run(*command: str) -> None:
            done = host.app.test_cli_runner().invoke(args=("credly", *command))
            assert not done.exception, done.output

        def work() -> None:
            with host.app.app_context():
                host.drain()
                ids = [str(row.id) for row in host.rows()]
                host.db.session.remove()
                assert len(ids) == number
                why = ("--reason", "By mistake", "--silent")
                run("revoke", ids[0], *why)
                host.drain()
                run("poll")
                run("revoke", *ids[1:-1], *why)
                host.drain()
                accounts.change_options(host.state, mapping_id, Options())
                run("sync")
                accounts.remove(host.state)
                jobs.undo()

        in_threads(work)

        assert not waited
        states = collections.Counter(badge["state"] for badge in credly.badges)
        assert states == {"revoked": number - 1, "pending": 1}

    @servers
    def test_a_lock_that_is_not_had_in_time_is_asked_for_again(
        self,
        with_table: cabc.Callable[..., Host],
        database: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        impatient = {"init_command": "SET innodb_lock_wait_timeout = 1"}

        if database.startswith("postgresql"):
            impatient = {"options": "-c lock_timeout=50ms"}

        host = with_table(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": impatient})

        with host.state.engine.connect() as other:
            assert gates.lock(other, "default")
            pause = types.SimpleNamespace(sleep=lambda _: other.rollback())
            monkeypatch.setattr("flask_credly.ledger.transaction.time", pause)
            gates.switch(host.state.engine, "default", on=False)

        gate = gates.read(host.state.engine, "default")
        assert gate is not None and not gate.is_open

    @postgresql
    def test_an_engine_that_commits_by_itself(
        self, with_table: cabc.Callable[..., Host]
    ) -> None:
        host = with_table(SQLALCHEMY_ENGINE_OPTIONS={"isolation_level": "AUTOCOMMIT"})
        host_writes(host)
        host.complete()
        host.db.session.remove()

        assert len(host.rows()) == 1

    def test_integrity_error_has_no_params(
        self, connected: Connected, caplog: pytest.LogCaptureFixture
    ) -> None:
        connected.host.db.session.execute(sa.text("DROP TABLE credly_attempt"))
        connected.host.db.session.execute(sa.text("DROP TABLE credly_issuance"))
        connected.host.db.session.commit()
        connected.host.complete(completed_at=dt.datetime.now(dt.UTC))

        assert "was not recorded" in caplog.text
        assert "SQL parameters hidden" in caplog.text
        assert "member-42@" not in caplog.text
        assert "Ada" not in caplog.text


class TestALockOfAnother:
    """SQLite: the host gets the lock that we did not get in time."""

    @pytest.fixture
    def locked(
        self, with_table: cabc.Callable[..., Host]
    ) -> cabc.Iterator[tuple[Host, sa.Connection]]:
        host = with_table(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"timeout": 0.2}})

        with host.state.engine.connect() as other:
            other.exec_driver_sql("BEGIN IMMEDIATE")
            yield host, other

    def an_entry(self) -> LogEntry:
        # A row that the host adds and has not flushed yet.
        return LogEntry(
            tenant="default", at=dt.datetime.now(dt.UTC), error="host", details=""
        )

    def test_a_completion_is_kept_with_the_hosts_commit(
        self, locked: tuple[Host, sa.Connection]
    ) -> None:
        host, other = locked
        host.db.session.add(self.an_entry())
        host.complete()
        other.rollback()
        host.db.session.commit()

        assert len(host.rows()) == 1

    def test_a_completion_goes_with_the_hosts_rollback(
        self, locked: tuple[Host, sa.Connection]
    ) -> None:
        host, other = locked
        host.db.session.add(self.an_entry())
        host.complete()
        other.rollback()
        host.db.session.rollback()

        assert host.rows() == []

    def test_a_completion_of_a_host_that_reads_is_kept(
        self, locked: tuple[Host, sa.Connection]
    ) -> None:
        host, other = locked
        host.db.session.execute(sa.text("SELECT 1"))
        host.complete()
        other.rollback()
        host.db.session.remove()

        assert len(host.rows()) == 1


class TestReadingIsNotWriting:
    """What the host only read, it may never commit."""

    @every_database
    def test_a_common_table_expression(
        self, with_table: cabc.Callable[..., Host]
    ) -> None:
        host = with_table()
        host.db.session.execute(
            sa.text("WITH found AS (SELECT id FROM host_thing) SELECT id FROM found")
        )
        host.complete()
        host.db.session.remove()

        assert len(host.rows()) == 1

    @every_database
    def test_a_savepoint_that_was_taken_back(
        self, with_table: cabc.Callable[..., Host]
    ) -> None:
        host = with_table()
        nested = host.db.session.begin_nested()
        host_writes(host)
        nested.rollback()
        host.complete()
        host.db.session.remove()

        assert len(host.rows()) == 1

    @every_database
    def test_a_write_before_a_savepoint_still_counts(
        self, with_table: cabc.Callable[..., Host]
    ) -> None:
        host = with_table()
        host_writes(host)
        nested = host.db.session.begin_nested()
        host_writes(host)
        nested.rollback()
        host.complete()
        host.db.session.rollback()

        assert host.rows() == []

    @mariadb
    def test_a_transaction_in_two_phases_that_is_over(
        self, with_table: cabc.Callable[..., Host]
    ) -> None:
        host = with_table()

        with host.state.engine.connect() as connected:
            prepared = connected.begin_twophase()
            connected.execute(sa.text("UPDATE host_thing SET id = 3"))
            prepared.prepare()
            prepared.commit()

        host.db.session.execute(sa.text("SELECT 1"))
        host.complete()
        host.db.session.remove()

        assert len(host.rows()) == 1

    def test_a_hook_after_the_hosts_commit(self, connected: Connected) -> None:
        host = connected.host
        session = host.db.session()
        event.listen(session, "after_commit", lambda _: host.complete(), once=True)
        session.execute(sa.update(Account).values(client_id="changed"))
        session.commit()
        host.db.session.remove()

        assert len(host.rows()) == 1

    def test_a_completion_that_goes_with_a_rollback_is_said(
        self, connected: Connected, caplog: pytest.LogCaptureFixture
    ) -> None:
        host = connected.host
        host.db.session.execute(sa.update(Account).values(client_id="changed"))
        host.complete()
        host.db.session.remove()

        assert host.rows() == []
        assert "rolled back with the transaction" in caplog.text
        assert "'42', course 'py-101'" in caplog.text


class TestNoConnectionToSpare:
    @servers
    def test_more_requests_at_once_than_the_pool_has_connections(
        self, with_table: cabc.Callable[..., Host]
    ) -> None:
        small = {"pool_size": 5, "max_overflow": 0, "pool_timeout": 20}
        host = with_table(SQLALCHEMY_ENGINE_OPTIONS=small)
        start = threading.Barrier(5)

        def request(number: int) -> None:
            with host.app.app_context():
                host.db.session.execute(sa.text("SELECT 1"))
                start.wait(30)
                host.complete(str(number))

        in_threads(*((lambda number=number: request(number)) for number in range(5)))

        assert len(host.rows()) == 5

    @postgresql
    def test_a_connection_of_the_pool_that_has_gone(
        self, with_table: cabc.Callable[..., Host]
    ) -> None:
        host = with_table()
        engine = host.state.engine
        engine.dispose()

        with engine.connect() as one, engine.connect() as two:
            numbers = {backend(one), backend(two)}

        mine = backend(host.db.session.connection())
        (other,) = numbers - {mine}
        kill(engine, other)
        host.complete()
        host.db.session.remove()

        assert len(host.rows()) == 1


@every_database
def test_the_same_completion_from_many_requests_at_once_is_one_row(
    with_table: cabc.Callable[..., Host],
) -> None:
    host = with_table()
    start = threading.Barrier(4)

    def request(writes: bool) -> None:
        with host.app.app_context():
            if writes and host.state.engine.dialect.name != "sqlite":
                host.db.session.execute(sa.text("INSERT INTO host_thing VALUES (7)"))

            start.wait(30)
            host.complete()
            host.db.session.commit()

    in_threads(
        *((lambda number=number: request(number % 2 == 0)) for number in range(4))
    )

    assert len(host.rows()) == 1


@every_database
def test_a_completion_in_a_command(with_table: cabc.Callable[..., Host]) -> None:
    host = with_table()

    @host.app.cli.command("finish")
    def finish() -> None:
        host.db.session.execute(sa.text("SELECT 1"))
        host.complete()

    done = host.app.test_cli_runner().invoke(args=["finish"])

    assert done.exit_code == 0
    assert len(host.rows()) == 1


def lose_answer_to_begin(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Lose the answer to the first commit that says that a request is begun. The list
    that is returned is empty then.
    """
    waiting, found = ["unsettled_until"], []
    real = engine.dialect.do_commit

    def see(_: object, __: object, statement: str, *___: object) -> None:
        if statement.startswith("UPDATE") and " unsettled_until=" in statement:
            found.append(statement)

    def do_commit(connected: t.Any) -> None:
        real(connected)

        if waiting and found:
            waiting.pop()
            # One that is done once more.
            raise sqlite3.OperationalError("database is locked")

    event.listen(engine, "before_cursor_execute", see)
    monkeypatch.setattr(engine.dialect, "do_commit", do_commit)
    return waiting


class TestDrainUnderFaults:
    @pytest.fixture
    def host(self, make_host: MakeHost) -> Host:
        return make_host(CREDLY_BATCH_SIZE=1)

    def test_a_request_is_counted_once_where_the_answer_to_the_commit_is_lost(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It would be called failed without its retry."""
        host, credly, _ = connected
        credly.fail("issue", status=500)
        host.complete()
        lost = lose_answer_to_begin(host.state.engine, monkeypatch)
        host.drain()

        assert (lost, host.row().state) == ([], "issued")
        assert (credly.count("issue"), host.row().attempts) == (2, 2)

    @every_database
    def test_a_lock_that_passes_is_waited_for(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A deadlock's victim does its transaction again."""
        host, _, _ = connected
        host.complete()
        failing = [2]

        def in_the_way(connected: sa.Connection, *_: object) -> None:
            if failing[0]:
                failing[0] -= 1
                raise sa.exc.OperationalError(
                    "", {}, sqlite3.OperationalError("database is locked")
                )

        event.listen(host.state.engine, "commit", in_the_way)
        host.drain()
        event.remove(host.state.engine, "commit", in_the_way)

        assert (host.row().state, failing) == ("issued", [0])

    def test_answers_are_kept_when_the_drain_ends_early(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, credly, _ = connected

        for number in range(6):
            host.complete(str(number))

        real, failing = claim.begin, [None]

        def begin(*args: t.Any, **given: t.Any) -> t.Any:
            if len(credly.badges) and failing:
                failing.pop()
                raise sa.exc.InternalError("", {}, Exception("disk full"))

            return real(*args, **given)

        monkeypatch.setattr(claim, "begin", begin)

        with contextlib.suppress(sa.exc.InternalError):
            host.drain()

        states = collections.Counter(row.state for row in host.rows())
        assert states["issued"] == len(credly.badges) > 0
        assert not [row for row in host.rows() if row.lease]

        host.drain()
        assert (len(credly.badges), credly.count("issue")) == (6, 6)

    def test_one_that_cannot_be_saved_takes_no_other_along(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, credly, _ = connected

        for number in range(4):
            host.complete(str(number))

        real = settle.settle

        def save(engine: sa.Engine, these: t.Any) -> None:
            if any(each.row.member_id == "2" for each in these):
                raise sa.exc.DataError("", {}, Exception("bad value"))

            real(engine, these)

        with monkeypatch.context() as patched:
            patched.setattr(settle, "settle", save)
            host.drain()

        assert {row.member_id: row.state for row in host.rows()} == {
            "0": "issued",
            "1": "issued",
            "2": "none",
            "3": "issued",
        }

    @pytest.mark.parametrize(
        "answer",
        [
            {"status": 302, "headers": {"Location": "http://[/"}},
            {"status": 302, "headers": {"Location": "http://host:999999/"}},
            {
                "status": 429,
                "headers": {"Retry-After": "Thu, 01 Jan 99999999999 00:00:00 GMT"},
            },
            {
                "status": 429,
                "headers": {"Retry-After": "Thu, 01 Jan 2026 00:00:00 +9999999999"},
            },
        ],
        ids=["location", "port", "year", "zone"],
    )
    @pytest.mark.parametrize("kind", ["issue", "look-up", "token"])
    def test_an_odd_answer_ends_no_drain(
        self, connected: Connected, answer: dict[str, t.Any], kind: t.Any
    ) -> None:
        host, credly, _ = connected

        if kind == "look-up":
            credly.fail("issue", status=500)
        elif kind == "token":
            credly.revoke_tokens()

        credly.fail(kind, **answer)

        for number in range(3):
            host.complete(str(number))

        for _ in range(4):
            host.drain()
            open_again(host)

        assert {row.state for row in host.rows()} == {"issued"}

    def test_a_failing_receiver_of_the_pause_loses_no_answer(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        credly.fail("issue", status=429, times=9)
        host.complete()

        def receive(sender: object, **_: object) -> None:
            raise RuntimeError("of the host")

        with signals.issuance_paused.connected_to(receive):
            for _ in range(9):
                host.drain()
                open_again(host)

        host.drain()
        assert (host.row().state, host.row().attempts) == ("issued", 1)

    def test_a_row_that_kills_its_worker_takes_no_other_along(
        self, make_connected: MakeConnected
    ) -> None:
        class Killed(BaseException):
            pass

        def load(member_id: str) -> Member:
            if member_id == "3":
                raise Killed

            return a_member(member_id)

        host, _, _ = make_connected(member=load)
        for number in range(10):
            host.complete(member=Member(str(number), "", "", ""))

        for _ in range(12):
            with contextlib.suppress(Killed):
                host.drain()

            host.make_due()

        states = {row.member_id: row.state for row in host.rows()}
        assert states.pop("3") == "failed"
        assert set(states.values()) == {"issued"}
        assert "The worker crashed each time" in host.log()[0][1]

    def test_a_look_up_that_is_refused_for_ever_ends_with_a_word(
        self, make_connected: MakeConnected
    ) -> None:
        host, credly, _ = make_connected(allow_duplicate_badges=True)
        credly.fail("issue", how="reset", after=True)
        credly.fail("look-up", status=403, times=99)
        host.complete()

        for _ in range(20):
            host.drain()
            host.make_due()

        assert host.row().state == "failed"
        assert (credly.count("issue"), len(credly.badges)) == (1, 1)
        assert "Check in Credly before you issue it yourself." in host.log()[0][1]

    def test_second_course_same_template(
        self, host: Host, credly: CredlySimulator
    ) -> None:
        """Where Credly issues a template twice, each course has its own badge; a
        look-up does not take the other course's for it.
        """
        with host.app.app_context():
            template_id = connect(host, credly, allow_duplicate_badges=True).template_id
            credly.posts_allowed = 3
            accounts.add_mapping(host.state, COURSES[1], template_id)
            host.complete(course_id="py-101")
            host.drain()
            credly.fail("issue", status=500)
            host.complete(course_id="sql")

            for _ in range(3):
                host.drain()
                host.make_due()

            one, two = host.rows()
            assert (one.state, two.state) == ("issued", "issued")
            assert one.badge_id != two.badge_id

        # The simulator takes it for a mistake.
        assert len(credly.problems) == 1
        credly.problems.clear()

    def test_second_course_same_template_that_allows_one(
        self, connected: Connected
    ) -> None:
        host, credly, template_id = connected
        credly.posts_allowed = 4  # for two rows
        accounts.add_mapping(host.state, COURSES[1], template_id)
        host.complete(course_id="py-101")
        host.complete(course_id="sql")
        host.drain(2)

        assert {row.state for row in host.rows()} <= {"issued", "held"}
        assert len(credly.badges) == 1
        assert host.log() == []


class TestClocks:
    """A worker whose own clock is wrong: time is the database's."""

    @pytest.mark.parametrize("minutes", [-10, 10])
    @servers
    def test_a_skewed_worker_takes_no_row_of_another(
        self, connected: Connected, minutes: int
    ) -> None:
        host, credly, _ = connected
        engine = host.state.engine
        host.complete()
        gate = gates.read(engine, "default")
        assert gate is not None
        assert claim.claim(engine, gate, limit=1, lease_seconds=60)

        with time_machine.travel(dt.timedelta(minutes=minutes)):
            host.drain()

        assert host.row().state == "none"
        assert credly.count("issue") == 0

    @pytest.mark.parametrize("minutes", [-10, 10])
    @servers
    def test_a_skewed_worker_issues_what_is_due(
        self, connected: Connected, minutes: int
    ) -> None:
        host, credly, _ = connected
        host.complete("1")

        with time_machine.travel(dt.timedelta(minutes=minutes)):
            host.complete("2")
            host.drain()

        assert [row.state for row in host.rows()] == ["issued", "issued"]

    @servers
    def test_a_skewed_worker_keeps_to_the_pause(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.fail("issue", status=429, headers={"Retry-After": "300"})
        host.complete()
        host.drain()

        with time_machine.travel(dt.timedelta(minutes=10)):
            host.drain()

        assert host.row().state == "none"
        assert credly.count("issue") == 1

    @servers
    def test_a_skewed_worker_fetches_no_token_early(self, connected: Connected) -> None:
        host, credly, _ = connected
        host.complete()
        host.drain()
        fetched = credly.count("token")

        # By its own clock the token ends in less than the time that is kept free.
        with time_machine.travel(dt.timedelta(seconds=7200 - EARLY / 2)):
            host.complete("2")
            host.drain()

        assert credly.count("token") == fetched


def let_the_lag_pass(host: Host, credly: CredlySimulator) -> None:
    """Let the time pass until Credly lists what it made."""
    credly.advance(DUPLICATES_WAIT)
    host.make_due()
    host.db.session.execute(
        sa.update(Issuance).values(unsettled_until=Issuance.recorded_at)
    )
    host.db.session.commit()


class TestListsThatLag:
    """The answer is lost and the badge is not in Credly's list yet."""

    def test_where_credly_refuses_duplicates_there_is_one_badge(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        credly.look_up_lag = 30
        credly.fail("issue", how="hang", after=True)
        host.complete()
        host.drain(2)

        assert (host.row().state, host.row().badge_id) == ("none", None)
        assert (len(credly.badges), credly.count("issue")) == (1, 2)

        credly.advance(30)
        host.make_due()
        host.drain()

        assert host.row().state == "issued"
        assert host.row().badge_id == credly.badges[0]["id"]
        assert (len(credly.badges), credly.count("issue")) == (1, 2)

    def test_where_it_allows_them_the_longer_wait_outlives_the_lag(
        self, host: Host, credly: CredlySimulator, in_context: None
    ) -> None:
        connect(host, credly, allow_duplicate_badges=True)
        credly.look_up_lag = DUPLICATES_WAIT - 1
        credly.fail("issue", how="hang", after=True)
        host.complete()
        host.drain(2)
        due_at = host.row().due_at
        assert due_at is not None
        wait = due_at - dt.datetime.now(dt.UTC)
        assert wait > dt.timedelta(seconds=DUPLICATES_WAIT - 5)

        credly.advance(DUPLICATES_WAIT)
        host.make_due()
        host.drain()

        assert host.row().state == "issued"
        assert (len(credly.badges), credly.count("issue")) == (1, 1)

    def test_what_was_called_failed_is_issued_once_it_is_listed(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        credly.look_up_lag = DUPLICATES_WAIT - 1
        credly.fail("issue", how="reset")
        credly.fail("issue", how="reset", after=True)
        told: list[str] = []

        def failed(_: t.Any, **given: t.Any) -> None:
            told.append("failed")

        def issued(_: t.Any, **given: t.Any) -> None:
            told.append("issued")

        with signals.badge_failed.connected_to(failed):
            with signals.badge_issued.connected_to(issued):
                host.complete()
                host.drain(3)
                assert host.row().state == "failed"

                let_the_lag_pass(host, credly)
                host.drain()

        assert told == ["failed", "issued"]
        assert host.row().state == "issued"
        assert host.row().badge_id == credly.badges[0]["id"]
        assert host.row().error is None
        assert credly.count("issue") == 2

    @every_database
    def test_what_failed_is_looked_for_once_more_and_told_once(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        credly.fail("issue", how="reset", times=2)
        told: list[str] = []

        def failed(_: t.Any, **given: t.Any) -> None:
            told.append(given["error"])

        with signals.badge_failed.connected_to(failed):
            host.complete()
            host.drain(2)
            before = host.row()
            let_the_lag_pass(host, credly)
            asked = credly.count("look-up")
            # It stays failed while Credly gives no answer.
            credly.fail("look-up", status=500)
            host.drain(2)
            assert (host.row().state, host.row().error) == ("failed", before.error)

            let_the_lag_pass(host, credly)
            host.drain(2)

        row = host.row()
        assert (row.state, row.due_at, row.outcome_unknown) == ("failed", None, False)
        assert row.error == told[0]
        assert (len(told), len(host.log())) == (1, 1)
        # By the member's name, and then what is at the address.
        assert credly.count("look-up") == asked + 1 + 2
        assert credly.count("issue") == 2

    def test_a_retry_does_not_wait_for_the_last_look(
        self, connected: Connected
    ) -> None:
        host, credly, _ = connected
        credly.posts_allowed = 3
        credly.fail("issue", status=500, times=2)
        host.complete()
        host.drain(2)
        issuances.retry(host.state.engine, "default", host.row().id)
        host.drain()

        assert host.row().state == "issued"
        assert (len(credly.badges), host.row().due_at) == (1, None)

    def test_a_refusal_in_other_words_does_not_hide_it(
        self, connected: Connected
    ) -> None:
        """It was made by the first request, and the second is refused for it."""
        host, credly, _ = connected
        credly.look_up_lag = DUPLICATES_WAIT - 1
        credly.fail("issue", how="reset", after=True)
        words = {"data": {"message": "Validation failed"}}
        credly.fail("issue", status=422, body=words)
        host.complete()
        host.drain(3)
        let_the_lag_pass(host, credly)
        host.drain()

        assert host.row().state == "issued"
        assert (len(credly.badges), credly.count("issue")) == (1, 2)

    @pytest.mark.parametrize("change", ["another badge", "none", "a member no name"])
    def test_it_outlives_the_lag_where_credly_would_not_refuse(
        self, make_connected: MakeConnected, change: str
    ) -> None:
        """The course gets another badge, or none, before the first one is listed."""
        member = a_member()
        host, credly, _ = make_connected(CREDLY_RETRY_DELAY=5, member=lambda _: member)
        credly.look_up_lag = DUPLICATES_WAIT - 1
        credly.fail("issue", how="reset", after=True)
        other = credly.add_template("Other badge")
        accounts.sync_templates(host.state)
        host.complete()
        host.drain()
        (mapping,) = accounts.list_mappings(host.db.session, "default")

        if change == "another badge":
            accounts.change_mapping(host.state, mapping.id, COURSES[0], other)
        elif change == "none":
            accounts.remove_mapping(host.state, mapping.id)
        else:
            member = dataclasses.replace(member, first_name="")

        host.make_due()
        host.drain()
        assert host.row().state == "none"

        let_the_lag_pass(host, credly)
        host.drain(2)

        assert host.row().state == "issued"
        assert host.row().badge_id == credly.badges[0]["id"]
        assert (len(credly.badges), credly.count("issue")) == (1, 1)

    def test_a_lag_beyond_the_longer_wait_is_the_stated_limit(
        self, host: Host, credly: CredlySimulator, in_context: None
    ) -> None:
        """Credly allows duplicates, loses an answer and hides the badge for minutes:
        nothing on earth tells us. The documentation says so.
        """
        connect(host, credly, allow_duplicate_badges=True)
        credly.look_up_lag = 10 * DUPLICATES_WAIT
        credly.fail("issue", how="hang", after=True)
        host.complete()
        host.drain()
        credly.advance(DUPLICATES_WAIT)
        host.make_due()
        host.drain()

        assert host.row().state == "issued"
        assert (len(credly.badges), credly.count("issue")) == (2, 2)
        assert "second badge" in credly.problems.pop()


@pytest.fixture
def private_server() -> cabc.Iterator[PrivatePostgreSQL]:
    """A PostgreSQL of this test, which it may stop."""
    with make_folder() as folder:
        database = PrivatePostgreSQL(pathlib.Path(folder))

        try:
            database.create()
        except NotFound as e:
            missing(e.what, e.reason)

        yield database
        database.drop()


@pytest.mark.database
def test_the_database_stops_while_the_answer_is_saved(
    private_server: PrivatePostgreSQL,
    make_connected: MakeConnected,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As by a power cut. The badge was made, and is found again."""
    issue = Client.issue

    def issue_and_cut(*args: t.Any) -> t.Any:
        badge = issue(*args)
        private_server.cut()
        return badge

    host, credly, _ = make_connected(SQLALCHEMY_DATABASE_URI=private_server.url)
    host.complete()

    with monkeypatch.context() as during:
        during.setattr(Client, "issue", issue_and_cut)

        with pytest.raises(sa.exc.OperationalError):
            host.drain()

    private_server.start()
    open_again(host)
    assert host.row().state == "none"

    host.make_due()
    host.drain()

    assert host.row().state == "issued"
    assert (len(credly.badges), credly.count("issue")) == (1, 1)


def test_a_row_that_workers_have_died_over_is_not_taken_with_others(
    connected: Connected,
) -> None:
    host = connected.host
    host.complete("1")
    host.complete("2")
    _, last = host.rows()
    last.crashes = claim.POISON_THRESHOLD
    host.db.session.commit()
    gate = gates.read(host.state.engine, "default")
    assert gate is not None
    taken = claim.claim(host.state.engine, gate, limit=8, lease_seconds=60)

    assert [row.member_id for row in taken] == ["1"]


class TestAGateThatCloses:
    def test_no_row_is_taken_by_what_was_read_before(
        self, connected: Connected
    ) -> None:
        host = connected.host
        host.complete()
        gate = gates.read(host.state.engine, "default")
        assert gate is not None
        gates.switch(host.state.engine, "default", on=False)

        assert claim.claim(host.state.engine, gate, limit=8, lease_seconds=60) == []


class TestRemoveInFlight:
    def test_what_a_worker_holds_is_dropped_too(self, connected: Connected) -> None:
        host, credly, _ = connected
        host.complete("1")
        gate = gates.read(host.state.engine, "default")
        assert gate is not None
        rows = claim.claim(host.state.engine, gate, limit=8, lease_seconds=60)
        accounts.remove(host.state)
        claim.release(host.state.engine, rows)

        assert host.rows() == []
        assert overview.read(host.db.session, "default").pending == 0

        host.db.session.rollback()
        connect(host, credly)
        host.complete("1")
        host.drain()
        assert host.row().state == "issued"

    @pytest.mark.parametrize("status", [429, 500])
    def test_no_answer_brings_a_row_back(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch, status: int
    ) -> None:
        host, credly, _ = connected
        host.complete()
        credly.fail("issue", status=status)
        real = settle.settle

        def remove_first(*args: t.Any) -> t.Any:
            monkeypatch.undo()
            accounts.remove(host.state)
            return real(*args)

        monkeypatch.setattr(settle, "settle", remove_first)
        host.drain()

        assert host.row().state == "failed"
        assert (host.row().email, host.row().due_at) == ("", None)
        assert [each.answer for each in host.attempts()] == ["unknown"]

    @every_database
    @pytest.mark.parametrize("given_back", [False, True])
    def test_what_a_worker_died_over_has_an_end(
        self, connected: Connected, given_back: bool
    ) -> None:
        """Or gave back, as it was ended before it knew that the attempt had begun."""
        host, _, _ = connected
        host.complete()
        gate = gates.read(host.state.engine, "default")
        assert gate is not None
        rows = claim.claim(host.state.engine, gate, limit=8, lease_seconds=60)
        claim.begin(host.state.engine, rows, gate, lease_seconds=60)
        claim.release(host.state.engine, rows if given_back else [])
        accounts.remove(host.state)
        (attempt,) = host.attempts()

        assert (attempt.answer, attempt.finished_at is None) == ("unknown", False)

    def test_attempts_of_dropped_rows_go_too(self, connected: Connected) -> None:
        host, credly, _ = connected
        credly.fail("issue", status=429)
        host.complete()
        host.drain()
        assert len(host.attempts()) == 1

        accounts.remove(host.state)
        assert host.attempts() == []

    @servers
    def test_a_failure_that_is_saved_meanwhile(
        self, connected: Connected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The two transactions want the same rows in different orders."""
        host, _, _ = connected
        host.complete()
        gate = gates.read(host.state.engine, "default")
        assert gate is not None
        (row,) = claim.claim(host.state.engine, gate, limit=8, lease_seconds=60)
        host.db.session.remove()
        in_the_midst = threading.Event()
        real = settle._log_failure

        def slowly(*args: t.Any) -> None:
            in_the_midst.set()
            in_the_midst.wait(0.3)
            real(*args)

        monkeypatch.setattr(settle, "_log_failure", slowly)

        def fail() -> None:
            with host.app.app_context():
                settle.fail(host.state.engine, row, "refused")

        def remove() -> None:
            in_the_midst.wait(10)

            with host.app.app_context():
                accounts.remove(host.state)

        in_threads(fail, remove)

        for model in (Account, LogEntry, Attempt):
            assert host.db.session.scalars(sa.select(model)).all() == []


@pytest.mark.parametrize(
    "changed",
    [
        {"settled_at": dt.datetime.now(dt.UTC) - dt.timedelta(days=2)},
        {"reason": "stopped"},
        {"reason": "erased"},
    ],
    ids=["long ago", "stopped", "erased"],
)
def test_undo_issues_only_what_that_removal_cancelled(
    connected: Connected, changed: dict[str, t.Any]
) -> None:
    host, credly, template_id = connected
    host.complete("1")
    (mapping,) = accounts.list_mappings(host.db.session, "default")
    accounts.remove_mapping(host.state, mapping.id)
    host.drain()
    host.db.session.execute(sa.update(Issuance).values(**changed))
    host.db.session.commit()
    accounts.add_mapping(host.state, COURSES[0], template_id, undo=True)

    assert host.row().state == "cancelled"


def test_names_of_every_script_fit_into_every_table() -> None:
    for table in Base.metadata.tables.values():
        assert table.dialect_options["mysql"]["charset"] == "utf8mb4"
        assert table.dialect_options["mariadb"]["charset"] == "utf8mb4"
