"""The ledger's side of a comparison with the host and with Credly: what is read of it,
and what is written where one of the others is right.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import typing as t

import sqlalchemy as sa

from ..catalog import clean
from ..catalog import clean_email
from ..models import DifferenceRow
from ..models import Issuance
from ..models import Mapping
from ..models import Template
from . import clock
from . import gates
from . import runs
from .conditions import is_of
from .conditions import IS_SENDING
from .issuances import is_ours
from .runs import Run
from .transaction import connect
from .transaction import in_transaction
from .transitions import repair
from .transitions import worker

if t.TYPE_CHECKING:
    from ..credly import Badge

WINDOW = 5_000
"""Rows that are read at once."""

IN_MOTION = dt.timedelta(minutes=10)
"""For how long after a change a row is not called different: lists lag, and clocks are
not the same.
"""

LISTED_AFTER = dt.timedelta(hours=24)
"""How long after it was issued a badge is missed that Credly does not list."""

LATE = dt.timedelta(hours=1)
"""After which a row that is due has waited too long."""


def unique_templates(engine: sa.Engine, tenant: str) -> list[str]:
    """Get the badge templates of which a member has one badge."""
    with connect(engine) as connection:
        query = sa.select(Template.id).where(
            Template.tenant == tenant, Template.allows_duplicates.is_(False)
        )
        return list(connection.scalars(query))


def windows(
    engine: sa.Engine,
    gate: gates.Gate,
    began: dt.datetime,
    since: dt.datetime | None = None,
) -> cabc.Iterator[cabc.Sequence[t.Any]]:
    """Read all rows of the connected organization, by their id, so many at a time.

    :param began: When the comparison began.
    :param since: What was completed before is marked as early.
    """
    query = _rows(gate, began, since).limit(WINDOW)
    after = 0

    while True:
        with connect(engine) as connection:
            rows = connection.execute(query, {"after": after}).all()

        if not rows:
            return

        yield rows
        after = rows[-1].id


def _rows(
    gate: gates.Gate, began: dt.datetime, since: dt.datetime | None
) -> sa.Select[t.Any]:
    young = began - IN_MOTION

    def flag(name: str, *either: sa.ColumnElement[bool]) -> sa.Label[bool]:
        return sa.func.coalesce(sa.or_(*either), sa.false()).label(name)

    settled_at = sa.func.coalesce(Issuance.settled_at, Issuance.recorded_at)
    query = (
        sa.select(
            Issuance.id,
            Issuance.badge_id,
            Issuance.member_id,
            Issuance.kind,
            Issuance.course_id,
            Issuance.template_id,
            Issuance.state,
            Issuance.badge_state,
            Issuance.expires_at,
            sa.func.coalesce(Issuance.issued_at, Issuance.completed_at).label("sent"),
            Issuance.issued_at.is_not(None).label("was_sent"),
            Issuance.email,
            Issuance.test,
            Issuance.withdrawn_at.is_not(None).label("withdrawn"),
            flag(
                "moves",
                Issuance.recorded_at > young,
                Issuance.settled_at > young,
                Issuance.unsettled_until > young,
                IS_SENDING,
                # Somebody has asked Credly since.
                Issuance.checked_at > began,
            ),
            flag("old", settled_at <= began - LISTED_AFTER),
            flag(
                "late",
                sa.and_(
                    Issuance.action.is_not(None),
                    Issuance.lease.is_(None),
                    Issuance.due_at <= began - LATE,
                ),
            ),
            flag(
                "early",
                sa.false() if since is None else Issuance.completed_at < since,
            ),
        )
        .where(
            Issuance.id > sa.bindparam("after", type_=sa.Integer),
            is_of(gate.tenant),
            Issuance.organization_id == gate.organization_id,
            Issuance.erased_at.is_(None),
        )
        .order_by(Issuance.id)
    )
    return t.cast("sa.Select[t.Any]", query)


# What is written.


@in_transaction
def adopt(
    connection: sa.Connection,
    gate: gates.Gate,
    row_id: int,
    badge: Badge,
    *,
    seen: str,
    issued_at: dt.datetime | None,
) -> bool:
    """Let a row have a badge that Credly has issued for it.

    :param seen: The state that the row had in the comparison.
    :param issued_at: The time that the badge has.
    :return: Whether it has it now. Otherwise it has changed meanwhile.
    """
    now = clock.now(connection)
    done = repair.adopt(
        connection,
        badge,
        now,
        *_this(gate, row_id),
        Issuance.state == seen,
        issued_at=issued_at,
    )

    if done:
        _note_replaced(connection, gate, badge, now)

    return bool(done)


@in_transaction
def believe(
    connection: sa.Connection,
    gate: gates.Gate,
    row_id: int,
    badge: Badge,
    *,
    seen: tuple[str, str | None],
    read_at: dt.datetime,
) -> bool:
    """Let a row say of its badge what Credly does.

    :param seen: The row's state and the badge's, as they were in the comparison.
    :param read_at: When Credly was asked.
    :return: Whether it does now. Otherwise it has changed meanwhile.
    """
    state, badge_state = seen
    return bool(
        repair.believe(
            connection,
            badge,
            read_at,
            *_this(gate, row_id),
            Issuance.badge_id == badge.id,
            Issuance.template_id == (badge.template_id or Issuance.template_id),
            Issuance.state == state,
            Issuance.badge_state.is_not_distinct_from(badge_state),
        )
    )


def _this(gate: gates.Gate, row_id: int) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        Issuance.id == row_id,
        is_of(gate.tenant),
        Issuance.organization_id == gate.organization_id,
        Issuance.erased_at.is_(None),
        sa.not_(IS_SENDING),
        sa.exists().where(*gates.this(gate.tenant, gate.generation)),
    )


@dataclasses.dataclass(frozen=True)
class Found:
    """A badge of a member's at Credly that no row has.

    :param completed_at: When the member completed the course, as far as it is known.
    """

    member_id: str
    kind: str
    course_id: str
    completed_at: dt.datetime


@in_transaction
def adopt_unknown(
    connection: sa.Connection,
    gate: gates.Gate,
    found: Found,
    badge: Badge,
    number: int | None = None,
    run: Run | None = None,
) -> int | None:
    """Write the row of a badge that Credly has and the ledger does not know.

    :param number: The difference that says so, where it is stored.
    :param run: The run that has found it, where it is not.
    :return: Its id. ``None``: some row has it by now, or the member was erased.
    """
    # First, so that no other does the same at this moment.
    if not gates.lock(
        connection, gate.tenant, *gates.this(gate.tenant, gate.generation)
    ):
        return None

    # It goes with the member. One who is being erased is waited for, or waits.
    if number is not None and not connection.scalar(
        sa.select(DifferenceRow.id)
        .where(DifferenceRow.tenant == gate.tenant, DifferenceRow.id == number)
        .with_for_update()
    ):
        return None

    if run is not None and not runs.may_name(connection, run)(found.member_id):
        return None

    known = sa.select(Issuance.id).where(Issuance.badge_id == badge.id)

    # Of another community too, which may have the same organization.
    if connection.scalar(known) is not None:
        return None

    now = clock.now(connection)
    cycle = connection.scalar(
        sa.select(sa.func.max(Issuance.cycle)).where(
            is_ours(gate.tenant),
            Issuance.member_id == found.member_id,
            Issuance.kind == found.kind,
            Issuance.course_id == found.course_id,
        )
    )
    name = connection.scalar(
        sa.select(Template.name).where(
            Template.tenant == gate.tenant, Template.id == badge.template_id
        )
    )
    row_id = repair.insert_found(
        connection,
        badge,
        now,
        tenant=gate.tenant,
        organization_id=gate.organization_id,
        member_id=found.member_id,
        kind=found.kind,
        course_id=found.course_id,
        cycle=(cycle or 0) + 1,
        completed_at=found.completed_at,
        template_id=badge.template_id,
        badge_name=name or "",
        email=clean_email(badge.email or ""),
        first_name=clean(badge.first_name or "", 255),
        last_name=clean(badge.last_name or "", 255),
    )
    _note_replaced(connection, gate, badge, now)
    return row_id


def _note_replaced(
    connection: sa.Connection, gate: gates.Gate, badge: Badge, now: dt.datetime
) -> None:
    """Note that a badge that was found has taken another's place."""
    if badge.replaces is not None:
        worker.supersede(
            connection,
            badge.id,
            now,
            Issuance.tenant == gate.tenant,
            Issuance.badge_id == badge.replaces,
        )


def whose(
    engine: sa.Engine,
    tenant: str,
    template_id: str | None,
    *,
    like: int | None,
    completed_at: dt.datetime,
) -> Found | None:
    """Find out of which member and course a badge is that no row has: of a course for
    which the member had a badge of the same template, or else of the only one that is
    mapped to it.

    :param like: A row of the member.
    :return: ``None``: it cannot be told.
    """
    with connect(engine) as connection:
        ours = (is_ours(tenant), Issuance.erased_at.is_(None))
        query = sa.select(Issuance.member_id).where(*ours, Issuance.id == like)
        member_id = connection.scalar(query)

        if member_id is None or template_id is None:
            return None

        before = connection.execute(
            sa.select(Issuance.kind, Issuance.course_id)
            .where(
                *ours,
                Issuance.member_id == member_id,
                Issuance.template_id == template_id,
                Issuance.test.is_(False),
            )
            .order_by(Issuance.id.desc())
            .limit(1)
        ).all()
        courses = (
            before
            or connection.execute(
                sa.select(Mapping.kind, Mapping.course_id)
                .where(Mapping.tenant == tenant, Mapping.template_id == template_id)
                .limit(2)
            ).all()
        )

    if len(courses) != 1:
        return None

    ((kind, course_id),) = courses
    return Found(member_id, kind, course_id, completed_at)
