"""One story, told in hosts that are not like each other.

A school connects, maps, completes courses in every way that a transaction can take,
issues, retries, pauses, exports, erases and removes. An odd host is one entry of
:data:`HOSTS`; what the story asks for is the same in each.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import logging
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import typing as t

import html5lib
import jinja2
import jinja2.sandbox
import pytest
import sqlalchemy as sa
from conftest import a_member
from conftest import COURSES
from conftest import DEAD_REDIS
from conftest import missing
from conftest import need_driver
from flask import Flask
from flask import redirect
from flask import request
from flask import Response
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.session import Session
from flask_wtf import CSRFProtect
from sqlalchemy import orm
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client
from werkzeug.test import TestResponse

from example_app.redis_server import free_port
from flask_credly import course_completed
from flask_credly import Credly
from flask_credly import jobs
from flask_credly.models import Issuance
from flask_credly.models import Mapping
from flask_credly.testing import CredlySimulator

WAIT = 2
"""Seconds after which a database gives up to wait for a lock: who waits, fails."""

Setup = cabc.Callable[[Flask, SQLAlchemy], None]


@dataclasses.dataclass(frozen=True)
class Odd:
    """A host.

    :param database: ``"sqlite"``, ``"postgresql"`` or ``"mariadb"``.
    :param driver: As SQLAlchemy names it. Empty: the one that our other tests use.
    :param config: Settings of the application.
    :param engine: Options of its engine.
    :param make_db: Makes its Flask-SQLAlchemy.
    :param before: Called before the extension is initialized.
    :param after: Called after it.
    :param writes: How its transactions are made: a function below.
    :param joins: Whether a completion is a part of the host's transaction.
    :param savepoints: Whether the host can roll back to a savepoint.
    :param flask: Arguments of its Flask.
    :param at: Its scheme and host, as the browser sees them.
    :param root: The path that it is served below.
    :param bouncer: Whether PgBouncer stands before its database, and gives each
        transaction another connection.
    """

    database: str = "sqlite"
    driver: str = ""
    config: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    engine: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    make_db: cabc.Callable[[], SQLAlchemy] = SQLAlchemy
    before: Setup = lambda app, db: None
    after: Setup = lambda app, db: None
    writes: cabc.Callable[[School], t.ContextManager[Transaction]] = lambda school: (
        by_session(school)
    )
    joins: bool = True
    savepoints: bool = True
    flask: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    at: str = "http://localhost"
    root: str = ""
    bouncer: bool = False


class Transaction(t.NamedTuple):
    """A transaction of the host's that is open.

    :param execute: Sends a statement in it.
    :param session: What the signal is told. ``None``: nothing.
    :param savepoint: Opens a savepoint.
    """

    execute: cabc.Callable[[t.Any], t.Any]
    session: orm.Session | None
    savepoint: cabc.Callable[[], t.ContextManager[t.Any]]


@contextlib.contextmanager
def by_session(school: School) -> cabc.Iterator[Transaction]:
    """As most do: ``db.session``."""
    session = school.db.session

    try:
        yield Transaction(session.execute, None, session.begin_nested)
        session.commit()
    except BaseException:
        session.rollback()
        raise


@contextlib.contextmanager
def by_begun_session(school: School) -> cabc.Iterator[Transaction]:
    """A session that is begun explicitly."""
    session = school.db.session

    with session.begin():
        yield Transaction(session.execute, None, session.begin_nested)


@contextlib.contextmanager
def by_own_session(school: School) -> cabc.Iterator[Transaction]:
    """A session that is not Flask-SQLAlchemy's, and is named with the signal."""
    with orm.Session(school.db.engine) as session, session.begin():
        yield Transaction(session.execute, session, session.begin_nested)


@contextlib.contextmanager
def by_bound_session(school: School) -> cabc.Iterator[Transaction]:
    """A session within a transaction of a connection's."""
    with school.db.engine.begin() as connection:
        with orm.Session(
            connection, join_transaction_mode="create_savepoint"
        ) as session:
            yield Transaction(session.execute, session, session.begin_nested)
            session.commit()


@contextlib.contextmanager
def by_engine(school: School) -> cabc.Iterator[Transaction]:
    """No session at all."""
    with school.db.engine.begin() as connection:
        yield Transaction(connection.execute, None, connection.begin_nested)


# Databases.


def set_pragmas(*pragmas: str) -> Setup:
    def after(app: Flask, db: SQLAlchemy) -> None:
        with app.app_context():
            engine = db.engine

        @sa.event.listens_for(engine, "connect")
        def on_connect(raw: t.Any, record: object) -> None:
            for pragma in pragmas:
                raw.execute(pragma)

    return after


def begin_immediate(app: Flask, db: SQLAlchemy) -> None:
    """As SQLAlchemy's documentation has it for transactions that are serializable."""
    with app.app_context():
        engine = db.engine

    @sa.event.listens_for(engine, "connect")
    def on_connect(raw: t.Any, record: object) -> None:
        raw.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


# Sessions.


class Routed(Session):
    """Reads go to a replica: here, to the same database by another engine."""

    replica: t.ClassVar[dict[int, sa.Engine]] = {}

    def get_bind(  # type: ignore[override]
        self, mapper: t.Any = None, clause: t.Any = None, **given: t.Any
    ) -> t.Any:
        if self._flushing or isinstance(clause, (sa.Insert, sa.Update, sa.Delete)):
            return super().get_bind(mapper=mapper, clause=clause, **given)

        primary = self._db.engine

        if id(self._db) not in self.replica:
            engine = sa.create_engine(primary.url, poolclass=sa.NullPool)

            @sa.event.listens_for(engine, "before_cursor_execute")
            def refuse(c: t.Any, cursor: t.Any, statement: str, *rest: t.Any) -> None:
                if statement.lstrip()[:6].upper() in ("INSERT", "UPDATE", "DELETE"):
                    raise AssertionError("a write to the replica")

            self.replica[id(self._db)] = engine

        return self.replica[id(self._db)]


def options(**given: t.Any) -> cabc.Callable[[], SQLAlchemy]:
    return lambda: SQLAlchemy(session_options=given)


def comment(app: Flask, db: SQLAlchemy) -> None:
    """Each statement says where it comes from, as tools to observe a database do."""
    with app.app_context():
        engine = db.engine

    @sa.event.listens_for(engine, "before_cursor_execute", retval=True)
    def add(
        c: t.Any, cursor: t.Any, statement: str, parameters: t.Any, *rest: t.Any
    ) -> tuple[str, t.Any]:
        return f"/* app='school' */ {statement} /* route='/done' */", parameters


# Applications.


def see_last(app: Flask, db: SQLAlchemy) -> None:
    """A transaction a request: "last seen" is flushed before it, committed after it."""

    @app.before_request
    def flush() -> None:
        db.session.execute(sa.insert(db.metadata.tables["seen"]).values(at=1))

    @app.after_request
    def commit(response: Response) -> Response:
        if response.status_code < 400:
            db.session.commit()
        else:
            db.session.rollback()

        return response


def load_user(app: Flask, db: SQLAlchemy) -> None:
    """Who asks is read from the database for each request."""

    @app.before_request
    def load() -> None:
        db.session.execute(sa.select(db.metadata.tables["done"])).first()


def handle_all(app: Flask, db: SQLAlchemy) -> None:
    @app.errorhandler(Exception)
    def handle(error: Exception) -> Response:
        raise AssertionError("the host had to handle an error") from error


def protect_all(app: Flask, db: SQLAlchemy) -> None:
    CSRFProtect(app)


def jinja(**given: t.Any) -> Setup:
    def before(app: Flask, db: SQLAlchemy) -> None:
        app.jinja_options = {**app.jinja_options, **given}

    return before


class Sandboxed(jinja2.sandbox.SandboxedEnvironment):
    """An environment for templates that users write."""

    def __init__(self, app: Flask, **given: t.Any) -> None:
        given.setdefault("loader", app.create_global_jinja_loader())
        super().__init__(**given)
        self.app = app


def sandbox(app: Flask, db: SQLAlchemy) -> None:
    app.jinja_environment = Sandboxed  # type: ignore[assignment]


def login_elsewhere(app: Flask, db: SQLAlchemy) -> None:
    @app.before_request
    def guard() -> t.Any:
        if request.headers.get("X-Out"):
            return redirect("/sign-in?next=" + request.path)

        return None


POOL_OF_ONE = {"pool_size": 1, "max_overflow": 0, "pool_timeout": WAIT}
MODES = (
    "ANSI,TRADITIONAL,ORACLE,ONLY_FULL_GROUP_BY,NO_BACKSLASH_ESCAPES,"
    "PAD_CHAR_TO_FULL_LENGTH,HIGH_NOT_PRECEDENCE"
)

HOSTS: dict[str, Odd] = {
    # Databases, their modes and isolation levels.
    "sqlite": Odd(),
    "sqlite wal": Odd(after=set_pragmas("PRAGMA journal_mode=WAL")),
    "sqlite foreign keys": Odd(after=set_pragmas("PRAGMA foreign_keys=ON")),
    "sqlite immediate": Odd(after=begin_immediate),
    "sqlite autocommit": Odd(
        engine={"isolation_level": "AUTOCOMMIT"}, joins=False, savepoints=False
    ),
    "postgresql": Odd("postgresql"),
    "postgresql repeatable read": Odd(
        "postgresql", engine={"isolation_level": "REPEATABLE READ"}
    ),
    "postgresql serializable": Odd(
        "postgresql", engine={"isolation_level": "SERIALIZABLE"}
    ),
    "postgresql autocommit": Odd(
        "postgresql",
        engine={"isolation_level": "AUTOCOMMIT"},
        joins=False,
        savepoints=False,
    ),
    "postgresql other settings": Odd(
        "postgresql",
        engine={
            "connect_args": {
                "options": "-c timezone=Asia/Kolkata -c lock_timeout=2s"
                " -c standard_conforming_strings=off -c transform_null_equals=on"
                " -c default_transaction_isolation=serializable"
            }
        },
    ),
    "mariadb": Odd("mariadb"),
    "mariadb other modes": Odd("mariadb", engine={"connect_args": {"sql_mode": MODES}}),
    "mariadb no modes": Odd("mariadb", engine={"connect_args": {"sql_mode": ""}}),
    "mariadb other settings": Odd(
        "mariadb",
        engine={
            "connect_args": {
                "init_command": "SET time_zone = '+05:30', completion_type = 1,"
                " sql_auto_is_null = 1, innodb_lock_wait_timeout = 2",
                "collation": "utf8mb4_unicode_520_ci",
            }
        },
    ),
    "mariadb read committed": Odd(
        "mariadb", engine={"isolation_level": "READ COMMITTED"}
    ),
    "mariadb serializable": Odd("mariadb", engine={"isolation_level": "SERIALIZABLE"}),
    "mariadb autocommit": Odd(
        "mariadb",
        engine={"isolation_level": "AUTOCOMMIT"},
        joins=False,
        savepoints=False,
    ),
    "pgbouncer": Odd(
        "postgresql",
        engine={"connect_args": {"prepare_threshold": None}},
        bouncer=True,
    ),
    # Drivers.
    "psycopg2": Odd("postgresql", "psycopg2"),
    "pg8000": Odd("postgresql", "pg8000"),
    "mysqlclient": Odd("mariadb", "mysqldb"),
    "mysql connector": Odd("mariadb", "mysqlconnector"),
    "mariadb dialect": Odd("mariadb", "mariadb+pymysql"),
    # Pools.
    "sqlite pool of one": Odd(engine=POOL_OF_ONE, before=load_user),
    "postgresql pool of one": Odd("postgresql", engine=POOL_OF_ONE, before=load_user),
    "mariadb pool of one": Odd("mariadb", engine=POOL_OF_ONE, before=load_user),
    "null pool": Odd("postgresql", engine={"poolclass": sa.NullPool}),
    "static pool": Odd(engine={"poolclass": sa.StaticPool}),
    # Sessions.
    "another scope": Odd(make_db=options(scopefunc=threading.get_ident)),
    "routed reads": Odd("postgresql", make_db=options(class_=Routed)),
    "routed reads on sqlite": Odd(make_db=options(class_=Routed)),
    "another bind": Odd(config={"SQLALCHEMY_BINDS": {"other": "sqlite://"}}),
    "two phases": Odd("mariadb", make_db=options(twophase=True)),
    "begun explicitly": Odd(make_db=options(autobegin=False), writes=by_begun_session),
    "begun explicitly on postgresql": Odd(
        "postgresql", make_db=options(autobegin=False), writes=by_begun_session
    ),
    "comments": Odd(after=comment),
    "comments on postgresql": Odd("postgresql", after=comment),
    "comments on mariadb": Odd("mariadb", after=comment),
    "pool that rolls nothing back": Odd(
        "postgresql", engine={"pool_reset_on_return": None}
    ),
    "keeps objects": Odd(make_db=options(expire_on_commit=False, autoflush=False)),
    "own session": Odd("postgresql", writes=by_own_session),
    "own session on mariadb": Odd("mariadb", writes=by_own_session),
    "bound session": Odd("postgresql", writes=by_bound_session),
    "no session": Odd("postgresql", writes=by_engine),
    "no session on mariadb": Odd("mariadb", writes=by_engine),
    "no session on sqlite": Odd(writes=by_engine),
    "a transaction a request": Odd(before=see_last),
    "a transaction a request, immediate": Odd(before=see_last, after=begin_immediate),
    "a transaction a request on postgresql": Odd("postgresql", before=see_last),
    "a transaction a request on mariadb": Odd("mariadb", before=see_last),
    "reads before": Odd("postgresql", before=load_user),
    # Flask.
    "sub-path": Odd(root="/school", config={"CREDLY_URL_PREFIX": "/a/b"}),
    "secure": Odd(
        at="https://localhost",
        config={"SESSION_COOKIE_SECURE": True, "PREFERRED_URL_SCHEME": "https"},
    ),
    "trusted hosts": Odd(config={"TRUSTED_HOSTS": ["localhost"]}),
    "global csrf": Odd(before=protect_all),
    "another csrf field": Odd(config={"WTF_CSRF_FIELD_NAME": "_token"}),
    "another csrf field, global": Odd(
        before=protect_all, config={"WTF_CSRF_FIELD_NAME": "_token"}
    ),
    "another login": Odd(before=login_elsewhere),
    "handles all errors": Odd(before=handle_all),
    "traps": Odd(
        config={"TRAP_HTTP_EXCEPTIONS": True, "TRAP_BAD_REQUEST_ERRORS": True}
    ),
    # Jinja.
    "strict undefined": Odd(before=jinja(undefined=jinja2.StrictUndefined)),
    "no autoescape": Odd(before=jinja(autoescape=False)),
    "trimmed": Odd(
        before=jinja(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    ),
    "other delimiters": Odd(
        before=jinja(
            block_start_string="<%",
            block_end_string="%>",
            variable_start_string="[[",
            variable_end_string="]]",
            comment_start_string="<#",
            comment_end_string="#>",
        )
    ),
    "finalize": Odd(
        before=jinja(finalize=lambda value: "–" if value is None else value)
    ),
    "sandbox": Odd(before=sandbox),
}

if sys.version_info >= (3, 12):
    HOSTS["sqlite driver's autocommit"] = Odd(
        engine={"connect_args": {"autocommit": True}}, joins=False, savepoints=False
    )


class School:
    """A host that runs."""

    def __init__(
        self, odd: Odd, url: str, by: str, bytecode: jinja2.BytecodeCache
    ) -> None:
        self.odd = odd
        self.reader = sa.create_engine(url, poolclass=sa.NullPool)
        app = Flask(__name__, **odd.flask)
        app.jinja_options = {**app.jinja_options, "bytecode_cache": bytecode}
        app.config.update(
            {
                "SECRET_KEY": "a key for the hosts of this test",
                "SQLALCHEMY_DATABASE_URI": _by_driver(by, odd),
                "SQLALCHEMY_ENGINE_OPTIONS": _give_up_waiting(odd),
                "CREDLY_REDIS_URL": DEAD_REDIS,
                "CREDLY_RETRY_DELAY": 0,
                **odd.config,
            }
        )
        self.app = app
        self.db = db = odd.make_db()
        sa.Table("done", db.metadata, sa.Column("name", sa.String(50)))
        sa.Table("seen", db.metadata, sa.Column("at", sa.Integer))
        self.credly = Credly()
        self.credly.courses(lambda: COURSES)
        self.credly.is_admin(lambda: True)
        odd.before(app, db)
        db.init_app(app)
        self.credly.init_app(app)
        odd.after(app, db)
        app.add_url_rule("/done/<way>/<name>", view_func=self._view)

        with app.app_context():
            db.create_all()

        served = DispatcherMiddleware(app, {odd.root: app} if odd.root else {})
        self.client = Client(served)

    def close(self) -> None:
        web = self.app.extensions["credly"].web_queue

        if web.ringer is not None:
            web.ringer.cancel()
            web.ringer.join()

        with self.app.app_context():
            self.db.session.remove()

            for engine in self.db.engines.values():
                engine.dispose()

        if (replica := Routed.replica.pop(id(self.db), None)) is not None:
            replica.dispose()

        self.reader.dispose()

    # What the host does in its own requests.

    def complete(self, way: str, name: str) -> None:
        """Complete a course for a member of this name, in a request of the host's."""
        answer = self.get(f"done/{way}/{name}")
        assert answer.text == "done", answer.status

    def _view(self, way: str, name: str) -> str:
        ways = {
            "outside": self._outside,
            "inside": self._inside,
            "rollback": self._rollback,
            "savepoint": self._savepoint,
        }
        ways[way](name)
        return "done"

    def _send(self, name: str, session: orm.Session | None = None) -> None:
        given = {} if session is None else {"session": session}
        course_completed.send(
            self.app, member=a_member(name), course_id="py-101", **given
        )

    def _write(self, transaction: Transaction, name: str) -> None:
        done = self.db.metadata.tables["done"]
        transaction.execute(sa.insert(done).values(name=name))

    def _outside(self, name: str) -> None:
        self._send(name)

    def _inside(self, name: str) -> None:
        with self.odd.writes(self) as transaction:
            self._write(transaction, name)
            self._send(name, transaction.session)

    def _rollback(self, name: str) -> None:
        class Never(Exception):
            pass

        with contextlib.suppress(Never), self.odd.writes(self) as transaction:
            self._write(transaction, name)
            self._send(name, transaction.session)
            raise Never

    def _savepoint(self, name: str) -> None:
        with self.odd.writes(self) as transaction:
            self._write(transaction, f"{name} before")

            with contextlib.suppress(ZeroDivisionError), transaction.savepoint():
                self._write(transaction, name)
                self._send(name, transaction.session)
                raise ZeroDivisionError

    def drain(self) -> None:
        """Let a worker issue, until nothing is due."""
        for _ in range(6):
            with self.app.app_context():
                jobs.drain()

            if not self._make_due():
                return

    def _make_due(self) -> int:
        waits = Issuance.due_at.is_not(None)

        with self.reader.begin() as connection:
            return connection.execute(
                sa.update(Issuance)
                .where(waits, Issuance.state == "none")
                .values(due_at=Issuance.recorded_at)
            ).rowcount

    # What an admin does.

    def get(self, path: str, **given: t.Any) -> TestResponse:
        return self.client.get(
            f"{self.odd.root}/{path}", base_url=self.odd.at, buffered=True, **given
        )

    def page(self, path: str, *, htmx: bool = False) -> TestResponse:
        prefix = self.app.config.get("CREDLY_URL_PREFIX", "/integrations").strip("/")
        headers = {"HX-Request": "true"} if htmx else {}
        answer = self.get(f"{prefix}/{path}", headers=headers)
        assert answer.status_code == 200, (path, answer.status, answer.text[:2000])
        return answer

    def submit(self, path: str, action: str, **fields: str) -> None:
        """Fill in the form on a page that leads to an address that ends so, and send
        it as a browser does.
        """
        page = self.page(path)
        forms = html5lib.parse(page.text, namespaceHTMLElements=False).iter("form")
        (form, *_) = [
            each
            for each in forms
            if each.get("action").partition("?")[0].endswith(action)
        ]
        assert form.get("method") == "post"
        given = {
            each.get("name"): each.get("value", "")
            for each in form.iter("input")
            if each.get("name")
        }
        answer = self.client.post(
            form.get("action"),
            base_url=self.odd.at,
            headers={"Referer": f"{self.odd.at}/", "Origin": self.odd.at},
            data={**given, **fields},
        )
        assert answer.status_code == 303, (action, answer.status, answer.text[:2000])

    # What is there, seen from outside.

    def rows(self) -> dict[str, Issuance]:
        """The ledger, by member."""
        with orm.Session(self.reader) as session:
            found = session.scalars(sa.select(Issuance).order_by(Issuance.id)).all()

        rows = {row.member_id: row for row in found}
        assert len(rows) == len(found)
        return rows

    def states(self) -> dict[str, str]:
        return {name: row.state for name, row in self.rows().items()}

    def kept(self) -> list[str]:
        """The host's own rows."""
        with self.reader.connect() as connection:
            return sorted(connection.scalars(sa.text("SELECT name FROM done")))

    def mapping_id(self) -> int:
        with self.reader.connect() as connection:
            return t.cast(int, connection.scalar(sa.select(Mapping.id)))


def _by_driver(url: str, odd: Odd) -> str:
    if not odd.driver:
        return url

    _, _, rest = url.partition("://")
    name = "postgresql" if odd.database == "postgresql" else "mysql"
    driver = odd.driver if "+" in odd.driver else f"{name}+{odd.driver}"
    return f"{driver}://{rest}"


def _give_up_waiting(odd: Odd) -> dict[str, t.Any]:
    """Let the database wait for a lock for a short while only."""
    own = odd.engine.get("connect_args", {})
    waits: dict[str, dict[str, t.Any]] = {
        "sqlite": {"timeout": WAIT},
        "postgresql": {"options": f"-c lock_timeout={WAIT}s"},
        "mariadb": {"init_command": f"SET innodb_lock_wait_timeout = {WAIT}"},
    }
    # Of those that take it, which are all that tell us apart from the others.
    known = odd.driver in ("", "psycopg2", "mysqldb") and not odd.bouncer
    return {
        **odd.engine,
        "connect_args": {**(waits[odd.database] if known else {}), **own},
    }


QUICK = ("sqlite", "sqlite immediate", "another scope", "sub-path", "global csrf")
"""One of each sort. The others are slow together."""


def _marks(name: str) -> cabc.Iterator[pytest.MarkDecorator]:
    if HOSTS[name].database != "sqlite":
        yield pytest.mark.database
    elif name not in QUICK:
        yield pytest.mark.slow


@pytest.fixture(params=[pytest.param(name, marks=[*_marks(name)]) for name in HOSTS])
def school(
    request: pytest.FixtureRequest,
    tmp_path: t.Any,
    bytecode: jinja2.BytecodeCache,
    server_database: cabc.Callable[[str], str],
) -> cabc.Iterator[School]:
    odd = HOSTS[request.param]

    need_driver(odd.driver)

    if odd.database == "sqlite":
        url = f"sqlite:///{tmp_path / 'host.db'}"
    else:
        url = server_database(odd.database)

    with contextlib.ExitStack() as stack:
        by = stack.enter_context(_pgbouncer(url)) if odd.bouncer else url
        found = School(odd, url, by, bytecode)
        stack.callback(found.close)
        yield found


@contextlib.contextmanager
def _pgbouncer(url: str) -> cabc.Iterator[str]:
    """Start a PgBouncer in front of a database."""
    if (program := shutil.which("pgbouncer", path="/usr/sbin:/usr/bin")) is None:
        missing("pgbouncer", "not on this machine")

    behind = sa.make_url(url)
    port = free_port()
    folder = pathlib.Path(tempfile.mkdtemp())
    config = folder / "pgbouncer.ini"
    users = folder / "users.txt"
    users.write_text(f'"{behind.username}" "{behind.password or ""}"\n')
    config.write_text(
        "[databases]\n"
        f"* = host={behind.host} port={behind.port or 5432}\n"
        "[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = trust\nauth_file = {users}\npool_mode = transaction\n"
        f"default_pool_size = 4\n"
    )
    as_root = os.getuid() == 0  # which PgBouncer does not run as

    if as_root:
        shutil.chown(folder, "nobody")

    process = subprocess.Popen(
        [program, "--quiet", str(config)],
        user="nobody" if as_root else None,
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    try:
        _wait_for_port(port)
        through = behind.set(host="127.0.0.1", port=port)
        yield through.render_as_string(hide_password=False)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def _wait_for_port(port: int) -> None:
    until = time.monotonic() + 20

    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise

            time.sleep(0.05)


def _books(credly: CredlySimulator) -> list[str]:
    """For whom Credly has a badge."""
    return sorted(row["recipient_email"] for row in credly.badges)


def _mails(*names: str) -> list[str]:
    return sorted(a_member(name).email for name in names)


def test_the_story(
    school: School, credly: CredlySimulator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    credly.posts_allowed = 3  # an admin retries
    template_id = credly.add_template("Python Badge")
    joins = school.odd.joins

    # Connect and map.
    school.page("credly")
    school.submit(
        "credly",
        "/credly",
        organization_id=credly.organization_id,
        client_id=credly.client_id,
        client_secret=credly.client_secret,
    )
    school.submit(
        "credly?mapping=new",
        "/mappings",
        course="course:py-101",
        template=template_id,
    )

    # Complete, in every way.
    school.complete("outside", "a")
    assert list(school.rows()) == ["a"]
    school.complete("inside", "b")
    school.complete("inside", "b")
    assert list(school.rows()) == ["a", "b"]
    school.complete("rollback", "c")
    assert list(school.rows()) == ["a", "b"] if joins else ["a", "b", "c"]
    assert school.kept() == (["b", "b"] if joins else school.kept())

    if school.odd.savepoints:
        school.complete("savepoint", "d")
        assert ("d" in school.rows()) is not joins
        assert "d before" in school.kept() and "d" not in school.kept()

    # Issue. What the host has taken back is not issued.
    school.drain()
    wanted = [*school.rows()]
    assert set(school.states().values()) == {"issued"}
    assert _books(credly) == _mails(*wanted)

    # An answer is lost: the badge is there, once.
    credly.fail("issue", status=500, after=True)
    school.complete("inside", "e")
    school.drain()
    assert school.states()["e"] == "issued"
    assert _books(credly) == _mails(*wanted, "e")

    # Credly refuses twice; the admin reads why, and retries.
    credly.fail("issue", times=2, status=422, body={"data": {"message": "Odd."}})
    school.complete("outside", "f")
    school.drain()
    assert school.states()["f"] == "failed"
    assert "Odd." in school.page("credly/errors").text
    row_id = school.rows()["f"].id
    school.submit("credly/badges?status=failed", f"/badges/{row_id}/retry")
    school.drain()
    assert school.states()["f"] == "issued"

    # Pause.
    school.submit("credly", "/pause")
    school.complete("inside", "g")
    school.drain()
    assert school.states()["g"] == "none"
    school.submit("credly", "/resume")
    school.drain()
    assert school.states()["g"] == "issued"
    assert _books(credly) == _mails(*wanted, "e", "f", "g")

    # Every page.
    mapping = school.mapping_id()

    for path in (
        "",
        "credly/connection",
        f"credly?mapping={mapping}",
        "credly/badges?status=issued&q=a",
        "credly/badges/retry",
        "credly/errors?error=",
        "credly/activity",
        "credly/remove",
    ):
        school.page(path)

    for path in (
        "credly/banners",
        "credly/mappings/new",
        f"credly/mappings/{mapping}",
        f"credly/mappings/{mapping}/row",
        f"credly/mappings/{mapping}/test",
    ):
        school.page(path, htmx=True)

    # Export and erase.
    for path in ("credly/badges.csv", "credly/errors.csv", "credly/activity.csv"):
        assert len(school.page(path).text.splitlines()) > 1

    with school.app.app_context():
        assert len(school.credly.export_member("e")["badges"]) == 1
        school.credly.erase_member("e")

    assert "e" not in school.rows()

    # Remove.
    school.submit("credly/remove", "/remove")
    assert set(school.states().values()) == {"issued"}

    with school.reader.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count(Mapping.id))) == 0

    assert [
        record.getMessage()
        for record in caplog.records
        if record.name == "flask_credly" and record.levelno >= logging.ERROR
    ] == []
