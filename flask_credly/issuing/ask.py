"""One question to Credly about one row, and its outcome. Runs in a thread that never
touches the database.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import threading
import time

from ..credly import BadgeRequest
from ..credly import Client
from ..errors import AlreadyHeld
from ..errors import ConnectionExpired
from ..errors import CredlyError
from ..errors import OutcomeUnknown
from ..errors import RateLimited
from ..errors import Refused
from ..errors import SecretUnreadable
from ..errors import Unauthorized
from ..errors import Unavailable
from ..ledger.claim import Row
from ..ledger.decide import Answer
from ..ledger.decide import Phase
from .token import SharedToken

logger = logging.getLogger("flask_credly")

_ANSWERS: tuple[tuple[type[CredlyError], Answer], ...] = (
    (SecretUnreadable, "unauthorized"),
    (ConnectionExpired, "unauthorized"),
    (Unauthorized, "unauthorized"),
    (RateLimited, "rate limited"),
    (Unavailable, "unavailable"),
    (OutcomeUnknown, "unknown"),
    (Refused, "refused"),
)


@dataclasses.dataclass(frozen=True)
class Step:
    """One request to make.

    :param knew_maybe: Whether the badge was maybe issued before it.
    :param send_after: Monotonic time before which it may not go out.
    :param send_before: Monotonic time after which it may not go out any more: the
        lease is then too old.
    :param others: Badges that are known to be those of other courses.
    """

    row: Row
    phase: Phase
    knew_maybe: bool
    send_after: float
    send_before: float
    token: SharedToken
    others: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of it."""

    answer: Answer
    badge_id: str | None = None
    error: CredlyError | None = None


def answer_to(error: CredlyError) -> Answer:
    """Name an error as the decision table does."""
    if isinstance(error, OutcomeUnknown) and error.foreign:
        return "foreign"

    return next(answer for kind, answer in _ANSWERS if isinstance(error, kind))


def earner_id(installation: str, member_id: str) -> str:
    """Name a member towards Credly: the same for life, opaque, and not to be confused
    with the ids of another system of the same organization.
    """
    return hashlib.sha256(f"{installation}:{member_id}".encode()).hexdigest()[:40]


class Asker:
    """Asks Credly.

    :param installation: The installation's key.
    :param stop: Once set, nothing more goes out.
    :param width: How many requests may be in flight.
    """

    def __init__(
        self, client: Client, installation: str, stop: threading.Event, width: int
    ) -> None:
        self._client = client
        self._installation = installation
        self._stop = stop
        self._slots = threading.Semaphore(width)

    def widen(self, by: int) -> None:
        """Let more requests be in flight."""
        if by:
            self._slots.release(by)

    def ask(self, step: Step) -> Outcome:
        """Make the request, if it may still go out."""
        self._stop.wait(max(0, step.send_after - time.monotonic()))

        with self._slots:
            if self._stop.is_set() or time.monotonic() > step.send_before:
                return Outcome("not sent")

            return self._ask(step)

    def _ask(self, step: Step) -> Outcome:
        try:
            if step.phase == "look-up":
                return self._look_up(step)

            return self._issue(step)
        except CredlyError as e:
            if (answer := answer_to(e)) in ("rate limited", "unavailable", "foreign"):
                # At once: the others that wait for a thread would be refused as well.
                self._stop.set()

            return Outcome(answer, error=e)
        except Exception as e:
            # Whatever it was, it must not keep other badges from being issued. Its
            # text may name the member.
            logger.error(
                "A request to Credly failed: %s",
                type(e).__name__,
                extra={
                    "credly_event": "request_failed",
                    "credly_issuance": step.row.id,
                },
            )
            unknown = OutcomeUnknown("Credly's answer could not be read.")
            return Outcome("unknown", error=unknown)

    def _look_up(self, step: Step) -> Outcome:
        found = self._client.find(
            step.token.value, self._request(step.row), other_than=step.others
        )
        return Outcome("found", found.id) if found else Outcome("absent")

    def _issue(self, step: Step) -> Outcome:
        try:
            issued = self._client.issue(step.token.value, self._request(step.row))
        except AlreadyHeld as e:
            return self._find_held(step, e)

        return Outcome("issued", issued.id)

    def _find_held(self, step: Step, error: AlreadyHeld) -> Outcome:
        # Success either way. The id is worth a question, but not a second one.
        try:
            outcome = self._look_up(step)
        except CredlyError as e:
            logger.info("The badge that is held could not be looked up: %s", e)
        else:
            if outcome.answer == "found":
                return outcome

        return Outcome("held", error=error)

    def _request(self, row: Row) -> BadgeRequest:
        return BadgeRequest(
            template_id=row.template_id,
            earner_id=earner_id(self._installation, row.member_id),
            email=row.email,
            first_name=row.first_name,
            last_name=row.last_name,
            issued_at=row.completed_at,
        )
