"""The ledger and the templates: sweep, claim, Remove, sync."""

from __future__ import annotations

import collections.abc as cabc
import functools
import multiprocessing
import re
import time
import typing as t

import sqlalchemy as sa
from sqlalchemy import event

from flask_credly import accounts
from flask_credly.issuing import undo
from flask_credly.ledger import claim
from flask_credly.ledger import gates
from flask_credly.ledger import removing
from flask_credly.ledger import turns
from flask_credly.models import Account
from flask_credly.models import Issuance
from flask_credly.models import Mapping
from flask_credly.models import Template

from .host import add_communities
from .host import add_due
from .host import add_issued
from .host import add_log
from .host import analyze
from .host import connect
from .host import Host
from .host import make_host
from .measure import benchmark
from .measure import in_turn
from .measure import milliseconds
from .measure import Options
from .processes import Fake
from .report import compare
from .report import Result
from .report import Sample

DUE = 1_000
CLAIMED = 64
CALLS = 20
TEMPLATES = 5_000
RENAMED = 3


def _host(options: Options, database: str, **config: t.Any) -> Host:
    return make_host({"SQLALCHEMY_DATABASE_URI": options.database(database), **config})


def _sweep(engine: sa.Engine) -> bool:
    return claim.any_due(engine, gates.read(engine, "default"))


@benchmark("claim-postgresql", "sweep and claim, PostgreSQL", database="postgresql")
@benchmark("claim-sqlite", "sweep and claim, SQLite", database="sqlite")
def claims(options: Options, database: str) -> cabc.Iterator[Result]:
    many = options.number(1_000_000, 10_000)
    yield from _sweep_and_claim(
        options,
        database,
        "claim",
        "to see whether anything is due",
        f"{many:,} issued and {DUE:,} due rows, against the latter alone",
        _sweep,
        lambda engine: add_issued(engine, many),
    )


def _sweep_and_claim(
    options: Options,
    database: str,
    name: str,
    sweep_words: str,
    words: str,
    sweep: cabc.Callable[[sa.Engine], object],
    add_more: cabc.Callable[[sa.Engine], object],
) -> cabc.Iterator[Result]:
    """Measure both with some due rows alone, and with more beside them."""
    ways: dict[str, cabc.Callable[[], float]] = {}

    for beside in ("more", "alone"):
        engine = connect(_host(options, database)).engine

        if beside == "more":
            add_more(engine)

        add_due(engine, DUE, "due")
        analyze(engine)
        ways[f"sweep_{beside}"] = milliseconds(functools.partial(sweep, engine))
        ways[f"claim_{beside}"] = _claim(engine)

    found = in_turn(options.repeat * CALLS, **ways)

    for what, its_words in (
        ("sweep", sweep_words),
        ("claim", f"to claim {CLAIMED} rows"),
    ):
        yield compare(
            f"{name}-{database}/{what}",
            f"{its_words}: {words}",
            "ms",
            found[f"{what}_more"],
            found[f"{what}_alone"],
            goal="<= 1.3x",
        )


def _claim(engine: sa.Engine, tenant: str = "default") -> cabc.Callable[[], float]:
    gate = gates.read(engine, tenant)
    assert gate is not None

    def way() -> float:
        start = time.perf_counter()
        rows = claim.claim(engine, gate, limit=CLAIMED, lease_seconds=60)
        took = time.perf_counter() - start
        claim.release(engine, rows)
        return took * 1000

    return way


@benchmark("communities-postgresql", "1,000 communities", database="postgresql")
@benchmark("communities-sqlite", "1,000 communities", database="sqlite")
def communities(options: Options, database: str) -> cabc.Iterator[Result]:
    many = options.number(1_000, 100)
    yield from _sweep_and_claim(
        options,
        database,
        "communities",
        "to see whose turn it is",
        f"{many:,} communities of which one has {DUE:,} due rows, against that one"
        " alone",
        turns.waiting,
        lambda engine: add_communities(engine, many - 1),
    )


@benchmark("remove-postgresql", "Remove, PostgreSQL", database="postgresql")
@benchmark("remove-sqlite", "Remove, SQLite", database="sqlite")
def remove(options: Options, database: str) -> cabc.Iterator[Result]:
    rows = options.number(300_000, 10_000)
    config = {"SQLALCHEMY_DATABASE_URI": options.database(database)}
    host = connect(make_host(config))
    engine = host.engine
    add_issued(engine, rows)
    add_log(engine, rows)
    add_due(engine, DUE, "due")
    _give_to_another(engine)
    analyze(engine)
    way = _claim(engine, OTHER)

    with host.app.app_context():
        answered = milliseconds(lambda: accounts.remove(host.state))()

    # Of its own, as a worker is.
    worker = multiprocessing.get_context("spawn").Process(target=_work, args=(config,))
    worker.start()
    start, meanwhile = time.perf_counter(), []

    while worker.is_alive():
        meanwhile.append(way())
        time.sleep(0.05)

    took = time.perf_counter() - start
    analyze(engine)
    afterwards = [way() for _ in meanwhile]

    with host.app.app_context(), engine.connect() as connection:
        assert removing.going_on(connection, "default") is None

    words = f"{rows:,} badges and as many rows in the error log"
    yield compare(
        f"remove-{database}/answered",
        f"Remove with {words}, until it is answered",
        "ms",
        answered,
        goal="<= 1000",
        note=f"A worker then took {took:,.0f} s.",
    )
    yield compare(
        f"remove-{database}/claim",
        f"to claim {CLAIMED} rows of another community meanwhile, against afterwards",
        "ms",
        Sample(tuple(meanwhile)),
        Sample(tuple(afterwards)),
        goal="<= 1.3x",
    )


OTHER = "other"


def _give_to_another(engine: sa.Engine) -> None:
    """Let another community be connected too, and have all that is due."""
    with engine.begin() as opened:
        for model in (Account, Template, Mapping):
            table = model.__table__
            columns = [
                each for each in table.columns if each.name not in ("id", "tenant")
            ]
            columns += [table.c.id] if model is Template else []
            others = sa.select(sa.literal(OTHER), *columns)
            names = ["tenant", *(each.name for each in columns)]
            opened.execute(sa.insert(table).from_select(names, others))

        due = sa.update(Issuance).where(Issuance.state == "none")
        opened.execute(due.values(tenant=OTHER))


def _work(config: dict[str, t.Any]) -> None:
    host = make_host(config)

    with host.app.app_context():
        while undo.run(host.state):
            pass


@benchmark("sync", "sync of 5,000 badge templates")
def sync(options: Options) -> cabc.Iterator[Result]:
    fake = Fake(options)
    host = connect(_host(options, "sqlite", **fake.config))
    seen: list[tuple[str, int]] = []

    def note(_: object, cursor: t.Any, statement: str, *rest: object) -> None:
        seen.append((statement, max(0, cursor.rowcount)))

    event.listen(host.engine, "after_cursor_execute", note)

    def load(**service: t.Any) -> float:
        fake.ask("reset", templates=TEMPLATES, **service)
        seen.clear()

        with host.app.app_context():
            return milliseconds(lambda: accounts.sync_templates(host.state))()

    for name, words, goal, service in (
        ("first", "a first sync", "", {}),
        ("second", f"a second after {RENAMED} were renamed", "", {"renamed": RENAMED}),
    ):
        took = load(**service)
        written = [
            rows
            for statement, rows in seen
            if re.match(r"(INSERT INTO|UPDATE) credly_template\b", statement)
        ]
        writes = sum(not each[0].startswith("SELECT") for each in seen)
        goal = f"<= {RENAMED if service else TEMPLATES}"
        yield compare(
            f"sync/{name}",
            f"rows of templates written by {words}, of {TEMPLATES:,}",
            "rows",
            float(sum(written)),
            goal=goal,
            note=f"{len(seen):,} statements, {writes:,} are writes; {took:,.0f} ms.",
        )
