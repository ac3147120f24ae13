"""Whether the database can be used, has our tables, and what its clock says."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import datetime as dt
import secrets
import typing as t

import sqlalchemy as sa

from ..ledger import clock
from ..ledger import tables
from ..ledger.transaction import cause
from ..models import Base
from ..models import Issuance
from .finding import Case
from .finding import error
from .finding import Finding
from .finding import ok
from .finding import warning

SKEW = 60.0
"""Seconds that two clocks may differ."""

_LEDGER = Issuance.__table__


def check_database(case: Case) -> Finding:
    where = _place(case.state.engine.url)

    try:
        with case.state.engine.connect() as connected:
            clock.now(connected)
    except sa.exc.SQLAlchemyError as e:
        return error(
            f"The database at {where} cannot be reached. {cause(e)}",
            "Start it, or correct SQLALCHEMY_DATABASE_URI.",
        )

    try:
        counts_found = _write(case)
    except sa.exc.SQLAlchemyError as e:
        # That is said below.
        if not tables.explain(case.state.engine, e):
            return error(
                f"The database at {where} rejects writes. {cause(e)}",
                "Fix the cause, such as a full disk, a read-only replica or"
                " missing write permission.",
            )
    else:
        if not counts_found:
            return error(
                f"The connection to {where} counts the rows that a statement changes"
                " instead of those that it finds, as SQLAlchemy requires. No badge is"
                " issued.",
                "A client_flag in the connect_args of SQLALCHEMY_ENGINE_OPTIONS"
                " replaces SQLAlchemy's own. Add CLIENT.FOUND_ROWS to it.",
            )

    for table in Base.metadata.sorted_tables:
        try:
            _try_rights(case, table)
        except sa.exc.SQLAlchemyError as e:
            if tables.explain(case.state.engine, e):
                break

            return error(
                f"The user of {where} lacks a privilege on {table.name}. {cause(e)}",
                "Grant SELECT, INSERT, UPDATE and DELETE on all tables"
                " credly_*. On PostgreSQL also grant USAGE on their"
                " sequences.",
            )

    if narrow := tables.narrow(case.state.engine)[0]:
        return warning(
            f"The database at {where} does not store every character:"
            f" {', '.join(narrow)}. Completions of members with other"
            " characters in their name are not recorded.",
            "In SQLALCHEMY_DATABASE_URI, set charset=utf8mb4 on MariaDB and"
            " MySQL, or client_encoding=utf8 on PostgreSQL. A PostgreSQL"
            " database must have the encoding UTF8.",
        )

    return ok(f"Reachable and writable at {where}.")


def _try_rights(case: Case, table: sa.Table) -> None:
    """Try each kind of statement on a table, without any row. A table of a later
    version may have been made by another user.
    """
    column = next(iter(table.primary_key))
    # By the key: MariaDB and MySQL may be set to refuse what would read all rows.
    no_row = column < ("" if isinstance(column.type, sa.String) else 0)
    none = sa.select(table).where(no_row)

    with case.state.engine.connect() as connected:
        connected.execute(none)
        connected.execute(sa.insert(table).from_select([*table.columns], none))
        connected.execute(sa.update(table).where(no_row).values({column: column}))
        connected.execute(sa.delete(table).where(no_row))

        if table.autoincrement_column is not None and (
            connected.dialect.name == "postgresql"
        ):
            # Loaded here: a web process does not need it.
            from sqlalchemy.dialects.postgresql import REGCLASS

            # It has a gap then, as after each row that was taken back.
            name = sa.func.pg_get_serial_sequence(table.name, column.name)
            connected.execute(sa.select(sa.func.nextval(sa.cast(name, REGCLASS))))

        connected.rollback()


def _write(case: Case) -> bool:
    """Try to write what completions write, and more than fits into what the tables
    have left. It is taken back.

    :return: Whether a statement is said to have found what it did not have to change.
    """
    now = dt.datetime.now(dt.UTC)
    row: dict[str, t.Any] = {
        each.name: "x" * (each.type.length or 0)
        for each in _LEDGER.columns
        if isinstance(each.type, sa.String) and not each.nullable
    }
    row |= {"kind": "course", "completed_at": now, "recorded_at": now}
    row |= {"state": "cancelled", "test": True}

    with case.state.engine.connect() as connected, _taken_back(connected):
        connected.execute(
            sa.insert(_LEDGER),
            [{**row, "member_id": f"doctor-{secrets.token_hex(8)}"} for _ in range(20)],
        )
        these = sa.update(_LEDGER).where(_LEDGER.c.tenant == row["tenant"])
        return connected.execute(these.values(test=True)).rowcount == 20


def check_tables(case: Case) -> Finding:
    missing, parts = tables.missing(case.state.engine)

    if not missing and not parts:
        if narrow := tables.narrow(case.state.engine)[1]:
            return warning(
                "These columns do not store every character:"
                f" {', '.join(narrow)}. Completions of members with other"
                " characters in their name are not recorded.",
                "Change them with ALTER TABLE … MODIFY to CHARACTER SET"
                " utf8mb4, and id columns also to COLLATE utf8mb4_bin, as"
                " db.create_all() does.",
            )

        return ok(f"All {len(Base.metadata.tables)} tables and their columns exist.")

    if "migrate" in case.state.app.extensions:
        mend = "Run flask db migrate, review the migration, then run flask db upgrade."
    elif parts:
        mend = (
            "Use Flask-Migrate or ALTER TABLE. db.create_all() does not"
            " change existing tables."
        )
    else:
        mend = "Call db.create_all() after credly.init_app(app)."

    return error(f"Missing: {', '.join(missing + parts)}.", mend)


def check_clock(case: Case) -> Finding:
    before = dt.datetime.now(dt.UTC)

    with case.state.engine.connect() as connected:
        there = clock.now(connected)

    after = dt.datetime.now(dt.UTC)
    # Not more than is certain: the answer took its time.
    apart = max((there - after).total_seconds(), (before - there).total_seconds())

    if apart > SKEW:
        return _clocks(apart, "the database's", behind=there > after)

    if case.credly_ahead is not None and abs(case.credly_ahead) > SKEW:
        ahead = case.credly_ahead
        return _clocks(abs(ahead), "Credly's", behind=ahead > 0)

    if clock.server_now(case.state.engine.dialect.name) is None:
        compared = []  # its database has no other
    else:
        compared = ["the database's"]

    if case.credly_ahead is not None:
        compared.append("Credly's")

    return ok(
        f"In sync with {' and '.join(compared)}."
        if compared
        else "No other clock to compare with."
    )


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


def _place(url: sa.URL) -> str:
    """Write the address of a database, without a password wherever it may stand."""
    return url.set(query={}).render_as_string(hide_password=True)


def _clocks(seconds: float, whose: str, *, behind: bool) -> Finding:
    return warning(
        f"This machine's is {seconds:.0f} s {'behind' if behind else 'ahead of'}"
        f" {whose}.",
        "Synchronize both machines with NTP.",
    )
