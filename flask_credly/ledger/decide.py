"""The decision table: what each answer means for a row and for the account.

One table, no code: every rule is tested, and the documentation prints it.
"""

from __future__ import annotations

import dataclasses
import typing as t

MAX_ATTEMPTS = 2
"""The first request and its one automatic retry."""

Action = t.Literal["issue", "check"]
"""Those of :data:`flask_credly.models.Action` that are built."""

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
"""What becomes of the row. ``wait``: due after the retry delay. ``at once``: due as
soon as the gate is open. ``issue``: go on to the request.
"""

Close = t.Literal["rate limit", "unavailable", "expired"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of the table.

    :param action: What is being done about the badge.
    :param phase: Whether Credly was asked for its list, or to do it.
    :param last: Whether the second attempt was made. ``None``: either.
    :param counts: Whether the request was one of the two attempts.
    :param outcome_unknown: Whether Credly may have issued the badge unseen; ``None``
        leaves what is known as it is.
    :param logged: Whether "Badge issuance failed" is written to the error log.
    :param close: The gate to close on the account.
    """

    action: Action
    phase: Phase
    answer: Answer
    last: bool | None
    then: Then
    counts: bool = False
    outcome_unknown: bool | None = None
    logged: bool = False
    close: Close | None = None


RULES: tuple[Rule, ...] = (
    Rule("issue", "look-up", "found", None, "issued", outcome_unknown=False),
    Rule("issue", "look-up", "held", None, "held", outcome_unknown=False),
    Rule("issue", "look-up", "unlisted", None, "wait"),
    Rule("issue", "look-up", "absent", False, "issue", outcome_unknown=False),
    Rule(
        "issue", "look-up", "absent", True, "failed", outcome_unknown=False, logged=True
    ),
    # Where the last request is made, it is looked for once more: see ``settle``.
    Rule("issue", "look-up", "not yet", False, "issue"),
    Rule("issue", "look-up", "not yet", True, "failed", logged=True),
    # Credly will not be asked: where it refuses duplicates itself, the request is
    # safe. Where it does not, a person has to look.
    Rule("issue", "look-up", "refused", False, "issue"),
    Rule("issue", "look-up", "refused", True, "failed", logged=True),
    Rule("issue", "look-up", "unknown", None, "wait"),
    # Counted all the same: it may be this request alone that a firewall does not let
    # through, and it must not stop all others for ever.
    Rule("issue", "look-up", "foreign", None, "wait", close="unavailable"),
    Rule("issue", "look-up", "no word", None, "failed", logged=True),
    Rule("issue", "look-up", "rate limited", None, "at once", close="rate limit"),
    Rule("issue", "look-up", "unauthorized", None, "at once", close="expired"),
    Rule("issue", "look-up", "unavailable", None, "at once", close="unavailable"),
    Rule("issue", "look-up", "not sent", None, "at once"),
    Rule(
        "issue", "issue", "issued", None, "issued", counts=True, outcome_unknown=False
    ),
    Rule("issue", "issue", "found", None, "issued", counts=True, outcome_unknown=False),
    Rule("issue", "issue", "held", None, "held", counts=True, outcome_unknown=False),
    # An earlier request of ours may have made it: its id is looked for.
    Rule("issue", "issue", "unlisted", None, "wait", counts=True, outcome_unknown=True),
    Rule("issue", "issue", "refused", False, "wait", counts=True),
    Rule("issue", "issue", "refused", True, "failed", counts=True, logged=True),
    # Also after the second: it may have gone through, so that one more look is due
    # before anybody is told that it failed.
    Rule("issue", "issue", "unknown", None, "wait", counts=True, outcome_unknown=True),
    Rule(
        "issue",
        "issue",
        "foreign",
        None,
        "wait",
        counts=True,
        outcome_unknown=True,
        close="unavailable",
    ),
    Rule("issue", "issue", "rate limited", None, "at once", close="rate limit"),
    Rule("issue", "issue", "unauthorized", None, "at once", close="expired"),
    Rule("issue", "issue", "unavailable", None, "at once", close="unavailable"),
    # No attempt, or an outage would fail badges. It may have gone through.
    Rule(
        "issue",
        "issue",
        "in trouble",
        None,
        "wait",
        outcome_unknown=True,
        close="unavailable",
    ),
    Rule("issue", "issue", "not sent", None, "at once"),
    # The last look at a badge that was called failed, once Credly's lists have had
    # their time. Nobody is told a second time that it failed.
    Rule("check", "look-up", "found", None, "issued", outcome_unknown=False),
    Rule("check", "look-up", "held", None, "held", outcome_unknown=False),
    Rule("check", "look-up", "unlisted", None, "wait"),
    Rule("check", "look-up", "absent", None, "failed", outcome_unknown=False),
    Rule("check", "look-up", "not yet", None, "failed"),
    Rule("check", "look-up", "refused", None, "failed"),
    Rule("check", "look-up", "unknown", None, "wait"),
    Rule("check", "look-up", "foreign", None, "wait", close="unavailable"),
    Rule("check", "look-up", "no word", None, "failed"),
    Rule("check", "look-up", "rate limited", None, "at once", close="rate limit"),
    Rule("check", "look-up", "unauthorized", None, "at once", close="expired"),
    Rule("check", "look-up", "unavailable", None, "at once", close="unavailable"),
    Rule("check", "look-up", "not sent", None, "at once"),
)


_BY_KEY: dict[tuple[Action, Phase, Answer], list[Rule]] = {}

for _rule in RULES:
    _BY_KEY.setdefault((_rule.action, _rule.phase, _rule.answer), []).append(_rule)


def decide(action: Action, phase: Phase, answer: Answer, attempts: int) -> Rule:
    """Find the rule.

    :param attempts: Attempts so far, this one included if it is one.
    :raises LookupError: If the phase cannot have this answer.
    """
    last = attempts >= MAX_ATTEMPTS

    for rule in _BY_KEY.get((action, phase, answer), ()):
        if rule.last in (None, last):
            return rule

    raise LookupError(f"No rule for the answer {answer!r} to {phase!r} of {action!r}.")
