"""Rings for a worker.

A job carries no data, so that nothing is lost with it: the row in the ledger is the
job. A bell that could not be rung is logged, and the sweep finds the row.
"""

from __future__ import annotations

# A thread that loads redis as the process ends could not load this any more.
import concurrent.futures.thread  # noqa: F401
import contextlib
import logging
import os
import sys
import threading
import time
import typing as t
import weakref

from flask import Flask
from flask import has_app_context

from .. import interruption
from ..settings import Settings
from ..state import AppState
from ..state import WebQueue
from .periodic import BACKFILL
from .periodic import COMPARE
from .periodic import DRAIN
from .periodic import POLL
from .periodic import SYNC
from .periodic import UNDO
from .periodic import Work
from .trouble import explain
from .trouble import WrongQueue

if t.TYPE_CHECKING:
    import redis
    import rq

logger = logging.getLogger("flask_credly")

FAILURE_TTL = 86_400
"""Seconds for which RQ keeps a job that failed. By default that is a year."""

WEB_TIMEOUT = 0.15
"""Seconds an administrator's request waits for Redis. redis-py's own defaults add up to
a minute.
"""

SILENCE = 30.0
"""Seconds without a further try after Redis did not answer."""

INTERVAL = 1.0
"""Seconds between two rings of a process for completions that come in."""


def notify(state: AppState, *, insist: bool = False) -> bool:
    """Ask for a drain, unless one was asked for that has not begun yet.

    :param insist: Whether to enqueue in any case.
    :return: Whether Redis took it. ``False`` is logged and harmless.
    """
    return _try(state, lambda queue: enqueue(queue, DRAIN, insist=insist))


def notify_soon(state: AppState) -> None:
    """Ring for a completion from a thread of its own: at once, or at the end of the
    second if this process has rung within it. No request waits for Redis, and not each
    of a busy site's goes there.

    Raises nothing: the completion is recorded, and the sweep finds it.
    """
    web = state.web_queue
    now = time.monotonic()

    if in_a_job():  # whose process ends without waiting for a thread
        _ring_for_completion(state)
    # What rings later finds this row too. After a fork the other process has it.
    elif now >= web.rings_at:
        web.rings_at = max(now, web.rings_at + INTERVAL)
        ringer = threading.Timer(web.rings_at - now, _ring_in_thread, [state])

        try:
            ringer.start()
        except RuntimeError:  # the process ends, or has too many threads
            web.rings_at = now
            _ring_for_completion(state)
        else:
            web.ringer = ringer
            _webs.add(web)


_webs: weakref.WeakSet[WebQueue] = weakref.WeakSet()


def _let_ring() -> None:
    """Wait for the threads that ring just now, two seconds each at most.

    A fork leaves them behind, and with them what they held: a module that one of them
    was loading could never be loaded in the new process, which may even stand still.
    """
    now = time.monotonic()
    # One may fork itself, in a function of the host's.
    this = threading.current_thread()

    for web in list(_webs):
        for thread in (web.ringing, web.ringer if web.rings_at <= now else None):
            if thread is not None and thread is not this:
                thread.join(2)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_let_ring)


def in_a_job() -> bool:
    """Whether this process does a job of RQ's, whichever."""
    # Not loaded for this: nobody has begun a job then. A thread may be loading it.
    get_current_job = getattr(sys.modules.get("rq"), "get_current_job", None)
    return get_current_job is not None and get_current_job() is not None


def _ring_in_thread(state: AppState) -> None:
    web = state.web_queue

    # A queue of the host's may wait for Redis without end: one thread does, and not one
    # more each second.
    if web.ringing is None or not web.ringing.is_alive():
        web.ringing = threading.current_thread()
        _ring_for_completion(state)


def _ring_for_completion(state: AppState) -> None:
    try:
        notify(state)
    except Exception as e:
        if interruption.find(e):
            raise

        logger.exception(
            "No worker could be notified. The next sweep finds the badge.",
            extra={"credly_event": "queue_unreachable"},
        )


def ask_for_sync(state: AppState) -> bool:
    """Ask for the badge templates to be loaded in the background."""
    return _try(state, lambda queue: enqueue(queue, SYNC))


def enqueue(queue: rq.Queue, work: Work, *, insist: bool = False) -> None:
    """Ask for work, unless that was done a while ago. Only Redis remembers when that
    was: one time more does no harm.

    :param insist: Whether to do so in any case.
    :raises redis.RedisError: If Redis does not take it.
    """
    if _is_new(queue, work, insist=insist):
        # The worker reads nothing else of it. By default it is the call with its
        # arguments.
        queue.enqueue_call(
            work.function,
            description=work.function,
            timeout=work.timeout,
            result_ttl=0,
            failure_ttl=FAILURE_TTL,
        )


def _is_new(queue: rq.Queue, work: Work, *, insist: bool) -> bool:
    """Note that a job is put into a queue. Whether it was not a while ago."""
    key = _key(queue, work)

    with queue.connection.pipeline(transaction=False) as pipeline:
        pipeline.set(key, 1, nx=not insist, ex=work.every)
        pipeline.ttl(key)
        was_set, left = pipeline.execute()

    # A key that never ends, as after a PERSIST, would keep the job away for good.
    if not was_set and not 0 <= left <= work.every:
        was_set = queue.connection.set(key, 1, ex=work.every)

    return bool(was_set)


def ask_for_backfill(state: AppState) -> bool:
    """Ask for the runs that are due to be recorded in the background."""
    return _try(state, lambda queue: enqueue(queue, BACKFILL, insist=True))


def ask_for_undo(state: AppState) -> bool:
    """Ask for badges to be taken back, retried or removed in the background."""
    return _try(state, lambda queue: enqueue(queue, UNDO, insist=True))


def ask_for_compare(state: AppState) -> bool:
    """Ask for badges to be compared with Credly in the background."""
    return _try(state, lambda queue: enqueue(queue, COMPARE, insist=True))


def ask_for_poll(state: AppState) -> bool:
    """Ask for what became of badges to be read in the background."""
    return _try(state, lambda queue: enqueue(queue, POLL, insist=True))


def acknowledge(state: AppState) -> None:
    """Note that a drain begins: a completion from now on rings anew."""
    _try(state, lambda queue: queue.connection.delete(_key(queue, DRAIN)))


def make_queue(
    app: Flask, settings: Settings, connection: redis.Redis | None = None
) -> rq.Queue:
    """Build the queue that ``CREDLY_QUEUE`` means.

    :param connection: For a queue given by name. Default: one with short timeouts, for
        use in a web request.
    :raises WrongQueue: If that is no queue, or its jobs could run code as they are
        read. A function of the host's may raise anything.
    """
    import rq

    if isinstance(settings.queue, str):
        queue = rq.Queue(
            settings.queue,
            connection=connection or _web_redis(settings),
            serializer="json",
        )

        # Whatever it is: the text "False" is true, too.
        if _decodes(queue):
            raise WrongQueue(
                "CREDLY_REDIS_URL has the option decode_responses, which RQ does not"
                " support.",
                "Remove it.",
            )

        return queue

    # A thread has no context.
    with contextlib.nullcontext() if has_app_context() else app.app_context():
        queue = settings.queue(app)

    if not isinstance(queue, rq.Queue):
        raise WrongQueue(
            "The function in CREDLY_QUEUE must return an rq.Queue, not"
            f" {type(queue).__name__}.",
            "It must take the app and return an rq.Queue.",
        )

    if not _reads_json(queue.serializer):
        raise WrongQueue(
            "The queue in CREDLY_QUEUE does not use the JSON serializer. Anyone"
            " who can write to Redis could run code in its workers.",
            f'Make it so: Queue("{queue.name}", connection=…, serializer="json")',
        )

    if _decodes(queue):
        raise WrongQueue(
            "The Redis connection of CREDLY_QUEUE uses decode_responses, which RQ"
            " does not support.",
            "Create it without decode_responses.",
        )

    return queue


def _decodes(queue: rq.Queue) -> bool:
    """Whether texts come from Redis where RQ expects bytes."""
    # A client of a cluster has no pool.
    pool = getattr(queue.connection, "connection_pool", None)
    return pool is not None and bool(pool.connection_kwargs.get("decode_responses"))


def _reads_json(serializer: t.Any) -> bool:
    """Whether a serializer reads a job as RQ's own for JSON does. A subclass may write
    it in its own way.
    """
    from rq.serializers import JSONSerializer

    return getattr(serializer, "loads", None) is JSONSerializer.loads


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


def _key(queue: rq.Queue, work: Work) -> str:
    return f"flask-credly:{work.name}:{queue.name}"


def is_silent(state: AppState) -> bool:
    """Whether Redis did not answer a moment ago."""
    return time.monotonic() < state.web_queue.silent_until


def _try(state: AppState, send: t.Callable[[rq.Queue], object]) -> bool:
    if is_silent(state):
        return False

    if not use(state, lambda: send(web_queue(state))):
        state.web_queue.silent_until = time.monotonic() + SILENCE
        return False

    return True


def use(state: AppState, send: t.Callable[[], object], *, tell: bool = True) -> bool:
    """Use the queue in a web process. What is in the way stays in
    ``state.web_queue.trouble`` until it is over.

    :param tell: Whether to log that Redis is in the way: once, when it begins.
    :return: Whether that went well.
    """
    from redis.exceptions import RedisError

    web = state.web_queue

    try:
        send()
    except Exception as e:
        # RQ and Celery end a job of the host's by an exception.
        if interruption.find(e):
            raise

        web.trouble = explain(e, state.settings)
        of_redis = isinstance(e, (RedisError, OSError))
        # Another error is of the host's function in CREDLY_QUEUE.
        known = of_redis or isinstance(e, WrongQueue)

        if (tell and web.trouble != web.told) or not of_redis:
            web.told = web.trouble
            logger.log(
                logging.WARNING if of_redis else logging.ERROR,
                "Redis cannot be reached (%s). %s Badges stay queued in the"
                " database until a worker finds them.",
                type(e).__name__,
                web.trouble,
                exc_info=not known,
                extra={"credly_event": "queue_unreachable"},
            )

        return False

    web.trouble = web.told = None
    return True


def web_queue(state: AppState) -> rq.Queue:
    """Get the queue with a connection that does not hold up a web request."""
    if state.web_queue.queue is None:
        state.web_queue.queue = make_queue(state.app, state.settings)

    return state.web_queue.queue
