"""What workers do, when, and for whom: one list, that the sweep, the worker, the queue
and the doctor read.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses

from ..state import AppState


@dataclasses.dataclass(frozen=True)
class Work:
    """One kind of work.

    :param name: Tells it apart in Redis.
    :param function: What RQ calls. Stored in Redis: it never changes.
    :param every: Seconds after which it is asked for once more.
    :param timeout: Seconds after which RQ ends it.
    :param due_for: Gets the communities that have some. ``None``: it is for all.
    """

    name: str
    function: str
    every: int
    timeout: int
    due_for: cabc.Callable[[AppState], cabc.Collection[str]] | None = None

    def is_due(self, state: AppState) -> bool:
        """Whether there is something to do."""
        return self.due_for is None or bool(self.due_for(state))


def _to_issue(state: AppState) -> list[str]:
    from ..ledger import turns

    waiting = turns.waiting(state.engine)
    due = [each.tenant for each in waiting if not each.opens_in]
    return due or turns.to_release(state.engine)


def _to_sync(state: AppState) -> list[str]:
    from ..ledger import turns

    return turns.to_sync(state.engine)


def _to_record(state: AppState) -> list[str]:
    from ..ledger import runs

    return runs.due_for(state.engine, "backfill")


def _to_undo(state: AppState) -> list[str]:
    from ..ledger import runs
    from .undo import STEPS

    return runs.due_for(state.engine, *STEPS)


def _to_heal(state: AppState) -> list[str]:
    from ..ledger import turns

    return turns.tenants(state.engine) if state.heals else []


def _to_poll(state: AppState) -> list[str]:
    from ..ledger import polls

    return polls.due_for(state.engine)


def _to_compare(state: AppState) -> list[str]:
    from ..ledger import comparisons
    from ..ledger import runs

    due = runs.due_for(state.engine, "compare")
    return due or comparisons.due_for(state.engine)


DAY = 86_400

# A drain ends by itself long before its time is up.
DRAIN = Work("rung", "flask_credly.jobs.drain", 60, 600, _to_issue)
SYNC = Work("sync", "flask_credly.jobs.sync", 60, 600, _to_sync)
POLL = Work("poll", "flask_credly.jobs.poll", 60, 600, _to_poll)
# While badges are revoked, it looks again and again whether there is room for more.
UNDO = Work("undo", "flask_credly.jobs.undo", 5, 600, _to_undo)
# These go through all that the host or the ledger has.
BACKFILL = Work("backfill", "flask_credly.jobs.backfill", 60, DAY // 4, _to_record)
COMPARE = Work("compare", "flask_credly.jobs.compare", 60, DAY // 4, _to_compare)
HEAL = Work("heal", "flask_credly.jobs.heal", DAY, DAY // 4, _to_heal)
PRUNE = Work("prune", "flask_credly.jobs.prune", DAY, DAY // 4)

WORK = (DRAIN, SYNC, POLL, UNDO, BACKFILL, COMPARE, HEAL, PRUNE)

FUNCTIONS = {work.function: work for work in WORK}
