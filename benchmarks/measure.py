"""Measuring things in turn, and the list of what can be measured."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import functools
import pathlib
import random
import time
import typing as t

from tests.storm import servers

from .report import Result
from .report import Sample

Way = cabc.Callable[[], float]


class Skip(Exception):
    """What is needed is not on this machine."""


def in_turn(rounds: int, **ways: Way) -> dict[str, Sample]:
    """Take a figure in each way, round by round. In a fixed order, what one leaves
    behind would always burden the same next one.
    """
    order = list(ways)
    rng = random.Random(1)
    found: dict[str, list[float]] = {name: [] for name in ways}

    for _ in range(rounds):
        rng.shuffle(order)

        for name in order:
            found[name].append(ways[name]())

    return {name: Sample(tuple(values)) for name, values in found.items()}


def milliseconds(work: cabc.Callable[[], object]) -> Way:
    """Measure how long a call takes."""

    def way() -> float:
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) * 1000

    return way


@dataclasses.dataclass(frozen=True)
class Options:
    """How much is measured.

    :param repeat: Rounds.
    :param scale: What the numbers of rows and badges are multiplied by.
    """

    repeat: int
    scale: float
    folder: pathlib.Path
    ends: contextlib.ExitStack
    """What was started is ended with it."""

    def number(self, full: int, least: int = 1) -> int:
        """Scale a number."""
        return max(least, round(full * self.scale))

    def database(self, kind: str) -> str:
        """Make an empty database. Get its address."""
        folder = self.folder / f"{time.monotonic_ns()}"
        folder.mkdir()

        try:
            made = self.ends.enter_context(servers.open_database(kind, folder))
        except servers.NotFound as e:
            raise Skip(str(e)) from None

        return made.url


Benchmark = cabc.Callable[[Options], cabc.Iterable[Result]]

BENCHMARKS: dict[str, tuple[str, Benchmark]] = {}


def benchmark(name: str, what: str, **given: t.Any) -> cabc.Callable[..., t.Any]:
    """Put a function on the list. It gets the options and what is given here."""

    def add(function: cabc.Callable[..., cabc.Iterable[Result]]) -> t.Any:
        BENCHMARKS[name] = (what, functools.partial(function, **given))
        return function

    return add
