"""Whether the database does with our tables what our statements need."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import datetime as dt
import secrets
import typing as t

import sqlalchemy as sa

from ..tables import ISSUANCE
from ..tables import METADATA
from . import tables
from .transaction import cause
from .transaction import end_hosts_transaction
from .transaction import passes


class Misfit(t.NamedTuple):
    """What is wrong with the database or the way to it, and what mends it."""

    detail: str
    hint: str


def examine(engine: sa.Engine) -> Misfit | None:
    """Try all that is done with the tables. What is written is taken back.

    :return: ``None``: all is well, or tables are missing.
    :raises sqlalchemy.exc.SQLAlchemyError: The database cannot be reached.
    """
    where = place(engine.url)
    end_hosts_transaction()

    with engine.connect() as connected:
        if (found := _find_setting(connected, where)) is not None:
            return found

    if any(tables.missing(engine)):
        return None

    try:
        return _try_all(engine, where, patient=True)
    except sa.exc.SQLAlchemyError as e:
        if not _passes(e):
            raise

        return _try_all(engine, where, patient=False)


def _try_all(engine: sa.Engine, where: str, *, patient: bool) -> Misfit | None:
    """Try what is written and each table.

    :param patient: Whether to raise what may be over soon, such as a worker's lock.
    """
    with engine.connect() as connected:
        return _write_many(connected, where, patient) or _try_each(
            connected, where, patient
        )


def place(url: sa.URL) -> str:
    """Write the address of a database, without a password wherever it may stand."""
    return url.set(query={}).render_as_string(hide_password=True)


def _find_setting(connected: sa.Connection, where: str) -> Misfit | None:
    if connected.dialect.name == "postgresql":
        style = connected.scalar(sa.text("SHOW datestyle"))

        if not style.startswith("ISO"):
            return Misfit(
                f"The connection to {where} writes times in the DateStyle {style},"
                " which not every driver can read.",
                "Set it to ISO: ALTER ROLE … SET datestyle = 'ISO'.",
            )

        if (schema := _find_schema(connected)) is not None:
            path = connected.scalar(sa.text("SHOW search_path"))
            return Misfit(
                f"The tables are in the schema {schema}, which is not in the"
                f" search_path of the connection to {where} ({path}).",
                f"Keep {schema} in it: SET search_path TO {path}, {schema}.",
            )

    if connected.dialect.name in ("mysql", "mariadb"):
        modes = connected.scalar(sa.text("SELECT @@sql_mode"))

        if "EMPTY_STRING_IS_NULL" in modes:
            return Misfit(
                f"The connection to {where} has the sql_mode EMPTY_STRING_IS_NULL. It"
                " stores an empty text as NULL, which the tables do not allow.",
                "Remove EMPTY_STRING_IS_NULL from sql_mode, for this application or"
                " the server.",
            )

    return None


def _find_schema(connected: sa.Connection) -> str | None:
    """Find the schema of our tables, where a statement does not."""
    if connected.get_execution_options().get("schema_translate_map"):
        return None  # which says where they are

    found = connected.scalars(
        sa.text(
            "SELECT quote_ident(nspname) FROM pg_class"
            " JOIN pg_namespace ON pg_namespace.oid = relnamespace"
            " WHERE relname = :name AND relkind IN ('r', 'p')"
            " AND to_regclass(CAST(:name AS text)) IS NULL"
        ),
        {"name": ISSUANCE.name},
    ).all()
    # Of several, such as one for each tenant, none can be told to be meant.
    return found[0] if len(found) == 1 else None


def _write_many(connected: sa.Connection, where: str, patient: bool) -> Misfit | None:
    """Write more of what completions write than fits into what the tables have left."""
    row = _fill(ISSUANCE, {})
    rows = [{**row, "member_id": f"doctor-{secrets.token_hex(8)}"} for _ in range(20)]

    try:
        with _taken_back(connected):
            connected.execute(sa.insert(ISSUANCE), rows)
    except sa.exc.SQLAlchemyError as e:
        if patient and _passes(e):
            raise

        return _find_hidden(connected, where, ISSUANCE) or Misfit(
            f"The database at {where} rejects writes. {cause(e)}",
            "Fix the cause, such as a full disk, a read-only replica or missing write"
            " permission.",
        )

    return None


def _try_each(connected: sa.Connection, where: str, patient: bool) -> Misfit | None:
    """Write a row into each table, find it, change it and delete it."""
    table = ISSUANCE
    written: dict[sa.Table, dict[str, t.Any]] = {}

    try:
        with _taken_back(connected):
            for table in METADATA.sorted_tables:
                row = written[table] = _fill(table, written)
                added = connected.execute(sa.insert(table).values(row))
                keys = added.inserted_primary_key or ()
                row.update(zip(table.primary_key.columns.keys(), keys, strict=True))
                this = _this(table, row)

                if connected.execute(sa.select(table).where(this)).first() is None:
                    return _hidden(where, table)

                column = next(iter(table.primary_key))
                changed = sa.update(table).where(this).values({column: column})

                if not connected.execute(changed).rowcount:
                    return _not_found(connected, where, table)

            for table in reversed(METADATA.sorted_tables):
                this = _this(table, written[table])

                if not connected.execute(sa.delete(table).where(this)).rowcount:
                    return _hidden(where, table)
    except sa.exc.SQLAlchemyError as e:
        if patient and _passes(e):
            raise

        return _find_hidden(connected, where, table) or Misfit(
            f"The user of {where} lacks a privilege on {table.name}. {cause(e)}",
            "Grant SELECT, INSERT, UPDATE and DELETE on all tables credly_*. On"
            " PostgreSQL also grant USAGE on their sequences.",
        )

    return None


def _not_found(connected: sa.Connection, where: str, table: sa.Table) -> Misfit:
    """Explain why a statement does not find a row that it need not change."""
    if connected.dialect.name not in ("mysql", "mariadb"):
        return _hidden(where, table)

    return Misfit(
        f"The connection to {where} counts the rows that a statement changes instead of"
        " those that it finds, as SQLAlchemy requires. No badge is issued.",
        "A client_flag in the connect_args of SQLALCHEMY_ENGINE_OPTIONS replaces"
        " SQLAlchemy's own. Add CLIENT.FOUND_ROWS to it.",
    )


def _fill(
    table: sa.Table, written: dict[sa.Table, dict[str, t.Any]]
) -> dict[str, t.Any]:
    """Make a row of what must be given, as long as it may be."""
    row: dict[str, t.Any] = {}

    for column in table.columns:
        if column.nullable or column.default is not None:
            continue

        if column.foreign_keys:
            (key,) = column.foreign_keys
            row[column.name] = written[key.column.table][key.column.name]
        elif isinstance(column.type, sa.String):
            row[column.name] = "x" * (column.type.length or 0)
        elif not isinstance(column.type, sa.Integer):
            row[column.name] = dt.datetime.now(dt.UTC)
        elif column is not table.autoincrement_column:
            row[column.name] = -1

    return row


def _this(table: sa.Table, row: dict[str, t.Any]) -> sa.ColumnElement[bool]:
    return sa.and_(*(column == row[column.name] for column in table.primary_key))


def _passes(error: sa.exc.SQLAlchemyError) -> bool:
    return isinstance(error, sa.exc.DBAPIError) and passes(error)


def _find_hidden(
    connected: sa.Connection, where: str, table: sa.Table
) -> Misfit | None:
    """Explain why a statement on a table failed, where a policy is in its way."""
    if connected.dialect.name != "postgresql":
        return None

    active = sa.func.row_security_active(sa.cast(table.name, sa.Text))
    connected.rollback()

    try:
        is_active = connected.scalar(sa.select(active))
    except sa.exc.SQLAlchemyError:
        return None

    return _hidden(where, table) if is_active else None


def _hidden(where: str, table: sa.Table) -> Misfit:
    return Misfit(
        f"Row level security in {where} keeps its user from rows of {table.name}."
        " Completions whose mapping is hidden are not recorded.",
        "Let the user read and write all rows of all tables credly_*: ALTER TABLE …"
        " DISABLE ROW LEVEL SECURITY, or ALTER ROLE … BYPASSRLS.",
    )


@contextlib.contextmanager
def _taken_back(connected: sa.Connection) -> cabc.Iterator[None]:
    """Take back what is written, also where the engine commits each statement."""
    connected.rollback()

    with connected.begin() as transaction:
        raw = connected.connection.dbapi_connection
        assert raw is not None
        # SQLAlchemy does not know the autocommit of SQLite's driver. A transaction may
        # have been begun by a listener of the host's.
        commits = (
            connected.dialect.detect_autocommit_setting(raw)
            or getattr(raw, "autocommit", None) is True
        ) and not getattr(raw, "in_transaction", False)

        if commits:
            connected.exec_driver_sql("BEGIN")

        try:
            yield
        finally:
            # A full disk has ended SQLite's.
            if commits and getattr(raw, "in_transaction", True):
                connected.exec_driver_sql("ROLLBACK")

            transaction.rollback()
