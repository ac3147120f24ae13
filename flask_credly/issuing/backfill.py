"""Asks the host who completed a course before, and records it."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import datetime as dt
import itertools
import logging
import time
import typing as t

import sqlalchemy as sa
from flask import has_request_context

from ..catalog import Completion
from ..catalog import Course
from ..catalog import Kind
from ..catalog import Member
from ..catalog import PastCompletion
from ..catalog import read_completion
from ..catalog import read_time
from ..ledger import backfills
from ..ledger import runs
from ..options import RENEW
from ..state import AppState
from ..state import Community
from . import notifier
from . import stopping
from .profile import missing

logger = logging.getLogger("flask_credly")

T = t.TypeVar("T")

CHUNK = 500
"""Completions that are recorded together."""


MOST_NAMED = 50
"""So many of those without an address or a name are named."""


class HookFailed(Exception):
    """The hook raised. The log has the traceback."""


@dataclasses.dataclass
class Preview:
    """What a backfill would do.

    :param completed: Members who completed the course.
    :param there: Those who have the badge, or for whom it is on its way.
    :param failed: Those for whom it failed or was skipped before.
    :param incomplete: Those without an address or a name.
    :param whole: Whether all completions were looked at in the time given.
    :param left_out: The first of those without an address or a name.
    """

    completed: int = 0
    there: int = 0
    failed: int = 0
    incomplete: int = 0
    whole: bool = True
    left_out: list[Member] = dataclasses.field(default_factory=list)

    @property
    def to_issue(self) -> int:
        """Badges that would be issued."""
        return self.completed - self.there - self.failed - self.incomplete


def read(
    state: Community, course: Course, since: dt.datetime | None
) -> cabc.Generator[Completion, None, None]:
    """Ask the host, and check what it says.

    :raises RuntimeError: There is no hook.
    :raises HookFailed: It raised.
    :raises TypeError: The hook yields something else than pairs of a member and a time.
    :raises ValueError: A value cannot be used.
    """
    for found in _ask(state, course, since):
        past = _read_past(found)
        completed_at = None if past is None else read_time(past.completed_at)

        # Without a time it would be completed now.
        if past is None or completed_at is None:
            raise TypeError(
                "@credly.past_completions must yield pairs of a Member and an aware"
                " time, or PastCompletion objects."
            )

        completion = read_completion(
            member=past.member,
            course_id=course.id,
            kind=course.kind,
            completed_at=completed_at,
            evidence=past.evidence,
            completion_id=past.completion_id,
            tenant=state.tenant,
        )
        state.check_ids(member_id=completion.member.id, course_id=course.id)

        if since is None or completion.completed_at >= since:
            yield completion


def _read_past(found: t.Any) -> PastCompletion | None:
    if isinstance(found, PastCompletion):
        return found

    try:
        member, completed_at = found
    except (TypeError, ValueError):
        return None

    return PastCompletion(member, completed_at)


def _ask(
    state: Community, course: Course, since: dt.datetime | None
) -> cabc.Iterator[t.Any]:
    if state.past_completions is None:
        raise RuntimeError(
            "Flask-Credly does not know who completed a course. Register a"
            " function with '@credly.past_completions' that yields pairs of a"
            " Member and a time."
        )

    try:
        yield from state.past_completions(course, since)
    except Exception as e:
        logger.exception(
            "The @credly.past_completions hook failed.",
            extra={"credly_event": "hook_failed", "credly_hook": "past_completions"},
        )
        raise HookFailed(
            f"The @credly.past_completions hook failed ({type(e).__name__}). The log"
            " has the traceback."
        ) from None


def preview(
    state: Community,
    course: Course,
    since: dt.datetime | None = None,
    *,
    seconds: float | None = None,
) -> Preview:
    """Count what a backfill would do.

    :param seconds: How long to look. ``None``: to the end.
    :raises TypeError: See :func:`read`; so are the others.
    """
    until = None if seconds is None else time.monotonic() + seconds
    again = backfills.again_of(state.engine, state.tenant, course.kind, course.id)
    found = Preview()
    incomplete: dict[str, Member | None] = {}
    read_so_far: list[Completion] = []

    # Read first, and looked up afterwards: the host's query may hold the only
    # connection or the only lock that there is.
    with contextlib.closing(read(state, course, since)) as completions:
        for chunk in chunks(completions):
            for each in chunk:
                lacks = each.member if missing(each.member) else None
                incomplete.setdefault(each.member.id, lacks)

            # Only where a member may have several.
            read_so_far += chunk if again else []

            if until is not None and time.monotonic() > until:
                found.whole = False
                break

    if not has_request_context():
        state.session.remove()

    if again:
        _count_further(state, course, found, _in_order(read_so_far, again), again)
        return found

    for ids in chunks(iter(incomplete)):
        known = backfills.states(
            state.engine, state.tenant, course.kind, course.id, ids
        )
        found.completed += len(ids)

        for id_ in ids:
            if id_ in known:
                if known[id_] in ("failed", "cancelled"):
                    found.failed += 1
                else:
                    found.there += 1
            elif (lacking := incomplete[id_]) is not None:
                found.incomplete += 1
                found.left_out += [lacking][: MOST_NAMED - len(found.left_out)]

    return found


def _count_further(
    state: Community,
    course: Course,
    found: Preview,
    completions: list[Completion],
    again: str,
) -> None:
    """Count what a backfill would do where a further completion counts."""
    whole = _whole(completions)
    found.completed = len(completions)
    found.incomplete = len(completions) - len(whole)
    lacking = {
        each.member.id: each.member for each in completions if missing(each.member)
    }
    found.left_out = [*lacking.values()][:MOST_NAMED]
    to_issue = sum(
        backfills.count_further(
            state.engine, state.tenant, course.kind, course.id, each, again
        )
        for each in _by_member(whole)
    )
    found.there = len(whole) - to_issue


def _by_member(completions: list[Completion]) -> cabc.Iterator[list[Completion]]:
    """Part completions so that those of a member stay together."""
    by_member: dict[str, list[Completion]] = {}

    for each in completions:
        by_member.setdefault(each.member.id, []).append(each)

    for members in chunks(iter(by_member.values())):
        yield list(itertools.chain.from_iterable(members))


def misses_any(state: Community, course: Course, since: dt.datetime) -> bool:
    """Whether the ledger has never had a completion that the host knows of.

    :raises TypeError: See :func:`read`; so are the others.
    """
    again = backfills.again_of(state.engine, state.tenant, course.kind, course.id)

    try:
        # Read first, and looked up afterwards: as in a preview.
        whole = _whole(_in_order(read(state, course, since), again))
    finally:
        state.session.remove()

    return any(
        backfills.never_there(
            state.engine, state.tenant, course.kind, course.id, chunk, again
        )
        for chunk in chunks(iter(whole))
    )


def run(state: AppState) -> None:
    """Record what the host says, for every run that is due."""
    while (
        not stopping.is_set()
        and (taken := runs.take(state.engine, "backfill")) is not None
    ):
        record_or_fail(state.of(taken.tenant), taken)
        notifier.notify(state)


def record_or_fail(state: Community, run: runs.Run) -> None:
    """Record what the host says, for one run that was taken up. What goes wrong is
    logged, and shown on the run's page.
    """
    try:
        record(state, run)
    except Exception:
        # The admin finds it on the run's page; the next one finds what is left.
        logger.exception(
            "The backfill of %s %r failed.",
            run.kind,
            run.course_id,
            extra={
                "credly_event": "backfill_failed",
                "credly_kind": run.kind,
                "credly_course": run.course_id,
            },
        )
        backfills.finish(state.engine, run, failed=True)


def record(state: Community, run: runs.Run) -> None:
    """Record what the host says, for one run that was taken up.

    :raises TypeError: See :func:`read`; so are the others.
    """
    try:
        _record(state, run)
    finally:
        # What the hook has read must not be in the way of what follows.
        state.session.remove()


def _record(state: Community, run: runs.Run) -> None:
    course = Course(run.course_id, run.course_title, t.cast(Kind, run.kind))
    blocks = _reading_blocks_writing(state.engine)
    # Before the host's query begins, which may have the only connection.
    again = backfills.again_of(state.engine, run.tenant, run.kind, run.course_id)
    completions: cabc.Iterator[Completion] = read(state, course, run.since)
    first = list(itertools.islice(completions, 1))
    completions = itertools.chain(first, completions)

    if again or blocks or _holds_write_lock(state):
        completions = iter(_in_order(completions, again))
        state.session.remove()

    for chunk in chunks(completions):
        whole = _whole(chunk)
        incomplete = len(chunk) - len(whole)

        if run.healing:
            whole = backfills.never_there(
                state.engine, run.tenant, run.kind, run.course_id, whole, again
            )

        if not backfills.add(state.engine, run, whole, incomplete=incomplete):
            return

        if stopping.is_set():
            runs.leave(state.engine, run)
            return

    backfills.finish(state.engine, run)


def _in_order(completions: cabc.Iterable[Completion], again: str) -> list[Completion]:
    """Put completions into an order in which each may be a further one: the host gives
    them in any. Where they renew the badge, the last of a member is all that counts.
    """
    if not again:
        return list(completions)

    ordered = sorted(completions, key=backfills.by_time)

    if again == RENEW:
        return list({each.member.id: each for each in ordered}.values())

    return ordered


def _whole(chunk: list[Completion]) -> list[Completion]:
    return [each for each in chunk if not missing(each.member)]


def chunks(found: cabc.Iterator[T]) -> cabc.Iterator[list[T]]:
    """Part what is found into lists of :data:`CHUNK`."""

    while chunk := list(itertools.islice(found, CHUNK)):
        yield chunk


def _reading_blocks_writing(engine: sa.Engine) -> bool:
    """Whether the host's query, while it is read, would keep our commits waiting."""
    pool = engine.pool

    # The only connection is the host's while it reads.
    if isinstance(pool, sa.StaticPool) or (
        isinstance(pool, sa.QueuePool)
        and pool.size() == 1
        and getattr(pool, "_max_overflow", None) == 0
    ):
        return True

    if engine.dialect.name != "sqlite":
        return False

    with engine.connect() as connection:
        return connection.exec_driver_sql("PRAGMA journal_mode").scalar() != "wal"


def _holds_write_lock(state: AppState) -> bool:
    """Whether the host's query may hold SQLite's only lock: with BEGIN IMMEDIATE,
    reading does.
    """
    session = state.session()

    if state.engine.dialect.name != "sqlite" or not session.in_transaction():
        return False

    raw = session.connection({"bind": state.engine}).connection.dbapi_connection
    return bool(getattr(raw, "in_transaction", False))
