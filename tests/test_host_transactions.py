"""A completion in the host's transaction, however the host is built: both are there in
the end, or neither, and the host knows.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import ctypes
import gc
import itertools
import signal
import threading
import time
import typing as t

import pytest
import sqlalchemy as sa
from conftest import a_member
from conftest import connect
from conftest import every_database
from conftest import Host
from conftest import in_threads
from conftest import MakeConnected
from conftest import MakeHost
from conftest import need_driver
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.session import Session as FlaskSession
from sqlalchemy import event
from sqlalchemy import orm

from flask_credly import accounts
from flask_credly import Course
from flask_credly import course_completed
from flask_credly.admin.index import card
from flask_credly.completions import host_transaction
from flask_credly.issuing import unrecorded
from flask_credly.models import Issuance
from flask_credly.testing import CredlySimulator

OTHER = Course(id="sql", title="SQL basics")


def tables(app: Flask, db: SQLAlchemy) -> None:
    """The host's own, in its default database and in a second one."""

    class Order(db.Model):  # type: ignore[name-defined, misc]
        __tablename__ = "host_order"
        id = db.Column(db.String(40), primary_key=True)

    class Elsewhere(db.Model):  # type: ignore[name-defined, misc]
        __tablename__ = "host_elsewhere"
        __bind_key__ = "elsewhere"
        id = db.Column(db.String(40), primary_key=True)

    app.extensions["order"], app.extensions["elsewhere"] = Order, Elsewhere


@pytest.fixture
def make(
    make_host: MakeHost, credly: CredlySimulator, tmp_path: t.Any
) -> cabc.Iterator[cabc.Callable[..., Host]]:
    """Make a connected host, with two mapped courses, and enter its context."""
    with contextlib.ExitStack() as stack:

        def make(**config: t.Any) -> Host:
            binds = {"elsewhere": f"sqlite:///{tmp_path / 'elsewhere.db'}"}
            config.setdefault("SQLALCHEMY_BINDS", binds)
            host = make_host(setup=tables, **config)
            stack.enter_context(host.app.app_context())
            connected = connect(host, credly)
            accounts.add_mapping(host.state, OTHER, connected.template_id)
            host.db.session.remove()
            return host

        yield make


@pytest.fixture
def host(make: cabc.Callable[..., Host]) -> Host:
    return make()


def order(host: Host, name: str) -> t.Any:
    return host.app.extensions["order"](id=name)


def orders(host: Host) -> list[str]:
    with host.state.engine.connect() as other:
        return sorted(other.scalars(sa.text("SELECT id FROM host_order")))


def members(host: Host) -> list[str]:
    """Whose rows another connection sees."""
    with host.state.engine.connect() as other:
        return sorted(other.scalars(sa.select(Issuance.member_id)))


@pytest.fixture
def rung(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    rung: list[None] = []
    monkeypatch.setattr(
        "flask_credly.issuing.notifier.notify", lambda *_: rung.append(None)
    )
    monkeypatch.setattr("flask_credly.issuing.notifier.INTERVAL", 0)
    return rung


@pytest.fixture
def driver(request: pytest.FixtureRequest, database: str) -> str:
    """The database's URL with another driver."""
    url = sa.make_url(database)
    driver: str | None = request.param
    name = url.drivername if driver is None else driver
    need_driver(name)
    return url.set(drivername=name).render_as_string(hide_password=False)


# An error that ends the host's transaction


SERVERS = [
    ("postgresql", None),
    ("postgresql", "postgresql+psycopg2"),
    ("postgresql", "postgresql+pg8000"),
    ("mariadb", None),
    ("mariadb", "mysql+mysqldb"),
    ("mariadb", "mysql+mysqlconnector"),
    ("mariadb", "mariadb+pymysql"),
]
every_server = pytest.mark.parametrize(("database", "driver"), SERVERS, indirect=True)
every_driver = pytest.mark.parametrize(
    ("database", "driver"), [("sqlite", None), *SERVERS], indirect=True
)
LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


@pytest.mark.parametrize(
    ("database", "driver", "level"),
    [
        *((database, driver, None) for database, driver in SERVERS),
        *itertools.product(("postgresql", "mariadb"), (None,), LEVELS),
    ],
    indirect=["database", "driver"],
)
@pytest.mark.parametrize("catches", [False, True], ids=["", "the host catches it"])
def test_a_deadlock_takes_all_of_the_hosts_transaction_or_nothing(
    make: cabc.Callable[..., Host], driver: str, level: str | None, catches: bool
) -> None:
    options = {} if level is None else {"isolation_level": level}
    host = make(SQLALCHEMY_DATABASE_URI=driver, SQLALCHEMY_ENGINE_OPTIONS=options)
    met = threading.Barrier(2, timeout=1)
    said: dict[str, str] = {}

    def request(name: str, *courses: str) -> None:
        with host.app.app_context():
            session = host.db.session

            try:
                session.add(order(host, f"{name}, before"))
                session.flush()
                send(host, f"only {name}", "py-101")
                send(host, "both", courses[0])

                # Where reading locks too, one waits for the other before.
                with contextlib.suppress(threading.BrokenBarrierError):
                    met.wait()

                try:
                    send(host, "both", courses[1])
                except sa.exc.DBAPIError:
                    if not catches:
                        raise

                session.add(order(host, f"{name}, after"))
                session.commit()
                said[name] = "committed"
            except sa.exc.SQLAlchemyError:
                session.rollback()
                said[name] = "rolled back"

    in_threads(
        lambda: request("1", "py-101", "sql"), lambda: request("2", "sql", "py-101")
    )

    committed = [name for name, what in said.items() if what == "committed"]
    assert committed
    assert orders(host) == sorted(
        f"{name}, {when}" for name in committed for when in ("before", "after")
    )
    assert [each for each in members(host) if each != "both"] == [
        f"only {name}" for name in sorted(committed)
    ]
    assert members(host).count("both") == 2


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_member_that_cannot_be_read_as_that_has_ended_the_transaction(
    make: cabc.Callable[..., Host],
) -> None:
    """What is read may be a row of the host's that has expired."""
    host = make()
    engine, session, rows = host.state.engine, host.db.session, ("mine", "theirs")
    session.add_all([order(host, name) for name in rows])
    session.commit()
    lock = "SELECT id FROM host_order WHERE id = '%s' FOR UPDATE"
    locked = threading.Event()

    def other() -> None:
        with engine.begin() as connection:
            # Who has written less is the one that is rolled back.
            for number in range(20):
                insert = f"INSERT INTO host_order (id) VALUES ('other {number}')"
                connection.exec_driver_sql(insert)

            connection.exec_driver_sql(lock % "theirs")
            locked.set()
            connection.exec_driver_sql(lock % "mine")

    class Lazy:
        id, first_name, last_name = "42", "Ada", "Example"

        @property
        def email(self) -> str:
            locked.wait(5)
            time.sleep(0.3)  # until the other waits for ours
            session.execute(sa.text(lock % "theirs"))
            return "ada@example.org"

    session.add(order(host, "before"))
    session.flush()
    session.execute(sa.text(lock % "mine"))
    thread = threading.Thread(target=other)
    thread.start()

    with pytest.raises(sa.exc.OperationalError, match="1213"):
        course_completed.send(host.app, member=Lazy(), course_id="py-101")

    thread.join()

    with pytest.raises(sa.exc.SQLAlchemyError):
        session.add(order(host, "after"))
        session.commit()

    session.rollback()
    assert [name for name in orders(host) if not name.startswith("other")] == [*rows]
    assert members(host) == []


def send(host: Host, member_id: str, course_id: str, **given: t.Any) -> None:
    course_completed.send(
        host.app, member=a_member(member_id), course_id=course_id, **given
    )


def break_inserts(host: Host, error: cabc.Callable[[sa.Connection], object]) -> None:
    """Let our next INSERT fail in the database."""
    first = itertools.count()

    @event.listens_for(host.state.engine, "before_cursor_execute")
    def fail(on: sa.Connection, cursor: t.Any, statement: str, *_: t.Any) -> None:
        if statement.startswith("INSERT INTO credly_issuance") and next(first) == 0:
            error(on)


ERRORS = (sa.exc.SQLAlchemyError, OSError)
"""pg8000 lets the network's through."""


@every_server
@pytest.mark.parametrize("catches", [False, True], ids=["", "the host catches it"])
@pytest.mark.parametrize("plain", [False, True], ids=["session", "connection"])
def test_a_lost_connection_takes_all_of_the_hosts_transaction(
    make: cabc.Callable[..., Host],
    driver: str,
    catches: bool,
    plain: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = make(SQLALCHEMY_DATABASE_URI=driver)

    def kill(on: sa.Connection) -> None:
        which = "pg_backend_pid" if "postgresql" in driver else "connection_id"
        how = "SELECT pg_terminate_backend({})" if "postgresql" in driver else "KILL {}"
        number = on.connection.cursor()
        number.execute(f"SELECT {which}()")
        with host.state.engine.connect() as other:
            other.exec_driver_sql(how.format(number.fetchone()[0]))
            other.rollback()

    break_inserts(host, kill)

    with (
        pytest.raises((sa.exc.SQLAlchemyError, OSError)),
        writing(host, plain) as write,
    ):
        write("before")

        try:
            send(host, "42", "py-101")
        except ERRORS:
            if not catches:
                raise

        write("after")

    assert orders(host) == []
    assert members(host) == []
    assert "was rolled back" in caplog.text
    assert "42@example.org" not in caplog.text

    # The next request is as ever.
    host.db.session.add(order(host, "next"))
    send(host, "43", "py-101")
    host.db.session.commit()
    assert (orders(host), members(host)) == (["next"], ["43"])


@contextlib.contextmanager
def writing(host: Host, plain: bool) -> cabc.Iterator[cabc.Callable[[str], None]]:
    """A transaction of the host's, by its session or by a plain connection."""
    insert = sa.text("INSERT INTO host_order (id) VALUES (:id)")

    if plain:
        with host.state.engine.begin() as on:
            yield lambda name: on.execute(insert, {"id": name}) and None
    else:
        try:
            yield lambda name: host.db.session.execute(insert, {"id": name}) and None
            host.db.session.commit()
        finally:
            host.db.session.rollback()


@pytest.mark.parametrize("catches", [False, True], ids=["", "the host catches it"])
@pytest.mark.parametrize("plain", [False, True], ids=["session", "connection"])
def test_a_full_disk_takes_all_of_the_hosts_transaction(
    make: cabc.Callable[..., Host], catches: bool, plain: bool
) -> None:
    """SQLite rolls back by itself, and the next statement would begin anew."""
    host = make()

    def rollback_as_sqlite_does(on: sa.Connection) -> None:
        raw: t.Any = on.connection.dbapi_connection
        raw.execute(
            "CREATE TEMP TRIGGER full BEFORE INSERT ON credly_issuance"
            " BEGIN SELECT RAISE(ROLLBACK, 'disk is full'); END"
        )

    break_inserts(host, rollback_as_sqlite_does)

    with pytest.raises(sa.exc.SQLAlchemyError), writing(host, plain) as write:
        write("before")

        try:
            send(host, "42", "py-101")
        except sa.exc.DBAPIError:
            if not catches:
                raise

        write("after")

    assert (orders(host), members(host)) == ([], [])


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_transaction_that_the_host_has_spoilt_is_not_committed_in_silence(
    host: Host,
) -> None:
    """PostgreSQL would answer the commit with a rollback, and no error."""
    host.db.session.add(order(host, "1"))
    host.db.session.flush()

    with contextlib.suppress(sa.exc.DBAPIError):
        host.db.session.execute(sa.text("SELECT nothing"))

    with pytest.raises(sa.exc.DBAPIError):
        send(host, "42", "py-101")

    with pytest.raises(sa.exc.SQLAlchemyError):
        host.db.session.commit()


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_where_a_lock_wait_rolls_all_back_it_is_known(
    make: cabc.Callable[..., Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make()
    asked = []

    @event.listens_for(host.state.engine, "before_cursor_execute", retval=True)
    def pretend(
        on: sa.Connection, cursor: t.Any, statement: str, parameters: t.Any, *_: t.Any
    ) -> tuple[str, t.Any]:
        # It is a setting of the server's that only a restart changes.
        if "innodb_rollback_on_timeout" in statement:
            asked.append(statement)
            return "SELECT 1", parameters

        return statement, parameters

    with locked_row(host), pytest.raises(sa.exc.OperationalError):
        host.db.session.execute(sa.text("SET innodb_lock_wait_timeout = 1"))
        host.db.session.add(order(host, "1"))
        host.db.session.flush()
        send(host, "42", "py-101")

    assert asked

    with pytest.raises(sa.exc.PendingRollbackError):
        host.db.session.commit()

    host.db.session.rollback()
    assert orders(host) == []


@contextlib.contextmanager
def locked_row(host: Host) -> cabc.Iterator[None]:
    """Another transaction has the same row, and does not end."""
    with host.state.engine.connect() as other:
        session = orm.Session(other)
        send(host, "42", "py-101", session=session)
        yield
        session.rollback()


def misspell(host: Host) -> None:
    """Let our next INSERT name a table that is not there."""
    first = itertools.count()

    @event.listens_for(host.state.engine, "before_cursor_execute", retval=True)
    def change(
        on: sa.Connection, cursor: t.Any, statement: str, parameters: t.Any, *_: t.Any
    ) -> tuple[str, t.Any]:
        if statement.startswith("INSERT INTO credly_issuance") and next(first) == 0:
            statement = statement.replace("credly_issuance", "no_table", 1)

        return statement, parameters


@every_driver
def test_an_error_that_leaves_the_transaction_alone_is_made_good_after_it(
    make: cabc.Callable[..., Host], driver: str, rung: list[None]
) -> None:
    host = make(SQLALCHEMY_DATABASE_URI=driver)
    rung.clear()

    misspell(host)

    host.db.session.add(order(host, "1"))
    host.db.session.flush()
    send(host, "42", "py-101")
    host.db.session.add(order(host, "2"))
    host.db.session.commit()
    host.wait_for_ring()

    assert (orders(host), members(host)) == (["1", "2"], ["42"])
    assert len(rung) == 1


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_a_lock_that_is_not_had_in_time_is_had_after_the_commit(host: Host) -> None:
    name = host.state.engine.dialect.name
    setting = {"postgresql": "lock_timeout = '1s'"}
    limit = setting.get(name, "innodb_lock_wait_timeout = 1")

    with locked_row(host):
        host.db.session.execute(sa.text(f"SET {limit}"))
        host.db.session.add(order(host, "1"))
        host.db.session.flush()
        send(host, "42", "py-101")

    host.db.session.add(order(host, "2"))
    host.db.session.commit()

    assert (orders(host), members(host)) == (["1", "2"], ["42"])


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("level", LEVELS)
def test_a_row_that_came_after_the_hosts_snapshot(
    make: cabc.Callable[..., Host], level: str
) -> None:
    """PostgreSQL calls that a failure of the serialization."""
    host = make(SQLALCHEMY_ENGINE_OPTIONS={"isolation_level": level})
    host.db.session.execute(sa.text("SELECT count(*) FROM host_order")).all()
    in_threads(lambda: send_in_context(host, "42"))
    host.db.session.add(order(host, "1"))
    host.db.session.flush()
    send(host, "42", "py-101")
    host.db.session.add(order(host, "2"))
    host.db.session.commit()

    assert (orders(host), members(host)) == (["1", "2"], ["42"])


def send_in_context(host: Host, member_id: str) -> None:
    with host.app.app_context():
        send(host, member_id, "py-101")


def test_what_was_to_be_made_good_goes_with_the_hosts_savepoint(
    make: cabc.Callable[..., Host],
) -> None:
    host = make(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"timeout": 0.1}})

    misspell(host)

    host.db.session.add(order(host, "1"))
    host.db.session.flush()
    savepoint = host.db.session.begin_nested()
    host.db.session.add(order(host, "2"))
    host.db.session.flush()
    send(host, "42", "py-101")
    savepoint.rollback()
    host.db.session.commit()

    assert (orders(host), members(host)) == (["1"], [])


# Sessions with several engines


class Routed(FlaskSession):
    """Reads go to a replica, and writes to the first, as SQLAlchemy's guide has it."""

    splits = False

    def get_bind(
        self,
        mapper: t.Any = None,
        clause: t.Any = None,
        bind: t.Any = None,
        **kwargs: t.Any,
    ) -> t.Any:
        if not self.splits or self._flushing or isinstance(clause, sa.UpdateBase):
            return self._db.engines[None]

        return self._db.engines["replica"]


@pytest.fixture
def routed(
    make_host: MakeHost,
    credly: CredlySimulator,
    tmp_path: t.Any,
    monkeypatch: pytest.MonkeyPatch,
) -> cabc.Iterator[Host]:
    """A host whose replica is another database, with empty tables of ours."""

    def setup(app: Flask, db: SQLAlchemy) -> None:
        tables(app, db)
        db.session = db._make_scoped_session({"class_": Routed})

    replica = f"sqlite:///{tmp_path / 'replica.db'}"
    host = make_host(
        setup=setup,
        SQLALCHEMY_BINDS={"replica": replica, "elsewhere": "sqlite://"},
    )

    with host.app.app_context():
        host.db.metadata.create_all(host.db.engines["replica"])
        connect(host, credly)
        host.db.session.remove()
        monkeypatch.setattr(Routed, "splits", True)
        yield host


@every_database
@pytest.mark.parametrize("flushes", [False, True])
@pytest.mark.parametrize("commits", [False, True])
def test_a_session_that_reads_from_a_replica(
    routed: Host, flushes: bool, commits: bool
) -> None:
    session = routed.db.session
    assert session.scalar(sa.text("SELECT count(*) FROM host_order")) == 0
    session.add(order(routed, "1"))

    if flushes:
        session.flush()

    send(routed, "42", "py-101")
    session.commit() if commits else session.rollback()

    assert orders(routed) == (["1"] if commits else [])
    assert members(routed) == (["42"] if commits else [])

    with routed.db.engines["replica"].connect() as replica:
        assert replica.scalar(sa.text("SELECT count(*) FROM credly_issuance")) == 0


@every_database
def test_a_session_that_only_reads_from_a_replica(routed: Host) -> None:
    routed.db.session.execute(sa.text("SELECT count(*) FROM host_order"))
    send(routed, "42", "py-101")

    assert members(routed) == ["42"]


class OfModels(FlaskSession):
    """Knows an engine for the host's own models only."""

    def get_bind(  # type: ignore[override]
        self, mapper: t.Any = None, **given: t.Any
    ) -> t.Any:
        if mapper is None:
            raise LookupError("of which model?")

        return super().get_bind(mapper, **given)


@every_database
@pytest.mark.parametrize("commits", [False, True])
def test_a_session_that_knows_an_engine_for_its_models_only(
    host: Host, commits: bool
) -> None:
    host.db.session = host.db._make_scoped_session({"class_": OfModels})
    host.db.session.add(order(host, "1"))
    send(host, "42", "py-101")
    host.db.session.commit() if commits else host.db.session.rollback()
    host.db.session.remove()

    assert orders(host) == (["1"] if commits else [])
    assert members(host) == (["42"] if commits else [])


@every_database
@pytest.mark.parametrize("flushes", [False, True])
@pytest.mark.parametrize("commits", [False, True])
def test_a_host_that_writes_to_another_database(
    host: Host, flushes: bool, commits: bool
) -> None:
    session = host.db.session
    session.add(host.app.extensions["elsewhere"](id="1"))

    if flushes:
        session.flush()

    send(host, "42", "py-101")
    session.commit() if commits else session.rollback()

    assert members(host) == (["42"] if commits else [])


def test_two_databases_are_warned_of_once(
    host: Host, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_transaction, "_warned", False)
    session = host.db.session
    session.add(order(host, "1"))
    session.flush()
    send(host, "1", "py-101")
    session.commit()
    assert "second database" not in caplog.text

    for number in ("2", "3"):
        session.add(host.app.extensions["elsewhere"](id=number))
        session.flush()
        send(host, number, "py-101")
        session.commit()

    assert caplog.text.count("written to a second database") == 1


@every_database
@pytest.mark.parametrize("commits", [False, True])
def test_a_second_engine_for_the_same_database(host: Host, commits: bool) -> None:
    second = sa.create_engine(host.state.engine.url)
    host.db.session.remove()

    with orm.Session(second) as session:
        session.execute(sa.text("INSERT INTO host_order (id) VALUES ('1')"))
        send(host, "42", "py-101", session=session)
        session.commit() if commits else session.rollback()

    assert members(host) == (["42"] if commits else [])
    second.dispose()


@every_database
@pytest.mark.parametrize("commits", [False, True])
def test_an_engine_with_options_is_the_same(host: Host, commits: bool) -> None:
    with orm.Session(host.state.engine.execution_options(who="host")) as session:
        session.add(order(host, "1"))
        session.flush()
        send(host, "42", "py-101", session=session)
        session.commit() if commits else session.rollback()

    assert members(host) == (["42"] if commits else [])


@every_database
def test_a_session_of_tenants_schemas(host: Host) -> None:
    """Names of the host's are sent to a schema; ours stay where they are."""
    engine = host.state.engine.execution_options(schema_translate_map={None: "nowhere"})

    with orm.Session(engine) as session:
        send(host, "42", "py-101", session=session)
        session.commit()

    assert members(host) == ["42"]


NOWHERE = {"schema_translate_map": {None: "nowhere"}}


@every_database
@pytest.mark.parametrize("commits", [False, True])
@pytest.mark.parametrize("by", ["engine", "session", "connection"])
def test_what_is_written_in_a_tenants_schema_takes_our_row_along(
    host: Host, by: str, commits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    engine = host.state.engine
    bind: t.Any = engine.execution_options(**NOWHERE) if by == "engine" else engine

    with orm.Session(bind) as session:
        if by == "session":
            session.connection(execution_options=NOWHERE)

        on = session.connection()

        if by == "connection":
            on.execution_options(**NOWHERE)

        session.execute(sa.text("INSERT INTO host_order (id) VALUES ('1')"))
        send(host, "42", "py-101", session=session)
        count = sa.text("SELECT count(*) FROM credly_issuance")
        assert session.scalar(count) == 1  # and not after the commit
        assert on.get_execution_options()["schema_translate_map"][None] == "nowhere"

        with pytest.raises(sa.exc.DBAPIError), session.begin_nested():
            session.scalars(sa.select(Issuance)).all()  # the host's names go there

        session.commit() if commits else session.rollback()

    assert members(host) == (["42"] if commits else [])
    assert orders(host) == (["1"] if commits else [])
    assert "not recorded" not in caplog.text


@every_database
def test_a_member_is_erased_from_within_a_tenants_schema(host: Host) -> None:
    send(host, "42", "py-101")
    session = host.db.session
    session.connection(execution_options=NOWHERE)
    session.execute(sa.text("INSERT INTO host_order (id) VALUES ('1')"))

    assert host.credly.erase_member("42").badges == 1

    session.commit()
    assert members(host) != ["42"]


@every_database
def test_the_card_is_read_from_within_a_tenants_schema(host: Host) -> None:
    with host.app.test_request_context():
        host.db.session.connection(execution_options=NOWHERE)
        host.db.session.execute(sa.text("INSERT INTO host_order (id) VALUES ('1')"))
        assert "Connected" in card()


# Transactions that are not the session's


@every_database
@pytest.mark.parametrize("commits", [False, True])
def test_a_plain_connection_of_the_host_that_has_written(
    host: Host, commits: bool, rung: list[None], caplog: pytest.LogCaptureFixture
) -> None:
    class Stop(Exception):
        pass

    with contextlib.suppress(Stop), host.state.engine.begin() as on:
        on.execute(sa.text("INSERT INTO host_order (id) VALUES ('1')"))
        send(host, "42", "py-101")

        if not commits:
            raise Stop

    host.wait_for_ring()
    assert members(host) == (["42"] if commits else [])
    assert len(rung) == commits
    assert ("was rolled back" in caplog.text) is not commits


@every_database
def test_of_two_plain_connections_that_have_written_none_is_joined(host: Host) -> None:
    """Nothing says which one the completion belongs to."""
    engine = host.state.engine

    with engine.connect() as one, engine.connect() as other:
        for on in (one, other):
            on.execute(sa.text("CREATE TEMPORARY TABLE host_note (id INT)"))
            on.execute(sa.text("INSERT INTO host_note VALUES (1)"))

        send(host, "42", "py-101")
        one.rollback()
        other.rollback()

    assert members(host) == ["42"]


@every_database
@pytest.mark.parametrize("commits", [False, True])
def test_another_session_of_the_host_that_has_written(
    host: Host, commits: bool
) -> None:
    with orm.Session(host.state.engine) as session:
        session.add(order(host, "1"))
        session.flush()
        send(host, "42", "py-101")
        session.commit() if commits else session.rollback()

    assert members(host) == (["42"] if commits else [])


@every_database
@pytest.mark.parametrize("how", ["autocommit", "forgotten", "begun", "closed"])
def test_a_connection_that_went_back_has_not_written(host: Host, how: str) -> None:
    insert = sa.text("INSERT INTO host_order (id) VALUES ('1')")
    engine = host.state.engine
    host.db.session.remove()
    engine.dispose()

    def write() -> None:
        if how == "autocommit":
            on = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            on.execute(insert)
        elif how == "forgotten":
            orm.Session(engine).execute(insert)
        elif how == "begun":
            engine.connect().execute(insert)
        else:
            with engine.connect() as closed:
                closed.execute(insert)

    write()
    gc.collect()
    host.db.session.execute(sa.text("SELECT id FROM host_order")).all()
    send(host, "42", "py-101")

    assert members(host) == ["42"]


@every_database
def test_a_session_that_commits_each_statement(
    make: cabc.Callable[..., Host], caplog: pytest.LogCaptureFixture
) -> None:
    host = make(SQLALCHEMY_ENGINE_OPTIONS={"isolation_level": "AUTOCOMMIT"})
    host.db.session.add(order(host, "1"))
    host.db.session.flush()
    send(host, "42", "py-101")
    send(host, "43", "py-101", session=host.db.session)
    host.db.session.rollback()

    assert (orders(host), members(host)) == (["1"], ["42", "43"])
    assert "was rolled back" not in caplog.text


@every_database
@pytest.mark.parametrize(
    "mode", ["conditional_savepoint", "create_savepoint", "rollback_only"]
)
def test_a_session_inside_a_transaction_of_a_test(
    host: Host, mode: t.Any, rung: list[None], caplog: pytest.LogCaptureFixture
) -> None:
    """As in a suite of the host's, where everything is rolled back in the end."""
    if host.state.engine.dialect.name == "sqlite" and mode != "rollback_only":
        pytest.skip("its driver begins no transaction before a savepoint")

    with host.state.engine.connect() as outer:
        transaction = outer.begin()
        session = orm.Session(outer, join_transaction_mode=mode)
        session.add(order(host, "1"))
        send(host, "42", "py-101", session=session)
        session.commit()
        assert outer.scalar(sa.text("SELECT count(*) FROM credly_issuance")) == 1
        assert rung == []
        assert "was rolled back" not in caplog.text
        session.close()
        transaction.rollback()

    assert (orders(host), members(host)) == ([], [])
    assert rung == []


@every_database
def test_engines_that_a_test_has_replaced_by_connections(host: Host) -> None:
    """A recipe for suites of Flask-SQLAlchemy hosts."""
    engine = host.db.engine

    with engine.connect() as outer, outer.begin() as transaction:
        host.db.engines[None] = outer

        try:
            host.db.session.add(order(host, "1"))
            send(host, "42", "py-101")
            host.db.session.commit()
            send(host, "43", "py-101")
            host.db.session.remove()
            assert outer.scalar(sa.text("SELECT count(*) FROM credly_issuance")) == 2
            transaction.rollback()
        finally:
            host.db.session.remove()
            host.db.engines[None] = engine

    assert (orders(host), members(host)) == ([], [])


@every_database
@pytest.mark.parametrize("commits", [False, True])
def test_a_session_that_begins_nothing_by_itself(host: Host, commits: bool) -> None:
    with orm.Session(host.state.engine, autobegin=False) as session:
        send(host, "41", "py-101", session=session)
        assert members(host) == ["41"]
        session.begin()
        session.add(order(host, "1"))
        send(host, "42", "py-101", session=session)
        session.commit() if commits else session.rollback()

    assert members(host) == (["41", "42"] if commits else ["41"])


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("commits", [False, True])
def test_a_session_in_two_phases(
    host: Host, commits: bool, rung: list[None], caplog: pytest.LogCaptureFixture
) -> None:
    if host.state.engine.dialect.name == "postgresql":
        with host.state.engine.connect() as on:
            if on.scalar(sa.text("SHOW max_prepared_transactions")) == "0":
                pytest.skip("the server prepares no transactions")

    with orm.Session(host.state.engine, twophase=True) as session:
        session.add(order(host, "1"))
        session.flush()
        send(host, "42", "py-101", session=session)
        session.commit() if commits else session.rollback()

    host.wait_for_ring()
    assert members(host) == (["42"] if commits else [])
    assert len(rung) == commits
    assert ("was rolled back" in caplog.text) is not commits


# From where it is sent, and who listens


MOMENTS = ["before_flush", "after_flush", "after_flush_postexec", "before_commit"]


@every_database
@pytest.mark.parametrize("moment", [*MOMENTS, "after_commit", "after_rollback"])
@pytest.mark.parametrize("names", [False, True], ids=["", "names the session"])
def test_a_completion_is_sent_in_a_listener_of_the_session(
    host: Host, moment: str, names: bool, rung: list[None]
) -> None:
    session = host.db.session()
    given = {"session": session} if names else {}

    for end in ("commit", "rollback"):
        session.add(order(host, end))
        counted = itertools.count()

        def complete(*_: t.Any, end: str = end, counted: t.Any = counted) -> None:
            if next(counted) == 0:
                send(host, end, "py-101", **given)

        event.listen(session, moment, complete)

        if moment != "before_commit" or end == "commit":
            session.flush()

        getattr(session, end)()
        session.close()
        event.remove(session, moment, complete)

    host.wait_for_ring()
    assert orders(host) == ["commit"]
    assert members(host) == ["rollback" if moment == "after_rollback" else "commit"]
    assert rung


@every_database
@pytest.mark.parametrize(
    ("target", "moment"),
    [
        *itertools.product(
            ("session", "sessionmaker", "class"),
            ("after_commit", "after_transaction_end"),
        ),
        ("class, first", "after_commit"),
    ],
)
def test_a_listener_of_the_hosts_that_raises(
    host: Host,
    target: str,
    moment: str,
    rung: list[None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: t.Any) -> t.NoReturn:
        raise LookupError("the host's mistake")

    on: t.Any = {
        "session": host.db.session(),
        "sessionmaker": host.db.session.session_factory,
        "class": orm.Session,
        "class, first": orm.Session,
    }[target]

    host.db.session.add(order(host, "1"))
    host.db.session.flush()
    event.listen(on, moment, fail, insert=target == "class, first")

    try:
        send(host, "42", "py-101")

        with pytest.raises(LookupError):
            host.db.session.commit()

        with contextlib.suppress(LookupError, sa.exc.InvalidRequestError):
            host.db.session.rollback()
    finally:
        event.remove(on, moment, fail)

    host.db.session.remove()
    host.wait_for_ring()

    assert (orders(host), members(host)) == (["1"], ["42"])
    assert len(rung) == 1
    assert "was rolled back" not in caplog.text


def test_a_locked_database_and_a_listener_that_raises(
    make: cabc.Callable[..., Host], rung: list[None]
) -> None:
    host = make(SQLALCHEMY_ENGINE_OPTIONS={"connect_args": {"timeout": 0.1}})
    rung.clear()

    def fail(*_: t.Any) -> t.NoReturn:
        raise LookupError("the host's mistake")

    host.db.session.add(order(host, "1"))
    event.listen(orm.Session, "after_commit", fail, insert=True)

    try:
        with host.state.engine.connect() as other:
            other.exec_driver_sql("BEGIN IMMEDIATE")
            send(host, "42", "py-101")
            other.rollback()

        with pytest.raises(LookupError):
            host.db.session.commit()
    finally:
        event.remove(orm.Session, "after_commit", fail)

    host.db.session.remove()
    host.wait_for_ring()

    assert (orders(host), members(host)) == (["1"], ["42"])
    assert len(rung) == 1


@every_database
def test_a_commit_that_fails_is_no_commit(
    host: Host, rung: list[None], caplog: pytest.LogCaptureFixture
) -> None:
    session = host.db.session()

    def fail(*_: t.Any) -> t.NoReturn:
        raise sa.exc.OperationalError("COMMIT", None, Exception("the disk is full"))

    session.add(order(host, "1"))
    send(host, "42", "py-101")
    dialect = host.state.engine.dialect
    kept, dialect.do_commit = dialect.do_commit, fail  # type: ignore[method-assign]

    try:
        with pytest.raises(sa.exc.OperationalError):
            session.commit()
    finally:
        dialect.do_commit = kept  # type: ignore[method-assign]

    session.rollback()
    host.wait_for_ring()

    assert (orders(host), members(host)) == ([], [])
    assert rung == []
    assert "was rolled back" in caplog.text


@every_database
def test_a_completion_without_autoflush(host: Host) -> None:
    with host.db.session.no_autoflush:
        host.db.session.add(order(host, "1"))
        send(host, "42", "py-101")

    host.db.session.rollback()
    assert members(host) == []


@every_database
def test_a_completion_from_a_thread_is_its_own(host: Host) -> None:
    host.db.session.execute(sa.text("SELECT 1"))

    in_threads(lambda: send_in_context(host, "42"))
    host.db.session.rollback()
    assert members(host) == ["42"]


def test_a_forgotten_session_gives_its_connection_back(host: Host) -> None:
    pool: t.Any = host.state.engine.pool
    host.db.session.remove()
    before = pool.checkedout()
    session = orm.Session(host.state.engine)
    session.add(order(host, "1"))
    send(host, "42", "py-101", session=session)
    assert pool.checkedout() == before + 1

    del session
    gc.collect()
    assert pool.checkedout() == before


@pytest.mark.parametrize("commits", [False, True])
def test_a_database_in_memory(make_connected: MakeConnected, commits: bool) -> None:
    """All share one connection."""
    host, _, _ = make_connected(
        setup=tables,
        SQLALCHEMY_DATABASE_URI="sqlite://",
        SQLALCHEMY_BINDS={"elsewhere": "sqlite://"},
    )
    send(host, "41", "py-101")
    host.db.session.add(order(host, "1"))
    host.db.session.flush()
    send(host, "42", "py-101")
    host.db.session.commit() if commits else host.db.session.rollback()
    assert [row.member_id for row in host.rows()] == ["41", "42"][: 1 + commits]


@pytest.mark.parametrize("commits", [False, True])
@pytest.mark.parametrize("begin", ["BEGIN", "BEGIN IMMEDIATE"])
def test_sqlite_where_the_host_begins_by_itself(
    make: cabc.Callable[..., Host], begin: str, commits: bool
) -> None:
    """As SQLAlchemy's guide says for savepoints. The driver commits each statement."""
    host = make()
    engine = host.state.engine
    engine.dispose()

    @event.listens_for(engine, "connect")
    def let_it_be(raw: t.Any, _: object) -> None:
        raw.isolation_level = None

    event.listen(engine, "begin", lambda on: on.exec_driver_sql(begin))
    host.db.session.add(order(host, "1"))
    savepoint = host.db.session.begin_nested()
    send(host, "41", "py-101", session=host.db.session)
    savepoint.rollback()
    send(host, "42", "py-101")
    host.db.session.commit() if commits else host.db.session.rollback()

    assert orders(host) == (["1"] if commits else [])
    assert members(host) == (["42"] if commits else [])


# A host that ends its work while a completion is recorded


class Stop(BaseException):
    """As gevent's time-out."""


class TooLong(Exception):
    """As the time-outs of RQ and Celery."""


@contextlib.contextmanager
def ending_itself(kind: type[BaseException], after: float = 0.2) -> cabc.Iterator[None]:
    def end(*_: object) -> None:
        raise kind

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, after)

    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def alarm(driver: str) -> float:
    """Get after how long the host ends its work. On SQLite the INSERT does so itself: a
    clock that was quicker would leave the next INSERT with a signal that nobody takes.
    """
    return 60 if "sqlite" in driver else 0.2


@contextlib.contextmanager
def in_the_way(host: Host, member_id: str) -> cabc.Iterator[None]:
    """Let an INSERT of ours wait for a second: another transaction has the row.

    Connections are ready for it. A driver that is stopped while it connects may leave
    its socket to the garbage collector.
    """
    held, ended = threading.Event(), threading.Event()

    def hold() -> None:
        with host.app.app_context():
            send(host, member_id, "py-101", session=host.db.session)
            held.set()
            ended.wait(1)
            host.db.session.rollback()

    other = threading.Thread(target=hold)
    other.start()
    held.wait()

    with host.state.engine.connect(), host.state.engine.connect():
        pass

    try:
        yield
    finally:
        ended.set()
        other.join()


KINDS = [Stop, TooLong, TimeoutError]
every_end = pytest.mark.parametrize("kind", KINDS, ids=lambda each: each.__name__)


@every_driver
@every_end
@pytest.mark.parametrize(
    ("catches", "plain"),
    [(False, False), (True, False), (True, True)],
    ids=["", "the host catches it", "and has a plain connection"],
)
def test_a_host_that_ends_its_work_in_our_statement_keeps_all_or_nothing(
    make: cabc.Callable[..., Host],
    driver: str,
    kind: type[BaseException],
    catches: bool,
    plain: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = make(SQLALCHEMY_DATABASE_URI=driver)
    rises = (sa.exc.SQLAlchemyError,) if catches else (kind,)

    with contextlib.ExitStack() as stack:
        if "sqlite" in driver:
            break_inserts(host, lambda _: signal.raise_signal(signal.SIGALRM))
        else:
            stack.enter_context(in_the_way(host, "42"))

        stack.enter_context(pytest.raises(rises))
        write = stack.enter_context(writing(host, plain))
        write("before")

        with (
            contextlib.ExitStack() if not catches else pytest.raises(kind),
            ending_itself(kind, after=alarm(driver)),
        ):
            send(host, "42", "py-101")

        write("after")

    assert (orders(host), members(host)) == ([], [])
    assert "was rolled back" in caplog.text

    # The next request is as ever.
    host.db.session.add(order(host, "next"))
    send(host, "43", "py-101")
    host.db.session.commit()
    assert (orders(host), members(host)) == (["next"], ["43"])


@every_driver
@every_end
@pytest.mark.parametrize("reads", [False, True], ids=["", "the host has read"])
def test_a_host_that_ends_its_work_in_a_transaction_of_ours_is_told_and_it_is_counted(
    make: cabc.Callable[..., Host],
    driver: str,
    kind: type[BaseException],
    reads: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = make(SQLALCHEMY_DATABASE_URI=driver)

    with contextlib.ExitStack() as stack:
        if "sqlite" in driver:
            break_inserts(host, lambda _: signal.raise_signal(signal.SIGALRM))
        else:
            stack.enter_context(in_the_way(host, "42"))

        if reads:
            host.db.session.execute(sa.text("SELECT id FROM host_order")).all()

        stack.enter_context(pytest.raises(kind))
        stack.enter_context(ending_itself(kind, after=alarm(driver)))
        send(host, "42", "py-101")

    host.db.session.commit()
    host.wait_for_count()

    assert "A completion was not recorded: member '42'" in caplog.text
    assert unrecorded.read(host.state).number == 1
    assert members(host) == []

    send(host, "43", "py-101")
    assert members(host) == ["43"]


@every_database
@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("what", ["SAVEPOINT", "INSERT INTO credly_", "RELEASE"])
@pytest.mark.parametrize("nested", [False, True], ids=["", "in a savepoint"])
def test_wherever_a_host_ends_its_work_nothing_is_lost_in_silence(
    make: cabc.Callable[..., Host],
    database: str,
    where: str,
    what: str,
    nested: bool,
) -> None:
    if "postgresql" not in database and not what.startswith("INSERT"):
        pytest.skip("no savepoint of ours there")

    host = make(SQLALCHEMY_DATABASE_URI=database)
    session = host.db.session
    session.add(order(host, "before"))
    session.flush()

    @event.listens_for(host.state.engine, f"{where}_cursor_execute")
    def end(on: sa.Connection, cursor: t.Any, statement: str, *_: t.Any) -> None:
        if statement.startswith(what) and "sa_savepoint" not in statement:
            raise Stop

    with pytest.raises(Stop):
        if nested and "sqlite" not in database:
            with session.begin_nested():
                send(host, "42", "py-101")
        else:
            send(host, "42", "py-101")

    event.remove(host.state.engine, f"{where}_cursor_execute", end)

    with pytest.raises(sa.exc.SQLAlchemyError):
        session.commit()

    session.rollback()
    assert (orders(host), members(host)) == ([], [])


@every_database
@every_end
def test_what_follows_a_commit_is_done_for_each_completion_whatever_ends_it(
    host: Host, rung: list[None], kind: type[BaseException]
) -> None:
    session = host.db.session
    session.add(order(host, "1"))
    session.flush()

    def end() -> None:
        signal.raise_signal(signal.SIGALRM)

    done: list[str] = []
    followed = iter([lambda: done.append("first"), end, lambda: done.append("last")])

    for each in followed:
        host_transaction.follow(
            session(), session.connection(), on_commit=each, on_rollback=lambda: None
        )

    send(host, "42", "py-101")

    with ending_itself(kind, after=5), pytest.raises(kind):
        session.commit()

    assert done == ["first", "last"]
    assert (orders(host), members(host)) == (["1"], ["42"])

    session.add(order(host, "2"))
    session.commit()
    assert orders(host) == ["1", "2"]


@every_server
@every_end
def test_what_is_made_good_after_a_commit_and_is_cut_short_is_counted(
    make: cabc.Callable[..., Host],
    driver: str,
    kind: type[BaseException],
) -> None:
    host = make(SQLALCHEMY_DATABASE_URI=driver)
    session = host.db.session
    session.add(order(host, "1"))
    session.flush()

    def refuse(_: sa.Connection) -> None:
        raise sa.exc.OperationalError("INSERT", {}, Exception("not now"))

    break_inserts(host, refuse)
    send(host, "42", "py-101")
    send(host, "43", "py-101")

    with in_the_way(host, "42"), ending_itself(kind), pytest.raises(kind):
        session.commit()

    host.wait_for_count()
    assert orders(host) == ["1"]
    assert members(host) == ["43"]
    assert unrecorded.read(host.state).number == 1


def test_a_pool_loses_no_connection_where_a_host_ends_its_work(host: Host) -> None:
    insert = sa.text("INSERT INTO host_order (id) VALUES (:id)")

    def end() -> None:
        raise Stop

    for number in range(3):
        on = host.state.engine.connect()
        on.execute(insert, {"id": str(number)})
        host_transaction.follow(
            host.db.session(), on, on_commit=end, on_rollback=lambda: None
        )
        on.commit()

        with pytest.raises(Stop):
            on.close()

    assert t.cast(sa.QueuePool, host.state.engine.pool).checkedout() == 0


@pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)
def test_an_exception_that_is_thrown_into_the_thread_reaches_the_host(
    make: cabc.Callable[..., Host], database: str
) -> None:
    host = make(SQLALCHEMY_DATABASE_URI=database)
    this = ctypes.c_ulong(threading.get_ident())
    throw = ctypes.pythonapi.PyThreadState_SetAsyncExc
    timer = threading.Timer(0.2, throw, [this, ctypes.py_object(TooLong)])

    with in_the_way(host, "42"), pytest.raises(TooLong):
        timer.start()
        send(host, "42", "py-101")

    host.wait_for_count()
    assert unrecorded.read(host.state).number == 1


def test_an_error_of_ours_does_not_rise_where_the_host_handles_a_time_out(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: sa.Connection) -> None:
        raise sa.exc.ProgrammingError("INSERT", {}, Exception("no"))

    break_inserts(host, refuse)

    try:
        with ending_itself(TooLong):
            time.sleep(2)
    except TooLong:
        send(host, "42", "py-101")

    assert "A completion was not recorded: member '42'" in caplog.text


def test_a_time_out_while_the_hosts_member_is_read_reaches_the_host(host: Host) -> None:
    class Slow:
        id = "42"

        @property
        def email(self) -> str:
            time.sleep(2)
            return ""

    with pytest.raises(TooLong), ending_itself(TooLong):
        course_completed.send(host.app, member=Slow(), course_id="py-101")

    host.wait_for_count()
    assert unrecorded.read(host.state).number == 1
