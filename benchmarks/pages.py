"""The admin's pages, with much in the tables and with little."""

from __future__ import annotations

import collections.abc as cabc

from .host import add_due
from .host import add_failed
from .host import add_issued
from .host import add_log
from .host import analyze
from .host import connect
from .host import courses
from .host import Host
from .host import make_host
from .host import NEEDLE
from .measure import benchmark
from .measure import in_turn
from .measure import milliseconds
from .measure import Options
from .processes import start_redis
from .report import compare
from .report import Result

FEW = 1_000
CALLS = 10

PAGES = (
    ("errors/first", "/errors", "the error log's first page"),
    ("errors/deep", "/errors?before={middle}", "a page in its middle"),
    ("errors/kind", "/errors?type=API+Rate+Limit", "one kind of error, 100 rows"),
    ("errors/text", f"/errors?q={NEEDLE}", "a text that 100 rows contain"),
    ("badges/first", "/badges", "the ledger's first page"),
    ("badges/deep", "/badges?before={middle}", "a page in its middle"),
    ("badges/failed", "/badges?status=failed", "what failed, 100 rows"),
    ("badges/waiting", "/badges?status=waiting", "what waits, no row"),
    ("badges/course", "/badges?course=course:c5", "one course"),
    ("badges/member", "/badges?q=m500", "one member's id"),
    ("badges/name", f"/badges?q={NEEDLE}", "a first name that 100 rows have"),
    ("window", "", "the configuration window"),
    ("remove", "/remove", "the question before Remove"),
)


@benchmark(
    "pages-postgresql",
    "the pages with 1,000,000 rows, PostgreSQL",
    database="postgresql",
)
@benchmark("pages-sqlite", "the pages with 1,000,000 rows, SQLite", database="sqlite")
def pages(options: Options, database: str) -> cabc.Iterator[Result]:
    redis_url = start_redis(options)
    many = options.number(1_000_000, 10_000)

    def host(rows: int) -> Host:
        config = {
            "SQLALCHEMY_DATABASE_URI": options.database(database),
            "CREDLY_REDIS_URL": redis_url,
        }
        made = connect(make_host(config, courses(10)), mappings=10)
        add_issued(made.engine, rows)
        add_log(made.engine, rows)
        return made

    hosts = {"many": host(many), "few": host(FEW)}

    for name, address, words in PAGES:
        found = in_turn(
            options.repeat * CALLS,
            many=_page(hosts["many"], address.format(middle=many // 2)),
            few=_page(hosts["few"], address.format(middle=FEW // 2)),
        )
        yield compare(
            f"pages-{database}/{name}",
            f"{words}: {many:,} rows in log and ledger, against {FEW:,}",
            "ms",
            found["many"],
            found["few"],
            # The window counts the ledger; a goal was set for the lists only.
            goal="<= 1.3x" if "/" in name else "",
        )


def _page(host: Host, address: str) -> cabc.Callable[[], float]:
    get = host.caller(f"/integrations/credly{address}")
    get()  # compiles the templates and the statements
    return milliseconds(get)


BUSY = (
    ("errors", "/errors", "the error log"),
    ("badges", "/badges", "the badges"),
    ("badges/failed", "/badges?status=failed", "what failed"),
    ("badges/waiting", "/badges?status=waiting", "what waits"),
    ("window", "", "the configuration window"),
    ("remove", "/remove", "the question before Remove"),
)


@benchmark("busy-postgresql", "the pages in trouble, PostgreSQL", database="postgresql")
@benchmark("busy-sqlite", "the pages in trouble, SQLite", database="sqlite")
def busy(options: Options, database: str) -> cabc.Iterator[Result]:
    redis_url = start_redis(options)
    many, mappings = options.number(300_000, 10_000), options.number(10_000, 1_000)

    def host(rows: int, mappings: int) -> Host:
        config = {
            "SQLALCHEMY_DATABASE_URI": options.database(database),
            "CREDLY_REDIS_URL": redis_url,
        }
        made = connect(make_host(config, courses(mappings)), mappings=mappings)
        add_failed(made.engine, rows)
        add_log(made.engine, rows)
        add_due(made.engine, rows, "due")
        analyze(made.engine)
        return made

    hosts = {"many": host(many, mappings), "few": host(FEW, 100)}

    for name, address, words in BUSY:
        found = in_turn(
            options.repeat * CALLS,
            many=_page(hosts["many"], address),
            few=_page(hosts["few"], address),
        )
        yield compare(
            f"busy-{database}/{name}",
            f"{words}: {many:,} badges wait, {many:,} failed, {mappings:,} mappings,"
            f" against {FEW:,}, {FEW:,} and 100",
            "ms",
            found["many"],
            found["few"],
            goal="<= 1.5x",
        )


@benchmark("mapping-page", "the mapping page with 10,000 courses and 5,000 templates")
def mapping_page(options: Options) -> cabc.Iterator[Result]:
    redis_url = start_redis(options)

    def host(number: int, templates: int, mappings: int) -> Host:
        config = {
            "SQLALCHEMY_DATABASE_URI": options.database("sqlite"),
            "CREDLY_REDIS_URL": redis_url,
        }
        made = make_host(config, courses(number))
        return connect(made, templates=templates, mappings=mappings)

    many, few = host(10_000, 5_000, 200), host(100, 50, 50)

    for name, address, words in (
        ("closed", "", "its first page"),
        ("open", "?mapping=new", "with a row open to choose in"),
    ):
        found = in_turn(
            options.repeat * CALLS, many=_page(many, address), few=_page(few, address)
        )
        size = len(many.caller(f"/integrations/credly{address}")()) / 1000
        yield compare(
            f"mapping-page/{name}",
            f"{words}: 10,000 courses, 5,000 templates, 200 mappings, against 100, 50"
            " and 50",
            "ms",
            found["many"],
            found["few"],
            goal="<= 1.3x",
        )
        yield compare(f"mapping-page/{name}-size", "its size", "kB", size, goal="<= 40")
