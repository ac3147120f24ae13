"""The decision table: what each answer means for a row and for the connection.

One table, no code: every rule is tested, and the documentation prints it.
"""

from __future__ import annotations

import dataclasses
import typing as t

MAX_ATTEMPTS = 2
"""The first request and its one automatic retry."""

Phase = t.Literal["look-up", "issue"]

Answer = t.Literal[
    "issued",
    "held",
    "unlisted",
    "found",
    "absent",
    "not yet",
    "refused",
    "unknown",
    "foreign",
    "rate limited",
    "unauthorized",
    "unavailable",
    "in trouble",
    "not sent",
    "no word",
]
"""``found``: Credly lists the row's badge. ``held``: another badge is in its way.
``absent``: neither. ``not yet``: neither, and the last request is so recent that its
badge may not be listed yet. ``unlisted``: Credly has refused the badge as a duplicate
and does not list it yet. ``unavailable``: Credly processed nothing, or could not be
reached.
``in trouble``: so it says, and it may have processed the request all the same.
``foreign``: something in between has answered, such as a firewall. ``no word``: Credly
was asked often enough whether the badge is there, and did not say.
"""

Then = t.Literal["issued", "held", "failed", "wait", "at once", "issue"]
"""What becomes of the row. ``wait``: pending, due after the retry delay. ``at once``:
pending, due as soon as the gate is open. ``issue``: go on to the request.
"""

Close = t.Literal["rate limit", "unavailable", "expired"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of the table.

    :param last: Whether the second attempt was made. ``None``: either.
    :param counts: Whether the request was one of the two attempts.
    :param outcome_unknown: Whether Credly may have issued the badge unseen; ``None``
        leaves what is known as it is.
    :param logged: Whether "Badge issuance failed" is written to the error log.
    :param close: The gate to close on the connection.
    """

    phase: Phase
    answer: Answer
    last: bool | None
    then: Then
    counts: bool = False
    outcome_unknown: bool | None = None
    logged: bool = False
    close: Close | None = None


RULES: tuple[Rule, ...] = (
    Rule("look-up", "found", None, "issued", outcome_unknown=False),
    Rule("look-up", "held", None, "held", outcome_unknown=False),
    Rule("look-up", "unlisted", None, "wait"),
    Rule("look-up", "absent", False, "issue", outcome_unknown=False),
    Rule("look-up", "absent", True, "failed", outcome_unknown=False, logged=True),
    # Where the last request is made, it is looked for once more: see ``settle``.
    Rule("look-up", "not yet", False, "issue"),
    Rule("look-up", "not yet", True, "failed", logged=True),
    # Credly will not be asked: where it refuses duplicates itself, the request is
    # safe. Where it does not, a person has to look.
    Rule("look-up", "refused", False, "issue"),
    Rule("look-up", "refused", True, "failed", logged=True),
    Rule("look-up", "unknown", None, "wait"),
    # Counted all the same: it may be this request alone that a firewall does not let
    # through, and it must not stop all others for ever.
    Rule("look-up", "foreign", None, "wait", close="unavailable"),
    Rule("look-up", "no word", None, "failed", logged=True),
    Rule("look-up", "rate limited", None, "at once", close="rate limit"),
    Rule("look-up", "unauthorized", None, "at once", close="expired"),
    Rule("look-up", "unavailable", None, "at once", close="unavailable"),
    Rule("look-up", "not sent", None, "at once"),
    Rule("issue", "issued", None, "issued", counts=True, outcome_unknown=False),
    Rule("issue", "found", None, "issued", counts=True, outcome_unknown=False),
    Rule("issue", "held", None, "held", counts=True, outcome_unknown=False),
    # An earlier request of ours may have made it: its id is looked for.
    Rule("issue", "unlisted", None, "wait", counts=True, outcome_unknown=True),
    Rule("issue", "refused", False, "wait", counts=True),
    Rule("issue", "refused", True, "failed", counts=True, logged=True),
    # Also after the second: it may have gone through, so that one more look is due
    # before anybody is told that it failed.
    Rule("issue", "unknown", None, "wait", counts=True, outcome_unknown=True),
    Rule(
        "issue",
        "foreign",
        None,
        "wait",
        counts=True,
        outcome_unknown=True,
        close="unavailable",
    ),
    Rule("issue", "rate limited", None, "at once", close="rate limit"),
    Rule("issue", "unauthorized", None, "at once", close="expired"),
    Rule("issue", "unavailable", None, "at once", close="unavailable"),
    # No attempt, or an outage would fail badges. It may have gone through.
    Rule(
        "issue", "in trouble", None, "wait", outcome_unknown=True, close="unavailable"
    ),
    Rule("issue", "not sent", None, "at once"),
)


def decide(phase: Phase, answer: Answer, attempts: int) -> Rule:
    """Find the rule.

    :param attempts: Attempts so far, this one included if it is one.
    :raises LookupError: If the phase cannot have this answer.
    """
    last = attempts >= MAX_ATTEMPTS

    for rule in RULES:
        if (rule.phase, rule.answer) == (phase, answer) and rule.last in (None, last):
            return rule

    raise LookupError(f"No rule for the answer {answer!r} to {phase!r}.")
