"""Takes rows that are due, for one worker, by a lease.

A claim is one conditional UPDATE with a fresh token, portable to every database; every
later write asks for that token. A worker that lost its lease changes nothing more.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import functools
import itertools
import secrets
import typing as t

import sqlalchemy as sa

from ..models import Action
from ..models import Attempt
from ..models import Issuance
from ..models import Mapping
from ..models import Template
from ..options import EACH
from . import clock
from . import gates
from . import transitions
from . import withdrawals
from .conditions import ACTIONS
from .conditions import IS_MAPPED
from .conditions import is_of
from .conditions import owns
from .conditions import same_course
from .transaction import hide_parameters
from .transaction import in_transaction
from .transitions import admin
from .transitions import worker

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
    :param action: What is to be done: ``"check"`` is a last look at a badge that was
        called failed.
    :param options: The mapping's: see :class:`flask_credly.options.Options`.
    :param extras: What the host says besides: see
        :func:`flask_credly.catalog.read_extras`.
    :param withdrawn: Whether the completion was withdrawn.
    :param badge_id: Credly's id of its badge.
    :param replaces: That of the badge in whose place its own is issued.
    :param target: That of the badge which a request is to be about, once it was read.
    :param target_expired: Whether that has expired.
    :param cycle: Which of the member's badges for the course it is.
    :param again: What a further completion does: see :attr:`.Options.again`.
    :param mapped_to: The template that its course is mapped to. ``None``: to none.
    :param allows_duplicates: Whether Credly would issue the template twice.
    """

    id: int
    tenant: str
    lease: str
    member_id: str
    kind: str
    course_id: str
    organization_id: str
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
    options: dict[str, t.Any] | None
    extras: dict[str, t.Any] | None
    cycle: int
    again: str | None
    unsettled: bool
    withdrawn: bool
    action: Action
    mapped_to: str | None
    allows_duplicates: bool
    badge_id: str | None
    replaces: str | None
    renewal: bool
    revocation_reason: str | None
    tell: bool | None
    target: str | None = None
    target_expired: bool = False

    @property
    def is_as_mapped(self) -> bool:
        """Whether what is sent is what its course is mapped to then. What an admin
        corrects is as the admin says.
        """
        return self.action == "issue" or (self.action == "replace" and self.renewal)


_COLUMNS = tuple(
    getattr(Issuance, each.name)
    for each in dataclasses.fields(Row)
    if hasattr(Issuance, each.name)
)


_KINDS = tuple(itertools.product((False, True), ACTIONS))
"""What a worker may take, in the order in which it is taken: what comes in does not
wait for the thousands of a backfill.
"""


@functools.cache
def _first(
    kinds: tuple[tuple[bool, Action], ...] = _KINDS,
) -> sa.CompoundSelect[int, dt.datetime, int, int]:
    """Ask for the first rows of some kinds: each with its kind's number, in any order.

    A part for each, so that it reads the first rows of an index, which has nothing that
    is at rest, and sorts none; in one statement, as most find nothing. It is made once:
    that takes longer than to ask it.
    """
    parts = [
        sa.select(
            sa.literal_column(str(number)).label("number"),
            Issuance.due_at,
            Issuance.id,
            Issuance.crashes,
        )
        .where(
            Issuance.action == action,
            Issuance.tenant == sa.bindparam("tenant"),
            Issuance.bulk == bulk,
            Issuance.due_at <= sa.bindparam("now"),
            Issuance.organization_id == sa.bindparam("organization_id"),
        )
        .order_by(Issuance.due_at, Issuance.id)
        .limit(sa.bindparam("limit", type_=sa.Integer))
        .subquery()
        for number, (bulk, action) in enumerate(kinds)
    ]
    return sa.union_all(*map(sa.select, parts))


def _of(gate: gates.Gate, now: dt.datetime, limit: int) -> dict[str, t.Any]:
    return {
        "tenant": gate.tenant,
        "organization_id": gate.organization_id,
        "now": now,
        "limit": limit,
    }


def any_due(engine: sa.Engine, gate: gates.Gate | None) -> bool:
    """Whether a worker could issue something now for one community."""
    if gate is None or not gate.is_open:
        return False

    with engine.connect() as connection:
        asked = _of(gate, clock.now(connection), 1)
        return connection.execute(_first(), asked).first() is not None


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
        # Most of the time they are all that there is, or more than is wanted.
        asked = _of(gate, now, limit)
        found = sorted(connection.execute(_first(_KINDS[:1]), asked))

        if left := limit - len(found):
            asked = _of(gate, now, left)
            found += sorted(connection.execute(_first(_KINDS[1:]), asked))[:left]

    if alone and found and found[0].crashes >= POISON_THRESHOLD:
        return [found[0].id]

    return [row.id for row in found if row.crashes < POISON_THRESHOLD]


@in_transaction
def _take(
    connection: sa.Connection, gate: gates.Gate, ids: list[int], lease_seconds: float
) -> list[Row]:
    lease = secrets.token_hex(16)
    now = clock.now(connection)
    taken = worker.lease_due(
        connection,
        lease,
        now + dt.timedelta(seconds=lease_seconds),
        Issuance.id.in_(ids),
        is_of(gate.tenant),
        Issuance.due_at <= now,
        Issuance.organization_id == gate.organization_id,
        gates.is_open(gate.tenant, gate.generation, now),
    )

    if not taken:
        return []

    _write_down_crashes(connection, gate.tenant, lease, now)
    rows = _read(connection, gate.tenant, lease, now)

    if further := [row for row in rows if row.cycle > 1 and not row.attempts]:
        these = Issuance.id.in_([row.id for row in further])

        if withdrawals.pass_on(connection, gate.tenant, these):
            rows = _read(connection, gate.tenant, lease, now)

        for row in rows:
            if row.cycle > 1 and not row.attempts and not row.withdrawn:
                _look_back(connection, row, now)

        rows = _read(connection, gate.tenant, lease, now)

    # After a restore each may have been issued as what it was: that is looked up first.
    if not gate.restored and any(_is_of_another(row) for row in rows):
        admin.follow_mapping(
            connection,
            *owns(gate.tenant, lease),
            Issuance.id.in_([row.id for row in rows if _is_of_another(row)]),
        )
        rows = _read(connection, gate.tenant, lease, now)

    return rows


def _read(
    connection: sa.Connection, tenant: str, lease: str, now: dt.datetime
) -> list[Row]:
    found = connection.execute(
        sa.select(
            *_COLUMNS,
            sa.func.coalesce(Issuance.unsettled_until > now, sa.false()).label(
                "unsettled"
            ),
            Issuance.withdrawn_at.is_not(None).label("withdrawn"),
            Mapping.template_id.label("mapped_to"),
            Mapping.again,
            # A template that we do not know may allow them.
            sa.func.coalesce(Template.allows_duplicates, sa.true()).label(
                "allows_duplicates"
            ),
        )
        .outerjoin(Mapping, IS_MAPPED)
        .outerjoin(
            Template,
            sa.and_(
                Template.tenant == Issuance.tenant, Template.id == Issuance.template_id
            ),
        )
        .where(is_of(tenant), Issuance.lease == lease)
        .order_by(Issuance.bulk, Issuance.id)
    )
    return [Row(**row._mapping) for row in found]


def _look_back(connection: sa.Connection, row: Row, now: dt.datetime) -> None:
    """See what has become of the badges before a further one: which of them it
    replaces, and whether it can be issued besides.
    """
    is_renewal = row.renewal and row.replaces is None
    is_besides = (
        row.again == EACH and row.action == "issue" and not row.allows_duplicates
    )

    if not is_renewal and not is_besides:
        return

    this = (Issuance.id == row.id, *owns(row.tenant, row.lease))
    earlier = connection.execute(
        sa.select(
            Issuance.state,
            Issuance.badge_state,
            Issuance.badge_id,
            Issuance.action,
            Issuance.due_at,
        )
        .where(*same_course(Issuance, row), Issuance.cycle < row.cycle)
        .order_by(Issuance.cycle.desc())
    ).all()
    stands = None

    for each in earlier:
        if each.state != "issued" and each.action is not None:
            # That has to be known first.
            due_at = max(each.due_at or now, now) + BEFORE_IT
            worker.requeue(
                connection, due_at, *this, outcome_unknown=row.outcome_unknown
            )
            return

        if each.state == "issued" and each.badge_state not in ("rejected", "revoked"):
            stands = each.badge_id
            break

    if is_renewal:
        worker.aim(connection, *this, replaces=stands)
    elif stands:
        worker.hold_back(connection, *this)


BEFORE_IT = dt.timedelta(minutes=1)
"""How long a further badge waits after the one before it is due."""


def _is_of_another(row: Row) -> bool:
    """Whether the course was mapped to another template since. What was perhaps issued
    is looked up as that first.
    """
    if not row.is_as_mapped and row.action != "check":
        return False

    return row.mapped_to not in (None, row.template_id) and not row.outcome_unknown


@in_transaction
def follow_mapping(connection: sa.Connection, row: Row) -> None:
    """Give back a row that was not issued as what it was, as what its course is mapped
    to now: it is due at once.
    """
    this = (Issuance.id == row.id, Issuance.tenant == row.tenant)
    given_back = worker.requeue(
        connection,
        clock.now(connection),
        *this,
        Issuance.lease == row.lease,
        outcome_unknown=False,
    )

    if given_back:
        admin.follow_mapping(connection, *this)


@in_transaction
def put_off(connection: sa.Connection, row: Row) -> None:
    """Give back a row that cannot be sent as it is, and that may have been issued
    unseen: it is looked up again when Credly's lists have had their time.
    """
    worker.requeue(
        connection,
        sa.func.coalesce(Issuance.unsettled_until, clock.now(connection)),
        Issuance.id == row.id,
        *owns(row.tenant, row.lease),
        outcome_unknown=row.outcome_unknown,
    )


def _write_down_crashes(
    connection: sa.Connection, tenant: str, lease: str, now: dt.datetime
) -> None:
    """End the attempts of workers that died over rows that were now taken over.

    They do not use up the retry: the badge is looked up first, and where it is not
    there, nothing has reached Credly.
    """
    dead = connection.scalars(
        sa.select(Attempt.issuance_id)
        .join(Issuance, Issuance.id == Attempt.issuance_id)
        .where(
            is_of(tenant),
            Issuance.lease == lease,
            Attempt.finished_at.is_(None),
        )
    ).all()

    if dead:
        transitions.end_attempts(connection, tenant, dead, now, DIED)
        worker.uncount_attempts(connection, tenant, dead)


@in_transaction
def begin(
    connection: sa.Connection,
    rows: cabc.Sequence[Row],
    gate: gates.Gate,
    *,
    lease_seconds: float,
) -> list[Row]:
    """Write down the intent to send a request for each of the rows, and renew their
    leases.

    A crash after this is an attempt whose outcome is not known.

    :return: The rows for which the request may be sent: the lease still held, the
        gate open, the completion not withdrawn, the course mapped to just this
        template.
    """
    now = clock.now(connection)
    # Credly takes no time that is far in its future: the earlier clock.
    at_most = min(now, dt.datetime.now(dt.UTC))
    until = now + dt.timedelta(seconds=lease_seconds)
    begun: list[Row] = []

    # As it was read: where the answer to this commit is lost and it is done once more,
    # a request is not counted twice. The row is given back and taken again.
    for attempts in {row.attempts for row in rows}:
        begun += _renew(
            connection,
            [row for row in rows if row.attempts == attempts],
            until,
            Issuance.attempts == attempts,
            gates.is_open(gate.tenant, gate.generation, now),
            sa.or_(Issuance.action == "revoke", Issuance.withdrawn_at.is_(None)),
            sa.or_(
                Issuance.action == "revoke",
                sa.and_(Issuance.action == "replace", Issuance.renewal.is_(False)),
                sa.exists().where(
                    IS_MAPPED, Mapping.template_id == Issuance.template_id
                ),
            ),
            begin=at_most,
        )

    if begun:
        connection.execute(
            sa.insert(Attempt),
            [
                {
                    "tenant": row.tenant,
                    "issuance_id": row.id,
                    "action": row.action,
                    "lease": row.lease,
                    "started_at": now,
                }
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
    gate: gates.Gate,
    *,
    lease_seconds: float,
) -> list[Row]:
    """Renew the leases of rows that are to be looked up.

    :return: Those for which Credly may be asked: the lease still held, the gate open.
    """
    now = clock.now(connection)
    until = now + dt.timedelta(seconds=lease_seconds)
    return _renew(
        connection, rows, until, gates.is_open(gate.tenant, gate.generation, now)
    )


def _renew(
    connection: sa.Connection,
    rows: cabc.Sequence[Row],
    until: dt.datetime,
    *where: sa.ColumnElement[bool],
    begin: dt.datetime | None = None,
) -> list[Row]:
    renewed: list[Row] = []

    for (tenant, lease), alike in _by_lease(rows).items():
        changed = worker.renew(
            connection,
            until,
            Issuance.id.in_([row.id for row in alike]),
            *owns(tenant, lease),
            *where,
            begin=begin,
        )

        if changed == len(alike):
            renewed += alike
        elif changed:
            these = sa.select(Issuance.id).where(
                *owns(tenant, lease), Issuance.due_at == until
            )
            ids = set(connection.scalars(these))
            renewed += [row for row in alike if row.id in ids]

    return renewed


def _by_lease(rows: cabc.Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    found: dict[tuple[str, str], list[Row]] = {}

    for row in rows:
        found.setdefault((row.tenant, row.lease), []).append(row)

    return found


@in_transaction
def update_member(connection: sa.Connection, row: Row) -> None:
    """Save the member's address, names and other details as they are now."""
    worker.name_member(
        connection,
        Issuance.id == row.id,
        *owns(row.tenant, row.lease),
        email=row.email,
        first_name=row.first_name,
        last_name=row.last_name,
        extras=row.extras,
    )


@in_transaction
def release(connection: sa.Connection, rows: cabc.Sequence[Row]) -> None:
    """Give back rows for which nothing was sent, with what is known of them: they are
    due at once.
    """
    if not rows:
        return

    now = clock.now(connection)

    for unknown in (False, True):
        these = [row for row in rows if row.outcome_unknown == unknown]

        for (tenant, lease), alike in _by_lease(these).items():
            worker.requeue(
                connection,
                now,
                Issuance.id.in_([row.id for row in alike]),
                *owns(tenant, lease),
                outcome_unknown=unknown,
            )


def badges_of_others(
    engine: sa.Engine, row: Row, ids: cabc.Collection[str]
) -> frozenset[str]:
    """Get those of some badges, by Credly's ids, that another row has: also one of
    another community, which may have the same organization.
    """
    with hide_parameters(), engine.connect() as connection:
        found = connection.scalars(
            sa.select(Issuance.badge_id).where(
                Issuance.badge_id.in_(ids),
                sa.not_(sa.and_(Issuance.id == row.id, Issuance.tenant == row.tenant)),
            )
        )
        return frozenset(id_ for id_ in found if id_)
