"""What an outcome of a request comes to: its name in the decision table, and all else
that is written down of it.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses

from ..credly import Badge
from ..credly import BadgeRequest
from ..errors import Unauthorized
from ..ledger.claim import Row
from ..ledger.decide import Answer
from ..ledger.decide import decide
from ..ledger.decide import MAX_ATTEMPTS
from ..ledger.decide import Then
from ..ledger.settle import Settlement
from . import whose
from .sender import Outcome
from .sender import Request
from .token import TokenHolder

DUPLICATES_WAIT = 60.0
"""Seconds to wait at least after a lost answer where Credly would issue twice: its
lists may lag, and nothing but the look-up keeps a second badge out. Also after a
worker's death: see :func:`.lane.lease_seconds`.
"""

LOOK_UP_WAIT = 30.0
"""Seconds until Credly is asked again whether the badge is there, where it did not
say. Doubled each time.
"""

MAX_LOOK_UPS = 8
"""Look-ups without a clear answer, over an hour, after which a person has to look."""

NO_WORD = (
    "Credly did not confirm whether the badge was issued. Check in Credly before"
    " you issue it yourself."
)

NOT_READ = "Credly did not report the badge's status. Nothing was changed."

GONE_AFTER = 5
"""Look-ups by which Credly has not known a badge for more than ten minutes: it is taken
to be gone.
"""

BLOCKED = (
    "Credly still counts an earlier badge of this member. Allow duplicates for"
    " the badge template in Credly, or replace the earlier badge."
)

# Why nothing was done about a badge, or not what was asked for.
_WORDS: dict[Answer, str] = {
    "declined": "The member declined this badge, so there is nothing to revoke.",
    "missing": "Credly no longer has this badge.",
    "replaced": "Another badge replaced this one at Credly.",
    "ended": ("The badge to replace is no longer valid. You can reissue it."),
}


_KEEPS_BADGE: tuple[Then, ...] = ("issued", "held", "revoked", "replaced", "left")


class Judge:
    """Judges outcomes.

    :param token: The token that the requests were made with.
    :param restored: Whether the ledger may lack badges that were issued.
    :param retry_delay: As ``CREDLY_RETRY_DELAY``.
    :param request_of: Words the request for a row.
    :param badges_of_others: Gets those of some badges that another row has.
    """

    def __init__(
        self,
        token: TokenHolder,
        *,
        restored: bool,
        retry_delay: float,
        request_of: cabc.Callable[[Row], BadgeRequest],
        badges_of_others: cabc.Callable[[Row, cabc.Collection[str]], cabc.Set[str]],
    ) -> None:
        self._token = token
        self._restored = restored
        self._retry_delay = retry_delay
        self._request_of = request_of
        self._badges_of_others = badges_of_others

    def judge(self, request: Request, outcome: Outcome) -> Settlement:
        """Decide what becomes of a row."""
        result, badge, words = self._name(request, outcome)
        rule = decide(request.row.action, request.phase, result, request.row.attempts)
        error = outcome.error
        return Settlement(
            row=request.row,
            phase=request.phase,
            answer=result,
            rule=rule,
            was_uncertain=request.was_uncertain,
            wait=self._wait(request, result) if rule.then == "wait" else 0,
            badge=badge if rule.then in _KEEPS_BADGE else None,
            target=badge if rule.then == "go on" else None,
            detail=words or _detail(request.row, result, outcome),
            said=error.detail if error else None,
            status=error.status if error else None,
        )

    def _name(
        self, request: Request, outcome: Outcome
    ) -> tuple[Answer, Badge | None, str | None]:
        """Name what an outcome comes to, with the badge and words for an admin."""
        if isinstance(outcome.error, Unauthorized):
            return self._token.judge(request.token, outcome.error), None, None

        if request.row.action in ("revoke", "replace"):
            return self._name_action(request, outcome)

        if outcome.looked or outcome.answer == "held":
            return self._read_list(request, outcome)

        if request.phase == "look-up" and outcome.answer in (
            *("refused", "unknown", "foreign"),
        ):
            return _read_silence(request.row, outcome.answer)

        return outcome.answer, outcome.badge, None

    def _name_action(
        self, request: Request, outcome: Outcome
    ) -> tuple[Answer, Badge | None, str | None]:
        row = request.row

        if outcome.looked:
            answer, badge = self._read_badge(row, outcome.shown)
            return answer, badge, _WORDS.get(answer)

        if request.phase == "look-up":
            answer = outcome.answer

            if outcome.error and outcome.error.status in (404, 410):
                answer = "unknown" if row.look_ups < GONE_AFTER else _gone(row)
            elif answer in ("refused", "unknown", "foreign"):
                last = row.look_ups + 1 >= MAX_LOOK_UPS
                answer = "no word" if last else "unknown"
                answer = "foreign" if outcome.answer == "foreign" else answer

            return answer, None, _WORDS.get(answer)

        if outcome.answer == "held":  # which an action cannot be
            return "refused", None, None

        if outcome.answer == "refused" and row.renewal and row.target_expired:
            return "outlived", None, None

        return outcome.answer, outcome.badge, None

    def _read_badge(
        self, row: Row, shown: tuple[Badge, ...]
    ) -> tuple[Answer, Badge | None]:
        """Name how a badge is that is to be revoked or replaced."""
        last = shown[-1]

        if row.action == "replace":
            asked = self._request_of(row)
            later = shown[1:]
            known = self._badges_of_others(row, [each.id for each in later])

            for each in later:
                if each.id not in known and whose.is_of(each, asked):
                    return "found", each

            if last.id in known or last.replaced_by or not whose.is_theirs(last, asked):
                return "replaced", None
        elif last.replaced_by:
            return "replaced", last

        if last.state == "revoked":
            return ("revoked" if row.action == "revoke" else _gone(row)), last

        if last.state == "rejected":
            return ("declined" if row.action == "revoke" else _gone(row)), last

        # What was sent may be on its way.
        too_early = row.outcome_unknown and row.unsettled
        return ("not yet" if too_early else "in force"), last

    def _read_list(
        self, request: Request, outcome: Outcome
    ) -> tuple[Answer, Badge | None, str | None]:
        row, shown = request.row, outcome.shown
        ids = [each.id for each in shown]
        asked = self._request_of(row)
        found = whose.look_through(
            shown,
            asked,
            known=self._badges_of_others(row, ids) if ids else (),
            allows_duplicates=row.allows_duplicates,
            restored=self._restored,
        )

        if found.badge:
            return "found", found.badge, None

        words = whose.explain(found.in_the_way, test=row.test)
        is_blocked = not words and whose.has_ended(shown, asked)

        if outcome.answer == "held":  # Credly has refused the request
            first = not request.sent_before

            if first and is_blocked:
                return "blocked", None, BLOCKED

            if words or (first and outcome.looked):
                return "held", None, words or whose.NOT_LISTED

            return "unlisted", None, None

        if row.duplicate:
            last = row.look_ups + 1 >= MAX_LOOK_UPS

            if last and is_blocked:
                return "blocked", None, BLOCKED

            if words or last:
                return "held", None, words or whose.NOT_LISTED

            return "unlisted", None, None

        if words and not row.allows_duplicates and row.attempts >= MAX_ATTEMPTS:
            return "held", None, words

        # Where something may be in the way, Credly says so.
        return "not yet" if row.unsettled else "absent", None, None

    def _wait(self, request: Request, result: Answer) -> float:
        if result == "not yet":  # which ends with the lease that it was sent under
            return max(self._retry_delay, LOOK_UP_WAIT)

        if request.phase == "look-up":
            return max(self._retry_delay, LOOK_UP_WAIT * 2.0**request.row.look_ups)

        lost = result in ("unknown", "foreign", "in trouble")

        if lost and request.row.allows_duplicates:
            return max(self._retry_delay, DUPLICATES_WAIT)

        return self._retry_delay


def _gone(row: Row) -> Answer:
    """Name that the badge is in force no more which an action is about."""
    if row.action == "revoke":
        return "missing"

    return "outlived" if row.renewal else "ended"


def _read_silence(row: Row, answer: Answer) -> tuple[Answer, Badge | None, str | None]:
    last = row.look_ups + 1 >= MAX_LOOK_UPS

    if row.duplicate and last:
        return "held", None, whose.NOT_LISTED

    if row.duplicate and answer != "foreign":
        return "unlisted", None, None

    # Where Credly refuses duplicates itself, the request is safe.
    if answer == "refused" and not row.allows_duplicates:
        return answer, None, None

    if last:
        return "no word", None, None

    return ("unknown" if answer == "refused" else answer), None, None


def doubt(each: Settlement) -> Settlement:
    """Get what is written where another row has taken the badge meanwhile: look once
    more.
    """
    answer: Answer = "not sent" if each.phase == "look-up" else "unknown"
    rule = decide(each.row.action, each.phase, answer, each.row.attempts)
    return dataclasses.replace(each, answer=answer, rule=rule, badge=None)


def _detail(row: Row, answer: Answer, outcome: Outcome) -> str | None:
    if answer == "no word" and outcome.error:
        words = NO_WORD if row.action in ("issue", "check") else NOT_READ
        return f"{words} {outcome.error.detail}"

    if outcome.error:
        return outcome.error.detail

    if answer in (
        "absent",
        "not yet",
        "in force",
    ):  # what is wrong is what went wrong before
        return row.error or "Credly did not respond."

    return None
