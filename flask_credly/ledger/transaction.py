"""Short transactions that are tried again when the database asks for it."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import functools
import random
import time
import typing as t

import sqlalchemy as sa

TRIES = 4

# PostgreSQL: serialization failure, deadlock. MariaDB and MySQL: deadlock, lock wait.
_PASSING_STATES = {"40001", "40P01"}
_PASSING_NUMBERS = {1205, 1213}

P = t.ParamSpec("P")
T = t.TypeVar("T")


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
            try:
                with hide_parameters(), engine.begin() as connection:
                    return work(connection, *args, **kwargs)
            except sa.exc.DBAPIError as e:
                if not passes(e):
                    raise

            time.sleep(random.uniform(0.01, 0.05) * 4**number)

        with hide_parameters(), engine.begin() as connection:
            return work(connection, *args, **kwargs)

    return run


@contextlib.contextmanager
def hide_parameters() -> cabc.Iterator[None]:
    """Keep names and addresses out of the text of a database error: it goes into logs
    and, with a failed job, into Redis.
    """
    try:
        yield
    except sa.exc.StatementError as e:
        e.hide_parameters = True
        raise


def passes(error: sa.exc.DBAPIError) -> bool:
    """Whether the same transaction may succeed when it is done again."""
    origin = error.orig
    state = getattr(origin, "sqlstate", None) or getattr(origin, "pgcode", None)
    number = origin.args[0] if origin is not None and origin.args else None
    return (
        error.connection_invalidated
        or state in _PASSING_STATES
        or number in _PASSING_NUMBERS
        or "database is locked" in str(origin)
    )
