"""What waits, what was done, and whether anything is in the way."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t

import sqlalchemy as sa
from sqlalchemy import orm

from ..models import Connection
from ..models import Issuance
from ..models import Mapping
from . import clock

ConnectionState = t.Literal["none", "connected", "expired", "paused"]


OVERDUE = dt.timedelta(minutes=2)
"""A worker that runs takes what is due within seconds."""


@dataclasses.dataclass(frozen=True)
class Overview:
    """The state of the integration in numbers.

    :param switched_off: The admin has paused issuing: ``connection`` is "paused" then,
        and ``paused_until`` is ``None`` unless Credly has asked for a pause too.
    :param oldest_pending_seconds: Since when the longest waiting badge waits.
    :param overdue_since: When a badge was due that no worker has taken, though
        nothing is in the way. ``None``: all is well.
    """

    connection: ConnectionState
    paused_until: dt.datetime | None
    pause_reason: str | None
    switched_off: bool
    pending: int
    issued: int
    failed: int
    held: int
    oldest_pending_seconds: int | None
    overdue_since: dt.datetime | None
    last_issued_at: dt.datetime | None
    mappings: int


def read(session: orm.Session | orm.scoped_session[t.Any]) -> Overview:
    """Count."""
    now = clock.now(session.connection())
    states = session.execute(
        sa.select(
            Issuance.state,
            sa.func.count().label("number"),
            sa.func.min(Issuance.recorded_at).label("recorded_at"),
            sa.func.max(Issuance.settled_at).label("settled_at"),
            sa.func.min(Issuance.due_at).label("due_at"),
        )
        .where(Issuance.test.is_(False))
        .group_by(Issuance.state)
    ).all()
    count = {row.state: row.number for row in states}
    open_states = [row for row in states if row.state in ("pending", "sending")]
    waiting = [row.recorded_at for row in open_states]
    due = [row.due_at for row in open_states if row.due_at]
    last = [row.settled_at for row in states if row.state == "issued"]
    # As it is now, whatever this session has loaded before.
    query = sa.select(Connection).execution_options(populate_existing=True)
    connection = session.scalars(query).one_or_none()
    paused = _paused_until(connection, now)
    state = _state(connection, paused)
    overdue = state == "connected" and due and min(due) < now - OVERDUE
    return Overview(
        connection=state,
        paused_until=paused,
        pause_reason=connection.pause_reason if connection and paused else None,
        switched_off=connection is not None and connection.switched_off,
        pending=count.get("pending", 0) + count.get("sending", 0),
        issued=count.get("issued", 0),
        failed=count.get("failed", 0),
        held=count.get("held", 0),
        oldest_pending_seconds=(
            max(0, int((now - min(waiting)).total_seconds())) if waiting else None
        ),
        overdue_since=min(due) if overdue else None,
        last_issued_at=last[0] if last else None,
        mappings=session.scalar(sa.select(sa.func.count()).select_from(Mapping)) or 0,
    )


def _paused_until(
    connection: Connection | None, now: dt.datetime
) -> dt.datetime | None:
    until = connection.paused_until if connection else None
    return until if until and until > now else None


def _state(
    connection: Connection | None, paused_until: dt.datetime | None
) -> ConnectionState:
    if connection is None:
        return "none"

    if connection.expired:
        return "expired"

    return "paused" if paused_until or connection.switched_off else "connected"
