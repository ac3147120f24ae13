"""Looks for what nobody rang for, and what is to be done once in a while."""

from __future__ import annotations

import typing as t

from ..ledger import backfills
from ..ledger import claim
from ..ledger import gates
from ..settings import State
from . import bell

if t.TYPE_CHECKING:
    import rq


def sweep(state: State, queue: rq.Queue, *, insist: bool) -> bool:
    """Ask for what is due: badges, the templates of the day, a backfill that was
    interrupted, and that what is old is forgotten.

    :param insist: Whether to ask for a drain though one was asked for.
    :return: Whether a badge is due.
    :raises redis.RedisError: If Redis does not take it.
    """
    gate = gates.read(state.engine)
    due = claim.any_due(state.engine, gate)

    if due:
        bell.enqueue(queue, bell.DRAIN, insist=insist)

    if gate is not None and gate.sync_due:
        bell.enqueue(queue, bell.SYNC)

    if gate is not None and backfills.any_due(state.engine):
        bell.enqueue(queue, bell.BACKFILL)

    bell.enqueue(queue, bell.PRUNE)
    return due
