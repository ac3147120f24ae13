"""Writes down what became of claimed rows."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import typing as t

import sqlalchemy as sa

from ..models import Attempt
from ..models import Issuance
from ..models import Reason
from ..options import Options
from . import clock
from . import gates
from . import log
from . import reasons
from . import transitions
from .claim import Row
from .conditions import AWAITS_REVOCATION
from .conditions import IS_MAPPED
from .conditions import owns
from .conditions import same_course
from .decide import Answer
from .decide import Phase
from .decide import Rule
from .decide import Then
from .transaction import in_transaction
from .transitions import lifecycle
from .transitions import worker

if t.TYPE_CHECKING:
    from ..credly import Badge

_ATTEMPTS = Attempt.__table__


@dataclasses.dataclass(frozen=True)
class Settlement:
    """What became of one row.

    :param row: The row as it was when the request went out.
    :param was_uncertain: Whether the badge was maybe issued before this request.
    :param badge: The badge, as Credly shows it.
    :param target: The badge that a request is to be about.
    :param wait: Seconds until the row is due again, where it waits.
    :param detail: The error, worded for the admin.
    :param said: The same in Credly's words, if those are others.
    """

    row: Row
    phase: Phase
    answer: Answer
    rule: Rule
    was_uncertain: bool
    wait: float = 0
    badge: Badge | None = None
    target: Badge | None = None
    detail: str | None = None
    said: str | None = None
    status: int | None = None


class LeaseLost(Exception):
    """One of the rows is another worker's by now. None was saved."""


@in_transaction
def cancel(connection: sa.Connection, row: Row, reason: Reason) -> None:
    """End a row without a request, as its badge is not to be issued any more."""
    now = clock.now(connection)
    transitions.end(connection, "cancelled", now, *_this(row), reason=reason)


@in_transaction
def cancel_unmapped(connection: sa.Connection, row: Row) -> bool:
    """End a row without a request, as its course is not mapped any more.

    :return: Whether it was ended: not where it is mapped by now, or was withdrawn.
    """
    # Not while the removal of the mapping is being undone: that would not see it. Nor
    # while one is under way: it would look for what was cancelled later than now.
    gates.lock(connection, row.tenant)
    these = (
        *_this(row),
        sa.not_(sa.exists().where(IS_MAPPED)),
        # That would come back with the mapping.
        Issuance.withdrawn_at.is_(None),
    )
    now = clock.now(connection)
    return bool(
        transitions.end(connection, "cancelled", now, *these, reason="unmapped")
    )


@in_transaction
def fail(
    connection: sa.Connection,
    row: Row,
    detail: str | None = None,
    *,
    reason: Reason | None = None,
) -> str | None:
    """End a row without a request, as it cannot be sent as it is.

    :param detail: Why, worded for the admin.
    :param reason: The same as a code, where there is one.
    :return: Why, in words. ``None``: nobody is to be told. It was not saved, as the
        lease was lost, or it is known.
    """
    now = clock.now(connection)
    saved = transitions.end(
        connection, "failed", now, *_this(row), reason=reason, error=detail
    )

    # Of one that was called failed already nobody is told.
    if not saved or row.action == "check":
        return None

    _carry_on(connection, row, now, "failed")
    words = reasons.REASONS[reason] if reason else detail or ""
    _log_failure(connection, row, now, words)
    return words


def _this(row: Row) -> tuple[sa.ColumnElement[bool], ...]:
    return (Issuance.id == row.id, *owns(row.tenant, row.lease))


def _following(row: Row) -> tuple[sa.ColumnElement[bool], ...]:
    """The rows that have waited for a row's badge to be revoked."""
    return (
        *same_course(Issuance, row),
        Issuance.cycle > row.cycle,
        AWAITS_REVOCATION,
    )


def _carry_on(
    connection: sa.Connection,
    row: Row,
    now: dt.datetime,
    then: Then,
    badge: Badge | None = None,
) -> None:
    """See to the other rows that an action is about."""
    if row.action == "revoke":
        if then in ("revoked", "left"):  # it is in nobody's way any more
            for these in transitions.by_ids(connection, *_following(row)):
                worker.release_next(connection, now, *these)
        elif then in ("failed", "replaced"):
            for these in transitions.by_ids(connection, *_following(row)):
                transitions.end(
                    connection, "cancelled", now, *these, reason="not revoked"
                )
    elif row.action == "replace" and then == "issued" and badge:
        for each in {row.replaces, row.target or row.replaces}:
            worker.supersede(
                connection,
                badge.id,
                now,
                Issuance.tenant == row.tenant,
                Issuance.badge_id == each,
            )


@in_transaction
def settle(connection: sa.Connection, settlements: cabc.Sequence[Settlement]) -> None:
    """Save them all or none, with few statements.

    :raises LeaseLost: The lease of one of them was lost.
    """
    if not settlements:
        return

    now = clock.now(connection)
    rows: dict[t.Any, list[Settlement]] = {}
    attempts: dict[t.Any, list[Settlement]] = {}
    last_look = worker.last_look(now)

    for each in settlements:
        values = _values(each, now, last_look)
        rows.setdefault((each.badge is None, *values.items()), []).append(each)

        if each.phase != "look-up":
            said = (each.answer, each.status, each.said or each.detail)
            key = (each.row.tenant, each.row.lease, *said)
            attempts.setdefault(key, []).append(each)

    for (_, *items), alike in rows.items():
        _save_rows(connection, alike, dict(items), now)

    for (tenant, lease, answer, status, detail), alike in attempts.items():
        # Also those that Remove has ended meanwhile.
        these = (
            Attempt.tenant == tenant,
            Attempt.issuance_id.in_([each.row.id for each in alike]),
            Attempt.lease == lease,
        )

        if answer == "not sent" and status is None:
            connection.execute(sa.delete(_ATTEMPTS).where(*these))
            continue

        connection.execute(
            sa.update(_ATTEMPTS)
            .where(*these)
            .values(
                finished_at=now,
                answer=answer,
                status=status,
                detail=(detail or "")[:500] or None,
            )
        )

    for each in settlements:
        _carry_on(connection, each.row, now, each.rule.then, each.badge)

        if each.rule.logged:
            _log_failure(connection, each.row, now, each.detail or "")
        elif each.rule.then == "issued":
            _log_left_out(connection, each.row, now)


def _save_rows(
    connection: sa.Connection,
    alike: list[Settlement],
    values: dict[str, object],
    now: dt.datetime,
) -> None:
    """Save the same for several rows, but for the badge."""
    rows = [
        {
            "row_id": each.row.id,
            "held_tenant": each.row.tenant,
            "held_lease": each.row.lease,
        }
        | (lifecycle.said(each.badge, now) if each.badge else {})
        for each in alike
    ]

    if worker.save(connection, rows, values) != len(alike):
        raise LeaseLost


def _values(
    each: Settlement, now: dt.datetime, last_look: dict[str, object]
) -> dict[str, object]:
    row, rule = each.row, each.rule

    if rule.then in ("wait", "at once"):
        due_at = now + dt.timedelta(seconds=each.wait)
        values = transitions.waits(due_at, row.action)
    elif rule.then == "anew":
        values = worker.issued_anew(now)
    elif rule.then == "left" or (rule.then == "failed" and row.action == "revoke"):
        values = transitions.at_rest()
    else:
        values = transitions.settled(t.cast(t.Any, rule.then), now)

        # It was issued, and is found as what it became since.
        if each.badge and each.badge.state == "revoked":
            values["state"] = "revoked"
        elif rule.then == "issued" and row.action != "revoke":
            values |= worker.IF_WITHDRAWN

    # What a badge was called failed for stays.
    if row.action != "check" or rule.then in ("issued", "held"):
        values["error"] = (each.detail or "")[:500] or None

    if each.phase == "look-up" and rule.then == "wait":
        values["look_ups"] = row.look_ups + 1

    if each.answer == "unlisted":
        values["duplicate"] = True

    if each.phase != "look-up" and rule.then != "anew":
        if not rule.counts:
            values["attempts"] = row.attempts - 1

        if rule.outcome_unknown is None:
            values["outcome_unknown"] = each.was_uncertain

    if rule.outcome_unknown is not None:
        values["outcome_unknown"] = rule.outcome_unknown

    # Credly may have issued it and not list it yet: nobody waits for that to be told
    # that it failed, but then it is looked for a last time.
    if rule.then == "failed" and row.action == "issue":
        if values.get("outcome_unknown", row.outcome_unknown):
            values |= last_look

    return values


def _log_failure(
    connection: sa.Connection, row: Row, now: dt.datetime, detail: str
) -> None:
    log.write(
        connection,
        row.tenant,
        now,
        log.FAILED[row.action],
        log.failed_details(row.badge_name, row.email, detail, row.action),
        issuance_id=row.id,
    )


def _log_left_out(connection: sa.Connection, row: Row, now: dt.datetime) -> None:
    """Write down what a badge was issued without. Here, and not where it is recorded:
    that is one statement in the host's transaction.
    """
    left_out = (row.extras or {}).get("left_out")

    if left_out and Options.read(row.options).evidence:
        log.write(
            connection,
            row.tenant,
            now,
            log.EVIDENCE_LEFT_OUT,
            log.left_out_details(row.badge_name, left_out),
            issuance_id=row.id,
        )
