"""Counts the completions that could not be recorded, until they have been dealt with.

A number and a time, and nothing of a member or a course.
"""

from __future__ import annotations

import dataclasses
import datetime as dt

import sqlalchemy as sa
from sqlalchemy import orm

from ..tables import UNRECORDED
from .transaction import in_transaction


@dataclasses.dataclass(frozen=True)
class Count:
    """Completions that could not be recorded.

    :param since: When the first of them came in. ``None``: there are none.
    """

    number: int = 0
    since: dt.datetime | None = None

    def __add__(self, other: Count) -> Count:
        times = [each.since for each in (self, other) if each.since is not None]
        return Count(self.number + other.number, min(times, default=None))


def read(session: orm.Session, tenant: str) -> Count:
    """Get what the database counts of a community."""
    found = session.execute(
        sa.select(UNRECORDED.c.number, UNRECORDED.c.since).where(
            UNRECORDED.c.tenant == tenant
        )
    ).one_or_none()
    return Count(*found) if found is not None and found.number else Count()


def add(engine: sa.Engine, tenant: str, count: Count) -> None:
    """Add to what the database counts."""
    try:
        _add(engine, tenant, count)
    except sa.exc.IntegrityError:
        # Another process has made the row at this moment.
        _add(engine, tenant, count)


@in_transaction
def _add(connection: sa.Connection, tenant: str, count: Count) -> None:
    since = sa.bindparam("new_since", count.since, type_=UNRECORDED.c.since.type)
    changed = connection.execute(
        sa.update(UNRECORDED)
        .where(UNRECORDED.c.tenant == tenant)
        .values(
            number=UNRECORDED.c.number + count.number,
            since=sa.case(
                (UNRECORDED.c.since < since, UNRECORDED.c.since), else_=since
            ),
        )
    ).rowcount

    if not changed:
        connection.execute(
            sa.insert(UNRECORDED).values(
                tenant=tenant, number=count.number, since=count.since
            )
        )


@in_transaction
def settle(connection: sa.Connection, tenant: str, number: int) -> None:
    """Take off what was dealt with. What has come in meanwhile stays."""
    _settle(connection, tenant, number)


@in_transaction
def dismiss(connection: sa.Connection, tenant: str, number: int, *, by: str) -> None:
    """Take off what a person has dealt with.

    :param by: Who does it, for :func:`.audit.note`.
    """
    from . import audit

    if _settle(connection, tenant, number):
        audit.note(connection, tenant, by, "dismiss", str(number))


def _settle(connection: sa.Connection, tenant: str, number: int) -> bool:
    if not number:
        return False

    left = UNRECORDED.c.number > number
    since = sa.case((left, UNRECORDED.c.since), else_=sa.null())
    # In this order: MariaDB would look at the new number.
    return bool(
        connection.execute(
            sa.update(UNRECORDED)
            .where(UNRECORDED.c.tenant == tenant, UNRECORDED.c.number > 0)
            .ordered_values(
                (UNRECORDED.c.since, since),
                (
                    UNRECORDED.c.number,
                    sa.case((left, UNRECORDED.c.number - number), else_=0),
                ),
            )
        ).rowcount
    )
