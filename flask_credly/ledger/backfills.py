"""Runs that record the past completions of a course.

What a crash leaves half done is taken up again: a run's own row says that it is due,
and the unique key of the ledger skips what was recorded before.
"""

from __future__ import annotations

import collections
import collections.abc as cabc
import dataclasses
import datetime as dt
import typing as t

import sqlalchemy as sa

from ..catalog import Completion
from ..models import Account
from ..models import Batch
from ..models import DifferenceRow
from ..models import Issuance
from ..models import Mapping
from ..models import Template
from ..options import GAPS
from ..options import Options
from ..options import RENEW
from . import audit
from . import clock
from . import gates
from . import runs
from . import transitions
from .conditions import NEVER_SENT
from .insert import of_mapping
from .issuances import is_ours
from .paging import Session
from .reasons import TAKEN_UP_AGAIN
from .runs import Run
from .transaction import connect
from .transaction import in_transaction
from .transitions import admin
from .transitions import host

LOOK_BACK = dt.timedelta(days=7)
"""How long before now, or before the first completion that could not be recorded,
completions are looked at.
"""

ERASED_NEAR = dt.timedelta(minutes=5)
"""How far the host's time of a completion may be from that of an erased row for both to
be the same: each may come from another clock.
"""


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is.

    :param to_issue: Badges that it added to the ledger, without those that were taken
        back.
    :param issued: Among them those that were issued, whatever became of them since.
    :param failed: Among them those that could not be issued.
    """

    run: Batch
    to_issue: int
    issued: int
    failed: int

    @property
    def done(self) -> int:
        """How many need nothing more."""
        return self.issued + self.failed

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.run.state != "recording" and self.done == self.to_issue


@in_transaction
def start(
    connection: sa.Connection,
    tenant: str,
    mapping_id: int,
    since: dt.datetime | None = None,
    *,
    by: str | None = None,
    healing: bool = False,
) -> int | None:
    """Begin a run for a mapping's course. A worker does the rest.

    :param since: Only completions from then on.
    :param healing: Whether nobody has asked for it: see :attr:`.Batch.healing`.
    :param by: Who does it, for :func:`.audit.note`.
    :return: The run's number, or ``None`` if the mapping is gone.
    """
    # The lock keeps two clicks from beginning two, and Remove away.
    if not gates.lock(connection, tenant):
        return None

    mapping = connection.execute(
        _TO_BEGIN.where(Mapping.tenant == tenant, Mapping.id == mapping_id)
    ).one_or_none()

    if mapping is None:
        return None

    recording = connection.scalar(
        sa.select(Batch.id).where(
            Batch.tenant == tenant,
            Batch.verb == "backfill",
            Batch.state == "recording",
            Batch.kind == mapping.kind,
            Batch.course_id == mapping.course_id,
        )
    )

    if recording is not None:
        return recording

    run_id = runs.begin(
        connection,
        clock.now(connection),
        **mapping._mapping,
        since=since,
        verb="backfill",
        state="recording",
        healing=healing,
    )
    action = "heal" if healing else "start backfill"
    audit.note(connection, tenant, by, action, mapping.course_title)
    return run_id


_TO_BEGIN = sa.select(
    Mapping.tenant, Mapping.kind, Mapping.course_id, Mapping.course_title
)


def _add(
    connection: sa.Connection,
    run: Run,
    completions: cabc.Sequence[Completion],
    *,
    incomplete: int,
) -> bool:
    """Record some completions, but for those that are in the ledger already.

    :param incomplete: How many more were read that cannot be issued.
    :return: Whether to go on.
    """
    now = clock.now(connection)
    goes_on = runs.hold(
        connection,
        run,
        now,
        completed=Batch.completed + len(completions) + incomplete,
        incomplete=Batch.incomplete + incomplete,
    )

    if not goes_on:
        return False

    is_erased = runs.left_out(connection, run)
    completions = [each for each in completions if not is_erased(each.member.id)]
    this = (
        Mapping.tenant == run.tenant,
        Mapping.kind == run.kind,
        Mapping.course_id == run.course_id,
    )
    # A change of the mapping waits, or is seen.
    connection.execute(sa.select(Mapping.id).where(*this).with_for_update(read=True))
    mapped = connection.execute(
        of_mapping(
            Account.organization_id,
            Template.id.label("template_id"),
            Template.name.label("badge_name"),
            Mapping.options,
            Mapping.created_at,
        ).where(*this)
    ).one_or_none()

    if mapped is None:
        runs.end(connection, *runs.held(run), state="stopped")
        return False

    common = dict(mapped._mapping)
    mapped_at = common.pop("created_at")
    common |= {
        "tenant": run.tenant,
        "kind": run.kind,
        "course_id": run.course_id,
        "recorded_at": now,
        "due_at": now,
        "bulk": True,
        "batch_id": run.id,
    }
    # The course may have been mapped anew meanwhile.
    fresh = [
        each
        for each in completions
        if not run.healing or (mapped_at and each.completed_at >= mapped_at)
    ]
    again = Options.read(common["options"]).again
    found = [(each, 1) for each in fresh]

    if again:
        found = _further(connection, run.tenant, run.kind, run.course_id, fresh, again)

    rows = [
        {
            **common,
            "member_id": each.member.id,
            "email": each.member.email,
            "first_name": each.member.first_name,
            "last_name": each.member.last_name,
            "completed_at": each.completed_at,
            "completion_id": each.completion_id,
            "extras": each.extras,
            "cycle": cycle,
            "renewal": again == RENEW,
        }
        for each, cycle in found
    ]

    if rows:
        if not run.healing and not again:
            _revive(connection, rows)

        host.insert_new(connection, rows)

    return True


add = in_transaction(_add)


@in_transaction
def record(
    connection: sa.Connection,
    tenant: str,
    mapping_id: int,
    completions: cabc.Sequence[Completion],
    numbers: cabc.Mapping[tuple[str, dt.datetime], int | None],
    comparison: Run | None = None,
) -> int:
    """Record some completions of a mapping's course, as a run of their own.

    :param numbers: The stored differences that say that they are not recorded, by
        member and time.
    :param comparison: The run that has found them, where they are not stored.
    :return: How many. Those that are in the ledger already are none.
    """
    if not gates.lock(connection, tenant):
        return 0

    # They go with the member. One who is being erased is waited for, or waits.
    there = connection.scalars(
        sa.select(DifferenceRow.id)
        .where(
            DifferenceRow.tenant == tenant,
            DifferenceRow.id.in_([each for each in numbers.values() if each]),
        )
        .with_for_update()
    )
    left = {None, *there}
    completions = [
        each
        for each in completions
        if numbers[each.member.id, each.completed_at] in left
    ]

    if comparison is not None:
        may_name = runs.may_name(connection, comparison)
        completions = [each for each in completions if may_name(each.member.id)]

    mapping = connection.execute(
        _TO_BEGIN.where(Mapping.tenant == tenant, Mapping.id == mapping_id)
    ).one_or_none()

    if mapping is None or not completions:
        return 0

    run_id = runs.begin(
        connection,
        clock.now(connection),
        **mapping._mapping,
        verb="backfill",
        state="recording",
    )
    # Before the commit: no worker takes it up, and records all that the host has.
    run = runs.take_in(connection, "backfill", run_id)
    assert run is not None
    _add(connection, run, completions, incomplete=0)
    runs.end(connection, *runs.held(run), state="recorded")
    these = (Issuance.tenant == tenant, Issuance.batch_id == run_id)
    return connection.scalar(sa.select(sa.func.count()).where(*these)) or 0


def by_time(completion: Completion) -> tuple[dt.datetime, str]:
    """Order completions, the oldest first: the same, however they were given."""
    return completion.completed_at, completion.completion_id or ""


def _further(
    connection: sa.Connection,
    tenant: str,
    kind: str,
    course_id: str,
    completions: cabc.Iterable[Completion],
    again: str,
) -> list[tuple[Completion, int]]:
    """Choose the completions that are not in the ledger yet, the first of a member and
    those that are further ones: each with its cycle, oldest first. As where one comes
    in by itself, a completion that is not later than the last opens none.

    :param again: Which of :data:`flask_credly.options.GAPS`.
    """
    ordered = sorted(completions, key=by_time)
    rows = connection.execute(
        sa.select(
            Issuance.member_id,
            Issuance.cycle,
            Issuance.completed_at,
            Issuance.completion_id,
            Issuance.withdrawn_at,
            host.IS_IN_THE_WAY.label("in_the_way"),
        ).where(
            is_ours(tenant),
            Issuance.kind == kind,
            Issuance.course_id == course_id,
            Issuance.member_id.in_({each.member.id for each in ordered}),
        )
    )
    cycles: dict[str, int] = {}
    known: dict[str, list[tuple[dt.datetime, str | None]]] = {}
    withdrawn: dict[str, list[dt.datetime]] = {}

    for row in rows:
        if row.withdrawn_at is not None:
            withdrawn.setdefault(row.member_id, []).append(row.withdrawn_at)

        cycles[row.member_id] = max(row.cycle, cycles.get(row.member_id, 0))

        if row.in_the_way:
            before = (row.completed_at, row.completion_id)
            known.setdefault(row.member_id, []).append(before)

    found: list[tuple[Completion, int]] = []

    for each in ordered:
        id_ = each.member.id
        before_it = known.setdefault(id_, [])

        if any(_adds_nothing(each, at, cid, again) for at, cid in before_it) or any(
            at >= each.completed_at for at in withdrawn.get(id_, ())
        ):
            continue

        cycles[id_] = cycles.get(id_, 0) + 1
        before_it.append((each.completed_at, each.completion_id))
        found.append((each, cycles[id_]))

    return found


def _adds_nothing(
    new: Completion, at: dt.datetime, completion_id: str | None, again: str
) -> bool:
    """Whether a completion may be the same as one that is there, or is older: as the
    statement says in :mod:`.insert`.
    """
    if new.completion_id is None:
        return at > new.completed_at - GAPS[again]

    return (
        completion_id == new.completion_id
        or at > new.completed_at
        or (at == new.completed_at and completion_id is None)
    )


def count_further(
    engine: sa.Engine,
    tenant: str,
    kind: str,
    course_id: str,
    completions: cabc.Sequence[Completion],
    again: str,
) -> int:
    """Count the completions that would be recorded: see :func:`never_there`."""
    with connect(engine) as connection:
        found = _further(connection, tenant, kind, course_id, completions, again)
        return len(found)


def again_of(engine: sa.Engine, tenant: str, kind: str, course_id: str) -> str:
    """Get what a further completion of a course does: see :attr:`.Options.again`."""
    with connect(engine) as connection:
        options = connection.scalar(
            sa.select(Mapping.options).where(
                Mapping.tenant == tenant,
                Mapping.kind == kind,
                Mapping.course_id == course_id,
            )
        )

    return Options.read(options).again


def _revive(connection: sa.Connection, rows: list[dict[str, t.Any]]) -> None:
    """Take up what an earlier run was stopped before, or what was not mapped when its
    turn came, with the members' data of now.
    """
    given = {row["member_id"]: row for row in rows}
    taken_back = connection.execute(
        sa.select(Issuance.id, Issuance.member_id).where(
            Issuance.tenant == rows[0]["tenant"],
            Issuance.kind == rows[0]["kind"],
            Issuance.course_id == rows[0]["course_id"],
            Issuance.member_id.in_(given),
            Issuance.organization_id == rows[0]["organization_id"],
            *_TAKEN_BACK,
        )
    ).all()

    if taken_back:
        names = (
            *("template_id", "badge_name", "due_at", "batch_id"),
            *("email", "first_name", "last_name", "options", "extras"),
            "completion_id",
        )
        admin.reopen_for_batch(
            connection,
            [
                {"id": id_, **{name: given[member_id][name] for name in names}}
                for id_, member_id in taken_back
            ],
            Issuance.tenant == rows[0]["tenant"],
            *_TAKEN_BACK,
        )


_TAKEN_BACK = (
    Issuance.state == "cancelled",
    # Not IN, which cannot be executed for many rows at once.
    sa.or_(*(Issuance.reason == each for each in TAKEN_UP_AGAIN)),
    Issuance.erased_at.is_(None),
)


@in_transaction
def finish(connection: sa.Connection, run: Run, *, failed: bool = False) -> None:
    """Note that all was recorded, or that it could not be."""
    state = "failed" if failed else "recorded"
    runs.end(connection, *runs.held(run), state=state)


@in_transaction
def stop(
    connection: sa.Connection, tenant: str, run_id: int, *, by: str | None = None
) -> int:
    """Take back what was not begun. What is on its way is finished.

    :param by: Who does it, for :func:`.audit.note`.
    :return: How many badges were taken back.
    """
    this = runs.this(tenant, run_id, "backfill")
    goes_on = Batch.state.in_(("recording", "recorded"))

    if runs.end(connection, *this, goes_on, state="stopped"):
        title = connection.scalar(sa.select(Batch.course_title).where(*this))
        audit.note(connection, tenant, by, "stop backfill", title or "")

    # Kept, and shown: the same completion may have been signalled since.
    return transitions.end(
        connection,
        "cancelled",
        clock.now(connection),
        Issuance.tenant == tenant,
        Issuance.batch_id == run_id,
        NEVER_SENT,
        reason="stopped",
    )


def progress(session: Session, tenant: str, run_id: int) -> Progress | None:
    """Count how far a run is."""
    run = runs.get(session, tenant, run_id, "backfill")
    return _progress(session, run) if run else None


def under_way(session: Session, tenant: str) -> list[Progress]:
    """Get the latest runs that are not over yet, latest first."""
    latest = runs.latest(session, tenant, "backfill")
    found = [_progress(session, run) for run in latest]
    return [each for each in found if not each.is_over]


def _progress(session: Session, run: Batch) -> Progress:
    counted = session.execute(
        sa.select(Issuance.state, sa.func.count())
        .where(Issuance.tenant == run.tenant, Issuance.batch_id == run.id)
        .group_by(Issuance.state)
    )
    count: collections.Counter[str] = collections.Counter(
        {state: number for state, number in counted}
    )
    return Progress(
        run=run,
        to_issue=count.total() - count["cancelled"],
        issued=sum(count[each] for each in ("issued", "held", "revoked", "replaced")),
        failed=count["failed"],
    )


def states(
    engine: sa.Engine,
    tenant: str,
    kind: str,
    course_id: str,
    member_ids: cabc.Collection[str],
) -> dict[str, str]:
    """Get what the ledger has for some members and a course: state by member."""
    with connect(engine) as connection:
        found = connection.execute(
            sa.select(Issuance.member_id, Issuance.state).where(
                is_ours(tenant),
                Issuance.kind == kind,
                Issuance.course_id == course_id,
                Issuance.member_id.in_(member_ids),
                sa.not_(sa.and_(*_TAKEN_BACK)),
            )
        )
        return {member_id: state for member_id, state in found}


def never_there(
    engine: sa.Engine,
    tenant: str,
    kind: str,
    course_id: str,
    completions: cabc.Sequence[Completion],
    again: str = "",
) -> list[Completion]:
    """Choose the completions that the ledger has never had, whatever became of those
    that it had.

    :param again: Which of :data:`flask_credly.options.GAPS`: a further completion of a
        member who is there may be one. Empty: none is.

    A member who was erased is known by the time of completion alone. Where that is
    near, the completion is taken to be there.
    """
    with connect(engine) as connection:
        this = (Issuance.kind == kind, Issuance.course_id == course_id)
        given = _unknown(connection, tenant, kind, course_id, completions, again)

        if not given:
            return []

        times = [each.completed_at for each in given]
        near = Issuance.completed_at.between(
            min(times) - ERASED_NEAR, max(times) + ERASED_NEAR
        )
        erased = connection.scalars(
            sa.select(Issuance.completed_at).where(
                Issuance.tenant == tenant,
                *this,
                Issuance.erased_at.is_not(None),
                near,
            )
        ).all()

    return [
        each
        for each in given
        if not any(abs(each.completed_at - at) <= ERASED_NEAR for at in erased)
    ]


def _unknown(
    connection: sa.Connection,
    tenant: str,
    kind: str,
    course_id: str,
    completions: cabc.Sequence[Completion],
    again: str,
) -> list[Completion]:
    if again:
        found = _further(connection, tenant, kind, course_id, completions, again)
        return [each for each, _ in found]

    given = {each.member.id: each for each in reversed(completions)}
    known = connection.scalars(
        sa.select(Issuance.member_id).where(
            is_ours(tenant),
            Issuance.kind == kind,
            Issuance.course_id == course_id,
            Issuance.member_id.in_(given),
        )
    )

    for id_ in known:
        given.pop(id_, None)

    return list(given.values())


@in_transaction
def date_mappings(connection: sa.Connection, tenant: str) -> None:
    """Let mappings whose age is not known begin now."""
    connection.execute(
        sa.update(Mapping)
        .where(Mapping.tenant == tenant, Mapping.created_at.is_(None))
        .values(created_at=clock.now(connection))
    )


def are_recorded(engine: sa.Engine, tenant: str, run_ids: cabc.Collection[int]) -> bool:
    """Whether runs have come to their end and left nothing out."""
    with connect(engine) as connection:
        recorded = connection.scalar(
            sa.select(sa.func.count())
            .select_from(Batch)
            .where(
                Batch.tenant == tenant,
                Batch.id.in_(run_ids),
                Batch.state == "recorded",
            )
        )
        return recorded == len(run_ids)


@dataclasses.dataclass(frozen=True)
class Mapped:
    """A course that is mapped, and the badge template.

    :param again: What a further completion does: see :attr:`.Options.again`.
    """

    id: int
    kind: str
    course_id: str
    course_title: str
    created_at: dt.datetime | None
    template_id: str
    template_name: str
    again: str


def mapped(connection: sa.Connection, tenant: str) -> list[Mapped]:
    """Get all courses that are mapped."""
    found = connection.execute(
        sa.select(
            Mapping.id,
            Mapping.kind,
            Mapping.course_id,
            Mapping.course_title,
            Mapping.created_at,
            Mapping.template_id,
            Template.name.label("template_name"),
            Mapping.options,
        )
        .join(Mapping.template)
        .where(Mapping.tenant == tenant)
        .order_by(Mapping.id)
    )
    courses = []

    for row in found:
        values = dict(row._mapping)
        again = Options.read(values.pop("options")).again
        courses.append(Mapped(**values, again=again))

    return courses


@dataclasses.dataclass(frozen=True)
class Healed:
    """Completions that were missed, and added by a worker.

    :param at: When the last of them were.
    """

    number: int
    at: dt.datetime


def healed(session: Session, tenant: str, since: dt.datetime) -> Healed | None:
    """Get what was added lately. ``None``: nothing was missed."""
    number, at = session.execute(
        sa.select(sa.func.count(Issuance.id), sa.func.max(Batch.started_at))
        .join(Issuance, Issuance.batch_id == Batch.id)
        .where(Batch.tenant == tenant, Batch.healing, Batch.started_at > since)
    ).one()
    return Healed(number, at) if number else None
