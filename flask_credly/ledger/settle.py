"""Writes down what became of claimed rows."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import typing as t

import sqlalchemy as sa

from ..models import Attempt
from ..models import Issuance
from ..models import State
from . import clock
from . import log
from .claim import Row
from .decide import Answer
from .decide import Phase
from .decide import Rule
from .transaction import in_transaction

_ROWS = t.cast(sa.Table, Issuance.__table__)
_ATTEMPTS = t.cast(sa.Table, Attempt.__table__)


@dataclasses.dataclass(frozen=True)
class Settlement:
    """What became of one row.

    :param row: The row as it was when the request went out.
    :param was_uncertain: Whether the badge was maybe issued before this request.
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
    badge_id: str | None = None
    detail: str | None = None
    said: str | None = None
    status: int | None = None


class LeaseLost(Exception):
    """One of the rows is another worker's by now. None was saved."""


UNMAPPED = "The mapping was removed."
"""Why a row was cancelled that is taken up once its course is mapped again: by the undo
of the removal, by a retry of all, by a backfill and by the next completion. Stored, and
found by these words: they never change.
"""


@in_transaction
def cancel(connection: sa.Connection, row: Row) -> None:
    """End a row without a request, as its course is not mapped any more."""
    _end(connection, row, "cancelled", UNMAPPED)


@in_transaction
def fail(connection: sa.Connection, row: Row, detail: str) -> bool:
    """End a row without a request, as it cannot be sent as it is.

    :return: Whether it was saved: not if the lease was lost.
    """
    saved = _end(connection, row, "failed", detail)

    if saved:
        _log_failure(connection, row, clock.now(connection), detail)

    return saved


def _end(connection: sa.Connection, row: Row, state: State, error: str) -> bool:
    values = {"state": state, "lease": None, "due_at": None, "error": error[:500]}
    now = clock.now(connection)
    return bool(
        connection.execute(
            _of(row).where(_IS_SENT).values(**values, settled_at=now)
        ).rowcount
    )


def _of(row: Row) -> sa.Update:
    return sa.update(Issuance).where(Issuance.id == row.id, Issuance.lease == row.lease)


# Remove ends a row that is being sent, but leaves it its lease: that the badge was
# issued all the same is written down, but nothing brings it back.
_IS_SENT = Issuance.state == "sending"


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
    last_look = sa.case((_ROWS.c.unsettled_until > now, _ROWS.c.unsettled_until))

    for each in settlements:
        values = _values(each, now, last_look)
        rows.setdefault((each.badge_id is None, *values.items()), []).append(each)

        if each.phase == "issue":
            said = (each.answer, each.status, each.said or each.detail)
            attempts.setdefault((each.row.lease, *said), []).append(each)

    for (_, *items), alike in rows.items():
        _save_rows(connection, alike, dict(items))

    for (lease, answer, status, detail), alike in attempts.items():
        # Also those that Remove has ended meanwhile.
        these = (
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
        if each.rule.logged and not each.row.told:
            _log_failure(connection, each.row, now, each.detail or "")


def _save_rows(
    connection: sa.Connection, alike: list[Settlement], values: dict[str, object]
) -> None:
    """Save the same for several rows, but for the badge's id."""
    this = sa.update(_ROWS).where(
        _ROWS.c.id == sa.bindparam("row_id"), _ROWS.c.lease == sa.bindparam("held")
    )

    # What Remove has ended stays so, and no later error of it comes into the log of a
    # connection made since.
    if values["state"] in ("pending", "failed"):
        this = this.where(_IS_SENT)

    changed = connection.execute(
        this.values(values),
        [
            {"row_id": each.row.id, "held": each.row.lease}
            | ({"badge_id": each.badge_id} if each.badge_id else {})
            for each in alike
        ],
    )

    if changed.rowcount != len(alike):
        raise LeaseLost


def _values(
    each: Settlement, now: dt.datetime, last_look: sa.ColumnElement[t.Any]
) -> dict[str, object]:
    row, rule = each.row, each.rule
    waits = rule.then in ("wait", "at once")
    stays_failed = row.told and (waits or rule.then == "failed")
    values: dict[str, object] = {
        "lease": None,
        "error": row.error if stays_failed else (each.detail or "")[:500] or None,
    }

    if waits:
        values["state"] = "failed" if row.told else "pending"
        values["due_at"] = now + dt.timedelta(seconds=each.wait)
    else:
        values["state"] = rule.then
        values["due_at"] = None
        values["settled_at"] = now

    if each.phase == "look-up" and rule.then == "wait":
        values["look_ups"] = row.look_ups + 1

    if each.answer == "unlisted":
        values["duplicate"] = True

    if each.phase == "issue":
        if not rule.counts:
            values["attempts"] = row.attempts - 1

        if rule.outcome_unknown is None:
            values["outcome_unknown"] = each.was_uncertain

    if rule.outcome_unknown is not None:
        values["outcome_unknown"] = rule.outcome_unknown

    # Credly may have issued it and not list it yet: nobody waits for that to be told
    # that it failed, but then it is looked for a last time.
    if rule.then == "failed" and not row.told:
        if values.get("outcome_unknown", row.outcome_unknown):
            values["due_at"] = last_look

    return values


def _log_failure(
    connection: sa.Connection, row: Row, now: dt.datetime, detail: str
) -> None:
    log.write(
        connection,
        now,
        log.ISSUANCE_FAILED,
        log.failed_details(row.badge_name, row.email, detail),
        issuance_id=row.id,
    )
