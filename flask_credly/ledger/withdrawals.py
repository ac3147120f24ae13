"""Withdrawn completions: what becomes of their badges, and who decides where many are
withdrawn at once.

In the host's transaction one statement writes down what was withdrawn. Where there is
no completion yet, a further one writes a row that keeps it from being issued. Badges
that were issued are then revoked by a worker, a few in an hour; of more, a person
decides.
"""

from __future__ import annotations

import datetime as dt
import functools
import typing as t

import sqlalchemy as sa

from ..catalog import Withdrawal
from ..models import Account
from ..models import Issuance
from ..models import Mapping
from ..models import Template
from ..options import Options
from ..options import SILENT
from ..options import TELL
from . import audit
from . import clock
from . import gates
from .conditions import AWAITS_APPROVAL
from .conditions import AWAITS_RELEASE
from .conditions import Condition
from .conditions import EARLIER
from .conditions import has_later
from .conditions import is_known_withdrawal
from .conditions import IS_MAPPED
from .conditions import is_of
from .conditions import KEY
from .conditions import LATER
from .conditions import ROWS
from .conditions import same_course
from .conditions import WITHDRAWN_AS_EARLIER
from .insert import of_mapping
from .issuances import is_ours
from .paging import fetch
from .paging import Page
from .paging import Session
from .transaction import in_transaction
from .transitions import admin
from .transitions import by_ids
from .transitions import host

MOST = 25
"""How many badges are revoked in an hour without a person, in one community."""


def withdraw(connection: sa.Connection, withdrawal: Withdrawal) -> bool:
    """Write down that a completion was withdrawn, in a transaction of the caller's, by
    a constant number of statements.

    :return: Whether that has changed anything.
    """
    name = connection.dialect.name
    now: t.Any = clock.server_now(name)
    changed = functools.partial(
        host.withdraw,
        connection,
        at=withdrawal.withdrawn_at,
        now=sa.literal(dt.datetime.now(dt.UTC), Issuance.settled_at.type)
        if now is None
        else now,
    )
    tenant = withdrawal.tenant
    of_completion = (
        is_ours(tenant),
        Issuance.member_id == withdrawal.member_id,
        Issuance.kind == withdrawal.kind,
        Issuance.course_id == withdrawal.course_id,
    )
    these = (
        *of_completion,
        _IS_LAST,
        sa.not_(is_known_withdrawal(withdrawal.withdrawn_at)),
    )

    if name not in ("mysql", "mariadb"):
        # The last for a completion that another transaction has recorded meanwhile.
        return bool(
            changed(*these, tell=_TELL)
            or host.note_withdrawn(
                connection, _to_note(withdrawal, name, changed.keywords)
            )
            or changed(*these, tell=_TELL)
        )

    # What an UPDATE reads of other rows it would lock until the host's commit.
    rows = connection.execute(
        sa.select(Issuance.id, Mapping.options)
        .outerjoin(Mapping, IS_MAPPED)
        .where(*these, Issuance.completed_at <= withdrawal.withdrawn_at)
    ).all()

    if rows:
        ids = [row.id for row in rows]
        tell = _tell_by(rows[0].options)
        return bool(changed(Issuance.id.in_(ids), is_of(tenant), tell=tell))

    noted = connection.execute(
        _to_note(withdrawal, name, changed.keywords)
    ).one_or_none()

    if noted is None:
        return False

    # Selected as a literal, a time would come back as a text there.
    times = dict.fromkeys(("completed_at", "withdrawn_at"), withdrawal.withdrawn_at)
    host.note_withdrawn(connection, dict(noted._mapping) | times)
    # For a completion that another transaction has recorded meanwhile.
    changed(*of_completion, tell=_tell_by(noted.options))
    return True


def _to_note(
    withdrawal: Withdrawal, dialect: str, times: dict[str, t.Any]
) -> sa.Select[t.Any]:
    """Select the row that waits for a completion, where the course is mapped and
    nothing of the member's is known of it.
    """
    key = {
        name: sa.literal(getattr(withdrawal, name), getattr(Issuance, name).type)
        for name in KEY
    }
    row = {
        **key,
        "organization_id": Account.organization_id,
        "template_id": Template.id,
        "badge_name": Template.name,
        "options": Mapping.options,
        "recorded_at": times["now"],
        "settled_at": times["now"],
    }

    if dialect not in ("mysql", "mariadb"):
        at = sa.literal(withdrawal.withdrawn_at, Issuance.withdrawn_at.type)
        row |= {"completed_at": at, "withdrawn_at": at}

    columns = [value.label(name) for name, value in row.items()]
    is_known = sa.exists().where(
        *(ROWS.c[name] == value for name, value in key.items()),
        ROWS.c.organization_id == Account.organization_id,
    )
    return of_mapping(*columns).where(
        Mapping.tenant == key["tenant"],
        Mapping.kind == key["kind"],
        Mapping.course_id == key["course_id"],
        ~is_known,
    )


def _tell_by(options: t.Any) -> sa.ColumnElement[t.Any]:
    tells = {TELL: sa.true(), SILENT: sa.false()}
    return tells.get(Options.read(options).withdrawn, sa.null())


_IS_LAST = sa.not_(
    has_later(
        sa.or_(
            LATER.withdrawn_at.is_not(None),
            sa.not_(
                sa.or_(
                    LATER.state == "cancelled",
                    # A correction is of the same completion as what it replaces.
                    sa.and_(
                        LATER.replaces.is_not(None),
                        LATER.renewal.is_(False),
                        LATER.state.in_(("none", "failed")),
                    ),
                )
            ),
        )
    )
)
"""Whether a row is of the member's last completion of the course."""

_CHOSEN = Mapping.options["withdrawn"].as_string()

_TELL = (
    sa.select(sa.case((_CHOSEN == TELL, sa.true()), (_CHOSEN == SILENT, sa.false())))
    .where(IS_MAPPED)
    .correlate(Issuance)
    .scalar_subquery()
)
"""Whether a mapping has the member told. Null: it has no badge revoked, or there is
none.
"""


@in_transaction
def release(connection: sa.Connection, tenant: str) -> int:
    """Let the badges of withdrawn completions be revoked, if these are few. Where they
    are more than :data:`MOST` in an hour, or others wait for a person, these wait too.

    :return: How many wait for a person from now on.
    """
    # It counts for all workers.
    if not gates.lock(connection, tenant):
        return 0

    query = (
        sa.select(Issuance.id)
        .where(is_ours(tenant), AWAITS_RELEASE)
        .order_by(Issuance.id)
        .limit(MOST + 1)
    )
    found = connection.scalars(query).all()

    if found and pass_on(connection, tenant, EARLIER.c.id.in_(found)):
        found = connection.scalars(query).all()

    if not found:
        return 0

    if _any_waits(connection, tenant) or not gates.count_withdrawals(
        connection, tenant, len(found), most=MOST
    ):
        return sum(
            admin.hold_withdrawn(connection, *these)
            for these in by_ids(connection, is_ours(tenant), AWAITS_RELEASE)
        )

    admin.release_withdrawn(
        connection, clock.now(connection), Issuance.id.in_(found), is_of(tenant)
    )

    # Each on its own: a badge's page shows what was done to it.
    for id_ in found:
        audit.note(connection, tenant, audit.WORKER, "revoke", str(id_))

    return 0


def pass_on(connection: sa.Connection, tenant: str, *these: Condition) -> bool:
    """Let withdrawals concern further completions that were recorded at the same
    moment, where neither transaction saw the other: the earlier badge is kept if
    nobody has begun to revoke it.

    :param these: Which rows, or which of the :data:`.EARLIER` ones that were marked.
    :return: Whether any was passed on.
    """
    twin = ROWS.alias().c
    is_issued_again = sa.and_(
        ROWS.c.completion_id.is_(None),
        sa.exists().where(
            *same_course(twin, ROWS.c),
            twin.cycle < ROWS.c.cycle,
            twin.completed_at == ROWS.c.completed_at,
            twin.badge_id.is_not(None),
        ),
    )
    is_correction = sa.and_(ROWS.c.replaces.is_not(None), ROWS.c.renewal.is_(False))
    found = connection.execute(
        sa.select(
            ROWS.c.id,
            EARLIER.c.id.label("earlier_id"),
            EARLIER.c.withdrawn_at,
            EARLIER.c.tell,
        )
        .join(EARLIER, WITHDRAWN_AS_EARLIER)
        .where(
            is_of(tenant),
            is_of(tenant, EARLIER),
            ROWS.c.withdrawn_at.is_(None),
            ROWS.c.state.in_(("none", "failed", "issued")),
            # An admin knew of the withdrawal.
            sa.not_(is_issued_again),
            sa.not_(is_correction),
            *these,
        )
        .order_by(ROWS.c.cycle.desc())
    ).all()
    passed_on: set[int] = set()

    if not found:
        return False

    now = sa.literal(clock.now(connection), Issuance.settled_at.type)

    for row in found:
        if row.earlier_id not in passed_on and host.withdraw(
            connection,
            Issuance.id == row.id,
            is_of(tenant),
            at=row.withdrawn_at,
            now=now,
            tell={True: sa.true(), False: sa.false(), None: sa.null()}[row.tell],
        ):
            passed_on.add(row.earlier_id)

    for id_ in passed_on:
        admin.pass_withdrawal_on(connection, Issuance.id == id_, is_of(tenant))

    return bool(passed_on)


def _any_waits(connection: sa.Connection, tenant: str) -> bool:
    query = sa.select(Issuance.id).where(is_ours(tenant), AWAITS_APPROVAL)
    return connection.execute(query.limit(1)).first() is not None


def count(session: Session | sa.Connection, tenant: str) -> int:
    """Count the badges of withdrawn completions about which a person decides."""
    query = sa.select(sa.func.count()).select_from(Issuance)
    return session.scalar(query.where(is_ours(tenant), AWAITS_APPROVAL)) or 0


def page(
    session: Session,
    tenant: str,
    *,
    before: int | None = None,
    after: int | None = None,
) -> Page[Issuance]:
    """Get some of the badges of withdrawn completions about which a person decides."""
    query = sa.select(Issuance).where(is_ours(tenant), AWAITS_APPROVAL)
    return fetch(session, query, Issuance.id, before=before, after=after)


@in_transaction
def decide(
    connection: sa.Connection,
    tenant: str,
    number: int,
    *,
    revoke: bool,
    by: str | None = None,
) -> int | None:
    """Have the badges revoked that wait for a person, or leave them as they are.

    :param number: How many that person has seen.
    :param by: Who does it, for :func:`.audit.note`.
    :return: How many. ``None``: none or others wait by now, and nothing was done.
    """
    if not gates.lock(connection, tenant):
        return None

    waiting = count(connection, tenant)

    if not waiting or waiting != number:
        return None

    now = clock.now(connection)

    for these in by_ids(connection, is_ours(tenant), AWAITS_APPROVAL):
        if revoke:
            admin.release_withdrawn(connection, now, *these)
        else:
            admin.keep_withdrawn(connection, *these)

    action = "revoke withdrawn" if revoke else "keep withdrawn"
    audit.note(connection, tenant, by, action, str(number))
    return number
