"""One clock for all: the database's."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa

from ..tables import UTCDateTime

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

    return sa.literal_column(name, UTCDateTime())


def now(connection: sa.Connection) -> dt.datetime:
    """Get the current time, aware, in UTC."""
    if (expression := server_now(connection.dialect.name)) is None:
        return dt.datetime.now(dt.UTC)

    return connection.execute(sa.select(expression)).scalar_one()
