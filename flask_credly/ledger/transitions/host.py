"""What the host says: a completion is recorded, taken up again or withdrawn."""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import functools
import typing as t

import sqlalchemy as sa

from ...tables import Reason
from ..conditions import Condition
from ..conditions import HAS_BADGE
from ..conditions import KEY
from ..conditions import ROWS
from . import update

ANY_WRITE = sa.insert(ROWS)
"""Stands for any of them where it is asked which database it would go to."""

NEW: dict[str, str | int] = {
    "state": "none",
    "action": "issue",
    "attempts": 0,
    "outcome_unknown": False,
    "duplicate": False,
    "crashes": 0,
    "look_ups": 0,
    "test": False,
    "bulk": False,
    "cycle": 1,
}
"""How a row begins, besides what it is about."""

# Written into the statement: each parameter costs a host's request something.
_WAS_CANCELLED = sa.and_(
    ROWS.c.state == sa.literal_column("'cancelled'"),
    ROWS.c.erased_at.is_(None),
    ROWS.c.reason.is_distinct_from(sa.literal_column("'dropped'")),
)


def _may_return(completed_at: t.Any) -> Condition:
    """Whether a row is taken up by the same member's next completion of the course.
    What an admin took back is not, and what was withdrawn is by a later one alone.
    """
    return sa.and_(
        _WAS_CANCELLED,
        sa.or_(ROWS.c.withdrawn_at.is_(None), ROWS.c.withdrawn_at < completed_at),
    )


def is_in_the_way(completed_at: t.Any) -> Condition:
    """Whether a completion adds nothing to a row."""
    return sa.not_(_may_return(completed_at))


IS_IN_THE_WAY = sa.not_(_WAS_CANCELLED)
"""The same, where it is known that none was withdrawn since."""


def _returned(given: t.Any) -> dict[str, t.Any]:
    """Say what becomes of such a row, in an order that suits MariaDB: that looks at
    the new values.

    :param given: The columns of the row that is not inserted.
    """
    same = (
        *("email", "first_name", "last_name", "recorded_at", "due_at", "bulk"),
        *("options", "extras", "completion_id"),
    )
    row = ROWS.c
    return {
        **{name: given[name] for name in same},
        # The time of the completion stays, but of one that was withdrawn.
        "completed_at": sa.case(
            (row.withdrawn_at.is_not(None), given.completed_at),
            else_=row.completed_at,
        ),
        # As after a retry.
        "outcome_unknown": sa.or_(
            row.outcome_unknown, row.attempts > sa.literal_column("0")
        ),
        "attempts": given.attempts,
        "crashes": given.crashes,
        "look_ups": given.look_ups,
        "settled_at": sa.null(),
        "error": sa.null(),
        "reason": sa.null(),
        "revocation_reason": sa.null(),
        "tell": sa.null(),
        "withdrawn_at": sa.null(),
        # Its backfill was stopped, or taken back: this one is not.
        "batch_id": sa.null(),
        "action": given.action,
        "state": given.state,
    }


@functools.cache
def insert_or_return() -> sa.Insert:
    """Insert a row on MariaDB and MySQL, or take up what may return."""
    statement = _insert("mysql")
    changes = _returned(statement.inserted)
    may_return = _may_return(statement.inserted.completed_at)
    statement = statement.on_duplicate_key_update(
        [
            (name, sa.func.if_(may_return, value, ROWS.c[name]))
            for name, value in changes.items()
        ]
    )
    return t.cast(sa.Insert, statement)


def insert_from(
    dialect: str, columns: cabc.Sequence[str], select: sa.Select[t.Any]
) -> sa.Insert:
    """Insert what is selected on SQLite and PostgreSQL, or take up what may return."""
    statement = _insert(dialect).from_select(list(columns), select)
    return t.cast(
        sa.Insert,
        statement.on_conflict_do_update(
            index_elements=(*KEY, "organization_id", "cycle"),
            set_=_returned(statement.excluded),
            where=_may_return(statement.excluded.completed_at),
        ),
    )


def insert_new(connection: sa.Connection, rows: list[dict[str, t.Any]]) -> None:
    """Write many rows, but for those that are there already."""
    statement = _unless_there(connection.dialect.name)
    connection.execute(statement, [NEW | row for row in rows])


@functools.cache
def _unless_there(dialect: str) -> sa.Insert:
    statement = _insert(dialect)

    if dialect in ("sqlite", "postgresql"):
        return t.cast(sa.Insert, statement.on_conflict_do_nothing())

    # Not IGNORE: that would hide every other error too.
    return t.cast(sa.Insert, statement.on_duplicate_key_update(id=ROWS.c.id))


def _insert(dialect: str) -> t.Any:
    """Begin an INSERT that says what becomes of rows that are there."""
    if dialect == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(ROWS)

    # How many rows it was is not kept otherwise.
    if dialect == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(ROWS).execution_options(preserve_rowcount=True)

    from sqlalchemy.dialects import mysql

    return mysql.insert(ROWS).execution_options(preserve_rowcount=True)


_IS_QUIET = sa.and_(
    ROWS.c.state.in_(("none", "failed")),
    ROWS.c.lease.is_(None),
    ROWS.c.outcome_unknown.is_(False),
)
"""No request about the row is under way, and none may have issued its badge."""

_ENDS = sa.or_(_IS_QUIET, ROWS.c.state == "cancelled")


_IS_REVOKED_ANYWAY = sa.and_(ROWS.c.state == "issued", ROWS.c.action == "revoke")
"""An admin has its badge revoked, or an earlier withdrawal does."""


def withdraw(
    connection: sa.Connection,
    *these: Condition,
    at: dt.datetime,
    now: t.Any,
    tell: t.Any,
) -> int:
    """Note that the completions of rows were withdrawn, unless they are later.

    What was not sent is cancelled. What is on its way is marked: it is cancelled before
    a further request, or revoked once it was issued. Of what was issued, the revocation
    waits to be released. One that is revoked already is marked, in case that fails.

    :param at: When they were withdrawn.
    :param tell: Whether Credly is to tell the members of a revocation. Null: badges are
        not revoked.
    :return: How many.
    """
    revokes = tell.is_not(None)
    is_issued = sa.and_(ROWS.c.state == "issued", ROWS.c.action.is_(None))
    to_revoke = sa.and_(revokes, sa.not_(_ENDS))
    values: list[tuple[t.Any, t.Any]] = [
        (
            ROWS.c.revocation_reason,
            sa.case(
                (_IS_REVOKED_ANYWAY, ROWS.c.revocation_reason),
                (to_revoke, WITHDRAWN),
                else_=sa.null(),
            ),
        ),
        (
            ROWS.c.tell,
            sa.case(
                (_IS_REVOKED_ANYWAY, ROWS.c.tell),
                (to_revoke, tell),
                else_=sa.null(),
            ),
        ),
        (ROWS.c.settled_at, sa.case((_IS_QUIET, now), else_=ROWS.c.settled_at)),
        (ROWS.c.error, sa.case((_ENDS, sa.null()), else_=ROWS.c.error)),
        (
            ROWS.c.due_at,
            sa.case((sa.or_(_ENDS, is_issued), sa.null()), else_=ROWS.c.due_at),
        ),
        (ROWS.c.withdrawn_at, at),
        (
            ROWS.c.reason,
            sa.case(
                (ROWS.c.reason.in_(("dropped", WITHDRAWN_FIRST)), ROWS.c.reason),
                (sa.or_(_ENDS, is_issued), "withdrawn"),
                else_=ROWS.c.reason,
            ),
        ),
        (
            ROWS.c.action,
            sa.case((_ENDS, sa.null()), (is_issued, "revoke"), else_=ROWS.c.action),
        ),
        # Last: MariaDB would look at the new one.
        (ROWS.c.state, sa.case((_ENDS, "cancelled"), else_=ROWS.c.state)),
    ]
    return connection.execute(
        update(
            *these,
            ROWS.c.completed_at <= at,
            sa.or_(ROWS.c.withdrawn_at.is_(None), ROWS.c.withdrawn_at < at),
            ROWS.c.erased_at.is_(None),
            ROWS.c.test.is_(False),
            sa.or_(
                ROWS.c.state.in_(("none", "failed", "cancelled")),
                sa.and_(
                    HAS_BADGE,
                    sa.or_(ROWS.c.action.is_(None), _IS_REVOKED_ANYWAY),
                    revokes,
                ),
            ),
        ).ordered_values(*values)
    ).rowcount


WITHDRAWN = "The completion was withdrawn."
"""Why such a badge is revoked, as Credly is told."""


WITHDRAWN_FIRST: Reason = "withdrawn first"


def note_withdrawn(
    connection: sa.Connection, row: sa.Select[t.Any] | dict[str, t.Any]
) -> int:
    """Let a row wait for a completion that was withdrawn before it came in. Only one
    that is later than the withdrawal is issued: see :func:`insert_from`.

    :param row: What is known of it; on SQLite and PostgreSQL, selected.
    :return: How many were written. MariaDB and MySQL count one that is there, too.
    """
    same: dict[str, t.Any] = {
        **NEW,
        **{name: "" for name in ("email", "first_name", "last_name")},
        "state": "cancelled",
        "action": None,
        "reason": WITHDRAWN_FIRST,
    }
    statement: t.Any = _unless_there(connection.dialect.name)

    if isinstance(row, dict):
        return connection.execute(statement, [same | row]).rowcount

    names = [*row.selected_columns.keys(), *same]
    row = row.add_columns(
        *(sa.literal(value, ROWS.c[name].type) for name, value in same.items())
    )
    statement = statement.from_select(names, row)
    return connection.execute(
        statement.execution_options(preserve_rowcount=True)
    ).rowcount
