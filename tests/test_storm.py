"""The storm, short: real processes killed at random, a real Redis, real databases.

Nothing here depends on how fast the machine is: the book is read when all is quiet.
"""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import os
import pathlib
import time
import typing as t

import pytest
from conftest import missing

from flask_credly.ledger import log
from flask_credly.models import Attempt
from flask_credly.models import Issuance
from flask_credly.models import LogEntry
from tests.storm import servers
from tests.storm.processes import Family
from tests.storm.run import Options
from tests.storm.run import run
from tests.support import invariants
from tests.support.invariants import Booked
from tests.support.invariants import Refusal

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("database", "duplicates", "tenants"),
    [
        ("sqlite", "refused", 1),
        ("postgresql", "allowed", 3),
        ("mariadb", "refused", 3),
    ],
)
def test_nothing_is_lost_nor_made_twice_in_a_storm(
    database: str, duplicates: t.Any, tenants: int
) -> None:
    options = Options(
        database=database,
        duplicates=duplicates,
        completions=120,
        pace=0.2,
        tenants=tenants,
    )

    try:
        verdict = run(options)
    except servers.NotFound as e:
        missing(e.what, e.reason)

    assert verdict.violations == {}
    assert verdict.figures["attempted"] >= 120


def a_row(**values: t.Any) -> Issuance:
    return Issuance(
        **{
            "id": 1,
            "member_id": "42",
            "kind": "course",
            "course_id": "py-101",
            "template_id": "python",
            "organization_id": "one",
            "email": "42@a.test",
            "state": "issued",
            **values,
        }
    )


def an_attempt(**values: t.Any) -> Attempt:
    return Attempt(
        **{"issuance_id": 1, "started_at": NOW, "finished_at": NOW, **values}
    )


def an_entry(error: str, seconds: float = 0) -> LogEntry:
    return LogEntry(error=error, at=NOW + dt.timedelta(seconds=seconds), issuance_id=1)


BADGE = ("42", "python")
BOOK = [Booked("42", "python", NOW)]
FAILED = a_row(state="failed", error="No answer.")
CHECKED = a_row(state="failed", error="No answer.", action="check")
UNMAPPED = a_row(state="cancelled", reason="unmapped")
CLOSED = [(10.0, 12.0)]
REMOVED = {("course", "py-101"): NOW}
LATER = an_attempt(started_at=NOW + dt.timedelta(seconds=1))
UNKNOWN = an_attempt(answer="unknown")


def log_of(*entries: LogEntry, rows: cabc.Sequence[Issuance] = ()) -> list[str]:
    return invariants.wrong_log(rows, entries, expiries=0, rate_limits=2)


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        (
            invariants.lost([a_row(state="failed")], [], [BADGE]),
            invariants.lost([FAILED], [], [BADGE]),
        ),
        (invariants.lost([], [], [BADGE]), invariants.lost([], BOOK, [BADGE])),
        (invariants.duplicated(BOOK * 2), invariants.duplicated(BOOK)),
        (
            invariants.false_issued([a_row()], []),
            invariants.false_issued([a_row()], BOOK),
        ),
        (
            invariants.false_failed([FAILED], BOOK),
            invariants.false_failed([FAILED], []),
        ),
        (
            invariants.false_failed([FAILED], BOOK),
            invariants.false_failed([CHECKED], BOOK),
        ),
        (
            invariants.lost([a_row(state="cancelled")], [], [BADGE]),
            invariants.lost([UNMAPPED], [], [BADGE]),
        ),
        (invariants.unexpected(BOOK, []), invariants.unexpected(BOOK, [BADGE])),
        (
            invariants.sent_unmapped([a_row()], [LATER], REMOVED),
            invariants.sent_unmapped([a_row()], [an_attempt()], REMOVED),
        ),
        (
            invariants.too_many_posts([a_row()], [an_attempt()], {BADGE: 2}),
            invariants.too_many_posts([a_row()], [an_attempt()], {BADGE: 1}),
        ),
        (
            invariants.too_many_posts([a_row()], [UNKNOWN] * 3, {}),
            invariants.too_many_posts([a_row()], [an_attempt(answer="died")] * 3, {}),
        ),
        (
            invariants.sent_while_closed([11], CLOSED),
            invariants.sent_while_closed([9, 13], CLOSED),
        ),
        (invariants.too_many_tokens(2, 1), invariants.too_many_tokens(1, 1)),
        (log_of(rows=[FAILED]), log_of(an_entry(log.ISSUANCE_FAILED), rows=[FAILED])),
        (log_of(an_entry(log.ISSUANCE_FAILED), rows=[a_row()]), log_of(rows=[a_row()])),
        (log_of(an_entry(log.CONNECTION_EXPIRED)), log_of()),
        (
            log_of(an_entry(log.RATE_LIMIT), an_entry(log.RATE_LIMIT, 0.1)),
            log_of(an_entry(log.RATE_LIMIT), an_entry(log.RATE_LIMIT, 1.1)),
        ),
        (log_of(*[an_entry(log.RATE_LIMIT, n * 5) for n in range(3)]), log_of()),
        (
            invariants.leaked({"a name": "Ada"}, [("a log", b"for Ada")]),
            invariants.leaked({"a name": "Ada"}, [("a log", b"for 42")]),
        ),
        (invariants.host_broken(["oh"], []), invariants.host_broken([], [])),
        (
            invariants.host_broken([], [Refusal("42", "oh", excused=False)]),
            invariants.host_broken([], [Refusal("42", "oh", excused=True)]),
        ),
        (
            invariants.half_kept({"a": ["first"]}, []),
            invariants.half_kept({"a": ["second", "first"]}, ["a"]),
        ),
        (invariants.half_kept({}, ["a"]), invariants.half_kept({}, [])),
        (invariants.host_lost([], ["42"]), invariants.host_lost(["42"], ["42"])),
        (
            invariants.unsettled([a_row(state="none")]),
            invariants.unsettled([a_row()], [an_attempt()]),
        ),
        (invariants.unsettled([a_row(state="failed", action="check")]), []),
        (
            invariants.strayed([a_row(email="42@b.test")], [], "@a.test", "one"),
            invariants.strayed([a_row()], ["42@a.test"], "@a.test", "one"),
        ),
        (
            invariants.strayed([a_row(organization_id="two")], [], "@a.test", "one"),
            [],
        ),
        (invariants.strayed([], ["42@b.test"], "@a.test", "one"), []),
        (
            invariants.starved([1.0, 9.0, 9.0], 5),
            invariants.starved([1.0, 5.0, 9.0], 5),
        ),
        (invariants.unsettled([a_row()], [an_attempt(finished_at=None)]), []),
    ],
)
def test_each_invariant_bites(bad: list[str], good: list[str]) -> None:
    assert (len(bad), good) == (1, [])


HORSE = """
import os, sys, time

if os.fork() == 0:
    os.setpgrp()
    print(os.getpid(), flush=True)

time.sleep(60)
"""


def test_what_a_killed_process_left_behind_is_ended(tmp_path: pathlib.Path) -> None:
    family = Family("parent", ["-c", HORSE], os.environ, tmp_path)
    family.start()

    try:
        horse = _wait_for(lambda: family.log.read_text().strip())
        family.kill("parent")
        assert [pid for pid, _ in family.members()] == [int(horse)]
    finally:
        family.end()

    _wait_for(lambda: not family.members())


def _wait_for(found: cabc.Callable[[], t.Any]) -> t.Any:
    until = time.monotonic() + 20

    while not (value := found()) and time.monotonic() < until:
        time.sleep(0.02)

    assert value
    return value
