"""Runs that compare the host, the ledger and Credly, and what they have found.

A run is read to its end, or begun anew: what it has read so far is kept in no table.
What it finds is kept until a later one has found out more: of the badges that differ,
as many as are repaired at once.
"""

from __future__ import annotations

import collections
import collections.abc as cabc
import dataclasses
import datetime as dt
import secrets
import typing as t

import sqlalchemy as sa
from sqlalchemy import orm

from ..i18n import gettext_noop
from ..models import Account
from ..models import Batch
from ..models import DifferenceRow
from ..models import Issuance
from . import audit
from . import clock
from . import gates
from . import polls
from . import runs
from .conditions import Condition
from .paging import Session
from .runs import Run
from .transaction import connect
from .transaction import in_transaction

Bucket = t.Literal[
    "agreed",
    "not_recorded",
    "waiting_too_long",
    "unknown_here",
    "failed_here",
    "state_differs",
    "not_at_credly",
    "differs",
    "twice",
    "no_longer_completed",
    "not_ours",
]
"""In which way badges agree or differ: see ``docs/reconcile.md``."""

BUCKETS: tuple[Bucket, ...] = t.get_args(Bucket)

DIFFERENCES: tuple[Bucket, ...] = tuple(
    each for each in BUCKETS if each not in ("agreed", "not_ours")
)

REPAIRED: tuple[Bucket, ...] = (
    *("not_recorded", "unknown_here", "failed_here"),
    "state_differs",
)
"""What has one right answer."""

AT_MOST = 500
"""Badges that are repaired at once, and that are kept of each kind."""

Why = t.Literal[
    "gate",
    "stopped",
    "no answer",
    "refused",
    "endless",
    "unreadable",
    "host",
    "room",
]
"""Why something was not read to its end."""

WORDS: dict[Why, str] = {
    "gate": gettext_noop(
        "Issuing is paused, the connection has expired or was changed, or this database"
        " is a copy. Credly was not contacted."
    ),
    "stopped": gettext_noop("The process was told to stop."),
    "no answer": gettext_noop("Credly did not answer. See the log for details."),
    "refused": gettext_noop("Credly refused to list the badges."),
    "endless": gettext_noop("The pages of Credly's list lead nowhere."),
    "unreadable": gettext_noop("Some of the badges that Credly lists cannot be read."),
    "host": gettext_noop(
        "The @credly.past_completions hook failed. The log has the traceback."
    ),
    "room": gettext_noop("There is no room in the temporary directory."),
}

EVERY = dt.timedelta(days=7)
"""How often a worker compares by itself."""

AGAIN = dt.timedelta(days=1)
"""When it does so again, where not everything could be read."""

GOES_ON = ("comparing", "repairing")
"""States of a run that is not over."""

_READ = ("compared", "repairing", "partial")
"""States of a run that has found out something."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What a comparison has come to.

    :param counts: How many badges agree or differ, by :data:`Bucket`.
    :param moving: How many differ, and were changing just then.
    :param host: Whether the host was asked who completed what.
    :param unread: Why something was not read to its end, and how many pages were.
    :param repaired: What the last repair has come to. ``None``: there was none.
    """

    counts: dict[str, int]
    moving: int
    host: bool
    unread: list[tuple[Why, int]] = dataclasses.field(default_factory=list)
    repaired: dict[str, t.Any] | None = None

    @property
    def number(self) -> int:
        """How many differ."""
        return sum(self.counts.get(each, 0) for each in DIFFERENCES)

    def without(self, buckets: cabc.Iterable[str]) -> Found:
        """Count some badges no more, each as it differs."""
        counts = collections.Counter(self.counts)
        counts.subtract(buckets)
        left = {each: max(0, number) for each, number in counts.items()}
        return dataclasses.replace(self, counts=left)

    @classmethod
    def of(cls, run: Batch) -> t.Self:
        """Read it from a run's row."""
        return cls(**run.found or {"counts": {}, "moving": 0, "host": False})

    def stored(self) -> dict[str, t.Any]:
        """Get it as it is written."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of an account's comparisons.

    :param shown: The last run that was read to its end, else the last that has found
        out something.
    :param latest: The last run.
    :param found: What the first has found.
    """

    shown: Batch | None
    latest: Batch | None
    found: Found | None

    @property
    def failed(self) -> bool:
        """Whether the last run was not read to its end."""
        return self.latest is not None and self.latest.state in ("failed", "partial")

    @property
    def going_on(self) -> Batch | None:
        """The run that is not over."""
        return self.latest if self.latest and self.latest.state in GOES_ON else None


# Beginning and stopping.


@in_transaction
def start(
    connection: sa.Connection,
    tenant: str,
    since: dt.datetime | None = None,
    *,
    by: str | None = None,
    weekly: bool = False,
) -> int | None:
    """Begin a comparison, unless one goes on. A worker does it.

    :param since: Only what was completed from then on.
    :param by: Who does it, for :func:`.audit.note`.
    :param weekly: Whether nobody has asked for it. It leaves out what the last one did.
    :return: The run's number. ``None``: there is no connection to Credly.
    """
    # The lock keeps two clicks from beginning two, and Remove away.
    if not gates.lock(connection, tenant):
        return None

    if (going_on := _going_on(connection, tenant)) is not None:
        return going_on

    if weekly:
        these = (Batch.tenant == tenant, Batch.verb == "compare")
        since = connection.scalar(
            sa.select(Batch.since).where(*these).order_by(Batch.id.desc()).limit(1)
        )

    now = clock.now(connection)
    run_id = runs.begin(
        connection,
        now,
        tenant=tenant,
        since=since,
        verb="compare",
        state="comparing",
        healing=weekly,
    )
    audit.note(connection, tenant, by, "compare")
    polls.plan_comparison(connection, tenant, now + EVERY)
    return run_id


def _going_on(connection: sa.Connection, tenant: str) -> int | None:
    these = (Batch.tenant == tenant, Batch.verb == "compare")
    return connection.scalar(
        sa.select(Batch.id).where(*these, Batch.state.in_(GOES_ON))
    )


@in_transaction
def take_up(connection: sa.Connection, tenant: str) -> Run | None:
    """Begin a comparison that this process does itself, to repair what it finds: of a
    member who is erased meanwhile, it writes nothing.

    :return: ``None``: another goes on.
    :raises LookupError: There is no connection to Credly.
    """
    if not gates.lock(connection, tenant):
        raise LookupError("Credly is not connected.")

    if _going_on(connection, tenant) is not None:
        return None

    run_id = runs.begin(
        connection,
        clock.now(connection),
        tenant=tenant,
        verb="compare",
        state="comparing",
    )
    return runs.take_in(connection, "compare", run_id)


@in_transaction
def leave_no_trace(connection: sa.Connection, run: Run) -> None:
    """Forget a comparison that was begun so: pages show none of what it has found."""
    connection.execute(sa.delete(Batch).where(*runs.held(run)))


@in_transaction
def stop(
    connection: sa.Connection, tenant: str, run_id: int, *, by: str | None = None
) -> bool:
    """Stop a comparison, or the repair of what it has found.

    :param by: Who does it, for :func:`.audit.note`.
    :return: Whether it was not over.
    """
    this = runs.this(tenant, run_id, "compare")

    for state, then in (("comparing", "stopped"), ("repairing", "compared")):
        if runs.end(connection, *this, Batch.state == state, state=then):
            audit.note(connection, tenant, by, "stop comparing")
            return True

    return False


@in_transaction
def start_repair(
    connection: sa.Connection,
    tenant: str,
    run_id: int,
    bucket: str,
    number: int,
    *,
    by: str | None = None,
) -> bool:
    """Begin to repair what a comparison has found. A worker does it.

    :param bucket: One of :data:`REPAIRED`.
    :param number: How many were confirmed.
    :param by: Who does it, for :func:`.audit.note`.
    :return: Whether it was begun: there are so many still, and nothing else goes on.
    """
    if bucket not in REPAIRED or not gates.lock(connection, tenant):
        return False

    these = (Batch.tenant == tenant, Batch.verb == "compare")
    others = (Batch.state.in_(GOES_ON), Batch.id != run_id)

    if connection.scalar(sa.select(Batch.id).where(*these, *others)) is not None:
        return False

    left = connection.scalar(_count_left(tenant, run_id, bucket))

    if not left or left != number:
        return False

    begun = connection.execute(
        sa.update(Batch)
        .where(*runs.this(tenant, run_id, "compare"), Batch.state == "compared")
        .values(
            state="repairing",
            wanted={"repair": bucket},
            number=number,
            due_at=clock.now(connection),
        )
    ).rowcount

    if begun:
        target = f"{bucket.replace('_', ' ')}: {number}"
        audit.note(connection, tenant, by, "repair", target)

    return bool(begun)


def _left(tenant: str, run_id: int, bucket: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        DifferenceRow.tenant == tenant,
        DifferenceRow.batch_id == run_id,
        DifferenceRow.bucket == bucket,
        DifferenceRow.outcome.is_(None),
    )


def _count_left(tenant: str, run_id: int, bucket: str) -> sa.Select[int]:
    these = _left(tenant, run_id, bucket)
    return sa.select(sa.func.count(DifferenceRow.id)).where(*these)


# A member.


def of_member(
    tenant: str, member_id: str, row_ids: cabc.Collection[int] | sa.Select[int]
) -> sa.ColumnElement[bool]:
    """Find the differences about a member.

    :param row_ids: The member's rows in the ledger.
    """
    return sa.and_(
        DifferenceRow.tenant == tenant,
        sa.or_(
            DifferenceRow.member_id == member_id,
            DifferenceRow.issuance_id.in_(row_ids),
        ),
    )


def drop_differences(
    connection: sa.Connection,
    tenant: str,
    member_id: str,
    row_ids: cabc.Collection[int] | sa.Select[int],
) -> int:
    """Delete the differences about a member: no repair adds a badge by them any more.
    Whoever does so at this moment is waited for.

    :return: How many.
    """
    these = of_member(tenant, member_id, row_ids)
    of = sa.select(DifferenceRow.batch_id).where(these).distinct()
    return sum(
        _take_off(connection, tenant, run_id, these)
        for run_id in sorted(connection.scalars(of))
    )


def _take_off(
    connection: sa.Connection, tenant: str, run_id: int, *these: Condition
) -> int:
    """Delete differences that a run has found, and count them no more.

    :return: How many.
    """
    this = runs.this(tenant, run_id, "compare")
    # First its run, as whoever repairs does.
    stored = connection.scalar(sa.select(Batch.found).where(*this).with_for_update())
    rows = connection.execute(
        sa.select(DifferenceRow.id, DifferenceRow.bucket)
        .where(DifferenceRow.tenant == tenant, DifferenceRow.batch_id == run_id, *these)
        .with_for_update()
    ).all()

    if not rows:
        return 0

    connection.execute(
        sa.delete(DifferenceRow).where(
            DifferenceRow.tenant == tenant,
            DifferenceRow.id.in_([row.id for row in rows]),
        )
    )

    if stored:
        found = Found(**stored).without(row.bucket for row in rows)
        connection.execute(sa.update(Batch).where(*this).values(found=found.stored()))

    return len(rows)


# By itself.


def due_for(engine: sa.Engine) -> list[str]:
    """Get the communities whose badges are to be compared once more, or for which it is
    to be planned when.
    """
    with connect(engine) as connection:
        now = clock.now(connection)
        query = sa.select(Account.tenant).where(
            sa.or_(
                Account.compare_due_at <= now,
                sa.and_(
                    Account.compare_due_at.is_(None),
                    # There are badges, for a day or longer.
                    Account.surveyed_at.is_not(None),
                ),
            ),
            *gates.may_issue(),
            gates.is_unpaused(now),
        )
        return list(connection.scalars(query.order_by(Account.tenant)))


def start_due(engine: sa.Engine, tenant: str) -> None:
    """Begin a comparison if it is time to. The first of an account has its time at
    random within a week, so that those of many are not due together.
    """
    if not _plan_first(engine, tenant):
        start(engine, tenant, weekly=True)


@in_transaction
def _plan_first(connection: sa.Connection, tenant: str) -> bool:
    wait = dt.timedelta(seconds=secrets.randbelow(int(EVERY.total_seconds())))
    at = clock.now(connection) + wait
    return polls.plan_comparison(connection, tenant, at, first=True)


# While a worker has it.


@in_transaction
def hold(connection: sa.Connection, run: Run, badges: int) -> bool:
    """Prolong the lease of a run.

    :param badges: How many were read so far.
    :return: Whether it is still this worker's, and goes on.
    """
    return runs.hold(connection, run, clock.now(connection), completed=badges)


@in_transaction
def finish(
    connection: sa.Connection,
    run: Run,
    found: Found,
    differences: cabc.Sequence[dict[str, t.Any]],
) -> bool:
    """Write down what a comparison has found. What an earlier one has found is
    forgotten, unless this one was not read to its end, and that one was.

    :param differences: Columns of :class:`.models.DifferenceRow`.
    :return: Whether it was still this worker's.
    """
    whole = not found.unread
    now = clock.now(connection)
    state = "compared" if whole else "partial"

    if not runs.hold(connection, run, now, state=state):
        return False

    earlier = (
        Batch.tenant == run.tenant,
        Batch.verb == "compare",
        Batch.id != run.id,
    )
    kept = None

    if not whole:
        polls.plan_comparison(connection, run.tenant, now + AGAIN)
        kept = connection.scalar(
            sa.select(sa.func.max(Batch.id)).where(*earlier, Batch.state == "compared")
        )

    old = connection.scalars(
        sa.select(Batch.id).where(*earlier, Batch.id != (kept or 0))
    ).all()
    these = (DifferenceRow.tenant == run.tenant, DifferenceRow.batch_id.in_(old))
    connection.execute(sa.delete(DifferenceRow).where(*these))
    connection.execute(sa.delete(Batch).where(*earlier, Batch.id.in_(old)))

    is_erased = runs.left_out(connection, run)
    left = [each for each in differences if not is_erased(each["member_id"])]
    found = found.without(
        each["bucket"] for each in differences if is_erased(each["member_id"])
    )

    if left and kept is None:
        common = {"tenant": run.tenant, "batch_id": run.id, "found_at": now}
        connection.execute(
            sa.insert(DifferenceRow), [{**common, **each} for each in left]
        )

    runs.end(connection, *runs.held(run), state=state, found=found.stored())
    of_erased = sa.exists().where(
        Issuance.id == DifferenceRow.issuance_id, Issuance.erased_at.is_not(None)
    )
    _take_off(connection, run.tenant, run.id, of_erased)
    return True


@in_transaction
def fail(connection: sa.Connection, run: Run) -> None:
    """Note that a run has failed, as the log says why."""
    state = "compared" if run.state == "repairing" else "failed"

    if runs.end(connection, *runs.held(run), state=state) and state == "failed":
        polls.plan_comparison(connection, run.tenant, clock.now(connection) + AGAIN)


def to_repair(engine: sa.Engine, run: Run) -> tuple[str, list[DifferenceRow]]:
    """Get what is to be repaired, and is left."""
    with connect(engine) as connection, orm.Session(connection) as session:
        this = runs.this(run.tenant, run.id, "compare")
        wanted = session.scalar(sa.select(Batch.wanted).where(*this)) or {}
        bucket: str = wanted.get("repair", "")
        rows = session.scalars(
            sa.select(DifferenceRow)
            .where(*_left(run.tenant, run.id, bucket))
            .order_by(DifferenceRow.id)
            .limit(AT_MOST)
        )
        return bucket, list(rows)


@in_transaction
def note_repaired(
    connection: sa.Connection,
    run: Run,
    bucket: str,
    outcomes: cabc.Mapping[int, str | None],
) -> bool:
    """Write down what came of some differences: those that were repaired are none any
    more.

    :param outcomes: By their number, why one was left. ``None``: it was repaired.
    :return: Whether to go on.
    """
    this = runs.this(run.tenant, run.id, "compare")

    goes_on = runs.hold(connection, run, clock.now(connection))
    stored = connection.scalar(sa.select(Batch.found).where(*this).with_for_update())

    # Also where it was stopped meanwhile: it was repaired all the same.
    if not stored:
        return False

    of_run = (DifferenceRow.tenant == run.tenant, DifferenceRow.batch_id == run.id)

    for outcome in set(outcomes.values()):
        ids = [number for number, each in outcomes.items() if each == outcome]
        these = (*of_run, DifferenceRow.id.in_(ids))
        connection.execute(
            sa.delete(DifferenceRow).where(*these)
            if outcome is None
            else sa.update(DifferenceRow).where(*these).values(outcome=outcome)
        )

    found = Found(**stored)
    done = sum(each is None for each in outcomes.values())
    so_far = found.repaired or {}

    if so_far.get("bucket") != bucket:
        so_far = {"bucket": bucket, "done": 0, "left": 0}

    so_far["done"] += done
    so_far["left"] += len(outcomes) - done
    found.counts[bucket] = max(0, found.counts.get(bucket, 0) - done)

    if bucket != "not_recorded":
        found.counts["agreed"] = found.counts.get("agreed", 0) + done

    found = dataclasses.replace(found, repaired=so_far)
    connection.execute(sa.update(Batch).where(*this).values(found=found.stored()))
    return goes_on


@in_transaction
def finish_repair(connection: sa.Connection, run: Run, why: Why | None = None) -> None:
    """Note that a repair is over.

    :param why: Why it could not go on.
    """
    this = runs.held(run)
    stored = connection.scalar(sa.select(Batch.found).where(*this))

    if stored:
        found = Found(**stored)
        repaired = {"done": 0, "left": 0, **(found.repaired or {}), "why": why}
        found = dataclasses.replace(found, repaired=repaired)
        connection.execute(sa.update(Batch).where(*this).values(found=found.stored()))

    runs.end(connection, *this, state="compared")


# What a page shows.


def known(session: Session, tenant: str) -> Known:
    """Get what is known of an account's comparisons."""
    found = runs.latest(session, tenant, "compare")
    whole = [each for each in found if each.state in ("compared", "repairing")]
    read = [each for each in found if each.state in _READ]
    shown = next(iter(whole or read), None)
    return Known(
        shown, next(iter(found), None), None if shown is None else Found.of(shown)
    )


def get(session: Session, tenant: str, run_id: int) -> Batch | None:
    """Get a run as it is now."""
    return runs.get(session, tenant, run_id, "compare")


def count_left(session: Session, tenant: str, run_id: int) -> dict[str, int]:
    """Count what can still be repaired, by the kind."""
    counted = session.execute(
        sa.select(DifferenceRow.bucket, sa.func.count(DifferenceRow.id))
        .where(
            DifferenceRow.tenant == tenant,
            DifferenceRow.batch_id == run_id,
            DifferenceRow.bucket.in_(REPAIRED),
            DifferenceRow.outcome.is_(None),
        )
        .group_by(DifferenceRow.bucket)
    )
    return {bucket: number for bucket, number in counted}


def differences(
    session: Session,
    tenant: str,
    run_id: int,
    *,
    bucket: str,
    at_most: int | None = None,
) -> list[tuple[DifferenceRow, Issuance | None]]:
    """Get badges that differ in one way, each with its row in the ledger, or another
    row of its member.

    :param at_most: So many. ``None``: all that are stored.
    """
    query = (
        sa.select(DifferenceRow, Issuance)
        .outerjoin(
            Issuance,
            sa.and_(
                Issuance.id == DifferenceRow.issuance_id, Issuance.tenant == tenant
            ),
        )
        .where(
            DifferenceRow.tenant == tenant,
            DifferenceRow.batch_id == run_id,
            DifferenceRow.bucket == bucket,
        )
        .order_by(DifferenceRow.id)
        .limit(at_most)
    )
    return [(row, badge) for row, badge in session.execute(query)]
