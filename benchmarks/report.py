"""The table and the JSON."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import importlib.metadata
import os
import platform
import re
import statistics
import textwrap
import typing as t

LEGEND = """\
ours, peer   medians of figures that were taken in turn
ratio        ours by peer: above 1 is more of the unit
goal         of the ratio where it ends in x, else of ours
spread       the middle half of ours, as a share of its median"""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Several figures of the same thing."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float | None:
        """The middle half of the figures, as a share of their median."""
        if len(self.values) < 2 or not self.median:
            return None

        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return (high - low) / self.median


@dataclasses.dataclass(frozen=True)
class Result:
    """One figure."""

    name: str
    what: str
    unit: str
    ours: float | None
    peer: float | None = None
    ratio: float | None = None
    goal: str = ""
    met: bool | None = None
    spread: float | None = None
    note: str = ""


def compare(
    name: str,
    what: str,
    unit: str,
    ours: Sample | float,
    peer: Sample | float | None = None,
    *,
    goal: str = "",
    note: str = "",
) -> Result:
    """Make a result.

    :param goal: Such as ``"<= 1.3x"``, of the ratio, or ``"<= 40"``, of ours. Empty:
        for information.
    """
    one = ours if isinstance(ours, (int, float)) else ours.median
    spread = None if isinstance(ours, (int, float)) else ours.spread
    other = peer if peer is None or isinstance(peer, (int, float)) else peer.median
    ratio = one / other if other else None
    return Result(
        name, what, unit, one, other, ratio, goal, _met(goal, one, ratio), spread, note
    )


def _met(goal: str, ours: float, ratio: float | None) -> bool | None:
    if not (found := re.fullmatch(r"(<=|>=) ([\d.]+)(x?)", goal)):
        return None

    figure = ratio if found[3] else ours

    if figure is None:
        return None

    bound = float(found[2])
    return figure <= bound if found[1] == "<=" else figure >= bound


_ROW = "{:34} {:>10} {:>10} {:12} {:>8} {:>10} {:5} {:>6}"


def header() -> str:
    return _ROW.format("", "ours", "peer", "", "ratio", "goal", "met", "spread")


def row(each: Result) -> str:
    """Write a result as lines of the table."""
    met = {True: "yes", False: "NO", None: ""}[each.met]
    line = _ROW.format(
        each.name,
        _figure(each.ours),
        _figure(each.peer),
        each.unit,
        "" if each.ratio is None else f"{each.ratio:.2f}x",
        each.goal,
        met,
        "" if each.spread is None else f"{each.spread:.0%}",
    )
    said = [each.what, each.note] if each.note else [each.what]
    rest = [textwrap.indent(textwrap.fill(text, 96), "    ") for text in said]
    return "\n".join([line.rstrip(), *rest])


def _figure(value: float | None) -> str:
    if value is None:
        return ""

    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"


def as_json(
    results: cabc.Iterable[Result], *, repeat: int, scale: float
) -> dict[str, t.Any]:
    packages = ("flask-credly", "flask", "sqlalchemy", "requests", "rq", "redis")
    return {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "repeat": repeat,
        "scale": scale,
        "results": [dataclasses.asdict(each) for each in results],
    }
