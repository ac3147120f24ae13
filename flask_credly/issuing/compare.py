"""Compares in the background, and repairs what was found: one run, a worker's under its
lease.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import logging
import time
import typing as t

from ..ledger import backfills
from ..ledger import comparisons
from ..ledger import runs
from ..ledger.backfills import Mapped
from ..ledger.transaction import connect
from ..models import DifferenceRow
from ..state import AppState
from ..state import Community
from . import notifier
from . import reconcile
from . import stopping
from .comparison import Difference
from .reconcile import Outcome

logger = logging.getLogger("flask_credly")

SAY_EVERY = 1.0
"""Seconds between two looks whether to go on, and two numbers on the page."""


class Lost(Exception):
    """The run was stopped, is another worker's, or is gone."""


class _Told(Exception):
    """The process was told to stop."""


def run(state: AppState) -> None:
    """Begin what is to be compared by itself, and do every run that is due."""
    for tenant in comparisons.due_for(state.engine):
        comparisons.start_due(state.engine, tenant)

    while (
        not stopping.is_set()
        and (taken := runs.take(state.engine, "compare")) is not None
    ):
        _do(state.of(taken.tenant), taken)


def _do(state: Community, run: runs.Run) -> None:
    try:
        if run.state == "repairing":
            _repair(state, run)
        else:
            _compare(state, run)
    except Lost:
        pass
    except _Told:
        runs.leave(state.engine, run)
    except Exception:
        # The admin finds it on the page; the next one begins anew.
        logger.exception(
            "The comparison with Credly failed.",
            extra={"credly_event": "reconcile_failed"},
        )
        comparisons.fail(state.engine, run)
    finally:
        state.session.remove()


@contextlib.contextmanager
def taken_up(state: Community, run: runs.Run) -> cabc.Iterator[cabc.Callable[[], None]]:
    """Keep a run of this process's own while it compares and repairs, and then forget
    it. Gives what prolongs the lease, once in a while.

    :raises Lost: By that: it was stopped.
    """
    try:
        yield _Progress(state, run).go_on
    finally:
        comparisons.leave_no_trace(state.engine, run)


class _Progress:
    """Keeps a run, and says how far it is."""

    def __init__(self, state: Community, run: runs.Run) -> None:
        self._state = state
        self._run = run
        self._read = 0
        self._said_at = 0.0

    def note(self, badges: int) -> None:
        self._read = badges
        self.go_on()

    def go_on(self) -> None:
        """Prolong the lease, once in a while.

        :raises Lost: It is not this worker's any more.
        :raises _Told: The process is told to stop.
        """
        if stopping.is_set():
            raise _Told

        if time.monotonic() - self._said_at < SAY_EVERY:
            return

        if not comparisons.hold(self._state.engine, self._run, self._read):
            raise Lost

        self._said_at = time.monotonic()


def _compare(state: Community, run: runs.Run) -> None:
    progress = _Progress(state, run)
    progress.go_on()

    try:
        with reconcile.compare(
            state, run.since, progress.note, progress.go_on
        ) as result:
            if stopping.is_set():
                raise _Told

            found = comparisons.Found(
                counts=t.cast("dict[str, int]", result.comparison.counts()),
                moving=result.comparison.moving,
                host=result.with_host,
                unread=[(each.why, each.page) for each in result.unread],
            )
            differences = [
                _stored(each)
                for bucket in comparisons.DIFFERENCES
                for each in result.comparison.differences(bucket, comparisons.AT_MOST)
            ]
    except LookupError:  # it was removed in this moment
        raise Lost from None

    comparisons.finish(state.engine, run, found, differences)


def _stored(each: Difference) -> dict[str, t.Any]:
    course = each.course
    return {
        "bucket": each.bucket,
        "issuance_id": each.row_id or each.like,
        "badge_id": each.badge_id,
        "kind": course and course.kind,
        "course_id": course and course.course_id,
        "member_id": each.member_id,
        "completed_at": each.completed_at,
        "state": each.state,
        "badge_state": each.badge_state,
    }


def _repair(state: Community, run: runs.Run) -> None:
    bucket, rows = comparisons.to_repair(state.engine, run)

    with connect(state.engine) as connection:
        courses = {
            (each.kind, each.course_id): each
            for each in backfills.mapped(connection, state.tenant)
        }

    wanted: list[Difference] = []
    unmapped: dict[int, str | None] = {}

    for row in rows:
        of = None

        if row.course_id is not None:
            of = courses.get((row.kind or "", row.course_id))

            if of is None:
                unmapped[row.id] = "no course"
                continue

        wanted.append(_read(row, of))

    outcomes = dict(unmapped)

    def note(each: Difference, outcome: Outcome) -> None:
        assert each.number is not None
        outcomes[each.number] = None if outcome == "repaired" else outcome
        # Where completions were recorded, all of them were at once.
        if bucket != "not_recorded" or len(outcomes) == len(rows):
            write()

    def write() -> None:
        if outcomes and not comparisons.note_repaired(
            state.engine, run, bucket, outcomes
        ):
            raise Lost

        outcomes.clear()

        if stopping.is_set():
            raise _Told

    why: comparisons.Why | None = None

    try:
        reconcile.repair(
            state,
            t.cast(comparisons.Bucket, bucket),
            wanted,
            by=None,
            note=note,
        )
    except LookupError:
        raise Lost from None
    except reconcile.Unread as e:
        if stopping.is_set():
            raise _Told from None

        why = e.why

    write()
    comparisons.finish_repair(state.engine, run, why)
    notifier.notify(state)


def _read(row: DifferenceRow, course: Mapped | None) -> Difference:
    is_like = row.bucket == "unknown_here"
    return Difference(
        t.cast(comparisons.Bucket, row.bucket),
        row_id=None if is_like else row.issuance_id,
        badge_id=row.badge_id,
        course=course,
        member_id=row.member_id,
        completed_at=row.completed_at,
        like=row.issuance_id if is_like else None,
        state=row.state,
        badge_state=row.badge_state,
        number=row.id,
    )
