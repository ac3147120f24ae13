"""Every change of an issuance: nothing else writes to that table.

What is true of a badge is its state; what is being done about it, its action. A row
with an action is due at some time and may be leased; one without is at rest. Each
function is one step of the way between, within the caller's transaction, for rows of
one tenant: the caller says which, and the step says from where it may be taken.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import functools
import typing as t

import sqlalchemy as sa
from sqlalchemy import orm

from ..models import Action
from ..models import BadgeState
from ..models import Issuance
from ..models import IssuanceState
from ..models import Mapping
from ..models import Reason
from ..models import Template

if t.TYPE_CHECKING:
    from ..credly import Badge

ROWS = t.cast(sa.Table, Issuance.__table__)

ANY_WRITE = sa.insert(ROWS)
"""Stands for any of them where it is asked which database it would go to."""

Condition = sa.ColumnElement[bool]

# Conditions.

IS_OPEN = Issuance.action.is_not(None)
"""Something is to be done about it."""

IS_SENDING = sa.and_(IS_OPEN, Issuance.lease.is_not(None))
"""A worker has it."""

NEVER_SENT = sa.and_(
    Issuance.state.in_(("none", "failed", "cancelled")),
    Issuance.attempts == 0,
    Issuance.outcome_unknown.is_(False),
)
"""Whether Credly cannot have seen a request for a row."""

IS_MAPPED = sa.and_(
    Mapping.tenant == Issuance.tenant,
    Mapping.kind == Issuance.kind,
    Mapping.course_id == Issuance.course_id,
)
"""Joins a row with the mapping of its course."""

NOBODY = {"email": "", "first_name": "", "last_name": ""}
"""Who a badge is for, once it is not said any more."""

NO_BADGE: dict[str, None] = dict.fromkeys(
    (
        *("badge_id", "badge_state", "badge_state_at", "badge_told", "checked_at"),
        *("accept_url", "page_url", "expires_at", "public", "replaced_by"),
        *("replaces", "revocation_reason", "tell", "missed_at", "missing_at"),
    )
)
"""What is known of a badge at Credly, once that is forgotten."""


def is_of(tenant: str) -> Condition:
    """Whose a row is, where it is found by its id or its lease.

    Not by the column alone: SQLite would read all rows of the community by one of its
    indexes, and not the few that are named.
    """
    return sa.func.coalesce(Issuance.tenant, "") == tenant


def owns(tenant: str, lease: str) -> tuple[Condition, ...]:
    """Whether a worker still has a row. After Remove it keeps its lease, so that the
    worker can still write down that the badge was issued, but is no longer sent.
    """
    return (is_of(tenant), Issuance.lease == lease, IS_OPEN)


# New rows, and those that are taken up again.

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

KEY = ("tenant", "member_id", "kind", "course_id")
"""With the organization and the cycle: what a row is about."""

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
        "action": given.action,
        "state": given.state,
    }


@functools.cache
def insert_or_return() -> sa.Insert:
    """Insert a row on MariaDB and MySQL, or take up what may return."""
    from sqlalchemy.dialects import mysql

    statement = mysql.insert(ROWS)
    changes = _returned(statement.inserted)
    may_return = _may_return(statement.inserted.completed_at)
    statement = statement.on_duplicate_key_update(
        [
            (name, sa.func.if_(may_return, value, ROWS.c[name]))
            for name, value in changes.items()
        ]
    )
    return statement.execution_options(preserve_rowcount=True)


def insert_from(
    dialect: str, columns: cabc.Sequence[str], select: sa.Select[t.Any]
) -> sa.Insert:
    """Insert what is selected on SQLite and PostgreSQL, or take up what may return."""
    statement: t.Any

    if dialect == "sqlite":
        from sqlalchemy.dialects import sqlite

        statement = sqlite.insert(ROWS)
    else:
        from sqlalchemy.dialects import postgresql

        # Of an INSERT it is not kept otherwise.
        statement = postgresql.insert(ROWS).execution_options(preserve_rowcount=True)

    statement = statement.from_select(list(columns), select)
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
    if dialect == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(ROWS).on_conflict_do_nothing()

    if dialect == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(ROWS).on_conflict_do_nothing()

    from sqlalchemy.dialects import mysql

    # Not IGNORE: that would hide every other error too.
    statement = mysql.insert(ROWS).on_duplicate_key_update(id=ROWS.c.id)
    return statement.execution_options(preserve_rowcount=True)


def insert_test(connection: sa.Connection, **values: t.Any) -> int:
    """Write the row of an admin's own try.

    :return: Its id.
    """
    row = NEW | values | {"test": True}
    added = connection.execute(sa.insert(Issuance).values(**row))
    assert added.inserted_primary_key is not None
    return t.cast(int, added.inserted_primary_key[0])


_FIRST_ACTION = sa.case((Issuance.replaces.is_not(None), "replace"), else_="issue")


def _from_the_beginning(due_at: t.Any) -> list[tuple[t.Any, t.Any]]:
    # In this order: MariaDB would look at the new values.
    return [
        (Issuance.due_at, due_at),
        (
            Issuance.outcome_unknown,
            sa.or_(Issuance.outcome_unknown, Issuance.attempts > 0),
        ),
        (Issuance.attempts, 0),
        (Issuance.duplicate, False),
        (Issuance.crashes, 0),
        (Issuance.look_ups, 0),
        # Who tries one that was cancelled for that reason knows of it.
        (
            Issuance.withdrawn_at,
            sa.case(
                (Issuance.state == "cancelled", sa.null()), else_=Issuance.withdrawn_at
            ),
        ),
        (Issuance.state, "none"),
        (Issuance.action, _FIRST_ACTION),
        (Issuance.settled_at, None),
        (Issuance.reason, None),
        (Issuance.error, None),
    ]


_PROGRESS = {"outcome_unknown", "attempts", "duplicate", "crashes", "look_ups"}
"""What says how far a row is."""

# What waits for its last look is nobody's.
_IS_AT_REST = sa.or_(
    Issuance.action.is_(None),
    sa.and_(Issuance.action == "check", Issuance.lease.is_(None)),
)


def reopen(
    connection: sa.Connection,
    *these: Condition,
    due_at: t.Any,
    keep: bool = False,
) -> int:
    """Let rows that are at rest be issued, with two attempts from now on. Where a
    request was made before, Credly is asked first whether the badge is there.

    :param due_at: When.
    :param keep: Whether to go on as before, and not from the beginning.
    :return: How many.
    """
    values = _from_the_beginning(due_at)

    if keep:
        values = [each for each in values if each[0].key not in _PROGRESS]

    return connection.execute(
        sa.update(Issuance)
        .where(*these, _IS_AT_REST, Issuance.erased_at.is_(None))
        .ordered_values(*values)
        .execution_options(synchronize_session=False)
    ).rowcount


def reopen_for_batch(
    connection: sa.Connection, rows: list[dict[str, t.Any]], *these: Condition
) -> None:
    """Let rows be issued that were cancelled, each with what a batch says of it now.

    :param rows: ``id``, ``due_at`` and the other columns to write.
    """
    names = [name for name in rows[0] if name != "id"]
    given: dict[str, t.Any] = {name: sa.bindparam(f"new_{name}") for name in names}
    beginning = _from_the_beginning(given.pop("due_at"))
    connection.execute(
        sa.update(ROWS)
        .where(ROWS.c.id == sa.bindparam("row"), *these)
        .ordered_values(
            *((column.expression, value) for column, value in beginning),
            *((ROWS.c[name], value) for name, value in given.items()),
        ),
        [
            {"row": row["id"], **{f"new_{name}": row[name] for name in names}}
            for row in rows
        ],
    )


def follow_mapping(connection: sa.Connection, *these: Condition) -> None:
    """Let rows become what their course is mapped to now."""

    def mapped(column: t.Any) -> sa.ScalarSelect[t.Any]:
        return (
            sa.select(column)
            .select_from(Mapping)
            .join(Mapping.template)
            .where(IS_MAPPED)
            .scalar_subquery()
        )

    connection.execute(
        sa.update(Issuance)
        .where(*these, sa.exists().where(IS_MAPPED))
        .values(
            template_id=mapped(Template.id.expression),
            badge_name=mapped(Template.name.expression),
            options=mapped(Mapping.options.expression),
            duplicate=False,
        )
        .execution_options(synchronize_session=False)
    )


# What an admin has done about a badge that was issued.

HAS_BADGE = sa.and_(
    Issuance.state == "issued",
    Issuance.badge_id.is_not(None),
    Issuance.erased_at.is_(None),
)
"""A badge of ours was issued, and neither revoked nor replaced as far as we know."""


def revoke(
    connection: sa.Connection,
    *these: Condition,
    reason: str,
    tell: bool,
    due_at: t.Any,
    **more: t.Any,
) -> int:
    """Let badges be revoked, with two attempts.

    :param reason: Why, in words that the member may read.
    :param tell: Whether Credly is to tell the member.
    :param more: Other columns.
    :return: How many.
    """
    return connection.execute(
        sa.update(Issuance)
        .where(*these, HAS_BADGE, Issuance.action.is_(None))
        .values(
            action="revoke",
            due_at=due_at,
            revocation_reason=reason,
            tell=tell,
            **_UNTRIED,
            **more,
        )
        .execution_options(synchronize_session=False)
    ).rowcount


_UNTRIED: dict[str, t.Any] = {
    "attempts": 0,
    "outcome_unknown": False,
    "unsettled_until": None,
    "duplicate": False,
    "crashes": 0,
    "look_ups": 0,
    "error": None,
    "reason": None,
}
"""What is written where an action begins that has nothing to do with the one before."""


# What the host says of a completion afterwards.

_IS_QUIET = sa.and_(
    Issuance.state.in_(("none", "failed")),
    Issuance.lease.is_(None),
    Issuance.outcome_unknown.is_(False),
)
"""No request about the row is under way, and none may have issued its badge."""

_ENDS = sa.or_(_IS_QUIET, Issuance.state == "cancelled")


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
    waits to be released.

    :param at: When they were withdrawn.
    :param tell: Whether Credly is to tell the members of a revocation. Null: badges are
        not revoked.
    :return: How many.
    """
    revokes = tell.is_not(None)
    is_issued = Issuance.state == "issued"
    to_revoke = sa.and_(revokes, sa.not_(_ENDS))
    values: list[tuple[t.Any, t.Any]] = [
        (
            Issuance.revocation_reason,
            sa.case((to_revoke, WITHDRAWN), else_=Issuance.revocation_reason),
        ),
        (Issuance.tell, sa.case((to_revoke, tell), else_=Issuance.tell)),
        (Issuance.settled_at, sa.case((_IS_QUIET, now), else_=Issuance.settled_at)),
        (Issuance.error, sa.case((_ENDS, sa.null()), else_=Issuance.error)),
        (
            Issuance.due_at,
            sa.case((sa.or_(_ENDS, is_issued), sa.null()), else_=Issuance.due_at),
        ),
        (Issuance.withdrawn_at, at),
        (
            Issuance.reason,
            sa.case(
                (Issuance.reason == "dropped", Issuance.reason),
                (sa.or_(_ENDS, is_issued), "withdrawn"),
                else_=Issuance.reason,
            ),
        ),
        (
            Issuance.action,
            sa.case((_ENDS, sa.null()), (is_issued, "revoke"), else_=Issuance.action),
        ),
        # Last: MariaDB would look at the new one.
        (Issuance.state, sa.case((_ENDS, "cancelled"), else_=Issuance.state)),
    ]
    return connection.execute(
        sa.update(Issuance)
        .where(
            *these,
            Issuance.completed_at <= at,
            sa.or_(Issuance.withdrawn_at.is_(None), Issuance.withdrawn_at < at),
            Issuance.erased_at.is_(None),
            Issuance.test.is_(False),
            sa.or_(
                Issuance.state.in_(("none", "failed", "cancelled")),
                sa.and_(HAS_BADGE, Issuance.action.is_(None), revokes),
            ),
        )
        .ordered_values(*values)
        .execution_options(synchronize_session=False)
    ).rowcount


WITHDRAWN = "The completion was withdrawn."
"""Why such a badge is revoked, as Credly is told."""


def is_meant_by_withdrawal() -> Condition:
    """Whether a row is of the member's last completion of the course. A correction is
    of the same completion as the badge that it replaces.
    """
    later = orm.aliased(Issuance)
    came_to_nothing = sa.or_(
        later.state == "cancelled",
        sa.and_(
            later.replaces.is_not(None),
            later.renewal.is_(False),
            later.state.in_(("none", "failed")),
        ),
    )
    return ~sa.exists().where(
        *(
            getattr(later, name) == getattr(Issuance, name)
            for name in (*KEY, "organization_id")
        ),
        later.cycle > Issuance.cycle,
        sa.or_(later.withdrawn_at.is_not(None), sa.not_(came_to_nothing)),
    )


_WAS_MARKED = sa.and_(
    ROWS.c.action.is_not(None),
    ROWS.c.withdrawn_at.is_not(None),
    ROWS.c.revocation_reason.is_not(None),
)

IF_WITHDRAWN: dict[str, t.Any] = {
    "action": sa.case((_WAS_MARKED, "revoke"), else_=sa.null()),
    "reason": sa.case((_WAS_MARKED, "withdrawn"), else_=sa.null()),
}
"""What is written besides where a badge was issued whose completion may have been
withdrawn meanwhile.
"""

AWAITS_RELEASE = sa.and_(
    Issuance.action == "revoke",
    Issuance.due_at.is_(None),
    Issuance.reason == "withdrawn",
)
"""A badge whose completion was withdrawn, and which nobody has looked at since."""

AWAITS_APPROVAL = sa.and_(
    Issuance.action == "revoke",
    Issuance.due_at.is_(None),
    Issuance.reason == "awaits approval",
)
"""One of many of them: a person decides."""


def release_withdrawn(
    connection: sa.Connection, now: dt.datetime, *these: Condition
) -> int:
    """Let badges be revoked whose completion was withdrawn, with two attempts.

    :return: How many.
    """
    return connection.execute(
        sa.update(Issuance)
        .where(*these, sa.or_(AWAITS_RELEASE, AWAITS_APPROVAL))
        .values(due_at=now, **_UNTRIED)
        .execution_options(synchronize_session=False)
    ).rowcount


def hold_withdrawn(connection: sa.Connection, *these: Condition) -> int:
    """Let a person decide about badges whose completion was withdrawn.

    :return: How many.
    """
    return connection.execute(
        sa.update(Issuance)
        .where(*these, AWAITS_RELEASE)
        .values(reason="awaits approval")
        .execution_options(synchronize_session=False)
    ).rowcount


def keep_withdrawn(connection: sa.Connection, *these: Condition) -> int:
    """Leave badges as they are whose completion was withdrawn.

    :return: How many.
    """
    return connection.execute(
        sa.update(Issuance)
        .where(*these, AWAITS_APPROVAL)
        .values(**at_rest(), revocation_reason=None, tell=None)
        .execution_options(synchronize_session=False)
    ).rowcount


def open_cycle(connection: sa.Connection, **values: t.Any) -> int:
    """Write the row of a member's further badge for the same course.

    :return: Its id.
    """
    added = connection.execute(sa.insert(Issuance).values(**NEW | values))
    assert added.inserted_primary_key is not None
    return t.cast(int, added.inserted_primary_key[0])


def release_next(connection: sa.Connection, now: dt.datetime, *these: Condition) -> int:
    """Let rows be issued that have waited for the badge before them to be revoked."""
    return connection.execute(
        sa.update(Issuance)
        .where(*these, AWAITS_REVOCATION)
        .values(due_at=now, reason=None)
    ).rowcount


AWAITS_REVOCATION = sa.and_(IS_OPEN, Issuance.reason == "awaits revocation")


def supersede(
    connection: sa.Connection,
    new_id: str,
    now: dt.datetime,
    *these: Condition,
) -> None:
    """Note that badges were replaced by another.

    :param new_id: Credly's id of that.
    """
    connection.execute(
        sa.update(Issuance)
        .where(*these, Issuance.state == "issued")
        .values(
            state="replaced",
            settled_at=now,
            replaced_by=sa.func.coalesce(Issuance.replaced_by, new_id),
        )
    )


# In a worker's hands.


def aim(connection: sa.Connection, *these: Condition, replaces: str | None) -> None:
    """Say which badge a renewal replaces.

    :param replaces: Credly's id of it. ``None``: there is none, and it is issued.
    """
    action: Action = "issue" if replaces is None else "replace"
    connection.execute(
        sa.update(Issuance)
        .where(*these)
        .values(replaces=replaces, renewal=replaces is not None, action=action)
    )


def hold_back(connection: sa.Connection, *these: Condition) -> None:
    """Take rows back from a worker until their template allows duplicates."""
    connection.execute(
        sa.update(Issuance)
        .where(*these, IS_OPEN)
        .values(lease=None, due_at=None, reason="no duplicates")
    )


IS_HELD_BACK = sa.and_(
    Issuance.action == "issue",
    Issuance.due_at.is_(None),
    Issuance.reason == "no duplicates",
)


def release(connection: sa.Connection, tenant: str, now: dt.datetime) -> int:
    """Let go on what was held back, where its course is mapped to a template that
    allows duplicates, or its further completions replace the badge by now.

    :return: How many rows.
    """
    these = (Issuance.tenant == tenant, IS_HELD_BACK)
    mapped = sa.exists().where(
        IS_MAPPED, Template.tenant == tenant, Template.id == Mapping.template_id
    )
    let_go = sa.or_(Template.allows_duplicates, Mapping.again == "renew")
    return connection.execute(
        sa.update(Issuance)
        .where(*these, mapped.where(let_go))
        .values(due_at=now, reason=None, renewal=mapped.where(Mapping.again == "renew"))
        .execution_options(synchronize_session=False)
    ).rowcount


def lease_due(
    connection: sa.Connection,
    lease: str,
    until: dt.datetime,
    *these: Condition,
) -> int:
    """Give rows that are due to a worker. Who had them has died over them."""
    return connection.execute(
        sa.update(Issuance)
        .where(*these, IS_OPEN)
        # In this order: MariaDB would look at the new lease.
        .ordered_values(
            (
                Issuance.crashes,
                Issuance.crashes + sa.case((IS_SENDING, 1), else_=0),
            ),
            (Issuance.lease, lease),
            (Issuance.due_at, until),
        )
    ).rowcount


def uncount_attempts(
    connection: sa.Connection, tenant: str, ids: cabc.Collection[int]
) -> None:
    """Give rows an attempt back of which nothing is known."""
    connection.execute(
        sa.update(Issuance)
        .where(is_of(tenant), Issuance.id.in_(ids))
        .values(attempts=Issuance.attempts - 1)
    )


def renew(
    connection: sa.Connection,
    until: dt.datetime,
    *these: Condition,
    begin: dt.datetime | None = None,
) -> int:
    """Prolong the lease of rows.

    :param begin: Whether a request is about to be made, and by what time at most its
        badge is issued.
    """
    values: dict[str, t.Any] = {"due_at": until}

    if begin is not None:
        values |= {
            "attempts": Issuance.attempts + 1,
            "outcome_unknown": True,
            "unsettled_until": until,
            "issued_at": sa.case(
                (Issuance.issued_at.is_not(None), Issuance.issued_at),
                (
                    Issuance.completed_at > begin,
                    sa.literal(begin, Issuance.issued_at.type),
                ),
                else_=Issuance.completed_at,
            ),
        }

    this = sa.update(Issuance).where(*these)
    return connection.execute(this.values(**values)).rowcount


def requeue(
    connection: sa.Connection,
    due_at: t.Any,
    *these: Condition,
    outcome_unknown: bool,
) -> int:
    """Take rows back from a worker: it has sent nothing."""
    return connection.execute(
        sa.update(Issuance)
        .where(*these, IS_OPEN)
        .values(lease=None, due_at=due_at, outcome_unknown=outcome_unknown)
    ).rowcount


def name_member(
    connection: sa.Connection,
    *these: Condition,
    email: str,
    first_name: str,
    last_name: str,
    extras: dict[str, t.Any] | None,
) -> None:
    """Write down who the badge is for by now."""
    connection.execute(
        sa.update(Issuance)
        .where(*these)
        .values(email=email, first_name=first_name, last_name=last_name, extras=extras)
    )


# What Credly says of a badge.

_ORDER = {"pending": 0, "accepted": 1, "rejected": 2, "revoked": 3}


def follows(
    state: str,
    at: dt.datetime | None,
    known: str | None,
    known_at: dt.datetime | None,
) -> bool:
    """Whether what Credly says of a badge is later than what is known of it. Answers
    come in any order: whichever it is, they end in the same.

    Nothing follows a revocation, and nothing comes before it. A badge is pending until
    it is something else, and never again. Between being accepted and declined the
    later time counts: an earner may decline what was accepted. Where a time is missing,
    or both are the same, it is the order of a badge's life.
    """
    if known is None:
        return True

    if "revoked" in (state, known) or "pending" in (state, known):
        return _ORDER[state] > _ORDER[known]

    if at is not None and known_at is not None and at != known_at:
        return at > known_at

    return _ORDER[state] > _ORDER[known]


def said(badge: Badge, now: dt.datetime) -> dict[str, object]:
    """What is written of a badge that was just issued or found."""
    return {
        "badge_id": badge.id,
        "checked_at": now,
        **_of_badge(badge, badge.state, badge.state_at),
        "expires_at": badge.expires_at,
        "public": badge.public,
        "replaced_by": badge.replaced_by,
    }


def _of_badge(badge: Badge, state: str, at: dt.datetime | None) -> dict[str, object]:
    # An answer may show what is no longer so: one that was accepted is not accepted
    # once more, and one that was revoked has no page.
    return {
        "badge_state": state,
        "badge_state_at": at,
        "accept_url": badge.accept_url if state == "pending" else None,
        "page_url": badge.page_url if state in ("pending", "accepted") else None,
    }


@dataclasses.dataclass(frozen=True)
class Learned:
    """What a reading has come to.

    :param to_tell: Ids of rows whose badge has become something that the host was not
        told.
    :param changed: How many rows say something else than before.
    :param mismatched: How many badges are not of the row's badge template.
    """

    to_tell: tuple[int, ...] = ()
    changed: int = 0
    mismatched: int = 0


_LEARNING = (
    *("id", "badge_id", "state", "action", "template_id", "test", "badge_told"),
    *("badge_state", "badge_state_at", "checked_at", "accept_url", "page_url"),
    *("expires_at", "public", "replaced_by", "missed_at", "missing_at"),
)


def learn(
    connection: sa.Connection,
    tenant: str,
    organization_id: str,
    badges: cabc.Iterable[Badge],
    *,
    read_at: dt.datetime,
) -> Learned:
    """Write down what Credly says of badges, wherever it was read. Matched by the
    badge's id alone: what is not in the ledger is not ours.

    :param organization_id: The one that was asked.
    :param read_at: When the question was put. An answer to an earlier one than the last
        that was written changes nothing but the state.
    """
    by_id = {badge.id: badge for badge in badges}
    ours = sa.and_(
        ROWS.c.tenant == tenant,
        ROWS.c.organization_id == organization_id,
        ROWS.c.erased_at.is_(None),
    )
    same: list[int] = []
    to_tell: list[int] = []
    changed = mismatched = 0

    while by_id:
        rows = connection.execute(
            sa.select(*(ROWS.c[name] for name in _LEARNING))
            .where(ours, ROWS.c.badge_id.in_(by_id))
            .order_by(ROWS.c.id)
            .with_for_update()
        ).all()
        again: dict[str, Badge] = {}

        for row in rows:
            badge = by_id[row.badge_id]

            if badge.template_id not in (None, row.template_id):
                mismatched += 1
                continue

            values = _learned(row, badge, read_at)
            is_newer = row.checked_at is None or row.checked_at < read_at

            if values:
                if is_newer:
                    values["checked_at"] = read_at

                # SQLite knows no lock of a row: what was read may be gone.
                this = (ours, ROWS.c.id == row.id, *_as_read(row))

                if not connection.execute(
                    sa.update(ROWS).where(*this).values(**values)
                ).rowcount:
                    again[badge.id] = badge
                    continue

                changed += 1
            elif is_newer:
                same.append(row.id)

            state = values.get("badge_state", row.badge_state)

            if values.get("state", row.state) == "replaced":
                state = "replaced"

            if state != "pending" and state != row.badge_told and not row.test:
                to_tell.append(row.id)

        by_id = again

    if same:
        connection.execute(
            sa.update(ROWS)
            .where(ours, ROWS.c.id.in_(same), ROWS.c.badge_id.is_not(None))
            .values(checked_at=read_at)
        )

    return Learned(tuple(to_tell), changed, mismatched)


def _as_read(row: t.Any) -> cabc.Iterator[Condition]:
    """Whether nobody has written what Credly says of a row since it was read."""
    for name in ("badge_id", "badge_state", "badge_state_at", "checked_at"):
        yield ROWS.c[name].is_not_distinct_from(getattr(row, name))


def _learned(row: t.Any, badge: Badge, now: dt.datetime) -> dict[str, object]:
    """Get the columns of a row that a badge changes."""
    values: dict[str, object] = {}
    state, at = row.badge_state, row.badge_state_at

    if follows(badge.state, badge.state_at, state, at):
        state, at = badge.state, badge.state_at
    elif badge.state != state:
        return {}
    elif badge.state_at is not None and (at is None or badge.state_at > at):
        at = badge.state_at

    # What was read before may not show what is.
    if row.checked_at is None or row.checked_at <= now or state != row.badge_state:
        values = {
            "expires_at": badge.expires_at,
            "public": badge.public,
            "replaced_by": badge.replaced_by,
        }
        # Not all ways to read a badge say all of it.
        values = {name: new for name, new in values.items() if new is not None}
        links = _of_badge(badge, state, at)

        for name in ("accept_url", "page_url"):
            if links[name] is not None or state != row.badge_state:
                values[name] = links[name]

    values |= {"badge_state": state, "badge_state_at": at}

    if row.missed_at is not None and row.missed_at < now:
        values |= {"missed_at": None, "missing_at": None}

    ended = "replaced" if values.get("replaced_by") or row.replaced_by else None
    ended = "revoked" if state == "revoked" else ended

    if ended and row.state in ("issued", "held"):
        values["state"] = ended

        if row.action is None:
            values["settled_at"] = now

    return {
        name: new
        for name, new in values.items()
        if name == "settled_at" or new != getattr(row, name)
    }


MISSES_APART = dt.timedelta(minutes=10)
"""Between two answers that there is no such badge, before they are believed."""


def miss(
    connection: sa.Connection,
    tenant: str,
    organization_id: str,
    badge_id: str,
    *,
    read_at: dt.datetime,
) -> bool:
    """Note that Credly was asked for a badge by its id, and has none.

    :return: Whether that is believed: it has said so before.
    """
    this = sa.update(ROWS).where(
        ROWS.c.tenant == tenant,
        ROWS.c.organization_id == organization_id,
        ROWS.c.badge_id == badge_id,
        ROWS.c.erased_at.is_(None),
    )
    again = this.where(ROWS.c.missed_at <= read_at - MISSES_APART)
    missing_at = sa.func.coalesce(
        ROWS.c.missing_at, sa.literal(read_at, ROWS.c.missing_at.type)
    )

    if connection.execute(
        again.values(missing_at=missing_at, checked_at=read_at)
    ).rowcount:
        return True

    connection.execute(this.where(ROWS.c.missed_at.is_(None)).values(missed_at=read_at))
    return False


def told(
    connection: sa.Connection,
    tenant: str,
    row_id: int,
    state: BadgeState | t.Literal["replaced"],
) -> None:
    """Note that the host was told what has become of a badge."""
    column = Issuance.state if state == "replaced" else Issuance.badge_state
    connection.execute(
        sa.update(Issuance)
        .where(
            Issuance.tenant == tenant,
            Issuance.id == row_id,
            column == state,
        )
        .values(badge_told=state)
    )


def settled(state: IssuanceState, now: dt.datetime, **more: t.Any) -> dict[str, object]:
    """What is written where nothing more is to be done.

    :param more: Other columns.
    """
    return {
        "state": state,
        "action": None,
        "lease": None,
        "due_at": None,
        "settled_at": now,
        "reason": None,
        **more,
    }


def issued_anew(now: dt.datetime) -> dict[str, object]:
    """What is written where the badge that was to be replaced is in force no more, and
    a new one is issued.
    """
    return {**waits(now), **_UNTRIED, "replaces": None, "renewal": False}


def at_rest() -> dict[str, object]:
    """What is written where nothing more is to be done, and the state stays."""
    return {"action": None, "lease": None, "due_at": None, "reason": None}


def waits(due_at: dt.datetime, action: Action = "issue") -> dict[str, object]:
    """What is written where a row waits for a further try."""
    return {"action": action, "lease": None, "due_at": due_at}


def last_look(now: dt.datetime) -> dict[str, object]:
    """What is written besides where a badge is called failed that Credly may have
    issued and not list yet: it is looked for once more when its lists have had their
    time.
    """
    unsettled = ROWS.c.unsettled_until > now
    return {
        "action": sa.case((unsettled, "check")),
        "due_at": sa.case((unsettled, ROWS.c.unsettled_until)),
    }


def save(
    connection: sa.Connection,
    rows: list[dict[str, t.Any]],
    values: dict[str, object],
) -> int:
    """Write the same of several rows that a worker has, from :func:`settled` or
    :func:`waits`.

    :param rows: ``row_id``, ``held_tenant``, ``held_lease``; what is :func:`said` of
        its badge, if there is one.
    :return: How many were written.
    """
    this = sa.update(ROWS).where(
        ROWS.c.id == sa.bindparam("row_id"),
        ROWS.c.tenant == sa.bindparam("held_tenant"),
        ROWS.c.lease == sa.bindparam("held_lease"),
    )

    # What Remove has ended stays so, and no later error of it comes into the log of an
    # account made since.
    if values.get("state") in (None, "failed"):
        this = this.where(IS_OPEN)

    return connection.execute(this.values(values), rows).rowcount


def end(
    connection: sa.Connection,
    state: IssuanceState,
    now: dt.datetime,
    *these: Condition,
    reason: Reason | None = None,
    error: str | None = None,
) -> int:
    """End what is open about rows, without a request."""
    values = settled(state, now, reason=reason, error=error and error[:500])
    return _end(connection, values, *these)


def _end(connection: sa.Connection, values: dict[str, t.Any], *these: Condition) -> int:
    # One that was to be revoked is still there, since when it was.
    stays = Issuance.action == "revoke"

    for name in ("state", "settled_at"):
        column = getattr(Issuance, name)
        value = sa.literal(values[name], column.type)
        values[name] = sa.case((stays, column), else_=value)

    # In this order: MariaDB would look at the new action.
    ordered = sorted(values.items(), key=lambda each: each[0] == "action")
    return connection.execute(
        sa.update(Issuance)
        .where(*these, IS_OPEN)
        .ordered_values(*((getattr(Issuance, name), value) for name, value in ordered))
        .execution_options(synchronize_session=False)
    ).rowcount


# Remove, erase, forget.


def drop(connection: sa.Connection, *these: Condition) -> int:
    """Delete rows that Credly has never seen."""
    return connection.execute(sa.delete(Issuance).where(*these, NEVER_SENT)).rowcount


def abandon(connection: sa.Connection, tenant: str, now: dt.datetime) -> None:
    """End all that waits, as the integration is removed, and let no row name anybody.
    Those on their way keep their lease, so that the worker can write down what came of
    it.
    """
    of_tenant = Issuance.tenant == tenant
    values = settled("failed", now, reason="removed", error=None)
    del values["lease"]
    _end(connection, values, of_tenant)
    forget_names(connection, of_tenant)


IS_NAMED = sa.or_(
    *(getattr(Issuance, name) != "" for name in NOBODY), Issuance.extras.is_not(None)
)
"""Whether a row says who its badge is for."""


def forget_names(connection: sa.Connection, *these: Condition) -> int:
    """Let rows no longer say who their badge is for."""
    return connection.execute(
        sa.update(Issuance).where(*these, IS_NAMED).values(**NOBODY, extras=None)
    ).rowcount


def take_away(connection: sa.Connection, now: dt.datetime, *these: Condition) -> None:
    """Take rows away from whoever holds them, as they are about to name nobody."""
    connection.execute(
        sa.update(ROWS)
        .where(*these)
        .values(
            erased_at=now,
            lease=None,
            due_at=None,
            settled_at=sa.func.coalesce(ROWS.c.settled_at, now),
        )
    )


def erase(connection: sa.Connection, tenant: str, rows: list[dict[str, t.Any]]) -> None:
    """Let rows name nobody any more.

    :param rows: ``row_id``, the ``member_id`` from now on, ``state`` and ``reason``.
    """
    connection.execute(
        sa.update(ROWS)
        .where(ROWS.c.id == sa.bindparam("row_id"), ROWS.c.tenant == tenant)
        .values(
            **NOBODY,
            **NO_BADGE,
            **dict.fromkeys(("action", "error", "options", "extras", "completion_id")),
        ),
        rows,
    )
