"""Many badges are taken back: those of a backfill, or those that a filter shows. Which
they are, how many, and a run that does it is begun or stopped.

A run first chooses its badges, portion by portion, and drops what was not sent yet.
Then it lets badges be revoked, those first that nobody has accepted, by the worker that
issues: never more than a few at a time, so that a stop comes in time. What is on its
way when it is chosen settles first. Each step is one transaction, and a badge that was
chosen has a row that says how far it is: :mod:`.undoing`. A page reads that by
:mod:`.undone`.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t

import sqlalchemy as sa
from sqlalchemy import orm

from ..catalog import clean
from ..models import Batch
from ..models import BatchRow
from ..models import Issuance
from . import audit
from . import clock
from . import gates
from . import runs
from . import transitions
from .actions import CAN_DROP
from .actions import problem_with
from .conditions import is_of
from .issuances import Filter
from .issuances import is_connected
from .paging import Session
from .transaction import connect
from .transaction import in_transaction

LeftAlone = t.Literal[
    "was revoked",
    "was replaced",
    "declined",
    "held",
    "was failed",
    "was cancelled",
    "busy",
    "elsewhere",
    "erased",
]
"""Why a badge is left alone. ``held``: the member has it from elsewhere. ``busy``:
something else is being done about it. ``elsewhere``: it is of an organization that the
community is not connected to.
"""

LEFT_ALONE: tuple[LeftAlone, ...] = t.get_args(LeftAlone)

OPEN = ("waits", "pending", "accepted", "asked")
"""What is not over. ``waits``: the badge is being issued. ``pending`` and
``accepted``: it is to be revoked. ``asked``: it is being revoked.
"""

Standing = t.Literal["drop", "waits", "pending", "accepted"] | LeftAlone
"""How a badge stands that is to be taken back."""

Outcome = (
    t.Literal[
        "waits",
        "pending",
        "accepted",
        "asked",
        "revoked",
        "dropped",
        "failed",
        "stopped",
    ]
    | LeftAlone
)
"""What came of a badge that was chosen. ``stopped``: the run was, before its turn."""

GOES_ON = ("choosing", "revoking", "stopping")
"""States of a run that is not over."""


def standing_in(tenant: str) -> sa.ColumnElement[str]:
    """Say how a row stands: one of :data:`Standing`."""
    return sa.case(
        (Issuance.erased_at.is_not(None), "erased"),
        (sa.not_(is_connected(tenant)), "elsewhere"),
        (CAN_DROP, "drop"),
        (Issuance.action == "revoke", "busy"),
        # Also of a badge that was called failed, and that is looked for once more.
        (Issuance.action.is_not(None), "waits"),
        (Issuance.state == "revoked", "was revoked"),
        (Issuance.state == "replaced", "was replaced"),
        (Issuance.state == "failed", "was failed"),
        (Issuance.state == "cancelled", "was cancelled"),
        # Of which Credly did not say which badge it is.
        (Issuance.badge_id.is_(None), "held"),
        (Issuance.state == "held", "held"),
        (Issuance.badge_state == "rejected", "declined"),
        (Issuance.badge_state == "accepted", "accepted"),
        else_="pending",
    )


_WANTED = ("status", "became", "text")


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which badges to take back.

    :param undoes: Those that a backfill has recorded.
    :param wanted: Those that the badges page shows.
    :param since: Only those that were recorded from then on.
    :param until: Only those that were recorded before.
    """

    undoes: int | None = None
    wanted: Filter = Filter()
    since: dt.datetime | None = None
    until: dt.datetime | None = None

    @property
    def is_everything(self) -> bool:
        """Whether it leaves nothing out. That is never taken back."""
        return self == Selection()

    def select(self, tenant: str) -> sa.Select[Issuance]:
        """Put it into a query."""
        query = self.wanted.select(tenant)

        if self.undoes is not None:
            query = query.where(Issuance.batch_id == self.undoes)

        return self._between(query)

    def in_order(self, tenant: str, asked_at: dt.datetime) -> sa.Select[Issuance]:
        """Put it into a query that goes through the rows by their id.

        :param asked_at: When that was asked for.
        """
        if self.undoes is not None:
            # They stand together. By the index on the batch all of them would be
            # sorted for each portion.
            batch = sa.func.coalesce(Issuance.batch_id, 0) == self.undoes
            return self._between(sa.select(Issuance).where(is_of(tenant), batch))

        if self.wanted.status != "waiting":
            return self.select(tenant)

        # Also what waited when the run was asked for, and did not wait for it.
        waited = sa.or_(Issuance.state == "none", Issuance.settled_at >= asked_at)
        wanted = dataclasses.replace(self.wanted, status=None)
        query = dataclasses.replace(self, wanted=wanted).select(tenant)
        return query.where(waited)

    def stored(self) -> dict[str, t.Any]:
        """Get it as the columns of a run."""
        wanted = {name: getattr(self.wanted, name) for name in _WANTED}
        return {
            "undoes": self.undoes,
            "kind": self.wanted.kind,
            "course_id": self.wanted.course_id,
            "since": self.since,
            "until": self.until,
            "wanted": {name: value for name, value in wanted.items() if value} or None,
        }

    @classmethod
    def of(cls, run: t.Any) -> t.Self:
        """Get it from the columns of a run."""
        course = {"kind": run.kind, "course_id": run.course_id}
        return cls(
            undoes=run.undoes,
            # Of a backfill they are there for its name.
            wanted=Filter() if run.undoes else Filter(**course, **run.wanted or {}),
            since=run.since,
            until=run.until,
        )

    def _between(self, query: sa.Select[Issuance]) -> sa.Select[Issuance]:
        if self.since is not None:
            query = query.where(Issuance.recorded_at >= self.since)

        if self.until is not None:
            query = query.where(Issuance.recorded_at < self.until)

        return query


@dataclasses.dataclass(frozen=True)
class Preview:
    """How many badges stand how.

    :param first_id: The first row that is looked at.
    :param last_id: The last.
    :param recording: Whether the backfill goes on recording.
    """

    standing: dict[str, int]
    first_id: int
    last_id: int
    recording: bool = False

    def __getitem__(self, standing: str) -> int:
        return self.standing.get(standing, 0)

    @property
    def number(self) -> int:
        """How many would be taken back."""
        return self.to_revoke + self["drop"]

    @property
    def to_revoke(self) -> int:
        """How many of them Credly has, or is to have before."""
        return self["pending"] + self["accepted"] + self["waits"]

    @property
    def left_alone(self) -> dict[str, int]:
        """How many would not, by the reason."""
        return {each: self[each] for each in LEFT_ALONE if self[each]}


def preview(
    session: Session, tenant: str, selection: Selection, last_id: int | None = None
) -> Preview:
    """Count what would be taken back.

    :param last_id: The last row to look at, of an earlier preview.
    """
    query = selection.select(tenant)

    if last_id is not None:
        query = query.where(Issuance.id <= last_id)

    rows = query.with_only_columns(
        Issuance.id, standing_in(tenant).label("standing")
    ).subquery()
    found = session.execute(
        sa.select(
            rows.c.standing,
            sa.func.count(),
            sa.func.min(rows.c.id),
            sa.func.max(rows.c.id),
        ).group_by(rows.c.standing)
    ).all()
    recording = selection.undoes is not None and session.scalar(
        sa.select(sa.literal(True)).where(
            Batch.id == selection.undoes,
            Batch.tenant == tenant,
            Batch.state == "recording",
        )
    )
    return Preview(
        {standing: number for standing, number, _, _ in found},
        min((first for _, _, first, _ in found), default=0),
        max((last for _, _, _, last in found), default=0),
        bool(recording),
    )


class Miscounted(Exception):
    """There are more badges than were confirmed. Nothing was done."""


def start(
    engine: sa.Engine,
    tenant: str,
    selection: Selection,
    *,
    number: int,
    reason: str,
    tell_pending: bool,
    tell_accepted: bool,
    title: str = "",
    last_id: int | None = None,
    by: str | None = None,
) -> int | None:
    """Begin to take badges back. A worker does the rest.

    :param number: How many were confirmed.
    :param reason: Why. Credly keeps it, and the members may read it.
    :param tell_pending: Whether Credly is to write to those who have not accepted.
    :param tell_accepted: The same for those who have.
    :param title: Of the course, as it is now.
    :param last_id: The last row that there was when they were counted.
    :param by: Who does it, for :func:`.audit.note`.
    :return: The run's number; that of a run which does the same already, if there is
        one. ``None``: there is nothing to take back.
    :raises Miscounted: There are more of them.
    :raises ValueError: If there is a :func:`.actions.problem_with` the reason, or the
        selection is everything.
    """
    if problem := problem_with(reason):
        raise ValueError(f"The revocation reason is not valid: {problem}.")

    if selection.is_everything:
        raise ValueError("Set a filter. All badges cannot be revoked at once.")

    with connect(engine) as connection, orm.Session(connection) as session:
        found = preview(session, tenant, selection, last_id)

    # What a backfill records until it is stopped belongs to it.
    if found.number > number and not found.recording:
        raise Miscounted

    if not found.number:
        return None

    return _start(
        engine,
        tenant,
        selection,
        found,
        by,
        title,
        {
            "number": number,
            "reason": clean(reason, 500),
            "tell_pending": tell_pending,
            "tell_accepted": tell_accepted,
        },
    )


@in_transaction
def _start(
    connection: sa.Connection,
    tenant: str,
    selection: Selection,
    found: Preview,
    by: str | None,
    title: str,
    values: dict[str, t.Any],
) -> int | None:
    # The lock keeps two clicks from beginning two, and Remove away.
    if not gates.lock(connection, tenant):
        return None

    stored = selection.stored()
    first_id, last_id = found.first_id, found.last_id

    if selection.undoes is not None:
        this = runs.this(tenant, selection.undoes, "backfill")
        # First: one that records at this moment is waited for, and its rows seen.
        runs.end(connection, *this, Batch.state == "recording", state="stopped")
        undone = connection.execute(
            sa.select(Batch.kind, Batch.course_id, Batch.course_title).where(*this)
        ).one_or_none()

        if undone is None:
            return None

        stored |= {"kind": undone.kind, "course_id": undone.course_id}
        title = title or undone.course_title
        first_id, last_id = connection.execute(
            sa.select(sa.func.min(Issuance.id), sa.func.max(Issuance.id)).where(
                Issuance.tenant == tenant, Issuance.batch_id == selection.undoes
            )
        ).one()

    doing = connection.execute(
        sa.select(Batch).where(
            Batch.tenant == tenant,
            Batch.verb == "undo",
            Batch.state.in_(("choosing", "revoking")),
        )
    ).all()

    for each in doing:
        if all(getattr(each, name) == value for name, value in stored.items()):
            return t.cast(int, each.id)

    now = clock.now(connection)
    run_id = runs.begin(
        connection,
        now,
        **stored,
        **values,
        tenant=tenant,
        verb="undo",
        state="choosing",
        course_title=title,
        reached=first_id - 1,
        last_id=last_id,
    )
    target = f"{title}: {values['number']}" if title else str(values["number"])
    audit.note(connection, tenant, by, "take back", target)
    return run_id


@in_transaction
def stop(
    connection: sa.Connection, tenant: str, run_id: int, *, by: str | None = None
) -> bool:
    """Take back nothing more. A badge whose revocation is on its way is revoked.

    :param by: Who does it, for :func:`.audit.note`.
    :return: Whether the run was not over.
    """
    now = clock.now(connection)
    this = runs.this(tenant, run_id, "undo")
    stopped = connection.execute(
        sa.update(Batch)
        .where(*this, Batch.state.in_(("choosing", "revoking")))
        # No worker goes on with it as it was.
        .values(state="stopping", wanted=None, due_at=now, lease=None)
    ).rowcount

    if not stopped:
        return False

    title, number = connection.execute(
        sa.select(Batch.course_title, Batch.number).where(*this)
    ).one()
    target = f"{title}: {number}" if title else str(number)
    audit.note(connection, tenant, by, "stop taking back", target)
    asked = sa.select(BatchRow.issuance_id).where(
        BatchRow.tenant == tenant,
        BatchRow.batch_id == run_id,
        BatchRow.outcome == "asked",
    )
    is_unsent = sa.and_(
        is_of(tenant),
        Issuance.action == "revoke",
        Issuance.attempts == 0,
        Issuance.outcome_unknown.is_(False),
    )

    for these in transitions.by_ids(connection, Issuance.id.in_(asked), is_unsent):
        transitions.end(connection, "cancelled", now, *these)

    return True
