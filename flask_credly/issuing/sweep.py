"""Looks for what no worker was notified of, and what is to be done once in a while."""

from __future__ import annotations

import logging
import typing as t

import sqlalchemy as sa

from ..state import AppState
from . import notifier
from . import unrecorded
from .periodic import DRAIN
from .periodic import WORK

if t.TYPE_CHECKING:
    import rq

logger = logging.getLogger("flask_credly")


def sweep(state: AppState, queue: rq.Queue, *, insist: bool) -> bool:
    """Ask for all work that is due.

    :param insist: Whether to ask for a drain though one was asked for.
    :return: Whether a badge is due.
    :raises redis.RedisError: If Redis does not take it.
    """
    due = [work for work in WORK if work.is_due(state)]

    for work in due:
        notifier.enqueue(queue, work, insist=insist and work is DRAIN)

    try:
        unrecorded.gather(state, queue)
    except sa.exc.SQLAlchemyError as e:
        # Read-only, or full: it stays in Redis until the next sweep.
        logger.debug(
            "The count could not be saved in the database (%s).", type(e).__name__
        )

    return DRAIN in due
