"""``python -m benchmarks``"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import pathlib
import signal
import sys
import tempfile
import typing as t

from . import completions as completions
from . import issuing as issuing
from . import ledger as ledger
from . import pages as pages
from . import reconciling as reconciling
from . import start as start
from .measure import BENCHMARKS
from .measure import Options
from .measure import Skip
from .report import as_json
from .report import header
from .report import LEGEND
from .report import Result
from .report import row

OUTPUT = pathlib.Path(__file__).parents[1] / "docs/benchmark.json"


def _stop(number: int, frame: object) -> t.NoReturn:
    # So that what was started is ended.
    sys.exit(128 + number)


def main(arguments: list[str] | None = None) -> int:
    """Measure. A goal that was not met is no error: it may be the machine."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--list", action="store_true", help="name what can be measured")
    add("--only", nargs="+", metavar="NAME", choices=list(BENCHMARKS), default=None)
    add("--scale", type=float, default=1.0, help="of the numbers of rows and badges")
    add("--repeat", type=int, default=5, metavar="N", help="rounds")
    add("--output", type=pathlib.Path, default=OUTPUT, metavar="FILE", help="the JSON")
    given = parser.parse_args(arguments)

    if given.list:
        for name, (what, _) in BENCHMARKS.items():
            print(f"{name:22} {what}")

        return 0

    logging.basicConfig(level=logging.ERROR)
    signal.signal(signal.SIGTERM, _stop)
    results: list[Result] = []
    print(header())

    for name in given.only or BENCHMARKS:
        for each in _run(name, given.repeat, given.scale):
            results.append(each)
            print(row(each), flush=True)

        report = as_json(results, repeat=given.repeat, scale=given.scale)
        given.output.write_text(json.dumps(report, indent=1) + "\n")

    missed = [each.name for each in results if each.met is False]
    print(f"\n{LEGEND}")
    print(f"\nGoals not met: {', '.join(missed) or 'none'}.")
    return 0


def _run(name: str, repeat: int, scale: float) -> t.Iterator[Result]:
    what, function = BENCHMARKS[name]

    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        contextlib.ExitStack() as ends,
    ):
        options = Options(repeat, scale, pathlib.Path(folder), ends)

        try:
            yield from function(options)
        except Skip as e:
            yield Result(name, what, "", None, note=f"Skipped: {e}.")
        except RuntimeError as e:
            yield Result(name, what, "", None, met=False, note=f"Failed: {e}")


if __name__ == "__main__":
    sys.exit(main())
