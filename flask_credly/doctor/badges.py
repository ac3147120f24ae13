"""Whether something waits that should not, or went wrong."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa

from ..issuing import unrecorded
from ..ledger import clock
from ..ledger import overview
from ..ledger import removing
from ..ledger.transaction import connect
from .finding import Case
from .finding import error
from .finding import Finding
from .finding import ok
from .finding import skipped
from .finding import warning
from .finding import write_time


def check_waiting(case: Case) -> Finding:
    seen = case.seen

    if seen.overdue_since is not None:
        return error(
            f"{seen.pending} queued, the oldest since"
            f" {write_time(seen.overdue_since)}, although issuing is not paused.",
            "Run flask credly worker. If one is running, its log has the cause.",
        )

    if seen.oldest_pending_seconds is None:
        return ok("No badge is queued.")

    waits = dt.timedelta(seconds=seen.oldest_pending_seconds)

    # A backfill's badges wait for their turn, which never comes without a worker.
    if (
        case.shared.alone
        and seen.connection == "connected"
        and waits > overview.OVERDUE
    ):
        return error(
            f"{seen.pending} queued, the oldest for"
            f" {seen.oldest_pending_seconds} s, and no worker is running.",
            "Run flask credly worker",
        )

    return ok(f"{seen.pending} queued, the oldest for {seen.oldest_pending_seconds} s.")


def check_removal(case: Case) -> Finding:
    with connect(case.state.engine) as connection:
        now = clock.now(connection)
        found = removing.all_going_on(connection)

    if not found:
        return ok("No integration is being removed.")

    detail = (
        f"An integration is being removed: {found[0].percent} % done."
        if len(found) == 1
        else f"{len(found)} integrations are being removed."
    )
    waiting_since = min(each.due_at for each in found)

    if case.shared.alone or waiting_since < now - overview.OVERDUE:
        return error(
            f"{detail} No worker is at it.",
            "Run flask credly worker. If one is running, its log has the cause.",
        )

    return ok(detail)


def check_failed(case: Case) -> Finding:
    if not case.seen.failed:
        return ok("No badge failed.")

    return warning(
        f"{case.seen.failed} failed.",
        f"See {case.state.page('/credly/badges?status=failed')} for the causes."
        f" Then run {case.command('retry --all')}",
    )


def check_unrecorded(case: Case) -> Finding:
    try:
        found = unrecorded.read(case.state)
    except sa.exc.SQLAlchemyError:
        # That is said above. Redis and this process count all the same.
        found = unrecorded.read_elsewhere(case.state)

        if found.since is None:
            return skipped("Not checked: see database and tables.")

    if found.since is None:
        return ok("Every completion was recorded.")

    number = "1 completion" if found.number == 1 else f"{found.number} completions"
    detail = f"{number} could not be recorded since {write_time(found.since)}."

    if case.state.past_completions is None:
        return error(
            detail,
            "The log lists them with the cause (credly_event"
            " completion_lost). Send them again, then run"
            f" {case.command('dismiss')}",
        )

    # The course was completed a little before it was signalled.
    day = (found.since - dt.timedelta(hours=1)).date()
    also = " A worker does so too, once a day." if case.state.heals else ""
    return error(
        detail,
        "The log has the cause. Fix it, then run"
        f" {case.command(f'backfill --since {day}')} to record them.{also}",
    )
