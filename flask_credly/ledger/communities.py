"""All communities at a glance, for whoever operates the site: no member's data."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t

import sqlalchemy as sa

from .. import keys
from ..models import Account
from ..models import Batch
from ..models import Installation
from ..models import Issuance
from ..models import Unrecorded
from . import clock
from . import overview
from . import removing
from .overview import AccountState
from .paging import Session

SIZE = 50
"""Communities a page."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One community.

    :param pending: Badges that wait.
    :param oldest: Since when the first of them waits.
    :param last_issued_at: When one was issued last.
    :param unrecorded: Completions that could not be recorded, as far as the database
        counts them.
    :param unreadable: The stored Client Secret cannot be decrypted.
    :param switched_off: An admin has paused issuing.
    """

    tenant: str
    connection: AccountState
    paused_until: dt.datetime | None
    pending: int
    oldest: dt.datetime | None
    last_issued_at: dt.datetime | None
    unrecorded: int
    unreadable: bool
    switched_off: bool


@dataclasses.dataclass(frozen=True)
class Lines:
    """One page of them, by name.

    :param following: The name after which the next page begins. ``None``: this is the
        last.
    """

    rows: list[Line]
    following: str | None


def page(session: Session, *, after: str = "", config: keys.Config) -> Lines:
    """Get one page of those that are connected, or still being removed.

    :param after: The name after which it begins.
    :param config: The application's, to see whether what is stored can be decrypted.
    """
    now = clock.now(session.connection())
    is_copy = session.scalar(sa.select(Installation.is_copy)) is True
    names = (
        query.order_by(query.selected_columns.tenant).limit(SIZE + 1).subquery()
        for query in (
            sa.select(Account.tenant).where(Account.tenant > after),
            removing.tenants().where(Batch.tenant > after),
        )
    )
    known = sa.union(*map(sa.select, names)).subquery()
    found = session.execute(
        sa.select(
            known.c.tenant,
            Account,
            _count_waiting().label("pending"),
            _oldest().label("oldest"),
            sa.func.coalesce(_unrecorded(), 0).label("unrecorded"),
        )
        .select_from(known)
        .outerjoin(Account, Account.tenant == known.c.tenant)
        .order_by(known.c.tenant)
        .limit(SIZE + 1)
    ).all()
    rows = [_line(session, row, now, is_copy, config) for row in found[:SIZE]]
    return Lines(rows, rows[-1].tenant if len(found) > SIZE else None)


def _line(
    session: Session, row: t.Any, now: dt.datetime, is_copy: bool, config: keys.Config
) -> Line:
    account: Account | None = row.Account
    unreadable = not overview.opens(account, config)
    return Line(
        tenant=row.tenant,
        connection="removing"
        if account is None
        else overview.state_of(account, now, unreadable=unreadable, is_copy=is_copy),
        paused_until=overview.paused_until(account, now),
        pending=row.pending,
        oldest=row.oldest,
        last_issued_at=overview.last_issued(session, row.tenant) if account else None,
        unrecorded=row.unrecorded,
        unreadable=unreadable,
        switched_off=account is not None and account.switched_off,
    )


def count_unknown(session: Session) -> int:
    """Count the completions of which it is not known whose they are."""
    query = sa.select(Unrecorded.number).where(Unrecorded.tenant == "")
    return session.scalar(query) or 0


def _waiting() -> tuple[sa.ColumnElement[bool], ...]:
    return (
        Issuance.tenant == Account.tenant,
        Issuance.state == "none",
        Issuance.test.is_(False),
    )


def _count_waiting() -> sa.ScalarSelect[int]:
    return sa.select(sa.func.count()).where(*_waiting()).scalar_subquery()


def _oldest() -> sa.ScalarSelect[dt.datetime]:
    query = sa.select(Issuance.recorded_at).where(*_waiting())
    return query.order_by(Issuance.id).limit(1).scalar_subquery()


def _unrecorded() -> sa.ScalarSelect[int]:
    query = sa.select(Unrecorded.number).where(Unrecorded.tenant == Account.tenant)
    return query.scalar_subquery()
