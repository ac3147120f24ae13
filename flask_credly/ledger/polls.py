"""What is to be asked of Credly about badges that were issued, and how far that is."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import typing as t

import sqlalchemy as sa
from sqlalchemy import orm

from ..models import Account
from ..models import BadgeState
from ..models import Issuance
from ..models import ToCheck
from ..models import UTCDateTime
from . import audit
from . import clock
from . import gates
from .transaction import connect
from .transaction import in_transaction
from .transitions import lifecycle
from .transitions.lifecycle import Learned

if t.TYPE_CHECKING:
    from ..credly import Badge

EVERY = dt.timedelta(minutes=15)
"""After which Credly is asked once more, while a badge waits to be accepted."""

WHILE_FRESH = gates.SOON
"""While one of the last days does."""

FRESH = dt.timedelta(days=2)

AT_REST = dt.timedelta(hours=1)
"""While none does: one may still be declined or revoked."""

UNSORTED = dt.timedelta(days=1)
"""Where the list has another order, and the survey says what is new."""

SURVEY_EVERY = dt.timedelta(days=1)
"""After which all badges are read."""

CURSOR_LIFE = dt.timedelta(hours=1)
"""For which Credly is taken to know what it has called next."""

OVERLAP = dt.timedelta(minutes=10)
"""What is read once more of what was read: Credly's list may lag, and clocks differ."""

LEASE = dt.timedelta(minutes=10)
"""For how long a worker has a list, from one page to the next."""

_KNOWN: tuple[BadgeState, ...] = ("pending", "accepted", "rejected", "revoked")


CHECK_EVERY = dt.timedelta(seconds=30)
"""Within which one badge is asked for once."""

SKEW = dt.timedelta(days=1)
"""By which Credly's clock may be behind ours, as far as nothing else is known."""


class Lost(Exception):
    """Another worker has the list by now, or the account is another."""


@dataclasses.dataclass
class Poll:
    """A list of what became of badges, in a worker's hands.

    :param until: When another worker may take it. Tells it from another one's.
    :param page: The page to read next.
    :param known: Up to which change all is known.
    :param newest: The latest change of those that were read.
    :param unsorted: Whether it has another order than it should.
    """

    due_at: t.ClassVar = "poll_due_at"
    anew: t.ClassVar[dict[str, t.Any]] = {"poll_page": None, "poll_newest": None}

    tenant: str
    generation: str
    until: dt.datetime
    page: int
    known: dt.datetime
    newest: dt.datetime | None
    unsorted: bool


@dataclasses.dataclass
class Survey:
    """All badges, in a worker's hands.

    :param until: As in :class:`Poll`.
    :param next: What to ask for. ``None``: the first page.
    :param pages: How many were read.
    """

    due_at: t.ClassVar = "survey_due_at"
    anew: t.ClassVar[dict[str, t.Any]] = {
        "survey_next": None,
        "survey_next_at": None,
        "survey_pages": 0,
    }

    tenant: str
    generation: str
    until: dt.datetime
    next: str | None
    pages: int


@dataclasses.dataclass(frozen=True)
class Became:
    """What has become of a badge.

    :param at: Since when, by Credly's clock.
    """

    issuance_id: int
    member_id: str
    course_id: str
    kind: str
    template_id: str
    badge_id: str
    state: str
    at: dt.datetime | None
    replaced_by: str | None = None


def due_for(engine: sa.Engine) -> list[str]:
    """Get the communities of whose badges Credly is to be asked now, and may be: first
    the one that has waited longest.
    """
    with connect(engine) as connection:
        now = clock.now(connection)
        is_due = sa.or_(
            Account.poll_due_at <= now,
            Account.survey_due_at <= now,
            Account.tenant.in_(sa.select(ToCheck.tenant).where(ToCheck.due_at <= now)),
        )
        query = sa.select(Account.tenant).where(
            is_due, *gates.may_issue(), gates.is_unpaused(now)
        )
        # What an admin waits for has no time, or a later one. A survey has all night.
        is_later = sa.case((Account.poll_due_at <= now, 1), else_=0)
        return list(
            connection.scalars(
                query.order_by(is_later, Account.poll_due_at, Account.tenant)
            )
        )


@in_transaction
def soon(connection: sa.Connection, gate: gates.Gate) -> None:
    """Note that badges are being issued: what becomes of them is asked for soon."""
    at = clock.now(connection) + WHILE_FRESH
    due = Account.poll_due_at
    connection.execute(
        sa.update(Account)
        .where(
            *gates.this(gate.tenant, gate.generation), sa.or_(due.is_(None), due > at)
        )
        .values(poll_due_at=at)
    )


@in_transaction
def at_once(connection: sa.Connection, tenant: str) -> None:
    """Ask for a poll now, also of a list that a worker may have: one of the two will
    find that it is another's.
    """
    now = clock.now(connection)
    due = sa.update(Account).where(
        Account.tenant == tenant,
        sa.or_(Account.poll_due_at.is_(None), Account.poll_due_at > now),
    )
    connection.execute(due.values(poll_due_at=now))


def is_held(engine: sa.Engine, tenant: str) -> bool:
    """Whether what is new is not read to its end yet."""
    is_surveyed = sa.and_(Account.poll_unsorted, Account.survey_next.is_not(None))

    with connect(engine) as connection:
        held = sa.select(Account.tenant).where(
            Account.tenant == tenant,
            sa.or_(Account.poll_page.is_not(None), is_surveyed),
        )
        return connection.scalar(held) is not None


@in_transaction
def take(connection: sa.Connection, gate: gates.Gate) -> Poll | None:
    """Take the list of an account, if it is due and no other worker has it."""
    if (taken := _take(connection, gate, "poll_due_at")) is None:
        return None

    account, until = taken
    known = account.poll_watermark

    if known is None and (first := first_issued(connection, gate.tenant)):
        # By our clock, and the list goes by Credly's.
        known = first - SKEW

    poll = Poll(
        gate.tenant,
        gate.generation,
        until,
        page=(account.poll_page or 0) + 1,
        known=known or until,
        newest=account.poll_newest,
        unsorted=account.poll_unsorted,
    )

    if known is None:
        # Nothing was issued yet: the next badge asks for it.
        connection.execute(_held(poll).values(poll_due_at=None))
        return None

    return poll


@in_transaction
def take_survey(connection: sa.Connection, gate: gates.Gate) -> Survey | None:
    """Take all badges of an account, if they are due and no other worker has them."""
    if (taken := _take(connection, gate, "survey_due_at")) is None:
        return None

    account, until = taken
    since = account.survey_next_at

    if since is None or since < clock.now(connection) - CURSOR_LIFE:
        return Survey(gate.tenant, gate.generation, until, next=None, pages=0)

    return Survey(
        gate.tenant,
        gate.generation,
        until,
        next=account.survey_next,
        pages=account.survey_pages,
    )


def _take(
    connection: sa.Connection, gate: gates.Gate, name: str
) -> tuple[Account, dt.datetime] | None:
    now = clock.now(connection)
    until = now + LEASE
    this = gates.this(gate.tenant, gate.generation)
    due = getattr(Account, name) <= now

    if not connection.execute(
        sa.update(Account)
        .where(*this, due, *gates.may_issue(), gates.is_unpaused(now))
        .values({name: until})
    ).rowcount:
        return None

    with orm.Session(connection, expire_on_commit=False) as session:
        return session.scalars(sa.select(Account).where(*this)).one(), until


def has_issued(connection: sa.Connection, tenant: str) -> bool:
    """Whether there is anything to be asked of Credly."""
    return first_issued(connection, tenant) is not None


def first_issued(connection: sa.Connection, tenant: str) -> dt.datetime | None:
    """Get when the first badge was requested that Credly can be asked about."""
    # What Credly says of older badges is of nobody here.
    at: dt.datetime | None = connection.scalar(
        sa.select(Issuance.recorded_at)
        .where(Issuance.tenant == tenant, Issuance.badge_state.in_(_KNOWN))
        .order_by(Issuance.id)
        .limit(1)
    )
    return at


def _held(taken: Poll | Survey) -> sa.Update:
    return sa.update(Account).where(
        *gates.this(taken.tenant, taken.generation),
        getattr(Account, taken.due_at) == taken.until,
    )


def _write(connection: sa.Connection, taken: Poll | Survey, **values: t.Any) -> None:
    if not connection.execute(_held(taken).values(**values)).rowcount:
        raise Lost

    taken.until = values[taken.due_at]


@in_transaction
def advance(connection: sa.Connection, poll: Poll) -> None:
    """Note that a page was read, and all that it says is written down and told.

    :raises Lost: Another worker has the list.
    """
    _write(
        connection,
        poll,
        poll_page=poll.page,
        poll_newest=poll.newest,
        poll_unsorted=poll.unsorted,
        poll_due_at=clock.now(connection) + LEASE,
    )


@in_transaction
def finish(connection: sa.Connection, poll: Poll) -> None:
    """Note that the list was read as far as it has to be.

    :raises Lost: Another worker has it.
    """
    now = clock.now(connection)
    next_survey: t.Any = sa.func.coalesce(
        Account.survey_due_at, sa.literal(now + SURVEY_EVERY, UTCDateTime)
    )

    if poll.unsorted:
        # Not that one under way begins anew.
        is_begun = sa.or_(Account.survey_next.is_not(None), Account.survey_due_at < now)
        next_survey = sa.case(
            (is_begun, Account.survey_due_at), else_=sa.literal(now, UTCDateTime)
        )

    _write(
        connection,
        poll,
        poll_page=None,
        poll_newest=None,
        # Of a clock that is ahead, all that follows would be taken for known. One that
        # is behind says when its own changes were, and nothing else does.
        poll_watermark=(
            poll.known if poll.unsorted else min(poll.newest or poll.known, now)
        ),
        poll_unsorted=poll.unsorted,
        # The survey says so.
        polled_at=Account.polled_at if poll.unsorted else now,
        poll_due_at=now + _wait(connection, poll, now),
        survey_due_at=next_survey,
    )


@in_transaction
def advance_survey(connection: sa.Connection, survey: Survey) -> None:
    """Note that a page was read, and what comes next.

    :raises Lost: Another worker has the survey.
    """
    now = clock.now(connection)
    _write(
        connection,
        survey,
        survey_next=survey.next,
        survey_next_at=now,
        survey_pages=survey.pages,
        survey_due_at=now + LEASE,
    )


@in_transaction
def finish_survey(connection: sa.Connection, survey: Survey) -> None:
    """Note that all badges were read.

    :raises Lost: Another worker has the survey.
    """
    now = clock.now(connection)
    _write(
        connection,
        survey,
        **survey.anew,
        surveyed_at=now,
        polled_at=now,
        survey_due_at=now + SURVEY_EVERY,
    )


def _wait(connection: sa.Connection, poll: Poll, now: dt.datetime) -> dt.timedelta:
    if poll.unsorted:
        return UNSORTED

    # Among the newest: an older one that was issued late is worth no index.
    newest = (
        sa.select(Issuance.settled_at)
        .where(Issuance.tenant == poll.tenant, Issuance.badge_state == "pending")
        .order_by(Issuance.id.desc())
        .limit(100)
        .subquery()
    )
    last: dt.datetime | None = connection.scalar(
        sa.select(sa.func.max(newest.c.settled_at))
    )

    if last is None:
        return AT_REST

    return WHILE_FRESH if last > now - FRESH else EVERY


@in_transaction
def leave(
    connection: sa.Connection,
    taken: Poll | Survey,
    wait: dt.timedelta = dt.timedelta(0),
    *,
    anew: bool = False,
) -> None:
    """Leave a list to the next worker.

    :param anew: Whether that begins with the first page.
    """
    values: dict[str, t.Any] = {taken.due_at: clock.now(connection) + wait}

    if anew:
        values |= taken.anew

    connection.execute(_held(taken).values(**values))


def time_of(engine: sa.Engine) -> dt.datetime:
    """Get the time at which a question is put."""
    with connect(engine) as connection:
        return clock.now(connection)


@in_transaction
def learn(
    connection: sa.Connection,
    gate: gates.Gate,
    badges: cabc.Iterable[Badge],
    read_at: dt.datetime,
) -> Learned:
    """Write down what Credly says of badges. See :func:`.lifecycle.learn`."""
    return lifecycle.learn(
        connection, gate.tenant, gate.organization_id, badges, read_at=read_at
    )


def to_tell(
    engine: sa.Engine,
    tenant: str,
    ids: cabc.Collection[int],
    badge_ids: cabc.Collection[str] = (),
) -> cabc.Iterator[Became]:
    """Get what has become of some badges, to be told to the host.

    :param ids: Of rows.
    :param badge_ids: Credly's.
    """
    is_replaced = Issuance.state == "replaced"
    with connect(engine) as connection:
        rows = connection.execute(
            sa.select(
                Issuance.id,
                Issuance.member_id,
                Issuance.course_id,
                Issuance.kind,
                Issuance.template_id,
                Issuance.badge_id,
                sa.case((is_replaced, "replaced"), else_=Issuance.badge_state),
                sa.case(
                    (is_replaced, Issuance.settled_at), else_=Issuance.badge_state_at
                ),
                Issuance.replaced_by,
            )
            .where(
                Issuance.tenant == tenant,
                Issuance.badge_id.in_(badge_ids) if badge_ids else Issuance.id.in_(ids),
                Issuance.erased_at.is_(None),
                Issuance.test.is_(False),
                sa.or_(
                    is_replaced,
                    Issuance.badge_state.in_(("accepted", "rejected", "revoked")),
                ),
            )
            .order_by(Issuance.id)
        ).all()

    for row in rows:
        yield Became(*t.cast(t.Any, row))


@in_transaction
def note_told(
    connection: sa.Connection, tenant: str, told: cabc.Iterable[Became]
) -> None:
    """Note what the host was told."""
    for each in told:
        lifecycle.told(connection, tenant, each.issuance_id, t.cast(t.Any, each.state))


# One badge.


@in_transaction
def ask_for(
    connection: sa.Connection, tenant: str, row_id: int, *, by: str | None = None
) -> t.Literal["asked", "just asked"] | None:
    """Ask for one badge to be read anew, unless it was just now.

    :param by: Who does it, for :func:`.audit.note`.
    :return: ``None``: there is nothing to be read.
    """
    # First, so that no other does the same at this moment.
    if not gates.lock(connection, tenant):
        return None

    found = connection.scalar(
        sa.select(Issuance.id)
        .join(
            Account,
            sa.and_(
                Account.tenant == Issuance.tenant,
                Account.organization_id == Issuance.organization_id,
            ),
        )
        .where(
            Issuance.tenant == tenant,
            Issuance.id == row_id,
            Issuance.badge_id.is_not(None),
        )
    )

    if found is None:
        return None

    now = clock.now(connection)
    this = (ToCheck.tenant == tenant, ToCheck.issuance_id == row_id)
    times = {"asked_at": now, "due_at": now}
    known = connection.execute(
        sa.select(ToCheck.asked_at, ToCheck.due_at).where(*this)
    ).one_or_none()

    if known is None:
        row = {"issuance_id": row_id, "tenant": tenant, **times}
        connection.execute(sa.insert(ToCheck).values(**row))
    elif known.due_at is not None and known.due_at <= now:
        return "asked"  # and not answered yet
    elif known.asked_at > now - CHECK_EVERY:
        return "just asked"
    else:
        connection.execute(sa.update(ToCheck).where(*this).values(**times))

    audit.note(connection, tenant, by, "check", str(row_id))
    return "asked"


def asked_for(
    engine: sa.Engine, tenant: str, ids: cabc.Collection[int]
) -> cabc.Set[int]:
    """Get those of some rows that are to be read anew now."""
    with connect(engine) as connection:
        these = (
            ToCheck.tenant == tenant,
            ToCheck.issuance_id.in_(ids),
            ToCheck.due_at <= clock.now(connection),
        )
        return set(connection.scalars(sa.select(ToCheck.issuance_id).where(*these)))


def to_check(engine: sa.Engine, gate: gates.Gate) -> list[tuple[int, str | None]]:
    """Get some rows that are to be read anew, each with its badge."""
    with connect(engine) as connection:
        is_theirs = Issuance.organization_id == gate.organization_id
        found = connection.execute(
            sa.select(ToCheck.issuance_id, sa.case((is_theirs, Issuance.badge_id)))
            .join(Issuance, Issuance.id == ToCheck.issuance_id)
            .where(
                ToCheck.tenant == gate.tenant,
                ToCheck.due_at <= clock.now(connection),
                Issuance.tenant == gate.tenant,
            )
            .order_by(ToCheck.due_at, ToCheck.issuance_id)
            .limit(20)
        )
        return [(id_, badge_id) for id_, badge_id in found]


@in_transaction
def checked(
    connection: sa.Connection, tenant: str, row_id: int, again: bool = False
) -> None:
    """Note that one was read anew.

    :param again: Whether it is to be read once more, to be believed.
    """
    now = clock.now(connection)
    due_at = now + lifecycle.MISSES_APART if again else None
    connection.execute(
        sa.update(ToCheck)
        .where(ToCheck.tenant == tenant, ToCheck.issuance_id == row_id)
        .values(due_at=due_at)
    )
    # Those that nobody has to be kept from asking for.
    connection.execute(
        sa.delete(ToCheck).where(
            ToCheck.tenant == tenant,
            ToCheck.due_at.is_(None),
            ToCheck.asked_at <= now - CHECK_EVERY,
        )
    )


@in_transaction
def miss(
    connection: sa.Connection, gate: gates.Gate, badge_id: str, read_at: dt.datetime
) -> bool:
    """Note that Credly has no such badge. See :func:`.lifecycle.miss`."""
    return lifecycle.miss(
        connection, gate.tenant, gate.organization_id, badge_id, read_at=read_at
    )


def plan_comparison(
    connection: sa.Connection, tenant: str, at: dt.datetime, *, first: bool = False
) -> bool:
    """Note when a worker compares an account's badges with Credly: see
    :mod:`.comparisons`.

    :param first: Only where that is not known yet.
    :return: Whether it was noted.
    """
    this = sa.update(Account).where(Account.tenant == tenant)

    if first:
        this = this.where(Account.compare_due_at.is_(None))

    return bool(connection.execute(this.values(compare_due_at=at)).rowcount)
