"""Workers: how fast they issue, at what cost, and within Credly's rate limit."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import itertools
import math
import threading
import time
import typing as t

import psutil
import redis
import sqlalchemy as sa

from flask_credly.issuing import notifier
from flask_credly.models import Issuance

from . import peers
from .host import Completed
from .host import connect
from .host import insert_due
from .host import make_host
from .measure import benchmark
from .measure import in_turn
from .measure import Options
from .processes import call
from .processes import Fake
from .processes import OURS
from .processes import start_redis
from .processes import wait_for
from .processes import Workers
from .report import compare
from .report import Result
from .report import Sample

IN_FLIGHT = 8

_prefixes = (f"n{i}-" for i in itertools.count())


@dataclasses.dataclass(frozen=True)
class Run:
    """One lot of badges.

    :param cpu: CPU milliseconds of the client a badge.
    :param busy: The share of one core that the service needed meanwhile.
    """

    seconds: float
    rate: float
    cpu: float
    busy: float
    books: dict[str, t.Any]


class Ours:
    """A host with workers of ours, that have issued before."""

    def __init__(
        self,
        options: Options,
        database: str = "sqlite",
        *,
        workers: int = 1,
        in_flight: int = IN_FLIGHT,
        batch_size: int = 30,
    ) -> None:
        self.fake = Fake(options)
        self.config = {
            **self.fake.config,
            "SQLALCHEMY_DATABASE_URI": options.database(database),
            "CREDLY_REDIS_URL": start_redis(options),
            "CREDLY_CONCURRENCY": in_flight,
            "CREDLY_BATCH_SIZE": batch_size,
        }
        self.host = connect(make_host(self.config))
        self.workers = options.ends.enter_context(Workers(OURS, self.config, workers))
        self.issue(2 * in_flight)  # fetches the token

    def issue(self, number: int, *, rings: int = 1, **service: t.Any) -> Run:
        """Let badges be issued, from the commit of their rows until the last row says
        that it was.
        """
        with self.host.app.app_context():

            def begin() -> None:
                with self.host.engine.begin() as connection:
                    insert_due(connection, number, next(_prefixes))

                for _ in range(rings):
                    notifier.notify(self.host.state, insist=True)

            return self.run(number, begin, **service)

    def run(
        self, number: int, begin: cabc.Callable[[], object], **service: t.Any
    ) -> Run:
        """Measure until so many badges were issued and saved."""
        due = sa.select(Issuance.id).where(Issuance.due_at.is_not(None)).limit(1)

        def done() -> bool:
            with self.host.engine.connect() as connection:
                return connection.scalar(due) is None

        return _measure(self.fake, self.workers, number, begin, done, service)


def _measure(
    fake: Fake,
    workers: Workers,
    number: int,
    begin: cabc.Callable[[], object],
    done: cabc.Callable[[], bool],
    service: dict[str, t.Any],
) -> Run:
    fake.ask("reset", **service)
    cpu, busy = workers.cpu(), fake.cpu()
    start = time.perf_counter()
    begin()

    wait_for(lambda: fake.ask("wait", issued=number)["issued"] >= number)
    wait_for(done)
    seconds = time.perf_counter() - start
    workers.wait_until_idle()
    cpu, busy = workers.cpu() - cpu, fake.cpu() - busy
    books = fake.ask("books")

    if (books["issued"], books["duplicates"]) != (number, 0):
        raise RuntimeError(f"{number} badges were asked for: {books}")

    return Run(seconds, number / seconds, cpu / number * 1000, busy / seconds, books)


@benchmark("issue", "badges a second without latency: a worker, a bare loop, plain RQ")
def issue(options: Options) -> cabc.Iterator[Result]:
    number = options.number(5_000, 300)
    ours = Ours(options, batch_size=1)
    runs: list[Run] = []
    loops: list[dict[str, float]] = []

    def by_worker() -> float:
        runs.append(ours.issue(number))
        return runs[-1].rate

    def by_loop() -> float:
        loops.append(_loop(ours.fake, number))
        return loops[-1]["rate"]

    fork = Plain(options, ours, "fork", options.number(60, 20))
    simple = Plain(options, ours, "simple", options.number(300, 100))
    found = in_turn(
        options.repeat, ours=by_worker, loop=by_loop, fork=fork.rate, simple=simple.rate
    )
    busy = Sample(tuple(each["busy"] for each in loops)).median
    note = (
        f"The service was {busy:.0%} busy on one core of its own meanwhile: it would"
        f" answer about {found['loop'].median / busy:,.0f} a second."
    )
    what = f"{number:,} badges, SQLite, one `flask credly worker`, 8 in flight"
    yield compare(
        "issue/loop",
        f"{what}, against 8 threads with a requests.Session each and no record",
        "badges/s",
        found["ours"],
        found["loop"],
        goal=">= 0.7x",
        note=note,
    )
    yield compare(
        "issue/loop-cpu",
        "the same: the client's CPU time a badge",
        "ms",
        Sample(tuple(run.cpu for run in runs)),
        Sample(tuple(each["cpu"] for each in loops)),
        goal="<= 1.3x",
    )

    for peer, goal, kind in (
        (fork, ">= 25x", "rq.Worker, which forks for each"),
        (simple, "", "rq.SimpleWorker"),
    ):
        yield compare(
            f"issue/rq-{peer.kind}",
            f"{what}, against a job a badge with {kind} ({peer.number} badges)",
            "badges/s",
            found["ours"],
            found[peer.kind],
            goal=goal,
        )


def _loop(fake: Fake, number: int, **service: t.Any) -> dict[str, float]:
    """Let a bare loop issue badges, in a process of its own."""
    fake.ask("reset", **service)
    busy = fake.cpu()
    given = {"url": fake.url, "number": number, "threads": IN_FLIGHT}
    found = call("benchmarks.peers", "loop", **given)
    seconds = found["seconds"]
    return {
        "rate": number / seconds,
        "cpu": found["cpu"] / number * 1000,
        "busy": (fake.cpu() - busy) / seconds,
    }


class Plain:
    """The same host with a plain RQ job a badge. Its workers run only in its turn."""

    def __init__(self, options: Options, ours: Ours, kind: str, number: int) -> None:
        self.kind = kind
        self.number = number
        self._fake = ours.fake
        url = start_redis(options)
        self._config = {**ours.config, "CREDLY_REDIS_URL": url}
        self._engine = ours.host.engine
        self._queue = peers.make_queue(url)

    def rate(self) -> float:
        command = ("-m", "benchmarks.peers", self.kind)

        with Workers(command, self._config) as workers:
            return _measure(
                self._fake, workers, self.number, self._begin, self._done, {}
            ).rate

    def _begin(self) -> None:
        prefix = next(_prefixes)
        rows = [
            {"member_id": f"{prefix}{i}", "course_id": "c0", "status": "open"}
            for i in range(self.number)
        ]

        with self._engine.begin() as connection:
            connection.execute(sa.insert(Completed), rows)
            ids = connection.scalars(_OPEN).all()

        prepare = self._queue.prepare_data
        self._queue.enqueue_many([prepare(peers.job, (id_,)) for id_ in ids])

    def _done(self) -> bool:
        with self._engine.connect() as connection:
            return connection.scalar(_OPEN.limit(1)) is None


_OPEN = sa.select(Completed.id).where(Completed.status == "open")


@benchmark("latency-200", "badges a second where Credly takes 200 ms", latency=0.2)
@benchmark("latency-50", "badges a second where Credly takes 50 ms", latency=0.05)
def with_latency(options: Options, latency: float) -> cabc.Iterator[Result]:
    number = options.number(round(IN_FLIGHT / latency * 10), 100)
    ours = Ours(options, batch_size=1)
    runs: list[Run] = []

    def by_worker() -> float:
        runs.append(ours.issue(number, latency=latency))
        return runs[-1].rate

    found = in_turn(
        options.repeat,
        ours=by_worker,
        loop=lambda: _loop(ours.fake, number, latency=latency)["rate"],
    )
    yield compare(
        f"latency-{latency * 1000:.0f}",
        f"{number:,} badges at {latency * 1000:.0f} ms, SQLite, one worker, 8 in"
        " flight, against in-flight / latency as the service kept it",
        "badges/s",
        found["ours"],
        Sample(tuple(IN_FLIGHT * number / run.books["held"] for run in runs)),
        goal=">= 0.95x",
        note=f"A bare loop without a record: {found['loop'].median:.1f} a second.",
    )


@benchmark("waiting", "10,000 badges that wait, 200 ms, with batches")
@benchmark("waiting-limit", "the same at 20 requests per 2 s", limit=20)
@benchmark("waiting-limit-4", "the same, four workers", limit=20, workers=4)
def waiting(
    options: Options, limit: int = 0, workers: int = 1
) -> cabc.Iterator[Result]:
    number = options.number(10_000, 1_000)
    database = "sqlite" if workers == 1 else "postgresql"
    ours = Ours(options, database, workers=workers)
    given: dict[str, t.Any] = {"latency": 0.2, "limit": limit, "window": 2.0}
    runs = [
        ours.issue(number, rings=workers, **given) for _ in range(1 + options.repeat)
    ]
    first, *rest = runs
    name = "waiting-limit" if limit else "waiting"
    name = name if workers == 1 else f"{name}-{workers}"
    at = f" and {limit} requests per 2 s" if limit else ""
    yield compare(
        name,
        f"{number:,} badges that wait, at 200 ms{at}, {workers} worker(s), 8 requests"
        " in flight each with up to 30 badges; each was delivered, none doubled",
        "badges/s",
        Sample(tuple(run.rate for run in rest)),
        goal=">= 250" if limit else ">= 600",
        note=f"CPU time a badge: {first.cpu:.2f} ms.",
    )

    if limit:
        yield compare(
            f"{name}/refusals",
            "the same: the most refusals in one window that was used up",
            "refusals",
            Sample(tuple(run.books["most_refused"] for run in rest)),
            goal="<= 2",
            note=f"When it was met first: {first.books['most_refused']}. Refusals by"
            " windows that were used up: "
            + ", ".join(
                f"{run.books['refused']}/{run.books['closed_windows']}" for run in runs
            ),
        )


@benchmark("fresh", "a completion while 100,000 badges of a backfill wait")
def fresh(options: Options) -> cabc.Iterator[Result]:
    many = options.number(100_000, 10_000)
    ours = Ours(options)
    complete = ours.host.caller("/complete/c0/1", "POST")
    last = sa.select(Issuance.settled_at, Issuance.recorded_at)
    last = last.where(Issuance.bulk.is_(False)).order_by(Issuance.id.desc()).limit(1)

    def issued() -> bool:
        with ours.host.engine.connect() as connection:
            return connection.execute(last).one().settled_at is not None

    def one() -> float:
        time.sleep(0.5)
        start = time.perf_counter()
        complete()
        wait_for(issued)
        return (time.perf_counter() - start) * 1000

    ours.fake.ask("reset", latency=0.2)
    alone = Sample(tuple(one() for _ in range(options.repeat * 4)))

    with ours.host.app.app_context():
        with ours.host.engine.begin() as connection:
            insert_due(connection, many, "bulk-", bulk="true")

        notifier.notify(ours.host.state, insist=True)

    meanwhile = Sample(tuple(one() for _ in range(options.repeat * 4)))
    yield compare(
        "fresh",
        f"from a completion until its badge is issued, at 200 ms, while {many:,} of a"
        " backfill wait, against alone",
        "ms",
        meanwhile,
        alone,
        goal="<= 1.5x",
    )


@benchmark("workers", "four workers against one, 50 ms, PostgreSQL")
def four_workers(options: Options) -> cabc.Iterator[Result]:
    number = options.number(1_600, 320)
    one = Ours(options, "postgresql", batch_size=1)
    four = Ours(options, "postgresql", workers=4, batch_size=1)
    found = in_turn(
        options.repeat,
        one=lambda: one.issue(number, latency=0.05).rate,
        four=lambda: four.issue(4 * number, rings=4, latency=0.05).rate,
        # What a backfill does, or a retry of all.
        rung_once=lambda: four.issue(4 * number, latency=0.05).rate,
    )
    what = f"{4 * number:,} badges by four workers, against {number:,} by one"
    yield compare(
        "workers/four",
        f"{what}; four completions rang",
        "badges/s",
        found["four"],
        found["one"],
        goal=">= 3.6x",
    )
    yield compare(
        "workers/rung-once",
        f"{what}; one ring for all",
        "badges/s",
        found["rung_once"],
        found["one"],
    )


@benchmark("rate-limit-4", "100 badges at 20 per 2 s, four workers", workers=4)
@benchmark("rate-limit", "100 badges at 20 per 2 s, one worker", workers=1)
def rate_limit(options: Options, workers: int) -> cabc.Iterator[Result]:
    number, limit, window = 100, 20, 2.0
    name = "rate-limit" if workers == 1 else f"rate-limit-{workers}"
    what = f"{number} badges, {limit} in {window:.0f} s, {workers} worker(s)"
    ours = Ours(options, workers=workers, in_flight=IN_FLIGHT // workers, batch_size=1)
    # Where nobody knows of a limit yet, all that is in flight is refused.
    first, *runs = (
        ours.issue(number, rings=workers, limit=limit, window=window)
        for _ in range(1 + max(1, options.repeat // 2))
    )
    # The last lot need not wait for its window to end.
    possible = number / ((math.ceil(number / limit) - 1) * window)
    yield compare(
        f"{name}/rate",
        f"{what}, 8 in flight in all; each was delivered, none doubled; against the"
        " limit",
        "badges/s",
        Sample(tuple(run.rate for run in runs)),
        possible,
        goal=">= 0.95x",
    )
    yield compare(
        f"{name}/refusals",
        "the same: the most refusals in one window that was used up, once the limit"
        " was met",
        "refusals",
        Sample(tuple(run.books["most_refused"] for run in runs)),
        goal="<= 2",
        note=f"When it was met first: {first.books['most_refused']}. Refusals by"
        " windows that were used up: "
        + ", ".join(
            f"{run.books['refused']}/{run.books['closed_windows']}" for run in runs
        ),
    )


@benchmark("redis-commands", "Redis commands a badge")
def redis_commands(options: Options) -> cabc.Iterator[Result]:
    ours = Ours(options)
    many = options.number(10_000, 1_000)

    with redis.Redis.from_url(str(ours.config["CREDLY_REDIS_URL"])) as client:

        def commands(number: int, issue: cabc.Callable[[int], object]) -> float:
            def count() -> int:
                stats: dict[str, t.Any] = client.info("commandstats")
                return sum(each["calls"] for each in stats.values())

            before = count()
            issue(number)
            return (count() - before - 1) / number

        complete = ours.host.caller("/complete/c0/1", "POST")

        def completed(number: int) -> None:
            ours.run(number, lambda: [complete() for _ in range(number)])

        for name, number, goal, way, words in (
            ("100", 100, "<= 2", ours.issue, "rows written at once"),
            ("100-requests", 100, "<= 2", completed, "each completed in a request"),
            (f"{many}", many, "<= 0.1", ours.issue, "rows written at once"),
        ):
            yield compare(
                f"redis-commands/{name}",
                f"{number:,} badges, {words}, one worker, until it is idle",
                "commands",
                Sample(tuple(commands(number, way) for _ in range(options.repeat))),
                goal=goal,
            )


@benchmark("worker-memory", "memory of a worker")
def worker_memory(options: Options) -> cabc.Iterator[Result]:
    few, many = 1_000, options.number(100_000, 2_000)
    ours = Ours(options)
    (parent,) = ours.workers.parents
    idle = _megabytes(parent)
    after_few = _highest(parent, lambda: ours.issue(few))
    after_many = _highest(parent, lambda: ours.issue(many - few))
    yield compare(
        "worker-memory",
        f"the largest process of a worker over {many:,} badges, against the first"
        f" {few:,}",
        "MB",
        after_many,
        after_few,
        goal="<= 1.05x",
        note=f"At its start {idle:.1f} MB, and {_megabytes(parent):.1f} MB at its end.",
    )


def _megabytes(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 1e6


def _highest(parent: psutil.Process, work: cabc.Callable[[], object]) -> float:
    highest = 0.0
    done = threading.Event()

    def watch() -> None:
        nonlocal highest

        while not done.wait(0.02):
            for each in (parent, *parent.children()):
                try:
                    highest = max(highest, _megabytes(each))
                except psutil.NoSuchProcess:
                    pass

    watcher = threading.Thread(target=watch)
    watcher.start()

    try:
        work()
    finally:
        done.set()
        watcher.join()

    return highest
