"""What is measured in a process that has just started. Imports nothing by itself that
the extension would load, or put off.
"""

from __future__ import annotations

import statistics
import sys
import time
import typing as t

import psutil

HANGING = 20
"""Requests while Redis hangs."""

HEAVY = ("rq", "redis", "requests", "authlib", "cryptography")


def load() -> dict[str, t.Any]:
    """Add the extension to a host that has Flask-SQLAlchemy and Flask-WTF."""
    from flask import Flask
    from flask_sqlalchemy import SQLAlchemy
    from flask_wtf import CSRFProtect

    app = Flask("benchmark_host")
    app.config["SECRET_KEY"] = "key"
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    app.config["CREDLY_ENCRYPTION_KEYS"] = [f"{'A' * 43}="]
    SQLAlchemy().init_app(app)
    CSRFProtect().init_app(app)
    process = psutil.Process()
    modules, rss, start = (
        len(sys.modules),
        process.memory_info().rss,
        time.perf_counter(),
    )

    from flask_credly import Credly

    credly = Credly()
    credly.courses(lambda: [])
    credly.is_admin(lambda: True)
    credly.init_app(app)
    return {
        "ms": (time.perf_counter() - start) * 1000,
        "mb": (process.memory_info().rss - rss) / 1e6,
        "modules": len(sys.modules) - modules,
        "heavy": [name for name in HEAVY if name in sys.modules],
    }


def hang(database: str, redis_url: str) -> dict[str, float]:
    """Complete courses."""
    import sqlalchemy as sa

    from flask_credly.models import Issuance

    from .host import connect
    from .host import make_host

    config = {"SQLALCHEMY_DATABASE_URI": database, "CREDLY_REDIS_URL": redis_url}
    host = connect(make_host(config))
    times: dict[str, list[float]] = {}

    for course_id, send in (("bare", 0), ("c0", 1)):
        call = host.caller(f"/complete/{course_id}/{send}", "POST")
        times[course_id] = []

        for _ in range(HANGING):
            start = time.perf_counter()
            call()
            times[course_id].append((time.perf_counter() - start) * 1000)

    with host.engine.connect() as connection:
        rows = connection.scalar(sa.select(sa.func.count()).select_from(Issuance))

    return {
        "first": times["c0"][0] - statistics.median(times["bare"]),
        "next": statistics.median(times["c0"][1:]),
        "lost": HANGING - (rows or 0),
    }


def backfill(database: str, redis_url: str, number: int) -> dict[str, float]:
    """Record past completions."""
    import datetime as dt

    import sqlalchemy as sa

    from flask_credly import course_completed
    from flask_credly import jobs
    from flask_credly.ledger import backfills
    from flask_credly.models import Issuance

    from .host import a_member
    from .host import connect
    from .host import make_host

    config = {"SQLALCHEMY_DATABASE_URI": database, "CREDLY_REDIS_URL": redis_url}
    at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    size = number
    host = make_host(
        config, past=lambda: ((a_member(f"p{i}"), at) for i in range(size))
    )
    connect(host, mappings=3)
    found: dict[str, float] = {}

    def measure(name: str, mapping_id: int) -> None:
        backfills.start(host.engine, "default", mapping_id)
        start = time.perf_counter()
        jobs.backfill()
        found[name] = size / (time.perf_counter() - start)

    with host.app.app_context():
        start = time.perf_counter()

        for i in range(number // 10):
            course_completed.send(host.app, member=a_member(f"l{i}"), course_id="c0")

        found["loop"] = number / 10 / (time.perf_counter() - start)
        measure("first", 2)
        rss = psutil.Process().memory_info().rss
        measure("again", 2)
        size = 10 * number
        measure("tenfold", 3)
        found["memory"] = (psutil.Process().memory_info().rss - rss) / 1e6

        with host.engine.connect() as connection:
            rows = connection.scalar(sa.select(sa.func.count()).select_from(Issuance))

    if rows != number // 10 + number + 10 * number:
        raise RuntimeError(f"{rows} rows")

    return found
