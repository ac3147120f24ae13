"""Takes rows that are due, for one worker, by a lease.

A claim is one conditional UPDATE with a fresh token, portable to every database; every
later write asks for that token. A worker that lost its lease changes nothing more.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import secrets

import sqlalchemy as sa

from ..models import Attempt
from ..models import Issuance
from ..models import Mapping
from ..models import Template
from . import clock
from . import gates


DIED = "died"
"""What an attempt is said to have come to whose worker did not come back."""

MAX_DEATHS = 5
"""Attempts that may end so before they count."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A claimed row.

    :param mapped: Whether its course is still mapped.
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
    attempts: int
    maybe_issued: bool
    error: str | None
    mapped: bool
    allows_duplicates: bool


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
    Issuance.attempts,
    Issuance.maybe_issued,
    Issuance.error,
)


def _due(organization_id: str, now: dt.datetime) -> tuple[sa.ColumnElement[bool], ...]:
    # Final states have no due time, so that this reads an index and not the ledger.
    return (Issuance.due_at <= now, Issuance.organization_id == organization_id)


def any_due(engine: sa.Engine) -> bool:
    """Whether a worker could issue something now."""
    if (gate := gates.read(engine)) is None or not gate.is_open:
        return False

    with engine.connect() as connection:
        due = _due(gate.organization_id, clock.now(connection))
        return (
            connection.scalar(sa.select(Issuance.id).where(*due).limit(1)) is not None
        )


def claim(
    engine: sa.Engine, organization_id: str, *, limit: int, lease_seconds: float
) -> list[Row]:
    """Take up to ``limit`` rows that are due: waiting ones, and those whose worker's
    lease ran out.
    """
    lease = secrets.token_hex(16)

    with engine.connect() as connection:
        now = clock.now(connection)
        due = _due(organization_id, now)
        found = connection.execute(
            sa.select(Issuance.id, Issuance.state)
            .where(*due)
            .order_by(Issuance.due_at)
            .limit(limit)
        ).all()
        # A read that turned into a write would fail on SQLite if another worker wrote
        # in between.
        connection.rollback()

        if not found:
            return []

        connection.execute(
            sa.update(Issuance)
            .where(Issuance.id.in_([row.id for row in found]), *due)
            .values(
                state="sending",
                lease=lease,
                due_at=now + dt.timedelta(seconds=lease_seconds),
            )
        )

        if any(row.state == "sending" for row in found):
            _write_down_deaths(connection, lease, now)

        connection.commit()
        rows = connection.execute(
            sa.select(
                *_COLUMNS,
                Mapping.id.is_not(None).label("mapped"),
                # A template that we do not know may allow them.
                sa.func.coalesce(Template.allows_duplicates, sa.true()).label(
                    "allows_duplicates"
                ),
            )
            .outerjoin(
                Mapping,
                sa.and_(
                    Mapping.kind == Issuance.kind,
                    Mapping.course_id == Issuance.course_id,
                ),
            )
            .outerjoin(Template, Template.id == Issuance.template_id)
            .where(Issuance.lease == lease)
            .order_by(Issuance.id)
        ).all()

    return [Row(**row._mapping) for row in rows]


def _write_down_deaths(connection: sa.Connection, lease: str, now: dt.datetime) -> None:
    """End the attempts of a worker that died over rows that were now taken over.

    They do not use up the retry: the badge is looked up first, and where it is not
    there, nothing has reached Credly. A row that kills its worker each time still
    ends.
    """
    ours = sa.select(Issuance.id).where(Issuance.lease == lease)
    dead = connection.scalars(
        sa.select(Attempt.issuance_id).where(
            Attempt.issuance_id.in_(ours), Attempt.finished_at.is_(None)
        )
    ).all()

    if not dead:
        return

    connection.execute(
        sa.update(Attempt)
        .where(Attempt.issuance_id.in_(dead), Attempt.finished_at.is_(None))
        .values(finished_at=now, answer=DIED)
    )
    deaths = (
        sa.select(sa.func.count())
        .where(Attempt.issuance_id == Issuance.id, Attempt.answer == DIED)
        .scalar_subquery()
    )
    connection.execute(
        sa.update(Issuance)
        .where(Issuance.id.in_(dead), deaths <= MAX_DEATHS)
        .values(attempts=Issuance.attempts - 1)
    )


def begin(
    engine: sa.Engine,
    rows: cabc.Sequence[Row],
    generation: str,
    *,
    lease_seconds: float,
) -> list[Row]:
    """Write down the intent to send a request for each of the rows, which must share
    a lease, and renew the lease.

    A crash after this is an attempt whose outcome is not known.

    :return: The rows for which the request may be sent: the lease still held, the
        gate open, the course mapped.
    """
    if not rows:
        return []

    lease = rows[0].lease
    mapped = sa.exists().where(
        Mapping.kind == Issuance.kind, Mapping.course_id == Issuance.course_id
    )

    with engine.begin() as connection:
        now = clock.now(connection)
        changed = connection.execute(
            sa.update(Issuance)
            .where(
                Issuance.id.in_([row.id for row in rows]),
                Issuance.lease == lease,
                gates.is_open(generation, now),
                mapped,
            )
            .values(
                attempts=Issuance.attempts + 1,
                maybe_issued=True,
                due_at=now + dt.timedelta(seconds=lease_seconds),
            )
        ).rowcount

        if changed != len(rows):
            rows = _begun(connection, rows) if changed else []

        if rows:
            connection.execute(
                sa.insert(Attempt),
                [
                    {"issuance_id": row.id, "lease": lease, "started_at": now}
                    for row in rows
                ],
            )

    return [
        dataclasses.replace(row, attempts=row.attempts + 1, maybe_issued=True)
        for row in rows
    ]


def _begun(connection: sa.Connection, rows: cabc.Sequence[Row]) -> list[Row]:
    attempts = {
        id_: number
        for id_, number in connection.execute(
            sa.select(Issuance.id, Issuance.attempts).where(
                Issuance.lease == rows[0].lease
            )
        )
    }
    return [row for row in rows if attempts.get(row.id) == row.attempts + 1]


def update_member(engine: sa.Engine, row: Row) -> None:
    """Save the member's address and names as they are now."""
    with engine.begin() as connection:
        connection.execute(
            sa.update(Issuance)
            .where(Issuance.id == row.id, Issuance.lease == row.lease)
            .values(email=row.email, first_name=row.first_name, last_name=row.last_name)
        )


def release(engine: sa.Engine, rows: cabc.Iterable[Row]) -> None:
    """Give back rows for which nothing was sent: they are due at once."""
    by_lease: dict[str, list[int]] = {}

    for row in rows:
        by_lease.setdefault(row.lease, []).append(row.id)

    if not by_lease:
        return

    with engine.begin() as connection:
        now = clock.now(connection)

        for lease, ids in by_lease.items():
            connection.execute(
                sa.update(Issuance)
                .where(Issuance.id.in_(ids), Issuance.lease == lease)
                .values(state="pending", lease=None, due_at=now)
            )
