"""What is stored about one member: given out, and made to name nobody."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import secrets
import typing as t

import sqlalchemy as sa

from ..models import Attempt
from ..models import DifferenceRow
from ..models import Issuance
from ..models import LogEntry
from ..models import Reason
from ..options import Options
from . import audit
from . import clock
from . import comparisons
from . import log
from . import runs
from . import transitions
from .transaction import hide_parameters
from .transaction import in_transaction
from .transitions import removal
from .transitions.host import WITHDRAWN_FIRST

SENT_TO_CREDLY = (
    "recipient_email",
    "issued_to_first_name",
    "issued_to_last_name",
    "badge_template_id",
    "issued_at",
    "issuer_earner_id",
)
"""What each request to issue a badge holds, as Credly names it."""

_SENT_WHERE_KNOWN = {
    "middle_name": "issued_to_middle_name",
    "country": "country_name",
    "state_or_province": "state_or_province",
}
"""What it holds besides, by its name among the extras."""

_LOG = LogEntry.__table__

_MADE = ("issued", "held", "revoked", "replaced")


@dataclasses.dataclass(frozen=True)
class Erased:
    """What an erasure did.

    :param badges: Rows of the ledger that no longer name the member.
    :param cancelled: How many of them were waiting, and are now cancelled.
    :param perhaps_issued: How many of them are not known to be issued, although Credly
        may have issued them.
    :param log_entries: Entries of the error log that no longer name the member.
    :param sent_to_credly: How many of them sent the member's data to Credly.
    :param at_credly: Credly's ids of the issued badges. They are no longer stored.
    :param deleted: What was deleted besides: withdrawals whose completion never came,
        and differences from Credly.
    """

    badges: int
    cancelled: int
    perhaps_issued: int
    log_entries: int
    sent_to_credly: int
    at_credly: tuple[str, ...]
    deleted: int = 0


def erase_in(
    connection: sa.Connection, tenant: str, member_id: str, *, by: str | None = None
) -> Erased:
    """Make all rows of a member name nobody, in the transaction that is open.

    What was issued stays as a row that is counted, each under a random name of its
    own. What waits is not sent any more; a worker that has it under way loses its
    lease, and can write nothing of it down. Test badges that were sent to the member's
    address count as the member's.

    :param by: Who does it, for :func:`.audit.note`.
    """
    now = clock.now(connection)
    # They may have read of the member, and would write that down.
    runs.leave_out(connection, tenant, member_id, "backfill", "compare")
    mine = sa.and_(Issuance.tenant == tenant, Issuance.member_id == member_id)
    ids = sa.select(Issuance.id).where(mine)
    deleted = comparisons.drop_differences(connection, tenant, member_id, ids)
    # Nameless, it would keep no completion from being issued.
    deleted += removal.drop(connection, mine, Issuance.reason == WITHDRAWN_FIRST)
    rows = _take_away(connection, tenant, mine, now)
    # Once more, also of the tests: a comparison may just have ended.
    row_ids = [row.id for row in rows]
    deleted += comparisons.drop_differences(connection, tenant, member_id, row_ids)

    if not rows and not deleted:
        return Erased(0, 0, 0, 0, 0, ())

    audit.note(connection, tenant, by, "erase member")

    if rows:
        _rewrite(connection, tenant, rows)
        _end_attempts(connection, tenant, row_ids, now)

    return Erased(
        badges=len(rows),
        cancelled=sum(row.state == "none" for row in rows),
        perhaps_issued=sum(_reason(row) == "perhaps issued" for row in rows),
        log_entries=sum(_redact(connection, tenant, row) for row in rows),
        sent_to_credly=sum(
            _was_sent(row.asked, row.state, row.attempts, row.outcome_unknown)
            for row in rows
        ),
        # A test may have found the badge that the member had.
        at_credly=tuple(dict.fromkeys(row.badge_id for row in rows if row.badge_id)),
        deleted=deleted,
    )


erase = in_transaction(erase_in)


def _take_away(
    connection: sa.Connection,
    tenant: str,
    mine: sa.ColumnElement[bool],
    now: dt.datetime,
) -> cabc.Sequence[t.Any]:
    """Take a member's rows away from whoever holds them, and read them.

    Not read before: a worker that writes at this moment is waited for, and what it
    wrote is seen.
    """
    while True:
        removal.take_away(connection, now, mine)
        these = [mine]

        if emails := _emails(connection, mine):
            these.append(_tests_for(tenant, emails))
            removal.take_away(connection, now, these[-1])

        rows = connection.execute(
            sa.select(
                Issuance.id,
                Issuance.state,
                Issuance.badge_name,
                Issuance.badge_id,
                Issuance.attempts,
                Issuance.outcome_unknown,
                Issuance.erased_at,
                sa.exists().where(Attempt.issuance_id == Issuance.id).label("asked"),
            )
            .where(sa.or_(*these))
            # As they are now: a host's transaction may see them as they were.
            .with_for_update()
        ).all()

        # Also who has a badge corrected is waited for. On PostgreSQL, the new badge's
        # row is seen only after that.
        if all(row.erased_at for row in rows):
            return rows


def _emails(connection: sa.Connection, these: sa.ColumnElement[bool]) -> list[str]:
    found = connection.scalars(
        sa.select(sa.func.lower(Issuance.email))
        .where(these, Issuance.email != "")
        .distinct()
    )
    return list(found)


def _tests_for(tenant: str, emails: list[str]) -> sa.ColumnElement[bool]:
    return sa.and_(
        Issuance.tenant == tenant,
        Issuance.test,
        sa.func.lower(Issuance.email).in_(emails),
    )


def _rewrite(
    connection: sa.Connection, tenant: str, rows: cabc.Sequence[t.Any]
) -> None:
    removal.erase(
        connection,
        tenant,
        [
            {
                "row_id": row.id,
                # Each its own: they no longer say that they belong together.
                "member_id": f"erased-{secrets.token_hex(8)}",
                "state": row.state if row.state in _MADE else "cancelled",
                "reason": _reason(row),
            }
            for row in rows
        ],
    )


def _reason(row: t.Any) -> Reason | None:
    if row.state in _MADE:
        return None

    return "perhaps issued" if row.outcome_unknown else "erased"


def _end_attempts(
    connection: sa.Connection, tenant: str, ids: list[int], now: dt.datetime
) -> None:
    # Credly's own words may name the member.
    these = (Attempt.tenant == tenant, Attempt.issuance_id.in_(ids))
    connection.execute(sa.update(Attempt).where(*these).values(detail=None))
    transitions.end_attempts(connection, tenant, ids, now, "unknown")


def _redact(connection: sa.Connection, tenant: str, row: t.Any) -> int:
    words = {
        error: log.erased_details(row.badge_name, action)
        for action, error in log.FAILED.items()
    }
    return connection.execute(
        sa.update(_LOG)
        # Another says what a badge was issued without, and names nobody.
        .where(
            _LOG.c.tenant == tenant,
            _LOG.c.issuance_id == row.id,
            _LOG.c.error.in_(words),
        )
        .values(details=sa.case(words, value=_LOG.c.error))
    ).rowcount


def export(engine: sa.Engine, tenant: str, member_id: str) -> dict[str, t.Any]:
    """Get all that is stored about a member, fit for JSON. Times are ISO 8601.

    Test badges that were sent to the member's address count as the member's.
    """
    with hide_parameters(), engine.connect() as connection:
        these: sa.ColumnElement[bool] = sa.and_(
            Issuance.tenant == tenant, Issuance.member_id == member_id
        )

        if emails := _emails(connection, these):
            these = sa.or_(these, _tests_for(tenant, emails))

        rows = _read(connection, Issuance, these)
        ids = [row["id"] for row in rows]
        attempts = _read(
            connection,
            Attempt,
            sa.and_(Attempt.tenant == tenant, Attempt.issuance_id.in_(ids)),
        )
        entries = _read(
            connection,
            LogEntry,
            sa.and_(LogEntry.tenant == tenant, LogEntry.issuance_id.in_(ids)),
        )
        differences = _read(
            connection,
            DifferenceRow,
            comparisons.of_member(tenant, member_id, ids),
        )

    for row in rows:
        row["attempts_made"] = _of(row, attempts)
        row["error_log"] = _of(row, entries)
        asked = bool(row["attempts_made"])
        sent = _was_sent(asked, row["state"], row["attempts"], row["outcome_unknown"])
        row["sent_to_credly"] = list(_names_sent(row)) if sent else []

    return {"member_id": member_id, "badges": rows, "differences": differences}


def _names_sent(row: dict[str, t.Any]) -> cabc.Iterator[str]:
    """Name what a request for a badge holds of the member and the completion."""
    options, extras = Options.read(row["options"]), row["extras"] or {}
    yield from SENT_TO_CREDLY
    yield from (name for key, name in _SENT_WHERE_KNOWN.items() if key in extras)

    if options.locale_for(extras.get("locale")):
        yield "locale"

    if options.evidence and "evidence" in extras:
        yield "evidence"


def _read(
    connection: sa.Connection, model: t.Any, these: sa.ColumnElement[bool]
) -> list[dict[str, t.Any]]:
    # A lease is a worker's, and opens a row.
    columns = [each for each in model.__table__.columns if each.key != "lease"]
    found = connection.execute(sa.select(*columns).where(these).order_by(model.id))
    return [
        {
            name: value.isoformat() if isinstance(value, dt.datetime) else value
            for name, value in row._mapping.items()
        }
        for row in found
    ]


def _of(
    row: dict[str, t.Any], others: list[dict[str, t.Any]]
) -> list[dict[str, t.Any]]:
    return [each for each in others if each["issuance_id"] == row["id"]]


def _was_sent(asked: bool, state: str, attempts: int, outcome_unknown: bool) -> bool:
    # The records of its requests may be pruned, and be counted anew since a retry.
    return asked or state in _MADE or attempts > 0 or outcome_unknown
