"""Whose a badge's row is and how it stands, as conditions of a query."""

from __future__ import annotations

import datetime as dt
import typing as t

import sqlalchemy as sa

from ..tables import Action
from ..tables import ISSUANCE
from ..tables import MAPPING

ROWS = ISSUANCE

Condition = sa.ColumnElement[bool]

KEY = ("tenant", "member_id", "kind", "course_id")
"""With the organization and the cycle: what a row is about."""

SAME_COURSE = (*KEY, "organization_id")
"""What a row has in common with the member's further ones for the course."""


def is_of(tenant: str, table: sa.FromClause = ROWS) -> Condition:
    """Whose a row is, where it is found by its id or its lease.

    Not by the column alone: SQLite would read all rows of the community by one of its
    indexes, and not the few that are named.
    """
    return sa.func.coalesce(table.c.tenant, "") == tenant


def owns(tenant: str, lease: str) -> tuple[Condition, ...]:
    """Whether a worker still has a row. After Remove it keeps its lease, so that the
    worker can still write down that the badge was issued, but is no longer sent.
    """
    return (is_of(tenant), ROWS.c.lease == lease, IS_OPEN)


ACTIONS: tuple[Action, ...] = ("issue", "replace", "revoke", "check")
"""What a worker can do about a row, in the order in which it is done."""

IS_OPEN = ROWS.c.action.is_not(None)
"""Something is to be done about it."""

IS_SENDING = sa.and_(IS_OPEN, ROWS.c.lease.is_not(None))
"""A worker has it."""

NEVER_SENT = sa.and_(
    # One by one, so that it can stand in a statement that is executed for many rows.
    ROWS.c.state.in_([sa.literal(each) for each in ("none", "failed", "cancelled")]),
    ROWS.c.attempts == 0,
    ROWS.c.outcome_unknown.is_(False),
)
"""Whether Credly cannot have seen a request for a row."""

HAS_BADGE = sa.and_(
    ROWS.c.state == "issued",
    ROWS.c.badge_id.is_not(None),
    ROWS.c.erased_at.is_(None),
)
"""A badge of ours was issued, and neither revoked nor replaced as far as we know."""

IS_MAPPED = sa.and_(
    MAPPING.c.tenant == ROWS.c.tenant,
    MAPPING.c.kind == ROWS.c.kind,
    MAPPING.c.course_id == ROWS.c.course_id,
)
"""Joins a row with the mapping of its course."""

AWAITS_REVOCATION = sa.and_(IS_OPEN, ROWS.c.reason == "awaits revocation")

AWAITS_RELEASE = sa.and_(
    ROWS.c.action == "revoke",
    ROWS.c.due_at.is_(None),
    ROWS.c.reason == "withdrawn",
)
"""A badge whose completion was withdrawn, and which nobody has looked at since."""

AWAITS_APPROVAL = sa.and_(
    ROWS.c.action == "revoke",
    ROWS.c.due_at.is_(None),
    ROWS.c.reason == "awaits approval",
)
"""One of many of them: a person decides."""


def same_course(one: t.Any, other: t.Any) -> tuple[Condition, ...]:
    """Whether two rows are of the same member and course.

    :param one: A model, or its columns.
    :param other: The same, or a row.
    """
    return tuple(getattr(one, name) == getattr(other, name) for name in SAME_COURSE)


LATER = ROWS.alias().c
"""Another row's columns, see :func:`has_later`."""


def has_later(*where: Condition) -> Condition:
    """Whether the member has a later row for the same course, of those that are meant.

    :param where: Which, of :data:`LATER`.
    """
    later = (*same_course(LATER, ROWS.c), LATER.cycle > ROWS.c.cycle)
    return sa.exists().where(*later, *where)


EARLIER = ROWS.alias()

WITHDRAWN_AS_EARLIER = sa.and_(
    *same_course(EARLIER.c, ROWS.c),
    EARLIER.c.cycle < ROWS.c.cycle,
    EARLIER.c.withdrawn_at >= ROWS.c.completed_at,
)
"""Joins a row with an earlier one of the member's for the course that a withdrawal has
marked which is not older than the completion.
"""


def is_known_withdrawal(at: dt.datetime) -> Condition:
    """Whether a row's completion is one that was withdrawn before, with another of its
    badges: a message that comes twice does not take back what an admin has issued again
    since.
    """
    other = ROWS.alias().c
    return sa.exists().where(
        *same_course(other, ROWS.c),
        other.cycle < ROWS.c.cycle,
        # Not of one that is meant as well: SQLite may have written that before.
        other.state.in_(("revoked", "replaced")),
        other.withdrawn_at >= at,
    )
