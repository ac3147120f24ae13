"""Checks everything that has to be right, and says what mends what is wrong.

It changes nothing but the cached access token, and prints neither secrets nor anything
of a member.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import datetime as dt
import functools
import logging
import os
import re
import secrets
import sys
import typing as t
import urllib.parse

import jinja2
import jinja2.nodes
import sqlalchemy as sa
from sqlalchemy import orm
from werkzeug.exceptions import HTTPException

from . import accounts
from . import keys
from .accounts import rotating
from .admin.blueprint import ROUTES
from .admin.rendering import is_own_layout
from .admin.rendering import layout_environment
from .catalog import read_courses
from .errors import CredlyError
from .errors import SecretUnreadable
from .issuing import notifier
from .issuing import trouble
from .issuing import unrecorded
from .issuing import workers
from .ledger import clock
from .ledger import gates
from .ledger import overview
from .ledger import tables
from .ledger.transaction import cause
from .ledger.transaction import in_session
from .models import Account
from .models import Base
from .models import Issuance
from .settings import HOW_TO_READ
from .settings import ignored
from .settings import Settings
from .settings import unknown
from .state import Community

if t.TYPE_CHECKING:
    import rq

logger = logging.getLogger("flask_credly")

Status = t.Literal["ok", "warning", "error", "skipped"]

SKEW = 60.0
"""Seconds that two clocks may differ."""

OLD_TEMPLATES = dt.timedelta(days=2)
"""A worker loads them once a day."""

_PATIENCE = 2.0

_LEDGER = t.cast(sa.Table, Issuance.__table__)


@dataclasses.dataclass(frozen=True)
class Finding:
    """What came of one check.

    :param status: "error": badges are not issued, or will not be. "skipped": it depends
        on something that is wrong or not there.
    :param hint: What to do. ``None``: nothing.
    """

    status: Status
    detail: str
    hint: str | None = None


def _ok(detail: str) -> Finding:
    return Finding("ok", detail)


def _skipped(detail: str) -> Finding:
    return Finding("skipped", detail)


def _warning(detail: str, hint: str) -> Finding:
    return Finding("warning", detail, hint)


def _error(detail: str, hint: str) -> Finding:
    return Finding("error", detail, hint)


def examine(state: Community, *, of_account: bool | None = None) -> dict[str, Finding]:
    """Make all checks, and get what came of each by its name. The names stay the same
    from release to release. Raises nothing: a check that cannot be made says so.

    Asks Credly for one page of badge templates, where the connection is in force.

    :param of_account: Make only those that concern the community's account, or only
        those of the application. ``None``: both.
    """
    checks = Checks(state)
    found: dict[str, Finding] = {}
    failed: set[str] = set()

    for name, check, needed in _CHECKS:
        if of_account is not None and of_account is not (name in _OF_ACCOUNT):
            continue

        if missing := [each for each in needed if each in failed]:
            found[name] = _skipped(f"Not checked: see {missing[0]}.")
        else:
            found[name] = _make(checks, name, check)

        # What hangs on it cannot be checked either.
        if found[name].status == "error" or missing:
            failed.add(name)

    return found


def _make(
    checks: Checks,
    name: str,
    check: cabc.Callable[[Checks], Finding],
) -> Finding:
    try:
        return check(checks)
    except Exception as e:
        from redis import RedisError

        # Its text may hold an address with a password.
        logger.debug("The check %r failed.", name, exc_info=True)

        if isinstance(e, RedisError):
            found = trouble.explain(e, checks._state.settings)
            return _error(found.what, found.remedy)

        return _error(
            f"Could not be checked ({type(e).__name__}).",
            "The logger flask_credly has the traceback at its level DEBUG.",
        )


class Checks:
    """The checks of one community, and of the application that it is in."""

    def __init__(self, state: Community) -> None:
        self._state = state
        self._config = state.app.config
        self._credly_ahead: float | None = None
        self._alone = False

    # The application.

    def settings(self) -> Finding:
        if strange := unknown(self._config):
            return _warning(
                f"No such setting: {', '.join(strange)}.",
                " ".join(
                    f"Write {meant} in place of {name}." if meant else f"Remove {name}."
                    for name, meant in strange.items()
                ),
            )

        if names := ignored(self._config, os.environ):
            return _warning(
                f"Environment variables that are not in force: {', '.join(names)}.",
                f"{HOW_TO_READ} Or remove them.",
            )

        if late := _changed(self._state.settings, self._config):
            return _warning(
                f"Set after credly.init_app(app), and not in force: {', '.join(late)}.",
                "Read the configuration before credly.init_app(app).",
            )

        settings = self._state.settings
        queue = (
            f"The queue is {settings.queue!r} at {_redis_place(settings.redis_url)}."
            if isinstance(settings.queue, str)
            else "The queue is what CREDLY_QUEUE gives."
        )
        return _ok(f"Credly is asked at {settings.api_url}. {queue}")

    def key(self) -> Finding:
        if not keys.can_seal(self._config):
            return _error(
                "There is no key to encrypt the Client Secret with.",
                f"Set CREDLY_ENCRYPTION_KEYS. Make a key with {keys.MAKE_A_KEY}",
            )

        if keys.is_weak(self._config):
            return _warning(
                f"CREDLY_ENCRYPTION_KEYS is not set. {keys.WEAK}",
                "Set CREDLY_ENCRYPTION_KEYS, restart everything, and run"
                f" flask credly rotate-keys. Make a key with {keys.MAKE_A_KEY}",
            )

        if keys.is_derived(self._config):
            return _warning(
                "CREDLY_ENCRYPTION_KEYS is not set: SECRET_KEY stands in for it.",
                "Set CREDLY_ENCRYPTION_KEYS, restart everything, and run"
                f" flask credly rotate-keys. Make a key with {keys.MAKE_A_KEY}",
            )

        return _ok("CREDLY_ENCRYPTION_KEYS is set.")

    def hooks(self) -> Finding:
        optional = {
            "member": self._state.load_member,
            "past_completions": self._state.past_completions,
            "actor": self._state.name_actor,
        }
        given = ["courses", "is_admin", *(name for name in optional if optional[name])]
        missing = [name for name in optional if not optional[name]]
        text = f"Given: {', '.join(given)}."

        try:
            # As on a page, where it is called.
            host = self._state.settings.host
            base = f"http://{host}" if host else None

            with self._state.app.test_request_context(
                self._page("/credly"), base_url=base
            ):
                try:
                    read_courses(self._state.list_courses())
                finally:
                    self._state.session.remove()
        except (TypeError, ValueError) as e:
            logger.debug("The @credly.courses hook failed.", exc_info=True)
            return _error(
                f"@credly.courses fails, and nothing can be mapped. {e}",
                "Let it return a list of Course objects.",
            )
        except Exception as e:
            # Its text may hold an address with a password.
            logger.debug("The @credly.courses hook failed.", exc_info=True)
            return _error(
                f"@credly.courses fails, and nothing can be mapped"
                f" ({type(e).__name__}).",
                "The logger flask_credly has the traceback at its level DEBUG.",
            )

        return _ok(f"{text} Not given: {', '.join(missing)}." if missing else text)

    def pages(self) -> Finding:
        layout = self._state.settings.layout

        # CREDLY_ENCRYPTION_KEYS stand in for it only where something is encrypted.
        if not self._config.get("SECRET_KEY"):
            return _error(
                "There is no SECRET_KEY: every page with a form fails.",
                "Set SECRET_KEY, the same in every process.",
            )

        if (shadowed := self._shadowed()) is not None:
            path, endpoint = shadowed
            return _error(
                f"{self._page(path)} leads to {endpoint or 'no page'}, not to ours.",
                "Give that route of yours another address, or set CREDLY_URL_PREFIX.",
            )

        try:
            if is_own_layout():
                return _ok("They stand in their own layout, with its htmx.")

            blocks = _blocks(layout_environment(), layout)
        except jinja2.TemplateNotFound as e:
            return _error(
                f"There is no template {e.name}: every page fails.",
                "Correct CREDLY_LAYOUT, or the template that it names.",
            )
        except jinja2.TemplateSyntaxError as e:
            return _error(
                f"{e.name or layout} has an error: every page fails.",
                f"Correct its line {e.lineno}.",
            )

        if blocks is not None and "content" not in blocks:
            return _error(
                f"{layout} has no block named content: every page is empty.",
                "Add {% block content %}{% endblock %} to it.",
            )

        return _ok(
            f"They stand in {layout}, and use its htmx where it loads 2.0 or later."
        )

    def _shadowed(self) -> tuple[str, str | None] | None:
        """Find an address of ours that leads elsewhere, and where."""
        addresses = self._state.app.url_map.bind(
            self._state.settings.host or "localhost"
        )
        ours = [(method, path, view.__name__) for method, path, view in ROUTES]

        for method, path, name in [*ours, ("GET", "/static/credly.css", "static")]:
            path = re.sub("<.*?>", "1", path)
            found = None

            try:
                url = f"{self._state.settings.url_prefix}{path}"
                found = t.cast(str, addresses.match(url, method)[0])
            except HTTPException:
                pass

            if found != f"credly.{name}":
                return path, found

        return None

    # The database.

    def database(self) -> Finding:
        where = _place(self._state.engine.url)

        try:
            with self._state.engine.connect() as connected:
                clock.now(connected)
        except sa.exc.SQLAlchemyError as e:
            return _error(
                f"The database at {where} cannot be reached. {cause(e)}",
                "Is it running at the address of SQLALCHEMY_DATABASE_URI?",
            )

        try:
            self._write()
        except sa.exc.SQLAlchemyError as e:
            # That is said below.
            if not tables.explain(self._state.engine, e):
                return _error(
                    f"The database at {where} takes nothing. {cause(e)}",
                    "Mend what it says: is its disk full, is it a replica, or may this"
                    " user not write there?",
                )

        for table in Base.metadata.sorted_tables:
            try:
                self._try_rights(table)
            except sa.exc.SQLAlchemyError as e:
                if tables.explain(self._state.engine, e):
                    break

                return _error(
                    f"The user of {where} lacks a right on {table.name}. {cause(e)}",
                    "Grant it SELECT, INSERT, UPDATE and DELETE on all tables credly_*,"
                    " and on PostgreSQL USAGE on their sequences.",
                )

        if narrow := tables.narrow(self._state.engine)[0]:
            return _warning(
                f"Not every character gets into {where}: {', '.join(narrow)}. A"
                " completion of a member whose name has others is not recorded.",
                "Let SQLALCHEMY_DATABASE_URI say charset=utf8mb4 on MariaDB and MySQL,"
                " and client_encoding=utf8 on PostgreSQL, where the database itself has"
                " to have the encoding UTF8.",
            )

        return _ok(f"Reached and written to, at {where}.")

    def _try_rights(self, table: sa.Table) -> None:
        """Try each kind of statement on a table, without any row. A table of a later
        version may have been made by another user.
        """
        column = next(iter(table.primary_key))
        none = sa.select(table).where(sa.false())

        with self._state.engine.connect() as connected:
            connected.execute(none)
            connected.execute(sa.insert(table).from_select([*table.columns], none))
            connected.execute(
                sa.update(table).where(sa.false()).values({column: column})
            )
            connected.execute(sa.delete(table).where(sa.false()))

            if table.autoincrement_column is not None and (
                connected.dialect.name == "postgresql"
            ):
                # Loaded here: a web process does not need it.
                from sqlalchemy.dialects.postgresql import REGCLASS

                # It has a gap then, as after each row that was taken back.
                name = sa.func.pg_get_serial_sequence(table.name, column.name)
                connected.execute(sa.select(sa.func.nextval(sa.cast(name, REGCLASS))))

            connected.rollback()

    def _write(self) -> None:
        """Try to write what completions write, and more than fits into what the tables
        have left. It is taken back.
        """
        now = dt.datetime.now(dt.UTC)
        row: dict[str, t.Any] = {
            each.name: "x" * (each.type.length or 0)
            for each in _LEDGER.columns
            if isinstance(each.type, sa.String) and not each.nullable
        }
        row |= {"kind": "course", "completed_at": now, "recorded_at": now}
        row |= {"state": "cancelled", "test": True}

        with self._state.engine.connect() as connected, _taken_back(connected):
            connected.execute(
                sa.insert(_LEDGER),
                [
                    {**row, "member_id": f"doctor-{secrets.token_hex(8)}"}
                    for _ in range(20)
                ],
            )

    def tables(self) -> Finding:
        missing, parts = tables.missing(self._state.engine)

        if not missing and not parts:
            if narrow := tables.narrow(self._state.engine)[1]:
                return _warning(
                    f"Not every character fits into {', '.join(narrow)}. A completion"
                    " of a member whose name has others is not recorded.",
                    "Give them CHARACTER SET utf8mb4 by ALTER TABLE … MODIFY, and those"
                    " of ids COLLATE utf8mb4_bin, as db.create_all() makes them.",
                )

            return _ok(f"All {len(Base.metadata.tables)} are there, with all columns.")

        if "migrate" in self._state.app.extensions:
            mend = "flask db migrate, read what it wrote, then flask db upgrade"
        elif parts:
            mend = (
                "db.create_all() adds nothing to a table that is there: use"
                " Flask-Migrate, or add it by ALTER TABLE."
            )
        else:
            mend = "db.create_all(), after credly.init_app(app)"

        return _error(f"Missing: {', '.join(missing + parts)}.", mend)

    def clock(self) -> Finding:
        before = dt.datetime.now(dt.UTC)

        with self._state.engine.connect() as connected:
            there = clock.now(connected)

        after = dt.datetime.now(dt.UTC)
        # Not more than is certain: the answer took its time.
        apart = max((there - after).total_seconds(), (before - there).total_seconds())

        if apart > SKEW:
            return _clocks(apart, "the database's", behind=there > after)

        if self._credly_ahead is not None and abs(self._credly_ahead) > SKEW:
            ahead = self._credly_ahead
            return _clocks(abs(ahead), "Credly's", behind=ahead > 0)

        if clock.server_now(self._state.engine.dialect.name) is None:
            compared = []  # its database has no other
        else:
            compared = ["the database's"]

        if self._credly_ahead is not None:
            compared.append("Credly's")

        return _ok(f"As {' and '.join(compared)}." if compared else "The only one.")

    # Redis.

    @functools.cached_property
    def _queue(self) -> rq.Queue:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        patient = redis.Redis.from_url(
            self._state.settings.redis_url,
            socket_timeout=_PATIENCE,
            socket_connect_timeout=_PATIENCE,
            retry=Retry(NoBackoff(), 0),
        )
        return notifier.make_queue(self._state.app, self._state.settings, patient)

    def redis(self) -> Finding:
        try:
            trouble.try_out(self._queue)
        except Exception as e:  # whatever a host's function raises
            found = trouble.explain(e, self._state.settings)
            return _error(f"{found.what} Badges wait.", found.remedy)

        return _ok("Reached.")

    @functools.cached_property
    def _listening(self) -> dict[str, str | None]:
        return workers.listening(self._queue)

    def workers(self) -> Finding:
        if workers.is_suspended(self._queue):
            return _error(
                "RQ is suspended on this Redis: no worker takes a job. Badges wait.",
                "rq resume, with --url for a Redis that is not on this machine.",
            )

        if not self._listening:
            self._alone = True
            return _warning(
                f"None listens on the queue {self._queue.name!r}.",
                "flask credly worker",
            )

        return _ok(f"{len(self._listening)} on the queue {self._queue.name!r}.")

    def queue(self) -> Finding:
        own = workers.signature(self._state.engine)
        others = [each for each in self._listening.values() if each not in (own, None)]

        if others:
            return _error(
                f"The queue {self._queue.name!r} is shared with another application:"
                f" {len(others)} of its {len(self._listening)} workers issue that one's"
                " badges, and miss these.",
                "Give one of the applications another CREDLY_QUEUE, and restart its"
                " workers.",
            )

        return _ok("No other application's worker is on it.")

    def jobs(self) -> Finding:
        failed = [
            each
            for each in workers.failures(self._queue)
            # Of one that has ended since, it may be mended.
            if each.worker in self._listening and not each.mended
        ]

        if any(each.ours and each.error == "DeserializationError" for each in failed):
            return _error(
                "A worker cannot read the jobs: it has another serializer.",
                f"Start it so: rq worker --serializer json {self._queue.name}",
            )

        if errors := sorted({each.error for each in failed if each.ours}):
            return _error(
                f"Jobs failed ({', '.join(errors)}).",
                "The worker's log has the reason.",
            )

        if failed:
            return _warning(
                "Jobs of something else are put into this queue, and fail.",
                "Give those another queue, or CREDLY_QUEUE another name.",
            )

        return _ok("None failed.")

    # The connection.

    @functools.cached_property
    def _seen(self) -> overview.Overview:
        return in_session(
            self._state.engine,
            overview.read,
            self._state.tenant,
            config=self._config,
        )

    def secret(self) -> Finding:
        found = rotating.rotate_keys(self._state, dry_run=True)

        if self._seen.unreadable:
            return _error(
                "The stored Client Secret cannot be decrypted with the configured keys."
                " Badges wait.",
                f"{keys.remedy(self._config)} If the key is lost, enter the Client"
                f" Secret again at {self._page('/credly/connection')}.",
            )

        if self._seen.keyless_worker:
            return _error(
                "A worker cannot decrypt the stored Client Secret, and issues nothing."
                " This process can.",
                "Restart that worker with the CREDLY_ENCRYPTION_KEYS and the SECRET_KEY"
                " of this process. Its log says that it cannot.",
            )

        if found.unreadable:
            return _warning(
                "The access token was encrypted by a process with other keys.",
                "Give all processes the same CREDLY_ENCRYPTION_KEYS.",
            )

        if found.rotated:
            return _warning(
                f"On an older key: {', '.join(found.rotated)}.",
                "flask credly rotate-keys",
            )

        return _ok("On the newest key." if found.current else "Nothing is stored.")

    def connection(self) -> Finding:
        seen = self._seen

        if seen.connection == "none":
            return _warning(
                "Credly is not connected.",
                f"An admin connects it at {self._page('/credly')}.",
            )

        if seen.connection == "expired":
            return _error(
                "Connection expired. Badges wait.",
                f"Reconnect at {self._page('/credly/connection')}.",
            )

        if seen.is_copy:
            return _warning(
                "This database is marked as a copy. No badge is issued.",
                "Where it is the one in use: flask credly restored",
            )

        if seen.switched_off:
            return _warning(
                "An admin has paused issuing. Badges wait.",
                f"Resume issuing at {self._page('/credly')}.",
            )

        if seen.paused_until is not None:
            return _warning(
                f"Paused until {_time(seen.paused_until)} ({seen.pause_reason}).",
                "Nothing: it goes on by itself.",
            )

        gate = gates.read(self._state.engine, self._state.tenant)

        if gate is not None and gate.restored:
            return _ok(
                "Connected. The database was restored: each badge is looked up first."
            )

        return _ok("Connected.")

    def token(self) -> Finding:
        gate = gates.read(self._state.engine, self._state.tenant)

        if gate is None:
            return _skipped("Not checked: see connection.")

        if self._seen.paused_until is not None:
            return _skipped("Credly is not asked during a pause.")

        try:
            answered_at = accounts.verify(self._state, gate)
        except accounts.NotVerified as e:
            return _error(
                f"Credly refuses the credentials. {e.detail}",
                f"Enter them again at {self._page('/credly/connection')}.",
            )
        except SecretUnreadable:
            return _skipped("Not checked: see secret.")
        except CredlyError as e:
            return _error(
                f"Credly could not be asked. {e.detail}",
                f"If it lasts: can this machine reach {self._state.settings.token_url}"
                f" and {self._state.settings.api_url}?",
            )

        if answered_at is not None:
            now = dt.datetime.now(dt.UTC)
            self._credly_ahead = (answered_at - now).total_seconds()

        return _ok("Credly accepts it.")

    def templates(self) -> Finding:
        tenant = self._state.tenant

        with orm.Session(self._state.engine) as session:
            row = accounts.get(session, tenant)
            number = accounts.count_templates(session, tenant)
            gone = accounts.mapped_and_gone(session, tenant)

        if row is None:
            return _skipped("Not checked: see connection.")

        if gone:
            pairs = ", ".join(f"{name} for {course}" for name, course, _ in gone[:5])
            more = f" and {len(gone) - 5} more" if len(gone) > 5 else ""
            return _error(
                f"Mapped, and not active at Credly any more: {pairs}{more}.",
                "Activate them there and run flask credly sync, or change the mapping"
                f" at {self._page('/credly')}.",
            )

        return self._age(row, number)

    def _age(self, row: Account, number: int) -> Finding:
        at = row.templates_synced_at

        if at is None:
            return _warning("They were never loaded whole.", "flask credly sync")

        text = f"{number} active, loaded at {_time(at)}"
        old = dt.datetime.now(dt.UTC) - at > OLD_TEMPLATES

        if row.templates_failed_at is not None or old:
            return _warning(f"{text}, and not since.", "flask credly sync")

        return _ok(f"{text}.")

    # What waits.

    def waiting(self) -> Finding:
        seen = self._seen

        if seen.overdue_since is not None:
            return _error(
                f"{seen.pending} waiting, the first since"
                f" {_time(seen.overdue_since)}, though nothing is in the way.",
                "flask credly worker; where one is running, its log has the reason.",
            )

        if seen.oldest_pending_seconds is None:
            return _ok("Nothing waits.")

        waits = dt.timedelta(seconds=seen.oldest_pending_seconds)

        # A backfill's badges wait for their turn, which never comes without a worker.
        if self._alone and seen.connection == "connected" and waits > overview.OVERDUE:
            return _error(
                f"{seen.pending} waiting, the first for"
                f" {seen.oldest_pending_seconds} s, and no worker listens.",
                "flask credly worker",
            )

        return _ok(f"{seen.pending}, the first for {seen.oldest_pending_seconds} s.")

    def failed(self) -> Finding:
        if not self._seen.failed:
            return _ok("No badge failed.")

        return _warning(
            f"{self._seen.failed} failed.",
            f"{self._page('/credly/badges?status=failed')} says why. After that,"
            " flask credly retry --all",
        )

    def unrecorded(self) -> Finding:
        try:
            found = unrecorded.read(self._state)
        except sa.exc.SQLAlchemyError:
            # That is said above. Redis and this process count all the same.
            found = unrecorded.read_elsewhere(self._state)

            if found.since is None:
                return _skipped("Not checked: see database.")

        if found.since is None:
            return _ok("Every completion was recorded.")

        number = "1 completion" if found.number == 1 else f"{found.number} completions"
        detail = f"{number} could not be recorded since {_time(found.since)}."

        if self._state.past_completions is None:
            return _error(
                detail,
                "The log says why, and which (credly_event completion_lost). Send them"
                " again, then flask credly dismiss",
            )

        # The course was completed a little before it was signalled.
        day = (found.since - dt.timedelta(hours=1)).date()
        also = " A worker does so too, once a day." if self._state.heals else ""
        return _error(
            detail,
            f"The log says why. After that, flask credly backfill --since {day}"
            f" adds them.{also}",
        )

    def _page(self, path: str) -> str:
        root = self._config.get("APPLICATION_ROOT", "/").rstrip("/")
        return f"{root}{self._state.settings.url_prefix}{path}"


_Check = tuple[str, cabc.Callable[[Checks], Finding], tuple[str, ...]]

_CHECKS: tuple[_Check, ...] = (
    ("settings", Checks.settings, ()),
    ("key", Checks.key, ()),
    ("pages", Checks.pages, ()),
    ("database", Checks.database, ()),
    ("tables", Checks.tables, ("database",)),
    ("hooks", Checks.hooks, ("database",)),
    ("redis", Checks.redis, ()),
    ("workers", Checks.workers, ("redis",)),
    ("queue", Checks.queue, ("redis", "tables")),
    ("jobs", Checks.jobs, ("redis",)),
    ("secret", Checks.secret, ("tables",)),
    ("connection", Checks.connection, ("tables", "secret")),
    ("token", Checks.token, ("tables", "secret", "connection")),
    ("clock", Checks.clock, ("database",)),
    ("templates", Checks.templates, ("tables",)),
    ("waiting", Checks.waiting, ("tables",)),
    ("failed", Checks.failed, ("tables",)),
    ("unrecorded", Checks.unrecorded, ()),
)
"""Each with those that it depends on."""

_OF_ACCOUNT = {
    *("secret", "connection", "token", "templates"),
    *("waiting", "failed", "unrecorded"),
}
"""Those that concern one community's account, and not the application."""


@contextlib.contextmanager
def _taken_back(connected: sa.Connection) -> cabc.Iterator[None]:
    """Take back what is written, also where the engine commits each statement."""
    with connected.begin() as transaction:
        raw = connected.connection.dbapi_connection
        assert raw is not None
        # SQLite's own transaction may have been begun by a listener of the host's.
        commits = connected.dialect.detect_autocommit_setting(raw) and not getattr(
            raw, "in_transaction", False
        )

        if commits:
            connected.exec_driver_sql("BEGIN")

        try:
            yield
        finally:
            # A full disk has ended SQLite's.
            if commits and getattr(raw, "in_transaction", True):
                connected.exec_driver_sql("ROLLBACK")

            transaction.rollback()


def _blocks(environment: jinja2.Environment, name: str) -> set[str] | None:
    """Get the blocks of a template and of those that it stands in. ``None``: they are
    named at run time only.
    """
    if environment.loader is None:
        return None

    try:
        source, *_ = environment.loader.get_source(environment, name)
    except RuntimeError:  # of a loader of compiled templates
        return None

    found = set(environment.get_template(name).blocks)

    for outer in environment.parse(source).find_all(jinja2.nodes.Extends):
        named = outer.template
        more = (
            _blocks(environment, named.value)
            if isinstance(named, jinja2.nodes.Const)
            else None
        )

        if more is None:
            return None

        found |= more

    return found


def _changed(settings: Settings, config: cabc.Mapping[str, t.Any]) -> list[str]:
    """Name the settings that have another value by now than those in force."""
    try:
        now = Settings.from_config(config)
    except ValueError as e:
        return [str(e).partition(" ")[0]]

    return [
        f"CREDLY_{field.name.upper()}"
        for field in dataclasses.fields(Settings)
        if getattr(settings, field.name) != getattr(now, field.name)
    ]


def _redis_place(url: str) -> str:
    """Write the address of a Redis, without a password wherever it may stand."""
    parts = urllib.parse.urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    name = user.partition(":")[0]
    netloc = f"{name}@{host}" if name else host
    kept = [each for each in urllib.parse.parse_qsl(parts.query) if each[0] == "db"]
    query = urllib.parse.urlencode(kept)
    return parts._replace(netloc=netloc, query=query, fragment="").geturl()


def _place(url: sa.URL) -> str:
    """Write the address of a database, without a password wherever it may stand."""
    return url.set(query={}).render_as_string(hide_password=True)


def _clocks(seconds: float, whose: str, *, behind: bool) -> Finding:
    return _warning(
        f"This machine's is {seconds:.0f} s {'behind' if behind else 'ahead of'}"
        f" {whose}.",
        "Let both machines take their time from the network (NTP).",
    )


def _time(at: dt.datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M UTC")


if __name__ == "__main__":
    sys.exit(
        "Flask runs our commands, and needs your app: in its directory, or with its"
        " name or path, run: flask --app … credly doctor"
    )
