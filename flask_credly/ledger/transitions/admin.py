"""What a person decides: try once more, revoke, correct, issue again, release."""

from __future__ import annotations

import datetime as dt
import typing as t

import sqlalchemy as sa

from ...models import Issuance
from ...models import Mapping
from ...models import Template
from ..conditions import AWAITS_APPROVAL
from ..conditions import AWAITS_RELEASE
from ..conditions import Condition
from ..conditions import HAS_BADGE
from ..conditions import IS_MAPPED
from ..conditions import ROWS
from . import at_rest
from . import by_ids
from . import UNTRIED
from . import update
from .host import NEW


def insert_test(connection: sa.Connection, **values: t.Any) -> int:
    """Write the row of an admin's own try.

    :return: Its id.
    """
    row = NEW | values | {"test": True}
    added = connection.execute(sa.insert(Issuance).values(**row))
    assert added.inserted_primary_key is not None
    return t.cast(int, added.inserted_primary_key[0])


def open_cycle(connection: sa.Connection, **values: t.Any) -> int:
    """Write the row of a member's further badge for the same course.

    :return: Its id.
    """
    added = connection.execute(sa.insert(Issuance).values(**NEW | values))
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
    bulk: bool = False,
) -> int:
    """Let rows that are at rest be issued, with two attempts from now on. Where a
    request was made before, Credly is asked first whether the badge is there.

    :param due_at: When.
    :param keep: Whether to go on as before, and not from the beginning.
    :param bulk: Whether they give way to completions that come in, from now on.
    :return: How many.
    """
    values = _from_the_beginning(due_at)

    if bulk:
        values.append((Issuance.bulk, True))

    if keep:
        values = [each for each in values if each[0].key not in _PROGRESS]

    return connection.execute(
        update(*these, _IS_AT_REST, Issuance.erased_at.is_(None)).ordered_values(
            *values
        )
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
        update(ROWS.c.id == sa.bindparam("row"), *these).ordered_values(
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
        update(*these, sa.exists().where(IS_MAPPED)).values(
            template_id=mapped(Template.id.expression),
            badge_name=mapped(Template.name.expression),
            options=mapped(Mapping.options.expression),
            duplicate=False,
        )
    )


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
        update(*these, HAS_BADGE, Issuance.action.is_(None)).values(
            action="revoke",
            due_at=due_at,
            revocation_reason=reason,
            tell=tell,
            **UNTRIED,
            **more,
        )
    ).rowcount


def release_withdrawn(
    connection: sa.Connection, now: dt.datetime, *these: Condition
) -> int:
    """Let badges be revoked whose completion was withdrawn, with two attempts.

    :return: How many.
    """
    return connection.execute(
        update(*these, sa.or_(AWAITS_RELEASE, AWAITS_APPROVAL)).values(
            due_at=now, **UNTRIED
        )
    ).rowcount


def hold_withdrawn(connection: sa.Connection, *these: Condition) -> int:
    """Let a person decide about badges whose completion was withdrawn.

    :return: How many.
    """
    return connection.execute(
        update(*these, AWAITS_RELEASE).values(reason="awaits approval")
    ).rowcount


def keep_withdrawn(connection: sa.Connection, *these: Condition) -> int:
    """Leave badges as they are whose completion was withdrawn.

    :return: How many.
    """
    return connection.execute(
        update(*these, sa.or_(AWAITS_RELEASE, AWAITS_APPROVAL)).values(
            **at_rest(), revocation_reason=None, tell=None
        )
    ).rowcount


def end_withdrawals(connection: sa.Connection, *these: Condition) -> None:
    """Let the withdrawals that rows are marked with concern no later completion."""
    connection.execute(update(*these).values(withdrawn_at=Issuance.completed_at))


def pass_withdrawal_on(connection: sa.Connection, *this: Condition) -> None:
    """Note that a row's withdrawal is of a later completion. Its badge is kept if
    nobody has begun to revoke it; otherwise it stays withdrawn.
    """
    if keep_withdrawn(connection, *this):
        connection.execute(update(*this).values(withdrawn_at=None))
    else:
        end_withdrawals(connection, *this)


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
    renews = mapped.where(Mapping.again == "renew")
    return sum(
        connection.execute(
            update(*each).values(due_at=now, reason=None, renewal=renews)
        ).rowcount
        for each in by_ids(connection, *these, mapped.where(let_go))
    )
