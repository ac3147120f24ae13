"""Runs that take many badges back: those of a backfill, or those that a filter shows.

A run first chooses its badges, portion by portion, and drops what was not sent yet.
Then it lets badges be revoked, those first that nobody has accepted, by the worker that
issues: never more than a few at a time, so that a stop comes in time. What is on its
way when it is chosen settles first. What a crash leaves half done is taken up again:
each step is one transaction, and a badge that was chosen has a row that says how far it
is.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import secrets
import typing as t

import sqlalchemy as sa
from sqlalchemy import orm

from ..catalog import clean
from ..models import Batch
from ..models import BatchRow
from ..models import Issuance
from . import audit
from . import backfills
from . import clock
from . import gates
from . import transitions
from .actions import CAN_DROP
from .actions import DROPPED
from .actions import problem_with
from .conditions import is_of
from .issuances import Filter
from .issuances import is_connected
from .issuances import STATES
from .paging import fetch
from .paging import fetch_all
from .paging import Page
from .paging import Session
from .transaction import connect
from .transaction import in_transaction
from .transitions import admin

LEASE = dt.timedelta(minutes=1)
"""After which another worker takes up a run that nothing was heard of."""

REST = dt.timedelta(seconds=5)
"""After which it is looked what became of the badges that are being revoked."""

PORTION = 500
"""Badges of one transaction."""

AT_A_TIME = 2000
"""Badges of a run that wait to be revoked, or are on their way."""

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

_ROWS = t.cast(sa.Table, BatchRow.__table__)


def _standing(tenant: str) -> sa.ColumnElement[str]:
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
        waited = sa.or_(
            Issuance.state.in_(STATES["waiting"]), Issuance.settled_at >= asked_at
        )
        wanted = dataclasses.replace(self.wanted, status=None)
        query = dataclasses.replace(self, wanted=wanted).select(tenant)
        return query.where(waited)

    def _between(self, query: sa.Select[Issuance]) -> sa.Select[Issuance]:
        if self.since is not None:
            query = query.where(Issuance.recorded_at >= self.since)

        if self.until is not None:
            query = query.where(Issuance.recorded_at < self.until)

        return query


_WANTED = ("status", "became", "text")


def _stored(selection: Selection) -> dict[str, t.Any]:
    wanted = {name: getattr(selection.wanted, name) for name in _WANTED}
    given = {name: value for name, value in wanted.items() if value}
    return {
        "undoes": selection.undoes,
        "kind": selection.wanted.kind,
        "course_id": selection.wanted.course_id,
        "since": selection.since,
        "until": selection.until,
        "wanted": given or None,
    }


def _selection_of(run: t.Any) -> Selection:
    course = {"kind": run.kind, "course_id": run.course_id}
    return Selection(
        undoes=run.undoes,
        # Of a backfill they are there for its name.
        wanted=Filter() if run.undoes else Filter(**course, **run.wanted or {}),
        since=run.since,
        until=run.until,
    )


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
        Issuance.id, _standing(tenant).label("standing")
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

    stored = _stored(selection)
    first_id, last_id = found.first_id, found.last_id

    if selection.undoes is not None:
        this = (Batch.id == selection.undoes, Batch.tenant == tenant)
        # First: one that records at this moment is waited for, and its rows seen.
        backfills.stop_recording(connection, *this, Batch.state == "recording")
        undone = connection.execute(
            sa.select(Batch.kind, Batch.course_id, Batch.course_title).where(
                *this, backfills.IS_BACKFILL
            )
        ).one_or_none()

        if undone is None:
            return None

        stored |= undone._mapping
        title = title or undone.course_title
        first_id, last_id = connection.execute(
            sa.select(sa.func.min(Issuance.id), sa.func.max(Issuance.id)).where(
                Issuance.tenant == tenant, Issuance.batch_id == selection.undoes
            )
        ).one()

    doing = connection.execute(
        sa.select(Batch).where(
            Batch.tenant == tenant,
            IS_UNDO,
            Batch.state.in_(("choosing", "revoking")),
        )
    ).all()

    for each in doing:
        if all(
            getattr(each, name) == stored[name]
            for name in ("undoes", "kind", "course_id", "since", "until", "wanted")
        ):
            return t.cast(int, each.id)

    now = clock.now(connection)
    added = connection.execute(
        sa.insert(Batch).values(
            **stored | {"course_title": title},
            **values,
            tenant=tenant,
            verb="undo",
            state="choosing",
            started_at=now,
            due_at=now,
            reached=first_id - 1,
            last_id=last_id,
        )
    )
    target = f"{title}: {values['number']}" if title else str(values["number"])
    audit.note(connection, tenant, by, "take back", target)
    assert added.inserted_primary_key is not None
    return t.cast(int, added.inserted_primary_key[0])


IS_UNDO = Batch.verb == "undo"


# What a worker does


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that this worker has taken up."""

    id: int
    tenant: str
    lease: str


def _due(now: dt.datetime) -> sa.Select[int, str]:
    due = sa.select(Batch.id, Batch.tenant).where(Batch.due_at <= now, IS_UNDO)
    return due.order_by(Batch.due_at, Batch.id)


def due_for(engine: sa.Engine) -> list[str]:
    """Get the communities of which a run waits for a worker."""
    with connect(engine) as connection:
        due = _due(clock.now(connection))
        return [tenant for _, tenant in connection.execute(due)]


@in_transaction
def take(connection: sa.Connection) -> Run | None:
    """Take up a run that is due, of whichever community."""
    now = clock.now(connection)
    lease = secrets.token_hex(16)

    for id_, tenant in connection.execute(_due(now)).all():
        taken = connection.execute(
            sa.update(Batch)
            .where(Batch.id == id_, Batch.tenant == tenant, Batch.due_at <= now)
            .values(due_at=now + LEASE, lease=lease)
        ).rowcount

        if taken:
            return Run(id_, tenant, lease)

    return None


def _held(run: Run) -> tuple[sa.ColumnElement[bool], ...]:
    return (Batch.id == run.id, Batch.tenant == run.tenant, Batch.lease == run.lease)


Step = t.Literal["more", "rest", "over"]
"""``more``: there is more to do now. ``rest``: nothing is, until badges have been
revoked or issued. ``over``: nothing is any more, or the run is another worker's.
"""


@in_transaction
def step(connection: sa.Connection, run: Run) -> Step:
    """Do one portion of a run."""
    now = clock.now(connection)
    held = connection.execute(
        sa.update(Batch).where(*_held(run)).values(due_at=now + LEASE)
    ).rowcount

    if not held:
        return "over"

    batch = connection.execute(
        sa.select(
            Batch.id,
            Batch.tenant,
            Batch.state,
            Batch.started_at,
            Batch.undoes,
            Batch.kind,
            Batch.course_id,
            Batch.since,
            Batch.until,
            Batch.wanted,
            Batch.reached,
            Batch.last_id,
            Batch.reason,
            Batch.tell_pending,
            Batch.tell_accepted,
        ).where(*_held(run))
    ).one()
    step = {"choosing": _choose, "revoking": _go_on, "stopping": _wind_up}[batch.state]
    return step(connection, batch, now)


@in_transaction
def leave(connection: sa.Connection, run: Run, *, rest: bool) -> None:
    """Leave the rest of a run to another worker.

    :param rest: Whether there is nothing to do for now.
    """
    due_at = clock.now(connection) + (REST if rest else dt.timedelta())
    connection.execute(
        sa.update(Batch)
        .where(*_held(run), Batch.state.in_(GOES_ON))
        .values(due_at=due_at, lease=None)
    )


def _choose(connection: sa.Connection, batch: t.Any, now: dt.datetime) -> Step:
    tenant = batch.tenant
    query = _selection_of(batch).in_order(tenant, batch.started_at)
    ids = connection.scalars(
        query.with_only_columns(Issuance.id)
        .where(Issuance.id > batch.reached, Issuance.id <= batch.last_id)
        .order_by(Issuance.id)
        .limit(PORTION)
    ).all()
    standings = _stand(connection, tenant, ids)
    dropped = _drop(connection, tenant, _with("drop", standings), now)
    rows = [
        {
            "tenant": tenant,
            "batch_id": batch.id,
            "issuance_id": id_,
            "outcome": _outcome(id_, standing, dropped),
        }
        for id_, standing in standings.items()
    ]

    if rows:
        connection.execute(sa.insert(_ROWS), rows)

    changes: dict[str, t.Any] = {"reached": ids[-1] if ids else batch.last_id}

    if len(ids) < PORTION:
        changes |= {"state": "revoking", "wanted": None}

    _change(connection, batch, **changes)
    return "more"


def _stand(
    connection: sa.Connection, tenant: str, ids: cabc.Sequence[int]
) -> dict[int, Standing]:
    if not ids:
        return {}

    found = connection.execute(
        sa.select(Issuance.id, _standing(tenant))
        .where(Issuance.id.in_(ids), is_of(tenant))
        .order_by(Issuance.id)
    )
    return {id_: t.cast(Standing, standing) for id_, standing in found}


def _with(standing: Standing, standings: dict[int, Standing]) -> list[int]:
    return [id_ for id_, each in standings.items() if each == standing]


def _outcome(id_: int, standing: Standing, dropped: cabc.Collection[int]) -> Outcome:
    if standing == "drop":
        # A worker has taken it at this moment.
        return "dropped" if id_ in dropped else "waits"

    return standing


def _drop(
    connection: sa.Connection, tenant: str, ids: list[int], now: dt.datetime
) -> cabc.Collection[int]:
    """Take back what was not sent. Get the ids of what was."""
    if not ids:
        return ()

    these = (Issuance.id.in_(ids), is_of(tenant))
    number = transitions.end(
        connection, "cancelled", now, *these, CAN_DROP, reason=DROPPED
    )

    if number == len(ids):
        return ids

    return set(
        connection.scalars(
            sa.select(Issuance.id).where(
                *these,
                Issuance.state == "cancelled",
                Issuance.reason == DROPPED,
                Issuance.settled_at == now,
            )
        )
    )


def _go_on(connection: sa.Connection, batch: t.Any, now: dt.datetime) -> Step:
    changed = _settle(connection, batch) + _look_at_waiting(connection, batch, now)
    room = AT_A_TIME - _count(connection, batch, "asked")

    if room > 0:
        outcomes: tuple[t.Literal["pending", "accepted"], ...] = ("pending", "accepted")

        for outcome in outcomes:
            limit = min(PORTION, room)
            ids = _some(connection, batch, limit, BatchRow.outcome == outcome)

            # Those who have accepted come last.
            if ids:
                _open(connection, batch, outcome, ids, now)
                return "more"

    if changed:
        return "more"

    return _end(connection, batch, "done")


def _some(
    connection: sa.Connection,
    batch: t.Any,
    limit: int,
    *where: sa.ColumnElement[bool],
) -> cabc.Sequence[int]:
    return connection.scalars(
        sa.select(BatchRow.issuance_id)
        .where(*_of(batch), *where)
        .order_by(BatchRow.issuance_id)
        .limit(limit)
    ).all()


def _of(batch: t.Any) -> tuple[sa.ColumnElement[bool], ...]:
    return (BatchRow.tenant == batch.tenant, BatchRow.batch_id == batch.id)


def _count(connection: sa.Connection, batch: t.Any, *outcomes: str) -> int:
    number = connection.scalar(
        sa.select(sa.func.count())
        .select_from(BatchRow)
        .where(*_of(batch), BatchRow.outcome.in_(outcomes))
    )
    return number or 0


def _open(
    connection: sa.Connection,
    batch: t.Any,
    outcome: t.Literal["pending", "accepted"],
    ids: cabc.Sequence[int],
    now: dt.datetime,
) -> None:
    """Let badges be revoked that were chosen, where that is still to be done."""
    standings = _stand(connection, batch.tenant, ids)
    outcomes: dict[int, Outcome] = {
        id_: _outcome(id_, standing, ()) for id_, standing in standings.items()
    }

    tells: tuple[tuple[t.Literal["pending", "accepted"], bool], ...] = (
        ("pending", batch.tell_pending),
        ("accepted", batch.tell_accepted),
    )

    for standing, tell in tells:
        # One that was accepted since it was chosen has its turn with the others.
        if (outcome, standing) != ("pending", "accepted"):
            those = _with(standing, standings)
            revoked = _revoke(connection, batch, those, tell, now)
            outcomes |= dict.fromkeys(revoked, "asked")

    _write(connection, batch, outcomes)


def _revoke(
    connection: sa.Connection,
    batch: t.Any,
    ids: list[int],
    tell: bool,
    now: dt.datetime,
) -> cabc.Collection[int]:
    """Let badges be revoked. Get the ids of those that are."""
    if not ids:
        return ()

    these = (Issuance.id.in_(ids), is_of(batch.tenant))
    number = admin.revoke(
        connection,
        *these,
        is_connected(batch.tenant),
        reason=batch.reason,
        tell=tell,
        due_at=now,
        # What comes in does not wait for the thousands of a run.
        bulk=True,
    )

    if number == len(ids):
        return ids

    # Something else was done about the others at this moment.
    return set(
        connection.scalars(
            sa.select(Issuance.id).where(
                *these, Issuance.action == "revoke", Issuance.due_at == now
            )
        )
    )


def _settle(connection: sa.Connection, batch: t.Any) -> int:
    """Write down what came of badges that were to be revoked. Get how many."""
    found = connection.execute(
        sa.select(
            Issuance.id,
            _standing(batch.tenant).label("standing"),
            sa.func.coalesce(Issuance.error, Issuance.reason).label("error"),
        )
        .join(BatchRow, BatchRow.issuance_id == Issuance.id)
        .where(
            *_of(batch),
            is_of(batch.tenant),
            BatchRow.outcome == "asked",
            sa.or_(Issuance.action.is_(None), sa.not_(is_connected(batch.tenant))),
        )
        .limit(PORTION)
    ).all()
    outcomes: dict[int, Outcome] = {}

    for id_, standing, error in found:
        if standing == "was revoked":
            outcomes[id_] = "revoked"
        elif standing in ("pending", "accepted"):
            # What a stop takes back has no error.
            outcomes[id_] = "failed" if error else "stopped"
        else:
            outcomes[id_] = t.cast(Outcome, standing)

    _write(connection, batch, outcomes)
    return len(outcomes)


def _look_at_waiting(connection: sa.Connection, batch: t.Any, now: dt.datetime) -> int:
    """See to badges that were on their way and are settled. Get how many."""
    ids = connection.scalars(
        sa.select(Issuance.id)
        .join(BatchRow, BatchRow.issuance_id == Issuance.id)
        .where(
            *_of(batch),
            is_of(batch.tenant),
            BatchRow.outcome == "waits",
            sa.or_(
                Issuance.action.is_(None),
                CAN_DROP,
                Issuance.action == "revoke",
                sa.not_(is_connected(batch.tenant)),
            ),
        )
        .limit(PORTION)
    ).all()
    standings = _stand(connection, batch.tenant, ids)
    dropped = _drop(connection, batch.tenant, _with("drop", standings), now)
    outcomes = {
        id_: _outcome(id_, standing, dropped) for id_, standing in standings.items()
    }
    _write(connection, batch, outcomes)
    return len(outcomes)


def _wind_up(connection: sa.Connection, batch: t.Any, now: dt.datetime) -> Step:
    """Write down what a stop has left, once what is on its way has settled."""
    waiting = ("waits", "pending", "accepted")
    ids = _some(connection, batch, PORTION, BatchRow.outcome.in_(waiting))
    _write(connection, batch, dict.fromkeys(ids, "stopped"))

    if _settle(connection, batch) or ids:
        return "more"

    return _end(connection, batch, "stopped")


def _write(
    connection: sa.Connection, batch: t.Any, outcomes: cabc.Mapping[int, Outcome]
) -> None:
    by_outcome: dict[Outcome, list[int]] = {}

    for id_, outcome in outcomes.items():
        by_outcome.setdefault(outcome, []).append(id_)

    for outcome, ids in by_outcome.items():
        connection.execute(
            sa.update(_ROWS)
            .where(
                _ROWS.c.tenant == batch.tenant,
                _ROWS.c.batch_id == batch.id,
                _ROWS.c.issuance_id.in_(ids),
            )
            .values(outcome=outcome)
        )


def _end(connection: sa.Connection, batch: t.Any, state: str) -> Step:
    if _count(connection, batch, *OPEN):
        return "rest"

    _change(connection, batch, state=state, due_at=None, lease=None)
    return "over"


def _change(connection: sa.Connection, batch: t.Any, **values: t.Any) -> None:
    this = (Batch.id == batch.id, Batch.tenant == batch.tenant)
    connection.execute(sa.update(Batch).where(*this).values(**values))


# What an admin sees and does


@in_transaction
def stop(
    connection: sa.Connection, tenant: str, run_id: int, *, by: str | None = None
) -> bool:
    """Take back nothing more. A badge whose revocation is on its way is revoked.

    :param by: Who does it, for :func:`.audit.note`.
    :return: Whether the run was not over.
    """
    now = clock.now(connection)
    this = (Batch.id == run_id, Batch.tenant == tenant)
    stopped = connection.execute(
        sa.update(Batch)
        .where(*this, IS_UNDO, Batch.state.in_(("choosing", "revoking")))
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
    transitions.end(
        connection,
        "cancelled",
        now,
        Issuance.id.in_(asked),
        is_of(tenant),
        Issuance.action == "revoke",
        Issuance.lease.is_(None),
        Issuance.attempts == 0,
        Issuance.outcome_unknown.is_(False),
    )
    return True


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is.

    :param count: Badges that were chosen, by their outcome.
    """

    run: Batch
    count: dict[str, int]

    def __getitem__(self, outcome: str) -> int:
        return self.count.get(outcome, 0)

    @property
    def chosen(self) -> int:
        """How many badges were looked at."""
        return sum(self.count.values())

    @property
    def left_alone(self) -> int:
        """How many of them are left alone."""
        return sum(self[each] for each in LEFT_ALONE)

    @property
    def done(self) -> int:
        """How many need nothing more."""
        return self.chosen - sum(self[each] for each in OPEN)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.run.state not in GOES_ON


def progress(session: Session, tenant: str, run_id: int) -> Progress | None:
    """Count how far a run is."""
    this = (Batch.id == run_id, Batch.tenant == tenant, IS_UNDO)
    query = sa.select(Batch).where(*this).execution_options(populate_existing=True)

    if (run := session.scalars(query).one_or_none()) is None:
        return None

    counted = session.execute(
        sa.select(BatchRow.outcome, sa.func.count())
        .where(BatchRow.tenant == tenant, BatchRow.batch_id == run_id)
        .group_by(BatchRow.outcome)
    )
    return Progress(run, {outcome: number for outcome, number in counted})


def latest(
    session: Session, tenant: str, *, undoes: int | None = None, going_on: bool = False
) -> list[Batch]:
    """Get the latest runs, latest first.

    :param undoes: Only those that undo this backfill.
    :param going_on: Only those that are not over.
    """
    query = sa.select(Batch).where(Batch.tenant == tenant, IS_UNDO)

    if undoes is not None:
        query = query.where(Batch.undoes == undoes)

    if going_on:
        query = query.where(Batch.state.in_(GOES_ON))

    return list(session.scalars(query.order_by(Batch.id.desc()).limit(5)))


def page(
    session: Session,
    tenant: str,
    run_id: int,
    outcomes: cabc.Collection[str] = (),
    *,
    before: int | None = None,
    after: int | None = None,
) -> Page[BatchRow]:
    """Get some of the badges that a run has chosen, each with its row.

    :param outcomes: Only those. Empty: all.
    """
    query = _chosen(tenant, run_id, outcomes)
    return fetch(session, query, BatchRow.issuance_id, before=before, after=after)


def every(
    engine: sa.Engine, tenant: str, run_id: int, outcomes: cabc.Collection[str] = ()
) -> cabc.Iterator[BatchRow]:
    """Get all of them, for an export."""
    return fetch_all(engine, _chosen(tenant, run_id, outcomes), BatchRow.issuance_id)


def _chosen(
    tenant: str, run_id: int, outcomes: cabc.Collection[str]
) -> sa.Select[BatchRow]:
    query = sa.select(BatchRow).options(
        orm.joinedload(BatchRow.issuance, innerjoin=True)
    )
    query = query.where(BatchRow.tenant == tenant, BatchRow.batch_id == run_id)
    return query.where(BatchRow.outcome.in_(outcomes)) if outcomes else query
