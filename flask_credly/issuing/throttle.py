"""How many requests may be made to Credly, and when."""

from __future__ import annotations

import collections
import datetime as dt
import time

import sqlalchemy as sa

from ..ledger import gates

LOOKAHEAD = 0.25
"""Seconds after which nothing goes out any more that was begun: what the admin or a
member stops meanwhile is sent all the same.
"""

CAREFUL_LIMIT = 2
"""Requests in flight after a rate limit: at the next one, so many are refused."""

HOLD_EVERY = 2.0
"""Seconds after which the one worker that sends after a rate limit says so again."""


class Throttle:
    """The pace of one account in one worker.

    :param most: How many requests may be in flight at best.
    :param per_second: As ``CREDLY_MAX_PER_SECOND``.
    :param lease: Seconds for which rows are held.
    """

    def __init__(
        self,
        engine: sa.Engine,
        gate: gates.Gate,
        *,
        most: int,
        per_second: float | None,
        lease: float,
    ) -> None:
        self._engine = engine
        self._gate = gate
        self._most = most
        self._per_second = per_second
        self._lease = lease
        self._answers = _Answers()
        self._reserved: collections.deque[float] = collections.deque()
        self._held_until: dt.datetime | None = None
        self._hold_at = 0.0
        self._highest = min(most, CAREFUL_LIMIT) if gate.careful else most
        self.limit = 1 if gate.probing else self._highest
        """How many requests may be in flight."""

    def room(self, in_flight: int) -> int:
        """Say how many more requests to begin. Some wait for a thread, so that none is
        idle while the ledger is written: not more than go out in time.
        """
        if self._gate.careful and not self._is_the_one():
            # Nothing comes any more: the rows go back, for the one that sends.
            self.forget_reserved()
            return 0

        # At the next limit they go back.
        most = 7 * self._most if self.limit == self._most else self._most
        waiting = min(self._answers.within(LOOKAHEAD / 2), most)
        return self.limit + waiting - in_flight

    def _is_the_one(self) -> bool:
        """Whether no other worker sends."""
        if (now := time.monotonic()) >= self._hold_at:
            self._hold_at = now + HOLD_EVERY
            self._held_until = gates.hold_pace(
                self._engine, self._gate, self._held_until
            )

        return self._held_until is not None

    def leave(self) -> None:
        """Let other workers send."""
        if self._held_until is not None:
            gates.leave_pace(self._engine, self._gate, self._held_until)

    def enough(self) -> int:
        """Say for how many requests to hold rows: not more than can go out within their
        lease.
        """
        number = 8 * self.limit

        if self._per_second is None:
            return number

        return min(number, max(1, int(self._per_second * self._lease / 2)))

    def take(self, number: int) -> collections.deque[float]:
        """Get the monotonic times after which so many requests may go out, or fewer:
        those that may go out now. Nothing is begun that has to wait.
        """
        now = time.monotonic()

        if self._per_second is None:
            return collections.deque([now] * number)

        if not self._reserved:
            self._reserved = self._reserve(number, self._per_second)

        turns: collections.deque[float] = collections.deque()

        while (
            self._reserved
            and len(turns) < number
            and self._reserved[0] < now + LOOKAHEAD / 2
        ):
            turns.append(self._reserved.popleft())

        return turns

    def _reserve(self, number: int, per_second: float) -> collections.deque[float]:
        # Not more than a second's worth, to leave some for other workers.
        number = max(1, min(number, int(per_second)))
        wait = gates.reserve(
            self._engine,
            self._gate.tenant,
            number,
            per_second,
            at_most=self._lease / 4,
        )

        if wait is None:
            return collections.deque()

        first = time.monotonic() + wait
        return collections.deque(first + i / per_second for i in range(number))

    @property
    def next_at(self) -> float | None:
        """The monotonic time of the next request that has its time already."""
        return self._reserved[0] if self._reserved else None

    def forget_reserved(self) -> None:
        """Give up the times of requests that are not made."""
        self._reserved.clear()

    def count(self, answers: int) -> None:
        """Note that answers have come in."""
        self._answers.count(answers)

    def seconds_until_half(self, in_flight: int) -> float:
        """How long it takes until half of what waits for a thread has gone out."""
        return self._answers.seconds_for((in_flight - self.limit) // 2)

    def widen(self, went_well: int) -> int:
        """Let more be in flight, as requests went well.

        :return: How many more.
        """
        before = self.limit
        self.limit = min(self.limit + went_well, self._highest)
        return self.limit - before


class _Answers:
    """How fast answers come in, by the last quarter of a second or so."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._number = 0
        self._per_second = 0.0

    def count(self, answers: int) -> None:
        self._number += answers
        passed = time.monotonic() - self._since

        if passed >= LOOKAHEAD:
            self._per_second = self._number / passed
            self._since += passed
            self._number = 0

    def within(self, seconds: float) -> int:
        """How many answers to expect."""
        per_second = self._per_second
        passed = time.monotonic() - self._since

        if not per_second and passed:  # the first quarter of a second
            per_second = self._number / passed

        return int(per_second * seconds)

    def seconds_for(self, answers: int) -> float:
        """How long so many take, a twentieth of a second at most."""
        if answers < 2 or not self._per_second:
            return 0

        return min(0.05, answers / self._per_second)
