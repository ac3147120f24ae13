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
from .ledger import comparisons
from .ledger import gates
from .ledger import overview
from .ledger import polls
from .ledger import removing
from .ledger import tables
from .ledger.transaction import cause
from .ledger.transaction import connect
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

OLD_COMPARISON = dt.timedelta(days=14)
"""After which the last comparison with Credly is old."""

OLD_SURVEY = polls.SURVEY_EVERY + dt.timedelta(days=1)
"""After which a full read is overdue by a day."""

_PATIENCE = 2.0

_LEDGER = Issuance.__table__


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
            f"The check failed ({type(e).__name__}).",
            "Set the logger flask_credly to DEBUG for the traceback.",
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
                f"Unknown settings: {', '.join(strange)}.",
                " ".join(
                    f"Write {meant} in place of {name}." if meant else f"Remove {name}."
                    for name, meant in strange.items()
                ),
            )

        if names := ignored(self._config, os.environ):
            return _warning(
                f"Environment variables that are not used: {', '.join(names)}.",
                f"{HOW_TO_READ} Otherwise remove them.",
            )

        if late := _changed(self._state.settings, self._config):
            return _warning(
                "Set after credly.init_app(app) and therefore not used:"
                f" {', '.join(late)}.",
                "Read the configuration before credly.init_app(app).",
            )

        settings = self._state.settings
        queue = (
            f"Queue: {settings.queue!r} at {_redis_place(settings.redis_url)}."
            if isinstance(settings.queue, str)
            else "The queue comes from the function in CREDLY_QUEUE."
        )
        return _ok(f"Credly API: {settings.api_url}. {queue}")

    def key(self) -> Finding:
        if not keys.can_seal(self._config):
            return _error(
                "No key is configured to encrypt the Client Secret.",
                f"Set CREDLY_ENCRYPTION_KEYS. Make a key with {keys.MAKE_A_KEY}",
            )

        if keys.is_weak(self._config):
            return _warning(
                f"CREDLY_ENCRYPTION_KEYS is not set. {keys.WEAK}",
                "Set CREDLY_ENCRYPTION_KEYS, restart all processes, then run"
                f" flask credly rotate-keys. Make a key with {keys.MAKE_A_KEY}",
            )

        if keys.is_derived(self._config):
            return _warning(
                "CREDLY_ENCRYPTION_KEYS is not set. A key derived from SECRET_KEY"
                " is used.",
                "Set CREDLY_ENCRYPTION_KEYS, restart all processes, then run"
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
        text = f"Registered: {', '.join(given)}."

        try:
            # As on a page, where it is called.
            host = self._state.settings.host
            base = f"http://{host}" if host else None

            with self._state.app.test_request_context(
                self._state.page("/credly"), base_url=base
            ):
                try:
                    read_courses(self._state.list_courses())
                finally:
                    self._state.session.remove()
        except (TypeError, ValueError) as e:
            logger.debug("The @credly.courses hook failed.", exc_info=True)
            return _error(
                f"The @credly.courses hook failed, so no course can be mapped. {e}",
                "Return a list of Course objects.",
            )
        except Exception as e:
            # Its text may hold an address with a password.
            logger.debug("The @credly.courses hook failed.", exc_info=True)
            return _error(
                f"The @credly.courses hook failed ({type(e).__name__}), so no"
                " course can be mapped.",
                "Set the logger flask_credly to DEBUG for the traceback.",
            )

        return _ok(f"{text} Not registered: {', '.join(missing)}." if missing else text)

    def pages(self) -> Finding:
        layout = self._state.settings.layout

        # CREDLY_ENCRYPTION_KEYS stand in for it only where something is encrypted.
        if not self._config.get("SECRET_KEY"):
            return _error(
                "SECRET_KEY is not set. Every page with a form fails.",
                "Set SECRET_KEY to the same value in every process.",
            )

        if (shadowed := self._shadowed()) is not None:
            path, endpoint = shadowed
            return _error(
                f"{self._state.page(path)} leads to {endpoint or 'no page'} instead of"
                " Flask-Credly.",
                "Move that route, or set CREDLY_URL_PREFIX.",
            )

        try:
            if is_own_layout():
                return _ok("The pages use Flask-Credly's own layout and htmx.")

            blocks = _blocks(layout_environment(), layout)
        except jinja2.TemplateNotFound as e:
            return _error(
                f"The template {e.name} does not exist. Every page fails.",
                "Correct CREDLY_LAYOUT or the template.",
            )
        except jinja2.TemplateSyntaxError as e:
            return _error(
                f"{e.name or layout} has a syntax error. Every page fails.",
                f"Correct line {e.lineno}.",
            )

        if blocks is not None and "content" not in blocks:
            return _error(
                f"{layout} has no block named content. Every page is empty.",
                "Add {% block content %}{% endblock %} to it.",
            )

        return _ok(
            f"The pages use the layout {layout}, and its htmx if it loads 2.0 or later."
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
                "Start it, or correct SQLALCHEMY_DATABASE_URI.",
            )

        try:
            self._write()
        except sa.exc.SQLAlchemyError as e:
            # That is said below.
            if not tables.explain(self._state.engine, e):
                return _error(
                    f"The database at {where} rejects writes. {cause(e)}",
                    "Fix the cause, such as a full disk, a read-only replica or"
                    " missing write permission.",
                )

        for table in Base.metadata.sorted_tables:
            try:
                self._try_rights(table)
            except sa.exc.SQLAlchemyError as e:
                if tables.explain(self._state.engine, e):
                    break

                return _error(
                    f"The user of {where} lacks a privilege on {table.name}."
                    f" {cause(e)}",
                    "Grant SELECT, INSERT, UPDATE and DELETE on all tables"
                    " credly_*. On PostgreSQL also grant USAGE on their"
                    " sequences.",
                )

        if narrow := tables.narrow(self._state.engine)[0]:
            return _warning(
                f"The database at {where} does not store every character:"
                f" {', '.join(narrow)}. Completions of members with other"
                " characters in their name are not recorded.",
                "In SQLALCHEMY_DATABASE_URI, set charset=utf8mb4 on MariaDB and"
                " MySQL, or client_encoding=utf8 on PostgreSQL. A PostgreSQL"
                " database must have the encoding UTF8.",
            )

        return _ok(f"Reachable and writable at {where}.")

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
                    "These columns do not store every character:"
                    f" {', '.join(narrow)}. Completions of members with other"
                    " characters in their name are not recorded.",
                    "Change them with ALTER TABLE … MODIFY to CHARACTER SET"
                    " utf8mb4, and id columns also to COLLATE utf8mb4_bin, as"
                    " db.create_all() does.",
                )

            return _ok(
                f"All {len(Base.metadata.tables)} tables and their columns exist."
            )

        if "migrate" in self._state.app.extensions:
            mend = (
                "Run flask db migrate, review the migration, then run flask db upgrade."
            )
        elif parts:
            mend = (
                "Use Flask-Migrate or ALTER TABLE. db.create_all() does not"
                " change existing tables."
            )
        else:
            mend = "Call db.create_all() after credly.init_app(app)."

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

        return _ok(
            f"In sync with {' and '.join(compared)}."
            if compared
            else "No other clock to compare with."
        )

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
            return _error(f"{found.what} Badges stay queued.", found.remedy)

        return _ok("Reached.")

    @functools.cached_property
    def _listening(self) -> dict[str, str | None]:
        return workers.listening(self._queue)

    def workers(self) -> Finding:
        if workers.is_suspended(self._queue):
            return _error(
                "RQ is suspended on this Redis, so no worker takes jobs. Badges"
                " stay queued.",
                "Run rq resume, with --url if Redis is not on this machine.",
            )

        if not self._listening:
            self._alone = True
            return _warning(
                f"No worker listens on the queue {self._queue.name!r}.",
                "Run flask credly worker",
            )

        return _ok(f"{len(self._listening)} on the queue {self._queue.name!r}.")

    def queue(self) -> Finding:
        own = workers.signature(self._state.engine)
        others = [each for each in self._listening.values() if each not in (own, None)]

        if others:
            return _error(
                f"Another application shares the queue {self._queue.name!r}."
                f" {len(others)} of its {len(self._listening)} workers belong to"
                " that application and do not issue these badges.",
                "Set another CREDLY_QUEUE in one application and restart its workers.",
            )

        return _ok("No other application uses it.")

    def jobs(self) -> Finding:
        failed = [
            each
            for each in workers.failures(self._queue)
            # Of one that has ended since, it may be mended.
            if each.worker in self._listening and not each.mended
        ]

        if any(each.ours and each.error == "DeserializationError" for each in failed):
            return _error(
                "A worker cannot read the jobs because it uses another serializer.",
                f"Start it with: rq worker --serializer json {self._queue.name}",
            )

        if errors := sorted({each.error for each in failed if each.ours}):
            return _error(
                f"Jobs failed ({', '.join(errors)}).",
                "The worker's log has the cause.",
            )

        if failed:
            return _warning(
                "Another program puts jobs into this queue, and they fail.",
                "Move those jobs to another queue, or change CREDLY_QUEUE.",
            )

        return _ok("No job failed.")

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
                "The stored Client Secret cannot be decrypted with the configured"
                " keys. Badges stay queued.",
                f"{keys.remedy(self._config)} If the key is lost, enter the Client"
                f" Secret again at {self._state.page('/credly/connection')}.",
            )

        if self._seen.keyless_worker:
            return _error(
                "A worker cannot decrypt the stored Client Secret, so it issues"
                " no badges. This process can.",
                "Restart that worker with the CREDLY_ENCRYPTION_KEYS and"
                " SECRET_KEY of this process. Its log shows the error.",
            )

        if found.unreadable:
            return _warning(
                "A process with other keys encrypted the access token.",
                "Set the same CREDLY_ENCRYPTION_KEYS in all processes.",
            )

        if found.rotated:
            return _warning(
                f"Encrypted with an older key: {', '.join(found.rotated)}.",
                "Run flask credly rotate-keys",
            )

        return _ok(
            "Encrypted with the newest key."
            if found.current
            else "No secret is stored."
        )

    def connection(self) -> Finding:
        seen = self._seen

        if seen.connection == "none":
            return _warning(
                "Credly is not connected.",
                f"An admin can connect it at {self._state.page('/credly')}.",
            )

        if seen.connection == "removing":
            return _warning(
                "Credly was removed. What is left of it is still being deleted.",
                "Nothing. An admin can connect it again afterwards.",
            )

        if seen.connection == "expired":
            return _error(
                "Connection expired. Badges stay queued.",
                f"Reconnect at {self._state.page('/credly/connection')}.",
            )

        if seen.is_copy:
            return _warning(
                "This database is marked as a copy. No badges are issued.",
                "If it is the live database, run flask credly restored",
            )

        if seen.switched_off:
            return _warning(
                "An admin paused issuing. Badges stay queued.",
                f"Resume issuing at {self._state.page('/credly')}.",
            )

        if seen.paused_until is not None:
            return _warning(
                f"Paused until {_time(seen.paused_until)} ({seen.pause_reason}).",
                "Nothing. Issuing resumes automatically.",
            )

        gate = gates.read(self._state.engine, self._state.tenant)
        said = ["Connected."]

        if gate is not None and gate.restored:
            said.append(
                "The database was restored, so each badge is looked up before it is"
                " issued."
            )

        if gate is not None and not gate.batches:
            said.append(
                "Credly did not accept several badges in one request, so badges are"
                " sent one at a time. Several are sent again after a day, or when you"
                " reconnect."
            )

        return _ok(" ".join(said))

    def token(self) -> Finding:
        gate = gates.read(self._state.engine, self._state.tenant)

        if gate is None:
            return _skipped("Not checked: see connection.")

        if self._seen.paused_until is not None:
            return _skipped("Not checked: issuing is paused.")

        try:
            answered_at = accounts.verify(self._state, gate)
        except accounts.NotVerified as e:
            return _error(
                f"Credly rejected the credentials. {e.detail}",
                f"Enter them again at {self._state.page('/credly/connection')}.",
            )
        except SecretUnreadable:
            return _skipped("Not checked: see secret.")
        except CredlyError as e:
            return _error(
                f"Credly could not be reached. {e.detail}",
                "If this persists, check that this machine can reach"
                f" {self._state.settings.token_url} and"
                f" {self._state.settings.api_url}.",
            )

        if answered_at is not None:
            now = dt.datetime.now(dt.UTC)
            self._credly_ahead = (answered_at - now).total_seconds()

        return _ok("Credly accepts the token.")

    def templates(self) -> Finding:
        tenant = self._state.tenant

        with orm.Session(self._state.engine) as session:
            row = accounts.get(session, tenant)
            number = accounts.count_templates(session, tenant)
            gone = accounts.mapped_and_gone(session, tenant)
            single = accounts.mapped_and_single(session, tenant)

        if row is None:
            return _skipped("Not checked: see connection.")

        if gone:
            return _error(
                "Mapped, but no longer active in Credly:"
                f" {_list([(name, course) for name, course, _ in gone])}.",
                "Activate them in Credly and run flask credly sync, or change the"
                f" mappings at {self._state.page('/credly')}.",
            )

        if single:
            return _error(
                "Mapped to issue another badge every time, but the template does not"
                f" allow duplicates: {_list(single)}. Further badges stay queued.",
                "Allow duplicates for the template in Credly and run flask credly sync,"
                " or choose Renew in the options of the mapping at"
                f" {self._state.page('/credly')}.",
            )

        return self._age(row, number)

    def _age(self, row: Account, number: int) -> Finding:
        at = row.templates_synced_at

        if at is None:
            return _warning(
                "The badge templates were never fully loaded.", "Run flask credly sync"
            )

        text = f"{number} active, loaded at {_time(at)}"
        old = dt.datetime.now(dt.UTC) - at > OLD_TEMPLATES

        if row.templates_failed_at is not None or old:
            return _warning(f"{text}. Later attempts failed.", "Run flask credly sync")

        return _ok(f"{text}.")

    def poll(self) -> Finding:
        tenant = self._state.tenant

        with orm.Session(self._state.engine) as session:
            row = accounts.get(session, tenant)
            first = polls.first_issued(session.connection(), tenant)
            now = clock.now(session.connection())

        if row is None:
            return _skipped("Not checked: see connection.")

        if first is None:
            return _ok("No badge was issued yet.")

        at = row.surveyed_at
        text = (
            "The badges were never fully read from Credly."
            if at is None
            else f"All badges were last read from Credly at {_time(at)}."
        )

        # Nothing is read while that is not possible, which is said above.
        if self._seen.connection == "connected" and (
            now - (at or max(first, row.connected_at)) > OLD_SURVEY
        ):
            return _warning(
                f"{text} This is overdue: a worker does it once a day.",
                "Run flask credly worker. If one is running, its log has the cause"
                " (credly_event poll_failed).",
            )

        if row.poll_unsorted:
            return _warning(
                f"{text} Credly does not list the latest changes first, so changes"
                " are found only when all badges are read, once a day.",
                "Nothing. To read all badges now, run flask credly poll",
            )

        return _ok(
            "All badges will be read from Credly a day after the first was issued."
            if at is None
            else text
        )

    def comparison(self) -> Finding:
        tenant = self._state.tenant

        with orm.Session(self._state.engine) as session:
            row = accounts.get(session, tenant)
            known = comparisons.known(session, tenant)
            now = clock.now(session.connection())

        if row is None:
            return _skipped("Not checked: see connection.")

        if known.failed and known.latest is not None:
            why = [
                comparisons.WORDS[each]
                for each, _ in (known.latest.found or {}).get("unread", ())
            ]
            return _warning(
                " ".join(
                    [
                        "The last comparison with Credly, at"
                        f" {_time(known.latest.started_at)}, failed.",
                        *why,
                    ]
                ),
                "Run flask credly reconcile to see what is wrong. The log has the"
                " cause (credly_event reconcile_failed).",
            )

        at = None if known.shown is None else known.shown.started_at
        text = (
            "Badges were never compared with Credly."
            if at is None or known.found is None
            else f"Badges were last compared with Credly at {_time(at)}. Differences:"
            f" {known.found.number}."
        )
        late = row.compare_due_at is not None and (
            row.compare_due_at <= now - comparisons.EVERY
        )

        if self._seen.connection == "connected" and (
            late or (at is not None and at <= now - OLD_COMPARISON)
        ):
            return _warning(
                f"{text} This is overdue: a worker compares once a week.",
                "Run flask credly worker. If one is running, its log has the cause"
                " (credly_event reconcile_failed).",
            )

        return _ok(text)

    # What waits.

    def waiting(self) -> Finding:
        seen = self._seen

        if seen.overdue_since is not None:
            return _error(
                f"{seen.pending} queued, the oldest since"
                f" {_time(seen.overdue_since)}, although issuing is not paused.",
                "Run flask credly worker. If one is running, its log has the cause.",
            )

        if seen.oldest_pending_seconds is None:
            return _ok("No badge is queued.")

        waits = dt.timedelta(seconds=seen.oldest_pending_seconds)

        # A backfill's badges wait for their turn, which never comes without a worker.
        if self._alone and seen.connection == "connected" and waits > overview.OVERDUE:
            return _error(
                f"{seen.pending} queued, the oldest for"
                f" {seen.oldest_pending_seconds} s, and no worker is running.",
                "Run flask credly worker",
            )

        return _ok(
            f"{seen.pending} queued, the oldest for {seen.oldest_pending_seconds} s."
        )

    def removal(self) -> Finding:
        with connect(self._state.engine) as connection:
            now = clock.now(connection)
            found = removing.all_going_on(connection)

        if not found:
            return _ok("No integration is being removed.")

        detail = (
            f"An integration is being removed: {found[0].percent} % done."
            if len(found) == 1
            else f"{len(found)} integrations are being removed."
        )
        waiting_since = min(each.due_at for each in found)

        if self._alone or waiting_since < now - overview.OVERDUE:
            return _error(
                f"{detail} No worker is at it.",
                "Run flask credly worker. If one is running, its log has the cause.",
            )

        return _ok(detail)

    def failed(self) -> Finding:
        if not self._seen.failed:
            return _ok("No badge failed.")

        return _warning(
            f"{self._seen.failed} failed.",
            f"See {self._state.page('/credly/badges?status=failed')} for the causes."
            " Then run flask credly retry --all",
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
                "The log lists them with the cause (credly_event"
                " completion_lost). Send them again, then run flask credly"
                " dismiss",
            )

        # The course was completed a little before it was signalled.
        day = (found.since - dt.timedelta(hours=1)).date()
        also = " A worker does so too, once a day." if self._state.heals else ""
        return _error(
            detail,
            "The log has the cause. Fix it, then run flask credly backfill"
            f" --since {day} to record them.{also}",
        )


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
    ("poll", Checks.poll, ("tables", "connection")),
    ("comparison", Checks.comparison, ("tables", "connection")),
    ("waiting", Checks.waiting, ("tables",)),
    ("removal", Checks.removal, ("tables",)),
    ("failed", Checks.failed, ("tables",)),
    ("unrecorded", Checks.unrecorded, ()),
)
"""Each with those that it depends on."""

_OF_ACCOUNT = {
    *("secret", "connection", "token", "templates", "poll"),
    "comparison",
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
        "Synchronize both machines with NTP.",
    )


def _list(badges: list[tuple[str, str]]) -> str:
    """Name the first few of some badge templates, each with its course."""
    named = ", ".join(f"{name} for {course}" for name, course in badges[:5])
    return f"{named} and {len(badges) - 5} more" if len(badges) > 5 else named


def _time(at: dt.datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M UTC")


if __name__ == "__main__":
    sys.exit("Run the doctor through Flask with your app: flask --app … credly doctor")
