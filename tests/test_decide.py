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

# phase, answer, attempts so far: becomes, counts, maybe issued, logged, closes
TABLE: list[tuple[Phase, Answer, int, str, bool, bool | None, bool, str | None]] = [
    ("look-up", "found", 1, "issued", False, False, False, None),
    ("look-up", "found", 2, "issued", False, False, False, None),
    ("look-up", "held", 1, "held", False, False, False, None),
    ("look-up", "held", 2, "held", False, False, False, None),
    ("look-up", "unlisted", 1, "wait", False, None, False, None),
    ("look-up", "unlisted", 2, "wait", False, None, False, None),
    ("look-up", "absent", 1, "issue", False, False, False, None),
    ("look-up", "absent", 2, "failed", False, False, True, None),
    ("look-up", "not yet", 1, "issue", False, None, False, None),
    ("look-up", "not yet", 2, "failed", False, None, True, None),
    ("look-up", "refused", 1, "issue", False, None, False, None),
    ("look-up", "refused", 2, "failed", False, None, True, None),
    ("look-up", "unknown", 1, "wait", False, None, False, None),
    ("look-up", "unknown", 2, "wait", False, None, False, None),
    ("look-up", "foreign", 1, "wait", False, None, False, "unavailable"),
    ("look-up", "foreign", 2, "wait", False, None, False, "unavailable"),
    ("look-up", "rate limited", 1, "at once", False, None, False, "rate limit"),
    ("look-up", "rate limited", 2, "at once", False, None, False, "rate limit"),
    ("look-up", "unauthorized", 1, "at once", False, None, False, "expired"),
    ("look-up", "unauthorized", 2, "at once", False, None, False, "expired"),
    ("look-up", "unavailable", 1, "at once", False, None, False, "unavailable"),
    ("look-up", "unavailable", 2, "at once", False, None, False, "unavailable"),
    ("look-up", "not sent", 1, "at once", False, None, False, None),
    ("look-up", "not sent", 2, "at once", False, None, False, None),
    ("look-up", "no word", 1, "failed", False, None, True, None),
    ("look-up", "no word", 2, "failed", False, None, True, None),
    ("issue", "issued", 1, "issued", True, False, False, None),
    ("issue", "issued", 2, "issued", True, False, False, None),
    ("issue", "found", 1, "issued", True, False, False, None),
    ("issue", "found", 2, "issued", True, False, False, None),
    ("issue", "held", 1, "held", True, False, False, None),
    ("issue", "held", 2, "held", True, False, False, None),
    ("issue", "unlisted", 1, "wait", True, True, False, None),
    ("issue", "unlisted", 2, "wait", True, True, False, None),
    ("issue", "refused", 1, "wait", True, None, False, None),
    ("issue", "refused", 2, "failed", True, None, True, None),
    ("issue", "unknown", 1, "wait", True, True, False, None),
    ("issue", "unknown", 2, "wait", True, True, False, None),
    ("issue", "foreign", 1, "wait", True, True, False, "unavailable"),
    ("issue", "foreign", 2, "wait", True, True, False, "unavailable"),
    ("issue", "rate limited", 1, "at once", False, None, False, "rate limit"),
    ("issue", "rate limited", 2, "at once", False, None, False, "rate limit"),
    ("issue", "unauthorized", 1, "at once", False, None, False, "expired"),
    ("issue", "unauthorized", 2, "at once", False, None, False, "expired"),
    ("issue", "unavailable", 1, "at once", False, None, False, "unavailable"),
    ("issue", "unavailable", 2, "at once", False, None, False, "unavailable"),
    ("issue", "in trouble", 1, "wait", False, True, False, "unavailable"),
    ("issue", "in trouble", 2, "wait", False, True, False, "unavailable"),
    ("issue", "not sent", 1, "at once", False, None, False, None),
    ("issue", "not sent", 2, "at once", False, None, False, None),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}-{row[1]}-{row[2]}")
def test_each_answer_has_the_decided_consequence(row: t.Any) -> None:
    phase, answer, attempts, then, counts, outcome_unknown, logged, close = row

    rule = decide(phase, answer, attempts)

    assert (then, counts, outcome_unknown, logged, close) == (
        rule.then,
        rule.counts,
        rule.outcome_unknown,
        rule.logged,
        rule.close,
    )


def test_every_rule_is_tested() -> None:
    used = {
        id(decide(phase, answer, attempts)) for phase, answer, attempts, *_ in TABLE
    }

    assert {id(rule) for rule in RULES} == used


def test_no_two_rules_speak_of_the_same_case() -> None:
    cases = [
        (rule.phase, rule.answer, last)
        for rule, last in itertools.product(RULES, (False, True))
        if rule.last in (None, last)
    ]

    assert len(set(cases)) == len(cases)


def test_only_a_final_failure_is_logged() -> None:
    def is_failure(rule: Rule) -> bool:
        return rule.then == "failed"

    assert all(rule.logged == is_failure(rule) for rule in RULES)


def test_a_lost_answer_never_ends_a_row() -> None:
    """It may have been issued: only a look-up may say that it failed."""
    assert all(rule.then == "wait" for rule in RULES if rule.answer == "unknown")


def test_an_impossible_answer_is_an_error() -> None:
    with pytest.raises(LookupError, match="No rule"):
        decide("look-up", "issued", 1)


def test_the_documentation_is_this_table() -> None:
    page = pathlib.Path(__file__).parent.parent / "docs/decisions.md"

    assert decisions.render() == page.read_text(), "make docs writes it anew"
