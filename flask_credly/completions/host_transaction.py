"""The host's open transactions: which one a completion joins, and what follows its end.

What a transaction has written is noted on the database connection, and not in the
session, where bulk operations and plain connections pass unseen.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import logging
import re
import threading
import typing as t
import weakref

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy import orm

from .. import interruption
from ..ledger.transaction import number_of
from ..ledger.transitions.host import ANY_WRITE

logger = logging.getLogger("flask_credly")

_WATCHED = "credly_watched"
_OPENED = "credly_opened"
_FOLLOW_UPS = "credly_follow_ups"
_ENDED = "credly_ended"

SAVEPOINT = "credly"

_WRITES = re.compile(
    # Blanks and comments, without a way back.
    r"(?>\s+|--[^\n]*|/\*.*?\*/)*+"
    r"((insert|update|delete|replace|merge|call)\b"
    r"|with\b.*\b(insert\s+into|update\b.+\bset|delete\s+from|merge\s+into)\b)",
    re.I | re.S,
)


@dataclasses.dataclass(eq=False)
class FollowUp:
    """What has to be done when a transaction has ended.

    :param on_commit: Called if it was committed. Neither may raise, but for what the
        host throws in: that would break its commit or rollback.
    :param on_rollback: Called if it was not.
    :param connection: Whose transaction it is. ``None``: the session's, in any case.
    """

    on_commit: cabc.Callable[[], None]
    on_rollback: cabc.Callable[[], None]
    # A strong one would keep it from being returned where nobody closes it.
    connection: weakref.ref[sa.Connection] | None = None
    committed: bool = False
    session: weakref.ref[orm.Session] | None = None
    """Whose end is waited for. ``None``: the connection's."""

    def run(self) -> None:
        """Call one of the two."""
        if self.committed or self.connection is None:
            self.on_commit()
        else:
            self.on_rollback()


class _Watched:
    """What is known of the transaction that is open on a database connection."""

    __slots__ = ("ended", "follow_ups", "savepoints", "wrote")

    def __init__(self) -> None:
        self.wrote = False
        # What was there at each of them. By order and not by name: that is only given
        # after the event.
        self.savepoints: list[tuple[bool, int]] = []
        self.follow_ups: list[FollowUp] = []
        self.ended: list[FollowUp] = []

    def end(self, *, committed: bool) -> None:
        self.wrote = False
        self.savepoints.clear()

        for each in self.follow_ups:
            each.committed = committed

        self.ended += self.follow_ups
        self.follow_ups = []


@dataclasses.dataclass(frozen=True)
class Joined:
    """A transaction of the host's that a completion becomes a part of.

    :param begun: Whether anything in it may have been done before.
    """

    connection: sa.Connection
    begun: bool


class _Writers(threading.local):
    """The connections of this thread whose transaction has written."""

    def __init__(self) -> None:
        self.connections: weakref.WeakSet[sa.Connection] = weakref.WeakSet()


_writers = _Writers()


def to_join(
    session: orm.Session, engine: sa.Engine, *, always: bool = False
) -> Joined | None:
    """Find the connection to the engine's database whose open transaction belongs to
    the host's work: the session's if it has written or is about to, on whichever of
    its engines; else that of a plain connection of this thread.

    :param always: Whether the session's is meant in any case.
    """
    opened = _opened(session)

    if not always and not _has_pending(session) and not any(map(_has_written, opened)):
        return _plain_writer(engine)

    bind = _bind_of(session, engine, opened)
    _warn_of_two_databases(session, engine, opened)
    opened = list(opened)

    try:
        # With the bind named, no get_bind() of the host's can send it elsewhere.
        connection = session.connection(bind_arguments={"bind": bind})
    except sa.exc.PendingRollbackError:
        raise
    except sa.exc.InvalidRequestError:
        # In the midst of its commit, and what it wrote is durable by now; or nothing
        # was begun, and it begins nothing by itself.
        return None

    if connection.dialect.name == "sqlite":
        return Joined(connection, in_transaction(connection))

    return Joined(connection, connection in opened)


def _warn_of_two_databases(
    session: orm.Session, engine: sa.Engine, opened: list[sa.Connection]
) -> None:
    """Say once that what the host has written cannot be kept with the completion."""
    global _warned

    if _warned or session.twophase:
        return

    if any(
        _has_written(each) and not _same_database(each.engine, engine)
        for each in opened
    ):
        _warned = True
        logger.warning(
            "The session has written to a second database besides the one with"
            " Flask-Credly's tables. A crash between the two commits can lose one"
            " of them. Set twophase=True on the session to prevent this.",
            extra={"credly_event": "two_databases"},
        )


_warned = False


def follow(
    session: orm.Session,
    connection: sa.Connection | None,
    *,
    on_commit: cabc.Callable[[], None],
    on_rollback: cabc.Callable[[], None],
) -> None:
    """Do something after the open transaction of the connection; without one, after the
    session's, whatever becomes of that.
    """
    each = FollowUp(on_commit, on_rollback)

    if connection is not None:
        each.connection = weakref.ref(connection)
        _watched(connection).follow_ups.append(each)

    if connection is None or connection in _opened(session):
        each.session = weakref.ref(session)
        session.info.setdefault(_FOLLOW_UPS, []).append(each)


def in_transaction(connection: sa.Connection) -> bool:
    """Whether the database has a transaction open, or opens one by itself."""
    raw = connection.connection.dbapi_connection

    if raw is None:
        return False

    if connection.dialect.name == "sqlite":
        return bool(t.cast(t.Any, raw).in_transaction)

    return not connection.dialect.detect_autocommit_setting(raw)


def was_ended(joined: Joined, error: Exception) -> bool:
    """Whether an error has ended the transaction of the host's that the statement was
    sent in, so that what was written before is gone. Otherwise it can go on.
    """
    connection = joined.connection

    if connection.closed or connection.invalidated:
        return True

    name = connection.dialect.name

    try:
        if name == "sqlite":
            # A full disk, for example, rolls back all.
            return joined.begun and not in_transaction(connection)

        if name == "postgresql":
            if in_transaction(connection):
                connection.exec_driver_sql(f"ROLLBACK TO SAVEPOINT {SAVEPOINT}")

            return False

        if not joined.begun:
            return False

        if (number := number_of(error)) == 1205:
            setting = "SELECT @@innodb_rollback_on_timeout"
            return bool(connection.exec_driver_sql(setting).scalar())

        return number in _END_ALL or (
            # There is no such variable in MySQL.
            getattr(connection.dialect, "is_mariadb", False)
            and _has_written(connection)
            and not connection.exec_driver_sql("SELECT @@in_transaction").scalar()
        )
    except Exception:
        # It cannot even be asked. Some drivers let errors of the network through.
        return True


_END_ALL = {
    1213,  # deadlock, also of a cluster
    1020,  # the record has changed since it was read
    1206,  # the table of locks is full
    1402,  # XA: rolled back; for a time-out; for a deadlock
    1613,
    1614,
}
"""MariaDB and MySQL: after these InnoDB has rolled back the whole transaction."""


def refuse_commit(session: orm.Session, connection: sa.Connection) -> bool:
    """Let nothing be committed any more until the host has rolled back: what it writes
    from now on would be half of its transaction.

    :return: Whether that is sure. In memory, a plain connection cannot be kept from it.
    """
    root = session.get_transaction()
    refused = root is not None and connection in _opened(session)

    if root is not None and refused:
        session.info[_ENDED] = weakref.ref(root)

    # In memory, the database would go with the connection.
    if not connection.invalidated and not isinstance(
        connection.engine.pool, (sa.StaticPool, sa.SingletonThreadPool)
    ):
        connection.invalidate()

    return refused or connection.closed or connection.invalidated


def _watched(connection: sa.Connection) -> _Watched:
    found = connection.info.get(_WATCHED)

    if found is None:
        found = connection.info[_WATCHED] = _Watched()

    return t.cast(_Watched, found)


def _look(connection: sa.Connection) -> _Watched | None:
    # A lost connection has no info any more, and asking for it would raise into the
    # host's rollback.
    if connection.closed or connection.invalidated:
        return None

    return connection.info.get(_WATCHED)


def _has_written(connection: sa.Connection) -> bool:
    watched = _look(connection)
    return watched is not None and watched.wrote


def _has_pending(session: orm.Session) -> bool:
    # What was set to what it was stays "dirty", and is never written.
    return bool(
        session.new or session.deleted or any(map(session.is_modified, session.dirty))
    )


def _opened(session: orm.Session) -> list[sa.Connection]:
    """The connections of the session's open transaction."""
    root, connections = session.info.get(_OPENED, (None, []))
    return connections if root and root() is session.get_transaction() else []


def _plain_writer(engine: sa.Engine) -> Joined | None:
    if not _writers.connections:
        return None

    found = [
        each
        for each in list(_writers.connections)
        if _has_written(each) and _same_database(each.engine, engine)
    ]
    # Of two, neither can be told to be the one.
    return Joined(found[0], begun=True) if len(found) == 1 else None


def _bind_of(
    session: orm.Session, engine: sa.Engine, opened: list[sa.Connection]
) -> sa.Engine | sa.Connection:
    ours = [each for each in opened if _same_database(each.engine, engine)]

    if ours:
        return next(filter(_has_written, ours), ours[0])

    try:
        # Where it will write to, should another engine lead there too, or a connection
        # that it was bound to.
        bind = session.get_bind(clause=ANY_WRITE)
    except Exception as e:
        # It may know an engine for its own models only.
        if interruption.find(e):
            raise

        return engine

    return bind if _same_database(bind.engine, engine) else engine


def _same_database(one: sa.Engine, other: sa.Engine) -> bool:
    return one.pool is other.pool or (
        one.url == other.url and one.url.database not in (None, "", ":memory:")
    )


# From here on: what SQLAlchemy tells. All engines, since a session may have several,
# and a host may make one at any time.


@event.listens_for(sa.Engine, "after_cursor_execute")
def _note_write(
    connection: sa.Connection,
    cursor: object,
    statement: str,
    parameters: object,
    context: t.Any,
    executemany: bool,
) -> None:
    if (
        context.isinsert
        or context.isupdate
        or context.isdelete
        or _WRITES.match(statement)
    ) and in_transaction(connection):
        _watched(connection).wrote = True
        _writers.connections.add(connection)


@event.listens_for(sa.Engine, "begin")
def _begin(connection: sa.Connection) -> None:
    if watched := _look(connection):
        ended, watched.ended = watched.ended, []
        _finish(ended)


@event.listens_for(sa.Engine, "savepoint")
def _note_savepoint(connection: sa.Connection, _: object) -> None:
    watched = _watched(connection)
    watched.savepoints.append((watched.wrote, len(watched.follow_ups)))


@event.listens_for(sa.Engine, "release_savepoint")
def _release_savepoint(connection: sa.Connection, *_: object) -> None:
    if (watched := _look(connection)) and watched.savepoints:
        watched.savepoints.pop()


@event.listens_for(sa.Engine, "rollback_savepoint")
def _roll_back_savepoint(connection: sa.Connection, *_: object) -> None:
    if (watched := _look(connection)) and watched.savepoints:
        watched.wrote, count = watched.savepoints.pop()
        watched.ended += watched.follow_ups[count:]
        del watched.follow_ups[count:]


@event.listens_for(sa.Engine, "commit")
@event.listens_for(sa.Engine, "commit_twophase")
def _commit(connection: sa.Connection, *_: object) -> None:
    if watched := _look(connection):
        watched.end(committed=True)


@event.listens_for(sa.Engine, "rollback")
@event.listens_for(sa.Engine, "rollback_twophase")
def _roll_back(connection: sa.Connection, *_: object) -> None:
    if watched := _look(connection):
        watched.end(committed=False)


@event.listens_for(sa.Engine, "handle_error")
def _note_error(context: sa.engine.ExceptionContext) -> None:
    # The event of a commit comes before it.
    if context.statement is None and context.connection is not None:
        if watched := _look(context.connection):
            for each in watched.ended:
                each.committed = False


@event.listens_for(sa.Pool, "checkin")
def _check_in(_: object, record: sa.pool.ConnectionPoolEntry) -> None:
    # Also where nobody has ended the transaction, as the garbage collector does.
    if watched := record.info.pop(_WATCHED, None):
        try:
            _finish([*watched.ended, *watched.follow_ups])
        except BaseException:
            # Or the pool would never have it back.
            t.cast(t.Any, record).checkin(False)
            raise


def _finish(follow_ups: list[FollowUp]) -> None:
    # Those of a session wait for its end: the connection is free then.
    _run(each for each in follow_ups if each.session is None or each.session() is None)


def _run(follow_ups: cabc.Iterable[FollowUp]) -> None:
    """Run them in their order, each of them whatever another one raises: the host may
    end its work in any. What was raised comes after the last.
    """
    with contextlib.ExitStack() as stack:
        for each in reversed([*follow_ups]):
            stack.callback(each.run)


@event.listens_for(orm.Session, "after_begin")
def _note_connection(
    session: orm.Session,
    transaction: orm.SessionTransaction,
    connection: sa.Connection,
) -> None:
    root = t.cast(orm.SessionTransaction, session.get_transaction())
    known, connections = session.info.get(_OPENED, (None, []))

    if known is None or known() is not root:
        connections = []
        session.info[_OPENED] = (weakref.ref(root), connections)

    if connection not in connections:
        connections.append(connection)


@event.listens_for(orm.Session, "before_commit", insert=True)
def _refuse(session: orm.Session) -> None:
    ended = session.info.get(_ENDED)

    if ended is not None and ended() is session.get_transaction():
        raise sa.exc.PendingRollbackError(
            "The transaction ended while Flask-Credly recorded a completion in"
            " it. The database rolled back the earlier writes, or a statement was"
            " interrupted. Roll back and repeat the whole transaction."
        )


# First, should one of the host's raise.
@event.listens_for(orm.Session, "after_transaction_end", insert=True)
def _end_session(session: orm.Session, transaction: orm.SessionTransaction) -> None:
    if transaction.parent is not None:
        return

    session.info.pop(_OPENED, None)
    session.info.pop(_ENDED, None)

    ended = []

    for each in session.info.pop(_FOLLOW_UPS, ()):
        # A transaction that the session was only a part of goes on.
        if each.connection is not None and _is_open(each, each.connection()):
            each.session = None
        else:
            ended.append(each)

    _run(ended)


def _is_open(each: FollowUp, connection: sa.Connection | None) -> bool:
    watched = None if connection is None else _look(connection)
    return watched is not None and each in watched.follow_ups
