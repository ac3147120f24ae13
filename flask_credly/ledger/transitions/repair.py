"""What a comparison with Credly puts right, as an admin has it done."""

from __future__ import annotations

import datetime as dt
import typing as t

import sqlalchemy as sa

from ...models import Issuance
from ...models import IssuanceState
from ..conditions import Condition
from ..conditions import IS_SENDING
from ..conditions import ROWS
from . import host
from . import settled
from . import update
from . import worker
from .lifecycle import of_badge
from .lifecycle import said

if t.TYPE_CHECKING:
    from ...credly import Badge


def believe(
    connection: sa.Connection, badge: Badge, read_at: dt.datetime, *these: Condition
) -> int:
    """Let rows say of their badge what Credly does, also where that is not what comes
    next in a badge's life.
    """
    values: dict[str, t.Any] = {
        "checked_at": read_at,
        **of_badge(badge, badge.state, badge.state_at),
        "public": badge.public,
        "missed_at": None,
        "missing_at": None,
        "state": sa.case(
            (ROWS.c.state == "replaced", ROWS.c.state), else_=_state_of(badge)
        ),
    }

    if badge.says_expiry:
        values["expires_at"] = badge.expires_at

    if badge.replaced_by is not None:
        values["replaced_by"] = badge.replaced_by

    return connection.execute(update(*these).values(values)).rowcount


def _state_of(badge: Badge) -> IssuanceState:
    """Get the state of a row whose badge this is."""
    if badge.state == "revoked":
        return "revoked"

    return "replaced" if badge.replaced_by else "issued"


def adopt(
    connection: sa.Connection,
    badge: Badge,
    now: dt.datetime,
    *these: Condition,
    issued_at: dt.datetime | None,
) -> int:
    """Let a row that is in nobody's hands have a badge that Credly has issued.

    :param issued_at: The time that the badge has.
    """
    values = settled(_state_of(badge), now, **said(badge, now))
    values |= {"error": None, "outcome_unknown": False, "duplicate": False}

    if issued_at is not None:
        values["issued_at"] = issued_at

    # Whoever withdrew the completion meanwhile has it revoked.
    if values["state"] == "issued":
        values |= worker.IF_WITHDRAWN

    is_its = sa.or_(ROWS.c.badge_id.is_(None), ROWS.c.badge_id == badge.id)
    return connection.execute(
        update(*these, sa.not_(IS_SENDING), is_its).values(values)
    ).rowcount


def insert_found(
    connection: sa.Connection, badge: Badge, now: dt.datetime, **values: t.Any
) -> int:
    """Write the row of a badge that was issued, and that no row has.

    :param values: Whose it is, and for which completion.
    :return: Its id.
    """
    row = {
        **host.NEW,
        **settled(_state_of(badge), now, **said(badge, now)),
        "bulk": True,
        "replaces": badge.replaces,
        "recorded_at": now,
        **values,
    }
    added = connection.execute(sa.insert(Issuance).values(**row))
    assert added.inserted_primary_key is not None
    return t.cast(int, added.inserted_primary_key[0])
