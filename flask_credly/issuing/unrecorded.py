"""Keeps count of the completions that could not be recorded.

The database is where the count belongs, and often what failed: its disk is full, it is
read-only, or our tables are missing. Then Redis has the count until a worker brings it
into the database; and where that is away too, this process until one of them is back.
No request waits for any of it: a thread writes.
"""

from __future__ import annotations

import atexit
import datetime as dt
import itertools
import logging
import os
import re
import threading
import typing as t
import weakref

import sqlalchemy as sa

from ..ledger import unrecorded
from ..ledger.transaction import in_session
from ..ledger.unrecorded import Count
from ..state import AppState
from ..state import Community
from ..state import Uncounted
from . import notifier

if t.TYPE_CHECKING:
    import redis
    import rq

logger = logging.getLogger("flask_credly")

PAUSE = 5.0
"""Seconds between two tries to write the count somewhere."""

PATIENCE = 5.0
"""Seconds for which a process that ends waits for the last try."""


def note(state: Community) -> None:
    """Count one completion that could not be recorded, here first."""
    here = state.uncounted
    here.counts.append((state.tenant, 1, dt.datetime.now(dt.UTC)))
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


def read(state: Community) -> Count:
    """Get a community's whole count: of the database, of Redis where that answers, and
    of this process.
    """
    counted = in_session(state.engine, unrecorded.read, state.tenant)
    return counted + read_elsewhere(state)


def read_elsewhere(state: Community) -> Count:
    """Get what the database does not count yet of a community."""
    here = Count()

    for tenant, number, since in list(state.uncounted.counts):
        if tenant == state.tenant:
            here += Count(number, since)

    if notifier.is_silent(state):
        return here

    try:
        queue = notifier.web_queue(state)
        found = _parse(queue.connection.hgetall(_key(queue)))
        return here + found.get(state.tenant, Count())
    except Exception as e:
        # That Redis is away is said where the workers are counted.
        logger.debug("The count in Redis could not be read (%s).", type(e).__name__)
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
    lock = f"{_key(queue)}:lock"

    if not _look(queue):
        return

    # Or two workers would each bring it.
    if not queue.connection.set(lock, 1, nx=True, ex=60):
        # One that never ends, as after a PERSIST, would keep all away for good.
        if queue.connection.ttl(lock) == -1:
            queue.connection.expire(lock, 60)

        return

    try:
        for tenant, count in _look(queue).items():
            unrecorded.add(state.engine, tenant, count)
            _take_off(queue, tenant, count)
    finally:
        queue.connection.delete(lock)


def _take_off(queue: rq.Queue, tenant: str, count: Count) -> None:
    key = _key(queue)

    def take_off(pipeline: redis.client.Pipeline) -> None:
        now = _parse(pipeline.hgetall(key)).get(tenant, Count())
        pipeline.multi()

        if now.number > count.number:
            pipeline.hincrby(key, f"number/{tenant}", -count.number)
        else:
            pipeline.hdel(key, f"number/{tenant}", f"since/{tenant}")

    queue.connection.transaction(take_off, key)


def gather_all(state: Community) -> Count:
    """Do the same as far as Redis can be asked, and get what the database counts of a
    community.
    """
    from redis.exceptions import RedisError

    try:
        gather(state)
    except (RedisError, OSError) as e:
        # What is counted there stays counted.
        logger.debug("The count in Redis could not be read (%s).", type(e).__name__)

    return in_session(state.engine, unrecorded.read, state.tenant)


def dismiss(state: Community, number: int, *, by: str) -> None:
    """Take off completions that a person has dealt with.

    :param number: How many that person knew of.
    :param by: Who does it, for :func:`.audit.note`.
    """
    gather_all(state)
    unrecorded.dismiss(state.engine, state.tenant, number, by=by)


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
                "%d unrecorded completions could not be counted.",
                sum(number for _, number, _ in here.counts),
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


_Place = t.Callable[[AppState, str, Count], None]


def _write(state: AppState, *places: _Place) -> None:
    """Write this process's counts to the first place that takes them."""
    here = state.uncounted

    if not here.writing.acquire(blocking=False):
        return  # another thread is at it

    try:
        while here.counts:
            tenant = here.counts[0][0]
            known = list(here.counts)
            of_tenant = list(itertools.takewhile(_is_of(tenant), known))
            count = sum((Count(*each[1:]) for each in of_tenant), Count())

            if not _takes(state, tenant, count, places):
                return

            for _ in of_tenant:
                here.counts.popleft()
    finally:
        here.writing.release()


def _is_of(tenant: str) -> t.Callable[[tuple[str, int, dt.datetime]], bool]:
    return lambda each: each[0] == tenant


def _takes(
    state: AppState, tenant: str, count: Count, places: tuple[_Place, ...]
) -> bool:
    for place in places:
        try:
            place(state, tenant, count)
        except Exception as e:
            # Its text may hold an address with a password.
            logger.debug("Not counted by %s (%s).", place.__name__, type(e).__name__)
        else:
            return True

    return False


def _to_database(state: AppState, tenant: str, count: Count) -> None:
    unrecorded.add(state.engine, tenant, count)


def _to_redis(state: AppState, tenant: str, count: Count) -> None:
    _put(notifier.web_queue(state), tenant, count)


def _put(queue: rq.Queue, tenant: str, count: Count) -> None:
    from redis.exceptions import ResponseError

    assert count.since is not None

    with queue.connection.pipeline() as pipeline:
        for last in (False, True):
            pipeline.hincrby(_key(queue), f"number/{tenant}", count.number)
            pipeline.hsetnx(_key(queue), f"since/{tenant}", count.since.isoformat())

            try:
                pipeline.execute()
                return
            except ResponseError:
                if last:
                    raise

            # Nothing can be added to what somebody else has put there.
            _look(queue)


def _look(queue: rq.Queue) -> dict[str, Count]:
    """Read the counts, by community. What we would not write is deleted."""
    from redis.exceptions import ResponseError

    try:
        found: t.Any = queue.connection.hgetall(_key(queue))
    except ResponseError as e:
        # Another error is of the server's.
        if not str(e).startswith("WRONGTYPE"):
            raise

        queue.connection.delete(_key(queue))
        return {}

    counts = _parse(found)
    ours = {f"{what}/{name}".encode() for name in counts for what in _FIELDS}

    if strange := set(found) - ours:
        queue.connection.hdel(_key(queue), *strange)

    return counts


_FIELDS = ("number", "since")


def _parse(found: t.Any) -> dict[str, Count]:
    # Whoever can write to Redis can put anything there: what we would not write counts
    # nothing, and takes nothing off what the database counts.
    counts: dict[str, Count] = {}

    for name, number in found.items():
        what, _, tenant = name.decode(errors="replace").partition("/")

        if what != "number" or len(tenant) > 191 or "\x00" in tenant:
            continue

        since = found.get(f"since/{tenant}".encode(), b"")

        if not re.fullmatch(rb"[1-9][0-9]{0,8}", number):
            continue

        try:
            at = dt.datetime.fromisoformat(since.decode())

            if at.tzinfo:
                counts[tenant] = Count(int(number), at.astimezone(dt.UTC))
        except (ValueError, OverflowError):
            continue

    return counts


def _key(queue: rq.Queue) -> str:
    return f"flask-credly:unrecorded:{queue.name}"
