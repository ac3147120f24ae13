"""Looks for what nobody rang for, and what is to be done once in a while."""

from __future__ import annotations

import logging
import typing as t

import sqlalchemy as sa

from ..ledger import backfills
from ..ledger import claim
from ..ledger import gates
from ..settings import AppState
from . import notifier
from . import unrecorded

if t.TYPE_CHECKING:
    import rq

logger = logging.getLogger("flask_credly")


def sweep(state: AppState, queue: rq.Queue, *, insist: bool) -> bool:
    """Ask for what is due: badges, the templates of the day, a backfill that was
    interrupted, completions that were missed, and that what is old is forgotten.

    :param insist: Whether to ask for a drain though one was asked for.
    :return: Whether a badge is due.
    :raises redis.RedisError: If Redis does not take it.
    """
    gate = gates.read(state.engine)
    due = claim.any_due(state.engine, gate)

    if due:
        notifier.enqueue(queue, notifier.DRAIN, insist=insist)

    if gate is not None and gate.sync_due:
        notifier.enqueue(queue, notifier.SYNC)

    if gate is not None and backfills.any_due(state.engine):
        notifier.enqueue(queue, notifier.BACKFILL)

    if gate is not None and state.heals:
        notifier.enqueue(queue, notifier.HEAL)

    notifier.enqueue(queue, notifier.PRUNE)

    try:
        unrecorded.gather(state, queue)
    except sa.exc.SQLAlchemyError as e:
        # Read-only, or full: it stays in Redis until the next sweep.
        logger.debug("The database takes no count (%s).", type(e).__name__)

    return due
