"""One clock for all workers: the database's."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa

# A worker whose clock is wrong must not take rows that another one holds, and a web
# server's must not put off a badge. SQLite's database is on the same machine.
_SERVER_NOW: dict[str, str] = {
    "postgresql": "clock_timestamp()",
    "mysql": "UTC_TIMESTAMP(6)",
    "mariadb": "UTC_TIMESTAMP(6)",
}


def server_now(dialect: str) -> sa.ColumnElement[dt.datetime] | None:
    """Get the current time as a part of a statement. ``None`` where the database has
    no other clock than the process.
    """
    if (name := _SERVER_NOW.get(dialect)) is None:
        return None

    return sa.literal_column(name)


def now(connection: sa.Connection) -> dt.datetime:
    """Get the current time, aware, in UTC."""
    if (expression := server_now(connection.dialect.name)) is None:
        return dt.datetime.now(dt.UTC)

    value: dt.datetime = connection.execute(sa.select(expression)).scalar_one()
    return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value
