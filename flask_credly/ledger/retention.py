"""Forgets what is older than it needs to be."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import threading
import typing as t

import sqlalchemy as sa

from ..models import Account
from ..models import Attempt
from ..models import AuditEntry
from ..models import DifferenceRow
from ..models import Issuance
from ..models import LogEntry
from ..settings import Settings
from . import clock
from .conditions import IS_OPEN
from .conditions import NEVER_SENT
from .transaction import in_transaction
from .transitions import removal
from .transitions.host import WITHDRAWN_FIRST
from .transitions.removal import IS_NAMED

AUDIT_DAYS = 365
"""After how many days it is forgotten who did what."""

WITHDRAWAL_DAYS = 30
"""For how many days a withdrawal waits for its completion."""

DIFFERENCE_DAYS = 30
"""After how many days the badges that differed in a comparison are forgotten."""

BATCH_SIZE = 1000
"""Rows that are changed in one transaction, so that nobody waits long for them."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is forgotten of one table.

    :param what: In words, to be put before a number.
    :param days: After how many. ``None``: never.
    :param model: The table. It is gone through by id.
    :param since: The time that counts.
    :param also: What must hold besides.
    :param forget: The transition that forgets rows of the ledger, and not of a table
        that is written here.
    """

    what: str
    days: int | None
    model: t.Any
    since: t.Any
    also: tuple[sa.ColumnElement[bool], ...] = ()
    forget: cabc.Callable[..., int] | None = None


@dataclasses.dataclass(frozen=True)
class Pruned:
    """What became of a rule.

    :param rows: How many were forgotten. ``None``: they are kept for ever.
    """

    what: str
    rows: int | None


def _rules(settings: Settings) -> tuple[Rule, ...]:
    log_days, people_days = settings.log_days, settings.personal_data_days
    given = [days for days in (log_days, people_days) if days is not None]
    return (
        # It names members too.
        Rule(
            "Error log entries deleted",
            min(given, default=None),
            LogEntry,
            LogEntry.at,
        ),
        Rule(
            "Request records deleted",
            log_days,
            Attempt,
            Attempt.finished_at,
        ),
        Rule(
            "Badges with personal data removed",
            people_days,
            Issuance,
            Issuance.settled_at,
            (sa.not_(IS_OPEN), IS_NAMED),
            removal.forget_names,
        ),
        # Their completions were committed in the very moment of Remove.
        Rule(
            "Badges of removed integrations deleted",
            0,
            Issuance,
            Issuance.recorded_at,
            (IS_OPEN, NEVER_SENT, sa.not_(_is_connected())),
            removal.drop,
        ),
        # A completion that has not come by then is not on its way any more.
        Rule(
            "Withdrawals without a completion deleted",
            WITHDRAWAL_DAYS,
            Issuance,
            # The host may say so long after it was: from then on it waits.
            sa.case(
                (Issuance.withdrawn_at > Issuance.recorded_at, Issuance.withdrawn_at),
                else_=Issuance.recorded_at,
            ),
            (Issuance.reason == WITHDRAWN_FIRST, sa.not_(IS_OPEN)),
            removal.drop,
        ),
        # Where nothing was compared since, such as after a pause.
        Rule(
            "Differences from Credly deleted",
            DIFFERENCE_DAYS,
            DifferenceRow,
            DifferenceRow.found_at,
        ),
        Rule("Activity entries deleted", AUDIT_DAYS, AuditEntry, AuditEntry.at),
    )


def _is_connected() -> sa.ColumnElement[bool]:
    return sa.exists().where(
        Account.tenant == Issuance.tenant,
        Account.organization_id == Issuance.organization_id,
    )


def prune(
    engine: sa.Engine,
    settings: Settings,
    *,
    dry_run: bool = False,
    stop: threading.Event | None = None,
) -> list[Pruned]:
    """Forget what is old, lot by lot.

    :param dry_run: Count only.
    :param stop: Once set, no further lot is begun: the next time goes on.
    """
    stop = stop or threading.Event()

    with engine.connect() as connection:
        now = clock.now(connection)

    return [
        Pruned(
            rule.what,
            None if rule.days is None else _prune(engine, rule, now, dry_run, stop),
        )
        for rule in _rules(settings)
    ]


def _prune(
    engine: sa.Engine,
    rule: Rule,
    now: dt.datetime,
    dry_run: bool,
    stop: threading.Event,
) -> int:
    assert rule.days is not None
    old = sa.and_(rule.since < now - dt.timedelta(days=rule.days), *rule.also)
    found, after = 0, 0

    # Each lot goes on where the one before ended: all of them read the table once.
    while not stop.is_set() and (ids := _next(engine, rule, old, after)):
        found += len(ids) if dry_run else _forget(engine, rule, old, ids)
        after = ids[-1]

    return found


def _next(
    engine: sa.Engine, rule: Rule, old: sa.ColumnElement[bool], after: int
) -> cabc.Sequence[int]:
    id_ = rule.model.id

    # Not in the transaction that writes: see ``claim``.
    with engine.connect() as connection:
        return connection.scalars(
            sa.select(id_).where(id_ > after, old).order_by(id_).limit(BATCH_SIZE)
        ).all()


@in_transaction
def _forget(
    connection: sa.Connection,
    rule: Rule,
    old: sa.ColumnElement[bool],
    ids: cabc.Sequence[int],
) -> int:
    # Asked once more: a badge may have been retried.
    these = (rule.model.id.in_(ids), old)

    if rule.forget is not None:
        return rule.forget(connection, *these)

    return connection.execute(sa.delete(rule.model).where(*these)).rowcount
