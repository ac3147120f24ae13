"""The decision table: what each answer means for a row and for the account.

One table, no code: every rule is tested, and the documentation prints it.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import typing as t

from ..models import Action

MAX_ATTEMPTS = 2
"""The first request and its one automatic retry."""

Phase = t.Literal["look-up", "issue", "revoke", "replace"]
"""``look-up``: Credly is asked what there is. The others are what it is asked to do."""

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
    "sent back",
    "no word",
    "blocked",
    "in force",
    "revoked",
    "declined",
    "replaced",
    "missing",
    "ended",
    "outlived",
]
"""``found``: Credly lists the row's badge. ``held``: another badge is in its way.
``absent``: neither. ``not yet``: neither, and the last request is so recent that its
badge may not be listed yet. ``unlisted``: Credly has refused the badge as a duplicate
and does not list it yet. ``unavailable``: Credly processed nothing, or could not be
reached.
``in trouble``: so it says, and it may have processed the request all the same.
``sent back``: it was asked for together with others, and Credly has refused them all.
``foreign``: something in between has answered, such as a firewall. ``no word``: Credly
was asked often enough whether the badge is there, and did not say.
``blocked``: it is refused because of an earlier badge of the row's member and course
that is in force no more.

Of the badge that is to be revoked or replaced: ``in force``; ``revoked``; ``declined``
by the member; ``replaced`` by another; ``missing``: Credly does not know it. One that
is to be replaced and is in force no more has ``ended``, or, where the member has
completed the course once more, been ``outlived``.
"""

Then = t.Literal[
    "issued",
    "held",
    "failed",
    "wait",
    "at once",
    "go on",
    "revoked",
    "replaced",
    "left",
    "anew",
]
"""What becomes of the row. ``wait``: due after the retry delay. ``at once``: due as
soon as the gate is open. ``go on``: to the request. ``left``: nothing is to be done,
and its state stays. ``anew``: a new badge is issued, and none replaced.
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


_UNSENT: tuple[tuple[Answer, Close | None], ...] = (
    ("rate limited", "rate limit"),
    ("unauthorized", "expired"),
    ("unavailable", "unavailable"),
    ("not sent", None),
)


def _read_first(action: t.Literal["revoke", "replace"]) -> cabc.Iterator[Rule]:
    """What holds of each action about a badge that is there: it is read before each
    request, so that what was done by anybody is not done again.
    """
    yield Rule(action, "look-up", "in force", False, "go on", outcome_unknown=False)
    yield Rule(
        action,
        "look-up",
        "in force",
        True,
        "failed",
        outcome_unknown=False,
        logged=True,
    )
    # The last request may be on its way.
    yield Rule(action, "look-up", "not yet", None, "wait")
    yield Rule(action, "look-up", "unknown", None, "wait")
    yield Rule(action, "look-up", "foreign", None, "wait", close="unavailable")
    yield Rule(action, "look-up", "no word", None, "failed", logged=True)
    yield Rule(action, action, "refused", False, "wait", counts=True)
    yield Rule(action, action, "refused", True, "failed", counts=True, logged=True)
    yield Rule(
        action, action, "unknown", None, "wait", counts=True, outcome_unknown=True
    )
    yield Rule(
        action,
        action,
        "foreign",
        None,
        "wait",
        counts=True,
        outcome_unknown=True,
        close="unavailable",
    )
    yield Rule(
        action,
        action,
        "in trouble",
        None,
        "wait",
        outcome_unknown=True,
        close="unavailable",
    )

    for answer, close in _UNSENT:
        yield Rule(action, "look-up", answer, None, "at once", close=close)
        yield Rule(action, action, answer, None, "at once", close=close)


RULES: tuple[Rule, ...] = (
    Rule("issue", "look-up", "found", None, "issued", outcome_unknown=False),
    Rule("issue", "look-up", "held", None, "held", outcome_unknown=False),
    Rule("issue", "look-up", "unlisted", None, "wait"),
    Rule(
        "issue",
        "look-up",
        "blocked",
        None,
        "failed",
        outcome_unknown=False,
        logged=True,
    ),
    Rule("issue", "look-up", "absent", False, "go on", outcome_unknown=False),
    Rule(
        "issue", "look-up", "absent", True, "failed", outcome_unknown=False, logged=True
    ),
    # Where the last request is made, it is looked for once more: see ``settle``.
    Rule("issue", "look-up", "not yet", False, "go on"),
    Rule("issue", "look-up", "not yet", True, "failed", logged=True),
    # Credly will not be asked: where it refuses duplicates itself, the request is
    # safe. Where it does not, a person has to look.
    Rule("issue", "look-up", "refused", False, "go on"),
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
    # To ask once more would not help, but if an admin sees to it.
    Rule("issue", "issue", "blocked", None, "failed", counts=True, logged=True),
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
    # What Credly names as the reason is asked for alone then.
    Rule("issue", "issue", "sent back", None, "at once"),
    # The last look at a badge that was called failed, once Credly's lists have had
    # their time. Nobody is told a second time that it failed.
    Rule("check", "look-up", "found", None, "issued", outcome_unknown=False),
    Rule("check", "look-up", "held", None, "held", outcome_unknown=False),
    Rule("check", "look-up", "unlisted", None, "wait"),
    Rule("check", "look-up", "blocked", None, "failed", outcome_unknown=False),
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
    *_read_first("revoke"),
    Rule("revoke", "look-up", "revoked", None, "revoked", outcome_unknown=False),
    Rule("revoke", "look-up", "declined", None, "left", outcome_unknown=False),
    Rule("revoke", "look-up", "replaced", None, "replaced", outcome_unknown=False),
    Rule("revoke", "look-up", "missing", None, "failed", logged=True),
    Rule(
        "revoke",
        "revoke",
        "revoked",
        None,
        "revoked",
        counts=True,
        outcome_unknown=False,
    ),
    *_read_first("replace"),
    Rule("replace", "look-up", "found", None, "issued", outcome_unknown=False),
    Rule("replace", "look-up", "replaced", None, "failed", logged=True),
    Rule("replace", "look-up", "ended", None, "failed", logged=True),
    Rule("replace", "look-up", "outlived", None, "anew", outcome_unknown=False),
    Rule(
        "replace",
        "replace",
        "issued",
        None,
        "issued",
        counts=True,
        outcome_unknown=False,
    ),
    # Credly may not replace what has expired.
    Rule(
        "replace",
        "replace",
        "outlived",
        None,
        "anew",
        counts=True,
        outcome_unknown=False,
    ),
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
