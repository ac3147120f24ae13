"""``python -m tests.storm``"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import logging
import os
import pathlib
import platform
import signal
import sys
import typing as t

from .judge import Verdict
from .run import Options
from .run import run

SYSTEMS = ("flask-credly", "naive-rq")
DUPLICATES = ("refused", "allowed")

_COLUMNS = {
    "attempted": "tried",
    "acknowledged": "acked",
    "ok": "ok",
    "lost": "lost",
    "failed, shown": "fail",
    "cancelled": "canc",
    "duplicated": "dup",
    "unexpected": "unexp",
    "false issued": "f.iss",
    "false failed": "f.fail",
    "not recorded": "unrec",
    "recovered": "recov",
    "parents killed": "par",
    "horses killed": "hrs",
    "both killed": "both",
    "webs killed": "web",
    "deadlocks": "dead",
    "flushes": "flsh",
    "Redis restarts": "rds",
    "database stops": "db",
    "revoked": "rev",
    "replaced": "repl",
    "issued again": "again",
    "posts": "posts",
    "batches": "batch",
    "look-ups": "looks",
    "token calls": "toks",
    "quiet": "quiet",
    "p50": "p50",
    "p99": "p99",
    "max": "max",
    "seconds": "secs",
    "communities": "comms",
    "troubles": "trbls",
    "well p50": "w50",
    "well p99": "w99",
    "well max": "wmax",
}

TENANTS = 3
SLOWER = 3.0
SLACK = 5.0
"""How many times as long, and how many seconds more, half of the badges of those that
are well may take beside one in trouble: a machine that is busy otherwise has its part.
"""

_LEGEND = """\
tried    completions begun            acked  of these committed by the host
ok       acked and in Credly's book   lost   acked, not made, and shown to nobody
fail     not made, and shown so       canc   not made, as its mapping was removed
dup      badges too many              unexp  badges that nobody asked for
f.iss    said to be made, and not so  f.fail said to have failed, and not so
unrec    made, and not recorded so    recov  made; the host died before it knew
par hrs both web   processes killed   flsh rds db  Redis flushed, killed; database away
posts batch        requests for one badge or several; those for several
rev repl again     badges that an admin has had revoked, replaced, issued again
dead     completions whose transaction ended in a deadlock, and the host was told
quiet    seconds from the last fault until nothing waits
p50 p99 max        seconds from the host's commit to the badge
w50 w99 wmax       the same in the communities that have no trouble of their own
comms trbls        communities; how often the trouble of the one in trouble changed
What plain RQ shows as failed counts as shown. Jobs of killed workers that it would
bring back by itself, many minutes later, count as lost; the JSON says how many."""


def _stop(number: int, frame: object) -> t.NoReturn:
    # So that what was started is ended.
    sys.exit(128 + number)


def main(arguments: list[str] | None = None) -> int:
    """Run the storms. Get the exit status: 1 if an invariant was broken."""
    parser = argparse.ArgumentParser("python -m tests.storm", description=__doc__)
    add = parser.add_argument
    add("--completions", type=int, default=400, metavar="N")
    add("--seed", type=int, default=1, help="the first one")
    add("--seeds", type=int, default=1, metavar="N", help="how many runs of each kind")
    add(
        "--database",
        default="sqlite",
        help="sqlite, postgresql, mariadb, or the address of a server of the last two;"
        " several with commas between",
    )
    add(
        "--duplicates", default="refused", help="refused, allowed, or both with a comma"
    )
    add(
        "--tenants",
        type=int,
        default=TENANTS,
        metavar="N",
        help="communities, the last of which is always in trouble; 1: as a site of one."
        " The plain RQ job has one",
    )
    add(
        "--compare",
        action="store_true",
        help="each once more without the community in trouble",
    )
    add("--system", default="flask-credly", choices=(*SYSTEMS, "both"))
    add("--stop-database", action="store_true", help="stop a PostgreSQL of our own")
    add("--json", type=pathlib.Path, metavar="FILE", help="write the figures there")
    add("--keep", type=pathlib.Path, metavar="FOLDER", help="keep logs and journals")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.ERROR)
    signal.signal(signal.SIGTERM, _stop)
    duplicates = given.duplicates.split(",")

    if given.tenants < 1:
        parser.error("--tenants is 1 or more.")

    if not set(duplicates) <= set(DUPLICATES):
        parser.error("--duplicates is refused, allowed, or both with a comma.")

    kinds = itertools.product(
        given.database.split(","),
        duplicates,
        SYSTEMS if given.system == "both" else (given.system,),
        range(given.seed, given.seed + given.seeds),
        (True, False) if given.compare else (False,),
    )
    p50_without = 0.0
    broken = False
    results = []
    print(_header())

    for database, duplicate, system, seed, without_trouble in kinds:
        tenants = 1 if system == "naive-rq" else given.tenants

        if without_trouble and tenants == 1:
            continue

        options = Options(
            system=system,
            database=database,
            duplicates=duplicate,
            completions=given.completions,
            seed=seed,
            tenants=tenants,
            without_trouble=without_trouble,
            stop_database=given.stop_database,
            keep=given.keep
            and given.keep
            / f"{system}-{_name(database)}-{duplicate}-{seed}"
            f"{'-without' if without_trouble else ''}",
        )
        verdict = run(options)

        if without_trouble:
            p50_without = verdict.figures["well p50"]
        elif given.compare and tenants > 1:
            most = SLOWER * p50_without + SLACK

            if (p50 := verdict.figures["well p50"]) > most:
                verdict.violations["I14 starved"] = [
                    *verdict.violations.get("I14 starved", []),
                    f"half of the badges within {p50} s, and {p50_without} s without"
                    " the community in trouble",
                ]

        broken = broken or bool(verdict.violations)
        results.append(_result(options, verdict))
        print(_line(options, verdict), flush=True)

        for name, words in verdict.violations.items():
            for text in words[:10]:
                print(f"    {name}: {text}", flush=True)

        if given.json:
            given.json.write_text(json.dumps(_report(results), indent=1) + "\n")

    print(_LEGEND)
    return int(broken)


def _name(database: str) -> str:
    name = database.partition("+")[0].partition(":")[0]
    return "mariadb" if name == "mysql" else name


def _header() -> str:
    names = " ".join(f"{name:>5}" for name in _COLUMNS.values())
    return f"{'system':12} {'database':10} {'duplicates':10} seed {names}"


def _line(options: Options, verdict: Verdict) -> str:
    values = " ".join(f"{verdict.figures[name]:>5}" for name in _COLUMNS)
    said = f"{sum(map(len, verdict.violations.values()))} VIOLATIONS"
    return (
        f"{options.system:12} {_name(options.database):10} {options.duplicates:10}"
        f" {options.seed:4} {values} {said if verdict.violations else ''}"
    ).rstrip()


def _result(options: Options, verdict: Verdict) -> dict[str, t.Any]:
    return {
        "system": options.system,
        "database": _name(options.database),
        "duplicates": options.duplicates,
        "completions": options.completions,
        "seed": options.seed,
        "stop_database": options.stop_database,
        "tenants": options.tenants,
        "without_trouble": options.without_trouble,
        **verdict.figures,
        "by community": verdict.communities,
        "violations": verdict.violations,
        "notes": verdict.notes,
    }


def _report(results: list[dict[str, t.Any]]) -> dict[str, t.Any]:
    packages = ("flask-credly", "flask", "sqlalchemy", "rq", "redis")
    return {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "runs": results,
    }


if __name__ == "__main__":
    sys.exit(main())
