"""What Credly says of a badge, and what the host was told of it."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import typing as t

import sqlalchemy as sa

from ...models import BadgeState
from ...models import Issuance
from ..conditions import Condition
from ..conditions import ROWS
from . import at_rest
from . import BY_ID
from . import by_ids
from . import update

if t.TYPE_CHECKING:
    from ...credly import Badge

_ORDER = {"pending": 0, "accepted": 1, "rejected": 2, "revoked": 3}


def follows(
    state: str,
    at: dt.datetime | None,
    known: str | None,
    known_at: dt.datetime | None,
) -> bool:
    """Whether what Credly says of a badge is later than what is known of it. Answers
    come in any order: whichever it is, they end in the same.

    Nothing follows a revocation, and nothing comes before it. A badge is pending until
    it is something else, and never again. Between being accepted and declined the
    later time counts: an earner may decline what was accepted. Where a time is missing,
    or both are the same, it is the order of a badge's life.
    """
    if known is None:
        return True

    if "revoked" in (state, known) or "pending" in (state, known):
        return _ORDER[state] > _ORDER[known]

    if at is not None and known_at is not None and at != known_at:
        return at > known_at

    return _ORDER[state] > _ORDER[known]


def said(badge: Badge, now: dt.datetime) -> dict[str, object]:
    """What is written of a badge that was just issued or found."""
    return {
        "badge_id": badge.id,
        "checked_at": now,
        **of_badge(badge, badge.state, badge.state_at),
        "expires_at": badge.expires_at,
        "public": badge.public,
        "replaced_by": badge.replaced_by,
    }


def of_badge(badge: Badge, state: str, at: dt.datetime | None) -> dict[str, object]:
    """What is written of how a badge stands."""
    # An answer may show what is no longer so: one that was accepted is not accepted
    # once more, and one that was revoked has no page.
    return {
        "badge_state": state,
        "badge_state_at": at,
        "accept_url": badge.accept_url if state == "pending" else None,
        "page_url": badge.page_url if state in ("pending", "accepted") else None,
    }


@dataclasses.dataclass(frozen=True)
class Learned:
    """What a reading has come to.

    :param to_tell: Ids of rows whose badge has become something that the host was not
        told.
    :param changed: How many rows say something else than before.
    :param mismatched: How many badges are not of the row's badge template.
    """

    to_tell: tuple[int, ...] = ()
    changed: int = 0
    mismatched: int = 0


_LEARNING = (
    *("id", "badge_id", "state", "action", "template_id", "test", "badge_told"),
    *("due_at", "lease", "reason"),
    *("badge_state", "badge_state_at", "checked_at", "accept_url", "page_url"),
    *("expires_at", "public", "replaced_by", "missed_at", "missing_at"),
)


def learn(
    connection: sa.Connection,
    tenant: str,
    organization_id: str,
    badges: cabc.Iterable[Badge],
    *,
    read_at: dt.datetime,
) -> Learned:
    """Write down what Credly says of badges, wherever it was read. Matched by the
    badge's id alone: what is not in the ledger is not ours.

    :param organization_id: The one that was asked.
    :param read_at: When the question was put. An answer to an earlier one than the last
        that was written changes nothing but the state.
    """
    by_id = {badge.id: badge for badge in badges}
    ours = sa.and_(
        ROWS.c.tenant == tenant,
        ROWS.c.organization_id == organization_id,
        ROWS.c.erased_at.is_(None),
    )
    query = sa.select(*(ROWS.c[name] for name in _LEARNING)).order_by(ROWS.c.id)

    for dialect, hint in BY_ID.items():
        query = query.with_hint(ROWS, hint, dialect)

    query = query.with_for_update()
    same: list[int] = []
    to_tell: list[int] = []
    changed = mismatched = 0

    while by_id:
        rows = [
            row
            for these in by_ids(connection, ours, ROWS.c.badge_id.in_(by_id))
            for row in connection.execute(query.where(*these)).all()
        ]
        again: dict[str, Badge] = {}

        for row in rows:
            badge = by_id[row.badge_id]

            if badge.template_id not in (None, row.template_id):
                mismatched += 1
                continue

            values = _learned(row, badge, read_at)
            is_newer = row.checked_at is None or row.checked_at < read_at

            if values:
                if is_newer:
                    values["checked_at"] = read_at

                # SQLite knows no lock of a row: what was read may be gone.
                this = (ours, ROWS.c.id == row.id, *_as_read(row))

                if not connection.execute(update(*this).values(**values)).rowcount:
                    again[badge.id] = badge
                    continue

                changed += 1
            elif is_newer:
                same.append(row.id)

            state = values.get("badge_state", row.badge_state)

            if values.get("state", row.state) == "replaced":
                state = "replaced"

            if state != "pending" and state != row.badge_told and not row.test:
                to_tell.append(row.id)

        by_id = again

    if same:
        connection.execute(
            update(ours, ROWS.c.id.in_(same), ROWS.c.badge_id.is_not(None)).values(
                checked_at=read_at
            )
        )

    return Learned(tuple(to_tell), changed, mismatched)


def _as_read(row: t.Any) -> cabc.Iterator[Condition]:
    """Whether nobody has written what Credly says of a row since it was read."""
    for name in (
        *("badge_id", "badge_state", "badge_state_at", "checked_at"),
        *("action", "due_at"),
    ):
        yield ROWS.c[name].is_not_distinct_from(getattr(row, name))


def _learned(row: t.Any, badge: Badge, now: dt.datetime) -> dict[str, object]:
    """Get the columns of a row that a badge changes."""
    values: dict[str, object] = {}
    state, at = row.badge_state, row.badge_state_at

    if follows(badge.state, badge.state_at, state, at):
        state, at = badge.state, badge.state_at
    elif badge.state != state:
        return {}
    elif badge.state_at is not None and (at is None or badge.state_at > at):
        at = badge.state_at

    # What was read before may not show what is.
    if row.checked_at is None or row.checked_at <= now or state != row.badge_state:
        values = {
            "expires_at": badge.expires_at,
            "public": badge.public,
            "replaced_by": badge.replaced_by,
        }
        # Not all ways to read a badge say all of it.
        values = {name: new for name, new in values.items() if new is not None}
        links = of_badge(badge, state, at)

        for name in ("accept_url", "page_url"):
            if links[name] is not None or state != row.badge_state:
                values[name] = links[name]

    values |= {"badge_state": state, "badge_state_at": at}

    if row.missed_at is not None and row.missed_at < now:
        values |= {"missed_at": None, "missing_at": None}

    ended = "replaced" if values.get("replaced_by") or row.replaced_by else None
    ended = "revoked" if state == "revoked" else ended

    if ended and row.state in ("issued", "held"):
        values["state"] = ended

        # Nobody has to decide any more about one that was withdrawn.
        if row.action == "revoke" and row.due_at is None:
            values |= at_rest()

        if values.get("action", row.action) is None:
            values["settled_at"] = now

    return {
        name: new
        for name, new in values.items()
        if name == "settled_at" or new != getattr(row, name)
    }


MISSES_APART = dt.timedelta(minutes=10)
"""Between two answers that there is no such badge, before they are believed."""


def miss(
    connection: sa.Connection,
    tenant: str,
    organization_id: str,
    badge_id: str,
    *,
    read_at: dt.datetime,
) -> bool:
    """Note that Credly was asked for a badge by its id, and has none.

    :return: Whether that is believed: it has said so before.
    """
    this = update(
        ROWS.c.tenant == tenant,
        ROWS.c.organization_id == organization_id,
        ROWS.c.badge_id == badge_id,
        ROWS.c.erased_at.is_(None),
    )
    again = this.where(ROWS.c.missed_at <= read_at - MISSES_APART)
    missing_at = sa.func.coalesce(
        ROWS.c.missing_at, sa.literal(read_at, ROWS.c.missing_at.type)
    )

    if connection.execute(
        again.values(missing_at=missing_at, checked_at=read_at)
    ).rowcount:
        return True

    connection.execute(this.where(ROWS.c.missed_at.is_(None)).values(missed_at=read_at))
    return False


def told(
    connection: sa.Connection,
    tenant: str,
    row_id: int,
    state: BadgeState | t.Literal["replaced"],
) -> None:
    """Note that the host was told what has become of a badge."""
    column = Issuance.state if state == "replaced" else Issuance.badge_state
    connection.execute(
        update(
            Issuance.tenant == tenant,
            Issuance.id == row_id,
            Issuance.erased_at.is_(None),
            column == state,
        ).values(badge_told=state)
    )
