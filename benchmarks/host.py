"""The application that is measured: members who complete courses, and its tables
filled as they are after years.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import io
import json
import os
import typing as t

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event
from sqlalchemy import orm
from werkzeug.test import EnvironBuilder

from flask_credly import Course
from flask_credly import course_completed
from flask_credly import Credly
from flask_credly import Member
from flask_credly.catalog import DEFAULT_TENANT
from flask_credly.models import Account
from flask_credly.models import Installation
from flask_credly.models import Mapping
from flask_credly.models import Template
from flask_credly.state import AppState
from flask_credly.state import Community

from .fake import template_id

CONFIG = "BENCHMARK_CONFIG"
NOW = "2026-01-01 00:00:00.000000"
ORGANIZATION_ID = "8a8a8a8a-0000-4000-8000-000000000003"
KEY = f"{'A' * 43}="
NEEDLE = "Needle"
"""Stands in a hundred rows of each table, however many rows there are."""


class Base(orm.DeclarativeBase):
    """The host's own base."""


class Completed(Base):
    """A course that a member has completed."""

    __tablename__ = "completed"

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    member_id: orm.Mapped[str]
    course_id: orm.Mapped[str]
    status: orm.Mapped[str] = orm.mapped_column(default="done")
    """Only the plain RQ job uses it."""


@dataclasses.dataclass
class Host:
    """The application and what belongs to it."""

    app: Flask
    db: SQLAlchemy

    @property
    def state(self) -> Community:
        state: AppState = self.app.extensions["credly"]
        return state.of(DEFAULT_TENANT)

    @property
    def engine(self) -> sa.Engine:
        with self.app.app_context():
            return self.db.engine

    def caller(
        self, path: str, method: str = "GET", body: bytes = b""
    ) -> cabc.Callable[[], bytes]:
        """Make what a WSGI server does for one request, and nothing more."""
        environ = EnvironBuilder(path=path, method=method).get_environ()

        def call() -> bytes:
            status: list[str] = []
            given = {**environ, "wsgi.input": io.BytesIO(body)}
            chunks = self.app.wsgi_app(given, lambda line, *_: status.append(line))  # type: ignore[arg-type]
            content = b"".join(chunks)

            if hasattr(chunks, "close"):
                chunks.close()

            if not status[0].startswith("200"):
                raise RuntimeError(f"{path}: {status[0]}")

            return content

        return call


Past = cabc.Iterable[tuple[Member, dt.datetime]]


def make_host(
    config: cabc.Mapping[str, t.Any],
    courses: cabc.Sequence[Course] = (),
    past: cabc.Callable[[], Past] = list,
) -> Host:
    """Make the application.

    :param past: Who completed the course before.
    """
    app = Flask("benchmark_host")
    app.config.update({"SECRET_KEY": "key", "CREDLY_ENCRYPTION_KEYS": KEY, **config})
    db = SQLAlchemy(model_class=Base)
    credly = Credly()
    credly.courses(lambda: courses)
    credly.is_admin(lambda: True)
    credly.past_completions(lambda *_: past())
    db.init_app(app)
    credly.init_app(app)
    host = Host(app, db)

    if host.engine.dialect.name == "sqlite":
        event.listen(host.engine, "connect", _set_pragmas)

    numbers = iter(range(10**9))

    @app.post("/complete/<course_id>/<int:send>")
    def complete(course_id: str, send: int) -> str:
        member_id = f"w{os.getpid()}-{next(numbers)}"
        db.session.add(Completed(member_id=member_id, course_id=course_id))

        if send:
            course_completed.send(app, member=a_member(member_id), course_id=course_id)

        db.session.commit()
        return "Well done."

    return host


def a_member(id_: str) -> Member:
    """Make a member of an id."""
    return Member(id_, f"{id_}@example.org", "Ada", "Example")


def _set_pragmas(connection: t.Any, _: object) -> None:
    # As a host with several processes has it.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


def create_app() -> Flask:
    """Make the application of a worker. ``FLASK_APP`` names this."""
    return make_host(json.loads(os.environ[CONFIG])).app


def courses(number: int) -> list[Course]:
    return [Course(id=f"c{i}", title=f"Course {i:05}") for i in range(number)]


def connect(host: Host, *, templates: int = 1, mappings: int = 1) -> Host:
    """Make the tables and connect, as after the admin's visit, with the templates
    just loaded. The token is fetched when it is needed.
    """
    from flask_credly import keys

    with host.app.app_context():
        host.db.create_all()
        secret = keys.seal(host.app.config, "secret", ORGANIZATION_ID, "client_secret")

    now = dt.datetime.now(dt.UTC)

    with orm.Session(host.engine) as session:
        session.add(Installation(id=1, key="installation"))
        session.add(
            Account(
                tenant=DEFAULT_TENANT,
                organization_id=ORGANIZATION_ID,
                client_id="client",
                client_secret=secret,
                generation="generation",
                connected_at=now,
                templates_synced_at=now,
                expired=False,
                switched_off=False,
                token_version=0,
            )
        )
        session.flush()
        session.execute(
            sa.insert(Template),
            [
                {
                    "id": template_id(i),
                    "tenant": DEFAULT_TENANT,
                    "name": f"Badge {i:05}",
                    "allows_duplicates": False,
                    "active": True,
                }
                for i in range(templates)
            ],
        )
        session.execute(
            sa.insert(Mapping),
            [
                {
                    "tenant": DEFAULT_TENANT,
                    "kind": "course",
                    "course_id": f"c{i}",
                    "course_title": f"Course {i:05}",
                    "template_id": template_id(i % templates),
                }
                for i in range(mappings)
            ],
        )
        session.commit()

    return host


def add_issued(engine: sa.Engine, number: int) -> None:
    """Fill the ledger with badges that were issued, a hundred of which failed."""
    rare = f"i % {max(1, number // 100)} = 0"
    _fill(
        engine,
        number,
        "credly_issuance",
        {
            **_ISSUANCE,
            "member_id": "'m' || i",
            "course_id": "'c' || (i % 10)",
            "email": "'m' || i || '@example.org'",
            "first_name": f"CASE WHEN {rare} THEN '{NEEDLE}' ELSE 'Ada' END",
            "state": f"CASE WHEN {rare} THEN 'failed' ELSE 'issued' END",
            "attempts": "1",
            "settled_at": f"'{NOW}'",
        },
    )


def add_failed(engine: sa.Engine, number: int) -> None:
    """Fill the ledger with badges that failed."""
    _fill(
        engine,
        number,
        "credly_issuance",
        {
            **_ISSUANCE,
            "member_id": "'f' || i",
            "course_id": "'c' || (i % 10)",
            "email": "'f' || i || '@example.org'",
            "first_name": "'Ada'",
            "state": "'failed'",
            "error": "'HTTP 500'",
            "attempts": "2",
            "settled_at": f"'{NOW}'",
        },
    )


def add_communities(engine: sa.Engine, number: int) -> None:
    """Connect more communities, none of which has anything to do."""
    with orm.Session(engine) as session:
        given = session.scalars(sa.select(Account)).one()
        columns = [each.name for each in Account.__table__.columns]
        values = {name: getattr(given, name) for name in columns}
        session.add_all(
            Account(**{**values, "tenant": f"community-{i:04}"}) for i in range(number)
        )
        session.commit()


def add_at_credly(engine: sa.Engine, number: int) -> None:
    """Fill the ledger with the badges that the fake Credly lists."""
    _fill(
        engine,
        number,
        "credly_issuance",
        {
            **_ISSUANCE,
            "member_id": "'m' || i",
            "course_id": "'c0'",
            "email": "'m' || i || '@example.org'",
            "first_name": "'Ada'",
            "state": "'issued'",
            "badge_id": "printf('%08x-0000-4000-8000-000000000003', i)",
            "badge_state": "'pending'",
            "attempts": "1",
            "settled_at": f"'{NOW}'",
        },
    )


def add_due(engine: sa.Engine, number: int, prefix: str) -> None:
    """Add badges that are to be issued."""
    with engine.begin() as connection:
        insert_due(connection, number, prefix)


def insert_due(
    connection: sa.Connection, number: int, prefix: str, **values: str
) -> None:
    """The same, within a transaction.

    :param values: Other columns, as SQL.
    """
    values = {
        **_ISSUANCE,
        "member_id": f"'{prefix}' || i",
        "course_id": "'c0'",
        "email": f"'{prefix}' || i || '@example.org'",
        "first_name": "'Ada'",
        "state": "'none'",
        "action": "'issue'",
        "due_at": f"'{NOW}'",
        **values,
    }
    connection.execute(_insert("credly_issuance", values, 1, number))


_ISSUANCE = {
    "tenant": f"'{DEFAULT_TENANT}'",
    "cycle": "1",
    "kind": "'course'",
    "organization_id": f"'{ORGANIZATION_ID}'",
    "template_id": f"'{template_id(0)}'",
    "badge_name": "'Badge 00000'",
    "last_name": "'Example'",
    "completed_at": f"'{NOW}'",
    "recorded_at": f"'{NOW}'",
    "attempts": "0",
    "outcome_unknown": "false",
    "crashes": "0",
    "look_ups": "0",
    "test": "false",
    "bulk": "false",
}


def add_log(engine: sa.Engine, number: int) -> None:
    """Fill the error log. A hundred rows are of another kind."""
    rare = f"i % {max(1, number // 100)} = 0"
    text = "Failed to issue badge “Badge” to “m' || i || '@example.org”. HTTP 500"
    _fill(
        engine,
        number,
        "credly_log_entry",
        {
            "tenant": f"'{DEFAULT_TENANT}'",
            "at": f"'{NOW}'",
            "error": f"CASE WHEN {rare} THEN 'API Rate Limit'"
            " ELSE 'Badge issuance failed' END",
            "details": f"'{text} ' || CASE WHEN {rare} THEN '{NEEDLE}' ELSE '' END",
            "issuance_id": "i",
        },
    )


def _fill(engine: sa.Engine, number: int, table: str, values: dict[str, str]) -> None:
    with engine.begin() as connection:
        for start in range(1, number + 1, 100_000):
            end = min(number, start + 99_999)
            connection.execute(_insert(table, values, start, end))

    analyze(engine)


def analyze(engine: sa.Engine) -> None:
    """Do what PostgreSQL does by itself within a minute."""
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as it:
            it.exec_driver_sql("VACUUM ANALYZE")


def _insert(table: str, values: dict[str, str], start: int, end: int) -> sa.TextClause:
    return sa.text(
        f"INSERT INTO {table} ({', '.join(values)})"
        f" WITH RECURSIVE n(i) AS (SELECT {start} UNION ALL"
        f" SELECT i + 1 FROM n WHERE i < {end})"
        f" SELECT {', '.join(values.values())} FROM n"
    )
