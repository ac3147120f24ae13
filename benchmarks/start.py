"""What the extension adds to a web process that starts."""

from __future__ import annotations

import collections.abc as cabc

from .fresh import HEAVY
from .measure import benchmark
from .measure import Options
from .processes import call
from .report import compare
from .report import Result
from .report import Sample


@benchmark("start", "import and init_app in a web process")
def start(options: Options) -> cabc.Iterator[Result]:
    call("benchmarks.fresh", "load")  # compiles
    runs = [call("benchmarks.fresh", "load") for _ in range(2 * options.repeat)]
    what = "over a host with Flask-SQLAlchemy and Flask-WTF"
    yield compare(
        "start/time",
        f"import and init_app {what}",
        "ms",
        Sample(tuple(run["ms"] for run in runs)),
        goal="<= 45",
        note=f"{runs[0]['modules']} modules are loaded.",
    )
    yield compare(
        "start/memory",
        f"the same in memory {what}",
        "MB",
        Sample(tuple(run["mb"] for run in runs)),
        goal="<= 3.5",
    )
    yield compare(
        "start/heavy",
        f"of {', '.join(HEAVY)}, how many are loaded then",
        "packages",
        float(len(runs[0]["heavy"])),
        goal="<= 0",
        note=", ".join(runs[0]["heavy"]),
    )
