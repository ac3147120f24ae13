"""Writes the decision table as a page: ``make generated``."""

from __future__ import annotations

from flask_credly.issuing.whose import Case
from flask_credly.issuing.whose import CASES
from flask_credly.ledger import log
from flask_credly.ledger.decide import Rule
from flask_credly.ledger.decide import RULES

COLUMNS = (
    "action",
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

Made from `flask_credly/ledger/decide.py` by `make generated`. A badge that may have
been issued already is looked up first; otherwise it is requested. Each row says what an
answer means for the badge, and for everything else.

To revoke and to replace begin with reading the badge. The row stays what it was where
that fails: a badge that could not be revoked is still issued.

"Not yet" is "absent" while the last request is so recent that its badge may not be
listed. What failed so, and may be issued unseen, is checked once more when that is
over: it stays failed, or is issued.

"""

THEN = {
    "issued": "is issued",
    "held": "is held already",
    "failed": "has failed",
    "wait": "waits, then goes on",
    "at once": "goes on once the gate is open",
    "go on": "is asked for",
    "revoked": "is revoked",
    "replaced": "is replaced",
    "left": "stays as it is",
    "anew": "is issued anew",
}
LAST = {None: "any", False: "1", True: "2"}
MAYBE = {None: "as before", False: "no", True: "yes"}


CASE_COLUMNS = (
    "earner id on the badge",
    "address on the badge",
    "its state",
    "another row has it",
    "the template",
    "`issued_at`",
    "the database was restored",
    "whose it is",
)
CASES_HEAD = """\

## Whose badge is it?

Made from `flask_credly/issuing/whose.py`. Credly lists badges of the template that is
asked for; the first line that fits says whose each one is. Addresses are compared
without regard to case. `issued_at` is compared to the second with what the row's
requests send, to the day where Credly gives only a date.

- **this row**: its id is stored, and the badge is issued. A badge belongs to one row:
  the database refuses a second one.
- **another row**, **another member**, **given by hand**: it is not the row's badge, and
  no id is stored. Where Credly refuses the row's badge because of it, the row is held
  ("Already held"), with a sentence that says so. A template that allows duplicates
  has no such case: the member gets a badge.
- **nobody here**: it does not matter.

Credly may refuse a badge as a duplicate and list none that explains it. If an earlier
request of ours may have made it, the badge is looked for again, for an hour. After
that, or if there was no earlier request, the row is held. Where only badges of the
member are listed that were declined or revoked, or have expired, it has failed
("blocked"): Credly still counts them.

"""


def render() -> str:
    rules = "".join(map(_line, RULES))
    cases = "".join(map(_case, CASES))
    return f"{HEAD}{_top(COLUMNS)}{rules}{CASES_HEAD}{_top(CASE_COLUMNS)}{cases}"


def _top(columns: tuple[str, ...]) -> str:
    return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n"


def _case(case: Case) -> str:
    cells = (
        case.earner or "any",
        _either(case.same_address, "the member's", "another"),
        _either(case.standing, "pending or accepted", "rejected or revoked"),
        _either(case.known, "yes", "no"),
        _either(case.allows_duplicates, "allows duplicates", "refuses duplicates"),
        case.time or "any",
        _either(case.restored, "yes", "no"),
        f"**{case.owner}**",
    )
    return f"| {' | '.join(cells)} |\n"


def _either(value: bool | None, yes: str, no: str) -> str:
    return "any" if value is None else yes if value else no


def _line(rule: Rule) -> str:
    cells = (
        rule.action,
        rule.phase,
        rule.answer,
        LAST[rule.last],
        THEN[rule.then],
        "yes" if rule.counts else "",
        MAYBE[rule.outcome_unknown],
        log.FAILED[rule.action] if rule.logged else "",
        rule.close or "",
    )
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    print(render(), end="")
