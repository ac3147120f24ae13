"""The error log that the admin reads."""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt

import sqlalchemy as sa

from ..catalog import WHY_LEFT_OUT
from ..i18n import gettext_noop
from ..models import Account
from ..models import LogEntry
from .paging import fetch
from .paging import fetch_all
from .paging import Page
from .paging import Session
from .paging import SIZE
from .paging import up_to_newest

CONNECTION_EXPIRED = gettext_noop("Connection expired")
EVIDENCE_LEFT_OUT = gettext_noop("Evidence left out")
ISSUANCE_FAILED = gettext_noop("Badge issuance failed")
REVOCATION_FAILED = gettext_noop("Badge revocation failed")
REPLACEMENT_FAILED = gettext_noop("Badge replacement failed")
RATE_LIMIT = gettext_noop("API Rate Limit")
UNREACHABLE = gettext_noop("Credly unreachable")
WRONG_KEY = gettext_noop("Wrong encryption key")
ERRORS = (
    *(CONNECTION_EXPIRED, ISSUANCE_FAILED, REPLACEMENT_FAILED, REVOCATION_FAILED),
    *(EVIDENCE_LEFT_OUT, RATE_LIMIT, UNREACHABLE, WRONG_KEY),
)
FAILED: dict[str, str] = {
    "issue": ISSUANCE_FAILED,
    "replace": REPLACEMENT_FAILED,
    "revoke": REVOCATION_FAILED,
}
"""What is written where an action has failed."""

EXPIRED_DETAILS = (
    "Your Credly OAuth credentials have expired or were revoked. Please reconnect."
)


def failed_details(
    badge_name: str, email: str, error: str, action: str = "issue"
) -> str:
    """Word the details of a badge that was not issued, replaced or revoked."""
    return f"{_failed(badge_name, f'“{email}”', action)} {error}"


def erased_details(badge_name: str, action: str) -> str:
    """Word the same of a member who was erased."""
    return _failed(badge_name, "a member who was erased", action)


def _failed(badge_name: str, whom: str, action: str) -> str:
    to = "of" if action == "revoke" else "to"
    verb = "issue the corrected" if action == "replace" else action
    return f"Failed to {verb} badge “{badge_name}” {to} {whom}."


def left_out_details(badge_name: str, left_out: cabc.Iterable[tuple[int, str]]) -> str:
    """Word the details of a badge that was issued without some of its evidence. They
    name nobody.

    :param left_out: Numbers and reasons: see :data:`.WHY_LEFT_OUT`.
    """
    parts = (
        f"Evidence {number} was left out: {WHY_LEFT_OUT.get(why, why)}."
        for number, why in left_out
    )
    return f"Badge “{badge_name}” was issued. {' '.join(parts)}"


def rate_limit_details(error: str) -> str:
    """Word the details of a pause asked for by Credly."""
    return f"Hit Credly API rate limit; badge issuance paused. {error}"


def unreachable_details(error: str) -> str:
    """Word the details of a pause because Credly cannot be reached."""
    return f"Badges stay queued. Issuing resumes automatically. {error}"


def wrong_key_details(remedy: str) -> str:
    """Word the details of a worker that cannot decrypt the Client Secret."""
    return f"A worker cannot decrypt the stored Client Secret. {remedy}"


def write(
    connection: sa.Connection,
    tenant: str,
    at: dt.datetime,
    error: str,
    details: str,
    *,
    issuance_id: int | None = None,
) -> None:
    """Add an entry, unless the integration was removed in the meantime: Remove waits
    for what is written here, and deletes it.
    """
    columns = ["tenant", "at", "error", "details", "issuance_id"]
    table = LogEntry.__table__
    values = [
        sa.literal(value, table.c[name].type)
        for name, value in zip(
            columns[1:], [at, error, details, issuance_id], strict=True
        )
    ]
    connection.execute(
        sa.insert(LogEntry).from_select(
            columns,
            sa.select(Account.tenant, *values)
            .where(Account.tenant == tenant)
            .with_for_update(read=True, key_share=True),
        )
    )


def select(tenant: str, error: str = "", text: str = "") -> sa.Select[LogEntry]:
    """Say which entries to show.

    :param error: Only these. Empty: all.
    :param text: What the details contain. Empty: anything.
    """
    query = sa.select(LogEntry).where(LogEntry.tenant == tenant)

    if error:
        ids = sa.select(LogEntry.id).where(LogEntry.tenant == tenant)
        query = query.where(
            LogEntry.error == error,
            up_to_newest(ids, LogEntry.error, error, LogEntry.id),
        )

    if text:
        query = query.where(LogEntry.details.icontains(text, autoescape=True))

    return query


def page(
    session: Session,
    tenant: str,
    *,
    error: str = "",
    text: str = "",
    before: int | None = None,
    after: int | None = None,
    size: int = SIZE,
) -> Page[LogEntry]:
    """Get one page."""
    query = select(tenant, error, text)
    return fetch(session, query, LogEntry.id, before=before, after=after, size=size)


def every(
    engine: sa.Engine, tenant: str, error: str = "", text: str = ""
) -> cabc.Iterator[LogEntry]:
    """Get all entries, for an export."""
    return fetch_all(engine, select(tenant, error, text), LogEntry.id)
