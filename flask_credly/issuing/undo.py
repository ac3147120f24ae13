"""Takes many badges back, retries many, or removes what an integration has left,
portion by portion.
"""

from __future__ import annotations

import collections.abc as cabc
import time

import sqlalchemy as sa

from ..ledger import removing
from ..ledger import retrying
from ..ledger import runs
from ..ledger import undoing
from ..ledger.runs import Run
from ..ledger.runs import Step
from ..ledger.runs import Verb
from ..state import AppState
from . import stopping

BUDGET = 30.0
"""Seconds after which the rest is left to the next job."""

STEPS: dict[Verb, cabc.Callable[[sa.Engine, Run], Step]] = {
    "undo": undoing.step,
    "retry": retrying.step,
    # Last: nobody waits for it.
    "remove": removing.step,
}


def run(state: AppState) -> bool:
    """Go on with every run that is due.

    :return: Whether time was up and there is more to do.
    """
    until = time.monotonic() + BUDGET
    return any([_run(state, verb, until) for verb in STEPS])


def _run(state: AppState, verb: Verb, until: float) -> bool:
    # A run that rests is due again by then.
    if verb == "remove":
        until = min(until, time.monotonic() + runs.REST.total_seconds())

    while (
        not stopping.is_set() and (taken := runs.take(state.engine, verb)) is not None
    ):
        began = time.monotonic()

        while (step := STEPS[verb](state.engine, taken)) == "more":
            if stopping.is_set() or time.monotonic() > until:
                break

            # What does wait comes in between. In SQLite, who writes keeps others out.
            if verb == "remove":
                times = 3 if state.engine.dialect.name == "sqlite" else 1
                stopping.wait(times * (time.monotonic() - began))

            began = time.monotonic()

        if step != "over":
            runs.leave(state.engine, taken, rest=step == "rest")

        if step == "more":
            return not stopping.is_set()

    return False
