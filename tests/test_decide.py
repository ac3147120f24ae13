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

# action, phase, answer, attempts so far: becomes, counts, maybe issued, logged, closes
TABLE: list[
    tuple[Action, Phase, Answer, int, str, bool, bool | None, bool, str | None]
] = [
    ("issue", "look-up", "found", 1, "issued", False, False, False, None),
    ("issue", "look-up", "found", 2, "issued", False, False, False, None),
    ("issue", "look-up", "held", 1, "held", False, False, False, None),
    ("issue", "look-up", "held", 2, "held", False, False, False, None),
    ("issue", "look-up", "unlisted", 1, "wait", False, None, False, None),
    ("issue", "look-up", "unlisted", 2, "wait", False, None, False, None),
    ("issue", "look-up", "absent", 1, "go on", False, False, False, None),
    ("issue", "look-up", "absent", 2, "failed", False, False, True, None),
    ("issue", "look-up", "not yet", 1, "go on", False, None, False, None),
    ("issue", "look-up", "not yet", 2, "failed", False, None, True, None),
    ("issue", "look-up", "refused", 1, "go on", False, None, False, None),
    ("issue", "look-up", "refused", 2, "failed", False, None, True, None),
    ("issue", "look-up", "unknown", 1, "wait", False, None, False, None),
    ("issue", "look-up", "unknown", 2, "wait", False, None, False, None),
    ("issue", "look-up", "foreign", 1, "wait", False, None, False, "unavailable"),
    ("issue", "look-up", "foreign", 2, "wait", False, None, False, "unavailable"),
    (
        "issue",
        "look-up",
        "rate limited",
        1,
        "at once",
        False,
        None,
        False,
        "rate limit",
    ),
    (
        "issue",
        "look-up",
        "rate limited",
        2,
        "at once",
        False,
        None,
        False,
        "rate limit",
    ),
    ("issue", "look-up", "unauthorized", 1, "at once", False, None, False, "expired"),
    ("issue", "look-up", "unauthorized", 2, "at once", False, None, False, "expired"),
    (
        "issue",
        "look-up",
        "unavailable",
        1,
        "at once",
        False,
        None,
        False,
        "unavailable",
    ),
    (
        "issue",
        "look-up",
        "unavailable",
        2,
        "at once",
        False,
        None,
        False,
        "unavailable",
    ),
    ("issue", "look-up", "not sent", 1, "at once", False, None, False, None),
    ("issue", "look-up", "not sent", 2, "at once", False, None, False, None),
    ("issue", "look-up", "blocked", 1, "failed", False, False, True, None),
    ("issue", "look-up", "blocked", 2, "failed", False, False, True, None),
    ("issue", "look-up", "no word", 1, "failed", False, None, True, None),
    ("issue", "look-up", "no word", 2, "failed", False, None, True, None),
    ("issue", "issue", "issued", 1, "issued", True, False, False, None),
    ("issue", "issue", "issued", 2, "issued", True, False, False, None),
    ("issue", "issue", "found", 1, "issued", True, False, False, None),
    ("issue", "issue", "found", 2, "issued", True, False, False, None),
    ("issue", "issue", "held", 1, "held", True, False, False, None),
    ("issue", "issue", "held", 2, "held", True, False, False, None),
    ("issue", "issue", "unlisted", 1, "wait", True, True, False, None),
    ("issue", "issue", "unlisted", 2, "wait", True, True, False, None),
    ("issue", "issue", "blocked", 1, "failed", True, None, True, None),
    ("issue", "issue", "blocked", 2, "failed", True, None, True, None),
    ("issue", "issue", "refused", 1, "wait", True, None, False, None),
    ("issue", "issue", "refused", 2, "failed", True, None, True, None),
    ("issue", "issue", "unknown", 1, "wait", True, True, False, None),
    ("issue", "issue", "unknown", 2, "wait", True, True, False, None),
    ("issue", "issue", "foreign", 1, "wait", True, True, False, "unavailable"),
    ("issue", "issue", "foreign", 2, "wait", True, True, False, "unavailable"),
    ("issue", "issue", "rate limited", 1, "at once", False, None, False, "rate limit"),
    ("issue", "issue", "rate limited", 2, "at once", False, None, False, "rate limit"),
    ("issue", "issue", "unauthorized", 1, "at once", False, None, False, "expired"),
    ("issue", "issue", "unauthorized", 2, "at once", False, None, False, "expired"),
    ("issue", "issue", "unavailable", 1, "at once", False, None, False, "unavailable"),
    ("issue", "issue", "unavailable", 2, "at once", False, None, False, "unavailable"),
    ("issue", "issue", "in trouble", 1, "wait", False, True, False, "unavailable"),
    ("issue", "issue", "in trouble", 2, "wait", False, True, False, "unavailable"),
    ("issue", "issue", "not sent", 1, "at once", False, None, False, None),
    ("issue", "issue", "not sent", 2, "at once", False, None, False, None),
    ("issue", "issue", "sent back", 1, "at once", False, None, False, None),
    ("issue", "issue", "sent back", 2, "at once", False, None, False, None),
    ("check", "look-up", "found", 1, "issued", False, False, False, None),
    ("check", "look-up", "found", 2, "issued", False, False, False, None),
    ("check", "look-up", "held", 1, "held", False, False, False, None),
    ("check", "look-up", "held", 2, "held", False, False, False, None),
    ("check", "look-up", "blocked", 2, "failed", False, False, False, None),
    ("check", "look-up", "unlisted", 1, "wait", False, None, False, None),
    ("check", "look-up", "unlisted", 2, "wait", False, None, False, None),
    ("check", "look-up", "absent", 1, "failed", False, False, False, None),
    ("check", "look-up", "absent", 2, "failed", False, False, False, None),
    ("check", "look-up", "not yet", 1, "failed", False, None, False, None),
    ("check", "look-up", "not yet", 2, "failed", False, None, False, None),
    ("check", "look-up", "refused", 1, "failed", False, None, False, None),
    ("check", "look-up", "refused", 2, "failed", False, None, False, None),
    ("check", "look-up", "unknown", 1, "wait", False, None, False, None),
    ("check", "look-up", "unknown", 2, "wait", False, None, False, None),
    ("check", "look-up", "foreign", 1, "wait", False, None, False, "unavailable"),
    ("check", "look-up", "foreign", 2, "wait", False, None, False, "unavailable"),
    (
        "check",
        "look-up",
        "rate limited",
        1,
        "at once",
        False,
        None,
        False,
        "rate limit",
    ),
    (
        "check",
        "look-up",
        "rate limited",
        2,
        "at once",
        False,
        None,
        False,
        "rate limit",
    ),
    ("check", "look-up", "unauthorized", 1, "at once", False, None, False, "expired"),
    ("check", "look-up", "unauthorized", 2, "at once", False, None, False, "expired"),
    (
        "check",
        "look-up",
        "unavailable",
        1,
        "at once",
        False,
        None,
        False,
        "unavailable",
    ),
    (
        "check",
        "look-up",
        "unavailable",
        2,
        "at once",
        False,
        None,
        False,
        "unavailable",
    ),
    ("check", "look-up", "not sent", 1, "at once", False, None, False, None),
    ("check", "look-up", "not sent", 2, "at once", False, None, False, None),
    ("check", "look-up", "no word", 1, "failed", False, None, False, None),
    ("check", "look-up", "no word", 2, "failed", False, None, False, None),
]

# Both actions about a badge that is there. By answer: becomes after the first and the
# second attempt, counts, maybe done, logged, closes.
LOOKED_UP: dict[Answer, tuple[str, str, bool | None, str | None]] = {
    "in force": ("go on", "failed", False, None),
    "not yet": ("wait", "wait", None, None),
    "unknown": ("wait", "wait", None, None),
    "foreign": ("wait", "wait", None, "unavailable"),
    "no word": ("failed", "failed", None, None),
    "rate limited": ("at once", "at once", None, "rate limit"),
    "unauthorized": ("at once", "at once", None, "expired"),
    "unavailable": ("at once", "at once", None, "unavailable"),
    "not sent": ("at once", "at once", None, None),
}
ASKED: dict[Answer, tuple[str, str, bool, bool | None, str | None]] = {
    "refused": ("wait", "failed", True, None, None),
    "unknown": ("wait", "wait", True, True, None),
    "foreign": ("wait", "wait", True, True, "unavailable"),
    "in trouble": ("wait", "wait", False, True, "unavailable"),
    "rate limited": ("at once", "at once", False, None, "rate limit"),
    "unauthorized": ("at once", "at once", False, None, "expired"),
    "unavailable": ("at once", "at once", False, None, "unavailable"),
    "not sent": ("at once", "at once", False, None, None),
}
BOTH: tuple[t.Literal["revoke", "replace"], ...] = ("revoke", "replace")

for action in BOTH:
    for answer, (first, second, done, closes) in LOOKED_UP.items():
        for attempts, then in ((1, first), (2, second)):
            row = (then, False, done, then == "failed", closes)
            TABLE.append((action, "look-up", answer, attempts, *row))

    for answer, (first, second, counts, done, closes) in ASKED.items():
        for attempts, then in ((1, first), (2, second)):
            row = (then, counts, done, then == "failed", closes)
            TABLE.append((action, action, answer, attempts, *row))

for attempts in (1, 2):
    TABLE += [
        *[
            ("revoke", "look-up", answer, attempts, then, False, False, False, None)
            for answer, then in t.cast(
                "list[tuple[Answer, str]]",
                [
                    ("revoked", "revoked"),
                    ("declined", "left"),
                    ("replaced", "replaced"),
                ],
            )
        ],
        ("revoke", "look-up", "missing", attempts, "failed", False, None, True, None),
        ("revoke", "revoke", "revoked", attempts, "revoked", True, False, False, None),
        ("replace", "look-up", "found", attempts, "issued", False, False, False, None),
        ("replace", "look-up", "replaced", attempts, "failed", False, None, True, None),
        ("replace", "look-up", "ended", attempts, "failed", False, None, True, None),
        ("replace", "look-up", "outlived", attempts, "anew", False, False, False, None),
        ("replace", "replace", "issued", attempts, "issued", True, False, False, None),
        ("replace", "replace", "outlived", attempts, "anew", True, False, False, None),
    ]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: "-".join(map(str, row[:4])))
def test_each_answer_has_the_decided_consequence(row: t.Any) -> None:
    action, phase, answer, attempts, then, counts, outcome_unknown, logged, close = row

    rule = decide(action, phase, answer, attempts)

    assert (then, counts, outcome_unknown, logged, close) == (
        rule.then,
        rule.counts,
        rule.outcome_unknown,
        rule.logged,
        rule.close,
    )


def test_every_rule_is_tested() -> None:
    used = {
        id(decide(action, phase, answer, attempts))
        for action, phase, answer, attempts, *_ in TABLE
    }

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
