"""Which communities are connected, and whose turn it is.

Its cost grows with the communities that have something to do, not with all there are.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools

import sqlalchemy as sa
from sqlalchemy import orm

from ..models import Account
from ..models import Action
from ..models import Issuance
from . import clock
from . import gates
from .conditions import ACTIONS
from .conditions import AWAITS_RELEASE
from .transaction import connect


def tenants(engine: sa.Engine) -> list[str]:
    """Get the communities that are connected."""
    with connect(engine) as connection:
        query = sa.select(Account.tenant).order_by(Account.tenant)
        return list(connection.scalars(query))


def known(engine: sa.Engine) -> list[str]:
    """Get the communities that are connected, and those whose badges are still here."""
    with connect(engine) as connection:
        connected = connection.scalars(sa.select(Account.tenant)).all()
        return sorted({*connected, *connection.scalars(_with_rows())})


@dataclasses.dataclass(frozen=True)
class Waiting:
    """A community that has badges due.

    :param served_at: When a worker last began to issue for it.
    :param opens_in: Seconds until a pause ends that is in the way. 0: nothing is.
    """

    tenant: str
    served_at: dt.datetime | None
    opens_in: float


def waiting(engine: sa.Engine, *, live: bool = False) -> list[Waiting]:
    """Get the communities that have badges due and may issue them, now or after a
    pause, least recently served first.

    :param live: Look only at what came in, and not at the rows of backfills.
    """
    with connect(engine) as connection:
        now = clock.now(connection)
        open_ = connection.scalars(_open()).all()

        if not open_:
            return []

        found = connection.execute(_with_due(live), {"open": open_, "now": now}).all()

    return [
        Waiting(
            row.tenant,
            row.served_at,
            max(0.0, (row.paused_until - now).total_seconds())
            if row.paused_until
            else 0.0,
        )
        for row in found
    ]


# Both are made once: that takes longer than to ask them.
@functools.cache
def _open() -> sa.CompoundSelect[str]:
    """Find the tenants that have badges which are not at rest. Asked apart: MariaDB
    would look for the due rows of all accounts.
    """
    each_with = [_with_rows(Issuance.action == each, name=each) for each in ACTIONS]
    return sa.union(*each_with)


@functools.cache
def _with_due(live: bool) -> sa.Select[str, dt.datetime | None, dt.datetime | None]:
    # One question each, which reads the first row of an index.
    questions = [
        (action, bulk)
        for action in ACTIONS
        for bulk in ((False,) if live else (False, True))
    ]
    return (
        sa.select(Account.tenant, Account.served_at, Account.paused_until)
        .where(
            Account.tenant.in_(sa.bindparam("open", expanding=True)),
            *gates.may_issue(),
            sa.or_(*(_first_due(*each) <= sa.bindparam("now") for each in questions)),
        )
        # Where null comes is not the same on every database.
        .order_by(
            sa.case((Account.served_at.is_(None), 0), else_=1),
            Account.served_at,
            Account.tenant,
        )
    )


def oldest_due(engine: sa.Engine) -> dt.timedelta | None:
    """Get for how long the badge has been due that has been longest, of all communities
    that may issue now. Rows of backfills wait for their turn, and do not count.
    ``None``: none is due.
    """
    with connect(engine) as connection:
        now = clock.now(connection)
        open_ = (*gates.may_issue(), gates.is_unpaused(now))
        # One question for each account, which reads the first row of an index: not
        # MIN, for which MariaDB would read all, and not by the organization, which
        # PostgreSQL would look for in another index.
        questions = [
            sa.select(
                sa.select(Issuance.due_at)
                .where(
                    Issuance.action == action,
                    Issuance.tenant == Account.tenant,
                    Issuance.bulk == sa.false(),
                    Issuance.due_at <= now,
                )
                .order_by(Issuance.due_at)
                .limit(1)
                .scalar_subquery()
                .label("due_at")
            ).where(*open_)
            for action in ACTIONS
        ]
        found = sa.union_all(*questions).subquery()
        first = connection.scalar(sa.select(sa.func.min(found.c.due_at)))

    return None if first is None else now - first


def to_sync(engine: sa.Engine) -> list[str]:
    """Get the communities whose list of badge templates is old."""
    with connect(engine) as connection:
        now = clock.now(connection)
        query = sa.select(Account.tenant).where(*gates.sync_is_due(now))
        return list(connection.scalars(query.order_by(Account.tenant)))


def to_release(engine: sa.Engine) -> list[str]:
    """Get the communities that have badges of withdrawn completions that nobody has
    looked at since.
    """
    with connect(engine) as connection:
        found = connection.scalars(_with_rows(AWAITS_RELEASE)).all()

        if not found:
            return []

        query = sa.select(Account.tenant).where(
            Account.tenant.in_(found),
            sa.exists().where(
                Issuance.tenant == Account.tenant,
                Issuance.organization_id == Account.organization_id,
                AWAITS_RELEASE,
            ),
        )
        return list(connection.scalars(query.order_by(Account.tenant)))


def some(engine: sa.Engine, number: int = 20) -> list[Account]:
    """Get a few accounts, those that were connected first."""
    with connect(engine) as connection, orm.Session(connection) as session:
        query = sa.select(Account).order_by(Account.connected_at, Account.tenant)
        return list(session.scalars(query.limit(number)))


def _first_due(action: Action, bulk: bool) -> sa.ScalarSelect[dt.datetime | None]:
    # Not EXISTS, which PostgreSQL would answer by reading all that is due.
    return (
        sa.select(sa.func.min(Issuance.due_at))
        .where(
            Issuance.action == action,
            Issuance.tenant == Account.tenant,
            Issuance.bulk == bulk,
            Issuance.organization_id == Account.organization_id,
        )
        .scalar_subquery()
    )


def _with_rows(*where: sa.ColumnElement[bool], name: str = "any") -> sa.Select[str]:
    """Find the tenants that have such rows, by one look into an index for each.

    :param name: Tells it apart in a statement with others.
    """

    def next_after(tenant: sa.ColumnElement[str] | None) -> sa.ScalarSelect[str]:
        query = sa.select(Issuance.tenant).where(*where)

        if tenant is not None:
            query = query.where(Issuance.tenant > tenant)

        # Not MIN, for which MariaDB would read all of them.
        return query.order_by(Issuance.tenant).limit(1).scalar_subquery()

    first = sa.select(next_after(None).label("tenant"))
    found = first.cte(f"with_{name}", recursive=True)
    following = sa.select(next_after(found.c.tenant)).where(found.c.tenant.is_not(None))
    found = found.union_all(following)
    return sa.select(found.c.tenant).where(found.c.tenant.is_not(None))
