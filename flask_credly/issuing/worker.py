"""The worker: RQ's, with a sweep in its loop and deaf to foreign jobs."""

from __future__ import annotations

import importlib
import logging
import signal
import time
import typing as t

import redis
import rq
import sqlalchemy as sa
from flask import Flask
from rq.exceptions import StopRequested
from rq.worker import Worker
from sqlalchemy import orm

from .. import keys
from ..ledger import overview
from ..ledger import tables
from ..models import Connection
from ..settings import get_state
from ..settings import State
from . import announce
from . import bell
from . import workers
from .stopping import stopping
from .sweep import sweep

logger = logging.getLogger("flask_credly")

SWEEP_INTERVAL = 5
"""Seconds between two looks at the ledger for rows that nobody rang for."""


class OwnJob(rq.job.Job):
    """A job that only runs our own functions: whoever can write to Redis can put any
    function's name there.
    """

    @property
    def func(self) -> t.Any:
        if self.func_name not in bell.JOBS:
            raise PermissionError(f"Not a job of Flask-Credly: {self.func_name!r}.")

        return super().func

    # They would name functions as well.
    success_callback = failure_callback = stopped_callback = None


class CredlyWorker(Worker):
    """Runs drains, and sweeps while it waits."""

    job_class = OwnJob

    def __init__(self, app: Flask, queue: rq.Queue) -> None:
        # While it waits, RQ looks up only when its pop returns, at its shortest after
        # a second; its own cleaning of jobs of dead workers hangs on that as well.
        super().__init__(
            [queue],
            connection=queue.connection,
            serializer=queue.serializer,
            maintenance_interval=30,
            worker_ttl=60,
        )
        self._app = app
        self._failed = False
        self._signed = False
        self._keyless = False
        self._tableless = False
        self.told_to_stop = False

    def request_stop(self, signum: t.Any, frame: t.Any) -> None:
        self.told_to_stop = True
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[rq.job.Job, rq.Queue] | None:
        burst = timeout is None

        while True:
            # The signal's exception may have come up where it could not get out.
            if self.told_to_stop:
                raise StopRequested

            # What makes every drain fail is not made better by a drain at once.
            if not self._failed:
                self._sweep()

            if self._keyless:
                if burst:
                    return None

                # The jobs are for those who can do them.
                self.heartbeat()
                time.sleep(SWEEP_INTERVAL)
                continue

            wait = None if burst else SWEEP_INTERVAL
            result = super().dequeue_job_and_maintain_ttl(wait, wait)

            if result is not None or burst:
                return result

            self._failed = False

    def execute_job(self, job: rq.job.Job, queue: rq.Queue) -> None:
        super().execute_job(job, queue)
        # A job that went well is gone by now.
        self._failed = job.exists(job.id, self.connection) and job.is_failed

    def main_work_horse(self, *args: t.Any) -> None:
        # The parent's connections must not be used by two processes.
        with self._app.app_context():
            _forget_connections(get_state())
            super().main_work_horse(*args)

    def setup_work_horse_signals(self) -> None:
        super().setup_work_horse_signals()  # type: ignore[no-untyped-call]
        # A supervisor may tell every process to end. By default this one would do so
        # in the midst of a request.
        signal.signal(signal.SIGTERM, lambda *_: stopping.set())

    def _sweep(self) -> None:
        # An exception here would end the worker.
        try:
            with self._app.app_context():
                state = get_state()

                try:
                    self._ring(state)
                    self._tableless = False
                except sa.exc.SQLAlchemyError as e:
                    if self.told_to_stop or not tables.explain(state.engine, e):
                        raise

                    self._say_tables_are_missing()
                finally:
                    # Nothing may be open when the work horse is forked.
                    for engine in state.db.engines.values():
                        engine.dispose()
        except Exception as e:
            # A signal in the midst of a question to the database may come out of it
            # as an error of the driver.
            if self.told_to_stop:
                raise StopRequested from e

            if isinstance(e, redis.RedisError):
                logger.warning(
                    "The sweep could not ring: %s",
                    type(e).__name__,
                    extra={"credly_event": "queue_unreachable"},
                )
            else:
                logger.exception(
                    "The sweep failed and is tried again.",
                    extra={"credly_event": "sweep_failed"},
                )

    def _say_tables_are_missing(self) -> None:
        # Once, and not at each sweep.
        if not self._tableless:
            logger.error(tables.MISSING, extra={"credly_event": "tables_missing"})

        self._tableless = True

    def _ring(self, state: State) -> None:
        # A Redis that came back empty knows no worker. RQ tells it only once of itself.
        if not self.connection.hexists(self.key, "birth"):
            self.connection.delete(self.key)
            self.register_birth()  # type: ignore[no-untyped-call]
            self._signed = False

        if not self._signed:
            self._sign(state)

        if self._lacks_key(state):
            return

        queue = self.queues[0]
        sweep(state, queue, insist=queue.is_empty())

    def _lacks_key(self, state: State) -> bool:
        with orm.Session(state.engine) as session:
            connection = session.scalars(sa.select(Connection)).one_or_none()

        before = self._keyless
        self._keyless = not overview.opens(connection, state.app.config)

        if self._keyless:
            assert connection is not None
            seconds = 4 * SWEEP_INTERVAL
            announce.keyless(state, connection.generation, seconds, again=before)

        return self._keyless

    def _sign(self, state: State) -> None:
        if (signature := workers.signature(state.engine)) is not None:
            workers.sign(self.queues[0], self.name, signature)
            self._signed = True


def _forget_connections(state: State) -> None:
    for engine in state.db.engines.values():
        engine.dispose(close=False)


def work(state: State, *, burst: bool) -> None:
    """Run a worker until it is told to stop.

    :param burst: Stop when nothing is due.
    :raises redis.RedisError: If Redis cannot be reached at the start. Later on, the
        worker waits until it is back.
    """
    keys.warn_of_derived(state.app.config)
    queue = bell.make_queue(
        state.app, state.settings, redis.Redis.from_url(state.settings.redis_url)
    )
    queue.connection.ping()
    _load_for_jobs()

    while not _work_once(state.app, queue, burst=burst):
        # RQ's handlers, which are still in force, only talk to its own loop.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _wait_for(queue.connection)


def _load_for_jobs() -> None:
    # Each job has a process that is forked from this one, and would load it anew.
    functions = {name.rpartition(".")[0] for name in bell.JOBS}
    to_unseal = ("cryptography.fernet", "cryptography.hazmat.primitives.kdf.hkdf")

    for module in (*functions, *to_unseal):
        importlib.import_module(module)


def _work_once(app: Flask, queue: rq.Queue, *, burst: bool) -> bool:
    """Work until told to stop, or until Redis goes away in the midst of a job.

    :return: Whether it was told to stop.
    """
    worker = CredlyWorker(app, queue)

    try:
        worker.work(burst=burst, logging_level="WARNING")
    except redis.RedisError:
        if burst:
            raise

    return burst or worker.told_to_stop


def _wait_for(connection: redis.Redis) -> None:
    logger.warning(
        "Redis is away. The worker goes on when it is back.",
        extra={"credly_event": "queue_unreachable"},
    )

    while True:
        time.sleep(1)

        try:
            connection.ping()
        except redis.RedisError:
            continue

        return
