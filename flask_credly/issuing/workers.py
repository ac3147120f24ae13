"""Which workers there are, and how they fare."""

from __future__ import annotations

import base64
import collections.abc as cabc
import dataclasses
import datetime as dt
import hashlib
import re
import typing as t
import zlib

import sqlalchemy as sa

from ..ledger.transaction import connect
from ..models import Installation
from ..state import AppState
from . import notifier
from . import trouble
from .periodic import FUNCTIONS
from .periodic import Work

if t.TYPE_CHECKING:
    import rq

_SIGNATURE = "credly_installation"
_SUCCESS = "credly_success:"


@dataclasses.dataclass(frozen=True)
class Failure:
    """A job that failed on a worker.

    :param error: The name of the exception.
    :param ours: Whether it is a job of Flask-Credly.
    :param mended: Whether the same job went well on that worker since.
    """

    worker: str
    error: str
    ours: bool
    mended: bool


def count(state: AppState) -> int | None:
    """Count the workers that listen on the queue. ``None``: Redis cannot be used, for
    the reason in ``state.web_queue.trouble``.
    """
    found: list[str] = []

    def look() -> None:
        queue = notifier.web_queue(state)
        # One that is read only could be asked as well, and would take no job.
        trouble.try_out(queue)
        found.extend(listening(queue))

    return len(found) if notifier.use(state, look, tell=False) else None


def signature(engine: sa.Engine) -> str | None:
    """Get what tells this installation from others on the same Redis. ``None``: it was
    never connected, and so has nothing to issue.
    """
    with connect(engine) as connection:
        key = connection.execute(sa.select(Installation.key)).scalar_one_or_none()

    if key is None:
        return None

    # Not the key itself: the names of members towards Credly are hashed with it.
    return hashlib.sha256(f"flask-credly queue {key}".encode()).hexdigest()[:16]


def sign(queue: rq.Queue, worker: str, signature: str) -> None:
    """Note whose badges a worker issues.

    :raises redis.RedisError: If Redis does not take it.
    """
    _note(queue, worker, _SIGNATURE, signature)


def _note(queue: rq.Queue, worker: str, name: str, value: str | int) -> None:
    """Write into RQ's own entry of a worker, which ends with it."""
    with queue.connection.pipeline() as pipeline:
        pipeline.hset(_key(worker), name, value)
        # For the case that it has ended in this moment.
        pipeline.expire(_key(worker), 120)
        pipeline.execute()


def sign_job(state: AppState) -> None:
    """Do what :func:`sign` does for the worker that runs this job, if one does."""
    from redis.exceptions import RedisError
    from rq import get_current_job

    if (job := get_current_job()) is None or not job.worker_name:
        return

    if (own := signature(state.engine)) is None:
        return

    try:
        sign(notifier.web_queue(state), job.worker_name, own)
    except (RedisError, OSError):
        return  # the worker says by itself that Redis is away


def note_success(state: AppState, work: Work) -> None:
    """Note in RQ's own entry of the worker that runs this job that it went well, and
    when, on the clock by which Redis dates what failed.
    """
    from redis.exceptions import RedisError
    from rq import get_current_job

    if (job := get_current_job()) is None or not job.worker_name:
        return

    try:
        queue = notifier.web_queue(state)
        seconds, micros = queue.connection.time()
        at = seconds * 1000 + micros // 1000
        _note(queue, job.worker_name, _SUCCESS + work.function, at)
    except (RedisError, OSError):
        return  # the worker says by itself that Redis is away


def _succeeded_at(queue: rq.Queue, worker: str, function: str) -> int:
    """Get when :func:`note_success` was last called, in milliseconds. 0: never."""
    at = text_of(queue.connection.hget(_key(worker), _SUCCESS + function))
    return int(at) if re.fullmatch("[0-9]{1,15}", at) else 0


def listening(queue: rq.Queue) -> dict[str, str | None]:
    """Get the workers that live and listen on a queue, each with its signature. RQ's
    own count has those that were killed as well.

    :raises redis.RedisError: If Redis cannot be asked.
    """
    from rq import Worker
    from rq.worker_registration import WORKERS_BY_QUEUE_KEY

    found: dict[str, str | None] = {}
    known: t.Any = queue.connection.smembers(WORKERS_BY_QUEUE_KEY % queue.name)

    with queue.connection.pipeline(transaction=False) as pipeline:
        for key in known:
            pipeline.hmget(key, ["last_heartbeat", "death", _SIGNATURE])
            pipeline.ttl(key)

        answers = pipeline.execute()

    for key, fields, ttl in zip(known, answers[::2], answers[1::2], strict=True):
        seen_at, death, signed = fields

        # A worker's entry always has an end, which each heartbeat puts off: one without
        # would live for ever.
        if seen_at and not death and ttl >= 0 and _is_recent(text_of(seen_at)):
            name = text_of(key).removeprefix(Worker.redis_worker_namespace_prefix)
            found[name] = text_of(signed) if signed else None

    return found


def _is_recent(heartbeat: str) -> bool:
    """Whether a heartbeat is not of long ago, even if that worker's clock is in another
    time zone.
    """
    from rq.utils import utcparse

    try:
        at = utcparse(heartbeat)
    except ValueError:
        return False

    return dt.datetime.now(dt.UTC) - at < dt.timedelta(days=1)


def is_suspended(queue: rq.Queue) -> bool:
    """Whether ``rq suspend`` keeps all workers on this Redis from taking jobs.

    :raises redis.RedisError: If Redis cannot be asked.
    """
    from rq.suspension import is_suspended

    return bool(is_suspended(queue.connection))


def failures(queue: rq.Queue, *, limit: int = 20) -> cabc.Iterator[Failure]:
    """Get the jobs that failed last.

    :raises redis.RedisError: If Redis cannot be asked.
    """
    from rq.job import Job
    from rq.results import Result

    last: t.Any = queue.connection.zrange(queue.failed_job_registry.key, -limit, -1)

    for id_ in map(text_of, last):
        # Neither RQ's job nor its result, which would unpack whatever is in there.
        described = text_of(queue.connection.hget(Job.key_for(id_), "description"))
        key = Result.get_key(id_)  # type: ignore[no-untyped-call]
        results: t.Any = queue.connection.xrevrange(key, count=1)

        for result_id, result in results:
            if not (packed := result.get(b"exc_string")):
                continue

            worker = text_of(result.get(b"worker_name"))
            ours = described in FUNCTIONS
            at = int(text_of(result_id).partition("-")[0])
            mended = ours and at <= _succeeded_at(queue, worker, described)
            yield Failure(worker, _error_in(packed), ours, mended)


_MOST = 1_000_000
"""Bytes of a traceback that are unpacked at most."""


def _error_in(packed: bytes) -> str:
    """Get the name of the exception that a traceback ends with, as RQ packs one."""
    try:
        unpacked = zlib.decompressobj().decompress(base64.b64decode(packed), _MOST)
    except (ValueError, zlib.error):
        return "unreadable"

    # The message may have several lines.
    for line in reversed(unpacked.decode(errors="replace").splitlines()):
        if found := re.match(
            r"(?:[A-Za-z_]\w*\.)*([A-Za-z_]\w{0,99})(?::|$)", line, re.A
        ):
            return found[1]

    return "unreadable"


def text_of(value: t.Any) -> str:
    """Read what Redis holds. What others wrote there need not be text."""
    return (value or b"").decode(errors="replace")


def _key(worker: str) -> str:
    from rq import Worker

    return f"{Worker.redis_worker_namespace_prefix}{worker}"
