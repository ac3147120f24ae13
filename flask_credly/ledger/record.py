"""Records a completion: one row, or none where the course is not mapped."""

from __future__ import annotations

import datetime as dt
import functools
import re
import typing as t

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy import orm

from ..catalog import Completion
from ..models import Connection
from ..models import Issuance
from ..models import Mapping
from ..models import Template
from . import clock

_WROTE = "credly_wrote"
_DML = re.compile(r"\s*(insert|update|delete|replace|merge|call|with)\b", re.I)


def record(
    engine: sa.Engine,
    session: orm.Session,
    completion: Completion,
    *,
    join: bool = False,
) -> tuple[bool, bool]:
    """Write the completion's row, by one statement, unless it is there already or the
    course is not mapped.

    The row joins the session's transaction if that has written something, so that
    both are kept or neither; otherwise it has a transaction of its own and is durable
    at return.

    :param session: The host's session on the current context.
    :param join: Join in any case.
    :return: Whether a row may have been written, and whether it waits for the host's
        commit.
    """
    parameters = _parameters(completion)

    if join or has_writes(session, engine):
        return _join(session, parameters), True

    try:
        with engine.begin() as connection:
            return connection.execute(
                _statement(engine.dialect.name), parameters
            ).rowcount != 0, False
    except sa.exc.OperationalError:
        # SQLite: somebody holds the write lock. If it is the host itself, in a way
        # that was not seen, waiting would not help and joining does.
        if not session.in_transaction():
            raise

        return _join(session, parameters), True


def _join(session: orm.Session, parameters: dict[str, t.Any]) -> bool:
    connection = session.connection()
    name = connection.dialect.name
    statement = _statement(name)

    # There, a failed statement spoils the whole transaction, the host's included.
    # Elsewhere it does not, and on SQLite releasing a savepoint may even commit.
    if name not in ("sqlite", "mysql", "mariadb"):
        with connection.begin_nested():
            return connection.execute(statement, parameters).rowcount != 0

    return connection.execute(statement, parameters).rowcount != 0


def _parameters(completion: Completion) -> dict[str, t.Any]:
    member = completion.member
    return {
        "p_member_id": member.id,
        "p_kind": completion.kind,
        "p_course_id": completion.course_id,
        "p_email": member.email,
        "p_first_name": member.first_name,
        "p_last_name": member.last_name,
        "p_completed_at": completion.completed_at,
        "p_now": dt.datetime.now(dt.UTC),
    }


@functools.cache
def _statement(dialect: str) -> sa.Insert:
    """``INSERT … SELECT … FROM mapping … ON CONFLICT DO NOTHING``: looks up the
    mapping, takes the snapshot and keeps "one badge per member and course" in one
    round trip, however many mappings there are.
    """
    table = t.cast(sa.Table, Issuance.__table__)

    def given(column: str) -> sa.ColumnElement[t.Any]:
        return sa.bindparam(f"p_{column}", type_=table.c[column].type).label(column)

    now = clock.server_now(dialect)

    if now is None:
        now = sa.bindparam("p_now", type_=table.c.recorded_at.type)

    source = {
        "member_id": given("member_id"),
        "kind": given("kind"),
        "course_id": given("course_id"),
        "organization_id": Connection.organization_id,
        "template_id": Template.id,
        "badge_name": Template.name,
        "email": given("email"),
        "first_name": given("first_name"),
        "last_name": given("last_name"),
        "completed_at": given("completed_at"),
        "recorded_at": now.label("recorded_at"),
        "state": sa.literal("pending", table.c.state.type).label("state"),
        "due_at": now.label("due_at"),
        "attempts": sa.literal(0).label("attempts"),
        "maybe_issued": sa.literal(False).label("maybe_issued"),
    }
    select = (
        sa.select(*source.values())
        .select_from(Mapping)
        .join(Template, Template.id == Mapping.template_id)
        .join(Connection, Connection.id == Mapping.connection_id)
        .where(
            Mapping.kind == sa.bindparam("p_kind", type_=table.c.kind.type),
            Mapping.course_id
            == sa.bindparam("p_course_id", type_=table.c.course_id.type),
        )
    )

    if dialect == "sqlite":
        from sqlalchemy.dialects import sqlite

        return (
            sqlite.insert(table)
            .from_select(list(source), select)
            .on_conflict_do_nothing()
        )

    if dialect in ("mysql", "mariadb"):
        from sqlalchemy.dialects import mysql

        # Not IGNORE: that would hide every other error too.
        statement = mysql.insert(table).from_select(list(source), select)
        return statement.on_duplicate_key_update(id=table.c.id)

    from sqlalchemy.dialects import postgresql

    return (
        postgresql.insert(table)
        .from_select(list(source), select)
        .on_conflict_do_nothing()
    )


def has_writes(session: orm.Session, engine: sa.Engine) -> bool:
    """Whether the session has written, or is about to write, in its open transaction.

    "In a transaction" alone says nothing: reading opens one too.
    """
    if session.new or session.dirty or session.deleted:
        return True

    if not session.in_transaction():
        return False

    connection = session.connection()
    return connection.engine is engine and _WROTE in connection.info


def watch_writes(engine: sa.Engine) -> None:
    """Note on each database connection whether its transaction has written. Seen here
    and not in the session, where bulk operations and plain connections pass unseen.
    """
    if event.contains(engine, "after_cursor_execute", _note_write):
        return

    event.listen(engine, "after_cursor_execute", _note_write)
    event.listen(engine, "commit", _forget_writes)
    event.listen(engine, "rollback", _forget_writes)


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
        or _DML.match(statement)
    ):
        connection.info[_WROTE] = True


def _forget_writes(connection: sa.Connection) -> None:
    connection.info.pop(_WROTE, None)
