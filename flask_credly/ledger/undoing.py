"""The steps of a run that takes many badges back: what a worker does."""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import typing as t

import sqlalchemy as sa

from ..models import Batch
from ..models import BatchRow
from ..models import Issuance
from . import clock
from . import runs
from . import transitions
from .actions import CAN_DROP
from .actions import DROPPED
from .conditions import Condition
from .conditions import is_of
from .issuances import is_connected
from .runs import Run
from .runs import Step
from .transaction import in_transaction
from .transitions import admin
from .undos import OPEN
from .undos import Outcome
from .undos import Selection
from .undos import Standing
from .undos import standing_in

PORTION = 500
"""Badges of one transaction."""

AT_A_TIME = 2000
"""Badges of a run that wait to be revoked, or are on their way."""

_ROWS = BatchRow.__table__


@in_transaction
def step(connection: sa.Connection, run: Run) -> Step:
    """Do one portion of a run."""
    now = clock.now(connection)

    if not runs.hold(connection, run, now):
        return "over"

    this = sa.select(*Batch.__table__.columns).where(*runs.held(run))
    batch = connection.execute(this).one()
    step = {"choosing": _choose, "revoking": _go_on, "stopping": _wind_up}[batch.state]
    return step(connection, batch, now)


def _choose(connection: sa.Connection, batch: t.Any, now: dt.datetime) -> Step:
    tenant = batch.tenant
    query = Selection.of(batch).in_order(tenant, batch.started_at)
    ids = connection.scalars(
        query.with_only_columns(Issuance.id)
        .where(Issuance.id > batch.reached, Issuance.id <= batch.last_id)
        .order_by(Issuance.id)
        .limit(PORTION)
    ).all()
    standings = _stand(connection, tenant, ids)
    dropped = _drop(connection, tenant, _with("drop", standings), now)
    rows = [
        {
            "tenant": tenant,
            "batch_id": batch.id,
            "issuance_id": id_,
            "outcome": _outcome(id_, standing, dropped),
        }
        for id_, standing in standings.items()
    ]

    if rows:
        connection.execute(sa.insert(_ROWS), rows)

    changes: dict[str, t.Any] = {"reached": ids[-1] if ids else batch.last_id}

    if len(ids) < PORTION:
        changes |= {"state": "revoking", "wanted": None}

    connection.execute(sa.update(Batch).where(*_this(batch)).values(**changes))
    return "more"


def _stand(
    connection: sa.Connection, tenant: str, ids: cabc.Sequence[int]
) -> dict[int, Standing]:
    if not ids:
        return {}

    found = connection.execute(
        sa.select(Issuance.id, standing_in(tenant))
        .where(Issuance.id.in_(ids), is_of(tenant))
        .order_by(Issuance.id)
    )
    return {id_: t.cast(Standing, standing) for id_, standing in found}


def _with(standing: Standing, standings: dict[int, Standing]) -> list[int]:
    return [id_ for id_, each in standings.items() if each == standing]


def _outcome(id_: int, standing: Standing, dropped: cabc.Collection[int]) -> Outcome:
    if standing == "drop":
        # A worker has taken it at this moment.
        return "dropped" if id_ in dropped else "waits"

    return standing


def _drop(
    connection: sa.Connection, tenant: str, ids: list[int], now: dt.datetime
) -> cabc.Collection[int]:
    """Take back what was not sent. Get the ids of what was."""
    if not ids:
        return ()

    these = (Issuance.id.in_(ids), is_of(tenant))
    number = transitions.end(
        connection, "cancelled", now, *these, CAN_DROP, reason=DROPPED
    )

    is_dropped = sa.and_(
        Issuance.state == "cancelled",
        Issuance.reason == DROPPED,
        Issuance.settled_at == now,
    )
    return _changed(connection, ids, number, *these, is_dropped)


def _changed(
    connection: sa.Connection, ids: list[int], number: int, *where: Condition
) -> cabc.Collection[int]:
    """Get the ids of those that were changed: something else was done about the others
    at this moment.
    """
    if number == len(ids):
        return ids

    return set(connection.scalars(sa.select(Issuance.id).where(*where)))


def _go_on(connection: sa.Connection, batch: t.Any, now: dt.datetime) -> Step:
    changed = _settle(connection, batch) + _look_at_waiting(connection, batch, now)
    room = AT_A_TIME - _count(connection, batch, "asked")

    if room > 0:
        outcomes: tuple[t.Literal["pending", "accepted"], ...] = ("pending", "accepted")

        for outcome in outcomes:
            limit = min(PORTION, room)
            ids = _some(connection, batch, limit, BatchRow.outcome == outcome)

            # Those who have accepted come last.
            if ids:
                _open(connection, batch, outcome, ids, now)
                return "more"

    if changed:
        return "more"

    return _end(connection, batch, "done")


def _some(
    connection: sa.Connection,
    batch: t.Any,
    limit: int,
    *where: Condition,
) -> cabc.Sequence[int]:
    return connection.scalars(
        sa.select(BatchRow.issuance_id)
        .where(*_of(batch), *where)
        .order_by(BatchRow.issuance_id)
        .limit(limit)
    ).all()


def _this(batch: t.Any) -> tuple[Condition, ...]:
    return runs.this(batch.tenant, batch.id, "undo")


def _of(batch: t.Any) -> tuple[Condition, ...]:
    return (BatchRow.tenant == batch.tenant, BatchRow.batch_id == batch.id)


def _count(connection: sa.Connection, batch: t.Any, *outcomes: str) -> int:
    number = connection.scalar(
        sa.select(sa.func.count())
        .select_from(BatchRow)
        .where(*_of(batch), BatchRow.outcome.in_(outcomes))
    )
    return number or 0


def _open(
    connection: sa.Connection,
    batch: t.Any,
    outcome: t.Literal["pending", "accepted"],
    ids: cabc.Sequence[int],
    now: dt.datetime,
) -> None:
    """Let badges be revoked that were chosen, where that is still to be done."""
    standings = _stand(connection, batch.tenant, ids)
    outcomes: dict[int, Outcome] = {
        id_: _outcome(id_, standing, ()) for id_, standing in standings.items()
    }

    tells: tuple[tuple[t.Literal["pending", "accepted"], bool], ...] = (
        ("pending", batch.tell_pending),
        ("accepted", batch.tell_accepted),
    )

    for standing, tell in tells:
        # One that was accepted since it was chosen has its turn with the others.
        if (outcome, standing) != ("pending", "accepted"):
            those = _with(standing, standings)
            revoked = _revoke(connection, batch, those, tell, now)
            outcomes |= dict.fromkeys(revoked, "asked")

    _write(connection, batch, outcomes)


def _revoke(
    connection: sa.Connection,
    batch: t.Any,
    ids: list[int],
    tell: bool,
    now: dt.datetime,
) -> cabc.Collection[int]:
    """Let badges be revoked. Get the ids of those that are."""
    if not ids:
        return ()

    these = (Issuance.id.in_(ids), is_of(batch.tenant))
    number = admin.revoke(
        connection,
        *these,
        is_connected(batch.tenant),
        reason=batch.reason,
        tell=tell,
        due_at=now,
        # What comes in does not wait for the thousands of a run.
        bulk=True,
    )

    is_open = sa.and_(Issuance.action == "revoke", Issuance.due_at == now)
    return _changed(connection, ids, number, *these, is_open)


def _settle(connection: sa.Connection, batch: t.Any) -> int:
    """Write down what came of badges that were to be revoked. Get how many."""
    found = connection.execute(
        sa.select(
            Issuance.id,
            standing_in(batch.tenant).label("standing"),
            sa.func.coalesce(Issuance.error, Issuance.reason).label("error"),
        )
        .join(BatchRow, BatchRow.issuance_id == Issuance.id)
        .where(
            *_of(batch),
            is_of(batch.tenant),
            BatchRow.outcome == "asked",
            sa.or_(Issuance.action.is_(None), sa.not_(is_connected(batch.tenant))),
        )
        .limit(PORTION)
    ).all()
    outcomes: dict[int, Outcome] = {}

    for id_, standing, error in found:
        if standing == "was revoked":
            outcomes[id_] = "revoked"
        elif standing in ("pending", "accepted"):
            # What a stop takes back has no error.
            outcomes[id_] = "failed" if error else "stopped"
        else:
            outcomes[id_] = t.cast(Outcome, standing)

    _write(connection, batch, outcomes)
    return len(outcomes)


def _look_at_waiting(connection: sa.Connection, batch: t.Any, now: dt.datetime) -> int:
    """See to badges that were on their way and are settled. Get how many."""
    ids = connection.scalars(
        sa.select(Issuance.id)
        .join(BatchRow, BatchRow.issuance_id == Issuance.id)
        .where(
            *_of(batch),
            is_of(batch.tenant),
            BatchRow.outcome == "waits",
            sa.or_(
                Issuance.action.is_(None),
                CAN_DROP,
                Issuance.action == "revoke",
                sa.not_(is_connected(batch.tenant)),
            ),
        )
        .limit(PORTION)
    ).all()
    standings = _stand(connection, batch.tenant, ids)
    dropped = _drop(connection, batch.tenant, _with("drop", standings), now)
    outcomes = {
        id_: _outcome(id_, standing, dropped) for id_, standing in standings.items()
    }
    _write(connection, batch, outcomes)
    return len(outcomes)


def _wind_up(connection: sa.Connection, batch: t.Any, now: dt.datetime) -> Step:
    """Write down what a stop has left, once what is on its way has settled."""
    waiting = ("waits", "pending", "accepted")
    ids = _some(connection, batch, PORTION, BatchRow.outcome.in_(waiting))
    _write(connection, batch, dict.fromkeys(ids, "stopped"))

    if _settle(connection, batch) or ids:
        return "more"

    return _end(connection, batch, "stopped")


def _write(
    connection: sa.Connection, batch: t.Any, outcomes: cabc.Mapping[int, Outcome]
) -> None:
    by_outcome: dict[Outcome, list[int]] = {}

    for id_, outcome in outcomes.items():
        by_outcome.setdefault(outcome, []).append(id_)

    for outcome, ids in by_outcome.items():
        connection.execute(
            sa.update(_ROWS)
            .where(
                _ROWS.c.tenant == batch.tenant,
                _ROWS.c.batch_id == batch.id,
                _ROWS.c.issuance_id.in_(ids),
            )
            .values(outcome=outcome)
        )


def _end(connection: sa.Connection, batch: t.Any, state: str) -> Step:
    if _count(connection, batch, *OPEN):
        return "rest"

    runs.end(connection, *_this(batch), state=state)
    return "over"
