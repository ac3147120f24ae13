"""Adds completions that were missed: those that could not be recorded, and those that
were never signalled.
"""

from __future__ import annotations

import datetime as dt
import logging
import typing as t

from ..catalog import Course
from ..catalog import Kind
from ..ledger import audit
from ..ledger import backfills
from ..ledger import clock
from ..ledger import runs
from ..ledger import turns
from ..ledger import unrecorded as counted
from ..ledger.transaction import connect
from ..state import AppState
from ..state import Community
from . import backfill
from . import notifier
from . import stopping
from . import unrecorded

logger = logging.getLogger("flask_credly")


def heal(state: AppState) -> None:
    """Add what was missed, for every community that is connected."""
    if not state.heals:
        return

    for tenant in turns.tenants(state.engine):
        if stopping.is_set():
            return

        _heal(state.of(tenant))


def _heal(state: Community) -> None:
    """Ask the host who completed a mapped course in the last days, and add those of
    whom the ledger knows nothing.

    What was completed before the course was mapped is never issued unasked, and what
    has a row is left alone: an admin or a member may have wanted it so.
    """
    count = unrecorded.gather_all(state)
    backfills.date_mappings(state.engine, state.tenant)

    with connect(state.engine) as connection:
        now = clock.now(connection)
        mappings = backfills.mapped(connection, state.tenant)

    since = min(now, count.since or now) - backfills.LOOK_BACK
    run_ids: list[int] = []
    whole = True

    for mapping in mappings:
        if stopping.is_set():
            return

        try:
            run_id = _heal_course(state, mapping, max(since, mapping.created_at or now))
        except Exception:
            # The others are healed all the same; this one is looked at tomorrow.
            whole = False
            logger.exception(
                "The search for missing completions of %s %r failed.",
                mapping.kind,
                mapping.course_id,
                extra={
                    "credly_event": "backfill_failed",
                    "credly_kind": mapping.kind,
                    "credly_course": mapping.course_id,
                },
            )
        else:
            run_ids += [] if run_id is None else [run_id]

    if whole and backfills.are_recorded(state.engine, state.tenant, run_ids):
        counted.settle(state.engine, state.tenant, count.number)

    if run_ids:
        notifier.notify(state)


def _heal_course(
    state: Community, mapping: backfills.Mapped, since: dt.datetime
) -> int | None:
    """Add what was missed of one course.

    :return: The run that does so, if anything was.
    """
    course = Course(mapping.course_id, mapping.course_title, t.cast(Kind, mapping.kind))

    if not backfill.misses_any(state, course, since):
        return None

    run_id = backfills.start(
        state.engine, state.tenant, mapping.id, since, by=audit.WORKER, healing=True
    )

    if run_id is not None and (taken := runs.take(state.engine, "backfill", run_id)):
        backfill.record_or_fail(state, taken)

    return run_id
