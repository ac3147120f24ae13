"""Retries all that failed: a few at once, many portion by portion by a worker."""

from __future__ import annotations

import typing as t

import sqlalchemy as sa

from ..models import Batch
from ..models import Issuance
from . import audit
from . import clock
from . import gates
from . import issuances
from . import runs
from .conditions import Condition
from .paging import Session
from .runs import Run
from .runs import Step
from .transaction import in_transaction

PORTION = 2000
"""Badges of one transaction. More than so many are left to a worker."""


class Retried(t.NamedTuple):
    """What was begun."""

    number: int
    """Badges that are due now."""

    run_id: int | None
    """The run that a worker goes on with. ``None``: all was done."""


@in_transaction
def retry_all(
    connection: sa.Connection,
    tenant: str,
    *,
    number: int | None = None,
    by: str | None = None,
) -> Retried:
    """Make all badges due once more that failed, or were not mapped when their turn
    came: see :func:`.issuances.make_due`.

    :param number: How many the admin was told of, for the audit trail. ``None``: they
        are counted.
    :param by: Who does it, for :func:`.audit.note`.
    """
    # The lock keeps two clicks from beginning two, and Remove away.
    if not gates.lock(connection, tenant):
        return Retried(0, None)

    if (going_on := connection.scalar(_going_on(tenant, Batch.id))) is not None:
        return Retried(0, going_on)

    now = clock.now(connection)
    these = issuances.to_retry(tenant)
    ids = connection.scalars(
        sa.select(Issuance.id).where(*these).order_by(Issuance.id).limit(PORTION + 1)
    ).all()

    if len(ids) <= PORTION:
        due = issuances.make_due(connection, Issuance.id.in_(ids), *these, now=now)

        if due:
            audit.note(connection, tenant, by, "retry all", str(due))

        return Retried(due, None)

    if number is None:
        number = connection.scalar(
            sa.select(sa.func.count()).select_from(Issuance).where(*these)
        )

    run_id = runs.begin(
        connection,
        now,
        tenant=tenant,
        verb="retry",
        state="retrying",
        reached=ids[0] - 1,
        last_id=connection.scalar(
            sa.select(sa.func.max(Issuance.id)).where(Issuance.tenant == tenant)
        ),
        number=number,
    )
    audit.note(connection, tenant, by, "retry all", str(number))
    return Retried(0, run_id)


def _going_on(tenant: str, *columns: t.Any) -> sa.Select[t.Any]:
    return sa.select(*columns).where(
        Batch.tenant == tenant, Batch.verb == "retry", Batch.state == "retrying"
    )


def going_on(session: Session, tenant: str) -> Batch | None:
    """Get the run that is not over yet, if there is one."""
    return session.scalars(_going_on(tenant, Batch)).first()


@in_transaction
def step(connection: sa.Connection, run: Run) -> Step:
    """Do one portion of a run."""
    now = clock.now(connection)

    if not runs.hold(connection, run, now):
        return "over"

    columns = (Batch.started_at, Batch.reached, Batch.last_id)
    batch = connection.execute(sa.select(*columns).where(*runs.held(run))).one()
    # Each is tried once, also where it fails again meanwhile.
    these: tuple[Condition, ...] = (
        *issuances.to_retry(run.tenant),
        sa.or_(Issuance.settled_at.is_(None), Issuance.settled_at <= batch.started_at),
    )
    ids = connection.scalars(
        sa.select(Issuance.id)
        .where(*these, Issuance.id > batch.reached, Issuance.id <= batch.last_id)
        .order_by(Issuance.id)
        .limit(PORTION)
    ).all()
    due = issuances.make_due(
        connection, Issuance.id.in_(ids), *these, now=now, bulk=True
    )
    connection.execute(
        sa.update(Batch)
        .where(*runs.held(run))
        .values(
            completed=Batch.completed + due,
            reached=ids[-1] if ids else batch.last_id,
        )
    )

    if len(ids) == PORTION:
        return "more"

    runs.end(connection, *runs.held(run), state="retried")
    return "over"


@in_transaction
def stop(
    connection: sa.Connection, tenant: str, run_id: int, *, by: str | None = None
) -> bool:
    """Retry no more of them. What is queued stays so.

    :param by: Who does it, for :func:`.audit.note`.
    :return: Whether it was not over yet.
    """
    this = (*runs.this(tenant, run_id, "retry"), Batch.state == "retrying")
    stopped = runs.end(connection, *this, state="stopped")

    if stopped:
        audit.note(connection, tenant, by, "stop retry")

    return stopped
