"""Pages by id and not by offset, so that the last page of a million rows costs what
the first does.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import typing as t

import sqlalchemy as sa
from sqlalchemy import orm

from .conditions import Condition
from .transaction import in_session

SIZE = 50
"""Rows a page."""

Session = orm.Session | orm.scoped_session[t.Any]
T = t.TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Page(t.Generic[T]):
    """Some rows, newest first, and where to go on.

    :param newer: Pass as ``after`` for the page before. ``None``: this is the first.
    :param older: Pass as ``before`` for the next page. ``None``: this is the last.
    """

    rows: list[T]
    newer: int | None
    older: int | None


def by_index(
    query: sa.Select[T],
    column: orm.InstrumentedAttribute[t.Any],
    value: str,
    id_: orm.InstrumentedAttribute[int],
    *,
    newest: bool = False,
) -> sa.Select[T]:
    """Select rows with a value, oldest first, by the index that has the column before
    the id.

    By an equality, PostgreSQL would expect them to be spread evenly, and read all rows
    by their ids until it meets some.
    """
    query = query.where(column.between(value, value))

    if newest:
        return query.order_by(column.desc(), id_.desc())

    return query.order_by(column, id_)


def up_to_newest(
    ids: sa.Select[int],
    column: orm.InstrumentedAttribute[t.Any],
    value: str,
    id_: orm.InstrumentedAttribute[int],
) -> Condition:
    """Leave out what is newer than the newest row with a value, which may be much.

    :param ids: Selects the ids of all.
    """
    newest = by_index(ids, column, value, id_, newest=True)
    return id_ <= newest.limit(1).scalar_subquery()


def fetch(
    session: Session,
    query: sa.Select[T],
    id_: orm.InstrumentedAttribute[int],
    *,
    before: int | None = None,
    after: int | None = None,
    size: int = SIZE,
) -> Page[T]:
    """Get one page of what a query selects.

    :param id_: The column to go by.
    """
    query = query.limit(size + 1)

    if after is not None:
        rows = list(session.scalars(query.where(id_ > after).order_by(id_)))
        more_newer, more_older = len(rows) > size, True
        rows = rows[:size][::-1]
    else:
        if before is not None:
            query = query.where(id_ < before)

        rows = list(session.scalars(query.order_by(id_.desc())))
        more_newer, more_older = before is not None, len(rows) > size
        rows = rows[:size]

    return Page(
        rows,
        newer=getattr(rows[0], id_.key) if rows and more_newer else None,
        older=getattr(rows[-1], id_.key) if rows and more_older else None,
    )


def fetch_all(
    engine: sa.Engine, query: sa.Select[T], id_: orm.InstrumentedAttribute[int]
) -> cabc.Iterator[T]:
    """Get all rows, newest first, a few at a time: neither the memory nor an open
    transaction grows with them.
    """
    before: int | None = None

    while True:
        page = in_session(engine, fetch, query, id_, before=before, size=500)

        yield from page.rows

        if page.older is None:
            return

        before = page.older
