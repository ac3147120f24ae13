"""Every change of an issuance: nothing else writes to that table.

What is true of a badge is its state; what is being done about it, its action. A row
with an action is due at some time and may be leased; one without is at rest. Each
function is one step of the way between, within the caller's transaction, for rows of
one tenant: the caller says which, and the step says from where it may be taken.

There is a module for each who takes such steps: :mod:`.host` for what the host says,
:mod:`.admin` for what a person decides, :mod:`.worker` for what a worker does,
:mod:`.lifecycle` for what Credly says of a badge, :mod:`.repair` for what a comparison
puts right, and :mod:`.removal` for what ends, redacts and deletes. Here is what more
than one of them writes.
"""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import typing as t

import sqlalchemy as sa
from sqlalchemy.sql import operators

from ...tables import Action
from ...tables import ATTEMPT
from ...tables import IssuanceState
from ...tables import Reason
from ..conditions import Condition
from ..conditions import IS_OPEN
from ..conditions import ROWS


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


def at_rest() -> dict[str, object]:
    """What is written where nothing more is to be done, and the state stays."""
    return {"action": None, "lease": None, "due_at": None, "reason": None}


def waits(due_at: dt.datetime, action: Action = "issue") -> dict[str, object]:
    """What is written where a row waits for a further try."""
    return {"action": action, "lease": None, "due_at": due_at}


BY_ID = {name: "FORCE INDEX (PRIMARY)" for name in ("mysql", "mariadb")}
"""Have rows found by their ids alone: these databases would read all of a small table
instead, and wait for completions that the host has not committed.
"""


def update(*these: Condition) -> sa.Update:
    """Change rows."""
    statement = sa.update(ROWS).where(*these)

    if any(_names_ids(each) for each in these):
        for dialect, hint in BY_ID.items():
            statement = statement.with_hint(hint, dialect_name=dialect)

    return statement


def _names_ids(condition: Condition) -> bool:
    return (
        isinstance(condition, sa.BinaryExpression)
        and condition.operator is operators.in_op
        and condition.left.shares_lineage(ROWS.c.id)
        and isinstance(condition.right, sa.BindParameter)
    )


def by_ids(
    connection: sa.Connection, *these: Condition
) -> cabc.Iterator[tuple[Condition, ...]]:
    """Read which rows these are, and name them by their ids, some at a time: what is
    changed is found by no index in which a completion stands that the host has not
    committed (see :data:`BY_ID`).
    """
    ids = connection.scalars(sa.select(ROWS.c.id).where(*these)).all()

    for first in range(0, len(ids), 500):
        yield (ROWS.c.id.in_(ids[first : first + 500]), *these)


UNTRIED: dict[str, t.Any] = {
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


def end(
    connection: sa.Connection,
    state: IssuanceState,
    now: dt.datetime,
    *these: Condition,
    reason: Reason | None = None,
    error: str | None = None,
    keep_lease: bool = False,
) -> int:
    """End what is open about rows, without a request.

    :param keep_lease: Whether a worker that has one may still write down what came of
        it.
    :return: How many.
    """
    values: dict[str, t.Any] = settled(
        state, now, reason=reason, error=error and error[:500]
    )

    if keep_lease:
        del values["lease"]

    # One that was to be revoked is still there, since when it was.
    stays = ROWS.c.action == "revoke"

    for name in ("state", "settled_at"):
        column = ROWS.c[name]
        value = sa.literal(values[name], column.type)
        values[name] = sa.case((stays, column), else_=value)

    # In this order: MariaDB would look at the new action.
    ordered = sorted(values.items(), key=lambda each: each[0] == "action")
    return connection.execute(
        update(*these, IS_OPEN).ordered_values(
            *((ROWS.c[name], value) for name, value in ordered)
        )
    ).rowcount


def end_attempts(
    connection: sa.Connection,
    tenant: str,
    ids: cabc.Collection[int] | sa.Select[int],
    now: dt.datetime,
    answer: str,
) -> None:
    """End the attempts of some rows that have no answer yet.

    :param answer: As in :attr:`.Attempt.answer`.
    """
    connection.execute(
        sa.update(ATTEMPT)
        .where(
            ATTEMPT.c.tenant == tenant,
            ATTEMPT.c.issuance_id.in_(ids),
            ATTEMPT.c.finished_at.is_(None),
        )
        .values(finished_at=now, answer=answer)
    )
