"""What a worker does: it leases rows, gives them back, and saves their outcome."""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import typing as t

import sqlalchemy as sa

from ...models import Action
from ...models import Issuance
from ..conditions import AWAITS_REVOCATION
from ..conditions import Condition
from ..conditions import is_of
from ..conditions import IS_OPEN
from ..conditions import IS_SENDING
from ..conditions import ROWS
from . import UNTRIED
from . import update
from . import waits


def lease_due(
    connection: sa.Connection,
    lease: str,
    until: dt.datetime,
    *these: Condition,
) -> int:
    """Give rows that are due to a worker. Who had them has died over them."""
    return connection.execute(
        update(*these, IS_OPEN)
        # In this order: MariaDB would look at the new lease.
        .ordered_values(
            (
                Issuance.crashes,
                Issuance.crashes + sa.case((IS_SENDING, 1), else_=0),
            ),
            (Issuance.lease, lease),
            (Issuance.due_at, until),
        )
    ).rowcount


def uncount_attempts(
    connection: sa.Connection, tenant: str, ids: cabc.Collection[int]
) -> None:
    """Give rows an attempt back of which nothing is known."""
    connection.execute(
        update(is_of(tenant), Issuance.id.in_(ids)).values(
            attempts=Issuance.attempts - 1
        )
    )


def renew(
    connection: sa.Connection,
    until: dt.datetime,
    *these: Condition,
    begin: dt.datetime | None = None,
) -> int:
    """Prolong the lease of rows.

    :param begin: Whether a request is about to be made, and by what time at most its
        badge is issued.
    """
    values: dict[str, t.Any] = {"due_at": until}

    if begin is not None:
        values |= {
            "attempts": Issuance.attempts + 1,
            "outcome_unknown": True,
            "unsettled_until": until,
            "issued_at": sa.case(
                (Issuance.issued_at.is_not(None), Issuance.issued_at),
                (
                    Issuance.completed_at > begin,
                    sa.literal(begin, Issuance.issued_at.type),
                ),
                else_=Issuance.completed_at,
            ),
        }

    this = update(*these)
    return connection.execute(this.values(**values)).rowcount


def requeue(
    connection: sa.Connection,
    due_at: t.Any,
    *these: Condition,
    outcome_unknown: bool,
) -> int:
    """Take rows back from a worker: it has sent nothing."""
    return connection.execute(
        update(*these, IS_OPEN).values(
            lease=None, due_at=due_at, outcome_unknown=outcome_unknown
        )
    ).rowcount


def hold_back(connection: sa.Connection, *these: Condition) -> None:
    """Take rows back from a worker until their template allows duplicates."""
    connection.execute(
        update(*these, IS_OPEN).values(lease=None, due_at=None, reason="no duplicates")
    )


def aim(connection: sa.Connection, *these: Condition, replaces: str | None) -> None:
    """Say which badge a renewal replaces.

    :param replaces: Credly's id of it. ``None``: there is none, and it is issued.
    """
    action: Action = "issue" if replaces is None else "replace"
    connection.execute(
        update(*these).values(
            replaces=replaces, renewal=replaces is not None, action=action
        )
    )


def name_member(
    connection: sa.Connection,
    *these: Condition,
    email: str,
    first_name: str,
    last_name: str,
    extras: dict[str, t.Any] | None,
) -> None:
    """Write down who the badge is for by now."""
    connection.execute(
        update(*these).values(
            email=email, first_name=first_name, last_name=last_name, extras=extras
        )
    )


def release_next(connection: sa.Connection, now: dt.datetime, *these: Condition) -> int:
    """Let rows be issued that have waited for the badge before them to be revoked."""
    return connection.execute(
        update(*these, AWAITS_REVOCATION).values(due_at=now, reason=None)
    ).rowcount


def supersede(
    connection: sa.Connection,
    new_id: str,
    now: dt.datetime,
    *these: Condition,
) -> None:
    """Note that badges were replaced by another.

    :param new_id: Credly's id of that.
    """
    connection.execute(
        update(*these, Issuance.state == "issued").values(
            state="replaced",
            settled_at=now,
            replaced_by=sa.func.coalesce(Issuance.replaced_by, new_id),
        )
    )


def issued_anew(now: dt.datetime) -> dict[str, object]:
    """What is written where the badge that was to be replaced is in force no more, and
    a new one is issued.
    """
    return {
        **waits(now),
        **UNTRIED,
        # None of its requests can have issued a badge.
        "issued_at": None,
        "replaces": None,
        "renewal": False,
    }


def last_look(now: dt.datetime) -> dict[str, object]:
    """What is written besides where a badge is called failed that Credly may have
    issued and not list yet: it is looked for once more when its lists have had their
    time.
    """
    unsettled = ROWS.c.unsettled_until > now
    return {
        "action": sa.case((unsettled, "check")),
        "due_at": sa.case((unsettled, ROWS.c.unsettled_until)),
    }


_WAS_MARKED = sa.and_(
    ROWS.c.action.is_not(None),
    ROWS.c.withdrawn_at.is_not(None),
    ROWS.c.revocation_reason.is_not(None),
)

IF_WITHDRAWN: dict[str, t.Any] = {
    "action": sa.case((_WAS_MARKED, "revoke"), else_=sa.null()),
    "reason": sa.case((_WAS_MARKED, "withdrawn"), else_=sa.null()),
}
"""What is written besides where a badge was issued whose completion may have been
withdrawn meanwhile.
"""


def save(
    connection: sa.Connection,
    rows: list[dict[str, t.Any]],
    values: dict[str, object],
) -> int:
    """Write the same of several rows that a worker has, from :func:`.settled` or
    :func:`.waits`.

    :param rows: ``row_id``, ``held_tenant``, ``held_lease``; what is :func:`.said` of
        its badge, if there is one.
    :return: How many were written.
    """
    this = update(
        ROWS.c.id == sa.bindparam("row_id"),
        ROWS.c.tenant == sa.bindparam("held_tenant"),
        ROWS.c.lease == sa.bindparam("held_lease"),
    )

    # What Remove has ended stays so, and no later error of it comes into the log of an
    # account made since.
    if values.get("state") in (None, "failed"):
        this = this.where(IS_OPEN)

    return connection.execute(this.values(values), rows).rowcount
