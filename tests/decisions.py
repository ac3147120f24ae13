"""Writes the decision table as a page: ``make docs``."""

from __future__ import annotations

from flask_credly.ledger.decide import Rule
from flask_credly.ledger.decide import RULES

COLUMNS = (
    "asked",
    "answer",
    "attempts so far",
    "the badge",
    "counts as an attempt",
    "may be issued unseen",
    "in the error log",
    "closes the gate",
)
HEAD = """\
# What each answer of Credly means

Made from `flask_credly/ledger/decide.py` by `make docs`. A badge's way is: look up, if
it may have been issued already; issue, if it was not. Each row says what an answer
means for the badge, and for everything else.

"""

THEN = {
    "issued": "is issued",
    "held": "is held already",
    "failed": "has failed",
    "wait": "waits, then goes on",
    "at once": "goes on once the gate is open",
    "issue": "is asked for",
}
LAST = {None: "any", False: "1", True: "2"}
MAYBE = {None: "as before", False: "no", True: "yes"}


def render() -> str:
    rules = "".join(map(_line, RULES))
    return f"{HEAD}| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n{rules}"


def _line(rule: Rule) -> str:
    cells = (
        rule.phase,
        rule.answer,
        LAST[rule.last],
        THEN[rule.then],
        "yes" if rule.counts else "",
        MAYBE[rule.maybe_issued],
        "Badge issuance failed" if rule.logged else "",
        rule.close or "",
    )
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    print(render(), end="")
