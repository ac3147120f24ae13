from __future__ import annotations

import itertools
import pathlib
import typing as t

import decisions
import pytest

from flask_credly.ledger.decide import Answer
from flask_credly.ledger.decide import decide
from flask_credly.ledger.decide import Phase
from flask_credly.ledger.decide import Rule
from flask_credly.ledger.decide import RULES
from flask_credly.models import Action

Consequence = tuple[str, str, bool, bool | None, str | None]

# By answer: becomes after the first attempt and after a later one, counts, maybe done,
# closes.
TABLE: dict[tuple[Action, Phase], dict[Answer, Consequence]] = {
    ("issue", "look-up"): {
        "found": ("issued", "issued", False, False, None),
        "held": ("held", "held", False, False, None),
        "unlisted": ("wait", "wait", False, None, None),
        "absent": ("go on", "failed", False, False, None),
        "not yet": ("go on", "failed", False, None, None),
        "refused": ("go on", "failed", False, None, None),
        "unknown": ("wait", "wait", False, None, None),
        "foreign": ("wait", "wait", False, None, "unavailable"),
        "rate limited": ("at once", "at once", False, None, "rate limit"),
        "unauthorized": ("at once", "at once", False, None, "expired"),
        "unavailable": ("at once", "at once", False, None, "unavailable"),
        "not sent": ("at once", "at once", False, None, None),
        "blocked": ("failed", "failed", False, False, None),
        "no word": ("failed", "failed", False, None, None),
    },
    ("issue", "issue"): {
        "issued": ("issued", "issued", True, False, None),
        "found": ("issued", "issued", True, False, None),
        "held": ("held", "held", True, False, None),
        "unlisted": ("wait", "wait", True, True, None),
        "blocked": ("failed", "failed", True, None, None),
        "refused": ("wait", "failed", True, None, None),
        "unknown": ("wait", "wait", True, True, None),
        "foreign": ("wait", "wait", True, True, "unavailable"),
        "rate limited": ("at once", "at once", False, None, "rate limit"),
        "unauthorized": ("at once", "at once", False, None, "expired"),
        "unavailable": ("at once", "at once", False, None, "unavailable"),
        "in trouble": ("wait", "wait", False, True, "unavailable"),
        "not sent": ("at once", "at once", False, None, None),
        "sent back": ("at once", "at once", False, None, None),
    },
    ("check", "look-up"): {
        "found": ("issued", "issued", False, False, None),
        "held": ("held", "held", False, False, None),
        "blocked": ("failed", "failed", False, False, None),
        "unlisted": ("wait", "wait", False, None, None),
        "absent": ("failed", "failed", False, False, None),
        "not yet": ("failed", "failed", False, None, None),
        "refused": ("failed", "failed", False, None, None),
        "unknown": ("wait", "wait", False, None, None),
        "foreign": ("wait", "wait", False, None, "unavailable"),
        "rate limited": ("at once", "at once", False, None, "rate limit"),
        "unauthorized": ("at once", "at once", False, None, "expired"),
        "unavailable": ("at once", "at once", False, None, "unavailable"),
        "not sent": ("at once", "at once", False, None, None),
        "no word": ("failed", "failed", False, None, None),
    },
    ("revoke", "look-up"): {
        "in force": ("go on", "failed", False, False, None),
        "not yet": ("wait", "wait", False, None, None),
        "unknown": ("wait", "wait", False, None, None),
        "foreign": ("wait", "wait", False, None, "unavailable"),
        "no word": ("failed", "failed", False, None, None),
        "rate limited": ("at once", "at once", False, None, "rate limit"),
        "unauthorized": ("at once", "at once", False, None, "expired"),
        "unavailable": ("at once", "at once", False, None, "unavailable"),
        "not sent": ("at once", "at once", False, None, None),
        "revoked": ("revoked", "revoked", False, False, None),
        "declined": ("left", "left", False, False, None),
        "replaced": ("replaced", "replaced", False, False, None),
        "missing": ("failed", "failed", False, None, None),
    },
    ("revoke", "revoke"): {
        "refused": ("wait", "failed", True, None, None),
        "unknown": ("wait", "wait", True, True, None),
        "foreign": ("wait", "wait", True, True, "unavailable"),
        "in trouble": ("wait", "wait", False, True, "unavailable"),
        "rate limited": ("at once", "at once", False, None, "rate limit"),
        "unauthorized": ("at once", "at once", False, None, "expired"),
        "unavailable": ("at once", "at once", False, None, "unavailable"),
        "not sent": ("at once", "at once", False, None, None),
        "revoked": ("revoked", "revoked", True, False, None),
    },
    ("replace", "look-up"): {
        "in force": ("go on", "failed", False, False, None),
        "not yet": ("wait", "wait", False, None, None),
        "unknown": ("wait", "wait", False, None, None),
        "foreign": ("wait", "wait", False, None, "unavailable"),
        "no word": ("failed", "failed", False, None, None),
        "rate limited": ("at once", "at once", False, None, "rate limit"),
        "unauthorized": ("at once", "at once", False, None, "expired"),
        "unavailable": ("at once", "at once", False, None, "unavailable"),
        "not sent": ("at once", "at once", False, None, None),
        "found": ("issued", "issued", False, False, None),
        "replaced": ("failed", "failed", False, None, None),
        "ended": ("failed", "failed", False, None, None),
        "outlived": ("anew", "anew", False, False, None),
    },
    ("replace", "replace"): {
        "refused": ("wait", "failed", True, None, None),
        "unknown": ("wait", "wait", True, True, None),
        "foreign": ("wait", "wait", True, True, "unavailable"),
        "in trouble": ("wait", "wait", False, True, "unavailable"),
        "rate limited": ("at once", "at once", False, None, "rate limit"),
        "unauthorized": ("at once", "at once", False, None, "expired"),
        "unavailable": ("at once", "at once", False, None, "unavailable"),
        "not sent": ("at once", "at once", False, None, None),
        "issued": ("issued", "issued", True, False, None),
        "outlived": ("anew", "anew", True, False, None),
    },
}

CASES = [
    (action, phase, answer, attempts, then, *rest)
    for (action, phase), answers in TABLE.items()
    for answer, (first, second, *rest) in answers.items()
    for attempts, then in ((1, first), (2, second))
]


@pytest.mark.parametrize("row", CASES, ids=lambda row: "-".join(map(str, row[:4])))
def test_each_answer_has_the_decided_consequence(row: t.Any) -> None:
    action, phase, answer, attempts, then, counts, outcome_unknown, close = row

    rule = decide(action, phase, answer, attempts)

    assert (then, counts, outcome_unknown, close) == (
        rule.then,
        rule.counts,
        rule.outcome_unknown,
        rule.close,
    )


def test_every_rule_is_tested() -> None:
    used = {id(decide(*case)) for *case, _, _, _, _ in CASES}

    assert {id(rule) for rule in RULES} == used


def test_no_two_rules_speak_of_the_same_case() -> None:
    cases = [
        (rule.action, rule.phase, rule.answer, last)
        for rule, last in itertools.product(RULES, (False, True))
        if rule.last in (None, last)
    ]

    assert len(set(cases)) == len(cases)


def test_only_a_final_failure_is_logged() -> None:
    def is_failure(rule: Rule) -> bool:
        return rule.action != "check" and rule.then == "failed"

    assert all(rule.logged == is_failure(rule) for rule in RULES)


def test_a_lost_answer_never_ends_a_row() -> None:
    """It may have been issued: only a look-up may say that it failed."""
    assert all(rule.then == "wait" for rule in RULES if rule.answer == "unknown")


def test_an_impossible_answer_is_an_error() -> None:
    with pytest.raises(LookupError, match="No rule"):
        decide("issue", "look-up", "issued", 1)


def test_the_documentation_is_this_table() -> None:
    page = pathlib.Path(__file__).parent.parent / "docs/decisions.md"

    assert decisions.render() == page.read_text(), "make docs writes it anew"
