"""One request to Credly, about one row or several, and its outcome. Runs in a thread
that never touches the database.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import threading
import time

from ..catalog import DEFAULT_TENANT
from ..credly import Badge
from ..credly import BadgeRequest
from ..credly import Client
from ..credly import Deadline
from ..credly import leaving_before
from ..errors import AlreadyHeld
from ..errors import ConnectionExpired
from ..errors import CredlyError
from ..errors import InTrouble
from ..errors import OutcomeUnknown
from ..errors import RateLimited
from ..errors import Refused
from ..errors import SecretUnreadable
from ..errors import TooLate
from ..errors import Unauthorized
from ..errors import Unavailable
from ..ledger.claim import Row
from ..ledger.decide import Answer
from ..ledger.decide import MAX_ATTEMPTS
from ..ledger.decide import Phase
from ..options import Options
from .token import SharedToken

logger = logging.getLogger("flask_credly")

_ANSWERS: tuple[tuple[type[CredlyError], Answer], ...] = (
    (SecretUnreadable, "unauthorized"),
    (ConnectionExpired, "unauthorized"),
    (Unauthorized, "unauthorized"),
    (RateLimited, "rate limited"),
    (Unavailable, "unavailable"),
    (TooLate, "not sent"),
    (InTrouble, "in trouble"),
    (OutcomeUnknown, "unknown"),
    (Refused, "refused"),
)


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked about one row: alone, or with one request about several.

    :param was_uncertain: Whether the badge was maybe issued before it.
    :param send_after: Monotonic time before which it may not go out.
    :param send_before: After which it may not go out any more.
    :param sent_before: Whether a request for the badge was begun before this one.
    """

    row: Row
    phase: Phase
    was_uncertain: bool
    sent_before: bool
    send_after: float
    send_before: Deadline
    token: SharedToken


MAX_CHAIN = 20
"""Badges that are read, each of which took the place of the one before."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of it for a row.

    :param shown: Badges that Credly lists, of the member or at the address. Where a
        badge was read by its id: that one, and those that came in its place, the last
        of which is in force.
    :param looked: Whether the list was read.
    :param alone: Whether the badge is to be asked for alone.
    :param named: Whether Credly has refused others because of it.
    """

    answer: Answer
    badge: Badge | None = None
    error: CredlyError | None = None
    shown: tuple[Badge, ...] = ()
    looked: bool = False
    alone: bool = False
    named: bool = False


CLOSING: tuple[Answer, ...] = ("rate limited", "unavailable", "in trouble", "foreign")
"""Answers that the next request would get too."""


def answer_to(error: CredlyError) -> Answer:
    """Name an error as the decision table does."""
    if isinstance(error, OutcomeUnknown) and error.foreign:
        return "foreign"

    return next(answer for kind, answer in _ANSWERS if isinstance(error, kind))


def earner_id(installation: str, member_id: str, tenant: str = DEFAULT_TENANT) -> str:
    """Name a member towards Credly: the same for life, opaque, and not to be confused
    with the ids of another system, or of another community, of the same organization.
    """
    # No id holds this character.
    member = member_id if tenant == DEFAULT_TENANT else f"{tenant}\0{member_id}"
    return hashlib.sha256(f"{installation}:{member}".encode()).hexdigest()[:40]


class Sender:
    """Sends requests to Credly.

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
        self.no_batch: str | None = None
        """Why Credly is not to be asked for several badges with one request."""

    def widen(self, by: int) -> None:
        """Let more requests be in flight."""
        if by:
            self._slots.release(by)

    def send(self, asked: list[Request]) -> list[Outcome]:
        """Make one request about one row, or about several that are to be issued, if it
        may still go out.
        """
        first = asked[0]
        self._stop.wait(max(0, first.send_after - time.monotonic()))

        with self._slots:
            if self._stop.is_set() or first.send_before.has_passed:
                return [Outcome("not sent")] * len(asked)

            if len(asked) > 1:
                return self._send_batch(asked)

            return [self._send(first)]

    def _send_batch(self, asked: list[Request]) -> list[Outcome]:
        first = asked[0]

        try:
            with leaving_before(first.send_before):
                issued, as_expected = self._client.issue_many(
                    first.token.value, [self.request_of(each.row) for each in asked]
                )
        except Refused as e:
            return self._send_back(asked, e)
        except CredlyError as e:
            if isinstance(e, OutcomeUnknown) and e.foreign:
                # It may stand in the way of many badges and not of one.
                self.no_batch = str(e)
                return [Outcome("unknown", error=e)] * len(asked)

            return [self._failed(e)] * len(asked)
        except Exception as e:
            return [self._broken(first, e)] * len(asked)

        if not as_expected:
            self.no_batch = "The response did not list the badges it was asked for."

        unknown = OutcomeUnknown("Credly's response could not be read.")
        return [
            Outcome("issued", badge) if badge else Outcome("unknown", error=unknown)
            for badge in issued
        ]

    def _send_back(self, asked: list[Request], error: Refused) -> list[Outcome]:
        """None was issued, as far as Credly says. What it names goes alone and gets an
        answer of its own, and the others go together once more. Where a second badge
        would pass, each is looked up first.
        """
        named = error.index if error.index in range(len(asked)) else None
        unheard = error.status in (404, 405)

        if named is None:
            self.no_batch = str(error)

        words = "Credly refused the request because of another badge in it."
        of_others = Refused(words, status=error.status)
        unclear = OutcomeUnknown(words, status=error.status)
        outcomes = []

        for number, request in enumerate(asked):
            if request.row.allows_duplicates and not unheard:
                # Elsewhere Credly itself lets no second badge pass.
                back = Outcome("unknown", error=unclear, named=number == named)
            elif number == named:
                back = Outcome("sent back", error=error, alone=True, named=True)
            else:
                back = Outcome("sent back", error=of_others, alone=named is None)

            outcomes.append(back)

        return outcomes

    def _send(self, request: Request) -> Outcome:
        try:
            if request.phase == "revoke":
                return self._revoke(request)

            if request.phase == "replace":
                return self._replace(request)

            if request.phase == "issue":
                return self._issue(request)

            if request.row.action in ("revoke", "replace"):
                return self._read(request)

            return self._look_up(request)
        except CredlyError as e:
            return self._failed(e)
        except Exception as e:
            return self._broken(request, e)

    def _failed(self, error: CredlyError) -> Outcome:
        if (answer := answer_to(error)) in CLOSING:
            # At once: the others that wait for a thread would be refused as well.
            self._stop.set()

        return Outcome(answer, error=error)

    def _broken(self, request: Request, error: Exception) -> Outcome:
        # Whatever it was, it must not keep other badges from being issued. Its text may
        # name the member.
        logger.error(
            "A request to Credly failed: %s",
            type(error).__name__,
            extra={
                "credly_event": "request_failed",
                "credly_issuance": request.row.id,
            },
        )
        unknown = OutcomeUnknown("Credly's response could not be read.")
        return Outcome("unknown", error=unknown)

    def _look_up(self, request: Request) -> Outcome:
        row = request.row
        # Where Credly asks for one badge only, the address may be in the way of it.
        explain = row.duplicate or (
            row.attempts >= MAX_ATTEMPTS and not row.allows_duplicates
        )
        return Outcome("absent", shown=self._find(request, explain), looked=True)

    def _read(self, request: Request) -> Outcome:
        """Read the badge that is to be revoked or replaced."""
        row = request.row
        next_id = row.badge_id if row.action == "revoke" else row.replaces
        shown: list[Badge] = []

        while next_id is not None and len(shown) < MAX_CHAIN:
            shown.append(self._client.badge(request.token.value, next_id))
            next_id = shown[-1].replaced_by if row.action == "replace" else None

        return Outcome("in force", shown=tuple(shown), looked=True)

    def _revoke(self, request: Request) -> Outcome:
        row = request.row
        assert row.target is not None

        with leaving_before(request.send_before):
            revoked = self._client.revoke(
                request.token.value,
                row.target,
                reason=row.revocation_reason or "",
                tell=bool(row.tell),
            )

        return Outcome("revoked", revoked)

    def _replace(self, request: Request) -> Outcome:
        row = request.row
        assert row.target is not None

        with leaving_before(request.send_before):
            issued = self._client.replace(
                request.token.value, row.target, self.request_of(row)
            )

        return Outcome("issued", issued)

    def _find(self, request: Request, explain: bool) -> tuple[Badge, ...]:
        """Get what carries our name of the member; else, to explain a refusal, what is
        at the address.
        """
        token, badge = request.token.value, self.request_of(request.row)
        shown = self._client.find(token, badge)

        if explain and not shown:
            shown = self._client.find(token, badge, by_address=True)

        return tuple(shown)

    def _issue(self, request: Request) -> Outcome:
        try:
            with leaving_before(request.send_before):
                issued = self._client.issue(
                    request.token.value, self.request_of(request.row)
                )
        except AlreadyHeld as e:
            return self._explain(request, e)

        return Outcome("issued", issued)

    def _explain(self, request: Request, error: AlreadyHeld) -> Outcome:
        # Which badge it is, is worth a question.
        try:
            shown = self._find(request, explain=True)
        except CredlyError as e:
            logger.info(
                "The badge that the member already holds could not be looked up: %s", e
            )
            return Outcome("held", error=error)

        return Outcome("held", error=error, shown=shown, looked=True)

    def request_of(self, row: Row) -> BadgeRequest:
        """Word the request for a row."""
        options, extras = Options.read(row.options), row.extras or {}
        return BadgeRequest(
            template_id=row.template_id,
            earner_id=earner_id(self._installation, row.member_id, row.tenant),
            email=row.email,
            first_name=row.first_name,
            last_name=row.last_name,
            issued_at=row.issued_at or row.completed_at,
            middle_name=extras.get("middle_name"),
            country=extras.get("country"),
            state_or_province=extras.get("state_or_province"),
            locale=options.locale_for(extras.get("locale")),
            mail=options.mail,
            expires_at=options.expires_at(row.completed_at),
            evidence=tuple(extras.get("evidence", ())) if options.evidence else (),
            group=options.group or None,
        )
