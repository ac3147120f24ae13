"""Issues what is due, for all communities.

Each account that has something due gets a lane of its own, so that one that hangs
holds nobody up. Whose turn is longest ago comes first.
"""

from __future__ import annotations

import concurrent.futures as cf
import threading
import time

import sqlalchemy as sa

from ..ledger import gates
from ..ledger import turns
from ..ledger.turns import Waiting
from ..state import AppState
from .lane import Ended
from .lane import serve
from .lane import Share
from .stopping import stopping

BUDGET = 60.0
"""Seconds after which a drain takes no more rows and leaves them to the next."""

SHORT_PAUSE = 5.0
"""Seconds of a pause that a drain waits for. A longer one is left to the sweep."""

LOOK_EVERY = 0.25
"""Seconds between two looks for accounts that have something due by now."""

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
        self._crowded = threading.Event()
        self._at_rest: set[str] = set()
        most = state.settings.concurrency
        self._lanes = _lanes(state, most)
        self._share = Share(
            most=most,
            crowded=self._crowded,
            while_crowded=max(1, most // max(2, self._lanes)),
            over=self._is_over,
        )

    def _is_over(self) -> bool:
        return time.monotonic() > self._until or stopping.is_set() or self._end.is_set()

    def run(self) -> bool:
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
        return [
            each
            for each in turns.waiting(self._state.engine)
            if each.tenant not in self._at_rest
        ]

    def _serve(self, ready: list[Waiting]) -> None:
        """Serve accounts until none is ready any more."""
        if self._lanes == 1:
            # In this thread, one after the other.
            self._tell(len(ready) > 1)
            self._note(ready[0].tenant, self._serve_one(ready[0]))
            return

        with cf.ThreadPoolExecutor(self._lanes) as pool:
            try:
                self._serve_all(pool, ready)
            finally:
                self._end.set()

        self._end.clear()

    def _serve_all(self, pool: cf.ThreadPoolExecutor, ready: list[Waiting]) -> None:
        running: dict[cf.Future[Ended | None], str] = {}

        while True:
            self._tell(len(ready) + len(running) > 1)

            for each in ready[: self._lanes - len(running)]:
                running[pool.submit(self._serve_in_context, each)] = each.tenant

            if not running:
                return

            done, _ = cf.wait(running, LOOK_EVERY, cf.FIRST_COMPLETED)

            for future in done:
                self._note(running.pop(future), future.result())

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

    def _tell(self, crowded: bool) -> None:
        (self._crowded.set if crowded else self._crowded.clear)()

    def _note(self, tenant: str, ended: Ended | None) -> None:
        if ended != "idle":
            return

        # It has nothing due, or its gate was closed: if not for a short while only,
        # this drain is done with it.
        gate = gates.read(self._state.engine, tenant)

        if gate is None or gate.opens_in is None:
            self._at_rest.add(tenant)

    def _serve_in_context(self, waiting: Waiting) -> Ended | None:
        with self._state.app.app_context():
            return self._serve_one(waiting)

    def _serve_one(self, waiting: Waiting) -> Ended | None:
        """Serve one account. ``None``: another worker does, or its gate is closed."""
        engine = self._state.engine
        gate = gates.read(engine, waiting.tenant)

        if gate is None or not gate.is_open:
            return None

        if self._crowded.is_set() and not gates.take_turn(
            engine, gate, waiting.served_at
        ):
            return None

        return serve(self._state.of(waiting.tenant), gate, self._share)


def _lanes(state: AppState, concurrency: int) -> int:
    """Say how many accounts to serve at a time."""
    # With one connection for all threads, one would be in the midst of the other's
    # transaction; or each has a database of its own in its memory.
    pool = state.engine.pool

    if not state.has_tenants or isinstance(
        pool, (sa.StaticPool, sa.pool.SingletonThreadPool)
    ):
        return 1

    return min(max(2, concurrency // 2), concurrency, MOST_LANES)
