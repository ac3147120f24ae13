"""Fixtures: an application with everything, a strict Credly, real databases, a real
Redis and a real browser.

What is not found on the machine is skipped, with the reason, unless
``CREDLY_TEST_REQUIRE`` names it: "browser postgresql mariadb redis", and what CI
requires besides.
"""

from __future__ import annotations

import collections
import collections.abc as cabc
import contextlib
import datetime as dt
import functools
import gc
import importlib.util
import os
import pathlib
import shutil
import signal
import sqlite3
import threading
import time
import typing as t
import uuid

import jinja2
import jinja2.bccache
import pytest
import responses
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from werkzeug.routing import Rule

from example_app.redis_server import running_redis
from flask_credly import accounts
from flask_credly import Course
from flask_credly import course_completed
from flask_credly import Credly
from flask_credly import jobs
from flask_credly import Member
from flask_credly.catalog import DEFAULT_TENANT
from flask_credly.issuing import dispatcher
from flask_credly.models import Attempt
from flask_credly.models import Issuance
from flask_credly.models import LogEntry
from flask_credly.state import AppState
from flask_credly.state import Community
from flask_credly.tables import copy_tables
from flask_credly.testing import CredlySimulator

if t.TYPE_CHECKING:
    from playwright.sync_api import Browser

COURSES = [
    Course(id="py-101", title="Python 101"),
    Course(id="sql", title="SQL basics"),
    Course(id="data", title="Data path", kind="learning_path"),
]

pytest.register_assert_rewrite("tests.support")

# A shell's background job ignores it, and with it all that the tests start and stop.
signal.signal(signal.SIGINT, signal.default_int_handler)

DEAD_REDIS = "redis://127.0.0.1:1/0"
"""Nobody listens there: refused at once."""

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

_SERVERS = {
    "postgresql": (
        "CREDLY_TEST_POSTGRESQL",
        "postgresql+psycopg://postgres@127.0.0.1/test",
    ),
    "mariadb": ("CREDLY_TEST_MARIADB", "mysql+pymysql://root@127.0.0.1/test"),
}


# Without Playwright, everything else can be tested.
if (
    importlib.util.find_spec("playwright") is None
    and "browser" not in os.environ.get("CREDLY_TEST_REQUIRE", "").split()
):
    collect_ignore = ["test_browser.py", "test_designs.py"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a browser or a database server. Both can be told from a test's
    fixtures; `slow` is written where a test is slow.
    """
    for item in items:
        if not isinstance(item, pytest.Function):
            continue

        if "chromium" in item.fixturenames:
            item.add_marker("browser")

        callspec = getattr(item, "callspec", None)

        if callspec is not None and callspec.params.get("database") in _SERVERS:
            item.add_marker("database")


def pytest_collection_finish() -> None:
    """Have the collector of garbage not look again and again at what stays."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


_LEFT_OUT: collections.Counter[str] = collections.Counter()


def pytest_deselected(items: cabc.Sequence[pytest.Item]) -> None:
    for item in items:
        marks = ("browser", "database", "slow")
        _LEFT_OUT[next(filter(item.get_closest_marker, marks), "other")] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    # Each of xdist's workers has seen all tests.
    getattr(session.config, "workeroutput", {})["left_out"] = dict(_LEFT_OUT)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: t.Any) -> None:
    global _LEFT_OUT
    _LEFT_OUT |= collections.Counter(getattr(node, "workeroutput", {}).get("left_out"))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say what was left out."""
    if config.option.markexpr and _LEFT_OUT:
        found = ", ".join(f"{n} {name}" for name, n in sorted(_LEFT_OUT.items()))
        terminalreporter.write_line(
            f"Left out, by mark: {found}. To run all: make test-all"
        )


def missing(what: str, reason: str) -> t.NoReturn:
    """Skip, or fail where it is required."""
    if what in os.environ.get("CREDLY_TEST_REQUIRE", "").split():
        pytest.fail(f"{what} is required: {reason}", pytrace=False)

    pytest.skip(f"{what}: {reason}")


def need_driver(url: str) -> None:
    """Skip where a driver is not installed that has no wheels, and has to be
    compiled.
    """
    if "mysqldb" in url and importlib.util.find_spec("MySQLdb") is None:
        missing("mysqlclient", "not installed")


# What empties a database, in place: PostgreSQL takes a while to make one. Who still has
# a transaction open in it is not waited for.
_EMPTYING = {
    "postgresql": [
        "SET lock_timeout = '30s'",
        "DO $$ DECLARE name text; BEGIN FOR name IN SELECT nspname FROM pg_namespace"
        " WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"
        " LOOP EXECUTE format('DROP SCHEMA %I CASCADE', name); END LOOP; END $$",
        "CREATE SCHEMA public",
    ],
    "mariadb": [
        "SET lock_wait_timeout = 30",
        "DROP DATABASE {database}",
        "CREATE DATABASE {database}",
    ],
}


@pytest.fixture(scope="session")
def _databases() -> cabc.Iterator[dict[str, str]]:
    """URLs of databases made for this process, by kind."""
    made: dict[str, str] = {}
    yield made

    for kind, url in made.items():
        _run(_server(kind), f"DROP DATABASE {sa.make_url(url).database}")


def _server(kind: str) -> str:
    return os.environ.get(*_SERVERS[kind])


def _run(url: str, *statements: str) -> None:
    engine = sa.create_engine(
        url, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool
    )

    with engine.connect() as connected:
        for statement in statements:
            connected.execute(sa.text(statement))


def _make(kind: str) -> str:
    name = f"credly_test_{uuid.uuid4().hex[:12]}"

    try:
        _run(_server(kind), f"CREATE DATABASE {name}")
    except sa.exc.OperationalError as e:
        missing(kind, f"not reached ({e.orig.__class__.__name__})")

    if kind == "postgresql":
        _run(_server(kind), f"ALTER DATABASE {name} SET synchronous_commit = off")

    url = sa.make_url(_server(kind)).set(database=name)
    return url.render_as_string(hide_password=False)


@pytest.fixture
def server_database(
    _databases: dict[str, str], request: pytest.FixtureRequest
) -> cabc.Iterator[cabc.Callable[[str], str]]:
    """Give the URL of an empty database on a server of a kind. Whatever a test has
    left in it is gone before the next.
    """
    used: set[str] = set()

    def url_of(kind: str) -> str:
        if request.node.get_closest_marker("database") is None:
            pytest.fail("It needs the mark: pytest.mark.database", pytrace=False)

        used.add(kind)

        if kind not in _databases:
            _databases[kind] = _make(kind)

        return _databases[kind]

    yield url_of

    for kind in used & set(_databases):
        url = _databases[kind]
        name = sa.make_url(url).database
        _run(url, *(each.format(database=name) for each in _EMPTYING[kind]))


@pytest.fixture(params=["sqlite"])
def database(
    request: pytest.FixtureRequest,
    tmp_path: t.Any,
    server_database: cabc.Callable[[str], str],
) -> str:
    """The URL of an empty database. SQLite's, unless a test asks for all."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'host.db'}"

    return server_database(request.param)


every_database = pytest.mark.parametrize(
    "database", ["sqlite", "postgresql", "mariadb"], indirect=True
)


class Host:
    """A host application and what a test wants to do with it."""

    def __init__(self, app: Flask, db: SQLAlchemy, credly: Credly) -> None:
        self.app = app
        self.db = db
        self.credly = credly

    @property
    def state(self) -> Community:
        state: AppState = self.app.extensions["credly"]
        return state.of(DEFAULT_TENANT)

    def complete(
        self,
        member_id: str = "42",
        course_id: str = "py-101",
        *,
        member: Member | None = None,
        **given: t.Any,
    ) -> None:
        """Send the signal, as a host's view does."""
        course_completed.send(
            self.app,
            member=member or a_member(member_id),
            course_id=course_id,
            **given,
        )
        self.wait_for_ring()

    def wait_for_ring(self) -> None:
        """Until a thread has rung that rings at once."""
        web = self.state.web_queue

        if web.ringer is not None and web.rings_at <= time.monotonic():
            web.ringer.join()

    def wait_for_count(self) -> None:
        """Until what could not be recorded is counted where it will stay."""
        uncounted = self.state.uncounted
        until = time.monotonic() + 10

        while uncounted.counts and time.monotonic() < until:
            if uncounted.over.is_set():
                break  # Nobody counts any more.

            time.sleep(0.01)

        if (writer := uncounted.writer) is not None:
            writer.join(10)

    def drain(self, times: int = 1) -> None:
        """Run the job, in place."""
        for _ in range(times):
            jobs.drain()

    def rows(self) -> list[Issuance]:
        """Read the ledger anew."""
        self._forget()
        return list(self.db.session.scalars(sa.select(Issuance).order_by(Issuance.id)))

    def row(self) -> Issuance:
        """Read the ledger's only row."""
        (row,) = self.rows()
        return row

    def log(self) -> list[tuple[str, str]]:
        """Read the error log, oldest first."""
        self._forget()
        entries = self.db.session.scalars(sa.select(LogEntry).order_by(LogEntry.id))
        return [(entry.error, entry.details) for entry in entries]

    def attempts(self) -> list[Attempt]:
        self._forget()
        return list(self.db.session.scalars(sa.select(Attempt).order_by(Attempt.id)))

    def _forget(self) -> None:
        self.db.session.rollback()
        # Our pages commit, and leave what was loaded as it was.
        self.db.session.expire_all()

    def let_lists_catch_up(self) -> None:
        """Let the time pass within which a badge may be issued and not be listed."""
        past = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        self.db.session.rollback()
        self.db.session.execute(sa.update(Issuance).values(unsettled_until=past))
        self.db.session.commit()
        self.make_due()

    def make_due(self) -> None:
        """Let the time pass until everything that waits is due."""
        self.db.session.execute(
            sa.update(Issuance)
            .where(Issuance.due_at.is_not(None))
            .values(due_at=sa.func.coalesce(Issuance.recorded_at, Issuance.due_at))
        )
        self.db.session.commit()


def a_member(member_id: str = "42") -> Member:
    return Member(
        id=member_id,
        email=f"member-{member_id}@example.org",
        first_name="Ada",
        last_name="Example",
    )


def in_threads(*work: cabc.Callable[[], object]) -> None:
    """Run each in a thread of its own, all from the same moment on, and raise what they
    raise.
    """
    together = threading.Barrier(len(work))
    errors: list[BaseException] = []

    def run(each: cabc.Callable[[], object]) -> None:
        together.wait()

        try:
            each()
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=run, args=[each]) for each in work]

    for thread in threads:
        thread.start()

    for thread in threads:
        thread.join()

    if errors:
        raise errors[0]


MakeHost = cabc.Callable[..., Host]


@sa.event.listens_for(sa.Engine, "connect")
def _trust_the_disk(raw: t.Any, _: object) -> None:
    """Have SQLite not wait for the disk: no test cuts the power of this machine."""
    if isinstance(raw, sqlite3.Connection) and not raw.in_transaction:
        raw.execute("PRAGMA synchronous = OFF").close()


# Each test makes an application of its own. What is the same in all is made once.
_OUR_TABLES = sa.MetaData()
copy_tables(_OUR_TABLES)


@functools.cache
def _build_function(
    rule: str, parts: tuple[tuple[bool, str], ...], unknown: bool
) -> t.Any:
    made = Rule(rule)
    made._trace = [*parts]
    return _BUILD_FUNCTION(made, unknown)


def _share_build_function(rule: Rule, append_unknown: bool = True) -> t.Any:
    """Compile the function that builds a route's address, once for all maps."""
    if rule.defaults:
        return _BUILD_FUNCTION(rule, append_unknown)

    return _build_function(rule.rule, tuple(rule._trace), append_unknown)


_BUILD_FUNCTION = Rule._compile_builder
Rule._compile_builder = _share_build_function  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def _with_tables(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A database of SQLite's with our tables, to copy."""
    path = tmp_path_factory.mktemp("tables") / "host.db"
    engine = sa.create_engine(f"sqlite:///{path}")
    _OUR_TABLES.create_all(engine)
    engine.dispose()
    return path


_DIALECTS: dict[str, tuple[sa.Dialect, t.Any]] = {}


def _share_statements(db: SQLAlchemy) -> None:
    """Compile each statement once for all engines of a kind. What is compiled is kept
    by the engine, for its dialect.
    """
    for engine in db.engines.values():
        kept = (engine.dialect, engine._compiled_cache)
        dialect, statements = _DIALECTS.setdefault(engine.url.drivername, kept)

        if dialect is not engine.dialect:
            # What it asks a database at its first connection.
            engine.connect().close()
            engine.dialect, engine._compiled_cache = dialect, statements


class OurTemplates(jinja2.FileSystemBytecodeCache):
    """Keeps what does not depend on a host: that of our own environment."""

    def load_bytecode(self, bucket: jinja2.bccache.Bucket) -> None:
        if type(bucket.environment) is jinja2.Environment:
            super().load_bytecode(bucket)

    def dump_bytecode(self, bucket: jinja2.bccache.Bucket) -> None:
        if type(bucket.environment) is jinja2.Environment:
            super().dump_bytecode(bucket)


@pytest.fixture(scope="session")
def bytecode(tmp_path_factory: pytest.TempPathFactory) -> jinja2.BytecodeCache:
    """Templates that are compiled once, and not by each host."""
    return OurTemplates(str(tmp_path_factory.mktemp("bytecode")))


@pytest.fixture
def make_host(
    database: str,
    bytecode: jinja2.BytecodeCache,
    _with_tables: pathlib.Path,
    tmp_path: pathlib.Path,
) -> cabc.Iterator[MakeHost]:
    """Make host applications; their engines go at the end."""
    hosts: list[Host] = []

    def make(
        *,
        courses: cabc.Callable[..., cabc.Iterable[Course]] = lambda: COURSES,
        is_admin: cabc.Callable[..., t.Any] = lambda: True,
        member: cabc.Callable[..., Member | None] | None = None,
        past_completions: cabc.Callable[..., t.Any] | None = None,
        actor: cabc.Callable[..., t.Any] | None = None,
        tenant: cabc.Callable[[], t.Any] | None = None,
        is_operator: cabc.Callable[[], t.Any] | None = None,
        is_viewer: cabc.Callable[..., t.Any] | None = None,
        may_revoke: cabc.Callable[..., t.Any] | None = None,
        setup: cabc.Callable[[Flask, SQLAlchemy], None] | None = None,
        app: Flask | None = None,
        db: SQLAlchemy | None = None,
        **config: t.Any,
    ) -> Host:
        app = app or Flask(__name__)
        app.jinja_options = {"bytecode_cache": bytecode, **app.jinja_options}
        app.config.update(
            {
                "SECRET_KEY": "a key for tests",
                "TESTING": True,
                "SQLALCHEMY_DATABASE_URI": database,
                "CREDLY_REDIS_URL": DEAD_REDIS,
                "CREDLY_RETRY_DELAY": 0,
                **config,
            }
        )
        path = tmp_path / "host.db"

        if db is None and not path.exists():
            uri = app.config["SQLALCHEMY_DATABASE_URI"]

            if uri == f"sqlite:///{path}" and "SQLALCHEMY_BINDS" not in config:
                shutil.copyfile(_with_tables, path)

        if db is None:
            db = SQLAlchemy(metadata=_OUR_TABLES if setup is None else None)

        credly = Credly()
        credly.courses(courses)
        credly.is_admin(is_admin)

        hooks = {
            "member": member,
            "past_completions": past_completions,
            "actor": actor,
            "tenant": tenant,
            "is_operator": is_operator,
            "is_viewer": is_viewer,
            "may_revoke": may_revoke,
        }

        for name, hook in hooks.items():
            if hook is not None:
                getattr(credly, name)(hook)

        if setup is not None:
            setup(app, db)

        db.init_app(app)
        credly.init_app(app)
        host = Host(app, db, credly)

        with app.app_context():
            if not app.config.get("SQLALCHEMY_ENGINE_OPTIONS"):
                _share_statements(db)

            db.create_all()

        hosts.append(host)
        return host

    yield make

    for host in hosts:
        if (ringer := host.state.web_queue.ringer) is not None:
            ringer.cancel()
            ringer.join()

        if (writer := host.state.uncounted.writer) is not None:
            host.state.uncounted.over.set()
            writer.join(10)

        with host.app.app_context():
            host.db.session.remove()

            for engine in host.db.engines.values():
                engine.dispose()


@pytest.fixture
def host(make_host: MakeHost) -> Host:
    return make_host()


@pytest.fixture
def no_short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a drain end at a pause, however short, instead of waiting for its end."""
    monkeypatch.setattr(dispatcher, "SHORT_PAUSE", 0.0)


@pytest.fixture
def in_context(host: Host) -> cabc.Iterator[None]:
    with host.app.app_context():
        yield


@pytest.fixture
def credly() -> cabc.Iterator[CredlySimulator]:
    """A strict Credly in place of the network, checked at the end for requests that
    the real one might have let pass.
    """
    simulator = CredlySimulator()

    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        simulator.register(mock)
        yield simulator

    assert simulator.problems == []


class Connected(t.NamedTuple):
    """A host that is connected, with one course mapped."""

    host: Host
    credly: CredlySimulator
    template_id: str


@pytest.fixture
def connected(
    host: Host, credly: CredlySimulator, in_context: None
) -> cabc.Iterator[Connected]:
    yield connect(host, credly)


MakeConnected = cabc.Callable[..., Connected]


@pytest.fixture
def make_connected(
    make_host: MakeHost, credly: CredlySimulator
) -> cabc.Iterator[MakeConnected]:
    """Make hosts that are connected, each in its context from then on."""
    with contextlib.ExitStack() as contexts:

        def make(*, allow_duplicate_badges: bool = False, **given: t.Any) -> Connected:
            host = make_host(**given)
            contexts.enter_context(host.app.app_context())
            return connect(host, credly, allow_duplicate_badges=allow_duplicate_badges)

        yield make


def connect_and_map(host: Host, credly: CredlySimulator, template_id: str) -> None:
    """Connect a host, perhaps once more, and map "Python 101" to a badge template."""
    accounts.connect(
        host.state,
        organization_id=credly.organization_id,
        client_id=credly.client_id,
        client_secret=credly.client_secret,
    )
    accounts.add_mapping(host.state, COURSES[0], template_id)


def connect(
    host: Host, credly: CredlySimulator, *, allow_duplicate_badges: bool = False
) -> Connected:
    """Connect a host and map "Python 101"."""
    template_id = credly.add_template(
        "Python Badge", allow_duplicate_badges=allow_duplicate_badges
    )
    connect_and_map(host, credly, template_id)
    return Connected(host, credly, template_id)


@pytest.fixture(scope="session")
def redis_url() -> cabc.Iterator[str]:
    """A real Redis of this process."""
    try:
        server = running_redis()
    except RuntimeError as e:
        missing("redis", str(e))

    with server as url:
        yield url


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium."""
    names = (
        # Without windows of its own it takes a third less of the processor.
        "chromium-headless-shell",
        *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"),
    )
    found = [path for name in names if (path := shutil.which(name))]

    if not found:
        missing("browser", "no Chromium on the PATH")

    return found[0]


@pytest.fixture(scope="session")
def browser(chromium: str) -> cabc.Iterator[Browser]:
    """One for all of this process: Playwright starts no second."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield launched
        launched.close()
