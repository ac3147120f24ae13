"""The worker: RQ's, with a loop of its own that sweeps, and deaf to foreign jobs."""

from __future__ import annotations

import copy
import functools
import importlib
import logging
import signal
import time
import typing as t
import zlib

import redis
import rq
import sqlalchemy as sa
from flask import Flask
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq import utils
from rq import worker_registration
from rq.exceptions import NoSuchJobError
from rq.exceptions import StopRequested
from rq.serializers import JSONSerializer
from rq.suspension import is_suspended
from rq.worker import Worker
from rq.worker import WorkerStatus

from .. import keys
from ..ledger import overview
from ..ledger import tables
from ..ledger import turns
from ..state import AppState
from ..state import get_state
from . import announce
from . import notifier
from . import stopping
from . import trouble
from . import workers
from .periodic import FUNCTIONS
from .sweep import sweep

logger = logging.getLogger("flask_credly")

SWEEP_INTERVAL = 5
"""Seconds between two looks at the ledger for rows that nobody rang for."""

CONNECT_TIMEOUT = 5
"""Seconds in which Redis has to be reached."""


class OwnJob(rq.job.Job):
    """A job of which Redis only says which of ours it is.

    Whoever can write to Redis can put anything there: functions to be called when it
    has failed or as its worker died, addresses to be told, data that runs as it is
    read, more with each release of RQ. So nothing else is taken from there.
    """

    def restore(self, raw_data: t.Any) -> None:
        described = workers.text_of(raw_data.get(b"description")).removesuffix("()")
        status = workers.text_of(raw_data.get(b"status"))
        job = FUNCTIONS.get(described)
        name = described if job else ascii(described[:100])
        call: tuple[t.Any, ...] = (name, None, (), {})
        constants: dict[str, t.Any] = {
            "description": name,
            "data": zlib.compress(self.serializer.dumps(call)),
            "status": status if status in _STATUSES else "",
            "timeout": job.timeout if job else 60,
            "result_ttl": 0,
            "failure_ttl": notifier.FAILURE_TTL,
        }
        # As redis-py gives them.
        super().restore(
            {
                key: value if isinstance(value, bytes) else str(value).encode()
                for key, value in constants.items()
            }
        )

    @property
    def func(self) -> t.Any:
        if self.func_name not in FUNCTIONS:
            raise PermissionError(f"Not a job of Flask-Credly: {self.func_name}.")

        return super().func

    # Nor would they be called if a release of RQ set them elsewhere.
    success_callback = failure_callback = stopped_callback = None


_STATUSES = {each.value for each in rq.job.JobStatus}


class CredlyWorker(Worker):
    """Runs drains, and sweeps while it waits.

    What RQ does beside of that with what is in Redis, it does not: RQ's own cleaning
    loads jobs as they are, and its commands by Redis are not ours.
    """

    job_class = OwnJob

    def __init__(self, app: Flask, queue: rq.Queue) -> None:
        own = copy.copy(queue)
        own.job_class = OwnJob
        own.serializer = JSONSerializer
        super().__init__(
            [own],
            connection=own.connection,
            serializer="json",
            maintenance_interval=30,
            worker_ttl=60,
        )
        # RQ has given the pool a time-out by which an idle worker may wait for a job. A
        # connection that was opened before keeps the shorter one that it was made with:
        # redis-py's own is as long as the wait.
        self.connection.connection_pool.disconnect(inuse_connections=False)
        self.connection.connection_pool.reset()
        self._app = app
        self._failed = False
        self._signed = False
        self._keyless: set[str] = set()
        self._lacks_every_key = False
        self._tableless = False
        self.told_to_stop = False

    def request_stop(self, signum: t.Any, frame: t.Any) -> None:
        self.told_to_stop = True
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]

    def subscribe(self) -> None:
        """Listen to nobody: who can write to Redis has no say here."""

    def work(self, burst: bool = False, **_: t.Any) -> bool:  # type: ignore[override]
        """Work until told to stop. RQ's own loop swallows what is wrong with Redis.

        :raises redis.RedisError: If Redis goes away, or does not take what is needed.
        """
        self.bootstrap(logging_level="WARNING")
        self._install_signal_handlers()  # type: ignore[no-untyped-call]

        try:
            while not self._stop_requested:
                found = self.dequeue_job_and_maintain_ttl(None if burst else 1)

                if found is None:
                    break

                self.execute_job(*found)
        except StopRequested:
            pass
        finally:
            self.teardown()  # type: ignore[no-untyped-call]

        return True

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[rq.job.Job, rq.Queue] | None:
        burst = timeout is None
        self.set_state(WorkerStatus.IDLE)

        while True:
            # The signal's exception may have come up where it could not get out.
            if self.told_to_stop:
                raise StopRequested

            self.heartbeat()
            self.check_for_suspension(burst)

            if self.should_run_maintenance_tasks:
                self.run_maintenance_tasks()

            # What makes every drain fail is not made better by a drain at once.
            if not self._failed:
                self._sweep()

            if self._lacks_every_key:
                if burst:
                    return None

                # The jobs are for those who can do them.
                time.sleep(SWEEP_INTERVAL)
                continue

            if (job := self._pop(wait=not burst)) is not None:
                return job, self.queues[0]

            if burst:
                return None

            self._failed = False

    def _pop(self, *, wait: bool) -> rq.job.Job | None:
        """Take the next job of the queue. It is in no other place of Redis then: the
        row in the ledger is the job, and nothing is lost with it.
        """
        key = self.queues[0].key

        while True:
            popped: t.Any

            if wait:
                _, popped = self.connection.blpop([key], SWEEP_INTERVAL) or (key, None)
            else:
                popped = self.connection.lpop(key)

            if popped is None:
                return None

            if (job := self._fetch(popped)) is not None:
                return job

    def _fetch(self, id_: bytes) -> rq.job.Job | None:
        try:
            job = OwnJob.fetch(id_.decode(), self.connection, self.serializer)
        except NoSuchJobError:
            return None
        except (ValueError, redis.ResponseError) as e:
            if isinstance(e, redis.ResponseError) and "WRONGTYPE" not in str(e):
                raise

            logger.warning("A queue entry was not a job and was dropped.")
            return None

        job.origin = self.queues[0].name
        return job

    def check_for_suspension(self, burst: bool) -> None:
        said = False

        while is_suspended(self.connection, self):
            if not said:
                logger.warning(
                    "RQ is suspended on this Redis, so no worker takes jobs. To"
                    " resume, run: rq resume",
                    extra={"credly_event": "queue_suspended"},
                )
                self.set_state(WorkerStatus.SUSPENDED)
                said = True

            if burst or self.told_to_stop:
                raise StopRequested

            time.sleep(1)

    def run_maintenance_tasks(self) -> None:
        """Forget the jobs of workers that died, those that failed long ago, and those
        workers.
        """
        queue = self.queues[0]
        now = time.time()
        started, failed = queue.started_job_registry, queue.failed_job_registry
        died: list[t.Any] = self.connection.zrangebyscore(started.key, 0, now)

        with self.connection.pipeline() as pipeline:
            for entry in died:
                pipeline.delete(
                    OwnJob.key_for(workers.text_of(entry).partition(":")[0])
                )

            pipeline.zremrangebyscore(started.key, 0, now)
            pipeline.zremrangebyscore(failed.key, 0, now)
            pipeline.execute()

        self._forget_workers()
        self.last_cleaned_at = utils.now()  # type: ignore[assignment]

    def _forget_workers(self) -> None:
        # RQ's own would end the worker where a name is no text.
        of_queue = worker_registration.WORKERS_BY_QUEUE_KEY % self.queues[0].name
        known: t.Any = self.connection.smembers(of_queue)

        if died := [key for key in known if not self.connection.exists(key)]:
            self.connection.srem(of_queue, *died)
            self.connection.srem(worker_registration.REDIS_WORKER_KEYS, *died)

    def execute_job(self, job: rq.job.Job, queue: rq.Queue) -> None:
        super().execute_job(job, queue)
        # A job that went well is gone by now.
        self._failed = self.connection.hget(job.key, "status") == b"failed"

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

            # With which everything else ends as well.
            if isinstance(e, redis.RedisError):
                raise

            logger.exception(
                "The sweep failed. The worker retries it.",
                extra={"credly_event": "sweep_failed"},
            )

    def _say_tables_are_missing(self) -> None:
        # Once, and not at each sweep.
        if not self._tableless:
            logger.error(tables.MISSING, extra={"credly_event": "tables_missing"})

        self._tableless = True

    def _ring(self, state: AppState) -> None:
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

    def _lacks_key(self, state: AppState) -> bool:
        """Whether this process can decrypt no account's Client Secret."""
        some = turns.some(state.engine)
        closed = [each for each in some if not overview.opens(each, state.app.config)]

        for account in closed:
            announce.keyless(
                state.of(account.tenant),
                account.generation,
                4 * SWEEP_INTERVAL,
                again=account.tenant in self._keyless,
            )

        self._keyless = {account.tenant for account in closed}
        self._lacks_every_key = bool(closed) and len(closed) == len(some)
        return self._lacks_every_key

    def _sign(self, state: AppState) -> None:
        if (signature := workers.signature(state.engine)) is not None:
            workers.sign(self.queues[0], self.name, signature)
            self._signed = True


def _forget_connections(state: AppState) -> None:
    for engine in state.db.engines.values():
        engine.dispose(close=False)


def work(state: AppState, *, burst: bool) -> None:
    """Run a worker until it is told to stop.

    :param burst: Stop when nothing is due.
    :raises WrongQueue: If CREDLY_QUEUE gives what cannot be used.
    :raises redis.RedisError: If Redis cannot be used at the start. Later on, the worker
        waits until it can be.
    """
    keys.warn_of_derived(state.app.config)
    # It waits by itself: redis-py's own tries add up to a minute without a word.
    open_redis = functools.partial(
        redis.Redis.from_url,
        state.settings.redis_url,
        socket_connect_timeout=CONNECT_TIMEOUT,
        retry=Retry(NoBackoff(), 1),
    )
    queue = notifier.make_queue(state.app, state.settings, open_redis())

    try:
        if callable(state.settings.queue):
            trouble.try_out(queue)
        else:
            # A job is waited for without a limit. An older redis-py would wait so for
            # the answer to a TLS handshake, too.
            with open_redis(socket_timeout=CONNECT_TIMEOUT) as limited:
                trouble.try_out(notifier.make_queue(state.app, state.settings, limited))
    except TypeError as e:
        # redis-py has no class for an option that it does not know.
        found = trouble.explain(e, state.settings)
        raise trouble.WrongQueue(found.what, found.remedy) from e

    _load_for_jobs()
    said = None

    while True:
        began = time.monotonic()
        worker = None

        try:
            worker = CredlyWorker(state.app, queue)
            worker.work(burst=burst)
        except redis.RedisError as e:
            if burst:
                raise

            error = e
        else:
            return

        if worker is not None and worker.told_to_stop:
            return

        # RQ's handlers, which are still in force, only talk to its own loop.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

        # What comes back within seconds was never mended.
        if time.monotonic() - began > _LASTING:
            said = None

        said = _wait_for(queue, state, error, said)


_LASTING = 60


def _load_for_jobs() -> None:
    # Each job has a process that is forked from this one, and would load it anew.
    functions = {name.rpartition(".")[0] for name in FUNCTIONS}
    to_unseal = ("cryptography.fernet", "cryptography.hazmat.primitives.kdf.hkdf")

    for module in (*functions, *to_unseal):
        importlib.import_module(module)


def _wait_for(
    queue: rq.Queue,
    state: AppState,
    error: redis.RedisError,
    said: trouble.Trouble | None,
) -> trouble.Trouble:
    """Wait until Redis can be used, and say what is in the way: once, unless it is
    another thing than what was said before.
    """
    while True:
        found = trouble.explain(error, state.settings)

        if found != said:
            logger.warning(
                "%s The worker resumes once this is fixed.",
                found,
                extra={"credly_event": "queue_unreachable"},
            )
            said = found

        time.sleep(1)

        try:
            trouble.try_out(queue)
        except redis.RedisError as e:
            error = e
        else:
            return said
