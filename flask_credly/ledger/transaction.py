"""The way to the database: short, on our engine, and never by the host's session.

A host may route its session to a replica, give it a class of its own, or hold with it
the only connection or the only lock that there is. Ours is opened for one question and
closed after it.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import functools
import random
import time
import typing as t

import sqlalchemy as sa
from flask import has_request_context
from flask import request
from sqlalchemy import orm

from .. import interruption
from ..state import get_state


class Unfit(Exception):
    """What was written is not found again in the same transaction."""


TRIES = 4

# PostgreSQL: serialization failure, deadlock, lock wait. MariaDB and MySQL: a record
# that has changed since it was read, lock wait, deadlock.
_PASSING = {"40001", "40P01", "55P03", 1020, 1205, 1213}

P = t.ParamSpec("P")
T = t.TypeVar("T")


@contextlib.contextmanager
def connect(engine: sa.Engine) -> cabc.Iterator[sa.Connection]:
    """Open a connection to read by."""
    end_hosts_transaction()

    with hide_parameters(), engine.connect() as connection:
        yield connection


@contextlib.contextmanager
def begin(engine: sa.Engine) -> cabc.Iterator[sa.Connection]:
    """Open a connection to write by, and commit."""
    with (
        hide_parameters(),
        engine.connect() as connection,
        _dropped_if_cut_short(connection),  # the commit too
        connection.begin(),
        _dropped_if_cut_short(connection),
    ):
        yield connection


@contextlib.contextmanager
def _dropped_if_cut_short(connection: sa.Connection) -> cabc.Iterator[None]:
    """Keep a connection from being used again where the host has ended our work: the
    answer that is under way would be taken for that of the next statement.
    """
    try:
        yield
    except BaseException as e:
        if (
            interruption.find(e)
            and not connection.invalidated
            # It answers at once; and in memory, all would go with the connection.
            and connection.dialect.name != "sqlite"
        ):
            connection.invalidate()

        raise


def in_session(
    engine: sa.Engine,
    question: cabc.Callable[t.Concatenate[orm.Session, P], T],
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Ask a question that takes a session in one of our own. What it finds is detached:
    it stays as it was read.
    """
    with connect(engine) as connection, orm.Session(connection) as session:
        return question(session, *args, **kwargs)


@contextlib.contextmanager
def beside_the_host(engine: sa.Engine) -> cabc.Iterator[orm.Session]:
    """Open a session to read by on a page of the host's.

    Where the host's session has a transaction open, it is read in that one: with SQLite
    or a pool of one connection, ours would wait for it. The host's work is neither
    committed nor spoilt by a statement that fails.
    """
    host = get_state().session()

    if _is_ours() or not (host.in_transaction() and host.is_active):
        with connect(engine) as connection, orm.Session(connection) as session:
            yield session

        return

    connection = host.connection({"bind": engine})

    with (
        hide_parameters(),
        _spared(connection),
        in_our_schema(connection, engine),
        orm.Session(connection) as session,
    ):
        yield session


@contextlib.contextmanager
def in_our_schema(connection: sa.Connection, engine: sa.Engine) -> cabc.Iterator[None]:
    """Let statements on a connection of the host's name our tables as the engine does:
    a host may send the names of its own to a tenant's schema, for a session or a
    connection, and ours are not there.
    """
    key = "schema_translate_map"
    ours = engine.get_execution_options().get(key)
    theirs = connection.get_execution_options().get(key)

    if ours == theirs:
        yield
        return

    # A copy would not know of the transaction, and of its end.
    connection.execution_options(**{key: ours})

    try:
        yield
    finally:
        connection.execution_options(**{key: theirs})


def _spared(connection: sa.Connection) -> t.ContextManager[object]:
    # A failed statement spoils the whole transaction there. Elsewhere it does not.
    raw = connection.connection.dbapi_connection
    dialect = connection.dialect

    if (
        dialect.name != "postgresql"
        or raw is None
        or dialect.detect_autocommit_setting(raw)
    ):
        return contextlib.nullcontext()

    return connection.begin_nested()


def _is_ours() -> bool:
    return has_request_context() and request.blueprint == "credly"


def end_hosts_transaction(*, failed: bool = False) -> None:
    """End the transaction of the host's session, in a request of ours, so that none of
    our statements waits for a lock or a connection of the same request. What the host
    has written there, such as when a visitor was last seen, is kept.

    A savepoint of the host's is left to it, with all that it holds.

    :param failed: Whether code of the host's has failed in it: it is rolled back.
    """
    if not _is_ours() or not (session := get_state().session).registry.has():
        return

    host: orm.Session = session()

    if not host.in_transaction() or host.in_nested_transaction():
        return

    if failed or not host.is_active:
        host.rollback()
    else:
        _commit(host)

    # Otherwise the host's own code would find none.
    if not host.autobegin:
        host.begin()


def _commit(host: orm.Session) -> None:
    # What the host has loaded for its layout stays as it is: it may not load later.
    expires, host.expire_on_commit = host.expire_on_commit, False

    try:
        host.commit()
    finally:
        host.expire_on_commit = expires


def in_transaction(
    work: cabc.Callable[t.Concatenate[sa.Connection, P], T],
) -> cabc.Callable[t.Concatenate[sa.Engine, P], T]:
    """Give a function that takes a connection a transaction of its own: what is made
    takes the engine in its place, and commits.

    Where another transaction was in the way (a deadlock, a serialization failure, a
    lock that was not had in time) or the connection was lost, it is done again. Any
    other error is raised, and what was written is taken back.
    """

    @functools.wraps(work)
    def run(engine: sa.Engine, /, *args: P.args, **kwargs: P.kwargs) -> T:
        for number in range(1, TRIES):
            end_hosts_transaction()

            try:
                with begin(engine) as connection:
                    return work(connection, *args, **kwargs)
            except sa.exc.DBAPIError as e:
                # Some drivers make an error of theirs of a time-out of the host's.
                if not passes(e) or interruption.find(e):
                    raise

            time.sleep(random.uniform(0.01, 0.05) * 4**number)

        end_hosts_transaction()

        with begin(engine) as connection:
            return work(connection, *args, **kwargs)

    return run


@contextlib.contextmanager
def hide_parameters() -> cabc.Iterator[None]:
    """Keep names and addresses out of the text of a database error: it goes into logs
    and, with a failed job, into Redis.

    Where a statement names a table of ours, that is done anyway, wherever the error
    came up. This is for what has no statement, such as a commit.
    """
    try:
        yield
    except sa.exc.StatementError as e:
        _hide(e)
        raise


@sa.event.listens_for(sa.Engine, "handle_error")
def _hide_in_ours(context: sa.engine.ExceptionContext) -> None:
    error = context.sqlalchemy_exception

    if isinstance(error, sa.exc.StatementError) and "credly_" in (
        error.statement or ""
    ):
        _hide(error)


def _hide(error: sa.exc.StatementError) -> None:
    error.hide_parameters = True
    below: BaseException | None = error.orig

    if below is not None:
        module = type(below).__module__
        error.args = (f"({module}.{type(below).__name__}) {cause(error)}",)

    # A traceback prints what is below as well.
    while below is not None:
        words = _words(below)

        if code := _code_of_pg8000(below):
            below.sqlstate = code  # type: ignore[attr-defined]

        # A driver's first argument may be a number that somebody asks for.
        numbers = tuple(each for each in below.args[:1] if isinstance(each, int))
        below.args = (*numbers, words)

        for name in ("msg", "_full_msg"):  # of mysql-connector, which prints these
            if hasattr(below, name):
                setattr(below, name, words)

        below = below.__cause__ or below.__context__


_OF_THE_SERVER = {"OperationalError", "ProgrammingError", "InterfaceError"}
"""The drivers' classes for what is wrong with the server or the statement, and not with
what was to be written.
"""

_NAMES_COLUMNS = {1048, 1364, 1451, 1452}
"""Errors of MariaDB and MySQL that name columns and no value."""

_MAY_NAME_VALUES = {1064, 1292, 1366, 1411, "P0001", "SQLITE_CONSTRAINT_TRIGGER"}
"""Errors that may name values."""

_OF_MARIADB = {
    *("08", "0A", "21", "22", "23", "24", "25", "28", "2F", "3D", "40", "42", "44"),
    *("70", "HY", "XA"),
}
"""How the SQLSTATEs begin that MariaDB and MySQL give by themselves."""

_RAISES = ("pl_", "plpy", "plperl", "pltcl", "plv8")
"""How the files of PostgreSQL begin that run functions, and so triggers."""


def cause(error: sa.exc.SQLAlchemyError) -> str:
    """Say in one line why the database did not do it, naming nobody: the driver's own
    first line where it is about the server or the statement, else what it is called.
    """
    origin = getattr(error, "orig", None)
    return type(error).__name__ if origin is None else _words(origin)


def _words(error: BaseException) -> str:
    kind = type(error)
    codes = _codes(error)
    says_no_value = (
        kind.__module__ == "sqlite3"
        or not codes.isdisjoint(_NAMES_COLUMNS)
        or any(each.__name__ in _OF_THE_SERVER for each in kind.__mro__)
    )

    if (
        says_no_value
        and codes.isdisjoint(_MAY_NAME_VALUES)
        and not _is_of_a_trigger(error, codes)
    ):
        texts = [each for each in error.args if isinstance(each, str)]
        lines = texts[0].strip().splitlines() if texts else []
        return lines[0][:300] if lines else kind.__name__

    # PostgreSQL says apart from its words what it is about.
    about = getattr(error, "diag", None)
    names = ("table_name", "column_name", "constraint_name")
    found = [getattr(about, name, None) for name in names]
    code = next(iter(sorted(codes, key=str)), None)
    return " ".join(str(each) for each in (kind.__name__, code, *found) if each)


def _is_of_a_trigger(error: BaseException, codes: set[object]) -> bool:
    """Whether a trigger says this in its own words, under a code that it has chosen."""
    numbers = [each for each in codes if isinstance(each, int)]

    # MariaDB's and MySQL's own numbers, for a server and for a client, are below 5000.
    # A trigger may borrow one of these. Its SQLSTATE is then its own, as a rule; some
    # drivers do not tell that, and one that borrows both cannot be told apart.
    if any(each == 1644 or each >= 5000 for each in numbers):
        return True

    states = [each for each in codes if isinstance(each, str) and len(each) == 5]

    if numbers and any(each[:2] not in _OF_MARIADB for each in states):
        return True

    fields = error.args[0] if error.args else None
    told = fields.get("F") if isinstance(fields, dict) else None  # by pg8000
    file = told or getattr(getattr(error, "diag", None), "source_file", None)
    return str(file or "").startswith(_RAISES)


def _codes(error: BaseException) -> set[object]:
    """Get what a driver calls an error, in numbers or short names."""
    names = ("sqlstate", "pgcode", "errno", "sqlite_errorname")
    first = error.args[0] if error.args and isinstance(error.args[0], int) else None
    found = {first, *(getattr(error, name, None) for name in names)}
    return (found | {_code_of_pg8000(error)}) - {None}


def _code_of_pg8000(error: BaseException) -> str | None:
    fields = error.args[0] if error.args else None
    return fields.get("C") if isinstance(fields, dict) else None


def passes(error: sa.exc.DBAPIError) -> bool:
    """Whether the same transaction may succeed when it is done again."""
    codes = _codes(error.orig) if error.orig else set()
    return (
        error.connection_invalidated
        or not codes.isdisjoint(_PASSING)
        or "database is locked" in str(error.orig)
    )


def number_of(error: BaseException) -> int | None:
    """Get MariaDB's or MySQL's number of an error, whichever driver it comes from."""
    origin = getattr(error, "orig", None)
    numbers = [] if origin is None else _codes(origin)
    return next((each for each in numbers if isinstance(each, int)), None)
