"""Issues what is due, for all communities.

Each account that has something due gets a lane of its own, so that one that hangs
holds nobody up. Whose turn is longest ago comes first.
"""

from __future__ import annotations

import concurrent.futures as cf
import functools
import logging
import math
import threading
import time
import typing as t

import sqlalchemy as sa

from .. import interruption
from ..ledger import gates
from ..ledger import turns
from ..ledger.turns import Waiting
from ..state import AppState
from . import stopping
from .lane import Ended
from .lane import serve
from .lane import Share

logger = logging.getLogger("flask_credly")

BUDGET = 60.0
"""Seconds after which a drain takes no more rows and leaves them to the next."""

SHORT_PAUSE = 5.0
"""Seconds of a pause that a drain waits for. A longer one is left to the sweep."""

LOOK_EVERY = 0.25
"""Seconds between two looks for accounts that have something due by now."""

REST = 1.0
"""Seconds for which an account is left alone of which nothing could be taken."""

MOST_LANES = 8


def drain(state: AppState) -> bool:
    """Issue what is due until nothing is, the gates close, or time is up.

    :return: Whether time was up and rows may be left.
    """
    until = time.monotonic() + BUDGET
    return _Dispatcher(state, until).run()


class _Dispatcher:
    def __init__(self, state: AppState, until: float) -> None:
        self._state = state
        self._until = until
        self._end = threading.Event()
        self._rests: dict[str, float] = {}
        self._error: Exception | None = None
        self._lanes = _lanes(state)
        self._share = Share(
            most=state.settings.concurrency,
            lanes=max(2, self._lanes),
            over=self._is_over,
        )

    def _is_over(self) -> bool:
        return time.monotonic() > self._until or stopping.is_set() or self._end.is_set()

    def run(self) -> bool:
        is_left = self._run()

        if self._error is not None:
            raise self._error

        return is_left

    def _run(self) -> bool:
        while True:
            waiting = self._look()
            ready = [each for each in waiting if not each.opens_in]

            if ready:
                if self._is_over():
                    return True

                self._serve(ready)
                continue

            # Of those that have nothing else in their way.
            pauses = [each.opens_in for each in waiting]

            if not pauses or min(pauses) > SHORT_PAUSE:
                return False

            if time.monotonic() > self._until or stopping.wait(min(pauses)):
                return True

    def _look(self) -> list[Waiting]:
        now = time.monotonic()
        return [
            each
            for each in turns.waiting(self._state.engine)
            if self._rests.get(each.tenant, 0) <= now
        ]

    def _serve(self, ready: list[Waiting]) -> None:
        """Serve accounts until none is ready any more."""
        if not self._lanes:
            # In this thread, one after the other.
            self._share.accounts = len(ready)
            self._note(ready[0].tenant, functools.partial(self._serve_one, ready[0]))
            return

        with cf.ThreadPoolExecutor(self._lanes) as pool:
            try:
                self._serve_all(pool, ready)
            finally:
                self._end.set()

        self._end.clear()

    def _serve_all(self, pool: cf.ThreadPoolExecutor, ready: list[Waiting]) -> None:
        running: dict[cf.Future[Ended], str] = {}

        while True:
            self._share.accounts = len(ready) + len(running)

            for each in ready[: self._lanes - len(running)]:
                running[pool.submit(self._serve_in_context, each)] = each.tenant

            if not running:
                return

            done, _ = cf.wait(running, LOOK_EVERY, cf.FIRST_COMPLETED)

            for future in done:
                self._note(running.pop(future), future.result)

            served = set(running.values())
            ready = (
                []
                if self._is_over()
                else [
                    each
                    for each in self._look()
                    if not each.opens_in and each.tenant not in served
                ]
            )

    def _note(self, tenant: str, result: t.Callable[[], Ended]) -> None:
        try:
            ended = result()
        except Exception as e:
            # A time-out of the job, or what else is thrown in, ends all.
            if interruption.find(e):
                raise

            # The others are served all the same; then the job fails with it.
            self._rests[tenant] = math.inf
            self._error = self._error or e

            if self._state.has_tenants:
                logger.exception(
                    "Issuing the badges of the community %r failed. The worker"
                    " retries it.",
                    tenant,
                    extra={"credly_event": "drain_failed", "credly_tenant": tenant},
                )

            return

        if ended == "keyless":
            self._rests[tenant] = math.inf
        elif ended == "nothing":
            self._rests[tenant] = time.monotonic() + REST

    def _serve_in_context(self, waiting: Waiting) -> Ended:
        with self._state.app.app_context():
            return self._serve_one(waiting)

    def _serve_one(self, waiting: Waiting) -> Ended:
        engine = self._state.engine
        gate = gates.read(engine, waiting.tenant)

        if gate is None or not gate.is_open:
            return "nothing"

        # If another worker has begun meanwhile, it has had its turn.
        if self._share.is_crowded and not gates.take_turn(
            engine, gate, waiting.served_at
        ):
            return "turn"

        return serve(self._state.of(waiting.tenant), gate, self._share)


def _lanes(state: AppState) -> int:
    """Say how many accounts to serve at a time. 0: one, in this thread."""
    if not state.has_tenants:
        return 0

    concurrency = state.settings.concurrency
    lanes = min(max(2, concurrency // 2), concurrency, MOST_LANES)
    connections = _connections(state.engine.pool)
    # One is for the thread that looks who is next.
    return lanes if connections is None else min(lanes, connections - 1)


def _connections(pool: sa.Pool) -> int | None:
    """Say how many connections there may be at a time. ``None``: enough."""
    # With one for all threads, one would be in the midst of the other's transaction;
    # or each has a database of its own in its memory.
    if isinstance(pool, (sa.StaticPool, sa.pool.SingletonThreadPool, sa.AssertionPool)):
        return 1

    overflow: int | None = getattr(pool, "_max_overflow", None)

    if not isinstance(pool, sa.QueuePool) or overflow is None:
        return None

    return None if overflow < 0 or not pool.size() else pool.size() + overflow
