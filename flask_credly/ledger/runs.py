"""Runs about many badges, each one worker's under a lease: what a backfill, one that
takes badges back, a removal and a comparison with Credly have in common.

What a crash leaves half done is taken up again: a run's own row says that it is due.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import hashlib
import secrets
import typing as t

import sqlalchemy as sa

from ..models import Batch
from . import clock
from .conditions import Condition
from .paging import Session
from .transaction import connect
from .transaction import in_transaction

Verb = t.Literal["backfill", "compare", "remove", "retry", "undo"]

Step = t.Literal["more", "rest", "over"]
"""``more``: there is more to do now. ``rest``: nothing is, until badges have been
revoked or issued. ``over``: nothing is any more, or the run is another worker's.
"""

LEASE: dict[Verb, dt.timedelta] = {
    # The host's query has to begin to give completions within it.
    "backfill": dt.timedelta(minutes=15),
    "remove": dt.timedelta(minutes=1),
    "retry": dt.timedelta(minutes=1),
    "undo": dt.timedelta(minutes=1),
    # The host has to give all completions of one course within it.
    "compare": dt.timedelta(minutes=15),
}
"""After which another worker takes up a run that nothing was heard of."""

# The host is read from its beginning.
_BEGINS_ANEW: dict[Verb, dict[str, t.Any]] = {
    "backfill": {"completed": 0, "incomplete": 0, "wanted": sa.null()},
    "compare": {
        "completed": 0,
        "incomplete": 0,
        # Who was erased is not in it any more. What is to be repaired stays.
        "wanted": sa.case((Batch.state == "repairing", Batch.wanted), else_=sa.null()),
    },
    "remove": {},
    "retry": {},
    "undo": {},
}

MOST_LEFT_OUT = 2_000
"""Members who are erased during a run. After more, it begins anew."""

REST = dt.timedelta(seconds=5)
"""After which a run is looked at again that has nothing to do for now."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that this worker has taken up."""

    id: int
    tenant: str
    verb: Verb
    lease: str
    kind: str
    course_id: str
    course_title: str
    since: dt.datetime | None
    healing: bool
    state: str = ""


_COLUMNS = tuple(getattr(Batch, each.name) for each in dataclasses.fields(Run))


def this(tenant: str, run_id: int, verb: Verb) -> tuple[Condition, ...]:
    """Find a run by its number."""
    return (Batch.id == run_id, Batch.tenant == tenant, Batch.verb == verb)


def begin(connection: sa.Connection, now: dt.datetime, **values: t.Any) -> int:
    """Write the row of a run that is due at once.

    :param values: Other columns. Without a course, it is about all.
    :return: Its number.
    """
    row = {"kind": "", "course_id": "", "course_title": ""} | values
    added = connection.execute(
        sa.insert(Batch).values(started_at=now, due_at=now, **row)
    )
    assert added.inserted_primary_key is not None
    return t.cast(int, added.inserted_primary_key[0])


def due_for(engine: sa.Engine, *verbs: Verb) -> list[str]:
    """Get the communities of which a run waits for a worker."""
    with connect(engine) as connection:
        due = _due(clock.now(connection), *verbs)
        return [tenant for _, tenant in connection.execute(due)]


def _due(now: dt.datetime, *verbs: Verb) -> sa.Select[int, str]:
    due = sa.select(Batch.id, Batch.tenant)
    due = due.where(Batch.due_at <= now, Batch.verb.in_(verbs))
    return due.order_by(Batch.due_at, Batch.id)


def take_in(
    connection: sa.Connection,
    verb: Verb,
    run_id: int | None = None,
    *,
    tenant: str | None = None,
) -> Run | None:
    """Take up a run that is due, in the transaction that is open.

    :param run_id: Only this one.
    :param tenant: Only one of this community.
    """
    now = clock.now(connection)
    due = _due(now, verb)

    if run_id is not None:
        due = due.where(Batch.id == run_id)

    if tenant is not None:
        due = due.where(Batch.tenant == tenant)

    for id_, tenant in connection.execute(due).all():
        taken = connection.execute(
            sa.update(Batch)
            .where(*this(tenant, id_, verb), Batch.due_at <= now)
            .values(
                due_at=now + LEASE[verb],
                lease=secrets.token_hex(16),
                **_BEGINS_ANEW[verb],
            )
        ).rowcount

        if taken:
            found = connection.execute(
                sa.select(*_COLUMNS).where(*this(tenant, id_, verb))
            ).one()
            return Run(**found._mapping)

    return None


take = in_transaction(take_in)


def held(run: Run) -> tuple[Condition, ...]:
    """Whether a run is still this worker's, and not over."""
    return (*this(run.tenant, run.id, run.verb), Batch.lease == run.lease)


def hold(
    connection: sa.Connection, run: Run, now: dt.datetime, **values: t.Any
) -> bool:
    """Prolong the lease of a run.

    :param values: Other columns.
    :return: Whether it is still this worker's.
    """
    longer = sa.update(Batch).where(*held(run))
    longer = longer.values(due_at=now + LEASE[run.verb], **values)
    return bool(connection.execute(longer).rowcount)


def leave_out(
    connection: sa.Connection, tenant: str, member_id: str, *verbs: Verb
) -> None:
    """Let runs that workers have write nothing of a member, whom they may have read."""
    these = (
        Batch.tenant == tenant,
        Batch.verb.in_(verbs),
        Batch.lease.is_not(None),
        # A repair looks itself, at each difference.
        Batch.state != "repairing",
    )

    # Looked for first: most of the time there is none, and nothing is locked.
    for run_id in connection.scalars(sa.select(Batch.id).where(*these)).all():
        this = (*these, Batch.id == run_id)
        # Its lock, before it is read.
        connection.execute(sa.update(Batch).where(*this).values(lease=Batch.lease))
        query = sa.select(Batch.lease, Batch.wanted).where(*this)
        found = connection.execute(query.with_for_update()).one_or_none()

        if found is None:
            continue

        wanted = found.wanted or {}
        marks = [*wanted.get("erased", ()), _mark(found.lease, member_id)]
        values: dict[str, t.Any] = {"wanted": {**wanted, "erased": marks}}

        if len(marks) > MOST_LEFT_OUT:
            values = {"due_at": clock.now(connection), "lease": None}

        connection.execute(sa.update(Batch).where(*this).values(**values))


def left_out(connection: sa.Connection, run: Run) -> cabc.Callable[[str | None], bool]:
    """Ask for the members of whom a run is to write nothing. It is locked."""
    query = sa.select(Batch.wanted).where(*held(run))
    marks = frozenset((connection.scalar(query) or {}).get("erased", ()))
    return lambda member_id: bool(
        marks and member_id is not None and _mark(run.lease, member_id) in marks
    )


def may_name(connection: sa.Connection, run: Run) -> cabc.Callable[[str], bool]:
    """Ask of whom a run may write something: of nobody, if it was stopped. It is
    locked from now on, so that whoever is being erased is waited for, or waits.
    """
    if not hold(connection, run, clock.now(connection)):
        return lambda member_id: False

    is_erased = left_out(connection, run)
    return lambda member_id: not is_erased(member_id)


def _mark(lease: str, member_id: str) -> str:
    # By a secret that is gone with the run: then it is nobody's any more.
    key = lease.encode()
    return hashlib.blake2b(member_id.encode(), digest_size=8, key=key).hexdigest()


@in_transaction
def leave(connection: sa.Connection, run: Run, *, rest: bool = False) -> None:
    """Leave what there is still to do to another worker.

    :param rest: Whether there is nothing for now.
    """
    due_at = clock.now(connection) + (REST if rest else dt.timedelta())
    connection.execute(
        sa.update(Batch).where(*held(run)).values(due_at=due_at, lease=None)
    )


def end(
    connection: sa.Connection, *these: Condition, state: str, **values: t.Any
) -> bool:
    """Let no worker go on with runs.

    :param values: What else is written down of them.
    :return: Whether there was one.
    """
    ended = sa.update(Batch).where(*these)
    ended = ended.values(state=state, due_at=None, lease=None, **values)
    return bool(connection.execute(ended).rowcount)


def get(session: Session, tenant: str, run_id: int, verb: Verb) -> Batch | None:
    """Get a run as it is now."""
    query = sa.select(Batch).where(*this(tenant, run_id, verb))
    query = query.execution_options(populate_existing=True)
    return session.scalars(query).one_or_none()


def latest(session: Session, tenant: str, verb: Verb, *where: Condition) -> list[Batch]:
    """Get the latest runs, latest first."""
    query = sa.select(Batch).where(Batch.tenant == tenant, Batch.verb == verb, *where)
    return list(session.scalars(query.order_by(Batch.id.desc()).limit(5)))
