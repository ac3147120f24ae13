"""How far a run is that takes many badges back, and what came of each of them."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses

import sqlalchemy as sa
from sqlalchemy import orm

from ..models import Batch
from ..models import BatchRow
from ..models import Issuance
from . import runs
from .paging import fetch
from .paging import fetch_all
from .paging import Page
from .paging import Session
from .undos import GOES_ON
from .undos import LEFT_ALONE
from .undos import OPEN
from .undos import standing_in


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
    if (run := runs.get(session, tenant, run_id, "undo")) is None:
        return None

    counted = session.execute(
        sa.select(BatchRow.outcome, sa.func.count())
        .where(BatchRow.tenant == tenant, BatchRow.batch_id == run_id)
        .group_by(BatchRow.outcome)
    )
    count = {outcome: number for outcome, number in counted}

    # Whoever revokes them, the run's own worker writes it down: that one may be late.
    if count.get("asked") and (revoked := _revoked(session, tenant, run_id)):
        count["asked"] -= revoked
        count["revoked"] = count.get("revoked", 0) + revoked

    return Progress(
        run, {outcome: count[outcome] for outcome in count if count[outcome]}
    )


def _revoked(session: Session, tenant: str, run_id: int) -> int:
    """Count badges that are revoked, and of which the run does not know it yet."""
    number = session.scalar(
        sa.select(sa.func.count())
        .select_from(BatchRow)
        .join(Issuance, Issuance.id == BatchRow.issuance_id)
        .where(
            BatchRow.tenant == tenant,
            BatchRow.batch_id == run_id,
            BatchRow.outcome == "asked",
            standing_in(tenant) == "was revoked",
        )
    )
    return number or 0


def latest(
    session: Session, tenant: str, *, undoes: int | None = None, going_on: bool = False
) -> list[Batch]:
    """Get the latest runs, latest first.

    :param undoes: Only those that undo this backfill.
    :param going_on: Only those that are not over.
    """
    where = [] if undoes is None else [Batch.undoes == undoes]
    where += [Batch.state.in_(GOES_ON)] if going_on else []
    return runs.latest(session, tenant, "undo", *where)


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
