"""One clock for all workers: the database's."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa

# A worker whose clock is wrong must not take rows that another one holds. SQLite's
# database is on the worker's own machine, so that its clock is the worker's.
_SERVER_NOW: dict[str, sa.TextClause] = {
    "postgresql": sa.text("SELECT clock_timestamp()"),
    "mysql": sa.text("SELECT UTC_TIMESTAMP(6)"),
    "mariadb": sa.text("SELECT UTC_TIMESTAMP(6)"),
}


def now(connection: sa.Connection) -> dt.datetime:
    """Get the current time, aware, in UTC."""
    if (statement := _SERVER_NOW.get(connection.dialect.name)) is None:
        return dt.datetime.now(dt.UTC)

    value: dt.datetime = connection.execute(statement).scalar_one()
    return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value
