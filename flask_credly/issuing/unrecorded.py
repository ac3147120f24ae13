"""Keeps count of the completions that could not be recorded.

The database is where the count belongs, and often what failed: its disk is full, it is
read-only, or our tables are missing. Then Redis has the count until a worker brings it
into the database; and where that is away too, this process until one of them is back.
No request waits for any of it: a thread writes.
"""

from __future__ import annotations

import atexit
import datetime as dt
import logging
import os
import re
import threading
import typing as t
import weakref

import sqlalchemy as sa
from flask import current_app
from flask import has_app_context
from sqlalchemy import orm

from .. import interruption
from ..ledger import host_transaction
from ..ledger import unrecorded
from ..ledger.transaction import in_session
from ..ledger.unrecorded import Count
from ..settings import AppState
from ..settings import Uncounted
from . import notifier

if t.TYPE_CHECKING:
    import redis
    import rq

logger = logging.getLogger("flask_credly")

PAUSE = 5.0
"""Seconds between two tries to write the count somewhere."""

PATIENCE = 5.0
"""Seconds for which a process that ends waits for the last try."""


def note(state: AppState, session: t.Any = None, *, ended: bool = False) -> None:
    """Count one completion that could not be recorded. Raises nothing but what the host
    throws in, once it is counted.

    If the host has written in its open transaction, the completion counts once that is
    committed: what the host takes back is not missing.

    :param session: The host's, if it named one.
    :param ended: Whether the host's transaction is over.
    """
    try:
        try:
            waits = not ended and _waits(state, session)
        except BaseException:
            _note(state)
            raise

        if not waits:
            _note(state)
    except BaseException as e:
        if found := interruption.find(e):
            raise found from None

        logger.exception(
            "A completion that could not be recorded was not counted.",
            extra={"credly_event": "completion_not_counted"},
        )


def _waits(state: AppState, session: t.Any) -> bool:
    """Have it counted with the host's commit, if there will be one."""
    here = has_app_context() and current_app._get_current_object() is state.app  # type: ignore[attr-defined]

    if not here:
        return False

    host = state.session if session is None else session
    try:
        host = host() if isinstance(host, orm.scoped_session) else host

        joined = host_transaction.to_join(host, state.engine)
    except sa.exc.PendingRollbackError:
        return True  # for a commit that cannot come
    except Exception as e:
        if interruption.find(e):
            raise

        # It is broken, or no session at all: then it counts.
        logger.debug("The host's transaction cannot be watched.", exc_info=True)
        return False

    if joined is None:
        return False

    host_transaction.follow(
        host,
        joined.connection,
        on_commit=lambda: note(state, ended=True),
        on_rollback=lambda: None,
    )
    return True


def _note(state: AppState) -> None:
    here = state.uncounted
    here.counts.append((1, dt.datetime.now(dt.UTC)))
    _known.add(here)

    if notifier.in_a_job():  # whose process ends without waiting for a thread
        _write(state, _to_redis, _to_database)
    elif here.writer is None or not here.writer.is_alive():
        writer = threading.Thread(target=_keep_writing, args=[state], daemon=True)
        # First this: the host may end its work while the thread begins.
        here.writer = writer

        try:
            writer.start()
        except RuntimeError:  # the process ends, or has too many threads
            here.writer = None
            _write(state, _to_redis)


def read(state: AppState) -> Count:
    """Get the whole count: of the database, of Redis where that answers, and of this
    process.
    """
    return in_session(state.engine, unrecorded.read) + read_elsewhere(state)


def read_elsewhere(state: AppState) -> Count:
    """Get what the database does not count yet."""
    here = Count()

    for number, since in list(state.uncounted.counts):
        here += Count(number, since)

    if notifier.is_silent(state):
        return here

    try:
        queue = notifier.web_queue(state)
        return here + _parse(queue.connection.hgetall(_key(queue)))
    except Exception as e:
        # That Redis is away is said where the workers are counted.
        logger.debug("The count in Redis is not known (%s).", type(e).__name__)
        return here


def gather(state: AppState, queue: rq.Queue | None = None) -> None:
    """Bring what was counted elsewhere into the database. A process that dies meanwhile
    loses nothing; at worst something counts twice.

    :param queue: Whose Redis to look at. Default: the one of the web processes.
    :raises sqlalchemy.exc.SQLAlchemyError: If the database does not take it.
    :raises redis.RedisError: If Redis cannot be asked.
    """
    if state.uncounted.counts:
        _write(state, _to_database)

    queue = queue or notifier.web_queue(state)
    key, lock = _key(queue), f"{_key(queue)}:lock"

    if not _look(queue).number:
        return

    # Or two workers would each bring it.
    if not queue.connection.set(lock, 1, nx=True, ex=60):
        # One that never ends, as after a PERSIST, would keep all away for good.
        if queue.connection.ttl(lock) == -1:
            queue.connection.expire(lock, 60)

        return

    def take_off(pipeline: redis.client.Pipeline) -> None:
        number = _parse(pipeline.hgetall(key)).number
        pipeline.multi()

        if number > found.number:
            pipeline.hincrby(key, "number", -found.number)
        else:
            pipeline.delete(key)

    try:
        if (found := _look(queue)).number:
            unrecorded.add(state.engine, found)
            queue.connection.transaction(take_off, key)
    finally:
        queue.connection.delete(lock)


def gather_all(state: AppState) -> Count:
    """Do the same as far as Redis can be asked, and get what the database counts."""
    from redis.exceptions import RedisError

    try:
        gather(state)
    except (RedisError, OSError) as e:
        # What is counted there stays counted.
        logger.debug("The count in Redis is not known (%s).", type(e).__name__)

    return in_session(state.engine, unrecorded.read)


def dismiss(state: AppState, number: int, *, by: str) -> None:
    """Take off completions that a person has dealt with.

    :param number: How many that person knew of.
    :param by: Who does it, for :func:`.audit.note`.
    """
    gather_all(state)
    unrecorded.dismiss(state.engine, number, by=by)


_known: weakref.WeakSet[Uncounted] = weakref.WeakSet()


@atexit.register
def _write_at_last() -> None:
    for here in list(_known):
        here.over.set()

    for here in list(_known):
        if (writer := here.writer) is not None and writer.is_alive():
            writer.join(PATIENCE)


def _begin_anew() -> None:
    # What a process has counted before it forked, that one writes.
    for here in list(_known):
        here.counts.clear()
        here.writer = None
        here.over, here.writing = threading.Event(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def _keep_writing(state: AppState) -> None:
    here = state.uncounted

    while True:
        with state.app.app_context():
            # With one connection for all threads, this would be in the midst of the
            # host's transaction.
            shared = isinstance(state.engine.pool, sa.StaticPool)
            _write(state, *([] if shared else [_to_database]), _to_redis)

        if here.over.is_set() and here.counts:
            logger.error(
                "Completions that could not be recorded are counted nowhere: %d.",
                sum(number for number, _ in here.counts),
                extra={"credly_event": "completion_not_counted"},
            )

        done = shared or here.over.is_set()

        if done or not here.counts:
            # First this, so that what comes in now begins a thread.
            here.writer = None

            if done or not here.counts:
                return

            here.writer = threading.current_thread()

        here.over.wait(PAUSE)


def _write(state: AppState, *places: t.Callable[[AppState, Count], None]) -> None:
    """Write this process's count to the first place that takes it."""
    here = state.uncounted

    if not here.writing.acquire(blocking=False):
        return  # another thread is at it

    try:
        known = list(here.counts)

        if known and _takes(
            state, sum((Count(*each) for each in known), Count()), places
        ):
            for _ in known:
                here.counts.popleft()
    finally:
        here.writing.release()


def _takes(
    state: AppState,
    count: Count,
    places: tuple[t.Callable[[AppState, Count], None], ...],
) -> bool:
    for place in places:
        try:
            place(state, count)
        except Exception as e:
            # Its text may hold an address with a password.
            logger.debug("Not counted by %s (%s).", place.__name__, type(e).__name__)
        else:
            return True

    return False


def _to_database(state: AppState, count: Count) -> None:
    unrecorded.add(state.engine, count)


def _to_redis(state: AppState, count: Count) -> None:
    _put(notifier.web_queue(state), count)


def _put(queue: rq.Queue, count: Count) -> None:
    from redis.exceptions import ResponseError

    assert count.since is not None

    with queue.connection.pipeline() as pipeline:
        for last in (False, True):
            pipeline.hincrby(_key(queue), "number", count.number)
            pipeline.hsetnx(_key(queue), "since", count.since.isoformat())

            try:
                pipeline.execute()
                return
            except ResponseError:
                if last:
                    raise

            # Nothing can be added to what somebody else has put there.
            _look(queue)


def _look(queue: rq.Queue) -> Count:
    """Read the count. What we would not write is deleted."""
    from redis.exceptions import ResponseError

    try:
        found = queue.connection.hgetall(_key(queue))
    except ResponseError as e:
        # Another error is of the server's.
        if not str(e).startswith("WRONGTYPE"):
            raise

        found = {b"": b""}

    count = _parse(found)

    if found and not count.number:
        queue.connection.delete(_key(queue))

    return count


def _parse(found: t.Any) -> Count:
    # Whoever can write to Redis can put anything there: what we would not write counts
    # nothing, and takes nothing off what the database counts.
    number, since = (found.get(name, b"") for name in (b"number", b"since"))

    if not re.fullmatch(rb"[1-9][0-9]{0,8}", number):
        return Count()

    try:
        at = dt.datetime.fromisoformat(since.decode())
        return Count(int(number), at.astimezone(dt.UTC)) if at.tzinfo else Count()
    except (ValueError, OverflowError):
        return Count()


def _key(queue: rq.Queue) -> str:
    return f"flask-credly:unrecorded:{queue.name}"
