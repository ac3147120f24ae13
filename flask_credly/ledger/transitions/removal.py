"""Rows end, name nobody or are deleted: Remove, erasure, and what is kept no longer."""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import typing as t

import sqlalchemy as sa

from ...models import Issuance
from ..conditions import Condition
from ..conditions import is_of
from ..conditions import NEVER_SENT
from ..conditions import ROWS
from . import end
from . import end_attempts
from . import update

NOBODY = {"email": "", "first_name": "", "last_name": ""}
"""Who a badge is for, once it is not said any more."""

NO_BADGE: dict[str, None] = dict.fromkeys(
    (
        *("badge_id", "badge_state", "badge_state_at", "badge_told", "checked_at"),
        *("accept_url", "page_url", "expires_at", "public", "replaced_by"),
        *("replaces", "revocation_reason", "tell", "missed_at", "missing_at"),
    )
)
"""What is known of a badge at Credly, once that is forgotten."""


def drop(connection: sa.Connection, *these: Condition) -> int:
    """Delete rows that Credly has never seen."""
    return connection.execute(sa.delete(Issuance).where(*these, NEVER_SENT)).rowcount


def drop_each(connection: sa.Connection, tenant: str, ids: cabc.Iterable[int]) -> None:
    """Delete rows that Credly has never seen, one by one: MariaDB and MySQL would read
    all of a small table, and wait for completions that the host has not committed.
    """
    this = (ROWS.c.id == sa.bindparam("row_id"), is_of(tenant), NEVER_SENT)
    connection.execute(sa.delete(ROWS).where(*this), [{"row_id": id_} for id_ in ids])


def abandon(
    connection: sa.Connection,
    tenant: str,
    ids: cabc.Collection[int],
    now: dt.datetime,
) -> None:
    """End what waits, as the integration is removed, and let no row name anybody, nor
    the run that recorded it: SQLite gives that number to another. Those on their way
    keep their lease, so that the worker can write down what came of it.

    :param ids: Which rows.
    """
    these = (Issuance.id.in_(ids), is_of(tenant))
    end(connection, "failed", now, *these, reason="removed", keep_lease=True)
    connection.execute(
        update(*these, sa.or_(IS_NAMED, Issuance.batch_id.is_not(None))).values(
            **NOBODY, extras=None, batch_id=None
        )
    )

    # Also to revoke what stays issued.
    end_attempts(connection, tenant, ids, now, "unknown")


IS_NAMED = sa.or_(
    *(getattr(Issuance, name) != "" for name in NOBODY), Issuance.extras.is_not(None)
)
"""Whether a row says who its badge is for."""


def forget_names(connection: sa.Connection, *these: Condition) -> int:
    """Let rows no longer say who their badge is for."""
    return connection.execute(
        update(*these, IS_NAMED).values(**NOBODY, extras=None)
    ).rowcount


def take_away(connection: sa.Connection, now: dt.datetime, *these: Condition) -> None:
    """Take rows away from whoever holds them, as they are about to name nobody.

    When is written to the day: by the same moment, rows would still belong together.
    """
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    settled_at = sa.case((ROWS.c.recorded_at > day, ROWS.c.recorded_at), else_=day)
    connection.execute(
        update(*these).values(
            erased_at=day,
            lease=None,
            due_at=None,
            settled_at=sa.func.coalesce(ROWS.c.settled_at, settled_at),
        )
    )


def erase(connection: sa.Connection, tenant: str, rows: list[dict[str, t.Any]]) -> None:
    """Let rows name nobody any more.

    :param rows: ``row_id``, the ``member_id`` from now on, ``state`` and ``reason``.
    """
    connection.execute(
        update(ROWS.c.id == sa.bindparam("row_id"), ROWS.c.tenant == tenant).values(
            **NOBODY,
            **NO_BADGE,
            **dict.fromkeys(("action", "error", "options", "extras", "completion_id")),
        ),
        rows,
    )
