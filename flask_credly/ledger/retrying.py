"""Retries all that failed, or what the removal of a mapping has cancelled and was
undone: a few at once, many portion by portion by a worker.
"""

from __future__ import annotations

import datetime as dt
import typing as t

import sqlalchemy as sa

from ..catalog import clean
from ..catalog import Course
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
from .transitions import admin

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

    going_on = _going_on(tenant, Batch.id).where(_IS_OF_ALL)

    if (run_id := connection.scalar(going_on)) is not None:
        return Retried(0, run_id)

    now = clock.now(connection)
    these = issuances.to_retry(tenant)
    ids = _first(connection, PORTION + 1, *these)

    if len(ids) <= PORTION:
        due = issuances.make_due(connection, Issuance.id.in_(ids), *these, now=now)

        if due:
            audit.note(connection, tenant, by, "retry all", str(due))

        return Retried(due, None)

    if number is None:
        number = _count(connection, *these)

    run_id = _begin(connection, tenant, now, reached=ids[0] - 1, number=number)
    audit.note(connection, tenant, by, "retry all", str(number))
    return Retried(0, run_id)


def _first(connection: sa.Connection, limit: int, *these: Condition) -> t.Sequence[int]:
    query = sa.select(Issuance.id).where(*these).order_by(Issuance.id)
    return connection.scalars(query.limit(limit)).all()


def _count(connection: sa.Connection, *these: Condition) -> int:
    count = sa.select(sa.func.count()).select_from(Issuance).where(*these)
    return connection.scalar(count) or 0


def _begin(
    connection: sa.Connection, tenant: str, now: dt.datetime, **values: t.Any
) -> int:
    last_id = sa.select(sa.func.max(Issuance.id)).where(Issuance.tenant == tenant)
    return runs.begin(
        connection,
        now,
        tenant=tenant,
        verb="retry",
        state="retrying",
        last_id=connection.scalar(last_id),
        **values,
    )


def bring_back(
    connection: sa.Connection,
    tenant: str,
    course: Course,
    removed_at: dt.datetime,
    now: dt.datetime,
) -> None:
    """Make badges due again that the removal of a course's mapping has cancelled, in
    the transaction that is open. The account is locked.

    :param removed_at: When it was removed.
    """
    # That removal may have ended a run which had not brought back all of another one.
    ended = sa.select(Batch.since).where(
        *_of(tenant, course.kind, course.id), Batch.until == removed_at
    )
    since = connection.scalar(ended) or removed_at
    these = _cancelled(tenant, course.kind, course.id, since)
    # From the newest: what waited is new, and MariaDB would read all others before.
    some = sa.select(Issuance.id).where(*these).order_by(Issuance.id.desc())
    ids = connection.scalars(some.limit(PORTION + 1)).all()

    if len(ids) <= PORTION:
        admin.reopen(connection, Issuance.id.in_(ids), *these, due_at=now, keep=True)
        return

    _begin(
        connection,
        tenant,
        now,
        kind=course.kind,
        course_id=course.id,
        course_title=clean(course.title, 500),
        since=since,
    )


def end_of_course(
    connection: sa.Connection, tenant: str, kind: str, course_id: str, now: dt.datetime
) -> None:
    """Bring no more badges of a course back: its mapping is gone once more, at this
    time.
    """
    these = (*_of(tenant, kind, course_id), Batch.state == "retrying")
    runs.end(connection, *these, state="stopped", until=now)


def _of(tenant: str, kind: str, course_id: str) -> tuple[Condition, ...]:
    return (
        Batch.tenant == tenant,
        Batch.verb == "retry",
        Batch.kind == kind,
        Batch.course_id == course_id,
    )


def _cancelled(
    tenant: str, kind: str, course_id: str, since: dt.datetime
) -> tuple[Condition, ...]:
    """Find what was cancelled as its course was not mapped any more."""
    return (
        Issuance.tenant == tenant,
        Issuance.kind == kind,
        Issuance.course_id == course_id,
        Issuance.state == "cancelled",
        Issuance.reason == "unmapped",
        Issuance.settled_at >= since,
        # A further completion's badge would have replaced it.
        sa.not_(sa.and_(Issuance.renewal, issuances.HAS_LATER)),
    )


_IS_OF_ALL = Batch.course_id == ""


def _going_on(tenant: str, *columns: t.Any) -> sa.Select[t.Any]:
    return sa.select(*columns).where(
        Batch.tenant == tenant, Batch.verb == "retry", Batch.state == "retrying"
    )


def going_on(session: Session, tenant: str) -> Batch | None:
    """Get the run of all that failed that is not over yet, if there is one."""
    return session.scalars(_going_on(tenant, Batch).where(_IS_OF_ALL)).first()


def brought_back(session: Session, tenant: str) -> list[Batch]:
    """Get the runs that bring badges of a course back and are not over yet."""
    query = _going_on(tenant, Batch).where(sa.not_(_IS_OF_ALL))
    return list(session.scalars(query.order_by(Batch.id)))


@in_transaction
def step(connection: sa.Connection, run: Run) -> Step:
    """Do one portion of a run."""
    now = clock.now(connection)

    if not runs.hold(connection, run, now):
        return "over"

    columns = (Batch.started_at, Batch.reached, Batch.last_id, Batch.number)
    batch = connection.execute(sa.select(*columns).where(*runs.held(run))).one()
    these = _these(run, batch.started_at)
    following = (Issuance.id > batch.reached, Issuance.id <= batch.last_id)
    ids = _first(connection, PORTION, *these, *following)
    # Here, and not where somebody waits for the answer.
    number = batch.number or _count(connection, *these, *following)
    these = (Issuance.id.in_(ids), *these)

    if run.course_id:
        due = admin.reopen(connection, *these, due_at=now, keep=True, bulk=True)
    else:
        due = issuances.make_due(connection, *these, now=now, bulk=True)

    connection.execute(
        sa.update(Batch)
        .where(*runs.held(run))
        .values(
            completed=Batch.completed + due,
            number=number,
            reached=ids[-1] if ids else batch.last_id,
        )
    )

    if len(ids) == PORTION:
        return "more"

    runs.end(connection, *runs.held(run), state="retried")
    return "over"


def _these(run: Run, started_at: dt.datetime) -> tuple[Condition, ...]:
    if run.course_id:
        assert run.since is not None
        return _cancelled(run.tenant, run.kind, run.course_id, run.since)

    # Each is tried once, also where it fails again meanwhile.
    return (
        *issuances.to_retry(run.tenant),
        sa.or_(Issuance.settled_at.is_(None), Issuance.settled_at <= started_at),
    )


@in_transaction
def stop(
    connection: sa.Connection, tenant: str, run_id: int, *, by: str | None = None
) -> bool:
    """Retry no more of them. What is queued stays so.

    :param by: Who does it, for :func:`.audit.note`.
    :return: Whether it was not over yet.
    """
    this = (*runs.this(tenant, run_id, "retry"), Batch.state == "retrying")
    found = connection.execute(
        sa.select(Batch.course_id, Batch.course_title).where(*this)
    ).one_or_none()
    stopped = runs.end(connection, *this, state="stopped")

    if stopped and found and found.course_id:
        title = found.course_title or found.course_id
        audit.note(connection, tenant, by, "stop restoring", title)
    elif stopped:
        audit.note(connection, tenant, by, "stop retry")

    return stopped
