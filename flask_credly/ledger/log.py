"""The error log that the admin reads."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t

import sqlalchemy as sa
from sqlalchemy import orm

from ..models import Connection
from ..models import CONNECTION_ID
from ..models import LogEntry

CONNECTION_EXPIRED = "Connection expired"
ISSUANCE_FAILED = "Badge issuance failed"
RATE_LIMIT = "API Rate Limit"
UNREACHABLE = "Credly unreachable"

EXPIRED_DETAILS = (
    "Your Credly OAuth credentials have expired or were revoked. Please reconnect."
)


def failed_details(badge_name: str, email: str, error: str) -> str:
    """Word the details of a badge that was not issued."""
    return f"Failed to issue badge “{badge_name}” to “{email}”. {error}"


def rate_limit_details(error: str) -> str:
    """Word the details of a pause asked for by Credly."""
    return f"Hit Credly API rate limit; badge issuance paused. {error}"


def unreachable_details(error: str) -> str:
    """Word the details of a pause because Credly cannot be reached."""
    return f"Badge issuance waits and goes on by itself. {error}"


def write(
    connection: sa.Connection,
    at: dt.datetime,
    error: str,
    details: str,
    *,
    issuance_id: int | None = None,
) -> None:
    """Add an entry, unless the integration was removed in the meantime."""
    columns = ["connection_id", "at", "error", "details", "issuance_id"]
    table = t.cast(sa.Table, LogEntry.__table__)
    values = [
        sa.literal(value, table.c[name].type)
        for name, value in zip(
            columns[1:], [at, error, details, issuance_id], strict=True
        )
    ]
    connection.execute(
        sa.insert(LogEntry).from_select(
            columns,
            sa.select(Connection.id, *values).where(Connection.id == CONNECTION_ID),
        )
    )


@dataclasses.dataclass(frozen=True)
class Page:
    """Some entries, newest first, and where to go on.

    :param newer: Pass as ``after`` for the page before. ``None``: this is the first.
    :param older: Pass as ``before`` for the next page. ``None``: this is the last.
    """

    entries: list[LogEntry]
    newer: int | None
    older: int | None


def page(
    session: orm.Session | orm.scoped_session[t.Any],
    *,
    before: int | None = None,
    after: int | None = None,
    size: int = 50,
) -> Page:
    """Get one page, by id and not by offset, so that the last page of a million
    costs what the first does.
    """
    query = sa.select(LogEntry).limit(size + 1)

    if after is not None:
        found = session.scalars(query.where(LogEntry.id > after).order_by(LogEntry.id))
        entries = list(found)
        more_newer, more_older = len(entries) > size, True
        entries = entries[:size][::-1]
    else:
        if before is not None:
            query = query.where(LogEntry.id < before)

        entries = list(session.scalars(query.order_by(LogEntry.id.desc())))
        more_newer, more_older = before is not None, len(entries) > size
        entries = entries[:size]

    return Page(
        entries,
        newer=entries[0].id if entries and more_newer else None,
        older=entries[-1].id if entries and more_older else None,
    )
