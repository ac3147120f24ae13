"""Removes what an integration leaves behind, once its account is gone, portion by
portion: one portion by whoever removes the integration, more by a worker.

A row that has not had its turn may say that it waits, and nothing is done about it:
there is no account any more.
"""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import typing as t

import sqlalchemy as sa

from ..models import Attempt
from ..models import Batch
from ..models import BatchRow
from ..models import DifferenceRow
from ..models import Issuance
from ..models import LogEntry
from . import clock
from . import runs
from .conditions import ACTIONS
from .conditions import Condition
from .conditions import is_of
from .conditions import NEVER_SENT
from .paging import Session
from .runs import Run
from .runs import Step
from .transaction import in_transaction
from .transitions import removal

PORTION = 2000
"""Rows of one transaction. More than so many are left to a worker."""


class Removal(t.NamedTuple):
    """A removal that is going on.

    :param due_at: When a worker may take it up, if the one that has it goes silent.
    """

    tenant: str
    done: int
    number: int
    due_at: dt.datetime

    @property
    def percent(self) -> int:
        """How far it is: 100 only once it is over."""
        return min(99, 100 * self.done // max(1, self.number))


_GOING_ON = (Batch.verb == "remove", Batch.due_at.is_not(None))

_REMOVALS = sa.select(
    Batch.tenant, Batch.completed.label("done"), Batch.number, Batch.due_at
).where(*_GOING_ON)


def tenants() -> sa.Select[str]:
    """Select the communities of which a removal is not over yet."""
    return sa.select(Batch.tenant).where(*_GOING_ON)


def going_on(
    session: Session | sa.Connection, tenant: str, *, lock: bool = False
) -> Removal | None:
    """Get the removal of a community's integration that is not over yet.

    :param lock: Whether to see what was committed since the transaction began, on
        whichever database.
    """
    query = _REMOVALS.where(Batch.tenant == tenant)
    found = session.execute(query.with_for_update(read=True) if lock else query).first()
    return None if found is None else Removal(**found._mapping)


def all_going_on(session: Session | sa.Connection) -> list[Removal]:
    """Get the removals of all communities that are not over yet, by their names."""
    found = session.execute(_REMOVALS.order_by(Batch.tenant, Batch.id))
    return [Removal(**each._mapping) for each in found]


def begin(connection: sa.Connection, tenant: str, now: dt.datetime) -> Run | None:
    """End all runs of a community and begin the one that removes what there is of it.
    Its account is locked, and gone at the end of the transaction: no other can begin.

    :return: The run, if it is one portion, for whoever called. ``None``: it is a
        worker's.
    """
    # One that writes at this moment is waited for.
    is_due = sa.or_(Batch.due_at.is_not(None), Batch.lease.is_not(None))
    runs.end(connection, Batch.tenant == tenant, is_due, state="stopped")
    run_id = runs.begin(
        connection,
        now,
        tenant=tenant,
        verb="remove",
        state="removing",
        last_id=connection.scalar(
            sa.select(sa.func.max(Issuance.id)).where(Issuance.tenant == tenant)
        )
        or 0,
    )
    is_much = _is_much(connection, tenant)
    return (
        None if is_much else runs.take_in(connection, "remove", run_id, tenant=tenant)
    )


_DELETED: dict[t.Any, t.Any] = {
    LogEntry: LogEntry.id,
    BatchRow: BatchRow.issuance_id,
    DifferenceRow: DifferenceRow.id,
    Batch: Batch.id,
}
"""What is deleted, in this order, and by which column. Not left to cascades: SQLite has
them switched off by default.
"""


def _is_much(connection: sa.Connection, tenant: str) -> bool:
    parts = [
        sa.select(table.tenant).where(table.tenant == tenant).limit(PORTION + 1)
        for table in (Issuance, *_DELETED)
    ]
    some = sa.union_all(*(sa.select(part.subquery()) for part in parts)).subquery()
    return (connection.scalar(_count(some)) or 0) > PORTION


def _count(table: t.Any, *where: Condition) -> sa.Select[int]:
    return sa.select(sa.func.count()).select_from(table).where(*where)


@in_transaction
def step(connection: sa.Connection, run: Run) -> Step:
    """Remove one portion."""
    now = clock.now(connection)

    if not runs.hold(connection, run, now):
        return "over"

    columns = (Batch.completed, Batch.number, Batch.reached, Batch.last_id)
    batch = connection.execute(sa.select(*columns).where(*runs.held(run))).one()
    reached, left = batch.reached, PORTION

    if reached < batch.last_id:
        rows, reached = _following(connection, run.tenant, reached, batch.last_id)
        _end_issuances(connection, run.tenant, rows, now)
        left -= len(rows)

    # Nothing more is asked where there is more of that.
    if reached == batch.last_id:
        for table, column in _DELETED.items():
            if left:
                left -= _delete_some(connection, table, column, run, left)

        if left and (rows := _late(connection, run.tenant, batch.last_id, left)):
            _end_issuances(connection, run.tenant, rows, now)
            left = 0

        if left:
            # Its own row is the last that goes.
            connection.execute(sa.delete(Batch).where(*runs.held(run)))
            return "over"

    done = batch.completed + PORTION - left
    connection.execute(
        sa.update(Batch)
        .where(*runs.held(run))
        .values(
            completed=done,
            # Here, and not where somebody waits for the answer.
            number=batch.number or done + _count_left(connection, run.tenant, reached),
            reached=reached,
        )
    )
    return "more"


def _count_left(connection: sa.Connection, tenant: str, reached: int) -> int:
    counts = [_count(Issuance, Issuance.tenant == tenant, Issuance.id > reached)]
    counts += [_count(table, table.tenant == tenant) for table in _DELETED]
    return sum(connection.scalar(count) or 0 for count in counts)


_ROW = (Issuance.id, NEVER_SENT.label("never_sent"))

Rows = cabc.Sequence[sa.Row[int, bool]]


def _following(
    connection: sa.Connection, tenant: str, reached: int, last_id: int
) -> tuple[Rows, int]:
    """Get the next rows by their number, whatever is true of them by now: a worker may
    still write down what came of a request.

    :return: And up to which number these are all.
    """
    these = (Issuance.id > reached, Issuance.id <= last_id)
    rows = connection.execute(
        sa.select(*_ROW)
        .where(Issuance.tenant == tenant, *these)
        .order_by(Issuance.id)
        .limit(PORTION)
    ).all()
    return rows, rows[-1].id if len(rows) == PORTION else last_id


def _late(connection: sa.Connection, tenant: str, last_id: int, limit: int) -> Rows:
    """Get rows that a transaction of the host's has added or opened again, and that
    was committed after their turn.
    """
    is_new = sa.and_(Issuance.id > last_id, removal.IS_NAMED)
    return connection.execute(
        sa.select(*_ROW)
        .where(
            Issuance.tenant == tenant,
            # By name, for the index.
            sa.or_(Issuance.action.in_(ACTIONS), is_new),
        )
        .limit(limit)
    ).all()


def _end_issuances(
    connection: sa.Connection, tenant: str, rows: Rows, now: dt.datetime
) -> None:
    """Delete rows that Credly has never seen, and end and redact the others."""
    if never_sent := [row.id for row in rows if row.never_sent]:
        connection.execute(
            sa.delete(Attempt).where(
                Attempt.tenant == tenant, Attempt.issuance_id.in_(never_sent)
            )
        )
        removal.drop_each(connection, tenant, never_sent)

    # Also where one of them was sent in this moment.
    ids = [row.id for row in rows]
    removal.abandon(connection, tenant, ids, now)


def _delete_some(
    connection: sa.Connection, table: t.Any, column: t.Any, run: Run, limit: int
) -> int:
    these = [table.tenant == run.tenant]

    if table is Batch:
        these.append(Batch.id != run.id)

    ids = connection.scalars(sa.select(column).where(*these).limit(limit)).all()

    if ids:
        connection.execute(
            sa.delete(table).where(column.in_(ids), is_of(run.tenant, table.__table__))
        )

    return len(ids)
