"""What waits, what was done, and whether anything is in the way."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t

import sqlalchemy as sa

from .. import keys
from ..i18n import AtLeast
from ..models import Account
from ..models import Installation
from ..models import Issuance
from ..models import Mapping
from . import clock
from . import issuances
from . import removing
from .conditions import Condition
from .paging import by_index
from .paging import Session

AccountState = t.Literal["none", "connected", "expired", "paused", "removing"]


OVERDUE = dt.timedelta(minutes=1)
"""A worker that runs takes what is due within seconds."""


@dataclasses.dataclass(frozen=True)
class Overview:
    """The state of the integration in numbers.

    :param connection: "removing": there is none any more, and a worker deletes what it
        has left.
    :param unreadable: The stored Client Secret cannot be decrypted with this process's
        keys: ``connection`` is "expired" then.
    :param keyless_worker: A worker cannot decrypt it with its keys. Others may go on.
    :param switched_off: The admin has paused issuing: ``connection`` is "paused" then,
        and ``paused_until`` is ``None`` unless Credly has asked for a pause too.
    :param is_copy: The database is a copy of one in use elsewhere: nothing is issued,
        and ``connection`` is "paused".
    :param accepted: Badges that members have accepted, as far as Credly said so.
    :param unaccepted: Those that wait to be accepted.
    :param revoked: Those that were issued, and revoked at Credly since.
    :param oldest_pending_seconds: Since when the longest waiting badge waits.
    :param overdue_since: When a badge was due that no worker has taken, though
        nothing is in the way. ``None``: all is well.
    """

    connection: AccountState
    paused_until: dt.datetime | None
    pause_reason: str | None
    unreadable: bool
    keyless_worker: bool
    switched_off: bool
    is_copy: bool
    pending: int
    issued: int
    failed: int
    held: int
    skipped: int
    accepted: int
    unaccepted: int
    revoked: int
    oldest_pending_seconds: int | None
    overdue_since: dt.datetime | None
    last_issued_at: dt.datetime | None
    mappings: int


def read(
    session: Session,
    tenant: str,
    *,
    config: keys.Config | None = None,
    at_most: int | None = None,
) -> Overview:
    """Count.

    :param config: The application's, to see whether the stored Client Secret can be
        decrypted. ``None``: not to look.
    :param at_most: Where to stop counting each state, so that a page takes no longer
        with a million badges. ``None``: at the end.
    """
    now = clock.now(session.connection())
    states = ("none", "issued", "failed", "held", "cancelled", "revoked")
    counted = [
        _count(tenant, Issuance.state, state, at_most).label(state) for state in states
    ]
    counted += [
        _count(tenant, Issuance.badge_state, "accepted", at_most).label("accepted"),
        # As the list of them says: not what has expired.
        _count(
            *(tenant, Issuance.badge_state, "pending", at_most),
            issuances.has_become("pending"),
        ).label("pending"),
    ]
    count = session.execute(sa.select(*counted)).one()
    waits_since = session.scalar(
        by_index(
            sa.select(Issuance.recorded_at).where(*_of_members(tenant)),
            Issuance.state,
            "none",
            Issuance.id,
        ).limit(1)
    )
    # As it is now, whatever this session has loaded before.
    query = sa.select(Account).where(Account.tenant == tenant)
    connection = session.scalars(
        query.execution_options(populate_existing=True)
    ).one_or_none()
    paused = paused_until(connection, now)
    unreadable = config is not None and not opens(connection, config)
    is_copy = session.scalar(sa.select(Installation.is_copy)) is True
    state = state_of(connection, now, unreadable=unreadable, is_copy=is_copy)

    if connection is None and removing.going_on(session, tenant) is not None:
        state = "removing"

    overdue = _overdue_since(session, tenant, now) if state == "connected" else None

    def seen(state: str) -> int:
        number: int = getattr(count, state)
        return number if at_most is None or number < at_most else AtLeast(at_most)

    return Overview(
        connection=state,
        paused_until=paused,
        pause_reason=connection.pause_reason if connection and paused else None,
        unreadable=unreadable,
        keyless_worker=bool(
            connection and connection.keyless_until and connection.keyless_until > now
        ),
        switched_off=connection is not None and connection.switched_off,
        is_copy=is_copy,
        pending=seen("none"),
        issued=seen("issued"),
        failed=seen("failed"),
        held=seen("held"),
        skipped=seen("cancelled"),
        accepted=seen("accepted"),
        unaccepted=seen("pending"),
        revoked=seen("revoked"),
        oldest_pending_seconds=(
            max(0, int((now - waits_since).total_seconds())) if waits_since else None
        ),
        overdue_since=overdue,
        last_issued_at=last_issued(session, tenant),
        mappings=count_mappings(session, tenant),
    )


def _of_members(tenant: str) -> tuple[Condition, ...]:
    return (Issuance.tenant == tenant, Issuance.test.is_(False))


def _overdue_since(
    session: Session, tenant: str, now: dt.datetime
) -> dt.datetime | None:
    # Each reads the first row of an index. A backfill's rows wait for their turn.
    due = [
        session.scalar(
            sa.select(Issuance.due_at)
            .where(
                *_of_members(tenant),
                Issuance.state == "none",
                Issuance.action == action,
                Issuance.bulk.is_(False),
                Issuance.due_at < now - OVERDUE,
            )
            .order_by(Issuance.due_at)
            .limit(1)
        )
        for action in ("issue", "replace")
    ]
    return min(filter(None, due), default=None)


def count_mappings(session: Session, tenant: str) -> int:
    """Count the courses that are mapped."""
    query = sa.select(sa.func.count()).select_from(Mapping)
    return session.scalar(query.where(Mapping.tenant == tenant)) or 0


def _count(
    tenant: str, column: t.Any, state: str, at_most: int | None, *where: Condition
) -> sa.ScalarSelect[int]:
    rows = by_index(
        # Nobody waits for one in whose place there is another.
        sa.select(Issuance.id).where(
            *_of_members(tenant), Issuance.state != "replaced", *where
        ),
        column,
        state,
        Issuance.id,
    ).limit(at_most)
    return sa.select(sa.func.count()).select_from(rows.subquery()).scalar_subquery()


def last_issued(session: Session, tenant: str) -> dt.datetime | None:
    """Get when a community's last badge was issued."""
    # Among the newest rows: one that came by a late retry is older than it looks, and
    # not worth an index.
    rows = by_index(
        sa.select(Issuance.settled_at).where(*_of_members(tenant)),
        Issuance.state,
        "issued",
        Issuance.id,
        newest=True,
    )
    newest = rows.limit(100).subquery()
    at: dt.datetime | None = session.scalar(sa.select(sa.func.max(newest.c.settled_at)))
    return at


def paused_until(connection: Account | None, now: dt.datetime) -> dt.datetime | None:
    """Get until when Credly has asked an account to wait."""
    until = connection.paused_until if connection else None
    return until if until and until > now else None


def opens(connection: Account | None, config: keys.Config) -> bool:
    """Whether this process can decrypt the stored Client Secret, if there is one."""
    if connection is None:
        return True

    sealed, organization_id = connection.client_secret, connection.organization_id
    return keys.opens(config, sealed, organization_id, "client_secret")


def state_of(
    connection: Account | None,
    now: dt.datetime,
    *,
    unreadable: bool,
    is_copy: bool,
) -> AccountState:
    """Say how an account is.

    :param unreadable: Whether its Client Secret cannot be decrypted: see :func:`opens`.
    :param is_copy: Whether the database is a copy of one in use elsewhere.
    """
    if connection is None:
        return "none"

    if connection.expired or unreadable:
        return "expired"

    paused = paused_until(connection, now) or connection.switched_off or is_copy
    return "paused" if paused else "connected"
