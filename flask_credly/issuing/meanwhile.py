"""Lets a long job give way to what comes in.

A host's query may take a minute, and a whole backfill an hour. With one worker, nobody
else would issue the badge of a member who completes a course meanwhile.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import logging
import threading

import sqlalchemy as sa

from ..ledger import turns
from ..state import AppState
from . import stopping
from .dispatcher import drain

logger = logging.getLogger("flask_credly")

LOOK_EVERY = 1.0
"""Seconds between two looks for a badge that is due."""

AFTER_AN_ERROR = 30.0
"""Seconds until the next look after one that failed."""


@contextlib.contextmanager
def issuing_meanwhile(state: AppState) -> cabc.Iterator[None]:
    """Issue badges that become due, from a second thread, while the block runs."""
    # With one connection for all threads, it would be in the midst of the block's
    # transaction.
    if isinstance(state.engine.pool, sa.StaticPool):
        yield
        return

    over = threading.Event()
    thread = threading.Thread(target=_issue, args=[state, over])
    thread.start()

    try:
        yield
    finally:
        over.set()
        thread.join()


def _issue(state: AppState, over: threading.Event) -> None:
    wait = LOOK_EVERY

    while not over.wait(wait) and not stopping.is_set():
        wait = LOOK_EVERY

        try:
            with state.app.app_context():
                due = turns.waiting(state.engine, live=True)

                if any(not each.opens_in for each in due):
                    drain(state)
        except Exception:
            logger.exception(
                "Issuing badges during a longer job failed. The worker retries it.",
                extra={"credly_event": "sweep_failed"},
            )
            wait = AFTER_AN_ERROR
