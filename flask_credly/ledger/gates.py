"""The gates that stop all issuing: a pause, expired credentials, the admin's switch.

They stand on the account, not in the rows: closing and opening them rewrites nothing.
A verdict names the account's generation: one on credentials that were replaced in the
meantime changes nothing.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import random
import typing as t

import sqlalchemy as sa

from ..models import Account
from ..models import Installation
from . import audit
from . import clock
from . import log
from .transaction import connect
from .transaction import in_transaction
from .transaction import Unfit

Reason = t.Literal["rate limit", "unavailable"]

BATCH_AGAIN = dt.timedelta(days=1)
"""After which a request for several badges is tried again that Credly did not take."""

CAREFUL = dt.timedelta(minutes=10)
"""For how long after a rate limit few requests are in flight."""

PACE_HELD = dt.timedelta(seconds=10)
"""After which another worker sends if nothing was heard of the one that did."""

FIRST_PAUSE = 2.0
"""Seconds of the first pause when Credly is unavailable. Each that follows it is twice
as long.
"""

LONGEST_PAUSE = 300.0
"""Seconds at most, but where Credly asks for more."""

SOON = dt.timedelta(minutes=5)
"""Within which it is asked what became of a badge that was issued."""

HOUR = dt.timedelta(hours=1)
"""For which badges of withdrawn completions are counted that are revoked."""

SYNC_INTERVAL = dt.timedelta(days=1)
"""After which the badge templates are loaded once more."""

SYNC_AGAIN = dt.timedelta(hours=1)
"""After which a sync that failed is tried again."""


@dataclasses.dataclass(frozen=True)
class Gate:
    """What a worker needs to know before it sends anything.

    :param installation: The installation's name towards Credly.
    :param is_open: Whether anything may be sent now.
    :param probing: A pause is over and nothing has succeeded since: begin gently.
    :param careful: Credly has asked for a pause not long ago: keep few in flight over
        all workers, as all of them are refused at the next limit.
    :param opens_in: Seconds until a pause ends, where that alone is in the way.
    :param polls_late: What becomes of a new badge would be asked for too late.
    :param batches: Several badges may be asked for with one request.
    :param restored: The ledger may lack badges that were issued.
    """

    tenant: str
    generation: str
    organization_id: str
    installation: str
    is_open: bool
    probing: bool
    careful: bool
    opens_in: float | None
    batches: bool
    restored: bool
    polls_late: bool = False


def read(engine: sa.Engine, tenant: str) -> Gate | None:
    """Read the gate of a community. ``None``: it has no account."""
    with connect(engine) as connection:
        now = clock.now(connection)
        row = connection.execute(
            sa.select(
                Account.generation,
                Account.organization_id,
                Account.expired,
                Account.switched_off,
                Account.paused_until,
                Account.limited_at,
                Account.batch_refused_at,
                Account.poll_due_at,
                Installation.key,
                Installation.is_copy,
                Installation.restored_at,
            )
            .join(Installation, sa.true())
            .where(Account.tenant == tenant)
        ).one_or_none()

    if row is None:
        return None

    until = row.paused_until
    paused = until is not None and until > now
    off = row.expired or row.switched_off or row.is_copy
    return Gate(
        tenant,
        row.generation,
        row.organization_id,
        row.key,
        is_open=not (off or paused),
        probing=until is not None,
        careful=row.limited_at is not None and row.limited_at > now - CAREFUL,
        opens_in=(until - now).total_seconds() if paused and not off else None,
        batches=takes_batches(row.batch_refused_at, now),
        restored=row.restored_at is not None,
        polls_late=row.poll_due_at is None or row.poll_due_at > now + SOON,
    )


def takes_batches(refused_at: dt.datetime | None, now: dt.datetime) -> bool:
    """Whether to ask an account's Credly for several badges with one request.

    :param refused_at: When it last did not take such a request.
    """
    return refused_at is None or refused_at <= now - BATCH_AGAIN


@in_transaction
def refuse_batches(connection: sa.Connection, tenant: str, generation: str) -> None:
    """Note that Credly does not take a request for several badges as it should."""
    now = clock.now(connection)
    connection.execute(update(tenant, generation).values(batch_refused_at=now))


def is_unpaused(now: dt.datetime) -> sa.ColumnElement[bool]:
    """Whether an account is not in a pause."""
    return sa.or_(Account.paused_until.is_(None), Account.paused_until <= now)


def may_issue() -> tuple[sa.ColumnElement[bool], ...]:
    """Whether nothing but a pause keeps an account from being asked for badges."""
    return (
        sa.exists().where(Installation.is_copy.is_(False)),
        Account.expired.is_(False),
        Account.switched_off.is_(False),
    )


def sync_is_due(now: dt.datetime) -> tuple[sa.ColumnElement[bool], ...]:
    """Whether an account's list of badge templates is old, and Credly can be asked."""

    def is_before(column: t.Any, time: dt.datetime) -> sa.ColumnElement[bool]:
        return sa.or_(column.is_(None), column < time)

    return (
        Account.expired.is_(False),
        is_unpaused(now),
        is_before(Account.templates_synced_at, now - SYNC_INTERVAL),
        is_before(Account.templates_failed_at, now - SYNC_AGAIN),
    )


def is_open(tenant: str, generation: str, now: dt.datetime) -> sa.ColumnElement[bool]:
    """The same as a condition, to be checked by the statement that depends on it."""
    return (
        sa.select(Account.tenant)
        .where(*this(tenant, generation), *may_issue(), is_unpaused(now))
        .exists()
    )


def this(tenant: str, generation: str) -> tuple[sa.ColumnElement[bool], ...]:
    """Whether an account is still the one that Credly was asked for: another may be to
    another organization.
    """
    return (Account.tenant == tenant, Account.generation == generation)


def update(tenant: str, generation: str) -> sa.Update:
    """Update an account, if it is still the one that Credly was asked for: another may
    be to another organization.
    """
    return sa.update(Account).where(*this(tenant, generation))


def lock(
    connection: sa.Connection, tenant: str, *where: sa.ColumnElement[bool]
) -> bool:
    """Take an account's lock until the end of the transaction. First of all: what is
    read after it stays so.

    :param where: What must hold of the account.
    :return: Whether there is such an account.
    :raises Unfit: There is, and the database does not count it.
    """
    these = (Account.tenant == tenant, *where)
    account = sa.update(Account).where(*these).values(tenant=tenant)

    if connection.execute(account).rowcount:
        return True

    if connection.dialect.name not in ("mysql", "mariadb"):
        return False

    # Without the client flag FOUND_ROWS it counts only the rows that a statement
    # changes, and this one changes none: it would seem that there is no account.
    there = sa.select(Account.tenant).where(*these).with_for_update()

    if connection.scalar(there) is None:
        return False

    # It may just have been connected.
    if connection.execute(account).rowcount:
        return True

    raise Unfit(
        "The connection to the database counts the rows that a statement changes"
        " instead of those that it finds. Run the command flask credly doctor."
    )


def count_withdrawals(
    connection: sa.Connection, tenant: str, number: int, *, most: int
) -> bool:
    """Count badges that are about to be revoked as their completion was withdrawn,
    unless these would be too many within an hour. The account is locked.

    :return: Whether they were counted.
    """
    this = Account.tenant == tenant
    now = clock.now(connection)
    account = connection.execute(
        sa.select(Account.withdrawals, Account.withdrawals_since).where(this)
    ).one()
    since = account.withdrawals_since

    if since is not None and since > now - HOUR:
        number += account.withdrawals
    else:
        since = now

    if number > most:
        return False

    connection.execute(
        sa.update(Account)
        .where(this)
        .values(withdrawals=number, withdrawals_since=since)
    )
    return True


@in_transaction
def pause(
    connection: sa.Connection,
    tenant: str,
    generation: str,
    reason: Reason,
    seconds: float,
    error: str,
) -> dt.datetime | None:
    """Close the gate for a while.

    Writes one log entry a pause; while Credly cannot be reached, one an outage.

    :param seconds: As Credly says. Where it is unavailable, at least: the pause grows
        from one to the next.
    :return: Until when, or ``None`` if another worker had closed it already.
    """
    now = clock.now(connection)
    account = update(tenant, generation)
    is_open = account.where(is_unpaused(now))
    values: dict[str, t.Any] = {"pause_reason": reason}
    asked_for = until = now + dt.timedelta(seconds=seconds)

    if reason == "rate limit":
        values["limited_at"] = now
    else:
        failures = (
            connection.scalar(
                sa.select(Account.failures).where(*this(tenant, generation))
            )
            or 0
        )
        values["failures"] = failures + 1
        until = max(until, now + _back_off(failures))
        # The outage that is in the log already goes on.
        known = is_open.where(Account.pause_reason == reason)

        if connection.execute(known.values(paused_until=until, **values)).rowcount:
            return until

    if connection.execute(is_open.values(paused_until=until, **values)).rowcount:
        if reason == "rate limit":
            what, details = log.RATE_LIMIT, log.rate_limit_details(error)
        else:
            what, details = log.UNREACHABLE, log.unreachable_details(error)

        log.write(connection, tenant, now, what, details)

        return until

    if reason == "rate limit":
        connection.execute(account.values(limited_at=now))

    connection.execute(
        account.where(Account.paused_until < asked_for).values(paused_until=asked_for)
    )
    return None


def _back_off(failures: int) -> dt.timedelta:
    # Not all sites of an organization at the same moment.
    jitter = random.uniform(1, 1.25)
    longest = LONGEST_PAUSE / 1.25
    return dt.timedelta(
        seconds=jitter * min(FIRST_PAUSE * 2.0 ** min(failures, 20), longest)
    )


@in_transaction
def resume(connection: sa.Connection, tenant: str, generation: str) -> None:
    """Note that a request succeeded after a pause."""
    connection.execute(
        sa.update(Account)
        .where(
            *this(tenant, generation),
            Account.paused_until <= clock.now(connection),
        )
        .values(paused_until=None, pause_reason=None, failures=0)
    )


@in_transaction
def reserve(
    connection: sa.Connection,
    tenant: str,
    number: int,
    per_second: float,
    *,
    at_most: float,
) -> float | None:
    """Reserve the time of some requests, evenly spaced, for one of all workers.

    :param at_most: Seconds that the first may lie ahead.
    :return: Seconds until the first. ``None``: others have reserved all that time.
    """
    lock(connection, tenant)
    now = clock.now(connection)
    account = Account.tenant == tenant
    next_at = connection.scalar(sa.select(Account.next_request_at).where(account))
    first = max(next_at or now, now)

    if (wait := (first - now).total_seconds()) > at_most:
        return None

    following = first + dt.timedelta(seconds=number / per_second)
    connection.execute(
        sa.update(Account).where(account).values(next_request_at=following)
    )
    return wait


@in_transaction
def hold_pace(
    connection: sa.Connection, gate: Gate, held_until: dt.datetime | None
) -> dt.datetime | None:
    """Be the one worker that sends requests, or stay it.

    :param held_until: As this worker was told last. ``None``: it is not the one.
    :return: Until when it is. ``None``: another is.
    """
    now = clock.now(connection)
    until = now + PACE_HELD
    held = Account.pace_held_until
    is_free = sa.or_(held.is_(None), held <= now, held == held_until)
    mine = update(gate.tenant, gate.generation).where(is_free)
    return (
        until
        if connection.execute(mine.values(pace_held_until=until)).rowcount
        else None
    )


@in_transaction
def leave_pace(connection: sa.Connection, gate: Gate, held_until: dt.datetime) -> None:
    """Let another worker send."""
    mine = update(gate.tenant, gate.generation)
    mine = mine.where(Account.pace_held_until == held_until)
    connection.execute(mine.values(pace_held_until=None))


@in_transaction
def expire(connection: sa.Connection, tenant: str, generation: str) -> bool:
    """Close the gate until the admin reconnects. Writes one log entry an outage.

    :return: Whether this call closed it.
    """
    now = clock.now(connection)
    closed = connection.execute(
        update(tenant, generation)
        .where(Account.expired.is_(False))
        .values(checked_at=now, expired=True, token=None, token_fetch_until=None)
    ).rowcount

    if closed:
        log.write(connection, tenant, now, log.CONNECTION_EXPIRED, log.EXPIRED_DETAILS)

    return bool(closed)


@in_transaction
def note_keyless(
    connection: sa.Connection,
    tenant: str,
    generation: str,
    seconds: float,
    remedy: str,
) -> bool:
    """Note that a worker cannot decrypt the Client Secret. The gate stays open: others
    may have the key. Writes one log entry, as long as it is noted again in time.

    :param seconds: How long it is taken to be there.
    :return: Whether this is new.
    """
    now = clock.now(connection)
    until = now + dt.timedelta(seconds=seconds)
    account = update(tenant, generation)
    known = Account.keyless_until > now

    if connection.execute(
        account.where(known, Account.keyless_until < until).values(keyless_until=until)
    ).rowcount:
        return False

    is_new = sa.or_(Account.keyless_until.is_(None), Account.keyless_until <= now)

    if not connection.execute(
        account.where(is_new).values(keyless_until=until)
    ).rowcount:
        return False

    log.write(connection, tenant, now, log.WRONG_KEY, log.wrong_key_details(remedy))
    return True


@in_transaction
def switch(
    connection: sa.Connection, tenant: str, *, on: bool, by: str | None = None
) -> None:
    """Let the admin stop all issuing, or let it go on. What was begun is finished.

    :param by: Who does it, for :func:`.audit.note`.
    """
    account = sa.update(Account).where(Account.tenant == tenant)

    if connection.execute(account.values(switched_off=not on)).rowcount:
        audit.note(connection, tenant, by, "resume" if on else "pause")


@in_transaction
def take_turn(connection: sa.Connection, gate: Gate, seen: dt.datetime | None) -> bool:
    """Begin to serve an account, unless another worker has begun since it was looked
    at.

    :param seen: When it was served last, as it was looked at.
    """
    last = Account.served_at
    unchanged = last.is_(None) if seen is None else last == seen
    return bool(
        connection.execute(
            update(gate.tenant, gate.generation)
            .where(unchanged)
            .values(served_at=clock.now(connection))
        ).rowcount
    )
