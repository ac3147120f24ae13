"""What a completion adds to the host's request."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import socket
import threading
import typing as t

from .fresh import HANGING
from .host import connect
from .host import Host
from .host import make_host
from .measure import benchmark
from .measure import in_turn
from .measure import milliseconds
from .measure import Options
from .processes import call
from .processes import start_redis
from .report import compare
from .report import Result
from .report import Sample

ROUNDS = 300
MAPPINGS = 5_000


@benchmark(
    "completion-postgresql",
    "a completion in a request, PostgreSQL",
    database="postgresql",
)
@benchmark("completion-sqlite", "a completion in a request, SQLite", database="sqlite")
def completions(options: Options, database: str) -> cabc.Iterator[Result]:
    redis_url = start_redis(options)

    def host(mappings: int) -> Host:
        config = {
            "SQLALCHEMY_DATABASE_URI": options.database(database),
            "CREDLY_REDIS_URL": redis_url,
        }
        return connect(make_host(config), mappings=mappings)

    few, many = host(1), host(MAPPINGS)
    ways = {
        "bare": few.caller("/complete/c0/0", "POST"),
        "mapped": few.caller("/complete/c0/1", "POST"),
        "unmapped": few.caller("/complete/other/1", "POST"),
        "bare_many": many.caller("/complete/c0/0", "POST"),
        "unmapped_many": many.caller("/complete/other/1", "POST"),
    }

    for call_once in ways.values():
        for _ in range(20):
            call_once()

    found = in_turn(
        options.repeat * options.number(ROUNDS, 100),
        **{name: milliseconds(way) for name, way in ways.items()},
    )
    name = f"completion-{database}"

    for way, peer, words, goal in (
        ("mapped", "bare", "a mapped course, Redis rung", "<= 1.35x"),
        ("unmapped", "bare", "a course that is not mapped, one mapping", "<= 1.25x"),
        (
            "unmapped_many",
            "bare_many",
            f"a course that is not mapped, {MAPPINGS:,} mappings",
            "<= 1.25x",
        ),
    ):
        yield compare(
            f"{name}/{way.replace('_', '-')}",
            f"a request that completes {words}, against the same without the signal"
            " (INSERT and commit)",
            "ms",
            found[way],
            found[peer],
            goal=goal,
        )


@benchmark("redis-hangs", "completions while Redis accepts and never answers")
def redis_hangs(options: Options) -> cabc.Iterator[Result]:
    runs, answered = [], []
    url = start_redis(options)

    def hang(redis_url: str) -> dict[str, float]:
        given = {"database": options.database("sqlite"), "redis_url": redis_url}
        return t.cast(dict[str, float], call("benchmarks.fresh", "hang", **given))

    for _ in range(options.repeat):
        with _silent_server() as port:
            runs.append(hang(f"redis://127.0.0.1:{port}/0"))

        answered.append(hang(url))

    yield compare(
        "redis-hangs/first",
        "how much longer the first completion of a new web process takes",
        "ms",
        Sample(tuple(run["first"] for run in runs)),
        goal="<= 250",
    )
    yield compare(
        "redis-hangs/next",
        f"the {HANGING - 1} after it, against the same where Redis answers",
        "ms",
        Sample(tuple(run["next"] for run in runs)),
        Sample(tuple(run["next"] for run in answered)),
        goal="<= 1.1x",
    )
    yield compare(
        "redis-hangs/lost",
        f"rows that are missing in the ledger, of {HANGING * len(runs)}",
        "rows",
        float(sum(run["lost"] for run in runs)),
        goal="<= 0",
    )


@benchmark("backfill", "10,000 past completions recorded, SQLite")
def backfill(options: Options) -> cabc.Iterator[Result]:
    number = options.number(10_000, 1000)
    number -= number % 10
    given = {"database": options.database("sqlite"), "redis_url": start_redis(options)}
    runs = call("benchmarks.fresh", "backfill", **given, number=number)
    yield compare(
        "backfill/loop",
        f"{number:,} completions a second, against the signal sent for each in a loop"
        f" ({number // 10:,} of them)",
        "a second",
        runs["first"],
        runs["loop"],
        goal=">= 40x",
    )
    yield compare(
        "backfill/again",
        "the same a second time, which adds nothing, against the first",
        "a second",
        runs["again"],
        runs["first"],
        goal=">= 0.83x",
    )
    yield compare(
        "backfill/linear",
        "ten times as many, against the first",
        "a second",
        runs["tenfold"],
        runs["first"],
        goal=">= 0.83x",
    )
    yield compare(
        "backfill/memory",
        "what the process grew by meanwhile",
        "MB",
        runs["memory"],
        goal="<= 5",
    )


@contextlib.contextmanager
def _silent_server() -> t.Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    kept.append(server.accept()[0])

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()

        for each in kept:
            each.close()
