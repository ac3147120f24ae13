"""Who did what, and when: the trail of what admins and commands have done.

An entry is written in the transaction of what it tells of, so that both are kept or
neither. What asks Credly is noted before it does, and settled after; no other entry is
ever changed, and Remove keeps them all.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import datetime as dt
import logging
import typing as t

import sqlalchemy as sa
from sqlalchemy import event

from ..catalog import clean
from ..errors import CredlyError
from ..i18n import gettext_noop
from ..models import AuditEntry
from . import clock
from .paging import fetch
from .paging import fetch_all
from .paging import Page
from .paging import Session
from .transaction import in_transaction

logger = logging.getLogger("flask_credly.audit")

COMMAND_LINE = "command line"
"""The actor of every command."""

WORKER = "worker"
"""The actor of what a worker does unasked."""

# What each needs to know stands in its target: a mapping's course and badge, a badge's
# number in the ledger, a number of rows. Never a member's name or address.
ACTIONS: dict[str, str] = {
    "connect": gettext_noop("Connect organization %(target)s"),
    "reconnect": gettext_noop("Reconnect organization %(target)s"),
    "remove": gettext_noop("Remove organization %(target)s"),
    "test": gettext_noop("Test the connection"),
    "pause": gettext_noop("Pause issuing"),
    "resume": gettext_noop("Resume issuing"),
    "restored": gettext_noop("Mark the database as restored"),
    "copy": gettext_noop("Mark the database as a copy"),
    "sync": gettext_noop("Load the badge templates"),
    "map": gettext_noop("Map %(target)s"),
    "change mapping": gettext_noop("Change mapping to %(target)s"),
    "change options": gettext_noop("Change options of mapping %(target)s"),
    "remove mapping": gettext_noop("Remove mapping %(target)s"),
    "undo": gettext_noop("Restore mapping %(target)s"),
    "send test badge": gettext_noop("Send test badge %(target)s"),
    "retry": gettext_noop("Retry badge %(target)s"),
    "retry all": gettext_noop("Retry all failed badges: %(target)s"),
    "stop retry": gettext_noop("Stop retrying failed badges"),
    "stop restoring": gettext_noop("Stop restoring badges of %(target)s"),
    "check": gettext_noop("Check badge %(target)s at Credly"),
    "revoke": gettext_noop("Revoke badge %(target)s"),
    "revoke withdrawn": gettext_noop(
        "Revoke badges of withdrawn completions: %(target)s"
    ),
    "keep withdrawn": gettext_noop("Keep badges of withdrawn completions: %(target)s"),
    "correct": gettext_noop("Correct badge %(target)s"),
    "issue again": gettext_noop("Reissue badge %(target)s"),
    "start backfill": gettext_noop(
        "Issue badges for earlier completions of %(target)s"
    ),
    "stop backfill": gettext_noop("Stop badges for earlier completions of %(target)s"),
    "take back": gettext_noop("Revoke badges: %(target)s"),
    "stop taking back": gettext_noop("Stop revoking badges: %(target)s"),
    "heal": gettext_noop("Record missing completions of %(target)s"),
    "dismiss": gettext_noop("Dismiss unrecorded completions: %(target)s"),
    "export badges": gettext_noop("Export badges"),
    "export differences": gettext_noop("Export differences from Credly"),
    "export errors": gettext_noop("Export error log"),
    "export activity": gettext_noop("Export activity"),
    "export member": gettext_noop("Export a member's data"),
    "erase member": gettext_noop("Erase a member's data"),
    "prune": gettext_noop("Delete expired data: %(target)s"),
    "compare": gettext_noop("Compare with Credly"),
    "stop comparing": gettext_noop("Stop comparing with Credly"),
    "repair": gettext_noop("Repair differences from Credly: %(target)s"),
    "rotate keys": gettext_noop("Rotate encryption keys"),
}

OF_A_BADGE = (
    *("send test badge", "retry", "check"),
    *("revoke", "correct", "issue again"),
)
"""Whose target is a badge's number in the ledger: one, or "12 → 15" where a new badge
came of it.
"""

OUTCOMES: dict[str, str] = {
    "ok": gettext_noop("Done"),
    "refused": gettext_noop("Refused"),
    "failed": gettext_noop("Failed"),
    "begun": gettext_noop("Not finished"),
}
"""``refused``: Credly or a rule of ours said no. ``failed``: Credly could not be asked.
``begun``: under way, or the process died before it could write down what came of it.
"""

LIMITS = ((5, dt.timedelta(minutes=1)), (20, dt.timedelta(hours=1)))
"""How often in what time each action that asks Credly may be tried, by all together."""

_CONNECTS = ("connect", "reconnect")


class TooOften(Exception):
    """An action was tried too often. Nothing was sent, and nothing was noted.

    :param wait: After how long it can be tried again.
    """

    def __init__(self, wait: dt.timedelta) -> None:
        super().__init__(wait)
        self.wait = wait


def note(
    connection: sa.Connection,
    tenant: str,
    by: str | None,
    action: str,
    target: str = "",
    outcome: str = "ok",
) -> int | None:
    """Add an entry to a transaction, and a record to the log once that is committed.

    :param by: Who did it: :data:`COMMAND_LINE`, or what the ``@credly.actor`` hook
        says. Empty: unknown. ``None``: no admin and no command; it is not noted.
    :param action: One of :data:`ACTIONS`.
    :param target: To what it was done.
    :param outcome: One of :data:`OUTCOMES`.
    :return: The entry's number, or ``None`` if it was not noted.
    """
    if by is None:
        return None

    if action not in ACTIONS or outcome not in OUTCOMES:
        raise ValueError(f"Not a known action and outcome: {action!r}, {outcome!r}.")

    values = {
        "tenant": tenant,
        "actor": clean(by, 255),
        "action": action,
        "target": clean(target, 800),
        "outcome": outcome,
    }
    added = connection.execute(
        sa.insert(AuditEntry).values(at=clock.now(connection), **values)
    )

    if outcome != "begun":
        _tell(connection, values)

    assert added.inserted_primary_key is not None
    return t.cast(int, added.inserted_primary_key[0])


note_alone = in_transaction(note)
"""The same in a transaction of its own: takes the engine."""


def settle(
    connection: sa.Connection, tenant: str, entry_id: int | None, outcome: str
) -> None:
    """Write down what came of an action that was noted when it began. Only once: what
    is settled stays as it is.
    """
    if entry_id is None:
        return

    this = (AuditEntry.id == entry_id, AuditEntry.tenant == tenant)
    settled = connection.execute(
        sa.update(AuditEntry)
        .where(*this, AuditEntry.outcome == "begun")
        .values(outcome=outcome)
    ).rowcount

    if settled:
        entry = connection.execute(
            sa.select(
                AuditEntry.tenant,
                AuditEntry.actor,
                AuditEntry.action,
                AuditEntry.target,
                AuditEntry.outcome,
            ).where(*this)
        ).one()
        _tell(connection, entry._asdict())


_settle_alone = in_transaction(settle)


@contextlib.contextmanager
def asking(
    engine: sa.Engine,
    tenant: str,
    by: str | None,
    action: str,
    target: str = "",
    *,
    refusals: tuple[type[Exception], ...] = (),
) -> cabc.Iterator[int | None]:
    """Note an action that asks Credly before it does so, and then what came of it.

    Gives the entry's number, for a transaction within that settles it.

    :param refusals: The errors that are a refusal. Any other :exc:`.CredlyError` is a
        failure.
    :raises TooOften: It was tried too often. The command line may do so.
    """
    entry_id = _begin(engine, tenant, by, action, target)

    try:
        yield entry_id
    except refusals:
        _settle_alone(engine, tenant, entry_id, "refused")
        raise
    except CredlyError:
        _settle_alone(engine, tenant, entry_id, "failed")
        raise

    _settle_alone(engine, tenant, entry_id, "ok")


def _begin(
    engine: sa.Engine, tenant: str, by: str | None, action: str, target: str
) -> int | None:
    entry_id = note_alone(engine, tenant, by, action, target, "begun")

    if entry_id is None or by == COMMAND_LINE:
        return entry_id

    # Counted after it was committed: of those that try at the same moment none can be
    # overlooked, and at worst too many are refused.
    wait = _wait(engine, tenant, action, entry_id)

    if wait > dt.timedelta():
        _take_back(engine, tenant, entry_id)
        logger.warning("Too many attempts: %s.", ACTIONS[action].split(" %(")[0])
        raise TooOften(wait)

    return entry_id


@in_transaction
def _wait(
    connection: sa.Connection, tenant: str, action: str, entry_id: int
) -> dt.timedelta:
    now = clock.now(connection)
    most, longest = LIMITS[-1]
    # Those of the command line do not take the admins' turns, and those of a clock that
    # was fast, as a web server's with SQLite may be, lock nobody out.
    times = connection.scalars(
        sa.select(AuditEntry.at)
        .where(
            AuditEntry.tenant == tenant,
            AuditEntry.action.in_(_CONNECTS if action in _CONNECTS else (action,)),
            AuditEntry.actor != COMMAND_LINE,
            AuditEntry.at.between(now - longest, now + LIMITS[0][1]),
            AuditEntry.id != entry_id,
        )
        .order_by(AuditEntry.at.desc())
        .limit(most)
    ).all()
    waits = [
        times[number - 1] + time - now
        for number, time in LIMITS
        if len(times) >= number
    ]
    return max(waits, default=dt.timedelta())


@in_transaction
def _take_back(connection: sa.Connection, tenant: str, entry_id: int) -> None:
    this = (AuditEntry.id == entry_id, AuditEntry.tenant == tenant)
    connection.execute(sa.delete(AuditEntry).where(*this))


def _tell(connection: sa.Connection, values: cabc.Mapping[str, t.Any]) -> None:
    # At the commit, so that what is rolled back or done again is told once or never.
    # The values have no line breaks: clean() takes them out.
    transaction = connection.get_transaction()

    @event.listens_for(connection, "commit", once=True)
    def tell(connection: sa.Connection) -> None:
        if connection.get_transaction() is not transaction:
            return

        logger.info(
            "%s by %s: %s: %s",
            values["action"],
            values["actor"] or "unknown",
            values["target"] or "-",
            values["outcome"],
            extra={f"credly_{name}": value for name, value in values.items()},
        )


def page(
    session: Session,
    tenant: str,
    *,
    before: int | None = None,
    after: int | None = None,
) -> Page[AuditEntry]:
    """Get one page."""
    return fetch(session, _of(tenant), AuditEntry.id, before=before, after=after)


def _of(tenant: str) -> sa.Select[AuditEntry]:
    return sa.select(AuditEntry).where(AuditEntry.tenant == tenant)


def of_badge(
    session: Session, tenant: str, row_id: int, since: dt.datetime, at_most: int
) -> list[AuditEntry]:
    """Get what was done to one badge, newest first.

    :param since: When the badge was recorded: there is nothing before.
    :param at_most: So many entries.
    """
    return list(
        session.scalars(
            _of(tenant)
            .where(
                # By the index on the time.
                AuditEntry.at >= since,
                AuditEntry.action.in_(OF_A_BADGE),
                sa.or_(
                    AuditEntry.target == str(row_id),
                    AuditEntry.target.startswith(f"{row_id} → "),
                    AuditEntry.target.endswith(f" → {row_id}"),
                ),
            )
            .order_by(AuditEntry.id.desc())
            .limit(at_most)
        )
    )


def any_entry(session: Session, tenant: str) -> bool:
    """Whether anything was done yet."""
    query = sa.select(AuditEntry.id).where(AuditEntry.tenant == tenant).limit(1)
    return session.scalar(query) is not None


def every(engine: sa.Engine, tenant: str) -> cabc.Iterator[AuditEntry]:
    """Get all entries, for an export."""
    return fetch_all(engine, _of(tenant), AuditEntry.id)
