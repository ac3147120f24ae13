"""Rings for a worker.

A job carries no data, so that nothing is lost with it: the row in the ledger is the
job. A bell that could not be rung is logged, and the sweep finds the row.
"""

from __future__ import annotations

import logging
import threading
import time
import typing as t

from flask import Flask

from ..settings import Settings
from ..settings import State

if t.TYPE_CHECKING:
    import redis
    import rq

logger = logging.getLogger("flask_credly")

DRAIN = "flask_credly.jobs.drain"
SYNC = "flask_credly.jobs.sync"
BACKFILL = "flask_credly.jobs.backfill"
PRUNE = "flask_credly.jobs.prune"
OWN_JOBS = frozenset({DRAIN, SYNC, BACKFILL, PRUNE})

WEB_TIMEOUT = 0.15
"""Seconds a web request waits for Redis. redis-py's own defaults add up to a minute."""

SILENCE = 30.0
"""Seconds without a further try after Redis did not answer."""

JOB_TIMEOUT = 600
"""Seconds after which RQ ends a job. A drain ends by itself long before."""

BACKFILL_TIMEOUT = 6 * 3600
"""The same for a backfill, which reads as long as the host has completions, and for
what goes through whole tables.
"""

INTERVAL = 1.0
"""Seconds between two rings of a process for completions that come in."""

_RUNG_FOR = 60
_DAY = 86_400


def ring(state: State, *, insist: bool = False) -> bool:
    """Ask for a drain, unless one was asked for that has not begun yet.

    :param insist: Whether to enqueue in any case.
    :return: Whether Redis took it. ``False`` is logged and harmless.
    """
    return _try(state, lambda queue: enqueue_drain(queue, insist=insist))


def ring_soon(state: State) -> None:
    """Ring for a completion: at once, or at the end of the second if this process has
    rung within it. A busy site's requests do not each go to Redis.

    Raises nothing: the completion is recorded, and the sweep finds it.
    """
    web = state.web_queue
    now = time.monotonic()

    # A job's process ends without waiting for a timer.
    if now >= web.next_ring or _in_a_job():
        _ring_for_completion(state)
    # After a fork the other process has the timer.
    elif now >= web.late_until:
        web.late = threading.Timer(web.next_ring - now, _ring_for_completion, [state])

        try:
            web.late.start()
        except RuntimeError:  # the process ends, or has too many threads
            _ring_for_completion(state)
        else:
            web.late_until = web.next_ring


def _in_a_job() -> bool:
    import rq

    return rq.get_current_job() is not None


def _ring_for_completion(state: State) -> None:
    state.web_queue.next_ring = time.monotonic() + INTERVAL

    try:
        ring(state)
    except Exception:
        logger.exception(
            "No worker could be rung. The next sweep finds the row.",
            extra={"credly_event": "queue_unreachable"},
        )


def ask_for_sync(state: State) -> bool:
    """Ask for the badge templates to be loaded in the background."""
    return _try(state, enqueue_sync)


def enqueue_drain(queue: rq.Queue, *, insist: bool) -> None:
    """Do what :func:`ring` does, on a given queue.

    :raises redis.RedisError: If Redis does not take it.
    """
    if queue.connection.set(_key(queue), 1, nx=not insist, ex=_RUNG_FOR):
        _enqueue(queue, DRAIN)


def ask_for_backfill(state: State) -> bool:
    """Ask for the runs that are due to be recorded in the background."""
    return _try(state, lambda queue: _enqueue(queue, BACKFILL, BACKFILL_TIMEOUT))


def enqueue_sync(queue: rq.Queue) -> None:
    """Do what :func:`ask_for_sync` does, on a given queue, once in a while.

    :raises redis.RedisError: If Redis does not take it.
    """
    if queue.connection.set(_key(queue, "sync"), 1, nx=True, ex=_RUNG_FOR):
        _enqueue(queue, SYNC)


def enqueue_backfill(queue: rq.Queue) -> None:
    """Do what :func:`ask_for_backfill` does, on a given queue, once in a while.

    :raises redis.RedisError: If Redis does not take it.
    """
    if queue.connection.set(_key(queue, "backfill"), 1, nx=True, ex=_RUNG_FOR):
        _enqueue(queue, BACKFILL, BACKFILL_TIMEOUT)


def enqueue_prune(queue: rq.Queue) -> None:
    """Ask, once a day, for what is old to be forgotten. Only Redis remembers when that
    was: one time more does no harm.

    :raises redis.RedisError: If Redis does not take it.
    """
    if queue.connection.set(_key(queue, "prune"), 1, nx=True, ex=_DAY):
        _enqueue(queue, PRUNE, BACKFILL_TIMEOUT)


def heard(state: State) -> None:
    """Note that a drain begins: a completion from now on rings anew."""
    _try(state, lambda queue: queue.connection.delete(_key(queue)))


def make_queue(
    app: Flask, settings: Settings, connection: redis.Redis | None = None
) -> rq.Queue:
    """Build the queue that ``CREDLY_QUEUE`` means.

    :param connection: For a queue given by name. Default: one with short timeouts, for
        use in a web request.
    """
    import rq

    if isinstance(settings.queue, str):
        return rq.Queue(
            settings.queue,
            connection=connection or _web_redis(settings),
            serializer="json",
        )

    if isinstance(settings.queue, rq.Queue):
        return settings.queue

    return settings.queue(app)


def _web_redis(settings: Settings) -> redis.Redis:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return redis.Redis.from_url(
        settings.redis_url,
        socket_timeout=WEB_TIMEOUT,
        socket_connect_timeout=WEB_TIMEOUT,
        retry=Retry(NoBackoff(), 0),
    )


def _key(queue: rq.Queue, what: str = "rung") -> str:
    return f"flask-credly:{what}:{queue.name}"


def _enqueue(queue: rq.Queue, function: str, timeout: int = JOB_TIMEOUT) -> None:
    # The default description is the call with its arguments, and failed jobs are kept
    # for a year.
    queue.enqueue_call(
        function,
        description=function,
        timeout=timeout,
        result_ttl=0,
        failure_ttl=86_400,
    )


def _try(state: State, ask: t.Callable[[rq.Queue], object]) -> bool:
    if time.monotonic() < state.web_queue.silent_until:
        return False

    from redis.exceptions import RedisError

    try:
        ask(web_queue(state))
    except (RedisError, OSError) as e:
        state.web_queue.silent_until = time.monotonic() + SILENCE
        logger.warning(
            "The queue cannot be reached (%s). Nothing is lost: badges wait in the"
            " database until a worker sweeps.",
            type(e).__name__,
            extra={"credly_event": "queue_unreachable"},
        )
        return False

    return True


def web_queue(state: State) -> rq.Queue:
    """Get the queue with a connection that does not hold up a web request."""
    if state.web_queue.queue is None:
        state.web_queue.queue = make_queue(state.app, state.settings)

    return state.web_queue.queue
