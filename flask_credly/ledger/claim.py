"""Takes rows that are due, for one worker, by a lease.

A claim is one conditional UPDATE with a fresh token, portable to every database; every
later write asks for that token. A worker that lost its lease changes nothing more.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import secrets
import typing as t

import sqlalchemy as sa

from ..models import Attempt
from ..models import Issuance
from ..models import Mapping
from ..models import Template
from . import clock
from . import gates
from .record import of_mapping
from .transaction import hide_parameters
from .transaction import in_transaction

DIED = "died"
"""What an attempt is said to have come to whose worker did not come back."""

POISON_THRESHOLD = 2
"""Workers that may die over a row before it is handled alone: if it is the cause, it
shall not take others along.
"""

MAX_CRASHES = 5
"""Workers that may die over a row before it is given up."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A claimed row.

    :param issued_at: The time that was sent with the first request.
    :param duplicate: Whether Credly has refused it as a duplicate, and does not list
        the badge.
    :param crashes: Workers that have died while they held it.
    :param look_ups: Questions whether the badge is there that had no clear answer.
    :param unsettled: Whether its last request may be on its way, or its badge may not
        be listed yet.
    :param told: Whether it was called failed, and is looked up a last time.
    :param mapped_to: The template that its course is mapped to. ``None``: to none.
    :param allows_duplicates: Whether Credly would issue the template twice.
    """

    id: int
    lease: str
    member_id: str
    kind: str
    course_id: str
    template_id: str
    badge_name: str
    email: str
    first_name: str
    last_name: str
    completed_at: dt.datetime
    issued_at: dt.datetime | None
    attempts: int
    outcome_unknown: bool
    duplicate: bool
    crashes: int
    look_ups: int
    error: str | None
    test: bool
    unsettled: bool
    told: bool
    mapped_to: str | None
    allows_duplicates: bool


_TIME = Issuance.issued_at.type

_COLUMNS = (
    Issuance.id,
    Issuance.lease,
    Issuance.member_id,
    Issuance.kind,
    Issuance.course_id,
    Issuance.template_id,
    Issuance.badge_name,
    Issuance.email,
    Issuance.first_name,
    Issuance.last_name,
    Issuance.completed_at,
    Issuance.issued_at,
    Issuance.attempts,
    Issuance.outcome_unknown,
    Issuance.duplicate,
    Issuance.crashes,
    Issuance.look_ups,
    Issuance.error,
    Issuance.test,
)


def _due(organization_id: str, now: dt.datetime) -> tuple[sa.ColumnElement[bool], ...]:
    return (Issuance.due_at <= now, Issuance.organization_id == organization_id)


def _due_ids(
    organization_id: str, now: dt.datetime, *, bulk: bool
) -> sa.Select[int, int]:
    """Ask for what a worker may take. Final states have no due time, so that this
    reads an index and not the ledger.
    """
    return (
        sa.select(Issuance.id, Issuance.crashes)
        .where(Issuance.bulk == bulk, *_due(organization_id, now))
        .order_by(Issuance.due_at, Issuance.id)
    )


def any_due(engine: sa.Engine, gate: gates.Gate | None, *, live: bool = False) -> bool:
    """Whether a worker could issue something now.

    :param live: Look only at what came in, and not at the rows of backfills.
    """
    if gate is None or not gate.is_open:
        return False

    with engine.connect() as connection:
        now = clock.now(connection)
        return any(
            connection.execute(
                _due_ids(gate.organization_id, now, bulk=bulk).limit(1)
            ).first()
            for bulk in ((False,) if live else (False, True))
        )


def claim(
    engine: sa.Engine,
    gate: gates.Gate,
    *,
    limit: int,
    lease_seconds: float,
    alone: bool = True,
) -> list[Row]:
    """Take up to ``limit`` rows that are due: waiting ones, and those whose worker's
    lease ran out.

    :param alone: Whether the worker holds nothing else: only then it may get a row
        that others have died over, and gets nothing beside it.
    """
    ids = _find(engine, gate, limit, alone)
    return _take(engine, gate, ids, lease_seconds) if ids else []


def _find(engine: sa.Engine, gate: gates.Gate, limit: int, alone: bool) -> list[int]:
    # Not in the transaction that takes them: a read that turned into a write would
    # fail on SQLite if another worker wrote in between.
    with engine.connect() as connection:
        now = clock.now(connection)
        found: list[sa.Row[int, int]] = []

        # What comes in does not wait for the thousands of a backfill.
        for bulk in (False, True):
            if len(found) < limit:
                due = _due_ids(gate.organization_id, now, bulk=bulk)
                found += connection.execute(due.limit(limit - len(found)))

    if alone and found and found[0].crashes >= POISON_THRESHOLD:
        return [found[0].id]

    return [row.id for row in found if row.crashes < POISON_THRESHOLD]


@in_transaction
def _take(
    connection: sa.Connection, gate: gates.Gate, ids: list[int], lease_seconds: float
) -> list[Row]:
    lease = secrets.token_hex(16)
    now = clock.now(connection)
    taken = connection.execute(
        sa.update(Issuance)
        .where(
            Issuance.id.in_(ids),
            *_due(gate.organization_id, now),
            gates.is_open(gate.generation, now),
        )
        # In this order: MariaDB would look at the new state.
        .ordered_values(
            (
                Issuance.crashes,
                Issuance.crashes + sa.case((Issuance.state == "sending", 1), else_=0),
            ),
            (Issuance.state, "sending"),
            (Issuance.lease, lease),
            (Issuance.due_at, now + dt.timedelta(seconds=lease_seconds)),
        )
    ).rowcount

    if not taken:
        return []

    _write_down_deaths(connection, lease, now)
    rows = _read(connection, lease, now)

    # After a restore each may have been issued as what it was: that is looked up first.
    if not gate.restored and any(_is_of_another(row) for row in rows):
        _follow_mapping(connection, [row.id for row in rows if _is_of_another(row)])
        rows = _read(connection, lease, now)

    return rows


def _read(connection: sa.Connection, lease: str, now: dt.datetime) -> list[Row]:
    found = connection.execute(
        sa.select(
            *_COLUMNS,
            _is_unsettled(now).label("unsettled"),
            Issuance.settled_at.is_not(None).label("told"),
            Mapping.template_id.label("mapped_to"),
            # A template that we do not know may allow them.
            sa.func.coalesce(Template.allows_duplicates, sa.true()).label(
                "allows_duplicates"
            ),
        )
        .outerjoin(Mapping, _IS_MAPPED)
        .outerjoin(Template, Template.id == Issuance.template_id)
        .where(Issuance.lease == lease)
        .order_by(Issuance.bulk, Issuance.id)
    )
    return [Row(**row._mapping) for row in found]


def _is_unsettled(now: dt.datetime) -> sa.ColumnElement[bool]:
    return sa.func.coalesce(Issuance.unsettled_until > now, sa.false())


_IS_MAPPED = sa.and_(
    Mapping.kind == Issuance.kind, Mapping.course_id == Issuance.course_id
)


def _is_of_another(row: Row) -> bool:
    """Whether the course was mapped to another template since. What was perhaps issued
    is looked up as that first.
    """
    return row.mapped_to not in (None, row.template_id) and not row.outcome_unknown


def _follow_mapping(connection: sa.Connection, ids: cabc.Collection[int]) -> None:
    """Let rows become what their course is mapped to now."""

    def mapped(column: sa.ColumnElement[t.Any]) -> sa.ScalarSelect[t.Any]:
        return of_mapping(column).where(_IS_MAPPED).scalar_subquery()

    connection.execute(
        sa.update(Issuance)
        .where(Issuance.id.in_(ids), sa.exists().where(_IS_MAPPED))
        .values(
            template_id=mapped(Template.id.expression),
            badge_name=mapped(Template.name.expression),
            duplicate=False,
        )
    )


@in_transaction
def follow_mapping(connection: sa.Connection, row: Row) -> None:
    """Give back a row that was not issued as what it was, as what its course is mapped
    to now: it is due at once.
    """
    given_back = connection.execute(
        sa.update(Issuance)
        .where(Issuance.id == row.id, *_held(row.lease))
        .values(
            state="pending",
            lease=None,
            due_at=clock.now(connection),
            outcome_unknown=False,
        )
    ).rowcount

    if given_back:
        _follow_mapping(connection, [row.id])


@in_transaction
def put_off(connection: sa.Connection, row: Row) -> None:
    """Give back a row that cannot be sent as it is, and that may have been issued
    unseen: it is looked up again when Credly's lists have had their time.
    """
    connection.execute(
        sa.update(Issuance)
        .where(Issuance.id == row.id, *_held(row.lease))
        .values(
            state="pending",
            lease=None,
            due_at=sa.func.coalesce(Issuance.unsettled_until, clock.now(connection)),
        )
    )


def _write_down_deaths(connection: sa.Connection, lease: str, now: dt.datetime) -> None:
    """End the attempts of workers that died over rows that were now taken over.

    They do not use up the retry: the badge is looked up first, and where it is not
    there, nothing has reached Credly.
    """
    dead = connection.scalars(
        sa.select(Attempt.issuance_id)
        .join(Issuance, Issuance.id == Attempt.issuance_id)
        .where(Issuance.lease == lease, Attempt.finished_at.is_(None))
    ).all()

    if not dead:
        return

    end_attempts(connection, dead, now, DIED)
    connection.execute(
        sa.update(Issuance)
        .where(Issuance.id.in_(dead))
        .values(attempts=Issuance.attempts - 1)
    )


def end_attempts(
    connection: sa.Connection,
    ids: cabc.Collection[int] | sa.Select[int],
    now: dt.datetime,
    answer: str,
) -> None:
    """End the attempts of some rows that have no answer yet.

    :param answer: As in :attr:`.Attempt.answer`.
    """
    connection.execute(
        sa.update(Attempt)
        .where(Attempt.issuance_id.in_(ids), Attempt.finished_at.is_(None))
        .values(finished_at=now, answer=answer)
    )


@in_transaction
def begin(
    connection: sa.Connection,
    rows: cabc.Sequence[Row],
    generation: str,
    *,
    lease_seconds: float,
) -> list[Row]:
    """Write down the intent to send a request for each of the rows, and renew their
    leases.

    A crash after this is an attempt whose outcome is not known.

    :return: The rows for which the request may be sent: the lease still held, the
        gate open, the course mapped to just this template.
    """
    now = clock.now(connection)
    until = now + dt.timedelta(seconds=lease_seconds)
    # Credly takes no time that is far in its future: the earlier clock.
    at_most = min(now, dt.datetime.now(dt.UTC))
    begun: list[Row] = []

    # As it was read: where the answer to this commit is lost and it is done once more,
    # a request is not counted twice. The row is given back and taken again.
    for attempts in {row.attempts for row in rows}:
        begun += _renew(
            connection,
            [row for row in rows if row.attempts == attempts],
            until,
            Issuance.attempts == attempts,
            gates.is_open(generation, now),
            sa.exists().where(_IS_MAPPED, Mapping.template_id == Issuance.template_id),
            attempts=attempts + 1,
            outcome_unknown=True,
            unsettled_until=until,
            issued_at=sa.case(
                (Issuance.issued_at.is_not(None), Issuance.issued_at),
                (Issuance.completed_at > at_most, sa.literal(at_most, _TIME)),
                else_=Issuance.completed_at,
            ),
        )

    if begun:
        connection.execute(
            sa.insert(Attempt),
            [
                {"issuance_id": row.id, "lease": row.lease, "started_at": now}
                for row in begun
            ],
        )

    return [
        dataclasses.replace(
            row,
            attempts=row.attempts + 1,
            outcome_unknown=True,
            issued_at=row.issued_at or min(row.completed_at, at_most),
        )
        for row in begun
    ]


@in_transaction
def hold(
    connection: sa.Connection,
    rows: cabc.Sequence[Row],
    generation: str,
    *,
    lease_seconds: float,
) -> list[Row]:
    """Renew the leases of rows that are to be looked up.

    :return: Those for which Credly may be asked: the lease still held, the gate open.
    """
    now = clock.now(connection)
    until = now + dt.timedelta(seconds=lease_seconds)
    return _renew(connection, rows, until, gates.is_open(generation, now))


def _renew(
    connection: sa.Connection,
    rows: cabc.Sequence[Row],
    until: dt.datetime,
    *where: sa.ColumnElement[bool],
    **values: t.Any,
) -> list[Row]:
    renewed: list[Row] = []

    for lease, alike in _by_lease(rows).items():
        changed = connection.execute(
            sa.update(Issuance)
            .where(Issuance.id.in_([row.id for row in alike]), *_held(lease), *where)
            .values(due_at=until, **values)
        ).rowcount

        if changed == len(alike):
            renewed += alike
        elif changed:
            these = sa.select(Issuance.id).where(
                Issuance.lease == lease, Issuance.due_at == until
            )
            ids = set(connection.scalars(these))
            renewed += [row for row in alike if row.id in ids]

    return renewed


def _by_lease(rows: cabc.Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}

    for row in rows:
        found.setdefault(row.lease, []).append(row)

    return found


def _held(lease: str) -> tuple[sa.ColumnElement[bool], ...]:
    # After Remove a row keeps its lease, so that its worker can still write down that
    # the badge was issued, but is no longer sent.
    return (Issuance.lease == lease, Issuance.state == "sending")


@in_transaction
def update_member(connection: sa.Connection, row: Row) -> None:
    """Save the member's address and names as they are now."""
    connection.execute(
        sa.update(Issuance)
        .where(Issuance.id == row.id, *_held(row.lease))
        .values(email=row.email, first_name=row.first_name, last_name=row.last_name)
    )


@in_transaction
def release(connection: sa.Connection, rows: cabc.Sequence[Row]) -> None:
    """Give back rows for which nothing was sent, with what is known of them: they are
    due at once.
    """
    now = clock.now(connection) if rows else None

    for maybe in (False, True):
        these = [row for row in rows if row.outcome_unknown == maybe]

        for lease, alike in _by_lease(these).items():
            connection.execute(
                sa.update(Issuance)
                .where(Issuance.id.in_([row.id for row in alike]), *_held(lease))
                .values(state=waiting(), lease=None, due_at=now, outcome_unknown=maybe)
            )


def waiting() -> sa.ColumnElement[str]:
    """Say what a row is that waits: one that was called failed stays so, until the last
    look finds its badge.
    """
    return sa.case((Issuance.settled_at.is_not(None), "failed"), else_="pending")


def badges_of_others(
    engine: sa.Engine, row: Row, ids: cabc.Collection[str]
) -> frozenset[str]:
    """Get those of some badges, by Credly's ids, that another row has."""
    with hide_parameters(), engine.connect() as connection:
        found = connection.scalars(
            sa.select(Issuance.badge_id).where(
                Issuance.badge_id.in_(ids), Issuance.id != row.id
            )
        )
        return frozenset(id_ for id_ in found if id_)
