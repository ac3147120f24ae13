"""Records a completion: one row, or none where the course is not mapped."""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import functools
import typing as t

import sqlalchemy as sa
from sqlalchemy import orm

from .. import interruption
from ..catalog import Completion
from ..models import Account
from ..models import Mapping
from ..models import Template
from . import clock
from . import host_transaction
from .transaction import begin
from .transaction import hide_parameters
from .transaction import in_our_schema
from .transaction import in_transaction
from .transitions import insert_from
from .transitions import insert_or_return
from .transitions import IS_IN_THE_WAY
from .transitions import KEY
from .transitions import NEW
from .transitions import ROWS


class Outcome(t.Protocol):
    """What is done about a completion once it is known what became of it."""

    def recorded(self) -> None:
        """The row is durable."""

    def adds_nothing(self) -> None:
        """The course is not mapped, or the row was there."""

    def taken_back(self) -> None:
        """The transaction that it was sent in was rolled back."""

    def lost(self) -> None:
        """It could not be recorded. Called where the exception is handled."""


class Settled(Exception):
    """An error that has to reach the host, although it is known what becomes of the
    completion. The cause is that error.
    """


class TransactionEnded(Settled):
    """The host's transaction cannot go on: the database has ended it, or a statement of
    ours was cut short in it.
    """


def record(
    engine: sa.Engine,
    session: orm.Session,
    completion: Completion,
    outcome: Outcome,
    *,
    join: bool = False,
) -> None:
    """Write the completion's row, unless it is there already or the course is not
    mapped.

    The row joins the host's transaction if that has written something, so that both
    are kept or neither; otherwise it has a transaction of its own and is durable at
    return. What is joined and fails alone is written once the host has committed.

    :param session: The host's session on the current context.
    :param join: Join the session's in any case.
    :raises TransactionEnded: What the host has written is gone, or nobody knows.
    :raises Settled: The host ended our work when that was done.
    :raises BaseException: Nothing was recorded, or will be.
    """
    joined = host_transaction.to_join(session, engine, always=join)

    def alone() -> None:
        _record_later(engine, completion, outcome)

    if joined is not None:
        _join(engine, session, joined, completion, outcome, alone)
        return

    # The session may hold a connection because it has read something.
    reads = session.in_transaction()

    try:
        if reads and _is_exhausted(engine.pool):
            raise sa.exc.TimeoutError("No connection is left in the pool.")

        written = record_alone(engine, completion)
    except (sa.exc.OperationalError, sa.exc.TimeoutError) as e:
        # To join would be to lose the row where the host only reads.
        if not reads or interruption.find(e):
            raise

        host_transaction.follow(
            session, None, on_commit=alone, on_rollback=outcome.taken_back
        )
    else:
        _tell(outcome.recorded if written else outcome.adds_nothing)


def _record_later(engine: sa.Engine, completion: Completion, outcome: Outcome) -> None:
    try:
        written = record_alone(engine, completion)
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


def record_alone(engine: sa.Engine, completion: Completion) -> bool:
    """Write the row in a transaction of its own.

    :return: Whether a row may have been written.
    """
    parameters = _parameters(completion)

    if engine.dialect.name != "sqlite":
        return _insert_alone(engine, parameters)

    # SQLite has waited for the lock already: the host's request is not held up again.
    with begin(engine) as connection:
        return _insert(connection, parameters)


def _join(
    engine: sa.Engine,
    session: orm.Session,
    joined: host_transaction.Joined,
    completion: Completion,
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
                written = _insert_joined(connection, _parameters(completion))
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


def _insert_joined(connection: sa.Connection, parameters: dict[str, t.Any]) -> bool:
    # A failed statement spoils the whole transaction there, the host's included.
    # Elsewhere it does not, and on SQLite releasing a savepoint may even commit.
    if connection.dialect.name != "postgresql" or not host_transaction.in_transaction(
        connection
    ):
        return _insert(connection, parameters)

    # SQLAlchemy's own, made for any nesting, takes as long again.
    connection.exec_driver_sql(f"SAVEPOINT {host_transaction.SAVEPOINT}")
    written = _insert(connection, parameters)
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


def _parameters(completion: Completion) -> dict[str, t.Any]:
    member = completion.member
    return {
        "tenant": completion.tenant,
        "member_id": member.id,
        "kind": completion.kind,
        "course_id": completion.course_id,
        "email": member.email,
        "first_name": member.first_name,
        "last_name": member.last_name,
        "completed_at": completion.completed_at,
        "recorded_at": dt.datetime.now(dt.UTC),
    }


def _insert(connection: sa.Connection, parameters: dict[str, t.Any]) -> bool:
    """Look up the mapping, take the snapshot and keep "one badge per member and
    course", by a constant number of statements.
    """
    name = connection.dialect.name
    # Not named as the columns are: those would be set and not selected.
    given = {f"p_{column}": value for column, value in parameters.items()}

    if name not in ("mysql", "mariadb"):
        return connection.execute(_statement(name), given).rowcount != 0

    # INSERT … SELECT would lock what it reads until the host's commit, and so would a
    # duplicate key: no worker could touch the row or close the gate meanwhile.
    found = connection.execute(_new_row(name), given).one_or_none()

    if found is None:
        return False

    row = parameters | NEW | dict(found._mapping)
    return connection.execute(insert_or_return(), row).rowcount != 0


_insert_alone = in_transaction(_insert)


def _given(column: str) -> sa.BindParameter[t.Any]:
    return sa.bindparam(f"p_{column}", type_=ROWS.c[column].type)


def _from_mapping(dialect: str) -> dict[str, sa.ColumnElement[t.Any]]:
    """What is not given by the host, where the course is mapped."""
    now = clock.server_now(dialect)

    if now is None:
        now = _given("recorded_at")

    return {
        "organization_id": Account.organization_id.expression,
        "template_id": Template.id.expression,
        "badge_name": Template.name.expression,
        "recorded_at": now,
        "due_at": now,
    }


def of_mapping(*columns: t.Any) -> sa.Select[t.Any]:
    """Select from the mappings, with their template and the account."""
    select: sa.Select[t.Any] = sa.select(*columns)
    return (
        select.select_from(Mapping)
        .join(Mapping.template)
        .join(Account, Account.tenant == Mapping.tenant)
    )


def _look_up(columns: dict[str, sa.ColumnElement[t.Any]]) -> sa.Select[t.Any]:
    labelled = [value.label(name) for name, value in columns.items()]
    return of_mapping(*labelled).where(
        Mapping.tenant == _given("tenant"),
        Mapping.kind == _given("kind"),
        Mapping.course_id == _given("course_id"),
    )


@functools.cache
def _new_row(dialect: str) -> sa.Select[t.Any]:
    """What is looked up, unless the row is there already."""
    return _look_up(_from_mapping(dialect)).where(~_is_there())


def _is_there() -> sa.ColumnElement[bool]:
    return sa.exists().where(
        *(_given(column) == ROWS.c[column] for column in KEY),
        ROWS.c.organization_id == Account.organization_id,
        IS_IN_THE_WAY,
    )


def _constant(value: str | int) -> sa.ColumnElement[t.Any]:
    if isinstance(value, bool):
        return sa.true() if value else sa.false()

    return sa.literal_column(repr(value))


@functools.cache
def _statement(dialect: str) -> sa.Insert:
    """``INSERT … SELECT … FROM mapping … WHERE NOT EXISTS … ON CONFLICT DO UPDATE``. Of
    a row that is there the conflict alone would keep a lock until the host's commit.
    """
    columns: dict[str, sa.ColumnElement[t.Any]] = {
        **{
            name: _given(name)
            for name in (*KEY, "email", "first_name", "last_name", "completed_at")
        },
        # Written into the statement: each parameter costs a host's request something.
        **{name: _constant(value) for name, value in NEW.items()},
        **_from_mapping(dialect),
    }
    return insert_from(dialect, list(columns), _look_up(columns).where(~_is_there()))
