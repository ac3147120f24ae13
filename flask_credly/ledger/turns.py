"""Which communities are connected, and whose turn it is.

Its cost grows with the communities that have something to do, not with all there are.
"""

from __future__ import annotations

import dataclasses
import datetime as dt

import sqlalchemy as sa
from sqlalchemy import orm

from ..models import Account
from ..models import Installation
from ..models import Issuance
from . import clock
from . import gates
from .claim import ACTIONS
from .transaction import connect


def tenants(engine: sa.Engine) -> list[str]:
    """Get the communities that are connected."""
    with connect(engine) as connection:
        query = sa.select(Account.tenant).order_by(Account.tenant)
        return list(connection.scalars(query))


def has_rows(engine: sa.Engine, tenant: str) -> bool:
    """Whether the ledger has anything of a community, connected or not."""
    with connect(engine) as connection:
        row = sa.select(Issuance.id).where(Issuance.tenant == tenant).limit(1)
        return connection.scalar(row) is not None


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
        open_ = _with_open_rows()
        bulk = (False,) if live else (False, True)
        # One question each, or the whole index would be read for the second.
        is_due = sa.or_(
            *(
                sa.exists().where(
                    Issuance.action == action,
                    Issuance.tenant == Account.tenant,
                    Issuance.bulk.is_(each),
                    Issuance.due_at <= now,
                    Issuance.organization_id == Account.organization_id,
                )
                for action in ACTIONS
                for each in bulk
            )
        )
        found = connection.execute(
            sa.select(Account.tenant, Account.served_at, Account.paused_until)
            .join(open_, open_.c.tenant == Account.tenant)
            .where(
                ~sa.exists().where(Installation.is_copy),
                Account.expired.is_(False),
                Account.switched_off.is_(False),
                is_due,
            )
            # Where null comes is not the same on every database.
            .order_by(
                sa.case((Account.served_at.is_(None), 0), else_=1),
                Account.served_at,
                Account.tenant,
            )
        ).all()

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


def to_sync(engine: sa.Engine) -> list[str]:
    """Get the communities whose list of badge templates is old."""
    with connect(engine) as connection:
        now = clock.now(connection)
        query = sa.select(Account.tenant).where(*gates.sync_is_due(now))
        return list(connection.scalars(query.order_by(Account.tenant)))


def some(engine: sa.Engine, number: int = 20) -> list[Account]:
    """Get a few accounts, those that were connected first."""
    with connect(engine) as connection, orm.Session(connection) as session:
        query = sa.select(Account).order_by(Account.connected_at, Account.tenant)
        return list(session.scalars(query.limit(number)))


def _with_open_rows() -> sa.CTE:
    """Find the tenants that have open rows, by one look into the index for each: none
    that is at rest is looked at.
    """

    def next_after(tenant: sa.ColumnElement[str] | None) -> sa.ScalarSelect[str]:
        query = sa.select(sa.func.min(Issuance.tenant)).where(
            Issuance.action.in_(ACTIONS)
        )

        if tenant is not None:
            query = query.where(Issuance.tenant > tenant)

        return query.scalar_subquery()

    found = sa.select(next_after(None).label("tenant")).cte("open", recursive=True)
    following = sa.select(next_after(found.c.tenant)).where(found.c.tenant.is_not(None))
    return found.union_all(following)
