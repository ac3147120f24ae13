"""Writes the row of a completion, or none where the course is not mapped."""

from __future__ import annotations

import datetime as dt
import functools
import types
import typing as t
import weakref

import sqlalchemy as sa

from ..catalog import Completion
from ..options import EACH
from ..options import GAPS
from ..options import RENEW
from ..tables import ACCOUNT
from ..tables import MAPPING
from ..tables import TEMPLATE
from . import clock
from .conditions import KEY
from .conditions import ROWS
from .conditions import same_course
from .transitions.host import insert_from
from .transitions.host import insert_or_return
from .transitions.host import is_in_the_way
from .transitions.host import NEW


def insert(connection: sa.Connection, completion: Completion) -> bool:
    """Write the row in a transaction of the caller's: look up the mapping, take the
    snapshot and keep "one badge per member and course", by a constant number of
    statements.

    :return: Whether a row may have been written.
    """
    name, parameters = connection.dialect.name, _parameters(completion)
    optional = tuple(each for each in _OPTIONAL if each in parameters)
    # Not named as the columns are: those would be set and not selected.
    given = {f"p_{column}": value for column, value in parameters.items()}

    if name not in ("mysql", "mariadb"):
        return _execute(connection, _statement(name, optional), given) != 0

    # INSERT … SELECT would lock what it reads until the host's commit, and so would a
    # duplicate key: no worker could touch the row or close the gate meanwhile.
    found = connection.execute(_new_row(name, optional), given).one_or_none()

    if found is None:
        return False

    row = parameters | NEW | dict(found._mapping)
    row = {name: value for name, value in row.items() if name not in _AFTER}
    return connection.execute(insert_or_return(), row).rowcount != 0


def _execute(
    connection: sa.Connection, statement: sa.Insert, given: dict[str, t.Any]
) -> int:
    """Execute a statement by its text.

    SQLAlchemy looks up the text of a statement by all its parts, each time. Of this one
    they are many: that takes longer than the database does.

    :return: How many rows were written.
    """
    # Names of tables are translated as the text is made.
    if connection.get_execution_options().get("schema_translate_map"):
        return connection.execute(statement, given).rowcount

    known = _texts.setdefault(connection.dialect, {})

    if (text := known.get(statement)) is None:
        text = known[statement] = _Text(statement, connection.dialect)

    return connection.exec_driver_sql(
        text.sql, text.bind(given), execution_options={"preserve_rowcount": True}
    ).rowcount


class _Text:
    """A statement as a driver takes it."""

    def __init__(self, statement: sa.Insert, dialect: sa.Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self.sql = str(compiled)
        self._positions = compiled.positiontup
        self._processors = {
            name: each.type.dialect_impl(dialect).bind_processor(dialect)
            for name, each in compiled.binds.items()
        }

    def bind(self, given: dict[str, t.Any]) -> dict[str, t.Any] | tuple[t.Any, ...]:
        """Make the driver's parameters."""
        values = {
            name: process(given[name]) if process else given[name]
            for name, process in self._processors.items()
        }

        if self._positions is None:
            return values

        return tuple(values[name] for name in self._positions)


_texts: weakref.WeakKeyDictionary[sa.Dialect, dict[sa.Insert, _Text]] = (
    weakref.WeakKeyDictionary()
)


def _parameters(completion: Completion) -> dict[str, t.Any]:
    member, at = completion.member, completion.completed_at
    given = {"extras": completion.extras, "completion_id": completion.completion_id}
    return {
        "tenant": completion.tenant,
        "member_id": member.id,
        "kind": completion.kind,
        "course_id": completion.course_id,
        "email": member.email,
        "first_name": member.first_name,
        "last_name": member.last_name,
        "completed_at": at,
        **{name: at - GAPS[again] for name, again in _AFTER.items()},
        "recorded_at": dt.datetime.now(dt.UTC),
        # Most have none.
        **{name: value for name, value in given.items() if value is not None},
    }


_OPTIONAL = ("extras", "completion_id")

_AFTER = {"after_renewal": RENEW, "after_each": EACH}
"""A completion is not a further one where there is one after these times."""


def _given(column: str) -> sa.BindParameter[t.Any]:
    return sa.bindparam(f"p_{column}", type_=ROWS.c[column].type)


def _from_mapping(dialect: str) -> dict[str, sa.ColumnElement[t.Any]]:
    """What is not given by the host, where the course is mapped."""
    now = clock.server_now(dialect)

    if now is None:
        now = _given("recorded_at")

    return {
        "organization_id": ACCOUNT.c.organization_id,
        "template_id": TEMPLATE.c.id,
        "badge_name": TEMPLATE.c.name,
        "options": MAPPING.c.options,
        "recorded_at": now,
        "due_at": now,
        # What it replaces, if anything, is seen when its turn comes.
        "renewal": sa.case(
            (MAPPING.c.again == _constant(RENEW), sa.true()), else_=sa.false()
        ),
        "cycle": sa.case(
            (MAPPING.c.again.is_(None), _constant(1)),
            else_=_next_cycle(),
        ),
    }


def _same() -> tuple[sa.ColumnElement[bool], ...]:
    """Whether a row is of the same member and course."""
    given: dict[str, t.Any] = {name: _given(name) for name in KEY}
    given["organization_id"] = ACCOUNT.c.organization_id
    return same_course(ROWS.c, types.SimpleNamespace(**given))


def _next_cycle() -> sa.ScalarSelect[t.Any]:
    last = sa.func.coalesce(sa.func.max(ROWS.c.cycle), _constant(0))
    following = sa.select(last + _constant(1)).where(*_same())
    return following.correlate(ACCOUNT).scalar_subquery()


def of_mapping(*columns: t.Any) -> sa.Select[t.Any]:
    """Select from the mappings, with their template and the account."""
    select: sa.Select[t.Any] = sa.select(*columns)
    return (
        select.select_from(MAPPING)
        .join(
            TEMPLATE,
            sa.and_(
                TEMPLATE.c.tenant == MAPPING.c.tenant,
                TEMPLATE.c.id == MAPPING.c.template_id,
            ),
        )
        .join(ACCOUNT, ACCOUNT.c.tenant == MAPPING.c.tenant)
    )


def _look_up(columns: dict[str, sa.ColumnElement[t.Any]]) -> sa.Select[t.Any]:
    labelled = [value.label(name) for name, value in columns.items()]
    return of_mapping(*labelled).where(
        MAPPING.c.tenant == _given("tenant"),
        MAPPING.c.kind == _given("kind"),
        MAPPING.c.course_id == _given("course_id"),
    )


@functools.cache
def _new_row(dialect: str, optional: tuple[str, ...]) -> sa.Select[t.Any]:
    """What is looked up, unless the row is there already."""
    return _look_up(_from_mapping(dialect)).where(~_is_there(optional))


def _is_there(optional: tuple[str, ...]) -> sa.ColumnElement[bool]:
    """Whether a completion adds nothing to the rows that are there: to any, where a
    further one does not count, and otherwise to those that may be the same, or later.
    """
    at = _given("completed_at")

    if "completion_id" in optional:
        is_known = sa.or_(
            ROWS.c.completion_id == _given("completion_id"),
            ROWS.c.completed_at > at,
            # Recorded before the host gave ids.
            sa.and_(ROWS.c.completed_at == at, ROWS.c.completion_id.is_(None)),
        )
    else:
        renewal, each = (
            sa.bindparam(f"p_{name}", type_=ROWS.c.completed_at.type) for name in _AFTER
        )
        is_known = ROWS.c.completed_at > sa.case(
            (MAPPING.c.again == _constant(RENEW), renewal), else_=each
        )

    return sa.exists().where(
        *_same(),
        _in_the_way(),
        sa.or_(MAPPING.c.again.is_(None), is_known, ROWS.c.withdrawn_at >= at),
    )


def _in_the_way() -> sa.ColumnElement[bool]:
    return is_in_the_way(_given("completed_at"))


def _constant(value: str | int) -> sa.ColumnElement[t.Any]:
    if isinstance(value, bool):
        return sa.true() if value else sa.false()

    return sa.literal_column(repr(value))


@functools.cache
def _statement(dialect: str, optional: tuple[str, ...]) -> sa.Insert:
    """``INSERT … SELECT … FROM mapping … WHERE NOT EXISTS … ON CONFLICT DO UPDATE``. Of
    a row that is there the conflict alone would keep a lock until the host's commit.
    """
    names = (*KEY, "email", "first_name", "last_name", "completed_at")
    columns: dict[str, sa.ColumnElement[t.Any]] = {
        **{name: _given(name) for name in names},
        **{name: _given(name) for name in optional},
        # Written into the statement: each parameter costs a host's request something.
        **{name: _constant(value) for name, value in NEW.items()},
        **_from_mapping(dialect),
    }
    return insert_from(
        dialect, list(columns), _look_up(columns).where(~_is_there(optional))
    )
