"""The ledger as the admin reads it: every badge that was asked for, and how it went."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import secrets
import typing as t

import sqlalchemy as sa

from ..models import Account
from ..models import Attempt
from ..models import Issuance
from ..models import Mapping
from ..models import Template
from . import audit
from . import clock
from .conditions import Condition
from .conditions import EARLIER
from .conditions import has_later
from .conditions import IS_MAPPED
from .conditions import is_of
from .conditions import LATER
from .conditions import ROWS
from .conditions import WITHDRAWN_AS_EARLIER
from .insert import of_mapping
from .paging import fetch
from .paging import fetch_all
from .paging import Page
from .paging import Session
from .paging import SIZE
from .paging import up_to_newest
from .transaction import in_transaction
from .transitions import admin

Status = t.Literal[
    "waiting", "issued", "held", "failed", "skipped", "revoked", "replaced"
]

STATES: dict[Status, str] = {
    "waiting": "none",
    "issued": "issued",
    "held": "held",
    "failed": "failed",
    "skipped": "cancelled",
    "revoked": "revoked",
    "replaced": "replaced",
}


Became = t.Literal["pending", "accepted", "rejected", "revoked", "expired", "missing"]
"""What has become of a badge: see :func:`became`."""


def became(row: Issuance) -> Became | None:
    """Say what has become of a badge, as far as Credly said so. Nothing any more, once
    another one has taken its place.
    """
    if row.state == "replaced":
        return None

    expires_at = row.expires_at

    if row.missing_at is not None and row.badge_state != "revoked":
        return "missing"

    if (
        row.badge_state in ("pending", "accepted")
        and expires_at is not None
        and expires_at <= dt.datetime.now(dt.UTC)
    ):
        return "expired"

    return t.cast("Became | None", row.badge_state)


def has_become(wanted: Became) -> sa.ColumnElement[bool]:
    """The same as a condition: see :func:`became`."""
    return sa.and_(Issuance.state != "replaced", _is_at_credly(wanted))


def _is_at_credly(wanted: Became) -> sa.ColumnElement[bool]:
    has_expired = sa.func.coalesce(
        Issuance.expires_at <= dt.datetime.now(dt.UTC), sa.false()
    )

    if wanted == "revoked":
        return Issuance.badge_state == wanted

    if wanted == "missing":
        return sa.and_(
            Issuance.missing_at.is_not(None), Issuance.badge_state != "revoked"
        )

    is_there = Issuance.missing_at.is_(None)

    if wanted == "expired":
        lives = Issuance.badge_state.in_(("pending", "accepted"))
        return sa.and_(is_there, lives, has_expired)

    if wanted in ("pending", "accepted"):
        return sa.and_(is_there, Issuance.badge_state == wanted, sa.not_(has_expired))

    return sa.and_(is_there, Issuance.badge_state == wanted)


@dataclasses.dataclass(frozen=True)
class Filter:
    """Which rows to show. Empty: all.

    :param became: What has become of the badge.
    :param kind: The kind of ``course_id``.
    :param text: A member's id, or how the e-mail address or one of the names begins.
    :param whole_address: The e-mail address is found by the whole of it only: whoever
        must not see it could guess it letter by letter.
    """

    status: Status | None = None
    kind: str = ""
    course_id: str = ""
    text: str = ""
    whole_address: bool = False
    became: Became | None = None

    def select(self, tenant: str) -> sa.Select[Issuance]:
        """Put it into a query."""
        query = sa.select(Issuance).where(Issuance.tenant == tenant)
        ids = sa.select(Issuance.id).where(Issuance.tenant == tenant)

        if self.status is not None:
            state = STATES[self.status]
            query = query.where(
                Issuance.state == state,
                up_to_newest(ids, Issuance.state, state, Issuance.id),
            )

        if self.became is not None:
            query = query.where(has_become(self.became))

        if self.became in ("pending", "accepted", "rejected", "revoked"):
            query = query.where(
                up_to_newest(ids, Issuance.badge_state, self.became, Issuance.id)
            )

        if self.course_id:
            query = query.where(
                Issuance.kind == self.kind, Issuance.course_id == self.course_id
            )

        if self.text:
            query = query.where(sa.or_(*_names(self.text, self.whole_address)))

        return query


def _names(text: str, whole_address: bool) -> list[sa.ColumnElement[bool]]:
    """What a member that is searched for may be named by."""

    def begins(column: t.Any, text: str) -> sa.ColumnElement[bool]:
        found: sa.ColumnElement[bool] = column.istartswith(text, autoescape=True)
        return found

    words = text.split()
    found = [
        Issuance.member_id == text,
        begins(Issuance.first_name, text),
        begins(Issuance.last_name, text),
        sa.func.lower(Issuance.email) == text.lower()
        if whole_address
        else begins(Issuance.email, text),
    ]

    for number in range(1, len(words)):
        first, last = " ".join(words[:number]), " ".join(words[number:])
        whole = (begins(Issuance.first_name, first), begins(Issuance.last_name, last))
        found.append(sa.and_(*whole))

    return found


def page(
    session: Session,
    tenant: str,
    wanted: Filter,
    *,
    before: int | None = None,
    after: int | None = None,
    size: int = SIZE,
) -> Page[Issuance]:
    """Get one page."""
    query = wanted.select(tenant)
    return fetch(session, query, Issuance.id, before=before, after=after, size=size)


def get(session: Session, tenant: str, row_id: int) -> Issuance | None:
    """Get one row."""
    this = (Issuance.id == row_id, Issuance.tenant == tenant)
    return session.scalars(sa.select(Issuance).where(*this)).one_or_none()


def cycles(
    session: Session, tenant: str, row: Issuance, at_most: int
) -> list[Issuance]:
    """Get the badges of the same member for the same course, newest first: the row
    itself is one of them, unless there are more than that.
    """
    same = ("member_id", "kind", "course_id", "organization_id")
    these = [getattr(Issuance, name) == getattr(row, name) for name in same]
    return list(
        session.scalars(
            sa.select(Issuance)
            .where(Issuance.tenant == tenant, *these)
            .order_by(Issuance.cycle.desc())
            .limit(at_most)
        )
    )


IS_BEING_REPLACED = sa.and_(
    Issuance.state == "issued",
    has_later(LATER.action == "replace", LATER.replaces == Issuance.badge_id),
)
"""Another badge is being issued in the place of this one."""


def being_replaced(
    session: Session, tenant: str, ids: cabc.Collection[int]
) -> set[int]:
    """Get those of some rows of which that is so."""
    these = (Issuance.id.in_(ids), is_of(tenant), IS_BEING_REPLACED)
    return set(session.scalars(sa.select(Issuance.id).where(*these)))


def requests(session: Session, tenant: str, row_id: int, at_most: int) -> list[Attempt]:
    """Get the requests that were made for a badge, newest first."""
    return list(
        session.scalars(
            sa.select(Attempt)
            .where(Attempt.tenant == tenant, Attempt.issuance_id == row_id)
            .order_by(Attempt.id.desc())
            .limit(at_most)
        )
    )


def solved(session: Session, tenant: str, ids: cabc.Collection[int]) -> set[int]:
    """Get those of some rows whose badge is there by now."""
    found = session.scalars(
        sa.select(Issuance.id).where(
            is_of(tenant),
            Issuance.id.in_(ids),
            # One that was revoked or replaced since was there, too.
            Issuance.state.in_(("issued", "held", "revoked", "replaced")),
        )
    )
    return set(found)


def every(engine: sa.Engine, tenant: str, wanted: Filter) -> cabc.Iterator[Issuance]:
    """Get all rows, for an export."""
    return fetch_all(engine, wanted.select(tenant), Issuance.id)


@dataclasses.dataclass(frozen=True)
class Unaccepted:
    """A badge that a member has neither accepted nor declined yet.

    :param issued_at: When it was issued or found at Credly.
    :param accept_url: Where the member accepts it. ``None`` if Credly did not say.
    """

    issuance_id: int
    member_id: str
    course_id: str
    kind: str
    template_id: str
    badge_id: str
    badge_name: str
    issued_at: dt.datetime
    accept_url: str | None


def unaccepted(
    engine: sa.Engine, tenant: str, older_than: dt.timedelta
) -> cabc.Iterator[Unaccepted]:
    """Get the badges that wait to be accepted for so long, the newest first."""
    with engine.connect() as connection:
        now = clock.now(connection)

    query = sa.select(Issuance).where(
        Issuance.tenant == tenant,
        has_become("pending"),
        Issuance.state == "issued",
        Issuance.settled_at <= now - older_than,
        Issuance.test.is_(False),
        Issuance.erased_at.is_(None),
    )

    for row in fetch_all(engine, query, Issuance.id):
        assert row.badge_id is not None and row.settled_at is not None
        yield Unaccepted(
            issuance_id=row.id,
            member_id=row.member_id,
            course_id=row.course_id,
            kind=row.kind,
            template_id=row.template_id,
            badge_id=row.badge_id,
            badge_name=row.badge_name,
            issued_at=row.settled_at,
            accept_url=row.accept_url,
        )


def is_ours(tenant: str) -> sa.ColumnElement[bool]:
    """Whether a row is of the organization that the community is connected to. Another
    one's stay as they are: a new completion has a row of its own.
    """
    return sa.and_(Issuance.tenant == tenant, is_connected(tenant))


def is_connected(tenant: str) -> sa.ColumnElement[bool]:
    """Whether a row is of the organization that the community is connected to."""
    connected = sa.select(Account.organization_id).where(Account.tenant == tenant)
    return Issuance.organization_id == connected.scalar_subquery()


def _can_be_retried(tenant: str) -> sa.ColumnElement[bool]:
    return sa.and_(is_ours(tenant), *_IS_CURRENT)


HAS_LATER = has_later(
    LATER.state != "cancelled",
    # What could not be replaced is as it was.
    sa.not_(sa.and_(LATER.state == "failed", LATER.replaces.is_not(None))),
)
"""Whether the member has a later badge for the same course, or is to have one."""

_IS_CURRENT = (
    sa.exists().where(IS_MAPPED),
    # Of the latter nobody's name is known.
    sa.func.coalesce(Issuance.reason, "").not_in(("not revoked", "withdrawn first")),
    sa.not_(HAS_LATER),
)


_HAS_NOT_BEEN_ISSUED = sa.and_(
    Issuance.state.in_(("failed", "cancelled")), Issuance.erased_at.is_(None)
)
_WAITS_FOR_RETRY = sa.and_(
    sa.or_(
        Issuance.state == "failed",
        sa.and_(Issuance.state == "cancelled", Issuance.reason == "unmapped"),
    ),
    Issuance.erased_at.is_(None),
)


def can_be_retried(
    session: Session, tenant: str, ids: cabc.Collection[int]
) -> set[int]:
    """Get those of some rows that :func:`retry` would take."""
    found = session.scalars(
        sa.select(Issuance.id).where(
            is_of(tenant),
            Issuance.id.in_(ids),
            _HAS_NOT_BEEN_ISSUED,
            is_connected(tenant),
            *_IS_CURRENT,
        )
    )
    return set(found)


def becoming(
    session: Session, tenant: str, ids: cabc.Collection[int]
) -> dict[int, str]:
    """Get the badges that some rows become when their turn comes, by name: those whose
    course was mapped to another one since. See :func:`.claim.claim`.
    """
    found = session.execute(
        sa.select(Issuance.id, Template.name)
        .join(Mapping, IS_MAPPED)
        .join(Mapping.template)
        .where(
            is_of(tenant),
            Issuance.id.in_(ids),
            Issuance.state == "none",
            Issuance.outcome_unknown.is_(False),
            Issuance.template_id != Mapping.template_id,
            # A correction is as the admin says.
            sa.or_(Issuance.replaces.is_(None), Issuance.renewal),
        )
    )
    return {id_: name for id_, name in found}


def retriable(session: Session, tenant: str, at_most: int | None = None) -> int:
    """Count what failed, or was not mapped when its turn came, and can be tried again.

    :param at_most: Where to stop counting. ``None``: at the end.
    """
    rows = sa.select(Issuance.id).where(*to_retry(tenant)).limit(at_most)
    query = sa.select(sa.func.count()).select_from(rows.subquery())
    return session.scalar(query) or 0


def to_retry(tenant: str) -> tuple[Condition, ...]:
    """Find what failed, or was not mapped when its turn came, and can be retried."""
    return (_WAITS_FOR_RETRY, _can_be_retried(tenant))


@in_transaction
def retry(
    connection: sa.Connection, tenant: str, row_id: int, *, by: str | None = None
) -> int:
    """Make a badge due once more that failed or was skipped: see :func:`make_due`.

    :param by: Who does it, for :func:`.audit.note`.
    :return: How many are due: none whose course is not mapped any more.
    """
    these = (Issuance.id == row_id, _HAS_NOT_BEEN_ISSUED, _can_be_retried(tenant))
    due = make_due(connection, *these, now=clock.now(connection))

    if due:
        _forget_withdrawals(connection, tenant, row_id)
        audit.note(connection, tenant, by, "retry", str(row_id))

    return due


def _forget_withdrawals(connection: sa.Connection, tenant: str, row_id: int) -> None:
    """Let withdrawals that earlier badges were marked with not keep a row from being
    issued: whoever retries it knows of them.
    """
    earlier = connection.scalars(
        sa.select(EARLIER.c.id)
        .select_from(ROWS)
        .join(EARLIER, WITHDRAWN_AS_EARLIER)
        .where(ROWS.c.id == row_id, is_of(tenant), is_of(tenant, EARLIER))
    ).all()

    if earlier:
        admin.end_withdrawals(connection, Issuance.id.in_(earlier), is_of(tenant))


def make_due(
    connection: sa.Connection,
    *these: Condition,
    now: dt.datetime,
    bulk: bool = False,
) -> int:
    """Make badges due once more that were not issued, each with its two attempts.

    They become what their course is mapped to now. Where a request was made before,
    Credly is asked first whether the badge is there, so that none is issued twice.

    :param bulk: Whether they give way to completions that come in.
    :return: How many.
    """
    # The worker that Remove took it from may still be at it, or Credly's list lag. What
    # waits for its last look is nobody's.
    is_unsettled = sa.and_(
        Issuance.outcome_unknown,
        Issuance.unsettled_until > now,
        Issuance.due_at.is_(None),
    )
    due_at = sa.case((is_unsettled, Issuance.unsettled_until), else_=now)
    # What was perhaps issued keeps its name: it is looked up by that.
    admin.follow_mapping(
        connection,
        *these,
        Issuance.outcome_unknown.is_(False),
        # What replaces another badge stays what an admin or a completion has made it.
        Issuance.replaces.is_(None),
    )
    return admin.reopen(connection, *these, due_at=due_at, bulk=bulk)


@in_transaction
def add_test(
    connection: sa.Connection,
    tenant: str,
    mapping_id: int,
    *,
    email: str,
    first_name: str,
    last_name: str,
    by: str | None = None,
) -> int | None:
    """Write a row for the badge of a mapping that counts for no member: the admin's own
    try.

    :param by: Who does it, for :func:`.audit.note`.
    :return: The row's id, or ``None`` if the mapping is gone.
    """
    found = connection.execute(
        of_mapping(
            Mapping.kind,
            Mapping.course_id,
            Template.id.label("template_id"),
            Template.name.label("badge_name"),
            Mapping.options,
            Account.organization_id,
        ).where(Mapping.tenant == tenant, Mapping.id == mapping_id)
    ).one_or_none()

    if found is None:
        return None

    now = clock.now(connection)
    row_id = admin.insert_test(
        connection,
        **found._mapping,
        tenant=tenant,
        # Of its own: neither a member's row nor an earlier test is in its way.
        member_id=f"test-{secrets.token_hex(8)}",
        email=email,
        first_name=first_name,
        last_name=last_name,
        completed_at=now,
        recorded_at=now,
        due_at=now,
    )
    audit.note(connection, tenant, by, "send test badge", str(row_id))
    return row_id
