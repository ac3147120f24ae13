"""Records what was sent: in the host's transaction, in one of its own, or after it."""

from __future__ import annotations

import collections.abc as cabc

import sqlalchemy as sa
from sqlalchemy import orm

from .. import interruption
from ..ledger.transaction import begin
from ..ledger.transaction import hide_parameters
from ..ledger.transaction import in_our_schema
from ..ledger.transaction import in_transaction
from . import host_transaction
from .outcome import Outcome

Write = cabc.Callable[[sa.Connection], bool]
"""Writes what was sent in the transaction of a connection. Says whether it may have
written something.
"""


class Settled(Exception):
    """An error that has to reach the host, although it is known what becomes of what
    was sent. The cause is that error.
    """


class TransactionEnded(Settled):
    """The host's transaction cannot go on: the database has ended it, or a statement of
    ours was cut short in it.
    """


def record(
    engine: sa.Engine,
    session: orm.Session,
    write: Write,
    outcome: Outcome,
    *,
    join: bool = False,
) -> None:
    """Write what was sent.

    It joins the host's transaction if that has written something, so that both
    are kept or neither; otherwise it has a transaction of its own and is durable at
    return. What is joined and fails alone is written once the host has committed.

    :param session: The host's session on the current context.
    :param outcome: What is done once it is known what became of it.
    :param join: Join the session's in any case.
    :raises TransactionEnded: What the host has written is gone, or nobody knows.
    :raises Settled: The host ended our work when that was done.
    :raises BaseException: Nothing was recorded, or will be.
    """
    joined = host_transaction.to_join(session, engine, always=join)

    def alone() -> None:
        _record_later(engine, write, outcome)

    if joined is not None:
        _join(engine, session, joined, write, outcome, alone)
        return

    # The session may hold a connection because it has read something.
    reads = session.in_transaction()

    try:
        if reads and _is_exhausted(engine.pool):
            raise sa.exc.TimeoutError("The connection pool is exhausted.")

        written = _write_alone(engine, write)
    except (sa.exc.OperationalError, sa.exc.TimeoutError) as e:
        # To join would be to lose the row where the host only reads.
        if not reads or interruption.find(e):
            raise

        host_transaction.follow(
            session, None, on_commit=alone, on_rollback=outcome.taken_back
        )
    else:
        _tell(outcome.recorded if written else outcome.adds_nothing)


def _write_alone(engine: sa.Engine, write: Write) -> bool:
    if engine.dialect.name != "sqlite":
        return in_transaction(write)(engine)

    # SQLite has waited for the lock already: the host's request is not held up again.
    with begin(engine) as connection:
        return write(connection)


def _record_later(engine: sa.Engine, write: Write, outcome: Outcome) -> None:
    try:
        written = _write_alone(engine, write)
    except BaseException as e:
        outcome.lost()

        if found := interruption.find(e):
            raise found from None
    else:
        outcome.recorded() if written else outcome.adds_nothing()


def _tell(what: cabc.Callable[[], None]) -> None:
    try:
        what()
    except BaseException as e:
        raise Settled from e


def _join(
    engine: sa.Engine,
    session: orm.Session,
    joined: host_transaction.Joined,
    write: Write,
    outcome: Outcome,
    alone: cabc.Callable[[], None],
) -> None:
    connection = joined.connection

    def follow(on_commit: cabc.Callable[[], None]) -> None:
        host_transaction.follow(
            session, connection, on_commit=on_commit, on_rollback=outcome.taken_back
        )

    try:
        try:
            with hide_parameters(), in_our_schema(connection, engine):
                written = _write_joined(connection, write)
        except Exception as e:
            if interruption.find(e) or host_transaction.was_ended(joined, e):
                raise

            # A lock that we did not get in time, the host may still get; a table that
            # is not found here may be found there.
            follow(alone)
            return

        if joins := bool(written) and host_transaction.in_transaction(connection):
            follow(outcome.recorded)
    except BaseException as e:
        if host_transaction.refuse_commit(session, connection):
            _tell(outcome.taken_back)
        else:
            # Whether the row is there or not: afterwards it is.
            follow(alone)

        raise TransactionEnded from (interruption.find(e) or e)

    if not joins:
        _tell(outcome.recorded if written else outcome.adds_nothing)


def _write_joined(connection: sa.Connection, write: Write) -> bool:
    # A failed statement spoils the whole transaction there, the host's included.
    # Elsewhere it does not, and on SQLite releasing a savepoint may even commit.
    if connection.dialect.name != "postgresql" or not host_transaction.in_transaction(
        connection
    ):
        return write(connection)

    # SQLAlchemy's own, made for any nesting, takes as long again.
    connection.exec_driver_sql(f"SAVEPOINT {host_transaction.SAVEPOINT}")
    written = write(connection)
    connection.exec_driver_sql(f"RELEASE SAVEPOINT {host_transaction.SAVEPOINT}")
    return written


def _is_exhausted(pool: sa.Pool) -> bool:
    # Requests that each hold one connection and wait for a second would wait for each
    # other, as long as the pool lets them.
    limit: int | None = getattr(pool, "_max_overflow", None)
    return (
        isinstance(pool, sa.QueuePool)
        and limit is not None
        and 0 <= limit <= pool.overflow()
        and pool.checkedin() == 0
    )
