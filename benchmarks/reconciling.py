"""A comparison of completions, ledger and Credly: how fast, and in how much memory."""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import resource
import time
import typing as t

from flask_credly import Member
from flask_credly.issuing import reconcile

from .host import a_member
from .host import add_at_credly
from .host import connect
from .host import make_host
from .measure import benchmark
from .measure import Options
from .processes import call
from .processes import Fake
from .report import compare
from .report import Result

AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@benchmark("reconcile", "a comparison of all badges with Credly, SQLite")
def reconciling(options: Options) -> cabc.Iterator[Result]:
    number = options.number(100_000, 1_000)
    fake = Fake(options)
    fake.ask("reset", badges=number)
    config = {"SQLALCHEMY_DATABASE_URI": options.database("sqlite"), **fake.config}
    add_at_credly(connect(make_host(config)).engine, number)
    found = call("benchmarks.reconciling", "measure", config=config, number=number)
    assert found["agreed"] == number, found
    yield compare(
        "reconcile/speed",
        f"completions, rows and badges compared, of {number:,} each",
        "badges/s",
        number / found["seconds"],
        goal=">= 20000",
        note=f"{found['seconds']:.1f} s, {found['cpu']:.1f} s of them CPU.",
    )
    yield compare(
        "reconcile/memory",
        f"memory that it takes, with {number:,} badges",
        "MB",
        found["megabytes"],
        goal="<= 60",
    )


def measure(config: dict[str, t.Any], number: int) -> dict[str, float]:
    """Compare once, in a process of its own."""

    def past() -> cabc.Iterator[tuple[Member, dt.datetime]]:
        for i in range(1, number + 1):
            yield a_member(f"m{i}"), AT

    host = make_host(config, past=past)

    with host.app.app_context():
        # What is loaded once is not what grows.
        with host.engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")

        before = _peak()
        cpu, start = time.process_time(), time.perf_counter()

        with reconcile.compare(host.state) as found:
            assert found.complete
            counts = found.comparison.counts()
            return {
                "seconds": time.perf_counter() - start,
                "cpu": time.process_time() - cpu,
                "megabytes": (_peak() - before) / 1024,
                "agreed": counts["agreed"],
            }


def _peak() -> int:
    """Kilobytes that the process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
