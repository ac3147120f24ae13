"""What happens at the simulated Credly at a later time of its clock."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import heapq
import itertools

from .rules import Refusal

Act = cabc.Callable[[float], object]


class Agenda:
    """Acts that are due at a time. Its caller holds the lock.

    :param clock: The simulator's time.
    """

    def __init__(self, clock: cabc.Callable[[], float]) -> None:
        self._clock = clock
        self._acts: list[tuple[float, int, Act]] = []
        self._numbers = itertools.count()
        self._settling = False

    def add(self, at: float, act: Act) -> None:
        """Plan an act. Where it is refused then, nothing happens.

        :param act: Called with the time.
        """
        heapq.heappush(self._acts, (at, next(self._numbers), act))

    def settle(self) -> None:
        """Do what is due, in the order of time."""
        if self._settling:
            return  # an act looks at the book

        self._settling = True

        try:
            while self._acts and self._acts[0][0] <= self._clock():
                at, _, act = heapq.heappop(self._acts)

                with contextlib.suppress(Refusal):
                    act(at)
        finally:
            self._settling = False

    def clear(self) -> None:
        self._acts.clear()
