"""What an admin has done about a badge that was issued: revoked, corrected, issued
again.

Each is written down here and done by a worker. A corrected or repeated badge is a row
of its own, the member's next for the course, so that what was issued before stays to be
seen.
"""

from __future__ import annotations

import collections.abc as cabc
import datetime as dt
import functools
import re
import typing as t

import sqlalchemy as sa

from ..catalog import clean
from ..models import Issuance
from ..models import Mapping
from ..models import Template
from . import audit
from . import clock
from . import gates
from . import transitions
from .conditions import IS_MAPPED
from .conditions import is_of
from .conditions import NEVER_SENT
from .conditions import SAME_COURSE
from .conditions import same_course
from .issuances import HAS_LATER
from .issuances import IS_BEING_REPLACED
from .issuances import is_connected
from .issuances import is_ours
from .paging import Session
from .transaction import in_transaction
from .transitions import admin

REASON_LENGTH = (3, 500)
"""Characters that the reason of a revocation has."""

Problem = t.Literal["short", "long", "address"]

Possible = t.Literal["revoke", "drop", "correct", "issue again"]
"""``drop``: it was not sent yet, and can be taken back."""


def problem_with(reason: str) -> Problem | None:
    """Say what is wrong with the reason of a revocation: the member may read it, and
    Credly keeps it.
    """
    least, most = REASON_LENGTH
    # As it is sent: what nobody can see is no reason.
    text = clean(reason, 10_000)

    if len(text) < least:
        return "short"

    if len(text) > most:
        return "long"

    return "address" if re.search(r"\S@\S+\.\S", text) else None


@in_transaction
def revoke(
    connection: sa.Connection,
    tenant: str,
    row_id: int,
    *,
    reason: str,
    tell: bool,
    by: str | None = None,
) -> t.Literal["revoke", "drop"] | None:
    """Have a badge revoked, or take it back where it was not sent yet.

    :param reason: Why. Credly keeps it, and the member may read it.
    :param tell: Whether Credly is to write to the member.
    :param by: Who does it, for :func:`.audit.note`.
    :return: What is done. ``None``: there is no badge to revoke, or something is being
        done about it already.
    :raises ValueError: If there is a :func:`problem_with` the reason.
    """
    if problem := problem_with(reason):
        raise ValueError(f"The revocation reason is not valid: {problem}.")

    # First, so that nobody has it corrected at this moment.
    if not gates.lock(connection, tenant):
        return None

    now = clock.now(connection)
    this = (Issuance.id == row_id, is_ours(tenant))
    done: t.Literal["revoke", "drop"] | None = None

    if _last(connection, tenant, row_id, "revoke"):
        admin.revoke(
            connection, *this, reason=clean(reason, 500), tell=tell, due_at=now
        )
        done = "revoke"
    elif transitions.end(connection, "cancelled", now, *this, CAN_DROP, reason=DROPPED):
        done = "drop"

    if done:
        audit.note(connection, tenant, by, "revoke", str(row_id))

    return done


DROPPED: t.Literal["dropped"] = "dropped"

CAN_DROP = sa.and_(
    NEVER_SENT,
    Issuance.state == "none",
    Issuance.lease.is_(None),
    Issuance.erased_at.is_(None),
)
"""It waits, and Credly was never asked for it."""


P = t.ParamSpec("P")
T = t.TypeVar("T")


def _unless_overtaken(work: cabc.Callable[P, T]) -> cabc.Callable[P, T]:
    """Do it once more where the member's next row was written at the same moment, as
    by a completion that the host has just committed: then that is seen.
    """

    @functools.wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return work(*args, **kwargs)
        except sa.exc.IntegrityError:
            return work(*args, **kwargs)

    return run


@_unless_overtaken
@in_transaction
def correct(
    connection: sa.Connection,
    tenant: str,
    row_id: int,
    *,
    first_name: str,
    last_name: str,
    completed_at: dt.datetime,
    template_id: str,
    by: str | None = None,
) -> int | None:
    """Have a badge replaced by one with other names, another date, or of another badge
    template. The address stays.

    :param completed_at: Aware. The time that goes onto the badge.
    :param by: Who does it, for :func:`.audit.note`.
    :return: The id of the new badge's row. ``None``: the badge cannot be replaced, or
        the template is not to be had.
    """
    # First, so that no other does the same at this moment.
    if not gates.lock(connection, tenant):
        return None

    template = connection.execute(
        sa.select(Template.id, Template.name).where(
            Template.tenant == tenant, Template.id == template_id, Template.active
        )
    ).one_or_none()
    old = _last(connection, tenant, row_id, "correct")

    if old is None or template is None:
        return None

    return _open_cycle(
        connection,
        old,
        by,
        "correct",
        action="replace",
        replaces=old.badge_id,
        template_id=template.id,
        badge_name=template.name,
        email=old.email,
        first_name=first_name,
        last_name=last_name,
        completed_at=completed_at,
    )


@_unless_overtaken
@in_transaction
def issue_again(
    connection: sa.Connection,
    tenant: str,
    row_id: int,
    *,
    email: str,
    first_name: str,
    last_name: str,
    reason: str | None = None,
    tell: bool | None = None,
    by: str | None = None,
) -> int | None:
    """Have a badge issued once more, as what its course is mapped to now. One that is
    in force is revoked first: only when that is done, the new one is issued.

    :param reason: Why it is revoked, where it is in force.
    :param tell: Whether Credly is to write to the member of that.
    :param by: Who does it, for :func:`.audit.note`.
    :return: The id of the new badge's row. ``None``: that cannot be done.
    :raises ValueError: If there is a :func:`problem_with` the reason, or the badge is
        in force and no reason is given.
    """
    if not gates.lock(connection, tenant):
        return None

    old = _last(connection, tenant, row_id, "issue again")
    mapped = (
        old
        and connection.execute(
            sa.select(Template.id, Template.name, Mapping.options)
            .select_from(Mapping)
            .join(Mapping.template)
            .where(
                Mapping.tenant == tenant,
                Mapping.kind == old.kind,
                Mapping.course_id == old.course_id,
            )
        ).one_or_none()
    )

    if old is None or not mapped:
        return None

    now = clock.now(connection)
    waits: dict[str, t.Any] = {"due_at": now}

    if is_in_force(old):
        if reason is None or tell is None or problem_with(reason):
            raise ValueError("A reason is required to revoke a valid badge.")

        admin.revoke(
            connection,
            Issuance.id == row_id,
            Issuance.tenant == tenant,
            reason=clean(reason, 500),
            tell=tell,
            due_at=now,
        )
        waits = {"due_at": None, "reason": "awaits revocation"}

    return _open_cycle(
        connection,
        old,
        by,
        "issue again",
        template_id=mapped.id,
        badge_name=mapped.name,
        options=mapped.options,
        email=email,
        first_name=first_name,
        last_name=last_name,
        completed_at=old.completed_at,
        **waits,
    )


def is_in_force(row: t.Any) -> bool:
    """Whether a member may hold the badge of a row, as far as is known."""
    return row.state == "issued" and row.badge_state not in ("rejected", "revoked")


def what_may_be_done(
    session: Session, tenant: str, ids: cabc.Collection[int]
) -> dict[int, frozenset[Possible]]:
    """Say what may be done about some rows now. Without those about which nothing
    can be done.
    """
    rows = session.execute(
        sa.select(*_TO_JUDGE).where(
            Issuance.id.in_(ids), is_of(tenant), is_connected(tenant)
        )
    )
    found = {row.id: frozenset(_possible(row)) for row in rows}
    return {id_: each for id_, each in found.items() if each}


_TO_JUDGE = (
    Issuance.id,
    Issuance.tenant,
    Issuance.member_id,
    Issuance.kind,
    Issuance.course_id,
    Issuance.organization_id,
    Issuance.state,
    Issuance.action,
    Issuance.badge_id,
    Issuance.badge_state,
    Issuance.email,
    Issuance.completed_at,
    Issuance.options,
    Issuance.extras,
    Issuance.test,
    Issuance.erased_at,
    Issuance.cycle,
    HAS_LATER.label("has_later"),
    IS_BEING_REPLACED.label("is_being_replaced"),
    sa.exists().where(IS_MAPPED).label("mapped"),
    CAN_DROP.label("can_drop"),
)


def _possible(row: t.Any) -> cabc.Iterator[Possible]:
    if row.can_drop:
        yield "drop"

    if row.action is not None or row.erased_at is not None:
        return

    has_badge = row.state == "issued" and row.badge_id is not None

    # What takes its place would stay in force.
    if has_badge and not row.is_being_replaced:
        yield "revoke"

    # A test is sent anew by its own button, and is nobody's.
    if row.has_later or row.test:
        return

    if has_badge and is_in_force(row):
        yield "correct"

    if row.mapped and (has_badge or row.state == "revoked"):
        yield "issue again"


def _last(
    connection: sa.Connection, tenant: str, row_id: int, wanted: Possible
) -> t.Any | None:
    """Get a row, if that may be done about it."""
    row = connection.execute(
        sa.select(*_TO_JUDGE)
        .where(Issuance.id == row_id, is_ours(tenant))
        .with_for_update()
    ).one_or_none()
    return row if row and wanted in _possible(row) else None


def _open_cycle(
    connection: sa.Connection, old: t.Any, by: str | None, noted: str, **values: t.Any
) -> int:
    now = clock.now(connection)
    cycle = connection.scalar(
        sa.select(sa.func.max(Issuance.cycle)).where(*same_course(Issuance, old))
    )
    kept = (*SAME_COURSE, "options", "extras")
    row_id = admin.open_cycle(
        connection,
        **{
            **{name: getattr(old, name) for name in kept},
            "due_at": now,
            "recorded_at": now,
            "cycle": (cycle or 0) + 1,
            **values,
        },
    )
    audit.note(connection, old.tenant, by, noted, f"{old.id} → {row_id}")
    return row_id
