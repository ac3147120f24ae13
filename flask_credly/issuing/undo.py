"""Takes many badges back, portion by portion."""

from __future__ import annotations

import time

from ..ledger import runs
from ..ledger import undoing
from ..state import AppState
from . import stopping

BUDGET = 30.0
"""Seconds after which the rest is left to the next job."""


def run(state: AppState) -> bool:
    """Go on with every run that is due.

    :return: Whether time was up and there is more to do.
    """
    until = time.monotonic() + BUDGET

    while (
        not stopping.is_set() and (taken := runs.take(state.engine, "undo")) is not None
    ):
        while (step := undoing.step(state.engine, taken)) == "more":
            if stopping.is_set() or time.monotonic() > until:
                break

        if step != "over":
            runs.leave(state.engine, taken, rest=step == "rest")

        if step == "more":
            return not stopping.is_set()

    return False
